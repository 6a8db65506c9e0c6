"""The verb that trains several things on equal terms: compare."""

from __future__ import annotations

import re
from typing import Any

import click

from gnothi.cli.options import AS_JSON, DEVICE, SET, Lists, told


def split(texts: tuple[str, ...]) -> list[str]:
    """Lists joined by commas, taken apart; a comma inside brackets is part of a value."""
    return [part.strip() for text in texts for part in re.split(r",(?![^\[]*\])", text)]


def varied(texts: tuple[str, ...]) -> dict[str, list[Any]]:
    """KEY=V1,V2 as the key with its values, each JSON or else text."""
    from gnothi.contracts import SettingError
    from gnothi.recipes.spec import flat, parse

    found: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals or not key or not values or key in found:
            raise SettingError(f"--vary takes KEY=V1,V2, like optimiser.lr=0.1,0.2, a key once, got {text!r}")
        found[key] = [next(iter(flat(parse([f"{key}={value}"])).values())) for value in split((values,))]
    return found


@click.command(cls=Lists, lists=("--methods", "--auxiliaries", "--vary"))
@click.argument("data", required=False)
@click.option("--data", "named", metavar="DATA", help="The same as the argument DATA.")
@click.option("--methods", multiple=True, default=["simclr"], metavar="M,M", help="One or more methods; simclr by default.")
@click.option(
    "--auxiliaries",
    multiple=True,
    default=["none"],
    metavar="A,A+A",
    help="Sets of auxiliaries beside each method, joined by +; none is the empty set.",
)
@click.option("--seeds", type=int, default=1, show_default=True, metavar="N", help="Runs of each arm, with the seeds 0, 1, 2 and so on.")
@click.option("--epochs", type=float, metavar="N", help="Of every run; by default what the rules give the first arm.")
@click.option("--seconds", type=float, metavar="S", help="Training time of every run instead of epochs, on this machine.")
@click.option("--vary", multiple=True, metavar="KEY=V,V", help="A setting with values to try, each an arm; may be repeated.")
@click.option("--recipe", metavar="R", help="A name that `gnothi recipes` lists, for all arms.")
@click.option("--test", metavar="DATA", help="Labelled images to test on; by default DATA@test, DATA@val, or a part held out.")
@click.option("--metric", type=click.Choice(["knn", "linear"]), default="knn", show_default=True, help="How runs are measured.")
@click.option("--out", required=True, metavar="FOLDER", help="The comparison's folder, with a run's folder in it for each arm and seed.")
@DEVICE
@SET
@AS_JSON
def compare(data: str | None, named: str | None, assignments: tuple[str, ...], as_json: bool, **asked: Any) -> None:
    """Compare methods and auxiliaries on equal terms.

    Every method with every set of auxiliaries and every varied value is an arm. All arms are built and timed first, what it will take is said, then
    they train, are measured on the same test images, and make one table with paired intervals, a page and curves. A second call with the same
    arguments goes on where the first was stopped.

    \b
    gnothi compare photos --methods simclr,byol --auxiliaries none,rotation --seeds 3 --epochs 10 --out cmp
    gnothi compare photos --methods simclr --vary optimiser.lr=0.06,0.12 --seconds 120 --out rates
    """  # noqa: D301
    from gnothi.comparison import compare as run
    from gnothi.contracts import RunError
    from gnothi.recipes.spec import parse

    if (data is None) == (named is None):
        raise click.UsageError("DATA stands first or after --data, once: gnothi compare DATA --methods ... --out FOLDER")
    asked |= {key: split(asked[key]) for key in ("methods", "auxiliaries")}
    asked |= {"settings": parse(assignments), "vary": varied(asked["vary"])}
    done = run(data or named or "", quiet=as_json, **asked)
    found = {"folder": str(done.folder), "report": str(done.page), "curves": str(done.curves)}
    told(
        as_json,
        {**found, "table": done.record["table"], "protocol": done.record["protocol"], "failed": done.failed},
        lambda: f"\n{done.text()}\n\n" + "\n".join(f"{k:<8}{v}" for k, v in found.items()),
    )
    if done.failed:
        raise RunError(f"{len(done.failed)} of {len(done.record['runs'])} runs had to stop; {done.failed[0]}")
