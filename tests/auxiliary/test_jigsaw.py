from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import toys
from scipy.stats import chisquare
from torch import Tensor
from toys import step, views

from gnothi.auxiliary import jigsaw
from gnothi.auxiliary.jigsaw import DRAWS, DRAWS_A_TILE, Jigsaw, JigsawSpec, Puzzle, cut, puzzle, standardise
from gnothi.contracts import SettingError, Views, Want
from gnothi.methods.none import NoMethod, NoneSpec
from gnothi.models.backbone import BackboneSpec, build
from gnothi.randomness import generator, seeded
from gnothi.recipes.views import named
from gnothi.training.health import diagnose
from gnothi.training.objective import Objective

SMALL: dict[str, Any] = {"grid": 2, "image": 22, "tile": 8, "jitter": 2, "channel_shift": 1, "permutations": 6, "hidden": 5, "norm": "layer"}
"""Cells of 11 pixels; patches of 4 fit the tiles."""


def beside(name: str = "simclr", **settings: Any) -> Objective:
    with seeded(0, "jigsaw"):
        base = NoMethod(toys.ToyBackbone(), NoneSpec()).double() if name == "none" else toys.method(name)
        return Objective(base, {"jigsaw": Jigsaw(base, JigsawSpec(**{**SMALL, **settings})).double()})


def given(b: int = 6, size: int = 22) -> Views:
    """Views, and a large crop of jigsaw's own."""
    crop = views(b, size=size, seed=7)
    crop = replace(crop, images=crop.images[:1], boxes=crop.boxes[:1], flips=crop.flips[:1], turns=crop.turns[:1])
    return replace(views(b), extra={"jigsaw": crop})


def drawn(n: int, spec: JigsawSpec, *, channels: int = 3, seed: int = 0, sets: Tensor | None = None) -> Puzzle:
    """Puzzles of a batch of n."""
    tiles = spec.grid**2
    uniforms = torch.rand(n, DRAWS + (DRAWS_A_TILE + 2 * channels) * tiles, generator=generator(seed, "puzzle"), dtype=torch.float64)
    sets = torch.stack([torch.arange(tiles).roll(i) for i in range(tiles)]) if sets is None else sets
    return puzzle(uniforms, sets, torch.arange(n), n, channels, spec.settled("simclr"))


def slowly(images: Tensor, made: Puzzle, grid: int, tile: int) -> Tensor:
    """Tiles, pixel by pixel."""
    n, tiles, channels = made.shifts.shape[:3]
    cell = images.shape[2] // grid
    out = images.new_empty(n, tiles, channels, tile, tile)
    weights = [0.2989, 0.587, 0.114]
    for b, t, c, i, j in itertools.product(range(n), range(tiles), range(channels), range(tile), range(tile)):
        source = images[int(made.images[b, t])]
        row = int(made.cells[b, t]) // grid * cell + int(made.offsets[b, t, 0]) + int(made.shifts[b, t, c, 0]) + i
        column = int(made.cells[b, t]) % grid * cell + int(made.offsets[b, t, 1]) + int(made.shifts[b, t, c, 1]) + j
        pixel = source[:, row, column].tolist()
        out[b, t, c, i, j] = sum(w * v for w, v in zip(weights, pixel, strict=True)) if made.grey[b, t] else pixel[c]
    return out


# ---- tiles --------------------------------------------------------------------------------------
def test_tiles_are_the_pixels_of_their_cells_shuffled_shifted_and_grey():
    spec = JigsawSpec(**{**SMALL, "max_occlusions": 2, "grey": 0.5})
    images = torch.randn(5, 3, 22, 22, generator=generator(0, "jigsaw"), dtype=torch.float64)
    made = drawn(5, spec)
    assert made.grey.any() and not made.grey.all() and (made.images != torch.arange(5)[:, None]).any()
    torch.testing.assert_close(cut(images, made, 2, 8), slowly(images, made, 2, 8), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("shift", "jitter"), [(0, 21), (2, 19)])
def test_a_tile_and_its_shifted_channels_stay_inside_their_cell_and_lie_anywhere_in_it(shift, jitter):
    """The paper's sizes: tiles of 64 in cells of 85 pixels; without the shift neighbours are 0 to 42 pixels apart."""
    spec = JigsawSpec(channel_shift=shift).settled("simclr")
    assert (spec.image, spec.tile, spec.jitter) == (255, 64, jitter)
    made = drawn(2000, spec, sets=torch.arange(9)[None])
    first = made.offsets.unique()
    assert first.tolist() == list(range(jitter + 1))
    last = made.offsets[:, :, None] + made.shifts + spec.tile  # [B, T, C, 2], one past the last pixel
    assert last.max() == 85
    across = made.offsets[..., 1].view(-1, 3, 3)
    gaps = (across[:, :, 1:] + 85) - (across[:, :, :-1] + 64)
    assert (gaps.min(), gaps.max()) == (85 - 64 - jitter, 85 - 64 + jitter)
    pixels = torch.stack([torch.arange(255.0)[:, None].expand(255, 255), torch.arange(255.0).expand(255, 255), torch.zeros(255, 255)])
    some = drawn(4, spec.model_copy(update={"grey": 0.0}), sets=torch.arange(9)[None])
    tiles = cut(pixels.expand(4, -1, -1, -1), some, 3, 64)  # what stands in a tile is where it came from
    assert torch.equal((tiles[:, :, 0] // 85).long(), (torch.arange(9) // 3)[None, :, None, None].expand(4, -1, 64, 64))
    assert torch.equal((tiles[:, :, 1] // 85).long(), (torch.arange(9) % 3)[None, :, None, None].expand(4, -1, 64, 64))


def test_channels_are_shifted_and_not_brightened():
    """A white pixel on black has its peak at places up to two pixels apart, and is as white as before."""
    image = torch.zeros(1, 3, 96, 96)
    image[:, :, 16, 16] = 1
    spec = JigsawSpec(image=96, tile=24, jitter=0, grey=0.0)
    found = set()
    for seed in range(60):
        first = cut(image, drawn(1, spec, seed=seed, sets=torch.arange(9)[None]), 3, 24)[0, 0]  # [C, H, W]
        peaks = [divmod(int(channel.argmax()), 24) for channel in first]
        assert first.amax((1, 2)).tolist() == [1, 1, 1] and first.sum() == 3
        assert all(abs(a[0] - b[0]) <= 2 and abs(a[1] - b[1]) <= 2 for a, b in itertools.combinations(peaks, 2))
        found.add(peaks[0])
    assert found == set(itertools.product((14, 15, 16), repeat=2))


def test_labels_name_the_permutation_and_sorting_by_it_brings_the_tiles_back():
    spec = JigsawSpec(**{**SMALL, "jitter": 0, "channel_shift": 0, "grey": 0.0})
    sets = Jigsaw(toys.method("simclr"), spec).permutations
    images = torch.randn(8, 3, 22, 22, generator=generator(0, "jigsaw"))
    made = drawn(8, spec, sets=sets)
    tiles = cut(images, made, 2, 8)
    assert torch.equal(made.cells, sets[made.labels]) and len(made.labels.unique()) > 2
    for b, perm in enumerate(sets[made.labels]):
        whole = torch.stack([images[b, :, r : r + 8, c : c + 8] for r in (0, 11) for c in (0, 11)])
        assert torch.equal(tiles[b], whole[perm]) and torch.equal(tiles[b][perm.argsort()], whole)


@pytest.mark.parametrize("norm", ["channel", "tile", "none"])
def test_each_tile_is_standardised_by_itself(norm):
    """[[0, 1], [2, 3]] has a mean of 1.5 and an unbiased deviation of 1.290994."""
    tiles = torch.tensor([[0.0, 1.0], [2.0, 3.0]])[None, None].repeat(2, 3, 1, 1)
    assert standardise(tiles, "channel")[0, 0].flatten().tolist() == pytest.approx([-1.161895, -0.387298, 0.387298, 1.161895], abs=1e-6)
    tiles = 5 * torch.randn(2, 4, 3, 6, 6, generator=generator(0, "tiles")) + torch.arange(3.0)[:, None, None]
    axes = {"channel": (-2, -1), "tile": (-3, -2, -1), "none": ()}[norm]
    found = standardise(tiles, norm)
    if norm == "none":
        assert torch.equal(found, tiles)
    else:
        torch.testing.assert_close(found.mean(axes), torch.zeros_like(tiles.mean(axes)), rtol=0, atol=1e-5)
        torch.testing.assert_close(found.std(axes), torch.ones_like(tiles.mean(axes)))
        assert (standardise(torch.full((2, 3, 24, 24), 0.3), norm) == 0).all()


# ---- occlusion ----------------------------------------------------------------------------------
def test_as_often_none_as_one_as_two_tiles_come_from_another_image_and_the_rest_is_as_it_was():
    n, spec = 30_000, JigsawSpec(max_occlusions=2)
    made, clear = drawn(n, spec), drawn(n, JigsawSpec(grey=0.7))
    hidden = made.images != torch.arange(n)[:, None]
    assert chisquare(torch.bincount(hidden.sum(1), minlength=3).numpy()).pvalue > 0.01
    assert not (clear.images != torch.arange(n)[:, None]).any() and torch.equal(made.labels, clear.labels)
    for name in ("images", "cells", "offsets", "shifts", "grey"):
        assert torch.equal(getattr(made, name)[~hidden], getattr(clear, name)[~hidden])
    assert chisquare(hidden.sum(0).numpy()).pvalue > 0.01  # places
    two = hidden.sum(1) == 2
    assert torch.equal(made.images[two].masked_fill(~hidden[two], -1).amax(1), made.images[two].masked_fill(~hidden[two], n).amin(1))  # one image
    sources = made.cells[two][hidden[two]].view(-1, 2)
    assert (sources[:, 0] != sources[:, 1]).all() and chisquare(torch.bincount(sources.flatten()).numpy()).pvalue > 0.01
    from_place = made.cells[hidden] == torch.arange(9).expand(n, 9)[hidden]
    assert 0.1 < from_place.double().mean() < 0.125  # one in nine by chance


def test_the_other_image_is_any_but_the_own():
    spec = JigsawSpec(max_occlusions=2)
    seen = torch.zeros(6, 6)
    for seed in range(300):
        made = drawn(6, spec, seed=seed)
        for b in range(6):
            seen[b, made.images[b][made.images[b] != b]] += 1
    assert (seen.diagonal() == 0).all() and chisquare(seen[~torch.eye(6).bool()].numpy()).pvalue > 1e-6
    assert (seen + torch.eye(6) > 0).all()


@pytest.mark.parametrize("same", [True, False])
def test_the_other_image_s_tiles_are_grey_where_the_puzzle_is(same):
    made = drawn(4000, JigsawSpec(max_occlusions=2, grey=0.5, same_colour=same))
    hidden = made.images != torch.arange(4000)[:, None]
    own = torch.stack([g[~h][0] for g, h in zip(made.grey, hidden, strict=True)])
    unlike = (made.grey != own[:, None]) & hidden
    assert bool(unlike.any()) != same and not ((made.grey != own[:, None]) & ~hidden).any()
    assert 0.46 < own.double().mean() < 0.54


@pytest.mark.parametrize(("count", "occlusions"), [(100, 2), (30, 6)])
def test_no_two_permutations_look_alike_whatever_is_hidden(count, occlusions):
    rows = Jigsaw(toys.method("simclr"), JigsawSpec(permutations=count, max_occlusions=occlusions)).permutations
    for hidden in range(occlusions + 1):
        for places in itertools.combinations(range(9), hidden):
            left = [i for i in range(9) if i not in places]
            assert len(rows[:, left].unique(dim=0)) == count


# ---- the term -----------------------------------------------------------------------------------
@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("occlusions", [0, 2])
def test_the_term_is_the_mean_cross_entropy_of_the_right_permutation(joint, occlusions):
    objective = beside(joint=joint, max_occlusions=occlusions, permutations=4, tile_norm="channel")
    aux, base, before = objective.auxiliaries["jigsaw"], objective.method, given()
    ready = objective.draw(before, step())
    value = aux(base, ready, base(ready, Want(), step()), step())[0]["jigsaw"]
    tiles, labels = ready.drawn["jigsaw tiles"], ready.drawn["jigsaw"]
    total = 0.0
    for b in range(6):
        kept = [aux.keep(base.backbone(tiles[b, t][None]).pooled)[0] for t in range(4)]
        logits = aux.name_it(torch.cat(kept)[None])[0].tolist()
        total += (math.log(sum(map(math.exp, logits))) - logits[int(labels[b])]) / 6
    assert value.item() == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize(("count", "chance"), [(100, 4.605170), (701, 6.552508)])
def test_a_head_that_knows_nothing_costs_the_logarithm_of_the_number_of_permutations(count, chance):
    base = toys.method("simclr")
    aux = Jigsaw(base, JigsawSpec(image=96, tile=24, permutations=count)).double()
    torch.nn.init.zeros_(aux.name_it.weight), torch.nn.init.zeros_(aux.name_it.bias)
    objective, ready = Objective(base, {"jigsaw": aux}), given(3, 96)
    assert objective(objective.draw(ready, step()), step())[1]["jigsaw"].item() == pytest.approx(chance, abs=1e-6)


def test_what_is_kept_of_a_tile_hangs_on_no_other_tile():
    base = NoMethod(build(BackboneSpec(name="micro-resnet", args={"widths": [4, 8]}), 3, 32, 0), NoneSpec()).double()
    aux = Jigsaw(base, JigsawSpec(image=96)).double()
    for m in (base, aux):
        m.eval()
    tiles = torch.randn(2, 9, 3, 24, 24, generator=generator(0, "tiles"), dtype=torch.float64)
    order = torch.randperm(9, generator=generator(0, "order"))
    torch.testing.assert_close(aux.said(base, tiles[:, order]), aux.said(base, tiles)[:, order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [*toys.NAMES, "none"])
def test_its_gradient_reaches_the_online_backbone_and_its_head_and_nothing_else(name):
    objective = beside(name)
    ready = objective.draw(given(), step())
    objective.auxiliaries["jigsaw"](objective.method, ready, objective.method(ready, Want(), step()), step())[0]["jigsaw"].backward()
    reached = {n for n, p in objective.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert reached == {n for n, _ in objective.named_parameters() if n.startswith(("method.backbone.", "auxiliaries.jigsaw."))}


@pytest.mark.parametrize("statistics", ["keep", "update"])
def test_running_statistics_move_only_where_asked(statistics):
    base = toys.method("simclr", backbone=toys.NormedBackbone)
    objective = Objective(base, {"jigsaw": Jigsaw(base, JigsawSpec(**SMALL, statistics=statistics)).double()})
    ready = objective.draw(given(), step())
    outputs, before = base(ready, Want(), step()), toys.parameters(base)
    objective.auxiliaries["jigsaw"](base, ready, outputs, step())
    assert toys.same(before, dict(base.state_dict())) == (statistics == "keep")


def test_micro_batches_see_the_other_images_of_the_whole_batch():
    """Half of the batch twice gives the loss of the whole, occluding images of the other half among them."""
    objective = beside("none", max_occlusions=2, permutations=4)
    ready = objective.draw(given(8), step())
    whole = objective(ready, step())[1]["jigsaw"]
    halves = [objective(ready.rows(part), step())[1]["jigsaw"] for part in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close((halves[0] + halves[1]) / 2, whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_sees_the_other_images_of_all_processes(rank, monkeypatch):
    """What one of two processes cuts is what one with the whole batch cuts of these images."""
    aux, whole, at = beside("none", max_occlusions=2, permutations=4).auxiliaries["jigsaw"], given(8), step()
    whole = replace(whole, drawn={"jigsaw": aux.draw(8, at)})
    part = slice(4 * rank, 4 * rank + 4)
    expected = aux.prepare(whole, at).rows(part)
    monkeypatch.setattr(jigsaw, "rank", lambda: rank)
    monkeypatch.setattr(jigsaw, "world", lambda: 2)
    monkeypatch.setattr(jigsaw, "gather", lambda crop: whole.extra["jigsaw"].images[0])
    found = aux.prepare(whole.rows(part), at)
    assert torch.equal(found.drawn["jigsaw"], expected.drawn["jigsaw"])
    assert torch.equal(found.drawn["jigsaw tiles"], expected.drawn["jigsaw tiles"])


def test_before_its_start_no_puzzle_is_cut():
    objective = beside(start=0.9)
    assert "jigsaw tiles" not in objective.draw(given(), step()).drawn
    assert diagnose(objective, objective.draw(given(), step()), step()) == {}
    assert objective(objective.draw(given(), step()), step())[1].keys() == {"simclr"}


def test_puzzles_of_coloured_quarters_are_solved():
    """Each quarter has a colour of its own, so four tiles tell their places."""
    with seeded(0, "jigsaw"):
        base = NoMethod(toys.ToyBackbone(), NoneSpec())
        settings = {**SMALL, "tile_norm": "none", "grey": 0.0, "max_occlusions": 1, "min_distance": 3, "permutations": 4}
        objective = Objective(base, {"jigsaw": Jigsaw(base, JigsawSpec(**settings))})
    colours = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1]]).T.reshape(3, 2, 2)
    image = colours.repeat_interleave(11, 1).repeat_interleave(11, 2)

    def feed(number: int) -> Views:
        ready = given(16)
        noise = 0.3 * torch.randn(16, 3, 22, 22, generator=generator(0, "quarters", number))
        return replace(ready, extra={"jigsaw": replace(ready.extra["jigsaw"], images=(image + noise,))})

    run = toys.learner(objective, feed, total=50, optimiser={"lr": 0.2})
    run.fit()
    last = objective(objective.draw(feed(99), step(99, 100)), step(99, 100))[1]["jigsaw"]
    assert last < 0.2 * math.log(4)
    found = diagnose(objective, objective.draw(feed(98), step(98, 100)), step(98, 100))
    assert found["jigsaw_accuracy"] > 0.9 and found["jigsaw_chance"] == 0.25


# ---- settings -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("size", "sizes"), [(32, (30, 8, 0)), (64, (63, 16, 3)), (96, (96, 24, 6)), (128, (126, 32, 8)), (224, (255, 64, 19)), (448, (255, 64, 19))]
)
def test_sizes_follow_the_views(size, sizes):
    given = named("simclr", size)
    found = JigsawSpec().settled("simclr", given)
    assert (found.image, found.tile, found.jitter) == sizes and found.settled("simclr", given) == found
    aux = Jigsaw(toys.method("simclr"), found)
    (crop,) = aux.crops(given)
    assert crop.size == sizes[0] and crop.aspect == (1, 1) and crop.area == (0.5, 1.0) and aux.passes(given) == (sizes[1],) * 9
    assert crop.photometric == type(crop.photometric)() and crop.flip == 0.5


def test_presets_follow_method_and_occlusions():
    plain, alone, twice = JigsawSpec().settled("byol"), JigsawSpec().settled("none"), JigsawSpec(max_occlusions=2).settled("byol")
    assert (plain.weight, plain.statistics, plain.grey, plain.min_distance, plain.permutations) == (0.1, "keep", 0.66, 1, 100)
    assert (alone.weight, alone.statistics) == (1.0, "update") and (twice.grey, twice.min_distance) == (0.7, 3)
    assert JigsawSpec(grid=2).settled("byol").permutations == 12
    Jigsaw(toys.method("byol"), JigsawSpec(grid=2, max_occlusions=2))  # they exist


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image": 100}, r"image must be a multiple of the grid 3, in cells larger than the channel shift 2, got 100; 99 and 102 are nearest"),
        ({"image": 6}, r"got 6; 9 and 12 are nearest"),
        ({"image": 96, "tile": 31}, r"tile must be at most 30, a cell of 32 less the channel shift 2, got 31"),
        ({"image": 96, "tile": 24, "jitter": 7}, r"jitter must be at most 6, or tiles of 24 leave their cells of 32, got 7"),
        ({"jitter": 21, "tile": 64}, r"jitter must be at most 19"),
        ({"max_occlusions": 2, "min_distance": 2}, r"min_distance must be at least 3, one more than auxiliary\.jigsaw\.max_occlusions"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        JigsawSpec(**settings).settled("simclr")


def test_tiles_that_no_patch_divides_are_refused():
    base = NoMethod(build(BackboneSpec(name="micro-vit", patch_size=16), 3, 96, 0), NoneSpec())
    with pytest.raises(SettingError, match=r"auxiliary\.jigsaw\.tile must be a multiple of the patch size 16, got 24; 16 and 32 are nearest"):
        Jigsaw(base, JigsawSpec(image=96))
    with pytest.raises(SettingError, match="cannot all differ in 8 places"):
        Jigsaw(base, JigsawSpec(image=96, tile=16, permutations=100, min_distance=8))


def test_channels_may_be_any_number():
    spec = JigsawSpec(**{**SMALL, "grey": 1.0})
    images = torch.randn(4, 5, 22, 22, generator=generator(0, "channels"))
    tiles = cut(images, drawn(4, spec, channels=5), 2, 8)
    assert tiles.shape == (4, 4, 5, 8, 8) and tiles.isfinite().all()
    still = cut(images, drawn(4, spec.model_copy(update={"channel_shift": 0}), channels=5), 2, 8)
    assert torch.equal(still, still[:, :, :1].expand_as(still))
