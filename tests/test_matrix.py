"""Every method beside every set of auxiliaries at toy size, and sets of auxiliaries alone."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import toys
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gnothi import distributed, pretrain
from gnothi.auxiliary import AUXILIARIES
from gnothi.contracts import Views
from gnothi.methods.none import NoMethod, NoneSpec
from gnothi.randomness import generator, seeded
from gnothi.training import checkpoint
from gnothi.training.objective import Objective
from gnothi.training.progress import Silent

SETTINGS: dict[str, dict[str, Any]] = {
    "rotation": {"weight": 0.3},
    "jigsaw": {"grid": 2, "image": 22, "tile": 8, "permutations": 6, "hidden": 5, "max_occlusions": 1},
    "layers": {},
    "local": {"match": "both"},
}
OWN = {"rotation": 8, "jigsaw": 22}
"""Sides of the crops that auxiliaries ask for."""
Case = tuple[str, tuple[str, ...]]


def sets(names: tuple[str, ...], sizes: range) -> Iterator[tuple[str, ...]]:
    for size in sizes:
        yield from itertools.combinations(names, size)


ALL: list[Case] = [(name, chosen) for name in toys.NAMES for chosen in sets(tuple(SETTINGS), range(5))]
ALL += [("none", chosen) for chosen in sets(tuple(n for n in SETTINGS if AUXILIARIES[n][1].alone), range(1, 3))]
PAIRS = [(name, chosen) for name, chosen in ALL if len(chosen) == 2]
FULLEST = [(name, chosen) for name, chosen in ALL if len(chosen) == (2 if name == "none" else 4)]
REST = [case for case in ALL if case not in PAIRS]


def label(case: Any) -> str:
    return "+".join(case) or "nothing" if isinstance(case, tuple) else str(case)


def backbone() -> nn.Module:
    """Patches, blocks and BatchNorm."""
    made = toys.ToyBackbone()
    made.patches = nn.Sequential(made.patches, nn.BatchNorm2d(made.width))
    return made


def objective(name: str, chosen: tuple[str, ...], seed: int = 0) -> Objective:
    """E-SSL beside methods with a teacher, EffSSL beside the others."""
    with seeded(seed, "matrix"):
        base = NoMethod(backbone(), NoneSpec()) if name == "none" else toys.method(name, norm="batch", backbone=backbone, seed=seed)
        form = {"form": "essl"} if name in toys.TEACHERS else {}
        settings = {n: SETTINGS[n] | (form if n == "rotation" else {}) for n in chosen}
        return Objective(base, {n: AUXILIARIES[n][1](base, AUXILIARIES[n][0](**s)) for n, s in settings.items()}).double()


class Feed(toys.Feed):
    """Views, and a crop for each auxiliary that may want one."""

    def __call__(self, number: int) -> Views:
        self.met.append(number)
        whole = toys.views(self.b, self.n_local, seed=1000 + number, dtype=self.dtype)
        own = {name: toys.views(self.b, size=size, seed=2000 + number, dtype=self.dtype) for name, size in OWN.items()}
        extra = {k: replace(v, images=v.images[:1], boxes=v.boxes[:1], flips=v.flips[:1], turns=v.turns[:1]) for k, v in own.items()}
        return replace(whole, extra=extra).rows(self.part)


def feed(name: str, part: slice = slice(None), b: int = 8) -> Feed:
    return Feed(b, int(name in toys.MULTI_CROP), torch.float64, part)


def learner(name: str, chosen: tuple[str, ...], **more: Any) -> Any:
    rare = {"log_every": "2 steps", "health_every": "100 steps", "checkpoint_every": "100 steps", "clip": 0.5}
    return toys.learner(objective(name, chosen, more.pop("seed", 0)), feed(name, more.pop("part", slice(None))), total=4, training=rare, **more)


# ---- one process --------------------------------------------------------------------------------
def check(name: str, chosen: tuple[str, ...], folder: Path) -> None:
    """Forward moves nothing, backward reaches everything, and a stopped run equals an unbroken one."""
    made, at = objective(name, chosen), toys.step(7)
    views, before, random = made.draw(feed(name)(0), at), toys.parameters(made), torch.get_rng_state()
    total, terms, carries = made(views, at)
    assert terms.keys() == made.weights(at).keys() and all(v.isfinite() for v in terms.values())
    assert set(chosen) <= carries.keys() and (name == "none" or name in terms)
    moved = {k for k, v in made.state_dict().items() if not torch.equal(v, before[k])}
    assert all(k.endswith(("running_mean", "running_var", "num_batches_tracked")) for k in moved) and moved
    assert torch.equal(torch.get_rng_state(), random)
    again = made(made.draw(feed(name)(0), at), at)[1]
    assert all(torch.equal(terms[k], again[k]) for k in terms)
    total.backward()
    for key, p in made.named_parameters():
        assert (p.grad is not None and bool(p.grad.isfinite().all())) == p.requires_grad, key
        assert p.ndim < 2 or not p.requires_grad or p.grad.abs().max() > 1e-9, key
    made.after_step(carries, at)

    whole = learner(name, chosen, folder=folder / "whole")
    whole.fit()
    first = learner(name, chosen, folder=folder / "parts")
    first.step(), first.step()
    first.save()
    second = learner(name, chosen, folder=folder / "parts", seed=5)  # whatever it starts from is replaced
    second.resume(checkpoint.newest(folder / "parts"))
    second.fit()
    assert toys.same(whole.state(), second.state())
    assert lines(folder / "whole") == lines(folder / "parts")


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second", "waiting")} for line in found]


@pytest.mark.parametrize(("name", "chosen"), PAIRS, ids=label)
def test_two_auxiliaries_beside_any_method(name: str, chosen: tuple[str, ...], tmp_path: Path) -> None:
    check(name, chosen, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "chosen"), REST, ids=label)
def test_any_other_set_of_auxiliaries_beside_any_method(name: str, chosen: tuple[str, ...], tmp_path: Path) -> None:
    check(name, chosen, tmp_path)


@pytest.mark.parametrize("name", ["simclr", "dino"])
def test_weights_of_zero_give_the_run_without_bit_for_bit(name: str, tmp_path: Path) -> None:
    images = torch.randint(256, (24, 24, 24, 3), generator=generator(0, "images"), dtype=torch.uint8)
    np.savez(tmp_path / "noise.npz", images=images.numpy())
    settings: dict[str, Any] = {
        "method": {"name": name, "hidden": 8, "out": 4},
        "backbone": {"name": "micro-vit", "args": {"width": 8, "depth": 2, "heads": 2}},
        "views": {"size": 16},
        "training": {"epochs": 2, "batch": 8, "threads": 1, "log_every": "1 step"},
    }
    found = []
    for folder, auxiliaries in (("without", {}), ("zero", {n: {**s, "weight": 0} for n, s in SETTINGS.items()})):
        out = tmp_path / folder
        pretrain.train(str(tmp_path / "noise.npz"), settings={**settings, "auxiliary": auxiliaries}, device="cpu", out=out, progress=Silent())
        found.append((checkpoint.read(checkpoint.newest(out))[0], lines(out)))
    assert toys.same(found[0][0], found[1][0]) and found[0][1] == found[1][1]


# ---- two processes ------------------------------------------------------------------------------
def end(name: str, chosen: tuple[str, ...], part: slice = slice(None)) -> dict[str, Tensor]:
    """The state after a short run."""
    run = learner(name, chosen, part=part)
    run.fit()
    return {k: v.clone().contiguous() for k, v in run.objective.state_dict().items()}


def worker(rank: int, folder: str, cases: list[Case]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for case in cases:
        save_file(end(*case, slice(4 * rank, 4 * rank + 4)), f"{folder}/{label(case[:1])} {label(case[1])} {rank}")
    distributed.barrier()  # nobody leaves while another still listens
    distributed.stop()


def spawned(path: Path, cases: list[Case]) -> Path:
    mp.spawn(worker, (str(path), cases), nprocs=2)
    return path


@pytest.fixture(scope="module")
def fullest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spawned(tmp_path_factory.mktemp("fullest"), FULLEST)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spawned(tmp_path_factory.mktemp("everything"), ALL)


def equal(folder: Path, case: Case) -> None:
    """Parameters, teachers and memories of both processes are those of one with the whole batch."""
    first, second = (load_file(folder / f"{label(case[:1])} {label(case[1])} {rank}") for rank in range(2))
    whole = end(*case)
    assert first.keys() == whole.keys() and all(torch.equal(first[k], second[k]) for k in first)
    for key, value in whole.items():
        if value.is_floating_point():
            torch.testing.assert_close(first[key], value, rtol=1e-9, atol=1e-9 * max(1.0, float(value.abs().max())) if value.numel() else 0, msg=key)


@pytest.mark.ddp
@pytest.mark.parametrize("case", FULLEST, ids=lambda c: c[0])
def test_two_processes_with_different_halves_equal_one_with_the_whole(fullest: Path, case: Case) -> None:
    equal(fullest, case)


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("case", ALL, ids=lambda c: f"{c[0]}-{label(c[1])}")
def test_two_processes_equal_one_with_any_set(everything: Path, case: Case) -> None:
    equal(everything, case)
