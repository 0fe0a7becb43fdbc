"""The extension is there wherever a C++ compiler is, and its absence is said in one line."""

from __future__ import annotations

import shutil
import subprocess
import sys

from shoal.ops import native


def test_a_machine_with_a_compiler_has_the_extension() -> None:
    if any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        assert native.available, native.missing_reason
        assert native.core.kernels() == native.core.available_kernels()[0]


def test_without_it_one_line_says_what_is_lost() -> None:
    code = (
        "import sys; sys.modules['shoal.ops.native._core'] = None\n"
        "from shoal.ops import native\n"
        "assert native.core is None and not native.available\n"
        "print(native.missing_reason)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.count("\n") == 1 and "slower" in said


def test_an_instruction_set_can_be_forced() -> None:
    code = "from shoal.ops.native import core; print(core.kernels())"
    for name in native.core.available_kernels() if native.available else []:
        got = subprocess.run(
            [sys.executable, "-c", code], env={"SHOAL_KERNELS": name}, capture_output=True, text=True
        )
        assert got.stdout.strip() == name
