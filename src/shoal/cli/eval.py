"""`shoal eval`: how often a model is right on held-out microworld tasks, and its bits per byte."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from shoal.cli.progress import count_bar
from shoal.errors import ShoalError, UsageError

if TYPE_CHECKING:
    from shoal.engine.open import OpenedModel
    from shoal.eval.askers import Asker
    from shoal.eval.tasks import Plan


def command(
    model: str | None = typer.Argument(
        None, metavar="MODEL", help="A folder, a .gguf file, an installed model or a hub name."
    ),
    tasks: list[str] | None = typer.Argument(
        None,
        metavar="[TASK]...",
        help="microworld (all families), bpb, families by name; puzzles:NAME, gym:TASK, FILE.jsonl; or lm:TASK of "
        "lm-evaluation-harness. "
        "Default: microworld.",
    ),
    endpoint: str | None = typer.Option(
        None,
        metavar="URL",
        help="Ask an OpenAI-compatible server; MODEL is its name there, or - for the first.",
    ),
    n: int | None = typer.Option(
        None,
        "--n",
        min=1,
        help="Questions per family and language, spread over the levels (default 200); --text: the first so many.",
    ),
    language: str | None = typer.Option(None, metavar="en|ja", help="Default: both."),
    level: str = typer.Option("1-5", metavar="N|N-M", help="Levels 1 (easy) to 5."),
    thinking: str | None = typer.Option(
        None, metavar="off|on|both", help="Default: both if the model can think, else off."
    ),
    split: str | None = typer.Option(
        None,
        metavar="validation|test",
        help="Which held-out questions (default: test); --text with validation: only what training holds out of it.",
    ),
    seed: int = typer.Option(0, help="Which of them."),
    runner: str = typer.Option(
        "auto", help="native (quantised, CPUs), torch, or auto: native where it is built and can be used."
    ),
    quant: str | None = typer.Option(
        None, metavar="8|4|none", help="Bits of native weights; default: a GGUF file's own, else 8."
    ),
    chat: bool = typer.Option(False, "--chat", help="lm: put the task through the model's chat template."),
    dtype: str | None = typer.Option(
        None, metavar="float32|bfloat16|float16", help="torch: what it computes in."
    ),
    device: str = typer.Option("cpu", help="cpu, cuda or mps."),
    text: list[str] | None = typer.Option(
        None,
        metavar="FILE|FOLDER",
        help="bpb: of this text or these chats: .txt, .md, .jsonl, .json, .parquet, also .gz and .zst.",
    ),
    window: int | None = typer.Option(
        None,
        min=2,
        help="--text: longest stretch of tokens read at once. Default: the context, at most 2048.",
    ),
    stride: int | None = typer.Option(
        None, min=1, help="--text: tokens a window moves on by in a longer document. Default: half a window."
    ),
    samples: int = typer.Option(1, min=1, help="puzzles, gym, files: answers per question, for pass@k."),
    temperature: float | None = typer.Option(
        None, min=0.0, help="puzzles, gym, files: default 0 for one answer, else 1."
    ),
    reward: str | None = typer.Option(
        None,
        metavar="NAME|FILE.py:FUNCTION",
        help="What is right; default: the task's own rule, files: exact.",
    ),
    max_tokens: int | None = typer.Option(None, min=1, help="Longest answer. Default: 160, thinking 400."),
    usd_in: float | None = typer.Option(None, help="--endpoint: price of a million prompt tokens, USD."),
    usd_out: float | None = typer.Option(None, help="--endpoint: price of a million answer tokens, USD."),
    beside: list[Path] | None = typer.Option(
        None, metavar="RESULT", help="Results written by --out, shown in the same table and plot."
    ),
    plot: Path | None = typer.Option(None, metavar="FILE", help="Write pass@1 with intervals as an SVG."),
    out: Path | None = typer.Option(None, metavar="FILE", help="Write the whole result as JSON."),
    card: Path | None = typer.Option(
        None, metavar="FILE", help="Write a model card with 20 transcripts per language."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout."),
) -> None:
    """Measure a model: accuracy per task family, level and language with 95% intervals (Wilson), greedy.

    The questions are held out from training by canonical question, by name and by number pair. "bpb" measures bits
    per byte: of the microworld's held-out text, or of any --text (docs/evaluate.md).

    Examples:

      shoal eval nano

      shoal eval nano sum story --level 1-2 --language ja --n 100

      shoal eval smollm2 bpb

      shoal eval smollm2 bpb --text notes.txt --text chats.jsonl --out base.json

      shoal eval runs/mine/adapter bpb --text chats.jsonl --beside base.json

      shoal eval runs/nano/checkpoint microworld bpb --out result.json --card README.md

      shoal eval smollm2 lm:arc_easy lm:hellaswag --n 100

      shoal eval - --endpoint http://127.0.0.1:8000 --n 20 --json

      shoal eval smollm2 puzzles:sum gym:chain_sum --n 500 --samples 8 --out mine.json

      shoal eval deepseek-chat puzzles:sum --endpoint https://api.deepseek.com --beside mine.json --plot both.svg
    """
    options = {"device": device, "runner": runner, "quant": quant, "dtype": dtype}
    if text or window or stride:
        if (tasks or ["bpb"]) != ["bpb"] or not text:
            raise UsageError(
                "--text, --window and --stride are for bits per byte of a text",
                hint="shoal eval MODEL bpb --text FILE",
            )
        if split not in (None, "validation"):
            raise UsageError(f"no text is held out as {split!r}", hint="--split validation, or leave it out.")
        result = _text(model, endpoint, options, text, n, split, window, stride)
        _tell_text(result, list(beside or []), out, as_json)
        return
    if harness := [name.removeprefix("lm:") for name in tasks or () if name.startswith("lm:")]:
        if len(harness) < len(tasks or ()):
            raise UsageError("lm: tasks are measured by themselves", hint="Give the others in another call.")
        _harness(model, endpoint, options, harness, n, chat, seed, out, as_json)
        return
    n, split = n or 200, split or "test"
    if any(":" in name or name.endswith(".jsonl") for name in tasks or ()):
        plan_ = _Passes(
            list(tasks or []), n, level, thinking, split, seed, samples, temperature, reward, max_tokens
        )
        _passes(plan_, model, endpoint, options, (usd_in, usd_out), list(beside or []), plot, out, as_json)
        return
    from shoal.eval.tasks import Plan, evaluate, families_of

    names = list(tasks or [])
    families = families_of([name for name in names if name != "bpb"])
    plan = Plan(families, _levels(level), _languages(language), n, seed, _split(split))
    if thinking not in (None, "off", "on", "both"):
        raise UsageError(f"unknown --thinking {thinking!r}", hint="off, on or both.")
    asks = names != ["bpb"]
    if card and not asks:
        raise UsageError("a card needs task results", hint="Leave out TASK, or name families beside bpb.")
    if "bpb" in names:
        _needs_weights(endpoint)
    if endpoint is None and (model is None or model == "-"):
        raise UsageError("which model?", hint="Give MODEL, or --endpoint URL.")
    result = {"model": model}
    if asks:
        with _asker(model, endpoint, options) as (asker, opened):
            modes = _modes(asker, thinking)
            with _bar("questions") as progress:
                result = evaluate(asker, plan, modes, progress)
            if "bpb" in names:
                result |= _bits_per_byte(cast(str, model), plan)
            if card:
                _write_card(card, asker, opened, plan, result)
    else:
        result |= _bits_per_byte(cast(str, model), plan)
    _tell(result, out, as_json, _page)


def _tell(
    result: dict[str, Any], out: Path | None, as_json: bool, page: Callable[[dict[str, Any]], str]
) -> None:
    if out:
        from shoal.files import atomic_write_text

        atomic_write_text(out, json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    typer.echo(json.dumps(result, ensure_ascii=False) if as_json else page(result))


def _needs_weights(endpoint: str | None) -> None:
    if endpoint:
        raise UsageError(
            "log-probabilities need the weights, not a server", hint="Give a MODEL without --endpoint."
        )


def _named(model: str | None) -> str:
    if model is None or model == "-":
        raise UsageError("which model?", hint="Give MODEL.")
    return model


def _text(
    model: str | None,
    endpoint: str | None,
    options: dict[str, Any],
    specs: list[str],
    n: int | None,
    split: Any,
    window: int | None,
    stride: int | None,
) -> dict[str, Any]:
    """Bits per byte of files, one after the other."""
    from shoal.data.sources import documents
    from shoal.eval import text

    _needs_weights(endpoint)
    model = _named(model)
    texts = [list(islice(documents(spec, split=split), n)) for spec in specs]
    started = time.monotonic()
    with _asker(model, None, options) as (_, opened):
        assert opened is not None
        found = []
        for spec, examples in zip(specs, texts, strict=True):
            with _bar("documents") as progress:
                measured = text.evaluate(opened, examples, window=window, stride=stride, progress=progress)
            found.append({"text": spec, "split": split, **measured})
        seconds = round(time.monotonic() - started, 2)
        return {"model": opened.name, "weights": opened.dtype, "seconds": seconds, "text": found}


def _harness(
    model: str | None,
    endpoint: str | None,
    options: dict[str, Any],
    tasks: list[str],
    n: int | None,
    chat: bool,
    seed: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Tasks of lm-evaluation-harness."""
    from shoal.eval.scores import plain

    _needs_weights(endpoint)
    try:
        from shoal.eval import lm_harness
    except ImportError as error:
        raise ShoalError(
            "lm: tasks need the package `lm-eval`", hint="Install it: pip install 'shoal[eval]'"
        ) from error
    with _asker(_named(model), None, options) as (_, opened):
        assert opened is not None
        found = lm_harness.evaluate(opened, tasks, limit=n, chat=chat, seed=seed)
        result = {"model": opened.name, "weights": opened.dtype} | found
    _tell(result, out, as_json, lambda result: plain(lm_harness.table(result)))


def _tell_text(result: dict[str, Any], beside: list[Path], out: Path | None, as_json: bool) -> None:
    """The table, and how far the model is from those in other results on the same text."""
    from dataclasses import asdict

    from shoal.eval import text
    from shoal.eval.scores import plain
    from shoal.files import read_text

    others = [json.loads(read_text(path)) for path in beside]
    for mine in result["text"]:
        mine["beside"] = [
            {"model": other["model"], "weights": other["weights"]} | asdict(text.difference(mine, theirs))
            for other in others
            for theirs in other.get("text", ())
            if theirs["sha256"] == mine["sha256"]
        ]
    if others and not any(mine["beside"] for mine in result["text"]):
        raise ShoalError(
            "none of the other results is of this text", hint="Give the same --text, --n and --split to both."
        )
    _tell(result, out, as_json, lambda result: plain(text.table(result, others)))


@dataclass(frozen=True)
class _Passes:
    """What is asked, as the command line says it."""

    tasks: list[str]
    n: int
    level: str
    thinking: str | None
    split: str
    seed: int
    samples: int
    temperature: float | None
    reward: str | None
    max_tokens: int | None


def _questions(wanted: _Passes) -> list[Any]:
    """`n` held-out questions of every task, over its levels, with the rule that judges them."""
    from shoal.eval.passes import Question
    from shoal.tune.environments import Environment, Example
    from shoal.tune.rewards import Judge

    levels, split = _levels(wanted.level), _split(wanted.split)
    found = []
    for spec in wanted.tasks:
        own = {"puzzles": "puzzles", "microworld": "microworld", "gym": "reasoning_gym"}
        rule = wanted.reward or own.get(spec.partition(":")[0], "exact")
        environment, judge = Environment([spec], seed=wanted.seed), Judge({rule: 1.0})
        (task,) = environment.tasks.values()
        asked = [level for level in task.levels if level in levels] or [task.levels[0]]
        for number in range(wanted.n):
            example = environment.example(task.name, split, asked[number % len(asked)], number // len(asked))
            judge.check(example.fields)

            def check(text: str, example: Example = example, judge: Judge = judge) -> bool:
                about = {**example.fields, "completion_tokens": 0, "finish_reason": "stop"}
                return (judge(example.question, text, about).total or 0.0) >= 1.0 - 1e-9

            expected = str(example.fields.get("answer", ""))
            found.append(Question(example.id, example.task, example.level, example.messages, check, expected))
    return found


def _passes(
    wanted: _Passes,
    model: str | None,
    endpoint: str | None,
    options: dict[str, Any],
    usd: tuple[float | None, float | None],
    beside: list[Path],
    plot_file: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    from shoal.cost.meter import Meter
    from shoal.eval import passes
    from shoal.eval.scores import plain
    from shoal.files import atomic_write_text, read_text

    if endpoint is None and (model is None or model == "-"):
        raise UsageError("which model?", hint="Give MODEL, or --endpoint URL.")
    others = [json.loads(read_text(path)) for path in beside]
    questions = _questions(wanted)
    temperature = wanted.temperature if wanted.temperature is not None else float(wanted.samples > 1)
    meter = Meter("eval", device=options["device"])

    def cost(prompt_tokens: int, completion_tokens: int) -> float | None:
        if endpoint is None:
            return meter.usd
        price_in, price_out = usd
        if price_in is None or price_out is None:
            return None
        return (prompt_tokens * price_in + completion_tokens * price_out) / 1e6

    with _asker(model, endpoint, options) as (asker, _), _bar("answers") as progress, meter:
        (thinking,) = set(_modes(asker, wanted.thinking if wanted.thinking in ("on", "off") else "off"))
        result = passes.evaluate(
            asker,
            questions,
            samples=wanted.samples,
            temperature=temperature,
            thinking=thinking,
            max_tokens=wanted.max_tokens,
            cost=cost,
            progress=progress,
        )
    result |= {
        "split": wanted.split,
        "seed": wanted.seed,
        "price": "endpoint" if endpoint else "electricity or rent",
    }
    if out:
        atomic_write_text(out, json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    results = [*others, result]
    if plot_file:
        atomic_write_text(plot_file, passes.plot(results))
    page = "\n".join([plain(passes.table(results)), "", *map(passes.bill, results)])
    typer.echo(json.dumps(result, ensure_ascii=False) if as_json else page)


def _levels(text: str) -> tuple[int, ...]:
    first, _, last = text.partition("-")
    if not (first.isdecimal() and (last or first).isdecimal() and 1 <= int(first) <= int(last or first) <= 5):
        raise UsageError(
            f"--level {text!r} is no level", hint="For example 1, or 1-2; levels go from 1 to 5."
        )
    return tuple(range(int(first), int(last or first) + 1))


def _languages(text: str | None) -> Any:
    from shoal.data.microworld.world import LANGUAGES

    if text is not None and text not in LANGUAGES:
        raise UsageError(f"the microworld does not speak {text!r}", hint=f"One of {', '.join(LANGUAGES)}.")
    return LANGUAGES if text is None else (text,)


def _split(text: str) -> Any:
    if text not in ("validation", "test"):
        raise UsageError(f"{text!r} is no held-out split", hint="validation or test.")
    return text


def _modes(asker: Asker, wanted: str | None) -> tuple[bool, ...]:
    if wanted in ("on", "both") and asker.thinks is False:
        raise UsageError(f"{asker.name} has no thinking mode", hint="Leave out --thinking.")
    if wanted is None:
        wanted = "both" if asker.thinks else "off"
    return {"off": (False,), "on": (True,), "both": (False, True)}[wanted]


@contextmanager
def _asker(
    model: str | None, endpoint: str | None, options: dict[str, Any]
) -> Iterator[tuple[Asker, OpenedModel | None]]:
    from shoal.eval.askers import EndpointAsker, EngineAsker

    if endpoint:
        remote = EndpointAsker(endpoint, None if model in (None, "-") else model)
        try:
            yield remote, None
        finally:
            remote.close()
        return
    from shoal.cli.progress import bytes_bar
    from shoal.engine.open import open_model

    with bytes_bar(f"loading {model}") as progress:
        opened = open_model(cast(str, model), max_num_seqs=16, progress=progress, **options)
    try:
        yield EngineAsker(opened), opened
    finally:
        opened.close()


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr; a line now and then where stderr is no terminal."""
    if not sys.stderr.isatty():
        shown = [-1]

        def line(done: int, total: int) -> None:
            if done * 10 // total != shown[0]:
                shown[0] = done * 10 // total
                print(f"{done} of {total} {what}", file=sys.stderr, flush=True)

        yield line
        return
    with count_bar(what) as update:
        yield update


def _bits_per_byte(model: str, plan: Plan) -> dict[str, Any]:
    from shoal.eval.bpb import microworld_bits_per_byte

    measured = microworld_bits_per_byte(model, languages=plan.languages, seed=plan.seed, split=plan.split)
    return {"bits_per_byte": measured["bits_per_byte"], "bits_per_byte_tokens": measured["tokens"]}


def _write_card(
    path: Path, asker: Asker, opened: OpenedModel | None, plan: Plan, result: dict[str, Any]
) -> None:
    from shoal.eval.card import card, transcripts
    from shoal.files import atomic_write_text

    facts = []
    receipt = None
    if opened is not None:
        receipt = opened.side_files.receipt
        facts = [
            f"Architecture: {opened.config.model_type}, {opened.config.num_hidden_layers} layers, "
            f"width {opened.config.hidden_size}, context {opened.config.max_position_embeddings:,} tokens, "
            f"vocabulary {opened.config.vocab_size:,}.",
            f"Parameters: {opened.parameters / 1e6:.2f}M, active per token "
            f"{opened.parameters_active / 1e6:.2f}M.",
        ]
    spoken: dict[str, Any] = {language: transcripts(asker, language) for language in plan.languages}
    atomic_write_text(path, card(asker.name, facts, result, spoken, receipt))


def _page(result: dict[str, Any]) -> str:
    from shoal.eval.scores import Score, plain, table

    def rows(key: str) -> list[Score]:
        names = Score.__dataclass_fields__
        return [Score(**{name: row[name] for name in names}) for row in result[key]]

    lines = []
    if "scores" in result:
        lines += [
            f"{result['model']}: {result['questions']} held-out questions ({result['split']}), {result['seconds']} s",
            "",
        ]
        lines += [plain(table(rows("scores"))), "", plain(table(rows("summary")))]
    for language, value in (result.get("bits_per_byte") or {}).items():
        lines.append(f"bits per byte, {language}: {value:.4f}")
    return "\n".join(lines)
