"""A tuning run: a base model, what of it moves, a method, one folder. It is a training run with other parts.

The folder: `recipe.toml` (resolved), `log.jsonl`, `state/` (for `--resume`), `report.html`, and what came out:
`adapter/` (PEFT's form, with receipt.json), or `checkpoint/` where all weights moved. A method is a module of this room
named as in the recipe, with `prepare(run, stage)` (looks through the data before the weights are read; sets
`stage.tokens`), `parts(run, stage) -> Parts` and, where it measures anything, `measure(run, stage) -> dict`.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from shoal.cost.receipt import Receipt
from shoal.data.chat import protocol_for
from shoal.data.tokenizer import Tokenizer, load_tokenizer, tokenizer_from_gguf
from shoal.engine.torch_runner import TorchRunner
from shoal.errors import ShoalError
from shoal.files import atomic_write_text, read_text
from shoal.model import counts, registry
from shoal.model.adapters import (
    Adapter,
    adaptable,
    choose_experts,
    freeze_base,
    held_bytes,
    load_adapter,
    new_esft,
    new_lora,
    twin,
)
from shoal.model.checkpoint import adapter_files, load
from shoal.model.checkpoint.source import open_source
from shoal.model.config import ModelConfig
from shoal.model.context import RowsContext
from shoal.model.transformer import CausalLM
from shoal.train.events import Log
from shoal.train.interrupts import locked
from shoal.train.loop import Batch
from shoal.train.measure import draft_acceptance, heldout_bits_per_byte
from shoal.train.objective import DraftObjective
from shoal.train.recipe import Recipe, StageRecipe
from shoal.train.run import Outcome, Run
from shoal.train.stage import Parts
from shoal.tune.data import Data, TunedRows, read_data, survey
from shoal.tune.recipe import TuneRecipe, TuneStage


def tune(
    recipe: TuneRecipe,
    method: str,
    folder: str | Path,
    *,
    resume: bool = False,
    stop_after: int | None = None,
    seconds: float | None = None,
    shown: bool = False,
) -> Outcome:
    """Run `method` of a recipe in `folder`; see `shoal.train.run.train`. Raises ShoalError."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ShoalError(
            f"cannot use {folder} as a run folder: {error.strerror}", hint="Choose another --run folder."
        ) from error
    with locked(folder) if os.environ.get("RANK", "0") == "0" else contextlib.nullcontext():
        return TuneRun(recipe, method, folder, resume=resume, seconds=seconds, shown=shown).go(stop_after)


def base_tokenizer(base: Path, side_files: load.SideFiles) -> Tokenizer:
    """The tokenizer of a model, inside its GGUF file or beside its weights."""
    if side_files.gguf_metadata is not None:
        return tokenizer_from_gguf(side_files.gguf_metadata)
    return load_tokenizer(load.weights_base(base))


class TuneRun(Run):
    """Use `tune`. `adapter` is None where all weights move; `reference()` is the model before any of it."""

    def __init__(
        self,
        recipe: TuneRecipe,
        method: str,
        folder: Path,
        *,
        resume: bool,
        seconds: float | None,
        shown: bool,
    ):
        self.tuning, self.method = recipe, method
        self.base_path = load.resolve(recipe.model.base)
        if load.is_adapter(self.base_path) and recipe.adapter.kind != "none":
            raise ShoalError(
                f"{recipe.model.base} is an adapter itself",
                hint=f"Go on with it: adapter.start = {recipe.model.base!r}, and its own base as model.base.",
            )
        self.side_files = load.read_side_files(self.base_path)
        self.adapter: Adapter | None = None
        self.extra: dict[str, Any] = {}
        """What a method keeps between `prepare`, `parts` and `measure`."""
        try:
            super().__init__(cast(Recipe, recipe), folder, resume=resume, seconds=seconds, shown=shown)
        except BaseException:
            if isinstance(log := getattr(self, "log", None), Log):
                log.close()
            raise
        self.stages = (method, "mtp") if self.network.mtp_modules and recipe.mtp.tokens else (method,)
        self.output = folder / ("checkpoint" if recipe.adapter.kind == "none" else "adapter")

    # ---- the parts

    def _tokenizer(self) -> Tokenizer:
        return base_tokenizer(self.base_path, self.side_files)

    def _config(self, tokenizer: Tokenizer) -> ModelConfig:
        config = load.read_config(self.base_path)
        template = self.side_files.chat_template
        self.protocol = protocol_for(tokenizer, model_type=config.model_type, chat_template=template)
        self._data: Data | None = None
        stage: TuneStage = getattr(self.tuning, self.method)
        longest = max(int(value) for _, value in stage.row_length)
        if longest > config.max_position_embeddings:
            raise ShoalError(
                f"row_length {longest} is beyond the model's {config.max_position_embeddings} positions",
                hint=f"Lower {self.method}.row_length.",
            )
        self.config = config
        if hasattr(self.module, "prepare"):
            self.module.prepare(self, stage)
        return config

    @property
    def module(self) -> Any:
        """The method's."""
        return import_module(f"shoal.tune.{self.method}")

    def _network(self) -> CausalLM:
        kind = self.tuning.adapter.kind
        network = self.fresh_network()
        self.selection = adaptable(network)
        if kind == "none":
            if self.state:
                network.load_state_dict(self.state.tensors["network"])
            return network
        if start := self.tuning.adapter.start:
            adapter_files.check_base(load.resolve(start), self.base_path)
            self.adapter = load_adapter(load.resolve(start), self.config)
            if self.adapter.config.kind != kind:
                raise ShoalError(f"{start} is of kind {self.adapter.config.kind}, the recipe says {kind}")
        network = self.frozen(network)
        if (quant := self.tuning.adapter.base_quant) != "none":
            before = held_bytes(network)
            freeze_base(network, 8 if quant == "8" else 4)
            megabytes = f"{held_bytes(network) / 1e6:.1f} MB instead of {before / 1e6:.1f}"
            self.live.say(f"the frozen base is kept in {quant} bits: {megabytes}")
        return network

    def fresh_network(self) -> CausalLM:
        """The base as it was before this run; with its multi-token prediction where the whole model is written."""
        mtp = self.tuning.adapter.kind == "none" and open_source(self.base_path).has_mtp
        return load.load_network(self.base_path, device=self.device, mtp=mtp)

    def frozen(self, network: CausalLM) -> CausalLM:
        """A network without gradients, held in the dtype that it is multiplied in: half the memory and no casts."""
        return network.to(self.machine.autocast or torch.float32).requires_grad_(False)

    def _parent(self) -> Receipt | None:
        start = self.tuning.adapter.start
        found = load.read_side_files(load.resolve(start)).receipt if start else self.side_files.receipt
        return Receipt.from_dict(found) if found else None

    @property
    def data(self) -> Data:
        """The rows of the method's source, read once."""
        if self._data is None:
            self._data = read_data(getattr(self.tuning, self.method), self.tuning.run.seed)
        return self._data

    def use_rows(self, stage: TuneStage) -> None:
        """Take the rows from `stage` instead of the recipe's."""
        self._data = read_data(stage, self.tuning.run.seed)

    def parts(self, stage: str, recipe: StageRecipe) -> Parts:
        if stage == "mtp":
            objective = DraftObjective(self.network, recipe)
            return Parts(self.trained_parameters(stage), objective, self.rows(cast(TuneStage, recipe)))
        return cast(Parts, self.module.parts(self, recipe))

    def rows(self, stage: TuneStage, *, heldout: bool = False) -> TunedRows:
        """The rows of the method's source, packed as `stage` says."""
        return TunedRows(
            self.data,
            stage,
            self.tokenizer,
            self.protocol,
            seed=self.tuning.run.seed,
            world=None if heldout else self.world,
            heldout=heldout,
        )

    def trainable(self) -> dict[str, nn.Parameter]:
        """What moves, by name; makes or restores the adapter and puts it into use."""
        wanted = self.tuning.adapter
        if wanted.kind == "none":
            return self.trained_parameters(self.method)  # the draft module has a stage of its own
        base = self.base_name()
        mark = adapter_files.fingerprint(open_source(self.base_path))
        if self.adapter is not None:
            self.adapter.config = replace(self.adapter.config, base=base, fingerprint=mark)
        elif wanted.kind == "lora":
            self.adapter = new_lora(
                self.network,
                base=base,
                r=wanted.r,
                lora_alpha=wanted.lora_alpha,
                target_modules=wanted.target_modules,
                fingerprint=mark,
                seed=self.tuning.run.seed,
            )
        else:
            self.adapter = new_esft(self.network, self._experts(), base=base, fingerprint=mark)
        named = self.adapter.trainable(self.device)
        if self.state:
            for name, saved in self.state.tensors["network"].items():
                named[name].data.copy_(saved)
        self.selection.parts = [(self.adapter, None)]
        return named

    def base_name(self) -> str:
        """How an adapter names its base: an installed or hub name as it is, else the place."""
        given = self.tuning.model.base
        if registry.find(given) or not Path(given).expanduser().exists():
            return given
        return str(self.base_path.resolve())

    def _experts(self) -> dict[int, list[int]]:
        """Layer -> the experts that the task uses, chosen once for a run."""
        place = self.folder / "experts.json"
        if place.is_file():
            return {int(layer): ids for layer, ids in json.loads(read_text(place)).items()}
        wanted, stage = self.tuning.adapter, getattr(self.tuning, self.method)
        rows, used = self.rows(stage), ExpertUse()
        tokens = 0
        while tokens < wanted.probe_tokens:
            for batch in rows.next_step(1.0):
                used.look(self.network, batch.to(self.device))
                tokens += batch.tokens
        chosen = choose_experts(used.shares, wanted.top_p)
        count = sum(map(len, chosen.values()))
        self.live.say(
            f"{count} of {sum(map(len, used.shares.values()))} experts make up {wanted.top_p:.0%} of the task"
        )
        atomic_write_text(place, json.dumps(chosen))
        return chosen

    def reference(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the network is as before this run's adapter; only with an adapter."""
        assert self.adapter is not None
        return self.selection.use([])

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """What a forward pass outside the trainer runs under."""
        dtype = self.machine.autocast
        return torch.autocast(self.device.type, dtype=dtype) if dtype else contextlib.nullcontext()

    def sampling_runner(self, positions: int) -> TorchRunner:
        """The model as it moves, for sampling: over the same weights, with the adapter unmerged as "policy"."""
        self._sampler = twin(self.network).to(self.machine.autocast or torch.float32)
        runner = TorchRunner(self._sampler, cache_positions=positions)
        if self.adapter is not None:
            factors = {m: (f.a, f.b, f.scale) for m, f in self.adapter.factors.items()}
            runner.load_adapter(
                "policy", factors
            )  # the tensors themselves: what the trainer moves is seen at once
        return runner

    @contextlib.contextmanager
    def sampling(self) -> Iterator[None]:
        """Around rollouts: weights that all move, and are sampled in another dtype, are copied over first."""
        if self.adapter is None and self.machine.autocast:
            with torch.no_grad():
                for mine, theirs in zip(self.network.parameters(), self._sampler.parameters(), strict=True):
                    theirs.copy_(mine)
        yield

    # ---- what a stage asks its run for

    def forward_flops(self, context: int, config: ModelConfig | None = None) -> float:
        """Of a pass without gradients, per token."""
        return counts.flops_per_token(config or self.config, context, training=False)

    def flops_per_token(self, stage: str, context: int) -> float:
        # Frozen matrices have no gradients of their own.
        return self.forward_flops(context) * (3 if self.adapter is None else 2)

    def network_tensors(self) -> dict[str, Tensor]:
        if self.adapter is None:
            return self.network.state_dict()
        return {name: tensor.data for name, tensor in self.adapter.named_parameters().items()}

    def measure(self, stage: str) -> dict[str, float]:
        if stage == "mtp":
            return self.acceptance()
        if not hasattr(self.module, "measure"):
            return {}
        return cast(dict[str, float], self.module.measure(self, getattr(self.tuning, stage)))

    def heldout(self, stage: TuneStage) -> dict[str, float]:
        """Bits per byte of the held-out rows; nothing where there are none."""
        if not self.data.validation:
            return {}
        rows = self.rows(stage, heldout=True)
        tokens = min(
            self.tuning.run.eval_tokens,
            survey(self.data.validation, stage, self.tokenizer, self.protocol).tokens,
        )
        found = heldout_bits_per_byte(self.network, rows, tokens, autocast=self.machine.autocast)
        return found | self.acceptance()

    def acceptance(self) -> dict[str, float]:
        """How often the draft module is right on held-out rows, where there is one: tuning the trunk may cost it."""
        if not self.network.mtp_modules or not self.data.validation:
            return {}
        rows = self.rows(getattr(self.tuning, self.method), heldout=True)
        tokens = min(self.tuning.run.eval_tokens, 8192)
        return draft_acceptance(self.network, rows, tokens, autocast=self.machine.autocast)

    def generation_config(self) -> dict[str, Any]:
        return self.side_files.generation_config or super().generation_config()

    def write_checkpoint(self, folder: Path) -> None:
        """What came out: the adapter in PEFT's form, or the whole model; its receipt beside it."""
        receipt = self.receipt.to_dict() if self.receipt else None
        dtype = self.tuning.run.checkpoint_dtype
        if self.adapter is None:
            super().write_checkpoint(folder)
            return
        files = {"receipt.json": json.dumps(receipt, indent=2) + "\n"} if receipt else {}
        self.adapter.save(folder, self.config, bfloat16=dtype != "float32", files=files)

    def stage_seconds(self, name: str) -> float | None:
        return self.seconds


class ExpertUse:
    """How much of a task's routing weight every expert takes: layer -> [E] (ESFT's average gate score)."""

    def __init__(self) -> None:
        self.shares: dict[int, Tensor] = {}

    @torch.no_grad()
    def look(self, network: CausalLM, batch: Batch) -> None:
        """Count one batch in, padding left out."""
        context = _Watching(self, batch)
        network(batch.input_ids_BL.flatten(), context)


class _Watching(RowsContext):
    def __init__(self, use: ExpertUse, batch: Batch):
        rows, length = batch.input_ids_BL.shape
        super().__init__(rows, length, document_ids=batch.document_ids_BL, position_ids=batch.position_ids_BL)
        documents = batch.document_ids_BL
        self._use, self._real = use, None if documents is None else documents.reshape(-1) >= 0

    def routed(self, layer: int, expert_ids_TK: Tensor, scores_TE: Tensor) -> None:
        weights_TK = scores_TE.gather(-1, expert_ids_TK)
        weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
        taken_TE = torch.zeros_like(scores_TE).scatter_(-1, expert_ids_TK, weights_TK)
        if self._real is not None:
            taken_TE = taken_TE[self._real]
        self._use.shares[layer] = self._use.shares.get(layer, 0) + taken_TE.sum(0)
