"""Polynomials in the expectations of single wires, forced on circuits that would be states, against dense matrices."""

import dense_reference
import numpy as np
import pytest
import torch
from random_cases import random_circuit, samples

from qpeft.circuits import Circuit, Gate, Input, Weight, qtha_block, rotation_cnot_ring, simplified_two_design
from qpeft.simulators import native, plan, run

needs_kernel = pytest.mark.skipif(not native.available(), reason="no native kernel")


@pytest.fixture
def always(monkeypatch):
    """Polynomials wherever there can be any."""
    cost = plan._Part.cost
    monkeypatch.setattr(plan._Part, "cost", lambda part: 1.0 if part.polynomials is not None else 1e6 + cost(part))


def errors(circuit: Circuit, batch: int, seed: int, dtype: torch.dtype = torch.float64) -> float:
    values = samples(circuit, batch, seed)
    inputs, weights, gradient = (value.to(dtype) for value in values)
    engine = native.NativeEngine(circuit)
    found = engine.evaluate(inputs, weights), *engine.differentiate(gradient, inputs, weights)
    expected = dense_reference.evaluate(circuit, *(value.double().numpy() for value in (inputs, weights, gradient)))
    return max(np.abs(a.double().numpy() - b).max(initial=0) for a, b in zip(found, expected, strict=True))


@needs_kernel
@pytest.mark.parametrize("n", range(1, 8))
@pytest.mark.parametrize("order", ["published", "older"])
def test_one_layer_of_qtha(n, order, always):
    circuit = qtha_block(n, 1, order)
    assert errors(circuit, 21, n) < 1e-12
    assert errors(circuit, 21, n, torch.float32) < 5e-5


@needs_kernel
@pytest.mark.parametrize(
    "circuit",
    [rotation_cnot_ring(4, 2), rotation_cnot_ring(3, 3), simplified_two_design(5, 2), simplified_two_design(3, 4)],
)
def test_other_circuits_that_read_inputs_once(circuit, always):
    assert errors(circuit, 17, 0) < 1e-12


@needs_kernel
def test_random_circuits(always):
    """All gates, constant angles and Clifford gates among them, strings of X, Y and Z, values that vanish."""
    for seed in range(150):
        rng = np.random.default_rng(seed)
        circuit = random_circuit(rng, 1 + seed % 5, int(rng.integers(20)))
        assert errors(circuit, 3, seed) < 1e-11, circuit.key


@needs_kernel
@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 5, 8, 12])
def test_cutting_the_batch_changes_no_bit(n, n_layers):
    circuit = qtha_block(n, n_layers)
    inputs, weights, gradient = (value.float() for value in samples(circuit, 67, n))
    engine = native.NativeEngine(circuit)
    whole, to_inputs = engine.evaluate(inputs, weights), engine.differentiate(gradient, inputs, weights)[0]
    for cut in (1, 16, 33):
        rows = slice(cut, None)
        assert torch.equal(engine.evaluate(inputs[rows], weights), whole[rows])
        assert torch.equal(engine.differentiate(gradient[rows], inputs[rows], weights)[0], to_inputs[rows])


@needs_kernel
@pytest.mark.parametrize("wants", [(True, False), (False, True), (True, True)])
def test_gradients_of_those_who_want_them(wants):
    """Frozen angles, or inputs that are data: what is left is as if both were wanted; against finite differences."""
    circuit = qtha_block(6, 1)
    inputs, weights, gradient = samples(circuit, 5, 1)
    inputs.requires_grad_(wants[0])
    weights.requires_grad_(wants[1])
    (run(circuit, inputs, weights) * gradient).sum().backward()
    assert (inputs.grad is not None, weights.grad is not None) == wants
    step = 1e-6
    for values in (inputs, weights):
        if values.grad is None:
            continue
        for place in np.ndindex(*values.shape):
            ends = []
            for sign in (1, -1):
                moved = values.detach().clone()
                moved[place] += sign * step
                pair = (moved, weights) if values is inputs else (inputs, moved)
                ends.append(float((run(circuit, *(value.detach() for value in pair)) * gradient).sum()))
            assert values.grad[place].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-7)


@needs_kernel
def test_nan_reaches_its_light_cone_alone():
    circuit = qtha_block(8, 1)
    inputs, weights, _ = (value.float() for value in samples(circuit, 20, 0))
    engine = native.NativeEngine(circuit, check=False)
    clean = engine.evaluate(inputs, weights)
    inputs[3, 0] = torch.nan
    found = engine.evaluate(inputs, weights)
    assert found[3].isnan().nonzero().flatten().tolist() == [0, 1, 2, 6, 7]
    assert torch.equal(found[:3], clean[:3])
    assert torch.equal(found[4:], clean[4:])


@needs_kernel
def test_values_that_vanish_and_values_that_are_constant(always):
    gates = (Gate("RY", 0, Input(0)), Gate("CRZ", (0, 1), Weight(0)), Gate("X", 2))
    circuit = Circuit(3, gates, ("Y1", "X1", "Z1 Z2", "Z0 Z2"))
    engine = native.NativeEngine(circuit)
    inputs, weights = torch.tensor([[0.3], [1.2]], dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)
    zeros, ones = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    expected = torch.stack([zeros, zeros, -ones, -inputs[:, 0].cos()], 1)
    torch.testing.assert_close(engine.evaluate(inputs, weights), expected)
    assert errors(circuit, 4, 0) < 1e-12
