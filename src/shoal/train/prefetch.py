"""Rows made ahead by processes of their own, for devices that train faster than one Python process can pack.

Step k comes from worker k mod W. Worker w packs the parts w, w + W, w + 2W, ... of the data, so workers share nothing
and the stream is a function of the recipe alone. Every worker holds one finished step while the device computes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoal.errors import ShoalError
from shoal.train.loop import Batch

MakeRows = Callable[[int, int], Any]
"""(worker, workers) -> its rows, with `next_step`, `state` and `restore`; sent to the workers by pickle."""


def _work(connection: Connection, make: MakeRows, worker: int, workers: int) -> None:
    """Answer ("step", progress) with (batches, state after it), ("restore", state) with None, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer decides when to stop
    torch.set_num_threads(1)
    try:
        rows = make(worker, workers)
        while True:
            what, value = connection.recv()
            if what == "restore":
                rows.restore(value)
                answer = None
            else:
                batches = [_arrays(batch) for batch in rows.next_step(value)]
                answer = (batches, rows.state())
            connection.send(("done", answer))
    except (EOFError, BrokenPipeError):
        pass
    except BaseException as error:
        with contextlib.suppress(OSError):
            connection.send(("failed", error.message if isinstance(error, ShoalError) else repr(error)))


def _arrays(batch: Batch) -> dict[str, Any]:
    """A batch as plain arrays, which travel through a pipe in one copy."""
    return {key: value.numpy() if isinstance(value, Tensor) else value for key, value in vars(batch).items()}


def _batch(fields: dict[str, Any]) -> Batch:
    """What `_arrays` took apart."""
    tensors: dict[str, Any] = {
        key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for key, value in fields.items()
    }
    return Batch(**tensors)


@dataclass
class _Worker:
    process: Any
    connection: Connection
    number: int

    def ask(self, what: str, value: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # `answer` says why
            self.connection.send((what, value))

    def answer(self) -> Any:
        try:
            what, value = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(5)
            what, value = (
                "failed",
                f"it ended with exit code {self.process.exitcode}; was the memory used up?",
            )
        if what == "failed":
            raise ShoalError(
                f"process {self.number}, which prepares rows, failed: {value}",
                hint="The saved state is whole: --resume goes on. --run.workers 0 prepares rows in the main process.",
            )
        return value


class PrefetchedRows:
    """`W` workers' rows in turn; see `Rows` in loop.py. Steps are asked for W ahead, with the progress of that moment.

    The state is what the workers had after the last step taken, and the progress with which the steps in the air were
    asked for, so that a resume asks for them again in the same words.
    """

    def __init__(self, make: MakeRows, workers: int):
        context = multiprocessing.get_context("spawn")
        self.workers: list[_Worker] = []
        for number in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, make, number, workers), daemon=True)
            process.start()
            theirs.close()
            self.workers.append(_Worker(process, ours, number))
        self.turn = 0
        self.asked: deque[float] = deque()
        self.states: list[Mapping[str, Any] | None] = [None] * workers

    def next_step(self, progress: float) -> list[Batch]:
        """This rank's micro-batches; `progress` goes to the step that lies W - 1 ahead."""
        count = len(self.workers)
        while len(self.asked) < count:
            self._ask((self.turn + len(self.asked)) % count, progress)
        worker = self.workers[self.turn]
        arrays, self.states[self.turn] = worker.answer()
        self.asked.popleft()
        self._ask(self.turn, progress)
        self.turn = (self.turn + 1) % count
        return [_batch(fields) for fields in arrays]

    def state(self) -> dict[str, Any]:
        """Where the stream stands (JSON)."""
        return {"turn": self.turn, "asked": list(self.asked), "workers": list(self.states)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, by as many workers. Only before the first step."""
        self.turn, self.states = state["turn"], list(state["workers"])
        for worker, saved in zip(self.workers, self.states, strict=True):
            if saved is not None:
                worker.ask("restore", saved)
                worker.answer()
        for ahead, progress in enumerate(state["asked"]):
            self._ask((self.turn + ahead) % len(self.workers), progress)

    def close(self) -> None:
        """End the workers."""
        for worker in self.workers:
            worker.connection.close()
        for worker in self.workers:
            worker.process.join(5)
            worker.process.kill()

    def _ask(self, worker: int, progress: float) -> None:
        self.workers[worker].ask("step", progress)
        self.asked.append(progress)
