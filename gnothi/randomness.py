"""The only source of random numbers: a number or a generator is a function of a seed, a purpose and some numbers."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


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
