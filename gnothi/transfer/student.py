"""From teachers to a student: features, clusters, labels, and an ordinary run that learns them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from gnothi import distributed, pretrain
from gnothi import evaluate as evaluation
from gnothi.contracts import DataError, EncoderError, GnothiError, RunError, SettingError, Source, Spec, did_you_mean
from gnothi.data import Subset, holdout
from gnothi.data import open as open_data
from gnothi.data.targets import Targets
from gnothi.encoders import Encoder, features
from gnothi.evaluate.result import Result
from gnothi.evaluate.run import own_test
from gnothi.files import replace_file, write_text
from gnothi.models import backbone as backbones
from gnothi.pretrain import Run
from gnothi.randomness import number
from gnothi.recipes.resolve import resolve
from gnothi.recipes.spec import checked, merge
from gnothi.recipes.spec import load as load_settings
from gnothi.training.lock import owned, restarted
from gnothi.training.progress import Progress
from gnothi.transfer.clusters import Codebook, Rows, check_k, cluster, stability, suggested
from gnothi.transfer.labels import feature_targets, pseudo_labels, shuffled, vectors_of
from gnothi.transfer.teachers import teachers as open_teachers

BASELINES = ("shuffled", "regression", "compress", "seed", "supervised", "teacher")
"""What else a student may learn on equal terms; "teacher" is measured only."""
WIDE, AXES = 4096, 256
"""Vectors wider than the first are projected to so many principal axes where nobody says."""
HELD = 0.2
"""Of the vectors on which two k-means are compared."""
KINDS: tuple[type[GnothiError], ...] = (SettingError, DataError, EncoderError, RunError, GnothiError)
"""Of mistakes that one process tells the others."""
SMALL = 20
"""Of fewer images none are held out."""


class TransferSpec(Spec):
    """How a teacher's features become targets."""

    loss: Literal["clusters", "regression", "compress", "seed"] = "clusters"
    """"clusters": the student names the cluster; the others distil the features themselves (SimReg, CompRess, SEED)."""
    layer: int | None = None
    """Block of the teachers' networks, from 0, or from the end where negative. None: their last output."""
    pool: str | None = None
    """How a block becomes a vector: pooled, final, max:G or average:G for a grid of G x G. None: pooled."""
    fit: str | None = None
    """Images whose features are clustered. None: the student's own."""
    k: int | None = Field(default=None, gt=0)
    """Clusters of each head. None: one for every 200 images, from 10 to 2,000."""
    heads: int = Field(default=1, gt=0)
    """How many k-means, from other starts, each teacher gets, and as many heads of the student."""
    restarts: int = Field(default=3, gt=0)
    """Starts of each k-means; the least inertia wins."""
    iterations: int = Field(default=20, gt=0)
    """Of each start."""
    normalise: bool = True
    """Features of unit length."""
    pca: int | None = Field(default=None, ge=0)
    """Principal axes to which features are projected; 0 for none. None: 256 where there are more than 4,096 features."""
    whiten: bool = False
    """Divide each axis by its deviation."""
    temperature: float = Field(default=0.0, ge=0)
    """Of soft labels, shares among the nearest clusters by squared distance; 0 for hard ones."""
    nearest: int = Field(default=5, gt=0)
    """Clusters that share a soft label."""
    memory: float = Field(default=2.0, gt=0)
    """GiB of features that k-means may hold; more are read from the disk in blocks."""
    shuffle: bool = False
    """Give the labels to other images by chance, as a control."""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> TransferSpec:
        """Check plain values.

        Raises:
            SettingError: the first mistake, with the nearest right thing.
        """
        return checked(cls, settings, "transfer")


@dataclass(frozen=True)
class Transfer:
    """A student that has learned."""

    run: Run
    record: dict[str, Any]
    """What its targets are and come from; ``transfer.json`` of the run's folder."""


@distributed.together()
def transfer(
    teachers: Sequence[str | Encoder],
    data: str,
    *,
    out: str | Path,
    student: str | None = None,
    spec: TransferSpec | None = None,
    recipe: str | None = None,
    settings: Mapping[str, Any] | None = None,
    init: str | None = None,
    device: str | None = None,
    cache: str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    embedding: Callable[[int, int], None] | None = None,
) -> Transfer:
    """Teach a student what teachers say of images.

    Args:
        teachers: names of encoders, or encoders; each gets heads of its own.
        data: the student's images; no labels are needed.
        out: the student's run folder.
        student: a backbone's name; by the recipe or rule where None.
        spec: how features become targets.
        recipe: a name that `gnothi recipes` lists, of the student's run.
        settings: nested settings of the student's run.
        init: an encoder whose weights the student starts from.
        device: where all compute.
        cache: folder of stored features.
        resume: go on where the folder stands.
        progress: hears how training goes.
        embedding: told how many images a teacher has embedded.

    Raises:
        SettingError: a setting cannot be, or the folder is taken.
        DataError: the images or features cannot be used.
        EncoderError: a teacher cannot be opened or does not take such images.
    """
    spec, folder = spec or TransferSpec(), Path(out).expanduser()
    if (folder / "spec.json").exists() and not resume and not restarted(folder):
        raise SettingError(f"{folder} is a run already; --resume goes on with it, --out takes another folder")
    distributed.start(distributed.device_of(device))
    opened = open_teachers(teachers, spec.layer, spec.pool, device)
    chosen = _settings(data, folder, student, spec, recipe, settings)
    resolved = resolve(data, recipe_name=recipe, settings=chosen, device=device)  # what cannot be is said before features are made
    backbones.build(resolved.spec.backbone, resolved.source.channels, resolved.spec.views.size or 0, resolved.spec.seed)
    fitted = resolved.source if spec.fit is None or spec.loss != "clusters" else open_data(spec.fit)
    if spec.loss == "clusters" and spec.k is not None:
        check_k(spec.k, len(fitted))
    asked = {
        "teachers": [{"name": e.name, "fingerprint": e.fingerprint} for e in opened],
        "source": {"name": data, "fingerprint": resolved.source.fingerprint()},
        "fit": None if fitted is resolved.source else {"name": spec.fit, "fingerprint": fitted.fingerprint()},
        "settings": spec.model_dump(mode="json"),
        "seed": resolved.spec.seed,
    }

    def make() -> None:
        targets, found = _targets(opened, resolved.source, fitted, spec, resolved.spec.seed, folder, cache)
        replace_file(folder / "targets.safetensors", targets.write)
        write_text(folder / "transfer.json", json.dumps({**asked, **found}, indent=1))

    with owned(folder):
        if not _once(lambda: _made(folder, asked)):
            for encoder, source in ((e, s) for e in opened for s in dict.fromkeys((resolved.source, fitted))):
                features(encoder, source, cache=cache, progress=embedding, shared=True)
            _once(make)
    begun = (folder / "spec.json").exists()
    run = pretrain.train(data, recipe=recipe, settings=chosen, init=init, device=device, out=folder, resume=begun, progress=progress)
    return Transfer(run, json.loads((folder / "transfer.json").read_text(encoding="utf-8")))


def _once(work: Callable[[], Any]) -> Any:
    """Let the first process work while the others wait, however long that takes; what comes of it, a plain value or a mistake, is everybody's."""
    caught: GnothiError | None = None
    done: Any = None
    if distributed.rank() == 0:
        try:
            done = work()
        except GnothiError as error:
            caught = error
    kind, said = distributed.from_first([None, done] if caught is None else [_kind(caught).__name__, str(caught)])
    if caught is not None:
        raise caught
    if kind is not None:
        raise next(k for k in KINDS if k.__name__ == kind)(said)
    return said


def _kind(error: GnothiError) -> type[GnothiError]:
    return next(kind for kind in KINDS if isinstance(error, kind))


def _settings(
    data: str, folder: Path, student: str | None, spec: TransferSpec, recipe: str | None, settings: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Those of the student's run: what the person says over what students have by default."""
    method = {"name": "classify"} if spec.loss == "clusters" else {"name": "distil", "loss": spec.loss}
    under: dict[str, Any] = {"method": {**method, "targets": str(folder / "targets.safetensors")}}
    if student is not None:
        under["backbone"] = {"name": student}
    if recipe is None:
        under["views"] = {"recipe": "plain"}
    said = dict(settings or {})
    if (said.get("method") or {}).get("name", method["name"]) != method["name"]:
        raise SettingError(f"method.name is {method['name']} for transfer.loss={spec.loss}, got {said['method']['name']}; leave it out")
    return merge(under | _holdout(data, said), said)


def _holdout(data: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the images that students are watched on, where nobody chose one."""
    if (settings.get("data") or {}).get("holdout") is not None:
        return {}
    n = len(open_data(data, settings=_data_spec(data, settings)))
    return {"data": {"holdout": min(0.1, 1000 / n) if n >= SMALL else 0.0}}


def _data_spec(data: str, settings: Mapping[str, Any]) -> Any:
    return load_settings({"data": {"name": data, **(settings.get("data") or {})}}).data


def _made(folder: Path, asked: dict[str, Any]) -> bool:
    """Whether the folder holds these targets already.

    Raises:
        SettingError: it holds others.
    """
    try:
        before = json.loads((folder / "transfer.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except ValueError:
        before = {}
    for key, value in asked.items():
        if key == "fit" and before and key not in before:
            continue  # of a version that did not keep it; the name stands among the settings
        if before.get(key) != value:
            raise SettingError(f"{folder} holds targets of another {key.removesuffix('s')} than this one; --out takes another folder")
    return (folder / "targets.safetensors").is_file()


# ---- targets -------------------------------------------------------------------------------------
def _targets(
    opened: Sequence[Encoder],
    source: Source,
    fitted: Source,
    spec: TransferSpec,
    seed: int,
    folder: Path,
    cache: str | None,
) -> tuple[Targets, dict[str, Any]]:
    """What the student is told, and what there is to say of it."""
    vectors = [vectors_of(e, source, cache) for e in opened]
    if spec.loss != "clusters":
        targets = feature_targets([x for x, _ in vectors], source, scratch=folder)
        return (shuffled(targets, seed) if spec.shuffle else targets), {"dims": targets.about["dims"], "unreadable": len(source) - len(vectors[0][1])}
    codebooks: list[Codebook] = []
    for e, own in zip(opened, vectors, strict=True):
        x, rows = own if fitted is source else vectors_of(e, fitted, cache)
        codebooks += [_cluster(Rows(x, rows), spec, number(seed, "head", h) % 2**31) for h in range(spec.heads)]
    for i, codebook in enumerate(codebooks):
        codebook.save(folder, f"codebook-{i}")
    targets = pseudo_labels(codebooks, [x for x, _ in vectors for _ in range(spec.heads)], source, temperature=spec.temperature, nearest=spec.nearest)
    about = [{"k": c.k, "fit": c.fit.words(), "inertia": c.fit.inertia, **c.histogram()} for c in codebooks]
    return (shuffled(targets, seed) if spec.shuffle else targets), {"clusters": about, "unreadable": len(source) - len(vectors[0][1])}


def _cluster(rows: Rows, spec: TransferSpec, seed: int) -> Codebook:
    return cluster(rows, spec.k, seed, **_kmeans(*rows.shape, spec))


def _kmeans(n: int, width: int, spec: TransferSpec) -> dict[str, Any]:
    """Settings of k-means on n vectors."""
    pca = spec.pca if spec.pca is not None else (AXES if width > WIDE and n >= AXES else 0)
    return {"pca": pca or None} | {key: getattr(spec, key) for key in ("restarts", "iterations", "normalise", "whiten", "memory")}


# ---- baselines -----------------------------------------------------------------------------------
def baselines(
    names: Sequence[str],
    teachers: Sequence[str | Encoder],
    data: str,
    *,
    out: str | Path,
    spec: TransferSpec | None = None,
    student: str | None = None,
    recipe: str | None = None,
    settings: Mapping[str, Any] | None = None,
    **more: Any,
) -> list[Path]:
    """Train the same student on something else, each in a folder of its own beside ``out``: ``OUT-shuffled`` and so on.

    Args:
        names: of ``BASELINES``; "teacher" trains nothing.
        teachers: names of encoders, or encoders.
        data: the student's images.
        out: of the student itself.
        spec: how features become targets; each baseline changes one thing.
        student: a backbone's name.
        recipe: of the runs.
        settings: of the runs; those of the method are left out where the method is another.
        more: as for ``transfer``.

    Returns:
        Run folders, in order.
    """
    check_baselines(names)
    spec, folders = spec or TransferSpec(), []
    for name in (n for n in names if n != "teacher"):
        folder = Path(f"{out}-{name}")
        if name == "supervised":
            plain = {"method": {"name": "classify"}, "backbone": {"name": student}} | ({} if recipe else {"views": {"recipe": "plain"}})
            shared = {k: v for k, v in (settings or {}).items() if k != "method"}
            again = {k: more[k] for k in ("init", "device", "progress") if k in more}
            resume = bool(more.get("resume")) and (folder / "spec.json").exists()
            pretrain.train(data, recipe=recipe, settings=merge(plain | _holdout(data, shared), shared), out=folder, resume=resume, **again)
        else:
            changed = {"shuffle": True} if name == "shuffled" else {"loss": name}
            own = settings if changed.get("loss", spec.loss) == spec.loss else {k: v for k, v in (settings or {}).items() if k != "method"}
            transfer(teachers, data, out=folder, spec=spec.model_copy(update=changed), student=student, recipe=recipe, settings=own, **more)
        folders.append(folder)
    return folders


def check_baselines(names: Sequence[str]) -> None:
    """Refuse what is no baseline."""
    for name in names:
        if name not in BASELINES:
            raise SettingError(f"--baseline must be one of {', '.join(BASELINES)}, got {name!r}; {did_you_mean(name, BASELINES)}")


def measured(folders: Sequence[Path], teachers: Sequence[str | Encoder], data: str, device: str | None = None) -> list[Result]:
    """K-NN of runs and teachers on the same rows; none where the data have no labels.

    Those that ask are the data's own test split, else the rows that were held out of all these runs: labels of the others taught ``supervised``.
    Where nothing was held out either, ``evaluate.run`` holds rows out itself.
    """
    said = json.loads((Path(folders[0]) / "spec.json").read_text(encoding="utf-8"))["settings"] if folders else {}
    settings = _data_spec(data, {"data": {k: v for k, v in (said.get("data") or {}).items() if k != "name"}})
    source = open_data(data, settings=settings)
    names, own = [*map(str, folders), *teachers], own_test(data, settings)
    if not _labelled(source) or (own is not None and not _labelled(open_data(f"{data}@{own}", settings=settings))):
        return []
    if own is None and settings.holdout:
        kept, held = (Subset(source, rows) for rows in holdout(source, settings.holdout, said["seed"]))  # as the students' runs did
        return evaluation.run("knn", names, kept, held, device=device) if _labelled(kept) and _labelled(held) else []
    return evaluation.run("knn", names, data, settings=settings, device=device)


def _labelled(source: Source) -> bool:
    return source.labels is not None and bool((source.labels >= 0).any())


# ---- choosing k ----------------------------------------------------------------------------------
def try_k(
    teachers: Sequence[str | Encoder], data: str, ks: str, spec: TransferSpec, settings: Mapping[str, Any] | None = None, device: str | None = None
) -> list[dict[str, Any]]:
    """For each k of a list such as "10,20,50": agreement of two starts, evenness and inertia, of the first teacher; and which is suggested.

    Raises:
        SettingError: the list is none of numbers.
    """
    try:
        numbers = tuple(sorted({int(word) for word in ks.split(",")}))
    except ValueError:
        raise SettingError(f"--try-k takes numbers with commas between, like 50,100,200, got {ks!r}") from None
    encoder = open_teachers(teachers, spec.layer, spec.pool, device)[0]
    source = open_data(spec.fit) if spec.fit else open_data(data, settings=_data_spec(data, settings or {}))
    x, rows = vectors_of(encoder, source)
    given = _kmeans(len(rows) - max(1, round(HELD * len(rows))), x.shape[1], spec)
    found = stability(Rows(x, rows), numbers, int((settings or {}).get("seed", 0)), held=HELD, **given)
    best = suggested(found)
    return [{**asdict(s), "suggested": s.k == best} for s in found]


def table_of_k(found: Sequence[Mapping[str, Any]]) -> str:
    """As text."""
    lines = [f"{'k':>8}  {'agreement':>9}  {'effective/k':>11}  {'inertia':>8}"]
    lines += [
        f"{s['k']:>8}  {s['agreement']:>9.3f}  {s['effective']:>11.3f}  {s['inertia']:>8.4f}{'  suggested' if s['suggested'] else ''}" for s in found
    ]
    return "\n".join(lines)
