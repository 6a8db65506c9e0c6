"""The arms of a comparison: every method with every set of auxiliaries and every varied setting."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from gnothi.auxiliary import AUXILIARIES
from gnothi.contracts import SettingError, did_you_mean
from gnothi.methods import METHODS
from gnothi.recipes.spec import flat, merge, names, nested

NOTHING = "none"
"""The name of the empty set of auxiliaries."""
SAID = {"seed": "--seeds, how many (0, 1, 2, ...)", "method.name": "--methods", "data.name": "DATA"}
"""Settings that an argument of the comparison decides."""


@dataclass(frozen=True)
class Arm:
    """One thing that is compared: all settings of a run but its seed."""

    name: str
    """Such as ``simclr+rotation,optimiser.lr=0.1``; runs are called by it."""
    settings: dict[str, Any]
    """Nested."""


def arms(methods: Sequence[str], auxiliaries: Sequence[str], settings: Mapping[str, Any], vary: Mapping[str, Sequence[Any]]) -> list[Arm]:
    """Every arm, by method, then set of auxiliaries, then varied settings.

    A setting of a method or of an auxiliary goes to the arms that have it, any other one to all.

    Args:
        methods: names.
        auxiliaries: sets of names joined by +, or "none".
        settings: nested settings of all arms.
        vary: dotted settings with the values to try; each multiplies the arms that have it.

    Raises:
        SettingError: a name or setting is unknown or said twice.
    """
    for method in methods:
        if method not in METHODS:
            raise SettingError(f"--methods: no such method {method!r}; {did_you_mean(method, METHODS)}")
    sets = [_set(text) for text in auxiliaries]
    given = flat(settings)
    _check([*given, *vary], methods, sets)
    for key in (key for key, values in vary.items() if not values):
        raise SettingError(f"--vary: {key} needs at least one value")
    found = []
    for method, beside in product(methods, sets):
        own = {key: values for key, values in vary.items() if _concerns(key, method, beside)}
        common = [(key, value) for key, value in given.items() if _concerns(key, method, beside)]
        for chosen in product(*own.values()):
            varied = list(zip(own, chosen, strict=True))
            name = "+".join([method, *beside]) + "".join(f",{_label(key, value)}" for key, value in varied)
            base = {"method": {"name": method}, "auxiliary": {auxiliary: {} for auxiliary in beside}}
            found.append(Arm(name, _merged([*common, *varied], base)))
    if not found:
        raise SettingError("a comparison needs at least one method and one set of auxiliaries")
    _differ([arm.name for arm in found])
    return found


def _set(text: str) -> tuple[str, ...]:
    """The auxiliaries of ``rotation+layers``."""
    if text == NOTHING:
        return ()
    beside = tuple(text.split("+"))
    if NOTHING in beside:
        raise SettingError(f"--auxiliaries: {text} names something beside none, the empty set; {NOTHING} stands alone")
    for name in beside:
        if name not in AUXILIARIES:
            raise SettingError(f"--auxiliaries: no such auxiliary {name!r}; {did_you_mean(name, [*AUXILIARIES, NOTHING])}")
    if len(set(beside)) < len(beside):
        raise SettingError(f"--auxiliaries: {text} names an auxiliary twice")
    return beside


def _check(keys: Iterable[str], methods: Sequence[str], sets: Sequence[tuple[str, ...]]) -> None:
    """Refuse a setting that no arm has, and one that an argument decides."""
    there = {name for beside in sets for name in beside}
    known = {key for method in methods for key in names({"method": {"name": method}})}
    known = {key for key in known if not key.startswith("auxiliary.") or key.split(".")[1] in there}
    for key in keys:
        if key in SAID:
            raise SettingError(f"{key} is said by {SAID[key]}; leave it out of --set and --vary")
        if not any(key == k or key.startswith(f"{k}.") for k in known):
            raise SettingError(f"{key}: no arm has such a setting; {did_you_mean(key, sorted(known - set(SAID)))}")


def _concerns(key: str, method: str, beside: tuple[str, ...]) -> bool:
    group, _, rest = key.partition(".")
    first = rest.partition(".")[0]
    return first in METHODS[method][0].model_fields if group == "method" else group != "auxiliary" or first in beside


def _label(key: str, value: Any) -> str:
    """A varied setting as part of a folder's name."""
    short = key.removeprefix("auxiliary.").removeprefix("method.")
    return re.sub(r"[^\w.+=-]+", "_", f"{short}={typed(value)}").strip("_")


def _merged(pairs: Iterable[tuple[str, Any]], under: dict[str, Any]) -> dict[str, Any]:
    for key, value in pairs:
        under = merge(under, nested(key, value))
    return under


def _differ(called: list[str]) -> None:
    twice = next((name for name in called if called.count(name) > 1), None)
    if twice is not None:
        raise SettingError(f"two arms are called {twice}; name each method, set and value once")


def typed(value: Any) -> str:
    """A value of a setting as a person types it."""
    return value if isinstance(value, str) else json.dumps(value)
