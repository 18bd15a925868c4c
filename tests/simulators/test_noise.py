"""The noise model as a value: what it says about gates, what it refuses, and what a chip snapshot becomes."""

import doctest

import numpy as np
import pytest
from noisy_reference import kraus_operators, random_noise

import qpeft.simulators.noise
from qpeft.circuits import Circuit, Gate, qtha_block, rotation_cnot_ring
from qpeft.errors import InputError
from qpeft.simulators.noise import (
    AmplitudeDamping,
    Depolarizing,
    GateNoise,
    NoiseModel,
    PhaseDamping,
    ReadoutError,
    ThermalRelaxation,
)
from qpeft.simulators.pauli import ORDER, channel_matrix

LETTERS = {"I": np.eye(2), "X": np.array([[0, 1], [1, 0]]), "Y": np.array([[0, -1j], [1j, 0]]), "Z": np.diag([1, -1])}
CHANNELS = [Depolarizing(0.3), AmplitudeDamping(0.2), PhaseDamping(0.4), ThermalRelaxation(3.0, 2.0, 0.7)]
SNAPSHOT = {
    "t1_us": [9.0, 14.0, 20.0],
    "t2_us": [8.0, 9.5, 40.0],
    "one_qubit_fidelity": [0.995, 0.997, 0.9999],
    "two_qubit_fidelity": {(0, 1): 0.95, (2, 1): 0.0},
    "readout_fidelity": [0.92, (0.95, 0.9), 0.99],
}


@pytest.mark.parametrize("channel", [*CHANNELS, Depolarizing(1.0), AmplitudeDamping(1.0), PhaseDamping(1.0)])
def test_matrices_are_those_of_the_kraus_operators(channel):
    operators = kraus_operators(channel, 1)
    np.testing.assert_allclose(sum(k.conj().T @ k for k in operators), np.eye(2), atol=1e-15)
    basis = [LETTERS[letter] for letter in ORDER]
    expected = [[np.trace(p @ sum(k @ q @ k.conj().T for k in operators)).real / 2 for q in basis] for p in basis]
    np.testing.assert_allclose(channel_matrix(channel, 1), expected, atol=1e-15)


@pytest.mark.parametrize("n_wires", [1, 2])
def test_depolarising_strength_errors_and_fidelity(n_wires):
    """The relations of the docstring: probability of an error, and average fidelity over random states."""
    p, d = 0.2, 2**n_wires
    operators = kraus_operators(Depolarizing(p, joint=True), n_wires)
    assert np.trace(operators[0]).real ** 2 / d**2 == pytest.approx(1 - p * (4**n_wires - 1) / 4**n_wires)
    average = (sum(abs(np.trace(k)) ** 2 for k in operators) + d) / (d**2 + d)
    assert average == pytest.approx(1 - p * (d - 1) / d)


def test_thermal_relaxation_is_the_damping_that_it_says():
    t1, t2, t = 3.0, 2.0, 0.7
    damped = channel_matrix(PhaseDamping(1 - np.exp(t / t1 - 2 * t / t2)), 1)
    expected = damped @ channel_matrix(AmplitudeDamping(1 - np.exp(-t / t1)), 1)
    np.testing.assert_allclose(channel_matrix(ThermalRelaxation(t1, t2, t), 1), expected, atol=1e-15)


def test_rules_match_by_gate_wires_and_qubit():
    a, b, c, d = Depolarizing(0.1, joint=True), AmplitudeDamping(0.2), PhaseDamping(0.3), Depolarizing(0.4)
    noise = NoiseModel(
        [
            GateNoise(a, gates=["CZ", "cnot"]),
            GateNoise(b, qubit=2),
            GateNoise(c, wires=(1, 2)),
            GateNoise(d, gates="RY", wires=0),
        ]
    )
    assert noise.channels_after(Gate("RY", 0, 0.1)) == ((d, (0,)),)
    assert noise.channels_after(Gate("RZ", 0, 0.1)) == ()
    assert noise.channels_after(Gate("H", 2)) == ((b, (2,)),)
    assert noise.channels_after(Gate("CNOT", (1, 2))) == ((a, (1, 2)), (b, (2,)), (c, (1,)), (c, (2,)))
    assert noise.channels_after(Gate("CNOT", (2, 1))) == ((a, (2, 1)), (b, (2,)))  # control first
    assert noise.channels_after(Gate("CZ", (2, 1))) == ((a, (2, 1)), (b, (2,)), (c, (2,)), (c, (1,)))  # symmetric
    on_one = GateNoise(Depolarizing(0.1, joint=True), gates="CZ", qubit=1)
    assert NoiseModel(on_one).channels_after(Gate("CZ", (0, 1))) == ((Depolarizing(0.1, joint=True), (1,)),)


def test_a_rule_may_hold_at_one_place_of_the_circuit_only():
    gates = (Gate("CZ", (0, 1)), Gate("RX", 1, 0.5), Gate("CZ", (1, 0)))
    everywhere, here = GateNoise(AmplitudeDamping(0.1), qubit=1), GateNoise(PhaseDamping(0.2), qubit=0, place=2)
    noise = NoiseModel([everywhere, here, GateNoise(Depolarizing(0.3), gates="RY", place=1)])
    assert noise.channels_after(gates[0], 0) == ((AmplitudeDamping(0.1), (1,)),)
    assert noise.channels_after(gates[2], 2) == ((AmplitudeDamping(0.1), (1,)), (PhaseDamping(0.2), (0,)))
    assert noise.reduce(Circuit(2, gates)).rules == (everywhere, here)
    assert noise.reduce(Circuit(2, gates[:2])).rules == (everywhere,)
    assert noise.select([1, 0]).rules[1] == GateNoise(PhaseDamping(0.2), qubit=1, place=2)
    assert NoiseModel.from_key(noise.key) == noise
    with pytest.raises(InputError, match="place"):
        GateNoise(PhaseDamping(0.2), place=-1)


def test_equal_models_have_equal_hashes_and_keys_that_bring_them_back():
    models = [random_noise(np.random.default_rng(seed), 3) for seed in range(40)]
    models += [NoiseModel.from_snapshot(**SNAPSHOT), NoiseModel(couplers=[(2, 0)]), NoiseModel(n_qubits=5)]
    for model in models:
        again = NoiseModel.from_key(model.key)
        assert again == model
        assert hash(again) == hash(model)
        assert again.key == model.key
    assert NoiseModel(GateNoise(Depolarizing(0.1))) != NoiseModel(GateNoise(Depolarizing(0.2)))
    for text in ("", "{}", '{"r":[["fire",{},null,null,null]],"m":null,"n":null,"c":null}'):
        with pytest.raises(InputError, match="not the key of a noise model"):
            NoiseModel.from_key(text)


def test_uniform_noise():
    noise = NoiseModel.uniform(0.01, 0.02, 0.03, 0.04, (0.05, 0.06))
    one, two = AmplitudeDamping(0.03), PhaseDamping(0.04)
    assert noise.channels_after(Gate("H", 1)) == ((Depolarizing(0.01), (1,)), (one, (1,)), (two, (1,)))
    assert [channel for channel, _ in noise.channels_after(Gate("CZ", (0, 1)))] == [
        Depolarizing(0.02, joint=True), one, one, two, two,
    ]  # fmt: skip
    assert noise.readout_of(7) == ReadoutError(0.05, 0.06)
    assert NoiseModel.uniform() == NoiseModel()
    both = NoiseModel.uniform(0.01).channels_after(Gate("CZ", (0, 1)))
    assert both == ((Depolarizing(0.01), (0,)), (Depolarizing(0.01), (1,)))


def fidelity_after(noise, gate):
    """Average gate fidelity of the noise after a gate."""
    d = 2 ** len(gate.wires)
    whole = np.eye(d**2)
    for channel, wires in noise.channels_after(gate):
        matrix = channel_matrix(channel, len(wires))
        if len(wires) < len(gate.wires):
            matrix = np.kron(matrix, np.eye(4)) if wires[0] == gate.wires[0] else np.kron(np.eye(4), matrix)
        whole = matrix @ whole
    return (np.trace(whole) / d + 1) / (d + 1)


def test_a_snapshot_has_the_fidelities_that_it_states():
    noise = NoiseModel.from_snapshot(**SNAPSHOT)
    assert fidelity_after(noise, Gate("RY", 0, 0.3)) == pytest.approx(0.995)
    assert fidelity_after(noise, Gate("H", 1)) == pytest.approx(0.997)
    assert fidelity_after(noise, Gate("CZ", (0, 1))) == pytest.approx(0.95)
    assert fidelity_after(noise, Gate("CZ", (1, 0))) == pytest.approx(0.95)
    assert noise.channels_after(Gate("RZ", 0, 0.3)) == ()  # a change of frame
    # Relaxation alone is worse than what qubit 2 states: no depolarising noise comes on top.
    relaxation = NoiseModel(GateNoise(ThermalRelaxation(20.0, 40.0, 0.03)))
    assert fidelity_after(noise, Gate("X", 2)) == pytest.approx(fidelity_after(relaxation, Gate("X", 2)))
    assert noise.readout_of(0) == ReadoutError(0.08, 0.08)
    assert noise.readout_of(1) == ReadoutError(0.05, 0.1)
    assert (noise.n_qubits, noise.couplers) == (3, ((0, 1),))


def test_gates_made_of_several_pulses_are_as_bad_as_those_together():
    noise = NoiseModel.from_snapshot(**SNAPSHOT)
    lost = 1 - fidelity_after(noise, Gate("CZ", (0, 1)))
    # To first order infidelities add; one-qubit pulses are an order better.
    assert 1 - fidelity_after(noise, Gate("CNOT", (0, 1))) == pytest.approx(lost, rel=0.3)
    assert 1 - fidelity_after(noise, Gate("CRZ", (1, 0), 0.3)) == pytest.approx(2 * lost, rel=0.3)
    assert 1 - fidelity_after(noise, Gate("SWAP", (0, 1))) == pytest.approx(3 * lost, rel=0.3)


def test_a_circuit_must_fit_the_chip():
    noise = NoiseModel.from_snapshot(**SNAPSHOT)
    noise.check(qtha_block(2, 1))
    with pytest.raises(InputError, match=r"acts on the wires \(1, 2\), which no working coupler"):
        noise.check(qtha_block(3, 1))
    with pytest.raises(InputError, match="4 qubits, the noise model describes 3"):
        noise.check(rotation_cnot_ring(4, 1))


def test_selecting_qubits_of_a_chip():
    noise = NoiseModel.from_snapshot(**SNAPSHOT)
    placed = noise.select([1, 0])
    assert (placed.n_qubits, placed.couplers) == (2, ((0, 1),))
    assert placed.readout_of(0) == noise.readout_of(1)
    assert placed.channels_after(Gate("RY", 1, 0.1)) == tuple(
        (channel, (1,)) for channel, _ in noise.channels_after(Gate("RY", 0, 0.1))
    )
    assert fidelity_after(placed, Gate("CZ", (0, 1))) == pytest.approx(0.95)
    for wrong, words in (([0, 0], "all different"), ([], "at least one"), ([3], "beyond the chip's 3")):
        with pytest.raises(InputError, match=words):
            noise.select(wrong)


def test_reduced_models_say_the_same_about_the_circuit():
    noise = NoiseModel.from_snapshot(**SNAPSHOT)
    circuit = qtha_block(2, 1)
    reduced = noise.reduce(circuit)
    assert len(reduced.key) < len(noise.key)
    assert all(reduced.channels_after(gate) == noise.channels_after(gate) for gate in circuit.gates)
    assert [reduced.readout_of(wire) for wire in range(2)] == [noise.readout_of(wire) for wire in range(2)]
    with pytest.raises(InputError, match="coupler"):
        noise.reduce(qtha_block(3, 1))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Depolarizing(1.1), r"depolarising p must be a probability from 0 to 1 \(got 1.1\)"),
        (lambda: Depolarizing(True), "depolarising p"),
        (lambda: AmplitudeDamping(-0.1), "amplitude damping gamma"),
        (lambda: PhaseDamping(float("nan")), "phase damping lambda"),
        (lambda: ThermalRelaxation(1.0, 2.1, 0.1), "T2 = 2.1 is longer than 2 T1 = 2"),
        (lambda: ThermalRelaxation(0.0, 0.0, 0.1), "T1 must be a positive time"),
        (lambda: ThermalRelaxation(1.0, 1.0, -0.1), "duration"),
        (lambda: ReadoutError(0.1, 2), r"readout error p\(0\|1\)"),
        (lambda: GateNoise(0.1), "0.1 is not a channel"),
        (lambda: GateNoise(Depolarizing(0.1), gates="RYY"), "unknown gate 'RYY'"),
        (lambda: GateNoise(Depolarizing(0.1), gates=[]), "unknown gate"),
        (lambda: GateNoise(Depolarizing(0.1), wires=(0, 0)), "one or two wires"),
        (lambda: GateNoise(Depolarizing(0.1), wires=-1), "wires are whole numbers"),
        (lambda: GateNoise(Depolarizing(0.1), gates="RY", wires=(0, 1)), "give as many as the gates act on"),
        (lambda: GateNoise(Depolarizing(0.1), wires=(0, 1), qubit=2), "not among its wires"),
        (lambda: NoiseModel([Depolarizing(0.1)]), "is not a noise rule"),
        (lambda: NoiseModel(readout=[0.1]), "readout must hold"),
        (lambda: NoiseModel(readout=[ReadoutError(0, 0)], n_qubits=2), "1 errors for 2 qubits"),
        (lambda: NoiseModel(GateNoise(Depolarizing(0.1), qubit=2), n_qubits=2), "names wire 2"),
        (lambda: NoiseModel(n_qubits=0), "at least 1 qubit"),
        (lambda: NoiseModel.from_snapshot(**SNAPSHOT | {"t2_us": [1.0]}), "t2_us has 1 values for 3"),
        (lambda: NoiseModel.from_snapshot(**SNAPSHOT | {"t2_us": [1.0, 1.0, 41.0]}), "2 T1"),
        (lambda: NoiseModel.from_snapshot(**SNAPSHOT | {"one_qubit_fidelity": 0.4}), "of qubit 0 is 0.4, lower than"),
        (lambda: NoiseModel.from_snapshot(**SNAPSHOT | {"readout_fidelity": 1.2}), "readout fidelity of qubit 0"),
        (lambda: NoiseModel.from_snapshot(**SNAPSHOT | {"two_qubit_fidelity": {(0, 3): 0.9}}), "names the pair"),
        (lambda: NoiseModel.from_snapshot(**SNAPSHOT | {"readout_fidelity": None}), "a number or one for each"),
    ],
)
def test_wrong_numbers_are_named(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_examples_in_the_docstrings():
    assert doctest.testmod(qpeft.simulators.noise).failed == 0
