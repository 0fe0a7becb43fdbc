"""Users, their sessions and API keys, what each has used, and the audit log, in the chats' file.

Accounts are on as soon as there is a user; the first one is an admin. Secrets are never stored: passwords as scrypt
hashes, keys and session cookies (192 and 256 random bits) as SHA-256 digests.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import re
import secrets
import sqlite3
import threading
import time
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from shoal.errors import ShoalError
from shoal.serve.database import Database, new_id
from shoal.serve.settings import LOCAL_OWNER, hash_key

SESSION_SECONDS = 30 * 86_400.0
"""A sign-in ends after so long, whatever happens,"""
IDLE_SECONDS = 7 * 86_400.0
"""and when it was not used for so long."""
AUDIT_SECONDS = 365 * 86_400.0
"""Audit entries are kept for a year."""
MIN_PASSWORD = 10
KEYS_PER_USER = 100
KEY_PREFIX = "sk-shoal-"
_SCRYPT = (15, 8, 3)  # log2 N, r, p: 32 MiB, OWASP's password storage cheat sheet
_NAME = re.compile(r"[\w.@-]{1,64}")
_OWNED = ("chats", "messages", "feedback", "preferences", "library", "usage")
"""Tables whose rows belong to an owner and outlive his sessions."""


@dataclass(frozen=True)
class User:
    id: str
    name: str
    admin: bool
    created_at: float = 0.0


@dataclass(frozen=True)
class Limits:
    """Of a user or a key; None: no limit. `used_today`: tokens of prompts and answers since 00:00 UTC."""

    tokens_a_day: int | None
    parallel: int | None
    used_today: int


def hash_password(password: str) -> str:
    """`scrypt$log2 N$r$p$salt$hash`; about a quarter of a second and 32 MiB."""
    salt = secrets.token_bytes(16)
    return "$".join(["scrypt", *map(str, _SCRYPT), _text(salt), _text(_scrypt(password, salt, *_SCRYPT))])


def password_fits(password: str, stored: str) -> bool:
    """In constant time; false for a hash of a form that is not known."""
    kind, *fields = stored.split("$")
    if kind != "scrypt" or len(fields) != 5:
        return False
    log_n, r, p = (int(field) for field in fields[:3])
    salt, wanted = (base64.b64decode(field) for field in fields[3:])
    return hmac.compare_digest(_scrypt(password, salt, log_n, r, p), wanted)


def _scrypt(password: str, salt: bytes, log_n: int, r: int, p: int) -> bytes:
    data = unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")
    memory = 128 * r * (2**log_n + p) + (1 << 20)
    return hashlib.scrypt(data, salt=salt, n=2**log_n, r=r, p=p, dklen=32, maxmem=memory)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def checked_password(password: str) -> str:
    if not MIN_PASSWORD <= len(password) <= 1000:
        raise ShoalError(f"a password has {MIN_PASSWORD} to 1,000 characters",
                         hint="Several words that do not belong together are good.")  # fmt: skip
    return password


def made_password() -> str:
    """Five groups of four letters and digits that are not taken for each other: 98 random bits."""
    letters = "abcdefghjkmnpqrstuvwxyz23456789"
    return "-".join("".join(secrets.choice(letters) for _ in range(4)) for _ in range(5))


def user_name(given: str) -> str:
    """The one spelling of a name: letters of any script, digits and . _ - @, in small letters. Raises ShoalError."""
    name = unicodedata.normalize("NFKC", given).casefold()
    if not _NAME.fullmatch(name) or name == LOCAL_OWNER:
        raise ShoalError("a name has 1 to 64 letters, digits or . _ - @, without spaces; 'local' is taken")
    return name


class Accounts(Database):
    """Methods block for a millisecond or so (those with a password longer) and may be called from any thread.

    Reads have a connection of their own and wait for no write, so the door may ask from the event loop.
    """

    _nobody = ""  # a hash to compare with when there is no such user, so that both take the same time

    def __init__(self, path: str | Path):
        super().__init__(path)
        self._reader, self._reading = self._db, self._lock
        if self.place != ":memory:":
            self._reader, self._reading = self._connected(), threading.RLock()
            self._reader.execute("PRAGMA query_only = ON")

    def close(self) -> None:
        with self._reading:
            self._reader.close()
        super().close()

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[sqlite3.Row]:
        with self._reading:
            return self._reader.execute(query, values).fetchall()

    @property
    def on(self) -> bool:
        """Whether people sign in here: whether there is a user."""
        return bool(self._rows("SELECT EXISTS (SELECT 1 FROM users)")[0][0])

    # ---- users

    def users(self) -> list[dict[str, Any]]:
        rows = self._rows(
            "SELECT u.id, u.name, u.admin, u.created_at, u.tokens_a_day, u.parallel,"
            " (SELECT count(*) FROM keys k WHERE k.owner = u.id) AS keys,"
            " (SELECT max(used_at) FROM sessions s WHERE s.owner = u.id) AS seen_at,"
            " coalesce((SELECT sum(prompt_tokens + completion_tokens) FROM usage WHERE day = ? AND owner = u.id), 0)"
            " AS used_today FROM users u ORDER BY u.name",
            (today(),),
        )
        return [dict(row) | {"admin": bool(row["admin"])} for row in rows]

    def find(self, name: str) -> User:
        """Raises ShoalError when there is no user of this name."""
        rows = self._rows("SELECT id, name, admin, created_at FROM users WHERE name = ?", (user_name(name),))
        if not rows:
            raise ShoalError(f"there is no user {name}", hint="shoal users list shows them.")
        return _user(rows[0])

    def user(self, user_id: str) -> User | None:
        rows = self._rows("SELECT id, name, admin, created_at FROM users WHERE id = ?", (user_id,))
        return _user(rows[0]) if rows else None

    def add_user(self, name: str, password: str, *, admin: bool) -> User:
        """The first user must be an admin; he gets what the machine's own owner wrote before there were users."""
        user = User(new_id(), user_name(name), admin, time.time())
        hashed = hash_password(checked_password(password))
        with self._transaction() as db:
            first = not db.execute("SELECT 1 FROM users").fetchone()
            if first and not admin:
                raise ShoalError("the first user has to be the admin",
                                 hint=f"shoal users add {user.name} --admin: from then on people sign in.")  # fmt: skip
            try:
                db.execute(
                    "INSERT INTO users (id, name, password, admin, created_at) VALUES (?, ?, ?, ?, ?)",
                    (user.id, user.name, hashed, admin, user.created_at),
                )
            except sqlite3.IntegrityError:
                raise ShoalError(f"there is a user {user.name} already") from None
            if first:
                _hand_over(db, LOCAL_OWNER, user.id)
        return user

    def remove_user(self, user_id: str) -> None:
        """With all he wrote, his keys and sessions; what he used stays in the books. The last user's chats become the
        machine's own again, and nobody signs in any more. Raises ShoalError for the last admin of several users."""
        with self._transaction() as db:
            others = db.execute("SELECT count(*) FROM users WHERE id != ?", (user_id,)).fetchone()[0]
            if others:
                _keep_an_admin(db, user_id)
                for table in ("chats", "library"):
                    db.execute(f"DELETE FROM {table} WHERE owner = ?", (user_id,))
            else:
                _hand_over(db, user_id, LOCAL_OWNER)
            db.execute("DELETE FROM sessions WHERE owner = ?", (user_id,))
            db.execute("DELETE FROM users WHERE id = ?", (user_id,))

    def set_admin(self, user_id: str, admin: bool) -> bool:
        with self._transaction() as db:
            if not admin:
                _keep_an_admin(db, user_id)
            return db.execute("UPDATE users SET admin = ? WHERE id = ?", (admin, user_id)).rowcount > 0

    def set_limits(self, user_id: str, limits: Mapping[str, int | None]) -> None:
        """Any of `tokens_a_day` and `parallel`, for all that the user does together; None: no limit."""
        with self._transaction() as db:
            for name in limits.keys() & {"tokens_a_day", "parallel"}:
                db.execute(f"UPDATE users SET {name} = ? WHERE id = ?", (limits[name], user_id))

    def set_password(self, user_id: str, password: str, *, keep: bytes | None = None) -> bool:
        """All sessions of the user end, but for the one whose digest is `keep`."""
        hashed = hash_password(checked_password(password))
        with self._transaction() as db:
            db.execute("DELETE FROM sessions WHERE owner = ? AND digest IS NOT ?", (user_id, keep))
            return db.execute("UPDATE users SET password = ? WHERE id = ?", (hashed, user_id)).rowcount > 0

    def check_password(self, name: str, password: str) -> User | None:
        """The user, or None; which of the two was wrong cannot be told, by the time neither."""
        try:
            spelt = user_name(name)
        except ShoalError:
            spelt = ""
        rows = self._rows("SELECT id, name, admin, created_at, password FROM users WHERE name = ?", (spelt,))
        if not rows:
            Accounts._nobody = Accounts._nobody or hash_password("nobody at all")
        fits = password_fits(password, rows[0]["password"] if rows else Accounts._nobody)
        return _user(rows[0]) if rows and fits else None

    # ---- sessions

    def open_session(self, owner: str) -> str:
        """The cookie's value; only its digest is kept."""
        token, now = secrets.token_urlsafe(32), time.time()
        with self._transaction() as db:
            db.execute(
                "DELETE FROM sessions WHERE opened_at < ? OR used_at < ?",
                (now - SESSION_SECONDS, now - IDLE_SECONDS),
            )
            db.execute(
                "INSERT INTO sessions (digest, owner, opened_at, used_at) VALUES (?, ?, ?, ?)",
                (hash_key(token), owner, now, now),
            )
        return token

    def session_owner(self, token: str) -> tuple[bytes, str, bool] | None:
        """(digest, owner, whether `touch` is due) of a session that is still good."""
        digest, now = hash_key(token), time.time()
        rows = self._rows(
            "SELECT digest, owner, opened_at, used_at FROM sessions WHERE digest = ?", (digest,)
        )
        if not rows or not hmac.compare_digest(rows[0]["digest"], digest):
            return None
        opened, used = rows[0]["opened_at"], rows[0]["used_at"]
        if now - opened > SESSION_SECONDS or now - used > IDLE_SECONDS:
            return None
        return digest, rows[0]["owner"], now - used > 600

    def touch(self, digest: bytes) -> None:
        self._change("UPDATE sessions SET used_at = ? WHERE digest = ?", (time.time(), digest))

    def close_session(self, digest: bytes) -> None:
        self._change("DELETE FROM sessions WHERE digest = ?", (digest,))

    def close_foreign_sessions(self) -> None:
        """End the sessions that belong to no user: those opened with an operator's key, which may be another now."""
        with self._transaction() as db:
            db.execute("DELETE FROM sessions WHERE owner NOT IN (SELECT id FROM users)")
            db.execute("DELETE FROM audit WHERE at < ?", (time.time() - AUDIT_SECONDS,))

    # ---- keys

    def add_key(
        self, owner: str, name: str, *, tokens_a_day: int | None = None, parallel: int | None = None
    ) -> tuple[str, str]:
        """(id, the key itself, which nobody can see again)."""
        key, key_id = KEY_PREFIX + secrets.token_urlsafe(24), new_id()
        with self._transaction() as db:
            if (
                db.execute("SELECT count(*) FROM keys WHERE owner = ?", (owner,)).fetchone()[0]
                >= KEYS_PER_USER
            ):
                raise ShoalError(f"{KEYS_PER_USER} keys are enough for one user", hint="Revoke one first.")
            db.execute(
                "INSERT INTO keys (id, digest, owner, name, created_at, tokens_a_day, parallel)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (key_id, hash_key(key), owner, name, time.time(), tokens_a_day, parallel),
            )
        return key_id, key

    def keys(self, owner: str) -> list[dict[str, Any]]:
        """Those of a user, the newest first, with what each has used today."""
        rows = self._rows(
            "SELECT k.id, k.name, k.created_at, k.used_at, k.tokens_a_day, k.parallel, coalesce((SELECT"
            " sum(prompt_tokens + completion_tokens) FROM usage WHERE key_id = k.id AND day = ?), 0) AS used_today"
            " FROM keys k WHERE k.owner = ? ORDER BY k.created_at DESC",
            (today(), owner),
        )
        return [dict(row) for row in rows]

    def revoke_key(self, owner: str, key_id: str) -> bool:
        return self._change("DELETE FROM keys WHERE owner = ? AND id = ?", (owner, key_id))

    def key_owner(self, key: str) -> tuple[str, User] | None:
        """(id of the key, its user)."""
        digest = hash_key(key)
        rows = self._rows(
            "SELECT k.id AS key_id, k.digest, u.id, u.name, u.admin, u.created_at FROM keys k"
            " JOIN users u ON u.id = k.owner WHERE k.digest = ?",
            (digest,),
        )
        if not rows or not hmac.compare_digest(rows[0]["digest"], digest):
            return None
        return rows[0]["key_id"], _user(rows[0])

    def key_limits(self, key_id: str) -> Limits | None:
        """None when the key is gone."""
        return self._limits("keys", "key_id", key_id)

    def user_limits(self, user_id: str) -> Limits | None:
        """None when there is no such user."""
        return self._limits("users", "owner", user_id)

    def _limits(self, table: str, column: str, row_id: str) -> Limits | None:
        rows = self._rows(
            "SELECT tokens_a_day, parallel, coalesce((SELECT sum(prompt_tokens + completion_tokens) FROM usage"
            f" WHERE {column} = ? AND day = ?), 0) AS used_today FROM {table} WHERE id = ?",
            (row_id, today(), row_id),
        )
        return Limits(**dict(rows[0])) if rows else None

    # ---- what was used

    def add_usage(
        self,
        owner: str,
        key_id: str,
        model: str,
        prompt_tokens: int,
        completion_tokens: int,
        bill: dict[str, Any],
    ) -> None:
        """One answer. `bill`: seconds, joules and usd of its receipt; one without a price is counted as such."""
        usd, joules = bill["usd"], bill["joules"]
        with self._transaction() as db:
            db.execute(
                "INSERT INTO usage VALUES (?, ?, ?, ?, 1, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
                " answers = answers + 1, prompt_tokens = prompt_tokens + excluded.prompt_tokens,"
                " completion_tokens = completion_tokens + excluded.completion_tokens,"
                " seconds = seconds + excluded.seconds, joules = joules + excluded.joules, usd = usd + excluded.usd,"
                " unpriced = unpriced + excluded.unpriced",
                (today(), owner, key_id, model, prompt_tokens, completion_tokens, bill["seconds"], joules or 0.0,
                 usd or 0.0, usd is None),
            )  # fmt: skip
            if key_id:
                db.execute("UPDATE keys SET used_at = ? WHERE id = ?", (time.time(), key_id))

    def usage(self, *, owner: str | None = None, days: int = 30, by: str = "day") -> list[dict[str, Any]]:
        """Sums of the last `days` days, today included, by "day", "model" or "user" (of everybody, or of one owner)."""
        first = (datetime.now(UTC) - timedelta(days=days - 1)).strftime("%Y-%m-%d")
        column = {"day": "g.day", "model": "g.model", "user": "coalesce(u.name, '')"}[by]
        rows = self._rows(
            f"SELECT {column} AS name, sum(answers) AS answers, sum(prompt_tokens) AS prompt_tokens,"
            " sum(completion_tokens) AS completion_tokens, sum(seconds) AS seconds, sum(joules) AS joules,"
            " sum(usd) AS usd, sum(unpriced) AS unpriced FROM usage g LEFT JOIN users u ON u.id = g.owner"
            f" WHERE g.day >= ? AND (? IS NULL OR g.owner = ?) GROUP BY {column} ORDER BY {column}",
            (first, owner, owner),
        )
        return [dict(row) for row in rows]

    # ---- the audit log

    def add_audit(
        self, action: str, target: str = "", *, owner: str = "", name: str = "", address: str = ""
    ) -> None:
        self._change(
            "INSERT INTO audit (at, owner, name, action, target, address) VALUES (?, ?, ?, ?, ?, ?)",
            (time.time(), owner, name[:64], action, target[:200], address),
        )

    def audit(self, *, before: int | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """The newest first: who (his name then), what, when, from where. Never what was written."""
        rows = self._rows(
            "SELECT seq, at, name, action, target, address FROM audit WHERE seq < ? ORDER BY seq DESC LIMIT ?",
            (before if before is not None else 2**62, limit),
        )
        return [dict(row) for row in rows]


def users_in(place: Path) -> bool:
    """Whether people sign in on a server with this file; the file is not made if it is not there."""
    if not place.is_file():
        return False
    with contextlib.closing(Accounts(place)) as accounts:
        return accounts.on


def today() -> str:
    """UTC, as 2026-11-26."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


def _user(row: sqlite3.Row) -> User:
    return User(row["id"], row["name"], bool(row["admin"]), row["created_at"])


def _keep_an_admin(db: sqlite3.Connection, user_id: str) -> None:
    if not db.execute("SELECT 1 FROM users WHERE admin AND id != ?", (user_id,)).fetchone():
        raise ShoalError(
            "there has to be an admin", hint="Make another user one first: shoal users admin NAME"
        )


def _hand_over(db: sqlite3.Connection, old: str, new: str) -> None:
    for table in _OWNED:
        db.execute(f"UPDATE OR IGNORE {table} SET owner = ? WHERE owner = ?", (new, old))
