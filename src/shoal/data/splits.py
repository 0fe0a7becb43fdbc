"""Which examples are held out: decided by what an example says, so that the same one is never on both sides."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from shoal.data.types import Conversation, Document
from shoal.errors import ShoalError

Split = Literal["train", "validation", "test"]
SHARES: Mapping[str, float] = {"validation": 0.02, "test": 0.0}
"""Shares that are held out if nothing else is said; the rest is train."""


def canonical(example: Document | Conversation) -> str:
    """What makes an example the same as another: a document's text, a conversation's questions.

    Case, white space and width of letters do not count, nor do answers: the same question with another answer in the
    training data would make a held-out question an easy one.
    """
    if isinstance(example, Document):
        return _plain(example.text)
    asked = [_plain(message.content or "") for message in example.messages if message.role == "user"]
    return "\x1e".join(asked)


def split_of(
    example: Document | Conversation, shares: Mapping[str, float] = SHARES, *, salt: str = ""
) -> Split:
    """The split of an example: the same for ever, in any order and on any machine. Another `salt` is another draw."""
    held_out = sum(shares.values())
    if min(shares.values(), default=0) < 0 or held_out >= 1 or set(shares) - {"validation", "test"}:
        raise ShoalError(
            f"shares of held-out examples must be for validation and test, below 1 together: {dict(shares)}"
        )
    digest = hashlib.sha256(f"{salt}\x1f{canonical(example)}".encode("utf-8", "surrogatepass")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < shares.get("validation", 0.0):
        return "validation"
    return "test" if place < held_out else "train"


def only(
    examples: Iterable[Document | Conversation],
    split: Split,
    shares: Mapping[str, float] = SHARES,
    *,
    salt: str = "",
) -> Iterator[Document | Conversation]:
    """The examples that belong to `split`, in order."""
    return (example for example in examples if split_of(example, shares, salt=salt) == split)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
