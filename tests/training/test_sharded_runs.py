"""A whole run of torchrun whose processes share their parameters, against one whose processes have all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from terminal import noise, said, torchrun
from torch import Tensor

from gnothi.training import checkpoint

pytestmark = [pytest.mark.ddp, pytest.mark.slow]

SMALL = ["--method", "vicreg", "--auxiliary", "jigsaw", "--epochs", "1", "--device", "cpu"]
for setting in (
    "backbone.args.widths=[6,7,9]", "method.hidden=16", "method.out=8", "views.size=32", "data.holdout=0.2", "optimiser.name=sgd",
    "optimiser.lr=0.01", "training.batch=8", "training.threads=1", "training.precision=fp32", "training.channels_last=false",
    "training.evaluate_every=50%", "training.health_every=50%",
):  # fmt: skip
    SMALL += ["--set", setting]
APART = 1e-4
"""Of float32 numbers, relative to the largest of each tensor; measured: 1e-5, for sums over processes are taken in another order."""


def numbers(run: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys = ("loss", "gradient_norm", "rankme", "std", "value")
    return {f"{m['kind']} {m['step']} {m.get('metric', '')} {k}": m[k] for m in lines for k in keys if k in m}


def state(run: Path) -> dict[str, Tensor]:
    newest: Any = checkpoint.newest(run)
    return {k: v.double() for k, v in checkpoint.read(newest)[0].items() if v.numel() and not k.startswith("window")}


def test_a_run_whose_processes_share_everything_is_that_whose_processes_have_all(tmp_path: Path) -> None:
    """With crops of an auxiliary's own: losses, health, k-NN along the way, and every tensor of the last checkpoint, which an encoder then opens."""
    np.savez(tmp_path / "data.npz", images=noise(40, 36, 36, 3).astype(np.uint8), labels=np.arange(40) % 2)
    args = ("train", str(tmp_path / "data.npz"), *SMALL)
    for name, parallel in (("all", "ddp"), ("shared", "fsdp")):
        done = torchrun(2, *args, "--out", tmp_path / name, "--set", f"training.parallel={parallel}")
        assert done.returncode == 0, done.stderr
    whole, shared = numbers(tmp_path / "all"), numbers(tmp_path / "shared")
    assert whole.keys() == shared.keys() and sum("evaluation" in k for k in whole) == 2
    assert [k for k in whole if shared[k] != pytest.approx(whole[k], rel=APART, abs=1e-6)] == []
    a, b = state(tmp_path / "all"), state(tmp_path / "shared")
    assert a.keys() == b.keys() and len(a) > 50
    far = {k: float((a[k] - b[k]).abs().max() / a[k].abs().max().clamp(min=1.0)) for k in a}
    assert max(far.values()) < APART, max(far, key=far.__getitem__)
    said("embed", str(tmp_path / "shared"), str(tmp_path / "data.npz"), "--out", str(tmp_path / "x.npz"))
    with np.load(tmp_path / "x.npz") as embedded:
        assert np.isfinite(embedded["embeddings"]).all() and len(embedded["embeddings"]) == 40
