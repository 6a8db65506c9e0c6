"""The page and the picture of a comparison, drawn from a made-up record."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from browser import CONTRAST, Browser
from markupsafe import Markup

from gnothi.comparison import curves, page, table
from gnothi.evaluate import wilson
from gnothi.randomness import generator

ARMS = ("simclr", "simclr+rotation", "byol+rotation+layers,rotation.weight=0.25", "none+<b>")


def made_up(seeds: int = 3, arms: tuple[str, ...] = ARMS, along: bool = True) -> dict[str, Any]:
    """A comparison whose arms take different times."""
    g, runs = generator(0, "made-up comparison"), []
    for seed in range(seeds):
        for i, arm in enumerate(arms):
            correct = (torch.rand(400, generator=g) < 0.7 + 0.05 * i).numpy()
            low, high = wilson(int(correct.sum()), 400)
            lines = [
                {
                    "step": 10 * p,
                    "epoch": p / 2,
                    "seconds": 3.0 * p * (i + 1),
                    "value": 0.4 + 0.03 * p + 0.01 * i + 0.005 * seed,
                    "low": 0.3,
                    "high": 0.9,
                }
                for p in range(1, 11)
            ]
            own = {"arm": arm, "seed": seed, "run": f"{arm}-seed{seed}", "value": float(correct.mean()), "low": low, "high": high, "n": 400}
            more = {"correct": table.pack(correct), "seconds": 30.0 * (i + 1), "verdict": "healthy", "protocol": "k-NN, k=20"}
            runs.append({**own, **more, "along": lines if along else []})
    found = [{"arm": arm, "epochs": 5.0, "steps": 100, "planned_seconds": 28.0 * (i + 1)} for i, arm in enumerate(arms)]
    options = {"epochs": 5.0, "seconds": None, "settings": {"training": {"batch": 8}}, "vary": {}, "recipe": None, "test": None, "device": None}
    asked = {"data": "photos", "methods": ["simclr", "byol"], "auxiliaries": ["none", "rotation"], "seeds": seeds, "metric": "knn", **options}
    data = {"name": "photos", "fingerprint": "ab", "n": 4000}
    record = {"gnothi": "0.1.0", "asked": asked, "data": data, "protocol": table.protocol(seeds), "arms": found, "runs": runs}
    return {**record, "table": table.rows(found, runs)}


def written(folder: Path, record: dict[str, Any]) -> str:
    folder.mkdir(exist_ok=True)
    return page.write(folder, record)[0].read_text(encoding="utf-8")


def test_every_arm_has_its_value_its_difference_and_its_cost(tmp_path: Path) -> None:
    record = made_up()
    text = re.sub(r"<wbr>", "", written(tmp_path / "cmp", record)).replace("\u00a0", " ")
    for row in record["table"]:
        assert text.count(f'<th scope="row">{Markup.escape(row["arm"])}</th>') == (2 if row["arm"] == "simclr" else 3)
        assert f"<b>{100 * row['value']:.1f} %</b>" in text
        if row["arm"] != "simclr":
            points = f"{100 * row['difference']['value']:+.1f}".replace("-", "−")
            assert f"<b>{points}</b>" in text
    assert "4 arms, 3 seeds, 5 epochs each, on photos (4,000 images)" in text and "+7 %" in text and "<b>\n" not in text


def test_a_difference_is_called_as_in_the_table_and_a_measure_has_its_article(tmp_path: Path) -> None:
    record = made_up()
    text = written(tmp_path / "knn", record)
    assert "<caption>Minus simclr, seed by seed on the same images</caption>" in text and "test images by k-nearest neighbours. " in text
    assert "minus simclr" in table.text(record["table"], "knn", record["protocol"])
    record["asked"]["metric"] = "linear"
    assert "test images by a linear classifier. " in written(tmp_path / "linear", record)


def test_the_zero_of_differences_lies_on_the_axis() -> None:
    rows = [{"arm": a, "difference": {"value": v, "over_seeds": None, "over_images": [v - 0.02, v + 0.02]}} for a, v in (("a", 0.06), ("b", 0.1))]
    drawn = page.differences(rows)
    assert drawn is not None and drawn.zero == "25.00%" and re.search(r'x="25.00%"[^>]*>0<', drawn.axis)  # all are above zero, and it is still there
    moved = page.differences([{"arm": "a", "difference": {"value": 0.0, "over_seeds": None, "over_images": [-0.1, 0.1]}}])
    assert moved is not None and moved.zero == "50.00%"


def test_curves_are_means_of_the_seeds_between_the_least_and_the_greatest() -> None:
    line = curves.along(made_up())[1]
    assert np.allclose(line.value, [0.4 + 0.03 * p + 0.01 + 0.005 for p in range(1, 11)])
    assert np.allclose(line.low, line.value - 0.005) and np.allclose(line.high, line.value + 0.005)
    assert np.allclose(line.x["seconds"], [6.0 * p for p in range(1, 11)])
    single = curves.along(made_up(seeds=1))[1]
    assert np.allclose(single.low, 0.3) and np.allclose(single.high, 0.9)  # of one seed its own interval


def test_arms_of_different_times_share_an_axis_and_keep_their_marks() -> None:
    lines = curves.along(made_up(arms=("a", "b")))
    x, drawn = curves.shared(lines, "seconds")
    assert x == sorted({3.0 * p for p in range(1, 11)} | {6.0 * p for p in range(1, 11)})
    for line, curve in zip(lines, drawn, strict=True):
        at = dict(zip(x, curve.y, strict=True))
        assert [at[s] for s in line.x["seconds"].tolist()] == pytest.approx(line.value.tolist())
    first = dict(zip(x, drawn[1].y, strict=True))
    assert np.isnan(first[3.0]) and first[9.0] == pytest.approx((first[6.0] + first[12.0]) / 2)
    assert np.isnan(drawn[0].y[-1]) and not np.isnan(drawn[1].y[-1])


def test_the_picture_is_xml_that_needs_no_variables_and_no_page(tmp_path: Path) -> None:
    record = made_up()
    written(tmp_path / "cmp", record)
    text = (tmp_path / "cmp" / "curves.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    lines = [e for e in root.iter() if e.tag.endswith("polyline")]
    assert len(lines) == 2 * len(ARMS) and "var(" not in text and "href" not in text
    names = [e.text for e in root.iter() if e.attrib.get("class") == "name"]
    assert names == list(ARMS)
    style = next(e.text for e in root.iter() if e.tag.endswith("style")) or ""
    assert all(re.search(rf"\.line\.c{i}{{stroke:#[0-9a-f]{{6}}}}", style) for i in range(len(ARMS)))


def test_without_labels_held_out_the_page_says_what_to_do(tmp_path: Path) -> None:
    text = written(tmp_path / "cmp", made_up(along=False))
    assert "Not shown: no labelled images were held out of training; data.holdout=0.1 holds a tenth out" in text
    ElementTree.fromstring((tmp_path / "cmp" / "curves.svg").read_text(encoding="utf-8"))


def test_a_comparison_that_goes_on_says_how_far_it_is(tmp_path: Path) -> None:
    record = made_up()
    failed = {"arm": "simclr", "seed": 1, "run": "simclr-seed1", "failed": "became nan"}
    record["runs"] = [*record["runs"][:4], failed]
    record["table"] = table.rows(record["arms"], record["runs"])
    text = written(tmp_path / "cmp", record)
    assert "5 of 12 runs are done; the same command goes on." in text and "simclr-seed1 had to stop: became nan" in text


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_within_its_width_and_without_complaint(tmp_path: Path, browser: Browser, width: int, dark: bool) -> None:
    written(tmp_path / "cmp", made_up())
    browser.open(tmp_path / "cmp" / "report.html", width, dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.complaints() == [] and browser.run(CONTRAST) == []
    over = "[...document.querySelectorAll('td, th')].filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.textContent)"
    assert browser.run(over) == []


def test_charts_answer_to_keys_with_every_arm(tmp_path: Path, browser: Browser) -> None:
    written(tmp_path / "cmp", made_up(arms=("a", "b")))
    browser.open(tmp_path / "cmp" / "report.html", 1280)
    browser.run("document.querySelectorAll('svg[data-chart]')[1].focus()")
    browser.key("Home")
    said = browser.run("document.querySelectorAll('.curve output')[1].textContent")
    assert said == "a 0.435 at second 3"  # b has no mark yet
