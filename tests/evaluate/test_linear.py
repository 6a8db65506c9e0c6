import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from gnothi.contracts import DataError, SettingError
from gnothi.data import Order, holdout
from gnothi.evaluate import linear
from gnothi.evaluate.linear import RATES, STRENGTHS, Rows, minimise, predict, sgd
from gnothi.randomness import generator

MODULE = sys.modules["gnothi.evaluate.linear"]  # `gnothi.evaluate.linear` itself is the function


def clouds(n, width=12, classes=4, seed=0, spread=1.5):
    g = generator(seed, "clouds")
    labels = torch.randint(classes, (n,), generator=g)
    centres = torch.randn(classes, width, generator=generator(99, "centres"))
    return centres[labels] + spread * torch.randn(n, width, generator=g), labels


@pytest.fixture
def exact(monkeypatch):
    monkeypatch.setattr(MODULE, "ITERATIONS", 2000)
    monkeypatch.setattr(MODULE, "GAIN", 1e-14)


@pytest.mark.parametrize("width", [12, 300])
@pytest.mark.parametrize("strength", [1.0, 0.03, 0.001])
def test_the_minimum_is_scikit_learns(exact, width, strength):
    x, y = clouds(200, width)
    x = x.double() * torch.logspace(-1, 1, width, dtype=torch.float64)  # uneven scales: what the preconditioning is for
    x -= x.mean(0)
    theirs = LogisticRegression(C=1 / (strength * len(x)), tol=1e-12, max_iter=100_000).fit(x.numpy(), y.numpy())
    found = minimise(x, y, 4, strength)
    assert np.allclose(found.weight.T.numpy(), theirs.coef_, atol=2e-4)
    assert np.allclose(found.logits(x).softmax(1).numpy(), theirs.predict_proba(x.numpy()), atol=1e-4)


def objective(fit, x, y, strength):
    return float(torch.nn.functional.cross_entropy(fit.logits(x), y) + strength / 2 * fit.weight.square().sum())


def test_where_the_search_starts_does_not_matter(exact):
    x, y = clouds(150, 20)
    x = (x - x.mean(0)).double()
    cold = minimise(x, y, 4, 0.01)
    warm = minimise(x, y, 4, 0.01, start=minimise(x, y, 4, 1.0))
    assert torch.allclose(cold.weight, warm.weight, atol=1e-4)
    assert objective(cold, x, y, 0.01) == pytest.approx(objective(warm, x, y, 0.01), abs=1e-9)


def test_the_quick_search_is_near_the_minimum():
    x, y = clouds(400, 64)
    x = x - x.mean(0)
    for strength in (1.0, 0.01):
        theirs = LogisticRegression(C=1 / (strength * 400), tol=1e-10, max_iter=10_000).fit(x.numpy(), y.numpy())
        best = -np.log(theirs.predict_proba(x.numpy())[np.arange(400), y]).mean() + strength / 2 * np.square(theirs.coef_).sum()
        assert objective(minimise(x, y, 4, strength), x, y, strength) <= best + 1e-3


def test_the_whole_protocol_by_scikit_learn(exact):
    """The same split, the same standardising, the same grid, in float64: the same choice and the same answers."""
    x, y = (t.numpy() for t in clouds(260, 10, spread=2.5))
    test, truth = (t.numpy() for t in clouds(150, 10, seed=1, spread=2.5))
    kept, held = holdout(Rows(y, None), 0.2, 0)

    def fitted(rows, strength):
        mean, std = x[rows].mean(0), x[rows].std(0)
        model = LogisticRegression(C=1 / (strength * len(rows)), tol=1e-10, max_iter=100_000).fit((x[rows] - mean) / std, y[rows])
        return lambda z: model.predict_proba((z - mean) / std)

    results = []
    for strength in STRENGTHS:
        p = fitted(kept, strength)(x[held])
        results.append(((p.argmax(1) == y[held]).mean(), np.log(p[np.arange(len(held)), y[held]]).mean(), strength))
        best = max(range(len(results)), key=lambda i: results[i][0])
        if len(results) - 1 - best >= 3:
            break
    chosen = max(results)[2]
    predictions, protocol, details = predict(x.astype(np.float64), y, test.astype(np.float64), truth)
    assert details["chosen"] == chosen and [t["setting"] for t in details["tried"]] == [r[2] for r in results]
    assert np.allclose([t["accuracy"] for t in details["tried"]], [r[0] for r in results])
    assert np.allclose(predictions.scores, fitted(np.arange(len(x)), chosen)(test), atol=1e-3)
    assert f"chosen among 13 on {len(held)} held-out training rows (seed 0), refitted on all 260" in protocol


def test_sgd_is_torchs(monkeypatch):
    x, y = clouds(70, 6)
    x = x.double()
    monkeypatch.setattr(MODULE, "EPOCHS", 5)
    monkeypatch.setattr(MODULE, "BATCH", 32)
    found = dict(sgd(x, y, 4, seed=3))
    assert tuple(found) == RATES
    for rate in (0.01, 1.0):
        layer = torch.nn.Linear(6, 4, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(0.01 * torch.randn(6, 4, generator=generator(3, "linear"), dtype=torch.float64).T)
            layer.bias.zero_()
        theirs = torch.optim.SGD(layer.parameters(), lr=rate * 32 / 256, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, 10)
        order = Order(70, 32, 3)
        for step in range(10):
            theirs.zero_grad()
            rows = order.rows(step)
            torch.nn.functional.cross_entropy(layer(x[rows]), y[rows]).backward()
            theirs.step()
            schedule.step()
        assert torch.allclose(found[rate].weight.T, layer.weight, atol=1e-10)
        assert torch.allclose(found[rate].bias, layer.bias, atol=1e-10)


@pytest.mark.parametrize("protocol", ["logistic", "sgd"])
def test_the_test_rows_choose_nothing(protocol):
    x, y = clouds(150)
    a = linear(x, y, *clouds(40, seed=1), protocol=protocol)
    b = linear(x, y, *clouds(90, seed=2), protocol=protocol)
    assert a.details["chosen"] == b.details["chosen"] and a.details["tried"] == b.details["tried"]
    assert a.protocol == b.protocol and a.n == 40 and a.seeds == (0,)
    assert linear(x, y, *clouds(40, seed=1), protocol=protocol) == a  # nothing is drawn from elsewhere
    assert a.value > 0.6


def test_groups_are_not_divided_by_the_choice(monkeypatch):
    x, y = clouds(120)
    groups, seen = np.array([f"g{i // 6}" for i in range(120)]), []
    real = MODULE._try
    monkeypatch.setattr(MODULE, "_try", lambda f, x, y, kept, held, *rest: seen.append((kept, held)) or real(f, x, y, kept, held, *rest))
    linear(x, y, *clouds(30, seed=1), groups=groups)
    kept, held = seen[0]
    assert not set(groups[kept]) & set(groups[held]) and len(held) > 10


@pytest.mark.parametrize("protocol", ["logistic", "sgd"])
def test_scale_shift_and_constant_features_change_nothing(protocol):
    x, y = clouds(150)
    test, truth = clouds(60, seed=1)
    plain, _, _ = predict(x.double(), y, test.double(), truth, protocol=protocol)
    change = torch.logspace(-4, 4, 12, dtype=torch.float64)
    other, _, _ = predict(x.double() * change + 5, y, test.double() * change + 5, truth, protocol=protocol)
    assert np.allclose(plain.scores, other.scores, atol=1e-3)
    flat, _, _ = predict(torch.cat([x, torch.full((150, 1), 7.0)], 1), y, torch.cat([test, torch.full((60, 1), 9.0)], 1), truth)
    assert np.isfinite(flat.scores).all()


def test_gaps_unknown_classes_and_names():
    x, y = clouds(150)
    test, truth = clouds(60, seed=1)
    names = [f"n{i}" for i in range(40)]
    gapped = linear(x, y * 10 + 3, test, torch.where(truth == 0, 38, truth * 10 + 3), names=names)
    assert gapped.details["classes"] == ["n3", "n13", "n23", "n33", "n38"]
    assert np.array(gapped.details["confusion"])[:, 4].sum() == 0  # never seen, never said
    assert gapped.value == pytest.approx(np.array(gapped.details["confusion"]).trace() / 60)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"protocol": "sdg"}, "did you mean sgd"),
        ({"train_labels": torch.zeros(50)}, "needs two classes"),
        ({"train": torch.full((50, 12), float("nan"))}, "train features must be finite numbers, row 0 is not"),
        ({"test_labels": [1]}, "test features and labels must be of one length"),
    ],
)
def test_a_mistake_is_one_line(change, line):
    x, y = clouds(50)
    test, truth = clouds(20, seed=1)
    with pytest.raises((SettingError, DataError), match=line):
        linear(**({"train": x, "train_labels": y, "test": test, "test_labels": truth} | change))
