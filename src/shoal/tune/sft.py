"""Supervised fine-tuning: cross-entropy of the answers in the rows."""

from __future__ import annotations

from shoal.errors import ShoalError
from shoal.train.objective import NextToken
from shoal.train.stage import Parts
from shoal.tune.data import TunedRows, survey
from shoal.tune.recipe import TuneStage
from shoal.tune.run import TuneRun


def prepare(run: TuneRun, stage: TuneStage) -> None:
    """Look through the rows; say how many tokens the epochs are."""
    data = run.data
    if data.generate:
        return
    found = survey(data.train, stage, run.tokenizer, run.protocol)
    run.live.say(f"{stage.source}: {found.sentence(stage)}; {len(data.validation):,} rows are held out")
    if not found.learnt:
        raise ShoalError(
            f"nothing in {stage.source} is to be learnt", hint="--dry-run shows what two rows become."
        )
    stage.tokens = stage.tokens or max(1, round(stage.epochs * found.tokens))


def tuned_rows(run: TuneRun, stage: TuneStage) -> TunedRows:
    """The stage's rows, packed."""
    return run.rows(stage)


def parts(run: TuneRun, stage: TuneStage) -> Parts:
    """What moves, the loss, the rows."""
    rows = tuned_rows(run, stage)
    return Parts(run.trainable(), NextToken(run.network, stage), rows, details=rows.details)


def measure(run: TuneRun, stage: TuneStage) -> dict[str, float]:
    """Bits per byte of held-out rows."""
    return run.heldout(stage)
