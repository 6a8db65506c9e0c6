"""What the four examples share: train, measure beside encoders that need no training, and keep what came of it in results/NAME.json.

What is finished is not done again, and what was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

import gnothi
from gnothi import data, evaluate
from gnothi.contracts import Source
from gnothi.evaluate import Result
from gnothi.files import write_text

RESULTS = Path(__file__).parent / "results"
ENCODERS = {"trained": "{run}", "untrained": "{run}@untrained", "hog": "hog", "colour": "colour", "pixels": "pixels"}
"""Names in the table, and the encoders behind them."""


def options(text: str | None, epochs: float, holds: str | None = None) -> argparse.ArgumentParser:
    """The command line of an example; ``holds`` says what its DATA_FOLDER holds."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    if holds is not None:
        parser.add_argument("data", type=Path, metavar="DATA_FOLDER", help=holds)
    parser.add_argument("--epochs", type=float, default=epochs, metavar="N", help=f"passes over the images, by default {epochs:g}")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="FOLDER", help="where the run is put, by default runs")
    beside = "where the results are put, by default beside the examples; those that lie there are shown, and nothing is trained"
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help=beside)
    return parser


def study(
    name: str, train: str, test: str, given: argparse.Namespace, settings: Mapping[str, Any], beside: Mapping[str, Sequence[np.ndarray]] | None = None
) -> list[Result]:
    """Train on ``train`` without its labels, then measure on ``test``.

    Args:
        name: of the run's folder and of the results.
        train: images to learn from; those with a label also teach the classifiers.
        test: images that are asked.
        given: the command line.
        settings: of the run, nested.
        beside: further vectors of the rows of both, [N, D] and [M, D], by name; they get a linear classifier only.
    """
    kept, folder = given.results / f"{name}.json", given.out / name
    if not kept.exists():
        settings = {**settings, "training": {"epochs": given.epochs}}
        run = trained(train, folder, settings)
        rows = measured(str(folder), train, test)
        first = next(r for r in rows if (r.metric, r.encoder) == ("linear", "trained"))
        rows += [plain(word, *vectors, data.open(train), data.open(test), first) for word, vectors in (beside or {}).items()]
        found = {"data": {"train": facts(train), "test": facts(test)}, "run": run, "results": [r.to_dict() for r in rows]}
        write_text(kept, json.dumps(found, indent=1) + "\n")
    rows = [Result(**{k: v for k, v in row.items() if k != "interval"}) for row in json.loads(kept.read_text(encoding="utf-8"))["results"]]
    print(f"{evaluate.table(rows)}\n\n{kept}")
    return rows


def trained(train: str, folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A finished run: what was asked of it, its length and its verdict; processor time where it was not stopped in between."""
    begun, before = (folder / "spec.json").exists(), sum(os.times()[:4])
    if not (folder / "verdict.json").exists():
        gnothi.train(train, out=folder, settings=settings, resume=begun)
    spent = None if begun else sum(os.times()[:4]) - before
    spec, verdict = (json.loads((folder / f"{part}.json").read_text(encoding="utf-8")) for part in ("spec", "verdict"))
    names = {part: spec["settings"][part]["name"] for part in ("method", "backbone")}
    derived = {part: spec["derived"][part] for part in ("size", "n", "steps", "threads")}
    return {"asked": settings, **names, **derived, "verdict": verdict["verdict"], "seconds": verdict["seconds"], "processor": spent}


def measured(run: str, train: str, test: str) -> list[Result]:
    """k-NN and linear accuracy of every encoder of the table; differences are to the trained one."""
    names = {encoder.format(run=run): name for name, encoder in ENCODERS.items()}
    found = [r for kind in ("knn", "linear") for r in evaluate.run(kind, list(names), train, test)]
    for result in found:
        result.details.get("paired", {}).update(against="trained")
    return [replace(r, encoder=names[r.encoder], protocol=r.protocol.replace(f"{Path(train).parent}/", "")) for r in found]


def plain(name: str, known: np.ndarray, asked: np.ndarray, train: Source, test: Source, first: Result) -> Result:
    """A linear classifier on vectors that come from no encoder, with its difference to the trained one's."""
    a, b = labelled(train), labelled(test)
    result = evaluate.linear(known[a], train.labels[a], asked[b], test.labels[b], groups=groups(train, a), names=train.classes)
    pair = {"against": first.encoder, **asdict(evaluate.paired(result.correct, first.correct))}
    return replace(result, encoder=name, details=result.details | {"paired": pair})


def groups(source: Source, rows: np.ndarray) -> np.ndarray | None:
    """What no choice may divide."""
    return None if source.groups is None else source.groups[rows]


def labelled(source: Source) -> np.ndarray:
    """Rows that have a label."""
    return np.flatnonzero(source.labels >= 0)


def facts(name: str) -> dict[str, Any]:
    """What the images are."""
    source = data.open(name)
    counts = np.bincount(source.labels[labelled(source)], minlength=len(source.classes)).tolist()
    shape = [source.channels, *source.shape(0)]
    return {
        "images": len(source),
        "first": shape,
        "dtype": str(source.dtype).removeprefix("torch."),
        "labelled": dict(zip(source.classes, counts, strict=True)),
    }
