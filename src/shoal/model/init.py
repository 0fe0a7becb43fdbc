"""Initial weights for training from scratch.

`fan_in`: made for Muon at small size (docs/lab-notes.md): embedding N(0, 1), head N(0, 0.001), matrices uniform with
standard deviation 1/sqrt(inputs), gate and up projections 0.4 of that, output and down projections zero (every layer
starts as the identity), router N(0, 1/sqrt(hidden)).
`paper`: everything N(0, 0.006), as DeepSeek-V3 was trained (section 4.2).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from shoal.errors import ShoalError
from shoal.model.transformer import CausalLM


def _fan_in(name: str, weight: Tensor, generator: torch.Generator, tied: bool) -> None:
    inputs = weight.shape[-1]
    part = name.split(".")[-2] if name.endswith(".weight") else name.split(".")[-1]
    if part == "embed_tokens":
        weight.normal_(0, inputs**-0.5 if tied else 1.0, generator=generator)
    elif part == "lm_head":
        weight.normal_(0, 0.001, generator=generator)
    elif part in ("o_proj", "down_proj"):
        weight.zero_()
    elif part == "gate":
        weight.normal_(0, inputs**-0.5, generator=generator)
    else:
        bound = (3 / inputs) ** 0.5 * (0.4 if part in ("gate_proj", "up_proj") else 1.0)
        weight.uniform_(-bound, bound, generator=generator)


def _paper(name: str, weight: Tensor, generator: torch.Generator, tied: bool) -> None:
    weight.normal_(0, 0.006, generator=generator)


SCHEMES: dict[str, Callable[[str, Tensor, torch.Generator, bool], None]] = {
    "fan_in": _fan_in,
    "paper": _paper,
}


@torch.no_grad()
def init_weights(network: CausalLM, seed: int, scheme: str = "fan_in") -> None:
    """Fill all weights from `seed`; norms become 1, biases and the router's selection bias 0.

    The same seed gives the same weights on every device: the numbers are drawn on the CPU in fp32.
    """
    if scheme not in SCHEMES:
        raise ShoalError(
            f"unknown initialisation scheme {scheme!r}", hint=f"Known schemes: {', '.join(SCHEMES)}."
        )
    tied = network.config.tie_word_embeddings
    norms = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.RMSNorm)}
    generator = torch.Generator("cpu").manual_seed(seed)
    for name, parameter in network.named_parameters():  # a tied head appears once, as the embedding
        if name in norms:
            parameter.fill_(1.0)
        elif name.endswith(".bias"):
            parameter.zero_()
        else:
            drawn = torch.empty(parameter.shape, dtype=torch.float32)
            SCHEMES[scheme](name, drawn, generator, tied)
            parameter.copy_(drawn)
    for name, buffer in network.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.zero_()
