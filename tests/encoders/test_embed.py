import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet
from safetensors import safe_open

from gnothi.contracts import DataError, EncoderError, SettingError, Source
from gnothi.data import ArraySource
from gnothi.encoders import embed, load
from gnothi.randomness import generator

module = importlib.import_module("gnothi.encoders.embed")  # the package has the function under this name
N = 600
NAMES = [f"plaça {i % 3}/слон {i:03d}.png" for i in range(N)]


def source(broken=(), labels=True):
    images = torch.randint(256, (N, 3, 10, 10), generator=generator(0, "images"), dtype=torch.uint8)
    given = {"labels": [i % 3 - 1 for i in range(N)], "classes": ("cat", "dög"), "groups": [f"p{i // 7}" for i in range(N)]} if labels else {}
    whole = ArraySource(images, names=NAMES, **given)
    return Broken(whole, broken) if broken else whole


class Broken(Source):
    def __init__(self, whole, rows):
        self.whole, self.rows = whole, rows
        self.channels, self.dtype, self.labels, self.classes, self.groups = whole.channels, whole.dtype, whole.labels, whole.classes, whole.groups

    def __len__(self):
        return len(self.whole)

    def image(self, row, shrink=1):
        if row in self.rows:
            raise DataError("broken")
        return self.whole.image(row)

    def name(self, row):
        return self.whole.name(row)

    def fingerprint(self):
        return self.whole.fingerprint()


def test_parquet_holds_names_labels_groups_and_vectors(tmp_path):
    out = tmp_path / "e.parquet"
    summary = embed("colour", source(), out)
    table = parquet.read_table(out)
    assert np.array_equal(np.stack(table["embedding"].to_numpy()), load("colour").embed_source(source()))
    assert table["name"].to_pylist() == NAMES and table["row"].to_pylist() == list(range(N))
    assert table["label"].to_pylist()[:4] == [None, 0, 1, None] and table["class"].to_pylist()[:4] == [None, "cat", "dög", None]
    assert table["group"].to_pylist()[6:8] == ["p0", "p1"]
    assert table.schema.field("embedding").type.list_size == 48
    about = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
    assert about["gnothi.encoder_fingerprint"] == load("colour").fingerprint == summary["encoder_fingerprint"]
    assert about["gnothi.source_fingerprint"] == source().fingerprint() == summary["source_fingerprint"]
    assert (summary["n"], summary["dim"], summary["broken"]) == (N, 48, []) and json.dumps(summary)
    assert parquet.ParquetFile(out).num_row_groups == 3


@pytest.mark.parametrize("ending", [".npz", ".npy", ".safetensors"])
@pytest.mark.parametrize("labels", [True, False])
def test_the_other_formats_hold_the_same(tmp_path, ending, labels):
    out, expected = tmp_path / f"e{ending}", load("hog").embed_source(source())
    embed(load("hog"), source(labels=labels), str(out))
    if ending == ".npy":
        assert np.array_equal(np.load(out, allow_pickle=False), expected)
        return
    if ending == ".npz":
        arrays = dict(np.load(out, allow_pickle=False))
        texts = {k: v.tolist() for k, v in arrays.items()}
        assert json.loads(str(arrays["about"]))["encoder"] == "hog"
    else:
        with safe_open(out, "np") as file:
            arrays = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
            texts = {k: json.loads(v) for k, v in file.metadata().items() if k in ("names", "classes", "groups")}
            assert file.metadata()["encoder"] == "hog"
    assert np.array_equal(arrays["embeddings"], expected) and arrays["embeddings"].dtype == np.float32
    assert texts["names"] == NAMES and np.array_equal(arrays["rows"], np.arange(N))
    assert ("labels" in arrays) == ("classes" in texts) == ("groups" in texts) == labels
    if labels:
        assert np.array_equal(arrays["labels"], source().labels) and texts["classes"] == ["cat", "dög"] and texts["groups"][7] == "p1"


def test_broken_images_are_named_and_left_out(tmp_path):
    out = tmp_path / "e.parquet"
    summary = embed("colour", source(broken=(2, 599)), out)
    table = parquet.read_table(out)
    assert summary["broken"] == [NAMES[2], NAMES[599]] and summary["n"] == len(table) == N - 2
    assert table["row"].to_pylist()[:4] == [0, 1, 3, 4] and table["name"].to_pylist()[2] == NAMES[3]
    whole = load("colour").embed_source(source())
    assert np.array_equal(np.stack(table["embedding"].to_numpy()), np.delete(whole, [2, 599], 0))
    stored = load(f"features:{out}")
    found = stored.embed_source(source(broken=(2, 599)))
    assert np.isnan(found[[2, 599]]).all() and np.array_equal(np.delete(found, [2, 599], 0), np.delete(whole, [2, 599], 0))
    with pytest.raises(DataError, match="none of the 600 images can be read"):
        embed("colour", source(broken=range(N)), tmp_path / "none.npy")
    assert not (tmp_path / "none.npy").exists()


def test_a_parquet_file_is_an_encoder_of_its_source_only(tmp_path):
    embed("colour", source(), tmp_path / "e.parquet")
    encoder = load(f"features:{tmp_path}/e.parquet")
    assert np.array_equal(encoder.embed_source(source()), load("colour").embed_source(source()))
    with pytest.raises(EncoderError, match="was made of other images"):
        encoder.embed_source(source(labels=False))


def test_an_interrupted_file_is_not_there_and_an_older_one_stays(tmp_path):
    out = tmp_path / "e.parquet"
    out.write_bytes(b"older")

    def stop(done, n):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed("colour", source(), out, progress=stop)
    assert out.read_bytes() == b"older" and [p.name for p in tmp_path.iterdir()] == ["e.parquet"]


def test_an_unknown_ending_names_the_nearest_before_anything_is_computed(tmp_path):
    with pytest.raises(SettingError, match=r"must end in .parquet, .npy, .npz, .safetensors, got 'e.parqet'; did you mean .parquet"):
        embed("nonsense", "nonsense", tmp_path / "e.parqet")


def test_more_names_than_safetensors_holds_are_refused_before_anything_is_computed(tmp_path, monkeypatch):
    embed("colour", source(), tmp_path / "e.safetensors")
    with safe_open(tmp_path / "e.safetensors", framework="np") as file:
        texts = sum(len(json.dumps(file.metadata()[key])) for key in ("names", "groups") if key in file.metadata())
    counted = module._header(source())
    assert texts / 2 < counted <= 2 * texts
    monkeypatch.setattr(module, "MOST_HEADER", counted - 1)
    with pytest.raises(SettingError, match=r"more than a .safetensors file may hold .*; .parquet takes them"):
        embed("colour", source(), tmp_path / "more.safetensors")
    assert not (tmp_path / "more.safetensors").exists()


def test_the_page_reads_each_format(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "embed.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    expected = load("colour").embed_source(source())
    monkeypatch.chdir(tmp_path)
    for ending in ("parquet", "npz", "safetensors"):
        embed("colour", source(), f"features.{ending}")
    assert len(blocks) == 3
    for block in blocks:
        found: dict = {}
        exec(block, found)
        assert np.array_equal(found["vectors"], expected)
        assert "names" not in found or list(found["names"]) == NAMES
