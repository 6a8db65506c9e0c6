"""What training will cost elsewhere: times from what a step asks for and what a machine gives, and which limit images meet first. Numbers only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SEARCH = 1 << 28
"""Bytes that a search for neighbours takes."""
INDEX = 36.0
"""Bytes that the index of a shard holds of an image besides its name."""
BUCKET = 25 << 20
"""Bytes of gradients that DDP sends together."""


# ---- time ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Demand:
    """What a step of a run asks of a machine; counted, so the same everywhere."""

    flops: float
    """Of an image of the batch: forward and backward pass of all its crops."""
    kept: float
    """Bytes that an image's crops keep for the backward pass."""
    once: float
    """Bytes that are kept whatever the batch."""
    crops: float
    """Bytes of an image's crops."""
    learned: int
    """Bytes of what learns: as many gradients are made, and sent."""
    state: int
    """Bytes of a checkpoint: parameters, teacher, memories, optimiser."""
    waits: int
    """How often a step waits for other processes, where there are some, besides its gradients: BatchNorm mostly."""
    look: float
    """FLOPs of a whole image that is only looked at, by health and k-NN along the way."""

    def parts(self, images: float) -> tuple[float, ...]:
        """What a step of so many images is made of, each with a time of its own: FLOPs, bytes kept, bytes of crops, bytes of state, the step."""
        return images * self.flops, images * self.kept, images * self.crops, float(self.state), 1.0

    def held(self, images: float, accumulate: int = 1, shards: int = 1) -> float:
        """Bytes that a process holds at the most in a step of so many images, its parameters divided among so many processes."""
        return (self.state + self.learned) / shards + self.once + images / accumulate * self.kept + images * self.crops


@dataclass(frozen=True)
class Rates:
    """What a machine makes of counts."""

    seconds: tuple[float, ...]
    """Of a unit of each of ``Demand.parts``."""
    room: tuple[float, float] = 0.0, 1.0
    """Bytes that a process takes whatever the run, once it computes, and for each byte that is counted: what arithmetic works in comes on top."""

    def step(self, demand: Demand, images: float) -> float:
        """Seconds of a step of so many images in one process."""
        return math.fsum(s * part for s, part in zip(self.seconds, demand.parts(images), strict=True))

    def look(self, demand: Demand) -> float:
        """Seconds of an image that is only looked at."""
        return self.seconds[0] * demand.look + self.seconds[1] * demand.kept * demand.look / demand.flops

    def memory(self, counted: float) -> float:
        """Bytes that a process takes for those that are counted."""
        return self.room[0] + self.room[1] * counted


@dataclass(frozen=True)
class Taken:
    """What a step of a known demand took."""

    demand: Demand
    images: float
    seconds: float
    memory: float | None = None
    """Bytes at the most, besides what the process held before; None where they were not seen."""


def fit(steps: Sequence[Taken]) -> Rates:
    """The rates that explain some steps best: of least squared relative error, none below zero."""
    seen = [(s.demand.held(s.images), s.memory) for s in steps if s.memory is not None]
    seconds = _explained([s.demand.parts(s.images) for s in steps], [s.seconds for s in steps])
    if len(seen) < 2:
        return Rates(seconds)
    fixed, factor = _explained([(1.0, counted) for counted, _ in seen], [memory for _, memory in seen])
    return Rates(seconds, (fixed, factor))


def _explained(parts: Sequence[tuple[float, ...]], wholes: Sequence[float]) -> tuple[float, ...]:
    """Factors of parts whose sums come nearest to the wholes."""
    from scipy.optimize import nnls

    rows, sums = np.array(parts), np.array(wholes)
    scale = np.maximum(rows.max(axis=0), 1e-300)  # parts differ by many powers of ten
    found, _ = nnls(rows / scale / sums[:, None], np.ones(len(rows)))
    return tuple(float(x) for x in found / scale)


@dataclass(frozen=True)
class Link:
    """What processes hear of each other."""

    latency: float
    """Seconds of a word."""
    bandwidth: float
    """Bytes a second, each way."""

    def exchange(self, demand: Demand, processes: int, parallel: str = "ddp", accumulate: int = 1) -> float:
        """Seconds that a step of several processes waits: gradients by a ring, 2 (N - 1) / N of their bytes, and words of each micro-batch.

        With fsdp 3 (N - 1) / N, in every micro-batch.
        """
        if processes == 1:
            return 0.0
        rounds = 3 * accumulate if parallel == "fsdp" else 2
        sent = rounds * (processes - 1) / processes * demand.learned
        return sent / self.bandwidth + (accumulate * demand.waits + math.ceil(demand.learned / BUCKET)) * self.latency


@dataclass(frozen=True)
class Forecast:
    """What a run will cost."""

    steps: int
    step_seconds: float
    waiting: float
    """Part of a step that waits for other processes."""
    images_per_second: float
    """Over all processes."""
    seconds: float
    """Of the whole run, with health and k-NN along the way."""
    memory: float
    """Bytes of a process at the most."""
    checkpoint: int
    """Bytes."""


@dataclass(frozen=True)
class Plan:
    """How a run is cut."""

    images: int
    """That train."""
    batch: int
    """Over all processes."""
    epochs: float
    processes: int = 1
    accumulate: int = 1
    parallel: str = "ddp"
    looks: int = 0
    """Images that health and k-NN along the way look at, over the whole run."""


def forecast(demand: Demand, plan: Plan, rates: Rates, link: Link, base: float = 0.0) -> Forecast:
    """Predict a run.

    Args:
        demand: of its steps.
        plan: how it is cut.
        rates: of the machine of each process.
        link: between them.
        base: bytes that a process holds before there is a network.
    """
    steps = max(1, round(plan.epochs * (plan.images // plan.batch)))
    local = plan.batch / plan.processes
    waiting = link.exchange(demand, plan.processes, plan.parallel, plan.accumulate)
    step = rates.step(demand, local) + waiting
    shards = plan.processes if plan.parallel == "fsdp" else 1
    memory = base + rates.memory(demand.held(local, plan.accumulate, shards))
    seconds = steps * step + plan.looks * rates.look(demand)
    return Forecast(steps, step, waiting / step, plan.batch / step, seconds, memory, demand.state)


def transformer(depth: int, width: int, tokens: int) -> tuple[float, int]:
    """FLOPs of a forward pass of one image, and parameters, of a ViT's blocks with perceptrons of four times their width.

    A block has 12 D^2 weights, which meet every token, and compares N tokens with N tokens twice (arXiv 2010.11929).
    """
    weights = 12 * width**2
    return depth * (2.0 * tokens * weights + 4.0 * tokens**2 * width), depth * weights


# ---- limits -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Rack:
    """A machine on paper."""

    processes: int = 64
    memory: float = 128 * 2**30
    """Bytes of main memory a process."""
    cores: int = 16
    """That read images, a process."""
    decode: float = 0.008
    """Seconds in which a core decodes and cuts an image."""
    disk: float = 1e9
    """Bytes a second that a process reads and writes."""
    store: float = 1e13
    """Bytes of disk for features."""
    flops: float = 3e14
    """FLOPs a second that a process does while it trains."""
    exact: float = 3e13
    """The same in float32, in which neighbours are searched."""
    link: Link = Link(5e-5, 2.5e10)


@dataclass(frozen=True)
class Study:
    """A data set and a run on paper."""

    images: int = 10**9
    image: int = 100_000
    """Bytes of an image's file."""
    name: int = 24
    """Letters of an image's name."""
    width: int = 1024
    """Of the representation."""
    queries: int = 50_000
    """Images whose neighbours are searched among all."""
    k: int = 20
    clusters: int = 2000
    passes: int = 50
    """Of k-means."""
    epochs: float = 1.0
    checkpoints: int = 20
    patience: float = 86_400.0
    """Seconds that an evaluation or a clustering may take."""


@dataclass(frozen=True)
class Limit:
    """Something that grows with the images, and where it ends."""

    what: str
    formula: str
    needs: float
    has: float
    unit: str
    """B, s, or images/s."""

    @property
    def share(self) -> float:
        """The part of what there is that is needed; above 1 it breaks."""
        return self.needs / self.has


def limits(study: Study, rack: Rack, run: Forecast) -> list[Limit]:
    """What a data set asks for besides arithmetic, that which breaks first in front."""
    s, r = study, rack
    every = run.images_per_second / r.processes
    held = SEARCH // 2 // (8 * (s.width + 6 * s.k))  # queries that meet the bank together, as evaluate.nearest holds them
    asking = math.ceil(s.queries / r.processes)
    reads = math.ceil(asking / held) * 4 * s.width * s.images / r.disk
    products = 2 * s.width * s.images * asking / r.exact
    found = [
        Limit("decoding", "images/s of a process, of cores / seconds an image", every, r.cores / r.decode, "images/s"),
        Limit("reading", "images/s of a process x bytes an image, of the disk", every * s.image, r.disk, "B/s"),
        Limit("order of an epoch", "8 B x images, of a process's memory", 8.0 * s.images, r.memory, "B"),
        Limit("index of the shards", "(36 B + name) x images, of a process's memory", (INDEX + s.name) * s.images, r.memory, "B"),
        Limit("labels", "8 B x images, of a process's memory", 8.0 * s.images, r.memory, "B"),
        Limit("features", "4 B x width x images, of the disk for them", 4.0 * s.width * s.images, r.store, "B"),
        Limit("checkpoint", "its bytes / disk, of the time between two", run.checkpoint / r.disk, run.seconds / s.checkpoints, "s"),
        Limit("k-means, memory", "8 B x (k + block) x width, of a process's memory", 8.0 * (s.clusters + 8192) * s.width, r.memory, "B"),
        Limit("k-means, time", "passes x 4 B x width x images / disk, of a day", s.passes * 4.0 * s.width * s.images / r.disk, s.patience, "s"),
        Limit("k-NN, time", "(bank / disk) x rounds + 2 width images queries / N / FLOPs, of a day", reads + products, s.patience, "s"),
        Limit("k-NN, memory", "256 MiB, of a process's memory", float(SEARCH), r.memory, "B"),
    ]
    return sorted(found, key=lambda limit: -limit.share)
