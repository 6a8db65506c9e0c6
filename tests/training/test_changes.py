"""What changed between the stop of a run and its resume is named, also where images lie many in a file."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import toys
from PIL import Image

from gnothi import pretrain
from gnothi.contracts import DataError, Source
from gnothi.data import ArraySource
from gnothi.data import open as open_data
from gnothi.training import changes
from gnothi.training.progress import Silent
from gnothi.training.signals import Interrupted

SETTINGS: dict[str, Any] = {
    "method": {"hidden": 8, "out": 8},
    "views": {"size": 16},
    "data": {"holdout": 0},
    "training": {"epochs": 2, "batch": 8, "threads": 1, "checkpoint_every": "2 steps"},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GNOTHI_CACHE", str(tmp_path / "cache"))


def shard(path: Path, first: int, n: int = 8) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i in range(first, first + n):
            buffer = io.BytesIO()
            Image.new("RGB", (20, 20), (3 * i, i, 255 - i)).save(buffer, "PNG")
            member = tarfile.TarInfo(f"{i}.png")
            member.size = len(buffer.getvalue())
            tar.addfile(member, io.BytesIO(buffer.getvalue()))


def slide(path: Path, value: int) -> None:
    path.parent.mkdir(exist_ok=True)
    tifffile.imwrite(path, np.full((96, 64, 3), value, np.uint8), tile=(32, 32), photometric="rgb")


def touched(path: Path) -> None:
    """A time of change of its own, however coarse the clock of the disk."""
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 10**9))


def test_a_shard_that_changed_between_stop_and_resume_is_refused_and_named(tmp_path: Path) -> None:
    data, out = tmp_path / "shards", tmp_path / "run"
    for i in range(4):
        shard(data / f"part-{i}.tar", 8 * i)
    with pytest.raises(Interrupted):
        pretrain.train(f"shards:{data}", settings=SETTINGS, device="cpu", out=out, progress=toys.StopsAt(3))
    (data / "part-0.tar").unlink()
    shard(data / "part-2.tar", 60)
    touched(data / "part-2.tar")
    shard(data / "part-4.tar", 50)
    with pytest.raises(DataError) as caught:
        pretrain.train(f"shards:{data}", settings=SETTINGS, device="cpu", out=out, resume=True, progress=Silent())
    said = str(caught.value)
    assert "(32 images then, 32 now; 1 new, such as part-4.tar; 1 changed, such as part-2.tar; 1 gone); --out begins another run" in said


def told(tmp_path: Path, before: Source, after: Source) -> str:
    changes.write(tmp_path / changes.FILE, before)
    return changes.told(tmp_path / changes.FILE, after)


def test_a_file_of_tiles_that_changed_is_named(tmp_path: Path) -> None:
    for i in range(3):
        slide(tmp_path / "slides" / f"{i}.tif", i)
    before = open_data(f"tiles:{tmp_path / 'slides'}")
    assert told(tmp_path, before, before) == "; the same images with other labels, classes or groups"
    account = changes.account(before)
    assert account is not None and account.shape == (3, 2)
    (tmp_path / "slides" / "0.tif").unlink()
    slide(tmp_path / "slides" / "1.tif", 9)
    touched(tmp_path / "slides" / "1.tif")
    slide(tmp_path / "slides" / "new\nname.tif", 9)
    assert changes.told(tmp_path / changes.FILE, open_data(f"tiles:{tmp_path / 'slides'}")) == (
        "; 1 new, such as new\\nname.tif; 1 changed, such as 1.tif; 1 gone"
    )


def test_shards_are_accounted_for_however_many_images_they_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "MOST", 10)
    shard(tmp_path / "shards" / "a.tar", 0, 12)
    found = changes.account(open_data(f"shards:{tmp_path / 'shards'}"))
    assert found is not None and found.shape == (1, 2)
    assert changes.account(ArraySource(np.zeros((11, 8, 8), np.uint8))) is None
