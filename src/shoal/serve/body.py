"""Reading a request's body: strict JSON into a typed model, with faults that name the field."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.types import Receive

from shoal.serve.errors import ApiError, ClientGone, from_validation

Model = TypeVar("Model", bound=BaseModel)


async def read_body(receive: Receive) -> bytes:
    """The whole body (its size is limited by the door). Raises ClientGone when the client leaves half way."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object. pydantic's parser takes UTF-8 only (lone surrogates included), no NaN, at most 200 levels;
    of a repeated key the last one counts. Raises ApiError 400."""
    try:
        value = from_json(body, allow_inf_nan=False, cache_strings="none")
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    return value


def validated(model: type[Model], value: dict[str, Any]) -> Model:
    """`value` as `model`; raises ApiError 400 that names the first faulty field."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise from_validation(error) from None
