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


# ---- prefixes


def test_a_shared_block_is_free_when_its_last_user_leaves_and_can_be_found_again() -> None:
    pool, first, second = BlockPool(4, 16), [], []
    pool.allocate(first, 2)
    pool.register(first[0], b"a")
    block = pool.find(b"a")
    assert block == first[0] and pool.find(b"b") is None
    pool.share(second, block, 0)
    pool.release(first)
    assert pool.free == 3 and not pool.is_idle(block)  # the second block was never registered
    pool.release(second)
    assert pool.free == 4 and pool.is_idle(block) and pool.find(b"a") == block
    pool.share(second, block, 0)
    assert pool.free == 3 and not pool.is_idle(block)


def test_a_block_of_its_own_makes_place_for_a_shared_one() -> None:
    pool, first, second = BlockPool(4, 16), [], []
    pool.allocate(first, 2)
    pool.register(first[0], b"a")
    pool.allocate(second, 2)
    pool.share(second, first[0], 0)
    assert second[0] == first[0] and pool.free == 1
    pool.release(second)
    pool.release(first)
    assert pool.free == 4


def test_the_longest_unused_goes_first_and_a_chain_from_its_end() -> None:
    pool = BlockPool(30, 16)
    tables: list[list[int]] = [[], []]
    for name, table in enumerate(tables):
        pool.allocate(table, 15)
        for place, block in enumerate(table):
            pool.register(block, f"{name}-{place}".encode())
    pool.release(tables[0])
    pool.release(tables[1])
    new: list[int] = []
    pool.allocate(new, 10)
    gone = [place for place in range(15) if pool.find(f"0-{place}".encode()) is None]
    assert gone == list(range(5, 15)) and pool.evictions == 10
    assert all(pool.find(f"1-{place}".encode()) is not None for place in range(15))


def test_the_same_contents_twice_are_registered_once() -> None:
    pool, first, second = BlockPool(4, 16), [], []
    pool.allocate(first, 1)
    pool.allocate(second, 1)
    pool.register(first[0], b"a")
    pool.register(second[0], b"a")
    pool.register(first[0], b"b")
    assert pool.find(b"a") == first[0] and pool.find(b"b") is None
    pool.release(second)
    pool.release(first)
    assert pool.free == 4


def test_forgetting_leaves_nothing_to_find_and_loses_no_block() -> None:
    pool, used, idle = BlockPool(6, 16), [], []
    for table, key in ((used, b"used"), (idle, b"idle")):
        pool.allocate(table, 2)
        pool.register(table[0], key)
    pool.release(idle)
    pool.forget()
    assert pool.find(b"used") is None and pool.find(b"idle") is None and pool.free == 4
    pool.release(used)
    pool.allocate(used, 6)
    assert sorted(used) == list(range(6))


def test_parts_are_found_by_the_longest_same_beginning_until_they_are_evicted() -> None:
    pool = BlockPool(12, 4)
    tables: list[list[int]] = [[], [], []]
    for table, tokens in zip(tables, ([1, 2, 3, 4], [1, 2, 5], [9]), strict=True):
        pool.allocate(table, 1)
        pool.register(table[0], str(tokens).encode(), b"before", tokens)
    blocks = [table[0] for table in tables]
    assert pool.find_part(b"before", [1, 2, 3, 9]) == (blocks[0], 3)
    assert pool.find_part(b"before", [1, 2, 5, 6]) == (blocks[1], 3)
    assert pool.find_part(b"before", [2]) == (-1, 0) == pool.find_part(b"other", [1, 2])
    fillers: list[int] = []
    pool.allocate(fillers, 7)
    for block in fillers:
        pool.register(block, str(block).encode())
    for table in (*tables, fillers):
        pool.release(table)
    assert pool.find_part(b"before", [1, 2, 3]) == (blocks[0], 3)  # and is now the last that was used
    new: list[int] = []
    pool.allocate(new, 4)
    assert pool.find_part(b"before", [1, 2, 5]) == (blocks[0], 2) and pool.evictions == 8
    pool.forget()
    assert pool.find_part(b"before", [1, 2, 3]) == (-1, 0) and pool.free == 8
