"""A small team: signing in, keys and their limits, the admin; and that no route reaches what is another's."""

from __future__ import annotations

import functools
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.serve.conftest import running, wait_for
from tests.serve.held import held
from tests.serve.test_security import CHAT, OPEN, hi, routes
from tests.serve.test_tls import no_models

from shoal.errors import ShoalError
from shoal.serve import accounts as accounts_module
from shoal.serve.accounts import IDLE_SECONDS, SESSION_SECONDS, Accounts, hash_password, password_fits
from shoal.serve.app import create_app
from shoal.serve.database import new_id
from shoal.serve.settings import ServerSettings
from shoal.serve.store import Store

PASSWORDS = {"ann": "ann's four odd words", "bob": "ボブの合言葉は秘密です"}
PAGE = {"sec-fetch-site": "same-origin"}
Team = tuple[str, Path]


@pytest.fixture(scope="module", autouse=True)
def quick_hashes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounts_module, "_SCRYPT", (4, 8, 1))
        yield


@pytest.fixture(scope="module")
def team(start_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Team:
    """A server with an admin, ann, and a user, bob; and its file. They came while it ran."""
    folder = tmp_path_factory.mktemp("team")
    url = start_server(folder=folder)
    alone = httpx.Client(base_url=url, headers=PAGE, trust_env=False, timeout=30)
    early = alone.post("/api/chats", json={"title": "from before"})
    assert early.status_code == 201 and alone.get("/api/session").json()["way"] == "open"
    place = folder / "chats.sqlite"
    with opened(place) as accounts:
        with pytest.raises(ShoalError, match="--admin"):
            accounts.add_user("bob", PASSWORDS["bob"], admin=False)
        accounts.add_user("Ann", PASSWORDS["ann"], admin=True)
        accounts.add_user("bob", PASSWORDS["bob"], admin=False)
        with pytest.raises(ShoalError, match="already"):
            accounts.add_user("BOB", PASSWORDS["bob"], admin=False)
    assert alone.get("/api/chats").status_code == 401
    alone.close()
    return url, place


class opened(Accounts):
    def __enter__(self) -> Accounts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


until = functools.partial(wait_for, seconds=10.0)
Open = Callable[..., httpx.Client]


@pytest.fixture
def sign_in(team: Team) -> Iterator[Open]:
    """Clients that look like the page of someone who has signed in."""
    clients: list[httpx.Client] = []

    def make(name: str | None, **headers: str) -> httpx.Client:
        client = httpx.Client(base_url=team[0], headers=PAGE | headers, trust_env=False, timeout=30)
        clients.append(client)
        if name:
            answer = client.post("/api/session", json={"name": name, "password": PASSWORDS[name]})
            assert answer.status_code == 204, answer.text
        return client

    yield make
    for client in clients:
        client.close()


def new_key(client: httpx.Client, **limits: int) -> tuple[str, str]:
    made = client.post("/api/account/keys", json={"name": "a script"} | limits)
    assert made.status_code == 201, made.text
    return made.json()["id"], made.json()["key"]


# ---- signing in


def test_a_stranger_sees_the_sign_in_and_nothing_else(team: Team) -> None:
    with httpx.Client(base_url=team[0], headers={"sec-fetch-site": "none"}, trust_env=False) as stranger:
        for method, path in routes():
            if path not in OPEN:
                answer = stranger.request(
                    method, path, content=b"{}", headers={"content-type": "application/json"}
                )
                assert answer.status_code == 401, (method, path)
        assert stranger.get("/").status_code == 200
        assert stranger.get("/api/session").json() == {"way": "password", "user": None, "signed_in": False}


def test_the_first_admin_keeps_what_was_written_before(sign_in: Open) -> None:
    assert "from before" in [chat["title"] for chat in sign_in("ann").get("/api/chats").json()["chats"]]
    assert "from before" not in sign_in("bob").get("/api/chats").text


def test_sign_in_and_out(sign_in: Open, team: Team) -> None:
    page = sign_in(None)
    answer = page.post("/api/session", json={"name": "ANN", "password": PASSWORDS["ann"]})
    cookie = answer.headers["set-cookie"].lower()
    assert (
        "httponly" in cookie
        and "samesite=strict" in cookie
        and "path=/api" in cookie
        and "secure" not in cookie
    )
    assert page.get("/api/session").json() == {
        "way": "password", "user": {"name": "ann", "admin": True}, "signed_in": True}  # fmt: skip
    assert page.post(CHAT, json=hi()).status_code == 401, "the cookie is the page's alone"
    foreign = page.post("/api/session", json={}, headers={"origin": "https://evil.example"})
    assert foreign.status_code == 403
    token = page.cookies["shoal_session"]
    assert token.encode() not in team[1].read_bytes() + Path(f"{team[1]}-wal").read_bytes()
    assert page.delete("/api/session").status_code == 204
    page.cookies.set("shoal_session", token, domain="127.0.0.1", path="/api")
    assert page.get("/api/chats").status_code == 401, "the session itself has ended, not only the cookie"


def test_wrong_names_and_passwords_look_the_same_and_are_slowed_down(sign_in: Open) -> None:
    page = sign_in(None)
    bodies = {
        page.post("/api/session", json={"name": name, "password": "x" * 12}).text
        for name in ("bob", "nobody", "local", "no name!")
    }
    assert len(bodies) == 1 and "wrong" in bodies.pop()
    answers = [
        page.post("/api/session", json={"name": "mallory", "password": f"guess number {i}"}) for i in range(7)
    ]
    assert [answer.status_code for answer in answers] == [401] * 5 + [429] * 2
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 61
    sign_in("ann")  # others come in


def test_a_session_ends_by_itself_and_with_the_password(sign_in: Open, team: Team) -> None:
    first, second = sign_in("bob"), sign_in("bob")
    with sqlite3.connect(team[1], isolation_level=None) as db:
        db.execute("UPDATE sessions SET used_at = used_at - ?", (IDLE_SECONDS + 1,))
        assert first.get("/api/chats").status_code == 401
        db.execute("UPDATE sessions SET used_at = ?", (time.time(),))
        assert first.get("/api/chats").status_code == 200
        db.execute("UPDATE sessions SET opened_at = opened_at - ?", (SESSION_SECONDS + 1,))
        assert first.get("/api/chats").status_code == 401
    db.close()
    first, second = sign_in("bob"), sign_in("bob")
    change = "/api/account/password"
    assert first.post(change, json={"old": "not it at all", "new": "another secret"}).status_code == 401
    assert first.post(change, json={"old": PASSWORDS["bob"], "new": "short"}).status_code == 400
    assert first.post(change, json={"old": PASSWORDS["bob"], "new": "another secret"}).status_code == 204
    assert first.get("/api/chats").status_code == 200 and second.get("/api/chats").status_code == 401
    back = {"old": "another secret", "new": PASSWORDS["bob"]}
    assert first.post(change, json=back).status_code == 204


def test_passwords_are_hashed_slowly() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounts_module, "_SCRYPT", (15, 8, 3))
        stored = hash_password("ﾊﾟｽﾜｰﾄﾞ for ever")
    assert stored.startswith("scrypt$15$8$3$")  # 32 MiB
    assert password_fits("パスワード for ever", stored), "the same letters, typed on another keyboard"
    assert not password_fits("パスワード for eve", stored) and not password_fits("", "md5$x")
    assert hash_password("the same words") != hash_password("the same words"), "each has its own salt"


def test_a_long_write_holds_up_no_sign_in(tmp_path: Path) -> None:
    """The door asks from the event loop: if a question waited for the write, nobody would get an answer."""
    place = tmp_path / "chats.sqlite"
    door = create_app(ServerSettings(), no_models(), Store(place))
    ann = door.accounts.add_user("ann", PASSWORDS["ann"], admin=True)
    _, key = door.accounts.add_key(ann.id, "a script")
    cookie = {"cookie": f"shoal_session={door.accounts.open_session(ann.id)}"}
    with running(door) as url, httpx.Client(base_url=url, headers=PAGE, trust_env=False, timeout=30) as page:
        with door.accounts._transaction() as db:
            db.execute("DELETE FROM audit")
            assert page.get("/api/account/keys", headers=cookie).status_code == 200
            assert page.get("/v1/models", headers={"x-api-key": key}).status_code == 200
            wrong = page.post("/api/session", json={"name": "ann", "password": "not hers"})
            assert wrong.status_code == 401


# ---- keys


def test_a_key_is_shown_once_and_ends_when_revoked(sign_in: Open, team: Team) -> None:
    bob, ann = sign_in("bob"), sign_in("ann")
    key_id, key = new_key(bob)
    assert key.startswith("sk-shoal-") and len(key) > 40
    assert (
        key not in bob.get("/api/account/keys").text
        and bob.get("/api/account/keys").json()["keys"][0]["id"] == key_id
    )
    assert key.encode() not in team[1].read_bytes() + Path(f"{team[1]}-wal").read_bytes()
    script = sign_in(None, authorization=f"Bearer {key}")
    assert script.post(CHAT, json=hi()).status_code == 200
    stolen = [script.post("/api/account/keys", json={"name": "more"}), script.get("/api/account/keys"),
              script.delete(f"/api/account/keys/{key_id}"),
              script.post("/api/account/password", json={"old": PASSWORDS["bob"], "new": "x" * 12})]  # fmt: skip
    assert [answer.status_code for answer in stolen] == [403] * 4
    assert ann.delete(f"/api/account/keys/{key_id}").status_code == 404
    assert bob.delete(f"/api/account/keys/{key_id}").status_code == 204
    assert script.post(CHAT, json=hi()).status_code == 401 == script.get("/api/chats").status_code


def test_a_key_has_its_tokens_a_day(sign_in: Open, team: Team) -> None:
    """Prompts and answers count, on the API and on the page; the next day it may go on."""
    bob = sign_in("bob")
    _, key = new_key(bob, tokens_a_day=5)
    script = sign_in(None, **{"x-api-key": key})
    first = script.post(CHAT, json=hi(max_tokens=2))
    spent = first.json()["usage"]["total_tokens"]
    assert first.status_code == 200 and spent >= 5
    for path, body in ((CHAT, hi()), ("/v1/messages", hi()), ("/v1/responses", {"input": "hi"}),
                       ("/v1/completions", {"prompt": "hi"}), ("/v1/embeddings", {"input": "hi"})):  # fmt: skip
        refused = script.post(path, json=body)
        assert refused.status_code == 429, path
        assert f"{spent} of 5 tokens" in refused.text and 0 < int(refused.headers["retry-after"]) <= 86_400
    chat = script.post("/api/chats", json={}).json()["id"]
    asked = script.post(f"/api/chats/{chat}/messages", json={"content": "hi"})
    assert asked.status_code == 429 and asked.json()["error"]["code"] == "tokens_a_day_limit"
    until(lambda: bob.get("/api/account/keys").json()["keys"][0]["used_today"] == spent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounts_module, "today", lambda: "2999-01-01")
        assert script.post(CHAT, json=hi(max_tokens=2)).status_code == 200
    assert sign_in(None, **{"x-api-key": new_key(bob)[1]}).post(CHAT, json=hi()).status_code == 200


def refusal(client: httpx.Client) -> httpx.Response:
    """The 429 that a chat gets now; an answer that begins instead is not waited for."""
    with client.stream("POST", CHAT, json=hi(stream=True)) as answer:
        assert answer.status_code == 429
        answer.read()
        return answer


def limited(ann: httpx.Client, name: str, **limits: int | None) -> dict[str, Any]:
    """Bob's row after ann, the admin, has given him limits."""
    users = "/api/admin/users"
    user_id = next(each["id"] for each in ann.get(users).json()["users"] if each["name"] == name)
    assert ann.patch(f"{users}/{user_id}", json=limits).status_code == 200
    return next(dict(each) for each in ann.get(users).json()["users"] if each["name"] == name)


def test_a_user_has_his_tokens_a_day_on_the_page_and_with_all_keys(sign_in: Open) -> None:
    ann, bob, script = sign_in("ann"), sign_in("bob"), sign_in(None)
    script.headers["x-api-key"] = new_key(bob)[1]
    chat = bob.post("/api/chats", json={}).json()["id"]
    on_page = f"/api/chats/{chat}/messages"
    before = limited(ann, "bob", tokens_a_day=10**9, parallel=100)["used_today"]
    spent = before + script.post(CHAT, json=hi(max_tokens=2)).json()["usage"]["total_tokens"]
    until(lambda: limited(ann, "bob")["used_today"] == spent)
    row = limited(ann, "bob", tokens_a_day=spent)
    assert (row["tokens_a_day"], row["parallel"]) == (spent, 100), "what is not given stays"
    script.headers["x-api-key"] = new_key(bob)[1]  # another key is no way out
    refused = [script.post(path, json=body) for path, body in (
        (CHAT, hi()), ("/v1/messages", hi()), ("/v1/responses", {"input": "hi"}),
        ("/v1/completions", {"prompt": "hi"}), ("/v1/embeddings", {"input": "hi"}))]  # fmt: skip
    refused.append(bob.post(on_page, json={"content": "hi"}))
    for answer in refused:
        assert answer.status_code == 429 and f"this user has used {spent} of {spent} tokens" in answer.text
        assert 0 < int(answer.headers["retry-after"]) <= 86_400
    assert refused[-1].json()["error"]["code"] == "tokens_a_day_limit"
    mine = bob.get("/api/account/usage").json()["limits"]
    assert mine == {"tokens_a_day": spent, "parallel": 100, "used_today": spent}
    anns = sign_in(None, **{"x-api-key": new_key(ann)[1]})
    assert anns.post(CHAT, json=hi(max_tokens=2)).status_code == 200, "hers are her own"
    assert limited(ann, "bob", tokens_a_day=None, parallel=None)["tokens_a_day"] is None
    assert script.post(CHAT, json=hi(max_tokens=2)).status_code == 200
    until(lambda: "user_limited" in ann.get("/api/admin/audit").text)
    for wrong in ({"parallel": 0}, {"tokens_a_day": "many"}):
        assert ann.patch(f"/api/admin/users/{row['id']}", json=wrong).status_code == 400


def test_a_user_has_his_answers_at_once_on_the_page_and_with_all_keys(sign_in: Open) -> None:
    ann, bob = sign_in("ann"), sign_in("bob")
    first, second = (sign_in(None, **{"x-api-key": new_key(bob)[1]}) for _ in range(2))
    chat = bob.post("/api/chats", json={}).json()["id"]
    on_page, question = f"/api/chats/{chat}/messages", {"content": "hi", "params": {"max_tokens": 2}}
    limited(ann, "bob", parallel=1)
    long = hi(max_tokens=500, stream=True, ignore_eos=True)
    with held(1), first.stream("POST", CHAT, json=long):
        refused = [refusal(second), bob.post(on_page, json=question)]
        anns = sign_in(None, **{"x-api-key": new_key(ann)[1]})
        with anns.stream("POST", CHAT, json=long) as hers:
            assert hers.status_code == 200
    for answer in refused:
        assert answer.status_code == 429 and answer.headers["retry-after"] == "2"
        assert answer.json()["error"]["code"] == "parallel_limit" and "this user may have 1" in answer.text
    until(lambda: second.post(CHAT, json=hi(max_tokens=1)).status_code == 200)

    def answers() -> list[dict[str, Any]]:
        return list(bob.get(f"/api/chats/{chat}").json()["messages"][1:])

    with held(1):  # two answers of one question: the first has the place
        beside = question | {"beside": "tiny"}
        until(lambda: bob.post(on_page, json=beside).status_code == 201)
        until(lambda: [each["status"] for each in answers()][1:] == ["error"])
    assert "this user may have 1" in answers()[1]["error"]
    until(lambda: answers()[0]["status"] in ("done", "length"))
    limited(ann, "bob", parallel=None)


def test_a_key_has_its_answers_at_once(sign_in: Open) -> None:
    key = new_key(sign_in("bob"), parallel=1)[1]
    script = sign_in(None, **{"x-api-key": key})
    long = hi(max_tokens=500, stream=True, ignore_eos=True)
    with held(1), script.stream("POST", CHAT, json=long):
        refused = refusal(script)
        chat = script.post("/api/chats", json={}).json()["id"]
        asked = script.post(f"/api/chats/{chat}/messages", json={"content": "hi"})
    assert refused.status_code == asked.status_code == 429
    assert refused.json()["error"]["code"] == "parallel_limit" and refused.headers["retry-after"]
    until(lambda: script.post(CHAT, json=hi()).status_code == 200)


# ---- nobody reaches what is another's

TEAM_ROUTES = ("/api/account/", "/api/admin/")


@pytest.fixture
def two(sign_in: Open) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    yield sign_in("ann"), sign_in("bob")


@pytest.mark.parametrize("way", ["session", "key"])
def test_no_route_reaches_what_is_anothers(
    two: tuple[httpx.Client, httpx.Client], sign_in: Open, way: str
) -> None:
    """Every route of the server with an id in its path is asked with the other's ids; one that is not here fails."""
    ann, bob = two
    made_key, _ = new_key(ann)
    if way == "key":
        bob = sign_in(None, authorization=f"Bearer {new_key(bob)[1]}")
    chat = ann.post("/api/chats", json={"title": "private"}).json()["id"]
    sent = {"parent_id": None, "content": "private question", "params": {"max_tokens": 2}}
    made = ann.post(f"/api/chats/{chat}/messages", json=sent | {"beside": "tiny"}).json()
    message, other = (each["id"] for each in made["assistants"])
    prompt = {"kind": "prompt", "name": "mine", "text": "private words"}
    entry = ann.post("/api/library", json=prompt).json()["id"]
    until(
        lambda: all(
            m["status"] in ("done", "length") for m in ann.get(f"/api/chats/{chat}").json()["messages"]
        )
    )
    before = ann.get(f"/api/chats/{chat}").json()
    user = next(each["id"] for each in ann.get("/api/admin/users").json()["users"] if each["name"] == "ann")

    mine, one = f"/api/chats/{chat}", f"/api/chats/{chat}/messages/{message}"
    table: list[tuple[str, str, Any]] = [
        ("GET", mine, None), ("PATCH", mine, {"title": "x"}), ("DELETE", mine, None), ("GET", f"{mine}/events", None),
        ("POST", f"{mine}/restore", {}), ("POST", f"{mine}/messages", sent), ("POST", f"{one}/regenerate", {}),
        ("POST", f"{one}/continue", {}), ("POST", f"{one}/stop", {}), ("POST", f"{one}/answer-now", {}),
        ("POST", f"{one}/feedback", {"value": -1}), ("POST", f"{one}/prefer", {"over": other}),
        ("POST", f"{one}/tokens", {}), ("POST", f"/api/library/{entry}", prompt),
        ("POST", f"{one}/results", {"results": [{"id": "call_1", "result": "x"}]}),
        ("DELETE", f"/api/library/{entry}", None), ("DELETE", f"/api/account/keys/{made_key}", None),
        ("PATCH", f"/api/admin/users/{user}", {"admin": False}), ("DELETE", f"/api/admin/users/{user}", None),
        ("DELETE", f"/api/model-jobs/{'0' * 32}", None),
    ]  # fmt: skip

    def without_ids(path: str) -> str:
        for real in (chat, entry, made_key, user):
            path = path.replace(real, "0" * 32)
        return path.replace(message, "1" * 32)

    asked = {(method, without_ids(path)) for method, path, _ in table}
    assert asked == {route for route in routes() if "0" * 32 in route[1]}, (
        "a route with an id is not in the table"
    )
    for method, path, body in table:
        refused = bob.request(method, path, json=body)
        # Keys never manage accounts, and only admins do others': 403 whatever the id is.
        of_admin = "/admin/" in path or "/model-jobs/" in path
        wanted = 403 if of_admin or (way == "key" and "/account/" in path) else 404
        assert refused.status_code == wanted, (method, path, refused.text)
        assert "private" not in refused.text
        assert bob.request(method, without_ids(path), json=body).text.split("request")[0] == (
            refused.text.split("request")[0]), "it can be told that it exists"  # fmt: skip
    assert ann.get(mine).json() == before, "something has changed"

    own = bob.post("/api/chats", json={}).json()["id"]
    stolen = [  # ids in bodies
        bob.post(f"/api/chats/{own}/messages", json=sent | {"parent_id": message}),
        bob.get(f"/api/chats/{own}/messages/{message}"),
        bob.post(f"/api/chats/{own}/messages/{message}/tokens", json={}),
    ]
    assert {answer.status_code for answer in stolen} == {404}
    for path in ("/api/chats", "/api/chats?q=private", "/api/library", "/api/account/usage"):
        assert "private" not in bob.get(path).text and chat not in bob.get(path).text
    assert ann.get("/api/chats?q=private").json()["chats"]


def test_only_the_admin_is_let_into_the_admins_routes(
    two: tuple[httpx.Client, httpx.Client], sign_in: Open
) -> None:
    ann, bob = two
    by_key = sign_in(None, authorization=f"Bearer {new_key(ann)[1]}")
    walked = [(method, path) for method, path in routes() if path.startswith(("/api/admin/", "/api/model-jobs"))
              or (method, path) == ("DELETE", "/api/models/tiny")]  # fmt: skip
    assert len(walked) >= 10
    for method, path in walked:
        for who in (bob, by_key):  # an admin's key is not an admin
            body = {"name": "eve", "admin": True} if method == "POST" else {"admin": True}
            assert who.request(method, path, json=None if method == "GET" else body).status_code == 403, (
                method,
                path,
            )
    assert "eve" not in ann.get("/api/admin/users").text


# ---- the admin


def test_the_admin_adds_and_removes_people(
    two: tuple[httpx.Client, httpx.Client], sign_in: Open, team: Team
) -> None:
    ann, _ = two
    made = ann.post("/api/admin/users", json={"name": "Carla"}).json()
    carla = sign_in(None)
    sign = {"name": "carla", "password": made["password"]}
    assert carla.post("/api/session", json=sign).status_code == 204
    _, key = new_key(carla)
    chat = carla.post("/api/chats", json={"title": "carla's"}).json()["id"]
    reset = ann.patch(f"/api/admin/users/{made['id']}", json={"new_password": True}).json()
    assert reset["password"] != made["password"] and carla.get("/api/chats").status_code == 401
    assert carla.post("/api/session", json=sign | {"password": reset["password"]}).status_code == 204
    assert ann.patch(f"/api/admin/users/{made['id']}", json={"admin": True}).status_code == 200
    assert carla.get("/api/admin/users").status_code == 200
    assert ann.patch(f"/api/admin/users/{made['id']}", json={"admin": False}).status_code == 200
    assert carla.get("/api/admin/users").status_code == 403
    me = next(each for each in ann.get("/api/admin/users").json()["users"] if each["name"] == "ann")
    assert ann.delete(f"/api/admin/users/{me['id']}").status_code == 409
    assert ann.delete(f"/api/admin/users/{made['id']}").status_code == 204
    assert carla.get("/api/chats").status_code == 401
    assert sign_in(None, **{"x-api-key": key}).post(CHAT, json=hi()).status_code == 401
    assert ann.patch(f"/api/admin/users/{me['id']}", json={"admin": False}).status_code == 400, (
        "an admin stays"
    )
    with sqlite3.connect(team[1]) as db:
        for table, column in (("chats", "id"), ("messages", "chat_id")):
            assert db.execute(f"SELECT count(*) FROM {table} WHERE {column} = ?", (chat,)).fetchone()[0] == 0
    db.close()
    again = ann.post("/api/admin/users", json={"name": "carla"}).json()
    assert again["id"] != made["id"], "whoever gets the name gets nothing of the other"
    assert ann.delete(f"/api/admin/users/{again['id']}").status_code == 204
    assert ann.post("/api/admin/users", json={"name": "no good name"}).status_code == 400
    wanted = ["user_added", "password_reset", "user_made_admin", "user_made_member", "user_removed"]

    def done() -> list[str]:
        log = ann.get("/api/admin/audit?limit=500").json()["entries"]
        return [each["action"] for each in reversed(log) if each["target"] == "carla"]

    until(lambda: done() == [*wanted, "user_added", "user_removed"])


def test_usage_is_booked_on_whoever_asked_also_when_he_left(sign_in: Open) -> None:
    ann, bob = sign_in("ann"), sign_in("bob")

    def used(who: httpx.Client) -> int:
        days = who.get("/api/account/usage").json()["days"]
        return sum(day["prompt_tokens"] + day["completion_tokens"] for day in days)

    key = new_key(bob)[1]
    script = sign_in(None, **{"x-api-key": key})
    anns, bobs = used(ann), used(bob)
    usage = script.post(CHAT, json=hi(max_tokens=3)).json()["usage"]
    until(lambda: used(bob) == bobs + usage["total_tokens"])
    with script.stream("POST", CHAT, json=hi(max_tokens=1500, stream=True, ignore_eos=True)) as response:
        next(response.iter_lines())  # and away
    until(lambda: used(bob) > bobs + usage["total_tokens"] + usage["prompt_tokens"])
    bobs = used(bob)
    chat = bob.post("/api/chats", json={}).json()["id"]
    bob.post(f"/api/chats/{chat}/messages", json={"content": "hi", "params": {"max_tokens": 2}})
    until(lambda: used(bob) > bobs)
    assert used(ann) == anns
    rows = {row["name"]: row for row in ann.get("/api/admin/usage").json()["users"]}
    mine = bob.get("/api/account/usage").json()
    assert rows["bob"]["completion_tokens"] == sum(day["completion_tokens"] for day in mine["days"])
    assert rows["bob"]["seconds"] > 0 and mine["models"][0]["name"] == "tiny"
    assert rows["bob"]["usd"] > 0 or rows["bob"]["unpriced"] == rows["bob"]["answers"]


def test_the_audit_log_tells_who_and_when_but_not_what(sign_in: Open) -> None:
    ann, bob = sign_in("ann"), sign_in("bob")
    for name in ("BOB", "secret-password-in-the-wrong-field"):
        bob.post("/api/session", json={"name": name, "password": "wrong-secret-word"})
    chat = bob.post("/api/chats", json={"title": "secret-title"}).json()["id"]
    bob.post(f"/api/chats/{chat}/messages", json={"content": "secret-question", "params": {"max_tokens": 2}})
    key_id, key = new_key(bob)
    bob.delete(f"/api/account/keys/{key_id}")
    bob.post("/api/account/exported", json={"chats": 3})
    bob.delete("/api/session")
    wanted = {"sign_in", "sign_in_failed", "key_made", "key_revoked", "exported", "sign_out"}

    def entries() -> list[dict[str, Any]]:
        return list(ann.get("/api/admin/audit?limit=500").json()["entries"])

    def all_told() -> list[dict[str, Any]]:
        """Entries are written a moment after the answer; those of tests before this one are there too."""
        found = entries()
        left = {each["action"]: each for each in reversed(found)}.get("sign_out", {}).get("name") == "bob"
        return found if left and wanted <= {each["action"] for each in found} else []

    log = until(all_told)
    assert [each["seq"] for each in log] == sorted((each["seq"] for each in log), reverse=True)
    out = next(each for each in log if each["action"] == "sign_out")
    assert out["name"] == "bob" and out["address"] == "127.0.0.1" and abs(out["at"] - time.time()) < 60
    assert set(out) == {"seq", "at", "name", "action", "target", "address"}
    failed = {each["target"] for each in log if each["action"] == "sign_in_failed"}
    assert {"bob", "(no such user)"} <= failed
    text = str(log)
    assert "secret" not in text.replace("secret_", "") and key not in text
    older = ann.get(f"/api/admin/audit?limit=1&before={out['seq']}").json()["entries"]
    assert len(older) == 1 and older[0]["seq"] < out["seq"]


# ---- the switch


def test_the_last_user_switches_accounts_off_again(tmp_path: Path) -> None:
    place = tmp_path / "chats.sqlite"
    store = Store(place)
    chat = store.create_chat("local", title="mine")["id"]
    with opened(place) as accounts:
        ann = accounts.add_user("ann", PASSWORDS["ann"], admin=True)
        bob = accounts.add_user("bob", PASSWORDS["bob"], admin=False)
        assert store.chat(ann.id, chat) and not store.chat("local", chat)
        for refused in (lambda: accounts.remove_user(ann.id), lambda: accounts.set_admin(ann.id, False)):
            with pytest.raises(ShoalError, match="admin"):
                refused()
        accounts.remove_user(bob.id)
        assert accounts.on
        accounts.remove_user(ann.id)
        assert not accounts.on and store.chat("local", chat)
    store.close()


def test_on_the_network_nobody_comes_in_once_the_last_user_is_gone(start_server: Any, tmp_path: Path) -> None:
    """Without users and without a key only this machine's own server is open."""
    place = tmp_path / "chats.sqlite"
    with opened(place) as accounts:
        ann = accounts.add_user("ann", PASSWORDS["ann"], admin=True)
    url = start_server(ServerSettings(host="0.0.0.0"), folder=tmp_path)
    with httpx.Client(base_url=url, headers=PAGE, trust_env=False, timeout=30) as page:
        sign = {"name": "ann", "password": PASSWORDS["ann"]}
        assert page.post("/api/session", json=sign).status_code == 204
        assert page.get("/api/chats").status_code == 200
        with opened(place) as accounts:
            accounts.remove_user(ann.id)
        assert page.get("/api/chats").status_code == 401 == page.post(CHAT, json=hi()).status_code
        assert page.post("/api/session", json={"key": ""}).status_code == 401


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "local", "LOCAL", "../x", "a\n", new_id() + "'"])
def test_names_have_one_spelling(tmp_path: Path, name: str) -> None:
    with opened(tmp_path / "chats.sqlite") as accounts:
        with pytest.raises(ShoalError, match="name"):
            accounts.add_user(name, PASSWORDS["ann"], admin=True)
        assert accounts.add_user("Ａnn.田中", PASSWORDS["ann"], admin=True).name == "ann.田中"
        assert accounts.find("ANN.田中").admin
