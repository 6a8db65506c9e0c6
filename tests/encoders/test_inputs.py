import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from gnothi.contracts import EncoderError, Pixels
from gnothi.encoders.inputs import centre, channels_first, check_range, unit
from gnothi.randomness import generator


def drawn(*shape, seed=0):
    return torch.randint(256, shape, generator=generator(seed, "images"), dtype=torch.uint8)


@pytest.mark.parametrize(("height", "width", "size"), [(64, 64, 32), (96, 96, 40), (20, 20, 32), (33, 33, 32)])
def test_a_square_is_resized_as_torchvision_does_it(height, width, size):
    images = drawn(3, 3, height, width)
    theirs = tv.resize(images.float(), [size, size], antialias=True)
    assert torch.allclose(centre(images, size), theirs, atol=1e-3)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (96, 64)])
def test_the_central_square_is_kept(height, width):
    images = drawn(2, 3, height, width)
    theirs = tv.resize(tv.center_crop(images, [64, 64]).float(), [32, 32], antialias=True)
    assert torch.allclose(centre(images, 32), theirs, atol=1e-3)


def test_images_of_the_right_size_keep_their_very_numbers():
    images = drawn(2, 5, 32, 32)
    assert torch.equal(centre(images, 32), images.float())


def test_axes_are_told_apart_by_the_number_of_channels():
    first = drawn(4, 3, 20, 30)
    assert torch.equal(channels_first(first.permute(0, 2, 3, 1), 3, 4), first)
    assert torch.equal(channels_first(first.permute(0, 2, 3, 1).numpy(), None, 4), first)
    assert torch.equal(channels_first(first, 3, 4), first) and torch.equal(channels_first(first, None, 4), first)
    assert channels_first(drawn(4, 20, 30), 1, 4).shape == (4, 1, 20, 30)
    assert channels_first(drawn(20, 30), None, 3).shape == (1, 20, 30)
    assert torch.equal(channels_first(drawn(2, 3, 3, 3), 3, 4), drawn(2, 3, 3, 3))
    with pytest.raises(EncoderError, match="must have 4 channels, got the shape"):
        channels_first(first, 4, 4)
    with pytest.raises(EncoderError, match=r"got the shape \(3,\)"):
        channels_first(torch.zeros(3), 3, 4)


def test_the_unit_range_is_255_for_bytes_and_each_images_own_for_the_rest():
    images = drawn(2, 3, 8, 8)
    assert torch.equal(unit(images), images.float() / 255)
    wide = images.to(torch.int32).to(torch.uint16)
    low, high = images.float().amin((1, 2, 3)), images.float().amax((1, 2, 3))
    assert torch.allclose(unit(wide), (images.float() - low.view(2, 1, 1, 1)) / (high - low).view(2, 1, 1, 1))
    assert torch.allclose(unit(images.float() * 7 - 100), unit(wide), atol=1e-6)
    assert torch.equal(unit(torch.full((1, 1, 4, 4), 5.0)), torch.zeros(1, 1, 4, 4))


BYTES, WIDE = Pixels(0, 255, (0.5,), (0.2,)), Pixels(12, 4095, (0.5,), (0.2,))


@pytest.mark.parametrize(
    ("pixels", "images", "line"),
    [
        (WIDE, torch.zeros(1, 1, 4, 4, dtype=torch.uint8), "runs/x was trained on numbers from 12 to 4095, these images are 8-bit"),
        (BYTES, torch.zeros(1, 1, 4, 4, dtype=torch.uint16), "runs/x was trained on 8-bit images, these are 16-bit"),
        (BYTES, torch.rand(1, 1, 4, 4, generator=generator(0, "x")), "multiply them by 255"),
    ],
)
def test_another_scale_is_refused(pixels, images, line):
    with pytest.raises(EncoderError, match=line):
        check_range("runs/x", pixels, images)


def test_the_right_scale_passes():
    check_range("x", BYTES, torch.zeros(1, 1, 4, 4, dtype=torch.uint8))
    check_range("x", BYTES, torch.full((1, 1, 4, 4), 40.0))
    check_range("x", WIDE, torch.zeros(1, 1, 4, 4, dtype=torch.uint16))
    check_range("x", WIDE, torch.zeros(1, 1, 4, 4))
    check_range("x", Pixels(0, 1, (0.5,), (0.2,)), torch.full((1, 1, 4, 4), 0.5))
