"""Group-relative policy optimisation: rollouts in, rewards, advantages, one policy-gradient objective (docs/
reinforcement-learning.md). The loop around it is train/loop.py's, the run tune/run.py's.

A step: draw questions at each task's level, sample a group of completions for each, judge them, drop the groups in
which all are alike, and learn from the others in passes that hold every prompt once (grpo_batch.py).
"""

from __future__ import annotations

import random
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from shoal.data.chat import ChatProtocol, Message
from shoal.data.tokenizer import Tokenizer
from shoal.engine.runner import Runner
from shoal.errors import ShoalError
from shoal.model import counts
from shoal.model.adapters import Adapter, load_adapter
from shoal.model.checkpoint import load
from shoal.model.config import ModelConfig
from shoal.model.transformer import CausalLM
from shoal.ops.logprobs import linear_logprobs
from shoal.train.loop import Batch, StepRecord, Terms
from shoal.train.stage import Parts
from shoal.tune.board import Answered, Board
from shoal.tune.environments import Environment, Example
from shoal.tune.grpo_batch import GroupBatch, GroupsContext, Learnt, LiveGroup, micro_batches, pack
from shoal.tune.grpo_losses import (
    LOSSES,
    Completions,
    divisor,
    group_advantages,
    importance_weights,
    k3,
    stale_negatives,
    unbiased_kl,
    weights_over,
)
from shoal.tune.grpo_recipe import GrpoStage
from shoal.tune.policy_runner import POLICY, TORCH, Rollout, choose, not_native, open_policy, require_native
from shoal.tune.rewards import Judge
from shoal.tune.rollout import Completion, Group, Sampler

if TYPE_CHECKING:
    from shoal.tune.run import TuneRun

_MEANS = (
    "reward", "pass_at_1", "completion_length", "truncated_share", "entropy", "kl", "skipped_share", "unjudged_share",
    "logprob_difference", "clipped_share", "capped_share", "stale_share",
)  # fmt: skip
_LIVE = (
    ("reward", "reward {:.2f}"), ("pass_at_1", "pass@1 {:.0%}"), ("level", "level {:.1f}"),
    ("completion_length", "{:.0f} tokens"), ("entropy", "entropy {:.2f}"), ("kl", "KL {:.3f}"),
    ("skipped_share", "{:.0%} of groups skipped"), ("rollout_tokens_per_second", "rollout {:.0f} tokens/s"),
    ("update_tokens_per_second", "update {:.0f} tokens/s"),
)  # fmt: skip
"""The loss is not shown: its value is about 0 while the completions are the policy's own, and says nothing."""
DEAD_STEPS = 10  # in a row, without a single group that teaches: the run ends and says why
_ASKED = 32  # held-out questions answered at once
LOWER_SHARE = 0.25  # of the questions come from levels already passed


@dataclass
class Figures:
    """Sums since the last line of the log; saved with the state, so that a resumed log is the same."""

    sums: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, total: float, weight: float = 1.0) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + total
        self.weights[name] = self.weights.get(name, 0.0) + weight

    def means(self) -> dict[str, float]:
        return {name: total / max(self.weights[name], 1e-9) for name, total in self.sums.items()}


class PolicyObjective:
    """The policy's loss over the completions of a `GroupBatch`, and the KL to the reference model if `beta`."""

    def __init__(self, network: CausalLM, recipe: GrpoStage, figures: Figures | None = None):
        self.network, self.recipe, self.figures = network, recipe, figures or Figures()
        self.loss = LOSSES[recipe.loss_type]
        self.low = recipe.epsilon or self.loss.epsilon[0]
        self.high = recipe.epsilon_high or recipe.epsilon or self.loss.epsilon[1]
        self.moe_layers = [
            i for i in range(network.config.num_hidden_layers) if network.config.is_moe_layer(i)
        ]
        self.weights: Mapping[str, float] = {"policy": 1.0} | ({"kl": recipe.beta} if recipe.beta else {})

    def counts(self, batch: Batch) -> dict[str, float]:
        """What the sums of this batch are divided by."""
        assert isinstance(batch, GroupBatch)
        count = divisor(self.loss.over, batch.lengths, self.recipe.max_completion_length)
        return dict.fromkeys(self.weights, count)

    def logprobs(self, batch: GroupBatch) -> tuple[Tensor, Tensor]:
        """(log-probability, entropy) of each completion token under the sampler's distribution."""
        context = GroupsContext(batch, self.moe_layers if self.recipe.replay_routing else ())
        hidden_TD = self.network(batch.input_ids_BL.flatten(), context)
        hidden_CD = hidden_TD.index_select(0, batch.source_C)
        return linear_logprobs(
            hidden_CD, self.network.lm_head.weight, batch.target_C, self.recipe.temperature
        )

    def terms(self, batch: Batch) -> Terms:
        """One pass over the groups."""
        assert isinstance(batch, GroupBatch)
        logprobs, entropy = self.logprobs(batch)
        sampled, old = batch.sampled_logprobs_C, batch.old_logprobs_C
        if old is None:
            old = logprobs.detach()
        c = Completions(logprobs, old, batch.advantages_S, batch.sample_C)
        trust_C = importance_weights(old, sampled, self.recipe.importance_sampling_cap)
        weights_C = weights_over(self.loss.over, c) * trust_C
        kept_C = weights_C
        if threshold := self.recipe.off_policy_mask_threshold:
            stale_S = stale_negatives(replace(c, old_logprobs=sampled), threshold)
            kept_C = weights_C * ~stale_S[batch.sample_C]
            self.figures.add("stale_share", float(stale_S.sum()), len(stale_S))
        sums = {"policy": (self.loss.per_token(c, self.low, self.high) * kept_C).sum()}
        if batch.ref_logprobs_C is not None:
            kl_C = k3(logprobs, batch.ref_logprobs_C)
            if self.recipe.kl == "unbiased":
                kl_C = unbiased_kl(logprobs, old, batch.ref_logprobs_C)
            sums["kl"] = (kl_C * weights_C).sum()
            self.figures.add("kl", float(k3(logprobs.detach(), batch.ref_logprobs_C).sum()), len(logprobs))
        self._count(c, entropy, sampled, trust_C)
        return Terms(sums)

    def _count(self, c: Completions, entropy: Tensor, sampled: Tensor, trust_C: Tensor) -> None:
        tokens = len(entropy)
        ratio = c.log_ratio.detach().exp()
        self.figures.add("entropy", float(entropy.sum()), tokens)
        self.figures.add("logprob_difference", float((c.logprobs.detach() - sampled).abs().sum()), tokens)
        if cap := self.recipe.importance_sampling_cap:
            self.figures.add("capped_share", float((trust_C >= cap).sum()), tokens)
        outside = (ratio > 1 + self.high) | (ratio < 1 - self.low)
        self.figures.add("clipped_share", float(outside.sum()), tokens)


class Asker:
    """Questions of an environment put to the policy: rendered, sampled, decoded, judged."""

    def __init__(
        self,
        environment: Environment,
        judge: Judge,
        protocol: ChatProtocol,
        tokenizer: Tokenizer,
        sampler: Sampler,
        *,
        thinking: bool = False,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
        follow: Callable[[], None] = lambda: None,
    ):
        self.environment, self.judge, self.protocol, self.tokenizer = environment, judge, protocol, tokenizer
        self.sampler, self.thinking, self.precision, self.follow = sampler, thinking, precision, follow
        self.opening = ""

    def prompt_ids(self, example: Example) -> list[int]:
        """The rendered question."""
        rendered = self.protocol.render(example.messages, thinking=self.thinking)
        self.opening = self.protocol.marks.open_reasoning if rendered.starts_in == "reasoning" else ""
        return rendered.ids

    def ask(
        self, examples: Sequence[Example], prompts: Sequence[list[int]], seeds: Sequence[tuple[int, ...]]
    ) -> list[Answered]:
        """A judged group of completions for each question (without advantages)."""
        self.follow()
        with self.precision():
            groups = self.sampler.roll_out(prompts, seeds)
        return [self._judged(example, group) for example, group in zip(examples, groups, strict=True)]

    def text(self, completion: Completion) -> str:
        """A completion as people read it, marks spelt out, without the token that ended it."""
        ids = completion.token_ids if completion.truncated else completion.token_ids[:-1]
        return self.opening + self.tokenizer.decode(ids)

    def _judged(self, example: Example, group: Group) -> Answered:
        texts = [self.text(completion) for completion in group.completions]
        judgements = []
        for text, completion in zip(texts, group.completions, strict=True):
            about = {
                "completion_tokens": len(completion.token_ids),
                "finish_reason": "length" if completion.truncated else "stop",
            }
            judgements.append(self.judge(example.question, text, {**example.fields, **about}))
        return Answered(example, group, texts, judgements, [None] * len(texts))


class RolloutRows:
    """The `Rows` of reinforcement learning: each step's passes, from questions that are drawn, answered and judged.

    `reference(batch)` gives log-probabilities of the model before the run; None where no KL is wanted. `old(batch)`
    gives the policy's own where the sampler's (`rollout`) are not the same; they are asked for when several updates
    come from the same answers. `tell` shows a line to people, `board` keeps a group of every step for reading.
    """

    def __init__(
        self,
        asker: Asker,
        recipe: GrpoStage,
        *,
        seed: int,
        config: ModelConfig,
        figures: Figures,
        rollout: Rollout = TORCH,
        old: Callable[[GroupBatch], Tensor] | None = None,
        reference: Callable[[GroupBatch], Tensor] | None = None,
        tell: Callable[[str], None] = lambda text: None,
        board: Board | None = None,
    ):
        self.asker, self.recipe, self.seed, self.config = asker, recipe, seed, config
        self.figures, self.reference, self.rollout, self.old = figures, reference, rollout, old
        self.tell, self.board = tell, board
        environment = asker.environment
        self.levels = {
            name: min(max(recipe.level, task.levels[0]), task.levels[-1])
            for name, task in environment.tasks.items()
            if recipe.level
        }
        """Where each task stands; empty where all levels are asked all the time."""
        self.windows: dict[str, deque[float]] = {
            name: deque(maxlen=recipe.raise_after) for name in environment.tasks
        }
        self.drawn: Counter[str] = Counter()
        self.told: set[str] = set()
        self.step = self.turn = self.dead_in_a_row = self.too_long = 0
        self.pending: list[LiveGroup] = []
        self.iterations_left = 0
        self.rollout_seconds = 0.0
        """Of the step in hand."""
        self.flops = 0.0

    # ---- Rows

    def next_step(self, progress: float) -> list[Batch]:
        """The passes of one update; none when no group of the step teaches anything."""
        started = time.perf_counter()
        self.step += 1
        if not self.iterations_left:
            self.pending = self._roll_out()
            self.iterations_left = self.recipe.num_iterations if self.pending else 0
        self.rollout_seconds = time.perf_counter() - started
        if not self.pending:
            return []
        self.iterations_left -= 1
        batches = self._passes(self.pending)
        if self.reference:
            for batch in batches:
                batch.ref_logprobs_C = self.reference(batch)
        self.flops += sum(batch.tokens for batch in batches) * self._update_flops()
        if not self.iterations_left:
            self.pending = []
        return list(batches)

    def _passes(self, groups: Sequence[LiveGroup]) -> list[GroupBatch]:
        return [pack(part) for part in micro_batches(groups, self.recipe.micro_batch_tokens)]

    def close(self) -> None: ...

    def done(self) -> bool:
        """Whether nothing is left to learn."""
        return self.dead_in_a_row >= DEAD_STEPS

    def state(self) -> dict[str, Any]:
        """Where the rollouts stand (JSON): counters, levels, and what is still to be learnt from the last ones."""
        return {
            "rollout": asdict(self.rollout),
            "step": self.step,
            "turn": self.turn,
            "drawn": dict(self.drawn),
            "levels": self.levels,
            "windows": {name: list(window) for name, window in self.windows.items()},
            "dead_in_a_row": self.dead_in_a_row,
            "too_long": self.too_long,
            "failures": dict(self.asker.judge.failures),
            "iterations_left": self.iterations_left,
            "pending": [_to_json(group) for group in self.pending],
            "figures": [self.figures.sums, self.figures.weights],
            "samples": len(self.board.samples) if self.board else 0,
        }

    def details(self) -> dict[str, Any]:
        """For the receipt."""
        judge = self.asker.judge
        return {
            "rollout": str(self.rollout),
            "levels": self.levels,
            "unjudged": dict(judge.failures),
            "prompts_too_long": self.too_long,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.step, self.turn = state["step"], state["turn"]
        self.drawn = Counter(state["drawn"])
        self.levels = dict(state["levels"])
        for name, window in state["windows"].items():
            self.windows[name].extend(window)
        self.dead_in_a_row, self.too_long = state["dead_in_a_row"], state["too_long"]
        self.asker.judge.failures = Counter(state["failures"])
        self.iterations_left = state["iterations_left"]
        self.pending = [_from_json(group) for group in state["pending"]]
        self.figures.sums, self.figures.weights = (dict(part) for part in state["figures"])

    def fields(self) -> dict[str, Any]:
        """What the board shows, averaged since the last call."""
        means, sums = self.figures.means(), self.figures.sums
        line: dict[str, Any] = {name: means[name] for name in _MEANS if name in means}
        if self.levels:
            line["level"] = sum(self.levels.values()) / len(self.levels)
        for what in ("rollout", "update"):
            if seconds := sums.get(f"{what}_seconds"):
                line[f"{what}_tokens_per_second"] = sums.get(f"{what}_tokens", 0.0) / seconds
        self.figures.sums, self.figures.weights = {}, {}
        line["live"] = "  ".join(text.format(line[name]) for name, text in _LIVE if name in line)
        return line

    def flops_of(self, record: StepRecord) -> float:
        """FLOPs of the step that has just ended, rollouts and updates."""
        self.figures.add("update_seconds", record.seconds - self.rollout_seconds)
        self.figures.add("update_tokens", record.step_tokens)
        flops, self.flops = self.flops, 0.0
        return flops

    # ---- rollouts

    def _roll_out(self) -> list[LiveGroup]:
        examples, prompts, seeds = [], [], []
        for number in range(self.recipe.prompts_per_step):
            example, ids = self._draw()
            examples.append(example)
            prompts.append(ids)
            seeds.append((self.seed, self.step, number))
        started = time.perf_counter()
        answered = self.asker.ask(examples, prompts, seeds)
        self.figures.add("rollout_seconds", time.perf_counter() - started)
        live = []
        for item in answered:
            item.advantages = group_advantages(
                [judgement.total for judgement in item.judgements],
                cast(Literal["group", "none"], self.recipe.scale_rewards),
            )
            learnt = [
                Learnt(completion, advantage, completion.logprobs if self.rollout.exact else None)
                for completion, advantage in zip(item.group.completions, item.advantages, strict=True)
                if advantage is not None and not (completion.truncated and self.recipe.truncated == "mask")
            ]
            if learnt:
                live.append(LiveGroup(item.group.prompt_ids, learnt, item.group.routing))
            self._count(item, bool(learnt))
        self._note(answered)
        self._watch(live, answered)
        return self._with_old(live) if self.recipe.num_iterations > 1 else live

    def _with_old(self, live: list[LiveGroup]) -> list[LiveGroup]:
        """The same groups with the policy's log-probabilities as it is before the first of its updates from them."""
        if self.rollout.exact or not self.old or not live:
            return live
        known = iter(torch.cat([self.old(batch) for batch in self._passes(live)]).tolist())
        self.flops += sum(group.fed_tokens for group in live) * self._forward_flops()
        return [
            replace(
                group,
                learnt=[
                    replace(x, old_logprobs=list(islice(known, len(x.completion.token_ids))))
                    for x in group.learnt
                ],
            )
            for group in live
        ]

    def _draw(self) -> tuple[Example, list[int]]:
        """The next question: tasks in turn, mostly at the task's level; prompts that are too long are left out."""
        names = list(self.windows)
        for _ in range(100):
            name = names[self.turn % len(names)]
            level = self._level(name)
            self.turn += 1
            place = f"{name}/{level}"
            example = self.asker.environment.example(name, "train", level, self.drawn[place])
            self.drawn[place] += 1
            ids = self.asker.prompt_ids(example)
            if len(ids) <= self.recipe.max_prompt_length:
                return example, ids
            self.too_long += 1
        raise ShoalError(
            f"a hundred prompts in a row are longer than grpo.max_prompt_length {self.recipe.max_prompt_length}",
            hint="Raise it, or lower the level.",
        )

    def _level(self, name: str) -> int:
        """Of the next question of a task."""
        levels = self.asker.environment.tasks[name].levels
        if not self.levels:
            return levels[self.turn // len(self.windows) % len(levels)]
        level, chance = self.levels[name], random.Random(f"{self.seed}/level/{self.turn}")
        lower = level > levels[0] and chance.random() < LOWER_SHARE
        return chance.randrange(levels[0], level) if lower else level

    def _count(self, item: Answered, live: bool) -> None:
        add = self.figures.add
        known = [judgement.total for judgement in item.judgements if judgement.total is not None]
        lengths = [len(completion.token_ids) for completion in item.group.completions]
        size = len(lengths)
        add("reward", sum(known), len(known))
        add("pass_at_1", sum(item.right), size)
        add("completion_length", sum(lengths), size)  # true lengths, whatever is masked
        add("truncated_share", sum(c.truncated for c in item.group.completions), size)
        add("unjudged_share", size - len(known), size)
        add("skipped_share", not live)
        add("rollout_tokens", sum(lengths))
        prompt = len(item.group.prompt_ids)
        self.flops += prompt * counts.flops_per_token(self.config, prompt, training=False)
        self.flops += sum(counts.answer_flops(self.config, prompt, prompt, n) for n in lengths)
        window = self.windows[item.example.task]
        if item.example.level == self.levels.get(item.example.task):
            window.append(sum(item.right) / size)
            self._raise_level(item.example.task)

    def _raise_level(self, task: str) -> None:
        window, levels = self.windows[task], self.asker.environment.tasks[task].levels
        full = len(window) == window.maxlen
        if full and sum(window) / len(window) >= self.recipe.raise_at and self.levels[task] < levels[-1]:
            self.levels[task] += 1
            self.tell(
                f"step {self.step}: {task} goes up to level {self.levels[task]} ({sum(window) / len(window):.0%})"
            )
            window.clear()

    def _note(self, answered: Sequence[Answered]) -> None:
        """Keep the group that tells most: one that teaches, if there is any."""
        shown = next((a for a in answered if any(x is not None for x in a.advantages)), answered[0])
        if self.board:
            self.board.note(self.step, shown)

    def _watch(self, live: Sequence[LiveGroup], answered: Sequence[Answered]) -> None:
        for item in answered:
            for judgement in item.judgements:
                if judgement.failed and judgement.failed not in self.told and len(self.told) < 5:
                    self.told.add(judgement.failed)
                    self.tell(f"step {self.step}: left out is a completion of which {judgement.failed}")
        if live:
            self.dead_in_a_row = 0
            return
        self.dead_in_a_row += 1
        share = sum(sum(a.right) for a in answered) / max(sum(len(a.right) for a in answered), 1)
        if self.dead_in_a_row == 1:
            self.tell(
                f"step {self.step}: in every group all answers scored alike ({share:.0%} right): nothing to learn from"
            )
        if self.dead_in_a_row >= DEAD_STEPS:
            why = "solved" if share > 0.5 else "too hard, or the reward never differs"
            self.tell(
                f"{DEAD_STEPS} steps in a row taught nothing: all answers of each group scored alike ({share:.0%} "
                f"right: {why}). The run ends here."
            )

    def _forward_flops(self) -> float:
        """Per token of a pass."""
        return counts.flops_per_token(self.config, self.recipe.max_prompt_length, training=False)

    def _update_flops(self) -> float:
        """Forward and backward; with adapters the weights themselves need no gradient (4N)."""
        return self._forward_flops() * (3 if self.recipe.trains_all_weights else 2)


def _to_json(group: LiveGroup) -> dict[str, Any]:
    learnt = []
    for item in group.learnt:
        c = item.completion
        old = item.old_logprobs
        learnt.append([c.token_ids, c.logprobs, c.truncated, _listed(c.routing), item.advantage, old])
    return {"prompt": group.prompt_ids, "learnt": learnt, "routing": _listed(group.routing)}


def _from_json(value: Mapping[str, Any]) -> LiveGroup:
    learnt = [
        # A state of before there were native rollouts holds five fields: the sampler was the policy.
        Learnt(Completion(ids, logprobs, truncated, _array(routing)), advantage, *(old or [logprobs]))
        for ids, logprobs, truncated, routing, advantage, *old in value["learnt"]
    ]
    return LiveGroup(value["prompt"], learnt, _array(value["routing"]))


def _listed(routing: Any) -> Any:
    return None if routing is None else routing.tolist()


def _array(routing: Any) -> Any:
    return None if routing is None else np.asarray(routing, dtype=np.int32)


# ---- a method of tune/run.py


def new_asker(run: TuneRun, stage: GrpoStage, *, greedy: bool = False) -> Asker:
    """Questions to the network of a run as it is now: weights and adapter are shared, nothing is copied."""
    runner, follow = _runner(run, stage)
    ends = dict.fromkeys([*run.protocol.stop_ids, *run.tokenizer.eos_ids, *run.config.eos_token_ids])
    sampler = Sampler(
        runner,
        num_generations=1 if greedy else stage.num_generations,
        max_completion_length=stage.max_completion_length,
        temperature=0.0 if greedy else stage.temperature,
        end_ids=list(ends),
        adapter=POLICY if run.adapter else None,
        routing=stage.replay_routing
        and not greedy
        and any(map(run.config.is_moe_layer, range(run.config.num_hidden_layers))),
    )
    environment = Environment(
        stage.tasks,
        seed=run.tuning.run.seed,
        language=stage.language,
        system=stage.system,
        suffix=stage.suffix,
    )
    judge = Judge(stage.rewards)
    return Asker(
        environment,
        judge,
        run.protocol,
        run.tokenizer,
        sampler,
        thinking=stage.thinking,
        precision=run.precision,
        follow=follow,
    )


def rollout_of(run: TuneRun, stage: GrpoStage) -> Rollout:
    """How this run samples: settled when it begins, and kept."""
    if "rollout" not in run.extra:
        chosen = choose(run, stage)
        if run.state:  # a run of before there was a choice sampled by torch
            chosen = Rollout(**run.state.values["rows"].get("rollout", asdict(TORCH)))
            if not chosen.exact:
                require_native(not_native(run))
        run.extra["rollout"] = chosen
    return cast(Rollout, run.extra["rollout"])


def _runner(run: TuneRun, stage: GrpoStage) -> tuple[Runner, Callable[[], None]]:
    """The run's sampling runner, opened once: held-out questions are answered by it too."""
    if "runner" not in run.extra:
        run.extra["runner"] = open_policy(
            run,
            rollout_of(run, stage),
            prompts=stage.prompts_per_step,
            longest_prompt=stage.max_prompt_length,
            longest=stage.max_completion_length,
            group=stage.num_generations,
        )
    return cast(tuple[Runner, Callable[[], None]], run.extra["runner"])


def prepare(run: TuneRun, stage: GrpoStage) -> None:
    """Tasks and rewards are opened before any weight is read: what is wrong with them shows now."""
    if run.world.size > 1:
        raise ShoalError(
            f"reinforcement learning runs in one process, not in {run.world.size}",
            hint="Start it without torchrun: several would all sample and judge the same answers.",
        )
    longest, holds = stage.max_prompt_length + stage.max_completion_length, run.config.max_position_embeddings
    if longest > holds:
        raise ShoalError(
            f"questions and answers of up to {longest} tokens are beyond the model's {holds} positions",
            hint="Lower grpo.max_prompt_length or grpo.max_completion_length.",
        )
    choose(run, stage)
    environment, judge = Environment(stage.tasks, language=stage.language), Judge(stage.rewards)
    for example in environment.held_out("train", len(environment.tasks), level=stage.level):
        judge.check(example.fields)
    run.protocol.render([Message("user", "?")])  # a base model without a chat format says so here


def parts(run: TuneRun, stage: GrpoStage) -> Parts:
    """What moves, the objective, the rollouts; before the first step the held-out questions are answered."""
    named = run.trainable()
    figures = Figures()
    objective = PolicyObjective(run.network, stage, figures)
    asker = new_asker(run, stage)
    why = not_native(run) if stage.rollout == "auto" else ""
    run.live.say(f"rollouts: {rollout_of(run, stage)}{why and f' ({why})'}")
    saved = run.state.values["rows"] if run.state else {}
    board = Board(run.folder, run.log, kept=saved.get("samples", 0))
    if stage.eval_examples and not saved:
        board.keep_answers("before", held_out_answers(run, stage))
    rows = RolloutRows(
        asker,
        stage,
        seed=run.tuning.run.seed,
        config=run.config,
        figures=figures,
        rollout=rollout_of(run, stage),
        old=policy_before(run, objective),
        reference=reference(run, stage, objective) if stage.beta else None,
        tell=run.live.say,
        board=board,
    )
    return Parts(
        named, objective, rows, details=rows.details, fields=rows.fields, flops=rows.flops_of, done=rows.done
    )


def policy_before(run: TuneRun, objective: PolicyObjective) -> Callable[[GroupBatch], Tensor]:
    """Log-probabilities of the policy as it is now, as the trainer computes them."""

    def logprobs(batch: GroupBatch) -> Tensor:
        with torch.no_grad(), run.precision():
            return objective.logprobs(batch.to(run.device))[0].cpu()

    return logprobs


def reference(run: TuneRun, stage: GrpoStage, objective: PolicyObjective) -> Callable[[GroupBatch], Tensor]:
    """Log-probabilities of the model before the run: the adapter it started from, or the base itself."""
    network: CausalLM | None = None
    before: list[tuple[Adapter, Tensor | None]] = []
    if run.adapter is None:
        network = load.load_network(run.base_path, device=run.device).requires_grad_(False)
    elif start := run.tuning.adapter.start:
        adapter = load_adapter(load.resolve(start), run.config)
        adapter.trainable(run.device)
        before = [(adapter, None)]
    judge = objective if network is None else PolicyObjective(network, stage)

    def logprobs(batch: GroupBatch) -> Tensor:
        with torch.no_grad(), run.precision(), run.selection.use(before):
            return judge.logprobs(batch.to(run.device))[0].cpu()

    return logprobs


def held_out_answers(run: TuneRun, stage: GrpoStage) -> list[Answered]:
    """Greedy answers to the first held-out questions of all tasks and levels, judged."""
    asker = new_asker(run, stage, greedy=True)
    examples = asker.environment.held_out("validation", stage.eval_examples)
    answered: list[Answered] = []
    for start in range(0, len(examples), _ASKED):
        part = examples[start : start + _ASKED]
        answered += asker.ask(
            part, [asker.prompt_ids(x) for x in part], [(0, start + i) for i in range(len(part))]
        )
    return answered


def measure(run: TuneRun, stage: GrpoStage) -> dict[str, float]:
    """Held-out pass@1, greedy, before and after."""
    board = Board(run.folder, run.log, kept=None)
    if stage.eval_examples:
        board.keep_answers("after", held_out_answers(run, stage))
    board.write(running=False)
    return board.accuracies()
