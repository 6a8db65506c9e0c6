import pytest
import torch
from pydantic import ValidationError
from scipy.stats import kstest
from torchvision.transforms.v2 import functional as F

from gnothi.contracts import SettingError
from gnothi.randomness import generator
from gnothi.views import photometric
from gnothi.views.photometric import PhotometricSpec, apply, check, draw

FULL = PhotometricSpec(jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, grey=0.2, blur=0.5, solarise=0.2)


def pictures(n=12, channels=3, size=20, seed=0):
    """[n, C, size, size]: noise, and images where the formulas have their corners: black, white, grey, few values, saturated colours."""
    images = torch.rand(n, channels, size, size, generator=generator(seed, "pictures"))
    images[0], images[1], images[2] = 0, 1, 0.3
    images[3] = images[3].round()
    images[4] = (images[4] * 4).round() / 4
    return images


def torchvision_jitter(image, draws, i, reach=6):
    """The same operations on one image, in the same order, by torchvision."""
    if draws.jitter[i]:
        image = F.adjust_brightness(image, float(draws.brightness[i]))
        image = F.adjust_contrast(image, float(draws.contrast[i]))
        image = F.adjust_saturation(image, float(draws.saturation[i]))
        image = F.adjust_hue(image, float(draws.hue[i]))
    if draws.grey[i]:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    if draws.blur[i]:
        image = F.gaussian_blur(image, [2 * reach + 1] * 2, [float(draws.sigma[i])] * 2)
    if draws.solarise[i]:
        image = F.solarize(image, draws.threshold)
    return image


ADJUST = [
    ("brightness", F.adjust_brightness, (0.0, 0.2, 1.0, 1.8, 5.0)),
    ("contrast", F.adjust_contrast, (0.0, 0.2, 1.0, 1.8, 5.0)),
    ("saturation", F.adjust_saturation, (0.0, 0.2, 1.0, 1.8, 5.0)),
    ("hue", F.adjust_hue, (-0.5, -0.17, 0.0, 0.1, 1 / 3, 0.5)),
]


@pytest.mark.parametrize(("name", "theirs", "values"), ADJUST, ids=[a[0] for a in ADJUST])
def test_an_adjustment_agrees_with_torchvision_also_at_the_ends_of_its_range(name, theirs, values):
    images = pictures()
    for value in values:
        got = getattr(photometric, name)(images, torch.full((len(images),), value))
        torch.testing.assert_close(got, theirs(images, value), rtol=0, atol=2e-6)


def test_grey_and_solarise_agree_with_torchvision():
    images = pictures()
    torch.testing.assert_close(photometric.grey(images), F.rgb_to_grayscale(images), rtol=0, atol=1e-7)
    for threshold in (0.0, 0.25, 0.5, 1.0):
        assert torch.equal(photometric.solarise(images, threshold), F.solarize(images, threshold))


@pytest.mark.parametrize("sigma", [0.1, 0.8, 2.0])
@pytest.mark.parametrize("shape", [(20, 20), (16, 33), (7, 96)])
def test_blur_agrees_with_torchvision_for_the_same_kernel(sigma, shape):
    images = torch.rand(4, 2, *shape, generator=generator(1, "test"))
    got = photometric.blur(images, torch.full((4,), sigma), 6)
    torch.testing.assert_close(got, F.gaussian_blur(images, [13, 13], [sigma, sigma]), rtol=0, atol=2e-6)


def test_an_image_smaller_than_the_kernel_is_blurred_as_far_as_it_can_be_reflected():
    images = torch.rand(3, 1, 4, 4, generator=generator(2, "test"))
    got = photometric.blur(images, torch.full((3,), 2.0), 6)
    torch.testing.assert_close(got, F.gaussian_blur(images, [7, 7], [2.0, 2.0]), rtol=0, atol=2e-6)
    dot = torch.rand(3, 1, 1, 1, generator=generator(3, "test"))
    assert torch.equal(photometric.blur(dot, torch.full((3,), 2.0), 6), dot)


def test_a_mixed_batch_agrees_with_torchvision_image_by_image():
    images = pictures(64, size=24)
    draws = draw(generator(4, "test"), 64, FULL)
    got = apply(images, draws)
    for i in range(64):
        torch.testing.assert_close(got[i], torchvision_jitter(images[i], draws, i), rtol=0, atol=4e-6)
    kinds = torch.stack([draws.jitter, draws.grey, draws.blur, draws.solarise], 1).unique(dim=0)
    assert len(kinds) >= 12  # most of the 16 combinations were there


def test_images_that_are_not_drawn_keep_every_bit_and_the_input_is_left_alone():
    images = pictures(64)
    before = images.clone()
    draws = draw(generator(5, "test"), 64, FULL)
    touched = draws.jitter | draws.grey | draws.blur | draws.solarise
    got = apply(images, draws)
    assert torch.equal(images, before) and 0 < int((~touched).sum()) < 64
    assert torch.equal(got[~touched], images[~touched])
    assert torch.equal(apply(images, draw(generator(5, "test"), 64, PhotometricSpec())), images)


@pytest.mark.parametrize("size", [32, 64])
def test_an_image_is_jittered_the_same_whatever_its_neighbours(size):
    images = pictures(96, size=size)
    draws = draw(generator(6, "test"), 96, FULL)
    together = apply(images, draws)
    for part in (slice(7, 8), slice(0, 30), slice(50, 96)):
        assert torch.equal(apply(images[part], draws[part]), together[part])


def test_images_of_a_batch_get_different_draws_distributed_as_the_spec_says():
    n = 20000
    d = draw(generator(7, "test"), n, FULL.model_copy(update={"contrast": 1.5}))
    for values, low, high in ((d.brightness, 0.6, 1.4), (d.contrast, 0, 2.5), (d.saturation, 0.8, 1.2), (d.hue, -0.1, 0.1), (d.sigma, 0.1, 2)):
        assert kstest((values.double() - low) / (high - low), "uniform").pvalue > 0.01
        assert len(values.unique()) > 0.99 * n
    for which, p in ((d.jitter, 0.8), (d.grey, 0.2), (d.blur, 0.5), (d.solarise, 0.2)):
        assert abs(which.double().mean() - p) < 4 * (p * (1 - p) / n) ** 0.5
    each = draw(generator(7, "test"), n, PhotometricSpec(jitter=0.8, channel_brightness=1.2), 5).channel_brightness
    assert each.shape == (n, 5) and all(kstest(values.double() / 2.2, "uniform").pvalue > 0.01 for values in each.unbind(1))
    assert (torch.corrcoef(torch.cat([torch.stack([d.jitter, d.brightness, d.sigma]), each.mT])) - torch.eye(8)).abs().max() < 4 / n**0.5
    together = torch.stack([d.jitter, d.grey, d.blur, d.solarise, d.brightness, d.contrast, d.saturation, d.hue, d.sigma])
    assert (torch.corrcoef(together) - torch.eye(9)).abs().max() < 4 / n**0.5


def test_a_value_does_not_move_when_another_operation_is_left_out():
    full, less, more = (
        draw(generator(8, "test"), 50, FULL.model_copy(update=u)) for u in ({}, {"hue": 0.0, "grey": 0.0}, {"channel_brightness": 0.5})
    )
    assert torch.equal(full.brightness, more.brightness) and torch.equal(full.solarise, more.solarise)
    assert less.hue is None and less.grey is None
    assert torch.equal(full.brightness, less.brightness) and torch.equal(full.sigma, less.sigma) and torch.equal(full.solarise, less.solarise)


ONE = {
    "brightness": PhotometricSpec(jitter=1.0, brightness=0.5),
    "channel_brightness": PhotometricSpec(jitter=1.0, channel_brightness=0.5),
    "contrast": PhotometricSpec(jitter=1.0, contrast=0.5),
    "saturation": PhotometricSpec(jitter=1.0, saturation=0.5),
    "hue": PhotometricSpec(jitter=1.0, hue=0.2),
    "grey": PhotometricSpec(grey=1.0),
    "blur": PhotometricSpec(blur=1.0, sigma=(1.0, 2.0)),
    "solarise": PhotometricSpec(solarise=1.0),
}
MEANINGFUL = {1: {"brightness", "contrast", "blur", "solarise"}, 2: set(ONE) - {"hue"}, 3: set(ONE), 5: set(ONE) - {"hue"}}


def documented(name, image, d, i):
    """What docs/views.md says of [C, H, W] with other than three channels, in float64."""
    x = image.double()
    mean = x.mean(0, keepdim=True).expand_as(x)
    if name == "brightness":
        return (x * d.brightness[i]).clamp(0, 1)
    if name == "channel_brightness":
        return torch.stack([(plane * f).clamp(0, 1) for plane, f in zip(x, d.channel_brightness[i], strict=True)])
    if name == "contrast":
        return (x * d.contrast[i] + (1 - d.contrast[i]) * x.mean()).clamp(0, 1)
    if name == "saturation":
        return (x * d.saturation[i] + (1 - d.saturation[i]) * mean).clamp(0, 1)
    if name == "grey":
        return mean
    if name == "blur":
        return F.gaussian_blur(x, [13, 13], [float(d.sigma[i])] * 2)
    return torch.where(x >= 0.5, 1 - x, x)


@pytest.mark.parametrize("name", ONE)
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_an_operation_changes_pixels_as_documented_or_is_refused_by_name(name, channels):
    spec = ONE[name]
    if name not in MEANINGFUL[channels]:
        with pytest.raises(SettingError, match=rf"^views\.{name} needs .* channels, got {channels}; .*any-channels"):
            check(spec, channels)
        return
    check(spec, channels)
    counts = torch.randint(0, 65536, (6, channels, 16, 16), generator=generator(9, "test"))
    images = counts.to(torch.uint16).float() / 65535  # 16-bit data in the unit range
    draws = draw(generator(10, "test"), 6, spec, channels)
    got = apply(images, draws)
    assert ((got - images).abs().amax((1, 2, 3)) > 0.01).all()
    if channels != 3:
        for i in range(6):
            torch.testing.assert_close(got[i].double(), documented(name, images[i], draws, i), rtol=0, atol=2e-6)


def test_an_operation_of_strength_zero_is_never_refused():
    check(PhotometricSpec(hue=0.5, saturation=0.5), 1)  # no jitter, so neither happens
    check(PhotometricSpec(jitter=1.0, brightness=0.4, blur=0.5), 1)


def test_grey_levels_beyond_8_bits_survive():
    images = torch.tensor([30000, 30001], dtype=torch.uint16).float().div(65535)[:, None, None, None].expand(2, 5, 8, 8)
    got = apply(images, draw(generator(11, "test"), 2, ONE["blur"]))
    assert got[1].min() > got[0].max()


@pytest.mark.parametrize("wrong", [{"hue": 0.6}, {"sigma": (0.0, 1.0)}, {"sigma": (2.0, 1.0)}, {"jitter": -0.1}, {"threshold": 2.0}, {"gray": 0.2}])
def test_photometric_settings_that_cannot_be_are_refused_by_name(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        PhotometricSpec(**wrong)
