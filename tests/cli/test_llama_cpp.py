"""What `shoal convert` writes, llama.cpp loads, cuts text into the same tokens and says the same (slow).

Wants llama-cpp-python, in this Python or in the one that SHOAL_LLAMA_PYTHON names.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.data.tokenizer import train_tokenizer
from shoal.engine.open import open_model
from shoal.engine.types import Delta, Request, SamplingParams
from shoal.model import registry
from shoal.model.checkpoint.save import save_checkpoint
from shoal.model.config import ModelConfig
from shoal.model.transformer import CausalLM

pytestmark = pytest.mark.slow

NEW = 32
EPSILON = {"none": 0.002, "f16": 0.02}
"""Where the two best logits differ by less, either may win: sums run in another order, llama.cpp's SiLU and softmax
are approximations, and it rounds activations to the 16 bits of the weights."""
PROMPTS = [
    "The sea is wide and the sky is high.",
    "Tom has 3 apples and buys 12345 more. How many",
    "海は広い。空は高い。",
    "def add(a, b):\n    return",
    "Once upon a time, in a land far away,",
]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
THEIRS = """
import json, sys
import llama_cpp
asked = json.load(sys.stdin)
one = {"n_threads": 1, "n_threads_batch": 1}  # two threads that spin wait for ever on a busy machine
llm = llama_cpp.Llama(asked["path"], n_ctx=512, verbose=False, type_k=0, type_v=0, seed=1, **one)
out = {"template": llm.metadata.get("tokenizer.chat_template"), "answers": []}
for text in asked["prompts"]:
    ids = llm.tokenize(text.encode(), add_bos=True, special=False)
    llm.reset()
    said = []
    for token in llm.generate(ids, top_k=1, temp=0.0, repeat_penalty=1.0):
        said.append(int(token))
        if len(said) == asked["new"]:
            break
    out["answers"].append([ids, said, llm.detokenize(said).decode("utf-8", "replace")])
print(json.dumps(out))
"""
SMALL: dict[str, Any] = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=512,
)
MLA: dict[str, Any] = dict(
    SMALL, kv_lora_rank=32, qk_nope_head_dim=32, qk_rope_head_dim=32, v_head_dim=32, moe_intermediate_size=32,
    n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=2, first_k_dense_replace=1,
)  # fmt: skip
V3: dict[str, Any] = dict(
    MLA, model_type="deepseek_v3", q_lora_rank=48, n_group=4, topk_group=2, topk_method="noaux_tc",
    scoring_func="sigmoid", norm_topk_prob=True, routed_scaling_factor=2.5, num_nextn_predict_layers=1,
)  # fmt: skip
RANDOM: dict[str, dict[str, Any]] = {
    "llama": dict(SMALL, model_type="llama", num_key_value_heads=2),
    "qwen2": dict(SMALL, model_type="qwen2", num_key_value_heads=2),
    "qwen3": dict(SMALL, model_type="qwen3", num_key_value_heads=2, head_dim=32, tie_word_embeddings=True),
    "deepseek2 with q_lora": V3,
    "deepseek2 without": dict(MLA, model_type="deepseek_v2", q_lora_rank=None, routed_scaling_factor=16.0),
}


@pytest.fixture(scope="module")
def python() -> str:
    """A Python that has llama_cpp."""
    chosen = os.environ.get("SHOAL_LLAMA_PYTHON", sys.executable)
    if subprocess.run([chosen, "-c", "import llama_cpp"], capture_output=True).returncode:
        pytest.skip(
            f"llama-cpp-python is not installed in {chosen}: name another Python in SHOAL_LLAMA_PYTHON"
        )
    return chosen


def random_checkpoint(folder: Path, values: dict[str, Any]) -> Path:
    tokenizer = train_tokenizer([*PROMPTS, "hello there, world"] * 5, vocab_size=400)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_ids[0]}
    network = CausalLM(ModelConfig(**values, vocab_size=tokenizer.vocab_size, **ids), mtp=values is V3)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("norm.weight"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            else:
                scale = 2 / math.sqrt(tensor.shape[-1]) if tensor.dim() > 1 else 0.2
                tensor.normal_(0, scale, generator=generator)
    save_checkpoint(folder, network, tokenizer_files=tokenizer.save, chat_template=TEMPLATE)
    return folder


def ask(python: str, path: Path, prompts: list[str], new: int) -> dict[str, Any]:
    asked = json.dumps({"path": str(path), "prompts": prompts, "new": new})
    told = subprocess.run([python, "-c", THEIRS], input=asked, capture_output=True, text=True)
    if told.returncode == -signal.SIGILL:
        pytest.skip("this build of llama.cpp dies of an illegal instruction (AMX kernels made by gcc 12)")
    assert told.returncode == 0, told.stderr
    return dict(json.loads(told.stdout.splitlines()[-1]))


def clear(engine: Any, ids: list[int], epsilon: float) -> list[int]:
    """Our greedy answer, as far as its choices were clear."""
    params = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, logprobs=2)
    events = engine.submit(Request(ids, params))
    pieces = [piece for event in events if isinstance(event, Delta) for piece in event.pieces]
    gaps = (piece.top[0][1] - piece.top[1][1] for piece in pieces)
    unclear = next((place for place, gap in enumerate(gaps) if gap < epsilon), len(pieces))
    return [piece.token_id for piece in pieces[:unclear]]


def compare(python: str, path: Path, template: str | None, epsilon: float, *, texts: bool = True) -> None:
    theirs = ask(python, path, PROMPTS, NEW)
    assert theirs["template"] == template
    compared = 0
    with contextlib.closing(open_model(path, dtype="float32", context=512, max_num_seqs=1)) as opened:
        for text, (their_ids, said, their_text) in zip(PROMPTS, theirs["answers"], strict=True):
            ids = list(opened.tokenizer.encode_prompt(text))
            assert their_ids == ids
            ours = clear(opened.engine, ids, epsilon)
            assert said[: len(ours)] == ours
            shown = their_text.replace("<think>", "").replace("</think>", "").rstrip("\ufffd")  # marks to us
            assert not texts or opened.tokenizer.decode(said, skip_special=True) == shown
            compared += len(ours)
    assert compared > len(PROMPTS) * NEW / 2, "too few clear tokens for the test to mean anything"


@pytest.mark.parametrize("kind", RANDOM)
def test_every_architecture_says_the_same(python: str, tmp_path: Path, kind: str) -> None:
    source = random_checkpoint(tmp_path / "source", RANDOM[kind])
    run = ["convert", str(source), str(tmp_path / "x.gguf"), "--dtype", "float32"]
    assert CliRunner().invoke(app, run, catch_exceptions=False).exit_code == 0
    compare(python, tmp_path / "x.gguf", TEMPLATE, EPSILON["none"], texts=False)  # half characters and marks


@pytest.mark.parametrize(("name", "quant"), [("nano", "none"), ("nano", "f16"), ("smollm2", "f16")])
def test_the_real_models_say_the_same(python: str, tmp_path: Path, name: str, quant: str) -> None:
    if registry.find(name) is None:
        pytest.skip(f"{name} is not installed")
    run = ["convert", name, str(tmp_path / "x.gguf"), "--quant", quant]
    assert CliRunner().invoke(app, run, catch_exceptions=False).exit_code == 0
    from shoal.model.checkpoint.load import read_side_files

    template = read_side_files(tmp_path / "x.gguf").chat_template
    assert template
    compare(python, tmp_path / "x.gguf", template, EPSILON[quant])


@pytest.mark.parametrize("quant", ["q8_0", "q4_0", "bf16"])
def test_quantised_files_load_and_answer(python: str, tmp_path: Path, quant: str) -> None:
    run = ["convert", "nano", str(tmp_path / "x.gguf"), "--quant", quant]
    assert CliRunner().invoke(app, run, catch_exceptions=False).exit_code == 0
    answers = ask(python, tmp_path / "x.gguf", PROMPTS[:2], 8)["answers"]
    assert all(len(said) == 8 for _, said, _ in answers)
