"""qBraid as a provider: one client for the machines of a dozen vendors.

A circuit goes out as one OpenQASM program with numbers in place of angles, its blocks side by side on qubits
0, 1, 2, ...; qBraid's and the vendor's compilers choose the physical qubits, so a placement on the chip means nothing
here. One job holds one circuit, except on devices that take several in one job: where a list becomes many jobs, a
failure half-way would leave some of them paid and unknown.

Outcomes come as counts of bit strings with qubit 0 last, which is qBraid's convention for all vendors. Jobs cannot be
searched, so a submission that ends in silence stays unknown until somebody looks at qBraid's page.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

import torch

from qpeft.chips import ChipSnapshot, NativeTemplate
from qpeft.circuits import Circuit, Gate, Input, to_openqasm
from qpeft.deadline import within
from qpeft.errors import InputError, MissingDependencyError
from qpeft.qpu.protocol import (
    Block,
    Caps,
    Counts,
    JobState,
    NotAcceptedError,
    ProviderError,
    RawAnswer,
    Submission,
)
from qpeft.qpu.providers.network import describe, submission_error

_KEY = "QBRAID_API_KEY"
_BATCH = 100
_DEADLINE_S = 120.0
_STATES = {
    "INITIALIZING": JobState.QUEUED,
    "QUEUED": JobState.QUEUED,
    "VALIDATING": JobState.QUEUED,
    "RUNNING": JobState.RUNNING,
    "COMPLETED": JobState.DONE,
    "FAILED": JobState.FAILED,
    "CANCELLED": JobState.CANCELLED,
}  # CANCELLING, HOLD and whatever comes later: unknown


class QBraidProvider:
    """Run circuits through qBraid.

    Args:
        device: Its id at qBraid (``"qbraid:qbraid:sim:qir-sv"``, say) or at the vendor, or a ``QuantumDevice``.
        provider: Which of qBraid's routes: ``"qbraid"`` (their cloud, key from QBRAID_API_KEY) or a vendor's name
            (``"ionq"``, ``"aws"``, ...; credentials as that vendor's client wants them).
        n_qubits: Qubits of the fully connected chip that circuits are placed on; at most those of the device.

    Raises:
        InputError: No device.
        MissingDependencyError: qbraid is not installed.
    """

    def __init__(self, device: Any = None, provider: str = "qbraid", *, n_qubits: int = 12) -> None:
        if not device:
            raise InputError("qBraid needs a device; give its id, for example device='qbraid:qbraid:sim:qir-sv'.")
        try:
            import qbraid.runtime  # noqa: F401
        except ImportError as error:
            raise MissingDependencyError(
                'circuits through qBraid need its client; install it with pip install "qpeft[qbraid]".'
            ) from error
        self._given = device
        self._route = provider
        self._n_qubits = n_qubits
        self._device: Any = None if isinstance(device, str) else device
        self._jobs: dict[str, Any] = {}
        self.name = f"qbraid:{device if isinstance(device, str) else device.id}"

    def caps(self) -> Caps:
        batch = bool(self._open().profile.get("batch_job_support"))
        return Caps(
            max_circuits=_BATCH if batch else 1, min_shots=1, max_shots=100_000, packs=True, finds=False, paid=True
        )

    def snapshot(self) -> ChipSnapshot:
        """A perfect, fully connected chip: where circuits run is the vendor's choice."""
        size = self._open().num_qubits or self._n_qubits
        return ChipSnapshot.fully_connected(min(size, self._n_qubits), name=self.name)

    def submit(self, submission: Submission) -> str:
        device = self._open()
        caps = self.caps()
        if not 1 <= len(submission.circuits) <= caps.max_circuits:
            raise NotAcceptedError(
                f"{self.name} takes {caps.max_circuits} circuit(s) in a job (got {len(submission.circuits)}); split "
                f"the submission.",
                lasting=True,
            )
        from qbraid.exceptions import QbraidError

        programs = [program_text(submission.templates, blocks) for blocks in submission.circuits]
        settings: dict[str, Any] = {"shots": submission.shots, **submission.options}
        if type(device).__module__.startswith("qbraid.runtime.native"):
            settings["tags"] = {"qpeft": submission.token}
        try:
            if caps.max_circuits > 1:
                job = within(_DEADLINE_S, lambda: device.run(programs, as_batch=True, **settings))
            else:
                job = within(_DEADLINE_S, lambda: device.run(programs[0], **settings))
        except Exception as error:  # any vendor's client may be behind it
            raise submission_error(error, "qBraid", _KEY, own=QbraidError) from None
        self._jobs[str(job.id)] = job
        return str(job.id)

    def poll(self, job: str) -> JobState:
        handle = self._job(job)
        try:
            status = within(_DEADLINE_S, handle.status)
        except Exception as error:
            raise ProviderError(f"job {job} cannot be asked for now ({describe(error, _KEY)}).") from None
        return _STATES.get(str(getattr(status, "name", status)).upper(), JobState.UNKNOWN)

    def fetch(self, job: str) -> RawAnswer:
        handle = self._job(job)
        try:
            result = within(_DEADLINE_S, handle.result)
            counts = result.data.get_counts()
        except Exception as error:
            raise ProviderError(f"the counts of job {job} cannot be fetched now ({describe(error, _KEY)}).") from None
        kept = counts if isinstance(counts, list) else [counts]
        details = result.details if isinstance(result.details, dict) else {}
        cost = details.get("cost")
        usage = {"cost": float(cost), "currency": "qBraid credits"} if cost is not None else {}
        return RawAnswer(json.dumps({"format": 1, "counts": kept}).encode(), usage, job)

    def parse(self, answer: RawAnswer, submission: Submission) -> Counts:
        wrong = f"the answer of job {answer.job} cannot be used: "
        try:
            kept = json.loads(answer.data)
            histograms = kept["counts"]
            whole = kept["format"] == 1 and all(isinstance(histogram, dict) for histogram in histograms)
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise ProviderError(f"{wrong}it is damaged; fetch it again.")
        if len(histograms) != len(submission.circuits):
            raise ProviderError(f"{wrong}{len(submission.circuits)} circuits were sent, {len(histograms)} came back.")
        result = []
        for blocks, histogram in zip(submission.circuits, histograms, strict=True):
            widths = [len(submission.templates[block.template].qubits) for block in blocks]
            counts = [torch.zeros(2**width, dtype=torch.int64) for width in widths]
            for key, times in histogram.items():
                bits = key.replace(" ", "")[::-1]  # qubit 0 first
                if len(bits) != sum(widths) or not re.fullmatch("[01]+", bits):
                    raise ProviderError(f"{wrong}{key[:40]!r} is no outcome of {sum(widths)} qubits.")
                if isinstance(times, bool) or not isinstance(times, int) or times < 0:
                    raise ProviderError(f"{wrong}outcome {key[:40]!r} came {times!r} times.")
                start = 0
                for width, block in zip(widths, counts, strict=True):
                    block[int(bits[start : start + width], 2)] += times
                    start += width
            if int(counts[0].sum()) != submission.shots:
                raise ProviderError(
                    f"{wrong}{int(counts[0].sum())} shots came back, {submission.shots} were asked for."
                )
            result.append(counts)
        return result

    def cancel(self, job: str) -> bool:
        try:
            within(_DEADLINE_S, self._job(job).cancel)
        except Exception:  # too late, or the vendor offers no way
            return False
        return True

    def find(self, token: str) -> str | None:
        raise ProviderError("jobs at qBraid cannot be searched; look at the account's page.")

    def close(self) -> None:
        self._jobs.clear()

    def _open(self) -> Any:
        if self._device is None:
            from qbraid.runtime import load_provider

            native = self._route in ("qbraid", "native")
            try:
                vendor = load_provider(self._route, **({"api_key": os.environ.get(_KEY)} if native else {}))
                self._device = vendor.get_device(self._given)
            except Exception as error:
                hint = f"set {_KEY}" if native else f"set up the credentials of {self._route!r}"
                raise ProviderError(
                    f"{self.name} cannot be opened ({describe(error, _KEY)}); {hint} and check the id of the device."
                ) from None
        return self._device

    def _job(self, job: str) -> Any:
        if job not in self._jobs:
            from qbraid.runtime import load_job

            try:
                self._jobs[job] = load_job(job, self._route, device=self._open())
            except Exception as error:
                raise ProviderError(f"job {job} cannot be opened ({describe(error, _KEY)}).") from None
        return self._jobs[job]


def program_text(templates: tuple[NativeTemplate, ...], blocks: tuple[Block, ...]) -> str:
    """Blocks side by side as one OpenQASM 3 program; the first block stands on qubits 0 to k - 1, and so on."""
    gates, start = [], 0
    for block in blocks:
        circuit = templates[block.template].circuit
        for gate in circuit.gates:
            angle = gate.angle
            if isinstance(angle, Input):
                angle = angle.scale * block.angles[angle.index]
            gates.append(Gate(gate.name, tuple(start + wire for wire in gate.wires), angle))
        start += circuit.n_qubits
    return to_openqasm(Circuit(start, tuple(gates)))
