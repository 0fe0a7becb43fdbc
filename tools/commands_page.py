"""Writes docs/commands.md from the commands' own help (`--print` shows it instead)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["COLUMNS"] = "100"
os.environ["TERMINAL_WIDTH"] = "100"

import typer
from typer.main import get_command

from shoal.cli.main import app


def help_text(command: object, name: str, parent: object = None) -> str:
    context = typer.Context(command, info_name=name, parent=parent, max_content_width=100, terminal_width=100)  # type: ignore[arg-type]
    return command.get_help(context)  # type: ignore[attr-defined]


def page() -> str:
    root = get_command(app)
    parts = ["# Commands\n", "Generated from `--help` by `python tools/commands_page.py`; do not edit.\n"]
    for name, command in sorted(getattr(root, "commands", {}).items()):
        nested = getattr(command, "commands", None)
        parts.append(f"## shoal {name}\n\n```text\n{help_text(command, f'shoal {name}').strip()}\n```\n")
        for inner_name, inner in sorted((nested or {}).items()):
            full = f"shoal {name} {inner_name}"
            parts.append(f"### {full}\n\n```text\n{help_text(inner, full).strip()}\n```\n")
    return "\n".join(line.rstrip() for line in "\n".join(parts).splitlines()) + "\n"


if __name__ == "__main__":
    if "--print" in sys.argv:
        sys.stdout.write(page())
    else:
        (Path(__file__).parents[1] / "docs" / "commands.md").write_text(page(), encoding="utf-8")
