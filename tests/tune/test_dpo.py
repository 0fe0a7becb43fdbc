"""DPO: the loss on numbers worked out by hand, pairs that see only themselves, a policy that learns to prefer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.tune.test_sft import recipe_file

from shoal.data.chat import protocol_for
from shoal.data.tokenizer import Tokenizer
from shoal.errors import ShoalError
from shoal.model.checkpoint.adapter_files import WEIGHTS
from shoal.model.context import RowsContext
from shoal.model.transformer import CausalLM
from shoal.tune.dpo import answer_logprobs, dpo_loss, dry_run, pack_pairs, read_pairs
from shoal.tune.recipe import DpoStage, load_tune_recipe
from shoal.tune.run import tune

PAIRS = [
    {"prompt": f"what is {i} + 1 ?", "chosen": f"{i + 1}", "rejected": f"the fox {i}"} for i in range(30)
]


def file_of(tmp_path: Path, rows: list[Any]) -> Path:
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "pairs.jsonl"


def stage(file: Path, **values: Any) -> DpoStage:
    return DpoStage(**{"source": str(file), "row_length": [[0.0, 64]], "validation": 0.0} | values)


def test_loss_by_hand() -> None:
    one, other = torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -1.0])
    ref = torch.tensor([-2.0, -2.0]), torch.tensor([-2.0, -2.0])
    loss, margin = dpo_loss(one, other, *ref, beta=0.5)
    assert margin.tolist() == [1.0, -0.5]  # 0.5 * ((-1 + 2) - (-3 + 2)), 0.5 * (0 - 1)
    assert loss.tolist() == pytest.approx([math.log(1 + math.exp(-1.0)), math.log(1 + math.exp(0.5))])
    smooth, _ = dpo_loss(one, other, *ref, beta=0.5, label_smoothing=0.25)
    assert smooth[0] == pytest.approx(
        0.75 * math.log(1 + math.exp(-1.0)) + 0.25 * math.log(1 + math.exp(1.0))
    )


def test_answers_in_one_batch_have_the_log_probabilities_they_have_alone(
    tokenizer: Tokenizer, network: CausalLM, tmp_path: Path
) -> None:
    found = read_pairs(stage(file_of(tmp_path, PAIRS[:5])), tokenizer, protocol_for(tokenizer))
    batch = pack_pairs(found.pairs, 64, 0)
    assert batch.input_ids_BL.shape[0] < 10, "several answers share a row"
    with torch.no_grad():
        together = answer_logprobs(network, batch)
        for number, pair in enumerate(found.pairs):
            for side, (ids, learnt) in enumerate((pair.chosen, pair.rejected)):
                logits = network.logits(network(torch.tensor(ids[:-1]), RowsContext(1, len(ids) - 1)))
                logprobs = logits.float().log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
                alone = logprobs[torch.tensor(learnt[1:])].sum()
                assert together[2 * number + side] == pytest.approx(float(alone), abs=1e-3)


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_it_learns_to_prefer_and_resumes_to_the_same_numbers(
    adapter: str,
    base: Any,
    tmp_path: Path,
) -> None:
    dpo = {"source": str(file_of(tmp_path, PAIRS)), "row_length": 64, "tokens_per_step": 256, "epochs": 2,
           "lr": 0.01 if adapter == "lora" else 0.001, "validation": 0.2}  # fmt: skip
    file = recipe_file(tmp_path, base("gqa"), adapter={"kind": adapter}, dpo=dpo)
    recipe = load_tune_recipe(file, "dpo")
    straight = tune(recipe, "dpo", tmp_path / "a")
    lines = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line and "step" in line]
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert steps[0]["loss_margin"] == pytest.approx(0, abs=1e-3)
    assert steps[-1]["loss"] < 0.6 and steps[-1]["loss_accuracy"] > 0.8
    assert straight.measures["dpo"]["accuracy"] > 0.8
    while not (outcome := tune(recipe, "dpo", tmp_path / "b", resume=True, stop_after=4)).finished:
        pass
    name = WEIGHTS if adapter == "lora" else "model.safetensors"
    one, other = (load_file(o.checkpoint / name) for o in (straight, outcome))
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_shapes_and_what_is_looked_at(tokenizer: Tokenizer, tmp_path: Path) -> None:
    protocol = protocol_for(tokenizer)
    as_messages = {
        "messages": [{"role": "user", "content": "hi"}],
        "chosen": [{"role": "assistant", "content": "the fox jumps"}],
        "rejected": [{"role": "assistant", "content": "the dog jumps"}],
    }
    shown = dry_run(stage(file_of(tmp_path, [as_messages, PAIRS[0]])), tokenizer, protocol)
    looked_at = shown.split("⟦")[2].split("⟧")[0]
    assert "fox jumps" in looked_at and "the" not in looked_at.split("fox")[0], (
        "what both begin with is left out"
    )
    assert "2 pairs" in shown


@pytest.mark.parametrize(("row", "message"), [
    ({"prompt": "hi", "chosen": "a"}, "needs `chosen` and `rejected`"),
    ({"prompt": "hi", "chosen": "same", "rejected": "same"}, "are the same"),
    ({"chosen": "a", "rejected": "b"}, "no question"),
    ({"prompt": "hi", "chosen": 3, "rejected": "b"}, "neither a text nor a list"),
    ({"prompt": "the fox " * 80, "chosen": "a", "rejected": "b"}, "no pair that fits into 64"),
])  # fmt: skip
def test_bad_pairs_are_named(row: Any, message: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ShoalError, match=message) as caught:
        read_pairs(stage(file_of(tmp_path, [row])), tokenizer, protocol_for(tokenizer))
    assert "pairs.jsonl" in caught.value.message
