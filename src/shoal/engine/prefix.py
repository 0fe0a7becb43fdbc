"""Names of cached prefixes, and blocks of them kept on disk.

A full cache block is named by a chain of hashes over all tokens up to its end, begun with the adapter and the request's
salt. Tenants share the cache, so the hash is SHA-256: a name cannot be forged to reach another one's block, and with
another salt every name differs. What a stranger asked before can then not be timed (vllm#16016).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import threading
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shoal.errors import ShoalError
from shoal.files import atomic_write

_MAGIC = b"SHOALKV1"
_DIGEST_BYTES = 32
_QUEUED = 64  # blocks on their way to the disk; more are not written: an answer never waits for a disk


def chain_root(salt: str, adapter: str | None) -> bytes:
    """What the chain of a request begins with."""
    parts = (
        part.encode("utf-8", "surrogatepass") for part in (salt, "" if adapter is None else f"+{adapter}")
    )
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).digest()


def block_key(before: bytes, token_ids: Sequence[int]) -> bytes:
    """The name of a block behind the one (or the root) called `before`."""
    return hashlib.sha256(before + array("I", token_ids).tobytes()).digest()


class DiskBlocks:
    """Cache blocks as files: one each, written aside and renamed, with a checksum that is verified on every read, the
    longest unused deleted when they are more than `max_bytes`. A kill at any moment loses what was not yet written.

    `model` names everything besides tokens and salt that the contents depend on (weights, number format, layout).
    Writing happens in a thread of its own; errors of the disk are no errors of an answer.
    """

    def __init__(self, folder: Path, max_bytes: int, model: str):
        self.folder, self.max_bytes = folder, max_bytes
        self._model = hashlib.sha256(model.encode()).digest()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # what people said can be computed back from it
        self._since_trim = max_bytes  # look at the folder with the first write
        self._good: set[bytes] = set()  # written or verified by this process: not to be written again
        self._queue: queue.Queue[tuple[Path, Any] | None] = queue.Queue(_QUEUED)
        self._writer = threading.Thread(target=self._write_all, name="shoal-cache-writer", daemon=True)
        self._writer.start()

    def _path(self, key: bytes) -> Path:
        return self.folder / f"{hashlib.sha256(self._model + key).hexdigest()}.kv"

    def load(self, key: bytes) -> bytes | None:
        """The contents of a block; None when it is not there. A damaged file is deleted."""
        path = self._path(key)
        try:
            data = path.read_bytes()
            head, body = data[: len(_MAGIC) + _DIGEST_BYTES], data[len(_MAGIC) + _DIGEST_BYTES :]
            if head != _MAGIC + hashlib.sha256(body).digest():
                path.unlink()
                return None
            os.utime(path)
        except OSError:
            return None
        self._good.add(key)
        return body

    def save(self, key: bytes, contents: Callable[[], Any]) -> None:
        """Write a block soon, unless it is known to be there; `contents` gives its bytes, now (they may change)."""
        if key in self._good or self._queue.full():
            return
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait((self._path(key), contents()))
            self._good.add(key)

    def close(self) -> None:
        """Write what is queued, then stop. May be called twice."""
        if self._writer.is_alive():
            self._queue.put(None)
            self._writer.join()

    def _write_all(self) -> None:
        while (item := self._queue.get()) is not None:
            path, contents = item
            try:
                with atomic_write(path) as file:
                    file.write(_MAGIC + hashlib.sha256(contents).digest())
                    file.write(contents)
                self._since_trim += memoryview(contents).nbytes
                if self._since_trim > self.max_bytes // 16:
                    self._trim()
            except (OSError, ShoalError):  # a full disk: the cache stays as it is
                continue

    def _trim(self) -> None:
        """Delete leftovers of killed writes and the longest unused files above `max_bytes`."""
        self._since_trim = 0
        self._good = set()
        files = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(OSError):  # another server may trim the same folder
                if entry.name.endswith(".tmp"):
                    os.unlink(entry)
                elif entry.name.endswith(".kv"):
                    files.append((entry.stat().st_mtime, entry.stat().st_size, entry.path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.max_bytes:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
            total -= size
