"""Chats in one SQLite file: chats, messages (a tree by `parent_id`), feedback, full-text search.

Every row has an owner and every query names one: asking for another owner's row finds nothing. Times are seconds
since 1970. Methods block for a millisecond or so and may be called from any thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shoal.errors import ShoalError

FINAL = ("done", "stopped", "error", "length")
"""Statuses of a message that nobody writes to any more."""
UNDO_SECONDS = 24 * 3600.0
"""A deleted chat can be restored for so long; then it is gone."""
_JSON = ("params", "usage", "timings", "cost")
_COLUMNS = (
    "id, parent_id, role, content, reasoning, status, error, model, params, created_at, thinking_seconds,"
    " reasoning_tokens, usage, timings, cost"
)
_FIELDS = tuple(_COLUMNS.replace(",", " ").split())

# One entry a version; a file of an older version runs those it lacks. Never edit an entry, append.
_MIGRATIONS = (
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
)


def new_id() -> str:
    """128 random bits: an id that cannot be guessed."""
    return secrets.token_hex(16)


class Store:
    """The file `chats.sqlite` in a folder of its own rights (0700); ":memory:" for a store that forgets."""

    def __init__(self, path: str | Path):
        self._lock = threading.RLock()
        name = str(path)
        if name != ":memory:":
            folder = Path(name).parent
            try:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                if os.name == "posix" and os.stat(folder).st_uid == os.getuid():
                    os.chmod(folder, 0o700)
            except OSError as error:
                raise ShoalError(f"cannot use the folder {folder}: {error.strerror or error}",
                                 hint="Set SHOAL_HOME to a folder that can be written.") from error  # fmt: skip
        try:
            self._db = sqlite3.connect(name, check_same_thread=False, isolation_level=None, timeout=10)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._db.execute("PRAGMA recursive_triggers = ON")
            if name != ":memory:" and os.name == "posix":
                os.chmod(name, 0o600)
            self._migrate(name)
        except sqlite3.DatabaseError as error:
            raise ShoalError(f"cannot open the chats in {name}: {error}",
                             hint="Move the file away to start with an empty one.") from error  # fmt: skip
        with self._transaction() as db:
            db.execute(
                "UPDATE messages SET status = 'stopped', error = 'the server was stopped'"
                " WHERE status NOT IN (?, ?, ?, ?)",
                FINAL,
            )
            self._purge(db)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _migrate(self, name: str) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > len(_MIGRATIONS):
            raise ShoalError(f"{name} was written by a newer shoal",
                             hint="Update shoal, or set SHOAL_HOME to another folder.")  # fmt: skip
        for number in range(version, len(_MIGRATIONS)):
            self._db.executescript(
                f"BEGIN; {_MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;"
            )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _rows(self, query: str, values: tuple[Any, ...]) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    @staticmethod
    def _purge(db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM chats WHERE deleted_at < ?", (time.time() - UNDO_SECONDS,))

    # ---- chats

    def create_chat(self, owner: str, *, title: str = "", model: str | None = None) -> dict[str, Any]:
        chat_id, now = new_id(), time.time()
        with self._transaction() as db:
            db.execute(
                "INSERT INTO chats (id, owner, title, model, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?)",
                (chat_id, owner, title, model, now, now),
            )
        return {"id": chat_id, "title": title, "model": model, "created_at": now, "updated_at": now}

    def chat(self, owner: str, chat_id: str) -> dict[str, Any] | None:
        """The chat without its messages; None when this owner has no such chat (or has deleted it)."""
        rows = self._rows(
            "SELECT id, title, model, created_at, updated_at FROM chats"
            " WHERE owner = ? AND id = ? AND deleted_at IS NULL",
            (owner, chat_id),
        )
        return dict(rows[0]) if rows else None

    def chats(
        self, owner: str, *, query: str = "", before: float | None = None, limit: int = 50
    ) -> list[dict[str, Any]]:
        """Newest first. With `query`: those whose title or text holds all its words, with a snippet."""
        terms = query.split()
        until = before if before is not None else 1e18
        if not terms:
            rows = self._rows(
                "SELECT id, title, model, created_at, updated_at FROM chats"
                " WHERE owner = ? AND deleted_at IS NULL AND updated_at < ? ORDER BY updated_at DESC LIMIT ?",
                (owner, until, limit),
            )
            return [dict(row) for row in rows]
        # FTS5's trigrams need three characters; two Japanese ones are a word, so shorter terms read the texts.
        if all(len(term) >= 3 for term in terms):
            match = " AND ".join('"' + term.replace('"', '""') + '"' for term in terms)
            found, found_values = "m.seq IN (SELECT rowid FROM search WHERE search MATCH ?)", [match]
        else:
            found = " AND ".join(r"m.content LIKE ? ESCAPE '\'" for _ in terms)
            found_values = [_like(term) for term in terms]
        titled = " AND ".join(r"c.title LIKE ? ESCAPE '\'" for _ in terms)
        rows = self._rows(
            "SELECT c.id, c.title, c.model, c.created_at, c.updated_at, max(m.seq), m.content AS text FROM chats c"
            f" LEFT JOIN messages m ON m.chat_id = c.id AND m.owner = c.owner AND {found}"
            " WHERE c.owner = ? AND c.deleted_at IS NULL AND c.updated_at < ?"
            f" AND (m.seq IS NOT NULL OR ({titled}))"
            " GROUP BY c.seq ORDER BY c.updated_at DESC LIMIT ?",
            (*found_values, owner, until, *(_like(term) for term in terms), limit),
        )
        keys = ("id", "title", "model", "created_at", "updated_at")
        return [
            {key: row[key] for key in keys} | {"snippet": _snippet(row["text"], terms[0])} for row in rows
        ]

    def rename_chat(self, owner: str, chat_id: str, title: str) -> bool:
        return self._change(
            "UPDATE chats SET title = ? WHERE owner = ? AND id = ? AND deleted_at IS NULL",
            (title, owner, chat_id),
        )

    def delete_chat(self, owner: str, chat_id: str) -> bool:
        """Hide a chat; `restore_chat` undoes it for a day. Chats hidden longer are removed for good here."""
        with self._transaction() as db:
            self._purge(db)
            cursor = db.execute(
                "UPDATE chats SET deleted_at = ? WHERE owner = ? AND id = ? AND deleted_at IS NULL",
                (time.time(), owner, chat_id),
            )
            return cursor.rowcount > 0

    def restore_chat(self, owner: str, chat_id: str) -> bool:
        return self._change(
            "UPDATE chats SET deleted_at = NULL WHERE owner = ? AND id = ? AND deleted_at IS NOT NULL",
            (owner, chat_id),
        )

    def _change(self, query: str, values: tuple[Any, ...]) -> bool:
        with self._transaction() as db:
            return db.execute(query, values).rowcount > 0

    # ---- messages

    def add_message(
        self,
        owner: str,
        chat_id: str,
        *,
        parent_id: str | None,
        role: str,
        content: str = "",
        status: str = "done",
        model: str | None = None,
        params: dict[str, Any] | None = None,
    ) -> dict[str, Any] | None:
        """A new message below `parent_id` (None: a first one). None when the chat or the parent is not there."""
        message_id, now = new_id(), time.time()
        with self._transaction() as db:
            known = db.execute(
                "SELECT 1 FROM chats WHERE owner = ? AND id = ? AND deleted_at IS NULL", (owner, chat_id)
            ).fetchone()
            if parent_id is not None and known:
                known = db.execute(
                    "SELECT 1 FROM messages WHERE owner = ? AND chat_id = ? AND id = ?",
                    (owner, chat_id, parent_id),
                ).fetchone()
            if not known:
                return None
            db.execute(
                "INSERT INTO messages (id, owner, chat_id, parent_id, role, content, status, model, params, created_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (message_id, owner, chat_id, parent_id, role, content, status, model, _dump(params), now),
            )
            db.execute(
                "UPDATE chats SET updated_at = ?, model = coalesce(?, model) WHERE owner = ? AND id = ?",
                (now, model, owner, chat_id),
            )
        return self.message(owner, chat_id, message_id)

    def update_message(self, owner: str, message_id: str, **fields: Any) -> bool:
        """Write columns of a message (content, reasoning, status, error, usage, timings, cost, ...)."""
        unknown = set(fields) - set(_FIELDS[3:])
        if unknown:
            raise ValueError(f"not a column that changes: {sorted(unknown)}")
        columns = ", ".join(f"{name} = ?" for name in fields)
        values = [_dump(value) if name in _JSON else value for name, value in fields.items()]
        return self._change(
            f"UPDATE messages SET {columns} WHERE owner = ? AND id = ?", (*values, owner, message_id)
        )

    def message(self, owner: str, chat_id: str, message_id: str) -> dict[str, Any] | None:
        found = self._messages(owner, chat_id, "AND m.id = ?", (message_id,))
        return found[0] if found else None

    def messages(self, owner: str, chat_id: str) -> list[dict[str, Any]]:
        """All messages of a chat, every branch, in the order they were written."""
        return self._messages(owner, chat_id)

    def _messages(
        self, owner: str, chat_id: str, condition: str = "", values: tuple[Any, ...] = ()
    ) -> list[dict[str, Any]]:
        columns = ", ".join(f"m.{name}" for name in _FIELDS)
        rows = self._rows(
            f"SELECT {columns}, f.value AS feedback, f.edited FROM messages m"
            " JOIN chats c ON c.id = m.chat_id AND c.owner = m.owner AND c.deleted_at IS NULL"
            " LEFT JOIN feedback f ON f.seq ="
            " (SELECT max(seq) FROM feedback WHERE message_id = m.id AND owner = m.owner)"
            f" WHERE m.owner = ? AND m.chat_id = ? {condition} ORDER BY m.seq",
            (owner, chat_id, *values),
        )
        return [_message(row) for row in rows]

    def path(self, owner: str, chat_id: str, message_id: str) -> list[dict[str, Any]]:
        """The messages from the first one down to `message_id`."""
        by_id = {message["id"]: message for message in self.messages(owner, chat_id)}
        path: list[dict[str, Any]] = []
        here: str | None = message_id
        while here is not None and here in by_id and len(path) <= len(by_id):
            path.append(by_id[here])
            here = by_id[here]["parent_id"]
        return path[::-1]

    # ---- feedback

    def add_feedback(
        self, owner: str, chat_id: str, message_id: str, value: int, *, edited: str | None, note: str | None
    ) -> bool:
        """A new row, the older ones stay: what people thought, and when. False when there is no such message."""
        with self._transaction() as db:
            known = db.execute(
                "SELECT 1 FROM messages m JOIN chats c ON c.id = m.chat_id AND c.owner = m.owner"
                " WHERE m.owner = ? AND m.chat_id = ? AND m.id = ? AND c.deleted_at IS NULL",
                (owner, chat_id, message_id),
            ).fetchone()
            if known:
                db.execute(
                    "INSERT INTO feedback (owner, message_id, value, edited, note, created_at)"
                    " VALUES (?, ?, ?, ?, ?, ?)",
                    (owner, message_id, value, edited, note, time.time()),
                )
            return bool(known)


def _message(row: sqlite3.Row) -> dict[str, Any]:
    message = {name: row[name] for name in _FIELDS}
    for name in _JSON:
        message[name] = json.loads(message[name]) if message[name] else None
    message["feedback"] = row["feedback"] or 0
    message["edited"] = row["edited"]
    return message


def _dump(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)


def _like(term: str) -> str:
    escaped = term.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


def _snippet(text: str | None, term: str, width: int = 40) -> str:
    """The surroundings of the first place where `term` stands; "" when only the title matched."""
    if not text:
        return ""
    at = max(text.lower().find(term.lower()), 0)
    start, end = max(at - width, 0), at + len(term) + width
    return ("…" if start else "") + " ".join(text[start:end].split()) + ("…" if end < len(text) else "")
