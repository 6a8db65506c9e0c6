"""The only source of random numbers: a number or a generator is a function of a seed, a purpose and some numbers."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

_STEP, _FIRST, _SECOND = (v - 2**64 for v in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
"""Of SplitMix64, as int64."""


def number(seed: int, purpose: str, *numbers: int) -> int:
    """A 63-bit number that depends on nothing but its arguments (the first 8 bytes of a SHA-256)."""
    seed, numbers = int(seed), tuple(map(int, numbers))  # a NumPy integer or a bool prints otherwise
    digest = hashlib.sha256(repr((seed, purpose, *numbers)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """A CPU generator for one purpose."""
    return torch.Generator().manual_seed(number(seed, purpose, *numbers))


@contextlib.contextmanager
def seeded(seed: int, purpose: str, *numbers: int) -> Iterator[None]:
    """Inside, torch's global generator is seeded; outside it is as before.

    For what cannot be handed a generator: the initial weights of modules, dropout and stochastic depth.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(number(seed, purpose, *numbers))
        yield


def expand(seeds: Tensor, count: int) -> Tensor:
    """Many numbers of each seed, the same on every device, whatever stands beside it: where how many are needed is known only after the draw.

    SplitMix64 (Steele et al. 2014, doi:10.1145/2660193.2660195) by counter; int64 wraps around.

    Args:
        seeds: [B] int64, of a ``generator``.
        count: K.

    Returns:
        [B, K] float64 in [0, 1); float32 on MPS, which has no float64.
    """
    x = seeds[:, None] + torch.arange(1, count + 1, device=seeds.device) * _STEP
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    x = x ^ ((x >> 31) & ((1 << 33) - 1))
    bits = 24 if seeds.device.type == "mps" else 53
    return ((x >> (64 - bits)) & ((1 << bits) - 1)).to(torch.float32 if bits == 24 else torch.float64) / (1 << bits)
