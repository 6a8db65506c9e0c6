"""Auxiliaries alone: a run from data to encoder without a method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys

import gnothi
from gnothi import pretrain
from gnothi.contracts import Outputs, SettingError, Want
from gnothi.methods.none import NoMethod, NoneSpec
from gnothi.models import backbone as backbones
from gnothi.plan import plan
from gnothi.randomness import generator
from gnothi.recipes.resolve import resolve
from gnothi.training import checkpoint, health
from gnothi.training.progress import Silent
from gnothi.training.signals import Interrupted

AUXILIARIES: dict[str, dict[str, Any]] = {
    "rotation": {},
    "jigsaw": {"grid": 2, "image": 22, "tile": 8, "permutations": 6, "hidden": 8, "max_occlusions": 1},
}
TIMES = ("seconds", "images_per_second", "waiting")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "noise.npz"
    images = torch.randint(256, (40, 24, 24, 3), generator=generator(0, "images"), dtype=torch.uint8)
    np.savez(path, images=images.numpy(), labels=np.arange(40) % 2)
    return path


def settings(*auxiliaries: str, **changes: Any) -> dict[str, Any]:
    return {
        "method": {"name": "none"},
        "auxiliary": {name: {**AUXILIARIES.get(name, {}), **changes} for name in auxiliaries},
        "backbone": {"name": "micro-resnet", "args": {"widths": [4, 8]}},
        "views": {"size": 16},
        "training": {"epochs": 2, "batch": 8, "threads": 1, "health_every": "2 steps", "log_every": "2 steps"},
    }


def content(out: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    newest = checkpoint.newest(out)
    assert newest is not None
    return checkpoint.read(newest)[0], [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


@pytest.mark.parametrize("names", [("rotation",), ("jigsaw",), ("rotation", "jigsaw")], ids="+".join)
def test_a_run_without_a_method_trains_resumes_bit_for_bit_and_gives_an_encoder(names, data, tmp_path):
    given = settings(*names)
    whole = pretrain.train(str(data), settings=given, device="cpu", out=tmp_path / "whole", progress=Silent())
    given["training"]["checkpoint_every"] = "1 step"
    with pytest.raises(Interrupted):
        pretrain.train(str(data), settings=given, device="cpu", out=tmp_path / "parts", progress=toys.StopsAt(5))
    pretrain.train(str(data), settings=given, device="cpu", out=tmp_path / "parts", resume=True, progress=Silent())
    (a, lines_a), (b, lines_b) = content(tmp_path / "whole"), content(tmp_path / "parts")
    assert toys.same(a, b) and lines_a == lines_b
    train, measured = ([line for line in lines_a if line["kind"] == kind] for kind in ("train", "health"))
    assert train[-1]["terms"].keys() == set(names) and "momentum" not in train[-1]
    assert measured[-1].keys() >= {"feature_std", "rankme"} and "std" not in measured[-1]
    assert whole.verdict["verdict"] in ("healthy", "undecided") and not any(word in whole.verdict["why"] for word in ("projection", "nan"))
    assert all(0 <= line[f"{name}_accuracy"] <= 1 for line in measured for name in names)
    assert gnothi.load(str(tmp_path / "whole"), device="cpu").embed(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)).shape == (2, 8)


def test_nothing_of_the_views_is_encoded_and_nothing_compared():
    base = NoMethod(toys.ToyBackbone(), NoneSpec())
    base.backbone.forward = lambda *args: pytest.fail("encoded")  # type: ignore[method-assign]
    outputs = base(toys.views(4, dtype=torch.float32), Want(), toys.step())
    assert outputs == Outputs((), ()) and base.loss(toys.views(4), outputs, toys.step())[0] == {}
    assert base.weights(toys.step()) == {} and base.space.momentum(toys.step()) is None and not list(base.space.parameters())


def test_views_are_a_plain_crop_and_a_plan_counts_what_auxiliaries_encode(data):
    resolved = resolve(str(data), settings=settings("rotation", "jigsaw"), device="cpu")
    (crop,) = resolved.views.global_crops
    assert crop.photometric == type(crop.photometric)() and crop.flip == 0.5
    planned = plan(resolved, steps=3)
    network = pretrain.build(resolved).method.backbone
    one = 4 * backbones.flops(network, 3, 16) + 4 * backbones.flops(network, 3, 8)  # four turns, four tiles
    assert planned["flops"] == 3 * one * 8 * resolved.total


def test_features_that_are_one_vector_are_a_collapse_and_narrow_ones_are_none():
    """Features after a ReLU all lie in one quarter of space; what projections of healthy runs do is no measure for them."""

    def verdict(std: float) -> health.Verdict:
        return health.verdict([{"feature_std": std, "rankme": 3.0}] * 3, "none", 100)

    assert (verdict(0.01).verdict, verdict(0.01).collapse) == ("collapsed", "constant")
    assert verdict(0.2).verdict == "healthy" and verdict(0.2).why.startswith("features spread 0.20")


@pytest.mark.parametrize(("share", "word"), [(0.26, "undecided"), (0.4, "healthy")])
def test_a_run_that_names_angles_no_better_than_chance_is_undecided(share, word):
    def verdict(**more: float) -> health.Verdict:
        basis = {"feature_std": 0.5, "rankme": 9.0, "rotation_chance": 0.25, **more}
        noisy = [{**basis, "rotation_accuracy": share + e} for e in (0.4, 0.3, 0.02, -0.01)]
        return health.verdict(noisy, "none", 100)

    assert verdict().verdict == word and ("rotation is right 0.2" in verdict().why) == (word == "undecided")
    assert verdict(std=0.9, projection_rankme=9.0).verdict == "healthy"  # beside a method it is no verdict on the run


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        ((), {}, r"method\.name=none learns nothing itself: it needs --auxiliary rotation or jigsaw"),
        (("layers",), {}, r"layers.* (needs?|method)"),
        (("local",), {}, r"local.* (needs?|method)"),
        (("rotation",), {"weight": 0}, "learns nothing itself"),
        (("rotation",), {"start": 0.5}, "of a weight above 0, from the start"),
    ],
)
def test_a_run_with_nothing_to_learn_is_refused_in_one_line(names, changes, message, data):
    with pytest.raises(SettingError, match=message) as caught:
        resolve(str(data), settings=settings(*names, **changes), device="cpu")
    assert "\n" not in str(caught.value)


def test_it_has_no_settings_and_takes_no_local_crops(data):
    for changes, message in (
        ({"method": {"name": "none", "hidden": 3}}, r"method\.hidden: no such setting"),
        ({"views": {"size": 16, "local": 2}}, r"views\.local must be 0 for none, which takes no local crops, got 2"),
        ({"method": {"name": "byol"}, "views": {"size": 16, "recipe": "plain"}}, r'"plain" makes one crop, .* byol compares two'),
    ):
        with pytest.raises(SettingError, match=message):
            resolve(str(data), settings={**settings("rotation"), **changes}, device="cpu")
