import json

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from terminal import said

from gnothi.contracts import DataError
from gnothi.data import ArraySource, Subset, inspect, pixels
from gnothi.data import open as open_data
from gnothi.data.duplicates import DISTANCE, _close, hashes, near_groups, thumbnail
from gnothi.data.inspection import STD_FLOOR
from gnothi.randomness import generator


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=generator(seed, "test"), dtype=torch.float64).numpy()


def scene(seed, height=48, width=64):
    """A smooth random picture of a range of 1, [H, W, 3]."""
    small = torch.from_numpy(noise(1, 3, 5, 6, seed=seed))
    return torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 1)[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("dtype", "scale", "shift"), [(np.uint8, 255, 0), (np.uint16, 3000, 60000), (np.float32, 1e-3, 1e3), (np.float32, 1e4, -5e3)]
)
def test_statistics_are_those_of_numpy_in_float64(dtype, scale, shift):
    images = (noise(40, 5, 9, 11) ** [[[[1]], [[2]], [[3]], [[1]], [[2]]]] * scale + shift).astype(dtype)
    found = pixels(ArraySource(images, axes="NCHW"))
    wide = images.astype(np.float64)
    low, high = (0, 255) if dtype == np.uint8 else (wide.min(), wide.max())
    unit = (wide - low) / (high - low)
    assert (found.low, found.high) == (low, high)
    np.testing.assert_allclose(found.mean, unit.mean((0, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(found.std, unit.std((0, 2, 3)), rtol=1e-7)


def test_images_of_different_sizes_count_by_pixel(tmp_path):
    whole = []
    for i, size in enumerate([(8, 30), (50, 9), (20, 20)]):
        image = (noise(*size, seed=i) * 255).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / f"{i}.png")
        whole.append(image.ravel() / 255)
    (tmp_path / "3.png").write_bytes(b"broken")
    found = pixels(open_data(str(tmp_path)))
    np.testing.assert_allclose([*found.mean, *found.std], [np.concatenate(whole).mean(), np.concatenate(whole).std()], rtol=1e-9)


@pytest.mark.parametrize(("dtype", "value"), [(np.uint8, 7), (np.uint16, 500), (np.float32, -3)])
def test_a_constant_set_gets_a_range_and_becomes_zero(dtype, value):
    source = ArraySource(np.full((3, 8, 8), value, dtype))
    found = pixels(source)
    assert found.high > found.low and found.std == (STD_FLOOR,)
    assert found.normalise(found.unit(source.array)).abs().max() < 1e-3


def test_the_sample_is_a_function_of_the_seed_and_no_larger_than_asked():
    source = ArraySource(np.arange(500, dtype=np.float32)[:, None, None] * np.ones((1, 5, 5), np.float32))
    assert pixels(source, 50, 1) == pixels(source, 50, 1) != pixels(source, 50, 2)
    assert pixels(source, 500) == pixels(source, 10_000)


def test_nothing_readable_is_an_error(tmp_path):
    Image.new("L", (5, 5)).save(tmp_path / "a.png")
    source = open_data(str(tmp_path))
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match="none of the images looked at can be read, the first is a.png"):
        pixels(source)


@pytest.mark.parametrize("size", [(8, 9), (24, 27), (5, 4), (13, 50)])
def test_a_thumbnail_is_the_mean_over_the_area_of_each_cell(size):
    image = noise(3, *size)
    fine = np.kron(image.mean(0), np.ones((8, 9)))  # cells of the thumbnail are whole numbers of these pixels
    expected = fine.reshape(8, size[0], 9, size[1]).mean((1, 3))
    np.testing.assert_allclose(thumbnail(image), expected, atol=1e-6)


def test_bands_find_every_pair_that_comparing_all_finds():
    base = (noise(60, 2) * 2**32).astype(np.uint64)
    values = np.unique(np.concatenate([base[:, 0] << np.uint64(32) | base[:, 1]]))
    flips = torch.randint(0, 64, (300, 6), generator=generator(0, "flips")).numpy()
    near = [
        values[i % len(values)] ^ np.bitwise_or.reduce(np.uint64(1) << f[: i % 7].astype(np.uint64)) if i % 7 else values[0]
        for i, f in enumerate(flips)
    ]
    values = np.unique(np.concatenate([values, np.array(near, np.uint64)]))
    every = {(i, j) for i in range(len(values)) for j in range(i + 1, len(values)) if bin(int(values[i]) ^ int(values[j])).count("1") <= DISTANCE}
    assert every and {tuple(pair) for block in _close(values) for pair in block.tolist()} == every


def test_hashes_compare_each_cell_with_its_right_neighbour():
    thumbs = noise(20, 8, 9)
    bits = [[thumb[r, c] > thumb[r, c + 1] for r in range(8) for c in range(8)] for thumb in thumbs]
    expected = [int.from_bytes(bytes(int("".join("01"[int(b)] for b in row[i : i + 8]), 2) for i in range(0, 64, 8)), "little") for row in bits]
    assert hashes(thumbs).tolist() == expected


def test_planted_duplicates_are_found_and_nothing_else(tmp_path):
    for i in range(60):
        Image.fromarray((scene(i) * 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
    Image.open(tmp_path / "7.png").save(tmp_path / "copy.bmp")
    Image.open(tmp_path / "9.png").save(tmp_path / "again.jpg", quality=60)
    Image.open(tmp_path / "11.png").resize((40, 30), Image.Resampling.BILINEAR).save(tmp_path / "small.png")
    seen = inspect(open_data(str(tmp_path)))
    assert [sorted(group) for group in seen.exact] == [["7.png", "copy.bmp"]]
    assert sorted(sorted(group) for group in seen.near) == [["11.png", "small.png"], ["9.png", "again.jpg"]]


def test_duplicates_between_training_and_test_are_named_with_their_sides():
    images = np.stack([(scene(i) * 255).astype(np.uint8) for i in range(30)])
    train, test = (
        ArraySource(np.concatenate([images[:20], images[7:8]])),  # a duplicate within one side is not shared
        ArraySource(np.concatenate([images[20:], images[3:4], np.clip(images[5:6].astype(int) + 2, 0, 255).astype(np.uint8)])),
    )
    seen = inspect(train, test)
    assert seen.shared == {"exact": [["train: row 3", "test: row 10"]], "near": [["train: row 5", "test: row 11"]]}
    assert seen.exact == [["row 7", "row 20"]] and seen.near == seen.test.exact == []


def test_many_blank_images_are_quick_and_one_group():
    groups = near_groups(np.concatenate([np.full((3000, 8, 9), 0.5), noise(10, 8, 9)]).astype(np.float32))
    assert groups == [list(range(3000))]


def test_pictures_of_the_same_hash_but_other_brightness_are_no_duplicates():
    ramp = np.tile(np.linspace(0.4, 0.6, 9), (8, 1))
    thumbs = np.stack([np.zeros((8, 9)), np.ones((8, 9)), ramp, 5 * (ramp - 0.5) + 0.5]).astype(np.float32)
    assert len(set(hashes(thumbs).tolist())) < len(thumbs) and near_groups(thumbs) == []
    assert near_groups(np.concatenate([thumbs, thumbs[1:3] + np.float32(0.01)])) == [[1, 4], [2, 5]]


def test_an_inspection_tells_counts_sizes_forms_broken_files_classes_and_groups(tmp_path):
    for i, size in enumerate([(10, 20), (30, 20), (12, 40)]):
        (tmp_path / "cat").mkdir(exist_ok=True)
        Image.fromarray((scene(i, *size) * 255).astype(np.uint8)).save(tmp_path / "cat" / f"{i}.png")
    (tmp_path / "dog").mkdir()
    Image.new("L", (20, 10), 200).save(tmp_path / "dog" / "g.png")
    (tmp_path / "dog" / "x.jpg").write_bytes(b"nothing")
    calls = []
    seen = inspect(open_data(str(tmp_path)), progress=lambda done, every: calls.append((done, every)))
    assert (seen.n, seen.channels, seen.dtype) == (5, 3, "uint8") and calls[-1] == (5, 5)
    assert seen.sizes == {"min": [10, 20], "median": [11, 20], "max": [30, 40], "distinct": 3}
    assert seen.stored == {"rgb": 3, "grey": 1} and seen.classes == {"cat": 3, "dog": 2}
    assert seen.broken == [{"name": "dog/x.jpg", "message": "is not an image, or broken from its first bytes on"}]
    assert json.loads(json.dumps(seen.to_dict())) == seen.to_dict()
    text = "\n".join(seen.lines())
    for part in (
        "5 images, 3 channels, uint8",
        "10 x 20 to 30 x 40",
        "1 grey (repeated to RGB)",
        "2 classes: cat 3, dog 2",
        "  dog/x.jpg: is not an image",
        "broken: 1 (20.0%)",
    ):
        assert part in text


def test_the_second_part_is_headed_by_what_was_looked_at():
    images = np.stack([(scene(i) * 255).astype(np.uint8) for i in range(4)])
    seen = inspect(ArraySource(images[:3], labels=np.array([0, 1, 1])), ArraySource(images[3:], labels=np.array([0])))
    named, plain = seen.lines(test="flowers@val"), seen.lines()
    assert named[named.index("test (flowers@val)") + 1] == plain[plain.index("test") + 1] == "1 images, 3 channels, uint8"
    assert not any(line.startswith("no classes") for line in named)


@pytest.mark.parametrize(("folders", "classes"), [(("",), False), (("cat",), False), (("cat", "dog"), True)])
def test_a_folder_without_classes_says_so_and_where_they_can_come_from(tmp_path, folders, classes):
    for i, folder in enumerate(folders):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.fromarray((scene(i) * 255).astype(np.uint8)).save(tmp_path / folder / f"{i}.png")
    lines = inspect(open_data(str(tmp_path))).lines()
    none = "no classes: neither folders nor labels name any; --set data.labels=FILE takes them from a CSV"
    assert [line for line in lines if "classes" in line] == ["2 classes: cat 1, dog 1" if classes else none]


def test_the_range_of_sixteen_bits_is_what_is_there(tmp_path):
    for i in range(3):
        tifffile.imwrite(tmp_path / f"{i}.tif", (scene(i)[..., 0] * 1000 + 100).astype(np.uint16))
    source = open_data(str(tmp_path))
    seen, whole = inspect(source), np.stack([source.image(row).numpy() for row in range(3)])
    assert (seen.pixels["low"], seen.pixels["high"]) == (whole.min(), whole.max()) == (seen.minimum[0], seen.maximum[0])
    part = inspect(Subset(source, [0, 1]))
    assert part.n == 2 and part.maximum == [float(whole[:2].max())]


@pytest.mark.parametrize(("parts", "other"), [({"train": 5, "val": 3}, "val"), ({"train": 5, "val": 3, "test": 2}, "test"), ({"train": 5}, None)])
def test_the_command_looks_at_what_evaluate_would_test_on(tmp_path, parts, other):
    for i, part in enumerate(name for name, n in parts.items() for _ in range(n)):
        (tmp_path / part / "cat").mkdir(parents=True, exist_ok=True)
        Image.fromarray((scene(i) * 255).astype(np.uint8)).save(tmp_path / part / "cat" / f"{i}.png")
    Image.fromarray((scene(0) * 255).astype(np.uint8)).save(tmp_path / (other or "train") / "cat" / "again.png")
    found = said("data", tmp_path)
    assert found["n"] == parts["train"] + (other is None)
    assert found["test"] is None if other is None else found["test"]["n"] == parts[other] + 1
    again = [group for group in (found["shared"] or {"exact": []})["exact"] if any("again.png" in name for name in group)]
    assert len(again) == (other is not None)
