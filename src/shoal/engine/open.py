"""From a name to a model that answers: checkpoint, tokenizer, chat protocol, runner and engine, joined in one place."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shoal.data.chat import ChatProtocol, protocol_for
from shoal.data.tokenizer import Tokenizer, load_tokenizer, tokenizer_from_gguf
from shoal.engine.engine import Engine
from shoal.engine.prefix import DiskBlocks
from shoal.engine.runner import Runner
from shoal.engine.runners import RunnerChoice
from shoal.engine.speculate import Drafter, ForcedDrafter, LookupDrafter, Speculator
from shoal.engine.speculate_models import ModelDrafter, MTPDrafter
from shoal.engine.types import SamplingParams
from shoal.errors import ShoalError, UsageError
from shoal.files import shoal_home
from shoal.model import counts, registry
from shoal.model.checkpoint import adapter_files, load
from shoal.model.checkpoint.adapted import base_of
from shoal.model.checkpoint.adapter_files import is_adapter
from shoal.model.checkpoint.load import SideFiles
from shoal.model.config import ModelConfig

_CACHE_SHARE = 0.25  # of the memory that is free when the model is opened


@dataclass
class OpenedModel:
    """A loaded model and all that belongs to it. `close` gives its memory back."""

    name: str
    path: Path
    config: ModelConfig
    tokenizer: Tokenizer
    protocol: ChatProtocol
    engine: Engine
    side_files: SideFiles
    parameters: int
    parameters_active: int
    dtype: str
    """What the weights are: float32, bfloat16, float16 (torch), or int8, int4, bfloat16, float32 (native)."""
    device: str
    defaults: SamplingParams
    """The sampling that the model's makers recommend (generation_config.json, registry), else temperature 1."""
    adapter: str | None = None
    """What its requests name as their adapter; the engine is then its base's, and may be shared (`on_base`)."""
    thinking_adapter: str | None = None
    """What its requests name when they think first, where only an adapter of the model has learnt that."""

    def adapter_for(self, thinking: bool) -> str | None:
        """The adapter of a request."""
        return self.thinking_adapter if thinking and self.thinking_adapter else self.adapter

    def close(self) -> None:
        self.engine.close()


def open_model(
    spec: str | Path,
    *,
    dtype: str | None = None,
    device: str = "cpu",
    runner: str = "auto",
    quant: str | None = None,
    context: int | None = None,
    max_num_seqs: int = 8,
    cache_bytes: int | None = None,
    cache_disk_bytes: int = 0,
    speculate: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> OpenedModel:
    """Load a model (folder, adapter folder, GGUF file, installed name, hub name) and start its engine.

    A LoRA adapter is not merged: its base is loaded, and its rows of a batch go through the adapter. Other adapters,
    and those on top of another adapter, are merged while they are read.
    runner: "native" (quantised weights, C++ kernels, CPUs) or "torch"; "auto" is native where it can be.
    quant: native only, bits of the weights: "8", "4" or "none"; None takes a GGUF file as it is and other files in 8.
    dtype: torch only, "float32", "bfloat16" or "float16"; None takes what this device computes fastest, by
    measurement. A dtype chooses torch.
    context: the longest prompt and answer together; default the model's own, less if the cache cannot hold it.
    cache_bytes: memory for the cache of all requests; default a quarter of what is free. Untouched parts cost nothing.
    cache_disk_bytes: so much of the cache is kept in the user's data folder over restarts; 0: nothing.
    speculate: who drafts tokens - "lookup" (what stood there before), "mtp" (the model's own module), a small model of
    the same tokenizer by its name, "auto" (the first two, where there are) or "off"; but for "mtp" and "off" also what
    a grammar forces. Answers are the same with all.
    progress: called with (bytes done, bytes in all) while the weights are read.
    """
    choice = RunnerChoice(runner, quant, dtype, device).resolved()
    path = load.resolve(spec)
    entry = registry.find(spec) if isinstance(spec, str) else None
    name = entry.name if entry else path.stem if path.is_file() else path.name
    if goes_unmerged(path):
        adapter_files.read_factors(path, load.read_config(path))  # before its base is loaded
        base = open_model(
            base_spec(path),
            dtype=dtype,
            device=device,
            runner=runner,
            quant=quant,
            context=context,
            max_num_seqs=max_num_seqs,
            cache_bytes=cache_bytes,
            cache_disk_bytes=cache_disk_bytes,
            speculate=speculate,
            progress=progress,
        )
        try:
            return on_base(base, path, name=name)
        except BaseException:
            base.close()
            raise
    side_files = load.read_side_files(path)
    if side_files.gguf_metadata is not None:
        tokenizer = tokenizer_from_gguf(side_files.gguf_metadata)
    else:
        tokenizer = load_tokenizer(load.weights_base(path))
    config = load.read_config(path)
    protocol = protocol_for(tokenizer, model_type=config.model_type, chat_template=side_files.chat_template)
    limit = 0

    def positions(free: int, token_bytes: int) -> int:
        nonlocal limit
        room = cache_bytes or int(free * _CACHE_SHARE)
        count, limit = _cache_positions(config, room, token_bytes, context, max_num_seqs)
        return count

    opened, computed_in = choice.open(path, positions, mtp=speculate in ("auto", "mtp"), progress=progress)
    speculator = _speculator(speculate, opened, tokenizer, choice, limit, max_num_seqs)
    disk = None
    if cache_disk_bytes > 0:
        folder = shoal_home() / "prefix-cache"
        disk = DiskBlocks(
            folder, cache_disk_bytes, f"{_fingerprint(path)} {opened.cache_layout} {computed_in}"
        )
    ends = dict.fromkeys([*protocol.stop_ids, *tokenizer.eos_ids, *config.eos_token_ids])
    found = OpenedModel(
        name=name,
        path=path,
        config=config,
        tokenizer=tokenizer,
        protocol=protocol,
        engine=Engine(
            opened,
            tokenizer,
            max_model_len=limit,
            max_num_seqs=max_num_seqs,
            eos_ids=list(ends),
            disk=disk,
            speculator=speculator,
        ),
        side_files=side_files,
        parameters=counts.parameters_total(config),
        parameters_active=counts.parameters_active(config),
        dtype=computed_in,
        device=device,
        defaults=_defaults({**(entry.sampling if entry else {}), **side_files.generation_config}),
    )
    return _with_thinking(found, entry.thinking_adapter) if entry and entry.thinking_adapter else found


def _with_thinking(opened: OpenedModel, folder: Path) -> OpenedModel:
    """The model with the adapter beside it that thinks."""
    adapted = on_base(opened, folder, name="think")
    protocol = opened.protocol.with_thinking_adapter()
    return replace(opened, protocol=protocol, thinking_adapter=adapted.adapter)


def _speculator(
    speculate: str,
    runner: Runner,
    tokenizer: Tokenizer,
    choice: RunnerChoice,
    positions: int,
    max_num_seqs: int,
) -> Speculator | None:
    """Who drafts. Raises UsageError for a module that is not there or a model of another vocabulary."""
    if speculate == "off":
        return None
    if speculate == "mtp" and not runner.has_mtp:
        raise UsageError("no multi-token prediction module is loaded", hint="Take --speculate auto.")
    drafters: list[Drafter] = [] if speculate == "mtp" else [ForcedDrafter(), LookupDrafter()]
    if speculate in ("auto", "mtp") and runner.has_mtp:
        drafters.append(MTPDrafter(runner))
    elif speculate not in ("auto", "lookup"):
        path = load.resolve(speculate)
        side_files = load.read_side_files(path)
        metadata = side_files.gguf_metadata
        other = load_tokenizer(path) if metadata is None else tokenizer_from_gguf(metadata)
        if _words(other) != _words(tokenizer):
            raise UsageError(f"{speculate} has another vocabulary", hint="Drafts need the same tokenizer.")
        positions = min(positions, load.read_config(path).max_position_embeddings) * max_num_seqs
        drafters.append(ModelDrafter(choice.open(path, lambda free, token_bytes: positions)[0]))
    return Speculator(drafters)


def _words(tokenizer: Tokenizer) -> list[bytes]:
    return [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]


def _fingerprint(path: Path) -> str:
    """Changes when the files of a model do."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return f"{path.resolve()} {stats}"


def goes_unmerged(path: Path) -> bool:
    """Whether this is a LoRA adapter on a plain model."""
    return (
        is_adapter(path) and adapter_files.read_config(path).kind == "lora" and not is_adapter(base_of(path))
    )


def base_spec(adapter: Path) -> str | Path:
    """An adapter's base for `open_model`: by its installed name, which brings its sampling along, or its place."""
    entry = registry.find(adapter_files.read_config(adapter).base)
    return entry.name if entry else base_of(adapter)


def on_base(base: OpenedModel, folder: Path, *, name: str) -> OpenedModel:
    """A LoRA adapter on a model that is open already; both answer from one engine, in the same batches.

    Raises ShoalError, naming both, if the adapter was made for another model.
    """
    adapter_files.check_base(folder, base.path)
    factors = adapter_files.read_factors(folder, base.config)
    digest = hashlib.sha256((folder / adapter_files.WEIGHTS).read_bytes()).hexdigest()
    adapter = f"{name}-{digest[:12]}"  # cached prefixes are named by it: never two adapters of one name
    if adapter not in base.engine.adapters:
        base.engine.load_adapter(adapter, factors)
    side_files = load.read_side_files(folder)
    template, model_type = side_files.chat_template, base.config.model_type
    return replace(
        base,
        name=name,
        path=folder,
        protocol=protocol_for(base.tokenizer, model_type=model_type, chat_template=template),
        side_files=side_files,
        adapter=adapter,
        thinking_adapter=None,
    )


def _cache_positions(
    config: ModelConfig, room_bytes: int, token_bytes: int, context: int | None, max_num_seqs: int
) -> tuple[int, int]:
    """(positions of the cache, the longest sequence)."""
    limit = min(context or config.max_position_embeddings, config.max_position_embeddings)
    if limit < 1:
        raise UsageError(f"a context of {limit} tokens holds nothing")
    affordable = room_bytes // token_bytes // 32 * 32
    if affordable < 32:
        raise ShoalError(
            f"there is no memory for the cache: {token_bytes} bytes per token are needed",
            hint="Close other programs, or take a smaller model.",
        )
    wanted = -(-limit // 32) * 32 * max_num_seqs
    return min(wanted, affordable), min(limit, affordable)


def _defaults(generation: dict[str, Any]) -> SamplingParams:
    """The fields that are sampling, where they are numbers."""
    if generation.get("do_sample") is False:
        return SamplingParams(temperature=0.0)
    known: dict[str, Any] = {
        key: value
        for key in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        if isinstance(value := generation.get(key), int | float) and not isinstance(value, bool)
    }
    return SamplingParams(**known)
