"""What scripted faults do to the answer about a finished task; each changes one thing that a client must notice."""

from __future__ import annotations

import json
import random
import re
from typing import Any

from qpeft.cloud.faults import Fault

_LISTS = ("taskResult", "probCount", "mappingQProg", "mappingQubit", "measureQubitSize")
_SHUFFLE_SEED = 1


def tamper(fault: Fault, detail: dict[str, Any]) -> dict[str, Any]:
    """The ``obj`` of ``taskDetail`` with a fault; tasks that are not finished stay as they are.

    Args:
        fault: One of those that concern answers; others change nothing.
        detail: The right answer.
    """
    if detail.get("taskState") != "3":
        return detail
    change = _CHANGES.get(fault.fault)
    return detail if change is None else {**detail, **change(detail, fault.settings)}


def _each_list(detail: dict[str, Any], change: Any) -> dict[str, Any]:
    return {name: change(detail[name]) for name in _LISTS if detail.get(name)}


def _partial(detail: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    return {name: detail[name][: settings["keep"]] for name in ("taskResult", "probCount") if name in detail}


def _duplicate(detail: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    return _each_list(detail, lambda rows: [rows[0], *(rows[:-1] if settings["same_length"] else rows)])


def _shuffle(detail: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    order = list(range(len(detail["measureQubitSize"])))
    random.Random(_SHUFFLE_SEED).shuffle(order)
    if order == sorted(order):
        order.reverse()
    return _each_list(detail, lambda rows: [rows[i] for i in order])


def _in_first_row(detail: dict[str, Any], change: Any) -> dict[str, Any]:
    changed = {}
    for name in ("taskResult", "probCount"):
        if detail.get(name):
            row = json.loads(detail[name][0])
            change(row)
            changed[name] = [json.dumps(row), *detail[name][1:]]
    return changed


def _wrong_bits(detail: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    def longer(row: dict[str, Any]) -> None:
        row["key"][0] = hex(1 << detail["measureQubitSize"][0])

    return _in_first_row(detail, longer)


def _wrong_sum(detail: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    def lose(row: dict[str, Any]) -> None:
        row["key"].pop()
        row["value"].pop()

    return _in_first_row(detail, lose)


def _nan(detail: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    def spoil(row: dict[str, Any]) -> None:
        row["value"][0] = float("nan")

    return _in_first_row(detail, spoil)


def _moved(detail: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Qubits in another order: the lowest and the highest that are used change places."""

    def move(program: str) -> str:
        used = sorted({int(found) for found in re.findall(r"q\[(\d+)\]", program)})
        swap = {used[0]: used[-1], used[-1]: used[0]}
        return re.sub(r"q\[(\d+)\]", lambda found: f"q[{swap.get(int(found[1]), int(found[1]))}]", program)

    return {"mappingQProg": [move(program) for program in detail.get("mappingQProg", [])]}


def _state(detail: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    return {"taskState": str(settings["state"])}


def _other_task(detail: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    return {"taskId": str(detail["taskId"])[::-1]}


def _skew(detail: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    moment = 1000 * settings["seconds"]
    return {name: detail[name] - moment for name in ("startTime", "endTime", "totalTime", "queueTime", "qpuRunTime")}


_CHANGES = {
    "partial": _partial,
    "duplicate": _duplicate,
    "shuffle": _shuffle,
    "wrong_bits": _wrong_bits,
    "wrong_sum": _wrong_sum,
    "nan": _nan,
    "moved": _moved,
    "state": _state,
    "other_task": _other_task,
    "skew": _skew,
}
