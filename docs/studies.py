"""Tables of the studies of auxiliary objectives, from the results of experiments/studies.py."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from several import SEVERAL
from tables import NOT_YET, results, seeds_said

from gnothi.comparison.table import over_seeds, verdicts

EQUAL = " in equal time"
PARTS = (0.2, 0.5, 0.8, 1.0)
"""Of a run, at which its curve is told, by the nearest of its ten looks, or of eleven where ten do not divide its steps."""
Found = dict[str, dict[str, Any]]
Row = dict[str, Any]


def rotation_study() -> str:
    return _pages("rotation", _compared, _curves)


def layers_study() -> str:
    return _pages("layers", _compared, _near, _far)


def local_study() -> str:
    return _pages("local", _compared, _matches)


def together_study() -> str:
    return _pages("together", _compared, _added, _decided)


def small_study() -> str:
    return _pages("small", _compared)


def transfer_study() -> str:
    """Of every pretext task and settings: every arm over its seeds, with what it cost, and the student's blocks."""
    lines = [
        "| pretext task, teacher to student | arm | seeds | k-NN | minus direct | of the teacher's | linear | fine-tuned | TFLOP |",
        "|" + "---|" * 9,
    ]
    deep: Found = {}
    for name in ("rotation", "jigsaw", "simclr", "student"):
        found = results(f"transfer_{name}") or {"settings": {}, "rows": []}
        for digest, task in _tasks(found["settings"]).items():
            rows = [{**r, "arm": f"{r['arm']} ({r['fit']['name']})" if "fit" in r else r["arm"]} for r in found["rows"] if r["settings"] == digest]
            lines += [_transferred(task, arm, [r for r in rows if r["arm"] == arm]) for arm in dict.fromkeys(r["arm"] for r in rows)]
            if own := [r for r in rows if r["measured"] == "blocks" and "failed" not in r]:
                deep[task] = {"blocks": own}
    return "\n".join([*lines, "", _blocks(deep, "blocks", "A linear classifier on every block:")]).rstrip() if len(lines) > 2 else NOT_YET


def _tasks(settings: dict[str, Row]) -> dict[str, str]:
    """Every digest's settings in words; where several have the same words, with what tells them apart."""
    words = {
        digest: f"{s['pretext']}, {Path(s['of']).name if s['of'] else s['teacher']} to {s['student']}, {s['images']:,} images of {s['data']}"
        for digest, s in settings.items()
    }
    found = {}
    for digest, s in settings.items():
        alike = [settings[other] for other in words if words[other] == words[digest]]
        apart = [key for key in s if any(other.get(key) != s[key] for other in alike)]
        found[digest] = ", ".join([words[digest], *(f"{key.replace('_', ' ')} {_value(s[key])}" for key in apart)])
    return found


def _value(setting: Any) -> str:
    """Of a path the last part only."""
    if setting is None:
        return "by default"
    return f"{setting:g}" if isinstance(setting, float) else Path(setting).name if isinstance(setting, str) else str(setting)


def _transferred(task: str, arm: str, rows: list[Row]) -> str:
    """An arm over its seeds; runs that diverged are counted and no more."""
    lost = len({r["seed"] for r in rows if "failed" in r})
    near, linear, tuned = ([r for r in rows if r["measured"] == m and "failed" not in r] for m in ("knn", "linear", "finetune"))
    less = seeds_said([r["paired_direct"] for r in near if "paired_direct" in r])
    share = [r["share_of_teacher"] for r in near if r.get("share_of_teacher") is not None]
    cost = [r["training_flops"] for r in near if "training_flops" in r]
    cells = [seeds_said(near), less, f"{statistics.fmean(share):.3f}" if share else "", seeds_said(linear), seeds_said(tuned)]
    seeds = f"{len(near)}, {lost} diverged" if lost else str(len(near))
    return f"| {task} | {arm} | {seeds} | {' | '.join(cells)} | {_three(statistics.fmean(cost) / 1e12) if cost else ''} |"


def _three(value: float) -> str:
    """Three digits, and all before the point."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def _pages(name: str, *parts: Callable[[Found], str]) -> str:
    """What there is of the form for two cores and of that for a GPU."""
    forms = [(title, results(f"study_{name}{end}")) for title, end in (("", ""), ("On a GPU:\n\n", "_gpu"))]
    found = [title + "\n\n".join(text for part in parts if (text := part(found))) for title, found in forms if found]
    return "\n\n".join(found) or NOT_YET


# ---- equal epochs, equal time --------------------------------------------------------------------
def _compared(found: Found) -> str:
    heads = "comparison | images | arm | seeds | epochs | seconds | k-NN | minus the first arm: over seeds | over images | health"
    lines = [f"| {heads} |", "|" + "---|" * 10]
    for name, call in found.items():
        for row in call["table"]:
            less = row.get("difference") or {}
            seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
            about = f"| {name} | {call['images']:,} | {row['arm']} | {len(row['seeds'])} | {row['epochs']:.4g} | {seconds} |"
            ends = [_said(less.get("value"), less.get(key), "+") for key in ("over_seeds", "over_images")]
            value = _said(row["value"], row["over_seeds"] or row["over_images"])
            lines.append(f"{about} {value} | {' | '.join([*ends, _health(row, call['runs'])])} |")
    return "\n".join(lines)


def _health(row: Row, runs: list[Row]) -> str:
    """How many runs of an arm were of which verdict, and why those without one failed."""
    why = dict.fromkeys(r["failed"].partition(";")[0] for r in runs if r["arm"] == row["arm"] and "failed" in r)  # the rest names a folder
    return ": ".join([verdicts(row), *([", ".join(why)] if why else [])])


def _said(value: float | None, ends: list[float] | None, sign: str = "") -> str:
    return "" if value is None or ends is None else f"{value:{sign}.3f} ({ends[0]:{sign}.3f} to {ends[1]:{sign}.3f})"


def _added(found: Found) -> str:
    """What one auxiliary more gives on test images, by runs of the same seed on equal epochs."""
    runs = [r for r in found.get("all sets", {}).get("runs", []) if "value" in r]
    names = {frozenset(r["arm"].split("+")): r["arm"] for r in runs}
    values = {(r["arm"], r["seed"]): r["value"] for r in runs}
    lines = ["What one more adds, with runs of the same seed:", "", "| added | to | seeds | k-NN more |", "|---|---|---|---|"]
    for part in dict.fromkeys(part for name in names.values() for part in name.split("+")):
        for base, name in names.items():
            more = names.get(base | {part}, name)
            gains = [values[more, seed] - value for (arm, seed), value in values.items() if arm == name != more and (more, seed) in values]
            if gains:
                mean, ends = over_seeds(gains)
                lines.append(f"| {part} | {name} | {len(gains)} | {_said(mean, ends, '+') or f'{mean:+.3f}'} |")
    return "\n".join(lines) if len(lines) > 4 else ""


def _decided(found: Found) -> str:
    """Of every number of images the arm with the best k-NN on training images that did not train, by which one may choose."""
    rows: dict[str, list[Row]] = {}
    for name, call in found.items():
        plain = name.removesuffix(EQUAL)
        rows.setdefault((plain.rpartition(", ")[0] or plain) + name[len(plain) :], []).extend(call.get("asking", []))
    lines = ["By training images that did not train, the mean over seeds:", "", "| of | best | k-NN | the others |", "|---|---|---|---|"]
    for name, own in rows.items():
        values = {arm: statistics.fmean(r["value"] for r in own if r["arm"] == arm) for arm in dict.fromkeys(r["arm"] for r in own)}
        if order := sorted(values, key=lambda arm: -values[arm]):
            others = ", ".join(f"{arm} {values[arm]:.3f}" for arm in order[1:])
            lines.append(f"| {name} | {order[0]} | {values[order[0]]:.3f} | {others} |")
    return "\n".join(lines) if len(lines) > 4 else ""


# ---- along the runs ------------------------------------------------------------------------------
def _curves(found: Found) -> str:
    """K-NN on images held out of training, by epochs and seconds; and when an arm is as good as the first one at its end."""
    heads = " | ".join(f"{part:.0%} of the run" for part in PARTS)
    lines = [f"| comparison | arm | {heads} | as good as the first arm's end after |", "|" + "---|" * (len(PARTS) + 3)]
    for name, call in found.items():
        curves = {row["arm"]: curve for row in call["table"] if (curve := _curve(r for r in call["runs"] if r["arm"] == row["arm"]))}
        goal = next(iter(curves.values()))[-1]["value"] if curves else 0.0
        for arm, curve in curves.items():
            at = _at_parts(curve)
            there = next((p for p in curve if p["value"] >= goal), None)
            last = "never" if there is None else f"{there['epoch']:.3g} epochs, {there['seconds']:.0f} s"
            told = " | ".join(f"{p['value']:.3f} at {p['seconds']:.0f} s" for p in at)
            lines.append(f"| {name} | {arm} | {told} | {last} |")
    return "\n".join(lines)


def _curve(runs: Iterable[Row]) -> list[Row]:
    """The mean over seeds at every look."""
    along = [r["along"] for r in runs if r.get("along")]
    return [{k: statistics.fmean(p[k] for p in look) for k in ("epoch", "seconds", "value")} for look in zip(*along, strict=False)]


def _at_parts(looks: list[Row]) -> list[Row]:
    """The looks nearest to parts of a run, by its epochs."""
    return [min(looks, key=lambda look: abs(look["epoch"] - part * looks[-1]["epoch"])) for part in PARTS]


# ---- blocks and patches --------------------------------------------------------------------------
def _near(found: Found) -> str:
    return _blocks(found, "blocks", "K-NN of every block on the test images:")


def _far(found: Found) -> str:
    return _blocks(found, "far", "K-NN of every block on images of another kind:")


def _blocks(found: Found, key: str, words: str) -> str:
    """A measure of every block, the mean over seeds."""
    calls = {name: call[key] for name, call in found.items() if call.get(key)}
    if not calls:
        return ""
    many = 1 + max(r["block"] for rows in calls.values() for r in rows)
    lines = [words, "", f"| comparison | arm | vector | {' | '.join(f'block {n}' for n in range(many))} |", "|" + "---|" * (many + 3)]
    for name, rows in calls.items():
        for arm, kind in dict.fromkeys((r["arm"], r["features"]) for r in rows):
            of = [[r["value"] for r in rows if (r["arm"], r["features"], r["block"]) == (arm, kind, n)] for n in range(many)]
            lines.append(f"| {name} | {arm} | {kind} | {' | '.join(f'{statistics.fmean(v):.3f}' if v else '' for v in of)} |")
            if (less := [_less(r for r in rows if (r["arm"], r["features"], r["block"]) == (arm, kind, n)) for n in range(many)]) and any(less):
                lines.append(f"| | minus the first arm | {kind} | {' | '.join(less)} |")
    return "\n".join(lines)


def _less(rows: Iterable[Row]) -> str:
    """How much better a block is than the first arm's: over seeds, of one seed over images."""
    own = [r["paired"] for r in rows if "paired" in r]
    if not own:
        return ""
    value, ends = over_seeds([p["value"] for p in own])
    return _said(value, ends or [own[0]["low"], own[0]["high"]], "+")


def _matches(found: Found) -> str:
    """How right similarity is against geometry along the runs, and what patches know at their end."""
    heads = " | ".join(f"right at {part:.0%}" for part in PARTS)
    lines = [f"| comparison | arm | kept | {heads} | different | place told |", "|" + "---|" * (len(PARTS) + 5)]
    for name, call in found.items():
        for arm in dict.fromkeys(r["arm"] for r in call.get("health", [])):
            looks = _looks([r for r in call["health"] if r["arm"] == arm])
            at = [look["local_precision"] for look in _at_parts(looks)]
            last = [looks[-1].get(f"local_{key}") for key in ("unique", "position")]
            ends = " | ".join("" if x is None else f"{x:.2f}" for x in last)
            lines.append(f"| {name} | {arm} | {looks[-1]['local_kept']:.2f} | {' | '.join(f'{x:.2f}' for x in at)} | {ends} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _looks(rows: list[Row]) -> list[Row]:
    """The mean over seeds at every look."""
    seeds = [[r for r in rows if r["seed"] == seed] for seed in dict.fromkeys(r["seed"] for r in rows)]
    keys = [k for k in rows[0] if k == "epoch" or k.startswith("local_")]
    return [{k: statistics.fmean(r[k] for r in look) for k in keys if all(k in r for r in look)} for look in zip(*seeds, strict=False)]


STUDIES: tuple[Callable[[], str], ...] = (rotation_study, layers_study, local_study, together_study, small_study, transfer_study, *SEVERAL)
