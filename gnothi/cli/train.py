"""Verbs that train, or say what it will cost: plan, train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gnothi.cli.options import AS_JSON, DEVICE, SET, Lists, onward, told

LISTS = ("--auxiliary",)


def choices(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that `plan` and `train` share."""
    options = [
        click.argument("data"),
        click.option("--recipe", metavar="R", help="A name that `gnothi recipes` lists; by default the data's own, or everything by rule."),
        click.option("--method", metavar="M", help="simclr, moco, byol, simsiam, swav, dino, barlow, vicreg, or none."),
        click.option("--backbone", metavar="B", help="micro-resnet, micro-vit, alexnet, alexnet-bn, or any timm name."),
        click.option("--auxiliary", metavar="A A", multiple=True, help="One or several of rotation, jigsaw, layers and local."),
        click.option("--epochs", type=float, metavar="N", help="Passes over the data; short for --set training.epochs=N."),
        DEVICE,
        SET,
        AS_JSON,
    ]
    for option in reversed(options):
        command = option(command)
    return command


def chosen(
    method: str | None, backbone: str | None, auxiliary: tuple[str, ...], epochs: float | None, assignments: tuple[str, ...]
) -> dict[str, Any]:
    """Options and --set as nested settings."""
    from gnothi.recipes.spec import merge, parse

    options: dict[str, Any] = {}
    if method is not None:
        options["method"] = {"name": method}
    if backbone is not None:
        options["backbone"] = {"name": backbone}
    if auxiliary:
        options["auxiliary"] = {name: {} for name in auxiliary}
    if epochs is not None:
        options["training"] = {"epochs": epochs}
    return merge(options, parse(assignments))


@click.command(cls=Lists, lists=LISTS)
@choices
@click.option("--processes", type=click.IntRange(min=1), metavar="N", help="Predict it for so many processes of torchrun.")
@click.option(
    "--together", type=click.IntRange(min=1), default=1, metavar="N", help="How many of them share a machine such as this one; 1 by default."
)
@click.option("--images", type=click.FloatRange(min=1), metavar="N", help="Predict it for so many images to train on, such as 1e6.")
def plan(
    data: str, recipe: str | None, device: str | None, as_json: bool, processes: int | None, together: int, images: float | None, **choice: Any
) -> None:
    """Say what a run will cost, before anything is spent.

    A few steps are taken for a measure; nothing is kept. Takes the options of `train`. With --processes or --images the cost is predicted
    instead: the run's operations and bytes are counted, and short steps of small networks say, within a minute or two, what such a machine makes of
    them.
    """
    from gnothi import plan as planning
    from gnothi.recipes.resolve import resolve
    from gnothi.training.progress import duration

    resolved = resolve(data, recipe_name=recipe, settings=chosen(**choice), device=device, processes=processes)
    if processes is not None or images is not None:
        found = planning.predict(resolved, processes or 1, None if images is None else int(images), together)
        told(
            as_json, {**resolved.record(), "cost": planning.told(found)}, lambda: f"{resolved.words()}\n\n{foretold(found, processes or 1, together)}"
        )
        return
    cost = planning.plan(resolved)
    told(
        as_json,
        {**resolved.record(), "cost": cost},
        lambda: (
            f"{resolved.words()}\n\n"
            f"{cost['steps']} steps of {cost['step_seconds']:.3g} s: about {duration(cost['seconds'])} in all, with k-NN and health along the way\n"
            f"{cost['peak_memory'] / 2**30:.1f} GiB of memory, {cost['checkpoint_bytes'] / 2**20:.0f} MiB a checkpoint, "
            f"{cost['parameters'] / 1e6:.2f} million parameters in the encoder, {cost['flops']:.2g} FLOPs"
        ),
    )


def foretold(found: Any, processes: int, together: int) -> str:
    """A prediction in words."""
    from gnothi.training.progress import duration

    whose = "each with a machine such as this one" if together == 1 else f"{together} to a machine such as this one"
    over = f"over {processes} processes, {whose}" if processes > 1 else "in one process"
    waits = f", of which {found.waiting:.0%} waits for other processes" if processes > 1 else ""
    return (
        f"predicted {over}: {found.steps:,} steps of {found.step_seconds:.3g} s{waits}\n"
        f"{1 / found.step_seconds:.3g} steps/s, {found.images_per_second:,.0f} images/s: about {duration(found.seconds)} in all\n"
        f"{found.memory / 2**30:.1f} GiB of memory a process, {found.checkpoint / 2**20:.0f} MiB a checkpoint"
    )


@click.command(cls=Lists, lists=LISTS)
@choices
@click.option("--init", metavar="ENCODER", help="Start from these weights: a run, an exported folder, or timm:NAME.")
@click.option("--out", metavar="RUN", help="The run's folder; by default runs/DATA-METHOD.")
@click.option("--resume", is_flag=True, help="Go on where the folder's last checkpoint stands.")
def train(data: str, recipe: str | None, device: str | None, as_json: bool, init: str | None, out: str | None, resume: bool, **choice: Any) -> None:
    """Learn a representation from unlabelled images.

    With no option but the data everything is chosen by rule, and said. Ctrl-C stops after the step, with a checkpoint; --resume goes on and ends as
    if the run had never stopped.

    \b
    gnothi train my-images --out runs/mine
    gnothi train my-images --method dino --backbone micro-vit --epochs 50
    gnothi train my-images --auxiliary rotation layers local
    gnothi train cells --recipe any-orientation --set training.batch=64
    """  # noqa: D301
    from gnothi import distributed, pretrain, report
    from gnothi.training.progress import Silent

    settings = chosen(**choice)
    quiet = Silent() if as_json else None
    run = pretrain.train(data, recipe=recipe, settings=settings, init=init, device=device, out=out, resume=resume, progress=quiet)
    if distributed.rank():
        return
    page = report.write(run.folder)
    told(as_json, {"run": str(run.folder), "report": str(page), **run.verdict, "metrics": run.metrics[-1:]}, lambda: ended(run, page))


def ended(run: Any, page: Path) -> str:
    """What a run came to, and what to do next."""
    v = run.verdict
    lines = [f"{v['verdict']}: {v['why']}" + (f"; to change it: {v['advice']}" if v["advice"] else "")]
    if v["broken"]:
        lines += [f"{len(v['broken'])} images could not be read and were replaced:"]
        lines += [f"  {b['message']}" + (f" ({b['count']} times)" if b["count"] > 1 else "") for b in v["broken"]]
    lines += [f"run     {run.folder}", f"page    {page}", onward(run.folder)]
    return "\n".join(lines)
