"""What a resume needs, saved so that a kill at any moment leaves the last good state (no pickle anywhere).

A state is a folder `step-00001234/`: safetensors files and `state.json`. It is written beside its place and renamed
into it when every byte is on the disk; the older states go only after that. Two are kept.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from shoal.errors import ShoalError
from shoal.files import atomic_folder

log = logging.getLogger(__name__)

KEPT = 2


@dataclass
class State:
    """`tensors`: file name -> name -> tensor; `values`: everything that is not a tensor (JSON)."""

    tensors: dict[str, dict[str, Tensor]]
    values: dict[str, Any]


def save_state(folder: Path, step: int, state: State) -> Path:
    """Write a state for `step` of the run under `folder`; returns its place. Raises ShoalError on a full disk."""
    place = folder / f"step-{step:08d}"
    with atomic_folder(place) as temporary:
        for name, tensors in state.tensors.items():
            try:
                save_file(
                    {key: _storable(t) for key, t in tensors.items()}, temporary / f"{name}.safetensors"
                )
            except SafetensorError as error:  # how safetensors tells that the disk is full
                raise OSError(str(error)) from error
        (temporary / "state.json").write_text(json.dumps(state.values), encoding="utf-8")
    for old in _places(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    for leftover in folder.glob(".step-*"):  # of a killed run: never a state, only space
        shutil.rmtree(leftover, ignore_errors=True)
    return place


def load_state(folder: Path) -> State | None:
    """The newest readable state under `folder`, or None when there is none at all.

    A newest state that cannot be read (a broken disk) is passed over with a warning. Raises ShoalError when there
    are states and none can be read.
    """
    places = _places(folder)
    for place in reversed(places):
        try:
            values = json.loads((place / "state.json").read_text(encoding="utf-8"))
            tensors = {file.stem: load_file(file) for file in sorted(place.glob("*.safetensors"))}
            return State(tensors, values)
        except Exception as error:  # safetensors has its own exception types
            log.warning("%s cannot be read (%s); trying the one before", place, error)
    if places:
        raise ShoalError(
            f"no state under {folder} can be read", hint="Start again without --resume in a new --run folder."
        )
    return None


def _places(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(p for p in folder.iterdir() if re.fullmatch(r"step-\d{8,}", p.name))
    return []


def _storable(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor.clone() if tensor._base is not None or not tensor.is_contiguous() else tensor
