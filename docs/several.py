"""Tables of ensembles and of detection, from the results of experiments/ensemble.py, experiments/detection.py and benchmarks/ensemble.py."""

from __future__ import annotations

import re
from typing import Any

from tables import NOT_YET, interval, results, seeds_said

Row = dict[str, Any]
MEASURES = ("knn 20", "knn 200", "linear")
FORMS = (("On images held out of training, by which defaults may be chosen.", "holdout"), ("On test images.", ""))
KINDS: dict[str, tuple[str, ...]] = {
    "table": ("members", "encoder"),
    "transfer": ("images", "maps", "encoder"),
    "sweep": ("of", "encoder"),
    "length": ("epochs", "encoder"),
    "steps": ("steps",),
    "grid": ("changed",),
    "student": ("encoder", "parameters"),
}
"""What tells the lines of an arm apart: a word of the arm's own name first, where it has one."""
CONTROL = "paired_chosen"


def ensemble_study() -> str:
    """Every kind of arm over its seeds, for both judges."""
    texts = [f"{title}\n\n{text}" for title, judge in FORMS if (text := "\n\n".join(_kind(kind, judge) for kind in KINDS).strip())]
    return "\n\n".join(re.sub(r"\n{3,}", "\n\n", text) for text in texts) or NOT_YET


def _kind(kind: str, judge: str) -> str:
    """A line for whatever was measured over seeds."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for arm, rows in results("ensemble").items():
        name, _, by = arm.partition("@")
        first, *own, seed = name.split("/")
        if (first, by) == (kind, judge):
            for r in rows:
                told = {**r, **dict(zip(KINDS[kind][: len(own)], own, strict=True))}
                told |= {key: re.sub(rf"-{seed}$", "", str(r[key]).rpartition("/")[2]) for key in ("encoder", "of") if key in r}
                found.setdefault(tuple(str(told.get(key, "")) for key in KINDS[kind]), []).append(told)
    lines = [f"| {' | '.join([*KINDS[kind], *MEASURES, 'knn 200 minus PCA by the chosen power', 'fit s'])} |"]
    lines.append("|" + "---|" * (len(KINDS[kind]) + len(MEASURES) + 2))
    for names, rows in found.items():
        of = {m: [r for r in rows if r["metric"] == m] for m in MEASURES}
        less = [r[CONTROL] for r in of["knn 200"] if CONTROL in r]
        seconds = [r["seconds"] for r in rows if "seconds" in r]
        cells = [*names, *(seeds_said(own) for own in of.values()), seeds_said(less), f"{sum(seconds) / len(seconds):.1f}" if seconds else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) if found else ""


def ensemble_cost() -> str:
    """What the descent costs, by the number of images."""
    rows = results("ensemble", "benchmarks")
    lines = ["| images | fit | epochs | memory | a code | of bare products | of the whole |", "|---|---|---|---|---|---|---|"]
    for r in rows:
        about = f"| {r['n']:,} | {r['fit']:.1f} s | {r['epochs']:g} | {r['memory'] / 2**20:.0f} MiB | {1000 * r['descent']:.3f} ms"
        lines.append(f"{about} | {r['share of the products']:.2f} | {r['share of the whole']:.2f} |")
    return "\n".join(lines) if rows else NOT_YET


def detection_study() -> str:
    """Detectors over a pre-trained encoder, frozen or not, and over random weights."""
    lines = ["| form | trained on | detector | measure | average precision | minus the first |", "|---|---|---|---|---|---|"]
    for name, form in (("detection", "two cores"), ("detection_gpu", "a GPU")):
        for arm, of in (results(name) or {"arms": {}})["arms"].items():
            for r in of["means"]:
                less = r["details"].get("paired")
                lines.append(f"| {form} | {arm} | {r['encoder']} | {r['metric']} | {interval(r)} | {interval(less)} |")
    return "\n".join(lines) if len(lines) > 2 else NOT_YET


SEVERAL = (ensemble_study, ensemble_cost, detection_study)
