"""Small folders of images with bright squares and dark bars on noise, in the layout of PASCAL VOC and of COCO."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image

from gnothi.randomness import generator

OBJECT = "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


def scenery(folder: Path, n: int = 8, seed: int = 0, size: tuple[int, int] = (48, 64), lists: bool = False) -> list[list[tuple]]:
    """Write a VOC folder; objects are (name, difficult, left, top, right, bottom), edges, image by image."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    g, told = generator(seed, "scenery"), []
    height, width = size
    for i in range(n):
        pixels = torch.randint(90, 130, (height, width, 3), generator=g)
        objects = []
        for which in range(int(torch.randint(1, 3, (), generator=g))):
            name = ("bar", "square")[int(torch.randint(2, (), generator=g))]
            w, h = (16, 16) if name == "square" else (24, 10)
            left = int(torch.randint(0, width // 2 - w, (), generator=g)) + which * width // 2
            top = int(torch.randint(0, height - h, (), generator=g))
            pixels[top : top + h, left : left + w] = 230 if name == "square" else 20
            objects.append((name, 0, left, top, left + w, top + h))
        Image.fromarray(pixels.byte().numpy()).save(folder / f"JPEGImages/{i:02}.png")
        lines = "".join(OBJECT.format(name, d, a + 1, b + 1, c, e) for name, d, a, b, c, e in objects)
        (folder / f"Annotations/{i:02}.xml").write_text(f"<annotation>{lines}</annotation>")
        told.append(objects)
    if lists:
        for split, rows in (("trainval", range(n * 3 // 4)), ("test", range(n * 3 // 4, n))):
            (folder / f"ImageSets/Main/{split}.txt").write_text("".join(f"{i:02}\n" for i in rows))
    return told


def as_coco(path: Path, told: list[list[tuple]]) -> None:
    """The same objects as a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = {"bar": 7, "square": 3}
    annotations = [
        {"id": 100 * i + k, "image_id": i + 50, "category_id": numbers[name], "bbox": [a, b, c - a, e - b], "iscrowd": d, "area": (c - a) * (e - b)}
        for i, own in enumerate(told)
        for k, (name, d, a, b, c, e) in enumerate(own)
    ]
    images = [{"id": i + 50, "file_name": f"{i:02}.png"} for i in range(len(told))]
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
