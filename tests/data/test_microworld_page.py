"""docs/microworld.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from shoal.data.microworld.generate import FAMILIES
from shoal.data.microworld.plots import PLOTS
from shoal.data.microworld.world import LANGUAGES, pair_split, reserved_names

PAGE = (Path(__file__).parents[2] / "docs" / "microworld.md").read_text(encoding="utf-8")


def test_the_table_of_families_is_complete() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\d-]+) \|", PAGE, flags=re.M)
    levels = {f: (str(v[0]) if len(v) == 1 else f"{v[0]}-{v[-1]}") for f, (_, v, _) in FAMILIES.items()}
    assert dict(rows) == levels


def test_the_figures_hold() -> None:
    assert f"{len(PLOTS)} plots" in PAGE
    assert all(f"{len(reserved_names(language))} names per language" in PAGE for language in LANGUAGES)
    splits = [pair_split(a, b) for a in range(19, 200) for b in range(a)]
    share = sum(split != "train" for split in splits) / len(splits)
    assert f"{share:.0%} of the unordered pairs" in PAGE


def test_the_example_runs() -> None:
    code = re.search(r"```python\n(.*?)```", PAGE, flags=re.S)
    assert code
    exec(compile(code[1], "docs/microworld.md", "exec"), {})
