"""The sweep: arms that diverge, and names that are wrong; nothing learns here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments import cifar_sweep
from gnothi.contracts import RunError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Methods that were trained, in order; VICReg diverges, and the disk is full for BYOL."""
    found: list[str] = []

    def train(data: str, *, out: Path, settings: dict[str, Any]) -> Any:
        found.append(settings["method"]["name"])
        if found[-1] == "vicreg":
            raise RunError('term "vicreg" became nan at step 7; lower optimiser.lr; last checkpoint: there/step-5.safetensors')
        if found[-1] == "byol":
            raise RunError("it cannot be written: no space") from OSError(28, "no space")
        return SimpleNamespace(folder=out, verdict={"verdict": "healthy", "why": "so"})

    numbers = {"value": 0.5, "low": 0.4, "high": 0.6, "spectral": 0.7, "n": 9, "protocol": "so"}
    monkeypatch.setattr(cifar_sweep, "RESULTS", tmp_path / "found.json")
    monkeypatch.setattr(cifar_sweep, "train", train)
    monkeypatch.setattr(cifar_sweep, "load", lambda name: None)
    monkeypatch.setattr(cifar_sweep, "measured", lambda *_: numbers)
    return found


def test_an_arm_that_diverges_is_a_row_with_the_reason_and_the_next_ones_run(ran: list[str], tmp_path: Path) -> None:
    arm = {"training.epochs": 20}
    for _ in range(2):  # the second time nothing is asked again
        for method in ("vicreg", "simclr"):
            cifar_sweep.run(tmp_path / "images.npz", method, arm, 1)
    lost, good = json.loads(cifar_sweep.RESULTS.read_text()).values()
    assert ran == ["vicreg", "simclr"] and lost == {"method": "vicreg", "settings": arm, "failed": 'term "vicreg" became nan at step 7'}
    assert good.pop("processor") >= 0
    assert good == {
        "method": "simclr", "settings": arm, "value": 0.5, "low": 0.4, "high": 0.6, "spectral": 0.7, "verdict": "healthy", "why": "so"
    }  # fmt: skip
    with pytest.raises(RunError, match="no space"):
        cifar_sweep.run(tmp_path / "images.npz", "byol", arm, 1)
    assert len(cifar_sweep.known()) == 2


def test_the_rules_of_now_that_diverged_are_not_run_again(ran: list[str], tmp_path: Path) -> None:
    row = {"method": "vicreg", "settings": cifar_sweep.LONG, "failed": "nan"}
    cifar_sweep.RESULTS.write_text(json.dumps({"now": row}))
    assert cifar_sweep.of_now(tmp_path, tmp_path, "vicreg") == row and ran == []


def test_methods_and_data_are_looked_at_before_anything_trains(ran: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in ((["simclr", "simclrr"], "did you mean simclr?"), (["simclr"], "must hold train.npz")):
        with pytest.raises(SystemExit) as stopped:
            cifar_sweep.main([*words, "--data", str(tmp_path)])
        assert stopped.value.code == 2 and said in capsys.readouterr().err and ran == []


def test_arms_that_run_side_by_side_lose_nothing(tmp_path: Path) -> None:
    """Four processes that each add ten results to one file."""
    path = tmp_path / "results.json"
    path.write_text("{}")
    code = """
import json, sys, time
from pathlib import Path
from experiments.hours import one_at_a_time
path = Path(sys.argv[1])
for i in range(10):
    with one_at_a_time(path):
        known = json.loads(path.read_text())
        time.sleep(0.002)
        path.write_text(json.dumps(known | {f"{sys.argv[2]} {i}": i}))
"""
    started = [subprocess.Popen([sys.executable, "-c", code, str(path), str(n)], cwd=ROOT) for n in range(4)]
    assert [p.wait(timeout=120) for p in started] == [0] * 4
    assert len(json.loads(path.read_text())) == 40
