from __future__ import annotations

import platform

from shoal.ops.malloc import keep_freed_memory


def test_set_exactly_on_glibc() -> None:
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
