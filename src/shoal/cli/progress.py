"""Progress bars on stderr; silent where stderr is no terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def bytes_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function of (bytes done, bytes in all)."""
    with _bar(what, in_bytes=True) as update:
        yield update


@contextlib.contextmanager
def count_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function of (done, in all)."""
    with _bar(what, in_bytes=False) as update:
        yield update


@contextlib.contextmanager
def _bar(what: str, *, in_bytes: bool) -> Iterator[Callable[[int, int], None]]:
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    counted = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = TextColumn("{task.description}"), BarColumn(), counted, TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
