"""The history of a training, by metric and epoch, and its drawing in a notebook. Driver only."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, LEFT, MARGIN = 280, 120, 52, 14
COLORS = ("#0072B2", "#D55E00")
"""For the training rows, and for the validation rows."""


class History(dict[str, list[float]]):
    """Metric -> its value after each epoch; those of validation rows begin with ``val_``. A notebook draws it."""

    def _repr_html_(self) -> str:
        """Draw a curve for each metric, with that of the validation rows."""
        names = [name for name in self if not (name.startswith("val_") and name[4:] in self)]
        return f"<div>{''.join(curve(name, self) for name in names)}</div>"


def curve(name: str, history: Mapping[str, Sequence[float]]) -> str:
    """Return an SVG of a metric by epoch, with that of the validation rows, each named by its last value."""
    lines = [
        (own, color, [float(value) for value in history[own]])
        for own, color in zip((name, f"val_{name}"), COLORS, strict=True)
        if history.get(own) and all(isinstance(value, int | float) for value in history[own])
    ]
    known = [value for _, _, line in lines for value in line if math.isfinite(value)]
    if not known:
        return ""
    low, high = min(known), max(known)
    longest = max(len(line) for _, _, line in lines)
    drawn = "".join(_drawn(line, color, low, high, longest) for _, color, line in lines)
    title = "&ensp;".join(
        f'<span style="color:{color}">{html.escape(own)} {line[-1]:.4g}</span>' for own, color, line in lines
    )
    bottom = HEIGHT - MARGIN
    frame = f'<path d="M{LEFT} {MARGIN}V{bottom}H{WIDTH - MARGIN}" fill="none" stroke="#999"/>'
    marks = [
        _mark(LEFT - 4, MARGIN + 4, "end", f"{high:.3g}"),
        _mark(LEFT - 4, bottom, "end", f"{low:.3g}") if high > low else "",
        _mark(LEFT, HEIGHT - 2, "middle", "1"),
        _mark(WIDTH - MARGIN, HEIGHT - 2, "middle", f"{longest}") if longest > 1 else "",
    ]
    return (
        '<figure style="display:inline-block;margin:4px 12px 4px 0">'
        f"<figcaption>{title}</figcaption>"
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="{html.escape(name)} by epoch">{frame}{"".join(marks)}{drawn}</svg></figure>'
    )


def _mark(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="10" fill="#777">{text}</text>'


def _drawn(line: Sequence[float], color: str, low: float, high: float, longest: int) -> str:
    """Return the line, with a gap where a value is not finite; a single value is a point."""
    step = (WIDTH - MARGIN - LEFT) / max(1, longest - 1)
    tall = HEIGHT - 2 * MARGIN
    points, pieces = [], []
    for index, value in enumerate(line):
        if math.isfinite(value):
            share = (value - low) / (high - low) if high > low else 0.5
            points.append(f"{LEFT + index * step:.1f},{HEIGHT - MARGIN - share * tall:.1f}")
        elif points:
            pieces.append(points)
            points = []
    pieces.append(points)
    return "".join(_piece(piece, color) for piece in pieces if piece)


def _piece(points: list[str], color: str) -> str:
    if len(points) == 1:
        x, y = points[0].split(",")
        return f'<circle cx="{x}" cy="{y}" r="2.5" fill="{color}"/>'
    return f'<polyline points="{" ".join(points)}" fill="none" stroke="{color}" stroke-width="2"/>'
