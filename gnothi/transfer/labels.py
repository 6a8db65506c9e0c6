"""What a student is told: clusters of a teacher's features, or the features themselves, by image."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gnothi.contracts import DataError, Source
from gnothi.data.targets import Targets, keys
from gnothi.encoders import Encoder
from gnothi.encoders.features import features
from gnothi.randomness import generator
from gnothi.transfer.clusters import BLOCK, Codebook, Rows


def readable(vectors: np.ndarray, encoder: Encoder, source: Source) -> np.ndarray:
    """Rows [n] that have a vector: those whose image cannot be read have none.

    Raises:
        DataError: a vector is not finite although its image can be read, or no image can.
    """
    broken = np.concatenate([~np.isfinite(vectors[i : i + BLOCK]).all(1) for i in range(0, len(vectors), BLOCK)])
    for row in np.flatnonzero(broken).tolist():
        try:
            source.image(row)
        except DataError:
            continue
        raise DataError(
            f"{encoder.name} gives {source.name(row)} a vector that is not finite, though the image can be read; embed these images again"
        )
    if broken.all():
        raise DataError(f"none of the {len(source)} images can be read, the first is {source.name(0)}")
    return np.flatnonzero(~broken)


def vectors_of(encoder: Encoder, source: Source, cache: str | None = None, progress: object = None) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, D] of a source, memory-mapped, and the rows [n] that have any."""
    vectors = features(encoder, source, cache=cache, progress=progress)  # type: ignore[arg-type]
    return vectors, readable(vectors, encoder, source)


def pseudo_labels(
    codebooks: Sequence[Codebook], vectors: Sequence[np.ndarray], source: Source, *, temperature: float = 0.0, nearest: int = 5, name: str = "targets"
) -> Targets:
    """Clusters of every image, a head for each codebook.

    Args:
        codebooks: H of them.
        vectors: the teacher's [N, D] that goes with each; a row of NaN has no cluster.
        source: whose images these are.
        temperature: of shares among the nearest clusters; 0 gives the nearest everything.
        nearest: clusters that share.
        name: what a person calls them.
    """
    n, m = len(source), min([nearest if temperature > 0 else 1, *(c.k for c in codebooks)])
    index, share = np.zeros((n, len(codebooks), m), dtype=np.int32), np.zeros((n, len(codebooks), m), dtype=np.float32)
    for h, (codebook, x) in enumerate(zip(codebooks, vectors, strict=True)):
        rows = np.flatnonzero(~np.isnan(x[:, 0]))
        index[rows, h], share[rows, h] = codebook.soft(Rows(x, rows), temperature, m)
    about = {"kind": "classes", "classes": [c.k for c in codebooks], "source": source.fingerprint()}
    return Targets(keys(source), {"index": torch.from_numpy(index), "share": torch.from_numpy(share)}, about, name)


def shuffled(targets: Targets, seed: int) -> Targets:
    """The same labels given to other images by chance: the sizes of the clusters stay, all else goes."""
    order = torch.randperm(len(targets.keys), generator=generator(seed, "shuffled labels"))
    return Targets(targets.keys[order.numpy()], targets.tensors, {**targets.about, "shuffled": seed}, targets.name)


def feature_targets(vectors: Sequence[np.ndarray], source: Source, name: str = "targets", scratch: Path | None = None) -> Targets:
    """The teachers' vectors of every image, of unit length and at half precision, [N, D] for each teacher; NaN where an image cannot be read.

    Args:
        vectors: [N, D] of each teacher, in memory or memory-mapped; a block is held at a time.
        source: whose images these are.
        name: what a person calls them.
        scratch: folder of the file without a name in which they lie; the system's own where None.
    """
    halves = {f"vectors.{i}": _halves(x, scratch) for i, x in enumerate(vectors)}
    about = {"kind": "vectors", "dims": [x.shape[1] for x in vectors], "source": source.fingerprint()}
    return Targets(keys(source), halves, about, name)


def _halves(vectors: np.ndarray, scratch: Path | None) -> Tensor:
    """Unit vectors [N, D] of half precision on the disk, which is free again when nobody holds them any more."""
    with tempfile.TemporaryFile(dir=scratch) as file:
        for start in range(0, len(vectors), BLOCK):
            block = torch.from_numpy(np.array(vectors[start : start + BLOCK], dtype=np.float32))
            file.write(F.normalize(block, dim=1).half().numpy().data)
        file.flush()
        return torch.from_numpy(np.memmap(file, dtype=np.float16, mode="c", shape=vectors.shape))
