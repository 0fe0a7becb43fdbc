"""Intervals against published values, and groups that add up."""

from __future__ import annotations

import pytest

from shoal.eval.scores import Mark, cell, markdown, plain, scores, summary, table, wilson


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_wilson_against_published_values(correct: int, count: int, low: float, high: float) -> None:
    assert wilson(correct, count) == pytest.approx((low, high), abs=6e-5)


def test_wilson_of_nothing_knows_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def marks() -> list[Mark]:
    return [
        *(Mark("sum", 1, "en", "off", f"sum:{i % 4}", i < 6) for i in range(8)),
        *(Mark("sum", 3, "en", "off", f"sum:{i}", False) for i in range(2)),
        *(Mark("story", 3, "ja", "on", "story", True) for i in range(4)),
    ]


def test_groups_and_distinct_questions() -> None:
    first, second, third = scores(marks())
    assert (first.family, first.level, first.count, first.distinct, first.correct) == ("sum", "1", 8, 4, 6)
    assert (second.level, second.accuracy, third.language, third.thinking) == ("3", 0.0, "ja", "on")
    assert first.to_dict()["low"] == wilson(6, 8)[0]


def test_summary_separates_easy_and_hard_levels() -> None:
    found = {(s.level, s.language, s.thinking): (s.correct, s.count) for s in summary(marks())}
    assert found == {("1-2", "en", "off"): (6, 8), ("3-5", "en", "off"): (0, 2), ("3-5", "ja", "on"): (4, 4)}


def test_tables_show_every_group_once() -> None:
    rows = table(scores(marks()))
    assert rows[0] == ["family", "level", "en, thinking off", "ja, thinking on"]
    assert rows[1][2] == "75.0% (40.9-92.9, n=8)" and rows[1][3] == cell(None) == "-"
    assert len(rows) == 4 and len(plain(rows).splitlines()) == 5
    assert markdown(rows).splitlines()[1] == "| --- | --- | --- | --- |"
