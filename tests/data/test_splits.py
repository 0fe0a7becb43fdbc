from __future__ import annotations

import subprocess
import sys

import pytest

from shoal.data.splits import canonical, only, split_of
from shoal.data.types import Conversation, Document, Message
from shoal.errors import ShoalError


def chat(question: str, answer: str = "yes") -> Conversation:
    return Conversation((Message("user", question), Message("assistant", answer)))


SHARES = {"validation": 0.1, "test": 0.1}
DOCUMENTS: list[Document | Conversation] = [Document(f"text {i}") for i in range(3000)]


def test_shares_are_kept_and_nothing_is_in_two_splits() -> None:
    parts = {name: list(only(DOCUMENTS, name, SHARES)) for name in ("train", "validation", "test")}  # type: ignore[arg-type]
    assert sum(map(len, parts.values())) == len(DOCUMENTS)
    texts = [{d.text for d in part if isinstance(d, Document)} for part in parts.values()]
    assert not texts[0] & texts[1] and not texts[1] & texts[2]
    assert 230 < len(parts["validation"]) < 370 and 230 < len(parts["test"]) < 370


def test_the_same_example_is_on_one_side_however_it_is_written() -> None:
    for i in range(100):
        same = [Document(f"A  cat {i}"), Document(f"a cat　{i}\n"), Document(f"Ａ CAT {i}", {"line": 7})]
        assert len({split_of(example, SHARES) for example in same}) == 1
        asked = [chat(f"What is {i}?"), chat(f"what is  {i}?", "another answer")]
        assert len({split_of(example, SHARES) for example in asked}) == 1
    assert canonical(chat("a")) != canonical(chat("b"))


def test_another_process_and_order_give_the_same() -> None:
    code = (
        "from shoal.data.splits import split_of; from shoal.data.types import Document;"
        "print(','.join(split_of(Document(f'text {i}'), {'validation': 0.5}) for i in range(20)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip().split(",") == [
        split_of(Document(f"text {i}"), {"validation": 0.5}) for i in range(20)
    ]


def test_another_salt_is_another_draw() -> None:
    one = [split_of(d, SHARES) for d in DOCUMENTS[:300]]
    assert one != [split_of(d, SHARES, salt="2") for d in DOCUMENTS[:300]]


@pytest.mark.parametrize("shares", [{"validation": 1.0}, {"dev": 0.1}, {"validation": -0.1}])
def test_wrong_shares(shares: dict[str, float]) -> None:
    with pytest.raises(ShoalError, match="shares"):
        split_of(Document("x"), shares)
