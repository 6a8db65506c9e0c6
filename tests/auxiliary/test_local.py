"""Local self-distillation against plain loops over patches, by each method's own rule."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import oracles
import pytest
import torch
import torch.nn.functional as F
from oracles import dot, mean, plain
from patched import Masking, beside, crops, diagonal, lies, run, source
from torch import Tensor, nn
from toys import NAMES, parameters, same, step, views

from gnothi.auxiliary import matching
from gnothi.auxiliary.local import stride
from gnothi.auxiliary.patches import gram, match_patches, misalignment
from gnothi.contracts import Carry, Encoding, Views, Want
from gnothi.methods import Space
from gnothi.models.backbone import BackboneSpec, build
from gnothi.models.micro_resnet import MicroResNet
from gnothi.randomness import generator
from gnothi.training.objective import Objective


# ---- the loss, by hand --------------------------------------------------------------------------
def partner(given: Views, v: int, g: int, image: int, grids: tuple, tokens: tuple, kind: str, alpha: float = 1.0) -> list[tuple[int, float]]:
    """Partner and weight of each patch of an image: ``kind`` is geometric, similarity, gated or blend."""
    mine, theirs = lies(given, v, image, grids[0]), lies(given, g, image, grids[1])
    limit = max(diagonal(given, v, image, grids[0]), diagonal(given, g, image, grids[1])) / 2
    far = [[math.dist(a, b) for b in theirs] for a in mine]
    likes = [[oracles.cosine(x, y) for y in tokens[1]] for x in tokens[0]]
    most = max(map(max, far))
    found = []
    for i in range(len(mine)):
        near, like = min(range(len(theirs)), key=far[i].__getitem__), max(range(len(theirs)), key=likes[i].__getitem__)
        valid = far[i][near] < limit
        found.append(
            {
                "geometric": (near, float(valid)),
                "similarity": (like, 1.0),
                "gated": (near if valid else like, 1.0),
                "blend": (min(range(len(theirs)), key=lambda j, i=i: 1 - likes[i][j] + alpha * far[i][j] / most), 1.0),
            }[kind]
        )
    return found


def slowly(objective: Objective, given: Views, kind: str, number: int = 3) -> float:
    """The local loss of a matching, one patch after the other."""
    base, local = objective.method, objective.auxiliaries["local"]
    space, spec, name = local.space, local.space.spec, base.name
    now = step(number)
    teacher = base.backbone if base.slow is None else base.slow
    b = len(given.index)
    online, target = [base.backbone(i, Want(patches=True)) for i in given.images], [teacher(i, Want(patches=True)) for i in given.images[:2]]
    z = [space.head.projector(e.patches.flatten(0, 1)) for e in online]
    slow = [(space.slow or space.head).projector(e.patches.flatten(0, 1)) for e in target]
    totals = []
    for g in range(2):
        for v in range(len(online)):
            if v == g:
                continue
            n, m = online[v].patches.shape[1], target[g].patches.shape[1]
            matches = []
            for i in range(b):
                tokens = (plain(online[v].patches[i]), plain(target[g].patches[i]))
                for j, w in partner(given, v, g, i, (online[v].grid, target[g].grid), tokens, kind):
                    matches.append((i * m + j, w))
            totals.append(pair(name, space, spec, now, z, slow, v, g, matches, n))
    return mean(totals)


def pair(name, space, spec, now, z, slow, v, g, matches, n) -> float:
    """A pair's mean over patches of weight x the method's own loss."""
    index, weight = [j for j, _ in matches], [w for _, w in matches]
    rows, others = plain(z[v]), plain(z[g])
    if name == "barlow":
        return oracles.barlow(rows, [others[j] for j in index], spec.trade_off, weight) if any(weight) else 0.0
    if name == "vicreg":
        kept = [i for i, w in enumerate(weight) if w]
        chosen = [rows[i] for i in kept], [others[index[i]] for i in kept]
        return len(kept) / len(rows) * oracles.vicreg(*chosen, spec.invariance, spec.variance, spec.covariance)
    if name == "simclr":
        every = plain(z[0]) + plain(z[1])
        first, to = v * len(rows), g * len(plain(z[0]))
        each = []
        for i, j in enumerate(index):
            left = [k for k in range(len(every)) if k != first + i or v > 1]
            each.append(oracles.find(rows[i], [every[k] for k in left], left.index(to + j), spec.temperature))
    elif name == "moco":
        asked, keys = plain(space.head.predictor(z[v])), plain(slow[g])
        each = [2 * spec.temperature * oracles.find(asked[i], keys, j, spec.temperature) for i, j in enumerate(index)]
    elif name in ("byol", "simsiam"):
        asked, keys = plain(space.head.predictor(z[v])), plain(slow[g])
        cosines = [oracles.cosine(asked[i], keys[j]) for i, j in enumerate(index)]
        each = [2 - 2 * c if name == "byol" else -c for c in cosines]
    elif name == "swav":
        scores, codes = (plain(F.normalize(x, dim=-1) @ space.head.last.weight.T) for x in (z[v], slow[g]))
        codes = oracles.sinkhorn(codes, spec.epsilon, spec.iterations)
        each = [oracles.cross_entropy(scores[i], codes[j], spec.temperature) for i, j in enumerate(index)]
    else:
        student, teacher = (
            plain(F.normalize(x, dim=-1) @ F.normalize(h.last.weight, dim=-1).T) for x, h in ((z[v], space.head), (slow[g], space.slow))
        )
        warm = min(1.0, now.progress / spec.temperature_warm_up)
        tau = spec.teacher_temperature_start + warm * (spec.teacher_temperature - spec.teacher_temperature_start)
        targets = [oracles.softmax([t - c for t, c in zip(row, space.centre.tolist(), strict=True)], tau) for row in teacher]
        each = [oracles.cross_entropy(student[i], targets[j], spec.student_temperature) for i, j in enumerate(index)]
    return mean([w * x for w, x in zip(weight, each, strict=True)])


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_the_method_s_own_between_nearest_patches(name):
    objective, given = beside(name), crops(name)
    _, _, terms, _ = run(objective, given)
    assert terms["local"].item() == pytest.approx(slowly(objective, given, "geometric"), rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("name", ["simclr", "byol", "dino"])
@pytest.mark.parametrize("match", ["similarity", "gated", "blend"])
def test_other_matchings_change_the_partners_only(name, match):
    objective, given = beside(name, match=match), crops(name)
    _, _, terms, _ = run(objective, given)
    assert terms["local"].item() == pytest.approx(slowly(objective, given, match), rel=1e-9)


def test_both_is_the_weighted_sum_of_the_two():
    given = crops("byol")
    found = {m: run(beside("byol", match=m, similarity_share=0.3), given)[2]["local"].item() for m in ("geometric", "similarity", "both")}
    assert found["both"] == pytest.approx(0.7 * found["geometric"] + 0.3 * found["similarity"], rel=1e-12)


def test_partners_by_chance_are_drawn_for_the_joint_batch_and_differ_between_pairs_and_steps():
    objective = beside("dino", match="random")
    given, local = crops("dino", 6), objective.auxiliaries["local"]
    drawn, outputs, _, _ = run(objective, given)
    online, target = [b.encoding for b in outputs.online], [b.encoding for b in outputs.target]
    whole = [local.partners(drawn, online, target, v, g, k)[0].index for k, (v, g) in enumerate(local.crop_pairs(drawn))]
    part = replace(drawn.rows(slice(2, 5)))
    cut = [replace(e, patches=e.patches[2:5]) for e in online]
    assert torch.equal(local.partners(part, cut, [replace(e, patches=e.patches[2:5]) for e in target], 1, 0, 0)[0].index, whole[0][2:5])
    assert not torch.equal(whole[0], whole[2]) and not torch.equal(objective.draw(given, step(4)).drawn["local"], drawn.drawn["local"])
    assert all(0 <= w.min() and w.max() < target[0].patches.shape[1] for w in whole)


# ---- what counts --------------------------------------------------------------------------------
def kept(match: str = "geometric", **settings: Any) -> Tensor:
    """Weights of the patches of crop 1 beside crop 0, [B, N]."""
    objective, given = beside("dino", match=match, **settings), crops("dino", 12)
    drawn, outputs, _, _ = run(objective, given)
    online, target = [b.encoding for b in outputs.online], [b.encoding for b in outputs.target]
    return objective.auxiliaries["local"].partners(drawn, online, target, 1, 0)[0].weight


def test_validity_and_denominator_are_as_named():
    given, grid = crops("dino", 12), (4, 4)
    rules = {"half_diag": [], "inside": [], "ratio": [], "none": []}
    for i in range(12):
        mine, theirs = lies(given, 1, i, grid), lies(given, 0, i, grid)
        large = max(diagonal(given, c, i, grid) for c in (0, 1))
        left, top, wide, high = given.boxes[0, i].tolist()
        nearest = [min(math.dist(a, b) for b in theirs) for a in mine]
        rules["half_diag"].append([d < large / 2 for d in nearest])
        rules["ratio"].append([d < 0.9 * large for d in nearest])
        rules["inside"].append([left <= x < left + wide and top <= y < top + high for x, y in mine])
        rules["none"].append([True] * 16)
    for rule, expected in rules.items():
        assert torch.equal(kept(validity=rule, ratio=0.9).bool(), torch.tensor(expected)), rule
    shares = [t.double().mean() for t in map(torch.tensor, rules.values())]
    assert len({round(float(s), 6) for s in shares}) == 4
    divided = kept(denominator="valid_tokens")
    assert torch.equal(divided.bool(), torch.tensor(rules["half_diag"]))
    assert all(row.mean() == pytest.approx(1.0) for row in divided[:-1]) and not divided[-1].any()


@pytest.mark.parametrize("denominator", ["all_tokens", "valid_tokens"])
@pytest.mark.parametrize("name", NAMES)
def test_disjoint_crops_give_exactly_nothing(name, denominator):
    objective, given = beside(name, denominator=denominator), crops(name)
    boxes = given.boxes.clone()
    boxes[1:, :, :2] += 1000 * torch.arange(1, len(boxes))[:, None, None]
    _, _, terms, _ = run(objective, replace(given, boxes=boxes))
    terms["local"].backward()
    assert terms["local"].item() == 0
    assert all(p.grad is None or not p.grad.any() for p in objective.parameters())  # NaN counts as true


@pytest.mark.parametrize("name", ["byol", "dino", "swav"])
def test_patches_without_a_partner_get_no_gradient(name):
    objective, given = beside(name), crops(name)
    drawn = objective.draw(given, step())
    outputs = objective.method(drawn, objective.want(), step())
    tokens = outputs.online[1].encoding.patches
    tokens.retain_grad()
    objective.auxiliaries["local"](objective.method, drawn, outputs, step())[0]["local"].backward()
    boxes, flips, turns = given.boxes, given.flips, given.turns
    _, _, valid = matching.geometric_matches(boxes[1], boxes[0], (4, 4), (4, 4), flips[1], flips[0], turns[1], turns[0])
    reached = tokens.grad.abs().sum(-1) > 0
    assert torch.equal(reached, valid) and 0 < valid.double().mean() < 1


def test_a_matching_that_leaves_out_local_crops_is_that_without_them():
    given = crops("dino")
    without = replace(given, images=given.images[:2], boxes=given.boxes[:2], flips=given.flips[:2], turns=given.turns[:2])
    a, b = run(beside("dino", pairs="global_only"), given)[2], run(beside("dino"), without)[2]
    assert a["local"].item() == pytest.approx(b["local"].item(), rel=1e-12)


class Listening(Space):
    """Writes down who is compared with whom, by ids in the tokens: crop, image, patch."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.heard: list[tuple[int, int]] = []


@match_patches.register
def _(space: Listening, online, target, partners, step):
    for p in partners:
        mine, theirs = online[p.crop], target[p.target]
        chosen = theirs.gather(1, p.index[..., None].expand(-1, -1, 3))
        assert torch.equal(mine[..., 1], chosen[..., 1])  # the same image
        assert torch.equal(chosen[..., 2].long(), p.index)
        space.heard.append((int(mine[0, 0, 0]), int(theirs[0, 0, 0])))
        assert (mine[..., 0] == mine[0, 0, 0]).all() and (theirs[..., 0] == theirs[0, 0, 0]).all()
    return [torch.zeros(()) for _ in partners], Carry()


@pytest.mark.parametrize("sizes", [[], [8], [8] * 8, [8, 12]])
def test_every_crop_meets_every_other_global_crop_of_its_own_image(sizes):
    objective, n = beside("dino"), len(sizes)
    local = objective.auxiliaries["local"]
    local.space = Listening()
    given = views(3, n)
    images = given.images[:2] + tuple(torch.zeros(3, 3, s, s) for s in sizes)

    def ids(v: int) -> Any:
        side = images[v].shape[-1] // 4
        image, patch = torch.meshgrid(torch.arange(3.0), torch.arange(float(side**2)), indexing="ij")
        encoding = Encoding(torch.zeros(3, 1), torch.stack([torch.full_like(image, v), image, patch], -1), (side, side))
        return toys_branch(encoding)

    outputs = type("Outputs", (), {"online": tuple(ids(v) for v in range(2 + n)), "target": (ids(0), ids(1))})()
    local(objective.method, replace(given, images=images), outputs, step())
    assert len(local.space.heard) == 2 * (2 + n) - 2 == len(set(local.space.heard))
    assert all(v != g for v, g in local.space.heard)


def toys_branch(encoding: Encoding) -> Any:
    return type("Branch", (), {"encoding": encoding})()


# ---- where tokens look --------------------------------------------------------------------------
def test_tokens_lie_where_they_look_also_where_the_stride_does_not_divide_the_crop():
    """The centre of mass of a token's gradient, in a network of positive weights whose last cells stick out of a crop of 15 pixels."""
    objective = beside("simclr", backbone=lambda: MicroResNet(widths=(4, 4)), token_offset=-0.5)
    backbone, local = objective.method.backbone.eval(), objective.auxiliaries["local"]
    for p in backbone.parameters():
        if p.ndim == 4:
            nn.init.ones_(p)
    image = torch.ones(1, 3, 15, 15, dtype=torch.float64, requires_grad=True)
    flips, turns = torch.arange(8).expand(2, -1) > 3, torch.arange(8).expand(2, -1) % 4
    encoding, given = backbone(image, Want(patches=True)), replace(views(8, size=15), flips=flips, turns=turns)
    at, along = matching.centres(local.frame(given, 0, encoding)), torch.arange(15, dtype=torch.float64) + 0.5
    assert encoding.grid == (8, 8)
    for row, column in ((3, 3), (3, 4), (4, 3)):  # whose fields lie in the crop
        (seen,) = torch.autograd.grad(encoding.patches[0, 8 * row + column].sum(), image, retain_graph=True)
        mass = seen[0].sum(0) / seen.sum()
        x, y = float(mass.sum(0) @ along), float(mass.sum(1) @ along)
        assert (x, y) == pytest.approx((2 * column + 0.5, 2 * row + 0.5))
        for i in range(8):
            assert tuple(at[i, 8 * row + column].tolist()) == pytest.approx(source(given, 0, i, x / 15, y / 15))


@pytest.mark.parametrize(
    ("name", "args", "pixels"),
    [
        ("micro-resnet", {}, 8),
        ("micro-vit", {}, 8),
        ("resnet18", {}, 8),
        ("convnext_atto", {"depths": (1, 1, 1, 1)}, 32),
        ("vit_tiny_patch16_224", {"depth": 1}, 8),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24}, 32),
        ("beit_base_patch16_224", {"depth": 1, "embed_dim": 64, "num_heads": 1}, None),
    ],
)
def test_a_network_s_stride_is_found_and_nothing_of_it_moves(name, args, pixels):
    backbone = build(BackboneSpec(name=name, args=args), 3, 64, seed=0)
    before, random = parameters(backbone), torch.get_rng_state()
    assert stride(backbone) == pixels
    assert same(before, parameters(backbone)) and torch.equal(random, torch.get_rng_state()) and backbone.training


# ---- hidden patches -----------------------------------------------------------------------------
def test_hidden_patches_are_predicted_from_the_teacher_s_whole_view():
    objective = beside("dino", backbone=Masking, match="same", hidden=(0.2, 0.6), hidden_share=0.7)
    given = objective.draw(crops("dino", 5), step())
    base, local = objective.method, objective.auxiliaries["local"]
    assert given.masks.shape == (2, 5, 16) and 0 < given.masks.double().mean() < 0.6
    base.backbone.seen.clear()
    base.slow.seen.clear()
    outputs = base(given, objective.want(), step())
    assert torch.equal(torch.cat([m for m in base.backbone.seen if m is not None]), given.masks.flatten(0, 1)) and base.slow.seen == [None]
    spec, space, total = local.space.spec, local.space, 0.0
    warm = min(1.0, step().progress / spec.temperature_warm_up)
    tau = spec.teacher_temperature_start + warm * (spec.teacher_temperature - spec.teacher_temperature_start)
    for g in range(2):
        student = [plain(space.head(x).prediction) for x in base.backbone(given.images[g], Want(patches=True), given.masks[g]).patches]
        teacher = [plain(space.slow(x).prediction) for x in base.slow(given.images[g], Want(patches=True)).patches]
        for i in range(5):
            rows = [k for k in range(16) if given.masks[g, i, k]]
            targets = [oracles.softmax([t - c for t, c in zip(teacher[i][k], space.centre.tolist(), strict=True)], tau) for k in rows]
            each = [oracles.cross_entropy(student[i][k], t, spec.student_temperature) for k, t in zip(rows, targets, strict=True)]
            total += sum(each) / max(len(each), 1) / 5 / 2
    assert local(base, given, outputs, step())[0]["local"].item() == pytest.approx(total, rel=1e-9)


def test_nothing_is_hidden_before_the_start():
    objective = beside("dino", backbone=Masking, match="same", start=0.5)
    assert objective.draw(crops("dino"), step(4)).masks is None and objective.draw(crops("dino"), step(5)).masks is not None


# ---- relations ----------------------------------------------------------------------------------
def test_relations_compare_student_and_teacher_on_the_same_crop():
    objective, given = beside("dino", match="none", gram=1.0, kernel=1.0), crops("dino")
    _, _, terms, carry = run(objective, given)
    base, grams, kernels = objective.method, [], []
    for g in range(2):
        for i in range(3):
            a, b = (plain(n(given.images[g][i : i + 1], Want(patches=True)).patches[0]) for n in (base.backbone, base.slow))
            n = len(a)
            grams.append(mean([(oracles.cosine(a[i], a[j]) - oracles.cosine(b[i], b[j])) ** 2 for i in range(n) for j in range(n)]))
            centred = []
            for x in (a, b):
                k = [[dot(u, w) for w in x] for u in x]
                row = [mean(r) for r in k]
                centred.append([k[i][j] - row[i] - row[j] + mean(row) for i in range(n) for j in range(n)])
            kernels.append(1 - oracles.cosine(*centred))
    assert terms["local_gram"].item() == pytest.approx(mean(grams), rel=1e-9)
    assert terms["local_kernel"].item() == pytest.approx(mean(kernels), rel=1e-9)
    assert not carry.sums and list(terms) == ["local_gram", "local_kernel"]


def test_alignment_is_blind_to_scale_and_turns_and_gram_is_to_scale():
    x = torch.randn(2, 9, 6, generator=generator(0, "x"), dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator(1, "x"), dtype=torch.float64)).Q
    assert misalignment(x, 3 * x @ turn + 1).abs() < 1e-10 and gram(x, x @ turn * torch.rand(2, 9, 1).double()) < 1e-20
    assert misalignment(x, x.roll(1, 1)) > 0.1 and misalignment(x, torch.ones_like(x)).isfinite()
