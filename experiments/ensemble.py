"""Ensembles on CIFAR-10 and in transfer: every combiner beside every member, over seeds; powers of the spectrum, steps, and the ablation grid.

    python -m experiments.ensemble [ARM ...] [--judge holdout|test] [--data FOLDER] [--members FOLDER] [--out FOLDER] [--epochs N] [--a-class N]
                                   [--seeds N] [--threads N] [--transfer DATA ...] [--results FILE]

FOLDER of --data holds train.npz and test.npz with `images` and `labels`. Members are micro ResNets: SimCLR, BYOL, VICReg and SimCLR with rotation, a
seed each, and SimCLR with further seeds, in folders METHOD-SEED. They are looked for in --members (where experiments.cifar_methods keeps its runs),
then in --out, where they are trained if they are in neither. An arm is
    table/SET/SEED          every combiner; SET is mixed, seeds, alone or crafted
    sweep/SEED              powers of PCA: of each member alone, and of all together
    length/SEED             powers of PCA of runs a quarter, a half, as long and twice as long as the members'
    steps/SEED              steps of the descent
    grid/NAME/SEED          the descent, one thing changed
    student/SEED            a feed-forward student of the ensemble, and one with a head a member
    transfer/DATA/SEED      maps of CIFAR-10, frozen, on other images (a ":" in DATA stands for "/"), and the same combiners fitted to those
by default all. With --judge holdout an arm is measured on a fifth of the *training* images, to which no combiner is fitted (members, and students
with their ensemble, have seen them without labels): what defaults are chosen by, in results of its own (ARM@holdout). With --judge test, the default,
it is measured on the test split: the final table, by which nothing may be chosen.
What is measured is k-NN with k=20 and k=200 and a linear classifier, of the same fits; the best member and the chosen power of PCA are chosen by the
same k and temperature. Differences to both, and to the concatenation, stand beside every number with their intervals.
DATA of --transfer is a name that gnothi opens, or a folder of train.npz and test.npz; grey images are told to the members in three equal channels.
Resumable: what stands in the results is not run again, runs go on, fits begin again. With 20 epochs, training takes about ten minutes a member on
one core.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.cost import cost
from experiments.images import write_images
from experiments.packed import halves, write_colour
from gnothi import ensemble, evaluate
from gnothi.data import DataSpec
from gnothi.encoders import load
from gnothi.evaluate.run import Split, measure, split, vectors_of
from gnothi.files import write_text
from gnothi.pretrain import train
from gnothi.transfer import TransferSpec, transfer

MIXED: dict[str, dict[str, Any]] = {
    "simclr": {"method": {"name": "simclr"}},
    "byol": {"method": {"name": "byol"}},
    "vicreg": {"method": {"name": "vicreg"}},
    "simclr-rotation": {"method": {"name": "simclr"}, "auxiliary": {"rotation": {}}},
}
SETS = ("mixed", "seeds", "alone", "crafted")
COMBINERS = ensemble.ALL
STEPS = (0, 1, 5, 20, 100, 500)
LENGTHS = (0.25, 0.5, 1.0, 2.0)
"""Of the members' training."""
MEASURES: dict[str, tuple[str, dict[str, Any]]] = {
    "knn 20": ("knn", {"k": 20, "temperature": 0.1}),
    "knn 200": ("knn", {"k": 200, "temperature": 0.1}),
    "linear": ("linear", {}),
}
NEAR = ("knn 20", "knn 200")
GRID: dict[str, dict[str, Any]] = {
    "default": {},
    **{f"layers {n} {loss}": {"layers": n, "loss": loss} for n in (0, 1, 2) for loss in ("cosine", "squared", "cosine+smooth-l1")},
    **{f"start {s}": {"start": s} for s in ("average", "member", "random")},
    **{f"start pca {p:g}": {"start_power": p} for p in (0.0, 0.5, 1.0)},
    **{f"width {w}": {"width": w} for w in (32, 64, 256)},
    **{f"l2 {v:g}": {"l2": v} for v in (1e-3, 1e-2)},
    **{f"power {p:g}": {"power": p} for p in (0.0, 0.25, 0.5)},
    **{f"lr codes {v:g}": {"lr_codes": v} for v in (0.005, 0.02, 0.2)},
    **{f"lr networks {v:g}": {"lr_networks": v} for v in (5e-4, 8e-3)},
    **{f"standardise {s}": {"standardise": s} for s in ("none", "dimension", "phi-s")},
    "drop": {"drop": 0.5},
    "sphere": {"sphere": True},
    "epochs 50": {"epochs": 50},
    "hidden 1024, epochs 100": {"hidden": 1024, "epochs": 100, "holdout": 0.0},
    **{f"amortised, steps {n}": {"combiner": "amortised", "steps": n} for n in (0, 5, 20)},
    **{f"members {n}": {"members": n} for n in (1, 2, 4)},
    "first member missing when asked": {"missing": 0},
    "reconstruction": {"read": "reconstruction"},
}
"""Settings of the descent, each one thing away from the default. Four words are the study's own: another ``combiner``, the first ``members`` only, a
member ``missing`` after the fit, and what is ``read`` where that is not the codes but what the networks make of them."""


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

    def trained(self, folder: str, name: str, seed: int, epochs: float | None = None) -> str:
        out = self.out / folder
        if not finished(out):
            training = self.training(epochs or self.epochs)
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
    def table(self, kind: str, seed: str) -> list[dict[str, Any]]:
        return self.compared(self.members(kind, int(seed)), int(seed))

    def sweep(self, seed: str) -> list[dict[str, Any]]:
        members = self.members("mixed", int(seed))
        sets = {Path(m).name: [m] for m in members} | {"together": members}
        return [{"of": name, **r} for name, own in sets.items() for r in self.compared(own, int(seed), ("pca",))]

    def length(self, seed: str) -> list[dict[str, Any]]:
        """Runs of their own: only the last checkpoint of one has a rate that fell to nothing, and statistics of its last weights."""
        found = []
        for part in LENGTHS:
            epochs = part * self.epochs
            run = self.trained(f"simclr-{seed}" if part == 1 else f"simclr-{epochs:g}-epochs-{seed}", "simclr", int(seed), epochs=epochs)
            found += [{"epochs": epochs, **r} for r in self.compared([run], int(seed), ("pca",))]
        return found

    def steps(self, seed: str) -> list[dict[str, Any]]:
        features, rows = self.features(self.members("mixed", int(seed)), int(seed))
        made = ensemble.fit(features[0], "descent", seed=int(seed))
        found = []
        for steps in STEPS:
            began = time.monotonic()
            x, y = (made.transform(part, steps=steps) for part in features)
            about = {"steps": steps, "embed_seconds": round(time.monotonic() - began, 2)}
            found += [{**about, **r} for r in by_neighbours(f"{steps} steps", x, y, rows, int(seed))]
        return found

    def grid(self, name: str, seed: str) -> list[dict[str, Any]]:
        settings = dict(GRID[name])
        combiner, many = settings.pop("combiner", "descent"), settings.pop("members", None)
        missing, read = settings.pop("missing", None), settings.pop("read", "codes")
        features, rows = self.features(self.members("mixed", int(seed))[:many], int(seed))
        made = ensemble.fit(features[0], combiner, seed=int(seed), **settings)
        x, y = (made.transform([None if j == missing else own for j, own in enumerate(part)]) for part in features)
        if read == "reconstruction":
            x, y = (reconstructed(made, codes) for codes in (x, y))
        about = {"exponent": made.record["exponent"], "seconds": made.record["seconds"], "loss": made.record["loss_by_member"]}
        return [{**r, **about} for r in by_neighbours(name, x, y, rows, int(seed))]

    def student(self, seed: str) -> list[dict[str, Any]]:
        """Of the ensemble's own vectors, and of all members with a head each; beside members and ensemble, all of the same images and epochs."""
        members, folder = self.members("mixed", int(seed)), str(self.out / f"together-{seed}")
        ensemble.make(members, f"{self.images}@train", folder, seed=int(seed), cache=self.cache)
        settings = {"seed": int(seed), "training": self.training(self.epochs), "data": {"holdout": 0}}
        runs = []
        for name, teachers in (("student", [folder]), ("student-heads", members)):
            out, spec = self.out / f"{name}-{seed}", TransferSpec(loss="regression")
            if not finished(out):
                data = f"{self.images}@train"
                transfer(teachers, data, out=out, student="micro-resnet", spec=spec, settings=settings, cache=self.cache, resume=True)
            runs.append(str(out))
        train, test = self.judged(self.images)
        names, found = [folder, *runs, *members], []
        costs = {name: cost(name) for name in names}
        for word, (kind, options) in MEASURES.items():
            results = evaluate.run(kind, names, train, test, seed=int(seed), cache=self.cache, **options)
            found += [{"metric": word, **shown(r), **costs[name]} for name, r in zip(names, results, strict=True)]
        return found

    def transfer(self, data: str, seed: str) -> list[dict[str, Any]]:
        """Combiners fitted to CIFAR-10 on other images, where choices were made on CIFAR-10, too; and the same fitted to those images."""
        members, target = self.members("mixed", int(seed)), self.opened(data.replace(":", "/"))
        target += "@train" if self.judge == "holdout" and not target.endswith("@train") else ""
        source = split(*self.judged(self.images), DataSpec(), int(seed)).train
        fitted, frozen = (self.measured(members, target, None, int(seed), fitted_to=maps) for maps in (None, source))
        return [{**r, "maps": "fitted to the target"} for r in fitted] + [{**r, "maps": "frozen"} for r in frozen]

    # ---- what they share
    def compared(self, members: list[str], seed: int, combiners: tuple[str, ...] | None = None) -> list[dict[str, Any]]:
        """On the images that judge."""
        return self.measured(members, *self.judged(self.images), seed, combiners)

    def measured(
        self, members: list[str], data: str, test: str | None, seed: int, combiners: tuple[str, ...] | None = None, **more: Any
    ) -> list[dict[str, Any]]:
        """The results of ``gnothi ensemble compare`` by all measures."""
        found = ensemble.compare_by(list(MEASURES.values()), members, data, test, combiners or COMBINERS, seed=seed, cache=self.cache, **more)
        return [{"metric": word, **shown(r)} for word, results in zip(MEASURES, found, strict=True) for r in results]

    def judged(self, images: Path | str) -> tuple[str, str | None]:
        """What trains and what asks: without a test split, a part of the training images is held out by class, another one for each seed."""
        return f"{images}@train", f"{images}@test" if self.judge == "test" else None

    def opened(self, data: str) -> str:
        """A name that gnothi opens: a folder of train.npz and test.npz is packed in three channels beside the runs."""
        name, _, part = data.partition("@")
        if not halves(Path(name)):
            return data
        packed = self.out / f"{Path(name).name}-colour.npz"
        write_colour(Path(name), packed)
        return f"{packed}@{part}" if part else str(packed)

    @property
    def cache(self) -> str:
        return str(self.out / "features")

    def training(self, epochs: float) -> dict[str, Any]:
        return {"epochs": epochs, "threads": self.threads, "evaluate_every": "100%"}

    def features(self, members: list[str], seed: int) -> tuple[list[list[Any]], Split]:
        rows = split(*self.judged(self.images), DataSpec(), seed)
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


def by_neighbours(name: str, x: Tensor, y: Tensor, rows: Split, seed: int) -> list[dict[str, Any]]:
    """Vectors of training and test rows by k-NN."""
    vectors = [(name, x.numpy(), y.numpy())]
    return [{"metric": word, **shown(r)} for word in NEAR for r in measure(MEASURES[word][0], vectors, rows, MEASURES[word][1], seed)]


def reconstructed(made: ensemble.Ensemble, codes: Tensor) -> Tensor:
    """What the networks of a descent make of codes: all members' features side by side, each at unit length."""
    networks: Any = made.fitted
    with torch.no_grad():
        return torch.cat([F.normalize(part, dim=1) for part in networks.decoders(codes)], dim=1)


def shown(result: evaluate.Result) -> dict[str, Any]:
    row = {k: getattr(result, k) for k in ("encoder", "value", "low", "high", "n", "protocol")}
    kept = ("width", "exponent", "seconds", "seconds_an_image", "paired", "paired_concatenation", "paired_chosen")
    return row | {k: result.details[k] for k in kept if k in result.details}


def finished(run: Path) -> bool:
    return (run / "verdict.json").exists()


def known(results: Path) -> dict[str, Any]:
    return json.loads(results.read_text()) if results.exists() else {}


def arms(seeds: int, transfer: list[str]) -> list[str]:
    kinds = [*(f"table/{kind}" for kind in SETS), *(f"transfer/{data.replace('/', ':')}" for data in transfer)]
    kinds += ["sweep", "length", "steps", "student", *(f"grid/{name}" for name in GRID)]
    return [f"{kind}/{seed}" for kind in kinds for seed in range(seeds)]


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
