"""Compile a circuit for a place of a chip: lower, route, write native gates, and lay the result on the best qubits.

Routing looks at the shape of the place alone, so it is done once for all places of a chip that look alike; fidelities
decide which way round, and which of several equally short routes, the result is laid.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from qpeft.chips.emission import Native, emit, measured_on
from qpeft.chips.lowering import lower
from qpeft.chips.metrics import Cost, metrics
from qpeft.chips.search import routes
from qpeft.chips.shapes import Shape, components, shape_of, vertices, ways_onto
from qpeft.chips.snapshot import ChipSnapshot
from qpeft.chips.template import NativeTemplate
from qpeft.circuits import Circuit
from qpeft.errors import InputError

__all__ = ["compile_circuit", "metrics"]

_NUMBERINGS = 200


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
        >>> sum(gate.name == "CZ" for gate in template.circuit.gates)
        10
    """
    try:
        numbers = tuple(map(operator.index, qubits))
    except TypeError as error:
        raise InputError(f"the qubits {qubits!r} must be whole numbers; name qubits of the chip.") from error
    return _compile(circuit, snapshot, numbers)


@lru_cache(maxsize=4096)
def _compile(circuit: Circuit, snapshot: ChipSnapshot, qubits: tuple[int, ...]) -> NativeTemplate:
    shape = _checked_shape(circuit, snapshot, qubits)
    best, choice = -math.inf, None
    for native, way in _laid(circuit, shape):
        cost = _cost(native, snapshot.one_qubit_ns, snapshot.two_qubit_ns)
        score = cost.log_fidelity([qubits[spot] for spot in way], snapshot)
        if score > best:
            best, choice = score, (native, way)
    assert choice is not None  # every connected shape has a route
    native, way = choice
    gates = tuple(replace(gate, wires=tuple(way[place] for place in gate.wires)) for gate in native.circuit.gates)
    output = tuple(way[place] for place in native.output)
    return NativeTemplate(Circuit(len(qubits), gates, measured_on(circuit, output)), qubits, output, native.bind)


def _checked_shape(circuit: Circuit, snapshot: ChipSnapshot, qubits: tuple[int, ...]) -> Shape:
    live = set(snapshot.live_qubits)
    for qubit in qubits:
        if qubit not in live:
            raise InputError(f"qubit {qubit!r} of chip {snapshot.name!r} cannot be used; choose of its live_qubits.")
    if len(set(qubits)) != len(qubits):
        raise InputError(f"the qubits {qubits} repeat one; name each once.")
    if len(qubits) < circuit.n_qubits:
        raise InputError(f"the circuit has {circuit.n_qubits} qubits, the place {qubits} has fewer; add some.")
    shape = shape_of(qubits, live_graph(snapshot))
    if len(components(dict(enumerate(shape)))) > 1:
        raise InputError(f"the qubits {qubits} are not connected by working couplers; choose others.")
    return shape


@lru_cache(maxsize=64)
def live_graph(snapshot: ChipSnapshot) -> Mapping[int, int]:
    """Of every usable qubit the mask of the qubits that a working coupler joins it to."""
    masks = dict.fromkeys(snapshot.live_qubits, 0)
    for coupler in snapshot.live_couplers:
        a, b = coupler.qubits
        masks[a] |= 1 << b
        masks[b] |= 1 << a
    return masks


def _laid(circuit: Circuit, shape: Shape) -> list[tuple[Native, tuple[int, ...]]]:
    """Native circuits for a shape, and the ways to lay each of them: place -> vertex of the shape."""
    standard = _standard(shape)
    ways = ways_onto(standard, shape)
    return [(native, way) for native in _natives(circuit, standard) for way in ways]


@lru_cache(maxsize=4096)
def _standard(shape: Shape) -> Shape:
    """The shape with its vertices numbered in a way that depends on its form alone, so that routes can be shared.

    Vertices are numbered one by one, each as close to the first ones as can be; numberings that are equally good go on
    side by side. Very symmetric shapes have so many that only some are kept, which makes no difference to them.
    """
    orders: list[tuple[int, ...]] = [()]
    for _ in shape:
        longer = [(*order, v) for order in orders for v in range(len(shape)) if v not in order]

        def rank(order: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
            mask = shape[order[-1]]
            return tuple(mask >> v & 1 for v in order[:-1]), mask.bit_count()

        best = max(map(rank, longer))
        orders = [order for order in longer if rank(order) == best][:_NUMBERINGS]
    order = orders[0]
    return shape_of(order, dict(enumerate(shape)))


@lru_cache(maxsize=1024)
def _natives(circuit: Circuit, shape: Shape) -> list[Native]:
    """Native circuits on the vertices of a shape, all with the fewest CZ gates that were found."""
    lowered = lower(circuit)
    edges = [(a, b) for b, mask in enumerate(shape) for a in vertices(mask) if a < b]
    found = routes(lowered, len(shape), edges)
    natives = [emit(circuit, lowered, route, len(shape)) for route in found]
    least = min(native.n_cz for native in natives)
    return [native for native in natives if native.n_cz == least]


@lru_cache(maxsize=1024)
def _cost(native: Native, one_qubit_ns: float, two_qubit_ns: float) -> Cost:
    return Cost.of(native.circuit, one_qubit_ns, two_qubit_ns)
