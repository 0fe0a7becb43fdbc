"""`shoal users`, `shoal backup`, `shoal restore`, and what `shoal serve` says when there are users."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.errors import ShoalError, UsageError
from shoal.serve import accounts as accounts_module
from shoal.serve.accounts import Accounts


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts_module, "_SCRYPT", (4, 8, 1))


def shoal(*words: str, say: str | None = None) -> dict[str, Any]:
    """The JSON that a command prints; the error it ends with is raised."""
    done = CliRunner().invoke(app, [*words, "--json"], input=say)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout))


def test_from_the_first_admin_to_the_last_user(home: Path) -> None:
    with pytest.raises(ShoalError, match="first user has to be the admin"):
        shoal("users", "add", "bob", "--generate")
    with pytest.raises(ShoalError, match="10 to 1,000"):
        shoal("users", "add", "ann", "--admin", "--password-stdin", say="short\n")
    with pytest.raises(UsageError, match="nobody to ask"):
        shoal("users", "add", "ann", "--admin")
    assert shoal("users", "add", "Ann", "--admin", "--password-stdin", say="four odd words\n") == {
        "name": "ann", "admin": True}  # fmt: skip
    bob = shoal("users", "add", "bob", "--generate")
    key = shoal("users", "key", "bob", "--label", "nightly", "--tokens-a-day", "5", "--parallel", "2")
    accounts = Accounts(home / "chats.sqlite")
    assert accounts.check_password("ann", "four odd words") and accounts.check_password(
        "bob", bob["password"]
    )
    found = accounts.key_owner(key["key"])
    assert found and found[1].name == "bob"
    limits = accounts.key_limits(key["id"])
    assert limits and (limits.tokens_a_day, limits.parallel) == (5, 2)
    none = {"name": "bob", "tokens_a_day": None, "parallel": None, "used_today": 0}
    assert shoal("users", "limit", "bob") == none
    assert shoal("users", "limit", "bob", "--tokens-a-day", "9") == none | {"tokens_a_day": 9}
    assert shoal("users", "limit", "bob", "--parallel", "3") == none | {"tokens_a_day": 9, "parallel": 3}
    assert shoal("users", "limit", "bob", "--tokens-a-day", "0") == none | {"parallel": 3}
    assert [user["parallel"] for user in shoal("users", "list")["users"]] == [None, 3]
    other = shoal("users", "passwd", "bob", "--generate")
    assert not accounts.check_password("bob", bob["password"])
    assert accounts.check_password("bob", other["password"])
    accounts.close()
    with pytest.raises(ShoalError, match="has to be an admin"):
        shoal("users", "admin", "ann", "--off")
    shoal("users", "admin", "bob")
    shoal("users", "admin", "ann", "--off")
    assert [(user["name"], user["admin"], user["keys"]) for user in shoal("users", "list")["users"]] == [
        ("ann", False, 0), ("bob", True, 1)]  # fmt: skip
    with pytest.raises(UsageError, match="--yes"):
        shoal("users", "remove", "ann")
    for name in ("ann", "bob"):
        shoal("users", "remove", name, "--yes")
    with pytest.raises(ShoalError, match="no user bob"):
        shoal("users", "passwd", "bob", "--generate")
    entries = shoal("users", "audit")["entries"]
    assert [entry["action"] for entry in reversed(entries)] == [
        "user_added", "user_added", "key_made", *["user_limited"] * 3, "password_reset",
        "user_made_admin", "user_made_member", "user_removed", "user_removed"]  # fmt: skip
    assert {entry["address"] for entry in entries} == {"command line"} and entries[0]["name"]
    for secret in (bob["password"], other["password"], key["key"], "four odd words"):
        assert secret not in str(entries)


def test_backup_and_restore(home: Path, tmp_path: Path) -> None:
    shoal("users", "add", "ann", "--admin", "--generate")
    made = shoal("backup", str(tmp_path / "copy.sqlite"))
    assert made["users"] == 1 and Path(made["path"]).stat().st_size == made["bytes"]
    assert shoal("users", "audit")["entries"][0]["action"] == "backup"
    shoal("users", "remove", "ann", "--yes")
    back = shoal("restore", str(tmp_path / "copy.sqlite"))
    assert Path(back["kept"]).parent == home
    assert [user["name"] for user in shoal("users", "list")["users"]] == ["ann"]
    actions = [entry["action"] for entry in shoal("users", "audit")["entries"]]
    assert actions == ["restore", "user_added"], "the log is the backup's, and the restore"


def test_serve_with_users_needs_no_key_for_all_and_takes_none() -> None:
    with pytest.raises(UsageError, match="everyone in the network"):
        shoal("serve", "nowhere-at-all", "--host", "0.0.0.0")
    shoal("users", "add", "ann", "--admin", "--generate")
    with pytest.raises(ShoalError, match="nowhere-at-all"):  # it comes as far as the models
        shoal("serve", "nowhere-at-all", "--host", "0.0.0.0")
    with pytest.raises(UsageError, match="no key for all"):
        shoal("serve", "nowhere-at-all", "--api-key", "k" * 32)
