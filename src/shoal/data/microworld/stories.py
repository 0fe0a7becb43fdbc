"""Stories told from the plots: a state is drawn first, the sentences and the questions follow from it."""
# ruff: noqa: E501 - a sentence stays on one line

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from shoal.data.microworld import plots, words
from shoal.data.microworld.world import Draw, Task

Named = TypeVar("Named", words.Thing, words.Place)


@dataclass(frozen=True, slots=True)
class Story:
    """A told story: its text, the sentence(s) of each beat, and the state as template fields."""

    plot: plots.Plot
    text: str
    told: dict[str, str]
    fields: dict[str, str]
    names: tuple[str, str]


ANYWHERE = frozenset(p.en for p in words.PLACES) - {"kitchen", "hospital"}
SECOND_PLACES_OF = {
    "rain": frozenset(("library", "station", "museum", "kitchen", "school", "shop")),
    "broken": frozenset(("school", "shop", "market", "garden", "library")),
}
PLACES_OF = {
    "birthday": frozenset(("shop", "market", "museum")),
    "rain": frozenset(("park", "river", "sea", "forest", "garden", "farm", "lake", "hill")),
    "trip": frozenset(("sea", "forest", "farm", "zoo", "lake", "hill", "river")),
    "lost": frozenset(("park", "river", "sea", "forest", "garden", "farm", "zoo", "lake", "hill")),
}
FRAGILE = frozenset(("cup", "lamp", "drum", "watch", "umbrella", "doll", "kite", "bell", "box"))
TOYS = frozenset(("ball", "doll", "drum", "bell", "coin", "box", "kite"))
STORY_FOODS = tuple(f for f in words.FRUITS + words.FOODS[:4] if f.en != "lemon")
ALL_THINGS = frozenset(t.en for t in words.OBJECTS)
THINGS_OF = {"broken": FRAGILE, "rain": TOYS}
SMALL = frozenset(("cat", "dog", "bird", "mouse", "frog", "duck", "rabbit"))


def _named(items: Sequence[Named], names: frozenset[str]) -> list[Named]:
    return [item for item in items if item.en in names]


def tell(draw: Draw, plot: plots.Plot | None = None, **wanted: words.Thing) -> Story:
    """A story of 5 to 11 sentences. `wanted` fixes the `thing`, `animal` or `food` that it is about."""
    plot = plot or draw.pick(plots.PLOTS)
    hero, friend = draw.people(2)
    thing = wanted.get("thing") or draw.pick(_named(words.OBJECTS, THINGS_OF.get(plot.name, ALL_THINGS)))
    animal = wanted.get("animal") or draw.pick(
        _named(words.ANIMALS, SMALL) if plot.name == "noise" else words.ANIMALS[:11]
    )
    food = wanted.get("food") or draw.pick(STORY_FOODS)
    skill_en, skill_ja, skill_places = draw.pick(plots.SKILLS)
    where = skill_places if plot.name == "learn" else PLACES_OF.get(plot.name, ANYWHERE)
    first = draw.pick(_named(words.PLACES, where))
    second = draw.pick(
        [p for p in _named(words.PLACES, SECOND_PLACES_OF.get(plot.name, ANYWHERE)) if p is not first]
    )
    places = (first, second)
    colours = (
        words.COLOURS
        if plot.name != "garden"
        else [c for c in words.COLOURS if c[0] not in ("black", "green", "brown")]
    )
    colour, weather, day, part = (
        draw.pick(colours),
        draw.pick(words.WEATHERS),
        draw.pick(words.DAYS),
        draw.pick(words.DAYPARTS),
    )
    if plot.name == "noise":
        weather = draw.pick(words.WEATHERS[1:4])
    room, vehicle, k = (
        draw.pick(plots.ROOMS),
        draw.pick(words.VEHICLES[1:4]),
        draw.number(2, 9),
    )
    fields = {"n": hero.name, "f": friend.name, "k": str(k), **hero.fields(), **friend.fields("f")}
    fields["hers"] = "hers" if hero.girl else "his"
    for suffix, place in (("", places[0]), ("2", places[1])):
        fields |= {
            f"place{suffix}": place.ja if draw.ja else place.en,
            f"at{suffix}": place.at,
            f"to{suffix}": place.to,
        }
    i = 1 if draw.ja else 0
    fields |= {
        "day": day[i],
        "part": part[i],
        "weather": weather[i],
        "skill": skill_ja if draw.ja else skill_en,
        "room": room[i],
    }
    if draw.ja:
        described = f"{colour[2]}{thing.ja}" if draw.chance(0.7) else thing.ja
        fields |= {
            "o": described,
            "o1": thing.ja,
            "animal": animal.ja,
            "food": food.ja,
            "colour": colour[1],
            "colourful": colour[2],
        }
        fields |= {"vehicle": vehicle.ja, "girl": "女の子" if hero.girl else "男の子"}
    else:
        described = f"{colour[0]} {thing.en}" if draw.chance(0.7) else thing.en
        fields |= {
            "o": described,
            "o1": thing.en,
            "a": words.article(described),
            "animal": animal.en,
            "food": food.en,
        }
        fields |= {"an_animal": words.article(animal.en), "An_animal": words.article(animal.en).capitalize()}
        fields |= {"a_food": words.article(food.en), "colour": colour[0], "vehicle": vehicle.en}
    told: dict[str, str] = {}
    for beat in plot.beats:
        if beat.name.endswith("?") and draw.chance(0.4):
            continue
        told[beat.name.rstrip("?")] = (
            draw.pick(beat.ja if draw.ja else beat.en).format(**fields).replace(" a owl", " an owl")
        )
    return Story(plot, ("" if draw.ja else " ").join(told.values()), told, fields, (hero.name, friend.name))


def plot_named(name: str) -> plots.Plot:
    return next(plot for plot in plots.PLOTS if plot.name == name)


READ = {
    "en": ("{t} {q}", "Read the story. {t} {q}", "Here is a story. {t} Question: {q}", "{t}\n{q}", "Read this and answer. {t}\n{q}", "Story: {t}\nQuestion: {q}", "{t}\n\n{q}", "Please read: {t} Now tell me: {q}"),
    "ja": ("{t}{q}", "次の話を読んでください。{t}{q}", "話：{t}\n質問：{q}", "{t}\n{q}", "読んで答えてください。{t}\n{q}", "{t}\n質問：{q}", "{t}\n\n{q}", "次の話を読んで、質問に答えてください。\n{t}\n{q}"),
}  # fmt: skip


def question(draw: Draw, story: Story, level: int, alone: bool = False) -> Task:
    """A question about `story`; with `alone` the story was told before and is not repeated in the question."""
    usable = [ask for ask in story.plot.asks if ask.beat in story.told and tells(story, ask)]
    ask = draw.pick(usable)
    asked, replies = (ask.ja, ask.ja_reply) if draw.ja else (ask.en, ask.en_reply)
    text = draw.pick(asked).format(**story.fields)
    answer = story.fields[ask.field]
    sentence = story.told[ask.beat]
    why = f"話には「{sentence}」とある。" if draw.ja else f"The story says: {sentence}"
    if draw.ja and "「" in sentence:
        why = f"話から：{sentence}"
    numeric = answer.isdigit()
    full = text if alone else draw.say(READ, t=story.text, q=text)
    return Task(
        "story", level, draw.language, full, answer, draw.pick(replies).format(**story.fields), why, "number" if numeric else "word",
        f"story:{story.plot.name}:{ask.beat}:{ask.field}:{story.text}", options=_rivals(draw, ask.field, story), names=story.names,
    )  # fmt: skip


def tells(story: Story, ask: plots.Ask) -> bool:
    """Whether the chosen wording really says what is asked (some wordings leave the answer out)."""
    return story.fields[ask.field] in story.told[ask.beat]


def _rivals(draw: Draw, field: str, story: Story) -> tuple[str, ...]:
    i = 1 if draw.ja else 0
    if field in ("place", "place2"):
        return tuple((p.en, p.ja)[i] for p in words.PLACES)
    if field == "f":
        return story.names
    if field == "room":
        return tuple(r[i] for r in plots.ROOMS)
    if field == "colour":
        return tuple(c[i] for c in words.COLOURS)
    if field == "k":
        return ()
    pool = (
        words.ANIMALS
        if field == "animal"
        else words.FRUITS + words.FOODS
        if field == "food"
        else words.OBJECTS
    )
    return tuple((t.en, t.ja)[i] for t in pool)


def reading(draw: Draw, level: int) -> Task:
    """3: a question about a whole story."""
    while True:
        story = tell(draw)
        if any(ask.beat in story.told and tells(story, ask) for ask in story.plot.asks):
            return question(draw, story, level)
