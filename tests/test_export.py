"""Exports: what they hold, who can read them, and what is refused."""

import ctypes
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gnothi import export as module
from gnothi.contracts import EncoderError, Pixels, RunError, SettingError
from gnothi.data import ArraySource
from gnothi.encoders import load
from gnothi.encoders.network import NetworkEncoder
from gnothi.export import Preprocessed, export, input_type
from gnothi.files import replace_folder
from gnothi.models.backbone import BackboneSpec, adopt, build
from gnothi.randomness import generator

BYTES = Pixels(0.0, 255.0, (0.4, 0.5, 0.45), (0.2, 0.25, 0.22))
WORDS = Pixels(0.0, 65535.0, (0.1, 0.2, 0.3, 0.4, 0.5), (0.1, 0.2, 0.1, 0.2, 0.1))


def encoder(name="micro-resnet", channels=3, size=32, pixels=BYTES, **settings):
    """A network whose norms have seen images, so that nothing in it is dead, and nothing 0 or 1 by chance."""
    spec = BackboneSpec(name=name, **settings)
    backbone = build(spec, channels, size, seed=0)
    for i, p in enumerate(backbone.parameters()):
        p.data += 0.1 * p.data.abs().mean() * torch.randn(p.shape, generator=generator(0, "parameter", i))
    with torch.no_grad():
        for i in range(20):
            backbone(3 * torch.rand(16, channels, size, size, generator=generator(0, "seen", i)) - 1.5)
    return NetworkEncoder("a-run", backbone, spec, channels, size, pixels)


def images(channels=3, height=40, width=52, n=8, high=256, dtype=torch.uint8):
    return torch.randint(0, high, (n, channels, height, width), generator=generator(0, "images")).to(dtype)


def relative(a, b):
    return float((torch.as_tensor(a) - b).abs().max() / b.abs().max())


def test_an_export_says_the_same_to_gnothi_and_to_onnx_at_any_size(tmp_path):
    import onnxruntime

    source = encoder()
    done = export(source, tmp_path / "out", onnx=True, data="photos")
    assert done.files == ("README.md", "config.json", "model.onnx", "model.safetensors") and done.n == 12
    assert all(0 <= found["relative"] <= 1e-5 for found in done.parity.values()) and set(done.parity) == {"timm", "onnx"}
    again = load(str(tmp_path / "out"))
    assert source.embed(images()).abs().mean() > 0.01 and torch.equal(again.embed(images()), source.embed(images()))
    assert again.fingerprint == source.fingerprint == done.fingerprint
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    for height, width in ((32, 32), (20, 20), (31, 90), (200, 65)):
        x = images(height=height, width=width, n=3)
        assert relative(session.run(None, {"images": x.numpy()})[0], source.embed(x)) < 1e-5
    assert json.loads((tmp_path / "out" / "config.json").read_text())["parity"] == done.parity
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_16_bit_images_of_five_channels_are_exported_and_an_earlier_export_is_replaced(tmp_path):
    x = images(5, high=65536, dtype=torch.int32).to(torch.uint16)
    first = export(encoder("micro-vit", 5, pixels=WORDS, args={"depth": 2}), tmp_path / "out", onnx=False, data=ArraySource(x))
    source = encoder("micro-vit", 5, pixels=WORDS, mask_token=True, args={"depth": 3})
    done = export(source, tmp_path / "out", onnx=False, data=ArraySource(x))
    assert set(done.parity) == {"timm"} and "model.onnx" not in done.files and done.fingerprint != first.fingerprint
    assert torch.equal(load(str(tmp_path / "out")).embed(x), source.embed(x))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["backbone"]["mask_token"] is False


def test_an_exported_pretrained_network_needs_no_download_and_keeps_its_stem():
    spec = module._architecture(BackboneSpec(name="resnet18", pretrained=True))
    assert (spec.pretrained, spec.stem) == (False, "plain") and module._architecture(BackboneSpec(name="resnet18")).stem is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", 32), ("resnet50", 96), ("vit_tiny_patch16_224", 32), ("swin_tiny_patch4_window7_224", 64), ("convnext_atto", 64),
        ("efficientnet_b0", 64), ("densenet121", 64), ("regnety_002", 64), ("mobilenetv3_small_050", 64), ("deit_tiny_patch16_224", 64),
        ("vgg11_bn", 32),
    ],
)  # fmt: skip
def test_every_family_is_exported(name, size, tmp_path):
    source = encoder(name, size=size)
    done = export(source, tmp_path / "out", onnx=True, data="photos")
    assert all(found["relative"] <= 1e-5 for found in done.parity.values())
    assert torch.equal(load(str(tmp_path / "out")).embed(images()), source.embed(images()))


@pytest.mark.slow
def test_16_bit_images_go_into_onnx_as_they_are(tmp_path):
    x = images(5, high=65536, dtype=torch.int32).to(torch.uint16)
    done = export(encoder("micro-vit", 5, pixels=WORDS), tmp_path / "out", onnx=True, data=ArraySource(x))
    assert done.parity["onnx"]["relative"] <= 1e-5


@pytest.mark.parametrize("shape", [(32, 32), (64, 64), (20, 50), (33, 90), (91, 40), (32, 200)])
def test_the_preprocessing_of_the_graph_is_the_encoders(shape):
    source, x = encoder(), images(height=shape[0], width=shape[1], n=2)
    assert relative(Preprocessed(source.backbone, 32, BYTES)(x), source.embed(x)) < 1e-5


def test_the_input_has_the_type_of_the_range():
    assert (input_type(BYTES), input_type(WORDS), input_type(Pixels(0, 1, (0.5,), (0.5,)))) == (torch.uint8, torch.uint16, torch.float32)


def test_readers_that_say_something_else_leave_nothing_behind(tmp_path, monkeypatch):
    source = encoder()
    export(source, tmp_path / "out", onnx=False, data="photos")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    right = module.weights
    monkeypatch.setattr(module, "weights", lambda b: {k: v * 1.001 if k == "layer2.0.conv1.weight" else v for k, v in right(b).items()})
    with pytest.raises(RunError, match="timm reads the exported encoder differently: by .* 1e-05 is allowed"):
        export(source, tmp_path / "out", onnx=False, data="photos")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_reader_cannot_import_gnothi(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_card", lambda *_: "```python\nimport gnothi\n```\n")
    with pytest.raises(RunError, match="could not be read back without gnothi: ImportError: gnothi is not to be had here"):
        export(encoder(), tmp_path / "out", onnx=False, data="photos")
    assert not list(tmp_path.iterdir())


def test_what_has_no_network_or_no_form_in_timm_is_refused(tmp_path):
    with pytest.raises(EncoderError, match="^hog cannot be exported: it is not a network; runs, exported folders and timm:NAME are$"):
        export("hog", tmp_path / "out")
    adopted = NetworkEncoder("mine", adopt(nn.Conv2d(3, 4, 3)), BackboneSpec(), 3, 32, BYTES)
    with pytest.raises(EncoderError, match="^mine cannot be exported: timm has no network like Adopted"):
        export(adopted, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").write_text("mine")
    (tmp_path / "photos" / "config.json").write_text("[1]")
    for to in (tmp_path / "photos", tmp_path / "photos" / "a.txt"):
        with pytest.raises(SettingError, match="--to must be a new or empty folder or an earlier export"):
            export(encoder(), to)
    assert (tmp_path / "photos" / "a.txt").read_text() == "mine"


def folders(place):
    for name in ("new", "to"):
        (place / name).mkdir()
        (place / name / "file").write_text(name)
    return place / "new", place / "to", place / "aside"


def together(place):
    """Whether the system lets two folders change places at once."""
    new, to, aside = folders(place)
    call = getattr(ctypes.CDLL(None), "renameat2", None)
    return call is not None and call(-100, bytes(new), -100, bytes(to), 2) == 0


def test_a_folder_that_replaces_another_takes_its_name_at_once(tmp_path, monkeypatch):
    (tmp_path / "tried").mkdir()
    if not together(tmp_path / "tried"):
        pytest.skip("this system cannot let two folders change places")
    renamed = []
    monkeypatch.setattr(Path, "rename", lambda self, to: renamed.append(to))
    new, to, aside = folders(tmp_path)
    replace_folder(new, to, aside)
    assert (to / "file").read_text() == "new" and (new / "file").read_text() == "to" and renamed == []


def test_a_folder_is_replaced_also_where_the_system_cannot_do_it_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    new, to, aside = folders(tmp_path)
    replace_folder(new, to, aside)
    assert (to / "file").read_text() == "new" and (aside / "file").read_text() == "to" and not new.exists()
    replace_folder(to, tmp_path / "free", aside)
    assert (tmp_path / "free" / "file").read_text() == "new" and not to.exists()


def test_missing_onnx_is_said_when_asked_for_and_left_out_when_not(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnxruntime" else find(name, *a))
    with pytest.raises(SettingError, match=r"ONNX needs onnxruntime, which is not installed: pip install 'gnothi\[onnx\]'"):
        export(encoder(), tmp_path / "out", onnx=True)
    monkeypatch.setattr(module, "_parity", lambda *_: {})
    assert "model.onnx" not in export(encoder(), tmp_path / "out", data="photos").files


def test_images_to_compare_on_are_the_runs_own_or_must_be_given(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_parity", lambda *_: {})
    np.save(tmp_path / "own.npy", images(5, high=1000, dtype=torch.int32).to(torch.uint16).numpy())
    five = encoder("micro-resnet", 5, pixels=WORDS)
    with pytest.raises(SettingError, match="--data must be given for a-run: images to compare on, of 5 channels"):
        export(five, tmp_path / "out", onnx=False)
    with pytest.raises(SettingError, match="--data must have images of 5 channels for a-run, these have 3"):
        export(five, tmp_path / "out", onnx=False, data="photos")
    five.name = f"{tmp_path}/run@online"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "spec.json").write_text(json.dumps({"settings": {"data": {"name": str(tmp_path / "own.npy")}}}))
    assert export(five, tmp_path / "out", onnx=False).n == 8


def test_images_to_compare_on_are_opened_with_the_runs_own_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_parity", lambda *_: {})
    (tmp_path / "colour").mkdir()
    for row, image in enumerate(images(3)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "colour" / f"{row}.png")
    grey = encoder("micro-resnet", 1)
    grey.name = f"{tmp_path}/run"
    (tmp_path / "run").mkdir()
    data = {"name": str(tmp_path / "colour"), "channels": 1, "holdout": None}
    (tmp_path / "run" / "spec.json").write_text(json.dumps({"settings": {"data": data}}))
    assert export(grey, tmp_path / "out", onnx=False).n == 8
