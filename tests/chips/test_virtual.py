"""The virtual chip against a dense density matrix, against the exact simulator, and against its own promises."""

import doctest
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from chip_reference import probabilities as reference
from chip_reference import read
from native_cases import native_circuit, placed, random_angles, uneven_chip

import qpeft.chips.schedule
import qpeft.chips.virtual
from qpeft.chips import ChipSnapshot, Coupler
from qpeft.chips.block_noise import BlockNoise
from qpeft.chips.schedule import Wait, schedule
from qpeft.chips.virtual import VirtualChip
from qpeft.circuits import Circuit, Gate, Input
from qpeft.errors import InputError
from qpeft.qpu.protocol import Block
from qpeft.simulators import probabilities, run_noisy

CHAIN = [(0, 1), (1, 2)]
NO_WEIGHTS = torch.zeros(0, dtype=torch.float64)


def blocks_of(template, angles):
    return [Block(template, tuple(row)) for row in angles.tolist()]


def significance(counts, shares):
    """Pearson's statistic of counts (rows, outcomes), in standard deviations from its mean."""
    counts, shares = np.asarray(counts, dtype=float), np.asarray(shares)
    expected = counts.sum(1, keepdims=True) * shares
    freedom = counts.shape[0] * (counts.shape[1] - 1)
    return (((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


# ---- times


def test_gates_come_as_late_as_possible_and_end_together():
    gates = (
        Gate("RX", 0, 1.0), Gate("RZ", 0, Input(0)), Gate("CZ", (0, 1)), Gate("RX", 1, 1.0), Gate("RX", 1, 1.0),
        Gate("RZ", 2, Input(1)), Gate("CZ", (1, 2)), Gate("RX", 0, 1.0),
    )  # fmt: skip
    times = schedule(Circuit(3, gates), 30.0, 40.0)
    assert times.spans == ((170, 140), (140, 140), (140, 100), (100, 70), (70, 40), (40, 40), (40, 0), (30, 0))
    assert times.waits == (Wait(place=2, wire=0, ns=70.0),)  # wire 2 is in |0> until the end
    assert times.ns == 170
    with pytest.raises(InputError, match="gate 0 is H"):
        schedule(Circuit(1, (Gate("H", 0),)), 30.0, 40.0)


# ---- probabilities and expectations


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("n", "pairs", "qubits"),
    [(1, [], (4,)), (3, CHAIN, (2, 1, 4)), (4, [(0, 1), (1, 2), (2, 3), (3, 0)], (0, 1, 4, 3))],
)
def test_probabilities_agree_with_a_density_matrix(n, pairs, qubits, seed):
    chip = uneven_chip(seed=seed, one_qubit_ns=30.0 + seed, two_qubit_ns=45.0)
    circuit = native_circuit(n, pairs, 3, seed)
    angles = random_angles(circuit, 2, seed)
    template = placed(circuit, qubits)
    found = VirtualChip(chip).probabilities(template, torch.from_numpy(angles))
    expected = [reference(chip, template, row) for row in angles]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("n", [4, 10])
def test_without_noise_it_is_the_exact_simulator(n):
    chip = ChipSnapshot.fully_connected(n, t1_us=1e12, t2_us=1e12)
    circuit = native_circuit(n, [(wire, wire + 1) for wire in range(n - 1)], 2)
    angles = torch.from_numpy(random_angles(circuit, 2))
    found = VirtualChip(chip).probabilities(placed(circuit, range(n)), angles)
    torch.testing.assert_close(found, probabilities(circuit, angles, NO_WEIGHTS), atol=1e-9, rtol=0)


def test_circuits_without_free_angles_run_too():
    chip = uneven_chip()
    turn, flip = math.pi / 2, math.pi
    for gates in ((), (Gate("RX", 0, flip), Gate("RX", 1, flip)), (Gate("RX", 0, turn), Gate("CZ", (0, 1)))):
        template = placed(Circuit(2, (*gates, *(Gate("RX", w, turn) for w in range(2) if gates))), (3, 4))
        found = VirtualChip(chip).probabilities(template, torch.zeros(1, 0, dtype=torch.float64))
        np.testing.assert_allclose(found[0], reference(chip, template, []), atol=1e-12)


def test_without_waits_it_is_run_noisy_with_the_model_of_the_chip():
    chip = uneven_chip()
    gates = []
    for layer in range(3):
        gates += [Gate("RX", w, math.pi / 2) for w in (0, 1)]
        gates += [Gate("RZ", w, Input(2 * layer + w)) for w in (0, 1)]
        gates += [Gate("CZ", (0, 1))]
    circuit = Circuit(2, (*gates, Gate("RX", 0, math.pi / 2), Gate("RX", 1, math.pi / 2)), ("Z0", "Z0 Z1", "Z1"))
    assert not schedule(circuit, 30.0, 40.0).waits
    angles = torch.from_numpy(random_angles(circuit, 5))
    found = VirtualChip(chip).expectations(placed(circuit, (4, 1)), angles, circuit.observables)
    expected = run_noisy(circuit, angles, NO_WEIGHTS, chip.noise_model().select([4, 1]))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_a_waiting_qubit_relaxes_with_its_own_times():
    chip = uneven_chip(one_qubit_ns=30.0, two_qubit_ns=40.0)
    pulses = (Gate("RX", 1, math.pi),) * 8
    circuit = Circuit(2, (Gate("RX", 0, math.pi), Gate("CZ", (0, 1)), *pulses))
    busy = replace(circuit, gates=circuit.gates[:2])
    qubit = VirtualChip(chip)
    angles = torch.zeros(1, 0, dtype=torch.float64)
    waited, direct = (
        float((1 - qubit.expectations(placed(c, (0, 1)), angles, ["Z0"], readout_errors=False)) / 2)
        for c in (circuit, busy)
    )
    assert waited == pytest.approx(direct * math.exp(-8 * 0.030 / chip.qubits[0].t1_us), rel=1e-12)


def test_observables_follow_the_qubits_of_the_original_circuit():
    chip = uneven_chip()
    circuit = native_circuit(3, CHAIN, 2)
    angles = torch.from_numpy(random_angles(circuit, 3))
    template = placed(circuit, (0, 1, 2), readout=(2, 0))
    qubits = [chip.qubits[q] for q in (0, 1, 2)]
    shares = VirtualChip(chip).probabilities(template, angles).numpy().reshape(3, 2, 2, 2)
    signs = np.array([1, -1])
    expected = np.stack(
        [np.einsum("sabc,c->s", shares, signs), np.einsum("sabc,a->s", shares, signs),
         np.einsum("sabc,a,c->s", shares, signs, signs)], 1)  # fmt: skip
    found = VirtualChip(chip).expectations(template, angles, ["Z0", "Z1", "Z0 Z1"])
    np.testing.assert_allclose(found, expected, atol=1e-12)
    default = VirtualChip(chip).expectations(template, angles)
    np.testing.assert_allclose(default, expected[:, :2], atol=1e-12)
    # Without readout errors: what the inverse of the readout makes of the probabilities.
    confusion = np.stack([read(unit, qubits) for unit in np.eye(8)], 1)
    true = np.linalg.solve(confusion, shares.reshape(3, 8).T).T.reshape(3, 2, 2, 2)
    clean = VirtualChip(chip).expectations(template, angles, ["Z0"], readout_errors=False)
    np.testing.assert_allclose(clean[:, 0], np.einsum("sabc,c->s", true, signs), atol=1e-12)
    with pytest.raises(InputError, match="names qubit 2, but the circuit has 2"):
        VirtualChip(chip).expectations(template, angles, ["Z2"])


def test_gradients_flow_to_what_the_angles_are_made_of():
    chip = VirtualChip(uneven_chip())
    circuit = native_circuit(2, [(0, 1)], 2)
    template = replace(
        placed(circuit, (0, 1)), bind=lambda inputs, weights: inputs.sin() @ weights.view(2, circuit.n_inputs)
    )
    inputs = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weights = torch.randn(2 * circuit.n_inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights.requires_grad_()
    for function in (chip.expectations, chip.probabilities):
        assert torch.autograd.gradcheck(lambda x, w, f=function: f(template, template.angles(x, w)), (inputs, weights))


# ---- shots


def test_counts_follow_the_probabilities():
    chip = VirtualChip(uneven_chip())
    circuit = native_circuit(3, CHAIN, 2)
    template = placed(circuit, (3, 4, 5))
    angles = random_angles(circuit, 200)
    counts = [blocks[0] for blocks in chip.run([template], [(b,) for b in blocks_of(0, angles)], 1000, seed=3)]
    assert all(int(row.sum()) == 1000 and row.dtype == torch.int64 for row in counts)
    assert abs(significance(torch.stack(counts), chip.probabilities(template, torch.from_numpy(angles)))) < 4
    same = [blocks[0] for blocks in chip.run([template], [(blocks_of(0, angles)[0],)] * 300, 1000)]
    shares = chip.probabilities(template, torch.from_numpy(angles[:1])).expand(300, -1)
    assert abs(significance(torch.stack(same), shares)) < 4  # equal blocks have shots of their own


def test_counts_depend_on_the_seed_and_the_block_but_not_on_the_batch():
    chip = VirtualChip(uneven_chip(3, 4))
    circuit = native_circuit(2, [(0, 1)], 2)
    templates = [placed(circuit, (0, 1)), placed(circuit, (6, 7)), placed(native_circuit(3, CHAIN, 1), (8, 9, 10))]
    left, right = random_angles(circuit, 6), random_angles(circuit, 6, seed=1)
    third = random_angles(templates[2].circuit, 6)
    circuits = list(zip(blocks_of(0, left), blocks_of(1, right), blocks_of(2, third), strict=True))

    def run(circuits, seed=0):
        return [[row.tolist() for row in blocks] for blocks in chip.run(templates, circuits, 500, seed)]

    whole = run(circuits)
    assert run(circuits) == whole
    assert run(circuits[3:]) == whole[3:]
    assert run(circuits[::-1]) == whole[::-1]
    assert run([blocks[::-1] for blocks in circuits]) == [blocks[::-1] for blocks in whole]
    assert run([blocks[1:2] for blocks in circuits]) == [blocks[1:2] for blocks in whole]  # alone as in company
    other = run(circuits, seed=1)
    assert all(a != b for first, second in zip(other, whole, strict=True) for a, b in zip(first, second, strict=True))
    twice = run(circuits + circuits)
    assert twice[:6] == whole
    assert all(
        a != b for first, second in zip(twice[6:], whole, strict=True) for a, b in zip(first, second, strict=True)
    )
    moved = chip.run(templates, [(replace(circuits[0][0], template=1),)], 500)
    assert moved[0][0].tolist() != whole[0][0]


# ---- neighbours


def square(crosstalk):
    """Two blocks of two qubits on a 2 x 2 grid, and the strength each CZ of the first is exposed to."""
    chip = ChipSnapshot.fully_connected(4, fidelity=0.99, two_qubit_fidelity=0.95, t1_us=20.0, t2_us=5.0)
    sides = [(0, 1), (2, 3), (0, 2), (1, 3)]
    chip = replace(chip, couplers=tuple(Coupler(pair, 0.95) for pair in sides))
    return chip, BlockNoise(chip, crosstalk)


def test_crosstalk_counts_gates_next_door_by_the_time_they_share():
    chip, noise = square(0.1)
    one = placed(Circuit(2, (Gate("CZ", (0, 1)), Gate("RZ", 0, Input(0)), Gate("CZ", (0, 1)))), (0, 1))
    # CZs of one: 80 to 40 and 40 to 0 before the measurement; of the other: 70 to 30.
    other = placed(Circuit(2, (Gate("CZ", (0, 1)), Gate("RX", 0, 1.0), Gate("RZ", 0, Input(0)))), (3, 2))
    added = noise.of(one, [other]).rules[len(noise.of(one).rules) :]
    found = {rule.place: rule.channel.p for rule in noise.of(one, [other]).rules if rule.place is not None}
    assert found == pytest.approx({0: 1 - 0.9**0.75, 2: 1 - 0.9**0.25})
    assert len(added) == 2
    shares = VirtualChip(chip, crosstalk=0.1).probabilities(one, torch.zeros(1, 1, dtype=torch.float64), [other])
    expected = reference(chip, one, [0.0], extra_depolarizing=found)
    np.testing.assert_allclose(shares[0], expected, atol=1e-12)


def test_blocks_that_do_not_touch_have_no_crosstalk():
    chip = uneven_chip(3, 4)
    noise = BlockNoise(chip, 0.5)
    circuit = native_circuit(2, [(0, 1)], 2)
    block = placed(circuit, (0, 1))
    assert noise.of(block, [placed(circuit, (10, 11))]) is noise.of(block)
    assert noise.of(block, [placed(circuit, (4, 5))]) != noise.of(block)
    # A dead coupler between two blocks does not part them.
    dead = replace(chip, couplers=tuple(replace(c, fidelity=0.0) if c.qubits == (1, 2) else c for c in chip.couplers))
    assert BlockNoise(dead, 0.5).of(block, [placed(circuit, (2, 3))]) != noise.of(block)


def test_packed_circuits_with_crosstalk_follow_their_own_probabilities():
    chip = VirtualChip(square(0.3)[0], crosstalk=0.3)
    circuit = native_circuit(2, [(0, 1)], 3, seed=1)
    templates = [placed(circuit, (0, 1)), placed(circuit, (2, 3))]
    angles = random_angles(circuit, 100)
    packed = chip.run(templates, list(zip(blocks_of(0, angles), blocks_of(1, angles), strict=True)), 2000)
    alone = chip.probabilities(templates[0], torch.from_numpy(angles))
    beside = chip.probabilities(templates[0], torch.from_numpy(angles), templates[1:])
    counts = torch.stack([blocks[0] for blocks in packed])
    assert abs(significance(counts, beside)) < 4
    assert significance(counts, alone) > 20


# ---- what is refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda chip, t: (chip, replace(t, qubits=(0, 2))), "qubits 0 and 2 of uneven, which have no working coupler"),
        (lambda chip, t: (replace(chip, couplers=(Coupler((0, 1), 0.0),)), t), "no working coupler"),
        (lambda chip, t: (chip, replace(t, qubits=(0, 9))), "qubit 9 of uneven is not available"),
        (lambda chip, t: (replace(chip, qubits=(replace(chip.qubits[0], available=False), *chip.qubits[1:])), t),
         "qubit 0 of uneven is not available"),
        (lambda chip, t: (chip, replace(t, qubits=(0,))), "2 wires stands on the qubits"),
        (lambda chip, t: (chip, placed(Circuit(2, (Gate("CNOT", (0, 1)),)), (0, 1))), "gate 0 is CNOT"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("crosstalk", [0.0, 0.1])
def test_blocks_that_do_not_fit_the_chip_are_refused(change, words, crosstalk):
    chip, template = change(uneven_chip(), placed(Circuit(2, (Gate("RX", 0, 1.0), Gate("CZ", (0, 1)))), (0, 1)))
    with pytest.raises(InputError, match=words):
        VirtualChip(chip, crosstalk=crosstalk).run([template], [(Block(0, ()),)], 100)


def test_batches_that_make_no_sense_are_refused():
    chip = VirtualChip(uneven_chip())
    template = placed(Circuit(1, (Gate("RZ", 0, Input(0)),)), (0,))
    block = Block(0, (0.1,))
    for circuits, shots, seed, words in (
        ([(block, block)], 100, 0, "stand on qubit 0"),
        ([(Block(1, (0.1,)),)], 100, 0, "has the template 1, but there are 1"),
        ([(Block(0, ()),)], 100, 0, "has 0 angles, its template takes 1"),
        ([(Block(0, (math.nan,)),)], 100, 0, "NaN"),
        ([(block,)], 0, 0, "shots must be"),
        ([(block,)], 100, -1, "seed must be"),
    ):
        with pytest.raises(InputError, match=words):
            chip.run([template], circuits, shots, seed)
    with pytest.raises(InputError, match="crosstalk must be a number from 0 to 1"):
        VirtualChip(uneven_chip(), crosstalk=1.5)
    wide = placed(Circuit(11, tuple(Gate("RX", w, 1.0) for w in range(11))), range(11))
    with pytest.raises(InputError, match="at most 10 qubits"):
        VirtualChip(ChipSnapshot.fully_connected(11)).run([wide], [(Block(0, ()),)], 100)
    assert chip.run([template], [], 100) == []


def test_examples_in_the_docstrings():
    for module in (qpeft.chips.virtual, qpeft.chips.schedule):
        assert doctest.testmod(module).failed == 0
