"""Everyday prompts: held out by prompt, the same for a seed, and answered in rows that a tuning reads."""

from __future__ import annotations

import pytest

from shoal.data.everyday import everyday, first
from shoal.engine.open import open_model
from shoal.model import registry
from shoal.tune import everyday as rows_of


def test_no_prompt_is_in_two_splits() -> None:
    splits = [dict(everyday(split)) for split in ("train", "validation", "test")]
    assert len(splits[0]) > 500 and all(splits)
    assert sum(map(len, splits)) == len(set().union(*splits))
    assert first("train", 5) == first("train", 5) != first("train", 5, seed=1)
    assert all(thought.endswith("no puzzle, I answer directly.") for thought in splits[0].values())


def test_rows_hold_what_the_model_says_today() -> None:
    """With nano: answers that ended by themselves, and the thought where the model has a place for it."""
    assert registry.find("nano")
    opened = open_model("nano", speculate="off")
    try:
        native = rows_of.rows(opened, 12, native=True)
        plain = rows_of.rows(opened, 12, native=False)
    finally:
        opened.close()
    assert native and len(native) == len(plain)
    prompts = dict(first("train", 12))
    for one, other in zip(native, plain, strict=True):
        (asked, said), (_, spelt) = one["messages"], other["messages"]
        assert said["reasoning_content"] == prompts[asked["content"]]
        assert spelt["content"] == f"<think>\n{said['reasoning_content']}\n</think>\n{said['content']}"


@pytest.mark.parametrize("count", [0, 3])
def test_no_more_than_asked(count: int) -> None:
    assert len(first("train", count)) == count
