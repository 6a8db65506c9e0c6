from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gnothi import files
from gnothi.contracts import RunError
from gnothi.training import checkpoint

TENSORS = {
    "a.weight": torch.arange(6.0).view(2, 3),
    "a.count": torch.tensor(7),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 4),
}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def test_a_checkpoint_gives_back_what_it_got(tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path, 12, TENSORS, {"seconds": 1.5, "broken": {"x.png": ["cut short", 2]}})
    tensors, about = checkpoint.read(path)
    assert path.name == "step-0000012.safetensors" and checkpoint.step_of(path) == 12
    assert equal(tensors, TENSORS)
    assert about["seconds"] == 1.5 and about["broken"] == {"x.png": ["cut short", 2]} and about["step"] == 12


def test_tensors_that_share_storage_or_lie_in_another_order_are_written_whole(tmp_path: Path) -> None:
    x = torch.arange(48.0).view(2, 2, 3, 4).contiguous(memory_format=torch.channels_last)
    tensors, _ = checkpoint.read(checkpoint.write(tmp_path, 1, {"x": x, "view": x[0], "turned": x.mT}, {}))
    assert equal(tensors, {"x": x, "view": x[0], "turned": x.mT})


def test_a_written_file_is_plain_safetensors_with_json_in_its_header(tmp_path: Path) -> None:
    data = checkpoint.write(tmp_path, 3, TENSORS, {"total": 9}).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert json.loads(header["__metadata__"]["gnothi"])["total"] == 9
    assert set(header) - {"__metadata__"} == set(TENSORS)


def test_only_the_newest_stay(tmp_path: Path) -> None:
    for step in (5, 10, 9_999_999, 10_000_000):
        checkpoint.write(tmp_path, step, TENSORS, {}, keep=3)
    assert [checkpoint.step_of(p) for p in checkpoint.list_of(tmp_path)] == [10, 9_999_999, 10_000_000]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in checkpoint.list_of(tmp_path))  # no temporary file is left


@pytest.mark.parametrize("keep", [1, 2])
def test_what_is_written_stays_where_broken_ones_are_of_later_steps(tmp_path: Path, keep: int) -> None:
    for step in (130, 137):
        checkpoint.path_of(tmp_path, step).write_bytes(b"cut short")
    for step in (10, 20):
        path = checkpoint.write(tmp_path, step, TENSORS, {}, keep=keep)
        assert checkpoint.newest(tmp_path) == path and len(checkpoint.list_of(tmp_path)) == keep


def test_the_only_checkpoint_is_not_said_to_have_one_before_it(tmp_path: Path) -> None:
    said: list[str] = []
    for step in (3, 5):
        checkpoint.path_of(tmp_path, step).write_bytes(b"cut short")
    assert checkpoint.newest(tmp_path, said.append) is None
    assert [line.rpartition("; ")[2] for line in said] == ["the one before is used", "none is before it"]


@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.999])
def test_a_cut_file_is_detected_and_the_one_before_used(tmp_path: Path, part: float) -> None:
    before = checkpoint.write(tmp_path, 1, TENSORS, {})
    path = checkpoint.write(tmp_path, 2, TENSORS, {})
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(RunError, match="step-0000002.safetensors: not a whole checkpoint"):
        checkpoint.read(path)
    heard: list[str] = []
    assert checkpoint.newest(tmp_path, heard.append) == before
    assert len(heard) == 1 and heard[0].endswith("the one before is used")


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_changed_byte_of_the_tensors_is_detected(tmp_path_factory: pytest.TempPathFactory, place: int, change: int) -> None:
    path = checkpoint.write(tmp_path_factory.mktemp("run"), 2, {"a": torch.arange(500.0)}, {})
    data = bytearray(path.read_bytes())
    data[-1 - place % 2000] ^= change
    path.write_bytes(bytes(data))
    with pytest.raises(RunError, match="altered since it was written"):
        checkpoint.read(path)


def test_another_safetensors_file_is_no_checkpoint(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "step-0000001.safetensors")
    with pytest.raises(RunError, match="not a whole checkpoint"):
        checkpoint.read(tmp_path / "step-0000001.safetensors")
    assert checkpoint.newest(tmp_path) is None


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    files.write_text(path, "old")

    def fails(temporary: Path) -> None:
        temporary.write_bytes(b"half of the n")
        raise OSError("disk full")

    with pytest.raises(RunError, match="spec.json cannot be written: disk full; nothing that was there is lost"):
        files.replace_file(path, fails)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[tuple[str, int]] = []
    named = Path.replace

    def name(temporary: Path, path: Path) -> Path:
        happened.append(("named", temporary.stat().st_ino))
        return named(temporary, path)

    monkeypatch.setattr(os, "fsync", lambda file: happened.append(("flushed", os.fstat(file).st_ino)))
    monkeypatch.setattr(Path, "replace", name)
    files.write_text(tmp_path / "spec.json", "new")
    number = (tmp_path / "spec.json").stat().st_ino
    assert happened == [("flushed", number), ("named", number)]


def test_the_digest_sees_names_types_shapes_and_bits() -> None:
    x = torch.arange(6.0)
    others = [{"b": x}, {"a": x.double()}, {"a": x.view(2, 3)}, {"a": x + 1}, {"a": x, "b": x}, {"a": torch.where(x == 0, -0.0, x)}]
    assert len({checkpoint.digest(t) for t in [{"a": x}, *others]}) == 7
    assert checkpoint.digest({"a": x, "b": x}) == checkpoint.digest({"b": x, "a": x.clone()})
