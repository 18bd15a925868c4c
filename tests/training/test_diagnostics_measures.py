"""The measures of the diagnostics against slow, obvious references."""

import math

import pytest
import torch
from torch import nn

from qpeft.circuits import Circuit, Gate, Input, Weight, qtha_block
from qpeft.gradients import shift_gradient
from qpeft.simulators import run
from qpeft.training.diagnostics_measures import (
    circuit_gradient_variance,
    effective_rank,
    linear_fit_r2,
    product_singular_values,
    share_of,
    two_design_variance,
)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def test_a_linear_map_has_r2_of_one_and_noise_has_none(rng):
    x = torch.randn(200, 4, generator=rng)
    y = x @ torch.randn(4, 3, generator=rng) + torch.randn(3, generator=rng)
    assert linear_fit_r2(x, y) == pytest.approx(1, abs=1e-9)
    assert linear_fit_r2(x, torch.randn(200, 3, generator=rng)) < 0.1


@pytest.mark.parametrize(("spread", "low", "high"), [(0.05, 0.999, 0.9999), (1.0, 0.5, 0.99), (20.0, -1.0, 0.2)])
def test_a_circuit_of_ry_alone_is_less_linear_the_wider_its_inputs_spread(rng, spread, low, high):
    circuit = Circuit(2, (Gate("RY", 0, Input(0)), Gate("RY", 1, Input(1)), Gate("RY", 0, Weight(0))))
    x = spread * torch.randn(400, 2, generator=rng) + 1.0  # away from the extremum of the cosine at 0
    r2 = linear_fit_r2(x, run(circuit, x, torch.tensor([0.4])))
    assert low < r2 < high


def test_r2_is_that_of_tokens_which_the_fit_did_not_see(rng):
    x, y = torch.randn(60, 3, generator=rng).double(), torch.randn(60, 2, generator=rng).double()
    design = torch.cat([x, torch.ones(60, 1, dtype=torch.float64)], 1)
    fit = torch.linalg.inv(design[::2].T @ design[::2]) @ design[::2].T @ y[::2]
    residual = y[1::2] - design[1::2] @ fit
    expected = 1 - residual.square().sum() / (y[1::2] - y[1::2].mean(0)).square().sum()
    assert linear_fit_r2(x, y) == pytest.approx(float(expected))


def test_tokens_that_occur_twice_do_not_tell_the_fit_its_answers(rng):
    """Noise on few tokens that are repeated: seen in both halves they would be predicted with ease."""
    x, y = torch.randn(22, 4, generator=rng), torch.randn(22, 2, generator=rng)
    twice = torch.arange(22).repeat_interleave(2)
    assert linear_fit_r2(x[twice], y[twice]) == pytest.approx(linear_fit_r2(x, y))
    assert linear_fit_r2(x[twice][:30], y[twice][:30]) is None  # 15 distinct ones, and 20 are needed


def test_r2_is_not_defined_for_constants_few_tokens_or_broken_numbers(rng):
    x = torch.randn(100, 2, generator=rng)
    assert linear_fit_r2(x, torch.full((100, 2), 0.3)) is None
    assert linear_fit_r2(x[:11], x[:11]) is None
    assert linear_fit_r2(x, torch.full((100, 2), math.nan)) is None
    assert linear_fit_r2(torch.zeros(100, 2), x) is None


def test_collinear_inputs_are_fitted_all_the_same(rng):
    x = torch.randn(100, 1, generator=rng).repeat(1, 3)
    assert linear_fit_r2(x, x[:, :1] * 2) == pytest.approx(1, abs=1e-9)


def test_singular_values_of_a_product_are_those_of_the_matrix(rng):
    left, right = torch.randn(40, 3, generator=rng), torch.randn(25, 3, generator=rng)
    expected = torch.linalg.svdvals((left @ right.T).double())[:3]
    torch.testing.assert_close(product_singular_values(left, right), expected, rtol=1e-5, atol=1e-5)
    narrow = product_singular_values(left[:2], right)
    torch.testing.assert_close(narrow, torch.linalg.svdvals((left[:2] @ right.T).double()), rtol=1e-5, atol=1e-5)


def test_the_effective_rank_lies_between_one_and_the_rank(rng):
    values = product_singular_values(torch.randn(40, 3, generator=rng), torch.randn(25, 3, generator=rng))
    assert 1 < effective_rank(values) <= 3
    assert effective_rank(torch.tensor([5.0, 0.0])) == 1
    p = torch.tensor([0.75, 0.25])
    assert effective_rank(4 * p) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    assert effective_rank(torch.zeros(3)) is None
    assert effective_rank(product_singular_values(torch.full((4, 2), math.nan), torch.ones(4, 2))) is None


def test_a_share_is_a_ratio_of_norms():
    assert share_of(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 15.0]])) == pytest.approx(0.25)
    assert share_of(torch.ones(2), torch.zeros(2)) == 1
    assert share_of(torch.zeros(2), torch.zeros(2)) is None


@pytest.mark.parametrize("circuit", [qtha_block(3, 2), qtha_block(1, 1)], ids=["ring", "one qubit"])
def test_gradient_variance_is_that_of_the_parameter_shift_rule(rng, circuit):
    x = torch.randn(5, circuit.n_inputs, generator=rng).double()
    weights = torch.randn(circuit.n_weights, generator=rng, dtype=torch.float64)
    jacobian = shift_gradient(circuit, x, weights).weights
    assert circuit_gradient_variance(circuit, x, weights) == pytest.approx(float(jacobian.var(correction=0)), rel=1e-9)


def test_the_plateau_is_that_of_random_unitaries(rng):
    """Haar-random parts before and after a rotation about X of the first of two qubits, Z of the second measured."""
    eye, n = torch.eye(2, dtype=torch.complex128), 4000
    pauli_x, pauli_z = torch.tensor([[0, 1], [1, 0]]) + 0 * eye, torch.diag(torch.tensor([1, -1])) + 0 * eye
    generator, observable = torch.kron(pauli_x, eye) / 2, torch.kron(eye, pauli_z)
    before, after = (_random_unitaries(n, 4, rng) for _ in range(2))
    state = before[:, :, 0]  # (n, 4)
    seen = after.mH @ observable @ after  # (n, 4, 4)
    slope = 2 * torch.einsum("ni,nij,nj->n", state.conj(), seen, -1j * state @ generator.T).real
    assert float(slope.square().mean()) == pytest.approx(two_design_variance(2), rel=0.1)
    assert two_design_variance(10) == pytest.approx(2**-11, rel=2e-3)


def _random_unitaries(n, d, rng):
    q, r = torch.linalg.qr(torch.randn(n, d, d, generator=rng, dtype=torch.complex128))
    phases = r.diagonal(dim1=-2, dim2=-1)
    return q * (phases / phases.abs())[:, None]


def test_a_module_without_gradient_costs_nothing_of_the_graph(rng):
    weight = nn.Parameter(torch.randn(12, generator=rng))
    with torch.no_grad():
        circuit_gradient_variance(qtha_block(3, 1), torch.randn(4, 3, generator=rng), weight)
    assert weight.grad is None
