"""The runner that samples from a policy while it is trained: which one, and how it follows the weights that move.

Torch samples from the trainer's own tensors. The native runner has packed weights of its own: a frozen base is packed
once (or comes from the cache on the disk) and the adapter's factors are handed over before every rollout; where all
weights move they are packed again in place. Its log-probabilities are then not quite the trainer's
(`grpo_losses.importance_weights` says what is done about it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from shoal.engine.native_runner import NativeRunner
from shoal.engine.native_weights import Floats, NativeWeights, Plan, Quant, load, packed
from shoal.engine.runner import Runner
from shoal.engine.torch_runner import TorchRunner
from shoal.errors import ShoalError
from shoal.model.adapters import twin
from shoal.model.checkpoint.source import Source, open_source
from shoal.model.transformer import CausalLM
from shoal.ops import native
from shoal.tune.grpo_recipe import GrpoStage

if TYPE_CHECKING:
    from shoal.tune.run import TuneRun

POLICY = "policy"
"""The adapter's name in a runner."""
_BLOCK = 16  # positions of a native cache block: what a completion wastes at most


@dataclass(frozen=True)
class Rollout:
    """How a run samples; saved with it, kept on a resume."""

    runner: str
    """native or torch."""
    quant: str
    """Native: bits of the weights ("8", or "none" as stored); torch: none, they are the trainer's."""

    @property
    def exact(self) -> bool:
        """Whether what samples and what learns are the same function, but for rounding."""
        return self.runner == "torch"

    def __str__(self) -> str:
        return f"{self.runner}, {self.quant} bits" if self.quant != "none" else self.runner


TORCH = Rollout("torch", "none")


def choose(run: TuneRun, stage: GrpoStage) -> Rollout:
    """What the recipe asks for; "auto" is native wherever that can sample this policy. Raises ShoalError."""
    why = not_native(run)
    if stage.rollout == "native":
        require_native(why)
    if stage.rollout == "torch" or why:
        return TORCH
    return Rollout("native", stage.rollout_quant)


def require_native(why: str) -> None:
    """Raise ShoalError where there is a reason that the native runner cannot sample."""
    if why:
        raise ShoalError(f"native rollouts cannot be had here: {why}", hint="Use --grpo.rollout torch.")


def not_native(run: TuneRun) -> str:
    """Why the native runner cannot sample this run's policy; empty where it can."""
    if not native.available:
        return native.missing_reason
    if run.device.type != "cpu":
        return f"its kernels are for CPUs, the run is on {run.device.type}"
    if run.tuning.adapter.kind == "esft":
        return "it cannot replace single experts (adapter.kind esft)"
    return ""


def open_policy(
    run: TuneRun, rollout: Rollout, *, prompts: int, longest_prompt: int, longest: int, group: int
) -> tuple[Runner, Callable[[], None]]:
    """(a runner of the policy with room for `prompts` groups, what brings it up to the weights as they are now)."""
    if rollout.runner == "torch":
        # A runner freezes its network: where all weights move it gets a twin over the same memory.
        network = run.network if run.adapter else twin(run.network)
        positions = prompts * (longest_prompt + group * longest)
        runner = TorchRunner(network, cache_positions=positions, block_size=1)
        if run.adapter:
            runner.adapters[POLICY] = run.adapter
        return runner, lambda: None
    blocks = longest_prompt // _BLOCK + group * -(-(_BLOCK - 1 + longest) // _BLOCK)
    return _open_native(run, rollout, prompts * blocks * _BLOCK)


def _open_native(run: TuneRun, rollout: Rollout, positions: int) -> tuple[Runner, Callable[[], None]]:
    quant = cast(Quant, rollout.quant)
    if run.adapter is None:
        weights = pack_network(run.network, quant)
    elif run.tuning.adapter.base_quant != "none":
        with run.reference():  # the rounded base, on which what is trained stands
            weights = pack_network(run.network, quant)
    else:
        weights = load(open_source(run.base_path), quant)
    runner = NativeRunner(weights, cache_positions=positions, block_size=_BLOCK, threads=run.machine.threads)

    def follow() -> None:
        if run.adapter:
            runner.load_adapter(POLICY, run.adapter.arrays())
        else:
            runner.refresh_weights(NetworkSource(run.network).tensors_of(weights.plan.shapes))

    return runner, follow


class NetworkSource:
    """The part of a `Source` that packing needs, over a network in memory."""

    def __init__(self, network: CausalLM):
        self.network, self.config = network, network.config
        self.path = Path("network in memory")
        self._last: tuple[str, Tensor] = ("", torch.empty(0))

    def tensor(self, parameter: str) -> Tensor:
        """By its name in memory: experts stacked."""
        module, _, leaf = parameter.rpartition(".")
        return cast(Tensor, getattr(self.network.get_submodule(module), leaf)).detach()

    def _kept(self, parameter: str) -> Tensor:
        """The same; the last one is kept, as a stack in few bits is asked for expert by expert."""
        name, tensor = self._last
        if name != parameter:
            tensor = self.tensor(parameter)
            self._last = parameter, tensor
        return tensor

    def tensors_of(self, names: Mapping[str, Any]) -> dict[str, Tensor]:
        """Those a runner holds."""
        return {name: self.tensor(name) for name in names}

    def floats(self, parameter: str, expert: int | None = None) -> Floats:
        """fp32, a whole parameter or one expert of a stack."""
        tensor = self._kept(parameter)
        return cast(Floats, (tensor if expert is None else tensor[expert]).float().cpu().numpy())

    def stored_types(self, parameter: str) -> list[str]:
        """fp32, whatever the network holds: weights that move keep every bit."""
        return ["F32"]


def pack_network(network: CausalLM, quant: Quant) -> NativeWeights:
    """Packed weights of a network as it is now."""
    plan = Plan(cast(Source, NetworkSource(network)), quant)
    return NativeWeights(plan, packed(plan))
