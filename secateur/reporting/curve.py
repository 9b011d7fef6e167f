"""What a model is worth at several budgets, as data, as a table, and drawn as SVG.

A curve of some points needs two axes and a line: it is drawn here, in the same bytes each time,
rather than by a plotting library of many times this package's size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

from ..ir.display import printable
from .report import bytes_text, percent_text

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 80, 24, 40, 60
"""Margins around the plot."""


@dataclasses.dataclass(frozen=True)
class Point:
    """A model at one budget: what is left of it, as shares of the original, and its worth.

    `divergence` is that of its outputs from the original's on samples that it wasn't fitted to,
    `top1` a share of the evaluation samples; None where they weren't measured. `error` says why
    the budget can't be met.
    """

    budget: float
    macs: float | None = None
    parameters: float | None = None
    latency: float | None = None
    file_bytes: int | None = None
    top1: float | None = None
    divergence: float | None = None
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Curve:
    """Points in the order of their budgets, the whole model first. `kind` is what budgets count."""

    model: str
    kind: str
    points: Sequence[Point]
    options: dict[str, Any]

    @property
    def worth(self) -> str:
        """What the curve shows: top1 where there are labels, else divergence."""
        return "top1" if any(p.top1 is not None for p in self.points) else "divergence"

    def rows(self) -> list[list[str]]:
        """A table for people, under `CURVE_HEADER`."""
        return [
            [
                percent_text(p.budget),
                percent_text(p.macs),
                percent_text(p.parameters),
                percent_text(p.latency),
                bytes_text(p.file_bytes),
                percent_text(p.top1),
                "-" if p.divergence is None else f"{p.divergence:.3g}",
            ]
            for p in self.points
        ]


CURVE_HEADER = ["budget", "MACs", "parameters", "latency", "file", "top-1", "divergence"]


def to_svg(curve: Curve) -> str:
    """The curve of accuracy, or without labels of divergence, against the budget."""
    percent = curve.worth == "top1"
    known = [(100 * p.budget, getattr(p, curve.worth)) for p in curve.points]
    dots = [(x, 100 * y if percent else y) for x, y in known if y is not None]
    across = _ticks([x for x, _ in dots] or [0, 100])
    up = _ticks([y for _, y in dots] + ([] if percent else [0.0]) or [0.0, 1.0])

    def place(x: float, y: float) -> tuple[float, float]:
        wide = (x - across[0]) / (across[-1] - across[0])
        high = (y - up[0]) / (up[-1] - up[0])
        return (
            LEFT + wide * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - high * (HEIGHT - TOP - BOTTOM),
        )

    what = "top-1, %" if percent else "divergence from the original"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(WIDTH / 2, 22, curve.model, size=15),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, f"budget, % of the {curve.kind}"),
        _text(20, (TOP + HEIGHT - BOTTOM) / 2, what, turned=True),
    ]
    for x in across:
        at, _ = place(x, up[0])
        parts.append(_line((at, TOP), (at, HEIGHT - BOTTOM)))
        parts.append(_text(at, HEIGHT - BOTTOM + 20, f"{x:g}"))
    for y in up:
        _, at = place(across[0], y)
        parts.append(_line((LEFT, at), (WIDTH - RIGHT, at)))
        parts.append(_text(LEFT - 8, at + 4, f"{y:.4g}", anchor="end"))
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*dot) for dot in sorted(dots)))
    parts.append(f'<polyline points="{line}" fill="none" stroke="#1f5fa8" stroke-width="2"/>')
    for x, y in dots:
        px, py = place(x, y)
        label = f"{x:g} %: {y:.4g}"
        parts.append(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="#1f5fa8"><title>{label}</title>'
            "</circle>"
        )
    return "\n".join([*parts, "</svg>", ""])


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers, evenly spaced, around all values."""
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    step = 10.0**-6
    while (high - low) / step > 8:
        for factor in (1, 2, 5, 10):
            if (high - low) / (factor * step) <= 8:
                step *= factor
                break
        else:
            step *= 10
    first = int(low // step)
    count = int(-(-(high - first * step) // step))
    return [round((first + i) * step, 9) for i in range(max(count, 1) + 1)]


def _line(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _text(
    x: float, y: float, text: str, *, size: int = 13, anchor: str = "middle", turned: bool = False
) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"{turn}>'
        f"{escape(printable(text))}</text>"
    )
