"""How near k-NN comes to its bare matrix products, how much memory a million rows take, and how near embedding a folder comes to the bare encoder.

    python -m benchmarks.search

Writes benchmarks/results/search.json.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.step import write_data
from gnothi.contracts import Pixels
from gnothi.data import open as open_data
from gnothi.encoders.embed import embed as write
from gnothi.encoders.network import NetworkEncoder
from gnothi.evaluate import nearest
from gnothi.files import write_text
from gnothi.models.backbone import BackboneSpec, build
from gnothi.randomness import generator

RESULTS = Path(__file__).parent / "results" / "search.json"
TIMES = 5
"""Each thing is timed so often, in turn; the median counts."""


def in_turn(*actions: Callable[[], object]) -> list[float]:
    """Median seconds of each action."""
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(TIMES):
        for action, into in zip(actions, times, strict=True):
            began = time.perf_counter()
            action()
            into.append(time.perf_counter() - began)
    return [statistics.median(t) for t in times]


def knn() -> dict[str, float]:
    """10,000 rows ask 50,000 of width 512; the bare products are of the blocks that the search takes."""
    train, test = (torch.randn(n, 512, generator=generator(0, "rows", n)) for n in (50_000, 10_000))
    tall, _, _ = nearest.sizes(len(train), 512, 20)

    def bare() -> None:
        for part in test.split(tall):
            part @ train.T

    found: dict[str, float] = {}
    for k in (20, 200):
        products, search = in_turn(bare, lambda k=k: nearest.neighbours(train, test, k))
        found |= {f"k={k}": search / products, f"k={k} seconds": search}
    return found


def memory() -> dict[str, float]:
    """100 rows ask a million of width 512 that lie on the disk: memory of the process's own (not pages of the file) above what it had."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(1_000_000, 512))
        for at in range(0, len(rows), 50_000):
            rows[at : at + 50_000] = torch.randn(50_000, 512, generator=generator(1, "rows", at)).numpy()
        rows.flush()
        rows, test = np.load(path, mmap_mode="r"), torch.randn(100, 512, generator=generator(2, "rows"))
        most, done, before = [0], threading.Event(), own()

        def watch() -> None:
            while not done.wait(0.01):
                most[0] = max(most[0], own())

        watcher = threading.Thread(target=watch)
        watcher.start()
        began = time.perf_counter()
        nearest.neighbours(rows, test, 20)
        seconds = time.perf_counter() - began
        done.set()
        watcher.join()
    return {"million rows MiB": (most[0] - before) / 2**20, "bound MiB": nearest.MEMORY / 2**20, "million rows seconds": seconds}


def own() -> int:
    """Bytes of this process that no file backs."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024


def embed() -> dict[str, float]:
    """A folder of JPEGs of 96 px through a micro ResNet and a ResNet-18 into a file, against the network alone on as many ready images."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        source = open_data(str(write_data(Path(folder))["folder"]))
        for name in ("micro-resnet", "resnet18"):
            spec = BackboneSpec(name=name)
            encoder = NetworkEncoder(name, build(spec, 3, 96, 0), spec, 3, 96, Pixels(0.0, 255.0, (0.5,) * 3, (0.25,) * 3))
            ready = torch.randn(len(source), 3, 96, 96, generator=generator(0, "images"))
            alone, whole = in_turn(lambda e=encoder, r=ready: e.encode(r), lambda e=encoder: write(e, source, Path(folder) / "vectors.npz"))
            found |= {f"embed {name}": alone / whole, f"embed {name} images/s": len(source) / whole}
    return found


def main() -> None:
    found: dict[str, float] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in (memory, knn, embed):  # memory first: what a process has once held is not taken anew
        new = part()
        print(*(f"{name:<28}{value:>12.3f}" for name, value in new.items()), sep="\n", flush=True)
        found |= new
        rounded = {k: round(v, 4) for k, v in found.items()} | {"threads": torch.get_num_threads(), "load": os.getloadavg()[0]}
        write_text(RESULTS, json.dumps(rounded, indent=1) + "\n")


if __name__ == "__main__":
    main()
