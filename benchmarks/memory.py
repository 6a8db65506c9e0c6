"""Whether memory stays flat while an epoch is read: the views of 10^5 small images in shards, resident memory of all processes.

    python -m benchmarks.memory [--images N]

Writes benchmarks/results/memory.json. Shards are made once, in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gnothi import pretrain
from gnothi.data import ArraySource
from gnothi.data.packing import pack
from gnothi.randomness import generator
from gnothi.recipes.resolve import resolve
from gnothi.training.checkpoint import write_text

RESULTS = Path(__file__).parent / "results" / "memory.json"
BATCH, SIZE = 100, 16


def resident() -> dict[str, float]:
    """MiB of this process and of its children, what they share counted once (Pss)."""
    me = Path("/proc/self")
    children = [Path(f"/proc/{pid}") for pid in (me / "task" / str(int(me.resolve().name)) / "children").read_text().split()]
    return {"training": _pss(me), "loaders": sum(map(_pss, children))}


def _pss(process: Path) -> float:
    lines = (process / "smaps_rollup").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024, 1)


def measure(folder: Path, images: int) -> dict[str, Any]:
    noise = torch.randint(256, (images, 3, SIZE, SIZE), generator=generator(0, "noise"), dtype=torch.uint8)
    began = time.perf_counter()
    pack(ArraySource(noise, np.arange(images) % 10, axes="NCHW"), folder / "shards", name="noise", images=10_000)
    packed = time.perf_counter() - began
    del noise
    chosen = {
        "views": {"size": SIZE, "recipe": "any-channels"},
        "backbone": {"name": "micro-vit"},
        "training": {"batch": BATCH, "epochs": 1, "workers": 1, "threads": 1},
        "data": {"holdout": 0},
    }
    began = time.perf_counter()
    resolved = resolve(f"shards:{folder / 'shards'}", settings=chosen, device="cpu")
    opened = time.perf_counter() - began
    torch.set_num_threads(1)
    objective = pretrain.build(resolved)
    batches = pretrain.batches(resolved, objective)
    seen: dict[str, dict[str, float]] = {}
    began = time.perf_counter()
    for number in range(resolved.total):
        batches(number)
        part = (number + 1) / resolved.total
        if round(part * 100, 9) in (10, 25, 50, 75, 100):
            seen[f"{part:.0%}"] = resident()
            print(f"{part:>5.0%} {seen[f'{part:.0%}']} {(number + 1) * BATCH / (time.perf_counter() - began):.0f} images/s", flush=True)
    batches.close()
    return {
        "images": images,
        "batch": BATCH,
        "packing s": round(packed, 1),
        "opening s": round(opened, 1),
        "images/s": round(images / (time.perf_counter() - began)),
        "MiB": seen,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), given.images)
    write_text(RESULTS, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
