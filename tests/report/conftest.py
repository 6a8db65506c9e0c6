"""A made-up run folder and an encoder for it, so that the page can be tested without training."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import Browser

from gnothi import encoders
from gnothi.contracts import Source
from gnothi.randomness import generator
from gnothi.recipes.views import named


class MeanColour:
    """Embeds an image as the colours of its four quarters."""

    name, dim, fingerprint = "trained", 12, "made-up"

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        quarters = torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)
        return quarters - 100

    def embed_source(self, source: Source, rows: np.ndarray | None = None, progress: Any = None) -> np.ndarray:
        rows = np.arange(len(source)) if rows is None else rows
        return self.embed(torch.stack([source.image(int(r)) for r in rows])).numpy()


def made_up_metrics(steps: int = 310) -> list[dict[str, Any]]:
    """Plausible lines of a run with two loss terms, a teacher and k-NN at intervals."""
    noise = torch.randn(steps + 1, generator=generator(0, "metrics")).tolist()
    lines: list[dict[str, Any]] = []
    for step in range(steps + 1):
        progress = step / steps
        here = {"step": step, "epoch": step / 31, "seconds": 0.3 * step}
        contrast, turns = 3 * math.exp(-3 * progress) + 2 + 0.05 * noise[step], 1.4 - 0.8 * progress + 0.02 * noise[-step]
        terms = {"simclr": contrast, "rotation": turns}
        lines.append(
            {"kind": "train", **here, "loss": contrast + 0.5 * turns, "terms": terms, "weights": {"simclr": 1, "rotation": 0.5}}
            | {"lr": 0.2 * min(progress * 10, 1 - progress), "weight_decay": 1e-4, "momentum": 0.99 + 0.01 * progress}
            | {"gradient_norm": 1 + 600 * math.exp(-20 * progress), "images_per_second": 880.0, "waiting": 0.02}
        )
        if step % 31 == 0:
            health = {"std": 0.6 + 0.3 * progress, "rankme": 8 + 40 * progress, "teacher_entropy": 0.9 - 0.5 * progress, "mean_entropy": 0.97}
            lines.append({"kind": "health", **here, **health})
            value = 0.59 + 0.22 * progress
            interval = {"value": value, "low": value - 0.02, "high": value + 0.02}
            lines.append({"kind": "evaluation", **here, "metric": "knn", **interval, "n": 400, "protocol": "k=20"})
    return lines


def made_up_results() -> list[dict[str, Any]]:
    """Five encoders by two metrics."""
    values = {"pixels": (0.32, 0.35), "hog": (0.42, 0.48), "colour": (0.74, 0.71), "untrained": (0.59, 0.61), "trained": (0.82, 0.85)}
    protocols = {"knn": "cosine, k = 20, T = 0.07", "linear": "logistic regression, L2 chosen on a fifth of the training set"}
    return [
        {"encoder": e, "metric": m, "value": v[i], "low": v[i] - 0.025, "high": v[i] + 0.024, "n": 960, "protocol": protocols[m]}
        for e, v in values.items()
        for i, m in enumerate(protocols)
    ]


PIXELS = {"low": 0.0, "high": 255.0, "mean": [0.45, 0.43, 0.4], "std": [0.25, 0.25, 0.27]}
VERDICT = {
    "verdict": "healthy",
    "collapse": None,
    "why": "Projections spread 0.90 of 1.",
    "advice": "",
    "steps": 310,
    "seconds": 93.2,
}


def make_run(folder: Path, name: str, **changes: Any) -> Path:
    """Write the files of a run on some data; ``changes`` replace what ``verdict``, ``metrics``, ``settings`` and ``derived`` hold."""
    folder.mkdir(parents=True)
    settings = {
        "seed": 0,
        "method": {"name": "simclr", "temperature": 0.2},
        "backbone": {"name": "micro-resnet"},
        "views": {"size": 32, "recipe": "simclr-cifar"},
        "optimiser": {"name": "sgd", "lr": 0.2},
        "training": {"epochs": 10, "batch": 128},
        "data": {"name": name},
    }
    crops = named("dino", 32).model_dump(mode="json")
    spec = {
        "gnothi": "0.1.0",
        "settings": settings | changes.get("settings", {}),
        "derived": {"pixels": PIXELS, "channels": 3, "size": 32, "n": 4000, "steps": 310, "views": crops} | changes.get("derived", {}),
        "source": {"name": name, "fingerprint": "ab12", "n": 4000},
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    (folder / "verdict.json").write_text(json.dumps(VERDICT | {"broken": []} | changes.get("verdict", {})))
    (folder / "environment.json").write_text(json.dumps({"torch": "2.15.0", "threads": 2}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in changes.get("metrics", made_up_metrics())))
    return folder


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> MeanColour:
    """Every run's encoder is a ``MeanColour``."""
    made = MeanColour()
    monkeypatch.setattr(encoders, "load", lambda name, device=None: made)
    return made


@pytest.fixture
def tiles(tmp_path: Path) -> str:
    """120 coloured tiles of four classes, without a test split."""
    colours = torch.tensor([[200, 40, 40], [40, 160, 60], [50, 80, 200], [210, 190, 60]])
    labels = torch.arange(120) % 4
    noise = torch.randint(-40, 40, (120, 3, 32, 32), generator=generator(0, "tiles"))
    images = (colours[labels][:, :, None, None] + noise).clamp(0, 255).byte().permute(0, 2, 3, 1)
    np.savez(tmp_path / "tiles.npz", images=images.numpy(), labels=labels.numpy())
    return str(tmp_path / "tiles.npz")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A Chromium, where there is one."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine")
    browser = Browser(program, tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()
