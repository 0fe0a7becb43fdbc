"""Between torch tensors and the bytes of safetensors files, without a copy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shoal.model.checkpoint.safetensors_io import TensorInfo

_TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in _TORCH.items()}


def to_torch(info: TensorInfo) -> Tensor:
    """The stored tensor in its own dtype; mapped from the file, so copy it before keeping it."""
    tensor = torch.from_numpy(info.read())
    dtype = _TORCH[info.dtype]
    return tensor if tensor.dtype == dtype else tensor.view(dtype)


def to_bytes(tensor: Tensor) -> Any:
    """The tensor's bytes as a numpy array of uint8 (copied only where it is not contiguous or not on the CPU)."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy()
