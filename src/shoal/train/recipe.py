"""A training recipe: one TOML file, typed, strict, overridable from the command line, explained by itself.

Every field is declared once, with its help and unit; file, command line (`--train.lr 3e-4`), error messages and the
table in docs/training.md come from it. All faults of a recipe are reported in one message.
"""

# ruff: noqa: RUF009 - `knob` is a `dataclasses.field`

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal.errors import ShoalError, UsageError
from shoal.files import read_text
from shoal.model.config import ModelConfig

Plan = list[list[float]]  # [[from this fraction of the stage's tokens, value], ...]


def knob(
    default: Any, help: str, *, unit: str = "", choices: tuple[str, ...] = (), resumable: bool = False
) -> Any:
    """A field with its help. `resumable`: may differ between a run and its `--resume`."""
    metadata = {"help": help, "unit": unit, "choices": choices, "resumable": resumable}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: json.loads(json.dumps(default)), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class RunRecipe:
    """[run]: the run as a whole."""

    name: str = knob("model", "the model's name, for its report and receipt")
    seed: int = knob(1, "every random choice of the run follows from it")
    device: str = knob("auto", "where to compute; auto: cuda, mps or cpu, the first there is", resumable=True)
    dtype: str = knob(
        "auto", "matrix products; auto: a short measurement decides", choices=("auto", "float32", "bfloat16")
    )
    threads: int = knob(0, "CPU threads; 0: as many as PyTorch takes", unit="threads", resumable=True)
    start: str = knob("", "checkpoint folder to go on from (its tokenizer too) instead of first weights")
    workers: int = knob(
        0, "processes that prepare rows ahead (for a GPU); 0: the main process does", unit="processes"
    )
    save_seconds: float = knob(180.0, "time between saved states", unit="seconds", resumable=True)
    log_steps: int = knob(10, "steps between lines of log.jsonl", unit="steps", resumable=True)
    eval_tokens: int = knob(65536, "held-out tokens measured after each stage", unit="tokens", resumable=True)
    checkpoint_dtype: str = knob(
        "bfloat16", "numbers of the checkpoint", choices=("float32", "bfloat16", "fp8"), resumable=True
    )
    tensorboard: bool = knob(False, "also write TensorBoard event files", resumable=True)
    init: str = knob(
        "fan_in",
        "first weights; fan_in: fan-in uniform, outputs zero; paper: normal, std 0.006",
        choices=("fan_in", "paper"),
    )


@dataclass
class TokenizerRecipe:
    """[tokenizer]: a byte-level BPE with DeepSeek's special tokens, trained on the run's own data."""

    path: str = knob("", "folder of an existing tokenizer to use instead of training one")
    vocab_size: int = knob(4096, "size of the vocabulary with special tokens", unit="tokens")
    digits: str = knob("single", "how digits are split before merging", choices=("single", "grouped"))
    documents: int = knob(20000, "documents to learn the merges from", unit="documents")


@dataclass
class DataRecipe:
    """Where a stage's text comes from, and which tokens teach."""

    source: str = knob("microworld", "microworld, or a file, folder or hub data set (shoal data --help)")
    mix: str = knob("pretrain", "microworld: its mix of examples", choices=("pretrain", "sft"))
    loss_on: str = knob(
        "all", "which tokens teach; assistant: the assistant's turns only", choices=("all", "assistant")
    )
    separate_documents: Plan = knob(
        [[0.0, 1]], "plan: 1: a token sees only its own document, also in a packed row; 0: the row so far"
    )


@dataclass
class OptimizerRecipe:
    """How weights move."""

    matrices: str = knob("muon", "the rule for matrices", choices=("muon", "adamw"))
    lr: float = knob(0.004, "matrices: step in spectral norm (muon) or per number (adamw)")
    embedding_lr: float = knob(0.1, "embedding: AdamW step per number")
    head_lr: float = knob(0.0028, "output head: AdamW step per number")
    router_lr: float = knob(0.0018, "router gates: AdamW step per number")
    gains_lr: float = knob(0.003, "norm gains and other vectors: AdamW step per number")
    lr_factor: float = knob(1.0, "multiplies every learning rate of the stage")
    weight_decay: float = knob(0.5, "decay of matrices, times lr; muon: only where it agrees with the update")
    adam_weight_decay: float = knob(0.0, "decay of everything AdamW moves, times its lr")
    adam_betas: list[float] = knob([0.8, 0.95], "AdamW's two decay rates")
    adam_eps: float = knob(1e-10, "AdamW's epsilon")
    normuon_beta2: float = knob(0.95, "decay of Muon's column variance; 0: plain Muon")
    polar_steps: int = knob(5, "steps of Muon's orthogonalisation, 1 to 5", unit="steps")
    max_grad_norm: float = knob(0.0, "clip the gradient's norm to this; 0: never")


@dataclass
class ScheduleRecipe:
    """How rates change over a stage."""

    lr_schedule: str = knob(
        "wsd", "wsd: constant, then linear down; or cosine, linear", choices=("wsd", "cosine", "linear")
    )
    warmup_steps: int = knob(40, "steps of linear warm-up", unit="steps")
    warmdown_fraction: float = knob(0.7, "wsd: last share of the stage's tokens over which rates fall")
    final_lr_fraction: float = knob(0.0, "rates at the end, as a share of their full value")
    momentum: float = knob(0.95, "Muon's momentum")
    momentum_start: float = knob(0.85, "Muon's momentum at the first step")
    momentum_end: float = knob(0.9, "Muon's momentum when the rates have fallen to zero")
    momentum_warmup_steps: int = knob(300, "steps over which momentum rises", unit="steps")
    bias_rate_fast: float = knob(5e-3, "step of the router bias at first", resumable=True)
    bias_rate: float = knob(1e-3, "step of the router bias afterwards", resumable=True)
    bias_fast_fraction: float = knob(0.2, "share of the stage with the fast bias step", resumable=True)
    bias_still_fraction: float = knob(0.1, "last share of the stage in which the bias rests")


@dataclass
class StageRecipe(DataRecipe, OptimizerRecipe, ScheduleRecipe):
    """[train] is pre-training, [sft] fine-tuning, [mtp] the draft module on a frozen trunk. One loop runs all.

    What [sft] and [mtp] do not say they take from [train], `tokens` apart. A plan is a number, or a list of
    [fraction of the stage, value from there on].
    """

    tokens: int = knob(
        0, "tokens to train on, padding not counted; 0: no such stage", unit="tokens", resumable=True
    )
    tokens_per_step: Plan = knob([[0.0, 8192]], "plan: tokens of one update, over all ranks", unit="tokens")
    row_length: Plan = knob([[0.0, 512]], "plan: length of a packed row", unit="tokens")
    micro_batch_tokens: int = knob(8192, "tokens of one forward and backward pass, per rank", unit="tokens")
    balance_weight: float = knob(1e-4, "weight of the sequence-wise balance loss (MoE)")
    z_loss_weight: float = knob(0.0, "weight of log(sum exp(logits))^2, which keeps logits small")
    average_fraction: float = knob(0.0, "last share of the steps whose weights are averaged into the result")


@dataclass
class Recipe:
    """A whole run: tokenizer, pre-training, fine-tuning, MTP module."""

    model: dict[str, Any]
    run: RunRecipe = field(default_factory=RunRecipe)
    tokenizer: TokenizerRecipe = field(default_factory=TokenizerRecipe)
    train: StageRecipe = field(default_factory=StageRecipe)
    sft: StageRecipe = field(default_factory=StageRecipe)
    mtp: StageRecipe = field(default_factory=StageRecipe)

    def config(self) -> ModelConfig:
        """The network's shape."""
        return ModelConfig.from_dict(self.model)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, every field resolved."""
        return dataclasses.asdict(self)

    def to_toml(self) -> str:
        """The resolved recipe as a file that `load_recipe` reads back to the same values."""
        return to_toml(self.to_dict())


def to_toml(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Sections of plain values as a TOML file."""
    lines = []
    for section, values in sections.items():
        lines.append(f"[{section}]")
        lines += [f"{_key(key)} = {_toml(value)}" for key, value in values.items() if value is not None]
        lines.append("")
    return "\n".join(lines)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply `--section.key value` overrides, check everything. Raises one ShoalError with all faults."""
    return build_recipe(read_toml(path), parse_overrides(overrides), name=str(path))


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ShoalError."""
    try:
        return tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ShoalError(
            f"{path} is not TOML: {error}", hint="See recipes/nano.toml for the form."
        ) from error


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """`["--train.lr", "3e-4", "--run.name=x"]` -> `{"train.lr": 0.0003, "run.name": "x"}`."""
    values: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or "." not in word:
            raise UsageError(
                f"cannot use {word!r}",
                hint="Write overrides as --section.key value, for example --train.lr 3e-4.",
            )
        key, equals, text = word[2:].partition("=")
        if not equals:
            if not rest or (rest[0].startswith("--") and "." in rest[0]):
                raise UsageError(f"--{key} has no value", hint=f"Write --{key} VALUE or --{key}=VALUE.")
            text = rest.pop(0)
        try:
            values[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[key] = text
    return values


def build_recipe(
    table: Mapping[str, Any], overrides: Mapping[str, Any] | None = None, *, name: str = "recipe"
) -> Recipe:
    """A recipe from plain tables; see `load_recipe`."""
    faults: list[str] = []
    sections = gather_sections(table, overrides or {}, [f.name for f in dataclasses.fields(Recipe)], faults)
    train = sections.get("train", {})
    inherited = {key: value for key, value in train.items() if key != "tokens"}
    for section in ("sft", "mtp"):
        if section in sections:
            sections[section] = {**inherited, **sections[section]}
    parts: dict[str, Any] = {}
    for part in dataclasses.fields(Recipe):
        if part.name != "model":
            kind = typing.get_type_hints(Recipe)[part.name]
            parts[part.name] = read_section(kind, sections.get(part.name, {}), part.name, faults)
    model = sections.get("model")
    if model is None:
        faults.append("no [model] section: it holds the network's shape, with config.json's names")
    else:
        names = [f.name for f in dataclasses.fields(ModelConfig)]
        for key in model:
            if key not in names:
                faults.append(f"model.{key} is not a key{_nearest(key, names)}")
    if not faults:
        recipe = Recipe(model=model or {}, **parts)
        faults += _check(recipe)
    refuse(faults, name, "docs/training.md lists every key.")
    return recipe


def gather_sections(
    table: Mapping[str, Any], overrides: Mapping[str, Any], known: Sequence[str], faults: list[str]
) -> dict[str, dict[str, Any]]:
    """The tables of a recipe with the overrides in; a section that is not `known` is a fault."""
    sections: dict[str, dict[str, Any]] = {}
    for section, values in table.items():
        if section not in known:
            faults.append(f"[{section}] is not a section{_nearest(section, known)}")
        elif not isinstance(values, Mapping):
            faults.append(f"{section} must be a section: [{section}]")
        else:
            sections[section] = dict(values)
    for key, value in overrides.items():
        section, _, entry = key.partition(".")
        if section not in known:
            faults.append(f"--{key}: no section {section!r}{_nearest(section, known)}")
        else:
            sections.setdefault(section, {})[entry] = value
    return sections


def refuse(faults: Sequence[str], name: str, hint: str) -> None:
    """Raise one ShoalError that names all faults, if there are any."""
    faults = list(dict.fromkeys(faults))
    if faults:
        head = f"{name} has {len(faults)} fault{'s' if len(faults) > 1 else ''}:"
        raise ShoalError("\n  ".join([head, *faults]), hint=hint, exit_code=2)


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any], recipe: type = Recipe) -> list[str]:
    """Keys that differ between two resolved recipes and may not change on a resume, as `key: old -> new`.

    A key that one of them lacks (it came with another version) has its default there; rates of a section that is
    lacking were 0 before a recipe's loader put in what that stands for, and count as such.
    """
    changes = []
    for part in dataclasses.fields(recipe):
        before, after = old.get(part.name, {}), new.get(part.name, {})
        kind = typing.get_type_hints(recipe)[part.name]
        free, defaults = set(), {}
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            free = {f.name for f in dataclasses.fields(kind) if f.metadata["resumable"]}
            defaults = dataclasses.asdict(kind())
            if not before:
                free |= {key for key in defaults if key == "lr" or key.endswith("_lr")}
        for key in sorted(set(before) | set(after)):
            one, other = (values.get(key, defaults.get(key)) for values in (before, after))
            if key not in free and one != other:
                changes.append(f"{part.name}.{key}: {one} -> {other}")
    return changes


def value_at(plan: Plan, progress: float) -> int:
    """The value that a plan holds at `progress` (0..1)."""
    return int([value for start, value in plan if progress >= start][-1])


def read_section(kind: type, values: Mapping[str, Any], section: str, faults: list[str]) -> Any:
    """A dataclass of knobs from a table; whatever is wrong with it is a fault."""
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    good: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            faults.append(f"{section}.{key} is not a key{_nearest(key, list(fields))}")
            continue
        if hints[key] == Plan and isinstance(value, (int, float)):
            value = [[0.0, int(value) if isinstance(value, bool) else value]]
        if hints[key] is float and type(value) is int:
            value = float(value)
        if hints[key] is int and isinstance(value, float) and value == int(value):
            value = int(value)  # 2e6 tokens
        if not _fits(value, hints[key]):
            faults.append(f"{section}.{key} = {value!r} is not {_describe(hints[key])}")
            continue
        choices = fields[key].metadata["choices"]
        if choices and value not in choices:
            faults.append(f"{section}.{key} = {value!r} must be one of {', '.join(choices)}")
        good[key] = value
    return kind(**good)


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return any(_fits(value, a) for a in arguments)
    if origin is list:
        return isinstance(value, list) and all(_fits(v, arguments[0]) for v in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(v, arguments[1]) for v in value.values())
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is hint


def _describe(hint: Any) -> str:
    if hint == Plan:
        return "a number or a plan [[fraction, value], ...]"
    names = {int: "a whole number", float: "a number", str: "a text in quotes", bool: "true or false"}
    return names.get(hint, "a table of numbers" if typing.get_origin(hint) is dict else "a list of numbers")


def _check(recipe: Recipe) -> list[str]:
    faults = []
    for name in ("train", "sft", "mtp"):
        stage: StageRecipe = getattr(recipe, name)
        for key, least in (("tokens_per_step", 1), ("row_length", 1), ("separate_documents", 0)):
            plan = getattr(stage, key)
            starts = [entry[0] if entry else -1.0 for entry in plan]
            if (
                not plan
                or any(len(entry) != 2 for entry in plan)
                or starts[0] != 0
                or starts != sorted(starts)
            ):
                faults.append(
                    f"{name}.{key} must be [[0, value], [fraction, value], ...] with rising fractions"
                )
            elif any(value < least for _, value in plan):
                faults.append(f"{name}.{key} must hold values of at least {least}")
        if stage.lr <= 0:
            faults.append(f"{name}.lr must be above 0")
        if stage.micro_batch_tokens < 1:
            faults.append(f"{name}.micro_batch_tokens must be at least 1")
        if not 1 <= stage.polar_steps <= 5:
            faults.append(f"{name}.polar_steps must be 1 to 5")
        if len(stage.adam_betas) != 2:
            faults.append(f"{name}.adam_betas must hold two numbers")
        if recipe.run.workers and stage.tokens and stage.source != "microworld":
            faults.append(
                f"run.workers shares out generated text, but {name}.source is read in one stream: use 0"
            )
    if recipe.run.workers < 0:
        faults.append("run.workers must be at least 0")
    if not (recipe.train.tokens or recipe.sft.tokens):
        faults.append("neither train.tokens nor sft.tokens is above 0: there is nothing to do")
    try:
        config = recipe.config()
    except ShoalError as error:
        return [*faults, f"[model]: {error.message}"]
    if config.vocab_size != recipe.tokenizer.vocab_size and not recipe.tokenizer.path:
        faults.append(
            f"model.vocab_size {config.vocab_size} differs from tokenizer.vocab_size {recipe.tokenizer.vocab_size}"
        )
    if recipe.mtp.tokens and not config.num_nextn_predict_layers:
        faults.append("mtp.tokens is set, but model.num_nextn_predict_layers is 0")
    longest = max(v for s in (recipe.train, recipe.sft, recipe.mtp) for _, v in s.row_length)
    if longest > config.max_position_embeddings:
        faults.append(
            f"a row_length of {longest:.0f} is beyond model.max_position_embeddings {config.max_position_embeddings}"
        )
    return faults


def _nearest(word: str, names: Sequence[str]) -> str:
    match = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f" (did you mean {match[0]}?)" if match else ""


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def explain() -> str:
    """Every key of a recipe as markdown tables (docs/training.md holds them; a test compares)."""
    return explain_sections(
        ("[run]", RunRecipe),
        ("[tokenizer]", TokenizerRecipe),
        ("[train], [sft] and [mtp]: data", DataRecipe),
        ("[train], [sft] and [mtp]: length and batches", StageRecipe),
        ("[train], [sft] and [mtp]: optimizer", OptimizerRecipe),
        ("[train], [sft] and [mtp]: schedule", ScheduleRecipe),
    )


def explain_sections(*sections: tuple[str, type]) -> str:
    """A markdown table for each (title, dataclass of knobs), without what its bases hold."""
    parts = []
    for title, kind in sections:
        inherited = {
            f.name for base in kind.__bases__ if base is not object for f in dataclasses.fields(base)
        }
        rows = [f"### {title}", "", "| key | default | what |", "|---|---|---|"]
        for entry in dataclasses.fields(kind):
            if entry.name in inherited:
                continue
            default = entry.default_factory() if callable(entry.default_factory) else entry.default
            notes = [entry.metadata["help"].replace("|", "\\|")]
            if entry.metadata["unit"]:
                notes.append(f"in {entry.metadata['unit']}")
            if entry.metadata["choices"]:
                notes.append("one of " + ", ".join(f"`{choice}`" for choice in entry.metadata["choices"]))
            if entry.metadata["resumable"]:
                notes.append("may change on a resume")
            rows.append(f"| `{entry.name}` | `{_toml(default)}` | {'; '.join(notes)} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"
