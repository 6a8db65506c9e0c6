"""Reading images and cutting their crops in loader processes, and what happens to images that are broken."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from gnothi.contracts import DataError, GnothiError, RunError, Source
from gnothi.data import Subset
from gnothi.randomness import generator
from gnothi.views.crops import Boxes, cut, draw
from gnothi.views.loading import Crop, Cuts, Joint

REPLACEMENTS = 50
"""Rows drawn in place of a broken image before the batch is given up."""


class FromSource(Dataset["Cuts | GnothiError"]):
    """Read and cut a batch image by image: a dataset whose item number is a step and whose item is a whole batch.

    Every image is read once, at the smallest resolution that still covers all its crops. 8-bit images give 8-bit crops, other types floats.
    A broken image is replaced by a row that depends on nothing but seed, step and position. An error of ours is returned, not raised, because
    torch would wrap it in the traceback of the loader process.
    """

    def __init__(self, source: Source, crops: tuple[Crop, ...], joint: Joint) -> None:
        self.source, self.crops, self.joint = source, crops, joint
        while isinstance(source, Subset):
            source = source.source
        self.tells = type(source).shape is not Source.shape
        """Whether the source knows the shape of an image before it is read."""

    def __getitem__(self, step: int) -> Cuts | GnothiError:
        try:
            return _shared(self._load(step))
        except GnothiError as error:
            return error
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
                raise
            return RunError("no memory left while images were read; fewer loader processes (training.workers) or smaller images need less")

    def _load(self, step: int) -> Cuts:
        rows = self.joint.rows(step)
        n = len(rows)
        exact = torch.uint8 if self.source.dtype == torch.uint8 else torch.float32
        images = tuple(torch.empty(n, self.source.channels, c.spec.size, c.spec.size, dtype=exact) for c in self.crops)
        uniform = [self.joint.uniforms(c, step) for c in self.crops]
        shapes = torch.ones(n, 2, dtype=torch.int64)
        broken: list[tuple[int, str, str]] = []
        left = list(range(n))
        for attempt in range(REPLACEMENTS):
            # All shapes, then all boxes, then the images: drawing for one image takes nearly as long as for all.
            held: dict[int, Tensor] = {}
            errors = _errors(left, lambda i, held=held: self._look(int(rows[i]), i, shapes, held))  # type: ignore[misc]
            boxes = tuple(draw(u, shapes[:, 0], shapes[:, 1], c.spec) for u, c in zip(uniform, self.crops, strict=True))
            good = [i for i in left if i not in errors]
            errors |= _errors(good, lambda i, held=held, boxes=boxes: self._cut(int(rows[i]), i, shapes[i].tolist(), held, boxes, images))  # type: ignore[misc]
            left = sorted(errors)
            if not left:
                return Cuts(rows, images, boxes, tuple(broken))
            for i in left:
                broken.append((int(rows[i]), self.source.name(int(rows[i])), str(errors[i])))
                rows[i] = self.joint.replacement(step, i, attempt)
        raise DataError(f"{broken[-1][2]}; nor could {REPLACEMENTS - 1} other images drawn in its place be read")

    def _look(self, row: int, i: int, shapes: Tensor, held: dict[int, Tensor]) -> None:
        """Write the shape of an image into ``shapes``; where only the pixels tell it, hold them, to read nothing twice."""
        if self.tells:
            shapes[i] = torch.tensor(self.source.shape(row))
        else:
            held[i] = self.source.image(row)
            shapes[i] = torch.tensor(held[i].shape[1:])

    def _cut(self, row: int, i: int, shape: list[int], held: dict[int, Tensor], boxes: tuple[Boxes, ...], images: tuple[Tensor, ...]) -> None:
        """Read an image and write its crops into place ``i`` of each of ``images``."""
        shrink = _shrink([b.boxes[i] for b in boxes], self.crops)
        image = held.pop(i) if i in held else self.source.image(row, shrink)
        ratio = _ratio(image, shape, shrink)
        for crop, box, out in zip(self.crops, boxes, images, strict=True):
            one = _cut_one(image, box.boxes[i] * ratio, crop.spec.size, box.flips[i : i + 1], box.turns[i : i + 1])
            out[i] = one.add_(0.5).clamp_(0, 255) if out.dtype == torch.uint8 else one  # the assignment rounds down


def _shared(cuts: Cuts) -> Cuts:
    """The same in memory that the main process sees. Torch would do it in a thread whose failure, for want of memory, nobody hears of."""
    if get_worker_info() is not None:
        for tensor in (cuts.index, *cuts.images, *(part for b in cuts.boxes for part in (b.boxes, b.flips, b.turns))):
            tensor.share_memory_()
    return cuts


class Reader:
    """Cuts of a step from files: read in loader processes, or in this one; broken images are counted, too many stop the run.

    Args:
        source: images.
        crops: of every image.
        joint: what they depend on.
        workers: processes that read; 0 for none.
        total: steps of the run, which the processes prepare one after the other.
        pin: hand over in memory that a GPU can fetch by itself.
        broken_fraction: part of the images that may be broken.
    """

    def __init__(self, source: Source, crops: tuple[Crop, ...], joint: Joint, *, workers: int, total: int, pin: bool, broken_fraction: float) -> None:
        self.source, self.items, self.joint = source, FromSource(source, crops, joint), joint
        self.workers, self.total, self.pin, self.broken_fraction = workers, total, pin, broken_fraction
        self.broken: dict[str, tuple[str, int]] = {}
        self.waited = 0.0
        self._own: set[str] = set()
        self._met = 0
        self._ready: Iterator[Cuts | GnothiError] | None = None
        self._next = 0

    def __getitem__(self, step: int) -> Cuts:
        began = time.perf_counter()
        cuts = self._from_workers(step) if self.workers else self.items[step]
        self.waited += time.perf_counter() - began
        if isinstance(cuts, GnothiError):
            self.close()
            raise cuts
        self._count(cuts)
        return cuts

    def close(self) -> None:
        """End the loader processes; a later call starts them again."""
        self._ready = None

    def _from_workers(self, number: int) -> Cuts | GnothiError:
        if self._ready is None or number != self._next:
            self._ready = self._start(number)
        self._next = number + 1
        try:
            return next(self._ready)
        except (RuntimeError, OSError, EOFError) as error:  # the last two where it dies while it hands a batch over
            self.close()
            said = (str(error) or type(error).__name__).splitlines()[0]
            raise RunError(f"a loader process ended unexpectedly, often for want of memory: {said}; try fewer workers") from error

    def _start(self, number: int) -> Iterator[Cuts | GnothiError]:
        main = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
        before = signal.getsignal(signal.SIGCHLD) if main else None
        ready = iter(
            DataLoader(
                self.items,
                batch_size=None,  # an item is a whole batch already
                sampler=range(number, max(self.total, number + 1)),
                num_workers=self.workers,
                pin_memory=self.pin,
                generator=generator(self.joint.seed, "loader"),  # or torch's global generator would move
            )
        )
        if before is not None:
            # Torch's handler raises wherever the main thread happens to be when a loader process dies; the next batch tells it as well.
            signal.signal(signal.SIGCHLD, before)
        return ready

    def _count(self, cuts: Cuts) -> None:
        """Note what was broken, and stop above the fraction: of the images met, but of at least 1,000 or all, and never for 2 files or fewer.

        Met by this process, that is: ``broken`` may hold more, of a run that this one goes on with.
        """
        self._met = min(self._met + len(cuts.index), len(self.source))  # an epoch meets every image once
        for _, name, message in cuts.broken:
            self._own.add(name)
            self.broken[name] = (message, self.broken.get(name, ("", 0))[1] + 1)
        if len(self._own) > max(2, self.broken_fraction * max(self._met, min(len(self.source), 1000))):
            self.close()
            first = "; ".join(self.broken[name][0] for name in sorted(self._own)[:3])
            raise RunError(
                f"{len(self._own)} of {self._met} images cannot be read, more than data.broken_fraction={self.broken_fraction:g} allows; "
                f"mend or remove them, or raise it: {first}{' ...' if len(self._own) > 3 else ''}"
            )


def _errors(positions: list[int], action: Callable[[int], object]) -> dict[int, DataError]:
    """Act on each position; the errors of those whose image cannot be used."""
    errors = {}
    for i in positions:
        try:
            action(i)
        except DataError as error:
            errors[i] = error
    return errors


def _shrink(boxes: list[Tensor], crops: tuple[Crop, ...]) -> int:
    """The largest of 8, 4, 2, 1 at which every box still has at least as many pixels as its crop."""
    spare = min(float(box[2:].min()) / crop.spec.size for box, crop in zip(boxes, crops, strict=True))
    return next((s for s in (8, 4, 2) if s <= spare), 1)


def _ratio(image: Tensor, shape: list[int], shrink: int) -> Tensor:
    """Pixels of [C, H, W] to a pixel of the full resolution, [4] for a box; a decoder that shrinks rounds the shape up, but not the scale."""
    if list(image.shape[1:]) == [math.ceil(side / shrink) for side in shape]:
        return torch.full((4,), 1 / shrink)
    return torch.tensor([image.shape[2] / shape[1], image.shape[1] / shape[0]]).repeat(2)


def _cut_one(image: Tensor, box: Tensor, size: int, flip: Tensor, turn: Tensor) -> Tensor:
    """Cut one crop [C, size, size] of [C, H, W], looking at no more of the image than the box touches."""
    left, top, width, height = box.tolist()
    x, y = math.floor(left), math.floor(top)
    part = image[:, y : math.ceil(top + height), x : math.ceil(left + width)]
    return cut(part[None], torch.tensor([[left - x, top - y, width, height]]), size, flip, turn)[0]
