"""Images of an experiment in one file with both splits: of three channels, and photographs of one size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnothi.data import open as open_data
from gnothi.files import replace_file


def halves(folder: Path) -> bool:
    """Whether a folder holds train.npz and test.npz."""
    return all((folder / f"{split}.npz").is_file() for split in ("train", "test"))


def write_colour(folder: Path, path: Path) -> None:
    """Write an .npz of both splits of a folder of train.npz and test.npz, unless it is there; a single channel is told three times."""
    if path.exists():
        return
    parts: dict[str, Any] = {}
    for split in ("train", "test"):
        with np.load(folder / f"{split}.npz") as packed:
            images = packed["images"]
            parts |= {f"{split}_images": coloured(images), f"{split}_labels": packed["labels"]}
    _write(path, parts)


def coloured(images: NDArray[Any]) -> NDArray[Any]:
    """[N, H, W] or [N, H, W, 1] to [N, H, W, 3]; three channels stay."""
    images = images[..., None] if images.ndim == 3 else images
    return np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images


def write_photos(data: str, path: Path, size: int) -> None:
    """Write an .npz of a folder's train and val (or test) split, unless it is there: the shorter side to ``size`` pixels, then the centre."""
    if path.exists():
        return
    from PIL import Image

    parts: dict[str, Any] = {}
    for split in ("train", "test"):
        place = "val" if split == "test" and (Path(data) / "val").is_dir() else split
        source = open_data(f"{data}@{place}")
        assert source.labels is not None
        found = np.empty((len(source), size, size, 3), dtype=np.uint8)
        for row in range(len(source)):
            image = Image.fromarray(coloured(source.image(row).movedim(0, 2).numpy()[None])[0])
            scale = size / min(image.size)
            image = image.resize((max(size, round(scale * image.width)), max(size, round(scale * image.height))), Image.Resampling.BICUBIC)
            left, top = (image.width - size) // 2, (image.height - size) // 2
            found[row] = np.asarray(image.crop((left, top, left + size, top + size)))
        parts |= {f"{split}_images": found, f"{split}_labels": source.labels}
    _write(path, parts)


def write_mirrored(images: Path, path: Path) -> None:
    """Write an .npz of the same images mirrored left to right, unless it is there."""
    if path.exists():
        return
    with np.load(images) as packed:
        _write(path, {name: np.ascontiguousarray(part[:, :, ::-1]) if name.endswith("_images") else part for name, part in packed.items()})


def _write(path: Path, parts: dict[str, Any]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # by name, NumPy would add .npz
            np.savez(file, **parts)

    replace_file(path, write)
