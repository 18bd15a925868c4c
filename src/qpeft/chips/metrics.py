r"""What a compiled circuit costs on a chip, before anything is run.

The expected fidelity is the product of what every part keeps,

    F = Π_pulses F_q · Π_CZ F_ab · Π_waits (1/2 + exp(-t/T1)/6 + exp(-t/T2)/3) · Π_measured (1 - (p10 + p01)/2),

where the fidelity of a gate includes the relaxation during the gate, and a wire waits where the schedule, which puts
everything as late as possible, has nothing for it to do after its first gate.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from qpeft.chips.schedule import ENTANGLER, PULSE, schedule
from qpeft.chips.snapshot import ChipSnapshot
from qpeft.chips.template import NativeTemplate
from qpeft.circuits import Circuit


@dataclass(frozen=True)
class Metrics:
    """What a template costs on a chip.

    Args:
        n_cz: CZ gates.
        n_pulses: One-qubit pulses.
        duration_ns: From the first pulse to the measurement.
        expected_fidelity: Product of the fidelities of all gates, of waiting, and of reading the measured qubits.
    """

    n_cz: int
    n_pulses: int
    duration_ns: float
    expected_fidelity: float


def metrics(template: NativeTemplate, snapshot: ChipSnapshot) -> Metrics:
    """What a template costs on a chip.

    Example:
        >>> from qpeft.chips import ChipSnapshot, compile_circuit
        >>> from qpeft.circuits import Circuit, Gate
        >>> chip = ChipSnapshot.fully_connected(2, two_qubit_fidelity=0.96)
        >>> bell = compile_circuit(Circuit(2, (Gate("H", 0), Gate("CNOT", (0, 1)))), chip, (0, 1))
        >>> found = metrics(bell, chip)
        >>> found.n_cz, found.n_pulses, found.duration_ns, round(found.expected_fidelity, 6)
        (1, 3, 100.0, 0.96)
    """
    cost = Cost.of(template.circuit, snapshot.one_qubit_ns, snapshot.two_qubit_ns)
    fidelity = math.exp(cost.log_fidelity(template.qubits, snapshot))
    return Metrics(sum(cost.couplers.values()), sum(cost.pulses.values()), cost.ns, fidelity)


@dataclass(frozen=True, eq=False)
class Cost:
    """What a native circuit uses, wherever it is placed.

    Args:
        couplers: CZ gates on each pair of wires.
        pulses: Pulses on each wire.
        waits: Wires and how long they wait, nanoseconds.
        measured: Wires that observables ask for.
        ns: Duration.
    """

    couplers: Counter[tuple[int, int]]
    pulses: Counter[int]
    waits: tuple[tuple[int, float], ...]
    measured: tuple[int, ...]
    ns: float

    @classmethod
    def of(cls, circuit: Circuit, one_qubit_ns: float, two_qubit_ns: float) -> Cost:
        """Count the gates of a native circuit and schedule it."""
        times = schedule(circuit, one_qubit_ns, two_qubit_ns)
        pairs = [(gate.wires[0], gate.wires[1]) for gate in circuit.gates if gate.name == ENTANGLER]
        return cls(
            Counter(pairs),
            Counter(gate.wires[0] for gate in circuit.gates if gate.name == PULSE),
            tuple((wait.wire, wait.ns) for wait in times.waits),
            tuple(sorted({wire for observable in circuit.observables for _, wire in observable.paulis})),
            times.ns,
        )

    def log_fidelity(self, qubits: Sequence[int], snapshot: ChipSnapshot) -> float:
        """Logarithm of the expected fidelity with wire ``i`` on ``qubits[i]``."""
        chip = _logarithms(snapshot)
        total = 0.0
        for (a, b), count in self.couplers.items():
            p, q = qubits[a], qubits[b]
            total += count * chip.couplers[min(p, q), max(p, q)]
        for wire, count in self.pulses.items():
            total += count * chip.pulses[qubits[wire]]
        for wire, ns in self.waits:
            total += chip.waiting(qubits[wire], ns)
        return total + sum(chip.readouts[qubits[wire]] for wire in self.measured)


@dataclass(frozen=True)
class _Logarithms:
    """Logarithms of the fidelities of a chip's usable parts."""

    pulses: dict[int, float]
    readouts: dict[int, float]
    couplers: dict[tuple[int, int], float]
    times_ns: dict[int, tuple[float, float]]

    def waiting(self, qubit: int, ns: float) -> float:
        t1, t2 = self.times_ns[qubit]
        return math.log(0.5 + math.exp(-ns / t1) / 6 + math.exp(-ns / t2) / 3)


@lru_cache(maxsize=64)
def _logarithms(snapshot: ChipSnapshot) -> _Logarithms:
    qubits = [qubit for qubit in snapshot.qubits if qubit.available]
    return _Logarithms(
        {q.index: math.log(q.fidelity) for q in qubits},
        {q.index: math.log(max(1e-300, 1 - (q.p10 + q.p01) / 2)) for q in qubits},
        {c.qubits: math.log(c.fidelity) for c in snapshot.live_couplers},
        {q.index: (1000 * q.t1_us, 1000 * q.t2_us) for q in qubits},
    )
