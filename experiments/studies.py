"""What each auxiliary objective gives on CIFAR-10, and which method suits little data: comparisons with paired intervals.

    python -m experiments.studies STUDY ... [--data FOLDER] [--far DATA] [--out FOLDER] [--threads N] [--gpu] [--tiny]

STUDY is one of the names below. FOLDER holds train.npz and test.npz with `images` and `labels`. A study is several calls of `gnothi.compare`, most of
one method, so that every difference is one to that method alone; it goes on where it was stopped, and what came of it is written to
results/study_NAME.json after every call. Each takes one to two hours of two cores, `together` two to three.

Equal time is the method alone for as long as its slowest arm took on equal epochs, in seconds by the clock: nothing else should compute on the cores
of a study. --threads leaves it fewer of them; a study that was begun goes on with the same only. --gpu takes a ResNet-18 or a tiny ViT with patches
of 4, and 200 epochs of all images where a call does not say otherwise. --far are images of another kind, with labels, on which `layers` measures
every block, too.

What is chosen is chosen by training images that did not train; test images only report.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import gnothi
from experiments import cifar_sweep
from experiments.hours import usable
from experiments.images import write_images
from experiments.packed import halves
from gnothi import evaluate
from gnothi.comparison import Comparison, table
from gnothi.contracts import DataError, GnothiError, SettingError
from gnothi.data import open as open_data
from gnothi.files import write_text
from gnothi.recipes.spec import merge

RESULTS = Path(__file__).parent / "results"
TEST = 5000
"""Test images, the same number of every class."""
EQUAL = " in equal time"
VALUES, PLACE = ("value", "low", "high", "n"), ("block", "features", "flops")
"""What is kept of a block's result."""
ALL, BEST = "all sets", "best"
"""The call that compares all sets of auxiliaries, and what stands for the best of them."""
NEAR = 0.8
"""An arm that took this part of the slowest one's seconds, or more, stands beside the method alone in equal time."""
Record = dict[str, Any]


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
    """The first arm alone, for the seconds that the slowest arm of the same comparison on equal epochs took."""
    backbone: str = "micro-resnet"
    settings: dict[str, Any] | None = None
    vary: dict[str, list[Any]] | None = None
    blocks: bool = False
    """Measure every block, too."""
    asks: Literal["test", "both", "others"] = "test"
    """Which images are asked: those of the test, or other ones of training, by which something is chosen."""
    sweep: bool = False
    """The rows are those of the sweep by which the rules were chosen, of 20 epochs."""
    gpu: tuple[int, float] = (50_000, 200)
    """Images and epochs of the form for a GPU."""
    gpu_only: bool = False


def twice(call: Call) -> list[Call]:
    """The same arms on equal epochs, then the first in equal time."""
    return [call, replace(call, name=call.name + EQUAL, equal_time=True, blocks=False)]


def rotation() -> list[Call]:
    """The claim is fast convergence: three seeds and 20 epochs of two methods, less of the others; k-NN along every run stands in the results."""
    key = [Call(m, (m,), ("none", "rotation"), seeds=3, epochs=20) for m in ("simclr", "byol")]
    others = [Call(m, (m,), ("none", "rotation")) for m in ("simsiam", "swav", "moco", "dino")]
    return [call for base in (*key, *others) for call in twice(base)]


def layers() -> list[Call]:
    """Every block's accuracy. SimCLR's third arm has the full weight from the first step, that of BYOL and MoCo the predictor-only term alone."""
    shared: dict[str, Any] = {"auxiliaries": ("none", "layers"), "backbone": "micro-vit", "blocks": True}
    weight, alone = {"auxiliary.layers.schedule": ["half_cosine", "constant"]}, {"auxiliary.layers.layers": ["all", []]}
    key = Call("simclr", ("simclr",), seeds=3, epochs=20, vary=weight, **shared)
    return [call for base in (key, *(Call(m, (m,), vary=alone, **shared) for m in ("byol", "moco"))) for call in twice(base)]


def local() -> list[Call]:
    """Partners by place, by likeness, both and by chance, on few and more images in as many steps."""
    shared: dict[str, Any] = {
        "methods": ("dino",),
        "auxiliaries": ("none", "local"),
        "backbone": "micro-vit",
        "vary": {"auxiliary.local.match": ["geometric", "similarity", "both", "random"]},
        "settings": {"training": {"batch": 64}},
    }
    few, more = (Call(f"{n:,} images", images=n, epochs=e, gpu=gpu, **shared) for n, e, gpu in ((1000, 50, (1000, 1000)), (5000, 10, (5000, 200))))
    whole = Call("50,000 images", gpu=(50_000, 20), gpu_only=True, **shared)
    return [call for base in (few, more, whole) for call in twice(base)]


def together() -> list[Call]:
    """All sets of three beside one method; the best of them beside two methods on fewer and more images, on two cores in as many steps."""
    sets = ("none", "rotation", "layers", "local", "rotation+layers", "rotation+local", "layers+local", "rotation+layers+local")
    sizes = ((2000, 50.0, (2000, 1000.0), False), (10_000, 10.0, (10_000, 400.0), False), (50_000, 10.0, (50_000, 200.0), True))
    best = [
        Call(f"best on {n:,} images, {m}", (m,), ("none", BEST), images=n, epochs=e, gpu=gpu, gpu_only=only, asks="both")
        for n, e, gpu, only in sizes
        for m in ("byol", "simclr")
    ]
    every = Call(ALL, ("byol",), sets, seeds=3, images=2000, epochs=20, asks="both")
    return [call for base in (every, *best) for call in twice(base)]


def small() -> list[Call]:
    """Which method suits little data; by other training images, for the rules are chosen by it."""
    shared: dict[str, Any] = {"auxiliaries": ("none",), "settings": {"data": {"holdout": 0}}, "asks": "others"}
    methods = ("simclr", "moco", "byol", "simsiam", "swav", "dino", "barlow", "vicreg")
    sizes = ((500, None, False), (2000, 50, False), (10_000, 20, True))
    return [Call(f"{n:,} images", methods, images=n, epochs=e, sweep=sweep, gpu=(n, 400), **shared) for n, e, sweep in sizes]


STUDIES: dict[str, Callable[[], list[Call]]] = {f.__name__: f for f in (rotation, layers, local, together, small)}


def on_gpu(call: Call) -> Call:
    backbone, patches = ("resnet18", {}) if call.backbone == "micro-resnet" else ("vit_tiny_patch16_224", {"backbone": {"patch_size": 4}})
    return replace(call, backbone=backbone, images=call.gpu[0], epochs=call.gpu[1], sweep=False, settings=merge(patches, call.settings or {}))


def in_small(call: Call) -> Call:
    """A few images, one epoch, two looks."""
    rare = {"training": {"evaluate_every": "50%", "health_every": "50%", "batch": 16}}
    return replace(call, images=80, epochs=1, seeds=1, sweep=False, settings=merge(call.settings or {}, rare))


# ---- carrying out --------------------------------------------------------------------------------
@dataclass(frozen=True)
class Study:
    """Where a study lies, on what, and what it found so far."""

    name: str
    data: Path
    far: str | None
    out: Path
    """Of one form of the studies only."""
    test: int = TEST
    least: float = 0.0
    """Seconds of a run in equal time."""
    threads: int | None = None
    """Of every run; None for all cores."""
    records: dict[str, Record] = field(default_factory=dict)
    """What the comparisons left, by call."""
    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What is kept of it, by call."""

    def run(self, call: Call) -> None:
        """Carry out a comparison; one of equal time only where there is something beside the method alone, and a run that was not lost."""
        if call.sweep:
            self.found[call.name] = swept(self.data, self.out, call, self.threads)
        elif not call.equal_time:
            self.keep(call, *self.compare(call, self.sets(call), {"epochs": call.epochs}, call.vary))
        elif len((before := self.records[call.name.removesuffix(EQUAL)])["arms"]) > 1 and (spent := seconds(before)):
            shape = {"seconds": max(self.least, round(max(spent.values()), 1))}
            self.keep(call, *self.compare(call, call.auxiliaries[:1], shape, None), before)

    def sets(self, call: Call) -> list[str]:
        """Its sets of auxiliaries, each once."""
        return list(dict.fromkeys(best(self.found[ALL]["asking"]) if s == BEST else s for s in call.auxiliaries))

    def compare(self, call: Call, sets: Sequence[str], shape: dict[str, Any], vary: dict[str, list[Any]] | None) -> tuple[Comparison, dict[str, Any]]:
        """A comparison, and what it was of."""
        images, asking = self.images(call), call.asks == "others"
        settings = merge({"backbone": {"name": call.backbone}, "data": {"holdout": 0.1}}, call.settings or {})
        if self.threads:
            settings = merge(settings, {"training": {"threads": self.threads}})
        done = gnothi.compare(
            str(images),
            methods=call.methods,
            auxiliaries=sets,
            seeds=call.seeds,
            out=self.out / self.name / call.name.replace(" ", "-").replace(",", ""),
            settings=settings,
            vary=vary,
            test=f"{images}@val" if asking else None,
            **shape,
        )
        return done, {"images": call.images, "sets": list(sets), **shape}

    def images(self, call: Call) -> Path:
        """The images of a call."""
        others = call.asks != "test"
        path = self.out / f"cifar-{call.images}{'-others' if others else ''}.npz"
        write_images(self.data, path, call.images, self.test, others)
        return path

    def keep(self, call: Call, done: Comparison, about: dict[str, Any], before: Record | None = None) -> None:
        """Note what a comparison found, in equal time beside arms of the one before it."""
        record = done.record if before is None else beside(done.record, before)
        found = {
            "table": record["table"],
            "protocol": record["protocol"],
            "runs": [{k: v for k, v in r.items() if k != "correct"} for r in record["runs"]],
        }
        if any("local" in s for s in about["sets"]):
            found["health"] = matches(done)
        if call.blocks:
            found |= self.blocks(done, self.images(call))
        if call.asks == "both":
            arms = {r["arm"] for r in record["runs"]} - {r["arm"] for r in done.record["runs"]}
            known = [] if before is None else self.found[call.name.removesuffix(EQUAL)]["asking"]
            found["asking"] = self.asking(done, self.images(call)) + [r for r in known if r["arm"] in arms]
        self.records[call.name], self.found[call.name] = done.record, found | about

    def asking(self, done: Comparison, images: Path) -> list[dict[str, Any]]:
        """k-NN of every run on training images that did not train."""
        good = [r for r in done.record["runs"] if "failed" not in r]
        results = evaluate.run("knn", paths(done, good), f"{images}@train", f"{images}@val", cache=str(self.out / "features"))
        return [{"arm": r["arm"], "seed": r["seed"], **{k: getattr(x, k) for k in VALUES}} for r, x in zip(good, results, strict=True)]

    def blocks(self, done: Comparison, images: Path) -> dict[str, Any]:
        """Accuracy of every block of every run: on the test images, and on those of another kind; each less the first arm's same block and seed."""
        asked = {"blocks": (f"{images}@train", f"{images}@test")} | ({"far": (self.far, None)} if self.far else {})
        found: dict[str, Any] = {key: [] for key in asked}
        good, first = [r for r in done.record["runs"] if "failed" not in r], done.record["arms"][0]["arm"]
        for seed in dict.fromkeys(r["seed"] for r in good):
            own = sorted((r for r in good if r["seed"] == seed), key=lambda r: r["arm"] != first)
            names = dict(zip(paths(done, own), own, strict=True))
            for key, (data, test) in asked.items():
                for x in evaluate.layers(list(names), data, test, metrics=("knn",), cache=str(self.out / "features")):
                    row = {"arm": names[x.encoder]["arm"], "seed": seed, **{k: getattr(x, k) for k in VALUES}, **{k: x.details[k] for k in PLACE}}
                    if own[0]["arm"] == first and "paired" in x.details:
                        row["paired"] = {k: x.details["paired"][k] for k in ("value", "low", "high")}
                    found[key].append(row)
        return found


def paths(done: Comparison, runs: Sequence[Record]) -> list[str]:
    return [str(done.folder / r["run"]) for r in runs]


def seconds(record: Record) -> dict[str, float]:
    """Of training, of every arm that has a run; the mean over seeds."""
    return {row["arm"]: row["seconds"] for row in record["table"] if row["seconds"] is not None}


def beside(base: Record, before: Record) -> Record:
    """The first arm with all its time, beside the arms that took nearly as long on equal epochs, run by run."""
    spent = seconds(before)
    near = [a for a in before["arms"][1:] if spent.get(a["arm"], 0.0) >= NEAR * max(spent.values())]
    arms, names = [*base["arms"], *near], {a["arm"] for a in near}
    runs = [*base["runs"], *(r for r in before["runs"] if r["arm"] in names)]
    return {**base, "arms": arms, "runs": runs, "table": table.rows(arms, runs)}


def best(asking: Sequence[Record]) -> str:
    """The set of auxiliaries with the best k-NN on the images that were asked, the mean over seeds; of equals the first, of none no auxiliary."""
    values: dict[str, float] = {
        arm: statistics.fmean(r["value"] for r in asking if r["arm"] == arm) for arm in dict.fromkeys(r["arm"] for r in asking)
    }
    return max(values, key=lambda arm: values[arm], default="").partition("+")[2] or "none"


def swept(data: Path, folder: Path, call: Call, threads: int | None) -> dict[str, Any]:
    """The sweep's rows that are the rules of now; a row that is missing is run. One that diverged has no value, as in a comparison."""
    rows = {method: cifar_sweep.of_now(data, folder, method, threads) for method in call.methods}
    told = [
        {
            "arm": m,
            "seeds": [] if "failed" in r else [0],
            "epochs": call.epochs,
            "seconds": None,
            "value": r.get("value"),
            "over_seeds": None,
            "over_images": None if "failed" in r else [r["low"], r["high"]],
            "verdicts": {"failed" if "failed" in r else r["verdict"]: 1},
        }
        for m, r in rows.items()
    ]
    return {
        "table": told,
        "protocol": [cifar_sweep.PROTOCOL],
        "runs": [{"arm": m, "seed": 0, "failed": r["failed"]} for m, r in rows.items() if "failed" in r],
        "images": call.images,
        "sets": list(call.auxiliaries),
        "epochs": call.epochs,
    }


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


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", choices=list(STUDIES), metavar="STUDY", help=", ".join(STUDIES))
    parser.add_argument("--data", type=Path, default=Path("data/cifar10"))
    parser.add_argument("--far", help="such as flowers: a folder of images with labels")
    parser.add_argument("--out", type=Path, default=Path("runs/studies"))
    parser.add_argument("--threads", type=int, help="of every run; by default all cores, less loader processes")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="a few images and one epoch, to see that it runs; results are written to OUT")
    given = parser.parse_args(words)
    if "layers" in given.studies and given.far is None:
        parser.error("layers needs --far DATA: what blocks know of images of another kind is a part of it")
    if given.threads is not None and given.threads < 1:
        parser.error(f"--threads must be at least 1, got {given.threads}")
    if not halves(given.data):
        parser.error(f"--data {given.data} must hold train.npz and test.npz")
    if "layers" in given.studies:
        try:
            usable(given.far, "--far", open_data(str(given.data / "train.npz")).channels)
        except GnothiError as error:
            parser.error(str(error))
    try:
        for name in given.studies:
            carry_out(name, given)
    except (SettingError, DataError) as error:  # a folder that was begun with other words, or other images
        parser.error(str(error))


def carry_out(name: str, given: argparse.Namespace) -> None:
    """All calls of a study; after each, the results hold what came of it, and of later calls what they held."""
    form = "tiny" if given.tiny else "gpu" if given.gpu else "cores"
    change: Callable[[Call], Call] = in_small if given.tiny else on_gpu if given.gpu else lambda call: call
    calls = [change(call) for call in STUDIES[name]() if given.gpu or not call.gpu_only]
    study = Study(name, given.data, given.far, given.out / form, *((100, 12.0) if given.tiny else ()), threads=given.threads)
    path = (study.out if given.tiny else RESULTS) / f"study_{name}{'_gpu' if given.gpu else ''}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    for call in calls:
        study.run(call)
        known |= {call.name: study.found.get(call.name)}
        kept = {c.name: known[c.name] for c in calls if known.get(c.name)}
        write_text(path, json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
