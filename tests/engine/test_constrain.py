"""Grammars and the end of a thought, as the engine's logits hook: what may come, on four kinds of vocabulary."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.data.chat import ChatProtocol, protocol_for
from shoal.data.families import ChatMLProtocol, DeepSeekProtocol
from shoal.data.tokenizer import StreamDecoder, Tokenizer, tokenizer_from_gguf, train_tokenizer
from shoal.engine import constrain
from shoal.engine.constrain import AnswerRules, Compiler, Constraint, closing_ids, reasoning_marks, rules_for
from shoal.engine.types import InvalidRequest
from shoal.model.checkpoint import load

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Kobe", "大阪"]}, "n": {"type": "integer", "minimum": 1, "maximum": 3}},
    "required": ["city", "n"],
    "additionalProperties": False,
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "ring_bell"}},
]


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return train_tokenizer(['The quick brown fox. 日本の人口は一億人です。 {"a": 1}'] * 9, vocab_size=400)


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    path = load.resolve("smollm2") if _installed() else None
    if path is None:
        pytest.skip("smollm2 is not installed")
    metadata = load.read_side_files(path).gguf_metadata
    assert metadata is not None
    return tokenizer_from_gguf(metadata)


def _installed() -> Path | None:
    from shoal.model import registry

    return next((entry.path for entry in registry.list_models() if entry.name == "smollm2"), None)


@pytest.fixture(scope="module")
def qwen(ours: Tokenizer) -> Tokenizer:
    """A vocabulary as Qwen3's: marks of turns, thoughts and calls are tokens."""
    metadata = ours.to_gguf()
    names = {"<｜User｜>": "<|im_start|>", "<｜Assistant｜>": "<|im_end|>", "<｜tool▁call▁begin｜>": "<tool_call>",
             "<｜tool▁call▁end｜>": "</tool_call>"}  # fmt: skip
    metadata["tokenizer.ggml.tokens"] = [names.get(t, t) for t in metadata["tokenizer.ggml.tokens"]]
    del metadata["tokenizer.chat_template"]
    return tokenizer_from_gguf(metadata)


@pytest.fixture(params=["ours", "smollm2", "qwen", "deepseek_v3"])
def protocol(request: pytest.FixtureRequest) -> ChatProtocol:
    if request.param == "deepseek_v3":
        return DeepSeekProtocol(request.getfixturevalue("ours"), "v3")
    tokenizer = request.getfixturevalue(request.param)
    return (
        ChatMLProtocol(tokenizer, thinking="native") if request.param == "qwen" else protocol_for(tokenizer)
    )


def compiler(protocol: ChatProtocol) -> Compiler:
    return Compiler(protocol.tokenizer, protocol.tokenizer.vocab_size + 7, protocol.stop_ids)


def answer(
    protocol: ChatProtocol, constraint: Constraint, seed: int, *, starts_in: Any = "content", thinking: bool = False,
    budget: int | None = None, limit: int = 300, begin: str = "",
) -> list[int]:  # fmt: skip
    """An answer sampled from random logits under the rules; `begin` is forced first."""
    rules = rules_for(
        protocol, starts_in, thinking=thinking, budget=budget, grammar=compiler(protocol).compile(constraint)
    )
    assert rules is not None
    rng, forced = np.random.default_rng(seed), protocol.tokenizer.encode(begin, special=True)
    ids: list[int] = []
    while len(ids) < limit:
        logits = rng.normal(size=protocol.tokenizer.vocab_size + 7)
        if len(ids) < len(forced):
            logits[forced[len(ids)]] = 99
        if rules.wants(ids):
            rules(ids, logits)
        ids.append(int(np.argmax(logits)))
        if ids[-1] in protocol.stop_ids:
            return ids
    return ids


def parts(protocol: ChatProtocol, ids: list[int], starts_in: Any = "content") -> list[Any]:
    parser, stream = protocol.parser(starts_in, tools=True), StreamDecoder(protocol.tokenizer)
    found = [part for i in ids for part in parser.push(i, stream.push(i))] + parser.finish()
    joined: dict[Any, str] = {}
    for part in found:
        joined[part.kind, part.index] = joined.get((part.kind, part.index), part.name or "") + part.text
    return list(joined.items())


def test_json_of_a_schema_on_every_vocabulary(protocol: ChatProtocol) -> None:
    """Random logits, so nothing but the grammar makes it JSON; the end token comes of itself."""
    constraint = constrain.json_constraint(SCHEMA, strict=True, param="response_format")
    for seed in range(3):
        ids = answer(protocol, constraint, seed)
        assert ids[-1] in protocol.stop_ids and not set(ids[:-1]) & protocol.tokenizer.special_ids
        found = json.loads(protocol.tokenizer.decode(ids[:-1]))
        assert found["city"] in ("Kobe", "大阪") and found["n"] in (1, 2, 3) and len(found) == 2


def test_required_calls_on_every_vocabulary(protocol: ChatProtocol) -> None:
    constraint = constrain.tools_constraint(protocol, TOOLS, mode="required", parallel=False)
    assert constraint is not None
    for seed in range(3):
        ids = answer(protocol, constraint, seed)
        ((key, text),) = parts(protocol, ids)
        assert ids[-1] in protocol.stop_ids and key == ("tool_call", 0)
        name = "weather" if text.startswith("weather") else "ring_bell"
        arguments = json.loads(text.removeprefix(name))
        assert set(arguments) == ({"city", "n"} if name == "weather" else set())
    several = constrain.tools_constraint(protocol, TOOLS[1:], mode="required", parallel=True)
    assert several is not None
    counts = {len(parts(protocol, answer(protocol, several, seed, limit=2000))) for seed in range(6)}
    assert len(counts) > 1 and max(counts) <= constrain.MAX_CALLS


def test_in_auto_mode_words_are_free_and_a_begun_call_is_held(ours: Tokenizer, smollm2: Tokenizer) -> None:
    protocol = protocol_for(ours)
    constraint = constrain.tools_constraint(protocol, TOOLS, mode="auto")
    assert constraint is not None
    begin = "so<｜tool▁calls▁begin｜>"
    (content, text), *calls = parts(protocol, answer(protocol, constraint, 1, begin=begin, limit=2000))
    assert content[0] == "content" and text == "so" and calls
    assert all(text.startswith(("weather{", "ring_bell{")) for _, text in calls)
    free = answer(protocol, constraint, 2, begin="{", limit=9)
    assert free[0] == ours.encode("{")[0] and len(set(free)) > 3
    assert constrain.tools_constraint(protocol_for(smollm2), TOOLS, mode="auto") is None  # its marks are text


def test_calls_or_json(protocol: ChatProtocol) -> None:
    """Tools and a response format together: a call, or an answer of the schema."""
    constraint = constrain.tools_constraint(
        protocol, TOOLS[1:], mode="auto", parallel=False, content=(SCHEMA, True)
    )
    assert constraint is not None
    kinds = set()
    for seed in range(12):
        ((key, text),) = parts(protocol, answer(protocol, constraint, seed))
        kinds.add(key[0])
        assert (
            text.startswith("ring_bell{") if key[0] == "tool_call" else set(json.loads(text)) == {"city", "n"}
        )
    assert "content" in kinds


def test_a_grammar_begins_behind_the_thought(ours: Tokenizer, qwen: Tokenizer) -> None:
    constraint = constrain.json_constraint(SCHEMA, strict=True, param="response_format")
    for protocol, starts_in in (
        (protocol_for(ours), "reasoning"),
        (ChatMLProtocol(qwen, thinking="native"), "content"),
    ):
        ids = answer(protocol, constraint, 3, starts_in=starts_in, thinking=True, budget=9)
        open_id, close_id = reasoning_marks(protocol)
        thought = ids[: ids.index(close_id or -1)]
        assert len(thought) >= 9 and (starts_in == "reasoning" or thought[0] == open_id)
        found = dict(parts(protocol, ids, starts_in))
        assert set(json.loads(found["content", None])) == {"city", "n"}


def test_thoughts_in_plain_text_refuse_a_grammar(smollm2: Tokenizer) -> None:
    protocol = ChatMLProtocol(smollm2, thinking="native")
    constraint = constrain.json_constraint(SCHEMA, strict=True, param="response_format")
    grammar = compiler(protocol).compile(constraint)
    with pytest.raises(InvalidRequest, match="thinks"):
        rules_for(protocol, "content", thinking=True, grammar=grammar)
    assert rules_for(protocol, "content", thinking=False, grammar=grammar) is not None


def test_regex_and_choice(ours: Tokenizer) -> None:
    protocol = protocol_for(ours)
    for constraint, expected in (
        (constrain.regex_constraint("[ab]{2}-日本", param="x"), {f"{a}-日本" for a in ("aa", "ab", "ba", "bb")}),
        (constrain.choice_constraint(['yes "so"', "いいえ"], param="guided_choice"), {'yes "so"', "いいえ"}),
    ):  # fmt: skip
        texts = {ours.decode(answer(protocol, constraint, seed)[:-1]) for seed in range(9)}
        assert texts <= expected and len(texts) > 1


def deep(levels: int) -> Any:
    schema: Any = {}
    for _ in range(levels):
        schema = {"properties": {"a": schema}}
    return schema


@pytest.mark.parametrize("schema", [
    {"type": "banana"}, {"type": "string", "pattern": "["}, {"type": "string", "pattern": "(" * 300},
    {"$ref": "#/nowhere"}, {"$ref": "http://127.0.0.1:9/x"}, 5, "x", {"not": {}},
    {"type": "integer", "multipleOf": 99999989},
    {"allOf": [{"type": "string", "pattern": f"^(a|b)*a(a|b){{{i}}}"} for i in range(3, 40)]},  # hangs for ever
    {"enum": ["a long word " * 20 + str(i) for i in range(1000)]},
    deep(70), deep(3000), {"type": "object", "required": 5},
])  # fmt: skip
def test_hostile_schemas_are_refused_in_time(ours: Tokenizer, schema: Any) -> None:
    """PRODUCT 4 row 14: a refusal that names the field, never a hang (the limit leaves room for a busy machine)."""
    began = time.monotonic()
    with pytest.raises(InvalidRequest) as refusal:
        compiler(protocol_for(ours)).compile(
            constrain.json_constraint(schema, strict=True, param="response_format")
        )
    assert refusal.value.param == "response_format" and time.monotonic() - began < 20


def test_unknown_keywords_count_only_when_strict(ours: Tokenizer) -> None:
    schema = SCHEMA | {"not": {"required": ["x"]}, "x-guidance": {"lenient": True}}
    with pytest.raises(InvalidRequest, match="not"):
        compiler(protocol_for(ours)).compile(constrain.json_constraint(schema, strict=True, param="x"))
    compiler(protocol_for(ours)).compile(constrain.json_constraint(schema, strict=False, param="x"))


def test_the_same_grammar_is_compiled_once(ours: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    survives = constrain._survives
    monkeypatch.setattr(constrain, "_survives", lambda grammar: tried.append(grammar) or survives(grammar))
    made = compiler(protocol_for(ours))
    constraint = constrain.regex_constraint("a+b", param="x")
    first, second = made.compile(constraint).matcher, made.compile(constraint).matcher
    first.consume_tokens(ours.encode("aab"))
    assert tried == [constraint.grammar]
    assert not second.is_accepting() and first.is_accepting()  # answers do not share their place


def rules(tokenizer: Tokenizer, budget: int | None) -> AnswerRules:
    return AnswerRules(tokenizer, reasoning_marks(protocol_for(tokenizer)), thinking=True, budget=budget)


def test_a_budget_counts_only_thoughts(ours: Tokenizer) -> None:
    close = ours.id_of("</think>")
    assert close is not None
    hook, logits = rules(ours, 2), np.zeros(ours.vocab_size)
    assert not hook.wants([]) and not hook.wants([300])
    hook([300, 301], logits)
    assert logits[close] == 0 and np.isneginf(np.delete(logits, close)).all()
    assert not hook.wants([300, 301, close]) and not hook.wants([300, 301, close, 302])


def test_a_thought_that_ends_with_plain_text_is_ended_by_it(smollm2: Tokenizer) -> None:
    """SmolLM2's adapter: after the budget, or when told, the mark's text is written, and no more is forced."""
    protocol = protocol_for(smollm2).with_thinking_adapter()
    closing = closing_ids(protocol)
    assert smollm2.decode(closing) == "\n</think>\n" and len(closing) > 1
    for budget in (2, None):
        hook = rules_for(protocol, "reasoning", thinking=True, budget=budget)
        assert hook is not None
        ids = smollm2.encode("2 + 2")[:2]
        if budget is None:
            logits = np.arange(smollm2.vocab_size, dtype=float)
            hook(ids, logits)  # in the thought only its end as an answer is forbidden
            assert set(np.flatnonzero(np.isneginf(logits))) == set(protocol.stop_ids) and hook.answer_now()
        for token_id in closing:
            logits = np.zeros(smollm2.vocab_size)
            hook(ids, logits)
            assert logits[token_id] == 0 and np.isneginf(np.delete(logits, token_id)).all()
            ids = [*ids, token_id]
        assert not hook.wants(ids) and not hook.thinking and not hook.answer_now()
    assert rules_for(protocol, "content", thinking=False) is None
    ended = rules_for(protocol, "reasoning", thinking=True, budget=20)
    assert ended is not None and not ended.wants(smollm2.encode("4\n</think>\n4 and " + "so on " * 20))


def test_answer_now_ends_a_thought_between_two_characters(ours: Tokenizer) -> None:
    """C44: from outside, once, and never inside a character."""
    raw = "鬱".encode()
    byte_ids = [i for byte in raw for i in range(ours.vocab_size) if ours.token_bytes(i) == bytes([byte])]
    assert len(byte_ids) == 3
    hook = rules(ours, None)
    assert not hook.wants([300])
    assert hook.answer_now()
    assert not hook.wants([300, byte_ids[0]]) and not hook.wants([300, *byte_ids[:2]])
    assert hook.wants([300, *byte_ids])
    close = ours.id_of("</think>") or 0
    assert not hook.wants([300, *byte_ids, close]) and not hook.answer_now()
