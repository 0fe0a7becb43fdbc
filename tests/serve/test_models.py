"""The model table: loading on demand, waiting for it, faults, and who has to leave when memory is short."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tests.apart import run_apart

from shoal.cli.serve import Opener, card_of, open_spec
from shoal.errors import ShoalError
from shoal.serve.app import create_app
from shoal.serve.errors import ApiError
from shoal.serve.listener import Server, bind, url_of
from shoal.serve.models import ModelCard, ModelTable
from shoal.serve.settings import ServerSettings
from shoal.serve.store import Store

ASK = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


class Gate:
    """An opener that waits until it is let go: a slow disk. It opens the real model."""

    def __init__(self, folder: Path):
        self.folder, self.open = folder, threading.Event()
        self.calls = 0

    def __call__(self, spec: str, progress: Callable[[int, int], None]) -> Any:
        self.calls += 1
        progress(10, 100)
        assert self.open.wait(30)
        if spec == "broken":
            raise ShoalError("model.safetensors is cut short", hint="Fetch it again.")
        return open_spec(str(self.folder), progress)


@contextlib.contextmanager
def serving(table: ModelTable, tmp_path: Path) -> Iterator[httpx.Client]:
    sock, ready = bind("127.0.0.1", 0), threading.Event()
    app = create_app(ServerSettings(keep_alive_seconds=0.2), table, Store(tmp_path / "c.sqlite"))
    server = Server(app, on_ready=ready.set)
    thread = threading.Thread(target=server.run, args=([sock],), daemon=True)
    thread.start()
    assert ready.wait(20)
    headers = {"sec-fetch-site": "same-origin"}
    with httpx.Client(base_url=url_of(sock), headers=headers, trust_env=False, timeout=60) as client:
        yield client
    server.should_exit = True
    thread.join(15)
    assert not thread.is_alive()


def test_a_request_waits_for_its_model(tiny_model: Path, tmp_path: Path) -> None:
    gate = Gate(tiny_model)
    table = ModelTable([card_of("tiny", tiny_model)], gate)
    with serving(table, tmp_path) as client:
        health = client.get("/health")
        assert health.status_code == 503 and health.json()["error"]["type"] == "overloaded_error"
        state = client.get("/api/models/tiny").json()
        assert (state["status"], state["bytes_done"], state["bytes_total"]) == ("loading", 10, 100)
        assert client.get("/v1/models").json()["data"][0]["status"] == {"value": "loading"}
        assert client.get("/").status_code == 200  # the page opens at once
        chat = client.post("/api/chats", json={}).json()["id"]
        client.post(f"/api/chats/{chat}/messages", json={"content": "hi", "params": {"max_tokens": 1}})
        with ThreadPoolExecutor(1) as pool:  # both wait; signs of life come every 0.2 s
            plain = pool.submit(client.post, "/v1/chat/completions", json=ASK)
            threading.Timer(0.7, gate.open.set).start()
            with client.stream("POST", "/v1/chat/completions", json=ASK | {"stream": True}) as response:
                text = response.read().decode()
            whole = plain.result()
        assert text.startswith(": keep-alive\n\n") and text.endswith("data: [DONE]\n\n")
        assert whole.text.startswith("\n") and whole.json()["object"] == "chat.completion"
        with client.stream("GET", f"/api/chats/{chat}/events") as response:
            seen = response.read().decode()
        assert (
            '"type":"loading"' in seen
            and '"bytes_done":10,"bytes_total":100' in seen
            and '"type":"done"' in seen
        )
        assert client.get("/health").status_code == 200 and gate.calls == 1


def test_a_model_that_cannot_be_loaded(tiny_model: Path, tmp_path: Path) -> None:
    gate = Gate(tiny_model)
    gate.open.set()
    table = ModelTable([card_of("tiny", tiny_model), ModelCard("broken", "broken")], gate)
    with serving(table, tmp_path) as client:
        while (
            client.get("/health").status_code != 200
        ):  # a wait behind its load would begin with a sign of life
            threading.Event().wait(0.05)
        response = client.post("/v1/chat/completions", json=ASK | {"model": "broken"})
        assert response.status_code == 500 and "cut short" in response.json()["error"]["message"]
        assert response.headers["x-should-retry"] == "false"
        assert client.get("/api/models/broken").json()["status"] == "error"
        shown = {model["id"]: model["error"] for model in client.get("/api/state").json()["models"]}
        assert shown["tiny"] is None and "cut short" in shown["broken"]  # the picker's word
        chat = client.post("/api/chats", json={"model": "broken"}).json()["id"]
        client.post(f"/api/chats/{chat}/messages", json={"content": "hi"})
        with client.stream("GET", f"/api/chats/{chat}/events") as events:
            assert "cut short" in events.read().decode()
        assert client.post("/v1/chat/completions", json=ASK | {"model": "tiny"}).status_code == 200
        assert gate.calls >= 3  # asked again, tried again


def test_names_are_keys_never_paths(tiny_model: Path) -> None:
    table = ModelTable([ModelCard("b", "b"), ModelCard("a", "a")], open_spec, default="a")
    assert table.names() == ["a", "b"] and table.slot(None).card.id == "a"
    for name in ("", "../a", str(tiny_model), "http://127.0.0.1:9/x"):
        with pytest.raises(ApiError, match="a, b") as refusal:
            table.slot(name)
        assert (refusal.value.status, refusal.value.code) == (404, "model_not_found")
    with pytest.raises(ShoalError, match="no model"):
        ModelTable([], open_spec)


def test_the_model_idle_for_longest_makes_room(tiny_model: Path) -> None:
    cards = [ModelCard(name, str(tiny_model)) for name in "abc"]
    table = ModelTable(cards, open_spec, max_loaded=2)

    async def use(names: str) -> str:
        for name in names:
            await table.open(name)
        return "".join(name for name, slot in table.slots.items() if slot.opened)

    try:
        assert run_apart(use("abac")) == "ac"
    finally:
        table.close()


def test_stopping_ends_a_load(tmp_path: Path) -> None:
    """Ctrl+C does not wait for gigabytes."""
    began, stopped = threading.Event(), threading.Event()

    def endless(spec: str, progress: Callable[[int, int], None]) -> Any:
        began.set()
        try:
            for done in range(10_000):
                progress(done, 10_000)
                threading.Event().wait(0.01)
        finally:
            stopped.set()

    with serving(ModelTable([ModelCard("big", "big")], endless), tmp_path):
        assert began.wait(5)
    assert stopped.wait(2)


def test_adapters_answer_from_their_bases_engine_and_leave_with_it(tiny_model: Path, tmp_path: Path) -> None:
    from shoal.model.adapters import new_lora
    from shoal.model.checkpoint.load import load_network

    network = load_network(tiny_model)
    for seed, name in enumerate(("one", "two")):
        adapter = new_lora(
            network, base=str(tiny_model), r=2, lora_alpha=4, target_modules=["o_proj"], seed=seed
        )
        for f in adapter.factors.values():
            f.b.data.normal_(0, 1, generator=torch.Generator().manual_seed(seed))
        adapter.save(tmp_path / name, network.config)
    places = {"tiny": tiny_model, "one": tmp_path / "one", "two": tmp_path / "two"}
    opener = Opener()
    table = ModelTable([card_of(name, path) for name, path in places.items()], opener, max_loaded=1)
    body = {"prompt": "hello there", "max_tokens": 3, "temperature": 0, "logprobs": 2}
    with serving(table, tmp_path) as client:
        answers = {}
        for name in ("one", "tiny", "two"):
            reply = client.post("/v1/completions", json=body | {"model": name})
            assert reply.status_code == 200, reply.text
            answers[name] = str(reply.json()["choices"][0]["logprobs"]["token_logprobs"])
        engines = {id(slot.opened.engine) for slot in table.slots.values() if slot.opened}
        assert len(engines) == 1, "three models, one engine, in a table that has room for one"
        assert len(set(answers.values())) == 3
        asked = {
            name: client.post("/v1/embeddings", json={"model": name, "input": "a"}).json() for name in answers
        }
        assert len({str(found["data"]) for found in asked.values()}) == 3
        assert table.totals()["completion_tokens"] <= 9  # one engine counts once
