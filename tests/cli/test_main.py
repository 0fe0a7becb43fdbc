"""What all commands share: exit codes, errors without a traceback, a closed pipe."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

import shoal

COMMAND = [sys.executable, "-m", "shoal.cli.main"]


def test_version() -> None:
    done = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == f"shoal {shoal.__version__}"


def test_wrong_use_is_2_and_failure_is_1(tmp_path: Path) -> None:
    wrong = subprocess.run([*COMMAND, "info", "--no-such-option"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr
    failed = subprocess.run(
        [*COMMAND, "info", str(tmp_path / "nothing-here")], capture_output=True, text=True
    )
    assert failed.returncode == 1 and failed.stderr.startswith("error: ") and "Traceback" not in failed.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes of this kind")
def test_a_closed_pipe_is_no_error() -> None:
    process = subprocess.Popen(
        [*COMMAND, "data", "microworld", "-n", "20000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout and process.stderr
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(60) == 0 and "Traceback" not in errors and "Broken" not in errors


def test_no_test_can_reach_beyond_loopback() -> None:
    """The guard in conftest bites (192.0.2.1 is reserved for documents and answers nobody)."""
    with socket.socket() as client:
        for reach in (client.connect, client.connect_ex):
            with pytest.raises(AssertionError, match="tried to reach"):
                reach(("192.0.2.1", 80))
