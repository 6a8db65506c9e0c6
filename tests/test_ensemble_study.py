"""The study of ensembles asks for what it says: arms at toy size, with handcrafted members in the place of runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gnothi import evaluate
from gnothi.contracts import Pixels
from gnothi.encoders import load
from gnothi.encoders.network import NetworkEncoder
from gnothi.ensemble import EnsembleEncoder, fit
from gnothi.models import backbone
from gnothi.randomness import generator


def toy(folder: Path, n: int, channels: tuple[int, ...] = (3,)) -> Path:
    """train.npz and test.npz of noisy tinted images, sorted by class."""
    folder.mkdir(parents=True)
    for number, (split, many) in enumerate((("train", n), ("test", 40))):
        labels = np.repeat(np.arange(10), many // 10)
        noise = torch.randn(len(labels), 16, 16, *channels, generator=generator(number, "toy")).numpy()
        tint = 128 + 60 * np.sin(labels[:, None] + np.arange(3))[:, : channels[0] if channels else 1]
        images = tint[:, None, None] + 40 * noise if channels else tint[:, None] + 40 * noise
        np.savez(folder / f"{split}.npz", images=images.clip(0, 255).astype(np.uint8), labels=labels)
    return folder


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("GNOTHI_CACHE", str(tmp_path / "cache"))
    from experiments import ensemble

    monkeypatch.setattr(ensemble, "COMBINERS", ("pca", "descent"))
    return ensemble


@pytest.fixture
def study(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    images = tmp_path / "cifar.npz"
    module.write_images(toy(tmp_path / "data", 300), images, 300, 40)
    monkeypatch.setattr(module.Study, "members", lambda self, kind, seed: ["hog", "colour"])
    return module.Study(images, tmp_path / "found", tmp_path / "out", tmp_path / "results.json", 4, 1, "holdout")


def test_a_table_has_all_measures_of_one_fit_and_another_part_is_held_out_for_each_seed(module: Any, study: Any) -> None:
    study.run("table/mixed/0")
    study.run("table/mixed/1")
    found = json.loads(study.results.read_text())
    assert list(found) == ["table/mixed/0@holdout", "table/mixed/1@holdout"]
    rows = found["table/mixed/0@holdout"]
    of = {m: [r for r in rows if r["metric"] == m] for m in module.MEASURES}
    assert len({len(own) for own in of.values()}) == 1 and sum(map(len, of.values())) == len(rows)
    assert all("k=200" in r["protocol"] and "/0.1)" in r["protocol"] for r in of["knn 200"])
    descents = {m: next(r for r in own if r["encoder"] == "descent") for m, own in of.items()}
    assert len({r["seconds"] for r in descents.values()}) == 1 and all("paired_chosen" in r for r in descents.values())
    assert "(seed 0)" in rows[0]["protocol"] and "(seed 1)" in found["table/mixed/1@holdout"][0]["protocol"]
    made, parts = study.features(["hog"], 1)
    assert len(made[0][0]) == 240 and "(seed 1)" in parts.words


def test_combiners_fitted_elsewhere_are_the_frozen_ones_of_a_hand(module: Any, study: Any, tmp_path: Path) -> None:
    """Grey images in folders of train.npz and test.npz; PCA of the source's training rows, at all powers and the one chosen there, and best."""
    grey = toy(tmp_path / "grey", 250, ())
    rows = study.transfer(str(grey).replace("/", ":"), "0")
    frozen = {(r["encoder"], r["metric"]): r for r in rows if r["maps"] == "frozen"}
    assert {f"pca {p:g}" for p in (0, 0.25, 0.5, 0.75, 1)} | {"pca, power chosen", "best"} <= {name for name, _ in frozen}
    assert {m for _, m in frozen} == set(module.MEASURES)
    members = [load(name) for name in ("hog", "colour")]
    source, part = study.features(["hog", "colour"], 0)
    made = fit(source[0], "pca", power=0.5)
    target = module.split(f"{tmp_path}/out/grey-colour.npz@train", None, module.DataSpec(), 0)
    vectors = [made.transform([m.embed_source(p.source)[p.rows] for m in members]) for p in (target.train, target.test)]
    by_hand = evaluate.knn(vectors[0], target.train.labels, vectors[1], target.test.labels, 20, 0.1)
    assert frozen["pca 0.5", "knn 20"]["value"] == by_hand.value and by_hand.n == 50
    fitted = next(r for r in rows if (r["encoder"], r["metric"], r["maps"]) == ("pca 0.5", "knn 20", "fitted to the target"))
    assert fitted["exponent"] != frozen["pca 0.5", "knn 20"]["exponent"]
    choice = fit(source[0], "best", labels=part.train.labels, k=20, temperature=0.1).record["chosen"]
    assert frozen["best", "knn 20"]["value"] == frozen[("hog", "colour")[choice], "knn 20"]["value"]


@pytest.mark.parametrize("name", ["default", "amortised, steps 5", "members 1", "first member missing when asked", "reconstruction"])
def test_the_grid_changes_one_thing(module: Any, study: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    real = module.ensemble.fit

    def quick(features: Any, combiner: str, **settings: Any) -> Any:
        asked.append((len(features), combiner, settings))
        return real(features, combiner, **settings, epochs=1, hidden=8)

    monkeypatch.setattr(module.ensemble, "fit", quick)
    rows = study.grid(name, "0")
    assert [r["metric"] for r in rows] == ["knn 20", "knn 200"] and all(r["n"] == 60 for r in rows)
    expected = {"default": (2, "descent", {}), "amortised, steps 5": (2, "amortised", {"steps": 5}), "members 1": (1, "descent", {})}
    many, combiner, settings = expected.get(name, (2, "descent", {}))
    assert asked == [(many, combiner, {"seed": 0, **settings})]


def test_codes_without_a_member_and_reconstructions_are_others_than_codes(study: Any) -> None:
    values = {name: study.grid(name, "0")[0] for name in ("default", "first member missing when asked", "reconstruction")}
    assert len({(r["value"], r["protocol"][:20]) for r in values.values()}) > 1


def test_lengths_are_runs_of_their_own_and_students_learn_all_images(module: Any, study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[str, dict[str, Any]]] = []

    def train(data: str, *, out: Path, settings: Any, resume: bool) -> None:
        trained.append((out.name, settings))
        out.mkdir(parents=True)
        (out / "verdict.json").write_text('{"seconds": 1}')

    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module.Study, "compared", lambda self, members, seed, combiners: [{"encoder": members[0]}])
    assert [r["epochs"] for r in study.length("2")] == [1, 2, 4, 8]
    assert [(name, s["training"]["epochs"], s["seed"]) for name, s in trained] == [
        ("simclr-1-epochs-2", 1, 2), ("simclr-2-epochs-2", 2, 2), ("simclr-2", 4, 2), ("simclr-8-epochs-2", 8, 2)
    ]  # fmt: skip
    taught: list[dict[str, Any]] = []
    monkeypatch.setattr(module, "transfer", lambda teachers, data, **asked: taught.append({"teachers": teachers, **asked}))
    monkeypatch.setattr(module.evaluate, "run", lambda kind, names, *_, **__: [evaluate.Result(kind, 0.5, 0.4, 0.6, 9, "", n) for n in names])
    monkeypatch.setattr(module, "cost", lambda name: {"parameters": len(name)})
    rows = study.student("0")
    assert [t["settings"]["data"] for t in taught] == [{"holdout": 0}] * 2 and [len(t["teachers"]) for t in taught] == [1, 2]
    assert all(r["parameters"] for r in rows) and len(rows) == 3 * 5


def test_what_is_done_is_not_done_again_and_every_seed_has_every_arm(module: Any, study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(module.Study, "sweep", lambda self, seed: calls.append(seed) or [{"value": 1}])
    for judge in ("holdout", "holdout", "test"):
        replace(study, judge=judge).run("sweep/0")
    assert calls == ["0", "0"] and set(json.loads(study.results.read_text())) == {"sweep/0@holdout", "sweep/0"}
    named = module.arms(3, ["a/b"])
    assert len(named) == len(set(named)) == 3 * (4 + 1 + 4 + len(module.GRID)) and "transfer/a:b/2" in named
    assert all(len(name.split("/")) in (2, 3) for name in named)


def test_costs_are_those_of_the_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every convolution's and matrix's multiplications counted by hand; an ensemble costs its members and its maps, a handcrafted encoder nothing."""
    from experiments.cost import _cost, cost

    monkeypatch.setenv("GNOTHI_CACHE", str(tmp_path / "cache"))
    network = backbone.build(backbone.BackboneSpec(name="micro-resnet"), 3, 32, 0)
    encoder = NetworkEncoder("micro", network, backbone.BackboneSpec(name="micro-resnet"), 3, 32, Pixels(0, 255, (0.5,) * 3, (0.2,) * 3))
    counted = []

    def count(layer: Any, inputs: Any, output: Any) -> None:
        per = layer.weight[0].numel() if isinstance(layer, torch.nn.Conv2d) else layer.in_features
        counted.append(2 * per * output.numel())

    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(count)
    found = _cost(encoder, "micro")
    assert found["flops"] == sum(counted) > 0 and found["parameters"] == sum(p.numel() for p in network.parameters())
    assert cost("hog") == {"parameters": 0, "flops": 0}
    x = [torch.randn(40, d, generator=generator(0, "x", d)) for d in (network.width, 5)]
    made = EnsembleEncoder("both", fit(x, "concatenation"), [encoder, None], 3, {})
    assert _cost(made, "both") == {"parameters": found["parameters"] + network.width + 5, "flops": found["flops"]}
