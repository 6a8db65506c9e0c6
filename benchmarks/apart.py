"""A case measured in a process of its own, whose peak of memory is that case's alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def apart(benchmark: str, case: dict[str, Any]) -> dict[str, Any]:
    """What ``python -m benchmarks.BENCHMARK --one CASE`` prints in its last line.

    Args:
        benchmark: a module of this folder that takes ``--one`` with a case in JSON.
        case: what it is to measure, in plain values.
    """
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", "--one", json.dumps(case)]
    said = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    if said.returncode:
        raise SystemExit(f"{benchmark} {case}: {said.stderr.strip()[-2000:]}")
    return json.loads(said.stdout.splitlines()[-1])
