import html
import json
import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.training import charts
from t5x_lite.training.charts import Series, kept, line_chart, number, scale, ticks

POINTS = [(0, 4.0), (50, 2.0), (100, 1.0)]


def figure(*args, **options):
    return ET.fromstring(line_chart(*args, **options))


def test_line_chart_has_axes_ticks_labels_and_the_curve():
    drawn = figure("Loss", "a note", [Series("loss", POINTS)], from_zero=True)
    texts = [text.text for text in drawn.iter("text")]
    assert texts == ["0", "1", "2", "3", "4", "0", "20", "40", "60", "80", "100", "training step"]
    # The plot is from 48 to 388 across, and from 182 (the value 0) up to 12 (the value 4).
    assert drawn.find(".//polyline").get("points") == "48.0,12.0 218.0,97.0 388.0,139.5"
    svg = drawn.find("svg")
    assert svg.get("role") == "img" and svg.get("tabindex") == "0"
    assert svg.get("aria-label") == ("Loss over training steps: loss is 1 at step 100. Values from 1 to 4.")


def test_hover_values_are_at_their_points():
    drawn = figure("Loss", "", [Series("loss", [(0, 4.0), (1500, 0.12345)])], from_zero=True)
    (series,) = json.loads(drawn.get("data-hover"))
    assert series["points"] == [[48.0, 12.0, "0", "4"], [388.0, 176.8, "1,500", "0.1235"]]


def test_log_scale_only_for_wide_positive_values():
    wide = figure("Loss", "note", [Series("loss", [(0, 10.0), (1, 0.01)])], log=True)
    assert [t.text for t in wide.iter("text") if t.get("class") == "y"] == ["0.01", "0.1", "1", "10"]
    assert wide.find(".//small").text == "note, log scale"
    for points in ([(0, 4.0), (1, 1.0)], [(0, 10.0), (1, 0.0)]):
        assert figure("Loss", "note", [Series("loss", points)], log=True).find(".//small").text == "note"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_break_the_curve_and_are_marked(bad):
    points = [(0, 1.0), (1, 2.0), (2, bad), (3, 2.0), (4, 1.0)]
    drawn = figure("Loss", "note", [Series("loss", points)], log=True)
    assert len(drawn.findall(".//polyline")) == 2
    assert [t.get("class") for t in drawn.iter("text") if t.text == "×"] == ["bad"]
    assert drawn.find(".//small").text == "note, 1 not finite (×)"


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0, math.nan])
def test_one_point_is_a_chart(value):
    drawn = figure("Loss", "", [Series("loss", [(7, value)])], log=True, from_zero=True)
    assert len(drawn.findall(".//circle")) == (0 if math.isnan(value) else 1)
    assert "nan" not in ET.tostring(drawn.find("svg"), encoding="unicode").replace("NaN", "")


def test_a_long_noisy_curve_gets_its_moving_average():
    points = [(step, float(step % 2)) for step in range(1000)]
    drawn = figure("Loss", "", [Series("loss", points, noisy=True)])
    raw, average = json.loads(drawn.get("data-hover"))
    assert average["name"] == "average of 41 points"
    middle = [float(value) for *_, value in average["points"][20:-20]]
    assert all(abs(value - 0.5) < 0.02 for value in middle)
    assert len(raw["points"]) <= 302
    assert len(json.loads(figure("Loss", "", [Series("loss", points)]).get("data-hover"))) == 1


def test_names_are_escaped():
    text = line_chart('<b>"T"', "<i>", [Series("a<b", POINTS), Series("&", POINTS)])
    assert "<b>&quot;" not in text and '<b>"' not in text and "<i>" not in text
    assert [li.text for li in ET.fromstring(text).iter("li")] == ["a<b", "&"]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(0, 10**7), st.floats(allow_nan=True)), min_size=1, max_size=80, unique_by=lambda p: p[0]
    ),
    st.booleans(),
    st.booleans(),
)
def test_every_curve_draws_inside_its_frame(points, log, from_zero):
    # Values that a float32 can hold: a metric comes from one.
    points = sorted((s, v if not math.isfinite(v) else max(min(v, 1e38), -1e38)) for s, v in points)
    text = line_chart("Loss", "", [Series("loss", points, noisy=True)], log=log, from_zero=from_zero)
    for polyline in ET.fromstring(text).iter("polyline"):
        for point in polyline.get("points").split():
            x, y = map(float, point.split(","))
            assert 47.9 <= x <= 388.1 and 11.9 <= y <= 182.1


@settings(deadline=None, max_examples=50)
@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 9))
def test_ticks_are_few_and_reach_over_the_values(low, span, most):
    marks = ticks(low, low + span, most)
    assert 1 < len(marks) <= most + 1
    assert marks[0] <= low + 1e-6 * span + 1e-9 * abs(low) and marks[-1] >= low + span - 1e-6 * span - 1e-9 * abs(low)


def test_kept_points_hold_the_ends_and_the_spike():
    points = [(step, 0.0) for step in range(10_000)]
    points[4321] = (4321, 9.0)
    points[77] = (77, math.nan)
    keep = kept(points, 300)
    assert {0, 77, 4321, 9999} <= set(keep) and len(keep) <= 301
    assert keep == sorted(keep)


def test_scale():
    assert [scale(0, 10, 100, 200)(v) for v in (0, 5, 10)] == [100, 150, 200]
    assert scale(0.01, 1, 0, 2, log=True)(0.1) == pytest.approx(1.0)
    assert scale(3, 3, 0, 10)(3) == 5


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (0.012345, "0.01235"), (0.5, "0.5000"), (3.0, "3"), (12345.6, "12,346"), (1.25e-5, "1.25e-05"),
        (math.nan, "NaN"), (math.inf, "∞"), (-math.inf, "−∞"), (-2.5, "-2.500"),
    ],
)  # fmt: skip
def test_number(value, text):
    assert number(value) == text


def test_range_bar_spans_low_to_high():
    rects = list(ET.fromstring(charts.range_bar(0.5, 0.25, 1.0, 1.0, "c1")).iter("rect"))
    assert [(r.get("class"), r.get("x"), r.get("width")) for r in rects] == [
        ("track", None, "100"), ("span", "25.0", "75.0"), ("mean", "49.0", "2"),
    ]  # fmt: skip
    assert charts.range_bar(math.nan, 0.0, 1.0, 1.0, "c1") == ""


def test_bar_ends_at_its_value():
    assert ET.fromstring(charts.bar(25.0, 100.0, "c1")).findall("rect")[1].get("width") == "25.0"
    assert ET.fromstring(charts.bar(math.nan, 1.0, "c1")).findall("rect")[1].get("width") == "0.0"


def test_sparkline_says_where_it_starts_and_ends():
    drawn = ET.fromstring(charts.sparkline("qa", [(0, 0.0), (10, math.nan), (100, 1.0)]))
    assert drawn.get("aria-label") == "qa from 0 at step 0 to 1 at step 100"
    assert drawn.find("polyline").get("points") == "2.0,22.0 94.0,3.0"
    assert charts.sparkline("qa", [(0, 0.5)]) == ""


def test_hover_text_is_one_attribute():
    text = line_chart("Loss", "", [Series('it\'s "x" </figure>', POINTS)])
    (attribute,) = re.findall(r'data-hover="([^"]*)"', text)
    assert json.loads(html.unescape(attribute))[0]["name"] == 'it\'s "x" </figure>'
