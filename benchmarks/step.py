"""How near the real step comes to the bare one, and how far ahead of lightly's pipeline it is: ratios in one run.

    python -m benchmarks.step [--steps N] [--missing] [NAME ...]

Bare: forward, backward and optimiser on views that are ready. Real: the Learner's step with views, checks and, as often as in a whole run of these
images, a line of metrics. lightly: its transforms, its loader and its loss in a plain loop, for the same method (SimCLR), backbone and batch. Every
case runs in a process of its own, one after the other, lightly's right after ours of the same kind: what else the machine does meanwhile is in their
ratios. Within a process bare and real steps on images in memory alternate. All seconds are means over steps. Loader processes take threads from the
step that they feed, so the bare step of a folder is also timed with all of them; lightly has all threads beside 0, 1 or 2 loaders, whichever is
fastest in a short trial, and reads on without an epoch's end. Threads wait without spinning, lightly's too. Memory is the peak of the main process.
With --missing, cases that stand in the results are left out. `x lightly` is how many times as many images a second a case does as
lightly with its defaults (fp32, plain memory format), and as lightly at the same precision and memory format where that is a case. Writes
benchmarks/results/step.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.apart import Failures, apart
from gnothi import pretrain
from gnothi.contracts import Step
from gnothi.data.photos import photo_tiles
from gnothi.files import write_text
from gnothi.plan import peak
from gnothi.recipes.resolve import resolve
from gnothi.training.learner import Learner

RESULTS = Path(__file__).parent / "results" / "step.json"
WARM = 5
"""Steps before the clock starts."""
PROBE = 6
"""Steps of a trial."""
BARE = ("forward", "backward", "optimiser")
"""Parts of the bare step."""
SHARES = {"views": 8, **{name: len(name) + 2 for name in BARE}}
"""Parts of the real step, with how wide their columns are."""


@dataclass(frozen=True)
class Case:
    """What is timed."""

    name: str
    who: str = "gnothi"
    backbone: str = "micro-resnet"
    data: str = "memory"
    """Images of 32 px in memory, or a folder of JPEGs of 96 px."""
    batch: int = 128
    steps: int = 100
    precision: str | None = None
    """None: gnothi's own choice."""
    channels_last: bool = True
    compile: bool = False
    fused: bool = True
    """One kernel for all parameters' steps of the optimiser."""
    joint: bool = True
    """Both views go through the network as one batch."""


CASES = (
    Case("micro-resnet"),
    Case("micro-resnet lightly bf16", who="lightly", precision="bf16"),
    Case("micro-resnet fp32", precision="fp32"),
    Case("micro-resnet lightly channels last", who="lightly", precision="fp32"),
    Case("micro-resnet fp32 plain", precision="fp32", channels_last=False),
    Case("micro-resnet lightly", who="lightly", precision="fp32", channels_last=False),
    Case("micro-resnet compiled", compile=True),
    Case("micro-resnet not fused", fused=False),
    Case("micro-resnet views apart", joint=False),
    Case("micro-resnet channels first", channels_last=False),
    Case("micro-resnet none of these", fused=False, joint=False, channels_last=False),
    Case("micro-vit", backbone="micro-vit"),
    Case("resnet18", backbone="resnet18", steps=20),
    Case("resnet18 lightly", who="lightly", backbone="resnet18", precision="fp32", channels_last=False, steps=8),
    Case("micro-resnet folder", data="folder"),
    Case("micro-resnet folder lightly", who="lightly", data="folder", precision="fp32", channels_last=False, steps=30),
)


def write_data(folder: Path) -> dict[str, Path]:
    """Tiles of the photographs that come with the installation: as an array of 32 px, and as a folder of JPEGs of 96 px."""
    array, jpegs = folder / "tiles.npy", folder / "jpegs"
    np.save(array, photo_tiles("train", 32, 250).array.permute(0, 2, 3, 1).numpy())  # type: ignore[union-attr]
    jpegs.mkdir()
    for row, tile in enumerate(photo_tiles("train", 96, 160).array):  # type: ignore[arg-type]
        Image.fromarray(tile.permute(1, 2, 0).numpy()).save(jpegs / f"{row:05d}.jpg", quality=90)
    return {"memory": array, "folder": jpegs}


# ---- gnothi --------------------------------------------------------------------------------------
def ours(case: Case, data: Path) -> dict[str, float]:
    """Seconds of our real and of the bare step, and the shares of the real one's parts."""
    size = 32 if case.data == "memory" else 96
    training = {"batch": case.batch, "channels_last": case.channels_last, "precision": case.precision, "compile": case.compile}
    chosen = {"backbone": {"name": case.backbone}, "method": {"name": "simclr"}, "views": {"size": size}, "training": training}
    chosen["method"] |= {"joint_views": case.joint}
    resolved = resolve(str(data), settings=chosen)
    torch.set_num_threads(resolved.threads)
    objective = pretrain.build(resolved)
    views = pretrain.batches(resolved, objective)
    s = resolved.spec
    total = max(resolved.total, case.steps + WARM)
    learner = Learner(objective, views, spec=s.training, optimiser=s.optimiser, total=total, per_epoch=resolved.per_epoch, seed=0)
    for group in learner.optimiser.param_groups:
        group["fused"] = case.fused
    ready = views(0)
    marks: dict[str, list[float]] = {name: [] for name in (*BARE, "real", "views")}
    wide: dict[str, list[float]] = {name: [] for name in BARE}

    def bare(into: dict[str, list[float]] = marks) -> None:
        began = clock(resolved.device)
        total, _, _ = learner.module(ready, Step(0, 0, 1))
        forward = clock(resolved.device)
        total.backward()
        backward = clock(resolved.device)
        learner.optimiser.step()
        learner.optimiser.zero_grad(set_to_none=True)
        for name, seconds in zip(BARE, (forward - began, backward - forward, clock(resolved.device) - backward), strict=True):
            into[name].append(seconds)

    def waited(number: int) -> Any:
        """Views of a step, timed: what loader processes have not made ready, and what is left to do."""
        began = clock(resolved.device)
        found = views(number)
        marks["views"].append(clock(resolved.device) - began)
        return found

    if case.data == "folder":  # loader processes go on reading while other steps run, so each kind has its own stretch
        learner.batches = waited  # type: ignore[assignment]
        measure_stretch(learner.step, marks["real"], case.steps, resolved.device)
        views.close()
        measure_stretch(bare, [], case.steps // 5, resolved.device)
        torch.set_num_threads(resolved.threads + resolved.workers)
        measure_stretch(lambda: bare(wide), [], case.steps // 5, resolved.device)
    else:
        for number in range(case.steps + WARM):
            bare()
            marks["real"].append(seconds_of(learner.step, resolved.device))
            marks["views"].append(seconds_of(lambda n=number: views(n), resolved.device))
    found = {name: statistics.fmean(values[WARM:]) for name, values in marks.items() if values}  # reading comes in bursts, and a median hides them
    if case.data == "folder":
        found["bare all threads"] = sum(statistics.fmean(values[WARM:]) for values in wide.values())
    views.close()
    about = {"precision": s.training.precision or "", "threads": resolved.threads, "workers": resolved.workers}
    return {**found, "bare": sum(found[name] for name in BARE), **about, "memory": peak(resolved.device)}  # type: ignore[dict-item]


def measure_stretch(action: Callable[[], object], into: list[float], steps: int, device: torch.device) -> None:
    """Time some steps, one by one, into a list."""
    for _ in range(steps + WARM):
        into.append(seconds_of(action, device))


# ---- lightly -------------------------------------------------------------------------------------
def lightlys(case: Case, data: Path, workers: int, trial: bool = False) -> dict[str, float]:
    """Seconds of lightly's real and bare step for the same method, backbone and batch; of a trial the real one only."""
    from experiments import lightly_recipes as lightly
    from gnothi.models import backbone as backbones
    from gnothi.models.backbone import BackboneSpec

    size = 32 if case.data == "memory" else 96
    backbone = backbones.build(BackboneSpec(name=case.backbone), 3, size, 0)
    model, loss = lightly.RECIPES["simclr"](lightly.Pooled(backbone, case.precision or "fp32"), int(backbone.width))  # type: ignore[arg-type]
    if case.channels_last:
        model.to(memory_format=torch.channels_last)
    optimiser = lightly.optimiser("simclr", model)
    pictures: Any = np.load(data) if case.data == "memory" else lightly.Files(sorted(data.iterdir()))
    source = iter(lightly.loader(pictures, "simclr", case.batch, workers, size, steps=2 * (case.steps + WARM)))
    real: list[float] = []

    def views() -> list[torch.Tensor]:
        return [v.contiguous(memory_format=torch.channels_last) if case.channels_last else v for v in next(source)]

    def step() -> None:
        optimiser.zero_grad()
        loss(views()).backward()
        optimiser.step()

    measure_stretch(step, real, case.steps, torch.device("cpu"))
    if trial:
        return {"real": statistics.fmean(real[WARM:])}
    ready, bare = views(), []

    def on_ready() -> None:
        optimiser.zero_grad()
        loss(ready).backward()
        optimiser.step()

    measure_stretch(on_ready, bare, max(8, case.steps // 4), torch.device("cpu"))
    found = {"real": statistics.fmean(real[WARM:]), "bare": statistics.fmean(bare[WARM:]), "memory": peak(torch.device("cpu"))}
    return {**found, "threads": torch.get_num_threads(), "workers": workers}


# ---- measuring -----------------------------------------------------------------------------------
def clock(device: torch.device) -> float:
    """Seconds, when all work that was handed to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call."""
    began = clock(device)
    action()
    return clock(device) - began


def child(case: Case, data: Path) -> dict[str, Any]:
    """A case in a process of its own; lightly with the number of loader processes that suits it best, found by short trials."""
    if case.who == "gnothi":
        return timed(case, data, 0)
    trial = replace(case, steps=min(case.steps, PROBE))
    best = min((0, 1, 2), key=lambda workers: timed(trial, data, workers, trial=True)["real"])
    return timed(case, data, best)


def timed(case: Case, data: Path, workers: int, trial: bool = False) -> dict[str, Any]:
    """A case in a process of its own."""
    return apart("step", {"case": asdict(case), "data": str(data), "workers": workers, "trial": trial})


def measure(case: dict[str, Any], data: str, workers: int, trial: bool = False) -> dict[str, float]:
    """Seconds and bytes of a case, ours or lightly's."""
    one = Case(**case)
    return ours(one, Path(data)) if one.who == "gnothi" else lightlys(one, Path(data), workers, trial)


def over_lightly(row: dict[str, Any], known: dict[str, dict[str, Any]]) -> dict[str, float]:
    """How many times as many images a second one of our cases does as lightly with its defaults, and as lightly alike, where these were measured."""
    same = [r for r in known.values() if r["who"] == "lightly" and all(r[k] == row[k] for k in ("backbone", "data"))]
    wanted = {"defaults": ("fp32", False), "alike": (row["precision"], row["channels_last"])}
    rates = {(r["precision"], r["channels_last"]): r["batch"] / r["real"] for r in same}
    return {name: round(row["batch"] / row["real"] / rates[kind], 4) for name, kind in wanted.items() if kind in rates}


def kept(known: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """All cases in their order, ours with ``lightly``."""
    ordered = {case.name: known[case.name] for case in CASES if case.name in known}
    return {name: row | ({"lightly": over_lightly(row, known)} if row["who"] == "gnothi" else {}) for name, row in ordered.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="cases; by default all")
    parser.add_argument("--steps", type=int, help="instead of each case's own number")
    parser.add_argument("--missing", action="store_true", help="only cases that do not stand in the results")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(**json.loads(given.one))))
        return
    failures = Failures()
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(Path(folder))
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        print(f"{'case':<36}{'bare / real':>12}{''.join(f'{k:>{w}}' for k, w in SHARES.items())}{'step':>10}{'images/s':>10}{'memory':>10}")
        for case in CASES:
            if given.names and case.name not in given.names or given.missing and case.name in known:
                continue
            case = replace(case, steps=given.steps or case.steps)
            with failures.heard(case.name):
                f = {**child(case, data[case.data]), "load": os.getloadavg()[0]}
                known = kept(known | {case.name: {**asdict(case), **f}})
                shares = "".join(f"{f[k] / f['real']:>{w}.3f}" if k in f else " " * w for k, w in SHARES.items())
                line = f"{case.name:<36}{f['bare'] / f['real']:>12.3f}{shares}{f['real']:>8.3f} s{case.batch / f['real']:>10.0f}"
                print(f"{line}{f['memory'] / 2**20:>6.0f} MiB", flush=True)
                write_text(RESULTS, json.dumps(known, indent=1) + "\n")
        for name, row in known.items():
            print(f"{name:<36}" + "".join(f"{times:>8.2f} x lightly {kind}" for kind, times in row.get("lightly", {}).items()))
    failures.said()


if __name__ == "__main__":
    main()
