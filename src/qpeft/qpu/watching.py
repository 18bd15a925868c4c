"""Waiting for jobs at a vendor: each is asked about at once, then at growing intervals, until it is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from qpeft.qpu.desk import Desk
from qpeft.qpu.protocol import ProviderError
from qpeft.qpu.reading import Job
from qpeft.qpu.schema import OPEN, State

_GROWTH = 1.5


@dataclass
class _Watch:
    """A job, when to ask about it next, and whether this process handed it in."""

    job: Job
    at: float
    wait: float
    ours: bool
    refetches: int = 0


class Watches:
    """Jobs of one provider whose answers are still to come.

    Args:
        desk: Of the provider.
        say: Told, in sentences, what the user should know.
    """

    def __init__(self, desk: Desk, say: Callable[[str], None]) -> None:
        self._desk, self._say = desk, say
        self._watches: list[_Watch] = []

    def __len__(self) -> int:
        return len(self._watches)

    def add(self, job: Job) -> None:
        """Watch a job that this process handed in."""
        self._watches.append(_Watch(job, time.monotonic(), self._desk.policy.poll_first, ours=True))

    def attach(self, batch: int | None = None) -> None:
        """Watch the jobs of the ledger, or of one batch, that are open since an earlier process."""
        desk = self._desk
        for job in desk.ledger.jobs(*OPEN, batch=batch, provider=desk.name):
            if not desk.caps.paid and desk.caps.finds and job.state is State.SUBMITTED and desk.find(job) is None:
                desk.ledger.move(job, State.FAILED, "the simulator that had it has ended")
                continue
            self._watches.append(_Watch(job, time.monotonic(), desk.policy.poll_first, ours=False))

    @property
    def due(self) -> float:
        """When the next job is to be asked about, in monotonic seconds; infinite if there is none."""
        return min((watch.at for watch in self._watches), default=float("inf"))

    @property
    def names(self) -> str:
        """The vendor's ids."""
        return ", ".join(str(watch.job.job) for watch in self._watches) or "no job"

    def ask(self, strict: bool) -> bool:
        """Ask about the job that is due next, now.

        Args:
            strict: Raise where a job failed or its answer stays wrong; else only stop watching it.

        Returns:
            Whether its circuits are free to be sent again.

        Raises:
            ProviderError: With ``strict``; what to do is said.
            VendorDown: Several questions in a row were not answered.
        """
        watch = min(self._watches, key=lambda watch: watch.at)
        before, job = watch.job, self._desk.ask(watch.job)
        watch.job = job
        watch.at = time.monotonic() + watch.wait
        watch.wait = min(watch.wait * _GROWTH + 1e-3, max(self._desk.policy.poll_last, watch.wait))
        if job.state is State.DONE:
            self._watches.remove(watch)
        elif job.state in (State.FAILED, State.CANCELLED):
            self._watches.remove(watch)
            return strict and self._ended(watch)
        elif job.state is State.QUARANTINED and job is not before:
            watch.refetches += 1
            if watch.refetches > self._desk.policy.refetches:
                self._watches.remove(watch)
                if strict:
                    raise ProviderError(self._wrong(job))
        return False

    def _ended(self, watch: _Watch) -> bool:
        """A job without an answer: its circuits may go again if the user has started the command again since."""
        job = watch.job
        sentence = f"job {job.job} at {self._desk.name} ended as {job.state.value}: {job.note}."
        if watch.ours:
            raise ProviderError(f"{sentence} Start the same command again to send its circuits once more.")
        self._say(f"{sentence} Its {len(job.positions)} circuits are sent again.")
        return True

    def _wrong(self, job: Job) -> str:
        folder = self._desk.ledger.folder
        return (
            f"the answer of job {job.job} at {self._desk.name} is not right: {job.note} It is kept. Ask again with: "
            f"qpeft qpu resume {folder}; or give it up, so that its circuits are sent again, with: qpeft qpu resolve "
            f"{folder} {job.id} --lost"
        )
