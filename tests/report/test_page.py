import json
import re
import shlex
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from browser import CONTRAST
from conftest import made_up_metrics, made_up_results, make_run

from gnothi import encoders, report
from gnothi.contracts import EncoderError
from gnothi.report import summary
from gnothi.report.record import read

VOID = {"meta", "link", "img", "br", "input"}
ONES = {"line", "rect", "circle", "use", "path", "polyline", "polygon", "image"}


class Page(HTMLParser):
    """A parser that insists on balanced tags and keeps ids, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in ONES, tag
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data.replace("\u00a0", " ")

    @property
    def ids(self):
        return [a["id"] for _, a in self.found if "id" in a]


def page_of(run, **options):
    return Page(report.write(run, **options).read_text(encoding="utf-8"))


@pytest.fixture
def run(tmp_path, tiles, encoder):
    return make_run(tmp_path / "runs" / "first", tiles)


def test_a_whole_run_gives_every_section_once(run):
    out = report.write(run, results=made_up_results())
    assert out == run / "report.html"
    page = Page(out.read_text(encoding="utf-8"))
    assert len(page.ids) == len(set(page.ids))
    assert {"verdict", "results", "curves", "views", "neighbours", "map", "repeat"} <= set(page.ids)
    assert "Not shown" not in page.text
    assert "Healthy" in page.text and "82.0 %" in page.text and "cosine, k = 20, T = 0.07" in page.text
    assert len([a for t, a in page.found if t == "svg" and "data-chart" in a]) == 8


def by_block(encoder: str = "trained", start: float = 0.4) -> list[dict[str, Any]]:
    """Four blocks by two metrics, as `gnothi evaluate layers` has them; the last block before and after its norm."""
    places = [(0, "pooled"), (1, "pooled"), (2, "pooled"), (3, "pooled"), (3, "final")]
    return [
        {"encoder": encoder, "metric": metric, "value": value, "low": value - 0.02, "high": value + 0.03, "n": 960, "protocol": "k = 20"}
        | {"details": {"block": block, "blocks": 4, "features": features, "flops": 10**7 * (block + 1) ** 2, "share": (block + 1) ** 2 / 16}}
        for j, (block, features) in enumerate(places)
        for metric, value in (("knn", start + 0.1 * j), ("linear", start + 0.1 * j - 0.05 * block))
    ]


def test_blocks_have_charts_of_their_own_and_leave_the_tables_alone(run, tmp_path):
    file = tmp_path / "layers.json"
    file.write_text(json.dumps({"results": by_block() + by_block("untrained", 0.2)}))
    page = Page(report.write(run, results=made_up_results(), files=[file]).read_text(encoding="utf-8"))
    charts = [json.loads(a["data-chart"]) for t, a in page.found if t == "svg" and "data-chart" in a]
    knn, linear = (c for c in charts if c["name"] == "GFLOPs")
    assert knn["x"] == [0.01, 0.04, 0.09, 0.16]
    assert [c["name"] for c in knn["curves"]] == ["trained", "trained, final", "untrained", "untrained, final"]
    assert knn["curves"][0]["y"] == pytest.approx([0.4, 0.5, 0.6, 0.7]) and knn["curves"][1]["y"] == [None, None, None, pytest.approx(0.8)]
    assert linear["curves"][2]["y"] == pytest.approx([0.2, 0.25, 0.3, 0.35])
    assert "70.0 % after block 4 of 4" in page.text and "final: each block's vector" in page.text
    before = Page(report.write(run, results=made_up_results()).read_text(encoding="utf-8"))
    assert "layers" in page.ids and "layers" not in before.ids
    rows = [[t for t, a in p.found if t == "tr"] for p in (page, before)]
    assert len(rows[0]) == len(rows[1])


@pytest.mark.parametrize(
    ("text", "expected"), [("{", "not JSON"), ("[1]", "holds no results"), ('{"results": 3}', "must hold a list"), (None, "no such file")]
)
def test_a_file_without_results_is_refused_in_a_line(run, tmp_path, text, expected):
    file = tmp_path / "some.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(EncoderError, match=expected) as caught:
        report.write(run, files=[file])
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_the_page_refers_to_nothing_outside_itself(run):
    text = report.write(run, results=made_up_results()).read_text(encoding="utf-8")
    for _, attributes in Page(text).found:
        for key in ("src", "href", "data", "poster", "action"):
            assert attributes.get(key, "#").startswith(("#", "data:"))
    style = re.search(r"<style>(.*?)</style>", text, re.S).group(1)
    assert "@import" not in style and "url(" not in style
    assert "default-src 'none'" in text


def test_hostile_names_stay_text(tmp_path, tiles, encoder):
    evil = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}</style>"
    arrays = dict(np.load(tiles))
    np.savez(tmp_path / "evil.npz", images=arrays["images"], labels=np.array([evil, "b", "c", "</script>"])[arrays["labels"]])
    broken = [{"name": evil, "message": evil, "count": 2}]
    verdict = {"why": evil, "advice": evil, "broken": broken}
    run = make_run(tmp_path / "r", str(tmp_path / "evil.npz"), verdict=verdict)
    spec = json.loads((run / "spec.json").read_text())
    spec["derived"][evil] = evil
    (run / "spec.json").write_text(json.dumps(spec))
    results = [r | {"encoder": evil, "protocol": evil} for r in made_up_results()[:2]]
    text = report.write(run, results=results).read_text(encoding="utf-8")
    page = Page(text)
    assert "Not shown" not in page.text
    assert [t for t, _ in page.found].count("script") == 2
    assert not any(k.startswith("on") for _, a in page.found for k in a)
    assert not any(a.get("src") == "x" for _, a in page.found)
    assert "<script>alert" not in text and evil in page.text and "49" not in page.text.split(evil)[0][-5:]


def test_neighbours_on_the_page_are_those_of_brute_force(run, encoder):
    from gnothi.report.material import samples

    gallery, queries = samples(read(run))
    assert set(gallery.rows) & set(queries.rows) == set() and len(gallery) + len(queries) == 120
    found = report.sections.neighbours(gallery, queries, 0)
    unit = [f / np.linalg.norm(f, axis=1, keepdims=True) for f in (gallery.features, queries.features)]
    names = [queries.name(i) for i in range(len(queries))]
    for query in found.typical:
        similarity = unit[0] @ unit[1][names.index(query.name)]
        order = np.argsort(-similarity)[: len(query.matches)]
        assert [m.name for m in query.matches] == [gallery.name(i) for i in order]
        assert [m.cosine for m in query.matches] == [f"{similarity[i]:.3f}" for i in order]
        assert [m.right for m in query.matches] == [gallery.classes()[i] == query.label for i in order]


def test_the_trained_network_is_marked_and_rows_are_sorted(run):
    results = [r | {"encoder": str(run)} if r["encoder"] == "trained" else r for r in made_up_results()]
    knn, linear = summary.tables(read(run, results))
    assert [r.encoder for r in knn.rows if r.own] == [str(run)]
    assert [r.value.split("\u00a0")[0] for r in knn.rows] == ["82.0", "74.0", "59.0", "42.0", "32.0"]
    assert knn.n == "on 960 images" and knn.rows[0].range == "79.5\u00a0% to 84.4\u00a0%" and linear.rows[0].value == "85.0\u00a0%"
    assert summary.headlines(read(run, results))[0].note == "23.0 points above the untrained network"


def test_the_network_before_training_is_not_marked_as_trained(run):
    named = {"trained": f"{run}", "untrained": f"{run}@untrained"}
    results = [r | {"encoder": named.get(r["encoder"], r["encoder"])} for r in made_up_results()]
    results.sort(key=lambda r: not r["encoder"].endswith("@untrained"))  # it stands first in the file
    found = read(run, results)
    assert [[r.encoder for r in table.rows if r.own] for table in summary.tables(found)] == [[str(run)]] * 2
    assert [h.note for h in summary.headlines(found)[:2]] == ["23.0 points above the untrained network", "24.0 points above the untrained network"]
    other = str(run.parent / "other")
    ours = {"trained": True, str(run): True, f"{run}@teacher": True, f"{run}@untrained": False, f"{run}@step-3": False, other: False}
    assert {name: found.own(name) for name in ours} == ours
    starts = {"untrained": True, f"{run}@untrained": True, f"untrained:{run}": True, str(run): False, f"{other}@untrained": False}
    assert {name: found.start(name) for name in starts} == starts


def test_what_repeats_the_run_can_be_typed(tmp_path, tiles):
    settings = {"name": "my data", "labels": "a b.csv", "channels": 1, "download": True, "holdout": 0.1}
    run = make_run(tmp_path / "r", tiles, settings={"data": settings})
    (run / "environment.json").write_text(json.dumps({"command": ["/usr/lib/gnothi/__main__.py", "train", "my data"]}))
    (run / "spec.json").write_text(json.dumps(json.loads((run / "spec.json").read_text()) | {"init": "timm:resnet18"}))
    block = {"metric": "knn", "encoder": "trained", "value": 0.5, "n": 3, "details": {"block": 1}}
    results = [{"encoder": "trained", "value": 0.5, "n": 3, "metric": m} for m in ("linear", "mAP area", "COCO AP", "patch knn")]
    found = read(run, [block, *results])
    train, *others = summary.commands(found)
    data = ["--data", "my data", "--set", "data.labels=a b.csv", "--set", "data.channels=1", "--set", "data.download=true"]
    assert [shlex.split(line) for line in others] == [["gnothi", "evaluate", "linear", str(run), *data], ["gnothi", "report", str(run)]]
    assert "--init timm:resnet18" in train and summary.typed(found) == "gnothi train 'my data'"
    assert shlex.split(summary.first_look(found).partition(": ")[2].partition(" --json")[0])[3:] == [str(run), f"{run}@untrained", *data]


def test_metrics_keep_their_capitals(run):
    results = [{"encoder": "trained", "value": 0.5, "low": 0.4, "high": 0.6, "n": 3, "metric": m} for m in ("mAP area", "VOC07 AP50", "knn")]
    text = page_of(run, results=results).text
    assert all(title in text for title in ("MAP area", "VOC07 AP50", "K-nearest neighbours"))


@pytest.mark.parametrize("labelled", [0, 1, 3])
def test_too_few_labels_to_look_anything_up_are_said(tmp_path, tiles, encoder, labelled):
    images = np.load(tiles)["images"]
    np.savez(tmp_path / "few.npz", images=images, labels=np.where(np.arange(len(images)) < labelled, 0, -1))
    text = page_of(make_run(tmp_path / "r", str(tmp_path / "few.npz"))).text
    assert text.count("there are too few training images with a label") == 2


@pytest.mark.parametrize(
    ("kind", "words"), [("constant", "every image gets the same vector"), ("dimensional", "few directions"), ("uniform", "no longer")]
)
def test_a_collapse_is_named_with_what_to_change(tmp_path, tiles, encoder, kind, words):
    verdict = {"verdict": "collapsed", "collapse": kind, "why": "It fell.", "advice": "Put the predictor back."}
    text = page_of(make_run(tmp_path / "r", tiles, verdict=verdict)).text
    assert "Collapsed" in text and words in text and "It fell." in text and "Put the predictor back." in text


def test_broken_files_are_named(tmp_path, tiles, encoder):
    broken = [{"name": "photos/0413.jpg", "message": "truncated JPEG", "count": 3}, {"name": "b.png", "message": "empty", "count": 1}]
    text = page_of(make_run(tmp_path / "r", tiles, verdict={"broken": broken})).text
    assert "2 images could not be read" in text and "photos/0413.jpg: truncated JPEG (3 times)" in text


def test_a_run_without_its_data_still_has_a_page(tmp_path, encoder):
    page = page_of(make_run(tmp_path / "r", str(tmp_path / "gone")), results=made_up_results())
    assert page.text.count("Not shown") == 3 and "82.0 %" in page.text
    assert str(tmp_path / "gone") in page.text


def test_a_run_without_a_checkpoint_shows_its_views_but_no_map(tmp_path, tiles, monkeypatch):
    def no_encoder(name, device=None):
        raise EncoderError(f"{name} holds no checkpoint yet")

    monkeypatch.setattr(encoders, "load", no_encoder)
    page = page_of(make_run(tmp_path / "r", tiles))
    assert page.text.count("holds no checkpoint yet") == 2
    assert any("crops" in a.get("class", "") for _, a in page.found)


def test_a_run_that_is_still_going_has_a_page(tmp_path, tiles, encoder):
    run = make_run(tmp_path / "r", tiles, metrics=made_up_metrics()[:5])
    (run / "verdict.json").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 99, "lo')  # cut short
    text = page_of(run).text
    assert "Unfinished" in text and "nothing was measured yet: gnothi evaluate knn" in text


def test_a_collapsed_embedding_has_a_line_instead_of_a_map(tmp_path, tiles, encoder, monkeypatch):
    monkeypatch.setattr(encoder, "embed_source", lambda source, rows=None, progress=None: np.ones((len(rows), 4), dtype=np.float32))
    assert "every image has the same vector, so there is nothing to map" in page_of(make_run(tmp_path / "r", tiles)).text


def test_images_that_cannot_be_read_are_left_out(tmp_path, tiles, encoder, monkeypatch):
    whole = encoder.embed_source

    def some_broken(source, rows=None, progress=None):
        features = whole(source, rows)
        features[::3] = np.nan
        return features

    monkeypatch.setattr(encoder, "embed_source", some_broken)
    page = page_of(make_run(tmp_path / "r", tiles))
    assert page.text.count("Not shown") == 1 and "20 training images (there is no test split) were looked up among 60" in page.text


def test_without_labels_clusters_colour_the_map(tmp_path, tiles, encoder):
    np.savez(tmp_path / "plain.npz", images=np.load(tiles)["images"])
    text = page_of(make_run(tmp_path / "r", str(tmp_path / "plain.npz"))).text
    assert "clusters found by k-means" in text and "Farthest from everything else" in text and "✓" not in text


def test_more_classes_than_colours_share_the_grey():
    names = [f"c{i:02d}" for i in range(20) for _ in range(30 - i)]
    groups, legend = report.sections.grouped(names)
    assert sorted(set(groups)) == list(range(-1, 15))
    assert legend[-1].name == "5 other classes" and legend[-1].count == sum(30 - i for i in range(15, 20))
    assert [names[i] for i, g in enumerate(groups) if g == 3][0] == legend[3].name


def test_the_command_gives_back_the_settings(tmp_path, tiles):
    from gnothi.recipes import spec

    run = make_run(
        tmp_path / "a run", tiles, settings={"views": {"size": 32, "recipe": "simclr-cifar", "area": [0.2, 1.0]}}, derived={"recipe": "any"}
    )
    found = read(run)
    words = shlex.split(summary.commands(found)[0].replace("\\\n", " "))
    options = dict(zip(words[3::2], words[4::2], strict=True))
    given = spec.parse(b for a, b in zip(words, words[1:], strict=False) if a == "--set")
    given = spec.merge(given, {"data": {"name": words[2]}} | {part: {"name": options[f"--{part}"]} for part in ("method", "backbone")})
    assert words[:2] == ["gnothi", "train"] and options["--out"] == str(run) and options["--recipe"] == "any"
    assert spec.load(given) == spec.load(found.settings)


def test_a_step_logged_twice_counts_once_with_its_later_value(tmp_path, tiles):
    lines = [{"kind": "train", "step": s, "epoch": s, "loss": v} for s, v in ((1, 5.0), (2, 4.0), (2, 3.0))]
    x, y, unit = read(make_run(tmp_path / "r", tiles, metrics=lines)).column("train", "loss")
    assert (x, y, unit) == ([1, 2], [5, 3], "epoch")


def test_what_is_not_a_run_is_refused_in_a_line(tmp_path):
    with pytest.raises(EncoderError, match=r"not a run folder, spec\.json is missing"):
        report.write(tmp_path)
    (tmp_path / "spec.json").write_text("{")
    with pytest.raises(EncoderError, match=r"spec\.json cannot be read"):
        report.write(tmp_path)


@pytest.mark.slow
def test_ten_thousand_images_stay_below_five_megabytes(tmp_path, encoder):
    random = np.random.Generator(np.random.PCG64(0))
    images = random.integers(0, 256, (10_000, 32, 32, 3), dtype=np.uint8)  # noise is the hardest to compress
    np.savez(tmp_path / "many.npz", images=images, labels=np.arange(10_000) % 10)
    out = report.write(make_run(tmp_path / "r", str(tmp_path / "many.npz")), results=made_up_results())
    assert "Not shown" not in Page(out.read_text(encoding="utf-8")).text
    assert out.stat().st_size < 5e6


# ---- in a browser -------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_without_complaint_or_sideways_scrolling(run, browser, width, dark):
    browser.open(report.write(run, results=made_up_results()), width, dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.complaints() == []
    assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth)")
    assert browser.run(CONTRAST) == []


def test_charts_and_map_answer_to_keys_and_pointer(run, browser):
    browser.open(report.write(run, results=made_up_results()), 1280)
    browser.run("document.querySelector('svg[data-chart]').focus()")
    browser.key("Home")
    first = browser.run("document.querySelector('.curve output').textContent")
    browser.key("ArrowRight")
    second = browser.run("document.querySelector('.curve output').textContent")
    loss = np.mean([m["loss"] for m in made_up_metrics() if m["kind"] == "train"][:2])  # 311 lines: two of them make a point
    assert first.startswith(f"total {loss:.4g}, simclr ") and first.endswith("at epoch 0.01613") and second != first
    browser.run("document.querySelector('.plane').scrollIntoView(); document.querySelector('.plane').focus()")
    browser.key("ArrowRight")
    assert browser.run("!document.querySelector('.card').hidden && document.querySelector('.card span').textContent").startswith("row ")
    place = browser.run(
        "(() => { const b = document.querySelector('.map use').getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2] })()"
    )
    browser.point(*place)
    name = json.loads(browser.run("document.getElementById('points').textContent"))["name"]
    assert browser.run("document.querySelector('.card span').textContent") in name
    browser.run("document.querySelector('.groups button').click()")
    assert browser.run("document.querySelectorAll('.points.lit').length") == 1
    assert browser.complaints() == []
