"""OpenQASM 3: write a circuit, symbolic or with numbers in place, and read back what was written.

The subset: one qubit register, one bit register, the gates of ``stdgates.inc`` that
:data:`~qpeft.circuits.circuit.GATES` names, ``input float`` parameters ``x0, x1, ...`` (inputs) and ``w0, w1, ...``
(weights), measurements at the end. Observables stand in comments (``// observable: Z0 Z1``), because the language has
no statement for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from qpeft.circuits.circuit import GATES, Angle, Circuit, Gate, Input, Observable
from qpeft.circuits.program_text import (
    measured_in_z,
    number_text,
    observable_comments,
    observable_of,
    parse_angle,
    register_size,
)
from qpeft.errors import InputError

_NAMES = {**{name: name.lower() for name in GATES}, "CNOT": "cx"}
_KINDS = {**{text: name for name, text in _NAMES.items()}, "CX": "CNOT", "cnot": "CNOT"}
_GATE = re.compile(r"([A-Za-z_]\w*)\s*(?:\((.*)\))?\s*((?:\w+\s*\[\s*\d+\s*\]\s*,?\s*)+)", re.ASCII)


def to_openqasm(
    circuit: Circuit, inputs: Sequence[float] | None = None, weights: Sequence[float] | None = None
) -> str:
    """Write a circuit as an OpenQASM 3 program; angles get 8 decimals.

    Args:
        circuit: What to write.
        inputs: ``(n_inputs,)`` radians to put in place; ``None`` leaves ``input float[64] x0; ...``.
        weights: ``(n_weights,)`` radians to put in place; ``None`` leaves ``input float[64] w0; ...``.

    Returns:
        The program. Every qubit is measured at the end if all observables consist of Z; other observables need a
        change of basis first, so then nothing is measured.

    Raises:
        InputError: Wrong number of values, or one that is not finite.
    """
    circuit = circuit.bind(inputs, weights)
    lines = ["OPENQASM 3.0;", 'include "stdgates.inc";', *observable_comments(circuit)]
    lines += [f"input float[64] x{i};" for i in range(circuit.n_inputs)]
    lines += [f"input float[64] w{k};" for k in range(circuit.n_weights)]
    lines += [f"qubit[{circuit.n_qubits}] q;", f"bit[{circuit.n_qubits}] c;"]
    for gate in circuit.gates:
        angle = "" if gate.angle is None else f"({_angle_text(gate.angle)})"
        lines.append(f"{_NAMES[gate.name]}{angle} {', '.join(f'q[{wire}]' for wire in gate.wires)};")
    if measured_in_z(circuit):
        lines.append("c = measure q;")
    return "\n".join(lines) + "\n"


def _angle_text(angle: Angle) -> str:
    if isinstance(angle, float):
        return number_text(angle)
    assert angle is not None
    name = f"{'x' if isinstance(angle, Input) else 'w'}{angle.index}"
    return name if angle.scale == 1.0 else f"{number_text(angle.scale)}*{name}"


def from_openqasm(text: str) -> Circuit:
    """Read an OpenQASM 3 program of the subset above.

    Args:
        text: The program. Without observable comments, <Z_i> on every qubit is assumed.

    Raises:
        InputError: Anything that is not understood; the message names the line.
    """
    observables: list[Observable] = []
    for number, line in enumerate(text.splitlines(), 1):
        found = observable_of(line, number)
        if found is not None:
            observables.append(found)
    size = 0
    register = ""
    measured = False
    symbols: set[str] = set()
    gates: list[Gate] = []
    for number, statement in _statements(text):
        if re.match(r"(OPENQASM|include)\b", statement):
            continue
        if match := re.fullmatch(r"input\s+(?:float|angle)(?:\s*\[\s*\d+\s*\])?\s+(\w+)", statement, re.ASCII):
            if not re.fullmatch(r"[xw]\d{1,6}", match[1], re.ASCII):
                raise InputError(f"line {number}: parameter {match[1]!r} must be called x0, x1, ... or w0, w1, ....")
            symbols.add(match[1])
        elif match := re.fullmatch(r"qubit\s*\[\s*(\d+)\s*\]\s*(\w+)", statement, re.ASCII):
            if size:
                raise InputError(f"line {number}: second qubit register {match[2]!r}; use one register.")
            size, register = register_size(match[1], number), match[2]
        elif re.fullmatch(r"bit\s*\[\s*\d+\s*\]\s*\w+", statement, re.ASCII):
            continue
        elif re.fullmatch(r"\w+(\s*\[\s*\d+\s*\])?\s*=\s*measure\s+\w+(\s*\[\s*\d+\s*\])?", statement, re.ASCII):
            measured = True
        elif match := _GATE.fullmatch(statement):
            if measured:
                raise InputError(f"line {number}: gate after a measurement; measure at the end only.")
            if match[1] not in _KINDS:
                raise InputError(f"line {number}: unknown gate {match[1]!r}; known are {' '.join(sorted(_KINDS))}.")
            operands = re.findall(r"(\w+)\s*\[\s*(\d{1,6})\s*\]", match[3], re.ASCII)
            for name, _ in operands:
                if not register or name != register:
                    raise InputError(
                        f"line {number}: qubit register {name!r} is not declared; declare 'qubit[n] {name};'."
                    )
            angle = None if match[2] is None else parse_angle(match[2], number, frozenset(symbols))
            gates.append(_located(number, size, Gate, _KINDS[match[1]], tuple(int(i) for _, i in operands), angle))
        else:
            raise InputError(
                f"line {number}: {statement[:60]!r} is not understood; see the subset in the documentation."
            )
    if not size:
        raise InputError(
            f"line {len(text.splitlines())}: the program ends without a qubit register; add 'qubit[n] q;'."
        )
    return Circuit(size, tuple(gates), tuple(observables) or None)  # type: ignore[arg-type]


def _located(number: int, size: int, make: type[Gate], name: str, wires: tuple[int, ...], angle: Angle) -> Gate:
    try:
        gate = make(name, wires, angle)
    except InputError as error:
        raise InputError(f"line {number}: {error}") from error
    if max(wires) >= size:
        raise InputError(
            f"line {number}: q[{max(wires)}] is outside the register of {size} qubits; enlarge the register."
        )
    return gate


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Split into statements, each with the line on which it starts; comments are dropped."""
    started, parts = 0, []
    for number, line in enumerate(text.splitlines(), 1):
        rest = line.split("//", 1)[0]
        while rest:
            piece, semicolon, rest = rest.partition(";")
            if piece.strip():
                started = started or number
                parts.append(piece.strip())
            if semicolon:
                if parts:
                    yield started, " ".join(parts)
                started, parts = 0, []
    if parts:
        raise InputError(f"line {started}: {' '.join(parts)[:60]!r} has no semicolon at its end; add one.")
