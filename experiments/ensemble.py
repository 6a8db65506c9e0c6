"""Ensembles on CIFAR-10 and in transfer: every combiner beside every member, over seeds; powers of the spectrum, steps, and the ablation grid.

    python -m experiments.ensemble [ARM ...] [--judge holdout|test] [--data FOLDER] [--members FOLDER] [--out FOLDER] [--epochs N] [--a-class N]
                                   [--seeds N] [--threads N] [--transfer DATA ...] [--results FILE]

FOLDER of --data holds train.npz and test.npz with `images` and `labels`. Members are micro ResNets: SimCLR, BYOL, VICReg and SimCLR with rotation, a
seed each, and SimCLR with further seeds, in folders METHOD-SEED. They are looked for in --members (where experiments.cifar_methods keeps its runs),
then in --out, where they are trained if they are in neither. An arm is
    table/SET/METRIC/K/SEED     every combiner; SET is mixed, seeds, alone or crafted, METRIC knn or linear (K is then 0)
    sweep/METRIC/K/SEED         powers of PCA: of each member alone, and of all together
    length/METRIC/K/SEED        powers of PCA of one run after each tenth of its training
    steps/SEED                  steps of the descent
    grid/NAME/SEED              the descent, one setting changed
    student/SEED                a feed-forward student of the ensemble, and one with a head a member
    transfer/DATA/SEED          maps of CIFAR-10 on other images (a ":" in DATA stands for "/")
by default all. With --judge holdout an arm is measured on a fifth of the *training* images, to which no combiner is fitted (members, and students
with their ensemble, have seen them without labels): what defaults are chosen by, in results of its own (ARM@holdout). With --judge test, the default,
it is measured on the test split: the final table, by which nothing may be chosen.
Resumable: what stands in the results is not run again. With 20 epochs, training takes about ten minutes a member on one core.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.images import write_images
from gnothi import ensemble, evaluate
from gnothi.data import DataSpec
from gnothi.encoders import load
from gnothi.evaluate.run import split, vectors_of
from gnothi.files import write_text
from gnothi.pretrain import train
from gnothi.training import checkpoint
from gnothi.transfer import TransferSpec, transfer

MIXED: dict[str, dict[str, Any]] = {
    "simclr": {"method": {"name": "simclr"}},
    "byol": {"method": {"name": "byol"}},
    "vicreg": {"method": {"name": "vicreg"}},
    "simclr-rotation": {"method": {"name": "simclr"}, "auxiliary": {"rotation": {}}},
}
SETS = ("mixed", "seeds", "alone", "crafted")
STEPS = (0, 1, 5, 20, 100, 500)
GRID: dict[str, dict[str, Any]] = {
    "default": {},
    **{f"layers {n} {loss}": {"layers": n, "loss": loss} for n in (0, 1, 2) for loss in ("cosine", "squared", "cosine+smooth-l1")},
    **{f"start {s}": {"start": s} for s in ("average", "member", "random")},
    **{f"start pca {p:g}": {"start_power": p} for p in (0.0, 0.5, 1.0)},
    **{f"width {w}": {"width": w} for w in (32, 64, 256)},
    **{f"l2 {v:g}": {"l2": v} for v in (1e-3, 1e-2)},
    **{f"power {p:g}": {"power": p} for p in (0.0, 0.25, 0.5)},
    **{f"lr codes {v:g}": {"lr_codes": v} for v in (0.005, 0.02, 0.2)},
    **{f"standardise {s}": {"standardise": s} for s in ("none", "dimension", "phi-s")},
    "drop": {"drop": 0.5},
    "sphere": {"sphere": True},
    "epochs 50": {"epochs": 50},
}
"""Settings of the descent, each one thing away from the default."""


@dataclass(frozen=True)
class Study:
    images: Path
    """An .npz of the images that train and those that test."""
    found: Path
    """Where members may lie that others have trained."""
    out: Path
    results: Path
    epochs: float
    threads: int
    judge: str

    def member(self, name: str, seed: int) -> str:
        there = self.found / f"{name}-{seed}"
        return str(there) if finished(there) else self.trained(f"{name}-{seed}", name, seed)

    def trained(self, folder: str, name: str, seed: int, **more: Any) -> str:
        out = self.out / folder
        if not finished(out):
            training = {"epochs": self.epochs, "threads": self.threads, "evaluate_every": "100%", **more}
            chosen = {"seed": seed, **MIXED[name], "training": training, "backbone": {"name": "micro-resnet"}, "data": {"holdout": 0}}
            begun = (out / "spec.json").exists()
            train(f"{self.images}@train", out=out, settings=None if begun else chosen, resume=begun)
        return str(out)

    def members(self, kind: str, seed: int) -> list[str]:
        if kind == "seeds":
            return [self.member("simclr", 10 * seed + s) for s in range(4)]
        if kind == "alone":
            return [self.member("simclr", seed)]
        return [self.member(name, seed) for name in MIXED] + (["hog", "colour"] if kind == "crafted" else [])

    # ---- the arms
    def compared(self, members: list[str], metric: str, k: int, seed: int, combiners: tuple[str, ...] = ensemble.ALL) -> list[dict[str, Any]]:
        """The results of ``gnothi ensemble compare`` on the images that judge."""
        train, test = self.judged
        protocol = {"k": k, "temperature": 0.1} if metric == "knn" else {}
        found = ensemble.compare(members, train, test, combiners, kind=metric, protocol=protocol, seed=seed, cache=self.cache)
        return [shown(r) for r in found]

    def table(self, kind: str, metric: str, k: str, seed: str) -> list[dict[str, Any]]:
        return self.compared(self.members(kind, int(seed)), metric, int(k), int(seed))

    def sweep(self, metric: str, k: str, seed: str) -> list[dict[str, Any]]:
        members = self.members("mixed", int(seed))
        sets = {Path(m).name: [m] for m in members} | {"together": members}
        return [{"of": name, **r} for name, own in sets.items() for r in self.compared(own, metric, int(k), int(seed), ("pca",))]

    def length(self, metric: str, k: str, seed: str) -> list[dict[str, Any]]:
        run = self.trained(f"simclr-{seed}-kept", "simclr", int(seed), checkpoint_every="10%", keep=1000)
        steps = [checkpoint.step_of(path) for path in checkpoint.list_of(Path(run))]
        return [{"step": step, **r} for step in steps for r in self.compared([f"{run}@step-{step}"], metric, int(k), int(seed), ("pca",))]

    def steps(self, seed: str) -> list[dict[str, Any]]:
        features, rows = self.features(self.members("mixed", int(seed)), *self.judged)
        made = ensemble.fit(features[0], "descent", seed=int(seed))
        found = []
        for steps in STEPS:
            began = time.monotonic()
            x, y = (made.transform(part, steps=steps) for part in features)
            about = {"steps": steps, "seconds": round(time.monotonic() - began, 2)}
            found.append({**about, **shown(evaluate.knn(x, rows.train.labels, y, rows.test.labels, 200, 0.1))})
        return found

    def grid(self, name: str, seed: str) -> list[dict[str, Any]]:
        features, rows = self.features(self.members("mixed", int(seed)), *self.judged)
        made = ensemble.fit(features[0], "descent", seed=int(seed), **GRID[name])
        x, y = (made.transform(part) for part in features)
        measured = shown(evaluate.knn(x, rows.train.labels, y, rows.test.labels, 200, 0.1))
        return [{**measured, "exponent": made.record["exponent"], "seconds": made.record["seconds"], "loss": made.record["loss_by_member"]}]

    def student(self, seed: str) -> list[dict[str, Any]]:
        """Of the ensemble's own vectors, and of all members with a head each; beside members and ensemble."""
        members, folder = self.members("mixed", int(seed)), str(self.out / f"together-{seed}")
        ensemble.make(members, f"{self.images}@train", folder, seed=int(seed), cache=self.cache)
        settings = {"seed": int(seed), "training": {"epochs": self.epochs, "threads": self.threads, "evaluate_every": "100%"}}
        runs = []
        for name, teachers in (("student", [folder]), ("student-heads", members)):
            out, spec = self.out / f"{name}-{seed}", TransferSpec(loss="regression")
            if not finished(out):
                data = f"{self.images}@train"
                transfer(teachers, data, out=out, student="micro-resnet", spec=spec, settings=settings, cache=self.cache, resume=True)
            runs.append(str(out))
        train, test = self.judged
        found = evaluate.run("knn", [folder, *runs, *members], train, test, k=200, temperature=0.1, cache=self.cache)
        return [shown(r) for r in found]

    def transfer(self, data: str, seed: str) -> list[dict[str, Any]]:
        """Maps of CIFAR-10, frozen, on other images; and the same combiners fitted to those."""
        data, members = data.replace(":", "/"), self.members("mixed", int(seed))
        judged = data if self.judge == "test" or data.endswith("@train") else f"{data}@train"
        source, _ = self.features(members, *self.judged)
        target, rows = self.features(members, judged, None)
        found = [{**shown(r), "maps": "fitted to the target"} for r in ensemble.compare(members, judged, seed=int(seed), cache=self.cache)]
        for combiner in ensemble.ALL:
            for settings in [{"power": p} for p in (0.0, 0.25, 0.5, 1.0)] if combiner == "pca" else [{}]:
                made = ensemble.fit(source[0], combiner, seed=int(seed), **settings)
                measured = evaluate.knn(made.transform(target[0]), rows.train.labels, made.transform(target[1]), rows.test.labels)
                found.append({**shown(measured), "encoder": f"{combiner} {settings or ''}".strip(), "maps": "frozen"})
        return found

    # ---- what they share
    @property
    def judged(self) -> tuple[str, str | None]:
        """What trains and what asks: without a test split, a part of the training images is held out by class."""
        return f"{self.images}@train", f"{self.images}@test" if self.judge == "test" else None

    @property
    def cache(self) -> str:
        return str(self.out / "features")

    def features(self, members: list[str], data: str, test: str | None) -> tuple[list[list[Any]], Any]:
        rows = split(data, test, DataSpec(), 0)
        opened = [load(name) for name in members]
        return [[vectors_of(e, part, self.cache, None) for e in opened] for part in (rows.train, rows.test)], rows

    def run(self, arm: str) -> None:
        done, key = known(self.results), arm if self.judge == "test" else f"{arm}@{self.judge}"
        if key in done:
            return
        began, (kind, *rest) = time.monotonic(), arm.split("/")
        found = getattr(self, kind)(*rest)
        write_text(self.results, json.dumps(known(self.results) | {key: found}, indent=1) + "\n")
        print(f"{key}: {len(found)} results after {time.monotonic() - began:.0f} s", flush=True)


def shown(result: evaluate.Result) -> dict[str, Any]:
    row = {k: getattr(result, k) for k in ("encoder", "value", "low", "high", "n", "protocol")}
    return row | {
        k: result.details[k] for k in ("width", "exponent", "seconds", "seconds_an_image", "paired", "paired_concatenation") if k in result.details
    }


def finished(run: Path) -> bool:
    return (run / "verdict.json").exists()


def known(results: Path) -> dict[str, Any]:
    return json.loads(results.read_text()) if results.exists() else {}


def arms(seeds: int, transfer: list[str]) -> list[str]:
    measures = (("knn", 20), ("knn", 200), ("linear", 0))
    tables = [f"table/{kind}/{metric}/{k}/{s}" for kind in SETS for metric, k in measures for s in range(seeds)]
    tables += [f"{kind}/{metric}/{k}/{s}" for kind in ("sweep", "length") for metric, k in measures for s in range(seeds)]
    rest = [f"{kind}/{s}" for kind in ("steps", "student") for s in range(seeds)] + [f"grid/{name}/{s}" for name in GRID for s in range(seeds)]
    return tables + rest + [f"transfer/{data.replace('/', ':')}/{s}" for data in transfer for s in range(seeds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="*", metavar="ARM")
    parser.add_argument("--data", type=Path, default=Path("data/cifar10"))
    parser.add_argument("--judge", choices=("holdout", "test"), default="test")
    parser.add_argument("--members", type=Path, default=Path("runs/cifar-methods"))
    parser.add_argument("--out", type=Path, default=Path("runs/ensemble"))
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--a-class", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--transfer", nargs="*", default=[], metavar="DATA")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "ensemble.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    images = given.out / f"cifar-{given.a_class}.npz"
    write_images(given.data, images, 10 * given.a_class, 10_000)
    study = Study(images, given.members, given.out, given.results, given.epochs, given.threads, given.judge)
    for arm in given.arms or arms(given.seeds, given.transfer):
        study.run(arm)


if __name__ == "__main__":
    main()
