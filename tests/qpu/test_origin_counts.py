"""Raw answers of Origin's cloud: right ones give counts block by block, all others a clear error."""

import json
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopback import packed_job
from qpeft.qpu.protocol import JobState, ProviderError, RawAnswer
from qpeft.qpu.providers.origin import OriginProvider
from qpeft.qpu.providers.origin_answer import parse_answer, read_raw, state_of, usage_of
from qpeft.qpu.providers.origin_program import packed_program

JOB = packed_job(2, shots=1000)
# block 0 has wires 6, 2, 3 in bits 2, 1, 0; block 1 has wires 8, 9 in bits 4, 3
ROWS = [{"key": ["0x0", "0x5", "0x1e"], "value": [500, 300, 200]}, {"key": ["0x7"], "value": [1000]}]


def answer(**changes):
    task = {
        "taskId": "T1",
        "taskState": "3",
        "measureQubitSize": [5, 3],
        "probCount": [json.dumps(row) for row in ROWS],
        "mappingQProg": [packed_program(JOB, circuit, 12) for circuit in JOB.circuits],
        **changes,
    }
    return json.dumps(
        {"success": True, "code": 10000, "obj": {k: v for k, v in task.items() if v is not ...}}
    ).encode()


def check(counts):
    expected = [torch.zeros(8).long(), torch.zeros(4).long(), torch.zeros(8).long()]
    expected[0][0b000], expected[0][0b101], expected[0][0b110] = 500, 300, 200
    expected[1][0b00], expected[1][0b11] = 800, 200
    expected[2][0b111] = 1000
    assert [len(blocks) for blocks in counts] == [2, 1]
    for found, wanted in zip([*counts[0], *counts[1]], expected, strict=True):
        assert found.equal(wanted)


def test_counts_of_blocks():
    check(parse_answer(answer(), "T1", JOB))


@pytest.mark.parametrize(
    "changes",
    [
        {"probCount": ROWS},
        {"probCount": json.dumps(ROWS)},
        {"probCount": [{"00000": 500, "00101": 300, "11110": 200}, {"111": 1000}]},
        {"probCount": [], "taskResult": [{**row, "value": [v / 1000 for v in row["value"]]} for row in ROWS]},
        {"probCount": ..., "taskResult": [{**ROWS[0], "value": ["0.5", "0.3", "0.2"]}, ROWS[1]]},
        {"measureQubitSize": ..., "mappingQProg": ...},
        {"measureQubitSize": "[5, 3]", "mappingQProg": ""},
        {"taskState": 3},
        {"mappingQubit": [{"SrcQubits": [3, 2], "MappingQubits": [3, 2]}, '{"SrcQubits":[4],"MappingQubits":[5]}']},
    ],
)
def test_the_same_answer_in_other_shapes(changes):
    check(parse_answer(answer(**changes), "T1", JOB))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"probCount": ROWS[:1]}, "1 results for 2 circuits"),
        ({"probCount": [*ROWS, ROWS[0]]}, "3 results for 2 circuits"),
        ({"probCount": ROWS[::-1]}, "bit string"),
        ({"probCount": []}, "no results"),
        ({"measureQubitSize": [5, 4]}, "bits"),
        ({"probCount": [{"key": ["0x20"], "value": [1000]}, ROWS[1]]}, "does not have the 5 bits"),
        ({"probCount": [{"key": ["0000"], "value": [1000]}, ROWS[1]]}, "does not have the 5 bits"),
        ({"probCount": [{"key": ["-0x1"], "value": [1000]}, ROWS[1]]}, "bit string"),
        ({"probCount": [{"key": ["zero"], "value": [1000]}, ROWS[1]]}, "not a bit string"),
        ({"probCount": [{"key": ["0x0", "0x0"], "value": [500, 500]}, ROWS[1]]}, "occurs twice"),
        ({"probCount": [{"key": ["0x0"], "value": [999]}, ROWS[1]]}, "999 shots"),
        ({"probCount": [{"key": ["0x0"], "value": [float("nan")]}, ROWS[1]]}, "not a number"),
        ({"probCount": [{"key": ["0x0", "0x1"], "value": [1001, -1]}, ROWS[1]]}, "not a number"),
        ({"probCount": [{"key": ["0x0"], "value": [1000, 2]}, ROWS[1]]}, "equally many"),
        ({"probCount": [{"key": ["0x0", "0x1"], "value": [0.50043, 0.49957]}, ROWS[1]]}, "corrected"),
        ({"probCount": [{"key": [], "value": []}, ROWS[1]]}, "0 shots"),
        ({"probCount": ["nothing", ROWS[1]]}, "not a table"),
        ({"mappingQProg": [packed_program(JOB, c, 12) for c in JOB.circuits[::-1]]}, "another program"),
        ({"mappingQProg": [packed_program(JOB, JOB.circuits[0], 12)]}, "1 programs for 2"),
        ({"mappingQubit": ['{"SrcQubits":[0,1],"TargetCbits":[0,1],"MappingQubits":[3,2]}']}, "moved qubits"),
        ({"taskState": "2"}, "running, not finished"),
        ({"taskState": "9"}, "unknown, not finished"),
        ({"taskState": "4", "errInfo": "chip is being calibrated"}, "being calibrated"),
        ({"taskId": "T2"}, "another task"),
    ],
)
def test_a_wrong_answer_is_refused(changes, words):
    with pytest.raises(ProviderError, match=words):
        parse_answer(answer(**changes), "T1", JOB)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_cut_and_altered_answers_never_give_wrong_sums(data):
    text = bytearray(answer())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(text) - 1))
        if data.draw(st.booleans()):
            text[place] = data.draw(st.integers(32, 126))
        else:
            del text[place : place + data.draw(st.integers(1, 30))]
    try:
        counts = parse_answer(bytes(text), "T1", JOB)
    except ProviderError:
        return
    assert all(int(block.sum()) == 1000 and (block >= 0).all() for blocks in counts for block in blocks)


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        ("1", JobState.QUEUED),
        ("5", JobState.QUEUED),
        ("2", JobState.RUNNING),
        (3, JobState.DONE),
        ("4", JobState.FAILED),
    ]
    + [(str(number), JobState.UNKNOWN) for number in (0, *range(6, 14), "", None, "done")],
)
def test_states(state, wanted):
    assert state_of({"taskState": state}) is wanted


def test_a_cancelled_task_is_not_a_failed_one():
    assert state_of({"taskState": "4", "errInfo": "task cancelled"}) is JobState.CANCELLED


@pytest.mark.parametrize("text", ["", "<html>", "[]", "3", "null", '{"obj": null, "message": "no"}', '{"obj": [1]}'])
def test_an_answer_that_is_none(text):
    with pytest.raises(ProviderError, match="T1"):
        read_raw(text, "T1")


def test_usage():
    assert usage_of({"qpuRunTime": "480.0", "startTime": 5, "mappingQProg": []}) == {
        "qpuRunTime": "480.0",
        "startTime": 5,
        "seconds": 0.48,
    }
    assert "seconds" not in usage_of({"qpuRunTime": -5})


def test_answers_are_read_without_client_and_key(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyqpanda3", None)
    monkeypatch.delenv("QPEFT_ORIGIN_KEY", raising=False)
    check(OriginProvider().parse(RawAnswer(answer(), {}, "T1"), JOB))
