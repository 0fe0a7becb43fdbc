"""The SQLite file of a server: how it is opened, its schema by version, transactions, and what a full disk means.

Chats (`store.py`) have one connection to the file, accounts (`accounts.py`) one that writes and one that reads, so that
neither a long search nor a long write holds up a sign-in. Times are seconds since 1970.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shoal.errors import ShoalError

# One entry a version; a file of an older version runs those it lacks. Never edit an entry, append.
MIGRATIONS = (
    """
    CREATE TABLE chats (
        seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, title TEXT NOT NULL DEFAULT '',
        model TEXT, created_at REAL NOT NULL, updated_at REAL NOT NULL, deleted_at REAL
    );
    CREATE INDEX chats_by_owner ON chats (owner, updated_at);
    CREATE TABLE messages (
        seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL,
        chat_id TEXT NOT NULL REFERENCES chats (id) ON DELETE CASCADE,
        parent_id TEXT REFERENCES messages (id) ON DELETE CASCADE,
        role TEXT NOT NULL, content TEXT NOT NULL DEFAULT '', reasoning TEXT NOT NULL DEFAULT '',
        status TEXT NOT NULL, error TEXT, model TEXT, params TEXT, created_at REAL NOT NULL,
        thinking_seconds REAL, reasoning_tokens INTEGER, usage TEXT, timings TEXT, cost TEXT
    );
    CREATE INDEX messages_by_chat ON messages (chat_id, seq);
    CREATE INDEX messages_by_parent ON messages (parent_id);
    CREATE TABLE feedback (
        seq INTEGER PRIMARY KEY, owner TEXT NOT NULL,
        message_id TEXT NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
        value INTEGER NOT NULL, edited TEXT, note TEXT, created_at REAL NOT NULL
    );
    CREATE INDEX feedback_by_message ON feedback (message_id, seq);
    -- The trigram index finds parts of words in any script from three characters on. It follows the messages
    -- whose text is final, so a growing answer is not indexed again and again.
    CREATE VIRTUAL TABLE search USING fts5 (content, content='messages', content_rowid='seq', tokenize='trigram');
    CREATE TRIGGER search_insert AFTER INSERT ON messages
        WHEN new.status IN ('done', 'stopped', 'error', 'length')
        BEGIN INSERT INTO search (rowid, content) VALUES (new.seq, new.content); END;
    CREATE TRIGGER search_final AFTER UPDATE OF status ON messages
        WHEN old.status NOT IN ('done', 'stopped', 'error', 'length')
            AND new.status IN ('done', 'stopped', 'error', 'length')
        BEGIN INSERT INTO search (rowid, content) VALUES (new.seq, new.content); END;
    CREATE TRIGGER search_delete AFTER DELETE ON messages
        WHEN old.status IN ('done', 'stopped', 'error', 'length')
        BEGIN INSERT INTO search (search, rowid, content) VALUES ('delete', old.seq, old.content); END;
    """,
    """
    ALTER TABLE chats ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE chats ADD COLUMN settings TEXT; -- JSON: system, persona, parameters
    ALTER TABLE messages ADD COLUMN files TEXT; -- JSON: [{name, text}], what was attached to a question
    CREATE TABLE preferences (
        seq INTEGER PRIMARY KEY, owner TEXT NOT NULL,
        chosen_id TEXT NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
        rejected_id TEXT NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
        created_at REAL NOT NULL
    );
    CREATE INDEX preferences_by_chosen ON preferences (chosen_id);
    CREATE INDEX preferences_by_rejected ON preferences (rejected_id);
    CREATE TABLE library (
        seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, kind TEXT NOT NULL,
        name TEXT NOT NULL, body TEXT NOT NULL, updated_at REAL NOT NULL
    );
    CREATE INDEX library_by_owner ON library (owner, kind, name);
    -- An answer that is continued leaves the index until it is final again.
    CREATE TRIGGER search_reopened AFTER UPDATE OF status ON messages
        WHEN old.status IN ('done', 'stopped', 'error', 'length')
            AND new.status NOT IN ('done', 'stopped', 'error', 'length')
        BEGIN INSERT INTO search (search, rowid, content) VALUES ('delete', old.seq, old.content); END;
    """,
    """
    -- An owner is the id of a user, or 'local' where there are no users.
    CREATE TABLE users (
        id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, password TEXT NOT NULL, admin INTEGER NOT NULL,
        created_at REAL NOT NULL
    );
    CREATE TABLE sessions (
        digest BLOB PRIMARY KEY, owner TEXT NOT NULL, opened_at REAL NOT NULL, used_at REAL NOT NULL
    );
    CREATE TABLE keys (
        id TEXT PRIMARY KEY, digest BLOB NOT NULL UNIQUE,
        owner TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
        name TEXT NOT NULL, created_at REAL NOT NULL, used_at REAL,
        tokens_a_day INTEGER, parallel INTEGER -- limits; NULL: none
    );
    CREATE INDEX keys_by_owner ON keys (owner);
    CREATE TABLE usage (
        day TEXT NOT NULL, owner TEXT NOT NULL, key_id TEXT NOT NULL, model TEXT NOT NULL,
        answers INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
        seconds REAL NOT NULL, joules REAL NOT NULL, usd REAL NOT NULL, unpriced INTEGER NOT NULL,
        PRIMARY KEY (day, owner, key_id, model)
    );
    CREATE INDEX usage_by_key ON usage (key_id, day);
    CREATE TABLE audit (
        seq INTEGER PRIMARY KEY, at REAL NOT NULL, owner TEXT NOT NULL, name TEXT NOT NULL,
        action TEXT NOT NULL, target TEXT NOT NULL, address TEXT NOT NULL
    );
    """,
    """
    -- JSON: [{id, name, arguments, result}], what an answer calls; `result` once a person has given it
    ALTER TABLE messages ADD COLUMN tool_calls TEXT;
    """,
    """
    -- Limits of all that a user does; NULL: none
    ALTER TABLE users ADD COLUMN tokens_a_day INTEGER;
    ALTER TABLE users ADD COLUMN parallel INTEGER;
    """,
)


def new_id(prefix: str = "") -> str:
    """128 random bits: an id that cannot be guessed."""
    return prefix + secrets.token_hex(16)


class DiskFull(ShoalError):
    """What was to be written is not; what was there before is unchanged."""

    def __init__(self) -> None:
        super().__init__("the disk is full: this could not be stored", hint="Make some room, then try again.")


class Database:
    """One connection to the file, in a folder of its own rights (0700); ":memory:" for a database that forgets.

    In WAL mode: readers and the one writer do not wait for each other. May be used from any thread.
    """

    def __init__(self, path: str | Path):
        self._lock = threading.RLock()
        self.place = str(path)
        if self.place != ":memory:":
            _make_folder(Path(self.place).parent)
        try:
            self._db = self._connected()
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._db.execute("PRAGMA recursive_triggers = ON")
            if self.place != ":memory:" and os.name == "posix":
                os.chmod(self.place, 0o600)
            self._migrate()
        except sqlite3.DatabaseError as error:
            if is_full(error):
                raise DiskFull from error
            raise ShoalError(f"cannot open the chats in {path}: {error}",
                             hint="Move the file away to start with an empty one, or take a backup: shoal restore FILE"
                             ) from error  # fmt: skip

    def _connected(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.place, check_same_thread=False, isolation_level=None, timeout=10)
        db.row_factory = sqlite3.Row
        return db

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _migrate(self) -> None:
        """Bring the schema up to date, each version in a transaction of its own."""
        while (version := schema_version(self._db)) != len(MIGRATIONS):
            if version > len(MIGRATIONS):
                raise ShoalError(f"{self.place} was written by a newer shoal",
                                 hint="Update shoal, or set SHOAL_HOME to another folder.")  # fmt: skip
            script = f"BEGIN IMMEDIATE; {MIGRATIONS[version]} PRAGMA user_version = {version + 1}; COMMIT;"
            try:
                self._db.executescript(script)
            except sqlite3.DatabaseError:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                if schema_version(self._db) == version:  # else another process has just done it
                    raise

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block or nothing of it. Raises DiskFull."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except BaseException as error:
                if self._db.in_transaction:  # SQLite itself rolls back for some errors
                    self._db.execute("ROLLBACK")
                if is_full(error):
                    raise DiskFull from error
                raise

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def _change(self, query: str, values: tuple[Any, ...]) -> bool:
        with self._transaction() as db:
            return db.execute(query, values).rowcount > 0


def schema_version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def is_full(error: BaseException) -> bool:
    return (
        isinstance(error, sqlite3.Error)
        and getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.name == "posix" and os.stat(folder).st_uid == os.getuid():
            os.chmod(folder, 0o700)
    except OSError as error:
        raise ShoalError(f"cannot use the folder {folder}: {error.strerror or error}",
                         hint="Set SHOAL_HOME to a folder that can be written.") from error  # fmt: skip
