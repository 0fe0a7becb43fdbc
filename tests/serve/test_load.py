"""The server under load and at its end: nobody starves, nothing leaks, answers finish or are saved."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tests.serve.test_fuzz import case, fault_of

from shoal.serve.listener import bind

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@contextlib.contextmanager
def serving(model: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """`shoal serve` in a process of its own, its model loaded; whoever asks looks like its page."""
    command = [sys.executable, "-m", "shoal.cli.main", "serve", str(model), "--port", "0", "--json", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, text=True, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout
        url = json.loads(process.stdout.readline())["url"]
        headers = {"sec-fetch-site": "same-origin"}
        limits = httpx.Limits(max_connections=64)
        with httpx.Client(
            base_url=url, headers=headers, timeout=120, trust_env=False, limits=limits
        ) as client:
            for _ in range(600):
                if client.get("/health").status_code == 200:
                    break
                time.sleep(0.1)
            yield process, client
    finally:
        process.kill()
        process.communicate()


def chat(text: str, max_tokens: int, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    more = {"ignore_eos": True, "thinking": {"type": "disabled"}, "stream": True} | more
    return {"messages": messages, "max_tokens": max_tokens, **more}


def events(response: httpx.Response) -> Iterator[Any]:
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield line[6:] if line == "data: [DONE]" else json.loads(line[6:])


def figures(client: httpx.Client) -> dict[str, float]:
    lines = [line.split() for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines if "{" not in name}


# ---- the end

ENDLESS = 190_000  # tokens: half a minute at 0.15 ms each, and nobody here waits for them


@pytest.fixture(scope="module")
def patient_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with room for a long answer, which a greedy one never ends: no special token is ever the best."""
    folder = tmp_path_factory.mktemp("models") / "patient"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 200_000}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    weights["lm_head.weight"][[token["id"] for token in added]] = 0.0
    save_file(weights, folder / "model.safetensors")
    return folder


def test_sigterm_lets_a_running_answer_finish(patient_model: Path) -> None:
    with serving(patient_model, "--drain", "60") as (process, client):
        with client.stream("POST", "/v1/chat/completions", json=chat("hi", 2000)) as response:
            told = []
            for event in events(response):
                told.append(event)
                if len(told) == 3:
                    process.send_signal(signal.SIGTERM)
        assert told[-1] == "[DONE]" and told[-2]["choices"][0]["finish_reason"] == "length"
        assert process.wait(30) == 0
        with pytest.raises(httpx.TransportError):
            client.get("/health")


def test_sigterm_ends_what_takes_too_long_and_saves_it(patient_model: Path, home: Path) -> None:
    with serving(patient_model, "--drain", "0.3") as (process, client):
        chat_id = client.post("/api/chats", json={}).json()["id"]
        asked = {"content": "Count.", "params": {"max_tokens": ENDLESS, "temperature": 0}}
        assert client.post(f"/api/chats/{chat_id}/messages", json=asked).status_code < 300
        with client.stream("POST", "/v1/chat/completions", json=chat("hi", ENDLESS)) as response:
            told = []
            for event in events(response):
                told.append(event)
                if len(told) == 3:
                    process.send_signal(signal.SIGTERM)
        assert told[-1]["error"]["type"] == "overloaded_error"
        assert process.wait(30) == 0
        assert "Traceback" not in process.communicate()[1]
    with serving(patient_model) as (process, client):
        messages = client.get(f"/api/chats/{chat_id}").json()["messages"]
        answer = next(message for message in messages if message["role"] == "assistant")
        assert answer["status"] == "stopped" and answer["content"] + answer["reasoning"]


def test_sigterm_twice_does_not_wait(patient_model: Path) -> None:
    with serving(patient_model, "--drain", "600") as (process, client):
        with client.stream("POST", "/v1/chat/completions", json=chat("hi", ENDLESS)) as response:
            for number, _ in enumerate(events(response)):
                if number in (3, 6):
                    process.send_signal(signal.SIGTERM)
                    time.sleep(0.5)
        assert process.wait(30) == 0


def test_a_page_that_only_listens_is_not_waited_for(tiny_model: Path) -> None:
    with serving(tiny_model, "--drain", "600") as (process, client):
        with (
            client.stream("GET", "/api/changes") as response,
            contextlib.suppress(httpx.RemoteProtocolError),
        ):
            for event in events(response):
                assert event == {"missed": True}
                process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.slow
@pytest.mark.browser
def test_an_answer_outlives_kill_9(browser: Any, patient_model: Path, home: Path) -> None:
    """The page says that the server is gone, finds it again, shows what was written and lets it go on."""
    with bind("127.0.0.1", 0) as free:
        port = str(free.getsockname()[1])
    context = browser.new_context(locale="en-US", service_workers="block")
    page = context.new_page()
    page.set_default_timeout(120_000)
    with serving(patient_model, "--port", port) as (process, client):
        chat_id = client.post("/api/chats", json={"title": "cut"}).json()["id"]
        asked = {"content": "Count.", "params": {"max_tokens": ENDLESS, "temperature": 0}}
        answer = client.post(f"/api/chats/{chat_id}/messages", json=asked).json()["assistant"]["id"]
        page.goto(f"http://127.0.0.1:{port}/#{chat_id}")
        page.wait_for_selector(".turn.last .answer[aria-busy=true] > .markdown")
        disk = sqlite3.connect(f"file:{home}/chats.sqlite?mode=ro", uri=True)
        with contextlib.closing(disk):  # what was written goes there every second
            row, until = "SELECT content FROM messages WHERE id = ?", time.monotonic() + 120
            while not disk.execute(row, (answer,)).fetchone()[0]:
                assert time.monotonic() < until, "nothing is stored before the answer's end"
                time.sleep(0.05)
        process.kill()
        process.wait()
        page.wait_for_selector(".offline")
    with serving(patient_model, "--port", port) as (process, client):
        page.wait_for_selector(".turn.last .ending:has-text('Stopped')")
        page.wait_for_selector(".offline", state="detached")
        kept = client.get(f"/api/chats/{chat_id}").json()["messages"][1]
        assert kept["status"] == "stopped" and kept["content"]
        page.click(".turn.last .ending .link")  # Continue
        page.wait_for_selector(".turn.last .answer[aria-busy=true]")
        page.click(".round.stop")
        page.wait_for_selector(".turn.last .ending:has-text('Stopped')")
        longer = client.get(f"/api/chats/{chat_id}").json()["messages"][1]
        assert longer["content"].startswith(kept["content"])
    context.close()


# ---- drafts, as a client sees them


def test_drafts_are_counted_and_can_be_left_out(client: httpx.Client) -> None:
    """A mask that leaves one token repeats it: what a look-up guesses at once."""
    body = chat("hi", 60, stream=False, temperature=0, logit_bias={"70": 100})
    plain = client.post("/v1/chat/completions", json=body | {"speculate": False}).json()
    quick = client.post("/v1/chat/completions", json=body).json()
    assert quick["choices"][0]["message"] == plain["choices"][0]["message"]
    assert "draft_n" not in plain["timings"]
    assert quick["timings"]["draft_n_accepted"] <= quick["timings"]["draft_n"]
    assert figures(client)["shoal_draft_accepted_tokens_total"] >= quick["timings"]["draft_n_accepted"] > 0


def test_several_answers_to_one_prompt_count_it_and_its_hit_once(client: httpx.Client) -> None:
    body = chat("Count the boats on the sea. " * 12, 3, stream=False, n=4, user="several")
    for hit in (False, True):
        usage = client.post("/v1/chat/completions", json=body).json()["usage"]
        assert usage["prompt_cache_hit_tokens"] + usage["prompt_cache_miss_tokens"] == usage["prompt_tokens"]
        assert (usage["prompt_cache_hit_tokens"] > usage["prompt_tokens"] / 2) is hit
        assert usage["completion_tokens"] == 12


# ---- under load


def memory_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_200_requests_over_16_connections_with_a_third_cancelled(
    tiny_model: Path, record_property: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = random.Random(1)
    jobs: queue.Queue[tuple[int, dict[str, Any], int | None]] = queue.Queue()
    for number in range(200):
        text = "".join(generator.choice("abcdefgh ") for _ in range(generator.choice([10, 200, 1500])))
        body = chat(text, generator.choice([4, 40, 200]), user=str(number % 5))
        jobs.put((number, body, generator.randint(1, 30) if number % 3 == 0 else None))
    waited: list[float] = []
    failed: list[str] = []
    health: list[float] = []
    memory: list[int] = []
    over = threading.Event()
    with serving(tiny_model) as (process, client):

        def work() -> None:
            while not jobs.empty():
                with contextlib.suppress(queue.Empty):
                    number, body, leave_after = jobs.get_nowait()
                    ask(number, body, leave_after)

        def ask(number: int, body: dict[str, Any], leave_after: int | None) -> None:
            try:
                with client.stream("POST", "/v1/chat/completions", json=body) as response:
                    assert response.status_code == 200, response.read()
                    for count, event in enumerate(events(response)):
                        if leave_after is not None and count >= leave_after:
                            return
                        if isinstance(event, dict) and "timings" in event:
                            waited.append(event["timings"]["queue_ms"] / 1000)
                            assert event["timings"]["predicted_n"] == body["max_tokens"]
                    assert event == "[DONE]"
            except Exception as error:
                failed.append(f"{number}: {error!r}")

        def watch() -> None:
            while not over.wait(0.2):
                begin = time.monotonic()
                try:
                    assert client.get("/health").status_code == 200
                except Exception as error:
                    failed.append(f"health: {error!r}")
                health.append(time.monotonic() - begin)
                memory.append(memory_bytes(process.pid))

        threads = [threading.Thread(target=work) for _ in range(16)]
        watcher = threading.Thread(target=watch)
        watcher.start()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        over.set()
        watcher.join()
        for _ in range(200):
            found = figures(client)
            if found["shoal_requests_running"] + found["shoal_requests_waiting"] == 0:
                break
            time.sleep(0.1)
        assert not failed, failed
        assert found["shoal_requests_running"] == found["shoal_requests_waiting"] == 0
        assert (
            found["shoal_cache_blocks_free"] == found["shoal_cache_blocks"] and found["shoal_kv_bytes"] == 0
        )
        assert found["shoal_engine_restarts_total"] == 0
        assert 133 <= len(waited) <= 200, "every request that nobody left has its answer"
        later, early = max(memory[len(memory) // 2 :]), max(memory[: max(1, len(memory) // 2)])
        assert later - early < 100e6, f"memory grew from {early / 1e6:.0f} to {later / 1e6:.0f} MB"
    report = {
        "waiting_p50_seconds": sorted(waited)[len(waited) // 2],
        "waiting_p99_seconds": sorted(waited)[len(waited) * 99 // 100],
        "health_worst_seconds": max(health),
        "memory_bytes": max(memory),
    }
    for name, value in report.items():
        record_property(name, value)
    with capsys.disabled():
        print(f"\nsoak: {json.dumps(report)}")


SOAK_MINUTES = float(os.environ.get("SHOAL_SOAK_MINUTES", "30"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_hours_in_small_leave_memory_flat(
    tiny_model: Path, home: Path, record_property: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """API and page, readers that leave or stall, malformed bodies: SHOAL_SOAK_MINUTES of it, 30 unless told otherwise.

    The slope of the server's memory is that of a line through all readings after the first third, when the prompt
    cache is full: it is kept small.
    """
    failed: list[str] = []
    counts = dict.fromkeys(("answers", "left", "chats", "stalled", "refused"), 0)
    memory: list[tuple[float, float]] = []
    over = threading.Event()
    greedy = chat("Count the boats on the sea.", 20, stream=False, temperature=0)
    with serving(tiny_model, "--cache", "0.008") as (process, client):
        first = client.post("/v1/chat/completions", json=greedy).json()["choices"][0]["message"]

        def ask(rng: random.Random) -> None:
            text = "".join(rng.choice("abcdefgh ") for _ in range(rng.choice([10, 200, 1500])))
            body = chat(text, rng.choice([4, 40, 200]), user=str(rng.randrange(50)))
            leave_after = rng.randint(1, 30) if rng.random() < 0.3 else None
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                assert response.status_code == 200, response.read()
                told = []
                for event in events(response):
                    told.append(event)
                    if len(told) == leave_after:
                        counts["left"] += 1
                        return
            assert told[-1] == "[DONE]"
            counts["answers"] += 1

        def converse(rng: random.Random) -> None:
            page = client.post("/api/chats", json={"temporary": rng.random() < 0.3}).json()["id"]
            asked = {"content": "Who are you?", "params": {"max_tokens": rng.choice([3, 60])}}
            made = client.post(f"/api/chats/{page}/messages", json=asked)
            assert made.status_code == 201, made.text
            with client.stream("GET", f"/api/chats/{page}/events") as response:
                last = None if rng.random() < 0.3 else list(events(response))[-1]
            assert last is None or last["type"] == "done"
            assert client.delete(f"/api/chats/{page}").status_code == 204
            counts["chats"] += 1

        def stall(rng: random.Random) -> None:
            with client.stream("POST", "/v1/chat/completions", json=chat("hi", 1500)) as response:
                assert response.status_code == 200
                over.wait(1)  # and read nothing
            counts["stalled"] += 1

        def damage(rng: random.Random) -> None:
            path, body = case(rng.randrange(10**6))
            found = client.post(path, content=body, headers={"content-type": "application/json"})
            assert not fault_of(found), (body[:100], found.text[:200])
            counts["refused"] += found.status_code >= 400

        def work(seed: int) -> None:
            rng = random.Random(seed)
            while not over.wait(0.02):
                act = rng.choices((ask, converse, stall, damage), (6, 3, 1, 4))[0]
                try:
                    act(rng)
                except Exception as error:
                    failed.append(f"{act.__name__}: {error!r}")
                    return

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        begin = time.monotonic()
        for thread in threads:
            thread.start()
        while (spent := time.monotonic() - begin) < SOAK_MINUTES * 60 and not failed:
            memory.append((spent, memory_bytes(process.pid) / 1e6))
            time.sleep(1)
        over.set()
        for thread in threads:
            thread.join()
        assert not failed, failed
        for _ in range(200):
            found = figures(client)
            if found["shoal_requests_running"] + found["shoal_requests_waiting"] == 0:
                break
            time.sleep(0.1)
        again = client.post("/v1/chat/completions", json=greedy).json()["choices"][0]["message"]
        assert again == first, "the same question has another answer"
        assert found["shoal_cache_blocks_free"] == found["shoal_cache_blocks"]
        assert found["shoal_engine_restarts_total"] == 0 and all(counts.values())
    later = np.array(memory[len(memory) // 3 :])
    slope, _ = np.polyfit(later[:, 0], later[:, 1], 1)
    report = counts | {
        "minutes": SOAK_MINUTES,
        "megabytes": float(later[-1, 1]),
        "megabytes_an_hour": slope * 3600,
    }
    for name, value in report.items():
        record_property(name, value)
    with capsys.disabled():
        print(f"\nsoak: {json.dumps(report)}")
    assert slope * SOAK_MINUTES * 60 < 30, report  # megabytes over the whole time
