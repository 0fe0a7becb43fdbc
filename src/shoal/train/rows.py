"""Packed rows for the trainer: documents of a source in, micro-batches out, resumable at any step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch

from shoal.data.chat import protocol_for
from shoal.data.packing import IGNORED, Example, Packer, Rows, stack
from shoal.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from shoal.data.types import Document
from shoal.train.loop import Batch
from shoal.train.prefetch import PrefetchedRows
from shoal.train.recipe import DataRecipe, Recipe, StageRecipe, value_at
from shoal.train.world import World

PART = 2048  # generated documents that a resume may have to read again


def open_part(data: DataRecipe, seed: int, part: int, split: str = "train") -> Iterator[Example]:
    """Part `part` of a source: PART documents of the microworld, or one pass over files."""
    if data.source == "microworld":
        from shoal.data.microworld import generate

        stream = generate.documents(seed, data.mix, cast(generate.Split, split), start=part * PART)
        return itertools.islice(stream, PART)
    from shoal.data import sources

    return sources.documents(data.source, split=cast(sources.Split, split))


def run_tokenizer(recipe: Recipe, folder: Path) -> None:
    """Put the run's tokenizer into `folder`: a copy of the recipe's, or one trained on the first documents."""
    if recipe.tokenizer.path:
        load_tokenizer(recipe.tokenizer.path).save(folder)
        return
    stages = [s for s in (recipe.train, recipe.sft) if s.tokens]

    def examples(stage: StageRecipe) -> Iterator[Example]:
        endless = stage.source == "microworld"
        for part in itertools.count() if endless else range(1):
            yield from open_part(stage, recipe.run.seed, part)

    def texts() -> Iterator[str]:
        for stage in stages:
            for example in itertools.islice(examples(stage), recipe.tokenizer.documents // len(stages)):
                if isinstance(example, Document):
                    yield example.text
                else:
                    for message in example.messages:
                        yield from filter(None, (message.reasoning_content, message.content))

    train_tokenizer(texts(), recipe.tokenizer.vocab_size, recipe.tokenizer.digits).save(folder)


def bytes_of_ids(tokenizer: Tokenizer) -> torch.Tensor:
    """UTF-8 bytes that each token spells; special tokens spell none."""
    ids = range(tokenizer.vocab_size)
    return torch.tensor([0 if i in tokenizer.special_ids else len(tokenizer.token_bytes(i)) for i in ids])


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
        share: tuple[int, int] = (0, 1),
    ):
        """`share` (w, W): of the source's parts only w, w + W, w + 2W, ..."""
        self.recipe: StageRecipe = getattr(recipe, stage)
        self.world = world or World()
        seed = recipe.run.seed + {"train": 0, "sft": 1, "mtp": 2}[stage] * 7919
        self.packer = Packer(
            lambda part: open_part(self.recipe, seed, part * share[1] + share[0], split),
            tokenizer,
            protocol_for(tokenizer, model_type=recipe.model["model_type"]),
            loss_on=cast(Literal["all", "assistant"], self.recipe.loss_on),
        )
        self.bytes_of_id = bytes_of_ids(tokenizer)

    def next_step(self, progress: float) -> list[Batch]:
        """This rank's micro-batches of the step at `progress` (0..1) of the stage."""
        length = value_at(self.recipe.row_length, progress)
        size = self.world.size
        rows = max(1, round(value_at(self.recipe.tokens_per_step, progress) / length / size)) * size
        own = [self.packer.row(length) for _ in range(rows)][self.world.rank :: size]
        count = max(1, self.recipe.micro_batch_tokens // length)
        separate = bool(value_at(self.recipe.separate_documents, progress))
        return [self._batch(stack(own[i : i + count]), separate) for i in range(0, len(own), count)]

    def state(self) -> dict[str, Any]:
        """Where the stream stands (JSON)."""
        return self.packer.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.packer.restore(state)

    def close(self) -> None:
        """Nothing to give back."""

    def _batch(self, rows: Rows, separate: bool) -> Batch:
        labels = torch.from_numpy(rows.labels)
        return Batch(
            input_ids_BL=torch.from_numpy(rows.input_ids),
            labels_BL=labels,
            document_ids_BL=torch.from_numpy(rows.document_ids) if separate else None,
            tokens=rows.tokens,
            text_bytes=int(self.bytes_of_id[labels[labels != IGNORED]].sum()),
        )


@dataclass(frozen=True)
class _MakeRows:
    """What a worker process needs to make its share of a stage's rows."""

    recipe: Recipe
    stage: str
    tokenizer_folder: Path
    world: World

    def __call__(self, worker: int, workers: int) -> PackedRows:
        tokenizer = load_tokenizer(self.tokenizer_folder)
        return PackedRows(self.recipe, self.stage, tokenizer, world=self.world, share=(worker, workers))


def stage_rows(
    recipe: Recipe, stage: str, tokenizer: Tokenizer, tokenizer_folder: Path, world: World
) -> PackedRows | PrefetchedRows:
    """The rows of a stage, packed in this process or by `run.workers` processes."""
    if not recipe.run.workers:
        return PackedRows(recipe, stage, tokenizer, world=world)
    return PrefetchedRows(_MakeRows(recipe, stage, tokenizer_folder, world), recipe.run.workers)
