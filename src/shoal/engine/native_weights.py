"""Weights for the native kernels: which matrices a model needs, packed once, kept on the disk and read back at once.

A *plan* follows from the configuration and from how the file stores its tensors: one `Weight` for each packed matrix
(or stack of equal ones, or vector), with its place in one stretch of memory. What GGUF holds as Q8_0, Q4_0 or Q4_1 is
repacked without loss, Q4_K almost (its 6-bit scales become fp16 ones); every other quantisation goes to 8 bits, plain
floats to 8 or 4 bits or stay as they are, as `quant` says. No torch here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import mmap
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shoal.errors import ShoalError
from shoal.files import atomic_write, shoal_home
from shoal.model.checkpoint.names import EMBEDDING, HEAD
from shoal.model.checkpoint.shapes import parameter_shapes
from shoal.model.checkpoint.source import GgufSource, Source
from shoal.ops.native import core

log = logging.getLogger(__name__)
Quant = Literal["8", "4", "none"]
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

ROWS = 16
"""Rows of a block: packed matrices are whole blocks."""
_ALIGN = 64
_MAGIC = b"shoal native weights 1\n"
_DATA_AT = 4096  # of the data in a cache file behind its header, rounded up to this
_IN_MEMORY_BELOW = 1 << 30  # smaller models are read into huge pages (a quarter faster), larger ones mapped
_CACHE_BYTES = 20 << 30  # of all cache files together
_PIECE = 64 << 20  # bytes of fp32 rows that are packed at a time
_LOSSLESS = {"Q8_0": "Q8", "Q4_0": "Q4", "Q4_1": "Q4M", "Q4_K": "Q4M"}
_NAMES = {"Q8": "int8", "Q4": "int4", "Q4M": "int4", "BF16": "bfloat16", "F16": "float16"}
_PLAIN = ("F64", "F32", "F16", "BF16", "F8_E4M3")


@dataclass(frozen=True)
class Weight:
    """One packed matrix, a stack of equal ones, or (format "vector") plain floats; where it lies and what it is of."""

    name: str
    format: str
    rows: int
    cols: int
    count: int
    """Matrices in a stack: experts or heads."""
    parameters: tuple[str, ...]
    form: Literal["rows", "gate_up", "k_up", "v_up"]
    """rows: a parameter as it is. gate_up: blocks of two parameters alternating. k_up, v_up: kv_b_proj's two halves by
    head, the first transposed, as MLA's absorbed form multiplies with them."""
    start: int = 0

    @property
    def matrix_bytes(self) -> int:
        if self.format == "vector":
            return 4 * self.cols
        return -(-self.rows // ROWS) * core.block_bytes(core.Format[self.format], self.cols)

    @property
    def nbytes(self) -> int:
        return self.count * self.matrix_bytes


class Plan:
    """Every weight of a model by name ("embedding", "3.q_proj", ...), and how its numbers are got from a source.

    `mtp`: also the first multi-token prediction module, as the layer behind the network's."""

    def __init__(self, source: Source, quant: Quant | None = None, mtp: bool = False):
        self.source, self.config, self.mtp = source, source.config, mtp
        self.quant: Quant | None = quant or (None if isinstance(source, GgufSource) else "8")
        self.shapes = parameter_shapes(self.config, mtp=mtp)
        self.weights: dict[str, Weight] = {}
        self.nbytes = 0
        self._plan()

    # ---- what there is

    def _plan(self) -> None:
        config = self.config
        self._matrix("embedding", EMBEDDING, wide=True)
        if not config.tie_word_embeddings:
            self._matrix("head", HEAD, wide=True)
        self._vector("norm", "model.norm.weight")
        for layer in range(config.num_hidden_layers + self.mtp):
            prefix, at = f"model.layers.{layer}.", f"{layer}."
            attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
            if layer == config.num_hidden_layers:
                for name in ("enorm", "hnorm", "shared_head.norm"):
                    self._vector(at + name, f"{prefix}{name}.weight")
                self._matrix(f"{at}eh_proj", f"{prefix}eh_proj.weight")
            for parameter in self.shapes:
                if parameter.startswith((attention, f"{prefix}input", f"{prefix}post")) and (
                    "norm" in parameter or parameter.endswith(".bias")
                ):
                    self._vector(at + parameter.removeprefix(prefix).removeprefix("self_attn."), parameter)
            for name in (
                "q_proj",
                "q_a_proj",
                "k_proj",
                "v_proj",
                "kv_a_proj_with_mqa",
                "q_b_proj",
                "o_proj",
            ):
                if f"{attention}{name}.weight" in self.shapes:
                    self._matrix(at + name, f"{attention}{name}.weight")
            if config.uses_mla:
                self._latent_up(at, f"{attention}kv_b_proj.weight")
            if not config.is_moe_layer(layer):
                self._mlp(f"{at}dense", mlp, ".weight", 1)
                continue
            self._add(f"{at}router", "F32", self.shapes[f"{mlp}gate.weight"], (f"{mlp}gate.weight",))
            if config.topk_method == "noaux_tc":
                self._vector(f"{at}router_bias", f"{mlp}gate.e_score_correction_bias")
            self._mlp(f"{at}experts", f"{mlp}experts.", "", config.n_routed_experts or 0)
            if config.n_shared_experts:
                self._mlp(f"{at}dense", f"{mlp}shared_experts.", ".weight", 1)

    def _add(
        self,
        name: str,
        packed_as: str,
        shape: tuple[int, ...],
        parameters: tuple[str, ...],
        count: int = 1,
        form: Any = "rows",
    ) -> None:
        rows, cols = shape
        weight = Weight(name, packed_as, rows, cols, count, parameters, form, self.nbytes)
        self.weights[name] = weight
        self.nbytes += -(-weight.nbytes // _ALIGN) * _ALIGN

    def _vector(self, name: str, parameter: str) -> None:
        self._add(name, "vector", (1, *self.shapes[parameter]), (parameter,))

    def _matrix(self, name: str, parameter: str, wide: bool = False) -> None:
        self._add(name, self._format(parameter, wide), self.shapes[parameter], (parameter,))

    def _mlp(self, name: str, prefix: str, suffix: str, count: int) -> None:
        gate, up, down = (f"{prefix}{which}_proj{suffix}" for which in ("gate", "up", "down"))
        width, hidden = self.shapes[gate][-2:]
        formats = {self._format(gate), self._format(up)}
        both = formats.pop() if len(formats) == 1 else "Q8" if all(f[0] == "Q" for f in formats) else "F32"
        wide = (2 * -(-width // ROWS) * ROWS, hidden)
        self._add(f"{name}_gate_up", both, wide, (gate, up), count, "gate_up")
        self._add(f"{name}_down", self._format(down), (hidden, width), (down,), count)

    def _latent_up(self, at: str, parameter: str) -> None:
        config, latent = self.config, self.config.kv_lora_rank or 0
        heads, nope, value = config.num_attention_heads, config.qk_nope_head_dim, config.v_head_dim
        stored = self.source.stored_types(parameter)
        k_format, v_format = self._format(parameter, part=0), self._format(parameter, part=len(stored) - 1)
        if len(stored) == 1 and k_format in ("Q4", "Q4M"):
            k_format = "Q8"  # transposed, so made anew from floats
        self._add(f"{at}k_up", k_format, (latent, nope), (parameter,), heads, "k_up")
        self._add(f"{at}v_up", v_format, (value, latent), (parameter,), heads, "v_up")

    # ---- formats

    def _format(self, parameter: str, wide: bool = False, part: int = 0) -> str:
        """The packed format for a parameter; `wide`: the embedding and the head, never made less than 8 bits here."""
        stored = self.source.stored_types(parameter)[part]
        if stored in _PLAIN:
            if self.quant in ("8", "4"):
                return "Q4" if self.quant == "4" and not wide else "Q8"
            return stored if stored in ("BF16", "F16") else "F32"
        own = _LOSSLESS.get(stored, "Q8")
        return "Q4" if self.quant == "4" and own == "Q8" and not wide else own

    def summary(self) -> str:
        """What most of the bytes are: int8, int4, bfloat16, float16 or float32."""
        sizes: dict[str, int] = {}
        for weight in self.weights.values():
            kind = _NAMES.get(weight.format, "float32")
            sizes[kind] = sizes.get(kind, 0) + weight.nbytes
        return max(sizes, key=lambda kind: sizes[kind])

    def token_bytes(self) -> int:
        """How much of it one token reads: of an untied embedding nothing to speak of, of experts the chosen ones."""
        total = 0
        for weight in self.weights.values():
            if weight.name == "embedding" and "head" in self.weights:
                continue
            share = weight.nbytes
            if ".experts_" in weight.name:
                share = share * (self.config.num_experts_per_tok or 0) // weight.count
            total += share
        return total

    # ---- numbers

    def pack(self, into: Bytes, progress: Callable[[int, int], None] | None = None) -> None:
        """Fill memory of `nbytes`, several weights at a time."""

        def pack(weight: Weight) -> int:
            self.pack_one(weight, into, self.source.floats)
            return weight.nbytes

        done = 0
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for nbytes in pool.map(pack, self.weights.values()):
                done += nbytes
                if progress:
                    progress(done, self.nbytes)

    def pack_one(
        self, weight: Weight, into: Bytes, floats: Callable[..., Floats], coded: bool = True
    ) -> None:
        """Fill one weight's place. `floats(parameter, expert)` gives the numbers; `coded`: where the source holds
        them in blocks that can be taken over as they are, they are taken from there."""
        place = into[weight.start :][: weight.nbytes]
        if weight.format == "vector":
            place.view(np.float32)[:] = floats(weight.parameters[0])
            return
        stack = place.reshape(weight.count, -(-weight.rows // ROWS), -1)
        if weight.form in ("k_up", "v_up"):
            for blocks, packed in zip(stack, self._heads(weight, floats, coded), strict=True):
                blocks[:] = packed
            return
        stride = len(weight.parameters)
        for i, blocks in enumerate(stack):
            for turn, parameter in enumerate(weight.parameters):
                expert = i if len(self.shapes[parameter]) == 3 else None
                self._pack_rows(weight.format, parameter, expert, blocks[turn::stride], floats, coded)

    def _pack_rows(
        self,
        packed_as: str,
        parameter: str,
        expert: int | None,
        blocks: Any,
        floats: Callable[..., Floats],
        coded: bool,
    ) -> None:
        kind = core.Format[packed_as]
        if coded and (groups := self._groups(parameter, packed_as, expert)):
            for begin, part in groups:
                blocks[begin // ROWS :][: -(-len(part[0]) // ROWS)] = core.pack_groups(kind, *part)
            return
        rows = np.ascontiguousarray(floats(parameter, expert), np.float32)
        step = max(1, _PIECE // (4 * rows.shape[1]) // ROWS) * ROWS
        for begin in range(0, len(rows), step):
            piece = rows[begin : begin + step]
            blocks[begin // ROWS :][: -(-len(piece) // ROWS)] = core.pack(kind, piece)

    def _groups(
        self, parameter: str, wanted: str, expert: int | None
    ) -> Iterator[tuple[int, tuple[Any, ...]]] | None:
        """(first row, (integers, scales, minima)) piece by piece, where the file's own blocks fit the format."""
        if not isinstance(self.source, GgufSource):
            return None
        stored = self.source.stored(parameter)
        kind = stored.tensors[0].type
        if len(stored.tensors) != 1 or _LOSSLESS.get(kind) != wanted:
            return None
        raw = stored.tensors[0].raw()
        raw = raw if expert is None else raw[expert]
        step = max(1, _PIECE // (8 * raw.shape[1]) // ROWS) * ROWS
        rows = range(0, raw.shape[0], step)
        order = stored.order
        return (
            (
                begin,
                decode(
                    kind, raw[begin : begin + step] if order is None else raw[order[begin : begin + step]]
                ),
            )
            for begin in rows
        )

    def _heads(self, weight: Weight, floats: Callable[..., Floats], coded: bool) -> Iterator[Bytes]:
        """The packed half of kv_b_proj of every head."""
        kind, parameter, first = core.Format[weight.format], weight.parameters[0], weight.form == "k_up"
        if coded and isinstance(self.source, GgufSource):
            tensors = self.source.stored(parameter).tensors
            tensor = tensors[0 if first else -1]
            if len(tensors) == 2 and _LOSSLESS.get(tensor.type) == weight.format:
                for raw in tensor.raw().reshape(weight.count, weight.rows, -1):
                    yield core.pack_groups(kind, *decode(tensor.type, raw))
                return
        nope = self.config.qk_nope_head_dim
        for both in floats(parameter).reshape(weight.count, -1, self.config.kv_lora_rank or 1):
            yield core.pack(kind, np.ascontiguousarray(both[:nope].T if first else both[nope:], np.float32))


def decode(kind: str, raw: Bytes) -> tuple[Any, ...]:
    """(int8 [R, D], fp16 scales as uint16 [R, D/32], minima alike or None) of GGUF rows, uint8 [R, bytes of a row].

    Layouts are ggml's: a block is its scale(s), then 32 numbers; of 4-bit ones the low halves are the first 16.
    """
    rows = raw.shape[0]
    if kind == "Q4_K":
        return _decode_q4_k(np.ascontiguousarray(raw).reshape(-1, 144), rows)
    size, head = {"Q8_0": (34, 2), "Q4_0": (18, 2), "Q4_1": (20, 4)}[kind]
    blocks = np.ascontiguousarray(raw).reshape(rows, -1, size)
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.uint16)[..., 0]
    if kind == "Q8_0":
        return np.ascontiguousarray(blocks[..., head:]).view(np.int8).reshape(rows, -1), scales, None
    numbers = blocks[..., head:]
    q = np.concatenate([numbers & 15, numbers >> 4], -1).view(np.int8).reshape(rows, -1)
    minima = np.ascontiguousarray(blocks[..., 2:4]).view(np.uint16)[..., 0] if kind == "Q4_1" else None
    return q, scales, minima


def _decode_q4_k(blocks: Bytes, rows: int) -> tuple[Any, ...]:
    """256 numbers: d, dmin (fp16), eight 6-bit scales and eight minima in 12 bytes, then 4 runs of 32 bytes whose low
    halves are one group and whose high halves the next. value = d scale q - dmin minimum."""
    d, dmin = (np.ascontiguousarray(blocks[:, i : i + 2]).view(np.float16).astype(np.float32) for i in (0, 2))
    s = blocks[:, 4:16]
    low, high, mixed = s[:, :4], s[:, 4:8], s[:, 8:]
    scale = np.concatenate([low & 63, (mixed & 15) | (low >> 6 << 4)], 1)
    minimum = np.concatenate([high & 63, (mixed >> 4) | (high >> 6 << 4)], 1)
    runs = blocks[:, 16:].reshape(-1, 4, 1, 32)
    q = np.concatenate([runs & 15, runs >> 4], 2).view(np.int8).reshape(rows, -1)
    scales, minima = (d * scale).astype(np.float16), (-dmin * minimum).astype(np.float16)
    return q, scales.view(np.uint16).reshape(rows, -1), minima.view(np.uint16).reshape(rows, -1)


# ---- the packed weights, in memory and on the disk


class NativeWeights:
    """A plan and its filled memory."""

    def __init__(self, plan: Plan, memory: Bytes):
        self.plan, self.memory = plan, memory

    def __contains__(self, name: str) -> bool:
        return name in self.plan.weights

    def vector(self, name: str) -> Floats:
        weight = self.plan.weights[name]
        return self.memory[weight.start :][: weight.nbytes].view(np.float32)

    def packed(self, *names: str) -> tuple[Any, int, int, Bytes]:
        """(format, rows, cols, bytes) of one weight, or of neighbours that are one matrix (see `fused`)."""
        weights = [self.plan.weights[name] for name in names]
        first, last = weights[0], weights[-1]
        rows = sum(weight.rows for weight in weights)
        data = self.memory[first.start : last.start + last.nbytes]
        return core.Format[first.format], rows, first.cols, data

    def fused(self, *names: str) -> list[tuple[str, ...]]:
        """Neighbours grouped where they can be read as one matrix: same format, whole blocks."""
        groups: list[list[str]] = []
        for name in names:
            weight = self.plan.weights[name]
            before = self.plan.weights[groups[-1][-1]] if groups else None
            if (
                before is not None
                and before.format == weight.format
                and before.rows % ROWS == 0
                and before.start + before.nbytes == weight.start
            ):
                groups[-1].append(name)
            else:
                groups.append([name])
        return [tuple(group) for group in groups]

    def refresh(self, floats: dict[str, Floats]) -> None:
        """Take these parameters (names as on the network, experts stacked) in place of what is there."""
        plan = self.plan
        for weight in plan.weights.values():
            if not any(parameter in floats for parameter in weight.parameters):
                continue

            def read(parameter: str, expert: int | None = None, weight: Weight = weight) -> Floats:
                if parameter in floats:
                    return floats[parameter] if expert is None else floats[parameter][expert]
                return self._unpacked(weight, parameter, expert)

            plan.pack_one(weight, self.memory, read, coded=False)

    def _unpacked(self, weight: Weight, parameter: str, expert: int | None) -> Floats:
        """What one parameter of an alternating pair holds now."""
        start = weight.start + (expert or 0) * weight.matrix_bytes
        blocks = self.memory[start : start + weight.matrix_bytes].reshape(-(-weight.rows // ROWS), -1)
        own = np.ascontiguousarray(blocks[weight.parameters.index(parameter) :: len(weight.parameters)])
        rows = core.unpack(core.Format[weight.format], len(own) * ROWS, weight.cols, aligned(own.reshape(-1)))
        return rows[: self.plan.shapes[parameter][-2]]


def aligned(data: Bytes) -> Bytes:
    """The same bytes at an address that is a multiple of 64."""
    memory = core.Memory(len(data)).array()
    memory[:] = data
    return memory


def load(
    source: Source,
    quant: Quant | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    mtp: bool = False,
) -> NativeWeights:
    """The packed weights of a model, from the cache on the disk where they lie there.

    quant: "8" or "4" bits for weights stored as plain floats, "none" to keep them; None: 8 for safetensors, GGUF as
    it is. mtp: with the multi-token prediction module, where the files have it. Raises ShoalError for files that do
    not fit their configuration.
    """
    mtp = mtp and source.has_mtp
    findings = source.check(mtp=mtp)
    if problems := findings.problems(source.config, source.path):
        raise ShoalError(
            f"{source.path} does not fit its configuration:\n" + "\n".join(f"- {line}" for line in problems),
            hint="If the names look right, the download is incomplete: fetch it again.",
        )
    plan = Plan(source, quant, mtp)
    if not any(weight.format.startswith("Q") for weight in plan.weights.values()):
        return NativeWeights(plan, packed(plan, progress))  # nothing was quantised: nothing to keep
    header = _header(plan)
    path = cache_folder() / f"{hashlib.sha256(header).hexdigest()[:32]}.weights"
    memory = _read_cache(path, header, plan.nbytes)
    if memory is None:
        try:
            _write_cache(path, header, plan, progress)
            memory = _read_cache(path, header, plan.nbytes)
        except ShoalError as error:  # a full or read-only disk: work without
            log.warning("the packed weights are not kept: %s", error)
    if memory is None:
        memory = packed(plan, progress)
    if progress:
        progress(plan.nbytes, plan.nbytes)
    return NativeWeights(plan, memory)


def cache_folder() -> Path:
    return shoal_home() / "cache" / "native"


def packed(plan: Plan, progress: Callable[[int, int], None] | None = None) -> Bytes:
    """The plan's weights, packed into memory now."""
    memory = core.Memory(plan.nbytes).array()
    plan.pack(memory, progress)
    return memory


def _header(plan: Plan) -> bytes:
    """Everything the packed bytes follow from: the files' contents (by sample), the layout, the plan."""
    weights = [(w.name, w.format, w.rows, w.cols, w.count, w.start) for w in plan.weights.values()]
    about = {"files": _fingerprints(plan.source), "layout": core.LAYOUT, "weights": weights}
    return json.dumps(about, separators=(",", ":")).encode()


def _fingerprints(source: Source) -> list[str]:
    """Size, time of change and 64 samples of every weight file: no two versions of a model agree in all of them."""
    prints = []
    for path in source.files():
        status = path.stat()
        digest = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode())
        with open(path, "rb") as file:
            for i in range(64):
                file.seek(status.st_size * i // 64)
                digest.update(file.read(4096))
        prints.append(digest.hexdigest())
    return prints


def _checksum(data: Bytes) -> bytes:
    """Of sum and exclusive or, at the speed of memory: finds damage, not malice."""
    whole = data[: len(data) // 8 * 8].view(np.uint64)
    return hashlib.sha256(np.array([np.add.reduce(whole), np.bitwise_xor.reduce(whole)]).tobytes()).digest()[
        :8
    ]


def _data_start(header: bytes) -> int:
    return -(-(len(_MAGIC) + 8 + len(header)) // _DATA_AT) * _DATA_AT


def _read_cache(path: Path, header: bytes, nbytes: int) -> Bytes | None:
    """The data of a whole cache file; None when there is none. A damaged one is removed."""
    start = _data_start(header)
    try:
        with open(path, "rb") as file:
            sound = (
                os.fstat(file.fileno()).st_size == start + nbytes + 8
                and file.read(len(_MAGIC) + 8) == _MAGIC + len(header).to_bytes(8, "little")
                and file.read(len(header)) == header
            )
            if sound and nbytes <= _IN_MEMORY_BELOW:
                memory = core.Memory(nbytes).array()
                file.seek(start)
                sound = file.readinto(memory) == nbytes and file.read(8) == _checksum(memory)
            elif sound:
                memory = np.memmap(path, np.uint8, "c", start, (nbytes,))
    except OSError:
        return None
    if not sound:
        log.warning("%s is damaged: it is made anew", path)
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # used now: the least recently used go first
    return memory


def _write_cache(path: Path, header: bytes, plan: Plan, progress: Callable[[int, int], None] | None) -> None:
    """Pack into a file that appears at `path` when it is whole."""
    _make_room(path.parent, plan.nbytes)
    start = _data_start(header)
    with atomic_write(path) as file:
        file.write(_MAGIC + len(header).to_bytes(8, "little") + header)
        file.flush()
        size = start + plan.nbytes
        if hasattr(os, "posix_fallocate"):  # a full disk shows here, not as a fault in mapped memory
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        with mmap.mmap(file.fileno(), size) as mapped:
            whole = np.frombuffer(mapped, np.uint8)
            try:
                data = whole[start:]
                plan.pack(data, progress)
                check = _checksum(data)
            finally:
                del data, whole  # or the mapping cannot be closed
        file.seek(size)
        file.write(check)


def _make_room(folder: Path, nbytes: int) -> None:
    """Remove the least recently used files until a new one keeps the cache within its bounds."""
    if not folder.is_dir():
        return
    files = sorted(folder.glob("*.weights"), key=lambda file: file.stat().st_mtime)
    total = sum(file.stat().st_size for file in files)
    bound = min(_CACHE_BYTES, (shutil.disk_usage(folder).free + total) // 2)
    for file in files:
        if total + nbytes <= bound:
            return
        total -= file.stat().st_size
        file.unlink(missing_ok=True)
