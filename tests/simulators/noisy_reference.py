"""The slow, obvious reference for noise: a density matrix, Kraus operators gate by gate, float64, sample by sample."""

import itertools
from functools import lru_cache

import numpy as np
from dense_reference import FIXED, PAULI, on_wires

from qpeft.circuits import Input, Weight
from qpeft.circuits.circuit import GATES
from qpeft.simulators.noise import (
    AmplitudeDamping,
    Depolarizing,
    GateNoise,
    NoiseModel,
    PhaseDamping,
    ReadoutError,
    ThermalRelaxation,
)


def gate_matrix(gate, x, w):
    """The unitary on the gate's own wires."""
    angle = gate.angle
    if isinstance(angle, (Input, Weight)):
        angle = angle.scale * (x if isinstance(angle, Input) else w)[angle.index]
    if gate.name in FIXED:
        return FIXED[gate.name]
    if gate.name == "SWAP":
        return np.eye(4)[[0, 2, 1, 3]]
    target = {"CNOT": PAULI["X"], "CZ": PAULI["Z"]}.get(gate.name)
    if target is None:
        target = np.cos(angle / 2) * PAULI["I"] - 1j * np.sin(angle / 2) * PAULI[gate.name[-1]]
    if len(gate.wires) == 1:
        return target
    return np.kron(np.diag([1, 0]), PAULI["I"]) + np.kron(np.diag([0, 1]), target)


@lru_cache(maxsize=1024)
def kraus_operators(channel, n_wires):
    """Kraus operators of a channel on its own wires, from the textbook."""
    match channel:
        case Depolarizing():
            paulis = list(itertools.product("IXYZ", repeat=n_wires))
            rest = channel.p / 4**n_wires
            chances = [1 - channel.p + rest] + [rest] * (len(paulis) - 1)
            matrices = [on_wires({i: PAULI[p] for i, p in enumerate(string)}, n_wires) for string in paulis]
            return [np.sqrt(chance) * matrix for chance, matrix in zip(chances, matrices, strict=True)]
        case AmplitudeDamping():
            return _amplitude_damping(channel.gamma)
        case PhaseDamping():
            return _phase_damping(channel.lam)
        case ThermalRelaxation():
            pure = channel.time / channel.t2 - channel.time / (2 * channel.t1)  # dephasing beyond that of the decay
            damping = _amplitude_damping(1 - np.exp(-channel.time / channel.t1))
            return [b @ a for a in damping for b in _phase_damping(1 - np.exp(-2 * pure))]


def _amplitude_damping(gamma):
    return [np.diag([1, np.sqrt(1 - gamma)]), np.array([[0, np.sqrt(gamma)], [0, 0]])]


def _phase_damping(lam):
    return [np.diag([1, np.sqrt(1 - lam)]), np.diag([0, np.sqrt(lam)])]


def embed(matrix, wires, n):
    """A matrix on some wires as one on all: (2**k, 2**k) -> (2**n, 2**n)."""
    rest = [wire for wire in range(n) if wire not in wires]
    whole = np.kron(matrix, np.eye(2 ** len(rest))).reshape([2] * (2 * n))  # its axes stand for wires, then rest
    places = [[*wires, *rest].index(wire) for wire in range(n)]
    return whole.transpose([*places, *(n + place for place in places)]).reshape(2**n, 2**n)


def density_matrix(circuit, x, w, noise):
    """(n_inputs,), (n_weights,) -> (2**n, 2**n)"""
    n = circuit.n_qubits
    state = np.zeros((2**n, 2**n), dtype=complex)
    state[0, 0] = 1
    for place, gate in enumerate(circuit.gates):
        unitary = embed(gate_matrix(gate, x, w), gate.wires, n)
        state = unitary @ state @ unitary.conj().T
        for channel, wires in noise.channels_after(gate, place):
            operators = [embed(k, wires, n) for k in kraus_operators(channel, len(wires))]
            state = sum(k @ state @ k.conj().T for k in operators)
    return state


def noisy_expectations(circuit, inputs, weights, noise):
    """(batch, n_inputs), (n_weights,) -> (batch, n_observables), as measured with readout errors."""
    n = circuit.n_qubits
    measured = []
    for observable in circuit.observables:
        factors = {}
        for letter, wire in observable.paulis:
            error = noise.readout_of(wire)
            p10, p01 = (0, 0) if error is None else (error.p10, error.p01)
            up, down = (PAULI["I"] + PAULI[letter]) / 2, (PAULI["I"] - PAULI[letter]) / 2
            factors[wire] = (1 - 2 * p10) * up - (1 - 2 * p01) * down  # mean of the bit that is read
        measured.append(on_wires(factors, n))
    rows = []
    for x in inputs:
        state = density_matrix(circuit, x, weights, noise)
        rows.append([np.trace(o @ state).real for o in measured])
    return np.array(rows).reshape(len(inputs), len(measured))


def noisy_jacobians(circuit, inputs, weights, noise, step=1e-5):
    """Central differences: (batch, n_observables, n_inputs), (batch, n_observables, n_weights)."""

    def slopes(size, shift):
        columns = [
            (noisy_expectations(circuit, *shift(d), noise) - noisy_expectations(circuit, *shift(-d), noise))
            / (2 * step)
            for d in step * np.eye(size)
        ]
        return np.stack(columns, 2) if columns else np.zeros((len(inputs), circuit.n_observables, 0))

    return (
        slopes(circuit.n_inputs, lambda d: (inputs + d, weights)),
        slopes(circuit.n_weights, lambda d: (inputs, weights + d)),
    )


def random_noise(rng, n):
    """Up to four rules and some readout errors on ``n`` wires, over all channels and also their extremes."""
    rules = []
    for _ in range(rng.integers(5)):
        channel = [
            Depolarizing(rng.choice([0.0, 0.1, 0.3, 1.0]), joint=bool(rng.integers(2))),
            AmplitudeDamping(rng.choice([0.0, 0.2, 1.0])),
            PhaseDamping(rng.choice([0.3, 1.0])),
            ThermalRelaxation(2.0, rng.choice([0.5, 3.0, 4.0]), rng.choice([0.0, 1.0])),
        ][rng.integers(4)]
        gates = None if rng.random() < 0.5 else tuple(map(str, rng.choice(list(GATES), 5)))
        qubit = None if rng.random() < 0.6 else int(rng.integers(n))
        place = None if rng.random() < 0.8 else int(rng.integers(20))
        rules.append(GateNoise(channel, gates, qubit=qubit, place=place))
    errors = tuple(ReadoutError(*rng.random(2) * 0.4) for _ in range(n))
    return NoiseModel(tuple(rules), [None, errors[0], errors][rng.integers(3)])
