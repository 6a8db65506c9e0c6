"""Activation checkpointing: the plain step is the oracle, bit for bit; what is kept is counted."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import toys
from torch import Tensor, nn

from gnothi.contracts import SettingError, Want
from gnothi.models.backbone import BackboneSpec, build
from gnothi.models.blocks import activations, blocks, recompute
from gnothi.models.micro_vit import MicroViT, TransformerBlock
from gnothi.models.teacher import batch_statistics
from gnothi.randomness import generator, seeded
from gnothi.recipes.resolve import resolve
from gnothi.training.objective import Objective

SMALL: dict[str, dict[str, Any]] = {
    "micro-resnet": {"args": {"widths": (6, 8)}},
    "micro-vit": {"args": {"width": 12, "depth": 3}, "patch_size": 4, "drop_path": 0.4, "mask_token": True},
    "mobilenetv3_small_050": {"drop_path": 0.4},
    "test_vit": {"patch_size": 4, "drop_path": 0.4},
}
"""BatchNorm; stochastic depth; both, in timm's BatchNorm with activation; timm's blocks with stochastic depth."""


def network(name: str, size: int = 16) -> nn.Module:
    return build(BackboneSpec(name=name, **SMALL[name]), 3, size, 0)


def images(n: int = 6, size: int = 16) -> Tensor:
    return torch.randn(n, 3, size, size, generator=generator(0, "images"))


# ---- the same numbers ---------------------------------------------------------------------------
@pytest.mark.parametrize("name", SMALL)
def test_a_run_that_recomputes_is_the_plain_run_bit_for_bit(name: str) -> None:
    """Parameters, teacher, running statistics and how many batches they counted, after steps of three crops of two sizes."""
    states = []
    for spec in ({}, {"recompute": True}):
        made = Objective(toys.method("dino", norm="batch", backbone=lambda: network(name, 32)).float())
        run = toys.learner(made, lambda number: toys.views(4, 1, size=32, local=16, seed=number, dtype=torch.float32), total=3, training=spec)
        run.fit()
        states.append(run.state())
    assert states[0].keys() == states[1].keys()
    assert [k for k in states[0] if not torch.equal(states[0][k], states[1][k])] == []


@pytest.mark.parametrize("name", SMALL)
def test_blocks_patches_and_masks_come_with_the_same_gradients(name: str) -> None:
    results = []
    masked = name == "micro-vit"
    for again in (False, True):
        net = network(name)
        if again:
            recompute(net)
        mask = torch.rand(6, 16, generator=generator(0, "mask")) < 0.5 if masked else None
        with seeded(3, "pass"):
            said = net(images(), Want(patches=True, blocks=(0, 1)), mask)
        with seeded(4, "what comes between"):
            torch.rand(7)
        parts = [said.pooled, said.patches, *(t for b in said.blocks.values() for t in (b.pooled, b.final, b.patches))]
        sum(p.square().mean() * (i + 1) for i, p in enumerate(parts)).backward()
        results.append([p.detach() for p in parts] + [torch.zeros(1) if p.grad is None else p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("statistics", ["update", "keep"])
def test_a_pass_that_leaves_the_running_statistics_alone_does_so_twice(statistics: Any) -> None:
    """The second pass tracks what the first did, whatever is set by then."""
    plain, again = network("micro-resnet"), network("micro-resnet")
    recompute(again)
    before = toys.parameters(again)
    for net in (plain, again):
        with batch_statistics(net, statistics):
            pooled = net(images()).pooled
        pooled.square().mean().backward()
    assert toys.same(toys.parameters(plain), toys.parameters(again))
    assert toys.same(before, toys.parameters(again)) == (statistics == "keep")
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(plain.parameters(), again.parameters(), strict=True))


def test_passes_without_gradient_or_for_evaluation_are_plain_ones() -> None:
    net = network("micro-resnet")
    recompute(net)
    with activations(net) as kept:
        net.eval()(images())
        evaluated = kept()
    plain = network("micro-resnet").eval()
    with activations(plain) as kept:
        plain(images())
        assert kept() == evaluated


def test_a_copy_of_a_network_that_recomputes_is_one_of_its_own() -> None:
    import copy

    net = network("micro-resnet")
    recompute(net)
    copied = copy.deepcopy(net)
    copied(images()).pooled.sum().backward()
    assert all(p.grad is None for p in net.parameters()) and all(p.grad is not None for p in copied.parameters())
    assert not torch.equal(copied.bn1.running_mean, net.bn1.running_mean)


# ---- what is kept -------------------------------------------------------------------------------
def kept_by(net: nn.Module, n: int = 6) -> int:
    with activations(net) as kept:
        net(images(n))
    return kept()


def test_a_block_that_recomputes_keeps_its_input_and_nothing_else() -> None:
    """Two blocks more keep two inputs more: [B, N, D] float32 each. Plain ones keep many times that."""

    def vit(depth: int) -> MicroViT:
        return MicroViT(size=16, patch_size=4, width=12, depth=depth)

    few, many = vit(2), vit(4)
    plain = kept_by(many) - kept_by(few)
    recompute(few)
    recompute(many)
    assert kept_by(many) - kept_by(few) == 2 * 6 * 17 * 12 * 4
    assert plain > 10 * 2 * 6 * 17 * 12 * 4


@pytest.mark.parametrize("name", SMALL)
def test_recomputing_keeps_less(name: str) -> None:
    plain, again = network(name), network(name)
    recompute(again)
    assert kept_by(again) < kept_by(plain) * {"micro-resnet": 0.7}.get(name, 0.5)


def test_what_is_kept_is_counted_once_and_without_parameters() -> None:
    """A linear layer keeps its input; two that share one keep it once; a product keeps both sides."""
    x = torch.ones(5, 3, requires_grad=True)
    layer = nn.Linear(3, 4)
    with activations(layer) as kept:
        layer(x)
        assert kept() == 5 * 3 * 4
        layer(x)
        assert kept() == 5 * 3 * 4
        (x * (x + 1)).sum()
        assert kept() == 2 * 5 * 3 * 4


# ---- which blocks -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [
        ("resnet18", "BasicBlock", 8),
        ("resnet50", "Bottleneck", 16),
        ("vit_tiny_patch16_224", "Block", 12),
        ("swin_tiny_patch4_window7_224", "SwinTransformerBlock", 12),
        ("convnext_atto", "ConvNeXtBlock", 12),
        ("mixer_s32_224", "MixerBlock", 8),
        ("regnetx_002", "RegStage", 4),
        ("vgg11", "", 0),
    ],
)
def test_the_blocks_of_a_network_are_those_that_its_paper_names(name: str, kind: str, count: int) -> None:
    with torch.device("meta"):
        found = blocks(timm.create_model(name))
    assert [type(b).__name__ for b in found] == [kind] * count


def test_blocks_stand_in_order_and_none_holds_another() -> None:
    net = MicroViT(depth=5)
    assert blocks(net) == list(net.blocks) and all(isinstance(b, TransformerBlock) for b in blocks(net))


def test_a_network_without_blocks_is_refused_by_name() -> None:
    made = Objective(toys.method("byol", backbone=lambda: build(BackboneSpec(name="alexnet"), 3, 64, 0)))
    with pytest.raises(SettingError, match=r"training.recompute must be false for AlexNet, a plain row of layers without blocks; got true"):
        toys.learner(made, toys.Feed(), training={"recompute": True})


def test_compilation_decides_by_itself() -> None:
    with pytest.raises(SettingError, match="training.recompute must be false with training.compile"):
        resolve("photos", settings={"training": {"recompute": True, "compile": True}}, device="cpu")
