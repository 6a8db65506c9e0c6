"""Fitting a descent: what it begins with, the loop, and what is made and logged of its end."""

from __future__ import annotations

import contextlib
import math
from typing import TypeVar

import torch
from torch import Tensor

from gnothi.contracts import SettingError
from gnothi.ensemble import closed
from gnothi.ensemble.best import Known
from gnothi.ensemble.closed import Linear
from gnothi.ensemble.decoders import Decoders
from gnothi.ensemble.descent import Descent, DescentSpec
from gnothi.ensemble.fitting import Fit
from gnothi.ensemble.members import Features, exponent, moments, rows_of, some_rows, spectrum
from gnothi.ensemble.scaling import scaling
from gnothi.randomness import generator, seeded
from gnothi.training.lock import owned

D = TypeVar("D", bound=Descent)
SAMPLE = 2000
"""Training rows whose codes are inferred again after the fit, for what is logged of them."""
FINISHED = 5000
"""Training rows to whose codes ``power`` is fitted."""
FLOOR = 1e-4
"""Of the PCA with which codes begin and end: what networks make of codes is steep, and weak directions of it are not noise."""
HELD = 10_000
"""Rows that are held out, at most."""


def descent(features: Features, spec: DescentSpec, known: Known) -> Descent:
    """Fit codes and networks together; the networks are what is kept.

    Args:
        features: [N, D_j] a member.
        spec: the settings.
        known: the seed, and where the state of the fit is kept.
    """
    return descended(begun(features, spec, known.seed), features, known)


def descended(model: D, features: Features, known: Known) -> D:
    """Fit a model that has begun."""
    kept, held = divided(len(features[0]), model.spec, known.seed)
    with contextlib.nullcontext() if known.folder is None else owned(known.folder):
        loop = Fit(model, features, kept, known.seed, known.folder, known.hears)
        history = loop.run(held)
        few = kept[:FINISHED]
        codes = loop.codes(FINISHED) if model.free else model.start.transform([rows_of(x, few) for x in features])
    model.trained = kept[: len(codes)], codes
    finish(model, features, history)
    return model


def finish(model: Descent, features: Features, history: list[dict[str, float]]) -> None:
    """Infer codes of training rows again with frozen networks, fit ``power`` to them, and log what they are beside those of the fit."""
    assert model.trained is not None
    rows, trained = (x[:SAMPLE] for x in model.trained)
    if model.spec.power is not None:
        more = model.codes([rows_of(x, model.trained[0][:FINISHED]) for x in features])
        model.finish = closed.pca([more], closed.PCASpec(power=model.spec.power, floor=FLOOR))
    some = [rows_of(x, rows) for x in features]
    codes = model.codes(some)
    eigenvalues = spectrum(some)
    model.log = {
        "history": history,
        "codes_exponent": _finite(exponent(codes, eigenvalues)),
        "trained_exponent": _finite(exponent(trained, eigenvalues)),
        "loss_by_member": model.losses(some, codes).mean(0).tolist(),
        "trained_loss_by_member": model.losses(some, trained).mean(0).tolist(),
        "cosine_to_trained": float(torch.cosine_similarity(codes, trained, dim=1).mean()),
        "cosine_to_start": float(torch.cosine_similarity(codes, model.codes(some, steps=0), dim=1).mean()),
        "length": float(codes.norm(dim=1).mean()),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def divided(n: int, spec: DescentSpec, seed: int) -> tuple[Tensor, Tensor]:
    """Row numbers that are fitted and that are held out, drawn by the seed."""
    order = torch.randperm(n, generator=generator(seed, "ensemble rows"))[: spec.most]
    out = min(round(spec.holdout * len(order)), HELD)
    return order[out:], order[:out].sort().values


def begun(features: Features, spec: DescentSpec, seed: int) -> Descent:
    """Before the first step."""
    kind, sizes, (mean, covariance) = rows_of(features[0], slice(0, 1)).dtype, closed.widths(features), moments(features)
    parts = [slice(a, a + d) for a, d in zip(closed.offsets(sizes), sizes, strict=True)]
    targets = [scaling(spec.standardise, mean[p].to(kind), covariance[p, p].to(kind)) for p in parts]
    start = first_codes(features, spec, mean, covariance, seed)
    with seeded(seed, "ensemble networks"):
        decoders = Decoders(start.width, sizes, spec.hidden or start.width, spec.layers, spec.bias).to(kind)
    drawn = some_rows(len(features[0]), SAMPLE, seed, "ensemble scale")
    first = start.transform([rows_of(x, drawn) for x in features])
    return Descent(spec, start, targets, decoders, float(first.square().mean().sqrt()))


def first_codes(features: Features, spec: DescentSpec, mean: Tensor, covariance: Tensor, seed: int) -> Linear:
    """Features to first codes, whose mean squared length is 1."""
    if spec.start in ("average", "member"):
        number = closed.MemberSpec(number=spec.start_member)
        made = closed.average(features, closed.AverageSpec()) if spec.start == "average" else closed.member(features, number)
        if spec.width not in (None, made.width):
            raise SettingError(f"width must be {made.width} where start is {spec.start}, got {spec.width}; start=pca takes any width")
        return made
    width = closed.chosen_width(spec.width, features)
    if spec.start == "pca":
        matrix = closed.spectral(covariance, width, spec.start_power, FLOOR)
    else:
        matrix = torch.randn(len(mean), width, generator=generator(seed, "ensemble start"), dtype=torch.float64)
    matrix = matrix / torch.trace(matrix.T @ covariance @ matrix).sqrt()
    return closed.split(features, mean, matrix, [0] * len(features), width)
