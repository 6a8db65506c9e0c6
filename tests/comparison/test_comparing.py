"""Comparisons end to end on 64 tiny images: what a run is, going on after a kill, failures, Python and the command line."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from terminal import SMALL, everything, gnothi, refused, said, write_data

import gnothi as package
from gnothi import evaluate, pretrain
from gnothi.comparison import table
from gnothi.comparison.page import command
from gnothi.contracts import RunError
from gnothi.training import checkpoint

SETTINGS = SMALL[2:]
ARGS = ("tiny.npz", "--methods", "simclr", "--auxiliaries", "none,rotation", "--epochs", "2", *SETTINGS, "--set", "data.holdout=0.25")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with data, which is the working directory."""
    with contextlib.chdir(tmp_path_factory.mktemp("compare")):
        write_data()
        yield Path.cwd()


@pytest.fixture(scope="module")
def whole(work: Path) -> dict[str, Any]:
    """What `gnothi compare --json` printed, of two seeds in cmp, never stopped."""
    return said("compare", *ARGS, "--seeds", "2", "--out", "cmp")


def results(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "results.json").read_text())


def timeless(value: Any) -> Any:
    """Without times."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if "seconds" not in k}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = checkpoint.newest(run)
    assert newest is not None
    return checkpoint.read(newest)[0]


# ---- what is in it ------------------------------------------------------------------------------
def test_every_arm_and_seed_is_a_run_and_a_row_has_its_arm(whole: dict[str, Any], work: Path) -> None:
    names = ["simclr", "simclr+rotation"]
    assert [row["arm"] for row in whole["table"]] == names and whole["failed"] == []
    assert {p.parent.name for p in work.glob("cmp/*/verdict.json")} == {f"{name}-seed{seed}" for name in names for seed in (0, 1)}
    assert [(r["arm"], r["seed"]) for r in results("cmp")["runs"]] == [(name, seed) for seed in (0, 1) for name in names]
    assert not list(work.glob("cmp/.features*"))


def test_a_run_is_the_one_that_train_makes(whole: dict[str, Any], work: Path) -> None:
    auxiliary = ("--method", "simclr", "--auxiliary", "rotation", "--epochs", "2", "--set", "seed=1", "--set", "data.holdout=0.25")
    said("train", "tiny.npz", "--out", "alone", *auxiliary, *SETTINGS)
    a, b = weights(Path("cmp/simclr+rotation-seed1")), weights(Path("alone"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_value_is_what_evaluate_says_of_the_run_and_its_answers(whole: dict[str, Any], work: Path) -> None:
    for run in results("cmp")["runs"]:
        one = evaluate.run("knn", [f"cmp/{run['run']}"], "tiny.npz", cache="features")[0]
        assert (run["value"], run["low"], run["high"], run["n"]) == (one.value, one.low, one.high, one.n)
        assert one.correct is not None and np.array_equal(table.unpack(run["correct"], run["n"]), one.correct)
    both = evaluate.run("knn", ["cmp/simclr-seed0", "cmp/simclr+rotation-seed0"], "tiny.npz", cache="features")[1]
    found = {(r["arm"], r["seed"]): table.unpack(r["correct"], r["n"]) for r in results("cmp")["runs"] if r["seed"] == 0}
    ours = table.difference(found, "simclr+rotation", "simclr")
    assert ours is not None and [ours["value"], *ours["over_images"]] == pytest.approx([both.details["paired"][k] for k in ("value", "low", "high")])


def test_curves_are_the_runs_own_k_nn_on_images_held_out(whole: dict[str, Any], work: Path) -> None:
    for run in results("cmp")["runs"]:
        lines = [json.loads(line) for line in (work / "cmp" / run["run"] / "metrics.jsonl").read_text().splitlines()]
        own = [m for m in lines if m["kind"] == "evaluation"]
        assert [(m["step"], m["value"], m["seconds"]) for m in own] == [(a["step"], a["value"], a["seconds"]) for a in run["along"]]
        assert run["along"][-1]["step"] == run["steps"] and len(own) > 1


def test_the_protocol_says_that_test_images_were_seen(whole: dict[str, Any]) -> None:
    assert any("test images were among those trained on, without their labels" in line for line in whole["protocol"])


def test_the_command_on_the_page_is_the_comparison(whole: dict[str, Any], work: Path) -> None:
    before = everything(work / "cmp")
    again = said(*shlex.split(command(Path("cmp"), results("cmp")["asked"]))[1:])
    assert again == whole
    assert {k for k, v in everything(work / "cmp").items() if before[k] != v} <= {"results.json", "report.html", "curves.svg", ".lock"}


# ---- going on -----------------------------------------------------------------------------------
def test_killed_in_the_middle_it_goes_on_to_what_it_would_have_been(whole: dict[str, Any], work: Path) -> None:
    args = ("compare", *ARGS, "--seeds", "2", "--set", "training.checkpoint_every=1 steps")
    with subprocess.Popen([sys.executable, "-m", "gnothi", *args, "--out", "killed"], stderr=subprocess.DEVNULL) as began:
        metrics = work / "killed/simclr+rotation-seed0/metrics.jsonl"
        while not (metrics.exists() and metrics.read_text().count('"train"') >= 2) and began.poll() is None:
            time.sleep(0.002)
        began.send_signal(signal.SIGKILL)
        began.wait(60)
    assert began.returncode == -signal.SIGKILL
    done = {r["run"]: (work / "killed" / r["run"] / "verdict.json").stat().st_mtime_ns for r in results("killed")["runs"]}
    assert 1 <= len(done) < 4
    said(*args, "--out", "killed")
    assert done == {run: (work / "killed" / run / "verdict.json").stat().st_mtime_ns for run in done}  # what was done is not done again
    ours, theirs = (timeless(results(folder)) for folder in ("killed", "cmp"))
    for part in ("runs", "table", "protocol", "data"):
        assert ours[part] == theirs[part]
    a, b = weights(work / "killed/simclr+rotation-seed0"), weights(work / "cmp/simclr+rotation-seed0")
    assert all(torch.equal(a[k], b[k]) for k in b)


def test_interrupted_it_says_where_and_that_the_same_command_goes_on(work: Path) -> None:
    args = ("tiny.npz", "--epochs", "400", *SETTINGS, "--out", "stopped")
    with subprocess.Popen([sys.executable, "-m", "gnothi", "compare", *args], stderr=subprocess.PIPE, text=True) as began:
        while not (work / "stopped/simclr-seed0/metrics.jsonl").exists() and began.poll() is None:
            time.sleep(0.01)
        began.send_signal(signal.SIGINT)
        err = began.communicate(timeout=60)[1]
    assert began.returncode == 130
    words = err.splitlines()[-1]
    assert words.startswith("gnothi: simclr, seed 0, stopped after step ") and words.endswith(" of 1600; the same command goes on")


CHANGED: list[tuple[tuple[str, ...], str]] = [
    (("--seeds", "3"), "--seeds=2, not 3; the same arguments go on with it, --out begins another"),
    (("--epochs", "3"), "--epochs=2.0, not 3.0; "),
    (("--methods", "moco"), "--methods=simclr, not simclr,moco; "),
    (("--set", "training.batch=8"), "training.batch=16, not 8; "),
    (("--set", "optimiser.lr=0.1"), "optimiser.lr=nothing, not 0.1; "),
    (("--vary", "optimiser.lr=0.1,0.2"), "--vary optimiser.lr=nothing, not 0.1,0.2; "),
    (("--metric", "linear"), "--metric=knn, not linear; "),
]


@pytest.mark.parametrize(("changed", "expected"), CHANGED, ids=[" ".join(changed) for changed, _ in CHANGED])
def test_other_arguments_are_refused_and_named(changed: tuple[str, ...], expected: str, whole: dict[str, Any], work: Path) -> None:
    refused(work, ("compare", *ARGS, "--seeds", "2", "--out", "cmp", *changed), f"cmp was begun with {expected}")


def test_images_that_changed_are_refused(work: Path) -> None:
    with np.load("tiny.npz") as packed:
        arrays = dict(packed)
    np.savez("changing.npz", **arrays)
    args = ("compare", "changing.npz", "--epochs", "1", *SETTINGS, "--out", "changing")
    said(*args)
    np.savez("changing.npz", **(arrays | {"images": 255 - arrays["images"]}))
    refused(work, args, "changing.npz is not as it was when changing began; --out begins another comparison")


def test_two_at_a_time_do_not_share_a_folder(whole: dict[str, Any], work: Path) -> None:
    with (work / "cmp/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(work, ("compare", *ARGS, "--seeds", "2", "--out", "cmp"), "cmp is in use by another run")


# ---- mistakes and failures ----------------------------------------------------------------------
NEW = ("compare", "tiny.npz", "--out", "new", *SETTINGS)
MISTAKES: list[tuple[tuple[str, ...], str]] = [
    (("compare", "--out", "new"), "DATA stands first or after --data, once"),
    (("compare", "tiny.npz", "--data", "tiny.npz", "--out", "new"), "DATA stands first or after --data, once"),
    (("compare", "tiny.npz"), "Missing option '--out'"),
    (("compare", "unlabelled.npz", "--out", "new"), "measuring needs labels"),
    (("compare", "no.npz", "--out", "new"), "no.npz: no such folder or file"),
    (("compare", "tiny.npz", "--out", "texts"), "--out texts holds a.txt and no comparison"),
    ((*NEW, "--seeds", "0"), "--seeds must be at least 1, got 0"),
    ((*NEW, "--epochs", "0"), "--epochs must be greater than 0, got 0"),
    ((*NEW, "--seconds", "-1"), "--seconds must be greater than 0, got -1"),
    ((*NEW, "--seconds", "5", "--epochs", "1"), "--epochs and --seconds both say how long a run is"),
    ((*NEW, "--seconds", "5", "--vary", "training.epochs=1,2"), "--seconds and training.epochs both say how long a run is"),
    ((*NEW, "--seconds", "1e-9"), "simclr: --seconds must be enough for one step"),
    ((*NEW, "--vary", "optimiser.lr"), "--vary takes KEY=V1,V2, like optimiser.lr=0.1,0.2, a key once, got 'optimiser.lr'"),
    ((*NEW, "--auxiliaries", "none", "rotation", "--set", "views.turns=true"), "simclr+rotation: auxiliary.rotation needs views with an up"),
    ((*NEW, "--methods", "simclr,dino", "--vary", "method.prototypes=0"), "dino,prototypes=0: method.prototypes must be greater than"),
    ((*NEW, "--methods", "simclrr"), "--methods: no such method 'simclrr'; did you mean simclr?"),
]


@pytest.mark.parametrize(("args", "expected"), MISTAKES, ids=[expected[:50] for _, expected in MISTAKES])
def test_a_mistake_is_named_before_anything_is_written(args: tuple[str, ...], expected: str, work: Path) -> None:
    refused(work, args, expected)


def test_several_processes_are_refused(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(work, NEW, "a comparison runs in one process")


def test_an_arm_that_breaks_in_its_first_steps_is_named_before_anything_trains(work: Path) -> None:
    before = set(everything(work))
    done = gnothi(*NEW, "--vary", "optimiser.lr=0.01,1e30")
    assert done.code == 1 and done.err.startswith('gnothi: simclr,optimiser.lr=1e+30: term "simclr" became nan at step ')
    assert set(everything(work)) == before


def test_a_full_disk_is_no_result_of_an_arm(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> pretrain.Run:
        raise RunError("no space left; make room and go on") from OSError(28, "No space left on device")

    args = ("compare", "tiny.npz", "--epochs", "1", *SETTINGS, "--out", "full")
    with monkeypatch.context() as broken:
        broken.setattr(pretrain, "train", full)
        done = gnothi(*args)
    assert done.code == 1 and "make room and go on" in done.err and results("full")["runs"] == []
    assert gnothi(*args).code == 0 and len(results("full")["runs"]) == 1


def test_a_run_that_breaks_later_is_a_result_and_the_others_go_on(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = pretrain.train

    def breaking(data: str, **given: Any) -> pretrain.Run:
        if given["settings"]["optimiser"]["lr"] == 2:
            raise RunError("term became nan")
        return train(data, **given)

    monkeypatch.setattr(pretrain, "train", breaking)
    args = ("compare", "tiny.npz", "--epochs", "1", *SETTINGS, "--vary", "optimiser.lr=2,0.01", "--out", "breaks")
    done = gnothi(*args)
    assert (done.code, done.err.splitlines()[-1]) == (1, "gnothi: 1 of 2 runs had to stop; simclr,optimiser.lr=2-seed0: term became nan")
    assert [row["verdicts"].get("failed", 0) for row in results("breaks")["table"]] == [1, 0]
    row = next(line for line in done.out.splitlines() if line.startswith("simclr,optimiser.lr=2 "))
    assert row.endswith("failed") and "simclr,optimiser.lr=2-seed0 had to stop: term became nan" in (work / "breaks/report.html").read_text()
    monkeypatch.undo()
    assert gnothi(*args, "--json").code == 1 and len(results("breaks")["runs"]) == 2  # it is not run again


# ---- ways to say it -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    "words",
    [("--methods", "simclr", "byol"), ("--methods", "simclr,byol"), ("--methods", "simclr, byol"), ("--methods", "simclr", "--methods", "byol")],
)
def test_lists_are_words_or_commas(words: tuple[str, ...], work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: dict[str, Any] = {}

    def hear(data: str, **asked: Any) -> None:
        heard.update(data=data, **asked)
        raise KeyboardInterrupt

    monkeypatch.setattr("gnothi.comparison.compare", hear)
    gnothi("compare", *words, "--vary", "views.area=[0.2,1.0],[0.5,1.0]", "optimiser.lr=1,2", "--data", "tiny.npz", "--out", "x")
    assert heard["data"] == "tiny.npz" and heard["methods"] == ["simclr", "byol"] and heard["auxiliaries"] == ["none"]
    assert heard["vary"] == {"views.area": [[0.2, 1.0], [0.5, 1.0]], "optimiser.lr": [1, 2]}


def test_python_has_the_same_and_all_arms_get_the_first_one_s_epochs(work: Path) -> None:
    settings = {"backbone": {"args": {"widths": [16] * 4}}, "training": {"threads": 1}, "method": {"hidden": 16, "out": 8}}
    assert package.compare is package.compare
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gnothi.recipes.rules._epochs", lambda facts, batch: 32 / batch)
        done = package.compare("tiny.npz", settings=settings, vary={"training.batch": [16, 32]}, out="python", quiet=True)
    assert [arm["epochs"] for arm in done.record["arms"]] == [2.0, 2.0]
    assert [run["steps"] for run in done.record["runs"]] == [8, 4]
    assert done.text().splitlines()[1].startswith("simclr,training.batch=16 ")
    assert "no labelled images were held out" in done.page.read_text()
