"""From token ids to text that may be shown: whole characters, and nothing that could still become a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.data.tokenizer import StreamDecoder, Tokenizer
from shoal.engine.types import Piece


class StopMatcher:
    """Finds the first stop string that is completed in a stream of text, however the text is split.

    Of the stops that are complete, the one that ended first counts; of two that end at the same place, the longer.
    """

    def __init__(self, stops: Sequence[str]):
        self.stops = [stop for stop in stops if stop]

    def find(self, text: str) -> tuple[int, str] | None:
        """Where to cut `text` and the stop found there, or None."""
        found = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self.stops if stop in text]
        if not found:
            return None
        end, _, stop = min(found)
        return end - len(stop), stop

    def held(self, text: str) -> int:
        """The length of the longest tail of `text` with which a stop could begin."""
        longest = max((len(stop) for stop in self.stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self.stops):
                return length
        return 0


class Detokenizer:
    """Text of one answer. Each token that goes in comes out as one piece, some tokens later if it has to be held back.

    A mark of the model (special token) is never part of a stop string, and text does not match across one.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = (), *, min_tokens: int = 0):
        self._decoder = StreamDecoder(tokenizer)
        self._special_ids = tokenizer.special_ids
        self._matcher = StopMatcher(stops)
        self._min_tokens = min_tokens
        self._tokens = 0
        self._pending: list[Piece] = []
        self.stop: str | None = None
        """The stop string that was found; nothing more may be pushed then."""

    def push(self, piece: Piece) -> list[Piece]:
        """Take a token (a piece without text) and give the pieces that became certain."""
        self._tokens += 1
        piece.special = piece.token_id in self._special_ids
        piece.text = self._decoder.push(piece.token_id)
        self._pending.append(piece)
        if piece.special or not self._matcher.stops:
            return self._release(len(self._pending))
        text = "".join(p.text for p in self._pending)
        if self._tokens >= self._min_tokens and (found := self._matcher.find(text)):
            cut, self.stop = found
            return self._cut(cut)
        return self._release_but(self._matcher.held(text))

    def finish(self) -> list[Piece]:
        """The pieces still held back when the answer is cut short. Bytes of an unfinished character are left out."""
        return self._release(len(self._pending))

    def push_end(self, piece: Piece) -> list[Piece]:
        """The token that ended the answer has no text; what was held back comes out before it."""
        self._pending.append(piece)
        return self.finish()

    def _release(self, count: int) -> list[Piece]:
        released, self._pending = self._pending[:count], self._pending[count:]
        return released

    def _release_but(self, held: int) -> list[Piece]:
        """Pieces that end before the last `held` characters."""
        count, length = len(self._pending), 0
        while count > 0 and length < held:
            count -= 1
            length += len(self._pending[count].text)
        return self._release(count)

    def _cut(self, length: int) -> list[Piece]:
        """All pieces, their joined text cut to `length` characters."""
        for piece in self._pending:
            piece.text = piece.text[:length]
            length -= len(piece.text)
        return self._release(len(self._pending))
