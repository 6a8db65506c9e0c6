"""Local self-distillation against plain loops over patches, by each method's own rule."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
import torch.nn.functional as F
import toys
from oracles import dot, mean, plain
from torch import Tensor, nn
from toys import MULTI_CROP, NAMES, TEACHERS, Feed, learner, method, parameters, same, step, views

from gnothi import pretrain
from gnothi.auxiliary import matching
from gnothi.auxiliary.local import Local, LocalSpec
from gnothi.auxiliary.patches import Partners, gram, match_patches, misalignment, speak
from gnothi.contracts import Carry, Encoding, SettingError, Views, Want
from gnothi.methods import Space
from gnothi.models import prototypes
from gnothi.randomness import generator, seeded
from gnothi.recipes.resolve import resolve
from gnothi.training import checkpoint
from gnothi.training.health import diagnose
from gnothi.training.objective import Objective

MATCHES = ("geometric", "similarity", "both", "gated", "blend", "random")


class Masking(toys.ToyBackbone):
    """A toy whose hidden patches are a learned token."""

    patch_size = 4

    def __init__(self, channels: int = 3, width: int = 12) -> None:
        super().__init__(channels, width)
        self.mask_token = nn.Parameter(torch.randn(width, generator=generator(0, "mask token")))
        self.seen: list[Tensor | None] = []

    def forward(self, images: Tensor, want: Want = Want(), mask: Tensor | None = None) -> Encoding:
        self.seen.append(mask)
        encoding = super().forward(images, want, mask)
        return encoding if mask is None else replace(encoding, pooled=encoding.pooled + 0 * self.mask_token.sum())


def beside(name: str = "dino", *, backbone: Any = toys.ToyBackbone, spec: dict[str, Any] | None = None, **settings: Any) -> Objective:
    base = method(name, backbone=backbone, **(spec or {}))
    with seeded(1, "local"):
        local = Local(base, LocalSpec(**settings)).double()
        if local.space is not None:
            for p in local.space.parameters():
                p.data += 0.05 * torch.randn_like(p)  # the token head's teacher is another one already
            if hasattr(local.space, "centre"):
                local.space.centre += torch.randn_like(local.space.centre)
    return Objective(base, {"local": local})


def crops(name: str, b: int = 3, seed: int = 0) -> Views:
    """Views that overlap, the last image's not at all."""
    made = views(b, int(name in MULTI_CROP), seed=seed)
    boxes = made.boxes.clone()
    boxes[:, :, :2] /= 4
    boxes[1:, -1, :2] += torch.tensor([500.0, 900.0])
    return replace(made, boxes=boxes)


def run(objective: Objective, given: Views, number: int = 3) -> tuple[Views, Any, dict[str, Tensor], Carry]:
    drawn = objective.draw(given, step(number))
    outputs = objective.method(drawn, objective.want(), step(number))
    terms, carry = objective.auxiliaries["local"](objective.method, drawn, outputs, step(number))
    return drawn, outputs, terms, carry


# ---- the loss, by hand --------------------------------------------------------------------------
def lies(given: Views, crop: int, image: int, grid: tuple[int, int]) -> list[tuple[float, float]]:
    """Centres of a crop's cells in the source, in plain numbers: undo the turns, then the mirror, then the cut."""
    left, top, wide, high = given.boxes[crop, image].tolist()
    places = []
    for r in range(grid[0]):
        for c in range(grid[1]):
            u, v = (c + 0.5) / grid[1], (r + 0.5) / grid[0]
            for _ in range(int(given.turns[crop, image])):
                u, v = 1 - v, u
            u = 1 - u if given.flips[crop, image] else u
            places.append((left + u * wide, top + v * high))
    return places


def diagonal(given: Views, crop: int, image: int, grid: tuple[int, int]) -> float:
    _, _, wide, high = given.boxes[crop, image].tolist()
    rows, columns = grid if given.turns[crop, image] % 2 == 0 else grid[::-1]
    return math.hypot(wide / columns, high / rows)


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
            left = [k for k in range(len(every)) if k != first + i]
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


# ---- gradients and state ------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_backbone_and_the_token_head_and_nothing_else(name):
    objective = beside(name)
    _, _, terms, _ = run(objective, crops(name))
    terms["local"].backward()
    reached = {n for n, p in objective.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-12}
    expected = {n for n, _ in objective.named_parameters() if n.startswith(("method.backbone.", "auxiliaries.local.space.head."))}
    assert reached <= expected
    # A shift of all projections alike means nothing to statistics over the batch.
    assert expected - reached <= {n for n in expected if name in ("barlow", "vicreg") and n.endswith("bias")}


@pytest.mark.parametrize(("name", "chunk"), [("dino", 40), ("dino", 1 << 22), ("swav", 1 << 22), ("sinkhorn", 1 << 22)])
def test_the_form_that_copies_no_targets_equals_the_plain_one(name, chunk, monkeypatch):
    """Value, carry and gradient of every parameter and token, in float64; a few prototypes at a time, and all at once."""
    monkeypatch.setattr(prototypes, "CHUNK", chunk)
    settings = {"centring": "sinkhorn", "joint_views": True} if name == "sinkhorn" else {}
    objective = beside("dino" if name == "sinkhorn" else name, spec=settings)
    space = objective.auxiliaries["local"].space
    g = generator(0, "tokens")
    tokens = [torch.randn(3, n, 12, generator=g, dtype=torch.float64, requires_grad=True) for n in (16, 16, 4)]
    target = [torch.randn(3, 16, 12, generator=g, dtype=torch.float64) for _ in range(2)]
    partners = [
        Partners(v, t, torch.randint(16, (3, tokens[v].shape[1]), generator=g), torch.rand(3, tokens[v].shape[1], generator=g, dtype=torch.float64))
        for v, t in ((1, 0), (0, 1), (2, 0), (2, 1))
    ]
    found = []
    for form in (match_patches, match_patches.dispatch(Space)):
        if name == "sinkhorn" and found:  # the plain form assigns crop by crop
            said, answered = speak(space, tokens, target)
            known = space.targets(answered, step()).split(48)
            values = [
                space.match(said[p.crop].prediction, known[p.target], index=p.rows(16), weight=p.weight.flatten(), step=step()) for p in partners
            ]
            carry = space.keep(answered)
        else:
            values, carry = form(space, tokens, target, partners, step())
        wanted = [*tokens, *(p for p in space.head.parameters())]
        grads = torch.autograd.grad(sum((k + 1) * v for k, v in enumerate(values)), wanted)
        found.append((values, carry.sums, grads))
    for ours, theirs in zip(found[0][0], found[1][0], strict=True):
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-10)
    for key in found[1][1]:
        torch.testing.assert_close(found[0][1][key], found[1][1][key], rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(found[0][2], found[1][2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_gradients_of_the_sums_over_prototypes_are_those_of_finite_differences(monkeypatch):
    monkeypatch.setattr(prototypes, "CHUNK", 6)
    g = generator(0, "prototypes")
    rows, own, mine = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((3, 4), (7, 4), (7, 4)))
    centre = torch.randn(7, generator=g, dtype=torch.float64)
    free = rows.clone().requires_grad_(), mine.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: prototypes.lse(x, w, 0.3), free)
    assert torch.autograd.gradcheck(lambda w: prototypes.expected(rows, own, centre, 0.2, w), (free[1],))
    torch.testing.assert_close(prototypes.lse(rows, mine, 0.3), (rows @ mine.T / 0.3).logsumexp(1))
    torch.testing.assert_close(prototypes.expected(rows, own, centre, 0.2, mine), ((rows @ own.T - centre) / 0.2).softmax(1) @ mine)


@pytest.mark.slow
def test_65536_prototypes_need_less_than_one_copy_of_the_student_s_logits():
    path = Path(__file__).parents[2] / "benchmarks" / "local_memory.py"
    spec = importlib.util.spec_from_file_location("local_memory", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    row = benchmark.measure(65_536, batch=12, grid=7, n_local=8, device=torch.device("cpu"), most=0.0)
    assert row["tokens"] == 12 * 170 and row["streamed"] < row["logits"]


def test_the_centre_of_patches_is_the_mean_over_all_tokens_of_both_crops_after_use():
    objective, given = beside("dino"), crops("dino")
    local, now = objective.auxiliaries["local"], step()
    before = local.space.centre.clone()
    _, outputs, _, carry = run(objective, given)
    tokens = torch.cat([b.encoding.patches.flatten(0, 1) for b in outputs.target])
    logits = local.space.slow(tokens).prediction
    assert torch.equal(local.space.centre, before)
    local.after_step(objective.method, carry, now)
    torch.testing.assert_close(local.space.centre, 0.9 * before + 0.1 * logits.mean(0))
    assert not objective.method.space.centre.any()


@pytest.mark.parametrize("number", [0, 5])
def test_the_token_head_s_last_layer_is_frozen_with_the_method_s(number):
    objective, given = beside("dino"), crops("dino")
    before = parameters(objective)
    optimiser = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.5, weight_decay=0.1)
    drawn = objective.draw(given, step(number))
    total, _, carries = objective(drawn, step(number))
    total.backward()
    for p in objective.frozen(step(number)):
        p.grad = None
    optimiser.step()
    objective.after_step(carries, step(number))
    key = "auxiliaries.local.space.head.last.weight"
    after = parameters(objective)
    assert torch.equal(after[key], before[key]) == (number == 0)
    slow = key.replace("head", "slow")
    momentum = objective.auxiliaries["local"].space.momentum(step(number))
    torch.testing.assert_close(after[slow], momentum * before[slow] + (1 - momentum) * after[key])


def test_the_token_head_has_prototypes_and_temperature_of_its_own():
    space = beside("dino", spec={"prototypes": 5000}).auxiliaries["local"].space
    assert space.head.last.weight.shape[0] == 4096
    space = beside("dino", prototypes=7, teacher_temperature=0.05).auxiliaries["local"].space
    assert len(space.centre) == 7 and space.temperature(step(0)) == space.temperature(step(9)) == 0.05
    space = beside("swav", prototypes=6).auxiliaries["local"].space
    assert space.head.last.weight.shape[0] == 6 and space.queue.numel() == 0


def test_the_method_s_own_loss_keeps_its_weight_unless_asked():
    now = step()
    assert beside("dino").weights(now) == {"dino": 1.0, "local": 0.5}
    assert beside("dino", view_weight=0.5, gram=2).weights(now) == {"dino": 0.5, "local": 0.5, "local_gram": 2}
    assert beside("dino", match="none", kernel=1).weights(now) == {"dino": 1.0, "local_kernel": 1}


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


# ---- the run ------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_a_late_start_leaves_the_method_as_it_is_without_it(name):
    def trained(made: Objective) -> dict[str, Tensor]:
        run = learner(made, Feed(dtype=torch.float64), total=4)
        run.fit()
        return {k: v for k, v in parameters(run.objective).items() if k.startswith("method.")}

    assert same(trained(beside(name, start=0.99)), trained(Objective(method(name))))


def test_a_weight_of_zero_is_not_built():
    chosen = {"auxiliary": {"local": {"weight": 0}}, "training": {"batch": 16}}
    assert not pretrain.build(resolve("photos", settings=chosen)).auxiliaries


@pytest.mark.parametrize(("name", "settings"), [("dino", {"match": "random"}), ("swav", {}), ("byol", {"match": "both", "start": 0.3, "gram": 1.0})])
def test_a_run_that_was_cut_goes_on_bit_for_bit(name, settings, tmp_path):
    def made(folder: str) -> Any:
        return learner(beside(name, **settings).float(), Feed(n_local=1), folder=tmp_path / folder, sample=views(8, dtype=torch.float32).images[0])

    whole, first, second = made("whole"), made("parts"), made("parts")
    whole.fit()
    while first.number < 4:
        first.step()
    first.save()
    with torch.no_grad():
        for p in second.objective.parameters():
            p.zero_()
    second.resume(checkpoint.newest(tmp_path / "parts"))
    second.fit()
    assert same(whole.state(), second.state())
    assert {"local_kept", "local_precision", "local_unique", "local_position"} <= set(_health(tmp_path / "whole")[0])
    assert _health(tmp_path / "whole") == _health(tmp_path / "parts")


def _health(folder) -> list[dict[str, Any]]:
    import json

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in m.items() if k != "seconds"} for m in lines if m["kind"] == "health"]


def test_half_precision_in_the_networks_leaves_the_comparison_exact():
    for name in ("dino", "simclr", "byol"):
        given = crops(name, 6)
        given = replace(given, images=tuple(i.float() for i in given.images))
        objective = beside(name, gram=float(name == "dino")).float()
        drawn = objective.draw(given, step())
        a = objective(drawn, step())[1]
        objective.method.autocast = torch.bfloat16
        b = objective(drawn, step())[1]
        assert b["local"].dtype == torch.float32 and b["local"].item() == pytest.approx(a["local"].item(), rel=0.05, abs=0.05)


# ---- diagnostics --------------------------------------------------------------------------------
def test_diagnostics_count_what_similarity_finds_where_geometry_says():
    objective, given = beside("dino"), crops("dino", 6)
    found = diagnose(objective, given, step())
    base, grid, total, valid, right, different = objective.method, (4, 4), 0, 0, 0, 0
    for v, g in ((0, 1), (1, 0)):
        online, target = base.backbone(given.images[v], Want(patches=True)), base.slow(given.images[g], Want(patches=True))
        for i in range(6):
            mine, theirs = lies(given, v, i, grid), lies(given, g, i, grid)
            limit = max(diagonal(given, c, i, grid) for c in (0, 1)) / 2
            hits = set()
            for k in range(16):
                like = max(range(16), key=lambda j: oracles.cosine(plain(online.patches[i])[k], plain(target.patches[i])[j]))  # noqa: B023
                total += 1
                if min(math.dist(mine[k], t) for t in theirs) < limit:
                    valid += 1
                    right += math.dist(mine[k], theirs[like]) < limit
                    hits.add(like)
            different += len(hits)
    assert found["local_kept"] == pytest.approx(valid / total) and found["local_precision"] == pytest.approx(right / valid)
    assert found["local_unique"] == pytest.approx(different / valid)


def test_tokens_that_tell_their_place_can_be_decoded_and_noise_cannot():
    noise = torch.randn(40, 20, 6, generator=generator(0, "noise"), dtype=torch.float64)
    rows, columns = torch.arange(4.0).repeat_interleave(5), torch.arange(5.0).repeat(4)
    told = torch.cat([noise, torch.stack([3 * rows - columns, columns], 1).expand(40, -1, -1)], -1)
    assert matching.decodability(told, (4, 5)) > 0.999
    assert abs(matching.decodability(noise, (4, 5))) < 0.05
    half = matching.decodability(torch.cat([noise, columns[None, :, None].expand(40, -1, -1)], -1), (4, 5))
    variance = [(n * n - 1) / 12 / n**2 for n in (4, 5)]
    assert half == pytest.approx(variance[1] / sum(variance), abs=0.03)
    assert matching.decodability(told[:1], (4, 5)) is None and matching.decodability(told[:, :1], (1, 1)) is None


def test_measuring_moves_nothing():
    objective = beside("dino", backbone=toys.NormedBackbone, spec={"norm": "batch"})
    before, random = parameters(objective), torch.get_rng_state()
    diagnose(objective, crops("dino"), step())
    assert same(before, parameters(objective)) and torch.equal(random, torch.get_rng_state()) and objective.method.training


# ---- what is refused ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("simclr", {"match": "same"}, "match=same needs a teacher.*moco, byol and dino"),
        ("dino", {"match": "same"}, "needs a ViT with backbone.mask_token=true"),
        ("simclr", {"gram": 1.0}, "local.gram compares student and teacher.*simclr has no teacher"),
        ("byol", {"prototypes": 8}, "prototypes means nothing to byol"),
        ("byol", {"teacher_temperature": 0.05}, "teacher_temperature means nothing to byol"),
        ("dino", {"match": "none"}, "match=none leaves nothing to learn"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_a_line(name, settings, words):
    with pytest.raises(SettingError, match=words) as caught:
        beside(name, **settings)
    assert "\n" not in str(caught.value)


def test_a_micro_vit_hides_patches_by_its_own_patch_size():
    chosen = {
        "method": {"name": "dino"},
        "backbone": {"name": "micro-vit", "mask_token": True, "args": {"width": 12, "depth": 1, "heads": 2}},
        "auxiliary": {"local": {"match": "same"}},
        "training": {"batch": 16},
    }
    resolved = resolve("photos", settings=chosen)
    objective = pretrain.build(resolved)
    made = pretrain.batches(resolved, objective)
    given = objective.draw(made(0), step(0))
    total, terms, _ = objective(given, step(0))
    total.backward()
    assert given.masks.shape[2] == objective.method.backbone.stored_grid[0] ** 2 and terms["local"] > 0
    assert objective.method.backbone.mask_token.grad.abs().max() > 0


# ---- learning -----------------------------------------------------------------------------------
class Overlapping(toys.Patterns):
    """Crops of patterns whose places are known, so that patches can be found again."""

    def __call__(self, number: int) -> Views:
        g = generator(0, "overlapping", number)
        index = torch.randint(len(self.images), (self.b,), generator=g)
        corner = 4 * torch.rand(2, self.b, 2, generator=g)
        boxes = torch.cat([corner, torch.full((2, self.b, 2), 12.0)], -1)
        flips, turns = torch.rand(2, self.b, generator=g) < 0.5, torch.zeros(2, self.b, dtype=torch.long)
        from gnothi.views.crops import cut

        images = tuple(cut(self.images[index], boxes[v], 12, flips[v]) for v in range(2))
        return Views(images, boxes, flips, turns, 2, index)


@pytest.mark.parametrize("name", ["simclr", "swav", "dino"])
def test_patches_learn_to_find_their_place(name):
    """A batch never seen: the most similar patch is a near one far more often than before. (Without negatives or prototypes 60 steps are too few.)"""
    with seeded(0, "learn"):
        base = method(name, momentum=0.9) if name in TEACHERS else method(name)
        objective = Objective(base, {"local": Local(base, LocalSpec(weight=1.0, view_weight=0.0))}).float()
    feed = Overlapping()
    before = diagnose(objective, feed(10_000), step())["local_precision"]
    run = learner(objective, feed, total=60, optimiser={"name": "adamw", "lr": 0.01}, training={"log_every": "60 steps"})
    run.fit()
    after = diagnose(objective, feed(10_000), step())["local_precision"]
    assert after > before + 0.05
