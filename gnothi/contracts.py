"""The types that the parts of gnothi hand to each other, and the errors a person sees."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from gnothi.randomness import generator


# ---- errors -------------------------------------------------------------------------------------
class GnothiError(Exception):
    """A mistake in one line: what, the rule, what was found, the nearest right thing."""

    exit_code = 2


class SettingError(GnothiError):
    """A setting, name or option that cannot be."""


class DataError(GnothiError):
    """Images, labels or a path that cannot be used."""


class EncoderError(GnothiError):
    """An encoder name, run folder or feature file that cannot be used."""


class RunError(GnothiError):
    """A run that had to stop: a term that is not finite, too many broken images."""

    exit_code = 1


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Say the nearest of the known words, or all of them where none is near."""
    known = list(known)
    if not known:
        return "there is none yet"
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]}?"
    return f"known: {', '.join(known)}" if len(known) <= 20 else f"known are {len(known)}, such as {', '.join(known[:8])}"


# ---- settings -----------------------------------------------------------------------------------
class Spec(BaseModel):
    """Base of every group of settings: frozen, unknown keys and numbers that are not finite refused, described field by field."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=())


# ---- time and randomness ------------------------------------------------------------------------
@dataclass(frozen=True)
class Step:
    """Where training is. All that is random or scheduled hangs on it."""

    seed: int
    number: int
    total: int

    @property
    def progress(self) -> float:
        """The part of training that lies behind, in [0, 1)."""
        return self.number / self.total

    def generator(self, purpose: str, *numbers: int) -> torch.Generator:
        """The random numbers of this step for one purpose."""
        return generator(self.seed, purpose, self.number, *numbers)


# ---- images -------------------------------------------------------------------------------------
class Source:
    """Images by row number, with labels, groups and names where there are any.

    A subclass gives ``__len__``, ``image`` and ``fingerprint``, and sets ``channels`` and ``dtype``. Labels are never needed for training.
    """

    channels: int
    dtype: torch.dtype
    """uint8, uint16 or float32."""
    classes: tuple[str, ...] | None = None
    """Names of the classes; ``labels`` index them."""
    labels: np.ndarray | None = None
    """[N] int64, -1 where a row has none; None where no row has one."""
    groups: np.ndarray | None = None
    """[N] of str (patient, slide, site): rows of one group are never split; None where there are none."""
    array: Tensor | None = None
    """[N, C, H, W], where all images are in memory and of one size."""
    notes: tuple[str, ...] = ()
    """What a person should know of how it was opened, a line each: images without a row in the CSV, and the like."""

    def __len__(self) -> int:
        raise NotImplementedError

    def image(self, row: int, shrink: int = 1) -> Tensor:
        """Read one image.

        Args:
            row: row number.
            shrink: 1, 2, 4 or 8: the caller needs only a ``shrink``-th of the resolution. A source may use it to decode faster (JPEG) or ignore it.

        Returns:
            [C, H, W] of ``dtype``; EXIF orientation applied.

        Raises:
            DataError: the image cannot be read; the message starts with ``name(row)``.
        """
        raise NotImplementedError

    def shape(self, row: int) -> tuple[int, int]:
        """Height and width of an image at full resolution, from its header where it has one."""
        image = self.image(row)
        return image.shape[-2], image.shape[-1]

    def name(self, row: int) -> str:
        """What a person calls this image: a path relative to the folder, or ``row 17``."""
        return f"row {row}"

    def label(self, row: int) -> int | None:
        """Class number of a row, None where it has none."""
        return None if self.labels is None or self.labels[row] < 0 else int(self.labels[row])

    def group(self, row: int) -> str | None:
        """Group of a row, None where there are none."""
        return None if self.groups is None else str(self.groups[row])

    def fingerprint(self) -> str:
        """Short hexadecimal digest that changes when the images, their order or the labels change."""
        raise NotImplementedError


@dataclass(frozen=True)
class Pixels:
    """How the numbers of an image become a network's input: to [0, 1] by range, then to mean 0 and deviation 1 by channel."""

    low: float
    high: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def unit(self, images: Tensor) -> Tensor:
        """Map [..., C, H, W] of any type to floats, ``low`` to 0 and ``high`` to 1."""
        return (images.float() - self.low) / (self.high - self.low)

    def normalise(self, images: Tensor) -> Tensor:
        """Standardise [..., C, H, W] floats that ``unit`` made."""
        mean = torch.tensor(self.mean, dtype=images.dtype, device=images.device)[:, None, None]
        std = torch.tensor(self.std, dtype=images.dtype, device=images.device)[:, None, None]
        return (images - mean) / std


# ---- views --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Views:
    """The crops of one batch of B images, V to an image, global ones first."""

    images: tuple[Tensor, ...]
    """A crop each: [B, C, H, W] normalised floats."""
    boxes: Tensor
    """[V, B, 4] left, top, width, height in source pixels (edge coordinates)."""
    flips: Tensor
    """[V, B] bool: mirrored left-right after the cut."""
    turns: Tensor
    """[V, B] quarter turns anticlockwise, after the flip."""
    n_global: int
    index: Tensor
    """[B] row numbers in the source."""
    masks: Tensor | None = None
    """[n_global, B, N] bool: patches hidden from the student."""
    extra: dict[str, Views] = field(default_factory=dict)
    """Crops an auxiliary asked for; the method never sees them."""
    drawn: dict[str, Tensor] = field(default_factory=dict)
    """Random numbers an auxiliary asked for, [B, ...] by name."""

    def rows(self, part: slice) -> Views:
        """The views of some of the images: a micro-batch."""
        return replace(
            self,
            images=tuple(i[part] for i in self.images),
            boxes=self.boxes[:, part],
            flips=self.flips[:, part],
            turns=self.turns[:, part],
            index=self.index[part],
            masks=None if self.masks is None else self.masks[:, part],
            extra={k: v.rows(part) for k, v in self.extra.items()},
            drawn={k: v[part] for k, v in self.drawn.items()},
        )


# ---- what a network says ------------------------------------------------------------------------
@dataclass(frozen=True)
class Want:
    """What an encoding must hold besides the pooled vector; wants merge with ``|``."""

    patches: bool = False
    blocks: tuple[int, ...] = ()
    """Counted from 0, sorted."""

    def __or__(self, other: Want) -> Want:
        return Want(self.patches or other.patches, tuple(sorted({*self.blocks, *other.blocks})))


@dataclass(frozen=True)
class Block:
    """What a backbone says after one block or stage."""

    pooled: Tensor
    """[B, D_l], before the final norm."""
    final: Tensor
    """[B, D_l], through the backbone's final norm where it has one of this width."""
    patches: Tensor | None
    """[B, N_l, D_l], row-major."""
    grid: tuple[int, int]
    """Rows, columns."""


@dataclass(frozen=True)
class Encoding:
    """What a backbone says of a batch of crops."""

    pooled: Tensor
    """[B, D]."""
    patches: Tensor | None
    """[B, N, D], row-major."""
    grid: tuple[int, int]
    """Rows, columns."""
    blocks: dict[int, Block] = field(default_factory=dict)

    def map(self, change: Callable[[Tensor], Tensor]) -> Encoding:
        """Apply ``change`` to every tensor."""

        def maybe(x: Tensor | None) -> Tensor | None:
            return None if x is None else change(x)

        blocks = {k: Block(change(b.pooled), change(b.final), maybe(b.patches), b.grid) for k, b in self.blocks.items()}
        return Encoding(change(self.pooled), maybe(self.patches), self.grid, blocks)


class Said(NamedTuple):
    """What a head says of features."""

    projection: Tensor
    """[B, P]."""
    prediction: Tensor
    """[B, Q]: the predictor's output, prototype scores or logits; the projection itself where there is neither."""

    def detach(self) -> Said:
        """The same without gradient."""
        return Said(self.projection.detach(), self.prediction.detach())


@dataclass(frozen=True)
class Branch:
    """One crop through backbone and head."""

    encoding: Encoding
    said: Said


@dataclass(frozen=True)
class Outputs:
    """Every crop through the network, and the global ones through the target."""

    online: tuple[Branch, ...]
    target: tuple[Branch, ...]
    """``target[i]`` is crop i, i < n_global, without gradient: the teacher's, or the online one detached where there is no teacher."""


@dataclass
class Carry:
    """What ``after_step`` needs. The rule of merging (micro-batches, then processes) is in the type."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    """Added."""
    rows: dict[str, Tensor] = field(default_factory=dict)
    """Concatenated on the first axis, the batch."""

    def __add__(self, other: Carry) -> Carry:
        return Carry(
            {k: v + other.sums[k] for k, v in self.sums.items()},
            {k: torch.cat([v, other.rows[k]]) for k, v in self.rows.items()},
        )
