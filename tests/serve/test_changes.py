"""What one tab does, the owner's other tabs and devices hear: once, of their own chats only, and also after a pause."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.apart import run_apart
from tests.serve.test_app_api import new_chat, send

from shoal.serve.changes import MAX_WATCHES, Changes
from shoal.serve.errors import ApiError
from shoal.serve.settings import ServerSettings, hash_key


@contextlib.contextmanager
def watching(client: httpx.Client, after: int = 0, **headers: str) -> Iterator[Iterator[dict[str, Any]]]:
    """The events of the stream, its first one included."""
    url = f"/api/changes?tab=watcher&after={after}"
    with client.stream("GET", url, headers=headers) as response:
        assert response.status_code == 200
        yield (json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: "))


def test_a_change_is_told_to_the_others_and_not_to_who_made_it(client: httpx.Client) -> None:
    with watching(client, client.get("/api/state").json()["last_change"]) as heard:
        assert next(heard) == {"missed": False}
        chat = new_chat(client)
        assert next(heard) == {"chats": [""]}
        mine = client.post("/api/chats", json={}, headers={"x-shoal-tab": "watcher"}).json()["id"]
        client.patch(f"/api/chats/{mine}", json={"title": "mine"}, headers={"x-shoal-tab": "watcher"})
        assert client.patch(f"/api/chats/{mine}", json={"title": 5}).status_code == 400  # nothing happened
        url = f"/api/chats/{chat}"
        client.patch(url, json={"title": "theirs"}, headers={"x-shoal-tab": "other"})
        assert next(heard) == {"chats": [chat]}  # and of "mine" nothing
        answer = send(client, chat)["assistant"]["id"]
        assert next(heard) == {"chats": [chat]}
        client.post(f"{url}/messages/{answer}/feedback", json={"value": 1})
        assert next(heard) == {"chats": [chat]}
        client.delete(url)
        assert next(heard) == {"chats": [chat]}


def test_who_comes_back_hears_whether_anything_was_missed(client: httpx.Client) -> None:
    before = client.get("/api/state").json()["last_change"]
    new_chat(client)
    last = client.get("/api/state").json()["last_change"]
    assert last > before
    for number, missed in ((before, True), (last, False), (0, True)):
        with watching(client, number) as heard:
            assert next(heard) == {"missed": missed}
    with watching(client, 0, **{"last-event-id": str(last)}) as heard:
        assert next(heard) == {"missed": False}


def test_owners_hear_nothing_of_each_other() -> None:
    """By the object itself: that a stream stays silent cannot be waited for."""

    async def scene() -> None:
        changes = Changes()
        ann, bob = (changes.watch(owner, "tab", changes.last(owner)) for owner in ("ann", "bob"))
        for stream in (ann, bob):
            assert (await anext(stream))[1] == {"missed": False}
        changes.tell("ann", "a")
        changes.tell("bob", "b")
        changes.tell("ann", "c")
        changes.tell("ann", "a")
        assert (await anext(ann))[1] == {"chats": ["a", "c"]}  # a slow reader: each chat once
        assert (await anext(bob))[1] == {"chats": ["b"]}
        waiting = asyncio.ensure_future(anext(bob))
        changes.tell("ann", "a")
        await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        more = [changes.watch("ann", "tab", 0) for _ in range(MAX_WATCHES)]
        for stream in more[1:]:
            await anext(stream)
        with pytest.raises(ApiError):
            await anext(more[0])
        for stream in (ann, bob, *more):
            await stream.aclose()
        assert not changes._watches

    run_apart(scene())


def test_a_key_is_asked_for(start_server: Any) -> None:
    url = start_server(ServerSettings(keys={"ann": hash_key("k" * 32)}))
    with httpx.Client(base_url=url, trust_env=False, headers={"sec-fetch-site": "same-origin"}) as http:
        assert http.get("/api/changes").status_code == 401
        http.headers["x-api-key"] = "k" * 32
        with watching(http) as heard:
            assert next(heard) == {"missed": True}
