"""For tests of faults: gnothi in processes of its own, their children, and disks that are small."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from gnothi.randomness import generator

HERE = Path(__file__).parent
SMALL = ["--method", "dino", "--epochs", "4", "--device", "cpu"]
for setting in (
    "backbone.args.widths=[16,16,16,16]", "method.hidden=16", "method.out=8", "method.prototypes=256", "views.size=16", "data.holdout=0",
    "training.batch=8", "training.threads=1", "training.checkpoint_every=4 steps", "training.log_every=1 steps",
):  # fmt: skip
    SMALL += ["--set", setting]


def begin(*args: object, **more: object) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent), **more.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-m", "gnothi", *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, **more
    )


def end(process: subprocess.Popen[str], seconds: float = 300) -> tuple[int, str]:
    """The exit code, and what was said on standard error."""
    try:
        said = process.communicate(timeout=seconds)[1]
    finally:
        process.kill()
    return process.returncode, said


def script(code: str, *args: object, seconds: float = 300, **more: object) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own, beside the helpers of the tests."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}:{HERE.parent}"}
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, env=env, timeout=seconds, **more)


def without_rights() -> None:
    """For a process before it starts: root's leave to pass over the rights of files, where it has it, is given up (Linux, capabilities(7))."""
    drop, override, read_search = 24, 1, 2
    for capability in (override, read_search):
        ctypes.CDLL(None).prctl(drop, capability, 0, 0, 0)


def until(true: Callable[[], object], seconds: float = 300) -> None:
    """Wait for something."""
    last = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < last, "waited in vain"
        time.sleep(0.005)


def children(pid: int) -> list[int]:
    """The processes that a process started and that live."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def noise(path: Path, n: int = 48, side: int = 16) -> Path:
    """Random images as an .npz."""
    images = torch.randint(256, (n, side, side, 3), generator=generator(0, "images"), dtype=torch.uint8)
    np.savez(path, images=images.numpy(), labels=np.arange(n) % 3)
    return path


def pictures(folder: Path, n: int = 48, side: int = 24) -> Path:
    """Random images as files."""
    from PIL import Image

    folder.mkdir()
    for i, image in enumerate(torch.randint(256, (n, side, side, 3), generator=generator(0, "pictures"), dtype=torch.uint8)):
        Image.fromarray(image.numpy()).save(folder / f"{i:03d}.png")
    return folder


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[Callable[[int], None]]:
    """A file system of so many bytes at a place; gives a function that changes them. Skips where mounting is not permitted."""
    place.mkdir()

    def mount(option: str) -> int:
        return subprocess.run(["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(place)], capture_output=True).returncode

    if os.geteuid() or mount(f"size={size}"):
        pytest.skip("mounting a small disk is not permitted here")
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", str(place)], check=True) and None
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
