"""Which settings for each method on CIFAR-10: runs that differ in one thing, judged inside the training images.

    python -m experiments.cifar_sweep [METHOD ...] [--data FOLDER] [--threads N]

Micro ResNet, 20 epochs on the first 1,000 training images of each class; the next 500 of each class ask k-NN (k=200, T=0.1). The test set is not
looked at. FOLDER holds train.npz with `images` and `labels`. Resumable: what stands in results/cifar_sweep.json is not run again, nor is an arm that
diverged, which stands there with the reason. About six minutes a run on one core. (Arms of 5 and 10 epochs on half the images stand there too: all
values of all settings lay within .03 of each other, so they choose nothing.)
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.cifar_methods import measured
from experiments.hours import diverged, one_at_a_time, refuse
from experiments.images import ASKING, save
from gnothi.contracts import RunError, SettingError
from gnothi.encoders import load
from gnothi.files import replace_file, write_text
from gnothi.pretrain import train
from gnothi.recipes import spec
from gnothi.recipes.rules import Facts, defaults
from gnothi.recipes.spec import RunSpec, merge, nested

RESULTS = Path(__file__).parent / "results" / "cifar_sweep.json"
TRAIN = 1000
"""Images of a class that train."""
PROTOCOL = "k-NN, k=200, T=0.1, cosine; trained on 10,000 training images of CIFAR-10, asked about 5,000 others"
NOW: dict[str, dict[str, Any]] = {
    "simclr": {"optimiser.lr": 0.12, "views.recipe": "simclr-cifar", "method.decoupled": False},
    "byol": {"optimiser.lr": 0.12, "views.recipe": "byol-cifar", "method.momentum": 0.98},
    "dino": {"optimiser.lr": 0.06, "views.recipe": "dino-cifar", "method.prototypes": 512, "method.momentum": 0.98},
    "moco": {"optimiser.lr": 0.12, "views.recipe": "byol-cifar", "method.momentum": 0.98},
    "simsiam": {"optimiser.lr": 0.06, "views.recipe": "simsiam-cifar"},
    "swav": {"optimiser.lr": 0.12, "views.recipe": "swav-cifar", "method.prototypes": 512, "method.queue": 0},
    "barlow": {"optimiser.lr": 0.03, "views.recipe": "byol-cifar"},
    "vicreg": {"optimiser.lr": 0.03, "views.recipe": "byol-cifar"},
}
"""What the rules said when the sweep began; also batch 128, SGD, 10 % of warm-up and a decay of 5e-4. The first arm of each method."""
ROTATED = {"auxiliary.rotation.weight": 0.4, "auxiliary.rotation.views": [0], "auxiliary.rotation.reduction": "mean"}
CROPS = {"training.plain_statistics": False}
"""BatchNorm as training leaves it: arms before there was another choice."""
MORE = {"views.local": 2, "views.local_area": [0.08, 1.0]}
"""Two crops more, of the whole range of areas."""
TRIED: dict[str, list[dict[str, Any]]] = {
    "byol": [
        {"method.momentum": 0.9, **CROPS},
        {"method.momentum": 0.9, "optimiser.lr": 0.24, **CROPS},
        {"method.momentum": 0.9, "optimiser.lr": 0.24},
        {"method.momentum": 0.9, "optimiser.lr": 0.24, **MORE, "views.local_size": 32},
        {"method.momentum": 0.9, "optimiser.lr": 0.24, "views.recipe": "simclr-cifar"},
    ],
    "simclr": [
        {"method.decoupled": True, **CROPS},
        {"method.decoupled": True, **ROTATED, **CROPS},
        {"method.decoupled": True},
        {"training.precision": "fp32"},
        {"method.decoupled": True, "views.area": [0.2, 1.0]},
        {"method.decoupled": True, **MORE, "views.local_size": 24},
        {"method.decoupled": True, **MORE, "views.local_size": 32},
        {"method.decoupled": True, **MORE, "views.local_size": 24, "views.local": 4},
        {"method.decoupled": True, "training.epochs": 40},
    ],
    "moco": [
        {"method.momentum": 0.9},
        {"method.momentum": 0.9, **MORE, "views.local_size": 32},
        {"method.momentum": 0.9, "views.recipe": "simclr-cifar"},
        {"method.momentum": 0.9, "optimiser.lr": 0.24},
        {"method.momentum": 0.9, "method.decoupled": True},
    ],
    "simsiam": [{"optimiser.lr": 0.12}, {"optimiser.lr": 0.12, **MORE, "views.local_size": 32}, {"optimiser.lr": 0.24}],
    "barlow": [{"optimiser.lr": 0.06}, {"views.recipe": "simclr-cifar"}],
    "dino": [
        {"method.momentum": 0.9},
        {"optimiser.lr": 0.12},
        {"views.recipe": "dino", "views.local": 4},
        {"method.hidden": 2048, "method.out": 256, "method.prototypes": 2048},
        {"views.area": [0.14, 1.0]},
        {"method.momentum_end": 0.99},
        {"views.area": [0.08, 1.0]},
    ],
    "swav": [
        {"optimiser.lr": 0.24},
        {"views.recipe": "swav", "views.local": 4},
        {"optimiser.lr": 0.24, "method.queue": 1920},
        {"optimiser.lr": 0.48},
        {"optimiser.lr": 0.24, "views.recipe": "simclr-cifar"},
    ],
    "vicreg": [{"optimiser.lr": 0.06}],
}
"""What an arm changes of that."""
LONG: dict[str, Any] = {"training.epochs": 20, "training.precision": "bf16"}
"""The length of all arms but the shortest, and their arithmetic."""
FIXED: dict[str, Any] = {
    "seed": 0,
    "views": {"size": 32},
    "backbone": {"name": "micro-resnet"},
    "optimiser": {"name": "sgd"},
    "training": {"batch": 128, "evaluate_every": "100%"},
    "data": {"holdout": 0},
}


def known() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def write_split(data: Path, path: Path) -> None:
    with np.load(data / "train.npz") as packed:
        images, labels = packed["images"], packed["labels"]
    of_class = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    parts = {"train": np.concatenate([r[:TRAIN] for r in of_class]), "test": np.concatenate([r[ASKING] for r in of_class])}
    save(path, {f"{k}_images": images[v] for k, v in parts.items()} | {f"{k}_labels": labels[v] for k, v in parts.items()})


def nests(method: str, settings: dict[str, Any]) -> dict[str, Any]:
    """All that an arm says, nested."""
    chosen = merge(FIXED, {"method": {"name": method}})
    for name, value in settings.items():
        chosen = merge(chosen, nested(name, value))
    return chosen


def decided(method: str, settings: dict[str, Any]) -> RunSpec:
    """Every setting of an arm, those that it leaves open by the rules of now."""
    chosen = nests(method, {"data.name": "cifar", **settings})
    return spec.load(merge(defaults(Facts(10 * TRAIN, 3, 32, bf16=True), chosen), chosen))


def of_now(data: Path, folder: Path, method: str, threads: int | None = None) -> dict[str, Any]:
    """The arm that is the rules of now, in 20 epochs; it is run where none stands in the results. One that diverged has ``failed`` and no value.

    Args:
        data: folder of train.npz.
        folder: where its images are written.
        method: its name.
        threads: of its run; by default all cores.
    """
    rules = decided(method, LONG)
    stands = [row for row in known().values() if row["method"] == method and decided(method, row["settings"]) == rules]
    if stands:
        return stands[0]
    images = folder / "sweep.npz"
    replace_file(images, lambda temporary: write_split(data, temporary))
    run(images, method, LONG, threads or cores())
    return of_now(data, folder, method)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(data: Path, method: str, settings: dict[str, Any], threads: int) -> None:
    """An arm, unless it stands in the results."""
    key = f"{method} {json.dumps(settings, sort_keys=True)}"
    if key in known():
        return
    try:
        numbers = trained(data, merge(nests(method, settings), {"training": {"threads": threads}}))
        said = f"{numbers['value']:.3f} {key} {numbers['verdict']}"
    except RunError as why:
        numbers = {"failed": diverged(why).partition(";")[0]}  # the rest names a folder that is gone
        said = f"{key}: {numbers['failed']}"
    with one_at_a_time(RESULTS):
        write_text(RESULTS, json.dumps(known() | {key: {"method": method, "settings": settings, **numbers}}, indent=1) + "\n")
    print(said, flush=True)


def trained(data: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """A run: how good it is, its processor seconds and its verdict."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        done = train(f"{data}@train", out=Path(folder) / "run", settings=settings)
        processor = round(time.process_time() - began, 1)
        numbers = measured(load(str(done.folder)), data, Path(folder) / "features")
    kept = {k: numbers[k] for k in ("value", "low", "high", "spectral")}
    return {**kept, "processor": processor, "verdict": done.verdict["verdict"], "why": done.verdict["why"]}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD")
    parser.add_argument("--data", type=Path, default=Path("data/cifar10"))
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(words)
    try:
        for method in given.methods:
            refuse(method, NOW)
    except SettingError as error:
        parser.error(str(error))
    if not (given.data / "train.npz").is_file():
        parser.error(f"--data {given.data} must hold train.npz")
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images.npz"
        write_split(given.data, images)
        for changes in range(1 + max(map(len, TRIED.values()))):
            for method in given.methods or NOW:
                for change in [CROPS, *TRIED[method]][changes : changes + 1]:
                    run(images, method, {**LONG, **NOW[method], **change}, given.threads)


if __name__ == "__main__":
    main()
