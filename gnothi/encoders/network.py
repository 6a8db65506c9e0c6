"""Encoders that are networks: from a run, from an exported folder, from timm."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gnothi.contracts import EncoderError, GnothiError, Pixels, RunError, SettingError, did_you_mean
from gnothi.encoders.encoder import Encoder, wrong_channels
from gnothi.encoders.inputs import centre, check_range
from gnothi.models.backbone import BackboneSpec, build, initialise, pretrained_input
from gnothi.training import checkpoint, twice

log = logging.getLogger(__name__)
LARGEST = 1 << 16
"""Channels, and pixels of a side, beyond which a file's number is taken for broken."""
SIDES = {"online": "method.backbone.", "teacher": "method.slow."}
"""The two networks of a run, and how their tensors begin in a checkpoint."""
TEACHER_FIRST = ("dino",)
"""Methods whose teacher is the better encoder, as their papers report; ``runs/x`` means it."""
PIXELS_AT_ONCE = 1 << 22
"""Pixels that go through a network together: 256 images of up to 128 x 128, 83 of 224 x 224."""


class NetworkEncoder(Encoder):
    """A backbone that does not learn, with the preprocessing it was trained for.

    Args:
        name: what a person calls it.
        backbone: images [B, C, size, size] to an ``Encoding``; put into evaluation mode.
        spec: the settings it was built from.
        channels: of the images.
        size: side of its input, in pixels.
        pixels: range and statistics of the images it takes.
        any_range: the range is that of the images' type (255, 65535, or 1 for floats) and not the one of ``pixels``.
        device: where it computes.
    """

    channels: int

    def __init__(
        self,
        name: str,
        backbone: nn.Module,
        spec: BackboneSpec,
        channels: int,
        size: int,
        pixels: Pixels,
        *,
        any_range: bool = False,
        device: torch.device | None = None,
    ) -> None:
        self.name, self.spec, self.channels, self.size, self.pixels = name, spec, channels, size, pixels
        self.any_range, self.device = any_range, device or torch.device("cpu")
        self.dim: int = backbone.width  # type: ignore[assignment]
        about = [spec.model_dump(mode="json"), channels, size, asdict(pixels), any_range, checkpoint.digest(backbone.state_dict())]
        self.fingerprint = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        self.backbone = backbone.to(self.device).eval().requires_grad_(False)

    def prepare(self, images: Tensor) -> Tensor:
        """[B, C, H, W] of any type to normalised [B, C, size, size]."""
        if images.shape[1] != self.channels:
            raise EncoderError(wrong_channels(self.name, self.channels, images.shape[1]))
        pixels = self.pixels_of(images.dtype)
        if not self.any_range:
            check_range(self.name, pixels, images)
        return pixels.normalise(pixels.unit(centre(images, self.size)))

    def pixels_of(self, dtype: torch.dtype) -> Pixels:
        """Range and statistics of images of a type."""
        high = {torch.uint8: 255.0, torch.uint16: 65535.0}.get(dtype, 1.0)
        return replace(self.pixels, high=high) if self.any_range else self.pixels

    @torch.inference_mode()
    def encode(self, prepared: Tensor) -> Tensor:
        at_once = max(1, PIXELS_AT_ONCE // self.size**2)
        pooled = [self.backbone(part.to(self.device)).pooled.float().cpu() for part in prepared.split(at_once)]
        return torch.cat(pooled).clone()


# ---- runs ---------------------------------------------------------------------------------------
def run_encoder(name: str, folder: Path, marks: list[str], device: torch.device) -> NetworkEncoder:
    """The network of a run: its teacher for DINO and its online network for the others, unless a mark says otherwise."""
    try:
        spec = twice.read(folder, log.warning)
        settings, derived = spec["settings"], spec["derived"]
        backbone = offline(BackboneSpec(**settings["backbone"]))
        channels, size, method = int(derived["channels"]), int(derived["size"]), str(settings["method"]["name"])
        pixels = _pixels(derived["pixels"], channels)
        network = _built(backbone, channels, size, int(settings["seed"]))
    except RunError as error:
        raise EncoderError(str(error)) from None
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise EncoderError(f"{folder}/spec.json is not a run's: {_line(error)}") from None
    if marks != ["untrained"]:
        tensors = _tensors(folder, marks, method)
        _fill(network, tensors, folder)
    return NetworkEncoder(name, network, backbone, channels, size, pixels, device=device)


def _tensors(folder: Path, marks: list[str], method: str) -> dict[str, Tensor]:
    """The weights of the network that the marks choose."""
    side, path = None, None
    for mark in marks:
        if mark in SIDES and side is None:
            side = mark
        elif mark.startswith("step-") and mark[5:].isdigit() and path is None:
            path = checkpoint.path_of(folder, int(mark[5:]))
        else:
            raise EncoderError(f"{folder}@{mark}: no such part of a run; {did_you_mean(mark, [*SIDES, 'untrained', 'step-' + _steps(folder)[-1]])}")
    if path is not None and not path.is_file():
        raise EncoderError(f"{folder} has no checkpoint of step {checkpoint.step_of(path)}; it keeps {', '.join(_steps(folder))}")
    path = path or checkpoint.newest(folder)
    if path is None:
        raise EncoderError(
            f"{folder} holds no whole checkpoint; gnothi train DATA --out {folder} --resume goes on, "
            f"{folder}@untrained is the same network with random weights"
        )
    try:
        tensors, _ = checkpoint.read(path)
    except GnothiError as error:
        raise EncoderError(str(error)) from None
    side = side or ("teacher" if method in TEACHER_FIRST else "online")
    chosen = {k.removeprefix(SIDES[side]): v for k, v in tensors.items() if k.startswith(SIDES[side])}
    if not chosen:
        raise EncoderError(f"{folder}@{side}: {method} has no teacher; {folder} is its online network")
    return chosen


def _steps(folder: Path) -> list[str]:
    return [str(checkpoint.step_of(p)) for p in checkpoint.list_of(folder)] or ["none"]


# ---- exported folders and timm -------------------------------------------------------------------
def exported_encoder(name: str, folder: Path, marks: list[str], device: torch.device) -> NetworkEncoder:
    """The network of an exported folder: ``config.json`` and ``model.safetensors``."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if marks:
        raise EncoderError(f"{name}: an exported encoder has no parts; leave @{marks[0]} out")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        backbone = offline(BackboneSpec(**config["backbone"]))
        channels, size = int(config["channels"]), int(config["size"])
        pixels = _pixels(config["pixels"], channels)
        tensors = _real(load_file(folder / "model.safetensors"))
        network = _built(backbone, channels, size, 0)
    except (KeyError, TypeError, ValueError, ArithmeticError, RecursionError, OSError, SafetensorError) as error:
        raise EncoderError(f"{folder} is not a whole exported encoder: {_line(error)}") from None
    try:
        initialise(network, tensors)
    except (SettingError, RuntimeError) as error:
        raise EncoderError(f"{folder}/model.safetensors: {error}") from None
    return NetworkEncoder(name, network, backbone, channels, size, pixels, device=device)


def timm_encoder(name: str, device: torch.device) -> NetworkEncoder:
    """``timm:NAME`` with the weights that timm fetches (a warning says so first), or ``timm:NAME@untrained``."""
    architecture, _, mark = name.removeprefix("timm:").partition("@")
    if mark not in ("", "untrained"):
        raise EncoderError(f"{name}: after @ stands untrained or nothing, got {mark}")
    try:
        size, mean, std = pretrained_input(architecture) if not mark else (224, (0.5,) * 3, (0.5,) * 3)
        spec = BackboneSpec(name=architecture, pretrained=not mark, stem="plain")
        network = build(spec, 3, size, 0)
    except SettingError as error:
        raise EncoderError(f"{name}: {error}") from None
    return NetworkEncoder(name, network, offline(spec), 3, size, Pixels(0.0, 1.0, mean, std), any_range=True, device=device)


def offline(spec: BackboneSpec) -> BackboneSpec:
    """The same architecture without a download: pretrained ResNets are plain ones."""
    return spec.model_copy(update={"pretrained": False, "stem": spec.stem or "plain"}) if spec.pretrained else spec


def _fill(network: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    try:
        network.load_state_dict(_real(tensors))
    except (RuntimeError, ValueError) as error:
        raise EncoderError(f"{folder}: its weights do not fit its settings: {' '.join(str(error).split())[:160]}") from None


def _pixels(numbers: dict[str, Any], channels: int) -> Pixels:
    """Range and statistics from plain values.

    Raises:
        ValueError: they are not those of so many channels.
    """
    found = Pixels(float(numbers["low"]), float(numbers["high"]), tuple(map(float, numbers["mean"])), tuple(map(float, numbers["std"])))
    finite = all(map(math.isfinite, (found.low, found.high, *found.mean, *found.std)))
    if not (finite and found.low < found.high and len(found.mean) == len(found.std) == channels and min(found.std) > 0):
        raise ValueError(f"pixels must be low < high and a mean and a deviation above 0 for each of {channels} channels")
    return found


def _built(spec: BackboneSpec, channels: int, size: int, seed: int) -> nn.Module:
    """A network from a file's settings, which may be anything.

    Raises:
        ValueError: nothing can be built of them.
    """
    if not (0 < channels <= LARGEST and 0 < size <= LARGEST):
        raise ValueError(f"channels and size must be from 1 to {LARGEST}, got {channels} and {size}")
    try:
        return build(spec, channels, size, seed)
    except GnothiError as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # noqa: BLE001 - a network's constructor raises anything about arguments that it was not made for
        raise ValueError(f"backbone cannot be built: {_line(error)}") from None


def _real(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    strange = next((name for name, x in tensors.items() if x.is_complex()), None)
    if strange is not None:
        raise ValueError(f"{strange} holds complex numbers")
    return tensors


def _line(error: Exception) -> str:
    return f"{type(error).__name__} {' '.join(str(error).split())[:160]}"
