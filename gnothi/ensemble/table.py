"""Combiners beside their members, the best member and the concatenation, on the same test rows, with paired intervals."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from gnothi import distributed
from gnothi.contracts import SettingError, Source
from gnothi.data import DataSpec
from gnothi.encoders import Encoder, load
from gnothi.encoders.encoder import Progress
from gnothi.ensemble.best import POWERS
from gnothi.ensemble.combine import Ensemble, fit, settings_of
from gnothi.ensemble.members import Features, together
from gnothi.evaluate import Result, paired
from gnothi.evaluate.run import Part, Split, chosen, measure, split, vectors_of

ALL = ("average", "concatenation", "pca", "whitened", "gcca", "procrustes", "descent", "amortised")
"""Combiners that are compared where none is named, beside every member and the best one."""
CHOSEN = "pca, power chosen"
"""On held-out training rows; beside it PCA is shown at all powers: of the concatenation, or of the only member."""
FIRST = ("best", "concatenation")
"""What all others are compared with."""
PAIRED = {"paired": FIRST[0], "paired_concatenation": FIRST[1], "paired_chosen": CHOSEN}
"""By the name that the difference has in ``details``; the last one is the control of equal width."""
AS_TRAINED = "descent, codes as trained"
"""Training rows have the codes that the fit left them, test rows inferred ones: what happens where both are not inferred alike."""
Arm = tuple[str, dict[str, Any]]
"""A combiner and its settings."""


Measure = tuple[str, dict[str, Any]]
"""A kind, "knn" or "linear", and its options."""


def compare(
    encoders: Sequence[str | Encoder],
    data: str | Source,
    test: str | Source | None = None,
    combiners: Sequence[str] = ALL,
    *,
    kind: str = "knn",
    options: dict[str, dict[str, Any]] | None = None,
    protocol: dict[str, Any] | None = None,
    settings: DataSpec = DataSpec(),  # noqa: B008
    seed: int = 0,
    fitted_to: Part | None = None,
    cache: str | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> list[Result]:
    """Fit combiners on training rows, measure them on test rows.

    Args:
        encoders: the members.
        data: labelled images; combiners are fitted to the rows that train, never to test rows; labels enter choices by k-NN on held-out training rows
            only: by k and temperature of the protocol where that is k-NN's and ``options`` say no others.
        test: as in ``evaluate.run``.
        combiners: names of ``COMBINERS``; "pca" is shown at every power of ``POWERS``, and at the chosen one, where its options name none.
        kind: "knn" or "linear".
        options: settings by combiner.
        protocol: options of the kind, such as k.
        settings: of the data, where it is named.
        seed: of all that is random.
        fitted_to: other rows of ``evaluate.run.split``, to which all is fitted instead: maps from elsewhere, frozen.
        cache: folder of the stored features.
        device: where encoders compute.
        progress: told how many images of a member are embedded.

    Returns:
        The best member, the concatenation, each member, then the combiners. ``details`` hold width, exponent, seconds of the fit and seconds an
        image, and ``paired``, ``paired_concatenation`` and ``paired_chosen``: the differences to the first two and to PCA by the chosen power, with
        their intervals. Under ``torchrun`` each process embeds its share, the first one measures, and the others get no results.
    """
    more: dict[str, Any] = {"options": options, "settings": settings, "seed": seed, "fitted_to": fitted_to, "cache": cache, "device": device}
    found = compare_by([(kind, protocol or {})], encoders, data, test, combiners, progress=progress, **more)
    return found[0] if found else []


@distributed.together()
def compare_by(
    measures: Sequence[Measure],
    encoders: Sequence[str | Encoder],
    data: str | Source,
    test: str | Source | None = None,
    combiners: Sequence[str] = ALL,
    *,
    options: dict[str, dict[str, Any]] | None = None,
    settings: DataSpec = DataSpec(),  # noqa: B008
    seed: int = 0,
    fitted_to: Part | None = None,
    cache: str | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> list[list[Result]]:
    """Several measures (kinds with their options) of the same fits, the results of each as ``compare`` gives them, and all else as there.

    Only what is chosen by k-NN is fitted for each measure.
    """
    arms = _arms(combiners, options or {})
    opened = [load(e, device) if isinstance(e, str) else e for e in encoders]
    rows, asked = split(data, test, settings, seed), [(kind, chosen(kind, dict(protocol))) for kind, protocol in measures]
    distributed.start(distributed.device_of(device))
    parts = [rows.train, rows.test, *([] if fitted_to is None else [fitted_to])]
    found = [[vectors_of(e, part, cache, progress) for e in opened] for part in parts]
    if distributed.rank():
        return []
    train, rows = _whole(found[0], rows, "train")
    tested, rows = _whole(found[1], rows, "test")
    base, own = (train, rows.train) if fitted_to is None else _readable(found[2], fitted_to)
    study = _Study(base, own, train, tested, rows, [e.name for e in opened], seed)
    members: dict[str, Arm] = {name: ("member", {"number": j}) for j, name in enumerate(study.names)}
    arms = {first: arms[first] for first in FIRST} | members | {name: arm for name, arm in arms.items() if fitted_to is None or name != AS_TRAINED}
    results: list[list[Result]] = [[] for _ in asked]
    for name, arm in arms.items():
        for i, x, y, about in study.combined(name, arm, asked):
            (result,) = measure(asked[i][0], [(name, x, y)], rows, asked[i][1], seed)
            results[i].append(replace(result, details={**result.details, **about}))
    return [_against(of) for of in results]


def _arms(combiners: Sequence[str], options: dict[str, dict[str, Any]]) -> dict[str, Arm]:
    """What is compared by the name that it has in the table: the combiner and its settings."""
    unknown = next((c for c in options if c not in (*combiners, *FIRST)), None)
    if unknown is not None:
        raise SettingError(f"settings of {unknown} have no effect: it is not compared; compared are {', '.join(combiners)}")
    arms: dict[str, Arm] = {first: (first, options.get(first, {})) for first in FIRST}
    for combiner in combiners:
        given = options.get(combiner, {})
        settings_of(combiner, given)
        if combiner == "pca" and "power" not in given:
            arms |= {f"pca {p:g}": (combiner, {**given, "power": p}) for p in POWERS}
            arms[CHOSEN] = (combiner, {**given, "power": "holdout"})
        else:
            arms[combiner] = (combiner, given)
        if combiner == "descent":
            arms[AS_TRAINED] = (combiner, given)
    return arms


def _readable(vectors: list[np.ndarray], part: Part) -> tuple[Features, Part]:
    """Without the images that a member could not read."""
    found, whole = together(vectors)
    return found, replace(part, rows=part.rows[whole], labels=part.labels[whole])


def _whole(vectors: list[np.ndarray], rows: Split, side: str) -> tuple[Features, Split]:
    """The same of a side."""
    found, part = _readable(vectors, getattr(rows, side))
    changed: dict[str, Any] = {side: part}
    return found, replace(rows, **changed)


@dataclass
class _Study:
    """The features of the members on the same rows."""

    base: Features
    """To which all is fitted."""
    own: Part
    """Their rows."""
    train: Features
    tested: Features
    rows: Split
    names: list[str]
    seed: int
    last: Ensemble | None = None
    """The fit before, which ``AS_TRAINED`` shares."""

    def fitted(self, combiner: str, settings: dict[str, Any]) -> Ensemble:
        groups = self.own.source.groups
        groups = None if groups is None else groups[self.own.rows]
        return fit(self.base, combiner, seed=self.seed, labels=self.own.labels, groups=groups, names=self.names, **settings)

    def combined(self, name: str, arm: Arm, asked: Sequence[Measure]) -> Iterator[tuple[int, np.ndarray, np.ndarray, dict[str, Any]]]:
        """For each measure its number, the arm's vectors of training and test rows, and what is known of the fit; one fit where none is a choice."""
        combiner, settings = arm
        choice = combiner == "best" or settings.get("power") == "holdout"
        for i, (kind, protocol) in enumerate(asked):
            if i == 0 or choice:
                said = {k: protocol[k] for k in ("k", "temperature") if k in protocol} if choice and kind == "knn" else {}
                x, y, about = self._vectors(name, combiner, said | settings)
            yield i, x, y, about

    def _vectors(self, name: str, combiner: str, settings: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        made = self.last if name == AS_TRAINED and self.last is not None else self.fitted(combiner, settings)
        self.last = made
        x, began = made.transform(self.train), time.monotonic()
        y = made.transform(self.tested)
        about = {"combiner": combiner, "width": made.width, "exponent": made.record["exponent"], "seconds": made.record["seconds"]}
        about["seconds_an_image"] = (time.monotonic() - began) / len(y)
        if name == AS_TRAINED:
            about["exponent"], x = made.record["trained_exponent"], _as_trained(made, x)
        return x.numpy(), y.numpy(), about


def _as_trained(made: Ensemble, codes: Tensor) -> Tensor:
    fitted: Any = made.fitted
    rows, trained = fitted.trained
    codes = codes.clone()
    codes[rows] = trained if fitted.finish is None else fitted.finish.transform([trained])
    return codes


def _against(results: list[Result]) -> list[Result]:
    """With the differences to what all others are compared with."""
    by_name = {r.encoder: r for r in results}
    found = []
    for result in results:
        details = dict(result.details)
        for key, name in PAIRED.items():
            other = by_name.get(name)
            if other is not None and other is not result and result.correct is not None and other.correct is not None:
                details[key] = {"against": name, **asdict(paired(result.correct, other.correct))}
        found.append(replace(result, details=details))
    return found


def text(results: Sequence[Result]) -> str:
    """The table as plain text."""
    differences = {key: name for key, name in PAIRED.items() if any(key in r.details for r in results)}
    minus = [f"minus {name} (95 %)" for name in differences.values()]
    header = ["", "width", results[0].metric, "95 % interval", *minus, "exponent", "fit s", "ms/image"]
    lines = [header, *(_line(r, differences) for r in results)]
    wide = [max(len(line[i]) for line in lines) for i in range(len(header))]
    body = ["  ".join(cell.ljust(w) for cell, w in zip(line, wide, strict=True)).rstrip() for line in lines]
    return "\n".join([*body, "", *dict.fromkeys(r.protocol for r in results)])


def _line(r: Result, differences: Iterable[str]) -> list[str]:
    found = [r.details.get(key) for key in differences]
    shown = ["" if d is None else f"{d['value']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})" for d in found]
    d = r.details
    return [
        r.encoder,
        str(d["width"]),
        f"{r.value:.3f}",
        f"{r.low:.3f} to {r.high:.3f}",
        *shown,
        "-" if d["exponent"] is None else f"{d['exponent']:.2f}",
        f"{d['seconds']:.1f}",
        f"{1000 * d['seconds_an_image']:.3f}",
    ]
