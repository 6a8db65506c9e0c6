"""An ensemble as the teacher of a feed-forward student."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from terminal import said
from test_fitted import drawn

import gnothi
from gnothi.data.targets import Targets
from gnothi.encoders import load

QUICK = ("--set", "training.epochs=6", "--set", "training.batch=16", "--set", "training.precision=fp32", "--set", "views.size=16")
QUICK += ("--set", "backbone.args.widths=[16,16,16,16]", "--set", "training.threads=1", "--set", "views.flip=0", "--set", "views.area=[0.7,1]")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GNOTHI_CACHE", str(tmp_path / "cache"))
    source = drawn(90)
    np.savez("tiny.npz", images=source.array.movedim(1, 3).numpy(), labels=source.labels)
    said("ensemble", "fit", "hog", "colour", "--data", "tiny.npz", "--out", "both", "--set", "width=6", "--set", "power=1")
    return "tiny.npz"


def test_a_student_learns_what_an_ensemble_says(data: str) -> None:
    """Its targets are the ensemble's vectors at unit length, and at the end it says nearly the same of images that were held out."""
    said("transfer", "both", "--data", data, "--student", "micro-resnet", "--loss", "regression", "--out", "student", *QUICK)
    source = gnothi.data.open(data)
    targets = Targets.read(Path("student/targets.safetensors"), "vectors")
    expected = F.normalize(torch.from_numpy(load("both").embed_source(source)), dim=1)
    assert torch.allclose(targets.tensors["vectors.0"][targets.rows(source)].float(), expected, atol=1e-3)
    lines = [json.loads(line) for line in Path("student/metrics.jsonl").read_text().splitlines()]
    held = [m["value"] for m in lines if m.get("metric") == "held_out_cosine"]
    assert held[-1] > held[0] and held[-1] > 0.5
    told = said("evaluate", "knn", "both", "student", "--data", data)
    assert [r["encoder"] for r in told["results"]] == ["both", "student"]


def test_a_head_a_member_or_clusters_of_the_whole_are_taken_too(data: str) -> None:
    said("transfer", "hog", "colour", "--data", data, "--student", "micro-resnet", "--loss", "regression", "--out", "heads", *QUICK)
    assert [x.shape[1] for x in Targets.read(Path("heads/targets.safetensors"), "vectors").tensors.values()] == [load("hog").dim, 48]
    said("transfer", "both", "--data", data, "--student", "micro-resnet", "-k", "3", "--out", "clusters", *QUICK)
    targets, source = Targets.read(Path("clusters/targets.safetensors"), "classes"), gnothi.data.open(data)
    assert len(set(targets.tensors["index"][targets.rows(source), 0, 0].tolist())) == 3
