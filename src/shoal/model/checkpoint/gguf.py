"""GGUF, the container: read (single or split) and written without torch; sizes are checked before they are believed.

Layout (little-endian): magic, version, counts; key-value metadata; a table of tensors (name, sizes with the fastest
first, type, offset); aligned data. What the names and keys mean for our networks stands in gguf_map.py. Decoding and
encoding of quantised blocks is the `gguf` package's.
"""

from __future__ import annotations

import functools
import math
import mmap
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import gguf.quants
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from shoal.errors import ShoalError
from shoal.model.checkpoint.safetensors_io import DAMAGED, refuse_pickle

MAGIC, VERSIONS, ALIGNMENT = b"GGUF", (2, 3), 32
_CHUNK_BYTES = 4 << 20
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies and how its numbers are coded. `shape` is row-major, as numpy's (GGUF stores it reversed)."""

    name: str
    type: str
    shape: tuple[int, ...]
    path: Path
    start: int
    nbytes: int

    def read(self, begin: int = 0, end: int | None = None) -> np.ndarray[Any, Any]:
        """Rows begin..end of the first axis, decoded to fp32."""
        kind = GGMLQuantizationType[self.type]
        per_block, block_bytes = GGML_QUANT_SIZES[kind]
        end = self.shape[0] if end is None else end
        shape = (end - begin, *self.shape[1:])
        row_blocks = math.prod(self.shape[1:]) // per_block if len(self.shape) > 1 else 1
        if len(self.shape) == 1 and (begin, end) != (0, self.shape[0]):
            raise ValueError("a vector is read whole")
        blocks = math.prod(shape) // per_block
        out = np.empty(math.prod(shape), np.float32)
        if blocks == 0:
            return out.reshape(shape)
        raw = np.memmap(
            self.path, np.uint8, "r", self.start + begin * row_blocks * block_bytes, blocks * block_bytes
        )
        step = max(1, _CHUNK_BYTES // block_bytes)
        for at in range(0, blocks, step):
            upto = min(at + step, blocks)
            chunk = raw[at * block_bytes : upto * block_bytes].reshape(1, -1)
            try:
                decoded = gguf.quants.dequantize(chunk, kind)
            except NotImplementedError as error:
                raise ShoalError(
                    f"{self.path.name}: tensor {self.name} is of type {self.type}, which cannot be decoded",
                    hint="Take the file in another quantisation (for example Q8_0 or Q4_K_M).",
                ) from error
            out[at * per_block : upto * per_block] = decoded.reshape(-1)
        return out.reshape(shape)

    def raw(self) -> np.ndarray[Any, Any]:
        """The coded bytes, mapped: uint8 [..., bytes of a row]."""
        return np.memmap(
            self.path,
            np.uint8,
            "r",
            self.start,
            (*self.shape[:-1], self.nbytes // math.prod(self.shape[:-1])),
        )


@dataclass(frozen=True)
class GgufFile:
    """One model: the first file's metadata and the tensors of all its parts."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


class _Cursor:
    """Reads values from a mapped file and never past its end."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.at, self.size = path, data, 0, len(data)

    def need(self, count: int, what: str) -> None:
        if count > self.size - self.at:
            raise ShoalError(
                f"{self.path}: has {self.size:,} bytes, {what} claims bytes up to {self.at + count:,}",
                hint=DAMAGED,
            )

    def scalar(self, form: str, what: str) -> Any:
        self.need(struct.calcsize(form), what)
        value = struct.unpack_from(form, self.data, self.at)[0]
        self.at += struct.calcsize(form)
        return value

    def string(self, what: str) -> str:
        length = self.scalar("<Q", what)
        self.need(length, what)
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8", "replace")

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind], what)
        if kind == _STRING:
            return self.string(what)
        if kind != _ARRAY or depth > 2:
            raise ShoalError(f"{self.path}: {what} has the unknown type {kind}", hint=DAMAGED)
        kind, count = self.scalar("<I", what), self.scalar("<Q", what)
        if kind in _SCALARS:
            form = f"<{count}{_SCALARS[kind][1]}"
            self.need(count * struct.calcsize(_SCALARS[kind]), what)
            values = struct.unpack_from(form, self.data, self.at)
            self.at += struct.calcsize(form)
            return list(values)
        self.need(count * 8, what)  # every element starts with a length of 8 bytes
        if kind == _STRING:
            return self.strings(count, what)
        return [self.value(kind, what, depth + 1) for _ in range(count)]

    def strings(self, count: int, what: str) -> list[str]:
        """`string`, `count` times: a vocabulary is most of a header."""
        data, at, found, length_at = self.data, self.at, [], struct.Struct("<Q").unpack_from
        for _ in range(count):
            length = length_at(data, at)[0] if at + 8 <= self.size else self.size
            end = at + 8 + length
            if end > self.size:
                self.at = at
                self.need(8 + length, what)
            found.append(data[at + 8 : end].decode("utf-8", "replace"))
            at = end
        self.at = at
        return found


def _read_part(path: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    try:
        refuse_pickle(path)
        with open(path, "rb") as file:
            if path.stat().st_size < 24:
                raise ShoalError(
                    f"{path}: has {path.stat().st_size} bytes, not even a header fits", hint=DAMAGED
                )
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(_Cursor(path, data))
    except OSError as error:
        raise ShoalError(f"cannot read {path}: {error.strerror or error}", hint="Check the path.") from error


def _parse(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    path = cursor.path
    if cursor.data[:4] != MAGIC:
        raise ShoalError(f"{path} is no GGUF file (it does not start with GGUF)", hint="Check the path.")
    cursor.at = 4
    version = cursor.scalar("<I", "the version")
    if version not in VERSIONS:
        raise ShoalError(
            f"{path}: GGUF version {version} is not supported (supported: 2 and 3, little-endian)",
            hint="Take a newer conversion of the model.",
        )
    tensor_count, key_count = cursor.scalar("<Q", "the header"), cursor.scalar("<Q", "the header")
    cursor.need(
        key_count * 13 + tensor_count * 32, f"a table of {key_count:,} keys and {tensor_count:,} tensors"
    )
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.string("a metadata key")
        if key in metadata:
            raise ShoalError(f"{path}: the metadata key {key!r} stands twice", hint=DAMAGED)
        kind = cursor.scalar("<I", key)
        metadata[key] = cursor.value(kind, f"the metadata key {key!r}")
    rows = []
    for _ in range(tensor_count):
        name = cursor.string("a tensor name")
        dims = cursor.scalar("<I", f"tensor {name}")
        if not 0 < dims <= 4:
            raise ShoalError(f"{path}: tensor {name} has {dims} dimensions", hint=DAMAGED)
        shape = tuple(cursor.scalar("<Q", f"tensor {name}") for _ in range(dims))[::-1]
        rows.append(
            (name, shape, cursor.scalar("<I", f"tensor {name}"), cursor.scalar("<Q", f"tensor {name}"))
        )
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise ShoalError(f"{path}: alignment {alignment!r} is not a power of two", hint=DAMAGED)
    start = -(-cursor.at // alignment) * alignment
    return metadata, _place(path, rows, start, cursor.size, alignment)


def _place(
    path: Path, rows: Sequence[tuple[str, tuple[int, ...], int, int]], start: int, size: int, alignment: int
) -> dict[str, GgufTensor]:
    tensors: dict[str, GgufTensor] = {}
    for name, shape, kind, offset in rows:
        try:
            type_name = GGMLQuantizationType(kind).name
            per_block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError) as error:
            raise ShoalError(
                f"{path}: tensor {name} has the unknown type {kind}",
                hint="Take the file in another quantisation, or update the gguf package.",
            ) from error
        if shape[-1] % per_block:
            raise ShoalError(
                f"{path}: rows of {shape[-1]} in tensor {name} do not fit {type_name}", hint=DAMAGED
            )
        nbytes = math.prod(shape) // per_block * block_bytes
        if offset % alignment or start + offset + nbytes > size:
            raise ShoalError(
                f"{path}: has {size:,} bytes, tensor {name} claims bytes up to {start + offset + nbytes:,}",
                hint=DAMAGED,
            )
        if name in tensors:
            raise ShoalError(f"{path}: tensor {name} stands twice", hint=DAMAGED)
        tensors[name] = GgufTensor(name, type_name, shape, path, start + offset, nbytes)
    at, before = 0, ""
    for tensor in sorted(tensors.values(), key=lambda t: t.start):
        if tensor.start < at:
            raise ShoalError(f"{path}: tensors {before} and {tensor.name} overlap", hint=DAMAGED)
        at, before = tensor.start + tensor.nbytes, tensor.name
    return tensors


def split_parts(path: Path) -> list[Path]:
    """All files of a `-00001-of-0000N` series (given any one of them); a file of its own otherwise."""
    match = _SPLIT.fullmatch(path.name)
    if not match:
        return [path]
    parts = [path.with_name(f"{match[1]}-{n:05d}-of-{match[3]}.gguf") for n in range(1, int(match[3]) + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise ShoalError(
            f"{path.name} is one of {len(parts)} files; missing: {', '.join(missing[:5])}",
            hint=f"Fetch the missing files into {path.parent}.",
        )
    return parts


def read_file(path: str | Path) -> GgufFile:
    """The header of a GGUF model, all parts of a split one. Raises ShoalError that names what is wrong and where.

    The last ones read are remembered as long as their files do not change: opening a model asks several times.
    """
    parts = split_parts(Path(path))
    try:
        states = [(status.st_size, status.st_mtime_ns, status.st_ino) for status in map(Path.stat, parts)]
    except OSError:
        states = []  # `_read` says what is wrong
    return _read(tuple(parts), tuple(states))


@functools.lru_cache(maxsize=2)
def _read(parts: tuple[Path, ...], states: tuple[tuple[int, int, int], ...]) -> GgufFile:
    metadata, tensors = _read_part(parts[0])
    for part in parts[1:]:
        for name, tensor in _read_part(part)[1].items():
            if name in tensors:
                raise ShoalError(f"{part.name}: tensor {name} stands in another part too", hint=DAMAGED)
            tensors[name] = tensor
    promised = metadata.get("split.tensors.count")
    if isinstance(promised, int) and promised != len(tensors):
        raise ShoalError(
            f"{parts[0]}: promises {promised} tensors, its parts hold {len(tensors)}", hint=DAMAGED
        )
    return GgufFile(parts[0], metadata, tensors)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata alone: sizes, tokenizer, chat template (of the first file of a split model)."""
    return read_file(path).metadata


# ---- writing


@dataclass(frozen=True)
class GgufEntry:
    """A tensor to write, coded as `type`; `data()` yields its fp32 rows, in pieces, when its turn comes."""

    name: str
    type: str
    shape: tuple[int, ...]
    data: Callable[[], Iterable[np.ndarray[Any, Any]]]

    @property
    def nbytes(self) -> int:
        per_block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[self.type]]
        return math.prod(self.shape) // per_block * block_bytes


def fits(type_name: str, shape: Sequence[int]) -> bool:
    """Whether rows of this length can be coded so (a quantised row is whole blocks)."""
    return shape[-1] % GGML_QUANT_SIZES[GGMLQuantizationType[type_name]][0] == 0


def _text(value: str) -> bytes:
    raw = value.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> tuple[int, bytes]:
    """(GGUF type, bytes). Whole numbers: uint32 alone, int32 in lists; other numbers: fp32. llama.cpp's choices."""
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int):
        return (4, struct.pack("<I", value)) if 0 <= value < 1 << 32 else (11, struct.pack("<q", value))
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, str):
        return _STRING, _text(value)
    values = list(value)
    if all(isinstance(item, str) for item in values):
        kind, raw = _STRING, b"".join(map(_text, values))
    elif all(isinstance(item, bool) for item in values):
        kind, raw = 7, struct.pack(f"<{len(values)}?", *values)
    elif all(isinstance(item, int) for item in values):
        kind, raw = 5, struct.pack(f"<{len(values)}i", *values)
    else:
        kind, raw = 6, struct.pack(f"<{len(values)}f", *values)
    return _ARRAY, struct.pack("<IQ", kind, len(values)) + raw


def _coded(entry: GgufEntry) -> Iterator[np.ndarray[Any, Any]]:
    """The tensor's bytes, a few rows at a time. Raises ShoalError for numbers too large for fp16."""
    kind = GGMLQuantizationType[entry.type]
    for piece in entry.data():
        rows = np.ascontiguousarray(piece, np.float32).reshape(-1, entry.shape[-1])
        step = max(1, _CHUNK_BYTES // (4 * rows.shape[-1]))
        for at in range(0, len(rows), step):
            part = rows[at : at + step]
            if entry.type == "F16" and part.size and np.abs(part).max() > np.finfo(np.float16).max:
                raise ShoalError(
                    f"tensor {entry.name} holds numbers too large for float16",
                    hint="Use --dtype bfloat16 or float32.",
                )
            yield gguf.quants.quantize(part, kind)


def write(
    file: BinaryIO,
    metadata: Mapping[str, Any],
    entries: Sequence[GgufEntry],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write one GGUF file (version 3); `progress` gets bytes done and bytes in all."""
    head = MAGIC + struct.pack("<IQQ", VERSIONS[-1], len(entries), len(metadata))
    for key, value in metadata.items():
        kind, raw = _value(value)
        head += _text(key) + struct.pack("<I", kind) + raw
    at = 0
    for entry in entries:
        head += _text(entry.name) + struct.pack(
            f"<I{len(entry.shape)}Q", len(entry.shape), *entry.shape[::-1]
        )
        head += struct.pack("<IQ", GGMLQuantizationType[entry.type].value, at)
        at += -(-entry.nbytes // ALIGNMENT) * ALIGNMENT
    file.write(head + b"\0" * (-len(head) % ALIGNMENT))
    done, total = 0, sum(entry.nbytes for entry in entries)
    for entry in entries:
        for chunk in _coded(entry):
            file.write(np.ascontiguousarray(chunk).tobytes())
        file.write(b"\0" * (-entry.nbytes % ALIGNMENT))
        done += entry.nbytes
        if progress:
            progress(done, total)
