"""When the gates of a native circuit happen: everything as late as possible, so that all qubits end together.

Times count backwards from the measurement. Going through the gates from the last to the first, a gate ends when the
first of its wires is needed again, which leaves the others waiting after it. Nobody waits before their first gate: a
qubit in |0> has nothing to lose.
"""

from __future__ import annotations

from dataclasses import dataclass

from qpeft.circuits import Circuit
from qpeft.errors import InputError
from qpeft.simulators.noise import FRAME_GATES

PULSE = "RX"
ENTANGLER = "CZ"


@dataclass(frozen=True)
class Wait:
    """A wire that has nothing to do after a gate.

    Args:
        place: Position of the gate in the circuit, one of those that act on the wire.
        wire: The wire.
        ns: How long until its next gate begins, or the measurement, nanoseconds.
    """

    place: int
    wire: int
    ns: float


@dataclass(frozen=True)
class Schedule:
    """Times of a circuit.

    Args:
        spans: For every gate when it begins and ends, in nanoseconds before the measurement: ``begin >= end >= 0``.
        waits: Wires that wait, in the order of the gates they wait after.
        ns: Duration of the whole.
    """

    spans: tuple[tuple[float, float], ...]
    waits: tuple[Wait, ...]
    ns: float


def schedule(circuit: Circuit, one_qubit_ns: float, two_qubit_ns: float) -> Schedule:
    """Schedule a native circuit as late as possible.

    Args:
        circuit: RX (pulses), CZ, and gates that only move a frame (RZ and its kind).
        one_qubit_ns: Duration of a pulse.
        two_qubit_ns: Duration of CZ.

    Raises:
        InputError: A gate that is not native.

    Example:
        >>> from qpeft.circuits import Gate
        >>> circuit = Circuit(2, (Gate("RX", 0, 1.5), Gate("CZ", (0, 1)), Gate("RX", 1, 1.5)))
        >>> schedule(circuit, 30.0, 40.0)
        Schedule(spans=((100.0, 70.0), (70.0, 30.0), (30.0, 0.0)), waits=(Wait(place=1, wire=0, ns=30.0),), ns=100.0)
    """
    durations = {PULSE: one_qubit_ns, ENTANGLER: two_qubit_ns, **dict.fromkeys(FRAME_GATES, 0.0)}
    needed = [0.0] * circuit.n_qubits  # when each wire is needed again
    spans: list[tuple[float, float]] = []
    waits: list[Wait] = []
    for place, gate in reversed(list(enumerate(circuit.gates))):
        if gate.name not in durations:
            raise InputError(
                f"gate {place} is {gate.name}, which no chip knows; compile the circuit to RX pulses, RZ and CZ."
            )
        end = max(needed[wire] for wire in gate.wires)
        waits += [Wait(place, wire, end - needed[wire]) for wire in gate.wires if needed[wire] < end]
        begin = end + durations[gate.name]
        spans.append((begin, end))
        for wire in gate.wires:
            needed[wire] = begin
    return Schedule(tuple(spans[::-1]), tuple(waits[::-1]), max(needed))
