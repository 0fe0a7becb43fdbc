"""Muon against a plain reference, batched or not, and its state."""

from __future__ import annotations

import torch

from shoal.train import muon as muon_file
from shoal.train.muon import Muon, orthogonalise


def reference_step(weight, gradient, momentum, variance, *, lr, decay, beta, beta2, updates):
    """One matrix, tall or wide, step by step."""
    momentum += (1 - beta) * (gradient - momentum)
    x = gradient + beta * (momentum - gradient)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / (1.01 * x.norm() + 1e-7)
    for a, b, c in muon_file.POLAR_EXPRESS:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    norm = x.norm()
    variance += (1 - beta2) * (x.square().mean(0) - variance)
    x = x / (variance / (1 - beta2**updates) + 1e-12).sqrt()
    x = x * norm / x.norm()
    if tall:
        x = x.T
    x = x * max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
    weight = weight - lr * decay * weight * (x * weight >= 0)
    return weight - lr * x


def test_singular_values_become_about_one_and_vectors_stay():
    torch.manual_seed(0)
    for shape in ((3, 16, 40), (3, 40, 16), (1, 24, 48)):
        x = torch.randn(shape)
        u, _, v = torch.linalg.svd(x, full_matrices=False)
        y = orthogonalise(x)
        assert y.shape == x.shape
        assert torch.linalg.svdvals(y).sub(1).abs().max() < 0.2
        inner = u.mT @ y @ v.mT  # diagonal in the old basis
        assert (inner - torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-3


def test_stacks_tall_and_wide_matrices_step_as_each_alone(monkeypatch):
    # several batches of one shape too
    monkeypatch.setattr(muon_file, "MAX_BATCH_NUMBERS", 600)
    torch.manual_seed(1)
    shapes = {"experts": (4, 8, 12), "down": (4, 12, 8), "tall": (12, 8), "wide": (8, 12), "other": (6, 6)}
    parameters = {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
    plain = {
        name: [
            [m.clone(), torch.zeros_like(m), torch.zeros(max(m.shape))]
            for m in p.detach().view(-1, *p.shape[-2:])
        ]
        for name, p in parameters.items()
    }
    optimizer = Muon(parameters, lr=0.1, weight_decay=0.5)
    assert len(optimizer.batches) >= 3
    for step in range(1, 4):
        for p in parameters.values():
            p.grad = torch.randn_like(p)
        for name, p in parameters.items():
            gradients = p.grad.view(-1, *p.shape[-2:])
            for entry, gradient in zip(plain[name], gradients, strict=True):
                entry[0] = reference_step(
                    *[entry[0], gradient, entry[1], entry[2]],
                    **{"lr": 0.1 * 0.5, "decay": 0.5, "beta": 0.9, "beta2": 0.95, "updates": step},
                )
        optimizer.step(lr_scale=0.5, momentum=0.9)
    for name, p in parameters.items():
        want = torch.stack([entry[0] for entry in plain[name]]).view_as(p)
        torch.testing.assert_close(p.detach(), want, rtol=1e-3, atol=1e-4, msg=name)


def test_a_saved_optimizer_goes_on_as_if_never_stopped():
    torch.manual_seed(2)
    start = {"a": torch.randn(4, 8, 12), "b": torch.randn(12, 8)}
    gradients = [{name: torch.randn_like(value) for name, value in start.items()} for _ in range(4)]

    def run(stop_at: int | None):
        parameters = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
        optimizer = Muon(parameters, lr=0.1)
        for step, gradient in enumerate(gradients):
            if step == stop_at:
                saved = {name: value.clone() for name, value in optimizer.state().items()}
                optimizer = Muon(parameters, lr=0.1)
                optimizer.load(saved)
            for name, p in parameters.items():
                p.grad = gradient[name]
            optimizer.step()
        return parameters

    whole, resumed = run(None), run(2)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
