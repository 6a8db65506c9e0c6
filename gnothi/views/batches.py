"""Batches of views: rows by the order, crops and colours by seed, step and position, the same for any number of processes and workers."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from pydantic import field_validator
from torch import Tensor
from torch.utils.data import DataLoader

from gnothi import distributed
from gnothi.contracts import GnothiError, Pixels, RunError, SettingError, Source, Spec, Views
from gnothi.data.order import Order
from gnothi.randomness import generator
from gnothi.views import photometric
from gnothi.views.crops import CropSpec
from gnothi.views.loading import Crop, Cuts, FromArray, FromSource, Joint

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
        first_step: where a resumed run begins.
        total: steps of the run.
        extra: crops of auxiliaries by name; they come in ``Views.extra``.
        broken_fraction: part of the images that may be broken before the run stops; see ``broken``.
        channels_last: memory format of the views.

    Raises:
        SettingError: the batch cannot be divided, or an operation has no meaning for the source's channels.
    """

    broken: dict[str, tuple[str, int]]
    """By name: what was wrong with an image that could not be read, and how often it was replaced."""
    waited: float
    """Seconds spent waiting for images so far."""

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
        first_step: int = 0,
        total: int,
        extra: Mapping[str, tuple[CropSpec, ...]] | None = None,
        broken_fraction: float = 0.05,
        channels_last: bool = False,
    ) -> None:
        self.source, self.views, self.extra, self.pixels, self.seed = source, views, dict(extra or {}), pixels, seed
        self.device, self.workers, self.total, self.broken_fraction = torch.device(device), workers, total, broken_fraction
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
        joint = Joint(seed, Order(len(source), batch, seed), self.part)
        self.loader = FromSource(source, self.crops, joint) if source.array is None else FromArray(source.array.to(self.device), self.crops, joint)
        self.broken, self.waited = {}, 0.0
        self._met = torch.zeros(len(source), dtype=torch.bool)
        self._ready: Iterator[Cuts | GnothiError] | None = None
        self._next = first_step

    def __call__(self, number: int) -> Views:
        """The views of this process's part of step ``number``."""
        cuts = self._cuts(number)
        images = [self._colour(image, crop, number) for image, crop in zip(cuts.images, self.crops, strict=True)]
        seen = self._views(cuts, images, METHOD, len(self.views.global_crops))
        return replace(seen, extra={name: self._views(cuts, images, name, len(crops)) for name, crops in self.extra.items()})

    def close(self) -> None:
        """End the loader processes; a later call starts them again."""
        self._ready = None

    def _cuts(self, number: int) -> Cuts:
        if isinstance(self.loader, FromArray):
            return self.loader[number]
        began = time.perf_counter()
        cuts = self._from_workers(self.loader, number) if self.workers else self.loader[number]
        self.waited += time.perf_counter() - began
        if isinstance(cuts, GnothiError):
            self.close()
            raise cuts
        self._count(cuts)
        return cuts

    def _from_workers(self, loader: FromSource, number: int) -> Cuts | GnothiError:
        if self._ready is None or number != self._next:
            self._ready = self._start(loader, number)
        self._next = number + 1
        try:
            return next(self._ready)
        except RuntimeError as error:
            self.close()
            raise RunError(
                f"a loader process ended unexpectedly, often for want of memory: {str(error).splitlines()[0]}; try fewer workers"
            ) from error

    def _start(self, loader: FromSource, number: int) -> Iterator[Cuts | GnothiError]:
        main = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
        before = signal.getsignal(signal.SIGCHLD) if main else None
        ready = iter(
            DataLoader(
                loader,
                batch_size=None,  # an item is a whole batch already
                sampler=range(number, max(self.total, number + 1)),
                num_workers=self.workers,
                pin_memory=self.device.type == "cuda",
                generator=generator(self.seed, "loader"),  # or torch's global generator would move
            )
        )
        if before is not None:
            # Torch's handler raises wherever the main thread happens to be when a loader process dies; the next batch tells it as well.
            signal.signal(signal.SIGCHLD, before)
        return ready

    def _count(self, cuts: Cuts) -> None:
        """Note what was broken, and stop above the fraction: of the images met, but of at least 1,000 or all, and never for 2 files or fewer."""
        self._met[cuts.index] = True
        for row, name, message in cuts.broken:
            self._met[row] = True
            self.broken[name] = (message, self.broken.get(name, ("", 0))[1] + 1)
        met = int(self._met.sum()) if cuts.broken else 0
        if len(self.broken) > max(2, self.broken_fraction * max(met, min(len(self.source), 1000))):
            self.close()
            first = "; ".join(message for message, _ in list(self.broken.values())[:3])
            raise RunError(
                f"{len(self.broken)} of {met} images cannot be read, more than data.broken_fraction={self.broken_fraction:g} allows; "
                f"mend or remove them, or raise it: {first}{' ...' if len(self.broken) > 3 else ''}"
            )

    def _colour(self, images: Tensor, crop: Crop, number: int) -> Tensor:
        """Crops in the source's numbers to what a network takes."""
        spec = crop.spec.photometric
        draws = photometric.draw(generator(self.seed, f"colours {crop.owner}", number, crop.number), self.batch, spec)
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
