"""The run in words and tables: the verdict, the headline numbers, the evaluations, and what repeats it."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from gnothi.data.open import words
from gnothi.report.charts import interval, interval_axis, percent, show, span
from gnothi.report.record import Record, flatten

COLLAPSES = {
    "constant": "constant: every image gets the same vector",
    "dimensional": "dimensional: the vectors fill only a few directions",
    "uniform": "uniform: the targets no longer tell images apart",
}
METRICS = {"knn": "k-nearest neighbours", "linear": "linear classifier", "finetune": "fine-tuning"}


@dataclass(frozen=True)
class Headline:
    """A number worth seeing first."""

    value: str
    name: str
    note: str


@dataclass(frozen=True)
class Row:
    """An encoder's result."""

    encoder: str
    value: str
    range: str
    own: bool
    drawing: Markup


@dataclass(frozen=True)
class Table:
    """The results of one metric, the best first."""

    title: str
    n: str
    axis: Markup
    rows: list[Row]
    protocols: list[str]


def verdict(record: Record) -> dict[str, Any]:
    """The verdict's word, kind, reason and advice, and the broken files; for a run that has not ended too."""
    said = record.verdict
    if not said:
        return {"word": "unfinished", "kind": "", "why": "The run has no verdict yet: it has not come to its end.", "advice": "", "broken": []}
    kind = str(said.get("collapse") or "")
    return {
        "word": said.get("verdict", "undecided"),
        "kind": COLLAPSES.get(kind, kind),
        "why": said.get("why", ""),
        "advice": said.get("advice", ""),
        "broken": said.get("broken", []),
    }


def duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds, the two largest."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def whole(record: Record) -> list[dict[str, Any]]:
    """Results of whole encoders; those of single blocks have a section of their own."""
    return [r for r in record.results if "block" not in r.get("details", {})]


def headlines(record: Record) -> list[Headline]:
    """The numbers to see first: accuracies of the run's encoder, then time and health."""
    found = [_accuracy(record, metric) for metric in dict.fromkeys(r["metric"] for r in whole(record))]
    train, health = record.lines("train"), record.lines("health")
    if not record.results and (during := [m for m in record.lines("evaluation") if m.get("metric") == "knn"]):
        found.append(Headline(percent(during[-1]["value"]), "k-NN accuracy", f"on {during[-1].get('n', '?')} held-out images"))
    seconds = record.verdict.get("seconds") or (train[-1].get("seconds") if train else None)
    if seconds:
        rates = [m["images_per_second"] for m in train if m.get("images_per_second")]
        found.append(Headline(duration(seconds), "of training", f"{show(sum(rates) / len(rates))} images a second" if rates else ""))
    if train:
        planned, done = record.derived.get("steps"), record.verdict.get("steps") or train[-1]["step"]
        notes = [f"of {planned:,}"] if planned and planned > done else []
        notes += [f"{show(train[-1]['epoch'])} epochs"] if train[-1].get("epoch") else []
        found.append(Headline(f"{done:,}", "steps", ", ".join(notes)))
    if health and health[-1].get("rankme") is not None:
        found.append(Headline(show(health[-1]["rankme"]), "effective rank (RankMe)", "directions that the features use at the end"))
    return [h for h in found if h is not None]


def _accuracy(record: Record, metric: str) -> Headline | None:
    rows = [r for r in whole(record) if r["metric"] == metric]
    own = next((r for r in rows if record.own(r["encoder"])), None)
    if own is None:
        return None
    start = next((r for r in rows if record.start(r["encoder"])), None)
    note = f"{percent(own['low'])} to {percent(own['high'])}"
    if start:
        gain = 100 * (own["value"] - start["value"])
        note = f"{abs(gain):.1f} points {'above' if gain >= 0 else 'below'} the untrained network"
    return Headline(percent(own["value"]), METRICS.get(metric, metric), note)


def tables(record: Record) -> list[Table]:
    """The evaluations, a table a metric."""
    return [_table(record, metric) for metric in dict.fromkeys(r["metric"] for r in whole(record))]


def _table(record: Record, metric: str) -> Table:
    results = sorted((r for r in whole(record) if r["metric"] == metric), key=lambda r: -r["value"])
    ranges = [(r["value"], _end(r, "low"), _end(r, "high")) for r in results]
    ends, share = span(ranges), all(0 <= v <= 1 for r in ranges for v in r)
    text = percent if share else show
    rows = [
        Row(r["encoder"], text(v), f"{text(low)} to {text(high)}", record.own(r["encoder"]), interval(v, low, high, ends))
        for r, (v, low, high) in zip(results, ranges, strict=True)
    ]
    protocols = list(dict.fromkeys(r.get("protocol", "") for r in results))
    counts = " or ".join(f"{n:,}" for n in sorted({r["n"] for r in results}))
    return Table(METRICS.get(metric, metric), f"on {counts} images", interval_axis(ends, share), rows, [p for p in protocols if p])


def _end(result: dict[str, Any], key: str) -> float:
    end: float | None = result.get(key)
    value: float = result["value"]
    return value if end is None or not math.isfinite(end) else end


def typed(record: Record) -> str:
    """The command line that started the run, where it is known."""
    command = record.environment.get("command")
    if not isinstance(command, list) or not command:
        return ""
    name = Path(str(command[0])).name
    return shlex.join(["gnothi" if name == "__main__.py" else name, *map(str, command[1:])])


def commands(record: Record) -> list[str]:
    """The command lines that train this run again with every setting spelled out, measure it and draw this page."""
    run, settings = shlex.quote(str(record.folder)), record.settings.get("data", {})
    data = shlex.quote(str(settings.get("name", "DATA")))
    head = {"recipe": record.derived.get("recipe"), "init": record.init, "device": record.derived.get("device")}
    head |= {part: record.settings.get(part, {}).get("name") for part in ("method", "backbone")}
    auxiliaries = list(record.settings.get("auxiliary", {}))
    named = {"data.name", "method.name", "backbone.name"}
    pairs = [f"{k}={_value(v)}" for k, v in flatten(record.settings) if k not in named and v not in (None, {})]
    train = [f"gnothi train {data} --out {run}", *(f"--{k} {shlex.quote(v)}" for k, v in head.items() if v)]
    train += [f"--auxiliary {shlex.quote(a)}" for a in auxiliaries] + [f"--set {shlex.quote(p)}" for p in pairs]
    measured = dict.fromkeys(r["metric"] for r in whole(record) if r["metric"] in METRICS)
    verbs = [" ".join([f"gnothi evaluate {metric} {run} --data", *words(settings)]) for metric in measured]
    return [" \\\n  ".join(train), *verbs, f"gnothi report {run}"]


def first_look(record: Record) -> str:
    """What to type where nothing was measured yet."""
    run, settings = shlex.quote(str(record.folder)), record.settings.get("data", {})
    if record.source.get("labelled") == 0:
        return "nothing was measured: that takes labels for some images (data.labels=FILE); neighbours and map need none"
    measure = " ".join([f"gnothi evaluate knn {run} {run}@untrained --data", *words(settings)])
    return f"nothing was measured yet: {measure} --json > knn.json, then gnothi report {run} --results knn.json"


def settings(record: Record) -> list[tuple[str, str]]:
    """Every resolved setting and derived value by its dotted name."""
    return [(k, _value(v)) for k, v in (*flatten(record.settings), *flatten(record.derived, "derived."), *flatten(record.source, "source."))]


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def subtitle(record: Record) -> str:
    """What was trained on what, in a line."""
    settings = record.settings
    method, backbone, data = (settings.get(part, {}).get("name", "?") for part in ("method", "backbone", "data"))
    auxiliaries = "".join(f" + {name}" for name in settings.get("auxiliary", {}))
    n = record.source.get("n") or record.derived.get("n")
    size = record.derived.get("size")
    return f"{method}{auxiliaries} with {backbone} on {data}" + (f", {n:,} images" if n else "") + (f", crops of {size} px" if size else "")
