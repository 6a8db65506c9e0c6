from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.stats import chi2_contingency
from torch import Tensor, nn
from toys import NAMES, TEACHERS, Feed, NormedBackbone, Patterns, ToyBackbone, learner, method, parameters, same, step, views

from gnothi.auxiliary.rotation import EFFSSL, ESSL, Rotation, RotationSpec, all_turns, turn
from gnothi.contracts import Encoding, SettingError, Views, Want
from gnothi.methods import METHODS, STUDENTS
from gnothi.methods.none import NoMethod, NoneSpec
from gnothi.models.backbone import patch_size
from gnothi.models.micro_vit import MicroViT
from gnothi.randomness import generator, seeded
from gnothi.recipes.resolve import resolve
from gnothi.recipes.views import named
from gnothi.training.objective import Objective


def beside(name: str = "simclr", backbone=None, **settings) -> Objective:
    base = method(name, **({"backbone": backbone} if backbone else {}))
    with seeded(0, "rotation"):
        return Objective(base, {"rotation": Rotation(base, RotationSpec(**settings)).double()})


def alone(backbone=ToyBackbone, **settings) -> Objective:
    with seeded(0, "rotation"):
        base = NoMethod(backbone(), NoneSpec()).double()
        return Objective(base, {"rotation": Rotation(base, RotationSpec(**settings)).double()})


def with_crop(given: Views, size: int = 8, value: float | None = None) -> Views:
    """The same views, and a crop of rotation's own."""
    crop = views(len(given.index), size=size, seed=7)
    images = crop.images[:1] if value is None else (torch.full_like(crop.images[0], value),)
    return replace(given, extra={"rotation": replace(crop, images=images, boxes=crop.boxes[:1], flips=crop.flips[:1], turns=crop.turns[:1])})


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


# ---- turning ------------------------------------------------------------------------------------
def test_an_image_is_turned_anticlockwise_by_its_own_angle():
    images = torch.randn(4, 2, 5, 5, generator=generator(0, "turn"))
    turned = turn(images, torch.tensor([3, 0, 2, 1]))
    assert all(torch.equal(turned[i], by_hand(images[i], k)) for i, k in enumerate([3, 0, 2, 1]))


def test_the_four_turns_of_two_by_two_pixels():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]
    expected = ([[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]])
    assert [turn(x, torch.tensor([k]))[0, 0].tolist() for k in range(4)] == [list(map(list, e)) for e in expected]


def test_turns_are_transposes_and_flips_and_a_transpose_alone_is_none_of_them():
    x = torch.randn(1, 2, 5, 5, generator=generator(0, "turn"))
    turned = [turn(x, torch.tensor([k])) for k in range(4)]
    assert torch.equal(turned[1], x.flip(3).mT) and torch.equal(turned[2], x.flip(2).flip(3)) and torch.equal(turned[3], x.mT.flip(3))
    assert torch.equal(turn(turned[3], torch.tensor([1])), x)
    assert not any(torch.equal(x.mT, t) for t in turned)
    for k in range(4):  # a flip turns anticlockwise into clockwise
        assert torch.equal(turn(x.flip(3), torch.tensor([k])), turn(x, torch.tensor([-k % 4])).flip(3))


def test_images_that_are_not_square_cannot_be_turned_and_a_canvas_of_their_own_would_give_the_angle_away():
    with pytest.raises(RuntimeError):
        turn(torch.ones(1, 1, 40, 60), torch.tensor([1]))
    on_its_canvas = ndimage.rotate(np.ones((40, 60)), 90, reshape=False, order=0)
    assert (on_its_canvas == 0).mean() == pytest.approx(1 / 3)
    assert (turn(torch.ones(1, 1, 40, 40), torch.tensor([1])) == 1).all()


def test_all_turns_stand_in_blocks_of_one_turn():
    images = torch.randn(2, 3, 4, 4, generator=generator(0, "turn"))
    turned, labels = all_turns(images, torch.arange(4))
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert all(torch.equal(turned[2 * k + j], by_hand(images[j], k)) for k in range(4) for j in range(2))


# ---- the term -----------------------------------------------------------------------------------
@pytest.mark.parametrize(("logits", "right", "wrong"), [(0.0, math.log(4), math.log(4)), (2.0, 0.3407531, 2.3407531)])
def test_the_cross_entropy_of_known_logits(logits, right, wrong):
    """Nothing said costs ln 4 a view, 2.7725887 for two and 0.2772589 at a weight of 0.1."""
    objective, given = beside(), views()
    aux = objective.auxiliaries["rotation"]
    labels = aux.draw(len(given.index), step())
    for shift, expected in ((0, right), (1, wrong)):
        said = iter([logits * nn.functional.one_hot((labels[:, v] + shift) % 4, 4).double() for v in range(2)])
        aux.logits = lambda method, images, said=said: next(said)
        assert term(objective, given).item() == pytest.approx(2 * expected, abs=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"form": "essl"}, {"form": "essl", "copies": "one", "angles": (0, 180)}, {"copies": "all"}, {"views": (1,)}, {"joint": True},
        {"joint": True, "copies": "all", "reduction": "mean"}, {"reduction": "mean"}, {"views": (1, 0)},
    ],
    ids="-".join,
)  # fmt: skip
def test_every_form_is_the_mean_over_a_view_s_turned_images_and_the_sum_or_mean_over_views(settings: dict[str, Any]):
    objective, given = beside(norm="layer", **settings), with_crop(views())
    aux, base = objective.auxiliaries["rotation"], objective.method
    angles, essl = settings.get("angles", (0, 90, 180, 270)), settings.get("form") == "essl"
    crops = given.extra["rotation"].images if essl else [given.images[v] for v in settings.get("views", (0, 1))]
    one = (settings.get("copies") or ("all" if essl else "one")) == "one"
    labels = aux.draw(len(given.index), step())
    assert (labels is not None) == one and (labels is None or labels.shape == (6, len(crops)))
    means = []
    for v, images in enumerate(crops):
        losses = []
        for i, image in enumerate(images):
            for label in [int(labels[i, v])] if one else range(len(angles)):
                logits = aux.head(base.backbone(by_hand(image, angles[label] // 90)[None]).pooled)[0].tolist()
                losses.append(math.log(sum(map(math.exp, logits))) - logits[label])
        means.append(math.fsum(losses) / len(losses))
    total = math.fsum(means) / (len(means) if settings.get("reduction") == "mean" else 1)
    assert term(objective, given).item() == pytest.approx(total, rel=1e-12)


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
    table = torch.bincount(4 * labels[:, 0] + labels[:, 1], minlength=16).reshape(4, 4)
    assert chi2_contingency(table.numpy()).pvalue > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_its_gradient_reaches_the_online_backbone_and_its_head_and_nothing_else(name):
    objective = beside(name)
    term(objective).backward()
    reached = {n for n, p in objective.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    expected = {n for n, _ in objective.named_parameters() if n.startswith(("method.backbone.", "auxiliaries.rotation.head"))}
    still = {n for n in expected if n.endswith("head.0.bias")}  # a bias before BatchNorm moves nothing
    assert expected - still <= reached | still and reached <= expected


@pytest.mark.parametrize("name", NAMES)
def test_teachers_and_queues_never_meet_a_turned_image(name):
    met: dict[bool, list[Tensor]] = {}
    queues = {}
    for with_it in (True, False):
        base = method(name)
        made = {"rotation": Rotation(base, RotationSpec()).double()} if with_it else {}
        run = learner(Objective(base, made), Feed(dtype=torch.float64), total=4)
        met[with_it] = []
        slow = base.slow if base.slow is not None else nn.Module()
        slow.register_forward_pre_hook(lambda module, args, found=met[with_it]: found.append(args[0].clone()))
        run.step()
        queues[with_it] = getattr(base.space, "queue", torch.zeros(0)).clone()
    assert bool(met[True]) == (name in TEACHERS) and len(met[True]) == len(met[False])
    assert all(torch.equal(a, b) for a, b in zip(met[True], met[False], strict=True))
    assert torch.equal(queues[True], queues[False]) and bool(queues[True].any()) == (name == "swav")


def test_the_gradient_is_that_of_the_method_and_the_weight_times_that_of_the_term():
    objective = beside(weight=0.3)
    drawn = objective.draw(views(), step())

    def gradient(value: Tensor) -> Tensor:
        objective.zero_grad()
        value.backward()
        return torch.cat([p.grad.flatten() for p in objective.method.backbone.parameters()])

    outputs = objective.method(drawn, Want(), step())
    base = gradient(objective.method.loss(drawn, outputs, step())[0]["simclr"])
    own = gradient(term(objective))
    torch.testing.assert_close(gradient(objective(drawn, step())[0]), base + 0.3 * own, rtol=1e-10, atol=1e-12)


# ---- running statistics -------------------------------------------------------------------------
class Corner(nn.Module):
    """BatchNorm of the pixel at the top left."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.bn, self.scale = 1, nn.BatchNorm1d(1), nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor, want: Want = Want(), mask: Tensor | None = None) -> Encoding:
        return Encoding(self.bn(images[:, 0, 0, :1]) * self.scale, None, (1, 1))


def running_mean(objective: Objective, given: Views, steps: int) -> float:
    for _ in range(steps):
        term(objective, given)
    return float(objective.method.backbone.bn.running_mean)


@pytest.mark.parametrize(("upright", "turned", "expected"), [(0.0, 1.0, 0.5525), (1.0, 0.0, 0.4475)])
def test_with_update_turned_views_supply_more_than_half_of_the_running_statistics(upright, turned, expected):
    """Two upright passes, then two turned ones, at a momentum of 0.1."""
    base = method("simclr", backbone=Corner, joint_views=False)
    objective = Objective(base, {"rotation": Rotation(base, RotationSpec(angles=(90, 180, 270), statistics="update")).double()})
    image = torch.full((6, 3, 16, 16), turned, dtype=torch.float64)
    image[:, :, 0, 0] = upright
    assert running_mean(objective, replace(views(), images=(image, image)), 200) == pytest.approx(expected, abs=5e-5)


def test_with_update_the_small_crop_supplies_a_third_and_a_pass_weighs_more_the_later_it_is():
    def made() -> Objective:
        base = method("simclr", backbone=Corner, joint_views=False)
        return Objective(base, {"rotation": Rotation(base, RotationSpec(form="essl", statistics="update")).double()})

    def constant(*values: float) -> Views:
        return with_crop(replace(views(), images=tuple(torch.full((6, 3, 16, 16), v, dtype=torch.float64) for v in values[:2])), value=values[2])

    assert running_mean(made(), constant(0, 0, 1), 200) == pytest.approx(0.3690, abs=5e-5)
    assert running_mean(made(), constant(1, 10, 100), 1) == pytest.approx(10.981)


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


def accuracy(objective: Objective, images: Tensor, flips: str = "") -> float:
    """Over all four turns, and where images are flipped before or after, over both flips."""
    right = []
    objective.eval()
    with torch.no_grad():
        for flip, k in product((False, True) if flips else (False,), range(4)):
            x = images.flip(3) if flip and flips == "before" else images
            x = x.rot90(k, (2, 3))
            x = x.flip(3) if flip and flips == "after" else x
            right.append(objective.auxiliaries["rotation"].logits(objective.method, x).argmax(1) == k)
    return torch.cat(right).double().mean().item()


@pytest.mark.parametrize("copies", ["one", "all"])
def test_angles_of_images_with_an_up_are_learned_unless_a_flip_follows_or_the_image_looks_alike_from_all_sides(copies):
    objective, patterns = alone(views=(0,), copies=copies).float(), Patterns()
    patterns.images = torch.linspace(-1, 1, 16)[:, None].expand(256, 3, 16, 16)  # darker above, each row of one colour
    run = learner(objective, patterns, total=60, optimiser={"lr": 0.1})
    run.fit()
    rows = torch.linspace(-1, 1, 12)
    up = rows[:, None].expand(8, 3, 12, 12)
    squares = torch.maximum(rows.abs()[:, None], rows.abs()).expand(8, 3, 12, 12)
    assert accuracy(objective, up) == accuracy(objective, up, "before") == 1
    assert accuracy(objective, up, "after") == 0.75  # 90 and 270 degrees cannot be told
    assert accuracy(objective, squares) == 0.25
    told = replace(patterns(0), images=(up, up), index=torch.arange(8))
    assert objective.auxiliaries["rotation"].diagnose(objective.method, objective.draw(told, step()), step()) == {"accuracy": 1.0, "chance": 0.25}
    pairs = all_turns(squares, torch.arange(4))
    logits = objective.auxiliaries["rotation"].logits(objective.method, pairs[0])
    assert nn.functional.cross_entropy(logits, pairs[1]) >= math.log(4) - 1e-6


# ---- settings -----------------------------------------------------------------------------------
@pytest.mark.parametrize("angles", [(0,), (0, 45), (0, 360), (0, 90, 180, 270, 360)])
def test_angles_that_cannot_be_are_refused(angles):
    with pytest.raises(ValueError, match="different multiples of 90"):
        RotationSpec(angles=angles)


def test_views_that_are_turned_already_are_refused():
    with pytest.raises(SettingError, match=r"auxiliary\.rotation needs views with an up"):
        resolve("photos", settings={"auxiliary": {"rotation": {}}, "views": {"turns": True}})
    assert "rotation" in resolve("photos", settings={"auxiliary": {"rotation": {}}}).spec.auxiliary


def test_presets_follow_form_method_and_the_size_of_the_views():
    """E-SSL: 0.4 for SimCLR, 0.4 and 0.08 for SimSiam on CIFAR-10 and ImageNet, 8 for Barlow Twins; EffSSL: 0.1 for SwAV, a sum over two views."""

    def weight(name: str, size: int = 32, **settings: Any) -> float:
        return RotationSpec(**settings).settled(name, named("simclr", size)).weight

    assert [weight(n, form="essl") for n in ("simclr", "simsiam", "barlow")] == [0.4, 0.4, 8.0]
    assert weight("simsiam", 224, form="essl") == 0.08 and weight("simclr", 224, form="essl") == 0.4
    assert weight("swav") == 0.1 and weight("swav", reduction="mean") == 0.2 and weight("swav", views=(0,), reduction="mean") == 0.1
    assert EFFSSL.keys() == ESSL.keys() == METHODS.keys() - set(STUDENTS)
    assert weight("simclr", weight=0.7) == 0.7 and beside("swav").auxiliaries["rotation"].weights(step()) == {"rotation": 0.1}


@pytest.mark.parametrize(("size", "crop", "area"), [(32, 16, (0.2, 1.0)), (96, 48, (0.05, 0.14)), (224, 96, (0.05, 0.14))])
def test_the_small_crop_follows_the_views_and_is_coloured_as_they_are(size, crop, area):
    given = named("byol", size)
    for spec in (RotationSpec(form="essl"), RotationSpec(form="essl").settled("simclr", given)):
        aux = Rotation(method("simclr"), spec)
        (found,) = aux.crops(given)
        assert (found.size, found.area) == (crop, area) and found.photometric == given.global_crops[1].photometric
        assert aux.passes(given) == (crop,) * 4
    own = Rotation(method("simclr"), RotationSpec(form="essl", crop_size=24, crop_area=(0.3, 0.6)))
    assert (own.crops(given)[0].size, own.crops(given)[0].area) == (24, (0.3, 0.6))
    assert Rotation(method("simclr"), RotationSpec()).crops(given) == () and Rotation(method("simclr"), RotationSpec()).passes(given) == (size, size)


@pytest.mark.parametrize("size", [32, 48, 64, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256, 512])
def test_the_small_crop_is_about_half_a_view_and_whole_patches_of_a_vit_made_for_it(size):
    """A ViT whose own patches have 16 pixels."""
    crop = RotationSpec(form="essl").settled("simclr", named("simclr", size)).crop_size
    assert crop % patch_size(size, 16) == 0
    assert crop == 96 if size >= 224 else 0.44 * size < crop < 0.58 * size


def test_a_small_crop_that_no_patch_divides_is_refused_by_its_name():
    base = method("simclr", backbone=lambda: MicroViT(size=28, patch_size=14, width=12, depth=1, heads=2))
    with pytest.raises(SettingError, match=r"^auxiliary\.rotation\.crop_size must be a multiple of the patch size 14, got 96; 84 and 98 are near"):
        Rotation(base, RotationSpec(form="essl").settled("simclr", named("simclr", 224)))
    assert Rotation(base, RotationSpec(form="essl", crop_size=98)).passes(named("simclr", 224)) == (98,) * 4


def test_heads_are_those_of_the_two_papers():
    def layers(name: str, **settings: Any) -> list[str]:
        head = Rotation(method(name), RotationSpec(**settings)).head
        return [f"{m.in_features}>{m.out_features}" if isinstance(m, nn.Linear) else type(m).__name__ for m in head]

    assert layers("simclr") == ["12>12", "BatchNorm1d", "ReLU", "12>4"]
    assert layers("simclr", form="essl") == ["12>48", "LayerNorm", "ReLU", "48>48", "LayerNorm", "ReLU", "48>4"]
    assert layers("simsiam", form="essl", hidden=(9, 7)) == ["12>9", "LayerNorm", "ReLU", "9>7", "LayerNorm", "7>4"]
    assert not RotationSpec(form="essl").settled("simclr", named("simclr", 96)).last_relu
    wide = ToyBackbone(width=700)
    assert Rotation(method("simclr", backbone=lambda: wide), RotationSpec(form="essl")).head[0].out_features == 2048


def test_alone_every_angle_of_a_view_is_shown_and_supplies_the_running_statistics():
    found = RotationSpec().settled("none", named("plain", 32))
    assert (found.copies, found.statistics, found.views, found.weight) == ("all", "update", (0,), 1.0)
    assert found.settled("none", named("plain", 32)) == found


@pytest.mark.parametrize(
    ("settings", "name", "message"),
    [
        ({"views": (0, 2)}, "simclr", r"auxiliary\.rotation\.views must lie below the number of global views, 2, got \[0, 2\]"),
        ({"form": "essl", "views": (0,)}, "simclr", r"auxiliary\.rotation\.views means nothing with auxiliary\.rotation\.form=essl"),
        ({"crop_size": 8}, "simclr", r"auxiliary\.rotation\.crop_size means nothing with auxiliary\.rotation\.form=effssl"),
        ({"on": "projector"}, "none", r"auxiliary\.rotation\.on must be \"backbone\" for method none"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, name, message):
    with pytest.raises(SettingError, match=message):
        RotationSpec(**settings).settled(name, named("simclr", 32))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": ()}, "different numbers"),
        ({"views": (0, 0)}, "different numbers"),
        ({"hidden": ()}, "at least one"),
        ({"crop_area": (0.5, 0.1)}, "<="),
    ],
)
def test_lists_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RotationSpec(**settings)
