"""Line charts: points where their values say, honest about what cannot be drawn."""

import doctest
import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from gantransfer.errors import UserError
from gantransfer.reports import curves, parts, records
from gantransfer.reports.curves import line_chart, nice_ticks, short, thinned

LABELS = {"x_label": "kimg", "y_label": "loss", "title": "Loss"}


def chart(series, **options):
    return ET.fromstring(line_chart(series, **LABELS, **options))


def texts(svg):
    return ["".join(element.itertext()) for element in svg.iter("text")]


def tooltips(svg):
    return [group.find("title").text for group in svg.iter("g")]


def hit_points(svg):
    return np.array([(float(c.get("cx")), float(c.get("cy"))) for c in svg.iter("circle") if c.get("class") == "h"])


@pytest.mark.parametrize("module", [curves, parts, records])
def test_examples_in_docstrings_hold(module):
    failed, tried = doctest.testmod(module)
    assert tried and not failed


def test_points_lie_on_a_line_where_the_values_do():
    svg = chart({"a": [(x, 3 * x + 1) for x in (0, 1, 5, 9)]})
    points = hit_points(svg)
    slopes = np.diff(points[:, 1]) / np.diff(points[:, 0])
    np.testing.assert_allclose(slopes, slopes[0], rtol=0.01)
    assert slopes[0] < 0, "larger values stand higher"
    assert tooltips(svg)[2] == "a: 16 at 5 kimg"


def test_on_a_log_axis_equal_ratios_are_equal_steps_and_non_positive_points_are_counted():
    svg = chart({"a": [(0, 1.0), (1, 10.0), (2, 100.0), (3, 0.0), (4, -1.0)]}, log_y=True)
    steps = np.diff(hit_points(svg)[:, 1])
    assert len(steps) == 2
    np.testing.assert_allclose(steps[0], steps[1], rtol=0.01)
    assert any("2 not positive left out" in text for text in texts(svg))


def test_a_value_that_is_not_finite_breaks_the_line():
    svg = chart({"a": [(0, 1.0), (1, 2.0), (2, math.nan), (3, math.inf), (4, 2.0), (5, 1.0)]})
    lines = [path.get("d") for path in svg.iter("path") if path.get("stroke-linejoin")]
    assert [line.count("L") for line in lines] == [1, 1]
    assert len(tooltips(svg)) == 4


def test_a_band_goes_from_low_to_high():
    svg = chart({"a": [(0, 2.0, 1.0, 4.0), (1, 2.0, 1.0, 4.0)]})
    (band,) = [path.get("d") for path in svg.iter("path") if path.get("opacity")]
    heights = {float(y) for y in re.findall(r"[\d.]+ ([\d.]+)", band)}
    middle = hit_points(svg)[0, 1]
    assert len(heights) == 2
    assert (middle - min(heights)) == pytest.approx(2 * (max(heights) - middle), rel=0.02)
    assert "(1 to 4)" in tooltips(svg)[0]


def test_on_a_log_axis_a_band_that_reaches_below_zero_goes_to_the_bottom():
    svg = chart({"a": [(0, 5.0, -1.0, 9.0), (1, 5.0, 1.0, 9.0)]}, log_y=True)
    (band,) = [path.get("d") for path in svg.iter("path") if path.get("opacity")]
    bottom = max(float(line.get("y1")) for line in svg.iter("line") if line.get("x1") == line.get("x2"))
    assert max(float(y) for y in re.findall(r"[\d.]+ ([\d.]+)", band)) == pytest.approx(bottom, abs=0.1)
    assert len(hit_points(svg)) == 2


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.3, 9.7), (-3, 4), (0, 38.4), (1e-7, 3e-6), (0, 123456), (0.97, 0.99)]
)
def test_ticks_are_round_numbers_inside_the_range(low, high):
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-9 <= tick <= high * (1 + 1e-9) for tick in ticks)
    steps = np.diff(ticks)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    assert float(f"{steps[0]:.0e}"[0]) in (1, 2, 5)


def test_a_long_line_keeps_its_spikes_and_its_gaps():
    line = np.full((10_000, 4), np.nan)
    line[:, 0], line[:, 1] = np.arange(10_000), 1.0
    line[4321, 1], line[7000, 1], line[8000, 1] = 50.0, -9.0, np.nan
    kept = thinned(line)
    assert len(kept) <= 165
    assert {4321.0, 7000.0, 8000.0, 0.0, 9999.0} <= set(kept[:, 0])
    svg = line_chart({"a": [(x, y) for x, y in line[:, :2]]}, **LABELS)
    assert len(svg) < 40_000


def test_names_and_titles_are_escaped_and_lines_told_apart():
    names = [f"<b>{i}&" for i in range(9)]
    svg = chart({name: [(0, 1.0), (1, i)] for i, name in enumerate(names)})
    legend = [text.get("class") == "l" and text.text for text in svg.iter("text")]
    assert [name for name in legend if name] == names
    strokes = [(p.get("stroke"), p.get("stroke-dasharray")) for p in svg.iter("path") if p.get("stroke-linejoin")]
    assert len(set(strokes)) == 9


@pytest.mark.parametrize("series", [{}, {"a": []}, {"a": [(0, math.nan)]}])
def test_nothing_to_draw_is_said(series):
    assert "nothing to draw yet" in texts(chart(series))


@pytest.mark.parametrize("points", [[(3, 5.0)], [(0, 0.0)], [(0, 2.5), (1, 2.5)], [(0, -1e-12), (1, 1e-12)]])
@pytest.mark.parametrize("log_y", [False, True])
def test_single_points_and_flat_lines_are_drawn_within_the_chart(points, log_y):
    for x, y in hit_points(chart({"a": points}, log_y=log_y)):
        assert 0 < x < 430 and 0 < y < 280


def test_a_point_of_another_length_is_refused():
    with pytest.raises(UserError, match="series a"):
        line_chart({"a": [(1, 2, 3)]}, **LABELS)


def test_charts_fit_light_and_dark_pages_without_outside_help():
    svg = line_chart({"a": [(0, 1), (1, 2)]}, **LABELS)
    assert "prefers-color-scheme:dark" in svg
    assert not re.search(r"https?:|url\(|@import|<script|href", svg)


def test_short_numbers_keep_four_digits():
    assert [short(v) for v in (0.8125, 31.00049, -0.001234, 99999.4)] == ["0.8125", "31", "-0.001234", "99,999"]
