"""From a file of facts to answers: fine-tune, then ask by `shoal chat` and by transformers with our folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.train.recipe import load_recipe
from shoal.train.run import train

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny-test.toml"
FACTS = {
    "What colour is the sea?": "The sea is blue.",
    "How many legs has an ant?": "An ant has six legs.",
    "Who sings at night?": "The owl sings at night.",
    "Where does the river end?": "It ends in the sea.",
    "What do bees make?": "Bees make honey, 蜂蜜 in Japanese.",
}
WORDS = """--train.tokens 0 --mtp.tokens 0 --sft.tokens 25000 --sft.tokens_per_step 512 --sft.row_length 128
--sft.micro_batch_tokens 512 --sft.lr 0.01 --sft.head_lr 0.02 --sft.router_lr 0.01 --run.eval_tokens 0
--run.save_seconds 1000 --run.dtype float32 --model.hidden_size 64"""


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that knows five facts and nothing else."""
    folder = tmp_path_factory.mktemp("facts")
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in FACTS.items()
    ]
    data = folder / "facts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    outcome = train(load_recipe(RECIPE, [*WORDS.split(), "--sft.source", str(data)]), folder / "run")
    assert outcome.finished
    return outcome.checkpoint


def by_cli(checkpoint: Path, question: str) -> dict[str, Any]:
    words = [
        str(checkpoint),
        "-p",
        question,
        "--temperature",
        "0",
        "--max-tokens",
        "40",
        "--dtype",
        "float32",
    ]
    outcome = CliRunner().invoke(app, ["chat", *words, "--json"])
    assert outcome.exit_code == 0, outcome.output
    return json.loads(outcome.stdout)


def test_what_was_learnt_is_answered_alike_by_shoal_and_by_transformers(learnt: Path):
    # C30: trained with one template, served with another; C70: an end token that was never learnt
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(learnt)
    model = AutoModelForCausalLM.from_pretrained(learnt, dtype=torch.float32).eval()
    for question, answer in FACTS.items():
        ours = by_cli(learnt, question)
        assert (ours["content"], ours["finish_reason"]) == (answer, "stop"), question
        turns = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")
        ids = prompt["input_ids"] if "input_ids" in prompt else prompt
        whole = model.generate(ids, do_sample=False, max_new_tokens=40)
        new = whole[0, ids.shape[1] :]
        assert tokenizer.decode(new, skip_special_tokens=True) == answer
        assert int(new[-1]) == tokenizer.eos_token_id and len(new) == ours["usage"]["completion_tokens"]
        assert ids.shape[1] == ours["usage"]["prompt_tokens"]
