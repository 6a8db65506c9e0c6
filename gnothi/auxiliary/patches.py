"""How badly patches agree with chosen patches of other crops, by each method's own rule (rows are patches, not images), and relations of patches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch

import torch
import torch.nn.functional as F
from torch import Tensor

from gnothi.contracts import Carry, Said, Step
from gnothi.methods.dino import DINOSpace
from gnothi.methods.method import Space
from gnothi.methods.simclr import SimCLRSpace
from gnothi.methods.swav import SwAVSpace
from gnothi.models import prototypes
from gnothi.models.heads import Head


@dataclass(frozen=True)
class Partners:
    """With which patches of a target crop the patches of a crop are to agree, image by image."""

    crop: int
    """Number of the crop that learns."""
    target: int
    """Number of the target crop."""
    index: Tensor
    """[B, N] among the patches of the target crop."""
    weight: Tensor
    """[B, N]."""

    def rows(self, patches: int) -> Tensor:
        """[B x N] among all patches of the target crop, of which an image has ``patches``."""
        first = patches * torch.arange(len(self.index), device=self.index.device)
        return (self.index + first[:, None]).flatten()


Tokens = list[Tensor]


@singledispatch
def match_patches(space: Space, online: Tokens, target: Tokens, partners: list[Partners], step: Step) -> tuple[list[Tensor], Carry]:
    """Compare patches in a Space of their own. A target crop's patches, of all images and processes, are the candidates.

    Args:
        space: of the patches; a method whose rule is another one registers it here.
        online: [B, N, D] tokens of every crop.
        target: [B, N, D] of the global crops, without gradient; not used where the targets are the online projections.
        partners: who is to agree with whom.
        step: where training is.

    Returns:
        [] of each of ``partners``, the mean over all B x N rows of weight x loss as ``Space.match`` has it; and what ``settle`` needs.
    """
    said, answered = speak(space, online, target)
    known = [space.targets([s], step) for s in (said[: len(target)] if space.both_learn else answered)]
    values = [
        space.match(said[p.crop].prediction, known[p.target], index=p.rows(target[p.target].shape[1]), weight=p.weight.flatten(), step=step)
        for p in partners
    ]
    return values, space.keep(answered)


def speak(space: Space, online: Tokens, target: Tokens) -> tuple[list[Said], list[Said]]:
    """What the heads say of tokens, [B, N, D] each -> rows [B x N]: the online side and the target side."""
    said = space.say([x.flatten(0, 1) for x in online])
    return said, space.answer([x.flatten(0, 1) for x in target], said)


@match_patches.register
def _(space: SimCLRSpace, online: Tokens, target: Tokens, partners: list[Partners], step: Step) -> tuple[list[Tensor], Carry]:
    """The candidates are all patches of all global crops but itself, as those of a view are all views but itself; none is a local crop's patch."""
    said, _ = speak(space, online, [])
    sizes = [len(s.projection) for s in said]
    known = space.targets(said[: len(target)], step)
    values = []
    for p in partners:
        own = torch.arange(sizes[p.crop], device=known.device) + sum(sizes[: p.crop]) if p.crop < len(target) else None
        index = p.rows(target[p.target].shape[1]) + sum(sizes[: p.target])
        values.append(space.match(said[p.crop].prediction, known, index=index, weight=p.weight.flatten(), exclude=own, step=step))
    return values, Carry()


@match_patches.register
def _(space: SwAVSpace, online: Tokens, target: Tokens, partners: list[Partners], step: Step) -> tuple[list[Tensor], Carry]:
    """No assignment is held twice."""
    return _assigned(space, online, target, partners, space.spec.temperature, step)


@match_patches.register
def _(space: DINOSpace, online: Tokens, target: Tokens, partners: list[Partners], step: Step) -> tuple[list[Tensor], Carry]:
    """Logits are never held, so that many prototypes need little memory."""
    if space.spec.centring == "sinkhorn":  # needs the distributions of all rows at once
        return _assigned(space, online, target, partners, space.spec.student_temperature, step)
    assert space.slow is not None  # DINO has a teacher
    said, answered = _projections(space, space.head, online), _projections(space, space.slow, target)
    sizes, t = [len(a) for a in answered], space.spec.student_temperature
    mine, theirs = space.head.prototypes(), space.slow.prototypes()
    norms = prototypes.lse(torch.cat(said), mine, t).split([len(s) for s in said])
    means = prototypes.expected(torch.cat(answered), theirs, space.centre, space.temperature(step), mine).split(sizes)
    values = []
    for p in partners:
        chosen = means[p.target][p.rows(target[p.target].shape[1])]  # [B x N, P]
        rows = norms[p.crop] - (said[p.crop] * chosen).sum(-1) / t
        values.append((rows * p.weight.flatten()).mean())
    logits = theirs @ torch.cat(answered).detach().sum(0)  # the sum of W z is W times the sum of z
    return values, Carry(sums={"logits": logits, "count": logits.new_tensor(float(sum(sizes)))})


def _projections(space: Space, head: Head, tokens: Tokens) -> list[Tensor]:
    """What a head says of [B, N, D] each before the prototypes: [B x N, P] each."""

    def short(features: Tensor) -> Said:
        projection = head.project(features)
        return Said(projection, projection)

    return [s.projection for s in space.say([x.flatten(0, 1) for x in tokens], short)]


def _assigned(space: Space, online: Tokens, target: Tokens, partners: list[Partners], temperature: float, step: Step) -> tuple[list[Tensor], Carry]:
    """Where targets are distributions over prototypes: they are made once, and never copied row by row."""
    said, answered = speak(space, online, target)
    sizes = [len(s.prediction) for s in answered]
    known = [t.unflatten(0, x.shape[:2]) for t, x in zip(space.targets(answered, step).split(sizes), target, strict=True)]
    logits = [s.prediction.unflatten(0, x.shape[:2]) for s, x in zip(said, online, strict=True)]
    norms = {v: (logits[v] / temperature).logsumexp(-1) for v in dict.fromkeys(p.crop for p in partners)}
    values = []
    for p in partners:
        scores = (logits[p.crop] @ known[p.target].mT).gather(2, p.index[..., None]).squeeze(2)  # [B, N]
        values.append(((norms[p.crop] - scores / temperature) * p.weight).mean())
    return values, space.keep(answered)


def gram(a: Tensor, b: Tensor) -> Tensor:
    """Distance of the cosines between the patches of an image from those of another network (DINOv3, arXiv 2508.10104, section 4).

    Args:
        a: [B, N, D] of the learner.
        b: [B, N, E], row i the same patch as row i of ``a``.

    Returns:
        [] mean squared difference over all pairs of patches of an image.
    """
    own, other = (F.normalize(x, dim=-1) for x in (a, b))
    return (own @ own.mT - other @ other.mT).square().mean()


def misalignment(a: Tensor, b: Tensor) -> Tensor:
    """1 - linear centred kernel alignment of the patches of an image (CKA: Kornblith et al. 2019, arXiv 1905.00414, eq. 2), the mean over images.

    Args:
        a: [B, N, D] of the learner.
        b: [B, N, E], row i the same patch as row i of ``a``.

    Returns:
        [] in [0, 1]: 0 where the patches relate to each other alike, whatever the scale and the turn of the features.
    """
    own, other = ((k := x - x.mean(1, keepdim=True)) @ k.mT for x in (a, b))  # [B, N, N]
    scale = (own.square().sum((1, 2)) * other.square().sum((1, 2)) + 1e-12).sqrt()
    return (1 - (own * other).sum((1, 2)) / scale).mean()
