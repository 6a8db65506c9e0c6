import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gnothi.contracts import EncoderError, Pixels
from gnothi.data import ArraySource
from gnothi.encoders import load
from gnothi.encoders.encoder import place_of
from gnothi.encoders.network import NetworkEncoder
from gnothi.models.backbone import BackboneSpec, build, patch_size
from gnothi.randomness import generator
from gnothi.training import checkpoint

PIXELS = Pixels(0, 255, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
SIZE = 16


def drawn(*shape, seed=0):
    return torch.randint(256, shape, generator=generator(seed, "images"), dtype=torch.uint8)


def moved(network, by):
    """The same network with all its numbers moved, as if it had learned."""
    return {k: v + by if v.is_floating_point() else v for k, v in network.state_dict().items()}


def write_run(folder, method="simclr", steps=(10,), teacher=False, seed=3, backbone=None, pixels=PIXELS):
    spec = BackboneSpec(**(backbone or {"name": "micro-resnet", "args": {"widths": [4, 8]}}))
    channels = len(pixels.mean)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"seed": seed, "method": {"name": method}, "backbone": spec.model_dump(mode="json")}
    derived = {"pixels": asdict(pixels), "channels": channels, "size": SIZE}
    (folder / "spec.json").write_text(json.dumps({"gnothi": "0", "settings": settings, "derived": derived}))
    network = build(spec, channels, SIZE, seed)
    for step in steps:
        tensors = {f"method.backbone.{k}": v for k, v in moved(network, 0.01 * step).items()}
        if teacher:
            tensors |= {f"method.slow.{k}": v for k, v in moved(network, -0.001 * step).items()}
        checkpoint.write(folder, step, tensors, {}, keep=9)
    return network


def by_hand(network, tensors, images):
    network.load_state_dict(tensors)
    network.eval()
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (PIXELS.mean, PIXELS.std))
    with torch.no_grad():
        return network((images / 255 - mean) / std).pooled


def test_a_run_embeds_as_its_network_does_by_hand(tmp_path):
    network = write_run(tmp_path / "x")
    images = drawn(5, 3, SIZE, SIZE)
    found = load(str(tmp_path / "x")).embed(images)
    assert found.shape == (5, 8) and found.dtype == torch.float32 and not found.requires_grad
    assert torch.allclose(found, by_hand(network, moved(network, 0.1), images), atol=1e-6)


def test_marks_choose_the_network(tmp_path):
    network = write_run(tmp_path / "x", teacher=True, steps=(10, 20))
    fresh, images = {k: v.clone() for k, v in network.state_dict().items()}, drawn(5, 3, SIZE, SIZE)
    expected = {"": 0.2, "@online": 0.2, "@teacher": -0.02, "@step-10": 0.1, "@step-10@teacher": -0.01, "@teacher@step-20": -0.02, "@untrained": 0}
    found = {mark: load(f"{tmp_path}/x{mark}") for mark in expected}
    for mark, by in expected.items():
        network.load_state_dict(fresh)
        assert torch.allclose(found[mark].embed(images), by_hand(network, moved(network, by), images), atol=1e-5), mark
        assert found[mark].name == f"{tmp_path}/x{mark}"
    assert len({e.fingerprint for e in found.values()}) == 5
    assert torch.equal(load(f"untrained:{tmp_path}/x").embed(images), found["@untrained"].embed(images))


def test_dino_means_its_teacher(tmp_path):
    write_run(tmp_path / "d", method="dino", teacher=True)
    write_run(tmp_path / "b", method="byol", teacher=True)
    images = drawn(2, 3, SIZE, SIZE)
    assert torch.equal(load(f"{tmp_path}/d").embed(images), load(f"{tmp_path}/d@teacher").embed(images))
    assert torch.equal(load(f"{tmp_path}/b").embed(images), load(f"{tmp_path}/b@online").embed(images))


def test_the_newest_whole_checkpoint_is_taken(tmp_path):
    write_run(tmp_path / "x", steps=(10, 20))
    newest = checkpoint.path_of(tmp_path / "x", 20)
    newest.write_bytes(newest.read_bytes()[:-50])
    images = drawn(2, 3, SIZE, SIZE)
    assert torch.equal(load(f"{tmp_path}/x").embed(images), load(f"{tmp_path}/x@step-10").embed(images))
    with pytest.raises(EncoderError, match="not a whole checkpoint"):
        load(f"{tmp_path}/x@step-20")


def test_the_fingerprint_is_of_what_the_vectors_depend_on(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    write_run(tmp_path / "c", pixels=Pixels(0, 255, (0.5, 0.4, 0.3), (0.2, 0.25, 0.31)))
    a, b, c = (load(f"{tmp_path}/{x}").fingerprint for x in "abc")
    assert a == b != c


def test_neighbours_and_batch_sizes_do_not_matter(tmp_path, monkeypatch):
    write_run(tmp_path / "x")
    encoder, images = load(f"{tmp_path}/x"), drawn(37, 3, 24, 20)
    whole = encoder.embed(images)
    assert torch.allclose(torch.cat([encoder.embed(i[None]) for i in images]), whole, atol=1e-6)
    assert torch.allclose(encoder.embed(images.flip(0)).flip(0), whole, atol=1e-6)
    assert torch.equal(encoder.embed(images), whole)
    passes = []
    encoder.backbone.register_forward_hook(lambda m, i, o: passes.append(len(i[0])))
    monkeypatch.setattr("gnothi.encoders.network.PIXELS_AT_ONCE", 5 * SIZE * SIZE)
    assert torch.allclose(encoder.embed(images), whole, atol=1e-6)
    assert max(passes) == 5 and sum(passes) == 37


def test_layouts_lists_and_sources_say_the_same(tmp_path):
    write_run(tmp_path / "x")
    encoder, images = load(f"{tmp_path}/x"), drawn(9, 3, 24, 20)
    whole = encoder.embed(images)
    last = images.permute(0, 2, 3, 1).contiguous()
    for other in (last, last.numpy(), list(images), list(last.numpy()), images.float()):
        assert torch.allclose(encoder.embed(other), whole, atol=1e-5)
    told = []
    found = encoder.embed_source(ArraySource(images), progress=lambda done, n: told.append((done, n)))
    assert np.allclose(found, whole, atol=1e-6) and told == [(9, 9)]
    assert np.allclose(encoder.embed_source(ArraySource(images), rows=[4, 0, 4]), whole[[4, 0, 4]], atol=1e-6)


def test_embedding_moves_nothing(tmp_path):
    write_run(tmp_path / "x")
    encoder = load(f"{tmp_path}/x")
    before = checkpoint.digest(encoder.backbone.state_dict())
    encoder.embed(drawn(8, 3, SIZE, SIZE))
    assert checkpoint.digest(encoder.backbone.state_dict()) == before and not encoder.backbone.training


def test_sixteen_bits_reach_the_network_unrounded(tmp_path):
    pixels = Pixels(0, 60000, (0.5, 0.5), (0.2, 0.2))
    write_run(tmp_path / "x", pixels=pixels)
    encoder = load(f"{tmp_path}/x")
    images = torch.tensor([[30000.0, 30001.0]]).view(2, 1, 1, 1).expand(2, 2, SIZE, SIZE)
    prepared = encoder.prepare(images.to(torch.uint16))
    assert prepared[1, 0, 0, 0] - prepared[0, 0, 0, 0] == pytest.approx(1 / 60000 / 0.2, rel=0.01)


def test_an_exported_folder_is_the_run(tmp_path):
    network = write_run(tmp_path / "x")
    run, out = load(f"{tmp_path}/x"), tmp_path / "out"
    out.mkdir()
    config = {"backbone": run.spec.model_dump(mode="json"), "channels": 3, "size": SIZE, "pixels": asdict(PIXELS), "fingerprint": run.fingerprint}
    (out / "config.json").write_text(json.dumps(config))
    save_file(moved(network, 0.1), out / "model.safetensors")
    found, images = load(str(out)), drawn(3, 3, SIZE, SIZE)
    assert torch.equal(found.embed(images), run.embed(images)) and found.fingerprint == run.fingerprint
    with pytest.raises(EncoderError, match="leave @teacher out"):
        load(f"{out}@teacher")
    (out / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match="is not a whole exported encoder"):
        load(str(out))


def test_a_vit_run_opens_too(tmp_path):
    write_run(tmp_path / "v", backbone={"name": "micro-vit", "patch_size": 4}, method="dino", teacher=True)
    encoder = load(f"{tmp_path}/v")
    assert encoder.embed(drawn(2, 3, 40, 30)).shape == (2, encoder.dim)


def test_timm_without_weights_takes_any_range_of_its_type():
    encoder = load("timm:resnet18@untrained")
    images = drawn(2, 3, 224, 224)
    assert (encoder.dim, encoder.size, encoder.channels) == (512, 224, 3)
    as_bytes = encoder.prepare(images)
    assert torch.allclose(as_bytes, (images / 255 - 0.5) / 0.5, atol=1e-6)
    assert torch.allclose(encoder.prepare(images / 255), as_bytes, atol=1e-6)
    assert torch.allclose(encoder.prepare((images.int() * 257).to(torch.uint16)), as_bytes, atol=1e-6)
    import timm

    theirs = timm.create_model("resnet18", num_classes=0)
    theirs.load_state_dict({k.removeprefix("net."): v for k, v in encoder.backbone.state_dict().items()})
    theirs.eval()
    with torch.no_grad():
        assert torch.allclose(encoder.embed(images), theirs(as_bytes), atol=1e-4)


def test_a_pretrained_size_keeps_the_patch_it_was_trained_with():
    assert (patch_size(518, 14), patch_size(224, 16), patch_size(224, 8), patch_size(384, 16)) == (14, 16, 8, 16)  # DINOv2, ViT, DINO, DeiT


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("{}/run", "no such encoder; did you mean {}/runs-a"),
        ("{}s/runs-a", "no such encoder; did you mean {}/runs-a"),
        ("{}/none/at/all", "no such encoder; there is no folder {}/none/at"),
        ("pixel", "no such encoder; did you mean pixels"),
        ("tim:resnet18", "no such kind of encoder; did you mean timm:"),
        ("{}/runs-a@teachr", "no such part of a run; did you mean teacher"),
        ("{}/runs-a@teacher", "simclr has no teacher"),
        ("{}/runs-a@step-7", "has no checkpoint of step 7; it keeps 10"),
        ("{}/empty", "holds no whole checkpoint"),
        ("{}", "neither a run"),
        ("timm:resnet18@random", "after @ stands untrained or nothing, got random"),
        ("timm:resnet81", "did you mean resnet"),
        ("timm:resnet81@untrained", "did you mean resnet"),
        ("features:x.csv", "must be an .npy or .parquet file"),
        ("features:x.npy", "no such file"),
    ],
)
def test_a_wrong_name_gets_one_line(tmp_path, name, line):
    write_run(tmp_path / "runs-a")
    write_run(tmp_path / "empty", steps=())
    with pytest.raises(EncoderError) as caught:
        load(name.format(tmp_path))
    assert line.format(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("folder", ["2026-11-22T04:09", "a@b", "a:b@c"])
def test_a_folder_of_any_name_takes_marks(tmp_path, folder):
    write_run(tmp_path / folder)
    plain = load(f"{tmp_path}/{folder}")
    assert load(f"{tmp_path}/{folder}@online").fingerprint == plain.fingerprint != load(f"{tmp_path}/{folder}@untrained").fingerprint
    assert place_of(f"{tmp_path}/{folder}@online") == (f"{tmp_path}/{folder}", ["online"])


def test_spec_and_weights_that_do_not_fit_get_one_line(tmp_path):
    write_run(tmp_path / "x")
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "spec.json").write_text("{}")
    with pytest.raises(EncoderError, match="is not a run's"):
        load(f"{tmp_path}/y")
    (tmp_path / "y" / "spec.json").write_text("{")
    with pytest.raises(EncoderError, match="cannot be read"):
        load(f"{tmp_path}/y")
    spec = json.loads((tmp_path / "x" / "spec.json").read_text())
    spec["settings"]["backbone"]["args"]["widths"] = [4, 9]
    (tmp_path / "x" / "spec.json").write_text(json.dumps(spec))
    with pytest.raises(EncoderError, match="weights do not fit its settings") as caught:
        load(f"{tmp_path}/x")
    assert "\n" not in str(caught.value)


def test_images_that_do_not_fit_are_refused(tmp_path):
    write_run(tmp_path / "x")
    encoder = load(f"{tmp_path}/x")
    with pytest.raises(EncoderError, match="takes images of 3 channels, these have 1"):
        encoder.embed_source(ArraySource(drawn(2, 1, SIZE, SIZE)))
    with pytest.raises(EncoderError, match="must have 3 channels"):
        encoder.embed(drawn(2, 1, SIZE, SIZE))
    with pytest.raises(EncoderError, match="multiply them by 255"):
        encoder.embed(drawn(2, 3, SIZE, SIZE) / 255)


def test_broken_weights_are_named_and_not_stored_as_unreadable(tmp_path):
    network = build(BackboneSpec(), 3, SIZE, 0)
    with torch.no_grad():
        network.conv1.weight.fill_(float("nan"))
    encoder = NetworkEncoder("broken", network, BackboneSpec(), 3, SIZE, PIXELS)
    with pytest.raises(EncoderError, match="gives row 0 a vector that is not finite"):
        encoder.embed_source(ArraySource(drawn(2, 3, SIZE, SIZE)))
