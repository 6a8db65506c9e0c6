import numpy as np
import pytest
import torch

from gnothi.contracts import DataError
from gnothi.data import ArraySource, Subset, splits
from gnothi.data import open as open_data
from gnothi.data.arrays import load


@pytest.mark.parametrize(
    ("shape", "axes"), [((6, 8, 9, 3), "NHWC"), ((6, 5, 8, 9), "NCHW"), ((6, 8, 9, 7), "NHWC"), ((6, 8, 9), "NHW"), ((6, 64, 2, 1), "NHWC")]
)
def test_every_pixel_is_found_by_row_channel_height_and_width(shape, axes):
    images = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    source = ArraySource(images)
    n, c, h, w = source.array.shape
    place = {letter: axis for axis, letter in enumerate(axes)}
    assert (n, h, w) == tuple(shape[place[letter]] for letter in "NHW")
    for index in np.ndindex(n, c, h, w):
        at = dict(zip("NCHW", index, strict=True))
        assert int(source.image(index[0])[index[1:]]) == images[tuple(at[letter] for letter in axes)]


@pytest.mark.parametrize("shape", [(6, 3, 3, 3), (6, 8, 4, 8), (6, 13, 8, 8), (64, 64, 3), (4,), (2, 3, 4, 5, 6)])
def test_a_shape_that_does_not_say_its_axes_is_refused(shape):
    with pytest.raises(DataError, match="shape"):
        ArraySource(np.zeros(shape, np.uint8))


def test_axes_settle_an_ambiguous_shape():
    images = np.arange(6 * 27, dtype=np.uint8).reshape(6, 3, 3, 3)
    assert np.array_equal(ArraySource(images, axes="NHWC").array.numpy(), np.moveaxis(images, 3, 1))
    assert np.array_equal(ArraySource(torch.from_numpy(images), axes="NCHW").array.numpy(), images)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (np.uint8, np.uint8), (np.uint16, np.uint16), (">u2", np.uint16), (np.int16, np.float32), (np.int64, np.float32),
        (np.float16, np.float32), (np.float32, np.float32), (np.float64, np.float32), (">f4", np.float32),
    ],
)  # fmt: skip
def test_types_are_kept_or_widened_without_changing_a_value(given, kept):
    images = np.arange(2 * 8 * 8).reshape(2, 8, 8).astype(given)
    source = ArraySource(images)
    assert source.array.numpy().dtype == kept
    assert source.dtype == source.array.dtype
    assert np.array_equal(source.array.numpy()[:, 0], images)


def test_false_and_true_are_black_and_white():
    images = np.arange(2 * 8 * 8).reshape(2, 8, 8) % 3 == 0
    assert np.array_equal(ArraySource(images).array[:, 0].numpy(), np.where(images, 255, 0))


@pytest.mark.parametrize("value", [2**24 + 1, -(2**31)])
def test_integers_that_float32_would_round_are_refused(value):
    with pytest.raises(DataError, match="float32 exactly"):
        ArraySource(np.full((2, 8, 8), value, np.int64))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_a_row_that_is_not_finite_is_named(value):
    images = np.zeros((4, 8, 8))
    images[2, 3, 3] = value
    with np.errstate(over="ignore"), pytest.raises(DataError, match="row 2 .*not finite"):
        ArraySource(images)


def test_text_labels_are_numbered_in_order_and_empty_ones_are_none():
    source = ArraySource(np.zeros((4, 8, 8), np.uint8), labels=["dog", "cat", "", "dog"])
    assert source.classes == ("cat", "dog")
    assert [source.label(row) for row in range(4)] == [1, 0, None, 1]


def test_bytes_are_text(tmp_path):
    words = ["Katze", "Hündin", "Katze"]
    coded = np.char.encode(np.array(words), "utf-8")
    source = ArraySource(np.zeros((3, 8, 8), np.uint8), coded, groups=coded)
    assert source.classes == ("Hündin", "Katze") and source.groups.tolist() == words
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 8, 8), np.uint8), labels=coded, classes=np.unique(coded))
    assert open_data(str(tmp_path / "x.npz")).classes == ("Hündin", "Katze")
    with pytest.raises(DataError, match="groups: text must be UTF-8"):
        ArraySource(np.zeros((1, 8, 8), np.uint8), groups=np.array([b"\xff\xfe"]))


def test_the_label_that_is_wrong_is_named():
    with pytest.raises(DataError, match="got float64 such as 0.5$"):
        ArraySource(np.zeros((3, 8, 8), np.uint8), [0.0, 1.0, 0.5])


@pytest.mark.parametrize(
    ("labels", "classes", "said"),
    [
        ([0, 1], None, "shape"),
        ([0, -2, 1], None, "-1 for none"),
        ([0.5, 1, 2], None, "whole numbers"),
        ([0, 1, 2], ["a", "b"], "3 classes"),
        (["a", "b", "c"], ["a", "b"], "'c'"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, classes, said):
    with pytest.raises(DataError, match=said):
        ArraySource(np.zeros((3, 8, 8), np.uint8), labels, classes)


def test_the_fingerprint_follows_pixels_order_labels_and_groups():
    images = np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8)
    changed = images.copy()
    changed[1, 2, 3] += 1
    sources = [
        ArraySource(images, [0, 1, 0]), ArraySource(changed, [0, 1, 0]), ArraySource(images[::-1], [0, 1, 0]), ArraySource(images, [0, 1, 1]),
        ArraySource(images), ArraySource(images, [0, 1, 0], groups=["a", "a", "b"]), ArraySource(images.reshape(3, 4, 16), [0, 1, 0]),
    ]  # fmt: skip
    assert len({source.fingerprint() for source in sources}) == len(sources)
    assert ArraySource(images.copy(), [0, 1, 0]).fingerprint() == sources[0].fingerprint()


def test_a_subset_is_the_rows_in_their_order():
    images = np.arange(5 * 64, dtype=np.uint16).reshape(5, 8, 8)
    source = ArraySource(images, [0, 1, 2, 1, 0], groups=list("abcde"), names=[f"n{i}" for i in range(5)])
    part = Subset(source, [3, 0])
    assert np.array_equal(part.array[:, 0].numpy(), images[[3, 0]])
    assert torch.equal(part.image(0), source.image(3)) and part.name(1) == "n0" and part.label(0) == 1 and part.group(0) == "d"
    assert part.fingerprint() != Subset(source, [0, 3]).fingerprint()


def test_an_npz_gives_back_images_labels_classes_and_groups(tmp_path):
    images = np.arange(3 * 8 * 9 * 3, dtype=np.uint8).reshape(3, 8, 9, 3)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([2, 0, 1]), classes=np.array(["x", "y", "z"]), groups=np.array([7, 7, 8]))
    source = open_data(str(tmp_path / "a.npz"))
    assert np.array_equal(source.array.numpy(), images.transpose(0, 3, 1, 2))
    assert source.classes == ("x", "y", "z") and source.labels.tolist() == [2, 0, 1] and source.group(2) == "8"
    assert splits(str(tmp_path / "a.npz")) == ()


@pytest.mark.parametrize("pattern", ["{}_images {}_labels", "x_{} y_{}"])
def test_an_npz_with_splits_opens_each(tmp_path, pattern):
    arrays = {}
    for split, n in (("test", 2), ("train", 4)):
        images, labels = pattern.format(split, split).split()
        arrays |= {images: np.full((n, 8, 8), n, np.uint8), labels: np.full((n, 1), n)}
    path = str(tmp_path / "a.npz")
    np.savez(path, **arrays)
    assert splits(path) == ("train", "test")
    assert len(open_data(path)) == 4 and len(open_data(f"{path}@test")) == 2 and open_data(path, split="test").labels.tolist() == [2, 2]


def test_an_npy_gives_back_its_images(tmp_path):
    images = np.arange(3 * 64, dtype=np.float32).reshape(3, 8, 8)
    np.save(tmp_path / "a.npy", images)
    assert np.array_equal(open_data(str(tmp_path / "a.npy")).array[:, 0].numpy(), images)


def test_pickled_objects_are_never_read(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.array([{"a": 1}], dtype=object))
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object))
    for name in ("a.npz", "a.npy"):
        with pytest.raises(DataError, match="never unpickled"):
            load(tmp_path / name)


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_a_file_cut_short_is_named(tmp_path, name):
    save = np.savez if name.endswith("z") else np.save
    save(tmp_path / name, np.arange(4000, dtype=np.uint8).reshape(40, 10, 10))
    whole = (tmp_path / name).read_bytes()
    for part in (0, 10, len(whole) // 2):
        (tmp_path / name).write_bytes(whole[:part])
        with pytest.raises(DataError, match=name):
            open_data(str(tmp_path / name))


def test_an_npz_without_images_says_what_it_holds(tmp_path):
    np.savez(tmp_path / "a.npz", pictures=np.zeros((2, 8, 8), np.uint8))
    with pytest.raises(DataError, match=r"named images .*it holds pictures"):
        open_data(str(tmp_path / "a.npz"))
