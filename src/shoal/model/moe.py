"""Feed-forward layers: the dense SwiGLU, and DeepSeekMoE (2401.06066) with the routers of DeepSeek-V2 and -V3.

Legend: T tokens, D hidden, E experts, K experts per token, G expert groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.model.config import ModelConfig
from shoal.model.context import TokenContext
from shoal.ops.experts import experts


class DenseMLP(nn.Module):
    """SwiGLU: down(silu(gate x) * up x)."""

    def __init__(self, config: ModelConfig, width: int):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, config.hidden_size, bias=False)

    def forward(self, x_TD: Tensor, context: TokenContext) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_TD)) * self.up_proj(x_TD))


def _best_in_group(choice_TGE: Tensor) -> Tensor:
    return choice_TGE.amax(-1)  # DeepSeek-V2


def _two_best_in_group(choice_TGE: Tensor) -> Tensor:
    return choice_TGE.topk(2, -1).values.sum(-1)  # DeepSeek-V3


class Router(nn.Module):
    """Scores every expert in fp32 and picks K of them (DeepSeek-V3, section 2.1.2).

    `weight` is the gate, [E, D]. `e_score_correction_bias` [E] (noaux_tc only) takes part in the selection and not
    in the weights; it is a buffer, stays fp32 whatever the network is cast to, and is moved by the trainer.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        experts_, self.experts_per_token = config.n_routed_experts or 0, config.num_experts_per_tok or 0
        self.groups, self.kept_groups = config.n_group, config.topk_group
        self.normalise, self.scaling_factor = config.norm_topk_prob, config.routed_scaling_factor
        self.score: Callable[[Tensor], Tensor] = (
            torch.sigmoid if config.scoring_func == "sigmoid" else _softmax_over_experts
        )
        self.group_score = _two_best_in_group if config.topk_method == "noaux_tc" else _best_in_group
        self.group_limited = config.topk_method != "greedy" and self.kept_groups < self.groups
        self.weight = nn.Parameter(torch.empty(experts_, config.hidden_size))
        nn.init.normal_(self.weight, std=config.initializer_range)
        bias = torch.zeros(experts_, dtype=torch.float32) if config.topk_method == "noaux_tc" else None
        self.register_buffer("e_score_correction_bias", bias)
        self.e_score_correction_bias: Tensor | None

    def _apply(self, fn: Any, recurse: bool = True) -> Router:
        bias = self.e_score_correction_bias
        super()._apply(fn, recurse)
        moved = self.e_score_correction_bias
        if bias is not None and moved is not None and moved.dtype != torch.float32:
            self.e_score_correction_bias = bias.to(device=moved.device, dtype=torch.float32)
        return self

    def forward(self, x_TD: Tensor, ids_TK: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """-> (expert ids [T, K], weights [T, K] fp32, scores [T, E] fp32 without the bias). `ids_TK`: given, not
        chosen."""
        scores_TE = self.score(F.linear(x_TD.float(), self.weight.float()))
        if ids_TK is None:
            ids_TK = self._choose(scores_TE.detach())
        weights_TK = scores_TE.gather(-1, ids_TK)
        if self.normalise:
            weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
        return ids_TK, weights_TK * self.scaling_factor, scores_TE

    def _choose(self, choice_TE: Tensor) -> Tensor:
        if self.e_score_correction_bias is not None:
            choice_TE = choice_TE + self.e_score_correction_bias
        if self.group_limited:
            choice_TE = self._within_best_groups(choice_TE)
        return choice_TE.topk(self.experts_per_token, -1, sorted=False).indices

    def _within_best_groups(self, choice_TE: Tensor) -> Tensor:
        """-inf for experts outside the best `topk_group` groups (not 0: biased scores may be negative)."""
        choice_TGE = choice_TE.unflatten(-1, (self.groups, -1))
        best = self.group_score(choice_TGE).topk(self.kept_groups, -1, sorted=False).indices
        dropped_TG = torch.ones(choice_TGE.shape[:2], dtype=torch.bool, device=best.device).scatter_(
            -1, best, False
        )
        return choice_TGE.masked_fill(dropped_TG[..., None], -torch.inf).flatten(1)


def _softmax_over_experts(logits_TE: Tensor) -> Tensor:
    return logits_TE.softmax(-1)


class RoutedExperts(nn.Module):
    """E SwiGLU networks as three stacks [E, out, in]. On disk they are one tensor per expert (model/checkpoint)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        count, width, hidden = (
            config.n_routed_experts or 0,
            config.moe_intermediate_size or 0,
            config.hidden_size,
        )
        self.gate_proj = nn.Parameter(torch.empty(count, width, hidden))
        self.up_proj = nn.Parameter(torch.empty(count, width, hidden))
        self.down_proj = nn.Parameter(torch.empty(count, hidden, width))
        for stack in self.parameters():
            nn.init.normal_(stack, std=config.initializer_range)

    def forward(self, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        return experts(x_TD, ids_TK, weights_TK, self.gate_proj, self.up_proj, self.down_proj)


class MixtureOfExperts(nn.Module):
    """sum of the chosen experts' weighted outputs, plus the shared experts (one wider SwiGLU, never gated)."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.gate = Router(config)
        self.experts = RoutedExperts(config)
        self.shared_experts: DenseMLP | None = None
        if config.n_shared_experts:
            self.shared_experts = DenseMLP(
                config, config.n_shared_experts * (config.moe_intermediate_size or 0)
            )

    def forward(self, x_TD: Tensor, context: TokenContext) -> Tensor:
        ids_TK, weights_TK, scores_TE = self.gate(x_TD, context.replayed(self.layer))
        context.routed(self.layer, ids_TK, scores_TE)
        out_TD = self.experts(x_TD, ids_TK, weights_TK)
        return out_TD if self.shared_experts is None else out_TD + self.shared_experts(x_TD, context)


def build_mlp(config: ModelConfig, layer: int) -> nn.Module:
    """The feed-forward part of layer `layer`; `forward(x_TD, context) -> [T, D]`."""
    if config.is_moe_layer(layer):
        return MixtureOfExperts(config, layer)
    return DenseMLP(config, config.intermediate_size)
