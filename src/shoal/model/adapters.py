"""LoRA and ESFT on a network that stays as it is: parameter names, `state_dict()` and base weights do not change.

Legend: T tokens, D in, F out, r rank, E experts, R = T*K rows of experts. `adaptable` lets a network's linear layers,
stacks of experts included, look up what the adapters in use add to them. Which adapters are in use, and for which
tokens, stands in `network.adapters` (a `Selection`): training uses one for all tokens, a runner one for each chunk of a
step. Factors live in the `Adapter`, so that a trainer and a runner may share them. Files: checkpoint/adapter_files.py.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.errors import ShoalError
from shoal.model.checkpoint import adapter_files
from shoal.model.checkpoint.adapter_files import AdapterConfig, LowRank
from shoal.model.checkpoint.names import disk_names
from shoal.model.config import ModelConfig
from shoal.model.moe import RoutedExperts
from shoal.model.transformer import CausalLM
from shoal.ops.experts import Sorted, experts, grouped_linear
from shoal.ops.frozen import Bits, Frozen, freeze, made_again
from shoal.ops.lora import lora_linear

STACKS = ("gate_proj", "up_proj", "down_proj")


@dataclass
class Factors:
    """scale * B A of one matrix, A [r, D] and B [F, r], or of a stack: A [E, r, D], B [E, F, r]."""

    a: Tensor
    b: Tensor
    scale: float

    def delta(self) -> Tensor:
        """What is added to the weight, in the factors' dtype."""
        return (self.b @ self.a) * self.scale


@dataclass
class Experts:
    """ESFT: own weights for some experts of a stack. `ids` ascending; `weight` [len(ids), F, D] replaces theirs."""

    ids: list[int]
    weight: Tensor


@dataclass
class Adapter:
    """An adapter in memory. `factors` (LoRA) or `experts` (ESFT) by module name ("...q_proj", "...experts.up_proj")."""

    config: AdapterConfig
    factors: dict[str, Factors] = field(default_factory=dict)
    experts: dict[str, Experts] = field(default_factory=dict)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name: "<module>.lora_A", "<module>.lora_B", or "<stack>.own"."""
        named = {f"{m}.lora_{x}": t for m, f in self.factors.items() for x, t in (("A", f.a), ("B", f.b))}
        named |= {f"{m}.own": e.weight for m, e in self.experts.items()}
        return {name: cast(nn.Parameter, tensor) for name, tensor in named.items()}

    def trainable(self, device: torch.device) -> dict[str, nn.Parameter]:
        """Make all of it fp32 parameters on `device`; returns them as `named_parameters` does."""
        for f in self.factors.values():
            f.a, f.b = (nn.Parameter(t.detach().to(device, torch.float32)) for t in (f.a, f.b))
        for own in self.experts.values():
            own.weight = nn.Parameter(own.weight.detach().to(device, torch.float32))
        return self.named_parameters()

    def arrays(self) -> adapter_files.Factors:
        """The factors as numpy, for files and for runners without torch."""
        return {m: LowRank(_numpy(f.a), _numpy(f.b), f.scale) for m, f in self.factors.items()}

    def save(
        self,
        folder: str | Path,
        base: ModelConfig,
        *,
        bfloat16: bool = True,
        files: Mapping[str, str] | None = None,
    ) -> None:
        """Write a folder that PEFT loads (LoRA) or that only we do (ESFT)."""
        if self.config.kind == "lora":
            adapter_files.write_lora(folder, self.config, self.arrays(), base, bfloat16=bfloat16, files=files)
            return
        named: dict[str, adapter_files.Floats] = {}
        chosen: dict[str, list[int]] = {}
        for stack, own in self.experts.items():
            chosen[stack] = own.ids
            names = disk_names(stack, base)
            named |= {names[i]: _numpy(weight) for i, weight in zip(own.ids, own.weight, strict=True)}
        adapter_files.write_esft(folder, self.config, named, chosen, bfloat16=bfloat16, files=files)


def _numpy(tensor: Tensor) -> adapter_files.Floats:
    return tensor.detach().float().cpu().numpy()


def load_adapter(folder: str | Path, base: ModelConfig) -> Adapter:
    """An adapter folder for a base of this shape. Raises ShoalError, naming the adapter's base, if it does not fit."""
    config = adapter_files.read_config(folder)
    if config.kind == "lora":
        return from_arrays(adapter_files.read_factors(folder, base), config)
    experts_: dict[str, dict[int, Tensor]] = {}
    for name, values in adapter_files.read_experts(folder, base).items():
        stack, number, which = name.removesuffix(".weight").rsplit(".", 2)
        experts_.setdefault(f"{stack}.{which}", {})[int(number)] = torch.from_numpy(values)
    own = {s: Experts(sorted(p), torch.stack([p[i] for i in sorted(p)])) for s, p in experts_.items()}
    return Adapter(config, experts=own)


def from_arrays(arrays: Mapping[str, tuple[Any, Any, float]], config: AdapterConfig | None = None) -> Adapter:
    """{module: (A, B, scale)} of numpy arrays or tensors; tensors are shared, not copied."""
    own = {m: Factors(torch.as_tensor(a), torch.as_tensor(b), float(s)) for m, (a, b, s) in arrays.items()}
    return Adapter(config or AdapterConfig(""), own)


# ---- a network that can be adapted


class Selection:
    """Which adapters the pass in hand goes through: (adapter, its tokens as indices [n], or None for all)."""

    def __init__(self) -> None:
        self.parts: list[tuple[Adapter, Tensor | None]] = []

    @contextlib.contextmanager
    def use(self, parts: Iterable[tuple[Adapter, Tensor | None]]) -> Iterator[None]:
        """For the passes inside; an empty list is the base itself (a reference model at no cost)."""
        before, self.parts = self.parts, list(parts)
        try:
            yield
        finally:
            self.parts = before

    def factors(self, module: str) -> Iterator[tuple[Factors, Tensor | None]]:
        for adapter, tokens in self.parts:
            if found := adapter.factors.get(module):
                yield found, tokens


class _AdaptedLinear(nn.Linear):
    """A linear layer and what the selected adapters add to its rows."""

    module: str
    selection: Selection

    def forward(self, x: Tensor) -> Tensor:
        return self._product(x, self.weight)

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        parts = list(self.selection.factors(self.module))
        if len(parts) == 1 and parts[0][1] is None and not weight.requires_grad:
            f = parts[0][0]
            return lora_linear(x, weight, self.bias, f.a, f.b, f.scale)
        y = F.linear(x, weight, self.bias)
        for f, tokens in parts:
            rows = x if tokens is None else x.index_select(0, tokens)
            added = F.linear(F.linear(rows, f.a.to(x.dtype)), f.b.to(x.dtype)) * f.scale
            y = y + added if tokens is None else y.index_add(0, tokens, added.to(y.dtype))
        return y


class _AdaptedWeight(_AdaptedLinear):
    """A linear layer whose weight is used as a matrix (kv_b_proj in MLA, lm_head in the fused loss): `weight` is the
    sum itself. Only for adapters that take all tokens; a runner runs others apart (`by_weight`)."""

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        weight = self._parameters["weight"]
        assert weight is not None
        total: Tensor = weight
        for f, tokens in self.selection.factors(self.module):
            assert tokens is None, self.module
            total = total + f.delta().to(weight.dtype)
        return total

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class _FrozenLinear(_AdaptedLinear):
    """One whose weight is kept in few bits (`freeze_base`)."""

    frozen: Frozen

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.frozen.dense()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        with made_again((weight, self.frozen)):
            return self._product(x, weight)


class _AdaptedExperts(RoutedExperts):
    module: str
    selection: Selection

    def forward(self, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        return self._through(x_TD, ids_TK, weights_TK, (self.gate_proj, self.up_proj, self.down_proj))

    def _through(
        self, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, stacks: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        return experts(x_TD, ids_TK, weights_TK, *stacks, product=self._product)

    def _product(self, which: int, rows_RD: Tensor, stack: Tensor, order: Sorted) -> Tensor:
        module = f"{self.module}.{STACKS[which]}"
        own = [a.experts[module] for a, _ in self.selection.parts if module in a.experts]
        y = (
            grouped_linear(rows_RD, stack, order.counts_E)
            if not own
            else _replaced(rows_RD, stack, own[-1], order)
        )
        for f, tokens in self.selection.factors(module):
            rows, counts, chosen = rows_RD, order.counts_E, None
            if tokens is not None:
                chosen, counts = order.of_tokens(tokens)
                rows = rows_RD.index_select(0, chosen)
            inner = grouped_linear(rows, f.a.to(rows.dtype), counts)
            added = grouped_linear(inner, f.b.to(rows.dtype), counts) * f.scale
            y = y + added if chosen is None else y.index_add(0, chosen, added.to(y.dtype))
        return y


class _FrozenExperts(_AdaptedExperts):
    frozen: dict[str, Frozen]
    gate_proj = property(lambda self: self.frozen["gate_proj"].dense())
    up_proj = property(lambda self: self.frozen["up_proj"].dense())
    down_proj = property(lambda self: self.frozen["down_proj"].dense())

    def forward(self, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        gate, up, down = (self.frozen[which].dense() for which in STACKS)
        parts = zip((gate, up, down), (self.frozen[which] for which in STACKS), strict=True)
        with made_again(*parts):
            return self._through(x_TD, ids_TK, weights_TK, (gate, up, down))


def _replaced(rows_RD: Tensor, stack_EFD: Tensor, own: Experts, order: Sorted) -> Tensor:
    """Rows of own experts through their own weights, the others through the stack, which gets no gradient."""
    is_own = torch.zeros_like(order.counts_E, dtype=torch.bool)
    is_own[own.ids] = True
    row_is_own = is_own.repeat_interleave(order.counts_E)
    mine, others = row_is_own.nonzero()[:, 0], (~row_is_own).nonzero()[:, 0]
    parts = [
        grouped_linear(rows_RD.index_select(0, mine), own.weight.to(rows_RD.dtype), order.counts_E[own.ids]),
        grouped_linear(rows_RD.index_select(0, others), stack_EFD, order.counts_E * ~is_own),
    ]
    back = torch.cat([mine, others]).argsort()
    return torch.cat(parts).index_select(0, back)


_BY_WEIGHT = ("kv_b_proj", "lm_head")


def by_weight(adapter: Adapter) -> bool:
    """Whether it changes a weight that is used as a matrix, so that other adapters need a pass of their own."""
    return bool(adapter.experts) or any(m.endswith(_BY_WEIGHT) for m in adapter.factors)


def adaptable(network: CausalLM) -> Selection:
    """Let the linear layers and stacks of experts of a network go through adapters; may be called again."""
    if isinstance(found := getattr(network, "adapters", None), Selection):
        return found
    selection = Selection()
    for name, module in network.named_modules():
        kind: type[nn.Module] | None = None
        if type(module) is nn.Linear:
            kind = _AdaptedWeight if name.endswith(_BY_WEIGHT) else _AdaptedLinear
        elif type(module) is RoutedExperts:
            kind = _AdaptedExperts
        if kind is not None:
            # The class changes, not the object: weights, names and whoever holds the module stay as they are.
            module.__class__ = kind
            module.module, module.selection = name, selection
    network.adapters = selection  # type: ignore[assignment]
    return selection


def freeze_base(network: CausalLM, bits: Bits) -> None:
    """Keep the matrices of an `adaptable` network in 8 or 4 bits, without gradients: linear layers and stacks of
    experts, but neither embedding and head nor routers nor MLA's kv_b_proj, which is used as a matrix. They leave its
    parameters and `state_dict()`."""
    for module in network.modules():
        if type(module) is _AdaptedLinear:
            _keep(module, freeze(module.weight, bits))
        elif type(module) is _AdaptedExperts:
            _keep(module, {which: freeze(getattr(module, which), bits) for which in STACKS})


def _keep(module: nn.Module, frozen: Frozen | dict[str, Frozen]) -> None:
    for name in frozen if isinstance(frozen, dict) else ("weight",):
        del module._parameters[name]
    module.__class__ = _FrozenExperts if isinstance(frozen, dict) else _FrozenLinear
    module.frozen = frozen  # type: ignore[assignment]


def _frozen_parts(network: CausalLM) -> dict[str, Frozen | dict[str, Frozen]]:
    kinds = (_FrozenLinear, _FrozenExperts)
    return {name: module.frozen for name, module in network.named_modules() if isinstance(module, kinds)}


def held_bytes(network: CausalLM) -> int:
    """What a network's weights take in memory, shared ones once."""
    total = sum(t.nbytes for t in {t.data_ptr(): t for t in network.state_dict().values()}.values())
    for part in _frozen_parts(network).values():
        total += sum(f.nbytes for f in (part.values() if isinstance(part, dict) else (part,)))
    return total


def twin(network: CausalLM) -> CausalLM:
    """A second network over the same weights with a selection of its own: one samples while the other trains."""
    with torch.device("meta"):
        other = CausalLM(network.config, mtp=network.mtp_modules > 0)
    if small := _frozen_parts(network):
        adaptable(other)
        for name, part in small.items():
            _keep(other.get_submodule(name), part)
    other.load_state_dict(network.state_dict(), assign=True)
    if network.config.tie_word_embeddings:
        other.lm_head.weight = other.model.embed_tokens.weight
    return other.train(network.training)


# ---- making adapters


def targets(network: CausalLM, wanted: Iterable[str] = ("all-linear",)) -> dict[str, tuple[int, ...]]:
    """Module -> shape of its weight, for the last parts of names ("q_proj") or "all-linear": every linear layer of the
    trunk with its stacks of experts, not the head. Raises ShoalError naming what there is for a name that fits none."""
    trunk = network.config.num_hidden_layers
    known: dict[str, tuple[int, ...]] = {}
    for name, module in network.named_modules():
        inside = name.startswith("model.layers.") and int(name.split(".")[2]) < trunk
        if isinstance(module, nn.Linear) and (inside or name == "lm_head"):
            known[name] = (module.out_features, module.in_features)
        elif isinstance(module, RoutedExperts) and inside:
            known |= {f"{name}.{which}": tuple(getattr(module, which).shape) for which in STACKS}
    chosen: dict[str, tuple[int, ...]] = {}
    for want in wanted:
        fitting = {
            name: shape
            for name, shape in known.items()
            if (want == "all-linear" and name != "lm_head") or name == want or name.endswith(f".{want}")
        }
        if not fitting:
            leaves = sorted({name.rpartition(".")[2] for name in known})
            raise ShoalError(
                f"this model has no linear layer {want!r}", hint=f"It has all-linear, {', '.join(leaves)}."
            )
        chosen |= fitting
    return {name: shape for name, shape in known.items() if name in chosen}


def new_lora(
    network: CausalLM,
    *,
    base: str,
    r: int,
    lora_alpha: float,
    target_modules: Iterable[str],
    fingerprint: str = "",
    seed: int = 1,
) -> Adapter:
    """Fresh factors for training, fp32: A as `nn.Linear` begins, B zero, so that nothing is changed yet."""
    config = AdapterConfig(base, "lora", r, lora_alpha, fingerprint=fingerprint)
    generator = torch.Generator().manual_seed(seed)
    device = network.model.embed_tokens.weight.device
    adapter = Adapter(config)
    for name, shape in targets(network, target_modules).items():
        *stack, out, width = shape
        a = torch.empty(*stack, r, width).uniform_(-1, 1, generator=generator) / math.sqrt(width)
        b = torch.zeros(*stack, out, r)
        adapter.factors[name] = Factors(
            nn.Parameter(a.to(device)), nn.Parameter(b.to(device)), config.scale(name)
        )
    return adapter


def choose_experts(shares: Mapping[int, Tensor], top_p: float) -> dict[int, list[int]]:
    """ESFT (2407.01906, section 3.2): layer -> the fewest experts whose shares [E] of the task sum to `top_p`.

    A share is how much of the task's routing weight an expert took (its average gate score), or of its tokens (token
    selection ratio); shares of a layer are normalised here.
    """
    chosen = {}
    for layer, share_E in shares.items():
        share_E = share_E.double() / share_E.double().sum().clamp_min(1e-30)
        order = share_E.argsort(descending=True, stable=True)
        before = share_E[order].cumsum(0) - share_E[order]
        chosen[layer] = sorted(order[before < top_p].tolist())
    return chosen


def new_esft(
    network: CausalLM, chosen: Mapping[int, list[int]], *, base: str, fingerprint: str = ""
) -> Adapter:
    """The chosen experts of each layer as own weights, fp32, beginning as they are."""
    adapter = Adapter(AdapterConfig(base, "esft", fingerprint=fingerprint))
    modules = dict(network.named_modules())
    for layer, ids in chosen.items():
        stack = modules.get(f"model.layers.{layer}.mlp.experts")
        if not isinstance(stack, RoutedExperts):
            raise ShoalError(f"layer {layer} has no experts", hint="ESFT is for mixture-of-experts models.")
        for which in STACKS:
            weight = getattr(stack, which).detach()[ids].float().clone()
            adapter.experts[f"model.layers.{layer}.mlp.experts.{which}"] = Experts(ids, nn.Parameter(weight))
    if not adapter.experts:
        raise ShoalError("this model has no experts", hint="Use --adapter lora, or none.")
    return adapter


# ---- merging


@torch.no_grad()
def merge(network: CausalLM, adapter: Adapter) -> Callable[[], None]:
    """Put an adapter into the weights, summed in fp32; returns the way back (the old weights, kept as they were)."""
    state = network.state_dict()
    kept: list[tuple[Tensor, Tensor]] = []
    for module, f in adapter.factors.items():
        weight = state.get(f"{module}.weight", state.get(module))
        assert weight is not None, module
        kept.append((weight, weight.clone()))
        weight.copy_(weight.float() + f.delta().float().to(weight.device))
    for module, own in adapter.experts.items():
        kept.append((state[module], state[module].clone()))
        state[module][own.ids] = own.weight.to(state[module])

    @torch.no_grad()
    def unmerge() -> None:
        for weight, old in kept:
            weight.copy_(old)

    return unmerge


def merged_reader(
    read: Callable[[str, int | None], Tensor], adapter: Adapter
) -> Callable[[str, int | None], Tensor]:
    """The same reader of parameters (or one expert of a stack) with the adapter added in fp32, tensor by tensor."""

    def merged(parameter: str, expert: int | None) -> Tensor:
        module = parameter.removesuffix(".weight")
        weight = read(parameter, expert)
        if f := adapter.factors.get(module):
            part = f if expert is None else Factors(f.a[expert], f.b[expert], f.scale)
            return weight.float() + part.delta().float()
        if (own := adapter.experts.get(module)) is not None:
            if expert is None:
                weight = weight.float().clone()
                weight[own.ids] = own.weight.float()
            elif expert in own.ids:
                weight = own.weight[own.ids.index(expert)].float()
        return weight

    return merged
