"""Every block of a network: its vectors, what they cost, and how well they do."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from terminal import SMALL, gnothi, said
from torch import Tensor, nn

from gnothi.contracts import EncoderError, Pixels, SettingError, Want
from gnothi.data import ArraySource
from gnothi.encoders import load
from gnothi.encoders.network import NetworkEncoder
from gnothi.evaluate import layers, over_seeds, paired, plot, run, summary, table_of_layers
from gnothi.evaluate.depth import _lines, flops_to
from gnothi.evaluate.layers import Blocks, Column
from gnothi.evaluate.nearest import predict
from gnothi.models.backbone import BackboneSpec, adopt, build, flops
from gnothi.randomness import generator

SIZE = 16
SPECS = {
    "vit": BackboneSpec(name="micro-vit", patch_size=4, args={"width": 12, "depth": 3, "heads": 2}),
    "resnet": BackboneSpec(name="micro-resnet", args={"widths": (4, 6, 8)}),
}
TIMM = {
    "timm vit": BackboneSpec(name="vit_tiny_patch16_224", patch_size=2, args={"embed_dim": 12, "depth": 3, "num_heads": 2}),
    "timm resnet": BackboneSpec(name="resnet18"),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GNOTHI_CACHE", str(tmp_path / "cache"))


def encoder(kind: str, seed: int = 0, name: str | None = None) -> NetworkEncoder:
    """A network whose final norm says something."""
    spec = (SPECS | TIMM)[kind]
    network: Any = build(spec, 3, SIZE, seed)
    norm = getattr(network, "norm", getattr(getattr(network, "net", None), "norm", None))
    if isinstance(norm, nn.LayerNorm):
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(0.3, 2, len(norm.weight)))
    return NetworkEncoder(name or f"{kind} {seed}", network, spec, 3, SIZE, Pixels(0.0, 255.0, (0.5,) * 3, (0.25,) * 3))


def drawn(n: int, seed: int = 0) -> ArraySource:
    """Images whose colour goes with their class."""
    g = generator(seed, "images")
    y = torch.arange(n) % 3
    colours = torch.tensor([[90, 120, 150], [150, 90, 120], [120, 150, 90]])[y][:, :, None, None]
    return ArraySource((colours + 50 * torch.randn(n, 3, SIZE, SIZE, generator=g)).clamp(0, 255).byte(), y, ("a", "b", "c"))


def hooked(of: NetworkEncoder, images: Tensor) -> dict[Column, Tensor]:
    """The class token after each transformer block, also normalised, or the mean over positions after each stage."""
    network: Any = of.backbone
    inner = getattr(network, "net", network)
    modules = list(inner.blocks) if hasattr(inner, "blocks") else [getattr(inner, f"layer{i}") for i in range(1, 5) if hasattr(inner, f"layer{i}")]
    modules = ([inner.act1] if of.spec.name == "resnet18" else []) + modules
    heard: list[Tensor] = []
    handles = [m.register_forward_hook(lambda module, inputs, out: heard.append(out)) for m in modules]
    with torch.inference_mode():
        network(of.prepare(images))
    for handle in handles:
        handle.remove()
    found = {}
    for i, x in enumerate(heard):
        found[Column(i, "pooled")] = x.mean((2, 3)) if x.ndim == 4 else x[:, 0]
        if x.ndim == 3:
            found[Column(i, "final")] = inner.norm(x[:, 0])
    return found


@pytest.mark.parametrize("kind", [*SPECS, *TIMM])
def test_vectors_of_blocks_are_those_of_hooks_on_the_network(kind: str) -> None:
    of, images = encoder(kind), drawn(7).array
    blocks = Blocks(of)
    found, expected = blocks.embed(images), hooked(of, images)
    assert list(blocks.parts) == list(expected)
    for column, part in blocks.parts.items():
        torch.testing.assert_close(found[:, part], expected[column], rtol=1e-5, atol=1e-5)
    assert found.shape[1] == blocks.dim == sum(x.shape[1] for x in expected.values())
    own = next(part for column, part in reversed(blocks.parts.items()))
    assert torch.equal(found[:, own], of.embed(images))


@pytest.mark.parametrize("kind", SPECS)
def test_the_last_block_does_exactly_as_well_as_the_encoder(kind: str) -> None:
    train, test, of = drawn(60), drawn(45, 1), encoder(kind)
    found = layers([of], train, test, k=5, protocol="logistic", seed=3)
    for metric, options in (("knn", {"k": 5}), ("linear", {})):
        last = [r for r in found if r.metric == metric][-1]
        (expected,) = run(metric, [of], train, test, seed=3, **options)
        assert last.protocol == expected.protocol
        assert (last.value, last.low, last.high, last.n) == (expected.value, expected.low, expected.high, expected.n)
        assert last.details["block"] == 2 and last.details["share"] == 1 and last.details["confusion"] == expected.details["confusion"]
    assert last.details["features"] == ("final" if kind == "vit" else "pooled")


def test_images_pass_through_a_network_once_whatever_is_measured() -> None:
    of, met = encoder("vit"), []
    Blocks(of)
    of.backbone.register_forward_pre_hook(lambda module, inputs: met.append(len(inputs[0])))
    found = layers([of], drawn(60), drawn(45, 1))
    assert sum(met) == 105 + 3 and len(found) == 3 * 2 * 2  # two of noise say which vectors there are, one what they cost
    again = layers([of], drawn(60), drawn(45, 1), metrics=["knn"])
    assert sum(met) == 105 + 6 and again == [r for r in found if r.metric == "knn"]


def test_a_lower_block_is_measured_by_its_own_vectors_and_paired_with_the_same_block_of_the_first() -> None:
    train, test = drawn(60), drawn(45, 1)
    first, second, other = encoder("vit"), encoder("vit", 1), encoder("resnet")
    found = layers([first, second, other], train, test, metrics=["knn"], k=3)
    at = {(r.encoder, r.details["block"], r.details["features"]): r for r in found}
    assert list(at) == [(e.name, *c) for e in (first, second, other) for c in ((k.block, k.features) for k in Blocks(e).parts)]
    for column in Blocks(first).parts:
        correct = []
        for of in (first, second):
            x, y = (hooked(of, s.array)[column] for s in (train, test))
            predictions, _ = predict(x, train.labels, y, test.labels, 3)
            correct.append(predictions.correct)
            assert at[of.name, column.block, column.features].value == predictions.correct.mean()
        p, expected = at[second.name, column.block, column.features].details["paired"], paired(correct[1], correct[0])
        assert (p["against"], p["value"], p["low"]) == (first.name, expected.value, expected.low)
    assert not any("paired" in r.details for r in found if r.encoder != second.name)  # a network of other blocks has none to be compared with


# ---- cost ---------------------------------------------------------------------------------------
def test_flops_of_a_transformer_s_blocks_are_those_of_its_products() -> None:
    width, tokens, hidden = 12, 17, 24
    patches = 2 * 16 * width * 3 * 4 * 4
    block = 2 * tokens * (4 * width * width + 2 * width * hidden) + 4 * tokens * tokens * width
    assert flops_to(build(SPECS["vit"], 3, SIZE, 0), 3, SIZE) == tuple(patches + n * block for n in (1, 2, 3))


def test_flops_of_stages_are_those_of_their_convolutions_shortcuts_counted_once() -> None:
    a, b, c = 16 * 16, 8 * 8, 4 * 4  # positions of the stages
    first = 2 * 9 * a * (3 * 4 + 2 * 4 * 4)
    second = first + 2 * b * (9 * (4 * 6 + 6 * 6) + 4 * 6)
    third = second + 2 * c * (9 * (6 * 8 + 8 * 8) + 6 * 8)
    assert flops_to(build(SPECS["resnet"], 3, SIZE, 0), 3, SIZE) == (first, second, third)


@pytest.mark.parametrize("kind", [*SPECS, *TIMM])
def test_the_last_block_needs_the_whole_network(kind: str) -> None:
    network = build((SPECS | TIMM)[kind], 3, SIZE, 0)
    found = flops_to(network, 3, SIZE)
    assert found[-1] == flops(network, 3, SIZE) and list(found) == sorted(set(found)) and len(found) == len(network.block_widths)


# ---- results together ---------------------------------------------------------------------------
def test_seeds_of_one_recipe_are_summed_up_block_by_block() -> None:
    found = layers([encoder("vit", seed) for seed in range(3)], drawn(60), drawn(45, 1), metrics=["knn"])
    for i, r in enumerate(over_seeds(found)):
        of = found[i::6]
        expected = summary(of)
        assert (r.value, r.low, r.high) == (expected.value, expected.low, expected.high) and len({o.encoder for o in of}) == 3
        assert (r.details["block"], r.details["features"], r.details["flops"]) == tuple(of[0].details[k] for k in ("block", "features", "flops"))
    assert i == 5


def test_the_table_has_a_row_for_each_vector_and_columns_for_each_metric() -> None:
    found = layers([encoder("vit"), encoder("vit", 1)], drawn(60), drawn(45, 1))
    lines = table_of_layers(found).splitlines()
    rows = [line.split() for line in lines[1:13]]
    assert [row[:4] for row in rows[:3]] == [["vit", "0", "0", "pooled"], ["vit", "0", "0", "final"], ["vit", "0", "1", "pooled"]]
    for i, row in enumerate(rows):
        knn, linear = found[2 * i : 2 * i + 2]
        assert f"{knn.details['share']:.0%}" == row[5] and f"{knn.value:.3f}" == row[6] and f"{linear.value:.3f} ({linear.low:.3f}" in lines[1 + i]
        assert len(row) == (14 if i < 6 else 22)  # the second has differences too
    assert lines[0].count("minus vit 0") == 2 and lines[-1].startswith("logistic")


def test_lines_of_the_plot_are_accuracy_against_block_or_gigaflops() -> None:
    found = layers([encoder("vit")], drawn(60), drawn(45, 1), metrics=["knn"])
    for key in ("block", "flops"):
        axis = Figure().subplots()
        _lines(axis, found, key, "C0")
        for line, features in zip(axis.lines, ("final", "pooled"), strict=True):
            of = [r for r in found if r.details["features"] == features]
            assert line.get_ydata().tolist() == [r.value for r in of]
            assert np.allclose(line.get_xdata(), [r.details[key] / (1 if key == "block" else 1e9) for r in of])
        (band,) = axis.collections
        corners = band.get_paths()[0].vertices[:, 1]
        assert corners.min() == min(r.low for r in found if r.details["features"] == "final")


def test_plots_are_written_whole_and_alike(tmp_path: Path) -> None:
    found = layers([encoder("vit"), encoder("resnet")], drawn(60), drawn(45, 1))
    for name in ("a.svg", "b.svg", "c.png"):
        plot(found, tmp_path / name)
    text = (tmp_path / "a.svg").read_bytes()
    assert text == (tmp_path / "b.svg").read_bytes() and text.count(b"<svg") == 1
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG") and len(list(tmp_path.glob("*.*"))) == 3
    with pytest.raises(SettingError, match=r"--plot must be a file that ends in \.svg or \.png, got a\.jpg"):
        plot(found, tmp_path / "a.jpg")


def test_encoders_without_blocks_and_unknown_words_are_refused_in_one_line() -> None:
    source = drawn(30)
    for name in ("pixels", "hog"):
        with pytest.raises(EncoderError, match=f"{name} has no blocks to measure, it is not a network; a run"):
            layers([load(name)], source)
    adopted = NetworkEncoder("mine", adopt(nn.Flatten(), size=SIZE), SPECS["vit"], 3, SIZE, Pixels(0.0, 255.0, (0.5,) * 3, (0.25,) * 3))
    with pytest.raises(EncoderError, match="mine has no blocks to measure: its network gives only its last output"):
        layers([adopted], source)
    with pytest.raises(SettingError, match="metric must be knn or linear, got 'knm'; did you mean knn?"):
        layers([encoder("vit")], source, metrics=["knm"])
    with pytest.raises(SettingError, match="kk: knn and linear have no such option; did you mean k?"):
        layers([encoder("vit")], source, kk=3)
    with pytest.raises(SettingError, match="k must be at least 1"):
        layers([encoder("vit")], source, k=0)


def test_the_command_prints_every_block_and_draws(tmp_path: Path) -> None:
    images = torch.randint(256, (40, SIZE, SIZE, 3), generator=generator(0, "cli"), dtype=torch.uint8)
    with contextlib.chdir(tmp_path):
        np.savez("noise.npz", images=images.numpy(), labels=np.arange(40) % 2)
        said("train", "noise.npz", "--out", "run", *SMALL)
        common = ("evaluate", "layers", "run", "run@untrained", "--data", "noise.npz", "-k", "3")
        found = said(*common, "--metric", "knn", "--plot", "depth.svg")["results"]
        (expected,) = run("knn", ["run"], "noise.npz", k=3)
        assert [(r["encoder"], r["details"]["block"]) for r in found] == [(e, b) for e in ("run", "run@untrained") for b in range(4)]
        assert found[3]["value"] == expected.value and found[4]["details"]["paired"]["against"] == "run"
        assert b"<svg" in Path("depth.svg").read_bytes()
        assert len(said(*common, "--metric", "knn", "--over-seeds")["results"]) == 4
        assert "linear (95 %)" in gnothi(*common).out and "knn minus run" in gnothi(*common).out
        refused = gnothi("evaluate", "layers", "pixels", "--data", "noise.npz")
    assert (
        refused.code == 2
        and refused.err == "gnothi: pixels has no blocks to measure, it is not a network; a run, an exported folder and timm:NAME are\n"
    )


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize("pool", ["max", "average"])
def test_grids_are_the_finest_of_so_many_numbers_cell_by_cell(kind: str, pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["gnothi.evaluate.layers"], "MOST", 50)
    e, images = encoder(kind), drawn(3).array
    found = Blocks(e, pool)
    vectors = found.embed(images)
    with torch.inference_mode():
        said = e.backbone(e.prepare(images), Want(patches=True, blocks=found.numbers)).blocks
    for number, block in said.items():
        rows, width = block.grid[0], block.patches.shape[2]
        side = max(s for s in range(1, rows + 1) if s * s * width <= 50)
        x = block.patches.view(3, rows, rows, width)
        reach = [slice(i * rows // side, -(-(i + 1) * rows // side)) for i in range(side)]
        cells = [x[:, a, b].flatten(1, 2) for a in reach for b in reach]
        expected = torch.stack([c.amax(1) if pool == "max" else c.mean(1) for c in cells], 2).flatten(1)
        torch.testing.assert_close(vectors[:, found.parts[Column(number, pool)]], expected)
    assert found.fingerprint != Blocks(e).fingerprint and list(found.parts) == [Column(i, pool) for i in found.numbers]


def test_grids_are_measured_as_vectors_are() -> None:
    results = layers([encoder("resnet")], drawn(60), drawn(30, 1), metrics=["knn"], pool="average")
    assert [(r.details["block"], r.details["features"]) for r in results] == [(i, "average") for i in range(3)]
    x, y = (Blocks(encoder("resnet"), "average").embed(s.array) for s in (drawn(60), drawn(30, 1)))
    part = Blocks(encoder("resnet"), "average").parts[Column(1, "average")]
    assert results[1].value == predict(x[:, part], drawn(60).labels, y[:, part], drawn(30, 1).labels)[0].correct.mean()
    with pytest.raises(SettingError, match="pool must be max or average, got 'mean'"):
        layers([encoder("resnet")], drawn(60), pool="mean")
