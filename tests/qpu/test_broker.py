"""The broker against a vendor that refuses, is silent, crashes and lies: a right result or a clear state, never a
wrong number."""

import random
import re
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from fault_vendor import CHIP, FolderVendor, circuits, template
from qpeft.errors import InputError, Interrupted
from qpeft.qpu.broker import Broker
from qpeft.qpu.budget import Budget, BudgetSpent, Spend
from qpeft.qpu.ledger import Ledger
from qpeft.qpu.policy import Failures, Policy, TokenBucket
from qpeft.qpu.protocol import Block, Price, ProviderError, RawAnswer
from qpeft.qpu.reading import LedgerReader
from qpeft.qpu.schema import State
from qpeft.qpu.storage import LedgerError

HASTY = {"backoff": 1e-3, "settle": 0.0, "poll_first": 0.0, "poll_last": 1e-3, "rate": 1e6}
TEMPLATES = [template(0, 1), template(3, 4)]


@pytest.fixture
def place(tmp_path):
    """Make brokers on one run folder and one vendor's folder."""
    return Place(tmp_path)


class Place:
    def __init__(self, folder):
        self.run_folder, self.vendor_folder = folder / "run", folder / "vendor"
        self.said: list[str] = []

    def broker(self, policy=None, budget=None, fallback=None, **vendor):
        self.vendor = FolderVendor(self.vendor_folder, **vendor)
        return Broker(
            self.vendor, self.run_folder, policy=Policy(**{**HASTY, **(policy or {})}), budget=budget,
            fallback=fallback, say=self.said.append, opened=("folder", {"at": "here"}),
        )  # fmt: skip

    def run(self, n=12, purpose="forward", policy=None, budget=None, **vendor):
        with self.broker(policy, budget, **vendor) as broker:
            return broker.run(TEMPLATES, circuits(n), 100, purpose=purpose)

    def states(self):
        with LedgerReader(self.run_folder) as reader:
            return [job.state for job in reader.jobs()]

    def events(self):
        with LedgerReader(self.run_folder) as reader:
            return [event["kind"] for event in reader.events()]

    def sent(self):
        """How often circuits were accepted, at most and at least, and how many different ones."""
        books = FolderVendor(self.vendor_folder).taken()
        return len(books), max(books.values(), default=0)


@pytest.fixture
def truth(tmp_path):
    """Counts of an undisturbed run."""
    return Place(tmp_path / "calm").run()


def same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert len(a) == len(b)
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    return True


def test_a_batch_goes_out_in_jobs_and_comes_back_in_order(place, truth):
    counts = place.run()
    assert same(counts, truth)
    assert all(block.dtype == torch.int64 and int(block.sum()) == 100 for blocks in counts for block in blocks)
    assert place.states() == [State.DONE] * 3
    assert place.vendor.calls["submit"] == 3  # 12 circuits, at most 5 in a job
    assert place.sent() == (12, 1)


def test_packed_circuits_keep_their_blocks(place):
    packed = [(Block(0, (0.1 * i, 0.0)), Block(1, (0.0, 0.2 * i))) for i in range(3)]
    with place.broker() as broker:
        both = broker.run(TEMPLATES, packed, 50, purpose="forward")
        first = broker.run(TEMPLATES, [blocks[:1] for blocks in packed], 50, purpose="forward")
        second = broker.run(TEMPLATES, [blocks[1:] for blocks in packed], 50, purpose="forward")
    assert same([blocks[:1] for blocks in both], first)
    assert same([blocks[1:] for blocks in both], second)


def test_the_same_run_again_reads_the_ledger(place, truth):
    place.run()
    assert same(place.run(), truth)
    assert place.vendor.calls["submit"] == 0
    assert place.vendor.calls["poll"] == 0


def test_asking_twice_in_one_run_asks_twice_and_is_remembered(place):
    def both():
        with place.broker() as broker:
            return [broker.run(TEMPLATES, circuits(2), 100, purpose="forward") for _ in range(2)]

    both()
    assert place.vendor.calls["submit"] == 2
    both()
    assert place.vendor.calls["submit"] == 0


def test_keys_tell_batches_apart(place):
    with place.broker() as broker:
        asked = [
            ((TEMPLATES, circuits(1), 100), {"purpose": "forward"}),
            ((TEMPLATES, circuits(1), 101), {"purpose": "forward"}),
            ((TEMPLATES, circuits(1), 100), {"purpose": "gradient"}),
            ((TEMPLATES, circuits(1), 100), {"purpose": "forward", "options": {"amend": 0}}),
            ((TEMPLATES, [(Block(1, circuits(1)[0][0].angles),)], 100), {"purpose": "forward"}),
            ((TEMPLATES, [(Block(0, (1e-8, 0.5)),)], 100), {"purpose": "forward"}),
        ]
        for positional, named in asked:
            broker.run(*positional, **named)
        assert place.vendor.calls["submit"] == len(asked)
    with place.broker() as broker:
        for positional, named in reversed(asked):
            broker.run(*positional, **named)
        # a seed means nothing to a chip, and digits beyond the eighth do not leave this machine
        broker.run(TEMPLATES, [(Block(0, (1e-8 + 1e-12, 0.5)),)], 100, purpose="x", seed=3)
        assert place.vendor.calls["submit"] == 1


@pytest.mark.parametrize(("purpose", "sent"), [("evaluation", 3), ("calibration", 3), ("forward", 6), ("gradient", 6)])
def test_equal_circuits_are_sent_once_only_where_noise_may_be_shared(place, purpose, sent):
    twice = [circuit for circuit in circuits(3) for _ in range(2)]
    with place.broker() as broker:
        counts = broker.run(TEMPLATES, twice, 100, purpose=purpose)
    assert len(counts) == 6
    assert same(counts[::2], counts[1::2])
    assert sum(place.vendor.taken().values()) == sent


@pytest.mark.parametrize(
    ("circuit", "shots", "message"),
    [
        ([()], 100, "no blocks"),
        ([(Block(2, (0.0, 0.0)),)], 100, "template 2 of 2"),
        ([(Block(0, (0.0,)),)], 100, "1 angles to a template that takes 2"),
        ([(Block(0, (0.0, float("nan"))),)], 100, "no angle"),
        ([(Block(0, (0.0, 0.0)), Block(0, (0.0, 0.0)))], 100, "same qubit"),
        (circuits(1), 0, "shots"),
        (circuits(1), 1e3, "shots"),
        (circuits(1), 20_000, "shots"),
    ],
)
def test_what_cannot_run_is_refused_before_it_is_sent(place, circuit, shots, message):
    with place.broker() as broker:
        with pytest.raises(InputError, match=message):
            broker.run(TEMPLATES, circuit, shots, purpose="forward")
        assert broker.run(TEMPLATES, [], 100, purpose="forward") == []
        assert place.vendor.calls["submit"] == 0


def test_refusals_are_tried_again(place, truth):
    assert same(place.run(submits=["refused", "busy", "ok", "refused"]), truth)
    assert place.vendor.calls["submit"] == 6
    assert place.sent() == (12, 1)
    assert place.states() == [State.DONE] * 3


def test_a_lasting_refusal_is_not(place):
    with pytest.raises(ProviderError, match="not allowed"):
        place.run(submits=["ok", "refused-for-good"])
    assert place.vendor.calls["submit"] == 2
    assert State.NOT_TAKEN in place.states()


def test_a_vendor_that_only_refuses_is_given_up(place, truth):
    with pytest.raises(ProviderError, match=r"refused 5 times in a row.*start the same command again"):
        place.run(submits=["refused"] * 50)
    assert place.vendor.calls["submit"] == 5
    assert same(place.run(), truth)


@pytest.mark.parametrize("what", ["silent", "dropped", "crash"])
def test_doubts_are_cleared_by_asking_for_the_token(place, truth, what):
    if what == "crash":
        with pytest.raises(ProviderError, match="unforeseen"):
            place.run(submits=["ok", what])
        assert State.UNKNOWN in place.states()
        assert same(place.run(), truth)
    else:
        assert same(place.run(submits=["ok", what, "ok", what]), truth)
    assert place.sent() == (12, 1)


@pytest.mark.parametrize("what", ["silent", "dropped"])
def test_without_tokens_the_run_stops_and_the_user_decides(place, truth, what):
    for _ in range(2):  # starting it again does not send it again
        with pytest.raises(ProviderError, match=r"nobody knows whether .* qpeft qpu resolve .*run \d"):
            place.run(finds=False, submits=["ok", what, "ok"])
        assert place.states().count(State.UNKNOWN) == 1
    with Ledger(place.run_folder) as ledger:
        (job,) = ledger.jobs(State.UNKNOWN)
        found = place.vendor.find(job.token)
        assert (found is not None) == (what == "silent")
        if found:
            ledger.move(job, State.SUBMITTED, "found", vendor_id=found)
        else:
            ledger.move(job, State.NOT_TAKEN, "not there")
    assert same(place.run(finds=False), truth)
    assert place.sent() == (12, 1)


def test_a_policy_may_take_the_risk_up_to_a_cap_and_says_so(place, truth):
    policy = {"on_unknown": "resubmit", "risk": Budget(circuits=5)}
    counts = place.run(finds=False, policy=policy, submits=["silent", "ok"])
    assert same(counts, truth)
    assert place.sent() == (12, 2)
    assert any("may be paid twice" in sentence for sentence in place.said)
    with place.broker(finds=False) as broker:
        assert broker.report()["at_risk"].circuits == 5
    with (
        pytest.raises(ProviderError, match=r"10 of 5 circuits"),
        place.broker(policy, finds=False, submits=["silent"]) as b,
    ):
        b.run(TEMPLATES, circuits(5, 100), 100, purpose="forward")
    with pytest.raises(InputError, match="needs risk"):
        Policy(on_unknown="resubmit")


def test_a_free_provider_is_simply_asked_again(place, truth):
    assert same(place.run(finds=False, paid=False, submits=["silent", "dropped"]), truth)


@pytest.mark.parametrize("what", ["no-id", "same-id"])
def test_an_id_that_is_none_is_a_doubt(place, what):
    with pytest.raises(ProviderError, match="nobody knows"):
        place.run(finds=False, submits=[what, what])
    assert State.UNKNOWN in place.states()


@pytest.mark.parametrize(
    "what", ["partial", "twice", "shuffled", "nan", "negative", "fraction", "bits", "blocks", "sum", "text", "empty"]
)
def test_answers_that_are_not_right_are_asked_for_again(place, truth, what):
    assert same(place.run(answers=["ok", what, what]), truth)
    assert place.events().count("quarantined") == 2
    assert place.vendor.calls["submit"] == 3


@pytest.mark.parametrize("seed", range(12))
def test_damaged_answers_never_become_numbers(place, truth, seed):
    """Bytes of each first answer are changed, removed or added at random."""
    chance = random.Random(seed)

    class Damaged(FolderVendor):
        def fetch(self, job):
            answer = super().fetch(job)
            data = bytearray(answer.data)
            for _ in range(chance.randint(1, 5) if self.calls["answer"] % 2 else 0):
                at = chance.randrange(len(data))
                data[at : at + chance.randint(0, 2)] = chance.randbytes(chance.randint(0, 2))
            return RawAnswer(bytes(data), {"seconds": chance.choice([1.0, "a", None, float("nan"), -1])}, job)

    with Broker(Damaged(place.vendor_folder), place.run_folder, policy=Policy(**HASTY)) as broker:
        assert same(broker.run(TEMPLATES, circuits(12), 100, purpose="forward"), truth)


@pytest.mark.parametrize("what", ["partial", "shuffled", "nan", "sum"])
def test_answers_that_stay_wrong_end_in_a_clear_state(place, truth, what):
    with pytest.raises(ProviderError, match=r"is not right: .*It is kept.*qpeft qpu resume .*--lost"):
        place.run(n=4, answers=[what] * 50)
    assert place.states() == [State.QUARANTINED]
    with LedgerReader(place.run_folder) as reader:
        (job,) = reader.jobs()
        assert reader.answer(job).data
        assert reader.unanswered(job.batch) == [0, 1, 2, 3]
    assert same(place.run(n=4), truth[:4])
    assert place.sent() == (4, 1)


def test_states_that_nobody_understands_are_waited_for(place, truth):
    polls = ["unknown", "queued", "error", "unknown", "error", "queued"]
    assert same(place.run(polls=polls, answers=["error", "ok", "error"]), truth)


def test_a_vendor_that_cannot_be_asked_keeps_the_jobs(place, truth):
    with pytest.raises(ProviderError, match="could not be asked about job"):
        place.run(polls=["error"] * 50)
    assert set(place.states()) == {State.SUBMITTED}
    assert same(place.run(), truth)
    assert place.sent() == (12, 1)


@pytest.mark.parametrize("what", ["failed", "cancelled"])
def test_a_job_that_failed_is_sent_again_only_by_a_new_start(place, truth, what):
    with pytest.raises(ProviderError, match=f"ended as {what}.*Start the same command again"):
        place.run(polls=["ok", what])
    assert State(what) in place.states()
    assert same(place.run(), truth)


def test_a_batch_that_takes_too_long_stays_open(place, truth):
    with pytest.raises(ProviderError, match=r"not answered within 0.05 s .*qpeft qpu resume"):
        place.run(polls=["queued"] * 10_000, policy={"timeout": 0.05})
    assert set(place.states()) == {State.SUBMITTED}
    assert same(place.run(), truth)


@pytest.mark.parametrize("script", [{"submits": ["ok", "interrupt"]}, {"polls": ["ok", "queued", "interrupt"]}])
def test_ctrl_c_leaves_everything_resumable(place, truth, script):
    with pytest.raises(Interrupted, match=r"what was answered is kept.*qpeft qpu resume"):
        place.run(**script)
    assert same(place.run(), truth)
    assert place.sent() == (12, 1)


def test_ctrl_c_and_again_in_the_same_process(place, truth):
    with place.broker(submits=["interrupt"], polls=["ok", "interrupt"]) as broker:
        for _ in range(2):
            with pytest.raises(Interrupted):
                broker.run(TEMPLATES, circuits(12), 100, purpose="forward")
        assert same(broker.run(TEMPLATES, circuits(12), 100, purpose="forward"), truth)
    assert place.sent() == (12, 1)


def test_open_jobs_are_fetched_by_resume(place, truth):
    with pytest.raises(Interrupted):
        place.run(polls=["queued", "interrupt"])
    with place.broker() as broker:
        jobs = broker.resume()
        assert {job.state for job in jobs} == {State.DONE}
        assert place.vendor.calls["submit"] == 0
        assert broker.resume() == []
    assert same(place.run(), truth)


def test_resume_does_not_wait_longer_than_told(place):
    with pytest.raises(Interrupted):
        place.run(polls=["queued", "interrupt"])
    with place.broker(polls=["queued"] * 1000, policy={"poll_first": 0.01, "poll_last": 0.01}) as broker:
        assert {job.state for job in broker.resume(timeout=0.0)} == {State.SUBMITTED}
        assert place.vendor.calls["poll"] == len(place.states())
        assert {job.state for job in broker.resume(timeout=0.03)} == {State.SUBMITTED}


def test_jobs_fly_together_but_not_too_many(place):
    most = 0

    class Counting(FolderVendor):
        def submit(self, submission):
            nonlocal most
            flying = sum(state is State.SUBMITTED for state in place.states())
            most = max(most, flying + 1)
            return super().submit(submission)

    vendor = Counting(place.vendor_folder, polls=["queued"] * 6)
    policy = Policy(**{**HASTY, "in_flight": 3, "poll_first": 1e-3})
    with Broker(vendor, place.run_folder, policy=policy) as broker:
        broker.run(TEMPLATES, circuits(40), 100, purpose="forward")
    assert most == 3


def test_the_fallback_answers_only_if_given_and_is_marked(place, truth, tmp_path):
    twin = FolderVendor(tmp_path / "twin", paid=False, max_circuits=100)
    twin.name = "twin"
    with place.broker(fallback=twin, submits=["ok", *["refused"] * 100]) as broker:
        assert same(broker.run(TEMPLATES, circuits(12), 100, purpose="forward"), truth)
        report = broker.report()
        assert report["answered_by"]["twin"] > 0
        assert report["fallback_share"] == report["answered_by"]["twin"] / 12
    assert any("twin answers in its place" in sentence for sentence in place.said)
    assert "fallback" in place.events()
    # what the twin answered is not asked for again
    assert same(place.run(), truth)
    assert place.vendor.calls["submit"] == 0


def test_a_batch_over_budget_is_refused_and_a_spent_one_ends_between_jobs(place, truth):
    with pytest.raises(BudgetSpent, match=r"12 of 11 circuits: it was not sent"):
        place.run(budget=Budget(circuits=11))
    assert place.vendor.calls["submit"] == 0
    # the vendor reports half a second a circuit, more than was estimated
    with pytest.raises(BudgetSpent, match="seconds"):
        place.run(budget=Budget(seconds=5.5), policy={"in_flight": 1})
    assert place.states() == [State.DONE] * len(place.states())
    assert 1 <= len(place.states()) < 3
    assert same(place.run(budget=Budget(circuits=12)), truth)
    with place.broker(budget=Budget(circuits=15)) as broker:
        broker.check(Spend(circuits=3))
        with pytest.raises(InputError, match="16 of 15 circuits"):
            broker.check(Spend(circuits=4))


def test_money_needs_a_price(place):
    with pytest.raises(BudgetSpent, match="not known"):
        place.run(budget=Budget(money=100.0))
    place.run(budget=Budget(money=100.0), price=Price(per_circuit=1.0, per_job=2.0))
    with place.broker(price=Price()) as broker:
        assert broker.report()["spent"].money == 12 * 1.0 + 3 * 2.0


def test_a_job_that_nobody_knows_of_counts_as_spent(place):
    with pytest.raises(ProviderError, match="nobody knows"):
        place.run(n=5, finds=False, submits=["silent"])
    with LedgerReader(place.run_folder) as reader:
        assert reader.spent("folder:chip").circuits == 5


def test_what_was_paid_is_named_if_it_cannot_be_written(place):
    class Full(FolderVendor):
        def submit(self, submission):
            job = super().submit(submission)
            broker.ledger.store.rows("PRAGMA query_only = ON")
            return job

        def fetch(self, job):
            broker.ledger.store.rows("PRAGMA query_only = ON")
            return super().fetch(job)

    def run():
        nonlocal broker
        with Broker(Full(place.vendor_folder), place.run_folder, policy=Policy(**HASTY)) as broker:
            broker.run(TEMPLATES, circuits(1), 100, purpose="forward")

    broker = None
    with pytest.raises(LedgerError, match=r"took a job as job-\w+.*qpeft qpu resolve .* --job-id job-"):
        run()
    assert place.states() == [State.INTENT]
    with pytest.raises(LedgerError, match=r"came and could not be written, it is in .*qpeft qpu resume") as caught:
        run()
    Path(re.search(r"it is in (\S+):", str(caught.value))[1]).unlink()
    assert place.states() == [State.SUBMITTED]
    place.run(n=1)
    assert place.sent() == (1, 1)


def test_brokers_may_share_a_ledger_but_not_a_folder(place, truth):
    with Ledger(place.run_folder) as ledger:
        vendor, twin = FolderVendor(place.vendor_folder), FolderVendor(place.vendor_folder / "twin")
        twin.name = "twin"
        brokers = [Broker(one, ledger, policy=Policy(**HASTY)) for one in (vendor, twin)]
        results = {}

        def work(broker):
            results[broker.provider.name] = broker.run(TEMPLATES, circuits(12), 100, purpose="forward")

        threads = [threading.Thread(target=work, args=(broker,)) for broker in brokers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert same(results["folder:chip"], truth)
        assert same(results["twin"], truth)
        with pytest.raises(InputError, match="in use by another run"):
            place.run()


def test_a_clock_that_is_set_back_changes_nothing(place, truth, monkeypatch):
    import time

    moments = iter(range(10**6, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(moments)))
    assert same(place.run(polls=["queued"] * 3), truth)
    with LedgerReader(place.run_folder) as reader:
        kinds = [event["kind"] for event in reader.events(1)]
    assert kinds == ["intent", "submitted", "fetched", "done"]


def test_credentials_of_the_environment_are_struck_out(place, monkeypatch):
    secret = "s3cr3t-0123456789"
    monkeypatch.setenv("FOLDER_API_KEY", secret)

    class Chatty(FolderVendor):
        def submit(self, submission):
            from qpeft.qpu.protocol import NotAcceptedError

            if not self.calls["submit"]:
                self.calls["submit"] += 1
                raise NotAcceptedError(f"401: oqcs_auth={secret}")
            return super().submit(submission)

        def poll(self, job):
            self.calls["poll"] += 1
            raise ValueError(secret)

    with Broker(Chatty(place.vendor_folder), place.run_folder, policy=Policy(**HASTY)) as broker:
        with pytest.raises(ProviderError) as caught:
            broker.run(TEMPLATES, circuits(1), 100, purpose="forward")
        assert secret not in str(caught.value)
    place.run(n=1)
    for file in place.run_folder.iterdir():
        assert secret.encode() not in file.read_bytes()


def test_waits_grow_and_tokens_run_out():
    policy = Policy(backoff=1.0, backoff_limit=8.0)
    for refusals, longest in ((1, 1.0), (2, 2.0), (4, 8.0), (10_000, 8.0)):
        assert longest / 2 <= policy.wait_after(refusals, None) <= longest
    assert policy.wait_after(1, 30.0) == 30.0
    assert policy.wait_after(1, float("inf")) <= 1.0
    assert policy.wait_after(1, 1e9) == 3600.0
    failures = Failures(3)
    assert [failures.failed() for _ in range(4)] == [False, False, True, True]
    failures.worked()
    assert not failures.failed()
    now = 0.0
    bucket = TokenBucket(2.0, 3, clock=lambda: now)
    assert [bucket.wait() for _ in range(5)] == [0, 0, 0, 0.5, 1.0]
    now = 100.0
    assert [bucket.wait() for _ in range(4)] == [0, 0, 0, 0.5]


def test_a_chip_that_has_changed_is_asked_anew_and_that_is_said(place, monkeypatch):
    place.run(n=1)
    place.run(n=1)
    assert place.said == []
    changed = replace(CHIP, repetition_us=100.0)
    monkeypatch.setattr(FolderVendor, "snapshot", lambda self: changed)
    place.run(n=1)
    assert place.vendor.calls["submit"] == 1
    assert any("asked anew" in sentence for sentence in place.said)


def test_the_chip_state_is_on_record(place):
    place.run(n=1)
    with LedgerReader(place.run_folder) as reader:
        (run,) = reader.table("runs")
    assert run["snapshot"] == CHIP.id
