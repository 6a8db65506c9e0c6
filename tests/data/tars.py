"""Tar files for tests, and what they hold."""

import io
import json
import tarfile

import numpy as np
from PIL import Image


def file(value, ending="png", mode="L", size=(9, 8)):
    buffer = io.BytesIO()
    Image.new(mode, size, value).save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(ending, ending.upper()))
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def write(path, members, **more):
    """A tar file of names and bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, more.pop("mode", "w"), **more) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def names(source):
    return [source.name(row) for row in range(len(source))]


def uneven(folder, endings=("png", "jpg", "webp", "tif", "bmp")):
    """Three shards of 5, 1 and 7 samples in as many forms; classes by number and name; what is seen is the value of the pixels."""
    at, values = 0, []
    for shard, n in enumerate((5, 1, 7)):
        members = []
        for _ in range(n):
            ending, value = endings[at % len(endings)], 10 * at
            members.append((f"d/{at:03d}.{ending}", file(value, ending)))
            members.append((f"d/{at:03d}.cls", str(at % 3).encode()))
            members.append((f"d/{at:03d}.json", json.dumps({"label": "abc"[at % 3], "site": f"s{at % 2}", "x": [1]}).encode()))
            values.append(value)
            at += 1
        write(folder / f"part-{shard:02d}.tar", members)
    return values
