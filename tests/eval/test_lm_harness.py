"""lm-evaluation-harness through our engine: the same figures as its own `hf` model on the same tiny random network."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

with warnings.catch_warnings():  # other people's packages
    warnings.simplefilter("ignore")
    pytest.importorskip("lm_eval", reason="the extra [eval] is not installed")
    from lm_eval import simple_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from shoal.eval import lm_harness

from shoal.cli.main import app
from shoal.errors import ShoalError

pytestmark = pytest.mark.filterwarnings("ignore")
PAIRS = [
    ("Tom has a red", " ball."),
    ("", "Mia has 12 apples."),
    ("What is 3 plus 4? ", "7"),  # the space goes to the answer
    ("海は", "青い。"),
    ("Tom has a ball. " * 40, "Mia has it."),  # longer than the context: its end counts
]
CONTEXT = 128
MARK = "<｜.*?｜>"
TASK = """task: colours
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "What colour is the {{{{thing}}}}?"
doc_to_choice: ["red", "blue", "green"]
doc_to_target: "{{{{colour}}}}"
metric_list:
  - metric: acc
metadata:
  version: 1.0
"""


@pytest.fixture(scope="module")
def ours(telling_model: Path) -> Iterator[Any]:
    assert get_model("shoal") is lm_harness.ShoalLM
    harness = lm_harness.ShoalLM(str(telling_model), runner="torch", dtype="float32", context=CONTEXT + 1)
    yield harness
    harness.opened.close()


@pytest.fixture(scope="module")
def theirs(telling_model: Path) -> Any:
    return HFLM(str(telling_model), device="cpu", dtype="float32", batch_size=2, max_length=CONTEXT)


def requests(kind: Any, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, given, i) for i, given in enumerate(arguments)]


def test_log_likelihoods_are_transformers_own(ours: Any, theirs: Any) -> None:
    asked = requests("loglikelihood", list(PAIRS))
    for mine, other in zip(ours.loglikelihood(asked), theirs.loglikelihood(asked), strict=True):
        assert mine[0] == pytest.approx(other[0], abs=1e-4) and mine[1] is other[1]
    texts = requests("loglikelihood_rolling", [("".join(pair) * 3,) for pair in PAIRS])
    mine, other = ours.loglikelihood_rolling(texts), theirs.loglikelihood_rolling(texts)
    assert mine == pytest.approx(other, abs=5e-4) and min(other) < -100
    greedy = ours.generate_until(
        requests("generate_until", [("Tom", {"max_gen_toks": 3, "do_sample": False})])
    )[0]
    (said,) = ours.loglikelihood(requests("loglikelihood", [("Tom", greedy)]))
    assert said[1], "what greedy decoding says is greedy"


def test_answers_are_transformers_own(ours: Any, theirs: Any) -> None:
    plain = {"until": [], "max_gen_toks": 12, "do_sample": False}
    whole = theirs.generate_until(requests("generate_until", [("Tom has", plain)]))[0]
    stop = max(re.split(MARK, whole), key=len)[1:3]
    asked = [(context, plain) for context, _ in PAIRS if context] + [("Tom has", {**plain, "until": [stop]})]
    mine = ours.generate_until(requests("generate_until", asked))
    said = theirs.generate_until(requests("generate_until", asked))
    assert mine == [re.sub(MARK, "", text) for text in said]  # its tokenizer keeps DeepSeek's marks
    assert mine[0] and mine[-1] == re.sub(MARK, "", whole[: whole.index(stop)])
    with pytest.raises(ShoalError, match="answers of 500 tokens"):
        ours.generate_until(requests("generate_until", [("a", {"max_gen_toks": 500})]))


def test_chats_are_written_by_the_models_own_protocol(ours: Any) -> None:
    turns = [{"role": "user", "content": "Hi."}]
    protocol = ours.opened.protocol
    text = ours.apply_chat_template(turns)
    assert ours.tok_encode(text) == protocol.render(turns).ids
    begun = ours.apply_chat_template([*turns, {"role": "assistant", "content": "The answer is"}], False)
    assert begun.startswith(text[:-1]) and begun.endswith("The answer is")


def test_the_command_gives_what_lm_eval_gives(telling_model: Path, theirs: Any, tmp_path: Path) -> None:
    rows = [
        {"thing": thing, "colour": i % 3} for i, thing in enumerate(("ball", "sea", "tree", "sky", "leaf"))
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = tmp_path / "colours.yaml"
    task.write_text(TASK.format(data=tmp_path / "data.jsonl"))
    out = tmp_path / "out.json"
    words = [str(telling_model), f"lm:{task}", "--runner", "torch", "--dtype", "float32", "--out", str(out)]
    outcome = CliRunner().invoke(app, ["eval", *words])
    assert outcome.exit_code == 0, outcome.output
    result = json.loads(out.read_text())["results"]["colours"]
    manager = TaskManager(include_defaults=False)
    expected = simple_evaluate(model=theirs, tasks=[str(task)], task_manager=manager, bootstrap_iters=10)
    assert result["acc,none"] == expected["results"]["colours"]["acc,none"]
    assert "colours" in outcome.stdout and f"{result['acc,none']:.4f}" in outcome.stdout
