"""Which cache block belongs to which sequences, and which blocks still hold a prefix that may be asked for again.
Counts blocks; the memory itself is the runner's.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

_LOOKED_AT = 64  # blocks behind the same prefix, the newest, that are compared with a prompt token by token
_EVICT_TOGETHER = 8  # neighbours mostly (a sequence's own tail), so that what takes their place lies together


class BlockPool:
    """`count` cache blocks of `block_size` positions.

    A sequence's blocks lie side by side where that is possible (its next block is the free neighbour of its last
    one), because a runner reads a contiguous stretch without copying it. New sequences begin in the middle of the
    largest free gap, which leaves them and their neighbour room to grow.

    A full block can be registered under a key (`prefix.py`): any sequence with the same key may then share it, read
    only. When its last user leaves it is idle: it counts as free, and is evicted, the least recently used first, when
    no other block is left. Registered with its tokens, full or not, it can also be found by a part of them, to be
    copied.
    """

    def __init__(self, count: int, block_size: int):
        self.count, self.block_size = count, block_size
        self._free = list(range(count))  # ascending; they hold nothing of use
        self._users = [0] * count
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._behind: dict[
            bytes, dict[int, Sequence[int]]
        ] = {}  # key of the block before -> block -> its tokens
        self._before: dict[int, bytes] = {}
        self._idle: dict[int, None] = {}  # registered, without users; the least recently used first
        self.evictions = 0

    @property
    def free(self) -> int:
        """How many blocks are free, idle ones included."""
        return len(self._free) + len(self._idle)

    def blocks_for(self, positions: int) -> int:
        """How many blocks hold that many positions."""
        return -(-positions // self.block_size)

    def can_allocate(self, blocks: int) -> bool:
        """Whether that many are free."""
        return blocks <= self.free

    def allocate(self, table: list[int], blocks: int) -> None:
        """Append `blocks` free blocks to a sequence's table; ask `can_allocate` first."""
        if blocks > self.free:
            raise RuntimeError(f"{blocks} cache blocks wanted, {self.free} free")
        if blocks > len(self._free):
            self._evict(min(max(blocks - len(self._free), _EVICT_TOGETHER), len(self._idle)))
        for _ in range(blocks):
            block = self._take(table[-1] + 1 if table else self._gap_start(blocks))
            self._users[block] = 1
            table.append(block)

    def release(self, table: list[int]) -> None:
        """Give back all blocks of a table and empty it. Its end is evicted before its beginning."""
        for block in reversed(table):
            self._leave(block)
        table.clear()

    # ---- prefixes

    def find(self, key: bytes) -> int | None:
        """The block registered under a key."""
        return self._block_of.get(key)

    def is_idle(self, block: int) -> bool:
        """Whether it is registered and nobody uses it at the moment."""
        return block in self._idle

    def share(self, table: list[int], block: int, place: int) -> None:
        """Use a registered block as number `place` of a table, in place of the one there or behind its end."""
        if self._users[block] == 0:
            del self._idle[block]
        self._users[block] += 1
        if place < len(table):
            self._leave(table[place])
            table[place] = block
        else:
            table.append(block)

    def register(self, block: int, key: bytes, before: bytes = b"", token_ids: Sequence[int] = ()) -> None:
        """This block's contents are what `key` stands for, and final: these tokens behind the block called `before`.
        Harmless when either is registered already."""
        if block not in self._key_of and key not in self._block_of:
            self._block_of[key], self._key_of[block] = block, key
            if token_ids:
                self._behind.setdefault(before, {})[block], self._before[block] = token_ids, before

    def find_part(self, before: bytes, token_ids: Sequence[int]) -> tuple[int, int]:
        """(block, n): the one whose first n tokens behind `before` are these, n as large as can be; -1, 0: none."""
        best, most = -1, 0
        newest = [*itertools.islice(reversed(self._behind.get(before, {}).items()), _LOOKED_AT)]
        for block, held in reversed(newest):  # the oldest of equals is taken
            same = 0
            for mine, theirs in zip(token_ids, held, strict=False):
                if mine != theirs:
                    break
                same += 1
            if same > most:
                best, most = block, same
        if best in self._idle:  # used now
            self._idle[best] = self._idle.pop(best)
        return best, most

    def forget(self) -> None:
        """Drop all keys: nothing computed so far will be shared any more."""
        for block in self._idle:
            bisect.insort(self._free, block)
        self._idle.clear()
        for names in (self._block_of, self._key_of, self._behind, self._before):
            names.clear()

    def _leave(self, block: int) -> None:
        self._users[block] -= 1
        if self._users[block]:
            return
        if block in self._key_of:
            self._idle[block] = None
        else:
            bisect.insort(self._free, block)

    def _evict(self, blocks: int) -> None:
        for block in list(itertools.islice(self._idle, blocks)):
            del self._idle[block]
            del self._block_of[self._key_of.pop(block)]
            if (before := self._before.pop(block, None)) is not None:
                del self._behind[before][block]
                if not self._behind[before]:
                    del self._behind[before]
            bisect.insort(self._free, block)
            self.evictions += 1

    def _take(self, wanted: int) -> int:
        """`wanted` if it is free, else the next free one behind it, else the first."""
        place = bisect.bisect_left(self._free, wanted)
        return self._free.pop(place if place < len(self._free) else 0)

    def _gap_start(self, blocks: int) -> int:
        """Where a new sequence of at least `blocks` blocks begins."""
        best_start, best_length, start = self._free[0], 0, self._free[0]
        for here, after in zip(self._free, [*self._free[1:], -1], strict=True):
            if after != here + 1:
                if here + 1 - start > best_length:
                    best_start, best_length = start, here + 1 - start
                start = after
        if best_start == 0 or best_length <= blocks:  # nobody grows towards it, or no room to spare
            return best_start
        return best_start + (best_length - blocks) // 2
