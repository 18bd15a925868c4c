"""The slow, obvious reference: full matrices by Kronecker products in complex128, and gradients by the product rule.

A gate is the matrix ``M(θ) = A + cos(θ/2) B + sin(θ/2) C`` on all qubits. An expectation is ``<ψ|P|ψ>`` with ``ψ`` the
product of all matrices, so every occurrence of an angle adds ``2 Re <ψ|P ... M'(θ) ...|0>`` to its derivative.
"""

from functools import lru_cache

import numpy as np

from qpeft.circuits import Circuit, Gate, Input, Observable, Weight

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


@lru_cache(maxsize=1024)
def gate_parts(name: str, wires: tuple[int, ...], n: int) -> tuple[np.ndarray, ...]:
    """``(A, B, C)`` of a gate with an angle, ``(A,)`` of one without."""
    if name in FIXED:
        return (on_wires({wires[0]: FIXED[name]}, n),)
    if name in ("RX", "RY", "RZ"):  # cos(θ/2) - i sin(θ/2) P
        return np.zeros((2**n, 2**n)), np.eye(2**n), -1j * on_wires({wires[0]: PAULI[name[1]]}, n)
    a, b = wires
    if name == "SWAP":
        return (sum(on_wires({a: PAULI[p], b: PAULI[p]}, n) for p in "IXYZ") / 2,)
    idle = on_wires({a: ZERO}, n)
    if name in ("CNOT", "CZ"):
        return (idle + on_wires({a: ONE, b: PAULI["X" if name == "CNOT" else "Z"]}, n),)
    return idle, on_wires({a: ONE}, n), -1j * on_wires({a: ONE, b: PAULI[name[2]]}, n)


def gate_matrices(gate: Gate, n: int, angles: np.ndarray | None, derivative: bool = False) -> np.ndarray:
    """``(2**n, 2**n)``, or one for each angle, ``(batch, 2**n, 2**n)``; with ``derivative``, of dM/dθ."""
    parts = gate_parts(gate.name, gate.wires, n)
    if angles is None:
        return parts[0]
    cos, sin = np.cos(angles / 2)[:, None, None], np.sin(angles / 2)[:, None, None]
    if derivative:
        return (cos * parts[2] - sin * parts[1]) / 2
    return parts[0] + cos * parts[1] + sin * parts[2]


def gate_angles(gate: Gate, inputs: np.ndarray, weights: np.ndarray) -> np.ndarray | None:
    """One angle, or one for each sample."""
    if isinstance(gate.angle, Input):
        return gate.angle.scale * inputs[:, gate.angle.index]
    if isinstance(gate.angle, Weight):
        return gate.angle.scale * weights[gate.angle.index, None]
    return None if gate.angle is None else np.array([gate.angle])


def apply(matrices: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Matrices on the states ``(batch, 2**n)``."""
    return (matrices @ states[..., None])[..., 0]


def observable_matrix(observable: Observable, n: int) -> np.ndarray:
    return on_wires({wire: PAULI[letter] for letter, wire in observable.paulis}, n)


def expectations(circuit: Circuit, inputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(batch, n_inputs), (n_weights,) -> (batch, n_observables)"""
    nothing = np.zeros((len(inputs), circuit.n_observables))
    return evaluate(circuit, inputs, weights, nothing)[0]


def evaluate(
    circuit: Circuit, inputs: np.ndarray, weights: np.ndarray, cotangent: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Expectations and the gradients of their product with ``cotangent``: all as :func:`qpeft.simulators.run` has it.

    Shapes: (batch, n_inputs), (n_weights,), (batch, n_observables) -> (batch, n_observables), (batch, n_inputs),
    (n_weights,).
    """
    n, batch = circuit.n_qubits, len(inputs)
    angles = [gate_angles(gate, inputs, weights) for gate in circuit.gates]
    state = np.zeros((batch, 2**n), dtype=complex)
    state[:, 0] = 1
    states = [state]
    for gate, angle in zip(circuit.gates, angles, strict=True):
        states.append(apply(gate_matrices(gate, n, angle), states[-1]))
    final = states.pop()
    applied = [apply(observable_matrix(o, n), final) for o in circuit.observables]
    outputs = np.stack([(final.conj() * a).sum(1).real for a in applied], 1)
    to_inputs, to_weights = np.zeros_like(inputs), np.zeros_like(weights)
    left = sum(cotangent[:, m, None] * a for m, a in enumerate(applied))  # <left| = <ψ|P times all later gates
    for gate, angle in zip(reversed(circuit.gates), reversed(angles), strict=True):
        before = states.pop()
        if isinstance(gate.angle, (Input, Weight)):
            moved = apply(gate_matrices(gate, n, angle, derivative=True), before)
            derivative = 2 * gate.angle.scale * (left.conj() * moved).sum(1).real
            if isinstance(gate.angle, Input):
                to_inputs[:, gate.angle.index] += derivative
            else:
                to_weights[gate.angle.index] += derivative.sum()
        left = apply(gate_matrices(gate, n, angle).conj().swapaxes(-1, -2), left)
    return outputs, to_inputs, to_weights
