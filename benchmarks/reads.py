"""What the order of reading costs: images of 100 kB from tar-like files, one after the other, shuffled in windows, and shuffled as a whole.

    python -m benchmarks.reads [--folder DIR]

The page cache forgets the files before each cold pass. Prints MB/s of one thread; nothing is decoded.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch

from gnothi.randomness import generator

SHARDS, EACH, SIZE, WINDOW, READ = 8, 2500, 100_000, 2000, 8000


def forget(paths: list[Path]) -> None:
    """Drop a file from the page cache."""
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def rate(paths: list[Path], rows: list[int]) -> float:
    """MB a second of reading rows in an order."""
    began, done = time.perf_counter(), 0
    for row in rows:
        file = os.open(paths[row // EACH], os.O_RDONLY)
        done += len(os.pread(file, SIZE, row % EACH * SIZE))
        os.close(file)
    return done / 1e6 / (time.perf_counter() - began)


def orders() -> dict[str, list[int]]:
    """Orders of the rows by name."""
    n = SHARDS * EACH
    shards = torch.randperm(SHARDS, generator=generator(0, "shards")).tolist()
    straight = torch.tensor([s * EACH + i for s in shards for i in range(EACH)])
    windows = [part[torch.randperm(len(part), generator=generator(0, "window", i))] for i, part in enumerate(straight.split(WINDOW))]
    whole = torch.randperm(n, generator=generator(0, "whole"))
    return {"one after the other": straight.tolist(), f"windows of {WINDOW:,}": torch.cat(windows).tolist(), "one shuffle": whole.tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="On the disk to be measured; 2 GB are written there for a while.")
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as folder:
        paths = [Path(folder, f"{i}.bin") for i in range(SHARDS)]
        for path in paths:
            path.write_bytes(os.urandom(EACH * SIZE))
        for name, rows in orders().items():
            forget(paths)
            cold, cached = rate(paths, rows[:READ]), rate(paths, rows[:READ])
            print(f"{name:<20} {cold:6.0f} MB/s cold, {cached:6.0f} MB/s cached", flush=True)


if __name__ == "__main__":
    main()
