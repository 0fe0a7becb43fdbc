"""`shoal serve` as a program: its one line, ports, who may listen where, and an end that does not hang."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from tests.apart import run_apart

from shoal.cli.serve import cards_of, command, open_spec
from shoal.errors import ShoalError, UsageError
from shoal.model.registry import ModelEntry
from shoal.serve import listener
from shoal.serve.models import ModelTable

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


def start(tiny_model: Path, *options: str) -> subprocess.Popen[str]:
    command_line = [sys.executable, "-m", "shoal.cli.main", "serve", str(tiny_model), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command_line, text=True, env=environment, **pipes)


def test_one_line_an_answer_and_a_quick_end(tiny_model: Path) -> None:
    """Ctrl+C in mid-answer: the stream ends with an error the client can read, the process within seconds."""
    process = start(tiny_model, "--port", "0")
    try:
        assert process.stdout
        line = process.stdout.readline()
        found = re.fullmatch(r"shoal serves tiny at (http://127\.0\.0\.1:\d+)\n", line)
        assert found, line
        ask = {
            "messages": [{"role": "user", "content": "hi"}],
            "stream": True,
            "ignore_eos": True,
            "max_tokens": 1900,
        }
        lines: list[str] = []
        with httpx.Client(base_url=found[1], trust_env=False, timeout=60) as client:
            with client.stream("POST", "/v1/chat/completions", json=ask) as response:
                for number, event in enumerate(response.iter_lines()):
                    lines.append(event)
                    if number == 20:
                        process.send_signal(signal.SIGINT)
                        stopped = time.monotonic()
        assert process.wait(15) in (0, 130) and time.monotonic() - stopped < 10
        assert any('"overloaded_error"' in event for event in lines)
        rest, errors = process.communicate()
        assert rest == "" and "Traceback" not in errors
    finally:
        process.kill()
        process.communicate()


def test_the_next_free_port_unless_one_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = listener.bind("127.0.0.1", 0)
    port = taken.getsockname()[1]
    monkeypatch.setattr(listener, "DEFAULT_PORT", port)
    try:
        with pytest.raises(ShoalError, match=rf"(?s)port {port}.*--port") as refusal:
            listener.bind("127.0.0.1", port)
        assert refusal.value.exit_code == 1
        with listener.bind("127.0.0.1", None) as other:
            assert other.getsockname()[1] != port
            assert listener.url_of(other).startswith("http://127.0.0.1:")
        with pytest.raises(ShoalError, match="cannot listen"):
            listener.bind("203.0.113.1", 0)
    finally:
        taken.close()


def test_json_and_the_risk_of_a_network(tiny_model: Path) -> None:
    """Programs read where it listens; people are told who may come in, and that keys are readable."""
    process = start(tiny_model, "--port", "0", "--json", "--host", "0.0.0.0", "--api-key", "k" * 32)
    try:
        assert process.stdout
        said = json.loads(process.stdout.readline())
        assert said["models"] == ["tiny"] and said["url"].startswith("http://127.0.0.1:")
        assert httpx.get(f"{said['url']}/v1/models", trust_env=False).status_code == 401
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=15)
        assert "listening on 0.0.0.0" in errors and "plain HTTP" in errors and "k" * 32 not in errors
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("key", [None, "short", "x" * 21])
def test_the_network_is_not_let_in_without_a_good_key(key: str | None, tiny_model: Path) -> None:
    with pytest.raises(UsageError, match="everyone in the network"):
        command(models=[str(tiny_model)], host="0.0.0.0", port=0, api_key=key, open_page=False, allowed_host=[],
                cors_origin=[], strict=False, as_json=False, log_level="warning")  # fmt: skip


def test_models_that_are_named_must_be_there(tiny_model: Path, tmp_path: Path) -> None:
    card = cards_of([str(tiny_model)])[0]
    assert (card.id, card.context) == ("tiny", 2048) and 0 < card.parameters_active < card.parameters
    assert [c.id for c in cards_of([str(tiny_model), str(tiny_model)])] == ["tiny", "tiny-2"]
    with pytest.raises(ShoalError, match="no model"):
        cards_of([str(tmp_path / "nothing")])


def damaged(tiny_model: Path, folder: Path, how: str) -> Path:
    """A copy of the model with one thing wrong."""
    shutil.copytree(tiny_model, folder)
    weights = folder / "model.safetensors"
    if how == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    elif how == "header":
        weights.write_bytes((2**40).to_bytes(8, "little") + weights.read_bytes()[8:])
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif how == "tokenizer":
        (folder / "tokenizer.json").unlink()
    elif how == "shape":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 128}))
    return folder


DAMAGE = {"pickle": "pickle", "header": "model.safetensors", "cut": "model.safetensors", "tokenizer": "tokenizer.json",
          "shape": "shape"}  # fmt: skip


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_model_is_refused_before_anything_listens(
    how: str, tiny_model: Path, tmp_path: Path
) -> None:
    folder = damaged(tiny_model, tmp_path / "model", how)
    with pytest.raises(ShoalError, match=DAMAGE[how]) as refusal:
        command(models=[str(folder)], host="127.0.0.1", port=0, api_key=None, open_page=False, allowed_host=[],
                cors_origin=[], strict=False, as_json=False, log_level="warning", tls_cert=None, tls_key=None,
                upstreams=None, import_folder=None)  # fmt: skip
    assert refusal.value.exit_code == 1


def test_a_damaged_installed_model_is_shown_with_its_fault(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    monkeypatch.setattr("shoal.model.registry._smollm2_file", lambda: None)
    monkeypatch.setattr("shoal.model.registry._NANO", ModelEntry("nano", tmp_path / "absent"))
    damaged(tiny_model, tmp_path / "models" / "broken", "cut")
    with pytest.raises(ShoalError, match=r"(?s)no installed model can be read.*broken: .*model\.safetensors"):
        cards_of([])
    shutil.copytree(tiny_model, tmp_path / "models" / "whole")
    cards = {card.id: card for card in cards_of([])}
    assert list(cards) == ["broken", "whole"] and not cards["whole"].error and cards["whole"].parameters
    assert "model.safetensors" in (cards["broken"].error or "")
    slot = ModelTable(cards.values(), open_spec).slot("broken")
    assert slot.state()["status"] == "error" and "model.safetensors" in slot.state()["error"]
    slot = ModelTable(cards.values(), open_spec, show_paths=False).slot("broken")
    assert slot.state()["error"] == "its files are damaged"  # no paths for a network


def test_an_installed_model_samples_as_its_makers_recommend(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    folder = tmp_path / "models" / "calm"
    shutil.copytree(tiny_model, folder)
    (folder / "shoal.json").write_text(json.dumps({"sampling": {"temperature": 0.2, "top_p": 0.9}}))
    card = cards_of(["calm"])[0]
    opened = open_spec(card.spec, lambda done, total: None)
    try:
        assert opened.name == "calm" and (opened.defaults.temperature, opened.defaults.top_p) == (0.2, 0.9)
    finally:
        opened.close()


def test_many_connections_do_not_lock_others_out(live_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit new ones are closed at once; when the idle ones go, all is well again."""
    monkeypatch.setattr("shoal.serve.settings.MAX_CONNECTIONS", 20)
    port = int(live_server.rpartition(":")[2])
    idle = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(40)]
    try:
        closed = 0
        for sock in idle:
            sock.settimeout(0.2)
            try:
                closed += sock.recv(1) == b""
            except TimeoutError:
                pass
            except ConnectionError:
                closed += 1
        assert closed >= 20
    finally:
        for sock in idle:
            sock.close()
    for _ in range(50):
        try:
            assert httpx.get(f"{live_server}/health", trust_env=False).status_code == 200
            return
        except httpx.TransportError:
            threading.Event().wait(0.05)
    raise AssertionError("the server stays shut")


def test_small_answers_are_sent_at_once():
    """Nagle's algorithm held the first token back until the headers were acknowledged, 40 ms later."""

    async def accepted() -> int:
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            done.set_result(
                writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            )
            writer.close()

        server = await asyncio.start_server(connected, sock=listener.bind("127.0.0.1", 0))
        async with server:
            port = server.sockets[0].getsockname()[1]
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            found = await done
            writer.close()
            await writer.wait_closed()
            return found

    assert run_apart(accepted())
