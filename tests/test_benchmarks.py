"""What the benchmarks count, at small sizes and against what must come out."""

from __future__ import annotations

import json
import mmap
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gnothi.randomness import generator
from gnothi.transfer import cluster, clusters

ROOT = Path(__file__).parent.parent


# ---- k-means -------------------------------------------------------------------------------------
def test_memory_of_k_means_is_the_same_for_four_times_as_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of tensors as they are made and freed; besides a few numbers a row for their order."""
    from benchmarks.local_memory import peak

    monkeypatch.setattr(clusters, "BLOCK", 128)
    width, k, found = 64, 10, []
    held = 500 * 4 * width  # bytes that the fit may hold
    for rows in (1000, 4000):
        np.save(tmp_path / "x.npy", torch.randn(rows, width, generator=generator(0, "rows")).numpy())
        x: Any = np.load(tmp_path / "x.npy", mmap_mode="r")
        most, _ = peak(torch.device("cpu"), lambda x=x: cluster(x, k, restarts=1, iterations=2, memory=held / 2**30))  # type: ignore[misc]
        found.append(most - 8 * 4 * rows)
    assert found[1] < found[0] + 4096
    assert found[1] < held + 12 * 128 * 4 * width + 12 * k * 8 * width


def test_the_benchmark_of_k_means_streams_and_says_what_it_measured(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    if not Path("/proc/self/status").exists():
        pytest.skip("the system does not say what memory no file backs")
    from benchmarks.clusters import measure, watched

    row = measure(rows=1500, width=16, clusters=8, memory=400 * 64 / 2**30, passes=3)
    assert (row["rows"], row["used"]) == (1500, 400) and 1 <= row["passes"] <= 3 and row["seconds"] >= 0

    def hold() -> int:
        pages = mmap.mmap(-1, 64 * 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # a tensor may get memory that the process holds already
        held = np.frombuffer(pages, dtype=np.uint8)
        held[:] = 1
        time.sleep(0.5)
        return len(held)

    count, seconds, most = watched(hold)
    assert count == 64 * 2**20 and seconds < 0.4  # of the processor, not of the clock
    assert 56 * 2**20 < most < 96 * 2**20


# ---- auxiliaries ---------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Operations of a step of SimCLR with a micro ResNet, beside rotations."""
    from benchmarks.auxiliaries import BESIDE, Case, flops, learner

    path = tmp_path_factory.mktemp("counted") / "noise.npy"
    np.save(path, torch.randint(256, (64, 32, 32, 3), generator=generator(0, "noise"), dtype=torch.uint8).numpy())
    names = ("nothing", "rotation, both views", "rotation, one view", "rotation, E-SSL's small crop")
    return {n: flops(learner(Case("simclr", n, BESIDE[n], backbone="micro-resnet", batch=8), str(path))) for n in names}


def test_a_turned_view_costs_what_a_view_costs(counted: dict[str, int]) -> None:
    base, both, one = (counted[n] for n in ("nothing", "rotation, both views", "rotation, one view"))
    assert both - base == 2 * (one - base)
    assert (one - base) / base == pytest.approx(0.5, rel=0.01)  # one of two views more; heads are small


def test_four_small_crops_cost_as_many_pixels(counted: dict[str, int]) -> None:
    """Four of 16 px have half the pixels of two of 32 px."""
    assert counted["rotation, E-SSL's small crop"] / counted["nothing"] == pytest.approx(1.5, rel=0.05)


# ---- an hour of training -------------------------------------------------------------------------
def test_what_grows_in_an_hour_is_found_with_its_rate_and_what_does_not_is_not() -> None:
    """Made samples: 30 MiB and 2 files an hour more, noise on the memory; the start is dear."""
    from benchmarks.hour import growth, rates

    noise, samples = torch.randn(400, generator=generator(0, "noise")).tolist(), []
    for i, extra in enumerate(noise):
        t = 10.0 * i
        memory = 300 + (500 if t < 300 else 0) + 30 * t / 3600 + extra
        samples.append({"seconds": t, "memory": memory, "files": 20 + 2 * t / 3600, "threads": 9, "step": 10 * t, "trained": t, "processor": 1.5 * t})
    found = growth(rates(samples))
    assert abs(found["memory"]["an hour"] - 30) < 2 and found["memory"]["low"] < 30 < found["memory"]["high"]
    assert abs(found["files"]["an hour"] - 2) < 1e-6 and abs(found["threads"]["an hour"]) < 1e-9


def test_a_run_that_is_slow_to_get_warm_is_measured_from_when_it_is() -> None:
    from benchmarks.hour import rates

    samples = [{"seconds": 10.0 * i, "memory": 600.0 if i < 90 else 700.0, "files": 20, "threads": 5, "step": 10 * i} for i in range(300)]
    assert [b["memory"] for b in rates(samples)] == [700.0] * 7


def test_a_step_that_grew_is_told_from_one_that_did_not_while_the_machine_slows_down() -> None:
    """Turns of two runs on a machine that takes ever longer; the old run's steps take 3 % longer by the clock, and as long by the processor."""
    from benchmarks.hour import compared

    noise = (0.01 * torch.randn(4, 16, generator=generator(2, "noise"))).exp().tolist()
    slower = [1 + i / 4 for i in range(16)]
    old, fresh = (
        [{"clock": 300 * grown * s * a, "processor": 500 * s * b} for s, a, b in zip(slower, *noise[2 * i : 2 * i + 2], strict=True)]
        for i, grown in enumerate((1.03, 1.0))
    )
    found = compared(old, fresh)
    assert found["clock"]["low"] > 1 and found["clock"]["low"] < 1.03 < found["clock"]["high"] and abs(found["clock"]["ratio"] - 1.03) < 0.01
    assert found["processor"]["low"] < 1 < found["processor"]["high"]


def test_a_run_that_is_held_does_nothing_until_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import hour

    code = """
import json, pathlib, sys, time
path = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])
path.mkdir()
with (path / 'metrics.jsonl').open('w') as file:
    for step in range(100000):
        print(json.dumps({'kind': 'train', 'step': 10 * step}), file=file, flush=True)
        time.sleep(0.02)
"""
    popen = subprocess.Popen
    monkeypatch.setattr(hour.subprocess, "Popen", lambda command, **more: popen([sys.executable, "-c", code, *command[4:]], **more))
    with hour.Trainer(tmp_path, tmp_path / "run") as run:
        took = run.turn(5)
        assert 1 < took["clock"] < 20  # 2 ms where nothing else takes time
        held = hour.newest(run.metrics)
        time.sleep(0.3)
        assert hour.newest(run.metrics) == held
        assert run.turn(2)["clock"] > 1 and hour.newest(run.metrics)["step"] >= held["step"] + 30
    assert run.process.returncode == -signal.SIGKILL


def test_a_sample_counts_a_process_and_what_it_started() -> None:
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("the system does not say what memory no file backs")
    from benchmarks.hour import sample

    code = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(); sys.stdin.readline(); p.kill(); p.wait()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as family:
        assert family.stdout and family.stdin
        family.stdout.readline()
        alone, both = sample(family.pid), 2
        assert (alone["processes"], alone["threads"]) == (both, both) and alone["files"] >= 6 and 1 < alone["memory"] < 60
        family.stdin.write(b"\n")
        family.stdin.flush()
        family.wait()


# ---- how cost grows ------------------------------------------------------------------------------
def test_a_row_measured_anew_replaces_its_own_and_no_other() -> None:
    from benchmarks.growth import ROWS, replaced

    known = [{**row, "step": 1.0} for row in ROWS if row["grows"] != "crops"] + [{"grows": "crops", "n": 1, "local": 0, "step": 1.0}]
    found = replaced(known, {"grows": "crops", "n": 4096, "local": 4, "step": 2.0})
    assert [r["step"] for r in found] == [1.0] * 7 + [2.0] + [1.0] * 5
    assert [r["step"] for r in replaced(found, {**ROWS[0], "step": 3.0})] == [3.0] + [1.0] * 6 + [2.0] + [1.0] * 5
    assert replaced([], {**ROWS[1], "step": 1.0}) == [{**ROWS[1], "step": 1.0}]


def test_images_are_written_before_the_process_that_is_measured_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its peak of memory would else be that of writing them."""
    from benchmarks import growth

    seen: list[tuple[int, ...]] = []

    def apart(benchmark: str, case: dict[str, Any]) -> dict[str, Any]:
        seen.append(np.load(case["data"], mmap_mode="r", allow_pickle=False).shape)
        return {**case["row"], "first step": 1.0, "step": 1.0, "images/s": 1.0, "memory": 2**20}

    monkeypatch.setattr(growth, "ROWS", [{"grows": "batch", "n": 50, "batch": 8}])
    monkeypatch.setattr(growth, "RESULTS", tmp_path / "growth.json")
    monkeypatch.setattr(growth, "apart", apart)
    growth.main([])
    assert seen == [(50, 32, 32, 3)] and growth.RESULTS.exists()


# ---- steps ---------------------------------------------------------------------------------------
def test_a_case_stands_beside_lightly_s_defaults_and_beside_lightly_alike() -> None:
    from dataclasses import asdict

    from benchmarks.step import CASES, kept

    of = {case.name: case for case in CASES}
    real = {"micro-resnet": 0.1, "micro-resnet fp32": 0.2, "micro-resnet lightly": 0.5, "micro-resnet lightly bf16": 0.3, "resnet18": 0.1}
    known = {name: {**asdict(of[name]), "real": real[name], "precision": of[name].precision or "bf16"} for name in reversed(real)}
    found = kept(known)
    assert list(found) == ["micro-resnet", "micro-resnet lightly bf16", "micro-resnet fp32", "micro-resnet lightly", "resnet18"]
    assert {name: row.get("lightly") for name, row in found.items()} == {
        "micro-resnet": {"defaults": 5.0, "alike": 3.0},
        "micro-resnet fp32": {"defaults": 2.5},
        "micro-resnet lightly": None,
        "micro-resnet lightly bf16": None,
        "resnet18": {},
    }


@pytest.mark.parametrize(("name", "apart", "fused"), [("micro-resnet", False, True), ("micro-resnet none of these", True, False)])
def test_a_case_is_timed_as_it_says(name: str, apart: bool, fused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many batches go through the network, and how the optimiser steps."""
    from dataclasses import replace

    from benchmarks import step
    from gnothi.training.learner import Learner

    np.save(tmp_path / "noise.npy", torch.randint(256, (32, 32, 32, 3), generator=generator(0, "noise"), dtype=torch.uint8).numpy())
    monkeypatch.setattr(step, "WARM", 0)
    made: list[Any] = []
    begin = Learner.__init__
    monkeypatch.setattr(Learner, "__init__", lambda self, *args, **more: (begin(self, *args, **more), made.append(self))[0])
    found = step.ours(replace(next(c for c in step.CASES if c.name == name), batch=8, steps=1), tmp_path / "noise.npy")
    learner = made[0]
    assert learner.every["log_every"] <= 20  # as in the whole run that these images would have, which is not one of 100,000 steps
    assert found["bare"] == pytest.approx(found["forward"] + found["backward"] + found["optimiser"])
    assert learner.objective.method.spec.joint_views is not apart and {g["fused"] for g in learner.optimiser.param_groups} == {fused}


def test_seconds_of_a_step_are_means_as_lightly_s_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 1, 1 and 4 s: a median hides what comes in bursts."""
    from dataclasses import replace

    from benchmarks import step

    np.save(tmp_path / "noise.npy", torch.randint(256, (32, 32, 32, 3), generator=generator(0, "noise"), dtype=torch.uint8).numpy())
    monkeypatch.setattr(step, "WARM", 0)
    seconds = iter([1.0, 0.5, 1.0, 0.5, 4.0, 2.0])  # of a step and of its views, in turn
    monkeypatch.setattr(step, "seconds_of", lambda action, device: next(seconds))
    found = step.ours(replace(step.CASES[0], batch=8, steps=3), tmp_path / "noise.npy")
    assert (found["real"], found["views"]) == (2.0, 1.0)


# ---- all of them ---------------------------------------------------------------------------------
def test_a_case_that_fails_is_said_at_the_end_and_the_others_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from benchmarks import ensemble
    from benchmarks.apart import Failed

    def apart(benchmark: str, case: dict[str, Any]) -> dict[str, Any]:
        if case["n"] == 2:
            raise Failed("no memory")
        shares = {"share of the products": 0.7, "by processor": 0.8, "share of the whole": 0.1}
        return {"n": case["n"], "fit": 1.0, "epochs": 3, "memory": 2**20, "descent": 0.001, **shares, "load": 0.5}

    monkeypatch.setattr(ensemble, "apart", apart)
    monkeypatch.setattr(ensemble, "RESULTS", tmp_path / "ensemble.json")
    (tmp_path / "ensemble.json").write_text('[{"n": 9}]')
    monkeypatch.setattr(sys, "argv", ["ensemble", "1", "2", "3"])
    with pytest.raises(SystemExit, match="failed: 2 images"):
        ensemble.main()
    assert [row["n"] for row in json.loads((tmp_path / "ensemble.json").read_text())] == [1, 3, 9]  # what stood there stays
    assert "no memory" in capsys.readouterr().err


def test_only_rows_that_are_missing_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import growth

    asked: list[dict[str, Any]] = []

    def apart(benchmark: str, case: dict[str, Any]) -> dict[str, Any]:
        asked.append(case["row"])
        return {**case["row"], "first step": 1.0, "step": 1.0, "images/s": 1.0, "memory": 2**20}

    monkeypatch.setattr(growth, "apart", apart)
    monkeypatch.setattr(growth, "write_images", lambda folder, row: folder)
    monkeypatch.setattr(growth, "RESULTS", tmp_path / "growth.json")
    (tmp_path / "growth.json").write_text(json.dumps([{**row, "step": 7.0} for row in growth.ROWS[2:]]))
    growth.main(["--missing"])
    assert asked == list(growth.ROWS[:2])
    assert [row["step"] for row in json.loads((tmp_path / "growth.json").read_text())] == [1.0, 1.0] + [7.0] * (len(growth.ROWS) - 2)


def test_lightly_reads_on_without_an_epoch_s_end_and_small_images_are_not_blurred() -> None:
    pytest.importorskip("lightly")
    from experiments import lightly_recipes as lightly

    images = torch.randint(256, (20, 32, 32, 3), generator=generator(0, "images"), dtype=torch.uint8).numpy()
    assert len(list(lightly.loader(images, "simclr", 8))) == 2 and len(list(lightly.loader(images, "simclr", 8, steps=7))) == 7
    blurs = {size: lightly.transform("simclr", size).transforms[0].transform.transforms[6].prob for size in (32, 96)}
    assert blurs == {32: 0.0, 96: 0.5}
