"""Writes what is generated in README.md and docs/: tables and charts from committed results, settings from their specs, help texts.

    python docs/write.py [--check]

Between `<!-- NAME -->` and `<!-- end NAME -->` stands what the function NAME of this file returns; --check says what is out of date and leaves
with 1.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import click
import parts
import pictures
import projects
import scale
import studies
import tables
from click.testing import CliRunner

from gnothi.auxiliary import AUXILIARIES
from gnothi.cli import cli
from gnothi.methods import METHODS
from gnothi.recipes.named import RECIPES
from gnothi.recipes.rules import Facts, defaults
from gnothi.recipes.spec import names
from gnothi.recipes.views import VIEWS

ROOT = Path(__file__).parent.parent


def settings() -> str:
    """All settings, by group."""
    parts = []
    shared = {k: v for k, v in names({}).items() if not k.startswith("method.")}
    parts.append(rows_of(shared, set().union(*map(ruled, METHODS))))
    for method in METHODS:
        own = {k: v for k, v in names({"method": {"name": method}}).items() if k.startswith("method.") and k != "method.name"}
        parts += [f"### method: {method}\n{rows_of(own, ruled(method))}"] if own else []
    for name, (spec, _) in AUXILIARIES.items():
        own = {f"auxiliary.{name}.{k}": v for k, v in spec.model_fields.items()}
        parts.append(f"### auxiliary: {name}\n{rows_of(own)}")
    return "\n\n".join(parts)


def ruled(method: str) -> set[str]:
    """Settings that a rule gives a value for."""
    found = defaults(Facts(10_000, 3, 32), {"method": {"name": method}})
    return {f"{group}.{name}" for group, of in found.items() for name in of}


def rows_of(fields: dict, ruled: set[str] = frozenset()) -> str:
    """A table of fields."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for name, field in fields.items():
        default = "required" if field.is_required() else json.dumps(field.get_default(call_default_factory=True), default=str)
        default = default if len(default) < 40 else "..."
        if name in ruled:
            default = "by rule" if default == "null" else f"by rule; {default}"
        lines.append(f"| `{name}` | {default} | {' '.join((field.description or '').split()).replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def recipes() -> str:
    """Recipes of runs."""
    return "\n".join(["| recipe | for |", "|---|---|", *(f"| `{k}` | {v.about} |" for k, v in RECIPES.items())])


def view_recipes() -> str:
    """Recipes of views."""
    return "\n".join(
        ["| view recipe | what it does |", "|---|---|", *(f"| `{k}` | {' '.join((v.__doc__ or '').split())} |" for k, v in VIEWS.items())]
    )


def verbs() -> str:
    """The help of every verb."""
    runner = CliRunner()
    parts = []
    within = [[name, verb] for name, group in cli.commands.items() if isinstance(group, click.Group) for verb in group.commands]
    for path in [[], *([name] for name in cli.commands), *within]:
        text = runner.invoke(cli, [*path, "--help"], prog_name="gnothi", terminal_width=100).output.rstrip()
        parts.append(f"## gnothi {' '.join(path)}".rstrip() + f"\n```\n{text}\n```")
    return "\n\n".join(parts)


def files() -> str:
    """All files with their first line."""
    lines = []
    for path in sorted(ROOT.glob("gnothi/**/*.py"), key=lambda p: (str(p.parent), p.name)):
        about = re.match(r'r?"""(.+?)(?:"""|\n)', path.read_text(), re.S)
        if path.name != "__init__.py" and about:
            lines.append(f"{path.relative_to(ROOT)!s:<33} {about[1].strip()}")
    return "\n".join(["```", *lines, "```"])


def reading() -> str:
    """Files and lines from data to step, for SimCLR on images in memory and one process."""
    read = (
        "contracts losses data/order views/crops views/photometric views/loading views/batches models/micro_resnet models/heads methods/method "
        "methods/simclr training/objective training/learner"
    ).split()
    counts = {name: len((ROOT / "gnothi" / f"{name}.py").read_text().splitlines()) for name in read}
    return f"{len(counts)} files and {sum(counts.values()):,} lines: " + ", ".join(f"{k} ({v})" for k, v in counts.items()) + "."


OWN = (settings, recipes, view_recipes, verbs, files, reading)
WRITERS: dict[str, Callable[[], str]] = {
    f.__name__: f for f in (*tables.TABLES, *studies.STUDIES, *OWN, *parts.PARTS, *projects.TABLES, *scale.SCALE)
}


def written(text: str) -> str:
    """A page with every generated part made anew."""
    for name, write in WRITERS.items():
        begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
        if begin in text:
            front, _, rest = text.partition(begin)
            text = f"{front}{begin}\n{write()}\n{end}{rest.partition(end)[2]}"
    return text


def main() -> int:
    stale = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        old = page.read_text()
        if (new := written(old)) != old:
            stale.append(str(page.relative_to(ROOT)))
            if "--check" not in sys.argv:
                page.write_text(new)
    for draw in pictures.PICTURES:
        path, new = ROOT / "docs" / "images" / f"{draw.__name__}.svg", draw()
        if new and (not path.exists() or path.read_text() != new):
            stale.append(str(path.relative_to(ROOT)))
            if "--check" not in sys.argv:
                path.parent.mkdir(exist_ok=True)
                path.write_text(new)
    print("\n".join(stale) or "everything is up to date")
    return int("--check" in sys.argv and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
