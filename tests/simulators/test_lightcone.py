"""Light cones: what an expectation depends on, where they pay, and larger registers against the state vector."""

import pytest
import torch
from engines import everything
from random_cases import samples

from qpeft.circuits import (
    Circuit,
    Gate,
    Input,
    Observable,
    Weight,
    qtha_block,
    rotation_cnot_ring,
    simplified_two_design,
)
from qpeft.simulators.lightcone import LightConeEngine, find_cone
from qpeft.simulators.lowering import lower
from qpeft.simulators.statevector import StateVectorEngine


@pytest.mark.parametrize(
    "circuit",
    [
        qtha_block(9, 1),
        qtha_block(5, 1),
        qtha_block(2, 1),
        qtha_block(7, 1, gate_order="older"),
        rotation_cnot_ring(5, 3),
        simplified_two_design(9, 1),
    ],
)
def test_engines_agree_on_ansaetze(circuit):
    values = samples(circuit, 5)
    states = StateVectorEngine(lower(circuit), circuit.n_inputs, circuit.n_weights)
    for a, b in zip(
        everything(LightConeEngine.for_circuit(circuit), *values), everything(states, *values), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_qubits", [5, 8, 12])
def test_one_layer_of_qtha_reaches_two_neighbours_on_either_side(n_qubits):
    circuit = qtha_block(n_qubits, 1)
    for wire in range(n_qubits):
        wires, _ = find_cone(circuit, Observable(f"Z{wire}"))
        assert set(wires) == {(wire + d) % n_qubits for d in (-2, -1, 0, 1, 2)}
    cones = LightConeEngine.for_circuit(circuit)
    assert [group.cones for group in cones.groups] == [n_qubits]  # a ring: all cones in one group


def test_cones_leave_out_what_does_not_matter():
    circuit = Circuit(
        4,
        (
            Gate("RY", 0, Input(0)),
            Gate("RY", 1, Input(1)),
            Gate("CNOT", (0, 2)),  # the control is only read
            Gate("CRZ", (0, 1), Weight(0)),  # diagonal before a measurement in Z
            Gate("H", 3),
        ),
    )
    wires, gates = find_cone(circuit, Observable("Z0"))
    assert (wires, gates) == ([0], [circuit.gates[0]])
    wires, gates = find_cone(circuit, Observable("X0"))
    assert set(wires) == {0, 1, 2}
    wires, gates = find_cone(circuit, Observable("Z2"))
    assert set(wires) == {0, 2}
    assert gates == [circuit.gates[0], circuit.gates[2]]


@pytest.mark.parametrize(
    "circuit",
    [
        qtha_block(4, 2),  # inputs are read again
        rotation_cnot_ring(8, 3),  # cones reach all eight qubits
        Circuit(1, (Gate("RY", 0, 0.3), Gate("RZ", 0, Input(0)), Gate("RY", 0, 0.2))),  # encoding is not RY on |0>
    ],
)
def test_other_circuits_use_the_state_vector(circuit):
    assert LightConeEngine.for_circuit(circuit) is None


@pytest.mark.parametrize(
    ("circuit", "pays"), [(qtha_block(8, 1), True), (qtha_block(4, 1), False), (rotation_cnot_ring(6, 4), False)]
)
def test_cones_are_used_where_they_pay(circuit, pays):
    assert LightConeEngine.for_circuit(circuit).pays == pays
