"""Bits per byte of any text under any model: documents as a whole, chats by what their assistant says.

A model's bits for a text, over the text's UTF-8 bytes: comparable across tokenizers. A document stands behind the
mark of beginning (else of end), its own end is not charged. In a chat the assistant's turns are charged, given all
before them; the marks around them are no text and count neither way.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.data.sources import Example
from shoal.data.types import Document
from shoal.engine.open import OpenedModel
from shoal.errors import ShoalError, UsageError
from shoal.eval.logprobs import score, windows

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class _Piece:
    """What is read of an example: its tokens, which of them are charged, and how many bytes these spell."""

    ids: list[int]
    charged: NDArray[np.bool_]
    size: int


def evaluate(
    opened: OpenedModel,
    examples: Sequence[Example],
    *,
    window: int | None = None,
    stride: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Bits per byte over all examples, with a 95% interval over examples, and each one's bits and bytes; JSON-able.

    A long example is read in windows of `window` tokens (default: the context, at most 2048) that move on by
    `stride` (default: half a window). An example without text is counted as `empty`. Raises ShoalError, naming its
    place, for an example that this model cannot read.
    """
    longest = opened.engine.max_model_len
    window = min(2048, longest) if window is None else window
    stride = window // 2 if stride is None else stride
    if not 2 <= window <= longest or not 1 <= stride < window:
        raise UsageError(
            f"a window of {window} tokens with stride {stride}",
            hint=f"The window is 2 to {longest} tokens, the stride at least 1 and less than the window.",
        )
    bits: list[float] = []
    sizes: list[int] = []
    digest = hashlib.sha256()
    tokens = done = 0
    places: list[tuple[_Piece, int, int, int]] = []  # what was handed to the engine, oldest first

    def parts() -> Iterator[list[int]]:
        for example in examples:
            piece = _piece(opened, example)
            digest.update(_canonical(example) + b"\n")
            for start, end, first in windows(len(piece.ids), window, stride):
                places.append((piece, start, end, first))
                yield piece.ids[start:end]

    for scored in score(opened, parts()):
        piece, start, end, first = places.pop(0)
        if start == 0:
            bits.append(0.0)
            sizes.append(piece.size)
        charged = piece.charged[first:end]
        bits[-1] -= float(scored.logprobs[first - start - 1 :][charged].sum()) / math.log(2)
        tokens += int(charged.sum())
        if end == len(piece.ids):
            done += 1
            if progress:
                progress(done, len(examples))
    kept = [i for i, size in enumerate(sizes) if size]
    if not kept:
        raise ShoalError("there is no text to measure", hint="Give a file with text or chats in it.")
    found = summary([bits[i] for i in kept], [sizes[i] for i in kept])
    return {
        **asdict(found),
        "tokens": tokens,
        "empty": len(sizes) - len(kept),
        "chats": sum(not isinstance(example, Document) for example in examples),
        "window": window,
        "stride": stride,
        "sha256": digest.hexdigest(),
        "each": {"bits": [round(bits[i], 3) for i in kept], "bytes": [sizes[i] for i in kept]},
    }


def _piece(opened: OpenedModel, example: Example) -> _Piece:
    tokenizer = opened.tokenizer
    try:
        if isinstance(example, Document):
            before = tokenizer.bos_id if tokenizer.bos_id is not None else next(iter(tokenizer.eos_ids), None)
            if before is None:
                raise ShoalError("this model has no mark that a text can begin with")
            ids = [before, *tokenizer.encode(example.text)]
            return _Piece(ids, np.arange(len(ids)) > 0, len(example.text.encode()))
        thinking = example.meta.get("thinking")
        ids, learnt = opened.protocol.render_training(example.messages, thinking=thinking)
        charged = np.array(
            [flag and i not in tokenizer.special_ids for i, flag in zip(ids, learnt, strict=True)]
        )
        charged[0] = False
        spelt = (len(tokenizer.token_bytes(i)) for i, counts in zip(ids, charged, strict=True) if counts)
        return _Piece(ids, charged, sum(spelt))
    except (ShoalError, UnicodeEncodeError) as error:
        place = " ".join(str(example.meta[key]) for key in ("source", "line", "part") if key in example.meta)
        raise ShoalError(f"{place or 'an example'}: {error}") from error


def _canonical(example: Example) -> bytes:
    """The example's own text, however it was stored: two results are of the same text when these are the same."""
    if isinstance(example, Document):
        return json.dumps(example.text).encode()
    return json.dumps([[m.role, m.content, m.reasoning_content] for m in example.messages]).encode()


# ---- intervals


@dataclass(frozen=True, slots=True)
class Ratio:
    """Total bits over total bytes, and the 95% interval of a bootstrap over documents (none for a single one)."""

    bits_per_byte: float
    low: float | None
    high: float | None
    documents: int
    bytes: int


def summary(bits: Sequence[float], sizes: Sequence[int]) -> Ratio:
    """The text's bits per byte: a long document weighs more. The resamples are fixed by a seed."""
    low, high = _bootstrap(np.asarray(bits, dtype=np.float64), np.asarray(sizes, dtype=np.float64))
    return Ratio(sum(bits) / sum(sizes), low, high, len(bits), sum(sizes))


def difference(result: Mapping[str, Any], other: Mapping[str, Any]) -> Ratio:
    """Bits per byte of `result` minus those of `other` on the same documents, paired: what is hard about a document is
    hard for both, so this interval is far narrower than theirs. Raises ShoalError for results on different texts."""
    mine, theirs = result["each"], other["each"]
    if result["sha256"] != other["sha256"] or mine["bytes"] != theirs["bytes"]:
        raise ShoalError(
            "the two results are not of the same text",
            hint="Give the same --text (and --n, --split) to both.",
        )
    return summary([a - b for a, b in zip(mine["bits"], theirs["bits"], strict=True)], mine["bytes"])


def _bootstrap(bits: NDArray[np.float64], sizes: NDArray[np.float64]) -> tuple[float | None, float | None]:
    if len(bits) < 2:
        return None, None
    generator = np.random.default_rng(0)
    ratios = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        drawn = generator.integers(len(bits), size=len(bits))
        ratios[i] = bits[drawn].sum() / sizes[drawn].sum()
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(low), float(high)


def table(result: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Rows of cells, the header first: a row per text and model, others first, and how far this one is from them."""
    rows = [["text", "model", "weights", "documents", "bytes", "bits per byte", "this model minus it"]]
    for mine in result["text"]:
        for other in others:
            for theirs in other.get("text", ()):
                if theirs["sha256"] == mine["sha256"]:
                    rows.append([*_cells(other, theirs), _shown(difference(mine, theirs), "+.4f")])
        rows.append([*_cells(result, mine), ""])
    return rows


def _cells(result: Mapping[str, Any], text: Mapping[str, Any]) -> list[str]:
    names = [f.name for f in Ratio.__dataclass_fields__.values()]
    ratio = Ratio(**{name: text[name] for name in names})
    counts = [str(ratio.documents), f"{ratio.bytes:,}"]
    return [str(text["text"]), str(result["model"]), str(result["weights"]), *counts, _shown(ratio, ".4f")]


def _shown(ratio: Ratio, form: str) -> str:
    value = format(ratio.bits_per_byte, form)
    if ratio.low is None or ratio.high is None:
        return value
    return f"{value} ({format(ratio.low, form)} to {format(ratio.high, form)})"
