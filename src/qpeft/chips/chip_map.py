"""Where the qubits of a chip are drawn, and a layout drawn as text.

Chips whose qubits are numbered row by row, so that all neighbours are q ± 1 and q ± c, are drawn as the grid that they
are. Others are drawn so that distances on paper d_ij follow distances along couplers D_ij, by majorising the stress

    Σ_ij (d_ij - D_ij)² / D_ij²    (Gansner, Koren, North, "Graph drawing by stress majorization", 2004),

from a regular start, so that the same chip always looks the same.
"""

from __future__ import annotations

import numpy
from numpy.typing import NDArray

from qpeft.chips.layout import Layout
from qpeft.chips.snapshot import ChipSnapshot


def grid_columns(snapshot: ChipSnapshot) -> int | None:
    """Columns of a chip that is a grid numbered row by row, or ``None`` where it is none."""
    pairs = [coupler.qubits for coupler in snapshot.couplers]
    steps = {b - a for a, b in pairs} - {1} or {len(snapshot.qubits)}  # a single row
    if len(steps) != 1:
        return None
    columns = steps.pop()
    crosses_an_edge = any(b - a == 1 and b % columns == 0 for a, b in pairs)
    return None if crosses_an_edge else columns


def distances(snapshot: ChipSnapshot) -> NDArray[numpy.float64]:
    """Couplers on the shortest way between any two qubits, ``(n_qubits, n_qubits)``.

    Dead couplers and unavailable qubits count: what is near on the chip is near, whether it works or not. Qubits that
    nothing joins are infinitely far apart.
    """
    n = len(snapshot.qubits)
    distance = numpy.full((n, n), numpy.inf)
    numpy.fill_diagonal(distance, 0)
    for coupler in snapshot.couplers:
        a, b = coupler.qubits
        distance[a, b] = distance[b, a] = 1
    for middle in range(n):  # Floyd and Warshall
        distance = numpy.minimum(distance, distance[:, [middle]] + distance[[middle], :])
    return distance


def positions(snapshot: ChipSnapshot) -> dict[int, tuple[float, float]]:
    """Where each qubit is drawn, ``(x, y)`` with y downwards; neighbours are about 1 apart."""
    columns = grid_columns(snapshot)
    if columns is not None:
        return {q.index: (float(q.index % columns), float(q.index // columns)) for q in snapshot.qubits}
    spots = _spread(distances(snapshot))
    return {qubit: (float(x), float(y)) for qubit, (x, y) in enumerate(spots)}


def _spread(distance: NDArray[numpy.float64]) -> NDArray[numpy.float64]:
    """Points of the plane whose distances follow the given ones."""
    n = len(distance)
    if n == 1:
        return numpy.zeros((1, 2))
    distance = numpy.where(numpy.isfinite(distance), distance, 2 + distance[numpy.isfinite(distance)].max())
    # start: the two longest axes of classical scaling
    centred = numpy.eye(n) - 1 / n
    values, vectors = numpy.linalg.eigh(-0.5 * centred @ distance**2 @ centred)
    points = vectors[:, -2:] * numpy.sqrt(values[-2:].clip(min=1e-6))  # (n, 2)
    weight = 1 / numpy.where(distance > 0, distance, 1) ** 2
    numpy.fill_diagonal(weight, 0)
    solve = numpy.linalg.pinv(numpy.diag(weight.sum(1)) - weight)
    for _ in range(200):
        apart = numpy.linalg.norm(points[:, None] - points[None], axis=-1)
        pull = weight * distance / numpy.where(apart > 1e-9, apart, numpy.inf)
        points = solve @ (numpy.diag(pull.sum(1)) - pull) @ points
    points = points[:, ::-1]  # the longer side across
    return points - points.min(axis=0)


def used_couplers(layout: Layout) -> dict[tuple[int, int], int]:
    """Couplers on which some block has a CZ, smaller qubit first, and the block."""
    used = {}
    for block, template in enumerate(layout.templates):
        for gate in template.circuit.gates:
            if len(gate.wires) == 2:
                a, b = sorted(template.qubits[wire] for wire in gate.wires)
                used[a, b] = block
    return used


def draw_map(layout: Layout, snapshot: ChipSnapshot) -> str:
    """Draw the chip as text.

    A number is the block that a qubit belongs to, ``·`` an idle qubit and ``×`` one that cannot be used; double lines
    are couplers that a block uses, thin lines others that work. Dead couplers are left out. Rows are labelled with
    their first qubit. On a chip that is no grid couplers are not drawn.
    """
    owner = {qubit: block + 1 for block, template in enumerate(layout.templates) for qubit in template.qubits}
    live = set(snapshot.live_qubits)
    marks = {q.index: str(owner.get(q.index, "·" if q.index in live else "×")) for q in snapshot.qubits}
    columns = grid_columns(snapshot)
    if columns is None:
        return _draw_points(positions(snapshot), marks)

    lines: dict[tuple[int, int], str] = {}
    for coupler in snapshot.live_couplers:
        a, b = coupler.qubits
        lines[a, b] = "─" if b - a == 1 else "│"
    for a, b in used_couplers(layout):
        lines[a, b] = "═" if b - a == 1 else "║"
    width = max(map(len, marks.values()))
    margin = len(f"q{snapshot.qubits[-1].index}")
    drawn = []
    for first in range(0, len(marks), columns):
        row = [qubit for qubit in range(first, first + columns) if qubit in marks]
        across = "".join(f" {marks[q]:>{width}} {2 * lines.get((q, q + 1), ' ')}" for q in row)
        down = "".join(f" {lines.get((q, q + columns), ' '):>{width}}   " for q in row)
        drawn += [f"{f'q{first}':>{margin}} {across}".rstrip(), f"{'':>{margin}} {down}".rstrip()]
    return "\n".join(drawn).rstrip()


def _draw_points(spots: dict[int, tuple[float, float]], marks: dict[int, str]) -> str:
    """Marks at their places; those that would cover each other move on to the right."""
    canvas: dict[int, dict[int, str]] = {}
    for qubit, (x, y) in sorted(spots.items(), key=lambda item: (item[1][1], item[1][0])):
        row = canvas.setdefault(round(1.5 * y), {})
        column = round(4 * x)
        while any(abs(column - other) < 3 for other in row):
            column += 1
        row[column] = marks[qubit]
    drawn = []
    for line in range(max(canvas) + 1):
        text = ""
        for column, mark in sorted(canvas.get(line, {}).items()):
            text = text.ljust(column) + mark
        drawn.append(text)
    return "\n".join(drawn)
