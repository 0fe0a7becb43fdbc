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
        share.sequence.processed += share.tokens
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
