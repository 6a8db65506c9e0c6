"""The settings of a run as one frozen value, and their strict loading from dotted names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from pydantic import BaseModel, Field, SerializeAsAny, ValidationError, field_validator

from gnothi.auxiliary import AUXILIARIES, AuxiliarySpec
from gnothi.contracts import SettingError, Spec, did_you_mean
from gnothi.data import DataSpec
from gnothi.methods import METHODS
from gnothi.methods.barlow import BarlowSpec
from gnothi.methods.byol import BYOLSpec
from gnothi.methods.classify import ClassifySpec
from gnothi.methods.dino import DINOSpec
from gnothi.methods.distil import DistilSpec
from gnothi.methods.moco import MoCoSpec
from gnothi.methods.none import NoneSpec
from gnothi.methods.simclr import SimCLRSpec
from gnothi.methods.simsiam import SimSiamSpec
from gnothi.methods.swav import SwAVSpec
from gnothi.methods.vicreg import VICRegSpec
from gnothi.models.backbone import BackboneSpec
from gnothi.training.optimisers import OptimiserSpec
from gnothi.training.spec import TrainingSpec

if TYPE_CHECKING:
    AnyMethodSpec = (
        SimCLRSpec | MoCoSpec | BYOLSpec | SimSiamSpec | SwAVSpec | DINOSpec | BarlowSpec | VICRegSpec | NoneSpec | ClassifySpec | DistilSpec
    )
else:  # any that stands in METHODS, one of your own as well
    AnyMethodSpec = SerializeAsAny[Spec]

AnySpec = TypeVar("AnySpec", bound=Spec)


class RunDataSpec(DataSpec):
    """What a run learns from."""

    name: str
    """photos, a folder, an .npz or .npy file, shards:PATTERN, tiles:FOLDER, or a torchvision name; @train and @test where there are splits."""
    holdout: float | None = Field(default=None, ge=0, lt=1)
    """Part of the images kept out of training, for k-NN along the way. None: a tenth, at most 1,000, where there are labels and at least 100
    images."""


class ViewSettings(Spec):
    """Which crops, and what of the named view recipe to change."""

    recipe: str | None = None
    """A name that `gnothi recipes` lists. None: the method's own for images of this size and these channels."""
    size: int | None = Field(default=None, gt=0, le=32768)
    """Side of the global crops in pixels. None: by a rule, from the images' sizes."""
    local: int | None = Field(default=None, ge=0, le=256)
    """How many local crops. None: the recipe's."""
    local_size: int | None = Field(default=None, gt=0, le=32768)
    """Side of the local crops in pixels. None: the recipe's, or about half of `views.size`."""
    local_area: tuple[float, float] | None = None
    """Part of the image's area that a local crop covers, smallest and largest. None: the recipe's, or 5 to 40 %."""
    area: tuple[float, float] | None = None
    """Part of the image's area that a global crop covers, smallest and largest. None: the recipe's."""
    flip: float | None = Field(default=None, ge=0, le=1)
    """Probability of a left-right flip. None: the recipe's."""
    turns: bool | None = None
    """Quarter turns, for images without an up. None: the recipe's."""
    jitter: float | None = Field(default=None, ge=0, le=1)
    """Probability that brightness (of all channels, of each), contrast, saturation and hue change. None: the recipe's."""
    brightness: float | None = Field(default=None, ge=0)
    """Strength. None: the recipe's."""
    channel_brightness: float | None = Field(default=None, ge=0)
    """Strength for each channel by itself: where stain or light vary and tell nothing. None: the recipe's."""
    contrast: float | None = Field(default=None, ge=0)
    """Strength. None: the recipe's."""
    saturation: float | None = Field(default=None, ge=0)
    """Strength. None: the recipe's."""
    hue: float | None = Field(default=None, ge=0, le=0.5)
    """Strength. None: the recipe's."""
    grey: float | None = Field(default=None, ge=0, le=1)
    """Probability of losing colour. None: the recipe's."""
    blur: float | None = Field(default=None, ge=0, le=1)
    """Probability of a blur, of every crop. None: the recipe's."""
    solarise: float | None = Field(default=None, ge=0, le=1)
    """Probability of solarising, of every crop. None: the recipe's."""


class RunSpec(Spec):
    """Everything that decides a run."""

    seed: int = Field(default=0, ge=0)
    """Of everything random."""
    data: RunDataSpec
    views: ViewSettings = ViewSettings()
    backbone: BackboneSpec = BackboneSpec()
    method: AnyMethodSpec = SimCLRSpec()
    auxiliary: dict[str, SerializeAsAny[AuxiliarySpec]] = {}
    """More objectives beside the method, by name."""
    optimiser: OptimiserSpec = OptimiserSpec()
    training: TrainingSpec = TrainingSpec()

    @field_validator("method", mode="before")
    @classmethod
    def _method(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given if isinstance(given, Spec) else _refused("method", given)
        name = str(given.get("name", ""))
        if name not in METHODS:
            raise SettingError(f"method.name: no such method {name!r}; {did_you_mean(name, METHODS)}")
        try:
            return METHODS[name][0].model_validate(given)
        except ValidationError as error:
            raise SettingError(mistake(error, {"method": given}, ("method",))) from None

    @field_validator("auxiliary", mode="before")
    @classmethod
    def _auxiliaries(cls, given: Any) -> dict[str, AuxiliarySpec]:
        if not isinstance(given, Mapping):
            _refused("auxiliary", given)
        return {name: _one_auxiliary(name, values) for name, values in given.items()}


def _one_auxiliary(name: str, values: Any) -> AuxiliarySpec:
    if name not in AUXILIARIES:
        raise SettingError(f"auxiliary.{name}: no such auxiliary; {did_you_mean(name, AUXILIARIES)}")
    if isinstance(values, AuxiliarySpec):
        return values
    try:
        return AUXILIARIES[name][0].model_validate(values)
    except ValidationError as error:
        raise SettingError(mistake(error, {}, ("auxiliary", name))) from None


def load(settings: Mapping[str, Any]) -> RunSpec:
    """Make a RunSpec of nested plain values.

    Raises:
        SettingError: an unknown key or an impossible value, the first of them, with the nearest right thing.
    """
    settings = merge({"method": {"name": RunSpec.model_fields["method"].default.name}}, settings)
    try:
        return RunSpec.model_validate(settings)
    except ValidationError as error:
        raise SettingError(mistake(error, settings)) from None
    except RecursionError:
        raise SettingError(DEEP) from None


def checked(kind: type[AnySpec], settings: Mapping[str, Any], of: str) -> AnySpec:
    """Make one group's spec of plain values.

    Args:
        kind: the spec.
        settings: values by name.
        of: what they are settings of, for the message.

    Raises:
        SettingError: the first mistake, with the nearest right thing.
    """
    for key in settings:
        if key not in kind.model_fields:
            raise SettingError(f"{of}.{key}: no such setting; {did_you_mean(key, kind.model_fields)}")
    try:
        return kind(**settings)
    except ValidationError as error:
        raise SettingError(mistake(error, {}, (of,))) from None


DEEP = "settings are nested too deep; method.temperature and auxiliary.rotation.weight are as deep as they go"
DEEPEST = 12
"""Names and brackets within each other: more than any setting has, fewer than any reader of them stumbles over."""
RULES = {
    "int": "must be a whole number",
    "float": "must be a number",
    "bool": "must be true or false",
    "string": "must be text",
    "tuple": "must be a list",
    "finite": "must be a finite number",
}
"""In words for a person, by how the type of pydantic's error begins."""


def mistake(error: ValidationError, settings: Mapping[str, Any], under: tuple[str, ...] = ()) -> str:
    """The first mistake in one line.

    Args:
        error: what pydantic found.
        settings: in which; they say the method whose settings are known.
        under: the group that was checked, where it is not all of them.
    """
    errors = error.errors()
    one = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    dotted = ".".join([*under, *map(str, one["loc"])])
    kind, found = one["type"], one["input"]
    if kind == "extra_forbidden":
        return f"{dotted}: no such setting; {did_you_mean(dotted, sorted(names(settings)))}"
    if kind.startswith(("model_", "dict_")):
        return _group(dotted, found)
    if kind == "literal_error":
        known = [str(k).strip("'") for k in one["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        near = did_you_mean(str(found), known)
        return f"{dotted} must be one of {', '.join(known)}, got {found!r}" + (f"; {near}" if near.startswith("did") else "")
    rule = RULES.get(kind.partition("_")[0])
    message = one["msg"].removeprefix("Value error, ").replace("Input should", "must")
    return f"{dotted} {message}" if kind == "value_error" else f"{dotted} {rule or message}, got {found!r}"


def _refused(dotted: str, found: Any) -> NoReturn:
    raise SettingError(_group(dotted, found))


def _group(dotted: str, found: Any) -> str:
    """The line for a value where a group of settings belongs."""
    near = f"; did you mean {dotted}.name={found}?" if f"{dotted}.name" in names() else ""
    return f"{dotted} is a group of settings and takes no value itself, got {found!r}{near}"


def names(settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Every dotted setting with its field: of the method that ``settings`` names, SimCLR's otherwise.

    Returns:
        dotted name -> pydantic FieldInfo.
    """
    method = str(((settings or {}).get("method") or {}).get("name", "simclr"))
    groups: dict[str, type[BaseModel]] = {
        "data": RunDataSpec,
        "views": ViewSettings,
        "backbone": BackboneSpec,
        "method": METHODS.get(method, METHODS["simclr"])[0],
        "optimiser": OptimiserSpec,
        "training": TrainingSpec,
    }
    fields: dict[str, Any] = {"seed": RunSpec.model_fields["seed"]}
    for group, spec in groups.items():
        fields |= {f"{group}.{name}": field for name, field in spec.model_fields.items()}
    for name, (spec, _) in AUXILIARIES.items():
        fields |= {f"auxiliary.{name}.{key}": field for key, field in spec.model_fields.items()}
    return fields


def parse(assignments: Iterable[str]) -> dict[str, Any]:
    """Turn KEY=VALUE texts into nested settings; a value is JSON, or else text.

    Raises:
        SettingError: there is no "=", or they are nested too deep.
    """
    settings: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise SettingError(f"--set takes KEY=VALUE, like training.epochs=20, got {text!r}")
        value = _value(value.strip())
        if key.count(".") + _depth(value) > DEEPEST:
            raise SettingError(DEEP)
        settings = merge(settings, nested(key.strip(), value))
    return settings


def _depth(value: Any) -> int:
    """How deep lists and dictionaries lie in each other, counted no further than is too deep."""
    depth, layer = 0, [value]
    while layer and depth <= DEEPEST:
        layer = [inner for x in layer if isinstance(x, dict | list) for inner in (x.values() if isinstance(x, dict) else x)]
        depth += bool(layer)
    return depth


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise SettingError(DEEP) from None
    except ValueError:
        return {"none": None, "None": None, "True": True, "False": False}.get(text, text)


def nested(dotted: str, value: Any) -> dict[str, Any]:
    """``a.b.c`` and a value as dictionaries in each other."""
    *outer, last = dotted.split(".")
    inside = {last: value}
    for part in reversed(outer):
        inside = {part: inside}
    return inside


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested settings as one; ``over`` wins, and a None in it gives the word back to ``under``."""
    merged = dict(under)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        elif value is not None or key not in merged:
            merged[key] = value
    return merged


def flat(settings: Mapping[str, Any], under: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{under}{key}.") if isinstance(value, Mapping) else {f"{under}{key}": value}
    return found
