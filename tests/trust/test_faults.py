"""What a world that breaks things does to a run, with real signals to real processes: nothing is lost but the work since the last checkpoint."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from killer import SETTINGS, content, same
from processes import HERE, SMALL, begin, children, end, noise, pictures, script, small_disk, until, without_rights

import gnothi
from gnothi import pretrain
from gnothi.contracts import DataError, EncoderError, GnothiError, RunError, SettingError
from gnothi.encoders import features, load
from gnothi.report import record
from gnothi.training import changes, checkpoint, twice
from gnothi.training.lock import owned
from gnothi.training.progress import Silent
from gnothi.training.signals import Interrupted

needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")


def train(data: Path, out: Path, **more: Any) -> pretrain.Run:
    return pretrain.train(str(data), settings=SETTINGS, device="cpu", out=out, **{"progress": Silent(), **more})


def refused(kind: type[GnothiError], call: Any) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def one_line(said: str) -> str:
    """The last line of what a command said, which is the only one that tells of an error."""
    assert "Traceback" not in said
    told = [line for line in said.splitlines() if line.startswith("gnothi: ")]
    assert len(told) == 1 and said.splitlines()[-1] == told[0], said
    return told[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise(tmp_path_factory.mktemp("data") / "noise.npz")


@pytest.fixture(scope="module")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "run"
    train(data, out)
    return out


@pytest.fixture
def stopped(data: Path, tmp_path: Path) -> Path:
    """A run that was asked to stop after 10 of 18 steps."""
    with pytest.raises(Interrupted):
        train(data, tmp_path / "stopped", progress=toys.StopsAt(9))
    return tmp_path / "stopped"


# ---- signals and kills --------------------------------------------------------------------------
@pytest.mark.parametrize("rounds", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_a_run_ended_at_any_instant_goes_on_and_ends_with_the_bits_of_the_unbroken_one(rounds: int, data: Path, tmp_path: Path) -> None:
    done = script("import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')", HERE / "killer.py", data, tmp_path, rounds, seconds=600)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == rounds and "Traceback" not in done.stderr
    assert all(r["same"] and r["tidy"] for r in found), found
    every = 3
    for r in found:  # a checkpoint that was due before the last whole line of metrics is there
        assert r["kept"] >= (r["done"] - 1) // every * every, r
        assert r["code"] in {"SIGKILL": (-9, 0), "SIGINT": (130, 0), "SIGTERM": (143, -15, 0)}[r["kind"]], r
    assert min(Counter(r["kind"] for r in found).values()) >= rounds // 4 and len({r["kind"] for r in found if r["code"]}) == 3
    inside = sum(r["inside"] for r in found if r["aimed"])
    assert inside >= rounds / 8, "too few of the signals met a checkpoint that was being written"


# ---- full disks ---------------------------------------------------------------------------------
WRITES = """
import json, resource, sys
from pathlib import Path
from gnothi import encoders, export
from gnothi.contracts import GnothiError
from gnothi.data import open as open_data
from gnothi.encoders import embed, features, load
from gnothi.training import checkpoint
import torch
run, data, place, most = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
network, source = load(run, "cpu"), open_data(data)
pixels = load("pixels")
before = sorted(str(p) for p in place.rglob("*"))
if most:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
actions = {
    "checkpoint": lambda: checkpoint.write(place, 7, {"a": torch.ones(100000)}, {}),
    "features": lambda: features(pixels, source, cache=place / "cache"),
    "export": lambda: export.export(network, place / "exported", onnx=False, data=source),
}
for ending in ("npy", "npz", "parquet", "safetensors"):
    actions[ending] = lambda ending=ending: embed(pixels, source, place / f"e.{ending}")
for name, action in actions.items():
    try:
        action()
        said = "written"
    except (GnothiError, OSError) as error:
        said = f"{type(error).__name__}: {error}"
    print(json.dumps([name, said]))
after = sorted(str(p) for p in place.rglob("*") if p.is_file())
print(json.dumps(["left", [p for p in after if p not in before]]))
"""


def writes(run: Path, data: Path, place: Path, most: int) -> dict[str, Any]:
    done = script(WRITES, run, data, place, most)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.fixture(scope="module")
def exportable(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data, and a short run on them whose encoder can be exported."""
    place = tmp_path_factory.mktemp("exportable")
    data = noise(place / "noise.npz", n=64, side=32)
    pretrain.train(
        str(data),
        settings={"training": {"epochs": 1, "batch": 16, "threads": 1}, "views": {"size": 16}, "method": {"hidden": 8, "out": 8}},
        device="cpu",
        out=place / "run",
        progress=Silent(),
    )
    return data, place / "run"


@pytest.mark.slow
def test_where_a_file_cannot_grow_it_is_said_and_nothing_half_written_stays(exportable: tuple[Path, Path], tmp_path: Path) -> None:
    data, run = exportable
    said = writes(run, data, tmp_path, 50_000)
    assert said.pop("left") == []
    for name, words in said.items():
        assert "\n" not in words and "too large" in words.lower() or "requested and" in words, (name, words)
    assert said["features"].startswith("RunError") and "nothing that was there is lost" in said["features"]


@pytest.mark.slow
def test_on_a_full_disk_it_is_said_and_nothing_half_written_stays(exportable: tuple[Path, Path], tmp_path: Path) -> None:
    data, run = exportable
    with small_disk(tmp_path / "disk", 65_536):
        said = writes(run, data, tmp_path / "disk", 0)
        assert said.pop("left") == []
        for name, words in said.items():
            assert "\n" not in words and ("no space left" in words.lower() or "requested and" in words), (name, words)


@pytest.mark.slow
def test_a_run_that_fills_the_disk_keeps_its_checkpoints_and_goes_on_when_there_is_room(data: Path, tmp_path: Path) -> None:
    args = ("train", data, *SMALL)
    assert end(begin(*args, "--out", tmp_path / "whole"))[0] == 0
    size = checkpoint.list_of(tmp_path / "whole")[-1].stat().st_size
    with small_disk(tmp_path / "disk", int(2.6 * size) + 64 * 1024) as resize:
        out = tmp_path / "disk/run"
        code, said = end(begin(*args, "--out", out))
        assert code == 1 and "no space left" in one_line(said) and "go on" in one_line(said)
        kept = checkpoint.list_of(out)
        assert [checkpoint.read(path)[1]["step"] for path in kept] == [4, 8]
        assert not list(out.glob(".*.tmp"))
        resize(64 << 20)
        assert end(begin(*args, "--out", out, "--resume"))[0] == 0
        assert same(out, tmp_path / "whole")


# ---- files that were cut short or altered -------------------------------------------------------
@pytest.mark.parametrize("damage", ["a number of the header", "the order of names", "half"])
def test_an_altered_checkpoint_is_noticed_and_the_one_before_used(
    damage: str, stopped: Path, data: Path, unbroken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint.newest(stopped)
    assert path is not None and checkpoint.step_of(path) == 10
    raw = path.read_bytes()
    altered = {
        "a number of the header": raw.replace(b'\\"total\\": 18', b'\\"total\\": 19'),
        "the order of names": raw.replace(b'"method.backbone.', b'"method.kcabbone.', 1),
        "half": raw[: len(raw) // 2],
    }[damage]
    assert altered != raw
    path.write_bytes(altered)
    train(data, stopped, resume=True)
    assert f"{path.name}: " in (said := capsys.readouterr().err) and "the one before is used" in said
    assert same(stopped, unbroken)


@pytest.mark.parametrize("damage", ["cut short", "a setting", "empty", "no text"])
def test_an_altered_spec_is_noticed_and_its_copy_used(
    damage: str, stopped: Path, data: Path, unbroken: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = stopped / "spec.json"
    text = path.read_text()
    altered = text.replace('"hidden": 64', '"hidden": 65')
    assert altered != text
    path.write_bytes({"cut short": text[:-40].encode(), "a setting": altered.encode(), "empty": b"", "no text": b"\xff\xfe\x00"}[damage])
    with caplog.at_level(logging.WARNING):
        assert load(str(stopped), "cpu").dim == 8
        assert record.read(stopped).settings["method"]["name"] == "dino"
    assert [r.getMessage().endswith("its copy .spec.json is used") for r in caplog.records] == [True, True]
    train(data, stopped, resume=True)
    assert "its copy .spec.json is used" in capsys.readouterr().err
    assert same(stopped, unbroken) and twice.read(stopped)["settings"]["method"]["hidden"] == 64


def test_where_both_copies_of_a_spec_are_altered_it_is_said(stopped: Path, data: Path) -> None:
    for name in (twice.NAME, twice.COPY):
        (stopped / name).write_text((stopped / name).read_text().replace('"seed": 0', '"seed": 1'))
    assert "spec.json was altered since it was written" in refused(SettingError, lambda: train(data, stopped, resume=True))
    assert "spec.json was altered since it was written" in refused(EncoderError, lambda: load(str(stopped), "cpu"))
    assert "spec.json was altered since it was written" in refused(EncoderError, lambda: record.read(stopped))


def test_a_checkpoint_of_another_network_is_refused_in_one_line(stopped: Path, data: Path, unbroken: Path) -> None:
    tensors, about = checkpoint.read(checkpoint.list_of(stopped)[-1])
    tensors["method.backbone.strange"] = tensors.pop(next(k for k in tensors if k.startswith("method.backbone.")))
    checkpoint.write(stopped, 11, tensors, about)
    assert "the checkpoint is another network's" in refused(RunError, lambda: train(data, stopped, resume=True))


def test_strange_files_among_the_checkpoints_and_lines_among_the_metrics_do_not_stop_a_run(stopped: Path, data: Path, unbroken: Path) -> None:
    (stopped / "step-new.safetensors").write_bytes(b"x")
    with (stopped / "metrics.jsonl").open("ab") as file:
        file.write(b'[1, 2]\n"step"\n{"step": "x"}\nnull\n\xff\xfe\n{"kind": "tr')
    train(data, stopped, resume=True)
    assert same(stopped, unbroken)


@pytest.mark.parametrize("damage", ["a byte", "cut short", "another object", "no text", "header"])
def test_damaged_features_are_told_of_and_computed_again(damage: str, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder, source = load("colour"), gnothi.data.open(str(data))
    expected = np.array(features(encoder, source, cache=tmp_path))
    path = next(tmp_path.glob("*.npy"))
    raw = path.read_bytes()
    if damage in ("another object", "no text"):
        path.with_suffix(".json").write_bytes(b"[]" if damage == "another object" else b"\xff\xfe")
    else:
        path.write_bytes({"a byte": raw[:-1] + bytes([raw[-1] ^ 1]), "cut short": raw[:-8], "header": raw.replace(b"(48,", b"(99,")}[damage])
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(features(encoder, source, cache=tmp_path), expected)
    assert [f"{path} is broken or was changed; its features are computed again"] == [r.getMessage() for r in caplog.records]


# ---- two runs, one folder -----------------------------------------------------------------------
HOLDS = """
import os, sys, time
from pathlib import Path
from gnothi.training.lock import owned
with owned(Path(sys.argv[1])):
    if os.fork() == 0:
        time.sleep(20)  # a loader process that outlives its parent
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_killed_run_does_not_block_though_its_loaders_live_on(tmp_path: Path) -> None:
    import subprocess

    holder = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert "is in use by another run" in refused(SettingError, lambda: owned(tmp_path / "run").__enter__())
        holder.kill()
        holder.wait()
        os.killpg(holder.pid, 0)  # its child lives
        with owned(tmp_path / "run"):
            pass
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.stdout.close()


# ---- data that change, clocks that jump ---------------------------------------------------------
def test_data_that_changed_are_refused_and_what_changed_is_named(tmp_path: Path) -> None:
    folder, out = pictures(tmp_path / "pictures"), tmp_path / "run"
    with pytest.raises(Interrupted):
        train(folder, out, progress=toys.StopsAt(3))
    (folder / "000.png").unlink()
    (folder / "new\nname.png").write_bytes((folder / "001.png").read_bytes())
    (folder / "002.png").write_bytes((folder / "003.png").read_bytes())
    said = refused(DataError, lambda: train(folder, out, resume=True))
    assert "(48 images then, 48 now; 1 new, such as new\\nname.png; 1 changed, such as 002.png; 1 gone); --out begins another run" in said


@pytest.mark.parametrize("what", ["pixels", "labels", "count"])
def test_arrays_that_changed_are_refused_and_what_changed_is_named(what: str, data: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.npz"
    own.write_bytes(data.read_bytes())
    with pytest.raises(Interrupted):
        train(own, tmp_path / "run", progress=toys.StopsAt(3))
    arrays = dict(np.load(own))
    if what == "pixels":
        arrays["images"][7, 0, 0, 0] ^= 1
    elif what == "labels":
        arrays["labels"][7] = 0
    else:
        arrays = {k: v[:-2] for k, v in arrays.items()}
    np.savez(own, **arrays)
    told = {"pixels": "48 now; 1 changed, such as row 7)", "labels": "48 now; the same images with other labels, classes or groups)"}
    assert told.get(what, "46 now; 2 gone)") in refused(DataError, lambda: train(own, tmp_path / "run", resume=True))


def test_without_an_account_of_the_images_their_change_is_refused_all_the_same(data: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.npz"
    own.write_bytes(data.read_bytes())
    with pytest.raises(Interrupted):
        train(own, tmp_path / "run", progress=toys.StopsAt(3))
    (tmp_path / "run" / changes.FILE).write_bytes(b"x")
    np.savez(own, **{k: v[:-2] for k, v in np.load(own).items()})
    assert "(48 images then, 46 now); --out" in refused(DataError, lambda: train(own, tmp_path / "run", resume=True))


def test_a_clock_that_jumps_changes_nothing(data: Path, tmp_path: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: (-1) ** next(jumps) * 1e9)
    run = train(data, tmp_path / "run")
    assert same(tmp_path / "run", unbroken)
    seconds = [m["seconds"] for m in run.metrics if m["kind"] == "train"]
    assert 0 <= run.verdict["seconds"] < 600 and seconds == sorted(seconds) and seconds[0] >= 0
    assert all(0 <= m["waiting"] <= 1 and m["images_per_second"] > 0 for m in run.metrics if m["kind"] == "train")


# ---- permissions --------------------------------------------------------------------------------
WITHOUT = """
import json, os, sys
os.environ["HOME"] = os.environ["GNOTHI_CACHE"] = sys.argv[1] + "/home"
os.chdir(sys.argv[1])
import terminal
small = json.loads(sys.argv[2])
calls = {
    "reads": ("train", "pictures", "--out", "mine/run", *small),
    "out": ("train", "pictures", "--out", "closed/run", *small),
    "file": ("data", "odd"),
    "folder": ("data", "locked"),
    "embed": ("embed", "colour", "pictures", "--out", "closed/e.npy"),
    "array": ("data", "secret.npz"),
    "checkpoint": ("evaluate", "knn", "theirs", "--data", "pictures"),
}
for name, args in calls.items():
    done = terminal.gnothi(*args)
    print(json.dumps([name, done.code, done.err if name != "file" else done.out]))
"""


@pytest.fixture(scope="module")
def permissions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """What somebody without rights is told."""
    place = tmp_path_factory.mktemp("permissions")
    pictures(place / "pictures", n=32)
    pictures(place / "odd", n=32)
    pictures(place / "locked")
    noise(place / "secret.npz")
    for name in ("mine", "closed", "home", "theirs"):
        (place / name).mkdir()
    (place / "theirs/spec.json").write_text("{}")
    for name, mode in {"odd/003.png": 0, "locked": 0, "secret.npz": 0, "theirs/spec.json": 0, "closed": 0o555, "pictures": 0o555}.items():
        (place / name).chmod(mode)
    before = {p.name: p.stat().st_mtime_ns for p in (place / "pictures").iterdir()}
    done = script(WITHOUT, place, json.dumps(SMALL), preexec_fn=without_rights)
    for name in ("locked", "closed", "pictures"):
        (place / name).chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert {p.name: p.stat().st_mtime_ns for p in (place / "pictures").iterdir()} == before
    return {name: (code, said) for name, code, said in (json.loads(line) for line in done.stdout.splitlines())}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="gives up rights as Linux has them")
@pytest.mark.parametrize(
    ("what", "code", "words"),
    [
        ("reads", 0, ""),
        ("out", 2, "--out closed/run: cannot be written to (permission denied)"),
        ("file", 0, "003.png: cannot be read: [Errno 13] Permission denied"),
        ("folder", 2, "locked cannot be used: permission denied"),
        ("embed", 2, "closed cannot be used: permission denied"),
        ("array", 2, "secret.npz: cannot be read"),
        ("checkpoint", 2, "theirs/spec.json cannot be read: PermissionError"),
    ],
)
def test_without_the_rights_one_line_says_which(what: str, code: int, words: str, permissions: dict[str, tuple[int, str]]) -> None:
    assert permissions[what][0] == code and words in permissions[what][1], permissions[what]
    assert code == 0 or len(permissions[what][1].splitlines()) == 1


# ---- loader processes ---------------------------------------------------------------------------
@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("how", ["killed", "no memory"])
def test_a_loader_that_dies_stops_the_run_in_one_line_and_resume_ends_as_the_unbroken_run(how: str, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures", n=32, side=128 if how == "no memory" else 24)
    args = ("train", folder, *SMALL, "--epochs", "12", "--set", "training.workers=1")
    whole = begin(*args, "--out", tmp_path / "whole")
    run = begin(*args, "--out", tmp_path / "run")
    until(lambda: len(checkpoint.list_of(tmp_path / "run")) > 0 and children(run.pid))
    loader = children(run.pid)[0]
    if how == "killed":
        os.kill(loader, signal.SIGKILL)
    else:
        resource.prlimit(loader, resource.RLIMIT_AS, (1 << 20, 1 << 20))  # whatever it asks for from now on, it does not get
    code, said = end(run)
    assert code == 1, said
    assert "loader process" in one_line(said) or "memory" in one_line(said)
    assert end(whole)[0] == 0
    assert end(begin(*args, "--out", tmp_path / "run", "--resume"))[0] == 0
    assert same(tmp_path / "run", tmp_path / "whole")


def test_no_memory_for_an_image_is_said_in_one_line(data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from gnothi.views.reading import FromSource

    folder = pictures(tmp_path / "pictures", n=16)

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(FromSource, "_load", full)
    said = refused(RunError, lambda: train(folder, tmp_path / "run"))
    assert said.startswith("no memory left while images were read; fewer loader processes (training.workers)")


def test_content_tells_runs_apart(unbroken: Path, data: Path, tmp_path: Path) -> None:
    """The oracle of this file is no constant."""
    pretrain.train(str(data), settings={**SETTINGS, "seed": 1}, device="cpu", out=tmp_path / "other", progress=Silent())
    assert not same(unbroken, tmp_path / "other")
    assert content(unbroken)[1] != content(tmp_path / "other")[1]
    assert all(torch.isfinite(v).all() for v in content(unbroken)[0].values() if v.is_floating_point())
