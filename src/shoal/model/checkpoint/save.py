"""Write a network, or another checkpoint, as a folder that every engine reads, or as a GGUF file.

Tensors are converted one at a time as they are written. The old checkpoint stays until the new one is whole.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from shoal.errors import ShoalError
from shoal.files import atomic_folder, atomic_write
from shoal.model.checkpoint import gguf, gguf_map, names, safetensors_io
from shoal.model.checkpoint.safetensors_io import Entry
from shoal.model.checkpoint.shapes import parameter_shapes
from shoal.model.checkpoint.source import Source
from shoal.model.checkpoint.torch_arrays import NAMES, to_bytes
from shoal.model.config import ModelConfig
from shoal.ops.fp8 import BLOCK, quantize_blocks, scale_shape

if TYPE_CHECKING:
    from shoal.model.transformer import CausalLM

log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]
FolderDtype = Literal["float32", "bfloat16", "float16", "fp8"]
GgufDtype = Literal["float32", "bfloat16", "float16", "q8_0", "q4_0"]
_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp8": torch.bfloat16,
}
_GGUF = {
    "float32": ("F32", 0),
    "float16": ("F16", 1),
    "q4_0": ("Q4_0", 2),
    "q8_0": ("Q8_0", 7),
    "bfloat16": ("BF16", 32),
}


@dataclasses.dataclass(frozen=True)
class Weights:
    """What is to be written: a configuration and a way to get each of its parameters (or one expert of a stack)."""

    config: ModelConfig
    mtp: bool
    read: Callable[[str, int | None], Tensor]

    @classmethod
    def of_network(cls, network: CausalLM) -> Weights:
        state = network.state_dict()

        def read(parameter: str, expert: int | None) -> Tensor:
            return state[parameter] if expert is None else state[parameter][expert]

        return cls(network.config, names.has_mtp(state, network.config), read)

    @classmethod
    def of_source(cls, source: Source, *, mtp: bool) -> Weights:
        shapes = parameter_shapes(source.config, mtp=mtp)

        def read(parameter: str, expert: int | None) -> Tensor:
            shape = shapes[parameter] if expert is None else shapes[parameter][1:]
            target = torch.empty(shape, dtype=torch.float32)
            source.fill(parameter, target, expert)
            return target

        return cls(source.config, mtp, read)


def save_checkpoint(
    folder: str | Path,
    network: CausalLM,
    *,
    dtype: FolderDtype = "float32",
    tokenizer_files: Callable[[Path], None] | None = None,
    generation_config: Mapping[str, Any] | None = None,
    chat_template: str | None = None,
    receipt: Mapping[str, Any] | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a network as a Hugging Face folder, in the place of the checkpoint that was there.

    `tokenizer_files` is called with the new folder and writes into it. "fp8" stores the projections in 128x128 blocks
    and the rest in bf16. Raises ShoalError, with the old folder untouched, for a full disk and for a folder that holds
    something other than a checkpoint.
    """
    save_folder(
        folder,
        Weights.of_network(network),
        dtype=dtype,
        tokenizer_files=tokenizer_files,
        generation_config=generation_config,
        chat_template=chat_template,
        receipt=receipt,
        max_shard_bytes=max_shard_bytes,
    )


def save_folder(
    folder: str | Path,
    weights: Weights,
    *,
    dtype: FolderDtype,
    tokenizer_files: Callable[[Path], None] | None = None,
    generation_config: Mapping[str, Any] | None = None,
    chat_template: str | None = None,
    receipt: Mapping[str, Any] | None = None,
    max_shard_bytes: int = 5_000_000_000,
    progress: Progress | None = None,
) -> None:
    """`save_checkpoint` for weights from anywhere."""
    folder = Path(folder)
    refuse_other_folder(folder)
    config = weights.config
    with torch.no_grad(), atomic_folder(folder) as new:
        _write_json(new / "config.json", _config_values(weights, dtype))
        tokens = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
        tokens["pad_token_id"] = config.pad_token_id
        given = {key: value for key, value in tokens.items() if value is not None}
        _write_json(new / "generation_config.json", given | dict(generation_config or {}))
        if tokenizer_files:
            tokenizer_files(new)
        if chat_template is not None:
            (new / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
            _set_template(new / "tokenizer_config.json", chat_template)
        if receipt is not None:
            _write_json(new / "receipt.json", receipt)
        entries = list(_entries(weights, dtype))
        safetensors_io.write_folder(new, entries, max_shard_bytes=max_shard_bytes, progress=progress)


def refuse_other_folder(folder: Path) -> None:
    """Raise ShoalError when writing to `folder` would replace something that is no checkpoint."""
    if folder.is_file():
        raise ShoalError(f"{folder} is a file", hint="Choose another place for the checkpoint.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise ShoalError(
            f"{folder} holds other things than a checkpoint, and saving would replace them",
            hint="Choose a new folder.",
        )


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _set_template(path: Path, template: str) -> None:
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    _write_json(path, {**values, "chat_template": template})


def _config_values(weights: Weights, dtype: FolderDtype) -> dict[str, Any]:
    config = weights.config
    if not weights.mtp and config.num_nextn_predict_layers:
        config = dataclasses.replace(
            config, num_nextn_predict_layers=0
        )  # engines look for what the config promises
    stored = "bfloat16" if dtype == "fp8" else dtype
    values = config.to_dict() | {"dtype": stored, "torch_dtype": stored}
    if dtype == "fp8":
        values["quantization_config"] = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": list(BLOCK),
        }
    return values


def is_fp8(disk_name: str) -> bool:
    """Whether an FP8 checkpoint stores this tensor in blocks: the projections, but not embeddings, head or gates."""
    stem, _, kind = disk_name.rpartition(".")
    # kv_a_proj_with_mqa is the one projection whose name does not end so; eh_proj joins two norms and stays wide.
    return kind == "weight" and stem.endswith(("_proj", "_proj_with_mqa")) and not stem.endswith("eh_proj")


def _entries(weights: Weights, dtype: FolderDtype) -> Iterator[Entry]:
    """Every tensor on disk. Selection biases are always fp32: half precision would move choices."""
    config = weights.config
    for parameter, shape in parameter_shapes(config, mtp=weights.mtp).items():
        parts = names.disk_names(parameter, config)
        for number, name in enumerate(parts):
            expert = None if parts == [parameter] else number
            yield from _stored(
                name, parameter, expert, shape if expert is None else shape[1:], weights, dtype
            )
    if weights.mtp:
        shapes = parameter_shapes(config)
        for copy, parameter in names.mtp_copies(config).items():
            yield from _stored(copy, parameter, None, shapes[parameter], weights, dtype)


def _stored(
    name: str,
    parameter: str,
    expert: int | None,
    shape: tuple[int, ...],
    weights: Weights,
    dtype: FolderDtype,
) -> Iterator[Entry]:
    def read() -> Tensor:
        return weights.read(parameter, expert)

    if dtype == "fp8" and is_fp8(name):
        yield Entry(name, "F8_E4M3", shape, lambda: to_bytes(quantize_blocks(read())[0]))
        yield Entry(
            f"{name}_scale_inv", "F32", scale_shape(shape), lambda: to_bytes(quantize_blocks(read())[1])
        )
        return
    stored = torch.float32 if name.endswith("e_score_correction_bias") else _DTYPES[dtype]
    yield Entry(name, NAMES[stored], shape, lambda: to_bytes(read().to(stored)))


def save_gguf(
    path: str | Path,
    weights: Weights,
    *,
    dtype: GgufDtype = "bfloat16",
    name: str = "",
    tokenizer: Mapping[str, Any] | None = None,
    chat_template: str | None = None,
    receipt: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Write a GGUF file; returns notices for people (what could not be kept as asked).

    `tokenizer` is the tokenizer's own metadata (`Tokenizer.to_gguf`). Vectors and router matrices are fp32, as
    llama.cpp wants them; MLA's matrices per head are bf16 unless fp32 is asked (see `_type`); rows that do not
    fit blocks of 32 are fp16; with q4_0 embedding and head have 8 bits.
    Multi-token prediction layers are left out, because most readers of GGUF refuse a deepseek2 file that has them.
    """
    path = Path(path)
    config, (coded_as, file_type) = weights.config, _GGUF[dtype]
    metadata = gguf_map.metadata_from_config(config, name=name or path.stem, file_type=file_type)
    metadata |= {**_token_metadata(config), **_padded(tokenizer or {}, config.vocab_size)}
    if chat_template is not None:
        metadata["tokenizer.chat_template"] = chat_template
    if receipt is not None:
        metadata["shoal.receipt"] = json.dumps(receipt, ensure_ascii=False)
    entries, fallen = [], []
    for parameter, shape in parameter_shapes(config).items():
        for entry in _gguf_entries(parameter, shape, weights, coded_as):
            entries.append(entry)
            if entry.type == "F16" != coded_as:
                fallen.append(entry.name)
    if config.rope_scaling and config.rope_scaling["rope_type"] == "llama3":
        divisors = gguf_map.llama3_divisors(config)
        entries.append(gguf.GgufEntry("rope_freqs.weight", "F32", divisors.shape, lambda: [divisors]))
    with torch.no_grad(), atomic_write(path) as file:
        gguf.write(file, metadata, entries, progress)
    notices = []
    if fallen:
        notices.append(
            f"{len(fallen)} of {len(entries)} tensors are float16, their rows are no multiple of 32: "
            + ", ".join(fallen[:4])
            + (" ..." if len(fallen) > 4 else "")
        )
    if config.topk_method == "group_limited_greedy":
        notices.append(
            "llama.cpp chooses expert groups by their two best experts, DeepSeek-V2 by the best: tokens differ"
        )
    if config.n_routed_experts and not config.n_shared_experts:
        notices.append("llama.cpp does not load this file: it wants a shared expert")
    if weights.mtp:
        notices.append("the multi-token prediction layers are left out: most readers of GGUF refuse them")
    return notices


def _token_metadata(config: ModelConfig) -> dict[str, Any]:
    """The special ids of the configuration, for a model that is written without its tokenizer."""
    ids: dict[str, int | None] = {"bos": config.bos_token_id, "padding": config.pad_token_id}
    ids |= dict(zip(("eos", "eot"), config.eos_token_ids, strict=False))
    return {f"tokenizer.ggml.{name}_token_id": value for name, value in ids.items() if value is not None}


def _padded(tokenizer: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """The tokenizer's metadata with a name for every row of the embedding (llama.cpp counts them)."""
    values = dict(tokenizer)
    tokens = list(values.get("tokenizer.ggml.tokens", ()))
    if len(tokens) > vocab_size:
        raise ShoalError(
            f"the tokenizer has {len(tokens):,} tokens, the embedding only {vocab_size:,} rows",
            hint="Take the tokenizer that belongs to the weights.",
        )
    if tokens:
        unused = range(len(tokens), vocab_size)
        types = list(values.get("tokenizer.ggml.token_type") or [1] * len(tokens))
        values["tokenizer.ggml.tokens"] = tokens + [f"[PAD{number}]" for number in unused]
        values["tokenizer.ggml.token_type"] = types + [5] * len(unused)
    return values


def _gguf_entries(
    parameter: str, shape: tuple[int, ...], weights: Weights, coded_as: str
) -> Iterator[gguf.GgufEntry]:
    def array(expert: int | None = None) -> np.ndarray[Any, Any]:
        return weights.read(parameter, expert).detach().float().cpu().numpy()

    def part(number: int) -> Callable[[], Iterable[np.ndarray[Any, Any]]]:
        return lambda: [gguf_map.to_gguf(parameter, array(), weights.config)[number][1]]

    if len(shape) == 3:
        stacks = gguf_map.gguf_name(parameter)
        yield gguf.GgufEntry(
            stacks,
            _type(stacks, shape, coded_as),
            shape,
            lambda: (array(expert) for expert in range(shape[0])),
        )
        return
    # The shapes come from a stand-in of zero stride: nothing is read before its turn.
    stand_in = np.broadcast_to(np.float32(0), shape)
    for number, (name, example) in enumerate(gguf_map.to_gguf(parameter, stand_in, weights.config)):
        yield gguf.GgufEntry(name, _type(name, example.shape, coded_as), example.shape, part(number))


def _type(name: str, shape: tuple[int, ...], coded_as: str) -> str:
    if len(shape) == 1 or ".ffn_gate_inp." in name:
        return "F32"
    if coded_as == "Q4_0" and name in ("token_embd.weight", "output.weight"):
        coded_as = "Q8_0"  # four bits cost most there
    if coded_as in ("Q4_0", "Q8_0", "F16") and re.search(r"\.attn_[kv]_b\.", name):
        return "BF16"  # a matrix per head: llama.cpp's AMX kernels for the other three want one in all, and abort
    return coded_as if gguf.fits(coded_as, shape) else "F16"
