"""Shots: the right distribution, estimates without bias, reproducible. Seeds are fixed: nothing is left to chance."""

import doctest
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noisy_reference import density_matrix, embed, noisy_expectations, random_noise

import qpeft.simulators.sampling
from qpeft.circuits import Circuit, Gate, Input, qtha_block, rotation_cnot_ring
from qpeft.errors import InputError
from qpeft.simulators import bases, bit_strings, run, run_noisy, run_shots, sample, sampling
from qpeft.simulators.noise import AmplitudeDamping, Depolarizing, GateNoise, NoiseModel, ReadoutError

sys.path.insert(0, str(Path(__file__).parents[1] / "circuits"))
from random_circuits import circuits

NOISE = NoiseModel(
    [GateNoise(Depolarizing(0.05)), GateNoise(AmplitudeDamping(0.1), qubit=0)],
    readout=(ReadoutError(0.03, 0.07), ReadoutError(0.1, 0.0), ReadoutError(0.0, 0.2)),
)
BELL = Circuit(2, (Gate("H", 0), Gate("CNOT", (0, 1))), ("Z0", "Z1", "Z0 Z1"))


def angles_for(circuit, batch, seed=0):
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.normal(size=(batch, circuit.n_inputs))), torch.tensor(rng.normal(size=circuit.n_weights))


def read_probabilities(circuit, x, w, noise, basis):
    """The slow reference: diagonal of the density matrix in the basis, then flips of bits: (2**n,)."""
    n = circuit.n_qubits
    turns = {"X": np.array([[1, 1], [1, -1]]) / 2**0.5, "Y": np.array([[1, -1j], [1, 1j]]) / 2**0.5, "Z": np.eye(2)}
    state = density_matrix(circuit, x, w, noise)
    for wire, letter in enumerate(basis):
        turn = embed(turns[letter], (wire,), n)
        state = turn @ state @ turn.conj().T
    flips = np.eye(1)
    for wire in range(n):
        error = noise.readout_of(wire) or ReadoutError(0, 0)
        flips = np.kron(flips, [[1 - error.p10, error.p01], [error.p10, 1 - error.p01]])
    return flips @ state.diagonal().real


@settings(max_examples=40, deadline=None)
@given(circuits(max_qubits=3, max_gates=14), st.integers(0, 2**31))
def test_probabilities_of_random_circuits_in_random_bases(circuit, seed):
    rng = np.random.default_rng(seed)
    n = circuit.n_qubits
    inputs, weights = angles_for(circuit, 2, seed)
    basis = "".join(rng.choice(list("XYZ"), n))
    wires = tuple(enumerate(basis))
    for noise in (None, random_noise(rng, n)):
        found = sampling._probabilities(circuit, inputs, weights, noise, wires)
        expected = [
            read_probabilities(circuit, x, weights.numpy(), noise or NoiseModel(), basis) for x in inputs.numpy()
        ]
        np.testing.assert_allclose(found, expected, atol=1e-12)
        some = wires[1:] or wires  # fewer wires: the others are summed over
        marginal = np.array(expected).reshape(2, *[2] * n).sum(1).reshape(2, -1) if n > 1 else expected
        np.testing.assert_allclose(
            sampling._probabilities(circuit, inputs, weights, noise, some), marginal, atol=1e-12
        )


def test_many_wires_read_in_part():
    """More wires than strings are used for: from the whole state."""
    circuit = rotation_cnot_ring(9, 1)
    inputs, weights = angles_for(circuit, 2)
    wires = tuple((wire, "Z") for wire in range(1, 9))
    found = sampling._probabilities(circuit, inputs, weights, None, wires)
    signs = 1.0 - 2.0 * (torch.arange(256)[:, None] >> torch.arange(7, -1, -1) & 1)
    torch.testing.assert_close(found @ signs.double(), run(circuit, inputs, weights)[:, 1:])


@pytest.mark.parametrize("noise", [None, NOISE], ids=["ideal", "noisy"])
def test_counts_follow_the_probabilities(noise):
    circuit = rotation_cnot_ring(3, 2)
    inputs, weights = angles_for(circuit, 4)
    shots = 100_000
    counts = sample(circuit, inputs, weights, shots, seed=3, noise=noise, basis="ZXY")
    assert counts.dtype == torch.int64
    assert (counts.sum(1) == shots).all()
    p = np.array([
        read_probabilities(circuit, x, weights.numpy(), noise or NoiseModel(), "ZXY") for x in inputs.numpy()
    ])  # fmt: skip
    assert ((counts.numpy() - shots * p) ** 2 / (shots * p)).sum() < 60  # χ² with 28 degrees of freedom


def test_counts_of_few_shots_are_multinomial():
    """Means and covariances of counts over many equal samples."""
    batch, shots = 40_000, 5
    p = torch.tensor([0.5, 0.1, 0.0, 0.4], dtype=torch.float64)
    counts = sampling._draw(p.expand(batch, 4), shots, torch.Generator().manual_seed(1)).double()
    assert (counts[:, 2] == 0).all()
    assert (counts.sum(1) == shots).all()
    assert (counts.mean(0) - shots * p).abs().max() < 0.03
    covariance = shots * (p.diag() - p[:, None] * p)
    assert (counts.t().cov() - covariance).abs().max() < 0.03


@pytest.mark.parametrize("marginals", [False, True])
@pytest.mark.parametrize("noise", [None, NOISE], ids=["ideal", "noisy"])
def test_estimates_have_the_right_mean_variance_and_covariance(noise, marginals):
    base = rotation_cnot_ring(3, 1)
    circuit = Circuit(3, base.gates, ("Z0", "Z1", "Z0 Z1", "X0", "X0 Z1"))
    inputs, weights = angles_for(circuit, 1)
    batch, shots = 20_000, 20
    estimates = run_shots(circuit, inputs.expand(batch, -1), weights, shots, 5, noise, marginals)
    assert estimates.shape == (batch, 5)
    assert estimates.dtype == torch.float64
    model = noise or NoiseModel()
    mean = noisy_expectations(circuit, inputs.numpy(), weights.numpy(), model)[0]
    variance = (1 - mean**2) / shots
    assert (np.abs(estimates.numpy().mean(0) - mean) < 4.5 * (variance / batch) ** 0.5).all()
    np.testing.assert_allclose(estimates.numpy().var(0), variance, rtol=0.05)
    found = np.cov(estimates.numpy().T)
    both = (mean[2] - mean[0] * mean[1]) / shots  # of Z0 and Z1, which are read together
    assert abs(both) > 0.005
    assert found[0, 1] == pytest.approx(0 if marginals else both, abs=0.001)
    assert abs(found[0, 3]) < 0.001  # Z0 and X0 are never read together
    assert (abs(found[3, 4]) > 0.002) != marginals  # X0 and X0 Z1 are


def test_observables_are_grouped_by_basis():
    circuit = Circuit(3, BELL.gates, ("Z0", "X0", "Z1 Z2", "X0 Y1", "Y1", "Z0 Z1", "X2"))
    found = bases.settings(circuit.key)
    assert [setting.places for setting in found] == [(0, 2, 5), (1, 3, 4, 6)]
    assert found[1].wires == ((0, "X"), (1, "Y"), (2, "X"))
    assert found[1].masks == (0b100, 0b110, 0b010, 0b001)


def test_seeds():
    circuit = qtha_block(3, 1)
    inputs, weights = angles_for(circuit, 5)
    for draw in (
        lambda seed: sample(circuit, inputs, weights, 100, seed),
        lambda seed: run_shots(circuit, inputs, weights, 100, seed),
        lambda seed: run_shots(circuit, inputs, weights, 100, seed, NOISE),
        lambda seed: run_shots(circuit, inputs, weights, 100, seed, marginals=True),
    ):
        assert torch.equal(draw(7), draw(7))
        assert torch.equal(draw(7), draw(torch.tensor(7)))
        assert not torch.equal(draw(7), draw(8))
    before = torch.random.get_rng_state()
    run_shots(circuit, inputs, weights, 100, 0)
    assert torch.equal(torch.random.get_rng_state(), before)  # the global generator is left alone


def test_many_shots_come_close_to_the_expectations():
    circuit = qtha_block(4, 2)
    inputs, weights = angles_for(circuit, 6)
    inputs.requires_grad_()
    for marginals in (False, True):
        estimates = run_shots(circuit, inputs.float(), weights.float(), 1_000_000, 2, marginals=marginals)
        assert estimates.dtype == torch.float32
        assert not estimates.requires_grad
        torch.testing.assert_close(estimates.double(), run(circuit, inputs, weights).detach(), rtol=0, atol=5e-3)
    noise = NoiseModel.uniform(0.02, readout=(0.01, 0.05))
    estimates = run_shots(circuit, inputs, weights, 1_000_000, 2, noise)
    torch.testing.assert_close(estimates, run_noisy(circuit, inputs, weights, noise).detach(), rtol=0, atol=5e-3)


def test_bit_strings_are_the_counts():
    counts = sample(BELL, torch.zeros(3, 0), torch.zeros(0), 50, seed=0)
    bits = bit_strings(counts)
    assert bits.shape == (3, 50, 2)
    assert (bits[..., 0] == bits[..., 1]).all()
    assert (bits[..., 0].sum(1) == counts[:, 3]).all()


def test_chunks_and_empty_batches(monkeypatch):
    circuit = Circuit(2, (Gate("RY", 0, Input(0)), Gate("CNOT", (0, 1))))
    inputs = torch.linspace(0, 3, 50)[:, None]
    monkeypatch.setattr(sampling, "_CHUNK_ELEMENTS", 64)
    estimates = run_shots(circuit, inputs, torch.zeros(0), 10_000, 0)
    torch.testing.assert_close(estimates, inputs.cos().expand(-1, 2), rtol=0, atol=0.05)
    for marginals in (False, True):
        assert run_shots(circuit, inputs[:0], torch.zeros(0), 10, 0, marginals=marginals).shape == (0, 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shots": 0}, "shots must be a whole number of at least 1"),
        ({"shots": 10.0}, "shots must be"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"seed": 0.5}, "seed must be"),
        ({"seed": torch.zeros(2, dtype=torch.int64)}, "seed must be"),
        ({"inputs": torch.zeros(1, 3)}, "inputs must have the shape"),
        ({"inputs": torch.full((1, 2), torch.nan)}, "NaN"),
    ],
)
def test_wrong_arguments(change, words):
    arguments = {"circuit": qtha_block(2, 1), "inputs": torch.zeros(1, 2), "weights": torch.zeros(8)}
    arguments |= {"shots": 10, "seed": 0} | change
    for function in (run_shots, sample):
        with pytest.raises(InputError, match=words):
            function(**arguments)


def test_wrong_bases_and_too_many_wires():
    for basis in ("Z", "ZQ", "ZZZ"):
        with pytest.raises(InputError, match="one of X, Y, Z for each of the 2 wires"):
            sample(BELL, torch.zeros(1, 0), torch.zeros(0), 10, 0, basis=basis)
    n = sampling.MAX_SAMPLED + 1
    with pytest.raises(InputError, match=f"at most {n - 1} wires can be read together"):
        run_shots(qtha_block(n, 1), torch.zeros(1, n), torch.zeros(4 * n), 10, 0)


def test_examples_in_the_docstrings():
    for module in (qpeft.simulators.sampling, bases):
        assert doctest.testmod(module).failed == 0
