from __future__ import annotations

import math

import oracles
import pytest
import torch
import toys
from torch import nn

from gnothi.methods import Group
from gnothi.randomness import generator
from gnothi.training.optimisers import LARS, OptimiserSpec, build, parameter_groups, set_rates


class Parts(nn.Module):
    """One of each kind of parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.predictor = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)


def groups_by_name(module: nn.Module, groups: tuple[Group, ...] = ()) -> dict[str, dict[str, object]]:
    names = {id(p): n for n, p in module.named_parameters()}
    return {names[id(p)]: {k: v for k, v in g.items() if k != "params"} for g in parameter_groups(module, groups) for p in g["params"]}


@pytest.mark.parametrize("adapt", [True, False])
def test_lars_equals_a_slow_loop(adapt: bool) -> None:
    start = torch.randn(6, generator=generator(0, "lars"), dtype=torch.float64)
    gradients = torch.randn(5, 6, generator=generator(1, "lars"), dtype=torch.float64)
    p = nn.Parameter(start.clone().view(2, 3) if adapt else start.clone())
    optimiser = LARS([{"params": [p], "adapt": adapt}], lr=0.3, momentum=0.9, weight_decay=0.02 if adapt else 0.0, trust=0.01)
    for g in gradients:
        p.grad = g.view(p.shape).clone()
        optimiser.step()
    expected = oracles.lars(start.tolist(), gradients.tolist(), lr=0.3, momentum=0.9, decay=0.02, trust=0.01, adapt=adapt)
    torch.testing.assert_close(p.detach().flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14)


def test_lars_takes_plain_steps_where_weights_or_gradient_are_zero() -> None:
    zero = nn.Parameter(torch.zeros(2, 2))
    optimiser = LARS([{"params": [zero], "adapt": True}], lr=0.5, weight_decay=0.1)
    zero.grad = torch.ones(2, 2)
    optimiser.step()
    assert torch.equal(zero.detach(), torch.full((2, 2), -0.5))
    zero.grad = None
    optimiser.step()
    assert torch.equal(zero.detach(), torch.full((2, 2), -0.5))  # a frozen tensor does not coast on its momentum


def test_biases_and_norms_do_not_decay_and_frozen_parameters_have_no_optimiser() -> None:
    found = groups_by_name(Parts())
    assert {n: g["adapt"] for n, g in found.items()} == {
        "linear.weight": True, "linear.bias": False, "norm.weight": False, "norm.bias": False, "predictor.weight": True, "predictor.bias": False,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_with_zero_gradients_only_weights_shrink(name: str) -> None:
    module, spec = Parts(), OptimiserSpec(name=name, lr=0.1, weight_decay=0.5, warm_up="0 steps")
    nn.init.ones_(module.norm.bias)
    before = toys.parameters(module)
    optimiser = build(spec, module, ())
    set_rates(optimiser, spec, 0.0, 0.0)
    for p in module.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    optimiser.step()
    for key, p in module.named_parameters():
        shrunk = not torch.equal(p.detach(), before[key])
        assert shrunk == (key in ("linear.weight", "predictor.weight")), key


def test_a_constant_group_ignores_warm_up_and_decay_of_the_rate() -> None:
    module, spec = Parts(), OptimiserSpec(lr=0.4, lr_end=0.1, warm_up="10%")
    groups = (Group("predictor.*", schedule="constant"), Group("norm.*", scale=0.5))
    assert groups_by_name(module, groups)["predictor.weight"]["schedule"] == "constant"
    optimiser = build(spec, module, groups)
    for progress, usual in ((0.0, 0.0), (0.05, 0.2), (0.1, 0.4), (0.55, 0.25), (1.0, 0.1)):
        lr, _ = set_rates(optimiser, spec, progress, 0.1)
        assert lr == pytest.approx(usual)
        by_name = {n: g for n, g in _rates(module, optimiser).items()}
        assert by_name["predictor.weight"] == by_name["predictor.bias"] == pytest.approx(0.4)
        assert by_name["norm.weight"] == pytest.approx(usual / 2) and by_name["linear.weight"] == pytest.approx(usual)


def _rates(module: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, float]:
    names = {id(p): n for n, p in module.named_parameters()}
    return {names[id(p)]: g["lr"] for g in optimiser.param_groups for p in g["params"]}


def test_weight_decay_follows_half_a_cosine_and_stays_zero_for_biases() -> None:
    module, spec = Parts(), OptimiserSpec(lr=0.1, weight_decay=0.04, weight_decay_end=0.4)
    optimiser = build(spec, module, ())
    for progress, expected in ((0.0, 0.04), (0.5, 0.22), (1.0, 0.4)):
        assert set_rates(optimiser, spec, progress, 0.1)[1] == pytest.approx(expected)
        assert sorted(g["weight_decay"] for g in optimiser.param_groups) == pytest.approx([0.0, expected])


def test_simsiam_s_predictor_and_nothing_else_keeps_a_constant_rate() -> None:
    method = toys.method("simsiam")
    constant = {n for n, g in groups_by_name(method, method.groups()).items() if g["schedule"] == "constant"}
    assert constant == {n for n, _ in method.named_parameters() if ".predictor." in n} != set()
    assert toys.method("simsiam", constant_predictor_rate=False).groups() == ()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_sgd_and_adamw_are_torch_s_own_over_a_whole_schedule(name: str) -> None:
    module, other = Parts(), Parts()
    other.load_state_dict(module.state_dict())
    spec = OptimiserSpec(name=name, lr=0.1, weight_decay=0.2, betas=(0.8, 0.95))
    optimiser = build(spec, module, ())
    split = [[p for p in other.parameters() if p.requires_grad and (p.ndim > 1) == wide] for wide in (False, True)]
    kinds = {"sgd": (torch.optim.SGD, {"momentum": 0.9}), "adamw": (torch.optim.AdamW, {"betas": (0.8, 0.95)})}
    kind, settings = kinds[name]
    theirs = kind([{"params": split[0], "weight_decay": 0.0}, {"params": split[1], "weight_decay": 0.2}], lr=0.1, **settings)
    for i in range(6):
        set_rates(optimiser, spec, i / 6, 1 / 3)
        for g in theirs.param_groups:
            g["lr"] = 0.1 * i / 2 if i < 2 else 0.05 * (1 + math.cos(math.pi * (i - 2) / 4))
        for a, b in zip(module.parameters(), other.parameters(), strict=True):
            a.grad = torch.randn(a.shape, generator=generator(i, "g"))
            b.grad = a.grad.clone()
        optimiser.step()
        theirs.step()
    for a, b in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
