"""The slow, obvious reference: full matrices by Kronecker products, float64, one sample at a time."""

import numpy as np

from qpeft.circuits import Circuit, Gate, Input, Weight

PAULI = {
    "I": np.eye(2, dtype=complex),
    "X": np.array([[0, 1], [1, 0]], dtype=complex),
    "Y": np.array([[0, -1j], [1j, 0]]),
    "Z": np.diag([1.0 + 0j, -1.0]),
}
FIXED = {
    **{name: PAULI[name] for name in "XYZ"},
    "H": np.array([[1, 1], [1, -1]], dtype=complex) / np.sqrt(2),
    "S": np.diag([1, 1j]),
    "SDG": np.diag([1, -1j]),
    "T": np.diag([1, np.exp(1j * np.pi / 4)]),
    "TDG": np.diag([1, np.exp(-1j * np.pi / 4)]),
}
ZERO, ONE = np.diag([1.0, 0.0]), np.diag([0.0, 1.0])


def on_wires(matrices: dict[int, np.ndarray], n_qubits: int) -> np.ndarray:
    full = np.eye(1, dtype=complex)
    for wire in range(n_qubits):
        full = np.kron(full, matrices.get(wire, PAULI["I"]))
    return full


def rotation(axis: str, angle: float) -> np.ndarray:
    return np.cos(angle / 2) * PAULI["I"] - 1j * np.sin(angle / 2) * PAULI[axis]


def angle_value(gate: Gate, x: np.ndarray, w: np.ndarray) -> float:
    if isinstance(gate.angle, Input):
        return gate.angle.scale * x[gate.angle.index]
    if isinstance(gate.angle, Weight):
        return gate.angle.scale * w[gate.angle.index]
    return gate.angle


def gate_matrix(gate: Gate, n: int, angle: float | None) -> np.ndarray:
    if gate.name in FIXED:
        return on_wires({gate.wires[0]: FIXED[gate.name]}, n)
    if gate.name in ("RX", "RY", "RZ"):
        return on_wires({gate.wires[0]: rotation(gate.name[1], angle)}, n)
    a, b = gate.wires
    if gate.name == "SWAP":
        return sum(on_wires({a: PAULI[p], b: PAULI[p]}, n) for p in "IXYZ") / 2
    target = {"CNOT": PAULI["X"], "CZ": PAULI["Z"]}.get(gate.name)
    if target is None:
        target = rotation(gate.name[2], angle)
    return on_wires({a: ZERO}, n) + on_wires({a: ONE, b: target}, n)


def expectations(circuit: Circuit, inputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(batch, n_inputs), (n_weights,) -> (batch, n_observables)"""
    n = circuit.n_qubits
    observables = [on_wires({wire: PAULI[p] for p, wire in o.paulis}, n) for o in circuit.observables]
    rows = []
    for x in inputs:
        state = np.zeros(2**n, dtype=complex)
        state[0] = 1
        for gate in circuit.gates:
            angle = None if gate.angle is None else angle_value(gate, x, weights)
            state = gate_matrix(gate, n, angle) @ state
        rows.append([np.vdot(state, o @ state).real for o in observables])
    return np.array(rows).reshape(len(inputs), len(observables))


def jacobians(circuit: Circuit, inputs: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Central differences: (batch, n_observables, n_inputs), (batch, n_observables, n_weights)."""
    step = 1e-5
    to_inputs = np.zeros((len(inputs), circuit.n_observables, circuit.n_inputs))
    to_weights = np.zeros((len(inputs), circuit.n_observables, circuit.n_weights))
    for i in range(circuit.n_inputs):
        shift = step * np.eye(circuit.n_inputs)[i]
        difference = expectations(circuit, inputs + shift, weights) - expectations(circuit, inputs - shift, weights)
        to_inputs[:, :, i] = difference / (2 * step)
    for k in range(circuit.n_weights):
        shift = step * np.eye(circuit.n_weights)[k]
        difference = expectations(circuit, inputs, weights + shift) - expectations(circuit, inputs, weights - shift)
        to_weights[:, :, k] = difference / (2 * step)
    return to_inputs, to_weights
