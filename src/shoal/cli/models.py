"""`shoal models`: the table of installed models, and the way to and from the hub."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from shoal.errors import ShoalError, UsageError

if TYPE_CHECKING:
    from shoal.model.checkpoint.load import CheckpointInfo
    from shoal.model.registry import ModelEntry

app = typer.Typer(
    help="List, show, import, pull, push and remove models.", no_args_is_help=True, rich_markup_mode=None
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
    link: bool = typer.Option(False, "--link", help="Leave the files where they are; nothing is copied."),
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
        how: Literal["link", "copy"] = "link" if link else "copy"
        entry = import_model(source, name=name, force=force, progress=progress, how=how)
    typer.echo(json.dumps(_facts(entry), ensure_ascii=False) if as_json else f"{entry.name}  {entry.path}")


@app.command()
def pull(
    hub_name: str = typer.Argument(..., metavar="OWNER/MODEL", help="A model on the Hugging Face hub."),
    name: str | None = _NAME,
    file: str | None = typer.Option(None, help="Take this GGUF file of it instead of its safetensors."),
    force: bool = _FORCE,
    as_json: bool = _JSON,
) -> None:
    """Download a model from the Hugging Face hub: safetensors and texts only, never a pickle, never code.

    What was interrupted goes on where it stopped when asked again. Every file is checked by its digest, and the model
    has a name here only when all of it is there. HF_TOKEN is used where it is set.

    Examples:

      shoal models pull HuggingFaceTB/SmolLM2-360M-Instruct --name smollm2-360m

      shoal models pull Qwen/Qwen2.5-0.5B-Instruct-GGUF --file qwen2.5-0.5b-instruct-q8_0.gguf
    """
    from shoal.cli.progress import bytes_bar
    from shoal.model import registry

    with bytes_bar(f"pulling {hub_name}") as progress:
        entry = registry.pull(hub_name, name=name, file=file, force=force, progress=progress)
    typer.echo(json.dumps(_facts(entry), ensure_ascii=False) if as_json else f"{entry.name}  {entry.path}")


@app.command()
def push(
    model: str = typer.Argument(..., help="An installed model, a checkpoint folder or a GGUF file."),
    hub_name: str = typer.Argument(..., metavar="OWNER/NAME", help="Where it goes on the Hugging Face hub."),
    licence: str | None = typer.Option(
        None, help="Its licence by SPDX name (mit, apache-2.0); default: what its card says."
    ),
    private: bool = typer.Option(False, "--private", help="Only you see it."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Check and list the files, send nothing."),
    as_json: bool = _JSON,
) -> None:
    """Put a model of yours on the Hugging Face hub, with its card, its licence and its receipt.

    The token stands in HF_TOKEN (or `hf auth login` was done). A model without a licence is refused: nobody may use it.

    Examples:

      shoal models push runs/nano/checkpoint me/nano --licence mit --dry-run

      shoal models push mine me/mine --licence apache-2.0
    """
    from shoal.model import registry
    from shoal.model.checkpoint import hub, hub_files, load

    if not hub.is_hub_name(hub_name):
        raise UsageError(f"{hub_name!r} is no hub name", hint="Hub names look like owner/model.")
    path = load.resolve(model)
    info = load.inspect(path)
    if info.problems:
        raise ShoalError(f"{path} cannot be pushed:\n" + "\n".join(f"- {line}" for line in info.problems))
    entry = registry.find(model)
    files: dict[str, Path | bytes] = {file.name: file for file in registry.files_of(path)}
    card = path / "README.md" if path.is_dir() else None
    text = card.read_text(encoding="utf-8") if card is not None and card.is_file() else ""
    found = _licence_of(text) or (entry.licence.lower() if entry else "")
    if licence and found and licence.lower() != found:
        raise ShoalError(f"--licence {licence} contradicts the model's own: {found}")
    if not (licence or found):
        raise ShoalError(
            f"{model} says nowhere under which licence it may be used",
            hint="Give it, for example --licence mit, if it is yours to give; the base model's licence binds you.",
        )
    files["README.md"] = _card(hub_name, info, path, text, (licence or found).lower()).encode()
    sizes = {
        name: len(each) if isinstance(each, bytes) else each.stat().st_size for name, each in files.items()
    }
    if "receipt.json" not in files:
        typer.echo("no receipt.json: nobody will see what it cost", err=True)
    address = None if dry_run else hub_files.push(hub_name, files, private=private, message="Pushed by shoal")
    if as_json:
        typer.echo(
            json.dumps(
                {"name": hub_name, "files": sizes, "licence": (licence or found).lower(), "url": address}
            )
        )
        return
    for name, size in sorted(sizes.items()):
        typer.echo(f"{name:<40} {size:>14,}")
    typer.echo("nothing was sent (--dry-run)" if dry_run else address)


def _licence_of(card: str) -> str:
    """What the front matter of a model card says."""
    front = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    said = re.search(r"^license:\s*([A-Za-z0-9.+-]+)\s*$", front[1], re.MULTILINE) if front else None
    return said[1].lower() if said else ""


def _card(name: str, info: CheckpointInfo, path: Path, text: str, licence: str) -> str:
    """The card that is there, with the licence in its front matter; else one of what is known."""
    from shoal.cost.receipt import Receipt, summary
    from shoal.model.counts import parameters_active, parameters_total

    if _licence_of(text):
        return text
    if text.startswith("---\n"):
        return text.replace("---\n", f"---\nlicense: {licence}\n", 1)
    head = f"---\nlicense: {licence}\npipeline_tag: text-generation\n---\n\n"
    if text:
        return head + text
    config = info.config
    total, active = parameters_total(config), parameters_active(config)
    lines = [
        f"# {name.split('/')[1]}\n",
        f"- Architecture: {config.model_type}, {config.num_hidden_layers} layers, width {config.hidden_size}, context"
        f" {config.max_position_embeddings:,} tokens.",
        f"- Parameters: {total / 1e6:,.2f}M"
        + (f", active per token {active / 1e6:,.2f}M." if active < total else "."),
    ]
    receipt = path / "receipt.json"
    if path.is_dir() and receipt.is_file():
        lines.append(f"- Cost: {summary(Receipt.from_dict(json.loads(receipt.read_text(encoding='utf-8'))))};"
                     " the whole chain is in receipt.json.")  # fmt: skip
    lines.append("\nWhat it can do has not been measured, or the result is not written here.")
    return head + "\n".join(lines) + "\n"


@app.command()
def remove(
    name: str = typer.Argument(..., help="A name from the list."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    as_json: bool = _JSON,
) -> None:
    """Delete an imported model from the disk (of a linked one only the link).

    Examples:

      shoal models remove mine

      shoal models remove mine --yes
    """
    from shoal.model import registry

    entry = registry.find(name)
    if entry is not None and entry.removable and not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"{name} is not removed without being asked", hint="Say --yes to remove it.")
        typer.confirm(f"Delete {entry.path} ({entry.size_bytes / 1e6:,.1f} MB)?", abort=True, err=True)
    path = registry.remove(name)
    typer.echo(json.dumps({"removed": name, "path": str(path)}) if as_json else f"removed {path}")
