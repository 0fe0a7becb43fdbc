"""The page's files, read once at the start: a request looks a name up in a table and never touches the disk."""

from __future__ import annotations

import gzip
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from shoal.serve.errors import ApiError
from shoal.serve.security import PAGE_HEADERS

FOLDER = Path(__file__).parent / "static"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
}
_COMMENT = re.compile(rb"^[ \t]*(?://[^\n]*|/\*(?:(?!\*/).)*\*/[ \t]*$)", re.MULTILINE | re.DOTALL)
"""Comments that have their lines to themselves."""
_PLAIN_PAGE = b"shoal is running; its API is at /v1\n"


@dataclass(frozen=True)
class File:
    body: bytes
    packed: bytes | None
    kind: str
    etag: str
    immutable: bool


class StaticFiles:
    """`/` and `/static/...`. What lies below vendor/NAME-VERSION/ never changes; the rest is asked for anew (ETag)."""

    def __init__(self, folder: Path = FOLDER):
        self.files: dict[str, File] = {}
        for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
            if path.is_file() and (path.suffix in _TYPES or path.name.startswith("LICENSE")):
                name = path.relative_to(folder).as_posix()
                self.files[name] = _read(path, immutable=bool(re.match(r"vendor/[^/]+-\d[^/]*/", name)))

    async def page(self, request: Request) -> Response:
        if "index.html" not in self.files:
            return Response(_PLAIN_PAGE, media_type="text/plain")
        return self._answer(request, self.files["index.html"])

    async def cost(self, request: Request) -> Response:
        return self._answer(request, self.files["cost.html"])

    async def file(self, request: Request) -> Response:
        found = self.files.get(request.path_params["path"])
        if found is None:
            raise ApiError(404, "there is no such file")
        answer = self._answer(request, found)
        if request.path_params["path"] == "sw.js":
            answer.headers["service-worker-allowed"] = "/"  # it keeps the page itself, which lies above it
        return answer

    def _answer(self, request: Request, file: File) -> Response:
        headers = {
            "etag": file.etag,
            "vary": "accept-encoding",
            "cross-origin-resource-policy": "same-origin",
        }
        headers["cache-control"] = "public, max-age=31536000, immutable" if file.immutable else "no-cache"
        if file.kind.startswith("text/html"):
            headers |= PAGE_HEADERS
        if request.headers.get("if-none-match") == file.etag:
            return Response(status_code=304, headers=headers)
        body = file.body
        if file.packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
            body, headers["content-encoding"] = file.packed, "gzip"
        return Response(body, headers=headers | {"content-type": file.kind})


def _read(path: Path, *, immutable: bool) -> File:
    body = path.read_bytes()
    if path.suffix in (".js", ".css") and not immutable:  # a third of their weight; lines keep their numbers
        body = _COMMENT.sub(lambda found: b"\n" * found[0].count(b"\n"), body)
    kind = _TYPES.get(path.suffix, "text/plain; charset=utf-8")
    packed = (
        gzip.compress(body, 9, mtime=0)
        if len(body) > 300 and not kind.startswith(("image/png", "font/"))
        else None
    )
    if packed is not None and len(packed) > 0.9 * len(body):
        packed = None
    return File(body, packed, kind, f'"{hashlib.sha256(body).hexdigest()[:24]}"', immutable)
