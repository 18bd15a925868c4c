"""The loopback cloud as a world for ``faults.py``: the server in a process of its own, Origin's client in another."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from fault_vendor import CHIP
from qpeft.qpu.ledger import Ledger
from qpeft.qpu.protocol import Caps
from qpeft.qpu.providers import origin_process, origin_worker
from qpeft.qpu.providers.origin import OriginProvider


class LoopbackWorld:
    """A server that is never killed; its books are its file of tasks.

    Args:
        folder: For everything.
        per_job: Circuits in a job, so that a run has many jobs.
    """

    finds = False

    def __init__(self, folder: Path, per_job: int = 5) -> None:
        self.folder, self.per_job = folder, per_job
        address, telling = os.pipe()
        self._server = os.fork()
        if self._server == 0:
            _serve(folder / "cloud", telling)
        os.close(telling)
        with os.fdopen(address) as told:
            self.url = told.readline().strip()
        import pyqpanda3.qcloud  # noqa: F401  (in this process, so that its forks have it)

        origin_process.subprocess = _Forking()  # type: ignore[attr-defined]

    def provider(self) -> OriginProvider:
        return _Small(self.url, self.per_job)

    def find(self, token: str) -> str | None:
        """What a user finds in the list of tasks."""
        rows = self._rows("SELECT id FROM tasks WHERE batch = ?", token)
        return rows[0][0] if rows else None

    def books(self) -> Counter[str]:
        """How often the server took each program."""
        tasks = self._rows("SELECT request FROM tasks")
        requests = [json.loads(zlib.decompress(request)) for (request,) in tasks]
        return Counter(program for request in requests for program in request["programs"])

    def compare(self, answers: list[Any], batch: int) -> None:
        """Each answer that the ledger keeps is still what the server says of that very job."""
        provider = self.provider()
        with Ledger(self.folder / "run") as ledger:
            for job in ledger.jobs():
                kept = ledger.answer(job)
                if kept is not None and job.job is not None:
                    assert provider.fetch(job.job).data == kept.data, f"job {job.job} has another answer"
        provider.close()
        assert all(int(block.sum()) == 100 for blocks in answers for block in blocks)

    def close(self) -> None:
        """End the server."""
        os.kill(self._server, signal.SIGKILL)
        os.waitpid(self._server, 0)

    def _rows(self, query: str, *values: Any) -> list[Any]:
        connection = sqlite3.connect(f"file:{self.folder / 'cloud' / 'tasks.sqlite'}?mode=ro", uri=True, timeout=30)
        try:
            return connection.execute(query, values).fetchall()
        finally:
            connection.close()


class _Small(OriginProvider):
    """Origin's provider, with fewer circuits in a job."""

    def __init__(self, url: str, per_job: int) -> None:
        super().__init__("72", url=url)
        self._per_job = per_job

    def caps(self) -> Caps:
        return replace(super().caps(), max_circuits=self._per_job)


def _serve(folder: Path, telling: int) -> None:
    """The server's process; it ends when it is killed."""
    from qpeft.chips.virtual import VirtualChip
    from qpeft.cloud import CloudServer, TaskBook, VirtualCloud

    cloud = VirtualCloud({"72": VirtualChip(CHIP)}, TaskBook(folder), tell=lambda line: None)
    with CloudServer(cloud) as server:
        os.write(telling, f"{server.url}\n".encode())
        os.close(telling)
        while True:
            signal.pause()


class _Forking:
    """Stands in for the module ``subprocess``: forks the worker from a process that has imported the client."""

    PIPE = DEVNULL = -1

    class Popen:
        """As far as the provider uses it."""

        def __class_getitem__(cls, item: Any) -> Any:
            return cls

        def __init__(self, command: list[str], **settings: Any) -> None:
            requests, asking = os.pipe()
            answering, answers = os.pipe()
            self.returncode: int | None = None
            self.pid = os.fork()
            if self.pid == 0:
                sys.settrace(None)
                os.close(asking)
                os.close(answering)
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                try:
                    with os.fdopen(requests) as incoming, os.fdopen(answers, "w") as outgoing:
                        origin_worker.main(incoming, outgoing)
                finally:
                    os._exit(0)
            os.close(requests)
            os.close(answers)
            self.stdin, self.stdout = os.fdopen(asking, "w"), os.fdopen(answering)

        def poll(self) -> int | None:
            """Its exit code, or nothing while it runs."""
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
            return self.returncode

        def kill(self) -> None:
            """End it."""
            if self.poll() is None:
                os.kill(self.pid, signal.SIGKILL)

        def wait(self) -> int:
            """Until it has ended."""
            if self.returncode is None:
                self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            return self.returncode
