"""docs/trust.md says what the tests do: each test that it names is there, with as many cases as it says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROW = re.compile(
    r"^\| (?P<promise>.+?) \| `(?P<file>[\w/]+\.py)::(?P<test>\w+)` \| (?P<quick>[\d,]+|-) \| (?P<full>[\d,]+|-) \| (?P<lost>.+?) \|$", re.M
)
ROWS = [m.groupdict() for m in ROW.finditer((ROOT / "docs/trust.md").read_text(encoding="utf-8"))]


def function(file: str, name: str) -> ast.FunctionDef:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)


def said(node: ast.FunctionDef) -> str:
    return " ".join(ast.unparse(decorator) for decorator in node.decorator_list)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["test"][:60])
def test_each_promise_is_held_by_a_test_with_the_cases_it_says(row: dict[str, str]) -> None:
    marks = said(function(row["file"], row["test"]))
    counted = re.search(r"parametrize\('(?:cases|rounds)', \[(\d+), pytest\.param\((\d+), marks=pytest\.mark\.slow\)\]", marks)
    if counted is not None:
        assert (row["quick"], row["full"]) == tuple(f"{int(n):,}" for n in counted.groups())
    whole = (ROOT / "tests" / row["file"]).read_text(encoding="utf-8")
    slow = "mark.slow" in marks and counted is None and "pytest.param" not in marks or re.search(r"^pytestmark = .*mark\.slow", whole, re.M)
    assert (row["quick"] == "-") == bool(slow), "a dash stands for what only the full form runs"
    assert row["lost"] == "nothing" or row["lost"].startswith("nothing but ")


def test_every_test_of_trust_stands_in_the_table() -> None:
    files = sorted(p for p in (ROOT / "tests/trust").glob("test_*.py") if p.name != Path(__file__).name)
    bodies = {p: ast.parse(p.read_text(encoding="utf-8")).body for p in files}
    tests = {f"trust/{p.name}::{n.name}" for p, body in bodies.items() for n in body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")}
    named = {f"{row['file']}::{row['test']}" for row in ROWS}
    assert tests == {name for name in named if name.startswith("trust/")}
    assert len(ROWS) == len(named) > 50
