"""Processes of torchrun that end: the others say which in bounded time, and a restart goes on from the last checkpoint."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killer import same
from processes import SMALL, children, end, noise, until

from gnothi import distributed
from gnothi.training import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.ddp, pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")]
LONG = ("--epochs", "12")
"""So long that a process can be ended long before the last step."""


def launched(*args: object, restarts: int = 0, processes: int = 2) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "--max-restarts", str(restarts)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "-m", "gnothi", *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, process_group=0
    )


def worker(launcher: int, rank: int) -> int | None:
    """The process of a rank, by what it was started with."""
    for pid in children(launcher):
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"RANK={rank}".encode() in environment:
            return pid
    return None


def killed(launcher: subprocess.Popen[str], out: Path, rank: int) -> float:
    """Kill the process of a rank after its run's first checkpoint; when."""
    until(lambda: len(checkpoint.list_of(out)) > 0, seconds=300)
    pid = worker(launcher.pid, rank)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return time.monotonic()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise(tmp_path_factory.mktemp("data") / "noise.npz")


@pytest.fixture(scope="module")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "run"
    code, said = end(launched("train", data, *SMALL, *LONG, "--out", out), seconds=300)
    assert code == 0, said
    return out


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_is_named_by_the_other_which_stops_at_once(rank: int, data: Path, unbroken: Path, tmp_path: Path) -> None:
    run = launched("train", data, *SMALL, *LONG, "--out", tmp_path / "run")
    began = killed(run, tmp_path / "run", rank)
    code, said = end(run)
    assert code != 0 and time.monotonic() - began < 40
    words = f"gnothi: process {rank} of 2 (counted from 0) had to stop, and the others with it: {distributed.KILLED}"
    assert len(re.findall(re.escape(words), said)) == 1, said
    assert "gloo" not in said and said.count("Traceback") <= 1  # torchrun's own
    code, said = end(launched("train", data, *SMALL, *LONG, "--out", tmp_path / "run", "--resume"), seconds=300)
    assert code == 0, said
    assert same(tmp_path / "run", unbroken)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_of_three_processes_the_one_that_is_killed_is_named_once(rank: int, data: Path, tmp_path: Path) -> None:
    run = launched("train", data, *SMALL, *LONG, "--set", "training.batch=9", "--out", tmp_path / "run", processes=3)
    killed(run, tmp_path / "run", rank)
    code, said = end(run)
    assert code != 0 and re.findall(r"gnothi: (process \d+ of \d+)", said) == [f"process {rank} of 3"], said


@pytest.mark.parametrize("rank", [0, 1])
def test_an_elastic_restart_goes_on_from_the_last_checkpoint_and_ends_as_the_unbroken_run(
    rank: int, data: Path, unbroken: Path, tmp_path: Path
) -> None:
    run = launched("train", data, *SMALL, *LONG, "--out", tmp_path / "run", restarts=1)
    killed(run, tmp_path / "run", rank)
    code, said = end(run, seconds=300)
    assert code == 0, said
    assert len(re.findall(r"goes on after step \d+", said)) == 1
    assert same(tmp_path / "run", unbroken)


@pytest.mark.parametrize(("ended", "whom"), [(signal.SIGINT, "all, as Ctrl-C does"), (signal.SIGINT, "torchrun"), (signal.SIGTERM, "torchrun")])
def test_several_processes_that_are_told_to_stop_do_so_after_a_step_and_lose_nothing(
    ended: signal.Signals, whom: str, data: Path, unbroken: Path, tmp_path: Path
) -> None:
    words = ("train", data, *SMALL, *LONG, "--set", "training.checkpoint_every=100%", "--out", tmp_path / "run")
    run = launched(*words)
    until(lambda: (tmp_path / "run" / "metrics.jsonl").exists(), seconds=300)
    (os.killpg if whom.startswith("all") else os.kill)(run.pid, ended)
    code, said = end(run, seconds=60)
    assert code != 0
    stopped = {int(step) for step in re.findall(r"stopped after step (\d+) of \d+; go on with --resume", said)}
    assert len(stopped) == 1 and [checkpoint.step_of(p) for p in checkpoint.list_of(tmp_path / "run")] == [*stopped], said
    code, said = end(launched(*words, "--resume"), seconds=300)
    assert code == 0, said
    assert same(tmp_path / "run", unbroken)


FAILS = """
import sys
from gnothi import distributed
from gnothi.contracts import RunError
from gnothi.training.learner import Learner
step, which = Learner.step, int(sys.argv.pop())
def fails(self):
    if self.number == 3 and distributed.rank() == which:
        raise RunError("the third step was too much")
    step(self)
Learner.step = fails
from gnothi.cli import main
main()
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_the_error_of_one_process_is_told_once(rank: int, data: Path, tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text(FAILS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "fails.py")]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    args = ["train", str(data), *SMALL, "--out", str(tmp_path / "run"), str(rank)]
    done = subprocess.run([*command, *args], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode and [line for line in done.stderr.splitlines() if line.startswith("gnothi: ")] == [
        "gnothi: " + (f"process {rank} of 2 (counted from 0) had to stop, and the others with it: " if rank else "") + "the third step was too much"
    ], done.stderr


def test_a_process_is_alive_until_it_is_waited_for_or_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert distributed._alive(child.pid) and distributed._alive(os.getpid()) and socket.gethostname()
    child.kill()
    until(lambda: not distributed._alive(child.pid))  # a zombie, which nobody has waited for yet
    child.wait()
    assert not distributed._alive(child.pid)
    child.stdin.close()
