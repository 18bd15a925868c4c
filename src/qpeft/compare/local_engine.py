"""Runs the jobs of a comparison in processes of this machine, each of which keeps what it has loaded.

A process that dies (killed, out of memory) costs its job one more try in a fresh process, and no other job anything.
Ctrl-C is handed on, so that a training that runs saves a checkpoint first.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from qpeft.errors import Interrupted, QPeftError

Work = Callable[[Mapping[str, Any]], dict[str, Any]]
Outcome = tuple[dict[str, Any], dict[str, Any] | Exception]

#: seconds a worker gets to save its training when all has to stop
_PATIENCE = 120.0


def run_locally(jobs: Sequence[dict[str, Any]], work: Work, n_workers: int = 1) -> Iterator[Outcome]:
    """Do jobs in `n_workers` processes.

    Args:
        jobs: Plain values, one mapping a job.
        work: Importable function that does one.
        n_workers: Processes; the machine's cores are shared among them.

    Yields:
        A job with its result, or with the exception that kept it from one, in the order in which they end.

    Raises:
        KeyboardInterrupt: After the workers have stopped, each at a point from which it can go on.
    """
    waiting, tries = deque(jobs), dict.fromkeys(map(id, jobs), 0)
    workers: list[_Worker] = []
    try:
        while waiting or any(worker.job is not None for worker in workers):
            while waiting and sum(worker.job is not None for worker in workers) < n_workers:
                idle = next((worker for worker in workers if worker.job is None), None)
                if idle is None:
                    idle = _start(work, n_workers)
                    workers.append(idle)
                idle.give(waiting.popleft())
            ready = wait([worker.pipe for worker in workers if worker.job is not None])
            for worker in [worker for worker in workers if worker.pipe in ready]:
                job = worker.job
                assert job is not None
                answer = worker.take()
                if answer is not None:
                    yield job, answer
                    continue
                workers.remove(worker)
                worker.process.join()
                tries[id(job)] += 1
                if tries[id(job)] < 2:
                    waiting.appendleft(job)
                else:
                    yield job, QPeftError(_death(worker.process.exitcode))
    finally:
        _stop(workers)


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    job: dict[str, Any] | None = None

    def give(self, job: dict[str, Any]) -> None:
        self.job = job
        self.pipe.send(job)

    def take(self) -> dict[str, Any] | Exception | None:
        """Its answer; nothing from a process that has died."""
        self_job, self.job = self.job, None
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.job = self_job
            return None


def _start(work: Work, n_workers: int) -> _Worker:
    context = multiprocessing.get_context("spawn")  # a forked process would share threads that are not there
    ours, theirs = context.Pipe()
    threads = max(1, (os.cpu_count() or 1) // n_workers)
    process = context.Process(target=_serve, args=(theirs, work, threads), daemon=True)
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ |= dict.fromkeys(before, str(min(threads, int(before["OMP_NUM_THREADS"] or threads))))
    try:
        process.start()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    theirs.close()
    return _Worker(process, ours)


def _serve(pipe: Connection, work: Work, threads: int) -> None:
    """The life of a worker process."""
    # a terminal's Ctrl-C reaches every process; the engine decides, and asks by SIGTERM
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings = logging.StreamHandler()
    warnings.addFilter(_Once())
    logging.getLogger("qpeft").addHandler(warnings)
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        try:
            answer: Any = work(job)
        except (KeyboardInterrupt, Interrupted):
            return
        except Exception as error:
            answer = error if isinstance(error, QPeftError) else _plain(error)
        try:
            pipe.send(answer)
        except (OSError, KeyboardInterrupt):
            return


class _Once(logging.Filter):
    """Lets a message pass once: what a job warns of, such as samples that are too long, the next ones warn of too."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if message in self._said:
            return False
        self._said.add(message)
        return True


def _end_with_parent() -> None:
    """A killed engine must not leave a worker behind that still trains in a folder of the next one."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _plain(error: Exception) -> Exception:
    """An error that survives the way to another process, with where it happened."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:500]
    return RuntimeError(f"{type(error).__name__} at {frame.name} (line {frame.lineno} of {frame.filename}): {text}")


def _death(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return (
            "its process was killed twice, most likely for want of memory: use fewer jobs at once, or smaller batches"
        )
    return f"its process ended twice without an answer (code {code})"


def _stop(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.pipe.close() if worker.job is None else worker.process.terminate()
    for worker in workers:
        worker.process.join(_PATIENCE)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
