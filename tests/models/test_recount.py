"""Running statistics that are taken anew: against a slow loop in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gnothi.models.batchnorm import SyncBatchNorm, has_statistics, recount
from gnothi.randomness import generator, seeded


def network(kind: type[nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    with seeded(0, "network"):
        made = nn.Sequential(nn.Conv2d(3, 5, 3), kind(5), nn.Dropout(0.5), nn.ReLU(), nn.Conv2d(5, 4, 3, 2), kind(4, momentum=0.3))
    made[1].running_mean += 7  # what training left
    return made


def batches(number: int = 3) -> list[torch.Tensor]:
    return list(torch.randn(number * 6, 3, 9, 9, generator=generator(0, "images")).mul(2).add(1).split(6))


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, SyncBatchNorm])
def test_statistics_are_the_mean_over_batches_of_a_loop_in_float64(kind: type[nn.Module]) -> None:
    learned = network(kind)
    slow = copy.deepcopy(learned).double()
    recount(learned, batches())
    found = {1: [], 5: []}
    for images in batches():
        x = slow[0](images.double())
        found[1].append((x.mean((0, 2, 3)), x.transpose(0, 1).flatten(1).var(1)))
        x = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + slow[1].eps).sqrt()
        x = slow[4](x.relu())  # nothing is dropped
        found[5].append((x.mean((0, 2, 3)), x.transpose(0, 1).flatten(1).var(1)))
    for i, said in found.items():
        mean, variance = (torch.stack(part).mean(0).float() for part in zip(*said, strict=True))
        torch.testing.assert_close(learned[i].running_mean, mean)
        torch.testing.assert_close(learned[i].running_var, variance)


def test_nothing_else_of_a_network_changes() -> None:
    learned = network().train()
    learned[0].eval()
    before, flags = copy.deepcopy(dict(learned.named_parameters())), [m.training for m in learned.modules()]
    recount(learned, batches())
    assert [m.training for m in learned.modules()] == flags
    assert all(torch.equal(p, before[k]) and p.grad is None and p.requires_grad for k, p in learned.named_parameters())
    assert (learned[1].momentum, learned[5].momentum) == (0.1, 0.3)


def test_counting_twice_gives_what_counting_once_gives() -> None:
    once, twice = network(), network()
    recount(once, batches())
    for _ in range(2):
        recount(twice, batches())
    assert all(torch.equal(a, b) for a, b in zip(once.buffers(), twice.buffers(), strict=True))


def test_networks_without_running_statistics_are_told_apart() -> None:
    assert has_statistics(network())
    assert not has_statistics(nn.Sequential(nn.LayerNorm(4), nn.BatchNorm1d(4, track_running_stats=False)))
