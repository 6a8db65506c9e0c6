"""The four example projects at toy size, each on data of its layout made here: what is cut or drawn is right, and what is measured is kept."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from gnothi import evaluate
from gnothi.randomness import generator

EXAMPLES = Path(__file__).parent.parent / "examples"
PROJECTS = ("blood_cells", "fashion", "flowers", "microscopy")
TOY = {"epochs": 1, "encoders": ["trained", "untrained", "hog", "colour", "pixels"]}


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports an example as a script would."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield import_module
    for name in (*PROJECTS, "outcome"):
        sys.modules.pop(name, None)


def noise(*shape: int, purpose: str = "toy") -> np.ndarray:
    return torch.randint(256, shape, generator=generator(0, purpose), dtype=torch.uint8).numpy()


# ---- data of each layout -------------------------------------------------------------------------
BOXES = {"RBC": [(5, 5, 45, 37), (60, 4, 92, 44), (50, 50, 90, 86)], "WBC": [(4, 44, 44, 88)], "Platelets": [(100, 40, 112, 52)]}
COLOURS = {"RBC": [(200, 60, 60), (190, 70, 50), (180, 80, 40)], "WBC": [(90, 60, 180)], "Platelets": [(150, 90, 170)]}
"""Objects of a photograph of 120 x 90 pixels, and what each is painted with."""


def blood(folder: Path) -> Path:
    """Twelve photographs with five cells each, and a box without an area."""
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    things = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for name, found in (*BOXES.items(), ("RBC", [(9, 9, 9, 9)]))
        for a, b, c, d in found
    )
    for i in range(12):
        photograph = Image.fromarray(230 + noise(90, 120, 3, purpose=f"photograph {i}") // 16)
        for name, found in BOXES.items():
            for box, colour in zip(found, COLOURS[name], strict=True):
                ImageDraw.Draw(photograph).ellipse(box, fill=colour)
        photograph.save(folder / "JPEGImages" / f"{i}.jpg", quality=95)
        (folder / "Annotations" / f"{i}.xml").write_text(f"<annotation>{things}</annotation>")
    for name, numbers in (("train", range(8)), ("val", range(8, 10)), ("test", range(10, 12))):
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(map(str, numbers)) + "\n")
    return folder


def flowers(folder: Path) -> Path:
    for i, image in enumerate(noise(48, 40, 48, 3)):
        path = folder / ("train" if i < 32 else "val") / ("roses", "tulips")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def fashion(folder: Path) -> Path:
    folder.mkdir()
    for split, n in (("train", 40), ("test", 20)):
        np.savez(folder / f"{split}.npz", images=noise(n, 28, 28, purpose=split), labels=np.arange(n) % 4)
    return folder


# ---- whole, in small -----------------------------------------------------------------------------
def toy(name: str, module: ModuleType, at: Path) -> tuple[dict[str, Any], list[str]]:
    """What a project wrote when it ran for an epoch, and its command line."""
    made = {"blood_cells": blood, "flowers": flowers, "fashion": fashion}
    words = [str(made[name](at / "data"))] if name in made else ["--cells", "2"]  # of each phenotype on a plate
    words += ["--epochs", "1", "--out", str(at / "runs"), "--results", str(at / "results")]
    module.main(words)
    return json.loads((at / "results" / f"{name}.json").read_text()), words


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "microscopy" else [pytest.mark.slow]) for n in PROJECTS])
def test_a_project_trains_measures_and_does_nothing_twice(name: str, examples: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = examples(name)
    found, words = toy(name, module, tmp_path)
    rows = found["results"]
    for metric in ("knn", "linear"):
        of = [r for r in rows if r["metric"] == metric]
        assert [r["encoder"] for r in of][:5] == TOY["encoders"]
        assert all(r["n"] == sum(found["data"]["test"]["labelled"].values()) and r["low"] <= r["value"] <= r["high"] for r in of)
        assert all(r["details"]["paired"]["against"] == "trained" for r in of[1:])
        assert all(r["details"]["paired"]["value"] == pytest.approx(r["value"] - of[0]["value"]) for r in of[1:])
    assert found["run"]["asked"]["training"]["epochs"] == TOY["epochs"] and found["run"]["verdict"] and found["run"]["seconds"] > 0
    first = capsys.readouterr().out
    (tmp_path / "runs" / name / "verdict.json").write_text("{}")  # who reads it again would stumble
    module.main(words)
    assert capsys.readouterr().out == first and "trained" in first


def test_every_project_is_short_and_says_how_it_is_run() -> None:
    for name in PROJECTS:
        text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 140 and f"python examples/{name}.py" in text.split('"""')[1]


# ---- blood cells ---------------------------------------------------------------------------------
def test_cells_are_cut_around_their_boxes_and_one_red_cell_a_photograph_keeps_its_name(examples: Any, tmp_path: Path) -> None:
    example = examples("blood_cells")
    found = list(example.cells(blood(tmp_path / "data"), ("val", "test")))
    flat = [(name, box, colour) for name, boxes in BOXES.items() for box, colour in zip(boxes, COLOURS[name], strict=True)]
    assert len(found) == 4 * len(flat)
    for i, cell in enumerate(found):
        name, (left, top, right, bottom), colour = flat[i % len(flat)]
        middle = cell.image[example.SIDE // 2 - 3 : example.SIDE // 2 + 3, example.SIDE // 2 - 3 : example.SIDE // 2 + 3]
        assert cell.image.shape == (example.SIDE, example.SIDE, 3) and np.abs(middle.mean((0, 1)) - colour).max() < 12
        assert np.exp(cell.size) == pytest.approx([right - left, bottom - top]) and cell.label in (-1, example.CLASSES.index(name))
    for photograph in range(4):
        labels = [cell.label for cell in found[photograph * len(flat) : (photograph + 1) * len(flat)]]
        assert sorted(labels) == [-1, -1, 0, 1, 2]
    kept = {[c.label for c in found[p * len(flat) :]].index(0) for p in range(4)}
    assert len(kept) > 1  # not always the first one


# ---- microscopy ----------------------------------------------------------------------------------
CHANGED = {
    "long nucleus": {"nucleus", "reticulum"},
    "lobed nucleus": {"nucleus", "reticulum"},
    "ruffled membrane": {"membrane", "fibres", "reticulum"},
    "parallel fibres": {"fibres"},
    "granules on one side": {"granules"},
}
"""Channels in which a phenotype differs from the usual one; the reticulum fills what the nucleus leaves within the rim."""


def test_a_phenotype_changes_the_channels_it_is_named_for_and_no_other(examples: Any) -> None:
    example = examples("microscopy")
    draws = example.Draws(seed=0, plate=0, n=6)
    usual = example.shapes(draws, torch.zeros(6, dtype=torch.long))
    for number, name in enumerate(example.PHENOTYPES[1:], 1):
        other = example.shapes(draws, torch.full((6,), number))
        differ = {channel for channel, a, b in zip(example.CHANNELS, usual, other, strict=True) if not torch.equal(a, b)}
        assert differ == CHANGED[name], name


def test_shapes_are_what_the_phenotypes_are_called(examples: Any) -> None:
    """Second moments of the nucleus, its holes, the direction of gradients, and where the granules' middle lies."""
    example = examples("microscopy")
    labels = torch.arange(6).repeat(20)
    nucleus, membrane, fibres, granules, _ = (plane.double() for plane in example.shapes(example.Draws(1, 3, 120), labels))
    y, x = torch.meshgrid(*(torch.arange(example.SIDE, dtype=torch.float64),) * 2, indexing="ij")

    def spread(plane: torch.Tensor) -> torch.Tensor:
        """Eigenvalues of the second moments, [2] small to large; and the centre."""
        mass = plane / plane.sum()
        cy, cx = (mass * y).sum(), (mass * x).sum()
        m = torch.stack([(mass * (y - cy) ** 2).sum(), (mass * (y - cy) * (x - cx)).sum(), (mass * (x - cx) ** 2).sum()])
        return torch.cat([torch.linalg.eigvalsh(torch.stack([m[0], m[1], m[1], m[2]]).view(2, 2)), torch.stack([cy, cx])])

    def coherence(plane: torch.Tensor) -> float:
        dy, dx = torch.gradient(plane)
        a, b, c = (dy * dy).sum(), (dy * dx).sum(), (dx * dx).sum()
        return float(((a - c) ** 2 + 4 * b**2).sqrt() / (a + c))

    seen = {
        "long nucleus": [float(e[1] / e[0]) for e in map(spread, nucleus)],
        "lobed nucleus": [float(e[:2].sum() / (p.sum() / p.max())) for e, p in zip(map(spread, nucleus), nucleus, strict=True)],
        "ruffled membrane": [float(sum(d.abs().sum() for d in torch.gradient(p)) / p.sum() * p.sum().sqrt()) for p in membrane],
        "parallel fibres": [coherence(p) for p in fibres],
        "granules on one side": [float((a[2:] - b[2:]).norm()) for a, b in zip(map(spread, granules), map(spread, membrane), strict=True)],
    }
    for name, values in seen.items():
        of = torch.tensor(values).view(20, 6)
        number = example.PHENOTYPES.index(name)
        mine, others = of[:, number], of[:, [k for k in range(6) if k != number]]
        assert mine.median() > others.quantile(0.9), name


def test_brightness_says_nothing_of_the_phenotype_and_no_pixel_is_clipped(examples: Any) -> None:
    example = examples("microscopy")
    plates = [example.plate(0, number, 20) for number in range(8)]
    images, labels = (torch.cat(parts) for parts in zip(*plates, strict=True))
    assert images.dtype == torch.uint16 and images.shape == (960, 5, example.SIDE, example.SIDE)
    assert 0 < int(images.to(torch.int32).min()) and int(images.to(torch.int32).max()) < 65535
    means = images.float().mean((2, 3))
    result = evaluate.linear(means[:600], labels[:600], means[600:], labels[600:])
    assert result.low < 1 / 6 < result.high
    assert evaluate.linear(means, labels, means, labels).value < 0.25  # not even those it was told
    light = ((means.double() - example.OFFSET) / example.GAIN - example.BACKGROUND).log()  # of photons, whatever a channel shows
    assert torch.allclose(light.mean(0).exp(), torch.tensor(example.PHOTONS, dtype=torch.float64), rtol=0.3)


def test_a_levelled_image_does_not_tell_how_much_light_there_was(examples: Any) -> None:
    example = examples("microscopy")
    images = example.plate(0, 1, 2)[0]
    even = example.levelled(images)
    gains = torch.tensor([1, 1.3, 1.6, 2, 1.1])[:, None, None]
    other = (example.OFFSET + gains * (images.float() - example.OFFSET)).clamp(0, 65535).round().to(torch.int32).to(torch.uint16)
    assert even.dtype == torch.uint16 and torch.allclose(even.float().mean((2, 3)), torch.tensor(example.LEVEL), rtol=0.02)
    assert (even.to(torch.int32) - example.levelled(other).to(torch.int32)).abs().max() <= 10  # rounding
    assert not torch.equal(images, even)


def test_a_plate_is_a_function_of_seed_and_number(examples: Any) -> None:
    example = examples("microscopy")
    plate = example.plate
    images, labels = plate(3, 5, 2)
    again, other, seeded = (plate(*given, 2)[0] for given in ((3, 5), (3, 6), (4, 5)))
    assert torch.equal(images, again) and not torch.equal(images, other) and not torch.equal(images, seeded)
    assert labels.bincount().tolist() == [2] * 6
    here, there = (example.shapes(example.Draws(3, number, 2), labels[:2]) for number in (5, 6))
    assert not any(torch.equal(a, b) for a, b in zip(here, there, strict=True))
