import numpy as np
import pytest
import torch
from PIL import Image

from gnothi.data import DataSpec, splits
from gnothi.data import open as open_data
from gnothi.data.photos import PHOTOGRAPHS, crop_sides, draw, photo_tiles, read, region
from gnothi.randomness import generator


@pytest.fixture(scope="module")
def sizes():
    return [read(name).size for name in PHOTOGRAPHS]


@pytest.mark.parametrize("tile", [16, 32, 64, 224])
def test_no_box_of_training_meets_a_box_of_test(sizes, tile):
    sides = crop_sides(tile, sizes)
    for number, (width, height) in enumerate(sizes):
        train, test = (draw((width, height), split, 4000, sides, generator(0, split, number)) for split in ("train", "test"))
        axis = 0 if width >= height else 1
        assert train[:, 2 + axis].max() < test[:, axis].min()
        for boxes in (train, test):
            assert boxes.min() >= 0 and boxes[:, 2].max() <= width and boxes[:, 3].max() <= height
            side = boxes[:, 2] - boxes[:, 0]
            assert torch.equal(side, boxes[:, 3] - boxes[:, 1]) and sides[0] <= side.min() and side.max() <= sides[1]


def test_pixels_of_the_test_side_and_the_gap_do_not_reach_training_tiles(monkeypatch):
    before = {split: photo_tiles(split, per_class=20).array for split in ("train", "test")}

    def spoiled(name):
        image = np.array(read(name))
        left, top, right, bottom = region((image.shape[1], image.shape[0]), "train")
        keep = image[top:bottom, left:right].copy()
        image[:] = 255 - image
        image[top:bottom, left:right] = keep
        return Image.fromarray(image)

    monkeypatch.setattr("gnothi.data.photos.read", spoiled)
    assert torch.equal(photo_tiles("train", per_class=20).array, before["train"])
    assert not torch.equal(photo_tiles("test", per_class=20).array, before["test"])


def test_crops_of_32_pixel_tiles_have_sides_of_48_to_96(sizes):
    assert crop_sides(32, sizes) == (48, 96)


def test_a_tile_is_the_antialiased_crop(sizes):
    number = PHOTOGRAPHS.index("coffee")
    box = draw(sizes[number], "train", 3, (48, 96), generator(0, "photos train", number))[2].tolist()
    pixels = torch.from_numpy(np.array(read("coffee"))).permute(2, 0, 1)[None, :, box[1] : box[3], box[0] : box[2]]
    expected = torch.nn.functional.interpolate(pixels.double(), (32, 32), mode="bilinear", antialias=True)[0]
    source = photo_tiles("train", per_class=3)
    assert (source.image(3 * number + 2).double() - expected).abs().max() <= 1.01


def test_tiles_are_sorted_by_class_and_the_same_for_the_same_seed():
    source = open_data("photos@test", settings=DataSpec(per_class_test=4, tile=16))
    assert source.array.shape == (64, 3, 16, 16) and source.array.dtype == torch.uint8
    assert source.labels.tolist() == np.repeat(np.arange(16), 4).tolist() and source.name(5) == "brick-test-001"
    assert open_data("photos@test", settings=DataSpec(per_class_test=4, tile=16)).fingerprint() == source.fingerprint()
    assert open_data("photos@test", settings=DataSpec(per_class_test=4, tile=16, tile_seed=1)).fingerprint() != source.fingerprint()
    assert splits("photos") == ("train", "test") and len(open_data("photos", settings=DataSpec(per_class=2))) == 32


def test_grey_photographs_have_three_equal_channels():
    source = photo_tiles("train", per_class=2)
    brick = source.array[2 * PHOTOGRAPHS.index("brick")]
    assert torch.equal(brick[0], brick[1]) and torch.equal(brick[0], brick[2])
    assert not torch.equal(source.array[0, 0], source.array[0, 1])


def test_nearest_neighbours_find_the_orientation_numbers():
    train, test = photo_tiles("train"), photo_tiles("test", per_class=60)
    colour = [
        torch.cat([torch.stack([torch.histc(c.float(), 32, 0, 255) for c in i]).flatten()[None] for i in s.array]).sqrt() for s in (train, test)
    ]
    raw = [s.array.flatten(1).float() for s in (train, test)]
    assert 0.22 < knn(*raw, train.labels, test.labels) < 0.36
    assert 0.70 < knn(*colour, train.labels, test.labels) < 0.80


def knn(train, test, labels, answers, k=20):
    near = (torch.nn.functional.normalize(test) @ torch.nn.functional.normalize(train).T).topk(k).indices
    votes = torch.nn.functional.one_hot(torch.from_numpy(labels)[near], 16).sum(1)
    return float((votes.argmax(1).numpy() == answers).mean())
