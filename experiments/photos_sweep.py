"""Which recipe for `photos`: runs that differ in one thing, judged inside the training side of each photograph.

    python experiments/photos_sweep.py [ARM ...]

The training side is cut once more: tiles of its first part train, those of its last part ask k-NN. The test side is not looked at.
Resumable: what stands in results/photos_sweep.json is not run again. About two minutes a run on two cores.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from gnothi import evaluate
from gnothi.data import photos
from gnothi.files import write_text
from gnothi.pretrain import train
from gnothi.recipes.spec import merge

RESULTS = Path(__file__).parent / "results" / "photos_sweep.json"
PARTS = {"train": (0.0, 0.45), "test": (0.48, 0.65)}
"""Of the longer side; everything from 0.65 on stays unseen."""
FIRST = {
    "views": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.1, "hue": 0.02, "area": [0.2, 1.0]},
    "training": {"epochs": 12},
    "data": {"holdout": 0},
}
"""Where the sweep began; an arm changes what it names. The recipe is now "the same, crops 8 %", the best arm."""
ARMS: dict[str, dict] = {
    "first": {},
    "crops 8 %": {"views": {"area": [0.08, 1.0]}},
    "temperature 0.1": {"method": {"temperature": 0.1}},
    "colours untouched": {"views": {"jitter": 0}},
    "colours between": {"views": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.05}},
    "colours strong": {"views": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "grey": 0.2}},
    "brightness and contrast": {"views": {"saturation": 0, "hue": 0}},
    "the same, temperature 0.1": {"views": {"saturation": 0, "hue": 0}, "method": {"temperature": 0.1}},
    "the same, crops 8 %": {"views": {"saturation": 0, "hue": 0, "area": [0.08, 1.0]}},
    "the same, rotation beside": {"views": {"saturation": 0, "hue": 0}, "auxiliary": {"rotation": {"weight": 0.2}}},
    "the same, turns": {"views": {"saturation": 0, "hue": 0, "turns": True}},
    "more of them": {"views": {"brightness": 0.4, "contrast": 0.4, "saturation": 0, "hue": 0}},
    "byol": {"method": {"name": "byol"}},
    "vicreg": {"method": {"name": "vicreg"}},
    "barlow": {"method": {"name": "barlow"}},
    "rate / 2": {"optimiser": {"lr": 0.06}},
    "batch 64": {"training": {"batch": 64}, "optimiser": {"lr": 0.12}},
    "temperature 0.5": {"method": {"temperature": 0.5}},
    "rate x 2": {"optimiser": {"lr": 0.24}},
    "turns": {"views": {"turns": True}},
    "crops 40 %": {"views": {"area": [0.4, 1.0]}},
}


def region(size: tuple[int, int], split: str) -> tuple[int, int, int, int]:
    longer = max(size)
    start, end = (int(part * longer) for part in PARTS[split])
    return (start, 0, end, size[1]) if size[0] >= size[1] else (0, start, size[0], end)


def write_tiles(path: Path) -> None:
    photos.region = region
    parts = {split: photos.photo_tiles(split, 32, count) for split, count in (("train", 250), ("test", 60))}
    arrays = {f"{split}_images": s.array.permute(0, 2, 3, 1).numpy() for split, s in parts.items() if s.array is not None}
    np.savez(path, **arrays, **{f"{split}_labels": s.labels for split, s in parts.items()})


def known() -> dict:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def main() -> None:
    wanted = sys.argv[1:] or list(ARMS)
    with tempfile.TemporaryDirectory() as folder:
        tiles = Path(folder) / "tiles.npz"
        write_tiles(tiles)
        for number, name in enumerate(wanted):
            if name not in known():
                settings = ARMS[name]
                out = Path(folder) / f"run{number}"
                run = train(str(tiles), recipe="photos", out=out, settings=merge(FIRST, settings))
                r = evaluate.run("knn", [str(out)], f"{tiles}@train", f"{tiles}@test")[0]
                found = {"settings": settings, "value": r.value, "low": r.low, "high": r.high, "n": r.n, "verdict": run.verdict["verdict"]}
                write_text(RESULTS, json.dumps(known() | {name: found}, indent=1) + "\n")
                print(name, found, flush=True)


if __name__ == "__main__":
    main()
