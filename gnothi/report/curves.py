"""Which numbers of a run become charts, and what each means in plain words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gnothi.report.charts import Curve, Figure, line_chart, show, spans_decades, stretch, thin
from gnothi.report.record import Record
from gnothi.training.health import NARROW_RANK, NARROW_SPREAD

PLAIN = (
    ("train", "lr", "Learning rate", "How far each step moves the weights: warm-up, then decay."),
    ("train", "gradient_norm", "Gradient norm", "The size of the gradient before clipping. Spikes that keep growing mean the rate is too high."),
    ("train", "momentum", "Teacher momentum", "How much of the teacher is kept at each step; near 1 it hardly moves."),
    ("train", "weight_decay", "Weight decay", "The pull of the weights towards zero."),
    (
        "health",
        "std",
        "Spread of the projections",
        "Deviation of the normalised projections around their mean: 1 where they point everywhere, 0 where all are one vector.",
    ),
    ("health", "rankme", "Effective rank of the features (RankMe)", "How many directions the features use."),
    (
        "health",
        "projection_rankme",
        "Effective rank of the projections",
        f"How many directions the projections use. Below {NARROW_RANK:g}, with a spread below {NARROW_SPREAD:g} that hardly grew: "
        "dimensional collapse (of methods without prototypes).",
    ),
    (
        "health",
        "local_precision",
        "Similar patches that are the same place",
        "Of the patches that another crop shows too, the share whose most similar patch there is the same place.",
    ),
    (
        "health",
        "local_unique",
        "Different patches found",
        "How many different patches are found most similar, over how many look. It falls when a few draw everything.",
    ),
    (
        "health",
        "local_position",
        "Place told by a patch",
        "Share of the variance of rows and columns that a linear probe of the patches explains; near 1, patches say where they are.",
    ),
)
"""Kind of line, key, title, meaning."""


def figures(record: Record) -> list[Figure]:
    """Every chart that the run's metrics allow, in reading order."""
    plain = [_plain(record, *row) for row in PLAIN]
    return [f for f in (_loss(record), _knn(record), *plain, _entropy(record)) if f is not None]


def _loss(record: Record) -> Figure | None:
    lines = [m for m in record.lines("train") if "loss" in m]
    if not lines:
        return None
    names = list(dict.fromkeys(name for m in lines for name in m.get("terms", {})))
    total = Curve("total" if len(names) > 1 else names[0] if names else "loss", [float(m["loss"]) for m in lines])
    terms = [Curve(n, [float(m.get("terms", {}).get(n, math.nan)) for m in lines]) for n in names] if len(names) > 1 else []
    caption = "What training makes small. " + (
        "The total is the weighted sum of its terms, drawn here before weighting." if terms else "It should fall and level off."
    )
    x, _, unit = record.column("train", "loss")
    return _figure("Loss", caption, x, [total, *terms], unit, record)


def _knn(record: Record) -> Figure | None:
    where = {"metric": "knn"}
    x, y, unit = record.column("evaluation", "value", where)
    if not x:
        return None
    low, high = (record.column("evaluation", key, where)[1] for key in ("low", "high"))
    whole = len(low) == len(high) == len(x)
    caption = "Share of held-out training images whose class their nearest neighbours name" + (", with its 95 % interval." if whole else ".")
    return _figure("k-NN accuracy during training", caption, x, [Curve("k-NN", y, low if whole else None, high if whole else None)], unit, record)


def _plain(record: Record, kind: str, key: str, title: str, caption: str) -> Figure | None:
    x, y, unit = record.column(kind, key)
    if not x or (key == "weight_decay" and len(set(y)) == 1):
        return None
    return _figure(title, caption, x, [Curve(title, y)], unit, record)


def _entropy(record: Record) -> Figure | None:
    x, y, unit = record.column("health", "teacher_entropy")
    if not x:
        return None
    of_mean_x, of_mean, _ = record.column("health", "mean_entropy")
    curves = [Curve("an image's target", y)] + ([Curve("mean of all targets", of_mean)] if of_mean_x == x else [])
    caption = (
        "1 is an even choice among all prototypes. Healthy targets are sure of each image (low) and differ between images (their mean stays high). "
        "Both near 1: uniform collapse. Both near 0: constant collapse."
    )
    return _figure("Entropy of the targets", caption, x, curves, unit, record)


def _figure(title: str, caption: str, x: Sequence[float], curves: Sequence[Curve], unit: str, record: Record) -> Figure:
    finite = [v for c in curves for v in c.y if math.isfinite(v)]
    if not finite:
        caption = f"Not one of its {len(x)} values is a finite number."
    thinned = [Curve(c.name, thin(c.y), None if c.low is None else thin(c.low), None if c.high is None else thin(c.high)) for c in curves]
    if stretch(len(x)) > 1:
        caption += f" Each point is the mean of {stretch(len(x))} logged values."
    log = spans_decades([v for c in thinned for v in c.y])
    last = next((v for v in reversed(curves[0].y) if math.isfinite(v)), math.nan)
    label = f"{title}, from {show(curves[0].y[0])} to {show(last)} over {show(x[-1])} {unit}s."
    whole = [float(m[unit]) for m in record.metrics if unit in m]  # every chart has the same x, so that they can be compared
    svg = line_chart(thin(x), thinned, x_name=f"{unit}s", label=label, x_range=(min(whole), max(whole)), log=log)
    return Figure(title, caption + (" Logarithmic scale." if log else ""), svg, tuple(c.name for c in curves), show(last))
