"""Fitting a descent: codes of the training images and the networks that read them, both by gradient descent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gnothi.contracts import SettingError
from gnothi.ensemble import closed
from gnothi.ensemble.best import Known
from gnothi.ensemble.closed import Linear
from gnothi.ensemble.decoders import Decoders, by_member, dropped
from gnothi.ensemble.descent import Descent, DescentSpec
from gnothi.ensemble.members import Features, blocks, exponent, moments, rows_of, spectrum
from gnothi.ensemble.rows import OPTIMISERS
from gnothi.ensemble.scaling import scaling
from gnothi.randomness import generator, seeded
from gnothi.schedules import cosine

SAMPLE = 2000
"""Training rows whose codes are inferred again after the fit, for what is logged of them."""
FINISHED = 5000
"""Training rows to whose codes ``power`` is fitted."""
CHECKS = 5
"""How often the held-out rows are looked at during a fit."""


def descent(features: Features, spec: DescentSpec, known: Known) -> Descent:
    """Fit codes and networks together; the networks are what is kept.

    Args:
        features: [N, D_j] a member.
        spec: the settings.
        known: the seed.
    """
    kept, held = divided(len(features[0]), spec, known.seed)
    model = begun(features, spec, known.seed)
    codes = torch.cat([model.start.transform([rows_of(x, kept[part]) for x in features]) for part in blocks(len(kept))])
    history = Fit(model, features, kept, codes, known.seed).run(held)
    model.trained = kept, codes
    finish(model, features, history)
    return model


def finish(model: Descent, features: Features, history: list[dict[str, float]]) -> None:
    """Infer codes of training rows again with frozen networks, fit ``power`` to them, and log what they are beside those of the fit."""
    assert model.trained is not None
    rows, trained = (x[:SAMPLE] for x in model.trained)
    if model.spec.power is not None:
        more = model.codes([rows_of(x, model.trained[0][:FINISHED]) for x in features])
        model.finish = closed.pca([more], closed.PCASpec(power=model.spec.power))
    some = [rows_of(x, rows) for x in features]
    codes = model.codes(some)
    eigenvalues = spectrum(some)
    model.log = {
        "history": history,
        "codes_exponent": exponent(codes, eigenvalues),
        "trained_exponent": exponent(trained, eigenvalues),
        "loss_by_member": model.losses(some, codes).mean(0).tolist(),
        "trained_loss_by_member": model.losses(some, trained).mean(0).tolist(),
        "cosine_to_trained": float(torch.cosine_similarity(codes, trained, dim=1).mean()),
        "cosine_to_start": float(torch.cosine_similarity(codes, model.codes(some, steps=0), dim=1).mean()),
        "length": float(codes.norm(dim=1).mean()),
    }


def divided(n: int, spec: DescentSpec, seed: int) -> tuple[Tensor, Tensor]:
    """Row numbers that are fitted and that are held out, drawn by the seed."""
    order = torch.randperm(n, generator=generator(seed, "ensemble rows"))[: spec.most]
    out = round(spec.holdout * len(order))
    return order[out:], order[:out].sort().values


def begun(features: Features, spec: DescentSpec, seed: int) -> Descent:
    """Before the first step."""
    kind, sizes, (mean, covariance) = rows_of(features[0], slice(0, 1)).dtype, closed.widths(features), moments(features)
    parts = [slice(a, a + d) for a, d in zip(closed.offsets(sizes), sizes, strict=True)]
    targets = [scaling(spec.standardise, mean[p].to(kind), covariance[p, p].to(kind)) for p in parts]
    start = first_codes(features, spec, mean, covariance, seed)
    with seeded(seed, "ensemble networks"):
        decoders = Decoders(start.width, sizes, spec.hidden or start.width, spec.layers, spec.bias).to(kind)
    first = start.transform([rows_of(x, slice(0, SAMPLE)) for x in features])
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
        matrix = closed.spectral(covariance, width, spec.start_power, 1e-4)
    else:
        matrix = torch.randn(len(mean), width, generator=generator(seed, "ensemble start"), dtype=torch.float64)
    matrix = matrix / torch.trace(matrix.T @ covariance @ matrix).sqrt()
    return closed.split(features, mean, matrix, [0] * len(features), width)


# ---- the fit ------------------------------------------------------------------------------------
class Fit:
    """Moves codes and networks, both in place.

    Args:
        model: whose networks learn.
        features: [N, D_j] a member.
        kept: [n] row numbers that are fitted.
        codes: [n, r] of these.
        seed: of order and dropping.
        learners: the networks; those of the model by default.
    """

    def __init__(self, model: Descent, features: Features, kept: Tensor, codes: Tensor, seed: int, learners: nn.Module | None = None) -> None:
        self.model, self.spec, self.features, self.kept, self.codes, self.seed = model, model.spec, features, kept, codes, seed
        self.learners = learners or model.decoders
        self.networks = list(self.learners.requires_grad_().parameters())
        self.bank = OPTIMISERS[self.spec.optimiser](codes, model.rate, self.spec.eps)
        optimisers: dict[str, Any] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
        self.optimiser = optimisers[self.spec.optimiser](self.networks, lr=self.spec.lr_networks)

    def run(self, held: Tensor) -> list[dict[str, float]]:
        """Fit; the networks end as they were best on the held-out rows, where there are any.

        Returns:
            An entry a look: the epoch, its mean loss, and that of the held-out rows.
        """
        every = max(1, self.spec.epochs // CHECKS)
        history: list[dict[str, float]] = []
        best, least, waited = self.learners.state_dict(), float("inf"), 0
        for epoch in range(1, self.spec.epochs + 1):
            seen = self.epoch(epoch - 1)
            if epoch % every and epoch < self.spec.epochs:
                continue
            history.append({"epoch": epoch, "loss": seen} | ({"held_out": self.loss(held)} if len(held) else {}))
            loss = history[-1].get("held_out", -float("inf"))
            waited = 0 if loss < least or not len(held) else waited + 1
            if waited == 0:
                best, least = {k: v.detach().clone() for k, v in self.learners.state_dict().items()}, loss
            if waited >= self.spec.patience:
                break
        self.learners.load_state_dict(best)
        self.learners.requires_grad_(False)
        return history

    def epoch(self, epoch: int) -> float:
        """Every kept row once.

        Returns:
            The mean over rows of the sum over members.
        """
        n, total = len(self.kept), 0.0
        parts = torch.randperm(n, generator=generator(self.seed, "ensemble order", epoch)).split(self.spec.batch)
        for number, rows in enumerate(parts):
            progress = (epoch * len(parts) + number) / (self.spec.epochs * len(parts))
            rate = 1.0 if self.spec.optimiser == "sgd" else cosine(progress, 1.0, 0.0)
            total += self.step(rows, rate, generator(self.seed, "ensemble drop", epoch, number))
        return total / n

    def step(self, rows: Tensor, rate: float, random: torch.Generator) -> float:
        """One batch; returns the sum of its losses."""
        targets = [s(rows_of(x, self.kept[rows])) for x, s in zip(self.features, self.model.targets, strict=True)]
        free = self.codes[rows].requires_grad_()
        losses = by_member(self.spec.loss, self.model.decoders(free), targets)  # [B, m]
        self.optimiser.zero_grad()
        (dropped(losses, self.spec.drop, random) * losses).sum().backward()
        assert free.grad is not None
        for p in self.networks:  # they have the mean over rows; a code has the sum of its own row
            assert p.grad is not None
            p.grad.div_(len(rows)).add_(p.detach(), alpha=self.spec.l2 / len(self.kept))
        self.optimiser.param_groups[0]["lr"] = rate * self.spec.lr_networks
        self.optimiser.step()
        self.bank.step(rows, free.grad + self.spec.l2 * free.detach(), rate)
        self.model.bounded(self.codes, rows)
        return float(losses.detach().sum())

    def loss(self, held: Tensor) -> float:
        """Of rows that are not fitted: mean over rows of the sum over members, after the descent."""
        some = [rows_of(x, held) for x in self.features]
        self.model.decoders.requires_grad_(False)
        found = float(self.model.losses(some, self.model.codes(some)).sum(1).mean())
        self.model.decoders.requires_grad_(True)
        return found
