"""One set of circuits, every way to run it through the provider protocol: the same expectations within shot noise."""

import pytest
import torch
from circuit_set import ROWS, Case, cases, expectations, five_sigma, place, plain_template, through

from qpeft.chips import ChipSnapshot
from qpeft.qpu.providers.qiskit import QiskitProvider
from qpeft.qpu.providers.virtual import VirtualProvider

SHOTS = 4000
SET = pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
pytest.importorskip("qiskit_aer")


@pytest.fixture(scope="module")
def aer():
    return QiskitProvider("aer")


@pytest.fixture(scope="module")
def manila():
    """A fake chip of five qubits; what is tested does not depend on the size."""
    pytest.importorskip("qiskit_ibm_runtime")
    return QiskitProvider("fake_manila")


def _agree(measured, expected):
    assert ((measured - expected).abs() <= five_sigma(expected, SHOTS)).all(), (measured - expected).abs().max()


@SET
def test_aer_without_noise_agrees_with_the_simulator(aer, case: Case):
    _agree(through(aer, case, plain_template(case.circuit, tuple(range(case.circuit.n_qubits))), SHOTS), case.exact())


@SET
def test_compiled_circuits_agree_on_aer(aer, case: Case):
    """The same through the library's own compiler, in native gates."""
    _agree(through(aer, case, place(case, aer.snapshot()), SHOTS), case.exact())


def _noisy_reference(provider, case, template):
    """Expectations from the density matrix of the same circuit under the fake chip's noise, without shots."""
    from qiskit_aer import AerSimulator
    from qiskit_aer.noise import NoiseModel

    from qpeft.qpu.providers.qiskit_chip import fake_backend
    from qpeft.qpu.providers.qiskit_circuits import compile_blocks

    compiled = compile_blocks([template], provider._engine.target)
    circuit = compiled.circuit.remove_final_measurements(inplace=False)
    model = NoiseModel.from_backend(fake_backend("fake_manila"))
    chip = provider.snapshot()
    wires = [template.qubits[w] for w in reversed(range(len(template.qubits)))]  # the first is least significant
    circuit.save_probabilities(qubits=wires)
    simulator = AerSimulator(method="density_matrix", noise_model=model)
    angles = torch.nn.functional.pad(template.angles(case.inputs, case.weights), (0, 1))[:, compiled.columns]
    bound = [
        circuit.assign_parameters(dict(zip(compiled.circuit.parameters, row.tolist(), strict=True))) for row in angles
    ]
    probabilities = torch.stack([torch.tensor(simulator.run(c).result().data()["probabilities"]) for c in bound])
    for wire, qubit in enumerate(template.qubits):
        errors = chip.qubits[qubit]
        read = torch.tensor([[1 - errors.p10, errors.p10], [errors.p01, 1 - errors.p01]]).double()  # [prepared, read]
        shape = (ROWS, 2**wire, 2, -1)
        probabilities = torch.einsum("rapb,pm->ramb", probabilities.reshape(shape), read).reshape(ROWS, -1)
    return probabilities


@SET
def test_the_virtual_chip_without_noise_agrees_with_the_simulator(case: Case):
    provider = VirtualProvider(ChipSnapshot.fully_connected(5))
    _agree(through(provider, case, place(case, provider.snapshot()), SHOTS), case.exact())


@pytest.mark.parametrize("case", [case for case in cases() if case.circuit.n_qubits < 4], ids=lambda case: case.name)
def test_a_fake_chip_agrees_with_its_density_matrix(manila, case: Case):
    template = place(case, manila.snapshot())
    exact = expectations(_noisy_reference(manila, case, template), case, template.readout)
    _agree(through(manila, case, template, SHOTS), exact)


@SET
def test_a_fake_chip_and_its_virtual_twin_agree(manila, case: Case):
    """Two models of one calibration: Aer's gates do not decay while they wait, which costs up to 0.05 here."""
    template = place(case, manila.snapshot())
    twin = through(VirtualProvider(manila.snapshot()), case, template, SHOTS)
    measured = through(manila, case, template, SHOTS)
    assert ((measured - twin).abs() <= 0.05 + 1.5 * five_sigma(twin, SHOTS)).all(), (measured - twin).abs().max()
