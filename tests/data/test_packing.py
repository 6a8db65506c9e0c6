import fcntl
import json
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from terminal import Done, gnothi, said

from gnothi.contracts import DataError, SettingError
from gnothi.data import ArraySource, DataSpec, Subset, inspect
from gnothi.data import open as open_data
from gnothi.data.packing import pack
from gnothi.randomness import generator


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GNOTHI_CACHE", str(tmp_path / "cache"))


def images(folder, n=11):
    """Two classes, several forms, one broken file, names with dots and twins by ending."""
    for i in range(n):
        path = folder / ("cat" if i % 3 else "dog") / f"a.{i}.{('png', 'jpg', 'tif')[i % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 8 + i), (20 * i, 3, 7)).save(path)
    Image.new("RGB", (9, 8), 1).save(folder / "cat" / "twin.png")
    Image.new("RGB", (9, 8), 2).save(folder / "cat" / "twin.jpg")
    (folder / "dog" / "broken.png").write_bytes(b"\x89PNG no")
    return folder


def members(out):
    """Names in each shard."""
    found = []
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            found.append(tar.getnames())
    return found


def contents(source):
    """By content: label, group and how often."""
    found = []
    for row in range(len(source)):
        stored = source.stored(row).data
        found.append((stored, source.classes[source.label(row)] if source.label(row) is not None else None, source.group(row)))
    return sorted(found, key=repr)


def test_a_folder_comes_back_byte_by_byte_with_its_labels_and_groups(tmp_path):
    folder = images(tmp_path / "in")
    (tmp_path / "groups.csv").write_text(
        "file,label,group\n" + "".join(f"{p.name},{p.parent.name},g{len(p.name) % 2}\n" for p in folder.rglob("*.*"))
    )
    source = open_data(str(folder), settings=DataSpec(labels=str(tmp_path / "groups.csv")))
    done = pack(source, tmp_path / "out", name="in", images=5, seed=None)
    assert (done.images, done.shards, done.found, done.left_out) == (14, 3, 0, ())
    packed = open_data(f"shards:{tmp_path / 'out'}")
    assert {name.count("/") for names in members(tmp_path / "out") for name in names} == {1}
    expected = sorted(((p.read_bytes(), p.parent.name, f"g{len(p.name) % 2}") for p in folder.rglob("*.*")), key=repr)
    assert contents(packed) == expected and packed.classes == source.classes
    a, b = inspect(source), inspect(packed)
    for field in ("n", "channels", "dtype", "sizes", "classes", "groups", "stored"):
        assert getattr(a, field) == getattr(b, field)
    assert len(b.broken) == 1 and "dog/broken.png" in b.broken[0]["name"]


def test_the_order_is_drawn_by_the_seed_and_every_image_lies_in_one_shard(tmp_path):
    source = open_data(str(images(tmp_path / "in")))
    for name, seed in (("a", 0), ("b", 0), ("c", 1), ("d", None)):
        pack(source, tmp_path / name, name="in", images=5, seed=seed)
    shards = {name: [p.read_bytes() for p in sorted((tmp_path / name).glob("*.tar"))] for name in "abcd"}
    assert shards["a"] == shards["b"] != shards["c"]
    order = torch.randperm(len(source), generator=generator(1, "pack")).tolist()
    packed = open_data(f"shards:{tmp_path / 'c'}")
    assert [packed.stored(row).data for row in range(len(packed))] == [(tmp_path / "in" / source.paths[row]).read_bytes() for row in order]
    assert [packed.stored(r).data for r in range(3)] != [open_data(f"shards:{tmp_path / 'd'}").stored(r).data for r in range(3)]


@pytest.mark.parametrize(
    ("shape", "dtype", "ending"), [((3,), "uint8", "png"), ((1,), "uint16", "png"), ((5,), "uint16", "npy"), ((2,), "float32", "npy")]
)
def test_images_that_are_no_files_keep_every_bit(tmp_path, shape, dtype, ending):
    numbers = torch.randint(0, 60000 if dtype == "uint16" else 250, (6, *shape, 9, 7), generator=generator(0, "pixels")).numpy().astype(dtype)
    source = Subset(ArraySource(numbers, [0, 1, 1, 0, 1, -1], ["no", "yes"], axes="NCHW"), [5, 3, 1, 0])
    pack(source, tmp_path / "out", name="x", seed=None)
    packed = open_data(f"shards:{tmp_path / 'out'}")
    assert [packed.name(row) for row in range(4)] == [f"part-00000.tar/{row:08d}.{ending}" for row in range(4)]
    assert np.array_equal(np.stack([packed.image(row).numpy() for row in range(4)]), numbers[[5, 3, 1, 0]])
    assert packed.labels.tolist() == [-1, 0, 1, 0] and packed.classes == ("no", "yes") and packed.dtype == source.dtype


def test_a_shard_holds_at_most_the_megabytes_asked_for_but_one_image(tmp_path):
    (tmp_path / "in").mkdir()
    sizes = [0.3, 0.3, 0.5, 1.7, 0.1, 0.1]
    for i, size in enumerate(sizes):
        tifffile.imwrite(tmp_path / "in" / f"{i}.tif", np.zeros((100, round(size * 1e4)), np.uint8))
    done = pack(open_data(str(tmp_path / "in")), tmp_path / "out", name="in", megabytes=1.0, seed=None)
    held = [[name[0] for name in names] for names in members(tmp_path / "out")]
    assert held == [["0", "1"], ["2"], ["3"], ["4", "5"]] and done.shards == 4


def test_shards_can_be_packed_again_into_others(tmp_path):
    source = open_data(str(images(tmp_path / "in")))
    pack(source, tmp_path / "a", name="in", images=4)
    pack(open_data(f"shards:{tmp_path / 'a'}"), tmp_path / "b", name="a", images=6)
    assert contents(open_data(f"shards:{tmp_path / 'a'}")) == contents(open_data(f"shards:{tmp_path / 'b'}"))


# ---- what is there already -----------------------------------------------------------------------
class Damaged(ArraySource):
    """Whose images 2, 3 and 7 cannot be read."""

    def image(self, row, shrink=1):
        if row in (2, 3, 7):
            raise DataError(f"row {row}: cannot be decoded")
        return super().image(row)


def test_what_was_left_out_is_not_counted_the_next_time_either(tmp_path):
    """Also where a shard is written anew, where a killed process kept no count, and beside a record of an earlier version."""
    source, out = Damaged(np.zeros((10, 8, 8), np.uint8)), tmp_path / "out"
    first = pack(source, out, name="x", images=4, seed=None)
    assert (first.images, first.shards, first.found, len(first.left_out)) == (7, 3, 0, 3)
    plan = json.loads((out / "pack.json").read_text())
    assert plan["held"] == {"part-00000.tar": 2, "part-00001.tar": 3, "part-00002.tar": 2} and len(open_data(f"shards:{out}")) == 7
    again = pack(source, out, name="x", images=4, seed=None)
    assert (again.images, again.shards, again.found, again.left_out) == (7, 3, 3, ())
    (out / "part-00001.tar").unlink()
    part = pack(source, out, name="x", images=4, seed=None)
    assert (part.images, part.found, part.left_out) == (7, 2, ("row 7: cannot be decoded",))
    del plan["held"]
    (out / "pack.json").write_text(json.dumps(plan))
    older = pack(source, out, name="x", images=4, seed=None)
    assert (older.images, older.found) == (7, 3) and json.loads((out / "pack.json").read_text())["held"]["part-00000.tar"] == 2


def test_packing_goes_on_and_refuses_to_mix_or_overwrite(tmp_path):
    source, out = open_data(str(images(tmp_path / "in"))), tmp_path / "out"
    pack(source, out, name="in", images=4)
    whole = {p.name: p.read_bytes() for p in out.glob("*.tar")}
    (out / "part-00002.tar").unlink()
    (out / ".part-00002.tar.77.tmp").write_bytes(b"half")
    times = {p.name: p.stat().st_mtime_ns for p in out.glob("*.tar")}
    assert pack(source, out, name="in", images=4).found == 3
    assert {p.name: p.read_bytes() for p in out.glob("*.tar")} == whole and not list(out.glob(".*.tmp"))
    assert all((out / name).stat().st_mtime_ns == time for name, time in times.items())
    with pytest.raises(SettingError, match="was packed with seed 0, not 1; --overwrite replaces its shards, --out takes another folder"):
        pack(source, out, name="in", images=4, seed=1)
    assert {p.name: p.read_bytes() for p in out.glob("*.tar")} == whole
    assert pack(source, out, name="in", images=10, seed=1, overwrite=True).shards == 2
    (out / "thesis.doc").write_text("mine")
    with pytest.raises(SettingError, match="holds thesis.doc already; --out takes another folder"):
        pack(source, out, name="in", images=4, overwrite=True)
    assert (out / "thesis.doc").read_text() == "mine" and len(list(out.glob("*.tar"))) == 2


@pytest.mark.parametrize(("given", "message"), [({"images": 0}, "at least one image, got 0"), ({"megabytes": -1.0}, "at least one image, got -1.0")])
def test_a_limit_that_cannot_be_is_refused(tmp_path, given, message):
    source = ArraySource(np.zeros((2, 8, 8), np.uint8))
    with pytest.raises(SettingError, match=message):
        pack(source, tmp_path / "out", name="x", **given)
    with pytest.raises(SettingError, match="give one of them"):
        pack(source, tmp_path / "out", name="x", images=1, megabytes=1.0)
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match="must be a folder, got a file"):
        pack(source, tmp_path / "file", name="x")


def test_two_processes_do_not_pack_into_one_folder(tmp_path):
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SettingError, match="is being packed by another process"):
            pack(ArraySource(np.zeros((2, 8, 8), np.uint8)), tmp_path / "out", name="x")


def test_a_process_that_is_killed_loses_no_whole_shard(tmp_path):
    folder = images(tmp_path / "in", 120)
    command = [sys.executable, "-m", "gnothi", "pack", str(folder), "--out", str(tmp_path / "out"), "--images", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as began:
        while len(list((tmp_path / "out").glob("part-*.tar"))) < 20 and began.poll() is None:
            time.sleep(0.002)
        began.send_signal(signal.SIGKILL)
    found = len(list((tmp_path / "out").glob("part-*.tar")))
    done = said("pack", str(folder), "--out", str(tmp_path / "out"), "--images", "1")["packed"][0]
    assert (done["shards"], done["images"]) == (123, 123) and 20 <= done["found"] == found
    assert len(contents(open_data(f"shards:{tmp_path / 'out'}"))) == 123


# ---- the verb ------------------------------------------------------------------------------------
def test_the_verb_packs_splits_into_folders_and_says_what_it_did(tmp_path):
    images(tmp_path / "in" / "train")
    images(tmp_path / "in" / "test", 4)
    done = gnothi("pack", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--images", "10")
    assert done.code == 0, done.err
    assert done.out.startswith("14 images in 2 shards (0.1 MB): shards:") and "7 images in 1 shards" in done.out
    seen = said("data", f"shards:{tmp_path / 'out'}")
    assert seen["n"] == 14 and seen["test"]["n"] == 7 and seen["classes"] == {"cat": 9, "dog": 5}
    again = gnothi("pack", f"{tmp_path / 'in'}@test", "--out", str(tmp_path / "out" / "test"), "--images", "9")
    assert again == Done(2, "", f"gnothi: --out {tmp_path / 'out' / 'test'} was packed with images 10, not 9; --overwrite replaces its shards, "
                                "--out takes another folder\n")  # fmt: skip
    assert json.loads((tmp_path / "out" / "test" / "pack.json").read_text())["images"] == 10
