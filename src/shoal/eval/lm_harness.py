"""An opened model as an LM of EleutherAI's lm-evaluation-harness (the extra `eval`): its tasks through our engine.

    shoal eval MODEL lm:TASK
    python -m shoal.eval.lm_harness run --model shoal --model_args pretrained=MODEL --tasks TASK

The second is lm-eval's own command with the name `shoal` added to its models. Tokens, truncation and windows are
those of its `hf` model, so that figures can be compared; a test holds log-likelihoods within 1e-4 of that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from shoal.data.types import Message
from shoal.engine.handle import Handle
from shoal.engine.open import OpenedModel, open_model
from shoal.engine.types import Delta, Finished, Request, SamplingParams
from shoal.errors import ShoalError
from shoal.eval.logprobs import AHEAD, score

MAX_GEN_TOKS = 256  # where a task says nothing; lm-eval's own


@register_model("shoal")
class ShoalLM(TemplateLM):
    """`pretrained` is a MODEL as in `shoal eval`, or an opened model, which stays the caller's to close.

    runner, quant, dtype, context: as in `open_model`. The engine batches by itself: batch sizes are not looked at.
    """

    def __init__(
        self,
        pretrained: str | OpenedModel,
        *,
        runner: str = "auto",
        quant: str | int | None = None,
        dtype: str | None = None,
        context: int | None = None,
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        if isinstance(pretrained, OpenedModel):
            self.opened = pretrained
        else:
            bits = None if quant is None else str(quant)
            self.opened = open_model(
                pretrained, runner=runner, quant=bits, dtype=dtype, context=context, device=device or "cpu",
                max_num_seqs=16,
            )  # fmt: skip
        tokenizer = self.opened.tokenizer
        self._eos = next(iter(tokenizer.eos_ids), None)
        self._prefix = tokenizer.bos_id if tokenizer.bos_id is not None else self._eos
        self.max_length = self.opened.engine.max_model_len - 1
        """Tokens before the last one that is scored."""

    # ---- tokens

    @property
    def eot_token_id(self) -> int:
        if self._eos is None:
            raise ShoalError(f"{self.opened.name} has no token that ends a text")
        return self._eos

    @property
    def prefix_token_id(self) -> int:
        return self.eot_token_id if self._prefix is None else self._prefix

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Marks spelt out in the text are marks, as in other harness models; the mark of beginning comes before it
        where the tokenizer has that habit, once."""
        tokenizer = self.opened.tokenizer
        if add_special_tokens is None or add_special_tokens:
            return tokenizer.encode_prompt(string)
        return tokenizer.encode(string, special=True)

    @property
    def tokenizer_name(self) -> str:
        return self.opened.name

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Kept in lm-eval's results; what is written is `apply_chat_template`'s."""
        return self.opened.side_files.chat_template or self.opened.tokenizer.chat_template or ""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation as text, marks spelt out; without a generation prompt its last answer stays open."""
        messages = [Message(turn["role"], turn["content"]) for turn in chat_history]
        text = self.opened.protocol.spell(messages, add_generation_prompt=add_generation_prompt)
        if add_generation_prompt or messages[-1].role != "assistant":
            return text
        begun = (messages[-1].content or "").strip()
        return text[: text.rindex(begun) + len(begun)] if begun else text

    # ---- what lm-eval asks

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """(log p of the continuation, whether greedy decoding says it), of the last tokens where all is too long."""
        longest = self.max_length + 1
        parts = (([*context, *continuation])[-longest:] for _, context, continuation in requests)
        found = []
        for (key, _context, continuation), scored in zip(
            requests, score(self.opened, parts, likeliest=True), strict=True
        ):
            count = min(len(continuation), len(scored.logprobs))
            start = len(scored.logprobs) - count
            answer = (float(scored.logprobs[start:].sum()), bool(scored.likeliest[start:].all()))
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, answer)
            found.append(answer)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log p of whole texts, in windows that do not overlap."""
        owners: list[int] = []
        windows: list[tuple[None, list[int], list[int]]] = []
        for number, request in enumerate(requests):
            (text,) = request.args
            for pair in get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, max_seq_len=self.max_length, context_len=1
            ):
                owners.append(number)
                windows.append((None, *make_disjoint_window(pair)))
        totals = [0.0] * len(requests)
        for number, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context, up to the first of its `until` texts."""
        asked = [request.args for request in requests]
        found = list(self._texts(self._request(context, dict(wanted)) for context, wanted in asked))
        for arguments, text in zip(asked, found, strict=True):
            self.cache_hook.add_partial("generate_until", arguments, text)
        return found

    def _request(self, context: str, wanted: dict[str, Any]) -> Request:
        kept = normalize_gen_kwargs(wanted, MAX_GEN_TOKS)
        limit = int(kept["max_gen_toks"])
        room = self.max_length - limit
        if room < 1:
            raise ShoalError(
                f"the task wants answers of {limit} tokens, the context holds {self.max_length}",
                hint="lm-eval: --gen_kwargs max_gen_toks=N",
            )
        known = {key: kept[key] for key in ("top_p", "top_k", "min_p", "repetition_penalty") if key in kept}
        params = SamplingParams(
            temperature=float(kept["temperature"] if kept.get("temperature") is not None else 1.0),
            max_tokens=limit,
            stop=tuple(text for text in kept["until"] if text),
            **known,
        )
        return Request(self.tok_encode(context)[-room:], params, adapter=self.opened.adapter)

    def _texts(self, requests: Iterable[Request]) -> Iterator[str]:
        waiting: list[Handle] = []
        try:
            for request in requests:
                waiting.append(self.opened.engine.submit(request))
                if len(waiting) >= AHEAD:
                    yield _text(waiting.pop(0))
            while waiting:
                yield _text(waiting.pop(0))
        finally:
            for handle in waiting:
                handle.cancel()


def _text(handle: Handle) -> str:
    parts = []
    for event in handle:
        if isinstance(event, Delta):
            parts += [piece.text for piece in event.pieces if not piece.special]
        elif isinstance(event, Finished) and event.reason == "error":
            raise ShoalError(f"the engine failed while it answered: {event.error}")
    return "".join(parts)


def evaluate(
    opened: OpenedModel, tasks: Sequence[str], *, limit: int | None = None, chat: bool = False, seed: int = 0
) -> dict[str, Any]:
    """Run lm-eval's tasks, by name or as the YAML file of one of your own; its `results` and what was run, JSON-able.

    limit: questions of each task. chat: through the chat template, examples as turns.
    """
    from lm_eval import __version__, simple_evaluate
    from lm_eval.tasks import TaskManager

    known = [name for name in tasks if not Path(name).is_file()]
    manager = TaskManager(include_defaults=bool(known))  # reading all of lm-eval's takes a while
    for name in known:
        if name not in manager.all_tasks:
            raise ShoalError(
                f"lm-eval has no task {name!r}",
                hint="lm_eval ls tasks shows them; or give a YAML file.",
                exit_code=2,
            )
    found: Any = simple_evaluate(
        model=ShoalLM(opened), tasks=list(tasks), task_manager=manager, limit=limit, apply_chat_template=chat,
        fewshot_as_multiturn=chat, log_samples=False, bootstrap_iters=1000, random_seed=seed,
    )  # fmt: skip
    kept = {key: found[key] for key in ("results", "versions", "n-shot", "n-samples") if key in found}
    return {"lm_eval": __version__, "chat": chat, "limit": limit, **kept}


def table(result: dict[str, Any]) -> list[list[str]]:
    """Rows of cells, the header first: every figure with its standard error."""
    rows = [["task", "version", "questions", "shots", "metric", "value", "standard error"]]
    for task, figures in result["results"].items():
        count = (result.get("n-samples") or {}).get(task, {}).get("effective", "")
        for name, value in figures.items():
            metric, _, kind = name.partition(",")
            if not isinstance(value, int | float) or metric.endswith("_stderr") or not kind:
                continue
            error = figures.get(f"{metric}_stderr,{kind}")
            about = [str(result["versions"].get(task, "")), str(count), str(result["n-shot"].get(task, ""))]
            shown = f"{error:.4f}" if isinstance(error, float) else ""
            label = metric if kind == "none" else f"{metric} ({kind})"
            rows.append([task, *about, label, f"{value:.4f}", shown])
    return rows


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
