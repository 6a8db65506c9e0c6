"""Mean average precision of linear classifiers on frozen features, where an image may show several classes or none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gnothi.contracts import DataError, SettingError, Source, did_you_mean
from gnothi.data import DataSpec, Subset, holdout
from gnothi.data import open as open_data
from gnothi.data import splits as splits_of
from gnothi.encoders import Encoder, features, load
from gnothi.encoders.encoder import Progress
from gnothi.evaluate.annotations import FOLDERS
from gnothi.evaluate.average_precision import KINDS, Ranking, average_precision, mean_average_precision, ranked, resampled
from gnothi.evaluate.finetune import controls, networks
from gnothi.evaluate.linear import PATIENCE, STRENGTHS, Fit, Rows, logistic, minimise, scale
from gnothi.evaluate.result import Result
from gnothi.evaluate.scenes import split_scenes
from gnothi.evaluate.tagging import Tagging, ranked_by_class
from gnothi.evaluate.tuning import FinetuneSpec, Start

HELD = 0.2
"""Part of the training images on which penalties are chosen."""
USUAL = 0.01
"""The penalty where a class has too few positives to choose one."""
NONE = "-"
"""What a cell of labels holds for an image that shows none of the classes."""


@dataclass(frozen=True)
class Tagged:
    """Images and what they show."""

    source: Source
    tags: np.ndarray
    """[N, C] 1, 0, or -1 where nothing is known."""


def multilabel(
    encoders: Sequence[str | Encoder],
    data: str,
    test: str | None = None,
    *,
    kinds: Sequence[str] = ("11-point", "area"),
    tune: FinetuneSpec | None = None,
    control: bool = False,
    out: str | Path | None = None,
    annotations: str | None = None,
    settings: DataSpec = DataSpec(),  # noqa: B008
    seed: int = 0,
    cache: str | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    shown: bool = False,
) -> list[Result]:
    """Measure encoders on the same images: a logistic regression for each class against the rest, on standardised frozen features.

    Each class's penalty (or the learning rate, where networks are fine-tuned) is chosen by average precision on a fifth of the training images; then
    all of them are fitted once and the test images are looked at once.

    Args:
        encoders: names, or encoders; the first is the one that the others are compared with.
        data: a folder in PASCAL VOC layout, a COCO JSON file, or any images whose labels (``data.labels``) name classes with ";" or "|" between.
        test: what to test on; by default the data's own test split, else a fifth held out.
        kinds: of average precision, see ``average_precision``.
        tune: fine-tune the networks like this, on all labels, instead.
        control: fine-tune each architecture from random weights, too.
        out: folder where what is fine-tuned lies and is gone on with.
        annotations: folder of VOC files, where it lies elsewhere.
        settings: of the data.
        seed: of every choice.
        cache: folder of the stored features; see ``encoders.features``.
        device: where encoders compute.
        progress: told how many images of an encoder are embedded.
        shown: whether to show how fine-tuning goes.

    Returns:
        A result for each kind and encoder, kinds first: metric "mAP KIND", interval by resampling test images; ``details`` hold each class's own and
        positives, and of all but the first encoder ``paired``.

    Raises:
        SettingError: there is no such kind.
        DataError: nothing is known of what the images show.
        EncoderError: an encoder cannot be opened or does not take such images.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise SettingError(f"average precision must be {', '.join(KINDS)}, got {kind!r}; {did_you_mean(kind, KINDS)}")
    if tune is not None and (tune.share < 1 or tune.shots is not None):
        raise SettingError("share and shots are of single classes; where an image may show several all labels are learnt from")
    opened: Sequence[Encoder] = [load(e, device) if isinstance(e, str) else e for e in encoders] if tune is None else networks(encoders, device)
    train, tested, classes, words = _tagged(data, test, annotations, settings, seed)
    names, answers = [e.name for e in opened], list[tuple[list[Ranking], dict[str, Any], str]]()
    if tune is None:
        for e in opened:
            x, y = (features(e, part.source, cache=cache, progress=progress) for part in (train, tested))
            answers.append(_rank(np.asarray(x), train, np.asarray(y), tested, seed))
    else:
        starts = [Start(e.name, e) for e in networks(opened)] + (controls(networks(opened)) if control else [])
        names, folder, broken = [s.name for s in starts], None if out is None else Path(out).expanduser(), settings.broken_fraction
        for start in starts:
            job = Tagging(start, tune, train.source, train.tags, seed=seed, out=folder, broken=broken, shown=shown)
            scores, about, said = job.answer(tested.source)
            answers.append((ranked_by_class(scores, tested.tags), about, said))
    return [r for kind in kinds for r in _results(kind, names, answers, classes, words, len(tested.tags), seed)]


def _results(
    kind: str,
    names: Sequence[str],
    answers: Sequence[tuple[list[Ranking], dict[str, Any], str]],
    classes: Sequence[str],
    words: str,
    n: int,
    seed: int,
) -> list[Result]:
    """One result an encoder by one kind of average precision, each but the first with its paired difference to the first."""
    results = []
    first: tuple[str, float, np.ndarray] | None = None
    for name, (rankings, about, protocol) in zip(names, answers, strict=True):
        value, each = mean_average_precision(rankings, kind)
        drawn = resampled(rankings, kind, seed)
        low, high = interval(drawn, value)
        details: dict[str, Any] = {
            "classes": list(classes),
            "average_precision": [None if np.isnan(v) else v for v in each.tolist()],
            "positives": [int(r.positives.sum()) for r in rankings],
            **about,
        }
        if first is not None:
            details["paired"] = difference(first, value, drawn, n)
        first = first or (name, value, drawn)
        counted = int((~np.isnan(each)).sum())
        said = f"{protocol}; mean of average precision ({kind}) over {counted} classes; {words}; interval by resampling images"
        results.append(Result(f"mAP {kind}", value, low, high, n, said, name, (seed,), details))
    return results


def interval(drawn: np.ndarray, value: float) -> tuple[float, float]:
    """The middle 95 % of resampled values, with the value inside."""
    low, high = np.quantile(drawn, [0.025, 0.975])
    return min(float(low), value), max(float(high), value)


def difference(first: tuple[str, float, np.ndarray], value: float, drawn: np.ndarray, n: int) -> dict[str, Any]:
    """A value less the first encoder's, whose name, value and resampled values are given, on the same draws of n images."""
    low, high = np.quantile(drawn - first[2], [0.025, 0.975])
    return {"against": first[0], "value": value - first[1], "low": float(low), "high": float(high), "n": n}


# ---- what images show ----------------------------------------------------------------------------
def _tagged(data: str, test: str | None, annotations: str | None, settings: DataSpec, seed: int) -> tuple[Tagged, Tagged, tuple[str, ...], str]:
    """Images that train and test, their classes, and where they come from."""
    root = Path(data.partition("@")[0]).expanduser()
    if annotations is not None or root.suffix == ".json" or any((root / name).is_dir() for name in FOLDERS[:1]) or [*root.glob("annotations/*.json")]:
        train, tested = split_scenes(data, test, annotations=annotations, settings=settings, seed=seed)
        words = train.words if train.words == tested.words else f"trained on {train.words}, tested on {tested.words}"
        return Tagged(train.source, train.tags()), Tagged(tested.source, tested.tags()), train.classes, words
    source = open_data(data, settings=settings)
    known = splits_of(data, settings) if test is None and "@" not in data else ()
    if test is None and "train" in known and (own := next((s for s in ("test", "val") if s in known), None)):
        test = f"{data}@{own}"
    if test is not None:
        other = open_data(test, settings=settings)
        classes = _classes(source)
        a, b = _of(source, classes, data), _of(other, classes, test)
        return a, b, classes, f"trained on {data} ({len(a.tags)} images), tested on {test} ({len(b.tags)} images)"
    classes = _classes(source)
    whole = _of(source, classes, data)
    kept, held = holdout(Rows(np.zeros(len(whole.tags), dtype=np.int64), whole.source.groups), HELD, seed)
    words = f"{data} ({len(whole.tags)} images): tested on {len(held)} rows held out (seed {seed}), trained on the other {len(kept)}"
    a, b = (Tagged(Subset(whole.source, rows), whole.tags[rows]) for rows in (kept, held))
    return a, b, classes, words


def parts(label: str) -> list[str]:
    """The classes that a label names: "cat;dog" and "cat|dog" two, "-" none."""
    return [word for word in (w.strip() for w in re.split(r"[;|]", label)) if word and word != NONE]


def _classes(source: Source) -> tuple[str, ...]:
    if source.labels is None or source.classes is None:
        raise DataError(
            "nothing is known of what these images show: there is neither a folder Annotations (PASCAL VOC) nor a COCO .json file nor any label; "
            'name a CSV with data.labels, whose cells hold classes with ";" between'
        )
    return tuple(sorted({word for label in source.classes for word in parts(label)}))


def _of(source: Source, classes: tuple[str, ...], title: str) -> Tagged:
    if source.labels is None or source.classes is None or not (source.labels >= 0).any():
        raise DataError(f"{title} has no labels; name a CSV with data.labels")
    strange = next((w for label in source.classes for w in parts(label) if w not in classes), None)
    if strange is not None:
        raise DataError(f"{title} shows {strange!r}, a class that no training image shows; {did_you_mean(strange, classes)}")
    rows = np.flatnonzero(source.labels >= 0)
    table = np.array([[int(c in parts(label)) for c in classes] for label in source.classes], dtype=np.int64).reshape(-1, len(classes))
    return Tagged(Subset(source, rows), table[source.labels[rows]])


# ---- classifiers ---------------------------------------------------------------------------------
def _rank(x: np.ndarray, train: Tagged, y: np.ndarray, tested: Tagged, seed: int) -> tuple[list[Ranking], dict[str, Any], str]:
    """The ranking of the test images by each class's classifier, the penalties, and the protocol."""
    good, whole = ~np.isnan(x[:, 0]), ~np.isnan(y[:, 0])
    groups = None if train.source.groups is None else train.source.groups[good]
    mine, theirs = torch.from_numpy(x[good]).float(), torch.from_numpy(y[whole]).float()
    kept, held = holdout(Rows(np.zeros(len(mine), dtype=np.int64), groups), HELD, seed)
    scores = np.full((len(y), train.tags.shape[1]), np.nan)
    penalties = []
    for c in range(train.tags.shape[1]):
        truth = torch.from_numpy(train.tags[good, c])
        penalties.append(_penalty(mine, truth, torch.from_numpy(kept), torch.from_numpy(held)))
        scores[whole, c] = _scores(mine, truth, penalties[-1], theirs)
    lost = int((~good).sum() + (~whole).sum())
    words = (
        f"logistic regression of each class against the rest on standardised features, penalty chosen among {len(STRENGTHS)} by average precision on "
        f"{len(held)} held-out training images (seed {seed}), refitted on all {len(mine)}" + (f", {lost} unreadable images left out" if lost else "")
    )
    return ranked_by_class(scores, tested.tags), {"penalties": penalties}, words


def _known(x: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    rows = truth >= 0
    return x[rows], truth[rows]


def _penalty(x: Tensor, truth: Tensor, kept: Tensor, held: Tensor) -> float:
    """The strength with the best average precision on the held-out rows, then the least cross-entropy."""
    (a, answers), (b, asked) = _known(x[kept], truth[kept]), _known(x[held], truth[held])
    if not 0 < int(answers.sum()) < len(answers) or not 0 < int(asked.sum()):
        return USUAL
    mean, std = scale(a)
    tried: list[tuple[float, float, float]] = []
    for strength, fit in logistic((a - mean) / std, answers, 2):
        logits = fit.logits((b - mean) / std)
        ranking = ranked((logits[:, 1] - logits[:, 0]).numpy(), asked.numpy())
        value = float(average_precision(ranking.right, ranking.positives.sum()))
        tried.append((value, -float(F.cross_entropy(logits.double(), asked)), strength))
        if len(tried) - 1 - max(range(len(tried)), key=lambda i: tried[i][0]) >= PATIENCE:
            break
    return max(tried)[2]


def _scores(x: Tensor, truth: Tensor, strength: float, y: Tensor) -> np.ndarray:
    """How much more a class is there than not, of the rows of y; 0 where it was never or always there."""
    x, answers = _known(x, truth)
    if not 0 < int(answers.sum()) < len(answers):
        return np.zeros(len(y))
    mean, std = scale(x)
    fit: Fit = minimise((x - mean) / std, answers, 2, strength)
    logits = fit.logits((y - mean) / std)
    return (logits[:, 1] - logits[:, 0]).numpy()
