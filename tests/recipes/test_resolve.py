"""What is refused between the settings of a run, before anything is built."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gnothi.contracts import DataError, SettingError
from gnothi.data import ArraySource
from gnothi.recipes.resolve import resolve


def settings(centring: str, accumulate: int, auxiliary: dict[str, Any]) -> dict[str, Any]:
    return {
        "method": {"name": "dino", "centring": centring},
        "training": {"batch": 16, "accumulate": accumulate, "epochs": 1},
        "auxiliary": auxiliary,
    }


@pytest.mark.parametrize("auxiliary", [{}, {"local": {}}], ids=["alone", "local"])
def test_assignments_of_a_whole_batch_are_not_made_of_its_parts(auxiliary: dict[str, Any]) -> None:
    """Nor those of patches, whose Space has the method's centring."""
    said = r"^training\.accumulate must be 1 with method\.centring=sinkhorn, .*; method\.centring=ema can accumulate$"
    with pytest.raises(SettingError, match=said):
        resolve("photos", settings=settings("sinkhorn", 2, auxiliary))
    for centring, accumulate in (("sinkhorn", 1), ("ema", 2)):
        assert resolve("photos", settings=settings(centring, accumulate, auxiliary)).spec.training.accumulate == accumulate


@pytest.mark.parametrize(("method", "batch", "accumulate", "fine"), [("byol", 16, 16, False), ("byol", 16, 8, True), ("dino", 16, 16, True)])
def test_batchnorm_is_not_given_one_image_at_a_time(method: str, batch: int, accumulate: int, fine: bool) -> None:
    chosen: dict[str, Any] = {
        "method": {"name": method, "joint_views": method == "dino"},
        "training": {"batch": batch, "accumulate": accumulate, "epochs": 1},
    }
    if fine:
        assert resolve("photos", settings=chosen).spec.training.accumulate == accumulate
        return
    with pytest.raises(SettingError, match=r"^training.batch must be at least 32 with training.accumulate=16: BatchNorm needs two images at a time$"):
        resolve("photos", settings=chosen)


def test_by_default_nothing_is_held_out_where_all_images_are_of_one_group() -> None:
    def held(groups: list[str]) -> int:
        return len(resolve(ArraySource(np.zeros((120, 8, 8, 3), np.uint8), np.arange(120) % 3, groups=groups)).held)

    assert held(["p1"] * 120) == 0 and held(["p1", "p2", "p3"] * 40) > 0
    with pytest.raises(DataError, match="all 120 images are of group 'p1'$"):
        resolve(ArraySource(np.zeros((120, 8, 8, 3), np.uint8), groups=["p1"] * 120), settings={"data": {"holdout": 0.1}})
