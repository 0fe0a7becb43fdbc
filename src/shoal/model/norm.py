"""The norm of every family: root mean square, with a weight and without a bias."""

from __future__ import annotations

from torch import Tensor, nn

from shoal.ops.norm import rms_norm


class RMSNorm(nn.RMSNorm):
    """torch's module, computed by `ops.norm`."""

    def __init__(self, width: int, eps: float):
        super().__init__(width, eps=eps)
        self.epsilon = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.epsilon)
