"""Fits that descend, through shards in a folder and cut off on their way: the numbers are those of an unbroken fit in memory."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from terminal import gnothi, said
from test_descent import drawn as features_drawn
from test_fitted import drawn, made
from torch import Tensor

from gnothi.contracts import RunError, SettingError
from gnothi.ensemble import Ensemble, fit, make
from gnothi.ensemble.bank import Bank
from gnothi.training import checkpoint
from gnothi.training.lock import owned

SMALL: dict[str, Any] = {"width": 6, "hidden": 16, "epochs": 7, "batch": 32, "shard": 50, "drop": 0.3, "l2": 1e-3, "holdout": 0.1}


class Cut(Exception):
    """The end of a fit that is cut off."""


@pytest.fixture(scope="module")
def features() -> list[Tensor]:
    return [x.float() for x in features_drawn()]


def cut_at(features: list[Tensor], combiner: str, folder: Path, steps: int, **settings: Any) -> None:
    """Begin a fit and end it after so many steps."""

    def hears(done: int, total: int, loss: float) -> None:
        if done == steps:
            raise Cut

    with pytest.raises(Cut):
        fit(features, combiner, folder=folder, hears=hears, **settings)


def same(a: Ensemble, b: Ensemble) -> bool:
    """Networks, histories and what else was logged, bit for bit."""
    records = [{k: v for k, v in x.record.items() if k != "seconds"} for x in (a, b)]
    return a.fingerprint == b.fingerprint and records[0] == records[1]


@pytest.mark.parametrize(
    ("combiner", "more"),
    [("descent", {}), ("amortised", {}), ("descent", {"optimiser": "sgd", "lr_codes": 0.1}), ("descent", {"shard": 500, "holdout": 0})],
)
def test_shards_in_a_folder_give_the_numbers_of_a_fit_in_memory(features: list[Tensor], combiner: str, more: dict, tmp_path: Path) -> None:
    settings = {**SMALL, **more}
    inside, outside = fit(features, combiner, **settings), fit(features, combiner, folder=tmp_path / "state", **settings)
    assert same(inside, outside)
    rows, codes = outside.fitted.trained
    assert torch.equal(codes, inside.fitted.trained[1][: len(rows)]) and torch.equal(rows, inside.fitted.trained[0][: len(rows)])


def test_a_fit_through_shards_fits_as_well_as_one_of_a_single_shard(features: list[Tensor]) -> None:
    """Rows are visited in another order, and that is all."""
    apart, whole = (fit(features, "descent", **{**SMALL, "epochs": 15, "batch": 10, "shard": shard, "drop": 0}) for shard in (50, 500))
    losses = [sum(x.record["loss_by_member"]) for x in (apart, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert not same(apart, whole)


def test_no_more_than_a_shard_is_in_memory_and_its_older_state_goes(features: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most, right = [], Bank.shard

    def watched(bank: Bank, number: int, version: int) -> Any:
        rows = right(bank, number, version)
        most.append(sum(len(held.rows) for held in bank.held.values()))
        return rows

    monkeypatch.setattr(Bank, "shard", watched)
    fit(features, "descent", folder=tmp_path, **SMALL)
    assert max(most) == 50
    kept = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.safetensors"))
    assert kept == [*(f"shard-{k:05d}/step-0000007.safetensors" for k in range(4)), "step-0000028.safetensors"]


@pytest.mark.parametrize("combiner", ["descent", "amortised"])
@pytest.mark.parametrize("steps", [1, 9, 30, 47])
def test_a_fit_cut_off_goes_on_and_ends_with_the_same_numbers(features: list[Tensor], combiner: str, steps: int, tmp_path: Path) -> None:
    cut_at(features, combiner, tmp_path, steps, **SMALL)
    heard: list[int] = []
    again = fit(features, combiner, folder=tmp_path, hears=lambda done, total, loss: heard.append(done), **SMALL)
    assert same(again, fit(features, combiner, **SMALL))
    assert heard[0] > steps - 3 and heard[-1] == 49  # what was visited is not visited again


def test_a_fit_of_a_single_shard_goes_on_too(features: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gnothi.ensemble.fitting.EVERY", 0.0)
    settings = {**SMALL, "shard": 500}
    cut_at(features, "descent", tmp_path, 23, **settings)
    assert same(fit(features, "descent", folder=tmp_path, **settings), fit(features, "descent", **settings))


@pytest.mark.parametrize("visit", [1, 6])
def test_cut_off_between_a_shard_and_the_rest_a_fit_takes_the_shard_as_it_was(
    features: list[Tensor], visit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = checkpoint.write

    def cut(folder: Path, step: int, *rest: Any, **more: Any) -> Path:
        if folder == tmp_path and step == visit:
            raise Cut
        return right(folder, step, *rest, **more)

    monkeypatch.setattr(checkpoint, "write", cut)
    with pytest.raises(Cut):
        fit(features, "descent", folder=tmp_path, **SMALL)
    monkeypatch.undo()
    assert same(fit(features, "descent", folder=tmp_path, **SMALL), fit(features, "descent", **SMALL))


def test_early_stopping_counts_on_where_it_was(tmp_path: Path) -> None:
    from gnothi.randomness import generator

    noise = [torch.randn(60, 30, generator=generator(s, "noise")) for s in range(2)]
    settings = {"epochs": 40, "hidden": 64, "holdout": 0.3, "lr_networks": 0.02, "start_power": 0.25, "patience": 1, "shard": 25, "batch": 25}
    whole = fit(noise, "descent", **settings)
    ended = whole.record["history"][-1]["epoch"]
    assert ended < 40
    cut_at(noise, "descent", tmp_path, 2 * (ended - 3) + 1, **settings)
    assert same(fit(noise, "descent", folder=tmp_path, **settings), whole)
    heard: list[int] = []
    again = fit(noise, "descent", folder=tmp_path, hears=lambda *told: heard.append(told[0]), **settings)  # ended before: nothing is left to do
    assert same(again, whole) and heard == []


def test_a_shard_that_was_altered_is_named(features: list[Tensor], tmp_path: Path) -> None:
    cut_at(features, "descent", tmp_path, 30, **SMALL)
    for path in tmp_path.glob("shard-*/*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    with pytest.raises(RunError, match=f"altered since it was written .*; remove {tmp_path} to fit anew$"):
        fit(features, "descent", folder=tmp_path, **SMALL)


def test_without_a_state_that_can_be_read_a_fit_begins_anew(features: list[Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cut_at(features, "descent", tmp_path, 30, **SMALL)
    (state,) = tmp_path.glob("step-*.safetensors")
    state.write_bytes(state.read_bytes()[:-1] + b"\x07")
    assert same(fit(features, "descent", folder=tmp_path, **SMALL), fit(features, "descent", **SMALL))
    assert "altered since it was written" in caplog.text


def test_two_fits_of_the_same_are_not_at_work_in_the_same_place(features: list[Tensor], tmp_path: Path) -> None:
    with owned(tmp_path), pytest.raises(SettingError, match="is in use by another run"):
        fit(features, "descent", folder=tmp_path, **SMALL)


# ---- folders ------------------------------------------------------------------------------------------
@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GNOTHI_CACHE", str(tmp_path / "cache"))


MEMBERS = ["hog", "colour"]
QUICK = {"epochs": 6, "hidden": 16, "width": 8, "batch": 8, "shard": 16}


def test_a_fit_of_other_settings_does_not_go_on_from_this_one(cache: None, tmp_path: Path) -> None:
    def hears(done: int, total: int, loss: float) -> None:
        if done == 20:
            raise Cut

    out, other = tmp_path / "together", {**QUICK, "lr_codes": 0.2}
    with pytest.raises(Cut):
        make(MEMBERS, drawn(), out, "descent", QUICK, hears=hears)
    assert [p.name[:5] for p in out.iterdir()] == [".fit-"]
    again = make(MEMBERS, drawn(), out, "descent", other)
    assert again.fingerprint == make(MEMBERS, drawn(), tmp_path / "fresh", "descent", other).fingerprint
    assert {p.name for p in out.iterdir()} == {"ensemble.json", "ensemble.safetensors"}


DRIVER = """
import sys
import gnothi.ensemble.fitting as fitting
from gnothi import cli
fitting.EVERY = 0.0
sys.argv = ["gnothi", *sys.argv[1:]]
cli.main()
"""


@pytest.mark.parametrize("shard", [30, 100])
def test_a_killed_command_goes_on_and_ends_with_the_same_bytes(cache: None, shard: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("tiny.npz", images=drawn().array.movedim(1, 3).numpy())
    settings = {"epochs": 20, "hidden": 16, "width": 8, "batch": 8, "shard": shard, "patience": 100}
    sets = [word for k, v in settings.items() for word in ("--set", f"{k}={v}")]
    command = ["ensemble", "fit", *MEMBERS, "--data", "tiny.npz", "--combiner", "descent", *sets, "--out"]
    with subprocess.Popen([sys.executable, "-c", DRIVER, *command, "killed"], stderr=subprocess.PIPE) as began:
        while began.poll() is None and not list(Path("killed").glob(".fit-*/step-*.safetensors")):
            time.sleep(0.002)
        began.send_signal(signal.SIGKILL)
        assert began.wait(60) == -signal.SIGKILL
    (state,) = Path("killed").glob(".fit-*")
    newest = checkpoint.newest(state)
    assert newest is not None and 0 < checkpoint.step_of(newest) < 20 * (2 if shard == 30 else 1)
    done = gnothi(*command, "killed")
    assert done.code == 0 and "step " in done.err and "left" in done.err
    said(*command, "whole")
    assert Path("killed/ensemble.safetensors").read_bytes() == Path("whole/ensemble.safetensors").read_bytes()
    assert load_file("killed/ensemble.safetensors").keys() and not list(Path("killed").glob(".fit-*"))


def test_a_closed_form_leaves_nothing_beside_its_files(cache: None, tmp_path: Path) -> None:
    assert {p.name for p in made(tmp_path).iterdir()} == {"ensemble.json", "ensemble.safetensors"}
