"""Files, folders and hub data sets to documents and conversations. Nothing is skipped in silence.

A bad row is an error that names file, line and reason: half a data set read without a word costs a training run.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import logging
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from shoal.data.protocol import ROLES
from shoal.data.splits import SHARES, Split, only
from shoal.data.types import Conversation, Document, Message
from shoal.errors import ShoalError

log = logging.getLogger(__name__)

SHAPES = (
    '{"text": "..."}',
    '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    '{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}',
    '{"instruction": "...", "input": "...", "output": "..."}',
    '{"prompt": "...", "completion": "..."}',
)
"""The accepted shapes of a row."""

MAX_LINE_BYTES = 256 << 20
_TEXT_PART_CHARACTERS = 100_000  # a longer text file is cut at blank lines into documents of about this size
_SHAREGPT_ROLES = {
    **{role: role for role in ROLES},
    **dict.fromkeys(("human",), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model", "ai"), "assistant"),
    **dict.fromkeys(("function", "observation"), "tool"),
}
_BROKEN = (OSError, EOFError, zlib.error)
Example = Document | Conversation


def documents(
    spec: str | Path, *, split: Split | None = None, shares: Mapping[str, float] = SHARES
) -> Iterator[Example]:
    """The examples of a file, a folder (sorted, with its sub-folders) or a hub data set, in a fixed order.

    Files: .txt and .md; .jsonl and .json rows in one of `SHAPES`; both also .gz and .zst; .parquet with those columns.
    A hub data set is `hub:OWNER/NAME`, or `hub:OWNER/NAME:CONFIG`, and is streamed. `split` keeps one part of the
    examples (see splits.py); None keeps all. Raises ShoalError, with file, line and reason where there is one.
    """
    examples = _examples(str(spec))
    return examples if split is None else only(examples, split, shares)


def raw_rows(spec: str | Path) -> Iterator[tuple[str, Any]]:
    """(place, JSON value) of every row of a .jsonl file (also .gz, .zst), for rows of another shape than `SHAPES`."""
    path = Path(spec).expanduser()
    if not path.is_file():
        raise ShoalError(f"there is no file {spec}", hint="Give a .jsonl file.")
    for number, line in _lines(path):
        if line := line.strip().removeprefix("\ufeff"):
            where = f"{path}, line {number}"
            yield where, _parsed(line, where)


def example_of(row: Any, where: str = "row", meta: Mapping[str, Any] | None = None) -> Example:
    """A row in one of `SHAPES` as a document or a conversation. `where` is named in errors."""
    if not isinstance(row, Mapping):
        raise _bad(where, f"it is a {_kind(row)}, not an object")
    meta = dict(meta or {})
    if isinstance(row.get("thinking"), bool):
        meta["thinking"] = row["thinking"]
    if row.get("messages") is not None:
        return Conversation(_messages(row["messages"], where), meta)
    if row.get("conversations") is not None:
        return Conversation(_sharegpt(row["conversations"], where), meta)
    for asked, answered in (("instruction", "output"), ("prompt", "completion"), ("prompt", "response")):
        if asked in row and answered in row:
            return Conversation(_pair(row, asked, answered, where), meta)
    if "text" in row:
        if not isinstance(row["text"], str):
            raise _bad(where, f"its text is a {_kind(row['text'])}")
        return Document(row["text"], meta)
    keys = ", ".join(map(repr, list(row)[:8])) or "none"
    raise _bad(where, f"its keys ({keys}) are of no known shape")


def _examples(spec: str) -> Iterator[Example]:
    if spec.startswith("hub:"):
        yield from _hub(spec.removeprefix("hub:"))
        return
    path = Path(spec).expanduser()
    if path.is_dir():
        yield from _folder(path)
    elif path.is_file():
        yield from _reader(path)(path)
    else:
        hint = "Give a file, a folder, or hub:OWNER/NAME."
        if re.fullmatch(r"[\w.-]+/[\w.-]+", spec):
            hint = f"If you mean the hub data set, write hub:{spec}"
        raise ShoalError(f"there is no file or folder {spec}", hint=hint)


def _folder(folder: Path) -> Iterator[Example]:
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    known = [path for path in files if _format(path) in _READERS]
    if not known:
        raise ShoalError(
            f"{folder} holds no file of a known kind", hint=f"Known: {', '.join(_READERS)} (.gz, .zst)."
        )
    if unknown := [path.name for path in files if path not in set(known)]:
        log.warning(
            "%s: %d files of other kinds are not read: %s", folder, len(unknown), ", ".join(unknown[:5])
        )
    for path in known:
        yield from _reader(path)(path)


def _format(path: Path) -> str:
    """The suffix without .gz and .zst."""
    name = path.name.lower()
    return Path(name.removesuffix(".gz").removesuffix(".zst")).suffix


def _reader(path: Path) -> Callable[[Path], Iterator[Example]]:
    reader = _READERS.get(_format(path))
    if reader is None:
        raise ShoalError(f"{path} is of no known kind", hint=f"Known: {', '.join(_READERS)} (.gz, .zst).")
    return reader


def _text_file(path: Path) -> Iterator[Example]:
    part: list[str] = []
    size = count = 0
    for _, line in _lines(path):
        part.append(line)
        size += len(line)
        if size >= _TEXT_PART_CHARACTERS and not line.strip():
            yield Document("".join(part), {"source": str(path), "part": count})
            part, size, count = [], 0, count + 1
    if "".join(part).strip() or not count:
        yield Document("".join(part), {"source": str(path), "part": count})


def _jsonl_file(path: Path) -> Iterator[Example]:
    for number, line in _lines(path):
        line = line.strip().removeprefix("\ufeff")
        if line:
            where = f"{path}, line {number}"
            yield example_of(_parsed(line, where), where, {"source": str(path), "line": number})


def _json_file(path: Path) -> Iterator[Example]:
    rows = _parsed("".join(line for _, line in _lines(path)), str(path))
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], 1):
        yield example_of(row, f"{path}, item {number}", {"source": str(path), "line": number})


def _parquet_file(path: Path) -> Iterator[Example]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield example_of(row, f"{path}, row {number}", {"source": str(path), "line": number})
    except (pyarrow.ArrowException, OSError) as error:
        raise ShoalError(
            f"{path} cannot be read as parquet: {error}", hint="Fetch the file again."
        ) from error


def _hub(name: str) -> Iterator[Example]:
    try:
        import datasets
    except ImportError as error:
        raise ShoalError(
            "hub data sets need the package `datasets`", hint="Install it: pip install 'shoal[hub]'"
        ) from error
    repository, _, config = name.partition(":")
    number = 0
    try:
        rows = iter(datasets.load_dataset(repository, config or None, split="train", streaming=True))
        while (row := next(rows, None)) is not None:
            number += 1
            yield example_of(row, f"hub:{name}, row {number}", {"source": f"hub:{name}", "line": number})
    except ShoalError:
        raise
    except Exception as error:  # the package raises many kinds, from the network's to its own
        raise ShoalError(
            f"the hub data set {name} cannot be read after row {number}: {error}",
            hint="Check the name and the connection (HF_HUB_OFFLINE must not be set); hub:OWNER/NAME:CONFIG names one.",
        ) from error


_READERS: dict[str, Callable[[Path], Iterator[Example]]] = {
    ".txt": _text_file,
    ".md": _text_file,
    ".jsonl": _jsonl_file,
    ".ndjson": _jsonl_file,
    ".json": _json_file,
    ".parquet": _parquet_file,
}


class _Zstandard(io.RawIOBase):
    """The frames of a .zst file, one after another.

    The library's own reader takes a file that is cut off for a whole one; this one raises EOFError.
    """

    def __init__(self, raw: IO[bytes]):
        self._raw = raw
        self._frame: Any = None
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        import zstandard

        while not self._ready:
            data = self._raw.read(1 << 16)
            if not data:
                if self._frame is not None:
                    raise EOFError("the last frame is cut off")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._ready = memoryview(self._frame.decompress(data))
            if self._frame.eof:
                self._raw.seek(-len(self._frame.unused_data), io.SEEK_CUR)
                self._frame = None
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed by its suffix."""
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(open(path, "rb"))
        if path.suffix.lower() == ".gz":
            unpacked: Any = gzip.GzipFile(fileobj=raw)
            yield stack.enter_context(unpacked)
        elif path.suffix.lower() == ".zst":
            yield stack.enter_context(io.BufferedReader(_Zstandard(raw), 1 << 20))
        else:
            yield raw


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line with its end) of a UTF-8 file. Raises ShoalError naming the line that is not."""
    import zstandard

    number = 0
    try:
        with _opened(path) as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise _bad(f"{path}, line {number}", f"it is longer than {MAX_LINE_BYTES >> 20} MB")
                if number == 1:
                    _refuse_utf16(path, line)
                    line = line.removeprefix(b"\xef\xbb\xbf")
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise _not_utf8(path, number, line, error) from error
                yield number, text[:-2] + "\n" if text.endswith("\r\n") else text
    except (*_BROKEN, zstandard.ZstdError) as error:
        raise ShoalError(
            f"{path} cannot be read after line {number}: {error}",
            hint="The file is damaged or cut off; fetch it again.",
        ) from error


def _refuse_utf16(path: Path, first: bytes) -> None:
    if first[:2] in (b"\xff\xfe", b"\xfe\xff") or (len(first) > 1 and 0 in first[:2]):
        raise ShoalError(
            f"{path} is UTF-16, not UTF-8", hint=f"Convert it: iconv -f UTF-16 -t UTF-8 {path.name} > new"
        )


def _not_utf8(path: Path, number: int, line: bytes, error: UnicodeDecodeError) -> ShoalError:
    guess = ""
    with contextlib.suppress(UnicodeDecodeError):
        if re.search(r"[\u3040-\u30ff\u4e00-\u9fff]", line.decode("cp932")):
            guess = "; it looks like Shift-JIS"
    name = "SHIFT_JIS" if guess else "ENCODING"
    return ShoalError(
        f"{path}, line {number}: not UTF-8 (byte {error.start} is 0x{line[error.start]:02x}){guess}",
        hint=f"Convert it: iconv -f {name} -t UTF-8 {path.name} > new",
    )


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text.removeprefix("\ufeff"))
    except RecursionError as error:
        raise _bad(where, "it is nested too deeply") from error
    except ValueError as error:
        reason = f"it is not JSON ({error})"
        if text.rstrip().endswith(","):
            reason += "; it ends with a comma: .jsonl has one object per line and nothing between"
        raise _bad(where, reason) from error


def _messages(entries: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise _bad(where, "its messages are not a list with at least one message")
    messages = []
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, Mapping):
            raise _bad(where, f"message {number} is a {_kind(entry)}, not an object")
        role = entry.get("role")
        if role == "developer":
            role = "system"
        if role not in ROLES:
            meant = _SHAREGPT_ROLES.get(str(role))
            also = f'; write "{meant}" for it' if meant else ""
            raise _bad(where, f"message {number} has role {role!r}, not one of {', '.join(ROLES)}{also}")
        calls = entry.get("tool_calls")
        reasoning = entry.get("reasoning_content", entry.get("reasoning"))
        messages.append(
            Message(
                role=role,
                content=_content(entry.get("content"), where, number),
                reasoning_content=_content(reasoning, where, number),
                tool_calls=tuple(calls) if calls else None,
                tool_call_id=entry.get("tool_call_id"),
                name=entry.get("name"),
            )
        )
    return _answered(tuple(messages), where)


def _sharegpt(entries: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise _bad(where, "its conversations are not a list with at least one turn")
    if all(isinstance(entry, Mapping) and "role" in entry for entry in entries):
        return _messages(entries, where)
    messages = []
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, Mapping) or not {"from", "value"} <= entry.keys():
            raise _bad(where, f"turn {number} has no `from` and `value`")
        role = _SHAREGPT_ROLES.get(str(entry["from"]))
        if role is None:
            raise _bad(
                where, f"turn {number} is from {entry['from']!r}, not one of {', '.join(_SHAREGPT_ROLES)}"
            )
        messages.append(Message(role, _content(entry["value"], where, number)))
    return _answered(tuple(messages), where)


def _pair(row: Mapping[str, Any], asked: str, answered: str, where: str) -> tuple[Message, ...]:
    question, answer = row[asked], row[answered]
    if isinstance(question, list) and isinstance(answer, list):
        return _messages([*question, *answer], where)
    question, answer = _content(question, where, 1), _content(answer, where, 2)
    if asked == "instruction" and row.get("input"):
        question = f"{question}\n\n{_content(row['input'], where, 1)}"
    messages = [Message("user", question), Message("assistant", answer)]
    if isinstance(row.get("system"), str) and row["system"]:
        messages.insert(0, Message("system", row["system"]))
    return _answered(tuple(messages), where)


def _content(content: Any, where: str, number: int) -> str | None:
    """Text, nothing, or the API's list of text parts."""
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, Sequence) and all(
        isinstance(p, Mapping) and p.get("type") == "text" for p in content
    ):
        return "".join(str(part.get("text", "")) for part in content)
    raise _bad(where, f"the content of message {number} is no text")


def _answered(messages: tuple[Message, ...], where: str) -> tuple[Message, ...]:
    if not any(message.role == "assistant" for message in messages):
        raise _bad(where, "it has no assistant turn, so there is nothing to learn from it")
    return messages


def _bad(where: str, reason: str) -> ShoalError:
    return ShoalError(f"{where}: {reason}", hint="Accepted rows:\n  " + "\n  ".join(SHAPES))


def _kind(value: Any) -> str:
    return {"list": "list", "str": "text", "NoneType": "null", "bool": "truth value"}.get(
        type(value).__name__, "number"
    )
