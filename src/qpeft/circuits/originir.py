"""OriginIR, the program text of Origin Quantum's machines: write a circuit with its numbers in place, and read it.

Written as pyqpanda3 itself writes it: angles with 8 decimals, controlled rotations as ``CONTROL`` blocks, S† and T† as
``DAGGER`` blocks (``SDG`` and ``TDG`` are refused by its parser). Bit ``c[i]`` receives qubit ``q[i]``. Observables
stand in comments (``// observable: Z0 Z1``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from qpeft.circuits.circuit import GATES, Circuit, Gate, Input, Observable, Weight
from qpeft.circuits.program_text import (
    measured_in_z,
    number_text,
    observable_comments,
    observable_of,
    parse_angle,
    register_size,
)
from qpeft.errors import InputError

_CONTROLLED = {"X": "CNOT", "Z": "CZ", "RX": "CRX", "RY": "CRY", "RZ": "CRZ"}
_INVERSE = {"S": "SDG", "SDG": "S", "T": "TDG", "TDG": "T"}
_WRITTEN = {"SDG": "S", "TDG": "T"}
_STATEMENT = re.compile(r"(\w+)\s+((?:q\[\d{1,6}\]\s*,?\s*)+)(?:\((.*)\))?", re.ASCII)


def to_originir(
    circuit: Circuit, inputs: Sequence[float] | None = None, weights: Sequence[float] | None = None
) -> str:
    """Write a circuit as an OriginIR program; the format knows no parameters, so every angle must be given.

    Args:
        circuit: What to write.
        inputs: ``(n_inputs,)`` radians.
        weights: ``(n_weights,)`` radians.

    Returns:
        The program. Every qubit is measured at the end if all observables consist of Z; other observables need a
        change of basis first, so then nothing is measured.

    Raises:
        InputError: Values missing, too many, or not finite.
    """
    circuit = circuit.bind(inputs, weights)
    if circuit.n_inputs or circuit.n_weights:
        raise InputError(
            f"OriginIR has no parameters, but {circuit.n_inputs} inputs and {circuit.n_weights} weights "
            f"have no value; pass inputs= and weights=."
        )
    lines = [f"QINIT {circuit.n_qubits}", f"CREG {circuit.n_qubits}", *observable_comments(circuit)]
    for gate in circuit.gates:
        wires = ",".join(f"q[{wire}]" for wire in gate.wires)
        if gate.name in ("CRX", "CRY", "CRZ"):
            control, target = gate.wires
            lines += [f"CONTROL q[{control}]", f"{gate.name[1:]} q[{target}],({_angle_text(gate)})", "ENDCONTROL"]
        elif gate.name in _WRITTEN:
            lines += ["DAGGER", f"{_WRITTEN[gate.name]} {wires}", "ENDDAGGER"]
        elif gate.angle is None:
            lines.append(f"{gate.name} {wires}")
        else:
            lines.append(f"{gate.name} {wires},({_angle_text(gate)})")
    if measured_in_z(circuit):
        lines += [f"MEASURE q[{wire}],c[{wire}]" for wire in range(circuit.n_qubits)]
    return "\n".join(lines) + "\n"


def _angle_text(gate: Gate) -> str:
    assert isinstance(gate.angle, float)
    return number_text(gate.angle)


def from_originir(text: str) -> Circuit:
    """Read an OriginIR program: the gates above, CONTROL and DAGGER blocks (also nested), BARRIER, final MEASURE.

    Args:
        text: The program. Without observable comments, <Z_i> on every qubit is assumed.

    Raises:
        InputError: Anything that is not understood; the message names the line.
    """
    size = 0
    measured = False
    observables: list[Observable] = []
    # One frame per open block: its word, the line that opened it, its control wire, its gates.
    frames: list[tuple[str, int, int, list[Gate]]] = [("", 0, -1, [])]
    number = 0
    for number, raw in enumerate(text.splitlines(), 1):
        found = observable_of(raw, number)
        if found is not None:
            observables.append(found)
        line = raw.split("//", 1)[0].strip()
        if not line:
            continue
        word = line.split(None, 1)[0]
        if word == "QINIT":
            match = re.fullmatch(r"QINIT\s+(\d+)", line, re.ASCII)
            if match is None or size:
                raise InputError(f"line {number}: {line[:60]!r} must be one 'QINIT <number of qubits>' at the top.")
            size = register_size(match[1], number)
        elif not size:
            raise InputError(
                f"line {number}: {line[:60]!r} stands before 'QINIT <number of qubits>'; put QINIT first."
            )
        elif word == "CREG":
            if not re.fullmatch(r"CREG\s+\d+", line, re.ASCII):
                raise InputError(f"line {number}: {line[:60]!r} must read 'CREG <number of bits>'.")
        elif word == "MEASURE":
            if not re.fullmatch(r"MEASURE\s+q(\[\d+\])?\s*,\s*c(\[\d+\])?", line, re.ASCII):
                raise InputError(f"line {number}: {line[:60]!r} must read 'MEASURE q[i],c[i]'.")
            measured = True
        elif word == "BARRIER":
            continue  # orders the gates in time, changes no expectation
        elif word == "CONTROL":
            match = re.fullmatch(r"CONTROL\s+q\[(\d{1,6})\]", line, re.ASCII)
            if match is None or int(match[1]) >= size:
                raise InputError(f"line {number}: {line[:60]!r} must name one control qubit below {size}.")
            frames.append(("CONTROL", number, int(match[1]), []))
        elif line == "DAGGER":
            frames.append(("DAGGER", number, -1, []))
        elif line in ("ENDCONTROL", "ENDDAGGER"):
            opened, _, control, gates = frames.pop() if len(frames) > 1 else ("", 0, -1, [])
            if line != f"END{opened}":
                raise InputError(f"line {number}: {line} closes no open block; add the opening line.")
            closed = _controlled(gates, control, number) if opened == "CONTROL" else [_inverse(g) for g in gates[::-1]]
            frames[-1][3].extend(closed)
        else:
            if measured:
                raise InputError(f"line {number}: gate after a measurement; measure at the end only.")
            frames[-1][3].append(_parse_gate(line, number, size))
    if not size:
        raise InputError(f"line {number}: the program ends without QINIT; start with 'QINIT <number of qubits>'.")
    if len(frames) > 1:
        raise InputError(f"line {frames[-1][1]}: {frames[-1][0]} is never closed; add END{frames[-1][0]}.")
    return Circuit(size, tuple(frames[0][3]), tuple(observables) or None)  # type: ignore[arg-type]


def _parse_gate(line: str, number: int, size: int) -> Gate:
    match = _STATEMENT.fullmatch(line)
    if match is None or match[1] not in GATES or match[1] in _WRITTEN:
        names = " ".join(name for name in GATES if name not in _WRITTEN)
        raise InputError(f"line {number}: {line[:60]!r} is not understood; gates are {names} on q[i].")
    wires = tuple(int(wire) for wire in re.findall(r"\d+", match[2], re.ASCII))
    angle = None if match[3] is None else parse_angle(match[3], number)
    try:
        gate = Gate(match[1], wires, angle)
    except InputError as error:
        raise InputError(f"line {number}: {error}") from error
    if max(wires) >= size:
        raise InputError(f"line {number}: q[{max(wires)}] is outside the {size} qubits of QINIT; enlarge QINIT.")
    return gate


def _controlled(gates: list[Gate], control: int, number: int) -> list[Gate]:
    closed = []
    for gate in gates:
        if gate.name not in _CONTROLLED or control in gate.wires:
            raise InputError(
                f"line {number}: {gate.name} on {gate.wires} cannot be controlled by q[{control}] here; "
                f"use X, Z, RX, RY or RZ on another qubit."
            )
        closed.append(Gate(_CONTROLLED[gate.name], (control, *gate.wires), gate.angle))
    return closed


def _inverse(gate: Gate) -> Gate:
    assert not isinstance(gate.angle, (Input, Weight))
    if gate.angle is not None:
        return replace(gate, angle=-gate.angle)
    return replace(gate, name=_INVERSE.get(gate.name, gate.name))
