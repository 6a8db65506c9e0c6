"""What every arm costs, measured before the first one trains; and how many steps of each fill the same time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gnothi.contracts import SettingError
from gnothi.plan import plan
from gnothi.recipes.resolve import Resolved

STEPS = 8
"""Of a look at an arm; the first two warm up."""
ROUNDS = 3
"""Looks at every arm where time must be equal, the arms in turn: what else the machine does then meets all of them alike."""


@dataclass(frozen=True)
class Cost:
    """What a look at an arm found."""

    epochs: float
    """Of the arm's own settings."""
    steps: int
    """In these."""
    per_epoch: int
    step_seconds: float
    fixed_seconds: float
    """Of health and k-NN along the way, which do not grow with the steps."""


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


def look(resolved: Resolved) -> Cost:
    """Build an arm and take a few steps, of which nothing is kept."""
    cost = plan(resolved, STEPS)
    fixed = cost["seconds"] - cost["step_seconds"] * cost["steps"]
    return Cost(resolved.spec.training.epochs or 1, cost["steps"], resolved.per_epoch, cost["step_seconds"], fixed)


def budget(looks: Sequence[Cost], seconds: float | None = None) -> Budget:
    """How long an arm trains: its own epochs, or the most steps that fit into a time.

    Args:
        looks: at the arm; the fastest counts, for other work on the machine only ever adds.
        seconds: the time, with health and k-NN along the way; None for the arm's own epochs.

    Raises:
        SettingError: not one step fits into the time.
    """
    own, step, fixed = looks[0], min(c.step_seconds for c in looks), min(c.fixed_seconds for c in looks)
    if seconds is None:
        return Budget(own.epochs, own.steps, fixed + own.steps * step, step)
    steps = int((seconds - fixed) / step + 1e-9)
    if steps < 1:
        raise SettingError(f"--seconds must be enough for one step, health and k-NN along the way, {fixed + step:.3g} s, got {seconds:g}")
    return Budget(steps / own.per_epoch, steps, fixed + steps * step, step)
