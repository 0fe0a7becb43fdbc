"""Names in memory and on disk are one map that goes both ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from shoal.model.checkpoint import names
from shoal.model.checkpoint.shapes import parameter_shapes
from shoal.model.config import ModelConfig
from shoal.model.transformer import CausalLM


def read_back(disk: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The state that tensors on disk spell, by `parameter_of` and `disk_names`: each stack from its experts."""
    state: dict[str, Tensor] = {}
    for name, tensor in disk.items():
        parameter, expert = names.parameter_of(name)
        if expert is not None:
            state[parameter] = torch.stack([disk[part] for part in names.disk_names(parameter, config)])
        elif name not in names.mtp_copies(config):
            state[parameter] = tensor
    return state


def test_every_network_survives_the_way_to_disk_and_back(
    case: str, make_network: Callable[..., CausalLM]
) -> None:
    network = make_network(case)
    state = dict(network.state_dict())
    disk = dict(names.to_disk(state, network.config))
    assert len({tensor.dim() for tensor in disk.values()} - {1, 2}) == 0, "no stack on disk"
    back = read_back(disk, network.config)
    if network.config.tie_word_embeddings:
        assert names.HEAD not in disk
        state.pop(names.HEAD)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_shapes_from_the_config_are_those_of_the_network(
    case: str, make_network: Callable[..., CausalLM]
) -> None:
    network = make_network(case)
    config = network.config
    real = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if config.tie_word_embeddings:
        real.pop(names.HEAD)
    assert parameter_shapes(config, mtp=True) == real


def test_experts_keep_their_numbers(make_network: Callable[..., CausalLM]) -> None:
    network = make_network("v3")
    disk = dict(names.to_disk(network.state_dict(), network.config))
    stack = network.state_dict()["model.layers.1.mlp.experts.up_proj"]
    assert torch.equal(disk["model.layers.1.mlp.experts.5.up_proj.weight"], stack[5])
    assert names.parameter_of("model.layers.1.mlp.experts.5.up_proj.weight") == (
        "model.layers.1.mlp.experts.up_proj",
        5,
    )


def test_mtp_layers_carry_copies_of_what_is_shared(make_network: Callable[..., CausalLM]) -> None:
    network = make_network("v3-mtp")
    disk = dict(names.to_disk(network.state_dict(), network.config))
    assert torch.equal(disk["model.layers.2.embed_tokens.weight"], disk["model.embed_tokens.weight"])
    assert torch.equal(disk["model.layers.2.shared_head.head.weight"], disk["lm_head.weight"])
    tied = make_network("v3-tied-no-shared")
    disk = dict(names.to_disk(tied.state_dict(), tied.config))
    assert torch.equal(disk["model.layers.3.shared_head.head.weight"], disk["model.embed_tokens.weight"])
