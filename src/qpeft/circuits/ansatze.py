"""Ansätze: functions that return a :class:`~qpeft.circuits.Circuit`, each with a ``shape()`` for its weights.

Weights are numbered in the order in which their gates stand in the circuit. Every ansatz encodes one input per qubit
as an RY angle in radians and measures <Z_i> on every qubit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, cast

from qpeft.circuits.circuit import Circuit, Gate, Input, Weight
from qpeft.errors import InputError

GateOrder = Literal["published", "older"]
Entanglement = Literal["ring", "none"]


class Ansatz(Protocol):
    """A function from sizes to a circuit, which also knows how many weights that circuit has."""

    shape: Callable[..., tuple[int, ...]]

    def __call__(self, n_qubits: int, n_layers: int, **options: str) -> Circuit: ...


class _Builder:
    """Collects gates and hands out the next weight."""

    def __init__(self, n_qubits: int) -> None:
        self.n_qubits = n_qubits
        self.gates: list[Gate] = []
        self.n_weights = 0

    def add(self, name: str, *wires: int) -> None:
        self.gates.append(Gate(name, wires))

    def weighted(self, name: str, *wires: int) -> None:
        self.gates.append(Gate(name, wires, Weight(self.n_weights)))
        self.n_weights += 1

    def encode(self) -> None:
        self.gates += [Gate("RY", (wire,), Input(wire)) for wire in range(self.n_qubits)]

    def rotate_all(self, *names: str) -> None:
        for wire in range(self.n_qubits):
            for name in names:
                self.weighted(name, wire)

    def crz_ring(self, step: int, controlled: bool = True) -> None:
        if self.n_qubits > 1:  # one qubit has no neighbour to be controlled by
            for wire in range(self.n_qubits):
                target = (wire + step) % self.n_qubits
                if controlled:
                    self.weighted("CRZ", wire, target)
                else:
                    self.weighted("RZ", target)

    def circuit(self) -> Circuit:
        return Circuit(self.n_qubits, tuple(self.gates))


def _check_sizes(n_qubits: int, n_layers: int) -> None:
    for name, value in (("n_qubits", n_qubits), ("n_layers", n_layers)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} must be a whole number of at least 1 (got {value!r}); choose {name} >= 1.")


def _with_shape(shape: Callable[[int, int], tuple[int, ...]]) -> Callable[[Callable[..., Circuit]], Ansatz]:
    def attach(build: Callable[..., Circuit]) -> Ansatz:
        build.shape = shape  # type: ignore[attr-defined]
        return cast(Ansatz, build)

    return attach


def _qtha_shape(n_qubits: int, n_layers: int) -> tuple[int, ...]:
    """Shape of the weights of :func:`qtha_block`: ``(4 n L,)``; ``(2 L,)`` for one qubit, which has no ring."""
    _check_sizes(n_qubits, n_layers)
    return ((2 if n_qubits == 1 else 4 * n_qubits) * n_layers,)


@_with_shape(_qtha_shape)
def qtha_block(
    n_qubits: int, n_layers: int, gate_order: GateOrder = "published", entanglement: Entanglement = "ring"
) -> Circuit:
    r"""The data-re-uploading circuit of QTHA.

    Each of the ``L`` layers acts on the state the one before left (there is no reset), and reads the inputs again::

        published:  U = Π_i RY(w⁴_i) · Π_i CRZ_{i→i-1}(w³_i) · Π_i RY(w²_i) · Π_i CRZ_{i→i+1}(w¹_i) · Π_i RY(x_i)
        older:      U = Π_i CRZ_{i→i-1}(w⁴_i) · Π_i RY(w³_i) · Π_i CRZ_{i→i+1}(w²_i) · Π_i RY(w¹_i) · Π_i RY(x_i)

    (rightmost factor first, indices modulo ``n``). In the older order the last ring commutes with every Z_i, so the
    ``n`` angles of the last layer's second ring have no effect and zero gradient. Two qubits have both rings on the
    same pair. One qubit has no ring: each layer is RY(x) and two RY, with 2 weights.

    Without entanglement every CRZ becomes an RZ of the same angle on its target: as many weights and layers of gates,
    and a product of one-qubit circuits, ``<Z_i>`` of which depends on ``x_i`` alone.

    Paper: "Quantum-Enhanced LLM Efficient Fine Tuning", arXiv 2503.12790.

    Args:
        n_qubits: Number of qubits and of inputs, at least 1.
        n_layers: Number of layers, at least 1.
        gate_order: ``"published"`` or ``"older"``.
        entanglement: ``"ring"``, or ``"none"`` for the control without it.

    Raises:
        InputError: A size below 1, an unknown gate order or entanglement.

    Example:
        >>> qtha_block.shape(n_qubits=4, n_layers=2)
        (32,)
        >>> print(qtha_block(n_qubits=3, n_layers=1).draw())
        q0: ─RY(x0)────●──────────RZ(w2)─RY(w3)────●───RZ(w7)─RY(w9)───────── <Z0>
                       │             │             │      │
        q1: ─RY(x1)─RZ(w0)────●──────┼───RY(w4)────┼──────●───RZ(w8)─RY(w10)─ <Z1>
                              │      │             │             │
        q2: ─RY(x2)────────RZ(w1)────●───RY(w5)─RZ(w6)───────────●───RY(w11)─ <Z2>
    """
    _check_sizes(n_qubits, n_layers)
    if gate_order not in ("published", "older"):
        raise InputError(f"gate_order must be 'published' or 'older' (got {gate_order!r}); choose one of the two.")
    if entanglement not in ("ring", "none"):
        raise InputError(f"entanglement must be 'ring' or 'none' (got {entanglement!r}); choose one of the two.")
    controlled = entanglement == "ring"
    build = _Builder(n_qubits)
    for _ in range(n_layers):
        build.encode()
        if gate_order == "older":
            build.rotate_all("RY")
        build.crz_ring(+1, controlled)
        build.rotate_all("RY")
        build.crz_ring(-1, controlled)
        if gate_order == "published":
            build.rotate_all("RY")
    return build.circuit()


def _ring_shape(n_qubits: int, n_layers: int) -> tuple[int, ...]:
    """Shape of the weights of :func:`rotation_cnot_ring`: ``(3 n L,)``."""
    _check_sizes(n_qubits, n_layers)
    return (3 * n_qubits * n_layers,)


@_with_shape(_ring_shape)
def rotation_cnot_ring(n_qubits: int, n_layers: int) -> Circuit:
    r"""Angle encoding once, then layers of RZ-RY-RZ on every qubit and a ring of CNOT gates.

    ::

        U = Π_l [ CNOT_{n-1→0} ··· CNOT_{1→2} CNOT_{0→1} · Π_i RZ(w_{i3}) RY(w_{i2}) RZ(w_{i1}) ] · Π_i RY(x_i)

    With one layer the ring turns each Z_i into a string of Z on a product state, so such a layer has no entanglement
    in what it returns. The last layer's trailing RZ angles commute with the measurement: zero gradient. One qubit has
    no ring; two qubits have CNOT gates both ways.

    Args:
        n_qubits: Number of qubits and of inputs, at least 1.
        n_layers: Number of layers, at least 1.

    Raises:
        InputError: A size below 1.

    Example:
        >>> rotation_cnot_ring.shape(n_qubits=4, n_layers=2)
        (24,)
        >>> print(rotation_cnot_ring(n_qubits=2, n_layers=1).draw())
        q0: ─RY(x0)─RZ(w0)─RY(w1)─RZ(w2)─●─X─ <Z0>
                                         │ │
        q1: ─RY(x1)─RZ(w3)─RY(w4)─RZ(w5)─X─●─ <Z1>
    """
    _check_sizes(n_qubits, n_layers)
    build = _Builder(n_qubits)
    build.encode()
    for _ in range(n_layers):
        build.rotate_all("RZ", "RY", "RZ")
        if n_qubits > 1:
            for wire in range(n_qubits):
                build.add("CNOT", wire, (wire + 1) % n_qubits)
    return build.circuit()


def _two_design_shape(n_qubits: int, n_layers: int) -> tuple[int, ...]:
    """Shape of the weights of :func:`simplified_two_design`: ``(n + 2 (n - 1) L,)``."""
    _check_sizes(n_qubits, n_layers)
    return (n_qubits + 2 * (n_qubits - 1) * n_layers,)


@_with_shape(_two_design_shape)
def simplified_two_design(n_qubits: int, n_layers: int) -> Circuit:
    r"""Angle encoding, then the simplified two-design: RY everywhere, and layers of CZ and RY on neighbouring pairs.

    ::

        U = Π_l [ Π_{odd i} B_{i,i+1} · Π_{even i} B_{i,i+1} ] · Π_i RY(w_i) · Π_i RY(x_i),
        B_{i,j} = RY_j(w') RY_i(w) CZ_{i,j}

    All gates are real, so the state is too. One qubit has only the initial rotation.

    Paper: Cerezo et al., "Cost function dependent barren plateaus in shallow parametrized quantum circuits",
    arXiv 2001.00550.

    Args:
        n_qubits: Number of qubits and of inputs, at least 1.
        n_layers: Number of layers, at least 1.

    Raises:
        InputError: A size below 1.

    Example:
        >>> simplified_two_design.shape(n_qubits=3, n_layers=1)
        (7,)
        >>> print(simplified_two_design(n_qubits=3, n_layers=1).draw())
        q0: ─RY(x0)─RY(w0)─●─RY(w3)────────── <Z0>
                           │
        q1: ─RY(x1)─RY(w1)─Z─RY(w4)─●─RY(w5)─ <Z1>
                                    │
        q2: ─RY(x2)─RY(w2)──────────Z─RY(w6)─ <Z2>
    """
    _check_sizes(n_qubits, n_layers)
    build = _Builder(n_qubits)
    build.encode()
    build.rotate_all("RY")
    for _ in range(n_layers):
        for first in (0, 1):
            for wire in range(first, n_qubits - 1, 2):
                build.add("CZ", wire, wire + 1)
                build.weighted("RY", wire)
                build.weighted("RY", wire + 1)
    return build.circuit()
