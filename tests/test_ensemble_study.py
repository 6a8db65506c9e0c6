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
from gnothi.contracts import Pixels, RunError, SettingError
from gnothi.encoders import load
from gnothi.encoders.network import NetworkEncoder
from gnothi.ensemble import EnsembleEncoder, fit
from gnothi.models import backbone
from gnothi.randomness import generator
from gnothi.recipes.resolve import resolve
from gnothi.recipes.spec import merge

SETTINGS = {"data": "toys", "a_class": 30, "epochs": 4}


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
    monkeypatch.setattr(module.Members, "of", lambda self, kind, seed: ["hog", "colour"])
    runs = module.Members(images, tmp_path / "found", tmp_path / "out", 4, 1)
    return module.Study(runs, tmp_path / "results.json", SETTINGS, "holdout", {"grey": str(tmp_path / "grey")})


def arms(study: Any) -> dict[str, Any]:
    """What stands in the results, which say their settings."""
    found = json.loads(study.results.read_text())
    assert found["settings"] == SETTINGS
    return found["arms"]


def test_a_table_has_all_measures_of_one_fit_and_another_part_is_held_out_for_each_seed(module: Any, study: Any) -> None:
    study.run("table/mixed/0")
    study.run("table/mixed/1")
    found = arms(study)
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
    toy(tmp_path / "grey", 250, ())
    rows = study.transfer("grey", "0")
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


def test_results_name_no_folder_and_are_read_again_as_they_were(module: Any, study: Any) -> None:
    result = evaluate.Result(
        "knn", 0.123456789, 0.1, 0.2, 9, "k-NN, votes exp(similarity/0.1), there/cifar.npz@train (9 images)", "/some/where/simclr-0"
    )
    row = module.shown(replace(result, details={"paired": {"against": "x", "value": 1 / 3, "low": 0.0, "high": 1e-9, "n": 4}}))
    assert (row["encoder"], row["protocol"]) == ("simclr-0", "k-NN, votes exp(similarity/0.1), cifar.npz@train (9 images)")
    assert row["value"] == 0.12346 and row["paired"] == {"value": 0.33333, "low": 0.0, "high": 1e-9}
    arms = {"a/0": [row, row], "b/1@holdout": {"failed": 'so "x"'}}
    assert json.loads(module.lines(SETTINGS, arms)) == {"settings": SETTINGS, "arms": arms}


@pytest.mark.parametrize("name", ["default", "amortised, steps 5", "members 1", "first member missing when asked", "reconstruction"])
def test_the_grid_changes_one_thing(module: Any, study: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    beside: list[tuple[Any, ...]] = []
    real = module.ensemble.fit

    def quick(features: Any, combiner: str, **settings: Any) -> Any:
        if combiner == "pca":
            beside.append((len(features), settings["width"], settings["power"], settings["k"]))
            return real(features, combiner, **settings)
        asked.append((len(features), combiner, settings))
        return real(features, combiner, **settings, epochs=1, hidden=8)

    monkeypatch.setattr(module.ensemble, "fit", quick)
    rows = study.grid(name, "0")
    assert [r["metric"] for r in rows] == ["knn 20", "knn 200"] and all(r["n"] == 60 for r in rows)
    expected = {"default": (2, "descent", {}), "amortised, steps 5": (2, "amortised", {"steps": 5}), "members 1": (1, "descent", {})}
    many, combiner, settings = expected.get(name, (2, "descent", {}))
    assert asked == [(many, combiner, {"seed": 0, **settings})]
    width = min(rows[0]["width"], 239)
    assert beside == [(many, width, "holdout", 20), (many, width, "holdout", 200)]  # of the same members, at equal width
    assert all(r["paired_chosen"]["low"] <= r["paired_chosen"]["value"] <= r["paired_chosen"]["high"] for r in rows)


def test_ideas_are_asked_of_members_and_of_mirrored_images_where_they_say_so(module: Any, study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """hog and colour of mirrored images by hand, for the same rows."""
    asked: list[list[list[torch.Tensor]]] = []
    monkeypatch.setitem(module.IDEAS, "own", lambda train, test, seed: asked.append([train, test]) or (train[0], test[0]))
    monkeypatch.setitem(module.VIEWS, "both", lambda train, test, seed: asked.append([train, test]) or (train[2], test[2]))
    rows = [*study.tried("own", "1"), *study.tried("both", "1")]
    assert [r["metric"] for r in rows] == ["knn 20", "knn 200"] * 2 and all("paired_chosen" in r and r["n"] == 60 for r in rows)
    (own, tested), (both, mirrored) = asked
    assert [len(x) for x in (*own, *tested, *both, *mirrored)] == [240] * 2 + [60] * 2 + [240] * 4 + [60] * 4
    assert torch.equal(own[1], both[1]) and torch.equal(tested[0], mirrored[0])
    _, parts = study.features(["hog"], 1)
    turned = torch.stack([parts.test.source.image(int(row)).flip(2) for row in parts.test.rows])
    np.testing.assert_allclose(mirrored[2].numpy(), load("hog").embed(turned).numpy(), atol=1e-6)


@pytest.mark.parametrize("name", ["own", "grey"])
def test_spectra_are_those_of_a_hand(module: Any, study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Of one member and of both, on the images of the members and on others."""
    named = {"pca 0.25, floor 1", "descent from 0, power 0"}
    monkeypatch.setattr(module, "SPECTRA", {key: module.SPECTRA[key] for key in module.SPECTRA if key in named})
    toy(tmp_path / "grey", 250, ())
    rows = study.spectrum(name, "0")
    assert [(r["of"], r["chosen"]) for r in rows] == [(of, c) for of in ("one member", "together") for c in module.SPECTRA for _ in range(2)]
    images = study.runs.images if name == "own" else tmp_path / "out" / "grey-colour.npz"
    parts = module.split(f"{images}@train", None, module.DataSpec(), 0)
    features = [[load("hog").embed_source(p.source, p.rows)] for p in (parts.train, parts.test)]
    made = fit(features[0], "pca", power=0.25, floor=1.0)
    x, y = (made.transform(part) for part in features)
    assert rows[0]["value"] == evaluate.knn(x, parts.train.labels, y, parts.test.labels, 20, 0.1).value
    assert rows[2]["exponent"] == pytest.approx(fit(features[0], "descent", start_power=0.0, power=0.0).record["exponent"])


def test_codes_without_a_member_and_reconstructions_are_others_than_codes(study: Any) -> None:
    values = {name: study.grid(name, "0")[0] for name in ("default", "first member missing when asked", "reconstruction")}
    assert len({(r["value"], r["protocol"][:20]) for r in values.values()}) > 1


@pytest.mark.parametrize("there", [False, True])
def test_lengths_are_runs_of_their_own_but_for_the_members_own(
    module: Any, study: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: bool
) -> None:
    from experiments import members

    trained: list[tuple[str, dict[str, Any]]] = []

    def train(data: str, *, out: Path, settings: Any, resume: bool) -> None:
        trained.append((out.name, settings))

    if there:
        (tmp_path / "found" / "simclr-2").mkdir(parents=True)
        (tmp_path / "found" / "simclr-2" / "verdict.json").write_text("{}")
        monkeypatch.setattr(module.Members, "fits", lambda self, run, chosen: True)
    monkeypatch.setattr(members, "train", train)
    monkeypatch.setattr(module.Study, "compared", lambda self, members, seed, combiners: [{"encoder": members[0]}])
    found = study.length("2")
    assert [r["epochs"] for r in found] == [1, 2, 4, 8] and (str(tmp_path / "found" / "simclr-2") == found[2]["encoder"]) == there
    expected = [("simclr-1-epochs-2", 1, 2), ("simclr-2-epochs-2", 2, 2), ("simclr-2", 4, 2), ("simclr-8-epochs-2", 8, 2)]
    assert [(name, s["training"]["epochs"], s["seed"]) for name, s in trained] == [e for e in expected if not there or e[0] != "simclr-2"]


def test_students_learn_all_images_of_one_ensemble_and_go_on_with_their_threads(
    module: Any, study: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taught: list[dict[str, Any]] = []
    monkeypatch.setattr(module, "transfer", lambda teachers, data, **asked: taught.append({"teachers": teachers, **asked}))
    monkeypatch.setattr(module.evaluate, "run", lambda kind, names, *_, **__: [evaluate.Result(kind, 0.5, 0.4, 0.6, 9, "", n) for n in names])
    monkeypatch.setattr(module, "cost", lambda name: {"parameters": len(name)})
    rows = study.student("0")
    assert [t["settings"]["data"] for t in taught] == [{"holdout": 0}] * 2 and [len(t["teachers"]) for t in taught] == [1, 2]
    assert all(r["parameters"] for r in rows) and len(rows) == 3 * 5
    made = (tmp_path / "out" / "together-0" / "ensemble.json").stat().st_mtime_ns
    (tmp_path / "out" / "student-0").mkdir()
    (tmp_path / "out" / "student-0" / "spec.json").write_text(json.dumps({"settings": {"training": {"threads": 7}}}))
    assert study.student("0") == rows and (tmp_path / "out" / "together-0" / "ensemble.json").stat().st_mtime_ns == made
    assert [t["settings"]["training"]["threads"] for t in taught] == [1, 1, 7, 1]


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"training": {"epochs": 1}},
        {"seed": 1},
        {"method": {"name": "byol"}},
        {"auxiliary": {"rotation": {}}},
        {"backbone": {"name": "micro-vit"}},
        {"data": {"holdout": 0.1}},
        {"images": 200},
    ],
    ids=lambda changed: next(iter(changed), "nothing"),
)
def test_a_run_of_others_is_a_member_only_with_the_same_settings_and_images(
    module: Any, study: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changed: dict[str, Any]
) -> None:
    """Whose images lie in a file of another name, recorded as a run records them."""
    from experiments import members

    trained: list[Path] = []
    monkeypatch.setattr(members, "train", lambda data, *, out, **_: trained.append(out))
    theirs, run = tmp_path / "theirs.npz", tmp_path / "found" / "simclr-0"
    module.write_images(tmp_path / "data", theirs, changed.get("images", 300), 40)
    settings = merge(study.runs.chosen("simclr", 0, 4), {k: v for k, v in changed.items() if k != "images"})
    run.mkdir(parents=True)
    (run / "spec.json").write_text(json.dumps(resolve(f"{theirs}@train", settings=settings).record()))
    (run / "verdict.json").write_text("{}")
    own = tmp_path / "out" / "simclr-0"
    assert study.runs.one("simclr", 0) == str(own if changed else run) and trained == ([own] if changed else [])


def test_members_are_of_their_set(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = module.Members(tmp_path / "cifar.npz", tmp_path, tmp_path, 20, 1)
    monkeypatch.setattr(module.Members, "one", lambda self, name, seed: f"{name}-{seed}")
    mixed = runs.of("mixed", 3)
    assert mixed == ["simclr-3", "byol-3", "vicreg-3", "simclr-rotation-3"] and runs.of("crafted", 3) == [*mixed, "hog", "colour"]
    assert runs.of("seeds", 1) == [f"simclr-{s}" for s in (10, 11, 12, 13)] and runs.of("alone", 2) == ["simclr-2"]
    assert runs.of("vit", 3) == [f"{name[:-2]}-vit-3" for name in mixed]
    plain, vit = (runs.chosen(name, 3, 20) for name in ("simclr-rotation", "simclr-rotation-vit"))
    assert plain["backbone"] == {"name": "micro-resnet"} and vit == plain | {"backbone": {"name": "micro-vit"}}


def test_what_is_done_is_not_done_again_and_every_seed_has_every_arm(module: Any, study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(module.Study, "sweep", lambda self, seed: calls.append(seed) or [{"value": 1}])
    for judge in ("holdout", "holdout", "test"):
        replace(study, judge=judge).run("sweep/0")
    assert calls == ["0", "0"] and set(arms(study)) == {"sweep/0@holdout", "sweep/0"}
    named = module.kinds(["b"])
    ideas = module.IDEAS | module.VIEWS
    assert len(named) == len(set(named)) == 4 + 1 + 2 + 4 + len(module.GRID) + len(ideas) and "transfer/b" in named and "table/vit" not in named
    assert all(len(name.split("/")) in (1, 2) for name in named)


def test_an_arm_whose_run_diverged_stands_there_with_the_reason_and_the_run_is_tried_once(
    module: Any, study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is another matter: it ends the study, and nothing is written of it."""
    from experiments import members

    tried: list[str] = []

    def train(data: str, *, out: Path, **_: Any) -> None:
        tried.append(out.name)
        if out.name == "vicreg-1":
            raise RunError("metrics.jsonl cannot be written: no space left") from OSError(28, "no space left")
        raise RunError('term "vicreg" became nan at step 7; no checkpoint yet')

    monkeypatch.setattr(members, "train", train)
    monkeypatch.setattr(module.Members, "of", lambda self, kind, seed: [self.one("vicreg", seed)])
    for arm in ("sweep/0", "table/mixed/0", "sweep/0"):
        study.run(arm)
    with pytest.raises(RunError, match="no space left"):
        study.run("sweep/1")
    failed = {"failed": 'term "vicreg" became nan at step 7; no checkpoint yet'}
    assert tried == ["vicreg-0", "vicreg-1"] and arms(study) == {"sweep/0@holdout": failed, "table/mixed/0@holdout": failed}


@pytest.fixture
def command(module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Options of the command at toy size."""
    toy(tmp_path / "data", 300)
    monkeypatch.setattr(module.torch, "set_num_threads", lambda n: None)
    return ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--a-class", "10", "--results", str(tmp_path / "found.json")]


def refused(module: Any, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The last line of what the command says."""
    with pytest.raises(SystemExit) as stopped:
        module.main(list(words))
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_names_that_are_wrong_are_refused_before_anything_trains(
    module: Any, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(module.Study, "run", lambda self, arm: ran.append(arm))
    grey, unlabelled, single = str(toy(tmp_path / "grey", 300, ())), tmp_path / "unlabelled.npz", tmp_path / "single.npz"
    np.savez(unlabelled, images=np.zeros((20, 16, 16, 3), np.uint8))
    np.savez(single, images=np.zeros((20, 16, 16), np.uint8), labels=np.zeros(20, np.int64))

    def said(arm: str, *more: str) -> str:
        return refused(module, capsys, arm, *command, *more)

    assert "there is no arm 'grid/spher/0'; did you mean grid/sphere/0?" in said("grid/spher/0")
    assert "there is no arm 'table/mixed/x'; did you mean table/mixed/0?" in said("table/mixed/x")
    assert "there is no arm 'transfer/none/0'" in said("transfer/none/0", "--transfer", grey)
    assert "--transfer: " in (line := said("sweep/0", "--transfer", str(tmp_path / "missing"))) and "missing" in line
    assert "must have labels" in said("sweep/0", "--transfer", grey, str(unlabelled))
    assert "must have 3 channels, as the images that train have, got 1" in said("sweep/0", "--transfer", str(single))
    assert "must hold train.npz and test.npz" in said("sweep/0", "--data", str(tmp_path / "out"))
    assert ran == []
    module.main(["transfer/grey/1", "table/vit/4", *command, "--transfer", grey])
    assert ran == ["transfer/grey/1", "table/vit/4"]


def test_results_and_runs_are_those_of_one_setting(
    module: Any, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders: list[str] = []
    monkeypatch.setattr(module.Study, "sweep", lambda self, seed: folders.append(self.runs.out.name) or [{"value": 1}])
    trial, final = (str(tmp_path / f"{name}.json") for name in ("trial", "final"))
    for epochs, file in (("1", trial), ("20", final), ("20", final)):
        module.main(["sweep/0", *command, "--epochs", epochs, "--results", file])
    assert folders == ["data-10-a-class-1-epochs", "data-10-a-class-20-epochs"]
    words = "trial.json holds arms of data data, a_class 10, epochs 1.0, not of data data, a_class 10, epochs 20.0; name another file with --results"
    assert words in refused(module, capsys, "sweep/0", *command, "--epochs", "20", "--results", trial)
    assert len(folders) == 2


def test_other_images_are_called_by_the_last_part_of_their_name(module: Any) -> None:
    given = ["work/flowers5/", "shards:there/x-{0..1}.tar", "there/p.npz@test", "photos"]
    assert module.named(given) == dict(zip(["flowers5", "x-{0..1}.tar", "p.npz test", "photos"], given, strict=True))
    with pytest.raises(SettingError, match="a/x and b/x are both called x"):
        module.named(["a/x", "b/x"])


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
