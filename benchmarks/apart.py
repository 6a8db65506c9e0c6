"""A case measured in a process of its own, whose peak of memory is that case's alone."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Failed(RuntimeError):
    """A case that came to no end."""


class Failures:
    """Cases go on where one of them fails; all failures are said at the end, with exit code 1."""

    def __init__(self) -> None:
        self.names: list[str] = []

    @contextlib.contextmanager
    def heard(self, name: str) -> Iterator[None]:
        """Run one case."""
        try:
            yield
        except Failed as error:
            print(error, file=sys.stderr, flush=True)
            self.names.append(name)

    def said(self) -> None:
        """End with what failed, where something did."""
        if self.names:
            raise SystemExit(f"failed: {', '.join(self.names)}")


def apart(benchmark: str, case: dict[str, Any]) -> dict[str, Any]:
    """What ``python -m benchmarks.BENCHMARK --one CASE`` prints in its last line.

    Args:
        benchmark: a module of this folder that takes ``--one`` with a case in JSON.
        case: what it is to measure, in plain values.

    Raises:
        Failed: it ended with an error, whose last lines are the message.
    """
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", "--one", json.dumps(case)]
    said = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    if said.returncode:
        raise Failed(f"{benchmark} {case}: {said.stderr.strip()[-2000:]}")
    return json.loads(said.stdout.splitlines()[-1])
