"""Whether an hour of training grows: memory, open files, threads and the time of a step, sampled from outside.

    python -m benchmarks.hour [--minutes N] [--every SECONDS] [--turns N]

Trains SimCLR on a micro ResNet from a folder of 4,000 JPEGs of 32 px, with a loader process, checkpoints, health and k-NN along the way. What memory,
files and threads gain in an hour is a line through the samples after the first five minutes, with a 95 % interval (errors of neighbouring samples are
alike, so the interval is that of the means of five-minute blocks). What else the machine does in an hour changes the time of a step; so that is
compared at the end: a second run of the same kind begins, and the two take turns of some steps, one stopped while the other goes on. Then both are
ended by Ctrl-C. Writes benchmarks/results/hour.json.
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
WARM, WARM_STEPS = 300, 900
"""Seconds and steps before the line begins: caches fill, the first checkpoints and evaluations take place, later where the machine is busy."""
BLOCK = 300
TICKS = os.sysconf("SC_CLK_TCK")
LINES, WARM_LINES = 4, 12
"""Lines of metrics, of ten steps each, in a turn, and before the first."""
SETTINGS = ("training.epochs=1000000", "training.batch=128", "views.size=32", "training.evaluate_every=5 epochs", "training.health_every=1 epochs")
SETTINGS += ("training.log_every=10 steps", "training.checkpoint_every=2 epochs", "training.threads=1", "training.workers=1")


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
    """Means of blocks of five minutes, once the run is warm."""
    blocks: dict[int, list[dict[str, float]]] = {}
    for one in samples:
        if one["seconds"] >= WARM and one["step"] >= WARM_STEPS:
            blocks.setdefault(int(one["seconds"] // BLOCK), []).append(one)
    found = []
    for block in blocks.values():
        found.append({"hours": float(np.mean([b["seconds"] for b in block])) / 3600})
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


class Trainer:
    """A run in a process of its own, that can be held and let go on."""

    def __init__(self, images: Path, out: Path) -> None:
        command = [sys.executable, "-m", "gnothi", "train", str(images), "--method", "simclr", "--backbone", "micro-resnet", "--out", str(out)]
        command += [word for setting in SETTINGS for word in ("--set", setting)]
        self.metrics = out / "metrics.jsonl"
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.tell(signal.SIGKILL)
            self.process.wait()

    def tell(self, signum: signal.Signals) -> None:
        """Hold the run and all that it started by SIGSTOP, let them go on by SIGCONT, or end them."""
        for process in family(self.process.pid):
            os.kill(int(process.name), signum)

    def next_line(self) -> int:
        """Wait for a line of metrics that is not there yet; its step."""
        before = (newest(self.metrics) or {"step": 0})["step"]
        while (now := (newest(self.metrics) or {"step": 0})["step"]) == before:
            if self.process.poll() is not None:
                raise SystemExit(f"training ended by itself with code {self.process.returncode}")
            time.sleep(0.01)
        return int(now)

    def turn(self, lines: int) -> dict[str, float]:
        """Go on for so many lines of metrics: milliseconds of a step by the clock and by the processor."""
        self.tell(signal.SIGCONT)
        first, began, worked = self.next_line(), time.perf_counter(), sample(self.process.pid)["processor"]
        last = [self.next_line() for _ in range(lines)][-1]
        took, worked = time.perf_counter() - began, sample(self.process.pid)["processor"] - worked
        self.tell(signal.SIGSTOP)
        return {"clock": 1000 * took / (last - first), "processor": 1000 * worked / (last - first)}

    def end(self) -> int:
        """End it by Ctrl-C; the exit code."""
        self.tell(signal.SIGCONT)
        self.process.send_signal(signal.SIGINT)
        return self.process.wait()


def compared(old: list[dict[str, float]], fresh: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """How many times as long as a fresh run's a step of an old one takes, with a 95 % interval of the turns' geometric mean."""
    found = {}
    for word in ("clock", "processor"):
        ratios = np.log([a[word] / b[word] for a, b in zip(old, fresh, strict=True)])
        half = stats.t.ppf(0.975, len(ratios) - 1) * stats.sem(ratios)
        ends = {"ratio": ratios.mean(), "low": ratios.mean() - half, "high": ratios.mean() + half}
        found[word] = {key: float(np.exp(value)) for key, value in ends.items()}
    return found


def in_turn(old: Trainer, fresh: Trainer, turns: int) -> dict[str, Any]:
    """Both runs, turn by turn, each first in every other pair; the fresh one has had time to settle."""
    old.tell(signal.SIGSTOP)
    fresh.turn(WARM_LINES)
    taken: dict[str, list[dict[str, float]]] = {"old": [], "fresh": []}
    for i in range(turns):
        for name in ("old", "fresh") if i % 2 else ("fresh", "old"):
            taken[name].append(rounded((old if name == "old" else fresh).turn(LINES)))
        print(f"turn {i + 1} of {turns}: old {taken['old'][-1]}, fresh {taken['fresh'][-1]}", flush=True)
    return {**{word: rounded(r) for word, r in compared(taken["old"], taken["fresh"]).items()}, "turns": taken}


def rounded(found: dict[str, Any]) -> dict[str, Any]:
    """All numbers to five significant places."""
    return {key: rounded(value) if isinstance(value, dict) else float(f"{value:.5g}") for key, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=65, help="an hour after the first five minutes")
    parser.add_argument("--every", type=float, default=15, metavar="SECONDS")
    parser.add_argument("--turns", type=int, default=16, metavar="N", help="turns of the hour-old run and a fresh one; 0 leaves them out")
    given = parser.parse_args()
    samples: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder) / "images")
        with Trainer(Path(folder) / "images", Path(folder) / "run") as old:
            for one in watched(old.process.pid, old.metrics, 60 * given.minutes, given.every):
                samples.append(one)
                print("  ".join(f"{key} {value:.4g}" for key, value in one.items()), flush=True)
            epochs = (newest(old.metrics) or {}).get("epoch")
            with Trainer(Path(folder) / "images", Path(folder) / "fresh") as fresh:
                steps = in_turn(old, fresh, given.turns) if given.turns else {}
                ended = [old.end(), fresh.end()]
    blocks = rates(samples)
    about = {"minutes": given.minutes, "epochs": epochs, "ended": ended}
    found = {**about, "growth": rounded(growth(blocks)), "step": steps, "blocks": [rounded(b) for b in blocks]}
    write_text(RESULTS, json.dumps(found, indent=1) + "\n")
    print(json.dumps({"growth": found["growth"], "step": {k: v for k, v in steps.items() if k != "turns"}}, indent=1))


if __name__ == "__main__":
    main()
