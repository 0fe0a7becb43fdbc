"""Receipts, prices and meters: arithmetic by hand, chains, honest unknowns."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import pytest

from shoal.cost import hardware
from shoal.cost.energy import Estimate, Rapl, energy_meter
from shoal.cost.meter import Meter, answer_cost, price_of
from shoal.cost.receipt import Receipt, summary
from shoal.errors import ShoalError
from shoal.ops import probe as probing


@pytest.fixture(autouse=True)
def fresh_catalogue() -> None:
    hardware.catalogue.cache_clear()


def receipt(**over: object) -> Receipt:
    base: dict[str, object] = dict(
        kind="train", started_at="2026-11-25T00:00:00Z", device="x", seconds=10.0, tokens=5, flops=2e12
    )
    return Receipt(**(base | over))  # type: ignore[arg-type]


def test_rent_is_hours_times_rate() -> None:
    h100 = hardware.catalogue().find("NVIDIA H100 80GB HBM3", "gpu")
    assert h100 is not None and h100.usd_per_hour is not None
    price = price_of(h100, seconds=7200.0, joules=1.0, devices=4)
    assert (
        price.usd == pytest.approx(h100.usd_per_hour * 8)
        and price.basis == "rent"
        and price.date == h100.date
    )


def test_electricity_is_kilowatt_hours_times_rate() -> None:
    price = price_of(hardware.catalogue().find("AMD EPYC"), seconds=1.0, joules=7.2e6)
    assert price.usd == pytest.approx(2 * hardware.catalogue().usd_per_kwh) and price.basis == "electricity"


def test_an_unknown_gpu_has_no_invented_price() -> None:
    """C95: unknown hardware is "unknown", never a guess."""
    assert hardware.catalogue().find("Some Chip 9000", "gpu") is None
    assert price_of(None, 10.0, None).usd is None
    assert "price unknown" in summary(receipt())


def test_the_users_own_prices_win(home: Path) -> None:
    (home / "hardware.toml").write_text('[h100]\nusd_per_hour = 1.0\ndate = "2026-12-01"\n')
    h100 = hardware.catalogue().find("nvidia h100", "gpu")
    assert h100 is not None and h100.usd_per_hour == 1.0 and h100.watts == 700.0


def test_a_broken_price_file_is_named(home: Path) -> None:
    (home / "hardware.toml").write_text("[h100\n")
    with pytest.raises(ShoalError, match="not valid TOML"):
        hardware.catalogue()


def test_every_price_has_a_date_and_a_source() -> None:
    for device in hardware.catalogue().devices:
        assert device.source, device.key
        assert (device.usd_per_hour is None) or device.date, device.key


def test_meter_leaves_out_what_is_stopped_and_goes_on_after_resume() -> None:
    meter = Meter("train")
    with meter:
        time.sleep(0.05)
    stopped = meter.seconds
    time.sleep(0.05)
    assert meter.seconds == stopped >= 0.05
    meter.add(tokens=7, flops=3.0)
    resumed = Meter(**meter.state())
    assert (resumed.tokens, resumed.flops, resumed.seconds) == (7, 3.0, stopped)
    bill = resumed.receipt(peak_flops_per_second=1e9)
    assert bill.energy_source in ("estimated", "rapl") and bill.usd is not None
    assert bill.utilisation == pytest.approx(3.0 / (stopped * 1e9))


def test_utilisation_is_of_all_processes_and_doubted_above_one() -> None:
    """C95: two ranks share the work of two peaks; more than 100% is flagged, not shown as a feat."""
    two = receipt(flops=10e9, seconds=10.0, processes=2, peak_flops_per_second=1e9)
    assert two.utilisation == pytest.approx(0.5) and "bench probe" not in summary(two)
    assert "bench probe" in summary(dataclasses.replace(two, flops=30e9))


def test_energy_counts_every_process() -> None:
    one, two = (
        Meter("train", seconds_before=5.0, joules_before=7.0),
        Meter("train", processes=2, joules_before=7.0),
    )
    if one.receipt().energy_source == "estimated":
        assert one.joules == 7.0 and two.joules == 14.0


def test_receipts_chain_and_survive_json() -> None:
    chained = receipt(usd=2.0, joules=4.0, parent=receipt(kind="pretrain", usd=1.0, joules=1.0))
    again = Receipt.from_dict(json.loads(json.dumps(chained.to_dict())))
    assert again == chained and again.to_dict()["id"] == chained.to_dict()["id"]
    assert again.total_usd == 3.0 and again.total_joules == 5.0 and len(again.chain()) == 2
    assert dataclasses.replace(chained, tokens=6).to_dict()["id"] != chained.to_dict()["id"]


def test_a_chain_with_an_unknown_link_has_no_total() -> None:
    assert receipt(usd=2.0, parent=receipt(usd=None)).total_usd is None


@pytest.mark.parametrize("nonsense", [[], "x", {"kind": "train"}, {"parent": 3}])
def test_a_damaged_receipt_is_an_error_for_people(nonsense: object) -> None:
    with pytest.raises(ShoalError):
        Receipt.from_dict(nonsense)


def test_rapl_reads_differences_and_wraps(tmp_path: Path) -> None:
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "max_energy_range_uj").write_text("999999\n")
    (zone / "energy_uj").write_text("900000\n")
    meter = Rapl(tmp_path)
    (zone / "energy_uj").write_text("100000\n")
    assert meter.joules() == pytest.approx(0.2)
    with pytest.raises(OSError):
        Rapl(tmp_path / "none")


def test_the_estimate_grows_with_busy_time() -> None:
    meter = Estimate(10.0)
    before, start = meter.joules(), time.process_time()
    while time.process_time() - start < 0.1:
        sum(range(1000))
    assert meter.joules() - before == pytest.approx(1.0, rel=0.5)
    assert energy_meter("mps", 3.0).source == "estimated"


def test_answer_cost_is_watts_times_busy_seconds() -> None:
    cost = answer_cost(3600.0, 1e12, 10, cores=2.0)
    entry = hardware.catalogue().find("anything")
    assert entry is not None and cost["joules"] == pytest.approx(entry.watts * 2 * 3600)
    assert cost["usd"] == pytest.approx(cost["joules"] / 3.6e6 * hardware.catalogue().usd_per_kwh)
    assert cost["device"] and cost["utilisation"] is None  # nothing was measured in this home yet


def test_an_answer_is_held_against_a_peak_that_was_measured_before() -> None:
    peak = max(probing.probe().gemm_flops_per_second.values())
    assert answer_cost(2.0, peak, 1)["utilisation"] == pytest.approx(0.5)
