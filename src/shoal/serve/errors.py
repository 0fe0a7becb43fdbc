"""One shape for every refusal: `{"error": {"message", "type", "param", "code"}}`, with the statuses of OpenAI's API."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from shoal.engine.types import ContextLengthExceeded, InvalidRequest, QueueFull
from shoal.errors import ShoalError
from shoal.serve.database import DiskFull

# The type that belongs to a status when nothing more exact is known.
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    415: "unsupported_media_type",
    429: "rate_limit_error",
    431: "request_too_large",
    500: "api_error",
    503: "overloaded_error",
    507: "storage_error",
}


class ApiError(Exception):
    """A refusal with its status. `param` names the field as the request spelt it, `code` is for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.type = type or TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        fields = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": fields}

    def json(self) -> bytes:
        return json.dumps(self.body(), ensure_ascii=False).encode("utf-8", "backslashreplace")


ANTHROPIC_PATHS = ("/v1/messages", "/v1/messages/count_tokens")


def anthropic_body(error: ApiError, request_id: str) -> dict[str, Any]:
    """The error in Anthropic's shape."""
    fields = {"type": error.type, "message": error.message}
    return {"type": "error", "error": fields, "request_id": request_id}


class ClientGone(Exception):
    """The client closed the connection; nobody is left to answer."""


def bad_field(param: str, message: str, *, code: str | None = None) -> ApiError:
    """400 for one field: the message says what is accepted."""
    return ApiError(400, message, param=param, code=code)


def not_yet(param: str, what: str) -> ApiError:
    """400 for a field of the protocol that this server does not carry out; ignoring it would change the answer."""
    return ApiError(
        400, f"{param}: {what} not supported by this server", param=param, code="unsupported_parameter"
    )


def place_of(location: Sequence[int | str]) -> str:
    """`("messages", 1, "content", 0)` as `messages[1].content[0]`; names of union branches are left out."""
    text = ""
    for step in location:
        if isinstance(step, int):
            text += f"[{step}]"
        elif step and step[0].islower() and step.replace("_", "").isalnum() and step not in _BRANCHES:
            text += f".{step}" if text else step
    return text


_BRANCHES = {"str", "int", "float", "bool", "dict", "list"}


def from_validation(error: ValidationError) -> ApiError:
    """The first fault of a request that does not fit its schema. What the client sent is never repeated."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = place_of(first["loc"]) or None
    text = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        text = "this field is required"
    return ApiError(400, f"{param}: {text}" if param else text, param=param)


def from_shoal(error: ShoalError, *, param: str | None = None) -> ApiError:
    """An error for people as an HTTP error: engine refusals keep their meaning, the rest is a 500."""
    text = str(error).replace("\n", ". ").replace("..", ".")
    if isinstance(error, ContextLengthExceeded):
        return ApiError(400, text, param=param or "messages", code="context_length_exceeded")
    if isinstance(error, InvalidRequest):
        return ApiError(400, f"{error.param}: {error.message}", param=error.param)
    if isinstance(error, QueueFull):
        return ApiError(429, text, headers={"retry-after": "2"})
    if isinstance(error, DiskFull):
        return ApiError(507, text, code="disk_full", headers={"x-should-retry": "false"})
    return ApiError(500, text)
