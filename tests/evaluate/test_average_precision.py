"""Average precision: the note's numbers, a slow loop, scikit-learn, and resampling as drawing the images again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from gnothi.contracts import SettingError
from gnothi.evaluate.average_precision import KINDS, RESAMPLES, Ranking, average_precision, mean_average_precision, ranked, resampled
from gnothi.randomness import generator


def slow(flags, positives, kind):
    """By the definitions, point by point."""
    points, hits = [], 0
    for i, flag in enumerate(flags):
        hits += flag
        points.append((hits / positives, hits / (i + 1)))

    def best(recall):
        return max((p for r, p in points if r >= recall), default=0.0)

    if kind == "11-point":
        return sum(best(t) for t in np.arange(0.0, 1.1, 0.1)) / 11
    if kind == "101-point":
        return sum(best(t) for t in np.linspace(0, 1, 101)) / 101
    total, before = 0.0, 0.0
    for recall, precision in points:
        total += (recall - before) * (best(recall) if kind == "area" else precision)
        before = recall
    return total


@pytest.mark.parametrize(
    ("flags", "positives", "kind", "value"),
    [
        ([1, 0, 1, 1, 0, 0, 1, 0], 5, "11-point", 0.63312),
        ([1, 0, 1, 1, 0, 0, 1, 0], 5, "area", 0.61429),
        ([1, 0, 1, 1, 0, 0, 1, 0], 5, "no-envelope", 0.59762),
        ([1, 0, 1, 1, 0, 0, 1, 0], 5, "101-point", 0.61810),
        ([1], 2, "11-point", 0.54545),
        ([1], 2, "area", 0.5),
        ([1], 2, "no-envelope", 0.5),
        ([1], 2, "101-point", 0.50495),
    ],
)
def test_the_numbers_of_the_note(flags, positives, kind, value):
    assert average_precision(np.array(flags, dtype=bool), positives, kind) == pytest.approx(value, abs=5e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_slow_loop(kind):
    for case in range(20):
        g = generator(case, "flags")
        n = int(torch.randint(1, 30, (), generator=g))
        flags = (torch.rand(n, generator=g) < 0.4).numpy()
        positives = int(flags.sum()) + case % 3
        if positives:
            assert average_precision(flags, positives, kind) == pytest.approx(slow(flags, positives, kind), abs=1e-12)


def test_without_an_envelope_it_is_scikit_learn_s_where_scores_differ():
    g = generator(0, "scores")
    for _ in range(5):
        scores, truth = torch.rand(40, generator=g).numpy(), (torch.rand(40, generator=g) < 0.3).long().numpy()
        r = ranked(scores, truth)
        assert average_precision(r.right, r.positives.sum(), "no-envelope") == pytest.approx(average_precision_score(truth, scores))


def test_nothing_to_find_is_not_a_number_and_no_answer_is_nothing():
    assert np.isnan(average_precision(np.zeros(3, dtype=bool), 0)) and average_precision(np.zeros(0, dtype=bool), 2) == 0
    assert np.isnan(average_precision(np.zeros(0, dtype=bool), 0))
    none = np.zeros(0, dtype=int)
    value, each = mean_average_precision([Ranking(np.array([True]), np.array([0]), np.array([1])), Ranking(none, none, np.array([0]))], "area")
    assert value == 1 and np.isnan(each[1])


def test_ties_never_flatter_and_what_is_not_known_is_left_out():
    r = ranked(np.array([0.5, 0.5, 0.9, 0.5, 0.1]), np.array([1, 0, -1, 1, 1]))
    assert r.right.tolist() == [False, True, True, True] and r.images.tolist() == [1, 0, 3, 4] and r.positives.tolist() == [1, 0, 0, 1, 1]


@pytest.mark.parametrize("kind", ["11-point", "area", "101-point"])
def test_resampling_is_drawing_images_again(kind):
    g = generator(3, "ranking")
    images, n = torch.randint(12, (60,), generator=g).numpy(), 12
    right = (torch.rand(60, generator=g) < 0.4).numpy()
    positives = np.bincount(images[right], minlength=n) + 1
    several = [Ranking(right, images, positives), Ranking(right[:20], images[:20], np.bincount(images[:20][right[:20]], minlength=n))]
    drawn = resampled(several, kind, 7)
    rows = torch.randint(n, (RESAMPLES, n), generator=generator(7, "average precision")).numpy()
    for i in (0, 1, RESAMPLES - 1):
        values = []
        for r in several:
            flags = [flag for flag, image in zip(r.right, r.images, strict=True) for _ in range((rows[i] == image).sum())]
            values.append(slow(flags, r.positives[rows[i]].sum(), kind))
        assert drawn[i] == pytest.approx(np.mean(values), abs=1e-12)


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(SettingError, match="did you mean 11-point"):
        average_precision(np.ones(1, dtype=bool), 1, "11 point")
