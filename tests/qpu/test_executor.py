"""The chip executor: right expectations, whatever is packed, rotated, calibrated or mitigated on the way."""

import copy
import math
import pickle
from dataclasses import replace

import pytest
import torch
from circuit_set import cases
from direct_broker import CAPS, DirectBroker

from qpeft.chips import ChipSnapshot, load_chip
from qpeft.circuits import Circuit, Gate, Input, Weight, qtha_block
from qpeft.errors import InputError
from qpeft.gradients import count_circuits, shift_gradient, spsa_gradient
from qpeft.qpu.executor import ChipExecutor
from qpeft.qpu.mitigation import Mitigation
from qpeft.qpu.protocol import ProviderError
from qpeft.simulators import Depolarizing, GateNoise, NoiseModel, ReadoutError, run

CHIP = load_chip("wukong-72")
BASES = Circuit(
    3,
    (
        Gate("RY", 0, Input(0)),
        Gate("RX", 1, Input(1)),
        Gate("CRZ", (0, 1), Weight(0)),
        Gate("RY", 1, Weight(1)),
        Gate("CNOT", (1, 2)),
        Gate("RX", 2, Input(0, 0.5)),
        Gate("RZ", 0, 0.8),
        Gate("RX", 1, Weight(2)),
        Gate("CRY", (2, 0), Weight(1, -0.5)),
        Gate("RZ", 1, 0.4),
    ),
    ("Z0", "X1", "Y2", "Z0 Z2", "X0 Y1", "Y0 Y1 X2"),
)


def flips(template):
    """Readout errors that differ from qubit to qubit."""
    return NoiseModel(readout=tuple(ReadoutError(0.01 + 0.001 * q, 0.04 + 0.002 * q) for q in template.qubits))


def executor(noise=lambda template: None, caps=CAPS, chip=CHIP, **options):
    return ChipExecutor(DirectBroker(chip, noise, caps), **{"shots": 500, "layout": {"max_blocks": 3}, **options})


def angles(circuit, rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, circuit.n_inputs, generator=generator, dtype=torch.float64)
    return inputs, torch.randn(circuit.n_weights, generator=generator, dtype=torch.float64)


def assert_within(found, errors, expected):
    """Within 5 standard errors, and what a few shots near ±1 add to them."""
    assert ((found - expected).abs() < 5 * errors + 0.01).all(), ((found - expected).abs() / (errors + 1e-9)).max()


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_expectations_are_those_of_the_simulator(case):
    chip = executor(flips, shots=20_000, mitigation=Mitigation(calibration_shots=10**6))
    found = chip.estimate(case.circuit, case.inputs, case.weights)
    assert_within(*found, case.exact())


@pytest.mark.parametrize("readout", ["tensored", "m3"])
def test_any_pauli_string_is_measured(readout):
    if readout == "m3":
        pytest.importorskip("mthree")
    inputs, weights = angles(BASES, 5)
    chip = executor(flips, shots=20_000, mitigation=Mitigation(readout, calibration_shots=10**6))
    assert_within(*chip.estimate(BASES, inputs, weights), run(BASES, inputs, weights))


def test_readout_errors_stay_where_nobody_inverts_them():
    inputs, weights = angles(BASES, 60)
    exact = run(BASES, inputs, weights)
    for readout, right in (("none", False), ("tensored", True)):
        chip = executor(flips, shots=5000, mitigation=Mitigation(readout, calibration_shots=10**6))
        found, errors = chip.estimate(BASES, inputs, weights)
        squares = ((found - exact) / errors).square().mean(0)  # about 1 where nothing else is wrong
        assert (squares < 1.8).all() if right else (squares > 3).all(), squares
        asked = ["forward"] if readout == "none" else ["calibration", "forward"]
        assert [purpose for purpose, *_ in chip.broker.asked] == asked


def test_many_rows_share_packed_circuits_and_move_on_from_call_to_call():
    circuit = qtha_block(2, 1)
    inputs, weights = angles(circuit, 100)
    chip = executor(shots=1, layout={})
    size = 0
    homes = []
    for _ in range(3):
        chip.expectations(circuit, inputs, weights)
        packed = chip.broker.packed[-1]
        size = len(packed[0])
        assert len(packed) == math.ceil(100 / size)
        assert {len(blocks) for blocks in packed[:-1]} == {size}
        homes.append([block.template for block in sorted_blocks(packed)])
    assert size >= 20
    assert homes[0] != homes[1]
    assert homes[1] != homes[2]
    report = chip.report()
    assert report.regions == size
    assert report.rows == {"forward": 300}


def sorted_blocks(packed):
    return [block for blocks in packed for block in blocks]


def test_rows_come_back_in_their_order():
    circuit = Circuit(2, (Gate("RY", 0, Input(0)), Gate("CZ", (0, 1)), Gate("RY", 1, Input(1))))
    inputs = torch.linspace(-3, 3, 150, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.7], dtype=torch.float64)
    chip = executor(shots=100_000, mitigation=Mitigation("none"))
    for _ in range(2):
        found = chip.expectations(circuit, inputs, torch.zeros(0))
        torch.testing.assert_close(found, inputs.cos(), rtol=0, atol=0.02)


def test_one_calibration_serves_a_circuit_and_its_gradients():
    inputs, weights = angles(BASES, 4)
    chip = executor(flips, shots=50)
    cotangent = torch.ones(4, 6, dtype=torch.float64)
    chip.expectations(BASES, inputs, weights)
    shift_gradient(BASES, inputs, weights, chip.expectations, cotangent)
    spsa_gradient(BASES, inputs, weights, cotangent, chip.expectations)
    assert [asked[0] for asked in chip.broker.asked] == ["calibration", "forward", "forward", "forward"]
    assert chip.broker.asked[0][1:3] == (2, 500)
    assert len(chip.report().calibrations) == 1


def test_number_of_circuits_is_known_beforehand():
    inputs, weights = angles(BASES, 7)
    cotangent = torch.ones(7, 6, dtype=torch.float64)
    chip = executor(shots=1, mitigation=Mitigation("none"))

    def ran(call):
        before = chip.report().circuits
        call()
        return chip.report().circuits - before

    forward = ran(lambda: chip.expectations(BASES, inputs, weights))
    shift = ran(lambda: shift_gradient(BASES, inputs, weights, chip.expectations, cotangent))
    spsa = ran(lambda: spsa_gradient(BASES, inputs, weights, cotangent, chip.expectations, n_directions=3))
    assert count_circuits(BASES, "shift", 7) == (forward, shift)
    assert count_circuits(BASES, "spsa", 7, n_directions=3) == (forward, spsa)
    assert count_circuits(BASES, "twin", 7).total == forward
    with pytest.raises(InputError, match="unknown gradient rule 'random'"):
        count_circuits(BASES, "random", 7)


def test_old_calibrations_and_those_of_another_chip_are_made_anew():
    now = [0.0]
    circuit = qtha_block(2, 1)
    inputs, weights = angles(circuit, 3)
    chip = executor(flips, shots=10, mitigation=Mitigation(minutes=10), snapshot_minutes=1, clock=lambda: now[0])

    def calibrations():
        chip.expectations(circuit, inputs, weights)
        return sum(purpose == "calibration" for purpose, *_ in chip.broker.asked)

    assert calibrations() == 1
    now[0] = 9 * 60
    assert calibrations() == 1
    now[0] = 11 * 60
    assert calibrations() == 2
    qubits = tuple(replace(qubit, p10=qubit.p10 / 2) for qubit in CHIP.qubits)
    chip.broker.snapshot = replace(CHIP, qubits=qubits)
    assert calibrations() == 2  # not asked yet
    now[0] = 13 * 60
    assert calibrations() == 3
    assert len({name.split("-")[0] for name in chip.report().calibrations}) == 2


def test_affine_normalisation_undoes_depolarizing_noise():
    circuit = qtha_block(2, 1)
    inputs, weights = angles(circuit, 200)

    def noise(template):
        cz = GateNoise(Depolarizing(0.06, joint=True), ("CZ",))
        return NoiseModel((cz,), tuple(ReadoutError(0.02, 0.06) for _ in template.qubits))

    exact = run(circuit, inputs, weights)
    slopes = []
    for affine in (False, True):
        chip = executor(noise, shots=4000, mitigation=Mitigation(affine=affine))
        found = chip.estimate(circuit, inputs, weights)
        slopes.append((found.values * exact).sum(0) / exact.square().sum(0))
    assert (slopes[0] < 0.9).all()
    assert (slopes[1] - 1).abs().max() < 0.3 * (1 - slopes[0]).min()
    assert chip.broker.asked[1][:2] == ("calibration", 32)  # all regions side by side
    assert len(chip.broker.asked) == 3


def test_extrapolation_takes_away_most_of_the_noise_of_cz():
    circuit = qtha_block(2, 1)
    inputs, weights = angles(circuit, 60)

    def noise(template):
        return NoiseModel((GateNoise(Depolarizing(0.12, joint=True), ("CZ",)),))

    chip = executor(noise, shots=50_000, mitigation=Mitigation("none"))
    best, found = chip.extrapolate(circuit, inputs, weights)
    exact = run(circuit, inputs, weights)
    losses = [(each.values - exact).square().mean().sqrt().item() for each in found]
    assert losses[0] < losses[1] < losses[2]
    assert (best.values - exact).square().mean().sqrt() < 0.3 * losses[0]
    line, _ = chip.extrapolate(circuit, inputs, weights, factors=(1, 3), fit="linear")
    assert (line.errors < best.errors).all()
    assert chip.report().rows == {"evaluation": 300}


def test_the_twin_of_a_chip_without_noise_is_the_simulator():
    inputs, weights = angles(BASES, 30)
    chip = executor(chip=ChipSnapshot.fully_connected(7), shots=1, layout={})
    chip.expectations(BASES, inputs, weights)
    points = inputs.clone().requires_grad_(), weights.clone().requires_grad_()
    twin, exact = chip.twin(BASES, *points), run(BASES, *points)
    torch.testing.assert_close(twin, exact, rtol=0, atol=1e-6)
    cotangent = torch.randn(30, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    of_twin = torch.autograd.grad(twin, points, cotangent)
    for a, b in zip(of_twin, torch.autograd.grad(exact, points, cotangent), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_types_shapes_and_nothing_to_do():
    circuit = qtha_block(2, 1)
    inputs, weights = angles(circuit, 3)
    chip = executor(shots=10)
    assert chip.expectations(circuit, inputs, weights).dtype == torch.float64
    for dtype in (torch.float32, torch.bfloat16):
        assert chip.expectations(circuit, inputs.to(dtype), weights).dtype == torch.float32
    asked = len(chip.broker.asked)
    assert chip.expectations(circuit, inputs[:0], weights).shape == (0, 2)
    assert len(chip.broker.asked) == asked


def test_equal_seeds_give_equal_results():
    circuit = qtha_block(2, 1)
    inputs, weights = angles(circuit, 20)
    first, again, other = (executor(shots=20, seed=seed) for seed in (1, 1, 2))
    runs = [[chip.expectations(circuit, inputs, weights) for _ in range(2)] for chip in (first, again, other)]
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][0], runs[2][0])
    assert not torch.equal(runs[0][0], runs[0][1])


def test_without_packing_one_circuit_runs_at_a_time():
    circuit = qtha_block(2, 1)
    inputs, weights = angles(circuit, 5)
    chip = executor(caps=replace(CAPS, packs=False), shots=10)
    chip.expectations(circuit, inputs, weights)
    assert [asked[1] for asked in chip.broker.asked] == [2, 5]
    assert chip.report().regions == 1


def test_bad_input_is_one_sentence():
    circuit = qtha_block(2, 1)
    inputs, weights = angles(circuit, 5)
    chip = executor()
    with pytest.raises(InputError, match=r"must have the shapes \(rows, 2\) and \(8,\)"):
        chip.expectations(circuit, inputs[:, :1], weights)
    with pytest.raises(InputError, match="NaN or infinity"):
        chip.expectations(circuit, inputs / 0, weights)
    with pytest.raises(InputError, match="fewer qubits"):
        chip.expectations(qtha_block(70, 1), torch.zeros(1, 70), torch.zeros(280))
    for shots in (0, 10**7, 1.5, True):
        with pytest.raises(InputError, match="shots must be a whole number from 1 to 1000000 on direct:test"):
            executor(shots=shots)
    with pytest.raises(InputError, match="seed must be"):
        executor(seed=-1)
    blind = executor(lambda template: NoiseModel(readout=ReadoutError(0.5, 0.5)))
    with pytest.raises(ProviderError, match="its readout says nothing"):
        blind.expectations(circuit, inputs, weights)


def test_copies_share_the_chip_and_pickles_are_refused():
    chip = executor()
    assert copy.deepcopy([chip])[0] is chip
    with pytest.raises(InputError, match="cannot be saved with a model"):
        pickle.dumps(chip)
