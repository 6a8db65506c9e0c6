"""Accuracy after every block: what an early exit would save, and cost."""

from __future__ import annotations

from typing import Any

from gnothi.report.charts import Figure, line_chart, over_one_x, percent
from gnothi.report.record import Record
from gnothi.report.summary import METRICS

WORDS = {
    "final": "each block's vector after the network's last norm",
    "max": "each block as a grid of maxima",
    "average": "each block as a grid of means",
}
"""What a curve shows beside a vector a block."""


def wanted(record: Record) -> bool:
    """Whether blocks were measured."""
    return any(of_block(r) for r in record.results)


def of_block(result: dict[str, Any]) -> bool:
    """Whether a result is that of one block."""
    details: dict[str, Any] = result.get("details", {})
    return {"block", "flops", "features"} <= details.keys()


def figures(record: Record) -> list[Figure]:
    """A chart a metric: every network and kind of vector over the FLOPs of a forward pass up to the block."""
    results = [r for r in record.results if of_block(r)]
    return [_figure(metric, [r for r in results if r["metric"] == metric]) for metric in dict.fromkeys(r["metric"] for r in results)]


def _figure(metric: str, results: list[dict[str, Any]]) -> Figure:
    lines: dict[tuple[str, str], list[dict[str, Any]]] = {}
    encoders = list(dict.fromkeys(r["encoder"] for r in results))
    for r in sorted(results, key=lambda r: (encoders.index(r["encoder"]), r["details"]["block"])):
        lines.setdefault((r["encoder"], r["details"]["features"]), []).append(r)
    named = {key: key[0] + (f", {key[1]}" if key[1] in WORDS else "") for key in lines}
    drawn = [
        (named[key], [r["details"]["flops"] / 1e9 for r in of], [[r.get(k, r["value"]) for r in of] for k in ("value", "low", "high")])
        for key, of in lines.items()
    ]
    x, curves = over_one_x(drawn)
    ends = ", ".join(f"{c.name} {percent(max(of[0]))}" for c, (_, _, of) in zip(curves, drawn, strict=True))
    kinds = "".join(f" {kind}: {words}." for kind, words in WORDS.items() if any(features == kind for _, features in lines))
    caption = f"After every block, against billions of FLOPs up to there, with 95 % intervals.{kinds} Protocol: {results[0].get('protocol', '')}"
    svg = line_chart(x, curves, x_name="GFLOPs", label=f"{METRICS.get(metric, metric)} after every block; best: {ends}.", x_range=(0.0, x[-1]))
    return Figure(METRICS.get(metric, metric).capitalize(), caption, svg, tuple(c.name for c in curves), _best(lines))


def _best(lines: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    """The best block of the first curve."""
    best = max(next(iter(lines.values())), key=lambda r: r["value"])
    return f"{percent(best['value'])} after block {best['details']['block'] + 1} of {best['details'].get('blocks', '?')}"
