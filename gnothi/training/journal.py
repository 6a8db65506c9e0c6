"""The lines of metrics of a run: means since the last line, health, evaluations; to the run's folder, the display and wherever else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gnothi import distributed
from gnothi.contracts import RunError
from gnothi.files import write_text
from gnothi.training import checkpoint
from gnothi.training.progress import Progress, Silent


class Journal:
    """Keeps sums on the device between lines, so that no step waits for a number.

    Args:
        folder: the run's; None keeps nothing.
        per_epoch: steps of an epoch.
        sinks: hear every line too.
    """

    def __init__(self, folder: Path | None, per_epoch: int, sinks: Sequence[Callable[[dict[str, Any]], None]] = ()) -> None:
        self.folder, self.per_epoch, self.sinks = folder, per_epoch, sinks
        self.progress: Progress = Silent()
        self.window: dict[str, Tensor] = {}
        self.busy = self.waited = 0.0
        self.timed = 0
        """Steps whose seconds ``busy`` holds: after a resume fewer than the window has."""

    def note(self, terms: dict[str, Tensor], seconds: float) -> None:
        """Add a step to the sums."""
        for name, value in (terms | {"steps": torch.ones(())}).items():
            self.window[name] = self.window[name] + value.detach() if name in self.window else value.detach().clone()
        self.busy, self.timed = self.busy + seconds, self.timed + 1

    def sums(self, step: int) -> dict[str, Tensor]:
        """The sums as a checkpoint keeps them, over all processes, which must ask together.

        Raises:
            RunError: one is not finite. On a GPU nobody may have looked since the last line, and a checkpoint must be one to go on from.
        """
        found = {k: v if k == "steps" else distributed.mean(v) for k, v in self.window.items()}
        self.refuse({k: float(v) for k, v in found.items()}, step)
        return found

    def means(self, step: int, images: int, waited: float) -> dict[str, Any]:
        """Means since the last line, over all processes, and how fast it went; the sums begin anew.

        Args:
            step: steps done.
            images: of a step, over all processes.
            waited: seconds spent waiting for images since the run began.

        Raises:
            RunError: a term is not finite.
        """
        n = float(self.window.pop("steps"))
        means = {k: float(distributed.mean(v)) / n for k, v in self.window.items()}
        self.refuse(means, step)
        busy, share = max(self.busy, 1e-9), waited - self.waited
        rate = {"images_per_second": round(images * self.timed / busy, 1), "waiting": round(share / busy, 4)}
        self.window, self.busy, self.timed, self.waited = {}, 0.0, 0, waited
        return {"gradient_norm": means.pop("gradient_norm"), "terms": means, **rate}

    def refuse(self, values: dict[str, float], step: int) -> None:
        """Stop at a value that is not finite, and name it and the last good checkpoint."""
        for name, value in values.items():
            if not math.isfinite(value):
                saved = checkpoint.newest(self.folder) if self.folder else None
                last = f"last checkpoint: {saved}" if saved else "no checkpoint yet"
                raise RunError(f'term "{name}" became {value} at step {step}; lower optimiser.lr or set training.clip; {last}')

    def write(self, kind: str, step: int, seconds: float, line: dict[str, Any]) -> None:
        """Append a line, and show it."""
        line = {"kind": kind, "step": step, "epoch": step / self.per_epoch, "seconds": round(seconds, 3), **line}
        if kind == "train":
            self.progress.update(step, line)
        if kind == "evaluation":
            self.progress.update(step, {line["metric"]: line["value"]})
        if self.folder is not None and distributed.rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            for sink in self.sinks:
                sink(line)

    def cut(self, step: int) -> None:
        """Drop the lines behind a step: those of work that was lost."""
        if self.folder is not None and distributed.rank() == 0:
            metrics = self.folder / "metrics.jsonl"
            lines = metrics.read_text(encoding="utf-8", errors="replace").splitlines() if metrics.exists() else []
            write_text(metrics, "".join(f"{line}\n" for line in lines if _step_of(line) <= step))


def _step_of(line: str) -> float:
    """The step of a line of metrics; a line that a kill cut short, or that is something else, counts as not written."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return math.inf
