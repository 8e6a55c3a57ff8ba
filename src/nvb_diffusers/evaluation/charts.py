"""Line charts as inline SVG, in colors of the page around them."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nvb_diffusers.evaluation.intervals import Interval

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 32, 16, 32
# Okabe and Ito's palette, which people who are blind to some colors can tell apart.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a8a", "#7a5195")


class Series(NamedTuple):
    """One line: points (x, y), y with its interval."""

    name: str
    points: Sequence[tuple[float, Interval]]


def line_chart(series: Sequence[Series], title: str, x_labels: Mapping[float, str]) -> str:
    """A chart of lines with their intervals as vertical bars, and a legend.

    Args:
        series: at least one point in all.
        title: of the y axis.
        x_labels: by x.
    """
    ends = [end for line in series for _, y in line.points for end in (y.low, y.high)]
    low, high, step = nice_range(min(ends), max(ends))
    first, last = min(x_labels), max(x_labels)

    def x_at(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((value - first) / (last - first) if last > first else 0.5)

    def y_at(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    parts = [f'<text x="{LEFT}" y="{TOP - 4}" class="axis">{html.escape(title)}</text>']
    for number in range(round((high - low) / step) + 1):
        value = low + number * step
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_at(value):.1f}" y2="{y_at(value):.1f}" class="grid"/>'
        )
        parts.append(f'<text x="{LEFT - 6}" y="{y_at(value) + 4:.1f}" class="axis end">{value:g}</text>')
    for value, label in x_labels.items():
        parts.append(f'<text x="{x_at(value):.1f}" y="{HEIGHT - 10}" class="axis middle">{html.escape(label)}</text>')
    for number, line in enumerate(series):
        color = COLORS[number % len(COLORS)]
        shift = 3 * (number - (len(series) - 1) / 2)  # so that intervals at one x lie side by side
        points = [(x_at(x) + shift, y) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y_at(y.mean):.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        for x, y in points:
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y_at(y.low):.1f}" y2="{y_at(y.high):.1f}" '
                f'stroke="{color}"/><circle cx="{x:.1f}" cy="{y_at(y.mean):.1f}" r="3" fill="{color}"/>'
            )
    legend = "".join(
        f'<span><i style="background:{COLORS[number % len(COLORS)]}"></i>{html.escape(line.name)}</span>'
        for number, line in enumerate(series)
    )
    drawing = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">{"".join(parts)}</svg>'
    return f'<div class="chart">{drawing}<p class="legend">{legend}</p></div>'


def nice_range(low: float, high: float, ticks: int = 5) -> tuple[float, float, float]:
    """Round ends around an interval, and a round step with which about `ticks` steps fill it."""
    span = (high - low) or abs(high) or 1.0
    magnitude = 10.0 ** math.floor(math.log10(span / ticks))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= span / ticks)
    first, last = math.floor(low / step), math.ceil(high / step)
    return first * step, max(last, first + 1) * step, step
