"""/api/session, /api/account and /api/admin: signing in, one's own keys and usage, and what an admin sees and does."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shoal.errors import ShoalError
from shoal.serve.accounts import SESSION_SECONDS, Accounts, User, made_password
from shoal.serve.app_api import _body, _found, _json, _number, _off_loop
from shoal.serve.caller import Caller, audit, caller_of, require_admin
from shoal.serve.database import DiskFull
from shoal.serve.errors import ApiError
from shoal.serve.ledger import Ledger
from shoal.serve.page_bodies import PageBody
from shoal.serve.schemas import Text, Whole
from shoal.serve.security import SESSION_COOKIE
from shoal.serve.settings import ServerSettings

if TYPE_CHECKING:
    from shoal.serve.security import Door

Result = TypeVar("Result")
Name = Annotated[Text, Field(min_length=1, max_length=64)]
Password = Annotated[Text, Field(max_length=1000)]
_PER_PAIR, _PER_NAME, _PER_ADDRESS = (5, 60.0), (50, 900.0), (100, 900.0)
"""So many failed sign-ins in so many seconds: of one name from one address, of one name, from one address."""
MAX_WAITING = 20
"""Passwords that wait for their check; a flood from many addresses is turned away."""


class SignIn(PageBody):
    """A user's name and password; or a key, on a server with an operator's key and no users."""

    name: Name | None = None
    password: Password | None = None
    key: Password | None = None


class ChangePassword(PageBody):
    old: Password
    new: Password


class LimitsBody(PageBody):
    tokens_a_day: Whole | None = Field(None, ge=1, le=10**12)
    parallel: Whole | None = Field(None, ge=1, le=1000)


class NewKey(LimitsBody):
    name: Annotated[Text, Field(min_length=1, max_length=100)]


class NewUser(PageBody):
    name: Name
    admin: bool = False


class ChangeUser(LimitsBody):
    """A limit that is given as null is taken off; one that is not given stays."""

    admin: bool | None = None
    new_password: Literal[True] | None = None


class Exported(PageBody):
    chats: Whole = Field(ge=1, le=10**9)


class Attempts:
    """Failed sign-ins that count, so that passwords cannot be tried by the thousand. In memory, bounded."""

    def __init__(self) -> None:
        self._failed: dict[tuple[str, ...], deque[float]] = {}

    def begin(self, name: str, address: str) -> None:
        """Count an attempt as failed until `succeeded` says otherwise. Raises ApiError 429 when there were too many."""
        now = time.monotonic()
        places = ((("both", name, address), _PER_PAIR), (("name", name), _PER_NAME),
                  (("from", address), _PER_ADDRESS))  # fmt: skip
        for place, (most, seconds) in places:
            times = self._failed.get(place, deque())
            while times and now - times[0] > seconds:
                times.popleft()
            if len(times) >= most:
                wait = str(int(seconds - (now - times[0])) + 1)
                raise ApiError(429, f"too many sign-ins failed; try again in {wait} s", code="too_many_sign_ins",
                               headers={"retry-after": wait})  # fmt: skip
        for place, _ in places:
            self._failed.setdefault(place, deque()).append(now)
        while len(self._failed) > 10_000:
            self._failed.pop(next(iter(self._failed)))

    def succeeded(self, name: str, address: str) -> None:
        self._failed.pop(("both", name, address), None)
        for place in (("name", name), ("from", address)):
            if times := self._failed.get(place):
                times.pop()


class AccountApi:
    """Starlette functions. What concerns passwords, keys and users asks for a signed-in session: a key that was stolen
    cannot make others."""

    def __init__(self, settings: ServerSettings, accounts: Accounts, ledger: Ledger):
        self.settings, self.accounts, self.ledger = settings, accounts, ledger
        self.door: Door | None = None  # set by the app: who knows the operator's keys
        self.attempts = Attempts()
        # Passwords are checked one at a time: 32 MiB and a quarter of a second each.
        self._slow = ThreadPoolExecutor(1, thread_name_prefix="shoal-password")
        self._waiting = 0

    def routes(self) -> list[Route]:
        return [
            Route("/api/session", self.session),
            Route("/api/session", self.sign_in, methods=["POST"]),
            Route("/api/session", self.sign_out, methods=["DELETE"]),
            Route("/api/account/password", self.change_password, methods=["POST"]),
            Route("/api/account/keys", self.keys),
            Route("/api/account/keys", self.add_key, methods=["POST"]),
            Route("/api/account/keys/{key}", self.revoke_key, methods=["DELETE"]),
            Route("/api/account/usage", self.usage),
            Route("/api/account/exported", self.exported, methods=["POST"]),
            Route("/api/admin/users", self.users),
            Route("/api/admin/users", self.add_user, methods=["POST"]),
            Route("/api/admin/users/{user}", self.change_user, methods=["PATCH"]),
            Route("/api/admin/users/{user}", self.remove_user, methods=["DELETE"]),
            Route("/api/admin/usage", self.all_usage),
            Route("/api/admin/audit", self.audit_log),
        ]

    # ---- sessions

    async def session(self, request: Request) -> Response:
        """How people come in here ("password", "key", or "open"), and who is asking."""
        caller: Caller = request.scope["shoal.caller"]
        way = "password" if self.accounts.on else "open" if caller.owner and not self.settings.keys else "key"
        who = {"name": caller.name, "admin": caller.admin} if caller.name else None
        return _json({"way": way, "user": who, "signed_in": bool(caller.owner)})

    async def sign_in(self, request: Request) -> Response:
        """A password (or an operator's key) for a cookie that scripts cannot read."""
        given = await _body(request, SignIn)
        caller: Caller = request.scope["shoal.caller"]
        if self.accounts.on:
            found = await self._by_password(request, given.name or "", given.password or "", caller)
        else:
            self.attempts.begin("", caller.address)
            known = self.door.caller_of_key(given.key or "", caller) if self.door else None
            if known is None:
                raise ApiError(401, "this key is not known here", code="invalid_api_key")
            self.attempts.succeeded("", caller.address)
            found = known.owner
        token = await _off_loop(lambda: self.accounts.open_session(found))
        response = Response(status_code=204)
        response.set_cookie(
            SESSION_COOKIE, token, max_age=int(SESSION_SECONDS), path="/api", httponly=True, samesite="strict",
            secure=request.url.scheme == "https",
        )  # fmt: skip
        return response

    async def _by_password(self, request: Request, name: str, password: str, caller: Caller) -> str:
        user = await self._checked(name, password, caller.address)
        if user is None:
            audit(request, "sign_in_failed", await _off_loop(lambda: self._known(name)))
            raise ApiError(401, "name or password is wrong", code="wrong_password")
        self.ledger.note(Caller(user.id, user.name, address=caller.address), "sign_in")
        return user.id

    def _known(self, name: str) -> str:
        """What the log may say of a name: a password typed in its place is not written down."""
        try:
            return self.accounts.find(name).name
        except ShoalError:
            return "(no such user)"

    async def _checked(self, name: str, password: str, address: str) -> User | None:
        spelt = name.casefold()
        self.attempts.begin(spelt, address)
        if self._waiting >= MAX_WAITING:
            raise ApiError(
                429, "too many people sign in at once; try again in a moment", headers={"retry-after": "5"}
            )
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            user = await loop.run_in_executor(self._slow, self.accounts.check_password, name, password)
        finally:
            self._waiting -= 1
        if user is not None:
            self.attempts.succeeded(spelt, address)
        return user

    async def sign_out(self, request: Request) -> Response:
        caller = caller_of(request)
        digest = caller.session
        if digest is not None:
            await _off_loop(lambda: self.accounts.close_session(digest))
            audit(request, "sign_out")
        response = Response(status_code=204)
        response.delete_cookie(SESSION_COOKIE, path="/api", httponly=True, samesite="strict")
        return response

    # ---- one's own account

    def _signed_in(self, request: Request) -> Caller:
        caller = caller_of(request)
        if not caller.name:
            raise ApiError(409, "there are no users on this server; the operator makes the first with"
                           " 'shoal users add NAME --admin'", code="no_users")  # fmt: skip
        if caller.session is None:
            raise ApiError(403, "sign in on the page for this; a key is not enough", code="session_needed")
        return caller

    async def change_password(self, request: Request) -> Response:
        body, caller = await _body(request, ChangePassword), self._signed_in(request)
        if await self._checked(caller.name, body.old, caller.address) is None:
            audit(request, "password_refused")
            raise ApiError(401, "the old password is wrong", param="old", code="wrong_password")
        await self._slowly(lambda: self.accounts.set_password(caller.owner, body.new, keep=caller.session))
        audit(request, "password_changed")
        return Response(status_code=204)

    async def keys(self, request: Request) -> Response:
        caller = self._signed_in(request)
        return _json({"keys": await _off_loop(lambda: self.accounts.keys(caller.owner))})

    async def add_key(self, request: Request) -> Response:
        """The answer is the only place where the key ever stands."""
        body, caller = await _body(request, NewKey), self._signed_in(request)
        with _refused():
            key_id, key = await _off_loop(
                lambda: self.accounts.add_key(
                    caller.owner, body.name, tokens_a_day=body.tokens_a_day, parallel=body.parallel
                )
            )
        audit(request, "key_made", body.name)
        return _json({"id": key_id, "key": key}, 201)

    async def revoke_key(self, request: Request) -> Response:
        caller, key_id = self._signed_in(request), request.path_params["key"]
        keys = await _off_loop(lambda: self.accounts.keys(caller.owner))
        name = next((each["name"] for each in keys if each["id"] == key_id), "")
        _found(await _off_loop(lambda: self.accounts.revoke_key(caller.owner, key_id)), "key")
        audit(request, "key_revoked", name)
        return Response(status_code=204)

    async def usage(self, request: Request) -> Response:
        """What the one who asks has used, by day and by model, and his limits (null where nobody signs in)."""
        caller, days = caller_of(request), _days(request)
        usage = self.accounts.usage
        limits = await _off_loop(lambda: self.accounts.user_limits(caller.owner))
        by_day = await _off_loop(lambda: usage(owner=caller.owner, days=days, by="day"))
        by_model = await _off_loop(lambda: usage(owner=caller.owner, days=days, by="model"))
        return _json({"days": by_day, "models": by_model, "limits": limits and asdict(limits)})

    async def exported(self, request: Request) -> Response:
        """The page says that it has written chats to a file."""
        body = await _body(request, Exported)
        caller_of(request)
        audit(request, "exported", str(body.chats))
        return Response(status_code=204)

    # ---- the admin

    def _admin(self, request: Request) -> Caller:
        self._signed_in(request)
        return require_admin(request)

    async def users(self, request: Request) -> Response:
        self._admin(request)
        return _json({"users": await _off_loop(self.accounts.users)})

    async def add_user(self, request: Request) -> Response:
        """With a password that is made here and shown once; the user changes it."""
        body, _ = await _body(request, NewUser), self._admin(request)
        password = made_password()
        user = await self._slowly(lambda: self.accounts.add_user(body.name, password, admin=body.admin))
        audit(request, "user_added", user.name)
        return _json({"id": user.id, "name": user.name, "password": password}, 201)

    async def change_user(self, request: Request) -> Response:
        body, caller = await _body(request, ChangeUser), self._admin(request)
        user = _found(await _off_loop(lambda: self.accounts.user(request.path_params["user"])), "user")
        answer = {"id": user.id, "name": user.name}
        if body.admin is not None:
            admin = body.admin
            await self._slowly(lambda: self.accounts.set_admin(user.id, admin))
            audit(request, "user_made_admin" if body.admin else "user_made_member", user.name)
        if limits := body.model_dump(include={"tokens_a_day", "parallel"}, exclude_unset=True):
            await _off_loop(lambda: self.accounts.set_limits(user.id, limits))
            audit(request, "user_limited", user.name)
        if body.new_password:
            answer["password"] = password = made_password()
            keep = caller.session if user.id == caller.owner else None
            await self._slowly(lambda: self.accounts.set_password(user.id, password, keep=keep))
            audit(request, "password_reset", user.name)
        return _json(answer)

    async def remove_user(self, request: Request) -> Response:
        """Nobody removes himself here, so an admin stays."""
        caller = self._admin(request)
        user = _found(await _off_loop(lambda: self.accounts.user(request.path_params["user"])), "user")
        if user.id == caller.owner:
            raise ApiError(409, "this is yourself; 'shoal users remove' on the machine can do it")
        await self._slowly(lambda: self.accounts.remove_user(user.id))
        audit(request, "user_removed", user.name)
        return Response(status_code=204)

    async def all_usage(self, request: Request) -> Response:
        """What everybody has used, by user; a name of "" has no user any more."""
        self._admin(request)
        days = _days(request)
        return _json({"users": await _off_loop(lambda: self.accounts.usage(days=days, by="user"))})

    async def audit_log(self, request: Request) -> Response:
        self._admin(request)
        before, limit = _number(request, "before", None), int(_number(request, "limit", 100) or 100)
        entries = await _off_loop(
            lambda: self.accounts.audit(
                before=None if before is None else int(before), limit=min(max(limit, 1), 500)
            )
        )
        return _json({"entries": entries})

    async def _slowly(self, work: Callable[[], Result]) -> Result:
        """Work with passwords, in its own thread; what people can mend is a 400."""
        with _refused():
            return await asyncio.get_running_loop().run_in_executor(self._slow, work)


def _days(request: Request) -> int:
    return int(min(max(_number(request, "days", 30) or 30, 1), 366))


@contextmanager
def _refused() -> Iterator[None]:
    """What the accounts refuse is a 400 with their words; a full disk stays one."""
    try:
        yield
    except ShoalError as refusal:
        if isinstance(refusal, DiskFull):
            raise
        raise ApiError(400, str(refusal).replace("\n", ". ")) from refusal
