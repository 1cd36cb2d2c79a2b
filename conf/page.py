"""The look that all reports share: one HTML page with its style, and charts as drawings inside it.

A page is one file that refers to nothing outside itself and runs nothing: it opens the same on a machine without a
network, prints, and tells nobody that it was opened.

Trust: public on both sides. It shows what it is given and keeps nothing.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import matplotlib as mpl
from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

from conf.page_template import PAGE_TEMPLATE

INK: Final = "#1c2733"
QUIET: Final = "#66737f"
FIRST: Final = "#0b6e8f"
SECOND: Final = "#c9701c"
"""Colours of a chart: text and axes, lesser marks, and two series that colour-blind readers and printers tell apart."""

_STYLE: Final[dict[RcKeyType, Any]] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#b9c3cb",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "grid.color": "#e6ebef",
    "grid.linewidth": 0.8,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "cipherward",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
}
"""Text stays text, so that it can be searched and read aloud; equal charts are equal bytes."""

_NO_METADATA: Final = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_IDENTIFIED_GROUP: Final = re.compile(r'<g id="[^"]*"')
_SIZE_STEP: Final = 1000
_SIZE_UNITS: Final = ("bytes", "kB", "MB", "GB", "TB")


def render_page(template: str, **content: object) -> bytes:
    """Fill in a template that extends "page.html".

    Args:
        template: Jinja2 text. Besides Jinja's own, it has the filters `size` and `moment`.
        content: Its variables; text is escaped, only what `figure_svg` returned is not.

    Returns:
        The page, UTF-8.
    """
    environment = Environment(
        loader=DictLoader({"page.html": PAGE_TEMPLATE}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"size": format_size, "moment": format_moment}
    return environment.from_string(template).render(**content).encode()


def figure_svg(draw: Callable[[Figure], None], *, width: float, height: float, description: str) -> Markup:
    """Draw a chart and return it as an SVG element for a page.

    Args:
        draw: Draws on an empty figure, in the reports' style.
        width: Inches; the page scales the chart to the room there is.
        height: Inches.
        description: What the chart shows, for those who cannot see it.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
    svg = buffer.getvalue()
    # a page holds several charts, and each would name its groups "figure_1", "axes_1", ...
    svg = _IDENTIFIED_GROUP.sub("<g", svg[svg.index("<svg") :])
    label = Markup('<svg role="img" aria-label="{}"').format(description)
    return label + Markup(svg.removeprefix("<svg"))  # noqa: S704  drawn here, and the drawing escapes its texts


def format_size(count: int) -> str:
    """Return a number of bytes for people, with two or three digits: "840 bytes", "8.6 kB", "12 MB"."""
    if count == 1:
        return "1 byte"
    size, unit = float(count), _SIZE_UNITS[0]
    for larger in _SIZE_UNITS[1:]:
        if size < _SIZE_STEP - 0.5:  # nothing is to be written as 1000 of a unit
            break
        size, unit = size / _SIZE_STEP, larger
    digits = 1 if unit != _SIZE_UNITS[0] and size < 9.95 else 0  # noqa: PLR2004  below, it would round to "10.0"
    return f"{size:.{digits}f} {unit}"


def format_moment(seconds: float) -> str:
    """Return a time, in seconds since 1970, as "2026-11-22 12:42 UTC"."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
