import itertools
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics

from gnothi.evaluate import Predictions, Result, paired, summary, wilson
from gnothi.evaluate.result import accuracy, auroc, top
from gnothi.randomness import generator


def drawn(n=300, classes=5, seed=0, uneven=True):
    g = generator(seed, "predictions")
    weights = torch.tensor([10.0, 5, 3, 1, 1])[:classes] if uneven else torch.ones(classes)
    truth = torch.multinomial(weights, n, replacement=True, generator=g)
    scores = torch.rand(n, classes, generator=g).round(decimals=1) + 0.4 * torch.nn.functional.one_hot(truth, classes)
    return Predictions(truth.numpy(), scores.numpy(), tuple("abcde"[:classes]))


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (1, 1), (81, 263), (15, 148), (9_000, 10_000)])
def test_the_interval_is_wilsons(right, n):
    theirs = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_the_interval_of_newcombe_1998_by_its_published_numbers():
    # Newcombe 1998, table II: 36 both, 12 the first only, 2 the second only, 0 neither; method 10 gives 0.0569 to 0.3404.
    a, b = np.repeat([1, 1, 0, 0], [36, 12, 2, 0]), np.repeat([1, 0, 1, 0], [36, 12, 2, 0])
    found = paired(a, b)
    assert (found.value, round(found.low, 4), round(found.high, 4), found.n) == (pytest.approx(0.2), 0.0569, 0.3404, 50)
    back = paired(b, a)
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))


@pytest.mark.parametrize("cells", [(0.70, 0.12, 0.06, 0.12), (0.10, 0.05, 0.05, 0.80), (0.9, 0.04, 0.01, 0.05)])
def test_the_paired_interval_covers_the_true_difference(cells):
    draws = torch.multinomial(torch.tensor(cells), 2000 * 200, replacement=True, generator=generator(0, "coverage")).view(2000, 200).numpy()
    hits = 0
    for row in draws:
        found = paired(row < 2, (row == 0) | (row == 2))
        hits += found.low <= cells[1] - cells[2] <= found.high
    assert 0.935 <= hits / 2000 <= 0.975


def test_the_same_answers_differ_by_nothing():
    half = np.arange(50) < 25
    found = paired(half, half)
    assert found.value == 0 and -0.1 < found.low <= 0 <= found.high < 0.1
    assert paired(np.ones(50), np.ones(50)).value == 0


@pytest.mark.parametrize("uneven", [True, False])
def test_details_are_scikit_learns(uneven):
    p = drawn(uneven=uneven)
    result = accuracy("knn", p, "drawn")
    assert result.value == pytest.approx(metrics.accuracy_score(p.truth, p.predicted))
    d = result.details
    assert d["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(p.truth, p.predicted))
    assert d["confusion"] == metrics.confusion_matrix(p.truth, p.predicted).tolist()
    areas = [metrics.roc_auc_score(p.truth == c, p.scores[:, c]) for c in range(5)]
    assert d["auroc"] == pytest.approx(np.mean(areas))
    assert d["counts"] == {c: int((p.truth == i).sum()) for i, c in enumerate("abcde")}


def test_a_class_without_test_rows_moves_neither_balance_nor_area():
    p = drawn(classes=4)
    q = Predictions(p.truth, np.pad(p.scores, ((0, 0), (0, 1))), (*p.classes, "none"))
    a, b = accuracy("knn", p, "").details, accuracy("knn", q, "").details
    assert (a["balanced_accuracy"], a["auroc"], a["top5"]) == (b["balanced_accuracy"], b["auroc"], b["top5"])
    assert auroc(Predictions(np.zeros(3, dtype=int), np.ones((3, 2)), ("a", "b"))) is None


def test_top_k_counts_no_class_without_a_vote():
    scores = np.array([[0.6, 0.4, 0, 0, 0, 0, 0], [0.6, 0.4, 0, 0, 0, 0, 0]])
    assert top(Predictions(np.array([1, 2]), scores, tuple("abcdefg")), 5) == 0.5
    distinct = drawn().scores + np.arange(5) * 1e-6
    truth = drawn().truth
    for k in (1, 2, 3):
        expected = metrics.top_k_accuracy_score(truth, distinct, k=k)
        assert top(Predictions(truth, distinct + 1e-9, tuple("abcde")), k) == pytest.approx(expected)


def test_a_result_is_plain_json():
    result = accuracy("knn", drawn(), "k-NN", encoder="pixels", seeds=(3,), extra=1)
    back = json.loads(json.dumps(result.to_dict()))
    assert back["interval"] == [result.low, result.high] == [back["low"], back["high"]]
    assert (back["metric"], back["n"], back["seeds"], back["encoder"], back["details"]["extra"]) == ("knn", 300, [3], "pixels", 1)


def test_seeds_are_summarised_by_their_t_interval():
    values = [0.80, 0.82, 0.87]
    results = [Result("knn", v, v - 0.1, v + 0.1, 960, "k-NN", "x", (i,)) for i, v in enumerate(values)]
    found = summary(results)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), low, high))
    assert found.seeds == (0, 1, 2) and found.details["std"] == pytest.approx(np.std(values, ddof=1))
    assert "3 seeds" in found.protocol and summary(results[:1]) == results[0]


def test_the_t_interval_covers_the_mean():
    draws = torch.randn(2000, 3, generator=generator(0, "seeds")).numpy()
    found = [summary([Result("m", float(v), 0, 0, 1, "") for v in row]) for row in draws]
    hits = sum(f.low <= 0 <= f.high for f in found)
    assert math.isclose(hits / 2000, 0.95, abs_tol=0.015)


def test_ends_stay_in_order_for_all_small_tables():
    for n in range(1, 5):
        for row in itertools.product(range(4), repeat=n):
            cells = np.array(row)
            found = paired(cells < 2, (cells == 0) | (cells == 2))
            assert -1 <= found.low <= found.value <= found.high <= 1
