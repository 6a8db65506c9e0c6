"""Broken images among many: what part of them a run goes on with."""

import pytest
import torch

from gnothi.contracts import DataError, Pixels, RunError, Source
from gnothi.data import Subset
from gnothi.views.batches import Batches, ViewsSpec
from gnothi.views.crops import CropSpec


class Worn(Source):
    """A hundredth of its images are broken."""

    channels, dtype = 1, torch.uint8

    def __len__(self):
        return 3_000

    def shape(self, row):
        return 8, 8

    def image(self, row, shrink=1):
        if row % 100 == 7:
            raise DataError(f"{row}: cut short")
        return torch.full((1, 8, 8), row % 256, dtype=torch.uint8)


def worn(fraction):
    views = ViewsSpec(global_crops=(CropSpec(size=8),))
    return Batches(Worn(), views, batch=50, seed=0, pixels=Pixels(0.0, 255.0, (0.5,), (0.2,)), device="cpu", total=60, broken_fraction=fraction)


def test_of_many_images_the_allowed_part_may_be_broken():
    """30 of 3,000 are, 50 are met in a step, and a step without any is no reason to stop either."""
    views, found = worn(0.02), []
    for step in range(60):
        views(step)
        found.append(len(views.broken))
    assert found[-1] == 30 and any(a == b > 20 for a, b in zip(found, found[1:], strict=False))


def test_more_broken_images_than_the_allowed_part_of_those_met_stop_a_run():
    views, met = worn(0.005), 0
    with pytest.raises(RunError) as error:
        for step in range(60):
            met += 50
            views(step)
            assert len(views.broken) <= 0.005 * max(met, 1_000)
    assert len(views.broken) > 0.005 * max(met, 1_000) and str(error.value).startswith(f"{len(views.broken)} of {met} images cannot be read")
    again = worn(0.005)  # goes on, and knows what was broken before: no reason to stop by itself
    again.broken.update(views.broken)
    again(step + 1)


@pytest.mark.parametrize("wrapped", [0, 1, 2])
def test_an_image_whose_shape_only_its_pixels_tell_is_read_once(wrapped):
    class Plain(Source):
        channels, dtype, read = 1, torch.uint8, 0

        def __len__(self):
            return 40

        def image(self, row, shrink=1):
            self.read += 1
            return torch.full((1, 8, 8), row, dtype=torch.uint8)

    source = plain = Plain()
    for _ in range(wrapped):
        source = Subset(source, range(len(source)))
    views = ViewsSpec(global_crops=(CropSpec(size=8), CropSpec(size=8)))
    Batches(source, views, batch=20, seed=0, pixels=Pixels(0.0, 255.0, (0.5,), (0.2,)), device="cpu", total=2, broken_fraction=0.5)(0)
    assert plain.read == 20
