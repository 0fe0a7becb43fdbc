"""The whole server as one ASGI application: the door, the routes, the start and the end."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from shoal.serve.account_api import AccountApi
from shoal.serve.accounts import Accounts
from shoal.serve.anthropic_api import AnthropicApi
from shoal.serve.app_api import AppApi
from shoal.serve.cost_api import CostApi
from shoal.serve.errors import ApiError
from shoal.serve.generation import Generations
from shoal.serve.ledger import Ledger
from shoal.serve.metrics import Metrics
from shoal.serve.model_api import ModelApi
from shoal.serve.models import ModelTable
from shoal.serve.openai_api import Endpoint, OpenAIApi
from shoal.serve.responses_api import ResponsesApi
from shoal.serve.security import Door
from shoal.serve.settings import ServerSettings
from shoal.serve.static_files import StaticFiles
from shoal.serve.store import Store
from shoal.serve.token_api import TokenApi
from shoal.serve.work import Work


def create_app(settings: ServerSettings, models: ModelTable, store: Store) -> Door:
    """The application. It begins to load the default model when it starts, and closes models and store at its end."""
    metrics = Metrics()
    accounts = Accounts(store.place)
    accounts.close_foreign_sessions()
    ledger = Ledger(accounts)
    account = AccountApi(settings, accounts, ledger)
    generations = Generations(store, models, metrics)
    work = Work(settings, models, metrics)
    manage = ModelApi(settings, models)
    page = AppApi(settings, models, store, generations)
    static = StaticFiles()

    async def health(request: Request) -> Response:
        if models.first_load():
            raise ApiError(503, "the first model is still loading", headers={"retry-after": "2"})
        return JSONResponse({"status": "ok"})

    async def show_metrics(request: Request) -> Response:
        return Response(metrics.text(models.totals()), media_type="text/plain; version=0.0.4")

    async def show_openapi(request: Request) -> Response:
        from shoal.serve.openapi import document

        return JSONResponse(document())

    routes = [
        Route("/", static.page),
        Route("/cost", static.cost),
        Route("/static/{path:path}", static.file),
        Route("/health", health),
        Route("/metrics", show_metrics),
        Route("/openapi.json", show_openapi),
        *_api_routes(OpenAIApi(work), TokenApi(work)),
        *_other_routes(AnthropicApi(work), ResponsesApi(work)),
        *page.routes(),
        *account.routes(),
        *CostApi().routes(),
        *manage.routes(),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[None]:
        models.start()
        yield
        await generations.close()
        manage.close()
        await models.stop()
        ledger.close()
        accounts.close()
        store.close()

    door = Door(_Routes(routes, lifespan), settings, accounts, ledger)
    account.door = door
    return door


def _api_routes(api: OpenAIApi, tokens: TokenApi) -> list[Route]:
    """OpenAI's under /v1, and as DeepSeek's base URLs have it: without a prefix and under /beta."""
    routes = [
        Route("/tokenize", tokens.tokenize, methods=["POST"]),
        Route("/detokenize", tokens.detokenize, methods=["POST"]),
        Route("/apply-template", tokens.apply_template, methods=["POST"]),
    ]
    for prefix in ("/v1", "", "/beta"):
        routes += [
            Route(f"{prefix}/chat/completions", Endpoint(api.chat_completions), methods=["POST"]),
            Route(f"{prefix}/chat/completions/input_tokens", tokens.input_tokens, methods=["POST"]),
            Route(f"{prefix}/completions", Endpoint(api.completions), methods=["POST"]),
            Route(f"{prefix}/embeddings", Endpoint(tokens.embeddings), methods=["POST"]),
            Route(f"{prefix}/models", api.list_models),
            Route(f"{prefix}/models/{{model:path}}", api.retrieve_model),
        ]
    return routes


def _other_routes(anthropic: AnthropicApi, responses: ResponsesApi) -> list[Route]:
    """The other protocols."""
    return [
        Route("/v1/messages", Endpoint(anthropic.messages), methods=["POST"]),
        Route("/v1/messages/count_tokens", anthropic.count_tokens, methods=["POST"]),
        Route("/v1/responses", Endpoint(responses.responses), methods=["POST"]),
    ]


class _Routes:
    """Starlette's router without its own error pages: a path or method that is not there is an ApiError like any."""

    def __init__(self, routes: list[Route], lifespan: object):
        self.routes = routes
        self._router = Router(routes, default=_nothing_here, redirect_slashes=False, lifespan=lifespan)  # type: ignore[arg-type]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self  # makes the router raise instead of answering in plain text
        await self._router(scope, receive, send)


async def _nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
    raise ApiError(404, "there is nothing at this address", code="not_found")
