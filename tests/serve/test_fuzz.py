"""C42, PRODUCT 4 row 13: malformed bodies. No dropped connection, no 5xx, one error shape, and a good stream that runs
beside them is not disturbed. A body is made from its number alone, so a failure names its number."""

from __future__ import annotations

import json
import random
import threading
from typing import Any

import httpx
import pytest

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
FIELDS = (
    "model messages max_tokens max_completion_tokens temperature top_p top_k min_p n stop stream stream_options seed"
    " logprobs top_logprobs logit_bias presence_penalty frequency_penalty repetition_penalty response_format tools"
    " tool_choice user user_id reasoning_effort thinking reasoning think chat_template_kwargs stop_token_ids ignore_eos"
    " min_tokens return_progress metadata functions chat_template grammar cache_salt prompt echo best_of suffix"
    " parallel_tool_calls"
).split()
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 3, 2**31, 2**53, 2**63, -(2**63), 2**64, 10**30, 0.5, -0.5, 1e-320, 1e308,
    float("nan"), float("inf"), "", "x", "5", "-1", "none", "auto", "\\u0000", "\\ud800", "𠮷👩‍👩‍👧", "<｜User｜>",
    "a" * 400, "../../etc/passwd", "{{ 7*7 }}", [], {}, [[]], [None], [{}], {"": ""}, {"type": None},
    {"type": "function"}, list(range(300)), ["x"] * 40, {str(i): i for i in range(60)}, [{"type": "text"}],
    [{"role": "user", "content": [{"type": "image_url"}]}],
]  # fmt: skip
BYTES = [b"\x00", b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\\u", b"NaN", b"1e999", b"//"]


def damaged(rng: random.Random, text: bytes) -> bytes:
    """JSON text after an accident on its way."""
    place = rng.randrange(len(text))
    return rng.choice([
        text[:place],
        text[:place] + bytes([rng.randrange(256)]) + text[place + 1 :],
        text[:place] + rng.choice(BYTES) + text[place:],
        rng.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"\n" * 999]) + text,
        text + rng.choice([b"}", text, b"\x00"]),
        text[:-1] + b', "x": ' + b"[" * 5000 + b"]" * rng.choice([5000, 4999]) + b"}",
        text[:-1] + b', "seed": ' + rng.choice([b"9" * 5000, b"1e" + b"9" * 30, b"01", b".5", b"-0", b"+1"]) + b"}",
        text[:-1] + b', "n": 1, "n": "x", "messages": [], "model": null}',
        text.decode("utf-8", "replace").encode("utf-16"),
        rng.choice([b"", b"null", b"[]", b"5", b'"hi"', b"{}", b"{'a': 1}"]),
    ])  # fmt: skip


def case(number: int) -> tuple[str, bytes]:
    """Path and body of one case."""
    rng = random.Random(number)
    chat = rng.random() < 0.8
    body: dict[str, Any] = {"max_tokens": 2, "stream": rng.random() < 0.3}
    body |= {"messages": [{"role": "user", "content": "hi"}]} if chat else {"prompt": "a b"}
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        body[rng.choice(FIELDS)] = rng.choice(VALUES)
    if chat and rng.random() < 0.4 and isinstance(body["messages"], list):
        turn: dict[str, Any] = {
            "role": rng.choice(["user", "assistant", "tool", "system", "sytem"]),
            "content": "x",
        }
        for key in ("role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content", "prefix"):
            if rng.random() < 0.25:
                turn[key] = rng.choice(VALUES)
        body["messages"] = [*body["messages"], turn]
    for name in ("max_tokens", "max_completion_tokens"):  # a valid long answer would only cost time
        if (
            isinstance(value := body.get(name), int | float)
            and not isinstance(value, bool)
            and 2 < value < 2**31
        ):
            body[name] = 2
    if body.get("max_tokens") is None and body.get("max_completion_tokens") is None:
        body["max_tokens"] = 2
    if body.get("min_tokens") or body.get("n") or body.get("ignore_eos"):
        body["max_tokens"] = 1
    written = json.dumps(body, ensure_ascii=rng.random() < 0.7).replace("\\\\ud800", "\\ud800")
    text = written.encode("utf-8", "surrogatepass")
    return (CHAT if chat else TEXT), damaged(rng, text) if rng.random() < 0.3 else text


def fault_of(response: httpx.Response) -> str:
    """What is wrong with an answer, "" if nothing."""
    if response.status_code == 200:
        return ""
    if response.status_code >= 500:
        return f"status {response.status_code}"
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code} with body {response.text[:80]!r}"
    if set(error) != {"message", "type", "param", "code"} or not error["message"]:
        return f"error {error}"
    return "internals shown" if "Traceback" in response.text or "pydantic" in response.text else ""


def bombard(url: str, numbers: range) -> None:
    good = {
        "messages": [{"role": "user", "content": "Write."}],
        "max_tokens": 12,
        "temperature": 0,
        "ignore_eos": True,
    }
    bad: list[str] = []
    texts: list[str] = []
    over = threading.Event()
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        expected = client.post(CHAT, json=good).json()["choices"][0]["message"]

        def neighbour() -> None:
            while not over.is_set():
                texts.append(client.post(CHAT, json=good).json()["choices"][0]["message"])
                over.wait(0.2)

        def send(share: range) -> None:
            for number in share:
                path, body = case(number)
                try:
                    response = client.post(path, content=body, headers={"content-type": "application/json"})
                    fault = fault_of(response)
                except httpx.TransportError as error:
                    fault = repr(error)
                if fault:
                    bad.append(f"case {number}: {fault}: {body[:120]!r}")

        beside = threading.Thread(target=neighbour)
        senders = [threading.Thread(target=send, args=(numbers[i::3],)) for i in range(3)]
        for thread in (beside, *senders):
            thread.start()
        for thread in senders:
            thread.join()
        over.set()
        beside.join()
        assert not bad, "\n".join(bad[:10])
        assert texts and all(text == expected for text in texts), "a neighbour's answer changed"
        assert client.get("/health").status_code == 200


def test_malformed_bodies(live_server: str) -> None:
    bombard(live_server, range(300))


@pytest.mark.slow
def test_ten_thousand_malformed_bodies(live_server: str) -> None:
    bombard(live_server, range(1000, 11000))
