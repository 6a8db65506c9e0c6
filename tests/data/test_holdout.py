import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnothi.contracts import DataError, SettingError
from gnothi.data import ArraySource, holdout


def source(labels=None, groups=None, n=None):
    n = n or len(labels if labels is not None else groups)
    return ArraySource(np.zeros((n, 5, 5), np.uint8), labels, groups=groups)


@given(st.lists(st.integers(-1, 3), min_size=2, max_size=60), st.floats(0.05, 0.95), st.integers(0, 9))
def test_every_class_gives_its_share_to_a_row(labels, fraction, seed):
    kept, held = holdout(source(labels), fraction, seed)
    assert sorted([*kept, *held]) == list(range(len(labels))) and len(kept) and len(held)
    total = min(max(round(fraction * len(labels)), 1), len(labels) - 1)
    assert len(held) == total
    for c in set(labels):
        share = labels.count(c) * total / len(labels)
        assert abs(sum(labels[row] == c for row in held) - share) < 1


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2)), min_size=2, max_size=60), st.floats(0.05, 0.95), st.integers(0, 9))
def test_no_group_is_divided(rows, fraction, seed):
    groups, labels = [f"g{g}" for g, _ in rows], [label for _, label in rows]
    if len(set(groups)) < 2:
        return
    kept, held = holdout(source(labels, groups), fraction, seed)
    assert sorted([*kept, *held]) == list(range(len(rows))) and len(kept) and len(held)
    assert not {groups[row] for row in kept} & {groups[row] for row in held}


def test_many_groups_come_near_to_the_share_of_every_class():
    groups = np.repeat(np.arange(200), 5)
    labels = (groups * 7919) % 4
    _, held = holdout(source(labels, groups), 0.2, 0)
    counts = np.bincount(labels[held], minlength=4)
    assert np.abs(counts - 0.2 * np.bincount(labels)).max() <= 5  # a group


def test_the_choice_is_a_function_of_the_seed():
    first, again, other = (holdout(source([0] * 100), 0.1, seed)[1].tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_all_rows_are_held_out_equally_often():
    times = np.zeros(10)
    for seed in range(600):
        times[holdout(source([0, 0, 0, 1, 1, 1, 1, 1, 1, 1]), 0.3, seed)[1]] += 1
    assert 120 < times.min() and times.max() < 240  # 180 expected, deviation 11


def test_what_cannot_be_divided_is_refused():
    with pytest.raises(SettingError, match="between 0 and 1, got 1"):
        holdout(source([0, 1]), 1.0, 0)
    with pytest.raises(DataError, match="at least 2 groups"):
        holdout(source(groups=["a", "a"]), 0.5, 0)
    with pytest.raises(DataError, match="at least 2 images"):
        holdout(source(n=1), 0.5, 0)
