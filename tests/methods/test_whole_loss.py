from __future__ import annotations

import oracles
import pytest
import torch
import torch.nn.functional as F
import toys
from lightly.loss import DCLLoss
from oracles import Matrix, plain
from torch import Tensor, nn

from gnothi.contracts import Step, Views, Want
from gnothi.methods import Method

EXACT = {"rel": 1e-9, "abs": 1e-10}
"""float64 on both sides; barlow's guard of the root is 1e-12."""
CASES = [(name, 0) for name in toys.NAMES] + [(name, n) for name in toys.MULTI_CROP for n in (1, 3)]


def projections(method: Method, images: Tensor, *, slow: bool = False) -> Tensor:
    backbone, head = (method.slow, method.space.slow) if slow else (method.backbone, method.space.head)
    assert backbone is not None and head is not None
    return head.projector(backbone(images).pooled)


def expected(method: Method, views: Views, step: Step) -> float:
    """The paper's loss from a method's parts, crop by crop; teacher, schedules and memories are read where the paper has them."""
    name, spec, space = method.name, method.spec, method.space
    z = [projections(method, i) for i in views.images]
    matrices: list[Matrix] = [plain(x) for x in z]
    if name == "simclr":
        return oracles.simclr(matrices, spec.temperature)
    if name == "barlow":
        return oracles.mean([oracles.barlow(a, b, spec.trade_off) for a, b in oracles.pairs(matrices, matrices[:2])])
    if name == "vicreg":
        both = [oracles.vicreg(a, b, spec.invariance, spec.variance, spec.covariance) for a, b in oracles.pairs(matrices, matrices[:2])]
        return oracles.mean(both)
    if name == "swav":
        scores = [plain(F.normalize(x, dim=-1) @ space.head.last.weight.T) for x in z]
        late = step.progress >= spec.queue_start and all(any(row) for g in range(2) for row in plain(space.queue[g]))  # of projections only
        queue = [plain(space.queue[g] @ space.head.last.weight.T) if late else [] for g in range(2)]
        return oracles.swav(scores, 2, queue, temperature=spec.temperature, epsilon=spec.epsilon, iterations=spec.iterations)
    if name == "simsiam":
        return oracles.simsiam([plain(space.head.predictor(x)) for x in z], matrices[:2])
    slow = [projections(method, i, slow=True) for i in views.images[:2]]
    if name == "dino":
        student, teacher = (
            [plain(F.normalize(x, dim=-1) @ F.normalize(h.last.weight, dim=-1).T) for x in xs] for h, xs in ((space.head, z), (space.slow, slow))
        )
        # From start to end over the first part of training, in a line.
        warm = min(1.0, step.progress / spec.temperature_warm_up)
        temperature = spec.teacher_temperature_start + warm * (spec.teacher_temperature - spec.teacher_temperature_start)
        return oracles.dino(student, teacher, space.centre.tolist(), spec.student_temperature, temperature)
    predictions = [plain(space.head.predictor(x)) for x in z]
    keys = [plain(x) for x in slow]
    return oracles.moco(predictions, keys, spec.temperature) if name == "moco" else oracles.byol(predictions, keys)


def value(method: Method, views: Views, step: Step) -> float:
    terms, _ = method.loss(views, method(views, Want(), step), step)
    assert list(terms) == [method.name]
    return terms[method.name].item()


@pytest.mark.parametrize("number", [0, 2, 7])
@pytest.mark.parametrize(("name", "n_local"), CASES)
def test_a_method_s_loss_equals_a_loop_written_from_its_paper(name: str, n_local: int, number: int) -> None:
    method, views, step = toys.method(name), toys.views(5, n_local), toys.step(number)
    for buffer in method.space.buffers():  # a centre and a queue as they are in the middle of training
        buffer.copy_(F.normalize(toys.spherical(buffer.numel(), 1).view(buffer.shape), dim=-1))
    assert value(method, views, step) == pytest.approx(expected(method, views, step), **EXACT)


@pytest.mark.parametrize("name", toys.NAMES)
@pytest.mark.parametrize("joint", [True, False])
def test_crops_together_and_one_by_one_agree_without_batchnorm(name: str, joint: bool) -> None:
    method = toys.method(name, joint_views=joint)
    views = toys.views(4, 2 if name in toys.MULTI_CROP else 0)
    assert value(method, views, toys.step()) == pytest.approx(expected(method, views, toys.step()), **EXACT)


@pytest.mark.parametrize(("name", "n_local"), CASES)
def test_the_order_of_images_changes_nothing(name: str, n_local: int) -> None:
    method, views, order = toys.method(name), toys.views(6, n_local), torch.tensor([3, 1, 5, 0, 2, 4])
    moved = Views(tuple(i[order] for i in views.images), views.boxes, views.flips, views.turns, 2, views.index[order])
    assert value(method, moved, toys.step()) == pytest.approx(value(method, views, toys.step()), rel=1e-10)


def test_simclr_decoupled_equals_lightly() -> None:
    method, views = toys.method("simclr", decoupled=True), toys.views(5)
    theirs = DCLLoss(temperature=method.spec.temperature)(*(projections(method, i) for i in views.images))
    assert value(method, views, toys.step()) == pytest.approx(float(theirs.detach()), **EXACT)


def test_dino_by_sinkhorn_takes_the_teacher_s_balanced_assignments() -> None:
    method, views, step = toys.method("dino", centring="sinkhorn"), toys.views(5, 1), toys.step(9)
    said = [[b.said for b in side] for side in (lambda o: (o.online, o.target))(method(views, Want(), step))]
    codes = oracles.sinkhorn([row for s in said[1] for row in plain(s.prediction)], method.spec.teacher_temperature, 3)
    student = [plain(s.prediction) for s in said[0]]
    terms = [oracles.assignment_cross_entropy(s, t, 0.1) for s, t in oracles.pairs(student, [codes[:5], codes[5:]])]
    assert value(method, views, step) == pytest.approx(oracles.mean(terms), **EXACT)


@pytest.mark.parametrize("centring", ["ema", "sinkhorn"])
def test_dino_s_loss_is_a_mean_over_images_unless_sinkhorn_assigns_them_together(centring: str) -> None:
    method, views, step = toys.method("dino", centring=centring), toys.views(6, 1), toys.step(9)
    halves = [value(method, views.rows(slice(i, i + 3)), step) for i in (0, 3)]
    assert (abs(sum(halves) / 2 - value(method, views, step)) < 1e-10) == (centring == "ema")


def test_dino_has_two_times_two_plus_n_less_two_terms_and_never_pairs_a_crop_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for n in (0, 1, 8):
        method, views, met = toys.method("dino"), toys.views(3, n), []
        real = method.space.match
        monkeypatch.setattr(method.space, "match", lambda p, t, *, step, real=real, met=met: met.append((p, t)) or real(p, t, step=step))
        outputs = method(views, Want(), toys.step())
        method.loss(views, outputs, toys.step())
        targets = method.space.targets([b.said for b in outputs.target], toys.step()).split(3)
        assert len(met) == 2 * (2 + n) - 2
        own = [(b.said.prediction, t) for b, t in zip(outputs.online, targets, strict=False)]
        assert not any(p is q and torch.equal(t, u) for p, t in met for q, u in own)


def test_dino_of_uniform_teacher_or_student_is_log_k() -> None:
    method, views = toys.method("dino"), toys.views(4)
    nn.init.ones_(method.space.head.last.weight)  # every prototype alike
    assert value(method, views, toys.step()) == pytest.approx(torch.tensor(11.0).log().item(), rel=1e-6)


def test_a_constant_added_to_dino_s_centre_changes_nothing() -> None:
    method, views = toys.method("dino"), toys.views(4)
    before = value(method, views, toys.step())
    method.space.centre += 0.7
    assert value(method, views, toys.step()) == pytest.approx(before, rel=1e-10)


def test_masks_hide_patches_from_the_student_only() -> None:
    method, views = toys.method("dino"), toys.views(4, 1)
    masks = torch.rand(2, 4, 16, generator=toys.step().generator("mask")) < 0.5
    masked = Views(views.images, views.boxes, views.flips, views.turns, 2, views.index, masks=masks)
    plain_outputs, outputs = (method(v, Want(patches=True), toys.step()) for v in (views, masked))
    for crop in range(2):
        by_hand = method.backbone(views.images[crop], Want(patches=True), masks[crop])
        torch.testing.assert_close(outputs.online[crop].encoding.patches, by_hand.patches)
        torch.testing.assert_close(outputs.target[crop].encoding.patches, plain_outputs.target[crop].encoding.patches)
    torch.testing.assert_close(outputs.online[2].encoding.pooled, plain_outputs.online[2].encoding.pooled)
