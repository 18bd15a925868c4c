"""Noisy expectations and their gradients against density matrices, and as an operator inside torch."""

import doctest
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noisy_reference import noisy_expectations, noisy_jacobians, random_noise

import qpeft.simulators.density
from qpeft.circuits import Circuit, Gate, Input, Weight, qtha_block, rotation_cnot_ring, simplified_two_design
from qpeft.errors import InputError
from qpeft.simulators import density, pauli_samples, pauli_tail, run, run_noisy
from qpeft.simulators.noise import (
    AmplitudeDamping,
    Depolarizing,
    GateNoise,
    NoiseModel,
    PhaseDamping,
    ReadoutError,
    ThermalRelaxation,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "circuits"))
from random_circuits import circuits

ANSAETZE = [qtha_block, rotation_cnot_ring, simplified_two_design]
MIXED = NoiseModel(
    [
        GateNoise(Depolarizing(0.03)),
        GateNoise(AmplitudeDamping(0.1), qubit=1),
        GateNoise(PhaseDamping(0.2), gates=("RY", "CRZ")),
        GateNoise(ThermalRelaxation(3.0, 2.0, 0.3), wires=(0, 1)),
        GateNoise(Depolarizing(0.1, joint=True), gates="CNOT"),
    ],
    readout=ReadoutError(0.03, 0.07),
)
DEPOLARISING = NoiseModel.uniform(0.02, readout=0.01)


def angles_for(circuit, batch, seed=0, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    inputs = torch.tensor(rng.normal(size=(batch, circuit.n_inputs)) * 2, dtype=dtype)
    weights = torch.tensor(rng.normal(size=circuit.n_weights) * 2, dtype=dtype)
    return inputs.requires_grad_(), weights.requires_grad_()


def cotangent_for(circuit, batch):
    return torch.tensor(np.random.default_rng(9).normal(size=(batch, circuit.n_observables)))


def results(circuit, inputs, weights, noise):
    """Outputs and gradients for a fixed cotangent."""
    outputs = run_noisy(circuit, inputs, weights, noise)
    cotangent = cotangent_for(circuit, len(inputs)).to(outputs.dtype)
    return outputs.detach(), *torch.autograd.grad(outputs, (inputs, weights), cotangent)


def expected_gradients(circuit, inputs, weights, noise):
    cotangent = cotangent_for(circuit, len(inputs)).numpy()
    by_inputs, by_weights = noisy_jacobians(circuit, inputs.detach().numpy(), weights.detach().numpy(), noise)
    return np.einsum("bm,bmi->bi", cotangent, by_inputs), np.einsum("bm,bmk->k", cotangent, by_weights)


@settings(max_examples=60, deadline=None)
@given(circuits(max_qubits=4, max_gates=18), st.integers(0, 2**31))
def test_random_circuits_equal_density_matrices(circuit, seed):
    noise = random_noise(np.random.default_rng(seed), circuit.n_qubits)
    inputs, weights = angles_for(circuit, 2, seed)
    outputs = run_noisy(circuit, inputs, weights, noise)
    expected = noisy_expectations(circuit, inputs.detach().numpy(), weights.detach().numpy(), noise)
    np.testing.assert_allclose(outputs.detach(), expected, atol=1e-12)
    single = run_noisy(circuit, inputs.float(), weights.float(), noise)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.detach(), expected, atol=2e-5)


@settings(max_examples=30, deadline=None)
@given(circuits(max_qubits=3, max_gates=12), st.integers(0, 2**31))
def test_gradients_of_random_circuits_equal_differences(circuit, seed):
    noise = random_noise(np.random.default_rng(seed), circuit.n_qubits)
    inputs, weights = angles_for(circuit, 2, seed)
    _, to_inputs, to_weights = results(circuit, inputs, weights, noise)
    by_inputs, by_weights = expected_gradients(circuit, inputs, weights, noise)
    np.testing.assert_allclose(to_inputs, by_inputs, atol=2e-8)
    np.testing.assert_allclose(to_weights, by_weights, atol=2e-8)


@pytest.mark.parametrize("noise", [MIXED, DEPOLARISING], ids=["mixed", "depolarising"])
@pytest.mark.parametrize("ansatz", ANSAETZE)
@pytest.mark.parametrize(("n_qubits", "n_layers"), [(2, 1), (4, 2)])
def test_ansaetze_equal_density_matrices(ansatz, n_qubits, n_layers, noise):
    circuit = ansatz(n_qubits, n_layers)
    inputs, weights = angles_for(circuit, 2)
    expected = noisy_expectations(circuit, inputs.detach().numpy(), weights.detach().numpy(), noise)
    outputs = run_noisy(circuit, inputs, weights, noise)
    np.testing.assert_allclose(outputs.detach(), expected, atol=1e-13)
    assert torch.autograd.gradcheck(
        lambda x, w: run_noisy(circuit, x, w, noise), (inputs, weights), eps=1e-5, atol=1e-7, fast_mode=True
    )


@pytest.mark.parametrize("ansatz", ANSAETZE)
@pytest.mark.parametrize(("n_qubits", "n_layers"), [(1, 1), (2, 2), (4, 3), (5, 1), (7, 1), (8, 2)])
def test_without_noise_it_is_the_exact_simulator(ansatz, n_qubits, n_layers):
    if ansatz is qtha_block and n_qubits == 8:
        n_qubits = 6  # Pauli vectors of all samples
    circuit = ansatz(n_qubits, n_layers)
    inputs, weights = angles_for(circuit, 5)
    found = results(circuit, inputs, weights, NoiseModel())
    outputs = run(circuit, inputs, weights)
    gradients = torch.autograd.grad(outputs, (inputs, weights), cotangent_for(circuit, 5))
    for ours, exact in zip(found, (outputs, *gradients), strict=True):
        torch.testing.assert_close(ours, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("noise", [MIXED, DEPOLARISING], ids=["mixed", "depolarising"])
@pytest.mark.parametrize("ansatz", ANSAETZE)
@pytest.mark.parametrize(("n_qubits", "n_layers"), [(4, 1), (4, 3), (8, 1)])
def test_single_precision(ansatz, n_qubits, n_layers, noise):
    circuit = ansatz(n_qubits, n_layers)
    inputs, weights = angles_for(circuit, 40)
    precise = results(circuit, inputs, weights, noise)
    single = (t.detach().float().requires_grad_() for t in (inputs, weights))
    for rough, exact in zip(results(circuit, *single, noise), precise, strict=True):
        assert rough.dtype == torch.float32
        assert (rough.double() - exact).abs().max() < 1e-5 * max(1.0, exact.abs().max())


def test_channels_do_to_a_qubit_what_their_formulas_say():
    circuit = Circuit(1, (Gate("RY", 0, Input(0)),), ("Z0", "X0"))
    inputs = torch.tensor([[0.4], [2.0]], dtype=torch.float64)
    z, x = inputs.cos(), inputs.sin()
    cases = {
        Depolarizing(0.3): (0.7 * z, 0.7 * x),
        AmplitudeDamping(0.3): (0.7 * z + 0.3, 0.7**0.5 * x),
        PhaseDamping(0.36): (z, 0.8 * x),
        ThermalRelaxation(2.0, 1.0, 0.5): (np.exp(-0.25) * z + 1 - np.exp(-0.25), np.exp(-0.5) * x),
    }
    for channel, expected in cases.items():
        found = run_noisy(circuit, inputs, inputs.new_zeros(0), NoiseModel(GateNoise(channel)))
        torch.testing.assert_close(found, torch.cat(expected, 1))
    readout = NoiseModel(readout=ReadoutError(0.1, 0.3))  # p(1|0), p(0|1)
    found = run_noisy(circuit, inputs, inputs.new_zeros(0), readout)
    torch.testing.assert_close(found, 0.2 + 0.6 * torch.cat([z, x], 1))


def test_other_encodings():
    """Products of several rotations by inputs and weights, on wires that differ in what precedes the entanglement."""
    gates = [Gate("H", 0), Gate("RZ", 0, Input(0)), Gate("RX", 1, Input(1)), Gate("RY", 1, Weight(0))]
    gates += [Gate("RZ", 1, Input(0, 2.0)), Gate("RY", 2, Weight(1)), Gate("T", 3), Gate("RX", 3, Input(2, -0.5))]
    gates += [Gate("CRX", (0, 1), Weight(2)), Gate("CNOT", (2, 3)), Gate("SWAP", (1, 2)), Gate("CZ", (3, 0))]
    circuit = Circuit(4, tuple(gates), ("Z0", "X1 Y3", "Y2", "Z0 Z1 Z2 Z3"))
    inputs, weights = angles_for(circuit, 3)
    found = results(circuit, inputs, weights, MIXED)
    expected = noisy_expectations(circuit, inputs.detach().numpy(), weights.detach().numpy(), MIXED)
    gradients = expected_gradients(circuit, inputs, weights, MIXED)
    for ours, reference in zip(found, (expected, *gradients), strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-9)


@pytest.mark.parametrize("circuit", [qtha_block(4, 2), qtha_block(7, 1), rotation_cnot_ring(6, 2)])
def test_chunking_changes_nothing_but_rounding(circuit, monkeypatch):
    inputs, weights = angles_for(circuit, 37, dtype=torch.float32)
    whole = results(circuit, inputs, weights, MIXED)
    monkeypatch.setattr(density, "_CHUNK_SAMPLES", 16)
    density._engine.cache_clear()  # nothing is remembered
    monkeypatch.setattr(pauli_tail, "_CACHED_ELEMENTS", 1)  # observables one by one
    monkeypatch.setattr(pauli_tail, "_KEPT_ELEMENTS", 0)  # walked again for the backward pass
    monkeypatch.setattr(pauli_samples, "_KEPT_ELEMENTS", 0)
    for ours, reference in zip(results(circuit, inputs, weights, MIXED), whole, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(run_noisy(circuit, inputs[30:31], weights, MIXED), whole[0][30:31], rtol=0, atol=2e-6)


def test_what_is_remembered_follows_the_weights():
    circuit = rotation_cnot_ring(3, 2)
    inputs, weights = angles_for(circuit, 4)
    first = results(circuit, inputs, weights, MIXED)
    with torch.no_grad():
        weights += 0.3  # in place, as an optimiser does
    second = results(circuit, inputs, weights, MIXED)
    density._engine.cache_clear()
    for fresh, ours, before in zip(results(circuit, inputs, weights, MIXED), second, first, strict=True):
        assert torch.equal(fresh, ours)
        assert not torch.allclose(fresh, before)
    engine = density._engine(circuit.key, MIXED.key)
    for step in range(engine.n_remembered + 5):
        run_noisy(circuit, inputs, weights.detach() + step, MIXED)
    assert len(engine.remembered) == engine.n_remembered > 0


def test_light_cones_allow_many_qubits():
    """One layer of QTHA has cones of five qubits: what is outside does not matter."""
    n, m, shift = 16, 7, 5
    circuit = qtha_block(n, 1)
    inputs, weights = angles_for(circuit, 2)
    outputs = run_noisy(circuit, inputs, weights, DEPOLARISING)
    near = slice(shift, shift + m)
    expected = noisy_expectations(
        qtha_block(m, 1),
        inputs.detach()[:, near].numpy(),
        weights.detach().view(-1, n)[:, near].flatten().numpy(),
        DEPOLARISING,
    )
    np.testing.assert_allclose(outputs.detach()[:, 8], expected[:, 8 - shift], atol=1e-12)
    with pytest.raises(InputError, match="at most 10 qubits, but Z0 depends on 16"):
        run_noisy(qtha_block(n, 4), inputs, torch.zeros(16 * n, dtype=torch.float64), DEPOLARISING)


def test_empty_batch_and_circuit_without_angles():
    circuit = qtha_block(3, 2)
    weights = torch.zeros(24, requires_grad=True)
    outputs = run_noisy(circuit, torch.zeros(0, 3), weights, MIXED)
    assert outputs.shape == (0, 3)
    outputs.sum().backward()
    assert (weights.grad == 0).all()
    bell = Circuit(2, (Gate("H", 0), Gate("CNOT", (0, 1))), ("Z0", "Z0 Z1", "X0 X1", "Y0 Y1"))
    noise = NoiseModel(GateNoise(Depolarizing(0.1, joint=True), gates="CNOT"))
    expected = torch.tensor([[0.0, 0.9, 0.9, -0.9]] * 3)
    torch.testing.assert_close(run_noisy(bell, torch.zeros(3, 0), torch.zeros(0), noise), expected)


@pytest.mark.parametrize(
    ("inputs", "weights", "words"),
    [
        (torch.zeros(3, 3), torch.zeros(8), r"inputs must have the shape \(batch, 2\) \(got \(3, 3\)\)"),
        (torch.zeros(3, 2), torch.zeros(7), r"weights must have the shape \(8,\) \(got \(7,\)\)"),
        (torch.zeros(3, 2, dtype=torch.int64), torch.zeros(8), "floating point"),
        (torch.zeros(3, 2, device="meta"), torch.zeros(8), "one device"),
        (torch.full((3, 2), torch.nan), torch.zeros(8), "inputs hold NaN"),
        (torch.zeros(3, 2), torch.full((8,), torch.inf), "weights hold NaN"),
    ],
)
def test_wrong_arguments(inputs, weights, words):
    with pytest.raises(InputError, match=words):
        run_noisy(qtha_block(2, 1), inputs, weights, MIXED)


def test_a_circuit_that_the_model_does_not_describe():
    with pytest.raises(InputError, match="coupler"):
        run_noisy(qtha_block(2, 1), torch.zeros(1, 2), torch.zeros(8), NoiseModel(couplers=[]))


@pytest.mark.parametrize("n_layers", [1, 2])
def test_operator_contract(n_layers):
    """Schemas, fake tensors, autograd registration, tracing with dynamic shapes."""
    circuit = qtha_block(2, n_layers)
    inputs, weights = angles_for(circuit, 3)
    torch.library.opcheck(torch.ops.qpeft.noisy_expectations.default, (inputs, weights, circuit.key, MIXED.key))


def test_compiled_and_under_autocast():
    circuit = rotation_cnot_ring(3, 2)
    inputs, weights = angles_for(circuit, 6, dtype=torch.float32)
    expected = results(circuit, inputs, weights, MIXED)

    compiled = torch.compile(lambda x, w: run_noisy(circuit, x, w, MIXED), fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = compiled(inputs, weights)
        gradients = torch.autograd.grad(outputs, (inputs, weights), cotangent_for(circuit, 6).float())
        eager = results(circuit, inputs, weights, MIXED)
    for a, b, c in zip(expected, (outputs, *gradients), eager, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_nothing_is_kept_for_backward():
    circuit = qtha_block(4, 2)
    inputs, weights = angles_for(circuit, 500, dtype=torch.float32)
    saved = []

    def keep(tensor):
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run_noisy(circuit, inputs, weights, MIXED)
    assert sum(saved) <= inputs.numel() + weights.numel()


def test_example_in_the_docstring():
    assert doctest.testmod(qpeft.simulators.density).failed == 0
