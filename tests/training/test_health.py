from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st

from gnothi.methods import METHODS, Method
from gnothi.models.backbone import BackboneSpec, build
from gnothi.randomness import seeded
from gnothi.training import health
from gnothi.training.objective import Objective

HEALTHY = {"std": 0.9, "feature_std": 0.7, "rankme": 20.0, "projection_rankme": 18.0}


# ---- measures -----------------------------------------------------------------------------------
def test_spread_is_zero_for_one_direction_and_one_for_opposite_or_all_directions() -> None:
    assert health.spread(torch.tensor([[1.0, 2.0]]) * torch.tensor([[1.0], [5.0], [0.1]])) == pytest.approx(0, abs=1e-7)
    assert health.spread(torch.tensor([[1.0, 2.0], [-3.0, -6.0]])) == pytest.approx(1)
    assert health.spread(torch.eye(8)) == pytest.approx(math.sqrt(1 - 1 / 8))


def test_spread_says_the_mean_cosine_of_all_pairs() -> None:
    x = toys.spherical(20, 6)
    unit = torch.nn.functional.normalize(x, dim=1)
    assert 1 - health.spread(x) ** 2 == pytest.approx((unit @ unit.T).mean().item())


@pytest.mark.parametrize("k", [1, 3, 7])
def test_rankme_of_k_equal_directions_is_k(k: int) -> None:
    assert health.rankme(torch.eye(k, 10).repeat(4, 1)) == pytest.approx(k, rel=1e-6)


def test_rankme_equals_the_exponential_of_the_entropy_of_singular_values() -> None:
    values = torch.tensor([4.0, 2.0, 1.0, 1.0])
    share = values / 8
    expected = math.exp(-sum(p * math.log(p) for p in share.tolist()))
    q = torch.linalg.qr(toys.spherical(9, 4))[0]
    assert health.rankme(q @ torch.diag(values.double())) == pytest.approx(expected)


@given(st.floats(1e-6, 1e6))
def test_rankme_ignores_scale_and_rotation(scale: float) -> None:
    x, turn = toys.spherical(12, 5), torch.linalg.qr(toys.spherical(5, 5, 1))[0]
    assert health.rankme(scale * x @ turn) == pytest.approx(health.rankme(x), rel=1e-9)
    assert 1 <= health.rankme(x) <= 5


def test_entropies_of_the_three_kinds() -> None:
    assert health.entropies(torch.full((6, 4), 0.25)) == pytest.approx((1, 1))  # uniform
    assert health.entropies(torch.eye(4)[[0, 0, 0]]) == pytest.approx((0, 0), abs=1e-12)  # one winner
    assert health.entropies(torch.eye(4)) == pytest.approx((0, 1), abs=1e-12)  # certain and balanced
    assert health.entropies(torch.tensor([[0.5, 0.5, 0, 0]])) == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize("name", toys.NAMES)
def test_measuring_moves_nothing_and_repeats_itself(name: str) -> None:
    method = toys.method(name, norm="batch", backbone=toys.NormedBackbone)
    method.space.eval()  # modes are restored one by one
    before, modes = toys.parameters(method), [m.training for m in method.modules()]
    sample = toys.views(9).images[0]
    first, again = (health.measure(method, sample, toys.step(7)) for _ in range(2))
    assert first == again and all(math.isfinite(v) for v in first.values())
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
    assert [m.training for m in method.modules()] == modes
    assert ("teacher_entropy" in first) == (name in ("swav", "dino"))
    pooled = method.backbone.eval()(sample).pooled
    assert first["rankme"] == pytest.approx(health.rankme(pooled.detach())) and first["feature_std"] == pytest.approx(health.spread(pooled.detach()))


# ---- verdicts -----------------------------------------------------------------------------------
def history(*last: dict[str, float], first: dict[str, float] | None = None) -> list[dict[str, float]]:
    return [{**HEALTHY, **(first or {})}, HEALTHY, *({**HEALTHY, **v} for v in last)]


TARGETS = {"teacher_entropy": 0.48, "mean_entropy": 0.88}
COLLAPSES: list[tuple[dict[str, float], str]] = [
    ({"std": 0.01, "projection_rankme": 1.1}, "constant"),
    ({"std": 0.33, "projection_rankme": 4.0}, "dimensional"),  # BYOL without predictor on photographs
    ({"std": 0.52, "projection_rankme": 2.8}, "dimensional"),  # SimSiam without stop-gradient on photographs
    ({"teacher_entropy": 0.013, "mean_entropy": 0.11}, "constant"),  # DINO without centring on photographs
    ({"teacher_entropy": 0.0, "mean_entropy": 0.0}, "constant"),
    ({"teacher_entropy": 0.99, "mean_entropy": 0.998}, "uniform"),
    ({"teacher_entropy": 1.0, "mean_entropy": 1.0}, "uniform"),
]


@pytest.mark.parametrize(("values", "kind"), COLLAPSES)
def test_what_two_measurements_show_is_named_with_advice(values: dict[str, float], kind: str) -> None:
    found = health.verdict(history(values, values), "dino" if "mean_entropy" in values else "byol", 100)
    assert (found.verdict, found.collapse) == ("collapsed", kind)
    assert found.why and ("method." in found.advice)
    once = health.verdict(history({**TARGETS} if "mean_entropy" in values else {}, values), "byol", 100)
    assert (once.verdict, once.collapse) == ("undecided", kind) and once.why.endswith("but only at the last measurement")


HEALTHY_RUNS = [
    {"std": 0.65, "projection_rankme": 10.8, **TARGETS},  # DINO
    {"std": 0.66, "projection_rankme": 12.3, "teacher_entropy": 0.73, "mean_entropy": 0.99},  # SwAV
    {"std": 0.69, "projection_rankme": 5.7},  # Barlow Twins
    {"std": 0.78, "projection_rankme": 10.6},  # VICReg
    {"std": 0.97, "projection_rankme": 22.6},  # MoCo
    {"std": 0.17, "projection_rankme": 2.8, "teacher_entropy": 0.82, "mean_entropy": 0.96},  # DINO's bottleneck may be narrow
]


@pytest.mark.parametrize("values", HEALTHY_RUNS)
def test_healthy_measurements_are_named_healthy(values: dict[str, float]) -> None:
    found = health.verdict(history(values, values), "simclr", 100)
    assert (found.verdict, found.collapse, found.advice) == ("healthy", None, "")


def test_a_narrow_start_that_widens_is_no_collapse() -> None:
    rising = {"std": 0.5, "projection_rankme": 4.2}
    found = health.verdict(history(rising, rising, first={"std": 0.13, "projection_rankme": 3.1}), "simclr", 100)
    assert found.verdict == "healthy"


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_measurements_decide_nothing(n: int) -> None:
    found = health.verdict([HEALTHY] * n, "simclr", 7)
    assert found.verdict == "undecided" and f"too few health measurements, {n}, after 7 steps" in found.why


# ---- real runs ----------------------------------------------------------------------------------
def trained(folder: Path, name: str, lr: float, **settings: Any) -> health.Verdict:
    """A short run on patterns with a micro ResNet, and its verdict."""
    spec, kind = METHODS[name]
    backbone = build(BackboneSpec(args={"widths": [8, 16]}), 3, 12, 0)
    with seeded(0, "health"):
        method: Method = kind(backbone, spec(**{"hidden": 64, "out": 32, **settings}))
    feed, lines = toys.Patterns(), list[dict[str, Any]]()
    rare = {"health_every": "10%", "log_every": "100%", "checkpoint_every": "100%"}
    where = {"folder": folder, "sinks": [lines.append], "sample": feed.sample()}
    toys.learner(Objective(method), feed, total=150, optimiser={"lr": lr}, training=rare, **where).fit()
    return health.verdict([line for line in lines if line["kind"] == "health"], name, 150)


WITHOUT = [("byol", 0.2, {"predictor": 0}), ("simsiam", 0.3, {"stop_gradient": False}), ("dino", 0.1, {"momentum": 0.95, "centring": "none"})]
WITH = [("simclr", 0.1, {}), ("byol", 0.2, {}), ("simsiam", 0.3, {}), ("dino", 0.05, {"prototypes": 64})]


@pytest.mark.parametrize(("name", "lr", "settings"), WITHOUT)
def test_a_method_without_what_keeps_it_from_collapse_is_named_collapsed(tmp_path: Path, name: str, lr: float, settings: dict[str, Any]) -> None:
    found = trained(tmp_path, name, lr, **settings, **({"prototypes": 64} if name == "dino" else {}))
    assert found.verdict == "collapsed", found
    assert found.collapse is not None and "method." in found.advice


@pytest.mark.parametrize(("name", "lr", "settings"), WITH)
def test_a_method_with_it_is_named_healthy(tmp_path: Path, name: str, lr: float, settings: dict[str, Any]) -> None:
    found = trained(tmp_path, name, lr, **settings)
    assert found.verdict == "healthy", found
