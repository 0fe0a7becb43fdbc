"""What drafts bring, request by request: the same questions with and without them, greedy, in turns, one at a time.

    python benchmarks/speculation.py [--model smollm2] [--runner auto] [--speculate auto] [--rounds 5] [--json]

Tasks: "repeat" - a text with one change (what look-up is for), "extract" - quotes from a text, "free" - nothing to
look up, where speculation must do no harm. Medians over the rounds; "gain" is the measured ratio of tokens per second
in decoding, "told" what the answers themselves report (`draft_gain`). "same" says whether both texts are equal, as they
must be wherever the two best logits are not closer than rounding.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
from dataclasses import replace
from typing import Any

from shoal.engine.open import OpenedModel, open_model
from shoal.engine.types import Delta, Finished, Request, SamplingParams
from shoal.ops.probe import device_name

STORY = (
    "The old harbour lies at the end of a long street. Every morning the baker opens her shop, and the smell of bread"
    " drifts over the water. Fishermen mend their nets on the stones, children count the boats, and an old man with a"
    " grey dog tells anyone who listens about the winter when the sea froze. In the evening the lamps are lit one"
    " after another, the last ferry leaves, and it becomes so quiet that one can hear the ropes creak."
)
TASKS = {
    "repeat": f"Repeat this text exactly, but begin with the word Today:\n\n{STORY}",
    "extract": f"Copy the second and the third sentence of this text:\n\n{STORY}",
    "free": "Write a short story about a lighthouse.",
}


def ask(opened: OpenedModel, ids: list[int], params: SamplingParams) -> tuple[str, Finished]:
    events = list(opened.engine.submit(Request(ids, params)))
    end = events[-1]
    assert isinstance(end, Finished) and end.error is None, end
    return "".join(event.text for event in events if isinstance(event, Delta)), end


def rate(end: Finished) -> float:
    return (end.usage.completion_tokens - 1) / end.timings.decode_seconds


def measure(opened: OpenedModel, task: str, rounds: int, tokens: int) -> dict[str, Any]:
    ids = list(opened.protocol.render([{"role": "user", "content": TASKS[task]}]).ids)
    with_drafts = SamplingParams(temperature=0, max_tokens=tokens)
    rates: dict[bool, list[float]] = {False: [], True: []}
    told, texts = [], {}
    ask(opened, ids, replace(with_drafts, speculate=False))  # the prompt is in the cache from here on
    for _ in range(rounds):
        for drafts in (False, True):
            texts[drafts], end = ask(opened, ids, replace(with_drafts, speculate=drafts))
            rates[drafts].append(rate(end))
        told.append(end.timings.draft_gain)
    usage = end.usage
    return {
        "task": task,
        "plain_tokens_per_second": statistics.median(rates[False]),
        "tokens_per_second": statistics.median(rates[True]),
        "gain": statistics.median(b / a for a, b in zip(rates[False], rates[True], strict=True)),
        "told": statistics.median(gain or 1.0 for gain in told),
        "answer_tokens": usage.completion_tokens,
        "acceptance": usage.accepted_tokens / usage.draft_tokens if usage.draft_tokens else None,
        "drafts_per_token": usage.draft_tokens / usage.completion_tokens,
        "same": texts[False] == texts[True],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--runner", default="auto")
    parser.add_argument("--speculate", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=160, help="most tokens of an answer")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with contextlib.closing(
        open_model(
            options.model, runner=options.runner, speculate=options.speculate, context=2048, max_num_seqs=2
        )
    ) as opened:
        rows = [measure(opened, task, options.rounds, options.tokens) for task in TASKS]
        head = {"model": opened.name, "dtype": opened.dtype, "machine": device_name("cpu")}
    if options.json:
        print(json.dumps(head | {"figures": rows}))
        return
    print(f"{head['model']}, {head['dtype']}, {head['machine']}; tokens/s")
    print(f"{'':<10}{'plain':>8}{'drafts':>8}{'gain':>7}{'told':>7}{'accepted':>10}{'tokens':>8}  same")
    for row in rows:
        accepted = "-" if row["acceptance"] is None else f"{row['acceptance']:.0%}"
        print(
            f"{row['task']:<10}{row['plain_tokens_per_second']:>8.1f}{row['tokens_per_second']:>8.1f}"
            f"{row['gain']:>7.2f}{row['told']:>7.2f}{accepted:>10}{row['answer_tokens']:>8}  {row['same']}"
        )


if __name__ == "__main__":
    main()
