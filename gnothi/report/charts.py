"""Small SVG charts: numbers in, markup out. Colours come from the page's style sheet, so that light and dark both work."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

WIDTH, HEIGHT = 360, 208
LEFT, RIGHT, TOP, BOTTOM = 48, 352, 10, 176
"""Edges of the plotting area in SVG units; one unit is about one CSS pixel."""
COLOURS = 16
"""How many colours the style sheet tells apart."""


@dataclass(frozen=True)
class Figure:
    """A chart with its words."""

    title: str
    caption: str
    svg: Markup
    names: tuple[str, ...]
    """Of its curves, for the legend; one name needs none."""
    last: str
    """The last values, for a person."""


@dataclass(frozen=True)
class Curve:
    """One line of a chart over the chart's x values."""

    name: str
    y: Sequence[float]
    """[N]; a value that is not finite leaves a gap."""
    low: Sequence[float] | None = None
    """[N], lower end of a band."""
    high: Sequence[float] | None = None
    """[N], upper end of a band."""


@dataclass(frozen=True)
class Axis:
    """A scale from values to SVG units."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where a value lies; not a number where it has no place."""
        if self.log:
            return self._between(math.log10(value), math.log10(self.low), math.log10(self.high)) if value > 0 else math.nan
        return self._between(value, self.low, self.high)

    def _between(self, value: float, low: float, high: float) -> float:
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def show(value: float, digits: int = 3) -> str:
    """A number for a person: ``digits`` significant places, powers of ten only far from 1."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("−∞" if value < 0 else "∞")
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -4 or exponent > 6:
        mantissa, power = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(power)}".replace("-", "−")
    text = f"{value:,.{max(digits - 1 - exponent, 0)}f}"
    return text.replace("-", "−")


def percent(share: float, places: int = 1) -> str:
    """A share as a person reads it; the space does not break."""
    return f"{100 * share:.{places}f}\u00a0%"


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside [low, high].

    Args:
        low: lower end.
        high: upper end, above ``low``.
        about: intervals wanted; the answer has between half and twice as many.
    """
    step = _step(low, high, about)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _step(low: float, high: float, about: int) -> float:
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)


def _tick_label(value: float, step: float) -> str:
    if value == 0:
        return "0"
    if step < 1e-4 or abs(value) >= 1e6:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-").replace("e+0", "e").replace("-", "−")
    return f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}".replace("-", "−")


def spans_decades(values: Sequence[float], ratio: float = 300) -> bool:
    """Whether a logarithmic axis serves better: all finite values positive, the largest over ``ratio`` times the smallest."""
    finite = [v for v in values if math.isfinite(v)]
    return bool(finite) and min(finite) > 0 and max(finite) > ratio * min(finite)


def y_axis(values: Sequence[float], log: bool = False) -> tuple[Axis, list[float]]:
    """The vertical scale that holds all finite values, and its ticks."""
    finite = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        marks = [10.0**e for e in range(first, last + 1, max(1, (last - first) // 4))]
        return Axis(10.0**first, 10.0**last, BOTTOM, TOP, log=True), marks
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # a flat line runs through the middle
        pad = abs(high) / 2 or 1.0
        low, high = low - pad, high + pad
    step = _step(low, high, 4)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return Axis(low, high, BOTTOM, TOP), [low + i * step for i in range(round((high - low) / step) + 1)]


def stretch(count: int, points: int = 300) -> int:
    """How many neighbouring values become one point, so that at most ``points`` are drawn."""
    return max(1, math.ceil(count / points))


def thin(values: Sequence[float], points: int = 300) -> list[float]:
    """Means of the finite values of every stretch; a gap only where a stretch has none."""
    size, array = stretch(len(values), points), np.asarray(values, dtype=np.float64)
    parts = (array[i : i + size] for i in range(0, len(array), size))
    return [float(part[np.isfinite(part)].mean()) if np.isfinite(part).any() else math.nan for part in parts]


def over_one_x(lines: Sequence[tuple[str, Sequence[float], Sequence[Sequence[float]]]]) -> tuple[list[float], list[Curve]]:
    """Curves with marks of their own over one x: straight between a curve's marks, a gap before its first and after its last.

    Args:
        lines: name, x [P] ascending, and y, low and high, [P] each.
    """
    x = np.unique(np.concatenate([at for _, at, _ in lines]))
    drawn = [Curve(name, *(np.interp(x, at, y, left=math.nan, right=math.nan).tolist() for y in parts)) for name, at, parts in lines]
    return x.tolist(), drawn


def line_chart(
    x: Sequence[float],
    curves: Sequence[Curve],
    *,
    x_name: str,
    label: str,
    x_range: tuple[float, float] | None = None,
    log: bool = False,
    zero: bool = False,
) -> Markup:
    """Draw curves over a shared x.

    Args:
        x: [N] ascending.
        curves: lines of N values each; the first is solid, others are dashed too, so that colour is never alone.
        x_name: what x is, for the axis.
        label: what a screen reader says.
        x_range: ends of the horizontal axis; those of ``x`` by default.
        log: a logarithmic vertical axis; values must be positive.
        zero: the vertical axis shows 0 too.

    Returns:
        An ``<svg>``; its ``data-chart`` attribute holds the numbers for the read-out.
    """
    bounds = [v for c in curves for part in (c.y, c.low, c.high) if part is not None for v in part]
    down, marks = y_axis([0.0, *bounds] if zero else bounds, log)
    first, last = x_range or (x[0], x[-1])
    across = Axis(first, last if last > first else first + 1, LEFT, RIGHT)
    parts = [_y_marks(down, marks), _x_marks(across, x_name)]
    parts += [_band(x, c, across, down, i) for i, c in enumerate(curves) if c.low is not None and c.high is not None]
    parts += [_line(x, c.y, across, down, i) for i, c in enumerate(curves)]
    data = {
        "x": [_short(v) for v in x],
        "px": [round(across(v), 1) for v in x],
        "name": x_name,
        "curves": [{"name": c.name, "y": [_short(v) for v in c.y], "py": [_short(down(v)) for v in c.y]} for c in curves],
    }
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}" data-chart="{}">{}</svg>').format(
        WIDTH, HEIGHT, label, json.dumps(data), Markup("").join(parts)
    )


def _short(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _y_marks(axis: Axis, marks: list[float]) -> Markup:
    step = marks[1] - marks[0] if len(marks) > 1 else 1.0
    row = Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/><text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>')
    names = [show(m, 1) if axis.log else _tick_label(m, step) for m in marks]
    return Markup("").join(row.format(LEFT, RIGHT, axis(m), axis(m), LEFT - 7, axis(m) + 3.5, n) for m, n in zip(marks, names, strict=True))


def _x_marks(axis: Axis, name: str) -> Markup:
    marks = ticks(axis.low, axis.high, 5)
    step = marks[1] - marks[0] if len(marks) > 1 else 1.0
    row = Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>')
    texts = Markup("").join(row.format(axis(m), BOTTOM + 15, _tick_label(m, step)) for m in marks)
    return texts + Markup('<text class="axis" x="{}" y="{}" text-anchor="end">{}</text>').format(RIGHT, BOTTOM + 29, name)


def _stretches(y: Sequence[float]) -> list[range]:
    """The stretches of indices without a gap."""
    good = [i for i, v in enumerate(y) if math.isfinite(v)]
    starts = [i for i in good if i == 0 or not math.isfinite(y[i - 1])]
    ends = [i + 1 for i in good if i == len(y) - 1 or not math.isfinite(y[i + 1])]
    return [range(a, b) for a, b in zip(starts, ends, strict=True)]


def _line(x: Sequence[float], y: Sequence[float], across: Axis, down: Axis, colour: int) -> Markup:
    parts = []
    for stretch in _stretches(y):
        if len(stretch) == 1:
            i = stretch[0]
            parts.append(Markup('<circle class="dot c{}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(colour % COLOURS, across(x[i]), down(y[i])))
        else:
            points = " ".join(f"{across(x[i]):.1f},{down(y[i]):.1f}" for i in stretch)
            parts.append(Markup('<polyline class="line c{}" points="{}"/>').format(colour % COLOURS, points))
    return Markup("").join(parts)


def _band(x: Sequence[float], curve: Curve, across: Axis, down: Axis, colour: int) -> Markup:
    assert curve.low is not None and curve.high is not None
    there = [i for i in range(len(x)) if math.isfinite(curve.low[i]) and math.isfinite(curve.high[i])]
    top = [f"{across(x[i]):.1f},{down(curve.high[i]):.1f}" for i in there]
    bottom = [f"{across(x[i]):.1f},{down(curve.low[i]):.1f}" for i in reversed(there)]
    return Markup('<polygon class="band c{}" points="{}"/>').format(colour % COLOURS, " ".join(top + bottom))


# ---- values with intervals, a row each; per cent of the cell's width, so that a row fits any screen ----------------


def span(results: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Ends of a common axis for (value, low, high) triples, at round numbers; [0, 1] bounds it where all values lie there."""
    low, high = min(min(r) for r in results), max(max(r) for r in results)
    room = (high - low) * 0.05 or 0.05
    step = _step(low - room, high + room, 4)
    ends = math.floor((low - room) / step) * step, math.ceil((high + room) / step) * step
    inside = low >= 0 and high <= 1
    return (max(ends[0], 0.0), min(ends[1], 1.0)) if inside else ends


def interval(value: float, low: float, high: float, ends: tuple[float, float]) -> Markup:
    """A dot at ``value`` on a bar from ``low`` to ``high``, over an axis with these ends."""
    axis = Axis(*ends, 0, 100)
    lines = Markup("").join(Markup('<line class="grid" x1="{0:.2f}%" x2="{0:.2f}%" y1="0" y2="100%"/>').format(axis(t)) for t in ticks(*ends))
    mark = Markup('<line class="bar" x1="{:.2f}%" x2="{:.2f}%" y1="50%" y2="50%"/><circle class="dot" cx="{:.2f}%" cy="50%" r="4.5"/>')
    return Markup('<svg class="interval" aria-hidden="true">{}{}</svg>').format(lines, mark.format(axis(low), axis(high), axis(value)))


def interval_axis(ends: tuple[float, float], shares: bool) -> Markup:
    """The axis above such rows; ``shares`` are written in per cent."""
    axis, marks = Axis(*ends, 0, 100), ticks(*ends)
    step = marks[1] - marks[0] if len(marks) > 1 else 1.0
    texts = []
    for i, t in enumerate(marks):
        anchor = "start" if axis(t) < 5 else "end" if axis(t) > 95 else "middle"
        text = f"{100 * t:g}\u00a0%" if shares else _tick_label(t, step)
        texts.append(Markup('<text class="tick{}" x="{:.2f}%" y="12" text-anchor="{}">{}</text>').format(" odd" * (i % 2), axis(t), anchor, text))
    return Markup('<svg class="interval axis" aria-hidden="true">{}</svg>').format(Markup("").join(texts))


# ---- points ---------------------------------------------------------------------------------------------------------

SHAPES = ("M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0", "M-3.6-3.6h7.2v7.2h-7.2z", "M0-4.8L4.6 3.4H-4.6z", "M0-5L5 0L0 5L-5 0z")
"""Disc, square, triangle, diamond: a colour never stands alone."""
MAP_SIDE = 600


def place(points: np.ndarray, side: float = MAP_SIDE, margin: float = 14) -> np.ndarray:
    """Fit points [N, 2] into a square of ``side``, one scale for both axes, centred, y downwards."""
    low, high = points.min(0), points.max(0)
    scale = (side - 2 * margin) / max(float((high - low).max()), 1e-12)
    placed: np.ndarray = (points - (low + high) / 2) * scale + side / 2
    placed[:, 1] = side - placed[:, 1]
    return placed


def scatter(placed: np.ndarray, groups: Sequence[int], label: str) -> Markup:
    """Draw points [N, 2] in SVG units; ``groups`` [N] picks colour and shape, -1 is grey."""
    shapes = Markup("").join(Markup('<path id="shape-{}" d="{}"/>').format(i, d) for i, d in enumerate(SHAPES))
    use = Markup('<use href="#shape-{}" x="{:.1f}" y="{:.1f}"/>')
    layers = []
    for group in sorted(set(groups)):
        colour = "other" if group < 0 else f"c{group % COLOURS}"
        marks = [use.format(max(group, 0) % len(SHAPES), *placed[i]) for i in range(len(placed)) if groups[i] == group]
        layers.append(Markup('<g class="points {}" data-group="{}">{}</g>').format(colour, group, Markup("").join(marks)))
    return Markup('<svg class="map" viewBox="0 0 {0} {0}" role="img" aria-label="{1}"><defs>{2}</defs>{3}</svg>').format(
        MAP_SIDE, label, shapes, Markup("").join(layers)
    )
