"""Small SVG charts for report.html: no script, no fonts of their own, colors by the page's CSS classes.

The classes are `grid`, `axis`, `tick`, `mark` and, for the data, `raw`, `line-1`, `line-2`, `dot-1`, `dot-2`,
`diagonal`: so a chart follows the page into dark mode and onto paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 520, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 22, 40
_MOST_POINTS = 600
"""Points per line; a longer line is cut into stretches and keeps the least and the greatest value of each."""
_MOST_DISCS = 50
"""A line of a report section that has more points is drawn without a disc at every point."""


@dataclass(frozen=True)
class Figure:
    """A chart with its heading, the (class, name) pairs of its legend, and a sentence below it."""

    title: str
    svg: Markup
    keys: tuple[tuple[str, str], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Series:
    """One set of points, float [P] each; `style` is the CSS class, `dots` draws a disc at every point."""

    x: np.ndarray
    y: np.ndarray
    style: str
    dots: bool = False
    line: bool = True


@dataclass(frozen=True)
class Axis:
    """A linear scale: values from `low` to `high` lie at coordinates from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def chart(
    series: Sequence[Series],
    *,
    alt: str,
    x_label: str,
    y_label: str,
    mark: tuple[float, str] | None = None,
    diagonal: bool = False,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
) -> Markup:
    """Draws `series` over common axes as an `<svg>`.

    Args:
      alt: what the chart shows, for people who cannot see it.
      mark: a vertical line at this x, with a word next to it.
      diagonal: draws the line x = y and gives both axes the same range.
      x_range, y_range: None: the range of the data.
    """
    xs = np.concatenate([np.zeros(0), *(s.x for s in series)])
    ys = np.concatenate([np.zeros(0), *(s.y for s in series)])
    x_low, x_high = x_range or _range(xs)
    y_low, y_high = y_range or _range(ys, margin=0.06)
    if diagonal and not (x_range or y_range):
        x_low = y_low = min(x_low, y_low)
        x_high = y_high = max(x_high, y_high)
    x_axis = Axis(x_low, x_high, _LEFT, WIDTH - _RIGHT)
    y_axis = Axis(y_low, y_high, HEIGHT - _BOTTOM, _TOP)

    parts = [Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, alt)]
    parts += _grid(x_axis, y_axis)
    if diagonal:
        low, high = max(x_low, y_low), min(x_high, y_high)
        parts.append(_polyline([(x_axis.place(v), y_axis.place(v)) for v in (low, high)], "diagonal"))
    if mark:
        parts += _mark(x_axis, *mark)
    for s in series:
        parts += _draw(s, x_axis, y_axis)
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(_text(middle, HEIGHT - 6, x_label, "axis", "middle"))
    parts.append(_text(4, 12, y_label, "axis", "start"))
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def section_figure(title: str, content: Mapping[str, Any], note: str = "") -> Figure:
    """Draws a `ReportSection` of kind "chart"; `content` is described there."""
    axes = content["axes"]
    series, keys = [], []
    for number, one in enumerate(content["series"]):
        dots = one.get("style") == "dots"
        style = f"{'dot' if dots else 'line'}-{number % 2 + 1}"
        x, y = (np.array(one[name], np.float64) for name in "xy")  # null is read as NaN
        y[~np.isfinite(x)] = np.nan  # without an x there is no point
        series.append(Series(x, y, style, dots=dots or len(x) <= _MOST_DISCS, line=not dots))
        if one.get("name"):
            keys.append((style, str(one["name"])))
    x_range, y_range = ((float(r[0]), float(r[1])) if (r := axes.get(f"{name}_range")) else None for name in "xy")
    labels = str(axes.get("x", "")), str(axes.get("y", ""))
    alt = content.get("alt") or f"{title}: {labels[1]} by {labels[0]}"
    diagonal = bool(axes.get("diagonal"))
    svg = chart(
        series,
        alt=alt,
        x_label=labels[0],
        y_label=labels[1],
        diagonal=diagonal,
        x_range=x_range,
        y_range=y_range,
    )
    return Figure(title, svg, tuple(keys), note)


def _range(values: np.ndarray, margin: float = 0.0) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    spread = (high - low) or abs(high) or 1.0
    if low == high:
        return low - spread / 2, high + spread / 2
    floor = low - margin * spread
    # An axis that nearly reaches zero starts at zero.
    return (0.0 if low >= 0 and floor < 0.1 * spread else floor), high + margin * spread


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns about `count` round values between `low` and `high`, 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _tick_label(value: float, step: float) -> str:
    if value == 0:
        return "0"
    if step < 1e-4:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def _grid(x_axis: Axis, y_axis: Axis) -> list[Markup]:
    parts = []
    y_ticks, x_ticks = ticks(y_axis.low, y_axis.high), ticks(x_axis.low, x_axis.high)
    for value in y_ticks:
        y = y_axis.place(value)
        parts.append(_line(x_axis.start, y, x_axis.end, y, "grid"))
        parts.append(_text(x_axis.start - 7, y + 4, _tick_label(value, _step(y_ticks)), "tick", "end"))
    for value in x_ticks:
        x = x_axis.place(value)
        parts.append(_line(x, y_axis.start, x, y_axis.start + 4, "grid"))
        parts.append(_text(x, y_axis.start + 17, _tick_label(value, _step(x_ticks)), "tick", "middle"))
    return parts


def _step(values: list[float]) -> float:
    return values[1] - values[0] if len(values) > 1 else abs(values[0]) or 1.0


def _mark(x_axis: Axis, value: float, word: str) -> list[Markup]:
    x = x_axis.place(value)
    near_end = x > (x_axis.start + x_axis.end) / 2
    label = _text(x - 5 if near_end else x + 5, _TOP - 8, word, "mark", "end" if near_end else "start")
    return [_line(x, _TOP - 16, x, HEIGHT - _BOTTOM, "mark"), label]


def _draw(series: Series, x_axis: Axis, y_axis: Axis) -> list[Markup]:
    parts: list[Markup] = []
    if series.line:
        for x, y in _stretches(*_thin(series.x, series.y)):
            points = [(x_axis.place(a), y_axis.place(b)) for a, b in zip(x, y, strict=True)]
            parts.append(_polyline(points, series.style))
    if series.dots:
        for a, b in zip(series.x, series.y, strict=True):
            if math.isfinite(a) and math.isfinite(b):
                disc = Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="2.6"/>')
                parts.append(disc.format(series.style, x_axis.place(a), y_axis.place(b)))
    return parts


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(x) <= _MOST_POINTS:
        return x, y
    keep: list[int] = []
    for part in np.array_split(np.arange(len(x)), _MOST_POINTS // 2):
        finite = part[np.isfinite(y[part])]
        keep += sorted({finite[y[finite].argmin()], finite[y[finite].argmax()]}) if finite.size else [part[0]]
    return x[keep], y[keep]


def _stretches(x: np.ndarray, y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the runs of finite points: a line is broken where a value is not finite."""
    finite = np.isfinite(y)
    edges = np.flatnonzero(np.diff(finite)) + 1
    runs = np.split(np.arange(len(y)), edges)
    return [(x[run], y[run]) for run in runs if run.size and finite[run[0]]]


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    line = Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
    return line.format(style, x1, y1, x2, y2)


def _polyline(points: Sequence[tuple[float, float]], style: str) -> Markup:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return Markup('<polyline class="{}" points="{}"/>').format(style, places)


def _text(x: float, y: float, text: str, style: str, anchor: str) -> Markup:
    element = Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
    return element.format(style, x, y, anchor, escape(text))
