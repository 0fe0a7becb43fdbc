"""Rows made ahead by other processes: the same run whether stopped or not, and a clear end when a process dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shoal.errors import ShoalError
from shoal.train.recipe import load_recipe
from shoal.train.run import train

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny-test.toml"
SHORT = ["--run.workers", "2", "--train.tokens", "4000", "--sft.tokens", "1500", "--mtp.tokens", "0"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint" / "model.safetensors")


def test_stopped_in_both_stages_and_resumed_gives_the_weights_of_an_unbroken_run(tmp_path: Path):
    recipe = load_recipe(RECIPE, SHORT)
    assert train(recipe, tmp_path / "whole").finished
    finished = train(recipe, tmp_path / "parts", stop_after=3).finished
    while not finished:
        finished = train(recipe, tmp_path / "parts", resume=True, stop_after=3).finished
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_worker_that_is_killed_is_told_with_what_to_do(tmp_path: Path):
    import multiprocessing

    from shoal.data.tokenizer import load_tokenizer
    from shoal.train.rows import run_tokenizer, stage_rows
    from shoal.train.world import World

    recipe = load_recipe(RECIPE, SHORT)
    run_tokenizer(recipe, tmp_path)
    rows = stage_rows(recipe, "train", load_tokenizer(tmp_path), tmp_path, World())
    try:
        first = rows.next_step(0.0)
        assert first[0].tokens > 0
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGKILL)
        with pytest.raises(ShoalError, match="prepares rows") as caught:
            for _ in range(4):  # what was finished before it died may still come
                rows.next_step(0.0)
        assert "--run.workers 0" in (caught.value.hint or "")
    finally:
        rows.close()


def test_files_are_not_shared_out(tmp_path: Path):
    with pytest.raises(ShoalError, match=r"run\.workers"):
        load_recipe(RECIPE, ["--run.workers", "2", "--train.source", str(tmp_path / "a.txt")])
    with pytest.raises(ShoalError, match=r"run\.workers"):
        load_recipe(RECIPE, ["--run.workers", "-1"])
