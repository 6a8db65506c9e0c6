"""The page of a comparison: the table drawn, the curves, the cost and what repeats it, in one HTML file that loads nothing else."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from gnothi.comparison import curves, table
from gnothi.comparison.arms import typed
from gnothi.comparison.start import counted_as
from gnothi.files import write_text
from gnothi.recipes.spec import flat
from gnothi.report.charts import Axis, Figure, interval, interval_axis, percent, span
from gnothi.report.frame import page
from gnothi.report.summary import METRICS, duration


@dataclass(frozen=True)
class Row:
    """A value of an arm, drawn."""

    arm: str
    value: str
    ranges: list[str]
    drawing: Markup


@dataclass(frozen=True)
class Drawn:
    """Values of all arms over one axis."""

    axis: Markup
    rows: list[Row]
    zero: str
    """Where zero lies, for differences."""


def write(folder: Path, record: Mapping[str, Any]) -> tuple[Path, Path]:
    """Draw ``report.html`` and ``curves.svg`` of a comparison.

    Args:
        folder: the comparison's.
        record: what its ``results.json`` holds.

    Returns:
        Both files. Without k-NN along the way the second holds words.
    """
    try:
        charts, missing = curves.figures(record), ""
        picture = curves.picture(charts)
    except LookupError as error:
        charts, missing = [], str(error)
        picture = f'<svg xmlns="http://www.w3.org/2000/svg" width="640" height="40"><text x="16" y="24">{missing}</text></svg>\n'
    write_text(folder / "curves.svg", picture)
    write_text(folder / "report.html", render(folder, record, charts, missing))
    return folder / "report.html", folder / "curves.svg"


def render(folder: Path, record: Mapping[str, Any], charts: Sequence[Figure], missing: str) -> str:
    """The page as text."""
    measured = [row for row in record["table"] if row["value"] is not None]
    asked = record["asked"]
    return page(
        "comparison.html",
        kind="comparison",
        title=folder.resolve().name,
        subtitle=subtitle(record),
        done=len(record["runs"]),
        whole=len(record["arms"]) * asked["seeds"],
        failed=[r for r in record["runs"] if "failed" in r],
        metric=METRICS.get(asked["metric"], asked["metric"]),
        n=max((row["n"] for row in measured), default=0),
        values=drawn(measured) if measured else None,
        differences=differences(measured),
        first=record["arms"][0]["arm"],
        several=asked["seeds"] > 1,
        figures=charts,
        missing=missing,
        costs=costs(record["table"]),
        terms=terms(record),
        protocol=[*record["protocol"], *dict.fromkeys(r["protocol"] for r in record["runs"] if "protocol" in r)],
        command=command(folder, asked),
        version=record["gnothi"],
    )


def subtitle(record: Mapping[str, Any]) -> str:
    """What is compared on what, in a line."""
    asked, data = record["asked"], record["data"]
    counts = f"{counted_as(len(record['arms']), 'arm')}, {counted_as(asked['seeds'], 'seed')}"
    return f"{counts}, {terms(record)}, on {data['name']} ({data['n']:,} images)"


def terms(record: Mapping[str, Any]) -> str:
    """How long every run trained."""
    if (seconds := record["asked"]["seconds"]) is not None:
        return f"{seconds:g} seconds each"
    lengths = sorted({arm["epochs"] for arm in record["arms"]})
    return " or ".join(f"{n:.4g}" for n in lengths) + " epochs each"


def drawn(rows: Sequence[Mapping[str, Any]]) -> Drawn:
    """The values of the arms."""
    drawings = [_drawing(row) for row in rows]
    ends = span(drawings)
    found = [Row(row["arm"], percent(row["value"]), _ranges(row, percent), interval(*at, ends)) for row, at in zip(rows, drawings, strict=True)]
    return Drawn(interval_axis(ends, True), found, "")


def differences(rows: Sequence[Mapping[str, Any]]) -> Drawn | None:
    """The differences to the first arm, in points; None where there is none."""
    there = [(row["arm"], row["difference"]) for row in rows if row.get("difference")]
    if not there:
        return None
    drawings = [_drawing(d, -1.0, 100) for _, d in there]
    ends = span([(0.0, 0.0, 0.0), *drawings])
    found = [Row(arm, points(d["value"]), _ranges(d, points), interval(*at, ends)) for (arm, d), at in zip(there, drawings, strict=True)]
    return Drawn(interval_axis(ends, False), found, f"{Axis(*ends, 0, 100)(0.0):.2f}%")


def _drawing(found: Mapping[str, Any], least: float = 0.0, scale: float = 1.0) -> tuple[float, float, float]:
    """The value and the ends that are drawn, within what can be: over seeds where there are several, else over images."""
    low, high = found["over_seeds"] or found["over_images"]
    return scale * found["value"], scale * max(low, least), scale * min(high, 1.0)


def _ranges(found: Mapping[str, Any], form: Any) -> list[str]:
    there = {"seeds": found["over_seeds"], "images": found["over_images"]}
    return [f"{name} {form(ends[0])} to {form(ends[1])}" for name, ends in there.items() if ends]


def points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * share:+.1f}".replace("-", "−")


def costs(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Length, time and health of the arms."""
    return [
        {
            "arm": row["arm"],
            "epochs": f"{row['epochs']:.4g}",
            "steps": f"{row['steps']:,}",
            "time": "" if row["seconds"] is None else duration(row["seconds"]),
            "off": "" if row["off_seconds"] is None else f"{100 * row['off_seconds']:+.0f} %".replace("-", "−"),
            "health": table.verdicts(row),
        }
        for row in rows
    ]


def command(folder: Path, asked: Mapping[str, Any]) -> str:
    """The command line that goes on with the comparison or makes it again."""
    words = ["gnothi", "compare", asked["data"]]
    for option in ("methods", "auxiliaries"):
        words += [f"--{option}", ",".join(asked[option])]
    for option in ("seeds", "epochs", "seconds", "recipe", "test", "metric", "device"):
        words += [] if asked[option] is None else [f"--{option}", f"{asked[option]}"]
    for key, value in flat(asked["settings"]).items():
        words += ["--set", f"{key}={typed(value)}"]
    for key, values in asked["vary"].items():
        words += ["--vary", f"{key}={','.join(map(typed, values))}"]
    return shlex.join([*words, "--out", str(folder)])
