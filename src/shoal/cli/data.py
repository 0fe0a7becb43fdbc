"""`shoal data`: look at training data before a run, train a tokenizer, print samples of the microworld."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from shoal.errors import ShoalError, UsageError

if TYPE_CHECKING:
    from shoal.data.chat import ChatProtocol
    from shoal.data.tokenizer import Tokenizer
    from shoal.data.types import Conversation, Document

app = typer.Typer(
    help="Look at training data, train a tokenizer, print samples of the microworld.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
_JSON = typer.Option(False, "--json", help="Print one JSON object on stdout.")
_SOURCE = typer.Argument(..., help="A file, a folder, or hub:OWNER/NAME.")


@app.command("inspect")
def inspect(
    source: str = _SOURCE,
    model: str | None = typer.Option(
        None, help="Count and show tokens as this model sees them (a model's name or path)."
    ),
    length: int | None = typer.Option(
        None, min=2, help="Row length: how full packed rows get, and what is left out."
    ),
    rows: int = typer.Option(2, min=0, help="How many examples to show."),
    limit: int | None = typer.Option(None, min=1, help="Read only so many examples."),
    split: str | None = typer.Option(None, help="train, validation or test. Default: all."),
    as_json: bool = _JSON,
) -> None:
    """Read a data source as training does: count it, name its first bad row, and show examples.

    With --model, what is learnt stands between ⟦ and ⟧ (assistants' text and end tokens, or a whole text), and tokens
    are counted. Accepted are .txt and .md; .jsonl and .json rows with text, messages, ShareGPT's conversations,
    Alpaca's instruction and output, or prompt and completion; all also .gz and .zst; .parquet with those columns.

    Examples:

      shoal data inspect chats.jsonl

      shoal data inspect chats.jsonl --model nano --length 512

      shoal data inspect books/ --split validation --json
    """
    from shoal.data.sources import documents

    if split not in (None, "train", "validation", "test"):
        raise UsageError(f"there is no split {split!r}", hint="Splits are train, validation and test.")
    if length is not None and model is None:
        raise UsageError("--length needs --model: tokens are counted as a model sees them")
    tokenizer, protocol = _of_model(model) if model else (None, None)
    facts: dict[str, Any] = {
        "source": source,
        "documents": 0,
        "conversations": 0,
        "turns": 0,
        "characters": 0,
        "bytes": 0,
    }
    tokens = learnt = 0
    shown: list[str] = []
    for example in itertools.islice(documents(source, split=split), limit):  # type: ignore[arg-type]
        text = _text(example)
        facts["characters"] += len(text)
        facts["bytes"] += len(text.encode("utf-8", "replace"))
        messages = getattr(example, "messages", None)
        facts["conversations" if messages else "documents"] += 1
        facts["turns"] += len(messages or ())
        marked = None
        if tokenizer is not None:
            ids, flags, marked = _learnt(example, tokenizer, protocol)
            tokens += len(ids)
            learnt += sum(flags)
        if len(shown) < rows:
            shown.append(marked if marked is not None else text)
    if not facts["documents"] and not facts["conversations"]:
        raise ShoalError(f"{source} holds no examples" + (f" in split {split}" if split else ""))
    if tokenizer is not None:
        facts |= {
            "tokens": tokens,
            "learnt_tokens": learnt,
            "bytes_per_token": round(facts["bytes"] / max(tokens, 1), 3),
        }
        if length is not None:
            facts |= _packed(source, tokenizer, protocol, length, split, limit)
    if as_json:
        typer.echo(json.dumps({**facts, "examples": shown}, ensure_ascii=False))
        return
    for number, text in enumerate(shown, 1):
        typer.echo(f"--- example {number}\n{text if len(text) <= 2000 else text[:2000] + ' [...]'}")
    if shown:
        typer.echo("---")
    for name, value in facts.items():
        typer.echo(
            f"{name.replace('_', ' '):<16} {value:,}"
            if isinstance(value, int)
            else f"{name.replace('_', ' '):<16} {value}"
        )


@app.command("tokenizer")
def tokenizer(
    source: str = typer.Argument(..., help="A file, a folder, hub:OWNER/NAME, or microworld."),
    out: Path = typer.Option(..., "--out", help="Folder for tokenizer.json and its companions."),
    vocab_size: int = typer.Option(
        4096, min=275, help="Tokens, control tokens and the 256 bytes among them."
    ),
    digits: str = typer.Option(
        "single", help="single: each digit is a token; grouped: up to three, as DeepSeek does."
    ),
    limit: int | None = typer.Option(
        None, min=1, help="Learn from so many examples. Microworld: 20000 if not given."
    ),
    as_json: bool = _JSON,
) -> None:
    """Train a byte-level BPE tokenizer with DeepSeek's control tokens. The same data gives the same tokenizer.

    The folder opens in transformers, vLLM and llama.cpp's converter (pre-tokenizer deepseek-v3).

    Examples:

      shoal data tokenizer books/ --out my-tokenizer --vocab-size 8192

      shoal data tokenizer microworld --out my-tokenizer --limit 5000
    """
    from shoal.data.splits import only
    from shoal.data.tokenizer import train_tokenizer

    examples = itertools.islice(_all_of(source), limit if limit or source != "microworld" else 20_000)
    held_out: list[str] = []
    sizes = {"examples": 0}

    def texts() -> Iterator[str]:
        for example in examples:
            sizes["examples"] += 1
            if len(held_out) < 200 and next(only([example], "validation", {"validation": 0.1}), None):
                held_out.append(_text(example))
            else:
                yield _text(example)

    trained = train_tokenizer(texts(), vocab_size=vocab_size, digits=digits)
    if not sizes["examples"]:
        raise ShoalError(f"{source} holds no examples")
    trained.save(out)
    count = sum(map(len, trained.encode_batch(held_out)))
    size = sum(len(text.encode("utf-8", "replace")) for text in held_out)
    facts = {
        "path": str(out),
        "vocab_size": trained.vocab_size,
        "examples": sizes["examples"],
        "held_out_bytes_per_token": round(size / count, 3) if count else None,
    }
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    per_token = facts["held_out_bytes_per_token"]
    typer.echo(f"{out}  {trained.vocab_size:,} tokens from {sizes['examples']:,} examples")
    typer.echo(
        f"{per_token} bytes per token on text it did not learn from"
        if per_token
        else "too little data to measure on"
    )
    if trained.vocab_size < vocab_size:
        typer.echo(f"note: the text gives only {trained.vocab_size:,} of {vocab_size:,} tokens", err=True)


@app.command("microworld")
def microworld(
    count: int = typer.Option(5, "--count", "-n", min=1, help="How many samples."),
    kind: str = typer.Option("task", help="text, chat or task."),
    language: str = typer.Option("en", help="en or ja."),
    split: str = typer.Option("train", help="train, validation or test: people and number pairs differ."),
    family: str | None = typer.Option(None, help="Tasks of this family only."),
    level: int | None = typer.Option(None, min=1, max=5, help="Tasks of this level only."),
    seed: int = typer.Option(0, help="Another seed, other samples."),
    as_json: bool = _JSON,
) -> None:
    """Print samples of the generated world that shoal-nano learns from. Equal arguments give equal samples.

    Examples:

      shoal data microworld -n 3 --kind chat --language ja

      shoal data microworld --family sum --level 2

      shoal data microworld --kind text --json
    """
    from shoal.data.microworld.generate import stream

    if kind != "task" and (family or level):
        raise UsageError("--family and --level choose tasks", hint="Leave them out, or use --kind task.")
    samples = itertools.islice(
        stream(seed, split, language, kind, family=family, level=level),  # type: ignore[arg-type]
        count,
    )
    if as_json:
        typer.echo(json.dumps({"samples": [asdict(sample) for sample in samples]}, ensure_ascii=False))
        return
    for sample in samples:
        if kind == "task":
            typer.echo(
                f"[{sample.family} {sample.level}] {sample.question}\n  {sample.reply}   ({sample.reasoning})"
            )
        else:
            typer.echo(_text(sample, roles=True) + "\n")


def _of_model(name: str) -> tuple[Tokenizer, ChatProtocol]:
    """Tokenizer and protocol of a model, without its weights."""
    from shoal.data.chat import protocol_for
    from shoal.data.tokenizer import load_tokenizer, tokenizer_from_gguf
    from shoal.model.checkpoint import load

    if (folder := Path(name)).is_dir() and (folder / "tokenizer.json").is_file():
        tokenizer = load_tokenizer(folder)  # a tokenizer alone is enough
        return tokenizer, protocol_for(tokenizer)
    path = load.resolve(name)
    side = load.read_side_files(path)
    gguf = side.gguf_metadata
    tokenizer = tokenizer_from_gguf(gguf) if gguf is not None else load_tokenizer(path)
    return tokenizer, protocol_for(tokenizer, chat_template=side.chat_template)


def _learnt(
    example: Document | Conversation, tokenizer: Tokenizer, protocol: ChatProtocol | None
) -> tuple[list[int], list[bool], str]:
    from shoal.data.chat import show_training
    from shoal.data.packing import encode_example

    ids, flags = encode_example(example, tokenizer, protocol, loss_on="assistant")
    return ids, flags, show_training(tokenizer, ids, flags)


def _packed(
    source: str,
    tokenizer: Tokenizer,
    protocol: ChatProtocol | None,
    length: int,
    split: str | None,
    limit: int | None,
) -> dict[str, Any]:
    """How full rows of this length get, over one pass."""
    from shoal.data.packing import Packer
    from shoal.data.sources import documents

    packer = Packer(
        lambda part: itertools.islice(documents(source, split=split), limit),  # type: ignore[arg-type]
        tokenizer,
        protocol,
    )
    rows = tokens = 0
    while packer.part == 0 and rows < 1000:
        tokens += packer.row(length).tokens
        rows += 1
    return {"padding_share": round(1 - tokens / (rows * length), 4), "left_out": packer.left_out}


def _all_of(source: str) -> Iterator[Document | Conversation]:
    if source == "microworld":
        from shoal.data.microworld.generate import documents as generated

        return iter(generated(0))
    from shoal.data.sources import documents

    return documents(source)


def _text(example: Document | Conversation, *, roles: bool = False) -> str:
    """All that an example says, as one text."""
    messages = getattr(example, "messages", None)
    if messages is None:
        return str(getattr(example, "text", ""))
    said = []
    for message in messages:
        thought = f"({message.reasoning_content}) " if message.reasoning_content else ""
        said.append((f"{message.role}: " if roles else "") + thought + (message.content or ""))
    return "\n".join(said)


@app.command("from-chats")
def from_chats(
    target: Path = typer.Argument(..., metavar="FILE", help="The .jsonl file to write."),
    kind: str = typer.Option("sft", metavar="sft|preference|reward", help="Which rows; see below."),
    owner: str = typer.Option("local", help="Whose chats: a user's name, on a server where people sign in."),
    force: bool = typer.Option(False, "--force", help="Replace FILE."),
    as_json: bool = _JSON,
) -> None:
    """Turn the chat page's thumbs, edits and choices into rows to learn from.

    sft: answers that were edited (as people wrote them) or got a thumbs-up. preference: an edited answer over the one
    it replaced, the chosen of two answers, a thumbs-up over a thumbs-down on the same question. reward: every answer
    with a thumb, as 1 or 0. Nothing leaves this machine.

    Examples:

      shoal data from-chats mine.jsonl

      shoal data from-chats pairs.jsonl --kind preference
    """
    from shoal.files import atomic_write_text, shoal_home
    from shoal.serve.accounts import Accounts
    from shoal.serve.feedback_rows import rows
    from shoal.serve.store import Store

    if kind not in ("sft", "preference", "reward"):
        raise UsageError(f"unknown --kind {kind}", hint="sft, preference or reward.")
    if target.exists() and not force:
        raise ShoalError(f"{target} exists", hint="Choose another name, or replace it with --force.")
    place = shoal_home() / "chats.sqlite"
    if not place.is_file():
        raise ShoalError(f"there are no chats yet ({place})", hint="shoal serve, and talk to a model.")
    with contextlib.closing(Accounts(place)) as accounts:
        user = accounts.find(owner) if accounts.on else None
        if user:
            accounts.add_audit("exported", f"{kind} rows of {user.name}", address="command line")
    store = Store(place, serving=False)
    try:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows(store, user.id if user else owner, kind)]  # type: ignore[arg-type]
    finally:
        store.close()
    if not lines:
        raise ShoalError(
            f"no answer gives a row of kind {kind}",
            hint="Give thumbs on the page, edit an answer, or choose between two; then try again.",
        )
    atomic_write_text(target, "\n".join(lines) + "\n")
    result = {"path": str(target), "rows": len(lines), "kind": kind}
    typer.echo(json.dumps(result) if as_json else f"{target}: {len(lines)} rows ({kind})")
