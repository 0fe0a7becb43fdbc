"""Who computes what in the next engine step. Counts tokens and blocks; touches no tensor and no clock.

Continuous batching with chunked prefill: every decoding sequence gets its token in every step, and what is left of the
step's token budget reads prompts, shared evenly between them so that a short prompt is not stuck behind a long one.
When the cache runs out, the youngest sequence gives its blocks back and is computed again later (preemption by
recompute).

What another sequence has computed already is taken over block by block (`cache.py`, `prefix.py`), and of the first
block that differs, the tokens up to there are copied. Of sequences that stand at the same place of the same prompt only
the first goes on; the others wait for its blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from enum import Enum

from shoal.engine.cache import BlockPool
from shoal.engine.prefix import block_key


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
    root: bytes | None = None
    """What its chain of cache keys begins with (`prefix.chain_root`); None: it shares nothing."""
    cached: int = 0
    """Prompt tokens that were taken from the cache and never computed for this sequence."""
    computed: int = 0
    """Positions run through the network for it, those of rejected drafts and of a second reading included."""
    preemptions: int = 0
    """How often its places in the cache were taken."""
    forced: Callable[[SequenceOf[int]], list[int]] | None = None
    """What its own rules leave no choice of behind an answer so far."""
    _keys: list[bytes] = field(default_factory=list)
    _registered: int = 0
    _reached: int = 0  # as far as it ever came: what a preemption takes is read twice, and is no hit

    def key(self, block: int, size: int) -> bytes | None:
        """The key of its block number `block`; None while its tokens are not all known."""
        if self.root is None or (block + 1) * size > len(self.token_ids):
            return None
        while len(self._keys) <= block:
            here = len(self._keys) * size
            before = self._keys[-1] if self._keys else self.root
            self._keys.append(block_key(before, self.token_ids[here : here + size]))
        return self._keys[block]

    def key_before(self, block: int, size: int) -> bytes | None:
        """The key of the one before its block number `block`, or what its chain begins with."""
        return self.key(block - 1, size) if block else self.root

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next one can be sampled; 1 while decoding."""
        return len(self.token_ids) - self.processed

    @property
    def answer_ids(self) -> SequenceOf[int]:
        return self.token_ids[self.prompt_tokens :]


@dataclass(frozen=True)
class Share:
    """In this step `sequence` computes its next `tokens` tokens, and behind them drafts to be verified."""

    sequence: Sequence
    tokens: int
    drafts: SequenceOf[int] = ()

    @property
    def completes(self) -> bool:
        """Whether a new token can be sampled after it."""
        return self.tokens == self.sequence.remaining


class Scheduler:
    """`waiting` and `running` sequences, both in order of arrival.

    `prefill_beside_decodes` bounds the prompt tokens of a step in which others decode: it is what a new prompt may
    cost the readers of running answers, per token. `restore(key, block)` may fill a cache block from elsewhere
    (a disk) with what the key stands for, and says whether it did. `copy(block, to)` copies the contents of a cache
    block; without it only whole blocks are taken over.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        prefill_beside_decodes: int | None = None,
        restore: Callable[[bytes, int], bool] = lambda key, block: False,
        copy: Callable[[int, int], None] | None = None,
    ):
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max(max_num_batched_tokens, max_num_seqs + 1)
        self.prefill_beside_decodes = max(1, prefill_beside_decodes or max_num_batched_tokens // 4)
        self._restore, self._copy = restore, copy
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
        self._release(sequence)
        sequence.status = SequenceStatus.FINISHED

    def preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's blocks; it waits at the head of the queue and will be computed again."""
        self.running.remove(sequence)
        self._release(sequence)
        sequence.processed = sequence._registered = 0
        sequence.status = SequenceStatus.WAITING
        self.waiting.appendleft(sequence)
        sequence.preemptions += 1
        self.preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        """Give its blocks back. What stands in the last, partly filled one may still be copied."""
        size, place = self.pool.block_size, sequence._registered
        before, rest = sequence.key_before(place, size), sequence.token_ids[place * size : sequence.processed]
        if self._copy and before is not None and rest and place < len(sequence.block_table):
            self.pool.register(sequence.block_table[place], block_key(before, rest), before, rest)
        self.pool.release(sequence.block_table)

    def advance(self, sequence: Sequence, tokens: int) -> None:
        """The next `tokens` tokens stand in the cache for good: blocks that became full may be shared from now on."""
        sequence.processed += tokens
        size = self.pool.block_size
        while (sequence._registered + 1) * size <= sequence.processed:
            place = sequence._registered
            key, before = sequence.key(place, size), sequence.key_before(place, size)
            if key is None or before is None:
                break
            held = sequence.token_ids[place * size : (place + 1) * size]
            self.pool.register(sequence.block_table[place], key, before, held)
            sequence._registered += 1
        sequence._reached = max(sequence._reached, sequence.processed)

    def make_room_for_drafts(self, sequence: Sequence, drafts: int) -> int:
        """Cache places for drafts behind a sequence's last token: as many as there are without hurting others."""
        room = len(sequence.block_table) * self.pool.block_size - len(sequence.token_ids)
        missing = self.pool.blocks_for(max(0, drafts - room))
        if missing > 0 and self.pool.can_allocate(missing + len(self.running)):
            self.pool.allocate(sequence.block_table, missing)
            return drafts
        return min(drafts, room)

    def keys_of(self, sequence: Sequence) -> list[tuple[bytes, int]]:
        """(key, block) of its blocks that others can share, in order."""
        return list(zip(sequence._keys, sequence.block_table[: sequence._registered], strict=False))

    def schedule(self) -> list[Share]:
        """The shares of the next step, decodes first; empty when there is nothing to do."""
        decodes = self._schedule_decodes()
        budget = self.max_num_batched_tokens
        if decodes:
            budget = min(budget - len(decodes), self.prefill_beside_decodes)
        self._admit()
        decoding = {share.sequence for share in decodes}
        prefills = [sequence for sequence in self.running if sequence not in decoding]
        return decodes + self._share_out(budget, self._first_of_each(prefills))

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
            found = self._found(sequence)
            missing = self.pool.blocks_for(len(sequence.token_ids)) - len(found)
            reserve = len(self.running)  # a block for each to grow, or the newcomer is preempted at once
            if not self.pool.can_allocate(missing + reserve + sum(map(self.pool.is_idle, found))):
                return
            self.waiting.popleft()
            self._take_over(sequence)
            self.pool.allocate(sequence.block_table, missing)
            sequence.status = SequenceStatus.RUNNING
            self.running.append(sequence)

    def _next_key(self, sequence: Sequence, place: int) -> bytes | None:
        """The key of a block that the sequence may take over: never the last token's, whose logits are needed."""
        size = self.pool.block_size
        return sequence.key(place, size) if (place + 1) * size < len(sequence.token_ids) else None

    def _found(self, sequence: Sequence) -> list[int]:
        """The blocks in memory with which the sequence could begin."""
        found: list[int] = []
        while key := self._next_key(sequence, len(found)):
            if (block := self.pool.find(key)) is None:
                break
            found.append(block)
        return found

    def _take_over(self, sequence: Sequence) -> None:
        """Use what exists already of the blocks that the sequence must compute next; a place of its own is also
        filled from elsewhere, where `restore` can."""
        size, table = self.pool.block_size, sequence.block_table
        while sequence.processed % size == 0:
            place = sequence.processed // size
            key = self._next_key(sequence, place)
            if key is None:
                return
            block = self.pool.find(key)
            if block is not None:
                self.pool.share(table, block, place)
            elif not (place < len(table) and self._restore(key, table[place])):
                return
            self._hit(sequence, size)

    def _copy_part(self, sequence: Sequence) -> None:
        """Of the block that it must compute next, copy the beginning that somebody else had too."""
        size = self.pool.block_size
        place, inside = divmod(sequence.processed, size)
        before = sequence.key_before(place, size)
        if self._copy is None or before is None or inside:
            return
        end = min(sequence.processed + size, len(sequence.token_ids) - 1)  # the last one's logits are needed
        wanted = sequence.token_ids[sequence.processed : end]
        block, tokens = self.pool.find_part(before, wanted)
        if tokens:
            self._copy(block, sequence.block_table[place])
            self._hit(sequence, tokens)

    def _hit(self, sequence: Sequence, tokens: int) -> None:
        """Its next `tokens` tokens stand in the cache without having been computed for it."""
        end = min(sequence.processed + tokens, sequence.prompt_tokens)
        sequence.cached += max(0, end - sequence._reached)
        self.advance(sequence, tokens)

    def _first_of_each(self, prefills: list[Sequence]) -> list[Sequence]:
        """The prompts to read on in this step: of those whose next block is the same, the first to come."""
        size, claimed, first = self.pool.block_size, set[bytes](), []
        for sequence in prefills:
            self._take_over(sequence)
            place = sequence.processed // size
            wanted = self._next_key(sequence, place)
            if wanted is None or sequence.processed % size or wanted not in claimed:
                self._copy_part(sequence)
                first.append(sequence)
            if key := sequence.key(place, size):
                claimed.add(key)
        return first

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
