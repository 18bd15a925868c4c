"""Probabilities of all basis states: right, differentiable, and the same in both engines."""

import doctest

import pytest
import torch
from random_cases import samples
from torch.autograd import gradcheck

import qpeft.simulators.outcomes
from qpeft.circuits import Circuit, Gate, Input, Observable, Weight, qtha_block, rotation_cnot_ring
from qpeft.errors import InputError
from qpeft.simulators import native, probabilities, run
from qpeft.simulators.outcomes import _StateProbabilities

ENDS_IN_A_PERMUTATION = Circuit(
    3,
    (
        *(Gate("RX", wire, Input(wire)) for wire in range(3)),
        Gate("CRY", (0, 2), Weight(0)),
        Gate("X", 1),
        Gate("CNOT", (1, 0)),
        Gate("SWAP", (0, 2)),
    ),
)
CIRCUITS = [rotation_cnot_ring(4, 2), qtha_block(3, 2), ENDS_IN_A_PERMUTATION]


def engine(name, circuit):
    if name == "torch":
        return _StateProbabilities(circuit)
    if not native.available():
        pytest.skip(f"the native kernel is {native.description()}")
    return native.NativeEngine(circuit, probabilities=True)


@pytest.mark.parametrize("name", ["native", "torch"])
@pytest.mark.parametrize("circuit", CIRCUITS)
def test_they_give_the_expectations_of_all_z_strings_and_their_gradients(name, circuit):
    n = circuit.n_qubits
    inputs, weights, _ = samples(circuit, 19)
    strings = [[wire for wire in range(n) if mask >> (n - 1 - wire) & 1] for mask in range(1, 1 << n)]
    texts = [" ".join(f"Z{wire}" for wire in string) for string in strings]
    expected = Circuit(n, circuit.gates, tuple(map(Observable, texts)))
    masks = torch.arange(1, 1 << n)
    states = torch.arange(1 << n)
    signs = torch.tensor([[(-1.0) ** int(s & m).bit_count() for m in masks] for s in states], dtype=torch.float64)

    built = engine(name, circuit)
    found = built.evaluate(inputs, weights)
    assert found.shape == (19, 1 << n)
    torch.testing.assert_close(found.sum(1), torch.ones(19, dtype=torch.float64))
    torch.testing.assert_close(found @ signs, run(expected, inputs, weights))

    gradient = torch.randn(19, len(texts), dtype=torch.float64)
    inputs.requires_grad_()
    weights.requires_grad_()
    wanted = torch.autograd.grad(run(expected, inputs, weights), (inputs, weights), gradient)
    given = built.differentiate(gradient @ signs.t(), inputs.detach(), weights.detach())
    for one, other in zip(given, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_operator_differentiates_and_keeps_its_contract():
    circuit = ENDS_IN_A_PERMUTATION
    inputs, weights, _ = samples(circuit, 3)
    inputs.requires_grad_()
    weights.requires_grad_()
    assert gradcheck(lambda x, w: probabilities(circuit, x, w), (inputs, weights))
    torch.library.opcheck(torch.ops.qpeft.probabilities.default, (inputs, weights, circuit.key))


@pytest.mark.parametrize(
    ("circuit", "inputs", "weights", "words"),
    [
        (Circuit(21, (Gate("H", 0),)), torch.zeros(1, 0), torch.zeros(0), "at most 20 qubits"),
        (qtha_block(2, 1), torch.zeros(1, 3), torch.zeros(8), "must have the shapes"),
        (qtha_block(2, 1), torch.full((1, 2), float("nan")), torch.zeros(8), "NaN or infinity"),
    ],
)
def test_refuses_in_a_sentence(circuit, inputs, weights, words):
    with pytest.raises(InputError, match=words):
        probabilities(circuit, inputs, weights)


def test_examples():
    assert doctest.testmod(qpeft.simulators.outcomes).failed == 0
