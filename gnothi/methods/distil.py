"""Distillation of features: a student whose vectors, or whose likenesses to other images, are to be a teacher's."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from gnothi.contracts import Branch, Carry, Encoding, Outputs, Said, SettingError, Source, Spec, Step, Views, Want
from gnothi.data.targets import Targets
from gnothi.losses import cosine_rows
from gnothi.methods.alone import Alone
from gnothi.models.teacher import follow, twin
from gnothi.randomness import generator

Loss = Literal["regression", "compress", "seed"]
TEMPERATURES: dict[str, tuple[float, float]] = {"regression": (1.0, 1.0), "compress": (0.04, 0.04), "seed": (0.2, 0.01)}
"""Of student and teacher. SEED's code has 1e-4 for its teacher, at which the teacher names its own image and nothing else."""


class DistilSpec(Spec):
    """Settings of distillation."""

    name: Literal["distil"] = "distil"
    targets: str | None = None
    """File of the teachers' vectors, which `gnothi transfer` writes where it is to distil."""
    loss: Loss = "regression"
    """"regression" (SimReg): the vector itself; "compress" (CompRess): likeness to a queue of the teacher's vectors of other images;
    "seed" (SEED): the same with the teacher's vector of the image among them."""
    head: Literal["linear", "mlp"] | None = None
    """From the student's width to the teacher's; dropped afterwards. "mlp" has four layers for "regression", two for the others, as their authors'.
    None: "linear" for "compress", "mlp" for the others."""
    student_temperature: float | None = Field(default=None, gt=0)
    """Of the student's softmax. None: 0.04 for "compress", 0.2 for "seed"."""
    teacher_temperature: float | None = Field(default=None, gt=0)
    """Of the teacher's. None: 0.04 for "compress", 0.01 for "seed"."""
    queue: int | None = Field(default=None, gt=0)
    """Vectors of the teacher with which likeness is measured; at most as many as there are images. None: 8,192, or a quarter of the images where
    these are fewer than 32,768, so that an image seldom meets its own vector there: with all images in the queue "compress" would name the image
    and "seed" would count its vector twice."""
    queues: Literal[1, 2] = 1
    """For "compress": 2 measures the student's likeness in its own space, to a queue of what a slow student says of the same images, and needs no
    head; both queues begin empty."""
    momentum: float = Field(default=0.999, ge=0, le=1)
    """How much of itself the slow student keeps at a step, with two queues."""
    joint_views: bool = True
    """Crops of one size go through network and head as one batch."""

    @model_validator(mode="after")
    def _two(self) -> DistilSpec:
        if self.queues == 2 and self.loss != "compress":
            raise SettingError(f"method.queues=2 means nothing to method.loss={self.loss}; compress has two")
        if self.queues == 2 and self.head is not None:
            raise SettingError(f"method.queues=2 compares the student in its own space and has no head, got method.head={self.head}; leave it out")
        return self


def _mlp(width: int, out: int, deep: bool) -> nn.Sequential:
    """SimReg's four layers (normalised and bent after the first and third only), or SEED's two."""
    wide = 2 * width
    if not deep:
        return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out))
    up = (nn.Linear(width, wide), nn.BatchNorm1d(wide), nn.ReLU())
    again = (nn.Linear(width, wide), nn.BatchNorm1d(wide), nn.ReLU())
    return nn.Sequential(*up, nn.Linear(wide, width), *again, nn.Linear(wide, out))


class Queue(nn.Module):
    """The last vectors of a network, first in, first out.

    Args:
        vectors: [K, D] to begin with.
        empty: these only say how many fit.
    """

    vectors: Tensor
    place: Tensor
    filled: Tensor

    def __init__(self, vectors: Tensor, empty: bool = False) -> None:
        super().__init__()
        self.grows = empty
        self.register_buffer("vectors", vectors)
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.tensor(0 if empty else len(vectors)))

    def held(self) -> Tensor:
        """A copy of the vectors that are there, [up to K, D]; the queue may move before a backward pass is done."""
        return (self.vectors[: int(self.filled)] if self.grows else self.vectors).clone()

    def push(self, rows: Tensor) -> None:
        """Put [B, D] in the place of the oldest; of more than fit, the last."""
        k = len(self.vectors)
        where = (self.place + torch.arange(len(rows), device=rows.device)) % k
        self.vectors[where[-k:]] = rows[-k:].to(self.vectors.dtype)
        self.place.add_(len(rows)).remainder_(k)
        self.filled.add_(len(rows)).clamp_(max=k)


def regression(students: Tensor, teachers: Tensor) -> Tensor:
    """Mean squared distance of unit vectors (SimReg, arXiv 2201.05131): 2 - 2 cos, in [0, 4]. [N, D], [N, D] -> []."""
    return 2 - 2 * cosine_rows(students, teachers).mean()


def similarity_divergence(
    students: Tensor,
    teachers: Tensor,
    anchors: Tensor,
    student_temperature: float,
    teacher_temperature: float,
    own: bool = False,
    student_anchors: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """How differently student and teacher see their likeness to anchors (CompRess, arXiv 2010.14713; with ``own``, SEED, arXiv 2101.04731).

    Args:
        students: [N, D], any scale; only they take gradient.
        teachers: [N, D].
        anchors: [K, D] vectors of the teacher.
        student_temperature: positive, of the student's softmax.
        teacher_temperature: positive, of the teacher's.
        own: the teacher's own vector of the image is one more anchor.
        student_anchors: [K, E] the same images in a space of the student's, where its vectors [N, E] lie; None where that is the teacher's.

    Returns:
        KL(teacher || student) and the cross-entropy, means over rows, in nats; they differ by the teacher's entropy, without gradient. Both are
        0 without anchors.
    """
    s, t = F.normalize(students, dim=1), F.normalize(teachers.detach(), dim=1)
    theirs, mine = (F.normalize(a.detach(), dim=1) for a in (anchors, anchors if student_anchors is None else student_anchors))
    said, told = s @ mine.T, t @ theirs.T  # [N, K]
    if own:
        said, told = torch.cat([(s * t).sum(1, keepdim=True), said], 1), torch.cat([(t * t).sum(1, keepdim=True), told], 1)
    log_p, log_q = (told / teacher_temperature).log_softmax(1), (said / student_temperature).log_softmax(1)
    p = log_p.exp()
    entropy = -(p * log_p.nan_to_num(neginf=0.0)).sum(1)
    cross = -(p * log_q).sum(1)
    return (cross - entropy).mean(), cross.mean()


class Distil(Alone):
    """A head and a queue for each teacher, whose vectors of the centre of every image lie in a file."""

    name, judges = "distil", True
    spec: DistilSpec  # type: ignore[assignment]  # none of a MethodSpec's heads

    def __init__(self, backbone: nn.Module, spec: DistilSpec) -> None:
        super().__init__(backbone, spec)
        if spec.targets is None:
            raise SettingError("method distil needs method.targets=FILE with vectors of a teacher; gnothi transfer --loss regression writes one")
        student, teacher = TEMPERATURES[spec.loss]
        self.temperatures = (spec.student_temperature or student, spec.teacher_temperature or teacher)
        self.heads, self.queues = nn.ModuleList(), nn.ModuleList()
        self.mine: Queue | None = None
        self.slow = twin(backbone) if spec.queues == 2 else None

    def meet(self, source: Source) -> None:
        """Open the teachers' vectors, which stay on the disk; build heads, and fill queues with vectors of random images (two queues begin empty).

        Raises:
            DataError: an image has no vector.
        """
        self.targets, self.where = self._told(source)
        width, s = int(self.backbone.width), self.spec  # type: ignore[arg-type]
        if s.queues == 2:
            size = self._room(len(self.where))
            self.heads = nn.ModuleList(nn.Identity() for _ in self.targets)
            self.queues = nn.ModuleList(Queue(torch.zeros(size, t.shape[1]), empty=True) for t in self.targets)
            self.mine = Queue(torch.zeros(size, width), empty=True)
            return
        linear = (s.head or ("linear" if s.loss == "compress" else "mlp")) == "linear"
        self.heads = nn.ModuleList(nn.Linear(width, t.shape[1]) if linear else _mlp(width, t.shape[1], s.loss == "regression") for t in self.targets)
        if s.loss != "regression":
            readable = self.where[self.targets[0][self.where, 0].isfinite()]
            first = torch.randperm(len(readable), generator=generator(0, "queue"))[: self._room(len(readable))]
            self.queues = nn.ModuleList(Queue(F.normalize(t[readable[first]].float(), dim=1)) for t in self.targets)

    def _room(self, images: int) -> int:
        """Vectors of a queue."""
        return min(8192, max(1, images // 4)) if self.spec.queue is None else min(self.spec.queue, images)

    def _told(self, source: Source) -> tuple[list[Tensor], Tensor]:
        """The vectors of each teacher [M, D], and at which of them each image of the source stands, [N]."""
        assert self.spec.targets is not None
        targets = Targets.read(self.spec.targets, "vectors")
        return [targets.tensors[f"vectors.{i}"] for i in range(len(targets.about["dims"]))], targets.rows(source)

    def forward(self, views: Views, want: Want, step: Step) -> Outputs:
        """Every crop through network and heads, the first one through the slow student, too; ``prediction`` holds what all heads say side by side."""
        encodings = self.encodings(views.images, want, self.backbone, views.masks)
        sizes = [len(e.pooled) for e in encodings]
        said = torch.cat([head(torch.cat([e.pooled for e in encodings])) for head in self.heads], 1).split(sizes)
        target: list[Encoding] = []
        if self.slow is not None:
            with torch.no_grad():
                target = self.encodings(views.images[:1], Want(), self.slow)
        online = tuple(Branch(e, Said(x, x)) for e, x in zip(encodings, said, strict=True))
        return Outputs(online, tuple(Branch(e, Said(e.pooled, e.pooled)) for e in target))

    def loss(self, views: Views, outputs: Outputs, step: Step) -> tuple[dict[str, Tensor], Carry]:
        """The mean over crops and teachers."""
        where = self.where[views.index.cpu()]
        told = [F.normalize(t[where].to(outputs.online[0].said.prediction), dim=1) for t in self.targets]
        widths = [t.shape[1] if self.mine is None else self.mine.vectors.shape[1] for t in told]
        terms = [self._compare(x, i, told[i]) for b in outputs.online for i, x in enumerate(b.said.prediction.split(widths, 1))]
        kept = {f"vectors.{i}": t for i, t in enumerate(told)} if self.queues else {}
        if self.mine is not None:
            kept["mine"] = F.normalize(outputs.target[0].said.projection, dim=1)
        return {self.name: torch.stack(terms).mean()}, Carry(rows=kept)

    def _compare(self, said: Tensor, teacher: int, told: Tensor) -> Tensor:
        if self.spec.loss == "regression":
            return regression(said, told)
        queue: Queue = self.queues[teacher]  # type: ignore[assignment]
        mine = None if self.mine is None else self.mine.held()
        divergence, cross = similarity_divergence(said, told, queue.held(), *self.temperatures, own=self.spec.loss == "seed", student_anchors=mine)
        return cross if self.spec.loss == "seed" else divergence

    @torch.no_grad()
    def after_step(self, carry: Carry, step: Step) -> None:
        """Vectors of this batch join the queues, after they were learned from; the slow student follows."""
        for i, queue in enumerate(self.queues):
            queue.push(carry.rows[f"vectors.{i}"])  # type: ignore[operator]
        if self.mine is not None and self.slow is not None:
            self.mine.push(carry.rows["mine"])
            follow(self.slow, self.backbone, self.spec.momentum)

    @torch.no_grad()
    def judge(self, vectors: Tensor, source: Source) -> dict[str, Tensor]:
        """``held_out_neighbours``: how often student and first teacher name the same nearest image; with a head also their ``held_out_cosine``."""
        targets, where = self._told(source)
        told, own = F.normalize(targets[0][where].float(), dim=1), F.normalize(vectors, dim=1)
        same = {"held_out_neighbours": (_nearest(own @ own.T) == _nearest(told @ told.T)).double()}
        if self.mine is not None:
            return same
        head, modes = self.heads[0], self.heads.training
        said = F.normalize(head.eval()(vectors.to(next(self.parameters()).device)).cpu(), dim=1)
        self.heads.train(modes)
        return {"held_out_cosine": (said * told).sum(1).double(), **same}


def _nearest(likeness: Tensor) -> Tensor:
    return likeness.fill_diagonal_(-2).argmax(1)
