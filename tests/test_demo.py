"""The demo at a small size, also killed on its way; and as it is."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gnothi import demo
from gnothi.contracts import SettingError
from gnothi.data import DataSpec
from gnothi.encoders import load
from gnothi.training import checkpoint

NAMES = ["pixels", "hog", "colour", "untrained", "trained"]
DATA = {"per_class": 12, "per_class_test": 6}
SETTINGS = {
    "data": DATA,
    "backbone": {"args": {"widths": [16, 16, 16, 16]}},
    "training": {"epochs": 4, "batch": 32, "threads": 1, "checkpoint_every": "3 steps"},
}
DRIVER = """
import sys
import torch
sys.path.insert(0, sys.argv[2])
torch.set_num_threads(1)
import test_demo
from gnothi import cli
test_demo.shrink(setattr)
sys.argv = ["gnothi", "demo", "--out", sys.argv[1]]
cli.main()
"""


def shrink(put: object) -> None:
    """The demo on few tiles with a small network, without ONNX; ``put`` is ``setattr`` or a monkeypatch's."""
    put(demo, "train", functools.partial(demo.train, settings=SETTINGS))  # type: ignore[operator]
    put(demo.evaluate, "run", functools.partial(demo.evaluate.run, settings=DataSpec(**DATA)))  # type: ignore[operator]
    put(demo, "export", functools.partial(demo.export, onnx=False))  # type: ignore[operator]


def killed(out: Path, how: signal.Signals, line: str, file: str) -> tuple[int, str]:
    """Start the demo in a process of its own, and end it once it has said a line and a file is there."""
    command = [sys.executable, "-c", DRIVER, str(out), str(Path(__file__).parent)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as began:
        assert began.stderr is not None
        heard = ""
        while line not in heard and began.poll() is None:
            heard += began.stderr.readline()
        while not (out / file).exists() and began.poll() is None:
            time.sleep(0.005)
        began.send_signal(how)
        return began.wait(60), heard + began.stderr.read()


def test_a_demo_killed_twice_goes_on_and_ends_as_an_unbroken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, whole = tmp_path / "killed", tmp_path / "whole"
    code, heard = killed(out, signal.SIGINT, "1/4", "metrics.jsonl")
    assert code == 130 and "the same command goes on" in heard.splitlines()[-1] and "--resume" not in heard, heard
    assert killed(out, signal.SIGKILL, "3/4", "results.json")[0] == -signal.SIGKILL
    shrink(monkeypatch.setattr)
    lines: list[str] = []
    done = demo.demo(out, say=lines.append)
    assert [line[:3] for line in lines] == ["2/4", "3/4", "4/4"]  # what was learned is kept
    demo.train(demo.DATA, out=whole)
    (a, _), (b, _) = (checkpoint.read(checkpoint.newest(folder)) for folder in (out, whole))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    table = [(r["metric"], r["encoder"]) for r in json.loads((out / "results.json").read_text())]
    assert table == [(metric, name) for metric in ("knn", "linear") for name in NAMES]
    assert all(r.low <= r.value <= r.high and r.n == 16 * DATA["per_class_test"] for r in done.results)
    assert "<html" in done.page.read_text(encoding="utf-8")
    image = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load(str(done.exported)).embed(image), load(str(whole)).embed(image))


def test_a_folder_with_another_run_is_not_taken_for_the_demo_s(tmp_path: Path) -> None:
    (tmp_path / "verdict.json").write_text("{}")
    (tmp_path / "spec.json").write_text(json.dumps({"source": {"name": "cells"}}))
    with pytest.raises(SettingError, match="is a run on cells, not the demo's; --out takes another folder"):
        demo.demo(tmp_path, say=lambda text: None)


@pytest.mark.slow
def test_the_demo_learns_what_it_promises(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gnothi", "demo", "--json", "--out", str(tmp_path / "run")], capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["verdict"]["verdict"] == "healthy"
    assert json.loads((tmp_path / "run/results.json").read_text()) == said["results"]
    knn = {r["encoder"]: r["value"] for r in said["results"] if r["metric"] == "knn"}
    assert list(knn) == NAMES
    assert knn["trained"] >= 0.80 and knn["trained"] >= knn["untrained"] + 0.12 and knn["trained"] > knn["colour"]
    assert all({"low", "high", "n", "protocol"} <= set(r) for r in said["results"])
    assert (tmp_path / "run/report.html").stat().st_size > 10_000 and (tmp_path / "run/encoder/config.json").exists()
