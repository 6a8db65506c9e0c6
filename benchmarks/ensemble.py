"""What the descent of an ensemble costs: the fit, inference beside bare matrix products of the same shapes, and how both grow.

    python -m benchmarks.ensemble

Four members of 512 numbers each, drawn from shared factors; every row runs in a process of its own. Memory is the largest that was the process's own
(mapped files left out), less what it held before the fit. Members are timed as a ResNet-18 on images of 32 px, a thread a core. Writes
benchmarks/results/ensemble.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.apart import Failures, apart
from gnothi import ensemble
from gnothi.ensemble.descent import ROWS
from gnothi.files import write_text
from gnothi.models import backbone
from gnothi.models.backbone import BackboneSpec
from gnothi.randomness import generator

RESULTS = Path(__file__).parent / "results" / "ensemble.json"
MEMBERS, WIDTH, ASKED = 4, 512, 1024
"""Members, their width, and the images of which codes are inferred."""
SIZES = (1_000, 10_000, 100_000)


def write_features(folder: Path, n: int) -> list[np.ndarray]:
    """Members that bend the same factors, whose strength falls as that of learned features does."""
    strength = torch.arange(1, 257) ** -0.5
    found = []
    for j in range(MEMBERS):
        turn, path = torch.randn(256, WIDTH, generator=generator(1, "turn", j)), folder / f"{j}.npy"
        x = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, WIDTH))
        for at in range(0, n, 10_000):
            shared = torch.randn(min(10_000, n - at), 256, generator=generator(0, "factors", at)) * strength
            x[at : at + len(shared)] = (torch.relu(shared @ turn) + 0.1 * torch.rand(len(shared), WIDTH, generator=generator(j, "own", at))).numpy()
        x.flush()
        found.append(np.load(path, mmap_mode="r"))
    return found


def own_memory() -> int:
    """Bytes of this process that are not a file's."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


class Watched:
    """The largest memory while something runs."""

    def __enter__(self) -> Watched:
        self.before = self.most = own_memory()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.over.wait(0.02):
            self.most = max(self.most, own_memory())

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


def products(steps: int) -> Callable[[], None]:
    """The bare matrix products of that many steps for ``ROWS`` images: through the networks, and back to the codes."""
    codes, first = torch.randn(ROWS, WIDTH), torch.randn(WIDTH, MEMBERS * WIDTH)
    hidden, last = [torch.randn(ROWS, WIDTH) for _ in range(MEMBERS)], [torch.randn(WIDTH, WIDTH) for _ in range(MEMBERS)]
    wide = torch.randn(ROWS, MEMBERS * WIDTH)

    def run() -> None:
        for _ in range(steps):
            _ = codes @ first
            for h, w in zip(hidden, last, strict=True):
                _ = h @ w
                _ = h @ w.T
            _ = wide @ first.T

    return run


def timed(run: Callable[[], Any]) -> np.ndarray:
    """Seconds by the clock, and of the processor: those that count where others compute as well."""
    began = np.array([time.perf_counter(), time.process_time()])
    run()
    return np.array([time.perf_counter(), time.process_time()]) - began


def inference(made: ensemble.Ensemble, features: list[np.ndarray]) -> dict[str, float]:
    """Seconds an image of the descent, of its bare products and of a closed form, taken in turns, and the median ratios of the first two."""
    x = [torch.from_numpy(np.array(f[:ASKED])) for f in features]
    bare, closed = products(made.spec.steps), ensemble.fit(x, "pca")  # type: ignore[attr-defined]
    made.transform(x)
    bare()
    ours, theirs = [], []
    for _ in range(5):
        ours.append(timed(lambda: made.transform(x)) / ASKED)
        theirs.append(sum(timed(bare) for _ in range(ASKED // ROWS)) / ASKED)
    shares = np.median(np.array(theirs) / np.array(ours), axis=0)
    seconds = {
        "descent": np.median(ours, axis=0)[0],
        "products": np.median(theirs, axis=0)[0],
        "closed form": timed(lambda: closed.transform(x))[0] / ASKED,
    }
    return {k: float(v) for k, v in seconds.items()} | {"share of the products": float(shares[0]), "by processor": float(shares[1])}


def members() -> float:
    """Seconds an image of all members' networks."""
    network, images = backbone.build(BackboneSpec(name="resnet18"), 3, 32, 0).eval(), torch.randn(64, 3, 32, 32)
    with torch.inference_mode():
        network(images)
        return MEMBERS * statistics.median(float(timed(lambda: network(images))[0]) for _ in range(5)) / 64


def measure(n: int) -> dict[str, Any]:
    """One number of images: seconds and memory of the fit, and an image's share of descent and members."""
    with tempfile.TemporaryDirectory() as folder:
        features = write_features(Path(folder), n)
        with Watched() as watched:
            began = time.process_time()
            made = ensemble.fit(features, "descent", folder=Path(folder) / "state")
            processor = time.process_time() - began
        found = {"n": n, "fit": made.record["seconds"], "processor": processor, "epochs": made.record["history"][-1]["epoch"]}
        found["memory"] = watched.most - watched.before
        found |= inference(made, features) | {"members": members()}
    whole = found["descent"] + found["members"]
    return {**found, "share of the whole": found["descent"] / whole, "threads": torch.get_num_threads(), "load": os.getloadavg()[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, default=SIZES)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(**json.loads(given.one))))
        return
    known, failures = {r["n"]: r for r in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}, Failures()
    print(f"{'images':>9}{'fit':>10}{'epochs':>8}{'memory':>12}{'descent':>14}{'of products':>13}{'(processor)':>13}{'of the whole':>14}{'load':>7}")
    for n in given.sizes:
        with failures.heard(f"{n} images"):
            f = apart("ensemble", {"n": n})
            known[n] = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in f.items()}
            show(f)
            write_text(RESULTS, json.dumps([known[k] for k in sorted(known)], indent=1) + "\n")
    failures.said()


def show(f: dict[str, Any]) -> None:
    """A line of the table."""
    n = f["n"]
    line = f"{n:>9,}{f['fit']:>8.1f} s{f['epochs']:>8}{f['memory'] / 2**20:>8.0f} MiB{1000 * f['descent']:>8.3f} ms/im"
    print(f"{line}{f['share of the products']:>13.2f}{f['by processor']:>13.2f}{f['share of the whole']:>14.2f}{f['load']:>7.1f}", flush=True)


if __name__ == "__main__":
    main()
