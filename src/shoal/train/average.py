"""The mean of the weights over a stage's last steps: a smoother end than the last step alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """A running mean of what an optimizer moves, over the last `fraction` of a stage (0: off)."""

    def __init__(self, named: Mapping[str, nn.Parameter], fraction: float):
        self.named, self.fraction = named, fraction
        self.count = 0
        self.means: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, fraction_done: float) -> None:
        """Take in the weights as they are, once the last `fraction` has begun."""
        if not self.fraction or fraction_done < 1 - self.fraction:
            return
        self.count += 1
        for name, parameter in self.named.items():
            if name in self.means:
                self.means[name].lerp_(parameter, 1 / self.count)
            else:
                self.means[name] = parameter.detach().clone()

    @torch.no_grad()
    def apply(self) -> None:
        """Put the mean into the network."""
        for name, mean in self.means.items():
            self.named[name].copy_(mean)

    def load(self, means: Mapping[str, Tensor], count: int) -> None:
        """Go on from a saved state."""
        self.means = {name: mean.to(self.named[name].device).clone() for name, mean in means.items()}
        self.count = count
