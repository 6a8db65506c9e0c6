"""Pure functions of progress in [0, 1], and durations with a unit turned into steps."""

from __future__ import annotations

import math
import re

from gnothi.contracts import SettingError


def cosine(progress: float, start: float, end: float) -> float:
    """Half a cosine from ``start`` at 0 to ``end`` at 1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def linear(progress: float, start: float, end: float, until: float = 1.0) -> float:
    """A line from ``start`` at 0 to ``end`` at ``until``, flat afterwards."""
    return end if progress >= until or until <= 0 else start + (end - start) * progress / until


def warm_up_cosine(progress: float, warm_up: float, peak: float, end: float = 0.0) -> float:
    """A line from 0 to ``peak`` over the first ``warm_up`` of progress, then half a cosine to ``end``."""
    if progress < warm_up:
        return peak * progress / warm_up
    return cosine((progress - warm_up) / max(1 - warm_up, 1e-12), peak, end)


_DURATION = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*(steps?|epochs?|%)\s*")


def interval(duration: str, per_epoch: int, total: int, *, setting: str = "interval") -> int:
    """As ``steps``, for what is done again and again: at least one step.

    Raises:
        SettingError: it cannot be read, or it is nothing.
    """
    found = steps(duration, per_epoch, total, setting=setting)
    if not found and not float(re.sub(r"[^0-9.]", "", duration)):
        raise SettingError(f'{setting} must be more than 0, got {duration!r}; "100%" means at the end only')
    return max(1, found)


def steps(duration: str, per_epoch: int, total: int, *, setting: str = "duration") -> int:
    """Turn "500 steps", "10 epochs" or "5%" (of the run) into a number of steps.

    Args:
        duration: a number and its unit.
        per_epoch: steps of an epoch.
        total: steps of the run.
        setting: the name to use in the error.

    Raises:
        SettingError: it cannot be read.
    """
    match = _DURATION.fullmatch(duration)
    if match is None:
        raise SettingError(f'{setting} must be a number with a unit, like "10 epochs", "500 steps" or "5%", got {duration!r}')
    value, unit = float(match[1]), match[2]
    if unit == "%":
        return round(value / 100 * total)
    return round(value * per_epoch) if unit.startswith("epoch") else round(value)
