"""Every engine against independent references on random circuits: outputs and both gradients, in both precisions.

The circuits are drawn over all gates, wires, orders, constants, repeats of inputs and weights with scales, and Pauli
strings. The fast test draws the same few hundred each time; the slow one draws new ones, as many for each pair as the
variable QPEFT_RANDOM_CIRCUITS says::

    QPEFT_RANDOM_CIRCUITS=20000 pytest -m slow tests/simulators/test_references.py
"""

import math
import os

import dense_reference
import framework_reference
import numpy as np
import pytest
import torch
from engines import ENGINES, LIGHT_CONES, everything
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_cases import cases, samples

from qpeft.circuits import Circuit, Gate, Input, Weight, qtha_block, rotation_cnot_ring, simplified_two_design

REFERENCES = [
    pytest.param(dense_reference.evaluate, id="dense matrices"),
    pytest.param(
        framework_reference.evaluate,
        id="PennyLane",
        marks=pytest.mark.skipif(not framework_reference.INSTALLED, reason=framework_reference.HOW),
    ),
]
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}
RANDOM_CIRCUITS = int(os.environ.get("QPEFT_RANDOM_CIRCUITS", 3000))


def assert_equal(engine, reference, circuit, values, dtype):
    """To the dtype's tolerance, of the largest entry where that is above 1, and what the inputs' last bits can do."""
    expected = reference(circuit, *(value.double().numpy() for value in values))
    found = everything(engine, *(value.to(dtype) for value in values))
    last_bits = 4 * torch.finfo(dtype).eps * values[0].double().abs().sum(1, keepdim=True).numpy()  # of large angles
    for name, a, b in zip(("outputs", "gradient of inputs", "gradient of weights"), found, expected, strict=True):
        assert a.shape == b.shape, name
        limit = TOLERANCES[dtype] * max(1.0, np.abs(b).max(initial=0.0))
        limit = limit + (last_bits if b.ndim == 2 else last_bits.sum())
        excess = (np.abs(a.double().numpy() - b) / limit).max(initial=0.0)
        assert excess <= 1, f"{name} in {dtype} is off by {excess:.1f} times the tolerance: {circuit.key}"


def check_a_random_circuit(engine, reference, data):
    circuit, values = data.draw(cases(engine.reads_once))
    built = engine.build(circuit)
    for dtype in TOLERANCES:
        assert_equal(built, reference, circuit, values, dtype)


FAST = settings(max_examples=100, deadline=None, derandomize=True)
THOROUGH = settings(max_examples=RANDOM_CIRCUITS, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("engine", ENGINES)
@FAST
@given(st.data())
def test_random_circuits(engine, reference, data):
    check_a_random_circuit(engine, reference, data)


@pytest.mark.slow
@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("engine", ENGINES)
@THOROUGH
@given(st.data())
def test_thousands_of_random_circuits(engine, reference, data):
    check_a_random_circuit(engine, reference, data)


@pytest.mark.parametrize("ansatz", [qtha_block, rotation_cnot_ring, simplified_two_design])
@pytest.mark.parametrize(("n_qubits", "n_layers"), [(1, 1), (2, 2), (5, 2), (7, 2), (8, 1)])
@pytest.mark.parametrize("engine", ENGINES)
def test_ansaetze(engine, ansatz, n_qubits, n_layers):
    circuit = ansatz(n_qubits, n_layers)
    built = engine.build(circuit)
    if built is None:  # light cones that reach too far, or inputs that are read again
        assert engine is LIGHT_CONES
        return
    values = samples(circuit, 5)
    for dtype in TOLERANCES:
        assert_equal(built, dense_reference.evaluate, circuit, values, dtype)


ANGLES = [0.0, math.pi / 2, math.pi, 2 * math.pi, 3 * math.pi, 50.0, 1e4]


def singular_circuit() -> Circuit:
    """Each rotation by an input, by a weight and by a constant, once alone and once controlled."""
    gates = [Gate("RY", 0, Input(0)), Gate("RY", 1, Input(1)), Gate("RY", 2, Input(0))]
    for k, axis in enumerate("YXZ"):
        gates += [Gate(f"R{axis}", wire, Weight(3 * k + wire)) for wire in range(3)]
        gates += [Gate(f"CR{axis}", (wire, (wire + 1) % 3), Weight(9 + 3 * k + wire)) for wire in range(3)]
        gates += [Gate(f"R{axis}", wire, angle) for wire, angle in enumerate(ANGLES[1:4])]
    return Circuit(3, tuple(gates), ("Z0", "X1", "Y0 Z2", "Y1 Y2"))


def reading_again(circuit: Circuit) -> Circuit:
    """The circuit twice over, in which the second pass turns on other axes by the same angles."""
    turned = {"RY": "RX", "RX": "RZ", "RZ": "RY", "CRY": "CRX", "CRX": "CRZ", "CRZ": "CRY"}
    again = tuple(Gate(turned[gate.name], gate.wires, gate.angle) for gate in circuit.gates)
    return Circuit(circuit.n_qubits, circuit.gates + again, circuit.observables)


@pytest.mark.parametrize("angle", ANGLES)
@pytest.mark.parametrize("engine", ENGINES)
def test_singular_angles(engine, angle):
    """All weights at one angle where sine or cosine vanishes, or far outside one turn; inputs at all pairs."""
    once = singular_circuit()
    circuit = once if engine.reads_once else reading_again(once)
    built = engine.build(circuit)
    for dtype in TOLERANCES:
        grid = torch.tensor(ANGLES, dtype=dtype)
        inputs = torch.cartesian_prod(grid, grid)
        weights = torch.full((circuit.n_weights,), angle, dtype=dtype)
        cotangent = samples(circuit, len(inputs), 1, dtype)[2]
        assert_equal(built, dense_reference.evaluate, circuit, (inputs, weights, cotangent), dtype)


@pytest.mark.parametrize("size", [100.0, 1e3, 1e4])
@pytest.mark.parametrize("engine", ENGINES)
def test_weights_of_many_turns_keep_the_inputs_precise_in_float32(engine, size):
    """Angles that add inputs to such weights lose nothing but what float32 loses beside small weights."""
    circuit = rotation_cnot_ring(4, 1) if engine.reads_once else qtha_block(4, 2)
    built = engine.build(circuit)
    inputs, weights, cotangent = samples(circuit, 200, 3, torch.float32)
    values = inputs, size * weights, cotangent
    found = everything(built, *values)
    expected = everything(built, *(value.double() for value in values))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-5)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(cases())
def test_the_dense_reference_equals_central_differences(case):
    circuit, values = case
    inputs, weights, cotangent = (value.numpy() for value in values)
    _, to_inputs, to_weights = dense_reference.evaluate(circuit, inputs, weights, cotangent)
    step = 1e-5

    def differences(values, evaluate):
        """How the loss of each sample changes with each column of ``values``."""
        columns = []
        for shift in step * np.eye(values.shape[-1]):
            change = evaluate(values + shift) - evaluate(values - shift)
            columns.append((change * cotangent).sum(1) / (2 * step))
        return np.stack(columns, 1) if columns else np.zeros((len(inputs), 0))

    by_inputs = differences(inputs, lambda x: dense_reference.expectations(circuit, x, weights))
    by_weights = differences(weights, lambda w: dense_reference.expectations(circuit, inputs, w))
    np.testing.assert_allclose(to_inputs, by_inputs, atol=1e-8)
    np.testing.assert_allclose(to_weights, by_weights.sum(0), atol=1e-8)
