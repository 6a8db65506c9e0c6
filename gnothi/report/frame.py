"""The frame of every page: one HTML file with its style and script inside, which loads nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

HERE = Path(__file__).parent


def style() -> str:
    """The style sheet of all pages."""
    return (HERE / "page.css").read_text(encoding="utf-8")


def page(template: str, **content: Any) -> str:
    """A page as text; whatever is not markup is escaped.

    Args:
        template: a file of this folder that extends ``frame.html``.
        **content: what it shows; ``kind``, ``title``, ``subtitle`` and ``version`` are the frame's.
    """
    loader = jinja2.FileSystemLoader(HERE)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["breakable"] = breakable
    script = (HERE / "page.js").read_text(encoding="utf-8")
    return environment.get_template(template).render(css=Markup(style()), js=Markup(script), **content)


def breakable(name: str) -> Markup:
    """A name that may break behind its signs."""
    return Markup("<wbr>").join(re.split(r"(?<=[+,=.])", name))
