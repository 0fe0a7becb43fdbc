"""One run per folder, and a Ctrl-C that loses nothing."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from shoal.errors import ShoalError


class Interrupts:
    """While open, the first SIGINT or SIGTERM only sets `wanted`, so that the step in hand ends and is saved.

    The second one interrupts at once, as usual. Outside the main thread, where Python allows no handlers, nothing
    changes; a SIGINT that the process was started to ignore (nohup) stays ignored.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; the system lets go of it however the process ends.

    Raises ShoalError if it cannot be written in, or if another process holds it: two would overwrite each other's
    states. Does nothing where the system has no such locks (Windows).
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    try:
        file = open(folder / ".lock", "wb")
    except OSError as error:
        raise ShoalError(
            f"cannot write in {folder}: {error.strerror}", hint="Choose another --run folder."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ShoalError(
                f"another process is training in {folder}", hint="Stop it first, or use another --run folder."
            ) from error
        yield
