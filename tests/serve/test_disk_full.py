"""The disk is full while an answer is written: SQLite itself refuses, people are told, and nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.serve.conftest import running, wait_for
from tests.serve.held import held

from shoal.cli.serve import card_of, open_spec
from shoal.serve import generation
from shoal.serve.app import create_app
from shoal.serve.database import DiskFull
from shoal.serve.models import ModelTable
from shoal.serve.settings import ServerSettings
from shoal.serve.store import Store


def fill(store: Store) -> None:
    """No page may be added any more, and the room in those that are there is used up."""
    other = store.create_chat("somebody else")["id"]
    with store._lock:
        (pages,) = store._db.execute("PRAGMA page_count").fetchone()
        store._db.execute(f"PRAGMA max_page_count = {pages}")
    for size in (2_000, 200, 1):
        with pytest.raises(DiskFull):
            for _ in range(1000):
                store.add_message("somebody else", other, parent_id=None, role="user", content="x" * size)


def test_a_full_disk_loses_no_answer(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "STORE_AGAIN_SECONDS", 0.1)
    monkeypatch.setattr(generation, "FLUSH_SECONDS", 0.1)
    store = Store(tmp_path / "chats.sqlite")
    table = ModelTable([card_of("tiny", tiny_model)], open_spec)
    app = create_app(ServerSettings(), table, store)
    with running(app) as url, httpx.Client(base_url=url, headers={"sec-fetch-site": "same-origin"}, timeout=60,
                                           trust_env=False) as page:  # fmt: skip
        chat = page.post("/api/chats", json={}).json()["id"]

        def answer() -> dict[str, Any]:
            return dict(page.get(f"/api/chats/{chat}").json()["messages"][1])

        with held(40):  # greedy: a random network then never ends its answer
            ask = {"content": "hi", "params": {"temperature": 0, "max_tokens": 200}}
            assert page.post(f"/api/chats/{chat}/messages", json=ask).status_code == 201
            wait_for(lambda: len(store.messages("local", chat)[1]["content"]) > 20, 120)
            fill(store)
        kept = wait_for(lambda: (now := answer())["status"] == "error" and now, 120)
        assert "disk is full" in kept["error"] and "memory" in kept["error"]
        assert len(kept["content"]) > 2 * len(store.messages("local", chat)[1]["content"]) > 0
        refused = page.post(f"/api/chats/{chat}/messages", json={"content": "more " * 2000})
        assert refused.status_code == 507 and refused.json()["error"]["code"] == "disk_full"
        assert "disk is full" in refused.json()["error"]["message"]
        assert page.get("/api/chats?q=hi").status_code == 200, "reading goes on"

        store._db.execute("PRAGMA max_page_count = 100000")
        done = wait_for(lambda: (now := answer())["status"] == "length" and now, 120)
        assert (
            done["content"] == kept["content"]
            and done["error"] is None
            and done["usage"]["completion_tokens"] == 200
        )
    again = Store(tmp_path / "chats.sqlite")
    assert again.messages("local", chat)[1]["content"] == kept["content"]
    again.close()
