"""timm networks behind the contract, against plain timm networks that were given the same weights."""

import logging

import pytest
import timm
import torch
from torch import nn

from gnothi.contracts import SettingError, Want
from gnothi.models.backbone import BACKBONES, BackboneSpec, TimmBackbone, build, patch_size, pretrained_input, windows
from gnothi.models.weights import weights
from gnothi.randomness import generator

QUICK = ["resnet18", "convnext_atto", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]
FAMILIES = [
    *QUICK, "resnet18d", "seresnet50", "regnety_002", "efficientnet_b0", "mobilenetv2_050", "mobilenetv3_small_050", "mobilenetv4_conv_small",
    "densenet121", "vgg11_bn", "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224", "swinv2_tiny_window8_256",
    "convnextv2_atto", "cait_xxs24_224", "beit_base_patch16_224", "eva02_tiny_patch14_224", "vit_small_patch16_dinov3", "maxvit_pico_rw_256",
    "poolformer_s12", "twins_svt_small", "xcit_nano_12_p16_224", "mambaout_femto",
]  # fmt: skip
SHORT = {"depths": (1, 1, 1, 1)}
QUICK_ARGS = {"vit_tiny_patch16_224": {"depth": 3}, "swin_tiny_patch4_window7_224": {**SHORT, "embed_dim": 24}, "convnext_atto": SHORT}
GEOMETRY = {"vit_tiny_patch16_224": {"patch_size": 8}, "swin_tiny_patch4_window7_224": {"patch_size": 4, "window_size": 4}}
"""What a person would pass to timm for crops of 64 pixels, written by hand."""


def images(channels=3, side=64, n=2):
    return torch.randn(n, channels, side, side, generator=generator(0, "images"))


def plain(backbone, name, channels, **given):
    """The network that timm makes of a name, with the backbone's weights."""
    net = timm.create_model(name, num_classes=0, in_chans=channels, **given)
    if "resnet" in name:
        net.conv1, net.maxpool = nn.Conv2d(channels, 64, 3, 1, 1, bias=False), nn.Identity()
    net.load_state_dict(weights(backbone), strict=True)
    return net.eval()


def agree(backbone, net, x):
    encoding = backbone.eval()(x, Want(patches=True, blocks=tuple(range(len(backbone.block_widths)))))
    torch.testing.assert_close(encoding.pooled, net(x), atol=1e-6, rtol=1e-6)
    maps = net.forward_intermediates(x, intermediates_only=True)
    assert backbone.block_widths == tuple(m.shape[1] for m in maps) and set(encoding.blocks) == set(range(len(maps)))
    for i, m in enumerate(maps):
        block = encoding.blocks[i]
        torch.testing.assert_close(block.patches, m.flatten(2).mT, atol=1e-6, rtol=1e-6)
        assert block.grid == tuple(m.shape[2:]) and block.pooled.shape == block.final.shape == (len(x), m.shape[1])
    assert encoding.patches.shape == (len(x), encoding.grid[0] * encoding.grid[1], backbone.patch_width)
    assert encoding.pooled.shape == (len(x), backbone.width)
    last = net.forward_features(x)  # [B, P + N, D], [B, D, h, w] or [B, h, w, D]
    leading = getattr(net, "num_prefix_tokens", 0)
    rows = last[:, leading:] if last.ndim == 3 else last.movedim(1 if last.shape[1] == backbone.patch_width else 3, 3).flatten(1, 2)
    torch.testing.assert_close(encoding.patches, rows, atol=1e-6, rtol=1e-6)


def gradients_reach_everything(backbone, x):
    backbone.train()(x).pooled.square().sum().backward()
    for name, p in backbone.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("channels", [1, 5])
def test_a_backbone_says_what_the_plain_network_says(name, channels):
    args = QUICK_ARGS.get(name, {})
    backbone = build(BackboneSpec(name=name, args=args), channels, 64, seed=0)
    given = {"img_size": 64, **GEOMETRY[name]} if name in GEOMETRY else {}
    agree(backbone, plain(backbone, name, channels, **given, **args), images(channels))
    gradients_reach_everything(backbone, images(channels))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_every_family_says_what_the_plain_network_says(name, channels):
    backbone = build(BackboneSpec(name=name), channels, 64, seed=0)
    given = {k: v for k, v in backbone.arguments.items() if k not in ("num_classes", "in_chans")}
    agree(backbone, plain(backbone, name, channels, **given), images(channels))
    gradients_reach_everything(backbone, images(channels))


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_block_of_a_vit_ends_as_a_shallower_network_would(pool):
    args = {"depth": 3, "global_pool": pool}
    backbone = build(BackboneSpec(name="vit_tiny_patch16_224", args=args), 3, 64, seed=0)
    nn.init.normal_((backbone.net.norm if pool == "token" else backbone.net.fc_norm).weight, generator=generator(0, "norm"))
    x = images()
    encoding = backbone(x, Want(blocks=(0, 1, 2)))
    net = plain(backbone, "vit_tiny_patch16_224", 3, img_size=64, patch_size=8, **args)
    for depth in (3, 2, 1):
        net.blocks = net.blocks[:depth]
        torch.testing.assert_close(encoding.blocks[depth - 1].final, net(x), atol=1e-6, rtol=1e-6)
    assert torch.equal(encoding.blocks[2].final, encoding.pooled)


def test_a_stage_of_a_hierarchy_ends_in_its_mean_but_for_the_last():
    backbone = build(BackboneSpec(name="convnext_atto", args=SHORT), 3, 64, seed=0)
    encoding = backbone(images(), Want(patches=True, blocks=(0, 3)))
    torch.testing.assert_close(encoding.blocks[0].final, encoding.blocks[0].patches.mean(1))
    assert torch.equal(encoding.blocks[3].final, encoding.pooled)
    assert not torch.allclose(encoding.blocks[3].pooled, encoding.pooled)


@pytest.mark.parametrize(("size", "stem", "grid"), [(32, None, 4), (64, None, 8), (96, None, 3), (96, "cifar", 12), (32, "plain", 1)])
def test_resnets_get_the_cifar_stem_at_small_sizes(size, stem, grid):
    backbone = build(BackboneSpec(name="resnet18", stem=stem), 3, size, seed=0)
    assert backbone(images(side=size)).grid == (grid, grid)
    assert (backbone.stem == "cifar") == (backbone.net.conv1.weight.shape == (64, 3, 3, 3)) == isinstance(backbone.net.maxpool, nn.Identity)


@pytest.mark.parametrize(
    ("size", "own", "patch"),
    [(32, 16, 4), (28, 16, 4), (64, 16, 8), (96, 16, 8), (112, 16, 16), (224, 16, 16), (224, 32, 32), (224, 14, 14), (32, 14, 4)],
)
def test_a_patch_leaves_seven_to_thirty_two_cells_a_side(size, own, patch):
    assert patch_size(size, own) == patch


def test_windows_divide_or_cover_every_stage():
    assert (windows(224, 4, 7), windows(32, 4, 7), windows(96, 4, 7)) == ((4, 7), (2, 4), (4, 6))
    for size in range(16, 400, 16):
        patch, window = windows(size, 4, 7)
        grids = [size // patch // 2**s for s in range(4)]
        assert all(size % (patch * 8) == 0 and (g % window == 0 or g <= window) for g in grids)
    with pytest.raises(SettingError, match="multiple of 16 for a windowed transformer, got 90; 80 and 96 are nearest"):
        windows(90, 4, 7)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_smaller_crops_go_through_the_same_network(name):
    backbone = build(BackboneSpec(name=name, args=QUICK_ARGS[name]), 3, 64, seed=0)
    encoding = backbone(images(side=32), Want(patches=True))
    assert encoding.pooled.shape == (2, backbone.width) and encoding.grid[0] == backbone(images()).grid[0] // 2


def test_stochastic_depth_is_off_unless_asked_for():
    name, args = "swin_tiny_patch4_window7_224", {**SHORT, "embed_dim": 24}  # timm's own default for it is 0.1
    x = images()
    still = build(BackboneSpec(name=name, args=args), 3, 64, seed=0)
    assert torch.equal(still(x).pooled, still(x).pooled)
    moving = build(BackboneSpec(name=name, args=args, drop_path=0.5), 3, 64, seed=0)
    assert not torch.equal(moving(x).pooled, moving(x).pooled)


def test_hidden_patches_cannot_be_seen_and_the_others_can():
    backbone = build(BackboneSpec(name="vit_tiny_patch16_224", mask_token=True, args={"depth": 2}), 3, 64, seed=0)
    x, mask = images(), torch.rand(2, 64, generator=generator(0, "mask")) < 0.4
    hidden = mask.view(2, 1, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    masked = backbone(x, Want(patches=True), mask)
    torch.testing.assert_close(backbone(torch.where(hidden, x + 1, x), Want(patches=True), mask).patches, masked.patches)
    assert (backbone(torch.where(hidden, x, x + 1), Want(patches=True), mask).patches - masked.patches).abs().amax(2).min() > 0
    assert not torch.allclose(backbone(x).pooled, masked.pooled)
    masked.pooled[:, 0].sum().backward()  # the sum over all is constant after the norm
    assert backbone.mask_token.grad.any()


def test_a_token_that_stands_for_nothing_gets_a_gradient_of_zeros_and_changes_no_bit():
    without, backbone = (build(BackboneSpec(name="vit_tiny_patch16_224", mask_token=t, args={"depth": 1}), 3, 64, seed=0) for t in (False, True))
    nn.init.normal_(backbone.mask_token, generator=generator(0, "token"))
    said = backbone(images(), Want(patches=True))
    assert torch.equal(said.pooled, without(images()).pooled)
    (said.pooled.pow(3).sum() + said.patches.pow(3).sum()).backward()
    assert backbone.mask_token.grad is not None and not backbone.mask_token.grad.any()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"name": "resnet_18"}, "backbone.name 'resnet_18': no such network; did you mean"),
        ({"name": "micro-resnt"}, "backbone.name 'micro-resnt': no such network; did you mean micro-resnet?"),
        ({"name": "pit_ti_224"}, "backbone.name pit_ti_224 cannot take crops of 64 pixels: its 1 tokens do not form the grid"),
        ({"name": "inception_v3"}, "backbone.name inception_v3 cannot take crops of 64 pixels:"),
        ({"name": "resnet18", "args": {"dephts": 3}}, "backbone.args: resnet18 cannot be made with {'dephts': 3}:"),
        ({"name": "resnet18", "args": {"in_chans": 3}}, "backbone.args.in_chans: gnothi sets it itself"),
        ({"name": "resnet18", "patch_size": 8}, "backbone.patch_size means nothing to resnet18"),
        ({"name": "resnet18", "mask_token": True}, "backbone.mask_token means nothing to resnet18"),
        ({"name": "densenet121", "drop_path": 0.1}, "backbone.drop_path means nothing to densenet121"),
        ({"name": "convnext_atto", "stem": "cifar"}, "backbone.stem means nothing to convnext_atto"),
        ({"name": "resnet18", "stem": "cifar", "pretrained": True}, "backbone.stem must be plain with backbone.pretrained"),
        ({"name": "resnet18.nope", "pretrained": True}, "backbone.name 'resnet18.nope': no such weights; did you mean resnet18."),
    ],
)
def test_what_does_not_fit_is_refused_by_name(spec, words, monkeypatch):
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, pretrained=False, **k: create(*a, **k))  # no network
    with pytest.raises(SettingError) as caught:
        build(BackboneSpec(**spec), 3, 64, seed=0)
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("size", "name", "crop", "words"),
    [
        (90, "vit_tiny_patch16_224", 90, "no power of two up to 16 so divides; 88 and 96 are nearest"),
        (64, "vit_tiny_patch16_224", 60, "views.size must be a multiple of the patch size 8, got 60; 56 and 64 are nearest"),
        (64, "beit_base_patch16_224", 32, "beit_base_patch16_224 takes crops of 64 pixels only, got 32"),
    ],
)
def test_crops_that_do_not_fit_are_refused_with_what_would(size, name, crop, words):
    args = {"depth": 1} if name.startswith("vit") else {"depth": 1, "embed_dim": 64, "num_heads": 1}
    with pytest.raises(SettingError) as caught:
        build(BackboneSpec(name=name, args=args), 3, size, seed=0)(images(side=crop))
    assert words in str(caught.value)


def test_the_network_is_named_before_weights_are_fetched(monkeypatch, caplog):
    create, asked = timm.create_model, []

    def offline(name, pretrained=False, **given):
        if not pretrained:
            return create(name, **given)
        asked.append([r.getMessage() for r in caplog.records])
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(timm, "create_model", offline)
    with caplog.at_level(logging.WARNING), pytest.raises(SettingError, match="weights of resnet18 .*no route to host$"):
        build(BackboneSpec(name="resnet18", pretrained=True), 3, 64, seed=0)
    assert len(asked) == 1 and "resnet18" in asked[0][0] and "network" in asked[0][0]


def test_pretrained_networks_keep_their_stem_and_name_their_input(monkeypatch):
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, pretrained=False, **k: create(*a, **k))
    backbone = build(BackboneSpec(name="resnet18", pretrained=True), 3, 32, seed=0)
    assert isinstance(backbone, TimmBackbone) and backbone.stem == "plain" and backbone.net.conv1.weight.shape[-1] == 7
    size, mean, std = pretrained_input("resnet18")
    assert (size, mean, std) == (224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert not set(BACKBONES) & set(timm.list_models())
