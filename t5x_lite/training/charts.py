"""Small charts as inline SVG: line charts, sparklines, bars. Colours and fonts come from the page.

Every chart is a picture with a text alternative; the values that a pointer or the arrow keys reveal travel in a
data attribute, as text that is already formatted.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[tuple[int, float]]

WIDTH, HEIGHT = 400, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 388, 12, 182
_MOST_POINTS = 300  # more than a chart has pixels for
_AVERAGED_FROM = 60  # points; shorter curves are read as they are


@dataclass(frozen=True)
class Series:
    """One curve; `style` is the class that colours it. A long noisy one gets its moving average drawn over it."""

    name: str
    points: Points
    style: str = "c1"
    noisy: bool = False


def line_chart(title: str, note: str, series: Sequence[Series], *, log: bool = False, from_zero: bool = False) -> str:
    """A <figure>: title, newest value, legend, curves over steps. Values that are not finite are marked.

    `log` takes effect where all values are positive and spread over more than a factor of 20.
    """
    drawn = [part for s in series for part in _with_average(s)]
    values = [v for s in series for _, v in s.points if math.isfinite(v)]
    steps = [step for s in series for step, _ in s.points]
    log = log and bool(values) and min(values) > 0 and max(values) / min(values) > 20
    low, high, y_ticks = _y_axis(values, log, from_zero)
    x, x_ticks = _x_axis(steps)
    y = scale(low, high, _BOTTOM, _TOP, log)
    bad = sum(not math.isfinite(v) for s in series for _, v in s.points)
    note += (", log scale" if log else "") + (f", {bad} not finite (×)" if bad else "")
    said = "; ".join(f"{s.name} is {number(s.points[-1][1])} at step {s.points[-1][0]:,}" for s in series)
    spread = f". Values from {number(min(values))} to {number(max(values))}." if values else "."
    newest = "".join(f'<b class="{s.style}">{number(s.points[-1][1], 3)}</b>' for s in series)
    hidden = ' hidden=""' if len(drawn) == 1 else ""
    legend = "".join(f'<li class="{s.style}">{escape(s.name)}</li>' for s in drawn)
    return (
        f'<figure class="chart card" data-hover="{escape(json.dumps([_hover(s, x, y) for s in drawn]))}">'
        f'<figcaption><strong>{escape(title)}</strong><span class="newest">{newest}</span>'
        f"<small>{escape(note)}</small></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" '
        f'aria-label="{escape(f"{title} over training steps: {said}{spread}")}">'
        f"{_axes(x, y, x_ticks, y_ticks)}{''.join(_curve(s, x, y) for s in drawn)}"
        f'<line class="cross" y1="{_TOP}" y2="{_BOTTOM}" x1="-9" x2="-9"/></svg>'
        f'<ul class="legend"{hidden}>{legend}</ul>'
        '<div class="tip" role="status" hidden=""></div></figure>'
    )


def sparkline(label: str, points: Points) -> str:
    """A curve without axes, as wide as a word; '' for fewer than two points."""
    points = [(t, v) for t, v in points if math.isfinite(v)]
    if len(points) < 2:
        return ""
    values = [v for _, v in points]
    x = scale(points[0][0], points[-1][0], 2, 94)
    y = scale(min(0.0, *values), max(1.0, *values) if max(values) <= 1 else max(values), 22, 3)
    (t, v), path = points[-1], " ".join(f"{x(t):.1f},{y(v):.1f}" for t, v in points)
    said = f"{label} from {number(values[0])} at step {points[0][0]:,} to {number(v)} at step {t:,}"
    return (
        f'<svg class="spark" viewBox="0 0 96 24" role="img" aria-label="{escape(said)}">'
        f'<polyline points="{path}"/><circle cx="{x(t):.1f}" cy="{y(v):.1f}" r="2"/></svg>'
    )


def range_bar(mean: float, low: float, high: float, full: float, style: str) -> str:
    """A track from 0 to `full` with the span from low to high and a tick at the mean."""
    if not all(math.isfinite(v) for v in (mean, low, high)):
        return ""
    left, middle, right = (100 * min(max(v / full, 0.0), 1.0) for v in (low, mean, high))
    width = max(right - left, 2.0)
    return (
        f'<svg class="range {style}" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" y="3.5" width="100" height="3"/>'
        f'<rect class="span" x="{min(left, 98):.1f}" y="2" width="{width:.1f}" height="6"/>'
        f'<rect class="mean" x="{min(max(middle - 1, 0), 98):.1f}" width="2" height="10"/></svg>'
    )


def bar(value: float, full: float, style: str) -> str:
    """A bar from 0 to the value, on a track that ends at `full`."""
    share = min(max(value / full, 0.0), 1.0) * 100 if math.isfinite(value) else 0
    return (
        f'<svg class="range {style}" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" y="3" width="100" height="4"/>'
        f'<rect class="mean" y="3" width="{share:.1f}" height="4"/></svg>'
    )


def number(value: float, digits: int = 4) -> str:
    """So many significant digits, as people write them: 0.0123, 12,345, 1.2e-05."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits}g}"
    decimals = 0 if value == int(value) else max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` round numbers, 1, 2 or 5 times a power of ten apart, that reach from `low` to `high`."""
    rough = (high - low) / max(most - 1, 1)
    power = 10 ** math.floor(math.log10(rough))
    for factor in (1, 2, 5, 10, 20):
        first, last = math.floor(low / (factor * power) + 1e-9), math.ceil(high / (factor * power) - 1e-9)
        if last - first < most:
            break
    return [float(f"{i * factor * power:.12g}") for i in range(first, last + 1)]


def scale(low: float, high: float, start: float, end: float, log: bool = False) -> Callable[[float], float]:
    """The map that takes low to start and high to end; everything to the middle where low is high."""
    if log:
        low, high = math.log(low), math.log(high)
    if low == high:
        return lambda value: (start + end) / 2

    def at(value: float) -> float:
        return start + ((math.log(value) if log else value) - low) / (high - low) * (end - start)

    return at


def kept(points: Points, most: int) -> list[int]:
    """Positions of about `most` points that look like all of them: the ends, and the extremes between."""
    if len(points) <= most:
        return list(range(len(points)))
    chosen = {0, len(points) - 1}
    chosen |= {i for i, (_, v) in enumerate(points) if not math.isfinite(v)}
    buckets = max((most - 2) // 2, 1)
    for n in range(buckets):
        bucket = range(n * len(points) // buckets, (n + 1) * len(points) // buckets)
        finite = [i for i in bucket if math.isfinite(points[i][1])]
        if finite:
            chosen |= {min(finite, key=lambda i: points[i][1]), max(finite, key=lambda i: points[i][1])}
    return sorted(chosen)


def _with_average(series: Series) -> list[Series]:
    """The series thinned to what a chart can show; a long one faint, under its moving average."""
    points = series.points
    keep = kept(points, _MOST_POINTS)
    thin = [points[i] for i in keep]
    if not series.noisy or len(points) < _AVERAGED_FROM:
        return [Series(series.name, thin, series.style)]
    half = max(len(points) // 50, 1)
    average = []
    for i in keep:
        near = [v for _, v in points[max(i - half, 0) : i + half + 1] if math.isfinite(v)]
        average.append((points[i][0], sum(near) / len(near) if near else math.nan))
    finite = [(t, v) for t, v in average if math.isfinite(v)]
    return [
        Series(series.name, thin, f"{series.style} faint"),
        Series(f"average of {2 * half + 1} points", finite, series.style),
    ]


def _hover(series: Series, x: Callable, y: Callable) -> dict:
    """What the page's script shows of a curve: where each point is and the text of its step and value."""
    points = [
        [round(x(step), 1), round(y(value), 1) if math.isfinite(value) else None, f"{step:,}", number(value)]
        for step, value in series.points
    ]
    return {"name": series.name, "style": series.style, "points": points}


def _y_axis(values: Sequence[float], log: bool, from_zero: bool) -> tuple[float, float, list[float]]:
    if not values:
        return 0.0, 1.0, [0.0, 1.0]
    low, high = min(values), max(values)
    if log:
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        marks = [10.0**e for e in exponents]
        if len(marks) < 4:
            marks = [m * 10.0**e for e in exponents for m in (1, 2, 5)]
        # The last mark below the values and the first one above them.
        marks = [
            m
            for i, m in enumerate(marks)
            if (i + 1 == len(marks) or marks[i + 1] > low) and (i == 0 or marks[i - 1] < high)
        ]
        return marks[0], marks[-1], marks
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    marks = ticks(low, high, 6)
    return marks[0], marks[-1], marks


def _x_axis(steps: Sequence[int]) -> tuple[Callable[[float], float], list[float]]:
    first, last = (min(steps), max(steps)) if steps else (0, 1)
    start = 0 if first < 0.2 * last else first
    if start == last:
        return scale(start, last, _LEFT, _RIGHT), [last]
    marks = [m for m in ticks(start, last, 6) if start <= m <= last and m == int(m)]
    return scale(start, last, _LEFT, _RIGHT), marks


def _axes(x: Callable, y: Callable, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> str:
    lines = []
    for value in y_ticks:
        at = y(value)
        lines.append(f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        lines.append(f'<text class="y" x="{_LEFT - 7}" y="{at + 4:.1f}">{_tick(value)}</text>')
    lines.append(f'<line class="axis" x1="{_LEFT}" x2="{_RIGHT}" y1="{_BOTTOM}" y2="{_BOTTOM}"/>')
    for value in x_ticks:
        at = x(value)
        lines.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{_BOTTOM}" y2="{_BOTTOM + 4}"/>')
        edge = " end" if at > _RIGHT - 14 else ""
        lines.append(f'<text class="x{edge}" x="{at:.1f}" y="{_BOTTOM + 17}">{_tick(value)}</text>')
    lines.append(f'<text class="x title" x="{(_LEFT + _RIGHT) / 2}" y="{HEIGHT - 5}">training step</text>')
    return "".join(lines)


def _curve(series: Series, x: Callable, y: Callable) -> str:
    """The polyline in pieces between values that are not finite, and a mark for each of those."""
    pieces: list[list[str]] = [[]]
    marks = []
    for step, value in series.points:
        if math.isfinite(value):
            pieces[-1].append(f"{x(step):.1f},{y(value):.1f}")
        else:
            pieces.append([])
            marks.append(f'<text class="bad" x="{x(step):.1f}" y="{_TOP + 8}">×</text>')
    lines = "".join(f'<polyline points="{" ".join(piece)}"/>' for piece in pieces if len(piece) > 1)
    few = len(series.points) <= 30
    dots = [point for piece in pieces for point in piece if few or len(piece) == 1]
    circles = "".join('<circle cx="{}" cy="{}" r="2.5"/>'.format(*point.split(",")) for point in dots)
    return f'<g class="{series.style}">{lines}{circles}{"".join(marks)}</g>'


def _tick(value: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.4g}{name}"
    return f"{value:.4g}"
