from __future__ import annotations

import math
from typing import Any

import oracles
import pytest
import torch
import torch.nn.functional as F
import toys
from depths import Deep, beside
from oracles import plain
from torch import Tensor, nn
from toys import MULTI_CROP, NAMES, parameters, same, step

from gnothi.auxiliary.layers import LayersSpec
from gnothi.contracts import Block, Encoding, Said, SettingError, Step, Views, Want
from gnothi.methods import METHODS
from gnothi.models.micro_resnet import MicroResNet
from gnothi.training.objective import Objective

EXACT = {"rel": 1e-9, "abs": 1e-10}
PREDICTORS = ("byol", "moco", "simsiam")
CASES = [(name, 0) for name in NAMES] + [(name, 2) for name in MULTI_CROP]


class Told(nn.Module):
    """Says what the images hold: [B, 2, P, 1] are the vectors after the last block and after all others."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.width, self.block_widths = width, (width,) * blocks

    def forward(self, images: Tensor, want: Want = Want(), mask: Tensor | None = None) -> Encoding:
        last, lower = images[:, 0, :, 0], images[:, 1, :, 0]
        return Encoding(last, None, (1, 1), {i: Block(lower, lower, None, (1, 1)) for i in want.blocks})


def terms(objective: Objective, views: Views, at: Step | None = None) -> dict[str, Tensor]:
    at = at or step()
    outputs = objective.method(views, objective.want(), at)
    return objective.auxiliaries["layers"](objective.method, views, outputs, at)[0]


# ---- every method's own loss, in loops -----------------------------------------------------------
def said(objective: Objective, branch: Encoding, block: int | None, slow: bool = False) -> Said:
    """What block or final head says of one crop, from its parts."""
    method, aux = objective.method, objective.auxiliaries["layers"]
    final = method.space.slow if slow else method.space.head
    if block is None:
        z = final.projector(branch.pooled)
        head = final
    else:
        x, norm = branch.blocks[block], aux.spec.norm
        exit_ = (aux.slow if slow else None) or aux.exits[str(block)]
        x = x.final if norm == "shared" else x.pooled if norm == "none" else exit_.norm(x.pooled)
        head = exit_.head
        z = head.projector(x)
    if final.last is None:
        return Said(z, z if head.predictor is None else head.predictor(z))
    z = F.normalize(z, dim=-1)
    last = (head.last or final.last).weight
    return Said(z, z @ (F.normalize(last, dim=-1) if final.weight_norm else last).T)


def loop(objective: Objective, views: Views, at: Step, block: int | None, mask: bool = True, swap: bool = False) -> float:
    """The method's loss with a block's words on the learning side and the final ones on the other."""
    method, spec, space = objective.method, objective.method.spec, objective.method.space
    want = objective.want()
    online = [method.backbone(i, want) for i in views.images]
    teacher = [(method.slow or method.backbone)(i, want) for i in views.images[:2]]
    words = [said(objective, e, block) for e in online]
    answers = [said(objective, e, None, slow=method.slow is not None) for e in teacher]
    answers = answers[::-1] if swap else answers
    z, p = [plain(w.projection) for w in words], [plain(w.prediction) for w in words]
    targets, scores = [plain(a.projection) for a in answers], [plain(a.prediction) for a in answers]
    if method.name == "simclr":
        n, losses, candidates = len(z[0]), [], targets[0] + targets[1]
        for view in range(2):
            for i in range(n):
                own, partner = view * n + i, (1 - view) * n + i
                kept = [k for k in range(2 * n) if k != own or not mask]
                losses.append(oracles.find(z[view][i], [candidates[k] for k in kept], kept.index(partner), spec.temperature))
        small = [oracles.simclr([*targets, x], spec.temperature) * 2 - oracles.nt_xent(*targets, spec.temperature) for x in z[2:]]
        return oracles.mean([oracles.mean(losses), *small])
    if method.name == "barlow":
        return oracles.mean([oracles.barlow(a, b, spec.trade_off) for a, b in oracles.pairs(z, targets)])
    if method.name == "vicreg":
        return oracles.mean([oracles.vicreg(a, b, spec.invariance, spec.variance, spec.covariance) for a, b in oracles.pairs(z, targets)])
    if method.name == "swav":
        late = at.progress >= spec.queue_start and all(any(row) for g in range(2) for row in plain(space.queue[g]))
        queue = [plain(space.queue[g] @ space.head.last.weight.T) if late else [] for g in range(2)]
        codes = [oracles.sinkhorn(scores[g] + queue[g], spec.epsilon, spec.iterations)[: len(scores[g])] for g in range(2)]
        return oracles.mean([oracles.assignment_cross_entropy(s, q, spec.temperature) for s, q in oracles.pairs(p, codes)])
    if method.name == "dino":
        warm = min(1.0, at.progress / spec.temperature_warm_up)
        temperature = spec.teacher_temperature_start + warm * (spec.teacher_temperature - spec.teacher_temperature_start)
        return oracles.dino(p, scores, space.centre.tolist(), spec.student_temperature, temperature)
    return (
        oracles.moco(p, targets, spec.temperature)
        if method.name == "moco"
        else {"byol": oracles.byol, "simsiam": oracles.simsiam}[method.name](p, targets)
    )


def filled(objective: Objective) -> Objective:
    """With a centre and a queue as they are in the middle of training."""
    for buffer in objective.method.space.buffers():
        buffer.copy_(F.normalize(toys.spherical(buffer.numel(), 1).view(buffer.shape), dim=-1))
    return objective


@pytest.mark.parametrize("number", [0, 7])
@pytest.mark.parametrize(("name", "n_local"), CASES)
def test_both_terms_are_the_method_s_own_loss_written_as_loops(name: str, n_local: int, number: int) -> None:
    objective, views, at = filled(beside(name)), toys.views(5, n_local), step(number)
    found, lower = terms(objective, views, at), [loop(objective, views, at, block) for block in range(3)]
    assert found["layers"].item() == pytest.approx(oracles.mean(lower), **EXACT)
    assert ("predictors" in found) == (name in PREDICTORS)
    if name in PREDICTORS:
        final = objective.method.loss(views, objective.method(views, Want(), at), at)[0][name].item()
        assert found["predictors"].item() == pytest.approx(sum(lower) + final, **EXACT)


@pytest.mark.parametrize(
    "settings", [{"norm": "separate"}, {"norm": "plain"}, {"norm": "none"}, {"reduce": "sum"}, {"layers": [2, -4]}, {"hidden": 5}]
)
@pytest.mark.parametrize("name", ["simclr", "moco", "dino"])
def test_norms_layers_and_their_sum_are_chosen(name: str, settings: dict[str, Any]) -> None:
    objective, views = beside(name, **settings), toys.views(5)
    for exit_ in objective.auxiliaries["layers"].exits.values():
        for p in exit_.norm.parameters():
            nn.init.normal_(p)
    lower = [loop(objective, views, step(), block) for block in ([0, 2] if "layers" in settings else [0, 1, 2])]
    expected = sum(lower) if "reduce" in settings else oracles.mean(lower)
    assert terms(objective, views)["layers"].item() == pytest.approx(expected, **EXACT)
    hidden = objective.auxiliaries["layers"].exits["0"].head.projector[0].out_features
    assert hidden == settings.get("hidden", 7)  # half of the method's 14


@pytest.mark.parametrize("name", ["dino", "swav"])
def test_a_set_of_prototypes_a_block_is_used_where_asked(name: str) -> None:
    objective, views = filled(beside(name, prototypes="own")), toys.views(5, 1)
    expected = oracles.mean([loop(objective, views, step(), block) for block in range(3)])
    assert terms(objective, views)["layers"].item() == pytest.approx(expected, **EXACT)
    own, shared = (sum(p.numel() for p in beside(name, prototypes=k).auxiliaries.parameters()) for k in ("own", "shared"))
    assert own - shared == 3 * objective.method.space.head.last.weight.numel()


@pytest.mark.parametrize("name", NAMES)
def test_targets_of_the_same_view_exchange_the_two(name: str) -> None:
    objective, views = beside(name, target_view="same"), toys.views(5, 1 if name in MULTI_CROP else 0)
    if name == "swav":
        objective.method.space.queue.zero_()
    expected = oracles.mean([loop(objective, views, step(0), block, swap=True) for block in range(3)])
    found = terms(objective, views, step(0))
    assert found["layers"].item() == pytest.approx(expected, **EXACT)
    if name in PREDICTORS:  # the last block's predictor still looks at the other view
        lower = [loop(objective, views, step(0), block, swap=True) for block in range(3)]
        assert found["predictors"].item() == pytest.approx(sum(lower) + loop(objective, views, step(0), None), **EXACT)


def test_a_hidden_target_is_what_its_own_head_says_and_its_twin_s_where_there_is_a_teacher() -> None:
    for name in ("simclr", "byol", "moco"):
        objective, views = beside(name, target_layer=1), toys.views(5)
        aux, method = objective.auxiliaries["layers"], objective.method
        if aux.slow is not None:
            with torch.no_grad():
                for p in aux.slow.parameters():
                    p.add_(0.1 * torch.ones_like(p))
        outputs = method(views, objective.want(), step())
        answers = [said(objective, b.encoding, 1, slow=aux.slow is not None).detach() for b in outputs.target]
        words = [[said(objective, b.encoding, n) for b in outputs.online] for n in range(3)]
        targets = method.space.targets(answers, step())
        expected = torch.stack([method.space.agree(w, targets, step()) for w in words]).mean()
        assert (aux.slow is None) == (name == "simclr")
        found = terms(objective, views)["layers"]
        torch.testing.assert_close(found, expected)
        mine, by_hand = reached(objective, found), reached(objective, expected)
        assert mine.keys() == by_hand.keys()
        for key, grad in mine.items():
            torch.testing.assert_close(grad, by_hand[key])


def test_the_twin_of_a_hidden_target_s_head_follows_it() -> None:
    objective = beside("byol", target_layer=-2, norm="separate")
    aux = objective.auxiliaries["layers"]
    before, online = parameters(aux.slow), {k: p for k, p in aux.exits["2"].named_parameters()}
    with torch.no_grad():
        for p in online.values():
            p.add_(1.0)
    carries = objective(toys.views(5), step())[2]
    objective.after_step(carries, step())
    m = objective.method.space.momentum(step())
    for key, p in aux.slow.named_parameters():
        torch.testing.assert_close(p, m * before[key] + (1 - m) * online[key].detach())
        assert not p.requires_grad


def test_stages_of_a_cnn_have_heads_of_their_own_widths() -> None:
    def backbone() -> MicroResNet:
        return MicroResNet(widths=(4, 6, 8))

    objective, views = beside("moco", backbone=backbone, norm="separate"), toys.views(5)
    outputs = objective.method(views, objective.want(), step())
    keys, losses = [plain(b.said.projection) for b in outputs.target], []
    for block in (0, 1):
        words = [said(objective, b.encoding, block) for b in outputs.online]
        losses.append(oracles.moco([plain(w.prediction) for w in words], keys, objective.method.spec.temperature))
    found, _ = objective.auxiliaries["layers"](objective.method, views, outputs, step())
    assert found["layers"].item() == pytest.approx(oracles.mean(losses), **EXACT)
    assert [e.norm.normalized_shape for e in objective.auxiliaries["layers"].exits.values()] == [(4,), (6,)]


# ---- closed forms, by numbers --------------------------------------------------------------------
def told(
    name: str, last: tuple[Tensor, Tensor], lower: tuple[Tensor, Tensor] | None = None, blocks: int = 12, **settings: Any
) -> tuple[Objective, Views]:
    """Heads that repeat what they hear, on vectors [B, P] of two views after the last block and after the lower ones."""
    base = METHODS[name][1](Told(last[0].shape[1], blocks), METHODS[name][0](out=last[0].shape[1])).double()
    objective = beside(base=base, **{"weight": 1.0, "schedule": "constant", **settings})
    heads = [base.space.head, base.space.slow, *(e.head for e in objective.auxiliaries["layers"].exits.values())]
    for head in heads:
        if head is not None:
            head.projector, head.predictor = nn.Identity(), None if head.predictor is None else nn.Identity()
    images = tuple(torch.stack([a, b], 1)[..., None].double() for a, b in zip(last, lower or last, strict=True))
    n = len(last[0])
    flat = torch.zeros(2, n)
    return objective, Views(images, torch.zeros(2, n, 4), flat.bool(), flat.long(), 2, torch.arange(n))


def angles(*degrees: float) -> Tensor:
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], 1)


def test_the_weight_rises_by_half_a_cosine_and_never_arrives() -> None:
    aux = beside(weight=0.8).auxiliaries["layers"]
    found = [aux.weights(step(t))["layers"] for t in range(10)]
    expected = [0, 0.019577, 0.076393, 0.164886, 0.276393, 0.4, 0.523607, 0.635114, 0.723607, 0.780423]
    assert found == pytest.approx(expected, abs=5e-7) and sum(found) / 10 == pytest.approx(0.36)
    assert [beside(weight=0.8, schedule="linear").auxiliaries["layers"].weights(step(t))["layers"] for t in (0, 5)] == pytest.approx([0, 0.4])
    assert beside("byol", schedule="constant").auxiliaries["layers"].weights(step(0)) == {"layers": 0.8, "predictors": 1.0}
    late = beside(weight=0.8, start=0.5).auxiliaries["layers"]
    assert [late.weights(step(t, 20))["layers"] for t in range(10, 20)] == pytest.approx(expected, abs=5e-7)


def test_moco_of_two_orthogonal_images_found_again() -> None:
    eye = torch.eye(2)
    assert terms(*told("moco", (eye, eye)))["layers"].item() == pytest.approx(2 * 0.0026861394, rel=1e-7)


def test_the_total_of_collapsed_moco_counts_every_depth() -> None:
    ones = torch.ones(4, 3)
    objective, views = told("moco", (ones, ones))
    total, found, _ = objective(views, step())
    assert found["layers"].item() == pytest.approx(1.1090355, rel=1e-7)
    assert total.item() == pytest.approx(15.5264968, rel=1e-8)


@pytest.mark.parametrize("blocks", [2, 12])
def test_simclr_masks_a_view_s_own_target(blocks: int) -> None:
    ones, eye = torch.ones(2, 2), torch.eye(2)
    for rows, masked, unmasked in ((ones, 1.0986123, 1.3862944), (eye, 0.0133859, 0.6998625)):
        for mask, expected in ((True, masked), (False, unmasked)):
            found = terms(*told("simclr", (rows, rows), blocks=blocks, mask_own_view=mask))["layers"].item()
            assert found == pytest.approx(expected, abs=5e-8)


def test_angles_in_the_plane() -> None:
    last, lower = (angles(0, 30), angles(60, 90)), (angles(10, 40), angles(70, 100))
    expected = {"simclr": 2.3261514, "moco": 0.8173738, "byol": 0.7144248 + 2 - 2 * math.cos(math.radians(70))}
    for name, value in expected.items():
        assert terms(*told(name, last, lower))["layers"].item() == pytest.approx(value, abs=2e-7), name  # the numbers have seven places
    assert terms(*told("simclr", last, lower, mask_own_view=False))["layers"].item() == pytest.approx(3.1188020, abs=1e-7)


def test_orthogonal_byol_weighs_lower_blocks_last_block_and_predictors() -> None:
    last = (angles(0), angles(90))
    objective, views = told("byol", last, weight=0.8)
    total, found, _ = objective(views, step())
    assert found["layers"].item() == pytest.approx(4) and total.item() == pytest.approx(55.2)


# ---- gradient -----------------------------------------------------------------------------------
def reached(objective: Objective, value: Tensor) -> dict[str, Tensor]:
    objective.zero_grad()
    value.backward()
    return {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


@pytest.mark.parametrize("norm", ["shared", "none"])
@pytest.mark.parametrize("name", NAMES)
def test_a_block_s_loss_reaches_its_head_and_the_blocks_up_to_it_only(name: str, norm: str) -> None:
    """No later block, no other head, no prototypes of the method, no teacher, and nothing by way of the target."""
    for block in range(3):
        objective = beside(name, layers=[block], norm=norm)
        found = set(reached(objective, terms(objective, toys.views(6), step(7))["layers"]))
        below = tuple(f"method.backbone.blocks.{i}." for i in range(block + 1))
        allowed = (*below, "method.backbone.patches", f"auxiliaries.layers.exits.{block}.", *(("method.backbone.norm",) if norm == "shared" else ()))
        expected = {n: p for n, p in objective.named_parameters() if n.startswith(allowed)}
        assert found <= set(expected)
        assert {n for n, p in expected.items() if p.ndim > 1} <= found and ("method.backbone.norm.weight" in found) == (norm == "shared")


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("name", PREDICTORS)
def test_the_predictor_only_term_adds_to_predictors_and_to_nothing_else(name: str, norm: str) -> None:
    """By 1 + alpha / 3 over alpha / 3 below, by 2 at the top."""
    settings: dict[str, Any] = {"method": {"norm": norm}, "weight": 0.7, "schedule": "constant"}
    without, with_it = (beside(name, predictor_only=p, **settings) for p in (0.0, 1.0))
    a, b = (reached(o, o(toys.views(6), step())[0]) for o in (without, with_it))
    assert a.keys() == b.keys()
    for key, grad in a.items():
        mine = ".predictor." in key
        factor = 1.0 if not mine else 2.0 if key.startswith("method.") else (1 + 0.7 / 3) / (0.7 / 3)
        torch.testing.assert_close(b[key], factor * grad, rtol=1e-8, atol=1e-12)
    assert sum(".predictor." in key and key.startswith("method.") for key in a) > 0


def test_the_last_predictor_may_be_left_out_or_be_alone() -> None:
    for name in PREDICTORS:
        views = toys.views(5)
        final = toys.method(name, backbone=Deep)
        alone = terms(beside(name, layers=[]), views)
        assert set(alone) == {"predictors"}
        value = final.loss(views, final(views, Want(), step()), step())[0][name]
        torch.testing.assert_close(alone["predictors"], value)
        whole, without = (terms(beside(name, predictor_only_final=k), views)["predictors"] for k in (True, False))
        torch.testing.assert_close(whole - without, value)


@pytest.mark.parametrize("name", NAMES)
def test_at_the_first_step_loss_and_gradient_are_the_method_s_own(name: str) -> None:
    """The weight is 0 then, and every parameter has a gradient all the same."""
    objective, base, views = beside(name, predictor_only=0.0), Objective(toys.method(name, backbone=Deep)), toys.views(6)
    mine, own = objective(views, step(0))[0], base(views, step(0))[0]
    assert mine.item() == own.item()
    a, b = reached(objective, mine), reached(base, own)
    assert same({k: v for k, v in a.items() if k.startswith("method.")}, b) and a.keys() == b.keys()
    assert all(p.grad is not None for p in objective.parameters() if p.requires_grad)


# ---- invariances --------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_views_changes_nothing_nor_does_saying_them_one_by_one(name: str) -> None:
    views, found = toys.views(5), []
    swapped = Views(views.images[::-1], views.boxes, views.flips, views.turns, 2, views.index)
    for given, joint in ((views, True), (views, False), (swapped, True), (swapped, False)):
        found.append({k: v.item() for k, v in terms(beside(name, method={"joint_views": joint}), given, step(0)).items()})
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-10)


def test_heads_meet_their_own_block_s_words_of_every_crop() -> None:
    """Codes of block, crop and sample, for crops of two sizes and a number of blocks that nobody expects."""

    class Coded(nn.Module):
        width, block_widths = 3, (3,) * 5

        def forward(self, images: Tensor, want: Want = Want(), mask: Tensor | None = None) -> Encoding:
            def code(block: int) -> Tensor:
                rows = [torch.full((len(images),), float(block)), torch.full((len(images),), float(images.shape[-1])), images[:, 0, 0, 0].float()]
                return torch.stack(rows, 1).double()

            return Encoding(code(4), None, (1, 1), {i: Block(code(i), code(i), None, (1, 1)) for i in want.blocks})

    for joint in (True, False):
        base = METHODS["dino"][1](Coded(), METHODS["dino"][0](out=4, hidden=4, prototypes=5, norm="none", joint_views=joint)).double()
        objective, views = beside(base=base), toys.views(3, 4)
        codes = [i[:, 0, 0, 0].float().double() for i in views.images]
        for number, exit_ in objective.auxiliaries["layers"].exits.items():
            heard: list[Tensor] = []
            exit_.register_forward_pre_hook(lambda _, args, heard=heard: heard.append(args[0]))
            terms(objective, views)
            got = torch.cat(heard)
            assert (got[:, 0] == int(number)).all() and len(heard) == (1 if joint else 6)
            assert torch.equal(got[:, 2], torch.cat(codes)) and got[:, 1].tolist() == [16.0] * 6 + [8.0] * 12


def test_heads_normalise_view_by_view_or_together_as_the_method_s_own_do() -> None:
    for name, joint in (("byol", False), ("simclr", True)):
        objective, views = beside(name, method={"norm": "batch"}), toys.views(6)
        method, aux = objective.method, objective.auxiliaries["layers"]
        outputs = method(views, objective.want(), step())
        blocks = [b.encoding.blocks[1].final for b in outputs.online]
        projector = aux.exits["1"].head.projector
        one_by_one, together = torch.cat([projector(x) for x in blocks]), projector(torch.cat(blocks))
        found = torch.cat([s.projection for s in aux._say(method.space, outputs.online, "1")])
        torch.testing.assert_close(found, together if joint else one_by_one)
        assert not torch.allclose(together, one_by_one)


def test_a_norm_behind_the_projectors_is_the_method_s_unless_asked() -> None:
    for name, own in (("byol", False), ("moco", True)):
        for asked, expected in ((None, own), (True, True), (False, False)):
            objective = beside(name, method={"norm": "batch"}, last_norm=asked)
            for exit_ in objective.auxiliaries["layers"].exits.values():
                last = exit_.head.projector[-1]
                assert isinstance(last, nn.BatchNorm1d) == expected and last.weight is None if expected else isinstance(last, nn.Linear)


# ---- refusals -----------------------------------------------------------------------------------
REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("simclr", {"layers": [3]}, r"must be different hidden blocks, 0 to 2, got \[3\]; the last, 3, has the method's own loss"),
    ("simclr", {"layers": [1, -3]}, r"must be different hidden blocks, 0 to 2, got \[1, -3\]"),
    ("simclr", {"layers": [7]}, r"auxiliary\.layers\.layers must be from 0 to 3, or from the end -4 to -1, got 7"),
    ("simclr", {"layers": []}, r"must name a block for simclr, got an empty list"),
    ("byol", {"layers": [], "predictor_only_final": False}, "must name a block for byol"),
    ("simclr", {"layers": [0], "target_layer": 1}, r"target_layer must be one of auxiliary\.layers\.layers or the last, got 1"),
    ("dino", {"target_layer": 1}, "target_layer must be the last block, -1, for dino, whose centre"),
    ("swav", {"target_layer": 0}, "whose queue"),
    ("byol", {"mask_own_view": False}, "mask_own_view means nothing to byol"),
    ("moco", {"prototypes": "own"}, "prototypes means nothing to moco"),
    ("byol", {"last_norm": True}, r"last_norm needs method\.norm=batch"),
]


@pytest.mark.parametrize(("name", "settings", "words"), REFUSALS)
def test_what_makes_no_sense_is_refused_in_one_line(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words) as refused:
        beside(name, **settings)
    assert "\n" not in str(refused.value)


def test_a_backbone_without_hidden_blocks_and_layers_that_are_no_list_are_refused() -> None:
    with pytest.raises(SettingError, match="needs a backbone of several blocks, got 1"):
        beside(backbone=toys.NormedBackbone)
    for given in ("some", [1.5], [True], 3):
        with pytest.raises(ValueError, match='must be "all" or a list of block numbers'):
            LayersSpec(layers=given)
