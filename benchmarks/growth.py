"""How the cost grows: with the number of images, the number of crops, and the batch.

    python -m benchmarks.growth [--missing]

Synthetic images of 32 px, micro ResNet. Every row runs in a process of its own, which finds its images written. Writes
benchmarks/results/growth.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.apart import Failures, apart
from benchmarks.step import write_data
from gnothi import pretrain
from gnothi.files import write_text
from gnothi.plan import peak
from gnothi.randomness import generator
from gnothi.recipes.resolve import resolve
from gnothi.training.learner import Learner

RESULTS = Path(__file__).parent / "results" / "growth.json"
ROWS: list[dict[str, Any]] = [
    *({"grows": "images in memory", "n": n} for n in (10**3, 10**4, 10**5, 10**6)),
    *({"grows": "images in a folder", "n": n} for n in (10**3, 10**4, 10**5)),
    *({"grows": "crops", "n": 4096, "local": local} for local in (0, 2, 4, 8)),
    *({"grows": "batch", "n": 8192, "batch": batch} for batch in (32, 128, 512, 2048, 4096)),
]


def write_images(folder: Path, row: dict[str, Any]) -> Path:
    """Noise as an array; for a folder, names that are links to a few JPEGs."""
    if row["grows"] != "images in a folder":
        path, n = folder / "noise.npy", row["n"]
        images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(n, 32, 32, 3))
        for at in range(0, n, 100_000):
            size = min(100_000, n - at)
            images[at : at + size] = torch.randint(256, (size, 32, 32, 3), generator=generator(0, "noise", at), dtype=torch.uint8).numpy()
        return path
    files = sorted(write_data(folder)["folder"].iterdir())
    linked = folder / "linked"
    for i in range(row["n"]):
        into = linked / f"{i // 1000:03d}"
        into.mkdir(parents=True, exist_ok=True)
        os.link(files[i % len(files)], into / f"{i:06d}.jpg")
    return linked


def measure(row: dict[str, Any], data: str) -> dict[str, Any]:
    """Seconds of the first step and of those after it, images a second and peak memory of one row, whose images another process has written."""
    method = {"name": "dino", "prototypes": 256} if "local" in row else {"name": "simclr"}
    views = {"size": 32, "recipe": "dino", "local": row["local"]} if "local" in row else {"size": 32}
    chosen = {"method": method, "views": views, "backbone": {"name": "micro-resnet"}, "training": {"batch": row.get("batch", 128)}}
    began = time.perf_counter()
    resolved = resolve(data, settings=chosen)
    torch.set_num_threads(resolved.threads)
    objective = pretrain.build(resolved)
    batches = pretrain.batches(resolved, objective)
    s = resolved.spec
    learner = Learner(objective, batches, spec=s.training, optimiser=s.optimiser, total=100_000, per_epoch=resolved.per_epoch, seed=0)
    learner.step()
    opened = time.perf_counter() - began
    times = []
    for _ in range(max(4, 2000 // row.get("batch", 128))):
        began = time.perf_counter()
        learner.step()
        times.append(time.perf_counter() - began)
    batches.close()
    step = statistics.fmean(times) if resolved.workers else statistics.median(times)
    return {
        **row,
        "first step": round(opened, 3),
        "step": round(step, 4),
        "images/s": round(row.get("batch", 128) / step, 1),
        "memory": peak(resolved.device),
        "steps": len(times),
    }


def replaced(known: list[dict[str, Any]], found: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows that were known, one of them measured anew, in the order of ``ROWS``; those that it has no more are left out."""

    by = {_key(row): row for row in [*known, found]}
    return [by[_key(row)] for row in ROWS if _key(row) in by]


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("grows", "n", "local", "batch"))


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--missing", action="store_true", help="only rows that do not stand in the results")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.one:
        print(json.dumps(measure(**json.loads(given.one))))
        return
    known, failures = json.loads(RESULTS.read_text()) if RESULTS.exists() else [], Failures()
    print(f"{'grows':<20}{'images':>10}{'crops':>7}{'batch':>7}{'first step':>12}{'step':>10}{'images/s':>10}{'memory':>12}")
    for row in ROWS:
        if given.missing and _key(row) in map(_key, known):
            continue
        with failures.heard(str(row)), tempfile.TemporaryDirectory() as folder:
            f = apart("growth", {"row": row, "data": str(write_images(Path(folder), row))})
            known = replaced(known, f)
            crops, batch = 2 + f.get("local", 0), f.get("batch", 128)
            line = f"{f['grows']:<20}{f['n']:>10,}{crops:>7}{batch:>7}{f['first step']:>10.2f} s{f['step']:>8.3f} s{f['images/s']:>10.0f}"
            print(f"{line}{f['memory'] / 2**20:>8.0f} MiB", flush=True)
            write_text(RESULTS, json.dumps(known, indent=1) + "\n")
    failures.said()


if __name__ == "__main__":
    main()
