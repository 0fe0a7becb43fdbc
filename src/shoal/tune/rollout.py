"""Rollouts: several completions of each prompt, sampled by a runner of the engine, all of them at once.

The prompt of a group is computed once: its cache blocks are shared by the group's completions, a last block that is not
full is copied. Every completion draws from random numbers of its own, so that it is the same whatever runs beside it.
Log-probabilities are those of the distribution that was sampled from: softmax(logits / temperature), nothing cut off.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.engine.runner import Chunk, Runner
from shoal.errors import ShoalError


@dataclass
class Completion:
    """One sampled answer; the token that ended it is its last."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    truncated: bool = True
    """It did not end by itself but was cut at the longest length."""
    routing: NDArray[np.int32] | None = None
    """[tokens - 1, MoE layers, K]: where the tokens went (the last one is never fed back)."""


@dataclass
class Group:
    """A prompt and its completions."""

    prompt_ids: list[int]
    completions: list[Completion]
    routing: NDArray[np.int32] | None = None
    """[prompt tokens, MoE layers, K]"""


_BLOCK = 64  # tokens of the vocabulary whose probabilities are summed before one of them is looked for


def sample(logits_BV: Tensor, temperature: float, uniforms_B: Tensor) -> tuple[Tensor, Tensor]:
    """(token ids [B], their log-probabilities [B]): the inverse of the cumulative distribution at `uniforms` (0..1).

    One exponential per token of the vocabulary and no cumulative sum over it: first the block of 64 is found, then the
    token inside. The logits are used up. Temperature 0 takes the likeliest.
    """
    if temperature == 0:
        return logits_BV.argmax(-1), torch.zeros(len(logits_BV))
    scores_BV = logits_BV if temperature == 1.0 else logits_BV.div_(temperature)
    highest_B1 = scores_BV.amax(-1, keepdim=True)
    chances_BV = (scores_BV - highest_B1).exp_()
    whole = chances_BV.shape[1] // _BLOCK * _BLOCK
    parts = [
        chances_BV[:, :whole].unflatten(1, (-1, _BLOCK)).sum(-1),
        chances_BV[:, whole:].sum(-1, keepdim=True),
    ]
    cumulative = torch.cat(parts, 1).double().cumsum(1)
    total_B1 = cumulative[:, -1:]
    wanted_B1 = uniforms_B[:, None].double() * total_B1
    block_B1 = torch.searchsorted(cumulative, wanted_B1, right=True).clamp_max(cumulative.shape[1] - 1)
    before_B1 = torch.where(block_B1 > 0, cumulative.gather(1, (block_B1 - 1).clamp_min(0)), 0.0)
    first_B1 = (block_B1 * _BLOCK).clamp_max(
        max(0, chances_BV.shape[1] - _BLOCK)
    )  # the last block is read from its end
    places = first_B1 + torch.arange(min(_BLOCK, chances_BV.shape[1]))
    inside = torch.where(places >= block_B1 * _BLOCK, chances_BV.gather(1, places), 0.0).double().cumsum(1)
    wanted_B1 = torch.minimum(wanted_B1 - before_B1, inside[:, -1:] * (1 - 1e-9))
    ids_B1 = first_B1 + torch.searchsorted(inside, wanted_B1, right=True).clamp_max(inside.shape[1] - 1)
    logprobs_B1 = scores_BV.gather(1, ids_B1) - highest_B1 - total_B1.log().float()
    return ids_B1[:, 0], logprobs_B1[:, 0]


@dataclass
class _Running:
    completion: Completion
    table: list[int]
    position: int
    uniforms: NDArray[np.float64]
    routing: list[NDArray[np.int32]] = field(default_factory=list)


class Sampler:
    """Completions of one policy. `adapter` is its name in the runner (None: the network itself)."""

    def __init__(
        self,
        runner: Runner,
        *,
        num_generations: int,
        max_completion_length: int,
        temperature: float,
        end_ids: Collection[int],
        adapter: str | None = None,
        routing: bool = False,
    ):
        self.runner, self.num_generations, self.longest = runner, num_generations, max_completion_length
        self.temperature, self.end_ids = temperature, frozenset(end_ids)
        self.options: dict[str, Any] = {"adapter": adapter, "routing": routing}

    def roll_out(self, prompts: Sequence[list[int]], seeds: Sequence[tuple[int, ...]]) -> list[Group]:
        """A group for each prompt; `seeds` one for each, its completions count on from it."""
        groups: list[Group] = []
        for wave in self._waves(prompts):
            groups += self._wave([prompts[i] for i in wave], [seeds[i] for i in wave])
        return groups

    def _blocks(self, prompt: list[int]) -> tuple[int, int]:
        """(blocks that the group shares, blocks of each completion's own)."""
        size = self.runner.block_size
        return len(prompt) // size, -(-(len(prompt) % size + self.longest) // size)

    def _waves(self, prompts: Sequence[list[int]]) -> Iterator[list[int]]:
        """Prompts that fit into the cache together, in order."""
        wave: list[int] = []
        used = 0
        for i, prompt in enumerate(prompts):
            if len(prompt) + self.longest > self.runner.max_positions:
                raise ShoalError(
                    f"a prompt of {len(prompt)} tokens and {self.longest} new ones do not fit into the model's "
                    f"{self.runner.max_positions} positions",
                    hint="Lower grpo.max_completion_length or grpo.max_prompt_length.",
                )
            shared, own = self._blocks(prompt)
            needed = shared + own * self.num_generations
            if needed > self.runner.cache_blocks:
                raise ShoalError(
                    f"the cache has {self.runner.cache_blocks} blocks, a group needs {needed}",
                    hint="Lower grpo.num_generations or grpo.max_completion_length.",
                )
            if used + needed > self.runner.cache_blocks:
                yield wave
                wave, used = [], 0
            wave.append(i)
            used += needed
        if wave:
            yield wave

    def _wave(self, prompts: Sequence[list[int]], seeds: Sequence[tuple[int, ...]]) -> list[Group]:
        size, free = self.runner.block_size, 0
        groups: list[Group] = []
        running: list[_Running] = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            shared, own = self._blocks(prompt)
            table = list(range(free, free + shared))
            free += shared
            groups.append(Group(prompt, [Completion() for _ in range(self.num_generations)]))
            for number, completion in enumerate(groups[-1].completions):
                random = np.random.default_rng((*seed, number)).random(self.longest)
                blocks = [*table, *range(free, free + own)]
                running.append(_Running(completion, blocks, len(prompt), random))
                free += own
        members = [
            running[i : i + self.num_generations] for i in range(0, len(running), self.num_generations)
        ]
        chunks = [
            Chunk(prompt, 0, group[0].table[: -(-len(prompt) // size)], 1, **self.options)
            for prompt, group in zip(prompts, members, strict=True)
        ]
        output = self.runner.run(chunks)
        rows: list[NDArray[np.float32]] = []
        for i, (prompt, group) in enumerate(zip(prompts, members, strict=True)):
            rows += [output.logits[i]] * len(group)
            groups[i].routing = output.routing[i] if output.routing else None
            if len(prompt) % size and len(group) > 1:
                # The last block is not full: what stands in it is copied to each completion's own.
                last = len(prompt) // size
                for other in group[1:]:
                    self.runner.copy_block(group[0].table[last], other.table[last])
        self._decode(running, rows)
        return groups

    def _decode(self, running: list[_Running], rows: list[NDArray[np.float32]]) -> None:
        for step in range(self.longest):
            uniforms = torch.tensor([r.uniforms[step] for r in running])
            ids, logprobs = sample(torch.from_numpy(np.concatenate(rows)), self.temperature, uniforms)
            for r, token_id, logprob in zip(running, ids.tolist(), logprobs.tolist(), strict=True):
                r.completion.token_ids.append(token_id)
                r.completion.logprobs.append(logprob)
                r.completion.truncated = token_id not in self.end_ids
            over = [r for r in running if not r.completion.truncated or step + 1 == self.longest]
            for r in over:
                if r.routing:
                    r.completion.routing = np.concatenate(r.routing)
            running = [r for r in running if r.completion.truncated and step + 1 < self.longest]
            if not running:
                return
            chunks = [self._chunk(r) for r in running]
            output = self.runner.run(chunks)
            rows = output.logits
            for r, routing in zip(running, output.routing or [None] * len(running), strict=True):
                r.position += 1
                if routing is not None:
                    r.routing.append(routing)

    def _chunk(self, r: _Running) -> Chunk:
        blocks = -(-(r.position + 1) // self.runner.block_size)
        return Chunk([r.completion.token_ids[-1]], r.position, r.table[:blocks], 1, **self.options)
