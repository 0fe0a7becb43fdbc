"""Questions that one table answers: opposites, colours, sounds, legs, uses, kinds, translation, days, months, spelling."""
# ruff: noqa: E501 - a sentence stays on one line

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from shoal.data.microworld import words
from shoal.data.microworld.world import Draw, Language, Task

Templates = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of a table: what is asked about (`x`), its value (`z`), and a language-independent key for the id."""

    key: str
    x: str
    z: str


@dataclass(frozen=True, slots=True)
class Lookup:
    """A family whose questions are templates with {x} and whose answers are a table's values.

    Every row is taught; held out are combinations of a row and a phrasing. `follow` are elliptical second questions.
    """

    family: str
    level: int
    check: str
    entries: dict[Language, tuple[Entry, ...]]
    ask: Templates
    reply: Templates
    why: Templates
    follow: Templates | None = None

    def __call__(self, draw: Draw, level: int) -> Task:
        return self.about(draw, draw.pick(self.entries[draw.language]))

    def about(self, draw: Draw, entry: Entry, follow: bool = False) -> Task:
        """The task about `entry`; with `follow` asked as a second question ("And X?")."""
        templates = (self.follow if follow and self.follow else self.ask)[draw.language]
        which = draw.number(0, len(templates) - 1)
        x, z = entry.x, entry.z
        fields = {"x": x, "z": z, "X": x[:1].upper() + x[1:], "Z": z[:1].upper() + z[1:]}
        options = tuple(e.z for e in self.entries[draw.language]) if self.check == "word" else ()
        return Task(
            self.family, self.level, draw.language, templates[which].format(**fields), z, draw.say(self.reply, **fields),
            draw.say(self.why, **fields), self.check, f"{self.family}:{draw.language}:{entry.key}:{'f' if follow else ''}{which}",
            options=options,
        )  # fmt: skip


def _facts(table: Sequence[tuple[str, str, str, str]]) -> dict[Language, tuple[Entry, ...]]:
    return {
        "en": tuple(Entry(row[0], row[0], row[1]) for row in table),
        "ja": tuple(Entry(row[0], row[2], row[3]) for row in table),
    }


OPPOSITE = Lookup(
    "opposite", 1, "word",
    {language: tuple(Entry(a, a, b) for a, b in words.OPPOSITES[language]) for language in ("en", "ja")},
    {
        "en": ("What is the opposite of {x}?", "What's the opposite of \"{x}\"?", "Tell me the opposite of {x}.", "Opposite of {x}?", "Which word is the opposite of {x}?", "Give me the opposite of the word {x}.", "The opposite of {x} is what?", "Do you know the opposite of {x}?", "{X} is the opposite of what?"),
        "ja": ("「{x}」の反対は何ですか？", "「{x}」の反対の言葉を教えてください。", "{x}の反対は？", "「{x}」の反対語は何ですか？", "「{x}」の逆は何ですか？", "反対の言葉は何ですか？ 「{x}」", "「{x}」と反対の意味の言葉は何ですか？", "「{x}」の反対を言ってください。", "{x}の逆は何？"),
    },
    {
        "en": ("The opposite of {x} is {z}.", "It is {z}.", "{Z} is the opposite of {x}.", "{Z}."),
        "ja": ("「{x}」の反対は「{z}」です。", "「{z}」です。", "反対の言葉は「{z}」です。", "「{z}」が反対の言葉です。"),
    },
    {"en": ("{X} and {z} are opposites.",), "ja": ("「{x}」と「{z}」は反対の言葉。",)},
    {"en": ("And the opposite of {x}?", "And {x}?", "What about {x}?"), "ja": ("では、「{x}」の反対は？", "「{x}」は？", "じゃあ、「{x}」は？")},
)  # fmt: skip
COLOUR = Lookup(
    "colour", 1, "word", _facts(words.COLOUR_FACTS),
    {
        "en": ("What colour is {x}?", "What is the colour of {x}?", "Which colour does {x} have?", "Tell me the colour of {x}.", "Do you know what colour {x} is?", "{X} is what colour?", "What color is {x}?", "Say the colour of {x}."),
        "ja": ("{x}は何色ですか？", "{x}の色は何ですか？", "{x}の色を教えてください。", "{x}は何色？", "{x}はどんな色ですか？", "{x}の色は？", "{x}の色を知っていますか？", "{x}の色を言ってください。"),
    },
    {
        "en": ("{X} is {z}.", "It is {z}.", "{Z}.", "The colour of {x} is {z}."),
        "ja": ("{x}は{z}です。", "{z}です。", "{x}の色は{z}です。", "色は{z}です。"),
    },
    {"en": ("I know that {x} is {z}.", "The colour of {x} is {z}."), "ja": ("{x}の色は{z}。",)},
    {"en": ("And {x}?", "What about {x}?", "And what colour is {x}?"), "ja": ("では、{x}は？", "{x}は何色ですか？", "じゃあ、{x}は？")},
)  # fmt: skip
SOUND = Lookup(
    "sound", 1, "word", _facts(words.SOUND_FACTS),
    {
        "en": ("What does a {x} say?", "What sound does a {x} make?", "Which sound does a {x} make?", "How does a {x} sound?", "What noise does a {x} make?", "Tell me the sound of a {x}.", "Can you make the sound of a {x}?", "A {x} says what?"),
        "ja": ("{x}は何と鳴きますか？", "{x}の鳴き声は何ですか？", "{x}はどう鳴きますか？", "{x}の鳴き声を教えてください。", "{x}は何て鳴く？", "{x}の鳴き声は？", "{x}はどんな声で鳴きますか？", "{x}の鳴き声をまねしてください。"),
    },
    {
        "en": ("A {x} says \"{z}\".", "It says \"{z}\".", "The {x} says \"{z}\".", "\"{Z}!\""),
        "ja": ("{x}は「{z}」と鳴きます。", "「{z}」です。", "{x}の鳴き声は「{z}」です。", "「{z}」と鳴きます。"),
    },
    {"en": ("The sound of a {x} is \"{z}\".",), "ja": ("{x}の鳴き声は「{z}」。",)},
    {"en": ("And a {x}?", "What about a {x}?"), "ja": ("では、{x}は？", "じゃあ、{x}は？")},
)  # fmt: skip
LEGS = Lookup(
    "legs", 1, "number", _facts(words.LEGS_FACTS),
    {
        "en": ("How many legs does {x} have?", "What is the number of legs of {x}?", "Tell me how many legs {x} has.", "{X} has how many legs?", "Do you know how many legs {x} has?", "How many legs are there on {x}?", "Say how many legs {x} has.", "Count the legs of {x}."),
        "ja": ("{x}の足は何本ですか？", "{x}には足が何本ありますか？", "{x}の足の数を教えてください。", "{x}の足は何本？", "{x}の足はいくつありますか？", "{x}は足を何本持っていますか？", "{x}の足の数は？", "{x}の足を数えると何本ですか？"),
    },
    {
        "en": ("{X} has {z} legs.", "It has {z} legs.", "{z} legs.", "The answer is {z}."),
        "ja": ("{x}の足は{z}本です。", "{z}本です。", "足は{z}本です。", "足は{z}本あります。"),
    },
    {"en": ("I know that {x} has {z} legs.",), "ja": ("{x}の足の数は{z}本。",)},
    {"en": ("And {x}?", "What about {x}?"), "ja": ("では、{x}は？", "じゃあ、{x}は？")},
)  # fmt: skip
USE = Lookup(
    "use", 2, "word", _facts(words.USE_FACTS),
    {
        "en": ("What do you need to {x}?", "What do people use to {x}?", "Which thing helps you to {x}?", "I want to {x}. What do I need?", "Name a thing that you use to {x}.", "What can I use to {x}?", "What is used to {x}?", "To {x}, what do I need?"),
        "ja": ("{x}ときに使う物は何ですか？", "{x}には何を使いますか？", "{x}とき、何が必要ですか？", "{x}ために使う物を教えてください。", "{x}ときは何を使う？", "人は{x}とき、何を使いますか？", "{x}のに使う物は何ですか？", "{x}ときに役に立つ物は何ですか？"),
    },
    {
        "en": ("You use the {z} to {x}.", "The thing you need is the {z}.", "Use the {z}.", "People use the {z}."),
        "ja": ("{z}を使います。", "{x}ときは、{z}を使います。", "{z}です。", "{z}が必要です。"),
    },
    {"en": ("To {x}, the {z} is needed.",), "ja": ("{x}ときに使うのは{z}。",)},
)  # fmt: skip

_KIND_ROWS = [(thing, kind) for kind in words.KINDS for thing in kind[3]]
KIND = Lookup(
    "kind", 1, "word",
    {
        "en": tuple(Entry(t.key, words.article(t.en), k[0]) for t, k in _KIND_ROWS if k[0] != "clothing"),
        "ja": tuple(Entry(t.key, t.ja, k[2]) for t, k in _KIND_ROWS),
    },
    {
        "en": ("What kind of thing is {x}?", "What is {x}?", "Is {x} an animal, a fruit, a tool or a vehicle?", "Which group does {x} belong to?", "{X} is a kind of what?", "Tell me what kind of thing {x} is.", "What sort of thing is {x}?", "Do you know what {x} is?"),
        "ja": ("{x}は何の仲間ですか？", "{x}とは何ですか？", "{x}は動物、果物、道具、乗り物、服のどれですか？", "{x}は何の一種ですか？", "{x}はどの仲間に入りますか？", "{x}って何？", "{x}はどんな物の仲間ですか？", "{x}が何か知っていますか？"),
    },
    {
        "en": ("{X} is a kind of {z}.", "It is a kind of {z}.", "That is a kind of {z}.", "{X} is one kind of {z}."),
        "ja": ("{x}は{z}です。", "{z}の仲間です。", "{x}は{z}の一種です。", "{z}です。"),
    },
    {"en": ("I know {x}: a kind of {z}.",), "ja": ("{x}は{z}の仲間。",)},
    {"en": ("And {x}?", "What about {x}?"), "ja": ("では、{x}は？", "じゃあ、{x}は？")},
)  # fmt: skip

TRANSLATE = Lookup(
    "translate", 2, "word",
    {"en": tuple(Entry(e, e, j) for e, j in words.TRANSLATE if e != "orange"), "ja": tuple(Entry(e, j, e) for e, j in words.TRANSLATE if e != "orange")},
    {
        "en": ("How do you say \"{x}\" in Japanese?", "What is \"{x}\" in Japanese?", "Translate \"{x}\" into Japanese.", "What is the Japanese word for {x}?", "{x} in Japanese?", "Please say \"{x}\" in Japanese.", "Tell me the Japanese for {x}.", "What does \"{x}\" mean in Japanese?"),
        "ja": ("「{x}」は英語で何と言いますか？", "「{x}」を英語にしてください。", "「{x}」を英語で言ってください。", "{x}は英語で何？", "「{x}」の英語を教えてください。", "英語で「{x}」は何ですか？", "「{x}」を英語に訳してください。", "「{x}」は英語でどう言いますか？"),
    },
    {
        "en": ("\"{x}\" is 「{z}」 in Japanese.", "It is 「{z}」.", "In Japanese you say 「{z}」.", "The Japanese word is 「{z}」."),
        "ja": ("「{x}」は英語で \"{z}\" です。", "\"{z}\" です。", "英語では \"{z}\" と言います。", "英語で \"{z}\" です。"),
    },
    {"en": ("The word {x} is 「{z}」.",), "ja": ("「{x}」は \"{z}\"。",)},
    {"en": ("And \"{x}\"?", "And {x}?", "What about {x}?"), "ja": ("では、「{x}」は？", "「{x}」は？", "じゃあ、「{x}」は？")},
)  # fmt: skip


def _neighbours(names: Sequence[tuple[str, str]], step: int) -> dict[Language, tuple[Entry, ...]]:
    count = len(names)
    return {
        "en": tuple(Entry(names[i][0], names[i][0], names[(i + step) % count][0]) for i in range(count)),
        "ja": tuple(Entry(names[i][0], names[i][1], names[(i + step) % count][1]) for i in range(count)),
    }


DAY_AFTER = Lookup(
    "calendar", 1, "word", _neighbours(words.DAYS, 1),
    {
        "en": ("What day comes after {x}?", "Which day is after {x}?", "What is the day after {x}?", "Today is {x}. What day is tomorrow?", "If today is {x}, what is tomorrow?", "Tell me the day after {x}.", "{X} is today. What day comes next?", "After {x} comes which day?"),
        "ja": ("{x}の次は何曜日ですか？", "{x}の次の日は何曜日ですか？", "今日は{x}です。明日は何曜日ですか？", "今日が{x}なら、明日は何曜日ですか？", "{x}の翌日は何曜日ですか？", "{x}の次は？", "{x}の後に来るのは何曜日ですか？", "{x}の次の曜日を教えてください。"),
    },
    {"en": ("After {x} comes {z}.", "It is {z}.", "The next day is {z}.", "{Z}."), "ja": ("{x}の次は{z}です。", "{z}です。", "次の日は{z}です。", "{z}になります。")},
    {"en": ("The day after {x} is {z}.",), "ja": ("{x}の次の日は{z}。",)},
    {"en": ("And after {x}?",), "ja": ("では、{x}の次は？",)},
)  # fmt: skip
DAY_BEFORE = Lookup(
    "calendar", 1, "word", _neighbours(words.DAYS, -1),
    {
        "en": ("What day comes before {x}?", "Which day is before {x}?", "What is the day before {x}?", "Today is {x}. What day was yesterday?", "If today is {x}, what was yesterday?", "Tell me the day before {x}.", "{X} is today. Which day was it yesterday?", "Before {x} comes which day?"),
        "ja": ("{x}の前は何曜日ですか？", "{x}の前の日は何曜日ですか？", "今日は{x}です。昨日は何曜日でしたか？", "今日が{x}なら、昨日は何曜日でしたか？", "{x}の前日は何曜日ですか？", "{x}の前は？", "{x}の前に来るのは何曜日ですか？", "{x}の前の曜日を教えてください。"),
    },
    {"en": ("Before {x} comes {z}.", "It was {z}.", "The day before is {z}.", "{Z}."), "ja": ("{x}の前は{z}です。", "{z}です。", "前の日は{z}です。", "{z}でした。")},
    {"en": ("The day before {x} is {z}.",), "ja": ("{x}の前の日は{z}。",)},
    {"en": ("And before {x}?",), "ja": ("では、{x}の前は？",)},
)  # fmt: skip
MONTH_AFTER = Lookup(
    "calendar", 2, "word", _neighbours(words.MONTHS, 1),
    {
        "en": ("What month comes after {x}?", "Which month is after {x}?", "What is the month after {x}?", "It is {x}. What is next month?", "If it is {x} now, what is next month?", "Tell me the month after {x}.", "Which month follows {x}?", "After {x} comes which month?"),
        "ja": ("{x}の次は何月ですか？", "{x}の次の月は何月ですか？", "今は{x}です。来月は何月ですか？", "今月が{x}なら、来月は何月ですか？", "{x}の翌月は何月ですか？", "{x}の次は？", "{x}の後に来るのは何月ですか？", "{x}の次の月を教えてください。"),
    },
    {"en": ("After {x} comes {z}.", "It is {z}.", "The next month is {z}.", "{Z}."), "ja": ("{x}の次は{z}です。", "{z}です。", "次の月は{z}です。", "来月は{z}です。")},
    {"en": ("The month after {x} is {z}.",), "ja": ("{x}の次の月は{z}。",)},
)  # fmt: skip
MONTH_BEFORE = Lookup(
    "calendar", 2, "word", _neighbours(words.MONTHS, -1),
    {
        "en": ("What month comes before {x}?", "Which month is before {x}?", "What is the month before {x}?", "It is {x}. What was last month?", "If it is {x} now, what was last month?", "Tell me the month before {x}.", "Which month is right before {x}?", "Before {x} comes which month?"),
        "ja": ("{x}の前は何月ですか？", "{x}の前の月は何月ですか？", "今は{x}です。先月は何月でしたか？", "今月が{x}なら、先月は何月でしたか？", "{x}の前月は何月ですか？", "{x}の前は？", "{x}の前に来るのは何月ですか？", "{x}の前の月を教えてください。"),
    },
    {"en": ("Before {x} comes {z}.", "It was {z}.", "The month before is {z}.", "{Z}."), "ja": ("{x}の前は{z}です。", "{z}です。", "前の月は{z}です。", "先月は{z}でした。")},
    {"en": ("The month before {x} is {z}.",), "ja": ("{x}の前の月は{z}。",)},
)  # fmt: skip

_SPELL_WORDS: dict[Language, list[str]] = {"en": words.SPELL_EN, "ja": words.SPELL_JA}


def _spelling(value: Callable[[str, Language], str]) -> dict[Language, tuple[Entry, ...]]:
    return {
        language: tuple(Entry(w, w, value(w, language)) for w in _SPELL_WORDS[language])
        for language in ("en", "ja")
    }


def letters(word: str, language: Language) -> str:
    return ("・" if language == "ja" else "-").join(word)


FIRST_LETTER = Lookup(
    "spell", 1, "letters", _spelling(lambda w, _: w[0]),
    {
        "en": ("What is the first letter of \"{x}\"?", "Which letter does \"{x}\" start with?", "What letter does {x} begin with?", "First letter of {x}?", "Tell me the first letter of the word {x}.", "The word {x} starts with which letter?", "What is the first letter in {x}?", "Say the first letter of {x}."),
        "ja": ("「{x}」の最初の文字は何ですか？", "「{x}」はどの文字で始まりますか？", "「{x}」の一文字目は何ですか？", "「{x}」の最初の文字は？", "「{x}」の最初の文字を教えてください。", "「{x}」の初めの文字は何ですか？", "「{x}」という言葉の最初の文字は何ですか？", "「{x}」の一番目の文字を言ってください。"),
    },
    {"en": ("The first letter is \"{z}\".", "It is \"{z}\".", "It starts with \"{z}\"."), "ja": ("最初の文字は「{z}」です。", "「{z}」です。", "「{z}」で始まります。")},
    {"en": ("The word {x} starts with \"{z}\".",), "ja": ("「{x}」は「{z}」で始まる。",)},
    {"en": ("And of {x}?", "And \"{x}\"?"), "ja": ("では、「{x}」は？",)},
)  # fmt: skip
LAST_LETTER = Lookup(
    "spell", 2, "letters", _spelling(lambda w, _: w[-1]),
    {
        "en": ("What is the last letter of \"{x}\"?", "Which letter does \"{x}\" end with?", "What letter does {x} end in?", "Last letter of {x}?", "Tell me the last letter of the word {x}.", "The word {x} ends with which letter?", "What is the last letter in {x}?", "Say the last letter of {x}."),
        "ja": ("「{x}」の最後の文字は何ですか？", "「{x}」はどの文字で終わりますか？", "「{x}」の終わりの文字は何ですか？", "「{x}」の最後の文字は？", "「{x}」の最後の文字を教えてください。", "「{x}」の一番後ろの文字は何ですか？", "「{x}」という言葉の最後の文字は何ですか？", "「{x}」の最後の文字を言ってください。"),
    },
    {"en": ("The last letter is \"{z}\".", "It is \"{z}\".", "It ends with \"{z}\"."), "ja": ("最後の文字は「{z}」です。", "「{z}」です。", "「{z}」で終わります。")},
    {"en": ("The word {x} ends with \"{z}\".",), "ja": ("「{x}」は「{z}」で終わる。",)},
)  # fmt: skip
SPELL = Lookup(
    "spell", 2, "letters", _spelling(letters),
    {
        "en": ("How do you spell \"{x}\"?", "Spell the word {x}.", "Please spell {x}.", "Can you spell \"{x}\"?", "spell {x}", "What are the letters of {x}?", "Say the letters of the word {x}.", "Write {x} letter by letter.", "How is {x} spelled?"),
        "ja": ("「{x}」を一文字ずつ書いてください。", "「{x}」を一文字ずつ言ってください。", "「{x}」はどんな文字でできていますか？", "「{x}」を文字に分けてください。", "「{x}」を一文字ずつに分けると？", "「{x}」の文字を順番に教えてください。", "「{x}」の文字を一つずつお願いします。", "「{x}」の文字を並べてください。"),
    },
    {"en": ("{z}.", "It is spelled {z}.", "You spell it {z}.", "The letters are {z}."), "ja": ("「{z}」です。", "一文字ずつ書くと、「{z}」です。", "文字は「{z}」です。", "「{x}」は「{z}」です。")},
    {"en": ("I say the letters of {x} one by one.",), "ja": ("「{x}」の文字を一つずつ言う。",)},
    {"en": ("And {x}?", "Now spell {x}."), "ja": ("では、「{x}」は？",)},
)  # fmt: skip
LENGTH = Lookup(
    "spell", 3, "number", _spelling(lambda w, _: str(len(w))),
    {
        "en": ("How many letters are in \"{x}\"?", "How many letters does the word {x} have?", "Count the letters in {x}.", "How long is the word {x}?", "What is the number of letters in {x}?", "Tell me how many letters {x} has.", "{X} has how many letters?", "How many letters do you need for {x}?"),
        "ja": ("「{x}」は何文字ですか？", "「{x}」の文字数はいくつですか？", "「{x}」には文字がいくつありますか？", "「{x}」の文字を数えてください。", "「{x}」は何文字？", "「{x}」の文字の数を教えてください。", "「{x}」という言葉は何文字ですか？", "「{x}」は何文字でできていますか？"),
    },
    {"en": ("The word {x} has {z} letters.", "It has {z} letters.", "{z} letters.", "There are {z} letters."), "ja": ("「{x}」は{z}文字です。", "{z}文字です。", "文字の数は{z}です。", "{z}文字あります。")},
    {"en": ("{dashed}: {z}.",), "ja": ("{dashed}で{z}文字。",)},
)  # fmt: skip
REVERSE = Lookup(
    "spell", 4, "letters", _spelling(lambda w, _: w[::-1]),
    {
        "en": ("Write \"{x}\" backwards.", "What is {x} backwards?", "Spell {x} backwards.", "Reverse the word {x}.", "Can you say {x} backwards?", "Turn the word {x} around.", "{x} backwards?", "Read {x} from the end."),
        "ja": ("「{x}」を逆から書いてください。", "「{x}」を逆から読むと何ですか？", "「{x}」を反対から読んでください。", "「{x}」を後ろから読むと？", "「{x}」を逆さまにしてください。", "「{x}」の文字を逆に並べてください。", "「{x}」を後ろから書いてください。", "「{x}」を逆から言うとどうなりますか？"),
    },
    {"en": ("Backwards it is \"{z}\".", "\"{z}\".", "It is \"{z}\"."), "ja": ("逆から読むと「{z}」です。", "「{z}」です。", "「{z}」になります。")},
    {"en": ("{dashed}, backwards {reversed}.",), "ja": ("{dashed}、逆から{reversed}。",)},
)  # fmt: skip
NTH = {
    "en": ("What is letter number {k} of \"{x}\"?", "Which letter is number {k} in {x}?", "Tell me letter {k} of the word {x}.", "In {x}, what is letter number {k}?", "Letter {k} of {x}?", "Say letter number {k} of {x}.", "Which is letter {k} in the word {x}?", "Find letter {k} of {x}."),
    "ja": ("「{x}」の{k}番目の文字は何ですか？", "「{x}」の{k}文字目は何ですか？", "「{x}」の{k}番目の文字を教えてください。", "「{x}」の{k}番目は？", "「{x}」で{k}番目に来る文字は何ですか？", "「{x}」の{k}文字目を言ってください。", "{k}番目の文字は何ですか？ 「{x}」", "「{x}」という言葉の{k}番目の文字は何ですか？"),
}  # fmt: skip
NTH_REPLY = {
    "en": ('It is "{z}".', 'Letter {k} is "{z}".', '"{z}".'),
    "ja": ("「{z}」です。", "{k}番目の文字は「{z}」です。"),
}


class _WordLookup:
    """`LENGTH` and `REVERSE` spell the word in their reasoning, which the table's templates cannot."""

    def __init__(self, lookup: Lookup):
        self.lookup, self.family, self.follow, self.entries = lookup, lookup.family, None, lookup.entries

    def __call__(self, draw: Draw, level: int) -> Task:
        entry = draw.pick(self.lookup.entries[draw.language])
        dashed, backwards = letters(entry.x, draw.language), letters(entry.x[::-1], draw.language)
        why = {
            language: tuple(t.replace("{dashed}", dashed).replace("{reversed}", backwards) for t in templates)
            for language, templates in self.lookup.why.items()
        }
        from dataclasses import replace

        return replace(self.lookup, why=why).about(draw, entry)


def nth_letter(draw: Draw, level: int) -> Task:
    """5: the letter at a place in a word."""
    word = draw.pick([w for w in _SPELL_WORDS[draw.language] if len(w) >= 3])
    k = draw.number(2, len(word))
    z = word[k - 1]
    numbered = [f"{i} {letter}" for i, letter in enumerate(word[:k], 1)]
    why = ("、" if draw.ja else ", ").join(numbered) + ("。" if draw.ja else ".")
    return Task("spell", 5, draw.language, draw.say(NTH, x=word, k=k), z, draw.say(NTH_REPLY, z=z, k=k), why, "letters", f"spell:nth:{word}:{k}")  # fmt: skip


_BY_LEVEL: dict[int, tuple[Callable[[Draw, int], Task], ...]] = {
    1: (FIRST_LETTER,), 2: (SPELL, LAST_LETTER), 3: (_WordLookup(LENGTH),), 4: (_WordLookup(REVERSE),), 5: (nth_letter,),
}  # fmt: skip


def spelling(draw: Draw, level: int) -> Task:
    """1: the first letter. 2: the last letter, or all letters. 3: how many. 4: backwards. 5: the n-th letter."""
    return draw.pick(_BY_LEVEL[level])(draw, level)


DAYS_LATER = {
    "en": ("Today is {x}. What day is it in {k} days?", "If today is {x}, what day is it {k} days later?", "What day is {k} days after {x}?", "{X} plus {k} days is which day?", "It is {x} now. Which day comes {k} days later?", "Which day is {k} days after {x}?", "Count {k} days from {x}. What day is it?", "What day will it be {k} days from {x}?"),
    "ja": ("今日は{x}です。{k}日後は何曜日ですか？", "今日が{x}なら、{k}日後は何曜日ですか？", "{x}の{k}日後は何曜日ですか？", "{x}から{k}日たつと何曜日ですか？", "{x}の{k}日後は？", "{x}の{k}日後の曜日を教えてください。", "{x}から{k}日後は何曜日になりますか？", "{x}から数えて{k}日後は何曜日ですか？"),
}  # fmt: skip
DAYS_EARLIER = {
    "en": ("Today is {x}. What day was it {k} days ago?", "If today is {x}, what day was it {k} days ago?", "What day is {k} days before {x}?", "Which day is {k} days before {x}?", "It is {x} now. Which day was {k} days earlier?", "Count back {k} days from {x}. What day is it?", "{X} minus {k} days is which day?", "What day was it {k} days before {x}?"),
    "ja": ("今日は{x}です。{k}日前は何曜日でしたか？", "今日が{x}なら、{k}日前は何曜日でしたか？", "{x}の{k}日前は何曜日ですか？", "{x}から{k}日戻ると何曜日ですか？", "{x}の{k}日前は？", "{x}の{k}日前の曜日を教えてください。", "{x}より{k}日前は何曜日になりますか？", "{x}から数えて{k}日前は何曜日ですか？"),
}  # fmt: skip
DAY_REPLY = {
    "en": ("It is {z}.", "The day is {z}.", "{z}."),
    "ja": ("{z}です。", "その日は{z}です。", "{z}になります。"),
}
CLOCK = {
    "en": ("It is {x} o'clock. What time is it in {k} hours?", "It is {x} o'clock now. What time will it be {k} hours later?", "What time is {k} hours after {x} o'clock?", "The clock shows {x} o'clock. What does it show in {k} hours?", "Now it is {x} o'clock. And in {k} hours?", "If it is {x} o'clock, what time is it in {k} hours?", "Add {k} hours to {x} o'clock.", "A train leaves at {x} o'clock and drives {k} hours. When does it arrive?"),
    "ja": ("今{x}時です。{k}時間後は何時ですか？", "今{x}時です。{k}時間たつと何時になりますか？", "{x}時の{k}時間後は何時ですか？", "時計は{x}時です。{k}時間後には何時になりますか？", "{x}時から{k}時間後は？", "今が{x}時なら、{k}時間後は何時ですか？", "{x}時に{k}時間を足すと何時ですか？", "電車は{x}時に出て、{k}時間走ります。何時に着きますか？"),
}  # fmt: skip
CLOCK_REPLY = {
    "en": ("It is {z} o'clock.", "At {z} o'clock.", "{z} o'clock."),
    "ja": ("{z}時です。", "{z}時になります。"),
}


def calendar(draw: Draw, level: int) -> Task:
    """1: the next or last day. 2: months, two days on, hours without a wrap. 3: 3-6 days on, hours past twelve. 4: days back. 5: weeks."""
    if level == 1:
        return (DAY_AFTER if draw.chance(0.6) else DAY_BEFORE)(draw, 1)
    if level == 2 and draw.chance(0.55):
        return (MONTH_AFTER if draw.chance(0.6) else MONTH_BEFORE)(draw, 2)
    if level <= 3 and draw.chance(0.5):
        x = draw.number(1, 10) if level == 2 else draw.number(6, 12)
        k = draw.number(1, 12 - x) if level == 2 and x < 12 else draw.number(max(1, 13 - x), 8)
        hour = (x + k - 1) % 12 + 1
        end = "。" if draw.ja else "."
        why = f"{x} + {k} = {x + k}" + (f", {x + k} - 12 = {hour}" if x + k > 12 else "") + end
        pairs = ((x, k), (x + k, 12)) if x + k > 12 else ((x, k),)
        return Task("calendar", level, draw.language, draw.say(CLOCK, x=x, k=k), str(hour), draw.say(CLOCK_REPLY, z=hour), why, "number", f"calendar:clock:{x}+{k}", pairs=pairs)  # fmt: skip
    names = [pair[1] if draw.ja else pair[0] for pair in words.DAYS]
    i = draw.number(0, 6)
    k = {2: 2, 3: draw.number(3, 6), 4: draw.number(2, 7), 5: draw.number(7, 16)}[level]
    later = level != 4
    step = 1 if later else -1
    z = names[(i + step * k) % 7]
    ask = DAYS_LATER if later else DAYS_EARLIER
    which = draw.number(0, 7)
    if k % 7 == 0:
        why = (
            f"{k}日は{k // 7}週間。同じ{names[i]}。"
            if draw.ja
            else f"{k} days are {'one week' if k == 7 else 'two weeks'}. It is {names[i]} again."
        )
    elif k > 7:
        rest = k % 7
        why = (
            f"{k}日は{k - rest}日と{rest}日。"
            if draw.ja
            else f"{k} days are {k - rest} days and {rest} more."
        )
        trail = [names[(i + step * j) % 7] for j in range(rest + 1)]
        why += ("" if draw.ja else " ") + ("、" if draw.ja else ", ").join(trail) + ("。" if draw.ja else ".")
    else:
        why = ("、" if draw.ja else ", ").join(names[(i + step * j) % 7] for j in range(k + 1)) + (
            "。" if draw.ja else "."
        )
    return Task(
        "calendar", level, draw.language, ask[draw.language][which].format(x=names[i], X=names[i], k=k), z, draw.say(DAY_REPLY, z=z),
        why, "word", f"calendar:{words.DAYS[i][0]}{step * k:+}:{which if level == 2 else ''}", options=tuple(names),
    )  # fmt: skip


ODD = {
    "en": ("Which one is not {a} {k}: {l}?", "Which of these is not {a} {k}: {l}?", "{l}: which is not {a} {k}?", "Find the one that is not {a} {k}: {l}.", "One of these is not {a} {k}. Which one? {l}", "Tell me which is not {a} {k}: {l}.", "In {l}, what is not {a} {k}?", "Look at {l}. Which one is not {a} {k}?"),
    "ja": ("この中で{k}ではないものはどれですか？ {l}", "{l}の中で、{k}でないものは何ですか？", "{k}ではないものを選んでください：{l}", "{l}。{k}でないのはどれですか？", "一つだけ{k}ではありません。どれですか？ {l}", "次のうち、{k}ではないものはどれですか？ {l}", "{l}のうち、{k}でないものを教えてください。", "{l}の中で{k}じゃないのは？"),
}  # fmt: skip
WHICH = {
    "en": ("Which one is {a} {k}: {l}?", "Which of these is {a} {k}: {l}?", "{l}: which is {a} {k}?", "Find the {k}: {l}.", "One of these is {a} {k}. Which one? {l}", "Tell me which is {a} {k}: {l}.", "In {l}, what is {a} {k}?", "Look at {l}. Which one is {a} {k}?"),
    "ja": ("この中で{k}はどれですか？ {l}", "{l}の中で、{k}は何ですか？", "{k}を選んでください：{l}", "{l}。{k}はどれですか？", "一つだけ{k}があります。どれですか？ {l}", "次のうち、{k}はどれですか？ {l}", "{l}のうち、{k}を教えてください。", "{l}の中で{k}は？"),
}  # fmt: skip
ODD_REPLY = {
    "en": ("The {z} is not {a} {k}.", "It is the {z}.", "The {z}."),
    "ja": ("{z}は{k}ではありません。", "{z}です。", "{z}が{k}ではありません。"),
}
WHICH_REPLY = {
    "en": ("The {z} is {a} {k}.", "It is the {z}.", "The {z}."),
    "ja": ("{z}は{k}です。", "{z}です。", "{z}が{k}です。"),
}


def kinds(draw: Draw, level: int) -> Task:
    """1: what kind of thing it is. 2: which of three is of a kind. 3: which of three or four is not. 4 and 5: more of them."""
    if level == 1:
        return KIND(draw, 1)
    kind, other = draw.some([k for k in words.KINDS if k[0] != "clothing"], 2)
    count = {2: 2, 3: draw.number(2, 3), 4: 4, 5: 5}[level]
    single, many = (kind, other) if level == 2 else (other, kind)
    answer = draw.pick(single[3])
    listed = [answer, *draw.some(many[3], min(count, len(many[3])))]
    draw.rng.shuffle(listed)
    names = [t.ja if draw.ja else t.en for t in listed]
    text = ("、" if draw.ja else ", ").join(names)
    k = kind[2] if draw.ja else kind[0]
    a = "an" if k[0] in "aeiou" else "a"
    z = answer.ja if draw.ja else answer.en
    ask, reply = (WHICH, WHICH_REPLY) if level == 2 else (ODD, ODD_REPLY)
    group = single[2] if draw.ja else words.article(single[0])
    why = f"{z}は{group}。" if draw.ja else f"The {z} is {group}."
    if level > 2:
        why += f"ほかは{k}。" if draw.ja else f" The others are {kind[1]}."
    return Task(
        "kind", level, draw.language, draw.say(ask, k=k, a=a, l=text), z, draw.say(reply, k=k, a=a, z=z), why, "word",
        f"kind:{level == 2}:{kind[0]}:{','.join(t.key for t in listed)}", options=tuple(names),
    )  # fmt: skip


SAY = {
    "en": ("Say: {l}", "Repeat after me: {l}", "Please say \"{l}\".", "Repeat: {l}", "Can you say \"{l}\"?", "Write this: {l}", "Please repeat \"{l}\".", "Copy this: {l}"),
    "ja": ("「{l}」と言ってください。", "まねしてください：{l}", "「{l}」と書いてください。", "くり返してください：{l}", "「{l}」と言って。", "同じように言ってください：{l}", "「{l}」をそのまま書いてください。", "「{l}」とくり返してください。"),
}  # fmt: skip
BACKWARDS = {
    "en": ("Say these words in reverse order: {l}", "Reverse this list: {l}", "Write these words from last to first: {l}", "Say backwards, word by word: {l}", "Turn this list around: {l}", "Repeat in reverse order: {l}", "Start with the last word: {l}", "List these from the end: {l}"),
    "ja": ("逆の順番で言ってください：{l}", "次の言葉を逆の順番にしてください：{l}", "後ろから順に言ってください：{l}", "最後の言葉から順に書いてください：{l}", "順番を逆にしてください：{l}", "反対の順番でくり返してください：{l}", "後ろから並べてください：{l}", "逆の順番で書いてください：{l}"),
}  # fmt: skip


def repeating(draw: Draw, level: int) -> Task:
    """1: say one or two words. 2: three or four. 3: reverse two or three. 4: reverse four. 5: reverse five."""
    pool = words.OBJECTS + words.ANIMALS + words.FRUITS + words.SMALL
    count = {1: draw.number(1, 2), 2: draw.number(3, 4), 3: draw.number(2, 3), 4: 4, 5: 5}[level]
    picked = draw.some(pool, count)
    names = [t.ja if draw.ja else t.en for t in picked]
    join = "、" if draw.ja else ", "
    text = join.join(names)
    answer = text if level <= 2 else join.join(reversed(names))
    why = (
        ("言われた通りに言う。" if draw.ja else "I say it back.")
        if level <= 2
        else (
            f"最後は{names[-1]}。そこから前に戻る。"
            if draw.ja
            else f"The last is {names[-1]}. I go back from there."
        )
    )
    end = "。" if draw.ja else "."
    return Task("repeat", level, draw.language, draw.say(SAY if level <= 2 else BACKWARDS, l=text), answer, answer + end, why, "words", f"repeat:{level > 2}:{','.join(t.key for t in picked)}")  # fmt: skip


def facts(lookup: Lookup) -> Callable[[Draw, int], Task]:
    """A family of one table at one level."""
    return lambda draw, level: lookup.about(draw, draw.pick(lookup.entries[draw.language]))
