"""Members of ensembles: runs on one set of images, found among those of others or trained."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.hours import diverged
from gnothi.contracts import RunError, Source
from gnothi.data import open as open_data
from gnothi.pretrain import train

MIXED: dict[str, dict[str, Any]] = {
    "simclr": {"method": {"name": "simclr"}},
    "byol": {"method": {"name": "byol"}},
    "vicreg": {"method": {"name": "vicreg"}},
    "simclr-rotation": {"method": {"name": "simclr"}, "auxiliary": {"rotation": {}}},
}
VIT = {f"{name}-vit": {**settings, "backbone": {"name": "micro-vit"}} for name, settings in MIXED.items()}
"""The same with another backbone."""
SETS = ("mixed", "seeds", "alone", "crafted", "vit")


@dataclass(frozen=True)
class Members:
    """Runs of one number of epochs, in folders METHOD-SEED."""

    images: Path
    """An .npz of the images that train and those that test."""
    found: Path
    """Where runs may lie that others have trained."""
    out: Path
    """Where they are trained that are not there; of these images and epochs only."""
    epochs: float
    threads: int
    lost: dict[str, RunError] = field(default_factory=dict)
    """Why a run diverged, by its folder: it would do so again."""

    @cached_property
    def source(self) -> Source:
        """The images that train."""
        return open_data(f"{self.images}@train")

    def of(self, kind: str, seed: int) -> list[str]:
        """Encoders of one of ``SETS``."""
        if kind == "seeds":
            return [self.one("simclr", 10 * seed + s) for s in range(4)]
        if kind == "alone":
            return [self.one("simclr", seed)]
        return [self.one(name, seed) for name in (VIT if kind == "vit" else MIXED)] + (["hog", "colour"] if kind == "crafted" else [])

    def one(self, name: str, seed: int) -> str:
        """A run that is there, or is trained."""
        there, own = self.found / f"{name}-{seed}", self.out / f"{name}-{seed}"
        if not finished(there):
            return self.trained(own, name, seed)
        if self.fits(there, self.chosen(name, seed, self.epochs)):
            return str(there)
        if not finished(own):
            print(f"{there} has other settings or other images; {own} is trained in its place", flush=True)
        return self.trained(own, name, seed)

    def fits(self, run: Path, chosen: dict[str, Any]) -> bool:
        """Whether a finished run is one of these settings and of the very same images, whatever their file is called."""
        record = json.loads((run / "spec.json").read_text())
        return told(record["settings"]) == told(chosen) and record["source"]["fingerprint"] == self.source.fingerprint()

    def trained(self, out: Path, name: str, seed: int, epochs: float | None = None) -> str:
        """A run of this study's own, which is begun or gone on with where it is not finished."""
        if str(out) in self.lost:
            raise self.lost[str(out)]
        if not finished(out):
            begun = (out / "spec.json").exists()
            try:
                train(f"{self.images}@train", out=out, settings=None if begun else self.chosen(name, seed, epochs or self.epochs), resume=begun)
            except RunError as why:
                diverged(why)
                self.lost[str(out)] = why
                raise
        return str(out)

    def chosen(self, name: str, seed: int, epochs: float) -> dict[str, Any]:
        """Settings of a run."""
        shared = {"seed": seed, "backbone": {"name": "micro-resnet"}, "training": self.training(epochs, self.threads), "data": {"holdout": 0}}
        return {**shared, **(MIXED | VIT)[name]}

    @staticmethod
    def training(epochs: float, threads: int) -> dict[str, Any]:
        return {"epochs": epochs, "threads": threads, "evaluate_every": "100%"}


def told(settings: dict[str, Any]) -> list[Any]:
    """What of a run's settings makes it another member."""
    names = [settings["method"]["name"], settings["backbone"]["name"], sorted(settings.get("auxiliary") or {})]
    return [settings["seed"], settings["training"]["epochs"], settings["data"]["holdout"], *names]


def finished(run: Path) -> bool:
    return (run / "verdict.json").exists()
