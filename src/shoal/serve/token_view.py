"""An answer as its model reads it: every token with its probability and what else was likely there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from shoal.engine.types import PromptLogprobs, SamplingParams
from shoal.serve import answers
from shoal.serve.errors import ApiError
from shoal.serve.page_prompt import page_prompt

if TYPE_CHECKING:
    from shoal.data.tokenizer import Tokenizer
    from shoal.engine.open import OpenedModel as Opened

ALTERNATIVES = 6
MAX_TOKENS = 4096
"""Prompt and answer together: each position's logits are looked at."""


async def token_view(
    opened: Opened, history: Sequence[dict[str, Any]], message: dict[str, Any], owner: str
) -> dict[str, Any]:
    """{"tokens": [{text, logprob, top: [[text, logprob], ...]}, ...]} of the answer's content.

    The text is read once more with its prompt (no token is sampled), so that answers need not be written with
    log-probabilities to be looked at; logprobs are natural logarithms of the model's own distribution, before
    temperature. Raises ApiError when there is nothing to show or it is too long.
    """
    params = message["params"] or {}
    prompt = await page_prompt(opened, history, message, params, thinking=False)
    answer = opened.tokenizer.encode(message["content"])
    if not answer:
        raise ApiError(409, "this answer has no text")
    if len(prompt.ids) > min(MAX_TOKENS, opened.engine.max_model_len):
        raise ApiError(409, f"only conversations of up to {MAX_TOKENS} tokens are shown token by token")
    sampling = SamplingParams(max_tokens=0, prompt_logprobs=ALTERNATIVES)
    handle = answers.submit(opened, prompt, sampling, salt=owner, param="content")
    scored: PromptLogprobs | None = None
    try:
        async for event in handle:
            if isinstance(event, PromptLogprobs):
                scored = event
    finally:
        handle.cancel()
    if scored is None:
        raise ApiError(500, "the answer could not be read again")
    text, first = partial(token_text, opened.tokenizer), len(prompt.ids) - len(answer)
    return {
        "tokens": [
            {
                "text": text(token),
                "logprob": scored.logprobs[place],
                "top": [[text(other), logprob] for other, logprob in scored.top[place]],
            }
            for place, token in enumerate(prompt.ids[first:], first)
        ]
    }


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """What a token stands for; one that holds half a character is spelt as its bytes, a mark of the model by name."""
    data = tokenizer.token_bytes(token_id)
    if not data:
        return tokenizer.token_of(token_id) or ""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in data)
