"""The table of methods: arms that fail, equal time, and lightly's draws; nothing learns here."""

from __future__ import annotations

import json
import random
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments import cifar_methods, images
from gnothi.contracts import DataError, RunError


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Whose results lie in a folder of the test's own."""
    monkeypatch.setattr(cifar_methods, "RESULTS", tmp_path / "found.json")
    return cifar_methods.Study(tmp_path / "cifar.npz", 20, 1, tmp_path)


def test_an_arm_that_diverges_stands_there_with_the_reason_and_the_next_ones_run(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def lightly(self: Any, method: str, seed: int) -> dict[str, Any]:
        asked.append(method)
        if method == "vicreg":
            raise FloatingPointError("the loss is nan in epoch 3")
        return {"value": 0.5}

    def gnothi(self: Any, method: str, seed: int) -> dict[str, Any]:
        raise RunError('term "simclr" became nan at step 7')

    for kind, arm in (("lightly", lightly), ("gnothi", gnothi)):
        monkeypatch.setattr(cifar_methods.Study, kind, arm)
    cifar_methods.RESULTS.write_text(json.dumps({"pixels": {"value": 0.25}}))
    for _ in range(2):  # the second time nothing is asked again
        for arm in ("pixels", "lightly vicreg 0", "lightly simclr 0", "gnothi simclr 0"):
            study.run(arm)
    found = json.loads(cifar_methods.RESULTS.read_text())
    assert asked == ["vicreg", "simclr"] and found["pixels"] == {"value": 0.25}
    assert found["lightly vicreg 0"] == {"failed": "the loss is nan in epoch 3", "threads": 1}
    assert "became nan" in found["gnothi simclr 0"]["failed"] and found["lightly simclr 0"]["value"] == 0.5


def test_equal_time_is_as_many_of_lightly_s_epochs_as_its_steps_allow(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar_methods.Study, "paces", lambda *_: [0.3, 0.5])
    monkeypatch.setattr(cifar_methods.Study, "lightly", lambda self, method, seed, epochs: {"value": 0.1, "epochs": epochs})
    found = study.run("time simclr 0")
    assert found["epochs"] == 12 and found["steps"] == {"gnothi": 0.3, "lightly": 0.5}
    monkeypatch.setattr(cifar_methods.Study, "paces", lambda *_: [0.301, 0.5])
    assert study.run("time byol 0")["epochs"] == 13


def test_steps_are_timed_in_turn_by_the_processor_and_the_median_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that steps move: 1 and 2 s, ten times as long at first and every fifth time."""
    now, order = [0.0], list[str]()
    monkeypatch.setattr(time, "process_time", lambda: now[0])

    def step(name: str, seconds: float) -> None:
        times = order.count(name)
        order.append(name)
        now[0] += seconds * (10 if times < cifar_methods.WARM or times % 5 == 0 else 1)

    assert cifar_methods.in_turn(lambda: step("ours", 1.0), lambda: step("theirs", 2.0)) == [1.0, 2.0]
    assert order == ["ours", "theirs"] * (cifar_methods.WARM + cifar_methods.STEPS)


def halves(folder: Path) -> Path:
    """train.npz and test.npz of ten images of each of two classes."""
    folder.mkdir(exist_ok=True)
    for split in ("train", "test"):
        np.savez(folder / f"{split}.npz", images=np.zeros((20, 2, 2, 3), np.uint8), labels=np.repeat([0, 1], 10))
    return folder


def test_names_and_results_that_are_wrong_are_refused_before_anything_trains(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(cifar_methods.Study, "run", lambda self, arm: ran.append(arm))
    data, out = halves(tmp_path / "some"), ["--out", str(tmp_path / "out")]

    def refused(*words: str, data: Path = data) -> str:
        with pytest.raises(SystemExit) as stopped:
            cifar_methods.main([*words, "--data", str(data), *out])
        assert stopped.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "did you mean time simclr 0?" in refused("pixels", "time simclr")
    assert "did you mean gnothi byol 2?" in refused("pixels", "gnothi byoll 2")
    assert "must hold train.npz and test.npz" in refused(data=tmp_path / "nowhere")
    cifar_methods.RESULTS.write_text(json.dumps({"pixels": {}, "time byol 0": {"epochs": 7}, "lightly byol 0": {"epochs": 40}}))
    assert "holds arms of 40 epochs, not of 20" in refused("pixels") and ran == []
    cifar_methods.main(["pixels", "time dino 12", "--epochs", "40", "--data", str(data), *out])
    assert ran == ["pixels", "time dino 12"]
    assert "is of data some" in refused("pixels", "--epochs", "40", data=halves(tmp_path / "others"))


def test_images_that_are_there_are_those_that_are_asked_for(tmp_path: Path) -> None:
    some, others, path = halves(tmp_path / "some"), halves(tmp_path / "others"), tmp_path / "out" / "images.npz"
    images.write_images(some, path, 10, 10)
    images.write_images(some, path, 10, 10)
    for asked in ((others, path, 10, 10), (some, path, 20, 10), (some, path, 10, 20), (some, path, 10, 10, True)):
        with pytest.raises(DataError, match="is of data some, train 10, test 10, asking False, not of"):
            images.write_images(*asked)
    path.with_suffix(".json").unlink()
    images.write_images(others, path, 10, 10)  # a file of before says nothing


def test_images_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", images=np.zeros((20, 2, 2, 3), np.uint8), labels=np.repeat([0, 1], 10))
    whole = np.savez

    def cut(file: Any, **parts: Any) -> None:
        whole(file, **dict(list(parts.items())[:1]))
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", cut)
    with pytest.raises(KeyboardInterrupt):
        images.write_images(tmp_path, tmp_path / "some.npz", 10, 10)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["test.npz", "train.npz"]


def test_lightly_draws_the_same_views_of_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its solarisation draws from NumPy's generator, other things from Python's: each is left in another state before."""
    pytest.importorskip("lightly", reason="pip install 'gnothi[test]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from experiments import lightly_recipes
    seen: list[list[float]] = []

    def recipe(encode: torch.nn.Module, width: int) -> Any:
        model = torch.nn.Linear(1, 1)

        def loss(views: list[torch.Tensor]) -> torch.Tensor:
            seen.append([float(v.double().sum()) for v in views])
            return model(torch.zeros(1, 1)).sum()

        return model, loss

    monkeypatch.setitem(lightly_recipes.RECIPES, "byol", recipe)
    backbone = torch.nn.Identity()
    backbone.width = 1  # type: ignore[assignment]
    noise = np.random.default_rng(0).integers(0, 256, (128, 32, 32, 3), dtype=np.uint8)
    for state, seed in ((1, 0), (2, 0), (2, 1)):
        np.random.seed(state)
        random.seed(state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lightly_recipes.train("byol", noise, backbone, 1, seed, lambda text: None)
    assert seen[0] == seen[1] != seen[2]
