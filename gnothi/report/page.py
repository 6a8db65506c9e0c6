"""The page of a run: every section that its files, data and encoder allow, in one HTML file that loads nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from gnothi.contracts import EncoderError
from gnothi.files import write_text
from gnothi.report import curves, frame, layers, matches, record, sections, summary
from gnothi.report.material import Sample, samples

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Section:
    """A part of the page: its content, or in a line why there is none."""

    key: str
    title: str
    content: Any = None
    missing: str = ""


@dataclass
class Once:
    """Calls a function on first use, and repeats its answer or its error afterwards."""

    make: Callable[[], Any]
    found: list[Any] = field(default_factory=list)

    def __call__(self) -> Any:
        if not self.found:
            try:
                self.found = [self.make(), None]
            except Exception as error:
                self.found = [None, error]
        if self.found[1] is not None:
            raise self.found[1]
        return self.found[0]


def write(run: Path | str, *, results: Sequence[dict[str, Any]] | None = None, files: Sequence[Path | str] = (), out: Path | None = None) -> Path:
    """Draw the page of a run.

    Args:
        run: the run folder.
        results: evaluations as ``Result.to_dict`` gives them; by default those in the folder's ``results.json``.
        files: what ``--json`` of verbs that measure printed, shown too.
        out: where the page goes; ``report.html`` in the run folder by default.

    Returns:
        The file written.

    Raises:
        EncoderError: the folder is not a run's, or a file holds no results.
    """
    found = record.read(Path(run), None if results is None else list(results))
    for path in map(Path, files):
        more = record.results_of(path)
        if not more:
            raise EncoderError(f"{path}: holds no results; `gnothi evaluate ... --json > {path}` writes some")
        found.results.extend(more)
    out = out or found.folder / "report.html"
    opened = Once(lambda: samples(found))
    try:
        page = render(found, parts(found, opened))
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError, TemplateError) as error:
        log.info("the page of %s cannot be drawn", found.folder, exc_info=True)
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
        raise EncoderError(f"{found.folder}: its files do not hold what a run writes ({said})") from error
    write_text(out, page)
    return out


def parts(found: record.Record, opened: Callable[[], tuple[Sample, Sample]]) -> list[Section]:
    """The sections in reading order."""
    seed = int(found.settings.get("seed", 0))
    return [
        _section("results", "What it can tell apart", lambda: _some(summary.tables(found), summary.first_look(found))),
        _section("curves", "How training went", lambda: _some(curves.figures(found), "metrics.jsonl holds no numbers")),
        *([_section("layers", "Block by block", lambda: layers.figures(found))] if layers.wanted(found) else []),
        _section("views", "What the network saw", lambda: sections.views(found)),
        *([_section("matches", "Which patches belong together", lambda: matches.matches(found))] if matches.wanted(found) else []),
        _section("neighbours", "Nearest neighbours", lambda: sections.neighbours(*opened(), seed)),
        _section("map", "A map of the embedding", lambda: sections.chart_of(*opened(), seed)),
    ]


def _some(content: list[Any], otherwise: str) -> list[Any]:
    if not content:
        raise LookupError(otherwise)
    return content


def _section(key: str, title: str, make: Callable[[], Any]) -> Section:
    # One section that cannot be made (data that moved, a package that is missing) must not cost the reader the others.
    try:
        return Section(key, title, make())
    except Exception as error:
        log.info("the report goes without its section %s", key, exc_info=True)
        return Section(key, title, missing=str(error).splitlines()[0] if str(error) else type(error).__name__)


def render(found: record.Record, content: list[Section]) -> str:
    """The page as text."""
    return frame.page(
        "page.html",
        kind="report",
        title=found.folder.resolve().name,
        sections={s.key: s for s in content},
        verdict=summary.verdict(found),
        headlines=summary.headlines(found),
        subtitle=summary.subtitle(found),
        typed=summary.typed(found),
        commands=summary.commands(found),
        settings=summary.settings(found),
        environment=list(record.flatten(found.environment)),
        version=found.version,
    )
