"""Which cache block belongs to which sequence. Counts blocks; the memory itself is the runner's."""

from __future__ import annotations

import bisect


class BlockPool:
    """`count` cache blocks of `block_size` positions.

    A sequence's blocks lie side by side where that is possible (its next block is the free neighbour of its last
    one), because a runner reads a contiguous stretch without copying it. New sequences begin in the middle of the
    largest free gap, which leaves them and their neighbour room to grow.
    """

    def __init__(self, count: int, block_size: int):
        self.count, self.block_size = count, block_size
        self._free = list(range(count))  # ascending

    @property
    def free(self) -> int:
        """How many blocks are free."""
        return len(self._free)

    def blocks_for(self, positions: int) -> int:
        """How many blocks hold that many positions."""
        return -(-positions // self.block_size)

    def can_allocate(self, blocks: int) -> bool:
        """Whether that many are free."""
        return blocks <= len(self._free)

    def allocate(self, table: list[int], blocks: int) -> None:
        """Append `blocks` free blocks to a sequence's table; ask `can_allocate` first."""
        if blocks > len(self._free):
            raise RuntimeError(f"{blocks} cache blocks wanted, {len(self._free)} free")
        for _ in range(blocks):
            table.append(self._take(table[-1] + 1 if table else self._gap_start(blocks)))

    def release(self, table: list[int]) -> None:
        """Give back all blocks of a table and empty it."""
        for block in table:
            bisect.insort(self._free, block)
        table.clear()

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
