"""For tests of the command line: calls in this process, and a folder with data of many kinds."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from gnothi import cli
from gnothi.randomness import generator

SMALL = ("--epochs", "2", "--set", "training.batch=16", "--set", "training.threads=1", "--set", "backbone.args.widths=[16,16,16,16]")
SMALL += ("--set", "method.hidden=16", "--set", "method.out=8")
N, SIZE = 64, 16
TRAIN = ("train", "tiny.npz", "--out", "new")


class Done(NamedTuple):
    code: int
    out: str
    err: str


def torchrun(processes: int, *args: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in several processes of ``torchrun``, of a thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "gnothi", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)


def gnothi(*args: object) -> Done:
    """Run the command line in this process."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["gnothi", *map(str, args)]
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        sys.argv = before
    return Done(code, out.getvalue(), err.getvalue())


def said(*args: object) -> dict[str, Any]:
    """The one object of a call with --json, which is all that stands on standard output."""
    done = gnothi(*args, "--json")
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 1
    return json.loads(done.out)


def noise(*shape: int, high: int = 256) -> np.ndarray:
    return torch.randint(high, shape, generator=generator(0, "cli"), dtype=torch.int64).numpy()


def write_data() -> None:
    """Data of many kinds in the working directory."""
    labels = np.arange(N) % 4
    colour = noise(N, SIZE, SIZE, 3).astype(np.uint8)
    colour[np.arange(N), :, :, labels % 3] //= 4  # something to tell the classes by
    np.savez("tiny.npz", images=colour, labels=labels)
    np.savez("unlabelled.npz", images=colour)
    np.savez("grey.npz", images=colour[..., :1], labels=labels)
    np.savez("five.npz", images=noise(N, SIZE, SIZE, 5, high=65536).astype(np.uint16), labels=labels)
    np.savez("float.npz", images=(noise(N, SIZE, SIZE, 3) / 100 - 1).astype(np.float32), labels=labels)
    holes = noise(N, SIZE, SIZE, 3).astype(np.float32)
    holes[3, 2, 2, 1] = np.nan
    np.savez("holes.npz", images=holes)
    np.savez("one.npz", images=colour[:1])
    np.savez("objects.npz", images=np.array([{"a": 1}] * 5, dtype=object))
    np.savez("fewlabels.npz", images=colour, labels=labels[:10])
    Path("hello.npz").write_bytes(b"hello")
    Path("a-file").write_text("x")
    Path("empty").mkdir()
    Path("texts").mkdir()
    Path("texts/a.txt").write_text("x")


def everything(root: Path) -> dict[str, float]:
    return {str(p.relative_to(root)): p.stat().st_mtime for p in root.rglob("*")}


def refused(work: Path, args: tuple[str, ...], expected: str) -> None:
    """One line that holds what is expected, exit code 2, and nothing written."""
    before = everything(work)
    done = gnothi(*args)
    assert done.code == 2, done
    assert len(done.err.splitlines()) == 1 and done.err.startswith("gnothi: ") and not done.out, done
    assert expected in done.err
    assert set(everything(work)) == set(before)
