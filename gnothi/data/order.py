"""The order in which training meets the rows: a function of the seed, the same for any number of processes."""

from __future__ import annotations

import torch
from torch import Tensor

from gnothi.contracts import SettingError
from gnothi.randomness import generator


class Order:
    """A permutation of the rows an epoch, cut into batches; what is left over at an epoch's end is left out.

    Args:
        n: number of rows.
        batch: rows of a step, over all processes and micro-batches.
        seed: of the run.
    """

    def __init__(self, n: int, batch: int, seed: int) -> None:
        if not 0 < batch <= n:
            raise SettingError(f"training.batch must lie between 1 and the number of images, {n}, got {batch}")
        self.n, self.batch, self.seed = n, batch, seed
        self.steps_per_epoch = n // batch
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.int64)

    def rows(self, step: int) -> Tensor:
        """[batch] row numbers of the joint batch of a step."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, self.permutation(generator(self.seed, "order", epoch))
        return self._permutation[within * self.batch : (within + 1) * self.batch]

    def permutation(self, random: torch.Generator) -> Tensor:
        """[n] rows of an epoch."""
        return torch.randperm(self.n, generator=random)


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
