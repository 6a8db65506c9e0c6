"""What an encoder costs: parameters and operations an image, and the seconds that training it took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from gnothi.contracts import Step
from gnothi.encoders import Encoder, load
from gnothi.encoders.network import NetworkEncoder
from gnothi.ensemble import EnsembleEncoder
from gnothi.pretrain import assemble
from gnothi.recipes.resolve import resolve


def cost(name: str) -> dict[str, float]:
    """Parameters and floating-point operations of an image, of an ensemble those of all its members and its combiner; a handcrafted encoder has none.

    ``training_seconds`` is there where a run says it (or, of an ensemble, all its runs do).
    """
    return _cost(load(name), name)


def _cost(encoder: Encoder, name: str) -> dict[str, float]:
    if isinstance(encoder, EnsembleEncoder):
        parts = [_cost(m, m.name) for m in encoder.members if m is not None]
        own = sum(x.numel() for x in encoder.ensemble.fitted.tensors().values())
        found: dict[str, float] = {"parameters": own + sum(p["parameters"] for p in parts), "flops": sum(p["flops"] for p in parts)}
        seconds = [p.get("training_seconds") for p in parts]
        whole = None not in seconds
        return found | ({"training_seconds": sum(s for s in seconds if s is not None) + encoder.ensemble.record["seconds"]} if whole else {})
    if not isinstance(encoder, NetworkEncoder):
        return {"parameters": 0, "flops": 0}
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        encoder.backbone(torch.zeros(1, encoder.channels, encoder.size, encoder.size, device=encoder.device))
    found = {"parameters": sum(p.numel() for p in encoder.backbone.parameters()), "flops": counter.get_total_flops()}
    return found if name.endswith("@untrained") else found | training(Path(name.partition("@")[0]))


def training(run: Path) -> dict[str, Any]:
    """Seconds of a run's training, where it is one."""
    verdict = run / "verdict.json"
    return {"training_seconds": json.loads(verdict.read_text())["seconds"]} if verdict.exists() else {}


def step_flops(data: str, settings: dict[str, Any]) -> float:
    """Floating-point operations of an image of a training step, forward and back: of all its crops, through all networks."""
    resolved = resolve(data, settings=settings)
    learner, step = assemble(resolved, Path()), Step(0, 0, 1)
    views = learner.objective.draw(learner.batches(0), step)
    with FlopCounterMode(display=False) as counter:
        learner.module(views, step)[0].backward()
    return counter.get_total_flops() / len(views.index)
