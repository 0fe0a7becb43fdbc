"""An adapter folder seen as the model it makes of its base: weights merged in fp32, one tensor at a time, while read.

So whatever reads a model reads an adapter too: `shoal convert` merges it, `shoal eval` takes it as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shoal.errors import ShoalError
from shoal.model.checkpoint import adapter_files
from shoal.model.checkpoint.names import parameter_of
from shoal.model.checkpoint.source import Findings, open_source

if TYPE_CHECKING:
    from torch import Tensor


class AdaptedSource:
    """See `source.Source`. Raises ShoalError when the base is not there or is another model than the adapter's."""

    def __init__(self, folder: Path, base: Path):
        self.path, self.base_path = folder, base
        self.base = open_source(base)
        self.config, self.has_mtp = self.base.config, self.base.has_mtp
        adapter_files.check_base(folder, base)
        self.kind = adapter_files.read_config(folder).kind
        self._factors = adapter_files.read_factors(folder, self.config) if self.kind == "lora" else {}
        self._experts: dict[tuple[str, int], adapter_files.Floats] = {}
        if self.kind == "esft":
            for name, values in adapter_files.read_experts(folder, self.config).items():
                parameter, expert = parameter_of(name)
                assert expert is not None
                self._experts[parameter, expert] = values

    def tensors(self) -> dict[str, tuple[str, tuple[int, ...], int]]:
        return self.base.tensors()

    def check(self, *, mtp: bool) -> Findings:
        return self.base.check(mtp=mtp)

    def nbytes(self, parameter: str) -> int:
        return self.base.nbytes(parameter)

    def floats(self, parameter: str, expert: int | None = None) -> adapter_files.Floats:
        whole = self.base.floats(parameter, expert)
        if (f := self._factors.get(parameter.removesuffix(".weight"))) is not None:
            a, b = (f.a, f.b) if expert is None else (f.a[expert], f.b[expert])
            whole = whole + np.matmul(b, a) * np.float32(f.scale)
        for number, values in self._own(parameter, expert):
            if expert is not None:
                whole = values
            else:
                whole[number] = values
        return whole

    def stored_types(self, parameter: str) -> list[str]:
        changed = parameter.removesuffix(".weight") in self._factors or self._own(parameter, None)
        return ["F32"] if changed else self.base.stored_types(parameter)

    def files(self) -> list[Path]:
        return [*self.base.files(), self.path / adapter_files.WEIGHTS]

    def _own(self, parameter: str, expert: int | None) -> list[tuple[int, adapter_files.Floats]]:
        """Experts of a stack that the adapter replaces."""
        return [(e, v) for (name, e), v in self._experts.items() if name == parameter and expert in (None, e)]

    def fill(self, parameter: str, target: Tensor, expert: int | None = None) -> None:
        import torch

        if parameter.removesuffix(".weight") in self._factors or self._own(parameter, expert):
            target.copy_(torch.from_numpy(np.ascontiguousarray(self.floats(parameter, expert))))
        else:
            self.base.fill(parameter, target, expert)


def base_of(folder: Path) -> Path:
    """Where the base of an adapter lies. Raises ShoalError that names it when it is not there."""
    from shoal.model.checkpoint.load import resolve

    wanted = adapter_files.read_config(folder).base
    try:
        if not wanted:
            raise ShoalError("it does not say which")
        beside = folder / wanted  # a path relative to the adapter, for folders that move together
        base = resolve(beside if beside.exists() and beside.resolve() != folder.resolve() else wanted)
    except ShoalError as error:
        raise ShoalError(
            f"the adapter {folder} needs its base model {wanted or '(not named)'}: {error.message}",
            hint=f"Put the base there, or write its place as base_model_name_or_path into {adapter_files.CONFIG}.",
        ) from error
    if base.resolve() == folder.resolve():
        raise ShoalError(f"the adapter {folder} names itself as its base")
    return base
