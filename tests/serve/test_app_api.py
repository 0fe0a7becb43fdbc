"""The page's routes against a real server: the server's own answers, the tree, stop, reload, restart, search."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.serve.held import held

from shoal.data.types import Message
from shoal.serve.answers import repaired

Client = httpx.Client


def new_chat(client: Client) -> str:
    chat: str = client.post("/api/chats", json={}).json()["id"]
    return chat


def send(
    client: Client, chat: str, content: str = "Who are you?", parent: str | None = None, **fields: Any
) -> Any:
    body = {"parent_id": parent, "content": content, "params": {"max_tokens": 6, "temperature": 0}} | fields
    response = client.post(f"/api/chats/{chat}/messages", json=body)
    assert response.status_code == 201, response.text
    return response.json()


def follow(client: Client, chat: str, after: int = 0) -> list[tuple[int, dict[str, Any]]]:
    """All events until the stream ends."""
    found, number = [], 0
    with client.stream("GET", f"/api/chats/{chat}/events?after={after}") as response:
        for line in response.iter_lines():
            if line.startswith("id: "):
                number = int(line[4:])
            elif line.startswith("data: "):
                found.append((number, json.loads(line[6:])))
    return found


def messages(client: Client, chat: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get(f"/api/chats/{chat}").json()["messages"]
    return found


def test_state_tells_what_the_page_shows(client: Client) -> None:
    state = client.get("/api/state").json()
    model = state["models"][0]
    assert state["default_model"] == model["id"] == "tiny" and set(state["more_models_hint"]) == {
        "en",
        "ja",
        "zh",
    }
    assert model["thinking"] == "native" and model["context"] == 2048 and model["loaded"]
    assert 0 < model["parameters_active"] < model["parameters"] and model["size_bytes"] > 0
    assert client.get("/api/models/tiny").json()["status"] == "ready"
    assert client.post("/api/models/tiny/load", json={}).status_code == 202
    assert client.get("/api/models/nope").status_code == 404


def test_an_answer_is_numbered_events_and_then_a_row(client: Client) -> None:
    chat = new_chat(client)
    made = send(client, chat, "Who are you?\nsecond line", thinking="off")
    answer = made["assistant"]["id"]
    events = follow(client, chat)
    numbers = [number for number, _ in events]
    assert numbers == sorted(set(numbers)) and {event["message"] for _, event in events[:-1]} == {answer}
    last = events[-1][1]
    text = "".join(event["text"] for _, event in events if event["type"] == "content")
    assert last["type"] == "done" and last["message"] == messages(client, chat)[1]
    row = last["message"]
    assert (row["content"], row["status"], row["parent_id"]) == (text, "length", made["user"]["id"])
    waits = {"queue_seconds", "prompt_seconds", "first_token_seconds", "decode_seconds"}
    assert set(row["timings"]) == {*waits, "draft_gain"}
    assert row["usage"]["completion_tokens"] == 6 and row["cost"]["usd"] >= 0 and row["model"] == "tiny"
    assert client.get(f"/api/chats/{chat}").json()["title"] == "Who are you?"
    assert client.get(f"/api/chats/{chat}/events?after={numbers[-1]}").status_code == 204


def test_thoughts_are_apart_and_timed(client: Client) -> None:
    """C47, C62: thoughts that use up the room: no content, the thoughts are kept, and the status says so."""
    chat = new_chat(client)
    send(client, chat, thinking="high", params={"max_tokens": 8, "temperature": 0})
    kinds = {event["type"] for _, event in follow(client, chat)}
    row = messages(client, chat)[1]
    assert "reasoning" in kinds and "content" not in kinds
    assert row["status"] == "length" and row["content"] == "" and row["reasoning"]
    assert row["reasoning_tokens"] == 8 and row["thinking_seconds"] >= 0


def test_reload_in_mid_answer_loses_nothing(client: Client) -> None:
    """A reader goes away, another comes with the number it saw last, a third from the start: all have the same text."""
    chat = new_chat(client)
    send(client, chat, thinking="off", params={"max_tokens": 60, "temperature": 0})
    seen, number = "", 0
    with client.stream("GET", f"/api/chats/{chat}/events") as response:
        for line in response.iter_lines():
            if line.startswith("id: "):
                number = int(line[4:])
            elif line.startswith("data: ") and json.loads(line[6:])["type"] == "content":
                seen += json.loads(line[6:])["text"]
                if len(seen) > 5:
                    break
    snapshot = client.get(f"/api/chats/{chat}").json()
    held = snapshot["messages"][1]["content"]
    rest = "".join(
        e["text"] for _, e in follow(client, chat, snapshot["last_event"]) if e["type"] == "content"
    )
    whole = messages(client, chat)[1]["content"]
    assert held + rest == whole and held.startswith(seen)
    again = "".join(e["text"] for _, e in follow(client, chat) if e["type"] == "content")
    assert again == whole
    headers = {"last-event-id": str(number)}
    with client.stream("GET", f"/api/chats/{chat}/events?after=0", headers=headers) as response:
        lines = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]
    assert seen + "".join(e["text"] for e in lines if e["type"] == "content") == whole


def test_stop_keeps_the_text_and_the_next_question_works(client: Client) -> None:
    """C26, stopped before and after the first token."""
    chat = new_chat(client)
    with held(50):
        made = send(client, chat, params={"max_tokens": 1500}, thinking="off")
        for _ in range(200):
            if messages(client, chat)[1]["content"]:
                break
            time.sleep(0.02)
        stop = f"/api/chats/{chat}/messages/{made['assistant']['id']}/stop"
        assert client.post(stop, json={}).json() == {"stopped": True}
    last = follow(client, chat)[-1][1]
    assert last["type"] == "done" and last["message"]["status"] == "stopped" and last["message"]["content"]
    assert client.post(stop, json={}).json() == {"stopped": False}
    second = send(client, chat, "again", parent=made["assistant"]["id"], params={"max_tokens": 1500})
    client.post(f"/api/chats/{chat}/messages/{second['assistant']['id']}/stop", json={})
    follow(client, chat)
    third = send(client, chat, "and again", parent=second["assistant"]["id"])
    assert follow(client, chat)[-1][1]["message"]["status"] in ("done", "length")
    assert third["assistant"]["parent_id"] == third["user"]["id"]


def test_nobody_answers_below_a_growing_text(client: Client) -> None:
    chat = new_chat(client)
    with held(1):
        made = send(client, chat, params={"max_tokens": 1500}, thinking="off")
        body = {"parent_id": made["assistant"]["id"], "content": "x"}
        assert client.post(f"/api/chats/{chat}/messages", json=body).status_code == 409
        assert client.delete(f"/api/chats/{chat}").status_code == 204  # ends the answer too
    assert client.get(f"/api/chats/{chat}").status_code == 404


def test_edit_and_regenerate_make_siblings(client: Client) -> None:
    chat = new_chat(client)
    first = send(client, chat, "first")
    follow(client, chat)
    answer = first["assistant"]["id"]
    again = client.post(f"/api/chats/{chat}/messages/{answer}/regenerate", json={"params": {"max_tokens": 2}})
    assert again.status_code == 201 and again.json()["assistant"]["parent_id"] == first["user"]["id"]
    follow(client, chat)
    edited = send(client, chat, "first, edited", parent=first["user"]["parent_id"])
    follow(client, chat)
    tree = {message["id"]: message["parent_id"] for message in messages(client, chat)}
    assert tree[edited["user"]["id"]] is None and len(tree) == 5
    user = first["user"]["id"]
    assert client.post(f"/api/chats/{chat}/messages/{user}/regenerate", json={}).status_code == 400


def test_history_goes_to_the_model_with_the_persons_own_edits(client: Client) -> None:
    chat = new_chat(client)
    made = send(client, chat, "hi")
    follow(client, chat)
    plain = send(client, chat, "x", parent=made["assistant"]["id"])
    follow(client, chat)
    rated = {
        "value": -1,
        "edited": "a much longer answer than the model gave, in many words",
        "note": "too short",
    }
    row = client.post(f"/api/chats/{chat}/messages/{made['assistant']['id']}/feedback", json=rated).json()
    assert (row["feedback"], row["edited"]) == (-1, rated["edited"])
    longer = send(client, chat, "x", parent=made["assistant"]["id"])
    follow(client, chat)
    tokens = {m["id"]: m["usage"]["prompt_tokens"] for m in messages(client, chat) if m["usage"]}
    assert tokens[longer["assistant"]["id"]] > tokens[plain["assistant"]["id"]]


def test_two_answers_of_one_chat_at_once(client: Client) -> None:
    chat = new_chat(client)
    params = {"max_tokens": 40, "temperature": 0}
    made = [send(client, chat, text, params=params, thinking="off") for text in ("a", "b")]
    events = follow(client, chat)
    done = {event["message"]["id"] for _, event in events if event["type"] == "done"}
    assert done == {each["assistant"]["id"] for each in made}


def test_errors_stay_in_the_thread(client: Client) -> None:
    chat = new_chat(client)
    made = send(client, chat, "sea " * 3000)
    last = follow(client, chat)[-1][1]
    assert last["type"] == "error" and last["message"] == made["assistant"]["id"] and "2048" in last["error"]
    row = messages(client, chat)[1]
    assert row["status"] == "error" and row["error"] == last["error"]


@pytest.mark.parametrize(("method", "path", "body", "status"), [
    ("POST", "/api/chats", {"titel": "x"}, 400), ("POST", "/api/chats", {"model": "nope"}, 404),
    ("POST", "/api/chats", {"title": "x" * 301}, 400), ("PATCH", "/api/chats/{chat}", {"title": 5}, 400),
    ("POST", "/api/chats/{chat}/messages", {"content": " "}, 400), ("POST", "/api/chats/{chat}/messages", {}, 400),
    ("POST", "/api/chats/{chat}/messages", {"content": "x", "parent_id": "1" * 32}, 404),
    ("POST", "/api/chats/{chat}/messages", {"content": "x", "thinking": "banana"}, 400),
    ("POST", "/api/chats/{chat}/messages", {"content": "x", "params": {"top_p": 2}}, 400),
    ("POST", "/api/chats/{chat}/messages", {"content": "x", "model": "../../etc/passwd"}, 404),
    ("GET", "/api/chats?limit=x", None, 400), ("GET", "/api/chats/{chat}/events?after=-1", None, 400),
    ("PUT", "/api/chats", {}, 405), ("GET", "/api/nothing", None, 404),
])  # fmt: skip
def test_refusals_have_the_one_shape(client: Client, method: str, path: str, body: Any, status: int) -> None:
    response = client.request(method, path.format(chat=new_chat(client)), json=body)
    assert response.status_code == status, response.text
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_rename_search_delete_restore(client: Client) -> None:
    chat = new_chat(client)
    send(client, chat, "鯨油とは何？")  # words that the model has not learnt: its other answers lack them
    follow(client, chat)
    assert client.get("/api/chats", params={"q": "鯨油"}).json()["chats"][0]["id"] == chat
    assert client.patch(f"/api/chats/{chat}", json={"title": "<b>数</b>"}).json()["title"] == "<b>数</b>"
    assert client.delete(f"/api/chats/{chat}").status_code == 204
    assert client.get("/api/chats", params={"q": "鯨油"}).json()["chats"] == []
    assert client.post(f"/api/chats/{chat}/restore", json={}).json()["id"] == chat
    page = client.get("/api/chats", params={"limit": 1}).json()["chats"]
    older = client.get("/api/chats", params={"limit": 200, "before": page[0]["updated_at"]}).json()["chats"]
    assert page[0]["id"] not in {each["id"] for each in older}


def test_repaired_history() -> None:
    """C26: an answer stopped before its first word leaves two user turns in a row; a strict template takes one."""

    def turns(*pairs: tuple[str, str]) -> list[Message]:
        return [Message(role=role, content=content) for role, content in pairs]

    broken = turns(
        ("system", "s"), ("user", "a"), ("assistant", ""), ("user", "b"), ("assistant", "c"), ("user", "d")
    )
    assert repaired(broken) == turns(("system", "s"), ("user", "a\n\nb"), ("assistant", "c"), ("user", "d"))


def test_a_new_server_finds_the_old_chats(client: Client, start_server: Any, tmp_path: Path) -> None:
    """The files as they are in mid-answer are what a kill -9 leaves."""
    first = tmp_path / "first"
    url = start_server(folder=first)
    headers = {"sec-fetch-site": "same-origin"}
    with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=30) as page:
        chat = new_chat(page)
        with held(50):
            made = send(page, chat, params={"max_tokens": 1900, "temperature": 0}, thinking="off")
            disk = contextlib.closing(sqlite3.connect(f"file:{first}/chats.sqlite?mode=ro", uri=True))
            query, until = "SELECT content FROM messages WHERE id = ?", time.monotonic() + 60
            with disk as db:  # the text so far goes there every second
                while not db.execute(query, (made["assistant"]["id"],)).fetchone()[0]:
                    assert time.monotonic() < until, "nothing is stored before the answer's end"
                    time.sleep(0.05)
            shutil.copytree(first, tmp_path / "killed")
            answer = messages(page, chat)[1]
            assert answer["status"] == "writing"
            page.delete(f"/api/chats/{chat}")
    with httpx.Client(
        base_url=start_server(folder=tmp_path / "killed"), headers=headers, trust_env=False
    ) as page:
        row = messages(page, chat)[1]
        assert row["status"] == "stopped" and row["content"] and answer["content"].startswith(row["content"])
