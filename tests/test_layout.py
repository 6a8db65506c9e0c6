"""Imports run one way, and importing gnothi does nothing else."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gnothi

PACKAGE = Path(gnothi.__file__).parent
ORDER = (
    "randomness", "contracts", "forecast", "files", "distributed", "schedules", "losses", "data", "views", "models", "methods", "auxiliary",
    "training", "recipes", "encoders", "evaluate", "pretrain", "plan", "transfer", "ensemble", "export", "report", "comparison", "search",
    "demo", "cli",
)  # fmt: skip
"""A module imports only from those before its own; `gnothi` itself stands for the version, which all may read."""
SIBLINGS = {"methods": {"method", "alone"}, "auxiliary": {"auxiliary", "matching", "patches", "permutations"}}
"""Packages whose files import no other file beside them, but these."""
MODULES = sorted(PACKAGE.rglob("*.py"))
PROGRAMS = sorted(path for name in ("experiments", "benchmarks") for path in (PACKAGE.parent / name).glob("*.py"))


def test_the_readme_gives_the_order() -> None:
    said = re.search(r"stand before it in this order: ([^.]+)\.", (PACKAGE.parent / "README.md").read_text(encoding="utf-8"))
    assert said is not None and tuple(" ".join(said[1].split()).split(", ")) == ORDER


def imported(path: Path) -> list[str]:
    """Dotted names below ``gnothi`` that a file imports, wherever in it."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names += [f"{node.module}.{a.name}" for a in node.names]
    return [n.removeprefix("gnothi.") for n in names if n.startswith("gnothi.")]


def place(path: Path) -> tuple[str, ...]:
    return path.relative_to(PACKAGE).with_suffix("").parts


@pytest.mark.parametrize("path", MODULES, ids=lambda p: ".".join(place(p)))
def test_imports_run_one_way(path: Path) -> None:
    own = place(path)
    if own in (("__init__",), ("__main__",)):
        return
    assert own[0] in ORDER, f"{own[0]} has no place in the order of modules"
    for name in imported(path):
        target = name.split(".")
        if target[0] not in ORDER:
            assert target[0] in vars(gnothi), f"{path}: imports gnothi.{name}"
            continue
        assert ORDER.index(target[0]) <= ORDER.index(own[0]), f"{'.'.join(own)} imports {name}, which stands above it"
        if target[0] == own[0] in SIBLINGS and own[-1] != "__init__":
            assert target[1] in SIBLINGS[own[0]], f"{'.'.join(own)} imports its sibling {name}"


@pytest.mark.parametrize("path", [p for p in MODULES if p.name == "__init__.py" and p.parent != PACKAGE], ids=lambda p: p.parent.name)
def test_packages_re_export_by_name_and_do_nothing_else(path: Path) -> None:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        kinds = (ast.ImportFrom, ast.Assign, ast.AnnAssign)
        assert isinstance(node, kinds) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)), ast.dump(node)[:80]
        assert not (isinstance(node, ast.ImportFrom) and any(a.name == "*" for a in node.names))


def test_importing_gnothi_configures_nothing_and_needs_neither_timm_nor_torchvision() -> None:
    code = """
import sys, logging, warnings
sys.modules["timm"] = sys.modules["torchvision"] = None  # as if they could not be imported
import torch
def state():
    return torch.get_num_threads(), torch.get_rng_state().tolist(), torch.get_default_dtype(), logging.getLogger().handlers, len(warnings.filters)
before = state()
import gnothi.pretrain, gnothi.report, gnothi.evaluate
assert before == state()
print([m for m in ("sklearn", "faiss", "cv2", "skimage", "pyarrow", "matplotlib", "lightly") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: ".".join(place(p)))
def test_nothing_is_unpickled_and_randomness_has_one_source(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            assert not {"pickle", "random", "joblib", "dill"} & set(names)
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in ("torch.load", "torch.save", "np.random", "torch.manual_seed") or place(path) == ("randomness",)
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert ast.unparse(node.value) == "False"


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda p: f"{p.parent.name}.{p.stem}")
def test_what_experiments_and_benchmarks_take_from_gnothi_exists(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gnothi":
            module = importlib.import_module(node.module or "")
            for name in (alias.name for alias in node.names):
                there = hasattr(module, name) or (hasattr(module, "__path__") and importlib.util.find_spec(f"{node.module}.{name}"))
                assert there, f"{path.name} takes {name} from {node.module}"
