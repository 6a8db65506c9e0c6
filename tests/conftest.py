"""For all tests: one compute thread, and settings of hypothesis."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile("gnothi", deadline=None, max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("gnothi")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """A run sets the threads of its process, and must not slow the tests after it."""
    torch.set_num_threads(1)
