"""Models by their name on the Hugging Face hub: already here, or downloaded into `$SHOAL_HOME/hub`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from shoal.errors import ShoalError
from shoal.files import shoal_home

ALLOWED = [
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "*.jinja",
    "receipt.json",
    "README.md",
    "LICENSE*",
]
"""Weights, tokenizer, configuration. No pickle and no code is ever fetched."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def is_hub_name(spec: str) -> bool:
    """Whether the text has the form owner/model."""
    return (
        _NAME.fullmatch(spec) is not None
        and ".." not in spec
        and not spec.endswith((".gguf", ".safetensors"))
    )


def offline(name: str, why: str) -> ShoalError:
    return ShoalError(
        f"cannot get {name} from the hub: {why}",
        hint=(
            "Without internet: on a machine that has it, run `hf download "
            f"{name}` (or fetch the files in a browser), copy the folder here, "
            "and give the folder instead of the name. If the folder name was meant, check its spelling."
        ),
    )


def cached(
    name: str, caches: Sequence[Path | None] | None = None, patterns: Sequence[str] = ALLOWED
) -> Path | None:
    """The folder of a hub model in one of these caches; default: the hub's ordinary one, then ours."""
    import huggingface_hub

    for cache in caches or (None, shoal_home() / "hub"):
        try:
            found = Path(
                huggingface_hub.snapshot_download(
                    name, cache_dir=cache, allow_patterns=list(patterns), local_files_only=True
                )
            )
        except Exception:  # the library raises many kinds; each only means "not in this cache"
            continue
        if (found / "config.json").is_file():
            return found
    return None


def download(name: str, *, config_only: bool = False) -> Path:
    """The local folder of a hub model; asks the hub only when no cache has it.

    Looks in the hub's ordinary cache first (models that other tools fetched), then in `$SHOAL_HOME/hub`. `config_only`
    fetches config.json alone, into a cache of its own: beside weights it would look like a model whose weights are
    lost. Raises ShoalError that says what to do when there is no connection, no such model, or no permission.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    except ImportError as error:
        raise offline(name, "the package huggingface_hub is not installed") from error
    caches: list[Path | None] = [None, shoal_home() / "hub"]
    patterns = ALLOWED
    if config_only:
        caches, patterns = [*caches, shoal_home() / "hub-configs"], ["config.json"]
    if (found := cached(name, caches, patterns)) is not None:
        return found
    try:
        return Path(huggingface_hub.snapshot_download(name, cache_dir=caches[-1], allow_patterns=patterns))
    except GatedRepoError as error:
        raise ShoalError(
            f"{name} is gated: its owners ask you to accept terms first",
            hint=f"Accept them at https://huggingface.co/{name}, then set HF_TOKEN to a token of yours.",
        ) from error
    except RepositoryNotFoundError as error:
        raise offline(name, "no such public model") from error
    except Exception as error:
        raise offline(
            name, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no answer'}"
        ) from error
