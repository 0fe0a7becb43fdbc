"""This machine's own row: arithmetic of carrying it over, plans with it, receipts beside it; once, the measuring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.cost import calibration, hardware, runs
from shoal.cost.calibration import Calibration, Decoding, load_calibration, two_costs
from shoal.cost.receipt import Receipt
from shoal.cost.replay import beside_receipts
from shoal.errors import ShoalError
from shoal.model import counts
from shoal.ops.probe import cpu_name

DENSE = runs.known_model("smollm2-135m")  # width 576


@pytest.fixture(autouse=True)
def fresh_catalogue() -> None:
    hardware.catalogue.cache_clear()


def sample(**over: Any) -> Calibration:
    values: dict[str, Any] = {
        "device": cpu_name(), "threads": 2, "measured_at": "2026-11-26T20:00:00Z",
        "peak": {"float32": 1e11, "bfloat16": 4e11}, "read_bytes_per_second": 1e10, "memory_bytes": 16e9,
        "training_dtype": "bfloat16", "training": {"moe": [(128.0, 0.1), (256.0, 0.2)], "dense": [(256.0, 0.25)]},
        "decoding": [Decoding("int8", (1e-4, 1e-10), (2e-4, 2e-10), widest=1e6)], "reads": [(1e8, 2e10)],
    }  # fmt: skip
    return Calibration(**(values | over))


def test_it_survives_its_file(home: Path) -> None:
    assert load_calibration() is None
    with pytest.raises(ShoalError, match="calibrate"):
        calibration.here()
    sample().save()
    assert load_calibration() == sample()
    (home / "calibration.json").write_text('{"device": 3}')
    with pytest.raises(ShoalError, match="damaged"):
        load_calibration()


def test_utilisation_follows_the_width() -> None:
    one = sample(training={"moe": [(128.0, 0.1), (512.0, 0.4)], "dense": [(256.0, 0.25)]})
    nano_like = runs.known_model("deepseek-v2-lite")
    assert one.utilisation(DENSE, 512) == 0.25  # one reference: taken as it is
    assert one.utilisation(nano_like, 512) == 0.4  # beyond the widest: the widest
    import dataclasses

    between = dataclasses.replace(nano_like, hidden_size=256)
    assert one.utilisation(between, 512) == pytest.approx(0.2)  # the power law's middle
    work = 4096 * counts.flops_per_token(DENSE, 512, training=True)
    assert one.step_seconds(DENSE, 512, 4096) == pytest.approx(work / (4e11 * 0.25))


def test_two_networks_tell_two_costs() -> None:
    layer, weight = 1e-4, 2e-11
    small, wide = ((n, w, n * layer + w * weight) for n, w in ((6.0, 5e6), (8.0, 6e7)))
    assert two_costs(small, wide) == pytest.approx((layer, weight))
    assert min(two_costs((6.0, 5e6, 1e-3), (8.0, 6e7, 1e-4))) >= 0  # noise never gives a negative cost
    with pytest.raises(ShoalError, match="alike"):
        two_costs((1.0, 1.0, 1.0), (2.0, 2.0, 2.0))


def test_an_answer_is_predicted_by_layers_and_weights() -> None:
    one = Decoding("int8", dense=(1e-4, 1e-10), moe=(2e-4, 2e-10))
    assert one.step_seconds(DENSE) == pytest.approx(30 * 1e-4 + counts.matrices_active(DENSE) * 1e-10)
    nano = runs.known_model("shoal-nano")
    assert one.step_seconds(nano) == pytest.approx(8 * 2e-4 + counts.matrices_active(nano) * 2e-10)


def test_weights_beyond_the_caches_are_read_from_memory() -> None:
    size = counts.matrices_active(DENSE) * 1.125  # bytes, in 8 bits
    cached, beyond = [(size + 1, 1e12)], [(size - 1, 1e12)]
    fast = sample(reads=cached, read_bytes_per_second=1e9).one_reader_seconds(DENSE, 8)
    slow = sample(reads=beyond, read_bytes_per_second=1e9).one_reader_seconds(DENSE, 8)
    assert fast == pytest.approx(30 * 1e-4 + counts.matrices_active(DENSE) * 1e-10)
    assert slow == pytest.approx(30 * 1e-4 + size / 1e9)
    wide = [
        Decoding("int8", (1e-4, 1e-10), (2e-4, 2e-10), widest=1e12)
    ]  # no wider than a reference: as measured
    assert sample(reads=beyond, read_bytes_per_second=1e9, decoding=wide).one_reader_seconds(DENSE, 8) == fast


def test_a_plan_for_here_uses_it() -> None:
    arguments = [
        "cost",
        "plan",
        "smollm2-135m",
        "--tokens",
        "1M",
        "--sequence",
        "512",
        "--device",
        "here",
        "--json",
    ]
    assert CliRunner().invoke(app, arguments).exit_code == 1  # not measured yet
    sample().save()
    values = json.loads(CliRunner().invoke(app, arguments).stdout)
    seconds = 1e6 * counts.flops_per_token(DENSE, 512, training=True) / (4e11 * 0.25)
    assert values["hours"] * 3600 == pytest.approx(seconds) and "measured" in values["utilisation"]["class"]
    assert values["price"]["basis"] == "electricity" and values["price"]["watts"] == 20.0


def test_a_service_here_answers_one_reader_as_measured() -> None:
    sample().save()
    arguments = [
        "cost",
        "plan",
        "smollm2-135m",
        "--kind",
        "serve",
        "--prompts",
        "100",
        "--device",
        "here",
        "--bits",
        "8",
    ]
    found = json.loads(CliRunner().invoke(app, [*arguments, "--speed", "1", "--json"]).stdout)["serving"]
    step = 30 * 1e-4 + counts.matrices_active(DENSE) * 1.125 / 1e10  # longer than its 1e-10 s a weight
    assert found["one_reader_tokens_per_second"] == pytest.approx(1 / step)
    assert found["tokens_per_second"] > 1 / step  # several at once share the weights that are read


def test_a_receipt_is_set_beside_its_plan() -> None:
    flops = 1e6 * counts.flops_per_token(DENSE, 512, training=True)
    receipt = Receipt("train", "2026-11-26T00:00:00Z", cpu_name(), 100.0, 10**6, flops, joules=1000.0, usd=0.5,
                      price_basis="rent", peak_flops_per_second=4e11)  # fmt: skip
    sample().save()
    parts = beside_receipts(receipt, DENSE)[0]["parts"]
    assert parts["FLOPs"] == pytest.approx((flops, flops))
    seconds = flops / (4e11 * 0.25)
    assert parts["seconds"] == pytest.approx((100.0, seconds))
    assert parts["USD"] == pytest.approx((0.5, 0.5 * seconds / 100)) and parts["joules"][1] == pytest.approx(
        10 * seconds
    )


def test_the_receipts_of_nano_beside_their_plan() -> None:
    """The planner's FLOPs and the meter's agree: tokens times the same counts, rows of about the same length."""
    result = CliRunner().invoke(app, ["cost", "validate", "nano", "--json"])
    rows = json.loads(result.stdout)["rows"]
    own = [row for row in rows if row["kind"] in ("train", "sft", "mtp")]
    assert {row["kind"] for row in own} == {"train", "sft", "mtp"}
    for row in own:
        real, planned = row["parts"]["FLOPs"]
        assert planned == pytest.approx(real, rel=0.1)


@pytest.mark.slow
def test_measuring_this_machine(home: Path) -> None:
    result = CliRunner().invoke(app, ["cost", "calibrate", "--device", "cpu", "--seconds", "3", "--json"])
    values = json.loads(result.stdout.splitlines()[-1])
    assert (
        values["peak"]["float32"] > 1e8 and set(values["training"]) == {"moe", "dense"} and values["decoding"]
    )
    assert load_calibration() is not None
