"""Origin's wire format: what its six endpoints take and give, as pyqpanda3 0.5.1 sends and reads it.

Paths are ``/oqcs/task/...``. Answers are ``{"success": true, "code": 10000, "message": "success", "obj": ...}``, but
for the list of chips, which is a bare array. A result is ``{"key": ["0x0", ...], "value": [...]}``, as JSON inside a
string: frequencies in ``taskResult``, and counts in ``probCount`` where ``isProbcount`` asks for them. What ran
(``mappingQProg``, ``mappingQubit``) is told where ``keys`` of ``taskDetail`` asks for it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from qpeft.chips import ChipSnapshot
from qpeft.cloud.machine import Row
from qpeft.cloud.tasks import FAILED, FINISHED, QUEUING, WAITING, Task
from qpeft.errors import InputError

PATHS = {
    "/oqcs/task/getResourceList.json": "getResourceList",
    "/oqcs/task/origin/chipInfo.json": "chipInfo",
    "/oqcs/task/origin/submit.json": "submit",
    "/oqcs/task/origin/taskDetail.json": "taskDetail",
    "/oqcs/task/cancelTask.json": "cancelTask",
    "/oqcs/task/management/bestQubitBlocks.json": "bestQubitBlocks",
}
MAX_PROGRAMS = 200
SHOTS = (100, 10_000)
SECONDS_PER_SHOT = 160e-6
WAITING_SECONDS = 0.2  # before a new task is shown as queuing
PREPARING_SECONDS = 2.5  # compiling for the control electronics, loading

_QPU = 5
_ALWAYS = ("measureQubitSize", "taskResult", "probCount")
_REQUEST_FAILED = 10001


def accepted(obj: Any) -> dict[str, Any]:
    """An answer that says yes."""
    return {"success": True, "code": 10000, "message": "success", "obj": obj}


def refused(message: str, code: int = _REQUEST_FAILED) -> dict[str, Any]:
    """An answer that says no."""
    return {"success": False, "code": code, "message": message, "obj": None}


def resource_list(chips: list[str]) -> list[dict[str, Any]]:
    return [{"machineType": _QPU, "onlineFlag": True, "sinanChipId": chip} for chip in chips]


def chip_info(name: str, snapshot: ChipSnapshot) -> dict[str, Any]:
    """A chip under the name that clients know, with every field and type that pyqpanda3 insists on."""
    info: dict[str, Any] = {**snapshot.to_origin(), "ChipID": name}
    info["QubitParams"] = [{"Frequency": 0.0, **qubit} for qubit in info["QubitParams"]]
    info["QGateClock"] = [{**clock, "IntValue": round(clock["IntValue"])} for clock in info["QGateClock"]]
    return info


def read_submission(body: dict[str, Any]) -> dict[str, Any]:
    """What a client hands in, checked.

    Returns:
        ``programs``, ``shots`` and the settings that matter here.

    Raises:
        InputError: What the service refuses.
    """
    programs = body.get("QProg")
    programs = [programs] if isinstance(programs, str) else programs
    if not isinstance(programs, list) or not programs or not all(isinstance(text, str) for text in programs):
        raise InputError("QProg must be a list of OriginIR programs")
    if len(programs) > MAX_PROGRAMS:
        raise InputError(f"a task holds at most {MAX_PROGRAMS} programs (got {len(programs)})")
    settings = body.get("Configuration", {})
    if isinstance(settings, str):
        settings = json.loads(settings)
    if not isinstance(settings, dict):
        raise InputError("Configuration must be an object")
    shots = settings.get("shot")
    if isinstance(shots, bool) or not isinstance(shots, int) or not SHOTS[0] <= shots <= SHOTS[1]:
        raise InputError(f"shot must be a whole number from {SHOTS[0]} to {SHOTS[1]} (got {str(shots)[:20]})")
    amend = settings.get("amendFlag", 1)
    if amend not in (0, 1, 3):
        raise InputError(f"amendFlag must be 0, 1 or 3 (got {str(amend)[:20]})")
    return {
        "programs": programs,
        "shots": shots,
        "amend": int(amend),
        "mapping": bool(settings.get("mappingFlag", True)),
        "counts": bool(settings.get("isProbcount", True)),
    }


def answer_of(rows: list[Row], request: dict[str, Any]) -> dict[str, Any]:
    """What comes out of the chip for ``taskDetail``."""
    shots = request["shots"]
    results, counts = [], []
    for row in rows:
        frequencies = row.values if request["amend"] else [value / shots for value in row.values]
        results.append(json.dumps({"key": row.keys, "value": frequencies}, separators=(",", ":")))
        if request["counts"]:
            whole = _apportioned(row.values, shots) if request["amend"] else row.values
            counts.append(json.dumps({"key": row.keys, "value": whole}, separators=(",", ":")))
    places = [{"SrcQubits": row.qubits, "TargetCbits": row.bits, "MappingQubits": row.places} for row in rows]
    return {
        "measureQubitSize": [len(row.bits) for row in rows],
        "taskResult": results,
        "probCount": counts,
        "mappingQProg": [row.program for row in rows],
        "mappingQubit": [json.dumps(place, separators=(",", ":")) for place in places],
    }


def _apportioned(frequencies: Sequence[float], shots: int) -> list[int]:
    """Whole numbers in the proportion of frequencies, by largest remainder; their sum is ``shots``."""
    exact = [frequency * shots for frequency in frequencies]
    whole = [int(value) for value in exact]
    by_rest = sorted(range(len(exact)), key=lambda i: whole[i] - exact[i])
    for i in by_rest[: shots - sum(whole)]:
        whole[i] += 1
    return whole


def task_detail(task: Task, answer: dict[str, Any] | None, now: float, keys: Sequence[str] = ()) -> dict[str, Any]:
    """The ``obj`` of ``taskDetail``.

    Args:
        task: Which.
        answer: What came out of the chip, where it is finished.
        now: Seconds since 1970.
        keys: Names of further fields that the client wants.
    """
    state = task.state
    if state == WAITING and now - task.created > WAITING_SECONDS:
        state = QUEUING
    detail: dict[str, Any] = {"taskId": task.id, "taskState": str(state), "batchNo": task.batch}
    if task.state == FAILED:
        detail |= {"errCode": "10001", "errInfo": task.message}
    if task.state == FINISHED and answer is not None and task.started and task.ended:
        wanted = {str(key).lower() for key in keys}
        measured = 1000 * task.n_programs * task.shots * SECONDS_PER_SHOT
        detail |= {
            **{name: value for name, value in answer.items() if name in _ALWAYS or name.lower() in wanted},
            "startTime": round(1000 * task.created),
            "endTime": round(1000 * task.ended),
            "totalTime": round(1000 * (task.ended - task.created)),
            "queueTime": round(1000 * (task.started - task.created)),
            "qpuRunTime": round(measured, 3),
        }
    return detail
