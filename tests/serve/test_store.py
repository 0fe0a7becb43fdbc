"""The store: owners, the tree, search in any script, undo, restarts, and files it cannot use."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from pathlib import Path

import pytest

from shoal.errors import ShoalError
from shoal.serve.store import UNDO_SECONDS, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home" / "chats.sqlite")


def talk(store: Store, owner: str, *texts: str) -> tuple[str, list[str]]:
    """A chat of user and assistant turns in one line; its id and the messages' ids."""
    chat_id = store.create_chat(owner)["id"]
    ids: list[str] = []
    for number, text in enumerate(texts):
        role = "assistant" if number % 2 else "user"
        message = store.add_message(
            owner, chat_id, parent_id=ids[-1] if ids else None, role=role, content=text
        )
        assert message
        ids.append(message["id"])
    return chat_id, ids


@pytest.mark.parametrize(("query", "found"), [
    ("人口", True), ("口は", True), ("日本の人口", True), ("億", True), ("100%", True),
    ("snake_case", True), ("SNAKE", True),
    ("人口 億", True), ("%", True), ("大阪", False), ("snakeXcase", False), ('"', False), ("NEAR(", False),
    ("人口 大阪", False),
])  # fmt: skip
def test_search_finds_parts_of_words_in_any_script(store: Store, query: str, found: bool) -> None:
    """Two Japanese characters are a word; wildcards and FTS5's own syntax are plain text."""
    chat_id, _ = talk(store, "a", "日本の人口は？ snake_case is 100% fine", "一億二千万人です")
    talk(store, "a", "nothing here", "nor here")
    in_one_message = {"人口 億": False}.get(query, found)
    assert [chat["id"] for chat in store.chats("a", query=query)] == ([chat_id] if in_one_message else [])
    assert store.chats("b", query=query) == []


def test_search_shows_where_and_follows_deletion(store: Store) -> None:
    chat_id, _ = talk(store, "a", "x" * 100 + " the needle " + "y" * 100)
    snippet = store.chats("a", query="needle")[0]["snippet"]
    assert "needle" in snippet and snippet.startswith("…") and len(snippet) < 120
    store.change_chat("a", chat_id, title="Heuhaufen")
    assert store.chats("a", query="heuhau")[0]["id"] == chat_id
    store.delete_chat("a", chat_id)
    assert store.chats("a", query="needle") == [] == store.chats("a")
    assert store.restore_chat("a", chat_id)
    assert store.chats("a", query="needle")


def test_a_growing_answer_is_found_when_it_is_final(store: Store) -> None:
    chat_id, ids = talk(store, "a", "hello")
    answer = store.add_message("a", chat_id, parent_id=ids[0], role="assistant", status="queued")
    assert answer
    store.update_message("a", answer["id"], content="half of the ans", status="writing")
    store.update_message(
        "a", answer["id"], content="half of the answer", status="done", usage={"prompt_tokens": 3}
    )
    assert store.chats("a", query="the answer")
    assert store.messages("a", chat_id)[1]["usage"] == {"prompt_tokens": 3}
    store._db.execute(
        "INSERT INTO search (search) VALUES ('integrity-check')"
    )  # raises when index and texts differ


def test_the_path_is_one_branch_of_the_tree(store: Store) -> None:
    chat_id, ids = talk(store, "a", "q", "a1")
    other = store.add_message("a", chat_id, parent_id=ids[0], role="assistant", content="a2")
    assert other
    assert [m["content"] for m in store.path("a", chat_id, other["id"])] == ["q", "a2"]
    assert len(store.messages("a", chat_id)) == 3
    assert store.add_message("a", chat_id, parent_id="0" * 32, role="user", content="x") is None


def test_every_query_asks_for_the_owner(store: Store) -> None:
    chat_id, ids = talk(store, "a", "q", "answer")
    assert store.chat("b", chat_id) is None and store.messages("b", chat_id) == []
    assert store.message("b", chat_id, ids[0]) is None and store.path("b", chat_id, ids[1]) == []
    assert not store.change_chat("b", chat_id, title="x") and not store.delete_chat("b", chat_id)
    assert not store.update_message("b", ids[1], content="x")
    assert not store.add_feedback("b", chat_id, ids[1], 1, edited=None, note=None)
    assert store.add_message("b", chat_id, parent_id=None, role="user", content="x") is None
    store.delete_chat("a", chat_id)
    assert not store.restore_chat("b", chat_id) and store.restore_chat("a", chat_id)
    assert store.messages("a", chat_id)[1]["content"] == "answer"


def test_feedback_keeps_its_history_and_shows_the_latest(store: Store) -> None:
    chat_id, ids = talk(store, "a", "q", "answer")
    assert store.add_feedback("a", chat_id, ids[1], 1, edited=None, note=None)
    assert store.add_feedback("a", chat_id, ids[1], -1, edited="better", note="wrong year")
    message = store.messages("a", chat_id)[1]
    assert (message["feedback"], message["edited"], message["content"]) == (-1, "better", "answer")
    assert store._db.execute("SELECT count(*) FROM feedback").fetchone()[0] == 2


def test_a_restart_keeps_the_text_and_marks_it_stopped(tmp_path: Path) -> None:
    first = Store(tmp_path / "chats.sqlite")
    chat_id, ids = talk(first, "a", "q")
    answer = first.add_message("a", chat_id, parent_id=ids[0], role="assistant", status="queued")
    assert answer
    first.update_message("a", answer["id"], content="so far", status="writing")
    second = Store(tmp_path / "chats.sqlite")  # as after kill -9: nobody closed the first
    message = second.messages("a", chat_id)[1]
    assert (message["status"], message["content"]) == ("stopped", "so far") and second.chats(
        "a", query="so far"
    )


def test_deleted_chats_go_for_good_after_a_day(store: Store) -> None:
    chat_id, _ = talk(store, "a", "secret")
    store.delete_chat("a", chat_id)
    store._db.execute("UPDATE chats SET deleted_at = ?", (time.time() - UNDO_SECONDS - 1,))
    other, _ = talk(store, "a", "x")
    store.delete_chat("a", other)
    assert not store.restore_chat("a", chat_id)
    assert [row[0] for row in store._db.execute("SELECT content FROM messages")] == ["x"]


@pytest.mark.skipif(os.name != "posix", reason="rights of this kind exist on POSIX only")
def test_only_the_owner_of_the_home_can_read_it(store: Store, tmp_path: Path) -> None:
    assert stat.S_IMODE(os.stat(tmp_path / "home").st_mode) == 0o700
    assert stat.S_IMODE(os.stat(tmp_path / "home" / "chats.sqlite").st_mode) == 0o600


def test_files_that_cannot_be_used_are_named_and_left_alone(tmp_path: Path) -> None:
    broken = tmp_path / "broken.sqlite"
    broken.write_bytes(b"this is no database" * 100)
    with pytest.raises(ShoalError, match="broken"):
        Store(broken)
    assert broken.read_bytes() == b"this is no database" * 100
    newer = sqlite3.connect(tmp_path / "newer.sqlite")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(ShoalError, match="newer"):
        Store(tmp_path / "newer.sqlite")
    (tmp_path / "file").write_text("")
    with pytest.raises(ShoalError, match="folder"):
        Store(tmp_path / "file" / "chats.sqlite")


def test_temporary_chats_are_in_no_file_and_in_no_list(store: Store, tmp_path: Path) -> None:
    side = store.temporary
    chat_id, ids = talk(side, "a", "a very secret question", "and its answer")
    assert store.of(chat_id) is side is store.of(ids[0]) and store.of("0" * 32) is store
    assert store.chats("a") == [] == store.chats("a", query="secret")
    assert side.delete_chat("a", chat_id) and not side.restore_chat("a", chat_id)
    assert side._db.execute("SELECT count(*) FROM messages").fetchone()[0] == 0
    assert not any(b"secret" in path.read_bytes() for path in (tmp_path / "home").iterdir())


def test_pinned_chats_come_first_and_only_once(store: Store) -> None:
    first, second, third = (talk(store, "a", name)[0] for name in "xyz")
    assert store.change_chat("a", first, pinned=True, settings={"system": "be brief"})
    page = store.chats("a", limit=1)
    assert [chat["id"] for chat in page] == [first, third] and page[0]["settings"] == {"system": "be brief"}
    older = store.chats("a", limit=5, before=page[-1]["updated_at"])
    assert [chat["id"] for chat in older] == [second]


def test_a_preference_is_between_two_answers_to_one_question(store: Store) -> None:
    chat_id, ids = talk(store, "a", "q", "a1", "q2", "a3")
    other = store.add_message("a", chat_id, parent_id=ids[0], role="assistant", content="a2")
    assert other
    assert store.add_preference("a", chat_id, ids[1], other["id"])
    assert store.add_preference("a", chat_id, other["id"], ids[1])  # a change of mind
    values = {m["content"]: m["preference"] for m in store.messages("a", chat_id)}
    assert values == {"q": 0, "a1": -1, "q2": 0, "a3": 0, "a2": 1}
    for chosen, rejected in ((ids[1], ids[3]), (ids[1], ids[1]), (ids[0], ids[1]), (ids[1], "0" * 32)):
        assert not store.add_preference("a", chat_id, chosen, rejected)
    assert not store.add_preference("b", chat_id, ids[1], other["id"])


def test_an_answer_that_is_continued_is_found_whole(store: Store) -> None:
    chat_id, ids = talk(store, "a", "q", "the first half")
    store.update_message("a", ids[1], status="queued")
    assert store.chats("a", query="first half") == []
    store.update_message("a", ids[1], content="the first half and the rest", status="done")
    assert [chat["id"] for chat in store.chats("a", query="half and the")] == [chat_id]
    store._db.execute("INSERT INTO search (search) VALUES ('integrity-check')")
