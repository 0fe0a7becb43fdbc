"""[grpo]: the keys of reinforcement learning. Imports nothing heavy."""

# ruff: noqa: RUF009 - `knob` is a `dataclasses.field`

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.train.recipe import OptimizerRecipe, Plan, ScheduleRecipe, knob


@dataclass
class GrpoStage(OptimizerRecipe, ScheduleRecipe):
    """[grpo]: learning from rewards. The rewards are the table [grpo.rewards]."""

    steps: int = knob(100, "updates", unit="steps", resumable=True)
    tasks: list[str] = knob(
        ["puzzles:sum"], "questions: puzzles:NAME, microworld:FAMILY, gym:TASK (reasoning-gym), or FILE.jsonl"
    )
    rewards: dict[str, Any] = knob(
        {},
        'name = weight, or a table with arguments; "FILE.py:FUNCTION" is your own; the first counts for pass@1',
    )
    language: str = knob("en", "of microworld tasks", choices=("en", "ja"))
    system: str = knob("", "system message before every question")
    suffix: str = knob("", "text behind every question")
    thinking: bool = knob(False, "ask for a thought first, where the model has a mode for it")
    level: int = knob(1, "level of every task at the start; 0: all levels in turn, from the start to the end")
    raise_at: float = knob(
        0.7, "a task goes up a level when this share of its answers is right", resumable=True
    )
    raise_after: int = knob(20, "over this many of its questions", unit="questions")
    prompts_per_step: int = knob(8, "questions of one update")
    num_generations: int = knob(8, "completions of each question: the group that is compared")
    max_prompt_length: int = knob(256, "longer questions are left out", unit="tokens")
    max_completion_length: int = knob(64, "completions are cut here", unit="tokens")
    temperature: float = knob(1.0, "sampling, and the distribution that is learnt")
    rollout: str = knob(
        "auto",
        "what samples: the native runner (CPUs; its own packed weights) or torch (the trainer's); auto: native where "
        "it can",
        choices=("auto", "native", "torch"),
    )
    rollout_quant: str = knob(
        "8",
        "native: bits of its weights where the model holds plain floats; none: as it holds them",
        choices=("8", "none"),
    )
    importance_sampling_cap: float = knob(
        2.0, "native: a token counts pi_old / pi_sampler times, at most this; 0: once, whatever sampled it"
    )
    loss_type: str = knob("dapo", "the loss (docs)", choices=("grpo", "dr_grpo", "dapo", "gspo", "cispo"))
    epsilon: float = knob(0.0, "clip range of the ratio below 1; 0: what the loss's authors take")
    epsilon_high: float = knob(0.0, "clip range above 1; 0: as above")
    scale_rewards: str = knob(
        "none", "advantages over the group's standard deviation, or as they are", choices=("none", "group")
    )
    beta: float = knob(0.0, "weight of the KL to the model before the run; 0: none, and no reference model")
    kl: str = knob("unbiased", "estimator of that KL", choices=("k3", "unbiased"))
    num_iterations: int = knob(1, "updates from the same completions")
    off_policy_mask_threshold: float = knob(
        0.0, "drop a bad completion that the policy has left by more than this, in nats per token; 0: never"
    )
    truncated: str = knob(
        "keep", "completions cut at their longest: learn from them as they are judged, or mask them",
        choices=("keep", "mask"),
    )  # fmt: skip
    replay_routing: bool = knob(True, "MoE: the update uses the experts that the sampler chose")
    eval_examples: int = knob(64, "held-out questions answered before and after; 0: none", resumable=True)
    micro_batch_tokens: int = knob(
        2048, "tokens of one forward and backward pass", unit="tokens", resumable=True
    )
    matrices: str = knob("adamw", "the rule for matrices", choices=("muon", "adamw"))
    lr: float = knob(0.0, "step per number; 0: 3e-5 for adapters, 3e-6 for all weights")
    embedding_lr: float = knob(0.0, "embedding: step per number; 0: as lr")
    head_lr: float = knob(0.0, "output head: step per number; 0: as lr")
    router_lr: float = knob(0.0, "router gates: step per number; 0: as lr")
    gains_lr: float = knob(0.0, "norm gains and other vectors: step per number; 0: as lr")
    weight_decay: float = knob(0.0, "decay of matrices, times lr")
    adam_betas: list[float] = knob([0.9, 0.99], "AdamW's two decay rates")
    adam_eps: float = knob(1e-8, "AdamW's epsilon")
    max_grad_norm: float = knob(1.0, "clip the gradient's norm to this; 0: never")
    warmup_steps: int = knob(5, "steps of linear warm-up", unit="steps")
    warmdown_fraction: float = knob(0.0, "wsd: last share of the steps over which rates fall")
    average_fraction: float = knob(0.0, "last share of the steps whose weights are averaged into the result")

    trains_all_weights = False  # settled when the recipe is loaded

    @property
    def row_length(self) -> Plan:
        """There are no rows; what must fit is checked by `grpo.prepare`."""
        return [[0.0, 1.0]]

    @property
    def tokens(self) -> int:
        """An upper bound of what updates see; the stage ends by steps."""
        return (
            self.steps
            * self.prompts_per_step
            * (self.max_prompt_length + self.num_generations * self.max_completion_length)
        )

    def settle(self, *, all_weights: bool, folder: Path) -> None:
        """Put in what a 0 stands for, and where the recipe's own files are."""
        self.trains_all_weights = all_weights
        self.lr = self.lr or (3e-6 if all_weights else 3e-5)
        for key in ("embedding_lr", "head_lr", "router_lr", "gains_lr"):
            setattr(self, key, getattr(self, key) or self.lr)
        self.tasks = [str((folder / t).resolve()) if t.endswith(".jsonl") else t for t in self.tasks]
        self.rewards = {
            str((folder / name).resolve()) if ".py:" in name else name: value
            for name, value in self.rewards.items()
        }

    def check(self) -> list[str]:
        """What is wrong with the values."""
        faults = []
        least = {
            "steps": 1, "prompts_per_step": 1, "max_prompt_length": 1, "max_completion_length": 1, "level": 0,
            "raise_after": 1, "num_iterations": 1, "micro_batch_tokens": 1, "num_generations": 2,
        }  # fmt: skip
        for key, value in least.items():
            if getattr(self, key) < value:
                why = ": a group of one has nothing to be compared with" if key == "num_generations" else ""
                faults.append(f"grpo.{key} must be at least {value}{why}")
        if self.temperature <= 0:
            faults.append(
                "grpo.temperature must be above 0: without chance all answers of a group are the same"
            )
        if not self.tasks:
            faults.append(
                'grpo.tasks is empty: it names where questions come from, for example ["puzzles:sum"]'
            )
        if not self.rewards:
            faults.append("[grpo.rewards] is empty: nothing would be learnt (for example exact = 1.0)")
        positive = (
            "beta", "lr", "epsilon", "epsilon_high", "off_policy_mask_threshold", "importance_sampling_cap",
        )  # fmt: skip
        if 0 < self.importance_sampling_cap < 1:
            faults.append("grpo.importance_sampling_cap must be 0 or at least 1")
        faults += [f"grpo.{key} must not be below 0" for key in positive if getattr(self, key) < 0]
        if len(self.adam_betas) != 2:
            faults.append("grpo.adam_betas must hold two numbers")
        return faults
