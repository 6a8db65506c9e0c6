from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from torch import Tensor, nn
from torch.nn import functional as F
from toys import same

from gnothi.auxiliary import AuxiliarySpec
from gnothi.contracts import Encoding, RunError, Step, Views, Want
from gnothi.training import checkpoint
from gnothi.training.learner import Learner
from gnothi.training.objective import Objective
from gnothi.training.signals import Interrupted

ACCUMULATING = tuple(n for n in toys.NAMES if toys.METHODS[n][1].accumulates)


def objective(name: str, *, nudge: AuxiliarySpec | None = None, **settings: Any) -> Objective:
    method = toys.method(name, **settings).float()
    return Objective(method, {} if nudge is None else {"nudge": toys.Nudge(method, nudge)})


def lines(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Metrics without times."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    times = ("seconds", "images_per_second", "waiting")
    return [{k: v for k, v in line.items() if k not in times} for line in found if kind in (None, line["kind"])]


# ---- resume -------------------------------------------------------------------------------------
@pytest.mark.parametrize("optimiser", ["sgd", "adamw", "lars"])
@pytest.mark.parametrize("name", toys.NAMES)
def test_a_run_stopped_and_resumed_equals_an_unbroken_one_bit_for_bit(name: str, optimiser: str, tmp_path: Path) -> None:
    """Four epochs of two steps at once, and as two and two: parameters, optimiser, teacher, memories, metrics and order."""
    settings = {"norm": "batch", "backbone": toys.NormedBackbone}
    feeds = {k: toys.Feed() for k in ("whole", "first", "second")}
    sample = toys.views(16, dtype=torch.float32).images[0]
    nudge = AuxiliarySpec(start=0.3)

    def made(part: str, folder: str, seed: int = 0) -> Learner:
        more = {"optimiser": {"name": optimiser, "weight_decay_end": 0.3}, "training": {"clip": 0.5}, "folder": tmp_path / folder, "sample": sample}
        return toys.learner(objective(name, nudge=nudge, seed=seed, **settings), feeds[part], **more)

    whole = made("whole", "whole")
    whole.fit()
    first = made("first", "parts")
    while first.number < 4:
        first.step()
    first.save()
    second = made("second", "parts", seed=5)  # whatever it starts from is replaced
    second.resume(checkpoint.newest(tmp_path / "parts"))
    second.fit()
    assert same(whole.state(), second.state())
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")
    assert feeds["whole"].met == feeds["first"].met + feeds["second"].met == list(range(8))


class Dropping(toys.ToyBackbone):
    """Drops half of the pooled features; ``kept`` says which were left, a pass each."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []

    def forward(self, images: Tensor, want: Want = Want(), mask: Tensor | None = None) -> Encoding:
        encoding = super().forward(images, want, mask)
        left = F.dropout(torch.ones_like(encoding.pooled), 0.5, self.training)
        self.kept.append(left)
        return replace(encoding, pooled=encoding.pooled * left)


def test_dropout_is_that_of_the_step_also_after_a_stop(tmp_path: Path) -> None:
    def run(global_seed: int, steps: int, resume: bool = False) -> tuple[list[Tensor], Learner]:
        torch.manual_seed(global_seed)  # what happened before must not matter
        learner = toys.learner(objective("simclr", backbone=Dropping), toys.Feed(), total=4, folder=tmp_path)
        if resume:
            learner.resume(checkpoint.newest(tmp_path))
        for _ in range(steps):
            learner.step()
        return learner.objective.method.backbone.kept, learner

    whole, unbroken = run(1, 4)
    first, stopped = run(2, 2)
    stopped.save()
    second, resumed = run(3, 2, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole, [*first, *second], strict=True))
    assert same(unbroken.state(), resumed.state())
    assert len({tuple(kept.flatten().tolist()) for kept in whole}) == len(whole)


def test_lines_written_after_the_checkpoint_are_dropped_on_resume_and_so_is_half_a_line(tmp_path: Path) -> None:
    run = toys.learner(objective("simclr"), toys.Feed(), folder=tmp_path, training={"log_every": "1 step", "checkpoint_every": "3 steps"})
    for _ in range(3):
        run.step()
    run.save()
    run.step()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 2, "ep')
    again = toys.learner(objective("simclr"), toys.Feed(), folder=tmp_path, training={"log_every": "1 step"})
    again.resume(checkpoint.newest(tmp_path))
    assert [line["step"] for line in lines(tmp_path, "train")] == [1, 2, 3]
    again.fit()
    assert [line["step"] for line in lines(tmp_path, "train")] == list(range(1, 9))


def test_broken_images_and_time_are_remembered_over_a_stop(tmp_path: Path) -> None:
    feed = toys.Feed()
    feed.broken = {"x.png": ("cut short", 2)}
    run = toys.learner(objective("simclr"), feed, folder=tmp_path)
    run.seconds = 12.5
    run.save()
    feed = toys.Feed()
    feed.broken = {}
    again = toys.learner(objective("simclr"), feed, folder=tmp_path)
    again.resume(checkpoint.newest(tmp_path))
    assert feed.broken == {"x.png": ("cut short", 2)} and again.seconds == 12.5


# ---- the loop -----------------------------------------------------------------------------------
def test_a_line_of_metrics_is_the_mean_over_its_steps_and_says_the_rates(tmp_path: Path) -> None:
    fine, coarse = (
        toys.learner(objective("byol", norm="none"), toys.Feed(), folder=tmp_path / k, training={"log_every": v}, optimiser={"weight_decay_end": 0.1})
        for k, v in (("fine", "1 step"), ("coarse", "4 steps"))
    )
    fine.fit()
    coarse.fit()
    each, means = lines(tmp_path / "fine", "train"), lines(tmp_path / "coarse", "train")
    assert [line["step"] for line in means] == [4, 8] and [line["epoch"] for line in means] == [2, 4]
    for i, line in enumerate(means):
        assert line["loss"] == pytest.approx(sum(e["loss"] for e in each[4 * i : 4 * i + 4]) / 4, rel=1e-6)
        assert line["gradient_norm"] == pytest.approx(sum(e["gradient_norm"] for e in each[4 * i : 4 * i + 4]) / 4, rel=1e-6)
    for number, line in enumerate(each):
        lr = 0.05 * number / 2 if number < 2 else 0.025 * (1 + math.cos(math.pi * (number - 2) / 6))
        assert line["lr"] == pytest.approx(lr)
        assert line["momentum"] == pytest.approx(1 - 0.01 * (1 + math.cos(math.pi * number / 8)) / 2)
        assert line["weight_decay"] == pytest.approx(0.1 - 0.09 * (1 + math.cos(math.pi * number / 8)) / 2)


def test_marked_steps_measure_evaluate_and_save_and_the_last_step_always_does(tmp_path: Path) -> None:
    evaluated: list[int] = []

    def evaluate(method: nn.Module, step: Step) -> list[dict[str, Any]]:
        evaluated.append(step.number + 1)
        return [{"metric": "knn", "value": 0.5}]

    marks = {"log_every": "3 steps", "health_every": "1 epoch", "evaluate_every": "50%", "checkpoint_every": "5 steps", "keep": 9}
    sample = toys.views(8, dtype=torch.float32).images[0]
    run = toys.learner(objective("dino"), toys.Feed(), total=7, folder=tmp_path, training=marks, sample=sample, evaluate=evaluate)
    run.fit()
    assert [line["step"] for line in lines(tmp_path, "train")] == [3, 6, 7]
    assert [line["step"] for line in lines(tmp_path, "health")] == [2, 4, 6, 7]
    assert [line["step"] for line in lines(tmp_path, "evaluation")] == evaluated == [4, 7]
    assert [checkpoint.step_of(p) for p in checkpoint.list_of(tmp_path)] == [5, 7]
    assert {"std", "rankme", "teacher_entropy", "mean_entropy"} <= lines(tmp_path, "health")[0].keys()


def test_measuring_and_logging_change_nothing_of_the_run(tmp_path: Path) -> None:
    often, never = {"log_every": "1 step", "health_every": "1 step"}, {"log_every": "100 steps", "health_every": "100 steps"}
    sample = toys.views(8, dtype=torch.float32).images[0]
    runs = [
        toys.learner(objective("dino", norm="batch", backbone=toys.NormedBackbone), toys.Feed(), training=t, sample=s)
        for t, s in ((often, sample), (never, None))
    ]
    for run in runs:
        run.fit()
    assert same(dict(runs[0].objective.state_dict()), dict(runs[1].objective.state_dict()))


@pytest.mark.parametrize("clip", [0.02, 50.0])  # below and above the norm
@pytest.mark.parametrize("kind", ["global", "tensor"])
def test_clipping_equals_torch_s(kind: str, clip: float) -> None:
    run = toys.learner(objective("simclr"), toys.Feed(), training={"clip": clip, "clip_kind": kind})
    step = Step(0, 2, 8)
    run._backward(run.batches(run.number), step)
    grads = [p.grad.clone() for p in run.objective.parameters()]
    copies = [nn.Parameter(torch.zeros_like(g)) for g in grads]
    for c, g in zip(copies, grads, strict=True):
        c.grad = g.clone()
    norm = torch.nn.utils.clip_grad_norm_(copies, clip) if kind == "global" else torch.nn.utils.get_total_norm(grads)
    for c in copies if kind == "tensor" else ():
        torch.nn.utils.clip_grad_norm_([c], clip)
    torch.testing.assert_close(run._clip(), norm)
    for c, p in zip(copies, run.objective.parameters(), strict=True):
        torch.testing.assert_close(p.grad, c.grad)


@pytest.mark.parametrize("name", ["swav", "dino"])
def test_a_frozen_layer_neither_moves_nor_coasts_through_a_run(name: str) -> None:
    """Frozen for the first 40 % of steps, under weight decay; its gradient still counts in the norm that clips."""
    run = toys.learner(objective(name, frozen_until=0.4), toys.Feed(), total=10, optimiser={"weight_decay": 0.5, "warm_up": "0 steps"})
    start = run.objective.method.space.head.last.weight.clone()
    for number in range(6):
        run.step()
        assert torch.equal(run.objective.method.space.head.last.weight, start) == (number < 4), number


@pytest.mark.parametrize("name", toys.TEACHERS)
def test_the_teacher_follows_the_student_as_it_is_after_the_step(name: str) -> None:
    """Algorithm 1 of DINO and of MoCo v3: the optimiser first, then the teacher."""
    run = toys.learner(Objective(toys.method(name, momentum=0.5)), toys.Feed(dtype=torch.float64), optimiser={"warm_up": "0 steps"})
    method = run.objective.method
    for slow, online in ((method.slow, method.backbone), (method.space.slow, method.space.head)):
        before, old = toys.parameters(slow), toys.parameters(online)
        momentum = method.space.momentum(Step(0, run.number, run.total))
        run.step()
        new = toys.parameters(online)
        for key in before:
            torch.testing.assert_close(slow.state_dict()[key], momentum * before[key] + (1 - momentum) * new[key], rtol=0, atol=1e-14)
        assert any((new[key] - old[key]).abs().max() > 1e-6 for key in old)


# ---- accumulation -------------------------------------------------------------------------------
@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("name", ["byol", "simsiam", "dino"])
def test_accumulation_equals_the_joint_batch(name: str, parts: int) -> None:
    states = []
    for accumulate in (1, parts):
        run = toys.learner(Objective(toys.method(name)), toys.Feed(dtype=torch.float64, n_local=1), total=4, training={"accumulate": accumulate})
        run.fit()
        states.append(dict(run.objective.state_dict()))
    for key in states[0]:
        torch.testing.assert_close(states[1][key], states[0][key], rtol=1e-10, atol=1e-12, msg=key)


def test_the_methods_that_accumulate_are_those_whose_loss_is_a_mean_over_images() -> None:
    """Half the batch twice gives the loss of the whole for these and for no other."""
    for name in toys.NAMES:
        method, views, step = toys.method(name), toys.views(8), toys.step(1)

        def loss(v: Views, method: nn.Module = method, step: Step = step, name: str = name) -> float:
            return Objective(method)(v, step)[1][name].item()

        halves = (loss(views.rows(slice(0, 4))) + loss(views.rows(slice(4, 8)))) / 2
        assert (abs(halves - loss(views)) < 1e-10) == (name in ACCUMULATING), name
    assert set(ACCUMULATING) == {"byol", "simsiam", "dino"}


# ---- what goes wrong ----------------------------------------------------------------------------
class Poisoned(toys.Feed):
    """Not-a-number in one image of step 5."""

    def __call__(self, number: int) -> Views:
        views = super().__call__(number)
        if number == 5:
            views.images[0][0, 0, 0, 0] = math.nan
        return views


@pytest.mark.parametrize("name", ["simclr", "dino"])
def test_a_term_that_is_not_finite_stops_at_once_and_names_itself_and_the_last_good_checkpoint(name: str, tmp_path: Path) -> None:
    run = toys.learner(objective(name), Poisoned(), folder=tmp_path)
    with pytest.raises(RunError) as caught:
        run.fit()
    assert str(caught.value).startswith(f'term "{name}" became nan at step 6;')
    assert str(caught.value).endswith(f"last checkpoint: {tmp_path}/step-0000003.safetensors")
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value)
    assert all(v.isfinite().all() for v in run.objective.state_dict().values())
    assert run.number == 5


def test_the_term_of_an_auxiliary_is_named_too_and_no_checkpoint_is_said_where_there_is_none() -> None:
    made = objective("simclr", nudge=AuxiliarySpec())
    with torch.no_grad():
        made.auxiliaries["nudge"].centre.fill_(math.inf)
    with pytest.raises(RunError, match=r'term "nudge" became inf at step 1;.*no checkpoint yet'):
        toys.learner(made, toys.Feed()).fit()


def test_a_gradient_that_is_not_finite_stops_before_it_moves_anything() -> None:
    made = objective("simclr", nudge=AuxiliarySpec())
    made.auxiliaries["nudge"].centre.register_hook(lambda g: g * math.nan)
    run = toys.learner(made, toys.Feed())
    before = toys.parameters(made)
    with pytest.raises(RunError, match='"gradient_norm" became nan at step 1'):
        run.fit()
    assert same(before, dict(made.state_dict()))


def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint(tmp_path: Path) -> None:
    import signal

    class Asks(toys.Feed):
        def __call__(self, number: int) -> Views:
            if number == 4:
                signal.raise_signal(signal.SIGTERM)
            return super().__call__(number)

    before = signal.getsignal(signal.SIGTERM)
    run = toys.learner(objective("simclr"), Asks(), folder=tmp_path)
    with pytest.raises(Interrupted, match="stopped after step 5 of 8; go on with --resume") as caught:
        run.fit()
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert checkpoint.step_of(checkpoint.newest(tmp_path)) == 5
