"""The loop's arithmetic: sums over the whole step, steps that are not finite, the router's bias."""

from __future__ import annotations

import math

import pytest
import torch

from shoal.errors import ShoalError
from shoal.train.loop import Batch, Terms
from shoal.train.objective import DraftObjective, NextToken, after_next
from shoal.train.optim import Optimizer


def gradients(trainer):
    """The gradients of the next step, without the step."""
    seen = {}

    def keep(**_):
        seen.update(
            {n: p.grad.clone() for n, p in trainer.objective.network.named_parameters() if p.grad is not None}
        )

    trainer.optimizer.step = keep
    record = trainer.train_step()
    return seen, record


@pytest.mark.parametrize("objective", [NextToken, DraftObjective])
def test_accumulation_equals_one_large_batch(make_trainer, random_rows, objective):
    # C67: means of means weigh short answers too much; balance term and draft module included
    whole, one = gradients(make_trainer(random_rows(micro_rows=8), objective=objective))
    parts, many = gradients(make_trainer(random_rows(micro_rows=1), objective=objective))
    assert one.losses == pytest.approx(many.losses, rel=1e-5)
    assert one.losses["balance"] > 0.5
    assert whole.keys() == parts.keys() and len(whole) > 10
    for name, gradient in whole.items():
        torch.testing.assert_close(gradient, parts[name], rtol=1e-4, atol=1e-6, msg=name)


def test_a_micro_batch_without_labels_changes_nothing(make_trainer, random_rows):
    # C64: a mean over nothing is NaN
    class WithEmpty(random_rows):
        def next_step(self, progress):
            batches = super().next_step(progress)
            empty = batches[0]
            labels = torch.full_like(empty.labels_BL, -100)
            return [*batches, Batch(empty.input_ids_BL, labels, empty.document_ids_BL)]

    plain, _ = gradients(make_trainer(balance_weight=0.0))
    trainer = make_trainer(WithEmpty(), balance_weight=0.0)
    padded, record = gradients(trainer)
    assert math.isfinite(record.losses["main"]) and not record.skipped
    assert record.unlabelled == trainer.progress.unlabelled == 1
    for name, gradient in plain.items():
        torch.testing.assert_close(gradient, padded[name], msg=name)


def test_a_step_that_is_not_finite_never_reaches_the_weights(make_trainer):
    trainer = make_trainer()
    trainer.train_step()
    before = {k: v.clone() for k, v in trainer.objective.network.state_dict().items()}
    terms = trainer.objective.terms
    trainer.objective.terms = lambda batch: Terms({"main": terms(batch).sums["main"] * math.nan})
    record = trainer.train_step()
    assert record.skipped and trainer.progress.skipped == 1
    for name, value in trainer.objective.network.state_dict().items():
        assert torch.equal(value, before[name]), name
    trainer.objective.terms = terms
    assert not trainer.train_step().skipped
    trainer.objective.terms = lambda batch: Terms({"main": terms(batch).sums["main"] * math.inf})
    with pytest.raises(ShoalError, match="not finite"):
        trainer.run()


def test_a_step_without_labels_moves_nothing_and_is_no_failure(make_trainer, random_rows):
    # C64: twenty of them in a row once ended a run as "not finite"
    trainer = make_trainer(random_rows(masked=1.1, micro_rows=4), objective=NextToken)
    before = {k: v.clone() for k, v in trainer.objective.network.state_dict().items()}
    records = []
    trainer.run([lambda _, record: records.append(record)], stop_after=25)
    assert len(records) == 25 and all(r.skipped and r.unlabelled == 2 for r in records)
    assert trainer.progress.skipped == 0 and trainer.progress.unlabelled == 50
    assert trainer.progress.tokens == 25 * 128
    for name, value in trainer.objective.network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_rows_without_tokens_end_the_run_with_their_own_words(make_trainer, random_rows):
    trainer = make_trainer(random_rows(padded=16))
    with pytest.raises(ShoalError, match="without a single token"):
        trainer.run()


@pytest.mark.parametrize(("padded", "share"), [(0, 0.0), (10, 0.625)])
def test_padding_is_counted_apart_from_tokens(make_trainer, random_rows, padded, share):
    # C97: tokens per second with padding in it make a worse packing look faster
    trainer = make_trainer(random_rows(padded=padded, micro_rows=2))
    record = trainer.train_step()
    trainer.train_step()
    assert record.step_tokens == 8 * (16 - padded) and record.padding == 8 * padded
    assert trainer.progress.padding_share == share


@pytest.mark.parametrize("device", ["cuda", "mps"])
@pytest.mark.parametrize("objective", [NextToken, DraftObjective])
def test_other_devices_train_and_resume_as_the_cpu_does(make_trainer, random_rows, objective, device):
    if not (torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()):
        pytest.skip(f"no {device} device here")
    one, other = (
        make_trainer(random_rows(micro_rows=4), objective=objective, device=d) for d in ("cpu", device)
    )
    losses = [(one.train_step().losses["main"], other.train_step().losses["main"]) for _ in range(3)]
    saved = {name: tensor.cpu() for name, tensor in other.optimizer.state().items()}
    other.optimizer.load(saved)
    losses.append((one.train_step().losses["main"], other.train_step().losses["main"]))
    assert [a for a, _ in losses] == pytest.approx([b for _, b in losses], rel=2e-3)


def test_the_draft_module_learns_the_token_after_next_of_the_same_document():
    # C69
    x = -100
    ids = torch.tensor([[10, 11, 12, 20, 21, 22, 0, 0]])
    labels = torch.tensor([[11, 12, 13, 21, x, 23, x, x]])
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, -1, -1]])
    next_ids, after = after_next(Batch(ids, labels, documents))
    assert next_ids[0, :6].tolist() == [11, 12, 20, 21, 22, 0]
    assert after.tolist() == [[12, 13, x, x, 23, x, x, x]]


def test_the_bias_moves_once_per_step_by_the_counts_of_the_whole_step(make_trainer, random_rows):
    # C72: not once per micro-batch, and its mean stays where it was
    trainer = make_trainer(random_rows(micro_rows=1))
    bias = trainer.router.biases[1]
    record = trainer.train_step()
    assert float(bias.abs().max()) <= 2 * 5e-3 + 1e-9 and float(bias.abs().max()) > 0
    assert abs(float(bias.mean())) < 1e-9
    assert record.max_violation > 0
    counts = {1: torch.tensor([10, 0, 2, 0])}
    bias.zero_()
    assert trainer.router.update(counts, 0.1) == pytest.approx(10 / 3 - 1)
    torch.testing.assert_close(bias, torch.tensor([-0.15, 0.05, 0.05, 0.05]))


def test_training_learns(make_trainer, random_rows):
    trainer = make_trainer(random_rows(masked=0.0), tokens=128 * 80, lr=0.03)
    first = trainer.train_step().losses["main"]
    trainer.run()
    assert trainer.progress.tokens == 128 * 80
    assert trainer.train_step().losses["main"] < 0.3 * first  # counting upwards is easy


def test_a_time_budget_ends_the_schedule(make_trainer):
    trainer = make_trainer(tokens=10**9)
    trainer.seconds = 0.5
    records = []
    trainer.run([lambda _, record: records.append(record)])
    assert 0.4 < trainer.progress.seconds < 2
    assert records[-1].lr_scale < 0.5 < max(r.lr_scale for r in records)


def test_every_parameter_is_in_one_group(make_network):
    network = make_network()
    from shoal.train.recipe import StageRecipe

    optimizer = Optimizer(network.named_parameters(), StageRecipe(tokens=1))
    assert len(optimizer.parameters()) == len(list(network.parameters()))
    assert set(optimizer.groups["router"]) == {f"model.layers.{i}.mlp.gate.weight" for i in (1, 2)}
    assert set(optimizer.groups["head"]) == {"lm_head.weight"}
    assert "model.layers.1.mlp.experts.gate_proj" in optimizer.groups["matrices"]
    assert "model.layers.0.mlp.gate_proj.weight" in optimizer.groups["matrices"]
