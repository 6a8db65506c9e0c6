"""K-means over features on the disk: time and memory for a number of rows, and for a half and a quarter of it.

    python -m benchmarks.clusters [--rows N] [--width D] [--clusters K] [--memory GIB] [--passes N]

The default is a tenth of ImageNet's training images under a ResNet-50: 128,000 rows of 2,048 numbers, 2,000 clusters; rows are noise around as many
directions. Each number of rows is a process of its own with one thread. Memory is the process's own, not pages of the file, above what it had before;
it is looked at every hundredth of a second. Writes benchmarks/results/clusters.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.apart import apart
from benchmarks.search import own
from gnothi.files import write_text
from gnothi.randomness import generator
from gnothi.transfer import cluster

RESULTS = Path(__file__).parent / "results" / "clusters.json"
PART = 8192
"""Rows written at a time."""


def write_rows(path: Path, rows: int, width: int, directions: int) -> None:
    """Noise around random directions, [rows, width] float32."""
    centres = torch.randn(directions, width, generator=generator(0, "centres"))
    into = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, width))
    for at in range(0, rows, PART):
        g, n = generator(0, "rows", at), min(PART, rows - at)
        which = torch.randint(directions, (n,), generator=g)
        into[at : at + n] = (centres[which] + torch.randn(n, width, generator=g)).numpy()
    into.flush()


def watched(action: Callable[[], Any]) -> tuple[Any, float, int]:
    """What an action gives, its seconds of this process, and the most memory of the process's own above what it had, in bytes."""
    most, done, before = [own()], threading.Event(), own()

    def watch() -> None:
        while not done.wait(0.01):
            most[0] = max(most[0], own())

    watcher, began = threading.Thread(target=watch), time.process_time()
    watcher.start()
    try:
        found = action()
    finally:
        done.set()
        watcher.join()
    return found, time.process_time() - began, most[0] - before


def measure(rows: int, width: int, clusters: int, memory: float, passes: int) -> dict[str, Any]:
    """One number of rows: ``seconds`` of k-means, ``pass`` seconds of labelling all rows once, ``peak`` in bytes."""
    import faiss

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        write_rows(path, rows, width, clusters)
        features = np.load(path, mmap_mode="r", allow_pickle=False)
        book, seconds, peak = watched(lambda: cluster(features, clusters, restarts=1, iterations=passes, memory=memory))
        _, once, _ = watched(lambda: book.assign(features))
    shape = {"rows": rows, "width": width, "clusters": clusters, "memory": memory * 2**30}
    return {**shape, "used": book.fit.used, "passes": book.fit.passes, "seconds": round(seconds, 2), "pass": round(once, 2), "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=128_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--clusters", type=int, default=2000)
    parser.add_argument("--memory", type=float, default=0.125, help="GiB of features that k-means may hold")
    parser.add_argument("--passes", type=int, default=5, help="exact passes over all rows, and iterations before them")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(**json.loads(given.one))))
        return
    found = []
    for rows in (given.rows // 4, given.rows // 2, given.rows):
        options = {"rows": rows, "width": given.width, "clusters": given.clusters, "memory": given.memory, "passes": given.passes}
        row = apart("clusters", options)
        found.append(row)
        print(
            f"{row['rows']:>9,} rows: {row['seconds']:.0f} s with {row['passes']} passes, {row['pass']:.1f} s a pass, {row['peak'] / 2**20:.0f} MiB",
            flush=True,
        )
        write_text(RESULTS, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
