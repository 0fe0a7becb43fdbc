"""The processes of one run: alone by default, many under torchrun. Sums of counts and gradients, nothing more.

Every rank reads the same stream of rows and takes its own share, and all sums go over all ranks, so that N ranks
compute what one rank computes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

_BUCKET_NUMBERS = 2**22  # gradients sent together: 16 MB of fp32


@dataclass(frozen=True)
class World:
    """This process's `rank` among `size`."""

    rank: int = 0
    size: int = 1

    @classmethod
    def from_environment(cls, device: torch.device) -> World:
        """The world that torchrun describes (RANK, WORLD_SIZE); alone without it. gloo on CPUs, NCCL on GPUs."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size > 1 and device.type == "cuda":
            torch.cuda.set_device(
                int(os.environ.get("LOCAL_RANK", "0"))
            )  # what "cuda" without an index then means
        if size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(int(os.environ.get("RANK", "0")), size)

    def close(self) -> None:
        """Leave the group."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()

    def sum_numbers(self, values: Mapping[str, float]) -> dict[str, float]:
        """Each number summed over all ranks (in float64: exact for counts)."""
        if self.size == 1:
            return dict(values)
        totals = torch.tensor(list(values.values()), dtype=torch.float64)
        if dist.get_backend() == "nccl":
            totals = totals.cuda()
        dist.all_reduce(totals)
        return dict(zip(values, totals.tolist(), strict=True))

    def sum_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Sum each tensor over all ranks, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum all gradients over all ranks, in buckets; a missing one counts as zeros."""
        if self.size == 1:
            return
        bucket: list[nn.Parameter] = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter)
            if sum(p.numel() for p in bucket) >= _BUCKET_NUMBERS:
                self._sum_bucket(bucket)
                bucket = []
        if bucket:
            self._sum_bucket(bucket)

    @staticmethod
    def _sum_bucket(parameters: list[nn.Parameter]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))
