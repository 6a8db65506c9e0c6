"""Tables of ensembles and of detection, from the results of experiments/ensemble.py, experiments/detection.py and benchmarks/ensemble.py."""

from __future__ import annotations

import re
import statistics
from typing import Any

from scipy import stats
from tables import NOT_YET, interval, results, seeds_said

Row = dict[str, Any]
MEASURES = ("knn 20", "knn 200", "linear")
FORMS = (("On images held out of training, by which defaults may be chosen.", "holdout"), ("On test images.", ""))
KINDS: dict[str, tuple[str, ...]] = {
    "table": ("members", "encoder"),
    "transfer": ("images", "maps", "encoder"),
    "sweep": ("of", "encoder"),
    "spectrum": ("images", "of", "chosen"),
    "length": ("epochs", "encoder"),
    "steps": ("steps",),
    "grid": ("changed",),
    "tried": ("idea",),
    "student": ("encoder", "parameters"),
}
"""What tells the lines of an arm apart: a word of the arm's own name first, where it has one."""
CONTROLS = {"student": ("paired", "the ensemble")}
CONTROL = ("paired_chosen", "PCA by the chosen power")
"""What differences are told to, by the kind of an arm, and where it is not named."""
COSTS: dict[str, dict[str, tuple[str, float, int]]] = {"student": {"flops": ("MFLOP", 1e6, 1), "training_seconds": ("training s", 1.0, 0)}}
COLUMNS: dict[str, tuple[str, str, str | None, str | None]] = {
    "k = 20": ("table/mixed/", "knn 20", None, None),
    "k = 200": ("table/mixed/", "knn 200", None, None),
    "minus PCA": ("table/mixed/", "knn 200", None, "paired_chosen"),
    "linear": ("table/mixed/", "linear", None, None),
    "four seeds, k = 200": ("table/seeds/", "knn 200", None, None),
    "one member, k = 200": ("table/alone/", "knn 200", None, None),
    "hog and colour too, k = 200": ("table/crafted/", "knn 200", None, None),
    "elsewhere, maps frozen, k = 200": ("transfer/", "knn 200", "frozen", None),
    "minus PCA there": ("transfer/", "knn 200", "frozen", "paired_chosen"),
    "elsewhere, fitted there, k = 200": ("transfer/", "knn 200", "fitted to the target", None),
}
"""Of the summary: the front of the arms' names, the measure, the maps, and what differences are told to."""
COST = {"seconds": ("fit s", 1.0, 1)}
"""The same of costs: their heads, their units and how many digits are told."""


def ensemble_study() -> str:
    """Every kind of arm over its seeds, for both judges."""
    found = {title: "\n\n".join([*(_kind(kind, judge) for kind in KINDS), _lost(judge)]).strip() for title, judge in FORMS}
    tables = "\n\n".join(re.sub(r"\n{3,}", "\n\n", f"{title}\n\n{text}") for title, text in found.items() if text)
    if not tables:
        return NOT_YET
    return f"{_members()}\n\n{tables}"


def _members() -> str:
    s = results("ensemble")["settings"]
    return f"Members: micro ResNets, {s['epochs']:g} epochs on {s['a_class']:,} images of every class of {s['data']}."


def ensemble_summary() -> str:
    """What combiners come to on test images, over seeds: in short."""
    arms = _arms("")
    names = list(dict.fromkeys(r["encoder"] for arm, rows in arms.items() if arm.startswith("table/mixed/") and "failed" not in rows for r in rows))
    of_members = {n for n in names if re.search(r"-\d+$", n)}
    lines = [f"| {' | '.join(['', *COLUMNS])} |", "|" + "---|" * (len(COLUMNS) + 1)]
    for name in (n for n in names if n not in of_members):
        cells = [_over_seeds(arms, name, *column) for column in COLUMNS.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    about = "Accuracy, with half of a 95 % interval over seeds. *Minus PCA*: at k = 200, to PCA of equal width by the power that held-out rows chose."
    return "\n".join([*lines, "", f"{_members()} {about}"]) if len(lines) > 2 else NOT_YET


def _over_seeds(arms: dict[str, Any], encoder: str, front: str, metric: str, maps: str | None, control: str | None) -> str:
    """A mean over seeds, of each seed over the sets of images that the arms' names begin with."""
    by_seed: dict[str, list[float]] = {}
    for arm, rows in arms.items():
        if not arm.startswith(front) or "failed" in rows:
            continue
        for r in rows:
            if (r["encoder"], r["metric"], r.get("maps")) == (encoder, metric, maps) and (control is None or control in r):
                by_seed.setdefault(arm.rpartition("/")[2], []).append(r["value"] if control is None else r[control]["value"])
    values = [statistics.fmean(of) for of in by_seed.values()]
    if not values:
        return ""
    sign = "" if control is None else "+"
    if len(values) < 2:
        return f"{values[0]:{sign}.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.fmean(values):{sign}.3f} ± {half:.3f}"


def _arms(judge: str) -> dict[str, Any]:
    """What came of every arm of a judge, by its name without him."""
    found = results("ensemble").get("arms", {})
    return {arm.partition("@")[0]: rows for arm, rows in found.items() if arm.partition("@")[2] == judge}


def _lost(judge: str) -> str:
    """Arms without a result, each with the reason."""
    why = [f"{arm} ({rows['failed'].partition(';')[0]})" for arm, rows in _arms(judge).items() if "failed" in rows]
    return f"Diverged: {'; '.join(why)}." if why else ""


def _kind(kind: str, judge: str) -> str:
    """A line for whatever was measured over seeds."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for arm, rows in _arms(judge).items():
        first, *own, seed = arm.split("/")
        ending = r"-\d+$" if own == ["seeds"] else rf"-{seed}$"  # of members that differ by their seed alone
        for r in rows if first == kind and "failed" not in rows else ():
            told = {**r, **dict(zip(KINDS[kind][: len(own)], own, strict=True)), "arm": arm}
            told |= {key: re.sub(ending, "", str(r[key]).rpartition("/")[2]) for key in ("encoder", "of") if key in r}
            found.setdefault(tuple(str(told.get(key, "")) for key in KINDS[kind]), []).append(told)
    (control, name), costs = CONTROLS.get(kind, CONTROL), COSTS.get(kind, COST)
    heads = [*KINDS[kind], *MEASURES, f"knn 200 minus {name}", *(head for head, _, _ in costs.values())]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for names, rows in found.items():
        of = {m: [r for r in rows if r["metric"] == m] for m in MEASURES}
        less = [r[control] | {"arm": r["arm"]} for r in of["knn 200"] if control in r]
        cells = [*names, *(_said(own) for own in of.values()), _said(less), *(_mean(rows, key, *how[1:]) for key, how in costs.items())]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) if found else ""


def _said(rows: list[Row]) -> str:
    """Over seeds; where an arm has several members of one name, over members."""
    words = seeds_said(rows)
    return words if len(rows) == len({r["arm"] for r in rows}) else words.replace(" seeds)", " members)")


def _mean(rows: list[Row], key: str, unit: float, digits: int) -> str:
    values = [r[key] for r in rows if key in r]
    return f"{sum(values) / len(values) / unit:.{digits}f}" if values else ""


def ensemble_cost() -> str:
    """What the descent costs, by the number of images."""
    rows = results("ensemble", "benchmarks")
    lines = ["| images | fit | epochs | memory | a code | of bare products | of the whole |", "|---|---|---|---|---|---|---|"]
    for r in rows:
        seconds = f"{r['fit']:.1f} s ({r['processor']:.1f} s)"
        about = f"| {r['n']:,} | {seconds} | {r['epochs']:g} | {r['memory'] / 2**20:.0f} MiB | {1000 * r['descent']:.3f} ms"
        lines.append(f"{about} | {r['share of the products']:.2f} ({r['by processor']:.2f}) | {r['share of the whole']:.2f} |")
    counted = "By the clock; in brackets in seconds of the processor, all threads together, which count where others compute as well."
    return "\n".join([*lines, "", counted]) if rows else NOT_YET


def detection_study() -> str:
    """Detectors over a pre-trained encoder, frozen or not, and over random weights."""
    lines = ["| form | trained on | detector | measure | average precision | minus the first |", "|---|---|---|---|---|---|"]
    for name, form in (("detection", "two cores"), ("detection_gpu", "a GPU")):
        for arm, of in (results(name) or {"arms": {}})["arms"].items():
            for r in of["means"]:
                less = r["details"].get("paired")
                lines.append(f"| {form} | {arm} | {r['encoder']} | {r['metric']} | {interval(r)} | {interval(less)} |")
    return "\n".join(lines) if len(lines) > 2 else NOT_YET


SEVERAL = (ensemble_summary, ensemble_study, ensemble_cost, detection_study)
