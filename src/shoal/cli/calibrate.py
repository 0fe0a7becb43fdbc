"""The measuring of `shoal cost calibrate`: the real trainer and the real engine on small reference networks."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.cost.calibration import Calibration, Decoding, two_costs
from shoal.model import counts
from shoal.model.config import ModelConfig

if TYPE_CHECKING:
    from shoal.ops.probe import Probe

# Not shapes that anybody plans for: what is known of them is carried over to others.
_MOE: dict[str, Any] = {
    "model_type": "deepseek_v3", "vocab_size": 4096, "first_k_dense_replace": 1, "num_attention_heads": 4,
    "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32, "n_routed_experts": 16,
    "n_shared_experts": 1, "num_experts_per_tok": 2, "routed_scaling_factor": 1.4, "n_group": 1, "topk_group": 1,
    "max_position_embeddings": 1024,
}  # fmt: skip
SMALL_MOE = _MOE | {
    "hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 384, "moe_intermediate_size": 96,
}  # fmt: skip
WIDE_MOE = _MOE | {
    "hidden_size": 256, "num_hidden_layers": 5, "intermediate_size": 640, "moe_intermediate_size": 160,
    "num_attention_heads": 8,
}  # fmt: skip
DENSE: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 4096, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 704, "max_position_embeddings": 1024,
}  # fmt: skip
WIDE_DENSE = DENSE | {"hidden_size": 768, "num_hidden_layers": 8, "num_attention_heads": 12,
                      "intermediate_size": 2048}  # fmt: skip
ANSWERING = (DENSE, WIDE_DENSE, SMALL_MOE, WIDE_MOE)
ROWS, LENGTH = 8, 512


def calibrate(device: str, seconds: float, say: Any) -> Calibration:
    """Measure for about `seconds`: peaks, then the trainer and the engine, the building of their networks included."""
    began = time.perf_counter()
    from shoal.ops import native
    from shoal.ops.probe import probe

    say("products and memory reads ...")
    peak = probe(device, fresh=True, seconds=seconds / 25)
    training, decoding, reads = None, [], []
    if device == "cpu":
        reads = _reads()
        say("training steps ...")
        best_peak = peak.gemm_flops_per_second[peak.best_dtype]
        training = _training(peak.best_dtype, began + seconds * 0.6, best_peak)
        say("answers ...")
        decoding = _decoding(began + seconds, peak, ("8", "4") if native.available else (None,))
    return Calibration(
        device=peak.device,
        threads=peak.threads,
        measured_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        peak=peak.gemm_flops_per_second,
        read_bytes_per_second=peak.read_bytes_per_second,
        memory_bytes=_memory_bytes(device),
        busy=peak.busy,
        torch_device=device,
        training_dtype=peak.best_dtype,
        training=training,
        decoding=decoding,
        reads=reads,
    )


def _reads() -> list[tuple[float, float]]:
    """Bytes/s of summing arrays of 32 to 256 MiB, best of several: where the caches end."""
    import torch

    found = []
    for mebibytes in (32, 64, 80, 96, 128, 192, 256):
        numbers = torch.ones(mebibytes * 2**18)
        numbers.sum()
        best = float("inf")
        for _ in range(16):
            began = time.perf_counter()
            numbers.sum()
            best = min(best, time.perf_counter() - began)
        found.append((float(numbers.nbytes), numbers.nbytes / best))
    return found


def _memory_bytes(device: str) -> float:
    if device.startswith("cuda"):
        import torch

        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _training(dtype: str, until: float, peak: float) -> dict[str, list[tuple[float, float]]]:
    """Share of the peak by reference network, its best step: other programs only ever take time away."""
    from shoal.ops.malloc import keep_freed_memory
    from shoal.train.speed import trainer

    keep_freed_memory()
    found: dict[str, list[tuple[float, float]]] = {}
    networks = (("moe", SMALL_MOE), ("moe", WIDE_MOE), ("dense", DENSE))
    for index, (kind, shape) in enumerate(networks):
        stop = _turn_ends(until, len(networks) - index)
        one = trainer("muon", dtype, shape=shape, rows=ROWS, length=LENGTH)
        one.train_step()
        best = float("inf")
        while best == float("inf") or time.perf_counter() < stop:
            began = time.perf_counter()
            one.train_step()
            best = min(best, time.perf_counter() - began)
        config = ModelConfig.from_dict(shape)
        flops = ROWS * LENGTH * counts.flops_per_token(config, LENGTH, training=True)
        found.setdefault(kind, []).append((float(config.hidden_size), flops / best / peak))
    return found


def _turn_ends(until: float, left: int) -> float:
    """When the next of the `left` measurements that share the time until then should be over."""
    now = time.perf_counter()
    return now + (until - now) / left


def _decoding(until: float, peak: Probe, quants: tuple[str | None, ...]) -> list[Decoding]:
    """Seconds of a step by layer and by weight, from two dense networks and two mixtures behind the real engine.

    quants: bits of the native engine's weights; None: torch answers.
    """
    from shoal.engine.measure import measure
    from shoal.engine.open import open_model

    found = []
    with tempfile.TemporaryDirectory() as temporary:
        folders = [reference(Path(temporary) / str(i), shape) for i, shape in enumerate(ANSWERING)]
        turns = len(quants) * len(folders)
        for quant in quants:
            points: list[tuple[float, float, float]] = []
            dtype = ""
            for folder in folders:
                stop = _turn_ends(until, turns)
                turns -= 1
                with contextlib.closing(
                    open_model(folder, context=256, speculate="off", quant=quant)
                ) as opened:
                    dtype = f"int{quant}" if quant else opened.dtype
                    best = 0.0
                    while not best or time.perf_counter() < stop:
                        figures = measure(opened, peak, prompt_tokens=16, answer_tokens=48, streams=(1,))
                        best = max(best, figures[-1].value)
                    config = opened.config
                layers, weights = float(config.num_hidden_layers), float(counts.matrices_active(config))
                points.append((layers, weights, 1 / best))
            dense, moe = two_costs(points[0], points[1]), two_costs(points[2], points[3])
            found.append(Decoding(dtype, dense, moe, widest=max(weights for _, weights, _ in points)))
    return found


def reference(folder: Path, shape: dict[str, Any]) -> Path:
    """A checkpoint with random weights and nano's tokenizer."""
    from shoal.model import registry
    from shoal.model.checkpoint.save import save_checkpoint
    from shoal.model.init import init_weights
    from shoal.model.transformer import CausalLM

    nano = registry.find("nano")
    assert nano is not None, "the package holds nano"
    network = CausalLM(ModelConfig.from_dict(shape))
    init_weights(network, seed=1)
    save_checkpoint(folder, network)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"):
        shutil.copyfile(nano.path / name, folder / name)
    return folder
