"""Questions about a few sentences in the prompt: who is where, who has what, who is taller, what you told me."""
# ruff: noqa: E501 - a sentence stays on one line

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from shoal.data.microworld import words
from shoal.data.microworld.world import Draw, Person, Task

GO = {
    "en": ("{n} went {to}.", "{n} walked {to}.", "{n} is {at} now.", "{n} ran {to}.", "Then {n} went {to}."),
    "ja": (
        "{n}は{place}へ行きました。",
        "{n}は{place}に行きました。",
        "{n}は今、{place}にいます。",
        "{n}は{place}まで走りました。",
        "それから{n}は{place}へ行きました。",
    ),
}
GO_FIRST = {k: v[:4] for k, v in GO.items()}
WHERE_PERSON = {
    "en": ("Where is {n}?", "Where is {n} now?", "In which place is {n}?", "What place is {n} at?", "Tell me where {n} is.", "Do you know where {n} is?", "Where can I find {n}?", "So where is {n} now?"),
    "ja": ("{n}はどこにいますか？", "{n}は今どこにいますか？", "{n}がいる場所はどこですか？", "{n}はどこ？", "{n}がどこにいるか教えてください。", "今、{n}はどこですか？", "{n}はどこへ行きましたか？", "では、{n}は今どこにいますか？"),
}  # fmt: skip
WHERE_PERSON_REPLY = {
    "en": ("{n} is {at}.", "{He} is {at}.", "{n} is {at} now."),
    "ja": ("{n}は{place}にいます。", "{place}にいます。", "{n}は今、{place}にいます。", "{place}です。"),
}
TAKE = {
    "en": ("{n} took the {o}.", "{n} picked up the {o}.", "{n} has the {o}.", "{n} got the {o}."),
    "ja": (
        "{n}は{o}を取りました。",
        "{n}は{o}を拾いました。",
        "{n}は{o}を持っています。",
        "{n}は{o}を手に入れました。",
    ),
}
WHERE_THING = {
    "en": ("Where is the {o}?", "Where is the {o} now?", "In which place is the {o}?", "Tell me where the {o} is.", "Do you know where the {o} is?", "Where can I find the {o}?", "So where is the {o} now?", "What place is the {o} at?"),
    "ja": ("{o}はどこにありますか？", "{o}は今どこにありますか？", "{o}がある場所はどこですか？", "{o}はどこ？", "{o}がどこにあるか教えてください。", "今、{o}はどこですか？", "では、{o}は今どこにありますか？", "{o}はどこで見つかりますか？"),
}  # fmt: skip
WHERE_THING_REPLY = {
    "en": ("The {o} is {at}.", "It is {at}.", "The {o} is {at} now."),
    "ja": ("{o}は{place}にあります。", "{place}にあります。", "{place}です。"),
}


def _join(draw: Draw, sentences: list[str]) -> str:
    return ("" if draw.ja else " ").join(sentences)


def _place(draw: Draw, place: words.Place) -> dict[str, str]:
    return {"place": place.ja if draw.ja else place.en, "at": place.at, "to": place.to}


def where(draw: Draw, level: int) -> Task:
    """1: one person, one place. 2: two people. 3: two people who move again. 4: a thing that is carried. 5: with three people."""
    people = draw.people({1: 1, 2: 2, 3: 2, 4: 2, 5: 3}[level])
    places = draw.some(words.PLACES, 6)
    at: dict[str, words.Place] = {}
    lines: list[str] = []

    def go(person: Person) -> None:
        place = draw.pick([p for p in places if p not in at.values()])
        line = draw.say(GO if person.name in at and at else GO_FIRST, n=person.name, **_place(draw, place))
        at[person.name] = place
        lines.append(line)

    for person in people:
        go(person)
    carrier = people[draw.number(0, len(people) - 1)]
    thing = draw.pick(words.OBJECTS)
    o = thing.ja if draw.ja else thing.en
    if level >= 4:
        lines.append(draw.say(TAKE, n=carrier.name, o=o))
    if level >= 3:
        movers = (
            [carrier, *draw.some(people, draw.number(1, len(people)))]
            if level >= 4
            else draw.some(people, draw.number(1, 2))
        )
        for person in movers:
            go(person)
    target = carrier if level >= 4 else draw.pick(people)
    place = at[target.name]
    z = place.ja if draw.ja else place.en
    fields = {"n": target.name, "o": o, **target.fields(), **_place(draw, place)}
    ask, reply = (WHERE_THING, WHERE_THING_REPLY) if level >= 4 else (WHERE_PERSON, WHERE_PERSON_REPLY)
    if level >= 4:
        why = (
            f"{o}は{target.name}が持っています。{target.name}は{z}にいます。"
            if draw.ja
            else f"{target.name} has the {o}. {target.name} is {place.at}."
        )
    else:
        why = (
            f"{target.name}が最後にいた場所は{z}。"
            if draw.ja
            else f"The last place of {target.name} is the {z}."
        )
    text = _join(draw, lines)
    return Task(
        "where", level, draw.language, f"{text}{'' if draw.ja else ' '}{draw.say(ask, **fields)}", z, draw.say(reply, **fields), why, "word",
        f"where:{text}:{target.name}", options=tuple(p.ja if draw.ja else p.en for p in words.PLACES),
        names=tuple(p.name for p in people),
    )  # fmt: skip


HAS = {
    "en": ("{n} has {c} {o}.", "{n} bought {c} {o}.", "{n} found {c} {o}.", "{n} got {c} {o}."),
    "ja": (
        "{n}は{c}{o}を持っています。",
        "{n}は{c}{o}を買いました。",
        "{n}は{c}{o}を見つけました。",
        "{n}は{c}{o}をもらいました。",
    ),
}
GIVE = {
    "en": ("{n} gave the {o} to {f}.", "{n} gave {f} the {o}.", "Then {n} handed the {o} to {f}."),
    "ja": (
        "{n}は{f}に{o}をあげました。",
        "{n}は{o}を{f}に渡しました。",
        "それから{n}は{f}に{o}をあげました。",
    ),
}
WHAT_HAS = {
    "en": ("What does {n} have?", "What thing does {n} have?", "Which thing does {n} have?", "Tell me what {n} has.", "{n} has what?", "What is it that {n} has?", "Do you know what {n} has?", "So what does {n} have?"),
    "ja": ("{n}は何を持っていますか？", "{n}が持っている物は何ですか？", "{n}の持ち物は何ですか？", "{n}が何を持っているか教えてください。", "{n}は何を持っている？", "{n}の物はどれですか？", "では、{n}は何を持っていますか？", "{n}が持っているのは何ですか？"),
}  # fmt: skip
WHO_HAS = {
    "en": ("Who has the {o}?", "Who has the {o} now?", "Which person has the {o}?", "Tell me who has the {o}.", "The {o} is with whom?", "Who is holding the {o}?", "Do you know who has the {o}?", "So who has the {o}?"),
    "ja": ("{o}を持っているのは誰ですか？", "誰が{o}を持っていますか？", "今、{o}は誰の所にありますか？", "{o}は誰が持っていますか？", "{o}を持っている人を教えてください。", "{o}を持っているのは誰？", "では、{o}を持っているのは誰ですか？", "今{o}を持っている人は誰ですか？"),
}  # fmt: skip
WHAT_COLOUR = {
    "en": ("What colour is the {o} of {n}?", "What colour is {n}'s {o}?", "Which colour does {n}'s {o} have?", "Tell me the colour of {n}'s {o}.", "{n}'s {o} is what colour?", "What is the colour of {n}'s {o}?", "Do you know the colour of {n}'s {o}?", "So what colour is {n}'s {o}?"),
    "ja": ("{n}の{o}は何色ですか？", "{n}の{o}の色は何ですか？", "{n}が持っている{o}は何色ですか？", "{n}の{o}の色を教えてください。", "{n}の{o}は何色？", "{n}の{o}はどんな色ですか？", "では、{n}の{o}は何色ですか？", "{n}の{o}の色は？"),
}  # fmt: skip


def having(draw: Draw, level: int) -> Task:
    """1: what one person has. 2: two people: what, who or which colour. 3: one gift. 4: two gifts. 5: three gifts."""
    people = draw.people({1: 1, 2: 2, 3: 2, 4: 3, 5: 3}[level])
    things = draw.some(words.OBJECTS, len(people))
    owner = {t.key: p for t, p in zip(things, people, strict=True)}
    colours = draw.some(words.COLOURS, len(people))
    with_colour = draw.chance(0.6)
    lines = []
    for person, thing, colour in zip(people, things, colours, strict=True):
        word = thing.ja if draw.ja else thing.en
        c = colour[2] if draw.ja else words.article(colour[0])
        if not with_colour:
            word, c = (word, "") if draw.ja else (words.article(word), "")
        line = draw.say(HAS, n=person.name, c=c, o=word)
        lines.append(line.replace("  ", " "))
    gifts = max(level - 2, 0)
    thing = draw.pick(things)
    for i in range(gifts):
        moved = thing if i == 0 or draw.chance(0.6) else draw.pick(things)
        giver = owner[moved.key]
        taker = draw.pick([p for p in people if p is not giver])
        lines.append(
            draw.say(
                GIVE if i else {k: v[:2] for k, v in GIVE.items()},
                n=giver.name,
                f=taker.name,
                o=moved.ja if draw.ja else moved.en,
            )
        )
        owner[moved.key] = taker
    holder = owner[thing.key]
    o = thing.ja if draw.ja else thing.en
    text = _join(draw, lines)
    names = tuple(p.name for p in people)
    colour = colours[things.index(thing)]
    described = (f"{colour[2]}{o}" if draw.ja else f"{colour[0]} {o}") if with_colour else o
    statement = (
        f"{holder.name}は{described}を持っています。" if draw.ja else f"{holder.name} has the {described}."
    )
    form = (
        "who"
        if gifts
        else draw.pick(("what", "what", "who", "colour"))
        if level == 2
        else draw.pick(("what", "what", "colour"))
    )
    if form == "colour" and not with_colour:
        form = "what"
    question: Mapping[str, Sequence[str]]
    if form == "who":
        question, z, options = WHO_HAS, holder.name, names
        reply = {
            "en": ("{n} has the {o}.", "It is {n}.", "{n} has it."),
            "ja": ("{n}が{o}を持っています。", "{n}です。", "持っているのは{n}です。"),
        }
    elif form == "what":
        question, z, options = WHAT_HAS, o, tuple(t.ja if draw.ja else t.en for t in words.OBJECTS)
        reply = {
            "en": ("{n} has {d}.", "{He} has {d}.", "It is {d}."),
            "ja": ("{n}は{d}を持っています。", "{d}です。", "{d}を持っています。"),
        }
    else:
        question, z = WHAT_COLOUR, colour[1] if draw.ja else colour[0]
        options = tuple(c[1] if draw.ja else c[0] for c in words.COLOURS)
        reply = {
            "en": ("It is {z}.", "The {o} is {z}.", "{n}'s {o} is {z}."),
            "ja": ("{z}です。", "{n}の{o}は{z}です。", "その{o}は{z}です。"),
        }
    d = described if draw.ja else words.article(described)
    fields = {"n": holder.name, "o": o, "d": d, "z": z, **holder.fields()}
    return Task(
        "have", level, draw.language, f"{text}{'' if draw.ja else ' '}{draw.say(question, **fields)}", z, draw.say(reply, **fields),
        statement, "word", f"have:{form}:{text}:{o}:{holder.name}", options=options, names=names,
    )  # fmt: skip


# (more, most, less, least) per language.
ORDERS = (
    (("taller", "tallest", "shorter", "shortest"), ("背が高い", "背が高い", "背が低い", "背が低い")),
    (("older", "oldest", "younger", "youngest"), ("年上", "年上", "年下", "年下")),
    (("faster", "fastest", "slower", "slowest"), ("足が速い", "足が速い", "足が遅い", "足が遅い")),
    (("stronger", "strongest", "weaker", "weakest"), ("力が強い", "力が強い", "力が弱い", "力が弱い")),
)


def ordering(draw: Draw, level: int) -> Task:
    """1 and 2: two people. 3: three in order. 4: four in order. 5: four, told in any order."""
    people = draw.people({1: 2, 2: 2, 3: 3, 4: 4, 5: 4}[level])
    more, most, less, least = draw.pick(ORDERS)[1 if draw.ja else 0]
    lines, facts = [], []
    for a, b in itertools.pairwise(people):
        flipped = level >= 2 and draw.chance(0.35)
        first, second, word = (b, a, less) if flipped else (a, b, more)
        if draw.ja:
            lines.append(
                draw.pick(
                    (
                        f"{first.name}は{second.name}より{word}です。",
                        f"{second.name}より{first.name}のほうが{word}です。",
                    )
                )
            )
        else:
            lines.append(f"{first.name} is {word} than {second.name}.")
        facts.append((a.name, b.name))
    if level == 5:
        draw.rng.shuffle(lines)
    top = draw.chance(0.5)
    target = people[0] if top else people[-1]
    two = len(people) == 2
    word = (more if top else less) if two else (most if top else least)
    if draw.ja:
        superlative = "" if two else "一番"
        subject = f"{superlative}{word}の" if word not in ("年上", "年下") else f"{superlative}{word}なの"
        asks = (f"{subject}は誰ですか？", f"{subject}はどちらですか？" if two else f"この中で{subject}は誰ですか？", f"{subject}は誰？", f"{subject}は誰か教えてください。",
                f"では、{subject}は誰ですか？", f"{subject}は誰だと思いますか？", f"{subject}はどの人ですか？", f"{subject}は誰でしょうか？")  # fmt: skip
        replies = (
            f"{target.name}です。",
            f"{subject}は{target.name}です。",
            f"{target.name}が{superlative}{word}です。" if not two else f"{target.name}のほうが{word}です。",
        )
        why = f"順番は{'、'.join(p.name for p in people)}。{subject}は{target.name}。"
    else:
        the = "" if two else "the "
        asks = (f"Who is {the}{word}?", f"Which one is {the}{word}?", f"Which person is {the}{word}?", f"Tell me who is {the}{word}.", f"So who is {the}{word}?",
                f"Do you know who is {the}{word}?", f"Who of them is {the}{word}?", f"Can you say who is {the}{word}?")  # fmt: skip
        replies = (f"{target.name} is {the}{word}.", f"It is {target.name}.", f"{target.name}.")
        why = f"The order is {', '.join(p.name for p in people)}. So {target.name} is {the}{word}."
    text = _join(draw, lines)
    names = tuple(p.name for p in people)
    return Task(
        "order", level, draw.language, f"{text}{'' if draw.ja else ' '}{draw.pick(asks)}", target.name, draw.pick(replies), why, "word",
        f"order:{text}:{target.name}", options=names, names=names,
    )  # fmt: skip


MY_NAME = {
    "en": ("My name is {n}.", "Hi, I am {n}.", "Hello! My name is {n}.", "I'm {n}.", "Hi, my name is {n}. Nice to meet you.", "You can call me {n}.", "Hello, I am {n}.", "my name is {n}"),
    "ja": ("私の名前は{n}です。", "こんにちは、{n}です。", "{n}といいます。", "はじめまして。{n}です。", "私は{n}です。", "{n}と呼んでください。", "こんにちは。私の名前は{n}です。", "{n}と申します。よろしくお願いします。"),
}  # fmt: skip
NICE_TO_MEET = {
    "en": (
        "Nice to meet you, {n}!",
        "Hello, {n}! How can I help you?",
        "Hi {n}, nice to meet you!",
        "Hello {n}! I am glad to meet you.",
    ),
    "ja": (
        "はじめまして、{n}さん。",
        "こんにちは、{n}さん。何をお手伝いしましょうか？",
        "{n}さん、よろしくお願いします。",
        "{n}さん、お会いできてうれしいです。",
    ),
}
ASK_NAME = {
    "en": ("What is my name?", "What's my name?", "Do you remember my name?", "Who am I?", "Can you tell me my name?", "Say my name.", "Do you know my name?", "what is my name"),
    "ja": ("私の名前は何ですか？", "私の名前を覚えていますか？", "私の名前は？", "私は誰ですか？", "私の名前を言ってください。", "私の名前を教えてください。", "私の名前、わかりますか？", "私の名前を知っていますか？"),
}  # fmt: skip
NAME_REPLY = {
    "en": (
        "Your name is {n}.",
        "You are {n}.",
        "You told me that your name is {n}.",
        "Yes, your name is {n}.",
    ),
    "ja": ("あなたの名前は{n}です。", "{n}さんです。", "あなたは{n}さんです。", "お名前は{n}さんです。"),
}
LIKES = {
    "en": ("I like {p}.", "My favourite thing is {a}.", "I have {a}.", "I want {a}.", "I bought {a} today.", "I really like {p}.", "I got {a} today.", "I found {a} today."),
    "ja": ("私は{o}が好きです。", "私の好きな物は{o}です。", "私は{o}を持っています。", "私は{o}が欲しいです。", "今日、{o}を買いました。", "{o}が大好きです。", "今日、{o}をもらいました。", "今日、{o}を見つけました。"),
}  # fmt: skip
NICE = {
    "en": ("That is nice!", "How nice!", "I see. Thank you for telling me.", "That sounds good!"),
    "ja": (
        "いいですね。",
        "それはすてきですね。",
        "そうですか。教えてくれてありがとうございます。",
        "それはよかったですね。",
    ),
}
ASK_LIKE = {
    "en": ("What do I like?", "What is my favourite thing?", "What do I have?", "What do I want?", "What did I buy?", "What do I really like?", "What did I get?", "What did I find?"),
    "ja": ("私は何が好きですか？", "私の好きな物は何ですか？", "私は何を持っていますか？", "私は何が欲しいですか？", "私は何を買いましたか？", "私は何が大好きですか？", "私は何をもらいましたか？", "私は何を見つけましたか？"),
}  # fmt: skip
LIKE_REPLY = {
    "en": ("You like {p}.", "Your favourite thing is {a}.", "You have {a}.", "You want {a}.", "You bought {a}.", "You really like {p}.", "You got {a}.", "You found {a}."),
    "ja": ("あなたは{o}が好きです。", "あなたの好きな物は{o}です。", "あなたは{o}を持っています。", "あなたは{o}が欲しいです。", "あなたは{o}を買いました。", "あなたは{o}が大好きです。", "あなたは{o}をもらいました。", "あなたは{o}を見つけました。"),
}  # fmt: skip


def memory(draw: Draw, level: int) -> Task:
    """What the user said earlier in the chat. 1: the name, at once. 2: the name or a thing. 3-5: with more turns between."""
    person = draw.person()
    thing = draw.pick(words.OBJECTS + words.FRUITS + words.ANIMALS[:6])
    fields = {"n": person.name, "p": thing.plural, "a": words.article(thing.en), "o": thing.ja}
    name_turn = (draw.say(MY_NAME, **fields), draw.say(NICE_TO_MEET, **fields))
    which = draw.number(0, 7)
    like_turn = (LIKES[draw.language][which].format(**fields), draw.say(NICE))
    turns = [name_turn]
    ask_thing = level >= 2 and draw.chance(0.5)
    if level >= 2:
        turns.append(like_turn)
    if level >= 3:
        turns.append(draw.pick(SMALL_TURNS[draw.language]))
    if level >= 4:
        turns.insert(1, draw.pick(SMALL_TURNS[draw.language]))
    if level >= 5:
        draw.rng.shuffle(turns)
    if ask_thing:
        question, z = ASK_LIKE[draw.language][which], thing.ja if draw.ja else thing.en
        reply = LIKE_REPLY[draw.language][which].format(**fields)
        why = (
            f"前に{z}の話を聞いた。"
            if draw.ja
            else f"The user told me about {fields['p'] if which in (0, 5) else fields['a']}."
        )
        options = tuple(t.ja if draw.ja else t.en for t in words.OBJECTS + words.FRUITS + words.ANIMALS[:6])
    else:
        question, z = draw.say(ASK_NAME), person.name
        reply, options = draw.say(NAME_REPLY, **fields), ()
        why = f"名前は{z}だと聞いた。" if draw.ja else f"The user said the name {z}."
    return Task(
        "memory", level, draw.language, question, z, reply, why, "word",
        f"memory:{person.name}:{thing.key}:{which}:{ask_thing}:{level}", options=options, names=(person.name,), turns=tuple(turns),
    )  # fmt: skip


SMALL_TURNS = {
    "en": (("How are you?", "I am fine, thank you!"), ("It is a nice day.", "Yes, it is!"), ("Are you there?", "Yes, I am here."), ("Can I ask you something?", "Of course! Please ask."), ("I am a little tired.", "Please rest a little."), ("I am happy today.", "I am glad to hear that!")),
    "ja": (("元気ですか？", "はい、元気です。"), ("今日はいい天気です。", "そうですね。いい天気ですね。"), ("聞こえますか？", "はい、ここにいます。"), ("質問してもいいですか？", "もちろんです。どうぞ。"), ("少し疲れました。", "少し休んでくださいね。"), ("今日はうれしいです。", "それはよかったですね。")),
}  # fmt: skip
