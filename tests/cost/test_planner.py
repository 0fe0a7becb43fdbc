"""The planner against figures that others published, counted themselves, or that a reader can work out by hand."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.cost import formulas, hardware, planner, runs
from shoal.cost.export_rule import classify
from shoal.cost.formulas import Layout
from shoal.cost.planner import Job, plan
from shoal.errors import ShoalError, UsageError
from shoal.model import counts
from shoal.model.config import ModelConfig

V3 = runs.known_model("deepseek-v3")


@pytest.fixture(autouse=True)
def fresh_catalogue() -> None:
    hardware.catalogue.cache_clear()


def get(key: str) -> hardware.Device:
    return hardware.catalogue().get(key)


def job(model: str = "llama-3.1-8b", device: str = "h100", **values: Any) -> Job:
    return Job(runs.known_model(model), get(device), model, **values)


# ---- FLOPs


def test_v3_takes_250_gflop_per_token() -> None:
    """DeepSeek's own figure, within 1%."""
    assert sum(formulas.training_parts(V3, 4096).values()) == pytest.approx(250e9, rel=0.01)


def test_llama_405b_flops_within_three_percent() -> None:
    """2,448 GFLOP per token (3.8e25 FLOPs for 15.6T tokens) are published; T 4096."""
    config = runs.known_model("llama-3.1-405b")
    assert counts.flops_per_token(config, 4096, training=True) == pytest.approx(2448e9, rel=0.03)


@pytest.mark.parametrize("name", runs.model_names())
def test_parts_add_up_to_the_counts(name: str) -> None:
    """`tests/model/test_counts.py` holds the counts against torch's counter of the real products."""
    config = runs.known_model(name)
    for mtp in (False, True):
        parts = formulas.training_parts(config, 4096, mtp=mtp)
        assert sum(parts.values()) == pytest.approx(counts.flops_per_token(config, 4096, True, mtp=mtp))


def test_idle_experts_cost_their_gate_only() -> None:
    """C93: doubling the experts with top-k fixed changes the router's FLOPs and no others."""
    more = dataclasses.replace(V3, n_routed_experts=512)
    before, after = formulas.forward_parts(V3, 4096), formulas.forward_parts(more, 4096)
    assert after.pop("gates") == 2 * before.pop("gates") and after == before


def test_a_window_counts_the_pairs_that_it_leaves() -> None:
    pairs = sum(min(i, 3) for i in range(1, 9))  # a row of 8, a window of 3
    assert (
        formulas.mean_context(8, 3, 1.0) / 2 * 8 == pairs - 3 / 2
    )  # without the diagonal's half, as the causal T/2
    assert formulas.mean_context(8192, 4096, 0.75) == 0.75 * 6144 + 0.25 * 8192


def test_full_recomputation_is_one_more_forward() -> None:
    parts = formulas.training_parts(V3, 4096, recompute="full")
    assert parts["recomputation"] == pytest.approx(
        sum(v for k, v in parts.items() if k != "recomputation") / 3
    )


# ---- published runs


def test_v3_hours_by_its_predecessor_within_five_percent() -> None:
    """The article's 2.664M hours; neither reading is calibrated on V3 itself."""
    row = next(r for r in runs.validate()["rows"] if r["run"] == "deepseek-v3")
    assert row["ratio_by_predecessor"] == pytest.approx(1, abs=0.05)
    assert row["class"] == "moe" and row["ratio"] > 1.3 and row["reason"] and not row["inside_range"]


def test_the_median_error_is_within_thirty_percent_and_every_miss_has_its_reason() -> None:
    found = runs.validate()
    assert found["median_absolute_error"] <= 0.30 and found["rows_with_a_source_seen"] >= 12
    for row in found["rows"]:
        assert abs(row["ratio"] - 1) <= 0.3 or row["reason"], row["run"]


def test_no_class_is_derived_from_a_validation_row() -> None:
    table = runs.runs()
    alone = {key: run for key, run in table.items() if run.use == "calibration"}
    assert runs.classes(alone) == runs.classes()
    frozen = {"dense-large": 0.417, "moe": 0.252, "dense": 0.405, "generic": 0.240, "generic-small": 0.129}
    for name, value in frozen.items():  # a changed class is a decision, not an accident
        assert runs.classes()[name].value == pytest.approx(value, abs=0.001)


def test_every_row_has_its_source_and_evidence() -> None:
    for run in runs.runs().values():
        assert run.source and run.evidence in "VSK" and get(run.device), run.key
        assert run.use in ("calibration", "validation", "listed") and (run.use == "listed" or run.hours > 0)
    assert all(run.evidence in "VS" for run in runs.runs().values() if run.use == "calibration")


def test_deepseeks_day_is_reproduced() -> None:
    """FACTS: $87,072 a day; 0.30 and 0.06 dollars per million tokens; nodes that follow from its own rates."""
    day = runs.serving_day()
    assert day["usd_per_day"] == pytest.approx(87072)
    assert day["usd_per_million_out"] == pytest.approx(0.30, rel=0.01)
    assert day["usd_per_million_in"] == pytest.approx(0.060, rel=0.01)
    assert day["nodes_from_rates"] == pytest.approx(day["nodes_published"], rel=0.01)
    made = plan(
        job("deepseek-v3", "h800", kind="serve", count=144, prompts=10**7, prompt_tokens=4589, answer_tokens=800,
            cached_share=0.5625, tokens_per_second=20, weight_bits=8)
    )  # fmt: skip
    assert made.serving["usd_per_million_out"] == pytest.approx(0.30, rel=0.02)
    assert made.serving["usd_per_million_in"] == pytest.approx(0.060, rel=0.05)


# ---- plans


def test_v3_as_it_was_trained() -> None:
    """Its layout: a step of 62.9M tokens took 19.93 s (their ISCA paper); traffic hides behind it; it fits."""
    made = plan(
        job("deepseek-v3", "h800", count=2048, tokens=14.8e12, pp=16, ep=64, sharding="zero1", like="deepseek-67b",
            states="mixed-bf16-moments", recompute="selective", tokens_per_step=15360 * 4096)
    )  # fmt: skip
    assert made.device_hours == pytest.approx(2.664e6, rel=0.05) and made.usd == pytest.approx(
        5.328e6, rel=0.05
    )
    assert made.step_seconds == pytest.approx(19.93, rel=0.05) and made.fits
    assert made.communication["EP all-to-all"] / 50e9 / made.step_seconds == pytest.approx(0.31, abs=0.03)
    assert "final run only" in made.left_out


def test_budgets_are_solved_and_agree() -> None:
    by_tokens = plan(job(tokens=1e9))
    assert by_tokens.usd is not None
    for given in (
        {"budget_usd": by_tokens.usd},
        {"budget_hours": by_tokens.hours},
        {"budget_flops": by_tokens.flops},
    ):
        assert plan(job(**given)).tokens == pytest.approx(1e9)


def test_reinforcement_learning_within_a_budget() -> None:
    """Prompts follow from tokens, money, hours or FLOPs, and the run then costs that."""
    asked: dict[str, Any] = {"kind": "grpo", "samples": 8, "prompt_tokens": 256, "answer_tokens": 1024}
    one = plan(job("smollm2-360m", prompts=1000, **asked))
    assert one.usd is not None and one.tokens == 1000 * 8 * 1280
    assert any("rows of 1,280" in step for step in one.steps)
    config = runs.known_model("smollm2-360m")
    assert one.memory["logits"] == 1280 * config.vocab_size * 6  # a micro-batch is one such row
    budgets = {
        "tokens": one.tokens,
        "budget_usd": one.usd,
        "budget_hours": one.hours,
        "budget_flops": one.flops,
    }
    for name, value in budgets.items():
        again = plan(job("smollm2-360m", **asked | {name: value}))
        assert again.tokens == one.tokens and again.steps[0].endswith("1,000")
    with pytest.raises(UsageError, match="one prompt takes"):
        plan(job("smollm2-360m", budget_usd=1e-9, **asked))


def test_what_recomputation_would_save_is_said() -> None:
    made = plan(job("deepseek-v3", "h800", count=2048, tokens=1e12, stack="tuned"))
    kept = made.activations
    assert kept["full"] < kept["selective"] < kept["none"] == made.memory["activations"]
    assert made.fits is False and "--recompute full" in made.limit
    assert plan(job("deepseek-v3", "h800", count=2048, tokens=1e12, stack="tuned", recompute="full")).fits


def test_the_link_decides_when_its_traffic_is_longer() -> None:
    apart = plan(job(count=64, tokens=1e9, network_gb_per_second=0.05))
    local = plan(job(count=64, tokens=1e9, network_gb_per_second=0.05, diloco_steps=500))
    assert apart.limit.startswith("the link") and not local.limit.startswith("the link")
    assert apart.device_hours > 5 * local.device_hours


def test_memory_by_hand() -> None:
    """7B in mixed precision: 2 + 4 + 12 bytes a weight, an eighth of it on each of 8 devices."""
    config = runs.known_model("llama-2-7b")
    parts = formulas.training_memory(config, Layout(8), 4096)
    weights = counts.parameters_total(config)
    assert parts["weights"] + parts["gradients"] + parts["optimiser"] == pytest.approx(18 * weights / 8)
    lora = formulas.training_memory(config, Layout(1), 4096, lora_rank=16)
    assert lora["optimiser"] < 0.01 * weights * 12 and lora["weights"] == pytest.approx(2 * weights, rel=0.01)


def test_activations_are_what_autograd_keeps() -> None:
    """The tally against the bytes that our own network saves for its backward pass (fp32: twice the 16-bit count)."""
    import torch

    from shoal.model.context import RowsContext
    from shoal.model.transformer import CausalLM

    config = ModelConfig.from_dict(
        dict(model_type="llama", vocab_size=64, hidden_size=128, intermediate_size=344, num_hidden_layers=6,
             num_attention_heads=4, num_key_value_heads=2)
    )  # fmt: skip
    network = CausalLM(config)
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        hidden = network(torch.randint(0, 64, (256,)), RowsContext(4, 64))
    assert hidden.requires_grad
    expected = 2 * formulas.activation_bytes(config, 256) * config.num_hidden_layers
    assert sum(kept.values()) == pytest.approx(expected, rel=0.25)


def test_kinds_cost_what_they_do() -> None:
    full, lora = plan(job(kind="sft", tokens=1e8)), plan(job(kind="lora", tokens=1e8))
    assert 0.6 < lora.flops / full.flops < 0.75  # 4p instead of 6p, attention and adapters whole
    taught = plan(job(kind="distill", tokens=1e8, teacher=runs.known_model("llama-3.1-70b"), weight_bits=4))
    teacher = counts.flops_per_token(runs.known_model("llama-3.1-70b"), 4096, training=False)
    assert taught.flops_per_token["teacher, forward"] == teacher
    rl = plan(job("smollm2-360m", kind="grpo", prompts=100, samples=8))
    assert rl.tokens == 100 * 8 * 1024 and rl.flops_per_token["rollouts"] > 0
    long = plan(job(kind="extend", tokens=1e8, sequence=131072, recompute="full"))
    assert long.flops > 2 * full.flops


def test_hours_energy_and_money_by_hand() -> None:
    """A billion tokens of Llama-3.1-8B on one H100 (989 TFLOP/s, 700 W, rent of the catalogue) at 40%."""
    made, device = plan(job(tokens=1e9, utilisation=0.4)), get("h100")
    hours = 1e9 * counts.flops_per_token(runs.known_model("llama-3.1-8b"), 4096, True) / (989e12 * 0.4 * 3600)
    assert made.hours == pytest.approx(hours) and made.kwh == pytest.approx(hours * 0.7)
    assert device.usd_per_hour is not None and made.usd == pytest.approx(hours * device.usd_per_hour)
    assert (made.hours_low, made.hours_high) == pytest.approx((hours / 1.3, hours / 0.7))  # 30% to each side
    assert made.usd_high == pytest.approx(made.usd / 0.7)
    by_class = plan(job(tokens=1e9)).utilisation
    assert by_class["low"] == pytest.approx(0.7 * by_class["value"])


def test_a_budget_pays_for_the_link_too() -> None:
    slow = {"count": 64, "network_gb_per_second": 0.05}
    made = plan(job(tokens=1e9, **slow))
    assert plan(job(budget_hours=made.hours, **slow)).tokens == pytest.approx(1e9)


def test_compute_optimal_sizes() -> None:
    assert formulas.compute_optimal(6 * 20 * 1e9**2) == pytest.approx((1e9, 20e9))
    assert formulas.compute_optimal(6 * 500 * 1e9**2, 500) == pytest.approx((1e9, 500e9))


def test_bubbles_by_hand() -> None:
    """16 stages, 60 micro-batches: 15 of 75 slots wait (1F1B); DualPipe waits 7 x 2 of 60 x 3 + 14 thirds of a pass."""
    assert formulas.pipeline_bubble(1, 60) == 0
    assert formulas.pipeline_bubble(16, 60) == 15 / 75
    assert formulas.pipeline_bubble(16, 60, "dualpipe") == 14 / 194


SMALL = ModelConfig.from_dict(
    dict(model_type="llama", vocab_size=64, hidden_size=64, intermediate_size=80, num_hidden_layers=2,
         num_attention_heads=4, num_key_value_heads=2)
)  # fmt: skip


def test_muon_and_adapters_by_hand() -> None:
    """Two layers of q, o (64 x 64), k, v (64 x 32) and three of 64 x 80."""

    def muon(m: int, n: int) -> float:
        return 5 * (4.0 * m * m * n + 2.0 * m**3)

    assert formulas.muon_flops_per_step(SMALL) == 2 * (2 * muon(64, 64) + 2 * muon(32, 64) + 3 * muon(64, 80))
    assert formulas.adapter_weights(SMALL, 3) == 3 * 2 * (2 * 128 + 2 * 96 + 3 * 144)


def test_hybrid_sharing_stays_inside_a_node() -> None:
    weights = counts.parameters_total(SMALL)
    hybrid = formulas.training_memory(SMALL, Layout(64, sharding="hybrid"), 128)
    zero1 = formulas.training_memory(SMALL, Layout(64, sharding="zero1"), 128)
    assert hybrid["optimiser"] == 12 * weights / 8
    assert zero1["optimiser"] == 12 * weights / 64 and zero1["weights"] == 2 * weights


@pytest.mark.parametrize("speed", [30.0, 120.0])  # memory decides, then speed
def test_a_service_by_hand(speed: float) -> None:
    """The most readers that still get their speed and their memory; machines for the day's peak; the first token."""
    asked = {"kind": "serve", "prompts": 10**8, "tokens_per_second": speed, "cached_share": 0.5}
    made, config = plan(job(**asked)), runs.known_model("llama-3.1-8b")
    s, device = made.serving, get("h100")
    weights = counts.parameters_total(config) - config.vocab_size * config.hidden_size
    read = 2 * weights + (512 + 256) * counts.kv_bytes_per_token(config)
    assert s["one_reader_tokens_per_second"] == pytest.approx(3350e9 * planner.MEMORY_SHARE / read)
    readers = round(s["readers"])

    def holds(n: int) -> tuple[bool, bool]:
        bytes_needed = sum(formulas.serving_memory(config, 1, n, 1024, 16).values())
        return planner.decode_seconds(config, device, 1, n, 768, 16) <= 1 / speed, bytes_needed <= 76e9

    assert holds(readers) == (True, True)
    assert holds(readers + 1) == ((True, False) if speed == 30 else (False, True))
    busy = 1e8 * 512 / s["tokens_per_second"] + 1e8 * 256 / s["prefill_tokens_per_second"]
    assert s["machines"] == -(-busy // (86400 * 0.8)) > 1
    assert s["first_token_seconds"] == pytest.approx(256 / s["prefill_tokens_per_second"])


def test_a_step_reads_the_experts_that_its_readers_need() -> None:
    """One reader touches k of E experts; 8 bits a weight, cache nearly none."""
    config, device = runs.known_model("deepseek-v2-lite"), get("h100")
    experts = formulas.expert_weights(config)
    rest = counts.parameters_total(config) - experts - config.vocab_size * config.hidden_size
    rate = 3350e9 * planner.MEMORY_SHARE
    one, two = (planner.decode_seconds(config, device, 1, n, 0, 8) for n in (1, 2))
    assert one == pytest.approx((rest + experts * 6 / 64) / rate)
    assert two == pytest.approx((rest + experts * (1 - (58 / 64) ** 2)) / rate)


def test_an_unknown_figure_stays_unknown() -> None:
    made = plan(job(device="ascend910c", tokens=1e9))
    assert made.usd is None and made.kwh is None and any("price" in note for note in made.notes)


def test_money_in_three_currencies_at_a_dated_rate() -> None:
    values = plan(job(tokens=1e9)).to_dict()
    assert set(values["money"]) >= {"USD", "JPY", "CNY"} and values["currency_date"]
    book = hardware.catalogue()
    assert values["money"]["JPY"] == pytest.approx(values["usd"] * book.currencies["JPY"])


# ---- the export rule


@pytest.mark.parametrize(
    ("device", "version", "name"),
    [
        ("a100", "2022-10", "3A090.a"),
        ("a800", "2022-10", "not 3A090"),  # the link: what it was made for
        ("h800", "2022-10", "not 3A090"),
        ("h800", "2023-10", "3A090.a"),
        ("a800", "2023-10", "3A090.a"),
        ("h20", "2023-10", "not 3A090"),
        ("rtx4090", "2023-10", "3A090.a"),
        ("rtx4090", "2022-10", "not 3A090"),
        ("rtx3090", "2023-10", "not 3A090"),  # not for data centres
        ("m4max", "2026-01", "not 3A090"),
        ("ascend910b", "2022-10", "unknown"),  # its link is not known
    ],
)
def test_export_classes(device: str, version: str, name: str) -> None:
    assert classify(get(device), version).name == name


def test_export_figures_and_review() -> None:
    """Published: H100 TPP 15,832 and density 19.4, H20 2.9; H200 is the chip that the 2026 rule was written for."""
    h100, h20 = classify(get("h100")), classify(get("h20"))
    assert h100.tpp == 15832 and h100.performance_density == pytest.approx(19.4, abs=0.1)
    assert h20.tpp == 2368 and h20.performance_density == pytest.approx(2.9, abs=0.05)
    assert classify(get("h200")).review.startswith("case-by-case")
    assert classify(get("b200")).review.startswith("presumption of denial")
    fast = dataclasses.replace(get("h200"), memory_gb_per_second=6500.0)  # both tests must be passed
    strong = dataclasses.replace(get("h200"), peak={"bf16": 1313.0})
    assert {classify(d).review for d in (fast, strong)} == {"presumption of denial for China and Macau"}
    thin = dataclasses.replace(get("h20"), peak={"bf16": 106.25}, die_mm2=1700 / 3.3)
    assert (
        classify(thin).name == "3A090.b"
        and classify(dataclasses.replace(thin, die_mm2=540.0)).name == "not 3A090"
    )
    wide = dataclasses.replace(get("h20"), peak={"bf16": 160.0}, die_mm2=2560 / 1.7)
    assert (
        classify(wide).name == "3A090.b"
        and classify(dataclasses.replace(wide, die_mm2=1700.0)).name == "not 3A090"
    )
    small = dataclasses.replace(get("h20"), peak={"bf16": 160.0}, die_mm2=None)
    assert classify(small).name == "unknown"  # between 1,600 and 4,800 the die decides
    assert classify(dataclasses.replace(small, die_mm2=700.0)).name == "3A090.b"
    assert classify(dataclasses.replace(small, die_mm2=400.0)).name == "3A090.a"


# ---- bad input


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"tokens": 0}, "above 0"),
        ({}, "only one"),
        ({"tokens": 1e9, "budget_usd": 5.0}, "only one"),
        ({"tokens": 1e9, "kind": "pretraining"}, "pretrain"),
        ({"tokens": 1e9, "usd_per_hour": 2.0}, "date"),
        ({"tokens": 1e9, "usd_per_hour": 2.0, "price_date": "yesterday"}, "date"),
        ({"tokens": 1e9, "usd_per_hour": -2.0, "price_date": "2026-11-26"}, "price must be above 0"),
        ({"tokens": 1e9, "count": 0}, "count must be above 0"),
        ({"tokens": 1e9, "sequence": 0}, "sequence must be above 0"),
        ({"tokens": 1e9, "micro_tokens": -1}, "micro must be 0 or more"),
        ({"tokens": 1e9, "count": 16, "network_gb_per_second": -1}, "network must be 0 or more"),
        ({"tokens": 1e9, "count": 16, "diloco_steps": -1}, "diloco must be 0 or more"),
        ({"tokens": 1e9, "states": "fp31"}, "fp32-muon"),
        ({"tokens": 1e9, "kind": "lora", "lora_rank": 0}, "rank"),
        ({"kind": "grpo", "prompts": 5, "samples": 0}, "samples must be above 0"),
        ({"kind": "grpo"}, "or the prompts"),
        ({"kind": "grpo", "prompts": 5, "budget_usd": 1.0}, "only one"),
        ({"kind": "serve", "prompts": 5, "tokens_per_second": 0}, "speed must be above 0"),
        ({"kind": "serve", "prompts": 5, "weight_bits": -8}, "bits must be above 0"),
        ({"kind": "serve", "prompts": 5, "answer_tokens": -1}, "answer-tokens must be above 0"),
        ({"kind": "serve", "prompts": 5, "cached_share": 1.0}, "cached"),
        ({"kind": "serve", "prompts": 5, "tokens": 1e9}, "not for tokens"),
        ({"tokens": 1e9, "utilisation": 1.4}, "peak"),
        ({"tokens": 1e9, "tp": 5}, "Take a multiple|divide"),
        ({"tokens": 1e9, "kind": "distill"}, "teacher"),
        ({"kind": "serve"}, "prompts"),
        ({"tokens": 1e9, "like": "gpt-9"}, "There are"),
    ],
)
def test_bad_jobs_say_what_would_work(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        plan(job(**values))


def test_too_few_devices_for_the_weights() -> None:
    with pytest.raises(UsageError, match="cannot hold the weights") as caught:
        plan(job("deepseek-v3", "rtx4090", count=8, tokens=1e9))
    assert "would hold it" in str(caught.value)


def test_an_unknown_chip_gets_the_nearest_names() -> None:
    with pytest.raises(UsageError, match="h100"):
        get("h10O")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[rtx4090]\nusd_per_hour = 0.4\n", "without a date"),
        ("[h100]\nusd_per_hour = 0.4\n", "without a date"),  # the catalogue's date is of another price
        ("[electricity]\nusd_per_kwh = 0.1\n", "without a date"),
        ("[currency]\nJPY = 150.0\n", "without a date"),
        ("[currency]\ndate = '2026-11-26'\nJPY = 'many'\n", "no number"),
        ("[h100]\nwatts = 'many'\n", "watts of the wrong type"),
        ("[h100]\ncolour = 'green'\n", "unknown key colour"),
        ("[mine]\nwatts = 3.0\n", "lacks match"),
        ("[h100]\npeak = { bf17 = 1.0 }\n", "bf17"),
        ("[h100]\npeak = { bf16 = 'x' }\n", "bf16"),
        ("h100 = 3\n", "outside"),
    ],
)
def test_prices_of_ones_own_that_cannot_be_used(home: Any, text: str, says: str) -> None:
    (home / "hardware.toml").write_text(text)
    with pytest.raises(ShoalError, match=says):
        hardware.catalogue()


def test_a_price_of_ones_own_is_not_given_the_catalogues_source(home: Any) -> None:
    (home / "hardware.toml").write_text("[h100]\nusd_per_hour = 1.0\ndate = '2026-11-26'\n")
    price = plan(job(tokens=1e9)).price
    assert price["date"] == "2026-11-26" and price["source"] == "your own hardware.toml"


def test_what_no_device_can_mend_is_said_once() -> None:
    with pytest.raises(UsageError, match="teacher"):
        planner.compare(job(kind="distill", tokens=1e9), [get("h100"), get("h20")])


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"{bad", "not JSON"), (b"\xff\xfe", "UTF-16"), (b"[]", "no JSON object"), (b"{}", "model_type")],
)
def test_a_damaged_config_json_is_named(tmp_path: Any, data: bytes, says: str) -> None:
    (tmp_path / "config.json").write_bytes(data)
    result = CliRunner().invoke(app, ["cost", "plan", str(tmp_path / "config.json"), "--tokens", "1G"])
    assert isinstance(result.exception, ShoalError) and says in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["deepseek-v4", "--tokens", "1T"], "Nearest: deepseek-v3"),
        (["llama-3.1-8b", "--tokens", "-5"], "tokens must be above 0"),
        (["llama-3.1-8b", "--tokens", "1T", "--micro", "0.5"], "--micro must be at least 1"),
        (["llama-3.1-8b", "--tokens", "1T", "--step", "0"], "--step must be at least 1"),
        (["llama-3.1-8b", "--tokens", "1T", "--layout", "q3"], "--layout"),
        (["llama-3.1-8b", "--budget", "5EUR"], "no rate for 'EUR'"),
        (["--tokens", "1T"], "no model given"),
    ],
)
def test_bad_options_say_what_would_work(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(app, ["cost", "plan", *arguments])
    assert isinstance(result.exception, UsageError) and says in str(result.exception)


def test_impossible_shapes_come_from_the_configuration() -> None:
    result = CliRunner().invoke(
        app, ["cost", "plan", "deepseek-v3", "--set", "num_experts_per_tok=400", "--tokens", "1T"]
    )
    assert result.exit_code == 1 and "num_experts_per_tok" in str(result.exception)
    result = CliRunner().invoke(
        app, ["cost", "plan", "llama-3.1-8b", "--set", "num_key_value_heads=5", "--tokens", "1T"]
    )
    assert result.exit_code == 1 and "num_key_value_heads" in str(result.exception)
    result = CliRunner().invoke(
        app, ["cost", "plan", "llama-3.1-8b", "--set", "hiden_size=5", "--tokens", "1T"]
    )
    assert result.exit_code == 1 and "hidden_size" in str(result.exception)  # the nearest key


# ---- the command


def test_the_command_speaks_json_and_explains() -> None:
    arguments = [
        "cost",
        "plan",
        "deepseek-v3",
        "--tokens",
        "14.8T",
        "--device",
        "h800",
        "--count",
        "2048",
        "--json",
    ]
    values = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert values["tokens"] == 14.8e12 and values["utilisation"]["class"] == "moe" and values["steps"]
    text = CliRunner().invoke(app, [*arguments[:-1], "--explain"]).stdout
    assert "the working" in text and "final run only" in text and "JPY" in text


def test_the_same_job_on_other_devices() -> None:
    arguments = [
        "cost",
        "compare",
        "llama-3.1-8b",
        "--tokens",
        "1T",
        "--count",
        "64",
        "--devices",
        "h100,h20",
        "--json",
    ]
    rows = json.loads(CliRunner().invoke(app, arguments).stdout)["rows"]
    assert rows[1]["hours"] == pytest.approx(rows[0]["hours"] * 989 / 148)
    assert rows[0]["export"]["class"] == "3A090.a" and rows[1]["export"]["class"] == "not 3A090"
    assert "H20" in CliRunner().invoke(app, ["cost", "compare"]).stdout


def test_validate_prints_every_row() -> None:
    text = CliRunner().invoke(app, ["cost", "validate"]).stdout
    assert all(key in text for key, run in runs.runs().items() if run.use == "validation")
    assert "median" in text and "why:" in text


def test_sums_of_money_are_read_at_the_dated_rate() -> None:
    from shoal.cli.cost import dollars, number

    assert dollars("100") == dollars("100USD") == 100
    assert dollars("15725 JPY") == pytest.approx(15725 / hardware.catalogue().currencies["JPY"])
    assert number("14.8T", "x") == 14.8e12 and number("2e9", "x") == 2e9
    for bad in ("ten", "1.2.3"):
        with pytest.raises(UsageError):
            number(bad, "x")


def test_the_smallest_machine_holds_it_and_half_of_it_does_not() -> None:
    found = planner.smallest_machines(lambda n: 300e9 / n)
    h100 = next(m for m in found if m["device"] == "h100")
    assert h100["count"] == 4 and found == sorted(found, key=lambda m: (m["memory_bytes"], m["count"]))
