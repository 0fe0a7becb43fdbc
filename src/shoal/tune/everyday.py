"""Rows that keep a model what it was: everyday questions with the answers that it gives today, behind a short thought.

Self-distillation at the level of sequences. The answers come from the engine, sampled as the model's makers advise;
one that did not end by itself is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from shoal.data.everyday import first
from shoal.engine.chat import stream_chat
from shoal.engine.open import OpenedModel

LONGEST = 160


def rows(
    opened: OpenedModel, count: int, *, native: bool, progress: Callable[[int, int], None] | None = None
) -> list[dict[str, Any]]:
    """Up to `count` rows of messages. native: the model has a place for a thought; else it stands in the text."""
    asked = first("train", count)
    found: list[dict[str, Any]] = []
    batch = 4 * opened.engine.max_num_seqs
    for begin in range(0, len(asked), batch):
        some = asked[begin : begin + batch]
        streams = [
            stream_chat(
                opened,
                [{"role": "user", "content": prompt}],
                replace(opened.defaults, max_tokens=LONGEST, seed=begin + number),
            )
            for number, (prompt, _) in enumerate(some)
        ]
        for (prompt, thought), stream in zip(some, streams, strict=True):
            events = list(stream)
            answer = "".join(event.text for event in events if event.kind == "content").strip()
            end = events[-1].finished
            if not answer or end is None or end.reason != "stop":
                continue
            said = (
                {"reasoning_content": thought, "content": answer}
                if native
                else {"content": f"<think>\n{thought}\n</think>\n{answer}"}
            )
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", **said}]
            found.append({"messages": messages})
        if progress:
            progress(min(begin + batch, len(asked)), len(asked))
    return found
