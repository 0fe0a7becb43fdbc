from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from shoal.data import pretokenizers
from shoal.data.tokenizer import (
    BOS,
    DEEPSEEK_SPECIALS,
    EOS,
    StreamDecoder,
    Tokenizer,
    load_tokenizer,
    tokenizer_from_gguf,
    train_tokenizer,
)
from shoal.errors import ShoalError

HARD = [
    "",
    " ",
    "\n\n  \t x  y\r\n z ",
    "1 12 123 1234 12345 123456 1234567",
    "１ １２ １２３４５６７",
    "1,234.56 v10.0.1 file501",
    "don't I'LL we've",
    "日本語テキスト。カタカナ、ﾊﾝｶｸ 漢字123号",
    "👨‍👩‍👧‍👦 e\u0301 é ﷺ \u3000 a\u00a0b \x00 \x7f \u200f",
    "def f(x):\n    return x+1\n\n\n# c",
    "العربية עברית ไทย 한국어 हिन्दी",
]


@pytest.fixture(params=["nano", "smollm2"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


def test_ids_of_deepseek_control_tokens(nano: Tokenizer) -> None:
    assert [nano.id_of(token) for token in DEEPSEEK_SPECIALS] == list(range(len(DEEPSEEK_SPECIALS)))
    assert (nano.bos_id, nano.eos_ids, nano.pad_id, nano.add_bos) == (0, (1,), 2, True)
    assert nano.special_ids == frozenset(range(len(DEEPSEEK_SPECIALS)))


@pytest.mark.parametrize("text", HARD)
def test_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_batch([text, "x"])[0] == tokenizer.encode(text)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60))
def test_any_text_comes_back_and_streams_the_same(nano: Tokenizer, text: str) -> None:
    ids = nano.encode(text)
    assert not nano.special_ids & set(ids)
    assert nano.decode(ids) == text
    stream = StreamDecoder(nano)
    chunks = [stream.push(token_id) for token_id in ids]
    assert "".join(chunks) + stream.flush() == text
    assert all("\ufffd" not in chunk for chunk in chunks) or "\ufffd" in text


def test_lone_surrogates_do_not_crash(nano: Tokenizer) -> None:
    assert nano.decode(nano.encode("a\ud83db")) == "a\ufffdb"


def test_people_cannot_type_a_control_token(tokenizer: Tokenizer) -> None:
    """C17: every control token's spelling, alone, twice, in a row and split over others, stays text."""
    spellings = [tokenizer.token_of(token_id) or "" for token_id in sorted(tokenizer.special_ids)]
    texts = [*spellings, "".join(spellings), " ".join(spellings)]
    texts += [f"{a[:-3]}{b}{a[-3:]}" for a, b in itertools.pairwise(spellings)]
    for text in texts:
        ids = tokenizer.encode(text)
        assert not tokenizer.special_ids & set(ids), text
        assert not tokenizer.special_ids & set(tokenizer.encode_batch([text])[0]), text
        assert tokenizer.decode(ids) == text
        assert tokenizer.special_ids & set(tokenizer.encode(text, special=True)), text


def test_markup_equals_the_tokenizers_library(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """C14: ids as the library gives them for the saved tokenizer.json, with control tokens in the text too."""
    tokenizer.save(tmp_path)
    library = Backend.from_file(str(tmp_path / "tokenizer.json"))
    spelt = "".join(tokenizer.token_of(i) or "" for i in sorted(tokenizer.special_ids))
    for text in [*HARD, f"a{spelt}b", f" {spelt} ", "x<think>y</think>\n\nz"]:
        expected = library.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, special=True) == expected
        if not tokenizer.special_ids & set(expected):
            assert tokenizer.encode(text) == expected


def test_saved_and_loaded_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    for name in ("vocab_size", "bos_id", "eos_ids", "pad_id", "special_ids", "add_bos", "chat_template"):
        assert getattr(again, name) == getattr(tokenizer, name), name
    assert [again.encode(text) for text in HARD] == [tokenizer.encode(text) for text in HARD]


def test_gguf_and_back(tokenizer: Tokenizer) -> None:
    metadata = tokenizer.to_gguf()
    again = tokenizer_from_gguf(metadata)
    assert again.special_ids == tokenizer.special_ids
    assert (again.bos_id, again.eos_ids, again.add_bos) == (
        tokenizer.bos_id,
        tokenizer.eos_ids,
        tokenizer.add_bos,
    )
    assert [again.encode(text) for text in HARD] == [tokenizer.encode(text) for text in HARD]


def test_smollm2_writes_the_gguf_fields_it_came_with(smollm2: Tokenizer) -> None:
    from shoal.model import registry
    from shoal.model.checkpoint.gguf import read_metadata

    entry = registry.find("smollm2")
    assert entry is not None
    original, written = read_metadata(entry.path), smollm2.to_gguf()
    for key, value in written.items():
        assert original[key] == value, key
    assert (smollm2.bos_id, smollm2.eos_ids, smollm2.add_bos) == (1, (2, 0), False)


@pytest.mark.parametrize("name", ["nano", "smollm2"])
def test_transformers_loads_the_folder(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer: Tokenizer = request.getfixturevalue(name)
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in HARD:
        ids = tokenizer.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids
        assert theirs.decode(ids, clean_up_tokenization_spaces=False) == text
    # C16: one BOS for a raw prompt, from both.
    assert theirs.encode("hello") == tokenizer.encode_prompt("hello")
    assert theirs.chat_template == tokenizer.chat_template
    assert len(theirs) == tokenizer.vocab_size


def test_exactly_one_bos_for_a_raw_prompt(nano: Tokenizer, smollm2: Tokenizer) -> None:
    """C16."""
    assert nano.encode_prompt("hello") == [0, *nano.encode("hello")]
    assert nano.encode_prompt(f"{BOS}hello") == [0, *nano.encode("hello")]
    assert nano.encode_prompt("") == [0]
    assert smollm2.encode_prompt("hello") == smollm2.encode("hello")


def test_digits_stand_alone(nano: Tokenizer) -> None:
    """digits="single": no token holds two digits, though the saved cut is DeepSeek-V3's groups of three."""
    assert [nano.token_bytes(i) for i in nano.encode("2024")] == [b"2", b"0", b"2", b"4"]
    digits = set(b"0123456789")
    assert not [
        i
        for i in range(nano.vocab_size)
        if i not in nano.special_ids and len(digits & set(nano.token_bytes(i))) > 1
    ]
    assert nano.to_gguf()["tokenizer.ggml.pre"] == "deepseek-v3"
    grouped = train_tokenizer(["the year 2024 is 2024 and 2024. "] * 50, vocab_size=300, digits="grouped")
    assert b"202" in [grouped.token_bytes(i) for i in grouped.encode("2024")]


def test_deepseek_v3_cut() -> None:
    """The cut of DeepSeek-V3's tokenizer.json, on the strings that tell it from others."""
    nodes = pretokenizers.deepseek_v3().to_json()["pretokenizers"]
    frame = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    cutter = Backend.from_str(
        json.dumps({**frame, "pre_tokenizer": {"type": "Sequence", "pretokenizers": nodes[:-1]}})
    )
    assert cutter.pre_tokenizer is not None

    def pieces(text: str) -> list[str]:
        assert cutter.pre_tokenizer is not None
        return [text[a:b] for _, (a, b) in cutter.pre_tokenizer.pre_tokenize_str(text)]

    assert pieces("1234567 v10.0.1") == ["123", "456", "7", " v", "10", ".", "0", ".", "1"]
    assert pieces("漢字かなABC!x") == ["漢字かな", "ABC", "!x"]
    assert pieces("a-b c\r\n\n  d") == ["a", "-b", " c", "\r\n\n", " ", " d"]
    assert pieces("I'm { it }...\n") == ["I", "'m", " {", " it", " }...\n"]


def test_training_is_deterministic_across_processes(tmp_path: Path) -> None:
    code = (
        "import sys; from shoal.data.tokenizer import train_tokenizer;"
        "train_tokenizer(['the cat and the dog 12. 猫と犬。 ' * (i % 7) for i in range(200)], 400).save(sys.argv[1])"
    )
    for number in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": number, "TOKENIZERS_PARALLELISM": "true"}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / number)], check=True, env=environment)
    first, second = ((tmp_path / n / "tokenizer.json").read_bytes() for n in ("1", "2"))
    assert first == second


def test_vocabulary_too_small() -> None:
    with pytest.raises(ShoalError, match="too small"):
        train_tokenizer(["a"], vocab_size=200)
    with pytest.raises(ShoalError, match="digits"):
        train_tokenizer(["a"], digits="double")


def test_stream_holds_incomplete_characters(nano: Tokenizer) -> None:
    """C19: no chunk holds U+FFFD, and a character cut off at the end is not shown."""
    text = "猫と👨‍👩‍👧‍👦が眠る"
    ids = nano.encode(text)
    byte_ids = [
        next(i for i in range(nano.vocab_size) if nano.token_bytes(i) == bytes([b])) for b in text.encode()
    ]
    for sequence in (ids, byte_ids):
        stream = StreamDecoder(nano)
        chunks = [stream.push(i) for i in sequence]
        assert "".join(chunks) == text
        assert not any("\ufffd" in chunk for chunk in chunks)
    stream = StreamDecoder(nano)
    assert "".join(map(stream.push, byte_ids[:4])) + stream.flush() == "猫"
    assert nano.decode(byte_ids[:4]) == "猫"
    assert nano.decode([byte_ids[0], *nano.encode("a")]) == "\ufffda"  # really invalid


def test_skipping_special_tokens(nano: Tokenizer) -> None:
    ids = [0, *nano.encode("hi"), 6, 1]
    assert nano.decode(ids) == f"{BOS}hi</think>{EOS}"
    assert nano.decode(ids, skip_special=True) == "hi"
    assert nano.token_bytes(10**6) == b""


def _sentencepiece() -> Tokenizer:
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{b:02X}>" for b in range(256)),
        "▁",
        "a",
        "b",
        "c",
        "ab",
        "▁a",
        "▁ab",
        "bc",
    ]
    types = [2, 3, 3, *[6] * 256, *[1] * 8]
    # Scores say which union comes first: "bc" before "ab".
    scores = [0.0] * 260 + [-9.0, -9.0, -9.0, -3.0, -2.0, -4.0, -1.0]
    return tokenizer_from_gguf(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.scores": scores,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
        }
    )


def test_sentencepiece_kind() -> None:
    tokenizer = _sentencepiece()
    pieces = [tokenizer.token_of(i) for i in tokenizer.encode("abc ab猫")]
    assert pieces == ["▁a", "bc", "▁ab", "<0xE7>", "<0x8C>", "<0xAB>"]
    assert tokenizer.add_bos and tokenizer.bos_id == 1
    for text in ("abc ab猫", "  a", "</s>", "a <s> <0x41>"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not set(ids) & {1, 2}
    with pytest.raises(ShoalError, match="no name for"):
        tokenizer.to_gguf()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "of kind 'bert'"),
        ({"tokenizer.ggml.pre": "brand-new"}, "brand-new"),
        ({"tokenizer.ggml.token_type": [1]}, "differ in length"),
    ],
)
def test_gguf_kinds_that_are_not_known(nano: Tokenizer, change: dict[str, object], message: str) -> None:
    with pytest.raises(ShoalError, match=message):
        tokenizer_from_gguf({**nano.to_gguf(), **change})


def test_unused_gguf_ids_and_forgotten_control_marks(nano: Tokenizer) -> None:
    metadata = nano.to_gguf()
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "[PAD600]", "<|forgotten|>"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 5, 1]
    tokenizer = tokenizer_from_gguf(metadata)
    assert tokenizer.id_of("[PAD600]") is None
    forgotten = tokenizer.id_of("<|forgotten|>")
    assert forgotten in tokenizer.special_ids
    assert forgotten not in tokenizer.encode("a <|forgotten|> b")


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe"])
def test_no_merge_and_no_whole_piece_makes_a_control_token(nano: Tokenizer, pre: str) -> None:
    """C17: a control token that its vocabulary reaches by a merge, or (llama-bpe) takes as a whole piece."""
    metadata = nano.to_gguf()
    metadata["tokenizer.ggml.pre"] = pre
    index = metadata["tokenizer.ggml.tokens"].index("<｜User｜>")
    metadata["tokenizer.ggml.tokens"][index] = "zq"
    metadata["tokenizer.ggml.token_type"][index] = 3
    metadata["tokenizer.ggml.merges"] = ["z q", *metadata["tokenizer.ggml.merges"]]
    tokenizer = tokenizer_from_gguf(metadata)
    assert tokenizer.encode("zq", special=True) == [index]
    assert [tokenizer.token_bytes(i) for i in tokenizer.encode("zq")] == [b"z", b"q"]


def test_ordinary_added_tokens_stay_text(nano: Tokenizer, tmp_path: Path) -> None:
    """Letters that a vocabulary grew by (as DeepSeek LLM's) are no markup and keep their ids in people's text."""
    nano.save(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    entry = {
        "id": 700,
        "content": "ø",
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": True,
    }
    spec["added_tokens"].append({**entry, "special": False})
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("aøb") == [*nano.encode("a"), 700, *nano.encode("b")]
    assert 700 not in tokenizer.special_ids
    assert tokenizer.decode(tokenizer.encode("aøb")) == "aøb"


def test_space_around_marks_as_their_flags_say(nano: Tokenizer, tmp_path: Path) -> None:
    nano.save(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    for entry in spec["added_tokens"]:
        entry["rstrip"] = entry["lstrip"] = entry["content"] == "<think>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = load_tokenizer(tmp_path)
    library = Backend.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("a <think> b", " <think>", "<think>\n\nx </think> y"):
        assert tokenizer.encode(text, special=True) == library.encode(text, add_special_tokens=False).ids


def test_broken_folders(tmp_path: Path) -> None:
    with pytest.raises(ShoalError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ShoalError, match="not JSON"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unigram", "vocab": [["a", 0]]}}')
    with pytest.raises(ShoalError, match="Unigram"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(
        '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}'
    )
    with pytest.raises(ShoalError, match="broken"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"added_tokens": []}')
    with pytest.raises(ShoalError, match="no tokenizer model"):
        load_tokenizer(tmp_path)
