"""Verbs that combine encoders: ensemble fit, ensemble compare."""

from __future__ import annotations

from typing import Any

import click

from gnothi.cli.group import Verbs
from gnothi.cli.options import AS_JSON, DEVICE, data_settings, told

SETTINGS = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting of the combiner, such as power=0, or of data, such as data.labels=FILE; may be repeated.",
)


@click.group(cls=Verbs)
def ensemble() -> None:
    """Combine several encoders into one representation, which is an encoder itself.

    One encoder alone may be named, too: its spectrum then changes, and with it what its nearest neighbours are.
    """


class Steps:
    """Shows the steps of a fit that descends: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self.shown: Any = None

    def __enter__(self) -> Steps:
        return self

    def __call__(self, done: int, total: int, loss: float) -> None:
        from gnothi.training.progress import display

        if self.shown is None:
            self.shown = display(total, done - 1)
        self.shown.update(done, {"terms": {"loss": loss}})

    def __exit__(self, *_: object) -> None:
        if self.shown is not None:
            self.shown.close()


def divided(data: str, assignments: tuple[str, ...]) -> tuple[Any, dict[str, Any]]:
    """The settings of the data, and those of the combiner."""
    from gnothi.recipes.spec import parse

    of_data = tuple(a for a in assignments if a.startswith("data."))
    return data_settings(data, of_data), parse(a for a in assignments if a not in of_data)


@ensemble.command()
@click.argument("encoders", nargs=-1, required=True, metavar="ENCODER...")
@click.option("--data", required=True, metavar="DATA", help="Images to fit on, their training split where they have one; labels are not needed.")
@click.option("--out", required=True, metavar="FOLDER", help="The folder to write.")
@click.option(
    "--combiner",
    default="pca",
    show_default=True,
    metavar="C",
    help="pca, whitened, gcca, concatenation, average, procrustes, member, best, descent or amortised (docs/ensemble.md).",
)
@click.option("--seed", default=0, show_default=True, help="Of all that is random.")
@DEVICE
@SETTINGS
@AS_JSON
def fit(encoders: tuple[str, ...], data: str, out: str, assignments: tuple[str, ...], device: str | None, as_json: bool, **chosen: Any) -> None:
    """Fit a combiner to the features of several encoders.

    FOLDER is then the name of an encoder, for every verb that takes one; evaluate knn FOLDER and the members side by side says what it gives. A fit
    that was cut off goes on where the same command is given again.

    \b
    gnothi ensemble fit runs/a runs/b hog --data my-images --out runs/together
    gnothi ensemble fit runs/a runs/b --data photos --combiner descent --out runs/together
    """  # noqa: D301
    from gnothi.ensemble import make
    from gnothi.training.progress import counted

    spec, settings = divided(data, assignments)
    with counted("embedding", not as_json) as progress, Steps() as steps:
        told_of: dict[str, Any] = {"progress": progress, "hears": None if as_json else steps}
        made = make(encoders, data, out, options=settings, settings=spec, device=device, **told_of, **chosen)
    if made is None:  # a process of torchrun that is not the first
        return
    record = made.ensemble.record
    told(
        as_json,
        {"out": out, "combiner": made.ensemble.combiner, "dim": made.dim, "members": list(encoders), "fingerprint": made.fingerprint, **record},
        lambda: f"{out}: {made.ensemble.combiner} of {len(encoders)} members, {made.dim} numbers, fitted on {record['n']} images",
    )


@ensemble.command()
@click.argument("encoders", nargs=-1, required=True, metavar="ENCODER...")
@click.option("--data", required=True, metavar="DATA", help="Labelled images; combiners are fitted to those that train.")
@click.option("--test", metavar="DATA", help="Labelled images to test on; by default DATA@test, DATA@val, or a part held out.")
@click.option("--combiner", "combiners", multiple=True, metavar="C", help="A combiner, may be repeated; by default all.")
@click.option("--metric", "kind", type=click.Choice(["knn", "linear"]), default="knn", show_default=True, help="What is measured.")
@click.option("-k", type=int, help="Neighbours that vote; 20 by default.")
@click.option("--temperature", type=float, help="A neighbour's vote is exp(similarity / temperature); 0.07 by default.")
@click.option("--seed", default=0, show_default=True, help="Of all that is random.")
@DEVICE
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="A setting of a combiner, such as descent.steps=50, or of data; may be repeated."
)
@AS_JSON
def compare(encoders: tuple[str, ...], data: str, assignments: tuple[str, ...], as_json: bool, **asked: Any) -> None:
    """Measure every combiner beside each member.

    All are compared with the best member, which is chosen on held-out training images, and with the concatenation, by paired intervals on the same
    test images. PCA is shown at five powers: the control that a descent has to beat.
    """
    from gnothi import ensemble as combining
    from gnothi.contracts import SettingError
    from gnothi.training.progress import counted

    spec, options = divided(data, assignments)
    wrong = next((key for key, value in options.items() if not isinstance(value, dict)), None)
    if wrong is not None:
        raise SettingError(f"{wrong}: settings are those of a combiner here, such as pca.{wrong} or descent.{wrong}")
    protocol = {key: asked.pop(key) for key in ("k", "temperature")}
    combiners = asked.pop("combiners") or combining.ALL
    given = {"protocol": {k: v for k, v in protocol.items() if v is not None}, "options": options, "settings": spec}
    with counted("embedding", not as_json) as progress:
        results = combining.compare(encoders, data, asked.pop("test"), combiners, progress=progress, **given, **asked)
    told(as_json, {"results": [r.to_dict() for r in results]}, lambda: combining.text(results))
