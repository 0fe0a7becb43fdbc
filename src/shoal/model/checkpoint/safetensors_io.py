"""safetensors files, read and written without torch; everything a header says is checked before it is believed.

Format: 8 bytes (little-endian length of the header), a JSON header `{name: {dtype, shape, data_offsets}}`, the data.
Data is mapped, one tensor at a time, so that reading a model needs no second copy of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from shoal.errors import ShoalError
from shoal.files import read_text

MAX_HEADER_BYTES = 100_000_000
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DAMAGED = "The file is incomplete or damaged: fetch it again."
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
PICKLE_HINT = (
    "Shoal never reads pickle files, because loading one runs the code inside it. Use the model's safetensors or GGUF "
    "files, or convert it on a machine you can lose, with transformers: "
    "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)."
)

# numpy has no bfloat16 and no FP8: these come as the unsigned integers that hold their bits.
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
    "F8_E8M0": np.dtype("u1"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: `nbytes` bytes from byte `start` of `path`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    nbytes: int

    def read(self) -> np.ndarray[Any, Any]:
        """The data, mapped copy-on-write (nothing is read before it is used); the mapping ends with the array."""
        if self.nbytes == 0:
            return np.zeros(self.shape, DTYPES[self.dtype])
        return np.memmap(self.path, DTYPES[self.dtype], "c", self.start, self.shape)


def _damaged(path: Path, what: str) -> ShoalError:
    return ShoalError(f"{path}: {what}", hint=DAMAGED)


def refuse_pickle(path: Path) -> None:
    """Raise ShoalError when a file's name or first bytes are those of a pickle. The pickle is not opened."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise ShoalError(f"{path} is a pickle file: it is not read", hint=PICKLE_HINT)
    with open(path, "rb") as file:
        head = file.read(4)
    if head[:4] == b"PK\x03\x04" or (
        head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    ):
        # A safetensors header of 0x..0280 bytes would look like this too; its JSON starts at byte 8 then.
        with open(path, "rb") as file:
            if file.read(9)[8:] != b"{":
                raise ShoalError(
                    f"{path} is a pickle (whatever its name says): it is not read", hint=PICKLE_HINT
                )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name stands twice")
    return values


def read_header(path: str | Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors and the free metadata of one file. Raises ShoalError that names what the file has and claims."""
    path = Path(path)
    try:
        size = path.stat().st_size
        refuse_pickle(path)
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                claim = f"its header claims {length + 8:,} bytes" if size >= 8 else "not even a header fits"
                raise _damaged(path, f"has {size:,} bytes, {claim}")
            if length > MAX_HEADER_BYTES:
                raise _damaged(
                    path, f"header of {length:,} bytes, more than the {MAX_HEADER_BYTES:,} allowed"
                )
            raw = file.read(length)
    except OSError as error:
        raise ShoalError(f"cannot read {path}: {error.strerror or error}", hint="Check the path.") from error
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
        if not isinstance(header, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"the header is not valid JSON ({error})") from error
    metadata = header.pop("__metadata__", None) or {}
    tensors = {name: _entry(path, name, values, 8 + length, size) for name, values in header.items()}
    _check_layout(path, list(tensors.values()), 8 + length, size)
    return tensors, {str(k): str(v) for k, v in metadata.items()} if isinstance(metadata, dict) else {}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _entry(path: Path, name: str, values: Any, data_start: int, size: int) -> TensorInfo:
    dtype = values.get("dtype") if isinstance(values, dict) else None
    shape = values.get("shape") if isinstance(values, dict) else None
    offsets = values.get("data_offsets") if isinstance(values, dict) else None
    if dtype not in DTYPES:
        raise ShoalError(
            f"{path}: tensor {name} has dtype {dtype!r}, which Shoal does not know",
            hint=f"Known: {', '.join(DTYPES)}. If the file should be one of these, fetch it again.",
        )
    if not isinstance(shape, list) or not all(map(_is_count, shape)) or len(shape) > 16:
        raise _damaged(path, f"tensor {name} has the shape {str(shape)[:80]}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise _damaged(path, f"tensor {name} has the offsets {str(offsets)[:80]}")
    begin, end = offsets
    if end > size - data_start:
        raise _damaged(path, f"has {size:,} bytes, tensor {name} claims bytes up to {data_start + end:,}")
    needed = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != needed:
        raise _damaged(
            path, f"tensor {name} of shape {shape} needs {needed:,} bytes, its offsets give {end - begin:,}"
        )
    return TensorInfo(name, dtype, tuple(shape), path, data_start + begin, needed)


def _check_layout(path: Path, tensors: list[TensorInfo], data_start: int, size: int) -> None:
    """The tensors fill the file, one after the other: no overlap, no hole where something could hide."""
    at, before = data_start, ""
    for tensor in sorted(tensors, key=lambda t: (t.start, t.nbytes)):
        if tensor.start < at:
            raise _damaged(path, f"tensors {before} and {tensor.name} overlap")
        if tensor.start > at:
            raise _damaged(
                path, f"{tensor.start - at:,} bytes before tensor {tensor.name} belong to no tensor"
            )
        at, before = tensor.start + tensor.nbytes, tensor.name
    if at != size:
        raise _damaged(path, f"has {size:,} bytes, its tensors end at {at:,}")


def weight_files(folder: str | Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, by its index where it has one.

    Raises ShoalError naming a shard that is not there, or saying why the files found are not read.
    """
    folder = Path(folder)
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return [folder / name for name in sorted(set(_weight_map(folder / INDEX).values()))]
    found = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter_"))
    if found:
        return found
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in PICKLE_SUFFIXES)
    if pickles:
        raise ShoalError(
            f"{folder} holds only pickle files ({', '.join(pickles[:3])}): they are not read",
            hint=PICKLE_HINT,
        )
    raise ShoalError(
        f"no weights in {folder}",
        hint="A checkpoint folder holds model.safetensors or *.gguf beside config.json.",
    )


def _weight_map(path: Path) -> dict[str, str]:
    try:
        shards = json.loads(read_text(path)).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ValueError("no weight_map")
    except (ValueError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"not a valid index ({error})") from error
    for name in set(map(str, shards.values())):
        if Path(name).name != name or name in ("", ".", ".."):
            raise ShoalError(
                f"{path} names the shard {name!r}, outside its folder", hint="Fetch the model again."
            )
        if not (path.parent / name).is_file():
            raise ShoalError(
                f"{path} names the shard {name}, which is not there", hint="Fetch the missing file."
            )
    return {str(name): str(shard) for name, shard in shards.items()}


def read_folder(folder: str | Path) -> dict[str, TensorInfo]:
    """Every tensor of a checkpoint folder; headers only. Raises ShoalError as `read_header` and `weight_files` do."""
    folder = Path(folder)
    files = weight_files(folder)
    tensors: dict[str, TensorInfo] = {}
    for path in files:
        for name, info in read_header(path)[0].items():
            if name in tensors:
                raise ShoalError(
                    f"tensor {name} stands in {tensors[name].path.name} and in {path.name}",
                    hint="The folder mixes files of two models; keep one set.",
                )
            tensors[name] = info
    if len(files) > 1 and (folder / INDEX).is_file():
        lost = [
            f"{name} ({shard})" for name, shard in _weight_map(folder / INDEX).items() if name not in tensors
        ]
        if lost:
            raise ShoalError(
                f"{folder / INDEX} promises tensors that the shards lack: {', '.join(lost[:5])}", hint=DAMAGED
            )
    return tensors


@dataclass(frozen=True)
class Entry:
    """A tensor to write: `data()` yields its bytes when its turn comes, so that only one is in memory at a time."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Callable[[], Any]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def write_file(
    file: BinaryIO,
    entries: Iterable[Entry],
    metadata: Mapping[str, str] | None = None,
    written: Callable[[int], None] | None = None,
) -> None:
    """Write one safetensors file. Widest dtypes come first, which keeps every tensor aligned.

    `written` is called with the size of each tensor that is done.
    """
    ordered = sorted(entries, key=lambda e: (-DTYPES[e.dtype].itemsize, e.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    at = 0
    for entry in ordered:
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [at, at + entry.nbytes],
        }
        at += entry.nbytes
    raw = json.dumps(header, separators=(",", ":")).encode("utf-8")
    raw += b" " * (-len(raw) % 8)
    file.write(len(raw).to_bytes(8, "little") + raw)
    for entry in ordered:
        data = memoryview(entry.data()).cast("B")
        assert data.nbytes == entry.nbytes, entry.name
        file.write(data)
        if written:
            written(entry.nbytes)


def write_folder(
    folder: Path,
    entries: Sequence[Entry],
    *,
    max_shard_bytes: int = 5_000_000_000,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `model.safetensors`, or shards with an index when the whole is larger than `max_shard_bytes`."""
    shards: list[list[Entry]] = [[]]
    filled = 0
    for entry in entries:
        if shards[-1] and filled + entry.nbytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += entry.nbytes
    done, total = 0, sum(entry.nbytes for entry in entries)

    def written(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress:
            progress(done, total)

    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= {entry.name: name for entry in shard}
        with open(folder / name, "wb") as file:
            write_file(file, shard, written=written)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
