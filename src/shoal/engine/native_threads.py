"""How many threads a step takes, chosen by the times that steps really took.

Threads that meet several times a layer are fast on idle cores and slow beside another busy process: whoever waits for a
thread that was put aside waits for a time slice. One thread then beats two. So now and then a few steps run with
another count, and the faster one stays.
"""

from __future__ import annotations

from collections import deque
from statistics import median

_PROBE_STEPS = 3
_FIRST_PERIOD, _LONGEST_PERIOD = 16, 128  # steps between probes; doubled while nothing changes
_BETTER = 0.92  # a probe must be faster by this to win: two counts that are alike must not alternate
_SUDDEN = 1.5  # steps that take so many times the usual ask for a probe at once; one that does ends a probe


class ThreadChoice:
    """Between one thread, half of them and all."""

    def __init__(self, most: int):
        self.most = most
        self._options = sorted({1, max(1, most // 2), most})
        self._at = len(self._options) - 1
        self._probing: int | None = None
        self._probed: list[float] = []
        self._recent: deque[float] = deque(maxlen=_PROBE_STEPS)
        self._usual = 0.0
        self._size = 0
        self._since, self._period, self._upward = 0, _FIRST_PERIOD, False

    def threads(self, tokens: int) -> int:
        """For the next step, which has so many tokens."""
        if tokens.bit_length() != self._size:  # times are compared among steps of about the same size
            self._size = tokens.bit_length()
            self._recent.clear()
            self._probing, self._usual = None, 0.0
        return self._options[self._at if self._probing is None else self._probing]

    def took(self, tokens: int, seconds: float) -> None:
        """The step that `threads` was asked for is done."""
        seconds /= tokens
        if self._probing is not None:
            self._probed.append(seconds)
            hopeless = seconds > _SUDDEN * median(self._recent)
            if hopeless or len(self._probed) == _PROBE_STEPS:
                self._judge()
            return
        self._recent.append(seconds)
        self._since += 1
        if len(self._recent) < _PROBE_STEPS or len(self._options) == 1:
            return
        now = median(self._recent)
        sudden = self._usual > 0 and now > _SUDDEN * self._usual
        self._usual = now if self._usual == 0 or sudden else 0.9 * self._usual + 0.1 * now
        if sudden or self._since >= self._period:
            self._begin_probe()

    def _begin_probe(self) -> None:
        self._since, self._probed = 0, []
        neighbours = [i for i in (self._at - 1, self._at + 1) if 0 <= i < len(self._options)]
        self._upward = not self._upward
        self._probing = neighbours[-1 if self._upward else 0]

    def _judge(self) -> None:
        assert self._probing is not None
        if median(self._probed) < _BETTER * median(self._recent):
            self._at, self._period = self._probing, _FIRST_PERIOD
            self._recent.clear()
            self._usual = 0.0
        else:
            self._period = min(2 * self._period, _LONGEST_PERIOD)
        self._probing = None
