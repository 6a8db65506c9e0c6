"""Where patches lie and which belong together, against pixels that are really cut, brute force over all centres, and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gnothi.auxiliary import matching
from gnothi.auxiliary.matching import Frame, centres, frame, geometric_matches
from gnothi.contracts import SettingError
from gnothi.randomness import expand, generator
from gnothi.views.crops import cut

DIHEDRAL = [(flip, turn) for flip in (False, True) for turn in range(4)]


def match(student, teacher, student_grid=(7, 7), teacher_grid=(7, 7), flips=(False, False), turns=(0, 0)):
    """Matches of one image from plain boxes, with single rows taken off."""
    s, t = (torch.tensor([list(b)], dtype=torch.float64) for b in (student, teacher))
    flags = [torch.tensor([f]) for f in flips]
    quarters = [torch.tensor([t]) for t in turns]
    index, distance, valid = geometric_matches(s, t, student_grid, teacher_grid, *flags, *quarters)
    return index[0], distance[0], valid[0]


def some(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Fractional boxes, so that nothing ties, with flips and turns."""
    g = generator(seed, "boxes")
    corner, sides = 60 * torch.rand(n, 2, generator=g, dtype=torch.float64), 20 + 60 * torch.rand(n, 2, generator=g, dtype=torch.float64)
    return torch.cat([corner, sides], 1), torch.rand(n, generator=g) < 0.5, torch.randint(4, (n,), generator=g)


def brute(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest of all centres, [B, N, 2] each; the margin to the second nearest says what is no tie."""
    far = (student[:, :, None] - teacher[:, None]).norm(dim=-1)
    near = far.sort(-1)
    margin = near.values[..., 1] - near.values[..., 0] if far.shape[-1] > 1 else torch.ones_like(near.values[..., 0])
    return near.indices[..., 0], near.values[..., 0], margin


def by_pixels(boxes: Tensor, grid: tuple[int, int], flips: Tensor, turns: Tensor, *, size: int | None = None, part: slice = slice(None)) -> Tensor:
    """Centres of cells as the mean of the places of the pixels in them, [B, N, 2]: an image of places is really cut, mirrored and turned.

    ``part`` of the rows and columns of a crop of ``size`` pixels holds the cells.
    """
    y, x = torch.meshgrid(torch.arange(150) + 0.5, torch.arange(190) + 0.5, indexing="ij")
    places = torch.stack([x, y]).expand(len(boxes), -1, -1, -1)
    # From far inside the image, so that the antialiasing filter's window is cut off at no border but the box's own.
    crops = cut(places, boxes.float(), size or 8 * math.lcm(*grid), flips, turns)[:, :, part, part]
    return torch.nn.functional.adaptive_avg_pool2d(crops, grid).flatten(2).mT.double()


# ---- against pixels -----------------------------------------------------------------------------
@pytest.mark.parametrize(("flip", "turn"), DIHEDRAL)
@pytest.mark.parametrize("grid", [(3, 3), (4, 6), (7, 7)])
def test_centres_are_where_the_pixels_of_a_cell_come_from(grid, flip, turn):
    boxes, _, _ = some(6)
    boxes[:2, 2:] = torch.tensor([[90.0, 30.0], [25.0, 75.0]])  # three to one
    flips, turns = torch.full((6,), flip), torch.full((6,), turn)
    at = frame(boxes, grid, flips, turns)
    cell = torch.minimum(at.across.norm(dim=-1), at.down.norm(dim=-1))
    off = (centres(at) - by_pixels(boxes, grid, flips, turns)).norm(dim=-1) / cell[:, None]
    assert off.max() < 0.01


@pytest.mark.parametrize(("flip", "turn"), DIHEDRAL)
def test_cells_of_which_the_last_stick_out_are_where_their_pixels_come_from(flip, turn):
    """Cells of 8 pixels on a crop of 28, which is 112 here: room for three and a half, and the three that are whole are looked at."""
    boxes, _, _ = some(6)
    boxes[:, 2:] = 75
    flips, turns = torch.full((6,), flip), torch.full((6,), turn)
    at = frame(boxes, (4, 4), flips, turns, room=(3.5, 3.5))
    seen = by_pixels(boxes, (3, 3), flips, turns, size=112, part=slice(0, 96))
    whole = centres(at).unflatten(1, (4, 4))[:, :3, :3].flatten(1, 2)
    assert (whole - seen).norm(dim=-1).max() < 0.02 * 75 / 3.5


def test_cells_that_stick_out_match_the_nearest_and_what_lies_below_them_is_not_inside():
    (a, fa, ta), (b, fb, tb) = some(200, 18), some(200, 19)
    s, t = frame(a, (4, 4), fa, ta, room=(3.5, 3.5)), frame(b, (3, 7), fb, tb, room=(2.25, 6.5))
    index, distance = matching.nearest(s, t)
    expected, far, margin = brute(centres(s), centres(t))
    torch.testing.assert_close(distance, far, rtol=1e-9, atol=1e-9)
    assert torch.equal(index[margin > 1e-9], expected[margin > 1e-9])
    x, y = centres(s).unbind(-1)
    left, top, wide, high = (v[:, None] for v in b.unbind(1))
    assert torch.equal(matching.inside(s, t), (x >= left) & (x < left + wide) & (y >= top) & (y < top + high))


@pytest.mark.parametrize("pair", [(3, 3, 7, 7), (7, 7, 7, 7), (4, 6, 7, 3), (1, 1, 4, 4), (14, 14, 6, 6)])
def test_matches_are_those_of_pixels_cut_from_the_image(pair):
    (a, fa, ta), (b, fb, tb) = some(40, 1), some(40, 2)
    index, distance, _ = geometric_matches(a, b, pair[:2], pair[2:], fa, fb, ta, tb)
    expected, far, margin = brute(by_pixels(a, pair[:2], fa, ta), by_pixels(b, pair[2:], fb, tb))
    clear = margin > 0.1
    assert torch.equal(index[clear], expected[clear]) and clear.double().mean() > 0.9
    assert (distance - far)[clear].abs().max() < 0.1


@pytest.mark.parametrize("seed", range(3))
def test_matches_are_the_nearest_of_all_centres(seed):
    for pair in ((7, 7, 3, 3), (3, 3, 14, 14), (6, 6, 6, 6), (4, 6, 6, 4)):
        (a, fa, ta), (b, fb, tb) = some(200, seed), some(200, seed + 10)
        index, distance, valid = geometric_matches(a, b, pair[:2], pair[2:], fa, fb, ta, tb)
        s, t = frame(a, pair[:2], fa, ta), frame(b, pair[2:], fb, tb)
        expected, far, margin = brute(centres(s), centres(t))
        torch.testing.assert_close(distance, far, rtol=1e-9, atol=1e-9)
        assert torch.equal(index[margin > 1e-9], expected[margin > 1e-9])
        diagonals = [torch.stack([c[:, 2] / n, c[:, 3] / m]).norm(dim=0) for c, (m, n) in ((a, upright(pair[:2], ta)), (b, upright(pair[2:], tb)))]
        assert torch.equal(valid, distance < torch.maximum(*diagonals)[:, None] / 2)
        assert 0.1 < valid.double().mean() < 0.9


def upright(grid: tuple[int, int], turns: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns before the turn, [B] each."""
    odd = turns % 2 == 1
    return torch.where(odd, grid[1], grid[0]), torch.where(odd, grid[0], grid[1])


def test_content_of_matched_patches_is_the_same():
    """Tiles of 8 pixels, each of its own colour; crops on tile borders with whole zooms."""
    tiles = torch.rand(1, 3, 12, 12, generator=generator(0, "tiles"))
    image = tiles.repeat_interleave(8, 2).repeat_interleave(8, 3).expand(8, -1, -1, -1)
    teacher = torch.tensor([[8.0, 16, 64, 64]]).expand(8, 4)
    student = torch.tensor([[16.0, 24, 48, 48]]).expand(8, 4)
    flips, turns = torch.tensor([f for f, _ in DIHEDRAL]), torch.tensor([t for _, t in DIHEDRAL])
    none, upright_ = torch.zeros(8, dtype=torch.bool), torch.zeros(8, dtype=torch.long)
    for (sf, st), (tf, tt) in (((flips, turns), (none, upright_)), ((flips, turns), (flips.roll(3), turns.roll(5)))):
        seen, shown = (
            torch.nn.functional.avg_pool2d(cut(image, box, 16 * n, f, t), 16).flatten(2).mT
            for box, n, f, t in ((student, 6, sf, st), (teacher, 8, tf, tt))
        )
        index, distance, valid = geometric_matches(student, teacher, (6, 6), (8, 8), sf, tf, st, tt)
        assert valid.all() and distance.max() < 1e-4
        torch.testing.assert_close(seen, shown.gather(1, index[..., None].expand(-1, -1, 3)), rtol=0, atol=0.08)  # borders blur a little


# ---- closed forms -------------------------------------------------------------------------------
def test_a_crop_matches_itself_patch_by_patch():
    for grid in ((7, 7), (4, 6), (1, 1)):
        n = grid[0] * grid[1]
        for flip, turn in DIHEDRAL:
            index, distance, valid = match((10.3, 5.1, 50, 40), (10.3, 5.1, 50, 40), grid, grid, (flip, flip), (turn, turn))
            assert torch.equal(index, torch.arange(n)) and valid.all()
            assert distance.max() < 1e-12


def test_a_mirrored_crop_matches_columns_in_reverse():
    box, n = (3.5, 4.5, 30.0, 50.0), 5
    index, distance, _ = match(box, box, (n, n), (n, n), (True, False))
    assert torch.equal(index.view(n, n), torch.arange(n * n).view(n, n).flip(1)) and distance.max() < 1e-12
    index, _, _ = match(box, box, (n, n), (n, n), (True, False), (2, 0))  # a mirror and half a turn: upside down
    assert torch.equal(index.view(n, n), torch.arange(n * n).view(n, n).flip(0))


@pytest.mark.parametrize("turn", range(4))
def test_a_turned_crop_matches_as_a_turned_grid(turn):
    index, distance, _ = match((3.5, 4.5, 30, 30), (3.5, 4.5, 30, 30), (4, 4), (4, 4), turns=(turn, 0))
    assert torch.equal(index.view(4, 4), torch.arange(16).view(4, 4).rot90(turn)) and distance.max() < 1e-12


def test_a_known_crop_within_a_crop():
    index, distance, valid = match((32, 32, 96, 96), (0, 0, 224, 224), (3, 3), (7, 7))
    rows = torch.tensor([1, 2, 3])
    assert torch.equal(index.view(3, 3), rows[:, None] * 7 + rows) and distance.max() < 1e-12 and valid.all()


def test_a_known_zoom():
    index, _, valid = match((64, 64, 112, 112), (0, 0, 224, 224))
    columns = torch.tensor([2, 2, 3, 3, 4, 4, 5])
    assert torch.equal(index.view(7, 7), columns[:, None] * 7 + columns) and valid.all()


def test_disjoint_crops_match_nothing():
    _, distance, valid = match((1000, 0, 70, 70), (0, 0, 70, 70))
    assert not valid.any() and distance.min() > 900


def test_crops_that_share_an_edge_match_nothing_where_cells_are_equal_squares():
    assert not match((70, 0, 70, 70), (0, 0, 70, 70))[2].any()


def test_a_coarser_crop_reaches_over_the_edge_as_brute_force_says():
    s, t = (torch.tensor([[b, 0.0, w, w]], dtype=torch.float64) for b, w in ((55.0, 90.0), (0.0, 70.0)))
    index, distance, valid = match((55, 0, 90, 90), (0, 0, 70, 70), (3, 3), (7, 7))
    a, b = (centres(frame(x, g, torch.tensor([False]), torch.tensor([0]))) for x, g in ((s, (3, 3)), (t, (7, 7))))
    _, far, _ = brute(a, b)
    assert torch.equal(valid, far[0] < 30 / math.sqrt(2)) and 0 < valid.sum() < 9
    assert not matching.inside(*(frame(x, g, torch.tensor([False]), torch.tensor([0])) for x, g in ((s, (3, 3)), (t, (7, 7)))))[0][valid].all()


def test_a_centre_inside_the_teacher_s_crop_is_always_valid():
    (a, fa, ta), (b, fb, tb) = some(500, 3), some(500, 4)
    for pair in ((7, 7, 3, 3), (3, 3, 7, 7), (4, 6, 5, 5)):
        _, _, valid = geometric_matches(a, b, pair[:2], pair[2:], fa, fb, ta, tb)
        within = matching.inside(frame(a, pair[:2], fa, ta), frame(b, pair[2:], fb, tb))
        x, y = centres(frame(a, pair[:2], fa, ta)).unbind(-1)
        left, top, wide, high = (v[:, None] for v in b.unbind(1))
        assert torch.equal(within, (x >= left) & (x < left + wide) & (y >= top) & (y < top + high))
        assert valid[within].all() and (valid & ~within).any()


# ---- invariances --------------------------------------------------------------------------------
def test_matches_follow_shift_scale_and_the_order_of_images():
    (a, fa, ta), (b, fb, tb) = some(50, 5), some(50, 6)

    def matched(a: Tensor, b: Tensor, order: Tensor = torch.arange(50)) -> tuple[Tensor, Tensor, Tensor]:
        return geometric_matches(a[order], b[order], (6, 6), (4, 4), fa[order], fb[order], ta[order], tb[order])

    index, distance, valid = matched(a, b)
    shift = torch.tensor([3.7, -11.2, 0, 0], dtype=torch.float64)
    order = torch.randperm(50, generator=generator(0, "order"))
    for other, factor in ((matched(a + shift, b + shift), 1), (matched(3.3 * a, 3.3 * b), 3.3)):
        assert torch.equal(other[0], index) and torch.equal(other[2], valid)
        torch.testing.assert_close(other[1], factor * distance)
    assert all(torch.equal(x[order], y) for x, y in zip((index, distance, valid), matched(a, b, order), strict=True))


def test_mirroring_both_crops_mirrors_the_matches():
    (a, fa, _), (b, fb, _) = some(50, 7), some(50, 8)
    none = torch.zeros(50, dtype=torch.long)
    plain = geometric_matches(a, b, (5, 6), (4, 7), fa, fb, none, none)[0]
    mirrored = geometric_matches(a, b, (5, 6), (4, 7), ~fa, ~fb, none, none)[0]
    row, column = mirrored // 7, 6 - mirrored % 7
    assert torch.equal(plain, (row * 7 + column).view(-1, 5, 6).flip(2).flatten(1))


def test_swapping_x_and_y_transposes_the_matches():
    (a, _, _), (b, _, _) = some(50, 9), some(50, 10)
    no, none = torch.zeros(50, dtype=torch.bool), torch.zeros(50, dtype=torch.long)
    plain = geometric_matches(a, b, (5, 6), (4, 7), no, no, none, none)[0]
    swapped = geometric_matches(a[:, [1, 0, 3, 2]], b[:, [1, 0, 3, 2]], (6, 5), (7, 4), no, no, none, none)[0]
    assert torch.equal(plain.view(-1, 5, 6), (swapped % 4 * 7 + swapped // 4).view(-1, 6, 5).mT)


def test_frames_at_any_angle_match_and_sheared_ones_are_refused():
    boxes, flips, turns = some(60, 11)
    upright_, other = frame(boxes, (5, 6), flips, turns), frame(*some(60, 12)[:1], (4, 7), *some(60, 12)[1:])
    angle = math.radians(30)
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    tilted = Frame(other.origin, other.across @ turn, other.down @ turn, other.grid)
    index, distance = matching.nearest(upright_, tilted, check=True)
    expected, far, margin = brute(centres(upright_), centres(tilted))
    torch.testing.assert_close(distance, far, rtol=1e-9, atol=1e-9)
    assert torch.equal(index[margin > 1e-9], expected[margin > 1e-9])
    sheared = Frame(other.origin, other.across, other.down + 0.1 * other.across, other.grid)
    with pytest.raises(SettingError, match="rectangles, got sheared"):
        matching.nearest(upright_, sheared, check=True)


def test_an_offset_moves_what_tokens_look_at_in_the_crop_as_shown():
    boxes, flips, turns = some(20, 13)
    moved, plain = frame(boxes, (3, 4), flips, turns, offset=-0.4), frame(boxes, (3, 4), flips, turns)
    torch.testing.assert_close(centres(moved), centres(plain) - 0.4 * (plain.across + plain.down)[:, None])
    index, distance = matching.nearest(moved, moved)
    assert torch.equal(index, torch.arange(12).expand(20, 12)) and distance.max() < 1e-9


def test_distances_to_chosen_patches_are_those_of_their_centres():
    (a, fa, ta), (b, fb, tb) = some(30, 14), some(30, 15)
    s, t = frame(a, (3, 4), fa, ta), frame(b, (5, 2), fb, tb)
    index, distance = matching.nearest(s, t)
    torch.testing.assert_close(matching.apart(s, t, index), distance)
    other = torch.randint(10, (30, 12), generator=generator(0, "chosen"))
    expected = torch.stack([(centres(s)[i] - centres(t)[i][other[i]]).norm(dim=-1) for i in range(30)])
    torch.testing.assert_close(matching.apart(s, t, other), expected)


# ---- by what tokens say, and by chance ----------------------------------------------------------
def test_similarity_finds_a_permutation_whatever_the_scale_and_survives_zeros():
    order = torch.stack([torch.randperm(9, generator=generator(i, "order")) for i in range(4)])
    teacher = torch.linalg.qr(torch.randn(4, 9, 9, generator=generator(0, "basis"))).Q
    student = teacher.gather(1, order[..., None].expand(-1, -1, 9))
    scale = torch.rand(4, 9, 1, generator=generator(1, "scale")) * 100 + 0.01
    assert torch.equal(matching.similar(student, teacher), order)
    assert torch.equal(matching.similar(student * scale, teacher * scale.flip(1)), order)
    assert matching.cosines(torch.zeros(4, 3, 9), teacher).isfinite().all()


def test_a_blend_is_similarity_at_zero_and_geometry_far_from_it():
    (a, fa, ta), (b, fb, tb) = some(20, 16), some(20, 17)
    s, t = frame(a, (4, 4), fa, ta), frame(b, (5, 5), fb, tb)
    x, y = (torch.randn(20, n, 8, generator=generator(n, "tokens"), dtype=torch.float64) for n in (16, 25))
    assert torch.equal(matching.blended(x, y, s, t, 0.0), matching.similar(x, y))
    assert torch.equal(matching.blended(x, y, s, t, 1e9), matching.nearest(s, t)[0])
    far = (centres(s)[:, :, None] - centres(t)[:, None]).norm(dim=-1)
    cost = [
        [[1.5 * far[i, j, k] / far[i].max() - torch.cosine_similarity(x[i, j], y[i, k], dim=0) for k in range(25)] for j in range(16)]
        for i in range(2)
    ]
    assert torch.equal(matching.blended(x, y, s, t, 1.5)[:2], torch.tensor(cost).argmin(-1))


def test_expanded_numbers_are_splitmix64():
    def reference(seed: int, count: int) -> list[float]:
        numbers, state, full = [], seed, 2**64 - 1
        for _ in range(count):
            state = (state + 0x9E3779B97F4A7C15) & full
            z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & full
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & full
            numbers.append(((z ^ (z >> 31)) >> 11) / 2**53)
        return numbers

    seeds = torch.randint(2**62, (5,), generator=generator(0, "seeds"))
    assert expand(seeds, 40).tolist() == [reference(int(s), 40) for s in seeds]
    assert torch.equal(expand(seeds[2:4], 10), expand(seeds, 40)[2:4, :10])


def test_chance_takes_every_patch_as_often():
    index = matching.chance(torch.randint(2**62, (400,), generator=generator(1, "seeds")), 30, 6)
    counts = torch.bincount(index.flatten(), minlength=6)
    assert len(counts) == 6 and (counts - 2000).abs().max() < 5 * math.sqrt(2000)


def test_hidden_patches_are_a_share_of_the_crops_and_a_portion_of_their_patches():
    masks = matching.hidden(torch.randint(2**62, (2000,), generator=generator(2, "seeds")), 2, 20, 0.5, (0.1, 0.5))
    assert masks.shape == (2, 2000, 20) and masks.dtype == torch.bool
    counts = masks.sum(-1)
    some_ = counts[counts > 0]
    assert 0.47 < (counts > 0).double().mean() < 0.53 and some_.min() == 2 and some_.max() == 10
    assert abs(some_.double().mean() - 6) < 0.2
    everywhere = masks.double().mean((0, 1))
    assert (everywhere - 0.15).abs().max() < 0.03
    assert not torch.equal(masks[0], masks[1])
