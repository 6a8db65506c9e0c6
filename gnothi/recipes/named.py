"""Run recipes by name: what is set before the rules fill the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gnothi.contracts import SettingError, did_you_mean


@dataclass(frozen=True)
class Recipe:
    """Settings with a name."""

    about: str
    """For which data, and what it costs."""
    settings: dict[str, Any]


RECIPES: dict[str, Recipe] = {
    "any": Recipe(
        "Any images: everything by rule, from their number, size and channels and from the device. The default.",
        {},
    ),
    "photos": Recipe(
        "The photographs that come with the installation, 32 px: SimCLR on a micro ResNet; brightness and contrast change, colour does not: it tells "
        "them apart; about a minute and a half on two cores.",
        {
            "method": {"name": "simclr"},
            "backbone": {"name": "micro-resnet"},
            "views": {
                "recipe": "simclr-cifar",
                "size": 32,
                "brightness": 0.2,
                "contrast": 0.2,
                "saturation": 0.0,
                "hue": 0.0,
                "grey": 0.0,
            },
            "training": {"epochs": 14, "batch": 128, "evaluate_every": "20%"},
        },
    ),
    "cifar": Recipe(
        "CIFAR-10 and CIFAR-100 with ResNet-18 and any --method: 200 epochs, batch 128; a GPU.",
        {"backbone": {"name": "resnet18", "stem": "cifar"}, "views": {"size": 32}, "training": {"epochs": 200, "batch": 128}},
    ),
    "imagenette": Recipe(
        "Folders of about ten thousand photographs, 96 px, ResNet-18 and any --method: 200 epochs, batch 128; a GPU, or patience.",
        {"backbone": {"name": "resnet18"}, "views": {"size": 96}, "training": {"epochs": 200, "batch": 128}},
    ),
    "imagenette-vit": Recipe(
        "Folders of about ten thousand photographs, 96 px, a tiny ViT with patches of 8 and DINO with six local crops: 300 epochs, batch 128; a GPU.",
        {
            "method": {"name": "dino"},
            "backbone": {"name": "vit_tiny_patch16_224", "patch_size": 8, "drop_path": 0.1},
            "views": {"size": 96, "local": 6},
            "training": {"epochs": 300, "batch": 128},
        },
    ),
    "imagenet": Recipe(
        "A million photographs, 224 px, ResNet-50 and any --method with LARS: 100 epochs, batch 1,024 over all processes; several GPUs.",
        {
            "backbone": {"name": "resnet50"},
            "views": {"size": 224},
            "optimiser": {"name": "lars", "weight_decay": 1e-6},
            "training": {"epochs": 100, "batch": 1024, "precision": "bf16"},
        },
    ),
    "imagenet-vit": Recipe(
        "A million photographs, 224 px, ViT-S/16 with DINO as its authors trained it for 100 epochs: batch 512 over all processes; several GPUs.",
        {
            "method": {
                "name": "dino",
                "prototypes": 65536,
                "hidden": 2048,
                "momentum": 0.996,
                "teacher_temperature": 0.04,
                "frozen_until": 0.01,
            },
            "backbone": {"name": "vit_small_patch16_224", "drop_path": 0.1},
            "views": {"size": 224, "local": 8},
            "optimiser": {"name": "adamw", "lr": 0.001, "lr_end": 1e-6, "weight_decay": 0.04, "weight_decay_end": 0.4},
            "training": {"epochs": 100, "batch": 512, "clip": 3.0, "clip_kind": "tensor", "precision": "bf16"},
        },
    ),
    "any-orientation": Recipe(
        "Images without an up (microscopy, satellite): all flips and quarter turns, hue left alone; the rest by rule.",
        {"views": {"recipe": "any-orientation"}},
    ),
}
BY_DATA = {"photos": "photos"}
"""Recipes that a data set takes where none is named."""


def recipe(name: str) -> Recipe:
    """A recipe by name.

    Raises:
        SettingError: there is none, with the nearest one.
    """
    if name not in RECIPES:
        raise SettingError(f"{name}: no such recipe; {did_you_mean(name, RECIPES)}")
    return RECIPES[name]
