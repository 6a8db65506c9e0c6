"""Batches of views: rows by the order, crops and colours by seed, step and position, the same for any number of processes and workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from pydantic import field_validator
from torch import Tensor

from gnothi import distributed
from gnothi.contracts import Pixels, SettingError, Source, Spec, Views
from gnothi.data.order import Order
from gnothi.randomness import generator
from gnothi.views import photometric
from gnothi.views.crops import CropSpec
from gnothi.views.loading import Crop, Cuts, FromArray, Joint
from gnothi.views.reading import Reader

METHOD = "method"
"""The owner of the crops that the method sees; an auxiliary's crops are owned by its name."""


class ViewsSpec(Spec):
    """The crops that a method sees of every image."""

    global_crops: tuple[CropSpec, ...]
    """Large crops; methods with a teacher show it these only."""
    local_crops: tuple[CropSpec, ...] = ()
    """Small crops, shown to the student only."""

    @field_validator("global_crops")
    @classmethod
    def _some(cls, crops: tuple[CropSpec, ...]) -> tuple[CropSpec, ...]:
        if not crops:
            raise ValueError("must hold at least one crop, got none")
        return crops


class Batches:
    """Views of a training step by its number: ``batches(number)``.

    A source with an array stays on the device in its own type, and its crops are cut there. Any other source is read and cut in ``workers``
    processes (in this one for 0). Colours are always changed on the device. Crops and colours depend on seed, step and position in the joint
    batch alone, so steps may be asked for in any order; asking for them one after the other is what the workers prepare for.

    Args:
        source: images.
        views: crops of the method.
        batch: images of a step over all processes.
        seed: of the run.
        pixels: range and channel statistics.
        device: where the views go.
        workers: processes that read; 0 for none.
        total: steps of the run.
        extra: crops of auxiliaries by name; they come in ``Views.extra``.
        broken_fraction: part of the images that may be broken before the run stops; see ``broken``.
        channels_last: memory format of the views.
        order: in which the rows are met; permutations by the seed where None.

    Raises:
        SettingError: the batch cannot be divided, or an operation has no meaning for the source's channels.
    """

    def __init__(
        self,
        source: Source,
        views: ViewsSpec,
        *,
        batch: int,
        seed: int,
        pixels: Pixels,
        device: torch.device | str,
        workers: int = 0,
        total: int,
        extra: Mapping[str, tuple[CropSpec, ...]] | None = None,
        broken_fraction: float = 0.05,
        channels_last: bool = False,
        order: Order | None = None,
    ) -> None:
        self.views, self.extra, self.pixels, self.seed, self.device = views, dict(extra or {}), pixels, seed, torch.device(device)
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.batch, share = batch, batch // distributed.world()
        if batch % distributed.world():
            raise SettingError(
                f"training.batch must be a multiple of the {distributed.world()} processes, got {batch}; {share * distributed.world()} is"
            )
        self.part = slice(distributed.rank() * share, (distributed.rank() + 1) * share)
        self.crops = _crops(views, self.extra)
        for crop in self.crops:
            photometric.check(crop.spec.photometric, source.channels, "views" if crop.owner == METHOD else f"auxiliary.{crop.owner}")
        joint = Joint(seed, order or Order(len(source), batch, seed), self.part)
        self.cutter: FromArray | Reader
        if source.array is not None:
            self.cutter = FromArray(source.array.to(self.device), self.crops, joint)
        else:
            pin = self.device.type == "cuda"
            self.cutter = Reader(source, self.crops, joint, workers=workers, total=total, pin=pin, broken_fraction=broken_fraction)

    def __call__(self, number: int) -> Views:
        """The views of this process's part of step ``number``."""
        cuts = self.cutter[number]
        images = [self._colour(image, crop, number) for image, crop in zip(cuts.images, self.crops, strict=True)]
        seen = self._views(cuts, images, METHOD, len(self.views.global_crops))
        return replace(seen, extra={name: self._views(cuts, images, name, len(crops)) for name, crops in self.extra.items()})

    @property
    def broken(self) -> dict[str, tuple[str, int]]:
        """By name: what was wrong with an image that could not be read, and how often it was replaced."""
        return self.cutter.broken

    @property
    def waited(self) -> float:
        """Seconds spent waiting for images so far."""
        return self.cutter.waited

    def close(self) -> None:
        """End the loader processes; a later call starts them again."""
        self.cutter.close()

    def _colour(self, images: Tensor, crop: Crop, number: int) -> Tensor:
        """Crops in the source's numbers to what a network takes."""
        spec = crop.spec.photometric
        draws = photometric.draw(generator(self.seed, f"colours {crop.owner}", number, crop.number), self.batch, spec, images.shape[1])
        images = self.pixels.unit(images.to(self.device, non_blocking=True))
        return self.pixels.normalise(photometric.apply(images, draws[self.part])).contiguous(memory_format=self.format)

    def _views(self, cuts: Cuts, images: list[Tensor], owner: str, n_global: int) -> Views:
        places = [i for i, crop in enumerate(self.crops) if crop.owner == owner]
        boxes = [cuts.boxes[i] for i in places]
        return Views(
            images=tuple(images[i] for i in places),
            boxes=torch.stack([b.boxes for b in boxes]).to(self.device),
            flips=torch.stack([b.flips for b in boxes]).to(self.device),
            turns=torch.stack([b.turns for b in boxes]).to(self.device),
            n_global=n_global,
            index=cuts.index.to(self.device),
        )


def _crops(views: ViewsSpec, extra: Mapping[str, tuple[CropSpec, ...]]) -> tuple[Crop, ...]:
    owned = {METHOD: views.global_crops + views.local_crops, **extra}
    return tuple(Crop(spec, owner, i) for owner, specs in owned.items() for i, spec in enumerate(specs))
