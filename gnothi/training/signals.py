"""Signals as wishes: SIGINT and SIGTERM ask a run to stop after its step."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from gnothi import distributed
from gnothi.contracts import GnothiError


class Interrupted(GnothiError):
    """A signal stopped the run after a step; a checkpoint was written."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


@contextmanager
def listening() -> Iterator[Callable[[], int]]:
    """Inside, signals are remembered: the function given tells the one that came to any of the processes, or 0. SIGINT twice stops at once."""
    heard = 0

    def hear(signum: int, frame: FrameType | None) -> None:
        nonlocal heard
        if heard == signum == signal.SIGINT:
            raise KeyboardInterrupt
        heard = signum

    def asked() -> int:
        return heard if distributed.world() == 1 else max(distributed.gather_objects(heard))

    try:
        before = {s: signal.signal(s, hear) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever called listens
        before = {}
    try:
        yield asked
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
