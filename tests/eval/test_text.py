"""Bits per byte of any text: against the network's own probabilities, on files of every kind, with paired intervals."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import zstandard
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.data.types import Conversation, Document, Message
from shoal.engine.open import OpenedModel, open_model
from shoal.errors import ShoalError, UsageError
from shoal.eval import text
from shoal.eval.logprobs import score, windows
from shoal.model.checkpoint.load import load_network
from shoal.ops import native
from shoal.train.loop import Batch
from shoal.train.objective import rows_context

STORY = "Tom has a red ball. Mia has 12 apples and gives 3 to Tom. 海は青い。"


@pytest.fixture(scope="module")
def opened(telling_model: Path) -> Iterator[OpenedModel]:
    model = open_model(telling_model, runner="torch", dtype="float32", max_num_seqs=4)
    yield model
    model.close()


@torch.no_grad()
def logits_of(telling_model: Path, ids: list[int]) -> torch.Tensor:
    """[n, vocabulary] in float64, by the network without an engine."""
    ids_BL = torch.tensor([ids])
    zeros_BL, positions_BL = torch.zeros_like(ids_BL), torch.arange(len(ids))[None]
    network = load_network(telling_model).eval()
    context = rows_context(Batch(ids_BL, ids_BL, zeros_BL, positions_BL, len(ids)), train=False)
    return network.logits(network(ids_BL[0], context)).double()


def reference(telling_model: Path, ids: list[int]) -> np.ndarray:
    """log p of tokens 1 .. n - 1."""
    logprobs = logits_of(telling_model, ids)[:-1].log_softmax(-1)
    return logprobs.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


@pytest.mark.parametrize(
    ("tokens", "window", "stride"), [(1, 8, 4), (8, 8, 4), (9, 8, 7), (30, 8, 1), (31, 8, 3)]
)
def test_each_token_counts_once_and_has_enough_before_it(tokens: int, window: int, stride: int) -> None:
    found = list(windows(tokens, window, stride))
    assert [i for _, end, first in found for i in range(first, end)] == list(range(1, tokens))
    assert all(end - start <= window and first > start for start, end, first in found)
    assert all(first - start >= window - stride for start, _, first in found[1:])


def test_log_probabilities_are_the_networks(opened: OpenedModel, telling_model: Path) -> None:
    generator = np.random.default_rng(0)
    rows = [generator.integers(0, opened.config.vocab_size, n).tolist() for n in (1, 2, 300, 17)]
    for ids, found in zip(rows, score(opened, rows, likeliest=True), strict=True):
        if len(ids) > 1:
            expected = reference(telling_model, ids)
            np.testing.assert_allclose(found.logprobs, expected, atol=2e-5)
        assert len(found.logprobs) == len(found.likeliest) == len(ids) - 1
    chain = [5]
    for wanted in (True, False, True, True, False):
        best = int(logits_of(telling_model, chain)[-1].argmax())
        chain.append(best if wanted else best + 1)
    assert next(score(opened, [chain], likeliest=True)).likeliest.tolist() == [True, False, True, True, False]
    assert not next(score(opened, [chain])).likeliest.any()


def test_a_document_is_charged_for_every_byte_and_a_chat_for_its_answers(
    opened: OpenedModel, telling_model: Path
) -> None:
    tokenizer = opened.tokenizer
    document = Document(STORY)
    assert tokenizer.bos_id is not None
    ids = [tokenizer.bos_id, *tokenizer.encode(STORY)]
    found = text.evaluate(opened, [document])
    nats = -reference(telling_model, ids).sum()
    assert found["bytes"] == len(STORY.encode()) and found["tokens"] == len(ids) - 1 and found["chats"] == 0
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / found["bytes"], abs=1e-4)
    assert found["low"] is None, "one document tells nothing of others"

    window, stride = 16, 6
    strided = text.evaluate(opened, [document], window=window, stride=stride)
    nats = 0.0
    for start, end, first in windows(len(ids), window, stride):
        nats -= reference(telling_model, ids[start:end])[first - start - 1 :].sum()
    assert strided["bits_per_byte"] == pytest.approx(nats / math.log(2) / found["bytes"], abs=1e-4)
    assert strided["bits_per_byte"] != pytest.approx(found["bits_per_byte"], abs=1e-4)

    answers = ("It is red.", "Mia has 9 apples.")
    chat = Conversation(
        (Message("user", "What colour?"), Message("assistant", answers[0]),
         Message("user", "How many?"), Message("assistant", answers[1]))
    )  # fmt: skip
    measured = text.evaluate(opened, [chat])
    assert measured["bytes"] == sum(map(len, answers)) and measured["chats"] == 1
    spelt, learnt = opened.protocol.render_training(chat.messages)
    text_only = [flag and i not in tokenizer.special_ids for i, flag in zip(spelt, learnt, strict=True)]
    nats = -reference(telling_model, spelt)[text_only[1:]].sum()
    assert measured["bits_per_byte"] == pytest.approx(nats / math.log(2) / measured["bytes"], abs=1e-4)


@pytest.mark.skipif(not native.available, reason="the native kernels are not built")
def test_both_runners_agree(opened: OpenedModel, telling_model: Path) -> None:
    plain = open_model(telling_model, runner="native", quant="none", max_num_seqs=4)
    try:
        mine, theirs = (text.evaluate(model, [Document(STORY)] * 3) for model in (plain, opened))
        assert mine["bits_per_byte"] == pytest.approx(theirs["bits_per_byte"], rel=5e-3)
    finally:
        plain.close()


def test_intervals_are_over_documents_and_differences_are_paired() -> None:
    generator = np.random.default_rng(1)
    sizes = generator.integers(50, 500, 200).tolist()
    rates = generator.normal(1.0, 0.3, 200)
    bits = [float(rate * size) for rate, size in zip(rates, sizes, strict=True)]
    found = text.summary(bits, sizes)
    assert found.bits_per_byte == pytest.approx(sum(bits) / sum(sizes)) and found.low and found.high
    # The spread of a weighted mean by hand, against the bootstrap's.
    weights = np.array(sizes) / sum(sizes)
    error = math.sqrt(float((weights**2 * (rates - found.bits_per_byte) ** 2).sum()))
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(error, rel=0.1)

    def result(values: list[float]) -> dict[str, Any]:
        return {"sha256": "a", "each": {"bits": values, "bytes": sizes}}

    shift = [b + 0.02 * size for b, size in zip(bits, sizes, strict=True)]
    gap = text.difference(result(shift), result(bits))
    assert gap.bits_per_byte == pytest.approx(0.02) and gap.high - gap.low < 1e-9  # type: ignore[operator]
    with pytest.raises(ShoalError, match="not of the same text"):
        text.difference(result(bits), {**result(bits), "sha256": "b"})


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["eval", *arguments])


def test_every_kind_of_file_gives_the_same_figure(tiny_model: Path, tmp_path: Path) -> None:
    row = json.dumps({"text": STORY}, ensure_ascii=False) + "\n"
    (tmp_path / "a.txt").write_text(STORY, encoding="utf-8")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(STORY.encode()))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(row.encode()))
    pyarrow.parquet.write_table(pyarrow.table({"text": [STORY]}), tmp_path / "d.parquet")
    files = sorted(tmp_path.iterdir())
    texts = [part for file in files for part in ("--text", str(file))]
    out = tmp_path / "out.json"
    options = ("--runner", "torch", "--dtype", "float32")
    outcome = run(str(tiny_model), "bpb", *texts, *options, "--json", "--out", str(out))
    assert outcome.exit_code == 0, outcome.output
    result = json.loads(outcome.stdout)
    assert result == json.loads(out.read_text(encoding="utf-8")) and result["weights"] == "float32"
    assert [t["text"] for t in result["text"]] == [str(file) for file in files]
    assert len({(t["bits_per_byte"], t["bytes"], t["sha256"]) for t in result["text"]}) == 1

    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "chats.jsonl").write_text('{"prompt": "Hi", "completion": "Hello."}\n' * 3)
    (folder / "empty.txt").write_text("")
    outcome = run(str(tiny_model), "--text", str(folder), *options, "--json", "--out", str(out))
    (chats,) = json.loads(outcome.stdout)["text"]
    assert (chats["documents"], chats["bytes"], chats["empty"], chats["chats"]) == (3, 18, 1, 3)
    outcome = run(str(tiny_model), "bpb", "--text", str(folder), *options, "--beside", str(out))
    lines = outcome.stdout.splitlines()
    assert len(lines) == 4 and lines[2].endswith("+0.0000 (+0.0000 to +0.0000)"), outcome.output
    outcome = run(str(tiny_model), "bpb", "--text", str(folder), "--n", "2", *options, "--beside", str(out))
    assert "none of the other results is of this text" in str(outcome.exception)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("sum", "--text", "a.txt"), UsageError, "for bits per byte of a text"),
        (("bpb", "--stride", "3"), UsageError, "for bits per byte of a text"),
        (("bpb", "--text", "a.txt", "--split", "test"), UsageError, "held out as 'test'"),
        (("bpb", "--text", "gone.txt"), ShoalError, "no file or folder gone.txt"),
        (("bpb", "--text", "{tmp}/half.jsonl"), ShoalError, "half.jsonl 1: .*no text|surrogates"),
        (("bpb", "--text", "{tmp}/empty.txt"), ShoalError, "no text to measure"),
        (("bpb", "--text", "{tmp}/a.txt", "--window", "5000"), UsageError, "a window of 5000 tokens"),
        (("bpb", "--text", "{tmp}/a.txt", "--window", "8", "--stride", "8"), UsageError, "with stride 8"),
        (("bpb", "--text", "a.txt", "--endpoint", "http://127.0.0.1:9"), UsageError, "need the weights"),
    ],
)
def test_wrong_use(
    arguments: tuple[str, ...], kind: type[Exception], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("a b")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "half.jsonl").write_text('{"text": "\\ud83d"}\n')
    outcome = run(str(tiny_model), *(part.format(tmp=tmp_path) for part in arguments))
    assert isinstance(outcome.exception, kind), outcome.output
    with pytest.raises(kind, match=message):
        raise outcome.exception
