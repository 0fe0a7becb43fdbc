"""Speculation: cheap drafts of the next tokens, verified together in one step of the network.

A draft is a guess of certain tokens, without a distribution of its own. Each verified position is sampled as it would
have been without drafts - same logits, penalties, masks and the same random number - and a draft counts if it is what
was sampled. The first that is not ends the step. So answers are those without speculation, greedy or sampled: nothing
is accepted that would not have been said, and for a certain guess this accepts as often as any exact rule can
(Leviathan et al. 2022, arXiv 2211.17192, with q a single token).

How many drafts pay is decided by measured times of steps and measured acceptance, anew in every step.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from shoal.engine.scheduler import Sequence as TokenSequence

MAX_DRAFTS = 15
"""In a step, of one sequence: 16 positions together are where small CPUs stop to gain."""
_TOLD_SLOWER = 2.0  # with others in the batch a step may take so many times as long as one without drafts
_WORTH = 1.05  # tokens per second must grow by that much: less is noise
_REST, _LONGEST_REST = 16, 256  # offers left alone before one is tried again


@dataclass
class Offer:
    """What a drafter could say about a sequence: `tokens`, or None when it is asked for them later."""

    sequence: TokenSequence
    drafter: Drafter
    kind: int
    """Of the drafter's kinds of guesses (the better, the higher): acceptance is counted for each."""
    most: int
    tokens: list[int] | None = None


class Drafter(Protocol):
    name: str
    seconds_per_token: float
    """Measured time of a drafted token, 0 where it takes none to speak of."""
    expected: Sequence[float]
    """Acceptance of each kind before anything is measured."""

    def offer(self, sequence: TokenSequence, most: int) -> Offer | None:
        """A guess of at most `most` tokens behind the sequence's last, or None."""
        ...

    def draft(self, offers: Sequence[Offer], counts: Sequence[int]) -> list[list[int]]:
        """The tokens of offers that came without."""
        ...

    def forget(self, sequence: TokenSequence | None) -> None:
        """A sequence has ended; None: all that is held is out of date."""
        ...


class LookupDrafter:
    """Prompt lookup: what followed the last time these tokens stood in prompt or answer (the longest match wins, of
    equal ones the latest). Free of cost, and often right where text is repeated, quoted or edited."""

    name: str = "lookup"
    seconds_per_token: float = 0.0
    expected: Sequence[float] = (0.3, 0.5, 0.7, 0.8)
    _SHORTEST, _LONGEST, _PLACES = 2, 16, 8
    _KINDS = (3, 5, 9)  # matches from so many tokens on are of the next kind

    def __init__(self) -> None:
        self._ends: dict[TokenSequence, tuple[dict[tuple[int, ...], list[int]], list[int]]] = {}

    def offer(self, sequence: TokenSequence, most: int) -> Offer | None:
        ids, short = sequence.token_ids, self._SHORTEST
        ends, done = self._ends.setdefault(sequence, ({}, [short]))
        for end in range(done[0], len(ids)):  # every place but the end itself
            ends.setdefault(tuple(ids[end - short : end]), []).append(end)
        done[0] = max(done[0], len(ids))
        best, place = 0, 0
        for end in reversed(ends.get(tuple(ids[-short:]), [])[-self._PLACES :]):
            length = short
            while length < min(self._LONGEST, end) and ids[end - length - 1] == ids[-length - 1]:
                length += 1
            if length > best:
                best, place = length, end
        if not best:
            return None
        kind = bisect.bisect_right(self._KINDS, best)
        period = len(ids) - place  # a loop goes on: behind the end stands what it began with
        tokens = [ids[place + i % period] for i in range(most)]
        return Offer(sequence, self, kind, most, tokens)

    def draft(self, offers: Sequence[Offer], counts: Sequence[int]) -> list[list[int]]:
        return [list(offer.tokens or ())[:count] for offer, count in zip(offers, counts, strict=True)]

    def forget(self, sequence: TokenSequence | None) -> None:
        if sequence is not None:  # tokens stay what they were, whatever the weights
            self._ends.pop(sequence, None)


class ForcedDrafter:
    """What a grammar forces: names of fields, heads of calls. Nearly always right (a model may spell them in other
    tokens) and free."""

    name: str = "forced"
    seconds_per_token: float = 0.0
    expected: Sequence[float] = (0.9,)

    def offer(self, sequence: TokenSequence, most: int) -> Offer | None:
        tokens = sequence.forced(sequence.answer_ids)[:most] if sequence.forced else []
        return Offer(sequence, self, 0, len(tokens), tokens) if tokens else None

    def draft(self, offers: Sequence[Offer], counts: Sequence[int]) -> list[list[int]]:
        return [list(offer.tokens or ())[:count] for offer, count in zip(offers, counts, strict=True)]

    def forget(self, sequence: TokenSequence | None) -> None:
        pass


class Rate:
    """How often a guess is right, the newest guesses counting most."""

    def __init__(self, keep: float):
        self._keep, self._right, self._tried = keep, 0.0, 0.0

    def add(self, right: int, tried: int) -> None:
        self._right = self._right * self._keep + right
        self._tried = self._tried * self._keep + tried

    def value(self, before: float, weight: float = 4.0) -> float:
        """`before` is what is believed without any try."""
        return (self._right + weight * before) / (self._tried + weight)


class StepTimes:
    """How long a step takes that computes n positions, learnt from those that ran."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def add(self, positions: int, seconds: float) -> None:
        """Other programs only ever make a step longer, so a shorter time counts more."""
        old = self._seconds.get(positions)
        if old is None:
            self._seconds[positions] = seconds
        else:
            self._seconds[positions] += (0.3 if seconds < old else 0.1) * (min(seconds, 2 * old) - old)

    def known(self, positions: int) -> bool:
        return positions in self._seconds

    def expect(self, positions: int) -> float:
        """Seconds, between and beyond what was measured by straight lines; a first guess leans to trying: it says that
        eight more positions double the time."""
        measured = sorted(self._seconds)
        if not measured:
            return 1.0 + positions / 8
        if positions in self._seconds:
            return self._seconds[positions]
        place = bisect.bisect(measured, positions)
        if place == 0:
            return self._seconds[measured[0]]
        low = measured[place - 1]
        if place == len(measured):
            slope = self._seconds[low] / (8 + low)
            if place > 1:
                before = measured[place - 2]
                slope = max(0.0, self._seconds[low] - self._seconds[before]) / (low - before)
            return self._seconds[low] + (positions - low) * slope
        high = measured[place]
        part = (positions - low) / (high - low)
        return self._seconds[low] + part * (self._seconds[high] - self._seconds[low])


class Policy(Protocol):
    def counts(self, offers: Sequence[Offer], acceptance: Sequence[float], decoding: int) -> list[int]:
        """How many drafts of each offer to verify in a step in which `decoding` sequences decode."""
        ...


class Always:
    """Every draft that is offered, up to a number: for tests and measurements."""

    def __init__(self, most: int = MAX_DRAFTS):
        self.most = most

    def counts(self, offers: Sequence[Offer], acceptance: Sequence[float], decoding: int) -> list[int]:
        return [min(offer.most, self.most) for offer in offers]


class WhatPays:
    """The drafts with which the step gives the most tokens per second."""

    def __init__(self, times: StepTimes):
        self.times = times

    def counts(self, offers: Sequence[Offer], acceptance: Sequence[float], decoding: int) -> list[int]:
        counts = [0] * len(offers)
        if not self.times.known(decoding):  # first see what a step takes without
            return counts
        plain = self.times.expect(decoding)
        longest = plain * _TOLD_SLOWER if decoding > 1 else float("inf")
        single = sorted(
            (
                (rate ** (i + 1), which)
                for which, rate in enumerate(acceptance)
                for i in range(offers[which].most)
            ),
            reverse=True,
        )
        expected, drafting, best = float(decoding), 0.0, _WORTH * decoding / plain
        taken: list[int] = []
        keep = 0
        for (
            chance,
            which,
        ) in single:  # likeliest first: an earlier draft of a sequence always before a later one
            taken.append(which)
            expected += chance
            drafting += offers[which].drafter.seconds_per_token
            seconds = self.times.expect(decoding + len(taken)) + drafting
            if seconds > longest:
                break
            if expected / seconds > best:
                best, keep = expected / seconds, len(taken)
        for which in taken[:keep]:
            counts[which] += 1
        return counts


@dataclass
class _History:
    """What became of a sequence's drafts."""

    rates: dict[tuple[str, int], Rate] = field(default_factory=dict)
    left_alone: int = 0
    rest: int = _REST


class Speculator:
    """Drafts for the sequences that decode, by whichever of its drafters is likeliest to be right."""

    def __init__(self, drafters: Sequence[Drafter], policy: Policy | None = None):
        self.drafters = drafters
        self.times = StepTimes()
        self._policy = policy or WhatPays(self.times)
        self._rates = {(d.name, kind): Rate(0.99) for d in drafters for kind in range(len(d.expected))}
        self._histories: dict[TokenSequence, _History] = {}
        self._offers: dict[TokenSequence, Offer] = {}

    def propose(
        self,
        rooms: Sequence[tuple[TokenSequence, int]],
        decoding: int,
        make_room: Callable[[TokenSequence, int], int],
    ) -> dict[TokenSequence, list[int]]:
        """Drafts worth verifying, for (sequence, the most drafts it can take) of those that may have any. `make_room`
        finds places in the cache for them and says how many it found."""
        offers = []
        for sequence, room in rooms:
            most = min(room, MAX_DRAFTS)
            found = [drafter.offer(sequence, most) for drafter in self.drafters if most > 0]
            offers += sorted((o for o in found if o is not None), key=self._acceptance)[-1:]
        if not offers:
            return {}
        counts = self._policy.counts(offers, [self._acceptance(offer) for offer in offers], decoding)
        counts = [
            self._tried_again(offer, count, decoding) for offer, count in zip(offers, counts, strict=True)
        ]
        counts = [make_room(o.sequence, n) if n else 0 for o, n in zip(offers, counts, strict=True)]
        out: dict[TokenSequence, list[int]] = {}
        for drafter in self.drafters:
            mine = [(o, n) for o, n in zip(offers, counts, strict=True) if o.drafter is drafter and n > 0]
            if not mine:
                continue
            begin = time.perf_counter()
            drafts = drafter.draft([offer for offer, _ in mine], [count for _, count in mine])
            if tokens := sum(map(len, drafts)) * (drafter.seconds_per_token > 0):
                taken = (time.perf_counter() - begin) / tokens
                drafter.seconds_per_token += 0.2 * (
                    min(taken, 4 * drafter.seconds_per_token) - drafter.seconds_per_token
                )
            for (offer, _), each in zip(mine, drafts, strict=True):
                if each:
                    out[offer.sequence], self._offers[offer.sequence] = each, offer
        return out

    def judged(self, sequence: TokenSequence, drafted: int, accepted: int) -> None:
        """What became of the drafts that `propose` gave for a sequence."""
        offer = self._offers.pop(sequence, None)
        if offer is None or drafted == 0:
            return
        tried = accepted + (accepted < drafted)
        history, key = self._history(sequence), (offer.drafter.name, offer.kind)
        history.rates.setdefault(key, Rate(0.9)).add(accepted, tried)
        self._rates[key].add(accepted, tried)
        if accepted:
            history.rest = _REST

    def ended(self, sequence: TokenSequence) -> None:
        """Nothing more is asked about it."""
        self._histories.pop(sequence, None)
        self._offers.pop(sequence, None)
        for drafter in self.drafters:
            drafter.forget(sequence)

    def forget(self) -> None:
        """The cache was dropped or the weights changed."""
        self._offers.clear()
        for drafter in self.drafters:
            drafter.forget(None)

    def _history(self, sequence: TokenSequence) -> _History:
        return self._histories.setdefault(sequence, _History())

    def _acceptance(self, offer: Offer) -> float:
        """Of this kind of guess: in this answer, in the others, as expected at first - as far as each is known."""
        key = (offer.drafter.name, offer.kind)
        everywhere = self._rates[key].value(offer.drafter.expected[offer.kind])
        here = self._history(offer.sequence).rates.get(key)
        return everywhere if here is None else here.value(everywhere)

    def _tried_again(self, offer: Offer, count: int, decoding: int) -> int:
        """Offers that do not pay are tried again now and then, more and more seldom."""
        history = self._history(offer.sequence)
        if count or not self.times.known(decoding):
            history.left_alone = 0
            return count
        history.left_alone += 1
        if history.left_alone < history.rest:
            return 0
        history.left_alone, history.rest = 0, min(2 * history.rest, _LONGEST_REST)
        return min(2, offer.most)
