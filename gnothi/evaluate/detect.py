"""Average precision of a detector fine-tuned over an encoder: VOC07's, the area under the curve, and COCO's."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gnothi.contracts import DataError
from gnothi.data import DataSpec
from gnothi.encoders import Encoder
from gnothi.encoders.encoder import Progress
from gnothi.encoders.network import NetworkEncoder
from gnothi.evaluate.average_precision import Ranking, mean_average_precision, resampled
from gnothi.evaluate.detector import RECALIBRATE, Detector, DetectSpec, SceneBatches
from gnothi.evaluate.finetune import controls, networks, over_repeats
from gnothi.evaluate.fitting import fit, named
from gnothi.evaluate.matching import OVERLAPS, Found, rankings
from gnothi.evaluate.multilabel import difference, interval
from gnothi.evaluate.result import Result
from gnothi.evaluate.scenes import Scenes, split_scenes
from gnothi.models.backbone import build
from gnothi.randomness import generator, seeded
from gnothi.recipes.rules import is_transformer
from gnothi.training.optimisers import OptimiserSpec

METRICS = {"VOC07 AP50": "11-point", "area AP50": "area", "COCO AP": "101-point"}
"""What is measured, and the kind of average precision behind it."""
RULES = {"11-point": "VOC's rules above an overlap of 0.5", "area": "VOC's rules above an overlap of 0.5", "101-point": "COCO's from 0.5 to 0.95"}
"""By what a detection is right."""
CLIP = 10.0
"""Largest norm of the gradient."""


def detect(
    encoders: Sequence[str | Encoder],
    data: str,
    test: str | None = None,
    *,
    spec: DetectSpec = DetectSpec(),  # noqa: B008
    frozen: bool = False,
    control: bool = False,
    repeats: int = 1,
    images: int | None = None,
    test_images: int | None = None,
    annotations: str | None = None,
    settings: DataSpec = DataSpec(),  # noqa: B008
    seed: int = 0,
    out: str | Path | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    shown: bool = False,
) -> list[Result]:
    """Fine-tune torchvision's Faster R-CNN over networks on the same images, and measure it after the last step.

    Args:
        encoders: names, or encoders, that are networks; the first is the one that the others are compared with.
        data: a folder in PASCAL VOC layout, or a COCO JSON file; see ``split_scenes``.
        test: likewise; by default the data's own test list, else a fifth held out.
        spec: how the detectors are made and trained.
        frozen: train each over its frozen backbone, too.
        control: train each architecture from random weights, too.
        repeats: so many seeds from ``seed`` on, of heads, order and random weights; results are then means over them.
        images: train on at most so many, by the seed.
        test_images: test on at most so many.
        annotations: folder of VOC files, where it lies elsewhere.
        settings: of the images.
        seed: of every choice.
        out: folder where the runs lie and are gone on with. None keeps nothing.
        device: where the detectors compute.
        progress: told how many test images are done.
        shown: whether to show how training goes.

    Returns:
        A result for each metric of ``METRICS`` and detector, metrics first; intervals resample test images. ``details`` hold average precision and
        positives by class and, of all but the first detector, ``paired``.

    Raises:
        SettingError: a setting cannot be.
        DataError: there are no boxes, or an image cannot be read.
        EncoderError: an encoder is no network, or cannot feed a detector.
        Interrupted: a signal came.
    """
    opened = networks(encoders, device)
    train, tested = split_scenes(data, test, annotations=annotations, settings=settings, seed=seed)
    train, tested = _some(train, images, seed), _some(tested, test_images, 0)
    if not any(k.size for k in train.kinds):
        raise DataError(f"no box in {train.words}")
    starts = [_Start(e.name, e) for e in opened] + ([_Start(f"{e.name}, frozen", e, frozen=True) for e in opened] if frozen else [])
    if control:
        starts += [_Start(c.name, c.encoder, random=True) for c in controls(opened)]
    for start in starts:
        start.detector(spec, train, seed)  # what cannot be is said before anything is trained
    by_seed = []
    for s in range(seed, seed + repeats):
        found = [start.found(spec, train, tested, s, None if out is None else Path(out).expanduser(), progress, shown) for start in starts]
        by_seed.append(measured([start.name for start in starts], found, tested, f"{spec_words(spec, train)}; {_where(train, tested)}", s))
    if repeats == 1:
        return by_seed[0]
    many = len(starts)
    return [r for i in range(0, len(by_seed[0]), many) for r in over_repeats([results[i : i + many] for results in by_seed], ("classes",))]


def _some(scenes: Scenes, images: int | None, seed: int) -> Scenes:
    if images is None or images >= len(scenes):
        return scenes
    rows = torch.randperm(len(scenes), generator=generator(seed, "scenes")).numpy()[:images]
    return scenes.only(np.sort(rows), f"{images} of {scenes.words} (seed {seed})")


def _where(train: Scenes, tested: Scenes) -> str:
    return train.words if train.words == tested.words else f"trained on {train.words}, tested on {tested.words}"


def spec_words(spec: DetectSpec, train: Scenes) -> str:
    """The protocol of a detector, in words."""
    norm = f"BatchNorm fixed at statistics of {min(RECALIBRATE, len(train))} training images" if spec.norm == "fixed" else "BatchNorm by batch"
    return (
        f"Faster R-CNN (torchvision), up to {spec.levels} levels of {spec.width} channels, {norm}, shorter side {spec.size} px, "
        f"{spec.steps} steps of {min(spec.batch, len(train))} images, {'rate by rule' if spec.lr is None else f'rate {spec.lr:g}'}, cosine to 0, "
        "mirrored half of the time, last step"
    )


# ---- one detector --------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Start:
    name: str
    encoder: NetworkEncoder
    frozen: bool = False
    random: bool = False

    def detector(self, spec: DetectSpec, train: Scenes, seed: int) -> Detector:
        """Over a network of its own, on the device."""
        e = self.encoder
        _ = e.prepare(train.source.image(0)[None])  # channels and range
        own = build(e.spec, e.channels, e.size, seed).to(e.device) if self.random else copy.deepcopy(e.backbone)
        with seeded(seed, "init", 1):
            return Detector(self.name, own, spec, train, e.pixels_of(train.source.dtype), e.size).to(e.device)

    def found(
        self, spec: DetectSpec, train: Scenes, tested: Scenes, seed: int, out: Path | None, progress: Progress | None, shown: bool
    ) -> list[Found]:
        """Train, then look at the test images once."""
        e, detector, batch = self.encoder, self.detector(spec, train, seed), min(spec.batch, len(train))
        few = torch.randperm(len(train), generator=generator(seed, "recalibration"))[:RECALIBRATE].tolist()
        detector.ready(spec.norm, self.frozen, [self._unit(train, row) for row in few])
        transformer = is_transformer(e.spec.name)
        rate = spec.lr or (1e-4 if transformer else 0.02) * batch / 16
        optimiser = OptimiserSpec(name="adamw" if transformer else "sgd", lr=rate, weight_decay=0.05 if transformer else 1e-4, warm_up="5%")
        fit(
            detector,
            SceneBatches(train, e.pixels_of(train.source.dtype), batch, seed, e.device),
            optimiser=optimiser,
            total=spec.steps,
            per_epoch=len(train) // batch,
            seed=seed,
            folder=self._folder(spec, train, seed, out),
            words=f"{self.name}: {len(train)} images, strides {', '.join(str(level.stride) for level in detector.taken)}, seed {seed}",
            shown=shown,
            batch=max(2, batch),
            clip=CLIP,
        )
        detected = []
        for row in range(len(tested)):
            detected += detector.find([self._unit(tested, row)])
            if progress is not None:
                progress(row + 1, len(tested))
        return detected

    def _unit(self, scenes: Scenes, row: int) -> Tensor:
        """[C, H, W] in [0, 1] on the device."""
        return self.encoder.pixels_of(scenes.source.dtype).unit(scenes.source.image(row)).to(self.encoder.device)

    def _folder(self, spec: DetectSpec, train: Scenes, seed: int, out: Path | None) -> Path | None:
        boxes = [[b.tolist(), k.tolist(), a.tolist()] for b, k, a in zip(train.boxes, train.kinds, train.aside, strict=True)]
        about = [self.encoder.fingerprint, self.frozen, self.random, spec.model_dump(mode="json"), train.source.fingerprint(), boxes, seed]
        return None if out is None else out / named(self.name, seed, about)


# ---- measuring -----------------------------------------------------------------------------------
def ranked(found: Sequence[Found], tested: Scenes, metric: str) -> list[Ranking]:
    """Rankings behind a metric of ``METRICS``: of each class, for COCO's AP at each overlap too, overlaps first."""
    if metric != "COCO AP":
        return rankings(found, tested, "voc")
    return [r for least in OVERLAPS for r in rankings(found, tested, "coco", least)]


def measured(names: Sequence[str], found: Sequence[Sequence[Found]], tested: Scenes, words: str, seed: int) -> list[Result]:
    """Results of detectors on the same test images, metrics first.

    Args:
        names: of the detectors.
        found: by each in each test image.
        tested: the truth.
        words: of the protocol.
        seed: of the resampling.
    """
    results = []
    for metric, kind in METRICS.items():
        first: tuple[str, float, np.ndarray] | None = None
        for name, own in zip(names, found, strict=True):
            asked = ranked(own, tested, metric)
            value, each = mean_average_precision(asked, kind)
            drawn = resampled(asked, kind, seed)
            low, high = interval(drawn, value)
            many = len(tested.classes)
            by_class = each.reshape(-1, many).mean(0)
            details: dict[str, Any] = {
                "classes": list(tested.classes),
                "average_precision": [None if np.isnan(v) else v for v in by_class.tolist()],
                "positives": [int(r.positives.sum()) for r in asked[:many]],
            }
            if metric == "COCO AP":
                details |= {"AP50": float(np.nanmean(each[:many])), "AP75": float(np.nanmean(each[5 * many : 6 * many]))}
            if first is not None:
                details["paired"] = difference(first, value, drawn, len(tested))
            first = first or (name, value, drawn)
            said = f"{metric}: {kind} average precision by {RULES[kind]}, mean over classes; {words}; interval by resampling images"
            results.append(Result(metric, value, low, high, len(tested), said, name, (seed,), details))
    return results
