"""Patches on two gloo processes, each with its half of every batch, against one process with the whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import toys
from patched import Masking, beside
from safetensors.torch import load_file, save_file
from torch import Tensor

from gnothi import distributed
from gnothi.contracts import Views
from gnothi.models.micro_vit import MicroViT
from gnothi.training.health import diagnose

pytestmark = [pytest.mark.ddp, pytest.mark.slow]

B = 6
CASES = [(name, {"match": "geometric"}) for name in toys.NAMES]
CASES += [("moco", {"match": "random"}), ("dino", {"match": "same", "hidden_share": 1.0}), ("byol", {"match": "both", "denominator": "valid_tokens"})]
CASES += [("dino", {"match": "same", "hidden_share": 1.0, "start": 0.5}), ("byol", {"match": "geometric", "start": 0.5})]


def vit() -> MicroViT:
    """Its token for hidden patches has no part in a step that hides none."""
    return MicroViT(size=16, patch_size=4, width=12, depth=1, heads=2, mask_token=True)


class Near(toys.Feed):
    """Crops that overlap, so that patches have partners."""

    def __call__(self, number: int) -> Views:
        made = toys.views(self.b, self.n_local, seed=1000 + number)
        made.boxes[:, :, :2] /= 4
        return made.rows(self.part)


def run(name: str, settings: dict, part: slice) -> dict[str, Tensor]:
    """The state after three steps, and what was measured on the last."""
    backbone = vit if "start" in settings else Masking if settings["match"] == "same" else toys.ToyBackbone
    made = beside(name, backbone=backbone, gram=0.5 * (name in toys.TEACHERS), **settings)
    learner = toys.learner(made, Near(B, int(name in toys.MULTI_CROP), torch.float64, part), total=3, training={"clip": 0.5})
    learner.fit()
    measured = diagnose(made, made.draw(learner.batches(7), toys.step()), toys.step())
    state = {k: v.contiguous() for k, v in made.state_dict().items()}
    return state | {k: torch.tensor(v, dtype=torch.float64) for k, v in measured.items()}


def key(number: int) -> str:
    return f"{number} {CASES[number][0]}"


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for number, (name, settings) in enumerate(CASES):
        save_file(run(name, settings, slice(rank * B // 2, (rank + 1) * B // 2)), f"{folder}/{key(number)} {rank}")
    distributed.barrier()
    distributed.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote; they start once for all tests."""
    path = tmp_path_factory.mktemp("patches")
    mp.spawn(worker, (str(path),), nprocs=2)
    return path


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: f"{CASES[n][0]}-{CASES[n][1]['match']}" + "-late" * ("start" in CASES[n][1]))
def test_two_processes_equal_one(folder, number):
    whole = run(*CASES[number], slice(None))
    for rank in range(2):
        mine = load_file(folder / f"{key(number)} {rank}")
        assert mine.keys() == whole.keys()
        for k, v in whole.items():
            torch.testing.assert_close(mine[k], v, rtol=1e-7, atol=1e-9, msg=f"{k} of rank {rank}")
    assert whole["local_kept"] > 0.3
