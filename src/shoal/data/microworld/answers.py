"""Whether a text gives a task's answer. Tolerant of phrasing, full-width digits and case; nothing is ever evaluated."""

from __future__ import annotations

import re
import unicodedata

from shoal.data.microworld import words
from shoal.data.microworld.world import Task

MAX_CHARACTERS = 20_000  # a longer text is no short answer; it bounds the time of every rule below
_NUMBER = re.compile(r"(?<![\d.])-?\d{1,12}(?![\d]|\.\d)")
_GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_KANJI_DIGITS = {c: i for i, c in enumerate("〇一二三四五六七八九")}
_KANJI_NUMBER = re.compile("[〇一二三四五六七八九十百千]{1,8}")


_PLURALS = {
    thing.en: thing.plural
    for thing in words.OBJECTS + words.ANIMALS + words.FRUITS + words.FOODS + words.SMALL + words.TOOLS
}


def normalise(text: str) -> str:
    """NFKC (full-width digits and letters become plain), lower case, one kind of minus, single spaces."""
    text = unicodedata.normalize("NFKC", text).lower().replace("−", "-").replace("×", "x")
    return re.sub(r"[ \t\r\n]+", " ", text).strip()


def kanji_number(text: str) -> int:
    """The value of kanji digits up to 9,999 ("二十三" = 23)."""
    total = current = 0
    for character in text:
        if character in _KANJI_DIGITS:
            current = current * 10 + _KANJI_DIGITS[character]
        else:
            total += max(current, 1) * {"十": 10, "百": 100, "千": 1000}[character]
            current = 0
    return total + current


def numbers(text: str, *, kanji: bool = False) -> list[int]:
    """The whole numbers in a normalised text; with `kanji` kanji numerals count where there are no digits."""
    found = [int(match) for match in _NUMBER.findall(text)]
    if not found and kanji:
        found = [kanji_number(match) for match in _KANJI_NUMBER.findall(text)]
    return found


def _check_number(task: Task, text: str) -> bool:
    answer = int(task.answer)
    found = numbers(_GROUPED.sub("", text), kanji=task.language == "ja")
    if answer not in found:
        return False
    if "=" in text:
        after = numbers(text.rsplit("=", 1)[1])
        if after:
            return after[0] == answer
    given = set(numbers(normalise(task.question)))
    new = [n for n in found if n not in given]
    if new:  # numbers that the question did not hold: they must all be the answer, or the last one is
        return set(new) == {answer} or (answer in given and found[-1] == answer) or new[-1] == answer
    return found[-1] == answer or len(set(found)) == 1


def _first(text: str, value: str, latin: bool) -> int:
    """Where `value` stands in `text` as a word of its own, or -1."""
    if latin or value.isascii():
        forms = {value, value + "s", value + "es", _PLURALS.get(value, value)}
        match = re.search(rf"(?<![a-z0-9])(?:{'|'.join(map(re.escape, forms))})(?![a-z0-9])", text)
        return match.start() if match else -1
    return text.find(value)


def _check_word(task: Task, text: str) -> bool:
    answer = normalise(task.answer)
    latin = task.language == "en"
    place = _first(text, answer, latin)
    if place < 0:
        return False
    for option in task.options:
        option = normalise(option)
        if option == answer:
            continue
        other = _first(text, option, latin)
        if other >= 0 and (other < place or (other == place and len(option) > len(answer))):
            if option in answer or other > place:
                continue
            asked = normalise(task.question)
            if _first(asked, option, latin) >= 0 and task.check == "word" and task.family in _ECHO:
                continue  # the reply repeats the question's word before it answers
            return False
    return True


_ECHO = frozenset({"opposite", "calendar", "translate"})
_PRONOUN = re.compile(r"(?<!letter )(?<![a-z])(?:(?<!is )i|a)(?=['’]| (?!is\b)[a-z])")
"""The words I and a in a normalised sentence ("i do not know"), which name no letter."""


def _check_letters(task: Task, text: str) -> bool:
    answer = normalise(task.answer)
    if len(answer) == 1:
        quoted = re.findall(r"[\"'「“]\s*(.)\s*[\"'」”]", text)
        if quoted:
            return quoted[-1] == answer
        if task.language == "en":
            plain = _PRONOUN.sub(" ", text).replace("letter", " ")
            return re.findall(r"(?<![a-z'’])[a-z](?![a-z])", plain)[-1:] == [answer]
        return text.replace("です", "").replace("。", "").strip().endswith(answer)
    separated = any(c in answer for c in "-・")
    parts = [c for c in answer if c not in "-・"] if separated else list(answer)
    gap = r"[\s\-,.・、]{1,3}" if separated else r"[\s\-,.・、]{0,3}"
    edge = "a-z0-9" if task.language == "en" else "ぁ-んァ-ヶ"
    after = "a-z0-9" if task.language == "en" else ""
    letters = gap.join(re.escape(part) for part in parts)
    pattern = rf"(?<![{edge}\-・]){letters}(?![\-・]?[{after}\-・])"
    return re.search(pattern, text) is not None


def _check_numbers(task: Task, text: str) -> bool:
    wanted = numbers(normalise(task.answer))
    return numbers(text)[-len(wanted) :] == wanted


def _check_words(task: Task, text: str) -> bool:
    def bare(value: str) -> str:
        return re.sub(r"[\s,、。.\"'「」・]+", " ", value).strip()

    return f" {bare(normalise(task.answer))} " in f" {bare(text)} "


_RULES = {
    "number": _check_number,
    "word": _check_word,
    "letters": _check_letters,
    "numbers": _check_numbers,
    "words": _check_words,
}


def check(task: Task, text: str) -> bool:
    """Whether `text` (the visible answer, without reasoning) gives the task's answer.

    >>> from shoal.data.microworld.generate import task_at
    >>> task = task_at(0, 0, "train", "en", family="sum", level=1)
    >>> check(task, task.reply)
    True
    """
    return _RULES[task.check](task, normalise(text[:MAX_CHARACTERS]))
