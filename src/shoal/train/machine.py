"""Fitting a run to the machine it is on: device, dtype, threads - by looking or measuring, not by guessing."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from shoal.errors import ShoalError


@dataclass(frozen=True)
class Machine:
    """What was chosen; saved with the state, kept on resume."""

    device: str
    dtype: str
    threads: int

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype for `torch.autocast`; None computes in fp32."""
        return torch.bfloat16 if self.dtype == "bfloat16" else None


def choose_device(wanted: str) -> str:
    """A device name for torch; "auto" is the first there is of cuda, mps, cpu. Raises ShoalError if it is absent."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if wanted == "auto":
        return "cuda" if cuda else "mps" if mps else "cpu"
    kind = wanted.partition(":")[0]
    if kind not in ("cpu", "cuda", "mps") or (kind == "cuda" and not cuda) or (kind == "mps" and not mps):
        raise ShoalError(
            f"this machine has no device {wanted!r} that PyTorch can use",
            hint="Use auto or cpu.",
        )
    return wanted


def choose(device: str, dtype: str, threads: int) -> Machine:
    """Settle "auto" and 0 and set the thread count. A dtype of "auto" is measured (`ops/probe.py`, cached)."""
    device = choose_device(device)
    if threads:
        torch.set_num_threads(threads)
    if dtype == "auto":
        from shoal.ops.probe import probe

        dtype = probe(device).best_dtype
    return Machine(device, dtype, torch.get_num_threads())
