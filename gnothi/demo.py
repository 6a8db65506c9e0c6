"""The demo: from photographs to a representation, its measure, its page and its export, in about three minutes on two cores."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gnothi import evaluate, report
from gnothi.contracts import SettingError
from gnothi.evaluate import Result
from gnothi.export import export
from gnothi.files import write_text
from gnothi.pretrain import train
from gnothi.training.signals import Interrupted

DATA = "photos"
ENCODERS = {"pixels": "pixels", "hog": "hog", "colour": "colour", "untrained": "{run}@untrained", "trained": "{run}"}
"""Names in the table, and the encoders behind them."""


@dataclass(frozen=True)
class Demo:
    """What the demo leaves."""

    folder: Path
    results: list[Result]
    verdict: dict[str, Any]
    page: Path
    exported: Path


def demo(out: str | Path = "runs/demo", say: Callable[[str], None] = print) -> Demo:
    """Train, measure, export and report; a second call goes on where the first stopped.

    Args:
        out: the run's folder.
        say: hears a line before each part.
    """
    folder = Path(out).expanduser()
    if (folder / "verdict.json").exists():
        _mine(folder)
    else:
        say("1/4 Learning from 4,000 photograph tiles, without their labels.")
        try:
            train(DATA, out=folder, resume=(folder / "spec.json").exists())
        except Interrupted as stopped:
            raise Interrupted(f"{str(stopped).partition(';')[0]}; the same command goes on", stopped.exit_code - 128) from None
    say("2/4 Measuring on tiles from the other side of each photograph: pixels, HOG, colour, untrained, trained.")
    results = measure(folder)
    exported = folder / "encoder"
    if not (exported / "config.json").exists():
        say("3/4 Exporting the encoder, and comparing the export with it.")
        export(str(folder), exported)
    say("4/4 Writing the page.")
    page = report.write(folder, results=[r.to_dict() for r in results])
    return Demo(folder, results, json.loads((folder / "verdict.json").read_text(encoding="utf-8")), page, exported)


def _mine(folder: Path) -> None:
    spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    if spec["source"]["name"] != DATA:
        raise SettingError(f"{folder} is a run on {spec['source']['name']}, not the demo's; --out takes another folder")


def measure(folder: Path) -> list[Result]:
    """k-NN and linear accuracy of every encoder of the table, kept in ``results.json``."""
    names = {encoder.format(run=folder): name for name, encoder in ENCODERS.items()}
    results = []
    for metric in ("knn", "linear"):
        for result in evaluate.run(metric, list(names), f"{DATA}@train", f"{DATA}@test"):
            results.append(replace(result, encoder=names[result.encoder]))
    write_text(folder / "results.json", json.dumps([r.to_dict() for r in results], indent=1))
    return results
