"""How near the real step comes to the bare one: ratios of medians, measured in turn in one run.

    python benchmarks/step.py [--steps N] [--batch B] [BACKBONE ...]

Bare: forward, backward and optimiser on views that are ready. Real: the Learner's step, views, checks and metrics included. SimCLR on `photos`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from gnothi import pretrain
from gnothi.contracts import Step
from gnothi.recipes.resolve import resolve
from gnothi.training.learner import Learner


def seconds(action: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(backbone: str, batch: int, steps: int, settings: dict) -> dict[str, float]:
    chosen = {"backbone": {"name": backbone}, "training": {"batch": batch, **settings}}
    resolved = resolve("photos", settings=chosen)
    torch.set_num_threads(resolved.threads)
    objective = pretrain.build(resolved)
    views = pretrain.batches(resolved, objective)
    learner = Learner(
        objective,
        views,
        spec=resolved.spec.training,
        optimiser=resolved.spec.optimiser,
        total=100_000,
        per_epoch=resolved.per_epoch,
        seed=0,
    )
    ready = views(0)

    def bare() -> None:
        total, _, _ = objective(ready, Step(0, 0, 1))
        total.backward()
        learner.optimiser.step()
        learner.optimiser.zero_grad(set_to_none=True)

    times: dict[str, list[float]] = {"bare": [], "real": [], "views": []}
    for number in range(steps + 3):
        found = {
            "bare": seconds(bare, resolved.device),
            "real": seconds(learner.step, resolved.device),
            "views": seconds(lambda n=number: views(n), resolved.device),
        }
        if number >= 3:  # the first ones warm up
            for name, value in found.items():
                times[name].append(value)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", nargs="*", default=["micro-resnet", "micro-vit", "resnet18"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    given = parser.parse_args()
    print(f"{'backbone':<16}{'format':<16}{'bare / real':>12}{'views / real':>14}{'real step':>12}{'images/s':>10}")
    for backbone in given.backbones:
        for name, settings in (("channels last", {}), ("plain", {"channels_last": False})):
            t = measure(backbone, given.batch, given.steps if backbone.startswith("micro") else max(4, given.steps // 4), settings)
            shares = f"{t['bare'] / t['real']:>12.3f}{t['views'] / t['real']:>14.3f}"
            print(f"{backbone:<16}{name:<16}{shares}{t['real']:>10.3f} s{given.batch / t['real']:>10.0f}", flush=True)


if __name__ == "__main__":
    main()
