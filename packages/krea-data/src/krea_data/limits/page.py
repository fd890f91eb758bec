"""A page on which to choose limits: for every number its histogram, and the pictures on both sides of each limit."""

from collections.abc import Callable, Sequence
from html import escape
from string import Template

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from krea_data.limits.distribution import Around, Distribution
from krea_data.limits.stages import Stage
from krea_data.thumbnails import thumbnail

__all__ = ["page"]

_WIDTH, _HEIGHT, _BASE = 640, 130, 18
_PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #222 }
  section { border-top: 1px solid #ddd; padding: 1rem 0 }
  h2 { font-size: 1.1rem; margin: 0 } h3 { font-size: .95rem; margin: 1rem 0 .3rem }
  p { margin: .2rem 0; color: #555; font-size: .9rem }
  svg { width: 100%; height: auto } rect { fill: #9ab } line { stroke: #b22; stroke-width: 1.5 }
  text { font: 11px system-ui, sans-serif; fill: #555 } text.limit { fill: #b22 }
  .sides { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem }
  figure { display: grid; grid-template-columns: repeat(8, 1fr); gap: .3rem; margin: .3rem 0 }
  img { width: 100%; aspect-ratio: 1; object-fit: contain; background: #f6f6f6 }
</style>
<h1>$title</h1>
<p>$rows rows. A red line is a limit, and the pictures are the nearest to it on each side.</p>
$sections
</html>
""")


def page(
    spread: Sequence[Distribution],
    chosen: Sequence[Stage],
    picture: Callable[[str], Image.Image],
    *,
    title: str = "Limits",
    side_px: int = 96,
) -> str:
    """The page as HTML that needs nothing else. `picture` gives a row's picture by its id."""
    sections = [_section(one, chosen, picture, side_px) for one in spread]
    rows = max((len(one.values) + one.missing for one in spread), default=0)
    return _PAGE.substitute(title=escape(title), rows=f"{rows:,}", sections="\n".join(sections))


def _section(spread: Distribution, chosen: Sequence[Stage], picture: Callable[[str], Image.Image], side_px: int) -> str:
    limits = [(stage.name, limit) for stage in chosen for limit in stage.limits if limit.field == spread.field]
    parts = [f"<section><h2>{escape(spread.field)}</h2>"]
    measured = f"{len(spread.values):,} measured"
    parts.append(f"<p>{measured}{f', {spread.missing:,} not' if spread.missing else ''}</p>")
    parts.append(_histogram(spread, [(name, around) for name, limit in limits for around in spread.around(limit)]))
    for name, limit in limits:
        for around in spread.around(limit):
            said = f"{'at least' if around.bound == limit.least else 'at most'} {around.bound:g}"
            parts.append(f"<h3>{escape(name)}: {said} leaves out {around.left_out:.1%}</h3>")
            sides = (("just inside", around.inside), ("just outside", around.outside))
            shown = [_side(words, [thumbnail(picture(one), one, side_px) for one in ids]) for words, ids in sides]
            parts.append(f'<div class="sides">{"".join(shown)}</div>')
    return "\n".join([*parts, "</section>"])


def _side(words: str, pictures: Sequence[str]) -> str:
    return f"<div><p>{words}</p><figure>{''.join(pictures)}</figure></div>"


def _histogram(spread: Distribution, marks: Sequence[tuple[str, Around]]) -> str:
    counts, edges = spread.bins()
    most, step = max(1, int(counts.max())), _WIDTH / len(counts)
    room = _HEIGHT - _BASE - 14
    bars = [
        f'<rect x="{step * n:.1f}" y="{14 + room * (1 - count / most):.1f}" width="{max(0.5, step - 1):.1f}"'
        f' height="{room * count / most:.1f}"><title>{edges[n]:g} to {edges[n + 1]:g}: {count} rows</title></rect>'
        for n, count in enumerate(counts.tolist())
    ]
    lines = []
    for name, around in marks:
        at = _place(around.bound, edges) * _WIDTH
        lines.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="12" y2="{_HEIGHT - _BASE}"/>')
        anchor = "end" if at > _WIDTH / 2 else "start"
        lines.append(f'<text class="limit" x="{at:.1f}" y="10" text-anchor="{anchor}">{escape(name)}</text>')
    ends = (
        f'<text x="0" y="{_HEIGHT - 4}">{edges[0]:.4g}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT - 4}" text-anchor="end">{edges[-1]:.4g}</text>'
    )
    label = f"histogram of {escape(spread.field)}"
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(bars + lines)}{ends}</svg>'


def _place(bound: float, edges: NDArray[np.float64]) -> float:
    """Where a bound stands between the ends, 0 to 1, counted in bins."""
    for n in range(len(edges) - 1):
        if bound < edges[n + 1]:
            inside = (bound - edges[n]) / (edges[n + 1] - edges[n])
            return (n + max(0.0, float(inside))) / (len(edges) - 1)
    return 1.0
