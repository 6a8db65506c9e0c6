"""Optimisers of a table of rows: a step moves the rows that it names and no other, and every row counts its own steps."""

from __future__ import annotations

import torch
from torch import Tensor

Index = slice | Tensor
BETAS = (0.9, 0.999)


class RowAdam:
    """Adam (Kingma and Ba 2015) with state and step number by row.

    torch's Adam moves rows whose gradient is zero by their momentum; its SparseAdam counts steps for all rows together, and the first step of a
    row that comes late is three times too long.

    Args:
        rows: [N, D], changed in place.
        lr: the step of a coordinate is at most about this.
        eps: added to the root of the second moment. Not tiny: a gradient that is zero but for rounding then moves nothing.
    """

    def __init__(self, rows: Tensor, lr: float, eps: float) -> None:
        self.rows, self.lr, self.eps = rows, lr, eps
        self.first, self.second = torch.zeros_like(rows), torch.zeros_like(rows)
        self.count = torch.zeros(len(rows), dtype=torch.int64)

    def tensors(self) -> dict[str, Tensor]:
        """Rows and state, by name."""
        return {"rows": self.rows, "first": self.first, "second": self.second, "count": self.count}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take what ``tensors`` gave."""
        self.rows, self.first, self.second, self.count = (tensors[name] for name in ("rows", "first", "second", "count"))

    def step(self, which: Index, gradient: Tensor, rate: float = 1.0) -> None:
        """Move some rows, none of them named twice.

        Args:
            which: B row numbers, or a slice.
            gradient: [B, D].
            rate: factor of ``lr``.
        """
        first = self.first[which].lerp(gradient, 1 - BETAS[0])
        second = self.second[which].mul(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        count = self.count[which] + 1
        self.first[which], self.second[which], self.count[which] = first, second, count
        t = count.to(gradient.dtype)[:, None]
        self.rows[which] -= (rate * self.lr) * (first / (1 - BETAS[0] ** t)) / ((second / (1 - BETAS[1] ** t)).sqrt() + self.eps)


class RowSGD:
    """Plain gradient descent: [N, D] rows, changed in place."""

    def __init__(self, rows: Tensor, lr: float, eps: float) -> None:
        self.rows, self.lr = rows, lr

    def tensors(self) -> dict[str, Tensor]:
        """As ``RowAdam.tensors``."""
        return {"rows": self.rows}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """As ``RowAdam.restore``."""
        self.rows = tensors["rows"]

    def step(self, which: Index, gradient: Tensor, rate: float = 1.0) -> None:
        """As ``RowAdam.step``."""
        self.rows[which] -= rate * self.lr * gradient


Rows = RowAdam | RowSGD
OPTIMISERS: dict[str, type[RowAdam] | type[RowSGD]] = {"adam": RowAdam, "sgd": RowSGD}
