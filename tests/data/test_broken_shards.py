import json
import os
import subprocess
import tarfile

import numpy as np
import pytest
import torch
import webdataset
from tars import file, npy, write

from gnothi.contracts import DataError
from gnothi.data import inspect
from gnothi.data import open as open_data
from gnothi.randomness import generator


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GNOTHI_CACHE", str(tmp_path / "cache"))


# ---- broken samples and shards -------------------------------------------------------------------
def test_one_broken_sample_is_named_and_the_others_stay(tmp_path):
    path = write(tmp_path / "a.tar", [("1.png", file(1)), ("2.png", file(2)[:40]), ("3.png", b""), ("4.png", file(4))])
    source = open_data(f"shards:{path}")
    for row in (1, 2):
        for act in (source.image, source.shape) if row == 2 else (source.image,):
            with pytest.raises(DataError, match=f"^a.tar/{row + 1}.png: "):
                act(row)
    seen = inspect(source)
    assert [b["name"] for b in seen.broken] == ["a.tar/2.png", "a.tar/3.png"] and seen.n == 4 and seen.stored == {"grey": 2}


def test_a_shard_that_is_cut_at_any_byte_is_whole_or_refused_by_name(tmp_path):
    """Above all between two members, where tarfile takes what is left for a whole file. A whole one has a block of zeros behind the last member."""
    whole = write(tmp_path / "a.tar", [("1.png", file(1)), ("2.png", file(2)), ("2.cls", b"1")]).read_bytes()
    end = 6 * 512  # a header and a block each
    assert not whole[end:].strip(b"\0") and whole[end - 512 : end].strip(b"\0") == b"1"
    said = set()
    for length in sorted({*range(0, end + 1024, 23), *range(0, len(whole) + 1, 512)}):
        path = tmp_path / f"cut-{length}.tar"
        path.write_bytes(whole[:length])
        if length >= end + 512:
            source = open_data(f"shards:{path}")
            assert [int(source.image(row)[0, 0, 0]) for row in range(len(source))] == [1, 2] and source.labels.tolist() == [-1, 1]
            continue
        with pytest.raises(DataError) as caught:
            open_data(f"shards:{path}")
        assert path.name in str(caught.value) and "\n" not in str(caught.value)
        said.add(str(caught.value).partition(".tar ")[2])
    assert "is an empty file; fetch or pack it again" in said and any(one.startswith("is cut short in 2.png, after 1,5") for one in said)
    for length in (1024, 2048, 3072):
        assert f"is cut short after {length:,} bytes, before the end of the archive; fetch or pack it again" in said


@pytest.mark.parametrize("how", ["ustar", "gnu", "pax", "webdataset", "tar", "tar of one block", "two together"])
def test_whole_shards_of_every_writer_are_taken(tmp_path, how):
    members = [("1.png", file(1)), ("2.png", file(2)), ("2.cls", b"1")]
    path = tmp_path / "a.tar"
    if how == "webdataset":
        with webdataset.TarWriter(str(path)) as writer:
            writer.write({"__key__": "1", "png": file(1)})
            writer.write({"__key__": "2", "png": file(2), "cls": b"1"})
    elif how.startswith("t"):
        for name, data in members:
            (tmp_path / name).write_bytes(data)
        names = [name for name, _ in members]
        blocks = ["-b1"] if how == "tar of one block" else []
        subprocess.run(["tar", *blocks, "-cf", path, "-C", tmp_path, *names[: 1 if how == "two together" else 3]], check=True)
        if how == "two together":
            subprocess.run(["tar", "-rf", path, "-C", tmp_path, *names[1:]], check=True)
    else:
        write(path, members, format={"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}[how])
    source = open_data(f"shards:{path}")
    assert [int(source.image(row)[0, 0, 0]) for row in range(len(source))] == [1, 2] and source.labels.tolist() == [-1, 1]


def test_a_broken_header_between_samples_is_refused(tmp_path):
    path = write(tmp_path / "a.tar", [("1.png", file(1)), ("2.png", file(2))])
    data = bytearray(path.read_bytes())
    at = data.index(b"2.png")
    data[at + 10 : at + 200] = bytes(range(190))
    path.write_bytes(bytes(data))
    with pytest.raises(
        DataError, match=r"a.tar is (broken at byte 1,024, where a header should stand|no whole tar file: .*); fetch or pack it again$"
    ):
        open_data(f"shards:{path}")


@pytest.mark.parametrize(("mode", "what"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_a_compressed_shard_says_what_to_do(tmp_path, mode, what):
    path = write(tmp_path / "a.tar", [("1.png", file(1))], mode=mode)
    with pytest.raises(DataError, match=rf"a.tar is compressed \({what}\); images are read by their place in the file, so unpack it"):
        open_data(f"shards:{path}")


def test_a_sample_that_holds_an_ending_twice_is_refused(tmp_path):
    path = write(tmp_path / "a.tar", [("1.png", file(1)), ("1.png", file(2))])
    with pytest.raises(DataError, match="a.tar holds 1.png twice"):
        open_data(f"shards:{path}")


# ---- spoilt --------------------------------------------------------------------------------------
def spoilt(data, case):
    """Some bytes changed, mostly in headers: by their own generator, so that a case can be looked at again."""
    random, changed = generator(1, "spoilt", case), bytearray(data)
    for _ in range(1 + case % 4):
        block = int(torch.randint(len(data) // 512, (), generator=random)) * 512
        at = block + int(torch.randint(512 if case % 3 else 160, (), generator=random))
        changed[at] = int(torch.randint(256, (), generator=random))
        if case % 5 == 0:  # a checksum that fits, so that what the header says is believed
            header = changed[block : block + 512]
            header[148:156] = b" " * 8
            changed[block + 148 : block + 156] = b"%06o\0 " % sum(header)
    return bytes(changed)


@pytest.mark.parametrize("cases", [300, pytest.param(6000, marks=pytest.mark.slow)])
def test_a_shard_that_was_spoilt_at_random_gives_pixels_or_one_line(tmp_path, cases):
    members = [
        ("d/1.png", file(1)),
        ("d/1.cls", b"0"),
        ("d/1.json", b'{"label": "a"}'),
        ("x" * 120 + ".png", file(2)),
        ("3.npy", npy(np.ones((4, 5), np.uint8))),
    ]
    whole = write(tmp_path / "whole.tar", members).read_bytes()[:8192]
    read = refused = 0
    for case in range(cases):
        path = tmp_path / "a.tar"
        path.write_bytes(spoilt(whole, case))
        os.utime(path, ns=(case, case))
        try:
            source = open_data(f"shards:{path}")
        except DataError as error:
            refused += 1
            assert "a.tar" in str(error) and len(str(error).splitlines()) == 1 and str(error).isprintable(), case
            continue
        for row in range(len(source)):
            try:
                assert source.image(row).shape[1:] == source.shape(row)
                read += 1
            except DataError as error:
                assert len(str(error).splitlines()) == 1 and str(error).startswith("a.tar/"), case
    assert read > cases and refused > cases // 20


def test_labels_of_absurd_size_and_number_are_no_labels(tmp_path):
    rows = [
        ("1.png", file(1)),
        ("1.cls", b"9" * 300),
        ("2.png", file(2)),
        ("2.json", json.dumps({"label": "x" * 10**5}).encode()),
        ("3.png", file(3)),
        ("3.cls", b"99999999"),
    ]
    source = open_data(f"shards:{write(tmp_path / 'a.tar', rows)}")
    assert source.classes == ("99999999",) and source.labels.tolist() == [-1, -1, 0] and "2 labels cannot be read" in source.notes[0]


def test_names_that_command_a_terminal_are_written_as_escapes(tmp_path):
    source = open_data(f"shards:{write(tmp_path / 'a.tar', [('a' + chr(27) + '[2J' + chr(10) + 'b.png', b'no')] + [('c.png', file(1))])}")
    assert source.name(0) == "a.tar/a\\x1b[2J\\nb.png"
    with pytest.raises(DataError, match=r"^a.tar/a.x1b.2J.nb.png: is not an image"):
        source.image(0)
