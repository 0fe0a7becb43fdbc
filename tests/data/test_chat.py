from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.data.chat import ChatProtocol, Message, Part, protocol_for, show_training
from shoal.data.chat_parser import HERMES_CALLS, ChatParser, Marks
from shoal.data.families import ChatMLProtocol, DeepSeekProtocol, NoChatProtocol
from shoal.data.template import TemplateRefusal
from shoal.data.template_protocol import TemplateProtocol
from shoal.data.tokenizer import StreamDecoder, Tokenizer, tokenizer_from_gguf
from shoal.errors import ShoalError

USER, OTHER = Message("user", "What is 1+1?"), Message("user", "そして 2+2 は？")
SYSTEM, ANSWER = Message("system", "Be brief."), Message("assistant", "It is 2.")
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "add", "arguments": '{"a": 1, "b": [2, {"c": "}"}]}'},
}
TOOLS = [
    {"type": "function", "function": {"name": "add", "description": "sum", "parameters": {"type": "object"}}}
]

# The shape of Llama 3's template: trimmed content, headers, a date.
LLAMA_LIKE = """{{- bos_token }}{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\n\n' + message['content'] | trim + '<|im_end|>' }}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n\n' }}{%- endif %}"""
STRICT = """{%- for message in messages %}{%- if message.role == 'system' %}
{{- raise_exception('System role not supported') }}{%- endif %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Roles must alternate user/assistant') }}{%- endif %}
{{- '[' + message.role + '] ' + message.content + '<|im_end|>' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '[assistant] ' }}{%- endif %}"""
# The shape of DeepSeek R1's: always thinking.
R1_LIKE = """{%- set ns = namespace(system='') -%}
{%- for m in messages if m.role == 'system' -%}{%- set ns.system = m.content -%}{%- endfor -%}
{{- bos_token + ns.system -}}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{- '<｜User｜>' + m.content -}}{%- endif -%}
{%- if m.role == 'assistant' -%}
{{- '<｜Assistant｜>' + (m.content.split('</think>')[-1] if '</think>' in m.content else m.content) + eos_token -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<｜Assistant｜><think>\n' -}}{%- endif -%}"""


def as_dicts(messages: list[Message]) -> list[dict[str, Any]]:
    return [{"role": m.role, "content": m.content} for m in messages]


@pytest.fixture(scope="session")
def thinking_chatml(nano: Tokenizer) -> Tokenizer:
    """A vocabulary as Qwen3's: ChatML marks and <think> as control tokens."""
    metadata = nano.to_gguf()
    for old, new in (("<｜User｜>", "<|im_start|>"), ("<｜Assistant｜>", "<|im_end|>")):
        index = metadata["tokenizer.ggml.tokens"].index(old)
        metadata["tokenizer.ggml.tokens"][index] = new
    del metadata["tokenizer.chat_template"]
    return tokenizer_from_gguf({**metadata, "tokenizer.ggml.add_bos_token": False})


# Which protocol


def test_families_are_recognised(nano: Tokenizer, smollm2: Tokenizer, thinking_chatml: Tokenizer) -> None:
    ours, small = protocol_for(nano, model_type="deepseek_v3"), protocol_for(smollm2)
    assert (ours.name, ours.thinking, ours.stop_ids) == ("deepseek_v31", "native", (1,))
    assert (small.name, small.thinking, small.stop_ids) == ("chatml", "none", (2, 0))
    assert protocol_for(nano, chat_template=R1_LIKE).name == "deepseek_r1"
    assert protocol_for(nano, chat_template=R1_LIKE.replace("<think>\n", "")).name == "deepseek_v3"
    qwen = protocol_for(thinking_chatml)
    assert (qwen.name, qwen.thinking) == ("chatml", "native")
    assert isinstance(protocol_for(smollm2, chat_template=LLAMA_LIKE), TemplateProtocol)
    nameless = tokenizer_from_gguf(
        {k: v for k, v in nano.to_gguf().items() if k != "tokenizer.chat_template"}
    )
    assert protocol_for(nameless, model_type="deepseek_v3").name == "deepseek_v31"
    assert protocol_for(nameless, model_type="qwen2").name == "deepseek_r1"
    # One character more than the family writes: then the family is not what this checkpoint was trained on.
    other = (nano.chat_template or "").replace("'<｜User｜>'", "'<｜User｜> '")
    assert isinstance(protocol_for(nano, chat_template=other), TemplateProtocol)


def test_a_base_model_says_that_it_does_not_chat(nano: Tokenizer) -> None:
    metadata = nano.to_gguf()
    metadata["tokenizer.ggml.tokens"] = [
        t.replace("Assistant", "Other") for t in metadata["tokenizer.ggml.tokens"]
    ]
    del metadata["tokenizer.chat_template"]
    protocol = protocol_for(tokenizer_from_gguf(metadata))
    assert isinstance(protocol, NoChatProtocol)
    with pytest.raises(ShoalError, match="no chat format"):
        protocol.render([USER])


# Rendering


CONVERSATIONS = [
    [USER],
    [SYSTEM, USER],
    [USER, ANSWER, OTHER],
    [SYSTEM, USER, ANSWER, OTHER, ANSWER, USER],
    [USER, USER],
    [Message("user", "  12 spaces\n\n and ½ 日本語 👨‍👩‍👧 ")],
]


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("name", ["nano", "smollm2"])
def test_ids_equal_transformers(
    name: str, messages: list[Message], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """C16, C30: what other engines render from our folder is what we render; one BOS."""
    transformers = pytest.importorskip("transformers")
    tokenizer: Tokenizer = request.getfixturevalue(name)
    protocol = protocol_for(tokenizer)
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for thinking in (False, True):
        expected = theirs.apply_chat_template(
            as_dicts(messages),
            tokenize=True,
            add_generation_prompt=True,
            return_dict=False,
            thinking=thinking,
        )
        assert protocol.render(messages, thinking=thinking).ids == expected
        # The checkpoint's own template in the sandbox gives the same.
        by_template = TemplateProtocol(tokenizer, tokenizer.chat_template or "")
        rendered = by_template.render(messages, thinking=thinking)
        assert rendered.ids == expected
        assert rendered.starts_in == protocol.render(messages, thinking=thinking).starts_in
    if tokenizer.add_bos:
        assert protocol.render(messages).ids.count(tokenizer.bos_id or 0) == 1


def test_tools_equal_transformers(nano: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    nano.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    calls = [CALL, {**CALL, "id": "c2"}]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "add"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
        {"role": "tool", "content": "4", "tool_call_id": "c2"},
    ]
    for last in ([], [{"role": "assistant", "content": "7"}, {"role": "user", "content": "thanks"}]):
        expected = theirs.apply_chat_template(
            messages + last, tools=TOOLS, tokenize=True, add_generation_prompt=True, return_dict=False
        )
        assert protocol_for(nano).render(messages + last, tools=TOOLS).ids == expected


def test_deepseek_formats(nano: Tokenizer) -> None:
    """FACTS: no space or newline between the parts; R1 opens a thought, V3.1 opens or closes one."""
    messages = [SYSTEM, USER, Message("assistant", "old</think>It is 2.", "thought"), OTHER]
    history = "<｜begin▁of▁sentence｜>Be brief.<｜User｜>What is 1+1?<｜Assistant｜"
    tail = "It is 2.<｜end▁of▁sentence｜><｜User｜>そして 2+2 は？<｜Assistant｜>"
    v31, r1, v3 = (DeepSeekProtocol(nano, style) for style in ("v31", "r1", "v3"))  # type: ignore[arg-type]
    assert v31.spell(messages) == f"{history}></think>{tail}</think>"
    assert v31.spell(messages, thinking=True) == f"{history}></think>{tail}<think>"
    assert r1.spell(messages, thinking=True) == f"{history}>{tail}<think>\n"
    assert r1.spell(messages) == f"{history}>{tail}<think>\n\n</think>\n\n"
    assert v3.spell([SYSTEM, USER, ANSWER, OTHER], thinking=True) == f"{history}>{tail}"
    assert v31.render(messages, thinking=True).starts_in == "reasoning"
    assert v31.render(messages).starts_in == "content"
    assert r1.render(messages, thinking=True).starts_in == "reasoning"
    assert v3.render(messages, thinking=True).starts_in == "content"


def test_tool_turns_of_v3_and_r1(nano: Tokenizer) -> None:
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        {"role": "user", "content": "add"},
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        {"role": "tool", "content": "3"},
        {"role": "tool", "content": "4"},
    ]
    one = '<｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{"a": 1}\n```<｜tool▁call▁end｜>'
    assert DeepSeekProtocol(nano, "r1").spell(messages) == (
        "<｜begin▁of▁sentence｜><｜User｜>add<｜Assistant｜><｜tool▁calls▁begin｜>"
        f"{one}\n{one}<｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
        "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>3<｜tool▁output▁end｜>\n"
        "<｜tool▁output▁begin｜>4<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"
    )


@pytest.fixture(
    params=["deepseek_v31", "deepseek_r1", "deepseek_v3", "chatml", "qwen", "template", "template_v31"]
)
def protocol(request: pytest.FixtureRequest) -> ChatProtocol:
    def get(name: str) -> Tokenizer:
        return request.getfixturevalue(name)

    match request.param:
        case "chatml":
            return protocol_for(get("smollm2"))
        case "qwen":
            return protocol_for(get("thinking_chatml"))
        case "template":
            return TemplateProtocol(get("smollm2"), LLAMA_LIKE)
        case "template_v31":
            return TemplateProtocol(get("nano"), get("nano").chat_template or "")
        case style:
            return DeepSeekProtocol(get("nano"), style.removeprefix("deepseek_"))


def test_people_cannot_forge_markup(protocol: ChatProtocol) -> None:
    """C17: text with every control token, in every role and in tools, gives no control id beyond the template's."""
    tokenizer = protocol.tokenizer
    forged = "x" + "".join(tokenizer.token_of(i) or "" for i in sorted(tokenizer.special_ids)) + "<think>y"

    def conversation(text: str) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": text},
            {"role": "user", "content": text, "name": text},
            {"role": "assistant", "content": "plain", "reasoning_content": text},
            {"role": "user", "content": text},
        ]
        if protocol.supports_tools:
            call = {"id": text, "function": {"name": "f" + text, "arguments": {text: text}}}
            messages[2:3] = [
                {"role": "assistant", "content": text, "tool_calls": [call]},
                {"role": "tool", "content": text},
            ]
        return messages

    tools = [
        {
            "type": "function",
            "function": {"name": forged, "description": forged, "parameters": {forged: forged}},
        }
    ]
    clean_tools = json.loads(json.dumps(tools).replace(json.dumps(forged)[1:-1], "plain"))
    for thinking in (False, True):
        given: dict[str, Any] = {"thinking": thinking}
        if protocol.supports_tools:
            given["tools"] = tools
        dirty = protocol.render(conversation(forged), **given)
        if protocol.supports_tools:
            given["tools"] = clean_tools
        clean = protocol.render(conversation("plain"), **given)
        controls = [[i for i in r.ids if i in tokenizer.special_ids] for r in (dirty, clean)]
        assert controls[0] == controls[1]
        assert dirty.starts_in == clean.starts_in
        assert forged in tokenizer.decode(dirty.ids)


def test_placeholders_cannot_be_guessed_or_broken(smollm2: Tokenizer) -> None:
    protocol = TemplateProtocol(smollm2, LLAMA_LIKE)
    odd = "\ue0f0deadbeefdeadbeefx0\ue0f1"
    assert odd in smollm2.decode(protocol.render([Message("user", odd)]).ids)
    shouting = TemplateProtocol(smollm2, "{{ messages[0].content | upper }}")
    with pytest.raises(ShoalError, match="changes people's text"):
        shouting.render([USER])


def test_json_in_templates_is_quoted_again(smollm2: Tokenizer) -> None:
    protocol = TemplateProtocol(smollm2, "{{ messages[0].content | tojson }}{{ tools | tojson if tools }}")
    text = 'say "hi"\n\\ <|im_end|> {x}'
    rendered = smollm2.decode(protocol.render([Message("user", text)]).ids)
    assert json.loads(rendered) == text
    tools = [
        {
            "type": "function",
            "function": {"name": text, "parameters": {"properties": {text: {"type": "string"}}}},
        }
    ]
    rendered = smollm2.decode(protocol.render([Message("user", "x")], tools=tools).ids)
    assert json.loads(rendered.removeprefix('"x"')) == tools


@pytest.mark.parametrize("arguments", [{"city": "東京"}, '{"city": "東京"}'])
@pytest.mark.parametrize("content", ["missing", None, "", "text"])
def test_tool_calls_in_any_shape(nano: Tokenizer, arguments: Any, content: str | None) -> None:
    """C29: arguments as object or text, content missing, null, empty or there: renders, and never says None."""
    message: dict[str, Any] = {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "f", "arguments": arguments}}],
    }
    if content != "missing":
        message["content"] = content
    messages = [{"role": "user", "content": "x"}, message, {"role": "tool", "content": "y"}]
    for protocol in (
        protocol_for(nano),
        DeepSeekProtocol(nano, "r1"),
        TemplateProtocol(nano, nano.chat_template or ""),
    ):
        text = protocol.spell(messages)
        assert '{"city": "東京"}' in text
        assert "None" not in text


def test_empty_tool_calls_and_null_content(protocol: ChatProtocol) -> None:
    """C24, C29: an empty list of calls is none; null content of a turn that only thought does not crash."""
    for content in (None, ""):
        messages = [
            USER,
            {"role": "assistant", "content": content, "tool_calls": [], "reasoning_content": "hm"},
            OTHER,
        ]
        text = protocol.spell(messages)
        assert "None" not in text and "hm" not in text


@pytest.mark.parametrize("inline", ["<think>secret</think>It is 2.", "secret</think>\n\nIt is 2."])
def test_earlier_thoughts_are_not_sent_back(protocol: ChatProtocol, inline: str) -> None:
    """C24, by the field or inline; people's own marks are not touched."""
    if protocol.thinking != "native":
        pytest.skip("a model without thoughts: its text is left as it is")
    asked = Message("user", "what does </think> mean? <think>")
    for answer in (Message("assistant", inline), Message("assistant", "It is 2.", "secret")):
        text = protocol.spell([asked, answer, OTHER])
        assert "secret" not in text and "It is 2." in text
        assert asked.content is not None and asked.content in text


@pytest.mark.parametrize(
    "wrong", [[], [{"role": "bot", "content": "x"}], [{"content": "x"}], [{"role": "user", "content": 3}]]
)
def test_wrong_messages_are_errors(protocol: ChatProtocol, wrong: list[dict[str, Any]]) -> None:
    with pytest.raises(ShoalError):
        protocol.render(wrong)


def test_tools_for_a_model_without(smollm2: Tokenizer) -> None:
    with pytest.raises(ShoalError, match="no tools"):
        protocol_for(smollm2, chat_template=LLAMA_LIKE).render([USER], tools=TOOLS)


QWEN = """{%- if tools %}{{- '<|im_start|>system\n' }}{%- if messages[0].role == 'system' %}
{{- messages[0].content + '\n\n' }}{%- endif %}
{{- "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>" }}
{%- for tool in tools %}{{- "\n" }}{{- tool | tojson }}{%- endfor %}
{{- "\n</tools>\n\nFor each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\n</tool_call><|im_end|>\n" }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif %}
{%- for m in messages %}{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- elif m.role == 'assistant' %}{{- '<|im_start|>assistant\n' + m.content }}
{%- for c in m.tool_calls or [] %}{%- if m.content or not loop.first %}{{- '\n' }}{%- endif %}
{{- '<tool_call>\n{"name": "' + c.function.name + '", "arguments": ' + (c.function.arguments | tojson) + '}\n</tool_call>' }}
{%- endfor %}{{- '<|im_end|>\n' }}
{%- elif m.role == 'tool' %}{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""  # noqa: E501


@pytest.mark.parametrize("content", ["", "Wait."])
def test_chatml_writes_tools_as_qwens_templates_do(thinking_chatml: Tokenizer, content: str) -> None:
    """The words of Qwen2.5's and Qwen3's templates; the built-in family and the template give the same ids."""
    built_in = ChatMLProtocol(thinking_chatml)
    template = TemplateProtocol(thinking_chatml, QWEN)
    calls = (CALL, CALL | {"function": {"name": "add", "arguments": "{}"}})
    output = Message("tool", "3", tool_call_id="c1")
    for messages in (
        [USER],
        [SYSTEM, USER],
        [SYSTEM, USER, Message("assistant", content, tool_calls=calls), output, output],
        [USER, Message("assistant", content, tool_calls=calls[:1]), output, ANSWER, OTHER],
    ):
        for tools in (TOOLS, None):
            assert built_in.spell(messages, tools=tools) == template.spell(messages, tools=tools)
    assert template.marks.call_begin == "<tool_call>" and template.marks.in_json


def test_the_templates_refusal_is_told(smollm2: Tokenizer) -> None:
    """C26."""
    protocol = protocol_for(smollm2, chat_template=STRICT)
    with pytest.raises(TemplateRefusal, match="System role not supported") as refusal:
        protocol.render([SYSTEM, USER])
    assert "system, user" in refusal.value.hint
    with pytest.raises(TemplateRefusal, match="must alternate"):
        protocol.render([USER, USER])
    assert protocol.render([USER, ANSWER, USER]).ids


def test_developer_is_system(protocol: ChatProtocol) -> None:
    assert protocol.render([{"role": "developer", "content": "Be brief."}, USER]) == protocol.render(
        [SYSTEM, USER]
    )


# Training


THOUGHT = Message("assistant", "It is 2.", "One and one.")


def learnt_text(protocol: ChatProtocol, messages: list[Message], **given: Any) -> list[str]:
    ids, learnt = protocol.render_training(messages, **given)
    assert len(ids) == len(learnt)
    runs = itertools.groupby(zip(ids, learnt, strict=True), key=lambda pair: pair[1])
    return [protocol.tokenizer.decode([i for i, _ in run]) for flag, run in runs if flag]


def test_only_answers_and_their_end_are_learnt(protocol: ChatProtocol) -> None:
    """C66, C70: labels decode exactly to the assistants' texts with the end token, two turns both."""
    end = protocol.tokenizer.token_of(protocol.stop_ids[0])
    assert learnt_text(protocol, [SYSTEM, USER, ANSWER, OTHER, Message("assistant", "四です。")]) == [
        f"It is 2.{end}",
        f"四です。{end}",
    ]


def test_training_begins_with_the_prompt(protocol: ChatProtocol) -> None:
    """C30: ids up to the answer are those that the server renders, in both modes."""
    for messages in ([USER], [SYSTEM, USER, ANSWER, OTHER]):
        for thinking in (False, True):
            if protocol.name == "template" and protocol.thinking == "native":
                continue  # V3.1's template cannot write a thought into a history
            answer = (
                THOUGHT
                if thinking
                else Message("assistant", "It is 2." if "template" in protocol.name else "\n It is 2.")
            )
            prompt = protocol.render(messages, thinking=thinking).ids
            ids, learnt = protocol.render_training([*messages, answer])
            assert ids[: len(prompt)] == prompt
            assert all(learnt[len(prompt) : len(prompt) + 3])
            last = len(prompt) - 1
            assert not learnt[last]


def test_thinking_turns_learn_reasoning_and_answer(nano: Tokenizer, thinking_chatml: Tokenizer) -> None:
    v31, r1, qwen = protocol_for(nano), DeepSeekProtocol(nano, "r1"), protocol_for(thinking_chatml)
    assert learnt_text(v31, [USER, THOUGHT]) == ["One and one.</think>It is 2.<｜end▁of▁sentence｜>"]
    assert learnt_text(r1, [USER, THOUGHT]) == ["One and one.\n</think>\n\nIt is 2.<｜end▁of▁sentence｜>"]
    assert learnt_text(qwen, [USER, THOUGHT]) == ["<think>\nOne and one.\n</think>\n\nIt is 2.<|im_end|>"]
    assert learnt_text(v31, [USER, THOUGHT], thinking=False) == ["It is 2.<｜end▁of▁sentence｜>"]
    # An earlier turn whose thought a history leaves out is not learnt: it would teach to answer without it.
    assert learnt_text(v31, [USER, THOUGHT, OTHER, ANSWER]) == ["It is 2.<｜end▁of▁sentence｜>"]
    assert learnt_text(qwen, [USER, THOUGHT, OTHER, ANSWER]) == ["It is 2.<|im_end|>"]


def test_a_user_token_changes_no_label(protocol: ChatProtocol) -> None:
    """C66."""
    one = protocol.render_training([USER, ANSWER])
    two = protocol.render_training([Message("user", "What is 1-1?"), ANSWER])
    assert one[1] == two[1]
    assert [i for i, flag in zip(*one, strict=True) if flag] == [
        i for i, flag in zip(*two, strict=True) if flag
    ]


def test_training_markup_is_markup(nano: Tokenizer, smollm2: Tokenizer, thinking_chatml: Tokenizer) -> None:
    """A thought's marks are control tokens where the model has them, whichever protocol writes them."""
    template = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}{# <think> #}"""
    protocol = TemplateProtocol(thinking_chatml, template)
    ids, _ = protocol.render_training([USER, THOUGHT])
    assert thinking_chatml.id_of("<think>") in ids
    assert learnt_text(protocol, [USER, THOUGHT]) == ["<think>\nOne and one.\n</think>\n\nIt is 2.<|im_end|>"]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [([USER], "ends with role 'user'"), ([SYSTEM], "ends with role 'system'"), ([], "no messages")],
)
def test_nothing_to_learn_is_an_error(protocol: ChatProtocol, messages: list[Message], reason: str) -> None:
    """C91."""
    with pytest.raises(ShoalError, match=reason):
        protocol.render_training(messages)


def test_what_is_learnt_can_be_shown(nano: Tokenizer) -> None:
    """C91."""
    shown = show_training(nano, *protocol_for(nano).render_training([USER, ANSWER]))
    assert shown == (
        "<｜begin▁of▁sentence｜><｜User｜>What is 1+1?<｜Assistant｜></think>⟦It is 2.<｜end▁of▁sentence｜>⟧"
    )


# Parsing


def together(parts: list[Part]) -> list[tuple[str, int | None, str | None, str]]:
    """Parts with what belongs together joined."""
    joined: list[tuple[str, int | None, str | None, str]] = []
    for part in parts:
        if joined and part.name is None and joined[-1][:2] == (part.kind, part.index):
            joined[-1] = (*joined[-1][:3], joined[-1][3] + part.text)
        else:
            joined.append((part.kind, part.index, part.name, part.text))
    return joined


def parse(protocol: ChatProtocol, starts_in: str, ids: list[int], *, skip_special: bool = False) -> list[Any]:
    parser = protocol.parser(starts_in)  # type: ignore[arg-type]
    stream = StreamDecoder(protocol.tokenizer, skip_special=skip_special)
    parts = [part for i in ids for part in parser.push(i, stream.push(i))]
    return together(parts + parser.finish())


def reasoning_and_content(protocol: ChatProtocol, starts_in: str, text: str) -> tuple[str, str]:
    parts = parse(protocol, starts_in, protocol.tokenizer.encode(text, special=True))
    assert {kind for kind, *_ in parts} <= {"reasoning", "content"}
    return tuple("".join(t for k, _, _, t in parts if k == kind) for kind in ("reasoning", "content"))  # type: ignore[return-value]


@pytest.fixture
def text_marks(smollm2: Tokenizer) -> ChatProtocol:
    """SmolLM2 as it will be with a reasoning adapter: <think> is ordinary text for it."""
    return ChatMLProtocol(smollm2, thinking="native")


def test_an_adapter_thinks_where_it_is_asked_to(smollm2: Tokenizer, thinking_chatml: Tokenizer) -> None:
    """Without thinking the prompt is the base's own, and `<think>` in an answer is its text."""
    base = protocol_for(smollm2)
    protocol = base.with_thinking_adapter()
    assert (base.thinking, protocol.thinking) == ("none", "adapter")
    said = [
        Message("user", "1+1?"),
        Message("assistant", "2", reasoning_content="1 + 1 = 2"),
        Message("user", "2+2?"),
    ]
    plain, thinks = protocol.render(said), protocol.render(said, thinking=True)
    assert plain == base.render(said) and plain.starts_in == "content"
    opening = smollm2.encode("<think>\n")
    assert thinks.starts_in == "reasoning" and thinks.ids == [*plain.ids, *opening]
    trained, learnt = base.render_training([*said, Message("assistant", "<think>\n2 + 2 = 4\n</think>\n4")])
    assert trained[: len(thinks.ids)] == thinks.ids and learnt[len(plain.ids)]
    assert reasoning_and_content(protocol, "reasoning", "2 + 2 = 4\n</think>\n4") == ("2 + 2 = 4", "4")
    assert reasoning_and_content(protocol, "content", "<think>\nx\n</think>\n4")[0] == ""
    with pytest.raises(ShoalError, match="adapter cannot think"):
        protocol_for(thinking_chatml).with_thinking_adapter()


@pytest.mark.parametrize("kind", ["ids", "text"])
def test_parser_begins_where_the_prompt_ends(kind: str, nano: Tokenizer, text_marks: ChatProtocol) -> None:
    """C21."""
    protocol = DeepSeekProtocol(nano, "r1") if kind == "ids" else text_marks
    assert reasoning_and_content(protocol, "reasoning", "I add.</think>\n\n42") == ("I add.", "42")
    assert reasoning_and_content(protocol, "reasoning", "<think>\nI add.\n</think>\n\n42") == ("I add.", "42")
    assert reasoning_and_content(protocol, "content", "<think>\nI add.\n</think>\n\n42") == ("I add.", "42")
    assert reasoning_and_content(protocol, "content", "\n<think>I add.</think>42") == ("I add.", "42")
    assert reasoning_and_content(protocol, "content", "42") == ("", "42")
    assert reasoning_and_content(protocol, "content", "  42\n\n") == ("", "  42\n\n")
    assert reasoning_and_content(protocol, "reasoning", "still thinking") == ("still thinking", "")
    assert reasoning_and_content(protocol, "reasoning", " </think>  x") == ("", "  x")


def test_marks_in_an_answer(nano: Tokenizer, text_marks: ChatProtocol, smollm2: Tokenizer) -> None:
    """An answer may talk about marks: only an opening at its very start is one, and spelt ones are text."""
    assert reasoning_and_content(text_marks, "content", "Use <think> and </think>.") == (
        "",
        "Use <think> and </think>.",
    )
    assert reasoning_and_content(text_marks, "content", "<thi") == ("", "<thi")
    assert reasoning_and_content(text_marks, "reasoning", "a </thi") == ("a </thi", "")
    spelt = nano.encode("Use <think> and </think>.")
    assert parse(protocol_for(nano), "content", spelt) == [
        ("content", None, None, "Use <think> and </think>.")
    ]
    assert parse(protocol_for(nano), "reasoning", spelt) == [
        ("reasoning", None, None, "Use <think> and </think>.")
    ]
    plain = protocol_for(smollm2)
    assert reasoning_and_content(plain, "content", "<think>x</think>y") == ("", "<think>x</think>y")


def test_control_tokens_never_show(nano: Tokenizer, smollm2: Tokenizer) -> None:
    """C23: whatever control tokens come, spelt out or not, none of their characters is in the parts."""
    for protocol in (protocol_for(nano), protocol_for(smollm2)):
        tokenizer = protocol.tokenizer
        ids = [i for special in sorted(tokenizer.special_ids) for i in (*tokenizer.encode("ab"), special)]
        for skip_special, starts_in in itertools.product((False, True), ("content", "reasoning")):
            for *_, text in parse(protocol, starts_in, ids, skip_special=skip_special):
                assert "<" not in text and "｜" not in text and "|" not in text


CALLS_V31 = (
    "Wait.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{\"a\": {\"b\": \"}\\\"\"}}<｜tool▁call▁end｜>"
    "<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"city\": \"東京\"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)  # fmt: skip
CALLS_V3 = (
    "Wait.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n"
    '{"a": {"b": "}\\""}}\n```<｜tool▁call▁end｜>\n'
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
    '{"city": "東京"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)
WHOLE = [
    ("content", None, None, "Wait."),
    ("tool_call", 0, "add", '{"a": {"b": "}\\""}}'),
    ("tool_call", 1, "weather", '{"city": "東京"}'),
]


@pytest.mark.parametrize(("style", "text"), [("v31", CALLS_V31), ("v3", CALLS_V3), ("r1", CALLS_V3)])
def test_tool_calls(nano: Tokenizer, style: Any, text: str) -> None:
    """C51: name first, then growing arguments; what was written comes back when it is rendered again."""
    protocol = DeepSeekProtocol(nano, style)
    ids = nano.encode(text, special=True)
    assert parse(protocol, "content", [*ids, 1]) == WHOLE
    thought = parse(protocol, "reasoning", [*nano.encode("hm "), *ids])
    if style != "v3":
        assert thought == [("reasoning", None, None, "hm Wait."), *WHOLE[1:]]
    calls = [
        {"function": {"name": name, "arguments": text}}
        for kind, _, name, text in WHOLE
        if kind == "tool_call"
    ]
    again = protocol.spell([USER, {"role": "assistant", "content": "Wait.", "tool_calls": calls}])
    assert text in again


@pytest.mark.parametrize(("style", "text"), [("v31", CALLS_V31), ("v3", CALLS_V3)])
def test_unfinished_tool_call(nano: Tokenizer, style: Any, text: str) -> None:
    protocol = DeepSeekProtocol(nano, style)
    cut = text.index("東京")
    parts = parse(protocol, "content", nano.encode(text[:cut], special=True))
    assert parts == [*WHOLE[:2], ("tool_call", 1, "weather", '{"city": "')]
    head = text.index("weather") + 3
    assert parse(protocol, "content", nano.encode(text[:head], special=True)) == WHOLE[:2]


HERMES = (
    'Wait.<tool_call>\n{"name": "add", "arguments": {"a": {"b": "}\\""}}}\n</tool_call>\n'
    '<tool_call>\n{"name": "weather", "arguments": {"city": "東京"}}\n</tool_call>'
)


def parse_with_tools(protocol: ChatProtocol, text: str) -> list[Any]:
    parser, stream = protocol.parser("content", tools=True), StreamDecoder(protocol.tokenizer)
    ids = protocol.tokenizer.encode(text, special=True)
    return together([p for i in ids for p in parser.push(i, stream.push(i))] + parser.finish())


def test_calls_in_one_json_object(smollm2: Tokenizer, thinking_chatml: Tokenizer) -> None:
    """C51, for models whose marks of a call are text."""
    for protocol in (ChatMLProtocol(smollm2), ChatMLProtocol(thinking_chatml, thinking="native")):
        assert parse_with_tools(protocol, HERMES) == WHOLE
        cut = HERMES.index("東京")
        assert parse_with_tools(protocol, HERMES[:cut]) == [
            *WHOLE[:2],
            ("tool_call", 1, "weather", '{"city": "'),
        ]
        assert parse_with_tools(protocol, HERMES[: HERMES.index("weather") + 3]) == WHOLE[:2]
        other = '<tool_call>{"arguments": "{}", "name": "f"}</tool_call>so'
        assert parse_with_tools(protocol, other) == [
            ("tool_call", 0, "f", "{}"),
            ("content", None, None, "so"),
        ]
        for text in ("<tool_call>no json</tool_call>", "a <tool_cal", "</tool_call>"):
            assert parse_with_tools(protocol, text) == [("content", None, None, text)]
        assert parse(protocol, "content", protocol.tokenizer.encode(HERMES)) == [
            ("content", None, None, HERMES)
        ]


# Any split of the stream gives the same.

PIECES = st.one_of(
    st.sampled_from(
        [
            "<think>",
            "</think>",
            "\n",
            " ",
            "\n```json\n",
            "\n```",
            "`",
            "function",
            "<",
            "</",
            "</thi",
            "<think",
        ]
    ),
    st.sampled_from(["{}", '{"a": "b"}', "東京", "a b", "。"]),
    st.text(max_size=5),
)
CONTROL = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
        "<｜User｜>",
        "<｜end▁of▁sentence｜>",
    ]
)


def marks_of(nano: Tokenizer, style: str) -> Marks:
    return DeepSeekProtocol(nano, style).marks  # type: ignore[arg-type]


def split_at(text: str, cuts: list[int]) -> list[str]:
    places = [0, *sorted({c % (len(text) + 1) for c in cuts}), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(places)]


@settings(max_examples=300, deadline=None)
@given(
    stream=st.lists(
        st.one_of(PIECES.map(lambda t: ("text", t)), CONTROL.map(lambda t: ("mark", t))), max_size=12
    ),
    cuts=st.lists(st.integers(0, 60), max_size=8),
    starts_in=st.sampled_from(["content", "reasoning"]),
    style=st.sampled_from(["v31", "v3", "r1"]),
    spelt=st.booleans(),
)
def test_any_split_gives_the_same_with_marks_as_tokens(
    nano: Tokenizer, stream: list[tuple[str, str]], cuts: list[int], starts_in: Any, style: str, spelt: bool
) -> None:
    spellings = {i: nano.token_of(i) or "" for i in nano.special_ids}
    ids = {spelling: i for i, spelling in spellings.items()}
    whole: list[tuple[int, str]] = []
    for kind, group in itertools.groupby(stream, key=lambda item: item[0]):
        texts = [text for _, text in group]
        whole += [(-1, "".join(texts))] if kind == "text" else [(ids[t], t) for t in texts]
    pieces: list[tuple[int, str]] = []
    for token_id, text in whole:
        pieces += (
            [(-1, p) for p in split_at(text, cuts)] if token_id < 0 else [(token_id, text if spelt else "")]
        )
    results = []
    for sequence in (whole, pieces):
        parser = ChatParser(marks_of(nano, style), starts_in, spellings)
        parts = [part for token_id, text in sequence for part in parser.push(token_id, text)]
        results.append(together(parts + parser.finish()))
    assert results[0] == results[1]


@settings(max_examples=400, deadline=None)
@given(
    text=st.lists(PIECES, max_size=12).map("".join),
    cuts=st.lists(st.integers(0, 80), max_size=12),
    starts_in=st.sampled_from(["content", "reasoning"]),
)
def test_any_split_gives_the_same_with_marks_as_text(text: str, cuts: list[int], starts_in: Any) -> None:
    marks = Marks(open_reasoning="<think>", close_reasoning="</think>")
    results = []
    for pieces in ([text], split_at(text, cuts), list(text)):
        parser = ChatParser(marks, starts_in)
        parts = [part for piece in pieces for part in parser.push(5, piece)]
        results.append(together(parts + parser.finish()))
    assert results[0] == results[1] == results[2]
    kinds = [kind for kind, *_ in results[0]]
    assert kinds in ([], ["reasoning"], ["content"], ["reasoning", "content"])


CALL_PIECES = st.sampled_from(
    [
        "<tool_call>",
        "</tool_call>",
        "<tool",
        '{"name": "f", "arguments": ',
        '{"a": "}"}',
        "{",
        "}",
        '"',
        "\\",
        "\n",
        "東",
    ]
)


@settings(max_examples=400, deadline=None)
@given(
    text=st.lists(CALL_PIECES, max_size=12).map("".join),
    cuts=st.lists(st.integers(0, 80), max_size=12),
    native=st.booleans(),
)
def test_any_split_gives_the_same_calls(text: str, cuts: list[int], native: bool) -> None:
    think = {"open_reasoning": "<think>", "close_reasoning": "</think>"} if native else {}
    marks = Marks(in_json=True, **HERMES_CALLS, **think)
    results = []
    for pieces in ([text], split_at(text, cuts), list(text)):
        parser = ChatParser(marks, "content")
        parts = [part for piece in pieces for part in parser.push(5, piece)]
        results.append(together(parts + parser.finish()))
    assert results[0] == results[1] == results[2]
