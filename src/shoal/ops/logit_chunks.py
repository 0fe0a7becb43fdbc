"""Logits in chunks of tokens: the [T, V] of a batch never stand in memory at once.

Legend: T tokens, C tokens of a chunk, D hidden, V vocabulary. A matrix product reads all V x D weights of the head, so
a chunk is large; what follows reads and writes logits several times, so a CPU does that for a few tokens at a time,
while their logits are in its cache.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

_CHUNK_TOKENS = 512  # enough for a product on a CPU; more logits only leave the cache
_CHUNK_BYTES = 64 * 2**20  # of fp32 logits
_CHUNK_BYTES_GPU = 512 * 2**20  # a GPU wants few large kernels
_CACHED_BYTES = 2**20  # of fp32 logits, in a core's second-level cache


def logit_chunks(hidden_TD: Tensor, weight_VD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(tokens, their logits [C, V] in the operands' dtype), chunk by chunk; whoever gets them may overwrite them."""
    row_bytes = 4 * weight_VD.shape[0]
    size = max(64, _CHUNK_BYTES_GPU // row_bytes)
    if hidden_TD.device.type == "cpu":
        size = min(_CHUNK_TOKENS, max(64, _CHUNK_BYTES // row_bytes))
    for start in range(0, hidden_TD.shape[0], size):
        chunk = slice(start, min(start + size, hidden_TD.shape[0]))
        yield chunk, F.linear(hidden_TD[chunk], weight_VD)


def cached_rows(chunk: slice, logits_CV: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(tokens, their rows of a chunk's logits, a view), as many as a CPU's cache holds; elsewhere all at once."""
    size = len(logits_CV)
    if logits_CV.device.type == "cpu":
        size = max(1, _CACHED_BYTES // (4 * logits_CV.shape[1]))
    for start in range(0, len(logits_CV), size):
        rows = logits_CV[start : start + size]
        yield slice(chunk.start + start, chunk.start + start + len(rows)), rows
