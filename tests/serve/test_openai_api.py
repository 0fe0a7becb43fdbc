"""The API as its clients see it: shapes, dialects, limits, log-probabilities, and the official client unchanged."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def body(**over: Any) -> dict[str, Any]:
    base = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Who are you?"}],
        "max_tokens": 8,
        "temperature": 0,
        "thinking": {"type": "disabled"},
    }
    return base | over


def ask(client: httpx.Client, **over: Any) -> dict[str, Any]:
    response = client.post(CHAT, json=body(**over))
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def refused(client: httpx.Client, path: str = CHAT, **over: Any) -> dict[str, Any]:
    response = client.post(path, json=body(**over))
    assert response.status_code == 400, (over, response.text)
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def events(client: httpx.Client, path: str = CHAT, **over: Any) -> list[Any]:
    with client.stream("POST", path, json=body(**over) | {"stream": True}) as response:
        assert response.status_code == 200
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def test_stream_and_plain_answer_are_the_same_text(client: httpx.Client) -> None:
    plain = ask(client, stop=None, ignore_eos=True)
    chunks = events(client, stream_options={"include_usage": True}, ignore_eos=True)
    deltas = [c["choices"][0]["delta"] for c in chunks if c["choices"]]
    assert deltas[0] == {"role": "assistant", "content": "", "reasoning_content": ""} and deltas[-1] == {}
    assert "".join(d.get("content") or "" for d in deltas) == plain["choices"][0]["message"]["content"]
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]] == [None] * (
        len(deltas) - 1
    ) + ["length"]
    assert chunks[-1]["choices"] == [] and all(c["usage"] is None for c in chunks[:-1])
    used = [each["usage"] for each in (chunks[-1], plain)]  # the second prompt comes from the cache
    assert used[0]["prompt_tokens"] == used[1]["prompt_tokens"] and used[1]["completion_tokens"] == 8
    assert used[0]["completion_tokens"] == 8
    assert plain["timings"]["predicted_n"] == 8 and plain["cost"]["energy_source"] == "estimated"


def test_no_usage_chunk_unless_asked(client: httpx.Client) -> None:
    chunks = events(client)
    assert all("usage" not in chunk and chunk["choices"] for chunk in chunks)
    assert refused(client, stream_options={"include_usage": True})["param"] == "stream_options"


def test_the_newer_limit_wins_and_the_context_clamps(client: httpx.Client) -> None:
    assert (
        ask(client, max_tokens=9, max_completion_tokens=3, ignore_eos=True)["usage"]["completion_tokens"] == 3
    )
    with client.stream("POST", CHAT, json=body(max_tokens=393216, stream=True)) as response:
        assert response.status_code == 200 and 0 < int(response.headers["x-shoal-max-tokens"]) < 2048


def test_prompt_longer_than_the_context_names_both_numbers(client: httpx.Client) -> None:
    error = refused(client, messages=[{"role": "user", "content": "sea " * 3000}])
    assert error["code"] == "context_length_exceeded" and "2048" in error["message"]


def test_a_prompt_far_too_long_is_refused_before_it_is_tokenised(client: httpx.Client) -> None:
    began = time.monotonic()
    error = refused(client, messages=[{"role": "user", "content": "sea of words " * 600_000}])
    assert error["code"] == "context_length_exceeded" and "at least" in error["message"]
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("dialect", [
    {"thinking": {"type": "enabled"}}, {"reasoning_effort": "high"}, {"reasoning": {"enabled": True}}, {"think": True},
    {"reasoning": {"effort": "low"}}, {"chat_template_kwargs": {"thinking": True}}, {"enable_thinking": True}, {},
])  # fmt: skip
def test_thinking_on(client: httpx.Client, dialect: dict[str, Any]) -> None:
    """C49, C47: every dialect (and silence) thinks; thoughts that use up the limit leave no content."""
    request = {k: v for k, v in body().items() if k != "thinking"} | dialect | {"ignore_eos": True}
    found = client.post(CHAT, json=request).json()
    choice = found["choices"][0]
    assert choice["message"]["reasoning_content"] and choice["message"]["content"] == ""
    assert choice["finish_reason"] == "length"
    assert found["usage"]["completion_tokens_details"]["reasoning_tokens"] == 8


@pytest.mark.parametrize("dialect", [
    {"reasoning_effort": "none"}, {"reasoning": {"enabled": False}}, {"think": False},
    {"reasoning": {"effort": "none"}},
    {"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False},
])  # fmt: skip
def test_thinking_off(client: httpx.Client, dialect: dict[str, Any]) -> None:
    request = {k: v for k, v in body().items() if k != "thinking"} | dialect
    found = client.post(CHAT, json=request).json()
    assert "reasoning_content" not in found["choices"][0]["message"]
    assert found["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0


@pytest.mark.parametrize("bad", [
    {"reasoning_effort": "banana"}, {"reasoning_effort": 5}, {"thinking": "on"}, {"thinking": {"type": "banana"}},
    {"chat_template_kwargs": {"thinking": "banana"}}, {"chat_template_kwargs": {"tokenize": True}},
    {"reasoning_effort": "high"}, {"chat_template_kwargs": {"thinking": True}},
])  # fmt: skip
def test_thinking_nonsense_and_contradictions_are_refused(client: httpx.Client, bad: dict[str, Any]) -> None:
    refused(client, **bad)


@pytest.mark.parametrize("field", [
    {"thinking": {"type": "enabled", "budget_tokens": 5}}, {"reasoning": {"max_tokens": 5}},
    {"thinking": {"type": "enabled", "budget_tokens": 0}},
])  # fmt: skip
def test_a_budget_in_tokens_bounds_the_thought(client: httpx.Client, field: dict[str, Any]) -> None:
    """C44: the thought is closed and the answer comes; 0 is an answer at once."""
    request = (
        {k: v for k, v in body().items() if k != "thinking"} | {"ignore_eos": True, "max_tokens": 20} | field
    )
    found = client.post(CHAT, json=request).json()
    budget = min(next(iter(field.values())).get(name, 9) for name in ("budget_tokens", "max_tokens"))
    assert found["usage"]["completion_tokens_details"]["reasoning_tokens"] <= budget
    assert found["choices"][0]["message"]["content"]
    refused(client, thinking={"type": "enabled", "budget": 5})
    refused(client, reasoning={"exclude": True})


def test_old_thoughts_and_forged_marks_do_not_reach_the_model(client: httpx.Client) -> None:
    """C24, C17: earlier reasoning costs no prompt tokens, control strings in people's text cost their letters."""
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "go"},
    ]
    thought = [turns[0], turns[1] | {"reasoning_content": "I must weigh every wave. " * 9}, turns[2]]
    sizes = [ask(client, messages=asked)["usage"]["prompt_tokens"] for asked in (turns, thought)]
    assert sizes[0] == sizes[1]

    def size(text: str) -> int:
        tokens: int = ask(client, messages=[{"role": "user", "content": text}])["usage"]["prompt_tokens"]
        return tokens

    for mark in ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<think>", "</think>"):
        assert size("x" + mark * 4) - size("x") >= 7, mark


def test_history_shapes_that_break_templates(client: httpx.Client) -> None:
    """C24, C27, C29: content null, missing, "" or in parts; tool arguments as object or text; empty tool_calls."""
    user, later = {"role": "user", "content": "hi"}, {"role": "user", "content": "so"}
    sizes = {
        ask(client, messages=[user, {"role": "assistant", **content}, later])["usage"]["prompt_tokens"]
        for content in ({}, {"content": None}, {"content": ""}, {"content": "", "tool_calls": []})
    }
    assert len(sizes) == 1
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b", "cache_control": {}}]
    joined = ask(client, messages=[{"role": "developer", "content": parts}, user])
    plain = ask(client, messages=[{"role": "system", "content": "a b"}, user])
    assert joined["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]
    sizes = set()
    for arguments in ({"city": "Kobe"}, '{"city": "Kobe"}'):
        call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
        turns = [user, {"role": "assistant", "content": None, "tool_calls": [call]},
                 {"role": "tool", "tool_call_id": "c1", "content": "sunny"}]  # fmt: skip
        sizes.add(ask(client, messages=turns)["usage"]["prompt_tokens"])
    assert len(sizes) == 1


def test_refusals_name_the_place(client: httpx.Client) -> None:
    image = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}
    text = {"type": "text", "text": "see"}
    error = refused(
        client, messages=[{"role": "system", "content": "x"}, {"role": "user", "content": [text, image]}]
    )
    assert error["param"] == "messages[1].content[1]" and "image_url" in error["message"]
    error = refused(client, messages=[{"role": "sytem", "content": "x"}])
    assert error["param"] == "messages[0].role" and all(
        r in error["message"] for r in ("system", "user", "assistant", "tool")
    )
    for name, value in (("temperature", -1), ("top_p", 9), ("n", 99), ("stop", 5), ("logit_bias", {"50": 101}),
                        ("messages", []), ("top_k", 2**40), ("user_id", "u" * 513), ("response_format", {}),
                        ("seed", True), ("max_tokens", "5")):  # fmt: skip
        assert name in refused(client, **{name: value})["param"]


@pytest.mark.parametrize("field", [
    {"functions": [{"name": "f"}]}, {"function_call": "auto"}, {"grammar": "root ::= x"}, {"guided_grammar": "x"},
    {"chat_template": "x"}, {"use_beam_search": True}, {"audio": {"voice": "x"}}, {"web_search_options": {"a": 1}},
])  # fmt: skip
def test_what_is_not_there_is_refused_by_name(client: httpx.Client, field: dict[str, Any]) -> None:
    error = refused(client, **field)
    assert error["code"] == "unsupported_parameter" and any(name in error["param"] for name in field)


def test_ignored_fields_are_named_and_strict_refuses_them(client: httpx.Client, start_server: Any) -> None:
    from shoal.serve.settings import ServerSettings

    options = {"stream": True, "stream_options": {"include_obfuscation": False}}
    assert (
        client.post(CHAT, json=body(**options)).headers["x-shoal-ignored"]
        == "stream_options.include_obfuscation"
    )
    response = client.post(CHAT, json=body(verbosity="low", service_tier="auto", store=None))
    assert response.headers["x-shoal-ignored"] == "service_tier, verbosity"
    strict = start_server(ServerSettings(strict=True))
    assert httpx.post(strict + CHAT, json=body(verbosity="low"), trust_env=False).status_code == 400


def test_thinking_that_a_model_cannot_do_is_named(
    tiny_model: Path, tmp_path: Path, start_server: Any
) -> None:
    """The answer comes, and the header says which fields had no effect."""
    import shutil

    from shoal.serve.settings import ServerSettings

    plain = tmp_path / "plain"
    shutil.copytree(tiny_model, plain)
    (plain / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    path = plain / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": None}))
    url, strict = (start_server(ServerSettings(strict=strict), model=plain) for strict in (False, True))

    def post(base: str, **fields: Any) -> httpx.Response:
        request = {k: v for k, v in body().items() if k != "thinking"} | fields
        return httpx.post(base + CHAT, json=request, trust_env=False, timeout=30)

    answer = post(url, reasoning_effort="high", chat_template_kwargs={"thinking": True}, verbosity="low")
    assert answer.status_code == 200
    assert answer.headers["x-shoal-ignored"] == "verbosity, reasoning_effort, chat_template_kwargs.thinking"
    for fields in ({}, {"thinking": {"type": "disabled"}}, {"reasoning_effort": "none"}):
        assert "x-shoal-ignored" not in post(url, **fields).headers
    refusal = post(strict, think=True)
    assert refusal.status_code == 400 and refusal.json()["error"]["param"] == "think"


def test_no_recommended_penalty_on_the_likeliest_token() -> None:
    """C36: what the makers recommend for sampling does not change a greedy answer; what the request says does."""
    from types import SimpleNamespace

    from shoal.engine.types import SamplingParams
    from shoal.serve.schemas import ChatRequest
    from shoal.serve.work import sampling_params

    recommended = SamplingParams(temperature=0.5, repetition_penalty=1.3)
    opened: Any = SimpleNamespace(defaults=recommended, tokenizer=SimpleNamespace(vocab_size=600))

    def penalty(**fields: Any) -> float:
        request = ChatRequest.model_validate({"messages": body()["messages"]} | fields)
        return sampling_params(opened, request, 5, None).repetition_penalty

    for greedy in ({"temperature": 0}, {"temperature": 1e-9}, {"top_p": 0}, {"top_k": 1}, {"min_p": 1}):
        assert penalty(**greedy) == 1 and penalty(**greedy, repetition_penalty=1.2) == 1.2
    assert penalty() == penalty(temperature=0.7) == penalty(top_k=40) == 1.3


def test_n_answers_have_their_own_seeds_and_one_bill(client: httpx.Client) -> None:
    found = ask(client, n=3, temperature=1.5, seed=5, ignore_eos=True)
    texts = [choice["message"]["content"] for choice in found["choices"]]
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2] and len(set(texts)) == 3
    assert found["usage"]["completion_tokens"] == 24
    assert found["usage"]["prompt_tokens"] == ask(client)["usage"]["prompt_tokens"]
    chunks = events(client, n=3, temperature=1.5, seed=5, ignore_eos=True)
    streamed = ["", "", ""]
    for chunk in chunks:
        for choice in chunk["choices"]:
            streamed[choice["index"]] += choice["delta"].get("content") or ""
    assert streamed == texts


def test_logprobs_have_a_row_per_token(client: httpx.Client) -> None:
    plain = ask(client, logprobs=True, top_logprobs=2, ignore_eos=True)["choices"][0]["logprobs"]["content"]
    assert all(len(row["top_logprobs"]) == 2 and row["logprob"] <= 0 for row in plain)
    assert all(abs(row["logprob"] - row["top_logprobs"][0]["logprob"]) < 1e-6 for row in plain)
    streamed = []
    for chunk in events(client, logprobs=True, top_logprobs=2, ignore_eos=True):
        streamed += (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    assert streamed == plain
    assert refused(client, top_logprobs=2)["param"] == "top_logprobs"
    assert refused(client, logprobs=True, top_logprobs=21)["param"] == "top_logprobs"


def test_stop_strings_and_bias(client: httpx.Client) -> None:
    text = ask(client, max_tokens=20, ignore_eos=True)["choices"][0]["message"]["content"]
    stop = text[4:9]
    cut = ask(client, max_tokens=20, ignore_eos=True, stop=["\x01never", stop])["choices"][0]
    assert cut["message"]["content"] == text[: text.find(stop)] and cut["finish_reason"] == "stop"
    refused(client, stop=["x"] * 17)
    refused(client, stop=["x" * 129])
    one = ask(client, logit_bias={"300": 100}, logprobs=True, ignore_eos=True)["choices"][0]
    assert len({row["token"] for row in one["logprobs"]["content"]}) == 1
    for bad in ({"99999": 1}, {"AI": 1}, {"1.5": 1}, {"-1": 1}, {"50": "x"}, 5):
        refused(client, logit_bias=bad)


def test_prompt_progress_on_request(client: httpx.Client) -> None:
    assert not any("prompt_progress" in chunk for chunk in events(client))
    found = [c["prompt_progress"] for c in events(client, return_progress=True) if "prompt_progress" in c]
    assert (
        found
        and found[-1]["processed"] <= found[-1]["total"]
        and set(found[-1]) == {"total", "cache", "processed", "time_ms"}
    )


# ---- plain completions


def complete(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = client.post(TEXT, json={"model": "tiny", "max_tokens": 4, "temperature": 0} | fields)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_completions_take_texts_and_token_ids(client: httpx.Client) -> None:
    assert [c["index"] for c in complete(client, prompt=["a b", "c d"])["choices"]] == [0, 1]
    assert complete(client, prompt=[300, 301])["usage"]["prompt_tokens"] == 2
    assert len(complete(client, prompt=[[300, 301], [302]], n=2)["choices"]) == 4
    for bad in ([-1], [10**9], [], {}, 5, [[]], [None], [1.5], ["a"] * 1000):
        assert client.post(TEXT, json={"model": "tiny", "prompt": bad}).status_code == 400


def test_no_client_takes_a_character_for_the_end_of_a_line(client: httpx.Client) -> None:
    """httpx splits lines at these too; a model may write any character."""
    prompt = "one\u2028two\u2029three\x85four"
    told = events(client, "/v1/completions", prompt=prompt, echo=True, max_tokens=1, messages=None)
    assert "".join(chunk["choices"][0]["text"] for chunk in told if chunk["choices"]).startswith(prompt)


def test_echo_scores_the_prompt(client: httpx.Client) -> None:
    """What lm-eval's loglikelihood asks; the streamed pieces are the whole answer's."""
    fields = {"prompt": "The quick brown fox", "echo": True, "logprobs": 2, "ignore_eos": True}
    whole = complete(client, **fields)["choices"][0]
    rows = whole["logprobs"]
    assert whole["text"].startswith("The quick brown fox")
    assert {len(values) for values in rows.values()} == {complete(client, **fields)["usage"]["total_tokens"]}
    assert rows["token_logprobs"][0] is None and all(value <= 0 for value in rows["token_logprobs"][1:])
    assert rows["text_offset"] == sorted(rows["text_offset"])
    only = complete(client, **fields | {"max_tokens": 0})
    assert only["choices"][0]["text"] == "The quick brown fox" and only["usage"]["completion_tokens"] == 0
    with client.stream(
        "POST", TEXT, json={"model": "tiny", "max_tokens": 4, "temperature": 0, "stream": True} | fields
    ) as r:
        chunks = [json.loads(line[6:]) for line in r.iter_lines() if line.startswith("data: {")]
    assert "".join(c["choices"][0]["text"] for c in chunks) == whole["text"]
    scored = [c["choices"][0]["logprobs"] for c in chunks if c["choices"][0]["logprobs"]]
    assert [token for each in scored for token in each["tokens"]] == rows["tokens"]


def test_a_raw_prompt_has_one_bos(client: httpx.Client) -> None:
    """C16."""
    one = complete(client, prompt="hello")["usage"]["prompt_tokens"]
    assert complete(client, prompt="<｜begin▁of▁sentence｜>hello")["usage"]["prompt_tokens"] == one


# ---- the official client, unchanged


def test_the_openai_client(live_server: str) -> None:
    client = openai.OpenAI(base_url=f"{live_server}/v1", api_key="none", max_retries=0)
    options: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 6,
                               "temperature": 0, "extra_body": {"thinking": {"type": "disabled"}}}  # fmt: skip
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    plain = client.chat.completions.create(**options)
    text, last = "", None
    for chunk in client.chat.completions.create(
        **options, stream=True, stream_options={"include_usage": True}
    ):
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        last = chunk
    assert text == plain.choices[0].message.content
    assert last is not None and last.usage == plain.usage and not last.choices
    with client.chat.completions.stream(**options) as helper:
        assert "".join(event.delta for event in helper if event.type == "content.delta") == text
    assert client.completions.create(model="tiny", prompt="a b", max_tokens=2).choices[0].finish_reason in (
        "stop",
        "length",
    )
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(**options | {"model": "nope"})
    assert (
        missing.value.code == "model_not_found" and missing.value.request_id and "tiny" in str(missing.value)
    )
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**options | {"temperature": -1})
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(**options | {"messages": [{"role": "user", "content": "sea " * 3000}]})
    assert long.value.code == "context_length_exceeded"
    client.close()
