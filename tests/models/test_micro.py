"""The micro backbones against timm's networks of the same shape."""

import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

from gnothi.contracts import SettingError, Want
from gnothi.models.adopted import adopt
from gnothi.models.backbone import BackboneSpec, build, timm_form
from gnothi.models.micro_resnet import MicroResNet
from gnothi.models.micro_vit import MicroViT, TransformerBlock
from gnothi.models.weights import weights
from gnothi.randomness import generator, seeded

ALL = Want(patches=True, blocks=(0, 1, 2, 3))


def images(channels=3, side=32, n=3):
    return torch.randn(n, channels, side, side, generator=generator(0, "images"))


def timm_resnet(channels):
    net = timm.create_model(
        "resnet18", layers=(1, 1, 1, 1), channels=(16, 32, 64, 128), stem_type="deep", stem_width=8, in_chans=channels, num_classes=0
    )
    net.conv1, net.maxpool = nn.Conv2d(channels, 16, 3, 1, 1, bias=False), nn.Identity()
    return net


def timm_vit(channels, size):
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=size, patch_size=4, embed_dim=96, depth=6, num_heads=3, mlp_ratio=2.0, in_chans=channels, num_classes=0,
        dynamic_img_size=True,
    )  # fmt: skip


def same(backbone, reference, x, tokens):
    """Every value of an encoding equals timm's, in evaluation and in training mode."""
    reference.load_state_dict(weights(backbone), strict=True)
    for mode in (True, False):
        backbone.train(mode), reference.train(mode)
        encoding = backbone(x, ALL)
        kept = {"return_prefix_tokens": True, "norm": False} if tokens else {}
        final, blocks = reference.forward_intermediates(x, indices=[0, 1, 2, 3] if tokens else [1, 2, 3, 4], **kept)
        torch.testing.assert_close(encoding.pooled, reference.forward_head(final, pre_logits=True), atol=1e-5, rtol=1e-5)
        for i, block in enumerate(blocks):
            maps, prefix = block if tokens else (block, None)
            torch.testing.assert_close(encoding.blocks[i].patches, maps.flatten(2).mT, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(encoding.blocks[i].pooled, prefix[:, 0] if tokens else maps.mean((2, 3)), atol=1e-5, rtol=1e-5)
            assert encoding.blocks[i].grid == tuple(maps.shape[2:])
        torch.testing.assert_close(encoding.patches, final[:, 1:] if tokens else final.flatten(2).mT, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_micro_resnet_is_timms_resnet_of_the_same_shape(channels):
    same(build(BackboneSpec(), channels, 32, seed=1), timm_resnet(channels), images(channels), tokens=False)


@pytest.mark.parametrize(("channels", "side"), [(1, 32), (3, 32), (5, 32), (3, 16), (3, 48)])
def test_micro_vit_is_timms_vit_of_the_same_shape_also_at_other_crop_sizes(channels, side):
    vit = build(BackboneSpec(name="micro-vit"), channels, 32, seed=1)
    same(vit, timm_vit(channels, 32), images(channels, side), tokens=True)


def test_a_block_of_the_vit_ends_as_a_shallower_network_would():
    vit, x = MicroViT(depth=4), images()
    shallow = MicroViT(depth=2)
    shallow.load_state_dict({k: v for k, v in vit.state_dict().items() if not k.startswith(("blocks.2", "blocks.3"))})
    torch.testing.assert_close(vit(x, Want(blocks=(1,))).blocks[1].final, shallow(x).pooled)


@pytest.mark.parametrize("name", ["micro-resnet", "micro-vit"])
def test_asking_for_more_does_not_change_the_pooled_vector(name):
    backbone = build(BackboneSpec(name=name), 3, 32, seed=0).eval()
    little, much = backbone(images()), backbone(images(), ALL)
    assert little.patches is None and not little.blocks
    torch.testing.assert_close(little.pooled, much.pooled)
    assert backbone(images(), Want(blocks=(1,))).blocks[1].patches is None


@pytest.mark.parametrize("name", ["micro-resnet", "micro-vit"])
def test_every_parameter_gets_a_gradient(name):
    backbone = build(BackboneSpec(name=name), 3, 32, seed=0)
    backbone(images()).pooled.pow(3).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in backbone.parameters())


@pytest.mark.parametrize("name", ["micro-resnet", "micro-vit", "resnet18"])
def test_weights_depend_on_the_seed_alone(name):
    before = torch.random.get_rng_state()
    first, again, other = (list(build(BackboneSpec(name=name), 3, 32, seed=s).parameters()) for s in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert torch.equal(before, torch.random.get_rng_state())


def test_hidden_patches_cannot_be_seen_and_the_others_can():
    vit = build(BackboneSpec(name="micro-vit", mask_token=True), 3, 32, seed=0)
    nn.init.normal_(vit.mask_token, generator=generator(0, "token"))
    x = images()
    mask = torch.rand(3, 64, generator=generator(0, "mask")) < 0.4
    hidden = mask.view(3, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    masked = vit(x, Want(patches=True), mask)
    torch.testing.assert_close(vit(torch.where(hidden, x + 1, x), Want(patches=True), mask).patches, masked.patches)
    assert (vit(torch.where(hidden, x, x + 1), Want(patches=True), mask).patches - masked.patches).abs().min() > 0
    assert not torch.allclose(vit(x).pooled, masked.pooled)
    assert set(vit.state_dict()) - set(weights(vit)) == {"mask_token"}


def test_a_token_that_stands_for_nothing_gets_a_gradient_of_zeros_and_changes_no_bit():
    """Processes that share a step wait for a gradient of every parameter."""
    without, vit = (build(BackboneSpec(name="micro-vit", mask_token=token), 3, 32, seed=0) for token in (False, True))
    nn.init.normal_(vit.mask_token, generator=generator(0, "token"))
    x = images()
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            said = vit(x)
            assert torch.equal(said.pooled, without(x).pooled) and said.pooled.dtype == without(x).pooled.dtype
        vit.mask_token.grad = None
        said.pooled.float().pow(3).sum().backward()
        assert vit.mask_token.grad is not None and not vit.mask_token.grad.any()


def test_stochastic_depth_skips_whole_rows_and_keeps_the_mean():
    block, x = TransformerBlock(8, 2, 16, drop_path=0.25), torch.ones(20000, 1, 8)
    with seeded(0, "drop"):
        dropped = block._drop(x)[:, 0]
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (dropped == dropped[:, :1]).all()
    assert dropped[:, 0].mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(block.eval()._drop(x), x)
    assert [b.drop_path for b in MicroViT(depth=3, drop_path=0.2).blocks] == pytest.approx([0, 0.1, 0.2])


def test_the_micro_backbones_need_neither_timm_nor_torchvision():
    code = (
        "import sys, torch\n"
        "sys.modules.update(timm=None, torchvision=None)\n"
        "from gnothi.contracts import SettingError\n"
        "from gnothi.models.backbone import BackboneSpec, build\n"
        "for name in ('micro-resnet', 'micro-vit'): build(BackboneSpec(name=name), 3, 32, 0)(torch.zeros(1, 3, 32, 32))\n"
        "try: build(BackboneSpec(name='resnet18'), 3, 32, 0)\n"
        "except SettingError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "resnet18" in said and "timm" in said and "micro-resnet and micro-vit work without them" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"name": "micro-resnet", "args": {"width": (8,)}}, "backbone.args.width: micro-resnet has no such argument; did you mean widths?"),
        ({"name": "micro-resnet", "drop_path": 0.1}, "backbone.drop_path means nothing to micro-resnet"),
        ({"name": "micro-resnet", "stem": "plain"}, "backbone.stem means nothing to micro-resnet"),
        ({"name": "micro-vit", "stem": "cifar"}, "backbone.stem means nothing to micro-vit"),
        ({"name": "micro-vit", "pretrained": True}, "backbone.pretrained means nothing to micro-vit"),
        ({"name": "micro-vit", "patch_size": 5}, "views.size must be a multiple of the patch size 5, got 32; 30 and 35 are nearest"),
        ({"name": "micro-vit", "args": {"heads": 5}}, "backbone.args.width must be a multiple of backbone.args.heads, got 96 and 5"),
        ({"stem": "cifer"}, "backbone.stem must be cifar or plain, got 'cifer'; did you mean cifar?"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(spec, words):
    with pytest.raises(SettingError) as caught:
        build(BackboneSpec(**spec), 3, 32, seed=0)
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)


def test_masks_without_a_token_are_refused():
    mask = torch.zeros(3, 64, dtype=torch.bool)
    with pytest.raises(SettingError, match="backbone.mask_token must be true"):
        MicroViT()(images(), mask=mask)
    with pytest.raises(SettingError, match="no patch tokens"):
        MicroResNet()(images(), mask=mask)


SHAPES = [("micro-resnet", {"widths": (8, 12, 20, 28)}), ("micro-vit", {"depth": 2, "width": 48, "heads": 4, "mlp_ratio": 3})]


@pytest.mark.parametrize(("name", "args"), SHAPES)
def test_the_form_that_is_named_makes_the_same_network(name, args):
    backbone = build(BackboneSpec(name=name, args=args), 5, 32, seed=0)
    form = timm_form(backbone, 5)
    net = timm.create_model(form.name, **form.arguments)
    if form.stem is not None:
        net.conv1, net.maxpool = nn.Conv2d(5, form.stem, 3, 1, 1, bias=False), nn.Identity()
    net.load_state_dict(weights(backbone), strict=True)
    torch.testing.assert_close(net.eval()(images(5)), backbone.eval()(images(5)).pooled, atol=1e-6, rtol=1e-5)


def test_a_shape_that_timm_lacks_is_refused_by_name():
    for widths in ((8, 16, 32), (7, 8, 9, 10)):
        with pytest.raises(SettingError, match="four stages, the first of an even width; got backbone.args.widths"):
            timm_form(MicroResNet(widths=widths), 3)
    with pytest.raises(SettingError, match="timm has no network like Adopted"):
        timm_form(adopt(nn.Flatten()), 3)
