"""Who is asked: a model in this process, or a server that speaks the OpenAI API. Both answer many prompts at once."""

from __future__ import annotations

import os
import re
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from shoal.data.types import Message
from shoal.engine.chat import ChatStream, stream_chat
from shoal.engine.open import OpenedModel
from shoal.engine.types import ContextLengthExceeded, SamplingParams
from shoal.errors import ShoalError

MAX_TOKENS = {
    False: 160,
    True: 400,
}  # of an answer without and with thinking; every reply of the world is shorter
KEY_VARIABLE = "SHOAL_ENDPOINT_KEY"
TRIES, FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 6, 1.0, 60.0  # of a request that a busy server turned away
_AGAIN = (408, 409, 429, 500, 502, 503, 504, 529)


@dataclass(frozen=True, slots=True)
class Prompt:
    messages: Sequence[Message]
    thinking: bool = False
    max_tokens: int | None = None
    temperature: float = 0.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: the visible text, the reasoning, why it ended, and how many tokens it took (0 if not told)."""

    content: str
    reasoning: str
    finish_reason: str
    tokens: int
    prompt_tokens: int = 0


class Asker(Protocol):
    """Answers in the order of the prompts, greedy where a prompt says nothing else."""

    name: str
    thinks: bool | None
    """Whether the model can think first; None: nobody knows."""

    def ask(self, prompts: Iterable[Prompt]) -> Iterator[Answer]: ...


class EngineAsker:
    """Asks an opened model, with a few more requests waiting than run at once."""

    def __init__(self, opened: OpenedModel, *, ahead: int = 32):
        self.opened, self.ahead, self.name = opened, ahead, opened.name
        self.thinks: bool | None = opened.protocol.thinking != "none"

    def ask(self, prompts: Iterable[Prompt]) -> Iterator[Answer]:
        waiting: deque[ChatStream | Answer] = deque()
        try:
            for prompt in prompts:
                limit = prompt.max_tokens or MAX_TOKENS[prompt.thinking]
                params = SamplingParams(temperature=prompt.temperature, max_tokens=limit, seed=prompt.seed)
                try:
                    waiting.append(
                        stream_chat(self.opened, prompt.messages, params, thinking=prompt.thinking)
                    )
                except ContextLengthExceeded:  # no answer, as a person would see it
                    waiting.append(Answer("", "", "length", 0))
                if len(waiting) >= self.ahead:
                    yield _read(waiting.popleft())
            while waiting:
                yield _read(waiting.popleft())
        finally:
            for stream in waiting:
                if isinstance(stream, ChatStream):
                    stream.cancel()


def _read(stream: ChatStream | Answer) -> Answer:
    if isinstance(stream, Answer):
        return stream
    text = {"content": "", "reasoning": ""}
    for event in stream:
        if event.kind in text:
            text[event.kind] += event.text
        elif event.kind == "finished":
            done = event.finished
            assert done is not None
            if done.reason == "error":
                raise ShoalError(f"the engine failed while it answered: {done.error}")
            usage = done.usage
            return Answer(
                text["content"], text["reasoning"], done.reason, usage.completion_tokens, usage.prompt_tokens
            )
    raise ShoalError("the engine ended an answer without saying so")


class EndpointAsker:
    """Asks `POST {url}/chat/completions` of any OpenAI-compatible server, a few requests at once.

    `url` may end in its version (/v1, /v1beta/openai) or not. A key, if the server wants one, is in the environment
    (SHOAL_ENDPOINT_KEY), so that it stands in no command line. `model` None takes the first that the server lists. A
    server that is busy is asked again, later and later. One that refuses a sampling parameter (reasoning models do)
    is asked without it from then on; `notes` says so.
    """

    def __init__(
        self, url: str, model: str | None = None, *, parallel: int = 4, timeout_seconds: float = 120.0
    ):
        import httpx

        base = url.rstrip("/")
        base = base if re.search(r"/v\d\w*(/|$)", base.partition("://")[2]) else base + "/v1"
        headers = {"Authorization": f"Bearer {key}"} if (key := os.environ.get(KEY_VARIABLE)) else {}
        try:
            self._client = httpx.Client(base_url=base, headers=headers, timeout=timeout_seconds)
        except (httpx.InvalidURL, ValueError) as error:
            raise ShoalError(
                f"{url!r} is not an address: {error}", hint="For example http://127.0.0.1:8000"
            ) from None
        self.url, self.parallel = url, parallel
        self.notes: list[str] = []
        self._learning = threading.Lock()
        self._names = {"max_tokens": "max_tokens", "temperature": "temperature", "seed": "seed"}
        """What this server calls a parameter; "" where it takes none."""
        self.thinks: bool | None = None
        self.name = model or self._first_model()

    def close(self) -> None:
        self._client.close()

    def ask(self, prompts: Iterable[Prompt]) -> Iterator[Answer]:
        with ThreadPoolExecutor(self.parallel) as pool:
            waiting: deque[Future[Answer]] = deque()
            try:
                for prompt in prompts:
                    waiting.append(pool.submit(self._one, prompt))
                    if len(waiting) >= 2 * self.parallel:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _first_model(self) -> str:
        try:
            return str(self._call("GET", "/models")["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise ShoalError(f"{self.url} lists no model", hint="Give its name: --model NAME.") from None

    def _one(self, prompt: Prompt) -> Answer:
        messages = [{"role": m.role, "content": m.content} for m in prompt.messages]
        body: dict[str, Any] = {
            "model": self.name,
            "messages": messages,
            "temperature": prompt.temperature,
            "max_tokens": prompt.max_tokens or MAX_TOKENS[prompt.thinking],
        }
        if prompt.seed is not None:
            body["seed"] = prompt.seed
        if prompt.thinking:
            body["thinking"] = {"type": "enabled"}
        reply = self._call("POST", "/chat/completions", body)
        try:
            choice = reply["choices"][0]
            message, usage = choice["message"], reply.get("usage") or {}
            return Answer(
                message.get("content") or "",
                message.get("reasoning_content") or message.get("reasoning") or "",
                str(choice.get("finish_reason")),
                int(usage.get("completion_tokens") or 0),
                int(usage.get("prompt_tokens") or 0),
            )
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ShoalError(
                f"{self.url} answered with something that is no chat completion: {str(reply)[:200]}",
                hint="The server must speak the OpenAI API (/v1/chat/completions).",
            ) from None

    def _worded(self, body: dict[str, Any]) -> dict[str, Any]:
        return {name: value for key, value in body.items() if (name := self._names.get(key, key))}

    def _reword(self, refusal: str) -> bool:
        """Learn from a refused request; whether there was anything to learn."""
        if "max_completion_tokens" in refusal and self._names["max_tokens"] == "max_tokens":
            self._names["max_tokens"] = "max_completion_tokens"
            return True
        for key in ("temperature", "seed"):
            if self._names[key] and re.search(rf"\b{key}\b", refusal):
                self._names[key] = ""
                self.notes.append(f"the server takes no {key}: answers are sampled by its own")
                return True
        return False

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The reply to `body`, in the words that this server wants it in."""
        import httpx

        sent = self._worded(body) if body else None
        wait = FIRST_WAIT_SECONDS
        try:
            for left in reversed(range(TRIES)):
                response = self._client.request(method, path, json=sent)
                if response.status_code in _AGAIN and left:
                    told = response.headers.get("retry-after", "")
                    pause = float(told) if re.fullmatch(r"\d+(\.\d+)?", told) else wait
                    time.sleep(min(pause, LONGEST_WAIT_SECONDS))
                    wait *= 2
                elif response.status_code == 400 and body and left:
                    with self._learning:  # several requests are refused for one reason
                        worded = self._worded(body)
                        if worded == sent and not self._reword(response.text):
                            break
                        sent = self._worded(body)
                else:
                    break
            response.raise_for_status()
            return response.json()
        except httpx.HTTPStatusError as error:
            raise ShoalError(
                f"{self.url} answered {error.response.status_code}: {error.response.text[:300]}",
                hint=f"A key, if one is needed, goes into {KEY_VARIABLE}.",
            ) from None
        except (httpx.HTTPError, ValueError) as error:
            raise ShoalError(
                f"{self.url} cannot be asked: {error}", hint="Is the server running there?"
            ) from None
