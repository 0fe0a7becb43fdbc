"""Recipes: strict, all faults at once, overridable, and the shipped ones are good."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from shoal.errors import ShoalError, UsageError
from shoal.model import counts
from shoal.model.config import ModelConfig
from shoal.train.optim import bias_rate, lr_scale, momentum
from shoal.train.recipe import (
    ScheduleRecipe,
    StageRecipe,
    build_recipe,
    changed_fields,
    load_recipe,
    parse_overrides,
    value_at,
)

RECIPES = Path(__file__).parents[2] / "recipes"


TRAINED = sorted(path for path in RECIPES.glob("*.toml") if "base =" not in path.read_text(encoding="utf-8"))
"""Recipes of `shoal train`; those of `shoal tune` begin with a base model."""


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
def test_shipped_recipes_load_and_survive_being_written(path: Path):
    recipe = load_recipe(path)
    assert build_recipe(tomllib.loads(recipe.to_toml())) == recipe


def test_nano_is_the_shape_that_the_documents_say():
    config = load_recipe(RECIPES / "nano.toml").config()
    assert config.model_type == "deepseek_v3" and config.uses_mla and config.num_nextn_predict_layers == 1
    assert config.n_routed_experts == 16 and config.num_experts_per_tok == 2
    assert 11e6 < counts.parameters_total(config) < 12e6 and 3.2e6 < counts.parameters_active(config) < 3.6e6
    for size in (
        config.hidden_size,
        config.intermediate_size,
        config.moe_intermediate_size,
        config.kv_lora_rank,
    ):
        assert size % 32 == 0  # GGUF's rows


def test_all_faults_come_in_one_message_with_the_nearest_names():
    with pytest.raises(ShoalError) as raised:
        words = ["--train.lrr", "1", "--trian.lr", "1", "--train.tokens", "many", "--model.hiden_size", "3"]
        load_recipe(RECIPES / "nano.toml", words)
    text = str(raised.value)
    for part in ("train.lrr", "mean lr?", "trian", "mean train?", "'many'", "mean hidden_size?"):
        assert part in text, part
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--train.polar_steps=9", "polar_steps must be 1 to 5"),
        ("--train.row_length=[[0.1, 64]]", "row_length must be"),
        ("--train.row_length=4096", "beyond model.max_position_embeddings"),
        ("--tokenizer.vocab_size=999", "differs from tokenizer.vocab_size"),
        ("--train.loss_on=user", "must be one of all, assistant"),
        ("--model.num_nextn_predict_layers=0", "mtp.tokens is set"),
        ("--model.num_experts_per_tok=99", "exceeds"),
        ("--train.lr=0", "lr must be above 0"),
    ],
)
def test_what_cannot_work_is_said_before_work_starts(override: str, message: str):
    with pytest.raises(ShoalError, match=message):
        load_recipe(RECIPES / "nano.toml", [override])


def test_overrides_are_typed_and_reach_the_later_stages():
    recipe = load_recipe(
        RECIPES / "nano.toml", ["--train.lr", "3e-4", "--run.name=my model", "--sft.tokens", "2e6"]
    )
    assert recipe.train.lr == recipe.sft.lr == 3e-4
    assert recipe.run.name == "my model" and recipe.sft.tokens == 2_000_000
    for words in (["train.lr", "1"], ["--train.lr"], ["--lr", "1"], ["--train.lr", "--run.seed", "1"]):
        with pytest.raises(UsageError):
            parse_overrides(words)


def test_broken_files_are_told(tmp_path: Path):
    (tmp_path / "a.toml").write_text("[train\n")
    with pytest.raises(ShoalError, match="not TOML"):
        load_recipe(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_text("[run]\nname = 'x'\n")
    with pytest.raises(ShoalError, match=r"no \[model\]"):
        load_recipe(tmp_path / "b.toml")
    (tmp_path / "c.toml").write_bytes("[run]\nname = '名前'\n".encode("shift_jis"))
    with pytest.raises(ShoalError, match="UTF-8"):
        load_recipe(tmp_path / "c.toml")


def test_plans_and_schedules_have_the_stated_corners():
    assert [value_at([[0, 1], [0.5, 2]], p) for p in (0, 0.49, 0.5, 1)] == [1, 1, 2, 2]
    wsd = ScheduleRecipe(warmup_steps=10, warmdown_fraction=0.5, final_lr_fraction=0.1)
    assert lr_scale(wsd, step=0, progress=0) == pytest.approx(0.1)
    assert lr_scale(wsd, step=99, progress=0.5) == 1
    assert lr_scale(wsd, step=99, progress=0.75) == pytest.approx(0.55)
    assert lr_scale(wsd, step=99, progress=1) == pytest.approx(0.1)
    cosine = ScheduleRecipe(lr_schedule="cosine", warmup_steps=0)
    assert lr_scale(cosine, step=0, progress=0.5) == pytest.approx(0.5)
    linear = ScheduleRecipe(lr_schedule="linear", warmup_steps=0)
    assert lr_scale(linear, step=0, progress=0.25) == pytest.approx(0.75)
    assert momentum(wsd, step=0, lr_factor=0.1) == pytest.approx(0.85)
    assert momentum(wsd, step=300, lr_factor=1) == pytest.approx(0.95)
    assert momentum(wsd, step=900, lr_factor=0) == pytest.approx(0.9)
    assert [bias_rate(wsd, p) for p in (0.1, 0.5, 0.95)] == [5e-3, 1e-3, 0]


def test_nano_and_its_dense_twin_differ_in_the_experts_alone() -> None:
    """What is compared at equal seconds: one data, schedule and tokenizer, FLOPs per token within 2%."""
    twins = [load_recipe(RECIPES / f"{name}.toml") for name in ("nano-cpu", "nano-dense")]
    mixture, dense = (recipe.to_dict() for recipe in twins)
    assert mixture["tokenizer"] == dense["tokenizer"]
    assert {k for k, v in mixture["train"].items() if v != dense["train"][k]} == {"bias_fast_fraction"}
    costs = [counts.flops_per_token(ModelConfig.from_dict(r.model), 512, training=True) for r in twins]
    assert costs[1] == pytest.approx(costs[0], rel=0.02)


def test_a_key_that_came_with_a_new_version_counts_as_its_default() -> None:
    """A run begun before a key or section existed can be resumed; a value of one's own there is a change."""
    recipe = load_recipe(RECIPES / "tiny-test.toml", ["--train.polar_steps", "5"])
    recipe.mtp = StageRecipe()
    now, old = recipe.to_dict(), recipe.to_dict()
    del old["train"]["polar_steps"], old["mtp"]
    assert changed_fields(old, now) == []
    assert changed_fields(now, old) == [], "nor does an old version mind what it does not know"
    now["mtp"]["lr"] = 0.1  # what a loader puts in for 0
    assert changed_fields(old, now) == []
    now["train"]["polar_steps"], now["mtp"]["matrices"] = 3, "adamw"
    assert changed_fields(old, now) == ["train.polar_steps: 5 -> 3", "mtp.matrices: muon -> adamw"]
