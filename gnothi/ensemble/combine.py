"""Several members' features to one representation: the combiners by name, fitting, and what is fitted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gnothi.contracts import DataError, SettingError, Spec, did_you_mean
from gnothi.ensemble import closed
from gnothi.ensemble.amortised import Amortised, AmortisedSpec, amortised
from gnothi.ensemble.best import BestSpec, Known, best, powered
from gnothi.ensemble.descending import descent
from gnothi.ensemble.descent import Descent, DescentSpec
from gnothi.ensemble.fitting import Hears
from gnothi.ensemble.members import BLOCK, Features, Matrix, blocks, check, exponent, rows_of, some_rows, spectrum
from gnothi.recipes.spec import checked
from gnothi.training.checkpoint import digest

SAMPLE = 2000
"""Rows from which the exponent of a result is measured."""


class Fitted(Protocol):
    """What a combiner has fitted."""

    @property
    def width(self) -> int:
        """Numbers of a result."""

    def transform(self, features: Sequence[Tensor | None]) -> Tensor:
        """[N, D_j] a member to [N, width]; None stands for a missing one."""

    def tensors(self) -> dict[str, Tensor]:
        """All that was fitted, by name."""

    def about(self) -> dict[str, Any]:
        """The rest, as plain values; ``form`` says which class restores it."""


Fit = Callable[[Features, Any, Known], Fitted]


def _plain(fit: Callable[[Features, Any], Fitted]) -> Fit:
    return lambda features, spec, known: fit(features, spec)


COMBINERS: dict[str, tuple[type[Spec], Fit]] = {
    "average": (closed.AverageSpec, _plain(closed.average)),
    "concatenation": (closed.AverageSpec, _plain(closed.concatenation)),
    "pca": (closed.PCASpec, powered),
    "whitened": (closed.WhitenedSpec, _plain(closed.whitened)),
    "gcca": (closed.GCCASpec, _plain(closed.gcca)),
    "procrustes": (closed.ProcrustesSpec, _plain(closed.procrustes)),
    "member": (closed.MemberSpec, _plain(closed.member)),
    "best": (BestSpec, best),
    "descent": (DescentSpec, descent),
    "amortised": (AmortisedSpec, amortised),
}
FORMS: dict[str, Callable[[dict[str, Any], dict[str, Tensor], Any], Fitted]] = {
    "linear": closed.Linear.restore,
    "descent": Descent.restore,
    "amortised": Amortised.restore,
}
"""How each form of a fitted combiner is restored, from ``about``, ``tensors`` and the spec."""


class Ensemble:
    """A fitted combiner: features of the members it was fitted for go in, one representation comes out.

    Args:
        combiner: its name.
        spec: its settings.
        widths: D_j of each member.
        fitted: what was fitted.
        record: what is known of the fit: n, seconds, exponent and, for those that descend, losses.
    """

    def __init__(self, combiner: str, spec: Spec, widths: Sequence[int], fitted: Fitted, record: dict[str, Any]) -> None:
        self.combiner, self.spec, self.widths, self.fitted, self.record = combiner, spec, list(widths), fitted, record

    @property
    def width(self) -> int:
        """Numbers of a result."""
        return self.fitted.width

    @property
    def fingerprint(self) -> str:
        """Short hexadecimal digest of what was fitted and how."""
        about = torch.tensor(list(repr((self.combiner, self.spec.model_dump(mode="json"), self.fitted.about())).encode()), dtype=torch.uint8)
        return digest({"about": about, **{f"tensors.{k}": v for k, v in self.fitted.tensors().items()}})[:16]

    def transform(self, features: Sequence[Matrix | None], **options: Any) -> Tensor:
        """Combine the features of images.

        A row depends on no other row. Nothing is held beyond the result and a block of ``BLOCK`` rows.

        Args:
            features: [N, D_j] a member, in the order of the fit; None for a member that is missing.
            options: of the form: ``steps`` for those that descend.

        Returns:
            [N, width] on the CPU; float64 where the features are, float32 otherwise.

        Raises:
            DataError: they do not fit the members, or a number is not finite.
        """
        n = self._length(features)
        result: Tensor | None = None
        for part in blocks(n, BLOCK):
            rows = [None if x is None else rows_of(x, part) for x in features]
            if not all(torch.isfinite(x).all() for x in rows if x is not None):
                raise DataError(f"features must be finite numbers, among rows {part.start} to {part.stop - 1} some are not")
            done = self.fitted.transform(rows, **options)
            result = done.new_empty(n, self.width) if result is None else result
            result[part] = done
        return torch.empty(0, self.width) if result is None else result

    def _length(self, features: Sequence[Matrix | None]) -> int:
        if len(features) != len(self.widths):
            raise DataError(f"this ensemble has {len(self.widths)} members, got features of {len(features)}; None stands for a missing one")
        there = [x for x in features if x is not None]
        if not there:
            raise DataError("all members are missing; at least one is needed")
        for j, (x, wide) in enumerate(zip(features, self.widths, strict=True)):
            if x is not None and (x.ndim != 2 or x.shape[1] != wide or len(x) != len(there[0])):
                raise DataError(f"features of member {j} must be [{len(there[0])}, {wide}], got {list(x.shape)}")
        return len(there[0])


def fit(
    features: Features,
    combiner: str = "pca",
    *,
    seed: int = 0,
    labels: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    names: Sequence[str] | None = None,
    folder: Path | None = None,
    hears: Hears | None = None,
    **settings: Any,
) -> Ensemble:
    """Fit a combiner to training features.

    Every member's features are brought to unit length first, whatever their scale; then the combiner centres them where it says so.

    Args:
        features: [N, D_j] a member, of the same images in the same order; also memory-mapped.
        combiner: a name of ``COMBINERS``.
        seed: of all that is random.
        labels: [N], -1 for none; only ``best`` looks at them.
        groups: [N], of rows that a hold-out does not divide.
        names: of the members, for errors.
        folder: where a fit that descends keeps its state, for this fit alone: called again with the same arguments, it goes on. Codes then lie there
            in shards; None holds all of them in memory.
        hears: told the steps done, all steps, and the mean loss of the last one, where a fit descends.
        settings: of the combiner.

    Raises:
        SettingError: there is no such combiner or setting.
        DataError: the features cannot be members of one ensemble.
    """
    spec = settings_of(combiner, settings)
    check(features, names or [f"member {j}" for j in range(len(features))])
    began = time.monotonic()
    fitted = COMBINERS[combiner][1](features, spec, Known(seed, None if labels is None else np.asarray(labels), groups, folder, hears))
    seconds = time.monotonic() - began
    made = Ensemble(combiner, spec, closed.widths(features), fitted, {"n": len(features[0]), "seed": seed, "seconds": seconds})
    made.record |= {"exponent": _exponent(made, features, seed), **getattr(fitted, "log", {})}
    return made


def settings_of(combiner: str, settings: dict[str, Any]) -> Spec:
    """The checked settings of a combiner.

    Raises:
        SettingError: there is no such combiner or setting.
    """
    if combiner not in COMBINERS:
        raise SettingError(f"combiner must be one of {', '.join(COMBINERS)}, got {combiner!r}; {did_you_mean(combiner, COMBINERS)}")
    return checked(COMBINERS[combiner][0], settings, combiner)


def _exponent(made: Ensemble, features: Features, seed: int) -> float | None:
    """The power of the spectrum, from drawn rows: the first ones may be of a few classes. None where there is none to speak of."""
    drawn = some_rows(len(features[0]), SAMPLE, seed, "ensemble exponent")
    few = [rows_of(x, drawn) for x in features]
    found = exponent(made.transform(few), spectrum(few))
    return found if math.isfinite(found) else None
