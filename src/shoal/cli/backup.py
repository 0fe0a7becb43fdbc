"""`shoal backup` and `shoal restore`: the server's one file, taken away and brought back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

_JSON = typer.Option(False, "--json", help="Print one JSON object on stdout.")


def backup(
    target: Path = typer.Argument(
        ..., metavar="FILE", help="Where the copy goes; one file, for you alone (0600)."
    ),
    force: bool = typer.Option(False, "--force", help="Replace FILE."),
    as_json: bool = _JSON,
) -> None:
    """Copy chats, users, keys, usage and audit log into one file, also while the server runs. Models are not in it.

    Examples:

      shoal backup ~/backups/shoal-2026-11-26.sqlite
    """
    from shoal.files import shoal_home
    from shoal.serve.backup import back_up

    made = back_up(shoal_home() / "chats.sqlite", target, force=force)
    _noted("backup", target)
    _show(made, as_json, f"{made['path']}: {made['bytes'] / 1e6:.1f} MB")


def restore(
    source: Path = typer.Argument(..., metavar="FILE", help="A file that shoal backup wrote."),
    as_json: bool = _JSON,
) -> None:
    """Put a backup in the place of all chats and users; what was there is kept beside it. Stop the server before.

    Everybody signs in again. Passwords and keys are those of the backup: also keys that were revoked since.

    Examples:

      shoal restore ~/backups/shoal-2026-11-26.sqlite
    """
    from shoal.files import shoal_home
    from shoal.serve.backup import restore as put_back

    made = put_back(source, shoal_home() / "chats.sqlite")
    _noted("restore", source)
    _show(made, as_json, made["path"] + (f"; what was there is now {made['kept']}" if made["kept"] else ""))


def _noted(action: str, path: Path) -> None:
    from shoal.cli.users import noted, open_accounts

    with open_accounts() as accounts:
        noted(accounts, action, path.name)


def _show(made: dict[str, Any], as_json: bool, line: str) -> None:
    counts = f" ({made['chats']} chats, {made['messages']} messages, {made['users']} users)"
    typer.echo(json.dumps(made, ensure_ascii=False) if as_json else line + counts)
