"""Adapter folders in PEFT's format, read and written without torch: `adapter_config.json`, `adapter_model.safetensors`.

LoRA (2106.09685) adds `scale * B A` to a matrix: A [r, in], B [out, r]; for a stack of experts A [E, r, in] and
B [E, out, r], on disk one pair per expert under the names of its tensors, as PEFT and other engines expect. Read are
also PEFT's own fused experts (`target_parameters` of transformers 5). ESFT (2407.01906) has whole experts in place of
factors; PEFT has no such kind, so its folder is ours alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shoal.errors import ShoalError
from shoal.files import atomic_folder, read_text
from shoal.model.checkpoint import safetensors_io
from shoal.model.checkpoint.names import disk_names
from shoal.model.checkpoint.safetensors_io import DAMAGED, Entry, TensorInfo
from shoal.model.checkpoint.shapes import parameter_shapes
from shoal.model.checkpoint.source import GgufSource, SafetensorsSource, Source, open_source
from shoal.model.config import ModelConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Floats = NDArray[np.float32]


class LowRank(NamedTuple):
    """What is added to one matrix, or to each of a stack: scale * b @ a."""

    a: Floats
    b: Floats
    scale: float


Factors = dict[str, LowRank]
"""Module ("model.layers.0.self_attn.q_proj", or a stack: "model.layers.1.mlp.experts.gate_proj") -> its factors."""


@dataclass(frozen=True)
class AdapterConfig:
    """The part of `adapter_config.json` that is read and written, with PEFT's names where PEFT has one."""

    base: str
    """`base_model_name_or_path`: an installed name, a path or a hub name."""
    kind: Literal["lora", "esft"] = "lora"
    r: int = 16
    lora_alpha: float = 32.0
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    fingerprint: str = ""
    """Of the base it was trained on (`fingerprint`); empty where nobody wrote it down."""

    def scale(self, module: str) -> float:
        """PEFT's factor of a module: alpha / r, or alpha / sqrt(r)."""
        r, alpha = (
            _pattern(self.rank_pattern, module, self.r),
            _pattern(self.alpha_pattern, module, self.lora_alpha),
        )
        return alpha / (math.sqrt(r) if self.use_rslora else r)


def _pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    return next((v for key, v in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def is_adapter(folder: str | Path) -> bool:
    """Whether this folder holds an adapter and no model."""
    return (Path(folder) / CONFIG).is_file() and not (Path(folder) / "config.json").is_file()


def read_config(folder: str | Path) -> AdapterConfig:
    """Raises ShoalError for kinds and options that would change the arithmetic and are not supported."""
    path = Path(folder) / CONFIG
    try:
        values = json.loads(read_text(path))
        kind = str(values["peft_type"]).lower()
        base = str(values.get("base_model_name_or_path") or "")
        config = AdapterConfig(
            base,
            "esft" if kind == "esft" else "lora",
            int(values.get("r") or 8),
            float(values.get("lora_alpha") or 8),
            bool(values.get("use_rslora")),
            dict(values.get("rank_pattern") or {}),
            dict(values.get("alpha_pattern") or {}),
            str(values.get("base_fingerprint") or ""),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ShoalError(f"{path} is not an adapter's configuration ({error!r})", hint=DAMAGED) from error
    if kind not in ("lora", "esft"):
        raise ShoalError(f"{path}: adapters of kind {kind!r} are not read", hint="Read are LORA and ESFT.")
    unsupported = (
        "use_dora",
        "modules_to_save",
        "fan_in_fan_out",
        "trainable_token_indices",
        "use_qalora",
        "lora_bias",
    )
    for key in unsupported:
        if values.get(key):
            raise ShoalError(
                f"{path} uses {key}, which is not supported",
                hint="Merge it into its base with peft (merge_and_unload) and use the merged model.",
            )
    if values.get("bias", "none") != "none":
        raise ShoalError(f"{path} trains biases ({values['bias']!r})", hint='Read is "bias": "none".')
    return config


# ---- reading


def read_header(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """The shapes of an adapter's tensors by name."""
    return {name: info.shape for name, info in safetensors_io.read_header(Path(folder) / WEIGHTS)[0].items()}


def _floats(info: TensorInfo) -> Floats:
    values = info.read()
    if info.dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    if info.dtype not in ("F32", "F16", "F64"):
        raise ShoalError(f"{info.path}: {info.name} is stored as {info.dtype}, which is not read here")
    return np.array(values, dtype=np.float32)


_KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(A|B)(?:\.default)?\.weight")
_EXPERT = re.compile(r"(.+\.mlp\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)")


def read_factors(folder: str | Path, base: ModelConfig) -> Factors:
    """The factors of a LoRA folder by module, checked against the base's shapes. Raises ShoalError naming what is
    wrong: a missing half, a module or a shape that this base does not have."""
    folder = Path(folder)
    config = read_config(folder)
    infos, _ = safetensors_io.read_header(folder / WEIGHTS)
    halves: dict[str, dict[str, Floats]] = defaultdict(dict)
    for name, info in infos.items():
        if not (match := _KEY.fullmatch(name)):
            raise ShoalError(f"{folder}: tensor {name} is no part of a LoRA adapter that is read here")
        halves[match[1]][match[2]] = _floats(info)
    for module, pair in halves.items():
        if len(pair) != 2 or pair["A"].ndim != 2 or pair["B"].ndim != 2:
            raise ShoalError(f"{folder}: {module} has not both lora_A and lora_B as matrices", hint=DAMAGED)
    factors: Factors = {}
    experts: dict[str, dict[int, LowRank]] = defaultdict(dict)
    for module, pair in halves.items():
        if match := _EXPERT.fullmatch(module):
            experts[f"{match[1]}.{match[3]}"][int(match[2])] = LowRank(
                pair["A"], pair["B"], config.scale(module)
            )
        elif module.endswith((".mlp.experts", ".mlp.experts.base_layer")):
            factors |= _fused(module, pair["A"], pair["B"], base.n_routed_experts or 1, config)
        else:
            factors[module] = LowRank(pair["A"], pair["B"], config.scale(module))
    for stack, parts in experts.items():
        count = base.n_routed_experts or 0
        if sorted(parts) != list(range(count)):
            raise ShoalError(f"{folder} adapts {len(parts)} experts of {stack}, its base has {count}")
        ordered = [parts[number] for number in range(count)]
        try:
            a, b = np.stack([p.a for p in ordered]), np.stack([p.b for p in ordered])
        except ValueError as error:
            raise ShoalError(f"{folder}: the experts of {stack} differ in shape", hint=DAMAGED) from error
        factors[stack] = LowRank(a, b, ordered[0].scale)
    if problems := list(_misfits(factors, base)):
        raise _wrong_base(folder, config, "; ".join(problems[:3]))
    return factors


def _fused(module: str, a: Floats, b: Floats, count: int, config: AdapterConfig) -> Factors:
    """PEFT's factors of transformers 5's stacked parameters: A [E r, in], B [out, r E]; the inner of two wrappers is
    gate_up_proj, whose halves share A."""
    stack = module.removesuffix(".base_layer")
    a_ERI = a.reshape(count, -1, a.shape[1])
    b_EOR = np.ascontiguousarray(b.reshape(b.shape[0], -1, count).transpose(2, 0, 1))
    if not module.endswith(".base_layer"):
        return {f"{stack}.down_proj": LowRank(a_ERI, b_EOR, config.scale(f"{stack}.down_proj"))}
    scale = config.scale(f"{stack}.gate_up_proj")
    gate, up = (np.ascontiguousarray(half) for half in np.split(b_EOR, 2, axis=1))
    return {f"{stack}.gate_proj": LowRank(a_ERI, gate, scale), f"{stack}.up_proj": LowRank(a_ERI, up, scale)}


def _misfits(factors: Factors, base: ModelConfig) -> Iterator[str]:
    shapes = parameter_shapes(base)
    for module, (a, b, _) in factors.items():
        shape = shapes.get(f"{module}.weight") or shapes.get(module)
        if module == "lm_head" and shape is None:
            shape = (base.vocab_size, base.hidden_size)
        if shape is None or len(shape) < 2 or module == "model.embed_tokens":
            yield f"it has no linear layer {module}"
        elif (made := (*a.shape[:-2], b.shape[-2], a.shape[-1])) != shape or a.shape[-2] != b.shape[-1]:
            yield f"{module} is {_by(shape)} there, the adapter is made for {_by(made)}"


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


# ---- the base


def fingerprint(source: Source) -> str:
    """Of a model: its shape and its norms' gains (to bfloat16), which no number format of the weights changes.
    Adapters leave them alone, so that an adapted model has its base's."""
    while hasattr(source, "base"):  # adapted.AdaptedSource
        source = source.base
    config = source.config
    digest = hashlib.sha256(repr(_outline(config)).encode())
    for name in ("model.norm.weight", "model.layers.0.input_layernorm.weight"):
        if isinstance(source, GgufSource):
            gains = np.asarray(source.stored(name).read(0, config.hidden_size), np.float32)
        else:
            assert isinstance(source, SafetensorsSource)
            gains = _floats(source.info(name))
        digest.update(to_bfloat16(np.ascontiguousarray(gains).reshape(-1)).tobytes())
    return digest.hexdigest()[:16]


def _outline(config: ModelConfig) -> tuple[Any, ...]:
    return (config.model_type, config.num_hidden_layers, config.hidden_size, config.vocab_size)


def to_bfloat16(values: Floats) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16 numbers, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def check_base(folder: str | Path, base: str | Path) -> None:
    """Raise ShoalError, naming both, if the adapter in `folder` was made for another model than the one at `base`."""
    config = read_config(folder)
    if config.fingerprint and (found := fingerprint(open_source(base))) != config.fingerprint:
        raise _wrong_base(
            Path(folder), config, f"{base} is another model (fingerprint {found}, not {config.fingerprint})"
        )


def _wrong_base(folder: Path, config: AdapterConfig, why: str) -> ShoalError:
    return ShoalError(
        f"the adapter {folder} does not fit this base: {why}",
        hint=f"It was made for {config.base or 'a base that it does not name'}.",
    )


# ---- writing


def write_lora(
    folder: str | Path,
    config: AdapterConfig,
    factors: Factors,
    base: ModelConfig,
    *,
    bfloat16: bool = True,
    files: Mapping[str, str] | None = None,
) -> None:
    """Write a LoRA folder that PEFT loads, atomically; `files` are texts that lie beside it (name -> text)."""
    entries: list[Entry] = []
    for module, (a, b, _) in factors.items():
        parameter = module if a.ndim == 3 else f"{module}.weight"
        for number, name in enumerate(disk_names(parameter, base)):
            for letter, half in (("A", a), ("B", b)):
                key = f"base_model.model.{name.removesuffix('.weight')}.lora_{letter}.weight"
                entries.append(_entry(key, half if a.ndim == 2 else half[number], bfloat16))
    modules = sorted({module.rpartition(".")[2] for module in factors})
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.base,
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": 0.0,
        "use_rslora": config.use_rslora,
        "bias": "none",
        "inference_mode": True,
        "target_modules": modules,
        "base_fingerprint": config.fingerprint,
    }
    _write(Path(folder), values, entries, files or {})


def write_esft(
    folder: str | Path,
    config: AdapterConfig,
    experts: Mapping[str, Floats],
    chosen: Mapping[str, list[int]],
    *,
    bfloat16: bool = True,
    files: Mapping[str, str] | None = None,
) -> None:
    """Write the trained experts (name on disk -> matrix); `chosen` says which, by layer."""
    values = {
        "peft_type": "ESFT",
        "base_model_name_or_path": config.base,
        "experts": dict(chosen),
        "base_fingerprint": config.fingerprint,
    }
    _write(Path(folder), values, [_entry(name, v, bfloat16) for name, v in experts.items()], files or {})


def average(first: str | Path, second: str | Path, out: str | Path, weight: float) -> None:
    """Write the adapter `(1 - weight) * first + weight * second`, tensor by tensor, with the receipt of `second`.

    Of use where `second` was trained on from `first`: half-way it often keeps what the first could and has most of what
    the second learnt (2109.01903). Raises ShoalError where the two are not the same kind, shape and base.
    """
    first, second = Path(first), Path(second)
    values: list[dict[str, Any]] = []
    for folder in (first, second):
        read_config(folder)  # refuses what is not read here
        values.append(json.loads(read_text(folder / CONFIG)))
    headers = [safetensors_io.read_header(folder / WEIGHTS)[0] for folder in (first, second)]
    shapes = [{name: info.shape for name, info in header.items()} for header in headers]
    differ = sorted(k for k in values[0] | values[1] if values[0].get(k) != values[1].get(k))
    if differ or shapes[0] != shapes[1]:
        what = ", ".join(differ) or "their tensors"
        raise ShoalError(
            f"{first} and {second} cannot be averaged: they differ in {what}",
            hint="Average an adapter with one that was trained on from it.",
        )
    entries = []
    for name, info in headers[1].items():
        mean = (1 - weight) * _floats(headers[0][name]) + weight * _floats(info)
        entries.append(_entry(name, mean.astype(np.float32), info.dtype == "BF16"))
    receipt = second / "receipt.json"
    files = {"receipt.json": read_text(receipt)} if receipt.exists() else {}
    _write(Path(out), values[1], entries, files)


def read_experts(folder: str | Path, base: ModelConfig) -> dict[str, Floats]:
    """The experts of an ESFT folder: name on disk -> matrix, checked against the base's shapes."""
    folder, shapes, found = Path(folder), parameter_shapes(base), {}
    for name, info in safetensors_io.read_header(folder / WEIGHTS)[0].items():
        match = _EXPERT.fullmatch(name.removesuffix(".weight"))
        shape = shapes.get(f"{match[1]}.{match[3]}") if match else None
        if match is None or shape is None or int(match[2]) >= shape[0] or info.shape != shape[1:]:
            raise _wrong_base(
                folder, read_config(folder), f"it has no expert {name} of shape {_by(info.shape)}"
            )
        found[name] = _floats(info)
    return found


def _entry(name: str, values: Floats, bfloat16: bool) -> Entry:
    if bfloat16:
        return Entry(name, "BF16", values.shape, lambda: to_bfloat16(values).reshape(-1).view(np.uint8))
    return Entry(name, "F32", values.shape, lambda: np.ascontiguousarray(values).reshape(-1).view(np.uint8))


def _write(folder: Path, config: Mapping[str, Any], entries: list[Entry], files: Mapping[str, str]) -> None:
    with atomic_folder(folder) as temporary:
        with open(temporary / WEIGHTS, "wb") as file:
            safetensors_io.write_file(file, entries)
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        for name, content in {CONFIG: text, **files}.items():
            (temporary / name).write_text(content, encoding="utf-8")
