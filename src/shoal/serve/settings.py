"""What the operator chose, and the limits that keep one client from hurting the others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

MAX_BODY_BYTES = 8 << 20
MAX_HEADER_BYTES = 16 << 10
MAX_CONNECTIONS = 512
RECEIVE_SECONDS = 30.0
"""Longest time for the headers and the body of one request."""
STALLED_READER_SECONDS = 60.0
"""A client that takes nothing of its answer for so long is let go."""
KEEP_ALIVE_SECONDS = 10.0
"""A silent answer shows a sign of life this often."""
LOCAL_OWNER = "local"


def hash_key(key: str) -> bytes:
    """Keys are kept and compared as SHA-256 digests."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True)
class ServerSettings:
    """`keys` maps an owner's name to the digest of his key; empty means no key is asked for (loopback only)."""

    host: str = "127.0.0.1"
    keys: Mapping[str, bytes] = field(default_factory=dict)
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_requests: int = 64
    """Requests for answers in work at once, waiting ones included; more are told 429."""
    strict: bool = False
    """Fields that would be ignored are a 400 instead."""
    keep_alive_seconds: float = KEEP_ALIVE_SECONDS
    import_folder: Path | None = None
    """The one folder from which an admin may import models on the page."""

    @property
    def local(self) -> bool:
        return self.host in ("127.0.0.1", "::1", "localhost")
