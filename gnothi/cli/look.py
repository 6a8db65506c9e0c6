"""Verbs that look before anything is spent: data, recipes."""

from __future__ import annotations

import json
from typing import Any

import click

from gnothi.cli.options import AS_JSON, DATA_SET, DEVICE, data_settings, told


@click.command()
@click.argument("data")
@click.option("--test", metavar="DATA", help="Test images, to look for duplicates between the two; by default DATA@test, or else DATA@val.")
@click.option("--encoder", metavar="ENCODER", help="Look for near duplicates and outliers by what this encoder says, too.")
@click.option("--near", type=float, metavar="COSINE", help="From which cosine on --encoder calls a pair near; by default by the data.")
@DEVICE
@DATA_SET
@AS_JSON
def data(
    data: str, test: str | None, encoder: str | None, near: float | None, device: str | None, assignments: tuple[str, ...], as_json: bool
) -> None:
    """Look at images before training.

    Counts, sizes, channels and their statistics, unreadable files by name, exact and near duplicates (also between train and test), classes; with
    --encoder also what that encoder cannot tell apart, and images that are like nothing else.

    \b
    gnothi data photos
    gnothi data my-images --set data.labels=labels.csv
    gnothi data my-images --encoder runs/mine
    """  # noqa: D301
    from gnothi import data as sources
    from gnothi.training.progress import counted

    if encoder is None and near is not None:
        raise click.UsageError("--near means nothing without --encoder")
    settings = data_settings(data, assignments)
    source = sources.open(data, settings=settings)
    known = sources.splits(data, settings)
    if test is None and "@" not in data:
        test = next((f"{data}@{word}" for word in ("test", "val") if word in known), None)
    other = sources.open(test, settings=settings) if test else None
    with counted("reading", not as_json) as progress:
        seen = sources.inspect(source, other, progress=progress)
    lines, found = seen.lines(test), {"data": data, "test": test, **seen.to_dict()}
    if encoder is not None:
        from gnothi.search import odd

        with counted("embedding", not as_json) as progress:
            oddities = odd(encoder, source, other, near=near, device=device, progress=progress)
        lines, found = lines + oddities.lines(), found | {"odd": oddities.to_dict()}
    told(as_json, found, lambda: "\n".join(lines))


@click.command()
@click.argument("name", required=False)
@AS_JSON
def recipes(name: str | None, as_json: bool) -> None:
    """List the recipes, or show one with its settings.

    Recipes of runs are taken by `train --recipe`, recipes of views by `--set views.recipe=NAME`. What a recipe leaves open is decided by rules, from
    the number of images, their size and channels and the device; `gnothi plan DATA` shows what came of it.
    """
    from gnothi.recipes.named import RECIPES, recipe
    from gnothi.recipes.views import VIEWS

    if name in VIEWS and name not in RECIPES:
        about = " ".join((VIEWS[name].__doc__ or "").split())
        told(as_json, {"views": name, "about": about, "crops": VIEWS[name](32).model_dump()}, lambda: f"views {name}\n  {about}")
        return
    if name is not None:
        found = recipe(name)
        told(as_json, {"recipe": name, "about": found.about, "settings": found.settings}, lambda: shown(name, found))
        return
    views = {k: " ".join((v.__doc__ or "").split()) for k, v in VIEWS.items()}
    runs = {k: v.about for k, v in RECIPES.items()}
    told(
        as_json,
        {"recipes": runs, "views": views},
        lambda: "Recipes of runs (train --recipe NAME)\n" + listed(runs) + "\n\nRecipes of views (--set views.recipe=NAME)\n" + listed(views),
    )


def listed(rows: dict[str, str]) -> str:
    """Names with their texts, wrapped."""
    import textwrap

    width = max(map(len, rows)) + 2
    indent = " " * (width + 2)
    return "\n".join(textwrap.fill(f"  {k:<{width}}{v}", 110, subsequent_indent=indent) for k, v in rows.items())


def shown(name: str, found: Any) -> str:
    """One recipe, as settings that can be typed."""
    from gnothi.recipes.spec import flat

    lines = [f"  --set {k}={json.dumps(v)}" for k, v in flat(found.settings).items()]
    return "\n".join([name, f"  {found.about}", "", *(lines or ["  (everything by rule)"])])
