"""/api: what the chat page asks. JSON only, for the page's own origin, and every row by its owner."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

import shoal
from shoal.serve.body import Model, parse_object, read_body, validated
from shoal.serve.errors import ApiError, bad_field
from shoal.serve.generation import Generations
from shoal.serve.models import ModelTable, Slot
from shoal.serve.openai_api import Endpoint
from shoal.serve.page_bodies import Feedback, Login, NewChat, NewMessage, Regenerate, RenameChat
from shoal.serve.reply import Reply, while_connected
from shoal.serve.security import SESSION_COOKIE, Door
from shoal.serve.settings import ServerSettings
from shoal.serve.store import FINAL, Store

Result = TypeVar("Result")
TITLE_CHARACTERS = 60
MORE_MODELS = {
    "en": "More models: shoal models pull OWNER/NAME, or shoal models import FILE",
    "ja": "モデルを増やすには: shoal models pull OWNER/NAME または shoal models import FILE",
    "zh": "添加模型:shoal models pull OWNER/NAME 或 shoal models import FILE",
}


class AppApi:
    """The page's endpoints, as Starlette functions."""

    def __init__(self, settings: ServerSettings, models: ModelTable, store: Store, generations: Generations):
        self.settings, self.models, self.store, self.generations = settings, models, store, generations
        self.door: Door | None = None  # set by the app: who opens sessions

    def routes(self) -> list[Route]:
        chat, message = "/api/chats/{chat}", "/api/chats/{chat}/messages/{message}"
        return [
            Route("/api/state", self.state),
            Route("/api/session", self.login, methods=["POST"]),
            Route("/api/models/{model:path}/load", self.load_model, methods=["POST"]),
            Route("/api/models/{model:path}", self.model_state),
            Route("/api/chats", self.list_chats),
            Route("/api/chats", self.create_chat, methods=["POST"]),
            Route(chat, self.get_chat),
            Route(chat, self.rename_chat, methods=["PATCH"]),
            Route(chat, self.delete_chat, methods=["DELETE"]),
            Route(f"{chat}/restore", self.restore_chat, methods=["POST"]),
            Route(f"{chat}/events", Endpoint(self.events), methods=["GET"]),
            Route(f"{chat}/messages", self.post_message, methods=["POST"]),
            Route(f"{message}/regenerate", self.regenerate, methods=["POST"]),
            Route(f"{message}/stop", self.stop, methods=["POST"]),
            Route(f"{message}/feedback", self.feedback, methods=["POST"]),
        ]

    # ---- the server

    async def state(self, request: Request) -> Response:
        models = [self._model(self.models.slots[name]) for name in self.models.slots]
        return _json({"version": shoal.__version__, "models": models, "default_model": self.models.default,
                      "more_models_hint": MORE_MODELS})  # fmt: skip

    def _model(self, slot: Slot) -> dict[str, Any]:
        card = slot.card
        return {
            "id": card.id,
            "name": card.id,
            "description": card.description,
            "languages": list(card.languages),
            "size_bytes": card.size_bytes,
            "parameters": card.parameters,
            "parameters_active": card.parameters_active,
            "context": slot.context,
            "thinking": slot.thinking,
            "licence": card.licence,
            "loaded": slot.status == "ready",
            "error": slot.error,
            "examples": card.examples,
        }

    async def login(self, request: Request) -> Response:
        """A key for a cookie that scripts cannot read, so that the page works on a server with a key."""
        given = await _body(request, Login)
        owner = self.door.owner_of_key(given.key) if self.door else None
        if owner is None or self.door is None:
            raise ApiError(401, "this key is not known here", code="invalid_api_key")
        response = Response(status_code=204)
        cookie = self.door.open_session(owner)
        secure = request.url.scheme == "https"
        response.set_cookie(
            SESSION_COOKIE, cookie, httponly=True, samesite="strict", path="/api", secure=secure
        )
        return response

    async def load_model(self, request: Request) -> Response:
        await _no_body(request)
        name = request.path_params["model"]
        self.models.start_loading(name)
        return _json(self.models.slot(name).state(), 202)

    async def model_state(self, request: Request) -> Response:
        return _json(self.models.slot(request.path_params["model"]).state())

    # ---- chats

    async def list_chats(self, request: Request) -> Response:
        query = request.query_params.get("q", "")[:200]
        before = _number(request, "before", None)
        limit = int(_number(request, "limit", 50) or 50)
        owner = _owner(request)
        found = await _off_loop(
            lambda: self.store.chats(owner, query=query, before=before, limit=min(max(limit, 1), 200))
        )
        return _json({"chats": found})

    async def create_chat(self, request: Request) -> Response:
        body = await _body(request, NewChat)
        if body.model is not None:
            self.models.slot(body.model)
        owner = _owner(request)
        chat = await _off_loop(
            lambda: self.store.create_chat(owner, title=body.title or "", model=body.model)
        )
        return _json(chat | {"messages": []}, 201)

    async def get_chat(self, request: Request) -> Response:
        owner, chat_id = _owner(request), request.path_params["chat"]
        chat = await self._chat(owner, chat_id)
        messages = await _off_loop(lambda: self.store.messages(owner, chat_id))
        # Nothing is awaited from here on: texts in the making and the number of the last event belong together.
        channel = self.generations.channel(owner, chat_id)
        if channel is not None:
            messages = [
                message | channel.jobs[message["id"]].live() if message["id"] in channel.jobs else message
                for message in messages
            ]
        return _json(chat | {"messages": messages, "last_event": channel.last if channel else 0})

    async def rename_chat(self, request: Request) -> Response:
        body = await _body(request, RenameChat)
        owner, chat_id = _owner(request), request.path_params["chat"]
        _found(await _off_loop(lambda: self.store.rename_chat(owner, chat_id, body.title.strip())), "chat")
        return _json(await self._chat(owner, chat_id))

    async def delete_chat(self, request: Request) -> Response:
        owner, chat_id = _owner(request), request.path_params["chat"]
        _found(await _off_loop(lambda: self.store.delete_chat(owner, chat_id)), "chat")
        self.generations.stop_chat(owner, chat_id)
        return Response(status_code=204)

    async def restore_chat(self, request: Request) -> Response:
        await _no_body(request)
        owner, chat_id = _owner(request), request.path_params["chat"]
        _found(await _off_loop(lambda: self.store.restore_chat(owner, chat_id)), "chat")
        return _json(await self._chat(owner, chat_id))

    # ---- messages

    async def post_message(self, request: Request) -> Response:
        body = await _body(request, NewMessage)
        owner, chat_id = _owner(request), request.path_params["chat"]
        chat = await self._chat(owner, chat_id)
        slot = self._slot(body.model, chat)
        if not body.content.strip():
            raise bad_field("content", "content: the message is empty")
        self.generations.check_place(owner)
        if body.parent_id is not None:
            await self._settled(owner, chat_id, body.parent_id)
        user = _found(
            await _off_loop(
                lambda: self.store.add_message(
                    owner, chat_id, parent_id=body.parent_id, role="user", content=body.content
                )
            ),
            "message",
        )
        if not chat["title"]:
            title = next((line.strip() for line in body.content.splitlines() if line.strip()), "")
            await _off_loop(lambda: self.store.rename_chat(owner, chat_id, title[:TITLE_CHARACTERS]))
        assistant = await self._start(owner, chat_id, user["id"], slot, body)
        return _json({"user": user, "assistant": assistant}, 201)

    async def regenerate(self, request: Request) -> Response:
        body = await _body(request, Regenerate)
        owner, chat_id = _owner(request), request.path_params["chat"]
        chat = await self._chat(owner, chat_id)
        slot = self._slot(body.model, chat)
        old = _found(await self._message(owner, chat_id, request), "message")
        if old["role"] != "assistant" or old["parent_id"] is None:
            raise ApiError(400, "only an answer can be made again")
        self.generations.check_place(owner)
        return _json({"assistant": await self._start(owner, chat_id, old["parent_id"], slot, body)}, 201)

    async def _start(
        self, owner: str, chat_id: str, parent_id: str, slot: Slot, body: Regenerate
    ) -> dict[str, Any]:
        """A new answer below `parent_id`, in the store and in work."""
        params = body.params.model_dump(exclude_none=True) if body.params else {}
        thinking = body.thinking or "off"
        history = await _off_loop(lambda: self.store.path(owner, chat_id, parent_id))
        assistant = _found(
            await _off_loop(
                lambda: self.store.add_message(
                    owner,
                    chat_id,
                    parent_id=parent_id,
                    role="assistant",
                    status="queued",
                    model=slot.card.id,
                    params=params | {"thinking": thinking},
                )
            ),
            "message",
        )
        self.generations.start(
            owner, chat_id, assistant, history, slot=slot, thinking=thinking, params=params
        )
        return assistant

    async def stop(self, request: Request) -> Response:
        await _no_body(request)
        owner, chat_id = _owner(request), request.path_params["chat"]
        message = _found(await self._message(owner, chat_id, request), "message")
        stopped = self.generations.stop(owner, chat_id, message["id"])
        return _json({"stopped": stopped}, 202 if stopped else 200)

    async def feedback(self, request: Request) -> Response:
        body = await _body(request, Feedback)
        owner, chat_id, message_id = (
            _owner(request),
            request.path_params["chat"],
            request.path_params["message"],
        )
        _found(
            await _off_loop(
                lambda: self.store.add_feedback(
                    owner, chat_id, message_id, body.value, edited=body.edited, note=body.note
                )
            ),
            "message",
        )
        return _json(_found(await self._message(owner, chat_id, request), "message"))

    async def events(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The chat's numbered events as a stream; 204 when there is nothing to read, so that a browser stops asking."""
        request = Request(scope)
        owner, chat_id = _owner(request), request.path_params["chat"]
        after = int(_number(request, "after", 0) or 0)
        last_seen = request.headers.get("last-event-id", "")
        if last_seen.isascii() and last_seen.isdigit():
            after = max(after, int(last_seen[:18]))
        await self._chat(owner, chat_id)
        channel = self.generations.channel(owner, chat_id)
        if channel is None or (not channel.jobs and (not channel.events or channel.last <= after)):
            await Response(status_code=204)(scope, receive, send)
            return
        reply = Reply(send, stream=True, headers={}, keep_alive_seconds=self.settings.keep_alive_seconds)

        async def write() -> None:
            async for number, event in self.generations.read(owner, chat_id, after):
                await reply.event(event, event_id=number)
            await reply.end()

        await while_connected(receive, reply.run(write()))

    # ---- helpers

    async def _chat(self, owner: str, chat_id: str) -> dict[str, Any]:
        return _found(await _off_loop(lambda: self.store.chat(owner, chat_id)), "chat")

    async def _message(self, owner: str, chat_id: str, request: Request) -> dict[str, Any] | None:
        message_id = request.path_params["message"]
        return await _off_loop(lambda: self.store.message(owner, chat_id, message_id))

    async def _settled(self, owner: str, chat_id: str, message_id: str) -> None:
        """Nobody can answer below a text that still grows."""
        parent = _found(await _off_loop(lambda: self.store.message(owner, chat_id, message_id)), "message")
        if parent["status"] not in FINAL:
            raise ApiError(
                409, "that answer is still being written; stop it first or wait", param="parent_id"
            )

    def _slot(self, asked: str | None, chat: dict[str, Any]) -> Slot:
        """The model asked for, else the chat's (if it is still there), else the default."""
        if asked is None and chat["model"] in self.models.slots:
            asked = chat["model"]
        return self.models.slot(asked)


def _owner(request: Request) -> str:
    owner = request.scope["shoal.owner"]
    if not owner:
        raise ApiError(401, "a key is needed")
    return str(owner)


def _json(value: Any, status: int = 200) -> JSONResponse:
    return JSONResponse(value, status, headers={"cache-control": "no-store"})


def _found(value: Any, what: str) -> Any:
    if not value:
        raise ApiError(404, f"there is no such {what}")
    return value


async def _body(request: Request, model: type[Model]) -> Model:
    return validated(model, parse_object(await read_body(request.receive)))


async def _no_body(request: Request) -> None:
    """Read what was sent, at most an empty object."""
    if body := await read_body(request.receive):
        parse_object(body)


async def _off_loop(work: Callable[[], Result]) -> Result:
    """Queries run in a worker thread: a long search does not hold up the streams."""
    return await asyncio.to_thread(work)


def _number(request: Request, name: str, default: float | None) -> float | None:
    text = request.query_params.get(name)
    if text is None or text == "":
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e15:
        raise bad_field(name, f"{name}: a number is expected")
    return value
