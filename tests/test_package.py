"""The package as others get it: what it says of itself, what it ships, and that it works where it was installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from click.shell_completion import BashComplete

import gnothi
from gnothi.cli import cli

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
BUILT = os.environ | {"PIP_NO_INDEX": "1"}


def test_versions_agree() -> None:
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)
    assert cited is not None
    assert PROJECT["version"] == gnothi.__version__ == cited[1]


def test_every_command_of_the_contributors_guide_is_a_target_or_a_script_that_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    fenced = [line for block in re.findall(r"^```\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()]
    quoted = re.findall(r"`((?:make|python) [^`]+)`", text)
    assert len(fenced + quoted) > 10
    for command in fenced + quoted:
        program, *words = command.split()
        if program == "make":
            assert set(words) <= TARGETS, command
        else:
            assert program in ("python", ".venv/bin/python") and (ROOT / words[0]).is_file(), command
    named = {w for c in fenced + quoted if c.startswith("make") for w in c.split()[1:]}
    assert named >= set(re.findall(r"[a-z-]+", (ROOT / "Makefile").read_text().partition(".PHONY:")[2].partition("\n")[0]))


def test_every_extra_that_an_error_names_exists() -> None:
    named = {m for p in (ROOT / "gnothi").rglob("*.py") for m in re.findall(r"gnothi\[(\w+)\]", p.read_text(encoding="utf-8"))}
    assert named and named <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ev", ("plain", "evaluate")),
        ("evaluate k", ("plain", "knn")),
        ("train x --back", ("plain", "--backbone")),
        ("train my", ("file", "my")),
        ("evaluate knn runs/", ("file", "runs/")),
        ("neighbours runs/x pic", ("file", "pic")),
        ("embed runs/x --out f", ("file", "f")),
        ("nonsense x", None),
    ],
)
def test_the_shell_completes_verbs_options_and_files(words: str, expected: tuple[str, str] | None) -> None:
    *before, last = words.split()
    found = BashComplete(cli, {}, "gnothi", "_GNOTHI_COMPLETE").get_completions(before, last)
    assert [(item.type, item.value) for item in found] == ([expected] if expected else [])


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A wheel and a source archive, built without a network from a copy of the files that git would give; and the copy."""
    pytest.importorskip("build", reason="pip install 'gnothi[package]'")
    copy, to = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", to, copy], capture_output=True, text=True, cwd=to, env=BUILT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return to, copy


@pytest.mark.slow
def test_wheel_and_source_archive_hold_templates_types_and_licence(dist: tuple[Path, Path]) -> None:
    to, copy = dist
    (wheel,), (archive,) = to.glob("*.whl"), to.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    with tarfile.open(archive) as file:
        packed = {name.partition("/")[2] for name in file.getnames()}
    own = {str(p.relative_to(copy)) for p in (copy / "gnothi").rglob("*") if p.is_file()}
    assert {n for n in names if n.startswith("gnothi/")} == own <= packed
    assert {"gnothi/py.typed", "gnothi/report/page.html"} <= own
    assert any(n.endswith("licenses/LICENSE") for n in names) and {"LICENSE", "README.md", "pyproject.toml"} <= packed
    assert not [n for n in names if n.startswith(("tests", "docs", "examples", "experiments", "benchmarks"))]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_what_was_built_installs_and_works_in_a_fresh_environment(dist: tuple[Path, Path], kind: str, tmp_path: Path) -> None:
    """pip and the dependencies are this environment's; gnothi itself is the installed one."""
    to, copy = dist
    (built,) = to.glob(kind)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "fresh"], check=True)
    python = tmp_path / "fresh" / "bin" / "python"
    place = next((tmp_path / "fresh" / "lib").glob("python*/site-packages"))
    (place / "borrowed.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", built]
    done = subprocess.run(install, capture_output=True, text=True, cwd=tmp_path, env=BUILT)
    assert done.returncode == 0, done.stderr
    (tmp_path / "elsewhere").mkdir()
    own = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"GNOTHI_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([python, copy / "tests" / "smoke.py", copy], capture_output=True, text=True, cwd=tmp_path / "elsewhere", env=own)
    assert done.returncode == 0 and done.stdout.endswith("installed, and works\n"), done.stdout + done.stderr
