import json

import numpy as np
import pytest
import torch
from PIL import Image

from gnothi.contracts import DataError, EncoderError, Source
from gnothi.data import ArraySource
from gnothi.data import open as open_data
from gnothi.encoders import Encoder, features, load
from gnothi.encoders.features import folder
from gnothi.randomness import generator


def drawn(n=5, seed=0):
    return torch.randint(256, (n, 3, 12, 12), generator=generator(seed, "images"), dtype=torch.uint8)


class Counting(Encoder):
    """The mean of each channel, counting the images that it is shown."""

    name, dim, channels, fingerprint = "counting", 3, 3, "00c0ffee"

    def __init__(self):
        self.shown = 0

    def prepare(self, images):
        self.shown += len(images)
        return images.float().mean((2, 3))

    def encode(self, prepared):
        return prepared


def test_a_second_call_computes_nothing(tmp_path):
    encoder, source = Counting(), ArraySource(drawn())
    first = features(encoder, source, cache=tmp_path)
    again = features(encoder, ArraySource(drawn()), cache=tmp_path)
    assert encoder.shown == 5
    assert np.array_equal(first, drawn().float().mean((2, 3))) and np.array_equal(first, again)
    assert isinstance(again, np.memmap) and again.dtype == np.float32 and not again.flags.writeable


@pytest.mark.parametrize("what", ["images", "labels", "encoder"])
def test_another_fingerprint_is_other_features(tmp_path, what):
    encoder = Counting()
    features(encoder, ArraySource(drawn(), labels=[0] * 5), cache=tmp_path)
    if what == "encoder":
        encoder.fingerprint = "00c0ffef"
    features(encoder, ArraySource(drawn(seed=int(what == "images")), labels=[int(what == "labels")] * 5), cache=tmp_path)
    assert encoder.shown == 10


@pytest.mark.parametrize("damage", ["a byte", "cut short", "no digest", "another shape"])
def test_a_damaged_file_is_computed_again(tmp_path, damage):
    encoder, source = Counting(), ArraySource(drawn())
    expected = np.array(features(encoder, source, cache=tmp_path))
    path = next(tmp_path.glob("*.npy"))
    data = bytearray(path.read_bytes())
    if damage == "a byte":
        data[-1] ^= 1
        path.write_bytes(data)
    elif damage == "cut short":
        path.write_bytes(data[:-8])
    elif damage == "no digest":
        path.with_suffix(".json").unlink()
    else:
        np.save(path, np.zeros((4, 3), dtype=np.float32))
    assert np.array_equal(features(encoder, source, cache=tmp_path), expected)
    assert encoder.shown == 10


def test_an_interrupted_writing_leaves_nothing(tmp_path):
    encoder, source = Counting(), ArraySource(drawn(600))
    with pytest.raises(KeyboardInterrupt):
        features(encoder, source, cache=tmp_path, progress=lambda done, n: (_ for _ in ()).throw(KeyboardInterrupt))
    assert list(tmp_path.iterdir()) == []
    assert len(features(encoder, source, cache=tmp_path)) == 600


def test_some_rows_in_their_order(tmp_path):
    source, told = ArraySource(drawn(700)), []
    found = features(Counting(), source, rows=[3, 699, 3], cache=tmp_path)
    assert np.array_equal(found, drawn(700).float().mean((2, 3))[[3, 699, 3]])
    features(Counting(), source, cache=tmp_path, progress=lambda done, n: told.append((done, n)))
    assert told == [(256, 700), (512, 700), (700, 700)]


def test_where_the_features_lie(tmp_path, monkeypatch):
    monkeypatch.setenv("GNOTHI_CACHE", str(tmp_path / "here"))
    features(Counting(), ArraySource(drawn()))
    about = json.loads(next((tmp_path / "here").glob("*.json")).read_text())
    assert about["encoder"] == "counting" and about["shape"] == [5, 3]
    monkeypatch.delenv("GNOTHI_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder() == tmp_path / ".cache/gnothi/features" and folder(tmp_path) == tmp_path


class Files(Source):
    """Images of several sizes that are not in memory; some cannot be read."""

    channels, dtype = 3, torch.uint8

    def __init__(self, broken=()):
        self.broken, self.alive = broken, 0

    def __len__(self):
        return 600

    def image(self, row, shrink=1):
        if row in self.broken:
            raise DataError(f"{self.name(row)}: truncated")
        return torch.full((3, 8 + row % 5, 9), row % 251, dtype=torch.uint8)

    def fingerprint(self):
        return f"f{len(self.broken)}"


def test_images_read_one_by_one_keep_their_order_and_broken_ones_are_nan(tmp_path):
    found = features(Counting(), Files(broken=(0, 300, 599)), cache=tmp_path)
    expected = (np.arange(600) % 251).astype(np.float32)[:, None].repeat(3, 1)
    expected[[0, 300, 599]] = np.nan
    assert np.array_equal(found, expected, equal_nan=True)
    assert np.isnan(Counting().embed_source(Files(broken=range(600)))).all()


def test_what_could_not_be_read_is_tried_again(tmp_path):
    source, gone = Files(broken=(0, 300, 301, 599)), (300,)
    source.fingerprint = lambda: "the same"  # a server that was away changes nothing of the images
    features(Counting(), source, cache=tmp_path)
    encoder = Counting()
    assert np.isnan(features(encoder, source, cache=tmp_path)[[0, 300, 301, 599]]).all() and encoder.shown == 0  # still away
    source.broken = gone
    found = features(encoder, source, cache=tmp_path)
    assert np.array_equal(found, Counting().embed_source(source), equal_nan=True) and np.flatnonzero(np.isnan(found).all(1)).tolist() == [300]
    assert encoder.shown < 10 and [p.suffix for p in sorted(tmp_path.iterdir())] == [".json", ".npy"]
    again = Counting()
    assert np.array_equal(features(again, source, cache=tmp_path), found, equal_nan=True) and again.shown == 0


def test_no_more_than_two_blocks_are_prepared_at_a_time():
    encoder = Counting()
    blocks = encoder.blocks(Files())
    next(blocks)
    assert encoder.shown <= 512
    blocks.close()


def test_a_folder_of_files_equals_its_images(tmp_path):
    images = drawn(7)
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    for name in ("pixels", "hog", "colour"):
        found = load(name).embed_source(open_data(str(tmp_path)))
        assert np.allclose(found, load(name).embed(images), atol=1e-6)


# ---- features:FILE -------------------------------------------------------------------------------
def test_a_file_of_features_stands_for_its_source(tmp_path):
    vectors = torch.rand(5, 4, generator=generator(0, "v")).double().numpy()
    np.save(tmp_path / "v.npy", vectors)
    encoder, source = load(f"features:{tmp_path}/v.npy"), ArraySource(drawn())
    assert encoder.dim == 4 and np.array_equal(encoder.embed_source(source), vectors.astype(np.float32))
    assert np.array_equal(features(encoder, source, rows=[4, 1], cache=tmp_path / "c"), vectors.astype(np.float32)[[4, 1]])
    with pytest.raises(EncoderError, match="holds 5 vectors, this source has 4 images"):
        encoder.embed_source(ArraySource(drawn(4)))
    with pytest.raises(EncoderError, match="cannot embed other images"):
        encoder.embed(drawn())


@pytest.mark.parametrize("content", ["objects", "line", "text", "junk"])
def test_a_file_that_holds_something_else_is_refused(tmp_path, content):
    path = tmp_path / "v.npy"
    if content == "junk":
        path.write_bytes(b"junk")
    else:
        np.save(path, {"objects": np.array([{}], dtype=object), "line": np.zeros(3), "text": np.array([["a"]])}[content])
    with pytest.raises(EncoderError) as caught:
        load(f"features:{path}")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    (tmp_path / "v.parquet").write_bytes(b"junk")
    with pytest.raises(EncoderError, match="holds no table"):
        load(f"features:{tmp_path}/v.parquet")
