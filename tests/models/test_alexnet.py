from __future__ import annotations

import pytest
import torch

from gnothi.contracts import SettingError, Want
from gnothi.models.backbone import BackboneSpec, build
from gnothi.randomness import generator


@pytest.mark.parametrize("size", [63, 96])
def test_it_says_what_torchvision_s_says_before_its_last_layer(size: int) -> None:
    from torchvision.models import alexnet

    theirs, mine = alexnet().eval(), build(BackboneSpec(name="alexnet"), 3, size, 0).eval()
    tensors = {k: v for k, v in theirs.state_dict().items() if not k.startswith("classifier.6")}
    mine.load_state_dict(tensors)
    images = torch.randn(2, 3, size, size, generator=generator(0, "images"))
    theirs.classifier[6] = torch.nn.Identity()
    encoding = mine(images, Want(patches=True, blocks=(0, 2, 4)))
    torch.testing.assert_close(encoding.pooled, theirs(images))
    for block, after in ((0, 3), (2, 8), (4, 13)):
        maps = theirs.features[:after](images)
        torch.testing.assert_close(encoding.blocks[block].patches, maps.flatten(2).mT)
        torch.testing.assert_close(encoding.blocks[block].pooled, maps.mean((2, 3)))
        assert mine.block_widths[block] == maps.shape[1] and encoding.blocks[block].grid == tuple(maps.shape[2:])


def test_with_batchnorm_it_takes_any_channels_and_small_crops_are_refused() -> None:
    network = build(BackboneSpec(name="alexnet-bn"), 5, 64, 0)
    assert network(torch.zeros(2, 5, 64, 64)).pooled.shape == (2, 4096)
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules()) == 5
    with pytest.raises(SettingError, match="views.size must be at least 63 for alexnet, got 32"):
        build(BackboneSpec(name="alexnet"), 3, 32, 0)
