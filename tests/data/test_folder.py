import os
import pickle
import random

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from gnothi.contracts import DataError, SettingError
from gnothi.data import DataSpec, splits
from gnothi.data import open as open_data
from gnothi.data.forms import LUMA


def save(path, value=0, mode="RGB", size=(9, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in ("L", "P") else (value,) * len(mode)).save(path)


def names(source):
    return [source.name(row) for row in range(len(source))]


def test_order_is_natural_whatever_the_case_and_hidden_files_are_left_out(tmp_path):
    for name in ("img10.png", "img2.PNG", "Img1.JpG", "b/img3.png", ".hidden.png", ".thumbs/a.png", "notes.txt", "später 1.bmp", "図 2.webp"):
        save(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).write_text("x")
    source = open_data(str(tmp_path))
    assert names(source) == ["b/img3.png", "Img1.JpG", "img2.PNG", "img10.png", "später 1.bmp", "図 2.webp"]
    assert source.labels is None and source.classes is None and splits(str(tmp_path)) == ()


def test_classes_are_the_folders_under_the_root_however_deep_the_images(tmp_path):
    for name in ("cat/1.png", "cat/deep/er/2.png", "dog10/3.png", "dog2/4.png"):
        save(tmp_path / name)
    source = open_data(str(tmp_path))
    assert source.classes == ("cat", "dog2", "dog10")
    assert {name: source.classes[source.label(row)] for row, name in enumerate(names(source))} == {
        "cat/1.png": "cat", "cat/deep/er/2.png": "cat", "dog2/4.png": "dog2", "dog10/3.png": "dog10",
    }  # fmt: skip
    save(tmp_path / "loose.png")
    assert open_data(str(tmp_path)).labels is None


def test_one_folder_is_no_class(tmp_path):
    save(tmp_path / "images" / "1.png")
    assert open_data(str(tmp_path)).labels is None


def test_splits_share_the_numbers_of_their_classes(tmp_path):
    for name in ("Training/cat/1.png", "Training/dog/1.png", "valid/dog/2.png", "valid/eel/2.png", "valid/cat/deep/2.png"):
        save(tmp_path / name)
    path = str(tmp_path)
    assert splits(path) == ("train", "val")
    train, val = open_data(path), open_data(f"{path}@val")
    assert train.classes == val.classes == ("cat", "dog", "eel")
    assert names(train) == ["cat/1.png", "dog/1.png"] and train.labels.tolist() == [0, 1]
    assert dict(zip(names(val), val.labels.tolist(), strict=True)) == {"cat/deep/2.png": 0, "dog/2.png": 1, "eel/2.png": 2}
    with pytest.raises(DataError, match="no such split; known: train, val"):
        open_data(path, split="test")


def test_a_class_called_train_among_others_is_no_split(tmp_path):
    for name in ("train/1.png", "bus/1.png", "car/1.png"):
        save(tmp_path / name)
    assert splits(str(tmp_path)) == () and open_data(str(tmp_path)).classes == ("bus", "car", "train")
    with pytest.raises(DataError, match="has no splits; give the test data by its own name"):
        open_data(str(tmp_path), split="test")


def test_links_that_lead_back_are_followed_once(tmp_path):
    save(tmp_path / "a" / "1.png")
    os.symlink(tmp_path, tmp_path / "a" / "up")
    os.symlink(tmp_path / "a", tmp_path / "b")
    assert names(open_data(str(tmp_path))) == ["a/1.png", "b/1.png"]


def test_a_name_that_is_no_text_can_be_read_and_printed(tmp_path):
    raw = os.fsencode(str(tmp_path)) + b"/\xff\xfe.png"
    Image.new("RGB", (5, 5)).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", raw)
    source = open_data(str(tmp_path))
    assert source.image(0).shape == (3, 5, 5)
    source.name(0).encode("utf-8")


def test_grey_stays_grey_and_one_colour_image_makes_all_rgb(tmp_path):
    for i in range(4):
        save(tmp_path / f"{i}.png", 40 * i, "L")
    source = open_data(str(tmp_path))
    assert (source.channels, source.dtype) == (1, torch.uint8) and (source.image(3) == 120).all()
    save(tmp_path / "5.png", 9, "RGB")
    source = open_data(str(tmp_path))
    assert source.channels == 3 and torch.equal(source.image(3), torch.full((3, 8, 9), 120, dtype=torch.uint8))


def test_opacity_is_laid_over_white_unless_its_channel_is_asked_for(tmp_path):
    pixels = np.arange(8 * 9 * 4, dtype=np.uint8).reshape(8, 9, 4)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    save(tmp_path / "b.png", 7)
    opacity = pixels[..., 3:] / 255
    expected = np.rint(pixels[..., :3] * opacity + 255 * (1 - opacity))
    assert np.array_equal(open_data(str(tmp_path)).image(0).numpy(), expected.transpose(2, 0, 1))
    asked = open_data(str(tmp_path), settings=DataSpec(channels=4))
    assert np.array_equal(asked.image(0).numpy(), pixels.transpose(2, 0, 1))
    with pytest.raises(DataError, match=r"^b.png: has 3 channels \(rgb\), the images of this source have 4"):
        asked.image(1)


def test_eight_bits_are_widened_to_sixteen_so_that_white_stays_white(tmp_path):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "8.png")
    Image.fromarray(ramp.astype(np.uint16) * 250).save(tmp_path / "16.png")
    source = open_data(str(tmp_path))
    assert source.dtype == torch.uint16 and names(source) == ["8.png", "16.png"]
    assert np.array_equal(source.image(0)[0].numpy(), np.rint(ramp / 255 * 65535))
    assert np.array_equal(source.image(1)[0].numpy(), ramp * 250.0)
    with pytest.raises(DataError, match="^16.png: has 16 bits.*data.dtype=uint16"):
        open_data(str(tmp_path), settings=DataSpec(dtype="uint8")).image(1)


def test_colour_becomes_grey_only_where_that_is_asked_for(tmp_path):
    pixels = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    source = open_data(str(tmp_path), settings=DataSpec(channels=1))
    assert np.array_equal(source.image(0)[0].numpy(), np.rint(pixels @ LUMA))
    assert np.abs(source.image(0)[0].numpy().astype(int) - np.asarray(Image.fromarray(pixels).convert("L"))).max() <= 1


def test_a_colour_image_met_later_in_a_grey_folder_is_refused_by_name(tmp_path):
    for i in range(4):
        save(tmp_path / f"{i}.png", i, "L")
    source = open_data(str(tmp_path))
    save(tmp_path / "2.png", 9, "RGB")
    with pytest.raises(DataError, match="^2.png: is in colour.*data.channels=3"):
        source.image(2)


def test_the_family_of_most_files_wins_and_the_others_are_refused_by_name(tmp_path):
    for i in range(3):
        tifffile.imwrite(tmp_path / f"{i}.tif", np.full((8, 9, 5), i, np.uint16), photometric="minisblack", planarconfig="contig")
    save(tmp_path / "rgb.png")
    source = open_data(str(tmp_path))
    assert (source.channels, source.dtype) == (5, torch.uint16)
    with pytest.raises(DataError, match=r"^rgb.png: has 3 channels \(rgb\), the images of this source have 5"):
        source.image(3)
    for i in range(5):
        tifffile.imwrite(tmp_path / f"{i}.tif", np.full((8, 9), i / 7, np.float32))
    source = open_data(str(tmp_path))
    assert source.dtype == torch.float32 and source.image(2)[0, 0, 0] == np.float32(2 / 7)
    with pytest.raises(SettingError, match="data.dtype must be float32"):
        open_data(str(tmp_path), settings=DataSpec(dtype="uint8"))


def test_a_broken_file_is_named_and_leaves_the_others(tmp_path):
    save(tmp_path / "cat" / "a.png", 3)
    save(tmp_path / "dog" / "b.png", 4)
    (tmp_path / "dog" / "c.jpg").write_bytes(b"\xff\xd8 not a jpeg")
    source = open_data(str(tmp_path))
    assert len(source) == 3
    for read in (source.image, source.shape):
        with pytest.raises(DataError, match="^dog/c.jpg: is not an image"):
            read(2)
    (tmp_path / "dog" / "b.png").unlink()
    with pytest.raises(DataError, match="^dog/b.png: cannot be read: .*No such file"):
        source.image(1)


def test_folders_without_a_usable_image_say_what_they_hold(tmp_path):
    for name in ("a.HEIC", "b.heic", "c.txt"):
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=r"looked for .jpg .* found 2 .heic, 1 .txt$"):
        open_data(str(tmp_path))
    (tmp_path / "d.png").write_text("x")
    with pytest.raises(DataError, match="none of the 1 images looked at can be read; the first is d.png: is not an image"):
        open_data(str(tmp_path))


def test_a_source_survives_pickling_and_shrinks_jpegs(tmp_path):
    save(tmp_path / "a.jpg", 77, size=(64, 48))
    source = pickle.loads(pickle.dumps(open_data(str(tmp_path))))
    assert source.shape(0) == (48, 64) and source.image(0).shape == (3, 48, 64) and source.image(0, 4).shape == (3, 12, 16)


def test_the_fingerprint_follows_the_files(tmp_path):
    save(tmp_path / "a" / "1.png", 1)
    save(tmp_path / "b" / "1.png", 1)
    first = open_data(str(tmp_path)).fingerprint()
    assert open_data(str(tmp_path)).fingerprint() == first
    save(tmp_path / "a" / "1.png", 2)
    os.utime(tmp_path / "a" / "1.png", (1, 1))
    second = open_data(str(tmp_path)).fingerprint()
    (tmp_path / "b" / "1.png").rename(tmp_path / "b" / "2.png")
    assert len({first, second, open_data(str(tmp_path)).fingerprint()}) == 3


def test_listing_does_not_follow_the_order_of_creation(tmp_path):
    order = [f"{i}.png" for i in range(30)]
    for name in sorted(order, key=lambda name: random.Random(name).random()):
        save(tmp_path / name)
    assert names(open_data(str(tmp_path))) == order
