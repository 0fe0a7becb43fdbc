"""/api: what the chat page asks. JSON only, for the page's own origin, and every row by its owner."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

import shoal
from shoal.serve.body import Model, parse_object, read_body, validated
from shoal.serve.changes import Changes
from shoal.serve.errors import ApiError, bad_field
from shoal.serve.generation import SAMPLING, Generations
from shoal.serve.models import ModelTable, Slot
from shoal.serve.openai_api import Endpoint
from shoal.serve.page_bodies import (
    ChangeChat,
    Feedback,
    ImportedChat,
    LibraryEntry,
    NewChat,
    NewMessage,
    PdfFile,
    Prefer,
    Regenerate,
    ToolResults,
    given,
)
from shoal.serve.page_prompt import calls_of
from shoal.serve.pdf_text import pdf_text
from shoal.serve.reply import Reply, while_connected
from shoal.serve.settings import ServerSettings
from shoal.serve.store import FINAL, Store
from shoal.serve.token_view import token_view

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
        self.changes = Changes()

    def routes(self) -> list[Route]:
        chat, message = "/api/chats/{chat}", "/api/chats/{chat}/messages/{message}"
        told = self._told
        return [
            Route("/api/state", self.state),
            Route("/api/changes", Endpoint(self.watch), methods=["GET"]),
            Route("/api/models/{model:path}/load", self.load_model, methods=["POST"]),
            Route("/api/models/{model:path}", self.model_state),
            Route("/api/chats", self.list_chats),
            Route("/api/chats", told(self.create_chat), methods=["POST"]),
            Route(chat, self.get_chat),
            Route(chat, told(self.change_chat), methods=["PATCH"]),
            Route(chat, told(self.delete_chat), methods=["DELETE"]),
            Route(f"{chat}/restore", told(self.restore_chat), methods=["POST"]),
            Route(f"{chat}/events", Endpoint(self.events), methods=["GET"]),
            Route(f"{chat}/messages", told(self.post_message), methods=["POST"]),
            Route(f"{message}/regenerate", told(self.regenerate), methods=["POST"]),
            Route(f"{message}/continue", told(self.go_on), methods=["POST"]),
            Route(f"{message}/results", told(self.results), methods=["POST"]),
            Route(f"{message}/stop", self.stop, methods=["POST"]),
            Route(f"{message}/answer-now", self.answer_now, methods=["POST"]),
            Route(f"{message}/feedback", told(self.feedback), methods=["POST"]),
            Route(f"{message}/prefer", told(self.prefer), methods=["POST"]),
            Route(f"{message}/tokens", self.tokens, methods=["POST"]),
            Route("/api/imports", told(self.import_chat), methods=["POST"]),
            Route("/api/pdf", self.read_pdf, methods=["POST"]),
            Route("/api/library", self.library),
            Route("/api/library", self.put_entry, methods=["POST"]),
            Route("/api/library/{entry}", self.put_entry, methods=["POST"]),
            Route("/api/library/{entry}", self.delete_entry, methods=["DELETE"]),
        ]

    # ---- the server

    async def state(self, request: Request) -> Response:
        models = [self._model(self.models.slots[name]) for name in self.models.slots]
        caller = request.scope["shoal.caller"]
        user = {"name": caller.name, "admin": caller.admin} if caller.name else None
        return _json({"version": shoal.__version__, "user": user,
                      "models": models, "default_model": self.models.default,
                      "more_models_hint": MORE_MODELS, "last_change": self.changes.last(_owner(request))})  # fmt: skip

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
            "abilities": slot.abilities,
            **(slot.remote.facts() if slot.remote else {}),
            "examples": card.examples,
            "defaults": {name: getattr(slot.opened.defaults, name) for name in SAMPLING}
            if slot.opened
            else None,
        }

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
        store = self.store.temporary if body.temporary else self.store
        chat = await _off_loop(
            lambda: store.create_chat(
                owner, title=body.title or "", model=body.model, settings=given(body.settings)
            )
        )
        return _json(chat | {"messages": []}, 201)

    async def get_chat(self, request: Request) -> Response:
        owner, chat_id = _owner(request), request.path_params["chat"]
        chat = await self._chat(owner, chat_id)
        messages = await _off_loop(lambda: self.store.of(chat_id).messages(owner, chat_id))
        # Nothing is awaited from here on: texts in the making and the number of the last event belong together.
        channel = self.generations.channel(owner, chat_id)
        if channel is not None:
            messages = [
                message | channel.jobs[message["id"]].live() if message["id"] in channel.jobs else message
                for message in messages
            ]
        return _json(chat | {"messages": messages, "last_event": channel.last if channel else 0})

    async def change_chat(self, request: Request) -> Response:
        body = await _body(request, ChangeChat)
        owner, chat_id = _owner(request), request.path_params["chat"]
        fields: dict[str, Any] = given(body)
        if body.title is not None:
            fields["title"] = body.title.strip()
        if fields:
            store = self.store.of(chat_id)
            _found(await _off_loop(lambda: store.change_chat(owner, chat_id, **fields)), "chat")
        return _json(await self._chat(owner, chat_id))

    async def delete_chat(self, request: Request) -> Response:
        owner, chat_id = _owner(request), request.path_params["chat"]
        self.generations.stop_chat(owner, chat_id)
        _found(await _off_loop(lambda: self.store.of(chat_id).delete_chat(owner, chat_id)), "chat")
        return Response(status_code=204)

    async def restore_chat(self, request: Request) -> Response:
        await _no_body(request)
        owner, chat_id = _owner(request), request.path_params["chat"]
        _found(await _off_loop(lambda: self.store.restore_chat(owner, chat_id)), "chat")
        return _json(await self._chat(owner, chat_id))

    async def import_chat(self, request: Request) -> Response:
        body = await _body(request, ImportedChat)
        owner, chat = _owner(request), body.model_dump(exclude={"messages", "settings"})
        chat["settings"] = given(body.settings)
        messages = [message.model_dump() for message in body.messages]
        made = await _off_loop(lambda: self.store.import_chat(owner, chat, messages))
        if made is None:
            raise bad_field("messages", "messages: a parent_id names no message before it")
        return _json(made, 201)

    # ---- messages

    async def post_message(self, request: Request) -> Response:
        body = await _body(request, NewMessage)
        owner, chat_id = _owner(request), request.path_params["chat"]
        chat = await self._chat(owner, chat_id)
        slots = [self._slot(body.model, chat)]
        if body.beside is not None:
            slots.append(self.models.slot(body.beside))
        if not body.content.strip() and not body.files:
            raise bad_field("content", "content: the message is empty")
        self.generations.check_place(owner)
        if body.parent_id is not None:
            await self._settled(owner, chat_id, body.parent_id)
        store = self.store.of(chat_id)
        files = [file.model_dump() for file in body.files] or None
        user = _found(
            await _off_loop(
                lambda: store.add_message(
                    owner, chat_id, parent_id=body.parent_id, role="user", content=body.content, files=files
                )
            ),
            "message",
        )
        if not chat["title"]:
            title = next((line.strip() for line in body.content.splitlines() if line.strip()), "")
            title = title or body.files[0].name
            await _off_loop(lambda: store.change_chat(owner, chat_id, title=title[:TITLE_CHARACTERS]))
        mark = {"beside": True} if len(slots) > 1 else {}
        made = [await self._start(owner, chat, user["id"], slot, body, **mark) for slot in slots]
        return _json({"user": user, "assistant": made[0], "assistants": made}, 201)

    async def regenerate(self, request: Request) -> Response:
        body = await _body(request, Regenerate)
        owner, chat_id = _owner(request), request.path_params["chat"]
        chat = await self._chat(owner, chat_id)
        slot = self._slot(body.model, chat)
        old = _found(await self._message(owner, chat_id, request), "message")
        if old["role"] != "assistant" or old["parent_id"] is None:
            raise ApiError(400, "only an answer can be made again")
        self.generations.check_place(owner)
        return _json({"assistant": await self._start(owner, chat, old["parent_id"], slot, body)}, 201)

    async def _start(
        self, owner: str, chat: dict[str, Any], parent_id: str, slot: Slot, body: Regenerate, **mark: Any
    ) -> dict[str, Any]:
        """A new answer below `parent_id`, in the store and in work."""
        store, chat_id = self.store.of(chat["id"]), chat["id"]
        params = chat["settings"] | given(body.params)
        thinking = body.thinking or "off"
        history = await _off_loop(lambda: store.path(owner, chat_id, parent_id))
        assistant = _found(
            await _off_loop(
                lambda: store.add_message(
                    owner,
                    chat_id,
                    parent_id=parent_id,
                    role="assistant",
                    status="queued",
                    model=slot.card.id,
                    params=params | {"thinking": thinking} | mark,
                )
            ),
            "message",
        )
        self.generations.start(
            owner, chat_id, assistant, with_files(history), slot=slot, thinking=thinking, params=params
        )
        return assistant

    async def go_on(self, request: Request) -> Response:
        """Write on at the end of an answer that was stopped or ran out of room; by its own model and parameters."""
        await _no_body(request)
        owner, chat_id = _owner(request), request.path_params["chat"]
        await self._chat(owner, chat_id)
        message = _found(await self._message(owner, chat_id, request), "message")
        if message["role"] != "assistant" or message["status"] not in ("stopped", "length", "error"):
            raise ApiError(409, "only an answer that was cut can be continued")
        if message["tool_calls"]:
            raise ApiError(409, "a call that was cut is not continued; ask again")
        slot = self.models.slot(message["model"])
        if not slot.abilities["continue"]:
            raise ApiError(
                400, f"{slot.card.id}: its upstream cannot continue an answer", code="unsupported_parameter"
            )
        self.generations.check_place(owner)
        store, params = self.store.of(chat_id), dict(message["params"] or {})
        history = await _off_loop(lambda: store.path(owner, chat_id, message["parent_id"]))
        await _off_loop(lambda: store.update_message(owner, message["id"], status="queued", error=None))
        begun = _found(await self._message(owner, chat_id, request), "message")
        thinking = params.pop("thinking", "off")
        self.generations.start(
            owner, chat_id, begun, with_files(history), slot=slot, thinking=thinking, params=params
        )
        return _json({"assistant": begun}, 202)

    async def results(self, request: Request) -> Response:
        """What the tools that an answer called gave back, by a person's hand, once; the model goes on below it."""
        body = await _body(request, ToolResults)
        owner, chat_id = _owner(request), request.path_params["chat"]
        chat = await self._chat(owner, chat_id)
        slot = self._slot(body.model, chat)
        message = _found(await self._message(owner, chat_id, request), "message")
        calls, given_back = calls_of(message), {each.id: each.result for each in body.results}
        if not calls or any("result" in call for call in calls):
            raise ApiError(409, "no call of this answer waits for a result")
        if not given_back.keys() <= {call["id"] for call in calls}:
            raise bad_field("results", "results: an id is none of this answer's calls")
        self.generations.check_place(owner)
        calls = [
            call | ({"result": given_back[call["id"]]} if call["id"] in given_back else {}) for call in calls
        ]
        store, message_id = self.store.of(chat_id), message["id"]
        await _off_loop(lambda: store.update_message(owner, message_id, tool_calls=calls))
        assistant = await self._start(owner, chat, message_id, slot, body)
        return _json({"message": message | {"tool_calls": calls}, "assistant": assistant}, 201)

    async def tokens(self, request: Request) -> Response:
        """The answer as its model reads it: each token's probability at its place, and the likeliest alternatives."""
        await _no_body(request)
        owner, chat_id = _owner(request), request.path_params["chat"]
        message = _found(await self._message(owner, chat_id, request), "message")
        if message["role"] != "assistant" or message["status"] not in FINAL:
            raise ApiError(409, "only a finished answer has tokens to show")
        slot = self.models.slot(message["model"])
        store = self.store.of(chat_id)
        history = await _off_loop(lambda: store.path(owner, chat_id, message["parent_id"]))
        opened = await self.models.open(slot.card.id)
        return _json(
            await while_connected(request.receive, token_view(opened, with_files(history), message, owner))
        )

    async def stop(self, request: Request) -> Response:
        await _no_body(request)
        owner, chat_id = _owner(request), request.path_params["chat"]
        message = _found(await self._message(owner, chat_id, request), "message")
        stopped = self.generations.stop(owner, chat_id, message["id"])
        return _json({"stopped": stopped}, 202 if stopped else 200)

    async def answer_now(self, request: Request) -> Response:
        """End the thought that an answer in work is in; 200 and `answering: false` when it is in none."""
        await _no_body(request)
        owner, chat_id = _owner(request), request.path_params["chat"]
        message = _found(await self._message(owner, chat_id, request), "message")
        slot = self.models.slots.get(message["model"] or "")
        if slot is not None and not slot.abilities["answer_now"]:
            raise ApiError(
                400,
                f"{slot.card.id}: an upstream's thinking ends when it likes",
                code="unsupported_parameter",
            )
        ended = self.generations.answer_now(owner, chat_id, message["id"])
        return _json({"answering": ended}, 202 if ended else 200)

    async def feedback(self, request: Request) -> Response:
        body = await _body(request, Feedback)
        owner, chat_id = _owner(request), request.path_params["chat"]
        message_id, store = request.path_params["message"], self.store.of(chat_id)
        _found(
            await _off_loop(
                lambda: store.add_feedback(
                    owner, chat_id, message_id, body.value, edited=body.edited, note=body.note
                )
            ),
            "message",
        )
        return _json(_found(await self._message(owner, chat_id, request), "message"))

    async def prefer(self, request: Request) -> Response:
        """This answer rather than that one, to the same question: a pair to train on."""
        body = await _body(request, Prefer)
        owner, chat_id = _owner(request), request.path_params["chat"]
        message_id, store = request.path_params["message"], self.store.of(chat_id)
        made = await _off_loop(lambda: store.add_preference(owner, chat_id, message_id, body.over))
        _found(made, "pair of answers")
        return _json({"messages": await _off_loop(lambda: store.messages(owner, chat_id))})

    # ---- what people bring

    async def read_pdf(self, request: Request) -> Response:
        body = await _body(request, PdfFile)
        return _json(await pdf_text(body.pdf))

    async def library(self, request: Request) -> Response:
        owner = _owner(request)
        return _json({"entries": await _off_loop(lambda: self.store.library(owner))})

    async def put_entry(self, request: Request) -> Response:
        body = await _body(request, LibraryEntry)
        owner, entry = _owner(request), request.path_params.get("entry")
        kind, name, text = body.kind, body.name, {"text": body.text}
        made = await _off_loop(lambda: self.store.put_entry(owner, entry, kind=kind, name=name, body=text))
        return _json({"id": _found(made, "entry")}, 200 if entry else 201)

    async def delete_entry(self, request: Request) -> Response:
        owner, entry = _owner(request), request.path_params["entry"]
        _found(await _off_loop(lambda: self.store.delete_entry(owner, entry)), "entry")
        return Response(status_code=204)

    # ---- events

    async def events(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The chat's numbered events as a stream; 204 when there is nothing to read, so that a browser stops asking."""
        request = Request(scope)
        owner, chat_id = _owner(request), request.path_params["chat"]
        after = _after(request)
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

    async def watch(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A stream that tells which of the owner's chats others change; it lasts as long as the page is in view."""
        request = Request(scope)
        owner, tab, after = _owner(request), request.query_params.get("tab", ""), _after(request)
        scope["shoal.waits"] = True
        reply = Reply(send, stream=True, headers={}, keep_alive_seconds=self.settings.keep_alive_seconds)

        async def write() -> None:
            async with contextlib.aclosing(self.changes.watch(owner, tab, after)) as found:
                async for number, event in found:
                    await reply.event(event, event_id=number)

        await while_connected(receive, reply.run(write()))

    # ---- helpers

    def _told(
        self, endpoint: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint, and word of what it changed to the owner's other tabs and devices."""

        async def tell(request: Request) -> Response:
            response = await endpoint(request)
            chat_id = request.path_params.get("chat", "")
            self.changes.tell(_owner(request), chat_id, by=request.headers.get("x-shoal-tab", ""))
            return response

        return tell

    async def _chat(self, owner: str, chat_id: str) -> dict[str, Any]:
        return _found(await _off_loop(lambda: self.store.of(chat_id).chat(owner, chat_id)), "chat")

    async def _message(self, owner: str, chat_id: str, request: Request) -> dict[str, Any] | None:
        message_id = request.path_params["message"]
        return await _off_loop(lambda: self.store.of(chat_id).message(owner, chat_id, message_id))

    async def _settled(self, owner: str, chat_id: str, message_id: str) -> None:
        """Nobody can answer below a text that still grows."""
        parent = _found(
            await _off_loop(lambda: self.store.of(chat_id).message(owner, chat_id, message_id)), "message"
        )
        if parent["status"] not in FINAL:
            raise ApiError(
                409, "that answer is still being written; stop it first or wait", param="parent_id"
            )

    def _slot(self, asked: str | None, chat: dict[str, Any]) -> Slot:
        """The model asked for, else the chat's (if it is still there), else the default."""
        if asked is None and chat["model"] in self.models.slots:
            asked = chat["model"]
        return self.models.slot(asked)


def with_files(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages as the model gets them: attached texts before the question, as DeepSeek-R1's README has it."""
    form = "[file name]: {name}\n[file content begin]\n{text}\n[file content end]\n"
    return [
        message | {"content": "".join(form.format(**file) for file in message["files"]) + message["content"]}
        if message["files"]
        else message
        for message in history
    ]


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


def _after(request: Request) -> int:
    """The number of the event that the reader saw last: its own word, or the browser's when it comes again."""
    after = int(_number(request, "after", 0) or 0)
    last_seen = request.headers.get("last-event-id", "")
    return max(after, int(last_seen[:18])) if last_seen.isascii() and last_seen.isdigit() else after


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
