"""Where weights come from: a safetensors folder or a GGUF file, seen alike. Opening reads headers only, without torch.

A source knows which parameters it can fill, checks them against the configuration before anything is allocated, and
fills one tensor of the network at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shoal.errors import ShoalError
from shoal.model.checkpoint import gguf, gguf_map, names, safetensors_io
from shoal.model.checkpoint.safetensors_io import DAMAGED, TensorInfo
from shoal.model.checkpoint.shapes import parameter_shapes
from shoal.model.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float32]
FP8 = "F8_E4M3"
_FLOATS = ("F64", "F32", "F16", "BF16", FP8)


@dataclass
class Findings:
    """What a check of names and shapes found; `missing` and `wrong` make a model unusable, `extra` does not."""

    missing: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)

    def problems(self, config: ModelConfig, where: Path) -> list[str]:
        """Sentences for people."""
        lines = list(self.wrong)
        if self.missing:
            lines.append(f"{len(self.missing)} tensors are missing: {_some(self.missing)}")
            lines += _hints(self.missing, config, where)
        return lines


def _some(items: list[str], count: int = 12) -> str:
    return ", ".join(items[:count]) + (f" and {len(items) - count} more" if len(items) > count else "")


def _hints(missing: list[str], config: ModelConfig, where: Path) -> list[str]:
    hints = []
    if names.HEAD in missing:
        hints.append(
            f"{where.name}: the config says that the output head is not tied to the embedding; "
            "set tie_word_embeddings to true in config.json if it is"
        )
    if names.has_mtp(missing, config):
        hints.append("the multi-token prediction layers are absent: load the model without them (mtp=False)")
    return hints


class Source(Protocol):
    """Read-only weights of one model."""

    path: Path
    config: ModelConfig
    has_mtp: bool
    """Whether the file holds the multi-token prediction layers that the configuration names."""

    def tensors(self) -> dict[str, tuple[str, tuple[int, ...], int]]:
        """Every tensor as stored: (dtype, shape, bytes)."""

    def check(self, *, mtp: bool) -> Findings:
        """Compare names and shapes with the configuration."""

    def nbytes(self, parameter: str) -> int:
        """How many bytes of the file `fill` will read for a parameter."""

    def fill(self, parameter: str, target: Tensor, expert: int | None = None) -> None:
        """Read a parameter, or one expert of a stack, into `target`, converting to its dtype."""

    def floats(self, parameter: str, expert: int | None = None) -> Floats:
        """The same as fp32, without torch."""

    def stored_types(self, parameter: str) -> list[str]:
        """The number formats it is stored in: one, or two for a kv_b_proj that GGUF keeps in halves."""

    def files(self) -> list[Path]:
        """The files that hold the weights."""


class SafetensorsSource:
    """A Hugging Face folder. FP8 weights are multiplied out by their block scales while they are read."""

    def __init__(self, folder: Path):
        self.path = folder
        self.config = ModelConfig.from_folder(folder)
        self._block = _fp8_block(self.config.quantization_config, folder)
        self._infos = safetensors_io.read_folder(folder)
        self.has_mtp = self.config.num_nextn_predict_layers > 0 and names.has_mtp(self._infos, self.config)

    def tensors(self) -> dict[str, tuple[str, tuple[int, ...], int]]:
        return {name: (info.dtype, info.shape, info.nbytes) for name, info in self._infos.items()}

    def info(self, name: str) -> TensorInfo:
        """Where a tensor of the disk lies."""
        return self._infos[name]

    def _parts(self, parameter: str) -> list[TensorInfo]:
        return [self._infos[name] for name in names.disk_names(parameter, self.config)]

    def check(self, *, mtp: bool) -> Findings:
        findings = Findings()
        used: set[str] = set(names.mtp_copies(self.config)) | {names.HEAD}
        for parameter, shape in parameter_shapes(self.config, mtp=mtp).items():
            parts = names.disk_names(parameter, self.config)
            expected = shape[1:] if parts != [parameter] else shape
            for name in parts:
                info = self._infos.get(name)
                if info is None:
                    findings.missing.append(name)
                    continue
                used |= {name, f"{name}_scale_inv"}
                if info.shape != expected:
                    findings.wrong.append(f"{name} has shape {info.shape}, the config asks for {expected}")
                elif info.dtype not in _FLOATS:
                    findings.wrong.append(f"{name} is stored as {info.dtype}, which is not read")
                elif info.dtype == FP8:
                    findings.wrong += self._scale_faults(info)
        findings.extra = sorted(set(self._infos) - used)
        if not mtp:
            findings.extra = [n for n in findings.extra if not names.has_mtp([n], self.config)]
        return findings

    def _scale_faults(self, info: TensorInfo) -> list[str]:
        scale = self._infos.get(f"{info.name}_scale_inv")
        if scale is None:
            return [f"{info.name} is FP8 but has no {info.name}_scale_inv"]
        grid = tuple(-(-side // step) for side, step in zip(info.shape, self._block, strict=False))
        if len(info.shape) != 2 or scale.shape != grid:
            return [
                f"{scale.name} has shape {scale.shape}; for {info.name} of shape {info.shape} in blocks of "
                f"{self._block[0]}x{self._block[1]} it takes {grid}"
            ]
        return []

    def nbytes(self, parameter: str) -> int:
        return sum(info.nbytes for info in self._parts(parameter))

    def fill(self, parameter: str, target: Tensor, expert: int | None = None) -> None:
        parts = self._parts(parameter)
        if expert is not None:
            self._fill_one(parts[expert], target)
        elif parts[0].name == parameter:
            self._fill_one(parts[0], target)
        else:
            for number, info in enumerate(parts):
                self._fill_one(info, target[number])

    def floats(self, parameter: str, expert: int | None = None) -> Floats:
        parts = self._parts(parameter)
        if expert is not None:
            return self._floats(parts[expert])
        if parts[0].name == parameter:
            return self._floats(parts[0])
        return np.stack([self._floats(info) for info in parts])

    def stored_types(self, parameter: str) -> list[str]:
        return [self._parts(parameter)[0].dtype]

    def files(self) -> list[Path]:
        return sorted({info.path for info in self._infos.values()})

    def _floats(self, info: TensorInfo) -> Floats:
        if info.dtype != FP8:
            return to_floats(info)
        scales = to_floats(self._infos[f"{info.name}_scale_inv"])
        grid = np.repeat(np.repeat(scales, self._block[0], 0), self._block[1], 1)
        return _E4M3[info.read()] * grid[: info.shape[0], : info.shape[1]]

    def _fill_one(self, info: TensorInfo, target: Tensor) -> None:
        from shoal.model.checkpoint.torch_arrays import to_torch

        tensor = to_torch(info)
        if info.dtype == FP8:
            from shoal.ops.fp8 import dequantize_blocks

            scale = to_torch(self._infos[f"{info.name}_scale_inv"])
            tensor = dequantize_blocks(tensor, scale, block=self._block)
        target.copy_(tensor)


def to_floats(info: TensorInfo) -> Floats:
    """A stored tensor of a plain float dtype as fp32."""
    values = info.read()
    if info.dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(values, np.float32)


def _e4m3() -> Floats:
    """The number behind each byte: sign, 4 bits of exponent (bias 7), 3 of mantissa; 0x7f and 0xff are nan."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    size = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    size[(code & 127) == 127] = np.nan
    return np.where(code >= 128, -size, size).astype(np.float32)


_E4M3 = _e4m3()


def _fp8_block(quantization: Mapping[str, Any] | None, folder: Path) -> tuple[int, int]:
    """The block size of an FP8 checkpoint. Raises ShoalError for other quantisations (gptq, awq, ...)."""
    if not quantization:
        return (128, 128)
    method, block = quantization.get("quant_method"), quantization.get("weight_block_size") or [128, 128]
    if method != "fp8" or quantization.get("fmt", "e4m3") != "e4m3":
        raise ShoalError(
            f"{folder} is quantised by {method!r} ({quantization.get('fmt', 'no format given')}), which is not read",
            hint="Read are FP8 (e4m3) blocks, plain fp32 / bf16 / fp16, and GGUF: take the model in one of these.",
        )
    if not (isinstance(block, list) and len(block) == 2 and all(isinstance(n, int) and n > 0 for n in block)):
        raise ShoalError(f"{folder}: weight_block_size {block!r} is not a pair of numbers", hint=DAMAGED)
    return block[0], block[1]


class GgufSource:
    """A GGUF file or the first of a split series, decoded to fp32 row by row while it is read."""

    def __init__(self, path: Path):
        self.path = path
        self.file = gguf.read_file(path)
        self.config = gguf_map.config_from_gguf(self.file)
        self.has_mtp = self.config.num_nextn_predict_layers > 0
        self._stored = gguf_map.stored_parameters(
            self.file, self.config, parameter_shapes(self.config, mtp=True)
        )

    def tensors(self) -> dict[str, tuple[str, tuple[int, ...], int]]:
        return {
            name: (tensor.type, tensor.shape, tensor.nbytes) for name, tensor in self.file.tensors.items()
        }

    def check(self, *, mtp: bool) -> Findings:
        findings = Findings()
        used = {"rope_freqs.weight", "output.weight"}
        for parameter, shape in parameter_shapes(self.config, mtp=mtp).items():
            stored = self._stored.get(parameter)
            if stored is None:
                findings.missing.append(gguf_map.gguf_name(parameter))
                continue
            used |= {tensor.name for tensor in stored.tensors}
            if stored.shape != shape:
                findings.wrong.append(
                    f"{stored.tensors[0].name} has shape {stored.shape}, the metadata ask for {shape}"
                )
        if not mtp:
            layers = range(self.config.num_hidden_layers, self.config.num_layers_with_mtp)
            used |= {
                name for name in self.file.tensors if name.startswith(tuple(f"blk.{n}." for n in layers))
            }
        findings.extra = sorted(set(self.file.tensors) - used)
        return findings

    def stored(self, parameter: str) -> gguf_map.Stored:
        """Where a parameter lies, and its numbers as fp32."""
        return self._stored[parameter]

    def nbytes(self, parameter: str) -> int:
        return sum(tensor.nbytes for tensor in self._stored[parameter].tensors)

    def floats(self, parameter: str, expert: int | None = None) -> Floats:
        stored = self._stored[parameter]
        return stored.read(0, stored.shape[0]) if expert is None else stored.read(expert, expert + 1)[0]

    def stored_types(self, parameter: str) -> list[str]:
        return [tensor.type for tensor in self._stored[parameter].tensors]

    def files(self) -> list[Path]:
        return sorted({tensor.path for tensor in self.file.tensors.values()})

    def fill(self, parameter: str, target: Tensor, expert: int | None = None) -> None:
        import torch

        if expert is not None:
            target.copy_(torch.from_numpy(self._stored[parameter].read(expert, expert + 1)[0]))
            return
        for begin, end, rows in _rows(self._stored[parameter]):
            target[begin:end].copy_(torch.from_numpy(np.ascontiguousarray(rows)))


def _rows(stored: gguf_map.Stored, at_most_bytes: int = 64 << 20) -> Iterator[tuple[int, int, Any]]:
    """(begin, end, fp32 rows) over the first axis, in pieces of about 64 MB where it can be cut."""
    count = stored.shape[0]
    row_bytes = 4 * int(np.prod(stored.shape[1:], dtype=np.int64))
    step = max(1, at_most_bytes // max(row_bytes, 1)) if stored.by_rows else count
    for begin in range(0, count, step):
        end = min(begin + step, count)
        yield begin, end, stored.read(begin, end)


def open_source(path: str | Path) -> Source:
    """Open a checkpoint folder, a GGUF file or an adapter folder (merged into its base while it is read).

    Raises ShoalError that says what is wrong with it.
    """
    path = Path(path)
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        from shoal.model.checkpoint.adapted import AdaptedSource, base_of

        return AdaptedSource(path, base_of(path))
    if path.is_dir():
        return SafetensorsSource(path)
    if path.suffix.lower() == ".gguf":
        return GgufSource(path)
    if not path.exists():
        raise ShoalError(f"{path} does not exist", hint="Give a checkpoint folder or a .gguf file.")
    safetensors_io.refuse_pickle(path)
    raise ShoalError(
        f"{path} is neither a checkpoint folder nor a .gguf file",
        hint="Give the folder that holds config.json.",
    )
