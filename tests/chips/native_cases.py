"""Small chips on which everything is uneven, and native circuits written by hand."""

import math

import numpy as np

from qpeft.chips import ChipSnapshot, Coupler, NativeTemplate, Qubit
from qpeft.circuits import Circuit, Gate, Input


def uneven_chip(rows=2, columns=3, seed=0, **times):
    """A grid of qubits, each with numbers of its own; every third has T2 = 2 T1."""
    rng = np.random.default_rng(seed)
    qubits = []
    for index in range(rows * columns):
        t1 = rng.uniform(5.0, 20.0)
        t2 = 2 * t1 if index % 3 == 2 else rng.uniform(0.8, 2.5)
        qubits.append(Qubit(index, rng.uniform(0.97, 0.99), rng.uniform(0.01, 0.05), rng.uniform(0.05, 0.15), t1, t2))
    pairs = [(q, q + 1) for q in range(rows * columns) if (q + 1) % columns]
    pairs += [(q, q + columns) for q in range((rows - 1) * columns)]
    couplers = tuple(Coupler(pair, rng.uniform(0.90, 0.97)) for pair in pairs)
    return ChipSnapshot("uneven", tuple(qubits), couplers, **times)


def native_circuit(n_wires, pairs, n_layers, seed=0):
    """Layers of RZ, pulses and RZ on random wires, then CZ on some pairs, and pulses in the end."""
    rng = np.random.default_rng(seed)
    gates, n_angles = [], 0

    def turn(wire):
        nonlocal n_angles
        gates.append(Gate("RZ", wire, Input(n_angles)))
        n_angles += 1

    for layer in range(n_layers + 1):
        for wire in range(n_wires):
            if layer and rng.random() < 0.4:  # this wire waits
                continue
            turn(wire)
            gates.append(Gate("RX", wire, float(rng.choice([math.pi / 2, -math.pi / 2, math.pi]))))
            turn(wire)
        if layer < n_layers:
            gates += [Gate("CZ", pair) for pair in rng.permutation(pairs).tolist() if rng.random() < 0.8]
    return Circuit(n_wires, tuple(gates))


def placed(circuit, qubits, readout=None):
    """A template whose native angles are the inputs themselves."""
    readout = tuple(range(circuit.n_qubits)) if readout is None else readout
    return NativeTemplate(circuit, tuple(qubits), readout, lambda inputs, weights: inputs)


def random_angles(circuit, batch, seed=0):
    return np.random.default_rng(seed).uniform(-math.pi, math.pi, (batch, circuit.n_inputs))
