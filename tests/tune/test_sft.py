"""Fine-tuning from a folder and a file to an adapter: rows, masks, packing, kills, errors before work starts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.data.chat import protocol_for
from shoal.data.tokenizer import Tokenizer
from shoal.errors import ShoalError
from shoal.model.adapters import load_adapter
from shoal.model.checkpoint.adapter_files import WEIGHTS
from shoal.model.checkpoint.load import load_network, read_side_files
from shoal.model.checkpoint.save import save_checkpoint
from shoal.model.init import init_weights
from shoal.model.transformer import CausalLM
from shoal.train.objective import rows_context
from shoal.tune.data import Data, TunedRows, dry_run, read_data, survey
from shoal.tune.recipe import TuneStage, load_tune_recipe
from shoal.tune.run import tune

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"what is {i} + 1 ?"},
            {"role": "assistant", "content": f"{i + 1}"},
        ]
    }
    for i in range(40)
]


def recipe_file(
    tmp_path: Path, base: Path, rows: list[Any] | None = None, **sections: dict[str, Any]
) -> Path:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows or ROWS))
    values = {
        "run": {
            "dtype": "float32",
            "threads": 1,
            "save_seconds": 1e9,
            "log_steps": 1,
            "checkpoint_dtype": "float32",
        },
        "model": {"base": str(base)},
        "adapter": {"r": 4, "lora_alpha": 8},
        "sft": {"source": str(data), "row_length": 64, "tokens_per_step": 256, "epochs": 3, "lr": 0.01},
    }
    text = ""
    for name in {**values, **sections}:
        section = {**values.get(name, {}), **sections.get(name, {})}
        text += f"[{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in section.items())
    (tmp_path / "recipe.toml").write_text(text)
    return tmp_path / "recipe.toml"


@pytest.mark.parametrize(
    ("kind", "adapter"), [("gqa", "lora"), ("mla", "lora"), ("mla", "esft"), ("gqa", "none")]
)
def test_from_rows_to_something_that_learnt_them(
    kind: str, adapter: str, base: Callable[[str], Path], tmp_path: Path
) -> None:
    file = recipe_file(tmp_path, base(kind), adapter={"kind": adapter, "top_p": 0.6})
    outcome = tune(load_tune_recipe(file, "sft"), "sft", tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert outcome.finished and not outcome.failures and losses[-1] < losses[0] - 0.3
    assert outcome.checkpoint.name == ("checkpoint" if adapter == "none" else "adapter")
    assert outcome.receipt is not None and [r.kind for r in outcome.receipt.chain()] == ["sft", "train"]
    assert outcome.receipt.details["conversations"] > 40
    before, after = load_network(tmp_path / kind), load_network(outcome.checkpoint)
    moved = {
        name.rpartition(".")[0] for name, value in after.state_dict().items()
        if not torch.equal(value, before.state_dict()[name])
    }  # fmt: skip
    if adapter == "esft":
        assert moved and all("mlp.experts" in name for name in moved)
        chosen = json.loads((tmp_path / "run" / "experts.json").read_text())
        assert all(0 < len(ids) < 8 for ids in chosen.values())
    elif adapter == "lora":
        assert "model.layers.0.self_attn.o_proj" in moved and "model" not in moved
    assert (outcome.checkpoint / "receipt.json").is_file() and read_side_files(outcome.checkpoint).receipt
    assert (tmp_path / "run" / "report.html").read_text().count("fine-tuning")


def test_interrupted_and_resumed_is_the_same_run(base: Callable[[str], Path], tmp_path: Path) -> None:
    recipe = load_tune_recipe(recipe_file(tmp_path, base("mla")), "sft")
    straight = tune(recipe, "sft", tmp_path / "a")
    while not (outcome := tune(recipe, "sft", tmp_path / "b", resume=True, stop_after=2)).finished:
        pass
    one, other = (load_file(o.checkpoint / WEIGHTS) for o in (straight, outcome))
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    with pytest.raises(ShoalError, match=r"adapter\.r: 4 -> 8"):
        changed = load_tune_recipe(tmp_path / "recipe.toml", "sft", ["--adapter.r", "8"])
        tune(changed, "sft", tmp_path / "b", resume=True)


def test_going_on_from_an_adapter(base: Callable[[str], Path], tmp_path: Path) -> None:
    file = recipe_file(tmp_path, base("gqa"), run={"eval_tokens": 0})
    first = tune(load_tune_recipe(file, "sft"), "sft", tmp_path / "a")
    words = ["--adapter.start", str(first.checkpoint), "--sft.lr", "1e-9"]
    second = tune(load_tune_recipe(file, "sft", words), "sft", tmp_path / "b")
    config = load_network(tmp_path / "gqa").config
    before, after = (load_adapter(o.checkpoint, config).named_parameters() for o in (first, second))
    assert all((before[name] - after[name]).abs().max() < 1e-6 for name in before)
    assert second.receipt is not None and [r.kind for r in second.receipt.chain()] == ["sft", "sft", "train"]
    with pytest.raises(ShoalError, match="is an adapter itself"):
        words = ["--model.base", str(first.checkpoint)]
        tune(load_tune_recipe(file, "sft", words), "sft", tmp_path / "c")


# ---- rows


def stage(**values: Any) -> TuneStage:
    return TuneStage(
        **{"row_length": [[0.0, 64]], "tokens_per_step": [[0.0, 192]], "micro_batch_tokens": 192} | values
    )


def test_changing_a_row_moves_no_other_rows_logits(tokenizer: Tokenizer, network: CausalLM) -> None:
    """CASES C69: packed rows, batch of 3, attention and positions."""
    protocol = protocol_for(tokenizer)

    def packed(rows: list[dict[str, Any]]) -> Any:
        from shoal.data.sources import example_of

        data = Data([example_of(row) for row in rows], [])
        data.part = lambda seed, number: iter(data.train)  # type: ignore[method-assign]
        return TunedRows(data, stage(), tokenizer, protocol).next_step(0.0)[0]

    first, changed = [dict(row) for row in ROWS[:12]], [dict(row) for row in ROWS[:12]]
    changed[0] = {"prompt": "what is 9 + 1 ?", "completion": "4"}  # as long as it was, with other words
    a, b = packed(first), packed(changed)
    assert a.input_ids_BL.shape == b.input_ids_BL.shape and a.input_ids_BL.shape[0] == 3
    differs = (a.input_ids_BL != b.input_ids_BL) | (a.labels_BL != b.labels_BL)
    rows, where = differs.nonzero(as_tuple=True)
    document = a.document_ids_BL[rows[0], where[0]]
    own = torch.zeros_like(differs)
    own[rows[0]] = a.document_ids_BL[rows[0]] == document
    assert differs.any() and not (differs & ~own).any() and int(a.document_ids_BL.max()) >= 2
    with torch.no_grad():
        one, other = (
            network.logits(network(batch.input_ids_BL.flatten(), rows_context(batch, train=False)))
            for batch in (a, b)
        )
        alone_ids = a.input_ids_BL[rows[0]][own[rows[0]]]
        from shoal.model.context import RowsContext

        alone = network.logits(network(alone_ids, RowsContext(1, len(alone_ids))))
    moved = (one - other).abs().amax(-1).view_as(differs) > 0
    assert moved.any() and not (moved & ~own).any()
    assert (one.view(*differs.shape, -1)[own] - alone).abs().max() < 1e-4
    assert a.position_ids_BL[own][0] == 0


def test_labels_are_the_answers_and_their_end(tokenizer: Tokenizer) -> None:
    """CASES C66, C70."""
    from shoal.data.sources import example_of

    two_turns = [
        *ROWS[0]["messages"],
        {"role": "user", "content": "and 8 ?"},
        {"role": "assistant", "content": "9"},
    ]
    data = Data([example_of({"messages": two_turns})], [])
    batch = TunedRows(data, stage(), tokenizer, protocol_for(tokenizer)).next_step(0.0)[0]
    row = batch.labels_BL[0][batch.document_ids_BL[0] == 0]
    learnt = [int(i) for i in row if i != -100]
    eos = tokenizer.eos_ids[0]
    assert tokenizer.decode([i for i in learnt if i not in tokenizer.special_ids]) == "19"
    assert [i for i in learnt if i in tokenizer.special_ids].count(eos) == 2 and learnt[-1] == eos


@pytest.mark.parametrize(("what", "expected"), [("cut", (1, 0)), ("drop", (0, 1))])
def test_rows_too_long_are_cut_or_dropped_and_counted(
    what: str, expected: tuple[int, int], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    long = {"prompt": "say it", "completion": "the quick brown fox " * 30}
    hopeless = {"prompt": "the lazy dog " * 60, "completion": "yes"}
    file = tmp_path / "r.jsonl"
    file.write_text("\n".join(map(json.dumps, [*ROWS[:6], long, hopeless])))
    wanted = stage(source=str(file), too_long=what, validation=0.0)
    data = read_data(wanted, 1)
    found = survey(data.train, wanted, tokenizer, protocol_for(tokenizer))
    assert (found.rows, found.too_long, found.nothing_left) == (8, 2, 1)
    rows = TunedRows(data, wanted, tokenizer, protocol_for(tokenizer))
    while rows.packer.part == 0:
        rows.next_step(0.0)
    counted = rows.details()
    passes = counted["conversations"] / 8
    assert counted["rows_cut"] == pytest.approx(expected[0] * passes, abs=1)
    assert counted["rows_dropped"] == pytest.approx((expected[1] + 1) * passes, abs=2)
    assert f"2 longer than 64 tokens are {'cut' if what == 'cut' else 'dropped'}" in found.sentence(wanted)


def test_dry_run_shows_what_is_learnt_without_reading_a_weight(
    base: Callable[[str], Path], tmp_path: Path
) -> None:
    file = recipe_file(tmp_path, base("gqa"))
    (tmp_path / "gqa" / "model.safetensors").write_bytes(b"no weights")
    result = CliRunner().invoke(app, ["tune", "sft", str(file), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert result.output.count("⟦") >= 3 and "what is" in result.output
    marked = result.output.split("⟦")[2].split("⟧")[0]
    assert marked.removesuffix("<｜end▁of▁sentence｜>").removeprefix("</think>").isdigit(), marked
    assert "rows," in result.output and not (tmp_path / "runs").exists()


# ---- what is wrong shows before work starts


SHAREGPT = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}
ALPACA = {"instruction": "say", "input": "hi", "output": "hello"}


@pytest.mark.parametrize("row", [SHAREGPT, ALPACA, {"prompt": "hi", "completion": "hello"}])
def test_all_shapes_are_read(row: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(json.dumps(row))
    wanted = stage(source=str(tmp_path / "r.jsonl"))
    shown = dry_run(read_data(wanted, 1), wanted, tokenizer, protocol_for(tokenizer))
    assert "hello" in shown.split("⟦")[2] and "1 rows" in shown


@pytest.mark.parametrize(("row", "message"), [
    ({"messages": [{"role": "user", "content": "hi"}]}, "no assistant turn"),
    ({"messages": [{"role": "user", "content": "hi"}, {"role": "bot", "content": "x"}]}, "role 'bot'"),
    ({"question": "hi", "answer": "x"}, "of no known shape"),
    ({"text": "just a text"}, "a text without turns"),
    ({"prompt": "the lazy dog " * 99, "completion": "x"}, "has an answer within 64 tokens"),
])  # fmt: skip
def test_bad_rows_are_named(
    row: dict[str, Any], message: str, base: Callable[[str], Path], tmp_path: Path
) -> None:
    file = recipe_file(tmp_path, base("gqa"), rows=[row])
    (tmp_path / "gqa" / "model.safetensors").write_bytes(b"no weights")  # nobody gets as far as reading them
    with pytest.raises(ShoalError, match=message) as caught:
        tune(load_tune_recipe(file, "sft"), "sft", tmp_path / "run")
    assert "rows.jsonl" in caught.value.message


def test_base_without_a_chat_template_is_named(
    tmp_path: Path, make_network: Any, tokenizer: Tokenizer
) -> None:
    plain = tmp_path / "plain"
    save_checkpoint(plain, make_network("gqa"), tokenizer_files=tokenizer.save)
    merges = json.loads((plain / "tokenizer.json").read_text())
    merges["added_tokens"] = []
    (plain / "tokenizer.json").write_text(json.dumps(merges))
    (plain / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((plain / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (plain / "tokenizer_config.json").write_text(json.dumps(settings))
    file = recipe_file(tmp_path, plain)
    with pytest.raises(ShoalError, match="no chat template"):
        tune(load_tune_recipe(file, "sft"), "sft", tmp_path / "run")


def test_recipe_faults_come_together(tmp_path: Path, base: Callable[[str], Path]) -> None:
    file = recipe_file(tmp_path, base("gqa"), sft={"source": "", "too_long": "shorten", "epoch": 1})
    with pytest.raises(ShoalError, match=r"did you mean epochs\?") as caught:
        load_tune_recipe(file, "sft")
    assert "must be one of cut, drop" in caught.value.message
    file = recipe_file(tmp_path, tmp_path / "gqa", sft={"row_length": 512})
    with pytest.raises(ShoalError, match="beyond the model's 256 positions"):
        tune(load_tune_recipe(file, "sft"), "sft", tmp_path / "run")


def test_the_draft_module_is_kept_measured_and_trained_again(
    tmp_path: Path, make_network: Callable[[str], CausalLM], tokenizer: Tokenizer
) -> None:
    """CASES C40."""
    config = dataclasses.replace(make_network("mla").config, num_nextn_predict_layers=1)
    network = CausalLM(config, mtp=True)
    init_weights(network, seed=1)
    save_checkpoint(tmp_path / "base", network, tokenizer_files=tokenizer.save)
    sections: dict[str, Any] = {"adapter": {"kind": "none"}, "sft": {"tokens": 600, "validation": 0.2}}
    found = {}
    for name, tokens in (("kept", 0), ("again", 600)):
        file = recipe_file(tmp_path, tmp_path / "base", **sections, mtp={"tokens": tokens, "row_length": 64})
        outcome = tune(load_tune_recipe(file, "sft"), "sft", tmp_path / name)
        after = load_network(outcome.checkpoint, mtp=True).state_dict()
        found[name] = outcome.measures
        draft = "model.layers.3.mlp.shared_experts.down_proj.weight"
        assert torch.equal(after[draft], network.state_dict()[draft]) == (name == "kept")
        assert not torch.equal(after["lm_head.weight"], network.state_dict()["lm_head.weight"])
    assert 0 <= found["kept"]["sft"]["acceptance"] <= 1 and "mtp" not in found["kept"]
    assert 0 <= found["again"]["mtp"]["acceptance"] <= 1
