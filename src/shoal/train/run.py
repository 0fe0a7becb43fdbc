"""A run from a recipe to a checkpoint: tokenizer, pre-training, fine-tuning, MTP module, in one folder.

The folder: `recipe.toml` (resolved), `tokenizer/`, `log.jsonl`, `state/` (for `--resume`), `checkpoint/` (in Hugging
Face's form, with receipt.json) and `report.html`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from shoal.cost.receipt import Receipt
from shoal.data.tokenizer import Tokenizer, load_tokenizer
from shoal.errors import ShoalError, UsageError
from shoal.files import atomic_write_text
from shoal.model import counts
from shoal.model.checkpoint.load import load_network, read_side_files
from shoal.model.checkpoint.save import FolderDtype, save_checkpoint
from shoal.model.config import ModelConfig
from shoal.model.init import init_weights
from shoal.model.transformer import CausalLM
from shoal.ops.malloc import keep_freed_memory
from shoal.ops.probe import probe
from shoal.train import machine as machines
from shoal.train.events import Live, Log, TensorBoard
from shoal.train.interrupts import Interrupts, locked
from shoal.train.measure import draft_acceptance, heldout_bits_per_byte
from shoal.train.objective import DraftObjective, NextToken
from shoal.train.optim import Optimizer
from shoal.train.recipe import Recipe, StageRecipe, changed_fields
from shoal.train.report import write_report
from shoal.train.router import RouterBalance
from shoal.train.rows import PackedRows, run_tokenizer, stage_rows
from shoal.train.stage import Parts, Stage
from shoal.train.state import State, load_state
from shoal.train.world import World


@dataclass
class Outcome:
    """What a run leaves."""

    folder: Path
    checkpoint: Path
    finished: bool
    measures: dict[str, dict[str, float]] = field(default_factory=dict)
    """stage -> what was measured after it (held-out bits per byte; MTP: acceptance)."""
    receipt: Receipt | None = None
    failures: list[str] = field(default_factory=list)
    """What went wrong beside the training (measuring, the report): the checkpoint is whole all the same."""


def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    resume: bool = False,
    stop_after: int | None = None,
    seconds: float | None = None,
    shown: bool = False,
) -> Outcome:
    """Run a recipe in `folder`.

    `resume` goes on from the newest state (from the start if there is none). `stop_after` stops, with a saved state,
    after that many optimizer steps of this call. `seconds` is a time budget for all stages together: schedules then
    end in time, whatever the tokens. `shown` draws the live line on stderr. Raises ShoalError.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ShoalError(
            f"cannot use {folder} as a run folder: {error.strerror}", hint="Choose another --run folder."
        ) from error
    with locked(folder) if os.environ.get("RANK", "0") == "0" else contextlib.nullcontext():
        return Run(recipe, folder, resume=resume, seconds=seconds, shown=shown).go(stop_after)


class Run:
    """One run folder and everything that moves in it. Use `train`; fine-tuning has its own kind (tune/run.py)."""

    def __init__(self, recipe: Recipe, folder: Path, *, resume: bool, seconds: float | None, shown: bool):
        self.recipe, self.folder, self.seconds = recipe, folder, seconds
        self.output = folder / "checkpoint"
        self.stages: tuple[str, ...] = ("train", "sft", "mtp")
        keep_freed_memory()
        state = load_state(folder / "state")
        if state and not resume:
            raise UsageError(
                f"{folder} already holds a run",
                hint="Use --resume to go on with it, or another --run folder.",
            )
        self.state = state
        saved = state.values if state else {}
        if state and (changes := changed_fields(saved["recipe"], recipe.to_dict(), type(recipe))):
            raise UsageError(
                "the recipe is not the one this run was started with:\n  " + "\n  ".join(changes),
                hint="Go on with the old recipe (shoal train --resume --run FOLDER), or start a new --run folder.",
            )
        chosen = saved.get("machine", {})
        self.machine = machines.choose(
            recipe.run.device,
            chosen.get("dtype", recipe.run.dtype),
            recipe.run.threads or chosen.get("threads", 0),
        )
        self.device = torch.device(self.machine.device)
        self.world = World.from_environment(self.device)
        self.live = Live(shown=shown and self.world.rank == 0)
        if self.world.rank == 0:
            atomic_write_text(folder / "recipe.toml", recipe.to_toml())
        place = folder / "log.jsonl" if self.world.rank == 0 else Path(os.devnull)
        self.log = Log(place, keep_lines=saved.get("log_lines", 0))
        self.board = TensorBoard(folder / "tensorboard") if recipe.run.tensorboard else None
        self.tokenizer = self._tokenizer()
        self.config = self._config(self.tokenizer)
        self.network = self._network()
        self.measures: dict[str, dict[str, float]] = saved.get("measures", {})
        self.receipt = Receipt.from_dict(saved["receipt"]) if saved.get("receipt") else self._parent()
        self.failures: list[str] = []
        self.peak = probe(self.machine.device).gemm_flops_per_second.get(self.machine.dtype)
        self.interrupts = Interrupts()
        self.steps_before, self.steps_of_this_call = saved.get("steps", 0), 0
        before = saved.get("processes", self.world.size)
        if before != self.world.size:
            self._say_other_processes(before)

    # ---- the parts

    def _tokenizer(self) -> Tokenizer:
        place = self.folder / "tokenizer"
        if not place.is_dir() and self.world.rank == 0:
            if self.recipe.run.start:
                load_tokenizer(self.recipe.run.start).save(place)
            else:
                self.live.say("training the tokenizer")
                run_tokenizer(self.recipe, place)
        self.world.barrier()
        return load_tokenizer(place)

    def _config(self, tokenizer: Tokenizer) -> ModelConfig:
        eos = list(tokenizer.eos_ids)
        values = {
            **self.recipe.model,
            "bos_token_id": tokenizer.bos_id,
            "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
            "pad_token_id": tokenizer.pad_id,
        }
        if tokenizer.vocab_size > values["vocab_size"]:
            raise ShoalError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, model.vocab_size is {values['vocab_size']}",
                hint="Raise model.vocab_size in the recipe.",
            )
        return ModelConfig.from_dict(values)

    def _network(self) -> CausalLM:
        network = CausalLM(self.config, mtp=self.recipe.mtp.tokens > 0)
        if self.state:
            network.load_state_dict(self.state.tensors["network"])
        elif start := self.recipe.run.start:
            self._start_from(network, Path(start))
        else:
            init_weights(network, seed=self.recipe.run.seed, scheme=self.recipe.run.init)
        return network.to(self.device)

    def _parent(self) -> Receipt | None:
        """What the weights cost that the run begins with."""
        found = read_side_files(self.recipe.run.start).receipt if self.recipe.run.start else None
        return Receipt.from_dict(found) if found else None

    def parts(self, stage: str, recipe: StageRecipe) -> Parts:
        """What a stage is made of."""
        drafts, trunk = stage == "mtp", self.config.num_hidden_layers
        layers = range(trunk, self.config.num_layers_with_mtp) if drafts else range(trunk)
        router = RouterBalance(self.network, set(layers))
        return Parts(
            self.trained_parameters(stage),
            (DraftObjective if drafts else NextToken)(self.network, recipe),
            stage_rows(self.recipe, stage, self.tokenizer, self.folder / "tokenizer", self.world),
            router if router.biases else None,
        )

    def flops_per_token(self, stage: str, context: int) -> float:
        """Of training, forward and backward, in rows of `context` tokens."""
        if stage != "mtp":
            return counts.flops_per_token(self.config, context, training=True)
        return counts.draft_training_flops(self.config, context)

    def measure(self, stage: str) -> dict[str, float]:
        """What the stage's held-out rows say."""
        rows = PackedRows(self.recipe, stage, self.tokenizer, split="validation")
        measure = draft_acceptance if stage == "mtp" else heldout_bits_per_byte
        return measure(self.network, rows, self.recipe.run.eval_tokens, autocast=self.machine.autocast)

    def network_tensors(self) -> dict[str, Tensor]:
        """Of the network, what a resume cannot get elsewhere."""
        return self.network.state_dict()

    def _start_from(self, network: CausalLM, start: Path) -> None:
        """The weights of a checkpoint of the same shape."""
        parent = load_network(start, mtp=network.mtp_modules > 0)
        mine, theirs = network.state_dict(), parent.state_dict()
        differing = [name for name in mine if name not in theirs or mine[name].shape != theirs[name].shape]
        if differing or len(mine) != len(theirs):
            raise ShoalError(
                f"{start} is not of the recipe's shape: "
                f"{differing[0] if differing else 'it has more layers'} differs",
                hint="Give [model] the values of its config.json.",
            )
        network.load_state_dict(theirs)

    def trained_parameters(self, stage: str) -> dict[str, nn.Parameter]:
        """What a stage moves: the MTP stage its modules alone, the others everything else."""
        first_draft = self.config.num_hidden_layers
        chosen = {}
        for name, parameter in self.network.named_parameters():
            layer = name.split(".")[2] if name.startswith("model.layers.") else "-1"
            parameter.requires_grad_((int(layer) >= first_draft) == (stage == "mtp"))
            if parameter.requires_grad:
                chosen[name] = parameter
        return chosen

    # ---- the way

    def go(self, stop_after: int | None) -> Outcome:
        try:
            with self.interrupts:
                finished = self._stages(stop_after)
        finally:
            self.live.end()
            self.log.close()
            if self.board:
                self.board.close()
            self.world.close()
        return Outcome(self.folder, self.output, finished, self.measures, self.receipt, self.failures)

    def _stages(self, stop_after: int | None) -> bool:
        optimizer: Optimizer | None = None
        last = resumed = self.state.values["stage"] if self.state else self.stages[0]
        for stage in self.stages:
            recipe: StageRecipe = getattr(self.recipe, stage)
            if not recipe.tokens or self.stages.index(stage) < self.stages.index(resumed):
                continue
            last = stage
            runner = Stage(self, stage, recipe, previous=optimizer)
            optimizer = runner.trainer.optimizer
            left = None if stop_after is None else stop_after - self.steps_of_this_call
            with contextlib.closing(runner.rows):
                if not runner.run(left):
                    return False
        if self.world.rank == 0:
            report = "no report"
            with self.attempt(last, "the report"):
                report = f"report {write_report(self.folder, self.output)}"
            self.live.say(f"done: {self.output}, {report}")
        return True

    @contextlib.contextmanager
    def attempt(self, stage: str, what: str) -> Iterator[None]:
        """Something that must not cost the run: an error in it is said, logged and kept in `failures`."""
        try:
            yield
        except Exception as error:
            cause = error.message if isinstance(error, ShoalError) else f"{type(error).__name__}: {error}"
            self.failures.append(f"{stage}: {what} failed ({cause.removesuffix(': ')})")
            self.live.say(self.failures[-1])
            with contextlib.suppress(ShoalError):  # the disk may be what failed
                self.log.write({"stage": stage, "event": "failed", "what": what, "error": cause})

    def _say_other_processes(self, before: int) -> None:
        now = self.world.size
        self.live.say(
            f"saved by {before} processes, going on with {now}: the same data in the same order, but sums in another "
            "order and steps of whole rows per process; the weights will not be the same bit by bit"
        )
        stage = self.state.values["stage"] if self.state else self.stages[0]
        self.log.write({"stage": stage, "event": "processes", "before": before, "now": now})

    def take_state(self, stage: str) -> State | None:
        """The state this run was resumed from, once, for the stage it belongs to."""
        if self.state and self.state.values["stage"] == stage:
            state, self.state = self.state, None
            return state
        return None

    def write_checkpoint(self, folder: Path) -> None:
        """The network as it is, in Hugging Face's form, with tokenizer and receipt."""
        save_checkpoint(
            folder,
            self.network,
            dtype=cast(FolderDtype, self.recipe.run.checkpoint_dtype),
            tokenizer_files=self.tokenizer.save,
            generation_config=self.generation_config(),
            chat_template=self.tokenizer.chat_template,
            receipt=self.receipt.to_dict() if self.receipt else None,
        )

    def generation_config(self) -> dict[str, Any]:
        """How the model likes to be sampled: cool, because a small model's second thoughts are worse."""
        return {
            "bos_token_id": self.config.bos_token_id,
            "eos_token_id": self.config.eos_token_id,
            "pad_token_id": self.config.pad_token_id,
            "do_sample": True,
            "temperature": 0.3,
            "top_p": 0.95,
        }

    def stage_seconds(self, stage: str) -> float | None:
        """The stage's part of the time budget, by tokens."""
        if not self.seconds:
            return None
        tokens = {name: getattr(self.recipe, name).tokens for name in self.stages}
        return self.seconds * tokens[stage] / sum(tokens.values())
