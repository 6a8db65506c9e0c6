"""Encoders: anything that turns images into vectors, and the names by which they are opened."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gnothi import distributed
from gnothi.contracts import DataError, EncoderError, Source, did_you_mean
from gnothi.distributed import device_of
from gnothi.encoders.inputs import channels_first

Progress = Callable[[int, int], None]
"""Called with the number done and the number to do."""
Images = Tensor | np.ndarray | Sequence[Tensor | np.ndarray]
BLOCK = 256
"""Images of one block: what is held at a time, besides the vectors."""


class Encoder:
    """Images to vectors. A subclass sets the fields and gives ``prepare`` and ``encode``."""

    name: str
    dim: int
    fingerprint: str
    """Short hexadecimal digest that changes when the vectors can."""
    channels: int | None = None
    """What the images must have; None where any number will do."""

    def width(self, channels: int) -> int:
        """Numbers of a vector for images of so many channels; ``dim`` is that of three where it depends on them."""
        return self.dim

    def prepare(self, images: Tensor) -> Tensor:
        """Images of one size, [B, C, H, W] of any type, to what ``encode`` takes: [B, ...], of one shape for all sizes."""
        raise NotImplementedError

    def encode(self, prepared: Tensor) -> Tensor:
        """[B, ...] of ``prepare`` to vectors [B, dim] float32 on the CPU."""
        raise NotImplementedError

    def embed(self, images: Images) -> Tensor:
        """Embed images that are in memory.

        Args:
            images: [N, C, H, W] or [N, H, W, C], or a sequence of [C, H, W], [H, W, C] or [H, W] of any sizes; uint8, uint16 or float.

        Returns:
            [N, dim] float32 on the CPU.

        Raises:
            EncoderError: they have other channels or another range than this encoder takes.
        """
        if len(images) == 0:
            return torch.empty(0, self.dim)
        if isinstance(images, Tensor | np.ndarray):
            batch = channels_first(images, self.channels, 4)
            return torch.cat([self.encode(self.prepare(b)) for b in batch.split(BLOCK)])
        prepared = [self.prepare(channels_first(i, self.channels, 3)[None]) for i in images]
        return torch.cat([self.encode(torch.cat(prepared[i : i + BLOCK])) for i in range(0, len(prepared), BLOCK)])

    def embed_source(self, source: Source, rows: Sequence[int] | np.ndarray | None = None, progress: Progress | None = None) -> np.ndarray:
        """Embed rows of a source, all of them by default.

        Args:
            source: the images.
            rows: row numbers, in the order wanted.
            progress: told how many are done.

        Returns:
            [N, dim] float32; a row of NaN for each image that cannot be read.

        Raises:
            EncoderError: the images do not fit, or a vector is not finite.
        """
        return np.concatenate([np.empty((0, self.width(source.channels)), dtype=np.float32), *self.blocks(source, rows, progress)])

    def blocks(self, source: Source, rows: Sequence[int] | np.ndarray | None = None, progress: Progress | None = None) -> Iterator[np.ndarray]:
        """The vectors of ``embed_source`` piece by piece, [up to BLOCK, dim] each: no more than a block is ever held."""
        rows = np.arange(len(source)) if rows is None else np.asarray(rows, dtype=np.int64)
        if self.channels is not None and source.channels != self.channels:
            raise EncoderError(wrong_channels(self.name, self.channels, source.channels))
        done = 0
        for part, prepared in self._prepared(source, [rows[i : i + BLOCK] for i in range(0, len(rows), BLOCK)]):
            yield self._vectors(source, part, prepared)
            done += len(part)
            if progress is not None:
                progress(done, len(rows))

    def _prepared(self, source: Source, parts: list[np.ndarray]) -> Iterator[tuple[np.ndarray, list[Tensor | None] | Tensor]]:
        """Prepared images of each part: from memory as a batch, or read by a few threads, one part ahead."""
        if source.array is not None:
            yield from ((part, self.prepare(source.array[torch.from_numpy(part)])) for part in parts)
            return

        def read(row: int) -> Tensor | None:
            try:
                image = source.image(row)
            except DataError:
                return None
            return self.prepare(image[None])

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            ahead: deque[list[Future[Tensor | None]]] = deque()
            for i, part in enumerate(parts):
                while len(ahead) < min(2, len(parts) - i):
                    ahead.append([pool.submit(read, int(row)) for row in parts[i + len(ahead)]])
                yield part, [f.result() for f in ahead.popleft()]

    def _vectors(self, source: Source, rows: np.ndarray, prepared: list[Tensor | None] | Tensor) -> np.ndarray:
        whole = [i for i, x in enumerate(prepared) if x is not None] if isinstance(prepared, list) else list(range(len(rows)))
        vectors = np.full((len(rows), self.width(source.channels)), np.nan, dtype=np.float32)
        if whole:
            batch = torch.cat([x for x in prepared if x is not None]) if isinstance(prepared, list) else prepared
            vectors[whole] = self.encode(batch).numpy()
            broken = ~np.isfinite(vectors[whole]).all(axis=1)
            if broken.any():
                row = int(rows[np.array(whole)[broken][0]])
                raise EncoderError(f"{self.name} gives {source.name(row)} a vector that is not finite; its weights are broken")
        return vectors


def spread(
    encoder: Encoder, source: Source, rows: Sequence[int] | np.ndarray | None = None, progress: Progress | None = None
) -> Iterator[np.ndarray]:
    """``Encoder.blocks`` by all processes of ``torchrun``, each with its share of the rows; every one gets all vectors, and all must ask.

    In a round, each process embeds BLOCK rows that follow each other; of what is left for the last round, the same number or one more or less.
    """
    rows = np.arange(len(source)) if rows is None else np.asarray(rows, dtype=np.int64)
    world, rank = distributed.world(), distributed.rank()
    if world == 1:
        yield from encoder.blocks(source, rows, progress)
        return
    rounds = [rows[i : i + BLOCK * world] for i in range(0, len(rows), BLOCK * world)]
    mine = [part[rank * len(part) // world : (rank + 1) * len(part) // world] for part in rounds]
    blocks = encoder.blocks(source, np.concatenate([rows[:0], *mine]))
    held, done = np.empty((0, encoder.width(source.channels)), dtype=np.float32), 0
    for part, own in zip(rounds, mine, strict=True):
        while len(held) < len(own):
            held = np.concatenate([held, next(blocks)])
        yield distributed.join(torch.from_numpy(held[: len(own)])).numpy()
        held, done = held[len(own) :], done + len(part)
        if progress is not None and rank == 0:
            progress(done, len(rows))


def wrong_channels(name: str, wanted: int, found: int) -> str:
    """The line for images of another number of channels."""
    remedy = f"--set data.channels={wanted} brings images of a folder or shards to it, or use" if {wanted, found} == {1, 3} else "use"
    said = f"{name} takes images of {wanted} channel{'' if wanted == 1 else 's'}, these have {found}"
    return f"{said}; {remedy} an encoder trained on such images, or pixels, colour or hog"


# ---- names ---------------------------------------------------------------------------------------
def _handcrafted(name: str, device: torch.device) -> Encoder:
    from gnothi.encoders.handcrafted import HANDCRAFTED

    return HANDCRAFTED[name]()


def _bow_sift(name: str, device: torch.device) -> Encoder:
    from gnothi.encoders.bow_sift import BowSift

    return BowSift(name)


def _timm(name: str, device: torch.device) -> Encoder:
    from gnothi.encoders.network import timm_encoder

    return timm_encoder(name, device)


def _features(name: str, device: torch.device) -> Encoder:
    from gnothi.encoders.stored import StoredEncoder

    return StoredEncoder(name)


def _untrained(name: str, device: torch.device) -> Encoder:
    return _folder(f"{name.partition(':')[2]}@untrained", device)


def _folder(name: str, device: torch.device) -> Encoder:
    """A run, an exported encoder or an ensemble, with what stands behind its ``@``."""
    folder, marks = place_of(name)
    path = Path(folder).expanduser()
    for file, (module, loader) in FOLDERS.items():
        if (path / file).is_file():
            encoder: Encoder = getattr(import_module(module), loader)(name, path, marks, device)
            return encoder
    if path.is_dir():
        raise EncoderError(
            f"{folder} is neither a run (it has no spec.json) nor an exported encoder (it has no config.json) "
            "nor an ensemble (it has no ensemble.json)"
        )
    near = _near(path, Path(folder))
    if not near and not path.parent.is_dir():
        raise EncoderError(f"{name}: no such encoder; there is no folder {Path(folder).parent}")
    raise EncoderError(f"{name}: no such encoder; {did_you_mean(folder, near if os.sep in folder else [*NAMES, *near])}")


def place_of(name: str) -> tuple[str, list[str]]:
    """The folder that a name begins with, as it is written, and what stands behind each ``@``; a folder's own name may have one, too."""
    folder, marks = name, list[str]()
    while not Path(folder).expanduser().exists() and "@" in folder:
        folder, _, mark = folder.rpartition("@")
        marks.insert(0, mark)
    return folder, marks


def _near(path: Path, written: Path) -> list[str]:
    """Runs, exported encoders and ensembles in the same place, written as the person wrote this one; without such a place, in those beside it."""
    above = path.parent.parent
    if path.parent.is_dir():
        places = {path.parent: written.parent}
    else:
        places = {p: written.parent.parent / p.name for p in above.iterdir() if p.is_dir()} if above.is_dir() else {}
    return sorted(str(said / p.name) for place, said in places.items() for p in _listed(place) if any((p / file).is_file() for file in FOLDERS))


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # one that may not be read
        return []


FOLDERS = {
    "spec.json": ("gnothi.encoders.network", "run_encoder"),
    "config.json": ("gnothi.encoders.network", "exported_encoder"),
    "ensemble.json": ("gnothi.ensemble.fitted", "ensemble_encoder"),
}
"""What opens a folder, by the file that it holds; imported by name, for ensembles are made of encoders and stand after them."""
LOADERS: dict[str, Callable[[str, torch.device], Encoder]] = {
    "pixels": _handcrafted,
    "hog": _handcrafted,
    "colour": _handcrafted,
    "bow-sift": _bow_sift,
    "bow-sift:": _bow_sift,
    "timm:": _timm,
    "features:": _features,
    "untrained:": _untrained,
}
NAMES = (*(name + "..." if name.endswith(":") else name for name in LOADERS), "runs/...")


def load(name: str, device: str | torch.device | None = None) -> Encoder:
    """Open an encoder by name.

    Args:
        name: a run (``runs/x``, with ``@teacher``, ``@online``, ``@step-1200`` or ``@untrained``), an exported folder, an ensemble's (with
            ``@steps-20`` where it descends), ``timm:NAME``, ``pixels``, ``hog``, ``colour``, ``features:FILE`` or ``untrained:RUN``;
            docs/encoders.md has the table.
        device: where it computes; by default a CUDA device where there is one.

    Raises:
        EncoderError: there is none of this name; the message names the nearest.
    """
    chosen = device_of(None if device is None else str(device))
    front, colon, _ = name.partition(":")
    loader = LOADERS.get(front + colon)
    if loader is None and colon and not Path(place_of(name)[0]).expanduser().exists():
        raise EncoderError(f"{name}: no such kind of encoder; {did_you_mean(front + ':', [n for n in LOADERS if n.endswith(':')])}")
    return (loader or _folder)(name, chosen)
