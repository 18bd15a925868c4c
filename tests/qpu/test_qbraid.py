"""qBraid's route, on a device made of qBraid's own classes: its checks and conversions run, its cloud does not."""

import json

import pytest
import torch
from circuit_set import answer, cases, five_sigma, plain_template, submission, through

from qpeft.circuits import Circuit, Gate, Input, from_openqasm
from qpeft.errors import InputError
from qpeft.qpu.protocol import NotAcceptedError, ProviderError, RawAnswer, UnknownOutcome
from qpeft.qpu.providers.qbraid import QBraidProvider
from qpeft.simulators import sample

qbraid = pytest.importorskip("qbraid")
runtime = pytest.importorskip("qbraid.runtime")

EMPTY = torch.zeros(1, 0, dtype=torch.float64)


class Job(runtime.QuantumJob):
    """A job that is done at once, with counts in qBraid's order: qubit 0 last."""

    def __init__(self, job_id, device, programs, shots, batch):
        super().__init__(job_id, device)
        self.counts = []
        for program in programs:
            circuit = from_openqasm(program)
            drawn = sample(circuit, EMPTY, EMPTY[0], shots, seed=len(device.jobs))[0]
            n = circuit.n_qubits
            self.counts.append({format(i, f"0{n}b")[::-1]: int(c) for i, c in enumerate(drawn) if c})
        self.batch = batch

    def status(self):
        return runtime.JobStatus.COMPLETED

    def result(self):
        data = runtime.GateModelResultData(measurement_counts=self.counts if self.batch else self.counts[0])
        return runtime.Result(device_id=self.device.id, job_id=self.id, success=True, data=data, cost=12)

    def cancel(self):
        raise runtime.JobStateError("Cannot cancel job in a terminal state.")


class Device(runtime.QuantumDevice):
    """A simulator that takes OpenQASM 3, with or without several circuits in one job."""

    def __init__(self, batch=False, alias="qasm3"):
        spec = qbraid.programs.ProgramSpec(str, alias=alias)
        gate_model = qbraid.programs.ExperimentType.GATE_MODEL
        super().__init__(
            runtime.TargetProfile(
                device_id="stub:stub:sim:one", simulator=True, experiment_type=gate_model, num_qubits=20,
                program_spec=spec, batch_job_support=batch,
            )
        )  # fmt: skip
        self.jobs = []
        self.programs = []
        self.failure = None

    def status(self):
        return runtime.DeviceStatus.ONLINE

    def submit(self, run_input, shots=None, as_batch=False):
        if self.failure:
            raise self.failure
        programs = run_input if isinstance(run_input, list) else [run_input]
        self.programs += programs
        job = Job(f"job-{len(self.jobs)}", self, programs, shots, as_batch)
        self.jobs.append(job)
        return job


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_expectations_agree(case):
    provider = QBraidProvider(Device(batch=True))
    template = plain_template(case.circuit, tuple(range(case.circuit.n_qubits)))
    expected = case.exact()
    assert ((through(provider, case, template, 4000) - expected).abs() <= five_sigma(expected, 4000)).all()


def test_blocks_are_told_apart_by_their_width():
    one = plain_template(Circuit(1, (Gate("RX", 0, Input(0)),)), (7,))
    three = plain_template(Circuit(3, tuple(Gate("RX", w, Input(w)) for w in range(3))), (1, 2, 3))
    provider = QBraidProvider(Device(batch=True))
    flips = torch.tensor([[0.0, torch.pi, 0], [torch.pi, 0, 0]])
    counts = answer(provider, submission([three, one], [flips, torch.tensor([[torch.pi], [0.0]])], shots=20))
    assert [[int(block.argmax()) for block in circuit] for circuit in counts] == [[0b010, 1], [0b100, 0]]


def test_devices_that_take_one_circuit_a_job_get_one():
    device = Device()
    provider = QBraidProvider(device)
    assert provider.caps().max_circuits == 1
    template = plain_template(Circuit(1, (Gate("RX", 0, Input(0)),)), (0,))
    with pytest.raises(NotAcceptedError, match="takes 1 circuit"):
        provider.submit(submission([template], [torch.zeros(2, 1)], shots=5))
    counts = answer(provider, submission([template], [torch.full((1, 1), torch.pi)], shots=5))
    assert counts[0][0].tolist() == [0, 5]
    raw = provider.fetch("job-0")
    assert raw.usage == {"cost": 12.0, "currency": "qBraid credits"}
    assert not provider.cancel("job-0")


def test_devices_of_openqasm_2_get_openqasm_2():
    device = Device(batch=True, alias="qasm2")
    device.submit = lambda programs, **settings: device.programs.extend(programs) or Job("j", device, [], 5, True)
    provider = QBraidProvider(device)
    template = plain_template(Circuit(2, (Gate("RX", 0, Input(0)), Gate("CZ", (0, 1)))), (0, 1))
    provider.submit(submission([template], [torch.zeros(1, 1)], shots=5))
    assert "OPENQASM 2" in device.programs[0]
    assert "measure" in device.programs[0]


def test_failures_are_told_apart():
    import requests

    device = Device()
    provider = QBraidProvider(device)
    template = plain_template(Circuit(1, (Gate("RX", 0, Input(0)),)), (0,))
    job = submission([template], [torch.zeros(1, 1)], shots=5)
    device.failure = requests.ReadTimeout("read timed out")
    with pytest.raises(UnknownOutcome):
        provider.submit(job)
    device.failure = requests.ConnectTimeout("no connection")
    with pytest.raises(NotAcceptedError) as refused:
        provider.submit(job)
    assert not refused.value.lasting
    device.failure = qbraid.exceptions.QbraidError("not a program")
    with pytest.raises(NotAcceptedError) as refused:
        provider.submit(job)
    assert refused.value.lasting


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (b"{", "damaged"),
        (b"[]", "damaged"),
        (b'{"format": 1, "counts": 3}', "damaged"),
        ({"counts": []}, "1 circuits were sent, 0 came back"),
        ({"counts": [{"0": 5}]}, "no outcome of 2 qubits"),
        ({"counts": [{"0x": 5}]}, "no outcome of 2 qubits"),
        ({"counts": [{"00": 4}]}, "4 shots came back, 5 were asked for"),
        ({"counts": [{"00": 5.0}]}, "came 5.0 times"),
        ({"counts": [{"00": 6, "01": -1}]}, "came -1 times"),
    ],
)
def test_answers_that_are_not_whole_are_refused(kept, message):
    template = plain_template(Circuit(2, (Gate("RX", 0, Input(0)),)), (0, 1))
    data = kept if isinstance(kept, bytes) else json.dumps({"format": 1, **kept}).encode()
    with pytest.raises(ProviderError, match=message):
        QBraidProvider(Device()).parse(RawAnswer(data, {}, "j"), submission([template], [torch.zeros(1, 1)], shots=5))


def test_without_a_key_one_sentence_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.delenv("QBRAID_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ProviderError, match="set QBRAID_API_KEY"):
        QBraidProvider("qbraid:qbraid:sim:qir-sv").caps()
    with pytest.raises(InputError, match="qBraid needs a device"):
        QBraidProvider()


def test_the_chip_is_the_vendors_choice():
    provider = QBraidProvider(Device(), n_qubits=5)
    assert provider.name == "qbraid:stub:stub:sim:one"
    assert len(provider.snapshot().live_couplers) == 10
    with pytest.raises(ProviderError, match="cannot be searched"):
        provider.find("token")
