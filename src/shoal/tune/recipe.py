"""A tuning recipe: the base model, the adapter, and a section for each method (`shoal tune METHOD RECIPE`).

Keys, types and errors work as in training recipes (train/recipe.py); `docs/adapt.md` has the tables.
"""

# ruff: noqa: RUF009 - `knob` is a `dataclasses.field`

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal.train.recipe import (
    Plan,
    RunRecipe,
    StageRecipe,
    explain_sections,
    gather_sections,
    knob,
    parse_overrides,
    read_section,
    read_toml,
    refuse,
    to_toml,
)
from shoal.tune.grpo_recipe import GrpoStage

METHODS = ("sft", "distill", "dpo", "grpo")


@dataclass
class ModelRecipe:
    """[model]: what is tuned."""

    base: str = knob("smollm2", "the model: an installed name, a folder, a GGUF file or a hub name")


@dataclass
class AdapterRecipe:
    """[adapter]: which numbers move."""

    kind: str = knob(
        "lora",
        "lora: low-rank factors beside frozen weights; esft: the experts that the task uses; none: all weights",
        choices=("lora", "esft", "none"),
    )
    r: int = knob(16, "lora: rank of the factors")
    lora_alpha: float = knob(32.0, "lora: their product counts alpha / r times")
    target_modules: list[str] = knob(
        ["all-linear"], "lora: last parts of the names of linear layers (q_proj, ...), or all-linear"
    )
    base_quant: str = knob(
        "none",
        "lora: bits in which the frozen matrices are kept while it trains (QLoRA); none: in the dtype of the run",
        choices=("none", "8", "4"),
    )
    start: str = knob("", "adapter folder to go on from, of the same kind and on the same base")
    top_p: float = knob(0.2, "esft: experts of a layer are taken until their share of the task reaches this")
    probe_tokens: int = knob(
        32768, "esft: tokens of the data that say which experts those are", unit="tokens"
    )


@dataclass
class TuneStage(StageRecipe):
    """What all methods share; the rest is as in training."""

    source: str = knob(
        "", "rows: a .jsonl, .json or .parquet file or a folder of them, hub:OWNER/NAME, microworld"
    )
    mix: str = knob("sft", "microworld: its mix of examples", choices=("pretrain", "sft"))
    loss_on: str = knob(
        "assistant", "which tokens teach; assistant: the assistant's turns only", choices=("all", "assistant")
    )
    epochs: float = knob(2.0, "passes over the rows, where tokens is 0", resumable=True)
    steps: int = knob(
        0, "updates, where the data has no end of its own; 0: tokens or epochs decide", unit="steps"
    )
    too_long: str = knob(
        "cut", "rows longer than row_length: cut at its end, or drop", choices=("cut", "drop")
    )
    validation: float = knob(0.05, "share of the rows that is held out and measured")
    tokens_per_step: Plan = knob([[0.0, 2048]], "plan: tokens of one update, over all ranks", unit="tokens")
    micro_batch_tokens: int = knob(2048, "tokens of one forward and backward pass, per rank", unit="tokens")
    matrices: str = knob("adamw", "the rule for matrices", choices=("muon", "adamw"))
    lr: float = knob(0.0, "step per number; 0: 3e-4 for adapters, 3e-5 for all weights")
    embedding_lr: float = knob(0.0, "embedding: step per number; 0: as lr")
    head_lr: float = knob(0.0, "output head: step per number; 0: as lr")
    router_lr: float = knob(0.0, "router gates: step per number; 0: as lr")
    gains_lr: float = knob(0.0, "norm gains and other vectors: step per number; 0: as lr")
    weight_decay: float = knob(0.0, "decay of matrices, times lr")
    adam_betas: list[float] = knob([0.9, 0.99], "AdamW's two decay rates")
    adam_eps: float = knob(1e-8, "AdamW's epsilon")
    max_grad_norm: float = knob(1.0, "clip the gradient's norm to this; 0: never")
    lr_schedule: str = knob(
        "linear", "wsd: constant, then linear down; or cosine, linear", choices=("wsd", "cosine", "linear")
    )
    warmup_steps: int = knob(5, "steps of linear warm-up", unit="steps")
    balance_weight: float = knob(0.0, "weight of the sequence-wise balance loss (MoE)")


@dataclass
class DistillStage(TuneStage):
    """[distill]: learning from a teacher."""

    kind: str = knob(
        "logits",
        "answers: its answers to the questions are the rows; logits: its distribution at every answer token (forward "
        "KL); on_policy: its distribution at every token of the student's own answers (reverse KL)",
        choices=("answers", "logits", "on_policy"),
    )
    teacher: str = knob(
        "", "a model as in model.base; for answers also the address of an OpenAI-compatible server"
    )
    teacher_model: str = knob("", "answers: the model's name on that server; empty: its first")
    kl_temperature: float = knob(1.0, "logits, on_policy: both distributions are softened by it")
    hard_weight: float = knob(0.0, "logits: share of plain cross-entropy in the loss, 0 to 1")
    max_completion_length: int = knob(128, "answers, on_policy: longest answer", unit="tokens")
    temperature: float = knob(1.0, "answers, on_policy: sampling")
    prompts_per_step: int = knob(8, "on_policy: questions of one update")


@dataclass
class DpoStage(TuneStage):
    """[dpo]: learning from pairs of a better and a worse answer (2305.18290)."""

    beta: float = knob(0.1, "how far the policy may move from where it began: larger is closer")
    label_smoothing: float = knob(0.0, "share of pairs that may be the wrong way round, below 0.5")


@dataclass
class TuneRecipe:
    """A whole tuning run; only the section of its method counts."""

    run: RunRecipe = field(default_factory=RunRecipe)
    model: ModelRecipe = field(default_factory=ModelRecipe)
    adapter: AdapterRecipe = field(default_factory=AdapterRecipe)
    sft: TuneStage = field(default_factory=TuneStage)
    distill: DistillStage = field(default_factory=DistillStage)
    dpo: DpoStage = field(default_factory=DpoStage)
    grpo: GrpoStage = field(default_factory=GrpoStage)
    mtp: TuneStage = field(default_factory=TuneStage)
    """Where all weights move: the model's draft module afterwards, for `tokens` tokens of the same rows."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, every field resolved."""
        return dataclasses.asdict(self)

    def to_toml(self) -> str:
        """The resolved recipe as a file that reads back to the same values."""
        return to_toml(self.to_dict())


def load_tune_recipe(path: str | Path, method: str, overrides: Sequence[str] = ()) -> TuneRecipe:
    """Read a recipe for `method`, apply `--section.key value` overrides, check everything that no file is needed for.

    Raises one ShoalError with all faults.
    """
    hints = typing.get_type_hints(TuneRecipe)
    faults: list[str] = []
    sections = gather_sections(read_toml(path), parse_overrides(overrides), list(hints), faults)
    parts = {name: read_section(kind, sections.get(name, {}), name, faults) for name, kind in hints.items()}
    recipe = TuneRecipe(**parts)
    stage: Any = getattr(recipe, method)
    if "name" not in sections.get("run", {}):
        recipe.run.name = Path(path).stem
    if not faults:
        faults += check_adapter(recipe.adapter)
        faults += stage.check() if method == "grpo" else check(method, stage)
    refuse(faults, str(path), "docs/adapt.md lists every key.")
    all_weights = recipe.adapter.kind == "none"
    if method == "grpo":
        stage.settle(all_weights=all_weights, folder=Path(path).parent)
    else:
        settle(stage, all_weights)
    settle(recipe.mtp, all_weights)
    return recipe


def settle(stage: TuneStage, all_weights: bool) -> None:
    """Put in what a 0 stands for."""
    stage.lr = stage.lr or (3e-5 if all_weights else 3e-4)
    for key in ("embedding_lr", "head_lr", "router_lr", "gains_lr"):
        setattr(stage, key, getattr(stage, key) or stage.lr)


def check_adapter(adapter: AdapterRecipe) -> list[str]:
    """What is wrong with [adapter]."""
    faults = [] if adapter.r >= 1 else ["adapter.r must be at least 1"]
    if adapter.base_quant != "none" and adapter.kind != "lora":
        faults.append(
            f"adapter.base_quant goes with kind lora: {adapter.kind} trains weights of the base themselves"
        )
    return faults if 0 < adapter.top_p <= 1 else [*faults, "adapter.top_p must be above 0 and at most 1"]


def check(method: str, stage: TuneStage) -> list[str]:
    """What is wrong with the values of a method's section."""
    faults = []
    if not stage.source:
        faults.append(f"{method}.source is empty: it names the rows to learn from (a .jsonl file)")
    if stage.epochs <= 0 and not stage.tokens:
        faults.append(f"{method}.epochs or {method}.tokens must be above 0")
    if not 0 <= stage.validation < 1:
        faults.append(f"{method}.validation must be at least 0 and below 1")
    for key in ("tokens_per_step", "row_length"):
        if any(len(entry) != 2 or entry[1] < 1 for entry in getattr(stage, key)):
            faults.append(f"{method}.{key} must be at least 1")
    if stage.micro_batch_tokens < 1 or len(stage.adam_betas) != 2 or stage.lr < 0:
        faults.append(
            f"{method}: micro_batch_tokens of at least 1, two adam_betas and an lr above 0 are needed"
        )
    if isinstance(stage, DistillStage):
        faults += _check_distill(stage)
    if isinstance(stage, DpoStage) and not (stage.beta > 0 and 0 <= stage.label_smoothing < 0.5):
        faults.append("dpo.beta must be above 0 and dpo.label_smoothing at least 0 and below 0.5")
    return faults


def _check_distill(stage: DistillStage) -> list[str]:
    faults = []
    if not stage.teacher:
        faults.append("distill.teacher is empty: it names the model to learn from")
    if stage.kind != "answers" and stage.teacher.startswith(("http://", "https://")):
        faults.append(
            f"distill.kind {stage.kind} needs the teacher's weights here: a server shows no distribution"
        )
    if not 0 <= stage.hard_weight <= 1 or stage.kl_temperature <= 0:
        faults.append("distill.hard_weight must be 0 to 1 and distill.kl_temperature above 0")
    if stage.max_completion_length < 1 or stage.prompts_per_step < 1:
        faults.append("distill: max_completion_length and prompts_per_step must be at least 1")
    if stage.kind == "on_policy" and stage.steps < 1:
        faults.append("distill.steps must be at least 1: on_policy makes its own rows")
    return faults


def explain() -> str:
    """The keys of tuning recipes as markdown tables (docs/adapt.md holds them; a test compares)."""
    before, now = dataclasses.asdict(StageRecipe()), dataclasses.asdict(TuneStage())
    others = ", ".join(f"`{key} = {json.dumps(now[key])}`" for key in before if before[key] != now[key])
    tables = explain_sections(
        ("[model]", ModelRecipe),
        ("[adapter]", AdapterRecipe),
        ("[sft], [distill] and [dpo]", TuneStage),
        ("[distill], also", DistillStage),
        ("[dpo], also", DpoStage),
    )
    return f"{tables}\nOther defaults than in training: {others}; a rate of 0 stands for 3e-4 (adapters) or 3e-5.\n"
