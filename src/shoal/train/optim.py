"""Which parameter is moved by which rule, and how fast: Muon for matrices, AdamW for everything else.

Learning rates are in the units of each rule: Muon's is the spectral norm of a step, AdamW's the size of a step per
number. Sources: nanochat's and modded-nanogpt's measured settings scaled to small batches (docs/training.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from shoal.train.muon import Muon
from shoal.train.recipe import OptimizerRecipe, ScheduleRecipe

GROUPS = ("embedding", "head", "router", "gains", "matrices")


def group_of(name: str, parameter: Tensor) -> str:
    """The group of a parameter, by its checkpoint name."""
    if name.endswith("embed_tokens.weight"):
        return "embedding"
    if name.endswith("lm_head.weight"):
        return "head"
    if name.endswith("mlp.gate.weight"):
        return "router"
    return "gains" if parameter.ndim < 2 else "matrices"


def group_parameters(named: Iterable[tuple[str, nn.Parameter]]) -> dict[str, dict[str, nn.Parameter]]:
    """group -> name -> parameter, of those that want a gradient; every one is in exactly one group."""
    groups: dict[str, dict[str, nn.Parameter]] = {group: {} for group in GROUPS}
    for name, parameter in named:
        if parameter.requires_grad:
            groups[group_of(name, parameter)][name] = parameter
    return groups


class Optimizer:
    """Both rules behind one `step`, with a state of named tensors (no pickle)."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], recipe: OptimizerRecipe):
        self.groups = group_parameters(named)
        adamw_groups = dict(self.groups)
        matrices = adamw_groups.pop("matrices") if recipe.matrices == "muon" else {}
        self.muon = Muon(
            matrices,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            beta2=recipe.normuon_beta2,
            steps=recipe.polar_steps,
        )
        rates = {
            "embedding": recipe.embedding_lr,
            "head": recipe.head_lr,
            "router": recipe.router_lr,
            "gains": recipe.gains_lr,
            "matrices": recipe.lr,
        }
        self._names = {p: name for group in adamw_groups.values() for name, p in group.items()}
        options = [
            {
                "params": list(group.values()),
                "lr": rates[key],
                "base_lr": rates[key],
                "weight_decay": recipe.weight_decay if key == "matrices" else recipe.adam_weight_decay,
            }
            for key, group in adamw_groups.items()
            if group
        ]
        self.adamw = None
        if options:
            fused = next(iter(self._names)).device.type in ("cpu", "cuda")
            first, second = recipe.adam_betas
            self.adamw = torch.optim.AdamW(options, betas=(first, second), eps=recipe.adam_eps, fused=fused)

    def parameters(self) -> list[nn.Parameter]:
        """All parameters that this optimizer moves, in a fixed order."""
        return [p for group in self.groups.values() for p in group.values()]

    def step(self, *, lr_scale: float, momentum: float) -> None:
        """Move every parameter by its gradient; `lr_scale` multiplies every learning rate."""
        self.muon.step(lr_scale=lr_scale, momentum=momentum)
        if self.adamw:
            for group in self.adamw.param_groups:
                group["lr"] = group["base_lr"] * lr_scale
            self.adamw.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """What a resume needs, by name."""
        tensors = {f"muon.{key}": tensor for key, tensor in self.muon.state().items()}
        if self.adamw:
            for parameter, name in self._names.items():
                for key, tensor in self.adamw.state[parameter].items():
                    tensors[f"adamw.{name}.{key}"] = tensor
        return tensors

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self.muon.load({key[5:]: tensor for key, tensor in tensors.items() if key.startswith("muon.")})
        if self.adamw:
            fused = self.adamw.defaults[
                "fused"
            ]  # its step counts live on the device, the plain rule's on the CPU
            for parameter, name in self._names.items():
                values = {
                    key: tensors[f"adamw.{name}.{key}"].to(
                        parameter.device if fused or key != "step" else "cpu", copy=True
                    )
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if f"adamw.{name}.{key}" in tensors
                }
                if values:
                    self.adamw.state[parameter] = values


def lr_scale(recipe: ScheduleRecipe, *, step: int, progress: float) -> float:
    """The factor on every learning rate: `step` updates done so far, `progress` 0..1 of the stage's tokens."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
    left = max(0.0, 1.0 - progress)
    final = recipe.final_lr_fraction
    if recipe.lr_schedule == "cosine":
        shape = final + (1 - final) * 0.5 * (1 + math.cos(math.pi * (1 - left)))
    elif recipe.lr_schedule == "linear":
        shape = final + (1 - final) * left
    else:
        down = min(1.0, left / recipe.warmdown_fraction) if recipe.warmdown_fraction else 1.0
        shape = final + (1 - final) * down
    return warm * shape


def momentum(recipe: ScheduleRecipe, *, step: int, lr_factor: float) -> float:
    """Muon's momentum: up from `momentum_start` to `momentum` over its warm-up, down to `momentum_end` at the end."""
    rise = min(1.0, step / recipe.momentum_warmup_steps) if recipe.momentum_warmup_steps else 1.0
    value = recipe.momentum_start + (recipe.momentum - recipe.momentum_start) * rise
    if rise == 1.0 and lr_factor < 1.0:
        value = recipe.momentum_end + (recipe.momentum - recipe.momentum_end) * lr_factor
    return value


def bias_rate(recipe: ScheduleRecipe, progress: float) -> float:
    """The router bias's step: large at first, then small, 0 at the end (DeepSeek-V3 report 4.2; RECIPES 2.3)."""
    if progress < recipe.bias_fast_fraction:
        return recipe.bias_rate_fast
    return recipe.bias_rate if progress < 1 - recipe.bias_still_fraction else 0.0
