"""What is where in an image: boxes of PASCAL VOC files, or masks, beside a folder of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gnothi.contracts import DataError

FOLDERS = ("Annotations", "masks", "SegmentationClass")
"""Where annotations are looked for, in a folder of images and beside it."""
IMAGES = ("JPEGImages", "images")
"""Where images are looked for in a folder that holds one of these."""
BACKGROUND, IGNORED = "background", 255
"""Class of what no box covers, and of 0 in a mask; number in a mask that says nothing."""


@dataclass(frozen=True)
class Box:
    """An object of an image."""

    name: str
    left: float
    top: float
    right: float
    bottom: float
    difficult: bool = False
    """Neither a hit nor a miss, by its annotator's word."""

    @property
    def area(self) -> float:
        """In pixels."""
        return (self.right - self.left) * (self.bottom - self.top)


class Annotations:
    """Class names at places of images.

    Args:
        folder: of .xml files (boxes), or .png and .npy files (masks of class numbers), by the names of the images.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = {str(p.relative_to(folder).with_suffix("")): p for p in sorted(folder.rglob("*")) if p.suffix in (".xml", ".png", ".npy")}
        if not self.files:
            raise DataError(f"{folder} holds no annotations: neither .xml files (PASCAL VOC boxes) nor .png or .npy masks")

    def of(self, image: str) -> Path | None:
        """The file of an image, by its path without the ending, else by its name alone."""
        stem = Path(image).with_suffix("")
        return self.files.get(str(stem), self.files.get(stem.name))

    def at(self, image: str, places: np.ndarray, shape: tuple[int, int]) -> list[str | None]:
        """The class at each place.

        Of several boxes that cover a place the smallest counts.

        Args:
            image: its name.
            places: [N, 2] x and y in pixels.
            shape: height and width of the image.

        Returns:
            [N]; None where nothing is known: no file, or the mask's 255.

        Raises:
            DataError: the file cannot be read, or does not fit the image.
        """
        path = self.of(image)
        if path is None:
            return [None] * len(places)
        if path.suffix == ".xml":
            return covering(boxes(path), places)
        mask = _mask(path)
        if mask.shape != shape:
            raise DataError(f"{path} must be as large as {image}, {shape[0]} x {shape[1]}, got {' x '.join(map(str, mask.shape))}")
        rows, columns = (np.clip(np.floor(places[:, k]).astype(int), 0, shape[1 - k] - 1) for k in (1, 0))
        values = mask[rows, columns]
        return [None if v == IGNORED else BACKGROUND if v == 0 else f"class {v}" for v in values.tolist()]


def boxes(path: Path) -> list[Box]:
    """The objects of a PASCAL VOC file; its corners are taken as edges."""
    from xml.etree import ElementTree

    try:
        found = []
        for thing in ElementTree.parse(path).getroot().iter("object"):
            left, top, right, bottom = (float(thing.findtext(f"bndbox/{side}") or "nan") for side in ("xmin", "ymin", "xmax", "ymax"))
            found.append(Box(str(thing.findtext("name")), left, top, right, bottom, (thing.findtext("difficult") or "0").strip() == "1"))
        return found
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise DataError(f"{path} is not a PASCAL VOC file: {str(error)[:80]}") from None


def covering(things: Sequence[Box], places: np.ndarray) -> list[str | None]:
    """Name of the smallest box over each place, or the background: places [N, 2] -> [N]."""
    names: list[str | None] = [BACKGROUND] * len(places)
    for box in sorted(things, key=lambda b: -b.area):
        over = (places[:, 0] >= box.left) & (places[:, 0] < box.right) & (places[:, 1] >= box.top) & (places[:, 1] < box.bottom)
        for i in np.flatnonzero(over):
            names[i] = box.name
    return names


def _mask(path: Path) -> np.ndarray:
    """[H, W] class numbers; of a palette image its numbers, not its colours."""
    from PIL import Image

    try:
        mask = np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.asarray(Image.open(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {str(error)[:80]}") from None
    if mask.ndim != 2 or mask.dtype.kind not in "uib":
        raise DataError(f"{path} must hold one whole number a pixel, got {mask.dtype} of shape {mask.shape}")
    return mask.astype(np.int64)


def beside(data: str, given: str | None) -> tuple[str, Annotations | None]:
    """The images of a folder and what is known of them.

    Args:
        data: as a person names it; annotations are found for folders only.
        given: folder of the annotations, where it was named.

    Returns:
        The name under which to open the images, and annotations or None.
    """
    root = Path(data).expanduser()
    if given is not None:
        if not Path(given).expanduser().is_dir():
            raise DataError(f"--annotations {given}: no such folder")
        return _images(root, data), Annotations(Path(given).expanduser())
    if not root.is_dir():
        return data, None
    places = [p / name for p in (root, root.parent) for name in FOLDERS]
    found = next((p for p in places if p.is_dir() and p != root), None)
    return _images(root, data), None if found is None else Annotations(found)


def _images(root: Path, data: str) -> str:
    inner = next((root / name for name in IMAGES if (root / name).is_dir()), None)
    return data if inner is None else str(inner)
