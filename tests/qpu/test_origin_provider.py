"""The provider for Origin against the loopback cloud, through the real client in its worker process.

Every fault of the cloud must end in a right result or in a clear state, never in a wrong number, and the key must not
be seen anywhere.
"""

import logging
import os
import signal
import socket
import threading
import time
from dataclasses import replace

import pytest
import torch

from loopback import KEY, agrees, grid_chip, loopback, packed_job
from qpeft.chips.virtual import VirtualChip
from qpeft.cloud import Fault
from qpeft.errors import InputError, MissingDependencyError
from qpeft.qpu.protocol import JobState, NotAcceptedError, ProviderError, UnknownOutcome
from qpeft.qpu.providers import open_provider, origin_process
from qpeft.qpu.providers.origin import OriginProvider

pytest.importorskip("pyqpanda3", reason="needs pyqpanda3")


def fault(at, name, *requests, **settings):
    return Fault(at, name, frozenset(requests) or None, settings)


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("QPEFT_ORIGIN_KEY", KEY)
    monkeypatch.delenv("QPEFT_ORIGIN_URL", raising=False)


@pytest.fixture(scope="module")
def server():
    with loopback() as server:
        yield server


@pytest.fixture(scope="module")
def provider(server):
    """One worker for all tests of a healthy cloud: it takes seconds to start."""
    provider = OriginProvider("72", server.url, timeout=60)
    os.environ["QPEFT_ORIGIN_KEY"] = KEY
    provider.snapshot()
    yield provider
    provider.close()


def wait(provider, job, seconds=30):
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        state = provider.poll(job)
        if state is not JobState.QUEUED and state is not JobState.RUNNING:
            return state
        time.sleep(0.02)
    raise AssertionError(f"the job does not finish: {state}")


def run(provider, job):
    task = provider.submit(job)
    assert wait(provider, task) is JobState.DONE
    return provider.parse(provider.fetch(task), job)


def check(counts, job):
    chip = VirtualChip(grid_chip())
    assert len(counts) == len(job.circuits)
    for found, blocks in zip(counts, job.circuits, strict=True):
        assert len(found) == len(blocks)
        for count, block in zip(found, blocks, strict=True):
            exact = chip.probabilities(job.templates[block.template], torch.tensor([block.angles]).double())[0]
            assert int(count.sum()) == job.shots
            assert agrees(count, exact)


def test_packed_jobs_give_the_distributions_of_the_chip(provider):
    job = packed_job(20, shots=10_000)
    check(run(provider, job), job)


def test_the_chip_as_the_client_reads_it(provider):
    snapshot, chip = provider.snapshot(), grid_chip()
    assert snapshot.live_qubits == chip.live_qubits
    assert [c.qubits for c in snapshot.live_couplers] == [c.qubits for c in chip.live_couplers]
    assert len(snapshot.qubits) == 12
    assert (snapshot.one_qubit_ns, snapshot.two_qubit_ns) == (chip.one_qubit_ns, chip.two_qubit_ns)
    for index in chip.live_qubits:
        found, qubit = snapshot.qubits[index], chip.qubits[index]
        assert found.p10 + found.p01 == pytest.approx(qubit.p10 + qubit.p01)
        assert (found.t1_us, found.t2_us, found.fidelity) == pytest.approx((qubit.t1_us, qubit.t2_us, qubit.fidelity))


def test_what_is_sent_is_what_was_meant(provider, server):
    job = packed_job(2, token="token-of-this-job")
    task = provider.submit(job)
    wait(provider, task)
    [sent] = [t for t in server.cloud.tasks.last(3) if t.id == task]
    assert (sent.batch, sent.n_programs, sent.shots) == ("token-of-this-job", 2, 1000)
    request = server.cloud.tasks.request(task)
    assert (request["amend"], request["mapping"], request["counts"]) == (0, False, True)
    answer = provider.fetch(task)
    assert answer.usage["mapping_checked"] is True
    assert answer.usage["seconds"] == pytest.approx(0.32)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"shots": 99}, "100 to 10000"), ({"shots": 10_001}, "100 to 10000"), ({"circuits": ()}, "1 to 200")],
)
def test_what_is_refused_before_it_is_sent(provider, server, changes, words):
    before = len(server.cloud.tasks.last(100))
    job = replace(packed_job(1), **changes)
    for wrong in (job, replace(job, circuits=packed_job(1).circuits * 201, shots=1000)):
        with pytest.raises(NotAcceptedError, match=words if wrong is job else "1 to 200") as caught:
            provider.submit(wrong)
        assert caught.value.lasting
    assert len(server.cloud.tasks.last(100)) == before


def test_two_clients_at_once(server, provider):
    jobs = [packed_job(10, shots=2000, seed=seed, token=f"t{seed}") for seed in range(4)]
    other = OriginProvider("72", server.url, timeout=60)
    found = {}

    def work(client, mine):
        for job in mine:
            found[job.token] = run(client, job)

    threads = [threading.Thread(target=work, args=(client, mine)) for client, mine in
               ((provider, jobs[:2]), (other, jobs[2:]))]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    task = provider.submit(jobs[0])
    assert wait(other, task) is JobState.DONE  # jobs belong to nobody's process
    other.close()
    for job in jobs:
        check(found[job.token], job)


def test_cancelling():
    with loopback(speed=1.0) as server:
        provider = OriginProvider("72", server.url, timeout=60)
        task = provider.submit(packed_job(2))
        assert provider.poll(task) in (JobState.QUEUED, JobState.RUNNING)
        assert provider.cancel(task) is True
        assert provider.poll(task) is JobState.CANCELLED
        assert provider.cancel(task) is False
        with pytest.raises(ProviderError, match="cancelled"):
            provider.fetch(task)
        provider.close()


def test_faults_of_submit():
    """Which outcome each proves, and how many tasks the cloud then has."""
    cases = [
        (fault("submit", "status", 1, code=503), UnknownOutcome, False, 0),
        (fault("submit", "status", 2, code=429, retry_after=3), NotAcceptedError, False, 0),
        (fault("submit", "status", 3, code=401), NotAcceptedError, True, 0),
        (fault("submit", "status", 4, code=403), NotAcceptedError, True, 0),
        (fault("submit", "status", 5, code=400), NotAcceptedError, True, 0),
        (fault("submit", "refuse", 6, message=f"no quota for {KEY}"), NotAcceptedError, True, 0),
        (fault("submit", "cut", 7), UnknownOutcome, False, 0),
        (fault("submit", "drop", 8), UnknownOutcome, False, 1),
        (fault("submit", "late_error", 9), UnknownOutcome, False, 1),
        (fault("submit", "garbage", 10), UnknownOutcome, False, 1),
        (fault("submit", "no_id", 11), UnknownOutcome, False, 1),
        (fault("submit", "silence", 12, seconds=30), UnknownOutcome, False, 1),
    ]
    with loopback([case[0] for case in cases]) as server:
        provider = OriginProvider("72", server.url, timeout=60)
        tasks = 0
        for scripted, error, lasting, accepted in cases:
            if scripted.fault == "silence":
                provider._process._timeout = 1.0  # a minute is the client's own limit
            with pytest.raises(error) as caught:
                provider.submit(packed_job(1))
            assert type(caught.value) is error, scripted
            assert getattr(caught.value, "lasting", False) is lasting, scripted
            assert KEY not in str(caught.value)
            tasks += accepted
            assert len(server.cloud.tasks.last(99)) == tasks, scripted
        provider._process._timeout = 60.0
        job = packed_job(2)
        check(run(provider, job), job)  # a new worker, and everything works again
        provider.close()


ANSWERS = {
    "partial": ({"keep": 2}, "2 results for 4"),
    "duplicate": ({}, "another program|bits|bit string"),
    "shuffle": ({}, "another program|bits|bit string"),
    "wrong_bits": ({}, "does not have"),
    "wrong_sum": ({}, "shots were counted|frequencies"),
    "nan": ({}, "cannot be asked for now"),  # the client itself cannot read it
    "moved": ({}, "another program"),
}


def test_faults_of_answers():
    """What is not whole or not right is refused; the next answer, which is right, is taken."""
    script = [fault("taskDetail", name, number, **settings[0])
              for number, (name, settings) in enumerate(ANSWERS.items(), start=1)]  # fmt: skip
    with loopback(script) as server:
        provider = OriginProvider("72", server.url, timeout=60)
        job = packed_job(4)
        task = provider.submit(job)
        ends = time.monotonic() + 20
        while server.cloud.tasks.find(task).ended is None and time.monotonic() < ends:
            time.sleep(0.01)
        for name, (_, words) in ANSWERS.items():
            with pytest.raises(ProviderError, match=words):
                provider.parse(provider.fetch(task), job)
            assert server.faults.requests("taskDetail") == list(ANSWERS).index(name) + 1
        check(provider.parse(provider.fetch(task), job), job)
        provider.close()


def test_faults_of_polling():
    script = [fault("taskDetail", "state", number, state=state) for number, state in enumerate((0, *range(6, 14)), 1)]
    script += [
        fault("taskDetail", "garbage", 10),
        fault("taskDetail", "other_task", 11),
        fault("taskDetail", "refuse", 12),
        fault("taskDetail", "skew"),
        fault("chipInfo", "status", 2, 3, 4, code=500),  # the client asks three times
    ]
    with loopback(script) as server:
        provider = OriginProvider("72", server.url, timeout=60)
        job = packed_job(1)
        task = provider.submit(job)
        ends = time.monotonic() + 20
        while server.cloud.tasks.find(task).ended is None and time.monotonic() < ends:
            time.sleep(0.01)
        assert [provider.poll(task) for _ in range(9)] == [JobState.UNKNOWN] * 9
        for _ in range(3):
            with pytest.raises(ProviderError):
                provider.poll(task)
        assert provider.poll(task) is JobState.DONE
        answer = provider.fetch(task)
        check(provider.parse(answer, job), job)
        assert "seconds" not in answer.usage  # a clock that runs backwards
        with pytest.raises(ProviderError, match="state of the chip"):
            provider.snapshot()
        with pytest.raises(ProviderError, match="does not exist"):
            provider.poll("0" * 32)
        provider.close()


def test_a_killed_worker_is_replaced(server, provider):
    job = packed_job(1)
    task = provider.submit(job)
    os.kill(provider._process.pid, signal.SIGKILL)
    provider._process._process.wait()
    assert wait(provider, task) is JobState.DONE


def test_a_worker_that_is_killed_while_it_submits():
    with loopback([fault("submit", "silence", 1, seconds=30)]) as server:
        provider = OriginProvider("72", server.url, timeout=60)
        provider.snapshot()
        killer = threading.Timer(0.3, lambda: os.kill(provider._process.pid, signal.SIGKILL))
        killer.start()
        with pytest.raises(UnknownOutcome, match="may have taken it"):
            provider.submit(packed_job(1))
        provider.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_worker_dies_with_its_parent(server):
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        provider = OriginProvider("72", server.url, timeout=60)
        try:
            provider.snapshot()
            os.write(writing, str(provider._process.pid).encode())
            signal.pause()
        finally:
            os._exit(1)
    worker = int(os.read(reading, 20))
    assert alive(worker)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    ends = time.monotonic() + 10
    while time.monotonic() < ends and alive(worker):
        time.sleep(0.05)
    assert not alive(worker)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_cloud_that_cannot_be_reached():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    provider = OriginProvider("72", url, timeout=60)
    with pytest.raises(NotAcceptedError, match="connect") as caught:  # it asks for the chip first
        provider.submit(packed_job(1))
    assert not caught.value.lasting
    provider._snapshot = grid_chip()  # as if the cloud had gone away after the first call
    with pytest.raises(NotAcceptedError, match="cannot be reached") as caught:
        provider.submit(packed_job(1))
    assert not caught.value.lasting
    provider.close()


def test_a_chip_that_does_not_exist(server):
    provider = OriginProvider("WK_C999", server.url, timeout=60)
    with pytest.raises(ProviderError, match="resource is null"):
        provider.snapshot()
    with pytest.raises(NotAcceptedError) as caught:
        provider.submit(packed_job(1))
    assert caught.value.lasting
    provider.close()


def test_the_key_is_nowhere(server, provider, caplog):
    caplog.set_level(logging.DEBUG)
    job = packed_job(1)
    answer = provider.fetch(_done(provider, job))
    seen = [repr(provider), str(vars(provider)), str(vars(provider._process)), provider.name, caplog.text]
    seen += [answer.data.decode(), str(answer.usage), str(provider.snapshot())]
    with open(f"/proc/{provider._process.pid}/cmdline") as file:
        seen.append(file.read())
    with open(f"/proc/{provider._process.pid}/environ") as file:
        seen.append(file.read())
    assert not [text for text in seen if KEY in text]


def _done(provider, job):
    task = provider.submit(job)
    assert wait(provider, task) is JobState.DONE
    return task


def test_the_key_does_not_travel_unencrypted(monkeypatch):
    """Without a URL, the client itself chooses http:// for keys of the old kind."""
    provider = OriginProvider("72", timeout=60)
    provider._snapshot = grid_chip()
    with pytest.raises(NotAcceptedError, match="would send this key unencrypted") as caught:
        provider.submit(packed_job(1))
    assert caught.value.lasting
    provider.close()
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.setenv("QPEFT_ORIGIN_ALLOW_HTTP", "1")
    assert "http_proxy" not in OriginProvider("72", "http://cloud.example.org")._process._environment()


def test_messages_are_scrubbed(monkeypatch):
    monkeypatch.setenv("QPEFT_ORIGIN_KEY", KEY)
    text = f"header Authorization: oqcs_auth={KEY} and {KEY}; oqcs_auth=another"
    assert "0123456789abcdef" not in origin_process.scrub(text)
    assert "another" not in origin_process.scrub(text)


def test_a_missing_key(monkeypatch):
    for name in origin_process.KEY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(origin_process.importlib.util, "find_spec", lambda name: None if name == "keyring" else 1)
    provider = OriginProvider("72", "https://cloud.invalid")
    for ask in (provider.snapshot, lambda: provider.submit(packed_job(1)), lambda: provider.poll("T")):
        with pytest.raises(ProviderError, match="QPEFT_ORIGIN_KEY") as caught:
            ask()
        assert type(caught.value) is ProviderError  # nothing that is tried again
    assert origin_process.find_key("http://127.0.0.1:1") == "loopback"
    monkeypatch.setenv("ORIGIN_API_KEY", "other")
    assert origin_process.find_key() == "other"


def test_a_missing_client(monkeypatch, server):
    monkeypatch.setattr(origin_process.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r'pip install "qpeft\[origin\]"'):
        OriginProvider("72", server.url).snapshot()


@pytest.mark.parametrize("info", [{}, {"QubitParams": []}, {"QubitParams": [{}], "adjMatrix": {"0": 3}}, "text", None])
def test_a_chip_that_cannot_be_meant(monkeypatch, info):
    provider = OriginProvider("72", "https://cloud.invalid")
    monkeypatch.setattr(provider._process, "call", lambda name, **arguments: info)
    for ask in (provider.snapshot, lambda: provider.submit(packed_job(1))):
        with pytest.raises(ProviderError, match="description of the chip"):
            ask()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://cloud.example.org", "unencrypted"),
        ("ftp://127.0.0.1", "not the URL"),
        ("cloud", "not the URL"),
        ("https://me:secret@cloud.example.org", "name or a password"),
    ],
)
def test_urls(url, words):
    with pytest.raises(InputError, match=words) as caught:
        open_provider("origin", url=url)
    assert "secret" not in str(caught.value)
