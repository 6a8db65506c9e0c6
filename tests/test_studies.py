"""Studies ask for what they say: on comparisons that are not carried out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gnothi.comparison import table
from gnothi.comparison.arms import arms
from gnothi.contracts import SettingError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def studies() -> Any:
    from experiments import studies

    return studies


@pytest.fixture
def asked(studies: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What ``compare`` was asked; a run on equal epochs takes as many seconds as its arm's name is long. Rotation does best on other images."""
    found: list[dict[str, Any]] = []

    def compare(data: str, *, methods: Any, auxiliaries: Any, seeds: int, out: Path, **more: Any) -> Any:
        found.append({"data": data, "methods": methods, "auxiliaries": auxiliaries, "seeds": seeds, "out": out, **more})
        names = [m if s == "none" else f"{m}+{s}" for m in methods for s in auxiliaries]
        arms = [{"arm": a, "epochs": more.get("epochs") or 99.0, "steps": 8, "planned_seconds": 1.0} for a in names]
        right = np.arange(8) < 4
        shared = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 8, "verdict": "healthy"}
        runs = [
            {
                "arm": a,
                "seed": s,
                "run": f"{a}-seed{s}",
                "seconds": more.get("seconds") or float(len(a)),
                "correct": table.pack(right if a == names[0] else right[::-1] | right),
                **shared,
            }
            for a in names
            for s in range(seeds)
        ]
        return SimpleNamespace(folder=out, record={"arms": arms, "table": table.rows(arms, runs), "protocol": [], "runs": runs})

    def run(kind: str, encoders: list[str], data: str, test: str, cache: str) -> list[Any]:
        found.append({"encoders": encoders, "data": data, "test": test})
        return [SimpleNamespace(value=0.4 + 0.1 * ("+rotation-" in e), low=0.3, high=0.6, n=8) for e in encoders]

    monkeypatch.setattr(studies.gnothi, "compare", compare)
    monkeypatch.setattr(studies.evaluate, "run", run)
    monkeypatch.setattr("experiments.images.ASKING", slice(10, 15))
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twenty images of each of ten classes, sorted; an image tells its row."""
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", images=np.arange(200, dtype=np.uint8)[:, None, None], labels=np.repeat(np.arange(10), 20))
    return tmp_path


def carried_out(studies: Any, data: Path, name: str, images: int = 50) -> Any:
    study = studies.Study(name, data, None, data / "out", test=20)
    for call in (c for c in studies.STUDIES[name]() if not c.gpu_only):
        study.run(studies.replace(call, images=images))
    json.dumps(study.found)
    return study


def test_the_best_set_of_three_seeds_on_other_training_images_goes_to_other_sizes(studies: Any, asked: Any, data: Path) -> None:
    study = carried_out(studies, data, "together")
    calls = [a for a in asked if "auxiliaries" in a]
    assert calls[0]["epochs"] == 20 and calls[0]["seeds"] == 3 and len(calls[0]["auxiliaries"]) == 8 and calls[0]["test"] is None
    assert asked[1]["test"] == f"{calls[0]['data']}@val" and len(asked[1]["encoders"]) == 24
    assert [c["auxiliaries"] for c in calls[2:]] == [["none", "rotation"], ("none",)] * 4
    assert [c["methods"][0] for c in calls[2::2]] == ["byol", "simclr"] * 2
    assert all("correct" not in r for call in study.found.values() for r in call["runs"])
    with np.load(calls[0]["data"]) as packed:
        assert packed["val_images"][:, 0, 0].tolist() == [20 * c + i for c in range(10) for i in range(10, 15)]
    studies.write_images(data, data / "all.npz", 200, 20, asking=True)
    with np.load(data / "all.npz") as packed:
        assert packed["train_images"][:, 0, 0].tolist() == [20 * c + i for c in range(10) for i in range(20) if not 10 <= i < 15]


def test_where_no_set_is_better_than_none_the_method_alone_is_compared_once(
    studies: Any, asked: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studies.evaluate, "run", lambda kind, encoders, *_, **__: [SimpleNamespace(value=0.4, low=0, high=1, n=8) for _ in encoders])
    study = carried_out(studies, data, "together")
    assert [a["auxiliaries"] for a in asked[2:]] == [["none"]] * 4
    assert list(study.found)[2:] == [f"best on {n} images, {m}" for n in ("2,000", "10,000") for m in ("byol", "simclr")]
    arms(["byol"], study.found["best on 2,000 images, byol"]["sets"], {}, {})


def test_in_equal_time_the_method_alone_gets_the_slowest_arm_s_seconds_beside_arms_of_nearly_as_many(studies: Any, asked: Any, data: Path) -> None:
    """Names of 4, 13, 11, 10, 20, 19, 17 and 26 letters: from 20.8 on they stand there."""
    study = carried_out(studies, data, "together")
    assert asked[2]["auxiliaries"] == ("none",) and asked[2]["seconds"] == 26 and "epochs" not in asked[2] and asked[2]["vary"] is None
    first, *others = study.found["all sets in equal time"]["table"]
    assert (first["arm"], first["seconds"], first["epochs"]) == ("byol", 26, 99)
    assert [(r["arm"], r["seconds"], r["epochs"]) for r in others] == [("byol+rotation+layers+local", 26, 20)]
    assert others[0]["difference"]["value"] == 0.5 and others[0]["difference"]["seeds"] == [0, 1, 2]
    assert {(r["arm"], r["seed"]) for r in study.found["all sets in equal time"]["asking"]} == {
        (r["arm"], s) for r in (first, *others) for s in (0, 1, 2)
    }


def test_where_all_runs_were_lost_nothing_is_compared_in_equal_time(studies: Any, asked: Any, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare = studies.gnothi.compare

    def lost(*given: Any, **more: Any) -> Any:
        done = compare(*given, **more)
        runs = [{"arm": r["arm"], "seed": r["seed"], "run": r["run"], "failed": "nan"} for r in done.record["runs"]]
        done.record |= {"runs": runs, "table": table.rows(done.record["arms"], runs)}
        return done

    monkeypatch.setattr(studies.gnothi, "compare", lost)
    study = carried_out(studies, data, "together")
    assert [a["auxiliaries"] for a in asked if "auxiliaries" in a][1:] == [["none"]] * 4 and not any(studies.EQUAL in name for name in study.found)
    assert [r["verdicts"] for r in study.found["all sets"]["table"]] == [{"failed": 3}] * 8


def test_every_comparison_is_there_in_equal_time(studies: Any) -> None:
    for name in ("rotation", "layers", "local", "together"):
        names = [c.name for c in studies.STUDIES[name]()]
        assert names[1::2] == [f"{n}{studies.EQUAL}" for n in names[::2]]


def test_forms_of_a_study_lie_apart_and_what_stands_in_the_results_stays_until_it_is_found_anew(
    studies: Any, asked: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studies, "RESULTS", data / "results")
    base = {"data": data, "far": None, "out": data / "runs", "threads": None}
    written = data / "results" / "study_rotation.json"
    written.parent.mkdir()
    written.write_text(json.dumps({"dino": {"old": 1}, "simclr": {"old": 2}, "gone": {"old": 3}}))

    def stop(self: Any, call: Any) -> None:
        if call.name == "byol":
            raise KeyboardInterrupt
        run(self, call)

    run = studies.Study.run
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(studies.Study, "run", stop)
        studies.carry_out("rotation", Namespace(**base, gpu=False, tiny=False))
    found = json.loads(written.read_text())
    assert list(found) == ["simclr", "simclr in equal time", "dino"] and found["dino"] == {"old": 1} and "table" in found["simclr"]
    studies.carry_out("rotation", Namespace(**base, gpu=True, tiny=False))
    studies.carry_out("rotation", Namespace(**base, gpu=False, tiny=True))
    folders = [a["out"] for a in asked if "out" in a]
    assert len(set(folders)) == len(folders) and {f.relative_to(data / "runs").parts[0] for f in folders} == {"cores", "gpu", "tiny"}
    assert json.loads(written.read_text()) == found


def test_blocks_of_every_seed_are_paired_with_the_first_arm_s(studies: Any, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[list[str]] = []

    def layers(encoders: list[str], *_: Any, **__: Any) -> list[Any]:
        measured.append([Path(e).name for e in encoders])
        paired = [{}, *({"paired": {"value": 0.1, "low": 0.0, "high": 0.2, "against": "it"}} for _ in encoders[1:])]
        place = {"block": 0, "features": "pooled", "flops": 1}
        return [SimpleNamespace(encoder=e, value=0.5, low=0.4, high=0.6, n=8, details=place | p) for e, p in zip(encoders, paired, strict=True)]

    monkeypatch.setattr(studies.evaluate, "layers", layers)
    runs = [{"arm": a, "seed": s, "run": f"{a}{s}"} for s in (0, 1) for a in ("simclr+layers", "simclr")] + [
        {"arm": "simclr", "seed": 2, "failed": "x"}
    ]
    done = SimpleNamespace(folder=data, record={"arms": [{"arm": "simclr"}, {"arm": "simclr+layers"}], "runs": runs})
    found = studies.Study("layers", data, "flowers", data).blocks(done, data / "images.npz")
    assert measured == [["simclr0", "simclr+layers0"]] * 2 + [["simclr1", "simclr+layers1"]] * 2 and set(found) == {"blocks", "far"}
    assert [(r["arm"], r["seed"], r.get("paired")) for r in found["far"]] == [
        (a, s, p) for s in (0, 1) for a, p in (("simclr", None), ("simclr+layers", {"value": 0.1, "low": 0.0, "high": 0.2}))
    ]


def test_layers_need_images_of_another_kind(studies: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["studies", "rotation", "layers"])
    with pytest.raises(SystemExit):
        studies.main()
    assert "layers needs --far DATA" in capsys.readouterr().err


def test_images_of_another_kind_are_opened_before_anything_trains(
    studies: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(studies, "carry_out", lambda name, given: ran.append(name))
    colour, labels = np.zeros((20, 8, 8, 3), np.uint8), np.repeat([0, 1], 10)
    for name, arrays in {
        "train": {"images": colour, "labels": labels},
        "test": {"images": colour, "labels": labels},
        "unlabelled": {"images": colour},
        "grey": {"images": colour[..., 0], "labels": labels},
    }.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)

    def said(far: str, data: Path = tmp_path) -> str:
        with pytest.raises(SystemExit) as stopped:
            studies.main(["rotation", "layers", "--data", str(data), "--far", str(tmp_path / far)])
        assert stopped.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "--far: " in (line := said("missing")) and "missing" in line
    assert "must have labels" in said("unlabelled.npz")
    assert "must have 3 channels, as the images that train have, got 1" in said("grey.npz")
    assert "must hold train.npz and test.npz" in said("test.npz", tmp_path / "nowhere") and ran == []
    studies.main(["rotation", "layers", "--data", str(tmp_path), "--far", str(tmp_path / "test.npz")])
    assert ran == ["rotation", "layers"]


def test_threads_of_a_study_are_asked_of_every_run_and_stay_what_they_were(
    studies: Any, asked: Any, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(studies, "RESULTS", data / "results")
    words = ["rotation", "--data", str(data), "--out", str(data / "runs")]
    studies.main([*words, "--threads", "3"])
    assert len(asked) == 12 and {a["settings"]["training"]["threads"] for a in asked} == {3}
    asked.clear()
    studies.main(words)
    assert all("threads" not in a["settings"].get("training", {}) for a in asked)

    def others(*_: Any, **__: Any) -> None:
        raise SettingError("it was begun with training.threads=3, not 2")

    monkeypatch.setattr(studies.gnothi, "compare", others)
    for threads, said in (("2", "begun with training.threads=3"), ("0", "--threads must be at least 1")):
        with pytest.raises(SystemExit) as stopped:
            studies.main([*words, "--threads", threads])
        assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_threads_of_experiments_do_not_wait_by_spinning() -> None:
    """Said before torch is imported, which reads it then; a choice of the caller's own stays."""
    code = "import os, sys, experiments; print(os.environ['OMP_WAIT_POLICY'], os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    plain = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    for own, said in (({}, "passive 20000 False"), ({"GOMP_SPINCOUNT": "7"}, "passive 7 False")):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=plain | own, capture_output=True, text=True)
        assert done.stdout.strip() == said, done.stderr


def test_a_method_that_diverged_in_the_sweep_stands_there_without_a_value(studies: Any, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"simclr": {"value": 0.2, "low": 0.1, "high": 0.3, "verdict": "collapsed"}, "vicreg": {"failed": "nan"}}
    monkeypatch.setattr(studies.cifar_sweep, "of_now", lambda data, folder, method, threads: rows[method])
    found = studies.swept(data, data, studies.replace(studies.small()[2], methods=tuple(rows)), 2)
    good, lost = ([r[key] for key in ("arm", "seeds", "value", "over_images", "verdicts")] for r in found["table"])
    assert good == ["simclr", [0], 0.2, [0.1, 0.3], {"collapsed": 1}] and lost == ["vicreg", [], None, None, {"failed": 1}]
    assert found["runs"] == [{"arm": "vicreg", "seed": 0, "failed": "nan"}]


def test_small_asks_training_images_and_takes_the_sweep_s_rows_of_the_rules_of_now(
    studies: Any, asked: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = studies.cifar_sweep
    now, then = (
        {"method": "simclr", "settings": {**sweep.LONG, **s}, "low": 0.1, "high": 0.9, "verdict": "healthy"}
        for s in ({"optimiser.lr": 0.12}, sweep.NOW["simclr"])
    )
    monkeypatch.setattr(sweep, "known", lambda: {"then": then | {"value": 0.1}, "now": now | {"value": 0.2}})
    few, more, many = studies.small()
    assert sweep.of_now(data, data, "simclr")["value"] == 0.2
    study = studies.Study("small", data, None, data / "out", test=20)
    study.run(studies.replace(few, images=50))
    study.run(studies.replace(many, methods=("simclr",)))
    assert asked[0]["test"] == f"{asked[0]['data']}@val" and asked[0]["settings"]["data"]["holdout"] == 0 and asked[0]["epochs"] is None
    assert [(r["arm"], r["value"], r["epochs"]) for r in study.found["10,000 images"]["table"]] == [("simclr", 0.2, 20)]
    assert (more.images, more.epochs) == (2000, 50) and not studies.on_gpu(many).sweep


def test_the_first_images_of_every_class_train_and_as_many_of_each_ask(studies: Any, data: Path) -> None:
    studies.write_images(data, data / "some.npz", 50, 20)
    with np.load(data / "some.npz") as packed:
        assert packed["train_images"][:, 0, 0].tolist() == [20 * c + i for c in range(10) for i in range(5)]
        assert packed["test_images"][:, 0, 0].tolist() == [20 * c + i for c in range(10) for i in range(2)]


def test_every_difference_is_one_to_the_method_alone_and_key_arms_have_three_seeds(studies: Any) -> None:
    for name in ("rotation", "layers", "local", "together"):
        calls = studies.STUDIES[name]()
        assert all(len(c.methods) == 1 and c.auxiliaries[0] == "none" for c in calls)
    key = {(c.methods[0], c.images, c.epochs) for c in studies.rotation() if c.seeds == 3}
    assert key == {("simclr", 4000, 20), ("byol", 4000, 20)} and len({c.methods[0] for c in studies.rotation()}) == 6
    assert {(c.images, c.epochs) for c in studies.rotation() if c.seeds == 1} == {(4000, 10)}
    assert {(c.methods[0], c.epochs) for c in studies.layers() if c.seeds == 3} == {("simclr", 20)}


def test_arms_of_few_and_more_images_take_as_many_steps(studies: Any) -> None:
    few, more = (c for c in studies.local() if not c.equal_time and not c.gpu_only)
    assert few.images * few.epochs == more.images * more.epochs and few.vary["auxiliary.local.match"] == ["geometric", "similarity", "both", "random"]
    assert {c.gpu[0] * c.gpu[1] for c in studies.local()} == {1_000_000}
    best = [c for c in studies.together() if studies.BEST in c.auxiliaries and not c.gpu_only]
    assert {c.images for c in best} == {2000, 10_000} and {c.images * c.epochs for c in best} == {100_000}


def test_the_form_for_a_gpu_takes_all_images_where_nothing_else_is_said(studies: Any) -> None:
    calls = [studies.on_gpu(c) for c in (*studies.rotation(), *studies.layers())]
    assert {(c.images, c.epochs) for c in calls} == {(50_000, 200)}
    assert {(c.backbone, (c.settings or {}).get("backbone", {}).get("patch_size")) for c in calls} == {
        ("resnet18", None),
        ("vit_tiny_patch16_224", 4),
    }
    assert [studies.on_gpu(c).images for c in studies.local() if not c.equal_time] == [1000, 5000, 50_000]
