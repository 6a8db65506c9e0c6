"""Breaks a copy of gnothi in each of the ways that mutants.toml lists, one at a time, and sees whether the tests named there notice.

python tests/mutants.py [WORD ...] [--list]: WORDs choose the mutants whose description or file holds one of them.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("gnothi", "benchmarks", "examples", "experiments", "tests", "docs", "README.md", "pyproject.toml")
PROCESSES = 2
LONGEST = 600.0
"""Seconds that one run of tests may take."""
HANGS = 60.0
"""Seconds after which the tests of a mutant hang; that is noticed, too."""
SAID = "said.txt"
"""What pytest prints, in a copy."""
SLOW = ("torch", "torchvision", "timm", "lightly.loss", "sklearn.linear_model", "scipy.stats", "skimage.feature", "pytest")
"""What takes long to import and is never broken: imported once, before processes fork."""


class Rotten(Exception):
    """The list or the tests are not as they should be; nothing can be said of the mutants."""


@dataclass(frozen=True)
class Mutant:
    """One breakage: ``old``, which stands in ``file`` exactly once, becomes ``new``, and one of ``tests`` must fail."""

    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def check(self) -> None:
        """Refuse a breakage that no longer fits the code."""
        found = (ROOT / self.file).read_text(encoding="utf-8").count(self.old)
        if found != 1 or self.old == self.new or not self.tests:
            raise Rotten(f"{self.what}: its text must stand once in {self.file}, stands {found} times:\n{self.old}")


def listed() -> list[Mutant]:
    """All of mutants.toml."""
    content = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return [Mutant(one["what"], one["file"], one["old"], one["new"], tuple(one["tests"])) for one in content["mutant"]]


def copy(to: Path) -> Path:
    """A copy of the code and its tests."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, to / name)
    return to


class Run:
    """Tests in a copy, until one fails, in a process of their own that has begun."""

    def __init__(self, folder: Path, tests: tuple[str, ...], mutant: Mutant | None = None) -> None:
        self.folder, self.tests, self.mutant, self.code, self.hangs = folder, tests, mutant, -1, False
        self.began = time.monotonic()
        if mutant is not None:
            self.whole = (folder / mutant.file).read_text(encoding="utf-8")
            (folder / mutant.file).write_text(self.whole.replace(mutant.old, mutant.new), encoding="utf-8")
        self.process = os.fork()
        if self.process == 0:
            _tests(folder, tests)

    def ended(self) -> bool:
        """Whether it has; refused after ``LONGEST``."""
        seconds = time.monotonic() - self.began
        if seconds > LONGEST:
            raise Rotten(f"no end after {LONGEST:g} s: {' '.join(self.tests)}")
        if self.mutant is not None and seconds > HANGS:
            self.hangs = True  # whole tests end: `make mutants` has just seen them do so
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
            return True
        done, status = os.waitpid(self.process, os.WNOHANG)
        self.code = os.waitstatus_to_exitcode(status) if done else self.code
        return done != 0

    def close(self) -> None:
        """End what is left of it, and mend the copy."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process, signal.SIGKILL)
        if self.mutant is not None:
            (self.folder / self.mutant.file).write_text(self.whole, encoding="utf-8")

    def failed(self) -> str | None:
        """The test that failed or never ended, None where all passed."""
        if self.hangs:
            return f"no end after {HANGS:g} s of {' '.join(self.tests)}"
        said = (self.folder / SAID).read_text(encoding="utf-8", errors="replace")
        found = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.M)
        if self.code not in (0, 1) or (found is None) != (self.code == 0):
            raise Rotten(f"pytest could not run {' '.join(self.tests)} (code {self.code}):\n{said}")
        if found is not None and self.mutant is None:
            raise Rotten(f"{found[1]} fails without any mutant:\n{said}")
        return found[1] if found else None


def _tests(folder: Path, tests: tuple[str, ...]) -> NoReturn:
    """In a process of its own: run pytest in a copy, whose gnothi comes before an installed one."""
    code = 3
    try:
        os.setsid()
        os.chdir(folder)
        with open(SAID, "w") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        # No byte code: a file that is changed and changed back within a second would keep that of its mutant.
        sys.dont_write_bytecode = True
        os.environ |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        sys.path.insert(0, str(folder))
        found = importlib.util.find_spec("gnothi")
        if found is None or found.origin != str(folder / "gnothi" / "__init__.py"):
            raise Rotten(f"gnothi would come from {found and found.origin}")
        pytest = importlib.import_module("pytest")
        code = int(pytest.main(["-p", "no:cacheprovider", "-p", "no:xdist", "--assert=plain", "-x", "-q", "-rfE", "--tb=line", *tests]))
    except BaseException:
        traceback.print_exc()
    finally:  # nothing of the process it was forked from may be cleaned up here
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def side_by_side(jobs: list[tuple[tuple[str, ...], Mutant | None]], folders: list[Path]) -> Iterator[Run]:
    """Run tests of all jobs, one at a time in each copy; each as it ends."""
    left, free, running = deque(jobs), list(folders), list[Run]()
    try:
        while left or running:
            while left and free:
                tests, mutant = left.popleft()
                running.append(Run(free.pop(), tests, mutant))
            time.sleep(0.05)
            for run in [run for run in running if run.ended()]:
                running.remove(run)
                run.close()
                free.append(run.folder)
                yield run
    finally:
        for run in running:
            run.close()


def main() -> int:
    """Say of each mutant what noticed it; 0 where all were noticed, 1 where one survived, 2 where the list or a test is rotten."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="only mutants whose description or file holds one of these")
    parser.add_argument("--list", action="store_true", help="list them and run nothing")
    asked = parser.parse_args()
    mutants = [m for m in listed() if not asked.words or any(word in f"{m.what} {m.file}" for word in asked.words)]
    for mutant in mutants:
        mutant.check()
    if asked.list:
        print(*(f"{m.what} ({m.file})" for m in mutants), sep="\n")
        return 0
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    began = time.monotonic()
    for name in SLOW:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="mutants.") as temporary:
        survived = survivors(mutants, [copy(Path(temporary) / str(i)) for i in range(PROCESSES)])
    print(f"{len(mutants) - survived} caught, {survived} survived, in {time.monotonic() - began:.0f} s")
    return 1 if survived else 0


def survivors(mutants: list[Mutant], folders: list[Path]) -> int:
    """Try each mutant, after all tests passed without; how many survived."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    files = sorted({test.partition("::")[0] for test in tests})
    parts = [tuple(t for t in tests if t.partition("::")[0] in files[i :: len(folders)]) for i in range(len(folders))]
    for run in side_by_side([(part, None) for part in parts if part], folders):
        run.failed()
    survived = 0
    for run in side_by_side([(mutant.tests, mutant) for mutant in mutants], folders):
        by, mutant = run.failed(), run.mutant
        assert mutant is not None
        survived += by is None
        seconds = time.monotonic() - run.began
        print(f"{'SURVIVED' if by is None else 'caught':8s} {seconds:5.1f} s  {mutant.what} ({mutant.file}): {by or 'unseen'}", flush=True)
    return survived


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Rotten as error:
        print(f"mutants: {error}", file=sys.stderr)
        sys.exit(2)
