"""Patches of made-up networks whose tokens are known: colours and places."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor, nn

from gnothi import evaluate
from gnothi.auxiliary import matching
from gnothi.cli import cli
from gnothi.contracts import DataError, EncoderError, Encoding, Pixels, SettingError, Want
from gnothi.data import ArraySource
from gnothi.data import open as open_data
from gnothi.encoders.network import NetworkEncoder
from gnothi.evaluate import nearest
from gnothi.evaluate.annotations import Annotations, Box, beside, boxes, covering
from gnothi.models.backbone import BackboneSpec
from gnothi.randomness import generator
from gnothi.views.crops import CropSpec, draw, uniforms

module = __import__("importlib").import_module("gnothi.evaluate.patches")
CELL = 8


class Colours(nn.Module):
    """The tokens are the mean colours of cells of 8 pixels, ``noise`` added."""

    width, block_widths = 3, (3,)

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.noise, self.calls = noise, 0

    def forward(self, images: Tensor, want: Want = Want(), mask: Tensor | None = None) -> Encoding:
        x = nn.functional.avg_pool2d(images, CELL)
        if self.noise:
            self.calls += 1
            x = x + self.noise * torch.randn(x.shape, generator=generator(self.calls, "colours"))
        return Encoding(x.mean((2, 3)), x.flatten(2).mT, (x.shape[2], x.shape[3]))


def encoder(name: str = "colours", noise: float = 0.0, size: int = 32) -> NetworkEncoder:
    return NetworkEncoder(name, Colours(noise), BackboneSpec(), 3, size, Pixels(0.0, 255.0, (0.5,) * 3, (0.25,) * 3))


CLASSES = {"red": (220, 30, 30), "green": (30, 200, 40)}


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Twenty grey images of 48 x 64 with a box of each of two colours, as PASCAL VOC files; one image has no file."""
    root = tmp_path / "voc"
    for name in ("JPEGImages", "Annotations"):
        (root / name).mkdir(parents=True)
    g = generator(0, "voc")
    for i in range(21):
        image, things = np.full((48, 64, 3), 128, np.uint8), ""
        for j, (name, colour) in enumerate(CLASSES.items()):
            left, top = 8 + 24 * j + int(torch.randint(6, (), generator=g)), int(torch.randint(24, (), generator=g))
            image[top : top + 20, left : left + 18] = colour
            corners = zip(("xmin", "ymin", "xmax", "ymax"), (left, top, left + 18, top + 20), strict=True)
            things += f"<object><name>{name}</name><bndbox>{''.join(f'<{k}>{v}</{k}>' for k, v in corners)}</bndbox></object>"
        Image.fromarray(image).save(root / "JPEGImages" / f"cell {i}.png")
        if i:
            (root / "Annotations" / f"cell {i}.xml").write_text(f"<annotation>{things}</annotation>")
    return root


# ---- annotations --------------------------------------------------------------------------------
def test_the_smallest_box_over_a_place_counts_and_edges_belong_to_the_box_that_begins_there():
    things = [Box("small", 10, 10, 20, 20), Box("large", 0, 0, 100, 50)]
    places = np.array([[15.0, 15.0], [10.0, 10.0], [20.0, 15.0], [99.9, 49.9], [100.0, 5.0], [50.0, 60.0]])
    assert covering(things, places) == covering(things[::-1], places) == ["small", "small", "large", "large", "background", "background"]


def test_boxes_of_a_voc_file(voc):
    found = boxes(voc / "Annotations" / "cell 3.xml")
    assert [b.name for b in found] == ["red", "green"] and all(b.right - b.left == 18 and b.bottom - b.top == 20 for b in found)
    (voc / "Annotations" / "bad.xml").write_text("<annotation><object>")
    with pytest.raises(DataError, match=r"bad\.xml is not a PASCAL VOC file"):
        boxes(voc / "Annotations" / "bad.xml")


@pytest.mark.parametrize("form", ["png", "palette", "npy"])
def test_masks_give_their_number_at_a_place_and_255_nothing(form, tmp_path):
    mask = np.zeros((4, 6), np.uint8)
    mask[1:3, 2:5], mask[3, 5] = 7, 255
    if form == "npy":
        np.save(tmp_path / "a.npy", mask)
    else:
        image = Image.fromarray(mask, "L")
        if form == "palette":
            image.putpalette(list(range(255, -1, -1)) * 3)
        image.save(tmp_path / "a.png")
    places = np.array([[0.5, 0.5], [2.0, 1.0], [4.99, 2.99], [5.0, 2.5], [5.5, 3.5], [6.0, 0.0]])
    known = Annotations(tmp_path)
    assert known.at("deep/a.jpg", places, (4, 6)) == ["background", "class 7", "class 7", "background", None, "background"]
    assert known.at("b.jpg", places, (4, 6)) == [None] * 6
    with pytest.raises(DataError, match=r"must be as large as a\.jpg, 5 x 6, got 4 x 6"):
        known.at("a.jpg", places, (5, 6))


def test_annotations_are_found_in_a_folder_and_beside_it(voc):
    for data in (voc, voc / "JPEGImages"):
        images, known = beside(str(data), None)
        assert Path(images) == voc / "JPEGImages" and known.folder == voc / "Annotations" and len(known.files) == 20
    assert beside("photos", None) == ("photos", None)
    assert beside(str(voc / "JPEGImages"), str(voc / "Annotations"))[1].folder == voc / "Annotations"
    with pytest.raises(DataError, match="--annotations nowhere: no such folder"):
        beside(str(voc), "nowhere")
    empty = voc.parent / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="holds no annotations"):
        beside(str(voc), str(empty))


# ---- what patches show --------------------------------------------------------------------------
def test_vectors_and_classes_are_those_of_the_cells_of_the_central_square(voc):
    """48 x 64 pixels: the square from column 8, a grid of 4 x 4, 12 pixels a cell."""
    source = open_data(str(voc / "JPEGImages"))
    group = module.Group(source, np.array([5, 9]), Annotations(voc / "Annotations"), "two")
    got = module._labelled(encoder(), group, 10_000, 0, None)
    assert len(got.names) == 32 and got.images.tolist() == [0] * 16 + [1] * 16
    for n, row in enumerate((5, 9)):
        image = source.image(row).double()
        things = boxes(voc / "Annotations" / f"{Path(source.name(row)).stem}.xml")
        for r in range(4):
            for c in range(4):
                x, y = 8 + 12 * c + 6, 12 * r + 6
                name = next((b.name for b in things if b.left <= x < b.right and b.top <= y < b.bottom), "background")
                assert got.names[16 * n + 4 * r + c] == name
                mean = image[:, 12 * r : 12 * r + 12, 8 + 12 * c : 20 + 12 * c].mean((1, 2))
                assert np.abs(got.x[16 * n + 4 * r + c] - (mean.numpy() / 255 - 0.5) / 0.25).max() < 0.3  # resizing blurs borders


def test_colours_tell_coloured_things_and_noise_does_not(voc):
    results = evaluate.patches([encoder(), encoder("noise", 100.0)], str(voc), k=3)
    assert [(r.metric, r.encoder) for r in results] == [(f"patch {m}", e) for m in ("knn", "linear") for e in ("colours", "noise")]
    for good, bad in (results[:2], results[2:]):
        assert good.value > 0.8 > bad.value and bad.details["paired"]["high"] < 0 and bad.details["paired"]["against"] == "colours"
        assert good.low <= good.value <= good.high and good.n == 64 and good.details["images"] == 4
        assert set(good.details["counts"]) == {"background", "red", "green"}
        assert "4 images held out" in good.protocol
    assert evaluate.patches([encoder()], str(voc), k=3, metrics=["knn"])[0].to_dict() == results[0].to_dict()


def test_knn_of_patches_is_knn_of_the_same_vectors(voc):
    train, tested = module._groups(str(voc), None, None, module.DataSpec(), 1000, 0)
    assert not set(train.rows) & set(tested.rows) and len(train.rows) + len(tested.rows) == 20
    a, b = (module._labelled(encoder(), g, 10_000, 0, None) for g in (train, tested))
    numbers = {name: i for i, name in enumerate(sorted(set(a.names + b.names)))}
    expected = nearest.knn(a.x, np.array([numbers[n] for n in a.names]), b.x, np.array([numbers[n] for n in b.names]), k=5)
    got = evaluate.patches([encoder()], str(voc), metrics=["knn"], k=5)[0]
    assert got.value == expected.value and got.details["balanced_accuracy"] == expected.details["balanced_accuracy"]


def test_test_images_may_be_others_and_share_the_annotations(voc):
    result = evaluate.patches([encoder()], str(voc), str(voc / "JPEGImages"), metrics=["knn"], k=1)[0]
    assert result.value > 0.95 and result.details["images"] == 20  # each patch finds itself, or one of the same grey


# ---- retrieval ----------------------------------------------------------------------------------
def places(n: int = 30, height: int = 60, width: int = 80) -> ArraySource:
    """Images that say where a pixel is: red is x, green y, blue neither."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([x * 3, y * 3, 200 + 0 * x]).to(torch.uint8)
    return ArraySource(image.expand(n, -1, -1, -1).contiguous())


def test_tokens_that_say_their_place_find_it_and_equal_ones_do_not():
    class Euclidean(Colours):
        """Places whose cosine falls with their distance: on a sphere."""

        def forward(self, images: Tensor, want: Want = Want(), mask: Tensor | None = None) -> Encoding:
            e = super().forward(images)
            angles = (e.patches[..., :2] * 0.25 + 0.5) * 255 / 3 / 200
            at = torch.cat([angles.cos(), angles.sin()], -1)
            return Encoding(e.pooled, at, e.grid)

    knows, flat = encoder("knows"), encoder("flat")
    knows.backbone = Euclidean()
    flat.backbone = Colours(1e-3)
    flat.pixels = Pixels(0.0, 255.0, (0.0,) * 3, (1e6,) * 3)  # what is left is noise
    good, bad = evaluate.patches([knows, flat], places())
    assert good.metric == "patch retrieval" and good.value > 0.99 and good.details["images"] == 30
    assert abs(bad.value - bad.details["chance"]) < 0.05 and bad.details["chance"] == pytest.approx(good.details["chance"])
    assert 0.5 < good.details["mean_distance"] < 6 < bad.details["mean_distance"] and 600 < good.n == bad.n < 960
    assert bad.details["paired"]["high"] < -0.7 and bad.low <= bad.value <= bad.high


def test_what_is_found_is_counted_as_a_plain_loop_counts_it():
    g = generator(0, "found")
    drawn = [draw(uniforms(generator(v, "crops"), 5), torch.full((5,), 90), torch.full((5,), 120), CropSpec(area=(0.1, 0.6))) for v in range(2)]
    mine, theirs = torch.randn(5, 12, 4, generator=g), torch.randn(5, 20, 4, generator=g)
    at, to = (matching.frame(d.boxes, grid, d.flips, d.turns) for d, grid in zip(drawn, ((3, 4), (4, 5)), strict=True))
    got = module.found(mine, theirs, at, to)
    for i in range(5):
        limit = max(math.hypot(*(float(s) for s in (f.across[i].norm(), f.down[i].norm()))) for f in (at, to)) / 2
        a, b = matching.centres(at)[i].tolist(), matching.centres(to)[i].tolist()
        sums = [0.0, 0.0, 0.0, 0.0]
        for n, p in enumerate(a):
            if min(math.dist(p, q) for q in b) < limit:
                like = int(torch.cosine_similarity(mine[i, n], theirs[i]).argmax())
                sums[0] += math.dist(p, b[like]) < limit
                sums[1] += 1
                sums[2] += math.dist(p, b[like])
                sums[3] += sum(math.dist(p, q) < limit for q in b) / 20
        assert got[i].tolist() == pytest.approx(sums)
    assert 0 < got[:, 1].sum() < 60


def test_an_interval_resamples_images_not_patches():
    """Patches that agree within an image count once: the interval is that of 50 images, not of 5,000 patches."""
    right = (torch.rand(50, generator=generator(0, "right")) < 0.6).double().numpy()
    counts = np.stack([100 * right, np.full(50, 100.0)], 1)
    low, high = module._interval(module._resampled(counts, 0))
    expected = 2 * 1.96 * math.sqrt(right.mean() * (1 - right.mean()) / 50)
    assert high - low == pytest.approx(expected, rel=0.1) and low < right.mean() < high
    assert module._difference(counts, counts, 0) == {"value": 0, "low": 0, "high": 0, "n": 50}


# ---- the command --------------------------------------------------------------------------------
def test_an_encoder_without_patches_is_refused_in_a_line(voc):
    with pytest.raises(EncoderError, match="pixels has no patches, it gives one vector an image"):
        evaluate.patches(["pixels"], str(voc))
    with pytest.raises(SettingError, match="metric must be knn, linear, retrieval, got 'kn'"):
        evaluate.patches([encoder()], str(voc), metrics=["kn"])
    with pytest.raises(DataError, match="needs to know what is where.*retrieval needs none"):
        evaluate.patches([encoder()], "photos", metrics=["knn"])
    with pytest.raises(EncoderError, match="one patch only at 8 pixels; a larger --size"):
        evaluate.patches([encoder()], str(voc), size=8)


def test_the_command_prints_a_table_or_objects(voc, monkeypatch):
    monkeypatch.setattr(module, "load", lambda name, device=None: encoder(name))
    arguments = ["evaluate", "patches", "one", "two", "--data", str(voc), "--metric", "knn", "-k", "3"]
    text = CliRunner().invoke(cli, arguments).output
    assert "patch knn" in text and "minus one (95 %)" in text and "balanced" in text
    rows = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).output)["results"]
    assert [r["encoder"] for r in rows] == ["one", "two"] and rows[1]["details"]["paired"]["value"] == 0
    seeds = json.loads(CliRunner().invoke(cli, [*arguments, "--over-seeds", "--json"]).output)["results"]
    assert len(seeds) == 1 and seeds[0]["value"] == rows[0]["value"]
