"""One stage of a run: the trainer with its hooks; then save, write the checkpoint, measure - in this order."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from shoal.cost.meter import Meter
from shoal.train.average import WeightAverage
from shoal.train.loop import Objective, Progress, Rows, StepRecord, Trainer
from shoal.train.optim import Optimizer
from shoal.train.recipe import StageRecipe, value_at
from shoal.train.router import RouterBalance
from shoal.train.state import State, save_state

if TYPE_CHECKING:
    from shoal.train.run import Run


@dataclass
class Parts:
    """What a stage is made of: the parameters it moves by name, what it minimises, where its rows come from, the
    routers that it balances (None: none), and figures of its own for the receipt."""

    named: dict[str, nn.Parameter]
    objective: Objective
    rows: ClosableRows
    router: RouterBalance | None = None
    details: Callable[[], dict[str, Any]] = dict
    fields: Callable[[], dict[str, Any]] = dict
    """Figures of its own for a line of the log; "live" is a text for the live line."""
    flops: Callable[[StepRecord], float] | None = None
    """Of a step, where it is not the tokens times the network's."""
    done: Callable[[], bool] = bool
    """Asked after each step: whether the stage ends here."""


class ClosableRows(Rows, Protocol):
    """Rows that can be resumed and given back."""

    def state(self) -> dict[str, Any]: ...
    def restore(self, state: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...


class Stage:
    """One stage of `run`, named as in its recipe. Starts from the run's saved state where that is of this stage."""

    def __init__(self, run: Run, name: str, recipe: StageRecipe, *, previous: Optimizer | None):
        self.owner, self.name, self.recipe = run, name, recipe
        self.parts = run.parts(name, recipe)
        self.named, self.rows = self.parts.named, self.parts.rows
        optimizer = Optimizer(self.named.items(), recipe)
        if previous is not None and set(map(id, previous.parameters())) == set(
            map(id, optimizer.parameters())
        ):
            optimizer.load(previous.state())  # fine-tuning goes on with pre-training's momenta
        self.trainer = Trainer(
            recipe,
            self.parts.objective,
            self.rows,
            optimizer,
            router=self.parts.router,
            world=run.world,
            device=run.device,
            autocast=run.machine.autocast,
            seconds=run.stage_seconds(name),
            stop_wanted=lambda: run.interrupts.wanted,
        )
        self.average = WeightAverage(self.named, recipe.average_fraction)
        self.parent = run.receipt
        self.window: list[StepRecord] = []
        """Steps since the last line of the log."""
        self.apart = {"saving_seconds": 0.0, "measuring_seconds": 0.0}
        """Time that is not the meter's."""
        meter_state: dict[str, Any] = {"kind": name}
        state = run.take_state(name)
        if state:
            meter_state |= state.values["meter"]
            self._restore(state)
        self.meter = Meter(
            device=run.machine.device,
            dtype=run.machine.dtype,
            threads=run.machine.threads,
            processes=run.world.size,
            **meter_state,
        )
        self.last_save = self.last_shown = time.monotonic()
        self.started = (time.monotonic(), self.trainer.fraction_done)

    def run(self, stop_after: int | None) -> bool:
        """Train to the end of the stage and finish it; False when `stop_after` steps came first.

        What is measured afterwards may fail: the run then notes it (`Run.attempt`) and goes on.
        """
        trainer, owner = self.trainer, self.owner
        limit = None if stop_after is None else trainer.progress.step + stop_after
        owner.live.begin(self.name, self.recipe.tokens)
        self.meter.start()
        trainer.run([self._count, self._log, self._save_in_time], stop_after=limit)
        self.meter.stop()
        owner.live.end()
        self.save()  # first of all: nothing that follows may lose the work
        if trainer.stopped:
            owner.live.say(
                f"stopped after step {trainer.progress.step} of {self.name}; --resume goes on from there"
            )
            raise KeyboardInterrupt
        if trainer.fraction_done < 1.0:
            return False
        self.average.apply()
        self._checkpoint()
        with owner.attempt(self.name, "measuring held-out data"):
            self._measure()
        self._checkpoint()  # once more, with what was measured in its receipt
        return True

    # ---- hooks

    def _count(self, trainer: Trainer, record: StepRecord) -> None:
        self.owner.steps_of_this_call += 1
        self.average.add(trainer.fraction_done)
        context = value_at(self.recipe.row_length, record.fraction_before)
        if self.parts.flops:
            flops = self.parts.flops(record)
        else:
            flops = record.step_tokens * self.owner.flops_per_token(self.name, context)
        trainer.progress.ended = self.parts.done()
        self.meter.add(tokens=record.step_tokens, flops=flops)
        if record.unlabelled and record.unlabelled == trainer.progress.unlabelled:
            self.owner.live.say(
                f"{self.name}, step {record.step}: nothing is to be learnt in {record.unlabelled} micro-batches; they "
                "add zero (the log counts them as `unlabelled`)"
            )
        self.window.append(record)

    def _log(self, trainer: Trainer, record: StepRecord) -> None:
        due = trainer.progress.step % self.owner.recipe.run.log_steps == 0 or trainer.fraction_done >= 1.0
        if not due:
            return
        window, self.window = self.window, []
        seconds = sum(r.seconds for r in window)
        good = [r for r in window if not r.skipped]
        tokens, padding = sum(r.step_tokens for r in window), sum(r.padding for r in window)
        weight = sum(r.step_tokens for r in good)
        done = trainer.fraction_done
        began, done_then = self.started
        left = (time.monotonic() - began) * (1 - done) / (done - done_then) if done > done_then else None

        def mean(value: Any) -> float:
            return sum(value(r) * r.step_tokens for r in good) / weight if weight else math.nan

        line: dict[str, Any] = {
            "stage": self.name,
            "step": record.step,
            "tokens": record.tokens,
            "loss": mean(lambda r: r.losses[next(iter(r.losses))]),
            "bits_per_byte": mean(lambda r: r.bits_per_byte),
            "tokens_per_second": tokens / seconds,
            "padding_share": padding / max(padding + tokens, 1),
            "max_violation": mean(lambda r: r.max_violation),
            "lr_scale": record.lr_scale,
            "grad_norm": mean(lambda r: r.grad_norm),
            "skipped": trainer.progress.skipped,
            "unlabelled": trainer.progress.unlabelled,
            "seconds": self.meter.seconds,
            "joules": self.meter.joules,
            "usd": self.meter.usd,
            "seconds_left": left,
        }
        for key in record.losses:
            line[f"loss_{key}"] = mean(lambda r, key=key: r.losses[key])
        line |= self.parts.fields()
        if self.owner.world.rank == 0:
            self.owner.log.write(line)
            if self.owner.board:
                self.owner.board.write(line)
            self.owner.live.update(line, done, self.recipe.tokens)

    def _save_in_time(self, trainer: Trainer, record: StepRecord) -> None:
        if time.monotonic() - self.last_save >= self.owner.recipe.run.save_seconds:
            self.meter.stop()
            self.save()
            self.meter.start()

    @contextlib.contextmanager
    def _apart(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.apart[what] += time.monotonic() - began

    # ---- state

    def save(self) -> None:
        """Write the state of everything that moves (rank 0; all ranks hold the same)."""
        self.last_save = time.monotonic()
        if self.owner.world.rank == 0:
            steps = self.owner.steps_before + self.owner.steps_of_this_call
            with self._apart("saving_seconds"):
                save_state(self.owner.folder / "state", steps, self._state(steps))

    def _state(self, steps: int) -> State:
        owner, trainer = self.owner, self.trainer
        values = {
            "stage": self.name,
            "steps": steps,
            "recipe": owner.recipe.to_dict(),
            "machine": asdict(owner.machine),
            "progress": asdict(trainer.progress),
            "rows": self.rows.state(),
            "meter": self.meter.state(),
            "apart": self.apart,
            "processes": owner.world.size,
            "averaged": self.average.count,
            "receipt": self.parent.to_dict() if self.parent else None,
            "measures": owner.measures,
            "log_lines": len(owner.log.lines),
            "window": [asdict(record) for record in self.window],
        }
        tensors = {
            "network": owner.network_tensors(),
            "optimizer": trainer.optimizer.state(),
            "average": self.average.means,
            "random": {"torch": torch.get_rng_state()},
        }
        return State({name: part for name, part in tensors.items() if part}, values)

    def _restore(self, state: State) -> None:
        self.trainer.progress = Progress(**state.values["progress"])
        self.trainer.optimizer.load(state.tensors["optimizer"])
        self.rows.restore(state.values["rows"])
        self.average.load(state.tensors.get("average", {}), state.values["averaged"])
        self.apart |= state.values.get("apart", {})
        self.window = [StepRecord(**record) for record in state.values["window"]]
        torch.set_rng_state(state.tensors["random"]["torch"])

    # ---- the end of a stage

    def _measure(self) -> None:
        owner = self.owner
        if not owner.recipe.run.eval_tokens or owner.world.rank:
            return
        with self._apart("measuring_seconds"):
            result = owner.measure(self.name)
        if not result:
            return
        owner.measures[self.name] = result
        shown = ", ".join(f"{key} {value:.4g}" for key, value in result.items() if math.isfinite(value))
        owner.live.say(f"{self.name}: held-out {shown}")
        owner.log.write({"stage": self.name, "event": "measured", **result})

    def _checkpoint(self) -> None:
        owner = self.owner
        details = {
            "recipe": owner.recipe.run.name,
            "stage": self.name,
            "padding_share": self.trainer.progress.padding_share,
            **self.apart,
            **self.parts.details(),
            **owner.measures.get(self.name, {}),
        }
        owner.receipt = self.meter.receipt(
            parent=self.parent, peak_flops_per_second=owner.peak, details=details
        )
        if owner.world.rank == 0:
            with self._apart("saving_seconds"):
                owner.write_checkpoint(owner.output)
