"""Cache blocks: none is given twice, all come back, and a lone sequence gets a contiguous stretch."""

from __future__ import annotations

import random

import pytest

from shoal.engine.cache import BlockPool


def test_blocks_for_rounds_up() -> None:
    pool = BlockPool(8, 16)
    assert [pool.blocks_for(n) for n in (0, 1, 16, 17, 32)] == [0, 1, 1, 2, 2]


def test_no_block_has_two_owners_whatever_happens() -> None:
    generator, pool = random.Random(1), BlockPool(40, 16)
    tables: list[list[int]] = [[] for _ in range(6)]
    for _ in range(2000):
        table = generator.choice(tables)
        blocks = generator.randint(1, 5)
        if table and generator.random() < 0.4:
            pool.release(table)
        elif pool.can_allocate(blocks):
            pool.allocate(table, blocks)
        owned = [block for t in tables for block in t]
        assert len(owned) == len(set(owned)) and pool.free == 40 - len(owned)
        assert all(0 <= block < 40 for block in owned)
    for table in tables:
        pool.release(table)
    assert pool.free == 40


def test_neighbours_where_possible() -> None:
    pool = BlockPool(64, 16)
    first: list[int] = []
    second: list[int] = []
    pool.allocate(first, 3)
    pool.allocate(second, 3)
    for _ in range(10):  # both grow in turn, as decoding sequences do
        pool.allocate(first, 1)
        pool.allocate(second, 1)
    assert first == list(range(first[0], first[0] + 13))
    assert second == list(range(second[0], second[0] + 13))


def test_allocating_more_than_is_free_is_refused_whole() -> None:
    pool, table = BlockPool(2, 16), []
    with pytest.raises(RuntimeError, match="3 cache blocks wanted, 2 free"):
        pool.allocate(table, 3)
    assert table == [] and pool.free == 2
