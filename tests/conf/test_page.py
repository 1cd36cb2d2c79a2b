"""The page that all reports share: what comes from outside stays text, and charts are part of the page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from jinja2 import UndefinedError
from matplotlib import rcParams

from conf.page import figure_svg, format_moment, format_size, render_page

SMALL = (
    '{% extends "page.html" %}{% block title %}{{ name }}{% endblock %}'
    "{% block content %}{{ chart }}{{ 12345 | size }} {{ 0 | moment }}{% endblock %}"
)


def chart_of(title, description="a line"):
    def draw(figure):
        figure.add_subplot(title=title).plot([0, 1], [0, 1])

    return figure_svg(draw, width=3, height=2, description=description)


def test_a_page_holds_the_chart_itself_and_escapes_every_text():
    page = render_page(SMALL, name='<img src="x">', chart=chart_of("one")).decode()

    assert page.startswith("<!doctype html>")
    assert page.count("<svg") == 1
    assert page.count("&lt;img src=&#34;x&#34;&gt;") == 2  # title and heading
    assert "<img" not in page
    assert "12 kB 1970-01-01 00:00 UTC" in page


def test_a_page_lets_the_browser_load_nothing():
    page = render_page(SMALL, name="name", chart=chart_of("one")).decode()

    assert "default-src 'none'; style-src 'unsafe-inline'" in page
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert "://" not in without_namespaces
    assert "<script" not in page


def test_a_variable_that_was_forgotten_is_an_error():
    with pytest.raises(UndefinedError, match="chart"):
        render_page(SMALL, name="name")


def test_a_chart_is_xml_with_text_as_text():
    chart = ET.fromstring(chart_of("costs $5 < $6"))

    assert chart.tag == "{http://www.w3.org/2000/svg}svg"
    assert "costs $5 < $6" in [element.text for element in chart.iter()]


def test_a_chart_says_what_it_shows_to_those_who_cannot_see_it():
    assert ET.fromstring(chart_of("one", description='"a" < b')).attrib["aria-label"] == '"a" < b'


def test_equal_charts_are_equal_and_two_in_one_page_share_no_name():
    one, other = chart_of("one"), chart_of("other")

    assert one == chart_of("one")
    names = [re.findall(r'<g id="([^"]+)"', chart) for chart in (one, other)]
    assert names == [[], []]


def test_drawing_leaves_the_drawing_library_as_it_was():
    before = dict(rcParams)

    chart_of("one")

    assert dict(rcParams) == before


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (8560, "8.6 kB"),
        (9960, "10 kB"),
        (999_499, "999 kB"),
        (999_600, "1.0 MB"),
        (2_500_000_000_000_000, "2500 TB"),
    ],
)
def test_sizes_are_written_for_people(count, text):
    assert format_size(count) == text


def test_moments_are_written_in_universal_time():
    assert format_moment(1_795_351_333.06) == "2026-11-22 12:42 UTC"
