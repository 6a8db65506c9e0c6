"""Local self-distillation beside any method: patches learn from patches of another crop (GLSD, Lebailly and Tuytelaars 2023, arXiv 2207.14676).

Every patch of a crop gets a partner among the patches of another crop of its image, by where both lie in the image, by what they say, or by chance,
and the method's own rule compares the two in a Space of its own. Relations between the patches of a crop (Gram matrix, kernel) need no partners.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from gnothi import distributed
from gnothi.auxiliary import matching
from gnothi.auxiliary.auxiliary import Auxiliary, AuxiliarySpec
from gnothi.auxiliary.matching import Frame, geometric_matches
from gnothi.auxiliary.patches import Partners, gram, match_patches, misalignment
from gnothi.contracts import Carry, Encoding, Outputs, SettingError, Step, Views, Want
from gnothi.methods import Method
from gnothi.methods.dino import BLUNT
from gnothi.models.micro_vit import patch_side
from gnothi.views.batches import ViewsSpec

__all__ = ["Local", "LocalSpec", "geometric_matches"]

MOST_PROTOTYPES = 4096
"""Of a token head whose number nobody sets."""
PROBE = 64
"""Side in pixels of the crops by which a network's stride is found, at least; no network's stride is larger."""


class LocalSpec(AuxiliarySpec):
    """Settings of local."""

    weight: float = Field(default=0.5, ge=0)
    """Weight of the patches' loss; 0.5 in the authors' code, which also halves the method's own: see ``view_weight``."""
    view_weight: float = Field(default=1.0, ge=0)
    """Weight of the method's own loss while this one is on. The authors' code has 0.5; 1 leaves it as it is in a run without this."""
    match: Literal["geometric", "similarity", "both", "gated", "blend", "same", "random", "none"] = "geometric"
    """Whose partner is whose: the nearest centre; the largest cosine of tokens; both losses; the nearest centre where valid and the largest cosine
    elsewhere; the least of 1 - cosine + alpha x distance; the teacher's view of a hidden patch (iBOT); any patch, as a control; no partners."""
    validity: Literal["half_diag", "inside", "ratio", "none"] = "half_diag"
    """Which nearest centres count: nearer than half the diagonal of the larger cell; inside the other crop; nearer than ``ratio`` diagonals; all."""
    ratio: float = Field(default=0.7, gt=0)
    """For validity "ratio": largest distance over the diagonal of the larger cell, 0.7 in PixPro; half_diag is 0.5."""
    denominator: Literal["all_tokens", "valid_tokens"] | None = None
    """What a crop's sum is divided by: all its patches, or those that count. None: all_tokens (GLSD); for match "same", valid_tokens (iBOT)."""
    pairs: Literal["cross", "global_only"] = "cross"
    """Every crop learns from every other global crop, or global crops only."""
    similarity_share: float = Field(default=0.5, ge=0, le=1)
    """For match "both": the part of the weight that similarity has."""
    alpha: float = Field(default=1.0, ge=0)
    """For match "blend": weight of the distance, which is scaled by the image's largest, beside the cosine."""
    hidden: tuple[float, float] = (0.1, 0.5)
    """For match "same": smallest and largest part of the patches that a global crop hides from the student."""
    hidden_share: float = Field(default=0.5, gt=0, le=1)
    """For match "same": part of the global crops that hide any."""
    prototypes: int | None = Field(default=None, gt=1)
    """Outputs of the token head (DINO, SwAV); 65,536 in the authors' code. None: as many as the method's own, at most 4,096."""
    teacher_temperature: float | None = Field(default=None, gt=0)
    """Of DINO's targets for patches, all the time. None: the method's, with its warm-up."""
    token_offset: float = 0.0
    """Where a token looks, from the centre of its cell, in pixels of the crop: -15.5 for ResNets of stride 32, 0 for networks of patches."""
    gram: float = Field(default=0.0, ge=0)
    """Weight of the distance between the Gram matrices of a crop's patches in student and teacher (DINOv3)."""
    kernel: float = Field(default=0.0, ge=0)
    """Weight of 1 - CKA of a crop's patches in student and teacher."""

    @field_validator("hidden")
    @classmethod
    def _hidden(cls, hidden: tuple[float, float]) -> tuple[float, float]:
        if not 0 < hidden[0] <= hidden[1] < 1:
            raise ValueError(f"must be two numbers with 0 < smallest <= largest < 1, got {hidden[0]}, {hidden[1]}")
        return hidden

    @model_validator(mode="after")
    def _something(self) -> LocalSpec:
        if self.match == "none" and not (self.gram or self.kernel):
            raise SettingError("auxiliary.local.match=none leaves nothing to learn; set auxiliary.local.gram or auxiliary.local.kernel, such as 1")
        if not self.weight and (self.gram or self.kernel):
            instead = "leave the weight out" if self.match == "none" else "set auxiliary.local.match=none instead"
            raise SettingError(f"auxiliary.local.weight=0 would leave auxiliary.local.{'gram' if self.gram else 'kernel'} out too; {instead}")
        return self

    def settled(self, method: str, views: ViewsSpec | None = None) -> Self:
        """As it is; refused where there is no other crop to learn from."""
        crops = 0 if views is None else len(views.global_crops) + (len(views.local_crops) if self.pairs == "cross" else 0)
        if crops == 1 and self.match not in ("same", "none"):
            raise SettingError("auxiliary.local needs two crops of an image, got views with one; auxiliary.local.match=same needs one only")
        return self


class Local(Auxiliary):
    """A token head with prototypes, teacher and centre of its own, and partners for every patch."""

    name = "local"
    spec: LocalSpec

    def __init__(self, method: Method, spec: LocalSpec) -> None:
        super().__init__(method, spec)
        _refuse(method, spec)
        backbone, changes = method.backbone, dict[str, object]()
        own = getattr(method.spec, "prototypes", None)
        if own is not None:
            changes["prototypes"] = spec.prototypes or min(own, MOST_PROTOTYPES)
        if hasattr(method.spec, "queue"):
            changes["queue"] = 0  # the patches of a batch are many enough
        if spec.teacher_temperature is not None:
            changes |= {"teacher_temperature": spec.teacher_temperature, "teacher_temperature_start": spec.teacher_temperature}
        width = int(getattr(backbone, "patch_width", backbone.width))  # type: ignore[arg-type]
        self.space = None if spec.match == "none" else method.fresh_space(width, **changes)
        self.cell = patch_side(backbone) if spec.match == "same" else 0
        self.stride = stride(backbone)

    def want(self) -> Want:
        """Patches of every crop."""
        return Want(patches=True)

    def weights(self, step: Step) -> dict[str, float]:
        """Of its terms, and of the method's own while it is on."""
        s = self.spec
        weights = {self.name: s.weight, f"{self.name}_gram": s.gram, f"{self.name}_kernel": s.kernel}
        weights = {k: w for k, w in weights.items() if w > 0 and not (k == self.name and self.space is None)}
        return weights if s.view_weight == 1 else {self.beside: s.view_weight, **weights}

    def draw(self, rows: int, step: Step) -> Tensor | None:
        """A seed an image, [rows]: how many numbers it stands for is known once the crops are."""
        if self.spec.match not in ("random", "same"):
            return None
        return torch.randint(2**62, (rows,), generator=step.generator("local"))

    def prepare(self, views: Views, step: Step) -> Views:
        """Hide patches from the student, for match "same"."""
        if self.spec.match != "same" or step.progress < self.spec.start:
            return views
        height, width = views.images[0].shape[2:]
        count = (height // self.cell) * (width // self.cell)
        masks = matching.hidden(views.drawn[self.name], views.n_global, count, self.spec.hidden_share, self.spec.hidden)
        return replace(views, masks=masks)

    def forward(self, method: Method, views: Views, outputs: Outputs, step: Step) -> tuple[dict[str, Tensor], Carry]:
        """The mean over pairs of crops of the method's own loss between partners, and relations."""
        terms, carry = self._relations(outputs), Carry()
        if self.space is not None:
            online, target = [b.encoding for b in outputs.online], [b.encoding for b in outputs.target]
            pairs = self.crop_pairs(views)
            partners = [p for number, (v, g) in enumerate(pairs) for p in self.partners(views, online, target, v, g, number)]
            asked = online[: 1 + max(v for v, _ in pairs)]
            values, carry = match_patches(self.space, [patches(e) for e in asked], [patches(e) for e in target], partners, step)
            terms[self.name] = torch.stack(values).sum() / len(pairs)
        return terms, carry

    def after_step(self, method: Method, carry: Carry, step: Step) -> None:
        """Move the token head's teacher and centre."""
        if self.space is not None:
            self.space.settle(carry, step)

    # ---- partners -------------------------------------------------------------------------------
    def crop_pairs(self, views: Views) -> list[tuple[int, int]]:
        """Which crop learns from which: (student, teacher) numbers."""
        if self.spec.match == "same":
            return [(g, g) for g in range(views.n_global)]
        students = range(views.n_global if self.spec.pairs == "global_only" else len(views.images))
        return [(v, g) for g in range(views.n_global) for v in students if v != g]

    @torch.no_grad()
    def partners(self, views: Views, online: Sequence[Encoding], target: Sequence[Encoding], v: int, g: int, number: int = 0) -> list[Partners]:
        """Partners for the patches of crop v among those of target crop g; chance is another one for every ``number``."""
        s, mine, theirs = self.spec, patches(online[v]), patches(target[g])
        every = mine.new_ones(mine.shape[:2])
        if s.match == "same":
            assert views.masks is not None
            own = torch.arange(mine.shape[1], device=mine.device).expand(len(mine), -1)
            return [Partners(v, g, own, self._divided(views.masks[g]).to(every.dtype))]
        if s.match == "random":
            return [Partners(v, g, matching.chance(views.drawn[self.name] + number, mine.shape[1], theirs.shape[1]), every)]
        if s.match == "similarity":
            return [Partners(v, g, matching.similar(mine, theirs), every)]
        at, to = self.frame(views, v, online[v]), self.frame(views, g, target[g])
        if s.match == "blend":
            return [Partners(v, g, matching.blended(mine, theirs, at, to, s.alpha), every)]
        index, distance = matching.nearest(at, to)
        valid = self.valid(at, to, distance)
        if s.match == "gated":
            return [Partners(v, g, torch.where(valid, index, matching.similar(mine, theirs)), every)]
        near = Partners(v, g, index, self._divided(valid).to(every.dtype))
        if s.match == "geometric":
            return [near]
        return [
            Partners(v, g, index, near.weight * (1 - s.similarity_share)),
            Partners(v, g, matching.similar(mine, theirs), every * s.similarity_share),
        ]

    def frame(self, views: Views, crop: int, encoding: Encoding) -> Frame:
        """Where the patches of a crop lie."""
        height, width = views.images[crop].shape[2:]
        cell = self.stride or width / encoding.grid[1]
        room = matching.room_of(height, width, self.stride)
        return matching.frame(views.boxes[crop], encoding.grid, views.flips[crop], views.turns[crop], self.spec.token_offset / cell, room)

    def valid(self, at: Frame, to: Frame, distance: Tensor) -> Tensor:
        """Which nearest centres count: [B, N] bool."""
        if self.spec.validity == "inside":
            return matching.inside(at, to)
        if self.spec.validity == "none":
            return torch.ones_like(distance, dtype=torch.bool)
        cells = 1.0 if self.spec.validity == "half_diag" else 2 * self.spec.ratio
        return distance < cells * matching.reach(at, to)[:, None]

    def _divided(self, valid: Tensor) -> Tensor:
        """Weights whose mean over an image's patches is the sum over what counts, divided as asked: [B, N] bool -> [B, N]; 0 where nothing counts."""
        weight = valid.double() if valid.device.type != "mps" else valid.float()
        divide = self.spec.denominator or ("valid_tokens" if self.spec.match == "same" else "all_tokens")
        return weight / weight.mean(1, keepdim=True).clamp(min=1e-9) if divide == "valid_tokens" else weight

    # ---- relations ------------------------------------------------------------------------------
    def _relations(self, outputs: Outputs) -> dict[str, Tensor]:
        """Terms between student and teacher on the same global crop, the mean over crops."""
        terms = {}
        for key, weight, distance in (("gram", self.spec.gram, gram), ("kernel", self.spec.kernel, misalignment)):
            if weight:
                pairs = [(patches(b.encoding), patches(t.encoding)) for b, t in zip(outputs.online, outputs.target, strict=False)]
                terms[f"{self.name}_{key}"] = torch.stack([distance(a, b) for a, b in pairs]).mean()
        return terms

    # ---- diagnostics ----------------------------------------------------------------------------
    def diagnose(self, method: Method, views: Views, step: Step) -> dict[str, float]:
        """What patches know of places, on the first two global crops of the batches of all processes.

        Returns:
            ``kept``: share of patches that have a nearest centre within half the larger cell's diagonal. ``precision``: of these, how many find a
            patch so near by the largest cosine. ``unique``: different patches that these find, over their number; few hubs make it small.
            ``position``: how well a linear probe tells the place of a patch in its crop.
        """
        images, want = views.images[: min(2, views.n_global)], self.want()
        online = method.encodings(images, want, method.backbone)
        target = online if method.slow is None else method.encodings(images, want, method.slow)
        last = len(images) - 1
        counts = torch.stack([self._found(views, online, target, v, g) for v, g in ((0, last), (last, 0))]).sum(0)
        total, kept, right, different = distributed.mean(counts).tolist()
        values = {"kept": kept / total, "precision": right / max(kept, 1e-9), "unique": different / max(kept, 1e-9)}
        position = matching.decodability(distributed.gather(patches(target[0])), target[0].grid)
        return values if position is None else {**values, "position": position}

    def _found(self, views: Views, online: list[Encoding], target: list[Encoding], v: int, g: int) -> Tensor:
        """Of a pair of crops: patches, patches kept, kept ones whose most similar patch is near, and different patches that kept ones find."""
        at, to = self.frame(views, v, online[v]), self.frame(views, g, target[g])
        found, limit = matching.similar(patches(online[v]), patches(target[g])), matching.reach(at, to)[:, None]
        kept = matching.nearest(at, to)[1] < limit
        near = matching.apart(at, to, found) < limit  # so there is one near enough, too
        hit = torch.zeros_like(patches(target[g])[..., 0], dtype=torch.int64).scatter_reduce_(1, found, kept.long(), "amax")
        return torch.stack([kept.new_tensor(kept.numel(), dtype=torch.float32), *(x.sum().float() for x in (kept, near, hit))])


def patches(encoding: Encoding) -> Tensor:
    """The tokens of an encoding, [B, N, D]."""
    assert encoding.patches is not None
    return encoding.patches


@torch.no_grad()
def stride(backbone: nn.Module) -> int | None:
    """Pixels of a crop from a token to the next, by how many more tokens a crop of zeros has that is twice as wide.

    A crop's side over its tokens is less where the last cells stick out of it: 28 pixels give a ResNet of stride 8 four columns.

    Returns:
        None where the network takes crops of one size only, or says nothing of patches.
    """
    patch, modes = patch_side(backbone), [(m, m.training) for m in backbone.modules()]
    side = -(-PROBE // patch) * patch
    backbone.eval()
    try:
        channels = next(m.in_channels for m in backbone.modules() if isinstance(m, nn.Conv2d))
        crop = next(backbone.parameters()).new_zeros(1, channels, side, side)
        more: int = backbone(torch.cat([crop, crop], 3)).grid[1] - backbone(crop).grid[1]
    except Exception:  # networks stumble over sizes in ways of their own; what is wrong with those of the views is said where they are met
        return None
    finally:
        for m, training in modes:
            m.training = training
    return side // more if more > 0 and side % more == 0 else None


def _refuse(method: Method, spec: LocalSpec) -> None:
    """Settings that make no sense beside this method."""
    if method.name == "none":
        raise SettingError("auxiliary.local compares patches by the method's own rule, and method.name=none has no rule; choose a method")
    teachers = "moco, byol and dino have one"
    if spec.match == "same" and method.slow is None:
        raise SettingError(f"auxiliary.local.match=same needs a teacher, which sees what the student does not; {method.name} has none, {teachers}")
    if spec.match == "same" and getattr(method.backbone, "mask_token", None) is None:
        raise SettingError("auxiliary.local.match=same hides patches, which needs a ViT with backbone.mask_token=true, got false")
    if (spec.gram or spec.kernel) and method.slow is None:
        word = "gram" if spec.gram else "kernel"
        raise SettingError(f"auxiliary.local.{word} compares student and teacher on one crop; {method.name} has no teacher, {teachers}")
    if spec.prototypes is not None and not hasattr(method.spec, "prototypes"):
        raise SettingError(f"auxiliary.local.prototypes means nothing to {method.name}, which has no prototypes; swav and dino have")
    if spec.teacher_temperature is None:
        return
    student = getattr(method.spec, "student_temperature", None)
    if student is None:
        raise SettingError(f"auxiliary.local.teacher_temperature means nothing to {method.name}; dino has one")
    if spec.teacher_temperature >= student:
        raise SettingError(
            f"auxiliary.local.teacher_temperature must be below method.student_temperature ({student}), got {spec.teacher_temperature}: {BLUNT}"
        )
