"""The model card: what a model can and cannot do, by measurement, with transcripts that nobody chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shoal.data.microworld.generate import VERSION, stream
from shoal.data.microworld.world import Language
from shoal.data.types import Conversation, Message
from shoal.eval.askers import Asker, Prompt
from shoal.eval.scores import Score, markdown, table

TRANSCRIPTS = 20
TRANSCRIPT_SEED = 2026
TRANSCRIPT_TOKENS = 300
LANGUAGE_NAMES = {"en": "English", "ja": "Japanese"}


def transcripts(
    asker: Asker, language: Language, count: int | None = None, seed: int = TRANSCRIPT_SEED
) -> list[list[Message]]:
    """The first `count` (20) held-out chats of `seed`: their user's turns, and what the model answers to each, greedy.

    The seed fixes the prompts before any model exists, so nothing is selected. A chat that was written in thinking
    mode is asked so if the model can think.
    """
    count = TRANSCRIPTS if count is None else count
    chats: list[Conversation] = []
    for _, chat in zip(range(count), stream(seed, "test", language, "chat"), strict=False):
        chats.append(chat)
    spoken: list[list[Message]] = [[m for m in chat.messages[:1] if m.role == "system"] for chat in chats]
    turns = [[m for m in chat.messages if m.role == "user"] for chat in chats]
    for number in range(max(map(len, turns))):
        active = [i for i in range(count) if number < len(turns[i])]
        for i in active:
            spoken[i].append(turns[i][number])
        prompts = []
        for i in active:
            last = number == len(turns[i]) - 1
            thinking = bool(asker.thinks and last and chats[i].meta.get("thinking"))
            prompts.append(Prompt(tuple(spoken[i]), thinking, TRANSCRIPT_TOKENS))
        for i, answer in zip(active, asker.ask(prompts), strict=True):
            spoken[i].append(Message("assistant", answer.content, reasoning_content=answer.reasoning or None))
    return spoken


def _shown(spoken: Sequence[Message]) -> str:
    """One transcript as a fenced block: its text cannot become markup of the page."""
    lines = []
    for message in spoken:
        if message.reasoning_content:
            lines.append(f"({message.reasoning_content.strip()})")
        lines.append(f"{message.role}: {message.content}")
    text = "\n".join(lines)
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


def _scores(result: Mapping[str, Any], key: str) -> list[Score]:
    fields = ("family", "level", "language", "thinking", "count", "distinct", "correct")
    return [Score(**{name: row[name] for name in fields}) for row in result[key]]


def _verdict(result: Mapping[str, Any]) -> list[str]:
    """What it does well and what it does not, from the intervals."""
    pooled: dict[tuple[str, str, str], tuple[int, int, int]] = {}
    for score in _scores(result, "scores"):
        key = (score.family, "1-2" if int(score.level) <= 2 else "3-5", score.thinking)
        count, distinct, correct = pooled.get(key, (0, 0, 0))
        pooled[key] = (count + score.count, distinct + score.distinct, correct + score.correct)
    rated = [Score(f, lv, "", t, *numbers) for (f, lv, t), numbers in pooled.items()]
    lines = []
    for thinking in dict.fromkeys(s.thinking for s in rated):
        mine = [s for s in rated if s.thinking == thinking]
        good = [f"{s.family} (level {s.level})" for s in mine if s.accuracy >= 0.9]
        bad = [f"{s.family} (level {s.level}, {s.accuracy:.0%})" for s in mine if s.accuracy < 0.7]
        lines.append(f"- Thinking {thinking}, at least 90% right: {', '.join(good) or 'nothing'}.")
        lines.append(f"- Thinking {thinking}, under 70% right: {', '.join(bad) or 'nothing'}.")
    return lines


def _receipt(receipt: Mapping[str, Any] | None) -> list[str]:
    rows = [["run", "tokens", "seconds", "device", "energy (kJ)", "USD", "basis"]]
    while receipt:
        joules, usd = receipt.get("joules"), receipt.get("usd")
        rows.append(
            [
                str(receipt.get("kind", "")),
                f"{receipt.get('tokens', 0):,}",
                f"{receipt.get('seconds', 0):,.0f}",
                str(receipt.get("device", "")),
                "unknown" if joules is None else f"{joules / 1000:,.0f} ({receipt.get('energy_source', '')})",
                "unknown" if usd is None else f"{usd:.4f}",
                f"{receipt.get('price_basis', '')} {receipt.get('price_date', '')}".strip(),
            ]
        )
        receipt = receipt.get("parent")
    return ["## What it cost", "", markdown(rows), ""] if len(rows) > 1 else []


def _measured(receipt: Mapping[str, Any] | None) -> list[str]:
    """What training itself measured on held-out text, the last run first."""
    rows = [["after", "held-out bits per byte", "drafts accepted (MTP)"]]
    while receipt:
        details = receipt.get("details") or {}
        bits, accepted = details.get("bits_per_byte"), details.get("acceptance")
        if bits is not None or accepted is not None:
            drafts = "" if accepted is None else f"{accepted:.1%} of {details.get('drafted', 0):,}"
            rows.append([str(receipt.get("kind", "")), "" if bits is None else f"{bits:.3f}", drafts])
        receipt = receipt.get("parent")
    return ["## Measured while it was trained", "", markdown(rows), ""] if len(rows) > 1 else []


def card(
    name: str,
    facts: Sequence[str],
    result: Mapping[str, Any],
    spoken: Mapping[str, Sequence[Sequence[Message]]],
    receipt: Mapping[str, Any] | None = None,
) -> str:
    """The card as Markdown. `facts` are lines about the model, `result` is from `tasks.evaluate` (with
    "bits_per_byte" if measured), `spoken` holds the transcripts per language."""
    seed, split = result["seed"], result["split"]
    lines = [f"# {name}", "", *(f"- {fact}" for fact in facts), ""]
    lines += ["## What it can do, and what not", "", *_verdict(result)]
    lines += [
        "- It knows the microworld only: names, numbers, days, words, short stories. It knows nothing of the real",
        "  world, and it can be wrong in all it says.",
        "",
        "## Accuracy on held-out questions",
        "",
        f"Microworld version {result['microworld']}, split `{split}`, seed {seed}, greedy. In brackets: the 95% Wilson",
        "interval and the number of questions. Held out are canonical questions, people's names and number pairs that",
        "training never saw (docs/microworld.md).",
        "",
        markdown(table(_scores(result, "summary"))),
        "",
        markdown(table(_scores(result, "scores"))),
        "",
    ]
    if bits := result.get("bits_per_byte"):
        rows = [["language", "bits per byte"], *([LANGUAGE_NAMES[k], f"{v:.3f}"] for k, v in bits.items())]
        lines += ["## Bits per byte of held-out text", "", markdown(rows), ""]
    lines += _measured(receipt)
    lines += _receipt(receipt)
    lines += [
        "## Transcripts",
        "",
        f"The first {TRANSCRIPTS} held-out chats per language of seed {TRANSCRIPT_SEED}, unselected, greedy. Reasoning",
        "stands in brackets.",
        "",
    ]
    for language, chats in spoken.items():
        lines += [f"### {LANGUAGE_NAMES[language]}", ""]
        for number, chat in enumerate(chats, 1):
            lines += [f"{number}.", "", _shown(chat), ""]
    lines += [f"Made by `shoal eval --card` with microworld version {VERSION}.", ""]
    return "\n".join(lines)
