"""The exact simulator against full matrices, and as an operator inside torch."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from dense_reference import expectations, jacobians
from hypothesis import given, settings
from hypothesis import strategies as st

from qpeft.circuits import Circuit, Gate, Input, Weight, qtha_block, rotation_cnot_ring, simplified_two_design
from qpeft.errors import InputError
from qpeft.simulators import MAX_QUBITS, run, statevector

sys.path.insert(0, str(Path(__file__).parents[1] / "circuits"))
from random_circuits import circuits

ANSAETZE = [qtha_block, rotation_cnot_ring, simplified_two_design]


def angles_for(circuit, batch, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(batch, circuit.n_inputs, dtype=torch.float64, generator=generator) * 2
    weights = torch.randn(circuit.n_weights, dtype=torch.float64, generator=generator) * 2
    return inputs.to(dtype).requires_grad_(), weights.to(dtype).requires_grad_()


@settings(max_examples=150, deadline=None)
@given(circuits(max_qubits=5, max_gates=25), st.integers(0, 1000))
def test_random_circuits_equal_full_matrices(circuit, seed):
    inputs, weights = angles_for(circuit, 3, seed)
    outputs = run(circuit, inputs, weights)
    expected = expectations(circuit, inputs.detach().numpy(), weights.detach().numpy())
    np.testing.assert_allclose(outputs.detach(), expected, atol=1e-10)
    single = run(circuit, inputs.float(), weights.float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.detach(), expected, atol=2e-5)


@settings(max_examples=40, deadline=None)
@given(circuits(max_qubits=4, max_gates=16), st.integers(0, 1000))
def test_gradients_of_random_circuits_equal_differences(circuit, seed):
    inputs, weights = angles_for(circuit, 2, seed)
    cotangent = torch.randn(2, circuit.n_observables, generator=torch.Generator().manual_seed(seed)).double()
    to_inputs, to_weights = torch.autograd.grad(run(circuit, inputs, weights), (inputs, weights), cotangent)
    by_inputs, by_weights = jacobians(circuit, inputs.detach().numpy(), weights.detach().numpy())
    np.testing.assert_allclose(to_inputs, np.einsum("bm,bmi->bi", cotangent, by_inputs), atol=1e-7)
    np.testing.assert_allclose(to_weights, np.einsum("bm,bmk->k", cotangent, by_weights), atol=1e-7)


@pytest.mark.parametrize("ansatz", ANSAETZE)
@pytest.mark.parametrize(("n_qubits", "n_layers"), [(1, 1), (2, 2), (5, 2), (6, 1), (7, 2), (8, 1), (9, 1)])
def test_ansaetze_equal_full_matrices(ansatz, n_qubits, n_layers):
    circuit = ansatz(n_qubits, n_layers)
    inputs, weights = angles_for(circuit, 2)
    expected = expectations(circuit, inputs.detach().numpy(), weights.detach().numpy())
    np.testing.assert_allclose(run(circuit, inputs, weights).detach(), expected, atol=1e-12)


@pytest.mark.parametrize("ansatz", ANSAETZE)
@pytest.mark.parametrize(("n_qubits", "n_layers"), [(4, 1), (8, 1), (8, 2), (10, 1)])
def test_single_precision_gradients(ansatz, n_qubits, n_layers):
    circuit = ansatz(n_qubits, n_layers)
    inputs, weights = angles_for(circuit, 40)
    cotangent = torch.randn(40, n_qubits, generator=torch.Generator().manual_seed(1)).double()
    precise = torch.autograd.grad(run(circuit, inputs, weights), (inputs, weights), cotangent)
    single = inputs.detach().float().requires_grad_(), weights.detach().float().requires_grad_()
    rough = torch.autograd.grad(run(circuit, *single), single, cotangent.float())
    for a, b in zip(rough, precise, strict=True):
        assert a.dtype == torch.float32
        assert (a.double() - b).abs().max() < 1e-5 * max(1.0, b.abs().max())


@settings(max_examples=60, deadline=None)
@given(circuits(max_qubits=6, max_gates=30), st.integers(0, 1000), st.floats(0.1, 1e4))
def test_outputs_lie_between_minus_one_and_one(circuit, seed, size):
    inputs, weights = angles_for(circuit, 5, seed, torch.float32)
    outputs = run(circuit, inputs * size, weights * size)
    assert outputs.abs().max() <= 1 + 1e-5


@pytest.mark.parametrize("n_layers", [1, 2])
def test_every_angle_of_the_published_order_has_a_gradient(n_layers):
    n = 4
    circuit = qtha_block(n, n_layers)
    inputs, weights = angles_for(circuit, 5)
    run(circuit, inputs, weights).square().sum().backward()
    assert (weights.grad.abs() > 1e-6).all()
    older = qtha_block(n, n_layers, gate_order="older")
    inputs, weights = angles_for(older, 5)
    run(older, inputs, weights).square().sum().backward()
    assert (weights.grad[:-n].abs() > 1e-6).all()
    assert (weights.grad[-n:] == 0).all()


@pytest.mark.parametrize("circuit", [qtha_block(4, 1), qtha_block(6, 2), rotation_cnot_ring(7, 2)])
def test_chunking_changes_nothing_but_rounding(circuit, monkeypatch):
    inputs, weights = angles_for(circuit, 67, dtype=torch.float32)
    whole = run(circuit, inputs, weights)
    whole_gradients = torch.autograd.grad(whole.square().sum(), (inputs, weights))
    monkeypatch.setattr(statevector, "_CHUNK_SAMPLES", 16)
    parts = run(circuit, inputs, weights)
    parts_gradients = torch.autograd.grad(parts.square().sum(), (inputs, weights))
    torch.testing.assert_close(parts, whole, rtol=0, atol=2e-6)
    for a, b in zip(parts_gradients, whole_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(run(circuit, inputs[40:41], weights), whole[40:41], rtol=0, atol=2e-6)


def test_empty_batch_and_circuit_without_angles():
    circuit = qtha_block(3, 2)
    weights = torch.zeros(24, requires_grad=True)
    outputs = run(circuit, torch.zeros(0, 3), weights)
    assert outputs.shape == (0, 3)
    outputs.sum().backward()
    assert (weights.grad == 0).all()
    bell = Circuit(2, (Gate("H", 0), Gate("CNOT", (0, 1))), ("Z0", "Z0 Z1", "X0 X1", "Y0 Y1"))
    expected = torch.tensor([[0.0, 1.0, 1.0, -1.0]] * 3)
    torch.testing.assert_close(run(bell, torch.zeros(3, 0), torch.zeros(0)), expected)


def test_singular_angles():
    circuit = rotation_cnot_ring(3, 2)
    angles = torch.tensor([0.0, torch.pi / 2, torch.pi, 2 * torch.pi, 3 * torch.pi, 50.0])
    inputs = torch.cartesian_prod(angles, angles[:3], angles[1:4])
    weights = angles.repeat(3)
    expected = expectations(circuit, inputs.double().numpy(), weights.double().numpy())
    np.testing.assert_allclose(run(circuit, inputs, weights), expected, atol=5e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_angles_spoil_their_own_samples_only(value):
    circuit = qtha_block(3, 2)
    inputs, weights = angles_for(circuit, 4)
    inputs = inputs.detach().clone()
    good = run(circuit, inputs, weights)
    inputs[2, 1] = value
    outputs = run(circuit, inputs, weights)
    assert outputs[2].isnan().all()
    torch.testing.assert_close(outputs[[0, 1, 3]], good[[0, 1, 3]])
    assert run(circuit, inputs, weights.detach() * value).isnan().all()


@pytest.mark.parametrize(
    ("inputs", "weights", "words"),
    [
        (torch.zeros(3, 3), torch.zeros(8), r"inputs must have the shape \(batch, 2\) \(got \(3, 3\)\)"),
        (torch.zeros(2), torch.zeros(8), r"inputs must have the shape"),
        (torch.zeros(3, 2), torch.zeros(7), r"weights must have the shape \(8,\) \(got \(7,\)\)"),
        (torch.zeros(3, 2), torch.zeros(1, 8), r"weights must have the shape"),
        (torch.zeros(3, 2, dtype=torch.int64), torch.zeros(8), "floating point"),
        (torch.zeros(3, 2, dtype=torch.complex64), torch.zeros(8), "floating point"),
        (torch.zeros(3, 2, device="meta"), torch.zeros(8), "one device"),
    ],
)
def test_wrong_shapes_types_and_devices(inputs, weights, words):
    with pytest.raises(InputError, match=words):
        run(qtha_block(2, 1), inputs, weights)


def test_too_many_qubits():
    n = MAX_QUBITS + 1
    with pytest.raises(InputError, match=f"at most {MAX_QUBITS} qubits"):
        run(qtha_block(n, 1), torch.zeros(1, n), torch.zeros(4 * n))


def test_a_large_register():
    """Fourteen qubits of a GHZ-like state, whose expectations are known."""
    n = 14
    gates = [Gate("RY", 0, Input(0)), *(Gate("CNOT", (i, i + 1)) for i in range(n - 1)), Gate("RZ", 0, Weight(0))]
    circuit = Circuit(n, tuple(gates), ("Z0", "Z13", " ".join(f"X{i}" for i in range(n))))
    inputs, weights = torch.tensor([[0.3], [1.2]], requires_grad=True), torch.tensor([0.7], requires_grad=True)
    outputs = run(circuit, inputs, weights)
    x = inputs.detach()[:, 0]
    expected = torch.stack([x.cos(), x.cos(), x.sin() * weights.detach().cos()], 1)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-5)
    outputs[:, 2].sum().backward()
    torch.testing.assert_close(inputs.grad[:, 0], x.cos() * weights.detach().cos(), rtol=0, atol=1e-5)
    torch.testing.assert_close(weights.grad, -weights.detach().sin() * x.sin().sum(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_qubits", [2, 7])
def test_operator_contract(n_qubits):
    """Schemas, fake tensors, autograd registration, tracing with dynamic shapes."""
    circuit = qtha_block(n_qubits, 1)
    inputs, weights = angles_for(circuit, 3)
    torch.library.opcheck(torch.ops.qpeft.expectations.default, (inputs, weights, circuit.key))


def test_memory_stays_bounded_and_nothing_is_kept_for_backward():
    circuit = qtha_block(10, 2)
    inputs, weights = angles_for(circuit, 2000, dtype=torch.float32)  # all states at once: 16 MB per step
    saved = []

    def keep(tensor):
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run(circuit, inputs, weights)
    assert sum(saved) <= inputs.numel() + weights.numel()
