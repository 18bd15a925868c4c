"""Ansätze: gate order, counts, numbering."""

import pytest

from qpeft.circuits import Weight, qtha_block, rotation_cnot_ring, simplified_two_design
from qpeft.errors import InputError


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


def test_two_design_pairs():
    circuit = simplified_two_design(5, 1)
    assert [gate.wires for gate in circuit.gates if gate.name == "CZ"] == [(0, 1), (2, 3), (1, 2), (3, 4)]
    assert simplified_two_design.shape(5, 2) == (5 + 2 * 8,)


def test_cnot_ring():
    circuit = rotation_cnot_ring(3, 1)
    assert [gate.wires for gate in circuit.gates if gate.name == "CNOT"] == [(0, 1), (1, 2), (2, 0)]
    assert [gate.name for gate in circuit.gates[3:6]] == ["RZ", "RY", "RZ"]
