"""Native kernels for CPUs (C++, compiled at install). Without a compiler the package works, slower, and says so."""

from __future__ import annotations

try:
    from shoal.ops.native import _core as core
except ImportError as _error:
    core = None  # type: ignore[assignment]
    available = False
    missing_reason = f"The native CPU kernels are not built ({_error}): answers come from PyTorch, several times slower."
else:
    available = True
    missing_reason = ""
