"""Every command and block of code in the documents runs, in a folder that has what they name; runs take three steps, photographs are few."""

from __future__ import annotations

import contextlib
import json
import os
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from PIL import Image
from terminal import gnothi
from test_docs import ROOT, blocks, commands, parsed

import gnothi as package
from gnothi.auxiliary import AUXILIARIES
from gnothi.cli import cli
from gnothi.data.photos import photo_tiles
from gnothi.methods import METHODS
from gnothi.models.backbone import BACKBONES, BackboneSpec, build
from gnothi.randomness import generator
from gnothi.recipes.resolve import Resolved

STEPS, TILES = 3, 12
PATTERN = re.compile(r"\b[A-Z][A-Z_.]*\b|\[-|\.\.\.|(?<!\\)\|")
"""What stands for something else: a line with it says how a command is written, and is no command."""
NOT_RUN = {
    "gnothi demo": "takes three minutes; tests/test_demo.py runs it in small",
}
"""Commands that begin so only parse, and why."""
STAND_IN = {"cifar10": "photos"}
"""Data that would have to be fetched, and what stands for them here."""
QUICK = ("data", "recipes", "neighbours")
"""Verbs whose commands take a second; the others are marked slow."""


# ---- the folder ----------------------------------------------------------------------------------
def shrink(patch: pytest.MonkeyPatch) -> None:
    """Three steps a run in this process alone, a few tiles a photograph, and a store of features of its own."""
    whole = Resolved.total.fget  # type: ignore[attr-defined]
    patch.setattr(Resolved, "total", property(lambda self: min(STEPS, whole(self))))
    patch.setattr(
        import_module("gnothi.data.open"), "photo_tiles", lambda split, tile, count, seed: photo_tiles(split, tile, min(count, TILES), seed)
    )
    patch.setattr("gnothi.recipes.resolve._threads", lambda *_: (1, 0))
    patch.setenv("GNOTHI_CACHE", str(Path.cwd() / "store"))


def prepare() -> None:
    """What the documents name: images with a table of labels, a picture, runs and features."""
    noise = torch.randint(256, (48, 36, 36, 3), generator=generator(0, "documents"), dtype=torch.uint8).numpy()
    lines = ["file,label,patient"]
    for i, image in enumerate(noise):
        image[:, :, i % 3] //= 4
        path = Path("my-images", ("circles", "squares", "stars")[i % 3], f"{i:03d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        lines.append(f"{path.relative_to('my-images')},{i % 3},P{i // 4}")
    Path("labels.csv").write_text("\n".join(lines) + "\n")
    Image.fromarray(noise[0]).save("scan.png")
    shutil.copytree("my-images", "cells")
    shutil.copytree(ROOT / "examples", "examples")
    channels = np.repeat(noise, 2, 3)[..., :5].astype(np.uint16) * 200
    np.savez("cells.npz", images=channels, labels=np.arange(48) % 3)
    np.savez("dna.npz", images=channels[..., :1])
    for i, name in enumerate(("dna", "actin")):
        np.save(f"{name}.npy", channels[:, ::6, ::6, i].reshape(48, -1).astype(np.float32))
    np.save("mine.npy", photo_tiles("train", 32, TILES, 0).array.float().mean((2, 3)).numpy())
    small = ("--set", "backbone.args.widths=[8,8,8,16]", "--set", "training.threads=1")
    for seed, (name, data) in enumerate({"mine": "my-images", "b": "my-images", "cells": "cells.npz", "dna": "dna.npz"}.items()):
        done = gnothi("train", data, "--out", f"runs/{name}", *small, "--set", f"seed={seed}")
        assert done.code == 0, done.err
    for name in ("x", "a", "base", "sdssl", "dino"):
        shutil.copytree("runs/mine", f"runs/{name}")
    assert gnothi("ensemble", "fit", "runs/a", "runs/b", "--data", "my-images", "--out", "runs/together").code == 0
    Path("knn.json").write_text(gnothi("evaluate", "knn", "runs/mine", "pixels", "--data", "my-images", "--json").out)
    for ending in ("parquet", "npz", "safetensors"):
        assert gnothi("embed", "runs/mine", "my-images", "--out", f"features.{ending}").code == 0


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder as it is before any command."""
    with contextlib.chdir(tmp_path_factory.mktemp("documents")), pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        prepare()
        yield Path.cwd()


@pytest.fixture
def work(template: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it, which is the working directory."""
    shutil.copytree(template, tmp_path / "work")
    with contextlib.chdir(tmp_path / "work"):
        yield Path.cwd()


def make_room(text: str) -> None:
    """Remove what a command or block is going to write, unless it goes on with it."""
    for place in re.findall(r"""(?:--out |--to |out=|export\("[^"]*", )["']?([\w./-]+)""", text):
        if "--resume" not in text and Path(place).is_dir():
            shutil.rmtree(place)


def here(text: str) -> str:
    """A command or block with what stands for data that lie elsewhere."""
    for name, other in STAND_IN.items():
        text = re.sub(rf"\b{name}\b", other, text)
    return text


def whole(line: str) -> bool:
    """Whether a line has every argument that its verb needs; others only name the verb or an option."""
    command, context, words = parsed(line)
    try:
        command.parse_args(context, list(words))
    except (click.MissingParameter, click.exceptions.NoArgsIsHelpError):
        return False
    return bool(words)


# ---- commands ------------------------------------------------------------------------------------
def runnable() -> list[Any]:
    """Whole commands of the documents, each once; those that take long are slow."""
    found = {}
    for page, line in commands():
        command, _, _ = parsed(line)
        if not isinstance(command, click.Group) and whole(line) and not PATTERN.search(re.sub(r'"[^"]*"', "", line.partition("  #")[0])):
            reason = next((why for begins, why in NOT_RUN.items() if line.startswith(begins)), None)
            marks = [pytest.mark.skip(reason=reason)] if reason else [] if command.name in QUICK else [pytest.mark.slow]
            found.setdefault(line, pytest.param(page, line, marks=marks, id=f"{page}: {line}"[:100]))
    return list(found.values())


@pytest.mark.parametrize(("page", "line"), runnable())
def test_commands_of_the_documents_run(page: str, line: str, work: Path) -> None:
    make_room(line)
    command, _, kept = here(line).partition(" > ")
    done = gnothi(*shlex.split(command, comments=True)[1:])
    if kept:
        json.loads(done.out)
    assert done.code == 0, f"{page}: {line}\n{done.err}"


def test_every_command_that_is_not_run_is_there() -> None:
    for begins in NOT_RUN:
        assert any(line.startswith(begins) for _, line in commands()), begins
    assert len(runnable()) > 30


OTHERS = {
    "make": lambda words: all(re.search(rf"^{w}:", (ROOT / "Makefile").read_text(), re.M) for w in words),
    "pip": lambda words: words[0] == "install",
    "python3": lambda words: words[:2] == ["-m", "venv"],
    "python": lambda words: (ROOT / (words[1].replace(".", "/") + ".py" if words[0] == "-m" else words[0])).is_file(),
    "pytest": lambda words: (ROOT / words[-1]).exists(),
}
"""Other programs that a block of the shell may call, and what must be so."""


def test_other_commands_of_the_documents_name_what_is_there() -> None:
    lines = [(page, line) for page, body in blocks(("sh", "bash", "console", "shell")) for line in body.replace("\\\n", " ").splitlines()]
    for page, line in lines:
        program, *words = shlex.split(line, comments=True) or [""]
        assert program in ("", "gnothi") or (program in OTHERS and OTHERS[program](words)), f"{page}: {line}"


# ---- code ----------------------------------------------------------------------------------------
def some_features() -> dict[str, Any]:
    vectors = torch.randn(60, 8, generator=generator(0, "features"))
    labels = torch.arange(60) % 3
    return {"train": vectors[:40], "train_labels": labels[:40], "test": vectors[40:], "test_labels": labels[40:]}


def a_backbone() -> dict[str, Any]:
    from gnothi.contracts import Want

    return {"backbone": build(BackboneSpec(), 3, 32, 0), "images": torch.zeros(2, 3, 32, 32), "Want": Want}


def pictures() -> dict[str, Any]:
    return {"images": photo_tiles("test", 32, 1, 0).array}


GIVEN: dict[str, Callable[[], dict[str, Any]]] = {
    "evaluate.md": some_features,
    "backbones.md": a_backbone,
    "encoders.md": pictures,
}
"""Names that the text beside a page's blocks has introduced."""


def pieces() -> list[Any]:
    """Blocks of Python; they are slow."""
    found = []
    for number, (page, code) in enumerate(blocks(("python", "py"))):
        found.append(pytest.param(page, code, marks=pytest.mark.slow, id=f"{page}-{number}"))
    return found


@pytest.mark.parametrize(("page", "code"), pieces())
def test_code_of_the_documents_runs(page: str, code: str, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_room(code)
    monkeypatch.setattr(sys, "argv", ["page"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with unchanged(BACKBONES), unchanged(METHODS), unchanged(AUXILIARIES):
        Path("piece.py").write_text(here(code), encoding="utf-8")
        runpy.run_path("piece.py", GIVEN.get(page, dict)(), "__main__")
    for name in [n for n in sys.modules if n.startswith("own_")]:
        del sys.modules[name]


@contextlib.contextmanager
def unchanged(table: dict[str, Any]) -> Iterator[None]:
    """Take back what was added to a table."""
    before = dict(table)
    try:
        yield
    finally:
        table.clear()
        table.update(before)


def test_the_documents_name_no_verb_that_is_not_there_and_leave_none_out() -> None:
    named = {line.split()[1] for _, line in commands() if len(line.split()) > 1}
    assert named >= set(cli.commands), f"no page shows {sorted(set(cli.commands) - named)}"
    assert os.path.samefile(ROOT / "gnothi", Path(package.__file__).parent)
