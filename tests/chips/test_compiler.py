"""Compiled circuits say the same as the original ones, with native gates on live couplers, and with few of them."""

import math
import pickle

import numpy as np
import pytest
import torch
from diagonal_circuits import numbers, random_circuit

from qpeft.chips import ChipSnapshot, Coupler, Qubit, compile_circuit, compiler, load_chip, metrics
from qpeft.circuits import Circuit, Gate, Input, Weight, qtha_block, rotation_cnot_ring, simplified_two_design
from qpeft.errors import InputError
from qpeft.simulators import run

WUKONG = load_chip("wukong-72")
IDEAL = load_chip("wukong-72-ideal")
SQUARE, LINE, ELL, TEE = (0, 1, 6, 7), (0, 1, 2, 3), (0, 6, 12, 13), (0, 1, 2, 7)


def random_place(chip: ChipSnapshot, size: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Connected qubits, grown from a random one."""
    neighbours: dict[int, set[int]] = {qubit: set() for qubit in chip.live_qubits}
    for coupler in chip.live_couplers:
        a, b = coupler.qubits
        neighbours[a].add(b)
        neighbours[b].add(a)
    while True:
        place = [int(rng.choice(chip.live_qubits))]
        while len(place) < size:
            border = sorted(set().union(*(neighbours[q] for q in place)) - set(place))
            if not border:
                break
            place.append(int(rng.choice(border)))
        if len(place) == size:
            return tuple(int(q) for q in rng.permutation(place))


def check(circuit: Circuit, chip: ChipSnapshot, qubits: tuple[int, ...], seed: int = 0) -> None:
    template = compile_circuit(circuit, chip, qubits)
    inputs, weights = numbers(circuit, seed=seed)
    angles = template.angles(inputs, weights)
    assert angles.dtype == torch.float64
    assert angles.shape == (len(inputs), template.circuit.n_inputs)
    assert torch.equal(angles, torch.round(angles, decimals=8))
    assert bool((angles > -math.pi).all() and (angles <= math.pi).all())
    found = run(template.circuit, angles, torch.zeros(0, dtype=torch.float64))
    torch.testing.assert_close(found, run(circuit, inputs, weights), atol=1e-6, rtol=0)
    live = {coupler.qubits for coupler in chip.live_couplers}
    for gate in template.circuit.gates:
        if gate.name == "CZ":
            a, b = (template.qubits[wire] for wire in gate.wires)
            assert (min(a, b), max(a, b)) in live
        elif gate.name == "RX":
            assert gate.angle in (math.pi / 2, -math.pi / 2, math.pi)
        else:
            assert gate.name == "RZ"
    assert template.circuit.n_weights == 0
    for wire, observable in zip(template.readout, range(circuit.n_qubits), strict=True):
        assert 0 <= wire < len(qubits), observable


@pytest.mark.parametrize("chip", ["wukong-72", "wk-c180-like"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_random_circuits_on_random_places(n, chip):
    rng = np.random.default_rng(n)
    for seed in range(6):
        place = random_place(load_chip(chip), n + int(rng.integers(0, 3)), rng)
        check(random_circuit(rng, n, int(rng.integers(0, 30))), load_chip(chip), place, seed)


@pytest.mark.parametrize("names", [("H", "CNOT"), ("X", "RY", "CZ"), ("RY", "CRZ", "SWAP"), ("T", "RX", "CRX", "CRY")])
def test_random_circuits_of_few_kinds(names):
    rng = np.random.default_rng(7)
    for seed in range(6):
        check(random_circuit(rng, 4, 24, names), WUKONG, random_place(WUKONG, 4, rng), seed)


@pytest.mark.parametrize("n", [2, 3])
def test_few_wires_that_meet_often(n):
    rng = np.random.default_rng(n)
    for seed in range(12):
        check(random_circuit(rng, n, 30, ("RY", "CRY", "CZ", "CRZ", "SWAP")), IDEAL, (0, 1, 2)[:n], seed)


@pytest.mark.parametrize("weights", [(0.3, 0.7, -0.4, 1.1, 0.2, 0.9), (2.1, -2.7, 1.9, -3.0, 2.5, -1.3)])
def test_runs_whose_tilt_is_constant_only_in_places(weights):
    """Joined interactions about equal axes: what follows tilts by a quarter turn for some weights, not for all."""
    circuit = Circuit(2, (
        Gate("RY", 1, Weight(0, 2.0)), Gate("CRY", (1, 0), Weight(1)), Gate("CRY", (0, 1), -3.927),
        Gate("RY", 1, Weight(2, 2.0)), Gate("CRY", (1, 0), 2.311), Gate("CRY", (0, 1), Weight(3)),
        Gate("RY", 1, Weight(4)), Gate("RY", 0, Weight(5)),
    ))  # fmt: skip
    template = compile_circuit(circuit, IDEAL, (0, 1))
    inputs, values = torch.zeros(1, 0, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)
    found = run(template.circuit, template.angles(inputs, values), torch.zeros(0, dtype=torch.float64))
    torch.testing.assert_close(found, run(circuit, inputs, values), atol=1e-6, rtol=0)


@pytest.mark.parametrize("circuit", [
    qtha_block(4, 1), qtha_block(4, 2), qtha_block(4, 1, "older"), qtha_block(3, 1), qtha_block(2, 1),
    qtha_block(1, 1), rotation_cnot_ring(4, 1), rotation_cnot_ring(4, 2), simplified_two_design(4, 2),
])  # fmt: skip
def test_ansatze_on_random_places(circuit):
    rng = np.random.default_rng(3)
    for seed in range(4):
        check(circuit, WUKONG, random_place(WUKONG, circuit.n_qubits + seed % 2, rng), seed)


@pytest.mark.parametrize("n", [6, 8])
def test_larger_circuits(n):
    rng = np.random.default_rng(n)
    check(qtha_block(n, 1), IDEAL, random_place(IDEAL, n, rng))
    check(random_circuit(rng, n, 30), IDEAL, random_place(IDEAL, n, rng))


@pytest.mark.parametrize(
    ("circuit", "qubits", "most"),
    [
        (qtha_block(4, 1), SQUARE, 10),  # eight CRZ: two from a fresh wire, two pairs joined
        (qtha_block(4, 1), LINE, 16),
        (qtha_block(4, 1), ELL, 16),
        (qtha_block(4, 1, "older"), SQUARE, 5),  # the last ring is not seen
        (qtha_block(2, 1), (0, 1), 2),  # both CRZ of a ring add up, both rings join
        (rotation_cnot_ring(4, 1), SQUARE, 4),
        (simplified_two_design(4, 1), LINE, 3),
        (Circuit(2, (Gate("CNOT", (0, 1)),)), (0, 1), 0),  # |0> controls nothing
        (Circuit(2, (Gate("H", 0), Gate("CNOT", (0, 1)), Gate("CNOT", (0, 1)))), (0, 1), 0),
        (Circuit(3, (Gate("H", 0), Gate("SWAP", (0, 2)), Gate("CNOT", (2, 1)))), (0, 1, 2), 1),
    ],
)
def test_numbers_of_cz(circuit, qubits, most):
    template = compile_circuit(circuit, IDEAL, qubits)
    assert metrics(template, IDEAL).n_cz <= most


def test_pulses_are_few():
    """No run between two CZ gates takes more than two."""
    template = compile_circuit(qtha_block(4, 1), IDEAL, SQUARE)
    assert metrics(template, IDEAL).n_pulses <= 44
    bell = compile_circuit(Circuit(2, (Gate("H", 0), Gate("CNOT", (0, 1)))), IDEAL, (0, 1))
    assert metrics(bell, IDEAL).n_pulses == 3
    flip = compile_circuit(Circuit(1, (Gate("X", 0), Gate("Z", 0))), IDEAL, (0,))
    assert [gate.name for gate in flip.circuit.gates] == ["RX"]


def test_qiskit_needs_no_fewer_cz():
    qiskit = pytest.importorskip("qiskit")
    for layers in (1, 2):
        circuit = qtha_block(4, layers)
        inputs, weights = numbers(circuit)
        plain = qiskit.QuantumCircuit(4)
        for gate in circuit.bind(inputs[1].tolist(), weights.tolist()).gates:
            {"RY": plain.ry, "CRZ": plain.crz}[gate.name](gate.angle, *gate.wires)
        plain.measure_all()
        for qubits, edges in ((SQUARE, [(0, 1), (0, 2), (1, 3), (2, 3)]), (LINE, [(0, 1), (1, 2), (2, 3)])):
            theirs = min(
                qiskit.transpile(
                    plain, basis_gates=["rz", "sx", "x", "cz"], optimization_level=3, seed_transpiler=seed,
                    coupling_map=qiskit.transpiler.CouplingMap(edges + [edge[::-1] for edge in edges]),
                ).count_ops()["cz"]
                for seed in range(3)
            )  # fmt: skip
            assert metrics(compile_circuit(circuit, IDEAL, qubits), IDEAL).n_cz <= theirs


def five_in_a_row(fidelities: list[float]) -> ChipSnapshot:
    qubits = tuple(Qubit(index, 0.999, 0.01, 0.01, 20.0, 10.0) for index in range(5))
    couplers = tuple(Coupler((a, a + 1), fidelity) for a, fidelity in enumerate(fidelities))
    return ChipSnapshot("row", qubits, couplers)


def test_better_couplers_are_taken():
    bell = Circuit(2, (Gate("H", 0), Gate("CNOT", (0, 1))))
    template = compile_circuit(bell, five_in_a_row([0.9, 0.95, 0.99, 0.93]), (0, 1, 2, 3, 4))
    used = {template.qubits[wire] for gate in template.circuit.gates for wire in gate.wires}
    assert used == {2, 3}


def test_metrics_multiply_what_goes_wrong():
    chip = five_in_a_row([0.9, 0.95, 0.99, 0.93])
    circuit = Circuit(2, (Gate("RY", 0, Input(0)), Gate("RY", 1, Weight(0)), Gate("CZ", (0, 1)), Gate("RX", 1, 0.3)))
    found = metrics(compile_circuit(circuit, chip, (2, 3)), chip)
    assert (found.n_cz, found.n_pulses) == (1, 6)
    assert found.duration_ns == 30 * 4 + 40
    waiting = 0.5 + math.exp(-0.06 / 20) / 6 + math.exp(-0.06 / 10) / 3
    assert found.expected_fidelity == pytest.approx(0.99 * 0.999**6 * 0.99**2 * waiting)


def test_the_same_question_is_answered_once_and_alike():
    circuit = qtha_block(4, 1)
    first = compile_circuit(circuit, WUKONG, random_place(WUKONG, 4, np.random.default_rng(0)))
    assert compile_circuit(qtha_block(4, 1), WUKONG, first.qubits) is first
    compiler._compile.cache_clear()
    compiler._natives.cache_clear()
    assert compile_circuit(circuit, WUKONG, first.qubits) == first


def test_templates_go_through_pickle():
    template = compile_circuit(qtha_block(4, 1), IDEAL, LINE)
    again = pickle.loads(pickle.dumps(template))
    inputs, weights = numbers(qtha_block(4, 1))
    assert again == template
    assert torch.equal(again.angles(inputs, weights), template.angles(inputs, weights))


@pytest.mark.parametrize("circuit", [qtha_block(3, 1), qtha_block(4, 2), rotation_cnot_ring(3, 1)])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 0.0])
def test_gradients_pass_through_the_angles(circuit, scale):
    """Also where all weights are 0, as they are where a circuit begins as the identity."""
    template = compile_circuit(circuit, IDEAL, SQUARE[: circuit.n_qubits])
    inputs, weights = numbers(circuit, batch=3, seed=5)
    inputs.requires_grad_()
    weights = (scale * weights).requires_grad_()
    nothing = torch.zeros(0, dtype=torch.float64)
    chip = torch.autograd.grad(
        run(template.circuit, template.angles(inputs, weights), nothing).sum(), (inputs, weights)
    )
    exact = torch.autograd.grad(run(circuit, inputs, weights).sum(), (inputs, weights))
    for found, wanted in zip(chip, exact, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("qubits", "says"),
    [
        ((0, 1, 2), "has fewer"),
        ((0, 1, 2, 2), "repeat one"),
        ((0, 1, 2, 99), "cannot be used"),
        ((0, 1, 2, 5), "not connected"),
        ((0, 1, 2, 3.0), "whole numbers"),
        (4, "whole numbers"),
    ],
)
def test_places_that_do_not_do(qubits, says):
    with pytest.raises(InputError, match=says):
        compile_circuit(qtha_block(4, 1), IDEAL, qubits)


def test_what_a_chip_cannot_measure():
    with pytest.raises(InputError, match="measures Z"):
        compile_circuit(Circuit(1, (), ("X0",)), IDEAL, (0,))


def test_numbers_that_do_not_fit():
    template = compile_circuit(qtha_block(4, 1), IDEAL, SQUARE)
    inputs, weights = numbers(qtha_block(4, 1))
    with pytest.raises(InputError, match="the circuit needs"):
        template.angles(inputs[:, :3], weights)
    with pytest.raises(InputError, match="the circuit needs"):
        template.angles(inputs, weights[:3])
    inputs[2, 1] = math.nan
    with pytest.raises(InputError, match="NaN or infinite"):
        template.angles(inputs, weights)
