"""Checkpoints: tensors and a few numbers in one safetensors file, written whole or not at all, checked by digest when read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gnothi.contracts import RunError
from gnothi.files import replace_file

NAME = re.compile(r"step-\d+\.safetensors")


def digest(tensors: dict[str, Tensor]) -> str:
    """BLAKE2 of names, types, shapes and bytes."""
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        x = tensors[name].detach().cpu().contiguous()
        state.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        state.update(x.reshape(-1).view(torch.uint8).numpy().data if x.numel() else b"")
    return state.hexdigest()


def sealed(values: dict[str, Any]) -> dict[str, Any]:
    """Plain values with the digest of their JSON, by which ``whole`` knows that nothing was altered."""
    values = {k: v for k, v in values.items() if k != "seal"}
    return {**values, "seal": _seal(values)}


def whole(values: dict[str, Any]) -> bool:
    """Whether values are as they were sealed; True for those that never were."""
    return "seal" not in values or values["seal"] == _seal({k: v for k, v in values.items() if k != "seal"})


def _seal(values: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` steps lies."""
    return folder / f"step-{step:07d}.safetensors"


def step_of(path: Path) -> int:
    """After how many steps a checkpoint was written."""
    return int(path.stem.split("-")[1])


def write(folder: Path, step: int, tensors: dict[str, Tensor], about: dict[str, Any], keep: int = 2) -> Path:
    """Save a checkpoint and drop all but the newest ``keep``.

    Args:
        folder: the run's.
        step: steps done.
        tensors: by name; storage may be shared, names may not.
        about: plain values that JSON can hold.
        keep: how many checkpoints stay.
    """
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    about = sealed({**about, "step": step, "digest": digest(tensors)})
    path = path_of(folder, step)
    replace_file(path, lambda temporary: _write(temporary, save(tensors, metadata={"gnothi": json.dumps(about)})))
    others = [other for other in list_of(folder) if other != path]  # broken ones may be of later steps
    for old in others[: max(0, len(others) + 1 - keep)]:
        old.unlink(missing_ok=True)
    return path


def list_of(folder: Path) -> list[Path]:
    """All checkpoints of a run, oldest first."""
    return sorted((path for path in folder.glob("step-*") if NAME.fullmatch(path.name)), key=step_of)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load a checkpoint.

    Raises:
        RunError: the file is cut short or altered.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["gnothi"])
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
            same = whole(about) and digest(tensors) == about["digest"] and step_of(path) == about["step"]
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError, OSError) as error:
        raise RunError(f"{path}: not a whole checkpoint ({type(error).__name__}: {' '.join(str(error).split())[:80]})") from None
    if not same:
        raise RunError(f"{path}: altered since it was written (its digest differs)")
    return tensors, about


def newest(folder: Path, warn: Callable[[str], None] = lambda _: None) -> Path | None:
    """The newest checkpoint that can be read, None where there is none; ``warn`` hears of each that cannot."""
    for path in reversed(list_of(folder)):
        try:
            read(path)
        except RunError as error:
            warn(f"{error}; {'none is before it' if path == list_of(folder)[0] else 'the one before is used'}")
        else:
            return path
    return None
