"""The slow, obvious reference: a circuit's matrix as a product of full matrices in float64, for autograd to follow."""

import torch
from torch import Tensor

from qpeft.circuits import Circuit, Gate, Weight

IDENTITY = torch.eye(2, dtype=torch.float64)
FIXED = {
    "X": torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64),
    "Z": torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=torch.float64),
    "H": torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5,
}
ZERO = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
ONE = IDENTITY - ZERO
RAISE = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
LOWER = RAISE.T.contiguous()


def on_wires(matrices: dict[int, Tensor], n_qubits: int) -> Tensor:
    full = torch.ones(1, 1, dtype=torch.float64)
    for wire in range(n_qubits):
        full = torch.kron(full, matrices.get(wire, IDENTITY))
    return full


def gate_matrix(gate: Gate, weights: Tensor, n: int) -> Tensor:
    if gate.name in FIXED:
        return on_wires({gate.wires[0]: FIXED[gate.name]}, n)
    if gate.name == "SWAP":
        a, b = gate.wires
        flips = on_wires({a: RAISE, b: LOWER}, n)
        return on_wires({a: ZERO, b: ZERO}, n) + on_wires({a: ONE, b: ONE}, n) + flips + flips.T
    if gate.name in ("CNOT", "CZ"):
        target = FIXED[{"CNOT": "X", "CZ": "Z"}[gate.name]]
    else:
        angle = gate.angle.scale * weights[gate.angle.index] if isinstance(gate.angle, Weight) else gate.angle
        half = torch.as_tensor(angle, dtype=torch.float64) / 2
        target = half.cos() * IDENTITY + half.sin() * (RAISE - LOWER)
    if len(gate.wires) == 1:
        return on_wires({gate.wires[0]: target}, n)
    return on_wires({gate.wires[0]: ZERO}, n) + on_wires({gate.wires[0]: ONE, gate.wires[1]: target}, n)


def dense(circuit: Circuit, weights: Tensor) -> Tensor:
    """(n_weights,) -> (2**n, 2**n)"""
    matrix = torch.eye(1 << circuit.n_qubits, dtype=torch.float64)
    for gate in circuit.gates:
        matrix = gate_matrix(gate, weights.double(), circuit.n_qubits) @ matrix
    return matrix
