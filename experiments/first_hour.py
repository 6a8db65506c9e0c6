"""The first hour of a person with a folder of flowers: the README's steps for a few epochs, an ensemble, and what the commands print.

    python -m experiments.first_hour DATA [--out FOLDER] [--epochs N]

DATA is a folder of images with a folder a class in train/ and val/. The commands run one after the other in FOLDER, where DATA is called `flowers`;
what they printed, and how long they took, is written to results/first_hour.json, from which docs/write.py makes the page. A command that fails ends
it, and nothing is written. About sixteen minutes on two cores, thirteen of them training.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gnothi.files import write_text

RESULTS = Path(__file__).parent / "results" / "first_hour.json"
KEPT = 3
"""Lines of progress that are kept at the beginning and at the end of a run."""


def commands(image: str, epochs: int) -> list[str]:
    """What is typed, in order."""
    return [
        "gnothi",
        "gnothi data flowers",
        f"gnothi plan flowers --epochs {epochs}",
        f"gnothi train flowers --out runs/mine --epochs {epochs}",
        "gnothi evaluate knn runs/mine runs/mine@untrained pixels hog colour --data flowers",
        "gnothi ensemble fit runs/mine colour --data flowers --out runs/with-colour",
        "gnothi evaluate linear runs/mine runs/mine@untrained colour runs/with-colour --data flowers",
        f"gnothi neighbours runs/mine {image} --in flowers -k 5",
        "gnothi data flowers --encoder runs/mine",
        "gnothi embed runs/mine flowers --out features.parquet",
        "gnothi export runs/mine --to mine",
    ]


def typed(command: str, folder: Path) -> dict[str, Any]:
    """Run a command in a folder, as a person without a terminal's colours would see it."""
    began = time.monotonic()
    words = [sys.executable, "-m", *shlex.split(command)]
    done = subprocess.run(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "COLUMNS": "120"})
    print(f"$ {command}\n{done.stdout}", flush=True)
    lines = done.stdout.replace(f"{folder}/", "").rstrip().splitlines()
    return {"command": command, "code": done.returncode, "seconds": round(time.monotonic() - began, 1), "output": shortened(lines)}


def shortened(lines: list[str]) -> list[str]:
    """Lines of progress but the first and the last few are counted."""
    steps = [i for i, line in enumerate(lines) if re.match(r"step \d+/\d+", line)]
    if len(steps) <= 2 * KEPT:
        return lines
    first, last = steps[KEPT - 1] + 1, steps[-KEPT]
    return [*lines[:first], f"... {last - first} more lines like these", *lines[last:]]


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, help="by default a folder that is removed at the end")
    parser.add_argument("--epochs", type=int, default=20)
    given = parser.parse_args(words)
    if given.out and (given.out / "runs").exists():
        parser.error(f"--out {given.out} holds the runs of an earlier hour; give it a folder of its own")
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        flowers = folder / "flowers"
        if not flowers.exists():
            flowers.symlink_to(given.data.resolve(), target_is_directory=True)
        image = sorted(flowers.glob("val/*/*.jpg"))[0]
        found = []
        for command in commands(str(image.relative_to(folder)), given.epochs):
            found.append(typed(command, folder))
            if found[-1]["code"]:
                raise SystemExit(f"`{command}` ended with code {found[-1]['code']}; nothing is written")
    write_text(RESULTS, json.dumps({"commands": found, "cores": os.cpu_count()}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
