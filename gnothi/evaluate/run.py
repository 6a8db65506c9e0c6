"""Measure encoders by name on data by name: splits, features, classifier, intervals and paired differences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from gnothi import distributed
from gnothi.contracts import DataError, SettingError, Source, did_you_mean
from gnothi.data import DataSpec, holdout, splits
from gnothi.data import open as open_data
from gnothi.encoders import Encoder, features, load
from gnothi.encoders.encoder import Progress
from gnothi.evaluate import nearest
from gnothi.evaluate.linear import Rows
from gnothi.evaluate.linear import check as check_linear
from gnothi.evaluate.linear import predict as predict_linear
from gnothi.evaluate.result import Predictions, Result, accuracy, against

FRACTION = 0.2
"""Held out for testing where the data has no split of its own."""


@dataclass(frozen=True)
class Part:
    """Labelled rows of a source."""

    source: Source
    rows: np.ndarray
    """[N] int64."""
    labels: np.ndarray
    """[N] int64, numbered over the classes of both parts."""
    words: str


@dataclass(frozen=True)
class Split:
    """Which rows train and which test."""

    train: Part
    test: Part
    names: tuple[str, ...]
    """The classes of both."""
    words: str
    """Where they come from."""


@distributed.together()
def run(
    kind: str,
    encoders: Sequence[str | Encoder],
    data: str | Source,
    test: str | Source | None = None,
    *,
    settings: DataSpec = DataSpec(),  # noqa: B008
    seed: int = 0,
    cache: str | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> list[Result]:
    """Measure encoders on the same rows.

    Args:
        kind: "knn" or "linear".
        encoders: names, or encoders; the first is the one that the others are compared with.
        data: what to train the classifier on; where it has test rows of its own and names no split, they are the test.
        test: what to test on. By default the data's own test split, else a part held out of ``data`` by ``seed``, by class and never through a group.
        settings: of the data, where it is named.
        seed: of every choice: the held-out parts, weights and order of "sgd".
        cache: folder of the stored features; see ``encoders.features``.
        device: where encoders compute.
        progress: told how many images of an encoder are embedded.
        options: of the kind: k, temperature, distance or preset; protocol and fraction.

    Returns:
        One result an encoder, in order. ``details["paired"]`` of all but the first: the difference to the first with its interval. Under
        ``torchrun`` each process embeds its share and searches its share of the neighbours; the first one alone fits and gets results.

    Raises:
        SettingError: there is no such kind or option.
        DataError: there are no labels, or too few rows.
        EncoderError: an encoder cannot be opened or does not take such images.
    """
    if kind not in KINDS:
        raise SettingError(f"evaluate must be {' or '.join(KINDS)}, got {kind!r}; {did_you_mean(kind, KINDS)}")
    options = chosen(kind, options)
    opened = [load(e, device) if isinstance(e, str) else e for e in encoders]
    rows = split(data, test, settings, seed)
    distributed.start(distributed.device_of(device))  # a wrong name is said before processes wait for each other
    vectors: Iterable[tuple[str, np.ndarray, np.ndarray]] = (
        (e.name, vectors_of(e, rows.train, cache, progress), vectors_of(e, rows.test, cache, progress)) for e in opened
    )
    if distributed.world() > 1:
        vectors = list(vectors)  # memory-mapped; nobody waits for the first process while it measures
    if distributed.rank() and kind not in SHARED:
        return []
    results = measure(kind, vectors, rows, options, seed, shared=True)
    return [] if distributed.rank() else results


def measure(
    kind: str, vectors: Iterable[tuple[str, np.ndarray, np.ndarray]], rows: Split, options: dict[str, Any], seed: int, *, shared: bool = False
) -> list[Result]:
    """Measure vectors of the same rows; the first ones are what the others are compared with.

    Args:
        kind: one of ``KINDS``.
        vectors: an encoder's name, its vectors of the training rows [N, D] and of the test rows [M, D]; NaN where an image cannot be read.
        rows: which rows these are.
        options: as ``chosen`` gave them.
        seed: of every choice.
        shared: all processes measure, and those kinds that can be divided are.
    """
    results: list[Result] = []
    first: tuple[str, np.ndarray, np.ndarray] | None = None
    for name, x, y in vectors:
        good, whole = ~np.isnan(x[:, 0]), ~np.isnan(y[:, 0])
        predictions, protocol, details = KINDS[kind](
            _Task(x if good.all() else x[good], y if whole.all() else y[whole], rows.train, rows.test, good, whole, rows.names, seed, shared), options
        )
        if not (good.all() and whole.all()):
            protocol += f", {(~good).sum() + (~whole).sum()} unreadable images left out"
        if first is None:
            first = name, rows.test.rows[whole], predictions.correct
        else:
            details["paired"] = against(first, rows.test.rows[whole], predictions.correct)
        results.append(accuracy(kind, predictions, f"{protocol}; {rows.words}", encoder=name, seeds=(seed,), **details))
    return results


def vectors_of(encoder: Encoder, part: Part, cache: str | None, progress: Progress | None) -> np.ndarray:
    """[N, D] of the rows of a part, from the store of features."""
    vectors = features(encoder, part.source, cache=cache, progress=progress, shared=True)
    vectors = vectors if len(part.rows) == len(vectors) else vectors[part.rows]  # all of them stay on the disk
    if np.isnan(vectors[:, 0]).all():
        raise DataError(f"none of the {len(part.rows)} images of {part.words} can be read, the first is {part.source.name(int(part.rows[0]))}")
    return vectors


# ---- the kinds -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Task:
    x: np.ndarray
    y: np.ndarray
    train: Part
    test: Part
    good: np.ndarray
    """Readable rows of ``train``."""
    whole: np.ndarray
    """Readable rows of ``test``."""
    names: tuple[str, ...]
    seed: int
    shared: bool

    @property
    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        return self.train.labels[self.good], self.test.labels[self.whole]

    @property
    def same(self) -> bool:
        return self.train.source.fingerprint() == self.test.source.fingerprint() and np.array_equal(self.train.rows, self.test.rows)


def _knn(task: _Task, options: dict[str, Any]) -> tuple[Predictions, str, dict[str, Any]]:
    known, asked = task.labels
    predictions, protocol = nearest.predict(task.x, known, task.y, asked, leave_one_out=task.same, names=task.names, shared=task.shared, **options)
    return predictions, protocol, {}


def _linear(task: _Task, options: dict[str, Any]) -> tuple[Predictions, str, dict[str, Any]]:
    if task.same:
        raise DataError(f"{task.train.words} is both training and test data; a linear classifier would only be asked what it was told")
    known, asked = task.labels
    groups = None if task.train.source.groups is None else task.train.source.groups[task.train.rows][task.good]
    return predict_linear(task.x, known, task.y, asked, groups=groups, seed=task.seed, names=task.names, **options)


KINDS: dict[str, Callable[[_Task, dict[str, Any]], tuple[Predictions, str, dict[str, Any]]]] = {"knn": _knn, "linear": _linear}
SHARED = ("knn",)
"""Kinds whose work processes divide."""
CHECKS: dict[str, Callable[..., None]] = {"knn": nearest.check, "linear": check_linear}
OPTIONS: dict[str, tuple[str, ...]] = {"knn": ("k", "temperature", "distance", "preset", "memory"), "linear": ("protocol", "fraction")}


def chosen(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """What is said of a kind's options, a preset spelled out; SettingError where it cannot be."""
    for word in options:
        if word not in OPTIONS[kind]:
            raise SettingError(f"{word}: {kind} has no such option; {did_you_mean(word, OPTIONS[kind])}")
    named = options.get("preset")
    given = {k: v for k, v in options.items() if k != "preset" and v is not None}
    given = given if named is None else asdict(nearest.preset(named)) | given
    CHECKS[kind](**given)
    return given


# ---- the rows ------------------------------------------------------------------------------------
def split(data: str | Source, test: str | Source | None, settings: DataSpec, seed: int) -> Split:
    """Training and test rows as ``run`` chooses them."""
    rows = _parts(data, test, settings, seed)
    if rows.train.source.channels != rows.test.source.channels:
        raise DataError(
            f"images that answer and images that ask must have the same channels, got {rows.train.source.channels} and {rows.test.source.channels}"
        )
    return rows


def _parts(data: str | Source, test: str | Source | None, settings: DataSpec, seed: int) -> Split:
    source, title = _open(data, settings), data if isinstance(data, str) else "the source"
    if test is None and isinstance(data, str) and own_test(data, settings):
        test = f"{data}@{own_test(data, settings)}"
        title = f"{data}@train"
    if test is not None:
        other, other_title = _open(test, settings), test if isinstance(test, str) else "the test source"
        names = _classes(source, other)
        train = _labelled(source, np.arange(len(source)), names, title)
        tested = _labelled(other, np.arange(len(other)), names, other_title)
        return Split(train, tested, names, f"trained on {train.words}, tested on {tested.words}")
    names = _classes(source, source)
    everything = _labelled(source, np.arange(len(source)), names, title)
    groups = None if source.groups is None else source.groups[everything.rows]
    kept, held = holdout(Rows(everything.labels, groups), FRACTION, seed)
    train, tested = (replace(everything, rows=everything.rows[rows], labels=everything.labels[rows]) for rows in (kept, held))
    by = "class" if source.groups is None else "class and whole groups"
    words = f"{everything.words}: tested on {len(held)} rows held out by {by} (seed {seed}), trained on the other {len(kept)}"
    return Split(train, tested, names, words)


def _open(data: str | Source, settings: DataSpec) -> Source:
    return open_data(data, settings=settings) if isinstance(data, str) else data


def own_test(data: str, settings: DataSpec) -> str | None:
    """The data's own test split; None where it has none, or where the name says which split is meant."""
    known = splits(data, settings)
    named = any(data.endswith("@" + word) for word in known)
    return None if named else next((word for word in ("test", "val") if word in known and "train" in known), None)


def _classes(a: Source, b: Source) -> tuple[str, ...]:
    for source in (a, b):
        if source.labels is None or source.classes is None or not (source.labels >= 0).any():
            raise DataError("measuring needs labels, these images have none; put them in a folder a class, or name a CSV with --set data.labels=FILE")
    assert a.classes is not None and b.classes is not None
    return a.classes + tuple(name for name in b.classes if name not in a.classes)


def _labelled(source: Source, rows: np.ndarray, names: tuple[str, ...], title: str) -> Part:
    """The rows that have a label, numbered by the name of the class: two folders need not number theirs alike."""
    assert source.labels is not None and source.classes is not None
    place = np.array([names.index(name) for name in source.classes], dtype=np.int64)
    rows = rows[source.labels[rows] >= 0]
    missing = len(source) - len(rows)
    words = f"{title} ({len(rows)} images" + (f", {missing} without a label left out)" if missing else ")")
    return Part(source, rows, place[source.labels[rows]], words)
