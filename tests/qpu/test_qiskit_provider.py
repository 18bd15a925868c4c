"""The Qiskit provider on simulators in this process: Aer, fake chips, other backends and samplers."""

import time

import pytest
import torch
from circuit_set import answer, chain, plain_template, submission

from qpeft.chips import NativeTemplate
from qpeft.circuits import Circuit, Gate, Input
from qpeft.errors import InputError
from qpeft.qpu.protocol import JobState, NotAcceptedError, ProviderError
from qpeft.qpu.providers import open_provider
from qpeft.qpu.providers.qiskit import QiskitProvider
from qpeft.qpu.providers.qiskit_circuits import compile_blocks

pytest.importorskip("qiskit_aer")
HALF = 1.5707963267948966


def native(n, *qubits):
    """Every wire: RX(-90) RZ(x) RX(90), and CZ between neighbours; inputs are the angles."""
    gates = []
    for wire in range(n):
        gates += [Gate("RX", wire, -HALF), Gate("RZ", wire, Input(wire)), Gate("RX", wire, HALF)]
    gates += [Gate("CZ", (wire, wire + 1)) for wire in range(n - 1)]
    return NativeTemplate(Circuit(n, tuple(gates)), qubits, tuple(range(n)), lambda inputs, weights: inputs)


@pytest.fixture(scope="module")
def torino():
    pytest.importorskip("qiskit_ibm_runtime")
    return QiskitProvider("fake_torino")


def test_wire_0_is_the_most_significant_bit_and_rows_stay_in_order():
    template = plain_template(Circuit(3, tuple(Gate("RX", w, Input(w)) for w in range(3))), (5, 2, 9))
    flips = torch.tensor([[1.0, 0, 0], [0, 0, 1], [1, 1, 0]]) * torch.pi
    counts = answer(QiskitProvider("aer"), submission([template], [flips], shots=10))
    assert [int(blocks[0].argmax()) for blocks in counts] == [0b100, 0b001, 0b110]
    assert all(int(blocks[0].sum()) == 10 for blocks in counts)


def test_equal_seeds_give_equal_counts_and_rows_differ(torino):
    job = submission([native(2, 0, 1)], [torch.full((4, 2), 1.0)], shots=300, seed=5)
    for provider in (QiskitProvider("aer"), torino):
        first, again = answer(provider, job), answer(provider, job)
        assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
        other = answer(provider, submission([native(2, 0, 1)], [torch.full((4, 2), 1.0)], shots=300, seed=6))
        assert any(not torch.equal(a[0], b[0]) for a, b in zip(first, other, strict=True))
        assert any(not torch.equal(first[0][0], row[0]) for row in first[1:])  # the same angles, but shots of its own


def test_rows_without_angles_are_all_run(torino):
    """Aer's sampler by itself runs a circuit without parameters once and fills the other rows with zeros."""
    gates = (Gate("RX", 0, HALF), Gate("RX", 0, HALF))
    template = NativeTemplate(Circuit(2, gates), chain(torino.snapshot(), 2), (0, 1), lambda inputs, weights: inputs)
    for provider in (QiskitProvider("aer"), torino):
        counts = answer(provider, submission([template], [torch.zeros(3, 0)], shots=100))
        assert [int(blocks[0].argmax()) for blocks in counts] == [0b10] * 3


def test_circuits_are_compiled_onto_their_own_qubits_once(torino):
    target = torino._engine.target
    chip = torino.snapshot()
    first = chain(chip, 3)
    second = chain(chip, 2, taken=frozenset(first))
    compiled = compile_blocks([native(3, *first), native(2, *second)], target)
    circuit = compiled.circuit
    operations = circuit.count_ops()
    assert set(operations) <= {"rz", "sx", "x", "cz", "barrier", "measure"}
    assert operations["cz"] == 3
    assert operations["sx"] == 2 * 5  # one pulse for every RX
    assert [(register.name, register.size) for register in circuit.cregs] == [("b0", 3), ("b1", 2)]
    touched = {circuit.find_bit(q).index for step in circuit.data for q in step.qubits}
    assert touched == set(first) | set(second)
    assert sorted(compiled.columns.tolist()) == list(range(5))
    barrier = next(i for i, step in enumerate(circuit.data) if step.operation.name == "barrier")
    assert {step.operation.name for step in circuit.data[barrier + 1 :]} == {"measure"}

    job = submission([native(3, *first)], [torch.zeros(1, 3)], shots=1)
    answer(torino, job)
    kept = dict(torino._compiled)
    answer(torino, job)
    assert torino._compiled == kept


def test_pairs_of_cz_stay(torino):
    """They undo each other, and are there to amplify noise."""
    pair = chain(torino.snapshot(), 2)
    gates = tuple(Gate("CZ", (0, 1)) for _ in range(5))
    template = NativeTemplate(Circuit(2, gates), pair, (0, 1), lambda inputs, weights: inputs)
    assert compile_blocks([template], torino._engine.target).circuit.count_ops()["cz"] == 5


@pytest.mark.parametrize("name", ["fake_brisbane", "fake_lima"])
def test_other_native_gates_are_met_without_moving(name):
    """Brisbane has ECR, each in one direction only; Lima has CNOT."""
    pytest.importorskip("qiskit_ibm_runtime")
    provider = QiskitProvider(name)
    chip = provider.snapshot()
    template = native(3, *chain(chip, 3))
    compiled = compile_blocks([template], provider._engine.target).circuit
    assert compiled.count_ops()["ecr" if name == "fake_brisbane" else "cx"] == 2
    flips = torch.tensor([[torch.pi, 0, 0], [0, 0, torch.pi]], dtype=torch.float64)
    counts = answer(provider, submission([template], [flips], shots=400))
    assert [int(blocks[0].argmax()) for blocks in counts] == [0b100, 0b001]


def test_circuits_that_do_not_fit_the_chip_are_refused(torino):
    coupled = {coupler.qubits for coupler in torino.snapshot().couplers}
    far = next(q for q in range(2, 133) if (0, q) not in coupled)
    with pytest.raises(NotAcceptedError, match="cannot run the circuit where it was placed") as refused:
        torino.submit(submission([native(2, 0, far)], [torch.zeros(1, 2)], shots=5))
    assert refused.value.lasting
    with pytest.raises(InputError, match="qubit 133 is not on the chip"):
        torino.submit(submission([native(1, 133)], [torch.zeros(1, 1)], shots=5))
    with pytest.raises(InputError, match="blocks share qubits"):
        compile_blocks([native(2, 0, 1), native(1, 1)], torino._engine.target)


def test_blocks_side_by_side_equal_blocks_by_themselves():
    """A backend that is not known to be a simulator gets whole circuits; on a fake chip the blocks run apart."""
    from qiskit.primitives import BackendSamplerV2
    from qiskit_aer import AerSimulator

    from qpeft.qpu.providers.qiskit_chip import fake_backend

    class Machine(AerSimulator):
        """A stranger: another vendor's backend, which happens to answer like Manila."""

    Machine.__module__ = "vendor.machine"
    machine = Machine.from_backend(fake_backend("fake_manila"))
    machine.set_options(seed_simulator=11)
    stranger, manila = QiskitProvider(BackendSamplerV2(backend=machine)), QiskitProvider("fake_manila")
    assert stranger._engine.side_by_side
    assert not manila._engine.side_by_side
    assert stranger.caps().paid
    templates = [native(2, 1, 0), native(2, 3, 4)]
    angles = [torch.tensor([[0.4, 1.1], [2.0, 0.3]]), torch.tensor([[1.3, 0.2], [0.1, 2.9]])]
    shots = 4000
    together = answer(stranger, submission(templates, angles, shots))
    apart = answer(manila, submission(templates, angles, shots))
    for a, b in zip(together, apart, strict=True):
        for left, right in zip(a, b, strict=True):
            p = (left + right) / (2 * shots)
            assert ((left - right).abs() <= 5 * (2 * shots * p * (1 - p)).sqrt() + 3).all()


def test_samplers_and_backends_of_all_kinds():
    from qiskit.primitives import StatevectorSampler
    from qiskit.providers.fake_provider import GenericBackendV2
    from qiskit_aer import AerSimulator
    from qiskit_aer.primitives import SamplerV2

    template = native(2, 0, 1)
    job = submission([template], [torch.tensor([[torch.pi, 0.0]])], shots=50)
    generic = GenericBackendV2(3, basis_gates=["rz", "sx", "x", "cz"], noise_info=False, seed=1)
    for backend in (StatevectorSampler(seed=1), SamplerV2(seed=1), AerSimulator(), generic):
        provider = QiskitProvider(backend)
        assert not provider.caps().paid
        assert answer(provider, job)[0][0].tolist() == [0, 0, 50, 0], provider.name


def test_jobs_are_found_by_token_and_end_with_their_process():
    provider = open_provider("qiskit", backend="aer")
    job = submission([native(1, 0)], [torch.zeros(1, 1)], shots=5, token="mine")
    assert provider.find("mine") is None
    handle = provider.submit(job)
    assert provider.find("mine") == handle
    provider.fetch(handle)
    assert provider.poll(handle) is JobState.DONE
    assert provider.find("other") is None

    restarted = QiskitProvider("aer")
    assert restarted.find("mine") is None  # proves that it is gone: to be run again, at no cost
    assert restarted.poll(handle) is JobState.FAILED
    with pytest.raises(ProviderError, match="ended with the process"):
        restarted.fetch(handle)
    provider.close()
    restarted.close()


def test_a_simulation_that_fails_says_so():
    from qiskit.primitives import BaseSamplerV2
    from qiskit.primitives.primitive_job import PrimitiveJob

    class Broken(BaseSamplerV2):
        def run(self, pubs, *, shots=None):
            job = PrimitiveJob(lambda: 1 / 0)
            job._submit()
            return job

    provider = QiskitProvider(Broken())
    handle = provider.submit(submission([native(1, 0)], [torch.zeros(1, 1)], shots=5))
    while (state := provider.poll(handle)) in (JobState.QUEUED, JobState.RUNNING):
        time.sleep(0.002)
    assert state is JobState.FAILED
    with pytest.raises(ProviderError, match="ZeroDivisionError"):
        provider.fetch(handle)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "arr"}, "unknown Qiskit backend 'arr'"),
        ({"backend": "fake_nothing"}, "unknown fake chip"),
        ({"backend": 7}, "int is no backend"),
        ({"backend": "aer", "n_qubits": 0}, "n_qubits must be 1 or more"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        QiskitProvider(**settings).caps()


def test_jobs_beyond_the_limits_are_refused():
    provider = QiskitProvider("aer")
    template = native(1, 0)
    with pytest.raises(NotAcceptedError, match="takes 1 to 1000000 shots"):
        provider.submit(submission([template], [torch.zeros(1, 1)], shots=0))
    with pytest.raises(NotAcceptedError, match="takes 1 to 10 circuits of 1000000 shots"):
        provider.submit(submission([template], [torch.zeros(11, 1)], shots=1_000_000))
    assert provider.caps().circuits_per_job(1000) == 1000
    assert provider.caps().circuits_per_job(100_000) == 100
