import math

import pytest
import torch
from pydantic import ValidationError
from scipy.stats import ks_2samp, kstest
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from gnothi.randomness import generator, seeded
from gnothi.views.crops import CropSpec, cut, draw, uniforms


def random_boxes(n, height, width, seed=0):
    """[n, 4] whole-pixel boxes inside the image, from one pixel to all of it."""
    u = torch.rand(n, 4, generator=generator(seed, "test boxes"), dtype=torch.float64)
    w, h = (u[:, 0] * width).long() + 1, (u[:, 1] * height).long() + 1
    return torch.stack([(u[:, 2] * (width - w + 1)).long(), (u[:, 3] * (height - h + 1)).long(), w, h], 1)


def slow_cut(image, box, size):
    """The definition, pixel by pixel in float64."""
    left, top, width, height = box

    def weights(start, length, pixels):
        scale, rows = length / size, []
        for i in range(size):
            centre = start + (i + 0.5) * scale
            row = [max(0.0, 1 - abs(j + 0.5 - centre) / max(scale, 1)) if j + 1 > start and j < start + length else 0.0 for j in range(pixels)]
            rows.append([w / sum(row) for w in row])
        return torch.tensor(rows, dtype=torch.float64)

    return weights(top, height, image.shape[1]) @ image.double() @ weights(left, width, image.shape[2]).T


@pytest.mark.parametrize("size", [1, 7, 32, 96])
def test_a_cut_of_whole_pixels_is_that_of_torchvision(size):
    images = torch.rand(24, 3, 40, 56, generator=generator(0, "test"))
    boxes = random_boxes(24, 40, 56)
    for image, (left, top, width, height), got in zip(images, boxes.tolist(), cut(images, boxes, size), strict=True):
        expected = F.resized_crop(image, top, left, height, width, [size, size], antialias=True)
        torch.testing.assert_close(got, expected, rtol=3e-7, atol=3e-7)


def test_a_cut_of_fractions_of_pixels_follows_the_definition():
    images = torch.rand(12, 2, 19, 23, generator=generator(1, "test"))
    u = torch.rand(12, 4, generator=generator(2, "test"))
    wide, high = 0.6 + u[:, 0] * 20, 0.6 + u[:, 1] * 17
    boxes = torch.stack([u[:, 2] * (23 - wide), u[:, 3] * (19 - high), wide, high], 1)
    for image, box, got in zip(images, boxes.tolist(), cut(images, boxes, 9), strict=True):
        torch.testing.assert_close(got.double(), slow_cut(image, box, 9), rtol=0, atol=2e-5)  # float32 boxes against float64


def test_8_and_16_bit_images_keep_their_range_and_are_not_rounded():
    for dtype, top in ((torch.uint8, 255), (torch.uint16, 65535)):
        images = torch.randint(0, top + 1, (8, 5, 20, 20), generator=generator(3, "test")).to(dtype)
        boxes = random_boxes(8, 20, 20, 1)
        got = cut(images, boxes, 12)
        expected = cut(images.to(torch.float64).float(), boxes, 12)
        assert torch.equal(got, expected) and got.dtype == torch.float32
        assert got.max() > 0.8 * top and (got != got.round()).any()
    assert torch.equal(cut(images, torch.tensor([[0, 0, 20, 20]] * 8), 20), images.float())  # nothing to resize: exact


def test_8_bit_cuts_round_to_what_torchvision_gives_for_8_bits():
    images = torch.randint(0, 256, (16, 3, 40, 40), generator=generator(4, "test"), dtype=torch.uint8)
    boxes = random_boxes(16, 40, 40, 2)
    for image, (left, top, width, height), got in zip(images, boxes.tolist(), cut(images, boxes, 24), strict=True):
        expected = F.resized_crop(image, top, left, height, width, [24, 24], antialias=True)
        assert (got - expected).abs().max() <= 1.01  # torchvision's 8-bit path has weights of 16 bits and rounds twice


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_box_flip_and_turn_reproduce_the_crop_from_the_source(flip, turn):
    images = torch.rand(3, 2, 30, 26, generator=generator(5, "test"))
    boxes = random_boxes(3, 30, 26, 3)
    got = cut(images, boxes, 11, torch.tensor([flip] * 3), torch.tensor([turn] * 3))
    for image, (left, top, width, height), crop in zip(images, boxes.tolist(), got, strict=True):
        expected = F.resized_crop(image, top, left, height, width, [11, 11], antialias=True)
        expected = torch.rot90(expected.flip(-1) if flip else expected, turn, (-2, -1))
        torch.testing.assert_close(crop, expected, rtol=3e-7, atol=3e-7)


def test_boxes_mapped_back_land_on_the_pixels_they_were_cut_from():
    rows, columns = torch.meshgrid(torch.arange(50.0), torch.arange(64.0), indexing="ij")
    source = torch.stack([columns, rows]).add(0.5).expand(40, 2, 50, 64)  # a pixel holds its own centre
    u = uniforms(generator(6, "test"), 40)
    drawn = draw(u, torch.full((40,), 50), torch.full((40,), 64), CropSpec(size=8, area=(0.3, 0.9), turns=True))
    crops = cut(source, drawn.boxes, 8, drawn.flips, drawn.turns)
    for crop, (left, top, width, height), flip, turn in zip(crops, drawn.boxes.tolist(), drawn.flips, drawn.turns, strict=True):
        upright = torch.rot90(crop, -int(turn), (-2, -1))
        upright = upright.flip(-1) if flip else upright
        middle = (torch.arange(8) + 0.5) / 8
        # Linear images are kept where the triangle lies inside the box: all but the outermost pixels.
        torch.testing.assert_close(upright[0, 1:-1, 1:-1], (left + width * middle)[None, 1:-1].expand(6, 6), rtol=0, atol=0.35)
        torch.testing.assert_close(upright[1, 1:-1, 1:-1], (top + height * middle)[1:-1, None].expand(6, 6), rtol=0, atol=0.35)


def test_a_crop_does_not_depend_on_its_neighbours():
    images = torch.randint(0, 256, (200, 3, 48, 48), generator=generator(7, "test"), dtype=torch.uint8)
    u = uniforms(generator(8, "test"), 200)
    size = torch.full((200,), 48)
    spec = CropSpec(size=32, turns=True)
    together = draw(u, size, size, spec)
    crops = cut(images, together.boxes, 32, together.flips, together.turns)
    for part in (slice(0, 1), slice(3, 4), slice(100, 200), slice(17, 90)):
        alone = draw(u[part], size[part], size[part], spec)
        assert torch.equal(alone.boxes, together.boxes[part]) and torch.equal(alone.turns, together.turns[part])
        assert torch.equal(cut(images[part], alone.boxes, 32, alone.flips, alone.turns), crops[part])


def test_images_of_a_batch_get_different_boxes_and_mixed_sizes_stay_inside():
    u = uniforms(generator(9, "test"), 300)
    heights, widths = torch.randint(1, 500, (2, 300), generator=generator(10, "test"))
    drawn = draw(u, heights, widths, CropSpec(area=(0.08, 1.0)))
    left, top, wide, high = drawn.boxes.unbind(1)
    assert len(drawn.boxes.unique(dim=0)) == 300
    assert (left >= 0).all() and (top >= 0).all() and (wide > 0).all() and (high > 0).all()
    assert (left + wide <= widths * (1 + 1e-6)).all() and (top + high <= heights * (1 + 1e-6)).all()


@pytest.mark.parametrize(("height", "width"), [(1000, 1000), (700, 1100)])
def test_boxes_are_distributed_as_those_of_torchvision(height, width):
    n, area, ratio = 3000, (0.08, 1.0), (3 / 4, 4 / 3)
    image = torch.empty(1, height, width)
    with seeded(11, "torchvision"):
        theirs = torch.tensor([RandomResizedCrop.get_params(image, area, ratio) for _ in range(n)]).double()  # top, left, height, width
    ours = draw(
        uniforms(generator(12, "test"), n), torch.full((n,), height), torch.full((n,), width), CropSpec(area=area, aspect=ratio)
    ).boxes.double()
    top, left, high, wide = theirs.T
    for mine, other in ((ours[:, 0], left), (ours[:, 1], top), (ours[:, 2], wide), (ours[:, 3], high), (ours[:, 2] * ours[:, 3], wide * high)):
        assert ks_2samp(mine, other).pvalue > 0.01
    assert ks_2samp((ours[:, 2] / ours[:, 3]).log(), (wide / high).log()).pvalue > 0.01


def test_small_boxes_have_uniform_area_aspect_and_place():
    n, spec = 4000, CropSpec(area=(0.1, 0.3), aspect=(0.5, 2.0))
    side = torch.full((n,), 200)
    left, top, wide, high = draw(uniforms(generator(13, "test"), n), side, side, spec).boxes.double().unbind(1)
    assert kstest((wide * high / 40000 - 0.1) / 0.2, "uniform").pvalue > 0.01
    assert kstest(((wide / high).log() / math.log(2) + 1) / 2, "uniform").pvalue > 0.01
    assert kstest(left / (200 - wide), "uniform").pvalue > 0.01
    assert kstest(top / (200 - high), "uniform").pvalue > 0.01
    independent = torch.stack([wide * high, (wide / high).log(), left / (200 - wide), top / (200 - high)])
    assert (torch.corrcoef(independent) - torch.eye(4)).abs().max() < 4 / n**0.5


@pytest.mark.parametrize(("height", "width"), [(10, 400), (400, 10)])
def test_an_image_too_narrow_for_any_box_gives_its_centre_as_torchvision_does(height, width):
    drawn = draw(uniforms(generator(14, "test"), 5), torch.full((5,), height), torch.full((5,), width), CropSpec(area=(0.5, 1.0)))
    top, left, high, wide = RandomResizedCrop.get_params(torch.empty(1, height, width), (0.5, 1.0), (3 / 4, 4 / 3))
    expected = torch.tensor([left, top, wide, high], dtype=torch.float32).expand(5, 4)
    torch.testing.assert_close(drawn.boxes, expected, rtol=0, atol=0.51)  # theirs are rounded to whole pixels
    assert drawn.boxes[:, 2].unique().numel() == 1


def test_flips_and_turns_come_as_often_as_the_spec_says():
    u, side = uniforms(generator(15, "test"), 20000), torch.full((20000,), 32)
    drawn = draw(u, side, side, CropSpec(flip=0.3, turns=True))
    assert abs(drawn.flips.double().mean() - 0.3) < 0.013  # four standard deviations
    counts = torch.bincount(drawn.turns, minlength=4).double()
    assert (counts - 5000).abs().max() < 4 * math.sqrt(20000 * 3 / 16)
    assert abs(drawn.flips.double()[drawn.turns == 1].mean() - 0.3) < 0.026
    assert not draw(u, side, side, CropSpec()).turns.any()
    assert not draw(u, side, side, CropSpec(flip=0.0)).flips.any() and draw(u, side, side, CropSpec(flip=1.0)).flips.all()


@pytest.mark.parametrize(
    "wrong", [{"area": (0.0, 1.0)}, {"area": (0.5, 0.2)}, {"area": (0.5, 1.2)}, {"aspect": (2.0, 1.0)}, {"flip": 1.5}, {"size": 0}, {"sise": 3}]
)
def test_settings_of_crops_that_cannot_be_are_refused_by_name(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        CropSpec(**wrong)
