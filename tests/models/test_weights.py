"""Weights that go in and out, modules from Python, and what a network costs."""

import re
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from gnothi.contracts import SettingError, Want
from gnothi.models.adopted import adopt
from gnothi.models.backbone import BACKBONES, BackboneSpec, build
from gnothi.models.micro_vit import MicroViT
from gnothi.models.weights import flops, initialise, parameters, weights
from gnothi.randomness import generator


def images(channels=3, side=32, n=2):
    return torch.randn(n, channels, side, side, generator=generator(0, "images"))


@pytest.mark.parametrize("name", ["micro-resnet", "micro-vit", "resnet18"])
def test_a_backbone_with_anothers_weights_says_the_same(name):
    one, other = (build(BackboneSpec(name=name), 3, 32, seed).eval() for seed in (0, 1))
    one.train()(images()), one.eval()  # moves the running statistics, which must come along
    assert initialise(other, weights(one)) == ()
    assert torch.equal(one(images()).pooled, other(images()).pooled)


@pytest.mark.parametrize("name", ["micro-resnet", "micro-vit", "resnet18"])
@pytest.mark.parametrize("channels", [1, 5])
def test_other_channel_counts_are_adapted_and_named(name, channels):
    source, target = build(BackboneSpec(name=name), 3, 32, 0).eval(), build(BackboneSpec(name=name), channels, 32, 1).eval()
    report = initialise(target, weights(source))
    assert len(report) == 1 and f"3 input channels made {channels}" in report[0]
    plane = images(1)
    if channels == 1:  # a grey image says the same in one channel and in three
        torch.testing.assert_close(target(plane).pooled, source(plane.repeat(1, 3, 1, 1)).pooled, atol=1e-5, rtol=1e-4)
    first = next(p for p in target.parameters() if p.ndim == 4)
    torch.testing.assert_close(first, timm.models.adapt_input_conv(channels, next(p for p in source.parameters() if p.ndim == 4)))


def test_positions_are_resampled_as_timm_does_it_and_named():
    source, target = MicroViT(size=32), MicroViT(size=48)
    report = initialise(target, weights(source))
    assert report == ("pos_embed: 65 positions resampled to 145",)
    expected = timm.layers.resample_abs_pos_embed(source.pos_embed, new_size=(12, 12), old_size=(8, 8), num_prefix_tokens=1)
    torch.testing.assert_close(target.pos_embed, expected)
    torch.testing.assert_close(target(images(side=48)).pooled, source(images(side=48)).pooled)


def test_what_else_differs_is_refused_by_name_and_nothing_moves():
    target = build(BackboneSpec(), 3, 32, seed=0)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    state = weights(build(BackboneSpec(), 3, 32, seed=1))
    wrong = {**state, "layer4.0.bn2.weight": torch.ones(64)}
    cases = [
        (wrong, r"layer4.0.bn2.weight is \[64\], the network's is \[128\]"),
        ({k: v for k, v in state.items() if k != "bn1.bias"}, "1 are missing, such as bn1.bias"),
        ({**state, "fc.weight": torch.ones(1)}, "1 are not the network's, such as fc.weight"),
        (weights(MicroViT()), "are missing, such as conv1.weight and .* are not the network's, such as cls_token"),
        (weights(build(BackboneSpec(args={"widths": (16, 32, 64)}), 3, 32, 0)), "are missing, such as layer4"),
    ]
    for state, words in cases:
        with pytest.raises(SettingError, match=words):
            initialise(target, state)
    assert all(torch.equal(before[k], v) for k, v in target.state_dict().items())
    with pytest.raises(SettingError, match=r"patch_embed.proj.weight is \[96, 3, 4, 4\], the network's is \[96, 3, 8, 8\]"):
        initialise(MicroViT(size=64, patch_size=8), weights(MicroViT()))


def test_the_token_for_hidden_patches_comes_along_where_both_have_one():
    source, target, without = MicroViT(mask_token=True), MicroViT(mask_token=True), MicroViT()
    nn.init.normal_(source.mask_token, generator=generator(0, "token"))
    assert "mask_token" not in weights(source)
    initialise(target, {**weights(source), "mask_token": source.mask_token.detach()})
    assert torch.equal(target.mask_token, source.mask_token)
    initialise(without, {**weights(source), "mask_token": source.mask_token.detach()})


def test_flops_and_parameters_are_those_of_the_paper():
    resnet = build(BackboneSpec(name="resnet50"), 3, 224, seed=0)
    assert parameters(resnet) == 25_557_032 - 2048 * 1000 - 1000  # less the classifier
    assert flops(resnet, 3, 224) / 2e9 == pytest.approx(4.09, abs=0.01)  # multiply-adds of torchvision's table, 4.09 G


def test_flops_are_those_counted_by_hand_and_nothing_moves():
    vit = MicroViT(width=12, depth=2, heads=3, patch_size=8)
    n, d = 17, 12
    block = 2 * (n * d * 3 * d + n * d * d + 2 * n * d * 2 * d) + 2 * 2 * n * n * d
    assert flops(vit, 3, 32) == 2 * block + 2 * 16 * 3 * 64 * d
    resnet = build(BackboneSpec(), 3, 32, seed=0)
    before = {k: v.clone() for k, v in resnet.state_dict().items()}
    flops(resnet, 3, 32)
    assert resnet.training and all(torch.equal(before[k], v) for k, v in resnet.state_dict().items())


def test_an_adopted_module_pools_its_map():
    module = nn.Sequential(nn.Conv2d(3, 7, 4, 4), nn.BatchNorm2d(7))
    backbone = adopt(module)
    assert backbone.width == 7 and backbone.block_widths == () and module.training and not module[1].num_batches_tracked
    encoding = backbone(images(), Want(patches=True))
    again = module(images())
    torch.testing.assert_close(encoding.pooled, again.flatten(2).mean(2))
    torch.testing.assert_close(encoding.patches[:, 9], again[:, :, 1, 1])
    assert encoding.grid == (8, 8) and set(weights(backbone)) == set(module.state_dict())


def test_a_function_that_adopts_a_module_is_a_backbone_by_name(monkeypatch):
    def small(channels=3, width=5):
        return adopt(nn.Sequential(nn.Conv2d(channels, width, 4, 4), nn.ReLU()), channels=channels)

    monkeypatch.setitem(BACKBONES, "small", small)
    made = build(BackboneSpec(name="small", args={"width": 6}), channels=2, size=32, seed=3)
    assert made.width == 6 and made(torch.zeros(1, 2, 32, 32)).pooled.shape == (1, 6)
    again = build(BackboneSpec(name="small", args={"width": 6}), channels=2, size=32, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True))
    with pytest.raises(SettingError, match="backbone.args.wide: small has no such argument; did you mean width?"):
        build(BackboneSpec(name="small", args={"wide": 6}), channels=2, size=32, seed=3)


def test_an_adopted_module_is_asked_only_for_what_it_has():
    flat = adopt(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)))
    assert flat.width == 5 and flat(images()).pooled.shape == (2, 5)
    with pytest.raises(SettingError, match="blocks were asked of Sequential"):
        flat(images(), Want(blocks=(0,)))
    with pytest.raises(SettingError, match=r"patches were asked of Sequential, .* \[B, D\]"):
        flat(images(), Want(patches=True))
    with pytest.raises(SettingError, match="masked views were asked of Sequential"):
        flat(images(), mask=torch.zeros(2, 4, dtype=torch.bool))
    with pytest.raises(SettingError, match=r"must answer with \[B, D\] or \[B, D, h, w\]; Flatten gave \[1, 3, 1024\]"):
        adopt(nn.Flatten(2))
    with pytest.raises(SettingError, match="was given as 6, but it answers with 3072"):
        adopt(nn.Flatten(), width=6)(images())


def test_the_page_on_backbones_says_what_is_so_and_its_example_runs(capsys):
    page = (Path(__file__).parents[2] / "docs" / "backbones.md").read_text(encoding="utf-8")
    for name, size in (("micro-resnet", 32), ("micro-vit", 32)):
        backbone = build(BackboneSpec(name=name), 3, size, seed=0)
        assert f"{parameters(backbone) / 1e6:.2f} M" in page and f"{flops(backbone, 3, size) / 1e9:.3f}" in page
    code = re.findall(r"```python\n(.*?)```", page, re.S)[1]
    assert len(code.splitlines()) < 60
    exec(compile(code, "docs/backbones.md", "exec"), {})
    assert "torch.Size([64, 64, 64])" in capsys.readouterr().out
