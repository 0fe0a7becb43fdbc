"""The checker: generous about phrasing, strict about the answer, quick on any text, and it evaluates nothing."""
# ruff: noqa: E501 - tasks stay on one line

from __future__ import annotations

import time

import pytest

from shoal.data.microworld.answers import MAX_CHARACTERS, check, kanji_number
from shoal.data.microworld.generate import FAMILIES, task_at
from shoal.data.microworld.world import Task

SUM = Task("sum", 1, "en", "What is 12 + 5?", "17", "", "", "number", "sum:12,5")
SUM_JA = Task("sum", 1, "ja", "12たす5はいくつですか？", "17", "", "", "number", "sum:12,5")
ZERO = Task("sum", 1, "en", "What is 5 + 0?", "5", "", "", "number", "sum:5,0")
WHERE = Task("where", 2, "en", "Anna went to the park. Ben went to the shop. Where is Anna?", "park", "", "", "word", "w", options=("park", "shop", "sea"))  # fmt: skip
WHERE_JA = Task("where", 2, "ja", "ゆきは公園へ行きました。けんは店へ行きました。ゆきはどこにいますか？", "公園", "", "", "word", "w", options=("公園", "店", "海"))  # fmt: skip
OPPOSITE = Task(
    "opposite",
    1,
    "en",
    "What is the opposite of hot?",
    "cold",
    "",
    "",
    "word",
    "o",
    options=("cold", "hot", "big"),
)
COMPARE = Task(
    "compare", 1, "en", "Which is larger, 12 or 5?", "12", "", "", "word", "c", options=("12", "5")
)
SPELL = Task("spell", 2, "en", "Spell cat.", "c-a-t", "", "", "letters", "s")
FIRST = Task("spell", 1, "en", "First letter of cat?", "c", "", "", "letters", "s")
FIRST_I = Task("spell", 1, "en", "First letter of ink?", "i", "", "", "letters", "s")
FIRST_A = Task("spell", 1, "en", "First letter of ant?", "a", "", "", "letters", "s")
SPELL_JA = Task("spell", 2, "ja", "「ねこ」を一文字ずつ書いてください。", "ね・こ", "", "", "letters", "s")
SORT = Task("compare", 4, "en", "Sort 9, 2, 5.", "2, 5, 9", "", "", "numbers", "s")
SAY = Task("repeat", 2, "en", "Say: cat, dog, sun", "cat, dog, sun", "", "", "words", "r")


@pytest.mark.parametrize(
    ("task", "text"),
    [
        (SUM, "17"),
        (SUM, "12 + 5 = 17."),
        (SUM, "The answer is **17**."),
        (SUM, "Sure! If you add 12 and 5, you get 17"),
        (SUM, "17 is what you get from 12 and 5"),
        (SUM, "１７"),
        (SUM_JA, "答えは１７です。"),
        (SUM_JA, "十七です"),
        (ZERO, "5 + 0 = 5."),
        (ZERO, "It is 5"),
        (WHERE, "She is in the PARK."),
        (WHERE, "Anna is in the park, and Ben is in the shop."),
        (WHERE_JA, "公園にいます。"),
        (OPPOSITE, "The opposite of hot is cold."),
        (OPPOSITE, "Cold."),
        (COMPARE, "12 is larger than 5."),
        (COMPARE, "12"),
        (SPELL, "C - A - T"),
        (SPELL, "It is spelled c, a, t."),
        (FIRST, 'The first letter is "c".'),
        (FIRST, "c"),
        (FIRST, "I think it is c."),
        (FIRST_I, "I"),
        (FIRST_I, "It is I."),
        (FIRST_I, "The letter i comes first."),
        (FIRST_I, "I is the first letter."),
        (FIRST_A, "The first letter is A."),
        (SPELL_JA, "「ね・こ」です。"),
        (SPELL_JA, "ね、こ"),
        (SORT, "Sorted: 2, 5, 9."),
        (SORT, "2 5 9"),
        (SAY, "Cat dog sun"),
    ],
)
def test_right_answers_in_many_words(task: Task, text: str) -> None:
    assert check(task, text)


@pytest.mark.parametrize(
    ("task", "text"),
    [
        (SUM, ""),
        (SUM, "12 + 5"),
        (SUM, "12 + 5 = 18."),
        (SUM, "It is 117."),
        (SUM, "It is 17.5"),
        (SUM, "It is 171 or 17 000"),
        (SUM, "-17"),
        (SUM, "12 + 5 = 7, no wait, 12 + 5 = 16, not 17 = 16"),
        (SUM_JA, "十八です"),
        (WHERE, "Anna is in the shop, not in the park."),
        (WHERE, "I do not know."),
        (WHERE, "She is parking."),
        (WHERE_JA, "店にいます。公園ではありません。"),
        (OPPOSITE, "The opposite of hot is big."),
        (COMPARE, "5 is smaller, so 12"),
        (COMPARE, "It is 5."),
        (SPELL, "c-a-t-s"),
        (SPELL, "cat"),
        (SPELL, "s-c-a-t"),
        (FIRST, 'It is "t".'),
        (FIRST_I, "I do not know."),
        (FIRST_I, "I'm not sure."),
        (FIRST_A, "That is a hard question."),
        (Task("spell", 1, "en", "First letter of tea?", "t", "", "", "letters", "s"), "I can't say."),
        (SPELL_JA, "ね・こ・い"),
        (SORT, "9, 5, 2"),
        (SORT, "2, 5"),
        (SAY, "cat, sun, dog"),
    ],
)
def test_wrong_answers_are_wrong(task: Task, text: str) -> None:
    assert not check(task, text)


def test_kanji_numerals() -> None:
    values = {
        "七": 7,
        "十": 10,
        "十七": 17,
        "二十": 20,
        "九十九": 99,
        "百": 100,
        "三百四": 304,
        "千二百": 1200,
        "一二": 12,
    }
    assert {text: kanji_number(text) for text in values} == values


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9",
        "2003^{2002^{2001}}",
        "1/0",
        "__import__('os').system('true')",
        "(" * 100_000,
        "7" * 1_000_000,
        r"\frac{\frac{" * 500,
        "１" * 100_000,
        "c-a-" * 50_000,
        " 17" * 100_000,
        "一" * 100_000,
        "「" * 100_000,
        "\x00\ud800",
    ],
)
@pytest.mark.parametrize(
    "task", [SUM, SUM_JA, WHERE, SPELL, SPELL_JA, FIRST, SORT, SAY], ids=lambda t: t.family + t.language
)
def test_hostile_text_is_quick_and_harmless(task: Task, text: str) -> None:
    """C85: a checker that evaluated such answers hung for ever."""
    start = time.process_time()
    assert isinstance(check(task, text), bool)
    assert time.process_time() - start < 0.5
    assert len(text[:MAX_CHARACTERS]) <= MAX_CHARACTERS


def test_another_tasks_answer_is_rarely_right() -> None:
    """Replies to other questions of the same family pass only where the answers agree."""
    for family, (_, levels, _) in FAMILIES.items():
        for language in ("en", "ja"):
            tasks = [task_at(4, i, "train", language, family=family, level=levels[0]) for i in range(15)]  # type: ignore[arg-type]
            accepted = [
                (a.question, b.reply)
                for a in tasks
                for b in tasks
                if a.answer != b.answer and b.answer not in a.answer and check(a, b.reply)
            ]
            assert len(accepted) <= 15, (family, accepted[:3])  # of 210 pairs
