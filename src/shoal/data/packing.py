"""Documents and conversations into rows of one length, without cutting what fits and almost without padding.

Legend: B rows of L positions. A document of n tokens takes n - 1 positions: each reads a token and has the next one as
its label, so labels never cross documents. Positions count from 0 in each document.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shoal.data.chat import ChatProtocol
from shoal.data.tokenizer import Tokenizer
from shoal.data.types import Conversation, Document
from shoal.errors import ShoalError

IGNORED = -100
"""Label of a position that teaches nothing: masked, or padding."""
_BATCH = 32  # texts encoded in one call

Ints = npt.NDArray[np.int64]
Example = Document | Conversation


@dataclass(frozen=True, slots=True)
class Rows:
    """Packed rows, all arrays int64 [B, L] (of one row: [L]).

    `labels` holds the target of each position (the next token of its document) or -100. `document_ids` counts the
    documents of a row from 0 and is -1 on padding. `tokens` is the number of positions that are not padding.
    """

    input_ids: Ints
    labels: Ints
    document_ids: Ints
    position_ids: Ints

    @property
    def tokens(self) -> int:
        return int((self.document_ids >= 0).sum())

    @property
    def padding_share(self) -> float:
        return 1 - self.tokens / self.document_ids.size


def stack(rows: Sequence[Rows]) -> Rows:
    """Rows [L] of one length to rows [B, L]."""
    names = ("input_ids", "labels", "document_ids", "position_ids")
    return Rows(**{name: np.stack([getattr(row, name) for row in rows]) for name in names})


def encode_example(
    example: Example,
    tokenizer: Tokenizer,
    protocol: ChatProtocol | None,
    *,
    loss_on: Literal["all", "assistant"],
) -> tuple[list[int], list[bool]]:
    """Ids of one example with its BOS and end token, and for each whether it is learnt."""
    if isinstance(example, Document):
        return _framed(tokenizer.encode(example.text), tokenizer)
    if protocol is None:
        raise ShoalError(
            "conversations need a chat protocol", hint="Use texts, or a tokenizer with chat tokens."
        )
    ids, learnt = protocol.render_training(example.messages, thinking=example.meta.get("thinking"))
    return ids, learnt if loss_on == "assistant" else [True] * len(ids)


@dataclass
class Packer:
    """An endless, exactly resumable stream of rows.

    `open_part(k)` gives part k of the data (an epoch, or a generated chunk), always the same; parts follow one
    another, and only the part in hand is read again after `restore`. A row takes the document that waits longest,
    then always the longest waiting one that still fits. A text longer than a row goes on in another; a conversation is
    cut, and left out if nothing learnt remains (`left_out` counts them).
    """

    open_part: Callable[[int], Iterator[Example]]
    tokenizer: Tokenizer
    protocol: ChatProtocol | None = None
    loss_on: Literal["all", "assistant"] = "assistant"
    waiting: int = 256
    """Documents among which the best fit is looked for; 1 packs in the order of the data."""
    too_long: Literal["cut", "drop"] = "cut"
    """Conversations longer than a row; `cut` and `dropped` count them."""

    part: int = 0
    taken: int = 0
    left_out: int = 0
    documents: int = 0
    cut: int = 0
    dropped: int = 0
    _serial: int = 0
    _pool: list[tuple[int, int, list[int], list[bool]]] = field(
        default_factory=list
    )  # (positions, serial, ids, learnt)
    _stream: Iterator[tuple[list[int], list[bool], bool]] | None = None

    def row(self, length: int) -> Rows:
        """The next row [L]. Raises ShoalError if the source is empty or nothing in it can be learnt."""
        free = length
        chosen: list[tuple[list[int], list[bool]]] = []
        while True:
            while len(self._pool) < self.waiting:
                self._take(length)
            index = self._next(free, first=not chosen, length=length)
            if index is None:
                return self._arranged(chosen, length)
            positions, _, ids, learnt = self._pool.pop(index)
            chosen.append((ids, learnt))
            free -= positions
            if not free:
                return self._arranged(chosen, length)

    def rows(self, count: int, length: int) -> Rows:
        """The next rows [B, L]."""
        return stack([self.row(length) for _ in range(count)])

    def state(self) -> dict[str, Any]:
        """Where the stream stands, as JSON."""
        pool = [
            [serial, ids, "".join("1" if flag else "0" for flag in learnt)]
            for _, serial, ids, learnt in self._pool
        ]
        counts = {
            "part": self.part,
            "taken": self.taken,
            "left_out": self.left_out,
            "documents": self.documents,
            "cut": self.cut,
            "dropped": self.dropped,
        }
        return counts | {"serial": self._serial, "pool": pool}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on as if never stopped where `state` was taken. The data must be the same."""
        self.part, self.taken, self.left_out = state["part"], state["taken"], state["left_out"]
        self.documents, self._serial, self._stream = state["documents"], state["serial"], None
        self.cut, self.dropped = state.get("cut", 0), state.get("dropped", 0)
        self._pool = [(len(i) - 1, n, list(i), [flag == "1" for flag in f]) for n, i, f in state["pool"]]

    def _next(self, free: int, *, first: bool, length: int) -> int | None:
        """Index in the pool of the document to put in next, or None if none fits."""
        if first or self.waiting == 1:
            index = min(range(len(self._pool)), key=lambda i: self._pool[i][1])
            if self._pool[index][0] > length:  # waited while rows were longer
                _, serial, ids, learnt = self._pool.pop(index)
                self._insert(ids[length:], learnt[length:])
                bisect.insort(self._pool, (length, serial, ids[: length + 1], learnt[: length + 1]))
                return self._next(free, first=first, length=length)
            return index if self._pool[index][0] <= free else None
        index = bisect.bisect_right(self._pool, free, key=lambda entry: entry[0]) - 1
        return index if index >= 0 else None

    def _take(self, length: int) -> None:
        """Move the next example into the pool, in pieces if it is longer than a row."""
        ids, learnt, is_text = next(self._examples())
        self.documents += 1
        if not any(learnt[1 : None if is_text else length + 1]):
            self.left_out += 1
            if self.left_out >= 1000 and self.left_out == self.documents:
                raise ShoalError(
                    f"none of the first {self.left_out} examples has anything to learn within {length} tokens: "
                    "the row length is too short, or the answers are empty",
                    hint="Look at one with: shoal data inspect SOURCE --model MODEL --length N",
                )
            return
        if not is_text and len(ids) - 1 > length:
            if self.too_long == "drop":
                self.dropped += 1
                return
            self.cut += 1
        for start in range(0, len(ids) - 1, length) if is_text else (0,):
            self._insert(ids[start : start + length + 1], learnt[start : start + length + 1])

    def _insert(self, ids: list[int], learnt: list[bool]) -> None:
        if len(ids) > 1:
            bisect.insort(self._pool, (len(ids) - 1, self._serial, ids, learnt))
            self._serial += 1

    def _examples(self) -> Iterator[tuple[list[int], list[bool], bool]]:
        if self._stream is None:
            self._stream = self._encoded()
        return self._stream

    def _encoded(self) -> Iterator[tuple[list[int], list[bool], bool]]:
        """(ids, learnt, is text) of all examples from (part, taken) on; `taken` moves as they are handed out."""
        while True:
            source = itertools.islice(self.open_part(self.part), self.taken, None)
            found = self.taken
            while batch := list(itertools.islice(source, _BATCH)):
                texts = [example.text for example in batch if isinstance(example, Document)]
                encoded = iter(self.tokenizer.encode_batch(texts) if texts else ())
                for example in batch:
                    self.taken += 1
                    found += 1
                    if isinstance(example, Document):
                        yield *_framed(next(encoded), self.tokenizer), True
                    else:
                        yield (
                            *encode_example(example, self.tokenizer, self.protocol, loss_on=self.loss_on),
                            False,
                        )
            if not found:
                raise ShoalError(
                    "the data source is empty", hint="Look at it with: shoal data inspect SOURCE"
                )
            self.part, self.taken = self.part + 1, 0

    def _arranged(self, chosen: Sequence[tuple[list[int], list[bool]]], length: int) -> Rows:
        pad = self.tokenizer.pad_id if self.tokenizer.pad_id is not None else 0
        row = Rows(
            input_ids=np.full(length, pad, dtype=np.int64),
            labels=np.full(length, IGNORED, dtype=np.int64),
            document_ids=np.full(length, -1, dtype=np.int64),
            position_ids=np.zeros(length, dtype=np.int64),
        )
        start = 0
        for number, (ids, learnt) in enumerate(chosen):
            end = start + len(ids) - 1
            tokens = np.asarray(ids, dtype=np.int64)
            row.input_ids[start:end] = tokens[:-1]
            # By position, not by id: where padding and end token are one id, the end token is still learnt.
            row.labels[start:end] = np.where(np.asarray(learnt[1:], dtype=bool), tokens[1:], IGNORED)
            row.document_ids[start:end] = number
            row.position_ids[start:end] = np.arange(end - start)
            start = end
        return row


def _framed(ids: list[int], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """A text between BOS and end token, where the model has them; all of it is learnt."""
    bos = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    whole = [*bos, *ids, *tokenizer.eos_ids[:1]]
    return whole, [True] * len(whole)
