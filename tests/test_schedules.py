from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gnothi import schedules
from gnothi.contracts import SettingError
from gnothi.schedules import cosine, linear, steps, warm_up_cosine

PROGRESS = st.floats(0, 1)


def test_cosine_has_its_ends_middle_and_quarter() -> None:
    assert [cosine(p, 2.0, 4.0) for p in (0, 0.25, 0.5, 1)] == pytest.approx([2, 3 - 2**-0.5, 3, 4])


def test_linear_reaches_its_end_and_stays() -> None:
    assert [linear(p, 1.0, 3.0, until=0.4) for p in (0, 0.1, 0.4, 0.9)] == pytest.approx([1, 1.5, 3, 3])
    assert linear(0.0, 1.0, 3.0, until=0.0) == 3


def test_warm_up_rises_in_a_line_to_the_peak_and_falls_by_half_a_cosine() -> None:
    assert [warm_up_cosine(p, 0.2, 10.0, 2.0) for p in (0, 0.1, 0.2, 0.6, 1)] == pytest.approx([0, 5, 10, 6, 2])


def test_no_warm_up_begins_at_the_peak_and_all_warm_up_ends_there() -> None:
    assert warm_up_cosine(0.0, 0.0, 3.0) == 3
    assert warm_up_cosine(0.999, 1.0, 3.0) == pytest.approx(2.997)


def test_the_cosine_equals_torch_s_annealing() -> None:
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.7)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=20, eta_min=0.1)
    for i in range(20):
        assert optimiser.param_groups[0]["lr"] == pytest.approx(cosine(i / 20, 0.7, 0.1), rel=1e-9)
        optimiser.step()
        schedule.step()


@given(PROGRESS, PROGRESS, st.floats(0, 1), st.floats(1, 2))
def test_cosine_moves_one_way_and_never_leaves_its_ends(p: float, q: float, start: float, end: float) -> None:
    low, high = sorted((p, q))
    assert start - 1e-9 <= cosine(low, start, end) <= cosine(high, start, end) + 1e-9 <= end + 2e-9


@given(PROGRESS, st.floats(0, 1), st.floats(0.001, 10))
def test_a_rate_lies_between_zero_and_its_peak(p: float, warm_up: float, peak: float) -> None:
    assert 0 <= warm_up_cosine(p, warm_up, peak) <= peak * (1 + 1e-12)


@pytest.mark.parametrize(
    ("duration", "expected"),
    [("500 steps", 500), ("1 step", 1), ("10 epochs", 310), ("1 epoch", 31), ("0.5 epochs", 16), ("5%", 50), (" 2.5 % ", 25), ("0 steps", 0)],
)
def test_durations_become_steps(duration: str, expected: int) -> None:
    assert steps(duration, per_epoch=31, total=1000) == expected


@pytest.mark.parametrize("wrong", ["5", "five epochs", "-3 steps", "10 minutes", "5 % of it", ""])
def test_a_duration_that_cannot_be_read_names_its_setting(wrong: str) -> None:
    with pytest.raises(SettingError, match=r"optimiser.warm_up must be a number with a unit.*got"):
        steps(wrong, 31, 1000, setting="optimiser.warm_up")


@pytest.mark.parametrize(("duration", "expected"), [("5%", 5), ("0.1%", 1), ("0.5 steps", 1), ("2 epochs", 20), ("100%", 100)])
def test_an_interval_is_at_least_one_step(duration: str, expected: int) -> None:
    assert schedules.interval(duration, 10, 100) == expected


@pytest.mark.parametrize("duration", ["0%", "0 steps", "0.0 epochs", "00%"])
def test_an_interval_of_nothing_is_refused(duration: str) -> None:
    with pytest.raises(SettingError, match=r'training.evaluate_every must be more than 0, got .*; "100%" means at the end only'):
        schedules.interval(duration, 10, 100, setting="training.evaluate_every")
