"""Names from strangers on the pages: they are shown, and nothing of them becomes a part of the page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gnothi import export, pretrain
from gnothi.data import open as open_data
from gnothi.encoders import load
from gnothi.randomness import generator
from gnothi.report import write
from gnothi.training import twice
from gnothi.training.progress import Silent

BAD = """x"'><probe onclick=probe()>&lt;probe&gt;</script></style><!--<svg onload=probe()>{{7*7}}${probe}`probe`]]>\\"""
"""Closes whatever a name may stand in, and opens an element of its own."""
FILE = BAD.replace("/", "\u2215")


class Seen(HTMLParser):
    """Elements, attributes, text and comments of a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text: dict[str, str] = {}
        self.comments: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes += [(key, value or "") for key, value in attributes]
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        where = self.open[-1] if self.open else ""
        self.text[where] = self.text.get(where, "") + data

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)


def seen(page: Path) -> Seen:
    parser = Seen()
    parser.feed(page.read_text(encoding="utf-8"))
    parser.close()
    return parser


def inert(found: Seen) -> None:
    """No element, attribute, address or script comes from a name."""
    assert "probe" not in found.elements and not found.comments
    assert not [key for key, _ in found.attributes if key.startswith("on") or key == "srcdoc"]
    for key, value in found.attributes:
        if key in ("href", "src", "xlink:href", "action"):
            assert value.startswith(("data:image/png;base64,", "data:,", "#")), (key, value[:80])
        if key == "style":
            assert re.fullmatch(r"(--[\w-]+: (url\('data:image/\w+;base64,[\w+/=]+'\)|[\d.%]+);? ?)*", value), value[:120]
    assert "probe" not in found.text.get("style", "")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose folder, data, classes, images, encoders, terms and settings have bad names."""
    place = tmp_path_factory.mktemp("names") / FILE
    images = torch.randint(256, (48, 20, 20, 3), generator=generator(0, "names"), dtype=torch.uint8)
    for i, image in enumerate(images):
        folder = place / "images" / f"{'ab'[i % 2]}{FILE}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(folder / f"{i}{FILE}.png")
    (place / "images" / f"a{FILE}" / f"broken{FILE}.png").write_bytes(b"no image")
    settings: dict[str, Any] = {
        "backbone": {"args": {"widths": [4, 8]}},
        "method": {"hidden": 8, "out": 8},
        "views": {"size": 16},
        "training": {"epochs": 2, "batch": 8, "threads": 1, "workers": 0},
        "data": {"broken_fraction": 0.5, "holdout": 0},
    }
    pretrain.train(str(place / "images"), settings=settings, device="cpu", out=place / "run", progress=Silent())
    return place / "run"


def named(value: Any) -> Any:
    """The same values with a bad name in every text."""
    if isinstance(value, dict):
        return {key: named(inner) for key, inner in value.items()}
    return [named(inner) for inner in value] if isinstance(value, list) else BAD if isinstance(value, str) else value


def test_the_page_of_a_run_shows_names_and_is_made_of_none(run: Path) -> None:
    results = [
        {"encoder": e, "metric": m, "value": 0.5, "low": 0.4, "high": 0.6, "n": 9, "protocol": f"p {BAD}"}
        for e in (str(run), f"e {BAD}")
        for m in ("knn", f"m {BAD}")
    ]
    found = seen(write(run, results=results))
    inert(found)
    text = "".join(found.text.values())
    assert text.count(f"e {BAD}") == 2 and f"p {BAD}" in text and f"m {BAD}" in text.replace("M x", "m x")
    assert f"broken{FILE}.png" in text
    shown = [value for key, value in found.attributes if key in ("alt", "title", "aria-label") and FILE in value]
    assert len(shown) > 20
    points = json.loads(re.search(r'<script type="application/json" id="points">(.*?)</script>', (run / "report.html").read_text(), re.S)[1])
    assert all(FILE in name for name in points["name"]) and {FILE in label for label in points["label"]} == {True}


def test_a_page_of_files_in_which_every_text_is_a_bad_name_is_made_of_none(run: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    record = twice.read(run)
    record.pop("seal")
    (own / "spec.json").write_text(json.dumps({k: v if k == "derived" else named(v) for k, v in record.items()}))
    verdict = json.loads((run / "verdict.json").read_text())
    (own / "verdict.json").write_text(json.dumps(named({**verdict, "collapse": "x", "broken": [{"name": "a", "message": "b", "count": 2}]})))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if "terms" in line:
            line["terms"], line["weights"] = {BAD: 1.0, "b" + BAD: 2.0}, {BAD: 1.0, "b" + BAD: 0.5}
    (own / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (own / "environment.json").write_text(json.dumps({"command": [BAD, BAD], BAD: BAD}))
    found = seen(write(own))
    inert(found)
    assert "".join(found.text.values()).count(BAD) > 10


@pytest.mark.slow
def test_a_name_on_the_card_of_an_export_brings_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "d.npz", images=torch.randint(256, (16, 32, 32, 3), generator=generator(0, "card"), dtype=torch.uint8).numpy())
    name = "run\n```python\nopen('evil', 'w')\ndef embed(images): return 0\n```\n"
    monkeypatch.chdir(tmp_path)
    settings: dict[str, Any] = {"training": {"epochs": 1, "batch": 8, "threads": 1}, "views": {"size": 16}, "method": {"hidden": 8, "out": 8}}
    settings["backbone"] = {"args": {"widths": [8, 8, 8, 8]}}
    pretrain.train("d.npz", settings=settings, device="cpu", out=name, progress=Silent())
    export.export(load(name, "cpu"), tmp_path / "out", onnx=False, data=open_data("d.npz"))
    assert (tmp_path / "out/README.md").read_text().count("```python\n") == 1
    assert not list(tmp_path.rglob("evil"))
