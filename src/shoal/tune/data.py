"""Rows for tuning: a file's conversations, looked through before work starts, shuffled anew for every pass, packed.

Packed rows do not see each other: every conversation attends only to itself, with positions from 0.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch

from shoal.data import sources
from shoal.data.chat import ChatProtocol, show_training
from shoal.data.families import NoChatProtocol
from shoal.data.packing import Example, Packer, Rows, encode_example
from shoal.data.splits import only
from shoal.data.tokenizer import Tokenizer
from shoal.data.types import Conversation, Document
from shoal.errors import ShoalError
from shoal.train.loop import Batch
from shoal.train.recipe import value_at
from shoal.train.rows import PackedRows, bytes_of_ids
from shoal.train.world import World
from shoal.tune.recipe import TuneStage

PART = 1024  # generated examples that a resume may have to read again


@dataclass
class Data:
    """The examples of a stage, in the order of their source; endless sources are read part by part instead."""

    train: list[Example]
    validation: list[Example]
    generate: Callable[[int], Iterator[Example]] | None = None

    def part(self, seed: int, number: int) -> Iterator[Example]:
        """Pass `number` over the training examples, in an order of its own, or part `number` of an endless source."""
        if self.generate:
            return self.generate(number)
        order = list(range(len(self.train)))
        random.Random(f"{seed}/{number}").shuffle(order)
        return (self.train[i] for i in order)


def read_data(stage: TuneStage, seed: int) -> Data:
    """Every row of the source, read and checked for its shape. Raises ShoalError naming file, line and reason."""
    if stage.source == "microworld":
        from shoal.data.microworld import generate

        def documents(part: int, split: str = "train") -> Iterator[Example]:
            stream = generate.documents(seed, stage.mix, cast(generate.Split, split), start=part * PART)
            return itertools.islice(stream, PART)

        if not stage.tokens:
            raise ShoalError("microworld has no end", hint="Set tokens, not epochs.", exit_code=2)
        return Data([], list(documents(0, "validation")), documents)
    examples = list(sources.documents(stage.source))
    if not examples:
        raise ShoalError(f"{stage.source} holds no rows")
    shares = {"validation": stage.validation, "test": 0.0}
    train = list(only(examples, "train", shares))
    if not train:  # a handful of rows: all teach, none is held out
        return Data(examples, [])
    return Data(train, list(only(examples, "validation", shares)))


@dataclass
class Survey:
    """What the training rows come to."""

    rows: int = 0
    tokens: int = 0
    """Of one pass, as they will be packed."""
    learnt: int = 0
    """Tokens of one pass that teach."""
    too_long: int = 0
    nothing_left: int = 0
    """Rows whose answers begin behind the end of a row."""

    def sentence(self, stage: TuneStage) -> str:
        """For people."""
        length = value_at(stage.row_length, 1.0)
        parts = [f"{self.rows:,} rows, {self.tokens:,} tokens, {self.learnt:,} of them teach"]
        if self.too_long:
            done = {"cut": "cut", "drop": "dropped"}[stage.too_long]
            parts.append(f"{self.too_long:,} longer than {length} tokens are {done}")
        if self.nothing_left:
            parts.append(f"{self.nothing_left:,} have no answer within {length} tokens and are left out")
        return "; ".join(parts)


def survey(
    examples: Sequence[Example], stage: TuneStage, tokenizer: Tokenizer, protocol: ChatProtocol
) -> Survey:
    """Render every row as it will be trained on. Raises ShoalError, naming the row, for what cannot be."""
    found, length = Survey(), value_at(stage.row_length, 1.0)
    for example in examples:
        ids, learnt = encode_row(example, stage, tokenizer, protocol)
        found.rows += 1
        positions = len(ids) - 1
        if isinstance(example, Conversation) and positions > length:
            found.too_long += 1
            positions = length
            if not any(learnt[1 : length + 1]):
                found.nothing_left += 1
                continue
            if stage.too_long == "drop":
                continue
        found.tokens += positions
        found.learnt += sum(learnt[1 : positions + 1])
    if found.rows and not found.tokens:
        raise ShoalError(
            f"none of the {found.rows} rows of {stage.source} has an answer within {length} tokens",
            hint="The rows are too long: raise row_length, or shorten them (--dry-run shows two).",
        )
    return found


def encode_row(
    example: Example, stage: TuneStage, tokenizer: Tokenizer, protocol: ChatProtocol
) -> tuple[list[int], list[bool]]:
    """Ids and what is learnt, with the row named in errors."""
    if isinstance(example, Conversation) and isinstance(protocol, NoChatProtocol):
        raise ShoalError(
            "the rows are conversations, but this base model has no chat template",
            hint='Use a chat model as the base, or rows of the shape {"text": "..."} with loss_on = "all".',
        )
    if isinstance(example, Document) and stage.loss_on == "assistant":
        raise ShoalError(
            f"{where(example)}: it is a text without turns, and loss_on is assistant: nothing would be learnt",
            hint='Write loss_on = "all", or rows in one of these shapes:\n  '
            + "\n  ".join(sources.SHAPES[1:]),
        )
    try:
        return encode_example(
            example, tokenizer, protocol, loss_on=cast(Literal["all", "assistant"], stage.loss_on)
        )
    except ShoalError as error:
        raise ShoalError(f"{where(example)}: {error.message}", hint=error.hint) from error


def where(example: Example) -> str:
    """The file and line of a row."""
    source, line = example.meta.get("source", "row"), example.meta.get("line")
    return f"{source}, line {line}" if line else str(source)


def dry_run(
    data: Data, stage: TuneStage, tokenizer: Tokenizer, protocol: ChatProtocol, count: int = 2
) -> str:
    """The first rows as they are trained on, what teaches between marks, and what all rows come to."""
    length = value_at(stage.row_length, 1.0)
    examples = data.train or list(itertools.islice(data.part(0, 0), 64))
    lines = []
    for number, example in enumerate(examples[:count], 1):
        ids, learnt = encode_row(example, stage, tokenizer, protocol)
        cut = f", cut to {length}" if len(ids) - 1 > length and isinstance(example, Conversation) else ""
        lines.append(
            f"--- row {number}: {where(example)} ({len(ids)} tokens{cut}; what is learnt stands in ⟦ ⟧)"
        )
        lines.append(show_training(tokenizer, ids[: length + 1], learnt[: length + 1]))
    lines.append(f"--- {survey(examples, stage, tokenizer, protocol).sentence(stage)}")
    lines.append(f"--- {len(data.validation):,} more rows are held out")
    return "\n".join(lines)


class TunedRows(PackedRows):
    """Packed rows of a stage's data; see `Rows` in train/loop.py."""

    def __init__(
        self,
        data: Data,
        stage: TuneStage,
        tokenizer: Tokenizer,
        protocol: ChatProtocol,
        *,
        seed: int = 1,
        world: World | None = None,
        heldout: bool = False,
    ):
        self.recipe, self.world = stage, world or World()
        open_part = (
            (lambda number: iter(data.validation)) if heldout else (lambda number: data.part(seed, number))
        )
        self.packer = Packer(
            open_part,
            tokenizer,
            protocol,
            loss_on=cast(Literal["all", "assistant"], stage.loss_on),
            waiting=256
            if data.generate and not heldout
            else min(256, len(data.validation if heldout else data.train)),
            too_long=cast(Literal["cut", "drop"], stage.too_long),
        )
        self.bytes_of_id = bytes_of_ids(tokenizer)

    def details(self) -> dict[str, Any]:
        """Counts for the receipt: conversations so far, and those that were too long."""
        packer = self.packer
        return {"conversations": packer.documents, "rows_cut": packer.cut,
                "rows_dropped": packer.dropped + packer.left_out}  # fmt: skip

    def _batch(self, rows: Rows, separate: bool) -> Batch:
        batch = super()._batch(rows, separate)
        batch.position_ids_BL = torch.from_numpy(rows.position_ids)
        return batch
