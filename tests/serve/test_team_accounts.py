"""The books of a team, asked directly: who may do how much, what is counted for whom, and what is kept how long."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from tests.apart import run_apart
from tests.serve.conftest import running, wait_for
from tests.serve.test_tls import no_models

from shoal.errors import ShoalError
from shoal.serve import account_api
from shoal.serve import accounts as accounts_module
from shoal.serve.account_api import MAX_WAITING, AccountApi, Attempts
from shoal.serve.accounts import AUDIT_SECONDS, Accounts, User
from shoal.serve.app import create_app
from shoal.serve.caller import Caller
from shoal.serve.errors import ApiError
from shoal.serve.ledger import Ledger
from shoal.serve.settings import ServerSettings
from shoal.serve.store import Store

PASSWORD = "four odd words here"
PAGE = {"sec-fetch-site": "same-origin"}
BILL = {"seconds": 0.5, "joules": 2.0, "usd": 0.25}


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts_module, "_SCRYPT", (4, 8, 1))


@pytest.fixture
def accounts(tmp_path: Path) -> Iterator[Accounts]:
    opened = Accounts(tmp_path / "chats.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def ledger(accounts: Accounts) -> Iterator[Ledger]:
    made = Ledger(accounts)
    yield made
    made.close()


@pytest.fixture
def ann(accounts: Accounts) -> User:
    return accounts.add_user("ann", PASSWORD, admin=True)


# ---- users, sessions and keys


def test_the_first_user_gets_all_that_was_there_and_one_who_goes_leaves_only_his_bill(tmp_path: Path) -> None:
    place = tmp_path / "chats.sqlite"
    store, accounts = Store(place), Accounts(place)
    store.put_entry("local", None, kind="prompt", name="mine", body={"text": "t"})
    accounts.add_usage("local", "", "nano", 2, 3, BILL)
    ann, bob = (accounts.add_user(name, PASSWORD, admin=True) for name in ("ann", "bob"))
    assert len(store.library(ann.id)) == 1 and accounts.usage(owner=ann.id)[0]["answers"] == 1
    store.put_entry(bob.id, None, kind="prompt", name="his", body={"text": "t"})
    accounts.add_usage(bob.id, "", "nano", 2, 3, BILL)
    accounts.remove_user(bob.id)
    assert store.library(bob.id) == [] and len(store.library(ann.id)) == 1
    assert [(row["name"], row["answers"]) for row in accounts.usage(by="user")] == [("", 1), ("ann", 1)]
    accounts.close()
    store.close()


def test_an_unknown_name_costs_a_hash_like_a_known_one(
    accounts: Accounts, ann: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    scrypt = accounts_module._scrypt

    def counted(password: str, *settings: bytes | int) -> bytes:
        hashed.append(password)
        return scrypt(password, *settings)  # type: ignore[arg-type]

    accounts.check_password("nobody", PASSWORD)  # makes the hash that unknown names are compared with
    monkeypatch.setattr(accounts_module, "_scrypt", counted)
    assert (
        accounts.check_password("ann", "not hers") is None and accounts.check_password("eve", "hers") is None
    )
    assert hashed == ["not hers", "hers"]


def test_sessions_of_nobody_and_old_entries_of_the_log_go_when_a_server_starts(
    accounts: Accounts, ann: User
) -> None:
    anns, others = accounts.open_session(ann.id), accounts.open_session("local")
    accounts.add_audit("old")
    accounts._db.execute("UPDATE audit SET at = at - ?", (AUDIT_SECONDS + 1,))
    accounts.add_audit("new")
    accounts.close_foreign_sessions()
    assert accounts.session_owner(anns) and accounts.session_owner(others) is None
    assert [entry["action"] for entry in accounts.audit()] == ["new"]


def test_a_user_has_only_so_many_keys(accounts: Accounts, ann: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts_module, "KEYS_PER_USER", 2)
    bob = accounts.add_user("bob", PASSWORD, admin=False)
    first, _ = accounts.add_key(ann.id, "one")
    accounts.add_key(ann.id, "two")
    with pytest.raises(ShoalError, match="2 keys are enough"):
        accounts.add_key(ann.id, "three")
    accounts.add_key(bob.id, "one")
    assert accounts.revoke_key(ann.id, first) and accounts.add_key(ann.id, "three")


# ---- what was used


def test_usage_adds_up(accounts: Accounts, ann: User, monkeypatch: pytest.MonkeyPatch) -> None:
    key_id, _ = accounts.add_key(ann.id, "a script")
    assert accounts.keys(ann.id)[0]["used_at"] is None
    accounts.add_usage(ann.id, key_id, "nano", 2, 3, BILL)
    accounts.add_usage(ann.id, key_id, "nano", 20, 30, BILL | {"usd": None, "joules": None})
    accounts.add_usage(ann.id, "", "tiny", 1, 1, BILL)
    assert accounts.usage(owner=ann.id, by="model")[0] == {
        "name": "nano", "answers": 2, "prompt_tokens": 22, "completion_tokens": 33, "seconds": 1.0, "joules": 2.0,
        "usd": 0.25, "unpriced": 1}  # fmt: skip
    key = accounts.keys(ann.id)[0]
    assert key["used_today"] == 55 and abs(key["used_at"] - time.time()) < 60
    assert accounts.users()[0]["used_today"] == 57
    yesterday = (datetime.now(UTC) - timedelta(days=1)).strftime("%Y-%m-%d")
    monkeypatch.setattr(accounts_module, "today", lambda: yesterday)
    accounts.add_usage(ann.id, "", "nano", 1, 1, BILL)
    assert [len(accounts.usage(days=days)) for days in (1, 2)] == [1, 2]


def test_tokens_count_before_they_are_in_the_file(accounts: Accounts, ann: User, ledger: Ledger) -> None:
    accounts.set_limits(ann.id, {"tokens_a_day": 5})
    by_key = Caller(ann.id, key_id=accounts.add_key(ann.id, "a script", tokens_a_day=5)[0])
    go_on = threading.Event()
    ledger.soon(functools.partial(go_on.wait, 60))
    ledger.check(by_key)
    ledger.spend(by_key, "nano", 2, 3, 0.0, None, None)
    for written in (False, True):
        for each, whose in ((by_key, "key"), (Caller(ann.id), "user")):
            with pytest.raises(ApiError, match=f"this {whose} has used 5 of 5 tokens"):
                ledger.check(each)
        limits = accounts.user_limits(ann.id)
        assert limits and limits.used_today == (5 if written else 0)
        go_on.set()
        ledger.flush()


def test_a_revoked_key_is_refused_while_its_request_waits(
    accounts: Accounts, ann: User, ledger: Ledger
) -> None:
    key_id, _ = accounts.add_key(ann.id, "a script")
    ledger.check(Caller(ann.id, key_id=key_id))
    accounts.revoke_key(ann.id, key_id)
    with pytest.raises(ApiError, match="revoked") as refused:
        ledger.check(Caller(ann.id, key_id=key_id))
    assert refused.value.status == 401


def test_a_write_that_fails_is_logged_and_the_end_waits_for_the_others(
    accounts: Accounts, ann: User, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger(accounts)
    ledger.soon(lambda: accounts._db.execute("INSERT INTO nowhere VALUES ('secret')"))
    ledger.soon(functools.partial(threading.Event().wait, 0.2))
    ledger.note(Caller(ann.id, "ann"), "backup")
    ledger.close()
    assert [record.getMessage() for record in caplog.records] == [
        "usage or audit is not stored: OperationalError"
    ]
    assert accounts.audit()[0]["action"] == "backup"


# ---- passwords that are tried


def test_how_many_sign_ins_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(account_api, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def refused_after(attempts: Attempts, pairs: Iterator[tuple[str, str]]) -> tuple[int, str]:
        for count, (name, address) in enumerate(pairs):
            try:
                attempts.begin(name, address)
            except ApiError as refusal:
                assert refusal.status == 429 and refusal.code == "too_many_sign_ins"
                return count, refusal.headers["retry-after"]
        raise AssertionError("nothing was refused")

    attempts = Attempts()
    assert refused_after(attempts, (("ann", "10.0.0.1") for _ in range(9))) == (5, "61")
    now[0] = 61.0
    attempts.begin("ann", "10.0.0.1")
    assert refused_after(Attempts(), (("ann", f"10.0.0.{i}") for i in range(99))) == (50, "901")
    assert refused_after(Attempts(), ((f"user{i}", "10.0.0.1") for i in range(199))) == (100, "901")
    attempts = Attempts()
    for _ in range(200):  # who comes in has not failed
        attempts.begin("ann", "10.0.0.1")
        attempts.succeeded("ann", "10.0.0.1")


def test_only_so_many_passwords_wait_for_their_check(accounts: Accounts, ann: User, ledger: Ledger) -> None:
    api = AccountApi(ServerSettings(), accounts, ledger)

    async def flood() -> list[object]:
        go_on = threading.Event()
        api._slow.submit(go_on.wait, 60)
        asked = [
            asyncio.ensure_future(api._checked(f"user{i}", PASSWORD, f"10.0.0.{i}"))
            for i in range(MAX_WAITING + 1)
        ]
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        go_on.set()
        return list(
            await asyncio.gather(*asked, api._checked("ann", PASSWORD, "::1"), return_exceptions=True)
        )

    *told, late, _ = run_apart(flood())
    assert told == [None] * MAX_WAITING and isinstance(late, ApiError) and late.status == 429
    api._slow.shutdown()


# ---- through the door


def test_without_users_there_is_no_admin_of_users(tmp_path: Path) -> None:
    """Whoever uses the machine is its admin; that he makes users is done at its command line."""
    door = create_app(ServerSettings(), no_models(), Store(tmp_path / "chats.sqlite"))
    with running(door) as url, httpx.Client(base_url=url, headers=PAGE, trust_env=False, timeout=30) as page:
        assert page.get("/api/session").json()["way"] == "open"
        assert page.post("/api/admin/users", json={"name": "eve", "admin": True}).status_code == 409
        assert page.get("/api/admin/audit").status_code == 409
        assert not door.accounts.on


def test_a_session_in_use_stays_and_the_log_comes_in_pages(tmp_path: Path) -> None:
    door = create_app(ServerSettings(), no_models(), Store(tmp_path / "chats.sqlite"))
    accounts = door.accounts
    ann = accounts.add_user("ann", PASSWORD, admin=True)
    token = accounts.open_session(ann.id)
    accounts._db.executemany(
        "INSERT INTO audit (at, owner, name, action, target, address) VALUES (?, '', '', 'sign_in', '', '')",
        [(time.time(),)] * 501,
    )
    accounts._db.execute("UPDATE sessions SET used_at = used_at - 1000")
    headers = PAGE | {"cookie": f"shoal_session={token}"}
    with (
        running(door) as url,
        httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=30) as page,
    ):
        pages = [page.get(f"/api/admin/audit?limit={n}").json()["entries"] for n in (2, 9999)]
        assert [len(entries) for entries in pages] == [2, 500]
        wait_for(lambda: accounts.users()[0]["seen_at"] > time.time() - 500)
        wrong = page.post("/api/account/password", json={"old": "not hers", "new": "four other odd words"})
        assert wrong.status_code == 401
        wait_for(lambda: accounts.audit(limit=1)[0]["action"] == "password_refused")
