"""Runs as people start them: to the end, killed and resumed, changed, on a broken state, over two processes."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shoal.errors import ShoalError
from shoal.train import stage
from shoal.train.measure import heldout_bits_per_byte
from shoal.train.recipe import load_recipe
from shoal.train.run import train
from shoal.train.state import State, load_state, save_state

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny-test.toml"
KILL_LOOP = Path(__file__).parent / "kill_loop.py"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint" / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("whole")
    outcome = train(load_recipe(RECIPE), folder)
    assert outcome.finished and set(outcome.measures) == {"train", "sft", "mtp"}
    return folder


def test_a_run_leaves_a_checkpoint_with_its_bill(whole: Path):
    from shoal.data.tokenizer import load_tokenizer
    from shoal.model.checkpoint.load import load_network

    checkpoint = whole / "checkpoint"
    network = load_network(checkpoint, mtp=True)
    assert network.config.eos_token_ids == load_tokenizer(checkpoint).eos_ids
    receipt = json.loads((checkpoint / "receipt.json").read_text())
    kinds = []
    while receipt:
        kinds.append(receipt["kind"])
        assert receipt["tokens"] > 0 and receipt["flops"] > 0 and receipt["seconds"] > 0
        assert receipt["utilisation"] is None or 0 < receipt["utilisation"] < 1  # C95
        receipt = receipt["parent"]
    assert kinds == ["mtp", "sft", "train"]
    assert load_recipe(whole / "recipe.toml") == load_recipe(RECIPE)


def test_the_log_tells_loss_speed_load_and_cost(whole: Path):
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert {line["stage"] for line in steps} == {"train", "sft", "mtp"}
    for key in ("bits_per_byte", "tokens_per_second", "max_violation", "seconds", "usd", "seconds_left"):
        assert all(key in line for line in steps), key
    first = [line for line in steps if line["stage"] == "train"]
    assert first[-1]["loss"] < first[0]["loss"]


def kill_again_and_again(folder: Path, kills: int, *overrides: str) -> int:
    """Kill a run in `folder` that often, let it end; returns how many kills met a save half done."""
    seed = random.randrange(10**6)
    command = [sys.executable, KILL_LOOP, RECIPE, folder, kills, seed, *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    return int(done.stdout)


def losses(folder: Path) -> list[tuple[str, int | None, float | None]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(line["stage"], line.get("step"), line.get("loss")) for line in lines]


def test_killed_at_random_moments_and_resumed_gives_the_same_weights_and_log(whole: Path, tmp_path: Path):
    # C74, C76
    assert kill_again_and_again(tmp_path, 12) >= 3
    assert same(weights(whole), weights(tmp_path))
    assert losses(whole) == losses(tmp_path)


@pytest.mark.slow
def test_sixty_kills_change_nothing_either(tmp_path: Path):
    longer = ["--train.tokens", "60000"]
    assert kill_again_and_again(tmp_path / "killed", 60, *longer) >= 20
    train(load_recipe(RECIPE, longer), tmp_path / "whole")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


def test_stopping_and_going_on_in_one_process_gives_the_same_weights(whole: Path, tmp_path: Path):
    recipe = load_recipe(RECIPE)
    assert not train(recipe, tmp_path, stop_after=5).finished
    assert not train(recipe, tmp_path, resume=True, stop_after=9).finished
    assert train(recipe, tmp_path, resume=True).finished
    assert same(weights(whole), weights(tmp_path))


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run after two steps."""
    folder = tmp_path_factory.mktemp("begun")
    train(load_recipe(RECIPE), folder, stop_after=2)
    return folder


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--model.hidden_size 64 --train.lr 0.1", r"model.hidden_size: 32 -> 64[\s\S]*train.lr"),
        ("--train.tokens_per_step 256", r"train.tokens_per_step: \[\[0.0, 512\]\] -> \[\[0.0, 256\]\]"),
        ("--model.vocab_size 600 --tokenizer.vocab_size 600", r"model.vocab_size: 512 -> 600"),
        ("--model.num_hidden_layers 3", r"model.num_hidden_layers: 2 -> 3"),
        ("--sft.source other.jsonl", "sft.source: microworld -> other.jsonl"),
    ],
)
def test_a_resume_with_another_recipe_is_refused_and_says_what_differs(begun: Path, words: str, said: str):
    # C74: a resume that silently changes batches, data or shape
    kept = {file: file.read_bytes() for file in begun.rglob("*") if file.is_file()}
    with pytest.raises(ShoalError, match=said):
        train(load_recipe(RECIPE, words.split()), begun, resume=True)
    assert kept == {file: file.read_bytes() for file in begun.rglob("*") if file.is_file()}


def test_a_second_run_in_a_folder_is_refused_and_a_shorter_one_goes_on(begun: Path, tmp_path: Path):
    with pytest.raises(ShoalError, match="--resume"):
        train(load_recipe(RECIPE), begun)
    # what may change: how long, and how it is run
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    shorter = load_recipe(RECIPE, ["--train.tokens", "3000", "--run.save_seconds", "9"])
    assert train(shorter, tmp_path, resume=True).finished


def test_a_kill_inside_a_save_leaves_the_state_before(tmp_path: Path):
    # C76: half a state picked as the newest, or the old one deleted too early
    place = tmp_path / "state"
    save_state(place, 1, State({"network": {"w": torch.ones(3)}}, {"n": 1}))
    code = (
        "import os, safetensors.torch, shoal.train.state as s, torch, pathlib\n"
        "def half(tensors, path): pathlib.Path(path).write_bytes(b'half'); os.kill(os.getpid(), 9)\n"
        "s.save_file = half\n"
        f"s.save_state(pathlib.Path({str(place)!r}), 2, s.State({{'network': {{'w': torch.zeros(3)}}}}, {{'n': 2}}))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    state = load_state(place)
    assert state and state.values == {"n": 1} and torch.equal(state.tensors["network"]["w"], torch.ones(3))
    save_state(place, 3, State({"network": {"w": torch.zeros(3)}}, {"n": 3}))
    assert sorted(p.name for p in place.iterdir()) == ["step-00000001", "step-00000003"]


def test_a_broken_newest_state_falls_back_and_no_readable_one_is_an_error(tmp_path: Path, caplog):
    for step in (1, 2, 3):
        save_state(tmp_path, step, State({"network": {"w": torch.full((3,), float(step))}}, {"n": step}))
    (tmp_path / "step-00000003" / "network.safetensors").write_bytes(b"broken")
    state = load_state(tmp_path)
    assert state and state.values["n"] == 2 and "cannot be read" in caplog.text
    (tmp_path / "step-00000002" / "state.json").write_text("{")
    with pytest.raises(ShoalError, match="no state"):
        load_state(tmp_path)
    assert load_state(tmp_path / "nothing") is None


def test_a_failing_measurement_costs_neither_the_checkpoint_nor_the_stages_after_it(
    tmp_path: Path, monkeypatch
):
    # C77: evaluation ran out of memory before the final save
    recipe = load_recipe(RECIPE, ["--train.tokens", "1500", "--sft.tokens", "1500", "--mtp.tokens", "600"])

    def out_of_memory(*_, **__):
        assert load_state(tmp_path / "state") and weights(tmp_path)  # saved first
        raise MemoryError

    monkeypatch.setattr("shoal.train.run.heldout_bits_per_byte", out_of_memory)
    outcome = train(recipe, tmp_path)
    assert outcome.finished and set(outcome.measures) == {"mtp"}
    assert outcome.failures == [
        f"{s}: measuring held-out data failed (MemoryError)" for s in ("train", "sft")
    ]
    assert weights(tmp_path) and outcome.receipt and len(outcome.receipt.chain()) == 3
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines if line.get("event") == "failed"] == ["train", "sft"]
    page = (tmp_path / "report.html").read_text()
    assert "What failed" in page and page.count("MemoryError") == 2
    monkeypatch.undo()
    again = load_recipe(RECIPE, ["--train.tokens", "1500", "--sft.tokens", "0", "--mtp.tokens", "0"])
    monkeypatch.setattr("shoal.train.run.heldout_bits_per_byte", lambda *_, **__: 1 / 0)
    assert train(again, tmp_path / "one").failures
    monkeypatch.undo()
    outcome = train(again, tmp_path / "one", resume=True)
    assert outcome.measures["train"]["bits_per_byte"] > 0 and not outcome.failures


def test_saving_and_measuring_are_not_counted_as_training(tmp_path: Path, monkeypatch):
    # C95
    words = ["--train.tokens", "2000", "--sft.tokens", "0", "--mtp.tokens", "0", "--run.save_seconds", "0"]

    def slowly(function):
        def slow(*arguments, **named):
            time.sleep(0.5)
            return function(*arguments, **named)

        return slow

    monkeypatch.setattr("shoal.train.stage.save_state", slowly(stage.save_state))
    monkeypatch.setattr("shoal.train.run.heldout_bits_per_byte", slowly(heldout_bits_per_byte))
    steps = []
    count = stage.Stage._count
    monkeypatch.setattr(stage.Stage, "_count", lambda *a: (steps.append(a[2].seconds), count(*a))[1])
    receipt = train(load_recipe(RECIPE, words), tmp_path).receipt
    assert receipt and len(steps) == 4
    assert sum(steps) <= receipt.seconds < sum(steps) + 1.0
    assert receipt.details["saving_seconds"] >= 2.5 and receipt.details["measuring_seconds"] >= 0.5
    page = (tmp_path / "report.html").read_text()
    assert re.search(r"in 0:\d\d of training .*Saving took 0:\d\d more, measuring took 0:\d\d more\.", page)


@pytest.mark.parametrize(("words_of_a_text", "low", "high"), [(24, 0.0, 0.0), (14, 0.3, 0.5)])
def test_padding_is_told_in_log_receipt_and_report(
    tmp_path: Path, words_of_a_text: int, low: float, high: float
):
    # C97: rows of 25 tokens: a text of 24 words fills one, of two texts of 14 the second must wait
    (tmp_path / "texts").mkdir()
    texts = [" ".join(["sea"] * words_of_a_text) for _ in range(200)]
    (tmp_path / "texts" / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = f"--train.source {tmp_path}/texts --train.row_length 25 --train.tokens 1500 --run.eval_tokens 0"
    recipe = load_recipe(RECIPE, [*words.split(), "--sft.tokens", "0", "--mtp.tokens", "0"])
    outcome = train(recipe, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert outcome.receipt
    share = outcome.receipt.details["padding_share"]
    assert low <= share <= high and all(line["padding_share"] == pytest.approx(share) for line in lines)
    assert f"{share:.1%} of the positions were padding" in (tmp_path / "run" / "report.html").read_text()


def test_a_full_disk_is_told_and_leaves_the_state_before(begun: Path, tmp_path: Path):
    # C76; a limit on file sizes is what a program sees of a full disk: the kernel refuses to write on
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    states, limit = sorted(place.name for place in (tmp_path / "state").iterdir()), 40_000
    assert max(f.stat().st_size for f in tmp_path.rglob("*.safetensors")) > limit > 20_000
    done = subprocess.run(
        [sys.executable, "-m", "shoal.cli.main", "train", "--run", str(tmp_path), "--resume"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert "error: cannot write" in done.stderr and "File too large" in done.stderr
    assert "Traceback" not in done.stderr and "what was there before is unchanged" in done.stderr
    assert sorted(place.name for place in (tmp_path / "state").iterdir()) == states
    assert train(load_recipe(RECIPE, ["--train.tokens", "2000"]), tmp_path, resume=True, stop_after=1).folder
    state = load_state(tmp_path / "state")
    assert state and state.values["steps"] == 3


def test_a_folder_that_cannot_be_written_is_told_before_work_starts(tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("in the way")
    with pytest.raises(ShoalError, match="cannot use"):
        train(load_recipe(RECIPE), file)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "state").write_text("in the way")
    with pytest.raises(ShoalError, match="cannot write"):
        train(load_recipe(RECIPE), tmp_path / "run", stop_after=1)


@pytest.mark.skipif(sys.platform == "win32", reason="no owners of folders")
def test_a_folder_of_somebody_else_is_told_before_work_starts():
    with tempfile.TemporaryDirectory() as outer:  # not below tmp_path, which is private
        Path(outer).chmod(0o755)
        folder = Path(outer) / "run"
        folder.mkdir(mode=0o555)
        root = os.geteuid() == 0
        if root:  # root may write anywhere: be nobody for a moment
            os.seteuid(65534)
        try:
            with pytest.raises(ShoalError, match=r"cannot write in .*Permission denied"):
                train(load_recipe(RECIPE), folder)
            with pytest.raises(ShoalError, match=r"cannot use .*Permission denied"):
                train(load_recipe(RECIPE), folder / "deeper")
        finally:
            if root:
                os.seteuid(0)
        assert not list(folder.iterdir())


def test_an_interrupt_saves_first_and_the_folder_admits_one_run(whole: Path, tmp_path: Path):
    command = [sys.executable, "-m", "shoal.cli.main", "train", str(RECIPE), "--run", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    words = ["--run.save_seconds", "1000", "--resume"]
    process = subprocess.Popen([*command, *words], env=environment, stderr=subprocess.PIPE, text=True)
    while "step 4" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGSTOP)  # the run takes seconds: it must not end while we look
    with pytest.raises(ShoalError, match="another process"):
        train(load_recipe(RECIPE), tmp_path)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    errors = process.communicate()[1]
    assert process.returncode == 130 and "stopped after step" in errors and "Traceback" not in errors
    state = load_state(tmp_path / "state")
    assert state and state.values["steps"] >= 4
    assert train(load_recipe(RECIPE), tmp_path, resume=True).finished
    assert same(weights(whole), weights(tmp_path))
