"""The engine as its users see it: the same answers alone and in company, and no request harms another."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.apart import run_apart

from shoal.engine.engine import Engine
from shoal.engine.types import (
    ContextLengthExceeded,
    Delta,
    Finished,
    InvalidRequest,
    PromptLogprobs,
    PromptProgress,
    Queued,
    QueueFull,
    Request,
    SamplingParams,
)
from shoal.errors import ShoalError
from shoal.model.transformer import CausalLM

EPSILON = 3e-3
"""Logits of the same position differ by rounding: in different batches (here < 1e-4), and from the plain network where
keys and values are kept in fp16 (here < 3e-3). Where the two best are closer than this, either may win."""

GREEDY = SamplingParams(temperature=0, max_tokens=24)
Read = Callable[..., Any]


@pytest.fixture
def runner_kind(either_runner: str) -> str:
    return either_runner


def prompts(count: int, seed: int = 1, longest: int = 100) -> list[list[int]]:
    generator = random.Random(seed)
    return [[generator.randrange(384) for _ in range(generator.randint(1, longest))] for _ in range(count)]


def ids(pieces: list[Any]) -> list[int]:
    return [piece.token_id for piece in pieces]


def clear_part(expected: list[int], gaps: list[float]) -> list[int]:
    """The tokens before the first one that was not clear."""
    unclear = next((i for i, gap in enumerate(gaps) if gap < EPSILON), len(expected))
    return expected[:unclear]


# ---- the same answer, whatever else runs


def test_greedy_is_the_plain_network_alone_and_in_a_full_batch(
    network: CausalLM, new_engine: Callable[..., Engine], answer: Read, greedy: Read
) -> None:
    """8 at once, staggered, prompts of 1 to 100 tokens, with a cache too small for all (so with preemptions)."""
    alone = new_engine(network)
    crowded = new_engine(network, positions=160, max_num_batched_tokens=48)
    handles, compared = [], 0
    for i, prompt in enumerate(prompts(8)):
        handles.append(crowded.submit(Request(prompt, GREEDY)))
        time.sleep(0.01 * (i % 3))
    for prompt, handle in zip(prompts(8), handles, strict=True):
        expected = clear_part(*greedy(network, prompt, 24))
        compared += len(expected)
        assert ids(answer(alone, prompt, temperature=0, max_tokens=24)[0])[: len(expected)] == expected
        assert ids(answer(crowded, handle)[0])[: len(expected)] == expected
    assert compared > 150, "too few clear tokens for the test to mean anything"
    assert crowded.stats().preemptions > 0
    assert crowded.stats().cache_blocks_free == crowded.stats().cache_blocks


def test_greedy_is_transformers_generate(
    gqa_network: CausalLM, new_engine: Callable[..., Engine], answer: Read, greedy: Read
) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(**gqa_network.config.to_dict())
    reference = transformers.LlamaForCausalLM(config).eval()
    reference.load_state_dict(gqa_network.state_dict())
    engine = new_engine(gqa_network)
    for prompt in prompts(3, seed=4, longest=20):
        expected, gaps = greedy(gqa_network, prompt, 24)
        generated = reference.generate(
            torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0,
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        )[0, len(prompt) :].tolist()  # fmt: skip
        clear = len(clear_part(expected, gaps))
        assert ids(answer(engine, prompt, temperature=0, max_tokens=24)[0])[:clear] == generated[:clear]


def test_the_same_seed_gives_the_same_tokens_alone_and_in_a_batch(
    gqa_network: CausalLM, new_engine: Callable[..., Engine], answer: Read
) -> None:
    engine, params = new_engine(gqa_network), dict(temperature=1.3, top_p=0.95, seed=11, max_tokens=20)
    prompt = prompts(1, seed=9)[0]
    alone = ids(answer(engine, prompt, **params)[0])
    others = [
        engine.submit(Request(p, SamplingParams(seed=i, max_tokens=30))) for i, p in enumerate(prompts(5))
    ]
    handle = engine.submit(Request(prompt, SamplingParams(**params)))
    assert ids(answer(engine, handle)[0]) == alone
    assert ids(answer(engine, prompt, **{**params, "seed": 12})[0]) != alone
    for other in others:
        other.cancel()


# ---- limits


def test_at_the_context_limit_the_reason_is_length_and_others_go_on(
    network: CausalLM, new_engine: Callable[..., Engine], answer: Read
) -> None:
    engine = new_engine(network, max_model_len=64)
    others = [engine.submit(Request([5] * 3, SamplingParams(max_tokens=40, seed=i))) for i in range(2)]
    for length in (60, 63, 64):
        pieces, finished = answer(engine, [7] * length)
        assert (finished.reason, len(pieces)) == ("length", 64 - length)
        assert finished.usage.completion_tokens == 64 - length
    pieces, finished = answer(engine, [7] * 60, max_tokens=1000)
    assert (finished.reason, len(pieces)) == ("length", 4)
    for other in others:
        assert answer(engine, other)[1].usage.completion_tokens == 40


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(
    gqa_network: CausalLM, new_engine: Callable[..., Engine]
) -> None:
    engine = new_engine(gqa_network, max_model_len=64)
    with pytest.raises(ContextLengthExceeded, match=r"65 tokens.*64") as caught:
        engine.submit(Request([7] * 65))
    assert (caught.value.prompt_tokens, caught.value.limit) == (65, 64)


def test_the_context_never_exceeds_what_network_and_cache_hold(
    gqa_network: CausalLM, new_engine: Callable[..., Engine]
) -> None:
    assert new_engine(gqa_network).max_model_len == 256
    assert new_engine(gqa_network, max_model_len=10**6).max_model_len == 256
    assert new_engine(gqa_network, positions=96).max_model_len == 96


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (Request([]), "prompt"),
        (Request([384]), "prompt"),
        (Request([-1]), "prompt"),
        (Request([1], adapter="poet"), "adapter"),
        (Request([1], SamplingParams(logit_bias=[5])), "request"),  # type: ignore[arg-type]
        (Request([1], SamplingParams(logit_bias={"AI": 1})), "request"),  # type: ignore[dict-item]
        (Request([1], SamplingParams(seed="now")), "request"),  # type: ignore[arg-type]
    ],
)
def test_requests_that_cannot_run_are_refused_at_the_door(
    gqa_network: CausalLM, new_engine: Callable[..., Engine], request_: Request, param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        new_engine(gqa_network).submit(request_)
    assert caught.value.param == param


ANYTHING: Any = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.lists(st.integers(), max_size=2),
    st.dictionaries(st.one_of(st.integers(-2, 400), st.text(max_size=2)), st.floats(), max_size=2),
)  # fmt: skip


def test_no_sampling_value_harms_the_engine(
    gqa_network: CausalLM, new_engine: Callable[..., Engine], answer: Read
) -> None:
    """Random values of every type in every field, while a good stream runs: it notices nothing."""
    engine = new_engine(gqa_network, max_num_seqs=4)
    expected = ids(answer(engine, [1, 2, 3], temperature=0, max_tokens=200)[0])
    good = engine.submit(Request([1, 2, 3], SamplingParams(temperature=0, max_tokens=200)))
    fields = sorted(SamplingParams.__dataclass_fields__)

    @settings(max_examples=120, deadline=None, database=None)
    @given(st.dictionaries(st.sampled_from(fields), ANYTHING, min_size=1, max_size=3))
    def try_one(values: dict[str, Any]) -> None:
        with contextlib.suppress(InvalidRequest):
            with engine.submit(Request([5], SamplingParams(**{"max_tokens": 2, **values}))) as handle:
                next(event for event in handle if isinstance(event, Delta | Finished))

    try_one()
    assert ids(answer(engine, good)[0]) == expected
    assert engine.stats().restarts == 0
    assert answer(engine, [1, 2, 3], temperature=0, max_tokens=5)[1].reason == "length"


def test_a_full_queue_says_so(
    gqa_network: CausalLM, new_engine: Callable[..., Engine], wait_until: Read
) -> None:
    engine = new_engine(gqa_network, max_num_seqs=1, max_waiting=2)
    endless = engine.submit(Request([1], SamplingParams()))
    wait_until(lambda: engine.stats().running == 1)
    for _ in range(2):
        engine.submit(Request([1]))
    with pytest.raises(QueueFull) as caught:
        engine.submit(Request([1]))
    assert caught.value.waiting == 2
    endless.cancel()


# ---- ends


def test_end_tokens_stop_tokens_ignore_eos_and_min_tokens(
    gqa_network: CausalLM, new_engine: Callable[..., Engine], answer: Read, greedy: Read
) -> None:
    engine, prompt = new_engine(gqa_network), prompts(1, seed=3)[0]
    expected, _ = greedy(gqa_network, prompt, 12)
    end = expected[4]
    first = expected.index(end)
    pieces, finished = answer(engine, prompt, temperature=0, max_tokens=12, stop_token_ids=(end,))
    assert (finished.reason, finished.stop) == ("stop", end)
    assert ids(pieces) == expected[: first + 1] and pieces[-1].text == ""
    assert finished.usage.completion_tokens == first + 1  # the end token counts
    pieces, finished = answer(
        engine, prompt, temperature=0, max_tokens=12, stop_token_ids=(end,), min_tokens=first + 3
    )
    assert len(pieces) > first + 1 and end not in ids(pieces)[: first + 3]

    engine._eos_ids = frozenset([end])
    assert answer(engine, prompt, temperature=0, max_tokens=12)[1].reason == "stop"
    pieces, finished = answer(engine, prompt, temperature=0, max_tokens=12, ignore_eos=True)
    assert finished.reason == "length" and ids(pieces) == expected


def test_a_stop_string_ends_the_text_before_it(
    gqa_network: CausalLM, new_engine: Callable[..., Engine], answer: Read
) -> None:
    engine, prompt = new_engine(gqa_network), prompts(1, seed=5)[0]
    pieces, _ = answer(engine, prompt, temperature=0, max_tokens=40)
    text = "".join(piece.text for piece in pieces)
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    pieces, finished = answer(engine, prompt, temperature=0, max_tokens=40, stop=(stop,))
    assert (finished.reason, finished.stop) == ("stop", stop)
    assert "".join(piece.text for piece in pieces) == text[: text.index(stop)]
    assert finished.usage.completion_tokens == len(pieces)


def test_log_probabilities_of_answer_and_prompt(
    network: CausalLM, new_engine: Callable[..., Engine], runner_kind: str
) -> None:
    from shoal.model.context import RowsContext

    engine, prompt = new_engine(network), prompts(1, seed=6)[0][:70] * 2
    params = SamplingParams(temperature=0, max_tokens=2, logprobs=3, prompt_logprobs=2)
    events = list(engine.submit(Request(prompt, params)))
    scored = next(event for event in events if isinstance(event, PromptLogprobs))
    pieces = [piece for event in events if isinstance(event, Delta) for piece in event.pieces]
    with torch.no_grad():
        row = [*prompt, pieces[0].token_id]
        expected = (
            network.logits(network(torch.tensor(row), RowsContext(1, len(row)))).log_softmax(-1).numpy()
        )
    wanted = [expected[i, token] for i, token in enumerate(prompt[1:])]
    assert scored.logprobs[0] is None and scored.top[0] == []
    np.testing.assert_allclose(scored.logprobs[1:], wanted, atol=5e-3 if runner_kind == "native" else 1e-3)
    assert [top[0][0] for top in scored.top[1:]] == expected[: len(prompt) - 1].argmax(-1).tolist()
    assert all(len(top) == 2 for top in scored.top[1:])
    for piece, row_of in zip(pieces, (len(prompt) - 1, len(prompt)), strict=True):
        assert len(piece.top) == 3 and piece.top[0] == (piece.token_id, piece.logprob)
        assert piece.logprob == pytest.approx(expected[row_of].max(), abs=5e-3)
    (only,) = [e for e in engine.submit(Request(prompt, SamplingParams(max_tokens=0, prompt_logprobs=0)))][
        -1:
    ]
    assert isinstance(only, Finished) and (only.reason, only.usage.completion_tokens) == ("length", 0)


# ---- cancellation


def test_cancelling_frees_everything_in_queue_prefill_and_decode(
    network: CausalLM, new_engine: Callable[..., Engine], answer: Read, wait_until: Read
) -> None:
    engine = new_engine(network, max_num_seqs=2, max_num_batched_tokens=2)
    decoding = engine.submit(Request([1, 2], SamplingParams()))
    wait_until(lambda: engine.stats().completion_tokens > 0)
    reading = engine.submit(Request([3] * 200, SamplingParams()))
    wait_until(lambda: engine.stats().running == 2)
    queued = engine.submit(Request([4] * 10, SamplingParams()))
    wait_until(lambda: engine.stats().waiting == 1)
    for handle in (queued, reading, decoding):
        handle.cancel()
        assert answer(engine, handle)[1].reason == "cancelled"
        handle.cancel()  # after the end: nothing
    wait_until(lambda: engine.stats().running == engine.stats().waiting == 0, seconds=1)
    stats = engine.stats()
    assert stats.cache_blocks_free == stats.cache_blocks and stats.finished == {"cancelled": 3}
    steps = stats.steps
    time.sleep(0.05)
    assert engine.stats().steps == steps, "the engine must rest when nothing is asked of it"


def test_leaving_the_block_cancels(
    gqa_network: CausalLM, new_engine: Callable[..., Engine], wait_until: Read
) -> None:
    engine = new_engine(gqa_network)
    with engine.submit(Request([1], SamplingParams())) as handle:
        next(handle)
    wait_until(lambda: engine.stats().finished == {"cancelled": 1}, seconds=1)


def test_close_ends_all_requests_and_refuses_new_ones(
    gqa_network: CausalLM, new_engine: Callable[..., Engine], answer: Read
) -> None:
    engine = new_engine(gqa_network, max_num_seqs=1)
    handles = [engine.submit(Request([1], SamplingParams())) for _ in range(3)]
    engine.close()
    engine.close()
    assert [answer(engine, handle)[1].reason for handle in handles] == ["cancelled"] * 3
    with pytest.raises(ShoalError, match="closed"):
        engine.submit(Request([1]))


# ---- faults


def test_a_fault_inside_a_request_ends_only_that_request(
    gqa_network: CausalLM, new_engine: Callable[..., Engine], answer: Read
) -> None:
    engine = new_engine(gqa_network)

    def hook(answer_ids: Any, logits: Any) -> None:
        if len(answer_ids) == 3:
            raise ValueError("a grammar with a bug")

    good = engine.submit(Request([1], GREEDY))
    bad = engine.submit(Request([1], GREEDY, logits_hook=hook))
    worse = engine.submit(Request([1], SamplingParams(temperature="hot")))  # type: ignore[arg-type]
    pieces, finished = answer(engine, bad)
    assert (finished.reason, finished.error, len(pieces)) == ("error", "a grammar with a bug", 3)
    assert answer(engine, worse)[1].reason == "error"
    assert answer(engine, good)[1].usage.completion_tokens == 24
    assert engine.stats().restarts == 0 and engine.stats().running == 0


def test_a_step_that_fails_ends_only_the_request_at_fault(
    network: CausalLM, new_engine: Callable[..., Engine], answer: Read, greedy: Read
) -> None:
    engine = new_engine(network)
    run, poison = engine.runner.run, 77

    def failing(chunks: Any) -> Any:
        if any(poison in chunk.token_ids for chunk in chunks):
            raise RuntimeError("out of memory")
        return run(chunks)

    engine.runner.run = failing  # type: ignore[method-assign]
    good = [engine.submit(Request(prompt, GREEDY)) for prompt in ([1, 2], [3, 4, 5])]
    bad = engine.submit(Request([9, poison], GREEDY))
    assert answer(engine, bad)[1].error == "out of memory"
    expected = clear_part(*greedy(network, [1, 2], 24))
    if poison not in expected:
        assert ids(answer(engine, good[0])[0])[: len(expected)] == expected
    assert engine.stats().restarts == 0


def test_a_fault_of_the_engine_itself_ends_those_in_flight_and_it_serves_on(
    gqa_network: CausalLM, new_engine: Callable[..., Engine], answer: Read, wait_until: Read
) -> None:
    engine = new_engine(gqa_network)
    flying = engine.submit(Request([1], SamplingParams()))
    wait_until(lambda: engine.stats().completion_tokens > 0)

    def broken() -> Any:
        raise KeyError("a bug in the scheduler")

    engine._scheduler.schedule = broken  # type: ignore[method-assign]
    finished = answer(engine, flying)[1]
    assert finished.reason == "error" and "a bug in the scheduler" in (finished.error or "")
    assert answer(engine, [1], temperature=0, max_tokens=5)[1].reason == "length"
    stats = engine.stats()
    assert stats.restarts == 1 and stats.cache_blocks_free == stats.cache_blocks


# ---- events


def test_events_come_in_order_with_numbers(gqa_network: CausalLM, new_engine: Callable[..., Engine]) -> None:
    engine = new_engine(gqa_network, max_num_seqs=1, max_num_batched_tokens=30)
    first = engine.submit(Request([1] * 100, SamplingParams(temperature=0, max_tokens=100)))
    handles = [
        engine.submit(Request([2] * 70, SamplingParams(temperature=0, max_tokens=4))) for _ in range(2)
    ]
    seen: list[list[Any]] = [[], []]
    readers = [
        threading.Thread(target=lambda h=handle, s=events: s.extend(h))
        for handle, events in zip(handles, seen, strict=True)
    ]
    for reader in readers:
        reader.start()
    first.cancel()
    for reader in readers:
        reader.join(timeout=20)
    for events in seen:
        kinds = [type(event) for event in events]
        assert kinds[-1] is Finished and kinds.count(Finished) == 1
        ranks = [[Queued, PromptProgress, Delta, Finished].index(kind) for kind in kinds]
        assert ranks == sorted(ranks)
        progress = [event for event in events if isinstance(event, PromptProgress)]
        assert (progress[-1].processed, progress[-1].total) == (70, 70)
        finished = events[-1]
        assert (finished.usage.prompt_tokens, finished.usage.completion_tokens) == (70, 4)
        timings = finished.timings
        assert timings.first_token_seconds == pytest.approx(timings.queue_seconds + timings.prompt_seconds)
        assert min(timings.queue_seconds, timings.prompt_seconds, timings.decode_seconds) >= 0
    positions = [event.position for event in seen[1] if isinstance(event, Queued)]
    assert positions and positions == sorted(positions, reverse=True)


def test_a_slow_reader_gets_fewer_longer_deltas(
    gqa_network: CausalLM, new_engine: Callable[..., Engine], wait_until: Read
) -> None:
    engine = new_engine(gqa_network)
    handle = engine.submit(Request([1] * 150, SamplingParams(temperature=0, max_tokens=50)))
    wait_until(lambda: engine.stats().finished == {"length": 1})
    events = list(handle)
    assert [type(event) for event in events] == [PromptProgress, Delta, Finished]
    assert len(events[1].pieces) == 50
    assert list(handle) == []  # over is over


def test_asyncio_readers(gqa_network: CausalLM, new_engine: Callable[..., Engine], wait_until: Read) -> None:
    engine = new_engine(gqa_network)

    async def read(prompt: list[int]) -> list[int]:
        tokens = []
        async for event in engine.submit(Request(prompt, GREEDY)):
            if isinstance(event, Delta):
                tokens += ids(event.pieces)
        return tokens

    async def leave() -> None:
        slow = Request([1], SamplingParams(), logits_hook=lambda answer_ids, logits: time.sleep(0.005))
        handle = engine.submit(slow)  # 250 tokens of 5 ms: too long for it, on any machine
        with pytest.raises(asyncio.TimeoutError):
            async with asyncio.timeout(0.1):
                with handle:
                    async for _ in handle:
                        pass

    async def everything() -> list[list[int]]:
        answers = await asyncio.gather(*(read(prompt) for prompt in prompts(4)), leave())
        return answers[:4]

    answers = run_apart(everything())
    assert [len(tokens) for tokens in answers] == [24] * 4
    wait_until(lambda: engine.stats().finished == {"length": 4, "cancelled": 1}, seconds=1)


def test_new_weights_take_over_in_the_middle_of_an_answer(
    new_engine: Callable[..., Engine], gqa_network: CausalLM, answer: Read, wait_until: Read
) -> None:
    network = CausalLM(gqa_network.config).eval()
    engine = new_engine(network)
    running = engine.submit(Request([1, 2], SamplingParams(temperature=0)))
    wait_until(lambda: engine.stats().completion_tokens > 3)
    engine.refresh_weights(gqa_network.state_dict())
    pieces, finished = answer(engine, running)
    assert finished.reason == "length" and len(pieces) == 254
    expected, _ = answer(new_engine(gqa_network), [1, 2, *ids(pieces)[:-3]], temperature=0, max_tokens=3)
    assert ids(pieces)[-3:] == ids(expected)
    with pytest.raises(ShoalError, match="no weight"):
        engine.refresh_weights({"nonsense": torch.zeros(1)})
