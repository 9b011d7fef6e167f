"""Where the nodes of a drawn network go: in ranks from inputs to outputs.

Sugiyama, Tagawa and Toda, "Methods for Visual Understanding of Hierarchical System Structures",
1981, without dummy nodes: ranks by the longest path, order by the mean of neighbours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

WIDTH, HEIGHT = 150, 34
"""Of a node, in units of the drawing."""

GAP, RANK_GAP = 24, 26

SWEEPS = 4


@dataclasses.dataclass(frozen=True)
class GraphLayout:
    """The upper left corner of every node, the size of it all, and edges as SVG paths."""

    corners: list[tuple[float, float]]
    width: float
    height: float
    paths: list[tuple[int, int, str]]
    """Of each edge the nodes that it comes from and goes to, and its path."""


def lay_out(reads: Sequence[Sequence[int]]) -> GraphLayout:
    """Of nodes in an order in which each reads only earlier ones."""
    ranks: list[int] = []
    for sources in reads:
        ranks.append(1 + max((ranks[source] for source in sources), default=-1))
    rows: list[list[int]] = [[] for _ in range(max(ranks, default=-1) + 1)]
    for node, rank in enumerate(ranks):
        rows[rank].append(node)
    readers: list[list[int]] = [[] for _ in reads]
    for node, sources in enumerate(reads):
        for source in sources:
            readers[source].append(node)
    place = {node: float(index) for row in rows for index, node in enumerate(row)}
    for sweep in range(SWEEPS):
        neighbours = reads if sweep % 2 == 0 else readers
        for row in rows if sweep % 2 == 0 else reversed(rows):
            means = {
                node: sum(place[n] for n in neighbours[node]) / len(neighbours[node])
                if neighbours[node]
                else place[node]
                for node in row
            }
            row.sort(key=lambda node: means[node])
            middle = (len(row) - 1) / 2
            for index, node in enumerate(row):
                place[node] = index - middle
    widest = max((len(row) for row in rows), default=1)
    width = widest * (WIDTH + GAP) + GAP
    step = WIDTH + GAP
    corners: list[tuple[float, float]] = [
        (width / 2 + place[node] * step - WIDTH / 2, GAP + ranks[node] * (HEIGHT + RANK_GAP))
        for node in range(len(reads))
    ]
    paths = [
        (source, node, _path(corners[source], corners[node], ranks[node] - ranks[source]))
        for node, sources in enumerate(reads)
        for source in sources
    ]
    return GraphLayout(corners, width, GAP + len(rows) * (HEIGHT + RANK_GAP), paths)


def _path(start: tuple[float, float], end: tuple[float, float], ranks: int) -> str:
    """A curve; one over several ranks goes around what lies between."""
    x, y = start[0] + WIDTH / 2, start[1] + HEIGHT
    to_x, to_y = end[0] + WIDTH / 2, end[1]
    if ranks == 1:
        bend = (to_y - y) / 2
        first, second = f"{x:.0f} {y + bend:.0f}", f"{to_x:.0f} {to_y - bend:.0f}"
        return f"M{x:.0f} {y:.0f}C{first} {second} {to_x:.0f} {to_y:.0f}"
    side = max(x, to_x) + WIDTH / 2 + 14
    return (
        f"M{x:.0f} {y:.0f}C{side:.0f} {y + 20:.0f} {side:.0f} {y + 30:.0f} {side:.0f} {y + 40:.0f}"
        f"L{side:.0f} {to_y - 40:.0f}C{side:.0f} {to_y - 20:.0f} {to_x:.0f} {to_y - 24:.0f} "
        f"{to_x:.0f} {to_y:.0f}"
    )
