"""Qiskit as a provider: Aer, fake IBM chips, IBM's machines, and any other BackendV2 or SamplerV2.

Circuits go out as PUBs, one parametrised circuit with an array of angles for all circuits on the same templates. Each
is translated into the backend's own gates once, on fixed qubits, and kept.

================================  ==========================================================================
backend                           runs
================================  ==========================================================================
``"aer"``                         Qiskit Aer without noise, in this process
``"fake_torino"``, ...            a fake IBM chip: Aer with that chip's noise, in this process
``"ibm:<name>"``                  a machine of IBM's; credentials from QISKIT_IBM_TOKEN or the saved account
a ``BackendV2``                   an ``IBMBackend``, an ``AerSimulator``, a fake or generic chip, or another
                                  vendor's (through Qiskit's ``BackendSamplerV2``)
a ``SamplerV2``                   as it is
================================  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from qpeft.chips import ChipSnapshot
from qpeft.deadline import within
from qpeft.errors import InputError, MissingDependencyError
from qpeft.qpu.protocol import (
    Caps,
    Counts,
    JobState,
    NotAcceptedError,
    Price,
    ProviderError,
    RawAnswer,
    Submission,
    UnknownOutcome,
)
from qpeft.qpu.providers.network import describe
from qpeft.qpu.providers.qiskit_chip import fake_backend, snapshot_from_backend
from qpeft.qpu.providers.qiskit_circuits import Compiled, compile_blocks
from qpeft.qpu.providers.qiskit_ibm import TOKEN, IBMJobs, ibm_sampler, open_ibm_backend
from qpeft.qpu.providers.qiskit_jobs import Jobs, LocalJobs
from qpeft.qpu.providers.qiskit_pubs import Pub, Register, plan_pubs, read_answer, write_answer
from qpeft.qpu.providers.qiskit_simulated import ChipSampler

_EXECUTIONS = 10_000_000  # circuits times shots of one IBM job; answers of local jobs stay below some 100 MB with it
_SEEDS = 2**31 - 1


class QiskitProvider:
    """Run circuits through Qiskit.

    Args:
        backend: See the module.
        n_qubits: Qubits of the fully connected chip that a simulator without a coupling map is taken for.
        paid: Whether jobs cost something. Left out: no for simulators in this process, yes for everything else.
        deadline: Seconds that one call to IBM may take.

    Raises:
        InputError: An unknown backend.
        MissingDependencyError: qiskit, qiskit-aer or qiskit-ibm-runtime is not installed.

    Example:
        >>> provider = QiskitProvider("aer")
        >>> provider.name, provider.caps().paid
        ('qiskit:aer', False)
    """

    def __init__(
        self, backend: Any = "aer", *, n_qubits: int = 12, paid: bool | None = None, deadline: float = 120.0
    ) -> None:
        try:
            import qiskit.primitives  # noqa: F401
        except ImportError as error:
            raise MissingDependencyError(
                'circuits through Qiskit need qiskit and qiskit-aer; install them with pip install "qpeft[qiskit]".'
            ) from error
        if n_qubits < 1 or deadline <= 0:
            raise InputError(
                f"n_qubits must be 1 or more and deadline above 0 s (got {n_qubits} and {deadline:g}); change them."
            )
        self._backend = backend
        self._settings = (n_qubits, deadline)
        self._paid = paid
        self._compiled: dict[tuple[tuple[str, tuple[int, ...]], ...], Compiled] = {}
        self.name = f"qiskit:{_name(backend)}"

    @cached_property
    def _engine(self) -> _Engine:
        return _open(self._backend, *self._settings)

    def caps(self) -> Caps:
        caps = self._engine.caps
        return caps if self._paid is None else replace(caps, paid=self._paid)

    def snapshot(self) -> ChipSnapshot:
        """The chip as it is now; IBM is asked for its latest calibration.

        Raises:
            ProviderError: IBM cannot be asked now.
        """
        return self._engine.chip()

    def submit(self, submission: Submission) -> str:
        self._check(submission)
        engine = self._engine
        plan = plan_pubs(submission, engine.side_by_side)
        pubs = []
        for pub in plan:
            compiled = self._compile(submission, pub)
            values = np.pad(pub.values, ((0, 0), (0, 1)))  # (rows, P + 1)
            pubs.append((compiled.circuit, values[:, compiled.columns]))
        try:
            return engine.jobs.submit(
                pubs, submission.shots, submission.token, submission.seed % _SEEDS, submission.options
            )
        except ProviderError:
            raise
        except Exception as error:  # a sampler's own checks, or another vendor's client
            kind = UnknownOutcome if self.caps().paid else NotAcceptedError
            raise kind(f"{self.name} did not take the job ({describe(error, TOKEN)}).") from None

    def poll(self, job: str) -> JobState:
        return self._engine.jobs.state(job)

    def fetch(self, job: str) -> RawAnswer:
        result, usage = self._engine.jobs.result(job)
        registers = [{name: Register(bits.num_bits, bits.array) for name, bits in pub.data.items()} for pub in result]
        return RawAnswer(write_answer(registers, self._engine.side_by_side), usage, job)

    def parse(self, answer: RawAnswer, submission: Submission) -> Counts:
        return read_answer(answer, submission)

    def cancel(self, job: str) -> bool:
        return self._engine.jobs.cancel(job)

    def find(self, token: str) -> str | None:
        return self._engine.jobs.find(token)

    def close(self) -> None:
        if "_engine" in self.__dict__:
            self._engine.jobs.close()

    def _check(self, submission: Submission) -> None:
        caps = self.caps()
        most = caps.circuits_per_job(submission.shots)
        if not caps.min_shots <= submission.shots <= caps.max_shots:
            raise NotAcceptedError(
                f"{self.name} takes {caps.min_shots} to {caps.max_shots} shots (got {submission.shots}).", lasting=True
            )
        if not 1 <= len(submission.circuits) <= most:
            raise NotAcceptedError(
                f"{self.name} takes 1 to {most} circuits of {submission.shots} shots in a job "
                f"(got {len(submission.circuits)}); split it.",
                lasting=True,
            )

    def _compile(self, submission: Submission, pub: Pub) -> Compiled:
        templates = [submission.templates[t] for t in pub.templates]
        key = tuple((template.circuit.key, template.qubits) for template in templates)
        if key not in self._compiled:
            self._compiled[key] = compile_blocks(templates, self._engine.target)
        return self._compiled[key]


@dataclass(frozen=True)
class _Engine:
    """What stands behind a provider: where jobs run, the gates there (``None``: any), the chip, and what it can do.

    Blocks of a circuit stay ``side_by_side`` on chips, and run one by one where that makes no difference.
    """

    jobs: Jobs
    target: Any
    chip: Callable[[], ChipSnapshot]
    caps: Caps
    side_by_side: bool


def _name(backend: Any) -> str:
    if isinstance(backend, str):
        return backend
    own = getattr(backend, "name", None)
    own = own() if callable(own) else own
    return str(own) if own else type(backend).__name__


def _open(backend: Any, n_qubits: int, deadline: float) -> _Engine:
    from qiskit.primitives import BackendSamplerV2, BaseSamplerV2
    from qiskit.providers import BackendV2

    if isinstance(backend, str):
        backend = _by_name(backend, deadline)
    if isinstance(backend, BaseSamplerV2):
        return _own_sampler(backend, n_qubits, deadline)
    if not isinstance(backend, BackendV2):
        raise InputError(f"{type(backend).__name__} is no backend; give a name, a BackendV2 or a SamplerV2.")
    if hasattr(backend, "service"):
        return _ibm(backend, lambda: ibm_sampler(backend), deadline)
    if _is_simulated(backend):
        return _aer(backend, n_qubits)
    sampler = BackendSamplerV2(backend=backend)
    return _elsewhere(LocalJobs(lambda seed: sampler, outlives=True), backend, n_qubits)


def _by_name(name: str, deadline: float) -> Any:
    if name.startswith("ibm:") and len(name) > 4:
        return open_ibm_backend(name[4:], deadline)
    if name == "aer":
        return _aer_package().AerSimulator()
    if name.startswith("fake_"):
        return fake_backend(name)
    raise InputError(f"unknown Qiskit backend {name!r}; there are aer, fake_torino and its like, and ibm:<name>.")


def _is_simulated(backend: Any) -> bool:
    """Whether Aer can stand for a backend: Aer itself, IBM's fake chips, Qiskit's generic one."""
    module = type(backend).__module__
    return module.startswith("qiskit_aer.") or "fake_provider" in module


def _aer_package() -> Any:
    try:
        import qiskit_aer
        import qiskit_aer.primitives
    except ImportError as error:
        raise MissingDependencyError(
            'simulation through Qiskit needs qiskit-aer; install it with pip install "qpeft[qiskit]".'
        ) from error
    return qiskit_aer


def _aer(backend: Any, n_qubits: int) -> _Engine:
    aer = _aer_package()
    target, chip = _chip(backend, n_qubits)
    sampler: Callable[[int], Any]
    if isinstance(backend, aer.AerSimulator):

        def sampler(seed: int) -> Any:
            return aer.primitives.SamplerV2.from_backend(backend, seed=seed)
    else:
        sampler = ChipSampler(backend.target, chip).seeded

    caps = Caps(
        max_circuits=1000, min_shots=1, max_shots=1_000_000, packs=True, finds=True, paid=False, seeded=True,
        max_executions=_EXECUTIONS,
    )  # fmt: skip
    return _Engine(LocalJobs(sampler), target, lambda: chip, caps, side_by_side=False)


def _own_sampler(sampler: Any, n_qubits: int, deadline: float) -> _Engine:
    backend = getattr(sampler, "backend", None) or getattr(sampler, "_backend", None)
    backend = backend() if callable(backend) else backend
    if hasattr(backend, "service"):
        return _ibm(backend, lambda: sampler, deadline)
    simulated = backend is None or _is_simulated(backend)
    engine = _elsewhere(LocalJobs(lambda seed: sampler, outlives=not simulated), backend, n_qubits)
    caps = replace(engine.caps, paid=not simulated, finds=simulated)
    return replace(engine, caps=caps, side_by_side=not simulated)


def _elsewhere(jobs: Jobs, backend: Any, n_qubits: int) -> _Engine:
    caps = Caps(
        max_circuits=300, min_shots=1, max_shots=100_000, packs=True, finds=False, paid=True,
        max_executions=_EXECUTIONS,
    )  # fmt: skip
    target, chip = _chip(backend, n_qubits)
    return _Engine(jobs, target, lambda: chip, caps, side_by_side=True)


def _chip(backend: Any, n_qubits: int) -> tuple[Any, ChipSnapshot]:
    """Target and snapshot; no target where any gate can act anywhere."""
    target = getattr(backend, "target", None)
    if target is None or target.build_coupling_map() is None:
        return None, ChipSnapshot.fully_connected(n_qubits, name=_name(backend) if backend is not None else "ideal")
    return target, snapshot_from_backend(backend)


def _ibm(backend: Any, sampler: Callable[[], Any], deadline: float) -> _Engine:
    def chip() -> ChipSnapshot:
        def ask() -> ChipSnapshot:
            refresh = getattr(backend, "refresh", None)
            if callable(refresh):
                refresh()
            return snapshot_from_backend(backend)

        try:
            return within(deadline, ask)
        except InputError:
            raise
        except Exception as error:
            raise ProviderError(
                f"the state of {_name(backend)} cannot be asked for ({describe(error, TOKEN)})."
            ) from None

    shots = getattr(backend, "max_shots", None)
    caps = Caps(
        max_circuits=5000, min_shots=1, max_shots=shots if isinstance(shots, int) else 100_000, packs=True, finds=True,
        paid=True, price=Price(currency="s", per_second=1.0), max_executions=_EXECUTIONS,
    )  # fmt: skip
    return _Engine(IBMJobs(backend, sampler, deadline), backend.target, chip, caps, side_by_side=True)
