"""The file over the years and on bad days: every older schema, two openers at once, a full disk, backups."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from shoal.errors import ShoalError
from shoal.serve.accounts import Accounts
from shoal.serve.backup import KEPT, back_up, restore
from shoal.serve.database import MIGRATIONS, Database, DiskFull, schema_version
from shoal.serve.store import Store

SCHEMAS = {int(path.stem): path for path in (Path(__file__).parent / "schemas").glob("*.sql")}


def schema(db: sqlite3.Connection) -> dict[str, str]:
    """Every table, index and trigger in one spelling; columns added later come last, with or without a line break."""
    rows = db.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    return {row[0]: " ".join(re.sub(r"--[^\n]*", "", row[1]).split()) for row in rows}


def old_file(place: Path, version: int) -> None:
    db = sqlite3.connect(place)
    db.executescript(SCHEMAS[version].read_text(encoding="utf-8"))
    db.close()


def all_rows(place: Path) -> dict[str, list[dict[str, Any]]]:
    """What is in each table, as stored, in the order it came."""
    with contextlib.closing(sqlite3.connect(place)) as db:
        db.row_factory = sqlite3.Row
        names = [row["name"] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {
            name: [dict(row) for row in db.execute(f"SELECT * FROM {name}")]
            for name in names
            if not name.startswith(("search", "sqlite_"))
        }


def test_every_released_version_has_its_schema_here() -> None:
    """A version that gets a successor has been frozen before."""
    assert sorted(SCHEMAS) in (list(range(1, len(MIGRATIONS))), list(range(1, len(MIGRATIONS) + 1)))


@pytest.mark.parametrize("version", sorted(SCHEMAS))
def test_a_migration_keeps_every_value(version: int, tmp_path: Path) -> None:
    place = tmp_path / "chats.sqlite"
    old_file(place, version)
    then = all_rows(place)
    assert version < 4 or all(then.values()), "a table without a row tests nothing"
    Database(place).close()
    now = all_rows(place)
    kept = {
        table: [{column: row[column] for column in old} for old, row in zip(rows, now[table], strict=True)]
        for table, rows in then.items()
    }
    assert kept == then


@pytest.mark.parametrize("version", sorted(SCHEMAS))
def test_a_migration_is_never_edited(version: int, tmp_path: Path) -> None:
    """What the migrations make is what servers of that version had."""
    old_file(tmp_path / "then.sqlite", version)
    then, now = sqlite3.connect(tmp_path / "then.sqlite"), sqlite3.connect(":memory:")
    for number in range(version):
        now.executescript(MIGRATIONS[number])
    assert schema(then) == schema(now)
    then.close()
    now.close()


@pytest.mark.parametrize("version", sorted(SCHEMAS))
def test_an_old_file_is_brought_up_to_date_with_all_that_is_in_it(version: int, tmp_path: Path) -> None:
    place = tmp_path / "chats.sqlite"
    old_file(place, version)
    store, fresh = Store(place), Database(tmp_path / "fresh.sqlite")
    assert schema_version(store._db) == len(MIGRATIONS)
    assert schema(store._db) == schema(fresh._db)
    (chat,) = store.chats("local", query="何艘")
    assert (chat["title"], chat["pinned"]) == ("Boats", version >= 2)
    question, answer = store.messages("local", "c1")[:2]
    assert (answer["content"], answer["reasoning"], answer["feedback"]) == ("Three boats.", "I count.", -1)
    assert (answer["parent_id"], answer["edited"], answer["usage"]) == (
        question["id"],
        "Four boats.",
        {"prompt_tokens": 3},
    )
    assert bool(store.library("local")) == (version >= 2)
    store._db.execute("INSERT INTO search (search) VALUES ('integrity-check')")
    assert store._db.execute("PRAGMA foreign_key_check").fetchall() == []
    accounts = Accounts(place)
    assert [user["name"] for user in accounts.users()] == (["ann"] if version >= 3 else [])
    if version >= 4:
        assert store.messages("local", "c1")[3]["tool_calls"][0]["result"] == "four"
        assert (accounts.keys("u1")[0]["parallel"], accounts.audit()[0]["action"]) == (2, "key_made")
    for each in (store, fresh, accounts):
        each.close()


def test_a_migration_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "chats.sqlite"
    old_file(place, 1)
    broken = (MIGRATIONS[0], "CREATE TABLE half (a); INSERT INTO nowhere VALUES (1);")
    with monkeypatch.context() as patch:
        patch.setattr("shoal.serve.database.MIGRATIONS", broken)
        with pytest.raises(ShoalError, match="nowhere"):
            Database(place)
    db = sqlite3.connect(place)
    assert schema_version(db) == 1 and "half" not in schema(db)
    db.close()
    Store(place).close()


def test_many_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    faults: list[BaseException] = []

    def open_it() -> None:
        try:
            for _ in range(5):
                Database(tmp_path / "chats.sqlite").close()
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


def test_wal_and_what_a_writer_lets_others_do(tmp_path: Path) -> None:
    store, accounts = Store(tmp_path / "chats.sqlite"), Accounts(tmp_path / "chats.sqlite")
    assert accounts._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    with store._transaction() as db:
        db.execute("INSERT INTO chats (id, owner, created_at, updated_at) VALUES ('c', 'a', 1, 1)")
        assert accounts.on is False  # answers while the other writes
    store.close()
    accounts.close()


def test_a_full_disk_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    """SQLite itself refuses (SQLITE_FULL); what was there stays, what comes after works."""
    store = Store(tmp_path / "chats.sqlite")
    chat = store.create_chat("a", title="kept")["id"]
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DiskFull, match="disk is full"):
        store.add_message("a", chat, parent_id=None, role="user", content="x" * 1_000_000)
    assert store.chats("a")[0]["title"] == "kept" and store.messages("a", chat) == []
    with pytest.raises(RuntimeError), store._transaction():
        raise RuntimeError("something else")
    store._db.execute("PRAGMA max_page_count = 100000")
    assert store.add_message("a", chat, parent_id=None, role="user", content="x" * 1_000_000)
    store.close()


# ---- backup and restore


def filled(place: Path, title: str) -> Store:
    store = Store(place)
    chat = store.create_chat("local", title=title)["id"]
    store.add_message("local", chat, parent_id=None, role="user", content=title)
    return store


def titles(place: Path) -> list[str]:
    store = Store(place)
    found = [chat["title"] for chat in store.chats("local")]
    store.close()
    return found


def test_a_backup_beside_a_running_server_and_its_way_back(tmp_path: Path) -> None:
    place, copy = tmp_path / "home" / "chats.sqlite", tmp_path / "away" / "copy.sqlite"
    store = filled(place, "first")
    made = back_up(place, copy)
    assert (made["chats"], made["messages"], made["users"]) == (1, 1, 0)
    assert sorted(path.name for path in copy.parent.iterdir()) == ["copy.sqlite"], "one file"
    if os.name == "posix":
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    with pytest.raises(ShoalError, match="exists"):
        back_up(place, copy)
    store.create_chat("local", title="second")
    before = copy.read_bytes()
    with pytest.raises(ShoalError, match="in use"):
        restore(copy, place)
    store.close()
    assert set(titles(place)) == {"first", "second"}
    done = restore(copy, place)
    assert titles(place) == ["first"] and copy.read_bytes() == before
    if os.name == "posix":
        assert stat.S_IMODE(Path(done["kept"]).stat().st_mode) == 0o600
    assert set(titles(Path(done["kept"]))) == {"first", "second"} and KEPT in done["kept"]
    assert back_up(place, copy, force=True)["chats"] == 1
    with pytest.raises(ShoalError, match="exists"):
        back_up(place, place, force=True)


def test_restore_signs_everybody_out(tmp_path: Path) -> None:
    place, copy = tmp_path / "chats.sqlite", tmp_path / "copy.sqlite"
    accounts = Accounts(place)
    ann = accounts.add_user("ann", "four odd words here", admin=True)
    token, (_, key) = accounts.open_session(ann.id), accounts.add_key(ann.id, "k")
    back_up(place, copy)
    assert accounts.on
    with pytest.raises(ShoalError, match="in use"):
        restore(copy, place)
    accounts.close()
    restore(copy, place)
    accounts = Accounts(place)
    assert accounts.session_owner(token) is None and accounts.key_owner(key) and accounts.on
    accounts.close()


@pytest.mark.parametrize("what", ["absent", "text", "other", "newer", "cut", "empty", "overwritten"])
def test_what_cannot_be_restored_changes_nothing(tmp_path: Path, what: str) -> None:
    place, bad = tmp_path / "chats.sqlite", tmp_path / "bad.sqlite"
    filled(place, "kept").close()
    if what == "text":
        bad.write_text("no database " * 100)
    elif what == "empty":
        bad.write_bytes(b"")
    elif what in ("other", "newer"):
        db = sqlite3.connect(bad)
        db.executescript("CREATE TABLE t (a); PRAGMA user_version = 2;" if what == "other" else
                         "CREATE TABLE chats (a); CREATE TABLE messages (a); PRAGMA user_version = 999;")  # fmt: skip
        db.close()
    elif what in ("cut", "overwritten"):
        store = filled(tmp_path / "whole.sqlite", "x" * 200_000)
        store.close()
        back_up(tmp_path / "whole.sqlite", bad)
        whole, middle = bad.read_bytes(), bad.stat().st_size // 2 // 4096 * 4096
        rest = b"\xff" * 4096 + whole[middle + 4096 :] if what == "overwritten" else b""
        bad.write_bytes(whole[:middle] + rest)
    with pytest.raises(
        ShoalError, match={"absent": "no file", "newer": "newer"}.get(what, "no file of chats|damaged")
    ):
        restore(bad, place)
    assert titles(place) == ["kept"]
    assert not list(tmp_path.glob(f"*{KEPT}*"))


def test_a_backup_takes_the_place_of_a_damaged_file(tmp_path: Path) -> None:
    place, copy = tmp_path / "home" / "chats.sqlite", tmp_path / "copy.sqlite"
    filled(place, "good").close()
    back_up(place, copy)
    place.write_bytes(b"damaged" * 1000)
    done = restore(copy, place)
    assert titles(place) == ["good"] and Path(done["kept"]).read_bytes() == b"damaged" * 1000


def test_an_old_backup_comes_back_with_todays_schema(tmp_path: Path) -> None:
    old_file(tmp_path / "old.sqlite", 1)
    restore(tmp_path / "old.sqlite", tmp_path / "new" / "chats.sqlite")
    with contextlib.closing(sqlite3.connect(tmp_path / "new" / "chats.sqlite")) as db:
        assert schema_version(db) == len(MIGRATIONS)
    assert titles(tmp_path / "new" / "chats.sqlite") == ["Boats"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_restore_that_is_killed_leaves_what_was_there(tmp_path: Path) -> None:
    """Killed by the kernel in the middle of its writing: at the first byte beyond a megabyte of any file."""
    place, copy = tmp_path / "chats.sqlite", tmp_path / "copy.sqlite"
    filled(tmp_path / "other.sqlite", "new " + "n" * 3_000_000).close()
    back_up(tmp_path / "other.sqlite", copy)
    filled(place, "old").close()
    code = """
import resource, signal, sys
from pathlib import Path
from shoal.serve.backup import restore
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
restore(Path(sys.argv[1]), Path(sys.argv[2]))
"""
    killed = subprocess.run([sys.executable, "-c", code, str(copy), str(place)])
    assert killed.returncode == -signal.SIGXFSZ
    assert titles(place) == ["old"]
