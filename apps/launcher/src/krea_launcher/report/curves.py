"""Line plots as SVG text, without a plotting library."""

import math
from collections.abc import Mapping, Sequence

__all__ = ["plot"]

COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2")
Points = Sequence[tuple[float, float]]


def plot(lines: Mapping[str, Points], *, x: str, y: str, width: int = 640, height: int = 260) -> str:
    """An SVG of named lines over linear axes; points that are not finite are left out."""
    lines = {name: [p for p in points if math.isfinite(p[1])] for name, points in lines.items()}
    every = [point for points in lines.values() for point in points]
    if not every:
        return "<p>No points.</p>"
    left, bottom, right, top = 52, 36, 12, 14
    (x0, x1), (y0, y1) = (_span([p[i] for p in every]) for i in (0, 1))
    across = lambda v: left + (v - x0) / (x1 - x0) * (width - left - right)  # noqa: E731
    up = lambda v: height - bottom - (v - y0) / (y1 - y0) * (height - bottom - top)  # noqa: E731
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{y} over {x}">']
    for tick in _ticks(y0, y1):
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{up(tick):.1f}" y2="{up(tick):.1f}" class="grid"/>')
        parts.append(f'<text x="{left - 6}" y="{up(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in _ticks(x0, x1):
        parts.append(f'<text x="{across(tick):.1f}" y="{height - bottom + 16}" text-anchor="middle">{tick:g}</text>')
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        place = f'x="{width - right - 4}" y="{top + 6 + 15 * number}" text-anchor="end"'
        parts.append(f'<text {place} style="fill:{colour}">{name}</text>')
    parts.append(f'<text x="{(left + width) / 2:.0f}" y="{height - 4}" text-anchor="middle">{x}</text>')
    parts.append(f'<text x="12" y="{top}" class="y">{y}</text></svg>')
    return "".join(parts)


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between low and high."""
    raw = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw)
    first = math.ceil(low / step)
    return [round(k * step, 10) for k in range(first, math.floor(high / step) + 1)]
