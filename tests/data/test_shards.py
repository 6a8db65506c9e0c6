import io
import json
import os
import pickle
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tars import file, names, npy, uneven, write
from webdataset.tariterators import group_by_keys, tar_file_iterator

from gnothi.contracts import DataError
from gnothi.data import DataSpec, Subset, holdout, inspect, pack, pixels
from gnothi.data import open as open_data
from gnothi.randomness import generator
from gnothi.views.batches import Batches, ViewsSpec
from gnothi.views.crops import CropSpec


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GNOTHI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "shards"


# ---- against webdataset --------------------------------------------------------------------------
def theirs(paths):
    """The samples that webdataset makes of some files, and each one's file. Its own pipeline leaves files open."""
    for path in paths:
        with open(path, "rb") as stream:
            for sample in group_by_keys({**member, "__url__": str(path)} for member in tar_file_iterator(stream)):
                yield {k: v for k, v in sample.items() if k != "__local_path__"}


def test_every_sample_is_the_one_that_webdataset_reads(tmp_path):
    uneven(tmp_path)
    source = open_data(f"shards:{tmp_path}/part-{{00..02}}.tar")
    samples = list(theirs(sorted(tmp_path.glob("*.tar"))))
    assert len(source) == len(samples) == 13
    for row, sample in enumerate(samples):
        ending = next(e for e in ("png", "jpg", "webp", "tif", "bmp") if e in sample)
        assert source.name(row) == f"{os.path.basename(sample['__url__'])}/{sample['__key__']}.{ending}"
        assert source.stored(row) == (ending, sample[ending])
        decoded = np.asarray(Image.open(io.BytesIO(sample[ending])).convert("RGB"))
        assert np.array_equal(source.image(row).numpy(), decoded.transpose(2, 0, 1)) and source.shape(row) == decoded.shape[:2]
        assert source.label(row) == int(sample["cls"]) and source.classes[source.label(row)] == json.loads(sample["json"])["label"]
        assert source.group(row) == json.loads(sample["json"])["site"]


NAMES = st.lists(st.text("ab./_-", min_size=1, max_size=8).filter(lambda n: not n.endswith("/") and "//" not in n), unique=True, max_size=8)


@given(NAMES)
def test_names_are_parted_into_samples_as_webdataset_parts_them(tmp_path_factory, found):
    folder = tmp_path_factory.mktemp("names")
    members = [(name + ".png", file(i)) for i, name in enumerate(found)]
    path = write(folder / "a.tar", members)
    try:
        samples = [{k: v for k, v in s.items() if k in ("__key__", "png") or not k.startswith("__")} for s in theirs([path])]
        images = [["png"] if "png" in s else [e for e in s if e.rpartition(".")[2] == "png"] for s in samples]
        assert all(len(found) < 2 for found in images)
    except (ValueError, AssertionError):  # an ending twice, or several images in a sample: ours says which
        with pytest.raises(DataError, match="twice|several images"):
            open_data(f"shards:{path}")
        return
    expected = [f"a.tar/{s['__key__']}.{found[0]}" for s, found in zip(samples, images, strict=True) if found]
    if not expected:
        with pytest.raises(DataError, match="holds no images"):
            open_data(f"shards:{path}")
        return
    assert names(open_data(f"shards:{path}")) == expected


# ---- samples -------------------------------------------------------------------------------------
def test_the_image_is_the_member_asked_for(tmp_path):
    path = write(tmp_path / "a.tar", [("1.jpg", file(1, "jpg")), ("1.seg.png", file(2)), ("2.jpg", file(3, "jpg")), ("2.seg.png", file(4))])
    assert names(open_data(f"shards:{path}")) == ["a.tar/1.jpg", "a.tar/2.jpg"]
    asked = open_data(f"shards:{path}", settings=DataSpec(member="seg.png"))
    assert names(asked) == ["a.tar/1.seg.png", "a.tar/2.seg.png"] and (asked.image(1) == 4).all()
    path = write(tmp_path / "b.tar", [("1.jpg", file(1, "jpg")), ("1.png", file(2))])
    with pytest.raises(DataError, match=r"b.tar 1 has several images \(jpg, png\); say which one with data.member, such as data.member=jpg"):
        open_data(f"shards:{path}")


def test_arrays_keep_their_type_and_channels(tmp_path):
    deep = np.arange(6 * 7 * 5, dtype=np.uint16).reshape(6, 7, 5) * 300
    path = write(tmp_path / "a.tar", [("1.npy", npy(deep)), ("2.npy", npy(deep[::-1]))])
    source = open_data(f"shards:{path}")
    assert (source.channels, source.dtype) == (5, torch.uint16) and source.shape(0) == (6, 7)
    assert np.array_equal(source.image(1).numpy(), deep[::-1].transpose(2, 0, 1))


def test_arrays_of_objects_are_never_unpickled(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    path = write(tmp_path / "a.tar", [("1.png", file(1)), ("2.npy", buffer.getvalue())])
    with pytest.raises(DataError, match="^a.tar/2.npy: cannot be read: Object arrays cannot be loaded when allow_pickle=False"):
        open_data(f"shards:{path}").image(1)


@pytest.mark.parametrize(
    ("members", "classes", "labels"),
    [
        ([("1.cls", b"2"), ("2.cls", b"0\n"), (None, b"")], ("0", "1", "2"), [2, 0, -1]),
        ([("1.cls", b"dog"), ("2.cls", b"cat10"), ("3.cls", b"cat9")], ("cat9", "cat10", "dog"), [2, 1, 0]),
        ([("1.json", b'{"label": "b"}'), ("2.json", b'{"label": 7}'), ("3.json", b"[]")], ("7", "b"), [1, 0, -1]),
        ([("1.json", b'{"target": "b"}'), ("2.json", b"not json"), ("3.cls", b"\xff")], ("b",), [0, -1, -1]),
        ([("1.json", b'{"x": 1}'), ("2.txt", b"caption"), (None, b"")], None, None),
    ],
)
def test_labels_are_numbers_texts_or_fields(tmp_path, members, classes, labels):
    rows = [[(f"{i}.png", file(i))] + [(n, d) for n, d in members if n and n.startswith(str(i))] for i in (1, 2, 3)]
    source = open_data(f"shards:{write(tmp_path / 'a.tar', sum(rows, []))}")
    assert source.classes == classes and (source.labels is None if labels is None else source.labels.tolist() == labels)


def test_a_field_can_be_asked_for_and_numbers_that_two_names_share_are_named_by_the_texts(tmp_path):
    rows = [
        (f"{i}.{e}", d)
        for i in range(4)
        for e, d in (("png", file(i)), ("cls", b"0"), ("json", json.dumps({"label": "ab"[i % 2], "kind": i}).encode()))
    ]
    path = write(tmp_path / "a.tar", rows)
    assert open_data(f"shards:{path}").labels.tolist() == [0, 1, 0, 1]
    rows = [row for row in rows if not row[0].endswith("cls")]
    path = write(tmp_path / "b.tar", rows)
    assert open_data(f"shards:{path}", settings=DataSpec(label_column="kind")).classes == ("0", "1", "2", "3")


def test_a_csv_finds_the_images_by_their_paths(tmp_path):
    uneven(tmp_path / "s")
    (tmp_path / "labels.csv").write_text("file,label\nd/001.jpg,x\n012.webp,y\n")
    source = open_data(f"shards:{tmp_path / 's'}", settings=DataSpec(labels=str(tmp_path / "labels.csv")))
    assert source.classes == ("x", "y") and source.labels.tolist() == [-1, 0, *[-1] * 10, 1]


def test_samples_without_an_image_and_labels_that_cannot_be_read_are_told(tmp_path):
    path = write(tmp_path / "a.tar", [("1.txt", b"x"), ("2.png", file(2)), ("2.json", b"{")])
    assert open_data(f"shards:{path}").notes == (
        "a.tar: 1 samples have no image, such as 1", "a.tar: 1 labels cannot be read, such as that of 2",
    )  # fmt: skip
    assert "note: a.tar: 1 samples have no image, such as 1" in inspect(open_data(f"shards:{path}")).lines()


def test_links_and_paths_that_leave_the_folder_do_no_harm(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("l.png", tarfile.SYMTYPE), ("h.png", tarfile.LNKTYPE), ("d.png", tarfile.DIRTYPE), ("c.png", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        for name in ("../../out.png", "/abs.png"):
            member, data = tarfile.TarInfo(name), file(5)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    source = open_data(f"shards:{path}")
    assert names(source) == ["a.tar/../../out.png", "a.tar//abs.png"] and (source.image(0) == 5).all()
    assert [p for p in map(str, tmp_path.rglob("*")) if p not in before and "cache" not in p] == []


# ---- the index -----------------------------------------------------------------------------------
def test_the_index_is_made_once_and_again_when_a_shard_changes_or_the_cache_is_broken(tmp_path, cache, monkeypatch, caplog):
    from gnothi.data import shards

    made, build = [], shards.build
    monkeypatch.setattr(shards, "build", lambda *args: made.append(1) or build(*args))
    uneven(tmp_path)
    first = open_data(f"shards:{tmp_path}")
    again = open_data(f"shards:{tmp_path}")
    assert len(made) == 3 and first.fingerprint() == again.fingerprint() and first.labels.tolist() == again.labels.tolist()
    assert len(list(cache.glob("*.npz"))) == 3 and not list(cache.glob(".*"))
    write(tmp_path / "part-01.tar", [("x.png", file(1)), ("y.png", file(2))])
    changed = open_data(f"shards:{tmp_path}")
    assert len(made) == 4 and len(changed) == 14 and changed.fingerprint() != first.fingerprint()
    for path in cache.glob("*.npz"):
        path.write_bytes(path.read_bytes()[:-50])
    assert open_data(f"shards:{tmp_path}").fingerprint() == changed.fingerprint() and len(made) == 7
    assert "is broken" in caplog.text


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GNOTHI_CACHE", str(tmp_path / "file"))
    uneven(tmp_path)
    assert len(open_data(f"shards:{tmp_path}")) == 13 and "cannot be kept" in caplog.text


def test_a_source_survives_pickling_and_a_part_of_it_has_its_shapes(tmp_path):
    values = uneven(tmp_path)
    source = pickle.loads(pickle.dumps(Subset(open_data(f"shards:{tmp_path}"), [12, 0, 5])))
    assert [int(source.image(row)[0, 0, 0]) for row in range(3)] == [values[12], 0, values[5]]
    assert source.shape(1) == (8, 9) and source.name(2) == "part-01.tar/d/005.png"


@pytest.mark.parametrize("n", [0, 2, 40])
def test_a_shard_that_changes_under_an_open_source_is_named(tmp_path, n):
    """Smaller, as large and larger: by their places alone, other images would be read under the old names."""
    path = write(tmp_path / "a.tar", [("1.png", file(1)), ("2.png", file(2))])
    source, before = open_data(f"shards:{path}"), path.stat()
    assert (source.image(1) == 2).all()
    if n:
        write(path, [(f"{i}.png", file(7)) for i in range(n)])
    else:
        path.write_bytes(path.read_bytes()[:2000])
    assert (path.stat().st_size > before.st_size) - (path.stat().st_size < before.st_size) == {0: -1, 2: 0, 40: 1}[n]
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    for row in (0, 1):
        with pytest.raises(DataError, match=f"^a.tar/{row + 1}.png: is another file by now than it was when it was opened$"):
            source.image(row)


def test_groups_are_kept_as_numbers_of_their_words(tmp_path):
    """Not as text of a fixed width, which is as wide in every row as the longest; and nothing that is made of them is another."""
    long = "patient " + "x" * 180
    rows = [(f"{i}.{e}", d) for i in range(60) for e, d in (("png", file(i)), ("json", json.dumps({"group": (long, "b", "")[i % 3]}).encode()))]
    source = open_data(f"shards:{write(tmp_path / 'a.tar', rows)}")
    expected = np.array([(long, "b", f"alone: a.tar/{i}.png")[i % 3] for i in range(60)])
    assert source.groups.tolist() == expected.tolist() and source.group(1) == "b"
    assert source.groups.nbytes == 8 * 60 and len({id(group) for group in source.groups}) == 2 + 20
    digest, held = source.fingerprint(), holdout(source, 0.3, 5)
    source.groups, source._digest = expected, None
    assert source.fingerprint() == digest and all(np.array_equal(a, b) for a, b in zip(held, holdout(source, 0.3, 5), strict=True))


# ---- training ------------------------------------------------------------------------------------
def views(source, workers=0, first=0, part=None):
    """Crops of steps of three epochs, from ``first`` on; ``part`` of the joint batch."""
    spec = ViewsSpec(global_crops=(CropSpec(size=16), CropSpec(size=16)))
    made = Batches(source, spec, batch=4, seed=3, pixels=pixels(source), device="cpu", workers=workers, total=9, broken_fraction=1.0)
    if part is not None:
        made.cutter.items.joint = replace(made.cutter.joint, part=part)
    try:
        found = [made(step) for step in range(first, 9)]
    finally:
        made.close()
    return [(v.index.tolist(), *v.images, v.boxes) for v in found], set(made.broken.values())


def test_training_meets_the_views_of_the_folder_that_was_packed_from_any_step_on(tmp_path):
    """Also in a loader process, in the middle of a shard and of an epoch, in two processes' parts, and with a broken image."""
    (tmp_path / "in").mkdir()
    for i in range(14):
        noise = torch.randint(256, (20 + i, 30, 3), generator=generator(0, "image", i), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(tmp_path / "in" / f"{i}.png")
    (tmp_path / "in" / "5.png").write_bytes((tmp_path / "in" / "5.png").read_bytes()[:100])
    folder = open_data(str(tmp_path / "in"))
    pack(folder, tmp_path / "out", name="in", images=5, seed=None)
    shards = open_data(f"shards:{tmp_path / 'out'}")
    expected, broken = views(folder)
    assert len(broken) == 1
    for workers, first in ((0, 0), (0, 4), (1, 4)):
        found = views(shards, workers, first)[0]
        for a, b in zip(expected[first:], found, strict=True):
            assert a[0] == b[0] and all(torch.equal(x, y) for x, y in zip(a[1:], b[1:], strict=True))
    for part in (slice(0, 1), slice(1, 4)):
        for a, b in zip(expected, views(shards, part=part)[0], strict=True):
            assert a[0][part] == b[0]
