"""Native kernels for CPUs (C++, compiled at install). Without a compiler the package works, slower, and says so."""

from __future__ import annotations

import importlib
from typing import Any

core: Any = None
available, missing_reason = True, ""
try:
    core = importlib.import_module("shoal.ops.native._core")
except ImportError as _error:
    available = False
    missing_reason = (
        f"The native CPU kernels are not built ({_error}): answers come from PyTorch, several times slower."
    )
