"""The codes of the training images in shards, each with the state of its optimiser: all in memory, or one there and the others in a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from gnothi.contracts import RunError
from gnothi.ensemble.rows import Rows
from gnothi.training import checkpoint


class Bank:
    """Codes by shard.

    Args:
        parts: the row numbers of each shard.
        begin: row numbers [n] to the rows before the first step.
        load: the same from what ``Rows.tensors`` gave.
        folder: where shards lie that are not being visited; None keeps all in memory.
    """

    def __init__(
        self, parts: tuple[Tensor, ...], begin: Callable[[Tensor], Rows], load: Callable[[dict[str, Tensor]], Rows], folder: Path | None
    ) -> None:
        self.parts, self.begin, self.load, self.folder = parts, begin, load, folder
        self.held: dict[int, Rows] = {}

    def shard(self, number: int, version: int) -> Rows:
        """One shard as it is after so many visits; another that lies in the folder is dropped from memory."""
        if number not in self.held:
            if self.folder is not None:
                self.held.clear()
            if version:
                self.held[number] = self.load(self._read(checkpoint.path_of(self._place(number), version)))
            else:
                self.held[number] = self.begin(self.parts[number])
        return self.held[number]

    def save(self, number: int, version: int) -> None:
        """Write a shard beside its earlier version, which stays until it is forgotten: a fit that is cut off between the two may still need it."""
        checkpoint.write(self._place(number), version, self.held[number].tensors(), {}, keep=2)

    def forget(self, number: int) -> None:
        """Drop all but the newest version of a shard."""
        for old in checkpoint.list_of(self._place(number))[:-1]:
            old.unlink()

    def codes(self, version: int, most: int) -> Tensor:
        """[n, r] of the first rows, in the order of the parts: all that are in memory, of those in a folder no more than asked."""
        found: list[Tensor] = []
        for number in range(len(self.parts)):
            found.append(self.shard(number, version).rows)
            if self.folder is not None and sum(map(len, found)) >= most:
                return torch.cat(found)[:most]
        return torch.cat(found)

    def _read(self, path: Path) -> dict[str, Tensor]:
        try:
            return checkpoint.read(path)[0]
        except RunError as error:
            raise RunError(f"{error}; remove {self.folder} to fit anew") from None

    def _place(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"shard-{number:05d}"
