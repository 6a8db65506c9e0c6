"""Layers in the loop: idle, frozen, resumed, over two processes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import toys
from depths import Deep, beside
from safetensors.torch import load_file, save_file
from torch import Tensor
from toys import MULTI_CROP, NAMES, Feed, learner, parameters, same, step

from gnothi import distributed, pretrain
from gnothi.auxiliary.layers import Layers, LayersSpec
from gnothi.contracts import Views
from gnothi.randomness import generator, seeded
from gnothi.training import checkpoint
from gnothi.training.objective import Objective
from gnothi.training.progress import Silent


@pytest.mark.parametrize(("name", "more"), [*((name, {}) for name in NAMES), ("swav", {"prototypes": "own"}), ("byol", {"layers": []})])
def test_layers_that_begin_later_leave_the_method_as_it_is_and_do_not_move(name: str, more: dict[str, Any]) -> None:
    def trained(**settings: Any) -> Objective:
        objective = beside(name, **settings) if settings else Objective(toys.method(name, backbone=Deep))
        learner(objective, Feed(dtype=torch.float64), total=4).fit()
        return objective

    late, without = trained(start=0.99, **more), trained()
    assert same(parameters(late.method), parameters(without.method))
    assert same(parameters(late.auxiliaries), parameters(beside(name, start=0.99, **more).auxiliaries))


@pytest.mark.parametrize("name", ["dino", "swav"])
def test_own_prototypes_stand_still_while_the_method_s_do_and_have_unit_length_after(name: str) -> None:
    objective = beside(name, prototypes="own", schedule="constant")
    run = learner(objective, Feed(dtype=torch.float64), total=10, optimiser={"warm_up": "0 steps", "weight_decay": 0.3})
    before = parameters(objective)
    keys = [k for k in before if k.endswith("last.weight") and ".slow." not in k]
    assert len(keys) == 4
    for number in range(4):  # frozen for the first fifth
        run.step()
        for key in keys:
            assert torch.equal(objective.state_dict()[key], before[key]) == (number < 2), (key, number)
    if name == "swav":
        for key in keys:
            lengths = objective.state_dict()[key].norm(dim=-1)
            torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-12)


def test_only_the_teacher_s_final_words_move_dino_s_centre() -> None:
    with_it, without = beside("dino"), Objective(toys.method("dino", backbone=Deep))
    for objective in (with_it, without):
        objective.after_step(objective(toys.views(5, 2), step())[2], step())
    assert torch.equal(with_it.method.space.centre, without.method.space.centre) and without.method.space.centre.any()


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(name: str, tmp_path: Any) -> None:
    settings = {"target_layer": 1, "norm": "separate"} if name in ("byol", "simclr") else {"start": 0.3}

    def run(folder: str) -> Any:
        objective = beside(name, **settings)
        return learner(objective, Feed(dtype=torch.float64), total=6, optimiser={"name": "adamw", "lr": 0.01}, folder=tmp_path / folder)

    whole, first, second = run("whole"), run("parts"), run("parts")
    whole.fit()
    for _ in range(3):
        first.step()
    first.save()
    second.resume(tmp_path / "parts" / "step-0000003.safetensors")
    second.fit()
    assert same(whole.state(), second.state())


def coloured(n: int = 16) -> Views:
    """Images of a colour each, with some noise: easy to tell apart."""
    colours, noise = 3 * torch.randn(n, 3, 1, 1, generator=generator(0, "colours")), toys.views(n, dtype=torch.float32)
    return replace(noise, images=tuple(colours + 0.1 * i for i in noise.images))


@pytest.mark.parametrize("name", NAMES)
def test_lower_blocks_learn_to_say_what_the_last_one_says(name: str) -> None:
    """Well below what can be had without looking at the image; half or four fifths of the beginning where no such number exists."""
    base, batch, found = toys.method(name, backbone=Deep).float(), coloured(), list[float]()
    with seeded(0, "layers"):
        objective = Objective(base, {"layers": Layers(base, LayersSpec(weight=1.0, schedule="constant"))})
    run = learner(objective, lambda _: batch, total=60, optimiser={"name": "adamw", "lr": 0.01}, training={"log_every": "5 steps"})
    run.journal.write = lambda kind, step, seconds, line: found.append(line["terms"]["layers"]) if kind == "train" else None  # type: ignore[method-assign]
    run.fit()
    chance = {"simclr": math.log(31), "moco": 0.8 * math.log(16), "byol": 4.0, "swav": math.log(9), "dino": math.log(11)}
    below = {"simsiam": -0.8, "barlow": 0.5 * found[0], "vicreg": 0.8 * found[0]} | {k: 0.8 * v for k, v in chance.items()}
    assert found[-1] < below[name]


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_a_run_with_weight_zero_is_the_run_without_them_bit_for_bit(weight: float, tmp_path: Path) -> None:
    images = torch.randint(256, (48, 16, 16, 3), generator=generator(0, "images"), dtype=torch.uint8)
    np.savez(tmp_path / "noise.npz", images=images.numpy())
    vit = {"name": "micro-vit", "patch_size": 4, "args": {"width": 12, "depth": 3, "heads": 2}}
    settings = {"backbone": vit, "method": {"name": "byol"}, "views": {"size": 16}, "training": {"epochs": 1, "batch": 8, "threads": 1}}

    def state(**more: Any) -> dict[str, Tensor]:
        out = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        pretrain.train(str(tmp_path / "noise.npz"), settings={**settings, **more}, device="cpu", out=out, progress=Silent())
        path = checkpoint.newest(out)
        assert path is not None
        return checkpoint.read(path)[0]

    with_them, without = state(auxiliary={"layers": {"weight": weight}}), state()
    assert same(with_them, without) == (weight == 0)
    assert any(k.startswith("auxiliaries.layers.exits.1.") for k in with_them) == (weight > 0)


def processes(name: str, part: slice) -> dict[str, Tensor]:
    """State and terms after a few steps of this process's rows."""
    settings = {"byol": {"target_layer": 1}, "swav": {"prototypes": "own"}}.get(name, {"norm": "separate"})
    objective = beside(name, method={"norm": "batch"}, schedule="constant", **settings)
    run, log = learner(objective, Feed(8, 2 if name in MULTI_CROP else 0, torch.float64, part), total=4, training={"log_every": "1 steps"}), {}
    run.journal.write = lambda kind, step, seconds, line: log.update({f"{kind} {step}": torch.tensor(list(line["terms"].values()))})  # type: ignore[method-assign]
    run.fit()
    return {k: v.contiguous() for k, v in (log | dict(objective.state_dict())).items()}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for name in NAMES:
        save_file(processes(name, slice(4 * rank, 4 * rank + 4)), f"{folder}/{name} {rank}")
    distributed.barrier()
    distributed.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote; they start once for all methods."""
    path = tmp_path_factory.mktemp("ddp")
    mp.spawn(worker, (str(path),), nprocs=2)
    return path


@pytest.mark.ddp
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_with_halves_equal_one_with_the_whole(name: str, folder: Path) -> None:
    first, second = (load_file(folder / f"{name} {rank}") for rank in range(2))
    whole = processes(name, slice(None))
    assert all(torch.equal(first[k], second[k]) for k in first if not k.startswith("train "))
    for key, value in whole.items():
        if value.is_floating_point() and value.numel():
            apart = (first[key] - value).abs().max() / value.abs().max().clamp(min=1e-4)
            assert apart < 1e-10, key
