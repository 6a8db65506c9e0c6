"""What the first hour takes with others: lines to write, and the time of an epoch where the peer runs on a CPU beside what is installed here.

    python -m experiments.peers DATA [--images N]

DATA is a folder with a folder a class in train/ and val/. Timed on the first N images of each class, an epoch each, whole processes on one thread:
lightly's command line as it comes, the script of experiments.with_lightly, and gnothi with that script's network and with its own choice. All take
the same images, in batches of 32 that leave none out, and have no loader processes; gnothi looks at health and writes a checkpoint at the end only,
for by its defaults an epoch of so few images is little but looks. Writes results/peers.json, from which docs/write.py makes a table, after every
command: one that was timed with the same images and words is not run again.
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
BATCH = 32
SHARED = " ".join(
    f"--set {setting}"
    for setting in (
        f"training.batch={BATCH}",
        "training.threads=1",
        "training.workers=0",
        "data.holdout=0",
        *(f"training.{kind}_every=100%" for kind in ("evaluate", "health", "checkpoint")),
    )
)
"""What both of ours are told, so that they do what is timed of the others."""
LIGHTLY = f"pre_trained=False trainer.gpus=0 trainer.max_epochs=1 loader.num_workers=0 loader.batch_size={BATCH}"
TIMED = {
    "lightly-magic": f"lightly-magic input_dir={{folder}}/train {LIGHTLY}",
    "script": f"experiments.with_lightly train val --epochs 1 --batch {BATCH}",
    "gnothi resnet18": f"gnothi train train --epochs 1 --backbone resnet18 --set backbone.stem=plain --set views.size=64 --out runs/18 {SHARED}",
    "gnothi": f"gnothi train train --epochs 1 --out runs/own {SHARED}",
}
"""Commands within a folder that holds train/ and val/, {folder}; lightly's looks for weights on the network unless it is told not to."""


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


def started(command: str, folder: Path) -> list[str]:
    """A command in words: lightly's own program, or a module that is run."""
    first, *rest = command.split(" ")
    program = [str(Path(sys.executable).with_name(first))] if first == "lightly-magic" else [sys.executable, "-m", first]
    return [*program, *(word.format(folder=folder) for word in rest)]


def timed(command: str, folder: Path) -> dict[str, Any]:
    """Seconds of a whole process, the files that it left, and the precision that it computed in, which ours chooses by the processor."""
    before = {p for p in folder.rglob("*") if p.is_file()}
    own = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    done = subprocess.run(started(command, folder), cwd=folder, env=own, capture_output=True, text=True)
    seconds = round(time.monotonic() - began, 1)
    if done.returncode:
        raise SystemExit(f"`{command}` ended with code {done.returncode}: {done.stderr.strip()[-2000:]}")
    left = sorted({p for p in folder.rglob("*") if p.is_file()} - before)
    specs = [json.loads(p.read_text(encoding="utf-8")) for p in left if p.name == "spec.json"]
    precision = specs[0]["settings"]["training"]["precision"] if specs else "fp32"
    load = round(os.getloadavg()[0], 1)
    return {"command": command, "seconds": seconds, "left": [str(p.relative_to(folder)) for p in left], "precision": precision, "load": load}


def known() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def standing(asked: dict[str, Any]) -> dict[str, Any]:
    """What was timed before of the same images, with the same words and the same lightly."""
    found = known()
    if any(found.get(key) != value for key, value in asked.items()):
        return {}
    return {name: row for name, row in found["timed"].items() if row.get("command") == TIMED.get(name)}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=96, metavar="N", help="of each class, by default 96; 0 counts lines only")
    given = parser.parse_args(words)
    if not given.images:
        write_text(RESULTS, json.dumps(known() | {"lines": written()}, indent=1) + "\n")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = few(given.data, folder, given.images)
        if not images or images % BATCH:
            parser.error(f"the images of train/ must be a multiple of {BATCH}, so that every epoch has all of them, got {images}; see --images")
        asked = {"data": given.data.resolve().name, "images": images, "lightly": version("lightly")}
        rows = standing(asked)
        for name in [name for name in TIMED if name not in rows]:
            rows[name] = timed(TIMED[name], folder)
            print(name, rows[name]["seconds"], flush=True)
            ordered = {name: rows[name] for name in TIMED if name in rows}
            write_text(RESULTS, json.dumps({**asked, "lines": written(), "timed": ordered}, indent=1) + "\n")


if __name__ == "__main__":
    main()
