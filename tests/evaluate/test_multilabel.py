"""Several classes an image: what is known of it, classifiers by scikit-learn, and mean average precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from gnothi.contracts import DataError, SettingError
from gnothi.data import DataSpec
from gnothi.encoders import load
from gnothi.evaluate import multilabel, table
from gnothi.evaluate.average_precision import average_precision, ranked
from gnothi.evaluate.multilabel import _penalty, _scores, _tagged, parts
from gnothi.randomness import generator

XML = "<annotation>{}</annotation>"
OBJECT = "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>8</xmax><ymax>8</ymax></bndbox></object>"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GNOTHI_CACHE", str(tmp_path / "cache"))


def drawn(folder, n=40, seed=0):
    """Images that hold red, green, both or none."""
    folder.mkdir(parents=True, exist_ok=True)
    g = generator(seed, "tagged")
    tags = (torch.rand(n, 2, generator=g) < 0.5).numpy()
    for i in range(n):
        pixels = torch.randint(60, 130, (12, 12, 3), generator=g)
        pixels[..., :2] += 40 * torch.from_numpy(tags[i]).long() + torch.randint(-20, 20, (1,), generator=g)
        Image.fromarray(pixels.clamp(0, 255).byte().numpy()).save(folder / f"{i:02}.png")
    return tags


def test_a_csv_names_classes_with_a_semicolon_or_a_bar_between(tmp_path):
    drawn(tmp_path / "images", 5)
    (tmp_path / "tags.csv").write_text("file,label\n00.png,red;green\n01.png,green\n02.png,-\n03.png,\n04.png,red | green\n")
    settings = DataSpec(labels=str(tmp_path / "tags.csv"))
    train, tested, classes, words = _tagged(str(tmp_path / "images"), str(tmp_path / "images"), None, settings, 0)
    assert classes == ("green", "red") and train.tags.tolist() == [[1, 1], [1, 0], [0, 0], [1, 1]] and "(4 images)" in words
    assert [tested.source.name(i) for i in range(4)] == ["00.png", "01.png", "02.png", "04.png"]
    assert parts("a b; c|") == ["a b", "c"] and parts("-") == []


def test_boxes_say_what_an_image_shows_and_difficult_ones_leave_it_open(tmp_path):
    drawn(tmp_path / "JPEGImages", 6)
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    for i, objects in enumerate(([("cat", 0), ("dog", 1)], [("cat", 1), ("cat", 0)], [], [("dog", 0)], [("dog", 1)], [("cat", 0)])):
        (tmp_path / f"Annotations/{i:02}.xml").write_text(XML.format("".join(OBJECT.format(*o) for o in objects)))
    (tmp_path / "ImageSets/Main/trainval.txt").write_text("00\n01\n02\n")
    (tmp_path / "ImageSets/Main/test.txt").write_text("03\n04\n05\n")
    train, tested, classes, words = _tagged(str(tmp_path), None, None, DataSpec(), 0)
    assert classes == ("cat", "dog") and train.tags.tolist() == [[1, -1], [1, 0], [0, 0]] and tested.tags.tolist() == [[0, 1], [0, -1], [1, 0]]
    assert "@trainval (3 images)" in words and "@test (3 images)" in words


def test_a_class_s_scores_are_scikit_learn_s_logistic_regression():
    g = generator(1, "features")
    x, y = torch.randn(60, 5, generator=g), torch.randn(30, 5, generator=g)
    truth = (x[:, 0] + torch.randn(60, generator=g) > 0).long()
    truth[:8] = -1
    known = truth >= 0
    mean, std = x[known].mean(0), x[known].std(0, correction=0)
    # Two columns W and -W under strength/2 |W|^2 are one of twice the size under strength/4.
    by_sklearn = LogisticRegression(C=2 / (0.05 * int(known.sum())), tol=1e-10).fit(((x[known] - mean) / std).numpy(), truth[known].numpy())
    expected = by_sklearn.decision_function(((y - mean) / std).numpy())
    np.testing.assert_allclose(_scores(x, truth, 0.05, y), expected, atol=0.02)
    assert not _scores(x, torch.zeros(60, dtype=torch.long), 0.05, y).any()


def test_the_penalty_is_the_one_of_the_best_held_out_average_precision():
    g = generator(2, "features")
    signal = torch.randn(400, 1, generator=g)
    x = signal + 3 * torch.randn(400, 60, generator=g)  # to be averaged, which a strong penalty does
    truth = (signal[:, 0] > 0.4).long()
    kept, held = torch.arange(80), torch.arange(80, 400)
    found = _penalty(x, truth, kept, held)
    values = {}
    for strength in (*(10.0**e for e in (1, 0.5, 0, -0.5, -1, -1.5, -2, -2.5)), 0.001):
        r = ranked(_scores(x[kept], truth[kept], strength, x[held]), truth[held].numpy())
        values[strength] = float(average_precision(r.right, r.positives.sum()))
    assert values[found] == pytest.approx(max(values.values()), abs=0.01) and values[found] > values[0.001] + 0.05
    assert _penalty(x, torch.zeros(400, dtype=torch.long), kept, held) == 0.01


def test_encoders_are_compared_by_mean_average_precision(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        tags = drawn(tmp_path / name, 40, seed)
        lines = [f"{i:02}.png,{';'.join(w for w, t in zip(('red', 'green'), row, strict=True) if t) or '-'}" for i, row in enumerate(tags)]
        with (tmp_path / "tags.csv").open("a") as file:
            file.write("".join(f"{name}/{line}\n" for line in (["file,label"] if name == "x" else []) + lines))
    text = (tmp_path / "tags.csv").read_text()
    (tmp_path / "tags.csv").write_text("file,label\n" + text)
    settings = DataSpec(labels=str(tmp_path / "tags.csv"))
    results = multilabel(["colour", "pixels"], str(tmp_path / "a"), str(tmp_path / "b"), settings=settings)
    assert [(r.metric, r.encoder) for r in results] == [(m, e) for m in ("mAP 11-point", "mAP area") for e in ("colour", "pixels")]
    colour, pixels = results[2:]
    train, tested, classes, _ = _tagged(str(tmp_path / "a"), str(tmp_path / "b"), None, settings, 0)
    x, y = (torch.from_numpy(load("colour").embed_source(part.source)) for part in (train, tested))
    values = []
    for c, penalty in enumerate(colour.details["penalties"]):
        scores = _scores(x, torch.from_numpy(train.tags[:, c]), penalty, y)
        r = ranked(scores, tested.tags[:, c])
        values.append(float(average_precision(r.right, r.positives.sum(), "area")))
        assert average_precision(r.right, r.positives.sum(), "no envelope") == pytest.approx(
            average_precision_score(tested.tags[:, c], scores), abs=1e-6
        )
    assert colour.details["average_precision"] == pytest.approx(values) and colour.value == pytest.approx(np.mean(values))
    assert colour.low <= colour.value <= colour.high and colour.n == 40 and "average precision (area)" in colour.protocol
    p = pixels.details["paired"]
    assert p["against"] == "colour" and p["value"] == pytest.approx(pixels.value - colour.value) and p["low"] <= p["high"]
    assert "less colour" in table(results)


def test_a_part_is_held_out_where_no_test_is_named(tmp_path):
    tags = drawn(tmp_path / "a", 30)
    lines = [f"{i:02}.png,{'red' if row[0] else '-'}" for i, row in enumerate(tags)]
    (tmp_path / "tags.csv").write_text("file,label\n" + "\n".join(lines))
    (result,) = multilabel(["colour"], str(tmp_path / "a"), settings=DataSpec(labels=str(tmp_path / "tags.csv")), kinds=["area"], seed=3)
    assert result.n == 6 and "tested on 6 rows held out (seed 3), trained on the other 24" in result.protocol


def test_a_mistake_is_one_line(tmp_path):
    drawn(tmp_path / "a", 6)
    for given, line in (({"kinds": ["are"]}, "did you mean area"), ({}, "nothing is known of what these images show")):
        with pytest.raises((SettingError, DataError), match=line) as caught:
            multilabel(["colour"], str(tmp_path / "a"), **given)
        assert "\n" not in str(caught.value)
