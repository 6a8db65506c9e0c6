"""Two gloo processes, each with its half of every batch, against one process with the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from gnothi.auxiliary import AuxiliarySpec
from gnothi.contracts import Carry, RunError, Views
from gnothi.models.batchnorm import SyncBatchNorm, synchronise
from gnothi.randomness import generator
from gnothi.training.learner import Learner
from gnothi.training.objective import Objective

pytestmark = pytest.mark.ddp

B, TOTAL = 8, 5
PLAIN, NORMED = "plain", "batchnorm"
CASES = [(name, kind) for name in toys.NAMES for kind in (PLAIN, NORMED)]
TOLERANCE = 1e-10
"""Of value, gradient and state in float64, relative to the largest element of each tensor; measured: below 1e-14, and 1e-12 with BatchNorm."""


def run(name: str, kind: str, part: slice, accumulate: int = 1) -> dict[str, Tensor]:
    """A few steps of a Learner: terms and gradients of each, and the state at the end."""
    normed = {"norm": "batch", "backbone": toys.NormedBackbone} if kind == NORMED else {}
    method, n_local = toys.method(name, **normed), int(name in toys.MULTI_CROP)
    made = Objective(method, {"nudge": toys.Nudge(method, AuxiliarySpec(start=0.3))}).double()
    learner = toys.learner(made, toys.Feed(B, n_local, torch.float64, part), total=TOTAL, training={"clip": 0.5, "accumulate": accumulate})
    log: dict[str, Tensor] = {}
    _record(learner, log)
    learner.fit()
    return {k: v.contiguous() for k, v in (log | {f"state {k}": v for k, v in made.state_dict().items()}).items()}


def _record(learner: Learner, log: dict[str, Tensor]) -> None:
    """Keep the mean terms over processes and the clipped gradients of every step."""
    backward, clip = learner._backward, learner._clip

    def both(views: Views, step: Any) -> Any:
        terms, carries = backward(views, step)
        log.update({f"{step.number} term {k}": distributed.mean(v).clone() for k, v in terms.items()})
        return terms, carries

    def clipped() -> Tensor:
        norm = clip()
        log.update({f"{learner.number} gradient {k}": p.grad.clone() for k, p in learner.objective.named_parameters() if p.grad is not None})
        return norm

    learner._backward, learner._clip = both, clipped


class Poisoned(toys.Feed):
    """A feed whose second process meets something that is not a number."""

    def __call__(self, number: int) -> Views:
        views = super().__call__(number)
        if distributed.rank() == 1 and number == 2:
            views.images[0].mul_(float("nan"))
        return views


def pieces() -> dict[str, Tensor]:
    """The parts of ``distributed`` on two processes with different data."""
    rank = distributed.rank()
    x = (torch.arange(6.0, dtype=torch.float64).view(3, 2) + 10 * rank).requires_grad_()
    weight = torch.arange(12.0, dtype=torch.float64).view(6, 2) * (rank + 1)  # each process has a loss of its own
    (distributed.gather(x) * weight).sum().backward()
    carry = distributed.merge(Carry({"sum": torch.tensor([1.0 + rank])}, {"rows": torch.full((2, 1), float(rank))}))
    told = distributed.gather_objects({"rank": rank})
    return {
        "gathered": distributed.gather(x.detach()),
        "gradient": x.grad,
        "mean": distributed.mean(torch.tensor(float(rank))),
        "sum": carry.sums["sum"],
        "rows": carry.rows["rows"],
        "objects": torch.tensor([t["rank"] for t in told]),
    }


def normed(name: str, part: slice) -> dict[str, Tensor]:
    """Forward, backward and running statistics after two passes: over the joint batch, or of the module as it is where there is one process."""
    torch.manual_seed(0)
    norm = NORMS[name]().double()
    shape = (B, 5) if isinstance(norm, nn.BatchNorm1d) else (B, 5, 3, 2)
    for p in norm.parameters():
        nn.init.normal_(p)
    x = torch.randn(shape, dtype=torch.float64) * 3 + 1
    target = torch.randn(shape, dtype=torch.float64)
    if distributed.world() > 1:
        synchronise(norm)
    own = x[part].clone().requires_grad_()
    norm(own.detach() + 2)
    y = norm(own)
    (y * target[part]).sum().backward()
    found = {"y": y.detach(), "x": own.grad, **{f"learned {k}": p.grad for k, p in norm.named_parameters()}}
    return found | {k: b for k, b in norm.named_buffers() if b is not None}


def coarse(part: slice) -> dict[str, Tensor]:
    """The same in training mode with inputs of bf16 and all else float32, as under autocast."""
    norm = nn.BatchNorm2d(5)
    x = (torch.randn(B, 5, 3, 2, generator=generator(0, "coarse")) * 3 + 1).bfloat16()
    synchronise(norm)
    return {"y": norm(x[part]).detach(), "mean": norm.running_mean, "var": norm.running_var}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    half = slice(rank * B // 2, (rank + 1) * B // 2)
    for name, kind in CASES:
        save_file(run(name, kind, half), f"{folder}/{name} {kind} {rank}")
    save_file(run("dino", PLAIN, half, accumulate=2), f"{folder}/accumulated {rank}")
    save_file(pieces(), f"{folder}/pieces {rank}")
    for name in NORMS:
        save_file(normed(name, half), f"{folder}/norm {name} {rank}")
    save_file(coarse(half), f"{folder}/coarse {rank}")
    try:
        toys.learner(Objective(toys.method("byol")), Poisoned(B, dtype=torch.float64, part=half), total=4).fit()
    except RunError as error:
        Path(f"{folder}/stopped {rank}").write_text(str(error))
    distributed.barrier()  # nobody leaves while another still listens
    distributed.stop()


def unshifted() -> nn.Module:
    norm = nn.BatchNorm2d(5)
    norm.register_parameter("bias", None)
    return norm


def timm_s() -> nn.Module:
    """A BatchNorm with an activation inside."""
    from timm.layers import BatchNormAct2d

    return BatchNormAct2d(5, act_layer=nn.SiLU)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "of rows": lambda: nn.BatchNorm1d(5),
    "of maps": lambda: nn.BatchNorm2d(5),
    "of fixed statistics": lambda: nn.BatchNorm1d(5, momentum=0.0),
    "of a mean over all batches": lambda: nn.BatchNorm1d(5, momentum=None),
    "without scale and shift": lambda: nn.BatchNorm2d(5, affine=False),
    "without running statistics": lambda: nn.BatchNorm2d(5, track_running_stats=False),
    "without a shift": unshifted,
    "with an activation": timm_s,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What two processes wrote; they start once for all tests."""
    path = tmp_path_factory.mktemp("ddp")
    mp.spawn(worker, (str(path),), nprocs=2)
    yield path


def both(folder: Path, name: str) -> list[dict[str, Tensor]]:
    return [load_file(folder / f"{name} {rank}") for rank in range(2)]


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> tuple[float, str]:
    """Largest difference, relative to the largest element of its tensor, and which tensor that is; a bias before a norm has no gradient but noise."""
    assert a.keys() == b.keys()
    return max((float((a[k] - b[k]).abs().max() / b[k].abs().max().clamp(min=1e-4)), k) for k in b if b[k].is_floating_point() and b[k].numel())


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_two_processes_with_different_halves_equal_one_with_the_whole(folder: Path, name: str, kind: str) -> None:
    """Terms, gradients and state; teachers, centres and queues included."""
    first, second = both(folder, f"{name} {kind}")
    whole = run(name, kind, slice(None))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert sum(k.startswith("4 gradient") for k in whole) > 5
    assert apart(first, whole) < (TOLERANCE, "")


def test_two_processes_of_two_micro_batches_equal_one_with_the_whole(folder: Path) -> None:
    assert apart(both(folder, "accumulated")[0], run("dino", PLAIN, slice(None))) < (TOLERANCE, "")


def test_gather_gives_rows_by_rank_and_the_sum_of_all_processes_gradients(folder: Path) -> None:
    first, second = both(folder, "pieces")
    rows = torch.arange(6.0, dtype=torch.float64).view(3, 2)
    for rank, found in enumerate((first, second)):
        assert torch.equal(found["gathered"], torch.cat([rows, rows + 10]))
        weight = torch.arange(12.0, dtype=torch.float64).view(6, 2)[3 * rank : 3 * rank + 3]
        assert torch.equal(found["gradient"], 3 * weight)  # 1 x from process 0, 2 x from process 1


def test_carries_merge_and_values_are_shared(folder: Path) -> None:
    for found in both(folder, "pieces"):
        assert found["mean"] == 0.5 and found["sum"] == 3
        assert found["rows"].flatten().tolist() == [0, 0, 1, 1] and found["objects"].tolist() == [0, 1]


@pytest.mark.parametrize("name", NORMS)
def test_synchronised_batchnorm_equals_the_module_s_own_on_the_whole(folder: Path, name: str) -> None:
    first, second = both(folder, f"norm {name}")
    whole = normed(name, slice(None))
    assert first.keys() == second.keys() == whole.keys()
    for key in whole:
        if key in ("y", "x"):
            torch.testing.assert_close(torch.cat([first[key], second[key]]), whole[key], rtol=1e-10, atol=1e-10)
        elif key.startswith("learned"):  # each process has the gradient of its own rows' loss; the sum over both is the whole's
            torch.testing.assert_close(first[key] + second[key], whole[key], rtol=1e-10, atol=1e-10)
        else:
            torch.testing.assert_close(first[key], whole[key], rtol=1e-10, atol=1e-12)
            assert torch.equal(first[key], second[key])


def test_what_a_batchnorm_does_besides_is_left_to_no_kernel_that_forgets_it() -> None:
    """torch's own, for GPUs, takes those that do nothing else; it is the same in evaluation."""
    net = nn.Sequential(nn.BatchNorm2d(5), timm_s()).eval()
    x = torch.randn(2, 5, 3, 3, generator=generator(0, "fused"))
    before, keys = net(x), list(net.state_dict())
    synchronise(net, fused=True)
    assert [type(m) for m in net] == [nn.SyncBatchNorm, SyncBatchNorm] and list(net.state_dict()) == keys
    assert torch.equal(net(x), before)


def test_synchronised_batchnorm_takes_bf16_and_counts_in_float32(folder: Path) -> None:
    first, second = both(folder, "coarse")
    whole = coarse(slice(None))
    assert first["y"].dtype == torch.bfloat16
    torch.testing.assert_close(torch.cat([first["y"], second["y"]]), whole["y"], rtol=1e-2, atol=1e-2)
    for key in ("mean", "var"):
        torch.testing.assert_close(first[key], whole[key], rtol=1e-5, atol=1e-6)


def test_one_process_alone_is_the_plain_case() -> None:
    x = torch.ones(3, requires_grad=True)
    carry = Carry({"a": x}, {"b": x})
    assert distributed.gather(x) is x and distributed.mean(x) is x and distributed.merge(carry) is carry
    assert (distributed.world(), distributed.rank(), distributed.gather_objects(3)) == (1, 0, [3])
    norm = SyncBatchNorm(4)
    torch.testing.assert_close(norm(torch.arange(8.0).view(2, 4)), torch.tensor([[-1.0], [1.0]]).expand(2, 4), rtol=1e-4, atol=1e-4)


def test_all_processes_stop_where_one_meets_a_term_that_is_not_finite(folder: Path) -> None:
    for rank in range(2):
        assert (folder / f"stopped {rank}").read_text().startswith('term "byol" became nan at step 3;')
