"""Devices and processes: start, rank, a gather whose gradient is exact, means. One process is the plain case of everything here."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gnothi.contracts import Carry, GnothiError, RunError, SettingError

PATIENCE = 3.0
"""Seconds that a process which lost another gives to all to say whether they are alive."""
KILLED = "it ended without a word, killed or for want of memory"


class Lost(RunError):
    """Another process of the run ended; ``aloud`` on the one process that should tell."""

    def __init__(self, message: str, aloud: bool) -> None:
        super().__init__(message)
        self.aloud = aloud


class Shared(SettingError):
    """Several processes were to compute on one GPU; ``aloud`` on the one process that should tell."""

    def __init__(self, message: str, aloud: bool) -> None:
        super().__init__(message)
        self.aloud = aloud


def device_of(name: str | None) -> torch.device:
    """A device by name (cpu, cuda, cuda:1, mps); by default CUDA where there is one. Of several processes each takes a GPU of its own.

    Raises:
        SettingError: this machine does not have it.
    """
    have = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), *(["mps"] if torch.backends.mps.is_available() else [])]
    if name is not None and name not in (*have, "cuda" if "cuda:0" in have else "cpu"):
        raise SettingError(f"--device {name}: no such device here; this machine has {', '.join(have)}")
    found = torch.device(name or ("cuda" if "cuda:0" in have else "cpu"))
    return _own_gpu(found) if found.type == "cuda" and _several() else found


def _several() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _own_gpu(asked: torch.device) -> torch.device:
    local, here, count = (int(x) for x in (os.environ.get("LOCAL_RANK", "0"), os.environ.get("LOCAL_WORLD_SIZE", "1"), torch.cuda.device_count()))
    if count == 1 and len(os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")) == 1 and "CUDA_VISIBLE_DEVICES" in os.environ:
        return torch.device("cuda", 0)  # whoever started the processes shows each its own
    if here > count:
        raise SettingError(f"--device cuda: {here} processes need as many GPUs, this machine has {count}; start {count}, or give --device cpu")
    if asked.index not in (None, local) and here > 1:
        speaks = local == (1 if asked.index == 0 else 0)  # the process whose own GPU it is has nothing to say
        raise Shared(f"--device {asked}: {here} processes cannot share a GPU; --device cuda gives each its own", speaks)
    return torch.device("cuda", local if asked.index is None else asked.index)


def start(device: torch.device) -> None:
    """Join the processes that ``torchrun`` started; nothing to do for a plain process."""
    if _several() and not dist.is_initialized():
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        # A store of its own for each start: after a restart torchrun's holds the addresses of the processes that ended.
        store, own, count = next(iter(rendezvous("env://")))
        if device.type == "cuda":
            torch.cuda.set_device(device)  # where the group talks
        apart = PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=apart, rank=own, world_size=count)
        dist.distributed_c10d._get_default_store().set(_key("place", rank()), f"{socket.gethostname()} {os.getpid()}")


def restarted() -> bool:
    """Whether ``torchrun`` started the processes anew after one of them ended."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def job() -> str:
    """What tells this call of ``torchrun`` from any other, the same after a restart; "" for a plain process."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ""
    one_machine = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
    if one_machine:  # where the name is often "none"
        return f"{socket.gethostname()} {os.getppid()}"
    name = os.environ["TORCHELASTIC_RUN_ID"]
    return name if name != "none" else ":".join(os.environ.get(key, "") for key in ("MASTER_ADDR", "MASTER_PORT"))


def stop() -> None:
    """Leave the group of processes, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def together() -> Iterator[None]:
    """Inside, the end of one process becomes an error of all others that names it, and why it ended where it could still say so.

    Raises:
        Lost: another process ended.
    """
    with _patient():
        if world() > 1:
            with suppress(RuntimeError):  # what was said of an error that somebody caught
                dist.distributed_c10d._get_default_store().delete_key(_key("end", rank()))
        try:
            yield
        except Lost:
            raise
        except Exception as error:
            if world() > 1 and not _of_connections(error):
                _tell(" ".join(str(error).split()) or type(error).__name__)
            elif world() > 1:
                raise _lost(_ends(), error) from error
            raise


@contextmanager
def _patient() -> Iterator[None]:
    # torchrun sends SIGTERM to all that are left as soon as one process ended; who is finding out which it was lives to say so.
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _unless_asking)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _unless_asking(signum: int, frame: FrameType | None) -> None:
    if not _asking:
        signal.signal(signum, signal.SIG_DFL)
        signal.raise_signal(signum)


_asking: list[bool] = []
"""Holds something while this process finds out which other one ended."""


def _of_connections(error: Exception) -> bool:
    if isinstance(error, GnothiError) or not isinstance(error, RuntimeError | ConnectionError):
        return False
    said = str(error).lower()
    return isinstance(error, dist.DistError | ConnectionError) or any(word in said for word in ("gloo", "nccl", "connection"))


def _key(what: str, rank: int) -> str:
    return f"gnothi {what} {rank}"


def _tell(message: str) -> None:
    """Leave word with the store of the group: why this process ends, or nothing where it is alive."""
    with suppress(RuntimeError):  # whoever kept the store is gone
        dist.distributed_c10d._get_default_store().set(_key("end", rank()), message)


def _ends() -> dict[int, str]:
    """The processes that ended, and what they said of it; none where all are alive."""
    _asking.append(True)
    _tell("")
    ends: dict[int, str] = {}
    unknown, until = set(range(world())) - {rank()}, time.monotonic() + PATIENCE
    while unknown and not ends and time.monotonic() < until:
        for other in sorted(unknown):
            word = _word(other)
            if word is not None:
                unknown.discard(other)
            if word:
                ends[other] = word
        time.sleep(0.05)
    return ends or {other: KILLED for other in sorted(unknown) if not _here(other)}


def _word(other: int) -> str | None:
    """Why a process ended, "" where it says that it is alive, None where it has not said so yet, or cannot."""
    store = dist.distributed_c10d._get_default_store()
    try:
        if store.check([_key("end", other)]):
            return store.get(_key("end", other)).decode()
        host, pid = _place(other)
    except RuntimeError:
        return None
    return KILLED if host == socket.gethostname() and not _alive(pid) else None


def _place(other: int) -> tuple[str, int]:
    host, pid = dist.distributed_c10d._get_default_store().get(_key("place", other)).decode().rsplit(" ", 1)
    return host, int(pid)


def _here(other: int) -> bool:
    """Whether a process is known to be alive, on this machine."""
    try:
        host, pid = _place(other)
    except RuntimeError:
        return False
    return host == socket.gethostname() and _alive(pid)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] if os.path.isdir("/proc/self") else ""
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


def _lost(ends: dict[int, str], error: Exception) -> Lost:
    if not ends:
        said = (str(error) or type(error).__name__).splitlines()[0]
        return Lost(f"process {rank()} of {world()} (counted from 0) heard nothing from the others, which are alive: {said}", True)
    first = min(ends)
    alive = next(r for r in range(world()) if r not in ends)
    message = f"process {first} of {world()} (counted from 0) had to stop, and the others with it: {ends[first]}"
    return Lost(message, rank() == alive and ends.get(0, KILLED) == KILLED)


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is."""
    return dist.get_rank() if dist.is_initialized() else 0


def barrier() -> None:
    """Wait for all processes."""
    if world() > 1:
        dist.barrier()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # Every process computes the loss of all rows, so the gradient of a row is the sum of what all processes say of it.
        # DDP then takes the mean over processes, which makes it exactly the gradient of one process with all rows.
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        n = grad.shape[0] // world()
        return grad[rank() * n : (rank() + 1) * n]


def gather(x: Tensor) -> Tensor:
    """Rows of all processes, by rank: [n, ...] -> [world * n, ...], with the exact gradient."""
    return x if world() == 1 else _Gather.apply(x)


def mean(x: Tensor) -> Tensor:
    """Mean over processes, without gradient."""
    if world() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / world()


def merge(carry: Carry) -> Carry:
    """Sums added and rows concatenated over processes, the same on each."""
    if world() == 1:
        return carry
    sums = {k: v.clone() for k, v in carry.sums.items()}
    for v in sums.values():
        dist.all_reduce(v)
    return Carry(sums, {k: gather(v) for k, v in carry.rows.items()})


def full(x: Tensor) -> Tensor:
    """The whole of a tensor that is sharded over processes, all of which must ask; any other tensor as it is."""
    whole: Tensor = x.full_tensor() if hasattr(x, "full_tensor") else x  # a DTensor, whose class takes a second to import
    return whole


def own(x: Tensor) -> Tensor:
    """This process's shard of a sharded tensor, in place; any other tensor as it is."""
    shard: Tensor = x.to_local() if hasattr(x, "to_local") else x
    return shard


def shard_like(x: Tensor, like: Tensor) -> Tensor:
    """A tensor that every process has whole, sharded as ``like`` is; as it is where that is not."""
    if not hasattr(like, "full_tensor"):
        return x
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(x.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def norms(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Euclidean norm of each of one or more tensors, [] each; of sharded ones those of the whole, on every process."""
    norms = torch._foreach_norm([own(x) for x in tensors])
    if not hasattr(tensors[0], "full_tensor"):
        return tuple(norms)
    squares = torch.stack(norms).square()
    dist.all_reduce(squares)
    return squares.sqrt().unbind()


def gather_objects(value: Any) -> list[Any]:
    """A small plain value (dicts, lists, numbers, text) of every process, by rank."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def from_first(value: Any) -> Any:
    """A small plain value of the first process, on all; the others wait for as long as that one lives, however long it works.

    Raises:
        Lost: the first process ended.
    """
    if world() == 1:
        return value
    store, key = dist.distributed_c10d._get_default_store(), f"gnothi from first {next(_turns)}"
    if rank() == 0:
        store.set(key, json.dumps(value))
        return value
    while not store.check([key]):
        word = _word(0) if store.check([_key("place", 0)]) else None
        if word:
            raise _lost({0: word}, RuntimeError(word))
        time.sleep(0.05)
    return json.loads(store.get(key))


_turns = itertools.count()
"""How often the first process was waited for; all processes count alike."""


def join(x: Tensor) -> Tensor:
    """Rows of all processes, by rank, however many each has; without gradient: [n, D] -> [sum of all n, D], on the device of ``x``."""
    if world() == 1:
        return x
    counts = gather_objects(len(x))
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    padded = torch.zeros(max(counts), *x.shape[1:], dtype=x.dtype, device=device)
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)]).to(x.device)
