import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from gnothi.report import charts
from gnothi.report.charts import Curve


class Tags(HTMLParser):
    """All start tags with their attributes, and the texts inside them."""

    def __init__(self, text):
        super().__init__()
        self.found, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append((self.found[-1], data))

    def all(self, tag, kind=None):
        return [a for t, a in self.found if t == tag and (kind is None or kind in a.get("class", "").split())]


def axis_from_labels(svg, anchor):
    """Value as a function of the coordinate, read off the tick labels: (coordinates, values)."""
    labels = [(a, text) for (_, a), text in Tags(svg).texts if a.get("text-anchor") == anchor and a["class"] == "tick"]
    ticks = [(a, float(text.replace("−", "-").replace(",", ""))) for a, text in labels]
    key = "y" if anchor == "end" else "x"
    return np.array([float(a[key]) for a, _ in ticks]), np.array([v for _, v in ticks])


def points(svg, which=0):
    line = Tags(svg).all("polyline")[which]
    return np.array([[float(v) for v in p.split(",")] for p in line["points"].split()])


def test_a_polyline_passes_through_its_values_as_the_tick_labels_read():
    x, y = [0.0, 1.0, 2.5, 4.0, 10.0], [3.0, -1.5, 7.25, 0.0, 6.0]
    svg = charts.line_chart(x, [Curve("loss", y)], x_name="epochs", label="loss")
    drawn = points(svg)
    for anchor, column, values, shift in (("end", 1, y, 3.5), ("middle", 0, x, 0.0)):  # a label's baseline is 3.5 below its line
        at, said = axis_from_labels(svg, anchor)
        slope, start = np.polyfit(at - shift, said, 1)
        np.testing.assert_allclose(drawn[:, column] * slope + start, values, atol=abs(slope) * 0.12)


def test_a_logarithmic_chart_reads_right_between_its_decades():
    y = [1000.0, 31.6, 2.0, 1.0]
    svg = charts.line_chart([0, 1, 2, 3], [Curve("norm", y)], x_name="epochs", label="", log=True)
    at, said = axis_from_labels(svg, "end")
    slope, start = np.polyfit(at - 3.5, np.log10(said), 1)
    np.testing.assert_allclose(10 ** (points(svg)[:, 1] * slope + start), y, rtol=0.01)


def test_every_value_lies_inside_the_frame_and_larger_is_higher():
    y = [0.031, 0.029, 0.2, 0.11]
    drawn = points(charts.line_chart([0, 1, 2, 3], [Curve("a", y)], x_name="epochs", label=""))
    assert (drawn[:, 0] >= charts.LEFT).all() and (drawn[:, 0] <= charts.RIGHT).all()
    assert (drawn[:, 1] >= charts.TOP).all() and (drawn[:, 1] <= charts.BOTTOM).all()
    assert list(np.argsort(-drawn[:, 1])) == list(np.argsort(y))


def test_a_value_that_is_not_finite_leaves_a_gap():
    y = [1.0, 2.0, math.nan, 3.0, 4.0, math.inf, 5.0]
    tags = Tags(charts.line_chart(range(7), [Curve("a", y)], x_name="steps", label=""))
    assert [len(line["points"].split()) for line in tags.all("polyline")] == [2, 2]
    assert len(tags.all("circle")) == 1  # the last one stands alone
    data = json.loads(tags.all("svg")[0]["data-chart"])
    assert data["curves"][0]["y"] == [1, 2, None, 3, 4, None, 5]


def test_the_band_runs_along_both_ends_of_the_interval():
    svg = charts.line_chart([0, 1], [Curve("k-NN", [0.5, 0.7], [0.4, 0.6], [0.6, 0.8])], x_name="epochs", label="")
    (band,) = Tags(svg).all("polygon")
    corners = [[float(v) for v in p.split(",")] for p in band["points"].split()]
    line = points(svg)
    assert len(corners) == 4
    assert np.mean([corners[0][1], corners[3][1]]) == pytest.approx(line[0, 1], abs=0.1)
    assert np.mean([corners[1][1], corners[2][1]]) == pytest.approx(line[1, 1], abs=0.1)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 17), (0.0213, 0.0245), (1e-7, 3e-7), (990, 1010), (0, 310)])
def test_ticks_are_round_evenly_spaced_and_inside(low, high):
    marks = charts.ticks(low, high)
    steps = np.diff(marks)
    assert 2 <= len(marks) <= 10
    np.testing.assert_allclose(steps, steps[0])
    digit = steps[0] / 10 ** math.floor(math.log10(steps[0] * 1.0001))
    assert min(abs(digit - d) for d in (1, 2, 5)) < 1e-6
    assert low - 1e-9 * steps[0] <= marks[0] and marks[-1] <= high + 1e-9 * steps[0]


@pytest.mark.parametrize("values", [[0.0, 0.0], [5.0], [1e-12, 1e-12], [math.nan], []])
def test_flat_and_empty_axes_have_room(values):
    axis, marks = charts.y_axis(values)
    assert axis.high > axis.low and len(marks) >= 2
    assert all(charts.TOP < axis(v) < charts.BOTTOM for v in values if math.isfinite(v))


def test_thinning_keeps_the_mean_and_ignores_what_is_not_finite():
    values = np.arange(900.0)
    assert np.mean(charts.thin(values, 300)) == pytest.approx(values.mean())
    assert charts.thin([1.0, math.nan, math.nan, math.nan], 2) == pytest.approx([1.0, math.nan], nan_ok=True)
    assert charts.thin([4.0, 2.0]) == [4.0, 2.0]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.12345, "0.123"), (1234.5, "1,234"), (-2.5, "−2.50"), (3.2e-7, "3.2e−7"), (math.nan, "not a number"), (math.inf, "∞")],
)
def test_numbers_for_people(value, text):
    assert charts.show(value) == text


def test_an_interval_lies_where_its_axis_says():
    ends = charts.span([(0.82, 0.79, 0.84), (0.32, 0.29, 0.34)])
    assert ends[0] <= 0.29 and 0.84 <= ends[1] <= 1
    marks = [(float(a["x"][:-1]), float(t.split()[0]) / 100) for (_, a), t in Tags(charts.interval_axis(ends, shares=True)).texts]
    slope, start = np.polyfit(*zip(*marks, strict=True), 1)
    tags = Tags(charts.interval(0.82, 0.79, 0.84, ends))
    (bar,), (dot,) = tags.all("line", "bar"), tags.all("circle")
    assert [float(v[:-1]) * slope + start for v in (bar["x1"], dot["cx"], bar["x2"])] == pytest.approx([0.79, 0.82, 0.84], abs=2e-4)


def test_a_map_keeps_the_shape_of_its_points():
    cloud = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 2.0], [1.0, 1.0]])
    placed = charts.place(cloud, side=100, margin=10)
    assert placed.min() >= 10 and placed.max() <= 90
    before, after = ((p[:, None] - p[None]) ** 2 for p in (cloud, placed))
    np.testing.assert_allclose(after, before * 400)  # one scale for both axes: 80 for 4
    assert placed[2, 1] < placed[1, 1]  # up is up


def test_a_scatter_draws_every_point_in_its_group():
    placed = np.array([[10.0, 20.0], [30.0, 40.0], [50.0, 60.0]])
    tags = Tags(charts.scatter(placed, [1, -1, 1], "map"))
    uses = [(float(a["x"]), float(a["y"])) for a in tags.all("use")]
    assert sorted(uses) == [(10, 20), (30, 40), (50, 60)]
    assert [a["data-group"] for a in tags.all("g", "points")] == ["-1", "1"]


def test_names_cannot_break_out_of_a_chart():
    svg = charts.line_chart([0, 1], [Curve('"><script>x</script>', [1, 2])], x_name="<b>", label='"onload="x')
    assert not re.search(r"<script|<b>|\"onload=", svg)
    assert json.loads(Tags(svg).all("svg")[0]["data-chart"])["curves"][0]["name"] == '"><script>x</script>'
