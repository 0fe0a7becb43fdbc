"""What people see of a run: `log.jsonl`, a progress bar with a live line on stderr, TensorBoard files on request."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal.errors import ShoalError
from shoal.files import atomic_write_text


class Log:
    """`log.jsonl`, one JSON object per line. A resume first drops the lines that lie after its state."""

    def __init__(self, path: Path, *, keep_lines: int | None = None):
        self.lines = read_log(path)[:keep_lines] if path.is_file() else []
        if path.is_file():  # without lines of the future, and without half a line of a killed run
            atomic_write_text(path, "".join(json.dumps(line) + "\n" for line in self.lines))
        self._file = open(path, "a", encoding="utf-8")

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line; it is on its way to the disk when this returns. Raises ShoalError on a full disk."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        self.lines.append(clean)
        try:
            self._file.write(json.dumps(clean, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise ShoalError(
                f"cannot write {self._file.name}: {error.strerror or error}",
                hint="Free some space, then use --resume.",
            ) from error

    def close(self) -> None:
        self._file.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; a last line cut by a kill is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


class Live:
    """The bar and the live line. On a terminal it redraws; into a file it writes a line now and then."""

    def __init__(self, *, shown: bool = True):
        self.shown = shown
        self.bar: Any = None
        self.task: Any = None
        self._terminal = sys.stderr.isatty()

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self.shown:
            return
        if self.bar is not None:
            self.bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def begin(self, stage: str, total_tokens: int) -> None:
        """Start the bar of a stage."""
        if not (self.shown and self._terminal):
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[line]}"),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
        )
        self.bar.start()
        self.task = self.bar.add_task(stage, total=total_tokens, line="")

    def update(self, line: Mapping[str, Any], fraction_done: float, total_tokens: int) -> None:
        """Show the newest figures."""
        if not self.shown:
            return
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=int(fraction_done * total_tokens), line=live_line(line))
        else:
            left = line.get("seconds_left")
            text = f"{line['stage']} {fraction_done:4.0%}  {live_line(line)}"
            self.say(text + (f"  {duration(left)} left" if left is not None else ""))

    def end(self) -> None:
        """Stop the bar of a stage."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = self.task = None


def live_line(line: Mapping[str, Any]) -> str:
    """`step 120  loss 2.345  1.234 bits/byte  1830 tokens/s  MaxVio 0.42  $0.0003`."""
    if line.get("live"):  # a method's own words
        cost = f"  ${line['usd']:.4f}" if line.get("usd") is not None else ""
        return f"step {line['step']}  {line['live']}{cost}"
    parts = [f"step {line['step']}", f"loss {line['loss']:.3f}"]
    if line.get("bits_per_byte") is not None:
        parts.append(f"{line['bits_per_byte']:.3f} bits/byte")
    parts.append(f"{line['tokens_per_second']:.0f} tokens/s")
    if line.get("max_violation"):
        parts.append(f"MaxVio {line['max_violation']:.2f}")
    if line.get("usd") is not None:
        parts.append(f"${line['usd']:.4f}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """`1:02:03` or `4:05`."""
    whole = int(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


class TensorBoard:
    """Event files for TensorBoard (`pip install 'shoal[tensorboard]'`)."""

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ShoalError(
                "run.tensorboard is on, but tensorboard is not installed",
                hint="pip install 'shoal[tensorboard]', or --run.tensorboard false",
            ) from error
        self.writer = SummaryWriter(str(folder))

    def write(self, line: Mapping[str, Any]) -> None:
        """Every number of a log line, against the stage's tokens."""
        for key, value in line.items():
            if isinstance(value, (int, float)) and key not in ("step", "tokens"):
                self.writer.add_scalar(f"{line['stage']}/{key}", value, line["tokens"])

    def close(self) -> None:
        self.writer.close()
