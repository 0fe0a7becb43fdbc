"""The page's further routes: continue, temporary, files, two models, tokens, import, library, PDF."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import httpx
import pytest
from tests.serve.held import held
from tests.serve.test_app_api import follow, messages, new_chat, send

from shoal.serve.app_api import with_files

Client = httpx.Client


def answered(client: Client, chat: str, **fields: Any) -> dict[str, Any]:
    send(client, chat, **fields)
    follow(client, chat)
    return messages(client, chat)[-1]


def test_a_cut_answer_goes_on_as_if_it_had_never_been_cut(client: Client) -> None:
    """Greedy: 6 tokens and 6 more are the 12 of one go; figures are summed."""
    whole_chat, chat = new_chat(client), new_chat(client)
    twelve = {"max_tokens": 12, "temperature": 0}
    whole = answered(client, whole_chat, thinking="off", params=twelve)
    half = answered(client, chat, thinking="off")
    assert half["status"] == "length" and whole["content"].startswith(half["content"])
    url = f"/api/chats/{chat}/messages/{half['id']}/continue"
    assert client.post(url, json={}).status_code == 202
    events = follow(client, chat)
    row = events[-1][1]["message"]
    assert row["content"] == whole["content"] == messages(client, chat)[1]["content"]
    assert (
        row["usage"]["completion_tokens"] == 12
        and row["usage"]["prompt_tokens"] == half["usage"]["prompt_tokens"]
    )
    assert row["cost"]["flops"] > half["cost"]["flops"]
    assert row["timings"]["decode_seconds"] >= half["timings"]["decode_seconds"]


def test_thoughts_that_were_cut_go_on(client: Client) -> None:
    chat, whole_chat = new_chat(client), new_chat(client)
    whole = answered(client, whole_chat, thinking="high", params={"max_tokens": 16, "temperature": 0})
    half = answered(client, chat, thinking="high", params={"max_tokens": 8, "temperature": 0})
    client.post(f"/api/chats/{chat}/messages/{half['id']}/continue", json={})
    row = follow(client, chat)[-1][1]["message"]
    assert row["reasoning"] == whole["reasoning"] and row["reasoning_tokens"] == 16 and row["content"] == ""
    assert row["thinking_seconds"] > half["thinking_seconds"]


def test_only_a_cut_answer_can_go_on(client: Client) -> None:
    chat = new_chat(client)
    with held(1):
        made = send(client, chat, params={"max_tokens": 1500}, thinking="off")
        for message in (made["user"]["id"], made["assistant"]["id"]):
            assert client.post(f"/api/chats/{chat}/messages/{message}/continue", json={}).status_code == 409
        client.delete(f"/api/chats/{chat}")


def test_a_temporary_chat_answers_and_leaves_nothing(client: Client) -> None:
    chat = client.post("/api/chats", json={"temporary": True}).json()
    row = answered(client, chat["id"], content="a word nobody else says: xyzzyq")
    assert chat["temporary"] and row["status"] == "length" and row["content"]
    assert client.get("/api/chats", params={"q": "xyzzyq"}).json()["chats"] == []
    assert chat["id"] not in {each["id"] for each in client.get("/api/chats").json()["chats"]}
    assert client.delete(f"/api/chats/{chat['id']}").status_code == 204
    assert client.get(f"/api/chats/{chat['id']}").status_code == 404


def test_settings_of_a_chat_reach_the_model(client: Client) -> None:
    chat = new_chat(client)
    settings = {"system": "You are a pirate. " * 20, "temperature": 0, "max_tokens": 3, "persona": "Pirate"}
    assert client.patch(f"/api/chats/{chat}", json={"settings": settings}).json()["settings"] == settings
    first = answered(client, chat, params=None)
    assert first["usage"]["completion_tokens"] == 3 and first["params"]["persona"] == "Pirate"
    plain = answered(client, new_chat(client), params={"max_tokens": 3})
    assert first["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"] + 40
    assert client.patch(f"/api/chats/{chat}", json={"pinned": True}).json()["pinned"]
    assert client.get("/api/chats").json()["chats"][0]["id"] == chat
    assert client.patch(f"/api/chats/{chat}", json={"pinned": False, "settings": {}}).json()["settings"] == {}
    assert client.patch(f"/api/chats/{chat}", json={"settings": {"top_k": -1}}).status_code == 400


def test_files_stand_before_the_question_and_stay_files(client: Client) -> None:
    chat, files = new_chat(client), [{"name": "a.py", "text": "x = 1"}, {"name": "b.md", "text": "# B"}]
    row = answered(client, chat, content="", files=files)
    question = messages(client, chat)[0]
    assert (question["content"], question["files"]) == ("", files)
    assert client.get(f"/api/chats/{chat}").json()["title"] == "a.py"
    (shown,) = with_files([question | {"content": "why?"}])
    assert shown["content"] == (
        "[file name]: a.py\n[file content begin]\nx = 1\n[file content end]\n"
        "[file name]: b.md\n[file content begin]\n# B\n[file content end]\nwhy?"
    )
    plain = answered(client, new_chat(client))
    assert row["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"] + 20


def test_two_models_answer_and_one_is_chosen(client: Client) -> None:
    chat = new_chat(client)
    made = send(client, chat, beside="tiny", thinking="off")
    first, second = made["assistants"]
    follow(client, chat)
    rows = messages(client, chat)
    assert [row["params"]["beside"] for row in rows[1:]] == [True, True]
    assert {row["parent_id"] for row in rows[1:]} == {made["user"]["id"]}
    url = f"/api/chats/{chat}/messages/{second['id']}/prefer"
    chosen = client.post(url, json={"over": first["id"]}).json()["messages"]
    assert [row["preference"] for row in chosen] == [0, -1, 1]
    assert client.post(url, json={"over": made["user"]["id"]}).status_code == 404


def test_every_token_of_an_answer_with_its_alternatives(client: Client) -> None:
    chat = new_chat(client)
    row = answered(client, chat, thinking="off")
    tokens = client.post(f"/api/chats/{chat}/messages/{row['id']}/tokens", json={}).json()["tokens"]
    assert "".join(token["text"] for token in tokens).encode() and len(tokens) >= 1
    if all("\\x" not in token["text"] for token in tokens):
        assert "".join(token["text"] for token in tokens) == row["content"]
    for token in tokens:
        chances = [math.exp(logprob) for _, logprob in token["top"]]
        assert chances == sorted(chances, reverse=True) and 0 < sum(chances) <= 1.0001
        assert token["logprob"] <= token["top"][0][1]
    question = messages(client, chat)[0]["id"]
    assert client.post(f"/api/chats/{chat}/messages/{question}/tokens", json={}).status_code == 409


def test_a_chat_from_elsewhere_becomes_one_of_ours(client: Client) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "q", "parent_id": None, "role": "user", "content": "from elsewhere"},
        {"id": "x", "parent_id": "q", "role": "assistant", "content": "one", "model": "gpt-9"},
        {"id": "y", "parent_id": "q", "role": "assistant", "content": "two", "feedback": 1, "note": "good"},
    ]
    body = {"title": "Brought", "created_at": 1_600_000_000.5, "messages": rows}
    first, second = (client.post("/api/imports", json=body) for _ in range(2))
    assert first.status_code == 201 and first.json()["id"] != second.json()["id"]
    found = client.get(f"/api/chats/{first.json()['id']}").json()
    assert (found["title"], found["created_at"]) == ("Brought", 1_600_000_000.5)
    question, one, two = found["messages"]
    assert question["content"] == "from elsewhere" and one["parent_id"] == two["parent_id"] == question["id"]
    assert (one["model"], two["feedback"], two["note"], two["status"]) == ("gpt-9", 1, "good", "done")
    assert client.get("/api/chats", params={"q": "from elsewhere"}).json()["chats"]
    assert answered(client, found["id"], parent=one["id"])["content"]  # and one can go on
    orphan = [{"id": "x", "parent_id": "q", "role": "assistant"}, rows[0]]
    assert client.post("/api/imports", json={"messages": orphan}).status_code == 400


def test_the_library_keeps_prompts_and_personas(client: Client) -> None:
    entry = {"kind": "prompt", "name": "Résumé", "text": "Summarise {{text}}"}
    made = client.post("/api/library", json=entry).json()["id"]
    assert entry | {"id": made} in client.get("/api/library").json()["entries"]
    assert client.post(f"/api/library/{made}", json=entry | {"text": "other"}).status_code == 200
    assert client.post(f"/api/library/{made}", json=entry | {"kind": "persona"}).status_code == 404
    assert [e["text"] for e in client.get("/api/library").json()["entries"] if e["id"] == made] == ["other"]
    assert client.delete(f"/api/library/{made}").status_code == 204
    assert client.delete(f"/api/library/{made}").status_code == 404


def pdf(*pages: str) -> str:
    """A PDF in base64 with a line of text per page, written by hand."""
    objects = ["<</Type/Catalog/Pages 2 0 R>>", "", "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
    kids = []
    for text in pages:
        stream = f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET"
        objects.append(f"<</Length {len(stream)}>>stream\n{stream}\nendstream")
        objects.append("<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 200]/Resources<</Font<</F1 3 0 R>>>>"
                       f"/Contents {len(objects)} 0 R>>")  # fmt: skip
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<</Type/Pages/Kids[{' '.join(kids)}]/Count {len(kids)}>>"
    out, offsets = io.BytesIO(b""), []
    out.write(b"%PDF-1.4\n")
    for number, each in enumerate(objects, 1):
        offsets.append(out.tell())
        out.write(f"{number} 0 obj{each}endobj\n".encode())
    start = out.tell()
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    out.write(f"xref\n0 {len(offsets) + 1}\n0000000000 65535 f \n{table}".encode())
    out.write(f"trailer<</Size {len(offsets) + 1}/Root 1 0 R>>\nstartxref\n{start}\n%%EOF".encode())
    return base64.b64encode(out.getvalue()).decode()


def test_the_text_of_a_pdf(client: Client) -> None:
    found = client.post("/api/pdf", json={"pdf": pdf("The first page", "The second")}).json()
    assert found == {"text": "The first page\n\nThe second", "pages": 2, "cut": False}


@pytest.mark.parametrize("data", [b"no pdf", b"%PDF-1.4 and then nothing of the kind"])
def test_what_is_no_pdf_is_refused(client: Client, data: bytes) -> None:
    assert client.post("/api/pdf", json={"pdf": base64.b64encode(data).decode()}).status_code == 400
    assert client.post("/api/pdf", json={"pdf": "%%%"}).status_code == 400
