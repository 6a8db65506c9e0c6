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
