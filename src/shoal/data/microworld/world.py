"""What every family draws from: one random source per example, people of the right split, and the held-out rule."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from shoal.data.microworld import words

Language = Literal["en", "ja"]
Split = Literal["train", "validation", "test"]
LANGUAGES: tuple[Language, ...] = ("en", "ja")
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
INVENTED_SHARE = 0.35
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Task:
    """A question with one checkable answer.

    `answer` is the bare value, `reply` a short sentence that holds it, `reasoning` a few words that lead there.
    `check` names the rule of `answers.check`: number | word | yesno | letters | numbers | words. `options` are the
    values a wrong answer could name. `id` is canonical: equal for every phrasing and language of the same question.
    `names` and `pairs` are the people in it and its number pairs. `turns` are (user, assistant) exchanges before the
    question.
    """

    family: str
    level: int
    language: Language
    question: str
    answer: str
    reply: str
    reasoning: str
    check: str
    id: str
    options: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    pairs: tuple[tuple[int, int], ...] = ()
    turns: tuple[tuple[str, str], ...] = ()


def bucket(text: str) -> Split:
    """Which split `text` belongs to: 6% validation, 6% test, by a hash that no seed changes."""
    value = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") % 100
    return "validation" if value < 6 else "test" if value < 12 else "train"


def pair_split(a: int, b: int) -> Split:
    """The split of an unordered number pair.

    The tables that everybody learns are train: pairs of one-digit numbers, and those of their differences (13 - 5).
    """
    low, high = sorted((a, b))
    table = high < 10 or (high <= 18 and low < 10 and high - low < 10)
    return "train" if table else bucket(f"pair:{low},{high}")


def allowed(task: Task, split: Split) -> bool:
    """Whether `task` may appear in `split`.

    With number pairs the pairs decide (one held-out pair is enough to hold the task out); without, the people
    (their names belong to one split), else the hash of the canonical id.
    """
    splits = {pair_split(a, b) for a, b in task.pairs}
    if split == "train":
        return splits <= {"train"} and (bool(task.pairs) or bool(task.names) or bucket(task.id) == "train")
    if task.pairs and max(max(pair) for pair in task.pairs) >= 10:
        return split in splits
    return bool(task.names) or (not task.pairs and bucket(task.id) == split)


@dataclass(frozen=True, slots=True)
class Person:
    name: str
    girl: bool

    def fields(self, prefix: str = "") -> dict[str, str]:
        """The English words for this person, for templates: {he} {He} {his} {him} and {girl}."""
        he, his, him = ("she", "her", "her") if self.girl else ("he", "his", "him")
        return {
            f"{prefix}he": he, f"{prefix}He": he.capitalize(), f"{prefix}his": his, f"{prefix}His": his.capitalize(),
            f"{prefix}him": him, f"{prefix}girl": "girl" if self.girl else "boy",
        }  # fmt: skip


class Draw:
    """One example's choices: a random source, a split and a language."""

    def __init__(self, seed: str, split: Split, language: Language):
        self.rng = random.Random(seed)  # a str seeds by SHA-512: the same in every process
        self.split, self.language = split, language

    @property
    def ja(self) -> bool:
        return self.language == "ja"

    def pick(self, items: Sequence[Item]) -> Item:
        return items[int(self.rng.random() * len(items))]

    def some(self, items: Sequence[Item], count: int) -> list[Item]:
        return self.rng.sample(items, count)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def number(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return low + int(self.rng.random() * (high - low + 1))

    def say(self, templates: Mapping[str, Sequence[str]], **fields: object) -> str:
        """One of the language's templates, filled in."""
        return self.pick(templates[self.language]).format(**fields)

    def person(self) -> Person:
        """Somebody of this split. In train every third has an invented name, so that names are copied, not known."""
        if self.split != "train":
            girls, boys = words.RESERVED[self.language][self.split]
            girl = self.chance(0.5)
            return Person(self.pick(girls if girl else boys), girl)
        if self.chance(INVENTED_SHARE):
            if self.chance(0.5):
                name = self._sounds()
            else:
                starts, ends = self.pick(words.INVENTED[self.language])
                name = self.pick(starts) + self.pick(ends)
            if not any(reserved in name for reserved in _RESERVED_NAMES):
                return Person(name, self.chance(0.5))
        girl = self.chance(0.5)
        girls, boys = (words.GIRLS_JA, words.BOYS_JA) if self.ja else (words.GIRLS, words.BOYS)
        return Person(self.pick(girls if girl else boys), girl)

    def _sounds(self) -> str:
        """A name nobody has, from sounds: Brinad, Eflock, Tausi; とねり, ケミラ, 森次."""
        if self.ja:
            sounds = self.pick(words.SOUNDS_JA)
            return "".join(self.pick(sounds) for _ in range(self.number(2, 2 if sounds[0] == "一" else 3)))
        onsets, vowels, codas = words.SOUNDS_EN
        parts = [
            (self.pick(onsets), self.pick(vowels), self.pick(codas)) for _ in range(self.pick((2, 2, 3)))
        ]
        if self.chance(0.25):
            parts[0] = ("", *parts[0][1:])
        if len(parts) == 3:  # long names end a syllable on its vowel, or nobody could say them
            parts = [(onset, vowel, "") for onset, vowel, _ in parts[:2]] + parts[2:]
        return "".join("".join(part) for part in parts).capitalize()

    def people(self, count: int) -> list[Person]:
        """`count` people with different names, none part of another (みほ, みほこ)."""
        found: list[Person] = []
        while len(found) < count:
            person = self.person()
            if all(person.name not in other.name and other.name not in person.name for other in found):
                found.append(person)
        return found


def reserved_names(language: Language) -> tuple[str, ...]:
    """Every name that never appears in the split "train"."""
    return tuple(name for sexes in words.RESERVED[language].values() for names in sexes for name in names)


_RESERVED_NAMES = frozenset(reserved_names("en") + reserved_names("ja"))
