"""What a run folder says of its run: settings, metrics, verdict and results, read from its files and nothing else."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gnothi.contracts import EncoderError, RunError
from gnothi.training import twice

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """The files of a run folder, parsed."""

    folder: Path
    settings: dict[str, Any]
    derived: dict[str, Any]
    source: dict[str, Any]
    init: str | None
    """The encoder whose weights the run began with."""
    version: str
    metrics: list[dict[str, Any]]
    verdict: dict[str, Any]
    """Empty where the run has not ended."""
    environment: dict[str, Any]
    results: list[dict[str, Any]]

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """The metric lines of one kind, by step."""
        return [m for m in self.metrics if m.get("kind") == kind]

    def column(self, kind: str, key: str, where: dict[str, Any] | None = None) -> tuple[list[float], list[float], str]:
        """One number over training.

        Returns:
            x, y and what x is (epochs, or steps where lines do not say their epoch); both empty where no line has the number.
        """
        lines = [m for m in self.lines(kind) if m.get(key) is not None and all(m.get(k) == v for k, v in (where or {}).items())]
        unit = "epoch" if all("epoch" in m for m in lines) else "step"
        return [float(m[unit]) for m in lines], [float(m[key]) for m in lines], unit

    def own(self, encoder: str) -> bool:
        """Whether a name of an encoder means what this run trained."""
        return encoder == "trained" or self._is(encoder, "", "@teacher", "@online")

    def start(self, encoder: str) -> bool:
        """Whether a name of an encoder means this run's network before it was trained."""
        kind, _, run = encoder.partition(":")
        return encoder == "untrained" or self._is(encoder, "@untrained") or (kind == "untrained" and self._is(run, ""))

    def _is(self, encoder: str, *marks: str) -> bool:
        return any(encoder.endswith(mark) and Path(encoder.removesuffix(mark)).resolve() == self.folder.resolve() for mark in marks)


def read(folder: Path, results: list[dict[str, Any]] | None = None) -> Record:
    """Read a run folder.

    Args:
        folder: the run.
        results: evaluations; by default those in its ``results.json``, where there is one.

    Raises:
        EncoderError: the folder is not a run's, or one of its files is not what it should be.
    """
    if not (folder / "spec.json").is_file():
        raise EncoderError(f"{folder}: not a run folder, spec.json is missing; `gnothi train DATA --out {folder}` makes one")
    try:
        spec = twice.read(folder, log.warning)
    except RunError as error:
        raise EncoderError(str(error)) from None
    if results is None:
        results = results_of(folder / "results.json") if (folder / "results.json").is_file() else []
    return Record(
        folder=folder,
        settings=_group(spec, "settings", folder),
        derived=_group(spec, "derived", folder),
        source=_group(spec, "source", folder),
        init=None if spec.get("init") is None else str(spec["init"]),
        version=str(spec.get("gnothi", "")),
        metrics=_metrics(folder / "metrics.jsonl"),
        verdict=_object(folder / "verdict.json"),
        environment=_object(folder / "environment.json"),
        results=[r for r in results if _is_result(r)],
    )


def results_of(path: Path) -> list[dict[str, Any]]:
    """The results of a file: a list of them, one alone, or what ``--json`` of a verb that measures printed.

    Raises:
        EncoderError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise EncoderError(f"{path}: no such file; `gnothi evaluate ... --json > {path}` writes one")
    found = _json(path, [])
    if isinstance(found, dict):
        found = found.get("results", [found])
    if not isinstance(found, list):
        raise EncoderError(f"{path}: must hold a list of results")
    return [r for r in found if _is_result(r)]


def _group(spec: dict[str, Any], name: str, folder: Path) -> dict[str, Any]:
    found = spec.get(name, {})
    if not isinstance(found, dict):
        raise EncoderError(f"{folder / 'spec.json'}: {name} must be an object")
    return found


def _is_result(result: Any) -> bool:
    if not isinstance(result, dict) or not {"encoder", "metric", "n"} <= result.keys():
        return False
    return isinstance(result.get("value"), int | float) and math.isfinite(result["value"])


def _object(path: Path) -> dict[str, Any]:
    found = _json(path, {})
    if not isinstance(found, dict):
        raise EncoderError(f"{path}: must hold an object")
    return found


def _json(path: Path, default: Any) -> Any:
    if not path.is_file():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise EncoderError(f"{path}: not JSON ({error})") from error


def _metrics(path: Path) -> list[dict[str, Any]]:
    """The lines by step; of a step that was logged twice (before and after a resume) the later line holds. A line cut short by a kill is left out."""
    if not path.is_file():
        return []
    lines = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            metric = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(metric, dict) or not isinstance(metric.get("step", 0), int | float):
            continue
        if not all(isinstance(metric.get(key, ""), str) for key in ("kind", "metric")):
            continue
        lines[(metric.get("kind"), metric.get("step"), metric.get("metric"))] = metric
    return sorted(lines.values(), key=lambda m: m.get("step", 0))


def flatten(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested settings."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
