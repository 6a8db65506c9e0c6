"""Clusters of features: k-means over all of them, in memory or block by block from the disk, kept as a codebook that labels other images too."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from gnothi.contracts import DataError, SettingError
from gnothi.files import replace_file, write_text
from gnothi.randomness import generator, number

BLOCK = 8192
"""Rows that are held at a time, besides what ``memory`` allows for the fit."""
PER_CLUSTER, FEWEST, MOST = 200, 10, 2000
"""The rule for k: an image count over the first, within the others."""
SPARE = 16
"""Centroids without members that a pass can give a new place."""
COMFORT = 39
"""Images a cluster below which a codebook says that they are few (FAISS's own limit)."""


def rule(n: int) -> int:
    """How many clusters n images get where nobody says: one for every 200 images, from 10 to 2,000, at most half of n."""
    return max(1, min(MOST, max(FEWEST, n // PER_CLUSTER), n // 2))


def check_k(k: int, n: int) -> None:
    """Refuse more clusters than there are images."""
    if not 1 <= k <= n:
        raise SettingError(f"k must lie between 1 and the number of images, {n}, got {k}; {rule(n)} is the rule's choice")


class Rows:
    """Some rows of features on the disk, as if they were all: they are read as they are asked for.

    Args:
        vectors: [M, D], memory-mapped.
        rows: [N] which.
    """

    def __init__(self, vectors: np.ndarray, rows: np.ndarray) -> None:
        self.vectors, self.rows, self.shape = vectors, rows, (len(rows), vectors.shape[1])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice | np.ndarray) -> np.ndarray:
        chosen: np.ndarray = self.vectors[self.rows[part]]
        return chosen


Features = np.ndarray | Tensor | Rows
"""[N, D] in memory or on the disk."""


@dataclass(frozen=True)
class Fit:
    """How a codebook came to be."""

    seed: int
    rows: int
    """Vectors of the set."""
    used: int
    """Of these, how many k-means saw before its last passes."""
    asked: int
    """k; clusters without a member are dropped, so there may be fewer."""
    passes: int
    """Exact passes over all vectors, block by block; 0 where FAISS had all of them."""
    inertia: float
    """Mean squared distance of all vectors to their centroid."""

    def words(self) -> str:
        """In a line."""
        how = "k-means saw all of them" if self.passes == 0 else f"k-means began with {self.used} of them, then {self.passes} exact passes over all"
        few = f"; {self.rows / self.asked:.0f} images a cluster are few" if self.rows < COMFORT * self.asked else ""
        return f"{self.asked} clusters of {self.rows} vectors: {how}{few}"


@dataclass(frozen=True)
class Codebook:
    """Centroids, and what is done to vectors before they are compared with them."""

    centroids: Tensor
    """[k, d] float32."""
    sizes: Tensor
    """[k] int64: members among the vectors of the fit, each at least one."""
    fit: Fit
    normalise: bool = True
    mean: Tensor | None = None
    """[D] subtracted before the projection; None without one."""
    projection: Tensor | None = None
    """[D, d] principal axes, each divided by its deviation where they are whitened."""

    @property
    def k(self) -> int:
        """Clusters."""
        return len(self.centroids)

    @property
    def imbalance(self) -> float:
        """Sum of squared shares, times k: 1 where all clusters are of one size, k where one has everything."""
        return float(self.k * (self.sizes.double() / self.sizes.sum()).square().sum())

    @property
    def effective(self) -> float:
        """Exp of the entropy of the shares: how many clusters of one size would say as much."""
        share = self.sizes.double() / self.sizes.sum()
        return float(torch.special.entr(share).sum().exp())

    def histogram(self) -> dict[str, float]:
        """Sizes of the clusters in a few numbers."""
        s = self.sizes.double()
        quarter, middle, three = torch.quantile(s, torch.tensor([0.25, 0.5, 0.75], dtype=s.dtype)).tolist()
        found = {"smallest": float(s.min()), "quarter": quarter, "median": middle, "three_quarters": three, "largest": float(s.max())}
        return {**found, "imbalance": self.imbalance, "effective": self.effective}

    def prepare(self, features: Tensor) -> Tensor:
        """[N, D] to what is compared with centroids, [N, d] float32."""
        x = F.normalize(features.float(), dim=1) if self.normalise else features.float()
        if self.mean is None or self.projection is None:
            return x
        x = (x - self.mean) @ self.projection
        return F.normalize(x, dim=1) if self.normalise else x

    def assign(self, features: Features) -> np.ndarray:
        """The nearest centroid of every vector.

        Args:
            features: [N, D], in memory or memory-mapped; a block is held at a time.

        Returns:
            [N] int64 in 0 to k - 1; of centroids equally near the first.

        Raises:
            DataError: vectors of another width, or not finite.
        """
        return self.nearest(features, 1)[0][:, 0]

    def nearest(self, features: Features, m: int) -> tuple[np.ndarray, np.ndarray]:
        """The m nearest centroids of every vector, nearest first.

        Returns:
            Their numbers [N, m] int64 and squared distances [N, m] float32.
        """
        width = len(self.mean) if self.mean is not None else self.centroids.shape[1]
        if features.shape[1] != width:
            raise DataError(f"the codebook was made of vectors of {width} numbers, these have {features.shape[1]}; embed them with the same teacher")
        found = [nearest(self.prepare(block), self.centroids, min(m, self.k)) for block in blocks(features)]
        empty = np.empty((0, min(m, self.k)))
        index = np.concatenate([empty.astype(np.int64), *(i.numpy() for _, i in found)])
        return index, np.concatenate([empty.astype(np.float32), *(d.numpy() for d, _ in found)])

    def soft(self, features: Features, temperature: float, m: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """Softmax of minus the squared distance over a temperature, among the m nearest centroids.

        Returns:
            Numbers of centroids [N, m] int64, nearest first, and their shares [N, m] float32; temperature 0 gives the nearest everything.
        """
        index, distance = self.nearest(features, m if temperature > 0 else 1)
        if temperature == 0:
            return index, np.ones_like(distance)
        return index, torch.from_numpy(distance).double().div(-temperature).softmax(1).float().numpy()

    def save(self, folder: str | Path, name: str = "codebook") -> None:
        """Write ``NAME.safetensors`` and ``NAME.json``."""
        from safetensors.torch import save_file

        optional = {"mean": self.mean, "projection": self.projection}
        tensors = {"centroids": self.centroids, "sizes": self.sizes} | {k: v for k, v in optional.items() if v is not None}
        folder = Path(folder)
        replace_file(folder / f"{name}.safetensors", lambda path: save_file({k: v.contiguous() for k, v in tensors.items()}, path))
        about = {"normalise": self.normalise, "fit": asdict(self.fit), "k": self.k, "histogram": self.histogram()}
        write_text(folder / f"{name}.json", json.dumps(about, indent=1))

    @classmethod
    def load(cls, folder: str | Path, name: str = "codebook") -> Codebook:
        """Read what ``save`` wrote.

        Raises:
            DataError: it is missing or broken.
        """
        from safetensors.torch import load_file

        folder = Path(folder)
        try:
            tensors, about = load_file(folder / f"{name}.safetensors"), json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            return cls(fit=Fit(**about["fit"]), normalise=about["normalise"], **tensors)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise DataError(f"{folder}/{name}: not a whole codebook ({type(error).__name__} {str(error)[:80]})") from None


def cluster(
    features: Features,
    k: int | None = None,
    seed: int = 0,
    *,
    restarts: int = 3,
    iterations: int = 20,
    normalise: bool = True,
    pca: int | None = None,
    whiten: bool = False,
    memory: float = 2.0,
) -> Codebook:
    """Find clusters with k-means on all vectors.

    FAISS fits where all vectors fit into ``memory``; its own limit of 256 vectors a centroid, beyond which it leaves vectors out, is lifted. Where
    they do not fit, it fits on as many random rows as do, and exact passes (Lloyd) over all rows on the disk follow, a block at a time. A centroid
    that loses all its members takes the vector farthest from its own; one that ends without any is dropped.

    Args:
        features: [N, D], in memory or memory-mapped.
        k: clusters; ``rule`` where None.
        seed: of the starting centroids and of the rows of a partial fit.
        restarts: how often FAISS begins anew; the least inertia wins.
        iterations: of each start, and at most so many exact passes.
        normalise: to unit length, before the projection and after it.
        pca: project to so many principal axes.
        whiten: divide each axis by its deviation.
        memory: GiB that may hold vectors in the fit; block and centroids come on top.

    Raises:
        SettingError: k or pca cannot be.
        DataError: a vector is not finite.
    """
    n, width = features.shape
    k = rule(n) if k is None else k
    check_k(k, n)
    if pca is not None and not 1 <= pca <= min(n, width):
        raise SettingError(f"pca must lie between 1 and the smaller of {n} images and {width} features, got {pca}")
    if whiten and pca is None:
        raise SettingError("whiten divides principal axes by their deviation; say with pca how many axes there are to be")
    raw = Codebook(torch.empty(0, width), torch.empty(0), Fit(seed, n, n, k, 0, 0.0), normalise)
    if pca is not None:
        raw = _with_axes(raw, features, pca, whiten)
    held = max(k, int(memory * 2**30 / (4 * (pca or width))))
    chosen = np.arange(n)
    if n > held:
        chosen = torch.randperm(n, generator=generator(seed, "cluster rows"))[:held].sort().values.numpy()
    start = _faiss(_prepared(raw, features, chosen), k, number(seed, "k-means") % 2**31, restarts, iterations)
    passes = 0
    if n > held:
        start, passes = lloyd(lambda: (raw.prepare(b) for b in blocks(features)), start, iterations)
    return _settled(raw, features, start, Fit(seed, n, len(chosen), k, passes, 0.0))


def _prepared(raw: Codebook, features: Features, rows: np.ndarray) -> Tensor:
    """Some vectors as they are compared, [len(rows), d], held once."""
    sample = torch.empty(len(rows), features.shape[1] if raw.projection is None else raw.projection.shape[1])
    at = 0
    for block in blocks(features, rows):
        sample[at : at + len(block)] = raw.prepare(block)
        at += len(block)
    return sample


def _with_axes(raw: Codebook, features: Features, pca: int, whiten: bool) -> Codebook:
    """Principal axes of all vectors, from their moments in float64: [D, D] is held besides a block."""
    width = features.shape[1]
    total, products = torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
    for block in blocks(features):
        x = raw.prepare(block).double()
        total += x.sum(0)
        products += x.T @ x
    mean = total / len(features)
    values, vectors = torch.linalg.eigh(products / len(features) - mean[:, None] * mean)  # ascending
    axes = vectors.flip(1)[:, :pca]
    axes = axes * torch.where(axes.gather(0, axes.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0)  # a sign for good
    if whiten:
        spread = values.flip(0)[:pca].clamp_min(0).sqrt()
        axes = axes / spread.clamp_min(1e-6 * float(spread[0]) + 1e-12)
    return Codebook(raw.centroids, raw.sizes, raw.fit, raw.normalise, mean.float(), axes.float())


def _faiss(x: Tensor, k: int, seed: int, restarts: int, iterations: int) -> Tensor:
    """Centroids [k, d] of [N, d] in memory; every vector counts."""
    import faiss

    more: dict[str, int] = {"min_points_per_centroid": 1, "max_points_per_centroid": math.ceil(len(x) / k) + 1}
    if hasattr(faiss, "ClusteringInitMethod_KMEANS_PLUS_PLUS"):  # older ones begin with random rows, and merge clouds that lie apart
        more["init_method"] = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    kmeans = faiss.Kmeans(x.shape[1], k, niter=iterations, nredo=restarts, seed=seed, **more)
    kmeans.train(x.contiguous().numpy())
    return torch.from_numpy(np.array(kmeans.centroids))


def lloyd(again: Callable[[], Iterable[Tensor]], centroids: Tensor, iterations: int) -> tuple[Tensor, int]:
    """Exact Lloyd iterations over blocks.

    Args:
        again: called for every pass, gives the blocks [b, d] of the same vectors.
        centroids: [k, d] to start from.
        iterations: at most so many passes.

    Returns:
        Centroids and the passes that were taken: fewer where no centroid moves any more.
    """
    k = len(centroids)
    for done in range(iterations):
        sums, counts = torch.zeros_like(centroids, dtype=torch.float64), torch.zeros(k, dtype=torch.int64)
        far: list[tuple[float, Tensor]] = []  # candidates for centroids that lose all members
        for block in again():
            distance, index = nearest(block, centroids, 1)
            sums.index_add_(0, index[:, 0], block.double())
            counts += torch.bincount(index[:, 0], minlength=k)
            far = _farthest(far, block, distance[:, 0])
        moved = (sums / counts.clamp_min(1)[:, None]).to(centroids.dtype)
        for c, (_, vector) in zip((counts == 0).nonzero()[:, 0].tolist(), far, strict=False):
            moved[c] = vector
        if torch.equal(moved, centroids):
            return centroids, done + 1
        centroids = moved
    return centroids, iterations


def _farthest(far: list[tuple[float, Tensor]], block: Tensor, distance: Tensor) -> list[tuple[float, Tensor]]:
    """The vectors farthest from their centroids so far, farthest first."""
    top = distance.topk(min(SPARE, len(distance)))
    found = far + [(float(d), block[i].clone()) for d, i in zip(top.values, top.indices, strict=True)]
    return sorted(found, key=lambda pair: -pair[0])[:SPARE]


def _settled(raw: Codebook, features: Features, centroids: Tensor, fit: Fit) -> Codebook:
    """Members of every centroid among all vectors; those without any go."""
    counts, total = torch.zeros(len(centroids), dtype=torch.int64), 0.0
    for block in blocks(features):
        distance, index = nearest(raw.prepare(block), centroids, 1)
        counts += torch.bincount(index[:, 0], minlength=len(centroids))
        total += float(distance.double().sum())
    fit = Fit(**{**asdict(fit), "inertia": total / fit.rows})
    return Codebook(centroids[counts > 0], counts[counts > 0], fit, raw.normalise, raw.mean, raw.projection)


def nearest(x: Tensor, centroids: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Squared distances to the m nearest centroids and their numbers, [N, m] each, nearest first and of equals the first.

    Distances come from inner products, then once more by subtraction for the m that count: products alone lose small distances.
    """
    scores = x @ centroids.T - centroids.square().sum(1) / 2  # [N, k], largest where nearest
    index = scores.argmax(1, keepdim=True) if m == 1 else scores.topk(m, dim=1).indices
    distance = torch.stack([(x - centroids[index[:, j]]).square().sum(1) for j in range(m)], 1)
    if m > 1:
        distance, order = distance.sort(dim=1, stable=True)
        index = index.gather(1, order)
    return distance, index


def blocks(features: Features, rows: np.ndarray | None = None) -> Iterator[Tensor]:
    """Features [N, D], or some rows of them, block by block, [up to BLOCK, D] float32 each.

    Raises:
        DataError: a number is not finite; the row is named.
    """
    for start in range(0, len(features) if rows is None else len(rows), BLOCK):
        part = slice(start, start + BLOCK) if rows is None else rows[start : start + BLOCK]
        block = features[part]
        x = block.detach().cpu().float() if isinstance(block, Tensor) else torch.from_numpy(np.array(block, dtype=np.float32))
        broken = ~x.isfinite().all(1)
        if broken.any():
            row = int(broken.nonzero()[0, 0])
            raise DataError(f"the features of row {start + row if rows is None else int(rows[start + row])} are not finite; embed these images again")
        yield x


# ---- choosing k ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Stability:
    """What speaks for a number of clusters, without labels."""

    k: int
    agreement: float
    """Adjusted mutual information of two seeds on vectors held out: 1 the same, 0 by chance."""
    effective: float
    """Effective clusters over k, of the first seed."""
    inertia: float


def stability(features: Features, ks: tuple[int, ...], seed: int = 0, *, held: float = 0.2, **settings: object) -> list[Stability]:
    """How well two k-means with other starts agree on vectors that neither saw, for each k.

    Args:
        features: [N, D].
        ks: to try.
        seed: of the split and the starts.
        held: part held out.
        settings: of ``cluster``.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    order = torch.randperm(len(features), generator=generator(seed, "stability")).numpy()
    cut = max(1, round(held * len(features)))
    out, train = (features[np.sort(part)] for part in (order[:cut], order[cut:]))
    found = []
    for k in ks:
        a, b = (cluster(train, k, number(seed, "stability", i) % 2**31, **settings) for i in (0, 1))  # type: ignore[arg-type]
        found.append(Stability(k, float(adjusted_mutual_info_score(a.assign(out), b.assign(out))), a.effective / k, a.fit.inertia))
    return found


def suggested(found: list[Stability]) -> int:
    """The largest k before agreement falls by a tenth of the best of the smaller ones (a rule of thumb, no proof)."""
    chosen, best = found[0].k, found[0].agreement
    for s in sorted(found, key=lambda s: s.k):
        if s.agreement < 0.9 * best:
            break
        chosen, best = s.k, max(best, s.agreement)
    return chosen
