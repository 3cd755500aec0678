"""Charts: true to the data, and drawn whatever the data."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from jaxlm.report.charts import Series, chart, section_figure, ticks
from jaxlm.report.curves import smooth


def points(svg, style):
    found = re.findall(rf'<polyline class="{style}" points="([^"]*)"', svg)
    return [[tuple(map(float, pair.split(","))) for pair in line.split()] for line in found]


def draw(x, y, **kwargs):
    series = Series(np.array(x, float), np.array(y, float), "line-1")
    return str(chart([series], alt="alt", x_label="x", y_label="y", **kwargs))


def test_greater_values_stand_higher_and_further_right():
    ((p, q, r),) = points(draw([0, 10, 20], [1, 3, 2]), "line-1")
    assert p[0] < q[0] < r[0] and q[0] - p[0] == pytest.approx(r[0] - q[0], abs=0.2)
    assert q[1] < r[1] < p[1]  # y runs downwards in SVG


def test_a_line_breaks_where_a_value_is_not_finite():
    svg = draw([0, 1, 2, 3, 4], [1, 2, math.nan, 3, 4])
    assert [len(line) for line in points(svg, "line-1")] == [2, 2]
    assert "nan" not in svg


@pytest.mark.parametrize("y", [[1.0, 1.0], [0.0, 0.0], [5.0], [math.nan, math.nan], [1e-300, 2e-300], [-3.0, 1e6]])
def test_degenerate_ranges_are_drawn(y):
    svg = draw(range(len(y)), y)
    assert "nan" not in svg and "inf" not in svg


def test_a_long_line_is_thinned_but_keeps_its_extremes():
    y = np.zeros(50_000)
    y[12_345], y[40_000] = 9, -9
    (line,) = points(draw(range(50_000), y), "line-1")
    (short,) = points(draw(range(3), [0, 9, -9]), "line-1")
    assert len(line) <= 600
    assert min(p[1] for p in line) == short[1][1] and max(p[1] for p in line) == short[2][1]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 2105), (0.64, 0.87), (-3, 17), (0, 5e-5), (1e6, 1.1e6)])
def test_ticks_are_few_round_and_inside(low, high):
    values = ticks(low, high)
    assert 2 <= len(values) <= 7
    assert low - 1e-9 * high <= values[0] and values[-1] <= high * (1 + 1e-9)
    step = values[1] - values[0]
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-9), 6) in (1, 2, 5)
    assert all(abs(v / step - round(v / step)) < 1e-6 for v in values)


def test_smoothing_keeps_a_constant_follows_a_trend_and_passes_over_nan():
    assert smooth(np.full(200, 3.0)) == pytest.approx(np.full(200, 3.0))
    noisy = np.linspace(1, 0, 400) + np.where(np.arange(400) % 2, 0.5, -0.5)
    smoothed = smooth(noisy)
    assert np.abs(smoothed[50:] - np.linspace(1, 0, 400)[50:]).max() < 0.1
    gap = smooth(np.array([1.0, math.nan, 1.0]))
    assert gap == pytest.approx([1, 1, 1])


def test_a_chart_of_a_section():
    series = [
        {"x": [0, 1, 2], "y": [0.0, None, 1.0], "style": "line", "name": "made"},
        {"x": [0, 2, None], "y": [0.5, 0.5, 0.5], "style": "dots"},
    ]
    axes = {"x": "share", "y": "value", "x_range": [0, 4], "diagonal": True}
    figure = section_figure("Shares", {"series": series, "axes": axes}, "a note")
    svg = str(figure.svg)
    assert (figure.title, figure.note, figure.keys) == ("Shares", "a note", (("line-1", "made"),))
    assert [len(line) for line in points(svg, "line-1")] == [1, 1]  # null breaks the line
    assert svg.count('class="dot-2"') == 2 and not points(svg, "dot-2")
    assert len(points(svg, "diagonal")) == 1
    assert 'aria-label="Shares: value by share"' in svg
    right = max(float(x) for x in re.findall(r'<circle class="dot-2" cx="([^"]*)"', svg))
    assert right == pytest.approx((58 + 506) / 2, abs=1)  # x = 2 is in the middle of 0 to 4


def test_a_chart_without_points_is_drawn():
    empty = {"series": [{"x": [], "y": [], "style": "dots"}], "axes": {"x": "a", "y": "b"}}
    assert "nan" not in str(section_figure("Nothing", empty).svg)
