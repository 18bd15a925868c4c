"""Snapshots of chips that Qiskit knows: against the numbers of the fake chips, and with parts broken."""

import copy

import pytest

from qpeft.errors import InputError
from qpeft.qpu.chips import open_chip
from qpeft.qpu.providers.qiskit_chip import fake_backend, heron_like, snapshot_from_backend

pytest.importorskip("qiskit_ibm_runtime")


@pytest.fixture(scope="module")
def torino():
    return fake_backend("fake_torino")


def test_the_numbers_are_those_of_the_backend(torino):
    chip = snapshot_from_backend(torino)
    target, properties = torino.target, torino.properties()
    assert chip.name == "fake_torino"
    assert len(chip.qubits) == 133
    assert len(chip.couplers) == 150  # heavy hexagons
    for index in (0, 17, 132):
        qubit = chip.qubits[index]
        assert qubit.index == index
        assert qubit.fidelity == pytest.approx(1 - target["sx"][(index,)].error)
        assert qubit.p10 == properties.qubit_property(index, "prob_meas1_prep0")[0]
        assert qubit.p01 == properties.qubit_property(index, "prob_meas0_prep1")[0]
        assert qubit.t1_us == pytest.approx(properties.t1(index) * 1e6)
        assert 0 < qubit.t2_us <= 2 * qubit.t1_us
    for coupler in chip.couplers[::37]:
        error = target["cz"][coupler.qubits].error
        assert coupler.fidelity == pytest.approx(1 - min(error, 1))
    assert chip.one_qubit_ns == pytest.approx(32)
    assert 50 < chip.two_qubit_ns < 100
    assert chip.readout_ns == pytest.approx(1560)
    assert chip.repetition_us == pytest.approx(250 + 1.56)
    assert chip.date.startswith("2025-02-26")


def test_couplers_of_both_directions_become_one():
    one_way = snapshot_from_backend(fake_backend("fake_sherbrooke"))  # ECR, one direction each
    assert len(one_way.couplers) == 144
    both_ways = snapshot_from_backend(fake_backend("fake_lima"))  # CNOT, both directions listed
    assert [coupler.qubits for coupler in both_ways.couplers] == [(0, 1), (1, 2), (1, 3), (3, 4)]
    assert all(a < b for coupler in one_way.couplers for a, b in [coupler.qubits])


def test_broken_parts_are_never_offered(torino):
    target = copy.deepcopy(torino.target)
    target["cz"][(0, 1)].error = target["cz"][(1, 0)].error = 1.0
    target["cz"][(1, 2)].error = target["cz"][(2, 1)].error = None
    target["sx"][(5,)].error = 1.0
    target["measure"][(7,)].error = None
    chip = snapshot_from_backend(_Plain(target))
    live = {coupler.qubits for coupler in chip.live_couplers}
    assert not live & {(0, 1), (1, 2), (4, 5), (5, 6), (6, 7), (7, 8)}
    assert {5, 7}.isdisjoint(chip.live_qubits)
    assert (2, 3) in live


class _Plain:
    """A backend with nothing but a target."""

    def __init__(self, target):
        self.target = target


def test_faulty_qubits_and_gates_of_the_calibration_are_dropped(torino):
    class Faulty(_Plain):
        def properties(self):
            known = torino.properties()
            known.is_qubit_operational = lambda qubit: qubit != 3
            known.is_gate_operational = lambda gate, qubits: (gate, sorted(qubits)) != ("cz", [0, 1])
            return known

    chip = snapshot_from_backend(Faulty(torino.target))
    assert 3 not in chip.live_qubits
    assert (0, 1) not in {coupler.qubits for coupler in chip.live_couplers}
    assert len(chip.live_couplers) < len(snapshot_from_backend(torino).live_couplers)


def test_backends_without_errors_are_perfect():
    from qiskit.providers.fake_provider import GenericBackendV2

    chip = snapshot_from_backend(GenericBackendV2(4, basis_gates=["rz", "sx", "cz"], noise_info=False, seed=1))
    assert {qubit.fidelity for qubit in chip.qubits} == {1.0}
    assert {coupler.fidelity for coupler in chip.couplers} == {1.0}
    assert chip.sources["fidelities"].startswith("inferred")


def test_simulators_without_couplers_are_fully_connected():
    from qiskit_aer import AerSimulator

    chip = snapshot_from_backend(AerSimulator())
    n = len(chip.qubits)
    assert len(chip.live_couplers) == n * (n - 1) // 2


def test_what_cannot_serve_is_refused():
    from qiskit.providers.fake_provider import GenericBackendV2

    with pytest.raises(InputError, match="one of cz, ecr, cx is needed"):
        snapshot_from_backend(GenericBackendV2(3, basis_gates=["rz", "sx", "rzz"], seed=1))
    with pytest.raises(InputError, match="has no target"):
        snapshot_from_backend(object())


def test_chips_are_opened_by_name():
    heron = open_chip("ibm-heron-like")
    assert heron.name == "ibm-heron-like"
    assert heron == heron_like()
    assert open_chip(heron) is heron
    assert open_chip("qiskit:fake_lima").name == "fake_lima"
    assert open_chip(fake_backend("fake_lima")) == open_chip("qiskit:fake_lima")
    assert len(open_chip("wukong-72").qubits) == 72
    with pytest.raises(InputError, match="no chip 'wukong-73'"):
        open_chip("wukong-73")
