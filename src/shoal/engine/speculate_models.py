"""Drafters that compute: the multi-token prediction module of the model itself, or a small model beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from shoal.engine.cache import BlockPool
from shoal.engine.runner import Chunk, DraftChunk, Runner
from shoal.engine.scheduler import Sequence as TokenSequence
from shoal.engine.speculate import Offer

_FIRST_GUESS_SECONDS = 1e-4  # per drafted token, until it is measured


class MTPDrafter:
    """The runner's own MTP module. It reads each position of a sequence once, also those of a shared prefix, for
    their row may be of a request that never drafted."""

    name: str = "mtp"
    expected: Sequence[float] = (0.6,)

    def __init__(self, runner: Runner):
        self.seconds_per_token = _FIRST_GUESS_SECONDS
        self._runner = runner
        self._read: dict[TokenSequence, tuple[int, int]] = {}  # (positions, in which of its readings)

    def offer(self, sequence: TokenSequence, most: int) -> Offer | None:
        return Offer(sequence, self, 0, most) if sequence.processed else None

    def draft(self, offers: Sequence[Offer], counts: Sequence[int]) -> list[list[int]]:
        chunks = []
        for offer, count in zip(offers, counts, strict=True):
            sequence, step = offer.sequence, self._runner.prefill_chunk
            read, reading = self._read.get(sequence, (0, 0))
            end = sequence.processed
            start = min(read, end - 1) if reading == sequence.preemptions else 0
            for begin in range(start, end - step, step):
                ids = sequence.token_ids[begin + 1 : begin + step + 1]
                self._runner.draft([DraftChunk(ids, begin, sequence.block_table, 0)])
                start = begin + step
            ids = sequence.token_ids[start + 1 : end + 1]
            chunks.append(DraftChunk(ids, start, sequence.block_table, count))
            self._read[sequence] = end, sequence.preemptions
        return self._runner.draft(chunks)

    def forget(self, sequence: TokenSequence | None) -> None:
        if sequence is None:
            self._read.clear()
        else:
            self._read.pop(sequence, None)


@dataclass
class _Held:
    """The tokens of a sequence that stand in the small model's cache."""

    token_ids: list[int] = field(default_factory=list)
    block_table: list[int] = field(default_factory=list)


class ModelDrafter:
    """A small model of the same vocabulary, greedy, with a cache of its own."""

    name: str = "model"
    expected: Sequence[float] = (0.7,)

    def __init__(self, runner: Runner):
        self.seconds_per_token = _FIRST_GUESS_SECONDS
        self._runner = runner
        self._pool = BlockPool(runner.cache_blocks, runner.block_size)
        self._held: dict[TokenSequence, _Held] = {}

    def offer(self, sequence: TokenSequence, most: int) -> Offer | None:
        positions = len(sequence.token_ids) + most
        held = self._held.setdefault(sequence, _Held())
        missing = self._pool.blocks_for(positions) - len(held.block_table)
        if positions > self._runner.max_positions or not self._pool.can_allocate(max(0, missing)):
            return None
        self._pool.allocate(held.block_table, max(0, missing))
        return Offer(sequence, self, 0, most)

    def draft(self, offers: Sequence[Offer], counts: Sequence[int]) -> list[list[int]]:
        drafts: list[list[int]] = [[] for _ in offers]
        for offer in offers:
            held, ids = self._held[offer.sequence], offer.sequence.token_ids
            same = len(held.token_ids)
            while held.token_ids[:same] != ids[:same] or same == len(
                ids
            ):  # rejected drafts; the last is read anew
                same -= 1
            del held.token_ids[same:]
            while len(ids) - len(held.token_ids) > self._runner.prefill_chunk:
                self._run([self._chunk(held, ids[: len(held.token_ids) + self._runner.prefill_chunk], 0)])
        for place in range(max(counts)):
            some = [i for i, count in enumerate(counts) if count > place]
            chunks = [
                self._chunk(self._held[offers[i].sequence], [*offers[i].sequence.token_ids, *drafts[i]], 1)
                for i in some
            ]
            for i, best in zip(some, self._run(chunks), strict=True):
                drafts[i].append(best)
        return drafts

    def _chunk(self, held: _Held, ids: list[int], logits: int) -> Chunk:
        start = len(held.token_ids)
        held.token_ids.extend(ids[start:])
        return Chunk(ids[start:], start, held.block_table[: self._pool.blocks_for(len(ids))], logits)

    def _run(self, chunks: Sequence[Chunk]) -> list[int]:
        return [int(np.argmax(row[-1])) for row in self._runner.run(chunks).logits if len(row)]

    def forget(self, sequence: TokenSequence | None) -> None:
        if sequence is not None and (held := self._held.pop(sequence, None)) is not None:
            self._pool.release(held.block_table)
