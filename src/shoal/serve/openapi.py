"""/openapi.json: the API as described by the models that check its requests. The page's routes are no part of it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

import shoal
from shoal.serve.anthropic_api import CountRequest, MessagesRequest
from shoal.serve.responses_api import ResponsesRequest
from shoal.serve.schemas import (
    EFFORTS,
    MAX_MESSAGES,
    MAX_STOP_CHARACTERS,
    MAX_STOPS,
    MAX_TOOLS,
    ROLES,
    ChatRequest,
    CompletionRequest,
)
from shoal.serve.token_api import MAX_INPUTS, DetokenizeRequest, EmbeddingRequest, TokenizeRequest

Schema = dict[str, Any]


def _object(required: str = "", *, nullable: bool = False, **properties: Any) -> Schema:
    return {
        "type": ["object", "null"] if nullable else "object",
        "properties": properties,
        "required": required.split(),
    }


def _list(items: Schema, *, least: int = 0, most: int | None = None) -> Schema:
    return {"type": "array", "items": items, "minItems": least} | (
        {"maxItems": most} if most is not None else {}
    )


def _maybe(*schemas: Schema) -> Schema:
    return {"anyOf": [*schemas, {"type": "null"}]}


TEXT: Schema = {"type": "string"}
TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
SOME_TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
EFFORT: Schema = {"enum": [*EFFORTS, None]}
PARTS = _list(_object("type text", type={"enum": ["text", "input_text", "output_text"]}, text=TEXT))
FUNCTION = _object(
    "name",
    name={"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,128}$"},
    description=TEXT_OR_NULL,
    parameters={"type": ["object", "null"]},
    strict={"type": ["boolean", "null"]},
)
MESSAGE = {
    "anyOf": [
        _object(
            "role content",
            role={"enum": [role for role in ROLES if role != "assistant"]},
            content={"anyOf": [TEXT, PARTS]},
        ),
        _object("role", role={"const": "assistant"}, content=_maybe(TEXT, PARTS)),
    ]
}
STOPS = _maybe(
    {"type": "string", "maxLength": MAX_STOP_CHARACTERS},
    _list({"type": "string", "maxLength": MAX_STOP_CHARACTERS}, most=MAX_STOPS),
)
IDS = _list({"type": "integer", "minimum": 0, "maximum": 2**31 - 1}, least=1)
FORMAT = _maybe(
    _object("type", type={"enum": ["text", "json_object"]}),
    _object(
        "type json_schema",
        type={"const": "json_schema"},
        json_schema=_object("schema", schema={"type": "object"}, strict={"type": ["boolean", "null"]}),
    ),
)
BLOCKS = _list(_object("type text", type={"const": "text"}, text=TEXT))

# What pydantic cannot say of a field that is checked by hand.
FIELDS: dict[type[BaseModel], dict[str, Schema]] = {
    ChatRequest: {
        "messages": _list(MESSAGE, least=1, most=MAX_MESSAGES),
        "stop": STOPS,
        "reasoning_effort": EFFORT,
        "think": {"enum": [*EFFORTS, True, False, None]},
        "response_format": FORMAT,
        "tools": _maybe(
            _list(_object("type function", type={"const": "function"}, function=FUNCTION), most=MAX_TOOLS)
        ),
        "tool_choice": _maybe(
            {"enum": ["none", "auto", "required"]},
            _object("type function", type={"const": "function"}, function=_object("name", name=TEXT)),
        ),
        "guided_json": _maybe({"type": "object"}, TEXT),
        "guided_regex": TEXT_OR_NULL,
        "guided_choice": _maybe(_list(TEXT, least=1, most=1000)),
        "structured_outputs": {"type": ["object", "null"]},
    },
    CompletionRequest: {
        "prompt": {"anyOf": [TEXT, _list(TEXT, least=1), IDS, _list(IDS, least=1)]},
        "stop": STOPS,
        "guided_json": _maybe({"type": "object"}, TEXT),
        "guided_regex": TEXT_OR_NULL,
        "guided_choice": _maybe(_list(TEXT, least=1, most=1000)),
        "structured_outputs": {"type": ["object", "null"]},
    },
    EmbeddingRequest: {
        "input": {"anyOf": [SOME_TEXT, _list(SOME_TEXT, least=1, most=MAX_INPUTS)]},
        "encoding_format": {"enum": ["float", "base64", None]},
    },
    MessagesRequest: {
        "messages": _list(
            _object(
                "role content",
                role={"enum": ["user", "assistant"]},
                content={"anyOf": [TEXT, _list(_object("type"))]},
            ),
            least=1,
            most=MAX_MESSAGES,
        ),
        "system": _maybe(TEXT, BLOCKS),
        "stop_sequences": STOPS,
        "metadata": {"type": ["object", "null"]},
        "thinking": _object("type", nullable=True, type={"enum": ["enabled", "adaptive", "disabled"]}),
        "output_config": {"type": ["object", "null"]},
        "tools": _maybe(_list(_object("name", name=TEXT))),
        "tool_choice": _object(nullable=True, type={"enum": ["auto", "any", "tool", "none"]}),
    },
    ResponsesRequest: {
        "input": {"anyOf": [TEXT, _list({"type": "object"}, least=1, most=MAX_MESSAGES)]},
        "include": {},
        "reasoning": _object(nullable=True, effort=EFFORT),
        "text": {"type": ["object", "null"]},
        "tools": _maybe(_list(_object("type", type=TEXT))),
        "tool_choice": _maybe(TEXT, {"type": "object"}),
    },
}
FIELDS[CountRequest] = FIELDS[MessagesRequest]
REQUIRED: dict[type[BaseModel], list[str]] = {
    CountRequest: ["messages"],
    ChatRequest: ["messages"],
    CompletionRequest: ["prompt"],
    EmbeddingRequest: ["input"],
    ResponsesRequest: ["input"],
    MessagesRequest: ["messages", "max_tokens"],
}
NOT_NULL: dict[type[BaseModel], dict[str, Schema]] = {
    MessagesRequest: {"max_tokens": {"type": "integer", "minimum": 1}}
}

USAGE = _object(
    "prompt_tokens completion_tokens total_tokens prompt_cache_hit_tokens prompt_cache_miss_tokens",
    prompt_tokens=COUNT,
    completion_tokens=COUNT,
    total_tokens=COUNT,
    prompt_cache_hit_tokens=COUNT,
    prompt_cache_miss_tokens=COUNT,
)
REASON = {"enum": ["stop", "length", "tool_calls"]}


def _answer(kind: str, choice: Schema) -> Schema:
    return _object(
        "id object created model choices usage timings cost",
        id=TEXT,
        object={"const": kind},
        created=COUNT,
        model=TEXT,
        choices=_list(choice, least=1),
        usage=USAGE,
        timings={"type": "object"},
        cost={"type": "object"},
    )


CHAT = _answer(
    "chat.completion",
    _object(
        "index message finish_reason logprobs",
        index=COUNT,
        finish_reason=REASON,
        logprobs={"type": ["object", "null"]},
        message=_object(
            "role content",
            role={"const": "assistant"},
            content=TEXT_OR_NULL,
            reasoning_content=TEXT,
            tool_calls=_list({"type": "object"}, least=1),
        ),
    ),
)
COMPLETION = _answer(
    "text_completion",
    _object(
        "index text finish_reason logprobs",
        index=COUNT,
        text=TEXT,
        finish_reason=REASON,
        logprobs={"type": ["object", "null"]},
    ),
)
MODEL = _object(
    "id object created owned_by max_model_len meta status",
    id=TEXT,
    object={"const": "model"},
    created=COUNT,
    owned_by=TEXT,
    max_model_len=COUNT,
    meta={"type": "object"},
    status={"type": "object"},
)
ERROR = _object(
    "error",
    error=_object("message type param code", message=TEXT, type=TEXT, param=TEXT_OR_NULL, code=TEXT_OR_NULL),
)
ANTHROPIC_ERROR = _object(
    "type error request_id",
    type={"const": "error"},
    request_id=TEXT,
    error=_object("type message", type=TEXT, message=TEXT),
)
MESSAGE_ANSWER = _object(
    "id type role model content stop_reason stop_sequence usage",
    id=TEXT,
    type={"const": "message"},
    role={"const": "assistant"},
    model=TEXT,
    content=_list(_object("type", type=TEXT)),
    stop_reason={"enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use"]},
    stop_sequence=TEXT_OR_NULL,
    usage={"type": "object"},
)
RESPONSE = _object(
    "id object created_at status model output usage",
    id=TEXT,
    object={"const": "response"},
    created_at=COUNT,
    status={"enum": ["completed", "incomplete"]},
    model=TEXT,
    output=_list(_object("id type", id=TEXT, type=TEXT)),
    usage={"type": "object"},
)
EMBEDDING = _object(
    "object data model usage",
    object={"const": "list"},
    model=TEXT,
    usage={"type": "object"},
    data=_list(
        _object(
            "object index embedding",
            object={"const": "embedding"},
            index=COUNT,
            embedding={"anyOf": [TEXT, _list(NUMBER)]},
        )
    ),
)
SIZE = _object("input_tokens", input_tokens=COUNT)
TOKENS = _object(
    "tokens count max_model_len",
    tokens=_list({"anyOf": [COUNT, {"type": "object"}]}),
    count=COUNT,
    max_model_len=COUNT,
)

# path -> (method, request, answer, may be streamed)
PATHS: dict[str, tuple[str, type[BaseModel] | None, Schema, bool]] = {
    "/v1/chat/completions": ("post", ChatRequest, CHAT, True),
    "/v1/chat/completions/input_tokens": ("post", ChatRequest, SIZE, False),
    "/v1/completions": ("post", CompletionRequest, COMPLETION, True),
    "/v1/embeddings": ("post", EmbeddingRequest, EMBEDDING, False),
    "/v1/models": ("get", None, _object("object data", object={"const": "list"}, data=_list(MODEL)), False),
    "/v1/models/{model}": ("get", None, MODEL, False),
    "/v1/messages": ("post", MessagesRequest, MESSAGE_ANSWER, True),
    "/v1/messages/count_tokens": ("post", CountRequest, SIZE, False),
    "/v1/responses": ("post", ResponsesRequest, RESPONSE, True),
    "/tokenize": ("post", TokenizeRequest, TOKENS, False),
    "/detokenize": ("post", DetokenizeRequest, _object("content prompt", content=TEXT, prompt=TEXT), False),
    "/apply-template": ("post", ChatRequest, _object("prompt", prompt=TEXT), False),
    "/health": ("get", None, _object("status", status={"const": "ok"}), False),
}


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    schemas: dict[str, Any] = {"Error": ERROR, "AnthropicError": ANTHROPIC_ERROR}
    paths: dict[str, Any] = {}
    for path, (method, request, answer, streams) in PATHS.items():
        contents: dict[str, Any] = {"application/json": {"schema": answer}}
        if streams:
            contents["text/event-stream"] = {"schema": _object("data", data=TEXT)}  # of each event
        kind = "AnthropicError" if path.startswith("/v1/messages") else "Error"
        error = {
            "description": "why not",
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind}"}}},
        }
        operation: dict[str, Any] = {
            "responses": {"200": {"description": "the answer", "content": contents}, "default": error}
        }
        if "{model}" in path:
            operation["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": TEXT}]
        if request is not None:
            name = _add(schemas, request)
            body = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
            operation["requestBody"] = {"required": True, "content": body}
        paths[path] = {method: operation}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Shoal", "version": shoal.__version__},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _add(schemas: dict[str, Any], model: type[BaseModel]) -> str:
    """Put a model's schema, and those it refers to, among the components."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    _rename_bounds(schema)
    schemas.update(schema.pop("$defs", {}))
    schema["properties"] |= FIELDS.get(model, {}) | NOT_NULL.get(model, {})
    if model in REQUIRED:
        schema["required"] = REQUIRED[model]
    schemas[model.__name__] = schema
    return model.__name__


_BOUNDS = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}


def _rename_bounds(node: Any) -> None:
    """pydantic leaves the names of its own where a validator of ours stands before the bound."""
    if isinstance(node, dict):
        for name in _BOUNDS.keys() & node.keys():
            node[_BOUNDS[name]] = node.pop(name)
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _rename_bounds(child)
