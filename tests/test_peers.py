"""The comparison with peers: how lines are counted, and that the script with lightly measures what it says."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from experiments import peers
from gnothi import evaluate
from gnothi.randomness import generator


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
