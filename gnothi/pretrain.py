"""Pre-training from data to a run folder: build the parts of a resolved run, let the Learner go, say what came of it."""

from __future__ import annotations

import copy
import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import gnothi
from gnothi import distributed
from gnothi.auxiliary import AUXILIARIES
from gnothi.contracts import DataError, RunError, SettingError, Source, Step
from gnothi.data import Subset
from gnothi.data.open import title
from gnothi.encoders import load as load_encoder
from gnothi.encoders.inputs import centre
from gnothi.encoders.network import TEACHER_FIRST, NetworkEncoder, offline
from gnothi.evaluate.nearest import knn
from gnothi.files import write_text
from gnothi.methods import METHODS
from gnothi.methods.alone import Alone
from gnothi.models import backbone as backbones
from gnothi.models.batchnorm import has_statistics, recount
from gnothi.models.micro_vit import cells, patch_side
from gnothi.randomness import generator, seeded
from gnothi.recipes import spec
from gnothi.recipes.resolve import Resolved, resolve
from gnothi.training import changes, checkpoint, health, parallel, state, twice
from gnothi.training.learner import Learner
from gnothi.training.lock import owned, restarted
from gnothi.training.objective import Objective
from gnothi.training.progress import Progress, Silent, display
from gnothi.training.sinks import check, sinks
from gnothi.views.batches import Batches

HEALTH_SAMPLE = 256
"""Images on which health is measured."""
PLAIN_SAMPLE, PLAIN_BATCH = 2048, 256
"""At most so many images, in portions, give BatchNorm's running statistics at the end."""
KNN_TRAIN, KNN_TEST = 2000, 500
"""At most so many images answer and ask in the k-NN along the way."""


# ---- building -----------------------------------------------------------------------------------
def build(resolved: Resolved, init: str | None = None) -> Objective:
    """Backbone, method and auxiliaries, on the device, initialised by the seed.

    Raises:
        SettingError: there can be no network of these sizes.
    """
    try:
        return _build(resolved, init).to(resolved.device)
    except (OverflowError, RuntimeError, TypeError) as error:
        if not isinstance(error, OverflowError) and "overflow" not in str(error).lower():
            raise
        why = str(error).splitlines()[0]
        raise SettingError(f"a size of the backbone, the method or an auxiliary is too large for any machine: {why}") from None


def _build(resolved: Resolved, init: str | None) -> Objective:
    s = resolved.spec
    network = backbones.build(s.backbone, resolved.source.channels, s.views.size or 0, s.seed)
    for crop in resolved.views.local_crops:
        cells(crop.size, patch_side(network), "views.local_size")
    if init is not None:
        backbones.initialise(network, _weights(init))
    with seeded(s.seed, "init", 1):
        method = METHODS[s.method.name][1](network, s.method)  # type: ignore[arg-type]  # specs that are no MethodSpec, which only their own meet
        if isinstance(method, Alone):
            method.meet(resolved.kept)
    auxiliaries = {}
    for name, settings in s.auxiliary.items():
        if settings.weight > 0:
            with seeded(s.seed, f"init {name}"):  # of its name alone: one beside it, or its weight, changes nothing
                auxiliaries[name] = AUXILIARIES[name][1](method, settings)
    method.autocast = torch.bfloat16 if s.training.precision == "bf16" else torch.float32
    return Objective(method, auxiliaries)


def _weights(init: str) -> dict[str, Tensor]:
    encoder = load_encoder(init)
    if not isinstance(encoder, NetworkEncoder):
        raise SettingError(f"--init {init}: not a network; a run, an exported folder or timm:NAME is")
    return backbones.weights(encoder.backbone)


def batches(resolved: Resolved, objective: Objective, total: int | None = None) -> Batches:
    """The views of every step; ``total`` steps, by default those of the run."""
    s, method = resolved.spec, objective.method
    return Batches(
        resolved.kept,
        resolved.views,
        batch=s.training.batch or 0,
        seed=s.seed,
        pixels=resolved.pixels,
        device=resolved.device,
        workers=resolved.workers,
        total=total or resolved.total,
        extra={n: own for n, a in objective.auxiliaries.items() if (own := a.crops(resolved.views))},
        broken_fraction=s.data.broken_fraction,
        channels_last=s.training.channels_last,
        order=method.order(len(resolved.kept), s.training.batch or 0, s.seed) if isinstance(method, Alone) else None,
    )


def live_encoder(resolved: Resolved, method: nn.Module) -> NetworkEncoder:
    """The network of a run in progress as an encoder; a copy, so that nothing of the run moves."""
    network: Any = method.slow if method.name in TEACHER_FIRST else method.backbone
    s, channels = resolved.spec, resolved.source.channels
    if s.training.parallel == "fsdp":  # torch does not copy what it has sharded
        network = parallel.fill(backbones.build(offline(s.backbone), channels, s.views.size or 0, s.seed).to(resolved.device), network)
    else:
        network = copy.deepcopy(network)
    return NetworkEncoder("live", network, s.backbone, channels, s.views.size or 0, resolved.pixels, device=resolved.device)


def _drawn(resolved: Resolved, purpose: str, most: int) -> Tensor:
    """Rows of training images, [up to most]: the same ones in every run of a seed."""
    return torch.randperm(len(resolved.kept), generator=generator(resolved.spec.seed, purpose))[:most]


def _whole(resolved: Resolved, rows: Tensor) -> Tensor:
    """Normalised whole images, [M, C, S, S], without those that cannot be read."""
    images = []
    for row in rows.tolist():
        try:
            images.append(centre(resolved.pixels.unit(resolved.kept.image(row)[None]), resolved.spec.views.size or 0))
        except DataError:
            continue  # a broken image is named where training meets it
    return resolved.pixels.normalise(torch.cat(images)).to(resolved.device)


class Along:
    """Measures along the way: what the method says of images held out, and k-NN, where images of training answer those."""

    def __init__(self, resolved: Resolved) -> None:
        self.resolved, self.source = resolved, resolved.source
        seed, n = resolved.spec.seed, len(resolved.source)
        train = np.setdiff1d(np.arange(n), resolved.held)
        self.train = self._labelled(train, KNN_TRAIN, seed)
        self.test = self._labelled(resolved.held, KNN_TEST, seed)
        self.held = resolved.held[torch.randperm(len(resolved.held), generator=generator(seed, "judged along")).numpy()[:KNN_TEST]]

    def _labelled(self, rows: np.ndarray, most: int, seed: int) -> np.ndarray:
        labels = self.source.labels
        rows = rows[:0] if labels is None else rows[labels[rows] >= 0]
        drawn: np.ndarray = rows[torch.randperm(len(rows), generator=generator(seed, "knn along")).numpy()[:most]]
        return drawn

    def __call__(self, method: nn.Module, step: Step) -> list[dict[str, Any]]:
        """Lines of metrics; none where no image is held out."""
        if distributed.rank() or not len(self.held):
            return []
        encoder = live_encoder(self.resolved, method)
        return self._judged(method, encoder) + self._knn(encoder)

    def _judged(self, method: Any, encoder: NetworkEncoder) -> list[dict[str, Any]]:
        if not isinstance(method, Alone) or not method.judges:
            return []
        vectors = encoder.embed_source(self.source, self.held)
        whole = np.isfinite(vectors).all(1)
        judged = method.judge(torch.from_numpy(vectors[whole]), Subset(self.source, self.held[whole]))
        return [_line(name, values) for name, values in judged.items() if len(values)]

    def _knn(self, encoder: NetworkEncoder) -> list[dict[str, Any]]:
        labels = self.source.labels
        if labels is None or not len(self.test):
            return []
        train, test = encoder.embed_source(self.source, self.train), encoder.embed_source(self.source, self.test)
        whole, asked = np.isfinite(train).all(1), np.isfinite(test).all(1)
        if not (whole.any() and asked.any()):  # few labels, all of a group that is held out
            return []
        result = knn(train[whole], labels[self.train][whole], test[asked], labels[self.test][asked], k=20, temperature=0.07)
        return [{"metric": "knn", "value": result.value, "low": result.low, "high": result.high, "n": result.n, "protocol": result.protocol}]


def _line(name: str, values: Tensor) -> dict[str, Any]:
    """A measure of single images as a line of metrics: their mean, and 1.96 standard errors around it."""
    mean, half = float(values.mean()), 1.96 * float(values.std(correction=0)) / len(values) ** 0.5
    about = "mean over images held out, 95 % by their spread"
    return {"metric": name, "value": mean, "low": mean - half, "high": mean + half, "n": len(values), "protocol": about}


# ---- running ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    verdict: dict[str, Any]
    metrics: list[dict[str, Any]]


@distributed.together()
def train(
    data: str | Source,
    *,
    recipe: str | None = None,
    settings: Mapping[str, Any] | None = None,
    init: str | None = None,
    device: str | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Pre-train an encoder.

    Args:
        data: photos, a folder, an .npz or .npy file, shards:PATTERN, tiles:FOLDER, a torchvision name, or an open source, such as
            ``gnothi.data.from_dataset`` gives.
        recipe: a name that `gnothi recipes` lists.
        settings: nested settings that win over the recipe's and the rules'.
        init: an encoder whose weights to start from.
        device: cpu, cuda or mps; by default cuda where there is one.
        out: the run's folder; by default runs/DATA-METHOD.
        resume: go on where the folder's last checkpoint stands; the settings are the folder's.
        progress: hears how it goes; by default a display on standard error.

    Returns:
        The run with its verdict.

    Raises:
        SettingError: a setting is unknown or impossible, or the folder is taken.
        DataError: the images cannot be used, or are not those the run began with.
        RunError: the run had to stop.
    """
    name, folder = data if isinstance(data, str) else title(data), None if out is None else Path(out).expanduser()
    distributed.start(distributed.device_of(device or (_recorded(folder) if resume else None)))
    if folder is None or not (folder / "spec.json").exists():
        resolved = resolve(data, recipe_name=recipe, settings=settings, device=device)
        folder = folder or Path("runs") / f"{Path(name.partition('@')[0].rpartition(':')[2]).stem}-{resolved.spec.method.name}"
    if (folder / "spec.json").exists():
        if not resume and not restarted(folder):
            raise SettingError(f"{folder} is a run already; --resume goes on with it, --out takes another folder")
        resolved, init = _again(folder, data, recipe, settings, init, device)
    elif resume and folder.is_dir() and any(not p.name.startswith(".") for p in folder.iterdir()):
        raise SettingError(f"--resume: {folder} is not a run (it has no spec.json); give the folder of one with --out")
    if folder.is_dir() and Path(name.partition("@")[0]).is_dir() and folder.samefile(name.partition("@")[0]):
        raise SettingError(f"--out {folder} is the folder of the images; give the run one of its own")
    learner = assemble(resolved, folder, init)  # what cannot be built is said before anything is written
    distributed.barrier()  # nobody writes before all have looked whether the folder is taken
    with owned(folder):
        return _run(resolved, folder, learner, init, resume, progress)


def _recorded(folder: Path | None) -> str | None:
    """The device of a run that is gone on with; None where there is none yet, or nothing that can be read."""
    try:
        return None if folder is None else str(twice.read(folder)["derived"]["device"])
    except (RunError, KeyError, TypeError):
        return None


def _again(
    folder: Path, data: str | Source, recipe: str | None, settings: Mapping[str, Any] | None, init: str | None, device: str | None
) -> tuple[Resolved, str | None]:
    """The run of a folder as it was resolved when it began, and what it began from; refused where data or settings changed."""
    name = data if isinstance(data, str) else title(data)
    try:
        record = twice.read(folder, warn=lambda text: print(text, file=sys.stderr))
        old, derived = record["settings"], record["derived"]
        spec.load(old)
    except (RunError, KeyError, TypeError, SettingError) as error:
        raise SettingError(f"{folder} cannot be gone on with: {error}; --out takes another folder") from None
    if name != old["data"]["name"]:
        raise DataError(f"{folder} was begun with {old['data']['name']}, not {name}; --resume keeps a run's data")
    before, given = spec.flat(old), spec.flat(settings or {})
    _same(folder, {"--init": record["init"]}, {"--init": init or record["init"]})
    _same(folder, {"--recipe": derived["recipe"]}, {"--recipe": recipe or derived["recipe"]})
    _same(folder, {"--device": derived["device"]}, {"--device": torch.device(device).type if device else derived["device"]})
    _same(folder, before, {k: v for k, v in given.items() if k.endswith(".name") and v is not None})  # other settings depend on these
    _same(folder, before, spec.flat(spec.load(spec.merge(old, settings or {})).model_dump(mode="json")))
    threads = {"training": {"threads": derived["threads"], "workers": derived["workers"]}}
    resolved = resolve(data, recipe_name=derived["recipe"], settings=spec.merge(old, threads), device=derived["device"])
    if resolved.source.fingerprint() != record["source"]["fingerprint"]:
        what = changes.told(folder / changes.FILE, resolved.source)
        raise DataError(
            f"{name} is not as it was when {folder} began ({record['source']['n']} images then, {len(resolved.source)} now{what}); "
            "--out begins another run"
        )
    return resolved, record["init"]


def _same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for key, value in now.items():
        if before.get(key) != value:
            raise SettingError(f"{folder} was begun with {key}={before.get(key)}, not {value}; --resume keeps a run's settings, --out begins another")


def _without_weights(resolved: Resolved, init: str | None, folder: Path) -> tuple[Resolved, str | None]:
    """What a run is built of: where a checkpoint gives every tensor, the weights that it began from need not be had any more."""
    backbone = resolved.spec.backbone
    if not (init or backbone.pretrained) or checkpoint.newest(folder) is None:
        return resolved, init
    return replace(resolved, spec=resolved.spec.model_copy(update={"backbone": offline(backbone)})), None


def assemble(resolved: Resolved, folder: Path, init: str | None = None) -> Learner:
    """The Learner of a run, which has written nothing yet."""
    check(resolved.spec.training)
    torch.set_num_threads(resolved.threads)
    objective = build(*_without_weights(resolved, init, folder))
    return Learner(
        objective,
        batches(resolved, objective),
        spec=resolved.spec.training,
        optimiser=resolved.spec.optimiser,
        total=resolved.total,
        per_epoch=resolved.per_epoch,
        seed=resolved.spec.seed,
        folder=folder,
        sample=_whole(resolved, _drawn(resolved, "health sample", HEALTH_SAMPLE)),
        evaluate=Along(resolved),
    )


def _run(resolved: Resolved, folder: Path, learner: Learner, init: str | None, resume: bool, progress: Progress | None) -> Run:
    saved = checkpoint.newest(folder, warn=lambda text: print(text, file=sys.stderr))
    if distributed.rank() == 0:
        twice.write(folder, {**resolved.record(), "init": init})
        if not (folder / changes.FILE).exists():
            changes.write(folder / changes.FILE, resolved.source)
        write_text(folder / "environment.json", json.dumps(environment() | _first_command(folder), indent=1))
        for left in folder.glob(".*.tmp"):
            left.unlink()  # half a file, of a run that was killed
        if saved is None:
            (folder / "metrics.jsonl").unlink(missing_ok=True)
        learner.journal.sinks = sinks(resolved.spec.training, folder)
    distributed.barrier()
    if saved is not None:
        learner.resume(saved)
    learner.journal.progress = progress or (Silent() if distributed.rank() else display(resolved.total, learner.number))
    begun = f"\ngoes on after step {learner.number}" if saved else f"\nnothing in {folder} to go on with: begins" if resume else ""
    learner.journal.progress.say(resolved.words() + begun)
    views: Any = learner.batches
    try:
        learner.fit()
        settle_statistics(resolved, learner)
    finally:
        learner.journal.progress.close()
        views.close()
    return finish(resolved, folder, learner, state.broken(views))


def _first_command(folder: Path) -> dict[str, Any]:
    """The command that began a run which is gone on with; what goes on need not say its settings again."""
    try:
        return {"command": json.loads((folder / "environment.json").read_text(encoding="utf-8"))["command"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def settle_statistics(resolved: Resolved, learner: Learner) -> None:
    """Give BatchNorm statistics of whole images, and write the last checkpoint again. Done twice it does the same."""
    method = learner.objective.method
    networks = [n for n in (method.backbone, method.slow) if n is not None and has_statistics(n)]
    if not resolved.spec.training.plain_statistics or not networks:
        return
    began = time.monotonic()
    rows = _drawn(resolved, "plain statistics", PLAIN_SAMPLE)
    rows = rows[: max(1, len(rows) // PLAIN_BATCH) * PLAIN_BATCH]
    with parallel.whole(learner.objective):
        for network in networks:
            recount(network, (_whole(resolved, part) for part in rows.split(PLAIN_BATCH)))
    learner.seconds += time.monotonic() - began
    learner.save()


def finish(resolved: Resolved, folder: Path, learner: Learner, met: dict[str, tuple[str, int]]) -> Run:
    """Judge the run and write its verdict."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    judged = health.verdict([m for m in metrics if m["kind"] == "health"], resolved.spec.method.name, learner.number)
    broken = [{"name": name, "message": message, "count": count} for name, (message, count) in sorted(met.items())]
    verdict = {**judged.to_dict(), "steps": learner.number, "seconds": round(learner.seconds, 1), "broken": broken}
    if distributed.rank() == 0:
        write_text(folder / "verdict.json", json.dumps(verdict, indent=1))
    return Run(folder, verdict, metrics)


def environment() -> dict[str, Any]:
    """Versions and machine, as far as they matter to a result."""
    return {
        "gnothi": gnothi.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "command": sys.argv,
    }
