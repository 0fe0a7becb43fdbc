"""Tokens and vectors: /tokenize, /detokenize, /apply-template, the size of a request, /v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from shoal.errors import ShoalError
from shoal.serve import answers
from shoal.serve.body import parse_object, read_body, validated
from shoal.serve.errors import bad_field, from_shoal
from shoal.serve.reply import Reply, while_connected
from shoal.serve.schemas import ChatRequest, Flag, Salt, Text, Whole
from shoal.serve.work import Work

if TYPE_CHECKING:
    from shoal.engine.open import OpenedModel as Opened

MAX_INPUTS = 256
_IDS_HINT = (
    "input: texts are expected; token ids would be those of another vocabulary"
    " (LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))"
)


class TokenizeRequest(BaseModel):
    """POST /tokenize, with llama.cpp's names (`content`) or vLLM's (`prompt`)."""

    model: Text | None = Field(None, max_length=1000)
    content: Text | None = None
    prompt: Text | None = None
    add_special: Flag | None = None
    add_special_tokens: Flag | None = None
    parse_special: Flag | None = None
    with_pieces: Flag | None = None
    return_token_strs: Flag | None = None


class DetokenizeRequest(BaseModel):
    """POST /detokenize."""

    model: Text | None = Field(None, max_length=1000)
    tokens: list[Whole] = Field(max_length=1_000_000)


class EmbeddingRequest(BaseModel):
    """POST /v1/embeddings."""

    model: Text | None = Field(None, max_length=1000)
    input: Any = None
    encoding_format: Text | None = None
    dimensions: Whole | None = Field(None, ge=1, le=2**20)
    user: Salt | None = None

    def texts(self) -> list[str]:
        given = [self.input] if isinstance(self.input, str) else self.input
        if not isinstance(given, list) or not given or len(given) > MAX_INPUTS:
            raise bad_field("input", f"input: a text or a list of 1 to {MAX_INPUTS} texts is expected")
        if not all(isinstance(text, str) for text in given):
            raise bad_field("input", _IDS_HINT)
        if not all(given):
            raise bad_field("input", "input: an empty text has no vector")
        return given


class TokenApi:
    """The endpoints, as Starlette functions and one ASGI callable."""

    def __init__(self, work: Work):
        self.work, self.models = work, work.models

    async def tokenize(self, request: Request) -> Response:
        """Ids of a text, or of the prompt that messages become."""
        value = parse_object(await read_body(request.receive))
        if "messages" in value:
            chat = validated(ChatRequest, value)
            opened = await self.models.open(chat.model)
            ids = (await self.work.prompt(chat, opened))[0].ids
            return JSONResponse(self._tokens(opened, ids, None))
        asked = validated(TokenizeRequest, value)
        text = asked.content if asked.content is not None else asked.prompt
        if text is None:
            raise bad_field("content", "content: a text is expected (or prompt, or messages)")
        opened = await self.models.open(asked.model)
        special = asked.add_special if asked.add_special is not None else asked.add_special_tokens
        if special is None:
            special = asked.content is None  # the default of either server
        parse, tokenizer = asked.parse_special is not False, opened.tokenizer
        ids = await asyncio.to_thread(tokenizer.encode, text, special=parse)
        if special and tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
            ids = [tokenizer.bos_id, *ids]
        return JSONResponse(self._tokens(opened, ids, asked))

    def _tokens(self, opened: Opened, ids: list[int], asked: TokenizeRequest | None) -> dict[str, Any]:
        out: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": opened.engine.max_model_len}
        if asked is None:
            return out
        pieces = [opened.tokenizer.token_bytes(i) for i in ids]
        if asked.with_pieces:
            out["tokens"] = [{"id": i, "piece": _piece(piece)} for i, piece in zip(ids, pieces, strict=True)]
        if asked.return_token_strs:
            out["token_strs"] = [piece.decode("utf-8", "replace") for piece in pieces]
        return out

    async def detokenize(self, request: Request) -> Response:
        asked = validated(DetokenizeRequest, parse_object(await read_body(request.receive)))
        opened = await self.models.open(asked.model)
        answers.check_token_ids(opened, asked.tokens, "tokens")
        text = await asyncio.to_thread(opened.tokenizer.decode, asked.tokens)
        return JSONResponse({"content": text, "prompt": text})

    async def apply_template(self, request: Request) -> Response:
        """The prompt of messages as text, for people to look at: encoded again it could be forged."""
        chat = validated(ChatRequest, parse_object(await read_body(request.receive)))
        opened = await self.models.open(chat.model)
        prompt, _ = await self.work.prompt(chat, opened)
        return JSONResponse({"prompt": await asyncio.to_thread(opened.tokenizer.decode, prompt.ids)})

    async def input_tokens(self, request: Request) -> Response:
        """What a chat request's prompt will count in `usage.prompt_tokens`."""
        chat = validated(ChatRequest, parse_object(await read_body(request.receive)))
        opened = await self.models.open(chat.model)
        prompt, _ = await self.work.prompt(chat, opened)
        return JSONResponse({"object": "chat.completion.input_tokens", "input_tokens": len(prompt.ids)})

    async def embeddings(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = validated(EmbeddingRequest, parse_object(await read_body(receive)))
        asked.texts()
        if asked.encoding_format not in (None, "float", "base64"):
            raise bad_field("encoding_format", "encoding_format: expected 'float' or 'base64'")
        self.models.slot(asked.model)
        reply = self.work.reply(send, stream=False)
        with self.work.place(scope["shoal.owner"]):
            await while_connected(receive, reply.run(self._embed(asked, reply)))

    async def _embed(self, asked: EmbeddingRequest, reply: Reply) -> None:
        from shoal.engine.embed import embed

        opened = await self.models.open(asked.model)
        width = opened.config.hidden_size
        if asked.dimensions not in (None, width):
            raise bad_field("dimensions", f"dimensions: this model's vectors have {width}")
        data, tokens = [], 0
        for index, text in enumerate(asked.texts()):
            await answers.check_size(opened, (text,), "input")
            ids = await asyncio.to_thread(opened.tokenizer.encode, text)
            if opened.tokenizer.add_bos and opened.tokenizer.bos_id is not None:
                ids = [opened.tokenizer.bos_id, *ids]
            if len(ids) > opened.engine.max_model_len:
                raise answers.too_long(len(ids), opened.engine.max_model_len, "input")
            try:
                vector = await asyncio.to_thread(embed, opened.engine, ids, opened.adapter)
            except ShoalError as refusal:
                raise from_shoal(refusal, param="input") from refusal
            tokens += len(ids)
            shown: Any = vector.tolist()
            if asked.encoding_format == "base64":
                shown = base64.b64encode(vector.astype("<f4").tobytes()).decode()
            data.append({"object": "embedding", "index": index, "embedding": shown})
        name = self.models.slot(asked.model).card.id
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        await reply.object(
            {
                "object": "list",
                "data": data,
                "model": name,
                "usage": usage,
                "pooling": "mean of the last hidden states",
            }
        )


def _piece(data: bytes) -> str | list[int]:
    """A token's text, or its bytes where they are no whole text (llama.cpp's form)."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)
