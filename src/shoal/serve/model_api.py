"""/api/model-jobs: what an admin does with the models from the page: pull from the hub, import from the operator's one
folder, remove. A job runs in a thread and is asked about; a server that is killed leaves a pull that goes on later.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import shoal.model.registry as registry
from shoal.errors import ShoalError
from shoal.serve.app_api import _body, _found, _json, _no_body
from shoal.serve.caller import audit, require_admin
from shoal.serve.database import new_id
from shoal.serve.errors import ApiError, bad_field
from shoal.serve.models import ModelTable
from shoal.serve.page_bodies import PageBody
from shoal.serve.schemas import Text
from shoal.serve.settings import ServerSettings

if TYPE_CHECKING:
    from shoal.model.registry import ModelEntry

MAX_JOBS = 20
"""Waiting and running ones; of those that ended so many are remembered too."""
Short = Annotated[Text, Field(max_length=200)]


class NewJob(PageBody):
    """Exactly one of `pull` (a name on the hub; `file`: one GGUF of it) and `import_name` (an entry of the folder)."""

    pull: Short | None = None
    file: Short | None = None
    import_name: Short | None = None
    name: Short | None = None


@dataclass
class Job:
    kind: str
    what: str
    id: str = field(default_factory=new_id)
    status: str = "waiting"
    """waiting, running, done, failed, cancelled"""
    bytes_done: int = 0
    bytes_total: int = 0
    error: str | None = None
    model: str | None = None
    """Its name in the table, when it is there."""


class _Cancelled(Exception):
    pass


class ModelApi:
    """The routes. One job at a time: they share the disk and the network."""

    def __init__(self, settings: ServerSettings, models: ModelTable):
        self.settings, self.models = settings, models
        self._jobs: dict[str, Job] = {}
        self._cancelled: set[str] = set()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="shoal-models")

    def routes(self) -> list[Route]:
        return [
            Route("/api/model-jobs", self.state),
            Route("/api/model-jobs", self.begin, methods=["POST"]),
            Route("/api/model-jobs/{job}", self.cancel, methods=["DELETE"]),
            Route("/api/models/{model:path}", self.remove, methods=["DELETE"]),
        ]

    def close(self) -> None:
        """End what runs at its next piece; its files stay for the next try."""
        self._cancelled.update(self._jobs)
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def state(self, request: Request) -> Response:
        """Everything that the page shows about it, in one answer."""
        require_admin(request)
        entries, importable, unfinished = await asyncio.to_thread(
            lambda: (registry.list_models(), sorted(self._importable()), sorted(registry.unfinished_pulls()))
        )
        mine = {entry.name for entry in entries if entry.removable}
        return _json({
            "jobs": [asdict(job) for job in self._jobs.values()],
            "importable": importable,
            "import_folder": self.settings.import_folder is not None,
            "unfinished": unfinished,
            "removable": [name for name, slot in self.models.slots.items() if name in mine and slot.remote is None],
        })  # fmt: skip

    def _importable(self) -> dict[str, Path]:
        """By name what lies in the operator's folder and may be a model. The browser names a key of this, no path."""
        folder = self.settings.import_folder
        try:
            places = sorted(folder.iterdir()) if folder else []
        except OSError:
            return {}
        return {
            place.name: place
            for place in places
            if not place.name.startswith(".")
            and (place.suffix.lower() == ".gguf" if place.is_file() else (place / "config.json").is_file())
        }

    async def begin(self, request: Request) -> Response:
        require_admin(request)
        asked = await _body(request, NewJob)
        if self.models.describe is None:
            raise ApiError(400, "this server's models are fixed", code="unsupported_parameter")
        if (asked.pull is None) == (asked.import_name is None):
            raise bad_field("pull", "pull: exactly one of pull and import_name is expected")
        if sum(job.status in ("waiting", "running") for job in self._jobs.values()) >= MAX_JOBS:
            raise ApiError(
                429, "too many models are on their way; wait for one", headers={"retry-after": "10"}
            )
        if asked.pull is not None:
            job = Job("pull", asked.pull)
        else:
            if asked.import_name not in self._importable():
                raise ApiError(404, "there is no such model in the folder for imports", param="import_name")
            job = Job("import", asked.import_name)
        for old in [j for j in self._jobs.values() if j.status in ("done", "failed", "cancelled")][
            :-MAX_JOBS
        ]:
            del self._jobs[old.id]
        self._jobs[job.id] = job
        audit(request, f"model.{job.kind}", job.what)

        def work() -> ModelEntry:
            if job.id in self._cancelled:
                raise _Cancelled
            job.status = "running"
            if job.kind == "pull":
                return registry.pull(job.what, name=asked.name, file=asked.file, progress=told)
            return registry.import_model(self._importable()[job.what], name=asked.name, progress=told)

        def told(done: int, total: int) -> None:
            if job.id in self._cancelled:
                raise _Cancelled
            job.bytes_done, job.bytes_total = done, total

        asyncio.ensure_future(self._run(job, work)).add_done_callback(lambda task: task.exception())
        return _json(asdict(job), 202)

    async def _run(self, job: Job, work: Any) -> None:
        describe = self.models.describe
        assert describe is not None
        try:
            entry = await asyncio.get_running_loop().run_in_executor(self._worker, work)
            card = await asyncio.to_thread(describe, entry)
        except (_Cancelled, asyncio.CancelledError):
            job.status = "cancelled"
        except ShoalError as trouble:
            job.status, job.error = "failed", str(trouble)
        except Exception as fault:
            job.status, job.error = "failed", f"a fault inside the server ({type(fault).__name__})"
        else:
            self.models.add(card)
            job.status, job.model, job.bytes_done = "done", entry.name, job.bytes_total

    async def cancel(self, request: Request) -> Response:
        """End a job at its next piece; one that has ended is forgotten."""
        require_admin(request)
        job = _found(self._jobs.get(request.path_params["job"]), "job")
        if job.status in ("waiting", "running"):
            self._cancelled.add(job.id)
        else:
            del self._jobs[job.id]
        return Response(status_code=204)

    async def remove(self, request: Request) -> Response:
        """Delete an imported model; 409 while it answers. What comes with a package or by a path stays."""
        require_admin(request)
        await _no_body(request)
        name = request.path_params["model"]
        slot = self.models.slot(name)
        entry = await asyncio.to_thread(registry.find, name)
        if entry is None or not entry.removable or slot.card.spec != entry.name:
            raise ApiError(400, f"{name} was not imported here, so it is not removed here", param="model")
        await self.models.drop(name)
        audit(request, "model.remove", name)
        await asyncio.to_thread(registry.remove, name)
        return Response(status_code=204)
