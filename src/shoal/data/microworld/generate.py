"""The streams: tasks, chats and texts as pure functions of (seed, split, index), and the documents that recipes train on.

Example i depends on (VERSION, seed, split, i) alone, so a run resumes by setting i. Change what is generated and
VERSION changes: weights and data then say which world they knew.
"""
# ruff: noqa: E501 - a sentence stays on one line

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Literal

from shoal.data.microworld import smalltalk, stories, words
from shoal.data.microworld.families import arithmetic, lookup, reading
from shoal.data.microworld.world import LANGUAGES, SPLITS, Draw, Language, Split, Task, allowed
from shoal.data.types import Conversation, Document, Message
from shoal.errors import ShoalError

VERSION = "2"
Kind = Literal["text", "chat", "task"]

# family -> (maker, levels, weight in chats)
FAMILIES: dict[str, tuple[Callable[[Draw, int], Task], tuple[int, ...], float]] = {
    "sum": (arithmetic.sums, (1, 2, 3, 4, 5), 4.0),
    "difference": (arithmetic.differences, (1, 2, 3, 4, 5), 4.0),
    "product": (arithmetic.products, (3, 4, 5), 1.0),
    "compare": (arithmetic.comparisons, (1, 2, 3, 4, 5), 2.0),
    "count": (arithmetic.counting, (1, 2, 3, 4, 5), 1.8),
    "sequence": (arithmetic.sequences, (1, 2, 3, 4, 5), 1.5),
    "problem": (arithmetic.problems, (1, 2, 3, 4, 5), 2.5),
    "opposite": (lookup.facts(lookup.OPPOSITE), (1,), 0.8),
    "colour": (lookup.facts(lookup.COLOUR), (1,), 0.5),
    "sound": (lookup.facts(lookup.SOUND), (1,), 0.4),
    "legs": (lookup.facts(lookup.LEGS), (1,), 0.4),
    "use": (lookup.facts(lookup.USE), (2,), 0.4),
    "translate": (lookup.facts(lookup.TRANSLATE), (2,), 1.2),
    "kind": (lookup.kinds, (1, 2, 3, 4, 5), 1.2),
    "calendar": (lookup.calendar, (1, 2, 3, 4, 5), 1.5),
    "spell": (lookup.spelling, (1, 2, 3, 4, 5), 2.0),
    "repeat": (lookup.repeating, (1, 2, 3, 4, 5), 1.0),
    "where": (reading.where, (1, 2, 3, 4, 5), 2.0),
    "have": (reading.having, (1, 2, 3, 4, 5), 2.0),
    "order": (reading.ordering, (1, 2, 3, 4, 5), 1.8),
    "memory": (reading.memory, (1, 2, 3, 4, 5), 1.5),
    "story": (stories.reading, (3,), 2.0),
}
_FAMILY_NAMES = tuple(FAMILIES)
_FAMILY_WEIGHTS = [weight for _, _, weight in FAMILIES.values()]
LEVEL_WEIGHTS = {1: 30, 2: 32, 3: 19, 4: 11, 5: 8}
# What share of the examples (not tokens) is what, and how chats split. Lengths differ, so the shares of the tokens are
# about 30% stories, 55% chats, 15% lines for "pretrain".
MIXES: dict[str, dict[str, float]] = {
    "pretrain": {"story": 0.31, "lines": 0.11, "chat": 0.58},
    "sft": {"chat": 1.0},
}
ENGLISH_SHARE = 0.5  # of the examples; English ones have more tokens, so it is about 55% of those
THINKING_SHARE = 0.4
_ATTEMPTS = 20_000


def make_task(draw: Draw, family: str | None = None, level: int | None = None) -> Task:
    """A task of the draw's split. Family and level are drawn where they are not given."""
    for _ in range(_ATTEMPTS):
        name = family or draw.rng.choices(_FAMILY_NAMES, _FAMILY_WEIGHTS)[0]
        maker, levels, _ = FAMILIES[name]
        chosen = (
            level if level is not None else draw.rng.choices(levels, [LEVEL_WEIGHTS[n] for n in levels])[0]
        )
        if chosen not in levels:
            if family:
                break
            continue
        task = maker(draw, chosen)
        if allowed(task, draw.split):
            return task
    raise ShoalError(
        f"the microworld has no task of family {family!r} at level {level} in split {draw.split!r}",
        hint=f"Families and levels: {', '.join(f'{n} {v[1][0]}-{v[1][-1]}' for n, v in FAMILIES.items())}",
    )


def task_at(
    seed: int,
    index: int,
    split: Split,
    language: Language,
    *,
    family: str | None = None,
    level: int | None = None,
) -> Task:
    """Task number `index` of a stream: a pure function of its arguments."""
    draw = Draw(f"{VERSION}/task/{seed}/{split}/{language}/{family}/{level}/{index}", split, language)
    return make_task(draw, family, level)


def _casual(draw: Draw, text: str) -> str:
    """How people type in a hurry: lower case, no mark at the end. Long texts stay as they are."""
    if len(text) > (40 if draw.ja else 70) or not draw.chance(0.3):
        return text
    if draw.ja:
        return text.rstrip("。？? ") if draw.chance(0.7) else text.replace("？", "?")
    return (text.lower().rstrip("?.! ") if draw.chance(0.7) else text.rstrip("?.")).rstrip()


SYSTEM = {
    "en": ("You are a helpful assistant.", "You are shoal-nano, a small assistant.", "Answer briefly.", "You are a friendly assistant. Answer in English.", "You are shoal-nano. You run on this machine.", "Be kind and short."),
    "ja": ("あなたは親切なアシスタントです。", "あなたはshoal-nanoという小さなアシスタントです。", "短く答えてください。", "日本語でていねいに答えてください。", "あなたは役に立つアシスタントです。", "You are a helpful assistant."),
}  # fmt: skip
_FOLLOWED = (lookup.OPPOSITE, lookup.COLOUR, lookup.SOUND, lookup.LEGS, lookup.KIND, lookup.TRANSLATE, lookup.FIRST_LETTER, lookup.SPELL, lookup.DAY_AFTER, lookup.DAY_BEFORE)  # fmt: skip
Turn = tuple[str, str, str]


def _task_turns(task: Task) -> list[Turn]:
    """(user, assistant, reasoning) of a task, with what was said before it."""
    why = "ふつうに答える。" if task.language == "ja" else "I answer in a friendly way."
    return [(user, reply, why) for user, reply in task.turns] + [(task.question, task.reply, task.reasoning)]


def _follow_turns(draw: Draw) -> list[Turn]:
    """A question and one or two short ones after it: "And the opposite of cold?"."""
    table = draw.pick(_FOLLOWED)
    turns: list[Turn] = []
    for entry in draw.some(table.entries[draw.language], min(7, len(table.entries[draw.language]))):
        if len(turns) > 2 or (len(turns) == 2 and draw.chance(0.7)):
            break
        task = table.about(draw, entry, follow=bool(turns))
        if allowed(task, draw.split):
            turns.append((task.question, task.reply, task.reasoning))
    return turns


def _sum_turns(draw: Draw) -> list[Turn]:
    """A sum, then "and 3 more?" on its result."""
    while True:
        task = make_task(draw, "sum", draw.pick((1, 2)))
        total, more = int(task.answer), draw.number(1, 9)
        second = arithmetic.SUM_REPLY
        follow = Task(
            "sum", 2, draw.language, "", str(total + more), "", "", "number", "", pairs=((total, more),)
        )
        if total + more < 100 and allowed(follow, draw.split if draw.split == "train" else "train"):
            ask = draw.say({"en": ("And {m} more?", "Plus {m}?", "Now add {m}.", "and plus {m}"), "ja": ("それに{m}を足すと？", "さらに{m}を足すと？", "もう{m}足してください。", "あと{m}足すと？")}, m=more)  # fmt: skip
            reply = draw.say(second, x=total, y=more, z=total + more)
            return [*_task_turns(task), (ask, reply, arithmetic.add_by_digits(total, more, draw.ja))]


def _story_turns(draw: Draw) -> list[Turn]:
    """A story on request, perhaps about something; then perhaps a question on it, or another story."""
    turns: list[Turn] = []
    story = None
    while not turns or (len(turns) < 3 and draw.chance(0.3)):
        if story and draw.chance(0.6):
            usable = [ask for ask in story.plot.asks if ask.beat in story.told and stories.tells(story, ask)]
            if not usable:
                break
            task = stories.question(draw, story, 3, alone=True)
            turns.append((task.question, task.reply, task.reasoning))
            continue
        wanted: dict[str, Any] = {}
        plot = None
        if not story and draw.chance(0.55):
            kind = draw.pick(("thing", "animal"))
            pool = words.OBJECTS if kind == "thing" else words.ANIMALS[:11]
            chosen = draw.pick(pool)
            wanted = {kind: chosen}
            fitting: tuple[str, ...] = (
                (
                    "lost",
                    "found",
                    "birthday",
                    "share",
                    *(p for p, fit in stories.THINGS_OF.items() if chosen.en in fit),
                )
                if kind == "thing"
                else (("animal", "noise", "trip") if chosen.en in stories.SMALL else ("animal", "trip"))
            )
            plot = stories.plot_named(draw.pick(fitting))
            ask = draw.say(smalltalk.STORY_ABOUT, a=words.article(chosen.en), o=chosen.ja)
        else:
            ask = draw.say(smalltalk.STORY_MORE if story else smalltalk.STORY_ASK)
        story = stories.tell(draw, plot, **wanted)
        turns.append((ask, story.text, draw.say(smalltalk.STORY_WHY, n=story.names[0], f=story.names[1])))
    return turns


def _chat(draw: Draw) -> Conversation:
    """A chat: an optional system prompt, an optional greeting, one to three subjects, an optional goodbye.

    In thinking mode the last answer alone has reasoning: templates leave earlier reasoning out of a history, so it
    could not be learnt there.
    """
    turns: list[Turn] = []
    thinking = draw.chance(THINKING_SHARE)
    if draw.chance(0.10):
        turns.append(smalltalk.talk(draw, draw.pick(("hello", "hello", "morning", "evening", "how"))))
    subjects = 1 if draw.chance(0.72) else 2 if draw.chance(0.75) else 3
    for _ in range(subjects):
        kind = draw.rng.random()
        if kind < 0.16:
            turns.append(smalltalk.talk(draw))
        elif kind < 0.25:
            turns.extend(_story_turns(draw))
        elif kind < 0.31:
            turns.extend(_follow_turns(draw))
        elif kind < 0.33:
            turns.extend(_sum_turns(draw))
        else:
            turns.extend(_task_turns(make_task(draw)))
    if not turns:  # held-out follow-ups may all have been refused
        turns.extend(_task_turns(make_task(draw)))
    if not thinking and draw.chance(0.14):
        turns.append(smalltalk.talk(draw, draw.pick(("thanks", "thanks", "bye", "night"))))
    messages = []
    if draw.chance(0.12):
        messages.append(Message("system", draw.say(SYSTEM)))
    for number, (user, reply, why) in enumerate(turns, 1):
        messages.append(Message("user", _casual(draw, user)))
        shown = why if thinking and number == len(turns) else None
        messages.append(Message("assistant", reply, reasoning_content=shown))
    return Conversation(
        tuple(messages), {"source": "microworld", "language": draw.language, "thinking": thinking}
    )


_TABLES: tuple[tuple[Callable[[Draw, int], Task], int], ...] = (
    *((arithmetic.sums, level) for level in (1, 2, 2, 2, 3)),
    *((arithmetic.differences, level) for level in (1, 2, 2, 2, 3)),
    (arithmetic.products, 3),
)


def _lines(draw: Draw) -> Document:
    """Short texts that are no story: sums one under another, counting, facts, opposites, days, questions with answers."""
    kind = draw.rng.random()
    lines: list[str] = []
    if kind < 0.6:
        maker, level = draw.pick(_TABLES)
        sign = "+" if maker is arithmetic.sums else "-" if maker is arithmetic.differences else "x"
        while len(lines) < 12:
            task = maker(draw, level)
            if allowed(task, draw.split) and len(task.pairs) in (1, 4):
                x, y = task.pairs[0]
                lines.append(f"{x} {sign} {y} = {task.answer}")
    elif kind < 0.68:
        start, step = draw.number(0, 60), draw.pick((1, 1, 1, 2, 5, 10))
        lines.append(
            ("、" if draw.ja else ", ").join(str(start + step * i) for i in range(draw.number(8, 20)))
        )
        names = [pair[1 if draw.ja else 0] for pair in draw.pick((words.DAYS, words.MONTHS, words.SEASONS))]
        lines.append(("、" if draw.ja else ", ").join(names) + ("。" if draw.ja else "."))
    elif kind < 0.9:
        tables = draw.some((lookup.OPPOSITE, lookup.COLOUR, lookup.SOUND, lookup.LEGS, lookup.USE, lookup.KIND, lookup.TRANSLATE, lookup.SPELL, lookup.DAY_AFTER, lookup.MONTH_AFTER), 2)  # fmt: skip
        for table in tables:
            for entry in draw.some(table.entries[draw.language], 4):
                template = table.reply[draw.language][0]
                a, b = entry.x, entry.z
                line = template.format(x=a, z=b, X=a[:1].upper() + a[1:], Z=b[:1].upper() + b[1:])
                lines.append(line if "{x}" in template or "{X}" in template else f"{a}: {line}")
    else:
        question, answer = ("問", "答") if draw.ja else ("Q", "A")
        for _ in range(3):
            task = make_task(draw)
            if not task.turns:
                lines.append(f"{question}: {task.question}\n{answer}: {task.reply}")
    return Document("\n".join(lines), {"source": "microworld", "language": draw.language, "kind": "lines"})


def _story(draw: Draw) -> Document:
    return Document(
        stories.tell(draw).text, {"source": "microworld", "language": draw.language, "kind": "story"}
    )


_MAKERS: dict[str, Callable[[Draw], Document | Conversation]] = {
    "story": _story,
    "lines": _lines,
    "chat": _chat,
}


def _known(value: str, known: tuple[str, ...] | list[str], what: str) -> None:
    if value not in known:
        raise ShoalError(
            f"the microworld has no {what} {value!r}", hint=f"Choose one of: {', '.join(known)}.", exit_code=2
        )


def document_at(
    seed: int, index: int, mix: str = "pretrain", split: Split = "train", language: Language | None = None
) -> Document | Conversation:
    """Example number `index`: a pure function of its arguments."""
    _known(mix, list(MIXES), "mix")
    _known(split, SPLITS, "split")
    draw = Draw(f"{VERSION}/{mix}/{seed}/{split}/{index}", split, "en")
    english = draw.chance(ENGLISH_SHARE)
    draw.language = language or ("en" if english else "ja")
    shares = MIXES[mix]
    return _MAKERS[draw.rng.choices(list(shares), list(shares.values()))[0]](draw)


class documents:
    """An endless, resumable stream of training examples.

    `mix` is "pretrain" (stories, lines and chats) or "sft" (chats alone). Iterate it; `state()` says where it is and
    `restore(state)` goes there. Two streams with the same arguments are equal in every process.

    >>> first = next(documents(seed=0))
    >>> first == next(documents(seed=0))
    True
    """

    def __init__(
        self,
        seed: int,
        mix: str = "pretrain",
        split: Split = "train",
        start: int = 0,
        language: Language | None = None,
    ):
        _known(mix, list(MIXES), "mix")
        _known(split, SPLITS, "split")
        if language is not None:
            _known(language, LANGUAGES, "language")
        self.seed, self.mix, self.split, self.language = seed, mix, split, language
        self.index = start

    def __iter__(self) -> Iterator[Document | Conversation]:
        return self

    def __next__(self) -> Document | Conversation:
        example = document_at(self.seed, self.index, self.mix, self.split, self.language)
        self.index += 1
        return example

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as JSON-able values; holds the generator's version."""
        return {
            "source": "microworld", "version": VERSION, "seed": self.seed, "mix": self.mix, "split": self.split,
            "language": self.language, "index": self.index,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. Raises ShoalError for another stream or another version of the world."""
        mine = {key: value for key, value in self.state().items() if key != "index"}
        theirs = {key: state.get(key) for key in mine}
        if mine != theirs:
            raise ShoalError(
                f"the saved data position is for another stream: {json.dumps(theirs)} instead of {json.dumps(mine)}",
                hint="Resume with the recipe and the shoal version that started the run.",
            )
        self.index = int(state["index"])


def stream(
    seed: int,
    split: Split,
    language: Language,
    kind: Kind,
    *,
    family: str | None = None,
    level: int | None = None,
    start: int = 0,
) -> Iterator[Any]:
    """Endless texts (Document), chats (Conversation) or tasks (Task) of one language; example i depends on i alone."""
    _known(split, SPLITS, "split")
    _known(language, LANGUAGES, "language")
    _known(kind, ["text", "chat", "task"], "kind")
    index = start
    while True:
        if kind == "task":
            yield task_at(seed, index, split, language, family=family, level=level)
        else:
            draw = Draw(f"{VERSION}/{kind}/{seed}/{split}/{language}/{index}", split, language)
            yield _chat(draw) if kind == "chat" else (_story if draw.chance(0.6) else _lines)(draw)
        index += 1
