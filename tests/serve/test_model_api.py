"""Models by the page: pulled, imported from the one folder, removed, with progress; and idle ones leave memory."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.model.local_hub import LocalHub, local_hub
from tests.serve.conftest import running, wait_for

from shoal.cli.serve import Opener, card_of
from shoal.serve.app import create_app
from shoal.serve.models import ModelCard, ModelTable
from shoal.serve.settings import ServerSettings
from shoal.serve.store import Store

ASK = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


@contextlib.contextmanager
def serving(
    tiny: Path, folder: Path, imports: Path | None = None, **options: Any
) -> Iterator[tuple[httpx.Client, ModelTable]]:
    table = ModelTable(
        [card_of("tiny", tiny)], Opener(), describe=lambda e: card_of(e.name, e.path, e), **options
    )
    app = create_app(ServerSettings(import_folder=imports), table, Store(folder / "chats.sqlite"))
    headers = {"sec-fetch-site": "same-origin"}
    with (
        running(app) as url,
        httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client,
    ):
        yield client, table


def job_of(client: httpx.Client, **asked: str) -> dict[str, Any]:
    """The job when it has ended."""
    made = client.post("/api/model-jobs", json=asked)
    assert made.status_code == 202, made.text

    def ended() -> Any:
        jobs = client.get("/api/model-jobs").json()["jobs"]
        return [j for j in jobs if j["id"] == made.json()["id"] and j["status"] not in ("waiting", "running")]

    job: dict[str, Any] = wait_for(ended)[0]
    return job


def names(client: httpx.Client) -> list[str]:
    return [model["id"] for model in client.get("/v1/models").json()["data"]]


def test_import_ask_remove(tiny_model: Path, tmp_path: Path, home: Path) -> None:
    imports = tmp_path / "imports"
    shutil.copytree(tiny_model, imports / "mine")
    (imports / "notes.txt").write_text("no model")
    (imports / "broken").mkdir()
    (imports / "broken" / "config.json").write_text("{}")
    with serving(tiny_model, tmp_path, imports) as (client, _):
        assert client.get("/api/model-jobs").json()["importable"] == ["broken", "mine"]
        for path in ("../imports/mine", str(imports / "mine"), "notes.txt", "", "mine/"):
            assert client.post("/api/model-jobs", json={"import_name": path}).status_code == 404, path
        assert "model_type" in job_of(client, import_name="broken")["error"]
        job = job_of(client, import_name="mine")
        assert (job["status"], job["model"]) == ("done", "mine") and job["bytes_done"] == job[
            "bytes_total"
        ] > 0
        assert names(client) == ["tiny", "mine"] and (home / "models" / "mine").is_dir()
        assert client.post("/v1/chat/completions", json=ASK | {"model": "mine"}).status_code == 200
        assert job_of(client, import_name="mine")["error"].startswith("there is a model mine already")
        assert client.get("/api/model-jobs").json()["removable"] == ["mine"]
        assert client.delete("/api/models/tiny").status_code == 400, "it was named by its path"
        assert client.delete("/api/models/mine").status_code == 204
        assert (
            names(client) == ["tiny"]
            and not (home / "models" / "mine").exists()
            and (imports / "mine").is_dir()
        )
        assert client.delete("/api/models/mine").status_code == 404


@pytest.fixture
def hub(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """The hub's library, pointed at a hub on loopback (as HF_ENDPOINT does before it is imported)."""
    from huggingface_hub import constants

    with local_hub() as server:
        server.files = {
            f.name: f.read_bytes()
            for f in sorted(tiny_model.iterdir(), key=lambda f: f.suffix != ".safetensors")
        }
        server.large = {"model.safetensors"}
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


def test_a_pull_by_the_page(hub: LocalHub, tiny_model: Path, tmp_path: Path) -> None:
    """What was cut is shown as unfinished, also by a server that has been started anew, and goes on."""
    size = len(hub.files["model.safetensors"])
    hub.cut = size // 2
    with serving(tiny_model, tmp_path) as (client, _):
        failed = job_of(client, pull="me/small")
        assert failed["status"] == "failed" and "cannot get me/small" in failed["error"]
        assert 0 < failed["bytes_done"] < failed["bytes_total"] and names(client) == ["tiny"]
        assert job_of(client, pull="small")["error"].startswith("'small' is no hub name")
        assert client.post("/api/model-jobs", json={"pull": "a/b", "import_name": "c"}).status_code == 400
    hub.cut, hub.asked = None, []
    with serving(tiny_model, tmp_path) as (client, _):
        assert client.get("/api/model-jobs").json()["unfinished"] == ["me/small"]
        done = job_of(client, pull="me/small")
        assert (done["status"], done["model"]) == ("done", "small"), done["error"]
        assert f"bytes={size // 2}-" in {
            asked for _, path, asked in hub.asked if path.endswith(".safetensors")
        }
        assert client.post("/v1/chat/completions", json=ASK | {"model": "small"}).status_code == 200
        assert client.get("/api/model-jobs").json()["unfinished"] == []


def test_fixed_models_and_cancelling(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = ModelTable([ModelCard("tiny", str(tiny_model))], Opener())
    app = create_app(ServerSettings(), table, Store(tmp_path / "a.sqlite"))
    headers = {"sec-fetch-site": "same-origin"}
    with (
        running(app) as url,
        httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client,
    ):
        assert client.post("/api/model-jobs", json={"pull": "a/b"}).status_code == 400
    began, imports = threading.Event(), tmp_path / "imports"
    shutil.copytree(tiny_model, imports / "mine")
    read = shutil.disk_usage

    def slow(path: Any) -> Any:  # holds the import between its check and its first byte
        began.set()
        cancelled.wait(20)
        return read(path)

    cancelled = threading.Event()
    monkeypatch.setattr("shoal.model.registry.shutil.disk_usage", slow)
    with serving(tiny_model, tmp_path, imports) as (client, _):
        job = client.post("/api/model-jobs", json={"import_name": "mine"}).json()["id"]
        assert began.wait(20) and client.delete(f"/api/model-jobs/{job}").status_code == 204
        cancelled.set()
        wait_for(lambda: client.get("/api/model-jobs").json()["jobs"][0]["status"] == "cancelled")
        assert names(client) == ["tiny"]
        assert client.delete(f"/api/model-jobs/{job}").status_code == 204
        assert client.get("/api/model-jobs").json()["jobs"] == []


def test_an_idle_model_leaves_memory_and_comes_back(tiny_model: Path, tmp_path: Path) -> None:
    with serving(tiny_model, tmp_path, idle_unload_seconds=1.0) as (client, table):
        slot = table.slots["tiny"]
        wait_for(lambda: slot.opened)
        engine = slot.opened.engine if slot.opened else None
        wait_for(lambda: slot.status == "unloaded" and engine is not None and engine.closed)
        assert (
            slot.opened is None
            and not hasattr(engine.runner, "network")
            and not hasattr(engine.runner, "weights")
        )
        assert client.get("/health").status_code == 200, "it is well, and loads when it is asked"
        assert client.post("/v1/chat/completions", json=ASK).status_code == 200
        assert slot.status in ("ready", "unloaded")


def test_an_answer_in_work_keeps_its_model(tiny_model: Path, tmp_path: Path) -> None:
    with serving(tiny_model, tmp_path, idle_unload_seconds=0.2) as (client, table):
        wait_for(lambda: table.slots["tiny"].opened)
        long = ASK | {"max_tokens": 1500, "ignore_eos": True, "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=long) as reply:
            text = reply.read().decode()
        assert '"finish_reason":"length"' in text and "[DONE]" in text
