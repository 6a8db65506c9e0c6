"""Images that occur twice: exactly, by a digest of their pixels, and nearly, by a hash of 64 bits that a thumbnail confirms."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain

import numpy as np

ROWS, COLUMNS = 8, 9
"""Of the thumbnail; each bit of the hash says whether a cell is brighter than its right neighbour."""
DISTANCE = 4
"""Near duplicates differ in at most so many of the 64 bits."""
TOLERANCE = 0.03
"""And their thumbnails by at most this root mean square, of the range of the pixels."""
NEIGHBOURS = 8
BLOCK = 2048


def digest(image: np.ndarray) -> bytes:
    """16 bytes that are the same for the same shape, type and pixels."""
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16, person=repr(image.shape).encode()[:16]).digest()


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Mean over channels and over the cells of an 8 x 9 grid: [C, H, W] -> [8, 9] float32. A cell takes its exact share of a pixel on its edge."""
    _, height, width = image.shape
    means: np.ndarray = (_cells(ROWS, height) @ image.astype(np.float32).mean(0) @ _cells(COLUMNS, width).T).astype(np.float32)
    return means


def hashes(thumbnails: np.ndarray) -> np.ndarray:
    """[N, 8, 9] -> [N] uint64."""
    bits = thumbnails[:, :, :-1] > thumbnails[:, :, 1:]
    return np.packbits(bits.reshape(len(bits), 64), axis=1).view(np.uint64)[:, 0]


def exact_groups(digests: list[bytes]) -> list[list[int]]:
    """Rows of the same digest, where there are several; by their first row."""
    groups: dict[bytes, list[int]] = {}
    for row, value in enumerate(digests):
        groups.setdefault(value, []).append(row)
    return [rows for rows in groups.values() if len(rows) > 1]


def near_groups(thumbnails: np.ndarray) -> list[list[int]]:
    """Rows joined by near duplicates, directly or through others; by their first row.

    Rows of the same hash are compared along their brightness, each with the next ``NEIGHBOURS``; those of different hashes through one row of each
    hash. So a thousand blank images make some thousands of comparisons and not half a million.

    Args:
        thumbnails: [N, 8, 9], of a range of 1.
    """
    n, parent = len(thumbnails), np.arange(len(thumbnails))
    if n < 2:
        return []
    unique, number = np.unique(hashes(thumbnails), return_inverse=True)
    order = np.lexsort((thumbnails.mean((1, 2)), number))
    one = order[np.searchsorted(number[order], np.arange(len(unique)))]
    for pairs in chain(_same(order, number[order]), (one[p] for p in _close(unique))):
        difference = thumbnails[pairs[:, 0]] - thumbnails[pairs[:, 1]]
        for a, b in pairs[np.sqrt((difference**2).mean((1, 2))) <= TOLERANCE].tolist():
            first, second = sorted((_root(parent, a), _root(parent, b)))
            parent[second] = first
    roots = np.array([_root(parent, row) for row in range(n)])
    many = np.flatnonzero(np.bincount(roots, minlength=n) > 1)
    return [np.flatnonzero(roots == root).tolist() for root in many]


def _same(order: np.ndarray, number: np.ndarray) -> Iterator[np.ndarray]:
    """[P, 2] pairs of rows of the same hash; ``number`` says the hash of each row of ``order``, sorted."""
    for step in range(1, NEIGHBOURS + 1):
        place = np.flatnonzero(number[step:] == number[:-step])
        yield np.stack([order[place], order[place + step]], 1)


def _close(values: np.ndarray) -> Iterator[np.ndarray]:
    """[P, 2] pairs of places in ``values`` whose hashes are near, block by block.

    Two hashes that differ in at most ``DISTANCE`` bits agree on one of ``DISTANCE + 1`` bands of bits, so only rows that share a band are compared.
    """
    edges = np.linspace(0, 64, DISTANCE + 2).astype(int)
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        key = (values >> np.uint64(start)) & np.uint64((1 << int(end - start)) - 1)
        order = np.argsort(key, kind="stable")
        cuts = np.flatnonzero(np.diff(key[order])) + 1
        for bucket in np.split(order, cuts):
            for i in range(0, len(bucket) if len(bucket) > 1 else 0, BLOCK):
                for j in range(i, len(bucket), BLOCK):
                    left, right = bucket[i : i + BLOCK], bucket[j : j + BLOCK]
                    a, b = np.nonzero(np.bitwise_count(values[left][:, None] ^ values[right][None]) <= DISTANCE)
                    keep = left[a] < right[b]
                    yield np.stack([left[a][keep], right[b][keep]], 1)


def _root(parent: np.ndarray, row: int) -> int:
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = int(parent[row])
    return row


@lru_cache(maxsize=256)
def _cells(cells: int, size: int) -> np.ndarray:
    """[cells, size] weights of an area mean; rows sum to 1."""
    edges = np.linspace(0, size, cells + 1)
    low, high = np.maximum(edges[:-1, None], np.arange(size)), np.minimum(edges[1:, None], np.arange(size) + 1)
    weights: np.ndarray = np.maximum(high - low, 0) * cells / size
    return weights.astype(np.float32)
