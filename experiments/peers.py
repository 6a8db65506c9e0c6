"""What the first hour takes with others: lines to write, and the time of an epoch where the peer runs on a CPU beside what is installed here.

    python -m experiments.peers DATA [--images N]

DATA is a folder with a folder a class in train/ and val/. Timed on the first N images of each class, an epoch each, whole processes on one thread:
lightly's command line as it comes, the script of experiments.with_lightly, and gnothi with that script's network and with its own choice. Writes
results/peers.json, from which docs/write.py makes a table.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gnothi.files import write_text

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "peers.json"
HERE = [sys.executable, "-m"]
TIMED: dict[str, list[str]] = {
    "lightly-magic": [str(Path(sys.executable).with_name("lightly-magic")), "input_dir={folder}/train", "pre_trained=False", "trainer.gpus=0",
                      "trainer.max_epochs=1", "loader.num_workers=0"],
    "script": [*HERE, "experiments.with_lightly", "train", "val", "--epochs", "1"],
    "gnothi resnet18": [*HERE, "gnothi", "train", "train", "--epochs", "1", "--backbone", "resnet18", "--set", "views.size=64", "--out", "runs/18"],
    "gnothi": [*HERE, "gnothi", "train", "train", "--epochs", "1", "--out", "runs/own"],
}  # fmt: skip
"""Commands within a folder that holds train/ and val/; lightly's looks for weights on the network unless it is told not to."""


def lines_of_code(text: str) -> int:
    """Lines of Python, however they were broken: a statement is one line, docstrings and comments are none."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return sum(bool(line.strip()) for line in ast.unparse(tree).splitlines())


def written() -> dict[str, int]:
    """Lines of the script with lightly, and of the Python that does the same here, which docs/peers.md shows."""
    block = re.search(r"^```python\n(.*?)^```", (ROOT / "docs" / "peers.md").read_text(encoding="utf-8"), re.M | re.S)
    assert block is not None
    return {"lightly": lines_of_code((ROOT / "experiments" / "with_lightly.py").read_text(encoding="utf-8")), "gnothi": lines_of_code(block[1])}


def few(data: Path, folder: Path, images: int) -> int:
    """The first images of each class of both parts, as links; how many of train/."""
    for path in sorted(p for part in ("train", "val") for kind in (data / part).iterdir() for p in sorted(kind.iterdir())[:images]):
        link = folder / path.relative_to(data)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())
    return sum(1 for _ in (folder / "train").glob("*/*"))


def timed(command: list[str], folder: Path) -> dict[str, Any]:
    """Seconds of a whole process, and the files that it left."""
    before = {p for p in folder.rglob("*") if p.is_file()}
    own = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    done = subprocess.run([word.format(folder=folder) for word in command], cwd=folder, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    left = sorted({p for p in folder.rglob("*") if p.is_file()} - before)
    return {"seconds": round(time.monotonic() - began, 1), "left": [str(p.relative_to(folder)) for p in left], "load": round(os.getloadavg()[0], 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=100, metavar="N", help="of each class, by default 100; 0 counts lines only")
    given = parser.parse_args()
    found: dict[str, Any] = {"lines": written(), "lightly": version("lightly"), "timed": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        found["images"] = few(given.data, folder, given.images)
        for name, command in TIMED.items() if given.images else ():
            found["timed"][name] = timed(command, folder)
            print(name, found["timed"][name]["seconds"], flush=True)
    write_text(RESULTS, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
