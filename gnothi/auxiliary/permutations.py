"""Sets of permutations that differ in many places: the classes of a jigsaw puzzle."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gnothi.contracts import SettingError
from gnothi.randomness import generator

Rule = Literal["max_min", "max_avg"]
MOST_TILES = 9
"""Of which all permutations are listed: 362,880."""
GROUPS = {
    8: ((1, 2, 0, 4, 5, 3, 7, 8, 6), (3, 4, 5, 6, 7, 8, 0, 1, 2), (0, 4, 8, 5, 6, 1, 7, 2, 3)),
    7: ((1, 0, 3, 2, 5, 4, 7, 6, 8), (0, 2, 4, 6, 3, 1, 7, 5, 8), (8, 1, 5, 6, 7, 2, 3, 4, 0)),
    6: ((1, 0, 3, 2, 5, 4, 7, 6, 8), (0, 2, 4, 6, 3, 1, 7, 5, 8), (8, 1, 5, 6, 7, 2, 3, 4, 0), (0, 1, 4, 5, 6, 7, 2, 3, 8)),
}
"""Generators of groups on nine points in which any two elements differ in so many places: AGL(1, 9), 72 elements, x + 1, x + i and (1 + i) x over
the numbers a + bi of three; PGL(2, 8), 504, x + 1, ax and 1 / x over those of eight and infinity; PGammaL(2, 8), 1,512, x squared too. The first two
are as large as any such set can be."""


def permutations(tiles: int, count: int, min_distance: int, seed: int, rule: Rule = "max_min", identity: bool = True) -> Tensor:
    """Choose permutations of which any two differ in many places.

    Greedy, as Algorithm 1 of Noroozi and Favaro (arXiv 1603.09246): from a random one on, always the permutation with the largest least ("max_min")
    or mean ("max_avg") Hamming distance to those chosen, the first in the alphabet of the first one. Distances are counted in whole numbers, and
    do not hang on the seed. Where this misses ``min_distance`` for nine tiles, the choice is made within a group that keeps it and is large enough.

    Args:
        tiles: 2 to 9.
        count: how many.
        min_distance: places in which any two differ at least.
        seed: of the first one.
        rule: "max_min" or "max_avg".
        identity: whether the order 0, 1, 2, ... may be among them.

    Returns:
        [count, tiles] int64, a permutation of 0 to tiles - 1 a row.

    Raises:
        SettingError: there is no such set, or none was found.
    """
    if not 2 <= tiles <= MOST_TILES:
        raise SettingError(f"auxiliary.jigsaw.permutations are made of 2 to {MOST_TILES} tiles, got {tiles}")
    most = math.factorial(tiles) - (not identity)
    if not 1 <= count <= most:
        raise SettingError(f"auxiliary.jigsaw.permutations must lie between 1 and {most} for {tiles} tiles, got {count}")
    rows = torch.from_numpy(_chosen(tiles, count, min_distance, rule))
    for attempt in itertools.count():
        # Other names for the tiles keep all distances, so whichever permutation comes first, the set is as good.
        named = torch.randperm(tiles, generator=generator(seed, "permutations", attempt))[rows]
        if identity or not (named == torch.arange(tiles)).all(1).any():
            return named
    raise AssertionError("some renaming has no identity")


def distances(rows: Tensor) -> tuple[int, float]:
    """The least and the mean Hamming distance of different rows of [N, T]."""
    counts = (rows[:, None] != rows).sum(-1)  # [N, N]
    pairs = counts[torch.triu(torch.ones_like(counts), 1).bool()]
    return int(pairs.min()), float(pairs.double().mean())


@functools.lru_cache(maxsize=8)
def _chosen(tiles: int, count: int, min_distance: int, rule: Rule) -> np.ndarray:
    """[count, tiles] int64, the identity first."""
    whole = listed(tiles)
    picks, nearest = greedy(whole, count, rule)
    if nearest[-1] >= min_distance:
        return whole[:, picks].T.astype(np.int64)
    groups = [closure(g) for d, g in GROUPS.items() if d >= min_distance] if tiles == MOST_TILES else []
    for group in groups:
        if count <= group.shape[1]:
            return group[:, greedy(group, count, rule)[0]].T.astype(np.int64)
    largest = max([sum(d >= min_distance for d in nearest), *(group.shape[1] for group in groups)])
    bound = math.factorial(tiles) // math.factorial(min_distance - 1) if min_distance <= tiles else 0
    why = f"no more than {bound} can" if count > bound else f"the largest set known here holds {largest}"
    raise SettingError(
        f"auxiliary.jigsaw.permutations: {count} permutations of {tiles} tiles cannot all differ in {min_distance} places: {why}; "
        f"auxiliary.jigsaw.min_distance={nearest[-1]} works for {count}"
    )


def listed(tiles: int) -> np.ndarray:
    """All permutations in the order of the alphabet, a column each: [T, T!] uint8."""
    n = math.factorial(tiles) * tiles
    return np.ascontiguousarray(np.fromiter(itertools.chain.from_iterable(itertools.permutations(range(tiles))), np.uint8, n).reshape(-1, tiles).T)


def closure(generators: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """All elements of a group, the identity first, in the order of the alphabet: [T, N] uint8."""
    found = {tuple(range(len(generators[0])))}
    fresh = list(found)
    while fresh:
        fresh = list({tuple(g[i] for i in element) for element in fresh for g in generators} - found)
        found.update(fresh)
    return np.array(sorted(found), dtype=np.uint8).T.copy()


def greedy(candidates: np.ndarray, count: int, rule: Rule) -> tuple[list[int], list[int]]:
    """Choose columns of [T, P], the first column first.

    Returns:
        Their numbers, and after each the least distance of any two so far (T after the first). Only the newest one is compared with all: O(N x P).
    """
    tiles, most = candidates.shape
    least = np.full(most, tiles, dtype=np.uint8)
    total = np.zeros(most, dtype=np.int32)
    picks, nearest = [0], [tiles]
    while len(picks) < count:
        distance = np.zeros(most, dtype=np.uint8)
        for place in candidates:
            distance += place != place[picks[-1]]
        np.minimum(least, distance, out=least)
        total += distance
        total[picks[-1]] = -tiles * most  # never again
        picks.append(int(np.argmax(least if rule == "max_min" else total)))  # the first of the largest
        nearest.append(min(nearest[-1], int(least[picks[-1]])))
    return picks, nearest
