"""Networks that go on learning which of several classes an image shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnothi.contracts import Branch, Carry, Outputs, RunError, Said, Source, Step, Views, Want
from gnothi.data import Subset, holdout
from gnothi.evaluate.average_precision import Ranking, mean_average_precision, ranked
from gnothi.evaluate.linear import Rows
from gnothi.evaluate.tuning import HELD, RATES, FinetuneSpec, Start
from gnothi.files import write_text
from gnothi.methods.alone import Alone
from gnothi.methods.classify import ClassifySpec
from gnothi.randomness import seeded


def cross_entropy(logits: Tensor, tags: Tensor) -> Tensor:
    """Mean binary cross-entropy over what is known: logits [B, C], tags [B, C] 1, 0 or -1 for what is not -> [] in nats."""
    each = F.binary_cross_entropy_with_logits(logits, tags.clamp_min(0).to(logits.dtype), reduction="none")
    known = tags >= 0
    return (each * known).sum() / known.sum().clamp_min(1)


class Tag(Alone):
    """A linear layer on a backbone, each class for itself.

    Args:
        backbone: the network.
        tags: [N, C] of the rows that train.
    """

    name = "tag"

    def __init__(self, backbone: nn.Module, tags: Tensor) -> None:
        super().__init__(backbone, ClassifySpec())
        self.tags = tags
        self.head = nn.Linear(int(backbone.width), tags.shape[1])  # type: ignore[arg-type]

    def forward(self, views: Views, want: Want, step: Step) -> Outputs:
        """Every crop through network and layer; ``prediction`` holds the logits."""
        encodings = self.encodings(views.images, want, self.backbone, views.masks)
        return Outputs(tuple(Branch(e, Said(x, x)) for e in encodings for x in [self.head(e.pooled)]), ())

    def loss(self, views: Views, outputs: Outputs, step: Step) -> tuple[dict[str, Tensor], Carry]:
        """The mean over crops."""
        tags = self.tags[views.index.cpu()].to(views.index.device)
        return {self.name: torch.stack([cross_entropy(b.said.prediction, tags) for b in outputs.online]).mean()}, Carry()


class Tagging:
    """One network's training on tags.

    Args:
        start: what it begins from.
        spec: how it is trained.
        source: rows that train.
        tags: [N, C] of them.
        seed: of every choice.
        out: folder where the runs lie; None keeps nothing.
        broken: part of the images that may be broken before it stops.
        shown: whether to show progress.
    """

    def __init__(
        self, start: Start, spec: FinetuneSpec, source: Source, tags: np.ndarray, *, seed: int, out: Path | None, broken: float, shown: bool
    ) -> None:
        self.start, self.spec, self.source, self.tags, self.seed = start, spec, source, tags, seed
        self.folder = None if out is None else out / start.folder(spec, source, tags, seed)
        self.broken, self.shown = broken, shown

    def answer(self, asked: Source) -> tuple[np.ndarray, dict[str, Any], str]:
        """Scores of images [M, C], NaN where one cannot be read; the rate and those tried; and the protocol."""
        rate, tried, words = self._rate()
        method = self._train(np.arange(len(self.source)), rate, "final")
        total, per_epoch, batch = self.spec.steps(len(self.source))
        said = (
            f"{self.start.learns(self.spec)}, each class for itself; {self.start.kind} at {rate:g} ({words}), cosine to 0, batch {batch}, "
            f'{total / per_epoch:g} epochs ({total} steps), crops "{self.spec.views}", last epoch'
        )
        return self._scores(method, asked, np.arange(len(asked))), {"rate": rate, "tried": tried}, said

    def _rate(self) -> tuple[float, list[dict[str, float]], str]:
        if self.spec.lr is not None:
            return self.spec.lr, [], "as given"
        rates = RATES[self.start.kind]
        kept, held = holdout(Rows(np.zeros(len(self.source), dtype=np.int64), self.source.groups), HELD, self.seed)
        tried = [{"setting": rate, "mAP": self._try(rate, kept, held)} for rate in rates]
        words = f"chosen among {len(rates)} by average precision on {len(held)} held-out training images, then trained on all"
        return max(tried, key=lambda t: t["mAP"])["setting"], tried, words

    def _try(self, rate: float, kept: np.ndarray, held: np.ndarray) -> float:
        """Mean average precision (area) of a rate on the held-out rows; 0 where training breaks or there is nothing to find."""
        folder = None if self.folder is None else self.folder / f"rate-{rate:g}"
        if folder is not None and (folder / "tried.json").exists():
            before: float = json.loads((folder / "tried.json").read_text(encoding="utf-8"))["mAP"]
            return before
        try:
            scores = self._scores(self._train(kept, rate, f"rate-{rate:g}"), self.source, held)
            found = mean_average_precision(ranked_by_class(scores, self.tags[held]), "area")[0] if (self.tags[held] == 1).any() else 0.0
        except RunError:
            found = 0.0
        if folder is not None:
            write_text(folder / "tried.json", json.dumps({"setting": rate, "mAP": found}))
            for checkpoint in folder.glob("*.safetensors"):
                checkpoint.unlink()
        return found

    def _train(self, rows: np.ndarray, rate: float, what: str) -> Tag:
        with seeded(self.seed, "init", 1):
            method = Tag(self.start.network(self.spec, self.seed), torch.from_numpy(self.tags[rows]))
        folder = None if self.folder is None else self.folder / what
        source = Subset(self.source, rows)
        self.start.train(method, source, self.spec, rate, seed=self.seed, folder=folder, broken=self.broken, shown=self.shown)
        return method

    def _scores(self, method: Tag, source: Source, rows: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            scores: Tensor = method.head(self.start.vectors(method.backbone, source, rows))
        return scores.cpu().numpy()


def ranked_by_class(scores: np.ndarray, tags: np.ndarray) -> list[Ranking]:
    """A ranking a class, of images that could be read: scores [M, C] with NaN rows for the others, tags [M, C]."""
    whole = ~np.isnan(scores[:, 0])
    return [ranked(np.where(whole, scores[:, c], -np.inf), np.where(whole, tags[:, c], -1)) for c in range(tags.shape[1])]
