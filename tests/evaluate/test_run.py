import numpy as np
import pytest
import torch

from gnothi.contracts import DataError, EncoderError, SettingError, Source
from gnothi.data import ArraySource, DataSpec, Subset, holdout
from gnothi.data import open as open_data
from gnothi.encoders import Encoder, load
from gnothi.evaluate import knn, linear, paired, run, table
from gnothi.evaluate.linear import Rows
from gnothi.evaluate.nearest import predict
from gnothi.randomness import generator


def drawn(n=160, seed=0, classes=("a", "b", "c", "d"), labels=True, groups=False):
    """Images whose colour goes with their class."""
    g = generator(seed, "images")
    y = torch.randperm(n, generator=g) % len(classes)
    base = torch.randint(60, 200, (9, 3), generator=generator(5, "base"))[[ord(classes[i]) - 97 for i in y.tolist()]]
    noise = 60 * torch.randn(n, 3, 1, 1, generator=g) + 20 * torch.randn(n, 3, 8, 8, generator=g)
    images = (base[:, :, None, None] + noise).clamp(0, 255).byte()
    return ArraySource(images, y if labels else None, classes if labels else None, [f"p{i // 8}" for i in range(n)] if groups else None)


def same_but_for_words(a, b):
    return (a.value, a.low, a.high, a.n, a.details["confusion"]) == (b.value, b.low, b.high, b.n, b.details["confusion"])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GNOTHI_CACHE", str(tmp_path / "cache"))


def test_knn_by_name_is_knn_on_the_vectors():
    train, test = drawn(), drawn(80, seed=1)
    found = run("knn", ["pixels", "colour"], train, test, k=7, temperature=0.2)
    for result, name in zip(found, ("pixels", "colour"), strict=True):
        a, b = (load(name).embed_source(s) for s in (train, test))
        assert same_but_for_words(result, knn(a, train.labels, b, test.labels, 7, 0.2))
        assert result.encoder == name and result.metric == "knn" and "k=7" in result.protocol
    assert "trained on the source (160 images), tested on the test source (80 images)" in found[0].protocol


def test_linear_by_name_is_linear_on_the_vectors():
    train, test = drawn(groups=True), drawn(80, seed=1)
    (found,) = run("linear", ["colour"], train, test, seed=4)
    a, b = (load("colour").embed_source(s) for s in (train, test))
    expected = linear(a, train.labels, b, test.labels, seed=4, groups=train.groups)
    assert same_but_for_words(found, expected) and found.details["chosen"] == expected.details["chosen"] and found.seeds == (4,)


def test_several_encoders_carry_their_difference_to_the_first():
    train, test = drawn(), drawn(80, seed=1)
    first, second = run("knn", ["pixels", "colour"], train, test)
    correct = []
    for name in ("colour", "pixels"):
        a, b = (load(name).embed_source(s) for s in (train, test))
        correct.append(predict(a, train.labels, b, test.labels)[0].correct)
    expected = paired(*correct)
    p = second.details["paired"]
    assert "paired" not in first.details and p["against"] == "pixels"
    assert (p["value"], p["low"], p["high"]) == (expected.value, expected.low, expected.high)
    assert p["value"] == pytest.approx(second.value - first.value) and p["low"] < p["value"] < p["high"]


def test_the_own_test_split_is_used():
    small = DataSpec(per_class=6, per_class_test=4)
    (found,) = run("knn", ["colour"], "photos", settings=small, k=3)
    (named,) = run("knn", ["colour"], "photos@train", "photos@test", settings=small, k=3)
    assert found == named and found.n == 64
    assert "trained on photos@train (96 images), tested on photos@test (64 images)" in found.protocol
    (half,) = run("knn", ["colour"], "photos@test", settings=small, k=3)
    assert "photos@test (64 images): tested on 13 rows held out by class (seed 0), trained on the other 51" in half.protocol


def test_a_part_is_held_out_by_seed_class_and_group():
    source = drawn(groups=True)
    (found,) = run("knn", ["colour"], source, seed=3)
    kept, held = holdout(Rows(source.labels, source.groups), 0.2, 3)
    x = load("colour").embed_source(source)
    assert same_but_for_words(found, knn(x[kept], source.labels[kept], x[held], source.labels[held]))
    assert "held out by class and whole groups (seed 3)" in found.protocol
    assert run("knn", ["colour"], source, seed=2)[0].details["confusion"] != found.details["confusion"]


def test_classes_are_matched_by_name_not_by_number():
    train, test = drawn(), drawn(80, seed=1, classes=("c", "a", "e"))
    (found,) = run("knn", ["colour"], train, test)
    a, b = (load("colour").embed_source(s) for s in (train, test))
    renumbered = np.array([2, 0, 4])[test.labels]
    assert same_but_for_words(found, knn(a, train.labels, b, renumbered, names="abcde"))
    assert found.details["counts"].keys() == set("abcde") and found.details["counts"]["e"] > 0


def test_rows_without_a_label_are_left_out_and_said():
    train, test = drawn(), drawn(80, seed=1)
    labels = train.labels.copy()
    labels[:30] = -1
    some = ArraySource(train.array, labels, train.classes)
    (found,) = run("knn", ["colour"], some, test)
    (alone,) = run("knn", ["colour"], Subset(train, np.arange(30, 160)), test)
    assert same_but_for_words(found, alone)
    assert "130 images, 30 without a label left out" in found.protocol


def test_training_rows_that_are_the_test_rows_do_not_vote_for_themselves():
    source = drawn()
    (found,) = run("knn", ["colour"], source, source, k=1)
    x = load("colour").embed_source(source)
    assert same_but_for_words(found, knn(x, source.labels, x, source.labels, 1)) and "leave one out" in found.protocol
    with pytest.raises(DataError, match="is both training and test data"):
        run("linear", ["colour"], source, drawn())


class Unreadable(Source):
    def __init__(self, whole, rows):
        self.whole, self.rows = whole, rows
        self.channels, self.dtype, self.labels, self.classes = whole.channels, whole.dtype, whole.labels, whole.classes

    def __len__(self):
        return len(self.whole)

    def image(self, row, shrink=1):
        if row in self.rows:
            raise DataError("truncated")
        return self.whole.image(row)

    def fingerprint(self):
        return f"{self.whole.fingerprint()}-{len(self.rows)}"


def test_unreadable_images_are_left_out_and_said():
    train, test = drawn(), drawn(80, seed=1)
    found = run("knn", ["colour", "pixels"], Unreadable(train, range(10)), Unreadable(test, (0, 79)))
    expected = run("knn", ["colour", "pixels"], Subset(train, np.arange(10, 160)), Subset(test, np.arange(1, 79)))
    for a, b in zip(found, expected, strict=True):
        assert same_but_for_words(a, b) and "12 unreadable images left out" in a.protocol
    assert found[1].details["paired"]["n"] == 78
    with pytest.raises(DataError, match="none of the 80 images"):
        run("knn", ["colour"], train, Unreadable(test, range(80)))


def test_presets_and_options_reach_the_classifier():
    train, test = drawn(), drawn(80, seed=1)
    (a,) = run("knn", ["colour"], train, test, preset="lightly")
    (b,) = run("knn", ["colour"], train, test, k=200, temperature=0.1)
    assert a == b and "k=160 (200 asked" in a.protocol
    (c,) = run("knn", ["colour"], train, test, preset="lightly", k=5)
    assert "k=5, cosine, votes exp(similarity/0.1)" in c.protocol


@pytest.mark.parametrize(
    ("kind", "encoders", "data", "options", "line"),
    [
        ("kn", ["pixels"], drawn(20), {}, "did you mean knn"),
        ("knn", ["pixel"], drawn(20), {}, "did you mean pixels"),
        ("knn", ["pixels"], drawn(20, labels=False), {}, "needs labels, these images have none"),
        ("knn", ["pixels"], drawn(20), {"temprature": 1}, "temprature: knn has no such option; did you mean temperature"),
        ("linear", ["pixels"], drawn(20), {"k": 1}, "k: linear has no such option"),
        ("knn", ["pixels"], drawn(20), {"preset": "dion"}, "did you mean dino"),
    ],
)
def test_a_mistake_is_one_line(kind, encoders, data, options, line):
    with pytest.raises((SettingError, DataError, EncoderError), match=line) as caught:
        run(kind, encoders, data, **options)
    assert "\n" not in str(caught.value)


class Never(Encoder):
    name, dim, fingerprint = "never", 1, "00"

    def prepare(self, images):
        raise AssertionError("an image was embedded before the mistake was found")


def test_mistakes_are_found_before_anything_is_embedded():
    with pytest.raises(EncoderError, match="did you mean pixels"):
        run("knn", [Never(), "pixel"], drawn(20))
    with pytest.raises(SettingError, match="k must be at least 1"):
        run("knn", [Never()], drawn(20), k=0)


def test_the_table_is_aligned_and_tells_all():
    train, test = drawn(), drawn(80, seed=1)
    text = table(run("knn", ["pixels", "colour"], train, test))
    lines = text.splitlines()
    assert lines[0].split() == ["encoder", "metric", "value", "95", "%", "interval", "n", "minus", "pixels", "(95", "%)"]
    starts = [[i for i in range(2, len(line)) if line[i - 2 : i] == "  " and line[i] != " "] for line in lines[:3]]
    assert starts[0] == starts[2] and starts[1] == starts[0][:-1]
    assert lines[3] == "" and lines[4].startswith("k-NN, k=20")


def test_the_table_shows_balance_where_classes_are_uneven():
    source = open_data("photos@test")
    rows = np.flatnonzero((source.labels > 2) | (np.arange(960) % 4 == 0))
    uneven = Subset(source, rows)
    (result,) = run("knn", ["colour"], source, uneven)
    text = table([result])
    assert "balanced" in text and f"{result.details['balanced_accuracy']:.3f}" in text and f"{result.details['auroc']:.3f}" in text
    assert "balanced" not in table(run("knn", ["colour"], source, Subset(source, np.arange(960)[::2])))
