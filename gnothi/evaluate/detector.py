"""torchvision's Faster R-CNN over a backbone of ours, as a method of the loop of pre-training. torchvision is imported only when one is built."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from gnothi.contracts import Carry, EncoderError, GnothiError, Outputs, Pixels, SettingError, Spec, Step, Views, Want
from gnothi.data.order import Order
from gnothi.evaluate.matching import Found
from gnothi.evaluate.scenes import Scenes
from gnothi.methods.alone import Alone
from gnothi.randomness import generator
from gnothi.recipes.spec import checked

FINEST = 4
"""Least stride of a pyramid's levels, in pixels, where the network has coarser blocks."""
ANCHOR = 8
"""Side of a level's anchors over its stride: 32 pixels at stride 4, as torchvision has it."""
ALONE = (2, 4, 8, 16)
"""The same for a network of one stride."""
RATIOS = (0.5, 1.0, 2.0)
"""Heights over widths of anchors."""
LONGEST = 5 / 3
"""Longest side over the shorter one, as 1333 to 800."""
RECALIBRATE = 64
"""Images on which BatchNorm's statistics are taken before they are fixed."""


class DetectSpec(Spec):
    """How a detector is made and trained."""

    size: int = Field(default=320, ge=32)
    """Shorter side of the images in pixels; the longer one is at most 5/3 of it."""
    levels: int = Field(default=4, ge=1)
    """Blocks that feed the pyramid, at most, the coarsest ones; 1: a single level."""
    width: int = Field(default=256, ge=8)
    """Channels of the pyramid; the layers of the head are four times as wide."""
    regions: int = Field(default=512, ge=8)
    """Proposals of an image on which the head is trained."""
    proposals: int = Field(default=1000, ge=8)
    """Proposals of an image and level that are kept, before and after suppression; twice as many before it in training."""
    norm: Literal["fixed", "batch"] = "fixed"
    """BatchNorm's statistics: "fixed", taken on training images first, or those of each "batch"."""
    steps: int = Field(default=1000, ge=1)
    """Steps of training."""
    batch: int = Field(default=4, ge=1)
    """Images a step."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate. None: 0.02 for 16 images (1e-4 with AdamW, for transformers), in proportion to the batch."""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> DetectSpec:
        """Check plain values.

        Raises:
            SettingError: the first mistake, with the nearest right thing.
        """
        return checked(cls, settings, "detect")


class Level(NamedTuple):
    """A block that feeds a detector."""

    block: int
    """Its number, or -1 for the network's own patches, after its final norm."""
    width: int
    stride: int


@torch.no_grad()
def levels(backbone: nn.Module, channels: int, size: int, most: int) -> tuple[Level, ...]:
    """The last block of each stride from 4 pixels on, the ``most`` coarsest, finest first; the network's own patches where all have one stride."""
    numbers = tuple(range(len(backbone.block_widths)))  # type: ignore[arg-type]
    training = backbone.training
    device = next(backbone.parameters()).device
    said = backbone.eval()(torch.zeros(1, channels, size, size, device=device), Want(patches=True, blocks=numbers))
    backbone.train(training)
    by_stride = {size // b.grid[0]: Level(i, b.patches.shape[2], size // b.grid[0]) for i, b in said.blocks.items()}  # a later block takes the place
    if len(by_stride) == 1 and len(numbers) > 1:
        return (Level(-1, said.patches.shape[2], *by_stride),)
    found = sorted(by_stride.values(), key=lambda level: level.stride)
    coarse = [level for level in found if level.stride >= FINEST] or found[-1:]
    return tuple(coarse[-most:])


class Maps(nn.Module):
    """Maps of a backbone's blocks, through a pyramid or, of one level, a 1x1 convolution. It does not own the backbone."""

    def __init__(self, backbone: nn.Module, taken: tuple[Level, ...], width: int) -> None:
        from torchvision.ops import FeaturePyramidNetwork
        from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

        super().__init__()
        self.held, self.taken, self.out_channels = (backbone,), taken, width
        self.joined: nn.Module
        if len(taken) > 1:
            self.joined = FeaturePyramidNetwork([level.width for level in taken], width, extra_blocks=LastLevelMaxPool())
        else:
            self.joined = nn.Conv2d(taken[0].width, width, 1)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """[B, C, H, W] to maps [B, width, h, w], finest first."""
        said = self.held[0](images, Want(patches=True, blocks=tuple(sorted(level.block for level in self.taken if level.block >= 0))))
        places = [said if level.block < 0 else said.blocks[level.block] for level in self.taken]
        maps = OrderedDict((str(i), p.patches.mT.unflatten(2, p.grid).contiguous()) for i, p in enumerate(places))
        return self.joined(maps) if len(self.taken) > 1 else OrderedDict({"0": self.joined(maps["0"])})


class Detector(Alone):
    """A backbone in Faster R-CNN.

    Args:
        name: what a person calls the backbone.
        backbone: the network, which gives blocks with patches.
        spec: settings.
        scenes: images that train, with their boxes.
        pixels: range and statistics of its images.
        size: side of a crop that the backbone surely takes, in pixels.

    Raises:
        EncoderError: the network gives no maps, or takes no images of another shape than a square of one size.
    """

    name = "detect"

    def __init__(self, name: str, backbone: nn.Module, spec: DetectSpec, scenes: Scenes, pixels: Pixels, size: int) -> None:
        super().__init__(backbone, spec)
        detection = _torchvision()
        channels = scenes.source.channels
        self.scenes, self.pixels = scenes, pixels
        if not len(backbone.block_widths):  # type: ignore[arg-type]
            raise EncoderError(f"{name} cannot feed a detector: its network gives only its last output")
        self.taken = levels(backbone, channels, size, spec.levels)
        strides = [level.stride for level in self.taken]
        pyramid = len(self.taken) > 1
        sides = [(ANCHOR * s,) for s in (*strides, 2 * strides[-1])] if pyramid else [tuple(k * strides[0] for k in ALONE)]
        maps = Maps(backbone, self.taken, spec.width)
        names = [str(i) for i in range(len(self.taken))]
        self.divisible = math.lcm(*strides)
        self.net = detection.faster_rcnn.FasterRCNN(
            maps,
            min_size=spec.size,
            max_size=round(LONGEST * spec.size),
            image_mean=pixels.mean,
            image_std=pixels.std,
            size_divisible=self.divisible,
            rpn_anchor_generator=detection.anchor_utils.AnchorGenerator(tuple(sides), (RATIOS,) * len(sides)),
            rpn_pre_nms_top_n_train=2 * spec.proposals,
            rpn_post_nms_top_n_train=2 * spec.proposals,
            rpn_pre_nms_top_n_test=spec.proposals,
            rpn_post_nms_top_n_test=spec.proposals,
            box_roi_pool=_torchvision_ops().MultiScaleRoIAlign(featmap_names=names, output_size=7, sampling_ratio=2),
            box_head=detection.faster_rcnn.TwoMLPHead(spec.width * 49, 4 * spec.width),
            box_predictor=detection.faster_rcnn.FastRCNNPredictor(4 * spec.width, len(scenes.classes) + 1),
            box_batch_size_per_image=spec.regions,
        )
        self._try(name, maps, channels, spec.size)

    @torch.no_grad()
    def _try(self, name: str, maps: Maps, channels: int, size: int) -> None:
        """Whether the network takes an image that is no square of its own size."""
        height, width = (-(-side // self.divisible) * self.divisible for side in (size, round(4 / 3 * size)))
        self.eval()
        try:
            device = next(self.backbone.parameters()).device
            maps.to(device)(torch.zeros(1, channels, height, width, device=device))
        except (GnothiError, AssertionError, RuntimeError, ValueError) as error:
            said = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise EncoderError(f"{name} cannot feed a detector, it does not take images of {width} x {height} pixels: {said}") from None

    def forward(self, views: Views, want: Want, step: Step) -> Outputs:
        """Nothing: a detector's passes are all in its losses."""
        return Outputs((), ())

    def weights(self, step: Step) -> dict[str, float]:
        """All losses alike."""
        return dict.fromkeys(("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"), 1.0)

    def loss(self, views: Views, outputs: Outputs, step: Step) -> tuple[dict[str, Tensor], Carry]:
        """Those of Faster R-CNN (arXiv 1506.01497), by torchvision's names."""
        images, targets = [], []
        for image, place, flip, row in zip(views.images[0], views.boxes[0], views.flips[0], views.index.tolist(), strict=True):
            width, height = (round(side) for side in place[2:].tolist())
            images.append(image[:, :height, :width])
            boxes, kinds = (torch.from_numpy(x[row][~self.scenes.aside[row]]).to(image.device) for x in (self.scenes.boxes, self.scenes.kinds))
            if flip:
                boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
            targets.append({"boxes": boxes.float(), "labels": kinds + 1})
        return self.net(images, targets), Carry()

    def ready(self, norm: str, frozen: bool, images: list[Tensor]) -> None:
        """Put everything into the mode of training: statistics of BatchNorm taken on images and fixed, or those of batches.

        Args:
            norm: "fixed" or "batch".
            frozen: the backbone does not learn at all.
            images: [C, H, W] in [0, 1].
        """
        self.backbone.requires_grad_(not frozen)
        norms = [m for m in self.backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if norm == "fixed" and norms:
            self._recalibrate(norms, images)
        self.train()
        if frozen:
            self.backbone.eval()
        for m in norms if norm == "fixed" else []:
            m.eval()

    @torch.no_grad()
    def _recalibrate(self, norms: list[Any], images: list[Tensor]) -> None:
        """Plain means of the statistics of batches of eight."""
        before = [m.momentum for m in norms]
        for m in norms:
            m.reset_running_stats()
            m.momentum = None
        self.eval()
        for m in norms:
            m.train()
        for i in range(0, len(images), 8):
            self.net.backbone(self.net.transform(images[i : i + 8])[0].tensors)
        for m, momentum in zip(norms, before, strict=True):
            m.momentum = momentum

    @torch.inference_mode()
    def find(self, images: list[Tensor]) -> list[Found]:
        """Detections in whole images [C, H, W] in [0, 1]; in the mode of evaluation."""
        self.eval()
        said = self.net(images)
        return [Found(o["boxes"].double().cpu().numpy(), o["scores"].cpu().numpy(), o["labels"].cpu().numpy() - 1) for o in said]


class SceneBatches:
    """Whole images of a training step by its number, mirrored half of the time, on one canvas; ``boxes`` say how much of it each fills.

    Args:
        scenes: images.
        pixels: their range.
        batch: images of a step.
        seed: of order and mirroring.
        device: where they go.
    """

    def __init__(self, scenes: Scenes, pixels: Pixels, batch: int, seed: int, device: torch.device) -> None:
        self.scenes, self.pixels, self.seed, self.device = scenes, pixels, seed, device
        self.order = Order(len(scenes), batch, seed)

    def __call__(self, number: int) -> Views:
        """The images of step ``number``."""
        rows = self.order.rows(number)
        flips = torch.rand(len(rows), generator=generator(self.seed, "scene flips", number)) < 0.5
        images = [self.pixels.unit(self.scenes.source.image(int(row))) for row in rows]
        images = [image.flip(-1) if flip else image for image, flip in zip(images, flips, strict=True)]
        height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
        canvas = torch.zeros(len(rows), images[0].shape[0], height, width)
        for own, image in zip(canvas, images, strict=True):
            own[:, : image.shape[1], : image.shape[2]] = image
        places = torch.tensor([[[0.0, 0.0, image.shape[2], image.shape[1]] for image in images]])
        turns = torch.zeros(1, len(rows), dtype=torch.long)
        return Views((canvas.to(self.device),), places, flips[None], turns, 1, rows)


def _torchvision() -> Any:
    try:
        from torchvision.models import detection
    except Exception as error:  # a torchvision that does not match torch raises RuntimeError
        said = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise SettingError(f"evaluate detect needs torchvision, which cannot be imported here ({said})") from error
    return detection


def _torchvision_ops() -> Any:
    from torchvision import ops

    return ops
