"""Text as it may be shown: no half characters, nothing of a stop string, however the tokens cut the text."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.data.tokenizer import Tokenizer
from shoal.engine.detokenize import Detokenizer, StopMatcher
from shoal.engine.types import Piece

TEXT = "日本語と 👩‍👩‍👧‍👦 と é と 🇯🇵。 The quick brown fox"


def segment(tokenizer: Tokenizer, text: str, generator: random.Random) -> list[int]:
    """Any way to write `text` in tokens of the vocabulary, single bytes included."""
    by_bytes = {
        tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size) if i not in tokenizer.special_ids
    }
    data, ids = text.encode(), []
    while data:
        sizes = [n for n in range(1, 25) if data[:n] in by_bytes and n <= len(data)]
        size = generator.choice(sizes)
        ids.append(by_bytes[data[:size]])
        data = data[size:]
    return ids


def stream(
    tokenizer: Tokenizer, ids: Sequence[int], stops: Sequence[str] = ()
) -> tuple[list[list[Piece]], str | None]:
    """The pieces that each token released, and the stop found."""
    detokenizer, released = Detokenizer(tokenizer, stops), []
    for token_id in ids:
        released.append(detokenizer.push(Piece(token_id, "")))
        if detokenizer.stop is not None:
            return released, detokenizer.stop
    return [*released, detokenizer.finish()], None


def joined(released: list[list[Piece]]) -> str:
    return "".join(piece.text for pieces in released for piece in pieces)


@pytest.fixture(params=range(20))
def generator(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(request.param)


def test_no_half_character_is_shown_and_nothing_is_lost(
    tokenizer: Tokenizer, generator: random.Random
) -> None:
    ids = segment(tokenizer, TEXT, generator)
    released, _ = stream(tokenizer, ids)
    assert joined(released) == TEXT
    assert all("\ufffd" not in piece.text for pieces in released for piece in pieces)
    assert [piece.token_id for pieces in released for piece in pieces] == ids


def test_an_answer_cut_in_the_middle_of_a_character_shows_none_of_it(tokenizer: Tokenizer) -> None:
    by_byte = segment(tokenizer, "語", random.Random(0))
    while len(by_byte) < 3:
        by_byte = segment(tokenizer, "語", random.Random(len(by_byte) + random.randrange(99)))
    released, _ = stream(tokenizer, [*tokenizer.encode("a"), *by_byte[:2]])
    assert joined(released) == "a" and sum(map(len, released)) == 3  # the tokens count all the same


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("The quick brown fox", ["own fox"], "The quick br"),
        ("The quick brown fox", ["nothing", "ick", "fox", "The q?"], "The qu"),
        ("xaaab and on", ["aab"], "xa"),
        ("abababac!", ["ababac"], "ab"),
        ("日本語の文です。続き", ["です。"], "日本語の文"),
        ("one\n\ntwo", ["\n\n"], "one"),
        ("abcd", ["abcd", "bc"], "a"),  # the one that is complete first
        ("abcd", ["bcd", "abcd"], ""),  # of two that end together, the longer
        ("nothing of it", ["itself"], "nothing of it"),  # held to the end, then shown
        ("a 👩‍👩‍👧 family", ["👩‍👩‍👧"], "a "),
    ],
)
def test_stop_strings_across_tokens(
    tokenizer: Tokenizer, generator: random.Random, text: str, stops: list[str], expected: str
) -> None:
    ids = segment(tokenizer, text, generator)
    released, stop = stream(tokenizer, ids, stops)
    assert joined(released) == expected
    assert (stop is not None) == (expected != text)
    shown = ""
    for pieces in released:  # what was shown is never taken back
        shown += "".join(piece.text for piece in pieces)
        assert expected.startswith(shown)
    assert len([piece for pieces in released for piece in pieces]) <= len(ids)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text("abc", max_size=30),
    stops=st.lists(st.text("abc", min_size=1, max_size=5), max_size=4),
    seed=st.integers(0, 10**6),
)
def test_every_split_gives_what_one_letter_at_a_time_gives(
    tokenizer: Tokenizer, text: str, stops: list[str], seed: int
) -> None:
    expected = text
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            expected = text[: end - max(map(len, complete))]
            break
    released, _ = stream(tokenizer, segment(tokenizer, text, random.Random(seed)), stops)
    assert joined(released) == expected


def test_text_is_held_no_longer_than_it_could_begin_a_stop(tokenizer: Tokenizer) -> None:
    matcher = StopMatcher(["own fox", "xyz"])
    assert [matcher.held(t) for t in ("brown", "brow", "a own f", "ax", "axy", "abc", "")] == [
        3,
        2,
        5,
        1,
        2,
        0,
        0,
    ]
    released, _ = stream(tokenizer, tokenizer.encode("o") + tokenizer.encode("k"), ["own fox"])
    assert [joined([pieces]) for pieces in released] == ["", "ok", ""]


def test_marks_are_never_part_of_a_stop_and_text_does_not_match_across_one(tokenizer: Tokenizer) -> None:
    close = tokenizer.id_of("</think>")
    assert close is not None
    ids = [*tokenizer.encode("th"), close, *tokenizer.encode("ink")]
    released, stop = stream(tokenizer, ids, ["think", "</thi", ">in"])
    assert stop is None and joined(released) == "th</think>ink"
    assert [piece.special for pieces in released for piece in pieces].count(True) == 1


def test_the_end_token_has_no_text_but_releases_what_was_held(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer, ["own fox"])
    (held,) = tokenizer.encode("o")
    assert detokenizer.push(Piece(held, "")) == []
    assert [piece.text for piece in detokenizer.push_end(Piece(1, ""))] == ["o", ""]


def test_min_tokens_keeps_stop_strings_from_ending(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer, ["a"], min_tokens=3)
    (a,) = tokenizer.encode("a")
    texts: Callable[[], str] = lambda: "".join(piece.text for piece in detokenizer.push(Piece(a, "")))  # noqa: E731
    assert [texts(), texts(), detokenizer.stop] == ["a", "a", None]
    assert [texts(), detokenizer.stop] == ["", "a"]


def test_the_longest_allowed_stops_cost_little(tokenizer: Tokenizer) -> None:
    """16 stops of 128 characters (vllm#51447: stops that cost a minute)."""
    import time

    matcher = StopMatcher(["a" * 127 + chr(ord("b") + i) for i in range(16)])
    text = "a" * 300
    begin = time.perf_counter()
    for _ in range(100):
        assert matcher.find(text) is None and matcher.held(text) == 127
    assert (time.perf_counter() - begin) / 100 < 0.005
