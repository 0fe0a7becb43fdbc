"""Bits per byte of held-out microworld text, per language: comparable across models and tokenizers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shoal.data.chat import protocol_for
from shoal.data.microworld.generate import Split, document_at
from shoal.data.microworld.world import Language
from shoal.data.packing import Example, Packer
from shoal.data.tokenizer import load_tokenizer, tokenizer_from_gguf
from shoal.errors import ShoalError

ROW_LENGTH, ROWS = 512, 4


def microworld_bits_per_byte(
    spec: str | Path,
    *,
    tokens: int = 20_000,
    languages: Sequence[Language] = ("en", "ja"),
    seed: int = 0,
    split: Split = "test",
) -> dict[str, Any]:
    """{language: bits per UTF-8 byte} of stories, lines and chats, all of their text, over about `tokens` tokens each.

    Every document is read by itself; control tokens and marks are no text and count neither way. In fp32.
    """
    import torch

    from shoal.model.checkpoint import load
    from shoal.train.bpb import bits_per_byte
    from shoal.train.loop import Batch

    path = load.resolve(spec)
    side_files = load.read_side_files(path)
    metadata = side_files.gguf_metadata
    tokenizer = tokenizer_from_gguf(metadata) if metadata is not None else load_tokenizer(path)
    network = load.load_network(path).eval()
    protocol = protocol_for(
        tokenizer, model_type=network.config.model_type, chat_template=side_files.chat_template
    )
    ids = range(tokenizer.vocab_size)
    bytes_of_id = torch.tensor(
        [0 if i in tokenizer.special_ids else len(tokenizer.token_bytes(i)) for i in ids]
    )
    found: dict[str, float] = {}
    for language in languages:

        def documents(part: int, language: Language = language) -> Iterator[Example]:
            if part:
                raise ShoalError("the held-out text has one part")  # pragma: no cover - it is endless
            index = 0
            while True:
                yield document_at(seed, index, "pretrain", split, language)
                index += 1

        packer = Packer(documents, tokenizer, protocol, loss_on="all")
        length = min(ROW_LENGTH, network.config.max_position_embeddings)
        batches: list[Batch] = []
        while sum(batch.tokens for batch in batches) < tokens:
            rows = packer.rows(ROWS, length)
            batches.append(
                Batch(
                    input_ids_BL=torch.from_numpy(rows.input_ids),
                    labels_BL=torch.from_numpy(rows.labels),
                    document_ids_BL=torch.from_numpy(rows.document_ids),
                    position_ids_BL=torch.from_numpy(rows.position_ids),
                    tokens=rows.tokens,
                )
            )
        found[language] = bits_per_byte(network, batches, bytes_of_id)
    return {"bits_per_byte": found, "tokens": tokens, "split": split, "seed": seed}
