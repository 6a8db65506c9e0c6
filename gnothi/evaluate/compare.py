"""Results side by side, as plain text."""

from __future__ import annotations

from collections.abc import Sequence

from gnothi.evaluate.result import Result

UNEVEN = 1.5
"""The largest class holds so many times the rows of the smallest: accuracy alone then misleads."""


def table(results: Sequence[Result]) -> str:
    """A row a result, aligned; balanced accuracy and AUROC where classes are uneven; the protocols below."""
    uneven, compared = any(map(_uneven, results)), any("paired" in r.details for r in results)
    header = ["encoder", "metric", "value", "95 % interval", "n"]
    header += [f"minus {_first(results)} (95 %)"] if compared else []
    header += ["balanced", "AUROC"] if uneven else []
    rows = [header]
    for r in results:
        row = [r.encoder or "-", r.metric, f"{r.value:.3f}", f"{r.low:.3f} to {r.high:.3f}", str(r.n)]
        row += [_difference(r)] if compared else []
        row += [_number(r.details.get("balanced_accuracy")), _number(r.details.get("auroc"))] if uneven else []
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    protocols = dict.fromkeys(r.protocol for r in results)
    return "\n".join([*lines, "", *protocols])


def _uneven(result: Result) -> bool:
    counts = [n for n in result.details.get("counts", {}).values() if n]
    return bool(counts) and max(counts) > UNEVEN * min(counts)


def _first(results: Sequence[Result]) -> str:
    name: str = next(r.details["paired"]["against"] for r in results if "paired" in r.details)
    return name


def _difference(result: Result) -> str:
    p = result.details.get("paired")
    return "" if p is None else f"{p['value']:+.3f} ({p['low']:+.3f} to {p['high']:+.3f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
