"""Where files go, and writing them so that a kill or a full disk leaves the old ones as they were."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from shoal.errors import ShoalError


def shoal_home() -> Path:
    """The folder for the user's data: `$SHOAL_HOME`, else the platform's data folder. It is not created here."""
    if value := os.environ.get("SHOAL_HOME"):
        return Path(value).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "shoal"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "shoal"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "shoal"


def _sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable (not possible, and not needed, on Windows)."""
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _failed(path: Path, error: OSError) -> ShoalError:
    return ShoalError(
        f"cannot write {path}: {error.strerror or error}",
        hint="Free some space or choose another place; what was there before is unchanged.",
    )


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that appears at `path` only when the block ends without an error.

    Written beside it, flushed to the disk, then renamed over it (`os.replace`). Raises ShoalError when the disk
    refuses; the old file then stays as it was.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise _failed(path, error) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp makes private files; this one is as public as any other
        os.replace(name, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(name)
        if isinstance(error, OSError):
            raise _failed(path, error) from error
        raise


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text by `atomic_write`."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A new folder that takes the place of `path` only when the block ends without an error.

    The old folder is moved aside, not deleted, until the new one stands; a leftover of a killed run (a hidden
    sibling) is harmless. Raises ShoalError when the disk refuses.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    except OSError as error:
        raise _failed(path, error) from error
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o777 & ~umask)
        old = path.with_name(f".{path.name}.old-{os.getpid()}")
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(temporary, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise
        _sync_folder(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise _failed(path, error) from error
        raise


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, a byte-order mark at its start allowed. Raises ShoalError naming what is wrong."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ShoalError(f"cannot read {path}: {error.strerror or error}", hint="Check the path.") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "not UTF-8"
        raise ShoalError(
            f"{path} is {kind} (byte {error.start} is 0x{data[error.start]:02x})",
            hint=f"Save it as UTF-8, for example: iconv -f SHIFT_JIS -t UTF-8 {path.name} > new.txt",
        ) from error
