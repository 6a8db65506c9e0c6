"""The study of transfer asks for what it says: with stubs in the place of training, and of measuring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gnothi import evaluate
from gnothi.contracts import RunError

COST = {"parameters": 9, "flops": 5, "training_seconds": 2.0}


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    from experiments import students, transfer

    monkeypatch.setattr(transfer, "cost", lambda name: dict(COST))
    monkeypatch.setattr(students, "step_flops", lambda data, settings: 30.0 if settings["method"]["name"] == "simclr" else 10.0)
    return transfer


@pytest.fixture
def runs(module: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was trained, in order."""
    from experiments import students

    found: list[dict[str, Any]] = []

    def left(out: Path, **asked: Any) -> None:
        found.append({"name": out.name, "seed": int(out.parent.name[5:]), **asked})
        out.mkdir(parents=True)
        (out / "verdict.json").write_text("{}")

    monkeypatch.setattr(students, "train", lambda data, out, **asked: left(out, **asked))
    monkeypatch.setattr(students, "transfer", lambda teachers, data, out, **asked: left(out, teachers=teachers, **asked))
    return found


@pytest.fixture
def measured(module: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was measured: of ten rows the first ones right, as many as the encoder's seed and name say."""
    found: list[tuple[str, str]] = []

    def result(metric: str, encoder: str, **details: Any) -> evaluate.Result:
        found.append((metric, encoder))
        right = 8 if "teacher" in encoder else 4 if "direct" in encoder else 6
        return evaluate.Result(metric, right / 10, 0.1, 0.9, 10, "so", encoder, (0,), details, np.arange(10) < right)

    monkeypatch.setattr(module.evaluate, "run", lambda metric, encoders, *_, **__: [result(metric, e) for e in encoders])
    monkeypatch.setattr(
        module.evaluate, "layers", lambda encoders, *_, **__: [result("linear", encoders[0], block=b, features="pooled") for b in (0, 1)]
    )
    monkeypatch.setattr(module.evaluate, "finetune", lambda encoders, *_, **__: [result("finetune", encoders[0])])
    return found


def study(module: Any, folder: Path, *words: str) -> Any:
    asked = module.parsed(["images.npz", "--out", str(folder / "runs"), "--results", str(folder), *words])
    return module.Study(asked, "images.npz@train", "images.npz@test", 5000)


def test_key_arms_have_every_seed_and_all_a_difference_to_the_student_trained_directly(module: Any, runs: Any, measured: Any, tmp_path: Path) -> None:
    from experiments.students import KEY, SIFT

    made = study(module, tmp_path, "--seeds", "0,1,2", "--fit", "other.npz")
    made.all()
    trained = [(r["name"], r["seed"]) for r in runs]
    assert len(trained) == len(set(trained)) and [n for n, _ in trained].count("teacher") == 1
    assert all((name, seed) in trained for name in KEY for seed in range(3))
    once, elsewhere = {name for name, _ in trained} - {"teacher", *KEY}, f"fit-elsewhere-{made.students.fit['digest']}"
    assert once == {n.replace(" ", "-") for n in (SIFT, "bow-sift", "heads", module.TWO, "seed", "k=6", "k=100", elsewhere)}
    taught = {r["name"]: r for r in runs if "teachers" in r and r["seed"] == 0}
    teacher = str(made.students.folder / "seed-0" / "teacher")
    assert taught["hog"]["teachers"] == ["hog"] and taught["clusters"]["teachers"] == [teacher] and taught[elsewhere]["spec"].fit == "other.npz"
    assert taught[elsewhere]["spec"].k == 25  # one for every 200 of the 5,000, as the arm "clusters" has, whatever --fit holds
    assert (
        taught["shuffled"]["spec"].shuffle
        and taught["k=6"]["spec"].k == 6
        and taught[SIFT.replace(" ", "-")]["teachers"][0].startswith("bow-sift:images")
    )
    assert {r["teachers"][0] for r in runs if r["name"] == "clusters"} == {teacher}  # one teacher for all seeds
    assert taught["compress-with-two-queues"]["settings"]["method"] == {"queues": 2} and all(r["settings"]["data"] == {"holdout": 0} for r in runs)
    rows = json.loads((tmp_path / "transfer_rotation.json").read_text())["rows"]
    assert {r["settings"] for r in rows} == {made.students.digest} and all(r["parameters"] == 9 for r in rows)
    assert all(("paired_direct" in r) == (r["arm"] not in ("direct", "teacher")) for r in rows if r["measured"] in ("knn", "linear"))
    assert next(r for r in rows if r["arm"] == "clusters")["paired_direct"]["value"] == pytest.approx(0.2)
    assert {r["arm"] for r in rows if r["measured"] == "finetune"} == set(module.TUNED)
    assert {"untrained", "hog itself", "bow-sift itself", f"{SIFT} itself"} <= {r["arm"] for r in rows}
    before = len(measured)
    made.all()
    assert len(measured) == before and len(runs) == len(trained)


def test_compute_is_equal(module: Any, tmp_path: Path) -> None:
    """SimCLR's step here costs three of a taught student's: it gets three times the epochs, and with a slow network beside it a quarter fewer."""
    made = study(module, tmp_path, "--pretext", "simclr", "--epochs", "8")
    assert [made.students.epochs(arm) for arm in ("teacher", "direct", "clusters", "supervised", module.TWO)] == [10, 8, 24, 24, 18]
    spent = {arm: made.spent(arm, "run")["training_flops"] for arm in ("direct", "clusters", module.TWO)}
    assert spent == pytest.approx({arm: 30.0 * 5000 * 8 for arm in spent})


def test_other_settings_have_runs_and_rows_of_their_own(module: Any, runs: Any, measured: Any, tmp_path: Path) -> None:
    first, second = (study(module, tmp_path, "--seeds", "1", "--arms", "direct,hog", "--epochs", e) for e in ("2", "4"))
    first.all()
    second.all()
    again = study(module, tmp_path, "--seeds", "2", "--epochs", "4", "--threads", "2", "--fit", "other.npz")
    assert first.students.digest != second.students.digest == again.students.digest
    said, meant = (study(module, tmp_path, *words).students.digest for words in (("--epochs", "20", "--teacher-epochs", "10"), ()))
    assert said == meant
    assert [(r["name"], r["seed"], r["settings"]["training"]["epochs"]) for r in runs] == [
        ("direct", 1, 2),
        ("hog", 1, 2),
        ("direct", 1, 4),
        ("hog", 1, 4),
    ]
    found = json.loads((tmp_path / "transfer_rotation.json").read_text())
    assert {k: v["epochs"] for k, v in found["settings"].items()} == {first.students.digest: 2, second.students.digest: 4}
    assert len(found["rows"]) == 2 * (2 + 2 + 2 + 1)  # k-NN and linear of both arms, blocks and fine-tuning of direct


def test_other_images_that_ask_have_rows_of_their_own_of_the_same_students(module: Any, runs: Any, measured: Any, tmp_path: Path) -> None:
    for words in ((), ("--test", "there/a.npz"), ("--test", "elsewhere/a.npz"), ()):
        study(module, tmp_path, "--seeds", "0", "--arms", "hog", *words).all()
    assert [r["name"] for r in runs] == ["hog", "direct"]
    found = json.loads((tmp_path / "transfer_rotation.json").read_text())
    asking = [(found["settings"][r["settings"]].get("test"), r["measured"]) for r in found["rows"]]
    assert asking == [(test, metric) for test in (None, "there/a.npz", "elsewhere/a.npz") for metric in ("knn", "linear")]


def test_features_of_blocks_are_stored_with_the_others(
    module: Any, runs: Any, measured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches: list[tuple[str, Any]] = []

    def note(name: str) -> None:
        measure = getattr(module.evaluate, name)

        def noted(*given: Any, **more: Any) -> Any:
            caches.append((name, more.get("cache")))
            return measure(*given, **more)

        monkeypatch.setattr(module.evaluate, name, noted)

    note("run")
    note("layers")
    study(module, tmp_path, "--seeds", "0", "--arms", "direct").all()
    assert set(caches) == {(name, str(tmp_path / "runs" / "features")) for name in ("run", "layers")}


def test_what_others_wrote_meanwhile_stays(module: Any, runs: Any, measured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, path = study(module, tmp_path, "--arms", "direct", "--seeds", "0"), tmp_path / "transfer_rotation.json"
    rows = module.Study.rows

    def slow(self: Any, *of: Any) -> Any:
        path.write_text(json.dumps({"settings": {}, "rows": [{"arm": "x", "measured": "knn", "seed": 0, "settings": "0"}]}))
        return rows(self, *of)

    monkeypatch.setattr(module.Study, "rows", slow)
    made.one("direct", "knn", 0)
    assert [r["arm"] for r in json.loads(path.read_text())["rows"]] == ["x", "direct"]


def test_the_second_form_says_what_is_kept_of_a_teacher(module: Any, runs: Any, measured: Any, tmp_path: Path) -> None:
    made = study(module, tmp_path, "--of", "runs/teacher", "--widths", "8,16,32,64", "--seeds", "0")
    made.all()
    assert [r["name"] for r in runs] == ["direct", "regression", "clusters", "compress", "seed"]
    assert all(r["settings"]["backbone"] == {"name": "micro-resnet", "args": {"widths": [8, 16, 32, 64]}} for r in runs)
    assert all(r["teachers"] == ["runs/teacher"] for r in runs[1:]) and runs[0]["settings"]["method"]["name"] == "simclr"
    shares = {r["arm"]: r["share_of_teacher"] for r in json.loads((tmp_path / "transfer_student.json").read_text())["rows"] if r["measured"] == "knn"}
    assert shares == pytest.approx(
        {"teacher": 1, "direct": 0.5, "regression": 0.75, "clusters": 0.75, "compress": 0.75, "seed": 0.75, "untrained": 0.5}
    )


def test_photographs_and_halves_are_packed_beside_the_runs(module: Any, tmp_path: Path) -> None:
    for split, many in (("train", 6), ("val", 2)):
        for i in range(many):
            path = tmp_path / "photos" / split / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((20, 30, 3), 10 * i, dtype=np.uint8)).save(path)
    asked = module.parsed([str(tmp_path / "photos"), "--size", "16", "--out", str(tmp_path / "runs")])
    data, test, many = module.opened(asked)
    assert many == 6 and data.endswith("photos-16px.npz@train") and test == data.replace("@train", "@test")
    asked.test = "other.npz"
    assert module.opened(asked) == (data, "other.npz", 6)
    with np.load(data.partition("@")[0]) as packed:
        assert packed["train_images"].shape == (6, 16, 16, 3) and packed["test_images"].shape == (2, 16, 16, 3)
        assert (packed["train_images"].reshape(6, -1).T == np.array([0, 20, 40, 10, 30, 50])).all() and packed["train_labels"].tolist() == [
            0,
            0,
            0,
            1,
            1,
            1,
        ]


def test_a_corrected_fit_trains_its_own_arm_alone(module: Any, runs: Any, measured: Any, tmp_path: Path) -> None:
    asked = ["--seeds", "0", "--arms", "teacher,clusters,fit elsewhere", "--fit"]
    for fit in ("there/a.npz", "there/b.npz", "elsewhere/b.npz", "there/b.npz"):
        study(module, tmp_path, *asked, fit).all()
    elsewhere = [(r["name"], r["spec"].fit) for r in runs if r["name"].startswith("fit-elsewhere-")]
    assert len({name for name, _ in elsewhere}) == 3 and [fit for _, fit in elsewhere] == ["there/a.npz", "there/b.npz", "elsewhere/b.npz"]
    assert sorted(r["name"] for r in runs if r["name"] not in dict(elsewhere)) == ["clusters", "direct", "teacher"]
    rows = json.loads((tmp_path / "transfer_rotation.json").read_text())["rows"]
    assert [r["fit"]["name"] for r in rows if r["arm"] == "fit elsewhere" and r["measured"] == "knn"] == ["a.npz", "b.npz", "b.npz"]
    assert all(("fit" in r) == (r["arm"] == "fit elsewhere") for r in rows)


def test_rows_of_a_call_without_the_student_trained_directly_have_their_difference_to_it(
    module: Any, runs: Any, measured: Any, tmp_path: Path
) -> None:
    study(module, tmp_path, "--seeds", "1", "--arms", "hog").all()
    assert {r["name"] for r in runs} == {"hog", "direct"}
    rows = json.loads((tmp_path / "transfer_rotation.json").read_text())["rows"]
    assert [(r["arm"], r["measured"]) for r in rows] == [("hog", "knn"), ("hog", "linear")]
    assert all(r["paired_direct"]["value"] == pytest.approx(0.2) for r in rows)


def test_an_arm_that_diverged_stands_there_with_the_reason_and_the_others_are_run(
    module: Any, measured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is another matter: it ends the study, and nothing is written of it."""
    from experiments import students

    tried: list[str] = []

    def left(out: Path, broken: str) -> None:
        tried.append(out.name)
        if out.name == "shuffled":
            raise RunError("step-9.safetensors cannot be written: no space left") from OSError(28, "no space left")
        if out.name == broken:
            raise RunError('term "simclr" became nan at step 7; no checkpoint yet')
        out.mkdir(parents=True)
        (out / "verdict.json").write_text("{}")

    monkeypatch.setattr(students, "train", lambda data, out, **_: left(out, "direct"))
    monkeypatch.setattr(students, "transfer", lambda teachers, data, out, **_: left(out, "regression"))
    asked = ["--seeds", "0", "--arms", "direct,hog,regression,shuffled"]
    with pytest.raises(RunError, match="no space left"):
        study(module, tmp_path, *asked).all()
    assert tried == ["direct", "teacher", "shuffled"]
    study(module, tmp_path, "--seeds", "0", "--arms", "direct,hog,regression").all()
    assert tried == ["direct", "teacher", "shuffled", "hog", "direct", "regression"]  # the second call tries once for the differences
    rows = json.loads((tmp_path / "transfer_rotation.json").read_text())["rows"]
    failed = [(r["arm"], r["measured"]) for r in rows if r.get("failed") == 'term "simclr" became nan at step 7; no checkpoint yet']
    assert failed == [*(("direct", m) for m in ("knn", "linear", "blocks", "finetune")), *(("regression", m) for m in ("knn", "linear", "finetune"))]
    assert [(r["arm"], r["measured"], "paired_direct" in r) for r in rows if "value" in r] == [("hog", "knn", False), ("hog", "linear", False)]


def test_a_student_goes_on_with_the_threads_it_was_begun_with(module: Any, runs: Any, measured: Any, tmp_path: Path) -> None:
    made = study(module, tmp_path, "--seeds", "0", "--arms", "hog", "--threads", "2")
    begun = made.students.folder / "seed-0" / "hog"
    begun.mkdir(parents=True)
    (begun / "spec.json").write_text(json.dumps({"settings": {"training": {"threads": 5}}}))
    with pytest.raises(FileExistsError):  # the replaced trainer makes its folder anew
        made.all()
    assert [(r["name"], r["settings"]["training"]["threads"]) for r in runs] == [("hog", 5)]
    study(module, tmp_path, "--seeds", "0", "--arms", "bow-sift", "--threads", "2").all()
    assert {r["settings"]["training"]["threads"] for r in runs if r["name"] in ("bow-sift", "direct")} == {2}


def test_the_teacher_of_puzzles_has_the_stem_of_small_images(module: Any, tmp_path: Path) -> None:
    def teacher(*words: str) -> dict[str, Any]:
        return study(module, tmp_path, *words).students.teacher

    assert teacher("--pretext", "jigsaw") == teacher("--pretext", "jigsaw", "--stem", "cifar") == {"name": "resnet18", "stem": "cifar"}
    assert teacher("--pretext", "jigsaw", "--stem", "plain")["stem"] == "plain"
    assert teacher() == {"name": "resnet18"} and teacher("--pretext", "jigsaw", "--teacher", "alexnet") == {"name": "alexnet"}
    cifar, plain = (study(module, tmp_path, "--pretext", "jigsaw", "--stem", stem).students.digest for stem in ("cifar", "plain"))
    assert cifar != plain


def test_names_that_are_wrong_are_refused_before_anything_trains(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where labels of all images teach an arm, images to ask are named: held out of the same ones they would have been learnt."""
    ran: list[str | None] = []
    monkeypatch.setattr(module.Study, "all", lambda self: ran.append(self.test))
    monkeypatch.setattr(module.torch, "set_num_threads", lambda n: None)
    labels = np.repeat(np.arange(4), 10)
    made: dict[str, dict[str, Any]] = {
        "plain": {"images": np.zeros((40, 16, 16, 3), np.uint8), "labels": labels},
        "unlabelled": {"images": np.zeros((40, 16, 16, 3), np.uint8)},
        "grey": {"images": np.zeros((40, 16, 16), np.uint8), "labels": labels},
        "few": {"images": np.zeros((9, 16, 16, 3), np.uint8)},
    }
    paths = {name: str(tmp_path / f"{name}.npz") for name in (*made, "missing", "split")}
    for name, arrays in made.items():
        np.savez(paths[name], **arrays)
    np.savez(paths["split"], **{f"{split}_{key}": array for split in ("train", "test") for key, array in made["plain"].items()})
    small = ["--teacher", "micro-resnet", "--size", "16", "--images", "40"]

    def said(data: str, *words: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            module.main([paths[data], *small, *words])
        assert stopped.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "missing.npz" in said("missing") and "must have labels" in said("unlabelled")
    assert "there is no arm 'cluster'; did you mean clusters?" in said("split", "--arms", "direct,cluster")
    assert "has no test images" in (line := said("plain")) and "name others with --test" in line
    assert "--fit: " in (line := said("split", "--fit", paths["missing"])) and "missing.npz" in line
    assert "--fit" in (line := said("split", "--fit", paths["grey"])) and "must have 3 channels" in line
    assert "an image for each of the 10 clusters of 40 images, got 9" in said("plain", "--arms", "direct", "--fit", paths["few"])
    assert "--test" in (line := said("plain", "--test", paths["unlabelled"])) and "must have labels" in line
    assert "micro-resne" in said("split", "--student", "micro-resne")
    assert "nowhere" in said("split", "--of", "runs/nowhere") and ran == []
    module.main([paths["plain"], *small, "--arms", "direct,clusters"])
    module.main([paths["plain"], *small, "--test", paths["split"] + "@test"])
    module.main([paths["split"], *small, "--fit", paths["unlabelled"]])
    assert ran == [None, paths["split"] + "@test", None]
