import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightly.utils.benchmarking import knn_predict
from sklearn.neighbors import KNeighborsClassifier

from gnothi.contracts import DataError, SettingError
from gnothi.evaluate import PRESETS, knn
from gnothi.evaluate.nearest import neighbours, predict, preset
from gnothi.randomness import generator


def clouds(n, width, classes, seed=0, spread=1.0):
    g = generator(seed, "clouds")
    labels = torch.randint(classes, (n,), generator=g)
    centres = torch.randn(classes, width, generator=generator(99, "centres"))
    return centres[labels] + spread * torch.randn(n, width, generator=g), labels


def slow(train, labels, test, k, temperature):
    """Votes in float64, one test row and one neighbour at a time."""
    train, test = F.normalize(train.double(), dim=1), F.normalize(test.double(), dim=1)
    answers = []
    for row in test:
        near = sorted(((-float(row @ other), i) for i, other in enumerate(train)))[:k]
        votes = {}
        for minus, i in near:
            votes[int(labels[i])] = votes.get(int(labels[i]), 0.0) + math.exp(-minus / temperature)
        answers.append(min(votes, key=lambda c: (-votes[c], c)))
    return np.array(answers)


def answers(*args, **kwargs):
    predictions, _ = predict(*args, **kwargs)
    return np.array([int(c) for c in predictions.classes])[predictions.predicted]


SIX = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
SIX_LABELS = torch.tensor([7, 3, 3, 3, 5, 5])


def test_six_points_by_hand():
    # The query lies on the first point: similarities 1, .8, .6, so class 7 has exp(1/T), class 3 exp(.8/T) + exp(.6/T) + ...
    query = torch.tensor([[2.0, 0.0]])
    seven, three = math.exp(1 / 0.07), math.exp(0.8 / 0.07) + math.exp(0.6 / 0.07)
    predictions, _ = predict(SIX, SIX_LABELS, query, torch.tensor([7]), k=3, temperature=0.07)
    assert predictions.classes == ("3", "5", "7")
    assert predictions.scores[0] == pytest.approx([three / (seven + three), 0, seven / (seven + three)], rel=1e-6)
    assert knn(SIX, SIX_LABELS, query, torch.tensor([7]), k=3).value == 1
    # At T = 1 two neighbours of class 3 outvote the one of class 7.
    assert knn(SIX, SIX_LABELS, query, torch.tensor([3]), k=3, temperature=1).value == 1


@pytest.mark.parametrize(("k", "temperature", "tests"), [(1, 0.07, 7), (20, 0.07, 61), (50, 1.0, 30), (200, 0.1, 3)])
def test_it_is_the_slow_loop(k, temperature, tests):
    train, labels = clouds(211, 9, 5)
    test, truth = clouds(tests, 9, 5, seed=1)
    labels = labels * 10 - 3  # gaps and a negative
    assert (answers(train, labels, test, truth * 10 - 3, k, temperature) == slow(train, labels, test, k, temperature)).all()


def test_it_is_scikit_learn_with_the_same_weights():
    train, labels = clouds(500, 16, 7, spread=2)
    test, truth = clouds(100, 16, 7, seed=1, spread=2)
    theirs = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)).fit(train.numpy(), labels.numpy())
    predictions, _ = predict(train, labels, test, truth)
    assert np.allclose(predictions.scores, theirs.predict_proba(test.numpy()), atol=1e-5)
    assert knn(train, labels, test, truth).value == pytest.approx(theirs.score(test.numpy(), truth.numpy()))


def test_the_preset_of_lightly_is_lightly():
    p = preset("lightly")
    train, labels = clouds(600, 16, 7, spread=2)
    test, truth = clouds(80, 16, 7, seed=1, spread=2)
    theirs = knn_predict(F.normalize(test, dim=1), F.normalize(train, dim=1).T, labels, num_classes=7, knn_k=200, knn_t=0.1)[:, 0]
    assert (answers(train, labels, test, truth, p.k, p.temperature, distance=p.distance) == theirs.numpy()).all()


@pytest.mark.parametrize("name", ["solo-learn", "solo-learn-cosine"])
def test_the_presets_of_solo_learn_are_its_formulas(name):
    p = PRESETS[name]
    train, labels = clouds(300, 6, 4, spread=1.5)
    test, truth = clouds(50, 6, 4, seed=1, spread=1.5)
    raw = {"solo-learn": 1 / (torch.cdist(test.double(), train.double()) + 1e-5), "solo-learn-cosine": test.double() @ train.double().T}[name]
    values, near = raw.topk(20)
    weights = values if name == "solo-learn" else (values / 0.07).exp()
    scores = torch.zeros(50, 4, dtype=torch.float64).scatter_add_(1, labels[near], weights)
    assert (answers(train, labels, test, truth, p.k, p.temperature, distance=p.distance) == scores.argmax(1).numpy()).all()


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("alone", [False, True])
def test_blocks_do_not_matter(monkeypatch, distance, alone):
    train, _ = clouds(97, 5, 3)
    test = train if alone else clouds(23, 5, 3, seed=1)[0]
    rows, values = neighbours(train.double(), test.double(), 11, distance=distance, leave_one_out=alone)
    monkeypatch.setattr("gnothi.evaluate.nearest.WIDEST", 8)
    small_rows, small_values = neighbours(train.double(), test.double(), 11, distance=distance, leave_one_out=alone, memory=2000)
    assert (rows == small_rows).all()
    assert np.allclose(values, small_values, atol=1e-12)


@pytest.mark.parametrize("levels", [2, 50, 10**6])
@pytest.mark.parametrize("n", [1000, 1013])
def test_long_rows_are_searched_by_groups_with_the_same_answer(n, levels):
    """Also where many are equal: the lowest row numbers come first."""
    g = generator(0, "levels", n, levels)
    train, test = (torch.randint(levels, (m, 2), generator=g).double() for m in (n, 31))
    rows, values = neighbours(train, test, 7, distance="dot")
    products = (test[:, None] * train).sum(2)
    expected = products.sort(dim=1, descending=True, stable=True)
    assert (rows == expected.indices[:, :7].numpy()).all() and (values == expected.values[:, :7].numpy()).all()


def test_the_search_keeps_to_its_memory(monkeypatch):
    sizes = []
    real = torch.Tensor.topk
    monkeypatch.setattr(torch.Tensor, "topk", lambda self, *a, **k: sizes.append(self.numel() * self.element_size()) or real(self, *a, **k))
    train, labels = clouds(3000, 8, 3)
    knn(train, labels, train[:1000], labels[:1000], memory=1 << 20)
    assert len(sizes) > 10 and max(sizes) < 1 << 20


@pytest.mark.parametrize(("asked", "part"), [(50, 0.55), (2000, 0.75)])
@pytest.mark.parametrize("memory", [1 << 20, 1 << 22])
@pytest.mark.parametrize("width", [64, 1024])
def test_blocks_of_training_rows_keep_to_the_memory_too(width, memory, asked, part):
    """All tensors together, while 10 MB of rows pass by; in half precision, for what NumPy holds is not counted."""
    from benchmarks.local_memory import peak

    train = np.random.default_rng(0).standard_normal((2_500_000 // width, width)).astype(np.float16)
    most, _ = peak(torch.device("cpu"), lambda: neighbours(train, train[:asked].copy(), 5, memory=memory))
    assert memory / 5 < most < part * memory


def test_leaving_one_out_is_taking_the_row_out():
    train, labels = clouds(40, 4, 3, spread=2)
    expected = [slow(train[torch.arange(40) != i], labels[torch.arange(40) != i], train[i : i + 1], 5, 0.07)[0] for i in range(40)]
    assert (answers(train, labels, train, labels, 5) == expected).all()
    result = knn(train, labels, train, labels, 5)
    assert "leave one out" in result.protocol
    assert "leave one out" not in knn(train, labels, train.clone(), labels, 5).protocol
    assert knn(train, labels, train.clone(), labels, 5, leave_one_out=True).value == result.value
    assert knn(train, labels, train, labels, 1, leave_one_out=False).value == 1


@pytest.mark.parametrize("distance", ["cosine", "dot", "euclidean"])
def test_no_row_is_its_own_neighbour(distance):
    train = 10 * clouds(30, 4, 3)[0] + 5
    rows, _ = neighbours(train, train, 29, distance=distance, leave_one_out=True)
    assert (np.sort(rows, axis=1) == [[j for j in range(30) if j != i] for i in range(30)]).all()


def test_more_neighbours_than_rows_are_clipped_and_said():
    train, labels = clouds(9, 4, 3)
    test, truth = clouds(7, 4, 3, seed=1)
    assert knn(train, labels, test, truth, k=200).value == knn(train, labels, test, truth, k=9).value
    assert "k=9 (200 asked, there are no more)" in knn(train, labels, test, truth, k=200).protocol
    assert "k=8 (9 asked" in knn(train, labels, train, labels, k=9).protocol


def test_equal_votes_go_to_the_lower_class_and_equal_neighbours_to_the_lower_row():
    train = torch.tensor([[0.0, 1.0], [1.0, 0.0]] * 3)
    query = torch.tensor([[1.0, 1.0]])
    assert answers(train, [5, 2, 5, 2, 5, 2], query, [2], k=6) == [2]
    assert answers(train, [9, 2, 9, 2, 9, 2], query, [2], k=3) == [9]  # rows 0, 1, 2
    rows, _ = neighbours(torch.ones(50, 3), torch.ones(4, 3), 7)
    assert (rows == np.arange(7)).all()


def test_a_tiny_temperature_overflows_nothing():
    train, labels = clouds(50, 4, 3)
    predictions, _ = predict(train, labels, train, labels, 5, 1e-8)
    assert np.allclose(predictions.scores.sum(axis=1), 1)
    assert (answers(train, labels, train, labels, 5, 1e-8) == answers(train, labels, train, labels, 1)).all()


def test_a_memory_map_is_read_without_being_loaded_whole(tmp_path):
    train, labels = clouds(300, 6, 4, spread=2)
    np.save(tmp_path / "x.npy", train.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for distance in ("cosine", "euclidean"):
        a, b = (knn(x, labels, train[:50] * 1.01, labels[:50], distance=distance) for x in (mapped, train))
        assert a == b


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"temperature": 0}, "temperature must be positive, got 0"),
        ({"distance": "cosin"}, "did you mean cosine"),
        ({"test_labels": [1]}, "test features and labels must be of one length, got 6 and 1"),
        ({"test": SIX[:, :1]}, "must be of one width, got 2 and 1"),
        ({"train": SIX / 0}, "row 0 is not"),
        ({"test": SIX[:0], "test_labels": []}, "got 6 and 0"),
    ],
)
def test_a_mistake_is_one_line(change, message):
    good = {"train": SIX, "train_labels": SIX_LABELS, "test": SIX.clone(), "test_labels": SIX_LABELS}
    with pytest.raises((SettingError, DataError)) as caught:
        knn(**(good | change))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(SettingError, match="did you mean lightly"):
        preset("lightley")
