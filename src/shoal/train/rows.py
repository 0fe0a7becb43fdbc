"""Packed rows for the trainer: documents in, micro-batches out, resumable at any step.

Legend: B rows of L positions. Documents are taken in a fixed order that follows from the seed; rows are filled best-fit
(the longest waiting document that still fits), so that hardly any position is padding and none is cut.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from shoal.data.chat import ChatProtocol, protocol_for
from shoal.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from shoal.data.types import Conversation, Document
from shoal.errors import ShoalError
from shoal.ops.loss import IGNORED
from shoal.train.loop import Batch
from shoal.train.recipe import DataRecipe, Recipe, StageRecipe, value_at
from shoal.train.world import World

WAITING = 256  # documents among which the best fit is looked for

Piece = tuple[list[int], list[bool]]  # token ids, and for each whether it teaches (the first never does)


def open_documents(
    data: DataRecipe, seed: int, *, start: int = 0, split: str = "train"
) -> Iterator[Document | Conversation]:
    """One pass over a source from document `start` on; the microworld has no end."""
    if data.source == "microworld":
        from shoal.data.microworld import generate

        return generate.documents(seed, data.mix, cast(generate.Split, split), start=start)
    from shoal.data.sources import documents

    return itertools.islice(documents(data.source, split=split), start, None)


def run_tokenizer(recipe: Recipe, folder: Path) -> None:
    """Put the run's tokenizer into `folder`: a copy of the recipe's, or one trained on the first documents."""
    if recipe.tokenizer.path:
        load_tokenizer(recipe.tokenizer.path).save(folder)
        return
    stages = [s for s in (recipe.train, recipe.sft) if s.tokens]

    def texts() -> Iterator[str]:
        for stage in stages:
            share = recipe.tokenizer.documents // len(stages)
            for document in itertools.islice(open_documents(stage, recipe.run.seed), share):
                if isinstance(document, Document):
                    yield document.text
                else:
                    for message in document.messages:
                        yield from filter(None, (message.reasoning_content, message.content))

    train_tokenizer(texts(), recipe.tokenizer.vocab_size, recipe.tokenizer.digits).save(folder)


class PackedRows:
    """The rows of one stage; see `Rows` in loop.py. Every rank draws all rows and keeps each `world.size`-th."""

    def __init__(
        self,
        recipe: Recipe,
        stage: str,
        tokenizer: Tokenizer,
        *,
        world: World | None = None,
        split: str = "train",
    ):
        self.recipe: StageRecipe = getattr(recipe, stage)
        self.seed = recipe.run.seed + {"train": 0, "sft": 1, "mtp": 2}[stage] * 7919
        self.tokenizer, self.world, self.split = tokenizer, world or World(), split
        self.protocol: ChatProtocol = protocol_for(tokenizer, model_type=recipe.model["model_type"])
        self.bytes_of_id = torch.tensor(
            [
                0 if i in tokenizer.special_ids else len(tokenizer.token_bytes(i))
                for i in range(tokenizer.vocab_size)
            ]
        )
        self.epoch = self.taken = 0
        self._documents: Iterator[Document | Conversation] | None = None
        self._waiting: list[tuple[int, int, Piece]] = []  # (length, serial number, piece), sorted
        self._serial = 0

    # ---- Rows

    def next_step(self, progress: float) -> list[Batch]:
        """This rank's micro-batches of the step at `progress` (0..1) of the stage."""
        length = value_at(self.recipe.row_length, progress)
        size = self.world.size
        rows = max(1, round(value_at(self.recipe.tokens_per_step, progress) / length / size)) * size
        own = [self.row(length) for _ in range(rows)][self.world.rank :: size]
        count = max(1, self.recipe.micro_batch_tokens // length)
        return [self._batch(own[i : i + count], length) for i in range(0, len(own), count)]

    def state(self) -> dict[str, Any]:
        """Where the stream stands (JSON)."""
        waiting = [
            [length, serial, ids, [i for i, t in enumerate(teaches) if t]]
            for length, serial, (ids, teaches) in self._waiting
        ]
        return {"epoch": self.epoch, "taken": self.taken, "serial": self._serial, "waiting": waiting}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.epoch, self.taken, self._serial = state["epoch"], state["taken"], state["serial"]
        self._documents = None
        self._waiting = []
        for length, serial, ids, teaching in state["waiting"]:
            teaching = set(teaching)
            self._waiting.append((length, serial, (ids, [i in teaching for i in range(len(ids))])))

    # ---- packing

    def row(self, length: int) -> list[Piece]:
        """The documents of one row."""
        pieces: list[Piece] = []
        free = length
        while True:
            while len(self._waiting) < WAITING:
                self._take(length)
            index = bisect.bisect_right(self._waiting, free, key=lambda entry: entry[0]) - 1
            if index < 0:
                return pieces
            size, _, piece = self._waiting.pop(index)
            pieces.append(piece)
            free -= size

    def _take(self, length: int) -> None:
        """Put the next document among the waiting: whole if it fits a row, else cut (a text goes on in a new piece)."""
        ids, teaches = self._encode(self._next_document())
        step = length if self.recipe.loss_on == "all" else len(ids)
        for start in range(0, len(ids) - 1, step):
            piece = ids[start : start + length + 1], teaches[start : start + length + 1]
            if any(piece[1][1:]):
                bisect.insort(self._waiting, (len(piece[0]) - 1, self._serial, piece))
                self._serial += 1

    def _next_document(self) -> Document | Conversation:
        while True:
            fresh = self._documents is None
            if self._documents is None:
                self._documents = open_documents(self.recipe, self.seed, start=self.taken, split=self.split)
            for document in self._documents:
                self.taken += 1
                return document
            if fresh and not self.taken:
                raise ShoalError(
                    f"the source {self.recipe.source!r} holds no {self.split} documents",
                    hint="Look at it with: shoal data inspect SOURCE",
                )
            self._documents, self.taken, self.epoch = None, 0, self.epoch + 1

    def _encode(self, document: Document | Conversation) -> Piece:
        if isinstance(document, Conversation):
            thinking = document.meta.get("thinking")
            ids, mask = self.protocol.render_training(document.messages, thinking=thinking)
            return ids, mask if self.recipe.loss_on == "assistant" else [True] * len(ids)
        ids = self.tokenizer.encode(document.text)
        if self.tokenizer.bos_id is not None:
            ids = [self.tokenizer.bos_id, *ids]
        if self.tokenizer.eos_ids:
            ids = [*ids, self.tokenizer.eos_ids[0]]
        return ids, [True] * len(ids)

    def _batch(self, rows: list[list[Piece]], length: int) -> Batch:
        pad = self.tokenizer.pad_id if self.tokenizer.pad_id is not None else 0
        ids = torch.full((len(rows), length), pad)
        labels = torch.full((len(rows), length), IGNORED)
        documents = torch.full((len(rows), length), -1)
        tokens = 0
        for row, pieces in enumerate(rows):
            at = 0
            for number, (piece, teaches) in enumerate(pieces):
                end = at + len(piece) - 1
                inside = torch.tensor(piece)
                ids[row, at:end] = inside[:-1]
                labels[row, at:end] = inside[1:].masked_fill(~torch.tensor(teaches[1:]), IGNORED)
                documents[row, at:end] = number
                tokens, at = tokens + end - at, end
        return Batch(
            input_ids_BL=ids,
            labels_BL=labels,
            document_ids_BL=documents if self.recipe.separate_documents else None,
            tokens=tokens,
            text_bytes=self.text_bytes(labels),
        )

    def text_bytes(self, labels: Tensor) -> int:
        """UTF-8 bytes that the labels spell; special tokens spell none."""
        return int(self.bytes_of_id[labels[labels != IGNORED]].sum())
