"""Shift rules, autograd and finite differences give the same gradients."""

import doctest

import pytest
import torch

import qpeft.gradients
from qpeft.circuits import Circuit, Gate, Input, Weight, qtha_block, rotation_cnot_ring, simplified_two_design
from qpeft.errors import InputError
from qpeft.gradients import count_shift_circuits, shift_gradient
from qpeft.simulators import run

CIRCUITS = {
    "qtha": qtha_block(3, 2),
    "qtha-older": qtha_block(3, 2, gate_order="older"),
    "qtha-4x3": qtha_block(4, 3),
    "qtha-one-qubit": qtha_block(1, 2),
    "qtha-two-qubits": qtha_block(2, 3),
    "ring": rotation_cnot_ring(3, 2),
    "two-design": simplified_two_design(4, 2),
    "all-rotations": Circuit(
        3,
        (
            Gate("H", 0),
            Gate("RX", 1, Input(0, -0.5)),
            Gate("CRX", (0, 1), Weight(0, 2.0)),
            Gate("CRY", (2, 0), Input(1)),
            Gate("T", 2),
            Gate("CRZ", (1, 2), Input(0)),
            Gate("RZ", 0, Weight(0)),
            Gate("CRY", (1, 2), Weight(1)),
            Gate("CRX", (2, 0), Input(1, 1.5)),
            Gate("RY", 2, 0.3),
            Gate("RX", 0, Weight(1)),
        ),
        ("Z0", "X1 Y2", "Z0 Z2", "Y0"),
    ),
}


def angles_for(circuit, batch=3):
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(batch, circuit.n_inputs, dtype=torch.float64, generator=generator)
    weights = torch.randn(circuit.n_weights, dtype=torch.float64, generator=generator)
    return inputs, weights


@pytest.mark.parametrize("name", CIRCUITS)
def test_autograd_equals_shift_rule_and_finite_differences(name):
    circuit = CIRCUITS[name]
    inputs, weights = angles_for(circuit)
    by_shift = shift_gradient(circuit, inputs, weights)
    by_autograd = torch.autograd.functional.jacobian(lambda x, w: run(circuit, x, w), (inputs, weights))
    samples = torch.arange(len(inputs))
    own = by_autograd[0][samples, :, samples]  # other samples' inputs have no influence
    assert by_autograd[0].abs().sum() == pytest.approx(own.abs().sum())
    torch.testing.assert_close(by_shift.inputs, own, rtol=0, atol=1e-12)
    torch.testing.assert_close(by_shift.weights, by_autograd[1], rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda x, w: run(circuit, x, w), (inputs.requires_grad_(), weights.requires_grad_()), eps=1e-5, atol=1e-8
    )


@pytest.mark.parametrize("name", CIRCUITS)
def test_vector_jacobian_product_is_the_contracted_jacobian(name):
    circuit = CIRCUITS[name]
    inputs, weights = angles_for(circuit)
    cotangent = torch.randn(3, circuit.n_observables, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    jacobian = shift_gradient(circuit, inputs, weights)
    product = shift_gradient(circuit, inputs, weights, cotangent=cotangent)
    torch.testing.assert_close(product.inputs, torch.einsum("bm,bmi->bi", cotangent, jacobian.inputs))
    torch.testing.assert_close(product.weights, torch.einsum("bm,bmk->k", cotangent, jacobian.weights))


@pytest.mark.parametrize(("n_qubits", "n_layers"), [(4, 4), (2, 1), (8, 2)])
def test_number_of_circuits_is_known_beforehand(n_qubits, n_layers):
    circuit = qtha_block(n_qubits, n_layers)
    assert count_shift_circuits(circuit) == 14 * n_qubits * n_layers
    asked = []

    def evaluate(circuit, inputs, weights):
        asked.append(len(inputs))
        assert circuit.n_weights == 0
        return run(circuit, inputs, weights)

    inputs, weights = angles_for(circuit, batch=2)
    shift_gradient(circuit, inputs.float(), weights.float(), evaluate)
    assert asked == [count_shift_circuits(circuit) * 2]


def test_the_two_term_rule_would_be_wrong_for_a_controlled_rotation():
    """Guards the four-term rule: plain ±π/2 differs by far more than rounding."""
    circuit = Circuit(2, (Gate("RY", 0, 1.0), Gate("RY", 1, 0.7), Gate("CRZ", (0, 1), Weight(0)), Gate("RY", 0, 0.5)))
    inputs, weights = torch.zeros(1, 0, dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64)
    right = shift_gradient(circuit, inputs, weights).weights[0, 0, 0]
    two_term = (run(circuit, inputs, weights + torch.pi / 2) - run(circuit, inputs, weights - torch.pi / 2))[0, 0] / 2
    assert abs(right - two_term) > 0.01


def test_circuit_without_angles_has_empty_gradients():
    circuit = Circuit(2, (Gate("H", 0), Gate("CNOT", (0, 1))))
    gradient = shift_gradient(circuit, torch.zeros(3, 0), torch.zeros(0))
    assert gradient.inputs.shape == (3, 2, 0)
    assert gradient.weights.shape == (3, 2, 0)
    assert count_shift_circuits(circuit) == 0


def test_wrong_shapes_are_named():
    circuit = qtha_block(2, 1)
    with pytest.raises(InputError, match=r"\(batch, 2\) and \(8,\)"):
        shift_gradient(circuit, torch.zeros(3, 3), torch.zeros(8))
    with pytest.raises(InputError, match="cotangent"):
        shift_gradient(circuit, torch.zeros(3, 2), torch.zeros(8), cotangent=torch.zeros(3, 1))


def test_examples_in_the_docstrings():
    assert doctest.testmod(qpeft.gradients).failed == 0
