"""`shoal tune`: a model and a recipe in, an adapter (or a model) out. One command for each method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from shoal.cli.train import given
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


@app.command("grpo", context_settings=SETTINGS)
def grpo(
    context: typer.Context,
    recipe: Path | None = RECIPE,
    run: Path | None = RUN,
    resume: bool = RESUME,
    adapter: str | None = ADAPTER,
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Show questions, their prompts and rewards, and end."
    ),
    seconds: float | None = SECONDS,
    as_json: bool = JSON,
) -> None:
    """Learn from rewards: the model answers questions, a program judges, what scored better becomes likelier.

    While it runs, RUN/board.html shows curves and samples. Rewards are built in, from reasoning-gym, or a function in
    a file of yours (docs/reinforcement-learning.md). A killed run goes on with --resume and ends in the same weights.

    Examples:

      shoal tune grpo recipes/grpo-puzzles.toml --dry-run

      shoal tune grpo recipes/grpo-puzzles.toml --run runs/puzzles --grpo.steps 50

      shoal tune grpo --resume --run runs/puzzles
    """
    start("grpo", context, recipe, run, resume, adapter, dry_run, seconds, as_json)


@app.command("distill", context_settings=SETTINGS)
def distill(
    context: typer.Context,
    recipe: Path | None = RECIPE,
    run: Path | None = RUN,
    resume: bool = RESUME,
    adapter: str | None = ADAPTER,
    dry_run: bool = DRY_RUN,
    seconds: float | None = SECONDS,
    as_json: bool = JSON,
) -> None:
    """Learn from a teacher: its answers, its distribution over your rows, or over the student's own answers.

    The teacher is a local model; for answers also any OpenAI-compatible server (SHOAL_TEACHER_KEY holds its key).

    Examples:

      shoal tune distill recipes/tune-distill.toml --distill.teacher smollm2

      shoal tune distill recipes/tune-distill.toml --distill.kind answers --distill.teacher http://127.0.0.1:8000
    """
    start("distill", context, recipe, run, resume, adapter, dry_run, seconds, as_json)


@app.command("dpo", context_settings=SETTINGS)
def dpo(
    context: typer.Context,
    recipe: Path | None = RECIPE,
    run: Path | None = RUN,
    resume: bool = RESUME,
    adapter: str | None = ADAPTER,
    dry_run: bool = DRY_RUN,
    seconds: float | None = SECONDS,
    as_json: bool = JSON,
) -> None:
    """Learn from preferences: rows of a prompt, the chosen and the rejected answer (DPO).

    Examples:

      shoal data from-chats preferences.jsonl --kind preference

      shoal tune dpo recipes/tune-dpo.toml --dpo.source preferences.jsonl
    """
    start("dpo", context, recipe, run, resume, adapter, dry_run, seconds, as_json)


@app.command("average")
def average(
    first: Path = typer.Argument(..., help="An adapter."),
    second: Path = typer.Argument(..., help="One that was trained on from it."),
    out: Path = typer.Option(..., metavar="FOLDER", help="Where the average goes."),
    weight: float = typer.Option(0.5, min=0.0, max=1.0, help="Share of the second."),
) -> None:
    """Average two adapters of one base: often as good as the second at what it learnt and as the first at the rest.

    Examples:

      shoal tune average runs/think-sft/adapter runs/think/adapter --out runs/think-half
    """
    from shoal.model.checkpoint import adapter_files

    if out.exists():
        raise ShoalError(f"{out} is there already", hint="Choose another name, or remove it first.")
    adapter_files.average(first, second, out, weight)
    typer.echo(f"shoal chat {out}")


@app.command("traces", context_settings=SETTINGS)
def traces(
    context: typer.Context,
    recipe: Path = typer.Argument(..., help="A recipe with a [grpo] section."),
    out: Path = typer.Option(..., metavar="FILE", help="Where the rows go (.jsonl)."),
    n: int = typer.Option(2000, "--n", min=1, help="How many."),
    level: str = typer.Option("1-5", metavar="N|N-M", help="Levels, in turn."),
    everyday: int = typer.Option(
        0, metavar="N", min=0, help="Besides, so many everyday questions with the base model's own answers."
    ),
) -> None:
    """Worked answers to a grpo recipe's questions, as rows for `shoal tune sft`.

    Rewards sharpen what a model can already do now and then; a small model is first shown how. The questions are of the
    training split and not those that grpo begins with. A model that learns nothing but puzzles takes everything for
    one: `--everyday` mixes in what it answers to other questions today.

    Examples:

      shoal tune traces recipes/shoal-think.toml --n 4000 --everyday 800 --out traces.jsonl

      shoal tune sft recipes/shoal-think.toml --sft.source traces.jsonl
    """
    from shoal.files import atomic_write_text
    from shoal.tune.recipe import load_tune_recipe

    first, _, last = level.partition("-")
    if not (first.isdecimal() and (last or first).isdecimal() and int(first) <= int(last or first)):
        raise UsageError(f"--level {level!r} is no level", hint="For example 1, or 1-4.")
    loaded = load_tune_recipe(recipe, "grpo", context.args)
    native = _protocol(loaded)[1].thinking == "native"
    wanted = range(int(first), int(last or first) + 1)
    rows = list(_environment(loaded).traces(n, native=native, levels=list(wanted)))
    if everyday:
        rows += _everyday(loaded, everyday, native)
    atomic_write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    typer.echo(f"{len(rows)} rows in {out}")


def _everyday(recipe: Any, count: int, native: bool) -> list[dict[str, Any]]:
    """Rows with the base's own answers; a bar while they are asked for."""
    import contextlib

    from shoal.cli.progress import count_bar
    from shoal.engine.open import open_model
    from shoal.tune import everyday

    opened = open_model(recipe.model.base, max_num_seqs=16, speculate="off")
    with contextlib.closing(opened), count_bar("everyday questions") as progress:
        return everyday.rows(opened, count, native=native, progress=progress)


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

    usage = f"shoal tune {method} RECIPE.toml, or --resume --run FOLDER"
    recipe, words = given(recipe, context.args, run, resume, seconds, usage)
    loaded = load_tune_recipe(recipe, method, [*words, *(["--adapter.kind", adapter] if adapter else [])])
    if dry_run:
        typer.echo(_questions(loaded) if method == "grpo" else _rows(loaded, method))
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


def _questions(recipe: Any) -> str:
    """What --dry-run of grpo shows: a question of every task as the model gets it, and what answers are worth."""
    from shoal.tune.rewards import Judge

    stage, environment = recipe.grpo, _environment(recipe)
    judge = Judge(stage.rewards)
    _, protocol = _protocol(recipe)
    lines = []
    for example in environment.held_out("train", len(environment.tasks), level=stage.level):
        judge.check(example.fields)
        lines += [f"--- {example.id}", protocol.spell(example.messages, thinking=stage.thinking)]
        tries = [("an empty answer", "")]
        if example.solution:
            thought = f"<think>\n{example.solution.reasoning_content}\n</think>\n"
            tries.append(("a worked answer", thought + (example.solution.content or "")))
        for name, text in tries:
            judgement = judge(
                example.question, text, {**example.fields, "completion_tokens": 1, "finish_reason": "stop"}
            )
            worth = judgement.failed or f"{judgement.total:g} {judgement.parts}"
            lines.append(f"{name} {text!r}: {worth}")
    return "\n".join(lines)


def _environment(recipe: Any) -> Any:
    from shoal.tune.environments import Environment

    stage = recipe.grpo
    return Environment(
        stage.tasks,
        seed=recipe.run.seed,
        language=stage.language,
        system=stage.system,
        suffix=stage.suffix,
    )


def _protocol(recipe: Any) -> tuple[Any, Any]:
    """(tokenizer, chat protocol) of the base; no weight is read."""
    from shoal.data.chat import protocol_for
    from shoal.model.checkpoint import load
    from shoal.tune import run

    base = load.resolve(recipe.model.base)
    side_files = load.read_side_files(base)
    tokenizer = run.base_tokenizer(base, side_files)
    model_type = load.read_config(base).model_type
    return tokenizer, protocol_for(tokenizer, model_type=model_type, chat_template=side_files.chat_template)


def _rows(recipe: Any, method: str) -> str:
    """What --dry-run shows; no weight is read."""
    from shoal.tune.data import dry_run, read_data

    tokenizer, protocol = _protocol(recipe)
    stage = getattr(recipe, method)
    if method == "dpo":
        from shoal.tune.dpo import dry_run as pairs

        return pairs(stage, tokenizer, protocol)
    return dry_run(read_data(stage, recipe.run.seed), stage, tokenizer, protocol)
