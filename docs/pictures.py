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
    return _hour("memory", "Memory of all processes in MiB during an hour of training")


def hour_step() -> str:
    """Time of a step over the hour."""
    return _hour("processor step", "Processor milliseconds of a step during an hour of training")


def _hour(key: str, label: str) -> str:
    blocks = results("hour", "benchmarks").get("blocks", [])
    if not blocks:
        return ""
    minutes = [60 * b["hours"] for b in blocks]
    return alone(line_chart(minutes, [Curve(key, [b[key] for b in blocks])], x_name="minutes", label=label, zero=True))


PICTURES: tuple[Callable[[], str], ...] = (hour_memory, hour_step)
