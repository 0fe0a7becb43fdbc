"""The choice of threads on made-up machines: seconds of a step by the number of threads."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from shoal.engine.native_threads import ThreadChoice

QUIET, BUSY = {1: 4.0, 2: 2.5, 4: 1.5}, {1: 4.0, 2: 20.0, 4: 40.0}


def run(
    choice: ThreadChoice, steps: int, seconds: Callable[[int], dict[int, float]], tokens: int = 1
) -> list[int]:
    used = []
    for step in range(steps):
        used.append(choice.threads(tokens))
        choice.took(tokens, tokens * seconds(step)[used[-1]])
    return used


def test_a_quiet_machine_is_used_whole_and_probing_costs_little() -> None:
    for most in (2, 4):
        used = run(ThreadChoice(most), 2000, lambda step: QUIET)
        assert used[-1] == most
        assert sum(QUIET[n] for n in used) < 1.03 * 2000 * QUIET[most]


def test_beside_a_busy_process_one_thread_is_found_within_some_steps_and_given_up_again() -> None:
    choice = ThreadChoice(2)
    run(choice, 500, lambda step: QUIET)
    used = run(choice, 300, lambda step: BUSY)
    assert 1 in used[:10] and used[10:].count(1) > 0.9 * 290
    used = run(choice, 300, lambda step: QUIET)
    assert used[-1] == 2 and used.count(2) > 150


def test_noise_does_not_make_it_alternate() -> None:
    choice = ThreadChoice(2)
    noise = [1.0, 1.1, 0.95, 1.3, 1.0, 1.05, 0.9]
    used = run(choice, 1000, lambda step: {n: s * noise[step % 7] for n, s in QUIET.items()})
    assert used.count(2) > 950
    alike = run(ThreadChoice(2), 1000, lambda step: {n: 2.0 * noise[step % 7] for n in (1, 2)})
    assert sum(a != b for a, b in pairwise(alike)) < 60


def test_one_core_and_steps_of_other_sizes() -> None:
    assert set(run(ThreadChoice(1), 100, lambda step: QUIET)) == {1}
    choice = ThreadChoice(2)
    run(choice, 500, lambda step: BUSY)
    assert (
        run(choice, 5, lambda step: BUSY, tokens=256) == [1] * 5
    )  # what was learnt holds for other sizes too
