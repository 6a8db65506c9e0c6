import numpy as np
import pytest
import torch
from skimage import color, data, feature

from gnothi.data import open as open_data
from gnothi.encoders import load
from gnothi.evaluate import knn
from gnothi.randomness import generator


def drawn(*shape, seed=0):
    return torch.randint(256, shape, generator=generator(seed, "images"), dtype=torch.uint8)


def test_pixels_are_the_image():
    images = drawn(4, 3, 32, 32)
    assert torch.equal(load("pixels").embed(images), images.flatten(1) / 255)


def test_colour_is_the_root_of_numpys_histograms():
    images = drawn(3, 3, 21, 34)
    vectors = load("colour").embed(images)
    assert vectors.shape == (3, 48)
    for image, vector in zip(images.numpy(), vectors, strict=True):
        parts = [np.histogram(channel / 255, bins=16, range=(0, 1))[0] / channel.size for channel in image]
        assert np.allclose(vector, np.sqrt(np.concatenate(parts)), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_channels_has_a_meaning(channels):
    images = drawn(3, channels, 32, 32)
    for name, width in (("pixels", channels * 1024), ("colour", channels * 16), ("hog", 324)):
        encoder = load(name)
        vectors = encoder.embed(images)
        assert vectors.shape == (3, width) == (3, encoder.width(channels)) and vectors.dtype == torch.float32
    # Grey is the mean of channels without names; not to the last bit, because a gradient on the edge of two directions may fall to either.
    cosine = torch.cosine_similarity(load("hog").embed(images), load("hog").embed(images.flip(1)))
    assert cosine.min() > 0.99


def test_colour_sees_no_place_and_hog_no_brightness():
    images = drawn(2, 3, 32, 32) // 2
    shuffled = images.flatten(2)[:, :, torch.randperm(1024, generator=generator(0, "places"))].view_as(images)
    assert torch.allclose(load("colour").embed(images), load("colour").embed(shuffled))
    assert not torch.allclose(load("pixels").embed(images), load("pixels").embed(shuffled))
    assert torch.allclose(load("hog").embed(images), load("hog").embed(images + 60), atol=1e-5)


def test_hog_is_scikit_images_on_luma():
    image = data.astronaut()[100:132, 100:132]
    theirs = feature.hog(np.asarray(image, dtype=np.float64) @ [0.299, 0.587, 0.114] / 255, 9, (8, 8), (2, 2))
    found = load("hog").embed(image[None])[0].numpy()
    assert np.allclose(found, theirs, atol=1e-4)
    assert not np.allclose(found, feature.hog(color.rgb2gray(image), 9, (8, 8), (2, 2)), atol=1e-4)  # scikit-image's grey has other weights


def test_a_list_of_sizes_is_the_images_one_by_one():
    images = [drawn(3, 40, 32, seed=1), drawn(32, 50, 3, seed=2).numpy(), drawn(3, 32, 32, seed=3)]
    for name in ("pixels", "hog", "colour"):
        encoder = load(name)
        one_by_one = torch.cat([encoder.embed([image]) for image in images])
        assert torch.allclose(encoder.embed(images), one_by_one, atol=1e-6)
        assert encoder.embed([]).shape == (0, encoder.dim)


def test_what_they_reach_on_photographs():
    train, test = open_data("photos@train"), open_data("photos@test")
    reached = {}
    for name in ("pixels", "hog", "colour"):
        a, b = (load(name).embed_source(s) for s in (train, test))
        reached[name] = knn(a, train.labels, b, test.labels).value
    assert 0.22 < reached["pixels"] < 0.36 and 0.38 < reached["hog"] < 0.47 and 0.70 < reached["colour"] < 0.78
