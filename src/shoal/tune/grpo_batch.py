"""Groups of completions as one forward pass: each prompt stands in it once, every completion sees it and itself.

Legend: T flat tokens of the pass, S completions, C completion tokens (labels), G completions of a group, P prompt
tokens, L longest completion of a group, N heads, K key-value heads, H head dim, E experts.

Rows of prompt + completion would compute a prompt G times and pad every row to the longest. Here the network sees a
flat stream - prompt, completion 1, completion 2, ... - and only attention knows who belongs to whom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoal.model.context import TokenContext
from shoal.ops import attention, row_attention
from shoal.train.loop import Batch
from shoal.tune.rollout import Completion


@dataclass(frozen=True)
class Learnt:
    """A completion to learn from, with its advantage."""

    completion: Completion
    advantage: float
    old_logprobs: list[float] | None = None
    """Of the policy before its updates from this answer; None: of the policy in hand, as there was none yet."""


@dataclass(frozen=True)
class LiveGroup:
    """A prompt and those of its completions that teach something."""

    prompt_ids: list[int]
    learnt: list[Learnt]
    routing: Any = None
    """[prompt tokens, MoE layers, K] of the sampler, or None."""

    @property
    def fed_tokens(self) -> int:
        """Tokens of the pass: the last token of a completion is never an input."""
        return len(self.prompt_ids) + sum(len(x.completion.token_ids) - 1 for x in self.learnt)


@dataclass
class GroupBatch(Batch):
    """`input_ids_BL` is one row [1, T]. What belongs to completion tokens has length C, in order."""

    shapes: list[tuple[int, list[int]]] = field(default_factory=list)
    """For each group (P, tokens of each completion that are fed)."""
    source_C: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    """Where the hidden state that predicts a completion token stands in the pass."""
    target_C: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    sample_C: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    sampled_logprobs_C: Tensor = field(default_factory=lambda: torch.zeros(0))
    """What the sampler wrote down."""
    old_logprobs_C: Tensor | None = None
    """Of the policy before its updates; None: of the policy in hand."""
    ref_logprobs_C: Tensor | None = None
    advantages_S: Tensor = field(default_factory=lambda: torch.zeros(0))
    routing_TMK: Tensor | None = None
    """The sampler's experts for each token and MoE layer."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each completion."""
        return [fed + 1 for _, completions in self.shapes for fed in completions]

    def to(self, device: torch.device) -> GroupBatch:
        moved: dict[str, Any] = {
            key: value.to(device) for key, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def pack(groups: Sequence[LiveGroup]) -> GroupBatch:
    """One pass over these groups."""
    ids: list[int] = []
    sources: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    sampled: list[float] = []
    old: list[float] | None = []
    advantages: list[float] = []
    shapes: list[tuple[int, list[int]]] = []
    routing: list[Any] = []
    for group in groups:
        ids += group.prompt_ids
        routing.append(group.routing)
        before = len(ids) - 1  # the prompt's last token predicts the first of every completion
        for learnt in group.learnt:
            tokens = learnt.completion.token_ids
            sources += [before, *range(len(ids), len(ids) + len(tokens) - 1)]
            ids += tokens[:-1]
            targets += tokens
            owners += [len(advantages)] * len(tokens)
            sampled += learnt.completion.logprobs
            old = None if old is None or learnt.old_logprobs is None else old + learnt.old_logprobs
            advantages.append(learnt.advantage)
            if len(tokens) > 1:
                routing.append(learnt.completion.routing)
        shapes.append((len(group.prompt_ids), [len(x.completion.token_ids) - 1 for x in group.learnt]))
    input_ids = torch.tensor([ids])
    known = (
        None if any(part is None for part in routing) else torch.from_numpy(np.concatenate(routing)).long()
    )
    return GroupBatch(
        input_ids,
        input_ids,
        tokens=len(ids),
        shapes=shapes,
        source_C=torch.tensor(sources),
        target_C=torch.tensor(targets),
        sample_C=torch.tensor(owners),
        sampled_logprobs_C=torch.tensor(sampled),
        old_logprobs_C=None if old is None else torch.tensor(old),
        advantages_S=torch.tensor(advantages),
        routing_TMK=known,
    )


def micro_batches(groups: Sequence[LiveGroup], tokens: int) -> list[list[LiveGroup]]:
    """The groups in order, in passes of at most `tokens` tokens; a group that is longer is cut between completions."""
    passes: list[list[LiveGroup]] = []
    room = 0
    for group in groups:
        rest = group.learnt
        while rest:
            used, taken = len(group.prompt_ids), 0
            for learnt in rest:
                used += len(learnt.completion.token_ids) - 1
                if taken and used > tokens:
                    break
                taken += 1
            part = replace(group, learnt=rest[:taken])
            if not passes or part.fed_tokens > room:
                passes.append([])
                room = tokens
            passes[-1].append(part)
            room -= part.fed_tokens
            rest = rest[taken:]
    return passes


@dataclass
class _Place:
    """A group in the flat stream."""

    prompt: slice
    end: int
    padded_GL: Tensor | None
    """Flat place of each position of a padded [G, L]; None without any completion token."""
    real: Tensor
    """Which positions of the padded one, flat, are tokens."""
    seen_LS: Tensor
    """[L, P + L] bool; made once for all layers."""


def _causal(
    q_GLNH: Tensor, k_GSKH: Tensor, v_GSKV: Tensor, scale: float, seen_LS: Tensor | None = None
) -> Tensor:
    """Attention of the last L of S positions; `seen_LS` says which they see where L is less than S."""
    if row_attention.suits(q_GLNH, k_GSKH):
        return row_attention.row_attention(q_GLNH, k_GSKH, v_GSKV, scale)
    mask = None if seen_LS is None else seen_LS[None, None]
    return attention.attention(q_GLNH, k_GSKH, v_GSKV, scale, mask=mask, causal=mask is None)


class GroupsContext(TokenContext):
    """Attention of a `GroupBatch`, and the sampler's routing where it is known."""

    def __init__(self, batch: GroupBatch, moe_layers: Sequence[int] = ()):
        device = batch.input_ids_BL.device
        self._places: list[_Place] = []
        positions: list[Tensor] = []
        start = 0
        for prompt, lengths in batch.shapes:
            positions += [torch.arange(prompt), *(torch.arange(prompt, prompt + n) for n in lengths)]
            first, longest = start + prompt, max(lengths)
            end = first + sum(lengths)
            column_L = torch.arange(longest)
            starts = torch.tensor([first + sum(lengths[:i]) for i in range(len(lengths))])
            limit_G1 = torch.tensor(lengths)[:, None]
            padded = (starts[:, None] + torch.minimum(column_L, (limit_G1 - 1).clamp_min(0))).clamp_max(
                end - 1
            )
            real = (column_L < limit_G1).flatten().nonzero()[:, 0]
            seen = torch.ones(longest, prompt + longest, dtype=torch.bool).tril(prompt)
            self._places.append(
                _Place(
                    slice(start, first),
                    end,
                    padded.to(device) if longest else None,
                    real.to(device),
                    seen.to(device),
                )
            )
            start = end
        self.position_ids_T = torch.cat(positions).to(device)
        self._routing: Mapping[int, Tensor] = {}
        if batch.routing_TMK is not None:
            self._routing = {layer: batch.routing_TMK[:, i] for i, layer in enumerate(moe_layers)}

    def replayed(self, layer: int) -> Tensor | None:
        return self._routing.get(layer)

    def attend_gqa(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, scale: float) -> Tensor:
        parts: list[Tensor] = []
        for place in self._places:
            q, k, v = (x[place.prompt] for x in (q_TNH, k_TKH, v_TKH))
            parts.append(_causal(q[None], k[None], v[None], scale)[0])
            if place.padded_GL is None:
                continue
            rows = place.padded_GL.shape
            q_GLNH, own_k, own_v = (
                x.index_select(0, place.padded_GL.flatten()).unflatten(0, rows) for x in (q_TNH, k_TKH, v_TKH)
            )
            k_GSKH = torch.cat([k.expand(rows[0], *k.shape), own_k], 1)
            v_GSKH = torch.cat([v.expand(rows[0], *v.shape), own_v], 1)
            out = _causal(q_GLNH, k_GSKH, v_GSKH, scale, place.seen_LS)
            parts.append(out.flatten(0, 1).index_select(0, place.real))
        return torch.cat(parts)

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
        q, k, v = attention.expand_latent(
            q_nope_TNH[None], q_rope_TNP[None], latent_TC[None], k_rope_TP[None], kv_b_weight
        )
        return self.attend_gqa(layer, q[0], k[0], v[0], scale)
