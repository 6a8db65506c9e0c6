"""Students on two gloo processes, each with its half of every batch, against one process with the whole; and transfer as a whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import toys
from click.testing import CliRunner
from pupils import classified, distilled
from safetensors.torch import load_file, save_file
from torch import Tensor

from gnothi import distributed
from gnothi.cli import cli
from gnothi.contracts import DataError
from gnothi.randomness import generator
from gnothi.training import checkpoint
from gnothi.training.objective import Objective
from gnothi.training.progress import Silent
from gnothi.transfer import TransferSpec, transfer

pytestmark = pytest.mark.ddp

B = 8
CASES: dict[str, dict[str, Any]] = {
    "clusters": {"smoothing": 0.1},
    "regression": {"loss": "regression"},
    "one queue": {"loss": "compress", "queue": 11},
    "two queues": {"loss": "compress", "queue": 11, "queues": 2},
    "seed": {"loss": "seed", "queue": 11},
}
WHOLE: dict[str, Any] = {
    "seed": 0,
    "backbone": {"name": "micro-vit", "args": {"width": 16, "depth": 2, "heads": 2}},
    "training": {"epochs": 2, "batch": 16, "threads": 1, "precision": "fp32", "checkpoint_every": "50%"},
    "optimiser": {"name": "sgd", "lr": 0.05},
    "views": {"size": 16},
}


def end(name: str, folder: Path, part: slice = slice(None)) -> dict[str, Tensor]:
    """The state after a short run."""
    made = (classified if name == "clusters" else distilled)(folder, **CASES[name])
    run = toys.learner(Objective(made), toys.Feed(B, dtype=torch.float64, part=part), total=5, training={"clip": 0.5})
    run.fit()
    return {k: v.clone().contiguous() for k, v in run.objective.state_dict().items()}


def carried(folder: Path, out: str, loss: str = "clusters", teacher: str = "pixels") -> dict[str, Tensor]:
    """The state that transfer leaves."""
    spec = TransferSpec(k=4 if loss == "clusters" else None, loss=loss)  # type: ignore[arg-type]
    transfer([teacher], str(folder / "noise.npz"), out=folder / out, spec=spec, settings=WHOLE, cache=str(folder / "c"), progress=Silent())
    return checkpoint.read(checkpoint.newest(folder / out))[0]  # type: ignore[arg-type]


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for name in CASES:
        save_file(end(name, Path(folder), slice(4 * rank, 4 * rank + 4)), f"{folder}/{name} {rank}")
    for loss in ("clusters", "compress"):
        carried(Path(folder), f"two-{loss}", loss)
    os.environ["RANK"] = str(rank)
    settings = [word for key in ("epochs=1", "batch=16", "threads=1") for word in ("--set", f"training.{key}")]
    words = ["transfer", "pixels", "--data", f"{folder}/noise.npz", "--out", f"{folder}/said", "-k", "4", "--json", "--baseline", "teacher"]
    done = CliRunner().invoke(cli, [*words, "--student", "micro-resnet", "--set", "views.size=16", *settings], catch_exceptions=False)
    Path(f"{folder}/said {rank}.txt").write_text(done.stdout)
    try:
        carried(Path(folder), "refused", teacher=f"features:{folder}/broken.npy")
    except DataError as error:
        Path(f"{folder}/refused {rank}.txt").write_text(str(error))
    distributed.barrier()
    distributed.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote; they start once for all tests."""
    path = tmp_path_factory.mktemp("students")
    for made in (classified, distilled):
        made(path)
    images = torch.randint(256, (96, 16, 16, 3), generator=generator(0, "noise"), dtype=torch.uint8)
    np.savez(path / "noise.npz", images=images.numpy(), labels=np.arange(96) % 3)
    monkeypatched = pytest.MonkeyPatch()
    monkeypatched.setenv("GNOTHI_CACHE", str(path / "cache"))
    broken = np.ones((96, 3), dtype=np.float32)
    broken[17, 1] = np.nan
    np.save(path / "broken.npy", broken)
    mp.spawn(worker, (str(path),), nprocs=2)
    monkeypatched.undo()
    return path


@pytest.mark.parametrize("name", list(CASES))
def test_two_students_with_halves_are_one_with_the_whole(folder: Path, name: str) -> None:
    first, second = (load_file(folder / f"{name} {rank}") for rank in range(2))
    whole = end(name, folder)
    assert first.keys() == whole.keys() and all(torch.equal(first[k], second[k]) for k in first)
    for key, value in whole.items():
        if value.is_floating_point():
            torch.testing.assert_close(first[key], value, rtol=1e-9, atol=1e-9 * max(1.0, float(value.abs().max())), msg=key)
        else:
            assert torch.equal(first[key], value), key


@pytest.mark.parametrize("loss", ["clusters", "compress"])
def test_transfer_in_two_processes_is_transfer_in_one(folder: Path, loss: str) -> None:
    whole, two = carried(folder, f"one-{loss}", loss), checkpoint.read(checkpoint.newest(folder / f"two-{loss}"))[0]  # type: ignore[arg-type]
    a, b = (load_file(folder / f"{name}-{loss}" / "targets.safetensors") for name in ("one", "two"))
    assert toys.same(a, b)
    assert json.loads((folder / f"two-{loss}" / "transfer.json").read_text()) == json.loads((folder / f"one-{loss}" / "transfer.json").read_text())
    assert whole.keys() == two.keys()
    for key, value in whole.items():
        if value.is_floating_point():
            torch.testing.assert_close(two[key], value, rtol=2e-4, atol=2e-5 * max(1.0, float(value.abs().max())), msg=key)


def test_the_command_says_what_came_of_it_once(folder: Path) -> None:
    told = json.loads((folder / "said 0.txt").read_text())
    assert [r["encoder"] for r in told["results"]] == [str(folder / "said"), "pixels"] and Path(told["report"]).is_file()
    assert (folder / "said 1.txt").read_text() == ""


def test_a_mistake_that_the_first_process_meets_ends_both(folder: Path) -> None:
    said = {(folder / f"refused {rank}.txt").read_text() for rank in range(2)}
    assert len(said) == 1 and "gives row 17 a vector that is not finite, though the image can be read" in said.pop()
    assert not (folder / "refused" / "spec.json").exists()
