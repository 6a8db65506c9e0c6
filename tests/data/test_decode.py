"""Files of every form are written with Pillow, tifffile or imagecodecs, and must come back exactly."""

import io
import struct
import threading
import time
import warnings
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from gnothi.contracts import DataError
from gnothi.data.decode import _QUIET, decode, header

RANDOM = np.frombuffer(bytes((i * i * 31 + i * 7) % 256 for i in range(4 * 20 * 30)), np.uint8)
RGBA8 = RANDOM.reshape(20, 30, 4)
RGB8, GREY8 = RGBA8[..., :3].copy(), RGBA8[..., 0].copy()
RGB16 = RGB8.astype(np.uint16) * 200 + GREY8[..., None]
GREY16 = RGB16[..., 1].copy()


def check(path, expected, stored, tolerance=0):
    expected = expected.reshape(20, 30, -1)
    image, form = decode(str(path))
    assert image.dtype == expected.dtype and image.shape == expected.shape
    assert np.abs(image.astype(np.float64) - expected).max() <= tolerance
    height, width, said = header(str(path))
    assert (height, width) == (20, 30) and said == form
    assert form.stored == stored and (form.channels, form.dtype) == (expected.shape[2], str(expected.dtype))


@pytest.mark.parametrize("extension", ["png", "bmp", "tif", "webp", "gif"])
def test_grey_and_rgb_come_back(tmp_path, extension):
    path = tmp_path / f"a.{extension}"
    if extension != "webp":  # which has no grey
        Image.fromarray(GREY8).save(path)
        check(path, *((np.repeat(GREY8[..., None], 3, 2), "palette") if extension == "gif" else (GREY8, "grey")))
    if extension != "gif":  # which has no RGB
        Image.fromarray(RGB8).save(path, **({"lossless": True} if extension == "webp" else {}))
        check(path, RGB8, "rgb")


def test_jpegs_come_back_nearly(tmp_path):
    smooth = np.add.outer(np.arange(20) * 5, np.arange(30) * 3).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "g.jpg", quality=98)
    check(tmp_path / "g.jpg", smooth, "grey", tolerance=4)
    colour = np.stack([smooth, 255 - smooth, smooth // 2], 2)
    Image.fromarray(colour).save(tmp_path / "c.jpg", quality=98, subsampling=0)
    check(tmp_path / "c.jpg", colour, "rgb", tolerance=8)
    Image.fromarray(colour).convert("CMYK").save(tmp_path / "k.jpg", quality=98)
    check(tmp_path / "k.jpg", colour, "cmyk", tolerance=10)


@pytest.mark.parametrize("extension", ["png", "tif", "webp"])
def test_opacity_is_kept_as_the_last_channel(tmp_path, extension):
    path = tmp_path / f"a.{extension}"
    Image.fromarray(RGBA8, "RGBA").save(path, **({"lossless": True, "exact": True} if extension == "webp" else {}))
    check(path, RGBA8, "rgb+alpha")
    assert decode(str(path))[1].alpha


def test_grey_with_opacity_bilevel_and_palettes_come_back(tmp_path):
    two = RGBA8[..., :2].copy()
    Image.fromarray(two, "LA").save(tmp_path / "la.png")
    check(tmp_path / "la.png", two, "grey+alpha")
    for extension in ("png", "tif", "bmp"):
        bits = Image.fromarray(GREY8).convert("1")
        bits.save(tmp_path / f"1.{extension}")
        check(tmp_path / f"1.{extension}", np.asarray(bits).astype(np.uint8) * 255, "bilevel")
    palette = Image.fromarray(RGB8).quantize(16)
    colours = np.asarray(palette.convert("RGB"))
    for extension in ("png", "tif", "bmp", "gif"):
        palette.save(tmp_path / f"p.{extension}")
        check(tmp_path / f"p.{extension}", colours, "palette")
    palette.save(tmp_path / "t.png", transparency=3)
    clear = np.where(np.asarray(palette) == 3, 0, 255).astype(np.uint8)[..., None]
    check(tmp_path / "t.png", np.concatenate([colours, clear], 2), "palette")


def test_sixteen_bits_are_kept(tmp_path):
    Image.fromarray(GREY16).save(tmp_path / "g.png")
    check(tmp_path / "g.png", GREY16, "grey")
    alpha = np.concatenate([RGB16, 65535 - GREY16[..., None]], 2)
    for name, pixels, stored in (("c", RGB16, "rgb"), ("a", alpha, "rgb+alpha"), ("l", alpha[..., 2:], "grey+alpha")):
        (tmp_path / f"{name}.png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels)))
        check(tmp_path / f"{name}.png", pixels, stored)
    for byteorder in "<>":
        tifffile.imwrite(tmp_path / "g.tif", GREY16, byteorder=byteorder)
        check(tmp_path / "g.tif", GREY16, "grey")
        tifffile.imwrite(tmp_path / "c.tif", RGB16, byteorder=byteorder, photometric="rgb")
        check(tmp_path / "c.tif", RGB16, "rgb")


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "lzw", "deflate"])
def test_tiffs_of_many_channels_come_back(tmp_path, planar, compression):
    seven = np.stack([GREY16 + 100 * c for c in range(7)], 2)
    pixels = seven if planar == "contig" else seven.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", planarconfig=planar, compression=compression)
    check(tmp_path / "a.tif", seven, "7 channels")


def test_imagej_channels_are_channels_and_stacks_are_refused(tmp_path):
    five = np.stack([GREY16 + 100 * c for c in range(5)])
    tifffile.imwrite(tmp_path / "c.tif", five, imagej=True, metadata={"axes": "CYX"})
    check(tmp_path / "c.tif", five.transpose(1, 2, 0), "5 channels")
    tifffile.imwrite(tmp_path / "z.tif", five, imagej=True, metadata={"axes": "ZYX"})
    for read in (decode, header):
        with pytest.raises(DataError, match="holds 5 images"):
            read(str(tmp_path / "z.tif"))


@pytest.mark.parametrize(("given", "kept"), [(np.float32, np.float32), (np.float64, np.float32), (np.int16, np.float32), (np.int32, np.float32)])
def test_other_numbers_in_tiffs_become_floats_of_the_same_value(tmp_path, given, kept):
    pixels = (GREY16.astype(np.int64) % 3000 - 1500).astype(given)
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    check(tmp_path / "a.tif", pixels.astype(kept), "grey")


def test_white_is_zero_and_multiplied_opacity_are_undone(tmp_path):
    tifffile.imwrite(tmp_path / "w.tif", GREY16, photometric="miniswhite")
    check(tmp_path / "w.tif", 65535 - GREY16, "grey")
    opacity = np.maximum(RGBA8[..., 3:].astype(int), 128)
    multiplied = np.rint(RGB8 * (opacity / 255)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", np.concatenate([multiplied, opacity.astype(np.uint8)], 2), photometric="rgb", extrasamples=["assocalpha"])
    check(tmp_path / "a.tif", np.concatenate([RGB8, opacity.astype(np.uint8)], 2), "rgb+alpha", tolerance=1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif"])
def test_every_orientation_is_as_pillow_turns_it(tmp_path, orientation, extension):
    path, exif = tmp_path / f"a.{extension}", Image.Exif()
    exif[274] = orientation
    if extension == "tif":
        Image.fromarray(RGB8).save(path, tiffinfo={274: orientation})
    else:
        Image.fromarray(RGB8).save(path, exif=exif)
    with Image.open(path) as image:
        turned = ImageOps.exif_transpose(image)
        expected = np.asarray(turned.convert("RGB"))
    image, form = decode(str(path))
    assert np.array_equal(image, expected)
    assert header(str(path)) == (*expected.shape[:2], form)
    assert image.shape[:2] == ((30, 20) if orientation >= 5 else (20, 30))


@pytest.mark.parametrize("size", [(1, 1), (7, 100), (101, 64), (127, 9), (640, 481)])
@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
def test_a_shrunk_jpeg_is_its_part_rounded_up_and_never_less(tmp_path, size, shrink):
    smooth = np.add.outer(np.linspace(0, 120, size[1]), np.linspace(0, 120, size[0])).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    image, _ = decode(str(tmp_path / "a.jpg"), shrink)
    least = (-(-size[1] // shrink), -(-size[0] // shrink))
    assert image.shape[:2] >= least and image.shape[1] >= least[1]
    if min(size) < shrink:
        return
    assert image.shape[:2] == least
    places = [np.minimum((np.arange(n) + 0.5) * shrink - 0.5, whole - 1) for n, whole in zip(image.shape[:2], size[::-1], strict=True)]
    expected = np.add.outer(*(120 * place / max(whole - 1, 1) for place, whole in zip(places, size[::-1], strict=True)))
    assert np.abs(image[..., 0] - expected).mean() < 4


def test_the_first_frame_of_a_gif_is_read(tmp_path):
    frames = [Image.fromarray(np.full((20, 30), v, np.uint8)) for v in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (decode(str(tmp_path / "a.gif"))[0] == 10).all()


def test_the_content_counts_and_not_the_extension(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", RGB16, photometric="rgb")
    (tmp_path / "a.tif").rename(tmp_path / "a.jpg")
    check(tmp_path / "a.jpg", RGB16, "rgb")
    Image.fromarray(RGB8).save(tmp_path / "b.png")
    (tmp_path / "b.png").rename(tmp_path / "b.tif")
    check(tmp_path / "b.tif", RGB8, "rgb")


@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp", "bmp", "gif"])
def test_a_file_cut_short_is_a_data_error_without_warnings(tmp_path, extension):
    path, buffer = tmp_path / f"a.{extension}", io.BytesIO()
    Image.fromarray(np.tile(RGB8, (8, 8, 1))).save(buffer, {"jpg": "jpeg", "tif": "tiff"}.get(extension, extension))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for part in (0, 3, 20, len(buffer.getvalue()) // 2):
            path.write_bytes(buffer.getvalue()[:part])
            with pytest.raises(DataError) as caught:
                decode(str(path))
            assert "\n" not in str(caught.value)


def test_a_decompression_bomb_is_refused_from_its_header(tmp_path):
    side = 12000  # 144 million pixels: Pillow only warns of these
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr)) + struct.pack(">I", 1000) + b"IDAT"
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    tifffile.imwrite(tmp_path / "a.tif", GREY8)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tif:
        for tag in ("ImageWidth", "ImageLength"):
            tif.pages[0].tags[tag].overwrite(side)
    for name in ("a.png", "a.tif"):
        for read in (decode, header):
            with pytest.raises(DataError, match="decompression bomb"):
                read(str(tmp_path / name))


def test_a_broken_note_on_orientation_leaves_the_pixels(tmp_path):
    Image.fromarray(RGB8).save(tmp_path / "a.webp", lossless=True, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(decode(str(tmp_path / "a.webp"))[0], RGB8)


def test_leaving_while_another_thread_is_inside_does_not_bring_warnings_back():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with _QUIET:
            with _QUIET:
                pass
            warnings.warn("of the other thread", stacklevel=1)
        with pytest.raises(UserWarning):
            warnings.warn("heard again", stacklevel=1)


def test_threads_leave_the_filters_of_warnings_as_they_were(tmp_path):
    Image.fromarray(np.tile(RGB8, (20, 20, 1))).save(tmp_path / "a.jpg")
    before = list(warnings.filters)

    def work(number):
        time.sleep(number / 500)
        for _ in range(10):
            decode(str(tmp_path / "a.jpg"))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before
