"""Muon for 2-D matrices and 3-D stacks of expert matrices, batched, in fp32.

`torch.optim.Muon` casts to bfloat16 (a hundred times slower than fp32 on a CPU without bf16 units) and refuses 3-D
tensors. Here all matrices of one shape, whatever tensor they live in, are orthogonalised by one batched product.

Legend: G matrices of a batch, M rows, N columns (M <= N: tall matrices are transposed on the way in).
Sources: Muon, Jordan et al. 2024; Polar Express, arXiv 2505.16932; NorMuon, arXiv 2510.05491; cautious weight
decay, arXiv 2510.12402.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# Five steps of Polar Express (safety factor 2e-2, cushion 2): x <- a x + (b A + c A A) x with A = x x^T.
POLAR_EXPRESS = (
    (8.15655, -22.48329, 15.87877),
    (4.04293, -2.80892, 0.50002),
    (3.89167, -2.77248, 0.50606),
    (3.28575, -2.36813, 0.46449),
    (2.34654, -1.70978, 0.42324),
)
MAX_BATCH_NUMBERS = 2**22  # matrices batched at once: 16 MB of fp32, so that a batch stays near the cache


@torch.no_grad()
def orthogonalise(x_GMN: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix of each: singular values go to about 1, singular vectors stay."""
    if x_GMN.size(-2) > x_GMN.size(-1):
        return orthogonalise(x_GMN.mT, steps).mT
    x_GMN = x_GMN / (1.01 * torch.linalg.vector_norm(x_GMN, dim=(-2, -1), keepdim=True) + 1e-7)
    for a, b, c in POLAR_EXPRESS[:steps]:
        gram_GMM = torch.bmm(x_GMN, x_GMN.mT)
        polynomial_GMM = torch.baddbmm(gram_GMM, gram_GMM, gram_GMM, beta=b, alpha=c)
        x_GMN = torch.baddbmm(x_GMN, polynomial_GMM, x_GMN, beta=a)
    return x_GMN


class _Batch:
    """Parameters whose matrices have one shape (transposed where tall), with their momentum and variance."""

    def __init__(self, parameters: Mapping[str, Tensor]):
        self.parameters = dict(parameters)
        first = next(iter(self.parameters.values()))
        columns = max(first.shape[-2:])
        self.counts = [p.numel() // (p.size(-1) * p.size(-2)) for p in self.parameters.values()]
        size = (sum(self.counts), min(first.shape[-2:]), columns)
        self.momentum_GMN = torch.zeros(size, dtype=torch.float32, device=first.device)
        self.variance_G1N = torch.zeros((size[0], 1, columns), dtype=torch.float32, device=first.device)
        ratios = [max(1.0, p.size(-2) / p.size(-1)) ** 0.5 for p in self.parameters.values()]
        self.scale_G11 = torch.tensor(ratios, device=first.device).repeat_interleave(
            torch.tensor(self.counts, device=first.device)
        )[:, None, None]

    @staticmethod
    def wide(tensor: Tensor) -> Tensor:
        """[..., rows, columns] as [G, M, N] with M <= N (a view)."""
        stack = tensor.reshape(-1, *tensor.shape[-2:])
        return stack.mT if stack.size(-2) > stack.size(-1) else stack


class Muon:
    """Momentum, orthogonalised: every matrix moves by `lr` in spectral norm, times sqrt(max(1, rows / columns)).

    `parameters`: name -> tensor of 2 or 3 dimensions. A parameter without a gradient counts as one with zeros.
    `beta2`: NorMuon's decay of the mean square per column of the wide form; 0 switches it off.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        lr: float,
        weight_decay: float = 0.0,
        beta2: float = 0.95,
        steps: int = 5,
    ):
        self.lr, self.weight_decay, self.beta2, self.steps = lr, weight_decay, beta2, steps
        self.batches: list[_Batch] = []
        self.updates = 0
        shapes: dict[tuple[int, ...], list[dict[str, Tensor]]] = {}
        for name, parameter in parameters.items():
            if parameter.ndim not in (2, 3):
                raise ValueError(
                    f"{name} has {parameter.ndim} dimensions; Muon takes matrices and stacks of them"
                )
            groups = shapes.setdefault(tuple(sorted(parameter.shape[-2:])), [{}])
            filled = sum(p.numel() for p in groups[-1].values())
            if groups[-1] and filled + parameter.numel() > MAX_BATCH_NUMBERS:
                groups.append({})
            groups[-1][name] = parameter
        self.batches = [_Batch(group) for groups in shapes.values() for group in groups]

    @torch.no_grad()
    def step(self, *, lr_scale: float = 1.0, momentum: float = 0.95) -> None:
        """One update with Nesterov momentum and cautious decay (only where it agrees with the update)."""
        lr = self.lr * lr_scale
        self.updates += 1
        for batch in self.batches:
            gradients = [
                batch.wide(torch.zeros_like(p) if p.grad is None else p.grad).float()
                for p in batch.parameters.values()
            ]
            gradient_GMN = torch.cat(gradients)
            batch.momentum_GMN.lerp_(gradient_GMN, 1 - momentum)
            update_GMN = orthogonalise(gradient_GMN.lerp_(batch.momentum_GMN, momentum), self.steps)
            if self.beta2:
                self._normalise(update_GMN, batch.variance_G1N)
            update_GMN.mul_(batch.scale_G11)
            for parameter, update in zip(
                batch.parameters.values(), update_GMN.split(batch.counts), strict=True
            ):
                weights = batch.wide(parameter)
                if self.weight_decay:
                    agrees = (update * weights) >= 0
                    weights.sub_(weights * agrees, alpha=lr * self.weight_decay)
                weights.sub_(update, alpha=lr)

    def _normalise(self, update_GMN: Tensor, variance_G1N: Tensor) -> None:
        """Give every column the same running mean square, keeping each matrix's Frobenius norm."""
        norm = torch.linalg.vector_norm(update_GMN, dim=(-2, -1), keepdim=True)
        variance_G1N.lerp_(update_GMN.square().mean(-2, keepdim=True), 1 - self.beta2)
        unbiased = variance_G1N / (1 - self.beta2**self.updates)
        update_GMN.mul_((unbiased + 1e-12).rsqrt_())
        update_GMN.mul_(norm / (torch.linalg.vector_norm(update_GMN, dim=(-2, -1), keepdim=True) + 1e-12))

    def state(self) -> dict[str, Tensor]:
        """What a resume needs, by parameter name (views; copy before the next step)."""
        tensors = {"updates": torch.tensor(self.updates)}
        for batch in self.batches:
            momenta = batch.momentum_GMN.split(batch.counts)
            variances = batch.variance_G1N.split(batch.counts)
            for name, momentum, variance in zip(batch.parameters, momenta, variances, strict=True):
                tensors[f"{name}.momentum"], tensors[f"{name}.variance"] = momentum, variance
        return tensors

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        for key, tensor in self.state().items():
            if key != "updates":
                tensor.copy_(tensors[key])
        self.updates = int(tensors["updates"])
