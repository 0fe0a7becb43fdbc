"""`shoal models`: the table of installed models."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from shoal.errors import ShoalError

if TYPE_CHECKING:
    from shoal.model.registry import ModelEntry

app = typer.Typer(
    help="List, show, import, pull and remove installed models.", no_args_is_help=True, rich_markup_mode=None
)
_JSON = typer.Option(False, "--json", help="Print one JSON object on stdout.")
_NAME = typer.Option(None, "--name", help="The name in the table. Default: from the source.")
_FORCE = typer.Option(False, "--force", help="Replace an imported model of the same name.")


def _facts(entry: ModelEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "path": str(entry.path),
        "size_bytes": entry.size_bytes,
        "context": entry.context,
        "languages": list(entry.languages),
        "template": entry.template,
        "thinking": entry.thinking,
        "licence": entry.licence,
        "description": entry.description,
        "examples": entry.examples,
        "removable": entry.removable,
    }


def _line(entry: ModelEntry) -> str:
    size, languages = f"{entry.size_bytes / 1e6:,.1f} MB", ",".join(entry.languages)
    return f"{entry.name:<20} {size:>12}  {languages:<8} {entry.description.get('en', entry.path)}"


@app.command("list")
def list_(as_json: bool = _JSON) -> None:
    """Show the names that other commands take.

    Examples:

      shoal models list

      shoal models list --json
    """
    from shoal.model.registry import list_models

    entries = list_models()
    if as_json:
        typer.echo(json.dumps({"models": [_facts(entry) for entry in entries]}, ensure_ascii=False))
        return
    for entry in entries:
        typer.echo(_line(entry))
    if not entries:
        typer.echo("no models yet: shoal models import PATH, or shoal models pull owner/model", err=True)


@app.command()
def show(name: str = typer.Argument(..., help="A name from the list."), as_json: bool = _JSON) -> None:
    """Show what the table says about one model (its shape and files: shoal info NAME).

    Examples:

      shoal models show smollm2
    """
    from shoal.model.registry import find, list_models

    entry = find(name)
    if entry is None:
        known = ", ".join(entry.name for entry in list_models())
        raise ShoalError(f"no installed model {name!r}", hint=f"Installed: {known or 'none'}.")
    facts = _facts(entry)
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    for key, value in facts.items():
        typer.echo(
            f"{key:<12} {json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value}"
        )


@app.command("import")
def import_(
    source: str = typer.Argument(..., metavar="PATH", help="A checkpoint folder or a .gguf file."),
    name: str | None = _NAME,
    force: bool = _FORCE,
    as_json: bool = _JSON,
) -> None:
    """Copy a model into the table, after checking its files.

    Examples:

      shoal models import ~/Downloads/qwen2.5-0.5b-instruct-q8_0.gguf --name qwen

      shoal models import runs/nano/checkpoint --name mine
    """
    from shoal.cli.progress import bytes_bar
    from shoal.model.registry import import_model

    with bytes_bar("copying") as progress:
        entry = import_model(source, name=name, force=force, progress=progress)
    typer.echo(json.dumps(_facts(entry), ensure_ascii=False) if as_json else f"{entry.name}  {entry.path}")


@app.command()
def pull(
    hub_name: str = typer.Argument(..., metavar="OWNER/MODEL", help="A model on the Hugging Face hub."),
    name: str | None = _NAME,
    force: bool = _FORCE,
    as_json: bool = _JSON,
) -> None:
    """Download a model from the Hugging Face hub: safetensors and texts only, never a pickle, never code.

    Examples:

      shoal models pull HuggingFaceTB/SmolLM2-360M-Instruct --name smollm2-360m
    """
    from shoal.model import registry

    entry = registry.pull(hub_name, name=name, force=force)
    typer.echo(json.dumps(_facts(entry), ensure_ascii=False) if as_json else f"{entry.name}  {entry.path}")


@app.command()
def remove(name: str = typer.Argument(..., help="A name from the list."), as_json: bool = _JSON) -> None:
    """Delete an imported model from the disk.

    Examples:

      shoal models remove mine
    """
    from shoal.model import registry

    path = registry.remove(name)
    typer.echo(json.dumps({"removed": name, "path": str(path)}) if as_json else f"removed {path}")
