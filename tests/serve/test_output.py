"""JSON, schemas, regex, tools, begun answers and gaps: what an answer must look like, through the API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pydantic
import pytest

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Kobe", "大阪"]}, "big": {"type": "boolean"}},
    "required": ["city", "big"],
    "additionalProperties": False,
}
LAMP = {"type": "function", "function": {"name": "set_lamp", "description": "x", "parameters": SCHEMA}}
BELL = {"type": "function", "function": {"name": "ring_bell"}}
PLAIN: dict[str, Any] = {"thinking": {"type": "disabled"}}


def body(**over: Any) -> dict[str, Any]:
    base = {
        "messages": [{"role": "user", "content": "Who are you?"}],
        "max_tokens": 200,
        "temperature": 1,
        "seed": 3,
    }
    return base | PLAIN | over


def ask(client: httpx.Client, **over: Any) -> dict[str, Any]:
    response = client.post(CHAT, json=body(**over))
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()["choices"][0]
    return found


def refused(client: httpx.Client, path: str = CHAT, **over: Any) -> dict[str, Any]:
    response = client.post(path, json=body(**over) if path == CHAT else over)
    assert response.status_code == 400, (over, response.text)
    error: dict[str, Any] = response.json()["error"]
    return error


def streamed(client: httpx.Client, **over: Any) -> list[dict[str, Any]]:
    with client.stream("POST", CHAT, json=body(**over) | {"stream": True}) as response:
        assert response.status_code == 200
        lines = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line)["choices"][0] for line in lines[:-1]]


def shape(schema: Any = SCHEMA, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "place", "schema": schema} | more}


def test_a_schema_is_obeyed_streamed_and_plain(client: httpx.Client) -> None:
    for extra in ({}, {"strict": True}):
        choice = ask(client, response_format=shape(**extra))
        assert choice["finish_reason"] == "stop" and set(json.loads(choice["message"]["content"])) == {
            "city",
            "big",
        }
    chunks = streamed(client, response_format=shape())
    assert "".join(c["delta"].get("content") or "" for c in chunks) == choice["message"]["content"]
    cut = ask(client, response_format=shape(), max_tokens=3)
    assert cut["finish_reason"] == "length" and cut["message"]["content"].startswith("{")


def test_each_of_n_answers_obeys_and_starts_anew(client: httpx.Client) -> None:
    response = client.post(CHAT, json=body(response_format=shape(), n=4))
    for choice in response.json()["choices"]:
        assert set(json.loads(choice["message"]["content"])) == {"city", "big"}


def test_an_object_is_an_object(client: httpx.Client) -> None:
    """json_object: also in a thinking model, whose thoughts stay free; the word json need not be in the prompt."""
    thinking = {"thinking": {"type": "enabled"}, "reasoning_effort": "low", "max_tokens": 1500}
    choice = ask(client, response_format=shape(), **thinking)
    assert choice["message"]["reasoning_content"] and set(json.loads(choice["message"]["content"])) == {
        "city",
        "big",
    }
    loose = ask(client, response_format={"type": "json_object"}, max_tokens=60)
    assert loose["message"]["content"].startswith("{")
    if loose["finish_reason"] == "stop":
        assert isinstance(json.loads(loose["message"]["content"]), dict)


def test_guided_fields_of_vllm(client: httpx.Client) -> None:
    for fields, allowed in (
        ({"guided_choice": ["はい", "no"]}, {"はい", "no"}), ({"structured_outputs": {"choice": ["a b"]}}, {"a b"}),
        ({"guided_regex": "[ab]-日"}, {"a-日", "b-日"}), ({"structured_outputs": {"regex": "x{3}"}}, {"xxx"}),
        ({"guided_json": {"const": 5}}, {"5"}), ({"guided_json": '{"const": "ü"}'}, {'"ü"'}),
    ):  # fmt: skip
        assert ask(client, **fields)["message"]["content"] in allowed, fields
        plain = client.post(TEXT, json={"prompt": "a", "max_tokens": 20, "temperature": 1} | fields).json()
        assert plain["choices"][0]["text"] in allowed


@pytest.mark.parametrize("fields", [
    {"response_format": {}}, {"response_format": {"type": "xml"}}, {"response_format": {"type": "json_schema"}},
    {"response_format": shape(5)}, {"response_format": shape({"type": "banana"})},
    {"response_format": shape({"type": "string", "pattern": "["})}, {"response_format": shape({"$ref": "#/no"})},
    {"response_format": shape({"not": {}}, strict=True)}, {"response_format": shape(strict="x")},
    {"response_format": shape(), "guided_regex": "a"}, {"response_format": shape(), "ignore_eos": True},
    {"response_format": shape(), "min_tokens": 3}, {"guided_choice": []}, {"guided_regex": 5}, {"guided_json": "{"},
    {"structured_outputs": {"grammar": "x"}}, {"structured_outputs": 5}, {"guided_regex": "a" * 100_000},
])  # fmt: skip
def test_shapes_that_cannot_be_obeyed_are_refused(client: httpx.Client, fields: dict[str, Any]) -> None:
    assert refused(client, **fields)["param"].partition(".")[0].partition("[")[0] in fields


# ---- tools


def arguments(call: dict[str, Any]) -> Any:
    assert call["id"] and call["type"] == "function"
    return json.loads(call["function"]["arguments"])


@pytest.mark.parametrize("name", ["client", "chatml_client"])
def test_required_and_named_calls(name: str, request: pytest.FixtureRequest) -> None:
    """DeepSeek's form of calls, and the form in words of a model that has no marks for them."""
    client: httpx.Client = request.getfixturevalue(name)
    choice = ask(client, tools=[LAMP], tool_choice="required", parallel_tool_calls=False)
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    assert call["function"]["name"] == "set_lamp" and set(arguments(call)) == {"city", "big"}
    named = {"type": "function", "function": {"name": "ring_bell"}}
    choice = ask(client, tools=[LAMP, BELL], tool_choice=named)
    assert [c["function"]["name"] for c in choice["message"]["tool_calls"]] == ["ring_bell"]
    assert arguments(choice["message"]["tool_calls"][0]) == {}
    assert "tool_calls" not in ask(client, tools=[LAMP], tool_choice="none", max_tokens=5)["message"]


@pytest.mark.parametrize("name", ["client", "chatml_client"])
def test_streamed_calls_join_to_the_plain_ones(name: str, request: pytest.FixtureRequest) -> None:
    """C51, PRODUCT 2.3.4: index on each delta; id, type and name once; arguments in pieces."""
    client: httpx.Client = request.getfixturevalue(name)
    fields: dict[str, Any] = {
        "tools": [LAMP],
        "tool_choice": "required",
        "parallel_tool_calls": True,
        "max_tokens": 900,
    }
    if name == "client":  # make it call more than once
        more = client.post("/tokenize", json={"content": "<｜tool▁call▁begin｜>"}).json()["tokens"]
        fields["logit_bias"] = {str(more[0]): 100}
    plain = ask(client, **fields)["message"]["tool_calls"]
    assert name != "client" or len(plain) == 16  # the most that one answer may hold
    chunks = streamed(client, **fields)
    calls: dict[int, dict[str, Any]] = {}
    for delta in (delta for chunk in chunks for delta in chunk["delta"].get("tool_calls", ())):
        call = calls.setdefault(delta["index"], {"id": [], "name": [], "arguments": ""})
        call["id"] += [delta["id"]] if "id" in delta else []
        call["name"] += [delta["function"]["name"]] if "name" in delta["function"] else []
        call["arguments"] += delta["function"]["arguments"]
    assert sorted(calls) == list(range(len(plain)))
    for call, other in zip(calls.values(), plain, strict=True):
        assert len(call["id"]) == 1 and call["name"] == [other["function"]["name"]]
        assert call["arguments"] == other["function"]["arguments"]
    assert all("content" in c["delta"] for c in chunks if c["delta"].get("tool_calls"))
    assert chunks[-1]["finish_reason"] == "tool_calls"


def test_auto_is_honoured(client: httpx.Client) -> None:
    """A model that writes the mark of calls is held to what was offered; the mark is forced here by a bias."""
    ids = client.post("/tokenize", json={"content": "<｜tool▁calls▁begin｜>", "parse_special": True}).json()[
        "tokens"
    ]
    assert len(ids) == 1
    fields = {"tools": [LAMP], "max_tokens": 900, "logit_bias": {str(ids[0]): 100}}
    choice = ask(client, **fields)
    assert choice["finish_reason"] == "tool_calls"
    assert all(set(arguments(call)) == {"city", "big"} for call in choice["message"]["tool_calls"])
    assert "tool_calls" not in ask(client, **fields | {"tools": None})["message"]  # nothing was offered
    assert (
        "tool_calls"
        not in ask(client, **fields | {"logit_bias": {str(ids[0]): -100}, "max_tokens": 9})["message"]
    )


def test_tools_cost_prompt_tokens_and_results_go_back(client: httpx.Client) -> None:
    def size(**fields: Any) -> int:
        tokens: int = client.post(CHAT, json=body(max_tokens=1, **fields)).json()["usage"]["prompt_tokens"]
        return tokens

    assert size(tools=[LAMP]) > size() + 50 and size(tools=[LAMP], tool_choice="none") == size() == size(
        tools=[]
    )
    call = {"id": "c1", "type": "function", "function": {"name": "ring_bell", "arguments": "{}"}}
    turns = [{"role": "user", "content": "ring"}, {"role": "assistant", "content": None, "tool_calls": [call]},
             {"role": "tool", "tool_call_id": "c1", "content": "done"}]  # fmt: skip
    assert ask(client, messages=turns, tools=[BELL], max_tokens=4)["message"]["content"] is not None


@pytest.mark.parametrize("fields", [
    {"tools": 5}, {"tools": [5]}, {"tools": [{"type": "custom"}]}, {"tools": [LAMP, LAMP]},
    {"tools": [{"type": "function", "function": {"name": "a b"}}]}, {"tool_choice": "required"},
    {"tools": [LAMP], "tool_choice": {"type": "function", "function": {"name": "no"}}},
    {"tools": [LAMP], "tool_choice": "always"}, {"tools": [LAMP], "tool_choice": "required", "ignore_eos": True},
    {"tools": [LAMP], "guided_regex": "a"}, {"tools": [LAMP] * 129},
    *({"tools": [{"type": "function", "function": {"name": "f", "parameters": p}}]}
      for p in (5, "x", [], {"type": "banana"}, {"properties": {"a": {"type": "string", "pattern": "["}}})),
])  # fmt: skip
def test_tools_that_cannot_work_are_refused(client: httpx.Client, fields: dict[str, Any]) -> None:
    assert refused(client, **fields)["param"].partition("[")[0] in (*fields, "ignore_eos")


def test_a_model_whose_calls_nobody_knows(tiny_model: Path, tmp_path: Path, start_server: Any) -> None:
    url = start_server(
        model=with_template(tiny_model, tmp_path, "{% for m in messages %}{{ m.content }}{% endfor %}")
    )
    response = httpx.post(url + CHAT, json=body(tools=[LAMP]), trust_env=False, timeout=60)
    assert response.status_code == 400 and response.json()["error"]["param"] == "tools"


# ---- begun answers and gaps


@pytest.mark.parametrize("path", [CHAT, "/beta/chat/completions"])
def test_a_begun_answer_is_continued(client: httpx.Client, path: str) -> None:
    user, begun = (
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "The sea is blue because"},
    )

    def post(*messages: Any, **over: Any) -> dict[str, Any]:
        response = client.post(path, json=body(messages=messages, max_tokens=5, temperature=0) | over)
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    plain, continued = post(user), post(user, begun | {"prefix": True})
    ids = client.post("/tokenize", json={"content": begun["content"], "add_special": False}).json()["tokens"]
    assert continued["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"] + len(ids)
    assert not continued["choices"][0]["message"]["content"].startswith("The sea")
    assert post(user, begun)["usage"]["prompt_tokens"] > continued["usage"]["prompt_tokens"]
    thought = {"role": "assistant", "prefix": True, "content": "", "reasoning_content": "The sea"}
    on = {"thinking": {"type": "enabled"}, "ignore_eos": True}
    assert "reasoning_content" in post(user, thought, **on)["choices"][0]["message"]
    for wrong in ([begun | {"prefix": True}, user], [user | {"prefix": True}], [user, begun | {"prefix": 1}]):
        assert "prefix" in refused(client, messages=wrong)["param"]
    assert refused(client, messages=[user, begun | {"prefix": True}], response_format=shape())


def test_filling_the_middle(client: httpx.Client, chatml_client: httpx.Client) -> None:
    fields = {
        "prompt": "def add(a, b):\n    return ",
        "suffix": "\n\nprint(add(1, 2))",
        "max_tokens": 4,
        "temperature": 0,
    }
    sizes = {}
    for path in (TEXT, "/beta/completions"):
        whole = client.post(path, json=fields).json()
        sizes[path] = whole["usage"]["prompt_tokens"]
    without = client.post(TEXT, json={k: v for k, v in fields.items() if k != "suffix"}).json()["usage"][
        "prompt_tokens"
    ]
    suffix = client.post("/tokenize", json={"content": fields["suffix"], "add_special": False}).json()[
        "tokens"
    ]
    assert set(sizes.values()) == {without + len(suffix) + 3}
    assert refused(client, TEXT, **fields | {"echo": True})["param"] == "suffix"
    assert refused(client, TEXT, **fields | {"prompt": [1, 2]})["param"] == "suffix"
    assert refused(chatml_client, TEXT, **fields)["param"] == "suffix"


# ---- the official client's own helpers


class Place(pydantic.BaseModel):
    city: Literal["Kobe", "大阪"]
    big: bool


def test_the_openai_client_parses(live_server: str) -> None:
    client = openai.OpenAI(base_url=f"{live_server}/v1", api_key="none", max_retries=0)
    options: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 300,
                               "seed": 2, "extra_body": PLAIN}  # fmt: skip
    schema = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
    found = client.chat.completions.create(**options, response_format=schema)
    assert Place.model_validate_json(found.choices[0].message.content or "").city in ("Kobe", "大阪")
    tool = openai.pydantic_function_tool(Place, name="place")
    called = client.chat.completions.parse(
        **options, tools=[tool], tool_choice="required", parallel_tool_calls=False
    )
    (call,) = called.choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, Place)
    with client.chat.completions.stream(**options, tools=[{**LAMP}], tool_choice="required") as stream:
        final = stream.get_final_completion().choices[0]
    assert final.message.tool_calls and final.message.tool_calls[0].function.name == "set_lamp"
    client.close()


def with_template(model: Path, folder: Path, template: str) -> Path:
    """The tiny model with another chat template."""
    import shutil

    plain = folder / "plain"
    shutil.copytree(model, plain)
    (plain / "chat_template.jinja").write_text(template)
    path = plain / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": None}))
    return plain
