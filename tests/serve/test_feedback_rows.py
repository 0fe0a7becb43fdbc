"""Thumbs, edits and choices become rows that the data readers and trainers take; nobody sees another's chats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.data.sources import documents
from shoal.data.types import Conversation
from shoal.serve.feedback_rows import rows
from shoal.serve.store import Store


def add(store: Store, chat: str, parent: str | None, role: str, content: str, **more: Any) -> str:
    message = store.add_message("local", chat, parent_id=parent, role=role, content=content)
    assert message is not None
    store.update_message("local", message["id"], status="done", **more)
    return str(message["id"])


@pytest.fixture
def store(home: Path) -> Store:
    """One chat: a first question with two answers (one edited), then a second one with three."""
    store = Store(home / "chats.sqlite")
    chat = store.create_chat("local")["id"]
    asked = add(store, chat, None, "user", "Why is the sky blue?")
    system = {"params": {"system": "Be brief."}}
    first = add(store, chat, asked, "assistant", "It is.", reasoning="Hmm.", **system)
    store.add_feedback("local", chat, first, -1, edited="Air scatters blue light most.", note=None)
    again = add(store, chat, first, "user", "And at night?")
    good = add(store, chat, again, "assistant", "No sun, no light.", reasoning="Think.")
    bad = add(store, chat, again, "assistant", "Because.")
    other = add(store, chat, again, "assistant", "Stars.")
    store.add_feedback("local", chat, good, 1, edited=None, note=None)
    store.add_feedback("local", chat, bad, -1, edited=None, note=None)
    store.add_preference("local", chat, other, bad)
    secret = store.create_chat("somebody")["id"]
    theirs = store.add_message("somebody", secret, parent_id=None, role="assistant", content="secret")
    assert theirs
    store.add_feedback("somebody", secret, theirs["id"], 1, edited=None, note=None)
    return store


def test_edits_and_thumbs_up_are_examples(store: Store) -> None:
    found = list(rows(store, "local", "sft"))
    assert found[0]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why is the sky blue?"},
        {"role": "assistant", "content": "Air scatters blue light most."},
    ]
    assert found[1]["messages"][1]["content"] == "Air scatters blue light most.", (
        "history is as people left it"
    )
    assert found[1]["messages"][-1] == {
        "role": "assistant", "content": "No sun, no light.", "reasoning_content": "Think.",
    }  # fmt: skip
    assert len(found) == 2


def test_pairs_from_edits_choices_and_thumbs(store: Store) -> None:
    pairs = [
        (r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in rows(store, "local", "preference")
    ]
    assert sorted(pairs) == sorted(
        [
            ("Air scatters blue light most.", "It is."),
            ("No sun, no light.", "Because."),
            ("Stars.", "Because."),
        ]
    )


def test_rewards(store: Store) -> None:
    found = {r["completion"]: r["reward"] for r in rows(store, "local", "reward")}
    assert found == {"It is.": 0.0, "No sun, no light.": 1.0, "Because.": 0.0}


def test_the_command_writes_files_that_training_reads(store: Store, tmp_path: Path) -> None:
    store.close()
    target = tmp_path / "mine.jsonl"
    result = CliRunner().invoke(app, ["data", "from-chats", str(target), "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout)["rows"] == 2
    examples = list(documents(target))
    assert all(isinstance(e, Conversation) and e.messages[-1].role == "assistant" for e in examples)
    assert "secret" not in target.read_text()
    again = CliRunner().invoke(app, ["data", "from-chats", str(target)])
    assert again.exit_code == 1 and "exists" in str(again.exception)
    pairs = tmp_path / "pairs.jsonl"
    assert CliRunner().invoke(app, ["data", "from-chats", str(pairs), "--kind", "preference"]).exit_code == 0
    assert len(pairs.read_text().splitlines()) == 3
    empty = CliRunner().invoke(app, ["data", "from-chats", str(tmp_path / "x"), "--owner", "nobody"])
    assert empty.exit_code == 1 and "no answer gives a row" in str(empty.exception)
