"""How long an arm trains for a given time, on a clock that the tests set."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gnothi import plan, pretrain
from gnothi.comparison import compare
from gnothi.comparison.budget import Cost, budget
from gnothi.contracts import SettingError
from gnothi.training import learner
from gnothi.training.objective import Objective


def cost(step: float, fixed: float) -> Cost:
    return Cost(epochs=10.0, steps=70, per_epoch=7, step_seconds=step, fixed_seconds=fixed)


@pytest.mark.parametrize(("step", "fixed", "seconds"), [(0.5, 0.0, 10.0), (0.3, 1.7, 10.0), (0.1, 0.0, 0.3), (2.0, 1.0, 3.0)])
def test_a_time_holds_the_most_steps_that_fit(step: float, fixed: float, seconds: float) -> None:
    found = budget([cost(step, fixed)], seconds)
    steps = 0
    while fixed + (steps + 1) * step <= seconds + 1e-9:
        steps += 1
    assert found.steps == steps and round(found.epochs * 7) == steps
    assert found.seconds == pytest.approx(fixed + steps * step)


def test_without_a_time_an_arm_keeps_its_epochs() -> None:
    found = budget([cost(0.5, 1.0)])
    assert (found.epochs, found.steps, found.seconds) == (10.0, 70, 36.0)


def test_the_fastest_look_counts() -> None:
    assert budget([cost(0.9, 1.0), cost(0.5, 3.0), cost(0.7, 2.0)], 11.0) == budget([cost(0.5, 1.0)], 11.0)


def test_too_short_a_time_is_refused_with_the_least_that_is_enough() -> None:
    with pytest.raises(SettingError, match="--seconds must be enough for one step, health and k-NN along the way, 3.5 s, got 3"):
        budget([cost(0.5, 3.0)], 3.0)


class Clock:
    """Stands still but while an objective computes: half a second, and a quarter more for each auxiliary."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_arms_of_equal_time_take_as_many_steps_as_fit_and_end_their_schedules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, forward = Clock(), Objective.forward

    def slow(self: Objective, *given: Any) -> Any:
        clock.now += 0.5 + 0.25 * len(self.auxiliaries)
        return forward(self, *given)

    monkeypatch.setattr(Objective, "forward", slow)
    for module in (plan, pretrain, learner):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=clock.monotonic))
    images = torch.arange(64 * 16 * 16 * 3).remainder(251).reshape(64, 16, 16, 3).byte().numpy()
    np.savez(tmp_path / "tiny.npz", images=images, labels=np.arange(64) % 4)
    settings = {"training": {"batch": 16, "threads": 1}, "backbone": {"args": {"widths": [8, 8, 8, 8]}}, "method": {"hidden": 8, "out": 8}}
    data = str(tmp_path / "tiny.npz")
    done = compare(data, auxiliaries=["none", "rotation"], seconds=10.0, settings=settings, out=tmp_path / "cmp", quiet=True)
    rows = {row["arm"]: row for row in done.record["table"]}
    assert {name: row["steps"] for name, row in rows.items()} == {"simclr": 20, "simclr+rotation": 13}
    assert {name: row["planned_seconds"] for name, row in rows.items()} == {"simclr": 10.0, "simclr+rotation": 9.75}
    assert [run["steps"] for run in done.record["runs"]] == [20, 13]
    assert [run["seconds"] for run in done.record["runs"]] == pytest.approx([10.0, 9.75], abs=0.06)  # verdicts keep a tenth
    assert all(abs(row["off_seconds"]) < 0.006 for row in rows.values())
    for run in ("simclr-seed0", "simclr+rotation-seed0"):
        last = [line for line in pretrain_lines(tmp_path / "cmp" / run) if '"lr"' in line][-1]
        assert '"step": ' + str(rows[run.removesuffix("-seed0")]["steps"]) in last


def pretrain_lines(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text().splitlines()
