"""Chats in one SQLite file: chats, messages (a tree by `parent_id`), feedback, preferences, the library, search.

Every row has an owner and every query names one: asking for another owner's row finds nothing. Times are seconds
since 1970. Methods block for a millisecond or so and may be called from any thread.
"""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path
from typing import Any

from shoal.serve.database import Database, new_id

FINAL = ("done", "stopped", "error", "length")
"""Statuses of a message that nobody writes to any more."""
UNDO_SECONDS = 24 * 3600.0
"""A deleted chat can be restored for so long; then it is gone."""
_JSON = ("params", "usage", "timings", "cost", "files", "tool_calls")
_COLUMNS = (
    "id, parent_id, role, content, reasoning, status, error, model, params, created_at, thinking_seconds,"
    " reasoning_tokens, usage, timings, cost, files, tool_calls"
)
_CHAT = "id, title, model, created_at, updated_at, pinned, settings"
TEMPORARY = "t"
"""Ids of temporary chats and their messages begin with it; no other id can (they are hexadecimal)."""
_FIELDS = tuple(_COLUMNS.replace(",", " ").split())


class Store(Database):
    """The file `chats.sqlite` in a folder of its own rights (0700); ":memory:" for a store that forgets.

    `temporary` is such a store beside it, for the chats of which nothing is to be kept; `of` tells which one has an id.
    With `serving` the answers that a killed server left are marked as stopped; a command beside a server leaves them.
    """

    def __init__(self, path: str | Path, *, prefix: str = "", serving: bool = True):
        self._prefix = prefix
        self.temporary: Store = self if prefix else Store(":memory:", prefix=TEMPORARY)
        super().__init__(path)
        if not serving:
            return
        with self._transaction() as db:
            db.execute(
                "UPDATE messages SET status = 'stopped', error = 'the server was stopped'"
                " WHERE status NOT IN (?, ?, ?, ?)",
                FINAL,
            )
            self._purge(db)

    def close(self) -> None:
        super().close()
        if self.temporary is not self:
            self.temporary.close()

    def of(self, row_id: str) -> Store:
        """The store that has (or would have) the chat or message of this id."""
        return self.temporary if row_id.startswith(TEMPORARY) else self

    def _purge(self, db: sqlite3.Connection) -> None:
        now = time.time()
        db.execute("DELETE FROM chats WHERE deleted_at < ?", (now - UNDO_SECONDS,))
        if self._prefix:
            db.execute("DELETE FROM chats WHERE updated_at < ?", (now - UNDO_SECONDS,))

    # ---- chats

    def create_chat(
        self,
        owner: str,
        *,
        title: str = "",
        model: str | None = None,
        settings: dict[str, Any] | None = None,
        created_at: float | None = None,
    ) -> dict[str, Any]:
        chat_id, now = new_id(self._prefix), created_at or time.time()
        with self._transaction() as db:
            self._purge(db)
            db.execute(
                "INSERT INTO chats (id, owner, title, model, created_at, updated_at, settings)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (chat_id, owner, title, model, now, now, _dump(settings)),
            )
        found = self.chat(owner, chat_id)
        assert found is not None
        return found

    def chat(self, owner: str, chat_id: str) -> dict[str, Any] | None:
        """The chat without its messages; None when this owner has no such chat (or has deleted it)."""
        rows = self._rows(
            f"SELECT {_CHAT} FROM chats WHERE owner = ? AND id = ? AND deleted_at IS NULL", (owner, chat_id)
        )
        return self._chat(rows[0]) if rows else None

    def _chat(self, row: sqlite3.Row) -> dict[str, Any]:
        chat = {name: row[name] for name in _CHAT.split(", ")}
        settings = json.loads(chat["settings"]) if chat["settings"] else {}
        return chat | {"pinned": bool(chat["pinned"]), "settings": settings, "temporary": bool(self._prefix)}

    def chats(
        self, owner: str, *, query: str = "", before: float | None = None, limit: int = 50
    ) -> list[dict[str, Any]]:
        """The pinned ones, then the newest. With `query`: whose title or text holds all its words, with a snippet."""
        terms = query.split()
        until = before if before is not None else 1e18
        if not terms:
            rows = self._rows(
                f"SELECT {_CHAT} FROM chats WHERE owner = ? AND deleted_at IS NULL AND pinned = ? AND updated_at < ?"
                " ORDER BY updated_at DESC LIMIT ?",
                (owner, 0, until, limit),
            )
            pinned = self._rows(
                f"SELECT {_CHAT} FROM chats WHERE owner = ? AND deleted_at IS NULL AND pinned = 1"
                " ORDER BY updated_at DESC",
                (owner,),
            )
            return [self._chat(row) for row in [*(pinned if before is None else []), *rows]]
        # FTS5's trigrams need three characters; two Japanese ones are a word, so shorter terms read the texts.
        if all(len(term) >= 3 for term in terms):
            match = " AND ".join('"' + term.replace('"', '""') + '"' for term in terms)
            found, found_values = "m.seq IN (SELECT rowid FROM search WHERE search MATCH ?)", [match]
        else:
            found = " AND ".join(r"m.content LIKE ? ESCAPE '\'" for _ in terms)
            found_values = [_like(term) for term in terms]
        columns = ", ".join(f"c.{name}" for name in _CHAT.split(", "))
        titled = " AND ".join(r"c.title LIKE ? ESCAPE '\'" for _ in terms)
        rows = self._rows(
            f"SELECT {columns}, max(m.seq), m.content AS text FROM chats c"
            f" LEFT JOIN messages m ON m.chat_id = c.id AND m.owner = c.owner AND {found}"
            " WHERE c.owner = ? AND c.deleted_at IS NULL AND c.updated_at < ?"
            f" AND (m.seq IS NOT NULL OR ({titled}))"
            " GROUP BY c.seq ORDER BY c.updated_at DESC LIMIT ?",
            (*found_values, owner, until, *(_like(term) for term in terms), limit),
        )
        return [self._chat(row) | {"snippet": _snippet(row["text"], terms[0])} for row in rows]

    def change_chat(self, owner: str, chat_id: str, **fields: Any) -> bool:
        """Write `title`, `pinned` or `settings`; the chat keeps its place in time."""
        if set(fields) - {"title", "pinned", "settings"}:
            raise ValueError(f"not a column that changes: {sorted(fields)}")
        columns = ", ".join(f"{name} = ?" for name in fields)
        values = [_dump(value) if name == "settings" else value for name, value in fields.items()]
        return self._change(
            f"UPDATE chats SET {columns} WHERE owner = ? AND id = ? AND deleted_at IS NULL",
            (*values, owner, chat_id),
        )

    def delete_chat(self, owner: str, chat_id: str) -> bool:
        """Hide a chat; `restore_chat` undoes it for a day. Those hidden longer, and temporary ones, go for good."""
        with self._transaction() as db:
            self._purge(db)
            if self._prefix:
                gone = db.execute("DELETE FROM chats WHERE owner = ? AND id = ?", (owner, chat_id))
                return gone.rowcount > 0
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
        files: list[dict[str, str]] | None = None,
    ) -> dict[str, Any] | None:
        """A new message below `parent_id` (None: a first one). None when the chat or the parent is not there."""
        message_id, now = new_id(self._prefix), time.time()
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
                "INSERT INTO messages (id, owner, chat_id, parent_id, role, content, status, model, params, created_at,"
                " files) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (message_id, owner, chat_id, parent_id, role, content, status, model, _dump(params), now,
                 _dump(files)),
            )  # fmt: skip
            db.execute(
                "UPDATE chats SET updated_at = ?, model = coalesce(?, model) WHERE owner = ? AND id = ?",
                (now, model, owner, chat_id),
            )
        return self.message(owner, chat_id, message_id)

    def import_chat(
        self, owner: str, chat: dict[str, Any], messages: list[dict[str, Any]]
    ) -> dict[str, Any] | None:
        """A chat from elsewhere in one transaction: `messages` name each other by ids of their own, parents first.

        None when a parent is missing. Every row gets a new id, so the same file may be imported twice.
        """
        ids = {message["id"]: new_id() for message in messages}
        seen: set[str | None] = {None}
        for message in messages:
            if message["parent_id"] not in seen:
                return None
            seen.add(message["id"])
        chat_id, now = new_id(), time.time()
        created = chat.get("created_at") or now
        with self._transaction() as db:
            db.execute(
                "INSERT INTO chats (id, owner, title, model, created_at, updated_at, pinned, settings)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (chat_id, owner, chat["title"], chat.get("model"), created, chat.get("updated_at") or created,
                 bool(chat.get("pinned")), _dump(chat.get("settings"))),
            )  # fmt: skip
            for message in messages:
                row = message | {"status": "done", "created_at": message.get("created_at") or created}
                row |= {"id": ids[message["id"]], "parent_id": ids.get(message["parent_id"] or "")}
                names = [name for name in _FIELDS if name in row]
                values = [_dump(row[name]) if name in _JSON else row[name] for name in names]
                db.execute(
                    f"INSERT INTO messages (owner, chat_id, {', '.join(names)})"
                    f" VALUES (?, ?{', ?' * len(names)})",
                    (owner, chat_id, *values),
                )
                if message.get("feedback") or message.get("edited") is not None:
                    db.execute(
                        "INSERT INTO feedback (owner, message_id, value, edited, note, created_at)"
                        " VALUES (?, ?, ?, ?, ?, ?)",
                        (owner, row["id"], message.get("feedback") or 0, message.get("edited"),
                         message.get("note"), now),
                    )  # fmt: skip
        return self.chat(owner, chat_id)

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
            f"SELECT {columns}, f.value AS feedback, f.edited, f.note,"
            " EXISTS (SELECT 1 FROM preferences p WHERE p.chosen_id = m.id AND p.owner = m.owner)"
            " - EXISTS (SELECT 1 FROM preferences p WHERE p.rejected_id = m.id AND p.owner = m.owner) AS preference"
            " FROM messages m"
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

    def add_preference(self, owner: str, chat_id: str, chosen_id: str, rejected_id: str) -> bool:
        """Of two answers to the same question, this one was chosen. A later choice takes the place of the earlier.

        False when they are not two answers to one question.
        """
        with self._transaction() as db:
            parents = db.execute(
                "SELECT m.parent_id FROM messages m JOIN chats c ON c.id = m.chat_id AND c.owner = m.owner"
                " WHERE m.owner = ? AND m.chat_id = ? AND m.id IN (?, ?) AND m.role = 'assistant'"
                " AND c.deleted_at IS NULL",
                (owner, chat_id, chosen_id, rejected_id),
            ).fetchall()
            if len(parents) != 2 or parents[0][0] != parents[1][0]:
                return False
            db.execute(
                "DELETE FROM preferences WHERE owner = ? AND chosen_id IN (?, ?) AND rejected_id IN (?, ?)",
                (owner, chosen_id, rejected_id, chosen_id, rejected_id),
            )
            db.execute(
                "INSERT INTO preferences (owner, chosen_id, rejected_id, created_at) VALUES (?, ?, ?, ?)",
                (owner, chosen_id, rejected_id, time.time()),
            )
            return True

    # ---- the library: prompts and personas

    def library(self, owner: str) -> list[dict[str, Any]]:
        """All entries of an owner by name: {id, kind, name, ...its body}."""
        rows = self._rows(
            "SELECT id, kind, name, body FROM library WHERE owner = ? ORDER BY name, seq", (owner,)
        )
        return [{"id": r["id"], "kind": r["kind"], "name": r["name"], **json.loads(r["body"])} for r in rows]

    def put_entry(
        self, owner: str, entry_id: str | None, *, kind: str, name: str, body: dict[str, Any]
    ) -> str | None:
        """Write an entry; `entry_id` None makes a new one. Its id, or None when there is no such entry."""
        if entry_id is None:
            entry_id = new_id()
            self._change(
                "INSERT INTO library (id, owner, kind, name, body, updated_at) VALUES (?, ?, ?, ?, ?, ?)",
                (entry_id, owner, kind, name, _dump(body), time.time()),
            )
            return entry_id
        changed = self._change(
            "UPDATE library SET name = ?, body = ?, updated_at = ? WHERE owner = ? AND id = ? AND kind = ?",
            (name, _dump(body), time.time(), owner, entry_id, kind),
        )
        return entry_id if changed else None

    def delete_entry(self, owner: str, entry_id: str) -> bool:
        return self._change("DELETE FROM library WHERE owner = ? AND id = ?", (owner, entry_id))


def _message(row: sqlite3.Row) -> dict[str, Any]:
    message = {name: row[name] for name in _FIELDS}
    for name in _JSON:
        message[name] = json.loads(message[name]) if message[name] else None
    message["feedback"] = row["feedback"] or 0
    message["edited"], message["note"] = row["edited"], row["note"]
    message["preference"] = row["preference"]
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
