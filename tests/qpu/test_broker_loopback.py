"""Broker, Origin's own client and the loopback cloud with its faults: a right result, or a clear state and then a
right result once the user has settled it; never a wrong number, and never a task too many."""

import json
from itertools import count

import pytest
import torch

from loopback import KEY, chain, loopback
from qpeft.cloud import Fault, FaultScript
from qpeft.errors import Interrupted
from qpeft.qpu.broker import Broker
from qpeft.qpu.ledger import Ledger
from qpeft.qpu.policy import Policy
from qpeft.qpu.protocol import Block, ProviderError
from qpeft.qpu.providers.origin import OriginProvider
from qpeft.qpu.schema import State

pytest.importorskip("pyqpanda3", reason="needs pyqpanda3")

HASTY = Policy(backoff=1e-3, settle=0.0, poll_first=0.01, poll_last=0.05, rate=1e6)
TEMPLATES = (chain((2, 3)), chain((8, 9)))
FRESH = count()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with loopback(folder=tmp_path_factory.mktemp("cloud")) as server:
        yield server


@pytest.fixture(scope="module")
def provider(server):
    """One worker for all: it takes seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QPEFT_ORIGIN_KEY", KEY)
        provider = OriginProvider("72", server.url, timeout=60)
        provider.snapshot()
        yield provider
        provider.close()


@pytest.fixture
def work(server, provider, tmp_path):
    """Play faults on a new batch of three packed circuits; afterwards the cloud is well again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QPEFT_ORIGIN_KEY", KEY)
        yield Work(server, provider, tmp_path)
        server.faults = FaultScript()


class Work:
    def __init__(self, server, provider, folder):
        self.server, self.provider, self.folder = server, provider, folder
        start = 0.01 * next(FRESH)
        self.circuits = [
            (Block(0, (start, 0.3 + i)), Block(1, (1.0 - start, 0.1 * i))) for i in range(3)
        ]  # no other test asks for these angles

    def run(self, *faults):
        self.server.faults = FaultScript(faults)
        with Ledger(self.folder) as ledger:
            broker = Broker(self.provider, ledger, policy=HASTY)
            return broker.run(TEMPLATES, self.circuits, 1000, purpose="forward")

    def tasks(self):
        """Tasks of this batch in the cloud's own book."""
        with Ledger(self.folder) as ledger:
            tokens = {job.token for job in ledger.jobs()}
        return [task for task in self.server.cloud.tasks.last(1000) if task.batch in tokens]

    def agrees(self, counts):
        """The counts are those of the batch's last task, as the healthy cloud tells them."""
        self.server.faults = FaultScript()
        with Ledger(self.folder) as ledger:
            (job,) = ledger.jobs(State.DONE)
            told = self.provider.parse(self.provider.fetch(job.job), ledger.submission(job))
        return all(torch.equal(a, b) for x, y in zip(counts, told, strict=True) for a, b in zip(x, y, strict=True))


def fault(at, name, requests=None, **settings):
    return Fault(at, name, frozenset(requests) if requests else None, settings)


def test_a_healthy_cloud(work):
    counts = work.run()
    assert work.agrees(counts)
    assert len(work.tasks()) == 1
    assert torch.equal(work.run()[0][0], counts[0][0])


@pytest.mark.parametrize(
    "faults",
    [
        [fault("submit", "status", [1, 2], code=429, retry_after=0.01)],
        [fault("taskDetail", "status", [1], code=503)],
        [fault("taskDetail", "state", [1, 2, 3], state=6)],
        [fault("taskDetail", "state", [1, 2], state=13)],
        [fault("taskDetail", "garbage", [1, 2])],
        *([fault("taskDetail", name, [2, 3, 4])] for name in (
            "partial", "duplicate", "shuffle", "wrong_bits", "wrong_sum", "nan", "moved", "other_task")),
        [fault("taskDetail", "skew")],
        [fault("taskDetail", "cut", [1])],
    ],
    ids=lambda faults: f"{faults[0].at}-{faults[0].fault}-{next(iter(faults[0].settings.values()), '')}",
)  # fmt: skip
def test_faults_that_pass_end_in_a_right_result(work, faults):
    assert work.agrees(work.run(*faults))
    assert len(work.tasks()) == 1


@pytest.mark.parametrize("name", ["partial", "duplicate", "shuffle", "wrong_bits", "wrong_sum", "nan", "moved"])
def test_faults_that_stay_end_in_quarantine(work, name):
    with pytest.raises(ProviderError, match=r"is not right|could not be asked"):
        work.run(fault("taskDetail", name))
    with Ledger(work.folder) as ledger:
        (job,) = ledger.jobs()
        assert job.state in (State.QUARANTINED, State.SUBMITTED)
        assert ledger.unanswered(job.batch) == [0, 1, 2]
    assert work.agrees(work.run())
    assert len(work.tasks()) == 1


@pytest.mark.parametrize(
    ("name", "taken"),
    [("drop", True), ("late_error", True), ("garbage", None), ("no_id", None), ("cut", False), ("status", False)],
)
def test_a_doubt_stops_the_run_until_it_is_settled(work, name, taken):
    for _ in range(2):
        with pytest.raises(ProviderError, match=r"nobody knows whether .*qpeft qpu resolve"):
            work.run(fault("submit", name, [1]))
    tasks = work.tasks()
    assert taken is None or len(tasks) == taken
    with Ledger(work.folder) as ledger:
        (job,) = ledger.jobs(State.UNKNOWN)
        if tasks:
            ledger.move(job, State.SUBMITTED, "found", vendor_id=tasks[0].id)
        else:
            ledger.move(job, State.NOT_TAKEN, "not there")
    assert work.agrees(work.run())
    assert len(work.tasks()) == 1


def test_a_refusal_is_the_clouds_word(work):
    with pytest.raises(ProviderError, match="not today"):
        work.run(fault("submit", "refuse", message="not today"))
    assert work.tasks() == []
    assert work.agrees(work.run())


def test_ctrl_c_while_a_task_is_asked_about(work, monkeypatch):
    monkeypatch.setattr(work.provider, "poll", lambda job: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(Interrupted, match="1 job is open"):
        work.run()
    monkeypatch.undo()
    assert work.agrees(work.run())
    assert len(work.tasks()) == 1


def test_the_key_is_nowhere(work):
    with pytest.raises(ProviderError) as caught:
        work.run(fault("submit", "refuse", message=f"bad key {KEY}"))
    assert KEY not in str(caught.value)
    work.run()
    for file in work.folder.iterdir():
        assert KEY.encode() not in file.read_bytes()
    with Ledger(work.folder) as ledger:
        assert KEY not in json.dumps(ledger.events())
