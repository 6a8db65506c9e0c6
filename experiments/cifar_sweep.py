"""Which settings for each method on CIFAR-10: one axis after another, the best value so far is kept.

    python experiments/cifar_sweep.py [METHOD ...] [--data FOLDER] [--threads N] [--epochs N] [--precision P]

Micro ResNet, 10 epochs on the first 500 training images of each class; the next 500 of each class ask k-NN (k=200, T=0.1). The test set is not
looked at. FOLDER holds train.npz with `images` and `labels`. Resumable: what stands in results/cifar_sweep.json is not run again; a method's
first arm is what its rules said when the sweep began. About a minute and a half a run on one core in bf16. (The first arms
there had 5 epochs: too few, all values of all settings lay within .03.)
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from gnothi import evaluate
from gnothi.methods import METHODS
from gnothi.pretrain import train
from gnothi.recipes.spec import flat, merge, nested
from gnothi.training.checkpoint import write_text

RESULTS = Path(__file__).parent / "results" / "cifar_sweep.json"
A_CLASS = 500
"""Images of a class that train, and as many that ask."""
START = {
    "simclr": {"optimiser": {"lr": 0.12}, "views": {"recipe": "simclr-cifar"}},
    "moco": {"optimiser": {"lr": 0.12}, "views": {"recipe": "byol-cifar"}, "method": {"momentum": 0.98}},
    "byol": {"optimiser": {"lr": 0.12}, "views": {"recipe": "byol-cifar"}, "method": {"momentum": 0.98}},
    "simsiam": {"optimiser": {"lr": 0.06}, "views": {"recipe": "simsiam-cifar"}},
    "swav": {"optimiser": {"lr": 0.12}, "views": {"recipe": "swav-cifar"}, "method": {"prototypes": 256, "queue": 0}},
    "dino": {"optimiser": {"lr": 0.06}, "views": {"recipe": "dino-cifar"}, "method": {"prototypes": 256, "momentum": 0.98}},
    "barlow": {"optimiser": {"lr": 0.03}, "views": {"recipe": "byol-cifar"}},
    "vicreg": {"optimiser": {"lr": 0.03}, "views": {"recipe": "byol-cifar"}},
}
"""What the rules said when the sweep began: the first arm of each method, which also has batch 128, SGD, 10 % of warm-up and a decay of 5e-4."""
Axis = tuple[str, list[Any] | None]
LR: Axis = ("optimiser.lr", None)
BATCH: Axis = ("training.batch", [64])
AREA: Axis = ("views.area", [[0.2, 1.0]])
MOMENTUM: Axis = ("method.momentum", [0.9, 0.95])
JOINT: Axis = ("method.joint_views", [True, False])
COMMON: list[Axis] = [LR, BATCH, AREA]
AXES: dict[str, list[Axis]] = {
    "simclr": [*COMMON, ("method.temperature", [0.1, 0.3]), ("method.hidden", [1024]), ("optimiser.weight_decay", [1e-4, 1e-3])],
    "byol": [*COMMON, MOMENTUM, JOINT, ("method.out", [256])],
    "dino": [*COMMON, MOMENTUM, JOINT, ("method.prototypes", [1024]), ("method.teacher_temperature", [0.02]), ("method.frozen_until", [0.0])],
    "moco": [*COMMON, MOMENTUM, JOINT, ("method.temperature", [0.1, 0.4])],
    "simsiam": [*COMMON, JOINT, ("method.out", [512])],
    "swav": [*COMMON, ("method.prototypes", [64, 1024]), ("method.epsilon", [0.03]), JOINT],
    "barlow": [*COMMON, ("method.trade_off", [0.02]), ("method.out", [1024]), JOINT],
    "vicreg": [*COMMON, ("method.covariance", [5.0]), ("method.out", [1024]), JOINT],
}
"""Settings to try, in order; None stands for twice the value and half of it, and further on while that helps."""
FIXED = {
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
    parts = {"train": np.concatenate([r[:A_CLASS] for r in of_class]), "test": np.concatenate([r[A_CLASS : 2 * A_CLASS] for r in of_class])}
    np.savez(path, **{f"{k}_images": images[v] for k, v in parts.items()}, **{f"{k}_labels": labels[v] for k, v in parts.items()})


class Sweep:
    def __init__(self, data: Path, threads: int, epochs: int, precision: str) -> None:
        self.data, self.threads, self.epochs, self.precision = data, threads, epochs, precision

    def value(self, method: str, settings: dict[str, Any]) -> float:
        """k-NN of a method with these settings, from the results where it stands there."""
        key = f"{method} {json.dumps(flat(settings), sort_keys=True)}"
        if key not in known():
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "run"
                whole = merge(merge(FIXED, {"training": {"threads": self.threads, "workers": 0}}), settings)
                run = train(str(self.data), out=out, settings=merge(whole, {"method": {"name": method}}))
                r = evaluate.run("knn", [str(out)], f"{self.data}@train", f"{self.data}@test", k=200, temperature=0.1, cache=folder)[0]
            found = {
                "method": method,
                "settings": settings,
                "value": round(r.value, 4),
                "low": round(r.low, 4),
                "high": round(r.high, 4),
                "seconds": run.verdict["seconds"],
                "verdict": run.verdict["verdict"],
            }
            write_text(RESULTS, json.dumps(known() | {key: found}, indent=1) + "\n")
            print(f"{found['value']:.3f}", key, found["verdict"], flush=True)
        return known()[key]["value"]

    def method(self, method: str) -> None:
        best = merge({"training": {"epochs": self.epochs, "precision": self.precision}}, START[method])
        value = self.value(method, best)
        for setting, candidates in AXES[method]:
            if candidates is None:
                best, value = self.scale(method, setting, best, value)
                continue
            tried = [merge(best, nested(setting, c)) for c in candidates]
            values = [self.value(method, t) for t in tried]
            if max(values) > value:
                best, value = tried[values.index(max(values))], max(values)
        print(f"best of {method}: {value:.3f}", json.dumps(flat(best)), flush=True)

    def scale(self, method: str, setting: str, best: dict[str, Any], value: float) -> tuple[dict[str, Any], float]:
        """Double a number while it helps, then halve it while that helps."""
        for factor in (2.0, 0.5):
            while (new := self.value(method, tried := merge(best, nested(setting, flat(best)[setting] * factor)))) > value:
                best, value = tried, new
        return best, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", choices=[[], *METHODS], metavar="METHOD")
    parser.add_argument("--data", type=Path, default=Path("data/cifar10"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tiles = Path(folder) / "tiles.npz"
        write_split(given.data, tiles)
        for method in given.methods or AXES:
            Sweep(tiles, given.threads, given.epochs, given.precision).method(method)


if __name__ == "__main__":
    main()
