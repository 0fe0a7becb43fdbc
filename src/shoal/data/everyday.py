"""Everyday questions to a chat model: what people ask when it is not a puzzle. Prompts only, no answers.

An adapter that has seen nothing but puzzles takes everything for one. Its training mixes these in, with the answers
that its base gives anyway (`shoal tune traces --everyday`). Held out by the prompt's hash, like the puzzles.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from shoal.data.microworld.world import Split, bucket

_THINGS = (
    "photosynthesis|gravity|rain|the moon|the sun|a volcano|an earthquake|electricity|magnets|the heart|"
    "the brain|sleep|bread|cheese|coffee|tea|chocolate|salt|honey|bees|ants|whales|cats|dogs|"
    "horses|birds|trees|rivers|deserts|the sea|mountains|glaciers|snow|clouds|wind|fire|glass|paper|"
    "money|banks|taxes|music|painting|dance|chess|football|tennis|swimming|maps|bridges|trains|"
    "bicycles|aeroplanes|ships|computers|the internet|email|photography|history|democracy|Rome|Paris|"
    "London|Tokyo|Egypt|Brazil|Canada|India|Africa|the Olympics|the alphabet|poetry|theatre|medicine|"
    "vaccines|vitamins|planets|stars|atoms|oxygen|iron|gold|recycling|solar power|gardening|farming|"
    "friendship|courage"
).split("|")
_DEEDS = (
    "boil an egg|bake bread|make tea|cook rice|clean a window|wash a pullover|remove a coffee stain|grow tomatoes|"
    "plant a tree|ride a bicycle|learn a language|learn the piano|write a letter|write a thank-you note|save money|"
    "find a job|prepare for an interview|fall asleep faster|wake up early|stay healthy|start running|pack a suitcase|"
    "plan a holiday|choose a book|make new friends|say sorry|train a puppy|care for a cat|fix a flat tyre|read faster|"
    "remember names|study for an exam|give a speech|paint a wall|keep a diary|take a good photo"
).split("|")
_TIMES = (
    "a rainy afternoon|a birthday party|a quick dinner|a healthy breakfast|a picnic|a weekend in the mountains|"
    "a gift for my mother|a gift for a friend|a short speech|a school project|a family evening|a first date|"
    "a long train ride|a small garden|a team meeting|a new hobby"
).split("|")
_TALK = (
    "Hello!|Hi there.|Good morning!|Hello! How are you?|How are you today?|Who are you?|What can you do?|"
    "Can you help me?|What is your name?|Tell me a joke.|Thank you!|Good night.|I am bored.|I had a bad day.|"
    "I am tired. What should I do?|What do you like?|Tell me something interesting.|What should I read next?|"
    "Nice to meet you.|Can you keep a secret?|I feel sad today.|Tell me a fun fact.|Are you a robot?|See you tomorrow!|"
    "Please cheer me up.|What is love?|Do you sleep?|Where do you come from?|I need some advice.|Are you happy?"
).split("|")
_FORMS: tuple[tuple[str, list[str], str], ...] = (
    ("What is {}?", _THINGS, "A question about {}"),
    ("Explain {} in two sentences.", _THINGS, "A question about {}"),
    ("Tell me about {}.", _THINGS, "A question about {}"),
    ("Give me three facts about {}.", _THINGS, "A question about {}"),
    ("Explain {} to a child.", _THINGS, "A question about {}"),
    ("Write a short poem about {}.", _THINGS, "A poem about {}"),
    ("Write a short story about {}.", _THINGS, "A story about {}"),
    ("How do I {}?", _DEEDS, "How to {}"),
    ("What do I need to {}?", _DEEDS, "How to {}"),
    ("I want to {}. Where do I start?", _DEEDS, "How to {}"),
    ("Give me three ideas for {}.", _TIMES, "Ideas for {}"),
    ("I need an idea for {}.", _TIMES, "Ideas for {}"),
    ("{}", _TALK, "Small talk"),
)


def everyday(split: Split, seed: int = 0) -> Iterator[tuple[str, str]]:
    """(prompt, a thought that says what it is about) in an order that the seed gives, until there is no more."""
    asked = [
        (form.format(topic), f"{about.format(topic)}: no puzzle, I answer directly.")
        for form, topics, about in _FORMS
        for topic in topics
    ]
    random.Random(f"everyday/1/{seed}").shuffle(asked)
    return (pair for pair in asked if bucket(f"everyday:{pair[0]}") == split)


def first(split: Split, count: int, seed: int = 0) -> list[tuple[str, str]]:
    """As many of them as there are, up to `count`."""
    return list(itertools.islice(everyday(split, seed), count))
