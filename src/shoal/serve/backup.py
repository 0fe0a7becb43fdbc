"""A copy of the chats' file while a server runs, and putting such a copy back."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shoal.errors import ShoalError
from shoal.serve.database import MIGRATIONS, Database, DiskFull, is_full, schema_version

KEPT = "before-restore"


def back_up(place: Path, target: Path, *, force: bool = False) -> dict[str, Any]:
    """Write all of `place` as one file that appears whole or not at all; a server may go on meanwhile. Raises
    ShoalError."""
    if not place.is_file():
        raise ShoalError(f"there is nothing to back up yet ({place})")
    if target.exists() and (not force or not target.is_file() or target.samefile(place)):
        raise ShoalError(f"{target} exists", hint="Choose another name, or replace a file with --force.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(
            prefix=f".{target.name}.", suffix=".tmp", dir=target.parent
        )  # 0600
        os.close(descriptor)
    except OSError as error:
        raise ShoalError(f"cannot write {target}: {error.strerror or error}") from error
    try:
        with _opened(place) as source, _opened(Path(name)) as copy:
            source.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, without a -wal beside it
            facts = _facts(copy, place)
        with open(name, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(name, target)
    except (sqlite3.Error, OSError) as error:
        raise _failed(target, error) from error
    finally:
        for rest in (name, f"{name}-journal"):
            with contextlib.suppress(OSError):
                os.unlink(rest)
    return facts | {"path": str(target), "bytes": target.stat().st_size}


def restore(source: Path, place: Path) -> dict[str, Any]:
    """Put a backup in the place of `place`, all or nothing; what was there is kept beside it. Everybody is signed out;
    passwords, keys and limits are those of the backup. Raises ShoalError while anything has `place` open, for a file
    that is damaged, no backup, or from a newer shoal."""
    if not source.is_file():
        raise ShoalError(f"there is no file {source}")
    kept = None
    try:
        with _opened(source, read_only=True) as backup:
            facts = _facts(backup, source)
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with contextlib.ExitStack() as stack:
                target = stack.enter_context(_opened(place))
                if _is_sound(target):
                    _hold(target, place)
                    if target.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                        kept = _free_name(place)
                        back_up_of(target, kept)
                else:  # damaged: moved aside with what lies beside it
                    stack.close()
                    kept = _free_name(place)
                    for ending in ("-wal", "-shm", ""):
                        with contextlib.suppress(FileNotFoundError):
                            os.replace(f"{place}{ending}", f"{kept}{ending}")
                    target = stack.enter_context(_opened(place))
                    _hold(target, place)
                backup.backup(target)  # one transaction of the target: a kill leaves what was there
                if schema_version(target) >= 3:
                    target.execute("DELETE FROM sessions")
    except (sqlite3.Error, OSError) as error:
        raise _failed(place, error) from error
    Database(place).close()  # brings an older schema up to date, and its rights to 0600
    return facts | {"path": str(place), "kept": str(kept) if kept else None}


def back_up_of(db: sqlite3.Connection, target: Path) -> None:
    with _opened(target) as copy:
        db.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")
    if os.name == "posix":
        os.chmod(target, 0o600)


@contextlib.contextmanager
def _opened(path: Path, *, read_only: bool = False) -> Iterator[sqlite3.Connection]:
    uri = f"{path.resolve().as_uri()}?mode={'ro' if read_only else 'rwc'}"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=2)
    try:
        yield db
    finally:
        db.close()


def _facts(db: sqlite3.Connection, path: Path) -> dict[str, Any]:
    """What is in a file of chats; raises ShoalError when it is none that can be used."""
    try:
        version = schema_version(db)
        tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        sound = db.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
    except sqlite3.DatabaseError as error:
        raise ShoalError(f"{path} is damaged, or no file of chats: {error}") from error
    if not {"chats", "messages"} <= tables or not 1 <= version:
        raise ShoalError(f"{path} is no file of chats")
    if version > len(MIGRATIONS):
        raise ShoalError(f"{path} was written by a newer shoal", hint="Update shoal first.")
    if not sound:
        raise ShoalError(f"{path} is damaged", hint="Take another backup.")
    count = {name: db.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in ("chats", "messages")}
    users = db.execute("SELECT count(*) FROM users").fetchone()[0] if "users" in tables else 0
    return {"schema": version, **count, "users": users}


def _is_sound(db: sqlite3.Connection) -> bool:
    try:
        return bool(db.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok")
    except sqlite3.OperationalError:  # it is locked, say
        raise
    except sqlite3.DatabaseError:
        return False


def _hold(db: sqlite3.Connection, place: Path) -> None:
    """Take the file for this connection alone. Every connection of a running server holds a WAL file, so leaving that
    mode is refused as long as there is one; in exclusive mode none can begin."""
    try:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        mode = db.execute("PRAGMA journal_mode = DELETE").fetchone()[0]
        db.execute("BEGIN EXCLUSIVE")
        db.execute("COMMIT")
    except sqlite3.OperationalError:
        mode = ""
    if mode != "delete":
        raise ShoalError(f"{place} is in use", hint="Stop the server (and other shoal commands) first.")


def _free_name(place: Path) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    names = (
        place.with_name(f"{place.stem}-{KEPT}-{stamp}{end}{place.suffix}")
        for end in ("", *map("-{}".format, range(99)))
    )
    return next(name for name in names if not name.exists())


def _failed(path: Path, error: Exception) -> ShoalError:
    if is_full(error):
        return DiskFull()
    return ShoalError(f"cannot write {path}: {error}", hint="What was there before is unchanged.")
