"""Verbs that make something of a run: embed, export, report; and the demo, which does all of it."""

from __future__ import annotations

from pathlib import Path

import click

from gnothi.cli.options import AS_JSON, DATA_SET, DEVICE, data_settings, told


@click.command()
@click.argument("encoder")
@click.argument("data")
@click.option("--out", required=True, metavar="FILE", help="The file; .parquet, .npz, .npy or .safetensors.")
@DEVICE
@DATA_SET
@AS_JSON
def embed(encoder: str, data: str, out: str, device: str | None, assignments: tuple[str, ...], as_json: bool) -> None:
    """Write the vectors of all images to a file.

    Beside the vectors stand names, labels and groups.

    \b
    gnothi embed runs/mine my-images --out features.parquet
    """  # noqa: D301
    from gnothi import encoders
    from gnothi.training.progress import counted

    settings = data_settings(data, assignments)
    with counted("embedding", not as_json) as progress:
        done = encoders.embed(encoder, data, out, settings=settings, device=device, progress=progress)
    told(as_json, done, lambda: f"{done['n']} vectors of {done['dim']} numbers in {done['out']}" + left_out(done["broken"]))


def left_out(broken: list[str]) -> str:
    """The files that could not be read."""
    return "".join(f"\n  left out: {name}" for name in broken)


@click.command()
@click.argument("encoder")
@click.option("--to", required=True, metavar="FOLDER", help="The folder to write.")
@click.option("--onnx/--no-onnx", default=None, help="Write model.onnx too; by default where the extra `onnx` is installed.")
@click.option("--data", metavar="DATA", help="Images on which the export is compared with the encoder; by default the run's own.")
@AS_JSON
def export(encoder: str, to: str, onnx: bool | None, data: str | None, as_json: bool) -> None:
    """Write an encoder for use without gnothi.

    safetensors that timm loads, a model card, and ONNX with the preprocessing inside; both are compared with the encoder in a process of their own.
    """
    from gnothi.export import export as write

    done = write(encoder, Path(to), onnx=onnx, data=data)
    told(as_json, done.to_dict(), lambda: "\n".join(done.lines()))


@click.command()
@click.argument("run")
@click.option("--results", multiple=True, metavar="FILE", help="What a verb that measures printed with --json, to be shown too; may be repeated.")
@click.option("--out", metavar="FILE", help="The page; by default report.html in the run's folder.")
@AS_JSON
def report(run: str, results: tuple[str, ...], out: str | None, as_json: bool) -> None:
    """Write the page of a run.

    The verdict, curves, health, views, neighbours, a map and results, in one file that loads nothing else.

    \b
    gnothi report runs/mine
    gnothi report runs/mine --results layers.json
    """  # noqa: D301
    from gnothi.report import write

    page = write(Path(run).expanduser(), files=[Path(f).expanduser() for f in results], out=Path(out).expanduser() if out else None)
    told(as_json, {"report": str(page)}, lambda: str(page))


@click.command()
@click.option("--out", default="runs/demo", show_default=True, metavar="RUN", help="The run's folder.")
@AS_JSON
def demo(out: str, as_json: bool) -> None:
    """See a representation being learned.

    From photographs that come with the installation, in three minutes on two cores: trains, measures against pixels, HOG, colour and the untrained
    network, exports, and writes a page. Interrupt it as you like: a second call goes on.
    """
    from gnothi import demo as demonstration
    from gnothi import evaluate as evaluation

    done = demonstration.demo(out, say=lambda text: click.echo(text, err=True))
    told(
        as_json,
        {"run": str(done.folder), "results": [r.to_dict() for r in done.results], "verdict": done.verdict, "report": str(done.page)},
        lambda: (
            f"\n{evaluation.table(done.results)}\n\n{done.verdict['verdict']}: {done.verdict['why']}\n"
            f"page     {done.page}\nencoder  {done.exported}\nresults  {done.folder / 'results.json'}\n"
            "next     gnothi data FOLDER, to look at images of your own"
        ),
    )
