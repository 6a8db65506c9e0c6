"""FSDP2 by a field: processes that share parameters, gradients, teacher and optimiser, against DDP and against one process that has all."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import toys
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gnothi import distributed
from gnothi.auxiliary import AUXILIARIES, AuxiliarySpec
from gnothi.contracts import SettingError, Step, Views
from gnothi.models.micro_resnet import MicroResNet
from gnothi.models.micro_vit import MicroViT
from gnothi.randomness import seeded
from gnothi.recipes.resolve import resolve
from gnothi.training import checkpoint, parallel
from gnothi.training.learner import Learner
from gnothi.training.objective import Objective

pytestmark = pytest.mark.ddp

B, TOTAL = 12, 4
TOLERANCE = 1e-9
"""Of float64 values, relative to the largest element of each tensor."""


def vit() -> nn.Module:
    """Three blocks; widths that two and three processes divide unevenly."""
    return MicroViT(size=16, patch_size=4, width=10, depth=3, heads=2, mlp_ratio=1.5)


def resnet() -> nn.Module:
    return MicroResNet(widths=(5, 7))


NETWORKS = {"vit": (vit, "none"), "resnet": (resnet, "batch")}


@dataclass(frozen=True)
class Case:
    """A run of a few steps."""

    method: str = "dino"
    network: str = "vit"
    optimiser: str = "sgd"
    clip: str = "global"
    accumulate: int = 1
    recompute: bool = False
    parallel: str = "fsdp"
    auxiliary: str = "nudge"


CASES = [Case(name, network) for name in toys.NAMES for network in NETWORKS]
CASES += [Case("dino", auxiliary="layers"), Case("byol", auxiliary="layers"), Case("moco", auxiliary="local"), Case("simclr", auxiliary="rotation")]
CASES += [Case(optimiser=o) for o in ("adamw", "lars")] + [Case(clip="tensor"), Case("byol", "resnet", "lars", "tensor")]
TOGETHER = [Case("dino", "vit", "adamw", accumulate=2, recompute=True), Case("byol", "vit", "sgd", accumulate=3, recompute=True)]
TOGETHER += [Case("simclr", "resnet", "lars", recompute=True)]
"""Shards, recomputed activations and, where the method allows it, micro-batches."""
APART_FROM_ONE = [case for case in CASES if case.method == "swav" or case.auxiliary == "rotation"]
"""Measured otherwise by two processes than by one: SwAV's assignments of both together, a mean of shares in float32. DDP is the oracle."""
QUICK = [Case("dino"), CASES[-1], TOGETHER[0], TOGETHER[2]]


def learner(case: Case, part: slice, folder: Path | None = None, total: int = TOTAL) -> Learner:
    network, norm = NETWORKS[case.network]
    method = toys.method(case.method, norm=norm, backbone=network)
    spec, kind = (AuxiliarySpec, toys.Nudge) if case.auxiliary == "nudge" else AUXILIARIES[case.auxiliary]
    with seeded(0, "auxiliary"):
        made = Objective(method, {case.auxiliary: kind(method, spec(start=0.3).settled(case.method))}).double()
    training = {"clip": 0.5, "clip_kind": case.clip, **{k: getattr(case, k) for k in ("accumulate", "recompute", "parallel")}}
    return toys.learner(
        made,
        Near(B, int(case.method in toys.MULTI_CROP), torch.float64, part),
        total=total,
        optimiser={"name": case.optimiser},
        training=training,
        folder=folder,
        sample=toys.views(16).images[0],
        evaluate=Looking(),
    )


class Near(toys.Feed):
    """Crops that overlap, so that patches have partners."""

    def __call__(self, number: int) -> Views:
        made = toys.views(self.b, self.n_local, seed=1000 + number)
        made.boxes[:, :, :2] /= 4
        return made.rows(self.part)


class Looking:
    """An evaluation as those along the way are: the first process embeds with a copy of the network, and the others wait."""

    def __call__(self, method: nn.Module, step: Step) -> list[dict[str, Any]]:
        if distributed.rank():
            return []
        fresh = vit() if isinstance(method.backbone, MicroViT) else resnet()
        alone = distributed.world() == 1
        copied = (copy.deepcopy(method.backbone) if alone else parallel.fill(fresh.double(), method.backbone)).eval()
        return [{"metric": "mean", "value": float(copied(toys.views(5).images[0]).pooled.detach().mean())}]


def run(case: Case, part: slice) -> dict[str, Tensor]:
    """Gradient norms, health, evaluations, and the state at the end, whole."""
    made = learner(case, part)
    log: dict[str, Tensor] = {}
    write, clip = made.journal.write, made._clip

    def written(kind: str, number: int, seconds: float, values: dict[str, Any]) -> None:
        log.update({f"{kind} {number} {k}": torch.tensor(v, dtype=torch.float64) for k, v in values.items() if isinstance(v, float)})
        write(kind, number, seconds, values)

    def clipped() -> Tensor:
        norm = clip()
        log[f"norm {made.number}"] = norm.detach().clone()
        return norm

    made.journal.write, made._clip = written, clipped  # type: ignore[method-assign, assignment]
    made.fit()
    found = log | {f"state {k}": v for k, v in made.state().items()}
    return {k: v.contiguous() for k, v in found.items() if "images_per_second" not in k and "waiting" not in k}


@cache
def plain(case: Case) -> dict[str, Tensor]:
    """What one process with the whole batch comes to, without any of it."""
    return run(replace(case, accumulate=1, recompute=False, parallel="ddp"), slice(None))


def name(case: Case) -> str:
    return "-".join(map(str, asdict(case).values()))


def marked(cases: list[Case]) -> list[Any]:
    return [pytest.param(case, id=name(case), marks=[] if case in QUICK else pytest.mark.slow) for case in cases]


def with_ddp(cases: list[Case]) -> list[Case]:
    """And the same cases with DDP, where they are compared with that too."""
    return [*cases, *(replace(case, parallel="ddp") for case in cases if case in TOGETHER or case in APART_FROM_ONE)]


# ---- two processes ------------------------------------------------------------------------------
def worker(rank: int, world: int, folder: str, cases: list[Case]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    mine = slice(rank * B // world, (rank + 1) * B // world)
    for case in with_ddp(cases):
        found = run(case, mine)
        if rank == 0:
            save_file(found, f"{folder}/{name(case)}")
    if cases == QUICK:
        _held(folder, rank, mine)
        _refused(folder, rank, mine)
        _checkpoints(folder, mine)
    distributed.barrier()
    distributed.stop()


def _held(folder: str, rank: int, mine: slice) -> None:
    """What is seen before the first step; and the numbers that a process holds, of parameters and of the optimiser, while nothing is computed."""
    for kind in ("ddp", "fsdp"):
        made = learner(Case(optimiser="adamw", parallel=kind), mine)
        with parallel.whole(made.objective), torch.no_grad():
            seen = {"pooled": made.objective.method.backbone(toys.views(5).images[0]).pooled}
        save_file(seen, f"{folder}/seen {kind} {rank}")
        made.step()
        tensors = [*made.objective.parameters(), *(v for s in made.optimiser.state.values() for v in s.values() if v.ndim)]
        held = sum(distributed.own(t).untyped_storage().nbytes() for t in tensors)
        Path(f"{folder}/held {kind} {rank}").write_text(str(held))


def _refused(folder: str, rank: int, mine: slice) -> None:
    backbone = vit()
    backbone.register_parameter("temperature", nn.Parameter(torch.tensor(1.0)))
    try:
        toys.learner(Objective(toys.method("byol", backbone=lambda: backbone)), toys.Feed(B, part=mine), training={"parallel": "fsdp"})
    except SettingError as error:
        Path(f"{folder}/refused {rank}").write_text(str(error))


def _checkpoints(folder: str, mine: slice) -> None:
    """A sharded run that is stopped after two steps; and the second half of one that a single process began."""
    first = learner(HALFWAY, mine, Path(folder) / "sharded")
    while first.number < 2:
        first.step()
    first.save()
    second = learner(HALFWAY, mine, Path(folder) / "single")
    second.resume(checkpoint.path_of(Path(folder) / "single", 2))
    second.fit()


def begun(folder: Path) -> None:
    """A plain run of one process that is stopped after two steps."""
    made = learner(replace(HALFWAY, parallel="ddp"), slice(None), folder / "single")
    while made.number < 2:
        made.step()
    made.save()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What two processes wrote; they start once for the quick tests."""
    folder = tmp_path_factory.mktemp("shards")
    begun(folder)
    mp.spawn(worker, (2, str(folder), QUICK), nprocs=2)
    yield folder


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """And once for the others."""
    folder = tmp_path_factory.mktemp("more shards")
    mp.spawn(worker, (2, str(folder), [case for case in (*CASES, *TOGETHER) if case not in QUICK]), nprocs=2)
    yield folder


def found(request: pytest.FixtureRequest, case: Case, parallel: str = "fsdp") -> dict[str, Tensor]:
    folder: Path = request.getfixturevalue("two" if case in QUICK else "rest")
    return load_file(folder / name(replace(case, parallel=parallel)))


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> tuple[float, str]:
    """Largest difference, relative to the largest element of its tensor, and which tensor that is."""
    assert a.keys() == b.keys()
    return max((float((a[k] - b[k]).abs().max() / b[k].abs().max().clamp(min=1e-4)), k) for k in b if b[k].numel())


@pytest.mark.parametrize("case", marked(CASES))
def test_two_processes_that_share_everything_equal_one_that_has_all(request: pytest.FixtureRequest, case: Case) -> None:
    """Gradient norms, health, a measure along the way, and the state at the end: parameters, teacher, memories, statistics, optimiser."""
    shared = found(request, case)
    assert sum(k.startswith("norm") for k in shared) == TOTAL and any(k.startswith("evaluation") for k in shared)
    assert apart(shared, found(request, case, "ddp") if case in APART_FROM_ONE else plain(case)) < (TOLERANCE, "")


@pytest.mark.parametrize("case", marked(TOGETHER))
def test_shards_micro_batches_and_recomputed_activations_together_equal_the_plain_step(request: pytest.FixtureRequest, case: Case) -> None:
    """And DDP with the same micro-batches and recomputation."""
    shared = found(request, case)
    assert apart(shared, plain(case)) < (TOLERANCE, "")
    assert apart(shared, found(request, case, "ddp")) < (TOLERANCE, "")


def test_what_is_seen_before_the_first_step_is_the_whole_network(two: Path) -> None:
    with torch.no_grad():
        pooled = learner(Case(), slice(None)).objective.method.backbone(toys.views(5).images[0]).pooled
    for kind, rank in ((k, r) for k in ("ddp", "fsdp") for r in range(2)):
        torch.testing.assert_close(load_file(two / f"seen {kind} {rank}")["pooled"], pooled, rtol=1e-12, atol=1e-12)


def test_each_process_holds_half(two: Path) -> None:
    """Rows are divided, so a tensor of an odd number of rows costs one row more than its half."""
    whole = [int((two / f"held ddp {rank}").read_text()) for rank in range(2)]
    shares = [int((two / f"held fsdp {rank}").read_text()) for rank in range(2)]
    assert whole[0] == whole[1] and all(0.4 * whole[0] < share < 0.62 * whole[0] for share in shares)


def test_what_cannot_be_divided_is_refused_in_a_line(two: Path) -> None:
    for rank in range(2):
        said = (two / f"refused {rank}").read_text()
        assert said.startswith("training.parallel must be ddp for such a network: ") and said.endswith("; got fsdp") and "\n" not in said


# ---- checkpoints --------------------------------------------------------------------------------
HALFWAY = Case("byol", "resnet", "adamw")


def copied(two: Path, name: str, to: Path) -> Path:
    """The checkpoint after two steps in a folder of its own."""
    to.mkdir()
    path = checkpoint.path_of(two / name, 2)
    (to / path.name).write_bytes(path.read_bytes())
    return to


def ends_as_the_unbroken(state: dict[str, Tensor]) -> None:
    expected = {k.removeprefix("state "): v for k, v in plain(HALFWAY).items() if k.startswith("state") and "window" not in k}
    assert sum(k.startswith("optimiser.exp_avg_sq") for k in expected) > 10
    assert apart({k: v for k, v in state.items() if "window" not in k}, expected) < (TOLERANCE, "")


def test_a_sharded_run_goes_on_in_one_process_and_one_of_one_process_goes_on_sharded(two: Path, tmp_path: Path) -> None:
    folder = copied(two, "sharded", tmp_path / "sharded")
    alone = learner(replace(HALFWAY, parallel="ddp"), slice(None), folder)
    alone.resume(checkpoint.path_of(folder, 2))
    assert alone.number == 2
    alone.fit()
    ends_as_the_unbroken(alone.state())
    ends_as_the_unbroken(checkpoint.read(checkpoint.path_of(two / "single", TOTAL))[0])


def _resumed(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    made = learner(HALFWAY, slice(rank * B // world, (rank + 1) * B // world), Path(folder) / "sharded")
    made.resume(checkpoint.path_of(Path(folder) / "sharded", 2))
    made.fit()
    distributed.barrier()
    distributed.stop()


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_with_three(two: Path, tmp_path: Path) -> None:
    folder = copied(two, "sharded", tmp_path / "sharded")
    mp.spawn(_resumed, (3, str(tmp_path)), nprocs=3)
    ends_as_the_unbroken(checkpoint.read(checkpoint.path_of(folder, TOTAL))[0])


# ---- one process --------------------------------------------------------------------------------
def test_one_process_has_nothing_to_share() -> None:
    made = learner(Case(), slice(None))
    assert made.module is made.objective and not any(hasattr(p, "full_tensor") for p in made.objective.parameters())
    x = torch.ones(3)
    assert distributed.full(x) is x and distributed.own(x) is x and distributed.shard_like(x, x) is x


def test_norms_of_tensors_are_those_of_numpy() -> None:
    tensors = [torch.randn(3, 4), torch.randn(2), torch.zeros(5)]
    found = distributed.norms(tensors)
    assert [float(n) for n in found] == pytest.approx([float(t.square().sum().sqrt()) for t in tensors])


def test_compiled_networks_are_refused() -> None:
    with pytest.raises(SettingError, match="training.parallel must be ddp with training.compile, got fsdp"):
        resolve("photos", settings={"training": {"parallel": "fsdp", "compile": True}}, device="cpu")
