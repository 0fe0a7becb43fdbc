"""Upstreams: a real Shoal server behind another, and a server that misbehaves; the file that names them."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.apart import run_apart
from tests.serve.conftest import running, wait_for
from tests.serve.faulty import Faulty, faulty_server

from shoal.cli.serve import open_spec
from shoal.errors import UsageError
from shoal.serve.app import create_app
from shoal.serve.models import ModelTable
from shoal.serve.settings import ServerSettings
from shoal.serve.store import Store
from shoal.serve.upstream import RemoteModel, Route, Upstream, Upstreams
from shoal.serve.upstream_chat import Asked, body_of
from shoal.serve.upstream_file import KINDS, Price, ServedModel, UpstreamConfig, read_upstreams

KEY = "secret-key-0123456789"
PRICE = Price(0.15, 0.60, "2026-11-15", 0.003)
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Who are you?"}]}


@contextlib.contextmanager
def front(folder: Path, *configs: UpstreamConfig) -> Iterator[httpx.Client]:
    """A server without a model of its own, and these upstreams; it has heard of all their models."""
    table = ModelTable([], open_spec, upstreams=Upstreams(configs))
    app = create_app(ServerSettings(keep_alive_seconds=120.0), table, Store(folder / "chats.sqlite"))
    headers = {"sec-fetch-site": "same-origin"}
    with (
        running(app) as url,
        httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client,
    ):
        wait_for(lambda: all(m["status"]["value"] != "unloaded" for m in listed(client)) and listed(client))
        yield client


def listed(client: httpx.Client) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = client.get("/v1/models").json()["data"]
    return data


def chunks(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: {")]


@pytest.fixture(scope="module")
def faulty() -> Iterator[Faulty]:
    with faulty_server() as server:
        yield server


@pytest.fixture(scope="module")
def shoal_front(live_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    defaults = ServedModel("", "", price=PRICE)
    with front(tmp_path_factory.mktemp("front"),
               UpstreamConfig("second", f"{live_server}/v1", "shoal", defaults=defaults)) as client:  # fmt: skip
        yield client


@pytest.fixture(scope="module")
def faulty_front(faulty: Faulty, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    url = f"{faulty.url}/v1"
    bad = UpstreamConfig("bad", url, "openai-compatible", KEY, "BAD_KEY", timeout_seconds=120.0)
    soon = (ServedModel("silent", "silent-soon"),)
    bad_2 = UpstreamConfig("bad-2", url, "openai-compatible", KEY, "BAD_KEY", soon, timeout_seconds=1.0)
    with front(tmp_path_factory.mktemp("front"), bad, bad_2) as client:
        yield client


# ---- a real server behind


def test_an_answer_is_the_upstreams_own(shoal_front: httpx.Client, live_server: str) -> None:
    body = ASK | {"model": "tiny", "temperature": 0, "max_tokens": 24, "reasoning_effort": "low"}
    direct = httpx.post(f"{live_server}/v1/chat/completions", json=body, trust_env=False, timeout=60).json()
    plain = shoal_front.post("/v1/chat/completions", json=body).json()
    assert plain["choices"] == direct["choices"] and plain["choices"][0]["message"]["reasoning_content"]
    names = ("prompt_tokens", "completion_tokens", "total_tokens", "completion_tokens_details")
    assert {n: plain["usage"][n] for n in names} == {n: direct["usage"][n] for n in names}
    streamed = shoal_front.post("/v1/chat/completions", json=body | {"stream": True}).text
    pieces = [c["choices"][0] for c in chunks(streamed)]
    thought = "".join(p["delta"].get("reasoning_content") or "" for p in pieces)
    assert thought == direct["choices"][0]["message"]["reasoning_content"]
    assert pieces[-1]["finish_reason"] == direct["choices"][0]["finish_reason"]
    assert len(pieces) > 2 and streamed.endswith("data: [DONE]\n\n")
    # The receipt: the file's prices on the upstream's counts, and nothing made up.
    usage, cost = plain["usage"], plain["cost"]
    cached = usage["prompt_cache_hit_tokens"]
    usd = (
        (usage["prompt_tokens"] - cached) * 0.15 + cached * 0.003 + usage["completion_tokens"] * 0.60
    ) / 1e6
    assert cost["usd"] == pytest.approx(usd) and cost["price_date"] == "2026-11-15"
    assert (cost["joules"], cost["energy_source"], cost["flops"]) == (None, "unknown", None)
    (model,) = listed(shoal_front)
    assert model["max_model_len"] == 2048 and model["meta"]["thinking"] == "native", "told by the upstream"
    assert model["meta"]["price"]["output"] == 0.60 and model["status"]["value"] == "loaded"


def test_all_protocols_and_several_answers(shoal_front: httpx.Client) -> None:
    body = ASK | {"model": "tiny", "max_tokens": 6, "temperature": 0, "reasoning_effort": "none"}
    text = shoal_front.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    message = shoal_front.post(
        "/v1/messages", json=ASK | {"model": "tiny", "max_tokens": 6, "temperature": 0}
    )
    assert (
        message.json()["content"] == [{"type": "text", "text": text}]
        and message.json()["usage"]["input_tokens"] > 0
    )
    response = shoal_front.post("/v1/responses", json={"model": "tiny", "input": "Who are you?", "temperature": 0,
                                "max_output_tokens": 6, "reasoning": {"effort": "none"}}).json()  # fmt: skip
    assert response["output"][0]["content"][0]["text"] == text
    two = shoal_front.post("/v1/chat/completions", json=body | {"n": 2, "seed": 1, "temperature": 2.0}).json()
    assert len({choice["message"]["content"] for choice in two["choices"]}) == 2, "each has a seed of its own"
    begun = [*ASK["messages"], {"role": "assistant", "content": text[:3], "prefix": True}]
    more = shoal_front.post("/v1/chat/completions", json=body | {"messages": begun}).json()
    assert more["choices"][0]["message"]["content"] == text[3:] or more["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {"prompt": "a"}, "model"),
        ("/v1/embeddings", {"input": "a"}, "model"),
        ("/v1/completions", {"prompt": "a"}, "model"),
        ("/v1/messages/count_tokens", ASK, "upstream"),
        ("/v1/chat/completions", ASK | {"logprobs": True}, "logprobs"),
    ],
)
def test_what_an_upstream_cannot_do_is_refused_by_name(
    shoal_front: httpx.Client, path: str, body: dict[str, Any], param: str
) -> None:
    reply = shoal_front.post(path, json=body | {"model": "tiny"})
    error = reply.json()["error"]
    assert reply.status_code == 400, reply.text
    assert param in str(error.get("param") or error["message"]) and "second" in error["message"]


def page_answer(client: httpx.Client, chat: str, **body: Any) -> tuple[dict[str, Any], str]:
    """(the answer as it is stored, the events that led to it)"""
    asked = client.post(f"/api/chats/{chat}/messages", json={"content": "Who are you?"} | body)
    assert asked.status_code == 201, asked.text
    events = client.get(f"/api/chats/{chat}/events").text
    messages = client.get(f"/api/chats/{chat}").json()["messages"]
    return next(m for m in messages if m["id"] == asked.json()["assistant"]["id"]), events


def test_the_page_over_an_upstream(shoal_front: httpx.Client) -> None:
    (model,) = shoal_front.get("/api/state").json()["models"]
    assert model["upstream"] == "second" and model["price"]["date"] == "2026-11-15" and model["loaded"]
    assert model["abilities"] == {"tokens": False, "answer_now": False, "continue": True}
    chat = shoal_front.post("/api/chats", json={"model": "tiny"}).json()["id"]
    answer, events = page_answer(
        shoal_front, chat, thinking="low", params={"max_tokens": 8, "temperature": 0}
    )
    assert answer["status"] == "length" and answer["reasoning"] and '"type":"reasoning"' in events
    assert answer["usage"]["completion_tokens"] == 8 == answer["reasoning_tokens"]
    assert (
        answer["cost"]["usd"] > 0
        and answer["cost"]["joules"] is None
        and answer["cost"]["device"] == "second"
    )
    assert "prompt_seconds" not in answer["timings"] and answer["timings"]["first_token_seconds"] > 0
    place = f"/api/chats/{chat}/messages/{answer['id']}"
    assert shoal_front.post(f"{place}/tokens", json={}).status_code == 400
    assert "upstream" in shoal_front.post(f"{place}/answer-now", json={}).json()["error"]["message"]
    assert shoal_front.post(f"{place}/continue", json={}).status_code == 202
    shoal_front.get(f"/api/chats/{chat}/events")
    (longer,) = [
        m for m in shoal_front.get(f"/api/chats/{chat}").json()["messages"] if m["id"] == answer["id"]
    ]
    assert longer["reasoning"].startswith(answer["reasoning"]) and longer["reasoning"] != answer["reasoning"]
    assert longer["usage"]["completion_tokens"] == 16 and longer["cost"]["usd"] > answer["cost"]["usd"]


# ---- one that misbehaves


@pytest.mark.parametrize(
    ("model", "status", "words"),
    [
        ("500", 502, "answered with status 500"),
        ("401", 502, "does not accept this server's key"),
        ("429", 429, "too many requests"),
        ("400", 400, "your key *** asked too much"),
        ("silent-soon", 504, "was silent for too long"),
        ("redirect", 502, "not followed"),
        ("plain", 502, "no stream of events"),
        ("malformed", 502, "no part of an answer"),
        ("error-event", 502, "failed: out of memory"),
        ("dies-at-once", 502, "ended before its answer was complete"),
    ],
)
def test_faults_before_the_first_text(
    faulty_front: httpx.Client,
    faulty: Faulty,
    model: str,
    status: int,
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A proper status in our shape, streamed or not; the key is in none of it; no other address is asked."""
    caplog.set_level(logging.DEBUG)
    with faulty_server() as other:
        faulty.elsewhere = f"{other.url}/v1/chat/completions"
        for stream in (False, True):
            reply = faulty_front.post("/v1/chat/completions", json=ASK | {"model": model, "stream": stream})
            assert reply.status_code == status, reply.text
            assert words in reply.json()["error"]["message"] and "bad" in reply.json()["error"]["message"]
            assert KEY not in reply.text + str(reply.headers) and faulty.url not in reply.text
        assert not other.asked
    assert KEY not in caplog.text and KEY not in faulty_front.get("/v1/models").text
    assert all(
        headers["authorization"] == f"Bearer {KEY}"
        for _, headers, _ in faulty.asked
        if "authorization" in headers
    )
    assert any("authorization" in headers for _, headers, _ in faulty.asked[-2:]), "it was sent"


@pytest.mark.parametrize("model", ["dies", "malformed-later", "error-later", "filtered"])
def test_faults_after_the_first_text(faulty_front: httpx.Client, faulty: Faulty, model: str) -> None:
    """The text stays, an error ends the stream, and nobody else is asked again."""
    before = len([1 for _, _, body in faulty.asked if body and body["model"] == model])
    streamed = faulty_front.post("/v1/chat/completions", json=ASK | {"model": model, "stream": True})
    assert streamed.status_code == 200 and "[DONE]" not in streamed.text
    *pieces, error = chunks(streamed.text)
    assert "".join(p["choices"][0]["delta"].get("content") or "" for p in pieces) == "half an answer"
    assert "bad" in error["error"]["message"]
    chat = faulty_front.post("/api/chats", json={"model": model}).json()["id"]
    answer, _ = page_answer(faulty_front, chat)
    assert (answer["status"], answer["content"]) == ("error", "half an answer") and "bad" in answer["error"]
    assert len([1 for _, _, body in faulty.asked if body and body["model"] == model]) == before + 2


@pytest.mark.parametrize(
    ("model", "reasoning", "message"),
    [
        ("good", "auto", {"content": "half an answer"}),
        ("other-name", "auto", {"content": "yes", "reasoning_content": "hm"}),
        ("other-name", "reasoning_content", {"content": "yes"}),
        ("tags", "think", {"content": "yes", "reasoning_content": "hm"}),
        ("tags", "auto", {"content": "<think>hm</think>\n\nyes"}),
        ("separators", "auto", {"content": "a\u2028b\u0085c"}),
    ],
)
def test_forms_of_answers(
    faulty: Faulty, tmp_path: Path, model: str, reasoning: Any, message: dict[str, str]
) -> None:
    with front(tmp_path, UpstreamConfig("odd", f"{faulty.url}/v1", reasoning=reasoning)) as client:
        reply = client.post("/v1/chat/completions", json=ASK | {"model": model}).json()
    assert reply["choices"][0]["message"] == {"role": "assistant"} | message
    assert reply["usage"]["total_tokens"] == 10


def test_calls_of_tools(faulty_front: httpx.Client) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    reply = faulty_front.post("/v1/chat/completions", json=ASK | {"model": "calls", "tools": [tool]}).json()[
        "choices"
    ][0]
    assert [call["function"] for call in reply["message"]["tool_calls"]] == [
        {"name": "f", "arguments": '{"a": 1}'}, {"name": "g", "arguments": "{}"},
    ]  # fmt: skip
    assert reply["finish_reason"] == "tool_calls"


def test_without_counts_none_are_made_up(faulty_front: httpx.Client) -> None:
    reply = faulty_front.post("/v1/chat/completions", json=ASK | {"model": "no-usage"}).json()
    assert (
        reply["usage"] is None
        and reply["cost"]["usd"] is None
        and reply["choices"][0]["finish_reason"] == "length"
    )
    chat = faulty_front.post("/api/chats", json={"model": "no-usage"}).json()["id"]
    answer, _ = page_answer(faulty_front, chat)
    assert answer["usage"] is None and answer["content"] == "half an answer"


def test_who_leaves_or_stops_ends_the_upstreams_work(faulty_front: httpx.Client, faulty: Faulty) -> None:
    faulty.gone.clear()
    with faulty_front.stream(
        "POST", "/v1/chat/completions", json=ASK | {"model": "endless", "stream": True}
    ) as reply:
        assert "and so on" in next(text for text in reply.iter_text() if "and so on" in text)
    assert faulty.gone.wait(20), "the client left, and the upstream still writes"
    faulty.gone.clear()
    chat = faulty_front.post("/api/chats", json={"model": "endless"}).json()["id"]
    asked = faulty_front.post(f"/api/chats/{chat}/messages", json={"content": "go on"}).json()["assistant"][
        "id"
    ]
    wait_for(lambda: faulty_front.get(f"/api/chats/{chat}").json()["messages"][-1]["content"])
    for _ in range(2):  # a second press harms nothing
        assert faulty_front.post(f"/api/chats/{chat}/messages/{asked}/stop", json={}).status_code in (
            200,
            202,
        )
    assert faulty.gone.wait(20)
    stored = wait_for(lambda: [m for m in faulty_front.get(f"/api/chats/{chat}").json()["messages"]
                               if m["id"] == asked and m["status"] == "stopped"])[0]  # fmt: skip
    assert stored["content"].startswith("and so on") and stored["usage"] is None


# ---- several upstreams


def test_another_upstream_answers_before_the_first_text_only(
    faulty: Faulty, live_server: str, tmp_path: Path
) -> None:
    def config(name: str, url: str, model: str, kind: str = "openai-compatible") -> UpstreamConfig:
        return UpstreamConfig(name, f"{url}/v1", kind, models=(ServedModel(model, "shared"),))

    body = ASK | {"model": "shared", "max_tokens": 4}
    for broken in ("500", "malformed", "429", "dies-at-once"):
        with front(
            tmp_path, config("first", faulty.url, broken), config("second", live_server, "tiny", "shoal")
        ) as client:
            assert [m["id"] for m in listed(client)] == ["shared"]
            reply = client.post("/v1/chat/completions", json=body)
            assert reply.status_code == 200 and reply.json()["cost"]["device"] == "second", reply.text
    with front(
        tmp_path, config("first", faulty.url, "dies"), config("second", live_server, "tiny", "shoal")
    ) as client:
        streamed = client.post("/v1/chat/completions", json=body | {"stream": True}).text
        assert "half an " in streamed and "first ended before" in streamed and "[DONE]" not in streamed
    with front(
        tmp_path, config("first", faulty.url, "400"), config("second", live_server, "tiny", "shoal")
    ) as client:
        assert client.post("/v1/chat/completions", json=body).status_code == 400, (
            "the request's own fault stays one"
        )


def test_health_shows_and_comes_back(tmp_path: Path) -> None:
    with faulty_server() as server:
        config = UpstreamConfig(
            "one", f"{server.url}/v1", models=(ServedModel("good", "good"),), check_seconds=0.2
        )
        table = ModelTable([], open_spec, upstreams=Upstreams([config]))
        app = create_app(ServerSettings(), table, Store(tmp_path / "chats.sqlite"))
        with running(app) as url, httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
            status = lambda: listed(client)[0]["status"]["value"]  # noqa: E731
            wait_for(lambda: status() == "loaded")
            assert len(server.asked) < 20
            server.shutdown()
            server.server_close()
            wait_for(lambda: status() == "failed")
            error = client.post("/v1/chat/completions", json=ASK | {"model": "good"})
            assert error.status_code == 502 and "one cannot be reached" in error.json()["error"]["message"]
            with faulty_server(server.server_address[1]):  # it comes back where it was
                wait_for(lambda: status() == "loaded")
                assert client.post("/v1/chat/completions", json=ASK | {"model": "good"}).status_code == 200


def test_the_state_of_a_model_whose_upstream_is_dead() -> None:
    upstream = Upstream(UpstreamConfig("gone", "http://127.0.0.1:9/v1"))

    async def look() -> list[int]:
        seen = []
        for _ in range(3):
            await upstream.check()
            seen.append(upstream.failures)
        await upstream.close()
        return seen

    assert run_apart(look()) == [1, 2, 3]
    assert upstream.healthy is False
    model = RemoteModel("m", [Route(upstream, ServedModel("m", "m"))])
    assert model.state() == ("error", "the upstream gone cannot be reached")


# ---- the words of each kind


def said(kind: str, effort: str | None = None, begun: tuple[str, str] | None = None, url: str = "http://a/v1",
         **fields: Any) -> dict[str, Any]:  # fmt: skip
    config = UpstreamConfig("u", url, kind)
    served = ServedModel("m", "m", thinking=True)
    model = RemoteModel("m", [Route(Upstream(config), served)])
    asked = Asked(
        model, [{"role": "developer", "content": "x", "prefix": None}], fields, effort, 5, begun, "salt"
    )
    return body_of(config, served, asked)


@pytest.mark.parametrize(
    ("kind", "off", "high"),
    [
        ("openai-compatible", {}, {}),
        ("shoal", {"reasoning_effort": "none"}, {"reasoning_effort": "high"}),
        ("vllm", {"chat_template_kwargs": {"thinking": False, "enable_thinking": False}},
         {"chat_template_kwargs": {"thinking": True, "enable_thinking": True}}),
        ("deepseek", {"thinking": {"type": "disabled"}}, {"thinking": {"type": "enabled"}, "reasoning_effort": "high"}),
        ("openai", {"reasoning_effort": "none"}, {"reasoning_effort": "high"}),
        ("gemini", {"reasoning_effort": "none"}, {"reasoning_effort": "high"}),
    ],
)  # fmt: skip
def test_effort_in_each_dialect(kind: str, off: dict[str, Any], high: dict[str, Any]) -> None:
    silent = said(kind)
    for effort, expected in (("off", off), ("high", high)):
        body = said(kind, effort)
        assert {key: value for key, value in body.items() if silent.get(key) != value} == expected
    assert silent["stream"] and silent["stream_options"]["include_usage"]
    assert silent["messages"][0]["role"] == ("developer" if kind == "openai" else "system")


def test_fields_in_each_dialect() -> None:
    assert said("openai", top_k=5, temperature=0.5)["max_completion_tokens"] == 5
    assert "top_k" not in said("openai", top_k=5) and said("vllm", top_k=5)["top_k"] == 5
    assert said("llama.cpp", repetition_penalty=1.1)["repeat_penalty"] == 1.1
    assert said("vllm")["cache_salt"] == said("vllm")["cache_salt"] != "salt" and "cache_salt" not in said(
        "openai"
    )
    begun = ("It is", "hm")
    last = said("shoal", "high", begun)["messages"][-1]
    assert last == {"role": "assistant", "content": "It is", "prefix": True, "reasoning_content": "hm"}
    final = said("vllm", "high", begun)
    assert final["continue_final_message"] is True and final["add_generation_prompt"] is False
    assert final["chat_template_kwargs"]["enable_thinking"] is False, "its thinking is over"
    assert not UpstreamConfig("u", "https://api.deepseek.com/v1", "deepseek").continues
    assert UpstreamConfig("u", "https://api.deepseek.com/beta", "deepseek").continues == "prefix"


# ---- the file

GOOD = """
default = "a"
[[upstream]]
name = "one"
kind = "vllm"
base_url = "http://127.0.0.1:8000/v1/"
key_env = "ONE_KEY"
models = ["a"]
price = { input = 1, output = 2.5, date = "2026-11-15" }
[[upstream.model]]
id = "org/b"
name = "b"
context = 8192
thinking = true
efforts = { off = "minimal", low = "low", high = "high", max = "xhigh" }
"""


def test_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "upstreams.toml"
    path.write_text(GOOD)
    read = read_upstreams(path, {"ONE_KEY": f" {KEY}\n"})
    (one,) = read.upstreams
    assert (read.default, read.local, one.base_url, one.key) == ("a", True, "http://127.0.0.1:8000/v1", KEY)
    assert KEY not in repr(read), "not in a traceback either"
    a, b = one.models
    assert a.price == b.price == Price(1.0, 2.5, "2026-11-15") and (b.id, b.name, b.context) == (
        "org/b",
        "b",
        8192,
    )
    assert b.efforts == ("minimal", "low", "high", "xhigh") and set(KINDS) >= {"vllm", "deepseek", "gemini"}
    assert a.price.usd(1_000_000, 500_000, 1_000_000) == pytest.approx(3.5), (
        "cached tokens cost as the others"
    )


def test_the_documents_examples_are_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    keys = dict.fromkeys(("GPU_KEY", "DEEPSEEK_API_KEY", "OPENAI_API_KEY", "GEMINI_API_KEY"), KEY)
    read = []
    for block in blocks:
        (tmp_path / "upstreams.toml").write_text(block)
        read.append(read_upstreams(tmp_path / "upstreams.toml", keys))
    kinds = {each.kind for file in read for each in file.upstreams}
    assert kinds == {"vllm", "deepseek", "openai", "gemini", "llama.cpp"} and not read[0].local
    assert set(KINDS) <= set(re.findall(r"`([a-z.-]+)`", text)), "every kind is told"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('key_env = "ONE_KEY"', 'key = "x"', "environment"),
        ("kind =", "kinds =", "Did you mean kind"),
        ('"vllm"', '"vlm"', "expected one of"),
        ("http://", "ftp://", "base_url"),
        ("http://127", "http://me:pw@127", "base_url"),
        ("ONE_KEY", "OTHER_KEY", "OTHER_KEY is not set"),
        (', date = "2026-11-15"', "", "date"),
        ("8192", '"8192"', "context"),
        ("8192", "true", "context"),
        ('name = "one"', 'name = "o n e"', "name"),
        ("[[upstream]]", "[upstream]", "upstream"),
        ("default", "defaults", "unknown key"),
        ("models =", "models", "TOML"),
    ],
)
def test_bad_files_name_the_place(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "upstreams.toml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(UsageError, match=words) as refusal:
        read_upstreams(path, {"ONE_KEY": KEY})
    assert KEY not in str(refusal.value)
