"""The prefix cache: computed once, the same answers, nobody else's, and nothing damaged from a disk."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.conftest import CONFIGS

from shoal.data.tokenizer import Tokenizer
from shoal.engine.engine import Engine
from shoal.engine.prefix import DiskBlocks, block_key, chain_root
from shoal.engine.torch_runner import TorchRunner
from shoal.engine.types import Finished, PromptLogprobs, PromptProgress, Request, SamplingParams
from shoal.model.config import ModelConfig
from shoal.model.transformer import CausalLM

GREEDY = SamplingParams(temperature=0, max_tokens=6)
Read = Callable[..., Any]


def some_ids(count: int, seed: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(384) for _ in range(count)]


def ask(
    engine: Engine, prompt: list[int], params: SamplingParams = GREEDY, salt: str = ""
) -> tuple[list[int], Finished]:
    events = list(engine.submit(Request(prompt, params, cache_salt=salt)))
    end = events[-1]
    assert isinstance(end, Finished) and end.error is None
    return [piece.token_id for event in events for piece in getattr(event, "pieces", [])], end


# ---- names


def test_a_name_holds_salt_adapter_and_every_token_before() -> None:
    roots = [chain_root(s, a) for s in ("", "a", "+a") for a in (None, "", "a", "+a")]
    assert len(set(roots)) == len(roots)
    one, other = block_key(roots[0], [1, 2]), block_key(roots[0], [1, 3])
    assert (
        len({one, other, block_key(one, [5, 6]), block_key(other, [5, 6]), block_key(roots[1], [1, 2])}) == 5
    )


# ---- computed once


def test_a_prompt_of_2000_tokens_shared_by_50_requests_is_computed_once(
    new_engine: Callable[..., Engine],
) -> None:
    torch.manual_seed(3)
    network = CausalLM(ModelConfig.from_dict(CONFIGS["gqa"] | {"max_position_embeddings": 4096})).eval()
    engine = new_engine(network, positions=24576, block_size=16, max_num_seqs=8)
    system, owns = some_ids(2000, 1), [[i, *some_ids(4 + i % 7, i)] for i in range(50)]
    handles = [
        engine.submit(Request(system + own, GREEDY)) for own in owns
    ]  # all at once: nobody finds it ready
    ends = [list(handle)[-1] for handle in handles]
    asked = sum(len(own) for own in owns)
    assert engine.stats().prompt_tokens == 2000 + asked
    assert [end.usage.cached_tokens for end in ends] == [0] + [2000] * 49
    assert sum(end.usage.computed_tokens for end in ends) == 2000 + asked + 50 * 5
    assert engine.stats().cached_tokens == 49 * 2000
    assert engine.stats().cache_blocks_free == engine.stats().cache_blocks


def test_the_next_turn_finds_the_answer_too(network: CausalLM, new_engine: Callable[..., Engine]) -> None:
    engine, prompt = new_engine(network), some_ids(37, 2)
    said, _ = ask(engine, prompt, SamplingParams(temperature=0, max_tokens=18))
    _, end = ask(engine, [*prompt, *said, 5, 6])
    assert end.usage.cached_tokens == 37 + 17  # the last token's place was never computed


@pytest.mark.parametrize("length", [1, 7, 8, 9, 63, 64, 65])
def test_a_hit_changes_no_answer_and_covers_all_but_the_last_token(
    network: CausalLM, new_engine: Callable[..., Engine], length: int
) -> None:
    engine, prompt = new_engine(network), some_ids(length, 4)
    cold, first = ask(engine, prompt)
    warm, second = ask(engine, prompt)
    assert (first.usage.cached_tokens, second.usage.cached_tokens) == (0, length - 1)
    assert second.usage.computed_tokens == 1 + 5
    assert warm == cold


@pytest.mark.parametrize("same", [3, 8, 13, 30, 39])
@pytest.mark.parametrize("answered", [1, 6])
def test_a_block_is_copied_as_far_as_it_is_the_same(
    network: CausalLM, new_engine: Callable[..., Engine], same: int, answered: int
) -> None:
    """Whether it was full when its request ended or not; the one it is copied from stays what it was."""
    engine, one = new_engine(network), some_ids(40, 4)
    other = one[:same] + [(token + 1) % 384 for token in one[same:]] + [7, 8]
    params = SamplingParams(temperature=0, max_tokens=answered)
    cold = ask(new_engine(network), other, params)[0]
    first, _ = ask(engine, one, params)
    warm, end = ask(engine, other, params)
    assert end.usage.cached_tokens == same and warm == cold
    again, end = ask(engine, one, params)
    assert end.usage.cached_tokens == 39 and again == first
    assert engine.stats().cache_blocks_free == engine.stats().cache_blocks


def test_progress_tells_what_was_cached(gqa_network: CausalLM, new_engine: Callable[..., Engine]) -> None:
    engine, prompt = new_engine(gqa_network, max_num_batched_tokens=16), some_ids(60, 5)
    ask(engine, prompt[:40])
    told = [e for e in engine.submit(Request(prompt, GREEDY)) if isinstance(e, PromptProgress)]
    assert all(event.cached == 40 and event.total == 60 for event in told)
    assert told[-1].processed == 60 and all(event.processed >= 40 for event in told)


def test_a_scored_prompt_is_computed_whole(gqa_network: CausalLM, new_engine: Callable[..., Engine]) -> None:
    engine, prompt = new_engine(gqa_network), some_ids(60, 6)
    ask(engine, prompt)
    events = list(engine.submit(Request(prompt, SamplingParams(max_tokens=1, prompt_logprobs=0))))
    scored = next(event for event in events if isinstance(event, PromptLogprobs))
    assert len(scored.logprobs) == 60 and events[-1].usage.cached_tokens == 0


# ---- nobody else's


def test_another_salt_shares_nothing(gqa_network: CausalLM, new_engine: Callable[..., Engine]) -> None:
    engine, prompt = new_engine(gqa_network), some_ids(60, 7)
    ask(engine, prompt, salt="alice")
    assert ask(engine, prompt, salt="bob")[1].usage.cached_tokens == 0
    assert ask(engine, prompt)[1].usage.cached_tokens == 0
    assert ask(engine, prompt, salt="alice")[1].usage.cached_tokens == 59


def test_new_weights_find_nothing_of_the_old(
    gqa_network: CausalLM, new_engine: Callable[..., Engine], greedy: Read
) -> None:
    network = CausalLM(gqa_network.config).eval()
    network.load_state_dict(gqa_network.state_dict())
    engine, prompt = new_engine(network), some_ids(60, 8)
    ask(engine, prompt)
    new = {name: t * 1.5 for name, t in network.state_dict().items() if "q_proj" in name or "o_proj" in name}
    engine.refresh_weights(new)
    said, end = ask(engine, prompt)
    assert end.usage.cached_tokens == 0 and said == greedy(network, prompt, 6)[0]
    assert ask(engine, prompt)[1].usage.cached_tokens == 59


# ---- bounds


def test_a_small_cache_evicts_and_answers_stay_right(
    network: CausalLM, new_engine: Callable[..., Engine]
) -> None:
    """Twelve prompts with common beginnings, at random, in a cache for three; with preemptions."""
    roomy, small = new_engine(network), new_engine(network, positions=264, max_num_seqs=4)
    generator = random.Random(9)
    begins = [some_ids(40, seed) for seed in (1, 2, 3)]
    prompts = [generator.choice(begins) + some_ids(20, seed) for seed in range(12)]
    expected = [ask(roomy, prompt, SamplingParams(temperature=0, max_tokens=24))[0] for prompt in prompts]
    order = [generator.randrange(12) for _ in range(40)]
    params = SamplingParams(temperature=0, max_tokens=24)
    handles = [(i, small.submit(Request(prompts[i], params))) for i in order]
    hits = 0
    for i, handle in handles:
        events = list(handle)
        assert [piece.token_id for e in events for piece in getattr(e, "pieces", [])] == expected[i]
        hits += events[-1].usage.cached_tokens
    stats = small.stats()
    assert hits > 0 and stats.preemptions > 0 and small._scheduler.pool.evictions > 0
    assert stats.cache_blocks_free == stats.cache_blocks


# ---- the disk


@pytest.fixture
def reborn(network: CausalLM, tokenizer: Tokenizer, tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    """A maker of engines that keep their prefixes in one folder; each closes the one before."""
    engines: list[Engine] = []

    def make(model: str = "m", max_bytes: int = 2**30) -> Engine:
        for engine in engines:
            engine.close()
        runner = TorchRunner(network, cache_positions=1024, block_size=8)
        disk = DiskBlocks(tmp_path / "kv", max_bytes, model)
        engines.append(Engine(runner, tokenizer, eos_ids=[], disk=disk))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def files(folder: Path) -> list[Path]:
    return sorted((folder / "kv").glob("*.kv"))


def test_after_a_restart_the_prefix_is_read_and_the_answer_is_the_same(
    reborn: Callable[..., Engine], tmp_path: Path
) -> None:
    prompt = some_ids(60, 10)
    cold, first = ask(reborn(), prompt)
    warm, second = ask(reborn(), prompt)
    assert (first.usage.cached_tokens, second.usage.cached_tokens) == (0, 56) and warm == cold
    assert ask(reborn(), prompt, salt="bob")[1].usage.cached_tokens == 0
    assert ask(reborn("another model"), prompt)[1].usage.cached_tokens == 0


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "swapped"])
def test_a_damaged_file_is_a_miss_and_goes(
    reborn: Callable[..., Engine], tmp_path: Path, damage: str
) -> None:
    prompt = some_ids(60, 11)
    engine = reborn()
    cold, _ = ask(engine, prompt)
    engine.close()
    for file in files(tmp_path):
        data = bytearray(file.read_bytes())
        if damage == "flipped":
            data[len(data) // 2] ^= 1
        elif damage == "swapped":
            data[8:40] = bytes(32)
        file.write_bytes(b"" if damage == "empty" else data[: len(data) // 2] if damage == "cut" else data)
    assert len(files(tmp_path)) >= 7
    engine = reborn()
    warm, end = ask(engine, prompt)
    assert end.usage.cached_tokens == 0 and warm == cold
    engine.close()
    assert ask(reborn(), prompt)[1].usage.cached_tokens == 56  # written anew


def test_the_folder_stays_small_and_the_last_used_stay(reborn: Callable[..., Engine], tmp_path: Path) -> None:
    engine = reborn()
    block = engine.runner.block_bytes
    engine.close()
    engine = reborn(max_bytes=20 * (block + 40))
    for seed in range(8):
        ask(engine, some_ids(60, seed))
        time.sleep(0.02)  # file times must differ
    (tmp_path / "kv" / ".left.tmp").write_bytes(b"of a killed server")
    ask(engine, some_ids(60, 8))
    engine.close()
    assert 7 <= len(files(tmp_path)) <= 22
    assert not list((tmp_path / "kv").glob(".*.tmp"))
    assert ask(reborn(), some_ids(60, 8))[1].usage.cached_tokens == 56
    assert ask(reborn(), some_ids(60, 0))[1].usage.cached_tokens == 0


def test_new_weights_leave_the_disk_alone(
    reborn: Callable[..., Engine], network: CausalLM, tmp_path: Path
) -> None:
    engine, prompt = reborn(), some_ids(60, 12)
    ask(engine, prompt)
    name, tensor = next((n, t) for n, t in network.state_dict().items() if "embed" in n)
    engine.refresh_weights({name: tensor.clone()})
    before = len(files(tmp_path))
    assert ask(engine, prompt)[1].usage.cached_tokens == 0
    assert ask(engine, some_ids(60, 13))[1].usage.cached_tokens == 0
    engine.close()
    assert len(files(tmp_path)) == before


_WRITER = """
import sys, time
from pathlib import Path
from shoal.engine.prefix import DiskBlocks
disk = DiskBlocks(Path(sys.argv[1]), 2**30, "m")
print("ready", flush=True)
for i in range(10**6):
    while disk._queue.full():
        time.sleep(0.001)
    disk.save(i.to_bytes(32, "little"), lambda: bytes([i % 256]) * 200_000)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_server_leaves_only_whole_blocks(tmp_path: Path) -> None:
    for attempt in range(3):
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, tmp_path / "kv"], stdout=subprocess.PIPE)
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        while len(files(tmp_path)) < 5 * (attempt + 1):
            time.sleep(0.003)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    whole = len(files(tmp_path))
    disk = DiskBlocks(tmp_path / "kv", 2**30, "m")
    found = [i for i in range(4 * whole + 64) if disk.load(i.to_bytes(32, "little"))]
    disk.close()
    assert len(found) == whole == len(files(tmp_path))
