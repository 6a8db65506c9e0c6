"""From what a person said and what the data are to every setting of a run, before anything is built."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

import gnothi
from gnothi import data as sources
from gnothi import distributed
from gnothi.auxiliary import AUXILIARIES
from gnothi.contracts import DataError, Pixels, SettingError, Source
from gnothi.data import Subset
from gnothi.data.open import given, title
from gnothi.distributed import device_of
from gnothi.methods import METHODS, STUDENTS
from gnothi.randomness import generator
from gnothi.recipes import rules, spec
from gnothi.recipes.named import BY_DATA, recipe
from gnothi.recipes.spec import RunSpec
from gnothi.views.batches import ViewsSpec


@dataclass(frozen=True)
class Resolved:
    """A run with every setting decided, before anything is built."""

    spec: RunSpec
    recipe: str
    source: Source
    """All images that were named."""
    kept: Source
    """Those that train."""
    held: np.ndarray
    """Row numbers of those that do not."""
    pixels: Pixels
    views: ViewsSpec
    device: torch.device
    threads: int
    workers: int

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return len(self.kept) // (self.spec.training.batch or 1)

    @property
    def total(self) -> int:
        """Steps of the run."""
        return max(1, round((self.spec.training.epochs or 1) * self.per_epoch))

    def record(self) -> dict[str, Any]:
        """What ``spec.json`` holds."""
        derived = {
            "recipe": self.recipe,
            "pixels": asdict(self.pixels),
            "channels": self.source.channels,
            "size": self.spec.views.size,
            "n": len(self.kept),
            "held_out": len(self.held),
            "steps": self.total,
            "steps_per_epoch": self.per_epoch,
            "views": self.views.model_dump(mode="json"),
            "device": self.device.type,
            "threads": self.threads,
            "workers": self.workers,
            "processes": distributed.world(),
        }
        labelled = 0 if self.source.labels is None else int((self.source.labels >= 0).sum())
        source = {"name": self.spec.data.name, "fingerprint": self.source.fingerprint(), "n": len(self.source), "labelled": labelled}
        return {"gnothi": gnothi.__version__, "settings": self.spec.model_dump(mode="json"), "derived": derived, "source": source}

    def words(self) -> str:
        """What was chosen, in two lines."""
        s, t = self.spec, self.spec.training
        held = f" ({len(self.held)} more held out)" if len(self.held) else ""
        classes = f", {len(self.source.classes)} classes" if self.source.classes else ""
        return (
            f"{s.data.name}: {_count(len(self.kept), 'image')}{held}, {_count(self.source.channels, 'channel')}{classes}\n"
            f'recipe "{self.recipe}": {s.method.name} on {s.backbone.name}, crops of {s.views.size} px by "{s.views.recipe}", '
            f"{_count(t.epochs, 'epoch')} of {_count(self.per_epoch, 'step')}, batch {t.batch}, {s.optimiser.name} at {s.optimiser.lr:g}, "
            f"{self.device.type}, {t.precision}, {_count(self.threads, 'thread')}, {_count(self.workers, 'loader process')}"
        )


def _count(n: float | None, what: str) -> str:
    """A number with its word: 1 epoch, 2 epochs."""
    number = f"{n:,}" if isinstance(n, int) else f"{n:g}"
    return f"{number} {what}" if n == 1 else f"{number} {what}{'es' if what.endswith('s') else 's'}"


def resolve(
    data: str | Source,
    *,
    recipe_name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str | None = None,
    processes: int | None = None,
) -> Resolved:
    """Decide every setting of a run: rules under the recipe under what the caller says.

    Args:
        data: what to learn from, by name or open.
        recipe_name: one of ``recipes.named.RECIPES``; None for the data's own, or "any".
        settings: nested settings that win.
        device: cpu, cuda or mps.
        processes: that will share a batch by rule; by default those there are.

    Raises:
        SettingError: a setting is unknown or impossible.
        DataError: the images cannot be used.
    """
    name = data if isinstance(data, str) else title(data)
    recipe_name = recipe_name or BY_DATA.get(name.partition("@")[0], "any")
    chosen = spec.merge(spec.merge({"data": {"name": name}}, recipe(recipe_name).settings), settings or {})
    early = spec.load(chosen)  # a wrong key is named before any image is read
    if early.data.name != name:
        raise SettingError(f"data.name is said by the argument DATA, {name}; got {early.data.name} too")
    where = device_of(device)
    source = sources.open(data, settings=early.data) if isinstance(data, str) else given(data, early.data)
    if len(source) < 4:
        raise DataError(f"{name} has {len(source)} images; training needs at least 4")
    kept, held = _holdout(source, early)
    pixels = sources.pixels(kept, seed=0)
    facts = rules.Facts(len(kept), source.channels, _side(kept), where.type, _has_bf16(where), processes or distributed.world())
    full = spec.load(spec.merge(rules.defaults(facts, chosen), chosen))
    _check(full, len(kept), where)
    views = rules.crops(full.views, full.method.name, source.channels)
    full = _with_auxiliaries(full, views)
    threads, workers = _threads(full, kept, where)
    return Resolved(full, recipe_name, source, kept, held, pixels, views, where, threads, workers)


def _holdout(source: Source, early: RunSpec) -> tuple[Source, np.ndarray]:
    fraction = early.data.holdout
    if fraction is None:
        several = source.groups is None or len(np.unique(source.groups)) > 1  # one group is never divided
        fraction = min(0.1, 1000 / len(source)) if source.labels is not None and len(source) >= 100 and several else 0.0
    if not fraction:
        return source, np.empty(0, dtype=np.int64)
    kept, held = sources.holdout(source, fraction, early.seed)
    if len(kept) < 4:
        raise SettingError(f"data.holdout={fraction} leaves {len(kept)} of {len(source)} images to train on; it needs at least 4")
    return Subset(source, kept), held


def _side(source: Source) -> int:
    if source.array is not None:
        return min(source.array.shape[-2:])
    sides = []
    for row in torch.randperm(len(source), generator=generator(0, "sides"))[:200].tolist():
        try:
            sides.append(min(source.shape(row)))
        except DataError:
            continue
    if not sides:
        raise DataError(f"none of {min(200, len(source))} images could be read; gnothi data lists what is wrong with each")
    return int(np.median(sides))


def _check(full: RunSpec, n: int, device: torch.device) -> None:
    """What lies between settings."""
    t, method = full.training, METHODS[full.method.name][1]
    if t.batch is None or t.batch > n:
        raise SettingError(f"training.batch must be at most the number of training images, {n}, got {t.batch}")
    if t.accumulate > 1 and not method.accumulates:
        able = ", ".join(name for name, (_, m) in METHODS.items() if m.accumulates and m.compares)
        raise SettingError(f"training.accumulate must be 1 for {method.name}, whose loss compares all images of a batch; {able} can accumulate")
    if t.accumulate > 1 and getattr(full.method, "centring", None) == "sinkhorn":
        why = "which assigns all images of a batch at once; method.centring=ema can accumulate"
        raise SettingError(f"training.accumulate must be 1 with method.centring=sinkhorn, {why}")
    share = t.accumulate * distributed.world()
    if t.batch % share:
        near = [str(b) for b in (t.batch // share * share, (t.batch // share + 1) * share) if 0 < b <= n]
        remedy = f"{' and '.join(near)} {'is' if len(near) == 1 else 'are'} nearest" if near else f"{n} images are too few for so many"
        raise SettingError(
            f"training.batch must be a multiple of training.accumulate times the number of processes, {share}, got {t.batch}; {remedy}"
        )
    if t.batch == t.accumulate > 1 and not getattr(full.method, "joint_views", True) and getattr(full.method, "norm", "") == "batch":
        raise SettingError(f"training.batch must be at least {2 * t.batch} with training.accumulate={t.batch}: BatchNorm needs two images at a time")
    if t.recompute and t.compile:
        raise SettingError("training.recompute must be false with training.compile, which decides by itself what to compute twice; got true")
    if t.parallel == "fsdp" and t.compile:
        raise SettingError("training.parallel must be ddp with training.compile, got fsdp; compiled blocks are not gathered one by one")
    if t.precision == "bf16" and not _has_bf16(device):
        raise SettingError(f"training.precision=bf16: this {device.type} has no bf16 arithmetic; fp32 works")


def _with_auxiliaries(full: RunSpec, views: ViewsSpec) -> RunSpec:
    """Settings with those of the auxiliaries settled.

    Raises:
        SettingError: an auxiliary does not go with the method or the views, or there is neither a method nor an auxiliary that does without.
    """
    for name in full.auxiliary:
        AUXILIARIES[name][1].check(views)
    settled = {name: a.settled(full.method.name, views) for name, a in full.auxiliary.items()}
    full = full.model_copy(update={"auxiliary": settled})
    able = [name for name, (_, a) in AUXILIARIES.items() if a.alone]
    built = {name: a for name, a in settled.items() if a.weight}
    lonely = sorted(built.keys() - set(able))
    if lonely and full.method.name in STUDENTS:
        raise SettingError(f"auxiliary.{lonely[0]} needs a method that compares views, {full.method.name} does not; {' and '.join(able)} do without")
    if full.method.name == "none":
        for name in lonely:
            raise SettingError(f"auxiliary.{name} needs a method beside it, and method.name is none; alone work {' and '.join(able)}")
        if not any(a.start == 0 for a in built.values()):
            raise SettingError(
                f"method.name=none learns nothing itself: it needs --auxiliary {' or '.join(able)}, of a weight above 0, from the start"
            )
    return full


def _has_bf16(device: torch.device) -> bool:
    """Whether bf16 is fast here: a CPU without instructions for it imitates it, slowly."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _threads(full: RunSpec, source: Source, device: torch.device) -> tuple[int, int]:
    """Compute threads and loader processes: images in memory need no loaders; others get half the cores, and on a CPU the rest computes."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has no affinity
    cores = mine // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) or 1
    workers = full.training.workers
    if workers is None:
        workers = 0 if source.array is not None else min(16, max(1, cores // 2 if device.type == "cpu" else cores - 1))
    threads = full.training.threads or max(1, cores - (workers if device.type == "cpu" else 0))
    return threads, workers
