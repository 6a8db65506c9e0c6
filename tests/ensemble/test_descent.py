"""The descent against closed forms, torch's optimisers and what its mathematics promises."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import cosine as slow_cosine
from oracles import plain
from torch import Tensor

from gnothi.contracts import SettingError
from gnothi.ensemble import Ensemble, fit
from gnothi.ensemble.decoders import Decoders, by_member, dropped
from gnothi.ensemble.descent import Descent
from gnothi.ensemble.members import eigen, moments
from gnothi.ensemble.rows import RowAdam
from gnothi.ensemble.scaling import evened, scaling
from gnothi.randomness import generator

LINEAR: dict[str, Any] = {"loss": "squared", "layers": 0, "holdout": 0, "batch": 1000}
SMALL: dict[str, Any] = {"width": 12, "hidden": 16, "epochs": 3, "batch": 40}


def drawn(widths: tuple[int, ...] = (12, 8, 12), n: int = 200, seed: int = 0) -> list[Tensor]:
    """Members that share factors of falling strength, float64."""
    g = generator(seed, "members")
    strength = torch.linspace(1, 0.2, 10, dtype=torch.float64)
    shared = torch.randn(n, 10, generator=g, dtype=torch.float64) * strength
    return [shared @ torch.randn(10, d, generator=g, dtype=torch.float64) + 0.1 * torch.randn(n, d, generator=g, dtype=torch.float64) for d in widths]


def centred(features: list[Tensor]) -> Tensor:
    """The concatenation that a descent with centring has to predict."""
    units = [F.normalize(x, dim=1) for x in features]
    return torch.cat([x - x.mean(0) for x in units], dim=1)


def descent(features: list[Tensor], **settings: Any) -> Descent:
    made = fit(features, "descent", **settings).fitted
    assert isinstance(made, Descent)
    return made


def gram_cosine(a: Tensor, b: Tensor) -> float:
    x, y = a @ a.T, b @ b.T
    return float((x * y).sum() / x.norm() / y.norm())


# ---- linear maps and squared loss -------------------------------------------------------------------
@pytest.fixture(scope="module")
def linear() -> tuple[list[Tensor], Descent]:
    """Converged from a random start, far from the optimum; networks without bias, for targets are centred."""
    features = drawn()
    settings = {"start": "random", "width": 6, "bias": False, "optimiser": "sgd", "epochs": 400, "lr_codes": 1.0, "lr_networks": 1.0, "steps": 400}
    return features, descent(features, **LINEAR, **settings)


def test_the_optimum_of_linear_maps_is_the_subspace_of_pca(linear: tuple[list[Tensor], Descent]) -> None:
    """T1: the loss is what PCA leaves, and the codes span its components."""
    features, made = linear
    z = centred(features)
    u, s, _ = torch.linalg.svd(z, full_matrices=False)
    assert made.trained is not None
    codes = made.trained[1][made.trained[0].argsort()]
    least = float(s[6:].square().sum() / 2 / len(z))
    assert float(made.losses(features, codes).sum(1).mean()) == pytest.approx(least, rel=1e-6)
    q = torch.linalg.qr(codes)[0]
    assert float((q @ q.T - u[:, :6] @ u[:, :6].T).norm()) < 1e-5


def test_many_steps_lead_to_least_squares(linear: tuple[list[Tensor], Descent]) -> None:
    """T3: with frozen linear maps W the code of an image is (W'W)^-1 W'z, for new images too."""
    _, made = linear
    new = [x + 0.05 * torch.randn(x.shape, generator=generator(1, "new"), dtype=x.dtype) for x in drawn(seed=1, n=20)]
    targets = torch.cat([s(x) for s, x in zip(made.targets, new, strict=True)], dim=1)
    w = made.decoders.first.weight
    assert torch.allclose(made.codes(new), torch.linalg.lstsq(w, targets.T).solution.T, atol=1e-9)


def test_a_few_plain_steps_are_a_filter_of_the_spectrum(linear: tuple[list[Tensor], Descent]) -> None:
    """T3: psi_K - psi* = (I - eta H)^K (psi_0 - psi*)."""
    features, made = linear
    w = made.decoders.first.weight
    h, rate = w.T @ w, 0.5 / float(torch.linalg.eigvalsh(w.T @ w)[-1])
    spec = made.spec.model_copy(update={"optimiser": "sgd", "lr_codes": rate})
    plainly = Descent(spec, made.start, made.targets, made.decoders, made.scale)
    first, best = plainly.codes(features, steps=0), torch.linalg.lstsq(w, centred(features).T).solution.T
    expected = best + (first - best) @ torch.linalg.matrix_power(torch.eye(6, dtype=h.dtype) - rate * h, 20)
    assert torch.allclose(plainly.codes(features, steps=20), expected, atol=1e-10)


def test_plain_descent_never_makes_the_loss_larger(linear: tuple[list[Tensor], Descent]) -> None:
    """T15: with a rate below 1 / the largest eigenvalue."""
    features, made = linear
    w = made.decoders.first.weight
    spec = made.spec.model_copy(update={"optimiser": "sgd", "lr_codes": 0.9 / float(torch.linalg.eigvalsh(w.T @ w)[-1])})
    plainly = Descent(spec, made.start, made.targets, made.decoders, made.scale)
    losses = torch.stack([plainly.losses(features, plainly.codes(features, steps=k)).sum(1) for k in range(8)])
    assert bool((losses.diff(dim=0) <= 1e-12).all()) and float(losses[0].mean()) > float(losses[-1].mean())


def test_codes_as_wide_as_the_features_lose_nothing() -> None:
    """T4."""
    features = drawn((5, 4), n=60)
    made = descent(features, **LINEAR, width=9, start="random", epochs=600, lr_networks=0.02, eps=1e-12)
    assert made.trained is not None
    assert float(made.losses([x[made.trained[0]] for x in features], made.trained[1]).sum(1).mean()) < 1e-7


def test_a_member_that_is_turned_is_explained_as_well() -> None:
    """T6: the optimum of the cosine loss is the same, for the last layer turns along."""
    features, settings = drawn(), {"loss": "cosine", "layers": 0, "bias": False, "width": 6, "epochs": 400, "lr_networks": 0.02, "eps": 1e-12}
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator(0, "rotation"), dtype=torch.float64))[0]
    losses = [
        sum(fit(x, "descent", holdout=0, batch=1000, **settings).record["trained_loss_by_member"])
        for x in (features, [features[0], features[1] @ turn, features[2]])
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.slow
def test_plain_descent_from_little_shares_the_spectrum_between_codes_and_maps() -> None:
    """T2: from small codes and small maps the codes are half-whitened: Psi Psi' is proportional to U S U'."""
    features = drawn(n=60)
    z = centred(features)
    u, s, _ = torch.linalg.svd(z, full_matrices=False)
    made = descent(features, **LINEAR, start="random", width=6, bias=False, optimiser="sgd", epochs=1, lr_codes=0.02, lr_networks=0.02 * 60)
    from gnothi.ensemble.fitting import Fit  # from a smaller start than a user may choose

    made.decoders.first.weight.data.mul_(1e-3)
    loop = Fit(made, features, torch.arange(60), 0)
    assert loop.bank is not None
    codes = loop.bank.shard(0, 0).rows
    codes.copy_(1e-3 * torch.randn(60, 6, generator=generator(0, "codes"), dtype=torch.float64))
    for epoch in range(8000):
        loop.visit(epoch, 0)
    assert gram_cosine(codes, u[:, :6] * s[:6] ** 0.5) > 0.9999
    assert gram_cosine(codes, u[:, :6] * s[:6]) < 0.99


@pytest.mark.slow
def test_equal_penalties_fix_the_spectrum_and_shrink_it() -> None:
    """T2: Psi Psi' = U (S - mu)+ U', whatever the start and the rates."""
    features, mu = drawn(n=60), 0.05
    u, s, _ = torch.linalg.svd(centred(features), full_matrices=False)
    made = descent(features, **LINEAR, width=6, bias=False, l2=mu, epochs=6000, lr_codes=0.02, lr_networks=0.02, eps=1e-12)
    assert made.trained is not None
    codes = made.trained[1][made.trained[0].argsort()]
    assert torch.allclose(codes @ codes.T, (u[:, :6] * (s[:6] - mu).clamp(min=0)) @ u[:, :6].T, atol=1e-3)


# ---- rows -------------------------------------------------------------------------------------------
def test_every_row_has_the_adam_of_torch_to_itself() -> None:
    g = generator(0, "rows")
    table = torch.randn(5, 7, generator=g, dtype=torch.float64)
    alone = [row.clone().requires_grad_() for row in table]
    theirs = [torch.optim.Adam([row], lr=0.1, eps=1e-5) for row in alone]
    ours = RowAdam(table, 0.1, 1e-5)
    for _ in range(30):
        rows = torch.randperm(5, generator=g)[: int(torch.randint(1, 6, (1,), generator=g))]
        gradient = torch.randn(len(rows), 7, generator=g, dtype=torch.float64)
        ours.step(rows, gradient)
        for row, one in zip(rows.tolist(), gradient, strict=True):
            alone[row].grad = one.clone()
            theirs[row].step()
    assert torch.allclose(table, torch.stack([row.detach() for row in alone]), rtol=1e-12)


def test_rows_that_a_step_does_not_name_stay_bit_for_bit() -> None:
    """T16, after steps that did name them and left momentum behind."""
    table = torch.randn(6, 4, generator=generator(0, "rows"))
    ours = RowAdam(table, 0.1, 1e-8)
    ours.step(slice(None), torch.ones(6, 4))
    before = table.clone()
    ours.step(torch.tensor([4, 1]), torch.ones(2, 4))
    assert torch.equal(table[[0, 2, 3, 5]], before[[0, 2, 3, 5]]) and not torch.equal(table[[1, 4]], before[[1, 4]])


# ---- inference --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def small() -> tuple[list[Tensor], Ensemble]:
    features = [x.float() for x in drawn()]
    return features, fit(features, "descent", **SMALL)


def test_zero_steps_give_the_start_exactly(small: tuple[list[Tensor], Ensemble]) -> None:
    """T9: with start=average it is the average; more steps lead away from it step by step."""
    features, finished = small
    averaged, made = fit(features, "descent", start="average", **SMALL), fit(features, "descent", power=None, **SMALL)
    assert torch.equal(averaged.transform(features, steps=0), fit(features, "average").transform(features))
    first = made.transform(features, steps=0)
    expected = fit(features, "pca", power=0.0, floor=1e-4, width=12).transform(features)
    assert torch.allclose(first, expected / expected.square().sum(1).mean().sqrt(), atol=1e-5)
    moved = [float((made.transform(features, steps=k) - first).norm()) for k in (0, 1, 5, 20)]
    assert moved == sorted(moved) and moved[0] == 0 < moved[1]
    assert torch.equal(finished.transform(features, steps=0), first) and finished.fitted.finish is not None  # what finishes codes is not of the start


def test_a_code_depends_on_no_other_image(small: tuple[list[Tensor], Ensemble]) -> None:
    """T8: neither on the size of the batch nor on the order."""
    features, made = small
    whole = made.transform(features)
    for size in (7, 64):
        parts = [made.transform([x[i : i + size] for x in features]) for i in range(0, 200, size)]
        assert torch.allclose(torch.cat(parts), whole, rtol=0, atol=1e-6)
    alone = torch.cat([made.transform([x[i : i + 1] for x in features]) for i in range(0, 200, 20)])
    assert torch.allclose(alone, whole[::20], rtol=0, atol=1e-6)
    order = torch.randperm(200, generator=generator(0, "order"))
    assert torch.allclose(made.transform([x[order] for x in features]), whole[order], rtol=0, atol=1e-6)
    assert torch.equal(made.transform(features), whole)


def test_frozen_means_frozen(small: tuple[list[Tensor], Ensemble]) -> None:
    features, made = small
    before = made.fingerprint, [x.clone() for x in features]
    made.transform(features)
    assert made.fingerprint == before[0] and all(torch.equal(a, b) for a, b in zip(features, before[1], strict=True))
    assert not any(p.requires_grad for p in made.fitted.decoders.parameters()) and not made.fitted.decoders.training


def test_features_of_inference_mode_are_taken(small: tuple[list[Tensor], Ensemble]) -> None:
    features, made = small
    with torch.inference_mode():
        inside = made.transform([x.clone() for x in features])
    assert torch.equal(inside, made.transform(features))


def test_the_same_seed_gives_the_same_fit_and_another_another() -> None:
    features = [x.float() for x in drawn(n=60)]
    a, b, c = (fit(features, "descent", seed=s, drop=0.5, **SMALL).fingerprint for s in (0, 0, 1))
    assert a == b != c


def test_scale_changes_nothing() -> None:
    """T7."""
    features = drawn()
    scaled = [100 * features[0], features[1], torch.linspace(1, 2, 200, dtype=torch.float64)[:, None] * features[2]]
    a, b = (fit(x, "descent", **SMALL).transform(x) for x in (features, scaled))
    assert torch.allclose(a, b, atol=1e-6)


def test_bias_free_networks_only_lengthen_codes_under_the_cosine_loss() -> None:
    """T10: psi . grad = 0, so a plain step obeys |psi'|^2 = |psi|^2 + eta^2 |grad|^2."""
    features = drawn()
    made = descent(features, bias=False, optimiser="sgd", lr_codes=0.3, lr_networks=0.01, **SMALL)
    first, second = (made.codes(features, steps=k) for k in (0, 1))
    gradient = (first - second) / 0.3
    assert float((first * gradient).sum(1).abs().max()) < 1e-12
    assert torch.allclose(second.square().sum(1), first.square().sum(1) + (0.3 * gradient).square().sum(1), rtol=1e-12)


def test_lengths_are_held_as_asked() -> None:
    features = drawn()
    assert float(descent(features, bound=0.9, **SMALL).codes(features).norm(dim=1).max()) <= 0.9 + 1e-12
    held = descent(features, sphere=True, **SMALL)
    assert torch.allclose(held.codes(features).norm(dim=1), torch.tensor(held.scale * math.sqrt(12), dtype=torch.float64))


def test_a_missing_member_has_no_part() -> None:
    """With its loss left out and its part of the start at the mean, codes are those of an ensemble in which it never spoke."""
    features = drawn()
    made = descent(features, **SMALL)
    found = made.codes([features[0], None, features[2]], steps=1)
    first = made.start.transform([features[0], None, features[2]]).requires_grad_()
    losses = by_member("cosine", made.decoders(first), [s(x) for s, x in zip(made.targets, features, strict=True)])
    (gradient,) = torch.autograd.grad(losses[:, [0, 2]].sum(), first)
    assert torch.allclose(found, first.detach() - made.rate * gradient / (gradient.abs() + made.spec.eps), atol=1e-9)


def test_power_sets_the_spectrum_of_finished_codes() -> None:
    features = drawn()
    made = fit(features, "descent", power=0.0, **SMALL)
    found = made.transform([x[made.fitted.trained[0]] for x in features])
    assert torch.allclose(found.T @ found / len(found), torch.eye(12, dtype=torch.float64), atol=1e-6)


# ---- the fit ----------------------------------------------------------------------------------------
def test_the_fit_lowers_the_loss_of_every_member_and_says_what_it_did() -> None:
    features = drawn()
    made = fit(features, "descent", **{**SMALL, "epochs": 30})
    record, start = made.record, fit(features, "descent", **{**SMALL, "epochs": 1}).record
    assert all(a < b for a, b in zip(record["loss_by_member"], start["loss_by_member"], strict=True))
    assert {"exponent", "codes_exponent", "trained_exponent", "cosine_to_trained", "length", "history"} <= record.keys()
    assert all(np.isfinite(record[k]) for k in ("exponent", "trained_exponent", "cosine_to_trained"))


def test_a_fit_that_gains_nothing_on_held_out_rows_ends_and_keeps_the_best_networks() -> None:
    features = [torch.randn(60, 30, generator=generator(s, "noise"), dtype=torch.float64) for s in range(2)]
    settings = {"epochs": 200, "hidden": 64, "holdout": 0.3, "patience": 1, "lr_networks": 0.02}
    made = descent(features, **settings)
    held = [h["held_out"] for h in made.log["history"]]
    assert made.log["history"][-1]["epoch"] < 200 and held[-1] > held[-2]
    rows = torch.randperm(60, generator=generator(0, "ensemble rows"))[:18].sort().values
    some = [x[rows] for x in features]
    assert float(made.losses(some, made.codes(some)).sum(1).mean()) == pytest.approx(min(held), rel=1e-9)


def test_no_more_rows_are_fitted_than_asked_and_none_that_is_held_out() -> None:
    rows = descent(drawn(), most=50, holdout=0.2, **SMALL).trained[0]
    held = torch.randperm(200, generator=generator(0, "ensemble rows"))[:10]
    assert len(rows.unique()) == 40 and not set(rows.tolist()) & set(held.tolist())


def test_a_row_keeps_the_member_it_explains_worst() -> None:
    losses = torch.rand(4000, 3, generator=generator(0, "losses"))
    weights = dropped(losses, 0.5, generator(0, "drop"))
    assert bool((weights.gather(1, losses.argmax(1, keepdim=True)) > 0).all())
    assert torch.allclose(weights.sum(1), torch.full((4000,), 3.0))
    others = torch.ones(4000, 3).scatter_(1, losses.argmax(1, keepdim=True), 0.0).bool()
    assert float((weights[others] == 0).float().mean()) == pytest.approx(0.5, abs=0.03)
    assert torch.equal(dropped(losses, 0.0, generator(0, "drop")), torch.ones(4000, 3))


# ---- losses, networks, targets -----------------------------------------------------------------------
def test_losses_are_those_of_a_plain_loop() -> None:
    g = generator(0, "losses")
    p, z = (torch.randn(6, 5, generator=g, dtype=torch.float64) for _ in range(2))
    for row, (a, b) in enumerate(zip(plain(p), plain(z), strict=True)):
        apart = [x - y for x, y in zip(a, b, strict=True)]
        smooth = math.fsum(d * d / 2 if abs(d) < 1 else abs(d) - 0.5 for d in apart) / 5
        expected = {"cosine": 1 - slow_cosine(a, b), "squared": math.fsum(d * d for d in apart) / 2}
        expected["cosine+smooth-l1"] = 0.9 * expected["cosine"] + 0.1 * smooth
        for name, value in expected.items():
            assert float(by_member(name, [p], [z])[row, 0]) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_networks_of_members_share_nothing_but_the_code(layers: int) -> None:
    decoders = Decoders(4, [3, 5], 6, layers, True).double()
    codes = torch.randn(2, 4, generator=generator(0, "codes"), dtype=torch.float64)
    before = decoders(codes)
    assert [x.shape[1] for x in before] == [3, 5]
    last = decoders.first if not layers else decoders.tails[1][-1]
    with torch.no_grad():
        last.bias[-1] += 1
    after = decoders(codes)
    assert torch.equal(before[0], after[0]) and torch.allclose(after[1] - before[1], torch.tensor([0, 0, 0, 0, 1.0], dtype=torch.float64))


def test_the_gradient_of_codes_is_that_of_differences() -> None:
    """T11."""
    features = drawn(n=5)
    made = descent(drawn(), loss="cosine+smooth-l1", l2=0.1, layers=2, **SMALL)
    targets = [s(x) for s, x in zip(made.targets, features, strict=True)]
    codes, h = made.codes(features, steps=0), 1e-6
    gradient = made.gradient(codes, targets)

    def total(x: Tensor) -> float:
        return float(by_member(made.spec.loss, made.decoders(x), targets).sum() + 0.05 * x.square().sum())

    for i, j in ((0, 0), (2, 5), (4, 11)):
        step = torch.zeros_like(codes)
        step[i, j] = h
        assert (total(codes + step) - total(codes - step)) / (2 * h) == pytest.approx(float(gradient[i, j]), abs=1e-7)


@pytest.mark.parametrize("width", [8, 11])
def test_phi_s_gives_every_number_variance_one_and_keeps_the_proportions(width: int) -> None:
    """T13, for a width with and one without a Hadamard matrix by Sylvester."""
    (x,) = drawn((width,))
    mean, covariance = moments([x])
    y = scaling("phi-s", mean, covariance)(x)
    assert torch.allclose(y.T @ y / 200 * torch.eye(width), torch.eye(width, dtype=torch.float64), atol=1e-9)
    values = eigen(covariance)[0]
    assert torch.allclose(eigen(y.T @ y / 200)[0], values / values.mean(), atol=1e-9)
    turn = evened(values)
    assert torch.allclose(turn @ turn.T, torch.eye(width, dtype=torch.float64), atol=1e-12)


def test_the_other_scalings_do_as_they_say() -> None:
    (x,) = drawn((8,))
    mean, covariance = moments([x])
    unit = F.normalize(x, dim=1)
    assert torch.equal(scaling("none", mean, covariance)(x), unit)
    assert torch.allclose(scaling("centre", mean, covariance)(x), unit - unit.mean(0))
    assert torch.allclose(scaling("dimension", mean, covariance)(x), (unit - unit.mean(0)) / unit.std(0, correction=0))


@pytest.mark.parametrize("start", ["pca", "average", "member", "random"])
@pytest.mark.parametrize("standardise", ["none", "dimension", "phi-s"])
def test_a_restored_descent_gives_the_same_codes(start: str, standardise: str) -> None:
    features = [x.float() for x in drawn()]
    made = descent(features, start=start, standardise=standardise, power=0.5, **SMALL)
    again = Descent.restore(made.about(), made.tensors(), made.spec)
    assert torch.equal(again.transform(features), made.transform(features))


def test_a_width_that_the_start_cannot_have_is_refused() -> None:
    with pytest.raises(SettingError, match="width must be 12 where start is average, got 5"):
        descent(drawn(), start="average", width=5)
