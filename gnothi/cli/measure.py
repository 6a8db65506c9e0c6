"""Verbs that measure encoders: evaluate knn, linear, finetune, multilabel, detect, layers, patches."""

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
        click.option("--data", required=True, metavar="DATA", help="Labelled images to learn the classes from."),
        click.option("--test", metavar="DATA", help="Labelled images to test on; by default DATA@test, DATA@val, or a part held out."),
        click.option("--over-seeds", is_flag=True, help="The encoders are one recipe with several seeds: one row, their mean and its t-interval."),
        DEVICE,
        DATA_SET,
        AS_JSON,
    ]
    for option in reversed(options):
        command = option(command)
    return command


def told_by_metric(results: list[Any], common: dict[str, Any]) -> None:
    """Print results of several metrics, metrics first; with --over-seeds the encoders of each as one row, before what was measured beside them."""
    from gnothi import evaluate as evaluation

    if common["over_seeds"]:
        many, by_metric = len(common["encoders"]), [[r for r in results if r.metric == m] for m in dict.fromkeys(r.metric for r in results)]
        results = [one for own in by_metric for one in (evaluation.summary(own[:many]), *own[many:])]
    told(common["as_json"], {"results": [r.to_dict() for r in results]}, lambda: evaluation.table(results))


def measure(kind: str, common: dict[str, Any], **settings: Any) -> None:
    """Evaluate, and print a table or one object."""
    from gnothi import evaluate as evaluation
    from gnothi.training.progress import counted

    spec = data_settings(common["data"], common["assignments"])
    settings = {k: v for k, v in settings.items() if v is not None} | {"settings": spec, "device": common["device"]}
    with counted("embedding", not common["as_json"]) as progress:
        results = evaluation.run(kind, common["encoders"], common["data"], common["test"], progress=progress, **settings)
    if not results:  # another process of torchrun has them
        return
    if common["over_seeds"]:
        results = [evaluation.summary(results)]
    rows = [r.to_dict() for r in results]
    told(common["as_json"], rows[0] if len(rows) == 1 else {"results": rows}, lambda: evaluation.table(results))


@evaluate.command()
@measured
@click.option("-k", type=int, help="Neighbours that vote; 20 by default.")
@click.option("--temperature", type=float, help="A neighbour's vote is exp(similarity / temperature); 0.07 by default.")
@click.option("--preset", metavar="P", help="A protocol: dino (dino-10, dino-20, dino-100, dino-200), lightly, solo-learn or solo-learn-cosine.")
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
@click.option("--share", type=click.FloatRange(0, 1, min_open=True), help="Part of the labels of each class that is shown, such as 0.01.")
@click.option("--shots", type=click.IntRange(min=1), help="Labels of each class that are shown, instead of a share.")
@click.option("--freeze", type=int, help="Nothing up to this block learns; from 0 or, negative, from the end.")
@click.option("--anew", is_flag=True, help="What lies above the frozen blocks starts from random weights.")
@click.option("--control", is_flag=True, help="The same architectures from random weights, too.")
@click.option("--repeats", type=click.IntRange(min=1), help="Seeds, each with labels, heads and crops of its own; results are means.")
@click.option("--epochs", type=float, metavar="N", help="Passes over the labelled images; by default about 1,000 steps in 10 to 100 epochs.")
@click.option("--batch", type=click.IntRange(min=2), help="Images a step; 64 by default, fewer where labels are few.")
@click.option("--lr", type=float, help="Peak learning rate; by default one of four, chosen on a fifth of the labelled images.")
@click.option("--views", metavar="V", help="A recipe of views that `gnothi recipes` lists; plain by default: crops and flips.")
@click.option("--workers", type=click.IntRange(min=0), help="Processes that read images; none by default.")
@click.option("--out", metavar="FOLDER", help="Keep the runs there: the same command then goes on with them, and their last states are encoders.")
def finetune(repeats: int | None, control: bool, out: str | None, **common: Any) -> None:
    """Accuracy of networks that go on learning from labels, all of them or a few; the test images are looked at once, after the last epoch.

    The same rows for every encoder. --freeze N --anew is the non-linear table of papers: blocks up to N are kept, the others trained from scratch.
    """
    from gnothi import evaluate as evaluation

    words = ("share", "shots", "freeze", "anew", "epochs", "batch", "lr", "views", "workers")
    spec = evaluation.FinetuneSpec.of({word: common[word] for word in words if common[word] is not None})
    options: dict[str, Any] = {"spec": spec, "control": control, "repeats": repeats or 1, "out": out, "shown": not common["as_json"]}
    options |= {"settings": data_settings(common["data"], common["assignments"]), "device": common["device"]}
    results = evaluation.finetune(common["encoders"], common["data"], common["test"], **options)
    told_by_metric(results, common)


@evaluate.command()
@measured
@click.option(
    "--kind", "kinds", type=click.Choice(["11-point", "area", "no-envelope", "101-point"]), multiple=True, help="11-point and area by default."
)
@click.option("--annotations", metavar="FOLDER", help="PASCAL VOC files; by default Annotations in the folder of images or beside it.")
@click.option("--tune", is_flag=True, help="Fine-tune the networks instead, and measure after the last epoch.")
@click.option("--freeze", type=int, help="With --tune: nothing up to this block learns; from 0 or, negative, from the end.")
@click.option("--anew", is_flag=True, help="With --freeze: what lies above starts from random weights.")
@click.option("--control", is_flag=True, help="With --tune: the same architectures from random weights, too.")
@click.option("--epochs", type=float, metavar="N", help="With --tune: passes over the images; by default about 1,000 steps in 10 to 100 epochs.")
@click.option("--lr", type=float, help="With --tune: peak learning rate; by default one of four, chosen on a fifth of the training images.")
@click.option("--out", metavar="FOLDER", help="With --tune: keep the runs there; the same command then goes on with them.")
def multilabel(kinds: tuple[str, ...], annotations: str | None, tune: bool, control: bool, out: str | None, **common: Any) -> None:
    """Mean average precision over classes where an image may show several: a linear classifier a class, on frozen features.

    DATA is a folder in PASCAL VOC layout, a COCO .json file, or images with labels such as cat;dog (--set data.labels=FILE).
    """
    from gnothi import evaluate as evaluation
    from gnothi.contracts import SettingError
    from gnothi.training.progress import counted

    said = {word: common[word] for word in ("freeze", "anew", "epochs", "lr") if common[word] not in (None, False)}
    if not tune and (lost := next((f"--{word}" for word in (*said, *(["control"] if control else []), *(["out"] if out else []))), None)):
        raise SettingError(f"{lost} has no effect without --tune: frozen features are measured")
    options: dict[str, Any] = {"settings": data_settings(common["data"], common["assignments"]), "device": common["device"]}
    options |= {"annotations": annotations, "control": control, "out": out, "shown": not common["as_json"]}
    options |= ({"kinds": kinds} if kinds else {}) | ({"tune": evaluation.FinetuneSpec.of(said)} if tune else {})
    with counted("embedding", not common["as_json"]) as progress:
        results = evaluation.multilabel(common["encoders"], common["data"], common["test"], progress=progress, **options)
    told_by_metric(results, common)


@evaluate.command()
@measured
@click.option("--frozen", is_flag=True, help="Over the frozen network, too.")
@click.option("--control", is_flag=True, help="The same architectures from random weights, too.")
@click.option("--repeats", type=click.IntRange(min=1), default=1, help="Seeds of heads, order and random weights; results are means.")
@click.option("--steps", type=click.IntRange(min=1), help="Steps of training; 1,000 by default.")
@click.option("--batch", type=click.IntRange(min=1), help="Images a step; 4 by default.")
@click.option("--lr", type=float, help="Peak learning rate; by default 0.02 for 16 images, in proportion.")
@click.option("--size", type=click.IntRange(min=32), help="Shorter side of the images in pixels; 320 by default.")
@click.option("--levels", type=click.IntRange(min=1), help="Blocks that feed the pyramid, at most; 4 by default, 1 for a single level.")
@click.option("--width", type=click.IntRange(min=8), help="Channels of the pyramid; 256 by default.")
@click.option("--regions", type=click.IntRange(min=8), help="Proposals of an image on which the head is trained; 512 by default.")
@click.option("--proposals", type=click.IntRange(min=8), help="Proposals that are kept, of an image and level; 1,000 by default.")
@click.option(
    "--norm", type=click.Choice(["fixed", "batch"]), help="BatchNorm's statistics: fixed at those of training images (default), or by batch."
)
@click.option("--images", type=click.IntRange(min=1), help="Train on at most so many.")
@click.option("--test-images", type=click.IntRange(min=1), help="Test on at most so many.")
@click.option("--annotations", metavar="FOLDER", help="PASCAL VOC files; by default Annotations in the folder of images or beside it.")
@click.option("--out", metavar="FOLDER", help="Keep the runs there: the same command then goes on with them.")
def detect(frozen: bool, control: bool, repeats: int, annotations: str | None, out: str | None, **common: Any) -> None:
    """Average precision of Faster R-CNN fine-tuned over networks: VOC07's AP50, the area under the curve, COCO's AP.

    DATA is a folder in PASCAL VOC layout (FOLDER@trainval where it lists its splits) or a COCO .json file.
    """
    from gnothi import evaluate as evaluation
    from gnothi.training.progress import counted

    words = ("steps", "batch", "lr", "size", "levels", "width", "regions", "proposals", "norm")
    spec = evaluation.DetectSpec.of({word: common[word] for word in words if common[word] is not None})
    options: dict[str, Any] = {"spec": spec, "frozen": frozen, "control": control, "repeats": repeats, "out": out}
    options |= {word: common[word] for word in ("images", "test_images")}
    options |= {"settings": data_settings(common["data"], common["assignments"]), "device": common["device"], "annotations": annotations}
    with counted("detecting", not common["as_json"]) as progress:
        shown = not common["as_json"]
        results = evaluation.detect(common["encoders"], common["data"], common["test"], progress=progress, shown=shown, **options)
    told_by_metric(results, common)


@evaluate.command()
@measured
@click.option("--metric", "metrics", type=click.Choice(["knn", "linear"]), multiple=True, help="knn or linear; both by default.")
@click.option("-k", type=int, help="Neighbours that vote; 20 by default.")
@click.option("--temperature", type=float, help="A neighbour's vote is exp(similarity / temperature); 0.07 by default.")
@click.option("--protocol", type=click.Choice(["logistic", "sgd"]), help="Of linear: logistic regression (default), or SGD with a sweep of rates.")
@click.option("--pool", type=click.Choice(["max", "average"]), help="Blocks as grids of at most 9,600 numbers, as in papers' linear tables.")
@click.option("--plot", metavar="FILE", help="Draw accuracy by block and by FLOPs into an .svg or .png file.")
def layers(metrics: tuple[str, ...], plot: str | None, **common: Any) -> None:
    """Accuracy of every block of networks, before and after the final norm, and the FLOPs to get there.

    The images pass through each network once. Blocks are counted from 0, as auxiliary.layers.layers counts them.
    """
    from gnothi import evaluate as evaluation
    from gnothi.evaluate.depth import check_picture
    from gnothi.training.progress import counted

    path = None if plot is None else check_picture(plot)
    options = {k: common[k] for k in ("k", "temperature", "protocol", "pool") if common[k] is not None}
    options |= {"settings": data_settings(common["data"], common["assignments"]), "device": common["device"]}
    options |= {"metrics": metrics} if metrics else {}
    with counted("embedding", not common["as_json"]) as progress:
        results = evaluation.layers(common["encoders"], common["data"], common["test"], progress=progress, **options)
    results = evaluation.over_seeds(results) if common["over_seeds"] else results
    if path is not None:
        evaluation.plot(results, path)
    told(common["as_json"], {"results": [r.to_dict() for r in results]}, lambda: evaluation.table_of_layers(results))


@evaluate.command()
@measured
@click.option("--metric", "metrics", type=click.Choice(["knn", "linear", "retrieval"]), multiple=True, help="By default what the data allow.")
@click.option("--annotations", metavar="FOLDER", help="PASCAL VOC files or masks; by default Annotations or masks beside the images.")
@click.option("--size", type=click.IntRange(min=1), help="Side of the images as the networks see them; their own by default.")
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
    if common["over_seeds"]:
        results = [evaluation.summary([r for r in results if r.metric == metric]) for metric in dict.fromkeys(r.metric for r in results)]
    told(common["as_json"], {"results": [r.to_dict() for r in results]}, lambda: evaluation.table(results))
