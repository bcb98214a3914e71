"""Charts as inline SVG: shapes only, whose words stand beside them in HTML, so that they are read on any width.

Pure and deterministic: numbers are rounded to a tenth, and nothing depends on the clock.
"""

from __future__ import annotations

from collections.abc import Sequence

from auditor.html import Html, element


def percent(value: float) -> str:
    """A share of 100 as an SVG length, short and always written the same way."""
    return f"{round(min(max(value, 0.0), 100.0), 1):g}%"


def bar(share: float, label: str) -> Html:
    """A horizontal bar that fills *share* (0 to 1) of its place, at least a hair where it is not nothing."""
    width = 0.0 if share <= 0 else max(100 * share, 0.6)
    return element(
        "svg", element("title", label), element("rect", class_="track", width="100%", height="100%", rx=2),
        element("rect", class_="fill", width=percent(width), height="100%", rx=2),
        class_="bar", role="img", aria_label=label,
    )


def span(low: float, middle: float, high: float, most: float, label: str) -> Html:
    """A range with its median marked, on a scale from 0 to *most*."""
    scale = 100 / most if most > 0 else 0
    left, right = percent(low * scale), percent(high * scale)
    return element(
        "svg", element("title", label),
        element("line", class_="axis", x1="0", y1="50%", x2="100%", y2="50%"),
        element("line", class_="range", x1=left, y1="50%", x2=right, y2="50%"),
        *(element("circle", class_="end", cx=at, cy="50%", r=2.5) for at in (left, right)),
        element("circle", class_="dot", cx=percent(middle * scale), cy="50%", r=5),
        class_="span", role="img", aria_label=label,
    )


def area(points: Sequence[tuple[int, int]], label: str) -> Html:
    """A curve that only rises, over time: (time, size), ascending; two points at least."""
    (first, _), (last, _) = points[0], points[-1]
    most = max(size for _, size in points) or 1
    width, height = 1000, 300
    placed = [
        (f"{round(width * (time - first) / max(last - first, 1), 1):g}", f"{round(height * (1 - size / most), 1):g}")
        for time, size in points
    ]
    line = " ".join(f"{x},{y}" for x, y in placed)
    grid = [
        element("line", class_="grid", x1=0, y1=height * part / 4, x2=width, y2=height * part / 4)
        for part in range(1, 4)
    ]
    return element(
        "svg", element("title", label), *grid,
        element("path", class_="under", d=f"M0,{height} L{' L'.join(line.split())} L{width},{height} Z"),
        element("polyline", class_="curve", points=line),
        class_="area", viewBox=f"0 0 {width} {height}", preserveAspectRatio="none", role="img", aria_label=label,
    )
