"""OriginIR, the program text of Origin Quantum's machines: write a circuit with its numbers in place, and read it.

Written as pyqpanda3 itself writes it: angles with 8 decimals, controlled rotations as ``CONTROL`` blocks, S† and T† as
``DAGGER`` blocks (``SDG`` and ``TDG`` are refused by its parser). Written programs put qubit ``q[i]`` into bit
``c[i]``; read ones may put any qubit anywhere. Observables stand in comments (``// observable: Z0 Z1``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from qpeft.circuits.circuit import GATES, Circuit, Gate, Input, Observable, Weight
from qpeft.circuits.originir_gates import EXTENDED
from qpeft.circuits.program_text import (
    MAX_QUBITS,
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
_MEASURE = re.compile(r"MEASURE\s+(?:q\[(\d{1,6})\]\s*,\s*c\[(\d{1,6})\]|q\s*,\s*c)", re.ASCII)


class Program(NamedTuple):
    """What an OriginIR program says.

    Args:
        circuit: Its gates on all qubits of the register.
        bits: Qubit that is measured into each classical bit that is used: bit -> qubit.
    """

    circuit: Circuit
    bits: dict[int, int]


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
    """Read the circuit of an OriginIR program; :func:`read_program` also tells what it measures.

    Understood are the gates above and those of :mod:`qpeft.circuits.originir_gates`, CONTROL and DAGGER blocks (also
    nested), BARRIER, and MEASURE of qubits that no gate touches afterwards.

    Args:
        text: The program. Without observable comments, <Z_i> on every qubit is assumed.

    Raises:
        InputError: Anything that is not understood; the message names the line.
    """
    return read_program(text).circuit


def read_program(text: str) -> Program:
    """Read an OriginIR program with its measurements.

    Raises:
        InputError: Anything that is not understood; the message names the line.

    Example:
        >>> read_program("QINIT 6\\nCREG 1\\nX q[4]\\nMEASURE q[4],c[0]").bits
        {0: 4}
    """
    size = 0
    bits: dict[int, int] = {}
    n_bits = MAX_QUBITS  # where no CREG says otherwise
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
            match = re.fullmatch(r"CREG\s+(\d{1,6})", line, re.ASCII)
            if match is None:
                raise InputError(f"line {number}: {line[:60]!r} must read 'CREG <number of bits>'.")
            n_bits = int(match[1])
        elif word == "MEASURE":
            match = _MEASURE.fullmatch(line)
            if match is None:
                raise InputError(f"line {number}: {line[:60]!r} must read 'MEASURE q[i],c[i]'.")
            pairs = [(int(match[1]), int(match[2]))] if match[1] else [(i, i) for i in range(size)]
            if max(qubit for qubit, _ in pairs) >= size or max(bit for _, bit in pairs) >= n_bits:
                raise InputError(f"line {number}: {line[:60]!r} is outside QINIT {size} and CREG {n_bits}.")
            bits.update((bit, qubit) for qubit, bit in pairs)
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
            gates = _parse_gates(line, number, size, controlled=any(frame[0] == "CONTROL" for frame in frames))
            if bits and not set(bits.values()).isdisjoint(wire for gate in gates for wire in gate.wires):
                raise InputError(f"line {number}: gate after a measurement; measure at the end only.")
            frames[-1][3].extend(gates)
    if not size:
        raise InputError(f"line {number}: the program ends without QINIT; start with 'QINIT <number of qubits>'.")
    if len(frames) > 1:
        raise InputError(f"line {frames[-1][1]}: {frames[-1][0]} is never closed; add END{frames[-1][0]}.")
    circuit = Circuit(size, tuple(frames[0][3]), tuple(observables) or None)  # type: ignore[arg-type]
    return Program(circuit, bits)


def _parse_gates(line: str, number: int, size: int, controlled: bool) -> list[Gate]:
    match = _STATEMENT.fullmatch(line)
    known = match is not None and (match[1] in GATES or (match[1].upper() in EXTENDED and not controlled))
    if match is None or not known or match[1] in _WRITTEN:
        names = " ".join([*(name for name in GATES if name not in _WRITTEN), *(() if controlled else EXTENDED)])
        raise InputError(f"line {number}: {line[:60]!r} is not understood; gates are {names} on q[i].")
    wires = tuple(int(wire) for wire in re.findall(r"\d+", match[2], re.ASCII))
    if max(wires) >= size:
        raise InputError(f"line {number}: q[{max(wires)}] is outside the {size} qubits of QINIT; enlarge QINIT.")
    try:
        if match[1] in GATES:
            return [Gate(match[1], wires, None if match[3] is None else parse_angle(match[3], number))]
        return _extended(match[1].upper(), wires, match[3], number)
    except InputError as error:
        raise error if str(error).startswith("line ") else InputError(f"line {number}: {error}") from error


def _extended(name: str, wires: tuple[int, ...], text: str | None, number: int) -> list[Gate]:
    """A gate that circuits do not know, as gates that they know."""
    n_wires, n_angles, build = EXTENDED[name]
    angles = [parse_angle(part, number) for part in text.split(",")] if text else []
    if (len(wires), len(angles)) != (n_wires, n_angles) or len(set(wires)) != n_wires:
        raise InputError(
            f"{name} takes {n_wires} different qubit(s) and {n_angles} angle(s) (got {len(wires)} and {len(angles)})."
        )
    return build(wires, [angle for angle in angles if isinstance(angle, float)])


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
