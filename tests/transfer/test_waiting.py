"""Processes that wait for the first one's work: longer than a collective would, its mistakes are theirs, and its end is noticed."""

from __future__ import annotations

import os
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from gnothi import distributed
from gnothi.contracts import GnothiError, RunError
from gnothi.transfer.student import _once

pytestmark = pytest.mark.ddp


def full() -> None:
    raise RunError("the disk is full")


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/meet", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=2))
    dist.distributed_c10d._get_default_store().set(f"gnothi place {rank}", f"{socket.gethostname()} {os.getpid()}")
    told: list[Any] = [_once(lambda: time.sleep(4) or {"made": True})]
    try:
        _once(full)
    except GnothiError as error:
        told.append((type(error).__name__, str(error)))
    distributed.barrier()
    Path(f"{folder}/{rank}.txt").write_text(repr(told))
    try:
        _once(lambda: os._exit(0))
    except distributed.Lost as error:
        Path(f"{folder}/lost.txt").write_text(str(error))
    os._exit(0)  # a group of which one is gone does not end in order


def test_others_wait_for_the_first_as_long_as_it_lives(tmp_path: Path) -> None:
    mp.spawn(worker, (str(tmp_path),), nprocs=2)
    assert {(tmp_path / f"{rank}.txt").read_text() for rank in range(2)} == {repr([{"made": True}, ("RunError", "the disk is full")])}
    assert (tmp_path / "lost.txt").read_text().startswith("process 0 of 2 (counted from 0) had to stop, and the others with it")
