"""What a forward pass gets besides its tokens: positions, who attends to whom, and who wants to know the routing.

Legend: B rows of L positions, T = B*L flat tokens, N heads, K key-value heads, H head dim, C latent, P rope dim,
V value head dim, E experts. The network knows only flat tokens; training and evaluation give it rows
(`RowsContext`), an engine gives it its cache (a subclass of `TokenContext` of its own).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from shoal.ops import attention, row_attention


class TokenContext(ABC):
    """The state of one forward pass. `layer` counts from 0; MTP modules go on from num_hidden_layers."""

    position_ids_T: Tensor

    @abstractmethod
    def attend_gqa(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, scale: float) -> Tensor:
        """Attention -> [T, N, H]. RoPE is applied already; the context stores keys and values if it caches."""

    @abstractmethod
    def attend_mla(
        self,
        layer: int,
        q_nope_TNH: Tensor,
        q_rope_TNP: Tensor,
        latent_TC: Tensor,
        k_rope_TP: Tensor,
        kv_b_weight: Tensor,
        scale: float,
    ) -> Tensor:
        """MLA -> [T, N, V]. RoPE is applied and the latent normed already: these C + P numbers are the cache."""

    def routed(self, layer: int, expert_ids_TK: Tensor, scores_TE: Tensor) -> None:  # noqa: B027 (optional)
        """Called by every MoE layer with its choice and its scores (fp32, without the selection bias)."""

    def replayed(self, layer: int) -> Tensor | None:
        """Experts [T, K] that a MoE layer uses instead of its router's choice, weighed by its own scores. A trainer
        replays a sampler's routing so that both compute the same function (DeepSeek-V3.2, section 3.1)."""
        return None


class RowsContext(TokenContext):
    """B rows of L positions, each causal from its start, for training and evaluation. One context per forward pass.

    document_ids [B, L]: tokens attend only inside their own document (packed rows); without it a row is one document.
    position_ids [B, L]: default 0 .. L-1 in every row (RoPE is relative, so documents need not restart).
    count_experts: fill `expert_counts`; with_balance_loss: fill `balance_loss`.
    """

    def __init__(
        self,
        rows: int,
        length: int,
        *,
        document_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        count_experts: bool = False,
        with_balance_loss: bool = False,
        device: torch.device | str | None = None,
    ):
        if position_ids is None:
            device = document_ids.device if device is None and document_ids is not None else device
            position_ids = torch.arange(length, device=device).expand(rows, length)
        for name, ids in (("position_ids", position_ids), ("document_ids", document_ids)):
            if ids is not None and ids.shape != (rows, length):
                raise ValueError(f"{name} has shape {tuple(ids.shape)}, not {(rows, length)}")
        self.rows, self.length = rows, length
        self.position_ids_T = position_ids.reshape(-1)
        self.expert_counts: dict[int, Tensor] = {}
        """Layer -> how many of the T*K choices went to each expert, LongTensor [E]."""
        self._count_experts, self._with_balance_loss = count_experts, with_balance_loss
        self._balance_losses: dict[int, Tensor] = {}
        self._seen_BLL: Tensor | None = None
        self._firsts: list[list[int]] | None = None
        self._masks: dict[torch.dtype, Tensor] = {}
        if document_ids is not None and bool((document_ids != document_ids[:, :1]).any()):
            self._seen_BLL = (document_ids[:, :, None] == document_ids[:, None, :]).tril()
            if self._seen_BLL.device.type == "cpu":
                self._firsts = row_attention.first_keys(self._seen_BLL)

    @property
    def balance_loss(self) -> Tensor | None:
        """The sequence-wise balance loss (DeepSeek-V3, eq. 17-20) without its factor: mean over rows, sum over
        layers; 1 per layer when perfectly even. None when not asked for or without MoE layers."""
        return torch.stack(list(self._balance_losses.values())).sum() if self._balance_losses else None

    def _mask(self, dtype: torch.dtype) -> Tensor | None:
        """[B, 1, L, L], added to the scores; made once for all layers. None: plain causal rows."""
        if self._seen_BLL is None:
            return None
        if dtype not in self._masks:
            mask = torch.zeros(self._seen_BLL.shape, dtype=dtype, device=self._seen_BLL.device)
            self._masks[dtype] = mask.masked_fill_(~self._seen_BLL, -torch.inf)[:, None]
        return self._masks[dtype]

    def _rows(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (self.rows, self.length))

    def _attend(self, q_BLNH: Tensor, k_BLKH: Tensor, v_BLKV: Tensor, scale: float) -> Tensor:
        if row_attention.suits(q_BLNH, k_BLKH):
            mask = self._mask(torch.float32)
            mask_BLS = None if mask is None else mask[:, 0]
            out = row_attention.row_attention(
                q_BLNH, k_BLKH, v_BLKV, scale, mask_BLS=mask_BLS, firsts=self._firsts
            )
        else:
            mask = self._mask(q_BLNH.dtype)
            out = attention.attention(q_BLNH, k_BLKH, v_BLKV, scale, mask=mask, causal=mask is None)
        return out.flatten(0, 1)

    def attend_gqa(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, scale: float) -> Tensor:
        return self._attend(self._rows(q_TNH), self._rows(k_TKH), self._rows(v_TKH), scale)

    def attend_mla(
        self,
        layer: int,
        q_nope_TNH: Tensor,
        q_rope_TNP: Tensor,
        latent_TC: Tensor,
        k_rope_TP: Tensor,
        kv_b_weight: Tensor,
        scale: float,
    ) -> Tensor:
        q_nope, q_rope = self._rows(q_nope_TNH), self._rows(q_rope_TNP)
        latent, k_rope = self._rows(latent_TC), self._rows(k_rope_TP)
        return self._attend(*attention.expand_latent(q_nope, q_rope, latent, k_rope, kv_b_weight), scale)

    def routed(self, layer: int, expert_ids_TK: Tensor, scores_TE: Tensor) -> None:
        experts, k = scores_TE.shape[-1], expert_ids_TK.shape[-1]
        # A layer that is recomputed in the backward pass routes again: only its first call counts, though the
        # second must do the same sums (torch.utils.checkpoint compares what is saved).
        if self._count_experts:
            choices = expert_ids_TK.reshape(-1)
            counts = torch.zeros(experts, dtype=torch.long, device=choices.device)
            counts.scatter_add_(0, choices, torch.ones_like(choices))
            self.expert_counts.setdefault(layer, counts)
        if self._with_balance_loss:
            scores_BLE = self._rows(scores_TE)
            with torch.no_grad():  # what the scores alone would choose: the bias must not hide an imbalance
                chosen = torch.zeros_like(scores_BLE).scatter_(-1, scores_BLE.topk(k, -1).indices, 1.0)
                load_BE = chosen.mean(1) * (experts / k)
            share_BE = (scores_BLE / scores_BLE.sum(-1, keepdim=True)).mean(1)
            self._balance_losses.setdefault(layer, (load_BE * share_BE).sum(-1).mean())
