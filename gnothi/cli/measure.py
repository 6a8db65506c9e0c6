"""Verbs that measure encoders: evaluate knn, evaluate linear, evaluate layers, evaluate patches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from gnothi.cli.group import Verbs
from gnothi.cli.options import AS_JSON, DATA_SET, DEVICE, data_settings, told


@click.group(cls=Verbs)
def evaluate() -> None:
    """Measure how good encoders are, with intervals.

    Several encoders make one table, with the interval of each one's difference to the first. Data without a test split are divided by seed, class and
    group, and the protocol says so. Nothing is ever chosen on test images.
    """


def measured(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that all measures share."""
    options = [
        click.argument("encoders", nargs=-1, required=True, metavar="ENCODER..."),
        click.option("--data", required=True, metavar="DATA", help="Labelled images that answer or train."),
        click.option("--test", metavar="DATA", help="Labelled images that ask; by default DATA@test, or a part held out."),
        click.option("--seeds", is_flag=True, help="The encoders are one recipe with several seeds: one row, their mean and its t-interval."),
        DEVICE,
        DATA_SET,
        AS_JSON,
    ]
    for option in reversed(options):
        command = option(command)
    return command


def measure(kind: str, common: dict[str, Any], **settings: Any) -> None:
    """Evaluate, and print a table or one object."""
    from gnothi import evaluate as evaluation
    from gnothi.training.progress import counted

    spec = data_settings(common["data"], common["assignments"])
    settings = {k: v for k, v in settings.items() if v is not None} | {"settings": spec, "device": common["device"]}
    with counted("embedding", not common["as_json"]) as progress:
        results = evaluation.run(kind, common["encoders"], common["data"], common["test"], progress=progress, **settings)
    if common["seeds"]:
        results = [evaluation.summary(results)]
    rows = [r.to_dict() for r in results]
    told(common["as_json"], rows[0] if len(rows) == 1 else {"results": rows}, lambda: evaluation.table(results))


@evaluate.command()
@measured
@click.option("-k", type=int, help="Neighbours that vote; 20 by default.")
@click.option("--temperature", type=float, help="A neighbour's vote is exp(similarity / temperature); 0.07 by default.")
@click.option("--preset", metavar="P", help="A published protocol: dino, lightly or solo-learn.")
def knn(k: int | None, temperature: float | None, preset: str | None, **common: Any) -> None:
    """Accuracy of the vote of the nearest training images; nothing is trained."""
    measure("knn", common, k=k, temperature=temperature, preset=preset)


@evaluate.command()
@measured
@click.option("--protocol", type=click.Choice(["logistic", "sgd"]), help="Logistic regression (default), or SGD with a sweep of rates.")
def linear(protocol: str | None, **common: Any) -> None:
    """Accuracy of a linear classifier on frozen features; its strength is chosen on a split of the training images."""
    measure("linear", common, protocol=protocol)


@evaluate.command()
@measured
@click.option("--metric", "metrics", type=click.Choice(["knn", "linear"]), multiple=True, help="knn or linear; both by default.")
@click.option("-k", type=int, help="Neighbours that vote; 20 by default.")
@click.option("--temperature", type=float, help="A neighbour's vote is exp(similarity / temperature); 0.07 by default.")
@click.option("--protocol", type=click.Choice(["logistic", "sgd"]), help="Of linear: logistic regression (default), or SGD with a sweep of rates.")
@click.option("--plot", metavar="FILE", help="Draw accuracy by block and by FLOPs into an .svg or .png file.")
def layers(metrics: tuple[str, ...], plot: str | None, **common: Any) -> None:
    """Accuracy of every block of networks, before and after the final norm, and the FLOPs to get there.

    The images pass through each network once. Blocks are counted from 0, as auxiliary.layers.layers counts them.
    """
    from gnothi import evaluate as evaluation
    from gnothi.evaluate.depth import check_picture
    from gnothi.training.progress import counted

    path = None if plot is None else check_picture(plot)
    options = {k: common[k] for k in ("k", "temperature", "protocol") if common[k] is not None}
    options |= {"settings": data_settings(common["data"], common["assignments"]), "device": common["device"]}
    options |= {"metrics": metrics} if metrics else {}
    with counted("embedding", not common["as_json"]) as progress:
        results = evaluation.layers(common["encoders"], common["data"], common["test"], progress=progress, **options)
    results = evaluation.over_seeds(results) if common["seeds"] else results
    if path is not None:
        evaluation.plot(results, path)
    told(common["as_json"], {"results": [r.to_dict() for r in results]}, lambda: evaluation.table_of_layers(results))


@evaluate.command()
@measured
@click.option("--metric", "metrics", type=click.Choice(["knn", "linear", "retrieval"]), multiple=True, help="By default what the data allow.")
@click.option("--annotations", metavar="FOLDER", help="PASCAL VOC files or masks; by default Annotations or masks beside the images.")
@click.option("--size", type=click.IntRange(min=1), metavar="S", help="Side of the images as the networks see them; their own by default.")
@click.option("--images", type=click.IntRange(min=4), help="At most so many; 1,000 by default.")
@click.option("-k", type=int, help="Neighbours that vote; 20 by default.")
@click.option("--temperature", type=float, help="A neighbour's vote is exp(similarity / temperature); 0.07 by default.")
def patches(metrics: tuple[str, ...], **common: Any) -> None:
    """What the patches of networks show: k-NN and a linear probe of the class at a patch's centre, where boxes or masks say what is where.

    Where nothing does: whether the most similar patch of another crop is the same place. Labels of images are not needed.
    """
    from gnothi import evaluate as evaluation
    from gnothi.training.progress import counted

    options = {k: common[k] for k in ("annotations", "size", "images", "k", "temperature") if common[k] is not None}
    options |= {"settings": data_settings(common["data"], common["assignments"]), "device": common["device"], "metrics": metrics or None}
    with counted("embedding", not common["as_json"]) as progress:
        results = evaluation.patches(common["encoders"], common["data"], common["test"], progress=progress, **options)
    if common["seeds"]:
        results = [evaluation.summary([r for r in results if r.metric == metric]) for metric in dict.fromkeys(r.metric for r in results)]
    told(common["as_json"], {"results": [r.to_dict() for r in results]}, lambda: evaluation.table(results))
