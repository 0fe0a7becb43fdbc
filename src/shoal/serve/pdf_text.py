"""The text of a PDF, read in a process of its own with limits on bytes, pages, memory and time.

A PDF is a program of sorts and pypdf has a history of endless loops: whatever a file does, it does it there.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import sys
from typing import Any

from shoal.serve.errors import ApiError

MAX_BYTES = 6 << 20
MAX_PAGES = 300
MAX_CHARACTERS = 1_000_000
MAX_SECONDS = 20
"""Of processor time: how long that takes by the clock depends on what else the machine does."""
MAX_WAIT_SECONDS = 120
MAX_MEMORY_BYTES = 1 << 30


async def pdf_text(base64_text: str) -> dict[str, Any]:
    """{"text", "pages", "cut"}: `cut` says that the limits ended the reading early. Raises ApiError."""
    try:
        data = base64.b64decode(base64_text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(400, "pdf: base64 is expected", param="pdf") from error
    if not data.startswith(b"%PDF-") or len(data) > MAX_BYTES:
        raise ApiError(400, f"a PDF file of at most {MAX_BYTES >> 20} MB is expected", param="pdf")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-m", "shoal.serve.pdf_text",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        out, _ = await asyncio.wait_for(process.communicate(data), MAX_WAIT_SECONDS)
        found: dict[str, Any] = json.loads(out)
    except (TimeoutError, ValueError) as error:
        raise ApiError(
            400, "this PDF cannot be read: it is damaged, locked or too complicated", param="pdf"
        ) from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return found


def _limit() -> None:
    try:
        import resource
    except ImportError:  # Windows: the clock of the parent remains
        return
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))


def main() -> None:
    """A PDF on the standard input, JSON on the standard output."""
    import io

    from pypdf import PdfReader

    data = sys.stdin.buffer.read(MAX_BYTES)
    _limit()
    reader = PdfReader(io.BytesIO(data))
    pages: list[str] = []
    size = 0
    for page in reader.pages[:MAX_PAGES]:
        pages.append(page.extract_text().strip())
        size += len(pages[-1])
        if size > MAX_CHARACTERS:
            break
    cut = len(pages) < len(reader.pages) or size > MAX_CHARACTERS
    text = "\n\n".join(page for page in pages if page)[:MAX_CHARACTERS]
    sys.stdout.write(json.dumps({"text": text, "pages": len(reader.pages), "cut": cut}))


if __name__ == "__main__":
    main()
