"""docs/trust.md says what the tests do: each test that it names is there, with as many cases as it says."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/trust.md").read_text(encoding="utf-8")
ROW = re.compile(
    r"^\| (?P<promise>.+?) \| `(?P<file>[\w/]+\.py)::(?P<test>\w+)` \| (?P<quick>[\d,]+\*?|-) \| (?P<full>[\d,]+\*?|-) \| (?P<lost>.+?) \|$", re.M
)
ROWS = [m.groupdict() for m in ROW.finditer(PAGE)]
MEASURED = re.findall(r"^\| .+? \| `(python -m benchmarks\.\w+)` \| \[\w+\]\((\w+\.md)\) \|$", PAGE, re.M)
COLLECT = """
import sys, pytest
class Told:
    def pytest_collection_finish(self, session):
        for item in session.items:
            print("case", item.nodeid.partition("[")[0], int(item.get_closest_marker("slow") is not None))
sys.exit(pytest.main(sys.argv[1:], plugins=[Told()]))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, tuple[int, int]]:
    """How many cases pytest finds of each test in the files that the page names: in the quick form, and in the full one."""
    files = sorted({f"tests/{row['file']}" for row in ROWS})
    command = [sys.executable, "-c", COLLECT, "--collect-only", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    counts: dict[str, tuple[int, int]] = {}
    for test, slow in re.findall(r"^case tests/(\S+) ([01])$", done.stdout, re.M):
        quick, full = counts.get(test, (0, 0))
        counts[test] = quick + (slow == "0"), full + 1
    return counts


def function(file: str, name: str) -> ast.FunctionDef:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)


def inside(node: ast.FunctionDef) -> tuple[int, int] | None:
    """Cases that one test goes through, quick and full, where a number of it says so: of its own, or hypothesis's."""
    marks = " ".join(ast.unparse(decorator) for decorator in node.decorator_list)
    own = re.search(r"parametrize\('(?:cases|rounds)', \[(\d+), pytest\.param\((\d+), marks=pytest\.mark\.slow\)\]", marks)
    if own is not None:
        return int(own[1]), int(own[2])
    if "given(" in marks:
        examples = re.search(r"settings\(.*max_examples=(\d+)", marks)
        n = int(examples[1]) if examples else settings.default.max_examples
        return n, n
    return None


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["test"][:60])
def test_each_promise_is_held_by_a_test_with_the_cases_it_says(row: dict[str, str], found: dict[str, tuple[int, int]]) -> None:
    counted = found[f"{row['file']}::{row['test']}"]
    assert (row["quick"] == "-") == (counted[0] == 0), "a dash stands for what only the full form runs"
    own, starred = inside(function(row["file"], row["test"])), row["full"].endswith("*")
    assert row["quick"] == "-" or row["quick"].endswith("*") == starred
    assert own is None or not starred, "a star stands only where no number of the test could be compared"
    if not starred:
        quick, full = own or counted
        assert (row["quick"], row["full"]) == (f"{quick:,}" if counted[0] else "-", f"{full:,}")
    assert row["lost"] == "nothing" or row["lost"].startswith("nothing but ")


def test_every_test_of_trust_stands_in_the_table() -> None:
    files = sorted(p for p in (ROOT / "tests/trust").glob("test_*.py") if p.name != Path(__file__).name)
    bodies = {p: ast.parse(p.read_text(encoding="utf-8")).body for p in files}
    tests = {f"trust/{p.name}::{n.name}" for p, body in bodies.items() for n in body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")}
    named = {f"{row['file']}::{row['test']}" for row in ROWS}
    assert tests == {name for name in named if name.startswith("trust/")}
    assert len(ROWS) == len(named) > 90
    assert len(ROWS) == len(re.findall(r"^\| .*`[\w/]+\.py::\w+`", PAGE, re.M)), "a row that is written otherwise is compared with nothing"


@pytest.mark.parametrize(("command", "page"), MEASURED)
def test_what_is_measured_stands_on_its_page_with_its_command(command: str, page: str) -> None:
    assert (ROOT / f"{command.removeprefix('python -m ').replace('.', '/')}.py").is_file()
    assert f"`{command}`" in (ROOT / "docs" / page).read_text(encoding="utf-8")
