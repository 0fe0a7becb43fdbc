"""Distillation: a student learns a teacher's answers, its distribution over given answers, or over the student's own.

answers: the teacher (a local model, or any OpenAI-compatible server) answers the questions of the rows; the student is
fine-tuned on the answers. logits: at every token of the rows' answers the student's distribution is pulled to the
teacher's (forward KL). on_policy: the student answers, and at every token of its own answer its distribution is pulled
to the teacher's (reverse KL, full vocabulary; 2306.13649); nothing flows back through the sampling.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from shoal.data.packing import IGNORED
from shoal.data.sources import documents
from shoal.data.tokenizer import Tokenizer
from shoal.data.types import Conversation, Message
from shoal.errors import ShoalError
from shoal.files import atomic_write_text, read_text
from shoal.model.checkpoint import load
from shoal.model.transformer import CausalLM
from shoal.ops.distill_loss import linear_kl
from shoal.train.loop import Batch, Terms
from shoal.train.objective import NextToken, label_loss, rows_context
from shoal.train.recipe import value_at
from shoal.train.stage import Parts
from shoal.tune import sft
from shoal.tune.data import TunedRows
from shoal.tune.recipe import DistillStage
from shoal.tune.run import TuneRun, base_tokenizer

Answer = Callable[[list[Message]], Message]


def prepare(run: TuneRun, stage: DistillStage) -> None:
    """Check the teacher; for answers ask it everything first, and go on where an earlier run of this folder stopped."""
    if stage.kind == "answers":
        place = run.folder / "teacher.jsonl"
        gather_answers(run, stage, place)
        stage = replace(stage, source=str(place))
        run.use_rows(stage)
        sft.prepare(run, stage)
        run.tuning.distill.tokens = stage.tokens
        return
    path = load.resolve(stage.teacher)
    theirs = base_tokenizer(path, load.read_side_files(path))
    if not _same_tokens(run.tokenizer, theirs):
        raise ShoalError(
            f"the teacher {stage.teacher} has another tokenizer than {run.tuning.model.base}",
            hint='Distributions over different tokens do not compare. Use distill.kind = "answers".',
        )
    if stage.kind == "on_policy" and run.tuning.adapter.kind == "esft":
        raise ShoalError(
            "on_policy samples from the student, which ESFT does not allow", hint="Use lora or none."
        )
    run.extra["teacher"] = path
    if stage.kind == "logits":
        sft.prepare(run, stage)
    else:
        stage.tokens = stage.steps * value_at(stage.tokens_per_step, 0.0)


def _same_tokens(one: Tokenizer, other: Tokenizer) -> bool:
    count = one.vocab_size
    return count == other.vocab_size and all(one.token_bytes(i) == other.token_bytes(i) for i in range(count))


def parts(run: TuneRun, stage: DistillStage) -> Parts:
    """What moves, the divergence, the rows."""
    named = run.trainable()
    if stage.kind == "answers":
        own = sft.tuned_rows(run, stage)
        return Parts(named, NextToken(run.network, stage), own, details=own.details)
    teacher = run.frozen(load.load_network(run.extra["teacher"], device=run.device))
    rows = sft.tuned_rows(run, stage) if stage.kind == "logits" else OnPolicyRows(run, stage)
    details = rows.details if isinstance(rows, TunedRows) else dict

    def flops(record: Any) -> float:
        context = value_at(stage.row_length, record.fraction_before)
        student = run.flops_per_token("distill", context)
        return record.step_tokens * (student + run.forward_flops(context, teacher.config))

    return Parts(named, Divergence(run, stage, teacher), rows, details=details, flops=flops)


def measure(run: TuneRun, stage: DistillStage) -> dict[str, float]:
    """Bits per byte of held-out rows (of the teacher's answers, where those are the rows)."""
    return run.heldout(stage)


class Divergence:
    """KL between teacher and student at every label; `hard` is plain cross-entropy beside it."""

    def __init__(self, run: TuneRun, stage: DistillStage, teacher: CausalLM):
        self.network, self.teacher, self.stage = run.network, teacher, stage
        self.direction: Literal["forward", "reverse"] = "forward" if stage.kind == "logits" else "reverse"
        hard = stage.hard_weight if stage.kind == "logits" else 0.0
        self.weights: Mapping[str, float] = {"main": 1 - hard, **({"hard": hard} if hard else {})}

    def counts(self, batch: Batch) -> dict[str, float]:
        """Labels."""
        return dict.fromkeys(self.weights, float((batch.labels_BL != IGNORED).sum()))

    def terms(self, batch: Batch) -> Terms:
        """Both networks over the same rows."""
        ids_T, labels_T = batch.input_ids_BL.flatten(), batch.labels_BL.flatten()
        kept = (labels_T != IGNORED).nonzero()[:, 0]
        with torch.no_grad():
            theirs = self.teacher(ids_T, rows_context(batch, train=False)).index_select(0, kept)
        hidden_TD = self.network(ids_T, rows_context(batch, train=False))
        own = hidden_TD.index_select(0, kept)
        sizes = self.network.lm_head.weight.shape[0], self.teacher.lm_head.weight.shape[0]
        vocabulary = min(sizes)  # what lies above is padding of the larger head
        kl = linear_kl(
            own,
            self.network.lm_head.weight[:vocabulary],
            theirs,
            self.teacher.lm_head.weight[:vocabulary],
            self.direction,
            self.stage.kl_temperature,
        )
        sums = {"main": kl}
        if "hard" in self.weights:
            sums["hard"] = label_loss(self.network, hidden_TD, batch.labels_BL)
        return Terms(sums)


class OnPolicyRows:
    """The student's own answers to the rows' questions; see `Rows` in train/loop.py."""

    def __init__(self, run: TuneRun, stage: DistillStage):
        from shoal.tune.rollout import Sampler

        self.run, self.stage, self.taken = run, stage, 0
        self.prompts = [_question(e) for e in run.data.train if isinstance(e, Conversation)]
        if not self.prompts:
            raise ShoalError(f"{stage.source} holds no conversations to take questions from")
        ends = {*run.protocol.stop_ids, *run.tokenizer.eos_ids}
        longest, most = value_at(stage.row_length, 1.0), stage.max_completion_length
        self.sampler = Sampler(
            run.sampling_runner(positions=stage.prompts_per_step * (longest + 64)),
            num_generations=1,
            max_completion_length=most,
            temperature=stage.temperature,
            end_ids=ends,
            adapter="policy" if run.adapter is not None else None,
        )
        self.room = longest - most

    def next_step(self, progress: float) -> list[Batch]:
        """One question for each row; all labels are in the answers."""
        if self.run.world.size > 1:
            raise ShoalError("on_policy runs in one process", hint="Start it without torchrun.")
        numbers = range(self.taken, self.taken + self.stage.prompts_per_step)
        self.taken = numbers.stop
        prompts = [self._prompt(number) for number in numbers]
        with self.run.sampling():
            groups = self.sampler.roll_out(
                prompts, [(self.run.tuning.run.seed, number) for number in numbers]
            )
        rows = [(group.prompt_ids, group.completions[0].token_ids) for group in groups]
        length = max(len(asked) + len(said) for asked, said in rows) - 1
        count = max(1, self.stage.micro_batch_tokens // length)
        return [self._batch(rows[i : i + count], length) for i in range(0, len(rows), count)]

    def _prompt(self, number: int) -> list[int]:
        turn, place = divmod(number, len(self.prompts))
        order = list(range(len(self.prompts)))
        random.Random(f"{self.run.tuning.run.seed}/{turn}").shuffle(order)
        ids = self.run.protocol.render(self.prompts[order[place]]).ids
        if len(ids) > self.room:
            raise ShoalError(
                f"a question has {len(ids)} tokens, {self.room} have room beside an answer",
                hint="Raise distill.row_length or lower distill.max_completion_length.",
            )
        return ids

    def _batch(self, rows: list[tuple[list[int], list[int]]], length: int) -> Batch:
        pad = self.run.tokenizer.pad_id or 0
        batch = Batch(
            torch.full((len(rows), length), pad),
            torch.full((len(rows), length), IGNORED),
            torch.full((len(rows), length), -1),
        )
        assert batch.document_ids_BL is not None
        for row, (asked, said) in enumerate(rows):
            ids = torch.tensor([*asked, *said])
            end, start = len(ids) - 1, len(asked) - 1
            batch.input_ids_BL[row, :end] = ids[:-1]
            batch.labels_BL[row, start:end] = ids[len(asked) :]
            batch.document_ids_BL[row, :end] = 0
            batch.tokens += end
        return batch

    def state(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.taken = state["taken"]

    def close(self) -> None: ...


def _question(example: Conversation) -> list[Message]:
    """The turns before the last answer."""
    messages = list(example.messages)
    while messages and messages[-1].role == "assistant":
        messages.pop()
    return messages


# ---- answers of a teacher


def gather_answers(run: TuneRun, stage: DistillStage, place: Path) -> None:
    """A row for every question of the source, with the teacher's answer, into `place`; what is there is kept."""
    questions = [_question(e) for e in documents(stage.source) if isinstance(e, Conversation)]
    questions = [q for q in questions if q]
    if not questions:
        raise ShoalError(f"{stage.source} holds no conversations to take questions from")
    lines = read_text(place).splitlines() if place.is_file() else []
    if len(lines) >= len(questions):
        return
    run.live.say(f"{stage.teacher} answers {len(questions) - len(lines):,} questions into {place}")
    with teacher(stage) as answer:
        try:
            for question in questions[len(lines) :]:
                row = {"messages": [_plain(m) for m in [*question, answer(question)]]}
                lines.append(json.dumps(row, ensure_ascii=False))
                if len(lines) % 20 == 0:
                    atomic_write_text(place, "\n".join(lines) + "\n")
        finally:  # also when it is interrupted: answers cost
            if lines:
                atomic_write_text(place, "\n".join(lines) + "\n")


def _plain(message: Message) -> dict[str, str]:
    keys = ("role", "content", "reasoning_content")
    return {key: value for key in keys if (value := getattr(message, key))}


@contextlib.contextmanager
def teacher(stage: DistillStage) -> Iterator[Answer]:
    """Something that answers: a local model's engine, or a server."""
    if stage.teacher.startswith(("http://", "https://")):
        with _endpoint(stage) as answer:
            yield answer
        return
    from shoal.engine.chat import stream_chat
    from shoal.engine.open import open_model

    with contextlib.closing(open_model(stage.teacher, max_num_seqs=1)) as opened:
        params = replace(
            opened.defaults, temperature=stage.temperature, max_tokens=stage.max_completion_length, seed=1
        )

        def ask(messages: list[Message]) -> Message:
            texts = {"content": "", "reasoning": ""}
            thinking = opened.protocol.thinking == "native"
            with stream_chat(opened, messages, params=params, thinking=thinking) as stream:
                for event in stream:
                    if event.kind in texts:
                        texts[event.kind] += event.text
            return Message("assistant", texts["content"], texts["reasoning"] or None)

        yield ask


@contextlib.contextmanager
def _endpoint(stage: DistillStage) -> Iterator[Answer]:
    import httpx

    base = stage.teacher.rstrip("/").removesuffix("/v1")
    key = os.environ.get("SHOAL_TEACHER_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=base, headers=headers, timeout=600) as client:

        def call(method: str, path: str, **body: Any) -> Any:
            try:
                reply = client.request(method, path, **body)
                reply.raise_for_status()
                return reply.json()
            except (httpx.HTTPError, ValueError) as error:
                told = error.response.text[:300] if isinstance(error, httpx.HTTPStatusError) else str(error)
                raise ShoalError(
                    f"the teacher at {stage.teacher} gave no answer: {told}",
                    hint="What is answered already is kept; --resume goes on. SHOAL_TEACHER_KEY holds its key.",
                ) from error

        name = stage.teacher_model or call("GET", "/v1/models")["data"][0]["id"]

        def ask(messages: list[Message]) -> Message:
            body = {
                "model": name,
                "messages": [_plain(m) for m in messages],
                "temperature": stage.temperature,
                "max_tokens": stage.max_completion_length,
            }
            try:
                said = call("POST", "/v1/chat/completions", json=body)["choices"][0]["message"]
                return Message("assistant", said.get("content") or "", said.get("reasoning_content"))
            except (KeyError, IndexError, TypeError, AttributeError) as error:
                raise ShoalError(f"the teacher at {stage.teacher} answered in no known shape") from error

        yield ask
