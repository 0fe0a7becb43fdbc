"""The scheduler without a model: budgets, fairness, preemption, cancellation."""

from __future__ import annotations

import random

from shoal.engine.cache import BlockPool
from shoal.engine.scheduler import Scheduler, Sequence, SequenceStatus


def make(
    blocks: int = 64, block_size: int = 4, seqs: int = 4, batched: int = 16, beside: int | None = None
) -> Scheduler:
    pool = BlockPool(blocks, block_size)
    return Scheduler(pool, max_num_seqs=seqs, max_num_batched_tokens=batched, prefill_beside_decodes=beside)


def sequence(tokens: int) -> Sequence:
    return Sequence([1] * tokens, tokens)


def run_step(scheduler: Scheduler) -> list[tuple[Sequence, int]]:
    """What an engine does with the shares: everything computed, a token sampled where a sequence is complete."""
    shares = scheduler.schedule()
    for share in shares:
        completes = share.completes
        assert (
            len(share.sequence.block_table) * scheduler.pool.block_size
            >= share.sequence.processed + share.tokens
        )
        scheduler.advance(share.sequence, share.tokens)
        if completes:
            share.sequence.token_ids.append(7)
    return [(share.sequence, share.tokens) for share in shares]


def test_a_long_prompt_is_read_in_chunks() -> None:
    scheduler, long = make(batched=16), sequence(40)
    scheduler.add(long)
    assert [run_step(scheduler)[0][1] for _ in range(4)] == [16, 16, 8, 1]
    assert len(long.answer_ids) == 2


def test_decodes_run_in_every_step_while_prompts_are_read() -> None:
    scheduler, first, second = make(batched=16, beside=4), sequence(5), sequence(40)
    scheduler.add(first)
    run_step(scheduler)
    scheduler.add(second)
    for _ in range(10):
        assert run_step(scheduler) == [(first, 1), (second, 4)]
    assert len(first.answer_ids) == 11 and len(second.answer_ids) == 1


def test_a_short_prompt_is_not_stuck_behind_a_long_one() -> None:
    scheduler, long, short = make(batched=16), sequence(100), sequence(6)
    scheduler.add(long)
    scheduler.add(short)
    assert dict(run_step(scheduler)) == {short: 6, long: 10}


def test_at_most_max_num_seqs_run_in_order_of_arrival() -> None:
    scheduler, all_of_them = make(seqs=2), [sequence(3) for _ in range(4)]
    for one in all_of_them:
        scheduler.add(one)
    run_step(scheduler)
    assert scheduler.running == all_of_them[:2] and list(scheduler.waiting) == all_of_them[2:]
    scheduler.remove(all_of_them[0])
    run_step(scheduler)
    assert scheduler.running == all_of_them[1:3]


def test_without_blocks_the_youngest_is_preempted_and_finishes_later() -> None:
    scheduler = make(blocks=6, block_size=4, seqs=3, batched=64)
    old, young = sequence(8), sequence(8)
    scheduler.add(old)
    scheduler.add(young)
    while scheduler.preemptions == 0:
        run_step(scheduler)
    assert young.status is SequenceStatus.WAITING and young.processed == 0 and young.block_table == []
    answered = len(young.answer_ids)
    assert answered >= 4  # what it had said is kept
    scheduler.remove(old)
    assert run_step(scheduler) == [(young, 8 + answered)]
    scheduler.remove(young)
    assert scheduler.pool.free == 6


def test_removing_frees_blocks_at_once_in_every_state() -> None:
    scheduler, running, reading, waiting = make(seqs=2, batched=8), sequence(4), sequence(50), sequence(4)
    for one in (running, reading, waiting):
        scheduler.add(one)
    run_step(scheduler)
    assert scheduler.pool.free < 64
    for one in (waiting, reading, running):
        scheduler.remove(one)
        scheduler.remove(one)  # twice is harmless
    assert scheduler.pool.free == 64 and not scheduler.running and not scheduler.waiting
    assert scheduler.schedule() == []


def test_everything_finishes_and_no_block_is_lost_under_random_load() -> None:
    generator = random.Random(3)
    scheduler = make(blocks=20, block_size=4, seqs=5, batched=12)
    open_ones: dict[Sequence, int] = {}
    added = done = 0
    for _ in range(4000):
        if added < 200 and generator.random() < 0.2:
            one = sequence(generator.randint(1, 40))
            open_ones[one] = generator.randint(1, 40)
            scheduler.add(one)
            added += 1
        tokens = run_step(scheduler)
        assert sum(count for _, count in tokens) <= scheduler.max_num_batched_tokens
        assert len({one for one, _ in tokens}) == len(tokens)
        for one in list(open_ones):
            if len(one.answer_ids) >= open_ones[one] or generator.random() < 0.002:
                scheduler.remove(one)
                del open_ones[one]
                done += 1
        if added == 200 and not open_ones:
            break
    assert done == 200
    assert scheduler.pool.free == 20 and scheduler.preemptions > 0


# ---- shared prefixes


def test_what_another_computes_is_waited_for_and_taken_over() -> None:
    scheduler = make(blocks=64, block_size=4, batched=8)
    first, second = (Sequence([1] * 18 + [last], 19, root=b"r") for last in (2, 3))
    scheduler.add(first)
    scheduler.add(second)
    assert run_step(scheduler) == [(first, 8)]
    assert run_step(scheduler) == [(first, 8)]
    assert run_step(scheduler) == [(first, 3), (second, 3)]  # the last block is each one's own
    assert second.cached == 16 and second.block_table[:4] == first.block_table[:4]
    assert first.cached == 0 and len({*first.block_table, *second.block_table}) == 6


def test_the_next_in_line_goes_on_when_the_first_is_cancelled() -> None:
    scheduler = make(blocks=64, block_size=4, batched=8)
    first, second = (Sequence([1] * 18 + [last], 19, root=b"r") for last in (2, 3))
    scheduler.add(first)
    scheduler.add(second)
    run_step(scheduler)
    scheduler.remove(first)
    assert run_step(scheduler) == [(second, 8)] and second.cached == 8
    assert run_step(scheduler) == [(second, 3)]


def test_a_preempted_sequence_finds_its_own_blocks_and_counts_no_hit() -> None:
    scheduler = make(blocks=64, block_size=4, batched=64)
    only = Sequence([1] * 19, 19, root=b"r")
    scheduler.add(only)
    run_step(scheduler)
    scheduler.preempt(only)
    assert run_step(scheduler) == [(only, 4)] and only.cached == 0


def test_a_block_always_holds_what_its_sequences_say() -> None:
    """A cache of which every place remembers the tokens before it, under random load with common beginnings, small
    enough to evict and to preempt: whoever computes finds exactly his own tokens there."""
    generator = random.Random(5)
    scheduler = make(blocks=40, block_size=4, seqs=6, batched=16)
    begins = [[generator.randrange(9) for _ in range(30)] for _ in range(3)]
    memory: dict[int, int] = {}
    open_ones: dict[Sequence, int] = {}
    hits = added = 0
    while added < 300 or open_ones:
        if added < 300 and generator.random() < 0.3:
            begin = generator.choice(begins)[: generator.randint(0, 30)]
            tokens = begin + [generator.randrange(9) for _ in range(generator.randint(1, 8))]
            one = Sequence(tokens, len(tokens), root=generator.choice([b"a", b"b", None]))
            open_ones[one] = generator.randint(1, 20)
            scheduler.add(one)
            added += 1
        shares = scheduler.schedule()
        for share in shares:
            one, start = share.sequence, share.sequence.processed
            place = lambda position, one=one: one.block_table[position // 4] * 4 + position % 4  # noqa: E731
            told = [hash((one.root, *one.token_ids[: i + 1])) for i in range(start + share.tokens)]
            assert [memory[place(i)] for i in range(start)] == told[:start]
            for i in range(start, start + share.tokens):
                memory[place(i)] = told[i]
        for share in shares:
            completes = share.completes
            scheduler.advance(share.sequence, share.tokens)
            if completes:
                share.sequence.token_ids.append(generator.randrange(9))
        for one in list(open_ones):
            if len(one.answer_ids) >= open_ones[one] or generator.random() < 0.01:
                hits += one.cached
                scheduler.remove(one)
                del open_ones[one]
    assert hits > 500 and scheduler.preemptions > 0 and scheduler.pool.evictions > 0
    assert scheduler.pool.free == 40
