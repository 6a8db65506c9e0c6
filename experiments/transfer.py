"""A deep teacher into a small student by clusters, against the student trained directly and against other teachers and losses.

    python -m experiments.transfer DATA [--pretext rotation|jigsaw|simclr] [--teacher ARCH] [--student ARCH] [--size S] [--epochs N] [--seeds 0,1,2]
        [--arms NAME,...] [--images N] [--fit DATA] [--stem cifar|plain] [--threads N] [--out FOLDER] [--test DATA] [--results FOLDER]
    python -m experiments.transfer DATA --of ENCODER [--widths 8,16,32,64] ...

DATA is a name that gnothi opens, a folder of train.npz and test.npz (of which the first --images train, as many of every class), or a folder of
photographs with a train and a val folder, which are packed at --size pixels beside the runs. --test names other images that ask, and must where
DATA has no test images: all labels of DATA teach the arm "supervised".

Arms of the first form: the teacher, trained once for --teacher-epochs; the student trained on the pretext task itself; the student taught by the
teacher's clusters, by HOG's and by bow-sift's, by shuffled labels, by regression, CompRess (one queue and two) and SEED, by the data's own labels,
by several heads, by a quarter and four times as many clusters; by as many clusters of the images of --fit; and what was never trained: the student's
first weights, HOG, bow-sift and bow-sift with words of these images. Those of KEY are run for every seed, the others for the first one alone.
Measured by k-NN and a linear classifier, with the difference to the student trained directly on the same seed; those of BLOCKS by a linear one on
every block, those of TUNED by fine-tuning on a tenth of the labels at one rate.

The second form asks how much of a given teacher's k-NN (a run, an ensemble) smaller students keep, each as a share of the teacher's: taught by
regression, clusters, CompRess and SEED, and pre-trained directly.

Compute is equal: --epochs are those of the student trained directly; every other student has as many as cost the same floating-point operations,
counted over a step forward and back with all its crops and networks. The teacher's passes over the images (one each) are not counted, nor its
training. Every row says its epochs, operations, seconds and parameters. --stem is the teacher's: of jigsaw's ResNets that of small images, for tiles
are small.

Runs lie in the folder, by their settings; what came of them in results/transfer_PRETEXT.json or transfer_student.json, where rows of other settings
and of another --test stay. A second call goes on; an arm whose run diverged stands there with the reason. Photographs at 96 px, ResNet-50 to
ResNet-18 and 200 epochs want a GPU; 5,000 images at 32 px, resnet18 to micro-resnet, 10 epochs of the teacher and 20 of students are for two cores:
about 1.7 hours of one thread.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

import torch

from experiments.cost import cost
from experiments.hours import diverged, refuse, usable
from experiments.images import write_images
from experiments.packed import halves, write_photos
from experiments.students import ELSEWHERE, PRETEXTS, TWO, Students, digest
from gnothi import evaluate
from gnothi.contracts import GnothiError, RunError, SettingError
from gnothi.data import DataSpec
from gnothi.data import open as open_data
from gnothi.encoders import load
from gnothi.evaluate import FinetuneSpec
from gnothi.evaluate.run import own_test
from gnothi.files import write_text
from gnothi.transfer.clusters import rule

BLOCKS = ("teacher", "direct", "clusters", "supervised")
TUNED = ("direct", "clusters", "regression", "untrained")
TUNING = FinetuneSpec(share=0.1, lr=0.03, epochs=30)
RESULTS = Path(__file__).parent / "results"


class Study:
    """What is measured of the students of one call's settings.

    Args:
        asked: what the command line says.
        data: images with labels that train.
        test: images that ask.
        images: how many train.
    """

    def __init__(self, asked: argparse.Namespace, data: str, test: str | None, images: int) -> None:
        self.asked, self.data, self.test, self.images = asked, data, test, images
        self.students, self.cache = Students(asked, data, images), str(asked.out / "features")
        self.settings = self.students.settings | ({"test": asked.test} if asked.test else {})
        self.digest = digest(self.settings)
        """Of results: students are the same whichever images ask."""
        self.path = asked.results / f"transfer_{'student' if asked.of else asked.pretext}.json"
        self.right: dict[tuple[str, int], evaluate.Result] = {}

    def check(self) -> None:
        """Refuse what would be met only hours later.

        Raises:
            GnothiError: an arm or a network is unknown, or images or the encoder cannot be used.
        """
        for arm in self.asked.arms:
            refuse(arm, self.students.every(first=True))
        channels = usable(self.data, "DATA").channels
        if self.test is not None:
            usable(self.test, "--test", channels)
        elif "supervised" in self.students.names(first=True) and own_test(self.data, DataSpec()) is None:
            raise SettingError(f"{self.data} has no test images, and all its labels teach the arm supervised; name others with --test")
        if self.asked.fit:
            fit, k = usable(self.asked.fit, "--fit", channels, labels=False), rule(self.images)
            if len(fit) < k:
                raise SettingError(f"--fit {self.asked.fit} must have an image for each of the {k} clusters of {self.images} images, got {len(fit)}")
        if self.asked.of:
            load(self.asked.of)
        self.students.check(channels)

    def rows(self, arm: str, metric: str, seed: int) -> list[dict[str, Any]]:
        """One number, or one for every block."""
        began, encoder = time.monotonic(), self.students.encoder(arm, seed)
        more = self.spent(arm, encoder) | ({"share_of_teacher": None} if self.asked.of else {})
        if metric == "blocks":
            results = evaluate.layers([encoder], self.data, self.test, metrics=("linear",), cache=self.cache)
        elif metric == "finetune":
            results = evaluate.finetune([encoder], self.data, self.test, spec=TUNING, seed=seed)
        else:
            results = [self.result(metric, encoder, seed)]
            if arm not in ("direct", "teacher") and (less := self.paired(results[0], metric, seed)):
                more["paired_direct"] = less
            if self.asked.of:
                more["share_of_teacher"] = results[0].value / self.result(metric, self.students.encoder("teacher", seed), seed).value
        kept = ("value", "low", "high", "n", "protocol")
        about = {**self.place(arm, metric, seed), **more, "evaluation_seconds": round(time.monotonic() - began, 1)}
        return [{k: getattr(r, k) for k in kept} | {k: r.details[k] for k in ("block", "features") if k in r.details} | about for r in results]

    def place(self, arm: str, metric: str, seed: int) -> dict[str, Any]:
        """What a row of the results is of."""
        own = {"fit": self.students.fit} if arm == ELSEWHERE else {}
        return {"arm": arm, "seed": seed, "measured": metric, "settings": self.digest, **own}

    def result(self, metric: str, encoder: str, seed: int) -> evaluate.Result:
        """Kept for the differences to it."""
        key = (f"{metric} {encoder}", seed)
        if key not in self.right:
            options = {"k": 20, "temperature": 0.1} if metric == "knn" else {}
            (self.right[key],) = evaluate.run(metric, [encoder], self.data, self.test, seed=seed, cache=self.cache, **options)
        return self.right[key]

    def paired(self, result: evaluate.Result, metric: str, seed: int) -> dict[str, float] | None:
        """The difference to the student trained directly; none where that one diverged."""
        try:
            other = self.result(metric, self.students.encoder("direct", seed), seed)
        except RunError as why:
            diverged(why)
            return None
        assert result.correct is not None
        assert other.correct is not None
        found = evaluate.paired(result.correct, other.correct)
        return {"value": found.value, "low": found.low, "high": found.high}

    def spent(self, arm: str, encoder: str) -> dict[str, float]:
        """What the encoder costs, and what its training cost."""
        found = cost(encoder)
        if "training_seconds" not in found or arm in ("teacher", "untrained"):
            return found
        flops, epochs = self.students.flops, self.students.epochs(arm)
        a_step = flops["direct"] if arm == "direct" else flops["taught"] * (4 / 3 if arm == TWO else 1)
        return found | {"epochs": epochs, "training_flops": a_step * self.images * epochs}

    def all(self) -> None:
        """Every arm of every seed that is not in the results."""
        for seed in self.asked.seeds:
            for arm in self.students.names(seed == 0):
                for metric in (
                    "knn",
                    "linear",
                    *(("blocks",) if arm in BLOCKS and not self.asked.of else ()),
                    *(("finetune",) if arm in TUNED else ()),
                ):
                    self.one(arm, metric, seed)

    def one(self, arm: str, metric: str, seed: int) -> None:
        at = self.place(arm, metric, seed)
        if any(all(r.get(key) == value for key, value in at.items()) for r in known(self.path)["rows"]):
            return
        try:
            rows = self.rows(arm, metric, seed)
        except RunError as why:
            rows = [{**at, "failed": diverged(why)}]
        found = known(self.path)  # again: others may have written
        found = {"settings": found["settings"] | {self.digest: self.settings}, "rows": found["rows"] + rows}
        write_text(self.path, json.dumps(found, indent=1) + "\n")
        print(f"seed {seed} {arm} {metric} {rows[-1].get('failed') or format(rows[-1]['value'], '.3f')}", flush=True)


def known(path: Path) -> dict[str, Any]:
    """What stands in a results file: settings by their digest, and rows."""
    return json.loads(path.read_text()) if path.exists() else {"settings": {}, "rows": []}


def opened(asked: argparse.Namespace) -> tuple[str, str | None, int]:
    """What trains, what asks, and how many train."""
    folder = Path(asked.data)
    if halves(folder):
        packed = asked.out / f"{folder.name}-{asked.images}.npz"
        write_images(folder, packed, asked.images, 10_000)
    elif (folder / "train").is_dir() and any((folder / word).is_dir() for word in ("val", "test")):
        packed = asked.out / f"{folder.name}-{asked.size}px.npz"
        write_photos(asked.data, packed, asked.size)
    else:
        return asked.data, asked.test, len(open_data(asked.data))
    return f"{packed}@train", asked.test or f"{packed}@test", len(open_data(f"{packed}@train"))


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def line() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--test")
    parser.add_argument("--of", metavar="ENCODER", help="the second form: how much of this encoder's k-NN smaller students keep")
    parser.add_argument("--pretext", choices=sorted(PRETEXTS))
    parser.add_argument("--teacher", default="resnet18")
    parser.add_argument("--stem", choices=("cifar", "plain"), help="of the teacher, where it is a ResNet")
    parser.add_argument("--teacher-epochs", type=float, default=10.0)
    parser.add_argument("--student", default="micro-resnet")
    parser.add_argument("--widths", type=numbers, help="of a micro-resnet's stages")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--epochs", type=float, default=20.0)
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2])
    parser.add_argument("--arms", type=lambda text: text.split(","), default=[])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fit")
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    """What is asked, with what follows from it."""
    asked = line().parse_args(words)
    asked.pretext = asked.pretext or ("simclr" if asked.of else "rotation")
    if asked.pretext == "jigsaw" and re.match(r"resnet\d", asked.teacher):
        asked.stem = asked.stem or "cifar"
    return asked


def main(words: list[str] | None = None) -> None:
    asked = parsed(words)
    torch.set_num_threads(asked.threads)
    try:
        study = Study(asked, *opened(asked))
        study.check()
    except GnothiError as error:
        line().error(str(error))
    study.all()


if __name__ == "__main__":
    main()
