"""What an engine asks of a runner: tokens and cache places in, logits out, numpy at the boundary.

A runner knows nothing of requests, queues, sampling or text. It owns the weights and the memory of the cache; which
cache block belongs to whom is decided above it (`cache.py`) and told with each chunk. Rolling the cache back needs no
call: the next chunk of a sequence begins at an earlier `start`, and what was written behind it is overwritten.
Sequences may share cache blocks at the beginning of their tables; those are only read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Chunk:
    """The next tokens of one sequence: one when it decodes, several in a prefill or when drafts are verified."""

    token_ids: Sequence[int]
    start: int
    """The position of the first of them = how many tokens of the sequence stand in the cache and count."""
    block_table: Sequence[int]
    """The cache blocks of positions 0 .. start + len(token_ids) - 1, in order."""
    logits: int = 0
    """For how many of the last tokens logits are wanted: 0 none, 1 to sample, all of them to score or verify."""
    adapter: str | None = None
    hidden: bool = False
    """Also the hidden states (after the final norm) of those positions."""
    routing: bool = False
    """Also which experts each token of the chunk went to."""


@dataclass(frozen=True)
class DraftChunk:
    """For `Runner.draft`: the tokens behind positions start, start + 1, ... of one sequence, all but the last of its
    tokens standing in the cache. `block_table` has room for `count` positions behind the last of them."""

    token_ids: Sequence[int]
    start: int
    block_table: Sequence[int]
    count: int
    """How many tokens to draft; 0 only reads."""


@dataclass(frozen=True)
class RunnerOutput:
    """Results in the order of the chunks."""

    logits: list[NDArray[np.float32]]
    """For each chunk [chunk.logits, V]."""
    hidden: list[NDArray[np.float32] | None] = field(default_factory=list)
    """For each chunk [chunk.logits, D] or None; empty when no chunk asked."""
    routing: list[NDArray[np.int32] | None] = field(default_factory=list)
    """For each chunk [tokens, MoE layers, K] or None; empty when no chunk asked."""


class Runner(Protocol):
    """Weights and cache memory of one model."""

    vocab_size: int
    max_positions: int
    """Positions the network itself allows (`max_position_embeddings`)."""
    block_size: int
    """Positions in a cache block."""
    cache_blocks: int
    """How many cache blocks there are; their ids are 0 .. cache_blocks - 1."""
    prefill_chunk: int
    """Tokens in a step that this device still does in a fraction of a second; more brings little speed."""
    threads: int
    """CPU cores it keeps busy while it runs, for the bill of an answer."""
    block_bytes: int
    """Bytes of one cache block, all layers."""
    cache_layout: str
    """Name of the layout and the number format of a block's bytes: changes when `write_block` would misread them."""
    has_mtp: bool
    """Whether `draft` can be called."""

    def run(self, chunks: Sequence[Chunk]) -> RunnerOutput:
        """One forward pass over the tokens of all chunks. Running the same chunks again gives the same result, so a
        step that failed may be repeated in parts. Raises ShoalError for an unknown adapter or an ability it lacks."""
        ...

    def draft(self, chunks: Sequence[DraftChunk]) -> list[list[int]]:
        """Greedy drafts of the multi-token prediction module, which reads what `run` left in the cache. It keeps keys
        and values of its own there: each position must be given once, in order (again from an earlier `start` after
        a roll-back), before it drafts behind it; a gap makes drafts worse, never an answer wrong."""
        ...

    def read_block(self, block: int) -> Any:
        """A copy of a cache block's bytes (anything with the buffer protocol), to be kept and given back later."""
        ...

    def write_block(self, block: int, contents: Any) -> None:
        """Fill a cache block with what `read_block` gave, `block_bytes` of it."""
        ...

    def copy_block(self, source: int, target: int) -> None:
        """Fill a cache block with what another one holds."""
        ...

    def load_adapter(self, name: str, factors: Mapping[str, tuple[Any, Any, float]]) -> None:
        """Let chunks ask for this adapter, until a later call of the same name: {module: (A, B, scale)} adds
        scale * B A to a matrix (model/checkpoint/adapter_files.py); arrays in numpy, or in what the runner is made of,
        which it may share. Raises ShoalError for a module it does not have or cannot adapt."""
        ...

    def unload_adapter(self, name: str) -> None:
        """Forget it; no chunk asks for it any more."""
        ...

    def refresh_weights(self, tensors: Mapping[str, Any]) -> None:
        """Copy these tensors (by checkpoint name, anything DLPack understands) over the weights, in place. What the
        cache holds is then out of date; the engine sees to that."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...
