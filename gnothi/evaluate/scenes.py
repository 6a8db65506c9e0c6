"""Images with boxes: folders in the layout of PASCAL VOC, and COCO's JSON files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gnothi.contracts import DataError, Source, did_you_mean
from gnothi.data import DataSpec, Subset
from gnothi.data import open as open_data
from gnothi.data.open import divide
from gnothi.evaluate.annotations import beside, boxes
from gnothi.randomness import generator

HELD = 0.2
"""Part of the images that test, where nothing else says which do."""
LISTS = Path("ImageSets/Main")
"""Where PASCAL VOC lists the images of its splits."""


@dataclass(frozen=True)
class Scenes:
    """Images and what is where in them. Boxes are edges: a box over a whole image of W x H pixels is 0, 0, W, H."""

    source: Source
    classes: tuple[str, ...]
    boxes: list[np.ndarray]
    """[n, 4] left, top, right, bottom, an image each."""
    kinds: list[np.ndarray]
    """[n] positions in ``classes``."""
    aside: list[np.ndarray]
    """[n] bool: difficult (VOC) or a crowd (COCO), neither hit nor miss."""
    words: str

    def __len__(self) -> int:
        return len(self.boxes)

    def only(self, rows: Sequence[int] | np.ndarray, words: str) -> Scenes:
        """Some of the images."""
        numbers = [int(r) for r in rows]
        boxes, kinds, aside = ([part[r] for r in numbers] for part in (self.boxes, self.kinds, self.aside))
        return Scenes(Subset(self.source, numbers), self.classes, boxes, kinds, aside, words)

    def numbered(self, classes: tuple[str, ...]) -> Scenes:
        """The same with classes numbered as given; a class that is not among them is a mistake."""
        strange = next((c for i, c in enumerate(self.classes) if c not in classes and any((k == i).any() for k in self.kinds)), None)
        if strange is not None:
            raise DataError(f"{self.words} has boxes of {strange!r}, a class that no training image shows; {did_you_mean(strange, classes)}")
        place = np.array([classes.index(c) if c in classes else -1 for c in self.classes], dtype=np.int64)
        return Scenes(self.source, classes, self.boxes, [place[k] for k in self.kinds], self.aside, self.words)

    def tags(self) -> np.ndarray:
        """[N, C] whether an image shows a class: 1, 0, or -1 where all that it shows of it is set aside."""
        found = np.zeros((len(self), len(self.classes)), dtype=np.int64)
        for row, (kinds, aside) in enumerate(zip(self.kinds, self.aside, strict=True)):
            found[row, kinds[aside]] = -1
            found[row, kinds[~aside]] = 1
        return found


def split_scenes(
    data: str,
    test: str | None = None,
    *,
    annotations: str | None = None,
    settings: DataSpec = DataSpec(),  # noqa: B008
    seed: int = 0,
) -> tuple[Scenes, Scenes]:
    """Images that train and images that test.

    Args:
        data: a folder in VOC's layout, with ``@trainval`` and the like where it lists its splits; a COCO JSON file, or a folder that holds one.
        test: likewise. By default the test list of a folder that has one beside ``trainval`` or ``train``, else a fifth of the images by the seed.
        annotations: folder of VOC files, where it lies elsewhere.
        settings: of the images.
        seed: of the held-out part.

    Raises:
        DataError: there are no boxes, or a file cannot be read.
    """
    folder, split = divide(data)
    lists = _lists(folder)
    if test is None and split is None and "test" in lists and (known := next((s for s in ("trainval", "train") if s in lists), None)):
        data, test = f"{data}@{known}", f"{data}@test"
    train = scenes(data, annotations, settings)
    if test is not None:
        return train, scenes(test, annotations, settings).numbered(train.classes)
    if len(train) < 5:
        raise DataError(f"{train.words} are too few to hold some out; name test images with --test")
    order = torch.randperm(len(train), generator=generator(seed, "scenes held out")).numpy()
    held = max(1, round(HELD * len(train)))
    words = f"{train.words}: tested on {held} images held out (seed {seed}), trained on the other {len(train) - held}"
    return train.only(np.sort(order[held:]), words), train.only(np.sort(order[:held]), words)


def scenes(data: str, annotations: str | None = None, settings: DataSpec = DataSpec()) -> Scenes:  # noqa: B008
    """Open images with boxes; see ``split_scenes``."""
    file = _json(data)
    return _coco(file, settings) if file is not None else _voc(data, annotations, settings)


def _lists(folder: str) -> dict[str, Path]:
    """VOC's lists of images by split."""
    place = Path(folder).expanduser() / LISTS
    return {p.stem: p for p in sorted(place.glob("*.txt"))} if place.is_dir() else {}


# ---- PASCAL VOC ----------------------------------------------------------------------------------
def _voc(data: str, annotations: str | None, settings: DataSpec) -> Scenes:
    folder, split = divide(data)
    if not Path(folder).expanduser().is_dir():
        raise DataError(f"{folder}: no such folder; boxes need a folder in PASCAL VOC layout or a COCO .json file")
    name, known = beside(folder, annotations)
    if known is None:
        raise DataError(f"{folder} has no boxes: neither a folder Annotations (PASCAL VOC) nor a COCO .json file; --annotations names another folder")
    source = open_data(name, settings=settings)
    wanted = None if split is None else _listed(folder, split)
    rows, found = [], []
    for row in range(len(source)):
        path = known.of(source.name(row))
        if path is not None and path.suffix == ".xml" and (wanted is None or Path(source.name(row)).stem in wanted):
            rows.append(row)
            found.append(boxes(path))
    if not rows:
        raise DataError(f"{data}: no image has a .xml file of its name in {known.folder}")
    classes = tuple(sorted({b.name for own in found for b in own}))
    if not classes:
        raise DataError(f"{data}: not one box in {len(rows)} .xml files of {known.folder}")
    edges = []
    for row, own in zip(rows, found, strict=True):
        height, width = source.shape(row)
        # VOC counts pixels from 1 and includes the last one; as edges, intersection and union are those of its code, which adds 1 to each side.
        box = np.array([(b.left - 1, b.top - 1, b.right, b.bottom) for b in own], dtype=np.float64).reshape(-1, 4)
        edges.append(np.clip(box, 0, [width, height, width, height]))
    kinds = [np.array([classes.index(b.name) for b in own], dtype=np.int64) for own in found]
    aside = [np.array([b.difficult for b in own], dtype=bool) for own in found]
    left = len(source) - len(rows) if wanted is None else len(wanted) - len(rows)
    words = f"{data} ({len(rows)} images" + (f", {left} without a file left out)" if left > 0 else ")")
    return _checked(Scenes(Subset(source, rows), classes, edges, kinds, aside, words))


def _listed(folder: str, split: str) -> set[str]:
    lists = _lists(folder)
    if split not in lists:
        raise DataError(f"{folder}@{split}: no such list in {Path(folder) / LISTS}; {did_you_mean(split, lists)}")
    return {line.split()[0] for line in lists[split].read_text(encoding="utf-8").splitlines() if line.strip()}


# ---- COCO ----------------------------------------------------------------------------------------
def _json(data: str) -> Path | None:
    """The JSON file that is meant; None where the name is something else."""
    path = Path(data).expanduser()
    if path.suffix == ".json":
        if not path.is_file():
            raise DataError(f"{data}: no such file")
        return path
    if not path.is_dir() or (path / "Annotations").is_dir():
        return None
    found = sorted([*path.glob("*.json"), *path.glob("annotations/*.json")])
    if len(found) > 1:
        raise DataError(f"{data} holds {len(found)} .json files; name one of them, such as {found[0]}")
    return found[0] if found else None


def _coco(path: Path, settings: DataSpec) -> Scenes:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        names = {int(c["id"]): str(c["name"]) for c in about["categories"]}
        files = {int(i["id"]): str(i["file_name"]) for i in about["images"]}
        told: dict[int, list[Any]] = {number: [] for number in files}
        for a in about["annotations"]:
            told[int(a["image_id"])].append(([float(x) for x in a["bbox"]], names[int(a["category_id"])], bool(a.get("iscrowd", 0))))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is not a COCO file of boxes: {type(error).__name__} {str(error)[:80]}") from None
    if not files or not any(told.values()):
        raise DataError(f"{path} names {len(files)} images and no box in them")
    folder = _images(path, next(iter(files.values())))
    source = open_data(str(folder), settings=settings)
    rows = {source.name(row): row for row in range(len(source))}
    missing = [name for name in files.values() if name not in rows]
    if missing:
        raise DataError(f"{path} names {len(missing)} images that {folder} does not hold, such as {missing[0]}")
    classes = tuple(sorted(set(names.values())))
    corners = [np.array([(x, y, x + w, y + h) for (x, y, w, h), _, _ in own], dtype=np.float64).reshape(-1, 4) for own in told.values()]
    kinds = [np.array([classes.index(name) for _, name, _ in own], dtype=np.int64) for own in told.values()]
    aside = [np.array([crowd for _, _, crowd in own], dtype=bool) for own in told.values()]
    used = Subset(source, [rows[name] for name in files.values()])
    return _checked(Scenes(used, classes, corners, kinds, aside, f"{path} ({len(files)} images)"))


def _images(path: Path, first: str) -> Path:
    """The folder in which a file's images lie: its own, the one above, or one in either."""
    places = [top for above in (path.parent, path.parent.parent) for top in (above, *sorted(p for p in above.iterdir() if p.is_dir()))]
    found = next((place for place in places if (place / first).is_file()), None)
    if found is None:
        raise DataError(f"{path}: its images, such as {first}, lie neither beside it nor in a folder beside it or above it")
    return found


def _checked(found: Scenes) -> Scenes:
    for row, own in enumerate(found.boxes):
        flat = ~((own[:, 2] > own[:, 0]) & (own[:, 3] > own[:, 1]))  # NaN counts too
        if flat.any():
            box = ", ".join(f"{v:g}" for v in own[flat][0])
            raise DataError(f"{found.source.name(row)}: a box must have a width and a height, got the edges {box} within the image")
    return found
