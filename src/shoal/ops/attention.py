"""Attention cores: softmax attention over given keys and values, and both forms of multi-head latent attention.

Legend: B rows, L queries and S keys of a row, N heads, K key-value heads, H query/key head dim, V value head dim,
C latent, P rope dim. Every function takes either `causal=True` (then L == S and key s is seen from query l when
s <= l) or a mask that is broadcast to [B, N, L, S]: bool (True = seen) or float (added to the scores).

MLA (DeepSeek-V2, section 2.1) in two forms of one function. *Expanded*: keys and values of every head are made from
the latent; best for training and prefill. *Absorbed*: the key up-projection moves into the query and the value
up-projection behind the softmax, so that all heads read the latent itself; best for decoding, where the cache is long
and the queries are few. `*_reference` is the plain one, its twin without the suffix the fast one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attention_reference(
    q_BLNH: Tensor,
    k_BSKH: Tensor,
    v_BSKV: Tensor,
    scale: float,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Softmax attention -> [B, L, N, V], scores and softmax in fp32; query head n reads key-value head n // (N/K)."""
    q, k, v = (x.float().transpose(1, 2) for x in (q_BLNH, k_BSKH, v_BSKV))
    heads_per_kv = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(heads_per_kv, dim=1), v.repeat_interleave(heads_per_kv, dim=1)
    scores = q @ k.transpose(-1, -2) * scale
    if causal:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return (scores.softmax(-1) @ v).transpose(1, 2).to(q_BLNH.dtype)


def attention(
    q_BLNH: Tensor,
    k_BSKH: Tensor,
    v_BSKV: Tensor,
    scale: float,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """`attention_reference` by torch's fused kernel.

    Values narrower than keys are padded with zeros: unequal widths fall off the fused path, which costs 1.7 times the
    time on a CPU (and quadratic memory) for MLA's usual 3:2.
    """
    value_dim = v_BSKV.shape[-1]
    if value_dim < q_BLNH.shape[-1]:
        v_BSKV = F.pad(v_BSKV, (0, q_BLNH.shape[-1] - value_dim))
    out = F.scaled_dot_product_attention(
        q_BLNH.transpose(1, 2),
        k_BSKH.transpose(1, 2),
        v_BSKV.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal,
        scale=scale,
        enable_gqa=q_BLNH.shape[2] != k_BSKH.shape[2],
    ).transpose(1, 2)
    return out if out.shape[-1] == value_dim else out[..., :value_dim]


def split_kv_b(kv_b_weight: Tensor, heads: int, nope_dim: int) -> tuple[Tensor, Tensor]:
    """`kv_b_proj.weight` [N*(nope+V), C] -> (W_UK [N, nope, C], W_UV [N, V, C]), views; sliced by head first."""
    by_head = kv_b_weight.view(heads, -1, kv_b_weight.shape[-1])
    return by_head[:, :nope_dim], by_head[:, nope_dim:]


def mla_expanded_reference(
    q_nope_BLNH: Tensor,
    q_rope_BLNP: Tensor,
    latent_BSC: Tensor,
    k_rope_BSP: Tensor,
    kv_b_weight: Tensor,
    scale: float,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """MLA with explicit keys and values -> [B, L, N, V]. RoPE is applied already, the latent normed already."""
    heads, nope_dim = q_nope_BLNH.shape[-2:]
    w_uk_NHC, w_uv_NVC = split_kv_b(kv_b_weight, heads, nope_dim)
    k_nope = torch.einsum("bsc,nhc->bsnh", latent_BSC, w_uk_NHC)
    v = torch.einsum("bsc,nvc->bsnv", latent_BSC, w_uv_NVC)
    k_rope = k_rope_BSP[:, :, None].expand(-1, -1, heads, -1)
    q, k = torch.cat([q_nope_BLNH, q_rope_BLNP], -1), torch.cat([k_nope, k_rope], -1)
    return attention_reference(q, k, v, scale, mask=mask, causal=causal)


def expand_latent(
    q_nope_BLNH: Tensor, q_rope_BLNP: Tensor, latent_BSC: Tensor, k_rope_BSP: Tensor, kv_b_weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(queries, keys, values) of every head: one matrix product makes all keys and values from the latent.

    Queries and keys come as views of [B, N, L, H]: kernels want a head's positions side by side, and joining the two
    parts of a head copies them anyway.
    """
    heads, nope_dim = q_nope_BLNH.shape[-2:]
    kv = F.linear(latent_BSC, kv_b_weight).unflatten(-1, (heads, -1)).transpose(1, 2)
    k_rope = k_rope_BSP[:, None].expand(-1, heads, -1, -1)
    k = torch.cat([kv[..., :nope_dim], k_rope], -1)
    q = torch.cat([q_nope_BLNH.transpose(1, 2), q_rope_BLNP.transpose(1, 2)], -1)
    return q.transpose(1, 2), k.transpose(1, 2), kv[..., nope_dim:].transpose(1, 2)


def mla_expanded(
    q_nope_BLNH: Tensor,
    q_rope_BLNP: Tensor,
    latent_BSC: Tensor,
    k_rope_BSP: Tensor,
    kv_b_weight: Tensor,
    scale: float,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """`mla_expanded_reference` with one matrix product for all keys and values, and the fused kernel."""
    q, k, v = expand_latent(q_nope_BLNH, q_rope_BLNP, latent_BSC, k_rope_BSP, kv_b_weight)
    return attention(q, k, v, scale, mask=mask, causal=causal)


def mla_absorbed_reference(
    q_nope_BLNH: Tensor,
    q_rope_BLNP: Tensor,
    latent_BSC: Tensor,
    k_rope_BSP: Tensor,
    kv_b_weight: Tensor,
    scale: float,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """MLA on the latent itself -> [B, L, N, V]: score = (W_UK^T q).c + q_rope.k_rope, out = W_UV (softmax . c)."""
    w_uk_NHC, w_uv_NVC = split_kv_b(kv_b_weight, *q_nope_BLNH.shape[-2:])
    q_latent = torch.einsum("blnh,nhc->blnc", q_nope_BLNH.float(), w_uk_NHC.float())
    q = torch.cat([q_latent, q_rope_BLNP.float()], -1)
    k = torch.cat([latent_BSC, k_rope_BSP], -1)[:, :, None]
    out_BLNC = attention_reference(q, k, latent_BSC[:, :, None], scale, mask=mask, causal=causal)
    return torch.einsum("blnc,nvc->blnv", out_BLNC, w_uv_NVC.float()).to(q_nope_BLNH.dtype)


def mla_absorbed(
    q_nope_BLNH: Tensor,
    q_rope_BLNP: Tensor,
    latent_BSC: Tensor,
    k_rope_BSP: Tensor,
    kv_b_weight: Tensor,
    scale: float,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """`mla_absorbed_reference` by the fused kernel, the cache read as one key-value head."""
    return mla_absorbed_cached(
        q_nope_BLNH,
        q_rope_BLNP,
        torch.cat([latent_BSC, k_rope_BSP], -1),
        kv_b_weight,
        scale,
        mask=mask,
        causal=causal,
    )


def mla_absorbed_cached(
    q_nope_BLNH: Tensor,
    q_rope_BLNP: Tensor,
    cache_BSX: Tensor,
    kv_b_weight: Tensor,
    scale: float,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """`mla_absorbed` over a cache whose entries X = C + P are [latent ; rotated key], as an engine keeps them.

    The same tensor serves as keys and as values (the rope part of the result is dropped), so nothing is copied.
    """
    w_uk_NHC, w_uv_NVC = split_kv_b(kv_b_weight, *q_nope_BLNH.shape[-2:])
    q_latent = torch.einsum("blnh,nhc->blnc", q_nope_BLNH, w_uk_NHC)
    q = torch.cat([q_latent, q_rope_BLNP], -1)
    cache = cache_BSX[:, :, None]
    out_BLNC = attention(q, cache, cache, scale, mask=mask, causal=causal)[..., : w_uk_NHC.shape[-1]]
    return torch.einsum("blnc,nvc->blnv", out_BLNC, w_uv_NVC)
