"""Hits and misses of detectors: VOC's code as a plain loop, pycocotools, and cases by hand."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
import torch

from gnothi.data import ArraySource
from gnothi.evaluate.average_precision import average_precision, mean_average_precision
from gnothi.evaluate.detect import measured, ranked
from gnothi.evaluate.matching import HIT, MISS, NEITHER, Found, coco, overlap, rankings, voc
from gnothi.evaluate.scenes import Scenes
from gnothi.randomness import generator


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("gnothi.evaluate.average_precision.RESAMPLES", 200)


def drawn(n=12, seed=0, classes=("a", "b", "c"), whole=True):
    """Random scenes, and detections that are near their objects or anywhere; corners at whole pixels, scores that differ."""
    g = generator(seed, "scenes")

    def integers(low, high, *shape):
        return torch.randint(low, high, shape, generator=g).numpy()

    boxes, kinds, aside, found = [], [], [], []
    for _ in range(n):
        many = int(integers(0, 7, 1)[0])
        corner, side = integers(0, 60, many, 2), integers(8, 40, many, 2)
        boxes.append(np.concatenate([corner, corner + side], 1).astype(float))
        kinds.append(integers(0, len(classes), many))
        aside.append(integers(0, 4, many) == 0)
        near = np.repeat(boxes[-1], 3, 0) + integers(-6, 7, 3 * many, 4)
        far_corner = integers(0, 60, 5, 2)
        far = np.concatenate([far_corner, far_corner + integers(8, 40, 5, 2)], 1)
        every = np.concatenate([near, far]).astype(float)
        every[:, 2:] = np.maximum(every[:, 2:], every[:, :2] + 1)
        every += 0 if whole else torch.rand(every.shape, generator=g).numpy()
        labels = np.concatenate([np.repeat(kinds[-1], 3), integers(0, len(classes), 5)])
        found.append(Found(every, torch.rand(len(every), generator=g, dtype=torch.float64).numpy(), labels))
    source = ArraySource(torch.zeros(n, 3, 120, 120, dtype=torch.uint8))
    return Scenes(source, tuple(classes), boxes, kinds, aside, "drawn"), found


def voc_eval(scenes, found, kind, eleven):
    """The published code of VOC07 (py-faster-rcnn's voc_eval.py) in plain steps: pixels counted from 1, the last one included."""
    lines = [(s, i, b + [1, 1, 0, 0]) for i, f in enumerate(found) for s, b, k in zip(f.scores, f.boxes, f.kinds, strict=True) if k == kind]
    lines.sort(key=lambda line: -line[0])
    truth = [[[b + [1, 1, 0, 0], d, False] for b, k, d in zip(scenes.boxes[i], scenes.kinds[i], scenes.aside[i], strict=True) if k == kind]
             for i in range(len(scenes))]  # fmt: skip
    positives = sum(not d for own in truth for _, d, _ in own)
    tp, fp, points = 0, 0, []
    for _, image, box in lines:
        best, which = -np.inf, None
        for object_ in truth[image]:
            t = object_[0]
            w = max(min(box[2], t[2]) - max(box[0], t[0]) + 1, 0)
            h = max(min(box[3], t[3]) - max(box[1], t[1]) + 1, 0)
            union = (box[2] - box[0] + 1) * (box[3] - box[1] + 1) + (t[2] - t[0] + 1) * (t[3] - t[1] + 1) - w * h
            if w * h / union > best:
                best, which = w * h / union, object_
        if best > 0.5:
            if which[1]:
                continue
            tp, fp = (tp + 1, fp) if not which[2] else (tp, fp + 1)
            which[2] = True
        else:
            fp += 1
        points.append((tp / positives, tp / (tp + fp)))
    if eleven:
        return sum(max((p for r, p in points if r >= t), default=0.0) for t in np.arange(0.0, 1.1, 0.1)) / 11
    area, before = 0.0, 0.0
    for recall, _ in points:
        area += (recall - before) * max(p for r, p in points if r >= recall)
        before = recall
    return area


@pytest.mark.parametrize("seed", range(4))
def test_voc07_is_its_published_code(seed):
    scenes, found = drawn(seed=seed)
    for kind, r in enumerate(rankings(found, scenes, "voc")):
        for how, eleven in (("11-point", True), ("area", False)):
            expected = voc_eval(scenes, found, kind, eleven)
            assert 0 < expected < 1 and average_precision(r.right, r.positives.sum(), how) == pytest.approx(expected, abs=1e-12)


def coco_eval(scenes, found):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    sides = [(i, k, b, c) for i in range(len(scenes)) for b, k, c in zip(scenes.boxes[i], scenes.kinds[i], scenes.aside[i], strict=True)]
    told = [
        {"id": n, "image_id": i + 1, "category_id": int(k) + 1, "iscrowd": int(c), "bbox": [*b[:2], *(b[2:] - b[:2])], "area": (b[2:] - b[:2]).prod()}
        for n, (i, k, b, c) in enumerate(sides, 1)
    ]
    said = [
        {"image_id": i + 1, "category_id": int(k) + 1, "bbox": [*b[:2], *(b[2:] - b[:2])], "score": float(s)}
        for i, f in enumerate(found)
        for b, s, k in zip(f.boxes, f.scores, f.kinds, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        images = [{"id": i + 1} for i in range(len(scenes))]
        api.dataset = {"info": {}, "images": images, "annotations": told, "categories": [{"id": i + 1} for i in range(len(scenes.classes))]}
        api.createIndex()
        judged = COCOeval(api, api.loadRes(said), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return judged.stats


@pytest.mark.parametrize(("seed", "whole"), [(0, True), (1, True), (2, False), (3, False)])
def test_coco_s_average_precision_is_pycocotools(seed, whole):
    pytest.importorskip("pycocotools", reason="pip install gnothi[detect]")
    scenes, found = drawn(n=20, seed=seed, whole=whole)
    stats = coco_eval(scenes, found)
    result = next(r for r in measured(["x"], [found], scenes, "", 0) if r.metric == "COCO AP")
    assert result.value == pytest.approx(stats[0], abs=1e-9) and 0.05 < result.value < 0.95
    assert result.details["AP50"] == pytest.approx(stats[1], abs=1e-9) and result.details["AP75"] == pytest.approx(stats[2], abs=1e-9)


def test_a_hundred_detections_of_a_class_and_image_count_for_coco():
    pytest.importorskip("pycocotools", reason="pip install gnothi[detect]")
    scenes, found = drawn(n=3, seed=5, classes=("a",))
    g = generator(0, "many")
    many = [Found(np.repeat(f.boxes, 9, 0), torch.rand(9 * len(f.boxes), generator=g).double().numpy(), np.repeat(f.kinds, 9)) for f in found]
    assert max(len(f.boxes) for f in many) > 100
    value, _ = mean_average_precision(ranked(many, scenes, "COCO AP"), "101-point")
    assert value == pytest.approx(coco_eval(scenes, many)[0], abs=1e-9)
    assert [len(r.right) for r in rankings(many, scenes, "voc")] > [len(r.right) for r in rankings(many, scenes, "coco")]


def test_an_overlap_is_common_area_over_joint_area_and_over_the_own_for_crowds():
    a, b = np.array([[0.0, 0, 10, 10]]), np.array([[5.0, 0, 15, 10], [20.0, 20, 30, 30], [0.0, 0, 10, 40]])
    assert overlap(a, b).tolist() == [[50 / 150, 0, 0.25]]
    assert overlap(a, b, np.array([True, False, True])).tolist() == [[0.5, 0, 1.0]]


def test_a_second_find_is_a_miss_a_difficult_one_neither_and_exactly_half_is_no_hit_for_voc():
    truth, aside = np.array([[0.0, 0, 10, 10], [50.0, 50, 60, 60]]), np.array([False, True])
    boxes = np.array([[0.0, 0, 10, 10], [0.0, 0, 10, 9], [50.0, 50, 60, 60], [50.0, 50, 60, 60], [80.0, 80, 90, 90]])
    assert voc(boxes, truth, aside).tolist() == [HIT, MISS, NEITHER, NEITHER, MISS] == coco(boxes, truth, aside).tolist()
    half = np.array([[0.0, 0, 10, 20]])
    assert voc(half, truth, aside).tolist() == [MISS] and coco(half, truth, aside).tolist() == [HIT]
    assert voc(boxes[:2], np.zeros((0, 4)), np.zeros(0, dtype=bool)).tolist() == [MISS, MISS]


def test_a_taken_object_sends_coco_on_to_the_next_and_voc_not():
    truth, aside = np.array([[0.0, 0, 10, 10], [0.0, 2, 10, 12]]), np.array([False, False])
    boxes = np.array([[0.0, 0, 10, 10], [0.0, 0.5, 10, 10.5]])
    assert voc(boxes, truth, aside).tolist() == [HIT, MISS] and coco(boxes, truth, aside).tolist() == [HIT, HIT]


def test_better_detections_measure_better_and_the_difference_is_paired():
    scenes, found = drawn(n=30, seed=7)
    perfect = [Found(b, np.full(len(b), 0.9), k) for b, k in zip(scenes.boxes, scenes.kinds, strict=True)]
    results = measured(["rough", "perfect"], [found, perfect], scenes, "so", 0)
    assert [(r.metric, r.encoder) for r in results] == [(m, e) for m in ("VOC07 AP50", "area AP50", "COCO AP") for e in ("rough", "perfect")]
    for rough, best in zip(results[::2], results[1::2], strict=True):
        assert best.value == 1 == best.low and rough.low < rough.value < rough.high < 1 and best.n == 30
        p = best.details["paired"]
        assert p["value"] == pytest.approx(1 - rough.value) and 0 < p["low"] < p["value"] < p["high"] and p["against"] == "rough"
        assert rough.details["positives"] == [sum(((k == c) & ~a).sum() for k, a in zip(scenes.kinds, scenes.aside, strict=True)) for c in range(3)]
