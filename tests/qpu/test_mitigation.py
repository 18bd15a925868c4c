"""Mitigation: what is said to be unbiased is, with the variance that is stated."""

import doctest
import functools
import math

import pytest
import torch

import qpeft.qpu.mitigation
from qpeft.chips import NativeTemplate
from qpeft.circuits import Circuit, Gate, Input, qtha_block
from qpeft.circuits.parameters import weights_as_inputs
from qpeft.errors import InputError
from qpeft.qpu.mitigation import (
    Mitigation,
    estimate,
    extrapolation_weights,
    fit_affine,
    fold_cz,
    outcome_values,
    readout_flips,
    reference_angles,
)
from qpeft.qpu.protocol import ProviderError
from qpeft.simulators import NoiseModel, ReadoutError, run, sample

FLIPS = torch.tensor([[0.02, 0.11], [0.05, 0.05], [0.01, 0.2]], dtype=torch.float64)
NOISE = NoiseModel(readout=tuple(ReadoutError(*row) for row in FLIPS.tolist()))
MASKS = (0b100, 0b010, 0b110, 0b111)
STATE = Circuit(
    3,
    (Gate("RY", 0, 0.7), Gate("RY", 1, 1.9), Gate("CNOT", (0, 2)), Gate("CRY", (1, 2), 0.6)),
    ("Z0", "Z1", "Z0 Z1", "Z0 Z1 Z2"),
)


def exact():
    return run(STATE, torch.zeros(1, 0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64))[0]


def counts_of(rows, shots, noise=NOISE, seed=0):
    return sample(STATE, torch.zeros(rows, 0), torch.zeros(0), shots, seed, noise)


def test_values_of_outcomes_are_the_inverse_of_all_confusion_matrices():
    matrices = [torch.tensor([[1 - a, b], [a, 1 - b]], dtype=torch.float64) for a, b in FLIPS.tolist()]
    inverse = torch.linalg.inv(functools.reduce(torch.kron, matrices))
    signs = torch.tensor([[(-1.0) ** (state & mask).bit_count() for mask in MASKS] for state in range(8)]).double()
    torch.testing.assert_close(outcome_values(MASKS, 3, FLIPS), inverse.T @ signs)
    assert torch.equal(outcome_values(MASKS, 3), signs)


def test_readout_inversion_has_no_bias_and_the_stated_error():
    rows, shots = 20_000, 40
    found = estimate(counts_of(rows, shots), MASKS, FLIPS)
    error = found.values.std(0) / rows**0.5
    assert ((found.values.mean(0) - exact()).abs() < 4.5 * error).all()
    assert ((estimate(counts_of(rows, shots), MASKS).values.mean(0) - exact()).abs() > 10 * error).all()
    # the error that a row states is the deviation between rows, up to the shots' own n - 1
    stated = found.errors.square().mean(0) * shots / (shots - 1)
    torch.testing.assert_close(stated, found.values.var(0), rtol=0.05, atol=0)


def test_variance_of_inversion_is_as_the_module_says():
    flips = torch.tensor([[0.06, 0.06], [0.08, 0.08]], dtype=torch.float64)
    contrast = 1 - flips.sum(1)
    circuit = Circuit(2, (Gate("RY", 0, 0.7), Gate("RY", 1, 1.1)), ("Z0", "Z0 Z1"))
    noise = NoiseModel(readout=tuple(ReadoutError(*row) for row in flips.tolist()))
    rows, shots = 20_000, 25
    counts = sample(circuit, torch.zeros(rows, 0), torch.zeros(0), shots, 1, noise)
    values = estimate(counts, (0b10, 0b11), flips).values
    true = torch.tensor([math.cos(0.7), math.cos(0.7) * math.cos(1.1)], dtype=torch.float64)
    stated = (torch.stack([contrast[0] ** -2, (contrast[0] * contrast[1]) ** -2]) - true.square()) / shots
    torch.testing.assert_close(values.var(0), stated, rtol=0.05, atol=0)


def test_wires_that_say_nothing_are_named():
    flips = readout_flips(torch.tensor([0.1, 0.05]), torch.tensor([0.8, 0.9]))
    torch.testing.assert_close(flips, torch.tensor([[0.1, 0.2], [0.05, 0.1]]))
    with pytest.raises(ProviderError, match=r"qubit 17 reads 1 with probability 0.50 when it is 0 and 0.52"):
        readout_flips(torch.tensor([0.1, 0.5]), torch.tensor([0.9, 0.52]), names=(4, 17))


def test_m3_agrees_with_tensored_inversion_where_all_outcomes_were_read():
    pytest.importorskip("mthree")
    counts = counts_of(3, 100_000)
    assert (counts > 0).all()
    tensored, m3 = estimate(counts, MASKS, FLIPS), estimate(counts, MASKS, FLIPS, m3=True)
    torch.testing.assert_close(m3.values, tensored.values, rtol=0, atol=1e-6)
    assert torch.equal(m3.errors, tensored.errors)


def test_affine_fit_has_no_bias_and_the_stated_variance():
    generator = torch.Generator().manual_seed(0)
    exact = torch.rand(12, 2, generator=generator, dtype=torch.float64) * 2 - 1
    scale, shift, sigma = torch.tensor([0.7, 0.4]), torch.tensor([0.05, -0.2]), 0.03
    fits = []
    for _ in range(3000):
        noise = torch.randn(12, 2, generator=generator, dtype=torch.float64) * sigma
        fits.append(torch.stack(fit_affine(exact * scale + shift + noise, exact)))
    found = torch.stack(fits)  # (fits, 2, observables)
    truth = torch.stack([scale, shift]).double()
    error = found.std(0) / len(fits) ** 0.5
    assert ((found.mean(0) - truth).abs() < 4.5 * error).all()
    spread = (exact - exact.mean(0)).square().sum(0)
    stated = sigma**2 * torch.stack([1 / spread, 1 / 12 + exact.mean(0).square() / spread])
    torch.testing.assert_close(found.var(0), stated, rtol=0.12, atol=0)
    fit = fit_affine(exact * scale + shift, exact)
    torch.testing.assert_close(fit.undo(exact * scale + shift), exact)


def test_affine_fit_refuses_what_noise_has_drowned():
    exact = torch.tensor([[-0.8], [0.1], [0.9]])
    with pytest.raises(ProviderError, match="noise leaves 2% of observable 0"):
        fit_affine(0.02 * exact, exact)
    constant = torch.ones(3, 1)
    assert fit_affine(0.9 * constant, constant).scale.item() == 1.0  # nothing to scale, only to shift


def test_reference_circuits_have_large_expectations():
    circuit = qtha_block(3, 1)
    angles = reference_angles(circuit, 16)
    free = weights_as_inputs(circuit)
    assert angles.shape == (16, free.n_inputs)
    nothing = torch.zeros(0, dtype=torch.float64)
    chosen = run(free, angles, nothing).square().mean()
    others = torch.rand(500, free.n_inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 6.2832
    assert chosen > 2.5 * run(free, others, nothing).square().mean()


def test_folding_repeats_cz_and_nothing_else():
    gates = (Gate("RX", 0, math.pi / 2), Gate("RZ", 0, Input(0)), Gate("CZ", (0, 1)), Gate("RX", 1, math.pi / 2))
    template = NativeTemplate(Circuit(2, gates), (7, 8), (0, 1), lambda inputs, weights: inputs)
    folded = fold_cz(template, 3)
    assert [gate.name for gate in folded.circuit.gates] == ["RX", "RZ", "CZ", "CZ", "CZ", "RX"]
    assert folded.qubits == template.qubits
    angles, nothing = torch.tensor([[0.4], [2.0]]), torch.zeros(0)
    torch.testing.assert_close(run(folded.circuit, angles, nothing), run(template.circuit, angles, nothing))
    for times in (0, 2, -1, True, 1.0):
        with pytest.raises(InputError, match="odd number of times"):
            fold_cz(template, times)


def test_extrapolation_is_exact_for_polynomials_and_lines():
    points = torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64)
    richardson, line = extrapolation_weights((1, 3, 5)), extrapolation_weights((1, 3, 5), "linear")
    assert (0.3 - 0.2 * points + 0.04 * points**2) @ richardson == pytest.approx(0.3)
    assert (0.3 - 0.2 * points) @ line == pytest.approx(0.3)
    assert richardson.square().sum() == pytest.approx(5.22, abs=0.01)  # what the module says of the variance
    assert line.square().sum() < richardson.square().sum()
    for factors, fit in (((1,), "richardson"), ((1, 1), "linear"), ((1, 3), "cubic")):
        with pytest.raises(InputError):
            extrapolation_weights(factors, fit)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"readout": "twirled"}, "unknown readout mitigation 'twirled'; available: tensored, m3, none"),
        ({"calibration_shots": 0}, "calibration_shots must be a whole number of at least 1"),
        ({"references": 2}, "references must be a whole number of at least 4"),
        ({"minutes": 0}, "more than 0 minutes"),
    ],
)
def test_options_out_of_range_are_named(options, words):
    with pytest.raises(InputError, match=words):
        Mitigation(**options)


def test_examples_in_docstrings():
    assert doctest.testmod(qpeft.qpu.mitigation).failed == 0
