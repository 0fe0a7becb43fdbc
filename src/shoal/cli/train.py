"""`shoal train`: a recipe, a run folder, a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from shoal.errors import ShoalError, UsageError


def given(
    recipe: Path | None,
    overrides: list[str],
    run: Path | None,
    resume: bool,
    seconds: float | None,
    usage: str,
) -> tuple[Path, list[str]]:
    """(the recipe's file, `--section.key value` overrides) of a command line that may leave out the recipe to resume.

    Without it the first override stands where the recipe would. Raises UsageError, with `usage` as the hint.
    """
    if seconds is not None and seconds <= 0:
        raise UsageError(f"--seconds {seconds:g} is no time to train in")
    if recipe and str(recipe).startswith("--"):
        recipe, overrides = None, [str(recipe), *overrides]
    if recipe is None:
        if not (resume and run):
            raise UsageError("no recipe given", hint=usage)
        recipe = run / "recipe.toml"
    return recipe, overrides


def command(
    context: typer.Context,
    recipe: Path | None = typer.Argument(
        None, help="The recipe (TOML). With --resume: the run's own, if left out."
    ),
    run: Path | None = typer.Option(None, help="The run folder. Default: runs/NAME of the recipe."),
    resume: bool = typer.Option(False, "--resume", help="Go on from the run's newest saved state."),
    seconds: float | None = typer.Option(
        None, help="A time budget: schedules end in time, whatever the tokens."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object about the result on stdout."),
) -> None:
    """Train a model from a recipe: tokenizer, pre-training, fine-tuning, draft module, checkpoint, report.

    Every key of a recipe can be overridden as --section.key value. A run that was killed goes on with --resume and
    ends in the same weights.

    Examples:

      shoal train recipes/nano.toml

      shoal train recipes/nano.toml --run runs/quick --seconds 600

      shoal train recipes/nano.toml --train.lr 3e-3 --run.threads 4

      shoal train --resume --run runs/nano
    """
    from shoal.train.recipe import load_recipe

    usage = "shoal train recipes/nano.toml, or --resume --run FOLDER"
    loaded = load_recipe(*given(recipe, context.args, run, resume, seconds, usage))
    folder = run or Path("runs") / loaded.run.name

    from shoal.train.run import train

    outcome = train(loaded, folder, resume=resume, seconds=seconds, shown=True)
    result: dict[str, Any] = {
        "folder": str(outcome.folder),
        "checkpoint": str(outcome.checkpoint),
        "finished": outcome.finished,
        "measures": outcome.measures,
        "receipt": outcome.receipt.to_dict() if outcome.receipt else None,
        "failures": outcome.failures,
    }
    if as_json:
        typer.echo(json.dumps(result))
    if outcome.failures:
        raise ShoalError(
            "the training is done, but not all that follows it:\n  " + "\n  ".join(outcome.failures),
            hint=f"{outcome.checkpoint} is whole. shoal train --resume --run {outcome.folder} tries the last again.",
        )
