"""Classification: a student that names the cluster in which a teacher puts an image (arXiv 1805.00385), or its class where there is no teacher."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gnothi import distributed
from gnothi.contracts import Branch, Carry, DataError, Outputs, Said, Source, Spec, Step, Views, Want
from gnothi.data.balanced import Balanced
from gnothi.data.order import Order
from gnothi.data.targets import Targets
from gnothi.methods.alone import Alone


class ClassifySpec(Spec):
    """Settings of classification."""

    name: Literal["classify"] = "classify"
    targets: str | None = None
    """File of pseudo-labels, which `gnothi transfer` writes. None: the data's own classes, which is supervised learning."""
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Part of the target that all classes share alike."""
    balanced: bool = False
    """Every class of the first head gives the same number of images an epoch; otherwise each image comes once."""
    joint_views: bool = True
    """Crops of one size go through the network as one batch."""


def class_rows(logits: Tensor, index: Tensor, share: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with few classes of many.

    Args:
        logits: [N, K].
        index: [N, m] classes.
        share: [N, m] what each is worth; rows sum to 1, or to 0 where nothing is known and nothing comes out.
        smoothing: part of the target that all classes share alike.

    Returns:
        [N] in nats; log K where the logits are alike.
    """
    said = F.log_softmax(logits, dim=1)  # [N, K]
    told = -(said.gather(1, index) * share).sum(1)
    return told if smoothing == 0 else (1 - smoothing) * told - smoothing * share.sum(1) * said.mean(1)


class Classify(Alone):
    """A linear head for each set of classes: a teacher's clusters, or those of another start of k-means."""

    name, judges = "classify", True
    spec: ClassifySpec  # type: ignore[assignment]  # none of a MethodSpec's heads
    index: Tensor
    share: Tensor

    def __init__(self, backbone: nn.Module, spec: ClassifySpec) -> None:
        super().__init__(backbone, spec)
        self.heads = nn.ModuleList()

    def meet(self, source: Source) -> None:
        """Look up the classes of all images, and build a head for each set of them.

        Raises:
            DataError: an image has no target, or there are no classes.
        """
        self.index, self.share, classes = self._told(source)  # [N, heads, m] each
        self.heads = nn.ModuleList(nn.Linear(int(self.backbone.width), c) for c in classes)  # type: ignore[arg-type]

    def _told(self, source: Source) -> tuple[Tensor, Tensor, list[int]]:
        if self.spec.targets is not None:
            targets = Targets.read(self.spec.targets, "classes")
            rows = targets.rows(source)
            return targets.tensors["index"][rows].long(), targets.tensors["share"][rows].float(), targets.about["classes"]
        if source.labels is None or source.classes is None or not (source.labels >= 0).any():
            raise DataError("method classify needs labels, these images have none; gnothi transfer makes some, method.targets=FILE names them")
        labels = torch.from_numpy(source.labels)
        return labels.clamp_min(0)[:, None, None], (labels >= 0).float()[:, None, None], [len(source.classes)]

    def order(self, n: int, batch: int, seed: int) -> Order | None:
        """Where it is to be balanced, by the first head's classes."""
        if not self.spec.balanced:
            return None
        return Balanced(torch.where(self.share[:, 0].sum(1) > 0, self.index[:, 0, 0], -1), batch, seed)

    def forward(self, views: Views, want: Want, step: Step) -> Outputs:
        """Every crop through network and heads; ``prediction`` holds the logits of all heads side by side."""
        encodings = self.encodings(views.images, want, self.backbone, views.masks)
        said = [self.logits(e.pooled) for e in encodings]
        return Outputs(tuple(Branch(e, Said(x, x)) for e, x in zip(encodings, said, strict=True)), ())

    def logits(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, sum of classes]."""
        return torch.cat([head(features) for head in self.heads], 1)

    def rows(self, logits: Tensor, index: Tensor, share: Tensor, smoothing: float) -> Tensor:
        """Cross-entropy of images, the mean over heads: [B, sum of classes], [B, heads, m] twice -> [B]."""
        parts = logits.split([head.out_features for head in self.heads], 1)
        return torch.stack([class_rows(x, index[:, h], share[:, h], smoothing) for h, x in enumerate(parts)]).mean(0)

    def loss(self, views: Views, outputs: Outputs, step: Step) -> tuple[dict[str, Tensor], Carry]:
        """The mean over crops, heads and images; an image without a target counts as zero."""
        index, share = self._of(views)
        terms = [self.rows(b.said.prediction, index, share, self.spec.smoothing).mean() for b in outputs.online]
        return {self.name: torch.stack(terms).mean()}, Carry()

    def _of(self, views: Views) -> tuple[Tensor, Tensor]:
        device = views.index.device
        where = views.index.cpu()
        return self.index[where].to(device, non_blocking=True), self.share[where].to(device, non_blocking=True)

    def diagnose(self, views: Views, step: Step) -> dict[str, float]:
        """``accuracy``: how often the first head names the nearest cluster of a training image, and ``chance``, the share of the largest one."""
        index, share = self._of(views)
        known = share[:, 0].sum(1) > 0
        pooled = self.encode(views.images[0], statistics="keep").pooled
        right = (self.heads[0](pooled).argmax(1) == index[:, 0, 0]) & known
        counts = torch.bincount(self.index[:, 0, 0][self.share[:, 0].sum(1) > 0])
        accuracy = distributed.mean(right.float().mean()) / distributed.mean(known.float().mean()).clamp_min(1e-9)
        return {"accuracy": float(accuracy), "chance": float(counts.max() / counts.sum())}

    @torch.no_grad()
    def judge(self, vectors: Tensor, source: Source) -> dict[str, Tensor]:
        """``held_out_accuracy`` of the first head, and ``held_out_loss`` over all heads, in nats; of images that have a target."""
        index, share, _ = self._told(source)
        known = share[:, 0].sum(1) > 0
        logits = self.logits(vectors.to(next(self.parameters()).device)).cpu()
        right = logits[:, : self.heads[0].out_features].argmax(1) == index[:, 0, 0]
        return {"held_out_accuracy": right[known].double(), "held_out_loss": self.rows(logits, index, share, 0.0)[known].double()}
