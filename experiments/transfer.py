"""A deep teacher into a small student by clusters, against the student trained directly and against other teachers and losses.

    python -m experiments.transfer DATA [--pretext rotation|jigsaw|simclr] [--teacher ARCH] [--student ARCH] [--size S] [--epochs N] [--seeds 0,1,2]
        [--arms NAME,...] [--images N] [--fit DATA] [--threads N] [--out FOLDER] [--test DATA] [--results FOLDER]
    python -m experiments.transfer DATA --of ENCODER [--widths 8,16,32,64] ...

DATA is a name that gnothi opens, a folder of train.npz and test.npz (of which the first --images train, as many of every class), or a folder of
photographs with a train and a val folder, which are packed at --size pixels beside the runs.

Arms of the first form: the teacher, trained once for --teacher-epochs; the student trained on the pretext task itself; the student taught by the
teacher's clusters, by HOG's and by bow-sift's, by shuffled labels, by regression, CompRess (one queue and two) and SEED, by the data's own labels,
by several heads, by a quarter and four times as many clusters; by clusters of the images of --fit; and what was never trained: the student's first
weights, HOG, bow-sift and bow-sift with words of these images. Those of KEY are run for every seed, the others for the first one alone. Measured by
k-NN and a linear classifier, with the difference to the student trained directly on the same seed; those of BLOCKS by a linear one on every block,
those of TUNED by fine-tuning on a tenth of the labels at one rate.

The second form asks how much of a given teacher's k-NN (a run, an ensemble) smaller students keep, each as a share of the teacher's: taught by
regression, clusters, CompRess and SEED, and pre-trained directly.

Compute is equal: --epochs are those of the student trained directly; every other student has as many as cost the same floating-point operations,
counted over a step forward and back with all its crops and networks. The teacher's passes over the images (one each) are not counted, nor its
training. Every row says its epochs, operations, seconds and parameters.

Runs lie in the folder, by their settings; what came of them in results/transfer_PRETEXT.json or transfer_student.json, where rows of other settings
stay. A second call goes on. Photographs at 96 px, ResNet-50 to ResNet-18 and 200 epochs want a GPU; 5,000 images at 32 px, resnet18 to
micro-resnet, 10 epochs of the teacher and 20 of students are for two cores: about 1.7 hours of one thread.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from experiments.cost import cost, step_flops
from experiments.images import write_images
from experiments.packed import halves, write_photos
from gnothi import evaluate
from gnothi.evaluate import FinetuneSpec
from gnothi.files import write_text
from gnothi.pretrain import train
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
BLOCKS = ("teacher", "direct", "clusters", "supervised")
TUNED = ("direct", "clusters", "regression", "untrained")
SMALLER = ("direct", "regression", "clusters", "compress", "seed")
"""Students of the second form."""
TUNING = FinetuneSpec(share=0.1, lr=0.03, epochs=30)
SIFT = "bow-sift of these images"
DEEP = "the teacher"
RESULTS = Path(__file__).parent / "results"
Arm = tuple[list[str], dict[str, Any]]


def arms(teacher: str, data: str, images: int, fit: str | None) -> dict[str, Arm]:
    """By name: the teachers, and what transfer does with them; everything that differs from the arm "clusters" is there to be compared with it."""
    found: dict[str, Arm] = {"clusters": ([teacher], {}), "shuffled": ([teacher], {"shuffle": True}), "heads": ([teacher], {"heads": 3})}
    found |= {"hog": (["hog"], {}), "bow-sift": (["bow-sift"], {}), SIFT: ([f"bow-sift:{data}"], {})}
    found |= {loss: ([teacher], {"loss": loss}) for loss in ("regression", "compress", TWO, "seed")}
    found |= {f"k={k}": ([teacher], {"k": k}) for k in (rule(images) // 4, 4 * rule(images)) if 1 < k <= images}
    return found | ({"fit elsewhere": ([teacher], {"fit": fit})} if fit else {})


class Study:
    """Runs of one call's settings, each begun, gone on with or left alone.

    Args:
        asked: what the command line says.
        data: images with labels that train.
        test: images that ask.
        images: how many train.
    """

    def __init__(self, asked: argparse.Namespace, data: str, test: str | None, images: int) -> None:
        self.asked, self.data, self.test, self.images = asked, data, test, images
        given = ("pretext", "teacher", "teacher_epochs", "student", "widths", "size", "epochs", "fit", "of")
        self.settings = {"data": Path(data).name, "images": images, **{key: getattr(asked, key) for key in given}}
        self.digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:12]
        self.folder = asked.out / self.digest
        self.path = asked.results / f"transfer_{'student' if asked.of else asked.pretext}.json"
        self.right: dict[tuple[str, int], evaluate.Result] = {}

    # ---- runs
    @property
    def student(self) -> dict[str, Any]:
        """Its backbone."""
        return {"name": self.asked.student} | ({"args": {"widths": self.asked.widths}} if self.asked.widths else {})

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
        more: dict[str, Any] = {"settings": settings, "spec": TransferSpec.of(spec), "cache": str(self.asked.out / "features")}
        return self.ran(name.replace(" ", "-"), seed, lambda out, on: transfer(teachers, self.data, out=out, resume=True, **more))

    def ran(self, name: str, seed: int, run: Callable[[Path, bool], Any]) -> Path:
        out = self.folder / f"seed-{seed}" / name
        if not (out / "verdict.json").exists():
            run(out, (out / "spec.json").exists())
        return out

    # ---- arms
    def names(self, first: bool) -> list[str]:
        """Arms of a seed, in the order in which they are run."""
        if self.asked.of:
            chosen = ["teacher", *SMALLER, "untrained"] if first else list(SMALLER)
        else:
            every = ["teacher", "direct", "supervised", *arms(DEEP, self.data, self.images, self.asked.fit)]
            every += ["untrained", *(f"{name} itself" for name in ("hog", "bow-sift", SIFT))]
            chosen = [name for name in every if first or name in KEY or name == "untrained"]
        return [name for name in chosen if not self.asked.arms or name in self.asked.arms]

    def encoder(self, arm: str, seed: int) -> str:
        """The name of an arm's encoder, trained where it is to be."""
        if arm.endswith(" itself"):
            return {"hog": "hog", "bow-sift": "bow-sift", SIFT: f"bow-sift:{self.data}"}[arm.removesuffix(" itself")]
        if arm == "untrained":
            return f"{self.encoder('direct', seed)}@untrained"
        if arm == "teacher":
            return str(self.asked.of or self.pretext("teacher", 0, {"name": self.asked.teacher}))  # one for all students
        if arm == "direct":
            return str(self.pretext("direct", seed, self.student))
        if arm == "supervised":
            return str(self.supervised(seed))
        teachers, spec = arms(DEEP, self.data, self.images, self.asked.fit)[arm]
        opened = [self.encoder("teacher", seed) if name == DEEP else name for name in teachers]  # which is trained only where it is asked
        return str(self.taught(arm, seed, (opened, spec)))

    # ---- numbers
    def rows(self, arm: str, metric: str, seed: int) -> list[dict[str, Any]]:
        """One number, or one for every block."""
        began, encoder = time.monotonic(), self.encoder(arm, seed)
        more = self.spent(arm, encoder) | ({"share_of_teacher": None} if self.asked.of else {})
        if metric == "blocks":
            results = evaluate.layers([encoder], self.data, self.test, metrics=("linear",))
        elif metric == "finetune":
            results = evaluate.finetune([encoder], self.data, self.test, spec=TUNING, seed=seed)
        else:
            results = [self.result(metric, encoder, seed)]
            if arm not in ("direct", "teacher") and "direct" in self.names(True):
                more["paired_direct"] = self.paired(results[0], metric, self.encoder("direct", seed), seed)
            if self.asked.of:
                more["share_of_teacher"] = results[0].value / self.result(metric, self.encoder("teacher", seed), seed).value
        kept, at = ("value", "low", "high", "n", "protocol"), {"arm": arm, "seed": seed, "measured": metric, "settings": self.digest}
        about = {**at, **more, "evaluation_seconds": round(time.monotonic() - began, 1)}
        return [{k: getattr(r, k) for k in kept} | {k: r.details[k] for k in ("block", "features") if k in r.details} | about for r in results]

    def result(self, metric: str, encoder: str, seed: int) -> evaluate.Result:
        """Kept for the differences to it."""
        key = (f"{metric} {encoder}", seed)
        if key not in self.right:
            cache = str(self.asked.out / "features")
            options = {"k": 20, "temperature": 0.1} if metric == "knn" else {}
            (self.right[key],) = evaluate.run(metric, [encoder], self.data, self.test, seed=seed, cache=cache, **options)
        return self.right[key]

    def paired(self, result: evaluate.Result, metric: str, direct: str, seed: int) -> dict[str, float]:
        other = self.result(metric, direct, seed)
        assert result.correct is not None
        assert other.correct is not None
        found = evaluate.paired(result.correct, other.correct)
        return {"value": found.value, "low": found.low, "high": found.high}

    def spent(self, arm: str, encoder: str) -> dict[str, float]:
        """What the encoder costs, and what its training cost."""
        found = cost(encoder)
        if "training_seconds" not in found or arm in ("teacher", "untrained"):
            return found
        a_step = self.flops["direct"] if arm == "direct" else self.flops["taught"] * (4 / 3 if arm == TWO else 1)
        return found | {"epochs": self.epochs(arm), "training_flops": a_step * self.images * self.epochs(arm)}

    def all(self) -> None:
        """Every arm of every seed that is not in the results."""
        for seed in self.asked.seeds:
            for arm in self.names(seed == 0):
                for metric in (
                    "knn",
                    "linear",
                    *(("blocks",) if arm in BLOCKS and not self.asked.of else ()),
                    *(("finetune",) if arm in TUNED else ()),
                ):
                    self.one(arm, metric, seed)

    def one(self, arm: str, metric: str, seed: int) -> None:
        key = (arm, metric, seed, self.digest)
        if any((r["arm"], r["measured"], r["seed"], r["settings"]) == key for r in known(self.path)["rows"]):
            return
        rows = self.rows(arm, metric, seed)
        found = known(self.path)  # again: others may have written
        found = {"settings": found["settings"] | {self.digest: self.settings}, "rows": found["rows"] + rows}
        write_text(self.path, json.dumps(found, indent=1) + "\n")
        print(f"seed {seed} {arm} {metric} {rows[-1]['value']:.3f}", flush=True)


def known(path: Path) -> dict[str, Any]:
    """What stands in a results file: settings by their digest, and rows."""
    return json.loads(path.read_text()) if path.exists() else {"settings": {}, "rows": []}


def opened(asked: argparse.Namespace) -> tuple[str, str | None, int]:
    """What trains, what asks, and how many train."""
    from gnothi.data import open as open_data

    folder = Path(asked.data)
    if halves(folder):
        packed = asked.out / f"{folder.name}-{asked.images}.npz"
        write_images(folder, packed, asked.images, 10_000)
    elif (folder / "train").is_dir() and any((folder / word).is_dir() for word in ("val", "test")):
        packed = asked.out / f"{folder.name}-{asked.size}px.npz"
        write_photos(asked.data, packed, asked.size)
    else:
        return asked.data, asked.test, len(open_data(asked.data))
    return f"{packed}@train", f"{packed}@test", len(open_data(f"{packed}@train"))


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--test")
    parser.add_argument("--of", metavar="ENCODER", help="the second form: how much of this encoder's k-NN smaller students keep")
    parser.add_argument("--pretext", choices=sorted(PRETEXTS))
    parser.add_argument("--teacher", default="resnet18")
    parser.add_argument("--teacher-epochs", type=float, default=10)
    parser.add_argument("--student", default="micro-resnet")
    parser.add_argument("--widths", type=numbers, help="of a micro-resnet's stages")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2])
    parser.add_argument("--arms", type=lambda text: text.split(","), default=[])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fit")
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args(words)
    asked.pretext = asked.pretext or ("simclr" if asked.of else "rotation")
    return asked


def main() -> None:
    asked = parsed()
    torch.set_num_threads(asked.threads)
    Study(asked, *opened(asked)).all()


if __name__ == "__main__":
    main()
