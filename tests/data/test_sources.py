from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import zstandard

from shoal.data.sources import SHAPES, documents, example_of
from shoal.data.types import Conversation, Document, Message
from shoal.errors import ShoalError

CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def texts(path: Path) -> list[str]:
    return [example.text for example in documents(path) if isinstance(example, Document)]


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_jsonl_plain_and_compressed(tmp_path: Path, suffix: str) -> None:
    data = "".join(json.dumps(row) + "\n" for row in ({"text": "one"}, CHAT, {"text": "二"})).encode()
    packed = {
        "": data,
        ".gz": gzip.compress(data),
        ".zst": zstandard.compress(data[:9]) + zstandard.compress(data[9:]),
    }
    path = write(tmp_path / f"rows.jsonl{suffix}", packed[suffix])
    one, chat, two = documents(path)
    assert one == Document("one", {"source": str(path), "line": 1})
    assert isinstance(chat, Conversation) and chat.messages == (
        Message("user", "a"),
        Message("assistant", "b"),
    )
    assert isinstance(two, Document) and (two.text, two.meta["line"]) == ("二", 3)


@pytest.mark.parametrize("rows", [1, 4, 5])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "end", "end end"])
def test_byte_order_mark_line_ends_and_blank_last_lines(
    tmp_path: Path, rows: int, end: str, last: str
) -> None:
    """C78: with a BOM no record is lost, whatever the line ends."""
    body = end.join(json.dumps({"text": str(i)}) for i in range(rows)) + last.replace("end", end).replace(
        " ", ""
    )
    path = write(tmp_path / "x.jsonl", b"\xef\xbb\xbf" + body.encode())
    assert texts(path) == [str(i) for i in range(rows)]


def test_byte_order_mark_in_the_middle(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", '{"text": "a"}\n\ufeff{"text": "b\ufeffc"}\n')
    assert texts(path) == ["a", "b\ufeffc"]
    assert texts(write(tmp_path / "x.txt", "\ufeffa\r\nb\r\n")) == ["a\nb\n"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"text": "a"}\n'.encode("utf-16"), "UTF-16"),
        ('{"text": "a"}\n'.encode("utf-16-le"), "UTF-16"),
        ('{"text": "a"}\n{"text": "日本語"}\n'.encode("shift_jis"), "line 2: not UTF-8.*Shift-JIS"),
        (b'{"text": "a"}\n{"text": "\xff\xfe"}\n', "line 2: not UTF-8"),
        (b'{"text": "a"},\n{"text": "b"}\n', "line 1: it is not JSON.*ends with a comma"),
        (b'{"text": "a"}\n{"text": \n', "line 2: it is not JSON"),
        (b'{"text": "a"}\n[1]\n', "line 2: it is a list"),
        (b'{"text": null}\n', "line 1: its text is a null"),
        (b'{"text": 3}\n', "line 1: its text is a number"),
        (b'{"body": "a"}\n', "'body'.* of no known shape"),
        (b"[" * 100_000 + b"\n", "line 1: it is"),
        (
            json.dumps({"messages": [{"role": "bot", "content": "x"}]}).encode(),
            "role 'bot'.*write \"assistant\"",
        ),
        (json.dumps({"messages": [{"role": "user", "content": "x"}]}).encode(), "no assistant turn"),
        (json.dumps({"messages": [{"role": "system", "content": "x"}]}).encode(), "no assistant turn"),
        (json.dumps({"messages": []}).encode(), "at least one message"),
        (json.dumps({"messages": ["x"]}).encode(), "message 1 is a text"),
        (
            json.dumps({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}).encode(),
            "no text",
        ),
        (json.dumps({"conversations": [{"from": "alien", "value": "x"}]}).encode(), "from 'alien'"),
        (json.dumps({"conversations": [{"value": "x"}]}).encode(), "no `from` and `value`"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    """C78, C91: file, line and reason; nothing is skipped in silence."""
    path = write(tmp_path / "bad.jsonl", data)
    with pytest.raises(ShoalError, match=f"(?s){message}") as error:
        list(documents(path))
    assert "bad.jsonl" in error.value.message
    assert error.value.hint


def test_rows_before_the_bad_one_are_given(tmp_path: Path) -> None:
    stream = documents(write(tmp_path / "x.jsonl", '{"text": "a"}\nnonsense\n'))
    assert next(stream) == Document("a", {"source": str(tmp_path / "x.jsonl"), "line": 1})
    with pytest.raises(ShoalError, match="line 2"):
        next(stream)


def test_one_line_of_50_megabytes(tmp_path: Path) -> None:
    text = "あいうえお " * (50_000_000 // 16)
    path = write(
        tmp_path / "x.jsonl", json.dumps({"text": text}, ensure_ascii=False) + "\n" + json.dumps(CHAT)
    )
    long, chat = documents(path)
    assert isinstance(long, Document) and long.text == text
    assert isinstance(chat, Conversation)


def test_line_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.data.sources.MAX_LINE_BYTES", 1 << 20)
    path = write(tmp_path / "x.jsonl", '{"text": "a"}\n{"text": "' + "x" * (1 << 20) + '"}\n')
    with pytest.raises(ShoalError, match="line 2: it is longer than 1 MB"):
        list(documents(path))


SHAREGPT = [{"from": "system", "value": "s"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]


@pytest.mark.parametrize(
    ("row", "roles"),
    [
        (CHAT, ["user", "assistant"]),
        ({"conversations": SHAREGPT}, ["system", "user", "assistant"]),
        ({"conversations": CHAT["messages"]}, ["user", "assistant"]),
        ({"instruction": "a", "input": "", "output": "b"}, ["user", "assistant"]),
        ({"instruction": "a", "output": "b", "system": "s"}, ["system", "user", "assistant"]),
        ({"prompt": "a", "completion": "b"}, ["user", "assistant"]),
        ({"prompt": CHAT["messages"][:1], "completion": CHAT["messages"][1:]}, ["user", "assistant"]),
        ({"messages": None, "prompt": "a", "response": "b"}, ["user", "assistant"]),
    ],
)
def test_shapes_of_conversations(row: dict[str, Any], roles: list[str]) -> None:
    """C91."""
    example = example_of(row)
    assert isinstance(example, Conversation)
    assert [m.role for m in example.messages] == roles
    assert [m.content for m in example.messages if m.role != "system"] == ["a", "b"]


def test_the_shapes_in_the_hint_are_accepted() -> None:
    for shape in SHAPES:
        example_of(json.loads(shape))


def test_what_else_a_message_may_hold() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    row = {
        "thinking": True,
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "s"}, {"type": "text", "text": "t"}]},
            {"role": "user", "content": "a", "weight": 1},
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
            {"role": "tool", "content": "x", "tool_call_id": "1"},
            {"role": "assistant", "content": "b", "tool_calls": []},
        ],
    }
    example = example_of(row, meta={"line": 1})
    assert isinstance(example, Conversation)
    system, _, calling, tool, last = example.messages
    assert (system.role, system.content) == ("system", "st")
    assert calling.tool_calls == (call,) and calling.reasoning_content == "hm"
    assert tool.tool_call_id == "1" and last.tool_calls is None
    assert example.meta == {"line": 1, "thinking": True}


def test_alpaca_input_is_part_of_the_question() -> None:
    example = example_of({"instruction": "Translate.", "input": "猫", "output": "cat"})
    assert isinstance(example, Conversation) and example.messages[0].content == "Translate.\n\n猫"


def test_text_files_are_cut_at_blank_lines(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {i}. " + "word " * 200 + "\n\n" for i in range(300)]
    path = write(tmp_path / "book.txt", "".join(paragraphs))
    parts = texts(path)
    assert "".join(parts) == "".join(paragraphs)
    assert len(parts) == 4 and all(part.startswith("Paragraph") for part in parts)
    assert texts(write(tmp_path / "short.md", "# a\n\nb")) == ["# a\n\nb"]
    assert texts(write(tmp_path / "empty.txt", "")) == [""]


def test_json_arrays(tmp_path: Path) -> None:
    path = write(
        tmp_path / "alpaca.json", json.dumps([{"instruction": "a", "output": "b"}, {"text": "c"}], indent=1)
    )
    chat, text = documents(path)
    assert isinstance(chat, Conversation) and text == Document("c", {"source": str(path), "line": 2})
    with pytest.raises(ShoalError, match="item 2"):
        list(documents(write(tmp_path / "bad.json", '[{"text": "a"}, {"x": 1}]')))


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "猫"], "n": [1, 2]}), tmp_path / "t.parquet")
    assert texts(tmp_path / "t.parquet") == ["a", "猫"]
    pyarrow.parquet.write_table(pyarrow.table({"messages": [CHAT["messages"]] * 3}), tmp_path / "m.parquet")
    chats = list(documents(tmp_path / "m.parquet"))
    assert len(chats) == 3 and all(isinstance(c, Conversation) and len(c.messages) == 2 for c in chats)
    data = (tmp_path / "t.parquet").read_bytes()
    with pytest.raises(ShoalError, match="parquet"):
        list(documents(write(tmp_path / "cut.parquet", data[: len(data) // 2])))
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(ShoalError, match="row 1"):
        list(documents(tmp_path / "b.parquet"))


def test_folders_in_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "b.txt", "2")
    write(tmp_path / "a" / "z.jsonl", '{"text": "1"}\n')
    write(tmp_path / ".git" / "x.txt", "hidden")
    write(tmp_path / "photo.png", b"\x89PNG")
    with caplog.at_level(logging.WARNING):
        assert texts(tmp_path) == ["1", "2"]
    assert "photo.png" in caplog.text
    (tmp_path / "none").mkdir()
    with pytest.raises(ShoalError, match="no file of a known kind"):
        list(documents(tmp_path / "none"))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_damaged_files(tmp_path: Path, suffix: str) -> None:
    rows = "".join(json.dumps({"text": f"{i} {i * i}"}) + "\n" for i in range(5000)).encode()
    data = gzip.compress(rows) if suffix == ".gz" else zstandard.compress(rows)
    with pytest.raises(ShoalError, match=f"x.jsonl{suffix}"):
        list(documents(write(tmp_path / f"x.jsonl{suffix}", data[: len(data) // 2])))
    with pytest.raises(ShoalError, match=f"x.jsonl{suffix}"):
        list(documents(write(tmp_path / f"x.jsonl{suffix}", b"not compressed at all")))


def test_names_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ShoalError, match="no file or folder"):
        list(documents(tmp_path / "missing.txt"))
    with pytest.raises(ShoalError) as error:
        list(documents("owner/name"))
    assert "hub:owner/name" in error.value.hint
    with pytest.raises(ShoalError, match="no known kind"):
        list(documents(write(tmp_path / "x.docx", "x")))


def test_hub_without_the_package() -> None:
    try:
        import datasets  # noqa: F401
    except ImportError:
        with pytest.raises(ShoalError, match="need the package"):
            list(documents("hub:owner/name"))
    else:
        with pytest.raises(ShoalError, match="cannot be read after row 0"):
            list(documents("hub:owner/name-that-is-not-there"))


def test_a_held_out_part(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", "".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(1000)))
    train = {e.text for e in documents(path, split="train") if isinstance(e, Document)}
    held = {e.text for e in documents(path, split="validation") if isinstance(e, Document)}
    assert len(train) + len(held) == 1000 and not train & held
    assert 5 < len(held) < 45
