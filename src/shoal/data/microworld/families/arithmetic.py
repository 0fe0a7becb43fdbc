"""Numbers: sums, differences, products, comparisons, counting, sequences, word problems."""
# ruff: noqa: E501 - a sentence stays on one line

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from shoal.data.microworld.words import COUNTABLE
from shoal.data.microworld.world import Draw, Task

SUM = {
    "en": (
        "What is {x} + {y}?", "What is {x} plus {y}?", "{x} + {y} = ?", "How much is {x} + {y}?", "Please add {x} and {y}.",
        "Calculate {x} + {y}.", "What do you get when you add {y} to {x}?", "Can you tell me what {x} plus {y} is?",
        "{x} plus {y}?", "Find the sum of {x} and {y}.", "{x}+{y}",
    ),
    "ja": (
        "{x} + {y} はいくつですか？", "{x}たす{y}はいくつですか？", "{x} + {y} = ?", "{x} + {y} を計算してください。",
        "{x}に{y}を足すといくつになりますか？", "{x}と{y}を足してください。", "{x}たす{y}は？", "{x}と{y}の合計を教えてください。",
        "{x} + {y} の答えは何ですか？", "{x}+{y}は？",
    ),
}  # fmt: skip
SUM_REPLY = {
    "en": (
        *("{x} + {y} = {z}.",) * 4,
        "{x} plus {y} is {z}.",
        "The answer is {z}.",
        "It is {z}.",
        "That makes {z}.",
        "{z}.",
    ),
    "ja": (
        *("{x} + {y} = {z} です。",) * 4,
        "{x}たす{y}は{z}です。",
        "答えは{z}です。",
        "{z}です。",
        "{z}になります。",
    ),
}
DIFFERENCE = {
    "en": (
        "What is {x} - {y}?", "What is {x} minus {y}?", "{x} - {y} = ?", "How much is {x} - {y}?", "Take {y} away from {x}.",
        "Calculate {x} - {y}.", "What do you get when you subtract {y} from {x}?", "Can you tell me what {x} minus {y} is?",
        "{x} minus {y}?", "What is left when you take {y} from {x}?", "{x}-{y}",
    ),
    "ja": (
        "{x} - {y} はいくつですか？", "{x}ひく{y}はいくつですか？", "{x} - {y} = ?", "{x} - {y} を計算してください。",
        "{x}から{y}を引くといくつになりますか？", "{x}から{y}を引いてください。", "{x}ひく{y}は？", "{x}から{y}を取ると、いくつ残りますか？",
        "{x} - {y} の答えは何ですか？", "{x}-{y}は？",
    ),
}  # fmt: skip
DIFFERENCE_REPLY = {
    "en": (
        *("{x} - {y} = {z}.",) * 4,
        "{x} minus {y} is {z}.",
        "The answer is {z}.",
        "It is {z}.",
        "That leaves {z}.",
        "{z}.",
    ),
    "ja": (
        *("{x} - {y} = {z} です。",) * 4,
        "{x}ひく{y}は{z}です。",
        "答えは{z}です。",
        "{z}です。",
        "{z}になります。",
    ),
}
PRODUCT = {
    "en": (
        "What is {x} x {y}?", "What is {x} times {y}?", "{x} x {y} = ?", "How much is {x} times {y}?", "Multiply {x} by {y}.",
        "Calculate {x} x {y}.", "{x} times {y}?", "Can you multiply {x} and {y}?", "Find the product of {x} and {y}.",
    ),
    "ja": (
        "{x} x {y} はいくつですか？", "{x}かける{y}はいくつですか？", "{x} x {y} = ?", "{x} x {y} を計算してください。",
        "{x}に{y}を掛けるといくつになりますか？", "{x}と{y}を掛けてください。", "{x}かける{y}は？", "{x} x {y} の答えは何ですか？",
    ),
}  # fmt: skip
PRODUCT_REPLY = {
    "en": (*("{x} x {y} = {z}.",) * 4, "{x} times {y} is {z}.", "The answer is {z}.", "It is {z}.", "{z}."),
    "ja": (*("{x} x {y} = {z} です。",) * 4, "{x}かける{y}は{z}です。", "答えは{z}です。", "{z}です。"),
}
CHAIN = {
    "en": (
        "What is {e}?", "{e} = ?", "Calculate {e}.", "How much is {e}?", "Please work out {e}.", "Can you calculate {e}?",
        "Tell me what {e} is.", "Find {e}.",
    ),
    "ja": (
        "{e} はいくつですか？", "{e} = ?", "{e} を計算してください。", "{e} の答えを教えてください。", "{e} は？", "{e} を求めてください。",
        "{e} の答えは何ですか？", "{e} はいくつになりますか？",
    ),
}  # fmt: skip
CHAIN_REPLY = {
    "en": (*("{e} = {z}.",) * 4, "The answer is {z}.", "It is {z}.", "{z}."),
    "ja": (*("{e} = {z} です。",) * 4, "答えは{z}です。", "{z}です。"),
}


def add_by_digits(x: int, y: int, ja: bool) -> str:
    """The written sum, ones first: only sums of one-digit numbers are needed, and those are never held out."""
    if x < 10 and y < 10:
        return f"{x} + {y} = {x + y}{'。' if ja else '.'}"
    steps, carry, place = [], 0, 0
    names = ("一の位", "十の位", "百の位", "千の位") if ja else ("Ones", "Tens", "Hundreds", "Thousands")
    result = x + y
    while x or y or carry:
        a, b = x % 10, y % 10
        if not x and not y:
            break  # the last carry is the first digit
        total = a + b + carry
        term = f"{a} + {b} + 1" if carry else f"{a} + {b}"
        carry = total // 10
        note = ("、1繰り上がり" if ja else ", carry 1") if carry else ""
        steps.append(f"{names[place]}: {term} = {total}{note}{'。' if ja else '.'}")
        x, y, place = x // 10, y // 10, place + 1
    return ("" if ja else " ").join(steps) + (f"答えは{result}。" if ja else f" So {result}.")


def subtract_by_digits(x: int, y: int, ja: bool) -> str:
    """The written difference, ones first."""
    if x < 10:
        return f"{x} - {y} = {x - y}{'。' if ja else '.'}"
    steps, borrow, place = [], 0, 0
    names = ("一の位", "十の位", "百の位", "千の位") if ja else ("Ones", "Tens", "Hundreds", "Thousands")
    result = x - y
    while x:
        a, b = x % 10 - borrow, y % 10
        note = ""
        if a < b:
            a, borrow = a + 10, 1
            note = "、1借りる" if ja else ", borrow 1"
        else:
            borrow = 0
        steps.append(f"{names[place]}: {a} - {b} = {a - b}{note}{'。' if ja else '.'}")
        x, y, place = x // 10, y // 10, place + 1
    return ("" if ja else " ").join(steps) + (f"答えは{result}。" if ja else f" So {result}.")


def _binary(
    draw: Draw,
    family: str,
    level: int,
    x: int,
    y: int,
    z: int,
    ask: Mapping[str, Sequence[str]],
    reply: Mapping[str, Sequence[str]],
    why: str,
) -> Task:
    return Task(
        family, level, draw.language, draw.say(ask, x=x, y=y), str(z), draw.say(reply, x=x, y=y, z=z), why, "number",
        f"{family}:{x},{y}", pairs=((x, y),),
    )  # fmt: skip


def _chain(
    draw: Draw, family: str, level: int, expression: str, z: int, why: str, pairs: tuple[tuple[int, int], ...]
) -> Task:
    return Task(
        family, level, draw.language, draw.say(CHAIN, e=expression), str(z), draw.say(CHAIN_REPLY, e=expression, z=z), why,
        "number", f"{family}:{expression}", pairs=pairs,
    )  # fmt: skip


def sums(draw: Draw, level: int) -> Task:
    """1: up to 29 and one digit. 2: to 99. 3: three numbers, or three digits and two. 4: three digits. 5: sum and difference."""
    if level == 1:
        x, y = draw.number(0, 29), draw.number(0, 9)
        x, y = (x, y) if draw.chance(0.7) else (y, x)
    elif level == 2:
        x = draw.number(2, 97)
        y = draw.number(1, 99 - x)
    elif level == 3 and draw.chance(0.5):
        a, b, c = draw.number(1, 30), draw.number(1, 20), draw.number(1, 9)
        why = f"{a} + {b} = {a + b}, {a + b} + {c} = {a + b + c}" + ("。" if draw.ja else ".")
        return _chain(draw, "sum", 3, f"{a} + {b} + {c}", a + b + c, why, ((a, b), (a + b, c)))
    elif level == 3:
        x, y = draw.number(100, 899), draw.number(10, 99)
    elif level == 4:
        x, y = draw.number(100, 499), draw.number(100, 499)
    else:
        a, b = draw.number(10, 60), draw.number(10, 39)
        c = draw.number(1, a + b - 1)
        why = f"{a} + {b} = {a + b}, {a + b} - {c} = {a + b - c}" + ("。" if draw.ja else ".")
        return _chain(draw, "sum", 5, f"{a} + {b} - {c}", a + b - c, why, ((a, b), (a + b, c)))
    return _binary(draw, "sum", level, x, y, x + y, SUM, SUM_REPLY, add_by_digits(x, y, draw.ja))


def differences(draw: Draw, level: int) -> Task:
    """1: up to 29 minus one digit. 2: to 99. 3: three digits minus two. 4: three digits. 5: two subtractions."""
    if level == 1:
        x = draw.number(1, 29)
        y = draw.number(0, min(9, x))
    elif level == 2:
        x = draw.number(10, 99)
        y = draw.number(1, x)
    elif level == 3:
        x, y = draw.number(100, 999), draw.number(10, 99)
    elif level == 4:
        x = draw.number(200, 999)
        y = draw.number(100, x)
    else:
        a, b = draw.number(50, 99), draw.number(10, 30)
        c = draw.number(1, a - b - 1)
        why = f"{a} - {b} = {a - b}, {a - b} - {c} = {a - b - c}" + ("。" if draw.ja else ".")
        return _chain(draw, "difference", 5, f"{a} - {b} - {c}", a - b - c, why, ((a, b), (a - b, c)))
    return _binary(
        draw,
        "difference",
        level,
        x,
        y,
        x - y,
        DIFFERENCE,
        DIFFERENCE_REPLY,
        subtract_by_digits(x, y, draw.ja),
    )


def products(draw: Draw, level: int) -> Task:
    """3: the tables, and up to 20 times one digit. 4: two digits times one. 5: a product plus a number."""
    end = "。" if draw.ja else "."
    if level <= 3:
        x, y = draw.number(1, 12) if draw.chance(0.6) else draw.number(10, 20), draw.number(1, 9)
        why = f"{x} x {y} = {x * y}{end}"
        if x >= 10 and y > 1:
            why = f"10 x {y} = {10 * y}, {x - 10} x {y} = {(x - 10) * y}, {10 * y} + {(x - 10) * y} = {x * y}{end}"
    elif level == 4:
        x, y = draw.number(11, 29), draw.number(2, 9)
        tens, ones = x // 10 * 10, x % 10
        why = f"{tens} x {y} = {tens * y}, {ones} x {y} = {ones * y}, {tens * y} + {ones * y} = {x * y}{end}"
    else:
        a, b, c = draw.number(2, 12), draw.number(2, 9), draw.number(1, 20)
        why = f"{a} x {b} = {a * b}, {a * b} + {c} = {a * b + c}{end}"
        return _chain(draw, "product", 5, f"{a} x {b} + {c}", a * b + c, why, ((a, b), (a * b, c)))
    used = ((x, y),)
    if level == 4 or x >= 10:
        tens = 10 if level <= 3 else x // 10 * 10
        used = ((x, y), (tens, y), (x - tens, y), (tens * y, (x - tens) * y))  # type: ignore[assignment]
    task = _binary(draw, "product", max(level, 3), x, y, x * y, PRODUCT, PRODUCT_REPLY, why)
    return replace(task, pairs=used)


LARGER = {
    "en": (
        "Which is larger, {x} or {y}?", "Which number is bigger: {x} or {y}?", "Is {x} or {y} the larger number?",
        "What is the larger of {x} and {y}?", "Tell me the bigger number: {x} or {y}.", "{x} or {y}: which is more?",
        "Between {x} and {y}, which is greater?", "Which one is greater, {x} or {y}?",
    ),
    "ja": (
        "{x}と{y}では、どちらが大きいですか？", "{x}と{y}、どちらが大きいですか？", "{x}と{y}のうち、大きいほうはどちらですか？",
        "大きい数はどちらですか？ {x}、{y}", "{x}と{y}を比べると、どちらが大きいですか？", "どちらが大きい数ですか：{x}、{y}",
        "{x}と{y}、大きいのはどっち？", "{x}と{y}の大きいほうを教えてください。",
    ),
}  # fmt: skip
SMALLER = {
    "en": (
        "Which is smaller, {x} or {y}?", "Which number is smaller: {x} or {y}?", "Is {x} or {y} the smaller number?",
        "What is the smaller of {x} and {y}?", "Tell me the smaller number: {x} or {y}.", "{x} or {y}: which is less?",
        "Between {x} and {y}, which is smaller?", "Which one is less, {x} or {y}?",
    ),
    "ja": (
        "{x}と{y}では、どちらが小さいですか？", "{x}と{y}、どちらが小さいですか？", "{x}と{y}のうち、小さいほうはどちらですか？",
        "小さい数はどちらですか？ {x}、{y}", "{x}と{y}を比べると、どちらが小さいですか？", "どちらが小さい数ですか：{x}、{y}",
        "{x}と{y}、小さいのはどっち？", "{x}と{y}の小さいほうを教えてください。",
    ),
}  # fmt: skip
LARGER_REPLY = {
    "en": ("{z} is larger.", "The larger number is {z}.", "{z} is bigger than {w}.", "It is {z}."),
    "ja": ("{z}のほうが大きいです。", "大きいのは{z}です。", "{z}です。", "{z}は{w}より大きいです。"),
}
SMALLER_REPLY = {
    "en": ("{z} is smaller.", "The smaller number is {z}.", "{z} is less than {w}.", "It is {z}."),
    "ja": ("{z}のほうが小さいです。", "小さいのは{z}です。", "{z}です。", "{z}は{w}より小さいです。"),
}
EXTREME = {
    True: {
        "en": ("Which is the largest: {l}?", "What is the biggest of these numbers: {l}?", "Find the largest number: {l}.", "{l}: which is the largest?"),
        "ja": ("{l}の中で、一番大きい数はどれですか？", "一番大きい数はどれですか？ {l}", "{l}のうち、最も大きい数を教えてください。", "{l}で一番大きいのは？"),
    },
    False: {
        "en": ("Which is the smallest: {l}?", "What is the smallest of these numbers: {l}?", "Find the smallest number: {l}.", "{l}: which is the smallest?"),
        "ja": ("{l}の中で、一番小さい数はどれですか？", "一番小さい数はどれですか？ {l}", "{l}のうち、最も小さい数を教えてください。", "{l}で一番小さいのは？"),
    },
}  # fmt: skip
EXTREME_REPLY = {
    True: {
        "en": ("The largest is {z}.", "{z} is the largest.", "It is {z}."),
        "ja": ("一番大きいのは{z}です。", "{z}です。", "{z}が一番大きいです。"),
    },
    False: {
        "en": ("The smallest is {z}.", "{z} is the smallest.", "It is {z}."),
        "ja": ("一番小さいのは{z}です。", "{z}です。", "{z}が一番小さいです。"),
    },
}
SORT = {
    "en": (
        "Sort these numbers from small to large: {l}.", "Put these numbers in order: {l}.", "Order {l} from the smallest to the largest.",
        "Please sort {l}.", "Write {l} in order, smallest first.", "Arrange these from low to high: {l}.",
        "What is the right order of {l}, small to large?", "Can you sort {l}?",
    ),
    "ja": (
        "次の数を小さい順に並べてください：{l}", "{l}を小さい順に並べてください。", "小さいほうから順に書いてください：{l}", "{l}を小さい順にすると？",
        "{l}を順番に並べてください。", "次の数を順番にしてください：{l}", "{l}を小さい数から並べるとどうなりますか？", "小さい順にお願いします：{l}",
    ),
}  # fmt: skip
SORT_REPLY = {
    "en": ("In order: {z}.", "Sorted: {z}.", "The order is {z}."),
    "ja": ("小さい順に、{z}です。", "順番は{z}です。", "{z}です。"),
}


def comparisons(draw: Draw, level: int) -> Task:
    """1: two numbers to 30. 2: to 99. 3: the largest of three to 99. 4: sort three or four. 5: sort five to 999."""
    join = "、" if draw.ja else ", "
    if level <= 2:
        top = 30 if level == 1 else 99
        x = draw.number(0, top)
        y = draw.number(0, top - 1)
        y += y >= x
        larger = draw.chance(0.6)
        z, w = (max(x, y), min(x, y)) if larger else (min(x, y), max(x, y))
        if x // 10 == y // 10:
            why = (f"十の位は同じです。一の位を比べると、{z % 10}と{w % 10}。" if draw.ja else f"The tens are the same. I compare the ones: {z % 10} and {w % 10}.") if x >= 10 else (
                f"{z}と{w}を比べます。" if draw.ja else f"I compare {z} and {w}.")  # fmt: skip
        else:
            why = (
                f"十の位を比べると、{z // 10}と{w // 10}。"
                if draw.ja
                else f"I compare the tens: {z // 10} and {w // 10}."
            )
        question = draw.say(LARGER if larger else SMALLER, x=x, y=y)
        reply = draw.say(LARGER_REPLY if larger else SMALLER_REPLY, z=z, w=w)
        return Task(
            "compare", level, draw.language, question, str(z), reply, why, "word",
            f"compare:{'larger' if larger else 'smaller'}:{x},{y}", options=(str(x), str(y)), pairs=((x, y),),
        )  # fmt: skip
    count = {3: 3, 4: draw.number(3, 4), 5: 5}[level]
    numbers = draw.some(range(1, 100 if level < 5 else 1000), count)
    listed = join.join(map(str, numbers))
    pairs = tuple((a, b) for i, a in enumerate(numbers) for b in numbers[:i])
    ordered = join.join(map(str, sorted(numbers)))
    if level == 3:
        larger = draw.chance(0.5)
        z = max(numbers) if larger else min(numbers)
        why = f"小さい順に並べると、{ordered}。" if draw.ja else f"In order they are {ordered}."
        return Task(
            "compare", 3, draw.language, draw.say(EXTREME[larger], l=listed), str(z), draw.say(EXTREME_REPLY[larger], z=z), why,
            "word", f"compare:{larger}:{listed}", options=tuple(map(str, numbers)), pairs=pairs,
        )  # fmt: skip
    smallest = min(numbers)
    why = (
        f"一番小さいのは{smallest}、一番大きいのは{max(numbers)}。"
        if draw.ja
        else f"The smallest is {smallest} and the largest is {max(numbers)}."
    )
    return Task(
        "compare", level, draw.language, draw.say(SORT, l=listed), ordered, draw.say(SORT_REPLY, z=ordered), why, "numbers",
        f"sort:{','.join(map(str, numbers))}", pairs=pairs,
    )  # fmt: skip


COUNT_SAME = {
    "en": (
        "How many {p} are there: {l}?", "Count the {p}: {l}.", "{l}. How many {p} is that?", "How many {p} do you see? {l}",
        "I have these {p}: {l}. How many are there?", "Please count: {l}.", "Tell me the number of {p}: {l}.", "Here are some {p}: {l}. How many?",
    ),
    "ja": (
        "{p}は{q}ありますか？ {l}", "{p}を数えてください：{l}", "{l}。{p}は{q}ですか？", "次の中に{p}は{q}ありますか？ {l}",
        "{l}。{p}の数を教えてください。", "数えてください：{l}", "{p}の数はいくつですか？ {l}", "{l}。全部で{q}？",
    ),
}  # fmt: skip
COUNT_MIXED = {
    "en": (
        "How many {p} are in this list: {l}?", "Count the {p} in: {l}.", "{l}. How many of these are {p}?", "How many {p} do you see? {l}",
        "Look at this list: {l}. How many {p} are there?", "Please count only the {p}: {l}.", "Tell me how many {p} there are: {l}.", "In {l}, how many {p} are there?",
    ),
    "ja": (
        "次の中に{p}は{q}ありますか？ {l}", "{p}だけを数えてください：{l}", "{l}。この中に{p}は{q}ありますか？", "{l}の中の{p}の数はいくつですか？",
        "次のリストを見てください：{l}。{p}は{q}ですか？", "{p}は{q}ありますか？ {l}", "{l}。{p}の数を教えてください。", "{l}の中に{p}は{q}？",
    ),
}  # fmt: skip
COUNT_REPLY = {
    "en": ("There are {c}.", "I count {c}.", "{c}.", "The answer is {c}."),
    "ja": ("{n}あります。", "{n}です。", "全部で{n}です。", "数えると{n}です。"),
}


def counting(draw: Draw, level: int) -> Task:
    """1: up to 5 of one kind. 2: up to 9. 3: two kinds. 4: three kinds. 5: three kinds, up to 14 things."""
    kinds = draw.some([t for t in COUNTABLE if t.en != "sheep"], 3)
    target = kinds[0]
    if level <= 2:
        number = draw.number(1, 5) if level == 1 else draw.number(4, 9)
        listed = [target] * number
        ask = COUNT_SAME
    else:
        number = draw.number(1, {3: 4, 4: 5, 5: 7}[level])
        others = draw.number(1, {3: 3, 4: 5, 5: 7}[level])
        listed = [target] * number + [kinds[1 if level == 3 else draw.number(1, 2)] for _ in range(others)]
        draw.rng.shuffle(listed)
        ask = COUNT_MIXED
    animal = target.counter in ("匹", "羽", "頭")
    names = [t.ja if draw.ja else t.en for t in listed]
    text = ("、" if draw.ja else ", ").join(names)
    question = draw.say(ask, p=target.ja if draw.ja else target.plural, q=f"何{target.counter}", l=text)
    reply = draw.say(
        COUNT_REPLY,
        c=f"{number} {target.en if number == 1 else target.plural}",
        n=f"{number}{target.counter}",
    )
    if animal and draw.ja:
        question, reply = question.replace("あります", "います"), reply.replace("あります", "います")
    if number == 1 and not draw.ja:
        reply = reply.replace("There are", "There is")
    marks, seen = [], 0
    for thing, name in zip(listed, names, strict=True):
        if thing is target:
            seen += 1
            marks.append(f"{name} {seen}")
    why = ("、" if draw.ja else ", ").join(marks) + ("。" if draw.ja else ".")
    order = "".join("x" if t is target else "o" for t in listed)
    return Task(
        "count",
        level,
        draw.language,
        question,
        str(number),
        reply,
        why,
        "number",
        f"count:{target.key}:{order}:{kinds[1].key if level > 2 else ''}",
    )


AFTER = {
    "en": ("What number comes after {x}?", "What comes right after {x}?", "Which number is next after {x}?", "{x}, and then?", "Tell me the number after {x}.", "What is the next number after {x}?", "Counting up, what follows {x}?", "what is after {x}?"),
    "ja": ("{x}の次の数は何ですか？", "{x}の次はいくつですか？", "{x}の次の数を教えてください。", "{x}の次は？", "数えると、{x}の次は何ですか？", "{x}の一つ後の数は何ですか？", "{x}より1大きい数は何ですか？", "{x}の後に来る数は何ですか？"),
}  # fmt: skip
BEFORE = {
    "en": ("What number comes before {x}?", "What comes right before {x}?", "Which number is just before {x}?", "Tell me the number before {x}.", "What is the number before {x}?", "Counting down, what follows {x}?", "Which number is one less than {x}?", "what is before {x}?"),
    "ja": ("{x}の前の数は何ですか？", "{x}の前はいくつですか？", "{x}の前の数を教えてください。", "{x}の前は？", "{x}の一つ前の数は何ですか？", "{x}より1小さい数は何ですか？", "{x}のすぐ前の数はいくつですか？", "{x}の前に来る数は何ですか？"),
}  # fmt: skip
AFTER_REPLY = {
    "en": ("After {x} comes {z}.", "The next number is {z}.", "It is {z}.", "{z}."),
    "ja": ("{x}の次は{z}です。", "次の数は{z}です。", "{z}です。"),
}
BEFORE_REPLY = {
    "en": ("Before {x} comes {z}.", "The number before {x} is {z}.", "It is {z}.", "{z}."),
    "ja": ("{x}の前は{z}です。", "前の数は{z}です。", "{z}です。"),
}
PATTERN = {
    "en": ("What comes next: {l}?", "Continue: {l}, ...", "What is the next number: {l}?", "{l}. What is next?", "Find the next number in {l}.", "Which number follows: {l}?", "{l}, and then?", "Go on: {l}."),
    "ja": ("次の数は何ですか？ {l}", "続きの数は何ですか？ {l}", "{l}、次は？", "{l}の次に来る数は何ですか？", "{l}。次の数を教えてください。", "続けてください：{l}", "{l}、その次の数はいくつですか？", "並んだ数の次は何ですか？ {l}"),
}  # fmt: skip
COUNT_TO = {
    "en": ("Count from {x} to {y}.", "Please count from {x} to {y}.", "Can you count from {x} to {y}?", "List the numbers from {x} to {y}.", "Say the numbers from {x} to {y}.", "Write all numbers from {x} to {y}.", "Start at {x} and count to {y}.", "count from {x} to {y} please"),
    "ja": ("{x}から{y}まで数えてください。", "{x}から{y}までの数を書いてください。", "{x}から{y}まで数えて。", "{x}から{y}まで順番に言ってください。", "{x}から始めて{y}まで数えてください。", "{x}から{y}までの数を並べてください。", "{x}から{y}まで数えられますか？", "{x}から{y}までの数を教えてください。"),
}  # fmt: skip


def sequences(draw: Draw, level: int) -> Task:
    """1: the number after or before one to 50. 2: to 99, or count up. 3: steps of 2, 3, 5, 10. 4: count on far. 5: count down."""
    join, end = ("、", "。") if draw.ja else (", ", ".")
    if level == 1 or (level == 2 and draw.chance(0.6)):
        x = draw.number(1, 49) if level == 1 else draw.number(10, 98)
        up = draw.chance(0.6)
        z = x + 1 if up else x - 1
        why = f"{x} {'+' if up else '-'} 1 = {z}{end}"
        ask, say = (AFTER, AFTER_REPLY) if up else (BEFORE, BEFORE_REPLY)
        return Task("sequence", level, draw.language, draw.say(ask, x=x), str(z), draw.say(say, x=x, z=z), why, "number", f"sequence:{'after' if up else 'before'}:{x}", pairs=((x, 1),))  # fmt: skip
    if level == 3:
        step = draw.pick((2, 3, 5, 10))
        start = draw.number(0, 20) if step != 10 else draw.number(0, 50)
        numbers = [start + step * i for i in range(draw.number(3, 4))]
        z = numbers[-1] + step
        why = (
            f"{step}ずつ増えています。{numbers[-1]} + {step} = {z}。"
            if draw.ja
            else f"The step is {step}. {numbers[-1]} + {step} = {z}."
        )
        reply = draw.say(
            {
                "en": ("The next number is {z}.", "{z}.", "It is {z}."),
                "ja": ("次の数は{z}です。", "{z}です。"),
            },
            z=z,
        )
        return Task("sequence", 3, draw.language, draw.say(PATTERN, l=join.join(map(str, numbers))), str(z), reply, why, "number", f"sequence:{start}+{step}*{len(numbers)}", pairs=((numbers[-1], step),))  # fmt: skip
    length = {2: draw.number(3, 5), 4: draw.number(6, 10), 5: draw.number(6, 10)}[level]
    x = draw.number(1, 30) if level == 2 else draw.number(length, 90)
    y = x + length - 1 if level < 5 else x - length + 1
    numbers = list(range(x, y + 1)) if y > x else list(range(x, y - 1, -1))
    text = join.join(map(str, numbers))
    why = (f"{x}から1ずつ{'増やします' if y > x else '減らします'}。" if draw.ja else f"I start at {x} and go {'up' if y > x else 'down'} by 1.")  # fmt: skip
    return Task("sequence", level, draw.language, draw.say(COUNT_TO, x=x, y=y), text, text + ("です。" if draw.ja else "."), why, "numbers", f"sequence:{x}..{y}")  # fmt: skip


PROBLEM_FIRST = {
    "en": (
        "{n} has {x} {p}.",
        "There are {x} {p} on {n}'s table.",
        "{n} gets {x} {p}.",
        "In the morning, {n} has {x} {p}.",
    ),
    "ja": (
        "{n}は{p}を{x}持っています。",
        "{n}の机の上に{p}が{x}あります。",
        "{n}は{p}を{x}もらいました。",
        "朝、{n}は{p}を{x}持っていました。",
    ),
}
PROBLEM_MORE = {
    "en": (
        "{f} gives {him} {y} more.",
        "Then {he} finds {y} more.",
        "{He} gets {y} more from {f}.",
        "Later, {he} buys {y} more.",
    ),
    "ja": (
        "{f}が{y}くれました。",
        "その後、{y}見つけました。",
        "{f}からもう{y}もらいました。",
        "後で、{y}買いました。",
    ),
}
PROBLEM_LESS = {
    "en": (
        "{He} gives {y} to {f}.",
        "Then {he} loses {y}.",
        "{He} gives {f} {y} of them.",
        "Later, {he} sells {y}.",
    ),
    "ja": (
        "{f}に{y}あげました。",
        "その後、{y}なくしました。",
        "そのうち{y}を{f}にあげました。",
        "後で、{y}売りました。",
    ),
}
PROBLEM_ASK = {
    "en": ("How many {p} does {n} have now?", "How many {p} are there now?", "How many {p} does {he} have in the end?", "How many is that now?", "What is the number of {p} now?", "How many {p} does {n} have in total?", "Now {n} has how many {p}?", "So how many {p} does {n} have?"),
    "ja": ("今、{p}は{q}ありますか？", "{n}は今、{p}を{q}持っていますか？", "{p}は全部で{q}になりましたか？", "{p}は今{q}ですか？", "最後に{p}は{q}ありますか？", "{n}の{p}は{q}ですか？", "今の{p}の数はいくつですか？", "{n}は{p}を{q}持っていますか？"),
}  # fmt: skip
PROBLEM_REPLY = {
    "en": ("{n} has {z} now.", "Now there are {z}.", "{He} has {z}.", "The answer is {z}."),
    "ja": ("{z}です。", "今、{z}あります。", "{n}は{z}持っています。", "答えは{z}です。"),
}


def problems(draw: Draw, level: int) -> Task:
    """1: up to 9. 2: up to 20, one change. 3: two changes. 4: up to 99. 5: two changes up to 99."""
    hero, friend = draw.people(2)
    thing = draw.pick([t for t in COUNTABLE if t.counter in ("個", "枚", "本", "冊")])
    top = {1: 9, 2: 20, 3: 20, 4: 90, 5: 90}[level]
    total = draw.number(2 if level == 1 else top // 4, top)
    pairs, steps = [], []
    fields = {
        "n": hero.name,
        "f": friend.name,
        "p": thing.ja if draw.ja else thing.plural,
        "q": f"何{thing.counter}",
        **hero.fields(),
    }
    start = f"{total}{thing.counter}" if draw.ja else total
    lines = [draw.say(PROBLEM_FIRST, x=start, **fields)]
    identity = [thing.key, total]
    for i in range(2 if level in (3, 5) else 1):
        more = draw.chance(0.5) or total < 3
        y = (
            draw.number(2, 9 if level < 4 else 30)
            if more
            else draw.number(2, min(total - 1, 9 if level < 4 else 60))
        )
        after = total + y if more else total - y
        line = draw.say(
            PROBLEM_MORE if more else PROBLEM_LESS, y=f"{y}{thing.counter}" if draw.ja else y, **fields
        )
        if i and not draw.ja and line.startswith("Then"):
            line = "After that" + line[4:].replace(" he", ", he").replace(" she", ", she")
        lines.append(line)
        steps.append(f"{total} {'+' if more else '-'} {y} = {after}")
        pairs.append((total, y))
        identity.append(y if more else -y)
        total = after
    question = ("" if draw.ja else " ").join([*lines, draw.say(PROBLEM_ASK, **fields)])
    z = f"{total}{thing.counter}" if draw.ja else f"{total} {thing.en if total == 1 else thing.plural}"
    reply = draw.say(PROBLEM_REPLY, z=z, **fields)
    if total == 1:
        reply = reply.replace("there are", "there is")
    why = ("、" if draw.ja else ", ").join(steps) + ("。" if draw.ja else ".")
    return Task(
        "problem", level, draw.language, question, str(total), reply, why, "number",
        f"problem:{hero.name}:{identity}", names=(hero.name, friend.name), pairs=tuple(pairs),
    )  # fmt: skip
