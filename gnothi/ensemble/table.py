"""Combiners beside their members, the best member and the concatenation, on the same test rows, with paired intervals."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
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
from gnothi.evaluate.run import Split, chosen, measure, split, vectors_of

ALL = ("average", "concatenation", "pca", "whitened", "gcca", "procrustes", "descent", "amortised")
"""Combiners that are compared where none is named, beside every member and the best one."""
CHOSEN = "pca, power chosen"
"""On held-out training rows; beside it PCA is shown at all powers: of the concatenation, or of the only member."""
FIRST = ("best", "concatenation")
"""What all others are compared with."""
AS_TRAINED = "descent, codes as trained"
"""Training rows have the codes that the fit left them, test rows inferred ones: what happens where both are not inferred alike."""
Arm = tuple[str, dict[str, Any]]
"""A combiner and its settings."""


@distributed.together()
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
    cache: str | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> list[Result]:
    """Fit combiners on training rows, measure them on test rows.

    Args:
        encoders: the members.
        data: labelled images; combiners are fitted to the rows that train, never to test rows; labels enter choices by k-NN on held-out training rows
            only.
        test: as in ``evaluate.run``.
        combiners: names of ``COMBINERS``; "pca" is shown at every power of ``POWERS``, and at the chosen one, where its options name none.
        kind: "knn" or "linear".
        options: settings by combiner.
        protocol: options of the kind, such as k.
        settings: of the data, where it is named.
        seed: of all that is random.
        cache: folder of the stored features.
        device: where encoders compute.
        progress: told how many images of a member are embedded.

    Returns:
        The best member, the concatenation, each member, then the combiners. ``details`` hold width, exponent, seconds of the fit and seconds an
        image, and ``paired`` and ``paired_concatenation``: the differences to the first two with their intervals. Under ``torchrun`` each process
        embeds its share, the first one measures, and the others get no results.
    """
    arms = _arms(combiners, options or {})
    opened = [load(e, device) if isinstance(e, str) else e for e in encoders]
    rows, asked = split(data, test, settings, seed), chosen(kind, dict(protocol or {}))
    distributed.start(distributed.device_of(device))
    found = [[vectors_of(e, part, cache, progress) for e in opened] for part in (rows.train, rows.test)]
    if distributed.rank():
        return []
    train, rows = _whole(found[0], rows, "train")
    tested, rows = _whole(found[1], rows, "test")
    study = _Study(train, tested, rows, [e.name for e in opened], seed)
    members: dict[str, Arm] = {name: ("member", {"number": j}) for j, name in enumerate(study.names)}
    arms = {first: arms[first] for first in FIRST} | members | arms
    about: dict[str, dict[str, Any]] = {}
    return _against(measure(kind, study.combined(arms, about), rows, asked, seed), about)


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


def _whole(vectors: list[np.ndarray], rows: Split, side: str) -> tuple[Features, Split]:
    """Without the images that a member could not read."""
    found, whole = together(vectors)
    part = getattr(rows, side)
    return found, replace(rows, **{side: replace(part, rows=part.rows[whole], labels=part.labels[whole])})


@dataclass(frozen=True)
class _Study:
    """The features of the members on the same rows."""

    train: Features
    tested: Features
    rows: Split
    names: list[str]
    seed: int

    def fitted(self, combiner: str, settings: dict[str, Any]) -> Ensemble:
        groups, part = self.rows.train.source.groups, self.rows.train
        own = None if groups is None else groups[part.rows]
        return fit(self.train, combiner, seed=self.seed, labels=part.labels, groups=own, names=self.names, **settings)

    def combined(self, arms: dict[str, Arm], about: dict[str, dict[str, Any]]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Each arm's vectors of training and test rows; ``about`` hears of its fit."""
        made: Ensemble | None = None
        for name, (combiner, settings) in arms.items():
            if name != AS_TRAINED or made is None:  # it shares the fit of the one before
                made = self.fitted(combiner, settings)
            x, began = made.transform(self.train), time.monotonic()
            y = made.transform(self.tested)
            about[name] = {"combiner": combiner, "width": made.width, "exponent": made.record["exponent"], "seconds": made.record["seconds"]}
            if name == AS_TRAINED:
                about[name]["exponent"] = made.record["trained_exponent"]
            about[name]["seconds_an_image"] = (time.monotonic() - began) / len(y)
            yield name, (_as_trained(made, x) if name == AS_TRAINED else x).numpy(), y.numpy()


def _as_trained(made: Ensemble, codes: Tensor) -> Tensor:
    fitted: Any = made.fitted
    rows, trained = fitted.trained
    codes = codes.clone()
    codes[rows] = trained if fitted.finish is None else fitted.finish.transform([trained])
    return codes


def _against(results: list[Result], about: dict[str, dict[str, Any]]) -> list[Result]:
    """With what is known of each fit, and the difference to the second result beside the one to the first."""
    second = results[1]
    found = []
    for result in results:
        details = {**result.details, **about[result.encoder]}
        if result is not second and result.correct is not None and second.correct is not None:
            details["paired_concatenation"] = asdict(paired(result.correct, second.correct))
        found.append(replace(result, details=details))
    return found


def text(results: Sequence[Result]) -> str:
    """The table as plain text."""
    header = ["", "width", results[0].metric, "95 % interval", "less best (95 %)", "less concatenation (95 %)", "exponent", "fit s", "ms/image"]
    lines = [header, *(_line(r) for r in results)]
    wide = [max(len(line[i]) for line in lines) for i in range(len(header))]
    body = ["  ".join(cell.ljust(w) for cell, w in zip(line, wide, strict=True)).rstrip() for line in lines]
    return "\n".join([*body, "", *dict.fromkeys(r.protocol for r in results)])


def _line(r: Result) -> list[str]:
    differences = [r.details.get("paired"), r.details.get("paired_concatenation")]
    shown = ["" if d is None else f"{d['value']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})" for d in differences]
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
