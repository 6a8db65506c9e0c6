"""The loop of a fit that descends: it visits the training rows shard by shard, and goes on where it was cut off."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gnothi.ensemble.bank import Bank
from gnothi.ensemble.decoders import by_member, dropped
from gnothi.ensemble.descent import Descent
from gnothi.ensemble.members import BLOCK, Features, blocks, rows_of
from gnothi.ensemble.rows import OPTIMISERS, Rows
from gnothi.randomness import generator
from gnothi.schedules import cosine
from gnothi.training import checkpoint

log = logging.getLogger(__name__)
CHECKS = 5
"""How often the held-out rows are looked at during a fit."""
EVERY = 20.0
"""Seconds after which a fit of a single shard writes its state; of several, it does after each."""
Hears = Callable[[int, int, float], None]
"""Told the steps done, all steps, and the mean loss of the last one."""


@dataclass
class State:
    """Where a fit stands, but for its tensors."""

    visits: int = 0
    """Shards visited, over all epochs."""
    steps: int = 0
    total: float = 0.0
    """Losses of this epoch, added up."""
    history: list[dict[str, float]] = field(default_factory=list)
    least: float = float("inf")
    """Of the held-out rows."""
    waited: int = 0
    """Looks since."""


class Fit:
    """Moves networks and, where codes are free, codes.

    The order of the rows is drawn by shard: what comes out does not depend on where the shards lie.

    Args:
        model: whose networks learn.
        features: [N, D_j] a member.
        kept: [n] row numbers that are fitted.
        seed: of order and dropping.
        folder: where the state is written and looked for; None keeps everything in memory.
        hears: told of every step.
    """

    def __init__(self, model: Descent, features: Features, kept: Tensor, seed: int, folder: Path | None = None, hears: Hears | None = None) -> None:
        self.model, self.spec, self.features, self.kept, self.seed = model, model.spec, features, kept, seed
        self.folder, self.hears, self.written = folder, hears, time.monotonic()
        self.parts = kept.split(self.spec.shard)
        self.bank = Bank(self.parts, self._begin, self._load, folder) if model.free else None
        self.learners = model.learners()
        self.networks = list(self.learners.requires_grad_().parameters())
        optimisers: dict[str, Any] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
        self.optimiser = optimisers[self.spec.optimiser](self.networks, lr=self.spec.lr_networks)
        self.state, self.best = State(), dict[str, Tensor]()
        self.steps = self.spec.epochs * sum(-(-len(part) // self.spec.batch) for part in self.parts)

    def run(self, held: Tensor) -> list[dict[str, float]]:
        """Fit; the networks end as they were best on the held-out rows, where there are any.

        Returns:
            An entry a look: the epoch, its mean loss, and that of the held-out rows.
        """
        self._resume()
        at, shards = self.state, len(self.parts)
        while at.visits < self.spec.epochs * shards and at.waited < self.spec.patience:
            epoch, position = divmod(at.visits, shards)
            number = self._order(epoch)[position]
            self.visit(epoch, number)
            at.visits += 1
            if position == shards - 1:
                self._look(epoch + 1, held)
            if self.folder is not None and (shards > 1 or time.monotonic() - self.written > EVERY):
                self._save(number, epoch + 1)
        self.learners.load_state_dict(self.best)
        self.learners.requires_grad_(False)
        return at.history

    def codes(self, most: int) -> Tensor:
        """[n, r] as the fit left them, of the rows that were fitted: of the first so many where they lie in a folder."""
        assert self.bank is not None
        return self.bank.codes(self.state.visits // len(self.parts), most)

    def visit(self, epoch: int, number: int) -> None:
        """Every row of a shard once."""
        part, rows = self.parts[number], None if self.bank is None else self.bank.shard(number, epoch)
        for some in torch.randperm(len(part), generator=generator(self.seed, "ensemble order", epoch, number)).split(self.spec.batch):
            rate = 1.0 if self.spec.optimiser == "sgd" else cosine(self.state.steps / self.steps, 1.0, 0.0)
            loss = self.step([rows_of(x, part[some]) for x in self.features], some, rows, rate)
            self.state.total += loss
            self.state.steps += 1
            if self.hears is not None:
                self.hears(self.state.steps, self.steps, loss / len(some))

    def step(self, features: list[Tensor], some: Tensor, rows: Rows | None, rate: float) -> float:
        """One batch; returns the sum of its losses.

        Args:
            features: [B, D_j] a member.
            some: [B] places of its codes among ``rows``.
            rows: the codes, where they are free.
            rate: factor of the rates.
        """
        codes = self.model.start(features) if rows is None else rows.rows[some].requires_grad_()
        losses = by_member(self.spec.loss, self.model.decoders(codes), [s(x) for x, s in zip(features, self.model.targets, strict=True)])  # [B, m]
        random = generator(self.seed, "ensemble drop", self.state.steps)
        self.optimiser.zero_grad()
        ((dropped(losses, self.spec.drop, random) * losses).sum() + self.spec.l2 / 2 * codes.square().sum()).backward()
        for p in self.networks:  # they have the mean over rows; a code has the sum of its own row
            assert p.grad is not None
            p.grad.div_(len(some)).add_(p.detach(), alpha=self.spec.l2 / len(self.kept))
        self.optimiser.param_groups[0]["lr"] = rate * self.spec.lr_networks
        self.optimiser.step()
        if rows is not None:
            assert codes.grad is not None
            rows.step(some, codes.grad, rate)
            self.model.bounded(rows.rows, some)
        return float(losses.detach().sum())

    def loss(self, held: Tensor) -> float:
        """Of rows that are not fitted: mean over rows of the sum over members, after the descent."""
        self.model.decoders.requires_grad_(False)
        total = 0.0
        for part in held.split(BLOCK):
            some = [rows_of(x, part) for x in self.features]
            total += float(self.model.losses(some, self.model.codes(some)).sum())
        self.model.decoders.requires_grad_(True)
        return total / len(held)

    def _order(self, epoch: int) -> list[int]:
        return torch.randperm(len(self.parts), generator=generator(self.seed, "ensemble shards", epoch)).tolist()

    def _look(self, epoch: int, held: Tensor) -> None:
        """At the held-out rows, now and then; the networks are remembered where they are the best so far."""
        at, every = self.state, max(1, self.spec.epochs // CHECKS)
        seen, at.total = at.total / len(self.kept), 0.0
        if epoch % every and epoch < self.spec.epochs:
            return
        at.history.append({"epoch": epoch, "loss": seen} | ({"held_out": self.loss(held)} if len(held) else {}))
        loss = at.history[-1].get("held_out", -float("inf"))
        at.waited = 0 if loss < at.least or not len(held) else at.waited + 1
        if at.waited == 0:
            self.best, at.least = {k: v.detach().clone() for k, v in self.learners.state_dict().items()}, loss

    # ---- going on -------------------------------------------------------------------------------
    def _begin(self, rows: Tensor) -> Rows:
        parts = [self.model.start.transform([rows_of(x, rows[part]) for x in self.features]) for part in blocks(len(rows))]
        return self._load({"rows": torch.cat(parts)}, whole=False)

    def _load(self, tensors: dict[str, Tensor], whole: bool = True) -> Rows:
        rows = OPTIMISERS[self.spec.optimiser](tensors["rows"], self.model.rate, self.spec.eps)
        if whole:
            rows.restore(tensors)
        return rows

    def _save(self, number: int, version: int) -> None:
        """The shard that was visited, then all else: cut off between the two, the visit is made again from the shard's earlier version."""
        assert self.folder is not None
        if self.bank is not None:
            self.bank.save(number, version)
        moved = {f"optimiser.{i}.{k}": v for i, s in self.optimiser.state_dict()["state"].items() for k, v in s.items() if isinstance(v, Tensor)}
        now = {f"now.{k}": v for k, v in self.learners.state_dict().items()}
        checkpoint.write(
            self.folder, self.state.visits, {**moved, **now, **{f"best.{k}": v for k, v in self.best.items()}}, asdict(self.state), keep=1
        )
        if self.bank is not None:
            self.bank.forget(number)
        self.written = time.monotonic()

    def _resume(self) -> None:
        if self.folder is None:
            return
        newest = checkpoint.newest(self.folder, log.warning)
        if newest is None:  # shards without the rest are of no use
            for left in self.folder.glob("shard-*"):
                shutil.rmtree(left)
            return
        tensors, about = checkpoint.read(newest)
        self.state = State(**{k: about[k] for k in asdict(self.state)})
        parts: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}, "optimiser": {}}
        for key, value in tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = value
        self.learners.load_state_dict(parts["now"])
        self.best = parts["best"]
        moved: dict[int, dict[str, Tensor]] = {}
        for key, value in parts["optimiser"].items():
            number, _, name = key.partition(".")
            moved.setdefault(int(number), {})[name] = value
        self.optimiser.load_state_dict({"state": moved, "param_groups": self.optimiser.state_dict()["param_groups"]})
