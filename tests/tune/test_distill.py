"""Distillation in its three kinds, with a real teacher: a local one, and one behind a server."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.tune.test_sft import ROWS, recipe_file

from shoal.data.tokenizer import Tokenizer, train_tokenizer
from shoal.errors import ShoalError
from shoal.model.checkpoint.adapter_files import WEIGHTS
from shoal.model.checkpoint.load import load_network
from shoal.model.checkpoint.save import save_checkpoint
from shoal.tune.recipe import load_tune_recipe
from shoal.tune.run import tune


def teacher_of(student: Path, tokenizer: Tokenizer, shift: float = 0.35) -> Path:
    """A model near the student, so that there is something to learn and it can be learnt."""
    network = load_network(student)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * parameter.std(), alpha=shift)
    save_checkpoint(student.parent / "teacher", network, tokenizer_files=tokenizer.save)
    return student.parent / "teacher"


def distilled(tmp_path: Path, student: Path, name: str, resume_every: int = 0, **values: Any) -> Any:
    section = {
        "row_length": 64,
        "tokens_per_step": 256,
        "epochs": 4,
        "lr": 0.01,
        "source": str(tmp_path / "rows.jsonl"),
    }
    file = recipe_file(tmp_path, student, distill={**section, **values})
    recipe = load_tune_recipe(file, "distill")
    if not resume_every:
        return tune(recipe, "distill", tmp_path / name)
    while not (
        outcome := tune(recipe, "distill", tmp_path / name, resume=True, stop_after=resume_every)
    ).finished:
        pass
    return outcome


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line and "step" in line]


@pytest.mark.parametrize("kind", ["logits", "on_policy"])
def test_the_student_comes_nearer_and_a_resume_ends_in_the_same_weights(
    kind: str,
    base: Any,
    tokenizer: Tokenizer,
    tmp_path: Path,
) -> None:
    student = base("gqa")
    values: dict[str, Any] = {"kind": kind, "teacher": str(teacher_of(student, tokenizer))}
    if kind == "on_policy":
        values |= {"steps": 16, "prompts_per_step": 6, "max_completion_length": 12, "temperature": 1.0}
    straight = distilled(tmp_path, student, "a", **values)
    found = losses(tmp_path / "a")
    assert found[-1] < 0.8 * found[0] and found[0] > 0.05, found
    assert straight.receipt is not None and straight.receipt.kind == "distill"
    resumed = distilled(tmp_path, student, "b", resume_every=7, **values)
    one, other = (load_file(o.checkpoint / WEIGHTS) for o in (straight, resumed))
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_another_tokenizer_is_refused_before_work(base: Any, tmp_path: Path, make_network: Any) -> None:
    other = train_tokenizer(["entirely other words here", "数字 12345"] * 9, vocab_size=384)
    save_checkpoint(tmp_path / "teacher", make_network("gqa"), tokenizer_files=other.save)
    with pytest.raises(ShoalError, match="has another tokenizer") as caught:
        distilled(tmp_path, base("gqa"), "a", teacher=str(tmp_path / "teacher"))
    assert "answers" in caught.value.hint


# ---- answers


class _Teacher(http.server.BaseHTTPRequestHandler):
    """A server with OpenAI's two routes that counts its answers and fails on demand."""

    asked: list[dict[str, Any]]
    fail_at: int

    def _send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self._send(200, {"data": [{"id": "big"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(body | {"key": self.headers["authorization"]})
        if len(self.asked) == self.fail_at:
            self._send(503, {"error": {"message": "the teacher is tired"}})
            return
        said = {"role": "assistant", "content": "over the lazy dog"}
        self._send(200, {"choices": [{"message": said}]})

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server() -> Iterator[tuple[str, type[_Teacher]]]:
    handler = type("Handler", (_Teacher,), {"asked": [], "fail_at": 0})
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}/v1", handler
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_answers_of_a_server_are_learnt_and_kept_when_it_fails(
    server: tuple[str, type[_Teacher]],
    base: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, handler = server
    monkeypatch.setenv("SHOAL_TEACHER_KEY", "secret")
    handler.fail_at = 5
    student = base("gqa")
    with pytest.raises(ShoalError, match="the teacher is tired"):
        distilled(tmp_path, student, "a", kind="answers", teacher=url)
    assert len((tmp_path / "a" / "teacher.jsonl").read_text().splitlines()) == 4
    outcome = distilled(tmp_path, student, "a", resume_every=1000, kind="answers", teacher=url)
    assert outcome.finished and len(handler.asked) == len(ROWS) + 1, "no question is asked twice"
    assert handler.asked[0]["model"] == "big" and handler.asked[0]["key"] == "Bearer secret"
    rows = [json.loads(line) for line in (tmp_path / "a" / "teacher.jsonl").read_text().splitlines()]
    assert rows[7]["messages"] == [
        ROWS[7]["messages"][0],
        {"role": "assistant", "content": "over the lazy dog"},
    ]
    assert losses(tmp_path / "a")[-1] < losses(tmp_path / "a")[0]


def test_answers_of_a_local_teacher(base: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    student = base("gqa")
    teacher = teacher_of(student, tokenizer)
    values: dict[str, Any] = {
        "kind": "answers",
        "teacher": str(teacher),
        "max_completion_length": 6,
        "tokens": 64,
    }
    outcome = distilled(tmp_path, student, "a", **values)
    assert outcome.finished
    assert len((tmp_path / "a" / "teacher.jsonl").read_text().splitlines()) == len(ROWS)
