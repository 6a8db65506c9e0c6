"""Exports of ensembles: one folder and one graph that say what the ensemble says, and what cannot be exported."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_export import BYTES, encoder, images, relative
from torch import Tensor

from gnothi import export as module
from gnothi.contracts import EncoderError, Pixels, SettingError
from gnothi.data import open as open_data
from gnothi.encoders import Encoder, load
from gnothi.encoders.network import NetworkEncoder
from gnothi.ensemble import EnsembleEncoder, fit
from gnothi.ensemble.graph import Combined
from gnothi.export import export

DESCENT = {"width": 8, "hidden": 16, "epochs": 2, "batch": 32}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("average", {}),
    ("concatenation", {"centre": True}),
    ("pca", {"width": 20}),
    ("whitened", {"power": 0.5}),
    ("gcca", {"width": 20}),
    ("procrustes", {}),
    ("member", {"number": 1}),
    ("best", {}),
    ("amortised", {**DESCENT, "lr_networks": 0.02}),
    ("amortised", {**DESCENT, "power": 0.5, "standardise": "phi-s", "start": "average", "width": None}),
    ("descent", {**DESCENT, "steps": 0}),
]


@pytest.fixture(scope="module")
def members() -> list[NetworkEncoder]:
    """Of different kinds, widths, sizes and statistics."""
    other = Pixels(0.0, 255.0, (0.3, 0.3, 0.3), (0.3, 0.2, 0.25))
    found = [encoder(args={"widths": [16, 16, 24, 24]}), encoder("micro-vit", size=16, pixels=other, args={"depth": 2, "width": 32, "heads": 2})]
    for i, e in enumerate(found):
        e.name = f"runs/{i}"
    return found


@pytest.fixture(scope="module")
def seen(members: list[NetworkEncoder]) -> list[Tensor]:
    """What members say of tiles of photographs."""
    source = open_data("photos")
    tiles = torch.stack([source.image(i) for i in range(0, len(source), len(source) // 90)][:90])
    return [e.embed(tiles) for e in members]


def combined(members: list[Any], seen: list[Tensor], combiner: str, settings: dict[str, Any], **options: Any) -> EnsembleEncoder:
    return EnsembleEncoder("runs/both", fit(seen, combiner, **settings), members, 3, options)


@pytest.mark.parametrize(("combiner", "settings"), CASES)
def test_the_card_and_the_folder_say_what_the_ensemble_says(
    members: list[NetworkEncoder], seen: list[Tensor], combiner: str, settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code of the card runs in this process here; a process without gnothi is another test's."""
    source = combined(members, seen, combiner, settings)
    monkeypatch.setattr(module, "_parity", lambda *_: {})
    done = export(source, tmp_path / "out", onnx=False, data="photos")
    assert done.files == ("README.md", "ensemble.json", "ensemble.safetensors", "member-0", "member-1")
    x, reader = images(height=40, width=52), dict[str, Any]()
    monkeypatch.chdir(tmp_path / "out")
    exec(re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.S)[0], reader)
    expected = source.embed(x)
    assert expected.shape == (8, source.dim) and relative(reader["embed"](x), expected) < 1e-5
    again = load(str(tmp_path / "out"))
    assert torch.equal(again.embed(x), expected) and again.fingerprint == source.fingerprint == done.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize(("combiner", "settings"), [CASES[-2], CASES[2]])
def test_without_gnothi_timm_and_onnx_say_the_same_to_a_hundred_thousandth(
    members: list[NetworkEncoder], seen: list[Tensor], combiner: str, settings: dict, tmp_path: Path
) -> None:
    import onnxruntime

    source = combined(members, seen, combiner, settings)
    done = export(source, tmp_path / "out", onnx=True, data="photos")
    assert set(done.parity) == {"timm", "onnx"} and all(found["relative"] <= 1e-5 for found in done.parity.values())
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    for height, width, n in ((32, 32, 1), (20, 20, 3), (31, 90, 2)):
        x = images(height=height, width=width, n=n)
        assert relative(session.run(None, {"images": x.numpy()})[0], source.embed(x)) < 1e-5
    assert json.loads((tmp_path / "out" / "ensemble.json").read_text())["parity"] == done.parity


def test_an_export_is_replaced_by_another_whole_and_moves_as_one(
    members: list[NetworkEncoder], seen: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_parity", lambda *_: {})
    export(combined(members, seen, "average", {}), tmp_path / "out", onnx=False, data="photos")
    source = combined(members, seen, "pca", {"width": 5})
    export(source, tmp_path / "out", onnx=False, data="photos")
    os.rename(tmp_path / "out", tmp_path / "moved")
    again = load(str(tmp_path / "moved"))
    assert torch.equal(again.embed(images()), source.embed(images())) and again.dim == 5
    assert {m["name"] for m in json.loads((tmp_path / "moved" / "ensemble.json").read_text())["members"]} == {"runs/0", "runs/1"}
    export(members[0], tmp_path / "moved", onnx=False, data="photos")  # an export of one network takes its place
    assert "ensemble.json" not in {p.name for p in (tmp_path / "moved").iterdir()}
    assert load_file(tmp_path / "moved" / "model.safetensors").keys()


class Ranged(Encoder):
    """Says something; is no network."""

    name, dim, channels, fingerprint = "hog", 24, 3, "0"


def test_what_cannot_be_exported_is_said_in_a_line(members: list[NetworkEncoder], seen: list[Tensor], tmp_path: Path) -> None:
    def refused(source: EnsembleEncoder, words: str, error: type[Exception] = EncoderError) -> None:
        with pytest.raises(error, match=words) as raised:
            export(source, tmp_path / "out", onnx=False, data="photos")
        assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()

    refused(combined(members, seen, "descent", DESCENT), r"takes steps of a descent, which is no fixed graph; --combiner amortised can$")
    slow = combined(members, seen, "amortised", {**DESCENT, "steps": 5})
    refused(slow, r"runs/both@steps-0 is the network alone, which can$")
    refused(combined([Ranged(), members[1]], seen, "pca", {"width": 5}), r"its member hog cannot: it is not a network; runs, exported folders")
    refused(combined([members[0], None], seen, "pca", {"width": 5}), "a member of it is missing")
    whole = NetworkEncoder("runs/2", members[0].backbone, members[0].spec, 3, 32, Pixels(0.0, 1.0, BYTES.mean, BYTES.std))
    refused(combined([whole, members[1]], seen, "pca", {"width": 5}), "different ranges, runs/2 from 0 to 1 and runs/1 from 0 to 255")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "ensemble.json").write_text("[]")
    with pytest.raises(SettingError, match="must be a new or empty folder or an earlier export"):
        export(combined(members, seen, "average", {}), tmp_path / "mine", onnx=False, data="photos")


def test_steps_left_out_make_an_amortised_ensemble_exportable(
    members: list[NetworkEncoder], seen: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_parity", lambda *_: {})
    source = combined(members, seen, "amortised", {**DESCENT, "steps": 5}, steps=0)
    export(source, tmp_path / "out", onnx=False, data="photos")
    assert torch.equal(load(str(tmp_path / "out")).embed(images()), source.embed(images()))
    whole = combined(members, seen, "amortised", {**DESCENT, "steps": 5})
    assert not np.allclose(whole.embed(images()), source.embed(images()))
    assert torch.allclose(Combined(source)([e.embed(images()) for e in members]), source.embed(images()), atol=1e-6)
