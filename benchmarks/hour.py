"""Whether an hour of training grows: memory, open files, threads and the time of a step, sampled from outside.

    python -m benchmarks.hour [--minutes N] [--every SECONDS]

Trains SimCLR on a micro ResNet from a folder of 4,000 JPEGs of 32 px, with a loader process, checkpoints, health and k-NN along the way, and stops
it by Ctrl-C. Writes benchmarks/results/hour.json: each sample, and what each quantity gains in an hour by a line through the samples after the
first five minutes, with a 95 % interval (errors of neighbouring samples are alike, so the interval is that of the means of five-minute blocks).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import stats

from benchmarks.memory import own
from gnothi.data.photos import photo_tiles
from gnothi.files import write_text

RESULTS = Path(__file__).parent / "results" / "hour.json"
WARM = 300
"""Seconds before the line begins: caches fill, the first checkpoint and the first evaluation take place."""
BLOCK = 300
TICKS = os.sysconf("SC_CLK_TCK")
SETTINGS = ("training.epochs=1000000", "training.batch=128", "views.size=32", "training.evaluate_every=5 epochs", "training.health_every=1 epochs")


def write_folder(folder: Path) -> None:
    """A folder a class, of tiles of the photographs that come with the installation."""
    tiles = photo_tiles("train", 32, 250)
    for row, (tile, label) in enumerate(zip(tiles.array, tiles.labels, strict=True)):  # type: ignore[arg-type]
        (place := folder / f"{int(label):02d}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile.permute(1, 2, 0).numpy()).save(place / f"{row:05d}.jpg", quality=90)


def family(pid: int) -> list[Path]:
    """A process and all that it started."""
    me = Path(f"/proc/{pid}")
    children = [int(child) for task in (me / "task").iterdir() for child in (task / "children").read_text().split()]
    return [me, *(process for child in children for process in family(child))]


def sample(pid: int) -> dict[str, float]:
    """MiB, open files, threads, processes and processor seconds of a process and all that it started."""
    found = {"memory": 0.0, "files": 0, "threads": 0, "processes": 0, "processor": 0.0}
    for process in family(pid):
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        found["memory"] += own(process)
        found["files"] += len(list((process / "fd").iterdir()))
        found["threads"] += int(fields[17])
        found["processes"] += 1
        found["processor"] += (int(fields[11]) + int(fields[12])) / TICKS
    return found


def newest(metrics: Path) -> dict[str, Any] | None:
    """The last line of training that was written whole."""
    if not metrics.exists():
        return None
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - 20_000))
        lines = [line for line in file.read().split(b"\n")[1:-1] if b'"train"' in line]
    return json.loads(lines[-1]) if lines else None


def watched(pid: int, metrics: Path, seconds: float, every: float) -> Iterator[dict[str, float]]:
    """A sample every so many seconds, with the step that was reached."""
    began = time.monotonic()
    while (now := time.monotonic() - began) < seconds:
        if line := newest(metrics):
            yield {"seconds": round(now, 1), **sample(pid), "step": line["step"], "trained": line["seconds"]}
        time.sleep(every)


def rates(samples: list[dict[str, float]]) -> list[dict[str, float]]:
    """Blocks of five minutes after the first: means, and milliseconds of a step by the clock and by the processor."""
    blocks: dict[int, list[dict[str, float]]] = {}
    for one in samples:
        if one["seconds"] >= WARM:
            blocks.setdefault(int(one["seconds"] // BLOCK), []).append(one)
    found = []
    for block in (b for b in blocks.values() if b[-1]["step"] > b[0]["step"]):
        steps = (block[-1]["step"] - block[0]["step"]) / 1000
        times = {f"{word} step": (block[-1][key] - block[0][key]) / steps for word, key in (("clock", "trained"), ("processor", "processor"))}
        found.append({"hours": float(np.mean([b["seconds"] for b in block])) / 3600, **times})
        found[-1] |= {key: float(np.mean([b[key] for b in block])) for key in ("memory", "files", "threads")}
    return found


def growth(blocks: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """What each quantity gains in an hour, with a 95 % interval, and its mean."""
    hours, wide = [b["hours"] for b in blocks], stats.t.ppf(0.975, len(blocks) - 2)
    lines = {key: (stats.linregress(hours, [b[key] for b in blocks]), np.mean([b[key] for b in blocks])) for key in blocks[0] if key != "hours"}
    return {
        key: {"mean": float(mean), "an hour": line.slope, "low": line.slope - wide * line.stderr, "high": line.slope + wide * line.stderr}
        for key, (line, mean) in lines.items()
    }


def rounded(found: dict[str, Any]) -> dict[str, Any]:
    """All numbers to five significant places."""
    return {key: rounded(value) if isinstance(value, dict) else float(f"{value:.5g}") for key, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=65, help="an hour after the first five minutes")
    parser.add_argument("--every", type=float, default=15, metavar="SECONDS")
    given = parser.parse_args()
    samples: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder) / "images")
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "gnothi", "train", f"{folder}/images", "--method", "simclr", "--backbone", "micro-resnet", "--out", str(run)]
        command += [
            word for setting in (*SETTINGS, "training.log_every=10 steps", "training.checkpoint_every=2 epochs") for word in ("--set", setting)
        ]
        command += ["--set", "training.threads=1", "--set", "training.workers=1"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as training:
            for one in watched(training.pid, run / "metrics.jsonl", 60 * given.minutes, given.every):
                samples.append(one)
                print("  ".join(f"{key} {value:.4g}" for key, value in one.items()), flush=True)
            training.send_signal(signal.SIGINT)
        epochs, blocks = (newest(run / "metrics.jsonl") or {}).get("epoch"), rates(samples)
    found = {
        "minutes": given.minutes,
        "epochs": epochs,
        "ended": training.returncode,
        "growth": rounded(growth(blocks)),
        "blocks": [rounded(b) for b in blocks],
    }
    write_text(RESULTS, json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["growth"], indent=1))


if __name__ == "__main__":
    main()
