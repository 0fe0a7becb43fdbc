"""Tokens, sizes and vectors."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import numpy as np
import openai
import pytest

MIXED = "a 日本語 𠮷👩‍👩‍👧\n\tdef f(): ½"


def post(client: httpx.Client, path: str, **body: Any) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_tokens_and_back(client: httpx.Client) -> None:
    found = post(client, "/tokenize", content=MIXED)
    assert found["count"] == len(found["tokens"]) and found["max_model_len"] == 2048
    assert post(client, "/detokenize", tokens=found["tokens"]) == {"content": MIXED, "prompt": MIXED}
    assert post(client, "/tokenize", prompt=MIXED)["tokens"] == [
        0,
        *found["tokens"],
    ]  # vLLM's default adds BOS
    assert post(client, "/tokenize", prompt=MIXED, add_special_tokens=False) == found
    pieces = post(client, "/tokenize", content=MIXED, with_pieces=True)["tokens"]
    raw = b"".join(p["piece"].encode() if isinstance(p["piece"], str) else bytes(p["piece"]) for p in pieces)
    assert raw.decode() == MIXED and [p["id"] for p in pieces] == found["tokens"]
    mark = "<｜User｜>"
    assert len(post(client, "/tokenize", content=mark)["tokens"]) == 1
    assert len(post(client, "/tokenize", content=mark, parse_special=False)["tokens"]) > 3


def test_sizes_are_what_usage_will_say(client: httpx.Client) -> None:
    """Thinking, tools and begun answers count as the request itself counts them."""
    tool = {"type": "function", "function": {"name": "f"}}
    for fields in ({}, {"thinking": {"type": "disabled"}}, {"tools": [tool]}):
        request = {"messages": [{"role": "user", "content": "How many?"}], "max_tokens": 1} | fields
        expected = post(client, "/v1/chat/completions", **request)["usage"]["prompt_tokens"]
        assert post(client, "/v1/chat/completions/input_tokens", **request)["input_tokens"] == expected
        assert post(client, "/tokenize", **request)["count"] == expected
        shown = post(client, "/apply-template", **request)["prompt"]
        assert shown.startswith("<｜begin▁of▁sentence｜>") and "How many?" in shown


def test_wrong_bodies(client: httpx.Client) -> None:
    for path, body in (
        ("/tokenize", {}), ("/tokenize", {"content": 5}), ("/detokenize", {}), ("/detokenize", {"tokens": [10**9]}),
        ("/detokenize", {"tokens": [-1]}), ("/detokenize", {"tokens": "x"}), ("/apply-template", {}),
        ("/v1/chat/completions/input_tokens", {"messages": []}), ("/v1/embeddings", {}),
        ("/v1/embeddings", {"input": ""}), ("/v1/embeddings", {"input": [1, 2]}), ("/v1/embeddings", {"input": [[1]]}),
        ("/v1/embeddings", {"input": "a", "dimensions": 3}), ("/v1/embeddings", {"input": "a", "encoding_format": "x"}),
        ("/v1/embeddings", {"input": "sea " * 3000}), ("/v1/embeddings", {"input": ["a"] * 300}),
    ):  # fmt: skip
        response = client.post(path, json=body)
        assert response.status_code == 400, (path, body, response.text)
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    hint = client.post("/v1/embeddings", json={"input": [[1, 2]]}).json()["error"]["message"]
    assert "check_embedding_ctx_length=False" in hint
    assert client.post("/tokenize", json={"content": "x", "model": "nope"}).status_code == 404


def test_vectors_through_the_official_client(live_server: str, client: httpx.Client) -> None:
    """Float and base64 are the same numbers; a text's vector does not depend on what stands beside it."""
    official = openai.OpenAI(base_url=f"{live_server}/v1", api_key="none", max_retries=0)
    texts = ["The quick brown fox jumps.", "日本の人口は一億人です。" * 20, "The quick brown fox jumps!"]
    found = official.embeddings.create(model="tiny", input=texts)  # the client asks for base64
    vectors = np.array([row.embedding for row in found.data])
    assert vectors.shape == (3, 64) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[2] > vectors[0] @ vectors[1]
    plain = post(client, "/v1/embeddings", input=texts[1])
    assert np.allclose(plain["data"][0]["embedding"], vectors[1], atol=1e-6)
    assert plain["usage"]["prompt_tokens"] > 64 and "mean" in plain["pooling"]  # more than one chunk
    raw = base64.b64decode(
        post(client, "/v1/embeddings", input=texts[1], encoding_format="base64")["data"][0]["embedding"]
    )
    assert np.array_equal(
        np.frombuffer(raw, "<f4"), np.array(plain["data"][0]["embedding"], dtype=np.float32)
    )
    official.close()


def test_a_vector_is_the_mean_of_the_last_hidden_states(tiny_model: Any) -> None:
    """Against the network itself, in one piece."""
    torch = pytest.importorskip("torch")
    from shoal.engine.embed import embed
    from shoal.engine.open import open_model
    from shoal.engine.types import InvalidRequest

    opened = open_model(tiny_model, dtype="float32")
    try:
        free = opened.engine.stats().cache_blocks_free
        ids = opened.tokenizer.encode("The quick brown fox jumps over the lazy dog. " * 20)
        assert len(ids) > 130
        vector = embed(opened.engine, ids)
        runner: Any = opened.engine.runner
        if hasattr(runner, "network"):
            from shoal.model.context import RowsContext

            with torch.no_grad():
                hidden = runner.network(torch.tensor(ids), RowsContext(1, len(ids))).double().mean(0).numpy()
            assert np.allclose(vector, hidden / np.linalg.norm(hidden), atol=1e-5)
        assert opened.engine.stats().cache_blocks_free == free
        with pytest.raises(InvalidRequest):
            embed(opened.engine, [])
    finally:
        opened.close()
