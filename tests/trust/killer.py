"""Ends training runs at random instants and lets them go on; a line of JSON a round.

    python killer.py DATA FOLDER ROUNDS

A process of its own: each run is forked from it, so that a round takes as long as its steps and not as long as importing torch.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from gnothi import pretrain
from gnothi.contracts import GnothiError
from gnothi.randomness import generator
from gnothi.training import checkpoint
from gnothi.training.progress import Silent

EVERY = 3
SETTINGS: dict[str, Any] = {
    "backbone": {"name": "micro-resnet", "args": {"widths": [4, 8]}},
    "method": {"name": "dino", "hidden": 64, "out": 64, "prototypes": 4096},  # wide where it costs nothing but bytes: a write takes a while
    "views": {"size": 16},
    "training": {"epochs": 3, "batch": 8, "threads": 1, "log_every": "1 steps", "health_every": "17 steps", "checkpoint_every": f"{EVERY} steps"},
}
TIMES = ("seconds", "images_per_second", "waiting")
KINDS = (("SIGKILL", True), ("SIGINT", True), ("SIGTERM", True), ("SIGKILL", False), ("SIGINT", False), ("SIGTERM", False))
"""What a round does: a signal, and whether inside a write or at any instant, which may be after the end where the machine is busier at times."""


ATTEMPTS = 10


def start(data: str, out: Path, resume: bool = False) -> int:
    """A run in a forked process."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        pretrain.train(data, settings=SETTINGS, device="cpu", out=out, resume=resume, progress=Silent())
        code = 0
    except GnothiError as error:
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def content(out: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """The last checkpoint and the metrics without times."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    newest = checkpoint.newest(out)
    assert newest is not None
    return checkpoint.read(newest)[0], [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def same(a: Path, b: Path) -> bool:
    (x, lines_x), (y, lines_y) = content(a), content(b)
    return lines_x == lines_y and x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def stop_in_write(out: Path, pid: int, which: int, late: float) -> None:
    """Stop the process a little after the temporary file of the n-th checkpoint was met, or of a later one where that write was over by then."""
    met: set[str] = set()
    while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        met |= written(out)
        if len(met) < which:
            continue
        time.sleep(late)
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if written(out):
            return
        os.kill(pid, signal.SIGCONT)
        which = len(met) + 1


def written(out: Path) -> set[str]:
    """Temporary files of checkpoints."""
    try:
        return {name for name in os.listdir(out) if name.startswith(".step-")}
    except FileNotFoundError:
        return set()


def hit(number: int, data: str, folder: Path, whole: Path, seconds: float) -> dict[str, Any]:
    """A round; once more where a signal that was aimed into a write met that of the last checkpoint only, after which a run ends anyway."""
    for attempt in range(ATTEMPTS):
        found = one(number, attempt, data, folder, whole, seconds)
        if found["code"] or not found["aimed"] or not (found["same"] and found["tidy"]):
            return found
    return found


def one(number: int, attempt: int, data: str, folder: Path, whole: Path, seconds: float) -> dict[str, Any]:
    """A run that is ended, and goes on to its end."""
    (kind, aimed), out = KINDS[number % len(KINDS)], folder / f"round-{number}"
    chance = torch.rand(2, generator=generator(0, "kill", number, attempt)).tolist()
    pid = start(data, out)
    if aimed:
        stop_in_write(out, pid, 1 + int(5 * chance[0]), 0.006 * chance[1])
    else:
        time.sleep(seconds * chance[0])
    inside = len(written(out))
    os.kill(pid, getattr(signal, kind))
    os.kill(pid, signal.SIGCONT)  # one that was stopped in a write hears of no other signal than SIGKILL before
    code = ended(pid)
    kept = checkpoint.list_of(out)
    for path in kept:
        checkpoint.read(path)  # what has its name is whole
    steps = checkpoint.step_of(kept[-1]) if kept else 0
    done = max((json.loads(line)["step"] for line in lines(out)), default=0)
    again = ended(start(data, out, resume=True))
    result = {"kind": kind, "aimed": aimed, "code": code, "inside": inside, "kept": steps, "done": done, "again": again}
    result |= {"same": again == 0 and same(out, whole), "tidy": not list(out.glob(".*.tmp"))}
    shutil.rmtree(out)
    return result


def lines(out: Path) -> list[str]:
    """The whole lines of metrics: a kill may cut the last one short."""
    path = out / "metrics.jsonl"
    return path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []


if __name__ == "__main__":
    torch.set_num_threads(1)
    source, place, rounds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    pretrain.train(source, settings=SETTINGS, device="cpu", out=place / "warm", progress=Silent())
    began = time.monotonic()
    assert ended(start(source, place / "whole")) == 0
    lasted = time.monotonic() - began
    assert same(place / "warm", place / "whole")
    for i in range(rounds):
        print(json.dumps(hit(i, source, place, place / "whole", lasted)), flush=True)
