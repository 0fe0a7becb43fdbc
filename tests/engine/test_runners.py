"""Which runner a model gets, and that a CPU server never needs torch."""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.engine import runners
from shoal.engine.open import open_model
from shoal.engine.runners import RunnerChoice
from shoal.engine.types import Delta, Request, SamplingParams
from shoal.errors import UsageError
from shoal.ops import native

needs_native = pytest.mark.skipif(not native.available, reason=native.missing_reason)


@pytest.mark.parametrize("choice", [
    RunnerChoice(runner="fast"), RunnerChoice(quant="5"), RunnerChoice(dtype="int7"),
    RunnerChoice(runner="native", dtype="float32"), RunnerChoice(runner="native", device="cuda"),
    RunnerChoice(runner="torch", quant="8"), RunnerChoice(quant="8", dtype="float32"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(choice: RunnerChoice) -> None:
    with pytest.raises(UsageError):
        choice.resolved()


def test_auto_is_native_where_it_can_be(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert RunnerChoice(dtype="float32").resolved().runner == "torch"
    assert RunnerChoice(device="cuda").resolved().runner == "torch"
    monkeypatch.setattr(native, "available", True)
    assert RunnerChoice().resolved().runner == "native"
    monkeypatch.setattr(native, "available", False)
    monkeypatch.setattr(native, "missing_reason", "not built: several times slower")
    monkeypatch.setattr(runners, "_said", False)
    with caplog.at_level(logging.WARNING):
        assert [RunnerChoice().resolved().runner for _ in range(3)] == ["torch"] * 3
    assert caplog.text.count("several times slower") == 1  # said once, in one line
    with pytest.raises(UsageError, match="not built"):
        RunnerChoice(runner="native").resolved()


@needs_native
@pytest.mark.parametrize("quant", [None, "8", "4", "none"])
def test_nano_answers_in_every_precision(quant: str | None) -> None:
    options = dict(context=256, max_num_seqs=1, speculate="off")
    with contextlib.closing(open_model("nano", quant=quant, **options)) as opened:
        assert opened.dtype == {"4": "int4", "none": "float32"}.get(quant or "", "int8")
        rendered = opened.protocol.render([{"role": "user", "content": "What is 17 + 25?"}])
        params = SamplingParams(temperature=0, max_tokens=24)
        events = list(opened.engine.submit(Request(rendered.ids, params)))
        text = "".join(event.text for event in events if isinstance(event, Delta))
        if quant != "4":  # too coarse for so small a model
            assert "42" in text


_SERVE = """
import sys, threading, time, urllib.request, json
from shoal.cli.serve import Opener, cards_of
from shoal.files import shoal_home
from shoal.serve.app import create_app
from shoal.serve.models import ModelTable
from shoal.serve.settings import ServerSettings
from shoal.serve.listener import Server, bind, url_of
from shoal.serve.store import Store

table = ModelTable(cards_of(["nano"]), Opener(), default="nano")
sock = bind("127.0.0.1", None)
app = create_app(ServerSettings(host="127.0.0.1"), table, Store(shoal_home() / "chats.sqlite"))
url = url_of(sock)
server = Server(app, on_ready=lambda: None, on_stop=table.close)
threading.Thread(target=server.run, args=([sock],), daemon=True).start()
body = json.dumps({"model": "nano", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}).encode()
request = urllib.request.Request(url + "/v1/chat/completions", body, {"Content-Type": "application/json"})
for _ in range(200):
    try:
        answer = json.load(urllib.request.urlopen(request, timeout=60))
        break
    except OSError:
        time.sleep(0.1)
heavy = sorted({"torch", "transformers", "pyarrow"} & set(sys.modules))
print(json.dumps({"tokens": answer["usage"]["completion_tokens"], "heavy": heavy}), flush=True)
import os
os._exit(0)
"""


@needs_native
def test_a_server_answers_without_torch(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SERVE], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"tokens": 4, "heavy": []}
