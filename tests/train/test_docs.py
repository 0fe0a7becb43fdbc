"""docs/training.md: its code runs, its table of keys is the recipes'."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from shoal.train.recipe import explain

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


def test_the_table_of_keys_is_the_recipes_own():
    assert PAGE.read_text(encoding="utf-8").endswith(explain())


def test_the_page_s_code_runs():
    namespace: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    for code in blocks:
        exec(compile(code, str(PAGE), "exec"), namespace)
