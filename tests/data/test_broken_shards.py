import json
import os

import numpy as np
import pytest
import torch
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
    whole = write(tmp_path / "a.tar", [("1.png", file(1)), ("2.png", file(2)), ("2.cls", b"1")]).read_bytes()
    said = set()
    for length in range(0, 4096, 23):
        path = tmp_path / f"cut-{length}.tar"
        path.write_bytes(whole[:length])
        try:
            source = open_data(f"shards:{path}")
        except DataError as error:
            said.add(str(error).partition("tar ")[2])
            assert path.name in str(error) and "\n" not in str(error)
            continue
        for row in range(len(source)):
            source.image(row)
        assert len(source) == 1 + (length > 1024 + 512) and (source.labels is None or length > 3072)
    assert any(one.startswith("is cut short in 2.png, after 1,") for one in said)


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


@pytest.mark.parametrize("cases", [range(300), pytest.param(range(300, 6000), marks=pytest.mark.slow)], ids=["300", "6000"])
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
    for case in cases:
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
    assert read > len(cases) and refused > len(cases) // 20


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
