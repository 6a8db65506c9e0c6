from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from toys import NAMES, Feed, NormedBackbone, Patterns, learner, method, parameters, same, step, views

from gnothi.auxiliary.rotation import Rotation, RotationSpec, turn
from gnothi.contracts import SettingError, Want
from gnothi.randomness import generator, seeded
from gnothi.recipes.resolve import resolve
from gnothi.training.objective import Objective


def beside(name: str = "simclr", backbone=None, **settings) -> Objective:
    base = method(name, **({"backbone": backbone} if backbone else {}))
    with seeded(0, "rotation"):
        return Objective(base, {"rotation": Rotation(base, RotationSpec(**settings)).double()})


def term(objective: Objective, given=None) -> Tensor:
    drawn = objective.draw(given or views(), step())
    outputs = objective.method(drawn, Want(), step())
    return objective.auxiliaries["rotation"](objective.method, drawn, outputs, step())[0]["rotation"]


def by_hand(image: Tensor, quarters: int) -> Tensor:
    """Anticlockwise, pixel by pixel: what stood at (row, column) stands at (S - 1 - column, row)."""
    size = image.shape[-1]
    out = torch.empty_like(image)
    for row in range(size):
        for column in range(size):
            r, c = row, column
            for _ in range(quarters):
                r, c = size - 1 - c, r
            out[:, r, c] = image[:, row, column]
    return out


def test_an_image_is_turned_anticlockwise_by_its_own_angle():
    images = torch.randn(4, 2, 5, 5, generator=generator(0, "turn"))
    turned = turn(images, torch.tensor([3, 0, 2, 1]))
    assert all(torch.equal(turned[i], by_hand(images[i], k)) for i, k in enumerate([3, 0, 2, 1]))


@pytest.mark.parametrize("on", ["backbone", "projector"])
@pytest.mark.parametrize("angles", [(0, 90, 180, 270), (0, 180), (90, 270, 0)])
def test_the_term_is_the_sum_over_views_of_the_mean_cross_entropy(on, angles):
    objective, given = beside(on=on, angles=angles, norm="layer"), views()
    aux, base = objective.auxiliaries["rotation"], objective.method
    labels = aux.draw(len(given.index), step())
    total = 0.0
    for v in range(2):
        for i, image in enumerate(given.images[v]):
            label = int(labels[i, v])
            pooled = base.backbone(by_hand(image, angles[label] // 90)[None]).pooled
            logits = aux.head(pooled if on == "backbone" else base.space.head(pooled).projection)[0].tolist()
            total += (math.log(sum(map(math.exp, logits))) - logits[label]) / len(given.index)
    assert term(objective, given).item() == pytest.approx(total, rel=1e-12)


def test_angles_are_drawn_for_the_joint_batch_each_as_often_and_one_for_each_view():
    aux = beside().auxiliaries["rotation"]
    labels = aux.draw(4000, step())
    assert torch.equal(labels[:10], aux.draw(4000, step())[:10]) and not torch.equal(labels, aux.draw(4000, step(4)))
    counts = torch.stack([torch.bincount(labels[:, v], minlength=4) for v in range(2)])
    assert (counts - 1000).abs().max() < 5 * math.sqrt(4000 * 0.25 * 0.75)
    assert 0.2 < (labels[:, 0] == labels[:, 1]).double().mean() < 0.3


@pytest.mark.parametrize("name", NAMES)
def test_its_gradient_reaches_the_online_backbone_and_its_head_and_nothing_else(name):
    objective = beside(name)
    term(objective).backward()
    reached = {n for n, p in objective.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    expected = {n for n, _ in objective.named_parameters() if n.startswith(("method.backbone.", "auxiliaries.rotation.head"))}
    still = {n for n in expected if n.endswith("head.0.bias")}  # a bias before BatchNorm moves nothing
    assert expected - still <= reached | still and reached <= expected


@pytest.mark.parametrize("statistics", ["keep", "update"])
def test_running_statistics_move_only_where_asked(statistics):
    one, two = beside(backbone=NormedBackbone, statistics=statistics), method("simclr", backbone=NormedBackbone)
    given = views()
    term(one, given)
    two(given, Want(), step())
    moved = one.method.backbone.bn.running_mean
    assert torch.equal(moved, two.backbone.bn.running_mean) == (statistics == "keep")


@pytest.mark.parametrize("name", NAMES)
def test_a_late_rotation_leaves_the_method_as_it_is_without_it(name):
    def trained(*auxiliaries: str) -> dict[str, Tensor]:
        base = method(name)
        made = {"rotation": Rotation(base, RotationSpec(start=0.99)).double()} if auxiliaries else {}
        run = learner(Objective(base, made), Feed(dtype=torch.float64), total=4)
        run.fit()
        return {k: v for k, v in parameters(run.objective).items() if k.startswith("method.")}

    with_it, without = trained("rotation"), trained()
    assert same(with_it, without)


def test_angles_of_patterns_with_an_up_are_learned():
    base = method("simclr")
    objective = Objective(base.float(), {"rotation": Rotation(base, RotationSpec(weight=1.0))})
    patterns = Patterns()
    patterns.images = patterns.images + torch.linspace(-3, 3, 16)[:, None]  # lighter below
    run = learner(objective, patterns, total=60, optimiser={"lr": 0.1}, training={"log_every": "60 steps"})
    losses: list[float] = []
    run.journal.write = lambda kind, step, seconds, line: losses.append(line["terms"]["rotation"]) if kind == "train" else None  # type: ignore[method-assign]
    run.every["log_every"] = 15
    run.fit()
    assert losses[0] > 0.9 * losses[-1] and losses[-1] < 0.5 * 2 * math.log(4)


@pytest.mark.parametrize("angles", [(0,), (0, 45), (0, 360), (0, 90, 180, 270, 360)])
def test_angles_that_cannot_be_are_refused(angles):
    with pytest.raises(ValueError, match="different multiples of 90"):
        RotationSpec(angles=angles)


def test_views_that_are_turned_already_are_refused():
    with pytest.raises(SettingError, match=r"auxiliary\.rotation needs views with an up"):
        resolve("photos", settings={"auxiliary": {"rotation": {}}, "views": {"turns": True}})
    assert "rotation" in resolve("photos", settings={"auxiliary": {"rotation": {}}}).spec.auxiliary
