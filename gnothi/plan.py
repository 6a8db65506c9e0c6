"""What a run will cost, before anything is spent: measured by a few of its own steps, or predicted for other numbers of processes and images."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from gnothi.contracts import DataError, SettingError, Source
from gnothi.encoders.inputs import centre
from gnothi.forecast import Demand, Forecast, Link, Plan, Rates, Taken, fit, forecast
from gnothi.models import backbone as backbones
from gnothi.models.blocks import activations
from gnothi.pretrain import HEALTH_SAMPLE, Along, batches, build, live_encoder
from gnothi.recipes.resolve import Resolved, resolve
from gnothi.schedules import steps as to_steps
from gnothi.training.learner import Learner

COUNTED = 8
"""Images of the batch whose operations and bytes are counted."""
WARM, TIMED = 2, 4
"""Steps of a calibration's case before the clock starts, and by it."""
Case = tuple[str, dict[str, Any], int, int]
CASES: tuple[Case, ...] = (
    ("micro-vit", {"width": 96, "heads": 3, "depth": 12}, 56, 8),
    ("micro-resnet", {}, 32, 64),
    ("micro-resnet", {"widths": [32, 64, 128, 256]}, 48, 16),
    ("micro-vit", {"width": 192, "heads": 3, "depth": 8}, 32, 16),
    ("micro-vit", {"width": 384, "heads": 6, "depth": 4}, 32, 16),
    ("micro-vit", {}, 32, 96),
    ("micro-resnet", {"widths": [64, 128, 256, 512]}, 32, 64),
)
"""Backbone, its arguments, side of the crops in pixels, and batch of a calibration's steps, which hold ever more bytes."""


# ---- measured -----------------------------------------------------------------------------------
def plan(resolved: Resolved, steps: int = 6) -> dict[str, Any]:
    """What a run will cost: a few steps are taken for a measure, nothing is kept.

    Args:
        resolved: the run.
        steps: how many to take, the first two of which warm up; where many loader processes read, as many as whole rounds of them need.

    Returns:
        steps, seconds a step, seconds in all, peak memory in bytes, parameters, FLOPs in all, bytes of a checkpoint.
    """
    torch.set_num_threads(resolved.threads)
    warm, counted, rounds = 2, steps - 2, resolved.workers > 2
    if rounds:  # so many loader processes give their batches in bursts: a wait is seen in whole rounds only
        warm, counted = 2 * resolved.workers, max(2, math.ceil(counted / resolved.workers)) * resolved.workers
    learner = learner_of(resolved, max(warm + counted, resolved.total))
    objective, s = learner.objective, resolved.spec
    step_seconds = timed(learner, resolved.device, warm, counted, rounds)
    encoder = live_encoder(resolved, objective.method)
    images = centre(resolved.pixels.unit(_first(resolved.kept)), s.views.size or 0).repeat(HEALTH_SAMPLE, 1, 1, 1)
    began = time.monotonic()
    encoder.encode(images)
    an_image = (time.monotonic() - began) / HEALTH_SAMPLE
    crops = () if s.method.name == "none" else (*resolved.views.global_crops, *resolved.views.local_crops)
    sizes = [c.size for c in crops] + [size for a in objective.auxiliaries.values() for size in a.passes(resolved.views)]
    forward = sum(n * backbones.flops(objective.method.backbone, resolved.source.channels, size) for size, n in Counter(sizes).items())
    slow = (
        0
        if objective.method.slow is None
        else sum(backbones.flops(objective.method.backbone, resolved.source.channels, c.size) for c in resolved.views.global_crops)
    )
    return {
        "steps": resolved.total,
        "step_seconds": step_seconds,
        "seconds": step_seconds * resolved.total + an_image * looks(resolved, resolved.total, resolved.per_epoch),
        "peak_memory": peak(resolved.device),
        "parameters": sum(p.numel() for p in objective.method.backbone.parameters()),
        "flops": (3 * forward + slow) * (s.training.batch or 0) * resolved.total,
        "checkpoint_bytes": _bytes(learner.state()),
    }


def looks(resolved: Resolved, total: int, per_epoch: int) -> int:
    """Images that health and k-NN along the way look at in a run of so many steps."""

    def times(name: str) -> int:
        every = to_steps(getattr(resolved.spec.training, name), per_epoch, total, setting=f"training.{name}")
        return math.ceil(total / max(1, every))

    along = Along(resolved)
    asked = len(along.train) + len(along.test) if len(along.test) else 0
    return times("health_every") * HEALTH_SAMPLE + times("evaluate_every") * asked


def learner_of(resolved: Resolved, total: int) -> Learner:
    """A run's Learner that keeps nothing."""
    objective, s = build(resolved), resolved.spec
    views = batches(resolved, objective, total)
    return Learner(objective, views, spec=s.training, optimiser=s.optimiser, total=total, per_epoch=resolved.per_epoch, seed=s.seed)


def timed(learner: Learner, device: torch.device, warm: int, steps: int, mean: bool = False) -> float:
    """Seconds of a step: the median (or mean) of some, after others; then the loaders are closed."""
    times: list[float] = []
    views: Any = learner.batches
    try:
        for _ in range(warm + steps):
            began = time.monotonic()
            learner.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.monotonic() - began)
    finally:
        views.close()
    return float((np.mean if mean else np.median)(times[warm:]))


def _first(source: Source) -> Tensor:
    """The first image that can be read, [1, C, H, W]."""
    for row in range(len(source)):
        try:
            return source.image(row)[None]
        except DataError:
            continue
    raise DataError("no image can be read")


def _bytes(tensors: Mapping[Any, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())


def peak(device: torch.device) -> int:
    """Bytes that this process held at the most, on its device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # the resource below counts what the process held that this one was started from
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024  # type: ignore[index]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# ---- predicted ----------------------------------------------------------------------------------
def predict(resolved: Resolved, processes: int = 1, images: int | None = None, together: int = 1) -> Forecast:
    """What a run will cost over several processes, and of other numbers of images.

    The run is counted: operations and bytes of a step of a few images. A calibration says what this machine makes of such counts: short steps of
    small networks, in as many processes at once as will share a machine.

    Args:
        resolved: the run; its joint batch stays.
        processes: over how many.
        images: how many train; by default as many as there are.
        together: how many processes share a machine such as this one; each has one of its own by default.

    Raises:
        SettingError: the batch or the processes cannot be divided so.
    """
    t = resolved.spec.training
    batch, images = t.batch or 1, images or len(resolved.kept)
    if processes < 1 or batch % (processes * t.accumulate):
        share = processes * t.accumulate
        raise SettingError(f"training.batch must be a multiple of training.accumulate times --processes, {share}, got {batch}")
    if images < batch:
        raise SettingError(f"--images must be at least training.batch, {batch}, got {images}")
    if together < 1 or processes % together:
        raise SettingError(f"--processes must be a multiple of --together, {together}, got {processes}")
    base = resident() if resolved.device.type == "cpu" else 0
    per_epoch, epochs = images // batch, t.epochs or 1.0
    total = max(1, round(epochs * per_epoch))
    cut = Plan(images, batch, epochs, processes, t.accumulate, t.parallel, looks(resolved, total, per_epoch))
    between = link(resolved.device) if processes > 1 else Link(0.0, 1.0)
    return forecast(count(resolved), cut, calibrate(resolved, together, between), between, base)


def resident() -> int:
    """Bytes that this process holds now."""
    if os.path.isdir("/proc/self"):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak(torch.device("cpu"))


def resized(resolved: Resolved, batch: int) -> Resolved:
    """The same run with another batch, in one micro-batch, whose images are cut here."""
    t = resolved.spec.training.model_copy(update={"batch": batch, "accumulate": 1})
    return replace(resolved, spec=resolved.spec.model_copy(update={"training": t}), workers=0)


def count(resolved: Resolved) -> Demand:
    """What a step asks for, by counting one of a few images and one of half as many: what does not grow with them is kept apart."""
    many = min(COUNTED, len(resolved.kept))
    large, small = (_counted(resolved, images) for images in (many, many // 2))
    more = many - many // 2
    kept = (large["kept"] - small["kept"]) / more
    return Demand(
        flops=(large["flops"] - small["flops"]) / more,
        kept=kept,
        once=max(0.0, large["kept"] - many * kept),
        crops=large["crops"] / many,
        learned=large["learned"],
        state=large["state"],
        waits=large["waits"] + 2,  # and the check of the terms, and the merging of what is carried
        look=float(large["look"]),
    )


def _counted(resolved: Resolved, images: int) -> dict[str, int]:
    """Of one step of so many images: FLOPs, bytes kept and bytes of crops; and of the run what does not depend on them."""
    small = resized(resolved, images)
    learner = learner_of(small, small.total)
    objective, views, waits = learner.objective, learner.batches(0), [0]
    for m in objective.modules():
        if isinstance(m, _BatchNorm):  # its statistics, and their gradients
            m.register_forward_hook(lambda *_: waits.append(2 if torch.is_grad_enabled() else 1))
    with FlopCounterMode(display=False) as flops, activations(objective) as kept:
        learner.step()
    closing: Any = learner.batches
    closing.close()
    return {
        "flops": flops.get_total_flops(),
        "kept": kept(),
        "crops": sum(_bytes(dict(enumerate(v.images))) for v in (views, *views.extra.values())),
        "learned": _bytes({n: p for n, p in objective.named_parameters() if p.requires_grad}),
        "state": _bytes(learner.state()),
        "waits": sum(waits),
        "look": backbones.flops(objective.method.backbone, resolved.source.channels, resolved.spec.views.size or 0),
    }


def calibrate(resolved: Resolved, together: int = 1, between: Link | None = None) -> Rates:
    """What this machine makes of counted steps, in the run's precision and with its threads; they are taken in fresh processes.

    Args:
        resolved: the run.
        together: processes that take the steps at once, as one run: what they share is then shared, and BatchNorm is computed over all of them.
        between: what they hear of each other; the time of it is not counted again.
    """
    t = resolved.spec.training
    threads = t.threads or max(1, resolved.threads // together)  # processes of a machine share its cores
    manner = {"precision": t.precision, "channels_last": t.channels_last, "threads": threads}
    device = str(resolved.device)
    demands = [count(_case(case, manner, device)) for case in CASES]
    talk = [0.0 if between is None else between.exchange(demand, together) for demand in demands]
    took = zip(demands, CASES, talk, _taken(together, manner, device), strict=True)
    return fit([Taken(d, case[3], max(s - said, LEAST * s), held or None) for d, case, said, (s, held) in took])


LEAST = 0.05
"""Part of a step's time that is the machine's own at least, however long the exchange is said to take."""


def _case(case: Case, manner: dict[str, Any], device: str, processes: int = 1) -> Resolved:
    """The run of a calibration's case: so many images in every process."""
    name, args, size, batch = case
    settings = {"method": {"name": "simclr"}, "backbone": {"name": name, "args": args}, "views": {"size": size}, "data": {"holdout": 0.0}}
    training = {**manner, "batch": batch * processes, "workers": 0}
    return resolve("photos", recipe_name="any", settings={**settings, "training": training}, device=device)


def _taken(processes: int, manner: dict[str, Any], device: str) -> list[tuple[float, float]]:
    """Of every case the seconds of a step and the bytes that it took, 0 where they were not seen; in processes of this machine, as one run."""
    from torch.multiprocessing.spawn import spawn

    with tempfile.TemporaryDirectory() as folder:
        spawn(_take, (folder, processes, manner, device), nprocs=processes)
        return [(seconds, held) for seconds, held in json.loads(Path(folder, "took").read_text())]


def _take(rank: int, folder: str, processes: int, manner: dict[str, Any], device: str) -> None:
    torch.set_num_threads(manner["threads"])
    if device.startswith("cuda") and processes > 1:
        device = f"cuda:{rank}"
    where = torch.device(device)
    if processes > 1:
        backend = "nccl" if where.type == "cuda" else "gloo"
        if where.type == "cuda":
            torch.cuda.set_device(where)
        dist.init_process_group(backend, init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
    cases = [_case(case, manner, device, processes) for case in CASES]
    base = resident() if where.type == "cpu" else 0
    highest, took = peak(where), []
    for case in cases:
        seconds = timed(learner_of(case, case.total), where, WARM, TIMED)
        now = peak(where)  # of all cases so far; they grow, so mostly it is this one's
        took.append((seconds, now - base if now > highest else 0))
        highest = now
    if rank == 0:
        Path(folder, "took").write_text(json.dumps(took))
    if processes > 1:
        dist.barrier()
        dist.destroy_process_group()


# ---- other processes ----------------------------------------------------------------------------
def link(device: torch.device) -> Link:
    """What two processes on this machine hear of each other; over GPUs where there are two."""
    from torch.multiprocessing.spawn import spawn

    on = "cuda" if device.type == "cuda" and torch.cuda.device_count() > 1 else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        spawn(_talk, (folder, on), nprocs=2)
        latency, large = map(float, Path(folder, "heard").read_text().split())
    return Link(latency, _MEASURED / max(large - latency, 1e-9))


_MEASURED = 1 << 24
"""Bytes of the large message; of two processes each sends as many."""


def _talk(rank: int, folder: str, device: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    where = torch.device(device, rank) if device == "cuda" else torch.device("cpu")
    medians = []
    for numbers, rounds in ((1, 50), (_MEASURED // 4, 6)):
        message, times = torch.ones(numbers, device=where), []
        for _ in range(rounds):
            began = time.monotonic()
            dist.all_reduce(message)
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.monotonic() - began)
        medians.append(float(np.median(times[1:])))
    if rank == 0:
        Path(folder, "heard").write_text(" ".join(map(str, medians)))
    dist.barrier()
    dist.destroy_process_group()


def told(found: Forecast) -> dict[str, Any]:
    """A prediction as plain values."""
    return {**asdict(found), "hours": found.seconds / 3600, "steps_per_second": 1 / found.step_seconds}
