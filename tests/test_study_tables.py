"""Tables of studies hold what the results hold: counted by hand from small made-up ones."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parent.parent
CALL: dict[str, Any] = {
    "images": 1000,
    "table": [
        {
            "arm": "dino",
            "epochs": 4.0,
            "seconds": 20.0,
            "seeds": [0, 1],
            "value": 0.4,
            "over_seeds": [0.3, 0.5],
            "over_images": [0.38, 0.42],
            "verdicts": {"healthy": 2},
        },
        {
            "arm": "dino+local",
            "epochs": 4.0,
            "seconds": 30.0,
            "seeds": [0, 1],
            "value": 0.45,
            "over_seeds": [0.4, 0.5],
            "over_images": [0.43, 0.47],
            "difference": {"value": 0.05, "over_seeds": [-0.01, 0.11], "over_images": [0.02, 0.08]},
            "verdicts": {"healthy": 1, "collapsed": 1},
        },
    ],
    "runs": [
        {"arm": arm, "seed": seed, "along": [{"epoch": i + 1, "seconds": 5.0 * (i + 1), "value": v + 0.02 * seed} for i, v in enumerate(values)]}
        for arm, values in (("dino", (0.1, 0.2, 0.3, 0.4)), ("dino+local", (0.2, 0.45, 0.44, 0.5)))
        for seed in (0, 1)
    ],
    "health": [
        {"arm": "dino+local", "seed": seed, "epoch": e, "local_kept": 0.8, "local_precision": p + 0.1 * seed, "local_unique": 0.5}
        for seed in (0, 1)
        for e, p in ((1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4))
    ],
    "blocks": [
        {"arm": "dino", "seed": seed, "features": "final", "block": block, "value": 0.2 * block + 0.1 * seed} for seed in (0, 1) for block in (0, 1)
    ],
}

TRANSFER = {"pretext": "jigsaw", "of": None, "teacher": "resnet18", "student": "micro-resnet", "images": 5000, "data": "x.npz"}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The studies' tables, of results in a folder of the test's own."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "docs"), *sys.path])
    tables, studies = (importlib.import_module(name) for name in ("tables", "studies"))
    for folder in ("experiments", "benchmarks"):
        (tmp_path / folder / "results").mkdir(parents=True)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    return tables, studies, lambda name, found, folder="experiments": (tmp_path / folder / "results" / f"{name}.json").write_text(json.dumps(found))


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|") and "---" not in line]


def test_what_was_not_run_says_so(made: Any) -> None:
    tables, studies, _ = made
    assert {study() for study in studies.STUDIES} == {tables.NOT_YET}
    assert {table() for table in (tables.auxiliaries, tables.local_memory, tables.clusters)} == {tables.NOT_YET}


def test_arms_stand_with_their_difference_to_the_method_alone(made: Any) -> None:
    _, studies, write = made
    write("study_together", {"all sets": CALL})
    write("study_together_gpu", {"all sets": CALL})
    text = studies.together_study()
    assert rows(text)[1] == ["all sets", "1,000", "dino", "2", "4", "20", "0.400 (0.300 to 0.500)", "", "", "healthy"]
    assert rows(text)[2][6:9] == ["0.450 (0.400 to 0.500)", "+0.050 (-0.010 to +0.110)", "+0.050 (+0.020 to +0.080)"]
    assert rows(text)[0][9] == "health" and rows(text)[2][9] == "1 healthy, 1 collapsed"
    assert text.count("| dino+local |") == 2 and "On a GPU:" in text


def test_curves_are_means_over_seeds_and_say_when_an_arm_is_as_good_as_the_first_at_its_end(made: Any) -> None:
    _, studies, write = made
    write("study_rotation", {"dino": CALL})
    found = rows(studies.rotation_study().split("\n\n")[1])
    assert found[1][2:] == ["0.110 at 5 s", "0.210 at 10 s", "0.310 at 15 s", "0.410 at 20 s", "4 epochs, 20 s"]
    assert found[2][2:] == ["0.210 at 5 s", "0.460 at 10 s", "0.450 at 15 s", "0.510 at 20 s", "2 epochs, 10 s"]


def test_blocks_and_matches_are_means_over_seeds(made: Any) -> None:
    _, studies, write = made
    write("study_layers", {"dino": CALL})
    write("study_local", {"1,000 images": CALL})
    assert rows(studies.layers_study().split("\n\n")[2])[1] == ["dino", "dino", "final", "0.050", "0.250"]
    assert rows(studies.local_study().split("\n\n")[1])[1][2:] == ["0.80", "0.15", "0.25", "0.35", "0.45", "0.50", ""]


def test_blocks_stand_with_their_difference_to_the_first_arm_s(made: Any) -> None:
    """Three seeds have a t-interval (the quantile of two degrees of freedom is 4.303), one keeps its own over images."""
    _, studies, write = made
    base, more = ({"arm": arm, "features": "final", "block": 0} for arm in ("simclr", "simclr+layers"))
    less = [{**more, "seed": s, "value": 0.5, "paired": {"value": v, "low": -1, "high": 1}} for s, v in enumerate((0.01, 0.02, 0.03))]
    write("study_layers", {"simclr": {**CALL, "blocks": [*({**base, "seed": s, "value": 0.4} for s in range(3)), *less], "far": less[1:2]}})
    near, far = (rows(text) for text in studies.layers_study().split("\n\n")[2::2])
    assert near[1:] == [["simclr", "simclr", "final", "0.400"], ["simclr", "simclr+layers", "final", "0.500"], near[3]]
    half = 4.302653 * 0.01 / 3**0.5
    assert near[3] == ["", "minus the first arm", "final", f"+0.020 ({0.02 - half:+.3f} to {0.02 + half:+.3f})"]
    assert far[2][3] == "+0.020 (-1.000 to +1.000)"


def test_curves_of_ten_looks_stand_where_they_say(made: Any) -> None:
    _, studies, write = made
    along = [{"epoch": i, "seconds": 10.0 * i, "value": i / 10} for i in range(1, 11)]
    write("study_rotation", {"simclr": {**CALL, "table": CALL["table"][:1], "runs": [{"arm": "dino", "seed": 0, "along": along}]}})
    head, row = rows(studies.rotation_study().split("\n\n")[1])
    assert head[2:6] == ["20% of the run", "50% of the run", "80% of the run", "100% of the run"]
    assert row[2:6] == ["0.200 at 20 s", "0.500 at 50 s", "0.800 at 80 s", "1.000 at 100 s"]


def test_eleven_looks_stand_by_their_epochs(made: Any) -> None:
    """Of 93 steps a look is taken every ninth and after the last: 45 of them are nearest to a half, and 72 to four fifths."""
    _, studies, write = made
    steps = [*range(9, 93, 9), 93]
    along = [{"epoch": s / 9.3, "seconds": float(s), "value": s / 100} for s in steps]
    health = [{"arm": "dino", "seed": 0, "epoch": s / 9.3, "local_kept": 0.8, "local_precision": s / 100} for s in steps]
    call = {**CALL, "table": CALL["table"][:1], "runs": [{"arm": "dino", "seed": 0, "along": along}], "health": health}
    write("study_rotation", {"simclr": call})
    write("study_local", {"simclr": call})
    assert len(steps) == 11
    curve, right = (rows(text.split("\n\n")[1])[1] for text in (studies.rotation_study(), studies.local_study()))
    assert curve[2:6] == ["0.180 at 18 s", "0.450 at 45 s", "0.720 at 72 s", "0.930 at 93 s"]
    assert right[3:7] == ["0.18", "0.45", "0.72", "0.93"]


def test_arms_of_the_sweep_stand_with_what_they_change_and_one_that_diverged_with_the_reason(made: Any) -> None:
    tables, _, write = made
    first, ends = {"training.epochs": 20, "optimiser.lr": 0.1}, {"value": 0.5, "low": 0.4, "high": 0.6}
    found = {
        "a": {"method": "byol", "settings": first, **ends, "spectral": 0.7, "verdict": "healthy"},
        "b": {"method": "byol", "settings": {**first, "optimiser.lr": 0.9}, "failed": 'term "byol" became nan at step 7'},
        "c": {"method": "byol", "settings": {**first, "training.epochs": 5}, **ends, "verdict": "healthy"},
    }
    write("cifar_sweep", found)
    assert rows(tables.cifar_sweep())[1:] == [
        ["byol", "the rules of then", "0.500 (0.400 to 0.600)", "0.700", "healthy"],
        ["byol", "`optimiser.lr=0.9`", "", "", 'diverged: term "byol" became nan at step 7'],
    ]


def test_a_method_without_a_value_leaves_its_cells_open_and_says_why(made: Any) -> None:
    _, studies, write = made
    row = {"arm": "vicreg", "epochs": 20, "seconds": None, "seeds": [], "value": None, "over_seeds": None, "over_images": None}
    why = 'term "vicreg" became nan at step 7'
    runs = [{"arm": "vicreg", "seed": 0, "failed": f"{why}; last checkpoint: there/step-5.safetensors"}, {"arm": "byol", "seed": 0, "failed": "x"}]
    write("study_small", {"10,000 images": {"images": 10_000, "table": [row | {"verdicts": {"failed": 1}}], "runs": runs}})
    assert rows(studies.small_study())[1] == ["10,000 images", "10,000", "vicreg", "0", "20", "", "", "", "", f"failed: {why}"]


def test_what_one_auxiliary_adds_to_others_is_told_by_runs_of_the_same_seed(made: Any) -> None:
    """Three seeds have a t-interval (the quantile of two degrees of freedom is 4.303), one has none; a run that was lost has no part."""
    _, studies, write = made
    values = {"byol": (0.1, 0.2, 0.3), "byol+rotation": (0.11, 0.22, 0.33), "byol+layers": (0.15, 0.25), "byol+rotation+layers": (0.3,)}
    runs = [{"arm": arm, "seed": seed, "value": v} for arm, of in values.items() for seed, v in enumerate(of)]
    lost = [{"arm": "byol+layers", "seed": 2, "failed": "nan"}]
    write("study_together", {"all sets": {**CALL, "runs": runs + lost}, "best on 2,000 images, byol": {**CALL, "runs": runs}})
    half = 4.302653 * 0.01 / 3**0.5
    assert rows(studies.together_study().split("\n\n")[2])[1:] == [
        ["rotation", "byol", "3", f"+0.020 ({0.02 - half:+.3f} to {0.02 + half:+.3f})"],
        ["rotation", "byol+layers", "1", "+0.150"],
        ["layers", "byol", "2", "+0.050 (+0.050 to +0.050)"],
        ["layers", "byol+rotation", "1", "+0.190"],
    ]


def test_peers_stand_with_their_precision(made: Any) -> None:
    _, _, write = made
    projects = importlib.import_module("projects")
    row = {"seconds": 12.3, "left": ["a", "b"], "precision": "bf16", "load": 0.5}
    write("peers", {"images": 480, "lightly": "1.6.0", "timed": {"gnothi": row, "script": {**row, "precision": "fp32", "load": 1.5}}})
    text = projects.peers_times()
    assert [line[1:] for line in rows(text)[1:]] == [["bf16", "12 s", "2"], ["fp32", "12 s", "2"]]
    assert "480 flowers, all of them in each epoch, in batches of 32" in text and "load 0.5 to 1.5" in text


def test_a_size_is_decided_by_images_that_did_not_train(made: Any) -> None:
    """Of both methods together, on equal epochs and in equal time apart."""
    _, studies, write = made

    def call(**values: float) -> dict[str, Any]:
        return {**CALL, "asking": [{"arm": a.replace("_", "+"), "seed": s, "value": v + 0.1 * s} for a, v in values.items() for s in (0, 1)]}

    found = {"all sets": call(byol=0.2, byol_local=0.1), "best on 2,000 images, byol": call(byol=0.3, byol_local=0.25)}
    found |= {"best on 2,000 images, byol in equal time": call(byol=0.5), "best on 2,000 images, simclr": call(simclr=0.4)}
    write("study_together", found)
    assert rows(studies.together_study().split("\n\n")[2])[1:] == [
        ["all sets", "byol", "0.250", "byol+local 0.150"],
        ["best on 2,000 images", "simclr", "0.450", "byol 0.350, byol+local 0.300"],
        ["best on 2,000 images in equal time", "byol", "0.550", ""],
    ]


def test_students_stand_by_pretext_task_with_their_blocks(made: Any) -> None:
    _, studies, write = made
    shared = {"low": 0.1, "high": 0.9, "seed": 0, "settings": "ab", "arm": "clusters"}
    less, cost = {"paired_direct": {"value": 0.1, "low": 0.0, "high": 0.2}}, {"training_flops": 2.5e15}
    rest = {"knn": (0.5, {**less, **cost, "share_of_teacher": 0.9}), "linear": (0.6, {}), "finetune": (0.7, {})}
    found = [{"measured": m, "value": v, **shared, **more} for m, (v, more) in rest.items()]
    found += [{"measured": "blocks", "value": 0.2 * b, "block": b, "features": "pooled", **shared} for b in (0, 1)]
    settings = TRANSFER
    write("transfer_jigsaw", {"settings": {"ab": settings, "cd": settings}, "rows": found})
    text, task = studies.transfer_study(), "jigsaw, resnet18 to micro-resnet, 5,000 images of x.npz"
    ends = "(0.100 to 0.900)"
    assert rows(text)[1] == [task, "clusters", "1", f"0.500 {ends}", "0.100 (0.000 to 0.200)", "0.900", f"0.600 {ends}", f"0.700 {ends}", "2,500"]
    assert rows(text)[3] == [task, "clusters", "pooled", "0.000", "0.200"] and len(rows(text)) == 4


def test_students_of_other_settings_stand_apart_with_what_tells_them_apart(made: Any) -> None:
    """Runs that diverged are counted, and have no part in a mean."""
    _, studies, write = made

    def row(digest: str, arm: str, value: float, seed: int = 0, measured: str = "knn", **more: Any) -> dict[str, Any]:
        return {"settings": digest, "arm": arm, "seed": seed, "measured": measured, "value": value, "low": value, "high": value, **more}

    settings = {
        "ab": {**TRANSFER, "epochs": 20.0, "widths": None},
        "cd": {**TRANSFER, "epochs": 5.0, "widths": [8, 16]},
        "ef": {**TRANSFER, "images": 100, "epochs": 20.0, "widths": None},
    }
    cost = {"training_flops": 0.0123456e12}
    found = [row(d, "direct", v, **cost) for d, v in (("ab", 0.1), ("cd", 0.2), ("ef", 0.3))]
    found += [row(d, "direct", v, measured="blocks", block=0, features="pooled") for d, v in (("ab", 0.4), ("cd", 0.5))]
    lost = [{"settings": "ab", "arm": arm, "seed": s, "failed": "nan"} for arm, s in (("direct", 1), ("hog", 0))]
    found += [{**r, "measured": m} for r in lost for m in ("knn", "blocks")]
    found += [row("ab", "fit elsewhere", v, fit={"name": name, "digest": "1"}) for name, v in (("x.npz", 0.6), ("y", 0.7))]
    write("transfer_jigsaw", {"settings": settings, "rows": found})
    lines = rows(studies.transfer_study())
    task = "jigsaw, resnet18 to micro-resnet, 5,000 images of x.npz"
    ab, cd = f"{task}, epochs 20, widths by default", f"{task}, epochs 5, widths [8, 16]"
    assert [line[:4] for line in lines[1:7]] == [
        [ab, "direct", "1, 1 diverged", "0.100 (0.100 to 0.100)"],
        [ab, "hog", "0, 1 diverged", ""],
        [ab, "fit elsewhere (x.npz)", "1", "0.600 (0.600 to 0.600)"],
        [ab, "fit elsewhere (y)", "1", "0.700 (0.700 to 0.700)"],
        [cd, "direct", "1", "0.200 (0.200 to 0.200)"],
        [task.replace("5,000", "100"), "direct", "1", "0.300 (0.300 to 0.300)"],
    ]
    assert lines[0][8] == "TFLOP" and lines[1][8] == "0.0123"
    assert lines[8:] == [[ab, "direct", "pooled", "0.400"], [cd, "direct", "pooled", "0.500"]]


def test_students_that_other_images_judged_stand_apart(made: Any) -> None:
    _, studies, write = made
    settings = {"ab": TRANSFER, "cd": {**TRANSFER, "test": "there/y.npz@test"}}
    found = [{"settings": d, "arm": "hog", "seed": 0, "measured": "knn", "value": v, "low": v, "high": v} for d, v in (("ab", 0.1), ("cd", 0.2))]
    write("transfer_jigsaw", {"settings": settings, "rows": found})
    task = "jigsaw, resnet18 to micro-resnet, 5,000 images of x.npz"
    ends = [f"{v} ({v} to {v})" for v in ("0.100", "0.200")]
    assert [[line[0], line[3]] for line in rows(studies.transfer_study())[1:]] == [[task, ends[0]], [f"{task}, test y.npz@test", ends[1]]]


MEMBERS = {"data": "cifar10", "a_class": 500, "epochs": 20.0}


def test_a_summary_of_combiners_is_of_test_images_over_seeds(made: Any) -> None:
    """Half of a t-interval of two seeds is 12.706 times half of their distance; of other images, the mean of each seed over them counts."""
    _, studies, write = made

    def of(encoder: str, value: float, **more: Any) -> list[dict[str, Any]]:
        return [{"encoder": encoder, "value": value, "low": 0, "high": 1, "metric": m, **more} for m in ("knn 20", "knn 200", "linear")]

    less = {"paired_chosen": {"value": -0.02, "low": -0.03, "high": -0.01}}
    found = {f"table/mixed/{seed}": of(f"simclr-{seed}", 0.4) + of("descent", 0.5 + 0.01 * seed, **less) for seed in (0, 1)}
    found |= {"table/mixed/0@holdout": of("descent", 0.9), "table/mixed/2": {"failed": "nan"}}
    found |= {f"transfer/{name}/{seed}": of("descent", v, maps="frozen") for seed in (0, 1) for name, v in (("a", 0.2), ("b", 0.4))}
    write("ensemble", {"settings": MEMBERS, "arms": found})
    text = next(f for f in studies.STUDIES if f.__name__ == "ensemble_summary")()
    (head, descent) = rows(text)
    assert descent[0] == "descent" and descent[1] == descent[4] == "0.505 ± 0.064" and descent[3] == "-0.020 ± 0.000"
    assert descent[head.index("elsewhere, maps frozen, k = 200")] == "0.300 ± 0.000" and descent[5:8] == [""] * 3
    assert "micro ResNets, 20 epochs on 500 images of every class of cifar10." in text


def test_combiners_stand_by_judge_with_the_control_and_without_the_seed_in_a_member_s_name(made: Any) -> None:
    _, studies, write = made

    def of(encoder: str, value: float, **more: Any) -> list[dict[str, Any]]:
        row = {"encoder": encoder, "low": value - 0.1, "high": value + 0.1, "seconds": 2.0, **more}
        return [{**row, "value": value, "metric": m} for m in ("knn 20", "knn 200", "linear")]

    less = {"paired_chosen": {"value": -0.02, "low": -0.03, "high": -0.01}}
    found = {f"table/mixed/{seed}": of(f"/runs/simclr-{seed}", 0.4) + of("descent", 0.5, **less) for seed in (0, 1)}
    found |= {"steps/0@holdout": of("5 steps", 0.3, steps=5), "transfer/b/0": of("best", 0.2, maps="frozen")}
    write("ensemble", {"settings": MEMBERS, "arms": found})
    text = next(f for f in studies.STUDIES if f.__name__ == "ensemble_study")()
    held, tested = text.split("On test images.")
    assert rows(held)[1] == ["5", *["0.300 (0.200 to 0.400)"] * 3, "", "2.0"] and len(rows(held)) == 2
    (_, simclr, descent), (_, best) = rows(tested)[:3], rows(tested)[3:]
    assert simclr[:3] == ["mixed", "simclr", "0.400 (0.400 to 0.400; 2 seeds)"] and descent[5] == "-0.020 (-0.020 to -0.020; 2 seeds)"
    assert best[:4] == ["b", "frozen", "best", "0.200 (0.100 to 0.300)"]


def test_members_of_one_method_are_counted_and_students_stand_with_what_they_cost(made: Any) -> None:
    """Members differ by their seed alone: four of an arm stand in one line. Arms without a result are named with the reason."""
    _, studies, write = made

    def of(encoder: str, value: float, **more: Any) -> list[dict[str, Any]]:
        row = {"encoder": encoder, "value": value, "low": value, "high": value, **more}
        return [{**row, "metric": m} for m in ("knn 20", "knn 200", "linear")]

    found: dict[str, Any] = {
        f"table/seeds/{seed}": [r for s in range(2) for r in of(f"runs/simclr-{10 * seed + s}", 0.4)] + of("pca 0", 0.5) for seed in (0, 1)
    }
    less = {"paired": {"value": -0.1, "low": -0.2, "high": 0.0}}
    found |= {"student/0": of("out/together-0", 0.6, parameters=9, flops=4_560_000) + of("out/student-0", 0.5, parameters=3, flops=2e6, **less)}
    for r in found["student/0"][3:]:
        r["training_seconds"] = 61.4
    found |= {"sweep/0": {"failed": 'term "vicreg" became nan at step 7; last checkpoint: there/step-5.safetensors'}}
    write("ensemble", {"settings": MEMBERS, "arms": found})
    text = next(f for f in studies.STUDIES if f.__name__ == "ensemble_study")()
    head, simclr, pca, costs, together, student = rows(text)
    assert head[-1] == "fit s" and simclr[:3] == ["seeds", "simclr", "0.400 (0.400 to 0.400; 4 members)"]
    assert pca[:3] == ["seeds", "pca 0", "0.500 (0.500 to 0.500; 2 seeds)"]
    assert costs[5:] == ["knn 200 minus the ensemble", "MFLOP", "training s"] and together[:2] == ["together", "9"]
    assert together[5:] == ["", "4.6", ""] and student[5:] == ["-0.100 (-0.200 to 0.000)", "2.0", "61"]
    assert text.endswith('Diverged: sweep/0 (term "vicreg" became nan at step 7).')


def test_detectors_and_the_cost_of_a_descent_stand_as_they_were_measured(made: Any) -> None:
    _, studies, write = made
    named = {f.__name__: f for f in studies.STUDIES}
    ends = {"value": 0.5, "low": 0.4, "high": 0.6}
    rest = {**ends, "encoder": "random", "metric": "COCO AP", "details": {"paired": {"value": -0.1, "low": -0.2, "high": 0.0}}}
    write("detection", {"arms": {"all images": {"means": [{**ends, "encoder": "run", "metric": "COCO AP", "details": {}}, rest]}}})
    first, second = rows(named["detection_study"]())[1:]
    assert first == ["two cores", "all images", "run", "COCO AP", "0.500 (0.400 to 0.600)", ""] and second[-1] == "-0.100 (-0.200 to 0.000)"
    cost = {"n": 1000, "epochs": 3, "memory": 2**21, "descent": 0.001, "share of the whole": 0.1}
    by = {"fit": 2.0, "processor": 3.0, "share of the products": 0.7, "by processor": 0.8}  # where others compute as well
    write("ensemble", [cost | by], "benchmarks")
    assert rows(named["ensemble_cost"]())[1] == ["1,000", "2.0 s (3.0 s)", "3", "2 MiB", "1.000 ms", "0.70 (0.80)", "0.10"]
    assert "in brackets in seconds of the processor" in named["ensemble_cost"]()


def test_costs_are_said_over_the_method_alone(made: Any) -> None:
    tables, _, write = made
    shape = {"method": "byol", "backbone": "micro-vit", "batch": 32, "device": None}
    base = {**shape, "beside": "nothing", "seconds": 0.5, "flops": 2e9, "memory": 100 * 2**20}
    more = {**shape, "beside": "layers", "seconds": 0.6, "flops": 3e9, "memory": 120 * 2**20}
    write("auxiliaries", {"byol nothing": base, "byol layers": more}, "benchmarks")
    assert rows(tables.auxiliaries())[1:] == [
        ["byol", "nothing", "0.500 s", "2.0 GFLOP", "100 MiB"],
        ["byol", "layers", "x 1.20", "x 1.50", "+20 MiB"],
    ]
    assert tables.auxiliaries().endswith("Measured with micro-vit, 32 images a batch, one core.")


def test_k_means_of_imagenet_lies_on_the_line_through_the_last_two_measurements(made: Any) -> None:
    """100 s and 40 s for each 64,000 rows more, of which there are 18: 820 s; 12 s and 18 times 5 s a pass."""
    tables, _, write = made
    shared = {"width": 8, "clusters": 4, "used": 100, "peak": 2**20}
    whole = {**shared, "rows": 128_000, "passes": 5, "seconds": 100.0, "pass": 12.0}
    half = {**shared, "rows": 64_000, "passes": 5, "seconds": 60.0, "pass": 7.0}
    write("clusters", [{**half, "rows": 32_000, "passes": 4, "seconds": 59.0}, half, whole], "benchmarks")
    assert "1,280,000 rows would take 1.7 minutes a pass and 14 in all on this core" in tables.clusters()
    for others in ([whole], [{**half, "passes": 4}, whole]):
        write("clusters", others, "benchmarks")
        assert "would take" not in tables.clusters() and len(rows(tables.clusters())) == 1 + len(others)


def test_charts_of_an_hour_stand_alone_as_images(made: Any) -> None:
    """Well-formed XML of one line that rises where the numbers rise, on an axis that begins at 0; nothing where nothing was run."""
    _, _, keep = made
    pictures = importlib.import_module("pictures")
    assert pictures.hour_memory() == ""
    keep("hour", {"blocks": [{"hours": h, "memory": m, "processor step": 5.0} for h, m in ((0.1, 100.0), (0.2, 100.0), (0.3, 200.0))]}, "benchmarks")
    svg = ElementTree.fromstring(pictures.hour_memory())
    space = "{http://www.w3.org/2000/svg}"
    assert svg.tag == f"{space}svg" and "--paper" in svg.findtext(f"{space}style", "")
    (line,) = svg.iter(f"{space}polyline")
    points = [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]
    zero = max(float(t.attrib["y1"]) for t in svg.iter(f"{space}line"))
    heights = [zero - y for _, y in points]
    assert heights[0] == heights[1] > 0 and abs(heights[2] - 2 * heights[0]) < 0.2


def test_methods_stand_beside_lightly_s_and_what_did_not_run_is_left_open(made: Any) -> None:
    tables, _, write = made

    def row(value: float, processor: float, **more: Any) -> dict[str, Any]:
        return {"value": value, "low": value - 0.01, "high": value + 0.01, "spectral": value + 0.1, "processor": processor, "n": 100, **more}

    found = {f"gnothi simclr {seed}": row(0.5 + 0.01 * seed, 100, verdict="healthy") for seed in range(3)}
    found |= {"lightly simclr 0": row(0.4, 200), "time simclr 0": row(0.35, 110, epochs=10), "crops simclr 0": row(0.55, 190, verdict="weak")}
    write("cifar_methods", {**found, "lightly byol 0": row(0.3, 210), "pixels": row(0.2, 0)})
    half = 4.302653 * 0.01 / 3**0.5  # t of 2 degrees of freedom
    ours = f"0.510 ({0.51 - half:.3f} to {0.51 + half:.3f}; 3 seeds)"
    head, simclr, byol, pixels = rows(tables.cifar())
    assert head[0] == "method" and pixels[2] == "0.200 (0.190 to 0.210)"
    assert simclr == [
        "simclr", "0.400 (0.390 to 0.410)", ours, "+0.110", "0.550 (0.540 to 0.560)", "+0.150", "0.500 / 0.610 / 0.650", "healthy, weak"
    ]  # fmt: skip
    assert byol == ["byol", "0.300 (0.290 to 0.310)", "", "", "", "", "0.400 / – / –", ""]
    paced = {"time simclr 0": {**found["time simclr 0"], "steps": {"gnothi": 0.2, "lightly": 0.4}}, "time simclr 1": {"failed": "nan"}}
    write("cifar_methods", {**found, **paced, "lightly vicreg 0": {"failed": "nan"}})
    assert rows(tables.cifar())[2][:3] == ["vicreg", "1 diverged", ""]
    last = "0.350 (0.340 to 0.360); 1 diverged; 10 epochs, a step of ours taking 0.50 of one of lightly's"
    assert rows(tables.cifar_time())[1][2] == last
    write("cifar_methods", found)
    assert rows(tables.cifar_time())[1:] == [["simclr", "200 / 100 / 190", "0.350 (0.340 to 0.360); 10 epochs", ours, "+0.160"]]


def test_steps_stand_beside_lightly_s_with_their_number(made: Any) -> None:
    """128 images in 0.2 s are 640 a second: twice the 320 of lightly's defaults, 1.25 times the 512 of lightly alike."""
    tables, _, write = made
    shared = {"batch": 128, "steps": 20, "memory": 2**20}
    ours = {**shared, "real": 0.2, "bare": 0.1, "views": 0.01, "forward": 0.02, "backward": 0.07, "optimiser": 0.01, "precision": "bf16"}
    found = {"micro-resnet": {**ours, "lightly": {"defaults": 2.0, "alike": 1.25}}, "micro-resnet folder": {**ours, "bare all threads": 0.05}}
    write("step", {**found, "micro-resnet lightly": {**shared, "real": 0.4, "bare": 0.3, "precision": "fp32", "steps": 8}}, "benchmarks")
    assert rows(tables.step())[1:] == [
        ["micro-resnet", "bf16", "20", "640", "1280", "0.500", "0.05", "0.10", "0.35", "0.05", "2.00", "1.25", "1 MiB"],
        ["micro-resnet folder", "bf16", "20", "640", "1280", "0.500 (0.250 with all threads)", "0.05", "0.10", "0.35", "0.05", "", "", "1 MiB"],
        ["micro-resnet lightly", "fp32", "8", "320", "427", "0.750", "", "", "", "", "", "", "1 MiB"],
    ]
