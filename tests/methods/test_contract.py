from __future__ import annotations

import copy
import math

import pytest
import torch
import toys
from torch import Tensor, nn

from gnothi import losses
from gnothi.contracts import Want
from gnothi.methods import METHODS, Method
from gnothi.models.backbone import BackboneSpec, build
from gnothi.models.teacher import batch_statistics, follow, twin
from gnothi.randomness import generator
from gnothi.training.objective import Objective

CASES = [(name, norm) for name in toys.NAMES for norm in ("none", "batch")]
RUNNING = ("running_mean", "running_var", "num_batches_tracked")


def stepped(name: str, *, number: int = 3, lr: float = 0.1, norm: str = "none") -> tuple[Method, dict[str, Tensor]]:
    """A method after one step of SGD and ``after_step``, and its state before."""
    method, views, step = toys.method(name, norm=norm), toys.views(6), toys.step(number)
    before, objective = toys.parameters(method), Objective(method)
    optimiser = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=lr, weight_decay=0.1)
    total, _, carries = objective(views, step)
    total.backward()
    for p in objective.frozen(step):
        p.grad = None
    optimiser.step()
    objective.after_step(carries, step)
    return method, before


# ---- bf16 ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [8, 24])
def test_backbones_alone_take_bf16_and_tiny_crops_do_not(size: int) -> None:
    """On crops of a few pixels a bf16 convolution's gradient has been seen to be garbage."""
    backbone, images = build(BackboneSpec(name="micro-resnet"), 3, size, 0), torch.randn(4, 3, size, size, generator=generator(0, "images"))
    method = METHODS["simclr"][1](backbone, METHODS["simclr"][0]())
    exact = method.encode(images, statistics="keep")
    method.autocast = torch.bfloat16
    coarse = method.encode(images, statistics="keep")
    assert coarse.pooled.dtype == torch.float32 and torch.equal(coarse.pooled, exact.pooled) == (size == 8)
    torch.testing.assert_close(coarse.pooled, exact.pooled, rtol=0.05, atol=0.02)
    method.encode(images.requires_grad_()).pooled.sum().backward()
    assert images.grad is not None and images.grad.isfinite().all()


# ---- pure ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "norm"), CASES)
def test_forward_and_loss_move_nothing_but_running_statistics(name: str, norm: str) -> None:
    method = toys.method(name, norm=norm, backbone=toys.NormedBackbone if norm == "batch" else toys.ToyBackbone)
    views, step, before = toys.views(6), toys.step(7), toys.parameters(method)
    random = torch.get_rng_state()
    first, _ = method.loss(views, method(views, Want(), step), step)
    moved = {k for k, v in method.state_dict().items() if not torch.equal(v, before[k])}
    assert all(k.endswith(RUNNING) for k in moved)
    assert bool(moved) == (norm == "batch")
    assert torch.equal(torch.get_rng_state(), random)
    again, _ = method.loss(views, method(views, Want(), step), step)
    assert torch.equal(first[name], again[name])


@pytest.mark.parametrize("name", toys.NAMES)
def test_an_extra_pass_may_leave_running_statistics_alone(name: str) -> None:
    method, images = toys.method(name, backbone=toys.NormedBackbone), toys.views(6).images[0]
    before = toys.parameters(method)
    kept = method.encode(images, statistics="keep")
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
    updated = method.encode(images)
    assert torch.equal(kept.pooled, updated.pooled)
    assert not torch.equal(method.backbone.bn.running_mean, before["backbone.bn.running_mean"])


def test_kept_statistics_are_restored_after_an_error() -> None:
    norm = nn.BatchNorm1d(3)
    with pytest.raises(RuntimeError), batch_statistics(norm, "keep"):
        raise RuntimeError
    assert norm.track_running_stats


# ---- gradient -----------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "norm"), CASES)
def test_every_parameter_learns_and_the_teacher_never(name: str, norm: str) -> None:
    method, views, step = toys.method(name, norm=norm), toys.views(6), toys.step(7)
    terms, _ = method.loss(views, method(views, Want(), step), step)
    terms[name].backward()
    slow = {p for m in (method.slow, method.space.slow) if m is not None for p in m.parameters()}
    assert bool(slow) == (name in toys.TEACHERS)
    for key, p in method.named_parameters():
        if p in slow:
            assert not p.requires_grad and p.grad is None, key
        else:
            # A shift of all projections alike means nothing to Barlow and VICReg's spread, but their last bias still gets a (tiny) gradient.
            assert p.grad is not None and p.grad.isfinite().all(), key
    weights = [p for k, p in method.named_parameters() if p.requires_grad and p.ndim > 1]
    assert all(p.grad.abs().max() > 1e-8 for p in weights)


@pytest.mark.parametrize("name", ["moco", "byol", "simsiam", "swav", "dino"])
def test_targets_take_no_gradient(name: str) -> None:
    method, views, step = toys.method(name), toys.views(6, 0), toys.step(7)
    outputs = method(views, Want(), step)
    for branch in outputs.target:
        assert not any(x.requires_grad for x in (branch.encoding.pooled, *branch.said))
    assert not method.space.targets([b.said for b in outputs.target], step).requires_grad


@pytest.mark.parametrize("name", ["simclr", "barlow", "vicreg"])
def test_both_views_learn_where_there_is_no_target(name: str) -> None:
    """The gradient with respect to either view's features is that of the pure loss."""
    method, views, step = toys.method(name), toys.views(6), toys.step()
    outputs = method(views, Want(), step)
    pooled = [b.encoding.pooled for b in outputs.online]
    found = torch.autograd.grad(method.loss(views, outputs, step)[0][name], pooled, retain_graph=True)
    a, b = (method.space.head(x).projection for x in pooled)
    s = method.spec
    pure = {
        "simclr": lambda: losses.nt_xent(a, b, s.temperature),
        "barlow": lambda: losses.barlow(a, b, s.trade_off),
        "vicreg": lambda: losses.vicreg(a, b, s.invariance, s.variance, s.covariance),
    }
    for ours, theirs in zip(found, torch.autograd.grad(pure[name](), pooled), strict=True):
        assert theirs.abs().max() > 1e-6
        torch.testing.assert_close(ours, theirs)


def test_without_the_stop_gradient_simsiam_s_targets_learn() -> None:
    """The gradient with respect to the projections is that of eq. 1 with both sides free."""
    views, step = toys.views(5), toys.step()
    grads = {}
    for stop in (True, False):
        method = toys.method("simsiam", stop_gradient=stop)
        terms, _ = method.loss(views, method(views, Want(), step), step)
        terms["simsiam"].backward()
        grads[stop] = method.space.head.projector[0].weight.grad.clone()
        z = [method.space.head.projector(method.backbone(i).pooled) for i in views.images]
        p = [method.space.head.predictor(x) for x in z]
        free = [x if not stop else x.detach() for x in z]
        by_hand = -(torch.cosine_similarity(p[0], free[1]).mean() + torch.cosine_similarity(p[1], free[0]).mean()) / 2
        (expected,) = torch.autograd.grad(by_hand, method.space.head.projector[0].weight)
        torch.testing.assert_close(grads[stop], expected)
    assert not torch.allclose(grads[True], grads[False])


# ---- after the step -----------------------------------------------------------------------------
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("name", toys.TEACHERS)
@pytest.mark.parametrize("number", [0, 3])
def test_a_teacher_moves_towards_the_new_student(name: str, number: int, norm: str) -> None:
    """Step 0 of DINO also has its last layer frozen: the teacher's follows it all the same."""
    method, before = stepped(name, number=number, norm=norm)
    spec = method.spec
    m = spec.momentum_end - (spec.momentum_end - spec.momentum) * (math.cos(math.pi * number / 10) + 1) / 2
    for slow, online, at in ((method.slow, method.backbone, "slow."), (method.space.slow, method.space.head, "space.slow.")):
        new = dict(online.named_parameters())
        for key, p in slow.named_parameters():
            torch.testing.assert_close(p, m * before[at + key] + (1 - m) * new[key].detach(), rtol=0, atol=1e-14)
            assert p.untyped_storage().data_ptr() != new[key].untyped_storage().data_ptr()
            assert not torch.equal(p, before[at + key])


@pytest.mark.parametrize("name", toys.NAMES)
def test_a_fresh_teacher_is_a_copy_that_shares_no_storage(name: str) -> None:
    fresh = toys.METHODS[name][1](toys.ToyBackbone(), toys.METHODS[name][0](hidden=8, out=4))
    assert (fresh.slow is not None) == (name in toys.TEACHERS)
    for slow, online in ((fresh.slow, fresh.backbone), (fresh.space.slow, fresh.space.head)):
        for a, b in zip(slow.parameters(), online.parameters(), strict=True) if slow is not None else ():
            assert torch.equal(a, b) and a.data_ptr() != b.data_ptr()


def test_a_teacher_keeps_its_own_running_statistics() -> None:
    method = toys.method("byol", norm="batch", backbone=toys.NormedBackbone)
    views, step = toys.views(6), toys.step()
    carries = Objective(method)(views, step)[2]
    own = toys.parameters(method.slow)
    method.after_step(carries["method"], step)
    for key in ("bn.running_mean", "bn.running_var"):
        assert torch.equal(method.slow.state_dict()[key], own[key])
        assert not torch.equal(method.slow.state_dict()[key], method.backbone.state_dict()[key])


def test_following_is_a_weighted_mean() -> None:
    online = nn.Linear(3, 2).double()
    slow = twin(online)
    with torch.no_grad():
        slow.weight.fill_(1.0)
        online.weight.fill_(5.0)
    follow(slow, online, 0.75)
    assert torch.equal(slow.weight, torch.full((2, 3), 2.0, dtype=torch.float64))
    assert not slow.weight.requires_grad and online.weight.requires_grad


def test_dino_s_loss_uses_the_old_centre_and_the_first_new_one_is_a_tenth_of_the_mean() -> None:
    method, views, step = toys.method("dino"), toys.views(6), toys.step(3)
    outputs = method(views, Want(), step)
    logits = torch.cat([b.said.prediction for b in outputs.target])
    terms, carry = method.loss(views, outputs, step)
    assert not method.space.centre.any()
    method.after_step(carry, step)
    torch.testing.assert_close(method.space.centre, 0.1 * logits.mean(0))
    again, _ = method.loss(views, outputs, step)
    assert again["dino"] != terms["dino"]


@pytest.mark.parametrize("centring", ["sinkhorn", "none"])
def test_without_ema_centring_the_centre_stays_zero(centring: str) -> None:
    method, views, step = toys.method("dino", centring=centring), toys.views(6), toys.step(3)
    _, carry = method.loss(views, method(views, Want(), step), step)
    method.after_step(carry, step)
    assert not method.space.centre.any()


def test_carries_of_parts_add_up_to_that_of_the_whole() -> None:
    for name in ("dino", "swav"):
        method, views, step = toys.method(name), toys.views(6), toys.step(3)
        whole = method.loss(views, method(views, Want(), step), step)[1]
        halves = [method.loss(v, method(v, Want(), step), step)[1] for v in (views.rows(slice(0, 3)), views.rows(slice(3, 6)))]
        joined = halves[0] + halves[1]
        for a, b in ((whole.sums, joined.sums), (whole.rows, joined.rows)):
            assert a.keys() == b.keys()
            for k in a:
                torch.testing.assert_close(a[k], b[k])
        assert whole.sums or whole.rows


def test_the_newest_projections_stand_first_in_swav_s_queue() -> None:
    method = toys.method("swav", queue=8)
    for number in range(2):
        views = toys.views(5, seed=number)
        outputs = method(views, Want(), toys.step(number))
        _, carry = method.loss(views, outputs, toys.step(number))
        before = method.space.queue.clone()
        method.after_step(carry, toys.step(number))
        for crop in range(2):
            newest = outputs.target[crop].said.projection
            torch.testing.assert_close(method.space.queue[crop], torch.cat([newest, before[crop]])[:8])


def test_swav_s_queue_takes_part_once_it_is_full() -> None:
    """Six rows a step fill a queue of twelve in two steps; before, and before its start, the batch is balanced alone."""
    for start, first in ((0.1, 2), (0.5, 5)):
        space = toys.method("swav", queue=12, queue_start=start).space
        for number in range(10):
            said, parts = [s.detach() for s in space.say([toys.spherical(6, 12, 2 * number + crop) for crop in range(2)])], []
            for crop, s in enumerate(said):
                more = [space.head.predict(space.queue[crop])] if number >= first else []
                parts.append(losses.sinkhorn(torch.cat([s.prediction, *more]), space.spec.epsilon, space.spec.iterations)[:6])
            torch.testing.assert_close(space.targets(said, toys.step(number)), torch.cat(parts))
            space.settle(space.keep(said), toys.step(number))
        assert (parts[0] - losses.sinkhorn(said[0].prediction, space.spec.epsilon, space.spec.iterations)).abs().max() > 0.01


def test_a_sample_larger_than_swav_s_queue_does_not_make_it_full() -> None:
    """Health asks for the assignments of hundreds of images when five projections a crop have been put into a queue of twelve."""
    space = toys.method("swav", queue=12, queue_start=0.0).space
    pushed, sample = ([s.detach() for s in space.say([toys.spherical(n, 12, n + crop) for crop in range(2)])] for n in (5, 20))
    space.settle(space.keep(pushed), toys.step(0))
    alone = torch.cat([losses.sinkhorn(s.prediction, space.spec.epsilon, space.spec.iterations) for s in sample])
    torch.testing.assert_close(space.targets(sample, toys.step(1)), alone)


@pytest.mark.parametrize("name", ["swav", "dino"])
def test_frozen_prototypes_stay_bit_for_bit_under_weight_decay_and_move_afterwards(name: str) -> None:
    for number, frozen in ((0, True), (1, True), (2, False), (9, False)):
        method, before = stepped(name, number=number)
        assert torch.equal(method.space.head.last.weight, before["space.head.last.weight"]) == frozen
        assert not torch.equal(method.backbone.patches.weight, before["backbone.patches.weight"])


def test_swav_s_prototypes_have_unit_length_after_a_step() -> None:
    method, _ = stepped("swav", number=5, lr=3.0)
    lengths = method.space.head.last.weight.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-12)


def test_dino_s_prototypes_count_by_direction_only() -> None:
    method, views = toys.method("dino"), toys.views(5)
    first = method(views, Want(), toys.step()).online[0].said.prediction
    with torch.no_grad():
        method.space.head.last.weight *= torch.linspace(0.5, 4, 11)[:, None]
    torch.testing.assert_close(method(views, Want(), toys.step()).online[0].said.prediction, first)
    assert first.abs().max() <= 1  # cosines


def test_simsiam_s_projections_and_moco_s_end_in_a_norm_without_scale() -> None:
    for name in ("simsiam", "moco"):
        last = toys.method(name, norm="batch").space.head.projector[-1]
        assert isinstance(last, nn.BatchNorm1d) and not last.affine
    assert isinstance(toys.method("byol", norm="batch").space.head.projector[-1], nn.Linear)


@pytest.mark.parametrize("name", toys.NAMES)
def test_a_fresh_space_compares_features_of_another_width_and_shares_nothing(name: str) -> None:
    method = toys.method(name)
    space = method.fresh_space(5).double()
    said = space.say([toys.spherical(4, 5, i) for i in range(2)])
    assert said[0].prediction.shape == method.space.say([toys.spherical(4, 12)])[0].prediction.shape
    assert not {t.data_ptr() for t in space.state_dict().values() if t.numel()} & {t.data_ptr() for t in method.state_dict().values() if t.numel()}


@pytest.mark.parametrize("name", toys.NAMES)
def test_a_method_copies_and_loads_strictly(name: str) -> None:
    method, views, step = toys.method(name), toys.views(5), toys.step(7)
    other = toys.method(name, seed=9)
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    a, b = (m.loss(views, m(views, Want(), step), step)[0][name] for m in (method, other))
    assert torch.equal(a, b)


# ---- schedules ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", toys.TEACHERS)
def test_the_teacher_s_momentum_begins_at_its_setting_and_ends_below_one(name: str) -> None:
    space = toys.method(name, momentum=0.9).space
    at = [space.momentum(toys.step(i, 100)) for i in (0, 50, 99)]
    assert at[:2] == pytest.approx([0.9, 0.95]) and 0.9999 < at[2] < 1


def test_dino_s_temperature_reaches_its_end_at_the_end_of_its_warm_up() -> None:
    space = toys.method("dino", temperature_warm_up=0.5, teacher_temperature_start=0.02, teacher_temperature=0.06).space
    assert [space.temperature(toys.step(i, 100)) for i in (0, 25, 50, 99)] == pytest.approx([0.02, 0.04, 0.06, 0.06])


@pytest.mark.parametrize(("end", "begin"), [(0.02, 0.02), (0.04, 0.04), (0.06, 0.04)])
def test_a_lower_temperature_of_dino_s_teacher_begins_as_low(end: float, begin: float) -> None:
    space = toys.method("dino", temperature_warm_up=0.5, teacher_temperature_start=None, teacher_temperature=end).space
    assert [space.temperature(toys.step(i, 100)) for i in (0, 50)] == pytest.approx([begin, end])
