"""Arms: names, the product, which settings go where, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from gnothi.auxiliary import AUXILIARIES
from gnothi.comparison import arms
from gnothi.contracts import SettingError
from gnothi.methods import METHODS


def called(*given: Any) -> list[str]:
    return [arm.name for arm in arms(*given)]


def test_every_method_meets_every_set_in_order() -> None:
    assert called(["simclr", "byol"], ["none", "rotation"], {}, {}) == ["simclr", "simclr+rotation", "byol", "byol+rotation"]
    one = arms(["byol"], ["rotation"], {}, {})[0]
    assert one.settings == {"method": {"name": "byol"}, "auxiliary": {"rotation": {}}}


def test_whatever_is_in_the_tables_can_be_an_arm() -> None:
    sets = ["none", *AUXILIARIES, "+".join(AUXILIARIES)][: len(AUXILIARIES) + 1 + (len(AUXILIARIES) > 1)]
    found = arms(list(METHODS), sets, {}, {})
    assert len(found) == len(METHODS) * len(sets)
    assert {frozenset(arm.settings["auxiliary"]) for arm in found} >= {frozenset(), frozenset(AUXILIARIES)}


def test_a_varied_setting_multiplies_the_arms_that_have_it() -> None:
    vary = {"auxiliary.rotation.weight": [0.1, 0.2], "method.temperature": [0.5], "optimiser.lr": [0.01]}
    assert called(["simclr", "byol"], ["none", "rotation"], {}, vary) == [
        "simclr,temperature=0.5,optimiser.lr=0.01",
        "simclr+rotation,rotation.weight=0.1,temperature=0.5,optimiser.lr=0.01",
        "simclr+rotation,rotation.weight=0.2,temperature=0.5,optimiser.lr=0.01",
        "byol,optimiser.lr=0.01",
        "byol+rotation,rotation.weight=0.1,optimiser.lr=0.01",
        "byol+rotation,rotation.weight=0.2,optimiser.lr=0.01",
    ]


def test_settings_go_to_the_arms_that_have_them() -> None:
    settings = {"method": {"temperature": 0.5}, "auxiliary": {"rotation": {"weight": 0.3}}, "training": {"batch": 8}}
    found = {arm.name: arm.settings for arm in arms(["simclr", "byol"], ["none", "rotation"], settings, {"auxiliary.rotation.on": ["projector"]})}
    assert found["simclr"] == {"method": {"name": "simclr", "temperature": 0.5}, "auxiliary": {}, "training": {"batch": 8}}
    assert found["byol+rotation,rotation.on=projector"] == {
        "method": {"name": "byol"},
        "auxiliary": {"rotation": {"weight": 0.3, "on": "projector"}},
        "training": {"batch": 8},
    }


def test_names_are_names_of_folders_that_an_encoder_s_name_can_hold() -> None:
    values = [[0.2, 1.0], "a/b", "x@y: z", True, None]
    names = called(["simclr"], ["none"], {}, {"views.area": values})
    assert names[0] == "simclr,views.area=_0.2_1.0"
    assert len(set(names)) == len(values) and not any(set(name) & set("/@:[] ") for name in names)


REFUSED: list[tuple[tuple[Any, ...], str]] = [
    ((["simclrr"], ["none"], {}, {}), "--methods: no such method 'simclrr'; did you mean simclr?"),
    ((["simclr"], ["rotaton"], {}, {}), "--auxiliaries: no such auxiliary 'rotaton'; did you mean rotation?"),
    ((["simclr"], ["none+rotation"], {}, {}), "none stands alone"),
    ((["simclr"], ["rotation+rotation"], {}, {}), "rotation+rotation names an auxiliary twice"),
    ((["simclr", "simclr"], ["none"], {}, {}), "two arms are called simclr"),
    ((["simclr"], ["none"], {}, {"optimiser.lr": [0.1, 0.1]}), "two arms are called simclr,optimiser.lr=0.1"),
    (([], ["none"], {}, {}), "at least one method"),
    ((["byol"], ["none"], {"method": {"temperature": 1}}, {}), "method.temperature: no arm has such a setting; "),
    ((["simclr"], ["none"], {"auxiliary": {"rotation": {"weight": 1}}}, {}), "auxiliary.rotation.weight: no arm has such a setting; "),
    ((["simclr"], ["none"], {}, {"optimiser.rl": [1]}), "optimiser.rl: no arm has such a setting; did you mean optimiser.lr?"),
    ((["simclr"], ["none"], {"seed": 3}, {}), "seed is said by --seeds"),
    ((["simclr"], ["none"], {}, {"method.name": ["byol"]}), "method.name is said by --methods"),
    ((["simclr"], ["none"], {}, {"optimiser.lr": []}), "--vary: optimiser.lr needs at least one value"),
]


@pytest.mark.parametrize(("given", "expected"), REFUSED, ids=[expected[:40] for _, expected in REFUSED])
def test_what_cannot_be_an_arm_is_named(given: tuple[Any, ...], expected: str) -> None:
    with pytest.raises(SettingError) as error:
        arms(*given)
    assert expected in str(error.value) and "\n" not in str(error.value)
