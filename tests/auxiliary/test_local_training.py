"""Local self-distillation in runs: late starts, resuming, diagnostics, mistakes, and that patches learn."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import oracles
import pytest
import torch
import toys
from oracles import mean, plain
from patched import beside, crops, diagonal, lies
from torch import Tensor
from toys import NAMES, TEACHERS, Feed, learner, method, parameters, same, step, views

from gnothi import pretrain
from gnothi.auxiliary import matching
from gnothi.auxiliary.local import Local, LocalSpec
from gnothi.contracts import SettingError, Views, Want
from gnothi.randomness import generator, seeded
from gnothi.recipes.resolve import resolve
from gnothi.training import checkpoint
from gnothi.training.health import diagnose
from gnothi.training.objective import Objective


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


def test_relations_can_be_had_without_partners():
    chosen = {"method": {"name": "dino"}, "auxiliary": {"local": {"match": "none", "gram": 2.0}}, "training": {"batch": 16}}
    assert pretrain.build(resolve("photos", settings=chosen)).weights(step()) == {"dino": 1.0, "local_gram": 2.0}


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
        ("dino", {"teacher_temperature": 0.1}, r"^auxiliary\.local\.teacher_temperature must be below method\.student_temperature \(0\.1\)"),
        ("dino", {"match": "none"}, "match=none leaves nothing to learn"),
        ("dino", {"weight": 0, "gram": 1.0}, r"weight=0 would leave auxiliary\.local\.gram out too; set auxiliary\.local\.match=none instead"),
        ("dino", {"match": "none", "weight": 0, "kernel": 1.0}, r"weight=0 would leave auxiliary\.local\.kernel out too; leave the weight out"),
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


@pytest.mark.parametrize("name", NAMES)
def test_the_term_falls_below_what_can_be_had_without_looking(name):
    """On one batch: below nine tenths of a guess where a guess has a number, else to a part of what it was."""
    feed, found = Overlapping(b=16), []
    with seeded(0, "term"):
        base = method(name, momentum=0.9) if name in TEACHERS else method(name)
        objective = Objective(base, {"local": Local(base, LocalSpec(weight=1.0))}).float()
    trained = learner(objective, lambda _: feed(0), total=60, optimiser={"name": "adamw", "lr": 0.01}, training={"log_every": "5 steps"})
    trained.journal.write = lambda kind, step, seconds, line: found.append(line["terms"]["local"]) if kind == "train" else None
    trained.fit()
    drawn = objective.draw(feed(0), step())
    encodings = [objective.method.backbone(i, Want(patches=True)) for i in drawn.images]
    kept = mean([objective.auxiliaries["local"].partners(drawn, encodings, encodings, v, 1 - v)[0].weight.double().mean().item() for v in (0, 1)])
    patches = 16 * encodings[0].patches.shape[1]
    guess = {"simclr": math.log(2 * patches - 1), "moco": 0.4 * math.log(patches), "dino": math.log(11), "swav": math.log(9), "byol": 2.0}
    below = {k: 0.9 * kept * v for k, v in guess.items()} | {"simsiam": -0.5 * kept, "barlow": 0.5 * found[0], "vicreg": 0.8 * found[0]}
    assert found[-1] < below[name]
