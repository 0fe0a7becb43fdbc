"""Upstreams at run time: which of them answer, what models they have, and the client that asks them.

Only the operator's addresses are ever asked, and redirects are not followed. A key goes into one header and nowhere
else: what an upstream says is cleaned of it before it is shown or logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from shoal.serve.errors import ApiError
from shoal.serve.upstream_file import ServedModel, UpstreamConfig

if TYPE_CHECKING:
    import httpx

log = logging.getLogger("shoal.serve")
CONNECT_SECONDS = 10.0
CHECK_TIMEOUT_SECONDS = 10.0
LONGEST_BACKOFF_SECONDS = 300.0
MAX_LIST_BYTES = 4 << 20
MAX_LISTED = 200
"""Models taken from one upstream's list; who has more names the ones he wants."""


class UpstreamFault(ApiError):
    """An upstream did not answer as it should. `retry`: another one may; `down`: this one is not well."""

    def __init__(
        self, name: str, what: str, *, status: int = 502, retry: bool = True, down: bool = False, **more: Any
    ):
        super().__init__(status, f"the upstream {name} {what}", **({"code": "upstream_error"} | more))
        self.retry, self.down = retry, down


class Upstream:
    """One server. Lives on one event loop."""

    def __init__(self, config: UpstreamConfig):
        self.config, self.name = config, config.name
        self.healthy: bool | None = None
        """None: not asked yet."""
        self.error: str | None = None
        self.failures = 0
        self.in_flight = 0
        self.models: list[ServedModel] = list(config.models)
        self._client: httpx.AsyncClient | None = None
        self._wanted = asyncio.Event()

    @property
    def client(self) -> httpx.AsyncClient:
        import ipaddress

        import httpx

        if self._client is None:
            headers = {"authorization": f"Bearer {self.config.key}"} if self.config.key else {}
            base = httpx.URL(self.config.base_url)
            try:
                near = ipaddress.ip_address(base.host).is_loopback
            except ValueError:
                near = base.host == "localhost"
            self._client = httpx.AsyncClient(
                headers=headers | {"accept-encoding": "identity"},
                follow_redirects=False,
                trust_env=not near,  # the operator's proxy, but never to this machine itself
                timeout=httpx.Timeout(
                    self.config.timeout_seconds, connect=CONNECT_SECONDS, pool=CONNECT_SECONDS
                ),
                limits=httpx.Limits(max_connections=512, max_keepalive_connections=16),
            )
        return self._client

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    def address(self, path: str) -> str:
        return self.config.base_url + path

    def clean(self, text: str, limit: int = 300) -> str:
        """Text of the upstream without this server's key, in one line, cut."""
        if self.config.key:
            text = text.replace(self.config.key, "***")
        return " ".join(text.split())[:limit]

    def fault(self, error: Exception) -> UpstreamFault:
        """A failure of the connection in our words; addresses are the operator's business and not shown."""
        import httpx

        if isinstance(error, UpstreamFault):
            return error
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
            return UpstreamFault(self.name, "cannot be reached", down=True)
        if isinstance(error, httpx.TimeoutException):
            return UpstreamFault(self.name, "was silent for too long", status=504, down=True)
        return UpstreamFault(self.name, f"broke off ({type(error).__name__})", down=True)

    def failed(self, fault: UpstreamFault) -> None:
        """Remember a failure, and look again soon."""
        if fault.down:
            self.healthy, self.error = False, fault.message
            self.failures = max(self.failures, 1)
            self._wanted.set()

    # ---- health

    async def check(self) -> None:
        """Ask for the models: whether it answers, takes the key, and what it has."""
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
                listed = await self._list()
        except Exception as error:
            if isinstance(error, TimeoutError):
                fault = UpstreamFault(self.name, "was silent for too long", status=504)
            else:
                fault = self.fault(error)
            if self.healthy is not False or self.failures == 0:
                log.warning("%s", fault.message)
            self.healthy, self.error = False, fault.message
            self.failures += 1
            return
        if self.healthy is False:
            log.warning("the upstream %s answers again", self.name)
        self.healthy, self.error, self.failures = True, None, 0
        known = self.config.models or [replace(self.config.defaults, id=each, name=each) for each in listed]
        self.models = [_completed(model, listed.get(model.id, {})) for model in known]

    async def _list(self) -> dict[str, dict[str, Any]]:
        """id -> what is said of it."""
        async with self.client.stream("GET", self.address("/models")) as response:
            if response.status_code in (404, 405) and self.config.models:
                return {}  # it answers, lists nothing, and need not: its models are named
            if response.status_code != 200:
                raise refusal(self, response.status_code, b"")
            body = b""
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > MAX_LIST_BYTES:
                    raise UpstreamFault(self.name, "lists more models than can be read")
        try:
            data = json.loads(body)["data"]
            found = [each for each in data if isinstance(each.get("id"), str)]
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UpstreamFault(self.name, "lists its models in a form that is not known") from None
        return {each["id"]: each for each in found[:MAX_LISTED] if _good_name(each["id"])}

    async def watch(self, changed: Callable[[], None]) -> None:
        """Check for ever: at its interval while it answers, with growing pauses (1 s and on) while it does not."""
        while True:
            await self.check()
            changed()
            pause = self.config.check_seconds
            if self.failures:
                pause = min(2.0 ** (self.failures - 1), LONGEST_BACKOFF_SECONDS)
            self._wanted.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wanted.wait()
                    changed()
                    await asyncio.sleep(min(pause, 1.0))  # a request failed just now: no storm of checks


def _good_name(text: str) -> bool:
    return 0 < len(text) <= 200 and text.isprintable()


def _completed(model: ServedModel, told: dict[str, Any]) -> ServedModel:
    """What the file says; where it says nothing, what the upstream tells (vLLM, llama.cpp, Shoal)."""
    meta = told.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    sizes = (
        told.get("max_model_len"),
        meta.get("n_ctx"),
        meta.get("n_ctx_train"),
        told.get("context_length"),
    )
    size = next((n for n in sizes if isinstance(n, int) and n > 0), None)
    thinking = {"native": True, "none": False}.get(str(meta.get("thinking")))
    return replace(
        model,
        context=model.context if model.context is not None else size,
        thinking=model.thinking if model.thinking is not None else thinking,
    )


def refusal(upstream: Upstream, status: int, body: bytes) -> UpstreamFault:
    """What an upstream's status means for the one who asked here. A fault of the request keeps the upstream's words."""
    name = upstream.name
    if status in (401, 403):
        return UpstreamFault(name, "does not accept this server's key; tell the operator")
    if status == 402:
        return UpstreamFault(name, "says that its account is empty; tell the operator")
    if status == 429:
        return UpstreamFault(name, "has too many requests; try again in a moment", status=429,
                             headers={"retry-after": "5"})  # fmt: skip
    if 300 <= status < 400:
        return UpstreamFault(
            name, "sends elsewhere, which is not followed; the operator has to give its final address"
        )
    if status == 404:
        return UpstreamFault(name, "does not know this model or address; tell the operator")
    words, code = _words(body)
    if status in (400, 413, 422):
        told = f"refuses the request: {upstream.clean(words)}" if words else f"refuses the request ({status})"
        return UpstreamFault(name, told, status=400, retry=False, code=code or "upstream_refused")
    if words:
        log.warning("the upstream %s answered %d: %s", name, status, upstream.clean(words))
    return UpstreamFault(name, f"answered with status {status}", down=status >= 500)


def _words(body: bytes) -> tuple[str, str | None]:
    """(message, code) of an error body, in the forms that servers use."""
    try:
        value = json.loads(body)
    except ValueError:
        return "", None
    value = value[0] if isinstance(value, list) and value else value  # Gemini's
    error = value.get("error", value) if isinstance(value, dict) else {}
    if isinstance(error, str):
        return error, None
    message = error.get("message") if isinstance(error, dict) else None
    known = isinstance(error, dict) and error.get("code") == "context_length_exceeded"
    return (message if isinstance(message, str) else ""), ("context_length_exceeded" if known else None)


@dataclass(frozen=True)
class Route:
    upstream: Upstream
    model: ServedModel


class RemoteModel:
    """A model of this server's list that one or several upstreams answer for."""

    def __init__(self, name: str, routes: Sequence[Route]):
        self.name, self.routes = name, tuple(routes)

    def candidates(self) -> list[Route]:
        """The order in which to ask: those that answer first, of these the least busy, as in the file."""
        return sorted(self.routes, key=lambda r: (r.upstream.healthy is False, r.upstream.in_flight))

    @property
    def upstreams(self) -> str:
        return ", ".join(route.upstream.name for route in self.routes)

    @property
    def context(self) -> int:
        """The smallest that is known; 0: unknown."""
        return min((r.model.context for r in self.routes if r.model.context), default=0)

    @property
    def thinks(self) -> bool:
        return any(route.model.thinking for route in self.routes)

    @property
    def continues(self) -> bool:
        return any(route.upstream.config.continues for route in self.routes)

    def state(self) -> tuple[Literal["ready", "error", "unloaded"], str | None]:
        """(status, error) as a slot has them."""
        if any(route.upstream.healthy for route in self.routes):
            return "ready", None
        errors = [route.upstream.error for route in self.routes if route.upstream.error]
        return ("error", "; ".join(errors)) if errors else ("unloaded", None)

    def facts(self) -> dict[str, Any]:
        """What people choose by: who answers, and the price of the first that has one."""
        price = next((r.model.price for r in self.routes if r.model.price), None)
        told = None
        if price is not None:
            told = {"input": price.input, "cached": price.cached, "output": price.output, "date": price.date}
        return {"upstream": self.upstreams, "price": told}


class Upstreams:
    """All of them. `changed` is called whenever the models or their states are not what they were."""

    def __init__(self, configs: Sequence[UpstreamConfig]):
        self.all = [Upstream(config) for config in configs]
        self.changed: Callable[[], None] = lambda: None
        self._tasks: list[asyncio.Task[None]] = []

    def models(self, taken: set[str]) -> list[RemoteModel]:
        """By name; a name that a local model has (`taken`) gets the upstream's before it."""
        routes: dict[str, list[Route]] = {}
        for upstream in self.all:
            for model in upstream.models:
                name = f"{upstream.name}/{model.name}" if model.name in taken else model.name
                routes.setdefault(name, []).append(Route(upstream, model))
        return [RemoteModel(name, found) for name, found in routes.items()]

    def start(self) -> None:
        """Begin to watch; call it from the event loop."""
        self._tasks = [asyncio.ensure_future(each.watch(lambda: self.changed())) for each in self.all]

    async def check(self, model: RemoteModel) -> None:
        """Look now whether a model's upstreams answer."""
        await asyncio.gather(*(route.upstream.check() for route in model.routes))
        self.changed()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for each in self.all:
            await each.close()
