"""Layer-wise self-distillation beside any method: lower blocks learn from the last (SDSSL, Jang et al. 2023, arXiv 2111.12958).

Every hidden block gets a head of its own, and the method's own loss compares what it says of a view with the final projection of the other view, the
teacher's where there is one, without gradient. The loss rises from nothing; beside it, all predictors are taught on detached projections, because the
small share of a block leaves its predictor far from optimal.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from gnothi.auxiliary.auxiliary import Auxiliary, AuxiliarySpec
from gnothi.contracts import Branch, Carry, Outputs, Said, SettingError, Step, Views, Want
from gnothi.methods import Method, Space
from gnothi.methods.simclr import SimCLRSpace
from gnothi.models.heads import Head
from gnothi.models.teacher import follow, twin
from gnothi.schedules import cosine, linear
from gnothi.views.batches import ViewsSpec

WEIGHTS = {"moco": 1.0, "byol": 0.8, "simclr": 0.8}
"""At the end of training, for a ViT-B/16 (SD_*.json of the authors' code)."""
REMEMBER = {"dino": "centre", "swav": "queue"}
"""Methods whose targets lean on a memory of final projections, which means nothing to those of another block."""


class LayersSpec(AuxiliarySpec):
    """Settings of layers."""

    weight: float | None = Field(default=None, ge=0)  # type: ignore[assignment]  # settled to a number before a run is built
    """Weight of the lower blocks' loss at the end of training. None: 1 for MoCo, 0.8 for BYOL and SimCLR, as the authors' code has it for a ViT-B;
    0.5 for the others; by rule 0.2 with a CNN, as that code has it for a ResNet-18."""
    schedule: Literal["half_cosine", "constant", "linear"] = "half_cosine"
    """How the weight gets there: from 0 at ``start`` by half a cosine or a line, or it is the same all the time."""
    layers: Literal["all"] | tuple[int, ...] = "all"
    """Blocks that learn, counted from 0, or from the end as -2: all but the last. An empty list leaves the predictor-only term, as a control."""
    reduce: Literal["mean", "sum"] = "mean"
    """Over these blocks."""
    target_layer: int = -1
    """Block that they learn from; a hidden one needs to be one of ``layers``."""
    target_view: Literal["other", "same"] = "other"
    """Of which global view the target is; "same" exchanges the two."""
    mask_own_view: bool = True
    """SimCLR: a block's own view at the target is no negative. False gives every image a near-copy to tell apart."""
    norm: Literal["shared", "separate", "plain", "none"] = "shared"
    """Before a head: the backbone's final norm where it has one of the block's width; a LayerNorm a block; one without scale and shift; none."""
    hidden: int | None = Field(default=None, gt=0)
    """Width of the hidden layers of the blocks' projectors. None: half of the method's."""
    last_norm: bool | None = None
    """A norm without scale and shift after the blocks' projectors. None: where the method has one."""
    prototypes: Literal["shared", "own"] = "shared"
    """DINO and SwAV: the final head's prototypes, which take no gradient from lower blocks, or a set a block, as the authors' branch has them."""
    predictor_only: float = Field(default=1.0, ge=0)
    """Weight of the predictor-only term, a sum over the blocks; it is not scheduled. Only BYOL, MoCo and SimSiam have predictors."""
    predictor_only_final: bool = True
    """The last block's predictor takes part in that term."""

    def settled(self, method: str, views: ViewsSpec | None = None) -> Self:
        """The weight, by method."""
        return self if self.weight is not None else self.model_copy(update={"weight": WEIGHTS.get(method, 0.5)})

    @field_validator("layers", mode="before")
    @classmethod
    def _layers(cls, given: Any) -> Any:
        whole = isinstance(given, list | tuple) and all(isinstance(n, int) and not isinstance(n, bool) for n in given)
        if given != "all" and not whole:
            raise ValueError(f'must be "all" or a list of block numbers such as [2, 4], got {given!r}')
        return given


class Exit(nn.Module):
    """A block's norm and head."""

    def __init__(self, norm: nn.Module, head: Head) -> None:
        super().__init__()
        self.norm, self.head = norm, head

    def forward(self, features: Tensor) -> Said:
        """[B, D] -> projection [B, P] and prediction [B, Q]."""
        said: Said = self.head(self.norm(features))
        return said


class Layers(Auxiliary):
    """A head for every hidden block, compared by the method's own rule."""

    name = "layers"
    spec: LayersSpec

    def __init__(self, method: Method, spec: LayersSpec) -> None:
        super().__init__(method, spec)
        widths: tuple[int, ...] = tuple(method.backbone.block_widths)  # type: ignore[arg-type]
        if len(widths) < 2:
            raise SettingError(f"auxiliary.layers needs a backbone of several blocks, got {len(widths)}; micro-vit and micro-resnet have some")
        _refuse(method, spec)
        self.numbers = tuple(range(len(widths) - 1)) if spec.layers == "all" else tuple(_number(n, len(widths), "layers") for n in spec.layers)
        if len(set(self.numbers)) < len(self.numbers) or len(widths) - 1 in self.numbers:
            raise SettingError(
                f"auxiliary.layers.layers must be different hidden blocks, 0 to {len(widths) - 2}, got {list(spec.layers)}; "
                f"the last, {len(widths) - 1}, has the method's own loss"
            )
        self.exits = nn.ModuleDict({str(n): _exit(method, widths[n], spec) for n in self.numbers})
        self.teaches = method.space.predictor_alone and method.space.head.predictor is not None and spec.predictor_only > 0
        if not self.numbers and not (self.teaches and spec.predictor_only_final):
            raise SettingError(f"auxiliary.layers.layers must name a block for {method.name}, got an empty list; all takes every hidden one")
        self.target = self._target(method, len(widths))
        self.slow = None if self.target is None or method.space.slow is None else twin(self.exits[self.target])

    def _target(self, method: Method, count: int) -> str | None:
        """The hidden block that is the target, None for the last."""
        number = _number(self.spec.target_layer, count, "target_layer")
        if number == count - 1:
            return None
        if method.name in REMEMBER:
            raise SettingError(
                f"auxiliary.layers.target_layer must be the last block, -1, for {method.name}, whose {REMEMBER[method.name]} "
                f"holds final projections, got {self.spec.target_layer}"
            )
        if number not in self.numbers:
            raise SettingError(
                f"auxiliary.layers.target_layer must be one of auxiliary.layers.layers or the last, got {number}: nothing trains its head"
            )
        return str(number)

    def want(self) -> Want:
        """The blocks that learn."""
        return Want(blocks=tuple(sorted(self.numbers)))

    def weights(self, step: Step) -> dict[str, float]:
        """The scheduled weight of the blocks' loss, the constant one of the predictor-only term."""
        s, weights = self.spec, dict[str, float]()
        progress = (step.progress - s.start) / (1 - s.start)
        if self.numbers:
            risen = {"half_cosine": cosine(progress, 0.0, 1.0), "linear": linear(progress, 0.0, 1.0), "constant": 1.0}
            weights["layers"] = (s.weight or 0.0) * risen[s.schedule]
        if self.teaches:
            weights["predictors"] = s.predictor_only
        return weights

    def forward(self, method: Method, views: Views, outputs: Outputs, step: Step) -> tuple[dict[str, Tensor], Carry]:
        """Terms "layers", the mean over blocks of the method's loss, and "predictors", the sum over blocks of it for predictors alone."""
        space, terms = method.space, dict[str, Tensor]()
        said = {n: self._say(space, outputs.online, n) for n in self.exits}
        own = space.targets([b.said for b in outputs.target], step)
        targets = self._targets(space, said, outputs, own, step)
        if said:
            losses = torch.stack([self._agree(space, s, targets, step) for s in said.values()])
            terms["layers"] = losses.mean() if self.spec.reduce == "mean" else losses.sum()
        if self.teaches:
            alone = [(_alone(space, s, self._head(n)), targets) for n, s in said.items()]
            if self.spec.predictor_only_final:
                alone.append((_alone(space, [b.said for b in outputs.online], space.head), own))
            terms["predictors"] = torch.stack([space.agree(s, t, step) for s, t in alone]).sum()
        return terms, Carry()

    def _targets(self, space: Space, said: dict[str, list[Said]], outputs: Outputs, own: Tensor, step: Step) -> Tensor:
        """What the blocks learn to say: the method's own targets, or those of a hidden block, with the two views exchanged where asked."""
        targets, views = own, len(outputs.target)
        if self.target is not None:
            detached = [s.detach() for s in said[self.target][:views]]
            targets = space.targets(detached if self.slow is None else self._answer(space, outputs), step)
        if self.spec.target_view == "same":
            rows = len(outputs.target[0].said.projection)
            targets = targets.unflatten(0, (-1, views, rows)).flip(1).flatten(0, 2)  # [.., view, image]
        return targets

    def _head(self, name: str) -> Head:
        exit_: Exit = self.exits[name]  # type: ignore[assignment]
        return exit_.head

    def _say(self, space: Space, branches: tuple[Branch, ...], name: str, through: nn.Module | None = None) -> list[Said]:
        """What a block's head says of each crop, together or crop by crop as the method's own does."""
        blocks = [b.encoding.blocks[int(name)] for b in branches]
        said = space.say([b.final if self.spec.norm == "shared" else b.pooled for b in blocks], through or self.exits[name])
        if space.head.last is None or self.spec.prototypes == "own":
            return said
        prototypes = space.head.prototypes().detach()
        units = [F.normalize(s.projection, dim=-1) for s in said]
        return [Said(z, F.linear(z, prototypes)) for z in units]

    @torch.no_grad()
    def _answer(self, space: Space, outputs: Outputs) -> list[Said]:
        """What the slow twin of the target block's head says of the teacher's features."""
        assert self.target is not None
        return self._say(space, outputs.target, self.target, self.slow)

    def _agree(self, space: Space, said: list[Said], targets: Tensor, step: Step) -> Tensor:
        if isinstance(space, SimCLRSpace):
            return space.agree(said, targets, step, mask=self.spec.mask_own_view)
        return space.agree(said, targets, step)

    def after_step(self, method: Method, carry: Carry, step: Step) -> None:
        """Move the slow twin of a hidden target's head."""
        momentum = method.space.momentum(step)
        if self.slow is not None and self.target is not None and momentum is not None:
            follow(self.slow, self.exits[self.target], momentum)


def _alone(space: Space, said: list[Said], head: Head) -> list[Said]:
    """The same projections without gradient, once more through the predictor."""

    def predict(projection: Tensor) -> Said:
        return Said(projection, head.predict(projection))

    return space.say([s.projection.detach() for s in said], predict)


def _exit(method: Method, width: int, spec: LayersSpec) -> Exit:
    """Norm and head of a block: the method's kind of head, of another width, without prototypes where they are shared."""
    changed: dict[str, Any] = {"hidden": spec.hidden or max(1, method.spec.hidden // 2)}
    if method.space.head.last is not None and spec.prototypes == "shared":
        changed["prototypes"] = 0
    head = method.space_type(width, method.spec.model_copy(update=changed)).head
    if spec.last_norm is not None:
        _last_norm(head.projector, spec.last_norm)
    own = spec.norm in ("separate", "plain")
    return Exit(nn.LayerNorm(width, eps=1e-6, elementwise_affine=spec.norm == "separate") if own else nn.Identity(), head)


def _last_norm(projector: nn.Sequential, wanted: bool) -> None:
    """Put a norm behind the last layer, which then needs no bias, or take it away."""
    last = projector[-1]
    if wanted and isinstance(last, nn.Linear):
        projector[-1] = nn.Linear(last.in_features, last.out_features, bias=False)
        projector.append(nn.BatchNorm1d(last.out_features, affine=False))
    elif not wanted and not isinstance(last, nn.Linear):
        del projector[-1]


def _number(given: int, count: int, setting: str) -> int:
    """A block's number from 0."""
    if not -count <= given < count:
        raise SettingError(f"auxiliary.layers.{setting} must be from 0 to {count - 1}, or from the end {-count} to -1, got {given}")
    return given % count


def _refuse(method: Method, spec: LayersSpec) -> None:
    """Settings that mean nothing to a method."""
    if not spec.mask_own_view and not isinstance(method.space, SimCLRSpace):
        raise SettingError(
            f"auxiliary.layers.mask_own_view means nothing to {method.name}, which compares a view with the other only; simclr does not"
        )
    if spec.prototypes == "own" and method.space.head.last is None:
        raise SettingError(f"auxiliary.layers.prototypes means nothing to {method.name}, which has none; dino and swav do")
    if spec.last_norm and method.spec.norm == "none":
        raise SettingError("auxiliary.layers.last_norm needs method.norm=batch, got none, which keeps all heads free of norms")
