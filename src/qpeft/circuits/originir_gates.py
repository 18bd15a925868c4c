"""Gates that OriginIR knows and circuits do not, each written with gates that circuits know, up to a global phase.

With U3(θ, φ, λ) = RZ(φ) RY(θ) RZ(λ) and RPHI(θ, φ) = RZ(φ) RX(θ) RZ(-φ), as pyqpanda3 defines them. They cannot be
controlled here: what is a global phase of a gate is none of the controlled gate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from qpeft.circuits.circuit import Gate

_QUARTER = math.pi / 2

EXTENDED: dict[str, tuple[int, int, Callable[[Sequence[int], Sequence[float]], list[Gate]]]] = {
    "I": (1, 0, lambda q, a: []),
    "X1": (1, 0, lambda q, a: [Gate("RX", (q[0],), _QUARTER)]),
    "Y1": (1, 0, lambda q, a: [Gate("RY", (q[0],), _QUARTER)]),
    "Z1": (1, 0, lambda q, a: [Gate("RZ", (q[0],), _QUARTER)]),
    "ECHO": (1, 1, lambda q, a: []),
    "IDLE": (1, 1, lambda q, a: []),
    "U1": (1, 1, lambda q, a: [Gate("RZ", (q[0],), a[0])]),
    "P": (1, 1, lambda q, a: [Gate("RZ", (q[0],), a[0])]),
    "RPHI": (1, 2, lambda q, a: _turned(q[0], a[0], a[1])),
    "U2": (1, 2, lambda q, a: _euler(q[0], _QUARTER, a[0], a[1])),
    "U3": (1, 3, lambda q, a: _euler(q[0], a[0], a[1], a[2])),
    "U4": (1, 4, lambda q, a: _euler(q[0], a[2], a[1], a[3])),
    "ISWAP": (2, 0, lambda q, a: _iswap(q[0], q[1])),
    "SQISWAP": (2, 0, lambda q, a: [*_between("H", q, -_QUARTER / 2), *_between("RX", q, -_QUARTER / 2)]),
    "CP": (2, 1, lambda q, a: _controlled_phase(q[0], q[1], a[0])),
    "CR": (2, 1, lambda q, a: _controlled_phase(q[0], q[1], a[0])),
    "RXX": (2, 1, lambda q, a: _between("H", q, a[0])),
    "RYY": (2, 1, lambda q, a: _between("RX", q, a[0])),
    "RZZ": (2, 1, lambda q, a: _between(None, q, a[0])),
    "RZX": (2, 1, lambda q, a: [Gate("H", (q[1],)), *_between(None, q, a[0]), Gate("H", (q[1],))]),
}
"""Name -> number of qubits, number of angles, and what the gate consists of, first gate first."""


def _turned(qubit: int, theta: float, phi: float) -> list[Gate]:
    return [Gate("RZ", (qubit,), -phi), Gate("RX", (qubit,), theta), Gate("RZ", (qubit,), phi)]


def _euler(qubit: int, theta: float, phi: float, lam: float) -> list[Gate]:
    return [Gate("RZ", (qubit,), lam), Gate("RY", (qubit,), theta), Gate("RZ", (qubit,), phi)]


def _iswap(a: int, b: int) -> list[Gate]:
    turned = [Gate("S", (a,)), Gate("S", (b,)), Gate("H", (a,))]
    return [*turned, Gate("CNOT", (a, b)), Gate("CNOT", (b, a)), Gate("H", (b,))]


def _controlled_phase(control: int, target: int, angle: float) -> list[Gate]:
    return [Gate("CRZ", (control, target), angle), Gate("RZ", (control,), angle / 2)]


def _between(change: str | None, qubits: Sequence[int], angle: float) -> list[Gate]:
    """exp(-i angle/2 P P): the change of basis from P to Z on both qubits, and back."""
    a, b = qubits
    quarter = _QUARTER if change == "RX" else None
    there = [Gate(change, (q,), quarter) for q in qubits] if change else []
    back = [Gate(change, (q,), None if quarter is None else -quarter) for q in qubits] if change else []
    return [*there, Gate("CNOT", (a, b)), Gate("RZ", (b,), angle), Gate("CNOT", (a, b)), *back]
