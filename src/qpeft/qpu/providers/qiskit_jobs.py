"""Jobs of Qiskit samplers that run in this process: Aer, fake chips, and whatever sampler somebody brings.

Such jobs live and die with their process, so this registry knows of all of them: a job that it does not know is gone,
and running it again is the only way to its answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from qpeft.qpu.protocol import JobState, NotAcceptedError, ProviderError

_KEPT = 16  # answers that stay after they were fetched, in case somebody asks again

_STATES = {
    "INITIALIZING": JobState.QUEUED,
    "VALIDATING": JobState.QUEUED,
    "QUEUED": JobState.QUEUED,
    "RUNNING": JobState.RUNNING,
    "DONE": JobState.DONE,
    "CANCELLED": JobState.CANCELLED,
    "ERROR": JobState.FAILED,
}


class Jobs(Protocol):
    """Where PUBs are run."""

    def submit(self, pubs: list[Any], shots: int, token: str, seed: int, options: dict[str, Any]) -> str: ...

    def state(self, job: str) -> JobState: ...

    def result(self, job: str) -> tuple[Any, dict[str, Any]]:
        """Qiskit's ``PrimitiveResult``, and what the job used."""

    def cancel(self, job: str) -> bool: ...

    def find(self, token: str) -> str | None: ...

    def close(self) -> None: ...


def job_state(job: Any) -> JobState:
    """State of a Qiskit job; IBM's jobs answer with a text, others with a member of an enumeration."""
    status = job.status()
    return _STATES.get(str(getattr(status, "name", status)).upper(), JobState.UNKNOWN)


class LocalJobs:
    """Jobs of a sampler in this process.

    Args:
        sampler: From a seed to a Qiskit ``SamplerV2``.
        outlives: Whether the work may go on without this process (another vendor's machine behind a ``BackendV2``);
            a job that this process does not know is then unknown, not gone.
    """

    def __init__(self, sampler: Callable[[int], Any], outlives: bool = False) -> None:
        self._sampler = sampler
        self._outlives = outlives
        self._jobs: dict[str, Any] = {}
        self._tokens: dict[str, str] = {}
        self._fetched: list[str] = []

    def submit(self, pubs: list[Any], shots: int, token: str, seed: int, options: dict[str, Any]) -> str:
        if options:
            raise NotAcceptedError(
                f"the options {sorted(options)} mean nothing to a sampler in this process; leave them out.",
                lasting=True,
            )
        job = self._sampler(seed).run(pubs, shots=shots)
        name = str(job.job_id())
        self._jobs[name] = job
        self._tokens[token] = name
        return name

    def state(self, job: str) -> JobState:
        if job in self._jobs:
            return job_state(self._jobs[job])
        if self._outlives:
            raise ProviderError(f"job {job} was sent by another process, and its backend cannot look jobs up.")
        return JobState.FAILED

    def result(self, job: str) -> tuple[Any, dict[str, Any]]:
        if job not in self._jobs:
            raise ProviderError(f"job {job} ended with the process that ran it; submit it again.")
        try:
            result = self._jobs[job].result()
        except Exception as error:  # whatever a simulator or another vendor's client raises
            raise ProviderError(f"job {job} failed: {type(error).__name__}: {str(error)[:300]}") from None
        if job not in self._fetched:
            self._fetched.append(job)
        while len(self._fetched) > _KEPT:
            self._jobs.pop(self._fetched.pop(0))
        return result, {}

    def cancel(self, job: str) -> bool:
        return job in self._jobs and bool(self._jobs[job].cancel())

    def find(self, token: str) -> str | None:
        job = self._tokens.get(token)
        return job if job in self._jobs else None

    def close(self) -> None:
        for job in self._jobs.values():
            job.cancel()
        self._jobs.clear()
