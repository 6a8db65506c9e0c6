"""What each auxiliary objective gives on CIFAR-10, and which method suits little data: comparisons with paired intervals.

    python -m experiments.studies STUDY ... [--data FOLDER] [--far DATA] [--out FOLDER] [--gpu] [--tiny]

STUDY is one of the names below. FOLDER holds train.npz and test.npz with `images` and `labels`. A study is several calls of `gnothi.compare`, most of
one method, so that every difference is one to that method alone; it goes on where it was stopped, and what came of it is written to
results/study_NAME.json after every call. Each takes about 90 minutes of two cores. --gpu takes a ResNet-18 or a tiny ViT with patches of 4, and 200
epochs of all images where a call does not say otherwise. --far are images of another kind, with labels, on which `layers` measures every block, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gnothi
from experiments.images import write_images
from gnothi import evaluate
from gnothi.comparison import Comparison
from gnothi.files import write_text
from gnothi.recipes.spec import merge

RESULTS = Path(__file__).parent / "results"
TEST = 5000
"""Test images, the same number of every class."""
EQUAL = " in equal time"
VALUES, PLACE = ("value", "low", "high", "n"), ("block", "features", "flops")
"""What is kept of a block's result."""
BEST = "best"
"""Stands for the set of auxiliaries with the best k-NN on images held out of training, of those that a study's first call compared."""


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
    blocks: bool = False
    """Measure every block, too."""
    gpu: tuple[int, float] = (50_000, 200)
    """Images and epochs of the form for a GPU."""
    gpu_only: bool = False


def twice(call: Call) -> list[Call]:
    """The same arms on equal epochs, then in equal time."""
    return [call, replace(call, name=call.name + EQUAL, equal_time=True, blocks=False)]


def rotation() -> list[Call]:
    """The claim is fast convergence: three seeds of two methods, one of the others; k-NN along every run stands in the results."""
    key = [Call(m, (m,), ("none", "rotation"), seeds=3) for m in ("simclr", "byol")]
    others = [Call(m, (m,), ("none", "rotation"), images=3000) for m in ("simsiam", "swav", "moco", "dino")]
    return [call for base in (*key, *others) for call in twice(base)]


def layers() -> list[Call]:
    """Every block's accuracy. SimCLR's third arm has the full weight from the first step, that of BYOL and MoCo the predictor-only term alone."""
    shared: dict[str, Any] = {"auxiliaries": ("none", "layers"), "backbone": "micro-vit", "blocks": True}
    weight, alone = {"auxiliary.layers.schedule": ["half_cosine", "constant"]}, {"auxiliary.layers.layers": ["all", []]}
    calls = [Call("simclr", ("simclr",), seeds=3, vary=weight, **shared), *(Call(m, (m,), vary=alone, **shared) for m in ("byol", "moco"))]
    return [call for base in calls for call in twice(base)]


def local() -> list[Call]:
    """Partners by place, by likeness, both and by chance, on few and more images in as many steps; equal time on few."""
    shared: dict[str, Any] = {
        "methods": ("dino",),
        "auxiliaries": ("none", "local"),
        "backbone": "micro-vit",
        "vary": {"auxiliary.local.match": ["geometric", "similarity", "both", "random"]},
        "settings": {"training": {"batch": 64}},
    }
    few = twice(Call("1,000 images", images=1000, epochs=50, gpu=(1000, 1000), **shared))
    more = Call("5,000 images", images=5000, epochs=10, gpu=(5000, 200), **shared)
    return [few[0], more, few[1], Call("50,000 images", gpu_only=True, **shared)]


def together() -> list[Call]:
    """All sets of three beside one method; the best of them, by images held out of training, beside two methods on fewer and more images."""
    sets = ("none", "rotation", "layers", "local", "rotation+layers", "rotation+local", "layers+local", "rotation+layers+local")
    sizes = ((2000, 20.0, (2000, 1000.0), False), (10_000, 10.0, (10_000, 400.0), False), (50_000, 10.0, (50_000, 200.0), True))
    best = [
        Call(f"best on {n:,} images, {m}", (m,), ("none", BEST), images=n, epochs=e, gpu=gpu, gpu_only=only)
        for n, e, gpu, only in sizes
        for m in ("byol", "simclr")
    ]
    return [*twice(Call("all sets", ("byol",), sets)), *best]


def small() -> list[Call]:
    """Which method suits little data."""
    methods = ("simclr", "moco", "byol", "simsiam", "swav", "dino", "barlow", "vicreg")
    return [Call(f"{n} images", methods, ("none",), images=n, epochs=None, gpu=(n, 400)) for n in (500, 2000, 10_000)]


STUDIES: dict[str, Callable[[], list[Call]]] = {f.__name__: f for f in (rotation, layers, local, together, small)}


def on_gpu(call: Call) -> Call:
    backbone, patches = ("resnet18", {}) if call.backbone == "micro-resnet" else ("vit_tiny_patch16_224", {"backbone": {"patch_size": 4}})
    return replace(call, backbone=backbone, images=call.gpu[0], epochs=call.gpu[1], settings=merge(patches, call.settings or {}))


def in_small(call: Call) -> Call:
    """A few images, one epoch, two looks."""
    rare = {"training": {"evaluate_every": "50%", "health_every": "50%", "batch": 16}}
    return replace(call, images=80, epochs=1, seeds=1, settings=merge(call.settings or {}, rare))


# ---- carrying out --------------------------------------------------------------------------------
@dataclass(frozen=True)
class Study:
    """Where a study lies, and on what."""

    name: str
    data: Path
    far: str | None
    out: Path
    test: int = TEST
    least: float = 0.0
    """Seconds of a run in equal time."""

    def run(self, call: Call, before: dict[str, Any]) -> dict[str, Any]:
        """Carry out a comparison, given what the ones before it found."""
        images, folder = self.out / f"cifar-{call.images}.npz", self.out / self.name / call.name.replace(" ", "-").replace(",", "")
        write_images(self.data, images, call.images, self.test)
        settings = merge({"backbone": {"name": call.backbone}, "data": {"holdout": 0.1}}, call.settings or {})
        shape: dict[str, Any] = {"epochs": call.epochs}
        if call.equal_time:
            slowest = max(r["seconds"] for r in before[call.name.removesuffix(EQUAL)]["runs"] if "seconds" in r)
            shape = {"seconds": max(self.least, round(slowest, 1))}
        sets = [best(next(iter(before.values()))) if s == BEST else s for s in call.auxiliaries]
        done = gnothi.compare(
            str(images), methods=call.methods, auxiliaries=sets, seeds=call.seeds, out=folder, settings=settings, vary=call.vary, **shape
        )
        runs = [{k: v for k, v in r.items() if k != "correct"} for r in done.record["runs"]]
        found = {"table": done.record["table"], "protocol": done.record["protocol"], "runs": runs, "images": call.images, "sets": sets, **shape}
        if any("local" in s for s in sets):
            found["health"] = matches(done)
        if call.blocks:
            found |= self.blocks(done, images)
        return found

    def blocks(self, done: Comparison, images: Path) -> dict[str, Any]:
        """Accuracy of every block of every run: on the test images, and on those of another kind."""
        names = {str(done.folder / r["run"]): (r["arm"], r["seed"]) for r in done.record["runs"] if "failed" not in r}
        asked = {"blocks": (f"{images}@train", f"{images}@test")} | ({"far": (self.far, None)} if self.far else {})
        found = {}
        for key, (data, test) in asked.items():
            results = evaluate.layers(list(names), data, test, metrics=("knn",), cache=str(self.out / "features"))
            found[key] = [
                {"arm": names[r.encoder][0], "seed": names[r.encoder][1], **{k: getattr(r, k) for k in VALUES}, **{k: r.details[k] for k in PLACE}}
                for r in results
            ]
        return found


def best(call: dict[str, Any]) -> str:
    """The set of auxiliaries whose runs ended with the best k-NN on images held out of training, the mean over seeds."""
    values = {
        arm: statistics.fmean(r["along"][-1]["value"] for r in call["runs"] if r["arm"] == arm and r.get("along"))
        for arm in {r["arm"] for r in call["runs"] if r.get("along")}
    }
    method, _, chosen = max(values, key=lambda arm: (values[arm], arm)).partition("+")
    return chosen or "none"


def matches(done: Comparison) -> list[dict[str, Any]]:
    """What patches knew of places along every run that has them."""
    found = []
    for r in done.record["runs"]:
        path = done.folder / r["run"] / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        found += [
            {"arm": r["arm"], "seed": r["seed"], **{k: m[k] for k in m if k == "epoch" or k.startswith("local_")}}
            for m in lines
            if m["kind"] == "health" and "local_precision" in m
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", choices=list(STUDIES), metavar="STUDY", help=", ".join(STUDIES))
    parser.add_argument("--data", type=Path, default=Path("data/cifar10"))
    parser.add_argument("--far", help="such as flowers: a folder of images with labels")
    parser.add_argument("--out", type=Path, default=Path("runs/studies"))
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="a few images and one epoch, to see that it runs; results are written to OUT")
    given = parser.parse_args()
    for name in given.studies:
        study = Study(name, given.data, given.far, given.out, *((100, 12.0) if given.tiny else ()))
        change: Callable[[Call], Call] = in_small if given.tiny else on_gpu if given.gpu else lambda call: call
        into, found = given.out if given.tiny else RESULTS, dict[str, Any]()
        for call in (change(call) for call in STUDIES[name]() if given.gpu or not call.gpu_only):
            found[call.name] = study.run(call, found)
            write_text(into / f"study_{name}{'_gpu' if given.gpu else ''}.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
