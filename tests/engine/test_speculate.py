"""Speculation changes how fast tokens come and nothing else; it stops where it does not pay."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from shoal.data.tokenizer import Tokenizer
from shoal.engine.constrain import AnswerRules, Compiler, json_constraint
from shoal.engine.engine import Engine
from shoal.engine.sampling import filtered
from shoal.engine.scheduler import Sequence as TokenSequence
from shoal.engine.speculate import (
    Always,
    ForcedDrafter,
    LookupDrafter,
    Offer,
    Policy,
    Speculator,
    StepTimes,
    WhatPays,
)
from shoal.engine.speculate_models import ModelDrafter, MTPDrafter
from shoal.engine.torch_runner import TorchRunner
from shoal.engine.types import Delta, Finished, Piece, Request, SamplingParams
from shoal.model.config import ModelConfig
from shoal.model.context import RowsContext
from shoal.model.transformer import CausalLM

Build = Callable[..., Engine]


class ScriptDrafter:
    """Says what a function of the tokens so far says: right, wrong, or half right."""

    name: str = "script"
    seconds_per_token: float = 0.0
    expected: Sequence[float] = (0.5,)

    def __init__(self, guess: Callable[[list[int], int], list[int]]):
        self.guess = guess

    def offer(self, sequence: TokenSequence, most: int) -> Offer | None:
        tokens = self.guess(sequence.token_ids, most)[:most]
        return Offer(sequence, self, 0, len(tokens), tokens) if tokens else None

    def draft(self, offers: Sequence[Offer], counts: Sequence[int]) -> list[list[int]]:
        return [list(o.tokens or ())[:n] for o, n in zip(offers, counts, strict=True)]

    def forget(self, sequence: TokenSequence | None) -> None:
        pass


def with_mtp(network: CausalLM) -> CausalLM:
    """The same network with a random MTP module."""
    config = ModelConfig.from_dict(network.config.to_dict() | {"num_nextn_predict_layers": 1})
    out = CausalLM(config, mtp=True).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in out.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 1.5 / math.sqrt(parameter.shape[-1]))
    out.load_state_dict(network.state_dict(), strict=False)
    return out


@pytest.fixture
def build(network: CausalLM, tokenizer: Tokenizer) -> Iterator[Build]:
    """A maker of engines: kind of drafter, policy, and the engine's own options."""
    engines: list[Engine] = []

    def runner(of: CausalLM, positions: int) -> TorchRunner:
        return TorchRunner(of, cache_positions=positions, block_size=8, prefill_chunk=16)

    def make(
        kind: Any = None, policy: Policy | None = None, *, positions: int = 4096, **options: Any
    ) -> Engine:
        own = runner(with_mtp(network) if kind == "mtp" else network, positions)
        drafter: Any = {
            None: lambda: None,
            "lookup": LookupDrafter,
            "mtp": lambda: MTPDrafter(own),
            "forced": ForcedDrafter,
            "model": lambda: ModelDrafter(runner(network, 2048)),
        }.get(kind, lambda: ScriptDrafter(kind))()
        speculator = None if drafter is None else Speculator([drafter], policy or Always())
        engines.append(Engine(own, tokenizer, eos_ids=[], speculator=speculator, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def prompts(count: int, seed: int = 1) -> list[list[int]]:
    """Random, with parts that come again."""
    generator = random.Random(seed)
    out = []
    for _ in range(count):
        part = [generator.randrange(384) for _ in range(generator.randint(2, 12))]
        out.append(part + [generator.randrange(384) for _ in range(generator.randint(1, 40))] + part)
    return out


def ask(engine: Engine, prompt: list[int], hook: Any = None, **params: Any) -> tuple[list[Piece], Finished]:
    events = list(engine.submit(Request(prompt, SamplingParams(**params), logits_hook=hook)))
    assert isinstance(events[-1], Finished) and events[-1].error is None
    return [piece for event in events if isinstance(event, Delta) for piece in event.pieces], events[-1]


def said(answer: tuple[list[Piece], Finished]) -> tuple[Any, ...]:
    pieces, end = answer
    return [p.token_id for p in pieces], [p.text for p in pieces], end.reason, end.stop


def only_even(answer_ids: Sequence[int], logits: Any) -> None:
    """A mask that depends on what was said: after an even token an odd one, and the other way round."""
    last = answer_ids[-1] if len(answer_ids) else 0
    logits[last % 2 :: 2] = -np.inf


WAYS: dict[str, dict[str, Any]] = {
    "plain": {"max_tokens": 40},
    "odd length": {"max_tokens": 13},
    "one": {"max_tokens": 1},
    "repetition": {"max_tokens": 24, "repetition_penalty": 1.3},
    "penalties": {"max_tokens": 24, "presence_penalty": 0.6, "frequency_penalty": 0.4},
    "end inside a draft": {"max_tokens": 24, "stop_token_ids": tuple(range(0, 384, 23))},
    "minimum": {"max_tokens": 24, "stop_token_ids": tuple(range(0, 384, 7)), "min_tokens": 11},
    "stop strings": {"max_tokens": 24, "stop": ("e", "日", "wor")},
    "mask": {"max_tokens": 24, "hook": only_even},
    "bias": {"max_tokens": 24, "logit_bias": {5: 8.0, 77: 8.0}},
}


@pytest.mark.parametrize("kind", ["lookup", "mtp", "model"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_answers_are_those_without(build: Build, network: CausalLM, kind: str, temperature: float) -> None:
    if kind == "mtp" and not network.config.uses_mla:
        pytest.skip("llama has no such modules")
    plain, drafting = build(), build(kind, Always(3))
    drafted = accepted = 0
    for number, (way, params) in enumerate(WAYS.items()):
        prompt = prompts(1, seed=number)[0]
        chosen = {"temperature": temperature, "seed": number, **params}
        expected, found = ask(plain, prompt, **chosen), ask(drafting, prompt, **chosen)
        assert said(found) == said(expected), way
        usage = found[1].usage
        drafted, accepted = drafted + usage.draft_tokens, accepted + usage.accepted_tokens
        assert usage.completion_tokens == len(expected[0])
        wasted = usage.draft_tokens - usage.accepted_tokens
        read = usage.prompt_tokens - usage.cached_tokens
        assert usage.computed_tokens - read - wasted in (len(found[0]) - 1, len(found[0]))
        if way == "plain" and kind == "model" and temperature == 0:
            assert usage.accepted_tokens > 0.9 * usage.draft_tokens  # it is the same network
    assert drafted > 10 and (accepted < drafted or kind == "lookup")
    assert accepted > 0 or kind == "mtp"  # its weights are random
    counts = drafting.stats()
    assert (counts.draft_tokens, counts.accepted_tokens) == (drafted, accepted)
    assert counts.cache_blocks_free == counts.cache_blocks


def test_log_probabilities_are_the_models_own(build: Build) -> None:
    plain, drafting = build(), build("model")
    for prompt in prompts(3, seed=5):
        params = {"temperature": 0, "max_tokens": 30, "logprobs": 3}
        for one, other in zip(
            ask(plain, prompt, **params)[0], ask(drafting, prompt, **params)[0], strict=True
        ):
            assert one.token_id == other.token_id
            assert other.logprob == pytest.approx(one.logprob, abs=1e-3)
            assert [i for i, _ in one.top] == [i for i, _ in other.top]


def test_in_company_and_with_too_small_a_cache(build: Build, network: CausalLM) -> None:
    """Beside preemptions and a cancellation: the same answers, and every block comes back."""
    plain = build()
    asked = prompts(8, seed=6)
    expected = [said(ask(plain, p, temperature=0, max_tokens=20)) for p in asked]
    for kind in ("lookup", "model", "mtp") if network.config.uses_mla else ("lookup",):
        small = build(kind, Always(3), positions=120, max_num_seqs=4)
        params = SamplingParams(temperature=0, max_tokens=20)
        handles = [small.submit(Request(p, params)) for p in asked]
        handles[5].cancel()
        for i, handle in enumerate(handles):
            events = list(handle)
            pieces = [piece for event in events if isinstance(event, Delta) for piece in event.pieces]
            if i != 5:
                assert said((pieces, events[-1])) == expected[i]  # type: ignore[arg-type]
        assert small.stats().cache_blocks_free == small.stats().cache_blocks
        assert small.stats().preemptions > 0
        assert small._speculator is not None and not small._speculator._histories


def test_sampling_keeps_the_distribution(build: Build, network: CausalLM) -> None:
    """The tokens of 800 answers whose drafts are the likeliest tokens, against the distribution of
    the network itself. A rule that accepted a draft too readily, or drew the replacement wrongly, would show."""
    if network.config.uses_mla:
        pytest.skip("the rule knows no attention: once is enough")
    prompt, vocabulary = prompts(1, seed=8)[0], 4
    params = SamplingParams(temperature=1.0, top_k=vocabulary, max_tokens=3)

    def chances(ids: list[int]) -> dict[int, float]:
        with torch.no_grad():
            logits = network.logits(network(torch.tensor(ids), RowsContext(1, len(ids))))[-1].double().numpy()
        kept, weights = filtered(logits, temperature=1.0, top_k=vocabulary)
        return dict(zip(kept.tolist(), weights.tolist(), strict=True))

    first = chances(prompt)
    expected: dict[tuple[int, ...], float] = {}
    best: dict[tuple[int, ...], int] = {}
    for a, p in first.items():
        second = chances([*prompt, a])
        best[(a,)] = max(second, key=lambda token, of=second: of[token])  # type: ignore[misc]
        for b, q in second.items():
            third = chances([*prompt, a, b])
            best[(a, b)] = max(third, key=lambda token, of=third: of[token])  # type: ignore[misc]
            for c, r in third.items():
                expected[(a, b, c)] = p * q * r

    def likeliest(ids: list[int], most: int) -> list[int]:
        answer = ids[len(prompt) :]
        while len(answer) < 3:
            answer = [*answer, best[tuple(answer)]]
        return answer[len(ids) - len(prompt) :]

    engine, counts = build(likeliest, max_num_seqs=16), Counter[tuple[int, ...]]()
    for start in range(0, 800, 200):
        seeds = [SamplingParams(**vars(params) | {"seed": seed}) for seed in range(start, start + 200)]
        for handle in [engine.submit(Request(prompt, each)) for each in seeds]:
            pieces = [piece for event in handle if isinstance(event, Delta) for piece in event.pieces]
            counts[tuple(piece.token_id for piece in pieces)] += 1
    assert set(counts) <= set(expected) and counts.total() == 800
    usage = engine.stats()
    assert 0.2 < usage.accepted_tokens / usage.draft_tokens < 0.98, (
        "all right or all wrong would prove little"
    )
    common = [key for key, p in expected.items() if 800 * p >= 5]
    rest = sum(p for key, p in expected.items() if key not in common)
    seen = [counts.get(key, 0) for key in common]
    wanted = [800 * expected[key] for key in common]
    if rest * 800 > 1:
        seen, wanted = [*seen, 800 - sum(seen)], [*wanted, 800 * rest]
    statistic = sum((s - w) ** 2 / w for s, w in zip(seen, wanted, strict=True))
    degrees = len(wanted) - 1
    part = 2 / (9 * degrees)
    assert statistic < degrees * (1 - part + 3.09 * math.sqrt(part)) ** 3, (
        "less likely than one in a thousand"
    )


def test_what_a_grammar_forces_is_drafted(build: Build, tokenizer: Tokenizer) -> None:
    """JSON with long names: the same answer, and what was forced was right."""
    compiler = Compiler(tokenizer, 384, [1])
    names = ["one_long_name", "another_long_name", "the_last_name_of_all"]
    schema = {"type": "object", "properties": {name: {"enum": ["a", "b", 3]} for name in names}, "required": names,
              "additionalProperties": False}  # fmt: skip
    answers = []
    for kind in (None, "forced"):
        grammar = compiler.compile(json_constraint(schema, strict=True, param="response_format"))
        rules = AnswerRules(tokenizer, (None, None), thinking=False, grammar=grammar)
        params = {"temperature": 0.8, "seed": 1, "max_tokens": 100, "stop_token_ids": (1,)}
        answers.append(ask(build(kind), prompts(1)[0], hook=rules, **params))
    assert said(answers[0]) == said(answers[1])
    usage = answers[1][1].usage
    assert usage.accepted_tokens > 0.5 * usage.draft_tokens > 5
    assert set(json.loads("".join(p.text for p in answers[1][0]))) == set(names)


def test_a_request_can_do_without(build: Build) -> None:
    engine, prompt = build("model"), prompts(1)[0]
    params = SamplingParams(temperature=0, max_tokens=20)
    end = list(engine.submit(Request(prompt, replace(params, speculate=False))))[-1]
    assert end.usage.draft_tokens == 0 and end.timings.draft_gain is None  # type: ignore[union-attr]
    end = list(engine.submit(Request(prompt, params)))[-1]
    assert end.usage.accepted_tokens >= 17 and end.timings.draft_gain is not None  # type: ignore[union-attr]


def test_a_drafter_that_fails_ends_no_answer(build: Build) -> None:
    def broken(ids: list[int], most: int) -> list[int]:
        raise RuntimeError("out of memory")

    engine, plain, prompt = build(broken), build(), prompts(1)[0]
    params = {"temperature": 0.0, "max_tokens": 20}
    assert said(ask(engine, prompt, **params)) == said(ask(plain, prompt, **params))
    assert engine.stats().restarts == 0 and engine._speculator is None


# ---- the drafters


def test_lookup_takes_the_longest_match_and_of_equal_ones_the_latest() -> None:
    drafter = LookupDrafter()

    def offered(ids: list[int], most: int = 3) -> tuple[list[int] | None, int]:
        offer = drafter.offer(TokenSequence(ids, len(ids)), most)
        return (None, -1) if offer is None else (offer.tokens, offer.kind)

    assert offered([1, 2, 3, 4]) == (None, -1)
    assert offered([9, 1, 2, 5, 6, 7, 0, 1, 2]) == ([5, 6, 7], 0)
    assert offered([1, 2, 5, 0, 1, 2, 6, 0, 4, 1, 2], 1) == ([6], 0)
    assert offered([3, 1, 2, 5, 0, 1, 2, 6, 0, 3, 1, 2], 1) == ([5], 1)
    assert offered([7, 8, 7, 8], 5) == ([7, 8, 7, 8, 7], 0)  # a loop
    assert offered([*range(20), *range(12)], 2) == ([12, 13], 3)


def test_lookup_goes_on_where_it_was() -> None:
    drafter, whole = LookupDrafter(), [1, 2, 3, 9, 1, 2, 3, 9, 4, 1, 2, 3]
    grown = TokenSequence(whole[:2], 2)
    for token in whole[2:]:
        drafter.offer(grown, 4)
        grown.token_ids.append(token)
    fresh = LookupDrafter().offer(TokenSequence(list(whole), 12), 4)
    found = drafter.offer(grown, 4)
    assert fresh is not None and found is not None and found.tokens == fresh.tokens == [9, 4, 1, 2]
    drafter.forget(grown)
    assert not drafter._ends


def test_mtp_reads_what_the_module_would_in_one_pass(network: CausalLM) -> None:
    """Drafts by way of the cache, in any cutting, against the module over the whole row."""
    from shoal.engine.runner import Chunk, DraftChunk

    if not network.config.uses_mla:
        pytest.skip("llama has no such modules")
    both, ids = with_mtp(network), prompts(1, seed=3)[0][:40]
    runner = TorchRunner(both, cache_positions=512, block_size=8)
    for tensor in runner.cache.tensors():
        tensor.fill_(torch.nan)
    table, length = [9, 3, 30, 4, 11, 2, 8], len(ids)
    with torch.no_grad():
        row = RowsContext(1, length - 1)
        hidden = both(torch.tensor(ids[:-1]), row)
        out = both.mtp_forward(0, hidden, torch.tensor(ids[1:]), row)
        expected = int(both.logits(out[-1:]).argmax())
    for start, end in ((0, 7), (7, 8), (8, length - 1)):
        runner.run([Chunk(ids[start:end], start, table)])
    for start, end in ((0, 5), (5, length - 3)):
        assert runner.draft([DraftChunk(ids[start + 1 : end + 1], start, table, 0)]) == [[]]
    drafts = runner.draft([DraftChunk(ids[length - 2 :], length - 3, table, 4)])[0]
    assert drafts[0] == expected and len(drafts) == 4
    again = runner.draft([DraftChunk(ids[length - 2 :], length - 3, table, 2)])[0]
    assert again == drafts[:2], "a roll-back must leave nothing behind"


def test_a_true_mtp_module_is_often_right_and_a_shuffled_one_harmless(either_runner: str) -> None:
    """The embedded model on its own kind of questions (C39)."""
    from shoal.engine.open import open_model
    from shoal.model.checkpoint.source import open_source

    rates = []
    dtype = "float32" if either_runner == "torch" else None
    for shuffled in (False, True):
        opened = open_model(
            "nano", runner=either_runner, dtype=dtype, context=512, max_num_seqs=2, speculate="mtp"
        )
        engine = opened.engine
        engine._speculator._policy = Always(3)  # type: ignore[union-attr]
        if shuffled:
            name = f"model.layers.{opened.config.num_hidden_layers}.eh_proj.weight"
            weight = open_source(opened.path).floats(name)
            engine.refresh_weights({name: np.random.default_rng(1).permutation(weight)})
        texts = []
        for question in ("Tom has 3 apples and buys 4 more. How many apples has Tom?", "What is 12 + 7?"):
            ids = opened.protocol.render([{"role": "user", "content": question}]).ids
            pieces, _ = ask(engine, list(ids), temperature=0, max_tokens=40)
            texts.append([piece.token_id for piece in pieces])
        counts = engine.stats()
        rates.append((counts.accepted_tokens / counts.draft_tokens, texts))
        opened.close()
    assert rates[0][1] == rates[1][1]
    assert rates[0][0] > 0.4 and rates[1][0] < 0.2, rates


# ---- what pays


def times(**seconds: float) -> StepTimes:
    out = StepTimes()
    for positions, value in seconds.items():
        out.add(int(positions[1:]), value)
    return out


def offers(*most: int) -> list[Offer]:
    return [Offer(TokenSequence([1], 1), LookupDrafter(), 0, m, [1] * m) for m in most]


def test_drafts_are_taken_while_their_chance_beats_their_share_of_the_step() -> None:
    flat = WhatPays(times(n1=1.0, n16=1.1))  # eight streams cost what one does
    assert flat.counts(offers(15), [0.95], 1) == [15]
    steep = WhatPays(times(n1=1.0, n2=2.0, n16=16.0))  # nothing is won by doing two together
    assert steep.counts(offers(15), [0.99], 1) == [0]
    middle = WhatPays(times(n1=1.0, n2=1.1, n16=2.5))
    few, many = middle.counts(offers(15), [0.4], 1), middle.counts(offers(15), [0.9], 1)
    assert 0 < few[0] < many[0]
    assert middle.counts(offers(15), [0.05], 1) == [0]
    unsure, sure = middle.counts(offers(15, 15), [0.3, 0.95], 2)
    assert unsure < sure


def test_a_slow_drafter_must_be_worth_its_time() -> None:
    policy, slow = WhatPays(times(n1=1.0, n16=1.5)), offers(15)
    slow[0].drafter.seconds_per_token = 0.9
    assert policy.counts(slow, [0.8], 1) == [0]
    slow[0].drafter.seconds_per_token = 0.05
    assert policy.counts(slow, [0.8], 1)[0] > 2


def test_nobody_waits_long_for_anothers_drafts() -> None:
    policy = WhatPays(times(n1=1.0, n2=1.0, n18=9.0))
    assert policy.times.expect(2 + sum(policy.counts(offers(15, 15), [1.0, 1.0], 2))) <= 2.0


def test_no_drafts_before_a_step_without_was_seen() -> None:
    policy = WhatPays(StepTimes())
    assert policy.counts(offers(15), [0.9], 1) == [0]
    policy.times.add(1, 0.01)
    assert policy.counts(offers(15), [0.9], 1)[0] > 0  # and then they are tried


def test_wrong_drafts_end_and_are_tried_again_more_and_more_seldom() -> None:
    speculator = Speculator([ScriptDrafter(lambda ids, most: [1] * most)])
    for positions in range(1, 17):
        speculator.times.add(positions, 1 + positions / 8)
    one = TokenSequence([1], 1)
    tried = []
    for step in range(1000):
        drafts = speculator.propose([(one, 15)], 1, lambda sequence, count: count).get(one, [])
        if drafts:
            tried.append(step)
        speculator.judged(one, len(drafts), 0)
    gaps = np.diff(tried)
    assert len(tried) < 40 and gaps[-1] == 256 and gaps.max() == 256
    for _ in range(300):  # and it comes back when they are right
        drafts = speculator.propose([(one, 15)], 1, lambda sequence, count: count).get(one, [])
        speculator.judged(one, len(drafts), len(drafts))
    for _ in range(300):
        drafts = speculator.propose([(one, 15)], 1, lambda sequence, count: count).get(one, [])
        speculator.judged(one, len(drafts), len(drafts))
    assert len(drafts) > 3


def test_step_times_between_and_beyond() -> None:
    measured = times(n1=1.0, n5=2.0, n9=4.0)
    assert [measured.expect(n) for n in (1, 3, 5, 7, 9, 11)] == [1.0, 1.5, 2.0, 3.0, 4.0, 5.0]
    measured.add(5, 100.0)  # somebody else took the processor
    assert measured.expect(5) == pytest.approx(2.2)
    for _ in range(20):
        measured.add(5, 1.5)
    assert measured.expect(5) == pytest.approx(1.5, rel=0.01)
    assert times(n4=1.0).expect(1) == 1.0


def test_a_model_is_opened_with_its_drafter_and_its_cache_on_disk() -> None:
    """By way of `open_model`: the small model (here the model itself) drafts, and a restart finds the prompt."""
    from shoal.engine.open import open_model

    ids, answers = [7, 30, 200, 41, 5] * 20, []
    for cached in (0, 96):
        opened = open_model("nano", dtype="float32", context=256, speculate="nano", cache_disk_bytes=10**9)
        opened.engine._speculator._policy = Always(4)  # type: ignore[union-attr]
        pieces, end = ask(opened.engine, ids, temperature=0, max_tokens=12)
        opened.close()
        answers.append([piece.token_id for piece in pieces])
        assert end.usage.cached_tokens == cached
        assert end.usage.accepted_tokens > 0.5 * end.usage.draft_tokens > 0
    assert answers[0] == answers[1]


def test_a_drafter_that_cannot_be_is_refused(
    tmp_path: Any, tokenizer: Tokenizer, gqa_network: CausalLM
) -> None:
    from shoal.engine.open import open_model
    from shoal.errors import UsageError
    from shoal.model.checkpoint.save import save_checkpoint

    save_checkpoint(tmp_path / "tiny", gqa_network, tokenizer_files=tokenizer.save)
    for speculate, told in (("mtp", "no multi-token prediction module"), ("nano", "another vocabulary")):
        with pytest.raises(UsageError, match=told):
            open_model(tmp_path / "tiny", dtype="float32", speculate=speculate)


@pytest.mark.parametrize("quant", ["8", "none"])
def test_where_sums_have_one_order_hits_and_drafts_are_exact_to_the_bit(
    tmp_path: Any, tokenizer: Tokenizer, network: CausalLM, quant: str
) -> None:
    """The native runner: log-probabilities of a cold answer, of one behind a cached prefix, and of one whose tokens
    were verified together, compared as they are."""
    from shoal.engine.open import open_model
    from shoal.model.checkpoint.save import save_checkpoint
    from shoal.ops import native

    if not native.available:
        pytest.skip(native.missing_reason)
    save_checkpoint(tmp_path / "tiny", network, tokenizer_files=tokenizer.save)
    opened = open_model(tmp_path / "tiny", runner="native", quant=quant, max_num_seqs=2, speculate="off")
    prompt = prompts(1, seed=2)[0] * 2
    params = {"temperature": 0.0, "max_tokens": 48, "logprobs": 2, "ignore_eos": True}
    told: list[list[Any]] = []

    def mostly_right(ids: list[int], most: int) -> list[int]:
        whole = [token for token, *_ in told[0]]
        done = len(ids) - len(prompt)
        return [token + (place % 5 == 4) for place, token in enumerate(whole)][done : done + most]

    for drafter in (None, None, ScriptDrafter(mostly_right)):
        opened.engine._speculator = None if drafter is None else Speculator([drafter], Always(7))
        pieces, end = ask(opened.engine, prompt, **params)
        told.append([(p.token_id, p.logprob, p.top) for p in pieces])
    opened.close()
    assert (
        end.usage.cached_tokens == len(prompt) - 1 and 0 < end.usage.accepted_tokens < end.usage.draft_tokens
    )
    assert told[0] == told[1] == told[2]
