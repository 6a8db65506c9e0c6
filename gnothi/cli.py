"""The command line: each verb is a few lines over one library function. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

START = """gnothi learns visual representations from unlabelled images.

\b
First steps:
  gnothi demo                      see it work, about three minutes
  gnothi data FOLDER               look at your images before training
  gnothi plan FOLDER               what training will cost
  gnothi train FOLDER --out RUN    learn from them
  gnothi evaluate knn RUN --data FOLDER
  gnothi embed RUN FOLDER --out features.parquet

DATA is `photos`, a folder of images, an .npz or .npy file, or a torchvision name such as cifar10; @train and @test choose a split.

ENCODER is a run's folder (RUN, RUN@teacher, RUN@step-1200, RUN@untrained), an exported folder, timm:NAME, pixels, hog, colour or features:FILE.
"""


class Verbs(click.Group):
    """Commands in the order of use, the nearest one named where there is no such command."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """As they are written below."""
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a helpful error."""
        import difflib

        if args and args[0] not in self.commands and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], self.commands, n=1, cutoff=0.4)
            rule = f"did you mean {near[0]}?" if near else f"known: {', '.join(self.commands)}"
            ctx.fail(f"no such command {args[0]!r}; {rule}")
        return super().resolve_command(ctx, args)


@click.group(cls=Verbs, help=START, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="gnothi")
def cli() -> None:
    """Give all verbs one root; its help is ``START``."""


AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one machine-readable object.")
SET = click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="A dotted setting, such as training.epochs=20; may be repeated.")
DATA_SET = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="A setting of data, such as data.labels=FILE; may be repeated."
)
DEVICE = click.option("--device", metavar="D", help="cpu, cuda or mps; by default cuda where there is one.")


def told(as_json: bool, value: Any, text: Callable[[], str]) -> None:
    """Print one object or plain text."""
    click.echo(json.dumps(value, ensure_ascii=False, default=str) if as_json else text())


def data_settings(data: str, assignments: tuple[str, ...]) -> Any:
    """The data settings of --set, for verbs that take no others."""
    from gnothi.contracts import SettingError
    from gnothi.recipes.spec import flat, load, merge, parse

    given = parse(assignments)
    settings = load(merge({"data": {"name": data}}, given)).data
    other = next((key for key in flat(given) if not key.startswith("data.") or key == "data.name"), None)
    if other is not None:
        raise SettingError(f"{other} has no effect here; of all settings this command takes those of data, such as data.labels=FILE")
    return settings


# ---- look ---------------------------------------------------------------------------------------
@cli.command()
@click.argument("data")
@click.option("--test", metavar="DATA", help="Test images, to look for duplicates between the two; by default DATA@test where there is one.")
@DATA_SET
@AS_JSON
def data(data: str, test: str | None, assignments: tuple[str, ...], as_json: bool) -> None:
    """Look at images before training.

    Counts, sizes, channels and their statistics, unreadable files by name, exact and near duplicates (also between train and test), classes.

    \b
    gnothi data photos
    gnothi data my-images --set data.labels=labels.csv
    """  # noqa: D301
    from gnothi import data as sources
    from gnothi.training.progress import counted

    settings = data_settings(data, assignments)
    source = sources.open(data, settings=settings)
    known = sources.splits(data, settings)
    if test is None and "@" not in data and "test" in known:
        test = f"{data}@test"
    other = sources.open(test, settings=settings) if test else None
    with counted("reading", not as_json) as progress:
        seen = sources.inspect(source, other, progress=progress)
    told(as_json, {"data": data, "test": test, **seen.to_dict()}, lambda: "\n".join(seen.lines()))


@cli.command()
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


# ---- train --------------------------------------------------------------------------------------
def choices(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that `plan` and `train` share."""
    options = [
        click.argument("data"),
        click.option("--recipe", metavar="R", help="A name that `gnothi recipes` lists; by default the data's own, or everything by rule."),
        click.option("--method", metavar="M", help="simclr, moco, byol, simsiam, swav, dino, barlow or vicreg."),
        click.option("--backbone", metavar="B", help="micro-resnet, micro-vit, or any timm name."),
        click.option("--auxiliary", metavar="A", multiple=True, help="An objective beside the method: rotation; may be repeated."),
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


@cli.command()
@choices
def plan(data: str, recipe: str | None, device: str | None, as_json: bool, **choice: Any) -> None:
    """Say what a run will cost, before anything is spent.

    A few steps are taken for a measure; nothing is kept. Takes the options of `train`.
    """
    from gnothi import pretrain
    from gnothi.recipes.resolve import resolve
    from gnothi.training.progress import duration

    resolved = resolve(data, recipe_name=recipe, settings=chosen(**choice), device=device)
    cost = pretrain.plan(resolved)
    told(
        as_json,
        {**resolved.record(), "cost": cost},
        lambda: (
            f"{resolved.words()}\n\n"
            f"{cost['steps']} steps of {cost['step_seconds']:.3g} s: about {duration(cost['seconds'])} in all\n"
            f"{cost['peak_memory'] / 2**30:.1f} GiB of memory, {cost['checkpoint_bytes'] / 2**20:.0f} MiB a checkpoint, "
            f"{cost['parameters'] / 1e6:.2f} million parameters in the encoder, {cost['flops']:.2g} FLOPs"
        ),
    )


@cli.command()
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
    told(as_json, {"run": str(run.folder), "report": str(page), **run.verdict, "metrics": run.metrics[-1:]}, lambda: ended(run, page, data))


def ended(run: Any, page: Path, data: str) -> str:
    """What a run came to, and what to do next."""
    v = run.verdict
    lines = [f"{v['verdict']}: {v['why']}" + (f"; to change it: {v['advice']}" if v["advice"] else "")]
    if v["broken"]:
        lines += [f"{len(v['broken'])} images could not be read and were replaced:"]
        lines += [f"  {b['message']}" + (f" ({b['count']} times)" if b["count"] > 1 else "") for b in v["broken"]]
    lines += [f"run     {run.folder}", f"page    {page}", f"next    gnothi evaluate knn {run.folder} --data {data}"]
    return "\n".join(lines)


# ---- use ----------------------------------------------------------------------------------------
@cli.group(cls=Verbs)
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


@cli.command()
@click.argument("encoder")
@click.argument("data")
@click.option("--out", required=True, metavar="FILE", help=".parquet, .npz, .npy or .safetensors")
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


@cli.command()
@click.argument("encoder")
@click.option("--to", required=True, metavar="DIR", help="The folder to write.")
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


@cli.command()
@click.argument("run")
@click.option("--out", metavar="FILE", help="The page; by default report.html in the run's folder.")
@AS_JSON
def report(run: str, out: str | None, as_json: bool) -> None:
    """Write the page of a run.

    The verdict, curves, health, views, neighbours, a map and results, in one file that loads nothing else.
    """
    from gnothi.report import write

    page = write(Path(run), out=Path(out) if out else None)
    told(as_json, {"report": str(page)}, lambda: str(page))


@cli.command()
@click.option("--out", default="runs/demo", show_default=True, metavar="RUN", help="The folder.")
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
            f"page     {done.page}\nencoder  {done.exported}\nresults  {done.folder / 'results.json'}"
        ),
    )


def main() -> None:
    """Run the command line: exit code 0, 2 for a mistake of the user, 128 + N for signal N, 1 for ours."""
    # Compute threads spin shortly, then sleep: those that only spin lose most of their speed when anything else runs (docs/log.md). Read by torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    args = sys.argv[1:]
    try:
        cli.main([*args, "--help"] if args in ([], ["evaluate"]) else args, prog_name="gnothi", standalone_mode=False)
    except click.UsageError as error:
        message = error.format_message().removesuffix(".")
        leave(
            f"{message}; see {error.ctx.command_path} --help" if isinstance(error, click.MissingParameter) and error.ctx else message, error.exit_code
        )
    except click.ClickException as error:
        leave(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        leave("interrupted", 130)
    except BrokenPipeError:  # whoever read has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(0)
    except OSError as error:
        if error.filename is None:
            raise
        path = Path(os.fsdecode(error.filename))
        path = {".tmp": path.parent, ".part": path.with_suffix("")}.get(path.suffix, path)  # names that a person never wrote
        leave(f"{path} cannot be used: {(error.strerror or str(error)).lower()}", 2)
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is not None:
            leave(str(error), code)
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
            leave("out of memory; a smaller training.batch, views.size or backbone.name needs less", 1)
        raise
    finally:
        if "gnothi.distributed" in sys.modules:
            sys.modules["gnothi.distributed"].stop()


def leave(message: str, code: int) -> None:
    """Say why, once for all processes of a run, and go."""
    if os.environ.get("RANK", "0") == "0":
        click.echo(f"gnothi: {message}", err=True)
    sys.exit(code)
