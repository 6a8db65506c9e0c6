"""k-NN along training, an arm a line: against epochs and against seconds, for the page and as a picture of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from gnothi.report.charts import COLOURS, HEIGHT, WIDTH, Curve, Figure, line_chart, over_one_x, percent
from gnothi.report.frame import style

UNITS = {"epoch": "epochs", "seconds": "seconds"}
"""What stands on the horizontal axis."""
MARGIN, LINE = 24, 20
"""Of the picture, and the height of a line of its legend, in pixels."""
TOLD = 4
"""Arms whose last value stands above a chart."""


@dataclass(frozen=True)
class Along:
    """k-NN of one arm along training, P marks."""

    arm: str
    x: dict[str, np.ndarray]
    """[P] by unit, means over the seeds."""
    value: np.ndarray
    """[P], mean over the seeds."""
    low: np.ndarray
    """[P], the least of the seeds; of one seed the lower end of its 95 % interval."""
    high: np.ndarray
    """[P], the greatest, or the upper end."""


def along(record: Mapping[str, Any]) -> list[Along]:
    """Every arm of which a run was measured along the way."""
    found = []
    for arm in (a["arm"] for a in record["arms"]):
        lines = [run["along"] for run in record["runs"] if run["arm"] == arm and run.get("along")]
        if not lines:
            continue
        marks = min(map(len, lines))
        of = {k: np.array([[m[k] for m in line[:marks]] for line in lines]) for k in ("epoch", "seconds", "value", "low", "high")}  # [S, P]
        low, high = (of["value"].min(0), of["value"].max(0)) if len(lines) > 1 else (of["low"][0], of["high"][0])
        found.append(Along(arm, {unit: of[unit].mean(0) for unit in UNITS}, of["value"].mean(0), low, high))
    return found


def figures(record: Mapping[str, Any]) -> list[Figure]:
    """The two charts.

    Raises:
        LookupError: no run was measured along the way.
    """
    lines = along(record)
    if not lines:
        raise LookupError("no labelled images were held out of training; data.holdout=0.1 holds a tenth out")
    several = record["asked"]["seeds"] > 1
    band = "from the least to the greatest of the seeds" if several else "the 95 % interval over images"
    caption = f"Share of the images held out of training whose class their nearest neighbours name; the band is {band}. No test image is among them."
    ends = ", ".join(f"{line.arm} {percent(line.value[-1])}" for line in lines) + " at the end"
    charts = []
    for unit, name in UNITS.items():
        x, drawn = shared(lines, unit)
        svg = line_chart(x, drawn, x_name=name, label=f"k-NN along training against {name}: {ends}.", x_range=(0.0, x[-1]))
        charts.append(Figure(f"k-NN against {name}", caption, svg, tuple(line.arm for line in lines), ends if len(lines) <= TOLD else ""))
    return charts


def shared(lines: Sequence[Along], unit: str) -> tuple[list[float], list[Curve]]:
    """All arms over one x."""
    return over_one_x([(line.arm, line.x[unit].tolist(), (line.value.tolist(), line.low.tolist(), line.high.tolist())) for line in lines])


def picture(charts: Sequence[Figure]) -> str:
    """The charts side by side with one legend, as a file of its own in light colours."""
    wide, names = len(charts) * (WIDTH + MARGIN) + MARGIN, charts[0].names
    tall = 2 * MARGIN + HEIGHT + LINE * (len(names) + 1)
    parts = []
    for i, chart in enumerate(charts):
        left = MARGIN + i * (WIDTH + MARGIN)
        parts.append(Markup('<text class="title" x="{}" y="{}">{}</text>').format(left, MARGIN, chart.title))
        parts.append(Markup('<svg x="{}" y="{}" width="{}" height="{}">{}</svg>').format(left, MARGIN + 8, WIDTH, HEIGHT, chart.svg))
    for i, name in enumerate(names):
        y = MARGIN + HEIGHT + LINE * (i + 1) + 8
        row = '<line class="line c{}" x1="{}" x2="{}" y1="{}" y2="{}"/><text class="name" x="{}" y="{}">{}</text>'
        parts.append(Markup(row).format(i % COLOURS, MARGIN, MARGIN + 28, y, y, MARGIN + 38, y + 4, name))
    frame = '<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{1}" viewBox="0 0 {0} {1}"><style>{2}</style>{3}</svg>\n'
    return str(Markup(frame).format(wide, tall, Markup(_style()), Markup("").join(parts)))


def _style() -> str:
    """The page's rules for charts with its light colours written out: what draws pictures seldom knows variables."""
    sheet = style()
    colours = dict(re.findall(r"--([\w-]+): (#\w+);", sheet.partition("}")[0]))
    rules = [r for r in re.findall(r"^\.(?:grid|tick|line|band|chart \.dot)\b.*$", sheet, re.M) if "var(--c)" not in r]
    drawn = ".line.c{0}{{stroke:{1}}}.band.c{0},.dot.c{0}{{fill:{1}}}"
    rules += [drawn.format(i, colours[f"k{i}"]) for i in range(COLOURS)]
    words = f"svg{{background:{colours['raised']};font-family:system-ui,sans-serif}}.title{{font-size:14px;font-weight:600}}.name{{font-size:12px}}"
    plain = ".line{fill:none;stroke-width:2;stroke-linejoin:round}.band{opacity:.16}"
    return words + plain + re.sub(r"var\(--([\w-]+)\)", lambda m: colours[m[1]], "".join(rules))
