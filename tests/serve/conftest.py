"""A real server on a loopback port with a tiny random DeepSeek-V3 that thinks, shared by the tests of this room."""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.serve.browser import browser, open_page, page_server, page_store

from shoal.cli.serve import card_of, open_spec
from shoal.serve.app import create_app
from shoal.serve.listener import Server, bind, url_of
from shoal.serve.models import ModelTable
from shoal.serve.settings import ServerSettings
from shoal.serve.store import Store

__all__ = ["browser", "open_page", "page_server", "page_store"]  # fixtures of the page's tests

TEXTS = [
    "The quick brown fox jumps over the lazy dog. " * 3,
    "Count the boats on the sea: one, two, three. Who are you? I am a small model. ",
    "日本の人口は一億人です。海は広いな大きいな。こんにちは、元気ですか。",
    "def add(a, b):\n    return a + b\n",
]
CONFIG = {
    "model_type": "deepseek_v3", "hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": None,
    "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16, "n_routed_experts": 4,
    "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.0, "norm_topk_prob": True, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder: random weights, a tokenizer trained on a page of text, DeepSeek's chat template."""
    import torch

    from shoal.data.tokenizer import train_tokenizer
    from shoal.model.checkpoint.save import save_checkpoint
    from shoal.model.config import ModelConfig
    from shoal.model.init import init_weights
    from shoal.model.transformer import CausalLM

    torch.set_num_threads(1)
    tokenizer = train_tokenizer(TEXTS, vocab_size=600)
    network = CausalLM(ModelConfig.from_dict(CONFIG | {"vocab_size": tokenizer.vocab_size}))
    init_weights(network, 1)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_checkpoint(folder, network, tokenizer_files=tokenizer.save)
    return folder


Start = Callable[..., str]


def wait_for(found: Callable[[], Any], seconds: float = 30.0) -> Any:
    """The first true value of `found`: what is done in the background is there in a moment."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, "nothing came of it"
        time.sleep(0.05)
    return value


@contextlib.contextmanager
def running(app: object, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """The app behind a real socket, in a thread of this process."""
    sock = bind("127.0.0.1", 0)
    ready = threading.Event()
    server = Server(app, on_ready=ready.set, tls=tls)  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run, args=([sock],), daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield url_of(sock, tls=tls is not None)
    finally:
        server.should_exit = True
        thread.join(15)
        assert not thread.is_alive(), "the server does not stop"


@pytest.fixture(scope="session")
def start_server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start further servers with other settings; they all end with the session."""
    with contextlib.ExitStack() as stack:

        def start(
            settings: ServerSettings | None = None, *, folder: Path | None = None, model: Path | None = None
        ) -> str:
            table = ModelTable([card_of("tiny", model or tiny_model)], open_spec)
            store = Store((folder or tmp_path_factory.mktemp("server")) / "chats.sqlite")
            url = stack.enter_context(running(create_app(settings or ServerSettings(), table, store)))
            for _ in range(300):
                if httpx.get(f"{url}/health", trust_env=False).status_code == 200:
                    return url
                threading.Event().wait(0.1)
            raise AssertionError("the model does not load")

        yield start


@pytest.fixture(scope="session")
def live_server(start_server: Start) -> str:
    """The base URL of a server whose only model is `tiny`."""
    return start_server()


@pytest.fixture
def client(live_server: str) -> Iterator[httpx.Client]:
    """An HTTP client that looks like the page of this server."""
    headers = {"sec-fetch-site": "same-origin"}
    with httpx.Client(base_url=live_server, headers=headers, timeout=30, trust_env=False) as session:
        yield session


@pytest.fixture(scope="session")
def chatml_server(tmp_path_factory: pytest.TempPathFactory, start_server: Start) -> str:
    """A server with a tiny random Llama that speaks ChatML; it has no tokens for thoughts, calls and gaps."""
    import torch

    from shoal.data.tokenizer import tokenizer_from_gguf, train_tokenizer
    from shoal.model.checkpoint.save import save_checkpoint
    from shoal.model.config import ModelConfig
    from shoal.model.init import init_weights
    from shoal.model.transformer import CausalLM

    torch.set_num_threads(1)
    metadata = train_tokenizer(TEXTS, vocab_size=600).to_gguf()
    names = {"<｜User｜>": "<|im_start|>", "<｜Assistant｜>": "<|im_end|>"}
    metadata["tokenizer.ggml.tokens"] = [
        names.get(t, f"<|spare_{i}|>" if t.startswith(("<｜", "<think", "</think")) and i > 2 else t)
        for i, t in enumerate(metadata["tokenizer.ggml.tokens"])
    ]
    del metadata["tokenizer.chat_template"]
    tokenizer = tokenizer_from_gguf(metadata)
    shape = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 2048, "bos_token_id": 0,
             "eos_token_id": 1, "rms_norm_eps": 1e-6, "tie_word_embeddings": True}  # fmt: skip
    network = CausalLM(ModelConfig.from_dict(shape | {"vocab_size": tokenizer.vocab_size}))
    init_weights(network, 1)
    folder = tmp_path_factory.mktemp("models") / "chatml"
    save_checkpoint(folder, network, tokenizer_files=tokenizer.save)
    return start_server(model=folder)


@pytest.fixture
def chatml_client(chatml_server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=chatml_server, timeout=60, trust_env=False) as session:
        yield session
