"""Ansätze: gate order, counts, numbering."""

import pytest
import torch

from qpeft.circuits import Input, Weight, qtha_block, rotation_cnot_ring, simplified_two_design
from qpeft.errors import InputError
from qpeft.simulators import run


@pytest.mark.parametrize("ansatz", [qtha_block, rotation_cnot_ring, simplified_two_design])
@pytest.mark.parametrize("n_qubits", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("n_layers", [1, 3])
def test_shape_counts_the_weights_and_numbering_follows_the_gates(ansatz, n_qubits, n_layers):
    circuit = ansatz(n_qubits, n_layers)
    numbers = [gate.angle.index for gate in circuit.gates if isinstance(gate.angle, Weight)]
    assert numbers == list(range(len(numbers)))
    assert ansatz.shape(n_qubits, n_layers) == (len(numbers),) == (circuit.n_weights,)
    assert circuit.n_inputs == n_qubits
    assert [str(o) for o in circuit.observables] == [f"Z{i}" for i in range(n_qubits)]
    with pytest.raises(InputError):
        ansatz.shape(0, 1)


def test_qtha_has_four_angles_per_qubit_and_layer():
    assert qtha_block.shape(8, 3) == (4 * 8 * 3,)
    assert qtha_block.shape(4, 1) == (16,)
    assert qtha_block.shape(1, 3) == (6,)  # no ring on one qubit


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ("published", ["RY", "CRZ", "RY", "CRZ", "RY"]),
        ("older", ["RY", "RY", "CRZ", "RY", "CRZ"]),
    ],
)
def test_qtha_gate_order(order, names):
    n = 4
    circuit = qtha_block(n, 2, gate_order=order)
    for layer in range(2):
        gates = circuit.gates[5 * n * layer : 5 * n * (layer + 1)]
        assert [gate.name for gate in gates[::n]] == names
        rings = [gates[n * place : n * (place + 1)] for place, name in enumerate(names) if name == "CRZ"]
        assert [gate.wires for gate in rings[0]] == [(0, 1), (1, 2), (2, 3), (3, 0)]
        assert [gate.wires for gate in rings[1]] == [(0, 3), (1, 0), (2, 1), (3, 2)]
        assert [gate.angle.index for gate in gates[:n]] == list(range(n))  # inputs again in every layer


@pytest.mark.parametrize("order", ["published", "older"])
def test_without_entanglement_qtha_is_a_product_of_one_qubit_circuits(order):
    n, n_layers = 4, 2
    ring, none = (qtha_block(n, n_layers, order, entanglement) for entanglement in ("ring", "none"))
    assert [gate.angle for gate in none.gates] == [gate.angle for gate in ring.gates]
    assert all(len(gate.wires) == 1 for gate in none.gates)
    assert [gate.wires[-1] for gate in none.gates] == [gate.wires[-1] for gate in ring.gates]
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(6, n, generator=generator, dtype=torch.float64)
    weights = torch.randn(none.n_weights, generator=generator, dtype=torch.float64) * 2
    bloch = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand(6, n, 3).clone()  # one vector for each qubit
    for gate in none.gates:
        wire = gate.wires[0]
        angle = inputs[:, wire] if isinstance(gate.angle, Input) else weights[gate.angle.index].expand(6)
        x, y, z = bloch[:, wire].unbind(1)
        c, s = angle.cos(), angle.sin()
        turned = (c * x + s * z, y, c * z - s * x) if gate.name == "RY" else (c * x - s * y, s * x + c * y, z)
        bloch[:, wire] = torch.stack(turned, 1)
    torch.testing.assert_close(run(none, inputs, weights), bloch[..., 2])
    with pytest.raises(InputError, match="entanglement must be 'ring' or 'none'"):
        qtha_block(n, n_layers, entanglement="some")


def test_two_design_pairs():
    circuit = simplified_two_design(5, 1)
    assert [gate.wires for gate in circuit.gates if gate.name == "CZ"] == [(0, 1), (2, 3), (1, 2), (3, 4)]
    assert simplified_two_design.shape(5, 2) == (5 + 2 * 8,)


def test_cnot_ring():
    circuit = rotation_cnot_ring(3, 1)
    assert [gate.wires for gate in circuit.gates if gate.name == "CNOT"] == [(0, 1), (1, 2), (2, 0)]
    assert [gate.name for gate in circuit.gates[3:6]] == ["RZ", "RY", "RZ"]
