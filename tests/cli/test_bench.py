"""`shoal bench` on a tiny model."""

from __future__ import annotations

import json
import sys

import pytest

from shoal.cli import main
from shoal.ops import probe as probing
from shoal.ops.probe import Probe

PEAK = Probe("a machine", 1, {"float32": 1e11}, 1e10, "2026-01-01T00:00:00Z")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["shoal", "bench", *arguments])
    monkeypatch.setattr(probing, "measure", lambda *about: PEAK)
    try:
        main.run()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_probe_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "probe") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("a machine") and "100.0 GFLOP/s" in lines[1] and "10.0 GB/s" in lines[2]
    assert run(monkeypatch, "probe", "--json") == 0
    assert json.loads(capsys.readouterr().out)["machine"]["read_bytes_per_second"] == 1e10


def test_unknown_parts_are_wrong_use(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "engines") == 2
    assert "'engines'" in capsys.readouterr().err
