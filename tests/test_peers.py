"""The comparison with peers: how lines are counted, what is timed, and that the script with lightly measures what it says."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from experiments import peers
from gnothi import evaluate, schedules
from gnothi.models import backbone as backbones
from gnothi.randomness import generator
from gnothi.recipes.resolve import Resolved, resolve
from gnothi.recipes.spec import merge, parse


def test_lines_are_statements_without_docstrings_comments_and_the_breaking_of_lines() -> None:
    text = '''"""A module
of two lines."""
import os  # why

# a remark
def f(
    a,
    b,
):
    """Said."""
    return (
        a
        + b
    )

class C:
    "Only said."
'''
    assert peers.lines_of_code(text) == 5  # import, def, return, class, pass
    assert peers.lines_of_code("x = 1; y = 2") == peers.lines_of_code("x = 1\n\n\ny = 2\n") == 2


def test_both_sides_are_counted() -> None:
    lines = peers.written()
    assert 40 < lines["lightly"] < 80 and 3 < lines["gnothi"] < 12
    kept = json.loads(peers.RESULTS.read_text(encoding="utf-8"))["lines"]
    assert kept == lines  # as the page says


def folder(at: Path) -> Path:
    noise = torch.randint(256, (40, 32, 32, 3), generator=generator(0, "peers"), dtype=torch.uint8).numpy()
    for i, image in enumerate(noise):
        image[..., i % 2] //= 3
        path = at / ("train" if i < 28 else "val") / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return at


def test_few_takes_the_first_of_each_class(tmp_path: Path) -> None:
    data = folder(tmp_path / "data")
    assert peers.few(data, tmp_path / "few", 3) == 6
    assert sorted(p.name for p in (tmp_path / "few").glob("*/a/*")) == ["00.png", "02.png", "04.png", "28.png", "30.png", "32.png"]


# ---- what is timed -------------------------------------------------------------------------------
@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Of 64 pixels: 32 of each of two classes, and as many that test."""
    for i in range(128):
        path = tmp_path / "photographs" / ("train", "val")[i // 64] / "ab"[i % 2] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (i, 255 - i, 2 * i)).save(path)
    return tmp_path / "photographs"


def resolved(name: str, data: Path) -> Resolved:
    """One of our commands, as its words say it."""
    words = peers.TIMED[name].split(" ")
    said = parse(word for before, word in zip(words, words[1:], strict=False) if before == "--set")
    network = {"backbone": {"name": words[words.index("--backbone") + 1]}} if "--backbone" in words else {}
    return resolve(str(data), settings=merge(merge(network, {"training": {"epochs": 1}}), said))


def test_the_resnet_of_ours_is_the_script_s(photographs: Path) -> None:
    """The stem of small images has other first weights, and fifteen times the arithmetic behind them."""
    torchvision = pytest.importorskip("torchvision")
    spec = resolved("gnothi resnet18", photographs / "train").spec
    ours = backbones.build(spec.backbone, 3, spec.views.size or 0, 0)
    theirs = torch.nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])
    assert spec.views.size == 64 and sorted(p.shape for p in ours.parameters()) == sorted(p.shape for p in theirs.parameters())


@pytest.mark.parametrize("name", ["gnothi resnet18", "gnothi"])
def test_an_epoch_of_ours_has_all_images_one_thread_and_looks_at_its_end_only(name: str, photographs: Path) -> None:
    found = resolved(name, photographs / "train")
    t = found.spec.training
    assert (found.total, t.batch, found.spec.data.holdout, found.threads, found.workers) == (2, 32, 0, 1, 0)
    every = {schedules.interval(getattr(t, f"{kind}_every"), found.per_epoch, found.total) for kind in ("health", "evaluate", "checkpoint")}
    assert every == {2}
    assert "loader.batch_size=32" in peers.TIMED["lightly-magic"] and "--batch 32" in peers.TIMED["script"]


def test_times_are_kept_command_by_command_for_what_was_asked(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    broken = [peers.TIMED["gnothi resnet18"]]

    def timed(command: str, folder: Path) -> dict[str, Any]:
        ran.append(command)
        if command in broken:
            raise SystemExit("it failed")
        return {"command": command, "seconds": 1.0, "left": [], "precision": "fp32", "load": 0.5}

    monkeypatch.setattr(peers, "RESULTS", tmp_path / "peers.json")
    monkeypatch.setattr(peers, "timed", timed)
    monkeypatch.setattr(peers, "version", lambda name: "1.6.0")
    with pytest.raises(SystemExit):
        peers.main([str(photographs), "--images", "32"])
    assert list(peers.known()["timed"]) == ["lightly-magic", "script"] and len(ran) == 3
    broken.clear()
    peers.main([str(photographs), "--images", "32"])
    assert list(peers.known()["timed"]) == list(peers.TIMED) and ran[3:] == [peers.TIMED[n] for n in ("gnothi resnet18", "gnothi")]
    peers.main([str(photographs), "--images", "0"])
    assert len(peers.known()["timed"]) == 4 and peers.known()["images"] == 64
    peers.main([str(photographs), "--images", "16"])
    assert ran[5:] == list(peers.TIMED.values()) and peers.known()["images"] == 32
    with pytest.raises(SystemExit) as stopped:
        peers.main([str(photographs), "--images", "3"])
    assert stopped.value.code == 2 and len(ran) == 9


def test_a_time_stands_with_what_the_command_left_and_a_failure_is_said(tmp_path: Path) -> None:
    text = '{"settings": {"training": {"precision": "bf16"}}}'
    (tmp_path / "ours.py").write_text(f"import pathlib\npathlib.Path('spec.json').write_text({text!r})\n")
    (tmp_path / "fails.py").write_text("import sys\nsys.exit('no such thing')\n")
    row = peers.timed("ours", tmp_path)
    assert (row["command"], row["precision"]) == ("ours", "bf16") and "spec.json" in row["left"] and "ours.py" not in row["left"]
    with pytest.raises(SystemExit, match="`fails` ended with code 1: no such thing"):
        peers.timed("fails", tmp_path)


@pytest.mark.slow
def test_the_script_with_lightly_trains_and_its_accuracies_are_those_of_its_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lightly", reason="pip install 'gnothi[test]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from experiments import with_lightly
    data = folder(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lightly's own, of libraries that have moved on
        with_lightly.main([str(data / "train"), str(data / "val"), "--epochs", "1", "--size", "32", "--batch", "8"])
        network = torch.nn.Sequential(*list(with_lightly.torchvision.models.resnet18().children())[:-1])
        network.load_state_dict(torch.load("simclr.pt", weights_only=True))
        (bank, known), (asked, truth) = (with_lightly.embed(network.eval(), str(data / part), 32) for part in ("train", "val"))
    expected = evaluate.knn(bank.numpy(), known, asked.numpy(), truth, k=20, temperature=0.1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("epoch 0: ") and lines[1] == f"trained: k-NN {expected.value:.4f}" and lines[2].startswith("untrained: k-NN ")
