"""The charts of a run: which are drawn, what they are called, and what their words promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from browser import Browser
from conftest import made_up_metrics, made_up_results, make_run

from gnothi import report
from gnothi.report import curves
from gnothi.report.charts import Figure
from gnothi.report.record import read
from gnothi.training import health


def drawn(folder: Path, more: dict[str, float]) -> dict[str, Figure]:
    """The charts of a made-up run whose lines of health say more, by title."""
    metrics = [m | more if m["kind"] == "health" else m for m in made_up_metrics(62)]
    return {f.title: f for f in curves.figures(read(make_run(folder, "nothing", metrics=metrics)))}


def numbers(figure: Figure) -> list[list[float]]:
    text = figure.svg.unescape().partition('data-chart="')[2].partition('">')[0]
    return [curve["y"] for curve in json.loads(text)["curves"]]


def test_what_the_verdict_judges_by_has_a_chart_with_its_bounds(tmp_path: Path) -> None:
    found = drawn(tmp_path / "run", {"projection_rankme": 3.25})
    chart = found["Effective rank of the projections"]
    assert numbers(chart) == [[3.25] * 3]
    assert f"Below {health.NARROW_RANK:g}, with a spread below {health.NARROW_SPREAD:g}" in chart.caption
    verdict = [{"std": 0.5, "feature_std": 0.9, "rankme": 30.0, "projection_rankme": rank} for rank in (5.0, health.NARROW_RANK - 0.1)]
    assert [health.verdict([v] * 3, "simclr", 100).collapse for v in verdict] == [None, "dimensional"]  # the features' rank, 30, plays no part


def test_only_the_projections_rank_speaks_of_a_collapse(tmp_path: Path) -> None:
    found = drawn(tmp_path / "run", {"projection_rankme": 9.0})
    assert {"Spread of the projections", "Effective rank of the features (RankMe)"} <= found.keys()
    assert found["Effective rank of the features (RankMe)"].caption == "How many directions the features use."
    assert "Effective rank of the projections" not in drawn(tmp_path / "alone", {})  # nothing without a method makes projections


def test_targets_are_not_called_a_teachers(tmp_path: Path) -> None:
    figure = drawn(tmp_path / "swav", {})["Entropy of the targets"]
    assert figure.names == ("an image's target", "mean of all targets") and "teacher" not in figure.caption


def test_a_read_out_takes_gflops_for_a_unit(tmp_path: Path, tiles: str, encoder: Any, browser: Browser) -> None:
    results: list[dict[str, Any]] = [
        {"encoder": "trained", "metric": "knn", "value": 0.5 + 0.1 * i, "low": 0.4, "high": 0.9, "n": 960, "protocol": "k = 20"}
        | {"details": {"block": i, "blocks": 2, "features": "pooled", "flops": 10**9 * (i + 1) / 2}}
        for i in range(2)
    ]
    run = make_run(tmp_path / "run", tiles)
    browser.open(report.write(run, results=made_up_results() + results), 1280)
    browser.run("document.querySelector('#layers svg[data-chart]').focus()")
    browser.key("Home")
    assert browser.run("document.querySelector('#layers .curve output').textContent") == "0.5 at 0.5 GFLOPs"
