"""Ensembles on CIFAR-10 and in transfer: every combiner beside every member, over seeds; powers of the spectrum, steps, and the ablation grid.

    python -m experiments.ensemble [ARM ...] [--judge holdout|test] [--data FOLDER] [--members FOLDER] [--out FOLDER] [--epochs N] [--a-class N]
                                   [--seeds N] [--threads N] [--transfer DATA ...] [--results FILE]

FOLDER of --data holds train.npz and test.npz with `images` and `labels`. Members are micro ResNets: SimCLR, BYOL, VICReg and SimCLR with rotation, a
seed each, and SimCLR with further seeds, in folders METHOD-SEED. They are looked for in --members (where experiments.cifar_methods keeps its runs),
and taken where they have the same epochs and the very same images, then in --out, where they are trained if they are in neither. An arm is
    table/SET/SEED          every combiner; SET is mixed, seeds, alone, crafted, or vit: the mixed ones as micro ViTs, only where it is asked
    sweep/SEED              powers of PCA: of each member alone, and of all together
    spectrum/NAME/SEED      powers and floors of PCA and gauges of the descent, of one member and of all together, on those images or, with NAME
                            "own", on CIFAR-10
    length/SEED             powers of PCA of runs a quarter, a half, as long and twice as long as the members'
    steps/SEED              steps of the descent
    grid/NAME/SEED          the descent, one thing changed
    tried/NAME/SEED         other ideas of what codes should be, of experiments/tried.py
    student/SEED            a feed-forward student of the ensemble, and one with a head a member
    transfer/NAME/SEED      maps of CIFAR-10, frozen, on other images, and the same combiners fitted to those; NAME is the last part of a DATA
by default all. With --judge holdout an arm is measured on a fifth of the *training* images, to which no combiner is fitted (members, and students
with their ensemble, have seen them without labels): what defaults are chosen by, in results of its own (ARM@holdout). With --judge test, the default,
it is measured on the test split: the final table, by which nothing may be chosen.
What is measured is k-NN with k=20 and k=200 and a linear classifier, of the same fits; the best member and the chosen power of PCA are chosen by the
same k and temperature. Differences to both, and to the concatenation, stand beside every number with their intervals.
DATA of --transfer is a name that gnothi opens, or a folder of train.npz and test.npz; grey images are told to the members in three equal channels.
Resumable: what stands in the results is not run again, runs go on, fits begin again; an arm whose run diverged stands there with the reason. Runs lie
in a folder of --out by data, images and epochs, and FILE holds arms of one such folder only. With 20 epochs, training takes about ten minutes a
member on one core.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.cost import cost
from experiments.hours import diverged, one_at_a_time, refuse, threads_of, usable
from experiments.images import write_images
from experiments.members import SETS, Members, finished
from experiments.packed import halves, write_colour, write_mirrored
from experiments.tried import IDEAS, VIEWS
from gnothi import ensemble, evaluate
from gnothi.contracts import GnothiError, RunError, SettingError
from gnothi.data import DataSpec
from gnothi.encoders import load
from gnothi.evaluate import paired
from gnothi.evaluate.run import Split, measure, split, vectors_of
from gnothi.files import write_text
from gnothi.transfer import TransferSpec, transfer

ASKED = ("table/vit",)
"""Arms that are run only where they are asked."""
COMBINERS = ensemble.ALL
STEPS = (0, 1, 5, 20, 100, 500)
OWN = "own"
"""The images of the members, where other images have names."""
SPECTRA: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"pca {p:g}, floor {f:g}": ("pca", {"power": p, "floor": f}) for p in (0.0, 0.25) for f in (1e-4, 0.03, 0.1, 0.3, 1.0)},
    **{
        f"{combiner} from {start:g}, {'left as it is' if power is None else f'power {power:g}'}": (combiner, {"start_power": start, "power": power})
        for combiner in ("descent", "amortised")
        for start, power in ((0.25, None), (0.25, 0.25), (0.0, None), (0.0, 0.0))
    },
}
"""Powers and floors (parts of the mean variance to which lesser variances are raised) of PCA, and gauges of what descends."""
LENGTHS = (0.25, 0.5, 1.0, 2.0)
"""Of the members' training."""
MEASURES: dict[str, tuple[str, dict[str, Any]]] = {
    "knn 20": ("knn", {"k": 20, "temperature": 0.1}),
    "knn 200": ("knn", {"k": 200, "temperature": 0.1}),
    "linear": ("linear", {}),
}
NEAR = ("knn 20", "knn 200")
DIFFERENCES = ("paired", "paired_concatenation", "paired_chosen")
"""To the best member, to the concatenation and to PCA by the chosen power."""
GRID: dict[str, dict[str, Any]] = {
    "default": {},
    **{f"layers {n} {loss}": {"layers": n, "loss": loss} for n in (0, 1, 2) for loss in ("cosine", "squared", "cosine+smooth-l1")},
    **{f"start {s}": {"start": s} for s in ("average", "member", "random")},
    **{f"start pca {p:g}": {"start_power": p} for p in (0.25, 0.5, 1.0)},
    **{f"width {w}": {"width": w} for w in (32, 64, 256)},
    **{f"l2 {v:g}": {"l2": v} for v in (1e-3, 1e-2)},
    "spectrum as it is": {"power": None},
    **{f"power {p:g}": {"power": p} for p in (0.25, 0.5)},
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
    runs: Members
    results: Path
    settings: dict[str, Any]
    """What the results are of: the data, images a class and epochs."""
    judge: str
    targets: dict[str, str] = field(default_factory=dict)
    """Other images, by the name that their arm has."""

    def check(self, arms: Sequence[str]) -> None:
        """Refuse what would be met only hours later.

        Raises:
            GnothiError: an arm is unknown, other images cannot be used, or the results are of other settings.
        """
        before = json.loads(self.results.read_text()).get("settings", {}) if self.results.exists() else self.settings
        if before != self.settings:
            words, others = (", ".join(f"{key} {value}" for key, value in of.items()) for of in (self.settings, before))
            raise SettingError(f"{self.results} holds arms of {others or 'unknown settings'}, not of {words}; name another file with --results")
        for arm in arms:
            seed = arm.rpartition("/")[2]
            refuse(arm, [f"{kind}/{seed if seed.isdecimal() else 0}" for kind in (*kinds(self.targets), *ASKED)])
        for name in self.targets:
            usable(self.target(name), "--transfer", self.runs.source.channels)

    # ---- the arms
    def table(self, kind: str, seed: str) -> list[dict[str, Any]]:
        return self.compared(self.runs.of(kind, int(seed)), int(seed))

    def sweep(self, seed: str) -> list[dict[str, Any]]:
        members = self.runs.of("mixed", int(seed))
        sets = {Path(m).name: [m] for m in members} | {"together": members}
        return [{"of": name, **r} for name, own in sets.items() for r in self.compared(own, int(seed), ("pca",))]

    def spectrum(self, name: str, seed: str) -> list[dict[str, Any]]:
        members, found = self.runs.of("mixed", int(seed)), []
        data = self.judged() if name == OWN else (self.target(name), None)
        for of, own in {"one member": members[:1], "together": members}.items():
            features, rows = self.features(own, int(seed), data)
            for chosen, (combiner, settings) in SPECTRA.items():
                made = ensemble.fit(features[0], combiner, seed=int(seed), **settings)
                x, y = (made.transform(part) for part in features)
                found += [
                    {"of": of, "chosen": chosen, "exponent": made.record["exponent"], **r} for r in by_neighbours(combiner, x, y, rows, int(seed))
                ]
        return found

    def length(self, seed: str) -> list[dict[str, Any]]:
        """Runs of their own: only the last checkpoint of one has a rate that fell to nothing, and statistics of its last weights."""
        found = []
        for part in LENGTHS:
            epochs = part * self.runs.epochs
            out = self.runs.out / f"simclr-{epochs:g}-epochs-{seed}"
            run = self.runs.one("simclr", int(seed)) if part == 1 else self.runs.trained(out, "simclr", int(seed), epochs)
            found += [{"epochs": epochs, **r} for r in self.compared([run], int(seed), ("pca",))]
        return found

    def steps(self, seed: str) -> list[dict[str, Any]]:
        features, rows = self.features(self.runs.of("mixed", int(seed)), int(seed))
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
        features, rows = self.features(self.runs.of("mixed", int(seed))[:many], int(seed))
        made = ensemble.fit(features[0], combiner, seed=int(seed), **settings)
        heard = [[None if j == missing else own for j, own in enumerate(part)] for part in features]
        x, y = (reconstructed(made, part) if read == "reconstruction" else made.transform(part) for part in heard)
        about = {"exponent": made.record["exponent"], "seconds": made.record["seconds"], "loss": made.record["loss_by_member"]}
        return [{**r, **about} for r in by_neighbours(name, x, y, rows, int(seed), (features[0], heard))]

    def tried(self, name: str, seed: str) -> list[dict[str, Any]]:
        members, began = self.runs.of("mixed", int(seed)), time.monotonic()
        features, rows = self.features(members, int(seed))
        tensors = [[torch.from_numpy(np.asarray(x[:])) for x in part] for part in features]
        if name in VIEWS:
            mirrored, _ = self.features(members, int(seed), self.mirrored())
            tensors = [[*own, *(torch.from_numpy(np.asarray(x[:])) for x in part)] for own, part in zip(tensors, mirrored, strict=True)]
        x, y = (IDEAS | VIEWS)[name](*tensors, int(seed))
        about = {"seconds": time.monotonic() - began}
        return [{**r, **about} for r in by_neighbours(name, x, y, rows, int(seed), (features[0], features))]

    def student(self, seed: str) -> list[dict[str, Any]]:
        """Of the ensemble's own vectors, and of all members with a head each; beside members and ensemble, all of the same images and epochs."""
        members, folder, data = self.runs.of("mixed", int(seed)), self.runs.out / f"together-{seed}", f"{self.runs.images}@train"
        if not (folder / "ensemble.json").exists():  # made anew with other threads it differs in last bits, and students would be another's
            ensemble.make(members, data, folder, seed=int(seed), cache=self.cache)
        runs = []
        for name, teachers in (("student", [str(folder)]), ("student-heads", members)):
            out, spec = self.runs.out / f"{name}-{seed}", TransferSpec(loss="regression")
            if not finished(out):
                training = self.runs.training(self.runs.epochs, threads_of(out, self.runs.threads))
                settings = {"seed": int(seed), "training": training, "data": {"holdout": 0}}
                transfer(teachers, data, out=out, student="micro-resnet", spec=spec, settings=settings, cache=self.cache, resume=True)
            runs.append(str(out))
        train, test = self.judged()
        names, found = [str(folder), *runs, *members], []
        costs = {name: cost(name) for name in names}
        for word, (kind, options) in MEASURES.items():
            results = evaluate.run(kind, names, train, test, seed=int(seed), cache=self.cache, **options)
            found += [{"metric": word, **shown(r), **costs[name]} for name, r in zip(names, results, strict=True)]
        return found

    def transfer(self, name: str, seed: str) -> list[dict[str, Any]]:
        """Combiners fitted to CIFAR-10 on other images, where choices were made on CIFAR-10, too; and the same fitted to those images."""
        members, target = self.runs.of("mixed", int(seed)), self.target(name)
        source = split(*self.judged(), DataSpec(), int(seed)).train
        fitted, frozen = (self.measured(members, target, None, int(seed), fitted_to=maps) for maps in (None, source))
        return [{**r, "maps": "fitted to the target"} for r in fitted] + [{**r, "maps": "frozen"} for r in frozen]

    # ---- what they share
    def compared(self, members: list[str], seed: int, combiners: tuple[str, ...] | None = None) -> list[dict[str, Any]]:
        """On the images that judge."""
        return self.measured(members, *self.judged(), seed, combiners)

    def measured(
        self, members: list[str], data: str, test: str | None, seed: int, combiners: tuple[str, ...] | None = None, **more: Any
    ) -> list[dict[str, Any]]:
        """The results of ``gnothi ensemble compare`` by all measures."""
        found = ensemble.compare_by(list(MEASURES.values()), members, data, test, combiners or COMBINERS, seed=seed, cache=self.cache, **more)
        return [{"metric": word, **shown(r)} for word, results in zip(MEASURES, found, strict=True) for r in results]

    def judged(self) -> tuple[str, str | None]:
        """What trains and what asks: without a test split, a part of the training images is held out by class, another one for each seed."""
        return f"{self.runs.images}@train", f"{self.runs.images}@test" if self.judge == "test" else None

    def target(self, name: str) -> str:
        """What of other images is opened; where training images judge, those."""
        data = self.opened(self.targets[name])
        return data + ("@train" if self.judge == "holdout" and not data.endswith("@train") else "")

    def opened(self, data: str) -> str:
        """A name that gnothi opens: a folder of train.npz and test.npz is packed in three channels beside the runs."""
        name, _, part = data.partition("@")
        if not halves(Path(name)):
            return data
        packed = self.runs.out / f"{Path(name).name}-colour.npz"
        write_colour(Path(name), packed)
        return f"{packed}@{part}" if part else str(packed)

    @property
    def cache(self) -> str:
        return str(self.runs.out / "features")

    def mirrored(self) -> tuple[str, str | None]:
        """What trains and what asks, of the same images mirrored."""
        file = self.runs.out / "mirrored.npz"
        write_mirrored(self.runs.images, file)
        return f"{file}@train", f"{file}@test" if self.judge == "test" else None

    def features(self, members: list[str], seed: int, data: tuple[str, str | None] | None = None) -> tuple[list[list[Any]], Split]:
        """Of the rows that train and of those that ask, a list of the members each."""
        rows = split(*(data or self.judged()), DataSpec(), seed)
        opened = [load(name) for name in members]
        return [[vectors_of(e, part, self.cache, None) for e in opened] for part in (rows.train, rows.test)], rows

    def run(self, arm: str) -> None:
        key = arm if self.judge == "test" else f"{arm}@{self.judge}"
        if key in known(self.results):
            return
        began, (kind, *rest) = time.monotonic(), arm.split("/")
        found: list[dict[str, Any]] | dict[str, str]
        try:
            found = getattr(self, kind)(*rest)
            words = f"{len(found)} results"
        except RunError as why:
            words = diverged(why)
            found = {"failed": words}
        with one_at_a_time(self.results):
            write_text(self.results, lines(self.settings, known(self.results) | {key: found}))
        print(f"{key}: {words} after {time.monotonic() - began:.0f} s", flush=True)


def by_neighbours(name: str, x: Tensor, y: Tensor, rows: Split, seed: int, members: Any = None) -> list[dict[str, Any]]:
    """Vectors of training and test rows by k-NN.

    Args:
        name: of what made them.
        x: [N, D] of the training rows.
        y: [M, D] of the test rows.
        rows: what they are of.
        seed: of all that is random.
        members: features to which PCA of equal width by a chosen power is fitted, and those of training and test rows: what stands beside.
    """
    found = []
    for word in NEAR:
        kind, options = MEASURES[word]
        vectors = [(name, x.numpy(), y.numpy())]
        if members is not None:
            width = min(x.shape[1], sum(m.shape[1] for m in members[0]), len(members[0][0]) - 1)
            control = ensemble.fit(members[0], "pca", power="holdout", width=width, labels=rows.train.labels, seed=seed, **options)
            vectors.append(("pca", *(control.transform(part).numpy() for part in members[1])))
        own, *others = measure(kind, vectors, rows, options, seed)
        if others:
            own = replace(own, details={**own.details, "paired_chosen": asdict(paired(own.correct, others[0].correct))})
        found.append({"metric": word, **shown(own), "width": x.shape[1]})
    return found


def reconstructed(made: ensemble.Ensemble, features: list[Any]) -> Tensor:
    """What the networks of a descent make of the codes of images: all members' features side by side, each at unit length."""
    fitted: Any = made.fitted
    codes = fitted.codes([torch.from_numpy(np.array(x[:])) for x in features])
    with torch.no_grad():
        return torch.cat([F.normalize(part, dim=1) for part in fitted.decoders(codes)], dim=1)


def shown(result: evaluate.Result) -> dict[str, Any]:
    """What is kept of a result: numbers of five digits, and names without the folders in which something lay."""
    row = {k: getattr(result, k) for k in ("value", "low", "high", "n")}
    names = {k: re.sub(r"(?<!\S)[^\s()]*/", "", getattr(result, k)) for k in ("encoder", "protocol")}
    kept = {k: result.details[k] for k in ("width", "exponent", "seconds", "seconds_an_image") if k in result.details}
    less = {k: {end: d[end] for end in ("value", "low", "high")} for k, d in result.details.items() if k in DIFFERENCES}
    rounded: dict[str, Any] = json.loads(json.dumps(row | kept | less), parse_float=lambda v: float(f"{float(v):.5g}"))
    return names | rounded


def lines(settings: dict[str, Any], arms: dict[str, Any]) -> str:
    """The results as text, a line for each: there are thousands."""
    said = []
    for arm, rows in arms.items():
        text = "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]" if isinstance(rows, list) else json.dumps(rows)
        said.append(f"{json.dumps(arm)}: {text}")
    return '{"settings": ' + json.dumps(settings) + ', "arms": {\n' + ",\n".join(said) + "\n}}\n"


def known(results: Path) -> dict[str, Any]:
    """Arms that stand in the results."""
    return json.loads(results.read_text())["arms"] if results.exists() else {}


def kinds(targets: Iterable[str]) -> list[str]:
    """Arms without their seed, in the order in which they are run."""
    tables = [f"table/{kind}" for kind in SETS if f"table/{kind}" not in ASKED]
    return [
        *tables,
        *(f"transfer/{name}" for name in targets),
        *(f"spectrum/{name}" for name in (OWN, *targets)),
        "sweep",
        "length",
        "steps",
        "student",
        *(f"grid/{name}" for name in GRID),
        *(f"tried/{name}" for name in IDEAS | VIEWS),
    ]


def named(transfer: Iterable[str]) -> dict[str, str]:
    """DATA of --transfer by the last part of its name, as arms and tables call it; an "@" is a space, for it stands before the judge."""
    found: dict[str, str] = {}
    for data in transfer:
        name = data.rstrip("/").rpartition("/")[2].replace("@", " ")
        if found.setdefault(name, data) != data:
            raise SettingError(f"--transfer: {found[name]} and {data} are both called {name}; give one of them another name")
    return found


def main(words: list[str] | None = None) -> None:
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
    given = parser.parse_args(words)
    if not halves(given.data):
        parser.error(f"--data {given.data} must hold train.npz and test.npz")
    torch.set_num_threads(given.threads)
    settings = {"data": given.data.resolve().name, "a_class": given.a_class, "epochs": given.epochs}
    out = given.out / f"{settings['data']}-{given.a_class}-a-class-{given.epochs:g}-epochs"
    write_images(given.data, out / "cifar.npz", 10 * given.a_class, 10_000)
    runs = Members(out / "cifar.npz", given.members, out, given.epochs, given.threads)
    try:
        study = Study(runs, given.results, settings, given.judge, named(given.transfer))
        study.check(given.arms)
    except GnothiError as error:
        parser.error(str(error))
    for arm in given.arms or [f"{kind}/{seed}" for kind in kinds(study.targets) for seed in range(given.seeds)]:
        study.run(arm)


if __name__ == "__main__":
    main()
