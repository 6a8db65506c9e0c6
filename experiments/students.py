"""Students of the study of transfer: what each arm is taught by whom, for as long as costs the same, and its run."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.cost import step_flops
from experiments.hours import diverged, threads_of
from gnothi.contracts import RunError
from gnothi.models import backbone as backbones
from gnothi.models.backbone import BackboneSpec
from gnothi.pretrain import train
from gnothi.recipes.spec import merge
from gnothi.transfer import TransferSpec, transfer
from gnothi.transfer.clusters import rule

PRETEXTS: dict[str, dict[str, Any]] = {
    "rotation": {"method": {"name": "none"}, "auxiliary": {"rotation": {"copies": "one"}}},
    "jigsaw": {"method": {"name": "none"}, "auxiliary": {"jigsaw": {"max_occlusions": 2}}},
    "simclr": {"method": {"name": "simclr"}},
}
TWO = "compress with two queues"
KEY = ("direct", "clusters", "hog", "shuffled", "regression", "compress", "supervised")
"""Arms that every seed has."""
SMALLER = ("direct", "regression", "clusters", "compress", "seed")
"""Students of the second form."""
SIFT = "bow-sift of these images"
DEEP = "the teacher"
ELSEWHERE = "fit elsewhere"
Arm = tuple[list[str], dict[str, Any]]


def arms(teacher: str, data: str, images: int, fit: str | None) -> dict[str, Arm]:
    """By name: the teachers, and what transfer does with them; everything that differs from the arm "clusters" is there to be compared with it.

    Clusters of other images are as many as that arm's: by the rule they would follow the number of those images, too.
    """
    found: dict[str, Arm] = {"clusters": ([teacher], {}), "shuffled": ([teacher], {"shuffle": True}), "heads": ([teacher], {"heads": 3})}
    found |= {"hog": (["hog"], {}), "bow-sift": (["bow-sift"], {}), SIFT: ([f"bow-sift:{data}"], {})}
    found |= {loss: ([teacher], {"loss": loss}) for loss in ("regression", "compress", TWO, "seed")}
    found |= {f"k={k}": ([teacher], {"k": k}) for k in (rule(images) // 4, 4 * rule(images)) if 1 < k <= images}
    return found | ({ELSEWHERE: ([teacher], {"fit": fit, "k": rule(images)})} if fit else {})


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


class Students:
    """Runs of one call's settings, each begun, gone on with or left alone.

    Args:
        asked: what the command line says.
        data: images with labels that train.
        images: how many.
    """

    def __init__(self, asked: argparse.Namespace, data: str, images: int) -> None:
        self.asked, self.data, self.images = asked, data, images
        given = ("pretext", "teacher", "stem", "teacher_epochs", "student", "widths", "size", "epochs", "of")
        self.settings = {"data": Path(data).name, "images": images, **{key: getattr(asked, key) for key in given}}
        self.digest = digest(self.settings)
        self.fit = {"name": Path(asked.fit).name, "digest": digest(asked.fit)} if asked.fit else None
        """Of one arm only, so that others need not be trained again for it."""
        self.folder = asked.out / self.digest
        self.lost: dict[Path, RunError] = {}
        """Why a run diverged: it would do so again."""

    def check(self, channels: int) -> None:
        """Build all networks once.

        Raises:
            SettingError: one is unknown or does not take such images.
        """
        for backbone in (self.student, *([] if self.asked.of else [self.teacher])):
            backbones.build(BackboneSpec(**backbone), channels, self.asked.size, 0)

    @property
    def student(self) -> dict[str, Any]:
        """Its backbone."""
        return {"name": self.asked.student} | ({"args": {"widths": self.asked.widths}} if self.asked.widths else {})

    @property
    def teacher(self) -> dict[str, Any]:
        """Its backbone, of the first form."""
        return {"name": self.asked.teacher} | ({"stem": self.asked.stem} if self.asked.stem else {})

    def shared(self, seed: int, epochs: float) -> dict[str, Any]:
        training = {"epochs": epochs, "threads": self.asked.threads, "evaluate_every": "100%"}
        return {"seed": seed, "views": {"size": self.asked.size}, "training": training, "data": {"holdout": 0}}

    @property
    def plain(self) -> dict[str, Any]:
        """A student's settings but for what teaches it."""
        return {"method": {"name": "classify"}, "views": {"recipe": "plain", "size": self.asked.size}, "backbone": self.student}

    @cached_property
    def flops(self) -> dict[str, float]:
        """Operations of an image of a step: of the student trained directly, and of one that is taught."""
        direct = {**self.shared(0, 1), **PRETEXTS[self.asked.pretext], "backbone": self.student}
        return {"direct": step_flops(self.data, direct), "taught": step_flops(self.data, {**self.shared(0, 1), **self.plain})}

    def epochs(self, arm: str) -> float:
        """As many as cost what the direct student's do."""
        if arm == "teacher":
            return float(self.asked.teacher_epochs)
        if arm == "direct":
            return float(self.asked.epochs)
        slow = 4 / 3 if arm == TWO else 1.0  # its second network goes forward only, a third of forward and back
        return round(self.asked.epochs * self.flops["direct"] / (slow * self.flops["taught"]), 2)

    def pretext(self, name: str, seed: int, backbone: dict[str, Any]) -> Path:
        settings = {**self.shared(seed, self.epochs(name)), **PRETEXTS[self.asked.pretext], "backbone": backbone}
        return self.ran(name, seed, lambda out, on: train(self.data, settings=None if on else settings, out=out, resume=on))

    def supervised(self, seed: int) -> Path:
        settings = {**self.shared(seed, self.epochs("supervised")), **self.plain}
        return self.ran("supervised", seed, lambda out, on: train(self.data, settings=None if on else settings, out=out, resume=on))

    def taught(self, name: str, seed: int, arm: Arm) -> Path:
        teachers, spec = arm
        queues = {"method": {"queues": 2}} if spec.get("loss") == TWO else {}
        spec = {**spec, "loss": "compress"} if queues else spec
        settings = {**self.shared(seed, self.epochs(name)), "backbone": self.student, **queues}
        settings["views"] = self.plain["views"]

        def run(out: Path, begun: bool) -> None:
            own = merge(settings, {"training": {"threads": threads_of(out, self.asked.threads)}})
            transfer(teachers, self.data, out=out, resume=True, settings=own, spec=TransferSpec.of(spec), cache=str(self.asked.out / "features"))

        folder = f"{name} {self.fit['digest']}" if self.fit and name == ELSEWHERE else name
        return self.ran(folder.replace(" ", "-"), seed, run)

    def ran(self, name: str, seed: int, run: Callable[[Path, bool], Any]) -> Path:
        out = self.folder / f"seed-{seed}" / name
        if out in self.lost:
            raise self.lost[out]  # it would diverge again
        if not (out / "verdict.json").exists():
            try:
                run(out, (out / "spec.json").exists())
            except RunError as why:
                diverged(why)
                self.lost[out] = why
                raise
        return out

    # ---- arms
    def every(self, first: bool) -> list[str]:
        """All arms of a seed, in the order in which they are run."""
        if self.asked.of:
            return ["teacher", *SMALLER, "untrained"] if first else list(SMALLER)
        found = ["teacher", "direct", "supervised", *arms(DEEP, self.data, self.images, self.asked.fit)]
        found += ["untrained", *(f"{name} itself" for name in ("hog", "bow-sift", SIFT))]
        return [name for name in found if first or name in KEY or name == "untrained"]

    def names(self, first: bool) -> list[str]:
        """Those that are asked."""
        return [name for name in self.every(first) if not self.asked.arms or name in self.asked.arms]

    def encoder(self, arm: str, seed: int) -> str:
        """The name of an arm's encoder, trained where it is to be."""
        if arm.endswith(" itself"):
            return {"hog": "hog", "bow-sift": "bow-sift", SIFT: f"bow-sift:{self.data}"}[arm.removesuffix(" itself")]
        if arm == "untrained":
            return f"{self.encoder('direct', seed)}@untrained"
        if arm == "teacher":
            return str(self.asked.of or self.pretext("teacher", 0, self.teacher))  # one for all students
        if arm == "direct":
            return str(self.pretext("direct", seed, self.student))
        if arm == "supervised":
            return str(self.supervised(seed))
        teachers, spec = arms(DEEP, self.data, self.images, self.asked.fit)[arm]
        opened = [self.encoder("teacher", seed) if name == DEEP else name for name in teachers]  # which is trained only where it is asked
        return str(self.taught(arm, seed, (opened, spec)))
