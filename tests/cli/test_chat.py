"""`shoal chat` as a program: one answer, JSON, a conversation, wrong use, Ctrl+C."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.cli import main
from shoal.cli.chat import _summary
from shoal.data.tokenizer import train_tokenizer
from shoal.engine.types import Finished, Timings, Usage
from shoal.model.checkpoint.save import save_checkpoint
from shoal.model.config import ModelConfig
from shoal.model.transformer import CausalLM

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with DeepSeek's marks that, greedy, talks without end."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = train_tokenizer(["hello there, world", "the quick brown fox"] * 4, vocab_size=320)
    config = ModelConfig(
        model_type="llama", vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=16384, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    network = CausalLM(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 1 / math.sqrt(parameter.shape[-1]), generator=generator)
    save_checkpoint(folder, network, tokenizer_files=tokenizer.save)
    return folder


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def shoal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`shoal chat ...` inside this process -> (exit code, stdout, stderr)."""

    def run(*arguments: Any, text: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["shoal", "chat", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        capsys.readouterr()
        try:
            main.run()
            code: Any = 0
        except SystemExit as end:
            code = end.code
        output = capsys.readouterr()
        return int(code or 0), output.out, output.err

    return run


def test_one_answer_as_json(shoal: Run, model: Path) -> None:
    options = ("--max-tokens", 6, "--temperature", 0, "--json")
    code, out, errors = shoal(model, "-p", "hello", *options)
    assert (code, errors) == (0, "")
    answer = json.loads(out)
    assert answer["model"] == "tiny" and answer["finish_reason"] in ("length", "stop")
    assert 1 <= answer["usage"]["completion_tokens"] <= 6 and answer["timings"]["first_token_seconds"] > 0
    cost = answer["cost"]
    assert (
        cost["flops"] > 0 and cost["seconds"] > 0 and cost["tokens"] == answer["usage"]["completion_tokens"]
    )
    assert cost["device"] and {"utilisation", "joules", "usd", "price_date"} <= set(cost)
    again = json.loads(shoal(model, *options, text="hello\n")[1])  # by a pipe
    assert (again["content"], again["reasoning"]) == (answer["content"], answer["reasoning"])


def test_the_quiet_line_names_the_cost() -> None:
    finished = Finished("stop", Usage(10, 5, 0), Timings(0.0, 0.5, 0.5, 1.0))
    line = _summary(finished, {"usd": 0.0000312})
    assert line == "5 tokens · 4.0 tok/s · 0.5 s to first · about $3.1e-05"
    assert "$" not in _summary(finished, {"usd": None})


def test_one_answer_as_text(shoal: Run, model: Path) -> None:
    code, out, errors = shoal(model, "-p", "hello", "--max-tokens", 5, "--seed", 1)
    assert (code, errors) == (0, "")
    assert out.endswith("\n") and "\x1b" not in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--json"], "no text on standard input"),
        (["-p", "x", "--think", "hard"], "unknown thinking effort 'hard'"),
        (["-p", "x", "--temperature", "-1"], "--temperature"),
        (["-p", "x", "--dtype", "int3"], "unknown dtype 'int3'"),
    ],
)
def test_wrong_use_is_code_2(shoal: Run, model: Path, arguments: list[str], says: str) -> None:
    code, out, errors = shoal(model, *arguments)
    assert (code, out) == (2, "") and says in errors and "Traceback" not in errors


def test_a_prompt_longer_than_the_context_is_code_1(shoal: Run, model: Path) -> None:
    code, out, errors = shoal(model, text="hello " * 20000)
    assert (code, out) == (1, "") and "but the context holds 16384" in errors and "Traceback" not in errors


def test_an_unknown_model_is_code_1(shoal: Run) -> None:
    code, out, errors = shoal("nowhere/at-all/really", "-p", "x")
    assert (code, out) == (1, "") and errors.startswith("error: ")


def test_interrupting_an_answer_is_code_130(model: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "shoal.cli.main", "chat", str(model), "-p", "hello", "--temperature", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.read(1)  # the answer has begun
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and b"Traceback" not in errors


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_conversation_in_a_terminal(model: Path) -> None:
    """Ctrl+C stops the answer and not the program, commands work, Ctrl+D leaves."""
    import pty

    terminal, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "shoal.cli.main", "chat", str(model), "--temperature", "0"],
        stdin=side, stdout=side, stderr=side, env={**environment(), "TERM": "dumb"}, start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(side)
    seen = b""

    def until(text: bytes, seconds: float = 30) -> bytes:
        nonlocal seen
        import select

        end = time.monotonic() + seconds
        while text not in seen:
            assert select.select([terminal], [], [], max(0, end - time.monotonic()))[0], seen[-2000:]
            seen += os.read(terminal, 65536)
        before, seen = seen.split(text, 1)
        return before

    until(b"\n> ")
    os.write(terminal, b"/help\n")
    assert b"Ctrl+D leaves" in until(b"\n> ")
    os.write(terminal, b"/nonsense\n")
    until(b"/help")
    until(b"\n> ")
    os.write(terminal, b"hello\n")
    until(b"hello\r\n")
    time.sleep(1.0)
    os.write(terminal, b"\x03")
    until(b"stopped")
    until(b"\n> ")
    os.write(terminal, b"/new\n")
    until(b"a new conversation")
    until(b"\n> ")
    os.write(terminal, b"\x04")
    assert process.wait(timeout=20) == 0
    os.close(terminal)
