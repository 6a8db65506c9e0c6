"""What every arm costs, measured before the first one trains; and how many steps of each fill the same time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gnothi import pretrain
from gnothi.contracts import SettingError
from gnothi.recipes.resolve import Resolved

SHARE, LEAST, MOST = 0.02, 6, 60
"""An arm is timed for this share of its budget, in no fewer and no more steps."""


@dataclass(frozen=True)
class Budget:
    """How long an arm trains, and how long that should take."""

    epochs: float
    steps: int
    seconds: float
    """Predicted, of one run: steps, health and k-NN along the way."""
    step_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "epochs": self.epochs,
            "steps": self.steps,
            "planned_seconds": round(self.seconds, 3),
            "step_seconds": round(self.step_seconds, 6),
        }


def measure(resolved: Resolved, seconds: float | None = None) -> Budget:
    """Time an arm by a few steps, of which nothing is kept.

    Args:
        resolved: the arm.
        seconds: the time it may take; its own epochs where None.

    Raises:
        SettingError: not one step fits into the time.
    """
    cost = pretrain.plan(resolved, LEAST)
    if seconds is None:
        return Budget(resolved.spec.training.epochs or 1, cost["steps"], cost["seconds"], cost["step_seconds"])
    longer = round(SHARE * seconds / cost["step_seconds"])
    if longer > LEAST:
        cost = pretrain.plan(resolved, min(MOST, longer))
    return within(seconds, cost, resolved.per_epoch)


def within(seconds: float, cost: Mapping[str, Any], per_epoch: int) -> Budget:
    """The most steps that fit into a time.

    Args:
        seconds: the time, of training with its health and k-NN along the way, whose cost does not grow with the steps.
        cost: as ``pretrain.plan`` gives it.
        per_epoch: steps of an epoch.
    """
    fixed = cost["seconds"] - cost["step_seconds"] * cost["steps"]
    steps = int((seconds - fixed) / cost["step_seconds"] + 1e-9)
    if steps < 1:
        least = fixed + cost["step_seconds"]
        raise SettingError(f"--seconds must be enough for one step, its health and its k-NN, {least:.3g} s, got {seconds:g}")
    return Budget(steps / per_epoch, steps, fixed + steps * cost["step_seconds"], cost["step_seconds"])
