"""Charts of the documents as files of their own, from committed results and by the code that draws the pages of runs."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files

from tables import results

from gnothi.report.charts import Curve, line_chart

FRAME = '<svg xmlns="http://www.w3.org/2000/svg" style="background: var(--paper); font-family: system-ui, sans-serif"'


def alone(svg: str) -> str:
    """A chart of a page with the page's style in it, so that it stands in any other."""
    style = (files("gnothi") / "report" / "page.css").read_text(encoding="utf-8")
    opened = str(svg).replace("<svg", FRAME, 1)  # of Markup, replace would escape
    return opened.replace(">", f">\n<style>\n{style}</style>\n", 1) + "\n"


def hour_memory() -> str:
    """Memory over the hour."""
    blocks = results("hour", "benchmarks").get("blocks", [])
    if not blocks:
        return ""
    label = "Memory of all processes in MiB during an hour of training"
    return alone(
        line_chart([60 * b["hours"] for b in blocks], [Curve("memory", [b["memory"] for b in blocks])], x_name="minutes", label=label, zero=True)
    )


def hour_step() -> str:
    """A step of a run that is an hour old, and of a fresh one, by turns."""
    turns = results("hour", "benchmarks").get("step", {}).get("turns", {})
    if not turns:
        return ""
    curves = [Curve(f"{name} run", [turn["clock"] for turn in found]) for name, found in turns.items()]
    numbers = [float(i) for i in range(1, len(curves[0].y) + 1)]
    return alone(line_chart(numbers, curves, x_name="turn", label="Milliseconds of a step after an hour of training, and of a fresh run", zero=True))


PICTURES: tuple[Callable[[], str], ...] = (hour_memory, hour_step)
