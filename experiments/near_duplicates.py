"""Whether near duplicates by an encoder are found by the rule for its cosine: copies of known kinds planted among photographs.

    python -m experiments.near_duplicates --data FOLDER [--images N]

FOLDER holds a folder a class (flowers5/train). Every so many images one more is copied: saved again at nine tenths of its size, mirrored, or cropped
to nine tenths of each side. Writes results/near_duplicates.json; about a minute on a core.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path

from PIL import Image, ImageOps

from gnothi import data
from gnothi.files import write_text
from gnothi.search import odd

RESULTS = Path(__file__).parent / "results" / "near_duplicates.json"
KINDS = ("saved again", "mirrored", "cropped")
ENCODERS = ("pixels", "hog", "colour")
EVERY = 13


def changed(image: Image.Image, kind: str) -> Image.Image:
    """A copy of its kind."""
    width, height = image.size
    if kind == "saved again":
        return image.resize((width * 9 // 10, height * 9 // 10))
    return ImageOps.mirror(image) if kind == "mirrored" else image.crop((width // 20, height // 20, width - width // 20, height - height // 20))


def plant(source: Path, to: Path, images: int) -> dict[str, tuple[str, str]]:
    """The first images of every class, and copies: what each copy is, and of which image."""
    classes = sorted(p for p in source.iterdir() if p.is_dir())
    files = [p for folder in classes for p in sorted(folder.iterdir())[: images // len(classes)]]
    copies = {}
    for i, path in enumerate(files):
        with Image.open(path) as image:
            whole = image.convert("RGB")
        whole.save(to / f"{i:04d}.png")
        if i % EVERY == 0:
            kind = KINDS[i // EVERY % len(KINDS)]
            name = f"{i:04d} {kind}.jpg"
            changed(whole, kind).save(to / name, quality=60)
            copies[name] = (kind, f"{i:04d}.png")
    return copies


def scored(groups: list[list[str]], copies: dict[str, tuple[str, str]]) -> dict[str, object]:
    """How many copies of each kind stand in a group with their image, and the groups without any."""
    found = Counter(copies[name][0] for group in groups for name in group if name in copies and copies[name][1] in group)
    others = [group for group in groups if not any(name in copies and copies[name][1] in group for name in group)]
    return {**{kind: found[kind] for kind in KINDS}, "others": others}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=800)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copies = plant(asked.data, Path(folder), asked.images)
        source = data.open(folder)
        rows = {"gnothi data": scored(data.inspect(source).near, copies)}
        for encoder in ENCODERS:
            found = odd(encoder, source)
            rows[encoder] = {"cosine": found.near_cosine, "outliers": len(found.outliers), **scored(found.near, copies)}
    planted = Counter(kind for kind, _ in copies.values())
    write_text(RESULTS, json.dumps({"images": len(source) - len(copies), "planted": planted, "rows": rows}, indent=1))
    print(RESULTS)


if __name__ == "__main__":
    main()
