"""Places for a circuit on a chip: connected sets of working qubits, with the fidelity to be expected there.

A compiled circuit speaks of wires, not of qubits, so it fits every place whose couplers form the same graph. A chip
has hundreds of places but few graphs (three for four qubits on a square grid: path, star and square), so the circuit
is compiled once for each graph, and then laid onto every place in the way that loses least:

    ln F(place) = Σ_CZ ln F_cz(u, v) + Σ_pulses ln F_1(q) + Σ_waits ln F_wait(q, t) + Σ_measured ln F_readout(q).

Where the circuit's own graph fits, no CZ is spent on moving qubits; a ring on a path costs some. Compiling a circuit
ahead for many places and choosing later: FLAMENCO, arXiv 2601.01158.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy
from numpy.typing import NDArray

from qpeft.chips.compiler import compile_circuit, live_graph
from qpeft.chips.metrics import metrics
from qpeft.chips.schedule import schedule
from qpeft.chips.shapes import Shape, connected_sets, shape_of, vertices, ways_onto
from qpeft.chips.snapshot import ChipSnapshot
from qpeft.chips.template import NativeTemplate
from qpeft.circuits import Circuit
from qpeft.errors import InputError

LIMIT = 20_000
"""About how many places are looked at."""
MAX_SHAPES = 64
"""How many graphs the circuit is compiled for; rarer ones are left out."""
LARGE = 8
"""Above so many qubits every place has a graph of its own and compiling takes long: a tenth and a quarter of both."""
MAX_WAYS = 12
"""In how many ways a graph is laid onto each place; only very symmetric ones have more."""


@dataclass(frozen=True)
class Region:
    """A place.

    Args:
        template: The circuit compiled for it.
        score: Natural logarithm of the fidelity to be expected there.
    """

    template: NativeTemplate
    score: float


def find_regions(circuit: Circuit, snapshot: ChipSnapshot) -> list[Region]:
    """All places where a circuit can stand, one for each set of qubits, best first.

    Args:
        circuit: What is to run.
        snapshot: The chip.

    Raises:
        InputError: The circuit has more qubits than any connected working part of the chip.
    """
    neighbours = live_graph(snapshot)
    size = circuit.n_qubits
    if size > snapshot.largest_part():  # beforehand: looking for sets that are not there takes for ever
        raise InputError(
            f"the circuit has {size} qubits, but the largest connected working part of {snapshot.name} has "
            f"{snapshot.largest_part()}; use fewer qubits or another chip."
        )
    sets = connected_sets(neighbours, size, LIMIT if size <= LARGE else LIMIT // 10)
    found = []
    for laid in _by_shape(sets, neighbours):
        owner, qubits = laid[:, 0], laid[:, 1:]  # (n_ways,), (n_ways, n_wires)
        template = compile_circuit(circuit, snapshot, tuple(map(int, qubits[0])))
        scores = _log_fidelities(template.circuit, qubits, snapshot)
        order = numpy.lexsort((-scores, owner))
        best = order[numpy.unique(owner[order], return_index=True)[1]]  # the best way for each set
        found += [Region(replace(template, qubits=tuple(map(int, qubits[i]))), float(scores[i])) for i in best]
    return sorted(found, key=lambda region: (-region.score, region.template.qubits))


def refined(circuit: Circuit, snapshot: ChipSnapshot, region: Region) -> Region:
    """A place with the circuit compiled for it alone: among equally short circuits the one that suits it best."""
    template = compile_circuit(circuit, snapshot, region.template.qubits)
    better = Region(template, math.log(metrics(template, snapshot).expected_fidelity))
    return max(region, better, key=lambda place: place.score)


def _by_shape(sets: list[int], neighbours: Mapping[int, int]) -> list[NDArray[numpy.int64]]:
    """Sets that form the same graph, laid alike.

    Returns:
        For every graph an array ``(n_ways, 1 + size)``: number of the set, then its qubits in the order of the graph's
        vertices; sets with symmetries have several rows.
    """
    shapes: list[Shape] = []
    known: dict[Shape, tuple[int, list[tuple[int, ...]]]] = {}
    laid: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    for number, mask in enumerate(sets):
        members = vertices(mask)
        pattern = shape_of(members, neighbours)
        if pattern not in known:
            for kind, shape in enumerate(shapes):
                if ways := ways_onto(shape, pattern, MAX_WAYS):
                    known[pattern] = kind, ways
                    break
            else:
                shapes.append(pattern)
                known[pattern] = len(shapes) - 1, ways_onto(pattern, pattern, MAX_WAYS)
        kind, ways = known[pattern]
        laid[kind] += [(number, *(members[spot] for spot in way)) for way in ways]
    most = MAX_SHAPES if sets[0].bit_count() <= LARGE else MAX_SHAPES // 4
    common = sorted(laid, key=lambda kind: -len(laid[kind]))[:most]
    return [numpy.array(laid[kind]) for kind in common]


def _log_fidelities(native: Circuit, qubits: NDArray[numpy.int64], snapshot: ChipSnapshot) -> NDArray[numpy.float64]:
    """Logarithm of the expected fidelity of a native circuit on many places at once.

    Args:
        native: A template's circuit.
        qubits: The qubit that each wire stands on, ``(n_places, n_wires)``.
        snapshot: The chip.

    Returns:
        ``(n_places,)``
    """
    numbers = [(q.fidelity, 1 - (q.p10 + q.p01) / 2, q.t1_us, q.t2_us) for q in snapshot.qubits]
    with numpy.errstate(divide="ignore", invalid="ignore"):  # what cannot be used may have any numbers
        pulse, readout = numpy.log(numpy.array(numbers)[:, :2].T)
    t1, t2 = 1000 * numpy.array(numbers)[:, 2:].T  # ns
    cz = numpy.full((len(numbers), len(numbers)), -numpy.inf)
    for coupler in snapshot.live_couplers:
        a, b = coupler.qubits
        cz[a, b] = cz[b, a] = math.log(coupler.fidelity)
    total = numpy.zeros(len(qubits))
    for gate in native.gates:
        if gate.name == "CZ":
            total += cz[qubits[:, gate.wires[0]], qubits[:, gate.wires[1]]]
        elif gate.name == "RX":
            total += pulse[qubits[:, gate.wires[0]]]
    for wait in schedule(native, snapshot.one_qubit_ns, snapshot.two_qubit_ns).waits:
        waiting = qubits[:, wait.wire]
        total += numpy.log(0.5 + numpy.exp(-wait.ns / t1[waiting]) / 6 + numpy.exp(-wait.ns / t2[waiting]) / 3)
    for wire in {wire for observable in native.observables for _, wire in observable.paulis}:
        total += readout[qubits[:, wire]].clip(min=-690)
    return total
