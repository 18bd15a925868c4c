"""IBM's machines through qiskit-ibm-runtime: jobs that are found again by their tag, and errors told apart.

The client repeats a POST by itself after the server errors for which IBM declares that safe. What it gives up on is
sorted by what it proves (:mod:`qpeft.qpu.providers.network`); where that is nothing, the job's tag tells.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from qpeft.deadline import within
from qpeft.errors import MissingDependencyError
from qpeft.qpu.protocol import JobState, NotAcceptedError, ProviderError
from qpeft.qpu.providers.network import describe, submission_error
from qpeft.qpu.providers.qiskit_jobs import job_state

TOKEN, INSTANCE = "QISKIT_IBM_TOKEN", "QISKIT_IBM_INSTANCE"
_OPTIONS = {"max_execution_time": int}
_Answer = TypeVar("_Answer")


def open_ibm_backend(name: str, deadline: float) -> Any:
    """A machine of IBM's by its name, with credentials from the environment or the account saved on this computer.

    Raises:
        MissingDependencyError: qiskit-ibm-runtime is not installed.
        ProviderError: No credentials, no such machine, or IBM cannot be reached.
    """
    try:
        from qiskit_ibm_runtime import QiskitRuntimeService
    except ImportError as error:
        raise MissingDependencyError(
            'IBM\'s machines need qiskit-ibm-runtime; install it with pip install "qpeft[ibm]".'
        ) from error

    def connect() -> Any:
        service = QiskitRuntimeService(token=os.environ.get(TOKEN), instance=os.environ.get(INSTANCE))
        return service.backend(name)

    try:
        return within(deadline, connect)
    except Exception as error:
        raise ProviderError(
            f"IBM's machine {name!r} cannot be opened ({describe(error, TOKEN)}); set {TOKEN} (and {INSTANCE}), "
            f"or save an account with QiskitRuntimeService.save_account."
        ) from None


class IBMJobs:
    """Jobs of one IBM machine, each with its token as tag.

    Args:
        backend: IBM's backend; its ``service`` is asked for jobs.
        sampler: Makes a sampler of qiskit-ibm-runtime on it.
        deadline: Seconds that a call may take; the client itself may wait for 15 minutes.
    """

    def __init__(self, backend: Any, sampler: Callable[[], Any], deadline: float) -> None:
        self._service = backend.service
        self._backend = backend
        self._sampler = sampler
        self._deadline = deadline

    def submit(self, pubs: list[Any], shots: int, token: str, seed: int, options: dict[str, Any]) -> str:
        for name, value in options.items():
            if name not in _OPTIONS or not isinstance(value, _OPTIONS[name]):
                raise NotAcceptedError(
                    f"option {name}={value!r} is not understood; there is max_execution_time (whole seconds).",
                    lasting=True,
                )
        sampler = self._sampler()
        sampler.options.environment.job_tags = [token]
        if "max_execution_time" in options:
            sampler.options.max_execution_time = options["max_execution_time"]
        from qiskit.exceptions import QiskitError

        try:
            job = within(self._deadline, lambda: sampler.run(pubs, shots=shots))
        except Exception as error:
            raise submission_error(error, "IBM", TOKEN, own=QiskitError) from None
        return str(job.job_id())

    def state(self, job: str) -> JobState:
        return self._ask(f"job {job} cannot be asked for", lambda: job_state(self._service.job(job)))

    def result(self, job: str) -> tuple[Any, dict[str, Any]]:
        def fetch() -> tuple[Any, dict[str, Any]]:
            handle = self._service.job(job)
            result = handle.result()
            try:
                seconds = handle.usage()
            except Exception:  # the answer counts more than its bill, which IBM shows on its pages too
                seconds = None
            return result, {"seconds": float(seconds), "currency": "s"} if seconds else {}

        return self._ask(f"the answer of job {job} cannot be fetched", fetch)

    def cancel(self, job: str) -> bool:
        try:
            within(self._deadline, lambda: self._service.job(job).cancel())
        except Exception:  # too late, or IBM cannot be asked: not agreed either way
            return False
        return True

    def find(self, token: str) -> str | None:
        def search() -> str | None:
            jobs = self._service.jobs(job_tags=[token], limit=None)
            return next((str(job.job_id()) for job in jobs if token in (job.tags or [])), None)

        return self._ask("jobs cannot be searched", search)

    def close(self) -> None:
        pass

    def _ask(self, what: str, question: Callable[[], _Answer]) -> _Answer:
        try:
            return within(self._deadline, question)
        except Exception as error:
            raise ProviderError(f"{what} now ({describe(error, TOKEN)}).") from None


def ibm_sampler(mode: Any) -> Any:
    """A sampler of qiskit-ibm-runtime; its package moves to a new one under the same name and says so each time."""
    from qiskit_ibm_runtime import SamplerV2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return SamplerV2(mode=mode)
