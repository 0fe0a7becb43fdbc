"""Run by test_grpo.py as a program: `python kill_grpo.py RECIPE FOLDER KILLS SEED`.

Starts a GRPO run again and again, kills it (SIGKILL) at a random moment after another step has ended, and lets the last
one finish. Torch is loaded once and every run is a fork of this process; every step is saved.
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

from shoal.tune.recipe import load_tune_recipe
from shoal.tune.run import tune

folder, kills, chance = Path(sys.argv[2]), int(sys.argv[3]), random.Random(int(sys.argv[4]))
torch.set_num_threads(1)
recipe = load_tune_recipe(sys.argv[1], "grpo", ["--run.save_seconds", "0"])


def start() -> int:
    child = os.fork()
    if child:
        return child
    try:
        tune(recipe, "grpo", folder, resume=True)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def saved() -> set[str]:
    return {place.name for place in (folder / "state").glob("step-*")}


for number in range(kills):
    before, child = saved(), start()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not saved() - before:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            sys.exit(f"kill {number} came too late: the run had ended")
        time.sleep(0.0005)
    time.sleep(chance.random() * 0.02)  # in the next step's rollout, judgement or update
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(max(saved()))
_, status = os.waitpid(start(), 0)
sys.exit(os.waitstatus_to_exitcode(status))
