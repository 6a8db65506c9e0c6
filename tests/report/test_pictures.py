import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from gnothi.contracts import Pixels, Views
from gnothi.randomness import generator
from gnothi.report import pictures
from gnothi.report.sections import denormalise, view_rows


def opened(uri):
    kind, data = uri.split(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == f"data:image/{image.format.lower()}"
    return np.asarray(image)


def noise(*shape):
    return torch.rand(*shape, generator=generator(0, "pictures"))


def test_a_small_picture_is_exact_to_eight_bits():
    image = noise(3, 20, 30)
    np.testing.assert_array_equal(opened(pictures.uri(image)), np.rint(image.permute(1, 2, 0).numpy() * 255))


@pytest.mark.parametrize(("channels", "shape"), [(1, (8, 8)), (2, (8, 8)), (3, (8, 8, 3)), (5, (8, 8, 3))])
def test_any_number_of_channels_is_shown_as_its_note_says(channels, shape):
    image = noise(channels, 8, 8)
    shown = opened(pictures.uri(image)).astype(float) / 255
    assert shown.shape == shape
    wanted = {1: image[0], 2: image.mean(0)}.get(channels, image[:3].permute(1, 2, 0)).numpy()
    np.testing.assert_allclose(shown, wanted, atol=0.5 / 255 + 1e-6)
    assert bool(pictures.channels_note(channels)) == (channels not in (1, 3))


def test_values_outside_the_range_are_clipped_and_nan_is_black():
    image = torch.tensor([[[-1.0, 2.0, float("nan"), 0.5]]])
    assert pictures.eight_bit(image).tolist() == [[0, 255, 0, 128]]


def test_shrinking_keeps_the_proportions_and_the_mean():
    image = noise(3, 100, 50)
    small = pictures.fit(image, 20)
    assert small.shape == (3, 20, 10)
    np.testing.assert_allclose(small.mean((1, 2)), image.mean((1, 2)), atol=0.01)
    assert pictures.fit(image, 200) is image


def test_a_square_is_the_middle():
    image = torch.zeros(1, 4, 8)
    image[:, :, 2:6] = 1
    assert pictures.square(image, 4).eq(1).all()
    assert pictures.square(image, 2).shape == (1, 2, 2)


def test_every_tile_of_an_atlas_is_in_its_place():
    tiles = [torch.full((3, 8, 8), i / 10) for i in range(7)]
    uri, columns, rows = pictures.atlas(tiles)
    sheet = opened(uri)
    assert sheet.shape[:2] == (rows * 8, columns * 8)
    for i in range(7):
        row, column = divmod(i, columns)
        np.testing.assert_allclose(sheet[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8], i / 10 * 255, atol=6)


def test_a_crop_is_shown_as_it_was_before_normalisation():
    pixels = Pixels(0, 65535, (0.2, 0.4), (0.1, 0.3))
    image = noise(2, 6, 6)
    np.testing.assert_allclose(denormalise(pixels.normalise(image), pixels), image, atol=1e-6)


def test_each_crop_stands_beside_its_own_image_with_its_own_box():
    pixels = Pixels(0, 255, (0.5,) * 3, (0.5,) * 3)
    crops = noise(3, 2, 3, 8, 8)  # three crops of two images
    boxes = noise(3, 2, 4)
    flips, turns = torch.tensor([[True, False]] * 3), torch.tensor([[0, 0], [0, 1], [0, 0]])
    views = Views(tuple(pixels.normalise(c) for c in crops), boxes, flips, turns, 2, torch.arange(2))
    rows = view_rows([noise(3, 10, 12)] * 2, ["a", "b"], views, pixels)
    assert [r.name for r in rows] == ["a", "b"] and (rows[0].width, rows[0].height) == (12, 10)
    for b, row in enumerate(rows):
        assert [c.local for c in row.crops] == [False, False, True]
        for v, crop in enumerate(row.crops):
            np.testing.assert_allclose(opened(crop.picture), crops[v, b].permute(1, 2, 0).numpy() * 255, atol=0.51)
            assert crop.box == pytest.approx(boxes[v, b].tolist())
            assert ("⇆" in crop.note) == (b == 0) and ("↺90°" in crop.note) == ((v, b) == (1, 1))
