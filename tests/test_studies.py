"""Studies ask for what they say: on comparisons that are not carried out."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def studies() -> Any:
    from experiments import studies

    return studies


@pytest.fixture
def asked(studies: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What ``compare`` was asked; every run took as many seconds as its arm's name is long, and rotation did best on images held out."""
    found: list[dict[str, Any]] = []

    def compare(data: str, *, methods: Any, auxiliaries: Any, seeds: int, out: Path, **more: Any) -> Any:
        found.append({"data": data, "methods": methods, "auxiliaries": auxiliaries, "seeds": seeds, **more})
        arms = [m if s == "none" else f"{m}+{s}" for m in methods for s in auxiliaries]
        value = {arm: 0.5 if arm.endswith("+rotation") else 0.4 for arm in arms}
        runs = [
            {"arm": a, "seed": s, "run": f"{a}-seed{s}", "seconds": float(len(a)), "along": [{"value": 0.9}, {"value": value[a]}], "correct": "00"}
            for a in arms
            for s in range(seeds)
        ]
        return SimpleNamespace(folder=out, record={"table": [], "protocol": [], "runs": runs})

    monkeypatch.setattr(studies.gnothi, "compare", compare)
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twenty images of each of ten classes, sorted; an image tells its row."""
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", images=np.arange(200, dtype=np.uint8)[:, None, None], labels=np.repeat(np.arange(10), 20))
    return tmp_path


def test_the_best_set_on_images_held_out_goes_to_other_sizes_and_arms_get_the_slowest_one_s_time(studies: Any, asked: Any, data: Path) -> None:
    found: dict[str, Any] = {}
    study = studies.Study("together", data, None, data / "out", test=20)
    for call in (c for c in studies.together() if not c.gpu_only):
        found[call.name] = study.run(studies.replace(call, images=50), found)
    assert asked[0]["epochs"] == 10 and "seconds" not in asked[0] and len(asked[0]["auxiliaries"]) == 8
    assert asked[1]["seconds"] == len("byol+rotation+layers+local") and "epochs" not in asked[1]
    assert all(a["auxiliaries"] == ["none", "rotation"] for a in asked[2:]) and [a["methods"][0] for a in asked[2:]] == ["byol", "simclr"] * 2
    assert all("correct" not in r for call in found.values() for r in call["runs"])
    json.dumps(found)


def test_the_first_images_of_every_class_train_and_as_many_of_each_ask(studies: Any, data: Path) -> None:
    studies.write_images(data, data / "some.npz", 50, 20)
    with np.load(data / "some.npz") as packed:
        assert packed["train_images"][:, 0, 0].tolist() == [20 * c + i for c in range(10) for i in range(5)]
        assert packed["test_images"][:, 0, 0].tolist() == [20 * c + i for c in range(10) for i in range(2)]


def test_every_difference_is_one_to_the_method_alone_and_key_arms_have_three_seeds(studies: Any) -> None:
    for name in ("rotation", "layers", "local", "together"):
        calls = studies.STUDIES[name]()
        assert all(len(c.methods) == 1 and c.auxiliaries[0] == "none" for c in calls)
        equal = [c for c in calls if c.equal_time]
        assert equal and {c.name.removesuffix(studies.EQUAL) for c in equal} <= {c.name for c in calls if not c.equal_time}
        assert [c.name for c in calls].index(equal[0].name) > [c.name for c in calls].index(equal[0].name.removesuffix(studies.EQUAL))
    assert {c.methods[0] for c in studies.rotation() if c.seeds == 3} == {"simclr", "byol"} and len({c.methods[0] for c in studies.rotation()}) == 6
    assert {c.methods[0] for c in studies.layers() if c.seeds == 3} == {"simclr"}


def test_arms_of_few_and_more_images_take_as_many_steps(studies: Any) -> None:
    few, more = (c for c in studies.local() if not c.equal_time and not c.gpu_only)
    assert few.images * few.epochs == more.images * more.epochs and few.vary["auxiliary.local.match"] == ["geometric", "similarity", "both", "random"]


def test_the_form_for_a_gpu_takes_all_images_where_nothing_else_is_said(studies: Any) -> None:
    calls = [studies.on_gpu(c) for c in (*studies.rotation(), *studies.layers())]
    assert {(c.images, c.epochs) for c in calls} == {(50_000, 200)}
    assert {(c.backbone, (c.settings or {}).get("backbone", {}).get("patch_size")) for c in calls} == {
        ("resnet18", None),
        ("vit_tiny_patch16_224", 4),
    }
    assert [studies.on_gpu(c).images for c in studies.local() if not c.equal_time] == [1000, 5000, 50_000]
