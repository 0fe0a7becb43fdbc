"""The objects that answers become: log-probabilities, sums over several answers, the text of a plain completion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shoal.engine.types import Finished, Piece, PromptLogprobs, PromptProgress, Usage
from shoal.serve import answers
from shoal.serve.answers import Part, Prompt
from shoal.serve.schemas import CompletionRequest

if TYPE_CHECKING:
    from shoal.engine.open import OpenedModel as Opened


def summed(finished: Sequence[Finished], prompts: int) -> Finished:
    """The answers of one request as one: tokens add up, a prompt that several share counts once, and of it was cached
    what the first of them found."""
    first = finished[0]
    if len(finished) == 1:
        return first
    used = sorted((f.usage for f in finished), key=lambda u: (u.prompt_tokens, u.cached_tokens))
    firsts = used[:: max(1, len(used) // prompts)]
    counts = ("completion_tokens", "reasoning_tokens", "computed_tokens", "draft_tokens", "accepted_tokens")
    usage = Usage(
        prompt_tokens=sum(u.prompt_tokens for u in firsts),
        cached_tokens=sum(u.cached_tokens for u in firsts),
        **{name: sum(getattr(u, name) for u in used) for name in counts},
    )
    gains = [f.timings.draft_gain for f in finished if f.timings.draft_gain is not None]
    times = replace(
        first.timings,
        prompt_seconds=max(f.timings.prompt_seconds for f in finished),
        decode_seconds=max(f.timings.decode_seconds for f in finished),
        queue_seconds=min(f.timings.queue_seconds for f in finished),
        first_token_seconds=min(f.timings.first_token_seconds for f in finished),
        draft_gain=sum(gains) / len(gains) if gains else None,
    )
    return replace(first, usage=usage, timings=times)


def progress_object(event: PromptProgress) -> dict[str, Any]:
    return {"total": event.total, "cache": event.cached, "processed": event.processed,
            "time_ms": round(1000 * event.seconds, 3)}  # fmt: skip


def finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI writes -9999 for "impossible"."""
    return min(max(logprob, -9999.0), 0.0)


def token_text(opened: Opened, token_id: int) -> str:
    return opened.tokenizer.token_bytes(token_id).decode("utf-8", "replace")


def logprob_entry(opened: Opened, token_id: int, logprob: float | None) -> dict[str, Any]:
    raw = opened.tokenizer.token_bytes(token_id)
    return {"token": raw.decode("utf-8", "replace"), "logprob": finite(logprob if logprob is not None else -9999.0),
            "bytes": list(raw)}  # fmt: skip


def chat_logprobs(opened: Opened, content: Sequence[Piece], reasoning: Sequence[Piece]) -> dict[str, Any]:
    """OpenAI's logprobs object; thoughts stand apart under `reasoning_content`, as DeepSeek has them."""

    def entries(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
        return [
            logprob_entry(opened, piece.token_id, piece.logprob)
            | {"top_logprobs": [logprob_entry(opened, i, value) for i, value in piece.top]}
            for piece in pieces
        ]

    out: dict[str, Any] = {"content": entries(content), "refusal": None}
    if reasoning:
        out["reasoning_content"] = entries(reasoning)
    return out


class CompletionWriter:
    """Text and log-probabilities of one completion, with the prompt before it when `echo` is asked."""

    def __init__(self, opened: Opened, request: CompletionRequest, prompt: Prompt):
        self._opened, self._request, self._prompt = opened, request, prompt
        self._offset = 0  # characters so far
        self._echo_text = opened.tokenizer.decode(prompt.ids, skip_special=True) if request.echo else ""
        self._echo_pending = bool(request.echo)
        self._texts: list[str] = []
        self._logprobs: dict[str, list[Any]] | None = None
        self.finish_reason: str | None = None

    def take(self, event: answers.Event) -> tuple[str, dict[str, list[Any]] | None]:
        """The text and the log-probabilities that an event adds."""
        text, entries = "", _no_entries() if self._request.logprobs is not None else None
        scored = isinstance(event, PromptLogprobs)
        if self._echo_pending and (scored or isinstance(event, Part | Finished)):
            self._echo_pending = False
            text += self._echo_text
            if entries is not None and isinstance(event, PromptLogprobs):
                self._add_prompt(entries, event)
            self._offset = len(self._echo_text)
        if isinstance(event, Part):
            text += event.text
            if entries is not None:
                for piece in event.tokens:
                    self._add(entries, piece.token_id, piece.logprob, piece.top, piece.text)
        self._texts.append(text)
        if entries is not None and entries["tokens"]:
            if self._logprobs is None:
                self._logprobs = _no_entries()
            for name, values in entries.items():
                self._logprobs[name] += values
            return text, entries
        return text, None

    def _add(
        self,
        entries: dict[str, list[Any]],
        token_id: int,
        logprob: float | None,
        top: Sequence[tuple[int, float]],
        text: str,
    ) -> None:
        entries["tokens"].append(token_text(self._opened, token_id))
        entries["token_logprobs"].append(None if logprob is None else finite(logprob))
        shown = {
            token_text(self._opened, i): finite(value) for i, value in top[: self._request.logprobs or 0]
        }
        entries["top_logprobs"].append(None if logprob is None else shown)
        entries["text_offset"].append(self._offset)
        self._offset += len(text)

    def _add_prompt(self, entries: dict[str, list[Any]], scored: PromptLogprobs) -> None:
        for token_id, logprob, top in zip(self._prompt.ids, scored.logprobs, scored.top, strict=False):
            special = token_id in self._opened.tokenizer.special_ids
            self._add(entries, token_id, logprob, top, "" if special else token_text(self._opened, token_id))

    def choice(self, index: int, text: str, logprobs: dict[str, list[Any]] | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": self.finish_reason}

    def whole(self, index: int) -> dict[str, Any]:
        return self.choice(index, "".join(self._texts), self._logprobs)


def _no_entries() -> dict[str, list[Any]]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
