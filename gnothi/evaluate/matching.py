"""Which detections are right, by the rules of VOC07 and of COCO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gnothi.evaluate.average_precision import Ranking
from gnothi.evaluate.scenes import Scenes

OVERLAPS = tuple(0.5 + 0.05 * i for i in range(10))
"""Intersections over unions at which COCO's AP is measured."""
MOST = 100
"""Detections of a class in an image that COCO counts."""


@dataclass(frozen=True)
class Found:
    """What a detector says of an image."""

    boxes: np.ndarray
    """[m, 4] left, top, right, bottom, edges in pixels."""
    scores: np.ndarray
    """[m]."""
    kinds: np.ndarray
    """[m] positions of classes."""

    def of(self, kind: int, most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Boxes and scores of a class, best first."""
        own = np.flatnonzero(self.kinds == kind)
        own = own[np.argsort(-self.scores[own], kind="stable")][:most]
        return self.boxes[own], self.scores[own]


def overlap(a: np.ndarray, b: np.ndarray, crowd: np.ndarray | None = None) -> np.ndarray:
    """Intersection over union, over the first box's own area where the second is a crowd: [m, 4], [n, 4], [n] bool -> [m, n]."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    common = sides.clip(0).prod(-1)
    mine, theirs = (a[:, 2:] - a[:, :2]).prod(-1)[:, None], (b[:, 2:] - b[:, :2]).prod(-1)[None]
    union = mine + theirs - common
    shares: np.ndarray = common / (union if crowd is None else np.where(crowd, mine, union))
    return shares


HIT, MISS, NEITHER = 1, 0, -1


def voc(boxes: np.ndarray, truth: np.ndarray, aside: np.ndarray, least: float = 0.5) -> np.ndarray:
    """Which of an image's detections of a class, best first, are right: each looks at the one object that it overlaps most.

    That must be more than ``least``. A difficult object makes it neither hit nor miss, one that was found already makes it a miss.

    Args:
        boxes: [m, 4].
        truth: [n, 4] objects of the class.
        aside: [n] bool, the difficult ones.
        least: overlap that must be exceeded.

    Returns:
        [m] HIT, MISS or NEITHER.
    """
    said, taken = np.full(len(boxes), MISS), np.zeros(len(truth), dtype=bool)
    shared = overlap(boxes, truth)
    for i in range(len(boxes) if len(truth) else 0):
        j = int(shared[i].argmax())
        if shared[i, j] > least:
            said[i] = NEITHER if aside[j] else MISS if taken[j] else HIT
            taken[j] = True
    return said


def coco(boxes: np.ndarray, truth: np.ndarray, aside: np.ndarray, least: float = 0.5) -> np.ndarray:
    """The same by COCO's rules: each detection takes the object that it overlaps most of those that are left, by at least ``least``.

    A crowd, which may be taken often, is looked at only where no single object is left to take.
    """
    said, left = np.full(len(boxes), MISS), ~aside
    shared = overlap(boxes, truth, aside)
    for i in range(len(boxes) if len(truth) else 0):
        for group, word in ((left, HIT), (aside, NEITHER)):
            near = np.flatnonzero(group & (shared[i] >= min(least, 1 - 1e-10)))
            if len(near):
                best = near[shared[i, near] == shared[i, near].max()][-1]  # pycocotools takes the last of equal ones
                said[i] = word
                left[best] = False
                break
    return said


RULES: dict[str, tuple[Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray], int | None]] = {"voc": (voc, None), "coco": (coco, MOST)}


def rankings(found: Sequence[Found], scenes: Scenes, rule: str, least: float = 0.5) -> list[Ranking]:
    """All detections of each class over all images, best first; those that are neither hit nor miss are left out.

    Args:
        found: of each image of ``scenes``.
        scenes: the truth.
        rule: "voc" or "coco".
        least: overlap of a hit.

    Returns:
        One a class.
    """
    judge, most = RULES[rule]
    made = []
    for kind in range(len(scenes.classes)):
        right, scores, images = [np.zeros(0, dtype=int)], [np.zeros(0)], [np.zeros(0, dtype=int)]
        positives = np.zeros(len(scenes), dtype=np.int64)
        for row, one in enumerate(found):
            own = scenes.kinds[row] == kind
            positives[row] = (own & ~scenes.aside[row]).sum()
            boxes, values = one.of(kind, most)
            right.append(judge(boxes, scenes.boxes[row][own], scenes.aside[row][own], least))
            scores.append(values)
            images.append(np.full(len(boxes), row))
        said, at = np.concatenate(right), np.concatenate(images)
        order = np.argsort(-np.concatenate(scores), kind="stable")
        order = order[said[order] != NEITHER]
        made.append(Ranking(said[order] == HIT, at[order], positives))
    return made
