"""The pages that teach by building run as they stand: all Python blocks of a page, in order, in one namespace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ["mla.md", "router.md", "mtp.md", "fp8-blocks.md", "chat-protocol.md"]


def python_blocks(page: Path) -> list[tuple[int, str]]:
    """(line of the page, code) of each block fenced as python."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in found]


@pytest.mark.parametrize("name", PAGES)
def test_page_runs(name: str) -> None:
    page = DOCS / name
    blocks = python_blocks(page)
    assert len(blocks) >= 3
    namespace: dict[str, Any] = {}
    for line, code in blocks:
        exec(compile("\n" * line + code, str(page), "exec"), namespace)  # a failure names the page's line
