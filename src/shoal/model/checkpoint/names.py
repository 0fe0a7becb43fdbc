"""The one map between parameter names in memory and tensor names on disk (FP8 scales apart).

The two differ in three places only. Experts are stacked in memory (`model.layers.3.mlp.experts.up_proj`
[E, out, in]) and one tensor each on disk (`model.layers.3.mlp.experts.17.up_proj.weight` [out, in]), the only form
that every engine reads. A multi-token prediction layer carries on disk its own copies of the embedding and the head,
which are shared in memory. A tied head is not on disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from shoal.model.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_STACKED = re.compile(r"(model\.layers\.\d+\.mlp\.experts)\.(gate_proj|up_proj|down_proj)")
_EXPERT = re.compile(r"(model\.layers\.\d+\.mlp\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight")
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


def layer_of(name: str) -> int | None:
    """The layer's number in a parameter's or tensor's name, None for what belongs to no layer."""
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def disk_names(parameter: str, config: ModelConfig) -> list[str]:
    """The tensors on disk that make up `parameter`: E of them, in order, for a stack of experts, else one."""
    if match := _STACKED.fullmatch(parameter):
        return [f"{match[1]}.{expert}.{match[2]}.weight" for expert in range(config.n_routed_experts or 0)]
    return [parameter]


def parameter_of(disk_name: str) -> tuple[str, int | None]:
    """The parameter that a tensor on disk belongs to, and its place in the stack (None: it is the whole)."""
    if match := _EXPERT.fullmatch(disk_name):
        return f"{match[1]}.{match[3]}", int(match[2])
    return disk_name, None


def mtp_copies(config: ModelConfig) -> dict[str, str]:
    """Names on disk, in multi-token prediction layers, that only repeat a shared parameter -> that parameter."""
    head = EMBEDDING if config.tie_word_embeddings else HEAD
    copies = {}
    for k in range(config.num_nextn_predict_layers or 0):
        layer = f"model.layers.{config.num_hidden_layers + k}"
        copies[f"{layer}.embed_tokens.weight"] = EMBEDDING
        copies[f"{layer}.shared_head.head.weight"] = head
    return copies


def has_mtp(names: Iterable[str], config: ModelConfig) -> bool:
    """Whether any of the names belongs to a multi-token prediction layer."""
    return any((layer_of(name) or 0) >= config.num_hidden_layers for name in names)


def to_disk(state: Mapping[str, Tensor], config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Every (name, tensor) to write for a network's `state`; the tensors are views, nothing is copied."""
    for name, tensor in state.items():
        if name == HEAD and config.tie_word_embeddings:
            continue
        parts = disk_names(name, config)
        if parts == [name]:
            yield name, tensor
        else:
            yield from zip(parts, tensor.unbind(0), strict=True)
    if has_mtp(state, config):
        for copy, parameter in mtp_copies(config).items():
            yield copy, state[parameter]
