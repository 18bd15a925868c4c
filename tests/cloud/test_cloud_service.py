"""The cloud over HTTP: what it answers, refuses, remembers, and does wrong when it is told to."""

import http.client
import json
import time
from urllib.error import URLError

import pytest

from loopback import ask, grid_chip, loopback, packed_job
from qpeft.chips import ChipSnapshot
from qpeft.chips.virtual import VirtualChip
from qpeft.cloud import CloudServer, Fault, FaultScript, TaskBook, VirtualCloud
from qpeft.errors import InputError
from qpeft.qpu.providers.origin_program import packed_program

SUBMIT = "/oqcs/task/origin/submit.json"
DETAIL = "/oqcs/task/origin/taskDetail.json"
CANCEL = "/oqcs/task/cancelTask.json"


def submission(n=2, shots=1000, chip="72", **settings):
    job = packed_job(n)
    return {
        "batchNo": "batch-1",
        "taskFrom": 4,
        "QProg": [packed_program(job, circuit, 12) for circuit in job.circuits],
        "QMachineType": "5",
        "ChipID": chip,
        "Configuration": {
            "shot": shots,
            "isProbcount": True,
            "amendFlag": 0,
            "mappingFlag": False,
            "circuitOptimization": False,
            "specified_block": [],
            **settings,
        },
    }


def finished(server, task, seconds=20):
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        detail = ask(server, DETAIL, {"taskId": task, "keys": ["mappingQprog"]})[1]["obj"]
        if detail["taskState"] in ("3", "4"):
            return detail
        time.sleep(0.01)
    raise AssertionError("the task does not finish")


@pytest.fixture(scope="module")
def server():
    with loopback() as server:
        yield server


def test_resources_and_chip(server):
    assert ask(server, "/oqcs/task/getResourceList.json") == (
        200,
        [{"machineType": 5, "onlineFlag": True, "sinanChipId": "72"}],
    )
    status, answer = ask(server, "/oqcs/task/origin/chipInfo.json", {"ChipID": "72"})
    assert (status, answer["success"], answer["obj"]["ChipID"]) == (200, True, "72")
    snapshot = ChipSnapshot.from_origin(answer["obj"])
    assert snapshot.live_qubits == grid_chip().live_qubits
    assert snapshot.live_couplers == grid_chip().live_couplers


def test_a_task_from_end_to_end(server):
    answer = ask(server, SUBMIT, submission())[1]
    assert (answer["success"], answer["code"]) == (True, 10000)
    detail = finished(server, answer["obj"]["taskId"])
    assert detail["batchNo"] == "batch-1"
    assert detail["measureQubitSize"] == [5, 3]
    assert detail["mappingQProg"] == submission()["QProg"]
    counts = [json.loads(row) for row in detail["probCount"]]
    shares = [json.loads(row) for row in detail["taskResult"]]
    assert [sum(row["value"]) for row in counts] == [1000, 1000]
    assert shares[0]["value"] == [count / 1000 for count in counts[0]["value"]]
    assert detail["startTime"] <= detail["endTime"]
    assert "mappingQubit" not in detail
    task = answer["obj"]["taskId"]
    place = ask(server, DETAIL, {"taskId": task, "keys": ["mappingQubit"]})[1]["obj"]["mappingQubit"][0]
    assert json.loads(place)["SrcQubits"] == json.loads(place)["MappingQubits"] == [3, 2, 6, 9, 8]
    assert detail["qpuRunTime"] == 320.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chip": "73"}, "resource is null"),
        ({"n": 201}, "at most 200 programs"),
        ({"shots": 99}, "100 to 10000"),
        ({"shots": 10_001}, "100 to 10000"),
        ({"shots": "many"}, "100 to 10000"),
        ({"amendFlag": 2}, "0, 1 or 3"),
    ],
)
def test_what_submit_refuses(server, changes, words):
    status, answer = ask(server, SUBMIT, submission(**changes))
    assert (status, answer["success"], answer["obj"]) == (200, False, None)
    assert words in answer["message"]


@pytest.mark.parametrize("body", [{}, {"QProg": []}, {"QProg": [1]}, {"QProg": ["QINIT 1"], "Configuration": 3}])
def test_malformed_submissions(server, body):
    assert ask(server, SUBMIT, {"ChipID": "72", **body})[1]["success"] is False


def test_corrected_readout_gives_frequencies_and_rounded_counts(server):
    detail = finished(server, ask(server, SUBMIT, submission(amendFlag=1))[1]["obj"]["taskId"])
    shares, counts = json.loads(detail["taskResult"][0]), json.loads(detail["probCount"][0])
    assert sum(shares["value"]) == pytest.approx(1)
    assert sum(counts["value"]) == 1000
    assert max(abs(1000 * p - n) for p, n in zip(shares["value"], counts["value"], strict=True)) < 1
    plain = finished(server, ask(server, SUBMIT, submission(isProbcount=False))[1]["obj"]["taskId"])
    assert plain["probCount"] == []


def test_a_program_that_cannot_run_fails_the_task(server):
    body = submission()
    body["QProg"][1] = "QINIT 12\nCREG 1\nCZ q[0],q[1]\nMEASURE q[0],c[0]\n"
    detail = finished(server, ask(server, SUBMIT, body)[1]["obj"]["taskId"])
    assert detail["taskState"] == "4"
    assert "program 1" in detail["errInfo"]
    assert "taskResult" not in detail


def test_a_key_is_needed(server):
    for key in (None, ""):
        assert ask(server, "/oqcs/task/getResourceList.json", key=key)[0] == 401


def test_nothing_elsewhere(server):
    assert ask(server, "/oqcs/task/other.json", {})[0] == 404
    assert ask(server, DETAIL, {"taskId": "none"})[1]["message"] == "task does not exist"
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
    connection.request("POST", SUBMIT, b"[]", {"Authorization": "oqcs_auth=k"})
    assert connection.getresponse().status == 400
    connection.close()


def test_best_blocks(server):
    request = {"chipId": "72", "qubitNum": 2, "label": 1, "qubitBlockNum": 3}
    found = ask(server, "/oqcs/task/management/bestQubitBlocks.json", request)[1]["obj"]
    blocks = found["QubitBlocks"]
    assert [len(block) for block in blocks] == [2, 2, 2]
    assert len({qubit for block in blocks for qubit in block}) == 6
    request["qubitNum"] = 12
    assert ask(server, "/oqcs/task/management/bestQubitBlocks.json", request)[1]["success"] is False


def test_the_page_shows_tasks_and_escapes_what_clients_say(server):
    body = submission()
    body["batchNo"] = "<script>alert(1)</script>"
    task = ask(server, SUBMIT, body)[1]["obj"]["taskId"]
    finished(server, task)
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
    connection.request("GET", "/")
    page = connection.getresponse().read().decode()
    connection.close()
    assert task[:8] in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<circle") == 12
    assert "http" not in page.replace('http-equiv="refresh"', "")


def test_states_of_a_slow_queue_and_cancelling():
    with loopback(speed=1.0) as server:
        first, second = (ask(server, SUBMIT, submission())[1]["obj"]["taskId"] for _ in range(2))
        assert ask(server, DETAIL, {"taskId": second})[1]["obj"]["taskState"] == "1"
        seen = set()
        ends = time.monotonic() + 5
        while time.monotonic() < ends and seen != {"2", "5"}:
            seen = {ask(server, DETAIL, {"taskId": task})[1]["obj"]["taskState"] for task in (first, second)}
        assert seen == {"2", "5"}
        for task in (first, second):
            assert ask(server, CANCEL, {"taskId": task})[1]["success"] is True
            detail = ask(server, DETAIL, {"taskId": task})[1]["obj"]
            assert (detail["taskState"], detail["errInfo"]) == ("4", "task cancelled")
            assert ask(server, CANCEL, {"taskId": task})[1]["success"] is False


def test_tasks_survive_the_server(tmp_path):
    with loopback(folder=tmp_path, speed=1.0) as server:
        open_task = ask(server, SUBMIT, submission())[1]["obj"]["taskId"]
    with loopback(folder=tmp_path) as server:
        detail = finished(server, open_task)
        assert detail["taskState"] == "3"
    with loopback(folder=tmp_path) as server:
        assert ask(server, DETAIL, {"taskId": open_task})[1]["obj"]["taskResult"] == detail["taskResult"]
    book = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"not-to-be-seen" not in book


def test_equal_servers_give_equal_results():
    results = []
    for _ in range(2):
        with loopback(seed=7) as server:
            task = ask(server, SUBMIT, submission())[1]["obj"]["taskId"]
            results.append(finished(server, task)["probCount"])
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("host", "words"),
    [("0.0.0.0", "any key"), ("192.0.2.1", "any key"), ("not a host", "any key")],
)
def test_other_machines_are_kept_out(host, words):
    cloud = VirtualCloud({"72": VirtualChip(grid_chip())}, TaskBook())
    with pytest.raises(InputError, match=words):
        CloudServer(cloud, host)
    cloud.close()


def test_a_port_that_is_taken(server):
    with pytest.raises(InputError, match="cannot listen"):
        CloudServer(server.cloud, port=int(server.url.rpartition(":")[2]))


def test_a_folder_has_one_server(tmp_path):
    book = TaskBook(tmp_path)
    with pytest.raises(InputError, match="another server"):
        TaskBook(tmp_path)
    book.close()
    TaskBook(tmp_path).close()


def test_a_folder_that_is_none(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="choose another folder"):
        TaskBook(tmp_path / "file")


def fault(at, name, *requests, **settings):
    return Fault(at, name, frozenset(requests) or None, settings)


def test_faults_before_and_after_acceptance():
    script = [
        fault("submit", "status", 1, code=429, retry_after=3),
        fault("submit", "cut", 2),
        fault("submit", "refuse", 3, message="the chip is being calibrated"),
        fault("submit", "drop", 4),
        fault("submit", "late_error", 5),
        fault("submit", "garbage", 6),
        fault("submit", "no_id", 7),
        fault("submit", "twice", 8),
    ]
    with loopback(script) as server:
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
        connection.request("POST", SUBMIT, json.dumps(submission()), {"Authorization": "oqcs_auth=k"})
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Retry-After"]) == (429, "3")
        connection.close()
        with pytest.raises((URLError, http.client.HTTPException, OSError)):
            ask(server, SUBMIT, submission())
        assert ask(server, SUBMIT, submission())[1]["message"] == "the chip is being calibrated"
        assert server.cloud.tasks.last(9) == []
        with pytest.raises((URLError, http.client.HTTPException, OSError)):
            ask(server, SUBMIT, submission())
        assert len(server.cloud.tasks.last(9)) == 1  # only that of request 4
        assert ask(server, SUBMIT, submission())[0] == 502
        with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
            ask(server, SUBMIT, submission())
        assert ask(server, SUBMIT, submission())[1]["obj"] == {}
        assert len(server.cloud.tasks.last(9)) == 4
        assert ask(server, SUBMIT, submission())[1]["success"]
        assert len(server.cloud.tasks.last(9)) == 6


def test_silence_ends_with_the_server():
    with loopback([fault("chipInfo", "silence", seconds=60)]) as server:
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=0.2)
        headers = {"Authorization": "oqcs_auth=k"}
        connection.request("POST", "/oqcs/task/origin/chipInfo.json", '{"ChipID": "72"}', headers)
        with pytest.raises(TimeoutError):
            connection.getresponse()
        connection.close()


def test_fault_scripts_from_files(tmp_path):
    file = tmp_path / "faults.yaml"
    file.write_text(
        "- {at: submit, requests: [1, 3], fault: status, code: 503}\n"
        '- {at: taskDetail, requests: "2-4", fault: state, state: 9}\n'
        "- {at: taskDetail, fault: skew}\n"
    )
    script = FaultScript.load(file)
    assert [len(script.next("submit")) for _ in range(4)] == [1, 0, 1, 0]
    assert [[f.fault for f in script.next("taskDetail")] for _ in range(3)] == [
        ["skew"],
        ["state", "skew"],
        ["state", "skew"],
    ]
    assert script.next("chipInfo") == ()
    (tmp_path / "faults.json").write_text('[{"at": "submit", "fault": "drop", "requests": 1}]')
    assert FaultScript.load(tmp_path / "faults.json").next("submit")[0].fault == "drop"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{at: submit}", "must be a list"),
        ("- {at: nowhere, fault: drop}", "unknown endpoint"),
        ("- {at: submit, fault: flood}", "unknown fault"),
        ("- {at: submit, fault: drop, code: 3}", "no setting 'code'"),
        ("- {at: submit, fault: status, code: many}", "must be a number"),
        ("- {at: submit, fault: drop, requests: some}", "requests"),
        ("- {at: submit, fault: drop, requests: [0]}", "requests"),
        ("- [", "not YAML"),
    ],
)
def test_wrong_fault_scripts(tmp_path, text, words):
    (tmp_path / "faults.yaml").write_text(text)
    with pytest.raises(InputError, match=words):
        FaultScript.load(tmp_path / "faults.yaml")
