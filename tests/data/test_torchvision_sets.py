import gzip
import struct

import numpy as np
import pytest

from gnothi.contracts import DataError
from gnothi.data import DataSpec, splits
from gnothi.data import open as open_data
from gnothi.data.torchvision_sets import SETS


def write_mnist(folder, part, images, labels):
    folder.mkdir(parents=True, exist_ok=True)
    for name, values, magic in ((f"{part}-images-idx3-ubyte", images, 2051), (f"{part}-labels-idx1-ubyte", labels, 2049)):
        head = struct.pack(f">{1 + values.ndim}I", magic, *values.shape)
        (folder / name).write_bytes(head + values.tobytes())
        (folder / f"{name}.gz").write_bytes(gzip.compress(head + values.tobytes()))


def test_a_set_in_memory_becomes_an_array(tmp_path):
    images = np.arange(4 * 28 * 28).reshape(4, 28, 28).astype(np.uint8)
    for part, n in (("train", 4), ("t10k", 2)):
        write_mnist(tmp_path / "MNIST" / "raw", part, images[:n], np.array([3, 1, 4, 1], np.uint8)[:n])
    settings = DataSpec(root=str(tmp_path))
    train, test = open_data("mnist", settings=settings), open_data("mnist@test", settings=settings)
    assert np.array_equal(train.array[:, 0].numpy(), images) and train.labels.tolist() == [3, 1, 4, 1]
    assert len(test) == 2 and train.classes == test.classes and len(train.classes) == 10


def test_a_set_that_is_not_there_says_how_to_get_it(tmp_path):
    for name in ("cifar10", "stl10", "flowers102", "dtd@val"):
        with pytest.raises(DataError, match=f"is not in {tmp_path}; set data.root to where it lies, or data.download=true"):
            open_data(name, settings=DataSpec(root=str(tmp_path)))


def test_every_name_is_torchvisions_and_every_split_its_argument():
    import inspect

    import torchvision.datasets as sets

    for name, (kind, choices) in SETS.items():
        arguments = inspect.signature(getattr(sets, kind).__init__).parameters
        assert {"root", "download"} <= set(arguments) and name == kind.lower()
        assert all(set(choice) <= set(arguments) for choice in choices.values())
        assert splits(name) == tuple(choices) and (not choices or next(iter(choices)) == "train")
