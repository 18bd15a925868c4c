"""Compile a circuit for a place of a chip: lower, route, write native gates, and lay the result on the best qubits.

Routing looks at the shape of the place alone, so it is done once for all places of a chip that look alike; fidelities
decide which way round the result is laid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from qpeft.chips.emission import Native, emit
from qpeft.chips.lowering import Lowered, lower
from qpeft.chips.routing import routes
from qpeft.chips.schedule import schedule
from qpeft.chips.shapes import Shape, components, shape_of, vertices, ways_onto
from qpeft.chips.snapshot import ChipSnapshot
from qpeft.chips.template import NativeTemplate
from qpeft.circuits import Circuit, Observable
from qpeft.errors import InputError


def compile_circuit(circuit: Circuit, snapshot: ChipSnapshot, qubits: Sequence[int]) -> NativeTemplate:
    """Compile a circuit for given qubits of a chip.

    Args:
        circuit: What to compile; its observables consist of Z alone.
        snapshot: The chip.
        qubits: Connected usable qubits, at least as many as the circuit has; not all need to be used. Wire ``i`` of
            the template stands on ``qubits[i]``.

    Returns:
        The template. Its circuit measures the observables of the original one, on the wires that carry them.

    Raises:
        InputError: Qubits that are not there, not usable, not connected or too few, or an observable with X or Y.

    Example:
        >>> from qpeft.chips import load_chip
        >>> from qpeft.circuits import qtha_block
        >>> template = compile_circuit(qtha_block(4, 1), load_chip("wukong-72-ideal"), (0, 1, 6, 7))
        >>> metrics(template, load_chip("wukong-72-ideal")).n_cz
        16
    """
    return _compile(circuit, snapshot, tuple(qubits))


@lru_cache(maxsize=4096)
def _compile(circuit: Circuit, snapshot: ChipSnapshot, qubits: tuple[int, ...]) -> NativeTemplate:
    shape = _checked_shape(circuit, snapshot, qubits)
    best, choice = -math.inf, None
    for native, way in _laid(circuit, shape):
        score = _log_fidelity(native, [qubits[spot] for spot in way], circuit, snapshot)
        if score > best:
            best, choice = score, (native, way)
    assert choice is not None  # every connected shape has a route
    native, way = choice
    gates = tuple(replace(gate, wires=tuple(way[place] for place in gate.wires)) for gate in native.gates)
    output = tuple(way[place] for place in native.output)
    observables = tuple(
        Observable(" ".join(f"Z{output[wire]}" for _, wire in observable.paulis)) for observable in circuit.observables
    )
    return NativeTemplate(Circuit(len(qubits), gates, observables), qubits, output, native.bind)


def _checked_shape(circuit: Circuit, snapshot: ChipSnapshot, qubits: tuple[int, ...]) -> Shape:
    live = set(snapshot.live_qubits)
    for qubit in qubits:
        if qubit not in live:
            raise InputError(f"qubit {qubit!r} of chip {snapshot.name!r} cannot be used; choose of its live_qubits.")
    if len(set(qubits)) != len(qubits):
        raise InputError(f"the qubits {qubits} repeat one; name each once.")
    if len(qubits) < circuit.n_qubits:
        raise InputError(f"the circuit has {circuit.n_qubits} qubits, the place {qubits} has fewer; add some.")
    shape = shape_of(qubits, _neighbours(snapshot))
    if len(components(dict(enumerate(shape)))) > 1:
        raise InputError(f"the qubits {qubits} are not connected by working couplers; choose others.")
    return shape


@lru_cache(maxsize=64)
def _neighbours(snapshot: ChipSnapshot) -> dict[int, int]:
    masks = dict.fromkeys(snapshot.live_qubits, 0)
    for coupler in snapshot.live_couplers:
        a, b = coupler.qubits
        masks[a] |= 1 << b
        masks[b] |= 1 << a
    return masks


_routed: dict[tuple[str, tuple[int, ...]], list[tuple[Shape, list[Native]]]] = {}


def _laid(circuit: Circuit, shape: Shape) -> list[tuple[Native, tuple[int, ...]]]:
    """Native circuits for a shape, and the ways to lay each of them: place -> vertex of the shape."""
    known = _routed.setdefault((circuit.key, tuple(sorted(map(int.bit_count, shape)))), [])
    for other, natives in known:
        ways = ways_onto(other, shape)
        if ways:
            return [(native, way) for native in natives for way in ways]
    natives = _natives(circuit, shape)
    known.append((shape, natives))
    return [(native, way) for native in natives for way in ways_onto(shape, shape)]


def _natives(circuit: Circuit, shape: Shape) -> list[Native]:
    lowered: Lowered = lower(circuit)
    edges = [(a, b) for b, mask in enumerate(shape) for a in vertices(mask) if a < b]
    natives = [
        emit(lowered, route, circuit.n_inputs, circuit.n_weights) for route in routes(lowered, len(shape), edges)
    ]
    least = min(native.n_cz for native in natives)
    return [native for native in natives if native.n_cz == least]


def _log_fidelity(native: Native, qubits: Sequence[int], circuit: Circuit, snapshot: ChipSnapshot) -> float:
    """Logarithm of the expected fidelity with place ``i`` on ``qubits[i]``."""
    chip = _numbers(snapshot)
    total = 0.0
    for gate in native.gates:
        if gate.name == "CZ":
            a, b = (qubits[place] for place in gate.wires)
            total += chip.couplers[min(a, b), max(a, b)]
        elif gate.name == "RX":
            total += chip.pulses[qubits[gate.wires[0]]]
    measured = {native.output[wire] for observable in circuit.observables for _, wire in observable.paulis}
    total += sum(chip.readouts[qubits[place]] for place in measured)
    waits = _waits(native, snapshot.one_qubit_ns, snapshot.two_qubit_ns, len(qubits))[1]
    return total + sum(chip.waiting(qubits[place], ns) for place, ns in waits)


@dataclass(frozen=True)
class _Numbers:
    """Logarithms of the fidelities of a chip."""

    pulses: dict[int, float]
    readouts: dict[int, float]
    couplers: dict[tuple[int, int], float]
    times: dict[int, tuple[float, float]]

    def waiting(self, qubit: int, ns: float) -> float:
        """Of waiting: the average fidelity of relaxation, 1/2 + exp(-t/T1)/6 + exp(-t/T2)/3."""
        t1, t2 = self.times[qubit]
        return math.log(0.5 + math.exp(-ns / 1000 / t1) / 6 + math.exp(-ns / 1000 / t2) / 3)


@lru_cache(maxsize=64)
def _numbers(snapshot: ChipSnapshot) -> _Numbers:
    qubits = [qubit for qubit in snapshot.qubits if qubit.available]
    return _Numbers(
        {q.index: math.log(q.fidelity) for q in qubits},
        {q.index: math.log(max(1e-300, 1 - (q.p10 + q.p01) / 2)) for q in qubits},
        {c.qubits: math.log(c.fidelity) for c in snapshot.live_couplers},
        {q.index: (q.t1_us, q.t2_us) for q in qubits},
    )


def _waits(native: Native, one_ns: float, two_ns: float, size: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    return _scheduled(Circuit(size, native.gates), one_ns, two_ns)


@lru_cache(maxsize=1024)
def _scheduled(circuit: Circuit, one_ns: float, two_ns: float) -> tuple[float, tuple[tuple[int, float], ...]]:
    times = schedule(circuit, one_ns, two_ns)
    return times.ns, tuple((wait.wire, wait.ns) for wait in times.waits)


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
    """What a template costs on a chip, before anything is run."""
    circuit = template.circuit
    native = Native(circuit.gates, tuple(range(circuit.n_qubits)), template.bind)  # type: ignore[arg-type]
    fidelity = math.exp(_log_fidelity(native, template.qubits, circuit, snapshot))
    duration = _scheduled(Circuit(circuit.n_qubits, circuit.gates), snapshot.one_qubit_ns, snapshot.two_qubit_ns)[0]
    return Metrics(native.n_cz, native.n_pulses, duration, fidelity)
