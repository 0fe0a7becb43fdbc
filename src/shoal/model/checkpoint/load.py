"""From a name or a path to a network: resolve, check the headers, allocate once, fill.

Only `load_network` needs torch; everything else answers in milliseconds for models of any size.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.errors import ShoalError
from shoal.files import read_text
from shoal.model import registry
from shoal.model.checkpoint import adapter_files, gguf, names, safetensors_io
from shoal.model.checkpoint.adapted import base_of
from shoal.model.checkpoint.adapter_files import is_adapter
from shoal.model.checkpoint.shapes import parameter_shapes
from shoal.model.checkpoint.source import Source, open_source
from shoal.model.config import ModelConfig

if TYPE_CHECKING:
    import torch

    from shoal.model.transformer import CausalLM

log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


def resolve(spec: str | Path) -> Path:
    """The folder (of a model or an adapter) or GGUF file that a person means by a name.

    In this order: the name of an installed model, a path, a name on the Hugging Face hub (`owner/model`). A folder of
    the same name as an installed model is reached as `./name`. Raises ShoalError that says what was tried.
    """
    if isinstance(spec, str) and (entry := registry.find(spec)):
        return entry.path
    path = Path(spec).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        safetensors_io.refuse_pickle(path)
        if path.suffix.lower() == ".gguf":
            return gguf.split_parts(path)[0]
        if path.name in (safetensors_io.SINGLE, "config.json", adapter_files.CONFIG, adapter_files.WEIGHTS):
            return path.parent
        raise ShoalError(f"{path} is no model", hint="Give a checkpoint folder or a .gguf file.")
    from shoal.model.checkpoint import hub

    if isinstance(spec, str) and hub.is_hub_name(spec):
        return hub.download(spec)
    installed = ", ".join(entry.name for entry in registry.list_models())
    raise ShoalError(
        f"no model {str(spec)!r}: neither an installed model nor a file or folder",
        hint=f"Installed: {installed or 'none'}. Or give a folder, a .gguf file, or a hub name such as owner/model.",
    )


def _in_folder(folder: Path) -> Path:
    """The folder itself (a checkpoint or an adapter), or the one GGUF model inside it."""
    if (folder / "config.json").is_file() or is_adapter(folder):
        return folder
    models = {gguf.split_parts(path)[0] for path in folder.glob("*.gguf")}
    if len(models) == 1:
        return models.pop()
    if models:
        listed = ", ".join(sorted(path.name for path in models))
        raise ShoalError(f"{folder} holds several models: {listed}", hint="Give one of these files.")
    safetensors_io.weight_files(folder)  # says what is wrong when there are no weights or only pickles
    raise ShoalError(f"no config.json in {folder}", hint="Fetch the config.json that belongs to the weights.")


def read_config(path: str | Path) -> ModelConfig:
    """The configuration of a checkpoint folder or a GGUF file, or of an adapter's base."""
    path = weights_base(path)
    return ModelConfig.from_folder(path) if path.is_dir() else open_source(path).config


def weights_base(path: str | Path) -> Path:
    """The model that `path` is, or that the adapter at `path` is for: where the tokenizer lies."""
    path = Path(path)
    while is_adapter(path):
        path = base_of(path)
    return path


@dataclass
class SideFiles:
    """What lies beside the weights."""

    chat_template: str | None = None
    generation_config: dict[str, Any] = field(default_factory=dict)
    receipt: dict[str, Any] | None = None
    gguf_metadata: dict[str, Any] | None = None
    """Metadata of a GGUF file (tokenizer inside); None for a folder."""


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        values = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ShoalError(
            f"{path} is not JSON: {error}", hint="Fetch the file again, or delete it."
        ) from error
    return values if isinstance(values, dict) else None


def _named_template(value: Any) -> str | None:
    """tokenizer_config.json holds a template, or a list of named ones of which `default` counts."""
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def read_side_files(path: str | Path) -> SideFiles:
    """Chat template, generation settings, receipt; for a GGUF file its metadata. An adapter has its base's, but its
    own receipt, and its own template and settings where it brings them."""
    path = Path(path)
    if is_adapter(path):
        own, base = path / "chat_template.jinja", read_side_files(base_of(path))
        return replace(
            base,
            chat_template=read_text(own) if own.is_file() else base.chat_template,
            generation_config=_json(path / "generation_config.json") or base.generation_config,
            receipt=_json(path / "receipt.json"),
        )
    if path.is_dir():
        template_file = path / "chat_template.jinja"
        template = read_text(template_file) if template_file.is_file() else None
        if template is None:
            template = _named_template((_json(path / "tokenizer_config.json") or {}).get("chat_template"))
        return SideFiles(
            template, _json(path / "generation_config.json") or {}, _json(path / "receipt.json"), None
        )
    metadata = gguf.read_metadata(path)
    template = _named_template(metadata.get("tokenizer.chat_template"))
    receipt = _receipt(metadata.get("shoal.receipt"))
    return SideFiles(template, {}, receipt, metadata)


def _receipt(text: Any) -> dict[str, Any] | None:
    try:
        values = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


@dataclass
class CheckpointInfo:
    """What headers tell: nothing here needed a weight to be read."""

    path: Path
    config: ModelConfig
    tensors: dict[str, tuple[str, tuple[int, ...], int]]
    """name -> (dtype, shape, bytes), as stored."""
    problems: list[str]
    """Sentences; empty when the model can be loaded."""
    extra: list[str]
    """Tensors that the configuration does not ask for (not fatal)."""
    has_mtp: bool

    @property
    def size_bytes(self) -> int:
        return sum(nbytes for _, _, nbytes in self.tensors.values())


def inspect(path: str | Path) -> CheckpointInfo:
    """Check a checkpoint's files against its configuration. Raises ShoalError when they cannot be read at all."""
    source = open_source(path)
    findings = source.check(mtp=source.has_mtp)
    problems = findings.problems(source.config, source.path)
    return CheckpointInfo(
        source.path, source.config, source.tensors(), problems, findings.extra, source.has_mtp
    )


def _checked(source: Source, mtp: bool) -> None:
    findings = source.check(mtp=mtp)
    problems = findings.problems(source.config, source.path)
    if problems:
        raise ShoalError(
            f"{source.path} does not fit its configuration:\n" + "\n".join(f"- {line}" for line in problems),
            hint="If the names look right, the download is incomplete: fetch it again.",
        )
    if findings.extra:
        log.info(
            "%s: %d tensors are not used: %s", source.path, len(findings.extra), ", ".join(findings.extra[:8])
        )


def load_network(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    mtp: bool = False,
    progress: Progress | None = None,
) -> CausalLM:
    """Build the network of a checkpoint and fill it; its configuration is on `.config`.

    `dtype` None means fp32. Selection biases stay fp32 in any case. Memory: the network and one tensor more. Raises
    ShoalError, before anything is allocated, for damaged files and for missing or misshapen tensors (all listed).
    """
    import torch

    from shoal.model.transformer import CausalLM

    source = open_source(path)
    _checked(source, mtp)
    with torch.device("meta"):
        network = CausalLM(source.config, mtp=mtp)
    buffers = {name for name, _ in network.named_buffers()}
    state = {}
    total = sum(source.nbytes(name) for name in parameter_shapes(source.config, mtp=mtp))
    done = 0
    with torch.no_grad():
        for name, shape in parameter_shapes(source.config, mtp=mtp).items():
            kept = torch.float32 if name in buffers else dtype or torch.float32
            state[name] = torch.empty(shape, dtype=kept, device=device)
            source.fill(name, state[name])
            done += source.nbytes(name)
            if progress:
                progress(done, total)
    if source.config.tie_word_embeddings:
        state[names.HEAD] = state[names.EMBEDDING]
    network.load_state_dict(state, assign=True)
    if source.config.tie_word_embeddings:
        network.lm_head.weight = network.model.embed_tokens.weight
    return network
