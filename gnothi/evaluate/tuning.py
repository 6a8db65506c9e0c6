"""How a network is fine-tuned, and what it begins from."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from gnothi.contracts import EncoderError, RunError, SettingError, Source, Spec
from gnothi.encoders.network import NetworkEncoder
from gnothi.evaluate.fitting import fit, named
from gnothi.evaluate.freezing import below, block_number, freeze, renew
from gnothi.methods.alone import Alone
from gnothi.models.backbone import build
from gnothi.recipes.rules import is_transformer
from gnothi.recipes.spec import checked
from gnothi.recipes.views import named as recipe
from gnothi.training.optimisers import OptimiserSpec
from gnothi.views.batches import Batches, ViewsSpec

RATES = {"sgd": (0.003, 0.01, 0.03, 0.1), "adamw": (3e-5, 1e-4, 3e-4, 1e-3)}
"""Learning rates among which one is chosen; AdamW for transformers."""
DECAY = {"sgd": 1e-4, "adamw": 0.05}
HELD = 0.2
"""Part of the labelled rows on which the rate is chosen."""
FEW = 5
"""With fewer labels a class than this there is no choice: the second rate is taken."""
STEPS, LEAST, MOST = 1000, 10, 100
"""Epochs come to about so many steps, but are at least and at most so many."""


class FinetuneSpec(Spec):
    """How a network is fine-tuned."""

    share: float = Field(default=1.0, gt=0, le=1)
    """Part of the labels of each class that is shown."""
    shots: int | None = Field(default=None, ge=1)
    """Labels of each class that are shown, instead of a share."""
    freeze: int | None = None
    """Block, from 0, or from the end where negative, up to which nothing learns. None: everything learns."""
    anew: bool = False
    """What lies above the frozen blocks starts from random weights."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the labelled rows. None: about 1,000 steps, but 10 to 100 epochs."""
    batch: int | None = Field(default=None, ge=2)
    """Images a step. None: 64, or the power of two that leaves four steps an epoch, at least 8."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate. None: chosen on a fifth of the labelled rows."""
    views: str = "plain"
    """Named recipe of views, of which the first crop is shown."""
    workers: int = Field(default=0, ge=0)
    """Processes that read images; 0 for none."""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> FinetuneSpec:
        """Check plain values.

        Raises:
            SettingError: the first mistake, with the nearest right thing.
        """
        spec = checked(cls, settings, "finetune")
        if spec.shots is not None and spec.share < 1:
            raise SettingError(f"--share {spec.share:g} and --shots {spec.shots} both say how many labels are shown; give one of them")
        if spec.anew and spec.freeze is None:
            raise SettingError("--anew is about what lies above frozen blocks, and nothing is frozen; --freeze L says up to where")
        return spec

    def steps(self, n: int) -> tuple[int, int, int]:
        """Steps, steps of an epoch and batch for n labelled rows."""
        batch = min(n, self.batch or max(8, min(64, 2 ** int(math.log2(max(n / 4, 1))))))
        per_epoch = n // batch
        epochs = self.epochs or min(MOST, max(LEAST, round(STEPS / per_epoch)))
        return max(1, round(epochs * per_epoch)), per_epoch, batch


@dataclass(frozen=True)
class Start:
    """What a network begins from."""

    name: str
    encoder: NetworkEncoder
    random: bool = False
    """From random weights of the encoder's architecture."""

    @property
    def kind(self) -> Literal["sgd", "adamw"]:
        """The optimiser."""
        return "adamw" if is_transformer(self.encoder.spec.name) else "sgd"

    def network(self, spec: FinetuneSpec, seed: int) -> nn.Module:
        """A network of its own, whose frozen part is frozen."""
        e = self.encoder
        fresh = build(e.spec, e.channels, e.size, seed) if self.random or spec.anew else None
        own: nn.Module = fresh if self.random and fresh is not None else copy.deepcopy(e.backbone)
        own = own.to(e.device).requires_grad_(True)
        frozen = frozenset[str]()
        if spec.freeze is not None:
            frozen = below(own, block_number(e.name, own, spec.freeze), e.channels, e.size)
            if spec.anew and fresh is not None and not self.random:
                renew(own, fresh, frozen)
        freeze(own, frozen)
        return own

    def learns(self, spec: FinetuneSpec) -> str:
        """What learns, in words."""
        if spec.freeze is None:
            return "whole network fine-tuned"
        block = block_number(self.name, self.encoder.backbone, spec.freeze)
        return f"frozen up to block {block}, what lies above {'trained anew' if spec.anew else 'fine-tuned'}"

    def folder(self, spec: FinetuneSpec, rows: Source, told: np.ndarray, seed: int) -> str:
        """The name of its runs' folder, when it learns what is told of some rows."""
        return named(self.name, seed, [self.encoder.fingerprint, self.random, spec.model_dump(mode="json"), rows.fingerprint(), told.tolist(), seed])

    def train(
        self, method: Alone, source: Source, spec: FinetuneSpec, rate: float, *, seed: int, folder: Path | None, broken: float, shown: bool
    ) -> None:
        """Train a method over ``network`` to the last step.

        Args:
            method: what learns; it knows what it is told of the source's rows.
            source: the rows.
            spec: how.
            rate: peak learning rate.
            seed: of order and crops.
            folder: of checkpoints; None keeps nothing.
            broken: part of the images that may be broken before it stops.
            shown: whether to show progress.
        """
        e = self.encoder
        total, per_epoch, batch = spec.steps(len(source))
        batches = Batches(
            source,
            ViewsSpec(global_crops=recipe(spec.views, e.size).global_crops[:1]),
            batch=batch,
            seed=seed,
            pixels=e.pixels_of(source.dtype),
            device=e.device,
            workers=0 if source.array is not None else spec.workers,
            total=total,
            broken_fraction=broken,
            channels_last=True,
        )
        optimiser = OptimiserSpec(name=self.kind, lr=rate, weight_decay=DECAY[self.kind], warm_up="5%")
        words = f"{self.name}: {len(source)} labels, rate {rate:g}, seed {seed}"
        fit(
            method.to(e.device),
            batches,
            optimiser=optimiser,
            total=total,
            per_epoch=per_epoch,
            seed=seed,
            folder=folder,
            words=words,
            shown=shown,
            batch=batch,
        )

    def vectors(self, learnt: nn.Module, source: Source, rows: np.ndarray) -> Tensor:
        """[M, D] of whole images as the encoder shows them to its network, by what that became; NaN where an image cannot be read.

        Raises:
            RunError: a vector is not finite.
        """
        e, network = self.encoder, cast(Any, learnt)
        tuned = NetworkEncoder("tuned", network, e.spec, e.channels, e.size, e.pixels, any_range=e.any_range, device=e.device)
        try:
            return torch.from_numpy(tuned.embed_source(source, rows)).to(e.device)
        except EncoderError as error:
            raise RunError(f"{self.name}: fine-tuning broke it, a lower --lr may help; {error}") from None
