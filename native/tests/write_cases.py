"""Writes the cases of ``native_test.cpp``: plans, values, and what the dense reference makes of them.

    python native/tests/write_cases.py <file> [<random circuits>]

A case is eight whole numbers (length of its name, batch, qubits, inputs, weights, outputs, whole and real numbers of
the plan) and then its name and its arrays, all in the processor's own order of bytes. Plans are made for any vector
length and number of rotations in one sweep: every kernel runs all of them.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from unittest.mock import patch

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "simulators"))

import dense_reference
from random_cases import random_circuit, samples

from qpeft.circuits import Circuit, Gate, Input, Weight, qtha_block, rotation_cnot_ring, simplified_two_design
from qpeft.simulators import plan

BATCHES = (0, 1, 15, 16, 17, 40)
SINGULAR = np.array([0.0, 1 / 2, -1 / 2, 1.0, 2.0, 3.0, 16.0, 3000.0]) * np.pi  # sine or cosine vanish; 3000: far away
SIZES = tuple(plan.KernelSizes(vector_bytes, radix) for vector_bytes in (16, 64) for radix in (1, 2, 3, 4))
Values = tuple[np.ndarray, np.ndarray, np.ndarray]  # inputs, weights, gradient of the outputs


class Writer:
    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.count = 0

    def write(
        self,
        name: str,
        circuit: Circuit,
        batch: int,
        *,
        probabilities: bool = False,
        sample_qubits: int = plan.SAMPLE_QUBITS,
        history_bytes: int = plan._HISTORY_BYTES,
    ) -> None:
        """A circuit with values that are seldom singular, or often, in turn."""
        rng = np.random.default_rng(self.count)
        inputs, weights, gradient = (value.numpy() for value in samples(circuit, batch, self.count))
        if self.count % 2:
            for values in (inputs, weights):
                chosen = np.float32(rng.choice(SINGULAR, values.shape))  # as float32, for both precisions
                np.copyto(values, chosen, where=rng.random(values.shape) < 0.3)
        if probabilities:
            gradient = rng.normal(size=(batch, 1 << circuit.n_qubits)).astype(np.float32).astype(np.float64)
        reference = probabilities_of if probabilities else dense_reference.evaluate
        expected = reference(circuit, inputs, weights, gradient)
        with patch.object(plan, "SAMPLE_QUBITS", sample_qubits), patch.object(plan, "_HISTORY_BYTES", history_bytes):
            arrays = plan.make_plan(circuit, SIZES[self.count % len(SIZES)], probabilities)
        self.case(f"{name}: {circuit.key}"[:1000], circuit.n_qubits, arrays, (inputs, weights, gradient), expected)

    def case(self, name: str, n_qubits: int, arrays: tuple[np.ndarray, ...], values: Values, expected: Values) -> None:
        text = name.encode()
        sizes = (values[0].shape[1], values[1].size, values[2].shape[1])
        head = [len(text), len(values[0]), n_qubits, *sizes, *map(len, arrays)]
        self.file.write(np.array(head, dtype=np.int64).tobytes() + text)
        for array in (*arrays, *values, *expected):
            self.file.write(np.ascontiguousarray(array).tobytes())
        self.count += 1


def probabilities_of(circuit: Circuit, inputs: np.ndarray, weights: np.ndarray, gradient: np.ndarray) -> Values:
    """Probabilities of all basis states, and gradients, from the expectations of all products of Z:

    ``p_b = 2^{-n} sum_S (-1)^{|b & S|} <Z_S>``.
    """
    n = circuit.n_qubits
    strings = [" ".join(f"Z{wire}" for wire in range(n) if s >> (n - 1 - wire) & 1) for s in range(1, 1 << n)]
    signs = np.eye(1)  # (state, string)
    for _ in range(n):
        signs = np.kron(signs, [[0.5, 0.5], [0.5, -0.5]])
    measured = Circuit(n, circuit.gates, tuple(strings))
    outputs, *gradients = dense_reference.evaluate(measured, inputs, weights, gradient @ signs[:, 1:])
    return signs[:, 0] + outputs @ signs[:, 1:].T, *gradients


def write_random(writer: Writer, count: int) -> None:
    """Plans of all kinds in turn."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        batch = BATCHES[rng.integers(len(BATCHES))]
        history = 1 if seed % 2 else plan._HISTORY_BYTES
        n_gates = int(rng.integers(12 if seed % 3 == 0 else 48))  # few: several parts, cones, single wires
        n = 1 + seed % 7
        writer.write(f"random {seed}", random_circuit(rng, n, n_gates), batch, history_bytes=history)
        if seed % 3 == 0 and n < 7:
            circuit = random_circuit(rng, n, n_gates)
            writer.write(f"probabilities {seed}", circuit, batch, probabilities=True, history_bytes=history)
        if seed % 3 == 1:
            circuit = random_circuit(rng, 4 + seed % 4, n_gates)
            writer.write(f"amplitudes {seed}", circuit, batch, sample_qubits=3, history_bytes=history)
        if seed % 12 == 2:
            circuit = random_circuit(rng, 4 + seed % 2, n_gates)
            writer.write(f"amplitudes {seed}", circuit, batch, sample_qubits=3, probabilities=True)


def ansaetze() -> Iterator[Circuit]:
    for n, n_layers in ((2, 2), (5, 1), (4, 2)):
        for ansatz in (qtha_block, rotation_cnot_ring, simplified_two_design):
            yield ansatz(n, n_layers)


def deep(n_layers: int) -> Circuit:
    """With some hundred layers the product of the cosines vanishes in either precision."""
    gates: list[Gate] = []
    for k in range(n_layers):
        gates += [Gate("RX", k % 2, Weight(2 * k)), Gate("RZ", 0, Input(3 * k)), Gate("CNOT", (0, 1))]
        gates += [Gate("RY", 1, Input(3 * k + 1)), Gate("CRZ", (1, 0), Input(3 * k + 2))]
        gates += [Gate("CRX", (0, 1), Weight(2 * k + 1))]
    return Circuit(2, tuple(gates), ("Z0", "Y0 X1"))


def main(path: str, count: str = "300") -> None:
    with Path(path).open("wb") as file:
        writer = Writer(file)
        writer.write("no angles", Circuit(1, (), ("Z0", "X0")), 3)
        writer.write("no angles", Circuit(2, (Gate("CNOT", (0, 1)),), ("Z0 Z1", "Z1")), 17)
        for circuit in ansaetze():
            name = "qtha_block" if circuit.gates[circuit.n_qubits].name == "CRZ" else "ansatz"
            writer.write(name, circuit, 17)
        writer.write("qtha_block", qtha_block(5, 2), 16, sample_qubits=3)
        for history_bytes in (1, 1 << 20):
            writer.write("deep", deep(250 if int(count) > 20 else 25), 17, history_bytes=history_bytes)
        write_random(writer, int(count))
    print(f"{writer.count} cases")


if __name__ == "__main__":
    main(*sys.argv[1:])
