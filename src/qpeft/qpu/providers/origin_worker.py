"""What runs pyqpanda3, alone in a process of its own: text in, text out, one JSON document a line.

The client holds Python's lock while it waits for the network (a minute, where a server is silent) and cannot be
interrupted, so it must not live where anything else has to go on. This file is run as a script, without ``qpeft``:

    {"id": 1, "call": "open", "key": "...", "url": null, "chip": "72"}     ->  {"id": 1, "value": null}
    {"id": 2, "call": "submit", "programs": ["QINIT ..."], "shots": 1000}  ->  {"id": 2, "value": "<task>"}
    {"id": 3, "call": "query", "job": "<task>"}                            ->  {"id": 3, "value": "<raw JSON>"}

A call that fails gives ``{"id": ..., "error": text, "sent": whether a request may have left}``. The process ends with
its standard input; and while the client keeps it from reading that, a timer that does not need Python's lock ends it.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
from importlib import import_module
from typing import Any, TextIO

GRACE = 10.0  # seconds after its time limit at which a call ends the process, if nobody has done so before


class _NotSentError(Exception):
    """Something failed before any request was made."""


class _Client:
    """One service and one backend: the client's jobs use the last service of the process, so there is only one."""

    def __init__(self) -> None:
        self._backend: Any = None

    def open(self, key: str, url: str | None, chip: str) -> None:
        self._cloud: Any = import_module("pyqpanda3.qcloud")
        self._core: Any = import_module("pyqpanda3.core")
        self._service = self._cloud.QCloudService(key, url) if url else self._cloud.QCloudService(key)
        self._backend = self._service.backend(chip)

    def chips(self) -> dict[str, bool]:
        return dict(self._service.backends())

    def chip_info(self) -> dict[str, Any]:
        """What the client has read of ``chipInfo``, in the shape in which the cloud sent it."""
        info = self._backend.chip_info()
        neighbours: dict[str, list[dict[str, Any]]] = {}
        for pair in info.double_qubits_info():
            a, b = (int(qubit) for qubit in pair.get_qubits())
            neighbours.setdefault(str(a), []).append({"v": b, "w": pair.get_fidelity()})
        qubits = [
            {
                "qubitId": str(q.get_qubit_id()),
                "T1": q.get_t1(),
                "T2": q.get_t2(),
                "SingleGateFidelity": q.get_single_gate_fidelity(),
                "ReadoutFidelity": q.get_readout_fidelity(),
                "Frequency": q.get_frequency(),
            }
            for q in info.single_qubit_info()
        ]
        return {
            "ChipID": info.chip_id(),
            "QubitCount": info.qubits_num(),
            "AvailableQubits": list(info.available_qubits()),
            "HighFrequencyQubit": list(info.high_frequency_qubits()),
            "adjMatrix": neighbours,
            "QubitParams": qubits,
            "BasicQGate": list(info.get_basic_gates()),
            "QGateClock": [
                {"gateType": "RPhi", "IntValue": info.get_single_gate_timing()},
                {"gateType": "CZ", "IntValue": info.get_double_gate_timing()},
            ],
        }

    def submit(self, programs: list[str], shots: int, options: dict[str, Any], token: str) -> str:
        try:
            settings = self._cloud.QCloudOptions(**options)
            parsed = [self._core.QProg(text) for text in programs]
        except Exception as error:
            raise _NotSentError(f"pyqpanda3 does not accept a program or an option: {error}") from error
        return str(self._backend.run(parsed, shots, settings, False, token).job_id())

    def query(self, job: str, keys: list[str]) -> str:
        task = self._cloud.QCloudJob(job)
        result = task.query(keys=keys) if keys else task.query()
        raw = result.origin_data()
        return raw if raw else json.dumps({"message": result.error_message()})

    def cancel(self, job: str) -> bool:
        return bool(self._cloud.QCloudJob.cancel_task(job))


def _answer(client: _Client, request: dict[str, Any]) -> dict[str, Any]:
    number, call, limit = request.pop("id"), request.pop("call"), request.pop("limit")
    faulthandler.dump_traceback_later(limit + GRACE, exit=True)
    try:
        return {"id": number, "value": getattr(client, call)(**request)}
    except ImportError as error:
        return {"id": number, "error": str(error), "sent": False, "missing": True}
    except _NotSentError as error:
        return {"id": number, "error": str(error), "sent": False}
    except Exception as error:
        return {"id": number, "error": str(error) or type(error).__name__, "sent": call != "open"}
    finally:
        faulthandler.cancel_dump_traceback_later()


def main(requests: TextIO, answers: TextIO) -> None:
    """Answer requests until there are no more."""
    client = _Client()
    for line in requests:
        answers.write(json.dumps(_answer(client, json.loads(line))) + "\n")
        answers.flush()


def _own_channel() -> TextIO:
    """Keep standard output for answers: what the client prints goes nowhere."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return channel


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program that started this one
    with open(0, encoding="utf-8", closefd=False) as incoming:
        main(incoming, _own_channel())
    sys.stdout.flush()
    os._exit(0)  # the client's threads are not waited for
