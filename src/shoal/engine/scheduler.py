"""Who computes what in the next engine step. Counts tokens and blocks; touches no tensor and no clock.

Continuous batching with chunked prefill: every decoding sequence gets its token in every step, and what is left of the
step's token budget reads prompts, shared evenly between them so that a short prompt is not stuck behind a long one.
When the cache runs out, the youngest sequence gives its blocks back and is computed again later (preemption by
recompute).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from enum import Enum

from shoal.engine.cache import BlockPool


class SequenceStatus(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False)
class Sequence:
    """The tokens of one request, how many of them stand in the cache, and where."""

    token_ids: list[int]
    """The prompt, then the answer so far."""
    prompt_tokens: int
    processed: int = 0
    block_table: list[int] = field(default_factory=list)
    status: SequenceStatus = SequenceStatus.WAITING

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next one can be sampled; 1 while decoding."""
        return len(self.token_ids) - self.processed

    @property
    def answer_ids(self) -> SequenceOf[int]:
        return self.token_ids[self.prompt_tokens :]


@dataclass(frozen=True)
class Share:
    """In this step `sequence` computes its next `tokens` tokens."""

    sequence: Sequence
    tokens: int

    @property
    def completes(self) -> bool:
        """Whether a new token can be sampled after it."""
        return self.tokens == self.sequence.remaining


class Scheduler:
    """`waiting` and `running` sequences, both in order of arrival.

    `prefill_beside_decodes` bounds the prompt tokens of a step in which others decode: it is what a new prompt may
    cost the readers of running answers, per token.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        prefill_beside_decodes: int | None = None,
    ):
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max(max_num_batched_tokens, max_num_seqs + 1)
        self.prefill_beside_decodes = max(1, prefill_beside_decodes or max_num_batched_tokens // 4)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """Queue it. Its tokens must fit into the whole pool (the engine checks that at submit)."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Finished or cancelled, wherever it is: its blocks are free from now on."""
        if sequence.status is SequenceStatus.RUNNING:
            self.running.remove(sequence)
        elif sequence.status is SequenceStatus.WAITING:
            self.waiting.remove(sequence)
        self.pool.release(sequence.block_table)
        sequence.status = SequenceStatus.FINISHED

    def preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's blocks; it waits at the head of the queue and will be computed again."""
        self.running.remove(sequence)
        self.pool.release(sequence.block_table)
        sequence.processed = 0
        sequence.status = SequenceStatus.WAITING
        self.waiting.appendleft(sequence)
        self.preemptions += 1

    def schedule(self) -> list[Share]:
        """The shares of the next step, decodes first; empty when there is nothing to do."""
        decodes = self._schedule_decodes()
        budget = self.max_num_batched_tokens
        if decodes:
            budget = min(budget - len(decodes), self.prefill_beside_decodes)
        self._admit()
        decoding = {share.sequence for share in decodes}
        prefills = [sequence for sequence in self.running if sequence not in decoding]
        return decodes + self._share_out(budget, prefills)

    def _schedule_decodes(self) -> list[Share]:
        decodes: list[Share] = []
        for sequence in list(self.running):
            if sequence.status is not SequenceStatus.RUNNING or sequence.remaining > 1:
                continue  # preempted a moment ago, or still reading its prompt
            if self._make_room(sequence):
                decodes.append(Share(sequence, 1))
        return decodes

    def _make_room(self, sequence: Sequence) -> bool:
        """A cache place for the sequence's next token, taken from the youngest if need be; False if that was itself."""
        missing = self.pool.blocks_for(len(sequence.token_ids)) - len(sequence.block_table)
        while missing > 0 and not self.pool.can_allocate(missing):
            youngest = self.running[-1]
            self.preempt(youngest)
            if youngest is sequence:
                return False
        if missing > 0:
            self.pool.allocate(sequence.block_table, missing)
        return True

    def _admit(self) -> None:
        """Move waiting sequences to running, in order, while there are places and blocks for their whole prompt."""
        while self.waiting and len(self.running) < self.max_num_seqs:
            sequence = self.waiting[0]
            blocks = self.pool.blocks_for(len(sequence.token_ids))
            reserve = len(self.running)  # a block for each to grow, or the newcomer is preempted at once
            if not self.pool.can_allocate(blocks + reserve):
                return
            self.waiting.popleft()
            self.pool.allocate(sequence.block_table, blocks)
            sequence.status = SequenceStatus.RUNNING
            self.running.append(sequence)

    @staticmethod
    def _share_out(budget: int, prefills: list[Sequence]) -> list[Share]:
        """Even shares of the budget; what a short prompt does not need goes to the others."""
        shares = []
        for place, sequence in enumerate(sorted(prefills, key=lambda sequence: sequence.remaining)):
            tokens = min(sequence.remaining, max(1, budget // (len(prefills) - place)), budget)
            if tokens > 0:
                shares.append(Share(sequence, tokens))
                budget -= tokens
        return shares
