"""pyqpanda3 as it comes from the registry, end to end against the loopback cloud.

The client holds Python's lock while it waits, so it runs in a process of its own here as anywhere.
"""

import json
import subprocess
import sys

import pytest

from loopback import loopback
from qpeft.chips import load_chip

pytest.importorskip("pyqpanda3", reason="needs pyqpanda3")

SCRIPT = """
import json, sys, time
from pyqpanda3.core import CNOT, H, QProg, RX, X, measure
from pyqpanda3.qcloud import JobStatus, QCloudJob, QCloudOptions, QCloudResult, QCloudService

service = QCloudService("any-key", url=sys.argv[1])
backend = service.backend("72")
out = {"backends": dict(service.backends())}
info = backend.chip_info()
out["qubits"] = info.qubits_num()
out["available"] = list(info.available_qubits())
out["topology"] = sorted(sorted(pair) for pair in info.get_chip_topology())
out["t1"] = info.single_qubit_info()[0].get_t1()
out["blocks"] = backend.best_qubit_blocks(3, 1, 2).qubit_blocks

bell = QProg() << H(0) << CNOT(0, 1) << measure(0, 0) << measure(1, 1)
flip = QProg() << X(3) << measure(3, 0) << measure(4, 1)
job = backend.run(bell, 1000)                       # everything as the client has it by default
result = job.result()
out["default"] = [str(result.job_status()), result.get_probs(), len(result.origin_data())]

raw = QCloudOptions(amend_flag=0, mapping=True, optimization=True, is_prob_counts=True)
job = backend.run([bell, flip], 2000, raw, False, "my-batch")
result = job.result()
out["counts"] = result.get_counts_list()
out["offline"] = QCloudResult(job.job_id(), result.origin_data()).get_counts_list() == out["counts"]
out["timing"] = sorted(result.timing_info())
again = QCloudJob(job.job_id())
out["again"] = [str(again.status()), again.query().get_counts_list() == out["counts"]]
fixed = QCloudOptions(amend_flag=0, mapping=False, optimization=False, is_prob_counts=True)
wrong = backend.run([QProg() << X(18) << measure(18, 0)], 1000, fixed)
out["failed"] = [str(wrong.result().job_status()), wrong.result().error_message()]
out["cancel"] = job.cancel()
try:
    backend.run(flip, 5, raw)
except RuntimeError as error:
    out["refused"] = str(error)
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def chip():
    return load_chip("wukong-72")


@pytest.fixture(scope="module")
def found(chip):
    with loopback(snapshot=chip) as server:
        ran = subprocess.run(
            [sys.executable, "-c", SCRIPT, server.url], capture_output=True, text=True, timeout=120, check=False
        )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_backends_and_chip(found, chip):
    assert found["backends"]["72"] is True
    assert found["qubits"] == 72
    assert found["available"] == list(chip.live_qubits)
    live = [list(coupler.qubits) for coupler in chip.live_couplers]
    assert [pair for pair in found["topology"] if set(pair) <= set(chip.live_qubits)] == live
    assert found["t1"] == pytest.approx(chip.qubits[0].t1_us)


def test_best_qubit_blocks(found):
    assert [len(block) for block in found["blocks"]] == [3, 3]


def test_a_program_with_the_client_s_defaults(found):
    status, probabilities, length = found["default"]
    assert status.endswith("FINISHED")
    assert probabilities["00"] + probabilities["11"] > 0.8
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-3)
    assert length > 0


def test_a_list_with_counts(found):
    bell, flip = found["counts"]
    assert sum(bell.values()) == sum(flip.values()) == 2000
    assert bell.get("00", 0) + bell.get("11", 0) > 1500
    assert max(flip, key=flip.get) == "01"  # rightmost is bit 0
    assert found["offline"]
    assert found["again"][0].endswith("FINISHED")
    assert found["again"][1]
    assert "qpuRunTime" in found["timing"]


def test_failing_cancelling_refusing(found):
    assert found["failed"][0].endswith("FAILED")
    assert "qubit 18 is not available" in found["failed"][1]
    assert found["cancel"] is False
    assert "100 to 10000" in found["refused"]
