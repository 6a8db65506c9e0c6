"""A search that gloo processes divide among them, against one process that searches alone: bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from gnothi import distributed
from gnothi.evaluate import nearest
from gnothi.evaluate.nearest import knn, neighbours, predict
from gnothi.randomness import generator

pytestmark = pytest.mark.ddp

TALL = 8
"""Rows of a product, so that few rows are many products."""
SIZES = (1, 5, 16, 41, 100)
"""Rows that ask: fewer than processes, one product, two, an uneven last one, an uneven number of products."""
CASES: list[tuple[str, bool, int]] = [("cosine", False, 1 << 28), ("dot", False, 1 << 28), ("euclidean", True, 1 << 28), ("cosine", True, 40_000)]
"""Distance, one left out, memory: the last one holds few rows at a time."""


def vectors(n: int, purpose: str) -> torch.Tensor:
    return torch.randn(n, 24, generator=generator(0, purpose))


def search(n: int, distance: str, alone: bool, memory: int, shared: bool) -> tuple[np.ndarray, np.ndarray]:
    test = vectors(n, "test")
    train = test if alone else vectors(300, "train")
    k = min(7, len(train) - alone)
    return neighbours(train, test, k, distance=distance, leave_one_out=alone, memory=memory, shared=shared)


def cases() -> list[tuple[int, str, bool, int]]:
    return [(n, *case) for n in SIZES for case in CASES if n > 1 or not case[1]]


def worker(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet{world}", rank=rank, world_size=world)
    nearest.TALLEST = TALL
    searched: list[int] = []
    plain = nearest._Best.merge

    def counted(self: Any, part: slice, values: torch.Tensor, columns: torch.Tensor, at: int) -> None:
        searched.append(len(values))
        plain(self, part, values, columns, at)

    nearest._Best.merge = counted  # type: ignore[method-assign]
    for i, case in enumerate(cases()):
        searched.clear()
        rows, values = search(*case, shared=True)
        np.savez(f"{folder}/{world} {rank} {i}.npz", rows=rows, values=values, searched=sum(searched))
    labels = np.arange(300) % 4
    votes, _ = predict(vectors(300, "train"), labels, vectors(41, "test"), labels[:41], shared=True)
    np.save(f"{folder}/{world} {rank} votes.npy", votes.scores)
    distributed.barrier()
    distributed.stop()


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_that_share_a_search_find_what_one_finds_bit_for_bit(world: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each searches its share and no more, of whole products; every one gets all."""
    monkeypatch.setattr(nearest, "TALLEST", TALL)
    mp.spawn(worker, (world, str(tmp_path)), nprocs=world)
    for i, case in enumerate(cases()):
        rows, values = search(*case, shared=False)
        shares: list[int] = []
        for rank in range(world):
            with np.load(tmp_path / f"{world} {rank} {i}.npz") as found:
                assert np.array_equal(found["rows"], rows) and np.array_equal(found["values"], values), case
                shares.append(int(found["searched"]))
        blocks = -(-case[0] // TALL)
        assert sum(shares) == case[0]
        assert [-(-share // TALL) for share in shares] == [blocks * (r + 1) // world - blocks * r // world for r in range(world)]
    labels = np.arange(300) % 4
    votes, _ = predict(vectors(300, "train"), labels, vectors(41, "test"), labels[:41])
    assert all(np.array_equal(np.load(tmp_path / f"{world} {rank} votes.npy"), votes.scores) for rank in range(world))


def test_one_process_shares_with_nobody() -> None:
    case = (41, "cosine", False, 1 << 28)
    assert all(np.array_equal(a, b) for a, b in zip(search(*case, shared=True), search(*case, shared=False), strict=True))


def test_the_tallest_product_does_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.arange(300) % 4
    whole = knn(vectors(300, "train"), labels, vectors(41, "test"), labels[:41])
    monkeypatch.setattr(nearest, "TALLEST", 3)
    assert knn(vectors(300, "train"), labels, vectors(41, "test"), labels[:41]).value == whole.value
