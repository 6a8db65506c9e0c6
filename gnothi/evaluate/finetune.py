"""Accuracy of networks that go on learning from labels: the whole of them, or what lies above a block, from all labels or a few."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import gnothi
from gnothi.contracts import DataError, EncoderError, RunError, SettingError, Source
from gnothi.data import DataSpec, Subset, holdout
from gnothi.encoders import Encoder, load
from gnothi.encoders.network import NetworkEncoder
from gnothi.evaluate.freezing import block_number
from gnothi.evaluate.labelled import chosen
from gnothi.evaluate.linear import Rows
from gnothi.evaluate.result import Predictions, Result, accuracy, against, summary
from gnothi.evaluate.run import Part, Split, split
from gnothi.evaluate.tuning import FEW, HELD, RATES, FinetuneSpec, Start
from gnothi.files import write_text
from gnothi.methods.classify import Classify, ClassifySpec
from gnothi.randomness import seeded
from gnothi.training import twice


def finetune(
    encoders: Sequence[str | Encoder],
    data: str | Source,
    test: str | Source | None = None,
    *,
    spec: FinetuneSpec = FinetuneSpec(),  # noqa: B008
    control: bool = False,
    repeats: int = 1,
    settings: DataSpec = DataSpec(),  # noqa: B008
    seed: int = 0,
    out: str | Path | None = None,
    device: str | None = None,
    shown: bool = False,
) -> list[Result]:
    """Fine-tune networks on the same rows, and measure them after the last epoch.

    Args:
        encoders: names, or encoders, that are networks; the first is the one that the others are compared with.
        data: as for ``run``.
        test: as for ``run``; it is looked at once, at the end.
        spec: how they are trained.
        control: train each architecture from random weights, too.
        repeats: so many seeds from ``seed`` on, each with labelled rows, heads, order and crops of its own; results are then means over them.
        settings: of the data, where it is named.
        seed: of every choice; held-out test rows are those of this one in all repeats.
        out: folder where the runs lie and are gone on with; the last state of each is an encoder. None keeps nothing.
        device: where the networks compute.
        shown: whether to show progress.

    Returns:
        One result an encoder, in order, then the controls. ``details`` hold the rate, the rates tried, steps and labelled rows;
        ``details["paired"]`` of all but the first the difference to the first with its interval.

    Raises:
        SettingError: a setting cannot be.
        DataError: there are no labels, or too few rows.
        EncoderError: an encoder is no network, cannot be opened or does not take such images.
        Interrupted: a signal came.
    """
    if repeats < 1:
        raise SettingError(f"repeats must be at least 1, got {repeats}")
    opened = networks(encoders, device)
    rows = split(data, test, settings, seed)
    if len(np.unique(rows.train.labels)) < 2:
        raise DataError(f"fine-tuning needs two classes, {rows.train.words} has one")
    if rows.train.source.fingerprint() == rows.test.source.fingerprint() and len(np.intersect1d(rows.train.rows, rows.test.rows)):
        raise DataError(f"{rows.train.words} is both training and test data; name another with --test, or leave --test out")
    for e in opened:
        e.embed_source(rows.train.source, rows.train.rows[:1])  # what does not fit is said before anything is trained
        if spec.freeze is not None:
            block_number(e.name, e.backbone, spec.freeze)
    starts = [Start(e.name, e) for e in opened] + (controls(opened) if control else [])
    by_seed = []
    for s in range(seed, seed + repeats):
        labelled, words = chosen(rows.train.labels, rows.names, s, share=spec.share, shots=spec.shots)
        part = replace(rows.train, rows=rows.train.rows[labelled], labels=rows.train.labels[labelled])
        jobs = [_Job(start, spec, part, rows, words, s, settings, None if out is None else Path(out).expanduser(), shown) for start in starts]
        by_seed.append(_compared([job.result() for job in jobs]))
    return by_seed[0] if repeats == 1 else over_repeats(by_seed)


def networks(encoders: Sequence[str | Encoder], device: str | None = None) -> list[NetworkEncoder]:
    """Open encoders whose networks can go on learning.

    Raises:
        EncoderError: one is no network.
        SettingError: there are several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingError("fine-tuning and detection run in one process; start them without torchrun")
    opened = []
    for encoder in (load(e, device) if isinstance(e, str) else e for e in encoders):
        if not isinstance(encoder, NetworkEncoder):
            raise EncoderError(f"{encoder.name} cannot be fine-tuned, it is not a network; a run, an exported folder and timm:NAME are")
        opened.append(encoder)
    return opened


def controls(opened: Sequence[NetworkEncoder]) -> list[Start]:
    """Each architecture once, from random weights."""
    kinds = {(e.spec.model_dump_json(), e.channels, e.size, str(e.pixels)): e for e in reversed(opened)}
    return [Start(f"{e.spec.name}, random weights", e, random=True) for e in reversed(kinds.values())]


def _compared(told: Sequence[tuple[Result, np.ndarray]]) -> list[Result]:
    """Results with the test rows they are of, each but the first with its paired difference to the first."""
    first, rows = told[0]
    assert first.correct is not None
    found = [first]
    for result, own in told[1:]:
        assert result.correct is not None
        found.append(replace(result, details=result.details | {"paired": against((first.encoder, rows, first.correct), own, result.correct)}))
    return found


def over_repeats(by_seed: Sequence[Sequence[Result]], kept: Sequence[str] = ("labelled",)) -> list[Result]:
    """Means over seeds, and differences to the first encoder by seed, both with t-intervals; details that are kept are the first seed's."""
    found = []
    for i, results in enumerate(zip(*by_seed, strict=True)):
        one = summary(results)
        details = one.details | {word: results[0].details[word] for word in kept}
        if i:
            apart = summary([replace(r, value=r.value - rs[0].value) for r, rs in zip(results, by_seed, strict=True)])
            details["paired"] = {"against": by_seed[0][0].encoder, "value": apart.value, "low": apart.low, "high": apart.high, "n": len(by_seed)}
        found.append(replace(one, details=details))
    return found


# ---- one network, one seed -----------------------------------------------------------------------
@dataclass(frozen=True)
class _Job:
    start: Start
    spec: FinetuneSpec
    part: Part
    """The labelled rows."""
    rows: Split
    words: str
    """How the labelled rows were chosen."""
    seed: int
    settings: DataSpec
    out: Path | None
    shown: bool

    def result(self) -> tuple[Result, np.ndarray]:
        """Choose the rate, train on all labelled rows, and look at the test rows once; which of them could be read."""
        rate, tried, chosen_on = self._rate()
        method = self._train(np.arange(len(self.part.rows)), rate, "final")
        test = self.rows.test
        scores = _scores(method, self.start, test.source, test.rows)
        whole = ~np.isnan(scores[:, 0])
        total, per_epoch, batch = self.spec.steps(len(self.part.rows))
        lost = "" if whole.all() else f", {(~whole).sum()} unreadable images left out"
        protocol = (
            f"{self.start.learns(self.spec)}; {self.words}; {self.start.kind} at {rate:g} ({chosen_on}), cosine to 0, batch {batch}, "
            f'{total / per_epoch:g} epochs ({total} steps), crops "{self.spec.views}", last epoch{lost}; {self.rows.words}'
        )
        about = {"rate": rate, "tried": tried, "steps": total, "labelled": len(self.part.rows)}
        predictions = Predictions(test.labels[whole], scores[whole], self.rows.names)
        return accuracy("finetune", predictions, protocol, encoder=self.start.name, seeds=(self.seed,), **about), test.rows[whole]

    def _rate(self) -> tuple[float, list[dict[str, Any]], str]:
        """The learning rate, what was tried, and how it was found."""
        rates, n = RATES[self.start.kind], len(self.part.rows)
        if self.spec.lr is not None:
            return self.spec.lr, [], "as given"
        if n < FEW * len(np.unique(self.part.labels)):
            return rates[1], [], f"fixed, for fewer than {FEW} labels a class leave nothing to choose on"
        groups = None if self.part.source.groups is None else self.part.source.groups[self.part.rows]
        kept, held = holdout(Rows(self.part.labels, groups), HELD, self.seed)
        tried = [self._try(rate, kept, held) for rate in rates]
        best = max(tried, key=lambda t: (t["accuracy"], -t["cross_entropy"]))
        return best["setting"], tried, f"chosen among {len(rates)} on {len(held)} held-out labelled rows, then trained on all"

    def _try(self, rate: float, kept: np.ndarray, held: np.ndarray) -> dict[str, Any]:
        """How well a rate does on the held-out rows; nothing right and the entropy of chance where training breaks."""
        folder = self._folder(f"rate-{rate:g}")
        done = None if folder is None else folder / "tried.json"
        if done is not None and done.exists():
            before: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
            return before
        tried = {"setting": rate, "accuracy": 0.0, "cross_entropy": math.log(len(self.rows.names))}
        try:
            scores = _scores(self._train(kept, rate, f"rate-{rate:g}"), self.start, self.part.source, self.part.rows[held])
            whole = ~np.isnan(scores[:, 0])
            truth, said = torch.from_numpy(self.part.labels[held][whole]), torch.from_numpy(scores[whole]).double()
            right = float((said.argmax(1) == truth).double().mean())
            tried |= {"accuracy": right, "cross_entropy": float(F.nll_loss(said.clamp_min(1e-12).log(), truth))}
        except RunError:
            pass
        if folder is not None and done is not None:
            write_text(done, json.dumps(tried))
            for checkpoint in folder.glob("*.safetensors"):
                checkpoint.unlink()
        return tried

    def _train(self, rows: np.ndarray, rate: float, what: str) -> Classify:
        """The classifier after the last step."""
        source = Subset(self.part.source, self.part.rows[rows])
        source.labels, source.classes = self.part.labels[rows], self.rows.names
        with seeded(self.seed, "init", 1):
            method = Classify(self.start.network(self.spec, self.seed), ClassifySpec())
            method.meet(source)
        folder = self._folder(what)
        if folder is not None and what == "final":
            self._describe(folder)
        broken, shown = self.settings.broken_fraction, self.shown
        self.start.train(method, source, self.spec, rate, seed=self.seed, folder=folder, broken=broken, shown=shown)
        return method

    def _folder(self, what: str) -> Path | None:
        if self.out is None:
            return None
        return self.out / self.start.folder(self.spec, Subset(self.part.source, self.part.rows), self.part.labels, self.seed) / what

    def _describe(self, folder: Path) -> None:
        """What makes the folder a run, so that its last state is an encoder."""
        e = self.start.encoder
        pixels = asdict(e.pixels_of(self.part.source.dtype))
        settings = {"seed": self.seed, "backbone": e.spec.model_dump(mode="json"), "method": {"name": "classify"}}
        derived = {"channels": e.channels, "size": e.size, "pixels": pixels}
        about = {"gnothi": gnothi.__version__, "settings": settings, "derived": derived, "from": self.start.name, **self.spec.model_dump(mode="json")}
        twice.write(folder, about)


def _scores(method: Classify, start: Start, source: Source, rows: np.ndarray) -> np.ndarray:
    """Probabilities [M, C]; NaN where an image cannot be read."""
    vectors = start.vectors(method.backbone, source, rows)
    with torch.inference_mode():
        return method.logits(vectors).softmax(1).cpu().numpy()
