"""Memory of the loss between patches over the student's token logits, which it never holds, as they would be in float32.

    python -m benchmarks.local_memory [--prototypes K ...] [--batch B ...] [--grid N] [--local L] [--device D]

Peak of forward and backward over what was there before (parameters, tokens and their gradients are not counted). "plain" makes logits and
distributions, and copies a distribution for every patch; it is left out where it would need more than --most GiB. On a CPU tensors are counted
by their sizes as torch makes and frees them. Writes benchmarks/results/local_memory.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gnothi.auxiliary.patches import Partners, match_patches
from gnothi.contracts import Step
from gnothi.files import write_text
from gnothi.methods.dino import DINOSpace, DINOSpec
from gnothi.methods.method import Space
from gnothi.randomness import generator, seeded

RESULTS = Path(__file__).parent / "results" / "local_memory.json"
GIB = 2**30


def peak(device: torch.device, action: Callable[[], object]) -> tuple[float, float]:
    """Bytes at most over those before, and seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, began = torch.cuda.memory_allocated(), time.perf_counter()
        action()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before, time.perf_counter() - began
    began = time.perf_counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        action()
    seconds = time.perf_counter() - began
    held = most = 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most, seconds


def measure(k: int, batch: int, grid: int, n_local: int, device: torch.device, most: float, **head: int) -> dict[str, Any]:
    """Peaks in bytes and seconds, of the form that is used and, where it fits into ``most`` GiB, of the plain one; ``head`` changes widths."""
    with seeded(0, "memory"):
        space = DINOSpace(192, DINOSpec(**{"prototypes": k, "hidden": 512, "norm": "none", **head})).to(device)  # type: ignore[arg-type]
    g = generator(0, "tokens")
    sizes = [grid**2] * 2 + [max(1, grid * 3 // 7) ** 2] * n_local
    tokens = [torch.randn(batch, n, 192, generator=g).to(device).requires_grad_() for n in sizes]
    target = [torch.randn(batch, n, 192, generator=g).to(device) for n in sizes[:2]]
    pairs = [(v, t) for t in range(2) for v in range(len(sizes)) if v != t]
    partners = [
        Partners(v, t, torch.randint(grid**2, (batch, sizes[v]), generator=g).to(device), torch.ones(batch, sizes[v], device=device))
        for v, t in pairs
    ]
    logits = 4.0 * batch * sum(sizes) * k

    def step(form: Any) -> None:
        values, _ = form(space, tokens, target, partners, Step(0, 5, 10))
        torch.stack(values).mean().backward()
        space.zero_grad()

    row: dict[str, Any] = {"prototypes": k, "batch": batch, "tokens": batch * sum(sizes), "logits": logits}
    row["streamed"], row["seconds"] = peak(device, lambda: step(match_patches))
    pair_tokens = batch * sum(sizes[v] for v, _ in pairs)
    if (3 * logits + 8.0 * pair_tokens * k) < most * GIB:
        row["plain"], row["plain_seconds"] = peak(device, lambda: step(match_patches.dispatch(Space)))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prototypes", type=int, nargs="+", default=[1024, 8192, 65_536])
    parser.add_argument("--batch", type=int, nargs="+", default=[4, 32])
    parser.add_argument("--grid", type=int, default=7, help="patches a side of a global crop")
    parser.add_argument("--local", type=int, default=8, help="local crops")
    parser.add_argument("--most", type=float, default=4.0, help="GiB that the plain form may need")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    rows = []
    for batch, k in ((b, k) for b in given.batch for k in given.prototypes):
        row = measure(k, batch, given.grid, given.local, torch.device(given.device), given.most)
        rows.append({**row, "device": given.device})
        write_text(RESULTS, json.dumps(rows, indent=1) + "\n")
        words = [f"{k:>6} prototypes, {row['tokens']} tokens: logits {row['logits'] / GIB:.3f} GiB"]
        for name, clock in (("streamed", "seconds"), ("plain", "plain_seconds")):
            if name in row:
                words.append(f"{name} {row[name] / row['logits']:.2f} of them ({row[name] / GIB:.3f} GiB, {row[clock]:.1f} s)")
        print("; ".join(words), flush=True)


if __name__ == "__main__":
    main()
