"""The study of detection never pre-trains on an image that tests a detector, in either layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scenery import as_coco, scenery

from gnothi import evaluate


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module, with what was pre-trained and detected in ``asked``."""
    from experiments import detection

    asked: list[tuple[Any, ...]] = []

    def train(images: Any, *, settings: Any, out: Path, resume: bool) -> None:
        asked.append(("train", {images.name(row) for row in range(len(images))}))
        out.mkdir(parents=True)
        (out / "verdict.json").write_text("{}")

    def detect(encoders: list[str], data: str, test: str | None, *, seed: int, **more: Any) -> list[evaluate.Result]:
        _, tested = detection.split_scenes(data, test, seed=seed)
        asked.append(("test", {tested.source.name(row) for row in range(len(tested))}))
        return [evaluate.Result("voc07_ap50", 0.5 + seed / 10, 0.4, 0.6, 9, "so", name, (seed,), {"classes": {}}) for name in ("a", "b")]

    monkeypatch.setattr(detection, "train", train)
    monkeypatch.setattr(detection.evaluate, "detect", detect)
    detection.asked = asked
    return detection


@pytest.mark.parametrize("layout", ["lists", "no lists", "COCO"])
def test_no_test_image_is_pretrained_on(study: Any, tmp_path: Path, layout: str) -> None:
    told = scenery(tmp_path / "data", n=20, lists=layout == "lists")
    data = tmp_path / "data"
    if layout == "COCO":
        as_coco(data / "boxes.json", told)
        data = data / "boxes.json"
    study.main([str(data), "--tiny", "--seeds", "2", "--out", str(tmp_path / "out")])
    (_, seen), *tests = study.asked
    assert len(tests) == 2 and seen and not any(seen & tested for _, tested in tests)
    if layout == "lists":
        assert seen == {f"{i:02}.png" for i in range(15)}
    else:
        assert seen | tests[0][1] | tests[1][1] == {f"{i:02}.png" for i in range(20)}
    found = json.loads((tmp_path / "out" / "results.json").read_text())["arms"]["8 images"]
    assert [r["value"] for r in found["means"]] == pytest.approx([0.55, 0.55]) and len(found["by seed"]) == 2


def test_arms_and_seeds_of_an_earlier_call_stay(study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until there are as many seeds."""
    scenery(tmp_path / "data", n=20, lists=True)
    monkeypatch.setattr(study, "RESULTS", tmp_path / "results")

    def called(*words: str) -> dict[str, int]:
        study.main([str(tmp_path / "data"), "--encoder", "runs/x", "--out", str(tmp_path / "out"), *words])
        found = json.loads((tmp_path / "results" / "detection.json").read_text())
        return {arm: len(of["by seed"]) for arm, of in found["arms"].items()}

    assert called("--seeds", "2", "--shots", "5,10") == {"5 images": 2, "10 images": 2, "all images": 2}
    assert called("--seeds", "1") == {"5 images": 2, "10 images": 2, "all images": 2}
    assert called("--seeds", "3", "--shots", "5") == {"5 images": 3, "10 images": 2, "all images": 3}
    detect, left = study.evaluate.detect, [2]

    def broken_off(*given: Any, **more: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return detect(*given, **more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(study.evaluate, "detect", broken_off)
        called("--seeds", "3")
    assert called("--seeds", "1") == {"5 images": 3, "10 images": 2, "all images": 3}


def test_results_of_other_settings_are_refused_before_anything_trains(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scenery(tmp_path / "data", n=20, lists=True)
    monkeypatch.setattr(study, "RESULTS", tmp_path / "results")
    path, words = tmp_path / "results" / "detection.json", [str(tmp_path / "data"), "--seeds", "1", "--out", str(tmp_path / "out")]
    study.main([*words, "--encoder", "runs/x"])
    before, asked = path.read_text(), len(study.asked)
    own = "encoder x, not encoder, backbone none, not micro-resnet, epochs none, not 220;"
    for more, apart in (
        (["--encoder", "runs/x", "--steps", "7"], "results of steps 600, not 7;"),
        (["--encoder", "runs/y"], "results of encoder x, not y;"),
        ([], own),
    ):
        with pytest.raises(SystemExit) as stopped:
            study.main([*words, *more])
        said = capsys.readouterr().err.splitlines()[-1]
        assert stopped.value.code == 2 and str(path) in said and apart in said
    assert path.read_text() == before and len(study.asked) == asked


@pytest.mark.parametrize(("words", "name", "epochs"), [([], "detection", 220), (["--gpu"], "detection_gpu", 800)])
def test_its_own_pretraining_is_as_long_as_it_says(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], name: str, epochs: int
) -> None:
    scenery(tmp_path / "data", n=20, lists=True)
    monkeypatch.setattr(study, "RESULTS", tmp_path / "results")
    study.main([str(tmp_path / "data"), "--seeds", "1", "--out", str(tmp_path / "out"), *words])
    assert study.asked[0][0] == "train" and json.loads((tmp_path / "results" / f"{name}.json").read_text())["epochs"] == epochs
    assert f"{epochs} epochs of pre-training" in " ".join(study.__doc__.split())
