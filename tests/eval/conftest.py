"""A tiny random DeepSeek-V3 that thinks, opened for real, and a server that speaks the OpenAI API."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

CONFIG = {
    "model_type": "deepseek_v3", "hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": None,
    "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16, "n_routed_experts": 4,
    "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.0, "norm_topk_prob": True, "max_position_embeddings": 1024, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights never stop by themselves."""
    monkeypatch.setattr("shoal.eval.askers.MAX_TOKENS", {False: 12, True: 20})
    monkeypatch.setattr("shoal.eval.card.TRANSCRIPT_TOKENS", 12)
    monkeypatch.setattr("shoal.eval.card.TRANSCRIPTS", 3)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with random weights and a tokenizer trained on microworld text."""
    import torch

    from shoal.data.microworld.generate import stream
    from shoal.data.tokenizer import train_tokenizer
    from shoal.model.checkpoint.save import save_checkpoint
    from shoal.model.config import ModelConfig
    from shoal.model.init import init_weights
    from shoal.model.transformer import CausalLM

    torch.set_num_threads(1)
    streams = [stream(0, "train", "en", "text"), stream(0, "train", "ja", "text")]
    texts = [next(source).text for source in streams for _ in range(200)]
    tokenizer = train_tokenizer(texts, vocab_size=700)
    network = CausalLM(ModelConfig.from_dict(CONFIG | {"vocab_size": tokenizer.vocab_size}))
    init_weights(network, 1)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_checkpoint(folder, network, tokenizer_files=tokenizer.save)
    return folder


@pytest.fixture(scope="session")
def telling_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with weights that let what stands before a token matter (at the start of training it does not)."""
    import torch

    from shoal.data.tokenizer import load_tokenizer
    from shoal.model.checkpoint.load import load_network
    from shoal.model.checkpoint.save import save_checkpoint

    network = load_network(tiny_model)
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    path = tmp_path_factory.mktemp("models") / "telling"
    save_checkpoint(path, network, tokenizer_files=load_tokenizer(tiny_model).save)
    return path


Reply = Callable[[dict[str, Any]], Any]
"""What the server says to a chat body: the answer's text, (text, reasoning), or (HTTP status, body)."""


@pytest.fixture
def openai_server() -> Iterator[Callable[[Reply], str]]:
    """Start a server on loopback that answers by the given function."""
    with contextlib.ExitStack() as stack:

        def start(reply: Reply) -> str:
            class Handler(BaseHTTPRequestHandler):
                def _send(self, status: int, value: Any) -> None:
                    data = (value if isinstance(value, str) else json.dumps(value)).encode()
                    self.send_response(status)
                    self.send_header("content-length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)

                def do_GET(self) -> None:
                    self._send(200, {"data": [{"id": "remote"}]})

                def do_POST(self) -> None:
                    body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                    said = reply(body)
                    if isinstance(said, tuple) and isinstance(said[0], int):
                        return self._send(*said)
                    text, reasoning = said if isinstance(said, tuple) else (said, None)
                    message = {"role": "assistant", "content": text, "reasoning_content": reasoning}
                    choice = {"message": message, "finish_reason": "stop"}
                    self._send(200, {"choices": [choice], "usage": {"completion_tokens": 3}})

                def log_message(self, *_: object) -> None: ...

            server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            stack.callback(thread.join, 5)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_address[1]}"

        yield start
