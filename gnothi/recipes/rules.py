"""Defaults that adapt: what nobody set is derived here, from the data, the method and the length of the run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from gnothi.contracts import SettingError
from gnothi.methods import METHODS
from gnothi.recipes.spec import ViewSettings, mistake
from gnothi.recipes.views import named, small
from gnothi.views.batches import ViewsSpec
from gnothi.views.crops import CropSpec
from gnothi.views.photometric import check


@dataclass(frozen=True)
class Facts:
    """What the rules look at."""

    n: int
    """Images."""
    channels: int
    side: int
    """Median of the images' shorter sides, in pixels."""
    device: str = "cpu"
    """cpu, cuda or mps."""
    bf16: bool = False
    """The device has instructions for bf16."""
    processes: int = 1
    """That share each batch."""


SIZES = (32, 64, 96, 128, 224)
"""Crop sizes that a rule may choose."""
VIEWS_OF = {"simclr": "simclr", "simsiam": "moco-v2", "swav": "swav", "dino": "dino"}
"""View recipes of the methods; BYOL's for all others."""
SMALL_VIEWS_OF = {"simclr": "simclr-cifar", "simsiam": "simsiam-cifar", "swav": "swav-cifar", "dino": "dino-cifar"}
"""And for crops of up to 64 pixels."""
OPERATIONS = ("jitter", "brightness", "channel_brightness", "contrast", "saturation", "hue", "grey", "blur", "solarise")
"""On colours, each a view setting of its own."""
SGD_RATE = {
    "simclr": 0.24,
    "moco": 0.24,
    "byol": 0.48,
    "simsiam": 0.24,
    "swav": 0.48,
    "dino": 0.12,
    "barlow": 0.06,
    "vicreg": 0.06,
    "none": 0.2,
    "classify": 0.1,
    "distil": 0.1,
}
"""Peak rates of SGD for a batch of 256; they grow in proportion to the batch."""
ADAMW_RATE = 1e-3
"""Peak rate of AdamW for a batch of 256."""

STAGES_WEIGHT = 0.2
"""Of layers beside a CNN: of SDSSL's authors for a ResNet-18 with MoCo (l2o_moco_resnet.json), where a ViT-B has 1."""


def is_transformer(backbone: str) -> bool:
    """Whether a backbone's name is that of a transformer, which wants AdamW."""
    return any(word in backbone for word in ("vit", "deit", "swin", "beit", "eva", "mixer", "xcit", "cait"))


def defaults(facts: Facts, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Settings for all that ``chosen`` leaves open and that depends on the data, the method or the length of the run.

    Args:
        facts: of the data and the device.
        chosen: nested settings of recipe, command line and file; None counts as open.

    Returns:
        Nested settings to merge under ``chosen``.
    """
    method = _get(chosen, "method.name") or "simclr"
    backbone = _get(chosen, "backbone.name") or ("micro-resnet" if facts.device == "cpu" else "resnet18")
    size = _get(chosen, "views.size") or max([s for s in SIZES if s <= facts.side], default=facts.side)
    batch = min(_get(chosen, "training.batch") or _batch(facts, _get(chosen, "training.accumulate") or 1), facts.n)
    epochs = _get(chosen, "training.epochs") or _epochs(facts, batch)
    steps = max(1, round(epochs * (facts.n // batch)))
    optimiser = _get(chosen, "optimiser.name") or ("adamw" if is_transformer(backbone) else "sgd")
    settings: dict[str, Any] = {
        "views": {"size": size, "recipe": _views(method, size, facts.channels)},
        "backbone": {"name": backbone},
        "method": {"name": method, **_method(method, backbone, facts.n, batch, steps)},
        "optimiser": {"name": optimiser, **_optimiser(optimiser, method, batch)},
        "training": {"batch": batch, "epochs": epochs, "precision": "bf16" if facts.bf16 else "fp32"},
    }
    if method == "dino":
        settings["training"] |= {"clip": 3.0, "clip_kind": "tensor"}
    if _get(chosen, "auxiliary.layers") is not None and not is_transformer(backbone):
        settings["auxiliary"] = {"layers": {"weight": STAGES_WEIGHT}}
    return settings


def _get(settings: Mapping[str, Any], dotted: str) -> Any:
    value: Any = settings
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _power(x: float) -> int:
    """The nearest power of two."""
    return 1 << round(math.log2(max(x, 1)))


def _batch(facts: Facts, accumulate: int = 1) -> int:
    """128 on a CPU, 256 elsewhere; on little data the power of two that still gives eight steps an epoch, at least 16.

    Rounded down to what the processes and their micro-batches can share.
    """
    usual, share = 128 if facts.device == "cpu" else 256, facts.processes * accumulate
    batch = min(facts.n, max(16, min(usual, 1 << int(math.log2(max(facts.n / 8, 1))))))
    return max(1, batch // share) * share


def _epochs(facts: Facts, batch: int) -> float:
    """About 2,000 steps on a CPU, 40,000 elsewhere; never fewer than 10 (100) epochs nor more than 400 (800)."""
    steps, least, most = (2_000, 10, 400) if facts.device == "cpu" else (40_000, 100, 800)
    return float(min(most, max(least, round(steps * batch / facts.n))))


def _views(method: str, size: int, channels: int) -> str:
    if not METHODS[method][1].compares:
        return "plain"
    if channels != 3:
        return "any-channels"
    return SMALL_VIEWS_OF.get(method, "byol-cifar") if size <= 64 else VIEWS_OF.get(method, "byol")


def _momentum(steps: int, least: float) -> float:
    """Averaging horizon of half a percent of the run (papers on DINO in small and large agree on 0.1 % to 1 %), that of ``least`` or more."""
    return round(min(0.9995, max(least, 1 - 1 / (0.005 * steps))), 5)


def _method(method: str, backbone: str, n: int, batch: int, steps: int) -> dict[str, Any]:
    if method == "simclr":
        return {"decoupled": batch <= 256}  # what DCL is for (arXiv 2110.06848, section 4); 0.500 for 0.488: docs/accuracy.md
    if method in ("byol", "moco"):
        return {"momentum": _momentum(steps, 0.9)}  # in 1,560 steps 0.9 was better than 0.98 for both: docs/accuracy.md
    if method == "dino":
        # A twentieth of the images; BatchNorm in the head helps CNNs only.
        prototypes = min(65_536, max(256, _power(n / 20)))
        return {"momentum": _momentum(steps, 0.98), "prototypes": prototypes, "norm": "none" if is_transformer(backbone) else "batch"}
    if method == "swav":
        return {"prototypes": min(3_000, max(64, _power(n / 20)))}  # and no queue: what it holds is stale in short runs, 0.360 for 0.453
    return {}


def _optimiser(name: str, method: str, batch: int) -> dict[str, Any]:
    if name == "adamw":
        return {"lr": float(f"{ADAMW_RATE * batch / 256:.4g}"), "weight_decay": 0.05}
    rate = SGD_RATE.get(method, 0.12) * batch / 256
    if name == "lars":
        return {"lr": float(f"{10 * rate:.4g}"), "weight_decay": 1e-6}
    return {"lr": float(f"{rate:.4g}"), "weight_decay": 5e-4}


def crops(settings: ViewSettings, method: str, channels: int) -> ViewsSpec:
    """The crops that a run's view settings come to.

    Raises:
        SettingError: the method takes no local crops, or an operation has no meaning for these channels.
    """
    if settings.recipe is None or settings.size is None:
        raise SettingError("views.recipe and views.size are derived before crops are")
    views = named(settings.recipe, settings.size)
    local = views.local_crops
    if len(views.global_crops) < 2 and METHODS[method][1].compares:
        raise SettingError(f'views.recipe: "{settings.recipe}" makes one crop, for auxiliaries alone; {method} compares two, as "any-channels" makes')
    if not METHODS[method][1].multi_crop:
        if settings.local:
            able = ", ".join(name for name, (_, m) in METHODS.items() if m.multi_crop)
            raise SettingError(f"views.local must be 0 for {method}, which takes no local crops, got {settings.local}; {able} do")
        local = ()
    if settings.local is not None and settings.local != len(local):
        local = (local or (small(views),))[:1] * settings.local
    views = ViewsSpec(
        global_crops=tuple(_change(c, settings, area=settings.area) for c in views.global_crops),
        local_crops=tuple(_change(c, settings, area=settings.local_area, size=settings.local_size) for c in local),
    )
    for crop in (*views.global_crops, *views.local_crops):
        check(crop.photometric, channels)
    return views


def _change(crop: CropSpec, settings: ViewSettings, area: tuple[float, float] | None = None, size: int | None = None) -> CropSpec:
    colours = {k: getattr(settings, k) for k in OPERATIONS}
    photometric = {**crop.photometric.model_dump(), **{k: v for k, v in colours.items() if v is not None}}
    own = {"area": area, "size": size, "flip": settings.flip, "turns": settings.turns, "photometric": photometric}
    try:
        return CropSpec.model_validate({**crop.model_dump(), **{k: v for k, v in own.items() if v is not None}})
    except ValidationError as error:
        raise SettingError(mistake(error, {}, ("views",))) from None
