"""Atomic writes: what was there stays until the new thing is whole; reading text says what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shoal.errors import ShoalError
from shoal.files import atomic_folder, atomic_write, atomic_write_text, read_text, shoal_home


def test_home_follows_the_environment(home: Path) -> None:
    assert shoal_home() == home


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    atomic_write_text(target, "old")
    with pytest.raises(RuntimeError), atomic_write(target) as file:
        file.write(b"half")
        raise RuntimeError
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_a_failed_folder_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with atomic_folder(target) as folder:
        (folder / "x").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(target) as folder:
        (folder / "x").write_text("half")
        raise RuntimeError
    assert (target / "x").read_text() == "old" and list(tmp_path.iterdir()) == [target]
    with atomic_folder(target) as folder:
        (folder / "y").write_text("new")
    assert sorted(p.name for p in target.iterdir()) == ["y"] and list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limit to stand in for a full disk")
def test_a_full_disk_is_a_clear_error_and_changes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    code = f"""
import resource, signal, sys
from shoal.files import atomic_write
from shoal.errors import ShoalError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with atomic_write({str(target)!r}) as file:
        file.write(bytes(100_000))
except ShoalError as error:
    sys.exit(str(error))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "cannot write" in done.stderr and "Traceback" not in done.stderr
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]


def test_reading_text(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes("\ufeff日本".encode())
    assert read_text(path) == "日本"
    path.write_bytes("日本".encode("shift_jis"))
    with pytest.raises(ShoalError, match="not UTF-8"):
        read_text(path)
    path.write_bytes("日本".encode("utf-16"))
    with pytest.raises(ShoalError, match="UTF-16"):
        read_text(path)
    with pytest.raises(ShoalError, match="cannot read"):
        read_text(tmp_path / "absent")
