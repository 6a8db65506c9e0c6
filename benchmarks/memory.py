"""Whether memory stays flat while an epoch is read: the views of 10^5 small images in shards, resident memory of all processes.

    python -m benchmarks.memory [--images N]

Writes benchmarks/results/memory.json. Shards are made once, in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gnothi.data import ArraySource, pack, pixels
from gnothi.data import open as open_data
from gnothi.files import write_text
from gnothi.randomness import generator
from gnothi.recipes.views import VIEWS
from gnothi.views.batches import Batches

RESULTS = Path(__file__).parent / "results" / "memory.json"
BATCH, SIZE = 100, 16


def resident() -> dict[str, float]:
    """MiB of this process and of its children: their own pages, and shares of those that they have together; files that are mapped do not count."""
    me = Path("/proc/self")
    children = [Path(f"/proc/{pid}") for pid in (me / "task" / str(os.getpid()) / "children").read_text().split()]
    return {"training": own(me), "loaders": sum(map(own, children))}


def own(process: Path) -> float:
    """MiB that a process (its folder in /proc) has for itself, and its share of what it has with others."""
    found = dict(line.split(":", 1) for line in (process / "smaps_rollup").read_text().splitlines()[1:])
    return round(sum(int(found[kind].split()[0]) for kind in ("Pss_Anon", "Pss_Shmem")) / 1024, 1)


def measure(folder: Path, images: int) -> dict[str, Any]:
    """Pack noise, read an epoch of it, and look at the memory along the way."""
    noise = torch.randint(256, (images, 3, SIZE, SIZE), generator=generator(0, "noise"), dtype=torch.uint8)
    began = time.perf_counter()
    pack(ArraySource(noise, np.arange(images) % 10, axes="NCHW"), folder / "shards", name="noise", images=images // 10)
    packed = time.perf_counter() - began
    del noise
    began = time.perf_counter()
    source = open_data(f"shards:{folder / 'shards'}")
    opened = time.perf_counter() - began
    steps, seen = images // BATCH, dict[str, dict[str, float]]()
    batches = Batches(source, VIEWS["plain"](SIZE), batch=BATCH, seed=0, pixels=pixels(source), device="cpu", workers=1, total=steps + 10)
    began = time.perf_counter()
    for number in range(steps):
        batches(number)
        if (number + 1) * 20 % steps == 0:
            seen[f"{(number + 1) / steps:.0%}"] = resident()
            print(f"{(number + 1) / steps:>5.0%} {resident()} {(number + 1) * BATCH / (time.perf_counter() - began):.0f} images/s", flush=True)
    rate = round(images / (time.perf_counter() - began))
    batches.close()
    return {"images": images, "batch": BATCH, "packing s": round(packed, 1), "opening s": round(opened, 1), "images/s": rate, "MiB": seen}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), given.images)
    write_text(RESULTS, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
