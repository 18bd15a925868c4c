"""The virtual chip as a provider keeps what the protocol promises."""

import json
import math
from dataclasses import replace

import pytest

from qpeft.chips import ChipSnapshot, NativeTemplate
from qpeft.circuits import Circuit, Gate, Input
from qpeft.errors import InputError
from qpeft.qpu.protocol import Block, JobState, NotAcceptedError, ProviderError, RawAnswer, Submission
from qpeft.qpu.providers import open_provider
from qpeft.qpu.providers.virtual import VirtualProvider

CHIP = ChipSnapshot.fully_connected(5, fidelity=0.99, two_qubit_fidelity=0.95, readout_error=0.04, t1_us=20, t2_us=3)
PAIR = Circuit(
    2, (Gate("RX", 0, math.pi / 2), Gate("RZ", 0, Input(0)), Gate("RX", 0, math.pi / 2), Gate("CZ", (0, 1)))
)
FLIP = Circuit(1, (Gate("RX", 0, math.pi), Gate("RZ", 0, Input(0))))


def template(circuit, *qubits):
    return NativeTemplate(circuit, qubits, tuple(range(len(qubits))), lambda inputs, weights: inputs)


def submission(token="one", **changes):
    circuits = tuple((Block(0, (0.1 * i,)), Block(1, (0.2 + i,)), Block(2, (0.3 * i,))) for i in range(4))
    templates = template(PAIR, 0, 1), template(FLIP, 2), template(PAIR, 4, 3)
    return replace(Submission(templates, (*circuits, (Block(1, (0.5,)),)), 1000, token), **changes)


def lists(counts):
    return [[row.tolist() for row in blocks] for blocks in counts]


def ask(provider, wanted):
    answer = provider.fetch(provider.submit(wanted))
    return lists(provider.parse(answer, wanted))


def test_a_job_from_submission_to_counts():
    provider = open_provider("virtual-wukong", chip=CHIP)
    wanted = submission()
    job = provider.submit(wanted)
    assert provider.poll(job) is JobState.DONE
    answer = provider.fetch(job)
    assert answer.job == job
    assert answer.usage == {"seconds": pytest.approx(5 * 1000 * CHIP.repetition_us / 1e6)}
    assert len(answer.data) < 1000
    counts = provider.parse(answer, wanted)
    assert [[len(row) for row in blocks] for blocks in counts] == [[4, 2, 4]] * 4 + [[2]]
    assert all(int(row.sum()) == 1000 for blocks in counts for row in blocks)
    assert int(counts[4][0][1]) > 900  # the flipped qubit
    assert not provider.cancel(job)
    assert provider.name == "virtual:ideal"
    assert provider.snapshot() is CHIP
    provider.close()


def test_equal_submissions_and_seeds_give_equal_counts():
    first = ask(VirtualProvider(CHIP), submission())
    assert ask(VirtualProvider(CHIP), submission("two")) == first
    assert ask(VirtualProvider(CHIP), submission(seed=1)) != first
    assert ask(VirtualProvider(CHIP, seed=1), submission()) != first
    assert ask(VirtualProvider(CHIP, crosstalk=0.5), submission()) != first
    halves = [ask(VirtualProvider(CHIP), submission(circuits=part)) for part in
              (submission().circuits[:2], submission().circuits[2:])]  # fmt: skip
    assert halves[0] + halves[1] == first


def test_jobs_are_found_by_their_token_and_outlive_the_process(tmp_path):
    folder = tmp_path / "jobs"
    first = VirtualProvider(CHIP, state=folder)
    assert first.find("one") is None
    job = first.submit(submission())
    counts = lists(first.parse(first.fetch(job), submission()))
    again = VirtualProvider(CHIP, state=folder)
    assert again.find("one") == job
    assert again.find("two") is None
    assert again.poll(job) is JobState.DONE
    assert lists(again.parse(again.fetch(job), submission())) == counts
    assert again.submit(submission()) == job  # the token is answered once
    assert len(list(folder.iterdir())) == 1
    with pytest.raises(NotAcceptedError, match="token belongs to another") as caught:
        again.submit(submission(shots=500))
    assert caught.value.lasting
    with pytest.raises(ProviderError, match="has no job"):
        VirtualProvider(CHIP).poll(job)


def test_a_state_folder_that_cannot_be_written_is_no_accepted_job(tmp_path):
    (tmp_path / "file").write_text("")
    provider = VirtualProvider(CHIP, state=tmp_path / "file")
    with pytest.raises(NotAcceptedError, match="cannot be kept"):
        provider.submit(submission())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"circuits": ()}, "1 to 200 circuits"),
        ({"circuits": ((),)}, "at least one block"),
        ({"circuits": submission().circuits[:1] * 201}, r"got 201 circuits"),
        ({"shots": 99}, "from 100 to 10000 .got 99"),
        ({"shots": 10_001}, "from 100 to 10000"),
        ({"shots": 1000.0}, "whole number"),
        ({"options": {"amend": 1}}, "no option 'amend'"),
        ({"circuits": ((Block(0, (0.1,)), Block(0, (0.2,))),)}, "stand on qubit 0"),
        ({"templates": (template(PAIR, 0, 7), template(FLIP, 2), template(PAIR, 4, 3))}, "qubit 7 of ideal"),
    ],
)
def test_what_does_not_fit_is_not_accepted(changes, words):
    provider = VirtualProvider(CHIP)
    with pytest.raises(NotAcceptedError, match=words) as caught:
        provider.submit(submission(**changes))
    assert caught.value.lasting
    assert provider.find("one") is None


def test_damaged_and_foreign_answers_are_refused():
    provider = VirtualProvider(CHIP)
    answer = provider.fetch(provider.submit(submission()))
    record = json.loads(answer.data)
    other = json.loads(provider.fetch(provider.submit(submission("two", circuits=submission().circuits[:4]))).data)
    for data, words in (
        (answer.data[:-5], "damaged"),
        (b"", "damaged"),
        (b"[]", "damaged"),
        (b"\xff\xfe", "damaged"),
        (json.dumps(record | {"counts": record["counts"][:-8]}).encode(), "damaged"),
        (json.dumps(record | {"counts": 7}).encode(), "damaged"),
        (json.dumps(record | {"counts": other["counts"]}).encode(), "not whole"),
        (json.dumps(other).encode(), "belongs to another"),
    ):
        with pytest.raises(ProviderError, match=words):
            provider.parse(RawAnswer(data, {}, "job"), submission())
    with pytest.raises(ProviderError, match="belongs to another"):
        provider.parse(answer, submission(shots=2000))
    assert lists(provider.parse(answer, submission("any token"))) == lists(provider.parse(answer, submission()))


def test_caps_and_settings():
    caps = VirtualProvider(CHIP).caps()
    assert (caps.max_circuits, caps.min_shots, caps.max_shots) == (200, 100, 10_000)
    assert caps.packs
    assert caps.finds
    assert caps.seeded
    assert not caps.paid
    assert VirtualProvider().name == "virtual:wukong-72"
    with pytest.raises(InputError, match="no chip 'wukong'"):
        VirtualProvider("wukong")
    with pytest.raises(InputError, match="seed must be"):
        VirtualProvider(CHIP, seed=0.5)
    with pytest.raises(InputError, match="crosstalk must be"):
        VirtualProvider(CHIP, crosstalk=2)
