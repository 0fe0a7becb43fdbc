"""`shoal info`: what a model is, what it needs, what it cost, and whether its files are whole."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import typer

from shoal.errors import ShoalError

if TYPE_CHECKING:
    from shoal.model.checkpoint.load import CheckpointInfo


def command(
    path: str = typer.Argument(
        ..., metavar="PATH", help="A folder, a .gguf file, an installed model or a hub name."
    ),
    context: int = typer.Option(4096, min=1, help="Context in tokens for the FLOPs and the cache size."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout."),
) -> None:
    """Show a model's shape, parameters (total and active), cache and FLOPs per token, receipt; check its files.

    Only headers are read. Exit code 1 when the files cannot be used.

    Examples:

      shoal info smollm2

      shoal info runs/nano/checkpoint --json

      shoal info DeepSeek-V2-Lite.gguf --context 32768
    """
    from shoal.model.checkpoint.load import inspect, read_side_files, resolve

    info = inspect(resolve(path))
    facts = _facts(info, read_side_files(info.path).receipt, context)
    typer.echo(json.dumps(facts, ensure_ascii=False) if as_json else _page(info, facts))
    if info.problems:
        raise ShoalError(
            f"{info.path} cannot be used",
            hint="Fetch the files again, or the config.json that belongs to them.",
        )


def _facts(info: CheckpointInfo, receipt: dict[str, Any] | None, context: int) -> dict[str, Any]:
    from shoal.model import counts

    config = info.config
    return {
        "path": str(info.path),
        "model_type": config.model_type,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "attention": "mla" if config.uses_mla else "gqa",
        "attention_heads": config.num_attention_heads,
        "experts": config.n_routed_experts,
        "experts_per_token": config.num_experts_per_tok if config.n_routed_experts else None,
        "mtp_layers": config.num_nextn_predict_layers if info.has_mtp else 0,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "parameters_total": counts.parameters_total(config, mtp=info.has_mtp),
        "parameters_active": counts.parameters_active(config),
        "kv_bytes_per_token": counts.kv_bytes_per_token(config),
        "context_tokens": context,
        "flops_per_token_decode": counts.decode_flops(config, context),
        "flops_per_token_training": counts.flops_per_token(config, context, training=True),
        "size_bytes": info.size_bytes,
        "dtypes": dict(Counter(dtype for dtype, _, _ in info.tensors.values())),
        "problems": info.problems,
        "unused_tensors": info.extra,
        "receipt": receipt,
    } | _adapter(info)


def _adapter(info: CheckpointInfo) -> dict[str, Any]:
    """What an adapter folder adds to its base, whose figures the others are."""
    from shoal.model.checkpoint import adapter_files

    if not adapter_files.is_adapter(info.path):
        return {}
    config = adapter_files.read_config(info.path)
    weights = adapter_files.read_header(info.path)
    return {
        "adapter": {
            "kind": config.kind,
            "base": config.base,
            "r": config.r if config.kind == "lora" else None,
            "parameters": sum(math.prod(shape) for shape in weights.values()),
            "tensors": len(weights),
            "size_bytes": (info.path / adapter_files.WEIGHTS).stat().st_size,
        }
    }


def _page(info: CheckpointInfo, facts: dict[str, Any]) -> str:
    config = info.config
    attention = (
        f"MLA, {config.num_attention_heads} heads, latent {config.kv_lora_rank} + rope {config.qk_rope_head_dim}"
        if config.uses_mla
        else f"GQA, {config.num_attention_heads} query and {config.num_key_value_heads} kv heads of {config.head_dim}"
    )
    shape = (
        f"{config.num_hidden_layers} layers, hidden {config.hidden_size}, vocabulary {config.vocab_size:,}"
    )
    rows = [("model", f"{config.model_type}, {shape}"), ("attention", attention)]
    if config.n_routed_experts:
        shared = f" + {config.n_shared_experts} shared" if config.n_shared_experts else ""
        chosen = f"{config.num_experts_per_tok} of {config.n_routed_experts}{shared} per token"
        rows.append(("experts", f"{chosen}, width {config.moe_intermediate_size}"))
    if adapter := facts.get("adapter"):
        rank = f" of rank {adapter['r']}" if adapter["r"] else ""
        size = f"{_si(adapter['parameters'])}parameters, {_bytes(adapter['size_bytes'])}"
        rows.insert(0, ("adapter", f"{adapter['kind']}{rank} on {adapter['base']}, {size}; its base:"))
    if facts["mtp_layers"]:
        rows.append(("draft", f"{facts['mtp_layers']} multi-token prediction layer(s)"))
    kv, context = facts["kv_bytes_per_token"], facts["context_tokens"]
    rows += [
        (
            "parameters",
            f"{_si(facts['parameters_total'])} in all, {_si(facts['parameters_active'])} active per token",
        ),
        ("context", f"{config.max_position_embeddings:,} tokens"),
        ("cache", f"{kv:,.0f} bytes per token in 16 bits ({_bytes(kv * context)} for {context:,} tokens)"),
        (
            "compute",
            f"{_si(facts['flops_per_token_decode'])}FLOP per new token, {_si(facts['flops_per_token_training'])}FLOP "
            f"per trained token (context {context:,})",
        ),
        ("files", f"{_bytes(facts['size_bytes'])}, {_stored(facts['dtypes'])}"),
        ("receipt", _receipt(facts["receipt"])),
        ("check", "every tensor is there, in its shape" if not info.problems else "FAILED"),
    ]
    lines = [f"{name:<11} {text}" for name, text in rows]
    lines += [f"  - {problem}" for problem in info.problems]
    if info.extra:
        more = f" and {len(info.extra) - 6} more" if len(info.extra) > 6 else ""
        lines.append(f"{'unused':<11} {', '.join(info.extra[:6])}{more}")
    return "\n".join([str(info.path), *lines])


def _receipt(values: dict[str, Any] | None) -> str:
    if values is None:
        return "none (what it cost is not known)"
    from shoal.cost.receipt import Receipt, summary

    return f"\n{'':<11} ".join(summary(receipt) for receipt in Receipt.from_dict(values).chain())


def _stored(dtypes: dict[str, int]) -> str:
    return ", ".join(
        f"{count} x {dtype}" for dtype, count in sorted(dtypes.items(), key=lambda item: -item[1])
    )


def _si(value: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} "


def _bytes(value: float) -> str:
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} bytes"
