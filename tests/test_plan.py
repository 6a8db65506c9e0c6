"""What is counted of a run against a step of the whole batch, and what is made of it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from terminal import said
from torch.utils.flop_counter import FlopCounterMode

from gnothi import plan as planning
from gnothi.contracts import SettingError
from gnothi.forecast import Demand, Link, Plan, Rates, Taken, fit, forecast
from gnothi.models.blocks import activations, blocks
from gnothi.recipes.resolve import Resolved, resolve


def resolved(**settings: Any) -> Resolved:
    chosen = {"training": {"batch": 32, "threads": 1, "precision": "fp32"}, "data": {"holdout": 0.0}, "backbone": {"args": {"widths": [6, 8]}}}
    for key, value in settings.items():
        chosen[key] = {**chosen.get(key, {}), **value} if key != "backbone" else value
    return resolve("photos", recipe_name="any", settings={"views": {"size": 16}, **chosen}, device="cpu")


VIT = {"name": "micro-vit", "args": {"width": 24, "heads": 2, "depth": 3}, "patch_size": 2}


@pytest.mark.parametrize("settings", [{"method": {"name": "simclr", "hidden": 32}}, {"method": {"name": "dino", "hidden": 32}, "backbone": VIT}])
def test_a_few_images_tell_what_a_whole_batch_asks_for(settings: dict[str, Any]) -> None:
    """Operations and bytes of a step of 32, from steps of 8 and 4; crops exactly."""
    run = resolved(**settings)
    demand = planning.count(run)
    learner = planning.learner_of(planning.resized(run, 32), 10)
    with FlopCounterMode(display=False) as flops, activations(learner.objective) as kept:
        learner.step()
    assert 32 * demand.flops == pytest.approx(flops.get_total_flops(), rel=0.03)
    assert 32 * demand.kept + demand.once == pytest.approx(kept(), rel=0.03)
    assert demand.state == pytest.approx(
        sum(t.numel() * t.element_size() for t in learner.state().values()), abs=100
    )  # the sums of a line of metrics
    assert demand.learned == 4 * sum(p.numel() for p in learner.objective.parameters() if p.requires_grad)
    assert demand.crops == 4 * 3 * sum(c.size**2 for c in (*run.views.global_crops, *run.views.local_crops))


def test_batchnorm_waits_twice_a_pass_and_once_where_there_is_no_gradient() -> None:
    """For statistics, and for their gradients: of two stages, a shortcut and a stem, and of heads. BYOL: view by view, a teacher without gradient."""
    norms, head = 1 + 2 + 3, 1
    assert planning.count(resolved(method={"name": "simclr"})).waits == 2 * (norms + head) + 2
    assert planning.count(resolved(method={"name": "byol"})).waits == 2 * (2 + 1) * (norms + 2) + 2


def test_recomputing_is_counted() -> None:
    """Once more forward through the blocks, but for the last product of each, on which no gradient hangs; and less is kept."""
    plain, again = (planning.count(resolved(backbone=VIT, method={"name": "simclr"}, training={"recompute": r})) for r in (False, True))
    net = planning.build(resolved(backbone=VIT)).method.backbone
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        for block in blocks(net):
            block(torch.zeros(2, 65, 24))  # an image's two views
    assert again.flops - plain.flops == flops.get_total_flops() - 3 * 2 * (2 * 65) * 48 * 24 and again.kept < plain.kept / 2


def test_it_predicts_for_other_processes_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "calibrate", lambda *_: Rates((1e-11, 1e-9, 0.0, 1e-10, 0.01)))
    monkeypatch.setattr(planning, "link", lambda _: Link(1e-4, 1e9))
    run = resolved(training={"epochs": 3})
    found = planning.predict(run, processes=4, images=10**6)
    assert found.steps == 3 * (10**6 // 32)
    cut = Plan(10**6, 32, 3.0, 4, looks=planning.looks(run, found.steps, 10**6 // 32))
    expected = forecast(planning.count(run), cut, Rates((1e-11, 1e-9, 0.0, 1e-10, 0.01)), Link(1e-4, 1e9))
    assert (found.seconds, found.step_seconds) == (expected.seconds, expected.step_seconds)
    assert found.memory > expected.memory  # of what the process holds already
    told = said(
        "plan", "photos", "--processes", "4", "--images", "1e6", "--set", "training.epochs=3", "--set", "training.batch=32", "--device", "cpu"
    )
    assert told["cost"]["steps"] == found.steps and told["cost"]["hours"] == pytest.approx(told["cost"]["seconds"] / 3600)


def test_many_loader_processes_are_measured_by_whole_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven processes give seven batches, then the next step waits: 0.8 s a step, of which a median sees 0.1."""
    times = iter([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 5.0] * 10)
    clock = [0.0]

    class Bursts:
        batches = type("Views", (), {"close": lambda self: None})()

        def step(self) -> None:
            clock[0] += next(times)

    monkeypatch.setattr(planning.time, "monotonic", lambda: clock[0])
    assert planning.timed(Bursts(), torch.device("cpu"), 14, 14, True) == pytest.approx(0.8)  # type: ignore[arg-type]
    asked: list[Any] = []
    monkeypatch.setattr(planning, "timed", lambda learner, device, *more: asked.append(more) or 1.0)
    for workers in (0, 1, 2, 3, 15):
        planning.plan(replace(resolved(), workers=workers))
    assert asked == [(2, 4, False)] * 3 + [(6, 6, True), (30, 30, True)]


def test_health_and_knn_along_the_way_look_as_often_as_they_are_marked() -> None:
    run = resolved(training={"health_every": "25%", "evaluate_every": "3 steps"}, data={"holdout": 0.1})
    along = planning.Along(run)
    assert planning.looks(run, 20, 5) == 4 * planning.HEALTH_SAMPLE + 7 * (len(along.train) + len(along.test))


@pytest.mark.parametrize(
    ("processes", "images", "together", "words"),
    [
        (3, None, 1, "training.batch must be a multiple of training.accumulate times --processes, 3, got 32"),
        (2, 31, 1, "--images must be at least training.batch, 32, got 31"),
        (4, None, 3, "--processes must be a multiple of --together, 3, got 4"),
    ],
)
def test_what_cannot_be_cut_so_is_refused(processes: int, images: int | None, together: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "count", lambda _: pytest.fail("before anything is counted"))
    with pytest.raises(SettingError) as caught:
        planning.predict(resolved(), processes, images, together)
    assert str(caught.value) == words


def test_a_batch_by_rule_is_one_that_the_processes_of_a_prediction_can_share() -> None:
    by_rule = [resolve("photos", recipe_name="any", device="cpu", processes=n).spec.training.batch for n in (None, 3, 5)]
    assert by_rule == [128, 126, 125]


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("together", [1, 2])
def test_a_calibration_gives_rates_that_can_be(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a processor between 0.1 and 10,000 GFLOPs a second, whose steps it explains within a factor of four on any machine."""
    seen: list[Taken] = []
    monkeypatch.setattr(planning, "fit", lambda steps: seen.extend(steps) or fit(steps))
    rates = planning.calibrate(resolved(), together, Link(1e-5, 1e9))
    assert [step.images for step in seen] == [case[3] for case in planning.CASES]
    assert all(0.25 < rates.step(step.demand, step.images) / step.seconds < 4 for step in seen)
    assert 1e8 < 1 / max(rates.seconds[0], 1e-13) < 1e14
    held = [(step.demand.held(step.images), step.memory) for step in seen if step.memory is not None]
    assert len(held) >= 4 and all(counted < memory for counted, memory in held)
    assert all(0.5 < rates.memory(counted) / memory < 2 for counted, memory in held)


def test_what_processes_tell_each_other_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 1 s, of which an exchange takes a part, and never all."""
    seen: list[Taken] = []
    monkeypatch.setattr(planning, "_taken", lambda *_: [(1.0, 10**9), *[(1.0, 0)] * (len(planning.CASES) - 1)])
    monkeypatch.setattr(planning, "count", lambda _: Demand(1.0, 1.0, 0.0, 1.0, 10**6, 1, 5, 1.0))
    monkeypatch.setattr(planning, "fit", seen.extend)
    for bandwidth in (10**7, 10**3):
        planning.calibrate(resolved(), 2, Link(0.01, bandwidth))
    n = len(planning.CASES)
    assert [step.seconds for step in seen] == pytest.approx([1 - 0.1 - 0.06] * n + [planning.LEAST] * n)
    assert [step.memory for step in seen] == [10**9, *[None] * (n - 1)] * 2


@pytest.mark.parametrize(("together", "asked", "threads"), [(1, None, 6), (2, None, 3), (4, None, 1), (4, 5, 5)])
def test_processes_of_one_machine_share_its_cores(together: int, asked: int | None, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    manners: list[dict[str, Any]] = []
    monkeypatch.setattr(planning, "_taken", lambda _, manner, __: manners.append(manner) or [(1.0, 0)] * len(planning.CASES))
    monkeypatch.setattr(planning, "count", lambda _: Demand(1.0, 1.0, 0.0, 1.0, 10**6, 1, 5, 1.0))
    run = resolved(training={"threads": asked})
    planning.calibrate(replace(run, threads=asked or 6), together, Link(0.0, 1e9))
    assert manners[0]["threads"] == threads


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_peak_is_the_process_s_own() -> None:
    """Of a child whose parent once held 400 MB more than it ever does."""
    child = "import torch; from gnothi.plan import peak; print(peak(torch.device('cpu')))"
    parent = f"import subprocess, sys; x = bytearray(b'1') * (1 << 30); del x; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True)
    assert 1e8 < int(done.stdout) < 1e9


def test_a_peak_is_of_the_case_that_reached_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a process held at the most stands until a case goes above it."""
    peaks = iter([500, 600, 600, 900, *[900] * (len(planning.CASES) - 3)])
    monkeypatch.setattr(planning, "peak", lambda _: next(peaks))
    monkeypatch.setattr(planning, "resident", lambda: 400)
    monkeypatch.setattr(planning, "_case", lambda *_: resolved())
    monkeypatch.setattr(planning, "learner_of", lambda *_: None)
    monkeypatch.setattr(planning, "timed", lambda *_: 2.0)
    planning._take(0, str(tmp_path), 1, {"threads": torch.get_num_threads()}, "cpu")
    assert json.loads((tmp_path / "took").read_text()) == [[2.0, 200], [2.0, 0], [2.0, 500], *[[2.0, 0]] * (len(planning.CASES) - 3)]


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_hear_of_each_other() -> None:
    found = planning.link(torch.device("cpu"))
    assert 1e-7 < found.latency < 1 and 1e6 < found.bandwidth < 1e13
