from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnothi.contracts import SettingError
from gnothi.methods import METHODS
from gnothi.recipes.named import RECIPES
from gnothi.recipes.rules import Facts, crops, defaults
from gnothi.recipes.spec import ViewSettings, load, merge
from gnothi.recipes.views import VIEWS

FACTS = st.builds(
    Facts, n=st.integers(4, 2_000_000), channels=st.sampled_from([1, 3, 5]), side=st.integers(8, 600), device=st.sampled_from(["cpu", "cuda"])
)
CHOICES = st.fixed_dictionaries(
    {"method": st.fixed_dictionaries({"name": st.sampled_from(list(METHODS))})},
    optional={
        "backbone": st.fixed_dictionaries({"name": st.sampled_from(["micro-resnet", "micro-vit", "resnet18", "vit_tiny_patch16_224"])}),
        "training": st.fixed_dictionaries({}, optional={"batch": st.integers(2, 4096), "epochs": st.floats(0.5, 500)}),
        "optimiser": st.fixed_dictionaries({"name": st.sampled_from(["sgd", "adamw", "lars"])}),
    },
)


def settle(facts: Facts, chosen: dict[str, Any]) -> dict[str, Any]:
    return merge(defaults(facts, chosen), chosen)


@given(FACTS, CHOICES)
def test_rules_applied_to_their_own_answer_change_nothing(facts: Facts, chosen: dict[str, Any]) -> None:
    """What is written into a run is what a resumed run derives."""
    once = settle(facts, chosen)
    if once["training"]["batch"] <= facts.n:
        assert settle(facts, once) == once


@given(FACTS, CHOICES)
def test_rules_always_make_settings_that_load_and_never_override(facts: Facts, chosen: dict[str, Any]) -> None:
    full = settle(facts, chosen)
    spec = load(merge(full, {"data": {"name": "photos"}}))
    assert spec.training.batch is not None and spec.training.epochs is not None and spec.optimiser.lr is not None and spec.optimiser.lr > 0
    assert spec.views.recipe in VIEWS
    for group, values in chosen.items():
        for key, value in values.items():
            assert full[group][key] == value


@pytest.mark.parametrize(
    ("n", "device", "batch", "epochs"),
    [
        (4, "cpu", 4, 400), (60, "cpu", 16, 400), (1_000, "cpu", 64, 128), (4_000, "cpu", 128, 64), (50_000, "cpu", 128, 10),
        (60, "cuda", 16, 800), (4_000, "cuda", 256, 800), (50_000, "cuda", 256, 205), (1_300_000, "cuda", 256, 100),
    ],
)  # fmt: skip
def test_batch_and_length_follow_the_number_of_images(n: int, device: str, batch: int, epochs: int) -> None:
    training = defaults(Facts(n, 3, 32, device), {})["training"]
    assert (training["batch"], training["epochs"]) == (batch, epochs)


@pytest.mark.parametrize(
    ("n", "processes", "accumulate", "batch"), [(4_000, 3, 1, 126), (4_000, 3, 4, 120), (60, 5, 1, 15), (10, 4, 1, 8), (10, 16, 1, 16)]
)
def test_a_batch_by_rule_can_be_shared_by_the_processes_and_their_micro_batches(n: int, processes: int, accumulate: int, batch: int) -> None:
    chosen = {"training": {"accumulate": accumulate}}
    found = defaults(Facts(n, 3, 32, processes=processes), chosen)["training"]["batch"]
    assert found == min(batch, n) and (found % (processes * accumulate) == 0 or n < processes)


@pytest.mark.parametrize(("side", "size"), [(28, 28), (32, 32), (48, 32), (96, 96), (160, 128), (224, 224), (3000, 224)])
def test_the_crop_is_the_largest_usual_size_that_fits(side: int, size: int) -> None:
    assert defaults(Facts(1000, 3, side), {})["views"]["size"] == size


@pytest.mark.parametrize(
    ("method", "size", "channels", "expected"),
    [
        ("simclr", 32, 3, "simclr-cifar"), ("simclr", 96, 3, "simclr"), ("moco", 224, 3, "byol"), ("byol", 32, 3, "byol-cifar"),
        ("dino", 64, 3, "dino-cifar"), ("dino", 96, 3, "dino"), ("swav", 224, 3, "swav"), ("simsiam", 224, 3, "moco-v2"),
        ("barlow", 32, 5, "any-channels"),
    ],
)  # fmt: skip
def test_views_follow_method_size_and_channels(method: str, size: int, channels: int, expected: str) -> None:
    found = defaults(Facts(1000, channels, size), {"method": {"name": method}})["views"]["recipe"]
    assert found == expected and found in VIEWS


@pytest.mark.parametrize(
    ("n", "steps_of", "prototypes", "momentum"),
    # Rules R1 and R2: a twentieth of the images; 1 - 1 / (0.005 x steps).
    [
        (10_000, {"batch": 128, "epochs": 200}, 512, 0.98718),
        (1_000, {"batch": 64, "epochs": 10}, 256, 0.98),
        (1_280_000, {"batch": 512, "epochs": 400}, 65_536, 0.9998 - 3e-4),
    ],
)
def test_prototypes_and_momentum_of_dino_follow_data_and_length(n: int, steps_of: dict[str, Any], prototypes: int, momentum: float) -> None:
    method = defaults(Facts(n, 3, 32), {"method": {"name": "dino"}, "training": steps_of})["method"]
    assert method["prototypes"] == prototypes and method["momentum"] == pytest.approx(momentum, abs=1e-5)


@pytest.mark.parametrize(("method", "few", "many"), [("byol", 0.9, 0.9995), ("moco", 0.9, 0.9995), ("dino", 0.98, 0.9995)])
def test_a_teacher_follows_faster_in_short_runs(method: str, few: float, many: float) -> None:
    for steps_of, momentum in (({"batch": 128, "epochs": 20}, few), ({"batch": 128, "epochs": 10_000}, many)):
        assert defaults(Facts(10_000, 3, 32), {"method": {"name": method}, "training": steps_of})["method"]["momentum"] == momentum


def test_simclr_is_decoupled_in_small_batches() -> None:
    for batch, decoupled in ((64, True), (256, True), (512, False)):
        assert defaults(Facts(10_000, 3, 32), {"method": {"name": "simclr"}, "training": {"batch": batch}})["method"]["decoupled"] is decoupled


def test_batchnorm_in_dino_s_head_is_for_cnns_only() -> None:
    for backbone, norm in (("resnet18", "batch"), ("micro-vit", "none"), ("vit_small_patch16_224", "none")):
        assert defaults(Facts(1000, 3, 32), {"method": {"name": "dino"}, "backbone": {"name": backbone}})["method"]["norm"] == norm


def test_layers_beside_a_cnn_weigh_a_fifth_unless_asked() -> None:
    """As in the authors' code for a ResNet; a ViT's weight goes by method and is no rule's."""
    for backbone, asked, weight in (("micro-resnet", {}, 0.2), ("resnet18", {}, 0.2), ("micro-vit", {}, None), ("resnet18", {"weight": 0.7}, 0.7)):
        chosen = {"method": {"name": "moco"}, "backbone": {"name": backbone}, "auxiliary": {"layers": asked}}
        assert load(merge(settle(Facts(1000, 3, 32), chosen), {"data": {"name": "x"}})).auxiliary["layers"].weight == weight
    assert "auxiliary" not in defaults(Facts(1000, 3, 32), {"auxiliary": {"rotation": {}}})


def test_prototypes_of_swav_follow_the_data_and_it_takes_no_queue() -> None:
    few, many = (settle(Facts(n, 3, 32), {"method": {"name": "swav"}})["method"] for n in (1_000, 50_000))
    assert (few["prototypes"], many["prototypes"]) == (64, 2048) and "queue" not in few | many


def test_dino_clips_tensor_by_tensor_as_its_code_does() -> None:
    training = defaults(Facts(1000, 3, 32), {"method": {"name": "dino"}})["training"]
    assert (training["clip"], training["clip_kind"]) == (3.0, "tensor")


@pytest.mark.parametrize("optimiser", ["sgd", "adamw", "lars"])
@given(batch=st.sampled_from([16, 64, 256, 1024]))
def test_the_rate_grows_with_the_batch(optimiser: str, batch: int) -> None:
    def rate(b: int) -> float:
        return defaults(Facts(10_000, 3, 32), {"optimiser": {"name": optimiser}, "training": {"batch": b}})["optimiser"]["lr"]

    assert rate(2 * batch) == pytest.approx(2 * rate(batch), rel=1e-3)


def test_bf16_is_taken_where_the_device_has_instructions_for_it() -> None:
    for able, precision in ((True, "bf16"), (False, "fp32")):
        assert settle(Facts(1000, 3, 32, bf16=able), {})["training"]["precision"] == precision
    assert settle(Facts(1000, 3, 32, bf16=True), {"training": {"precision": "fp32"}})["training"]["precision"] == "fp32"


def test_transformers_take_adamw_and_cnns_sgd() -> None:
    for backbone, optimiser in (("micro-resnet", "sgd"), ("convnext_tiny", "sgd"), ("micro-vit", "adamw"), ("swin_tiny_patch4_window7_224", "adamw")):
        assert defaults(Facts(1000, 3, 32), {"backbone": {"name": backbone}})["optimiser"]["name"] == optimiser


# ---- crops --------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
def test_methods_of_two_views_get_no_local_crops_and_refuse_them_by_name(method: str) -> None:
    settings = ViewSettings(recipe="dino", size=96)
    found = crops(settings, method, 3)
    assert len(found.global_crops) == 2
    assert bool(found.local_crops) == METHODS[method][1].multi_crop
    if not METHODS[method][1].multi_crop:
        with pytest.raises(SettingError, match=f"views.local must be 0 for {method}, which takes no local crops, got 3"):
            crops(settings.model_copy(update={"local": 3}), method, 3)


@pytest.mark.parametrize("n", [0, 1, 8])
def test_the_number_of_local_crops_may_be_chosen(n: int) -> None:
    assert len(crops(ViewSettings(recipe="dino", size=96, local=n), "dino", 3).local_crops) == n


@pytest.mark.parametrize(("size", "side"), [(32, 16), (96, 48), (224, 96)])
def test_a_recipe_without_local_crops_gives_small_ones_in_the_colours_of_its_first(size: int, side: int) -> None:
    found = crops(ViewSettings(recipe="byol", size=size, local=3), "dino", 3)
    assert [(c.size, c.area, c.photometric) for c in found.local_crops] == [(side, (0.05, 0.4), found.global_crops[0].photometric)] * 3


def test_the_side_and_area_of_local_crops_may_be_chosen_and_global_ones_stay() -> None:
    plain, changed = (crops(ViewSettings(recipe="dino", size=96, **c), "dino", 3) for c in ({}, {"local_size": 72, "local_area": (0.2, 0.6)}))
    assert {(c.size, c.area) for c in changed.local_crops} == {(72, (0.2, 0.6))} and changed.global_crops == plain.global_crops
    assert len(changed.local_crops) == len(plain.local_crops)


def test_a_changed_operation_changes_every_crop_and_an_area_the_global_ones_only() -> None:
    plain, changed = (crops(ViewSettings(recipe="dino", size=96, **c), "dino", 3) for c in ({}, {"hue": 0.07, "blur": 0.0, "area": (0.5, 0.9)}))
    for crop in (*changed.global_crops, *changed.local_crops):
        assert crop.photometric.hue == 0.07 and crop.photometric.blur == 0
    assert [c.area for c in changed.global_crops] == [(0.5, 0.9)] * 2
    assert [c.area for c in changed.local_crops] == [c.area for c in plain.local_crops]
    assert changed.global_crops[0].photometric.brightness == plain.global_crops[0].photometric.brightness


def test_every_recipe_of_runs_settles_for_its_data() -> None:
    for name, found in RECIPES.items():
        full = settle(Facts(10_000, 3, 224, "cpu"), found.settings)
        spec = load(merge(full, {"data": {"name": "photos"}}))
        assert crops(spec.views, spec.method.name, 3).global_crops, name
        assert settle(Facts(10_000, 3, 224, "cpu"), full) == full
