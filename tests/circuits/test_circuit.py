"""The circuit value: validation, keys, binding, drawing."""

import copy
import doctest
import pickle

import pytest
from hypothesis import given, settings
from random_circuits import circuits

import qpeft.circuits.ansatze
import qpeft.circuits.circuit
from qpeft.circuits import Circuit, Gate, Input, Observable, Weight, qtha_block
from qpeft.errors import InputError


@pytest.mark.parametrize("module", [qpeft.circuits.circuit, qpeft.circuits.ansatze])
def test_examples_in_the_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Gate("RXX", (0, 1), 0.5), "unknown gate 'RXX'"),
        (lambda: Gate("CNOT", (0,)), "acts on 2 wire"),
        (lambda: Gate("H", (0, 1)), "acts on 1 wire"),
        (lambda: Gate("CZ", (1, 1)), "same wire twice"),
        (lambda: Gate("X", -1), "whole numbers"),
        (lambda: Gate("X", 1.5), "whole numbers"),
        (lambda: Gate("RY", 0), "has no angle"),
        (lambda: Gate("H", 0, 0.3), "takes no angle"),
        (lambda: Gate("RY", 0, float("nan")), "finite"),
        (lambda: Gate("RY", 0, "0.5"), "finite"),
        (lambda: Input(-1), "0 or more"),
        (lambda: Weight(0.5), "0 or more"),
        (lambda: Weight(0, scale=float("inf")), "finite scale"),
        (lambda: Observable("Q0"), "Pauli string"),
        (lambda: Observable(""), "Pauli string"),
        (lambda: Observable("Z0 X0"), "twice"),
        (lambda: Circuit(0, ()), "at least 1 qubit"),
        (lambda: Circuit(2.0, ()), "at least 1 qubit"),
        (lambda: Circuit(2, (Gate("H", 2),)), "wire 2"),
        (lambda: Circuit(2, ("H",)), "Gate\\(name"),
        (lambda: Circuit(2, (), ()), "at least one observable"),
        (lambda: Circuit(2, (), ("Z2",)), "beyond the last wire 1"),
        (lambda: Circuit(1, (Gate("RY", 0, Weight(1)),)), "Weight\\(0\\) is used by no gate"),
        (lambda: Circuit(1, (Gate("RY", 0, Input(0)), Gate("RY", 0, Input(2)))), "Input\\(1\\) is used by no gate"),
        (lambda: Circuit.from_key("{}"), "not a circuit key"),
        (lambda: Circuit.from_key("nonsense"), "not a circuit key"),
        (lambda: qtha_block(2, 1).bind(inputs=[0.1]), "takes 2 input"),
        (lambda: qtha_block(1, 1).bind(inputs=[float("nan")]), "finite"),
        (lambda: qtha_block(0, 1), "n_qubits must be"),
        (lambda: qtha_block(2, True), "n_layers must be"),
        (lambda: qtha_block(2, 1, gate_order="new"), "'published' or 'older'"),
    ],
)
def test_wrong_values_are_named(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_a_circuit_cannot_be_changed():
    circuit = qtha_block(2, 1)
    with pytest.raises(AttributeError):
        circuit.n_qubits = 3
    assert hash(circuit) == hash(qtha_block(2, 1))
    assert circuit != qtha_block(2, 1, gate_order="older")


@settings(max_examples=60, deadline=None)
@given(circuits())
def test_key_copy_and_pickle_keep_the_circuit(circuit):
    assert Circuit.from_key(circuit.key) == circuit
    assert pickle.loads(pickle.dumps(circuit)) == circuit
    assert copy.deepcopy(circuit) == circuit


@settings(max_examples=60, deadline=None)
@given(circuits(max_qubits=5))
def test_drawing_shows_every_gate_and_keeps_its_width(circuit):
    text = circuit.draw(max_width=60)
    for gate in circuit.gates:
        if isinstance(gate.angle, Weight):
            assert f"w{gate.angle.index})" in text
    assert all(len(line) <= 60 + 3 * 6 for line in text.splitlines() if not line.startswith("measured"))
    for wire in range(circuit.n_qubits):
        assert f"q{wire}: ─" in text


def test_drawing_of_all_kinds_of_gates():
    circuit = Circuit(
        3,
        (
            Gate("H", 0),
            Gate("SWAP", (0, 2)),
            Gate("CNOT", (2, 1)),
            Gate("CRX", (0, 1), Input(0, 0.5)),
            Gate("CZ", (1, 2)),
            Gate("RZ", 0, 0.25),
        ),
        ("Z1", "X0 Y2"),
    )
    assert circuit.draw().splitlines() == [
        "q0: ─H─x───────●─────RZ(0.25)─",
        "       │       │",
        "q1: ───┼─X─RX(0.5x0)─────●──── <Z1>",
        "       │ │               │",
        "q2: ───x─●───────────────Z────",
        "",
        "measured: <X0 Y2>",
    ]
