"""From images to a run folder and back, also through signals and kills at the worst moments."""

from __future__ import annotations

import copy
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys

import gnothi
from gnothi import pretrain
from gnothi.auxiliary import AUXILIARIES, AuxiliarySpec
from gnothi.contracts import DataError, GnothiError, SettingError, Step
from gnothi.evaluate import knn
from gnothi.plan import plan
from gnothi.randomness import generator
from gnothi.training import checkpoint
from gnothi.training.progress import Silent
from gnothi.training.signals import Interrupted

N, SIZE, BATCH, STEPS = 48, 16, 8, 24
SETTINGS: dict[str, Any] = {
    "backbone": {"name": "micro-resnet", "args": {"widths": [4, 8]}},
    "method": {"name": "dino", "hidden": 16, "out": 8, "prototypes": 16, "frozen_until": 0.2},
    "views": {"size": SIZE},
    "training": {"epochs": 4, "batch": BATCH, "threads": 1, "log_every": "3 steps", "health_every": "5 steps", "checkpoint_every": "4 steps"},
}
TIMES = ("seconds", "images_per_second", "waiting")


class Hears(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said = ""

    def say(self, text: str) -> None:
        self.said += text + "\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "noise.npz"
    images = torch.randint(256, (N, SIZE, SIZE, 3), generator=generator(0, "images"), dtype=torch.uint8)
    np.savez(path, images=images.numpy(), labels=np.arange(N) % 3)
    return path


def train(data: Path, out: Path, *, resume: bool = False, progress: Silent | None = None, **changes: Any) -> pretrain.Run:
    settings = {k: {**v, **changes.get(k, {})} for k, v in SETTINGS.items()} | {k: v for k, v in changes.items() if k not in SETTINGS}
    return pretrain.train(str(data), settings=settings, device="cpu", out=out, resume=resume, progress=progress or Silent())


def content(out: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """The last checkpoint, and the metrics without times."""
    newest = checkpoint.newest(out)
    assert newest is not None and checkpoint.step_of(newest) == STEPS
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return checkpoint.read(newest)[0], [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def equal(a: Path, b: Path) -> bool:
    (x, lines_x), (y, lines_y) = content(a), content(b)
    return lines_x == lines_y and x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


@pytest.fixture(scope="module")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "run"
    train(data, out)
    return out


# ---- signals and kills, in processes of their own -----------------------------------------------
DRIVER = """
import json, os, signal, sys
import torch
from gnothi import pretrain
from gnothi.contracts import GnothiError
from gnothi.training import checkpoint
from gnothi.training.learner import Learner
from gnothi.training.progress import Silent
how, data, out, settings = sys.argv[1:]
step, write = Learner.step, checkpoint._write
def at_step_11(self):
    step(self)
    if self.number == 11 and how != "in a checkpoint":
        os.kill(os.getpid(), getattr(signal, how))
def half(path, data):
    if "step-0000012" in path.name:
        write(path, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, data)
Learner.step = at_step_11
if how == "in a checkpoint":
    checkpoint._write = half
try:
    pretrain.train(data, settings=json.loads(settings), device="cpu", out=out, progress=Silent())
except GnothiError as error:
    print(error)
    sys.exit(error.exit_code)
"""
ENDS = {"SIGKILL": (-9, 8), "in a checkpoint": (-9, 8), "SIGINT": (130, 11), "SIGTERM": (143, 11)}
"""How the process ends, and after which step its last checkpoint was written."""


@pytest.fixture(scope="module")
def ended(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[int, str, Path]]]:
    """Return code, output and run folder by kind of end; all side by side."""
    root = tmp_path_factory.mktemp("ended")
    outs = {how: root / how.replace(" ", "-") for how in ENDS}
    runs = {
        how: subprocess.Popen([sys.executable, "-c", DRIVER, how, str(data), str(outs[how]), json.dumps(SETTINGS)], stdout=subprocess.PIPE, text=True)
        for how in ENDS
    }
    said = {how: p.communicate(timeout=120)[0] for how, p in runs.items()}
    yield {how: (p.returncode, said[how], outs[how]) for how, p in runs.items()}


@pytest.mark.parametrize("how", ENDS)
def test_a_run_ended_from_outside_goes_on_as_if_it_had_not_been(how: str, ended: dict[str, Any], data: Path, unbroken: Path) -> None:
    code, said, out = ended[how]
    assert (code, checkpoint.step_of(checkpoint.newest(out))) == ENDS[how]
    if code > 0:
        assert said.strip() == "stopped after step 11 of 24; go on with --resume"
    if how == "in a checkpoint":
        assert len(list(out.glob(".step-0000012*.tmp"))) == 1
    train(data, out, resume=True)
    assert equal(out, unbroken)
    assert not list(out.glob(".*.tmp"))


# ---- resume -------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("name", toys.NAMES)
def test_two_epochs_a_stop_and_two_more_equal_four(name: str, data: Path, tmp_path: Path) -> None:
    changes = {"method": {"name": name, "hidden": 16, "out": 8}, "optimiser": {"name": "adamw" if name == "moco" else "sgd"}}
    settings = {**SETTINGS, **changes}

    def go(out: str, **more: Any) -> None:
        pretrain.train(str(data), settings=settings, device="cpu", out=tmp_path / out, **{"progress": Silent(), **more})

    go("whole")
    with pytest.raises(Interrupted):
        go("parts", progress=toys.StopsAt(STEPS // 2 - 1))
    go("parts", resume=True)
    assert equal(tmp_path / "parts", tmp_path / "whole")


def test_a_damaged_checkpoint_is_told_of_and_the_one_before_is_used(
    data: Path, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Interrupted):
        train(data, tmp_path, progress=toys.StopsAt(9))
    newest = checkpoint.newest(tmp_path)
    assert checkpoint.step_of(newest) == 10
    newest.write_bytes(newest.read_bytes()[:-100])
    train(data, tmp_path, resume=True)
    assert "step-0000010.safetensors: not a whole checkpoint" in capsys.readouterr().err
    assert equal(tmp_path, unbroken)


def test_a_run_killed_before_its_first_checkpoint_begins_again(data: Path, unbroken: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(data, tmp_path, progress=toys.StopsAt(1))
    for path in checkpoint.list_of(tmp_path):
        path.unlink()
    train(data, tmp_path, resume=True)
    assert equal(tmp_path, unbroken)


def test_resuming_a_finished_run_changes_nothing(data: Path, unbroken: Path) -> None:
    before = content(unbroken)[1]
    run = train(data, unbroken, resume=True)
    assert content(unbroken)[1] == before
    assert run.verdict["steps"] == STEPS


def test_at_the_end_both_networks_take_their_statistics_from_whole_images(data: Path, unbroken: Path, tmp_path: Path) -> None:
    train(data, tmp_path, training={"plain_statistics": False})
    crops, whole = content(tmp_path)[0], content(unbroken)[0]
    images = torch.from_numpy(np.load(data)["images"]).permute(0, 3, 1, 2).double() / 255
    pixels = json.loads((unbroken / "spec.json").read_text())["derived"]["pixels"]
    mean, std = (torch.tensor(pixels[k], dtype=torch.float64)[:, None, None] for k in ("mean", "std"))
    for network in ("method.backbone", "method.slow"):
        said = torch.nn.functional.conv2d((images - mean) / std, whole[f"{network}.conv1.weight"].double(), padding=1)
        torch.testing.assert_close(whole[f"{network}.bn1.running_mean"].double(), said.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(whole[f"{network}.bn1.running_var"].double(), said.transpose(0, 1).flatten(1).var(1), rtol=1e-4, atol=1e-5)
        assert (crops[f"{network}.bn1.running_var"] / whole[f"{network}.bn1.running_var"] - 1).abs().max() > 0.01
    differ = {k for k in whole if not torch.equal(whole[k], crops[k])}
    assert differ and all(k.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked") for k in differ)


def test_without_a_folder_s_name_the_default_one_is_resumed_and_checked_alike(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(data, None)
    assert (tmp_path / "runs/noise-dino/spec.json").exists()
    with pytest.raises(SettingError, match=r"runs/noise-dino was begun with training.epochs=4.0, not 5.0; --resume keeps"):
        train(data, None, resume=True, training={"epochs": 5})


# ---- refusals -----------------------------------------------------------------------------------
def refused(call: Callable[[], Any], kind: type[GnothiError]) -> str:
    """The one line of an error of the user's."""
    with pytest.raises(kind) as caught:
        call()
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"method": {"name": "simclr"}}, "method.name=dino, not simclr"),
        ({"training": {"batch": 16}}, "training.batch=8, not 16"),
        ({"seed": 3}, "seed=0, not 3"),
        ({"method": {"momentum": 0.5}}, "method.momentum=0.98, not 0.5"),
    ],
)
def test_changed_settings_are_refused_at_resume(changes: dict[str, Any], expected: str, data: Path, unbroken: Path) -> None:
    said = refused(lambda: train(data, unbroken, resume=True, **changes), SettingError)
    assert said == f"{unbroken} was begun with {expected}; --resume keeps a run's settings, --out begins another"


def test_a_source_from_python_is_trained_on_as_its_name_would_be(data: Path, unbroken: Path, tmp_path: Path) -> None:
    run = gnothi.train(gnothi.data.open(str(data)), out=tmp_path / "run", settings=SETTINGS, progress=Silent(), device="cpu")
    expected, found = (checkpoint.read(checkpoint.newest(folder))[0] for folder in (unbroken, run.folder))  # type: ignore[arg-type]
    assert expected.keys() == found.keys() and all(torch.equal(expected[k], found[k]) for k in expected)


class Cells:
    """A dataset as people have them."""

    def __init__(self, n: int) -> None:
        self.images, self.targets = (
            torch.randint(256, (n, 3, SIZE, SIZE), generator=generator(1, "cells"), dtype=torch.uint8),
            [i % 3 for i in range(n)],
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return self.images[row], self.targets[row]


def test_a_dataset_from_python_is_stopped_gone_on_with_and_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source, short = gnothi.data.from_dataset(Cells(N)), {**SETTINGS, "training": {**SETTINGS["training"], "workers": 1}}
    whole = gnothi.train(source, settings=short, progress=Silent(), device="cpu")
    assert whole.folder == Path("runs/Cells-dino") and len(source.dataset.targets) == N
    with pytest.raises(DataError, match="^runs/Cells-dino was begun with python:Cells, not photos; --resume keeps a run's data$"):
        gnothi.train("photos", out=whole.folder, resume=True, progress=Silent())
    with pytest.raises(DataError, match=f"^python:Cells is not as it was when runs/Cells-dino began \\({N} images then, {N - 1} now"):
        gnothi.train(gnothi.data.from_dataset(Cells(N - 1)), out=whole.folder, resume=True, progress=Silent())
    for late in sorted(whole.folder.glob("step-*"))[1:]:
        late.unlink()
    (whole.folder / "verdict.json").unlink()
    before = {p.name for p in whole.folder.glob("step-*")}
    again = gnothi.train(gnothi.data.from_dataset(Cells(N)), out=whole.folder, resume=True, progress=Silent(), device="cpu")
    assert len(before) == 1 and [m["loss"] for m in again.metrics if m["kind"] == "train"] == [
        m["loss"] for m in whole.metrics if m["kind"] == "train"
    ]
    with pytest.raises(DataError, match="^python:Cells was given to gnothi.train from Python, where alone it is; gnothi.data.pack"):
        gnothi.data.open("python:Cells")
    with pytest.raises(SettingError, match="^data.labels says how a name is opened; python:Cells is open, and is taken as it is$"):
        gnothi.train(source, out="x", settings={"data": {"labels": "x.csv"}})
    page = gnothi.report.write(whole.folder).read_text()
    assert "python:Cells" in page and "gnothi.data.pack" in page


def test_a_wrong_setting_is_named_at_resume_too(data: Path, unbroken: Path) -> None:
    said = refused(lambda: train(data, unbroken, resume=True, training={"epoch": 4}), SettingError)
    assert said == "training.epoch: no such setting; did you mean training.epochs?"


def test_other_or_changed_data_are_refused_at_resume(data: Path, tmp_path: Path) -> None:
    own, out = tmp_path / "own.npz", tmp_path / "run"
    own.write_bytes(data.read_bytes())
    train(own, out, training={"epochs": 1})
    assert "was begun with" in refused(lambda: train(data, out, resume=True, training={"epochs": 1}), DataError)
    arrays = dict(np.load(own))
    arrays["images"][0, 0, 0, 0] ^= 1
    np.savez(own, **arrays)
    said = refused(lambda: train(own, out, resume=True, training={"epochs": 1}), DataError)
    assert said.startswith(f"{own} is not as it was when {out} began (48 images then, 48 now; 1 changed, such as row 0)")


def test_a_folder_that_holds_a_run_is_not_overwritten(data: Path, unbroken: Path) -> None:
    assert "is a run already; --resume goes on with it" in refused(lambda: train(data, unbroken), SettingError)


def test_a_second_run_in_one_folder_is_refused_while_the_first_goes_on(data: Path, tmp_path: Path) -> None:
    with pretrain.owned(tmp_path):
        holder = subprocess.run(
            [sys.executable, "-c", f"import fcntl; fcntl.flock(open({str(tmp_path / '.lock')!r}), fcntl.LOCK_EX | fcntl.LOCK_NB)"],
            capture_output=True,
        )
        assert holder.returncode  # another process cannot have it
        assert "is in use by another run; --out takes another folder" in refused(lambda: train(data, tmp_path), SettingError)
    with (tmp_path / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free again


@pytest.mark.parametrize("name", ["simclr", "moco", "swav", "barlow", "vicreg"])
def test_methods_that_compare_a_batch_refuse_to_accumulate_by_name(name: str, data: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "method": {"name": name}, "training": {"batch": 8, "accumulate": 2, "epochs": 1}}
    said = refused(lambda: pretrain.train(str(data), settings=settings, out=tmp_path), SettingError)
    assert said.startswith(f"training.accumulate must be 1 for {name}") and said.endswith("byol, simsiam, dino can accumulate")


# ---- the folder ---------------------------------------------------------------------------------
def test_resuming_says_from_where_or_that_there_is_nothing_to_resume(data: Path, tmp_path: Path) -> None:
    first, second = Hears(), Hears()
    with pytest.raises(Interrupted):
        first.update = toys.StopsAt(6).update  # type: ignore[method-assign]
        train(data, tmp_path / "run", resume=True, progress=first)
    train(data, tmp_path / "run", resume=True, progress=second)
    assert f"nothing in {tmp_path / 'run'} to go on with: begins" in first.said and "goes on after" not in first.said
    assert "goes on after step 7" in second.said and "begins" not in second.said


def test_a_run_folder_says_what_it_is(data: Path, unbroken: Path) -> None:
    record = json.loads((unbroken / "spec.json").read_text())
    assert record["gnothi"] == gnothi.__version__ and record["init"] is None
    assert record["settings"]["method"]["name"] == "dino" and record["settings"]["training"]["batch"] == BATCH
    derived = record["derived"]
    assert (derived["channels"], derived["size"], derived["n"], derived["steps"], derived["steps_per_epoch"]) == (3, SIZE, N, STEPS, N // BATCH)
    images = np.load(data)["images"] / 255
    np.testing.assert_allclose(derived["pixels"]["mean"], images.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(derived["pixels"]["std"], images.std((0, 1, 2)), rtol=1e-3)
    verdict = json.loads((unbroken / "verdict.json").read_text())
    assert verdict["steps"] == STEPS and verdict["broken"] == [] and verdict["verdict"] in ("healthy", "undecided", "collapsed")
    keys = {k.split(".")[0] + "." + k.split(".")[1] for k in content(unbroken)[0] if not k.startswith("window")}
    assert {"method.backbone", "method.slow", "method.space", "optimiser.momentum_buffer"} == keys
    assert json.loads((unbroken / "environment.json").read_text())["torch"] == torch.__version__


def test_pretraining_goes_on_from_the_weights_of_another_run(data: Path, unbroken: Path, tmp_path: Path) -> None:
    resolved = pretrain.resolve(str(data), settings=SETTINGS, device="cpu")
    started, fresh = pretrain.build(resolved, str(unbroken)), pretrain.build(resolved)
    tensors, _ = content(unbroken)
    # DINO's teacher is the encoder of a run.
    for key, value in started.method.backbone.state_dict().items():
        assert torch.equal(value, tensors[f"method.slow.{key}"]), key
    for key, value in fresh.method.space.state_dict().items():
        assert torch.equal(value, started.method.space.state_dict()[key])


def test_what_is_said_wins_over_the_rules(data: Path) -> None:
    by_rule = pretrain.resolve(str(data), settings=SETTINGS, device="cpu").spec.optimiser
    said = pretrain.resolve(str(data), settings={**SETTINGS, "optimiser": {"lr": 0.5, "weight_decay": 0.3}}, device="cpu").spec.optimiser
    assert (said.lr, said.weight_decay, said.name) == (0.5, 0.3, by_rule.name)
    assert by_rule.lr != 0.5 and by_rule.weight_decay != 0.3


def test_along_the_way_images_held_out_ask_and_those_of_training_answer(data: Path) -> None:
    resolved = pretrain.resolve(str(data), settings={**SETTINGS, "data": {"holdout": 0.25}}, device="cpu")
    held, kept = resolved.held, np.setdiff1d(np.arange(N), resolved.held)
    assert len(held) == N // 4 and np.array_equal(resolved.kept.rows, kept)
    method = pretrain.build(resolved).method
    with torch.no_grad():
        for p in method.backbone.parameters():
            p.zero_()  # DINO's encoder is its teacher
        images = resolved.pixels.normalise(resolved.pixels.unit(resolved.source.array))
        x = copy.deepcopy(method.slow).eval()(images).pooled
    labels = resolved.source.labels
    expected = knn(x[kept], labels[kept], x[held], labels[held], k=20, temperature=0.07)
    (line,) = pretrain.Along(resolved)(method, Step(0, 4, STEPS))
    assert line == {k: getattr(expected, k) for k in ("metric", "value", "low", "high", "n", "protocol")}
    assert expected.value > 0 and "36 training rows" in line["protocol"]


def test_an_auxiliary_of_weight_zero_is_not_built_and_the_run_is_bit_for_bit_the_one_without(
    data: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(AUXILIARIES, "nudge", (AuxiliarySpec, toys.Nudge))
    train(data, tmp_path / "zero", auxiliary={"nudge": {"weight": 0}})
    assert equal(tmp_path / "zero", unbroken)
    train(data, tmp_path / "some", auxiliary={"nudge": {"weight": 0.5}})
    lines = content(tmp_path / "some")[1]
    assert lines[0]["weights"] == {"dino": 1.0, "nudge": 0.5} and "nudge" in lines[0]["terms"]
    with pytest.raises(Interrupted):
        train(data, tmp_path / "parts", auxiliary={"nudge": {"weight": 0.5}}, progress=toys.StopsAt(6))
    train(data, tmp_path / "parts", auxiliary={"nudge": {"weight": 0.5}}, resume=True)
    assert equal(tmp_path / "parts", tmp_path / "some")


@pytest.mark.parametrize(("name", "other"), [("rotation", "layers"), ("layers", "rotation"), ("local", "layers")])
def test_an_auxiliary_begins_alike_whatever_stands_beside_it(name: str, other: str, data: Path) -> None:
    def weights(**auxiliary: float) -> dict[str, torch.Tensor]:
        chosen = {**SETTINGS, "auxiliary": {name: {"weight": weight} for name, weight in auxiliary.items()}}
        return pretrain.build(pretrain.resolve(str(data), settings=chosen, device="cpu")).auxiliaries[name].state_dict()

    alone = weights(**{name: 1.0})
    assert alone
    for beside in (0.0, 0.4):
        for found in (weights(**{other: beside, name: 1.0}), weights(**{name: 1.0, other: beside})):
            assert found.keys() == alone.keys() and all(torch.equal(found[k], alone[k]) for k in alone)


def test_local_crops_that_no_patch_divides_are_refused_before_a_folder_is_there(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="views.local_size must be a multiple of the patch size 4, got 10; 8 and 12 are nearest"):
        train(data, tmp_path / "run", backbone={"name": "micro-vit", "args": {}, "patch_size": 4}, views={"local": 1, "local_size": 10})
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_without_the_weights_that_it_began_from(data: Path, unbroken: Path, tmp_path: Path) -> None:
    settings = {k: dict(v) for k, v in SETTINGS.items()}
    begin = tmp_path / "begin"
    shutil.copytree(unbroken, begin)
    more: dict[str, Any] = {"settings": settings, "device": "cpu", "init": str(begin)}
    pretrain.train(str(data), out=tmp_path / "whole", progress=Silent(), **more)
    with pytest.raises(Interrupted):
        pretrain.train(str(data), out=tmp_path / "parts", progress=toys.StopsAt(6), **more)
    shutil.rmtree(begin)
    pretrain.train(str(data), out=tmp_path / "parts", resume=True, progress=Silent())
    assert equal(tmp_path / "parts", tmp_path / "whole")
    assert json.loads((tmp_path / "parts" / "spec.json").read_text())["init"] == str(begin)


def test_going_on_keeps_the_device(data: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(data, tmp_path / "run", progress=toys.StopsAt(6))
    assert pretrain._recorded(tmp_path / "run") == "cpu" and pretrain._recorded(tmp_path / "none") is None and pretrain._recorded(None) is None
    with pytest.raises(SettingError, match="was begun with --device=cpu, not meta"):
        pretrain._again(tmp_path / "run", str(data), None, None, None, "meta")


def test_a_home_folder_is_understood(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert train(data, Path("~/run")).folder == tmp_path / "run" and not (tmp_path / "~").exists()


def test_along_the_way_nobody_asks_where_no_label_answers(data: Path) -> None:
    resolved = pretrain.resolve(str(data), settings={**SETTINGS, "data": {"holdout": 0.25}}, device="cpu")
    along, method = pretrain.Along(resolved), pretrain.build(resolved).method
    along.train = along.train[:0]  # few labels, all of images that are held out
    assert along(method, Step(0, 4, STEPS)) == []


def test_a_run_that_is_gone_on_with_keeps_the_command_that_began_it(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gnothi", "train", "--set", "seed=3"])
    with pytest.raises(Interrupted):
        train(data, tmp_path / "run", progress=toys.StopsAt(6))
    monkeypatch.setattr(sys, "argv", ["gnothi", "train", "--resume"])
    train(data, tmp_path / "run", resume=True)
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["command"] == ["gnothi", "train", "--set", "seed=3"]


def test_planning_keeps_nothing_and_counts_what_a_run_would_do(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    resolved = pretrain.resolve(str(data), settings=SETTINGS, device="cpu")
    cost = plan(resolved)
    assert cost["steps"] == STEPS and cost["seconds"] >= STEPS * cost["step_seconds"]
    assert cost["parameters"] == sum(p.numel() for p in pretrain.build(resolved).method.backbone.parameters())
    assert os.listdir(tmp_path) == []
