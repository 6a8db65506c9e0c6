"""The site of the documents: every page has its place, and it builds without a warning, a network or anything loaded from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NO_NETWORK = """
import runpy, socket, sys
socket.socket.connect = socket.getaddrinfo = None
sys.argv = ["mkdocs", *sys.argv[1:]]
runpy.run_module("mkdocs", run_name="__main__")
"""


def test_every_page_has_one_place_in_the_site() -> None:
    placed = re.findall(r"^ +- [^:]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    assert sorted(placed) == sorted(p.name for p in (ROOT / "docs").glob("*.md"))


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="pip install 'gnothi[docs]'")
    command = [sys.executable, "-c", NO_NETWORK, "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    assert (done.returncode, done.stdout, "WARNING" in done.stderr) == (0, "", False), done.stderr
    pages = list((tmp_path / "site").glob("*.html"))
    assert len(pages) > len(list((ROOT / "docs").glob("*.md")))
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.search(
            r"<(?:script|img|iframe)[^>]* src=\"?(?:https?:)?//|<link[^>]* rel=\"?(?:stylesheet|preconnect)[^>]* href=\"?(?:https?:)?//", text
        ), page
    reference = (tmp_path / "site" / "reference.html").read_text(encoding="utf-8")
    for name in ("gnothi.pretrain.train", "gnothi.contracts.Views", "gnothi.methods.Space", "gnothi.search.similar.similar"):
        assert f'id="{name}"' in reference, name
