"""Comparisons: run after run of several arms, each measured at its end, a table and a page; a second call goes on where the first was stopped."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gnothi import evaluate, pretrain
from gnothi.comparison import page, start, table
from gnothi.comparison.arms import arms
from gnothi.comparison.start import RESULTS, Say
from gnothi.contracts import RunError
from gnothi.files import write_text
from gnothi.recipes.spec import merge
from gnothi.training.lock import owned
from gnothi.training.progress import Silent, duration
from gnothi.training.signals import Interrupted

FEATURES = ".features-"
"""Begins the name of the folder that holds features while a run is measured."""


@dataclass(frozen=True)
class Comparison:
    """A finished comparison."""

    folder: Path
    record: dict[str, Any]
    """What ``results.json`` holds: asked, data, protocol, arms, runs, table."""
    page: Path
    curves: Path

    def text(self) -> str:
        """The table as plain text."""
        return table.text(self.record["table"], self.record["asked"]["metric"], self.record["protocol"])

    @property
    def failed(self) -> list[str]:
        """Runs that had to stop, with the reason."""
        return [f"{r['run']}: {r['failed']}" for r in self.record["runs"] if "failed" in r]


def compare(
    data: str,
    *,
    methods: Sequence[str] = ("simclr",),
    auxiliaries: Sequence[str] = ("none",),
    seeds: int = 1,
    out: str | Path,
    epochs: float | None = None,
    seconds: float | None = None,
    settings: Mapping[str, Any] | None = None,
    vary: Mapping[str, Sequence[Any]] | None = None,
    recipe: str | None = None,
    test: str | None = None,
    metric: str = "knn",
    device: str | None = None,
    quiet: bool = False,
) -> Comparison:
    """Train every method with every set of auxiliaries and every seed, for equal epochs or equal time, and measure all on the same test images.

    Every run is a folder of its own, ``out/ARM-seedN``. A second call with the same arguments goes on where the first was stopped. Nothing is chosen
    on the test images: a run is measured once, at its last step.

    Args:
        data: photos, a folder, an .npz or .npy file, shards:PATTERN, tiles:FOLDER, or a torchvision name; with labels, which only measuring looks at.
        methods: names.
        auxiliaries: sets of names, joined by +; "none" is the method alone.
        seeds: how many: 0, 1, 2, ...
        out: the comparison's folder.
        epochs: of every run; by default what the rules give the first arm.
        seconds: of every run, instead of epochs; how many steps of an arm that is, is measured before anything trains.
        settings: nested settings; one of a method or an auxiliary goes to the arms that have it.
        vary: dotted settings with values to try; each multiplies the arms that have it.
        recipe: a name that `gnothi recipes` lists.
        test: what to measure on; by default as in ``evaluate.run``.
        metric: "knn" or "linear".
        device: cpu, cuda or mps.
        quiet: say nothing on standard error.

    Raises:
        SettingError: an argument or an arm cannot be, or the folder was begun with others.
        DataError: the images cannot be used, have no labels, or are not those it began with.
    """
    asked: dict[str, Any] = {
        "data": data,
        "methods": list(methods),
        "auxiliaries": list(auxiliaries),
        "seeds": seeds,
        "epochs": epochs,
        "seconds": seconds,
        "settings": dict(settings or {}),
        "vary": {key: list(values) for key, values in (vary or {}).items()},
        "recipe": recipe,
        "test": test,
        "metric": metric,
        "device": device,
    }
    say: Say = (lambda text: None) if quiet else (lambda text: print(text, file=sys.stderr, flush=True))
    start.check(asked)
    found, folder = arms(methods, auxiliaries, asked["settings"], asked["vary"]), Path(out).expanduser()
    record = start.begun(folder, asked, found) or start.begin(asked, found, say, quiet)
    with owned(folder):
        return _run(folder, record, say, quiet)


def _run(folder: Path, record: dict[str, Any], say: Say, quiet: bool) -> Comparison:
    """Everything that is not done yet; the results are whole on the disk after every run."""
    for features in folder.glob(f"{FEATURES}*"):
        shutil.rmtree(features)  # of a run that was killed while it was measured
    _write(folder, record)
    waiting, whole = list(_missing(record)), len(record["arms"]) * record["asked"]["seeds"]
    for i, (arm, seed) in enumerate(waiting):
        left = duration(sum(other["planned_seconds"] for other, _ in waiting[i:]))
        say(f"\nrun {whole - len(waiting) + i + 1} of {whole}: {arm['arm']}, seed {seed}; about {left} of training left")
        try:
            record["runs"].append(_one(folder, record["asked"], arm, seed, quiet))
        except Interrupted as stopped:
            words = str(stopped).partition(";")[0]
            raise Interrupted(f"{arm['arm']}, seed {seed}, {words}; the same command goes on", stopped.exit_code - 128) from None
        _write(folder, record)
    return Comparison(folder, record, *page.write(folder, record))


def _missing(record: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], int]]:
    """Arms and seeds without a result: all arms of a seed before the next seed, so that what there is can be compared at any time."""
    done = {(run["arm"], run["seed"]) for run in record["runs"]}
    for seed in range(record["asked"]["seeds"]):
        yield from ((arm, seed) for arm in record["arms"] if (arm["arm"], seed) not in done)


def _one(folder: Path, asked: Mapping[str, Any], arm: Mapping[str, Any], seed: int, quiet: bool) -> dict[str, Any]:
    """Train and measure one run; one that had to stop is a result, too."""
    about: dict[str, Any] = {"arm": arm["arm"], "seed": seed, "run": f"{arm['arm']}-seed{seed}"}
    where = folder / about["run"]
    try:
        run = pretrain.train(
            asked["data"],
            recipe=asked["recipe"],
            settings=merge(arm["settings"], {"seed": seed}),
            device=asked["device"],
            out=where,
            resume=(where / "spec.json").exists(),
            progress=Silent() if quiet else None,
        )
    except RunError as error:
        if error.__cause__ is not None:  # a full disk or a loader that died, and no fault of the arm: the same command goes on
            raise
        return {**about, "failed": str(error)}
    return {**about, **_measured(folder, asked, where), **_told(run)}


def _measured(folder: Path, asked: Mapping[str, Any], run: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix=FEATURES, dir=folder) as cache:
        settings = start.data_settings(asked)
        result = evaluate.run(asked["metric"], [str(run)], asked["data"], asked["test"], settings=settings, cache=cache, device=asked["device"])[0]
    assert result.correct is not None
    return {**{k: getattr(result, k) for k in ("value", "low", "high", "n", "protocol")}, "correct": table.pack(result.correct)}


def _told(run: pretrain.Run) -> dict[str, Any]:
    """What the run itself says: its health, its time, and k-NN along the way on images held out of training."""
    kept = ("step", "epoch", "seconds", "value", "low", "high")
    along = [{k: m[k] for k in kept} for m in run.metrics if m["kind"] == "evaluation" and m["metric"] == "knn"]
    return {**{k: run.verdict[k] for k in ("verdict", "why", "steps", "seconds")}, "along": along}


def _write(folder: Path, record: dict[str, Any]) -> None:
    record["table"] = table.rows(record["arms"], record["runs"])
    write_text(folder / RESULTS, json.dumps(record, indent=1) + "\n")
