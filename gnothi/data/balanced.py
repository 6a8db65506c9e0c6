"""The order of rows in which every class comes equally often."""

from __future__ import annotations

import torch
from torch import Tensor

from gnothi.data.order import Order


class Balanced(Order):
    """Every class gives the same number of rows an epoch: those of small classes come again and again, those of large ones in turns.

    An epoch has n rows. Each class that has any gives n / classes of them, rounded up: a random choice, with repetition where the class is smaller;
    they are mixed and cut to n.

    Args:
        labels: [N] int64; rows below 0 belong to no class and are not met.
        batch: rows of a step, over all processes and micro-batches.
        seed: of the run.
    """

    def __init__(self, labels: Tensor, batch: int, seed: int) -> None:
        super().__init__(len(labels), batch, seed)
        self.members = [(labels == c).nonzero()[:, 0] for c in labels[labels >= 0].unique().tolist()]

    def permutation(self, random: torch.Generator) -> Tensor:
        """[n] rows of an epoch."""
        each = -(-self.n // len(self.members))
        rows = torch.cat([self._some(own, each, random) for own in self.members])
        return rows[torch.randperm(len(rows), generator=random)[: self.n]]

    @staticmethod
    def _some(own: Tensor, each: int, random: torch.Generator) -> Tensor:
        if len(own) >= each:
            return own[torch.randperm(len(own), generator=random)[:each]]
        return own[torch.randint(len(own), (each,), generator=random)]
