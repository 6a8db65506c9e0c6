"""Which device a process takes, what tells one call of torchrun from another, and what is made of errors between processes."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from gnothi import distributed
from gnothi.contracts import DataError, SettingError
from gnothi.training.lock import owned, restarted


def processes(patch: pytest.MonkeyPatch, local: int, of: int, gpus: int, shown: str | None = None) -> None:
    patch.setattr(torch.cuda, "device_count", lambda: gpus)
    for name, value in {"WORLD_SIZE": of, "LOCAL_WORLD_SIZE": of, "LOCAL_RANK": local, "RANK": local}.items():
        patch.setenv(name, str(value))
    patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        patch.setenv("CUDA_VISIBLE_DEVICES", shown)


@pytest.mark.parametrize("asked", [None, "cuda"])
def test_of_several_processes_each_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch, asked: str | None) -> None:
    taken = []
    for local in range(4):
        processes(monkeypatch, local, 4, 4)
        taken.append(distributed.device_of(asked))
    assert taken == [torch.device("cuda", i) for i in range(4)]
    processes(monkeypatch, 3, 4, 1, shown="6")  # a launcher that shows each process one GPU
    assert distributed.device_of(asked) == torch.device("cuda", 0)
    processes(monkeypatch, 0, 1, 4)
    assert distributed.device_of("cuda:2") == torch.device("cuda", 2)
    assert distributed.device_of(asked) == torch.device("cuda")


def test_gpus_that_are_not_there_or_would_be_shared_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    processes(monkeypatch, 1, 4, 2)
    with pytest.raises(SettingError, match="4 processes need as many GPUs, this machine has 2; start 2, or give --device cpu"):
        distributed.device_of(None)
    processes(monkeypatch, 1, 2, 2)
    with pytest.raises(SettingError, match="--device cuda:0: 2 processes cannot share a GPU; --device cuda gives each its own"):
        distributed.device_of("cuda:0")
    assert distributed.device_of("cpu") == torch.device("cpu")


def test_a_restart_goes_on_only_with_what_the_same_call_of_torchrun_began(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "world", lambda: 1)
    assert distributed.job() == f"{socket.gethostname()} {os.getppid()}"
    with owned(tmp_path):
        assert not restarted(tmp_path)  # not restarted at all
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert restarted(tmp_path) and not restarted(tmp_path / "another")
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert not restarted(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "4")  # over several machines the call goes by its name
    monkeypatch.setenv("MASTER_ADDR", "first")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert distributed.job() == "first:29500"  # or by its address, where it was given none
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "cells-7")
    assert distributed.job() == "cells-7"
    with owned(tmp_path):
        assert restarted(tmp_path)
    for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name)
    with owned(tmp_path):
        assert not restarted(tmp_path) and (tmp_path / ".lock").read_text() == ""


class Store(dict[str, bytes]):
    """What processes told each other."""

    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def get(self, key: str) -> bytes:  # type: ignore[override]
        if key not in self:
            raise RuntimeError("no such key")
        return self[key]

    def delete_key(self, key: str) -> bool:
        return self.pop(key, None) is not None

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """Of process 0 of 3, all on this machine, the others this process's parent and itself."""
    told = Store()
    monkeypatch.setattr(distributed, "world", lambda: 3)
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    monkeypatch.setattr(distributed, "PATIENCE", 0.2)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: told)
    for rank, pid in enumerate((os.getpid(), os.getppid(), os.getpid())):
        told.set(f"gnothi place {rank}", f"{socket.gethostname()} {pid}")
    return told


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", "/closed"), "[Errno 13] Permission denied: '/closed'"),
        (MemoryError(), "MemoryError"),
        (DataError("shard.tar: connection refused"), "shard.tar: connection refused"),
        (ValueError("two\nlines"), "two lines"),
    ],
)
def test_a_process_that_ends_by_any_error_says_why(store: Store, error: Exception, said: str) -> None:
    with pytest.raises(type(error)), distributed.together():
        raise error
    assert store["gnothi end 0"].decode() == said


def test_what_a_process_said_of_an_error_that_was_caught_is_not_believed_later(store: Store) -> None:
    with pytest.raises(DataError), distributed.together():
        raise DataError("no such data")
    assert distributed._word(0) == "no such data"
    with distributed.together():
        assert distributed._word(0) is None  # nothing is known but that it lives


def test_one_process_says_that_a_gpu_would_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    for asked, speaker in ((0, 1), (1, 0), (2, 0)):
        spoke = []
        for local in range(3):
            processes(monkeypatch, local, 3, 3)
            try:
                distributed.device_of(f"cuda:{asked}")
            except distributed.Shared as error:
                spoke += [local] if error.aloud else []
        assert spoke == [speaker]


def test_others_that_are_alive_are_not_called_killed(store: Store) -> None:
    with pytest.raises(distributed.Lost, match=r"^process 0 of 3 \(counted from 0\) heard nothing from the others, which are alive: gloo timed out$"):
        with distributed.together():
            raise RuntimeError("gloo timed out\nand a long story")
    store.set("gnothi end 2", "the disk is full")
    with pytest.raises(distributed.Lost, match=r"^process 2 of 3 .* had to stop, and the others with it: the disk is full$"):
        with distributed.together():
            raise ConnectionError("reset by peer")
    store["gnothi end 2"] = b""
    store.set("gnothi place 1", f"{socket.gethostname()} 999999999")
    with pytest.raises(distributed.Lost, match=r"^process 1 of 3 .*: it ended without a word, killed or for want of memory$"):
        with distributed.together():
            raise RuntimeError("NCCL error")
