"""Balancing experts without a loss: the router's bias follows the load (DeepSeek-V3 report 2.1.2).

Once per optimizer step, from the counts of the whole step (all micro-batches, all ranks): overloaded experts lose
one step of bias, the others gain one; the change is re-centred so that the bias's mean cannot drift away from the
scores. The sign rule, not a proportional one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

BIAS_NAME = "e_score_correction_bias"


class RouterBalance:
    """The biases of a network's routers, by layer."""

    def __init__(self, network: nn.Module, layers: set[int] | None = None):
        self.biases: dict[int, Tensor] = {}
        for name, buffer in network.named_buffers():
            if name.endswith(BIAS_NAME):
                layer = int(name.split(".")[2])  # model.layers.<i>.mlp.gate.e_score_correction_bias
                if layers is None or layer in layers:
                    self.biases[layer] = buffer

    @torch.no_grad()
    def update(self, counts: Mapping[int, Tensor], rate: float) -> float:
        """Move every bias by `rate`; returns the step's MaxVio: largest load / mean load - 1, the worst layer's."""
        violations = []  # stay on the device: one wait for all layers, not one each
        for layer, bias in self.biases.items():
            load_E = counts[layer].float()
            mean = load_E.mean()
            violations.append((load_E.max() / mean - 1).masked_fill(mean == 0, 0))  # nothing was routed
            if rate:
                direction_E = torch.sign(mean - load_E)
                bias.add_(direction_E - direction_E.mean(), alpha=rate)
        return float(torch.stack(violations).max()) if violations else 0.0
