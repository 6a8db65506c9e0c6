import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from gnothi.contracts import DataError, SettingError
from gnothi.data import DataSpec, splits
from gnothi.data import open as open_data


@pytest.fixture
def place(tmp_path):
    (tmp_path / "flowers" / "red@rose").mkdir(parents=True)
    Image.new("L", (5, 5)).save(tmp_path / "flowers" / "red@rose" / "a.png")
    np.save(tmp_path / "cells.npy", np.zeros((3, 8, 8), np.uint8))
    (tmp_path / "notes.txt").write_text("x")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fotos", "fotos: no such data, folder or file; did you mean photos?"),
        ("cifar-10", "did you mean cifar10?"),
        ("photos@tset", "photos@tset: no such split; did you mean test?"),
        ("{}/flower", "did you mean {}/flowers?"),
        ("{}/flwers/red", "did you mean {}/flowers?"),
        ("{}/cell.npy", "did you mean {}/cells.npy?"),
        ("{}/qqqqqq", "{} exists, qqqqqq in it does not"),
        ("{}/notes.txt", "a file must be .npz or .npy"),
        ("{}/flowers/red@rose/a.png", "give the folder it lies in"),
        ("{}/cells.npy@test", "has no splits; give the test data by its own name"),
        ("{}", "holds no images: .* did you mean {}/cells.npy"),
    ],
)
def test_a_name_that_is_nothing_says_the_nearest_right_one(place, name, message):
    (place / "only").mkdir()
    if name == "{}":
        (place / "flowers" / "red@rose" / "a.png").unlink()
    with pytest.raises(DataError, match=message.format(place)) as caught:
        open_data(name.format(place))
    assert "\n" not in str(caught.value)


def test_an_at_in_a_path_that_exists_is_no_split(place):
    assert len(open_data(str(place / "flowers" / "red@rose"))) == 1


def test_data_without_splits_are_all_for_training(place):
    path = str(place / "cells.npy")
    assert splits(path) == () and len(open_data(path, split="train")) == len(open_data(f"{path}@train")) == 3


def test_the_split_in_the_name_comes_first():
    small = DataSpec(per_class=2, per_class_test=1)
    assert len(open_data("photos@train", settings=small, split="test")) == 32
    assert len(open_data("photos", settings=small, split="test")) == 16


def test_settings_that_convert_folders_are_refused_elsewhere(place):
    with pytest.raises(SettingError, match="data.channels converts the images of folders and shards only"):
        open_data(str(place / "cells.npy"), settings=DataSpec(channels=3))
    with pytest.raises(SettingError, match="data.dtype converts the images of folders and shards only"):
        open_data(str(place / "cells.npy"), settings=DataSpec(dtype="uint16"))


def test_photos_arrays_and_folders_need_neither_torchvision_nor_timm(place):
    code = f"""
import sys
for name in ("torchvision", "timm", "sklearn", "cv2"):
    sys.modules[name] = None
import gnothi.data as data
from gnothi.contracts import DataError
names = ["photos", {str(place / "cells.npy")!r}, {str(place / "flowers")!r}]
print(*(len(data.open(name, settings=data.DataSpec(per_class=1))) for name in names), "skimage" in sys.modules)
try:
    data.open("cifar10")
except DataError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.startswith("16 3 1 False\ncifar10 needs torchvision, which cannot be imported here")
