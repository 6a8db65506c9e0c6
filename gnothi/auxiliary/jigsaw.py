"""Which permutation shuffled the tiles of an image (Jigsaw, arXiv 1603.09246), some of them from another one (Jigsaw++, arXiv 1805.00385).

A large crop is cut into cells, and from each cell a tile at a random place, its colour channels shifted against each other. All tiles go through the
network by themselves, in one batch; the head sees what the network says of each, in the order of the puzzle, and names the permutation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from gnothi.auxiliary.auxiliary import Auxiliary, AuxiliarySpec
from gnothi.auxiliary.permutations import Rule, permutations
from gnothi.contracts import Carry, Outputs, SettingError, Step, Views
from gnothi.distributed import gather, mean, rank, world
from gnothi.methods import Method
from gnothi.models.micro_vit import cells, patch_side
from gnothi.models.teacher import Statistics
from gnothi.randomness import expand
from gnothi.views.batches import ViewsSpec
from gnothi.views.crops import CropSpec
from gnothi.views.photometric import PhotometricSpec, grey

TileNorm = Literal["channel", "tile", "none"]
PAPER = 224
"""Beside views of so many pixels the puzzle has the paper's sizes: tiles of 64 in cells of 85 pixels."""
DRAWS, DRAWS_A_TILE = 5, 4
"""Random numbers of a puzzle (permutation, occluded tiles, their image, grey, grey of that image), and of each of its tiles (two for the jitter, two
for the order in which tiles are occluded and occlude); two more for each channel of a tile."""


class JigsawSpec(AuxiliarySpec):
    """Settings of jigsaw puzzles."""

    weight: float | None = Field(default=None, ge=0)  # type: ignore[assignment]  # settled to a number before a run is built
    """Weight of the cross-entropy. None: 0.1 beside a method (no source says one), 1 alone."""
    grid: Literal[2, 3] = 3
    """Tiles a side."""
    image: int | None = Field(default=None, gt=0)
    """Side of the puzzle in pixels, a multiple of the grid. None: the largest within the side of the method's views, 255 at most."""
    tile: int | None = Field(default=None, gt=0)
    """Side of a tile in pixels. None: about three quarters of a cell, a multiple of 8."""
    jitter: int | None = Field(default=None, ge=0)
    """A tile lies 0 to so many pixels from the top and left of its cell. None: as many as keep it, and its shifted channels, inside."""
    channel_shift: int = Field(default=2, ge=0)
    """Each colour channel of a tile is shifted by 0 to so many pixels both ways, lest fringes of the lens tell where it was."""
    area: tuple[float, float] = (0.5, 1.0)
    """Part of the image's area that the puzzle covers; it is square."""
    grey: float | None = Field(default=None, ge=0, le=1)
    """Probability that a puzzle loses its colour. None: 0.66, and 0.7 with occlusions."""
    tile_norm: TileNorm = "channel"
    """Each tile is brought to mean 0 and deviation 1, a channel at a time or all together, lest brightness tells what were neighbours."""
    permutations: int | None = Field(default=None, gt=1, le=100_000)
    """How many, the classes. None: 100, and 12 for four tiles."""
    rule: Rule = "max_min"
    """What the choice of permutations maximises: their least or their mean distance."""
    min_distance: int | None = Field(default=None, ge=1)
    """Places in which any two permutations differ at least, more than occlusions can hide. None: one more than these."""
    permutation_seed: int = Field(default=0, ge=0)
    """Of the choice of permutations."""
    identity: bool = False
    """The tiles in their own order may be one of the classes."""
    max_occlusions: int = Field(default=0, ge=0, le=64)
    """0 to so many tiles, equally often, come from another image of the batch, and from anywhere in it; 2 in Jigsaw++."""
    same_colour: bool = True
    """Tiles of the other image are grey where the puzzle is; otherwise by a chance of their own."""
    hidden: int = Field(default=256, gt=0)
    """Width of what the head keeps of each tile."""
    norm: Literal["batch", "layer"] = "batch"
    """Normalisation in the head."""
    statistics: Statistics | None = None
    """"keep" leaves BatchNorm's running statistics, which evaluation uses, to whole images; "update" lets tiles supply their share.
    None: "keep" beside a method, "update" alone."""
    joint: bool = True
    """Tiles go through the network as one batch; otherwise a batch for each place of the puzzle, with BatchNorm statistics of its own."""

    @field_validator("area")
    @classmethod
    def _area(cls, area: tuple[float, float]) -> tuple[float, float]:
        return CropSpec(area=area).area

    def settled(self, method: str, views: ViewsSpec | None = None) -> Self:
        """Sizes that fit the views, and what hangs on method and occlusions."""
        side = views.global_crops[0].size if views else PAPER
        image, tile, jitter = self._sizes(85 * self.grid if side >= PAPER else side // self.grid * self.grid)
        distance = self.max_occlusions + 1
        if self.min_distance is not None and self.min_distance < distance:
            raise SettingError(
                f"auxiliary.jigsaw.min_distance must be at least {distance}, one more than auxiliary.jigsaw.max_occlusions, or two permutations "
                f"may look alike; got {self.min_distance}"
            )
        rules: dict[str, Any] = {
            "weight": 1.0 if method == "none" else 0.1,
            "image": image,
            "tile": tile,
            "jitter": jitter,
            "grey": 0.7 if self.max_occlusions else 0.66,
            "permutations": 100 if self.grid == 3 else 12,
            "min_distance": distance,
            "statistics": "update" if method == "none" else "keep",
        }
        return self.model_copy(update={k: v for k, v in rules.items() if getattr(self, k) is None})

    def _sizes(self, largest: int) -> tuple[int, int, int]:
        """Sides of image and tile, and jitter; refused where a tile may leave its cell."""
        image, shift = self.image or largest, self.channel_shift
        cell = image // self.grid
        if image % self.grid or cell <= shift:
            low = max(cell, shift + 1) * self.grid
            raise SettingError(
                f"auxiliary.jigsaw.image must be a multiple of the grid {self.grid}, in cells larger than the channel shift {shift}, got {image}; "
                f"{low} and {low + self.grid} are nearest"
            )
        tile = self.tile or min(cell - shift, max(8, round(0.75 * cell / 8) * 8))
        jitter = cell - shift - tile if self.jitter is None else self.jitter
        if tile > cell - shift:
            raise SettingError(f"auxiliary.jigsaw.tile must be at most {cell - shift}, a cell of {cell} less the channel shift {shift}, got {tile}")
        if tile + jitter > cell - shift:
            most = cell - shift - tile
            raise SettingError(f"auxiliary.jigsaw.jitter must be at most {most}, or tiles of {tile} leave their cells of {cell}, got {jitter}")
        return image, tile, jitter


@dataclass(frozen=True)
class Puzzle:
    """Where each tile of a batch of puzzles comes from."""

    labels: Tensor
    """[B] which permutation."""
    images: Tensor
    """[B, T] which image of the joint batch."""
    cells: Tensor
    """[B, T] which of its cells, row-major."""
    offsets: Tensor
    """[B, T, 2] rows and columns from the top left of the cell."""
    shifts: Tensor
    """[B, T, C, 2] rows and columns that a channel is shifted by."""
    grey: Tensor
    """[B, T] bool."""


def puzzle(uniforms: Tensor, sets: Tensor, own: Tensor, images: int, channels: int, spec: JigsawSpec) -> Puzzle:
    """Make puzzles of random numbers, as many as DRAWS and DRAWS_A_TILE say.

    Args:
        uniforms: [B, K] in [0, 1).
        sets: [N, T] permutations.
        own: [B] which images of the joint batch these are.
        images: how many it has.
        channels: of the images.
        spec: settled settings.
    """
    n, tiles = len(uniforms), sets.shape[1]
    first, of_tiles, of_channels = uniforms.split([DRAWS, DRAWS_A_TILE * tiles, 2 * tiles * channels], 1)
    label, count, other, grey_own, grey_other = first.unbind(1)
    jitter, occluded, occluding = of_tiles.view(n, tiles, DRAWS_A_TILE).split([2, 1, 1], 2)
    labels = _whole(label, len(sets))
    partner = _whole(other, images - 1)
    partner = partner + (partner >= own)  # never the image itself
    place = occluded[..., 0].argsort(1).argsort(1)  # [B, T], the order in which tiles are occluded
    hidden = place < _whole(count, spec.max_occlusions + 1)[:, None]
    p = spec.grey or 0.0
    grey_there = grey_own if spec.same_colour else grey_other
    return Puzzle(
        labels,
        torch.where(hidden, partner[:, None], own[:, None]),
        torch.where(hidden, occluding[..., 0].argsort(1), sets[labels]),
        _whole(jitter, (spec.jitter or 0) + 1),
        _whole(of_channels.view(n, tiles, channels, 2), spec.channel_shift + 1),
        torch.where(hidden, grey_there[:, None] < p, grey_own[:, None] < p),
    )


def _whole(uniforms: Tensor, n: int) -> Tensor:
    """Uniform in [0, 1) to uniform among 0 to n - 1."""
    return (uniforms * n).long().clamp_(max=n - 1)


def cut(images: Tensor, made: Puzzle, grid: int, tile: int) -> Tensor:
    """Cut the tiles of puzzles.

    Args:
        images: [N, C, S, S] of the joint batch.
        made: where tiles come from.
        grid: cells a side.
        tile: side of a tile.

    Returns:
        [B, T, C, tile, tile].
    """
    channels, side = images.shape[1], images.shape[2] // grid
    with_grey = torch.cat([images, grey(images)], 1)
    corner = torch.stack([made.cells // grid, made.cells % grid], -1) * side + made.offsets  # [B, T, 2]
    start = corner[:, :, None] + made.shifts  # [B, T, C, 2]
    along = torch.arange(tile, device=images.device)
    rows, columns = (start[..., i, None] + along for i in range(2))  # [B, T, C, tile]
    channel = torch.where(made.grey[..., None], channels, torch.arange(channels, device=images.device))  # [B, T, C]
    return with_grey[made.images[..., None, None, None], channel[..., None, None], rows[..., :, None], columns[..., None, :]]


def standardise(tiles: Tensor, norm: TileNorm) -> Tensor:
    """Bring every tile of [..., C, H, W] to mean 0 and (unbiased) deviation 1; a tile of one value becomes zeros."""
    if norm == "none":
        return tiles
    axes = (-2, -1) if norm == "channel" else (-3, -2, -1)
    centred = tiles - tiles.mean(axes, keepdim=True)
    std = tiles.std(axes, keepdim=True)
    return torch.where(std > 1e-5, centred / std, 0.0)  # what rounding leaves of one value is not blown up


class Jigsaw(Auxiliary):
    """A pass of the network for all tiles, and a head that names the permutation."""

    name, alone = "jigsaw", True
    spec: JigsawSpec

    def __init__(self, method: Method, spec: JigsawSpec) -> None:
        super().__init__(method, spec)
        spec = self.spec
        rows = permutations(spec.grid**2, spec.permutations or 0, spec.min_distance or 0, spec.permutation_seed, spec.rule, spec.identity)
        self.register_buffer("permutations", rows, persistent=False)  # the settings say them
        self.permutations: Tensor
        if spec.tile:
            cells(spec.tile, patch_side(method.backbone), "auxiliary.jigsaw.tile")
        norm = nn.BatchNorm1d(spec.hidden) if spec.norm == "batch" else nn.LayerNorm(spec.hidden)
        self.keep = nn.Sequential(nn.Linear(int(method.backbone.width), spec.hidden, bias=False), norm, nn.ReLU())  # type: ignore[arg-type]
        self.name_it = nn.Linear(spec.hidden * spec.grid**2, len(rows))

    def crops(self, views: ViewsSpec) -> tuple[CropSpec, ...]:
        """The puzzle as one image: square, mirrored as the method's views, its colours as they are."""
        full, like = self.spec.settled(self.beside, views), views.global_crops[-1]
        return (like.model_copy(update={"size": full.image, "area": full.area, "aspect": (1.0, 1.0), "photometric": PhotometricSpec()}),)

    def passes(self, views: ViewsSpec) -> tuple[int, ...]:
        """Sides of the tiles."""
        return (self.spec.tile or 0,) * self.spec.grid**2

    def draw(self, rows: int, step: Step) -> Tensor:
        """A seed for each puzzle of the joint batch, [rows]."""
        return torch.randint(2**62, (rows,), generator=step.generator(self.name))

    def prepare(self, views: Views, step: Step) -> Views:
        """Cut the puzzles: ``drawn`` then holds permutations [B], and tiles [B, T, C, H, W] as "jigsaw tiles"."""
        if step.progress < self.spec.start:
            return views
        crop = views.extra[self.name].images[0]
        n, channels = crop.shape[:2]
        seeds = views.drawn[self.name]
        uniforms = expand(seeds, DRAWS + (DRAWS_A_TILE + 2 * channels) * self.permutations.shape[1])
        own = rank() * n + torch.arange(n, device=seeds.device)
        made = puzzle(uniforms, self.permutations, own, n * world(), channels, self.spec)
        if self.spec.max_occlusions:
            crop = gather(crop)
        else:
            made = replace(made, images=made.images - rank() * n)
        tiles = standardise(cut(crop, made, self.spec.grid, self.spec.tile or 0), self.spec.tile_norm)
        return replace(views, drawn=views.drawn | {self.name: made.labels, f"{self.name} tiles": tiles})

    def forward(self, method: Method, views: Views, outputs: Outputs, step: Step) -> tuple[dict[str, Tensor], Carry]:
        """Cross-entropy in nats, a mean over puzzles."""
        logits = self.logits(method, views.drawn[f"{self.name} tiles"])
        return {self.name: F.cross_entropy(logits, views.drawn[self.name])}, Carry()

    def diagnose(self, method: Method, views: Views, step: Step) -> dict[str, float]:
        """``accuracy``: share of the puzzles whose permutation is named, and what ``chance`` gives."""
        if f"{self.name} tiles" not in views.drawn:
            return {}
        right = self.logits(method, views.drawn[f"{self.name} tiles"]).argmax(1) == views.drawn[self.name]
        return {"accuracy": float(mean(right.float().mean())), "chance": 1 / len(self.permutations)}

    def said(self, method: Method, tiles: Tensor) -> Tensor:
        """What the head keeps of each tile by itself: [B, T, C, H, W] -> [B, T, hidden]."""
        statistics: Statistics = self.spec.statistics or "keep"
        parts = [tiles.flatten(0, 1)] if self.spec.joint else list(tiles.unbind(1))
        kept = [self.keep(method.encode(part, statistics=statistics).pooled) for part in parts]
        return kept[0].unflatten(0, tiles.shape[:2]) if self.spec.joint else torch.stack(kept, 1)

    def logits(self, method: Method, tiles: Tensor) -> Tensor:
        """[B, T, C, H, W] -> [B, N]."""
        logits: Tensor = self.name_it(self.said(method, tiles).flatten(1))
        return logits
