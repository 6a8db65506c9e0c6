"""Parts of the pages that come from the code itself: advice, extras, whole examples; and the sweep behind the recipe of photos."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable

from tables import ROOT, interval, results

from gnothi.training import health

WHAT_FOR = {
    "onnx": "ONNX files of `gnothi export`",
    "tensorboard": "`training.tensorboard`",
    "wandb": "`training.wandb`",
    "detect": "tests that hold `gnothi evaluate detect` to pycocotools",
    "test": "`make test`",
    "check": "`make check`",
    "docs": "`make docs`",
    "package": "`make package`",
}
BEGINNING = "the starting point: `brightness=0.2`, `contrast=0.2`, `saturation=0.1`, `hue=0.02`, `area=[0.2, 1.0]`; the rows below change these"


def photos_sweep() -> str:
    """Arms that change views alone."""
    lines = ["| views | k-NN |", "|---|---|"]
    for row in results("photos_sweep").values():
        settings = row.get("settings") or {}
        if set(settings) <= {"views"}:
            words = ", ".join(f"`{k}={json.dumps(v)}`" for k, v in settings.get("views", {}).items())
            lines.append(f"| {words or BEGINNING} | {interval(row)} |")
    return "\n".join(lines)


def near_duplicates() -> str:
    """Planted copies that were found, by kind."""
    found = results("near_duplicates")
    kinds = list(found["planted"])
    lines = [f"| by | {' | '.join(kinds)} | other groups | cosine | outliers |", "|---" * (len(kinds) + 4) + "|"]
    for name, row in found["rows"].items():
        counts = " | ".join(f"{row[kind]} of {found['planted'][kind]}" for kind in kinds)
        cosine = f"{row['cosine']:.4f} | {row['outliers']}" if "cosine" in row else " | "
        lines.append(f"| {name if ' ' in name else f'`{name}`'} | {counts} | {len(row['others'])} | {cosine} |")
    return "\n".join([*lines, "", f"{found['images']} photographs of flowers and {sum(found['planted'].values())} copies."])


def advice() -> str:
    """What a verdict of collapse says, method by method."""
    rows = [f"| `{method}` | {text} |" for method, text in health.ADVICE.items()]
    return "\n".join(["| method | what the verdict says |", "|---|---|", *rows, f"| any other | {health.GENERAL_ADVICE} |"])


def extras() -> str:
    optional = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    rows = [f"| `{name}` | {WHAT_FOR.get(name, name)} | {', '.join(f'`{p}`' for p in packages)} |" for name, packages in optional.items()]
    return "\n".join(["| extra | for | installs |", "|---|---|---|", *rows])


def example(name: str) -> Callable[[], str]:
    """A writer of a file of examples/, whole."""

    def write() -> str:
        return f"```python\n{(ROOT / 'examples' / f'{name}.py').read_text(encoding='utf-8').rstrip()}\n```"

    write.__name__ = name
    return write


PARTS: tuple[Callable[[], str], ...] = (photos_sweep, near_duplicates, advice, extras, *map(example, ("own_backbone", "own_method", "own_auxiliary")))
