import pickle
import subprocess
import sys

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from terminal import said

from gnothi.contracts import DataError, SettingError
from gnothi.data import DataSpec, holdout, inspect, splits
from gnothi.data import open as open_data
from gnothi.data.tiles import numbers_of, starts
from gnothi.randomness import generator


def noise(*shape, dtype="uint8"):
    high = {"uint8": 256, "uint16": 65536, "float32": 1000}[dtype]
    return torch.randint(high, shape, generator=generator(0, "tiles")).numpy().astype(dtype)


def tiles(path, **settings):
    return open_data(f"tiles:{path}", settings=DataSpec(**settings))


def check(source, whole, tile, places):
    """Every tile is its slice of [H, W, C]."""
    assert len(source) == len(places)
    for row, (top, left) in enumerate(places):
        part = whole[top : top + tile, left : left + tile]
        assert np.array_equal(source.image(row).numpy(), part.transpose(2, 0, 1)), (row, top, left)
        assert source.shape(row) == part.shape[:2]


STORED = {
    "tiled": {"tile": (32, 48)},
    "tiled, compressed": {"tile": (64, 32), "compression": "zlib", "predictor": True},
    "tiled, lzw": {"tile": (16, 16), "compression": "lzw"},
    "strips": {"rowsperstrip": 7, "compression": "zstd"},
    "one strip": {},
    "one strip, compressed": {"compression": "deflate"},
    "big-endian": {"byteorder": ">", "tile": (32, 32)},
    "big-endian strip": {"byteorder": ">"},
}


@pytest.mark.parametrize("how", STORED.values(), ids=STORED.keys())
@pytest.mark.parametrize(("channels", "dtype"), [(1, "uint8"), (3, "uint8"), (1, "uint16"), (5, "float32")])
def test_a_tile_is_the_slice_of_the_decoded_page(tmp_path, how, channels, dtype):
    how = dict(how)
    whole, path = noise(100, 131, channels, dtype=dtype), tmp_path / "a.tif"
    kind = {"photometric": "rgb"} if channels == 3 else {"photometric": "minisblack", "planarconfig": "contig"}
    with tifffile.TiffWriter(path, byteorder=how.pop("byteorder", "<")) as file:
        file.write(whole if channels > 1 else whole[..., 0], **how, **kind)
    decoded = tifffile.imread(path).reshape(whole.shape)
    assert np.array_equal(decoded, whole)
    places = [(y, x) for y in (0, 36, 50) for x in (0, 36, 72, 81)]
    check(tiles(path, tile=50, overlap=14), decoded, 50, places)


def test_jpeg_tiles_and_separate_planes_are_those_of_the_decoded_page(tmp_path):
    smooth = np.linspace(0, 250, 96 * 80 * 3).reshape(96, 80, 3).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", smooth, photometric="rgb", tile=(32, 32), compression="jpeg")
    check(tiles(tmp_path / "a.tif", tile=40), tifffile.imread(tmp_path / "a.tif"), 40, [(y, x) for y in (0, 40, 56) for x in (0, 40)])
    planes = noise(3, 90, 70)
    tifffile.imwrite(tmp_path / "b.tif", planes, photometric="rgb", planarconfig="separate", tile=(32, 32), compression="zlib")
    check(tiles(tmp_path / "b.tif", tile=64), planes.transpose(1, 2, 0), 64, [(y, x) for y in (0, 26) for x in (0, 6)])


def test_pages_of_a_stack_are_images_and_channels_of_an_ome_file_are_channels(tmp_path):
    stack = noise(2, 3, 60, 50, dtype="uint16")
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, metadata={"axes": "TCYX"}, photometric="minisblack", tile=(32, 32))
    source = tiles(tmp_path / "a.ome.tif", tile=40)
    assert (source.channels, len(source)) == (3, 8)
    places = [(y, x) for y in (0, 20) for x in (0, 10)]
    for page in range(2):
        for i, (y, x) in enumerate(places):
            assert np.array_equal(source.image(4 * page + i).numpy(), stack[page, :, y : y + 40, x : x + 40])
            assert source.name(4 * page + i) == f"a.ome.tif[{page}, {y}, {x}]"
    one = tiles(tmp_path / "a.ome.tif", tile=40, pages="1")
    assert len(one) == 4 and torch.equal(one.image(3), source.image(7)) and one.name(0) == "a.ome.tif[1, 0, 0]"


def test_pages_of_different_sizes_and_levels_of_a_pyramid_are_chosen_by_number(tmp_path):
    pages = [noise(64, 64), noise(48, 80), noise(64, 64) // 2]
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for page in pages:
            file.write(page, contiguous=False, metadata=None, compression="zlib")
    every = tiles(tmp_path / "a.tif", tile=64, pages="0-2")
    found = sorted(np.sum(every.image(row).numpy(), dtype=np.int64) for row in range(len(every)))
    assert len(every) == 4 and sorted({p.sum() for p in (pages[0], pages[2])}) == [s for s in found if s in (pages[0].sum(), pages[2].sum())]
    levels = [noise(128, 128, 3), noise(64, 64, 3), noise(32, 32, 3)]
    with tifffile.TiffWriter(tmp_path / "b.ome.tif") as file:
        file.write(levels[0], subifds=2, tile=(32, 32), photometric="rgb")
        for level in levels[1:]:
            file.write(level, subfiletype=1, tile=(32, 32), photometric="rgb")
    for number, level in enumerate(levels):
        check(
            tiles(tmp_path / "b.ome.tif", tile=32, level=number),
            level,
            32,
            [(y, x) for y in range(0, len(level), 32) for x in range(0, len(level), 32)],
        )
    with pytest.raises(DataError, match="b.ome.tif: has no level 3 of a pyramid, only 0 to 2"):
        tiles(tmp_path / "b.ome.tif", level=3)
    with pytest.raises(DataError, match="b.ome.tif: has 1 images, counted from 0; data.pages asks for 4"):
        tiles(tmp_path / "b.ome.tif", pages="4")


def test_meaning_and_orientation_are_those_of_a_folder_of_images(tmp_path):
    grey = noise(40, 56)
    for i, kind in enumerate(
        (
            {"photometric": "miniswhite"},
            {"extratags": [(274, "H", 1, 6, True)]},
            {"photometric": "palette", "colormap": noise(3, 256, dtype="uint16")},
        )
    ):
        (tmp_path / str(i)).mkdir()
        tifffile.imwrite(tmp_path / str(i) / "a.tif", grey, compression="zlib", **kind)
        folder, source = open_data(str(tmp_path / str(i))), tiles(tmp_path / str(i), tile=64)
        assert len(source) == 1 and torch.equal(source.image(0), folder.image(0)) and source.shape(0) == folder.shape(0)


@pytest.mark.parametrize(
    ("side", "tile", "step", "expected"),
    [(10, 4, 4, (0, 4, 6)), (8, 4, 4, (0, 4)), (4, 4, 4, (0,)), (3, 4, 4, (0,)), (9, 4, 3, (0, 3, 5)), (10, 4, 3, (0, 3, 6))],
)
def test_tiles_cover_a_side_and_end_at_its_edge(side, tile, step, expected):
    assert starts(side, tile, step) == expected


def test_numbers_of_pages_are_lists_and_ranges():
    assert numbers_of("3,0-1") == [0, 1, 3]
    for wrong in ("", "a", "2-1", "1-", "-1", "1.5", "0-99999999"):
        with pytest.raises(SettingError, match="data.pages must be numbers from 0"):
            numbers_of(wrong)


# ---- files ---------------------------------------------------------------------------------------
def slides(folder):
    for name, size in (("sick/a.tif", 70), ("sick/b.tif", 64), ("well/c.tif", 130)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / name, noise(size, 64), tile=(32, 32))
    return folder


def test_classes_are_folders_and_the_tiles_of_a_file_are_a_group_that_no_split_divides(tmp_path):
    source = tiles(slides(tmp_path), tile=64)
    assert [source.name(row) for row in range(len(source))] == [
        "sick/a.tif[0, 0, 0]", "sick/a.tif[0, 6, 0]", "sick/b.tif[0, 0, 0]", *(f"well/c.tif[0, {y}, 0]" for y in (0, 64, 66)),
    ]  # fmt: skip
    assert source.classes == ("sick", "well") and source.labels.tolist() == [0, 0, 0, 1, 1, 1]
    kept, held = holdout(source, 0.4, 0)
    assert not set(source.groups[kept]) & set(source.groups[held]) and len(set(source.groups)) == 3


def test_a_csv_speaks_of_files(tmp_path):
    slides(tmp_path / "in")
    (tmp_path / "labels.csv").write_text("file,label,patient\na.tif,x,P1\nb.tif,y,P1\nc.tif,x,P2\n")
    source = tiles(tmp_path / "in", tile=64, labels=str(tmp_path / "labels.csv"))
    assert source.labels.tolist() == [0, 0, 1, 0, 0, 0] and source.groups.tolist() == ["P1"] * 3 + ["P2"] * 3


def test_splits_of_a_folder_are_splits_of_its_tiles(tmp_path):
    slides(tmp_path / "train"), slides(tmp_path / "test")
    assert splits(f"tiles:{tmp_path}") == ("train", "test") and len(open_data(f"tiles:{tmp_path}@test", settings=DataSpec(tile=64))) == 6
    with pytest.raises(DataError, match="did you mean"):
        open_data(f"tiles:{tmp_path}/trian")


def test_a_broken_file_is_told_and_a_broken_tile_named(tmp_path):
    slides(tmp_path)
    (tmp_path / "sick" / "0.tif").write_bytes(b"II*\0 no")
    data = bytearray((tmp_path / "well" / "c.tif").read_bytes())
    tifffile.imwrite(tmp_path / "well" / "d.tif", noise(64, 64), tile=(32, 32), compression="zlib")
    with tifffile.TiffFile(tmp_path / "well" / "d.tif") as file:
        at = file.pages[0].dataoffsets[3]
    data = bytearray((tmp_path / "well" / "d.tif").read_bytes())
    data[at : at + 20] = b"x" * 20
    (tmp_path / "well" / "d.tif").write_bytes(bytes(data))
    source = tiles(tmp_path, tile=32)
    assert len(source.notes) == 1 and source.notes[0].startswith("sick/0.tif: cannot be read: ")
    seen = inspect(source)
    assert [b["name"] for b in seen.broken] == ["well/d.tif[0, 32, 32]"] and seen.notes == list(source.notes)
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "0.tif").write_bytes(b"II*\0 no")
    with pytest.raises(DataError, match="none of the 1 files can be cut into tiles; the first is 0.tif: cannot be read"):
        tiles(tmp_path / "alone")


def test_a_page_stored_in_one_piece_too_large_to_decode_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    tifffile.imwrite(tmp_path / "a.tif", noise(100, 100), compression="zlib")
    with pytest.raises(DataError, match=r"a.tif: is 100 x 100, more than the 5,000 pixels .*; cut it into tiles"):
        tiles(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", noise(100, 100), compression="zlib", tile=(32, 32))
    tifffile.imwrite(tmp_path / "c.tif", noise(100, 100))
    assert len(tiles(tmp_path / "b.tif", tile=50)) == len(tiles(tmp_path / "c.tif", tile=50)) == 4


def test_an_overlap_as_large_as_the_tile_is_refused(tmp_path):
    with pytest.raises(SettingError, match="data.overlap must be smaller than data.tile, 32, got 32"):
        tiles(slides(tmp_path), tile=32, overlap=32)


def test_a_source_survives_pickling_and_its_fingerprint_follows_the_cut(tmp_path):
    slides(tmp_path)
    source = pickle.loads(pickle.dumps(tiles(tmp_path, tile=64)))
    assert torch.equal(source.image(5), tiles(tmp_path, tile=64).image(5))
    prints = {tiles(tmp_path, tile=tile, overlap=overlap).fingerprint() for tile, overlap in ((64, 0), (64, 1), (32, 0))}
    assert len(prints) == 3 and source.fingerprint() in prints


@pytest.mark.parametrize("cases", [150, pytest.param(3000, marks=pytest.mark.slow)])
def test_a_file_that_was_spoilt_at_random_gives_pixels_or_one_line(tmp_path, cases):
    how = ({"tile": (32, 32), "compression": "zlib"}, {"rowsperstrip": 9, "compression": "lzw"}, {}, {"tile": (32, 32), "compression": "jpeg"})
    wholes = []
    for i, kind in enumerate(how):
        tifffile.imwrite(tmp_path / f"{i}.tif", noise(70, 90), **kind)
        wholes.append((tmp_path / f"{i}.tif").read_bytes())
        (tmp_path / f"{i}.tif").unlink()
    read = refused = 0
    for case in range(cases):
        random, data = generator(2, "spoilt", case), bytearray(wholes[case % 4])
        for _ in range(1 + case % 3):  # mostly where the tags are, in the first 300 bytes and behind the last pixel
            at = int(torch.randint(300 if case % 5 else len(data), (), generator=random))
            data[at] = int(torch.randint(256, (), generator=random))
        path = tmp_path / f"{case}.tif"
        path.write_bytes(bytes(data))
        try:
            source = tiles(path, tile=64)
            for row in range(min(len(source), 6)):
                assert source.image(row).shape[1:] == source.shape(row)
            read += 1
        except DataError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1 and f"{case}.tif" in str(error), case
        path.unlink()
    assert read > cases // 10 and refused > cases // 10


# ---- larger than memory --------------------------------------------------------------------------
def test_training_reads_no_whole_page(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", noise(2, 256, 256), photometric="minisblack", metadata={"axes": "ZYX"}, tile=(64, 64), compression="zlib")

    def refuse(*args, **kwargs):
        raise AssertionError("decoded whole")

    for kind in (tifffile.TiffFile, tifffile.TiffPage, tifffile.TiffFrame, tifffile.TiffPageSeries):
        monkeypatch.setattr(kind, "asarray", refuse)
    monkeypatch.setattr(tifffile, "imread", refuse)
    small = ("--epochs", "1", "--set", "training.batch=8", "--set", "views.size=32", "--set", "training.workers=0", "--device", "cpu")
    done = said("train", f"tiles:{tmp_path / 'a.tif'}", "--set", "data.tile=64", "--out", str(tmp_path / "run"), *small)
    assert done["steps"] == 4 and not done["broken"]


@pytest.mark.slow
def test_memory_stays_far_below_the_size_of_a_page(tmp_path):
    path = tmp_path / "a.tif"
    shape = (24576, 24576)
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        block = noise(512, 512)
        file.write((block for _ in range(48 * 48)), shape=shape, dtype="uint8", tile=(512, 512), compression="zlib", compressionargs={"level": 1})
    code = f"""
import resource
from gnothi.data import DataSpec, open
source = open("tiles:{path}", settings=DataSpec(tile=512, overlap=64))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for row in range(0, len(source), 7):
    source.image(row)
print(len(source), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(out[0]) == 55**2 and int(out[1]) * 1024 < 0.05 * shape[0] * shape[1]
