"""What goes into the engine and what comes out: requests, sampling parameters, events. No torch, no numpy.

A request gives a stream of events in this order: any number of `Queued` and `PromptProgress`, one
`PromptLogprobs` if it was asked for, any number of `Delta`, and exactly one `Finished`, always the last.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from shoal.errors import ShoalError

if TYPE_CHECKING:
    import numpy as np

FinishReason = Literal["stop", "length", "cancelled", "error"]

# Called before a token is chosen with the tokens of the answer so far and the logits [V] (a copy), which it
# changes in place: a forbidden token gets -inf. Each call's tokens begin with those of the call before. A hook may
# have a method `wants(answer_ids) -> bool`: where it says False, it need not be called for the next token.
# Grammars and thinking budgets are such hooks (constrain.py).
LogitsHook = Callable[[Sequence[int], "np.ndarray[Any, Any]"], None]


class ContextLengthExceeded(ShoalError):
    """The prompt alone is longer than the context. `prompt_tokens` and `limit` are the two numbers."""

    def __init__(self, prompt_tokens: int, limit: int):
        super().__init__(
            f"the prompt has {prompt_tokens} tokens, but the context holds {limit}",
            hint="Shorten the conversation or start a new one.",
        )
        self.prompt_tokens, self.limit = prompt_tokens, limit


class QueueFull(ShoalError):
    """Too many requests are waiting already (`waiting` of them); ask again later."""

    def __init__(self, waiting: int):
        super().__init__(f"{waiting} requests are waiting already", hint="Try again in a moment.")
        self.waiting = waiting


class InvalidRequest(ShoalError):
    """A value that the engine cannot work with; `param` names the field as the API does."""

    def __init__(self, param: str, message: str):
        super().__init__(message, hint=f"Change `{param}`.")
        self.param = param


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen, in the order penalties, logit_bias, temperature, top_k, top_p, min_p."""

    temperature: float = 1.0
    """0 (and anything below 1e-5) takes the likeliest token; of equal ones the lowest id."""
    top_p: float = 1.0
    """Keep the likeliest tokens until their probabilities reach this sum; the likeliest always stays."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 or less, or more than there are: all."""
    min_p: float = 0.0
    """Drop tokens less likely than this times the likeliest."""
    repetition_penalty: float = 1.0
    """Logits of tokens of prompt and answer are divided by it (negative: multiplied), arXiv 1909.05858."""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of each token of the answer so far."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit as often as it stands in the answer so far."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids."""
    seed: int | None = None
    """The same seed gives the same text, alone or in a batch; None is different each time."""
    stop: tuple[str, ...] = ()
    """The answer ends exactly before the first of these; marks of the model (special tokens) never match."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the answer as the end-of-text token does."""
    ignore_eos: bool = False
    """The end-of-text token does not end the answer (for measurements)."""
    max_tokens: int | None = None
    """Longest answer in tokens; None or too many: what the context leaves. 0 only reads the prompt."""
    min_tokens: int = 0
    """Before that many tokens nothing but max_tokens ends the answer."""
    speculate: bool = True
    """Whether tokens may be drafted for it (where the engine does so); the answer is the same."""
    logprobs: int | None = None
    """Not None: log-probabilities of the chosen token and of that many likeliest ones, from the model's own
    logits (before penalties, bias and temperature)."""
    prompt_logprobs: int | None = None
    """The same for each token of the prompt, as one `PromptLogprobs` event."""


@dataclass(frozen=True)
class Request:
    """One prompt to continue."""

    prompt_ids: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    adapter: str | None = None
    """Which adapter answers (the runner must know it); None is the base model."""
    cache_salt: str = ""
    """Part of every cache key: requests with different salts never share cached prompts."""
    logits_hook: LogitsHook | None = None


@dataclass
class Piece:
    """One sampled token and the text that became certain with it ("" while a character is incomplete, for the
    token that ended the answer, and behind a stop string). Every sampled token gives exactly one piece."""

    token_id: int
    text: str
    logprob: float | None = None
    """Natural logarithm, None when not asked for."""
    top: list[tuple[int, float]] = field(default_factory=list)
    """(token id, log-probability) of the likeliest tokens, best first."""
    special: bool = False
    """A mark of the model (`text` is its spelling): the chat parser wants it, plain completions hide it."""


@dataclass(frozen=True)
class Usage:
    """What a request took. The token that ended the answer counts."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    """Filled in by `engine.chat`, which knows reasoning from content."""
    computed_tokens: int = 0
    """Positions that were run through the network for it: what of the prompt was not cached and each token of the
    answer but the last, and besides these rejected drafts and what a preemption made it read again."""
    draft_tokens: int = 0
    """Tokens that were drafted and verified, and how many of them were right."""
    accepted_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """Seconds: waiting for a place, reading the prompt, submit to first token, first token to the end."""

    queue_seconds: float = 0.0
    prompt_seconds: float = 0.0
    first_token_seconds: float = 0.0
    decode_seconds: float = 0.0
    draft_gain: float | None = None
    """How many times as fast its tokens came as they would have without drafts, by measured times of steps; None
    where nothing was drafted."""


@dataclass(frozen=True)
class Queued:
    """The request waits; `position` requests are before it (0: it is next)."""

    position: int


@dataclass(frozen=True)
class PromptProgress:
    """`processed` of `total` prompt tokens are read in `seconds`; `cached` of them came from a cache."""

    processed: int
    total: int
    cached: int
    seconds: float


@dataclass(frozen=True)
class PromptLogprobs:
    """For each prompt token its log-probability and the likeliest ones; the first token has None."""

    logprobs: list[float | None]
    top: list[list[tuple[int, float]]]


@dataclass
class Delta:
    """New tokens. One that nobody has read yet grows, so a slow reader gets fewer, longer ones."""

    pieces: list[Piece]

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


@dataclass(frozen=True)
class Finished:
    """The end. `error` says what went wrong when the reason is "error"."""

    reason: FinishReason
    usage: Usage
    timings: Timings
    error: str | None = None
    stop: str | int | None = None
    """The stop string or the token id that ended it."""


Event = Queued | PromptProgress | PromptLogprobs | Delta | Finished


@dataclass(frozen=True)
class Stats:
    """The engine at a glance; counters run since it started."""

    running: int
    waiting: int
    cache_blocks: int
    cache_blocks_free: int
    """Idle ones, which hold a prefix that may be asked for again, included."""
    kv_bytes: int
    """Of the blocks that are not free."""
    steps: int
    prompt_tokens: int
    """Computed ones, those read again after a preemption included."""
    cached_tokens: int
    """Prompt tokens that were taken from the cache, of finished requests."""
    completion_tokens: int
    draft_tokens: int
    accepted_tokens: int
    preemptions: int
    finished: Mapping[str, int]
    """By finish reason."""
    restarts: int
    """How often the supervisor had to begin anew after a fault outside any one request."""
