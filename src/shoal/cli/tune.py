"""`shoal tune`: a model and a recipe in, an adapter (or a model) out. One command for each method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from shoal.errors import ShoalError, UsageError

app = typer.Typer(
    help="Adapt a model: to examples, to a teacher, to preferences, to rewards.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}

RECIPE = typer.Argument(None, help="The recipe (TOML). With --resume: the run's own, if left out.")
RUN = typer.Option(None, help="The run folder. Default: runs/NAME of the recipe.")
RESUME = typer.Option(False, "--resume", help="Go on from the run's newest saved state.")
ADAPTER = typer.Option(
    None, metavar="none|lora|esft", help="What moves; in place of the recipe's adapter.kind."
)
DRY_RUN = typer.Option(False, "--dry-run", help="Show two rows as they are trained on, count all, and end.")
SECONDS = typer.Option(None, help="A time budget: schedules end in time, whatever the tokens.")
JSON = typer.Option(False, "--json", help="Print one JSON object about the result on stdout.")


@app.command("sft", context_settings=SETTINGS)
def sft(
    context: typer.Context,
    recipe: Path | None = RECIPE,
    run: Path | None = RUN,
    resume: bool = RESUME,
    adapter: str | None = ADAPTER,
    dry_run: bool = DRY_RUN,
    seconds: float | None = SECONDS,
    as_json: bool = JSON,
) -> None:
    """Fine-tune on examples: chats, questions and answers, texts.

    Rows are messages, prompt and completion, ShareGPT or Alpaca; the loss is on the assistant's turns. Every key of the
    recipe can be overridden as --section.key value; a killed run goes on with --resume and ends in the same weights.

    Examples:

      shoal tune sft recipes/tune-chats.toml --sft.source chats.jsonl --dry-run

      shoal tune sft recipes/tune-chats.toml --sft.source chats.jsonl --run runs/mine

      shoal chat runs/mine/adapter
    """
    start("sft", context, recipe, run, resume, adapter, dry_run, seconds, as_json)


def start(
    method: str,
    context: typer.Context,
    recipe: Path | None,
    run: Path | None,
    resume: bool,
    adapter: str | None,
    dry_run: bool,
    seconds: float | None,
    as_json: bool,
) -> None:
    """What the commands of all methods do."""
    from shoal.tune.recipe import load_tune_recipe

    if seconds is not None and seconds <= 0:
        raise UsageError(f"--seconds {seconds:g} is no time to train in")
    if recipe is None:
        if not (resume and run):
            raise UsageError(
                "no recipe given", hint=f"shoal tune {method} RECIPE.toml, or --resume --run FOLDER"
            )
        recipe = run / "recipe.toml"
    words = [*context.args, *(["--adapter.kind", adapter] if adapter else [])]
    loaded = load_tune_recipe(recipe, method, words)
    if dry_run:
        typer.echo(_rows(loaded, method))
        return
    folder = run or Path("runs") / loaded.run.name

    from shoal.tune.run import tune

    outcome = tune(loaded, method, folder, resume=resume, seconds=seconds, shown=True)
    result: dict[str, Any] = {
        "folder": str(outcome.folder),
        "output": str(outcome.checkpoint),
        "finished": outcome.finished,
        "measures": outcome.measures,
        "receipt": outcome.receipt.to_dict() if outcome.receipt else None,
        "failures": outcome.failures,
    }
    typer.echo(json.dumps(result) if as_json else f"shoal chat {outcome.checkpoint}")
    if outcome.failures:
        raise ShoalError(
            "the tuning is done, but not all that follows it:\n  " + "\n  ".join(outcome.failures),
            hint=f"{outcome.checkpoint} is whole.",
        )


def _rows(recipe: Any, method: str) -> str:
    """What --dry-run shows; no weight is read."""
    from shoal.data.chat import protocol_for
    from shoal.model.checkpoint import load
    from shoal.tune import run
    from shoal.tune.data import dry_run, read_data

    base = load.resolve(recipe.model.base)
    side_files = load.read_side_files(base)
    tokenizer = run.base_tokenizer(base, side_files)
    model_type = load.read_config(base).model_type
    protocol = protocol_for(tokenizer, model_type=model_type, chat_template=side_files.chat_template)
    stage = getattr(recipe, method)
    return dry_run(read_data(stage, recipe.run.seed), stage, tokenizer, protocol)
