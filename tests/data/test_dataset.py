import numpy as np
import pytest
import torch
from PIL import Image

from gnothi.contracts import DataError
from gnothi.data import from_dataset

PIXELS = np.arange(5 * 8 * 9 * 3, dtype=np.uint8).reshape(5, 8, 9, 3)


class Items:
    def __init__(self, items, **attributes):
        self.items, self.reads = items, 0
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, row):
        self.reads += 1
        item = self.items[row]
        if isinstance(item, Exception):
            raise item
        return item


@pytest.mark.parametrize("kind", ["pil", "array", "tensor"])
@pytest.mark.parametrize("labelled", [False, True])
def test_images_of_any_kind_come_back_with_their_labels(kind, labelled):
    make = {"pil": Image.fromarray, "array": np.asarray, "tensor": lambda p: torch.from_numpy(p).permute(2, 0, 1)}[kind]
    items = [(make(p), i % 2) if labelled else make(p) for i, p in enumerate(PIXELS)]
    source = from_dataset(Items(items))
    assert np.array_equal(torch.stack([source.image(row) for row in range(5)]).numpy(), PIXELS.transpose(0, 3, 1, 2))
    assert (source.labels.tolist() if labelled else source.labels) == ([0, 1, 0, 1, 0] if labelled else None)
    assert (source.channels, source.dtype) == (3, torch.uint8)


def test_grey_and_colour_pil_images_become_rgb():
    source = from_dataset(Items([Image.fromarray(PIXELS[0]), Image.fromarray(PIXELS[1, ..., 0])]))
    assert source.channels == 3 and np.array_equal(source.image(1).numpy(), np.repeat(PIXELS[1, None, ..., 0], 3, 0))


def test_two_dimensions_are_one_channel_and_floats_stay_floats():
    source = from_dataset(Items([torch.linspace(0, 1, 72).reshape(8, 9)]))
    assert source.image(0).shape == (1, 8, 9) and source.dtype == torch.float32 and source.image(0)[0, -1, -1] == 1


def test_targets_and_classes_spare_reading_every_item():
    data = Items([(PIXELS[0], 1)] * 500, targets=[1] * 500, classes=["cat", "dog"])
    source = from_dataset(data)
    assert source.classes == ("cat", "dog") and source.label(3) == 1 and data.reads < 100


def test_a_broken_item_is_named():
    source = from_dataset(Items([PIXELS[i % 5] for i in range(1000)]))
    source.dataset.items[7] = OSError("truncated")
    with pytest.raises(DataError, match="^row 7: cannot be read: truncated"):
        source.image(7)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Items([]), "is empty"),
        (iter([1]), "must have a length"),
        (Items([{"image": 1}]), "got dict"),
        (Items([np.zeros((2, 3, 4, 5))]), r"shape \(2, 3, 4, 5\)"),
    ],
)
def test_what_is_no_dataset_of_images_is_refused(dataset, message):
    with pytest.raises(DataError, match=message):
        from_dataset(dataset)


def test_the_fingerprint_follows_labels_and_pixels():
    items = [(p, 0) for p in PIXELS]
    first = from_dataset(Items(items)).fingerprint()
    assert (
        from_dataset(Items([*items[:4], (PIXELS[4], 1)])).fingerprint()
        != first
        != from_dataset(Items([*items[:4], (255 - PIXELS[4], 0)])).fingerprint()
    )
    assert from_dataset(Items(list(items))).fingerprint() == first
