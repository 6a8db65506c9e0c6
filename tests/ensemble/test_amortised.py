"""The network that says at once what a descent would look for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gnothi.ensemble import fit
from gnothi.ensemble.amortised import Amortised
from gnothi.randomness import generator

SMALL: dict[str, Any] = {"width": 6, "hidden": 16, "encoder_hidden": 24, "batch": 50, "start": "random"}


def drawn(n: int = 300, seed: int = 0) -> list[Tensor]:
    """Members that bend the same four factors in their own ways."""
    g = generator(7, "maps")
    shared = torch.randn(n, 4, generator=generator(seed, "factors"), dtype=torch.float64)
    return [torch.tanh(shared @ torch.randn(4, d, generator=g, dtype=torch.float64)) for d in (9, 14)]


@pytest.fixture(scope="module")
def made() -> Any:
    return fit(drawn(), "amortised", epochs=120, lr_networks=5e-3, **SMALL)


def test_before_the_first_step_it_says_what_the_linear_start_says() -> None:
    features = drawn()
    begun = fit(features, "amortised", epochs=1, lr_networks=1e-30, power=None, **SMALL)
    descending = fit(features, "descent", epochs=1, **{k: v for k, v in SMALL.items() if k != "encoder_hidden"})
    assert torch.allclose(begun.transform(features), descending.transform(features, steps=0), atol=1e-12)


def test_what_it_says_of_new_images_explains_them_better_than_the_start(made: Any) -> None:
    new, model = drawn(seed=1), made.fitted
    said, first = model.codes(new), model.start.linear.transform(new)
    assert float(model.losses(new, said).mean()) < 0.5 * float(model.losses(new, first).mean())


def test_steps_of_descent_explain_images_better_still(made: Any) -> None:
    new = drawn(seed=1)
    losses = [float(made.fitted.losses(new, made.fitted.codes(new, steps=k)).mean()) for k in (0, 5, 100)]
    assert losses[2] < losses[1] < losses[0]
    assert torch.equal(made.transform(new), made.transform(new, steps=0))


def test_it_is_the_formula_of_its_tensors(made: Any) -> None:
    """What is on disk suffices without this library: a linear map a member, one hidden layer, and the components of what comes of both."""
    new, held, about = drawn(seed=1), made.fitted.tensors(), made.fitted.about()
    unit = [x / x.norm(dim=1, keepdim=True) for x in new]
    first = sum((x - held[f"start.linear.{j}.mean"]) @ held[f"start.linear.{j}.matrix"] for j, x in enumerate(unit))
    seen = torch.cat([(x - held[f"targets.{j}.mean"]) * held[f"targets.{j}.scale"] for j, x in enumerate(unit)], dim=1) * about["start"]["scale"]
    hidden = (seen @ held["start.network.0.weight"].T + held["start.network.0.bias"]).clamp(min=0)
    expected = first + hidden @ held["start.network.2.weight"].T + held["start.network.2.bias"]
    expected = (expected / expected.norm(dim=1, keepdim=True) - held["finish.0.mean"]) @ held["finish.0.matrix"]
    assert torch.allclose(made.transform(new), expected, atol=1e-10)


def test_restored_it_says_the_same(made: Any) -> None:
    again, new = Amortised.restore(made.fitted.about(), made.fitted.tensors(), made.spec), drawn(seed=1)
    assert torch.equal(again.transform(new, steps=3), made.transform(new, steps=3))


def test_a_missing_member_is_its_mean_to_the_network(made: Any) -> None:
    new = drawn(seed=1)
    found, whole = made.transform([new[0], None]), made.transform(new)
    assert torch.isfinite(found).all() and not torch.allclose(found, whole)
    assert torch.allclose(made.transform([new[0][:40], None]), found[:40], atol=1e-10)
