"""Models on the Hugging Face hub, whole: a pull that goes on where it was cut and checks every file, and a push.

The hub's own download starts a file anew in each process, so the parts lie here under the file's digest: a part always
belongs to exactly one content, and a file appears only when its digest agrees.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from shoal.errors import ShoalError
from shoal.model.checkpoint.hub import ALLOWED, offline

Progress = Callable[[int, int], None]
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_READ_BYTES = 1 << 20
MAX_FILES = 2000
TRIES = 3
"""In a row without a byte."""


@dataclass(frozen=True)
class HubFile:
    """`digest` is the SHA-256 of the content, or git's SHA-1 of it for small files."""

    name: str
    size: int
    digest: str


def hub_files(name: str, only: str | None = None) -> tuple[str, list[HubFile]]:
    """(commit, the files of a model that are fetched). `only` names one GGUF file of the repository instead. Raises
    ShoalError."""
    from huggingface_hub import HfApi

    with hub_errors(name):
        info = HfApi().model_info(name, files_metadata=True, timeout=30)
        there = [each.rfilename for each in info.siblings or []]
        if only is not None:
            wanted = [only] if only in there and only.endswith(".gguf") and "/" not in only else []
        else:
            wanted = [n for n in there if "/" not in n and any(fnmatch.fnmatch(n, form) for form in ALLOWED)]
        found = []
        for each in info.siblings or []:
            if each.rfilename in wanted:
                digest = each.lfs.sha256 if each.lfs else each.blob_id
                size = each.lfs.size if each.lfs else each.size
                if size is None or size < 0 or not _DIGEST.fullmatch(digest or ""):
                    raise ShoalError(f"the hub tells no size and digest of {each.rfilename}")
                found.append(HubFile(each.rfilename, size, str(digest)))
    ggufs = [n for n in there if n.endswith(".gguf") and "/" not in n]
    if only is not None and not found:
        known = ", ".join(ggufs[:20]) or "none"
        raise ShoalError(f"{name} has no GGUF file {only!r}", hint=f"Its GGUF files: {known}.")
    if only is None and not any(file.name.endswith(".safetensors") for file in found):
        hint = f"Take one of its GGUF files with --file: {', '.join(ggufs[:20])}." if ggufs else ""
        raise ShoalError(f"{name} has no safetensors files, and no others are fetched", hint=hint)
    if len(found) > MAX_FILES:
        raise ShoalError(f"{name} has more than {MAX_FILES} files")
    return str(info.sha), found


def fetch(name: str, folder: Path, *, only: str | None = None, progress: Progress | None = None) -> Path:
    """A folder with the model's files, below `folder`, which keeps what is there for the next try.

    Raises ShoalError; what `progress` raises ends the download.
    """
    commit, files = hub_files(name, only)
    blobs, whole = folder / "blobs", folder / "files"
    with _alone(folder, name):
        blobs.mkdir(exist_ok=True)
        parts = {file.digest: blobs / f"{file.digest}.part" for file in files}
        have = {
            file.digest: _size(blobs / file.digest) or min(_size(parts[file.digest]), file.size)
            for file in files
        }
        total, done = sum(file.size for file in files), sum(have.values())
        free = shutil.disk_usage(folder).free
        if total - done > free:
            more, left = (total - done) / 1e9, free / 1e9
            raise ShoalError(f"{name} needs {more:.2f} GB more, and the disk has {left:.2f} GB free",
                             hint="Free some space, or set SHOAL_HOME to another disk.")  # fmt: skip
        if progress:
            progress(done, total)
        for file in files:
            before = done - have[file.digest]

            def told(n: int, before: int = before) -> None:
                if progress:
                    progress(before + n, total)

            if not (blobs / file.digest).is_file():
                _fetch_one(name, commit, file, parts[file.digest], told)
                _verify(file, parts[file.digest])
                os.replace(parts[file.digest], blobs / file.digest)
            done = before + file.size
        shutil.rmtree(whole, ignore_errors=True)
        whole.mkdir()
        for file in files:
            try:
                os.link(blobs / file.digest, whole / file.name)
            except OSError:  # a file system without links
                shutil.copyfile(blobs / file.digest, whole / file.name)
    return whole


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _fetch_one(name: str, commit: str, file: HubFile, part: Path, told: Callable[[int], None]) -> None:
    """Append to the part what is missing; a connection that breaks is tried again while something still comes."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    if _size(part) > file.size:
        part.unlink()
    address, headers = hf_hub_url(name, file.name, revision=commit), build_hf_headers()
    headers["accept-encoding"] = "identity"
    failures = 0
    while (start := _size(part)) < file.size or not part.exists():
        if start:
            headers["range"] = f"bytes={start}-"
        try:
            with (
                hub_errors(name),
                get_session().stream(
                    "GET", address, headers=headers, timeout=60, follow_redirects=True
                ) as response,
            ):
                hf_raise_for_status(response)
                there = start if response.status_code == 206 else 0  # who ignores the range sends all of it
                with open(part, "ab" if there else "wb") as out:
                    for piece in response.iter_bytes():
                        out.write(piece)
                        there += len(piece)
                        told(min(there, file.size))
        except ShoalError:
            failures = 0 if _size(part) > start else failures + 1
            if failures >= TRIES:
                raise
            time.sleep(failures)


def _verify(file: HubFile, path: Path) -> None:
    """Raises ShoalError for content that is not what the hub said; the part is deleted then."""
    digest = hashlib.sha256() if len(file.digest) == 64 else hashlib.sha1(b"blob %d\0" % file.size)
    with open(path, "rb") as content:
        while piece := content.read(_READ_BYTES):
            digest.update(piece)
    if digest.hexdigest() != file.digest:
        path.unlink()
        raise ShoalError(
            f"{file.name} came damaged: its content is not what the hub says", hint="Ask for it again."
        )


@contextlib.contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Nobody else pulls into this folder meanwhile; the system forgets the lock when the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            import fcntl
        except ImportError:  # Windows: the last one to finish wins
            yield
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ShoalError(f"{name} is being pulled already", hint="Wait until that has ended.") from None
        yield


@contextlib.contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """What the hub's library raises, as errors for people."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        yield
    except ShoalError:
        raise
    except GatedRepoError as error:
        raise ShoalError(f"{name} is gated: its owners ask you to accept terms first",
                         hint=f"Accept them at https://huggingface.co/{name}, then set HF_TOKEN to a token of yours.",
                         ) from error  # fmt: skip
    except RepositoryNotFoundError as error:
        raise offline(name, "no such model, or none that this token may see") from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        hint = "Set HF_TOKEN to a token that may do this." if status in (401, 403) else "Try again later."
        raise ShoalError(f"the hub answered {status} for {name}", hint=hint) from error
    except OSError as error:
        if error.errno is not None and not isinstance(error, ConnectionError | TimeoutError):
            raise ShoalError(f"cannot store {name}: {error.strerror or error}") from error
        raise offline(name, f"{type(error).__name__}: {_first_line(error)}") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] not in (
            "huggingface_hub",
            "httpx",
            "httpx2",
            "httpcore",
            "httpcore2",
        ):
            raise
        raise offline(name, f"{type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or "no answer"


def push(name: str, files: Mapping[str, Path | bytes], *, private: bool, message: str) -> str:
    """Put the files (name in the repository -> file or content) on the hub as one commit; returns its address. Raises
    ShoalError."""
    from huggingface_hub import CommitOperationAdd, HfApi

    with hub_errors(name):
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        adds = [CommitOperationAdd(path, content) for path, content in sorted(files.items())]
        commit = api.create_commit(name, adds, commit_message=message)
    return str(commit.commit_url)
