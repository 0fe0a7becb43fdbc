from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.data.chat import protocol_for
from shoal.data.packing import IGNORED, Example, Packer, Rows
from shoal.data.tokenizer import Tokenizer
from shoal.data.types import Conversation, Document, Message
from shoal.errors import ShoalError


def examples(part: int, count: int = 60) -> Iterator[Example]:
    """Texts and chats of many lengths, all different."""
    for i in range(count):
        number = part * 1000 + i
        if i % 3 == 2:
            asked = Message("user", f"What is number {number}? " + "Say it again. " * (i % 5))
            yield Conversation(
                (asked, Message("assistant", f"It is {number}.", "I know." if i % 2 else None))
            )
        else:
            yield Document(f"Text {number}: " + "the cat sat on the mat. " * (i % 11 + i % 3))


def make(nano: Tokenizer, **given: object) -> Packer:
    return Packer(examples, nano, protocol_for(nano), **given)  # type: ignore[arg-type]


def documents_of(row: Rows) -> list[tuple[list[int], list[int]]]:
    """(input ids, labels) of each document in a row."""
    result = []
    for number in range(int(row.document_ids.max()) + 1):
        inside = row.document_ids == number
        result.append((row.input_ids[inside].tolist(), row.labels[inside].tolist()))
    return result


def whole(nano: Tokenizer, example: Example) -> tuple[list[int], list[bool]]:
    if isinstance(example, Document):
        ids = [0, *nano.encode(example.text), 1]
        return ids, [True] * len(ids)
    return protocol_for(nano).render_training(example.messages)


@pytest.mark.parametrize("waiting", [1, 64])
def test_every_token_is_packed_once_and_in_its_document(nano: Tokenizer, waiting: int) -> None:
    packer = make(nano, waiting=waiting)
    length = 128
    rows = [packer.row(length) for _ in range(40)]
    taken = itertools.islice(
        itertools.chain.from_iterable(examples(part) for part in itertools.count()), packer.documents
    )
    expected = []
    for example in taken:
        ids, learnt = whole(nano, example)
        labels = [i if flag else IGNORED for i, flag in zip(ids[1:], learnt[1:], strict=True)]
        step = length if isinstance(example, Document) else len(ids)
        for start in range(0, len(ids) - 1, step):
            expected.append((ids[:-1][start : start + length], labels[start : start + length]))
    found = [document for row in rows for document in documents_of(row)]
    for _, ids, flags in packer.state()["pool"]:
        labels = [i if flag == "1" else IGNORED for i, flag in zip(ids[1:], flags[1:], strict=True)]
        found.append((ids[:-1], labels))
    assert sorted(found) == sorted(expected)
    for row in rows:
        assert all(
            array.shape == (length,) and array.dtype == np.int64 for array in (row.input_ids, row.labels)
        )
        padding = row.document_ids == -1
        assert (row.labels[padding] == IGNORED).all() and (row.input_ids[padding] == nano.pad_id).all()
    # The oldest comes first, so nobody waits for ever.
    assert min(serial for serial, *_ in packer.state()["pool"]) >= 40


def test_positions_begin_at_0_in_each_document(nano: Tokenizer) -> None:
    """C69."""
    row = make(nano).row(256)
    starts = np.flatnonzero(np.diff(row.document_ids, prepend=-2))
    for start, end in itertools.pairwise([*starts, 256]):
        if row.document_ids[start] >= 0:
            assert row.position_ids[start:end].tolist() == list(range(end - start))


def test_labels_are_the_answers_and_their_end(nano: Tokenizer) -> None:
    """C66, C70: also where padding and end token are one id."""
    chat = Conversation(
        (Message("user", "hi"), Message("assistant", "yes"), Message("user", "a"), Message("assistant", "no"))
    )

    def label_text(tokenizer: Tokenizer) -> str:
        packer = Packer(lambda part: iter([chat]), tokenizer, protocol_for(tokenizer), waiting=1)
        row = packer.row(20)
        return tokenizer.decode(i for i in row.labels.tolist() if i != IGNORED)

    end = "<｜end▁of▁sentence｜>"
    assert label_text(nano) == f"yes{end}no{end}"
    spec_pad = Tokenizer(nano._spec, bos="<｜begin▁of▁sentence｜>", eos=(end,), pad=end, add_bos=True)
    assert spec_pad.pad_id == spec_pad.eos_ids[0]
    assert label_text(spec_pad) == f"yes{end}no{end}"


def test_loss_on_all(nano: Tokenizer) -> None:
    row = make(nano, loss_on="all").row(256)
    assert ((row.labels != IGNORED) == (row.document_ids >= 0)).all()


@settings(max_examples=12, deadline=None)
@given(before=st.integers(0, 30), lengths=st.lists(st.sampled_from([32, 96, 160]), min_size=1, max_size=6))
def test_resumes_exactly(nano: Tokenizer, before: int, lengths: list[int]) -> None:
    packer = make(nano, waiting=16)
    for _ in range(before):
        packer.row(96)
    state = json.loads(json.dumps(packer.state()))
    expected = [packer.row(length) for length in lengths]
    again = make(nano, waiting=16)
    again.restore(state)
    for want, length in zip(expected, lengths, strict=True):
        got = again.row(length)
        for name in ("input_ids", "labels", "document_ids", "position_ids"):
            assert (getattr(got, name) == getattr(want, name)).all()
    assert again.state() == packer.state()


def test_hardly_any_padding_and_it_is_reported(nano: Tokenizer) -> None:
    """C97."""
    rows = make(nano).rows(16, 256)
    assert rows.input_ids.shape == (16, 256)
    assert rows.tokens == int((rows.document_ids >= 0).sum())
    assert rows.padding_share == pytest.approx(1 - rows.tokens / (16 * 256))
    assert rows.padding_share < 0.02
    in_order = make(nano, waiting=1).rows(16, 256)
    assert in_order.padding_share > rows.padding_share


def test_long_texts_go_on_and_long_chats_are_cut(nano: Tokenizer) -> None:
    text = Document(" ".join(str(i) for i in range(200)))
    ids = whole(nano, text)[0]
    packer = Packer(lambda part: iter([text]), nano, protocol_for(nano), waiting=1)
    learnt: list[int] = []
    while len(learnt) < len(ids) - 1:
        learnt += [i for i in packer.row(64).labels.tolist() if i != IGNORED]
    assert learnt == ids[1:]  # each token is a label once

    chat = Conversation((Message("user", "x " * 100), Message("assistant", "yes")))
    short = Packer(lambda part: iter([chat]), nano, protocol_for(nano))
    with pytest.raises(ShoalError, match="row length is too short"):  # C91
        short.row(32)
    assert short.left_out == 1000


def test_rows_may_become_shorter(nano: Tokenizer) -> None:
    packer = make(nano)
    packer.row(256)
    rows = [packer.row(32) for _ in range(60)]
    assert all(row.document_ids.max() >= 0 for row in rows)


def test_empty_source(nano: Tokenizer) -> None:
    with pytest.raises(ShoalError, match="empty"):
        Packer(lambda part: iter([]), nano).row(8)


def test_conversations_need_a_protocol(nano: Tokenizer) -> None:
    with pytest.raises(ShoalError, match="chat protocol"):
        Packer(examples, nano).row(64)


def test_fast_enough(nano: Tokenizer) -> None:
    """A trainer at 5,000 tokens/s must not wait: 5% of its time is 100,000 tokens/s; a busy machine gets slack."""
    packer = make(nano)
    packer.row(256)
    start = time.process_time()
    tokens = packer.rows(40, 512).tokens
    assert tokens / (time.process_time() - start) > 20_000
