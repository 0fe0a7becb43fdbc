"""Direct preference optimisation (2305.18290): of two answers, the chosen one becomes likelier against the rejected,
measured from where the policy began. No reward model, no sampling.

Legend: B rows of L positions, T = B * L, P pairs; answer 2p is pair p's chosen one, 2p + 1 its rejected one.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.data import sources
from shoal.data.chat import ChatProtocol, show_training
from shoal.data.families import NoChatProtocol
from shoal.data.splits import split_of
from shoal.data.tokenizer import Tokenizer
from shoal.data.types import Conversation, Message
from shoal.errors import ShoalError
from shoal.model.transformer import CausalLM
from shoal.ops.logprobs import linear_logprobs
from shoal.train.loop import Batch, Terms
from shoal.train.objective import rows_context
from shoal.train.recipe import value_at
from shoal.train.stage import Parts
from shoal.train.world import World
from shoal.tune.recipe import DpoStage
from shoal.tune.run import TuneRun

SHAPES = (
    '{"prompt": "...", "chosen": "...", "rejected": "..."}',
    '{"messages": [...], "chosen": [{"role": "assistant", "content": "..."}], "rejected": [...]}',
)
"""The accepted shapes of a preference row; each of the three may be a text or a list of messages."""


def dpo_loss(
    chosen_P: Tensor,
    rejected_P: Tensor,
    ref_chosen_P: Tensor,
    ref_rejected_P: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """(loss of each pair [P], its margin beta * (log-ratio chosen - log-ratio rejected) [P]) from summed log p."""
    margin_P = beta * ((chosen_P - ref_chosen_P) - (rejected_P - ref_rejected_P))
    loss_P = -(1 - label_smoothing) * F.logsigmoid(margin_P) - label_smoothing * F.logsigmoid(-margin_P)
    return loss_P, margin_P


@dataclass(frozen=True)
class Pair:
    """Both answers with their question, as ids, and which of them the loss looks at.

    What both begin with - the question, and words in which the answers agree - adds the same to both and is left out.
    """

    chosen: tuple[list[int], list[bool]]
    rejected: tuple[list[int], list[bool]]
    heldout: bool = False

    @property
    def positions(self) -> int:
        return len(self.chosen[0]) + len(self.rejected[0]) - 2


@dataclass
class Pairs:
    """A file's pairs and counts of those that are too long."""

    pairs: list[Pair] = field(default_factory=list)
    cut: int = 0
    dropped: int = 0

    @property
    def train(self) -> list[Pair]:
        return [p for p in self.pairs if not p.heldout] or self.pairs

    @property
    def validation(self) -> list[Pair]:
        return [p for p in self.pairs if p.heldout] if len(self.train) < len(self.pairs) else []

    def sentence(self) -> str:
        """For people."""
        text = f"{len(self.pairs):,} pairs, {len(self.validation):,} of them held out"
        return text + (
            f"; too long: {self.cut:,} cut, {self.dropped:,} dropped" if self.cut or self.dropped else ""
        )


def read_pairs(stage: DpoStage, tokenizer: Tokenizer, protocol: ChatProtocol) -> Pairs:
    """Every pair of the stage's file. Raises ShoalError naming the row that cannot be used."""
    if isinstance(protocol, NoChatProtocol):
        raise ShoalError("this base model has no chat template", hint="Use a chat model as the base.")
    found, length = Pairs(), value_at(stage.row_length, 1.0)
    for where, row in sources.raw_rows(stage.source):
        prompt, answers = _messages(row, where)
        shares = {"validation": stage.validation, "test": 0.0}
        heldout = split_of(Conversation(tuple(prompt)), shares) == "validation"
        try:
            sides = [protocol.render_training([*prompt, *answer]) for answer in answers]
        except ShoalError as error:
            raise ShoalError(f"{where}: {error.message}", hint=error.hint) from error
        ids = [side[0] for side in sides]
        common = next((i for i, (a, b) in enumerate(zip(*ids, strict=False)) if a != b), min(map(len, ids)))
        learnt = [[flag and i >= common for i, flag in enumerate(side[1])] for side in sides]
        if not any(map(any, learnt)):
            raise ShoalError(f"{where}: the chosen and the rejected answer are the same")
        if max(map(len, ids)) - 1 > length:
            kept = [flags[: length + 1] for flags in learnt]
            if stage.too_long == "drop" or not all(map(any, kept)):
                found.dropped += 1
                continue
            found.cut += 1
            ids, learnt = [i[: length + 1] for i in ids], kept
        found.pairs.append(Pair((ids[0], learnt[0]), (ids[1], learnt[1]), heldout))
    if not found.pairs:
        raise ShoalError(
            f"{stage.source} has no pair that fits into {length} tokens", hint="Raise dpo.row_length."
        )
    return found


def _messages(row: Any, where: str) -> tuple[list[Message], list[list[Message]]]:
    """(the question, [chosen, rejected])."""
    hint = "Accepted rows:\n  " + "\n  ".join(SHAPES)
    if not isinstance(row, Mapping) or not {"chosen", "rejected"} <= row.keys():
        raise ShoalError(f"{where}: a preference needs `chosen` and `rejected`", hint=hint)
    asked = row.get("messages", row.get("prompt"))
    if isinstance(asked, str):
        asked = [{"role": "user", "content": asked}]
    sides = []
    for key in ("chosen", "rejected"):
        said = row[key]
        if isinstance(said, str):
            said = [{"role": "assistant", "content": said}]
        if not isinstance(said, list) or not isinstance(asked, list | None):
            raise ShoalError(f"{where}: {key} is neither a text nor a list of messages", hint=hint)
        example = sources.example_of({"messages": [*(asked or []), *said]}, where)
        assert isinstance(example, Conversation)
        if example.messages[-1].role != "assistant":
            raise ShoalError(f"{where}: {key} does not end with an assistant turn", hint=hint)
        sides.append(list(example.messages))
    same = next((i for i, (a, b) in enumerate(zip(*sides, strict=False)) if a != b), min(map(len, sides)) - 1)
    if not same:
        raise ShoalError(f"{where}: there is no question before the two answers", hint=hint)
    return sides[0][:same], [side[same:] for side in sides]


def dry_run(stage: DpoStage, tokenizer: Tokenizer, protocol: ChatProtocol) -> str:
    """Two pairs as they are trained on."""
    found, lines = read_pairs(stage, tokenizer, protocol), []
    for number, pair in enumerate(found.pairs[:2], 1):
        for name in ("chosen", "rejected"):
            lines.append(f"--- pair {number}, {name}: what the loss looks at stands in ⟦ ⟧")
            lines.append(show_training(tokenizer, *getattr(pair, name)))
    return "\n".join([*lines, f"--- {found.sentence()}"])


# ---- rows


@dataclass
class PairBatch(Batch):
    """Rows with `answers_BL`: which answer a label belongs to, -1 where there is no label."""

    answers_BL: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    pairs: int = 0


def pack_pairs(pairs: Sequence[Pair], length: int, pad: int) -> PairBatch:
    """The answers of some pairs in rows of one length, each seeing only itself; a row takes what still fits."""
    rows: list[list[tuple[int, list[int], list[bool]]]] = []
    room: list[int] = []
    sides = [(2 * n + k, *side) for n, p in enumerate(pairs) for k, side in enumerate((p.chosen, p.rejected))]
    for side in sorted(sides, key=lambda s: -len(s[1])):
        needed = len(side[1]) - 1
        place = next((i for i, free in enumerate(room) if free >= needed), None)
        if place is None:
            place = len(rows)
            rows.append([])
            room.append(length)
        rows[place].append(side)
        room[place] -= needed
    shape = (len(rows), length)
    batch = PairBatch(
        torch.full(shape, pad),
        torch.full(shape, -100),
        torch.full(shape, -1),
        torch.zeros(shape, dtype=torch.long),
    )
    batch.answers_BL, batch.pairs = torch.full(shape, -1), len(pairs)
    batch.tokens = sum(p.positions for p in pairs)
    assert batch.document_ids_BL is not None and batch.position_ids_BL is not None
    for row, members in enumerate(rows):
        at = 0
        for number, (answer, ids, learnt) in enumerate(members):
            here = slice(at, at + len(ids) - 1)
            at = here.stop
            tokens, taught = torch.tensor(ids), torch.tensor(learnt[1:])
            batch.input_ids_BL[row, here] = tokens[:-1]
            batch.labels_BL[row, here] = torch.where(taught, tokens[1:], -100)
            batch.answers_BL[row, here] = torch.where(taught, answer, -1)
            batch.document_ids_BL[row, here] = number
            batch.position_ids_BL[row, here] = torch.arange(len(ids) - 1)
    return batch


class PairRows:
    """Pairs in an order that is new in every pass; see `Rows` in train/loop.py."""

    def __init__(self, found: Pairs, stage: DpoStage, *, pad: int, seed: int, world: World):
        self.pairs, self.stage, self.pad, self.seed, self.world = found.train, stage, pad, seed, world
        self.taken = 0
        """Pairs handed out so far, all passes together."""

    def next_step(self, progress: float) -> list[Batch]:
        """This rank's micro-batches: pairs until the step's tokens are there."""
        chosen: list[Pair] = []
        wanted = value_at(self.stage.tokens_per_step, progress)
        while not chosen or len(chosen) % self.world.size or sum(p.positions for p in chosen) < wanted:
            chosen.append(self._next())
        batches: list[Batch] = []
        group: list[Pair] = []
        for pair in [*chosen[self.world.rank :: self.world.size], None]:
            tokens = sum(p.positions for p in group)
            if group and (pair is None or tokens + pair.positions > self.stage.micro_batch_tokens):
                batches.append(pack_pairs(group, value_at(self.stage.row_length, progress), self.pad))
                group = []
            if pair is not None:
                group.append(pair)
        return batches

    def _next(self) -> Pair:
        number, place = divmod(self.taken, len(self.pairs))
        order = list(range(len(self.pairs)))
        random.Random(f"{self.seed}/{number}").shuffle(order)
        self.taken += 1
        return self.pairs[order[place]]

    def state(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.taken = state["taken"]

    def close(self) -> None: ...


# ---- the loss


def answer_logprobs(network: CausalLM, batch: PairBatch) -> Tensor:
    """The summed log-probability of each answer's learnt tokens [2P]."""
    hidden_TD = network(batch.input_ids_BL.flatten(), rows_context(batch, train=False))
    answers_T = batch.answers_BL.flatten()
    kept = (answers_T >= 0).nonzero()[:, 0]
    labels = batch.labels_BL.flatten()[kept]
    logprobs, _ = linear_logprobs(hidden_TD.index_select(0, kept), network.lm_head.weight, labels)
    return logprobs.new_zeros(2 * batch.pairs).index_add(0, answers_T[kept], logprobs)


class Preference:
    """DPO's loss; `accuracy` and `margin` are counted beside it."""

    def __init__(self, run: TuneRun, stage: DpoStage):
        self.run, self.stage = run, stage
        self.weights: Mapping[str, float] = {"main": 1.0, "accuracy": 0.0, "margin": 0.0}
        # Without an adapter to switch off, the model as it was stays beside the one that moves.
        self.frozen = run.fresh_network().requires_grad_(False) if run.adapter is None else None

    def counts(self, batch: Batch) -> dict[str, float]:
        """Pairs."""
        assert isinstance(batch, PairBatch)
        return dict.fromkeys(self.weights, float(batch.pairs))

    def terms(self, batch: Batch) -> Terms:
        """The policy with gradients, where it began without."""
        assert isinstance(batch, PairBatch)
        with torch.no_grad():
            if self.frozen is not None:
                ref = answer_logprobs(self.frozen, batch)
            else:
                with self.run.reference():
                    ref = answer_logprobs(self.run.network, batch)
        own = answer_logprobs(self.run.network, batch)
        loss_P, margin_P = dpo_loss(
            own[0::2], own[1::2], ref[0::2], ref[1::2],
            beta=self.stage.beta, label_smoothing=self.stage.label_smoothing,
        )  # fmt: skip
        sums = {
            "main": loss_P.sum(),
            "accuracy": (margin_P > 0).float().sum(),
            "margin": margin_P.detach().sum(),
        }
        return Terms(sums)


def prepare(run: TuneRun, stage: DpoStage) -> None:
    """Read the pairs; say how many tokens the epochs are."""
    run.extra["pairs"] = found = read_pairs(stage, run.tokenizer, run.protocol)
    run.live.say(f"{stage.source}: {found.sentence()}")
    stage.tokens = stage.tokens or max(1, round(stage.epochs * sum(p.positions for p in found.train)))


def parts(run: TuneRun, stage: DpoStage) -> Parts:
    """What moves, the loss, the pairs."""
    named, found = run.trainable(), run.extra["pairs"]
    rows = PairRows(found, stage, pad=run.tokenizer.pad_id or 0, seed=run.tuning.run.seed, world=run.world)
    details = {"pairs": len(found.train), "pairs_cut": found.cut, "pairs_dropped": found.dropped}
    objective = run.extra["objective"] = Preference(run, stage)

    def flops(record: Any) -> float:
        context = value_at(stage.row_length, record.fraction_before)
        passes = run.flops_per_token("dpo", context) + run.forward_flops(
            context
        )  # the reference runs forwards
        return record.step_tokens * passes

    return Parts(named, objective, rows, details=lambda: details, flops=flops)


def measure(run: TuneRun, stage: DpoStage) -> dict[str, float]:
    """On held-out pairs: how often the chosen answer gained on the rejected one, and the loss."""
    pairs, length = run.extra["pairs"].validation, value_at(stage.row_length, 1.0)
    sums = {"main": 0.0, "accuracy": 0.0}
    with torch.no_grad():
        for start in range(0, len(pairs), 8):
            batch = pack_pairs(pairs[start : start + 8], length, run.tokenizer.pad_id or 0)
            with run.precision():
                terms = run.extra["objective"].terms(batch.to(run.device))
            sums = {key: sums[key] + float(terms.sums[key]) for key in sums}
    return {"loss": sums["main"] / len(pairs), "accuracy": sums["accuracy"] / len(pairs)} if pairs else {}
