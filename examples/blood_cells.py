"""Blood cells cut out of smear photographs by their boxes: red cells, white cells and platelets, learned without their names.

    python examples/blood_cells.py DATA_FOLDER

DATA_FOLDER is BCCD in the layout of PASCAL VOC: JPEGImages/, Annotations/ and ImageSets/Main/. Cells of the photographs of train.txt teach, those of
val.txt and test.txt are asked, so no photograph is on both sides. Nearly all cells are red: all of them train the network, but only one a photograph
keeps its name, so that the classes are about equal where they are measured. A crop shows a cell as large as its frame, whatever its true size; what
the size of the box says by itself is measured beside it. A few minutes on two cores; what was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from outcome import options, study
from PIL import Image

from gnothi.evaluate.annotations import Box, boxes
from gnothi.randomness import generator

SIDE, MARGIN, LEAST = 40, 1.1, 8
"""Side of a crop in pixels, sides of its square in the longer side of its box, and the shortest box in pixels: a few are slips of the hand."""
CLASSES = ("RBC", "WBC", "Platelets")
SPLITS = {"train": ("train",), "test": ("val", "test")}
SETTINGS = {
    "method": {"name": "simclr"},
    "backbone": {"name": "micro-resnet"},
    "views": {"recipe": "any-orientation", "size": SIDE},
}


@dataclass(frozen=True)
class Cell:
    """A cell cut out of its photograph."""

    image: np.ndarray
    """[SIDE, SIDE, 3]."""
    label: int
    """Of ``CLASSES``; -1 where its name is left out."""
    size: tuple[float, float]
    """Logarithms of the box's width and height in pixels."""


def cells(folder: Path, lists: tuple[str, ...]) -> Iterator[Cell]:
    """The cells of the photographs that some lists name."""
    for name in (word for part in lists for word in (folder / "ImageSets" / "Main" / f"{part}.txt").read_text().split()):
        photograph = Image.open(folder / "JPEGImages" / f"{name}.jpg").convert("RGB")
        found = [b for b in boxes(folder / "Annotations" / f"{name}.xml") if min(b.right - b.left, b.bottom - b.top) >= LEAST]
        red = [i for i, box in enumerate(found) if box.name == CLASSES[0]]
        named = red[int(torch.randint(len(red), (), generator=generator(0, f"named {name}")))] if red else None
        for i, box in enumerate(found):
            label = CLASSES.index(box.name) if i not in red or i == named else -1
            yield Cell(cut(photograph, box), label, (np.log(box.right - box.left), np.log(box.bottom - box.top)))


def cut(photograph: Image.Image, box: Box) -> np.ndarray:
    """A square around a box, moved inside the photograph where it reaches out of it: [SIDE, SIDE, 3]."""
    side = min(MARGIN * max(box.right - box.left, box.bottom - box.top), *photograph.size)
    left = min(max((box.left + box.right - side) / 2, 0), photograph.width - side)
    top = min(max((box.top + box.bottom - side) / 2, 0), photograph.height - side)
    corners = (left, top, left + side, top + side)
    return np.asarray(photograph.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=corners))


def main(argv: list[str] | None = None) -> None:
    """Cut the cells out, train, measure."""
    given = options(__doc__, epochs=30, holds="JPEGImages, Annotations and ImageSets of BCCD").parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    file, arrays, sizes = given.out / "blood_cells.npz", {"classes": np.array(CLASSES)}, []
    for split, lists in SPLITS.items():
        found = list(cells(given.data, lists))
        arrays |= {f"{split}_images": np.stack([c.image for c in found]), f"{split}_labels": np.array([c.label for c in found])}
        sizes.append(np.array([c.size for c in found], dtype=np.float32))
    np.savez(file, **arrays)
    study("blood_cells", f"{file}@train", f"{file}@test", given, SETTINGS, {"size of the box": sizes})


if __name__ == "__main__":
    main()
