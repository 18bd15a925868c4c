"""One set of circuits through every executor, broker and ledger included: equal expectations within stated error."""

import pytest
import torch
from circuit_set import cases

from loopback import KEY, loopback
from qpeft.chips import ChipSnapshot
from qpeft.layer import QuantumLayer
from qpeft.qpu.broker import Broker
from qpeft.qpu.executor import ChipExecutor
from qpeft.qpu.mitigation import Mitigation
from qpeft.qpu.policy import Policy
from qpeft.qpu.providers import open_provider
from qpeft.simulators import NoiseModel, run_noisy, run_shots

SHOTS = 4000
SET = [case for case in cases() if case.name in ("random-1", "random-2", "qtha-2", "qtha-3")]


def provider(name):
    if name == "virtual-wukong":
        return open_provider(name, chip=ChipSnapshot.fully_connected(6))
    pytest.importorskip("qiskit_aer")
    return open_provider(name, backend="aer", n_qubits=6)


@pytest.mark.parametrize("name", ["virtual-wukong", "qiskit"])
def test_chips_without_noise_agree_with_the_simulator(name, tmp_path):
    executor = ChipExecutor(Broker(provider(name), tmp_path), shots=SHOTS)
    for case in SET:
        values, errors = executor.estimate(case.circuit, case.inputs, case.weights)
        assert ((values - case.exact()).abs() < 5 * errors + 10 / SHOTS).all(), case.name
    assert executor.report().rows == {"forward": 3 * len(SET)}
    executor.close()


def test_origins_client_on_a_cloud_without_noise_agrees_with_the_simulator(tmp_path, monkeypatch):
    pytest.importorskip("pyqpanda3")
    monkeypatch.setenv("QPEFT_ORIGIN_KEY", KEY)
    with loopback(snapshot=ChipSnapshot.fully_connected(6)) as server:
        origin = open_provider("origin", chip="72", url=server.url)
        executor = ChipExecutor(Broker(origin, tmp_path, policy=Policy(poll_first=0.05, rate=100)), shots=SHOTS)
        for case in SET:
            values, errors = executor.estimate(case.circuit, case.inputs, case.weights)
            assert ((values - case.exact()).abs() < 5 * errors + 10 / SHOTS).all(), case.name
        executor.close()


@pytest.mark.parametrize("readout", ["none", "tensored"])
def test_a_noisy_chip_agrees_with_its_twin(readout, tmp_path):
    """Raw counts with a model that has readout errors, inverted ones with a model that has none."""
    chip = ChipSnapshot.fully_connected(
        6, fidelity=0.995, two_qubit_fidelity=0.96, readout_error=0.05, t1_us=12.0, t2_us=2.0
    )
    executor = ChipExecutor(
        Broker(open_provider("virtual-wukong", chip=chip), tmp_path),
        shots=SHOTS,
        mitigation=Mitigation(readout, calibration_shots=10_000),
    )
    for case in SET:
        values, errors = executor.estimate(case.circuit, case.inputs, case.weights)
        twin = executor.twin(case.circuit, case.inputs, case.weights)
        # 10,000 shots leave 0.2 % to each flip probability, which is about 1 % of a string of three
        calibration = 0.012 if readout == "tensored" else 0.0
        assert ((values - twin).abs() < 5 * errors + calibration + 10 / SHOTS).all(), case.name
        assert (twin - case.exact()).abs().max() > 0.02
    executor.close()


def test_simulators_of_the_layer_agree():
    for case in SET:
        exact = case.exact()
        no_noise = NoiseModel()
        torch.testing.assert_close(run_noisy(case.circuit, case.inputs, case.weights, no_noise), exact)
        shots = run_shots(case.circuit, case.inputs, case.weights, SHOTS, seed=0)
        assert ((shots - exact).abs() < 5 * ((1 - exact**2).clamp(min=0) / SHOTS).sqrt() + 10 / SHOTS).all()
        layer = QuantumLayer(case.circuit).double()
        layer.weight.data.copy_(case.weights)
        torch.testing.assert_close(layer(case.inputs), exact)
