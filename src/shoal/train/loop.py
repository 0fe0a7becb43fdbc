"""The training loop. Pre-training, fine-tuning, draft modules, distillation and RL differ in rows and objective only.

The loss of a step is, for every term, a sum divided by the count of the whole step - over all micro-batches and all
ranks. A mean of means would weigh short answers too much, and a micro-batch without a single valid token would give
NaN. A step that is not finite, or in which nothing is to be learnt, never reaches the weights. Logging, saving and
measuring are hooks.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from shoal.errors import ShoalError
from shoal.train import optim
from shoal.train.optim import Optimizer
from shoal.train.recipe import StageRecipe
from shoal.train.router import RouterBalance
from shoal.train.world import World

MAX_SKIPPED_IN_A_ROW = 20
MAX_EMPTY_IN_A_ROW = 20


@dataclass
class Batch:
    """Packed rows of one forward pass. B rows of L positions; labels are -100 where nothing is to be learnt."""

    input_ids_BL: Tensor
    labels_BL: Tensor
    document_ids_BL: Tensor | None = None
    position_ids_BL: Tensor | None = None
    tokens: int = 0
    """Real tokens, without padding."""
    text_bytes: int = 0
    """UTF-8 bytes of the text that the labels spell."""

    @property
    def padding(self) -> int:
        """Positions that hold no token; they cost as much as any other."""
        return self.input_ids_BL.numel() - self.tokens

    def to(self, device: torch.device) -> Batch:
        """The same rows on another device."""
        moved: dict[str, Any] = {
            key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in vars(self).items()
        }
        return type(self)(**moved)


class Rows(Protocol):
    """A source of training rows."""

    def next_step(self, progress: float) -> list[Batch]:
        """This rank's micro-batches of one optimizer step."""


@dataclass
class Terms:
    """One forward pass: sums of losses by name (scalars with gradient) and the router's choices by layer."""

    sums: dict[str, Tensor]
    expert_counts: dict[int, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """What is minimised: sum over terms of weight x sum / count."""

    weights: Mapping[str, float]

    def counts(self, batch: Batch) -> dict[str, float]:
        """For each term, what this batch adds to its count (known before any forward pass)."""

    def terms(self, batch: Batch) -> Terms: ...


@dataclass
class Progress:
    """Where a stage stands; all of it is saved and restored."""

    step: int = 0
    tokens: int = 0
    text_bytes: int = 0
    padding: int = 0
    seconds: float = 0.0
    skipped: int = 0
    """Steps that were not finite."""
    skipped_in_a_row: int = 0
    unlabelled: int = 0
    """Micro-batches in which nothing was to be learnt."""
    empty_in_a_row: int = 0
    """Steps without a single token."""
    ended: bool = False
    """The method saw that there is nothing more to gain."""

    @property
    def padding_share(self) -> float:
        """0..1 of the positions so far."""
        return self.padding / max(self.padding + self.tokens, 1)


@dataclass
class StepRecord:
    """What one step did: the means of the terms, rates, and speeds (real tokens per second)."""

    step: int
    tokens: int
    step_tokens: int
    seconds: float
    losses: dict[str, float]
    bits_per_byte: float
    lr_scale: float
    grad_norm: float
    max_violation: float
    skipped: bool
    """The weights did not move: the step was not finite, or nothing was to be learnt."""
    fraction_before: float
    """0..1 of the stage when the step began."""
    padding: int = 0
    unlabelled: int = 0


Hook = Callable[["Trainer", StepRecord], None]


class Trainer:
    """One stage of a run: rows in, better weights out.

    `seconds`: a time budget; the schedule then ends with whichever of tokens and time is used up first (such a run
    does not repeat bit by bit). `autocast`: dtype of matrix products, None for fp32. `stop_wanted` is asked before each
    step; `stopped` then says that the step was the last.
    """

    def __init__(
        self,
        recipe: StageRecipe,
        objective: Objective,
        rows: Rows,
        optimizer: Optimizer,
        *,
        router: RouterBalance | None = None,
        world: World | None = None,
        device: torch.device | None = None,
        autocast: torch.dtype | None = None,
        seconds: float | None = None,
        stop_wanted: Callable[[], bool] = lambda: False,
    ):
        self.recipe, self.objective, self.rows, self.optimizer = recipe, objective, rows, optimizer
        self.router, self.world = router, world or World()
        self.device, self.autocast, self.seconds = device or torch.device("cpu"), autocast, seconds
        self.progress = Progress()
        self.stop_wanted, self.stopped = stop_wanted, False

    @property
    def fraction_done(self) -> float:
        """0..1 of the stage: by tokens, or by time where a budget is set and runs out first."""
        if self.progress.ended:
            return 1.0
        steps = getattr(self.recipe, "steps", 0)  # a method whose data has no end of its own
        done = self.progress.step / steps if steps else self.progress.tokens / max(self.recipe.tokens, 1)
        if self.seconds:
            done = max(done, self.progress.seconds / self.seconds)
        return min(done, 1.0)

    def run(self, hooks: Iterable[Hook] = (), *, stop_after: int | None = None) -> None:
        """Steps until the stage is done, until `stop_after` steps of the stage, or until a stop is wanted."""
        hooks = list(hooks)
        while (
            self.fraction_done < 1.0
            and (stop_after is None or self.progress.step < stop_after)
            and not self.stopped
        ):
            record = self.train_step()
            for hook in hooks:
                hook(self, record)

    def train_step(self) -> StepRecord:
        """Forward and backward over the step's micro-batches, then one update."""
        start = time.perf_counter()
        done = self.fraction_done
        batches = self.rows.next_step(done)
        main = next(iter(self.objective.weights))
        own = dict.fromkeys((*self.objective.weights, " tokens", " padding", " bytes", " unlabelled"), 0.0)
        own[" stop"] = float(self.stop_wanted())  # ranks must agree on the step after which they stop
        for batch in batches:
            batch_counts = self.objective.counts(batch)
            for key, count in batch_counts.items():
                own[key] += count
            own[" tokens"] += batch.tokens
            own[" padding"] += batch.padding
            own[" bytes"] += batch.text_bytes
            own[" unlabelled"] += not batch_counts[main]
        counts = self.world.sum_numbers(own)
        self.stopped = counts[" stop"] > 0
        self.optimizer.zero_grad()
        totals = dict.fromkeys(self.objective.weights, 0.0)
        expert_counts: dict[int, Tensor] = {}
        for batch in batches:
            with self._precision():
                terms = self.objective.terms(batch.to(self.device))
            loss = torch.zeros((), device=self.device)
            for key, weight in self.objective.weights.items():
                if key in terms.sums:
                    loss = loss + terms.sums[key] * (weight / max(counts[key], 1.0))
                    totals[key] += float(terms.sums[key].detach())
            if loss.requires_grad:
                loss.backward()
            for layer, numbers in terms.expert_counts.items():
                expert_counts[layer] = expert_counts.get(layer, 0) + numbers
        parameters = self.optimizer.parameters()
        self.world.sum_gradients(parameters)
        totals = self.world.sum_numbers(totals)
        losses = {key: total / max(counts[key], 1.0) for key, total in totals.items()}
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        # Losses and norm are sums over all ranks: every rank sees the same numbers and decides alike.
        finite = math.isfinite(norm) and all(map(math.isfinite, losses.values()))
        scale = optim.lr_scale(self.recipe, step=self.progress.step, progress=done)
        violation = 0.0
        moves = finite and counts[main] > 0
        if moves:
            if self.recipe.max_grad_norm and norm > self.recipe.max_grad_norm:
                torch._foreach_mul_(
                    [p.grad for p in parameters if p.grad is not None], self.recipe.max_grad_norm / norm
                )
            self.optimizer.step(
                lr_scale=scale * self.recipe.lr_factor,
                momentum=optim.momentum(self.recipe, step=self.progress.step, lr_factor=scale),
            )
            if self.router:
                self.world.sum_tensors(expert_counts[layer] for layer in sorted(expert_counts))
                violation = self.router.update(expert_counts, optim.bias_rate(self.recipe, done))
        self._count_failures(finite, int(counts[" tokens"]), losses)
        self.progress.step += 1
        self.progress.tokens += int(counts[" tokens"])
        self.progress.padding += int(counts[" padding"])
        self.progress.unlabelled += int(counts[" unlabelled"])
        self.progress.text_bytes += int(counts[" bytes"])
        seconds = time.perf_counter() - start
        self.progress.seconds += seconds
        nats = losses[main] * counts[main]
        return StepRecord(
            step=self.progress.step,
            tokens=self.progress.tokens,
            step_tokens=int(counts[" tokens"]),
            seconds=seconds,
            losses=losses,
            bits_per_byte=nats / math.log(2) / counts[" bytes"] if counts[" bytes"] else math.nan,
            lr_scale=scale,
            grad_norm=norm,
            max_violation=violation,
            skipped=not moves,
            fraction_before=done,
            padding=int(counts[" padding"]),
            unlabelled=int(counts[" unlabelled"]),
        )

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)

    def _count_failures(self, finite: bool, tokens: int, losses: Mapping[str, float]) -> None:
        self.progress.skipped += not finite
        self.progress.skipped_in_a_row = 0 if finite else self.progress.skipped_in_a_row + 1
        self.progress.empty_in_a_row = 0 if tokens else self.progress.empty_in_a_row + 1
        if self.progress.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise ShoalError(
                f"{MAX_SKIPPED_IN_A_ROW} steps in a row were not finite (losses {dict(losses)})",
                hint="The saved state is from before. Lower train.lr, or look at the data, then use --resume.",
            )
        if self.progress.empty_in_a_row >= MAX_EMPTY_IN_A_ROW:
            raise ShoalError(
                f"{MAX_EMPTY_IN_A_ROW} steps in a row came without a single token",
                hint="The stage would never end. Look at its data: shoal data inspect SOURCE",
            )
