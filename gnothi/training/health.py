"""Is it learning, or has it collapsed? Cheap measures on a fixed sample, and a verdict in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gnothi.contracts import Step
from gnothi.methods import Method


def spread(vectors: Tensor) -> float:
    """Deviation of unit vectors around their mean, in [0, 1]: 1 where they point everywhere, 0 where all are one vector.

    Args:
        vectors: [N, D], any scale.
    """
    unit = F.normalize(vectors.double(), dim=-1)
    return math.sqrt(max(0.0, 1 - float(unit.mean(0).square().sum())))


def rankme(vectors: Tensor) -> float:
    """Effective rank: exp of the entropy of the singular values' shares (RankMe, Garrido et al. 2023, arXiv 2210.02885, eq. 1).

    Args:
        vectors: [N, D]; between 1 and min(N, D) comes out, nan where a number is not finite.
    """
    if not vectors.isfinite().all():
        return math.nan
    values = torch.linalg.svdvals(vectors.double())
    share = values / values.sum().clamp(min=1e-300)
    return float(torch.exp(-(share * (share + 1e-300).log()).sum()))


def entropies(assignments: Tensor) -> tuple[float, float]:
    """Mean entropy of rows, and entropy of the mean row, both as parts of log K: [N, K] -> two numbers in [0, 1].

    Healthy: the first well below the second. Both near 1: uniform. Both near 0: one winner takes all.
    """
    p = assignments.double()
    full = math.log(p.shape[1])
    mean = p.mean(0)
    return float(-(p * (p + 1e-300).log()).sum(-1).mean()) / full, float(-(mean * (mean + 1e-300).log()).sum()) / full


@torch.no_grad()
def measure(method: Method, sample: Tensor, step: Step) -> dict[str, float]:
    """Measure a method on a fixed sample of images, in evaluation mode; nothing moves.

    Args:
        method: with its backbone and Space.
        sample: [M, C, S, S] normalised images, the same at every call.
        step: where training is.

    Returns:
        ``std`` (spread of projections), ``rankme`` (of features), and ``teacher_entropy`` and ``mean_entropy`` where there are prototypes.
    """
    modes = [(m, m.training) for m in method.modules()]
    method.eval()
    try:
        pooled = method.backbone(sample).pooled
        said = method.space.say([pooled])
        values = {
            "std": spread(said[0].projection),
            "feature_std": spread(pooled),
            "rankme": rankme(pooled),
            "projection_rankme": rankme(F.normalize(said[0].projection, dim=-1)),
        }
        if hasattr(method.spec, "prototypes"):
            slow = pooled if method.slow is None else method.slow(sample).pooled
            targets = method.space.targets(method.space.answer([slow], said), step)
            values["teacher_entropy"], values["mean_entropy"] = entropies(targets)
        return values
    finally:
        for m, training in modes:
            m.training = training


@dataclass(frozen=True)
class Verdict:
    """What a run came to, in words."""

    verdict: str
    """healthy, collapsed or undecided."""
    collapse: str | None
    """constant (all images alike), uniform (every assignment alike), dimensional (few dimensions used), or None."""
    why: str
    advice: str

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


ADVICE = {
    "byol": "keep the predictor (method.predictor), and keep the teacher slow (method.momentum of 0.99 or more)",
    "simsiam": "keep the stop-gradient (method.stop_gradient) and the predictor's constant rate, and lower optimiser.lr",
    "dino": "keep the centring (method.centring), lower method.teacher_temperature, lower optimiser.lr",
    "swav": "lower method.epsilon, use a queue where the batch is smaller than method.prototypes, lower optimiser.lr",
}
GENERAL_ADVICE = "lower optimiser.lr, lengthen optimiser.warm_up, check the views (`gnothi report` shows them)"
FLAT_STD = 0.05
"""Below this spread of projections all images are one vector for practical purposes: their mean cosine is above 0.997."""
SHARED_LOW, SHARED_HIGH = 0.02, 0.995
"""Entropies, as parts of log K, below and above which assignments say nothing about the image."""
FEW_DIMENSIONS = 1.5
"""A RankMe below this is one direction and little else."""


def verdict(history: Sequence[dict[str, float]], method: str, steps: int) -> Verdict:
    """Judge a run by its last measurements.

    Args:
        history: what ``measure`` gave, oldest first.
        method: its name, for the advice.
        steps: steps done.
    """
    if len(history) < 3:
        return Verdict(
            "undecided", None, f"only {len(history)} health measurements after {steps} steps", "train longer, or set training.health_every lower"
        )
    advice = ADVICE.get(method, GENERAL_ADVICE)
    last = [history[-1], history[-2]]
    for kind, why in map(_collapse, last[:1]):
        if kind is not None and _collapse(last[1])[0] == kind:
            return Verdict("collapsed", kind, why, advice)
        if kind is not None:
            return Verdict("undecided", kind, f"{why}, but only at the last measurement", advice)
    now, first = history[-1], history[0]
    return Verdict(
        "healthy", None, f"projections spread {now['std']:.2f} of 1, effective rank {now['rankme']:.0f} (at first {first['rankme']:.0f})", ""
    )


def _collapse(values: dict[str, float]) -> tuple[str | None, str]:
    each, mean = values.get("teacher_entropy"), values.get("mean_entropy")
    if mean is not None and mean < SHARED_LOW:
        return "constant", f"the teacher gives every image the same single output (entropy of the mean assignment {mean:.3f} of log K)"
    if each is not None and each > SHARED_HIGH:
        return "uniform", f"the teacher's assignments are uniform (mean entropy {each:.4f} of log K): they say nothing about the image"
    if values["std"] < FLAT_STD:
        return "constant", f"projections of different images are nearly one vector (spread {values['std']:.3f} of 1)"
    if values["rankme"] < FEW_DIMENSIONS:
        return "dimensional", f"features use almost a single direction (effective rank {values['rankme']:.1f})"
    return None, ""
