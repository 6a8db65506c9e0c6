"""What an auxiliary adds to a step: time, memory and floating-point operations, over the same method alone in the same run.

    python -m benchmarks.auxiliaries [--steps N] [--rounds N] [--backbone NAME] [--device D] [NAME ...]

Every case is a process of its own with one thread; a round goes through all of them, and the fastest of a case counts. NAMEs are methods. Time
is that of whole steps of the Learner, views included: on a CPU the process's own (what else the machine does meets it little), elsewhere the clock's.
Memory is what the run keeps (weights, buffers, the optimiser's state) and the most that a step holds besides. Operations are those of forward and
backward pass, a multiplication and an addition counted as two. Writes benchmarks/results/auxiliaries.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.apart import apart
from benchmarks.local_memory import peak
from benchmarks.step import write_data
from gnothi import pretrain
from gnothi.contracts import Step
from gnothi.files import write_text
from gnothi.recipes.resolve import resolve
from gnothi.training.learner import Learner

RESULTS = Path(__file__).parent / "results" / "auxiliaries.json"
METHODS = ("simclr", "byol", "dino")
BESIDE: dict[str, dict[str, Any]] = {
    "nothing": {},
    "rotation, both views": {"rotation": {}},
    "rotation, one view": {"rotation": {"views": [0]}},
    "rotation, E-SSL's small crop": {"rotation": {"form": "essl"}},
    "jigsaw": {"jigsaw": {}},
    "layers": {"layers": {}},
    "local, geometric": {"local": {"match": "geometric"}},
    "local, similarity": {"local": {"match": "similarity"}},
}
WARM = 2
"""Steps before the clock starts."""


@dataclass(frozen=True)
class Case:
    """What is measured."""

    method: str
    beside: str
    auxiliary: dict[str, Any] = field(default_factory=dict)
    backbone: str = "micro-vit"
    batch: int = 64
    steps: int = 10
    device: str | None = None


def learner(case: Case, data: str) -> Learner:
    """A run that keeps nothing."""
    chosen = {
        "method": {"name": case.method},
        "backbone": {"name": case.backbone},
        "auxiliary": case.auxiliary,
        "views": {"size": 32},
        "training": {"batch": case.batch, "threads": 1},
    }
    resolved = resolve(data, settings=chosen, device=case.device)
    torch.set_num_threads(1)
    objective, s = pretrain.build(resolved), resolved.spec
    views = pretrain.batches(resolved, objective)
    return Learner(objective, views, spec=s.training, optimiser=s.optimiser, total=100_000, per_epoch=resolved.per_epoch, seed=0)


def flops(run: Learner) -> int:
    """Of a step's forward and backward pass."""
    step = Step(0, 0, 1)
    views = run.objective.draw(run.batches(0), step)
    with FlopCounterMode(display=False) as counter:
        run.module(views, step)[0].backward()
    run.optimiser.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def measure(case: Case, data: str) -> dict[str, Any]:
    """Of one case: ``seconds`` of a step, ``memory`` in bytes, ``flops``."""
    run = learner(case, data)
    device = next(run.objective.parameters()).device
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times: list[float] = []
    for _ in range(WARM + case.steps):
        began = clock()
        run.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - began)
    kept = sum(t.numel() * t.element_size() for t in run.state().values())
    return {"seconds": statistics.median(times[WARM:]), "memory": kept + peak(device, run.step)[0], "flops": flops(run)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"methods; by default {' '.join(METHODS)}")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--backbone", default="micro-vit")
    parser.add_argument("--device")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one = json.loads(given.one)
        print(json.dumps(measure(Case(**one["case"]), one["data"])))
        return
    shape = {"backbone": given.backbone, "batch": given.batch, "steps": given.steps, "device": given.device}
    print(f"{'method':<8}{'beside':<30}{'time':>8}{'operations':>12}{'memory':>14}")
    with tempfile.TemporaryDirectory() as folder:
        data = str(write_data(Path(folder))["memory"])
        for method in given.names or METHODS:
            found = rounds([Case(method, name, own, **shape) for name, own in BESIDE.items()], data, given.rounds)
            base = found[f"{method} nothing"]
            for row in found.values():
                times, counted, more = row["seconds"] / base["seconds"], row["flops"] / base["flops"], (row["memory"] - base["memory"]) / 2**20
                print(f"{method:<8}{row['beside']:<30}{times:>8.2f}{counted:>12.2f}{more:>10.0f} MiB", flush=True)
            known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            write_text(RESULTS, json.dumps(known | found, indent=1) + "\n")


def rounds(cases: list[Case], data: str, many: int) -> dict[str, dict[str, Any]]:
    """Every case in turn, again and again; of each the fastest."""
    found: dict[str, dict[str, Any]] = {}
    for case in cases * many:
        new, key = apart("auxiliaries", {"case": asdict(case), "data": data}), f"{case.method} {case.beside}"
        found[key] = {**asdict(case), **new, "seconds": min(new["seconds"], found.get(key, new)["seconds"])}
        print(f"{key}: {new['seconds']:.3f} s", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    main()
