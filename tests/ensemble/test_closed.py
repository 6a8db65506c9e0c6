"""Combiners in closed form against scikit-learn, SciPy, slow solvers, and what must change nothing."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from torch import Tensor

from gnothi.contracts import DataError, SettingError
from gnothi.data import ArraySource, holdout
from gnothi.ensemble import COMBINERS, Ensemble, fit, members
from gnothi.ensemble.best import POWERS
from gnothi.ensemble.members import exponent, moments, spectrum
from gnothi.evaluate import knn
from gnothi.randomness import generator


def drawn(widths: tuple[int, ...] = (9, 14, 14), n: int = 400, seed: int = 0) -> list[Tensor]:
    """Members that share six factors and have noise and a mean of their own, float64."""
    g = generator(seed, "members")
    shared = torch.randn(n, 6, generator=g, dtype=torch.float64)
    return [
        0.4 * torch.randn(n, d, generator=g, dtype=torch.float64) + shared @ torch.randn(6, d, generator=g, dtype=torch.float64) + 1 for d in widths
    ]


def together(features: list[Tensor]) -> np.ndarray:
    """The concatenation of the members at unit length."""
    return torch.cat([F.normalize(x, dim=1) for x in features], dim=1).numpy()


def rotation(width: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(torch.randn(width, width, generator=generator(seed, "rotation"), dtype=torch.float64))[0]


def same_up_to_sign(a: Tensor, b: np.ndarray, tolerance: float = 1e-8) -> bool:
    signs = np.sign((a.numpy() * b).sum(0))
    return bool(np.abs(a.numpy() * signs - b).max() < tolerance)


def cosines(x: Tensor) -> Tensor:
    x = F.normalize(x.double(), dim=1)
    return x @ x.T


CLOSED = ("average", "concatenation", "pca", "whitened", "gcca", "procrustes")


# ---- oracles ------------------------------------------------------------------------------------
@pytest.mark.parametrize("whiten", [False, True])
def test_pca_is_that_of_scikit_learn(whiten: bool) -> None:
    features = drawn()
    expected = PCA(10, whiten=whiten, svd_solver="full").fit_transform(together(features)) * (np.sqrt(400 / 399) if whiten else 1)
    found = fit(features, "pca", power=0.0 if whiten else 1.0, width=10, floor=1e-12).transform(features)
    assert same_up_to_sign(found, expected)


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("power", [0.0, 0.25, 1.0])
def test_fewer_rows_than_numbers_have_the_components_of_their_covariance(power: float, repeated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where rows repeat, so that there are fewer directions than components asked for: on these, codes are 0."""
    features = [x[:30] for x in drawn((25, 40), n=60)]
    features = [torch.cat([x[:15], x[:15]]) for x in features] if repeated else features
    made = fit(features, "pca", power=power, width=20)
    found = made.transform(features)
    mean, covariance = moments(features)
    values, vectors = np.linalg.eigh(covariance.numpy())
    scale = np.maximum(values[::-1], 0.1 * values.mean()) ** ((power - 1) / 2)
    expected = (together(features) - mean.numpy()) @ (vectors[:, ::-1] * scale)[:, :20]
    assert same_up_to_sign(found, expected, 1e-8 if not repeated else 1e-6)
    asked = []
    monkeypatch.setattr(members, "eigen", lambda x, known=members.eigen: asked.append(len(x)) or known(x))
    fit(features, "pca", power=power, width=20)
    assert asked == ([30] if not repeated else [30, 65])


@pytest.mark.parametrize("power", [0.0, 0.25, 0.5, 1.0, 1.25])
def test_singular_values_are_those_of_the_features_to_the_power(power: float) -> None:
    features = drawn()
    made = fit(features, "pca", power=power, width=12, floor=1e-12)
    x = together(features)
    s = np.linalg.svd(x - x.mean(0), compute_uv=False)[:12] / np.sqrt(400)
    assert np.allclose(torch.linalg.svdvals(made.transform(features)).numpy() / np.sqrt(400), s**power)
    assert made.record["exponent"] == pytest.approx(power, abs=1e-6)


def test_gcca_solves_the_generalised_eigenproblem() -> None:
    features, ridge = drawn(), 1e-2
    x = together(features)
    x = x - x.mean(0)
    c = x.T @ x / len(x)
    blocks = scipy.linalg.block_diag(*(k + ridge * np.trace(k) / len(k) * np.eye(len(k)) for k in (c[:9, :9], c[9:23, 9:23], c[23:, 23:])))
    values, vectors = scipy.linalg.eigh(c, blocks)  # vectors' blocks vectors = I
    found = fit(features, "gcca", width=7, ridge=ridge, power=1.0).transform(features)
    assert same_up_to_sign(found, (x @ vectors)[:, ::-1][:, :7], 1e-7)
    white = fit(features, "gcca", width=7, ridge=ridge).transform(features)
    assert torch.allclose(white.T @ white / 400, torch.eye(7, dtype=torch.float64), atol=1e-8)


def test_gcca_of_two_is_canonical_correlation() -> None:
    """T14: the eigenvalues of the whitened problem are 1 + rho, 1 - rho and, where widths differ, 1."""
    features = drawn((6, 9))
    x, y = (F.normalize(f, dim=1) for f in features)
    x, y = x - x.mean(0), y - y.mean(0)
    rho = torch.linalg.svdvals(torch.linalg.qr(x)[0].T @ torch.linalg.qr(y)[0])
    expected = torch.cat([1 + rho, torch.ones(3), 1 - rho]).sort(descending=True).values
    scores = fit(features, "gcca", width=15, ridge=0.0, power=1.0).transform(features)
    assert torch.allclose(scores.square().mean(0), expected, atol=1e-8)


def test_every_member_of_procrustes_is_turned_as_scipy_turns_it_to_the_mean() -> None:
    features = drawn((8, 8, 8))
    made = fit(features, "procrustes", rounds=300).fitted
    turned = [F.normalize(x, dim=1) - F.normalize(x, dim=1).mean(0) for x in features]
    rotations = [3 * m for m in made.matrices]
    mean = sum(x @ r for x, r in zip(turned, rotations, strict=True)) / 3
    for x, r in zip(turned, rotations, strict=True):
        assert torch.allclose(r.T @ r, torch.eye(8, dtype=torch.float64), atol=1e-8)
        assert np.allclose(scipy.linalg.orthogonal_procrustes(x.numpy(), mean.numpy())[0], r.numpy(), atol=1e-4)
    assert torch.allclose(made.transform(features), mean)


def test_procrustes_undoes_rotations() -> None:
    (x,) = drawn((8,))
    same = fit([x @ rotation(8, s) for s in range(3)], "procrustes").transform([x @ rotation(8, s) for s in range(3)])
    assert torch.allclose(cosines(same), cosines(F.normalize(x, dim=1) - F.normalize(x, dim=1).mean(0)), atol=1e-8)


def test_the_cosine_of_a_concatenation_is_the_mean_of_the_members_cosines() -> None:
    features = drawn()
    expected = sum(cosines(x) for x in features) / 3
    assert torch.allclose(cosines(fit(features, "concatenation").transform(features)), expected)


def test_the_average_fills_narrow_members_with_zeros_and_has_unit_length() -> None:
    features = drawn((3, 5), n=20)
    a, b = (F.normalize(x, dim=1) for x in features)
    expected = F.normalize((torch.cat([a, torch.zeros(20, 2)], 1) + b) / 2, dim=1)
    assert torch.allclose(fit(features, "average").transform(features), expected)


def test_each_block_of_whitened_members_is_white() -> None:
    features = drawn()
    found = fit(features, "whitened", floor=1e-12).transform(features)
    for block in found.split([9, 14, 14], 1):
        assert torch.allclose(block.T @ block / 400, torch.eye(block.shape[1], dtype=torch.float64), atol=1e-6)


def test_variances_under_the_floor_are_not_made_large() -> None:
    features = drawn()
    features[0][:, 8] = 1e-9 * torch.randn(400, generator=generator(0, "dust"), dtype=torch.float64)
    found = fit(features, "pca", power=0.0, width=37, floor=1e-4).transform(features)
    assert float(found[:, -1].square().mean()) < 1e-6 and float(found[:, 0].square().mean()) == pytest.approx(1)


def test_moments_in_blocks_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the first block is not like the others."""
    monkeypatch.setattr("gnothi.ensemble.members.BLOCK", 64)
    features = [x[x[:, 0].argsort()] for x in drawn()]
    monkeypatch.setattr("gnothi.ensemble.members.blocks", lambda n: (slice(i, min(i + 64, n)) for i in range(0, n, 64)))
    mean, covariance = moments(features)
    assert np.allclose(mean.numpy(), together(features).mean(0))
    assert np.allclose(covariance.numpy(), np.cov(together(features), rowvar=False, bias=True))


# ---- what must change nothing ----------------------------------------------------------------------
@pytest.mark.parametrize("combiner", CLOSED)
def test_the_order_of_the_members_changes_no_similarity(combiner: str) -> None:
    features = drawn((14, 9, 14))
    settings = {"rounds": 200} if combiner == "procrustes" else {}
    a = fit(features, combiner, **settings).transform(features)
    b = fit(features[::-1], combiner, **settings).transform(features[::-1])
    assert torch.allclose(cosines(a), cosines(b), atol=1e-6)


@pytest.mark.parametrize("combiner", [*CLOSED, "member", "best"])
def test_the_scale_of_a_member_and_of_rows_changes_nothing(combiner: str) -> None:
    """T7."""
    features = drawn()
    rows = torch.linspace(0.5, 3, 400, dtype=torch.float64)[:, None]
    scaled = [100 * features[0], rows * features[1], features[2]]
    assert torch.allclose(fit(features, combiner).transform(features), fit(scaled, combiner).transform(scaled), atol=1e-8)


@pytest.mark.parametrize("combiner", CLOSED)
def test_a_member_that_is_turned_changes_the_average_only(combiner: str) -> None:
    """T6."""
    features = drawn((14, 14, 14))
    turned = [features[0], features[1] @ rotation(14), features[2]]
    a, b = (cosines(fit(x, combiner).transform(x)) for x in (features, turned))
    close = torch.allclose(a, b, atol=1e-3 if combiner == "procrustes" else 1e-7)
    assert close == (combiner != "average")


def test_copies_of_a_member_say_what_it_says() -> None:
    """T5: PCA with power 1 of identical members has the neighbours of one."""
    (x,) = drawn((14,))
    labels = (x[:, 0] > 0).long().numpy()
    alone, copies = fit([x], "pca", power=1.0).transform([x]), fit([x] * 3, "pca", power=1.0).transform([x] * 3)
    assert torch.allclose(cosines(alone), cosines(copies), atol=1e-8)
    assert torch.allclose(cosines(alone), cosines(F.normalize(x, dim=1) - F.normalize(x, dim=1).mean(0)), atol=1e-8)
    assert knn(alone, labels, alone, labels).value == knn(copies, labels, copies, labels).value


def test_agreement_ignores_a_member_of_noise() -> None:
    """T12: generalised CCA finds the shared factors beside a member that is noise."""
    features = drawn((12, 12))
    labels = (F.normalize(features[0], dim=1)[:, 0] > F.normalize(features[0], dim=1)[:, 0].median()).long().numpy()
    noisy = [*features, torch.randn(400, 12, generator=generator(0, "noise"), dtype=torch.float64)]
    without = torch.linalg.qr(fit(features, "gcca", width=6).transform(features))[0]

    def kept(combiner: str) -> float:
        beside = torch.linalg.qr(fit(noisy, combiner, width=6).transform(noisy))[0]
        return float(torch.linalg.norm(without.T @ beside) ** 2 / 6)

    assert kept("gcca") > 0.95 and kept("pca") < kept("gcca")
    agreed, mean = (fit(noisy, combiner).transform(noisy) for combiner in ("gcca", "average"))
    assert knn(agreed, labels, agreed, labels).value > knn(mean, labels, mean, labels).value


def test_rows_are_combined_one_by_one_and_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    features = [x.float() for x in drawn(n=50)]
    for combiner in CLOSED:
        made = fit(features, combiner)
        whole = made.transform(features)
        assert whole.dtype == torch.float32
        assert torch.allclose(torch.cat([made.transform([x[i : i + 1] for x in features]) for i in range(50)]), whole, atol=1e-5)
        monkeypatch.setattr("gnothi.ensemble.combine.BLOCK", 7)
        assert torch.allclose(made.transform(features), whole, atol=1e-5)
        monkeypatch.undo()


def test_arrays_on_the_disk_do_as_tensors_do(tmp_path) -> None:
    features = [x.float().numpy() for x in drawn()]
    for j, x in enumerate(features):
        np.save(tmp_path / f"{j}.npy", x)
    mapped = [np.load(tmp_path / f"{j}.npy", mmap_mode="r") for j in range(3)]
    assert torch.equal(fit(mapped).transform(mapped), fit([torch.from_numpy(x) for x in features]).transform(features))


# ---- choosing, and what is missing -----------------------------------------------------------------
def test_the_best_member_is_the_one_whose_neighbours_name_held_out_labels() -> None:
    g = generator(0, "labels")
    labels = torch.randint(3, (300,), generator=g)
    good = F.one_hot(labels, 3) + 0.3 * torch.rand(300, 3, generator=g)
    features = [torch.randn(300, 20, generator=g), good, torch.randn(300, 8, generator=g)]
    assert torch.allclose(fit(features, "best", labels=labels.numpy()).transform(features), F.normalize(good, dim=1))
    assert fit(features, "best").width == 20  # without labels: by effective rank


def test_the_power_is_that_whose_neighbours_name_held_out_labels() -> None:
    """Classes that differ along the weakest direction need a white spectrum; those along the strongest a steep one."""
    g = generator(0, "spectrum")
    labels = torch.randint(2, (400,), generator=g)
    strength = torch.tensor([3.0, *[1.0] * 18, 0.3])

    def along(direction: int) -> list[Tensor]:
        x = torch.randn(400, 20, generator=generator(1, "noise"))
        x[:, direction] = (2 * labels - 1) + 0.6 * x[:, direction]
        return [strength * x + 20 * torch.eye(20)[1]]  # far from the origin, so that unit length changes little

    chosen = {}
    for direction in (0, 19):
        features = along(direction)
        made = fit(features, "pca", power="holdout", labels=labels.numpy(), fraction=0.25, k=5)
        kept, held = holdout(ArraySource(torch.zeros(400, 1, 8, 8), labels, ("a", "b")), 0.25, 0)
        by_hand = {}
        for power in POWERS:
            own = fit([x[kept] for x in features], "pca", power=power)
            x, y = (own.transform([f[rows] for f in features]) for rows in (kept, held))
            by_hand[f"{power:g}"] = knn(x, labels.numpy()[kept], y, labels.numpy()[held], 5).value
        assert made.record["scores"] == pytest.approx(by_hand)
        chosen[direction] = made.record["chosen"]
        assert torch.equal(made.transform(features), fit(features, "pca", power=chosen[direction]).transform(features))
    assert chosen[19] == 0 and chosen[0] >= 0.5


def test_a_power_is_chosen_for_a_width_that_fewer_rows_do_not_have() -> None:
    """The rows that are left when some are held out have fewer components than all; too many for all are refused by their number."""
    labels = torch.arange(30) % 2
    features = [torch.randn(30, 40, generator=generator(0, "wide")) + 3 * labels[:, None]]
    assert fit(features, "pca", power="holdout", labels=labels.numpy(), width=29).width == 29
    with pytest.raises(SettingError, match="width must be at most 29, the components of 30 images"):
        fit(features, "pca", power="holdout", labels=labels.numpy(), width=30)


def test_a_power_cannot_be_chosen_without_labels() -> None:
    with pytest.raises(DataError, match="power=holdout needs labels of at least two classes"):
        fit(drawn(), "pca", power="holdout")


def test_a_missing_member_adds_nothing() -> None:
    features = drawn()
    made = fit(features, "pca")
    means = [F.normalize(features[0], dim=1), F.normalize(features[1], dim=1).mean(0).expand(400, -1), F.normalize(features[2], dim=1)]
    found, expected = made.transform([features[0], None, features[2]]), made.fitted.transform(features)
    centred = [m.T @ (x - mu).T for m, x, mu in zip(made.fitted.matrices, means, made.fitted.means, strict=True)]
    assert torch.allclose(found, sum(centred).T, atol=1e-8) and not torch.allclose(found, expected)


def test_the_exponent_of_too_few_directions_is_not_a_number() -> None:
    assert np.isnan(exponent(torch.ones(5, 1), torch.ones(1)))


@pytest.mark.parametrize(
    ("features", "settings", "words"),
    [
        ([], {}, "at least one member"),
        ([torch.ones(3, 2), torch.eye(4)], {}, "member 0 says the same of every image"),
        ([torch.eye(4), torch.eye(5)], {}, "member 0 has 4 rows, member 1 has 5"),
        ([torch.eye(4), torch.full((4, 2), torch.nan)], {}, "row 0 of member 1 is not"),
        ([torch.ones(4)], {}, r"must be \[N, D\]"),
        ([torch.eye(4)], {"combiner": "pcs"}, "did you mean pca"),
        ([torch.eye(4)], {"powr": 1}, "did you mean power"),
        ([torch.eye(4)], {"power": -1}, "power"),
        ([torch.eye(4)], {"power": "best"}, "power"),
        ([torch.eye(4)], {"width": 4}, "width must be at most 3"),
        ([torch.eye(4)], {"combiner": "member", "number": 1}, "counted from 0, got 1"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(features: list, settings: dict, words: str) -> None:
    with pytest.raises((DataError, SettingError), match=words) as error:
        fit(features, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ([torch.eye(9)], "3 members, got features of 1"),
        ([None] * 3, "all members are missing"),
        ([torch.ones(2, 9), torch.ones(3, 14), None], "member 1 must be"),
        ([torch.full((2, 9), torch.inf), None, None], "finite"),
    ],
)
def test_features_of_others_are_refused(features: list, words: str) -> None:
    made: Ensemble = fit(drawn())
    with pytest.raises(DataError, match=words):
        made.transform(features)


def test_every_combiner_takes_one_member() -> None:
    features = drawn((14,))
    for combiner in COMBINERS:
        assert fit(features, combiner).transform(features).shape[0] == 400


@pytest.mark.parametrize("combiner", ["pca", "descent", "amortised"])
def test_rows_sorted_by_class_are_measured_as_mixed_ones(combiner: str) -> None:
    """Of two classes that vary along other axes and unlike far, the first rows are one: its exponent and its scale are not those of all."""
    g, n, d = generator(0, "sorted"), 3000, 8
    scales = torch.logspace(0, -1, d)
    x = torch.cat([torch.randn(n, d, generator=g) * scales / 2, torch.randn(n, d, generator=g) * scales.flip(0)]) + 3
    more = {} if combiner == "pca" else {"epochs": 1, "hidden": 8, "steps": 0}
    made = fit([x], combiner, **({"power": 0.5} if combiner == "pca" else {"start_power": 0.5}), **more)
    mixed = exponent(made.transform([x]), spectrum([x]))
    first = exponent(made.transform([x[:2000]]), spectrum([x[:2000]]))
    assert made.record["exponent"] == pytest.approx(mixed, abs=0.05) and abs(first - mixed) > 0.15
    if combiner == "descent":
        start = made.transform([x], steps=0)
        assert made.fitted.scale == pytest.approx(float(start.square().mean().sqrt()), rel=0.03)
        assert abs(float(start[:2000].square().mean().sqrt()) / made.fitted.scale - 1) > 0.03
