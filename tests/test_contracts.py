from __future__ import annotations

import torch
import toys

from gnothi.contracts import Pixels, Views, Want


def test_a_micro_batch_is_its_rows_of_everything() -> None:
    whole = toys.views(6, 1)
    given = {"masks": torch.rand(2, 6, 4) < 0.5, "extra": {"jigsaw": toys.views(6, seed=1)}, "drawn": {"nudge": torch.rand(6, 2)}}
    whole = Views(whole.images, whole.boxes, whole.flips, whole.turns, whole.n_global, whole.index, **given)
    part = whole.rows(slice(2, 5))
    for a, b in ((part, whole), (part.extra["jigsaw"], whole.extra["jigsaw"])):
        assert all(torch.equal(x, y[2:5]) for x, y in zip(a.images, b.images, strict=True)) and torch.equal(a.index, b.index[2:5])
        for name in ("boxes", "flips", "turns"):
            assert torch.equal(getattr(a, name), getattr(b, name)[:, 2:5]), name
    assert torch.equal(part.masks, whole.masks[:, 2:5]) and torch.equal(part.drawn["nudge"], whole.drawn["nudge"][2:5])
    assert part.n_global == 2


def test_the_range_becomes_0_to_1_and_channels_mean_0_and_deviation_1() -> None:
    pixels = Pixels(10.0, 30.0, (0.25, 0.5), (0.1, 0.2))
    images = torch.tensor([[[[10, 20]], [[30, 15]]]], dtype=torch.uint8)  # [1, 2, 1, 2]
    unit = pixels.unit(images)
    assert unit.flatten().tolist() == [0.0, 0.5, 1.0, 0.25]
    torch.testing.assert_close(pixels.normalise(unit).flatten(), torch.tensor([-2.5, 2.5, 2.5, -1.25]))


def test_wants_merge_sorted_and_without_doubles() -> None:
    assert Want(blocks=(2, 5)) | Want(True, (0, 2)) == Want(True, (0, 2, 5))
