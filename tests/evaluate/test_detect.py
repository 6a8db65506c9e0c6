"""Detectors over encoders: torchvision's own network with the same weights, what learns, what a stopped run does, and one line for each mistake."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toys
from scenery import scenery
from terminal import said
from torch import nn

from gnothi.contracts import DataError, EncoderError, Pixels, SettingError, Step, Want
from gnothi.encoders.network import NetworkEncoder
from gnothi.evaluate import DetectSpec, detect
from gnothi.evaluate.detect import measured
from gnothi.evaluate.detector import Detector, Maps, SceneBatches, levels
from gnothi.evaluate.scenes import scenes, split_scenes
from gnothi.models.backbone import BackboneSpec, adopt, build
from gnothi.training.signals import Interrupted

MODULE, FITTING = sys.modules["gnothi.evaluate.detect"], sys.modules["gnothi.evaluate.fitting"]
MICRO = BackboneSpec(args={"widths": [4, 4, 8, 8]})
VIT = BackboneSpec(name="micro-vit", args={"width": 12, "depth": 2, "heads": 2}, patch_size=8)
PIXELS = Pixels(0.0, 255.0, (0.4, 0.5, 0.6), (0.25,) * 3)
SMALL = {"size": 32, "width": 8, "regions": 16, "proposals": 20, "batch": 2}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("gnothi.evaluate.average_precision.RESAMPLES", 50)


def encoder(seed=0, spec=MICRO, name="micro", size=32):
    return NetworkEncoder(name, build(spec, 3, size, seed), spec, 3, size, PIXELS)


def detector(folder, spec=MICRO, **settings):
    scenery(folder, 8)
    return Detector("x", build(spec, 3, 64, 0), DetectSpec(**{**SMALL, **settings}), scenes(str(folder)), PIXELS, 64)


# ---- the network --------------------------------------------------------------------------------
def test_levels_are_the_last_block_of_each_stride_from_four_on():
    resnet, vit = build(MICRO, 3, 32, 0), build(VIT, 3, 64, 0)
    assert [(v.block, v.width, v.stride) for v in levels(resnet, 3, 32, 4)] == [(2, 8, 4), (3, 8, 8)]
    assert [v.block for v in levels(resnet, 3, 32, 1)] == [3] and resnet.training
    assert [(v.block, v.width, v.stride) for v in levels(vit, 3, 64, 4)] == [(-1, 12, 8)]
    assert [v.stride for v in levels(build(BackboneSpec(args={"widths": [4, 4]}), 3, 32, 0), 3, 32, 4)] == [2]


def test_maps_are_those_of_torchvision_with_the_same_weights():
    from torchvision.models import resnet18
    from torchvision.models.detection.backbone_utils import BackboneWithFPN

    own = build(BackboneSpec(name="resnet18", stem="plain"), 3, 64, 0).eval()
    theirs = resnet18(weights=None)
    theirs.load_state_dict({k: v for k, v in own.net.state_dict().items()} | {k: v for k, v in theirs.state_dict().items() if k.startswith("fc.")})
    taken = levels(own, 3, 64, 4)
    assert [v.stride for v in taken] == [4, 8, 16, 32]
    maps = Maps(own, taken, 16)
    joined = BackboneWithFPN(theirs, {f"layer{i}": str(i - 1) for i in range(1, 5)}, [64, 128, 256, 512], 16).eval()
    joined.fpn.load_state_dict(maps.joined.state_dict())
    images = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        a, b = maps(images), joined(images)
    assert list(a) == list(b) == ["0", "1", "2", "3", "pool"]
    for key, value in a.items():
        torch.testing.assert_close(value, b[key], rtol=1e-4, atol=1e-5)


def test_a_transformer_gives_its_patches_after_the_final_norm():
    vit = build(VIT, 3, 64, 0).eval()
    maps, images = Maps(vit, levels(vit, 3, 64, 4), 8), torch.randn(2, 3, 32, 64)
    patches = vit(images, Want(patches=True)).patches  # [B, 4 * 8, 12]
    grid = torch.stack([patches[:, 8 * row : 8 * row + 8] for row in range(4)], 1).permute(0, 3, 1, 2)
    torch.testing.assert_close(maps(images)["0"], F.conv2d(grid, maps.joined.weight, maps.joined.bias))


def test_anchors_are_eight_strides_wide_a_level_and_of_four_sizes_where_there_is_one(tmp_path):
    assert detector(tmp_path / "a").net.rpn.anchor_generator.sizes == ((32,), (64,), (128,))
    assert detector(tmp_path / "b", VIT).net.rpn.anchor_generator.sizes == ((16, 32, 64, 128),)
    assert detector(tmp_path / "c", levels=1).net.rpn.anchor_generator.sizes == ((16, 32, 64, 128),)


class Hearing(nn.Module):
    def forward(self, images, targets):
        self.heard = images, targets
        return {}


def test_targets_are_the_boxes_where_the_pixels_are_mirrored_or_not(tmp_path):
    d = detector(tmp_path)
    d.scenes.aside[3][:] = True
    d.net = Hearing()
    batches = SceneBatches(d.scenes, PIXELS, 8, 0, torch.device("cpu"))
    views = batches(0)
    assert 0 < views.flips.sum() < 8 and torch.equal(views.images[0], batches(0).images[0]) and sorted(views.index.tolist()) == list(range(8))
    d.loss(views, d(views, None, None), Step(0, 0, 1))
    for image, target, row in zip(*d.net.heard, views.index.tolist(), strict=True):
        assert image.shape == (3, 48, 64) and len(target["boxes"]) == (0 if row == 3 else len(d.scenes.boxes[row]))
        for box, label in zip(target["boxes"].int().tolist(), target["labels"].tolist(), strict=True):
            patch = image[:, box[1] : box[3], box[0] : box[2]]
            assert (patch == (230 if d.scenes.classes[label - 1] == "square" else 20) / 255).all()


def test_images_of_several_sizes_share_a_canvas_and_keep_their_own(tmp_path):
    scenery(tmp_path / "a", 3)
    scenery(tmp_path / "b", 3, size=(64, 56))
    for path in (tmp_path / "b").rglob("*.*"):
        path.rename(tmp_path / "a" / path.relative_to(tmp_path / "b").with_stem("b" + path.stem))
    found = scenes(str(tmp_path / "a"))
    views = SceneBatches(found, PIXELS, 6, 0, torch.device("cpu"))(0)
    assert views.images[0].shape == (6, 3, 64, 64)
    for image, place, flip, row in zip(views.images[0], views.boxes[0], views.flips[0], views.index.tolist(), strict=True):
        _, height, width = found.source.image(row).shape
        assert place.tolist() == [0, 0, width, height]
        own = image[:, :height, :width].flip(-1) if flip else image[:, :height, :width]
        assert torch.equal(own, found.source.image(row).float() / 255) and image.sum() == pytest.approx(float(own.sum()), rel=1e-5)


# ---- what learns --------------------------------------------------------------------------------
def test_batchnorm_is_fixed_at_the_statistics_of_training_images(tmp_path):
    d = detector(tmp_path)
    images = [torch.rand(3, 48, 64) for _ in range(8)]
    taken = []
    d.backbone.bn1.register_forward_hook(lambda module, inputs, output: taken.append(inputs[0].detach()))
    d.ready("fixed", False, images)
    x = taken[0].transpose(0, 1).flatten(1)
    torch.testing.assert_close(d.backbone.bn1.running_mean, x.mean(1))
    torch.testing.assert_close(d.backbone.bn1.running_var, x.var(1))
    norms = [m for m in d.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not any(m.training for m in norms) and d.backbone.training and d.net.training and norms[0].momentum == 0.1
    d.ready("batch", False, images)
    assert all(m.training for m in norms)
    d.ready("fixed", True, images)
    assert not d.backbone.training and d.net.rpn.training and not any(p.requires_grad for p in d.backbone.parameters())


def test_frozen_networks_stay_and_others_learn(tmp_path):
    scenery(tmp_path, 8, lists=True)
    train, tested = split_scenes(str(tmp_path))
    spec = DetectSpec(**SMALL, steps=2, lr=0.01)
    for frozen in (True, False):
        start = MODULE._Start("micro", encoder(), frozen=frozen)
        kept, before = [], toys.parameters(start.encoder.backbone)
        real = start.detector

        def listening(*given, real=real, kept=kept):
            kept.append(real(*given))
            return kept[-1]

        object.__setattr__(start, "detector", listening)
        start.found(spec, train, tested, 0, None, None, False)
        same = {k: torch.equal(v, before[k]) for k, v in kept[0].backbone.named_parameters()}
        assert all(same.values()) if frozen else not any(same.values())
        assert all(torch.equal(v, before[k]) for k, v in start.encoder.backbone.state_dict().items())


def test_detectors_are_measured_beside_frozen_and_random_ones(tmp_path):
    scenery(tmp_path, 8, lists=True)
    spec = DetectSpec(**SMALL, steps=2)
    results = detect([encoder(), encoder(1, VIT, "vit")], str(tmp_path), spec=spec, frozen=True, control=True)
    names = ["micro", "vit", "micro, frozen", "vit, frozen", "micro-resnet, random weights", "micro-vit, random weights"]
    assert [(r.metric, r.encoder) for r in results] == [(m, n) for m in ("VOC07 AP50", "area AP50", "COCO AP") for n in names]
    assert all(r.details["paired"]["against"] == "micro" for r in results if r.encoder != "micro") and results[0].n == 2
    assert "shorter side 32 px, 2 steps of 2 images" in results[0].protocol and "@trainval (6 images), tested on" in results[0].protocol


def test_repeats_give_means_over_seeds(tmp_path, monkeypatch):
    scenery(tmp_path, 8, lists=True)
    _, tested = split_scenes(str(tmp_path))
    told = {s: [np.random.default_rng(s)] for s in (4, 5)}

    def found(self, spec, train, tested, seed, *_):
        assert seed in told
        keep = [slice(None) if seed == 4 or i else slice(0) for i in range(len(tested))]
        return [MODULE.Found(b[k], np.ones(len(b[k])), c[k]) for b, c, k in zip(tested.boxes, tested.kinds, keep, strict=True)]

    monkeypatch.setattr(MODULE._Start, "found", found)
    results = detect([encoder()], str(tmp_path), spec=DetectSpec(**SMALL), seed=4, repeats=2)
    each = [measured(["micro"], [found(None, None, None, tested, s)], tested, "", s) for s in (4, 5)]
    for i, r in enumerate(results):
        assert r.details["values"] == [e[i].value for e in each] and r.value == pytest.approx(np.mean(r.details["values"])) and r.seeds == (4, 5)
    assert results[0].details["classes"] == ["bar", "square"]


def test_a_stopped_run_goes_on_as_if_it_had_not(tmp_path, monkeypatch):
    scenery(tmp_path / "images", 8, lists=True)
    spec = DetectSpec(**SMALL, steps=5)
    whole = detect([encoder()], str(tmp_path / "images"), spec=spec, out=tmp_path / "whole")

    real = FITTING.Learner

    class Stopping(real):
        def step(self):
            super().step()
            if self.number == 3:
                self.save()
                raise Interrupted("stopped", 15)

    monkeypatch.setattr(FITTING, "Learner", Stopping)
    with pytest.raises(Interrupted, match="stopped after step 3 of 5; the same command goes on"):
        detect([encoder()], str(tmp_path / "images"), spec=spec, out=tmp_path / "parts")
    monkeypatch.setattr(FITTING, "Learner", real)
    assert detect([encoder()], str(tmp_path / "images"), spec=spec, out=tmp_path / "parts") == whole
    a, b = (next((tmp_path / name).glob("*/step-0000005.safetensors")).read_bytes() for name in ("whole", "parts"))
    assert a[-20000:] == b[-20000:]


# ---- mistakes -----------------------------------------------------------------------------------
def test_a_mistake_is_one_line_before_anything_is_trained(tmp_path, monkeypatch):
    scenery(tmp_path, 8)
    monkeypatch.setattr(MODULE, "fit", None)
    adopted = NetworkEncoder("own", adopt(nn.Conv2d(3, 4, 3), 4), MICRO, 3, 32, PIXELS)
    square = NetworkEncoder("square", Square(), MICRO, 3, 32, PIXELS)
    grey = NetworkEncoder("grey", build(MICRO, 1, 32, 0), MICRO, 1, 32, Pixels(0.0, 255.0, (0.5,), (0.25,)))
    for given, line in (
        ("pixels", "pixels cannot be fine-tuned, it is not a network"),
        (adopted, "own cannot feed a detector: its network gives only its last output"),
        (square, "square cannot feed a detector, it does not take images of 48 x 32 pixels: squares only"),
        (grey, "grey takes images of 1 channel, these have 3"),
    ):
        with pytest.raises(EncoderError, match=line) as caught:
            detect([given], str(tmp_path), spec=DetectSpec(**SMALL))
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no such folder; boxes need"):
        detect([encoder()], "photos")
    for given, line in (({"stpes": 1}, "did you mean steps"), ({"size": 8}, "detect.size must be greater than or equal to 32, got 8")):
        with pytest.raises(SettingError, match=line):
            DetectSpec.of(given)


class Square(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = build(MICRO, 3, 32, 0)
        self.width, self.block_widths = self.inner.width, self.inner.block_widths

    def forward(self, images, want):
        if images.shape[2] != images.shape[3]:
            raise SettingError("squares only")
        return self.inner(images, want)


# ---- in earnest ---------------------------------------------------------------------------------
@pytest.mark.slow
def test_squares_and_bars_are_found(tmp_path):
    scenery(tmp_path, 40, lists=True)
    spec = DetectSpec(size=48, width=32, regions=64, proposals=100, batch=4, steps=300)
    results = detect([encoder(spec=BackboneSpec())], str(tmp_path), spec=spec)
    assert results[0].value > 0.6, results[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100", "convnext_atto", "vit_tiny_patch16_224"])
def test_timm_networks_feed_a_detector(tmp_path, name):
    scenery(tmp_path, 8, lists=True)
    e = encoder(spec=BackboneSpec(name=name, stem="plain" if "resnet" in name else None), size=224 if "vit" in name else 64)
    results = detect([e], str(tmp_path), spec=DetectSpec(**SMALL | {"size": 64}, steps=2))
    assert len(results) == 3


@pytest.mark.slow
def test_a_folder_from_the_command_line(tmp_path):
    scenery(tmp_path / "images", 8, lists=True)
    small = "--steps 2 --size 64 --width 16 --regions 16 --proposals 20 --images 4 --test-images 1 --frozen".split()
    given = ("evaluate", "detect", "timm:resnet10t@untrained", "--data", tmp_path / "images", *small, "--out", tmp_path / "runs")
    results = said(*given)["results"]
    assert len(results) == 6 and results[0]["details"]["classes"] == ["bar", "square"] and results[0]["n"] == 1
    assert "trained on 4 of" in results[0]["protocol"] and said(*given)["results"] == results
