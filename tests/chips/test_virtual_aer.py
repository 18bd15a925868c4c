"""The virtual chip against Qiskit Aer under the same noise: probabilities, and counts within sampling error."""

import numpy as np
import pytest
import torch
from native_cases import native_circuit, placed, random_angles, uneven_chip

from qpeft.chips import ChipSnapshot
from qpeft.chips.virtual import VirtualChip
from qpeft.qpu.protocol import Block

pytest.importorskip("qiskit_aer")
from aer_reference import aer_circuit
from qiskit_aer import AerSimulator

SHOTS = 20_000
RING = [(0, 1), (1, 2), (2, 3), (3, 0)]


def cases():
    yield uneven_chip(), placed(native_circuit(2, [(0, 1)], 4, seed=5), (5, 2))
    yield uneven_chip(seed=1), placed(native_circuit(4, RING, 3, seed=6), (1, 2, 5, 4))
    yield ChipSnapshot.fully_connected(3), placed(native_circuit(3, [(0, 1), (0, 2)], 3, seed=7), (2, 0, 1))


@pytest.mark.parametrize(("chip", "template"), cases(), ids=["two", "ring", "ideal"])
def test_probabilities_agree_with_aer(chip, template):
    circuit, model = aer_circuit(chip, template)
    circuit.save_probabilities()
    angles = random_angles(template.circuit, 4, seed=2)
    simulator = AerSimulator(method="density_matrix", noise_model=model, max_parallel_threads=1)
    results = simulator.run([circuit.assign_parameters(row) for row in angles]).result()
    n = template.circuit.n_qubits
    # Aer's qubit 0 is the least significant bit; its readout errors touch counts alone.
    true = [results.data(i)["probabilities"].reshape([2] * n).T.ravel() for i in range(len(angles))]
    confusion = np.eye(1)
    for place in template.qubits:
        qubit = chip.qubits[place]
        confusion = np.kron(confusion, [[1 - qubit.p10, qubit.p01], [qubit.p10, 1 - qubit.p01]])
    found = VirtualChip(chip).probabilities(template, torch.from_numpy(angles))
    np.testing.assert_allclose(found, np.array(true) @ confusion.T, atol=1e-9)


@pytest.mark.parametrize(("chip", "template"), cases(), ids=["two", "ring", "ideal"])
def test_counts_agree_with_aer_within_sampling_error(chip, template):
    circuit, model = aer_circuit(chip, template)
    circuit.measure_all()
    angles = random_angles(template.circuit, 6, seed=3)
    simulator = AerSimulator(method="density_matrix", noise_model=model, max_parallel_threads=1, seed_simulator=11)
    results = simulator.run([circuit.assign_parameters(row) for row in angles], shots=SHOTS).result()
    n = template.circuit.n_qubits
    theirs = np.zeros((len(angles), 2**n))
    for row in range(len(angles)):
        for bits, count in results.get_counts(row).items():
            theirs[row, int(bits[::-1], 2)] = count
    circuits = [(Block(0, tuple(row)),) for row in angles.tolist()]
    ours = np.array([blocks[0].numpy() for blocks in VirtualChip(chip).run([template], circuits, SHOTS)])
    # Total variation of two samples of one distribution: each outcome differs by sqrt(2 p (1 - p) / shots) times a
    # normal number, whose absolute mean is sqrt(2 / pi).
    mean = (ours + theirs) / (2 * SHOTS)
    expected = np.sqrt(2 * mean * (1 - mean) / SHOTS).sum(1) * np.sqrt(2 / np.pi) / 2
    distance = np.abs(ours - theirs).sum(1) / (2 * SHOTS)
    assert distance.mean() < 1.6 * expected.mean() + 1e-12
    assert distance.max() < 2.5 * expected.max() + 1e-12
