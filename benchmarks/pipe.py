"""Programs behind pipes that take turns: asks and answers are lines of JSON. And how much memory one of them took.

Only the standard library: the programs that we are compared with run under Pythons of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO


class Side:
    """One of the programs behind its pipe; `environ` is added to this process's own."""

    def __init__(self, name: str, command: list[str], environ: Mapping[str, str] | None = None):
        self.name = name
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environ or {})},
        )

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"do": do, **values}) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):  # a library may print something of its own
                return dict(json.loads(line))
        raise SystemExit(f"{self.name} ended in the middle of {do!r} (exit code {self.process.wait()})")

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def answer_asks(side: object, out: TextIO) -> None:
    """What runs at the other end: each ask is a method of `side`, its result one line on `out`."""
    for line in sys.stdin:
        ask = json.loads(line)
        print(json.dumps(getattr(side, ask.pop("do"))(**ask)), file=out, flush=True)


def peak_bytes(process: int | str = "self") -> int:
    """Peak resident bytes of a process (Linux). Not ru_maxrss: that of a child begins with its parent's."""
    status = Path(f"/proc/{process}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
