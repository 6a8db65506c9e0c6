"""Several classes an image: what is known of it, classifiers by scikit-learn, and mean average precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from terminal import gnothi, said

from gnothi.contracts import DataError, Pixels, SettingError
from gnothi.data import DataSpec, holdout
from gnothi.encoders import load
from gnothi.encoders.network import NetworkEncoder
from gnothi.evaluate import FinetuneSpec, multilabel, table
from gnothi.evaluate.average_precision import average_precision, ranked
from gnothi.evaluate.linear import Rows
from gnothi.evaluate.multilabel import _penalty, _scores, _tagged, parts
from gnothi.evaluate.tagging import Tagging, cross_entropy
from gnothi.evaluate.tuning import Start
from gnothi.models.backbone import BackboneSpec, build
from gnothi.randomness import generator

XML = "<annotation>{}</annotation>"
OBJECT = "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>8</xmax><ymax>8</ymax></bndbox></object>"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("gnothi.evaluate.average_precision.RESAMPLES", 50)
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
        assert average_precision(r.right, r.positives.sum(), "no-envelope") == pytest.approx(
            average_precision_score(tested.tags[:, c], scores), abs=1e-6
        )
    assert colour.details["average_precision"] == pytest.approx(values) and colour.value == pytest.approx(np.mean(values))
    assert colour.low <= colour.value <= colour.high and colour.n == 40 and "average precision (area)" in colour.protocol
    p = pixels.details["paired"]
    assert p["against"] == "colour" and p["value"] == pytest.approx(pixels.value - colour.value) and p["low"] <= p["high"]
    assert "minus colour" in table(results)


def test_a_part_is_held_out_where_no_test_is_named(tmp_path):
    tags = drawn(tmp_path / "a", 30)
    lines = [f"{i:02}.png,{'red' if row[0] else '-'}" for i, row in enumerate(tags)]
    (tmp_path / "tags.csv").write_text("file,label\n" + "\n".join(lines))
    (result,) = multilabel(["colour"], str(tmp_path / "a"), settings=DataSpec(labels=str(tmp_path / "tags.csv")), kinds=["area"], seed=3)
    assert result.n == 6 and "tested on 6 rows held out (seed 3), trained on the other 24" in result.protocol


# ---- networks that go on learning ---------------------------------------------------------------
SPEC = BackboneSpec(args={"widths": [4, 8]})
QUICK = {"epochs": 1.0, "batch": 8}


def encoder(seed=0):
    return NetworkEncoder("micro", build(SPEC, 3, 12, seed), SPEC, 3, 12, Pixels(0.0, 255.0, (0.5,) * 3, (0.25,) * 3))


def test_cross_entropy_is_torch_s_over_what_is_known():
    g = generator(0, "tags")
    logits, tags = torch.randn(5, 3, generator=g), torch.randint(-1, 2, (5, 3), generator=g)
    known = tags >= 0
    assert 0 < known.sum() < 15
    torch.testing.assert_close(cross_entropy(logits, tags), F.binary_cross_entropy_with_logits(logits[known], tags[known].float()))
    assert cross_entropy(logits, torch.full((5, 3), -1)) == 0


def tagged(folder, n=48, seed=0):
    tags = drawn(folder, n, seed)
    lines = [f"{i:02}.png,{';'.join(w for w, t in zip(('red', 'green'), row, strict=True) if t) or '-'}" for i, row in enumerate(tags)]
    (folder.parent / f"{folder.name}.csv").write_text("file,label\n" + "\n".join(lines))
    return str(folder), DataSpec(labels=str(folder.parent / f"{folder.name}.csv"))


@pytest.mark.slow
def test_networks_learn_what_images_show(tmp_path):
    data, settings = tagged(tmp_path / "a")
    tune = FinetuneSpec(epochs=12, batch=8, lr=0.1)
    area, control = multilabel([encoder()], data, settings=settings, kinds=["area"], tune=tune, control=True)
    assert area.value > 0.9 and area.details["rate"] == 0.1 and control.encoder == "micro-resnet, random weights"
    assert "each class for itself; sgd at 0.1 (as given)" in area.protocol and control.details["paired"]["against"] == "micro"


def test_the_rate_of_networks_is_chosen_by_held_out_average_precision_and_kept(tmp_path):
    data, settings = tagged(tmp_path / "a", 40)
    given = {"settings": settings, "kinds": ["area"], "tune": FinetuneSpec(**QUICK), "out": tmp_path / "runs"}
    (first,) = multilabel([encoder()], data, **given)
    tried = first.details["tried"]
    assert len(tried) == 4 and first.details["rate"] == max(tried, key=lambda t: t["mAP"])["setting"]
    source = _tagged(data, None, None, settings, 0)[0]
    job = Tagging(Start("micro", encoder()), FinetuneSpec(**QUICK), source.source, source.tags, seed=0, out=None, broken=0.0, shown=False)
    kept, held = holdout(Rows(np.zeros(32, dtype=int), None), 0.2, 0)
    scores = job._scores(job._train(kept, 0.03, ""), source.source, held)
    expected = [average_precision(r.right, r.positives.sum()) for r in (ranked(scores[:, c], source.tags[held, c]) for c in range(2))]
    assert tried[2] == {"setting": 0.03, "mAP": pytest.approx(np.mean(expected))}
    path = next((tmp_path / "runs").glob("*/rate-0.003/tried.json"))
    path.write_text('{"setting": 0.003, "mAP": 2.0}')
    assert multilabel([encoder()], data, **given)[0].details["rate"] == 0.003


def test_a_rate_that_breaks_finds_nothing(tmp_path):
    data, settings = tagged(tmp_path / "a", 20)
    source = _tagged(data, None, None, settings, 0)[0]
    job = Tagging(Start("micro", encoder()), FinetuneSpec(**QUICK), source.source, source.tags, seed=0, out=None, broken=0.0, shown=False)
    assert job._try(1e30, np.arange(12), np.arange(12, 16)) == 0


def test_a_mistake_is_one_line(tmp_path):
    drawn(tmp_path / "a", 6)
    tune = FinetuneSpec(shots=2)
    cases = (
        ({"kinds": ["are"]}, "did you mean area"),
        ({}, "nothing is known of what these images show"),
        ({"tune": tune}, "share and shots are of single classes"),
    )
    for given, line in cases:
        with pytest.raises((SettingError, DataError), match=line) as caught:
            multilabel(["colour"], str(tmp_path / "a"), **given)
        assert "\n" not in str(caught.value)


def test_the_command_line_measures_and_refuses_what_has_no_effect(tmp_path):
    data, settings = tagged(tmp_path / "a", 20)
    labels = ("--set", f"data.labels={settings.labels}")
    results = said("evaluate", "multilabel", "colour", "pixels", "--data", data, "--kind", "area", *labels)["results"]
    assert [(r["metric"], r["encoder"]) for r in results] == [("mAP area", "colour"), ("mAP area", "pixels")]
    done = gnothi("evaluate", "multilabel", "colour", "--data", data, "--lr", "0.1", *labels)
    assert done.code == 2 and "--lr has no effect without --tune" in done.err
    done = gnothi("evaluate", "multilabel", "colour", "--data", data, "--tune", *labels)
    assert done.code == 2 and "colour cannot be fine-tuned, it is not a network" in done.err
