"""`shoal convert`: between safetensors folders and GGUF files, and between number formats."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from shoal.errors import ShoalError, UsageError

if TYPE_CHECKING:
    from shoal.model.checkpoint.save import FolderDtype, GgufDtype

_FOLDER = ("float32", "bfloat16", "float16", "fp8")
_GGUF = ("float32", "bfloat16", "float16", "q8_0", "q4_0")
_OF_STORED = {
    "F32": "float32",
    "BF16": "bfloat16",
    "F16": "float16",
    "F8_E4M3": "fp8",
    "Q8_0": "q8_0",
    "Q4_0": "q4_0",
}
_SHORT = {"none": "float32", "f32": "float32", "bf16": "bfloat16", "f16": "float16"}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)


def command(
    source: str = typer.Argument(
        ..., metavar="SRC", help="A folder, a .gguf file, an installed model or a hub name."
    ),
    target: Path = typer.Argument(..., metavar="DST", help="A new folder; or a file ending in .gguf."),
    dtype: str | None = typer.Option(
        None,
        help="float32, bfloat16, float16, fp8 (folders), q8_0, q4_0 (GGUF). Default: as the source is stored.",
    ),
    quant: str | None = typer.Option(
        None,
        help="8: the 8-bit format of DST, q8_0 (GGUF) or fp8 (folders). 4: q4_0 (GGUF). q8_0, q4_0, f16, bf16: by"
        " name. none: float32. In place of --dtype.",
    ),
    force: bool = typer.Option(
        False, "--force", help="Replace what is at DST (a checkpoint or a .gguf file only)."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout."),
) -> None:
    """Convert a model: safetensors to GGUF, GGUF to safetensors, or to another number format; merge an adapter.

    An adapter folder is merged into its base in fp32, whatever the base is stored in; what the new format then rounds
    away is measured and said.

    Tokenizer, chat template and receipt come along. One tensor is in memory at a time. GGUF files open in llama.cpp
    and its relatives; folders open in transformers, vLLM and SGLang.

    Examples:

      shoal convert smollm2 smollm2-folder --dtype bfloat16

      shoal convert runs/nano/checkpoint nano.gguf --quant 8

      shoal convert DeepSeek-V2-Lite DeepSeek-V2-Lite-FP8 --dtype fp8

      shoal convert runs/mine/adapter merged --dtype bfloat16
    """
    to_gguf = target.suffix.lower() == ".gguf"
    allowed = _GGUF if to_gguf else _FOLDER
    if quant is not None:
        if dtype is not None:
            raise UsageError("--quant and --dtype both name a format", hint="Give one of them.")
        formats = (
            _SHORT
            | {"8": "q8_0" if to_gguf else "fp8", "4": "q4_0"}
            | dict(zip(allowed, allowed, strict=True))
        )
        if quant not in formats:
            raise UsageError(f"unknown --quant {quant}", hint=f"One of {', '.join(formats)}.")
        dtype = formats[quant]
    if dtype is not None and dtype not in allowed:
        kind = "a GGUF file" if to_gguf else "a folder"
        raise UsageError(
            f"--dtype {dtype} is not possible for {kind}", hint=f"Possible: {', '.join(allowed)}."
        )
    if target.exists() and not force:
        raise ShoalError(f"{target} exists", hint="Choose another name, or replace it with --force.")
    if to_gguf and target.is_dir():
        raise ShoalError(f"{target} is a folder", hint="Choose another name for the GGUF file.")

    from shoal.cli.progress import bytes_bar
    from shoal.model.checkpoint.load import inspect, is_adapter, read_side_files, resolve, weights_base
    from shoal.model.checkpoint.save import Weights, refuse_other_folder, save_folder, save_gguf
    from shoal.model.checkpoint.source import open_source

    path = resolve(source)
    if not to_gguf:
        refuse_other_folder(target)
    if path.resolve() == target.resolve() or path.resolve() in target.resolve().parents:
        raise UsageError("SRC and DST are the same place", hint="Choose a new DST.")
    info = inspect(path)
    if info.problems:
        raise ShoalError(f"{path} cannot be converted:\n" + "\n".join(f"- {line}" for line in info.problems))
    side, base = read_side_files(path), weights_base(path)
    dtype = dtype or _default(info.tensors, allowed)
    weights = Weights.of_source(open_source(path), mtp=info.has_mtp)
    notices: list[str] = []
    with bytes_bar(f"to {dtype}") as progress:
        if to_gguf:
            notices = save_gguf(
                target,
                weights,
                dtype=cast("GgufDtype", dtype),
                name=target.stem,
                tokenizer=_tokenizer_metadata(base, side.gguf_metadata),
                chat_template=side.chat_template,
                receipt=side.receipt,
                progress=progress,
            )
        else:
            save_folder(
                target,
                weights,
                dtype=cast("FolderDtype", dtype),
                tokenizer_files=_tokenizer_files(base, side.gguf_metadata),
                generation_config=side.generation_config,
                chat_template=side.chat_template,
                receipt=side.receipt,
                progress=progress,
            )
    if is_adapter(path):
        notices += _merged_notices(path, base, target)
    for notice in notices:
        typer.echo(f"note: {notice}", err=True)
    files = [target] if to_gguf else sorted(target.iterdir())
    size = sum(file.stat().st_size for file in files)
    result = {"path": str(target), "dtype": dtype, "size_bytes": size, "notices": notices}
    typer.echo(json.dumps(result) if as_json else f"{target}  {size / 1e6:,.1f} MB, {dtype}")


def _merged_notices(adapter: Path, base: Path, merged: Path) -> list[str]:
    """How far the written model is from the adapter's on some tokens, beside how far the adapter moved its base."""
    import torch

    from shoal.model.checkpoint.load import load_network
    from shoal.model.context import RowsContext

    found = []
    for path in (adapter, base, merged):
        network = load_network(path)
        ids = torch.arange(64) * (network.config.vocab_size // 64)
        with torch.no_grad():
            found.append(network.logits(network(ids, RowsContext(1, len(ids)))).float())
    wanted, before, written = found
    lost, moved = float((written - wanted).abs().max()), float((wanted - before).abs().max())
    text = f"merged: logits differ from the adapter's by {lost:.2g} at most; the adapter moved them by {moved:.2g}"
    if lost > 0.25 * moved:
        text += "; this format rounds much of that away: take a finer --dtype, or serve the adapter unmerged"
    return [text]


def _default(tensors: dict[str, tuple[str, tuple[int, ...], int]], allowed: tuple[str, ...]) -> str:
    """The format that holds most bytes of the source, if the target can have it; else float32, which loses nothing."""
    stored: Counter[str] = Counter()
    for dtype, _, nbytes in tensors.values():
        stored[dtype] += nbytes
    most = _OF_STORED.get(stored.most_common(1)[0][0], "float32") if stored else "float32"
    return most if most in allowed else "float32"


def _tokenizer_metadata(path: Path, metadata: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the new GGUF file says about tokens. Raises ShoalError for a tokenizer that GGUF has no name for."""
    if metadata is not None:
        return {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
    if not (path / "tokenizer.json").is_file():
        typer.echo("note: no tokenizer.json in the source: the GGUF file will have no tokenizer", err=True)
        return None
    from shoal.data.tokenizer import load_tokenizer

    return load_tokenizer(path).to_gguf()


def _tokenizer_files(path: Path, metadata: dict[str, Any] | None) -> Callable[[Path], None] | None:
    """Copies a folder's tokenizer files as they are, or writes those of a GGUF file's tokenizer."""
    if metadata is None:

        def copy(folder: Path) -> None:
            for name in _TOKENIZER_FILES:
                if (path / name).is_file():
                    shutil.copyfile(path / name, folder / name)

        return copy
    if "tokenizer.ggml.tokens" not in metadata:
        return None
    from shoal.data.tokenizer import tokenizer_from_gguf

    return tokenizer_from_gguf(metadata).save
