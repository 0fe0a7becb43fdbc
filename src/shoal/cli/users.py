"""`shoal users`: who may use the server. Works beside a running one, which sees the change at its next request."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from shoal.errors import ShoalError, UsageError

if TYPE_CHECKING:
    from shoal.serve.accounts import Accounts

app = typer.Typer(
    help="Users of the server: people sign in as soon as there is one. See docs/team.md.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
_JSON = typer.Option(False, "--json", help="Print one JSON object on stdout.")
_NAME = typer.Argument(
    ..., metavar="NAME", help="Letters of any script, digits and . _ - @; capitals do not count."
)
_STDIN = typer.Option(False, "--password-stdin", help="Read the password from the first line of stdin.")
_GENERATE = typer.Option(False, "--generate", help="Make a password and show it once.")


def open_accounts() -> closing[Accounts]:
    """The server's accounts for the length of a `with`."""
    from shoal.files import shoal_home
    from shoal.serve.accounts import Accounts

    return closing(Accounts(shoal_home() / "chats.sqlite"))


def noted(accounts: Accounts, action: str, target: str) -> None:
    """A line of the audit log about what was done at the command line."""
    import getpass

    accounts.add_audit(action, target, name=getpass.getuser(), address="command line")


def _show(value: dict[str, Any], as_json: bool, line: str) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False) if as_json else line)


def _password(from_stdin: bool, generate: bool) -> tuple[str, bool]:
    """(the password, whether it was made here)."""
    from shoal.serve.accounts import made_password

    if from_stdin and generate:
        raise UsageError("--password-stdin and --generate exclude each other")
    if generate:
        return made_password(), True
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n"), False
    if not sys.stdin.isatty():
        raise UsageError("there is nobody to ask for a password", hint="Give --password-stdin or --generate.")
    return typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True), False


@app.command()
def add(
    name: str = _NAME,
    admin: bool = typer.Option(False, "--admin", help="May add and remove users and see the audit log."),
    password_stdin: bool = _STDIN,
    generate: bool = _GENERATE,
    as_json: bool = _JSON,
) -> None:
    """Add a user. The first one is an admin, gets the chats written so far, and from then on people sign in.

    Examples:

      shoal users add ann --admin

      shoal users add bob --generate
    """
    from shoal.serve.accounts import checked_password

    password, made = _password(password_stdin, generate)
    checked_password(password)
    with open_accounts() as accounts:
        user = accounts.add_user(name, password, admin=admin)
        noted(accounts, "user_added", user.name)
    shown = {"password": password} if made else {}
    line = f"{user.name} added" + (f"; password (shown once): {password}" if made else "")
    _show({"name": user.name, "admin": user.admin, **shown}, as_json, line)


@app.command("list")
def list_(as_json: bool = _JSON) -> None:
    """Show the users, and what each has used in the last 30 days.

    Examples:

      shoal users list
    """
    with open_accounts() as accounts:
        users = accounts.users()
        used = {row["name"]: row for row in accounts.usage(by="user")}
    rows = [
        {**{key: value for key, value in user.items() if key != "id"},
         "usage": {key: value for key, value in used[user["name"]].items() if key != "name"}
         if user["name"] in used else None}
        for user in users
    ]  # fmt: skip
    if as_json:
        typer.echo(json.dumps({"users": rows}, ensure_ascii=False))
        return
    for row in rows:
        usage = row["usage"] or {"answers": 0, "prompt_tokens": 0, "completion_tokens": 0, "usd": 0.0}
        tokens = usage["prompt_tokens"] + usage["completion_tokens"]
        typer.echo(
            f"{row['name']:<24} {'admin' if row['admin'] else 'user':<6} {row['keys']:>3} keys"
            f" {usage['answers']:>8,} answers {tokens:>12,} tokens {usage['usd']:>10.4f} $"
        )
    if not rows:
        typer.echo(
            "no users: whoever uses this machine uses the server; shoal users add NAME --admin", err=True
        )


@app.command()
def remove(
    name: str = _NAME,
    yes: bool = typer.Option(False, "--yes", help="Do not ask."),
    as_json: bool = _JSON,
) -> None:
    """Remove a user with all he wrote, his keys and sign-ins. The last user's chats stay, for nobody signs in then.

    Examples:

      shoal users remove bob
    """
    with open_accounts() as accounts:
        user = accounts.find(name)
        last = len(accounts.users()) == 1
        loss = "he is the last one: nobody signs in any more" if last else "his chats are deleted for good"
        if not yes:
            if not sys.stdin.isatty():
                raise UsageError(f"this removes {user.name}: {loss}", hint="Give --yes.")
            if not typer.confirm(f"Remove {user.name}? ({loss})", err=True):
                raise ShoalError("nothing was removed")
        accounts.remove_user(user.id)
        noted(accounts, "user_removed", user.name)
    _show({"removed": user.name}, as_json, f"{user.name} removed")


@app.command()
def passwd(
    name: str = _NAME, password_stdin: bool = _STDIN, generate: bool = _GENERATE, as_json: bool = _JSON
) -> None:
    """Set another password; the user is signed out everywhere, his keys stay.

    Examples:

      shoal users passwd ann
    """
    with open_accounts() as accounts:
        user = accounts.find(name)
        password, made = _password(password_stdin, generate)
        accounts.set_password(user.id, password)
        noted(accounts, "password_reset", user.name)
    line = f"password of {user.name} set" + (f" (shown once): {password}" if made else "")
    _show({"name": user.name, **({"password": password} if made else {})}, as_json, line)


@app.command()
def admin(
    name: str = _NAME,
    off: bool = typer.Option(False, "--off", help="Make an admin a plain user again."),
    as_json: bool = _JSON,
) -> None:
    """Make a user an admin. One always stays.

    Examples:

      shoal users admin bob

      shoal users admin bob --off
    """
    with open_accounts() as accounts:
        user = accounts.find(name)
        accounts.set_admin(user.id, not off)
        noted(accounts, "user_made_member" if off else "user_made_admin", user.name)
    _show({"name": user.name, "admin": not off}, as_json, f"{user.name} is {'a user' if off else 'an admin'}")


@app.command()
def limit(
    name: str = _NAME,
    tokens_a_day: int = typer.Option(
        None, min=0, help="Tokens of prompts and answers until 00:00 UTC; 0: no limit."
    ),
    parallel: int = typer.Option(None, min=0, help="Answers in work at once; 0: no limit."),
    as_json: bool = _JSON,
) -> None:
    """Limit all that a user does, on the page and with every key, or show his limits. What is not given stays.

    Examples:

      shoal users limit bob --tokens-a-day 200000 --parallel 2

      shoal users limit bob --parallel 0
    """
    given = {"tokens_a_day": tokens_a_day, "parallel": parallel}
    with open_accounts() as accounts:
        user = accounts.find(name)
        if limits := {each: value or None for each, value in given.items() if value is not None}:
            accounts.set_limits(user.id, limits)
            noted(accounts, "user_limited", user.name)
        found = accounts.user_limits(user.id)
    assert found is not None
    a_day, at_once = (
        f"{value:,}" if value else "any number of" for value in (found.tokens_a_day, found.parallel)
    )
    line = f"{user.name}: {a_day} tokens a day, {found.used_today:,} used; {at_once} answers at once"
    _show({"name": user.name, **asdict(found)}, as_json, line)


@app.command()
def key(
    name: str = _NAME,
    label: str = typer.Option("command line", "--label", help="What the key is for."),
    tokens_a_day: int = typer.Option(None, min=1, help="Tokens of prompts and answers until 00:00 UTC."),
    parallel: int = typer.Option(None, min=1, help="Answers in work at once."),
    as_json: bool = _JSON,
) -> None:
    """Make an API key for a user and show it once. (Users do it on the page, where they also revoke them.)

    Examples:

      shoal users key bob --label nightly --tokens-a-day 200000 --parallel 2
    """
    with open_accounts() as accounts:
        user = accounts.find(name)
        key_id, made = accounts.add_key(user.id, label, tokens_a_day=tokens_a_day, parallel=parallel)
        noted(accounts, "key_made", f"{user.name}: {label}")
    _show({"name": user.name, "id": key_id, "key": made}, as_json, f"key of {user.name} (shown once): {made}")


@app.command()
def audit(
    limit: int = typer.Option(50, min=1, help="How many entries, the newest first."), as_json: bool = _JSON
) -> None:
    """Show who did what, when and from where; never what was written.

    Examples:

      shoal users audit --limit 20
    """
    import time

    with open_accounts() as accounts:
        entries = accounts.audit(limit=limit)
    if as_json:
        typer.echo(json.dumps({"entries": entries}, ensure_ascii=False))
        return
    for entry in entries:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry["at"]))
        typer.echo(
            f"{when}  {entry['name'] or '-':<16} {entry['action']:<18} {entry['target']}  ({entry['address']})"
        )
