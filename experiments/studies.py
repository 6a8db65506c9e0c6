"""What each auxiliary objective gives on CIFAR-10, and which method suits little data: comparisons with paired intervals.

    python -m experiments.studies STUDY ... [--data FOLDER] [--out FOLDER] [--gpu]

STUDY is one of the names below. FOLDER holds train.npz and test.npz with `images` and `labels`. Every study is one or more calls of
`gnothi.compare`, so it goes on where it was stopped; what came of it is written to results/study_NAME.json. --gpu takes all images, a ResNet-18 or a
tiny ViT with patches of 4, and 200 epochs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import gnothi
from gnothi import evaluate
from gnothi.recipes.spec import merge
from gnothi.training.checkpoint import write_text

RESULTS = Path(__file__).parent / "results"
TEST = 5000
"""Test images, the same number of every class."""


@dataclass(frozen=True)
class Call:
    """One comparison of a study."""

    name: str
    methods: Sequence[str]
    auxiliaries: Sequence[str]
    seeds: int = 1
    images: int = 4000
    """Training images, the first ones of every class."""
    epochs: float | None = 10
    """None: what the rules give the first arm."""
    equal_time: bool = False
    """Every arm gets the seconds that the slowest arm of the same comparison on equal epochs took."""
    backbone: str = "micro-resnet"
    settings: dict[str, Any] | None = None
    vary: dict[str, list[Any]] | None = None
    layers: bool = False
    """Measure every block, too."""


ROTATED = ("none", "rotation")
MATCHES = ["geometric", "similarity", "both", "random"]
FEW = {"training": {"batch": 64}}
STUDIES: dict[str, list[Call]] = {
    "rotation": [
        Call("key", ("simclr", "byol"), ROTATED, seeds=3),
        Call("key in equal time", ("simclr", "byol"), ROTATED, seeds=3, equal_time=True),
        Call("others", ("simsiam", "swav", "moco", "dino"), ROTATED),
        Call("others in equal time", ("simsiam", "swav", "moco", "dino"), ROTATED, equal_time=True),
    ],
    "layers": [
        Call("simclr", ("simclr",), ("none", "layers"), seeds=3, backbone="micro-vit", layers=True),
        Call("byol and moco", ("byol", "moco"), ("none", "layers"), backbone="micro-vit", layers=True),
        Call("predictors only", ("byol", "moco"), ("layers",), backbone="micro-vit", layers=True, settings={"auxiliary": {"layers": {"layers": []}}}),
        Call("simclr in equal time", ("simclr",), ("none", "layers"), seeds=3, backbone="micro-vit", equal_time=True),
    ],
    "local": [
        Call(
            f"{n} images",
            ("dino",),
            ("none", "local"),
            images=n,
            epochs=e,
            backbone="micro-vit",
            vary={"auxiliary.local.match": MATCHES},
            settings=FEW,
        )
        for n, e in ((1000, 50), (5000, 10))
    ],
    "small": [
        Call(f"{n} images", ("simclr", "moco", "byol", "simsiam", "swav", "dino", "barlow", "vicreg"), ("none",), images=n, epochs=None)
        for n in (500, 2000, 10_000)
    ],
    "together": [
        Call(
            "all subsets",
            ("byol",),
            ("none", "rotation", "layers", "local", "rotation+layers", "rotation+local", "layers+local", "rotation+layers+local"),
        ),
    ],
}


def on_gpu(call: Call) -> Call:
    backbone = "resnet18" if call.backbone == "micro-resnet" else "vit_tiny_patch16_224"
    patches = {} if backbone == "resnet18" else {"backbone": {"patch_size": 4}}
    images = call.images if "images" in call.name else 50_000
    return replace(call, backbone=backbone, images=images, epochs=200, settings=merge(patches, call.settings or {}))


def write_images(data: Path, path: Path, n: int) -> None:
    """The first images of every class, sorted as they stand; the same test images for every n."""
    if path.exists():
        return
    parts = {}
    for split, many in (("train", n), ("test", TEST)):
        with np.load(data / f"{split}.npz") as packed:
            images, labels = packed["images"], packed["labels"]
        classes = np.unique(labels)
        rows = np.sort(np.concatenate([np.flatnonzero(labels == c)[: many // len(classes)] for c in classes]))
        parts |= {f"{split}_images": images[rows], f"{split}_labels": labels[rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **parts)


def run(study: str, call: Call, data: Path, out: Path) -> dict[str, Any]:
    images = out / f"cifar-{call.images}.npz"
    write_images(data, images, call.images)
    settings = merge({"backbone": {"name": call.backbone}, "data": {"holdout": 0.1}}, call.settings or {})
    folder = out / study / call.name.replace(" ", "-")
    shape: dict[str, Any] = {"epochs": call.epochs}
    if call.equal_time:
        equal = json.loads((out / study / call.name.removesuffix(" in equal time").replace(" ", "-") / "results.json").read_text())
        shape = {"seconds": round(max(r["seconds"] for r in equal["runs"]), 1)}
    done = gnothi.compare(
        str(images), methods=call.methods, auxiliaries=call.auxiliaries, seeds=call.seeds, out=folder, settings=settings, vary=call.vary, **shape
    )
    runs = [{k: v for k, v in r.items() if k != "correct"} for r in done.record["runs"]]
    found = {"table": done.record["table"], "protocol": done.record["protocol"], "runs": runs, "images": call.images, **shape}
    if call.layers:
        named = [str(folder / r["run"]) for r in runs if "failed" not in r]
        found["layers"] = [
            r.to_dict() for r in evaluate.layers(named, f"{images}@train", f"{images}@test", metrics=("knn",), cache=str(out / "features"))
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", choices=list(STUDIES), metavar="STUDY", help=", ".join(STUDIES))
    parser.add_argument("--data", type=Path, default=Path("data/cifar10"))
    parser.add_argument("--out", type=Path, default=Path("runs/studies"))
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="a few images and one epoch, to see that it runs")
    given = parser.parse_args()
    change: Callable[[Call], Call] = on_gpu if given.gpu else lambda call: call
    for study in given.studies:
        found = {}
        for call in map(change, STUDIES[study]):
            if given.tiny:
                call = replace(call, images=200, epochs=1, seeds=1)
            found[call.name] = run(study, call, given.data, given.out)
            if not given.tiny:
                write_text(RESULTS / f"study_{study}{'_gpu' if given.gpu else ''}.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
