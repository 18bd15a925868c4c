"""IBM's route: the sampler of qiskit-ibm-runtime on a fake chip, behind a service that knows jobs by id and tag."""

import contextlib
import http.server
import socket
import threading
import time

import pytest
import torch
from circuit_set import answer, chain, submission
from test_qiskit_provider import native

from qpeft.qpu.protocol import JobState, NotAcceptedError, ProviderError, UnknownOutcome
from qpeft.qpu.providers import qiskit_ibm
from qpeft.qpu.providers.network import submission_error
from qpeft.qpu.providers.qiskit import QiskitProvider

runtime = pytest.importorskip("qiskit_ibm_runtime")


class Service:
    """As much of QiskitRuntimeService as is used, with jobs of the local mode."""

    def __init__(self):
        self.kept = {}
        self.lose_answer = False
        self.silent = 0.0
        self.refreshed = 0

    def keep(self, job, tags):
        self.kept[job.job_id()] = Job(job, tags)
        if self.lose_answer:
            raise _lost()

    def job(self, name):
        time.sleep(self.silent)
        if name not in self.kept:
            raise runtime.RuntimeJobNotFound(f"Job not found: {name}")
        return self.kept[name]

    def jobs(self, limit=10, job_tags=None):
        time.sleep(self.silent)
        return [job for job in self.kept.values() if set(job_tags) <= set(job.tags)]


class Job:
    """A job as IBM's client shows it: states are texts, and it has tags and a bill."""

    def __init__(self, job, tags):
        self.job, self.tags = job, tags
        self.forced = None

    def job_id(self):
        return self.job.job_id()

    def status(self):
        return self.forced or self.job.status()

    def result(self):
        return self.job.result()

    def usage(self):
        return 2.5

    def cancel(self):
        if self.forced == "DONE":
            raise runtime.RuntimeInvalidStateError("Job cannot be cancelled")


def _lost():
    """What the client raises where the connection broke after the job was sent."""
    import requests
    from qiskit_ibm_runtime.api.exceptions import RequestsApiError

    try:
        try:
            raise requests.ConnectionError("('Connection aborted.', RemoteDisconnected('secret-key'))")
        except requests.RequestException as error:
            raise RequestsApiError(str(error), -1) from error
    except RequestsApiError as error:
        failed = runtime.IBMRuntimeError(f"Failed to run program: {error}")
        failed.__context__ = error
        return failed


@pytest.fixture
def machine(monkeypatch):
    """Provider and service of a fake IBM machine."""
    from qiskit_ibm_runtime.fake_provider import FakeManilaV2

    service = Service()

    class Backend(FakeManilaV2):
        max_shots = 4000

        def refresh(self):
            service.refreshed += 1

    backend = Backend()
    backend.service = service

    class Sampler(runtime.SamplerV2):
        def run(self, pubs, *, shots=None):
            job = super().run(pubs, shots=shots)
            service.keep(job, self.options.environment.job_tags)
            return job

    monkeypatch.setattr(runtime, "SamplerV2", Sampler)
    monkeypatch.setenv(qiskit_ibm.TOKEN, "secret-key")
    return QiskitProvider(backend), service


def _pair(provider, rows=2, token="run-1"):
    chip = provider.snapshot()
    first = chain(chip, 2)
    second = chain(chip, 2, taken=frozenset(first))
    angles = torch.tensor([[torch.pi, 0.0], [0.0, torch.pi]])[:rows]
    return submission([native(2, *first), native(2, *second)], [angles, angles.flip(1)], shots=200, token=token)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_jobs_are_sent_side_by_side_and_found_by_tag_after_a_restart(machine):
    provider, service = machine
    caps = provider.caps()
    assert caps.paid
    assert caps.finds
    assert caps.max_shots == 4000
    assert caps.circuits_per_job(4000) == 2500
    job = _pair(provider)
    assert service.refreshed == 1
    assert provider.find("run-1") is None
    handle = provider.submit(job)
    assert list(service.kept) == [handle]
    assert service.kept[handle].tags == ["run-1"]

    restarted = QiskitProvider(provider._backend)
    assert restarted.find("run-1") == handle
    assert restarted.find("run-2") is None
    while restarted.poll(handle) in (JobState.QUEUED, JobState.RUNNING):
        time.sleep(0.002)
    raw = restarted.fetch(handle)
    assert raw.usage == {"seconds": 2.5, "currency": "s"}
    counts = restarted.parse(raw, job)
    assert [[int(block.argmax()) for block in circuit] for circuit in counts] == [[0b10, 0b01], [0b01, 0b10]]
    assert all(int(block.sum()) == 200 for circuit in counts for block in circuit)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_answer_lost_on_the_way_is_unknown_and_then_found(machine):
    provider, service = machine
    service.lose_answer = True
    with pytest.raises(UnknownOutcome, match="IBM may have taken the job") as unknown:
        provider.submit(_pair(provider))
    assert "secret-key" not in str(unknown.value)
    assert provider.find("run-1") == next(iter(service.kept))


def test_states_are_those_of_ibm(machine):
    provider, service = machine
    service.kept["j"] = job = Job(None, [])
    names = {"INITIALIZING": "queued", "QUEUED": "queued", "RUNNING": "running", "DONE": "done", "ERROR": "failed",
             "CANCELLED": "cancelled", "THINKING": "unknown"}  # fmt: skip
    for name, state in names.items():
        job.forced = name
        assert provider.poll("j") == state
    job.forced = "RUNNING"
    assert provider.cancel("j")
    job.forced = "DONE"
    assert not provider.cancel("j")
    with pytest.raises(ProviderError, match="RuntimeJobNotFound"):
        provider.poll("no such job")


def test_a_silent_service_is_given_up(machine):
    provider, service = machine
    impatient = QiskitProvider(provider._backend, deadline=0.05)
    service.silent = 0.4
    with pytest.raises(ProviderError, match=r"no answer within 0\.05 s"):
        impatient.find("run-1")


def test_unknown_options_are_refused(machine):
    from dataclasses import replace

    provider, service = machine
    with pytest.raises(NotAcceptedError, match="option priority='high' is not understood"):
        provider.submit(replace(_pair(provider), options={"priority": "high"}))
    assert not service.kept


def test_missing_credentials_are_said_in_one_sentence(monkeypatch, tmp_path):
    monkeypatch.delenv(qiskit_ibm.TOKEN, raising=False)
    monkeypatch.setattr("qiskit_ibm_runtime.accounts.management._DEFAULT_ACCOUNT_CONFIG_JSON_FILE", tmp_path / "none")
    with pytest.raises(ProviderError, match="set QISKIT_IBM_TOKEN"):
        QiskitProvider("ibm:ibm_torino").caps()


class _Answers(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        status = int(self.path.strip("/"))
        if status == 0:  # accepted, and the line goes dead
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(status)
        self.send_header("Retry-After", "7")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def _server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _post(url, path):
    """The error of the protocol for a POST through the session of IBM's client, as its service wraps it."""
    from qiskit_ibm_runtime.api.exceptions import RequestsApiError
    from qiskit_ibm_runtime.api.session import RetrySession

    session = RetrySession(url, retries_total=0, retries_connect=0)
    session.trust_env = False
    try:
        session.post(path)
    except RequestsApiError as error:
        try:
            raise runtime.IBMRuntimeError(f"Failed to run program: {error}") from None
        except runtime.IBMRuntimeError as wrapped:
            return submission_error(wrapped, "IBM", qiskit_ibm.TOKEN, own=runtime.IBMError)
    except runtime.IBMNotAuthorizedError as error:
        return submission_error(error, "IBM", qiskit_ibm.TOKEN, own=runtime.IBMError)
    raise AssertionError("no error")


def test_errors_of_the_real_client_prove_what_they_prove():
    with _server() as url:
        refused = _post(url, "/400")
        assert isinstance(refused, NotAcceptedError)
        assert refused.lasting
        busy = _post(url, "/429")
        assert isinstance(busy, NotAcceptedError)
        assert busy.retry_after == 7
        assert not busy.lasting
        for path in ("/500", "/503", "/504", "/408", "/0"):
            assert isinstance(_post(url, path), UnknownOutcome), path
        stranger = _post(url, "/401")
        assert type(stranger) is ProviderError
        assert "QISKIT_IBM_TOKEN" in str(stranger)
    assert isinstance(_post(url, "/200"), NotAcceptedError)  # nobody listens any more
    assert isinstance(_post("http://no-such-host.invalid", "/200"), NotAcceptedError)


def test_errors_before_and_after_sending():
    before = submission_error(runtime.IBMInputValueError("circuit"), "IBM", qiskit_ibm.TOKEN, own=runtime.IBMError)
    assert isinstance(before, NotAcceptedError)
    assert before.lasting
    for odd in (KeyError("id"), TimeoutError("no answer within 120 s"), ValueError("not JSON")):
        assert isinstance(submission_error(odd, "IBM", qiskit_ibm.TOKEN, own=runtime.IBMError), UnknownOutcome)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_sampler_of_ibm_keeps_its_own_options(machine):
    """Somebody's own SamplerV2 on an IBM machine takes the same route, with its own options."""
    provider, service = machine
    own = qiskit_ibm.ibm_sampler(provider._backend)
    own.options.default_shots = 77
    by_sampler = QiskitProvider(own)
    assert by_sampler.caps().finds
    answer(by_sampler, _pair(by_sampler, rows=1, token="run-9"))
    assert [job.tags for job in service.kept.values()] == [["run-9"]]
    assert own.options.default_shots == 77
