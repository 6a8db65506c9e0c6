"""Every method on CIFAR-10 beside lightly's own recipe: equal images, backbone and epochs, and lightly in our time.

    python -m experiments.cifar_methods [ARM ...] [--data FOLDER] [--out FOLDER] [--epochs N] [--threads N]

The first 1,000 training images of each class, a micro ResNet, 20 epochs, k-NN (k=200, T=0.1) on all 10,000 test images at the last epoch; also on
the features' principal components with a power of 0.25 (`gnothi ensemble fit` of one encoder, fitted on training images without labels). An arm is
`pixels`, `untrained`, `gnothi METHOD SEED`, `crops METHOD SEED` (ours with two more crops of the same kind), `lightly METHOD SEED`, or `time METHOD
SEED`: lightly for as many epochs as it does in the processor time of ours, by steps of both timed in turn in one process. By default all of them:
three seeds for SimCLR, BYOL and DINO (lightly: SimCLR), one for the others. lightly's backbone computes in the precision and memory format of ours.
FOLDER of --data holds train.npz and test.npz with `images` and `labels`; --out keeps our runs. Resumable: what stands in results/cifar_methods.json
is not run again, nor is an arm that diverged, which stands there with the reason; all arms there have the same --epochs. Five to fifteen minutes an
arm on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.hours import one_at_a_time, refuse
from experiments.images import write_images
from experiments.packed import halves
from gnothi import ensemble, evaluate, pretrain
from gnothi.contracts import GnothiError, Pixels, RunError, SettingError
from gnothi.data import DataSpec
from gnothi.encoders import Encoder, load
from gnothi.encoders.network import NetworkEncoder
from gnothi.evaluate.run import split, vectors_of
from gnothi.files import write_text
from gnothi.methods import METHODS
from gnothi.models import backbone as backbones
from gnothi.models.backbone import BackboneSpec
from gnothi.pretrain import train
from gnothi.recipes.resolve import resolve
from gnothi.training.learner import Learner

RESULTS = Path(__file__).parent / "results" / "cifar_methods.json"
IMAGES = 10_000, 10_000
"""That train, and that test."""
SEEDS = {"gnothi": {"simclr": 3, "byol": 3, "dino": 3}, "crops": {}, "lightly": {"simclr": 3}, "time": {}}
"""How many seeds an arm has; 1 where nothing stands here."""
ALONE = ("pixels", "untrained")
"""Arms without a method."""
COMPARED = [name for name, (_, method) in METHODS.items() if method.compares]
IMAGENET = Pixels(0.0, 255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""lightly normalises by the statistics of ImageNet."""
MORE = {"local": 2, "local_size": 32, "local_area": (0.08, 1.0)}
"""Views of an arm with more crops."""
WARM, STEPS = 5, 40
"""Steps of each side before and while they are timed in turn."""


@dataclass(frozen=True)
class Study:
    data: Path
    """An .npz of the images that train and those that test."""
    epochs: int
    threads: int
    folder: Path
    """Keeps our runs."""

    def measured(self, encoder: Encoder) -> dict[str, Any]:
        return measured(encoder, self.data, self.folder / "features")

    def check(self, arms: Sequence[str]) -> None:
        """Refuse what would be met only hours later.

        Raises:
            SettingError: an arm is unknown, or the results are of other epochs.
        """
        for arm in arms:
            seed = arm.rpartition(" ")[2]
            refuse(arm, [*ALONE, *(f"{kind} {m} {seed if seed.isdecimal() else 0}" for kind in SEEDS for m in COMPARED)])
        others = {row["epochs"] for arm, row in known().items() if not arm.startswith("time ") and "epochs" in row} - {self.epochs}
        if others:
            before = f"{min(others):g}"
            raise SettingError(f"{RESULTS} holds arms of {before} epochs, not of {self.epochs:g}; move it away, or take --epochs {before}")

    def gnothi(self, method: str, seed: int, views: dict[str, Any] | None = None, kind: str = "") -> dict[str, Any]:
        out = self.folder / f"{kind}{method}-{seed}"
        shutil.rmtree(out, ignore_errors=True)  # of an arm that was cut off: its processor time would be a part
        chosen = self.settings(method, seed) | {"views": views or {}}
        began = time.process_time()
        run = train(f"{self.data}@train", out=out, settings=chosen)
        processor = round(time.process_time() - began, 1)
        about = {"epochs": self.epochs, "seconds": run.verdict["seconds"], "processor": processor}
        return {**self.measured(load(str(out))), **about, "verdict": run.verdict["verdict"], "why": run.verdict["why"]}

    def settings(self, method: str, seed: int) -> dict[str, Any]:
        """Of our run of an arm."""
        training = {"epochs": self.epochs, "threads": self.threads, "evaluate_every": "100%"}
        return {"seed": seed, "method": {"name": method}, "training": training, "backbone": {"name": "micro-resnet"}, "data": {"holdout": 0}}

    def crops(self, method: str, seed: int) -> dict[str, Any]:
        return self.gnothi(method, seed, MORE, "crops-")

    def lightly(self, method: str, seed: int, epochs: int | None = None) -> dict[str, Any]:
        from experiments.lightly_recipes import train as train_lightly

        torch.set_num_threads(self.threads)
        spec, epochs = BackboneSpec(name="micro-resnet"), epochs or self.epochs
        backbone = backbones.build(spec, 3, 32, seed)
        with np.load(self.data) as packed:
            images = packed["train_images"]
        began = time.process_time()
        seconds = train_lightly(method, images, backbone, epochs, seed, lambda text: print(text, flush=True), precision=self.precision)
        processor = round(time.process_time() - began, 1)
        encoder = NetworkEncoder("lightly", backbone, spec, 3, 32, IMAGENET)
        return {**self.measured(encoder), "epochs": epochs, "seconds": round(seconds, 1), "processor": processor, "precision": self.precision}

    @property
    def precision(self) -> str:
        """Of our runs on this processor."""
        settings = {"method": {"name": "simclr"}, "backbone": {"name": "micro-resnet"}}
        return resolve(f"{self.data}@train", settings=settings).spec.training.precision or "fp32"

    def time(self, method: str, seed: int) -> dict[str, Any]:
        """lightly for the whole epochs, the last one rounded up, that it does in the processor time of ours."""
        ours, theirs = self.paces(method, seed)
        epochs = math.ceil(self.epochs * ours / theirs)
        return {**self.lightly(method, seed, epochs), "steps": {"gnothi": round(ours, 5), "lightly": round(theirs, 5)}}

    def paces(self, method: str, seed: int) -> list[float]:
        """Processor seconds of a step of ours and of one of lightly's, views and all."""
        from experiments import lightly_recipes

        resolved = resolve(f"{self.data}@train", settings=self.settings(method, seed))
        torch.set_num_threads(self.threads)
        objective, spec = pretrain.build(resolved), resolved.spec
        views = pretrain.batches(resolved, objective)
        ours = Learner(objective, views, spec=spec.training, optimiser=spec.optimiser, total=resolved.total, per_epoch=resolved.per_epoch, seed=seed)
        with np.load(self.data) as packed:
            images = packed["train_images"]
        recipe = lightly_recipes.Recipe(method, backbones.build(BackboneSpec(name="micro-resnet"), 3, 32, seed), self.precision)
        batches = iter(lightly_recipes.loader(images, method))
        found = in_turn(ours.step, lambda: recipe.step(next(batches)))
        views.close()
        return found

    def run(self, arm: str) -> dict[str, Any]:
        """What stands in the results for an arm; it is run where nothing does."""
        if arm not in known():
            began = time.monotonic()
            try:
                found = self.found(*arm.split())
            except (FloatingPointError, RunError) as why:
                if why.__cause__ is not None:  # a disk that is full, not a run that diverged
                    raise
                found = {"failed": str(why)}
            with one_at_a_time(RESULTS):
                write_text(RESULTS, json.dumps(known() | {arm: {**found, "threads": self.threads}}, indent=1) + "\n")
            print(f"{arm}: {found.get('value') or found['failed']} after {time.monotonic() - began:.0f} s", flush=True)
        return known()[arm]

    def found(self, kind: str, *rest: str) -> dict[str, Any]:
        """What comes of an arm."""
        if kind == "pixels":
            return self.measured(load("pixels"))
        if kind == "untrained":
            spec = BackboneSpec(name="micro-resnet")
            return self.measured(NetworkEncoder("untrained", backbones.build(spec, 3, 32, 0), spec, 3, 32, IMAGENET))
        found: dict[str, Any] = getattr(self, kind)(rest[0], int(rest[1]))
        return found


def in_turn(*steps: Callable[[], object]) -> list[float]:
    """Median processor seconds of each, taken one after the other again and again: what else the machine does meets all of them alike."""
    taken: list[list[float]] = [[] for _ in steps]
    for _ in range(WARM + STEPS):
        for step, into in zip(steps, taken, strict=True):
            began = time.process_time()
            step()
            into.append(time.process_time() - began)
    return [statistics.median(times[WARM:]) for times in taken]


def measured(encoder: Encoder, data: Path, cache: Path) -> dict[str, Any]:
    """k-NN (k=200, T=0.1) on the features as they are, and on their principal components.

    Args:
        encoder: what is measured.
        data: an .npz with both splits.
        cache: folder of the stored features.
    """
    rows = split(f"{data}@train", f"{data}@test", DataSpec(), 0)
    x, y = (vectors_of(encoder, part, str(cache), None) for part in (rows.train, rows.test))
    flat = ensemble.fit([x], "pca", power=0.25, floor=1e-4)
    plain, spectral = (
        evaluate.knn(a, rows.train.labels, b, rows.test.labels, 200, 0.1) for a, b in ((x, y), (flat.transform([x]), flat.transform([y])))
    )
    own = {k: round(getattr(plain, k), 4) for k in ("value", "low", "high")}
    return {**own, "spectral": round(spectral.value, 4), "n": plain.n, "protocol": plain.protocol}


def known() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def arms() -> list[str]:
    return [*ALONE, *(f"{kind} {m} {s}" for kind, seeds in SEEDS.items() for m in COMPARED for s in range(seeds.get(m, 1)))]


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="*", metavar="ARM")
    parser.add_argument("--data", type=Path, default=Path("data/cifar10"))
    parser.add_argument("--out", type=Path, default=Path("runs/cifar-methods"))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(words)
    if not halves(given.data):
        parser.error(f"--data {given.data} must hold train.npz and test.npz")
    images = given.out / "cifar.npz"
    study = Study(images, given.epochs, given.threads, given.out)
    try:
        study.check(given.arms)
        write_images(given.data, images, *IMAGES)
    except GnothiError as error:
        parser.error(str(error))
    for arm in given.arms or arms():
        study.run(arm)


if __name__ == "__main__":
    main()
