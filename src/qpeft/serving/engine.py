"""One worker that writes answers, and a bounded queue before it.

The worker takes the request that waits longest, and with it those behind it that ask the same model, up to a number:
a step of decoding reads all weights, for one row or for eight. Requests that come meanwhile are in the next batch. A
full queue is told at once, with the time after which to ask again, instead of letting clients wait without end. A
cancelled job leaves the queue, or its batch at the next token.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from qpeft.serving.writing import Event, Job, write_answers

_PATIENCE = 60  # seconds after which, at the latest, a refused client may ask again
_MEMORY = 0.9  # share of the earlier mean in the running mean of seconds a job
_MOST_TOKENS = 16_384  # rows times columns of a batch of several, for the memory of their keys and values


class QueueFull(Exception):
    """There is no room for another job; `seconds` later there may be."""

    def __init__(self, waiting: int, seconds: int) -> None:
        super().__init__(f"{waiting} requests are waiting already: ask again in {seconds} s")
        self.seconds = seconds


class Engine:
    """The worker and its queue.

    Args:
        queue_size: Most jobs that wait.
        batch_size: Most jobs that are written together; 1 writes one after the other.
        report: Receives a job, its last event and its seconds in the batch when it ends.
    """

    def __init__(
        self,
        queue_size: int = 64,
        batch_size: int = 8,
        report: Callable[[Job, Event, float], None] = lambda *_: None,
    ) -> None:
        self.queue_size = queue_size
        self.batch_size = batch_size
        self.answered = 0
        self._report = report
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._started = 0.0
        self._mean_seconds = 1.0
        self._closed = False
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, name="qpeft-engine", daemon=True)
        self._worker.start()

    @property
    def open_jobs(self) -> int:
        """Jobs that wait or are being written."""
        with self._changed:
            return len(self._waiting) + len(self._running)

    def submit(self, job: Job) -> None:
        """Take a job.

        Raises:
            QueueFull: There is no room.
        """
        with self._changed:
            if len(self._waiting) >= self.queue_size or self._closed:
                seconds = min(_PATIENCE, max(1, math.ceil(self._mean_seconds * len(self._waiting))))
                raise QueueFull(len(self._waiting), seconds)
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Forget a job; one that has ended stays as it is."""
        job.cancelled.set()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)

    def stop(self) -> None:
        """Take no more jobs and cancel those there are, each of which is told."""
        with self._changed:
            self._closed = True
            for job in [*self._waiting, *self._running]:
                job.cancelled.set()
            self._changed.notify()

    def close(self) -> None:
        """Stop, and end the worker."""
        self.stop()
        self._worker.join()

    def _work(self) -> None:
        while jobs := self._next():
            write_answers(jobs, self._ended)
            seconds = (time.perf_counter() - self._started) / len(jobs)
            with self._changed:
                self._mean_seconds = _MEMORY * self._mean_seconds + (1 - _MEMORY) * seconds

    def _next(self) -> list[Job]:
        """The next batch; none once everything has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            chosen = choose(self._waiting, self.batch_size)
            for job in chosen:
                self._waiting.remove(job)
            self._running = list(chosen)
            self._started = time.perf_counter()
            return chosen

    def _ended(self, job: Job, end: Event) -> None:
        with self._changed:
            self._running.remove(job)
            self.answered += end.reason in ("stop", "length")
        job.tell(end)
        self._report(job, end, time.perf_counter() - self._started)


def choose(waiting: Sequence[Job], most: int) -> list[Job]:
    """The first job, and of those behind it the ones that fit into its batch, in their order.

    A batch is as long as its longest prompt and longest answer together, which must fit into the model's window: a
    row that is done goes on with padding until the last one is.
    """
    chosen: list[Job] = []
    prompt = new = 0
    for job in waiting:
        if len(chosen) == most:
            break
        longest, furthest = max(prompt, len(job.prompt)), max(new, job.sampling.max_new_tokens)
        columns, window = longest + furthest, job.served.window
        fits = (window is None or columns <= window) and (len(chosen) + 1) * columns <= _MOST_TOKENS
        if not chosen or (job.served is chosen[0].served and fits):
            chosen.append(job)
            prompt, new = longest, furthest
    return chosen
