"""What a student is to say of each image, in a file: found by the image, never by its position."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gnothi.contracts import DataError, Source

LONG = 16
"""Bytes of a key."""


def keys(source: Source) -> np.ndarray:
    """A key an image, the same wherever the image stands in a source or in a part of one.

    Where images have names of their own (paths), the key is a digest of the name. Where a name is only a row number, it is one of the pixels; images
    that are alike to the bit are told apart by how many of them came before, and may stand for each other.

    Returns:
        [N, 16] uint8.
    """
    seen: Counter[bytes] = Counter()
    found = np.empty((len(source), LONG), dtype=np.uint8)
    for row in range(len(source)):
        said = _said(source, row)
        seen[said] += 1
        if seen[said] > 1:
            said = _digest(said + str(seen[said]).encode())
        found[row] = np.frombuffer(said, dtype=np.uint8)
    return found


def _said(source: Source, row: int) -> bytes:
    name = source.name(row)
    if not name.startswith("row "):
        return _digest(b"name " + name.encode())
    try:
        image = source.image(row).contiguous()
    except DataError:
        return _digest(b"broken " + name.encode())
    return _digest(f"{image.dtype} {tuple(image.shape)} ".encode() + image.view(torch.uint8).numpy().tobytes())


def _digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=LONG).digest()


@dataclass(frozen=True)
class Targets:
    """Targets of many images."""

    keys: np.ndarray
    """[N, 16] uint8."""
    tensors: dict[str, Tensor]
    """[N, ...] each; those of a file stay on the disk until they are asked for."""
    about: dict[str, Any]
    """Plain values: ``kind`` ("classes" or "vectors"), ``name`` of what they come from, and what a student needs to know besides."""
    name: str = "targets"
    """What a person calls them: the file."""

    def rows(self, source: Source) -> Tensor:
        """Where the targets of each image of a source stand, [len(source)] int64.

        Raises:
            DataError: an image has none; the first is named.
        """
        place = {key.tobytes(): i for i, key in enumerate(self.keys)}
        found = [place.get(key.tobytes(), -1) for key in keys(source)]
        if -1 in found:
            missing = found.count(-1)
            raise DataError(
                f"{self.name} says nothing of {source.name(found.index(-1))}"
                + (f" and {missing - 1} more of {len(source)} images" if missing > 1 else "")
                + "; gnothi transfer --data with these images makes targets of them"
            )
        return torch.tensor(found, dtype=torch.int64)

    def write(self, path: Path) -> None:
        """Write a file at once; who needs it whole or not at all writes under another name first."""
        from safetensors.torch import save_file

        tensors = {name: x.contiguous() for name, x in self.tensors.items()}
        save_file({"keys": torch.from_numpy(self.keys), **tensors}, path, metadata={"gnothi": json.dumps(self.about)})

    @classmethod
    def read(cls, path: str | Path, kind: str) -> Targets:
        """Open a file of ``write``.

        Raises:
            DataError: there is no such file, it holds something else, or targets of another kind.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(path).expanduser()
        if not path.is_file():
            raise DataError(f"{path}: no such file; gnothi transfer writes targets.safetensors into a run's folder")
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["gnothi"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            found = cls(tensors.pop("keys").numpy(), tensors, about, str(path))
            if found.about["kind"] == kind:
                return found
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError, OSError) as error:
            raise DataError(
                f"{path} holds no targets ({type(error).__name__} {' '.join(str(error).split())[:80]}); gnothi transfer writes such a file"
            ) from None
        raise DataError(f"{path} holds {found.about['kind']}, and {kind} are needed; gnothi transfer --loss says which it writes")
