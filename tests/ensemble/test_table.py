"""The table of combiners: the numbers of evaluation by hand, intervals to the best member and to the concatenation, nothing fitted to test images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from terminal import gnothi, said
from test_fitted import drawn

from gnothi import evaluate
from gnothi.contracts import SettingError
from gnothi.data import ArraySource
from gnothi.encoders import load
from gnothi.ensemble import compare, fit, text
from gnothi.ensemble.best import POWERS
from gnothi.ensemble.table import AS_TRAINED, CHOSEN

MEMBERS = ["hog", "colour"]
QUICK = {"epochs": 2, "hidden": 16, "width": 8, "batch": 32}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GNOTHI_CACHE", str(tmp_path / "cache"))


def test_numbers_and_differences_are_those_of_evaluation_by_hand() -> None:
    train, test = drawn(tint=75), drawn(seed=1, tint=75)
    found = {r.encoder: r for r in compare(MEMBERS, train, test, ("pca", "gcca"), protocol={"k": 5})}
    assert list(found) == ["best", "concatenation", *MEMBERS, *(f"pca {p:g}" for p in POWERS), CHOSEN, "gcca"]
    x, y = ([load(name).embed_source(s) for name in MEMBERS] for s in (train, test))
    arms = {"gcca": ("gcca", {}), "pca 0.5": ("pca", {"power": 0.5}), "concatenation": ("concatenation", {}), "colour": ("member", {"number": 1})}
    by_hand = {}
    for name, (combiner, settings) in {**arms, "best": ("best", {"k": 5}), CHOSEN: ("pca", {"power": "holdout", "k": 5})}.items():
        made = fit(x, combiner, labels=train.labels, **settings)
        by_hand[name] = evaluate.knn(made.transform(x), train.labels, made.transform(y), test.labels, 5)
        assert found[name].value == by_hand[name].value and found[name].details["width"] == made.width
    difference = evaluate.paired(by_hand["gcca"].correct, by_hand["concatenation"].correct)
    shown = found["gcca"].details["paired_concatenation"]
    assert (shown["value"], shown["low"], shown["high"]) == (difference.value, difference.low, difference.high)
    difference, shown_too = evaluate.paired(by_hand["gcca"].correct, by_hand[CHOSEN].correct), found["gcca"].details["paired_chosen"]
    assert (shown_too["value"], shown_too["low"], shown_too["against"]) == (difference.value, difference.low, CHOSEN)
    assert (
        "paired_chosen" not in found[CHOSEN].details
        and found["gcca"].details["paired"]["against"] == "best"
        and "paired" not in found["best"].details
    )
    assert found["best"].value == found["colour"].value and shown["value"] != found["gcca"].details["paired"]["value"]


def test_codes_as_trained_stand_beside_inferred_ones() -> None:
    found = compare(MEMBERS, drawn(), drawn(seed=1), ("descent",), options={"descent": QUICK})
    assert [r.encoder for r in found][-2:] == ["descent", AS_TRAINED]
    assert found[-1].details["exponent"] != found[-2].details["exponent"]


def test_test_images_have_no_part_in_a_fit() -> None:
    """The vectors of one test image are the same whichever other test images there are."""
    train, test = drawn(), drawn(seed=1)
    other = ArraySource(torch.cat([test.array[:1], 255 - test.array[1:]]), test.labels, ("a", "b", "c"))
    a, b = (compare(MEMBERS, train, t, ("pca", "descent"), options={"descent": QUICK}) for t in (test, other))
    assert [r.details["exponent"] for r in a] == [r.details["exponent"] for r in b]
    assert [r.correct[0] for r in a] == [r.correct[0] for r in b]


def test_images_that_cannot_be_read_are_left_out() -> None:
    class Broken(ArraySource):
        def fingerprint(self) -> str:
            return "broken"

    source = Broken(drawn().array, drawn().labels, ("a", "b", "c"))
    vectors = np.array(load("hog").embed_source(drawn()))
    from gnothi.encoders import features  # the store already holds them, with a row that is missing

    class Seen(type(load("hog"))):
        def blocks(self, source, rows=None, progress=None):
            vectors[3] = np.nan
            yield vectors if rows is None else vectors[rows]

    encoder = load("hog")
    encoder.__class__ = Seen
    features(encoder, source)
    found = compare([encoder, "colour"], source, source, ("average",))
    assert all(r.n == 59 for r in found)


def test_a_setting_of_what_is_not_compared_is_refused() -> None:
    with pytest.raises(SettingError, match="settings of gcca have no effect"):
        compare(MEMBERS, drawn(), drawn(seed=1), ("pca",), options={"gcca": {"ridge": 1}})


def test_the_text_has_a_line_a_result_and_the_protocol() -> None:
    found = compare(MEMBERS, drawn(), drawn(seed=1), ("average",))
    lines = text(found).splitlines()
    assert len(lines) == 1 + len(found) + 2 and all(line.startswith(r.encoder) for line, r in zip(lines[1:], found, strict=False))
    assert f"{found[-1].value:.3f}" in lines[len(found)] and "k-NN, k=20" in lines[-1]


# ---- the command line ------------------------------------------------------------------------------
@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    parts = {"train": drawn(), "test": drawn(seed=1)}
    arrays = {f"{k}_images": v.array.movedim(1, 3).numpy() for k, v in parts.items()} | {f"{k}_labels": v.labels for k, v in parts.items()}
    np.savez("tiny.npz", **arrays)
    return "tiny.npz"


def test_a_fit_is_an_encoder_for_other_verbs(data: str) -> None:
    told = said("ensemble", "fit", *MEMBERS, "--data", data, "--out", "both", "--set", "power=0.5", "--set", "width=10")
    assert told["dim"] == 10 and told["n"] == 60 and told["exponent"] == pytest.approx(0.5, abs=0.02)
    measured = said("evaluate", "knn", "both", "--data", data)
    assert measured["encoder"] == "both" and measured["n"] == 60
    assert said("embed", "both", data, "--out", "both.npy")["dim"] == 10
    assert said("ensemble", "fit", "both", "colour", "--data", data, "--out", "more", "--combiner", "average")["dim"] == 48


def test_the_command_compares(data: str) -> None:
    told = said("ensemble", "compare", *MEMBERS, "--data", data, "--combiner", "pca", "--set", "pca.power=0", "-k", "3")
    assert [r["encoder"] for r in told["results"]] == ["best", "concatenation", *MEMBERS, "pca"]
    assert "k=3" in told["results"][0]["protocol"]
    done = gnothi("ensemble", "compare", "colour", "--data", data, "--combiner", "average")
    assert done.code == 0 and "minus concatenation (95 %)" in done.out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("fit", "hog", "--out", "x", "--combiner", "pcaa"), "did you mean pca?"),
        (("fit", "hog", "--out", "x", "--set", "powr=0"), "pca.powr: no such setting; did you mean power?"),
        (("fit", "hog", "--out", "x", "--set", "seed=1"), "pca.seed: no such setting"),
        (("fit", "hgo", "--out", "x"), "did you mean hog?"),
        (("fit", "hog", "--out", "tiny.npz"), "is no ensemble"),
        (("compare", "hog", "--set", "power=0"), "such as pca.power or descent.power"),
    ],
)
def test_mistakes_are_said_in_a_line(data: str, args: tuple[str, ...], words: str) -> None:
    done = gnothi("ensemble", *args, "--data", data)
    assert done.code == 2 and words in done.err and len(done.err.strip().splitlines()) == 1
