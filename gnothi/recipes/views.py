"""Named recipes of views: what each method's paper does to an image, scaled to the size of the crops.

Sizes are in pixels. Jitter is given as (brightness, contrast, saturation, hue). At 32 pixels and less no recipe blurs: a Gaussian of up to 2 pixels
leaves little of so small an image, and the published CIFAR recipes have none. Papers resize bicubically in places; here everything is bilinear.
"""

from __future__ import annotations

from collections.abc import Callable

from gnothi.contracts import SettingError, did_you_mean
from gnothi.views.batches import ViewsSpec
from gnothi.views.crops import CropSpec
from gnothi.views.photometric import PhotometricSpec


def simclr(size: int) -> ViewsSpec:
    """SimCLR (arXiv 2002.05709, appendix A): two alike crops of 8 to 100 % of the area, strong jitter (.8, .8, .8, .2), grey, blur."""
    return _twins(size, (0.08, 1.0), _colours((0.8, 0.8, 0.8, 0.2), blur=_blur(0.5, size)))


def simclr_cifar(size: int) -> ViewsSpec:
    """SimCLR for CIFAR: two alike crops of 8 to 100 % of the area, jitter (.4, .4, .4, .1), grey, no blur; also for MoCo and NNCLR."""
    return _twins(size, (0.08, 1.0), _colours((0.4, 0.4, 0.4, 0.1)))


def moco_v2(size: int) -> ViewsSpec:
    """MoCo v2 (arXiv 2003.04297) and SimSiam (arXiv 2011.10566): two alike crops of 20 to 100 % of the area, jitter (.4, .4, .4, .1), grey, blur."""
    return _twins(size, (0.2, 1.0), _colours((0.4, 0.4, 0.4, 0.1), blur=_blur(0.5, size)))


def simsiam_cifar(size: int) -> ViewsSpec:
    """SimSiam for CIFAR: two alike crops of 20 to 100 % of the area, jitter (.4, .4, .4, .1), grey, no blur."""
    return _twins(size, (0.2, 1.0), _colours((0.4, 0.4, 0.4, 0.1)))


def byol(size: int) -> ViewsSpec:
    """BYOL (arXiv 2006.07733, appendix B), MoCo v3, Barlow Twins, VICReg: the first crop always blurred, the second seldom blurred but solarised."""
    jitter = (0.4, 0.4, 0.2, 0.1)
    return _pair(size, (0.08, 1.0), _colours(jitter, blur=_blur(1.0, size)), _colours(jitter, blur=_blur(0.1, size), solarise=0.2))


def byol_cifar(size: int) -> ViewsSpec:
    """BYOL for CIFAR, and MoCo v3, Barlow Twins, VICReg: two crops of 8 to 100 % of the area, no blur, the second solarised at times."""
    jitter = (0.4, 0.4, 0.2, 0.1)
    return _pair(size, (0.08, 1.0), _colours(jitter), _colours(jitter, solarise=0.2))


def dino(size: int) -> ViewsSpec:
    """DINO (arXiv 2104.14294): two large crops (40 to 100 %) and eight small ones (5 to 40 %) of 96 pixels at 224, else about half."""
    jitter = (0.4, 0.4, 0.2, 0.1)
    small = CropSpec(size=_local_size(size), area=(0.05, 0.4), photometric=_colours(jitter, blur=_blur(0.5, _local_size(size))))
    pair = _pair(size, (0.4, 1.0), _colours(jitter, blur=_blur(1.0, size)), _colours(jitter, blur=_blur(0.1, size), solarise=0.2))
    return ViewsSpec(global_crops=pair.global_crops, local_crops=(small,) * 8)


def dino_cifar(size: int) -> ViewsSpec:
    """DINO for CIFAR: two crops of 40 to 100 % of the area, none small, no blur, the second solarised at times."""
    jitter = (0.4, 0.4, 0.2, 0.1)
    return _pair(size, (0.4, 1.0), _colours(jitter), _colours(jitter, solarise=0.2))


def swav(size: int) -> ViewsSpec:
    """SwAV (arXiv 2006.09882): two large crops (14 to 100 %) and six small ones (5 to 14 %) of 96 pixels at 224, else about half."""
    jitter = (0.8, 0.8, 0.8, 0.2)
    local = _local_size(size)
    small = CropSpec(size=local, area=(0.05, 0.14), photometric=_colours(jitter, blur=_blur(0.5, local)))
    return ViewsSpec(global_crops=_twins(size, (0.14, 1.0), _colours(jitter, blur=_blur(0.5, size))).global_crops, local_crops=(small,) * 6)


def swav_cifar(size: int) -> ViewsSpec:
    """SwAV for CIFAR: two alike crops of 14 to 100 % of the area, none small, jitter (.4, .4, .4, .1), grey, no blur."""
    return _twins(size, (0.14, 1.0), _colours((0.4, 0.4, 0.4, 0.1)))


def plain(size: int) -> ViewsSpec:
    """One crop of 20 to 100 % of the area and a flip, any number of channels, colours stay: for auxiliaries alone (RotNet, arXiv 1803.07728)."""
    return ViewsSpec(global_crops=(CropSpec(size=size, area=(0.2, 1.0)),))


def any_orientation(size: int) -> ViewsSpec:
    """Images without an up (microscopy, satellite), any number of channels: all flips and quarter turns, brightness, contrast, blur; colours stay."""
    crop = CropSpec(size=size, area=(0.2, 1.0), turns=True, photometric=_colours((0.4, 0.4, 0.0, 0.0), grey=0.0, blur=_blur(0.5, size)))
    return ViewsSpec(global_crops=(crop, crop))


def any_channels(size: int) -> ViewsSpec:
    """Any number of channels, and images whose colours tell: brightness, contrast and blur only; the default where there are not three channels."""
    return _twins(size, (0.2, 1.0), _colours((0.4, 0.4, 0.0, 0.0), grey=0.0, blur=_blur(0.5, size)))


VIEWS: dict[str, Callable[[int], ViewsSpec]] = {
    "simclr": simclr,
    "simclr-cifar": simclr_cifar,
    "moco-v2": moco_v2,
    "simsiam-cifar": simsiam_cifar,
    "byol": byol,
    "byol-cifar": byol_cifar,
    "dino": dino,
    "dino-cifar": dino_cifar,
    "swav": swav,
    "swav-cifar": swav_cifar,
    "plain": plain,
    "any-orientation": any_orientation,
    "any-channels": any_channels,
}


def named(name: str, size: int) -> ViewsSpec:
    """A recipe of views for (large) crops of a size.

    Raises:
        SettingError: there is no such recipe, or the size is too small to be seen.
    """
    if name not in VIEWS:
        raise SettingError(f"views.recipe: no recipe of views is called {name!r}; {did_you_mean(name, VIEWS)}")
    if size < 8:
        raise SettingError(f"views.size must be at least 8 pixels, got {size}")
    return VIEWS[name](size)


def small(views: ViewsSpec) -> CropSpec:
    """The local crop of a recipe that has none: 5 to 40 % of the area, with the colours of its first crop."""
    first = views.global_crops[0]
    return first.model_copy(update={"size": _local_size(first.size), "area": (0.05, 0.4)})


def _colours(jitter: tuple[float, float, float, float], *, grey: float = 0.2, blur: float = 0.0, solarise: float = 0.0) -> PhotometricSpec:
    brightness, contrast, saturation, hue = jitter
    return PhotometricSpec(
        jitter=0.8, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue, grey=grey, blur=blur, solarise=solarise
    )


def _pair(size: int, area: tuple[float, float], first: PhotometricSpec, second: PhotometricSpec) -> ViewsSpec:
    return ViewsSpec(global_crops=(CropSpec(size=size, area=area, photometric=first), CropSpec(size=size, area=area, photometric=second)))


def _twins(size: int, area: tuple[float, float], colours: PhotometricSpec) -> ViewsSpec:
    return _pair(size, area, colours, colours)


def _blur(probability: float, size: int) -> float:
    return probability if size > 32 else 0.0


def _local_size(size: int) -> int:
    """96 at 224 pixels and above in proportion, half of smaller sizes, a multiple of 8: so that patches of 4 and 8 fit, and 16 at the usual sizes."""
    return max(8, round((size * 96 / 224 if size >= 224 else size / 2) / 8) * 8)
