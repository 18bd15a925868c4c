"""Packed OriginIR: many small circuits side by side on one chip, as the text of one program.

Every block stands on the qubits of its template, in native gates: ``RX`` of multiples of 90 degrees, ``RZ``, ``CZ``.
A barrier over all qubits lets the blocks end together. Block ``j`` owns ``k_j`` classical bits of its own from
``o_j = k_0 + ... + k_(j-1)`` on, its last wire the lowest, so that

    index of a bit string of block j = (whole key >> o_j) mod 2**k_j,        wire 0 most significant.

The cloud says what it ran (``mappingQProg``). That it is what was sent is checked gate by gate and qubit by qubit,
whatever the gates are called: rotations about Z only move the frame of the pulses after them and commute with CZ, so
each qubit has a list of pulses, each with the frame in which it acts, and of CZ gates, each with its partner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from qpeft.chips import NativeTemplate
from qpeft.circuits import Input
from qpeft.circuits.originir import read_program
from qpeft.circuits.program_text import number_text
from qpeft.errors import InputError
from qpeft.qpu.protocol import Block, ProviderError, Submission

_QUARTER = math.pi / 2
_SAME = 1e-6  # radians; programs have 8 decimals


def packed_program(submission: Submission, circuit: Sequence[Block], size: int) -> str:
    """One circuit of a submission as OriginIR.

    Args:
        submission: Whose templates the blocks refer to.
        circuit: The blocks, on disjoint qubits.
        size: Qubits of the chip.

    Raises:
        InputError: Blocks share a qubit, a qubit is not on the chip, a gate is not native, angles are missing.
    """
    lines: list[str] = []
    measures: list[str] = []
    used: list[int] = []
    for block in circuit:
        template = submission.templates[block.template]
        k = len(template.qubits)
        if template.circuit.n_inputs != len(block.angles):
            raise InputError(
                f"a block has {len(block.angles)} angles for a template of {template.circuit.n_inputs}; "
                f"take them from NativeTemplate.angles."
            )
        for text, index, scale in _lines(template):
            lines.append(text if index is None else f"{text},({number_text(scale * block.angles[index])})")
        offset = len(used)
        measures += [f"MEASURE q[{q}],c[{offset + k - 1 - wire}]" for wire, q in enumerate(template.qubits)]
        used += template.qubits
    if len(set(used)) != len(used):
        raise InputError("two blocks of a circuit share a qubit; lay blocks out on disjoint qubits.")
    if not used or max(used) >= size:
        raise InputError(f"a circuit uses qubits up to {max(used, default='none')}, the chip has 0 to {size - 1}.")
    barrier = "BARRIER " + ",".join(f"q[{qubit}]" for qubit in sorted(used))
    return "\n".join([f"QINIT {max(used) + 1}", f"CREG {len(used)}", *lines, barrier, *measures]) + "\n"


@lru_cache(maxsize=4096)
def _lines(template: NativeTemplate) -> tuple[tuple[str, int | None, float], ...]:
    """Statements of a template: text, and for a free RZ the number of its angle with its factor."""
    lines: list[tuple[str, int | None, float]] = []
    for gate in template.circuit.gates:
        wires = ",".join(f"q[{template.qubits[wire]}]" for wire in gate.wires)
        if gate.name == "RZ" and isinstance(gate.angle, Input):
            lines.append((f"RZ {wires}", gate.angle.index, gate.angle.scale))
        elif gate.name == "CZ":
            lines.append((f"CZ {wires}", None, 1.0))
        elif gate.name in ("RX", "RZ") and isinstance(gate.angle, float):
            if gate.name == "RX" and abs(math.remainder(gate.angle, _QUARTER)) > _SAME:
                raise InputError(f"RX({gate.angle:g}) is not a pulse of the chip; use multiples of 90 degrees.")
            lines.append((f"{gate.name} {wires},({number_text(gate.angle)})", None, 1.0))
        else:
            raise InputError(f"{gate.name} is not native; the gates are RX of 90 degrees, RZ and CZ.")
    return tuple(lines)


def check_same(sent: str, ran: str, number: int) -> None:
    """Make sure that the cloud ran what it was sent.

    Args:
        sent: The program handed in.
        ran: The program that the answer names.
        number: Of the circuit, for the message.

    Raises:
        ProviderError: It ran another program, or one that cannot be read.
    """
    if sent.split() == ran.split():
        return
    try:
        same = _pulses(sent) == _pulses(ran)
    except InputError as error:
        raise ProviderError(
            f"circuit {number}: the program that the cloud says it ran cannot be read ({error}); "
            f"the answer is kept, but not used."
        ) from error
    if not same:
        raise ProviderError(
            f"circuit {number}: the cloud ran another program than it was sent (other qubits, gates, bits or order); "
            f"its counts would belong to other circuits, so they are kept but not used."
        )


class _Angle(float):
    """An angle that equals another one a few rounding errors away, or a full turn."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Angle) and abs(math.remainder(float(self) - float(other), math.tau)) < _SAME

    __hash__ = None  # type: ignore[assignment]  # near is not an equivalence


def _pulses(text: str) -> tuple[dict[int, list[tuple[object, ...]]], dict[int, int]]:
    """Of every qubit, its pulses and partners in order; and which qubit each bit reads."""
    circuit, bits = read_program(text)
    frame: dict[int, float] = {}
    events: dict[int, list[tuple[object, ...]]] = {}
    for gate in circuit.gates:
        first = gate.wires[0]
        before = frame.get(first, 0.0)
        if gate.name == "CZ":
            for qubit, other in (gate.wires, gate.wires[::-1]):
                events.setdefault(qubit, []).append(("CZ", other))
        elif gate.name == "RZ" and isinstance(gate.angle, float):
            frame[first] = before + gate.angle
        elif gate.name in ("RX", "RY") and isinstance(gate.angle, float):
            # RY is RX in a frame turned by 90 degrees, RX(-a) is RX(a) in one turned by 180 degrees
            angle = math.remainder(gate.angle, math.tau)
            turn = -_QUARTER if gate.name == "RY" else 0.0
            if angle < 0 and abs(angle) < math.pi - _SAME:
                turn += math.pi
            if abs(angle) > _SAME:
                events.setdefault(first, []).append(("pulse", _Angle(abs(angle)), _Angle(before + turn)))
        else:
            raise InputError(f"{gate.name} is not a native gate.")
    return events, bits
