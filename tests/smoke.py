"""Run by the Python of a fresh environment, away from the repository: what an installed gnothi must be able to do.

python smoke.py REPOSITORY
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(sys.argv[1]).resolve()
COMMAND = Path(sys.executable).with_name("gnothi")
"""The console script beside this Python; not resolved, for an environment's Python is a link."""


def gnothi(*words: str) -> str:
    """What the installed command prints; a failure ends the smoke test."""
    done = subprocess.run([COMMAND, *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"gnothi {' '.join(words)}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def main() -> None:
    """Files of the package, its version, and a run from images to a page, vectors and neighbours."""
    import gnothi as package

    folder = Path(package.__file__).resolve().parent
    assert folder != REPOSITORY / "gnothi", f"this is not the installed package: {folder}"
    shipped = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    written = {str(p.relative_to(REPOSITORY / "gnothi")) for p in (REPOSITORY / "gnothi").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert shipped == written, f"the package lacks {sorted(written - shipped)} or has too much: {sorted(shipped - written)}"
    assert gnothi("--version").split()[-1] == package.__version__
    tiny = ("--set", "data.per_class=16", "--set", "data.per_class_test=4")
    short = ("--epochs", "1", "--set", "training.batch=32", "--set", "training.threads=1")
    verdict = json.loads(gnothi("train", "photos", "--out", "run", "--json", *short, *tiny))
    assert Path(verdict["report"]).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "k-NN" in gnothi("evaluate", "knn", "run", "pixels", "--data", "photos", *tiny)
    gnothi("embed", "run", "photos", "--out", "features.parquet", *tiny)
    name = json.loads(gnothi("neighbours", "run", "coffee-train-000", "--in", "features.parquet", "--json", "--html", "near.html", *tiny))
    assert len(name["images"][0]["neighbours"]) == 10 and "<img" in Path("near.html").read_text(encoding="utf-8")
    print("installed, and works")


if __name__ == "__main__":
    main()
