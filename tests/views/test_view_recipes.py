import pytest
import torch

from gnothi.contracts import Pixels, SettingError
from gnothi.data.arrays import ArraySource
from gnothi.randomness import generator
from gnothi.recipes.views import VIEWS, named
from gnothi.views.batches import Batches
from gnothi.views.photometric import check


def crops(name, size):
    views = named(name, size)
    return views.global_crops + views.local_crops


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("size", [32, 96, 224])
def test_a_recipe_makes_crops_of_the_size_asked_for(name, size):
    views = named(name, size)
    assert len(views.global_crops) == (1 if name == "plain" else 2) and all(c.size == size for c in views.global_crops)
    assert all(c.size < size and c.area[1] <= views.global_crops[0].area[1] for c in views.local_crops)
    assert VIEWS[name].__doc__


@pytest.mark.parametrize("name", ["dino", "swav"])
def test_small_crops_follow_the_size_of_the_large_ones(name):
    assert [named(name, size).local_crops[0].size for size in (32, 64, 96, 224, 448)] == [16, 32, 48, 96, 192]


def test_asymmetric_recipes_blur_the_first_crop_and_solarise_the_second():
    for name in ("byol", "dino"):
        first, second = (c.photometric for c in named(name, 224).global_crops)
        assert (first.blur, first.solarise, second.blur, second.solarise) == (1.0, 0.0, 0.1, 0.2)
        assert (first.jitter, first.brightness, first.contrast, first.saturation, first.hue, first.grey) == (0.8, 0.4, 0.4, 0.2, 0.1, 0.2)
    local = named("dino", 224).local_crops
    assert len(local) == 8 and local[0].photometric.blur == 0.5 and local[0].photometric.solarise == 0 and local[0].area == (0.05, 0.4)


@pytest.mark.parametrize("name", VIEWS)
def test_no_recipe_blurs_at_32_pixels_and_the_cifar_ones_never_do(name):
    assert all(c.photometric.blur == 0 for c in crops(name, 32))
    assert any(c.photometric.blur > 0 for c in crops(name, 224)) != (name.endswith("-cifar") or name == "plain")


@pytest.mark.parametrize("name", ["any-channels", "any-orientation"])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_recipes_for_any_channels_take_them_and_change_them(name, channels):
    images = torch.randint(0, 65536, (8, channels, 48, 48), generator=generator(0, "any")).to(torch.uint16)
    pixels = Pixels(0.0, 65535.0, (0.5,) * channels, (0.3,) * channels)
    views = Batches(ArraySource(images), named(name, 40), batch=8, seed=0, pixels=pixels, device="cpu", total=1)(0)
    assert views.images[0].shape == (8, channels, 40, 40) and torch.isfinite(views.images[0]).all()
    assert bool(views.turns.any()) == (name == "any-orientation")


@pytest.mark.parametrize("name", sorted(set(VIEWS) - {"any-channels", "any-orientation", "plain"}))
def test_recipes_of_colour_are_refused_for_five_channels(name):
    with pytest.raises(SettingError, match=r'^views\.hue needs exactly 3 channels, got 5; .*"any-channels"'):
        for crop in crops(name, 64):
            check(crop.photometric, 5)


def test_an_unknown_recipe_names_the_nearest_one():
    with pytest.raises(SettingError, match="'simclr-cifra'; did you mean simclr-cifar?"):
        named("simclr-cifra", 32)
    with pytest.raises(SettingError, match="views.size must be at least 8 pixels, got 4"):
        named("simclr", 4)
