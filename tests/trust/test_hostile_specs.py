"""Settings from strangers: nested deep, huge, of the wrong type, everywhere; a resolved run or one line."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile import bounded, capped, everything, outcome
from hypothesis import given, settings
from hypothesis import strategies as st
from terminal import gnothi

from gnothi import pretrain
from gnothi.auxiliary import AUXILIARIES
from gnothi.methods import METHODS
from gnothi.randomness import generator
from gnothi.recipes import spec
from gnothi.recipes.resolve import resolve

VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 10**30, -1e308, 1e308, 1e-320, 0.5, float("nan"), float("inf"), "", "abc", "nan", "1e999",
    "5 epochs", "\0", "\n", "../..",
    "<script>", "\ud800", "9" * 5000, [], {}, [[]], [None], {"name": "x"}, [1, 2], [0.9, 0.1], [10**30] * 3, ["x"],
)  # fmt: skip
"""What every setting is given."""
LOST = ("data.name", "training.tensorboard", "training.wandb", "training.compile")
"""Settings left alone: the data's name, and those that start other programs."""


# ---- texts and nested values --------------------------------------------------------------------
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["name", "a", "weight", "epochs", "size", ""]) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
KEYS = st.sampled_from(["seed", "data", "views", "backbone", "method", "auxiliary", "optimiser", "training", "", "x"])


@given(st.dictionaries(KEYS, JSON, max_size=4))
def test_nested_values_are_loaded_or_refused(values: dict[str, Any]) -> None:
    outcome(lambda: spec.load(spec.merge({"data": {"name": "x"}}, values)), typed=True)


@pytest.mark.slow
@settings(max_examples=3000)
@given(st.dictionaries(KEYS, JSON, max_size=4))
def test_many_nested_values_are_loaded_or_refused(values: dict[str, Any]) -> None:
    outcome(lambda: spec.load(spec.merge({"data": {"name": "x"}}, values)), typed=True)


@given(st.lists(st.text(max_size=30) | st.tuples(KEYS, st.text(max_size=8), st.text(max_size=20)).map(lambda p: f"{p[0]}.{p[1]}={p[2]}"), max_size=3))
def test_texts_are_parsed_or_refused(assignments: list[str]) -> None:
    outcome(lambda: spec.load(spec.merge({"data": {"name": "x"}}, spec.parse(assignments))), typed=True)


@pytest.mark.parametrize(
    "assignment",
    [
        "training=" + "[" * 100_000,
        "training=" + '{"a":' * 50_000,
        "training=" + "[" * 400 + "]" * 400,
        ".".join("a" * 20_000) + "=1",
        "auxiliary.rotation=" + '{"a":' * 30 + "1" + "}" * 30,
        "a" * 100_000 + "=1",
        "seed=" + "9" * 100_000,
        "optimiser.lr=1e" + "9" * 1000,
        "training.epochs=" + "x" * 1_000_000,
    ],
    ids=lambda text: text[:24],
)
def test_deep_and_long_settings_get_one_short_line(assignment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with bounded():
        done = gnothi("recipes", "x") if not assignment else gnothi("train", "photos", "--out", "run", "--set", assignment)
    assert done.code == 2 and len(done.err.splitlines()) == 1 and len(done.err) < 3000, done.err[:500]
    assert not list(tmp_path.iterdir())


def test_a_spec_nested_too_deep_is_refused_from_python_too() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    said = outcome(lambda: spec.load({"data": {"name": "x"}, "backbone": {"args": deep}, "training": deep}))
    assert said is not None and len(said) < 5000


# ---- every setting, every value -----------------------------------------------------------------
@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    images = torch.randint(256, (24, 16, 16, 3), generator=generator(0, "specs"), dtype=torch.uint8)
    np.savez(path, images=images.numpy(), labels=np.arange(24) % 3)
    return path


def base(method: str, auxiliary: str) -> dict[str, Any]:
    settled: dict[str, Any] = {"hidden": 8, "out": 8} if "hidden" in METHODS[method][0].model_fields else {}
    return {
        "method": {"name": method, **settled},
        "backbone": {"name": "micro-resnet", "args": {"widths": [4, 8]}},
        "views": {"size": 16},
        "training": {"epochs": 1, "batch": 8, "threads": 1, "workers": 0},
        **({"auxiliary": {auxiliary: {}}} if auxiliary else {}),
    }


def cases() -> list[tuple[str, str, str, Any]]:
    """Method, auxiliary, setting and value: every setting with every value."""
    shared = [k for k in spec.names({}) if not k.startswith(("method.", "auxiliary."))]
    found = [("simclr", "", key, value) for key in shared if key not in LOST for value in VALUES]
    for method in METHODS:
        own = [k for k in spec.names({"method": {"name": method}}) if k.startswith("method.") and k != "method.name"]
        found += [(method, "", key, value) for key in own for value in VALUES]
    for name, (kind, _) in AUXILIARIES.items():
        found += [("simclr", name, f"auxiliary.{name}.{key}", value) for key in kind.model_fields for value in VALUES]
    found += [
        ("simclr", "", group, value) for group in ("data", "views", "backbone", "method", "auxiliary", "optimiser", "training") for value in VALUES
    ]
    found += [("simclr", "", f"backbone.args.{word}", value) for word in ("widths", "foo", "channels", "") for value in VALUES]
    return found


def tried(data: Path, method: str, auxiliary: str, key: str, value: Any) -> str | None:
    given = spec.merge(base(method, auxiliary), spec.nested(key, value))

    def action() -> None:
        resolved = resolve(str(data), settings=given, device="cpu")
        json.dumps(resolved.record())
        pretrain.build(resolved)

    return outcome(action, typed=True)


@pytest.mark.parametrize("every", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_every_setting_takes_or_refuses_every_value(every: int, data: Path) -> None:
    all_of_them = cases()
    assert len(all_of_them) > 3000
    before = everything(data.parent)
    with capped():
        refused = [tried(data, *case) is not None for case in itertools.islice(all_of_them, 0, None, every)]
    assert len(refused) / 4 < sum(refused) < len(refused)
    assert everything(data.parent) == before


NAMES = ("a\nb", "x" * 5000, "~nobody-of-this-name/x", "\x1b[31mred", "../../../../../../etc/passwd", "-", "", ".", "/", "//x",
    "a@b@c", "@", "@train", "photos@../x",
    "http://x/y.npz",
         "timm:", "features:", "runs:", ":", "timm:../x", "features:/dev/zero", "features:\udcff.npy", "untrained:", "CON", "$(touch x)",
    "`touch x`", "%n%s", "con\u2028x")  # fmt: skip


@pytest.mark.parametrize("verb", ["data", "train", "embed", "evaluate", "report", "export"])
def test_whatever_names_are_given_one_line_refuses_them(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for name in NAMES:
        args = {
            "data": ("data", "--", name),
            "train": ("train", "--out", "run", "--", name),
            "embed": ("embed", "--out", "e.npy", "--", name, "photos"),
            "evaluate": ("evaluate", "knn", "--data", "nothing", "--", name),
            "report": ("report", "--", name),
            "export": ("export", "--to", "e", "--", name),
        }[verb]
        with bounded():
            done = gnothi(*args)
        assert done.code == 2 and len(done.err.splitlines()) == 1 and len(done.err) < 3000 and "\x1b" not in done.err, (name, done.err[-500:])
        assert "Traceback" not in done.err
    assert list(tmp_path.rglob("*")) == [tmp_path / "work"]
