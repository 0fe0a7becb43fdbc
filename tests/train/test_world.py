"""Two processes compute what one computes: gradients, counts and the router's bias are sums over all ranks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from shoal.train.recipe import load_recipe
from shoal.train.run import train

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny-test.toml"
OVERRIDES = ["--mtp.tokens", "0", "--run.eval_tokens", "0", "--train.average_fraction", "0"]


def test_two_gloo_processes_give_one_process_s_weights(tmp_path: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "shoal.cli.main", "train", str(RECIPE), "--run", str(tmp_path / "two")]
    processes = [
        subprocess.Popen(
            [*command, *OVERRIDES],
            env=os.environ
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=300)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    outcome = train(load_recipe(RECIPE, OVERRIDES), tmp_path / "one")
    assert outcome.finished
    one = load_file(tmp_path / "one" / "checkpoint" / "model.safetensors")
    two = load_file(tmp_path / "two" / "checkpoint" / "model.safetensors")
    assert one.keys() == two.keys()
    for name, value in one.items():
        if name.endswith("e_score_correction_bias"):
            assert torch.equal(value, two[name]) and value.any()
        # Muon turns the rounding of two sums into as much as 5e-4 where a gradient's direction is nearly open.
        torch.testing.assert_close(value, two[name], rtol=1e-3, atol=1.5e-3, msg=name)
    # C74: another number of processes is told when such a run goes on
    assert train(load_recipe(RECIPE, OVERRIDES), tmp_path / "two", resume=True).finished
    lines = [json.loads(line) for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    told = [line for line in lines if line.get("event") == "processes"]
    assert [(line["before"], line["now"]) for line in told] == [(2, 1)]
    assert not any("processes" in line for line in (tmp_path / "one" / "log.jsonl").read_text().splitlines())
    steps = [(tmp_path / run / "log.jsonl").read_text().count('"loss"') for run in ("one", "two")]
    assert steps[0] == steps[1] > 3
