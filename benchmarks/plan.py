"""What `gnothi plan` predicts against what is taken: 1 and 2 processes, networks and sizes of crops that the calibration never saw.

    python -m benchmarks.plan [--steps N] [--quick]

The processes share this machine, and the calibration is taken in as many at once; every case is counted where nothing else was, and then taken in
fresh processes, of a thread each, for seconds of a step (the median) and the most memory of a process. Writes benchmarks/results/plan.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.apart import apart
from gnothi import distributed
from gnothi import plan as planning
from gnothi.contracts import DataError
from gnothi.files import write_text
from gnothi.forecast import Link, Plan, Rates, forecast
from gnothi.recipes.resolve import Resolved, resolve

RESULTS = Path(__file__).parent / "results" / "plan.json"
NETWORKS, SIZES, PROCESSES, BATCH = ("resnet18", "vit_tiny_patch16_224"), (40, 64, 96), (1, 2), 16
WARM = 2
"""Steps before the clock starts."""


def run_of(case: dict[str, Any]) -> Resolved:
    """The run of a case, on the photographs that come with the installation."""
    training = {"batch": BATCH, "precision": "fp32", "threads": 1, "workers": 0}
    settings = {"method": {"name": "simclr"}, "backbone": {"name": case["backbone"]}, "views": {"size": case["size"]}, "training": training}
    return resolve("photos", recipe_name="any", settings={**settings, "data": {"holdout": 0.0}}, device="cpu")


def predicted(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """A calibration, and what it says of each case."""
    torch.set_num_threads(1)
    link = planning.link(torch.device("cpu"))
    rates = {n: planning.calibrate(run_of(cases[0]), n, link) for n in PROCESSES}  # all on this machine
    said = [said_of(case, rates[case["processes"]], link) for case in cases]
    return {"rates": {str(n): asdict(r) for n, r in rates.items()}, "link": asdict(link), "cases": said}


def said_of(case: dict[str, Any], rates: Rates, link: Link) -> dict[str, float]:
    """Seconds of a step, and bytes of a process, by prediction."""
    resolved = run_of(case)
    cut = Plan(len(resolved.kept), BATCH, 1.0, case["processes"])
    found = forecast(planning.count(resolved), cut, rates, link, case["base"])
    return {"step": found.step_seconds, "memory": found.memory}


def taken(case: dict[str, Any]) -> dict[str, float]:
    """Seconds of a step and bytes of a process, in this process and those beside it."""
    resolved = run_of(case)
    torch.set_num_threads(1)
    base = planning.resident()
    distributed.start(torch.device("cpu"))
    seconds = planning.timed(planning.learner_of(resolved, resolved.total), resolved.device, WARM, case["steps"])
    found = {"step": seconds, "memory": float(planning.peak(resolved.device)), "base": float(base)}
    distributed.barrier()
    distributed.stop()
    return found


def together(case: dict[str, Any]) -> dict[str, float]:
    """A case in as many processes as it says."""
    if case["processes"] == 1:
        return apart("plan", {"take": case})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(case["processes"])]
    command += ["-m", "benchmarks.plan", "--one", json.dumps({"take": case})]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, env=env)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise DataError(f"{case} could not be taken: {done.stderr.strip()[-500:]}")
    found: dict[str, float] = json.loads(lines[-1])
    return found


def compared(steps: int, networks: tuple[str, ...], sizes: tuple[int, ...]) -> dict[str, Any]:
    """Every case taken, then predicted."""
    cases = [{"backbone": n, "size": s, "processes": p, "steps": steps} for n in networks for s in sizes for p in PROCESSES]
    took = [together(case) for case in cases]
    said = apart("plan", {"predict": [{**case, "base": found["base"]} for case, found in zip(cases, took, strict=True)]})
    rows = []
    for case, found, foreseen in zip(cases, took, said["cases"], strict=True):
        apart_by = {k: foreseen[k] / found[k] for k in ("step", "memory")}
        rows.append({**case, "taken": found, "predicted": foreseen, "ratio": apart_by})
        print(f"{case['backbone']} {case['size']} px, {case['processes']} processes: predicted / taken {apart_by}", flush=True)
    return {"batch": BATCH, "calibration": [c[:3] for c in planning.CASES], "rates": said["rates"], "link": said["link"], "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="one network and one size, and nothing is written")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        asked = json.loads(given.one)
        found = taken(asked["take"]) if "take" in asked else predicted(asked["predict"])
        print(json.dumps(found) if not int(os.environ.get("RANK", "0")) else "", flush=True)
        return
    found = compared(given.steps, NETWORKS[1:] if given.quick else NETWORKS, SIZES[:1] if given.quick else SIZES)
    if not given.quick:
        write_text(RESULTS, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
