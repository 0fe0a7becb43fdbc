"""Run by test_run.py as a program: start a run again and again, kill -9 it, let the last one finish.

    python kill_loop.py RECIPE FOLDER KILLS SEED [OVERRIDES]

Torch is loaded once and every run is a fork of this process, so that a kill costs little. Every second kill waits for
a save to begin (its hidden folder) and comes at once or some milliseconds later; the others come at any moment until
the second save. Prints how many kills met a save half done.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

from shoal.train.recipe import load_recipe
from shoal.train.run import train

folder, kills, chance = Path(sys.argv[2]), int(sys.argv[3]), random.Random(int(sys.argv[4]))
torch.set_num_threads(1)
recipe = load_recipe(sys.argv[1], ["--run.save_seconds", "0", *sys.argv[5:]])


def start() -> int:
    child = os.fork()
    if child:
        return child
    try:
        train(recipe, folder, resume=True)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def found(pattern: str) -> set[str]:
    return {place.name for place in (folder / "state").glob(pattern)}


inside = 0
for number in range(kills):
    halves, states = found(".step-*"), found("step-*")
    child = start()
    deadline = time.monotonic() + (60 if number % 2 else chance.random() * 0.4)
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            sys.exit(f"kill {number} came too late: the run had ended")
        if number % 2 and found(".step-*") - halves:
            time.sleep(chance.choice((0, 0, 0.001, 0.01)) * chance.random())
            break
        if len(found("step-*") - states) > 1:
            break
        time.sleep(0.0002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    inside += bool(found(".step-*") - halves)
_, status = os.waitpid(start(), 0)
print(inside)
sys.exit(os.waitstatus_to_exitcode(status))
