"""What the documents say is so: generated parts are current, quoted commands parse, quoted Python compiles and its imports exist."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import click
import pytest

from gnothi.auxiliary import AUXILIARIES
from gnothi.cli import cli
from gnothi.contracts import SettingError
from gnothi.ensemble import COMBINERS
from gnothi.evaluate import PRESETS
from gnothi.methods import METHODS
from gnothi.models.backbone import BACKBONES
from gnothi.recipes.named import RECIPES
from gnothi.recipes.spec import load, merge, parse

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def blocks(kinds: tuple[str, ...]) -> list[tuple[str, str]]:
    """Fenced blocks of the pages by language; help texts that are written by a script are no commands."""
    found = []
    for page in PAGES:
        text = re.sub(r"<!-- (verbs|files) -->.*?<!-- end \1 -->", "", page.read_text(encoding="utf-8"), flags=re.S)
        found += [(page.name, body) for kind, body in FENCE.findall(text) if kind in kinds]
    return found


def commands() -> list[tuple[str, str]]:
    """Lines that begin with ``gnothi``, whole, without comments; also those quoted within a sentence."""
    lines = []
    for page, body in blocks(("", "sh", "bash", "console", "shell")):
        whole = body.replace("\\\n", " ").splitlines()
        lines += [(page, line.strip().removeprefix("$ ")) for line in whole]
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        lines += [(page.name, quoted) for quoted in re.findall(r"`(gnothi [^`\n]*)`", text)]
    return [(page, line) for page, line in lines if line.startswith("gnothi ")]


def parsed(line: str) -> tuple[click.Command, click.Context, list[str]]:
    """A command of the line, its context with all options read, and what it was given."""
    words = shlex.split(line, comments=True)[1:]
    words = words[: next((i for i, w in enumerate(words) if w in ("|", ">", "&&")), len(words))]
    command: click.Command = cli
    context = click.Context(cli, info_name="gnothi")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        command, context = found, click.Context(found, info_name=name, parent=context)
    return command, context, words


def test_one_method_reads_in_at_most_13_files_and_1900_lines() -> None:
    found = re.search(r"(\d+) files and ([\d,]+) lines: contracts", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert found is not None
    assert int(found[1]) <= 13 and int(found[2].replace(",", "")) <= 1900


def test_generated_parts_of_the_documents_are_current() -> None:
    done = subprocess.run([sys.executable, "docs/write.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"run `python docs/write.py`: {done.stdout}{done.stderr}"


def test_the_documents_quote_commands_at_all() -> None:
    assert len(commands()) > 10 and {page for page, _ in commands()} >= {"README.md", "train.md"}


@pytest.mark.parametrize(("page", "line"), commands(), ids=lambda x: x[:60])
def test_quoted_commands_name_verbs_options_and_settings_that_exist(page: str, line: str) -> None:
    command, context, words = parsed(line)
    if not words or isinstance(command, click.Group):
        return
    known = {name for p in command.params for name in p.opts + p.secondary_opts} | {"--help", "-h"}
    options = [w.partition("=")[0] for w in words if w.startswith("-") and not re.fullmatch(r"-?\d.*", w)]
    assert set(options) <= known, f"{page}: {line}"
    settings = [words[i + 1] for i, w in enumerate(words[:-1]) if w == "--set"]
    given = {k: words[words.index(k) + 1] for k in ("--method", "--recipe") if k in words}
    named = {"method": {"name": given["--method"]}} if given.get("--method", "M").islower() else {}
    assert given.get("--recipe", "R") in (*RECIPES, "R"), f"{page}: {line}"
    if settings and "=" in settings[0] and "KEY" not in settings[0]:
        try:
            load(merge(merge({"data": {"name": "photos"}}, named), parse(settings)))
        except SettingError as error:
            pytest.fail(f"{page}: {line}: {error}")
    try:
        command.parse_args(context, list(words))
    except click.MissingParameter:
        assert page not in ("README.md",) or len(words) < 3, f"{page}: {line}"


TOLD: list[tuple[tuple[str, ...], str, Iterable[str]]] = [
    (("train",), "method", set(METHODS) - {"classify", "distil"}),  # students: gnothi transfer trains them
    (("train",), "backbone", BACKBONES),
    (("train",), "auxiliary", AUXILIARIES),
    (("evaluate", "knn"), "preset", PRESETS),
    (("ensemble", "fit"), "combiner", COMBINERS),
]


@pytest.mark.parametrize(("path", "option", "known"), TOLD, ids=lambda x: x if isinstance(x, str) else "")
def test_the_help_of_an_option_names_all_that_it_takes(path: tuple[str, ...], option: str, known: Iterable[str]) -> None:
    command: click.Command = cli
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    said = next(p.help or "" for p in command.params if isinstance(p, click.Option) and p.name == option)
    assert set(known) <= set(re.findall(r"[\w-]+", said))


@pytest.mark.parametrize(("page", "code"), blocks(("python", "py")), ids=lambda x: x.strip().splitlines()[0][:60])
def test_quoted_python_compiles_and_its_imports_exist(page: str, code: str) -> None:
    tree = ast.parse(code, page)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gnothi"):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}"), f"{page}: {alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                assert importlib.util.find_spec(alias.name) or (ROOT / "examples" / f"{alias.name}.py").is_file(), f"{page}: {alias.name}"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "gnothi":
            assert hasattr(importlib.import_module("gnothi"), node.attr) or importlib.util.find_spec(f"gnothi.{node.attr}"), (
                f"{page}: gnothi.{node.attr}"
            )


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"
