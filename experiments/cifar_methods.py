"""Every method on CIFAR-10 beside lightly's own recipe: equal images, backbone and epochs, and ours again in lightly's time.

    python -m experiments.cifar_methods [ARM ...] [--data FOLDER] [--epochs N] [--threads N]

The first 1,000 training images of each class, a micro ResNet, 20 epochs, k-NN (k=200, T=0.1) on all 10,000 test images at the last epoch. An arm is
`pixels`, `untrained`, `gnothi METHOD SEED`, `lightly METHOD SEED` or `time METHOD SEED` (gnothi for the seconds that lightly took in this file); by
default all of them: three seeds for SimCLR, BYOL and DINO (lightly: SimCLR), one for the others. FOLDER holds train.npz and test.npz with `images`
and `labels`. Resumable: what stands in results/cifar_methods.json is not run again. Five to fifteen minutes an arm on one core.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gnothi import evaluate
from gnothi.contracts import Pixels
from gnothi.encoders import load
from gnothi.encoders.network import NetworkEncoder
from gnothi.methods import METHODS
from gnothi.models import backbone as backbones
from gnothi.models.backbone import BackboneSpec
from gnothi.pretrain import train
from gnothi.training.checkpoint import write_text

RESULTS = Path(__file__).parent / "results" / "cifar_methods.json"
A_CLASS = 1000
SEEDS = {"gnothi": {"simclr": 3, "byol": 3, "dino": 3}, "lightly": {"simclr": 3}, "time": {}}
"""How many seeds an arm has; 1 where nothing stands here."""
IMAGENET = Pixels(0.0, 255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""lightly normalises by the statistics of ImageNet."""


@dataclass(frozen=True)
class Study:
    data: Path
    """An .npz of the images that train and those that test."""
    epochs: int
    threads: int
    folder: Path

    def measured(self, encoder: Any) -> dict[str, Any]:
        r = evaluate.run("knn", [encoder], f"{self.data}@train", f"{self.data}@test", k=200, temperature=0.1, cache=str(self.folder / "features"))[0]
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in r.to_dict().items() if k in ("value", "low", "high", "n", "protocol")}

    def gnothi(self, method: str, seed: int, epochs: float | None = None) -> dict[str, Any]:
        out = self.folder / f"{method}-{seed}-{epochs}"
        training = {"epochs": epochs or self.epochs, "threads": self.threads, "evaluate_every": "100%"}
        chosen = {"seed": seed, "method": {"name": method}, "training": training, "backbone": {"name": "micro-resnet"}, "data": {"holdout": 0}}
        run = train(f"{self.data}@train", out=out, settings=chosen)
        about = {"epochs": training["epochs"], "seconds": run.verdict["seconds"], "verdict": run.verdict["verdict"], "why": run.verdict["why"]}
        return {**self.measured(str(out)), **about}

    def lightly(self, method: str, seed: int) -> dict[str, Any]:
        from experiments.lightly_recipes import train as train_lightly

        torch.set_num_threads(self.threads)
        spec = BackboneSpec(name="micro-resnet")
        backbone = backbones.build(spec, 3, 32, seed)
        with np.load(self.data) as packed:
            images = packed["train_images"]
        seconds = train_lightly(method, images, backbone, self.epochs, seed, lambda text: print(text, flush=True))
        encoder = NetworkEncoder("lightly", backbone, spec, 3, 32, IMAGENET)
        return {**self.measured(encoder), "epochs": self.epochs, "seconds": round(seconds, 1)}

    def time(self, method: str, seed: int) -> dict[str, Any]:
        """As many epochs as fit into the time of lightly's run, by the time of our own run of as many epochs as lightly's."""
        theirs, ours = self.run(f"lightly {method} {seed}"), self.run(f"gnothi {method} {seed}")
        return self.gnothi(method, seed, round(ours["epochs"] * theirs["seconds"] / ours["seconds"], 2))

    def run(self, arm: str) -> dict[str, Any]:
        """What stands in the results for an arm; it is run where nothing does."""
        if arm not in known():
            began = time.monotonic()
            kind, *rest = arm.split()
            if kind == "pixels":
                found = self.measured(load("pixels"))
            elif kind == "untrained":
                spec = BackboneSpec(name="micro-resnet")
                found = self.measured(NetworkEncoder("untrained", backbones.build(spec, 3, 32, 0), spec, 3, 32, IMAGENET))
            else:
                found = getattr(self, kind)(rest[0], int(rest[1]))
            write_text(RESULTS, json.dumps(known() | {arm: {**found, "threads": self.threads}}, indent=1) + "\n")
            print(f"{arm}: {found['value']:.4f} after {time.monotonic() - began:.0f} s", flush=True)
        return known()[arm]


def known() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def arms() -> list[str]:
    return [
        "pixels",
        "untrained",
        *(f"{kind} {m} {s}" for kind, seeds in SEEDS.items() for m, (_, of) in METHODS.items() if of.compares for s in range(seeds.get(m, 1))),
    ]


def write_images(data: Path, path: Path) -> None:
    parts = {}
    for split, most in (("train", A_CLASS), ("test", None)):
        with np.load(data / f"{split}.npz") as packed:
            images, labels = packed["images"], packed["labels"]
        rows = np.concatenate([np.flatnonzero(labels == c)[:most] for c in np.unique(labels)])
        parts |= {f"{split}_images": images[rows], f"{split}_labels": labels[rows]}
    np.savez(path, **parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="*", metavar="ARM")
    parser.add_argument("--data", type=Path, default=Path("data/cifar10"))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "cifar.npz"
        write_images(given.data, images)
        study = Study(images, given.epochs, given.threads, Path(folder))
        for arm in given.arms or arms():
            study.run(arm)


if __name__ == "__main__":
    main()
