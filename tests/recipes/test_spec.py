from __future__ import annotations

from typing import Any

import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from gnothi.auxiliary import AUXILIARIES, AuxiliarySpec
from gnothi.contracts import SettingError
from gnothi.methods import METHODS
from gnothi.recipes.named import RECIPES, recipe
from gnothi.recipes.spec import RunSpec, load, merge, names, nested, parse

DATA = {"data": {"name": "photos"}}
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=4))
KEYS = st.sampled_from("abcd")
TREES = st.recursive(st.dictionaries(KEYS, LEAVES, max_size=3), lambda inner: st.dictionaries(KEYS, inner | LEAVES, max_size=3), max_leaves=8)
FULL = st.recursive(
    st.dictionaries(KEYS, st.integers(), max_size=3), lambda inner: st.dictionaries(KEYS, inner | st.integers(), max_size=3), max_leaves=8
)
"""Nested settings without None and empty groups are not special."""


def refused(settings: dict[str, Any]) -> str:
    with pytest.raises(SettingError) as caught:
        load(merge(DATA, settings))
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    return str(caught.value)


# ---- mistakes -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("training.epoch", "training.epochs"), ("training.bach", "training.batch"), ("optimiser.learning_rate", "optimiser.warm_up"),
        ("optimiser.weight_decy", "optimiser.weight_decay"), ("views.sise", "views.size"), ("backbone.nam", "backbone.name"),
        ("method.temprature", "method.temperature"), ("data.label", "data.labels"), ("sed", "seed"),
    ],
)  # fmt: skip
def test_an_unknown_setting_names_the_nearest_one(key: str, near: str) -> None:
    said = refused(nested(key, 1))
    assert said.startswith(f"{key}: no such setting; ")
    if key != "optimiser.learning_rate":
        assert said.endswith(f"did you mean {near}?")


def test_settings_of_another_method_are_unknown_and_its_own_are_near() -> None:
    assert refused({"method": {"name": "byol", "temperature": 0.1}}).startswith("method.temperature: no such setting;")
    assert refused({"method": {"name": "dino", "prototype": 9}}) == "method.prototype: no such setting; did you mean method.prototypes?"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"training": {"batch": 1}}, "training.batch must be greater than 1, got 1"),
        ({"training": {"epochs": "many"}}, "training.epochs must be a number, got 'many'"),
        ({"training": {"batch": 7.5}}, "training.batch must be a whole number, got 7.5"),
        ({"training": {"channels_last": "perhaps"}}, "training.channels_last must be true or false, got 'perhaps'"),
        ({"method": {"temperature": 0}}, "method.temperature must be greater than 0, got 0"),
        ({"method": {"name": "byol", "momentum": 1.5}}, "method.momentum must be less than or equal to 1, got 1.5"),
        ({"method": {"name": "simclear"}}, "method.name: no such method 'simclear'; did you mean simclr?"),
        ({"optimiser": {"name": "adam"}}, "optimiser.name must be one of sgd, adamw, lars, got 'adam'; did you mean adamw?"),
        ({"training": 3}, "training is a group of settings and takes no value itself, got 3"),
        ({"method": "byol"}, "method is a group of settings and takes no value itself, got 'byol'; did you mean method.name=byol?"),
        ({"seed": -1}, "seed must be greater than or equal to 0, got -1"),
    ],
)
def test_an_impossible_value_is_named_with_its_rule(settings: dict[str, Any], said: str) -> None:
    assert refused(settings) == said


def test_a_teacher_blunter_than_its_student_is_refused() -> None:
    said = refused({"method": {"name": "dino", "teacher_temperature": 0.3}})
    assert "method.teacher_temperature must be below method.student_temperature (0.1), got 0.3" in said
    said = refused({"method": {"name": "dino", "teacher_temperature_start": 0.2}})
    assert "method.teacher_temperature_start must be below method.student_temperature (0.1), got 0.2" in said
    assert load({"data": {"name": "photos"}, "method": {"name": "dino", "student_temperature": 0.03, "teacher_temperature": 0.02}})


def test_auxiliaries_are_checked_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    class NudgeSpec(AuxiliarySpec):
        strength: float = Field(default=1.0, gt=0)
        """How hard."""

    monkeypatch.setitem(AUXILIARIES, "nudge", (NudgeSpec, toys.Nudge))
    assert load(merge(DATA, {"auxiliary": {"nudge": {"strength": 3}}})).auxiliary["nudge"].strength == 3
    assert "auxiliary.nudge.strength" in names()
    assert refused({"auxiliary": {"nugde": {}}}).startswith("auxiliary.nugde: no such auxiliary;")
    assert refused({"auxiliary": {"nudge": {"strenth": 3}}}) == "auxiliary.nudge.strenth: no such setting; did you mean auxiliary.nudge.strength?"
    assert refused({"auxiliary": {"nudge": {"start": 1}}}) == "auxiliary.nudge.start must be less than 1, got 1"
    # What was resolved is written and read again.
    spec = load(merge(DATA, {"auxiliary": {"nudge": {"strength": 3}}}))
    assert load(spec.model_dump(mode="json")) == spec


def test_assignments_need_a_key_and_an_equals_sign() -> None:
    for wrong in ("training.epochs", "=3", " =3"):
        with pytest.raises(SettingError, match="--set takes KEY=VALUE"):
            parse([wrong])


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(SettingError, match=r"imagenete: no such recipe; did you mean imagenette\?"):
        recipe("imagenete")


# ---- values -------------------------------------------------------------------------------------
def test_values_are_json_or_else_text() -> None:
    said = parse(["a.b=3", "a.c=0.5", "a.d=[1, 2]", "a.e=true", "a.f=None", "a.g=True", "x=10 epochs", "y=a=b", 'z="3"', "w="])
    assert said == {"a": {"b": 3, "c": 0.5, "d": [1, 2], "e": True, "f": None, "g": True}, "x": "10 epochs", "y": "a=b", "z": "3", "w": ""}


def test_a_later_assignment_wins_and_none_takes_one_back_to_the_rule() -> None:
    assert parse(["a.b=3", "a.b=4", "a.c=1"]) == {"a": {"b": 4, "c": 1}}
    assert merge({"a": {"b": 4}}, {"a": {"b": None, "c": None}}) == {"a": {"b": 4, "c": None}}
    assert load(merge(DATA, parse(["training.batch=none"]))).training.batch is None
    assert merge({"a": {"b": 3, "c": 4}}, parse(["a.b=none", "a.d=none"])) == {"a": {"b": 3, "c": 4, "d": None}}


@given(FULL)
def test_merging_with_nothing_or_itself_changes_nothing(tree: dict[str, Any]) -> None:
    assert merge(tree, {}) == merge({}, tree) == merge(tree, tree) == tree


@given(FULL, FULL, FULL)
def test_merging_is_associative(a: dict[str, Any], b: dict[str, Any], c: dict[str, Any]) -> None:
    assert merge(merge(a, b), c) == merge(a, merge(b, c))


@given(TREES, TREES)
def test_merging_leaves_its_arguments_alone_and_keeps_every_key(under: dict[str, Any], over: dict[str, Any]) -> None:
    before = (repr(under), repr(over))
    merged = merge(under, over)
    assert (repr(under), repr(over)) == before
    assert set(merged) == set(under) | set(over)
    for key, value in over.items():
        if value is not None and not isinstance(value, dict):
            assert merged[key] is value or merged[key] == value


@given(st.lists(st.text("abc", min_size=1), min_size=1, max_size=4), LEAVES)
def test_a_dotted_name_is_dictionaries_in_each_other(parts: list[str], value: Any) -> None:
    tree = nested(".".join(parts), value)
    for part in parts:
        assert list(tree) == [part]
        tree = tree[part]
    assert tree == value or tree is value


@pytest.mark.parametrize("name", METHODS)
def test_a_resolved_spec_is_read_back_from_json_as_it_was(name: str) -> None:
    spec = load({**DATA, "method": {"name": name}, "optimiser": {"betas": [0.8, 0.9]}, "views": {"area": [0.3, 1]}})
    assert load(spec.model_dump(mode="json")) == spec
    assert spec.method.name == name and isinstance(spec.method, METHODS[name][0])


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_has_a_description_and_is_known_by_its_dotted_name(name: str) -> None:
    for dotted, field in names({"method": {"name": name}}).items():
        assert dotted in ("method.name",) or field.description, dotted
        assert dotted == "seed" or dotted.partition(".")[0] in RunSpec.model_fields


def test_specs_are_frozen() -> None:
    spec = load(DATA)
    with pytest.raises(ValueError, match="frozen"):
        spec.training.batch = 3


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_loads(name: str) -> None:
    assert load(merge(recipe(name).settings, DATA)).data.name == "photos"
    assert RECIPES[name].about.endswith(".") or ";" in RECIPES[name].about
