"""Text drawings: one row per wire, controls as ``●``, SWAP ends as ``x``; gates that fit share a column."""

from __future__ import annotations

from qpeft.circuits.circuit import Angle, Circuit, Gate, Input


def draw(circuit: Circuit, max_width: int = 160) -> str:
    """Draw a circuit as text; inputs are written ``x0``, weights ``w0``, measured values ``<Z0>`` at the end.

    Args:
        circuit: What to draw.
        max_width: Longer drawings continue in further blocks below.
    """
    columns = _columns(circuit)
    labels = [f"q{wire}: " for wire in range(circuit.n_qubits)]
    margin = max(map(len, labels))
    blocks: list[str] = []
    rows = _empty_rows(circuit.n_qubits)
    for column in columns:
        drawn = _draw_column(column, circuit.n_qubits)
        if margin + len(rows[0]) + len(drawn[0]) > max_width and len(rows[0]) > 1:
            blocks.append(_join(rows, labels, margin))
            rows = _empty_rows(circuit.n_qubits)
        rows = [row + piece for row, piece in zip(rows, drawn, strict=True)]
    measured = {f"Z{wire}": wire for wire in range(circuit.n_qubits)}
    for observable in circuit.observables:
        if str(observable) in measured:
            rows[2 * measured[str(observable)]] += f" <{observable}>"
    blocks.append(_join(rows, labels, margin))
    others = [f"<{o}>" for o in circuit.observables if str(o) not in measured]
    if others:
        blocks.append("measured: " + ", ".join(others))
    return "\n\n".join(blocks)


def _columns(circuit: Circuit) -> list[list[Gate]]:
    """Put each gate into the earliest column in which no gate crosses its span."""
    columns: list[list[Gate]] = []
    next_free = [0] * circuit.n_qubits
    for gate in circuit.gates:
        span = range(min(gate.wires), max(gate.wires) + 1)
        place = max(next_free[wire] for wire in span)
        if place == len(columns):
            columns.append([])
        columns[place].append(gate)
        for wire in span:
            next_free[wire] = place + 1
    return columns


def _draw_column(gates: list[Gate], n_qubits: int) -> list[str]:
    cells = [""] * n_qubits
    linked = [False] * n_qubits  # a vertical line leaves this wire downwards
    for gate in gates:
        low, high = min(gate.wires), max(gate.wires)
        for wire in range(low, high):
            linked[wire] = True
        for wire in range(low + 1, high):
            cells[wire] = "┼"
        if gate.name == "SWAP":
            cells[low] = cells[high] = "x"
        elif len(gate.wires) == 2:
            cells[gate.wires[0]] = "●"
            name = {"CNOT": "X", "CZ": "Z"}.get(gate.name, gate.name[1:])
            cells[gate.wires[1]] = name + _angle_text(gate.angle)
        else:
            cells[low] = gate.name + _angle_text(gate.angle)
    width = max(map(len, cells))
    rows: list[str] = []
    for wire in range(n_qubits):
        rows.append("─" + _centre(cells[wire], width, "─"))
        if wire + 1 < n_qubits:
            rows.append(" " + _centre("│" if linked[wire] else "", width, " "))
    return rows


def _centre(text: str, width: int, fill: str) -> str:
    # One formula for cells and links, so that the lines meet whatever the parity of the widths.
    left = width // 2 - len(text) // 2
    return fill * left + text + fill * (width - left - len(text))


def _angle_text(angle: Angle) -> str:
    if angle is None:
        return ""
    if isinstance(angle, float):
        return f"({angle:.4g})"
    name = f"{'x' if isinstance(angle, Input) else 'w'}{angle.index}"
    return f"({name})" if angle.scale == 1.0 else f"({angle.scale:.4g}{name})"


def _empty_rows(n_qubits: int) -> list[str]:
    return [""] * (2 * n_qubits - 1)


def _join(rows: list[str], labels: list[str], margin: int) -> str:
    lines = []
    for place, row in enumerate(rows):
        wire, between = divmod(place, 2)
        tail = "" if between else "─"
        body, mark, observable = row.partition(" <") if not between else (row, "", "")
        lines.append((("" if between else labels[wire]).ljust(margin) + body + tail + mark + observable).rstrip())
    return "\n".join(lines)
