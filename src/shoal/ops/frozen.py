"""Frozen matrices kept in 8 or 4 bits beside which something is trained (QLoRA, 2305.14314): small while they wait,
multiplied out where they are used, in the backward pass once more.

Groups of 64 numbers share a scale in bf16: 8 bits are whole multiples of it (-127..127), 4 bits are NF4, sixteen values
that share out a normal distribution evenly (bitsandbytes' table), two in a byte. 1.03 and 0.53 bytes a number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

GROUP = 64
Bits = Literal[8, 4]
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@dataclass(frozen=True)
class Frozen:
    """A tensor in groups, in its own order, the last group padded with zeros."""

    bits: Bits
    shape: torch.Size
    dtype: torch.dtype
    """Of the tensor that it was, and is when it is multiplied out."""
    codes: Tensor
    """8 bits: int8 [G, 64]; 4 bits: uint8 [G, 32], the earlier of two numbers in the low half."""
    scale: Tensor
    """bf16 [G]: what a code of 1 (8 bits) or a value of 1 (4 bits) stands for."""

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scale.nbytes

    def dense(self) -> Tensor:
        """The numbers again."""
        if self.bits == 8:
            values = self.codes.to(self.dtype)
        else:  # a byte chooses two numbers at once
            pairs = _pairs(self.dtype, self.codes.device)
            values = pairs.index_select(0, self.codes.flatten().int()).view(self.dtype).view(-1, GROUP)
        values.mul_(self.scale.to(self.dtype)[:, None])
        return values.flatten()[: self.shape.numel()].view(self.shape)


@cache
def _pairs(dtype: torch.dtype, device: torch.device) -> Tensor:
    """[256]: for every byte its two values, in one number twice as wide."""
    table = torch.tensor(NF4, dtype=dtype, device=device)
    byte = torch.arange(256, device=device)
    both = torch.stack([table[byte & 15], table[byte >> 4]], 1)
    return both.view({2: torch.int32, 4: torch.int64}[dtype.itemsize])[:, 0]


@torch.no_grad()
def freeze(weight: Tensor, bits: Bits) -> Frozen:
    """The nearest codes, by group."""
    flat = weight.detach().flatten().float()
    groups = torch.nn.functional.pad(flat, (0, -flat.numel() % GROUP)).view(-1, GROUP)
    largest = groups.abs().amax(1).clamp_min(1e-30)
    scale = (largest / 127 if bits == 8 else largest).bfloat16()
    exact = groups / scale.float()[:, None]  # by the rounded scale: its rounding costs nothing
    if bits == 8:
        return Frozen(
            bits, weight.shape, weight.dtype, exact.round_().clamp_(-127, 127).to(torch.int8), scale
        )
    table = torch.tensor(NF4, device=flat.device)
    codes = torch.bucketize(exact, (table[1:] + table[:-1]) / 2).to(torch.uint8)
    return Frozen(bits, weight.shape, weight.dtype, codes[:, 0::2] | codes[:, 1::2] << 4, scale)


@contextlib.contextmanager
def made_again(*parts: tuple[Tensor, Frozen]) -> Iterator[None]:
    """What operations inside keep of these dense tensors for their backward pass is not kept but made again then."""
    known = {dense.untyped_storage().data_ptr(): frozen for dense, frozen in parts}

    def pack(saved: Tensor) -> object:
        frozen = known.get(saved.untyped_storage().data_ptr())
        if frozen is None or saved.dtype != frozen.dtype:
            return saved
        return frozen, saved.size(), saved.stride(), saved.storage_offset()

    def unpack(kept: object) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        assert isinstance(kept, tuple)
        frozen, *view = kept
        return frozen.dense().as_strided(*view)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
