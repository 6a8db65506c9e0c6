"""The verb that moves what an encoder knows into another network: transfer."""

from __future__ import annotations

from typing import Any

import click

from gnothi.cli.options import AS_JSON, DEVICE, SET, onward, told


def divided(assignments: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """--set as settings of transfer, and those of the student's run."""
    from gnothi.contracts import SettingError
    from gnothi.recipes.spec import parse

    settings = parse(assignments)
    own = settings.pop("transfer", {})
    if not isinstance(own, dict):
        raise SettingError(f"transfer is a group of settings and takes no value itself, got {own!r}")
    return own, settings


@click.command()
@click.argument("teachers", nargs=-1, required=True, metavar="TEACHER...")
@click.option("--data", required=True, metavar="DATA", help="The student's images; no labels are needed.")
@click.option("--student", metavar="ARCH", help="micro-resnet, micro-vit, or any timm name; by the recipe or rule where left out.")
@click.option("--out", required=True, metavar="RUN", help="The student's run folder.")
@click.option("-k", type=click.IntRange(min=1), help="Clusters; by default one for every 200 images, from 10 to 2,000.")
@click.option("--loss", type=click.Choice(["clusters", "regression", "compress", "seed"]), help="What the student learns; clusters by default.")
@click.option("--layer", type=int, metavar="L", help="A block of the teachers' networks, from 0 or, negative, from the end.")
@click.option("--pool", metavar="P", help="How a block becomes a vector: pooled, final, max:G or average:G for a grid of G x G.")
@click.option("--fit", metavar="DATA", help="Other images whose features are clustered; the student's own are then labelled by these clusters.")
@click.option("--baseline", "names", multiple=True, metavar="B", help="shuffled, regression, compress, seed, supervised or teacher; may be repeated.")
@click.option("--try-k", metavar="K,K", help="Train nothing: say for each k how well two k-means agree, and how even the clusters are.")
@click.option("--epochs", type=float, metavar="N", help="Passes over the data; short for --set training.epochs=N.")
@click.option("--recipe", metavar="R", help="A name that `gnothi recipes` lists, for the student's run.")
@click.option("--init", metavar="ENCODER", help="Start the student from these weights.")
@click.option("--resume", is_flag=True, help="Go on where the folder stands.")
@DEVICE
@SET
@AS_JSON
def transfer(teachers: tuple[str, ...], data: str, out: str, assignments: tuple[str, ...], as_json: bool, **asked: Any) -> None:
    """Teach a network what any other encoder knows, without labels.

    The teachers' features are clustered, and the student learns to name the cluster of each image; or it learns the features themselves (--loss).
    What comes out is a run like any other. --set takes settings of transfer (transfer.heads=3) and of the run (training.batch=64).

    \b
    gnothi transfer runs/mine --data my-images --student micro-vit --out runs/student
    gnothi transfer hog --data photos --student micro-resnet --out runs/from-hog --baseline shuffled --baseline teacher
    gnothi transfer runs/a runs/b --data photos --out runs/both --set transfer.heads=3
    """  # noqa: D301
    from gnothi import distributed, report
    from gnothi import evaluate as evaluation
    from gnothi import transfer as library
    from gnothi.recipes.spec import merge
    from gnothi.training.progress import Silent, counted

    own, settings = divided(assignments)
    own |= {key: asked[key] for key in ("k", "loss", "layer", "pool", "fit") if asked[key] is not None}
    spec, names = library.TransferSpec.of(own), asked["names"]
    library.check_baselines(names)
    if asked["epochs"] is not None:
        settings = merge(settings, {"training": {"epochs": asked["epochs"]}})
    if asked["try_k"]:
        found = library.try_k(teachers, data, asked["try_k"], spec, settings, device=asked["device"])
        told(as_json, {"tried": found}, lambda: library.table_of_k(found))
        return
    with counted("embedding", not as_json) as embedding:
        more = {k: asked[k] for k in ("student", "recipe", "init", "device", "resume")} | {"embedding": embedding}
        more |= {"progress": Silent() if as_json else None, "spec": spec, "settings": settings}
        done = library.transfer(teachers, data, out=out, **more)
        folders = [done.run.folder, *library.baselines(names, teachers, data, out=out, **more)]
    results = library.measured(folders, teachers if "teacher" in names else (), data, asked["device"]) if names else []
    if distributed.rank():
        return
    page = report.write(done.run.folder)
    told(
        as_json,
        {"run": str(done.run.folder), "report": str(page), **done.run.verdict, "transfer": done.record, "results": [r.to_dict() for r in results]},
        lambda: "\n".join(
            [*(c["fit"] for c in done.record.get("clusters", [])), f"{done.run.verdict['verdict']}: {done.run.verdict['why']}"]
            + ([evaluation.table(results)] if results else [])
            + [f"run     {done.run.folder}", f"page    {page}", onward(done.run.folder)]
        ),
    )
