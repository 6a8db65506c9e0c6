"""Is it learning, or has it collapsed? Cheap measures on a fixed sample, and a verdict in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnothi.contracts import Step, Views
from gnothi.methods import Method
from gnothi.methods.alone import Alone
from gnothi.training.objective import Objective


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
        ``feature_std`` and ``rankme`` (spread and effective rank of features); ``std`` and ``projection_rankme`` (of projections, of unit length)
        where there is a method, and ``teacher_entropy`` and ``mean_entropy`` where there are prototypes.
    """
    with evaluating(method):
        pooled = method.backbone(sample).pooled
        said = method.space.say([pooled])
        values = {"feature_std": spread(pooled), "rankme": rankme(pooled)}
        if said:
            projection = said[0].projection
            values |= {"std": spread(projection), "projection_rankme": rankme(F.normalize(projection, dim=-1))}
        if hasattr(method.spec, "prototypes"):
            slow = pooled if method.slow is None else method.slow(sample).pooled
            targets = method.space.targets(method.space.answer([slow], said), step)
            values["teacher_entropy"], values["mean_entropy"] = entropies(targets)
        return values


@torch.no_grad()
def diagnose(objective: Objective, views: Views, step: Step) -> dict[str, float]:
    """What method and auxiliaries measure on a batch, by their names, in evaluation mode; nothing moves."""
    with evaluating(objective):
        method = objective.method
        found = {method.name: method.diagnose(views, step)} if isinstance(method, Alone) else {}
        found |= {name: auxiliary.diagnose(objective.method, views, step) for name, auxiliary in objective.auxiliaries.items()}
    return {f"{name}_{key}": value for name, values in found.items() for key, value in values.items()}


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; then every part is back in its own."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
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
    "byol": "keep the predictor (method.predictor), and make the teacher slower (raise method.momentum)",
    "simsiam": "keep the stop-gradient (method.stop_gradient) and the predictor's constant rate, and lower optimiser.lr",
    "dino": "keep the centring (method.centring), lower method.teacher_temperature, lower optimiser.lr",
    "swav": "lower method.epsilon, leave out the queue (method.queue), lower optimiser.lr",
}
GENERAL_ADVICE = "lower optimiser.lr, lengthen optimiser.warm_up, check the views (`gnothi report` shows them)"
FLAT = 0.05
"""Below this spread all projections are one vector for practical purposes: their mean cosine is above 0.997."""
NARROW_SPREAD, NARROW_RANK, WIDENS = 0.6, 4.5, 1.25
"""Projections that spread less, over fewer directions, and no more than so many times what they did at first, have collapsed. Measured on photographs
after 300 to 800 steps: healthy runs of the eight methods spread 0.65 to 0.97 over 5.7 to 23 directions; BYOL without predictor 0.33 over 4.0,
SimSiam without stop-gradient 0.52 over 2.8."""
FEW_OUTPUTS, LITTLE_SAID = 0.25, 0.05
"""Parts of log K. An entropy of the mean assignment below the first: a few outputs take all. A difference between it and the mean entropy, which is
what an assignment says of its image, below the second: all are alike. Measured as above, entropy of the mean and difference: healthy DINO 0.88 and
0.40, healthy SwAV 0.99 and 0.26, DINO without centring 0.11 and 0.10, DINO collapsed to uniform 0.99 and at most 0.03."""


NOTHING = 1.3
"""What an auxiliary alone gets right, over chance, when it has learned something."""


def verdict(history: Sequence[dict[str, float]], method: str, steps: int) -> Verdict:
    """Judge a run by its last two measurements, which must agree, and its first.

    Args:
        history: what ``measure`` gave, oldest first.
        method: its name, for the advice.
        steps: steps done.
    """
    if len(history) < 3:
        found = f"too few health measurements, {len(history)}, after {steps} steps"
        return Verdict("undecided", None, found, "train longer, or set training.health_every lower")
    first, now = history[0], history[-1]
    advice = ADVICE.get(method, GENERAL_ADVICE)
    kind, why = _collapse(now, first)
    if kind is None and (unlearned := _at_chance(history)):
        return Verdict("undecided", None, unlearned, "train longer, raise optimiser.lr; images without an up teach rotation nothing")
    if kind is None:
        what, spread_now = _spread(now)
        found = f"{what} spread {spread_now:.2f} of 1, effective rank of features {now['rankme']:.0f} (at first {first['rankme']:.0f})"
        return Verdict("healthy", None, found, "")
    if _collapse(history[-2], first)[0] is None:
        return Verdict("undecided", kind, f"{why}, but only at the last measurement", advice)
    return Verdict("collapsed", kind, why, advice)


def _collapse(now: dict[str, float], first: dict[str, float]) -> tuple[str | None, str]:
    """Which collapse a measurement shows, or None, and why."""
    if "mean_entropy" in now:
        each, mean = now["teacher_entropy"], now["mean_entropy"]
        numbers = f"mean entropy {each:.3f}, entropy of the mean {mean:.3f} of log K"
        if mean < FEW_OUTPUTS:
            return "constant", f"the targets give nearly every image the same few outputs ({numbers})"
        if mean - each < LITTLE_SAID:
            return "uniform", f"the targets say nothing of the image: all are alike ({numbers})"
    what, spread_now = _spread(now)
    cosine = 1 - spread_now**2  # the mean over pairs of images
    if spread_now < FLAT:
        return "constant", f"{what} of different images are nearly one vector (mean cosine {cosine:.3f})"
    if "std" not in now:
        return None, ""
    rank, before, widens = now["projection_rankme"], first["projection_rankme"], now["std"] > WIDENS * first["std"]
    if "mean_entropy" not in now and now["std"] < NARROW_SPREAD and rank < NARROW_RANK and not widens:
        why = f"projections of different images draw together (mean cosine {cosine:.2f}, effective rank {rank:.1f}, at first {before:.1f})"
        return "dimensional", why
    return None, ""


def _spread(now: dict[str, float]) -> tuple[str, float]:
    """What is judged, and how much it spreads: projections, or features where no method makes projections."""
    return ("projections", now["std"]) if "std" in now else ("features", now["feature_std"])


def _at_chance(history: Sequence[dict[str, float]]) -> str:
    """In words, what auxiliaries without a method have learned, where it is nothing: over the last half of the measurements; else empty."""
    late = history[len(history) // 2 :]
    found = {k.removesuffix("_chance"): v for k, v in late[0].items() if k.endswith("_chance")}
    if "std" in late[0] or not found:
        return ""
    shares = {name: sum(h[f"{name}_accuracy"] for h in late) / len(late) for name in found}
    if any(shares[name] > NOTHING * chance for name, chance in found.items()):
        return ""
    return "nothing was learned: " + ", ".join(f"{name} is right {shares[name]:.3f} of the time, chance {found[name]:.3f}" for name in found)
