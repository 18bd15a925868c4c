"""Gates written as native ones on the very qubits they name, one by one, without moving or merging anything.

This is what a cloud does to a program whose mapping and optimisation are off. With ``[a, b]`` for "first a, then b",
and up to global phases:

    U3(θ, φ, λ) = [RZ(λ), RX(90°), RZ(θ), RX(-90°), RZ(φ)]        RY(θ) = U3(θ, 0, 0)        RX(θ) = U3(θ, -90°, 90°)
    H = [RZ(90°), RX(90°), RZ(90°)]        CNOT = [H, CZ, H]        CRP(θ) = [RP(θ/2), CNOT, RP(-θ/2), CNOT], P = Y, Z
"""

from __future__ import annotations

import math

from qpeft.circuits import Circuit, Gate

_QUARTER = math.pi / 2
_PHASES = {"Z": math.pi, "S": _QUARTER, "SDG": -_QUARTER, "T": _QUARTER / 2, "TDG": -_QUARTER / 2}
_SAME = 1e-7


def is_native(gate: Gate) -> bool:
    """Whether a chip knows a gate: RZ, CZ, or RX of a multiple of 90 degrees."""
    if gate.name == "RX":
        return isinstance(gate.angle, float) and abs(math.remainder(gate.angle, _QUARTER)) < _SAME
    return gate.name in ("RZ", "CZ")


def nativize(circuit: Circuit) -> Circuit:
    """A circuit of constant angles in native gates, with all observables as they were."""
    gates = tuple(native for gate in circuit.gates for native in _native(gate))
    return Circuit(circuit.n_qubits, gates, circuit.observables)


def _native(gate: Gate) -> list[Gate]:
    if is_native(gate):
        return [gate]
    name, wires = gate.name, gate.wires
    angle = gate.angle if isinstance(gate.angle, float) else 0.0
    target = wires[-1]
    if name in _PHASES:
        return [Gate("RZ", wires, _PHASES[name])]
    if name == "H":
        return [Gate("RZ", wires, _QUARTER), Gate("RX", wires, _QUARTER), Gate("RZ", wires, _QUARTER)]
    if name == "X":
        return [Gate("RX", wires, math.pi)]
    if name == "Y":
        return [Gate("RX", wires, math.pi), Gate("RZ", wires, math.pi)]
    if name == "RY":
        return _u3(target, angle, 0.0, 0.0)
    if name == "RX":
        return _u3(target, angle, -_QUARTER, _QUARTER)
    turn = Gate("H", (target,))
    if name == "CNOT":
        return _all(turn, Gate("CZ", wires), turn)
    flip = Gate("CNOT", wires)
    if name == "SWAP":
        return _all(flip, Gate("CNOT", wires[::-1]), flip)
    if name == "CRX":
        return _all(turn, Gate("CRZ", wires, angle), turn)
    half = name[1:]  # CRY, CRZ
    return _all(Gate(half, (target,), angle / 2), flip, Gate(half, (target,), -angle / 2), flip)


def _all(*gates: Gate) -> list[Gate]:
    return [native for gate in gates for native in _native(gate)]


def _u3(wire: int, theta: float, phi: float, lam: float) -> list[Gate]:
    pulse, back = Gate("RX", (wire,), _QUARTER), Gate("RX", (wire,), -_QUARTER)
    return [Gate("RZ", (wire,), lam), pulse, Gate("RZ", (wire,), theta), back, Gate("RZ", (wire,), phi)]
